"""Every factory under `optax.inject_hyperparams`: it works, or says what is static."""

import contextlib
import functools
import inspect
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dtp_jax
from dtp_jax import TaskGradients
from tests import toys
from tests.catalogue import METHODS
from tests.combiner_catalogue import COMBINERS
from tests.toys import assert_near, balance, balancers, curricula

combiners: Any = dtp_jax.combiners
inject: Any = optax.inject_hyperparams

# Enough that one task more may be wrong, chosen or left out.
NAMES = tuple("abcdef")
STEPS = toys.random_steps(len(NAMES), num_steps=4)
# What only counts in extreme cases, or at the start.
GUARDS = {"kpi_min", "eps", "bound", "init_value", "fill", "min_weight", "max_norm"}
# What does not count in a few steps of this size: a factor of what only has ratios, a
# rate beyond its cap, a softmax that saturates, a sign that stays.
IDLE = {
    "boundary_intersection": {"direction"},
    "sdmgrad": {"learning_rate"},
    # Of the draws of few steps none may fall between the two.
    "relobralo": {"temperature", "alpha", "rho"},
    "grad_norm": {"alpha"},
    "causal": {"threshold"},
    # A ramp of one step is none.
    "stages": {"ramp_steps"},
    "warm_up": {"ramp_steps"},
    "norm_balancer": {"shares"},
}
# For two tasks only, and for the gradient of one: with tests of their own.
APART = {"dcgd", "one_at_a_time"}


class Injected(NamedTuple):
    """A link whose hyperparameters move from one value to another after a step."""

    first: Any  # the link with the first values
    second: Any  # the link with the second values
    scheduled: Any  # from [K] booleans, which hyperparameters move, to the link
    names: list[str]  # of the K hyperparameters


def moved(value: Any, annotation: Any) -> Any:
    """Another value of a hyperparameter."""
    if typing.get_origin(annotation) is typing.Literal:
        return next(arg for arg in typing.get_args(annotation) if arg != value)
    if isinstance(value, int):
        return value + 1
    return 0.75 * value if value else 0.1


def injected(make: Any, static: tuple[str, ...]) -> Injected:
    """Puts `inject_hyperparams` around every factory that `make` calls.

    Args:
        make: A function without arguments that makes a link.
        static: The names of the hyperparameters that must not be traced.
    """
    names: list[str] = []

    def numbers(factory: Any, bound: Any) -> dict[str, Any]:
        parameters = inspect.signature(factory).parameters
        return {
            name: moved(value, parameters[name].annotation)
            for name, value in bound.arguments.items()
            if type(value) in (int, float) and name not in static
        }

    def second(factory: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            bound = inspect.signature(factory).bind(*args, **kwargs)
            bound.apply_defaults()
            found = numbers(factory, bound)
            names.extend(found)
            bound.arguments.update(found)
            return factory(*bound.args, **bound.kwargs)

        return call

    def scheduled(factory: Any, moves: Iterator[jax.Array]) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            bound = inspect.signature(factory).bind(*args, **kwargs)
            bound.apply_defaults()
            for name, end in numbers(factory, bound).items():
                start, move = bound.arguments[name], next(moves)

                def schedule(
                    step: Any, start: Any = start, end: Any = end, move: Any = move
                ) -> Any:
                    return jnp.where((step >= 1) & move, end, start)

                bound.arguments[name] = schedule
            parameters = inspect.signature(factory).parameters
            chosen = tuple(name for name in static if name in parameters)
            wrapped = inject(factory, static_args=chosen)
            return wrapped(*bound.args, **bound.kwargs)

        return call

    with replaced(second):
        changed = make()

    def of_moves(moves: jax.Array) -> Any:
        with replaced(functools.partial(scheduled, moves=iter(moves))):
            return make()

    return Injected(make(), changed, of_moves, names)


@contextlib.contextmanager
def replaced(by: Any) -> Iterator[None]:
    """Replaces every factory of the package."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (balancers, curricula, combiners):
            for name, factory in list(vars(module).items()):
                if is_factory(name, factory):
                    patch.setattr(module, name, by(factory))
        yield


def is_factory(name: str, value: Any) -> bool:
    annotation = getattr(value, "__annotations__", {}).get("return")
    return not name.startswith("_") and annotation is dtp_jax.Balancer


def method_link(method: Any) -> Any:
    return balance(method.make(NAMES), NAMES)


def combiner_link(method: Any) -> Any:
    return method.make(NAMES, len(NAMES))


CASES = {method.name: (method, method_link) for method in METHODS} | {
    method.name: (method, combiner_link) for method in COMBINERS
}
cases = pytest.mark.parametrize(
    ("method", "link_of"),
    [
        pytest.param(*case, id=name, marks=[pytest.mark.slow] * case[0].variant)
        for name, case in CASES.items()
    ],
)


def step_of(link: Any, state: Any, step: toys.Steps) -> Any:
    params, key = jnp.zeros(16), jax.random.key(7)
    return toys.update(link, state, step, NAMES, params=params, key=key)


def run(first: Any, second: Any) -> jax.Array:
    """The gradients [S, P]: the first step by one link, the others by another."""
    state = first.init(jnp.zeros(16))
    gradient, state = step_of(first, state, jax.tree.map(lambda x: x[0], STEPS))

    def one(state: Any, step: toys.Steps) -> Any:
        gradient, state = step_of(second, state, step)
        return state, gradient

    rest = jax.tree.map(lambda x: x[1:], STEPS)
    _, gradients = jax.lax.scan(one, state, rest)
    return jnp.concatenate([gradient[None], gradients])


@cases
def test_every_factory_takes_schedules(method: Any, link_of: Any) -> None:
    links = injected(lambda: link_of(method), method.static)

    def of(moves: jax.Array) -> Any:
        link = links.scheduled(moves)
        return run(link, link)

    found = jax.eval_shape(of, jax.ShapeDtypeStruct((len(links.names),), bool))
    assert found.shape == (4, 16)


@pytest.mark.slow
@cases
def test_schedules_take_effect(method: Any, link_of: Any) -> None:
    links = injected(lambda: link_of(method), method.static)
    number = len(links.names)

    def of(moves: jax.Array) -> Any:
        link = links.scheduled(moves)
        return run(link, link)

    # All hyperparameters move, then all but each.
    moves = np.concatenate([np.ones((1, number), bool), ~np.eye(number, dtype=bool)])
    found = jax.jit(jax.vmap(of))(moves)
    expected = jax.jit(lambda: run(links.first, links.second))()
    # Solvers iterate to other last digits in a batch.
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=2e-5 * scale)
    idle = GUARDS | IDLE.get(method.name.split("-")[0], set())
    for name, without in zip(links.names, found[1:], strict=True):
        assert name in idle or not np.array_equal(without, found[0]), name


def test_the_catalogues_reach_every_factory() -> None:
    reached = set()

    def recorded(factory: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            reached.add(factory.__name__)
            return factory(*args, **kwargs)

        return call

    with replaced(recorded):
        for method, link_of in CASES.values():
            link_of(method)
    modules = (balancers, curricula, combiners)
    names = {n for m in modules for n, f in vars(m).items() if is_factory(n, f)}
    assert names - reached == APART
    assert len(names) > 40


def of_links(make: Any) -> jax.Array:
    """A step by a link that `inject_hyperparams` makes."""

    def of() -> Any:
        link = make()
        state = link.init(jnp.zeros(16))
        return step_of(link, state, jax.tree.map(lambda x: x[0], STEPS))[0]

    return jax.eval_shape(of)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: balance(inject(balancers.pcd)(0), NAMES), "primary"),
        (lambda: balance(inject(balancers.lr_annealing)(0), NAMES), "primary"),
        (
            lambda: balance(
                inject(balancers.auto_lambda)(0.1, primary=np.array([0])), NAMES
            ),
            "primary",
        ),
        (lambda: balance(inject(balancers.soft_adapt)(beta=0.2), NAMES), "order"),
        (lambda: inject(combiners.trimmed_mean)(NAMES, num_trimmed=1), "num_trimmed"),
        (lambda: inject(combiners.grad_drop)(6), "tasks"),
        (lambda: inject(dtp_jax.balance)(balancers.mgda(), 6), "tasks"),
        (lambda: inject(dtp_jax.dynamic_task_prioritization)(6), "tasks"),
    ],
)
def test_what_must_be_static_is_named(make: Any, name: str) -> None:
    with pytest.raises(ValueError, match=rf"static_args=\('{name}',\)"):
        of_links(make)


def test_a_function_that_was_taken_for_a_schedule_is_named() -> None:
    with pytest.raises(TypeError, match=r"add static_args=\('fn',\)"):
        of_links(lambda: balance(inject(balancers.scalarization)(jnp.sum), NAMES))


def test_positions_work_when_they_are_static() -> None:
    for factory in (balancers.pcd, balancers.lr_annealing):
        wrapped = inject(factory, static_args="primary")
        assert of_links(lambda w=wrapped: balance(w(0), NAMES)).shape == (16,)
    wrapped = inject(balancers.soft_adapt, static_args="order")
    assert of_links(lambda: balance(wrapped(order=2), NAMES)).shape == (16,)


def test_links_take_schedules() -> None:
    def falling(step: Any) -> Any:
        return jnp.where(step < 1, 2.0, 0.5)

    mean = optax.identity()
    clips: Any = (
        (inject(dtp_jax.clip_each_task), falling),
        (dtp_jax.clip_each_task, 2.0),
        (dtp_jax.clip_each_task, 0.5),
    )
    clipped = [optax.chain(clip(bound), balance(mean, NAMES)) for clip, bound in clips]
    prioritized = [
        factory(NAMES, gamma=gamma, warmup_steps=0)
        for factory, gamma in (
            (inject(dtp_jax.dynamic_task_prioritization), falling),
            (dtp_jax.dynamic_task_prioritization, 2.0),
            (dtp_jax.dynamic_task_prioritization, 0.5),
        )
    ]
    scheduled = [clipped[0], prioritized[0]]
    expected = [clipped[1:], prioritized[1:]]
    found = jax.jit(lambda: [run(link, link) for link in scheduled])()
    wanted = jax.jit(lambda: [run(*links) for links in expected])()
    assert_near(found, wanted, rtol=1e-5)


def test_a_lag_of_dwa_in_the_state() -> None:
    # All numbers are traced, the lag along with the temperature.
    def weights(balancer: Any) -> Any:
        return toys.weights_over(balancer, STEPS, NAMES)

    found = weights(inject(balancers.dwa)(temperature=0.5))
    expected = weights(balancers.dwa(temperature=0.5))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    found = weights(inject(balancers.dwa)(lag=0))
    np.testing.assert_allclose(found, weights(balancers.dwa(lag=0)), rtol=1e-6)


def test_values_per_task_follow_a_schedule_by_name() -> None:
    tasks, losses = ["b", "a"], {"a": jnp.array(1.0), "b": jnp.array(1.0)}
    gradients = TaskGradients.from_stacked(jnp.eye(2), losses)

    def by_name(step: Any) -> Any:
        return {"b": 2.0 + step, "a": jnp.ones(())}

    def fixed(a: Any, b: Any) -> Any:
        return balancers.constant({"a": a, "b": b})

    scheduled = balance(inject(balancers.constant)(weights=by_name), tasks)
    named = balance(inject(fixed)(a=1.0, b=2.0), tasks)

    @functools.partial(jax.jit, static_argnums=0)
    def step(link: Any, state: Any) -> Any:
        return link.update(gradients, state)[1]

    state = scheduled.init(None)
    for weight in (2.0, 3.0):
        state = step(scheduled, state)
        assert state.task_weights == {"a": 1.0, "b": weight}
    assert toys.num_compilations(step) == 1
    state = optax.tree.set(named.init(None), b=jnp.array(7.0))
    assert step(named, state).task_weights == {"a": 1.0, "b": 7.0}
    link = balance(balancers.constant({"a": 1.0, "b": by_name}), tasks)
    with pytest.raises(ValueError, match=r"one function from the step to a .*{'a': "):
        step(link, link.init(None))
