"""What every method owes, whichever it is.

A compilation takes longer than all else here, so each method gets few programs: one
over a batch of all the cases of four tasks, one over a batch of those of two, one of a
single task, and one that is not mapped, with the gradients spread over eight devices.
The slow tests repeat all of it in float64.
"""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from dtp_jax import TaskGradients
from dtp_jax._core.balancer import transformation
from dtp_jax._core.layout import layout_of
from tests import devices, toys
from tests.catalogue import METHODS, Method

NAMES = toys.NAMES
STEPS = toys.random_steps(len(NAMES), num_steps=4)
# Keeps the third task in its place, for methods that single one out.
ORDER = [1, 3, 2, 0]

# How far two ways to compute the same may lie apart. The inner products are sums of so
# many terms in one order or another, each off by half a unit in the last place, and
# what is solved from them multiplies that by the condition of the Gramian.
NUM_TERMS = STEPS.jacobians.shape[-1]
CONDITION = max(np.linalg.cond(rows @ rows.T) for rows in np.asarray(STEPS.jacobians))
ULPS = NUM_TERMS * CONDITION

IN_FLOAT64 = [
    dataclasses.replace(
        method, name=f"{method.name}-float64", dtype=jnp.float64, variant=True
    )
    for method in METHODS
]
methods = pytest.mark.parametrize(
    "method",
    [
        pytest.param(method, id=method.name, marks=[pytest.mark.slow] * method.variant)
        for method in [*METHODS, *IN_FLOAT64]
    ],
)
meshes = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(AxisType.Auto, id="auto"),
        pytest.param(AxisType.Explicit, id="explicit", marks=pytest.mark.slow),
    ],
)


@pytest.fixture(autouse=True)
def _precision(request: pytest.FixtureRequest) -> Iterator[None]:
    """Enables float64 for the methods that are tested in it."""
    method = request.node.callspec.params["method"]
    with jax.enable_x64(method.dtype == jnp.float64):
        yield


def cast(method: Method, tree: Any) -> Any:
    """The floats in the dtype of the method."""
    return jax.tree.map(
        lambda x: x.astype(method.dtype) if x.dtype == jnp.float32 else x, tree
    )


class Inputs(NamedTuple):
    """What a run over S steps gets."""

    steps: toys.Steps  # [S, T, ...]
    wanted: jax.Array  # [T], preferences; zero for a task that is absent
    seed: jax.Array  # [], int32


class Outputs(NamedTuple):
    """What it returns."""

    weights: jax.Array  # [S, T]
    gradients: jax.Array  # [S, P]
    state: Any


def inputs(steps: toys.Steps, wanted: Any = None, seed: int = 0) -> Inputs:
    num_tasks = steps.losses.shape[1]
    wanted = jnp.ones(num_tasks) if wanted is None else jnp.asarray(wanted, jnp.float32)
    return Inputs(steps, wanted, jnp.asarray(seed, jnp.int32))


def batch(items: Any) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *items)


def preferring() -> Any:
    """A balancer that takes its weights from the extra argument `wanted`."""

    def update(
        updates: Any, state: Any, params: Any = None, *, wanted: Any, **extra_args: Any
    ) -> tuple[Any, Any]:
        del params, extra_args
        return jax.tree.map(jnp.multiply, updates, wanted), state

    return transformation(lambda params: (), update)


class Program(NamedTuple):
    """One step, and a run over several."""

    link: Any
    step: Any
    run: Any


@functools.cache
def program(method: Method, tasks: tuple[str, ...] | int) -> Program:
    names = tuple(map(str, range(tasks))) if isinstance(tasks, int) else tasks
    example: Any = tasks
    if method.dtype == jnp.float64:
        example = dict.fromkeys(names, np.float64(0))
        example = np.zeros(tasks) if isinstance(tasks, int) else example
    link = toys.balance(method.make(names), example, preferences=preferring())

    def shaped(values: jax.Array) -> Any:
        if isinstance(tasks, int):
            return values
        return dict(zip(tasks, values, strict=True))

    def step(state: Any, one: toys.Steps, wanted: jax.Array, key: jax.Array) -> Any:
        supplied = toys.supplies(one.jacobians) | {"key": key}
        gradients = TaskGradients.from_stacked(one.jacobians, shaped(one.losses))
        gradient, state = link.update(
            gradients,
            state,
            kpis=shaped(one.kpis),
            wanted=shaped(wanted),
            unrelated=jnp.ones(7),
            **supplied,
        )
        weights = layout_of(state.task_weights).vector("weights", state.task_weights)
        return state, (weights, gradient)

    def run(given: Inputs) -> Outputs:
        num_steps = given.steps.losses.shape[0]
        keys = jax.random.split(jax.random.key(given.seed), num_steps)

        def one(state: Any, xs: tuple[toys.Steps, jax.Array]) -> Any:
            return step(state, xs[0], given.wanted, xs[1])

        state, (weights, gradients) = jax.lax.scan(
            one, link.init(None), (given.steps, keys)
        )
        return Outputs(weights, gradients, state)

    return Program(link, step, run)


def scaled(scales: list[float]) -> jax.Array:
    return STEPS.jacobians * jnp.array(scales)[:, None]


def case(**arrays: jax.Array) -> Inputs:
    return inputs(STEPS._replace(**arrays))


LOSSES, KPIS, ROWS = STEPS.losses, STEPS.kpis, STEPS.jacobians
DEGENERATE = {
    "solved": case(kpis=jnp.ones_like(KPIS)),
    "failing": case(kpis=jnp.zeros_like(KPIS)),
    "unobserved": case(kpis=jnp.full_like(KPIS, jnp.nan)),
    "zero-losses": case(losses=jnp.zeros_like(LOSSES)),
    "equal-losses": case(losses=jnp.ones_like(LOSSES)),
    "huge-losses": case(losses=LOSSES * 1e30),
    "tiny-losses": case(losses=LOSSES * 1e-30),
    "negative-losses": case(losses=-LOSSES),
    "zero-gradients": case(jacobians=jnp.zeros_like(ROWS)),
    "equal-gradients": case(jacobians=jnp.broadcast_to(ROWS[:, :1], ROWS.shape)),
    "opposite-gradients": case(
        jacobians=ROWS[:, :1] * jnp.array([1.0, -1.0, 1.0, -1.0])[:, None]
    ),
    "near-parallel": case(
        jacobians=ROWS[:, :1] * jnp.array([1.0, -1.0, 1.0, 1.0])[:, None] + 1e-3 * ROWS
    ),
    "stationary": case(jacobians=ROWS - jnp.mean(ROWS, axis=1, keepdims=True)),
    "orthogonal": case(jacobians=jnp.broadcast_to(jnp.eye(4, 16), ROWS.shape)),
    "two-parameters": case(jacobians=ROWS * (jnp.arange(16) < 2)),
    "one-zero-gradient": case(jacobians=scaled([1.0, 0.0, 1.0, 1.0])),
    "uneven-gradients": case(jacobians=scaled([1e-6, 1.0, 1e3, 1e6])),
}


def with_bad_loss(bad: float) -> Inputs:
    return case(
        losses=LOSSES.at[1, 2].set(bad),
        jacobians=ROWS.at[1, 2].set(jnp.nan),
        kpis=KPIS.at[1, 2].set(jnp.nan),
    )


GARBAGE = STEPS._replace(
    losses=LOSSES.at[:, 1].set(1e25),
    jacobians=ROWS.at[:, 1].set(7e7),
    kpis=KPIS.at[:, 1].set(0.77),
)
CASES = DEGENERATE | {
    "plain": inputs(STEPS),
    "reordered": inputs(toys.select(STEPS, ORDER)),
    "without-a-d": inputs(STEPS, [0, 1, 1, 0]),
    "without-b": inputs(STEPS, [1, 0, 1, 1]),
    "garbage-for-b": inputs(GARBAGE, [1, 0, 1, 1]),
    "without-c": inputs(STEPS, [1, 1, 0, 1]),
    "nan-gradient-of-c": case(jacobians=ROWS.at[0, 2, 5].set(jnp.nan)),
    "nan-loss": with_bad_loss(jnp.nan),
    "infinite-loss": with_bad_loss(jnp.inf),
    "minus-infinite-loss": with_bad_loss(-jnp.inf),
}

ORTHONORMAL = toys.Steps(
    jnp.ones((4, 2)),
    jnp.full((4, 2), 0.5),
    jnp.broadcast_to(jnp.eye(2, 16), (4, 2, 16)),
)
PREFERENCES = [0.5, 1.0, 2.0, 8.0]
PAIRS = [
    inputs(toys.select(STEPS, [1, 2])),
    *[inputs(ORTHONORMAL, [preference, 1.0]) for preference in PREFERENCES],
]
SINGLES = [
    inputs(toys.select(given.steps, [1]))
    for given in (CASES["plain"], CASES["zero-gradients"], CASES["zero-losses"])
]


@functools.cache
def all_cases(method: Method) -> dict[str, Outputs]:
    run = jax.jit(jax.vmap(program(method, NAMES).run))
    found = jax.tree.map(np.asarray, run(cast(method, batch(CASES.values()))))
    return {
        name: jax.tree.map(lambda x, i=index: x[i], found)
        for index, name in enumerate(CASES)
    }


@functools.cache
def pairs(method: Method) -> Outputs:
    # The losses are one array, where the method does not name the tasks.
    tasks = ("b", "c") if method.by_name else 2
    return jax.jit(jax.vmap(program(method, tasks).run))(cast(method, batch(PAIRS)))


@functools.cache
def on_eight_devices(method: Method, kind: AxisType = AxisType.Auto) -> Outputs:
    if kind == AxisType.Explicit and method.name.startswith("excess_mtl-params"):
        pytest.skip("its parameters are on one device; test_optax_contract has others")
    mesh = devices.mesh("x", kind)
    everywhere = jax.NamedSharding(mesh, jax.P())
    spread = jax.NamedSharding(mesh, jax.P(None, None, "x"))
    given = jax.device_put(cast(method, CASES["plain"]), everywhere)
    rows = jax.device_put(given.steps.jacobians, spread)
    given = given._replace(steps=given.steps._replace(jacobians=rows))
    explicit = kind == AxisType.Explicit
    with jax.set_mesh(mesh) if explicit else contextlib.nullcontext():
        return jax.jit(program(method, NAMES).run, out_shardings=everywhere)(given)


@methods
@meshes
def test_mapped_spread_eager_and_scanned_agree(method: Method, kind: AxisType) -> None:
    mapped, plain = all_cases(method)["plain"], on_eight_devices(method, kind)
    toys.assert_close(plain, mapped, ulps=ULPS)
    link, step, _ = program(method, NAMES)
    one = jax.tree.map(lambda x: x[0], cast(method, STEPS))
    keys = jax.random.split(jax.random.key(0), 4)
    _, eager = step(link.init(None), one, jnp.ones(4, method.dtype), keys[0])
    first = (plain.weights[0], plain.gradients[0])
    toys.assert_close(eager, first, ulps=ULPS)


@methods
@meshes
def test_same_bits_on_every_device(method: Method, kind: AxisType) -> None:
    for leaf in jax.tree.leaves(on_eight_devices(method, kind)):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == 8
        for copy in copies[1:]:
            np.testing.assert_array_equal(copy, copies[0])


@methods
def test_finite_on_degenerate_input(method: Method) -> None:
    for name in DEGENERATE:
        chex.assert_tree_all_finite(all_cases(method)[name])


@methods
def test_a_single_task(method: Method) -> None:
    if method.min_tasks > 1:
        pytest.skip("needs more tasks")
    names = ("b",)
    given = cast(method, batch(SINGLES))
    found = jax.jit(jax.vmap(program(method, names).run))(given)
    chex.assert_tree_all_finite(found)


@methods
def test_raising_a_preference_raises_the_weight(method: Method) -> None:
    if not method.prefers:
        pytest.skip("selects tasks whatever their preference")
    # At the last step, past the first stage and the warm-up.
    weights = pairs(method).weights[1:, -1]
    ratios = (weights[:, 0] / weights[:, 1]).tolist()
    assert ratios == sorted(ratios)
    assert ratios[-1] > 1.5 * ratios[1] > 0


@methods
def test_absent_tasks_have_no_influence(method: Method) -> None:
    found = all_cases(method)
    without = found["without-a-d"].weights
    np.testing.assert_array_equal(without[:, [0, 3]], 0)
    if method.min_tasks <= 2 and not method.random:
        toys.assert_close(without[:, [1, 2]], pairs(method).weights[0], ulps=ULPS)
    without = found["without-b"].weights
    np.testing.assert_array_equal(without[:, 1], 0)
    np.testing.assert_array_equal(found["garbage-for-b"].weights, without)


@methods
@pytest.mark.parametrize("bad", ["nan-loss", "infinite-loss", "minus-infinite-loss"])
def test_a_bad_loss_is_dropped_and_poisons_no_state(method: Method, bad: str) -> None:
    found = all_cases(method)[bad]
    chex.assert_tree_all_finite(found)
    assert [float(weight) == 0 for weight in found.weights[:, 2]] == [
        False,
        True,
        False,
        False,
    ]


@methods
def test_one_bad_gradient_is_dropped(method: Method) -> None:
    found = all_cases(method)
    dropped, without = found["nan-gradient-of-c"], found["without-c"]
    toys.assert_close(dropped.weights[0], without.weights[0], ulps=NUM_TERMS)


@methods
def test_equivariant_to_the_order_of_tasks(method: Method) -> None:
    if method.random:
        pytest.skip("in law only")
    if method.ordered:
        pytest.skip("the order counts")
    found = all_cases(method)
    expected = found["plain"].weights[:, ORDER]
    toys.assert_close(found["reordered"].weights, expected, ulps=ULPS)


@pytest.mark.parametrize(
    "method", [m for m in METHODS if m.random], ids=lambda method: method.name
)
def test_random_methods_are_equivariant_in_law(method: Method) -> None:
    run = jax.jit(jax.vmap(lambda given: program(method, NAMES).run(given).weights))
    seeds = range(300)
    steps = toys.select(STEPS, ORDER)
    plain = run(batch([inputs(STEPS, seed=seed) for seed in seeds]))[:, -1]
    other = run(batch([inputs(steps, seed=1000 + seed) for seed in seeds]))[:, -1]
    plain, other = np.asarray(plain)[:, ORDER], np.asarray(other)
    variance = (np.var(plain, axis=0) + np.var(other, axis=0)) / len(seeds)
    distance = np.abs(plain.mean(axis=0) - other.mean(axis=0))
    rounding = ULPS * np.finfo(np.float32).eps * np.abs(plain).max()
    assert (distance <= 5 * np.sqrt(variance) + rounding).all()


@methods
def test_state_survives_serialization(method: Method) -> None:
    state = on_eight_devices(method).state
    data = flax.serialization.to_bytes(state)
    start = program(method, NAMES).link.init(None)
    restored = flax.serialization.from_bytes(start, data)
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(restored, start)


@methods
def test_a_restored_state_of_other_tasks_is_an_error(method: Method) -> None:
    if method.min_tasks > 2:
        pytest.skip("needs more tasks")
    _, step, _ = program(method, NAMES)
    other = program(method, NAMES[:2]).link
    one = jax.tree.map(lambda x: x[0], cast(method, STEPS))
    with pytest.raises(ValueError, match="state does not fit the 4 tasks a, b, c, d"):
        jax.eval_shape(step, other.init(None), one, jnp.ones(4), jax.random.key(0))


@methods
def test_update_takes_any_extra_argument(method: Method) -> None:
    # The programs pass one that no method knows; here that they may be left out.
    balancer = method.make(NAMES)
    kinds = [p.kind for p in inspect.signature(balancer.update).parameters.values()]
    assert inspect.Parameter.VAR_KEYWORD in kinds
