"""What every link, combiner and balancer owes to optax and to JAX.

As optax asks of contributed transformations: the state has the types that `init` says,
whatever else is passed along, in branches and loops and on every kind of mesh. Types
are known without running anything, so most tests here only trace.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import P
from jax.sharding import AxisType

from dtp_jax import task_gradients
from tests import devices, toys
from tests.catalogue import METHODS, Hyperparameter, Method
from tests.combiner_catalogue import COMBINERS, Combiner, combiners

NAMES = toys.NAMES
KPIS = dict.fromkeys(NAMES, jnp.float16(0.5))

# The last axis of each is spread, where there are several devices.
MODEL = {
    "trunk": {
        "matrix": jnp.linspace(-1.0, 1.0, 24).reshape(3, 8),
        "half": jnp.linspace(0.1, 0.5, 16, dtype=jnp.bfloat16),
    },
    "heads": jnp.linspace(0.5, 3.0, 32).reshape(4, 8),
}
SHARED = {"trunk": True, "heads": False}


def losses_fn(params: Any, x: jax.Array) -> dict[str, jax.Array]:
    hidden = jnp.sum(jnp.tanh(params["trunk"]["matrix"]), axis=0)
    shift = x + jnp.sum(params["trunk"]["half"]).astype(x.dtype)
    errors = jnp.sum(hidden[None] * params["heads"], axis=1) - shift
    losses = dict(zip(NAMES, errors * errors, strict=True))
    # A narrow loss must not make a state narrow.
    return {**losses, "b": losses["b"].astype(jnp.bfloat16)}


@dataclasses.dataclass(frozen=True)
class Subject:
    """A transformation to test.

    Attributes:
        name: For the test's id.
        make: From the tasks to the transformation.
        shared: What `task_gradients` gets.
        variant: Whether it is left to the slow tests.
    """

    name: str
    make: Callable[[Any], Any]
    shared: Any = None
    variant: bool = False


def _of_method(method: Method) -> Subject:
    def make(tasks: Any) -> Any:
        return toys.balance(method.make(NAMES), tasks)

    return Subject(method.name, make, variant=method.variant)


def _of_combiner(method: Combiner) -> Subject:
    return Subject(method.name, lambda tasks: method.make(tasks, len(NAMES)))


def _chained(tasks: Any) -> Any:
    # The types of optax admit no TaskGradients.
    tools: Any = toys.dtp_jax
    return optax.chain(
        tools.clip_each_task(1.0),
        toys.balance(toys.balancers.mgda(), tasks),
        optax.clip_by_global_norm(1.0),
        optax.adam(0.1),
    )


def _names(names: tuple[str, ...]) -> Any:
    # A list of strings passes `inject_hyperparams` unchanged.
    return list(names)


def _clipped(tasks: Any, *, max_norm: Any) -> Any:
    tools: Any = toys.dtp_jax
    link = toys.balance(toys.balancers.mgda(), tasks)
    return optax.chain(tools.clip_each_task(max_norm), link)


LINKS = [
    Subject("clip_each_task", _chained),
    Subject("prioritization", toys.dynamic_task_prioritization),
    Subject(
        "prioritization-staged",
        lambda tasks: toys.dynamic_task_prioritization(
            tasks,
            stages={0: ["a"], 1: ["a", "b", "c"]},
            normalize="sum_to_T",
            balancer=toys.projected(),
        ),
    ),
    Subject(
        "heads-by-preferences",
        lambda tasks: toys.balance(
            toys.equal_norms(),
            tasks,
            preferences=toys.balancers.focal(),
            heads="preferences",
        ),
        shared=SHARED,
    ),
    Subject(
        "excess_mtl-of-the-model",
        lambda tasks: toys.balance(
            toys.balancers.excess_mtl(model(), shared=SHARED), tasks
        ),
        shared=SHARED,
    ),
    Subject(
        "grad_norm-softmax",
        lambda tasks: toys.balance(
            toys.balancers.grad_norm(parametrization="softmax"), tasks
        ),
    ),
    Subject(
        "moco-shared",
        lambda tasks: combiners.moco(tasks, shared=SHARED),
        shared=SHARED,
    ),
    Subject(
        "db_mtl-shared",
        lambda tasks: combiners.db_mtl(tasks, shared=SHARED),
        shared=SHARED,
    ),
]
# Made for sixteen parameters in one array; the model has its own above.
SUBJECTS = [
    *LINKS,
    *map(_of_combiner, COMBINERS),
    *[_of_method(m) for m in METHODS if m.name != "excess_mtl-params"],
]

subjects = pytest.mark.parametrize(
    "subject",
    [
        pytest.param(
            subject, id=subject.name, marks=[pytest.mark.slow] * subject.variant
        )
        for subject in SUBJECTS
    ],
)


methods = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)

# Of the links: from the tasks, as in the catalogues.
NUMBERS = {
    "grad_drop": Hyperparameter(combiners.grad_drop, "leak", (_names,)),
    "moco": Hyperparameter(combiners.moco, "gamma", (_names,)),
    "db_mtl": Hyperparameter(combiners.db_mtl, "beta", (_names,)),
    "clip_each_task": Hyperparameter(_clipped, "max_norm", (_names,)),
    "prioritization": Hyperparameter(
        toys.dynamic_task_prioritization, "gamma", (_names,)
    ),
}
NUMBERS_OF_METHODS = {m.name: m.number for m in METHODS if m.number is not None}

numbers = pytest.mark.parametrize("name", [*NUMBERS, *NUMBERS_OF_METHODS])


@contextlib.contextmanager
def mesh_of(kind: AxisType) -> Iterator[None]:
    with jax.set_mesh(devices.mesh("x", kind)):
        yield


def model() -> Any:
    """The parameters: in float64 where there is any, spread where there is a mesh."""
    if jax.config.read("jax_enable_x64"):
        return jax.tree.map(lambda x: x.astype(jnp.float64), MODEL)
    if jax.sharding.get_abstract_mesh().empty:
        return MODEL
    return jax.tree.map(
        lambda x: jax.device_put(x, P(*[None] * (x.ndim - 1), "x")), MODEL
    )


def step(subject: Subject, link: Any, params: Any, state: Any, x: Any) -> Any:
    """One step of training, with arguments that are of no concern to the link."""
    gradients = task_gradients(losses_fn, shared=subject.shared)(params, x)
    updates, state = link.update(
        gradients,
        state,
        params,
        kpis=KPIS,
        key=jax.random.key(0),
        second_task_gradients=gradients,
        unrelated=jnp.ones(7),
        value=1,
    )
    return optax.apply_updates(params, updates), state


def run(subject: Subject, link: Any, params: Any, xs: jax.Array) -> Any:
    """Steps in a branch in a loop: all that goes in must come out as it was."""

    def one(carry: Any, x: jax.Array) -> tuple[Any, None]:
        def update(carry: Any) -> Any:
            params, state = carry
            return step(subject, link, params, state, x)

        return jax.lax.cond(x > 0, update, lambda carry: carry, carry), None

    return jax.lax.scan(one, (params, link.init(params)), xs)[0]


def types_of(tree: Any) -> list[tuple[str, str, Any]]:
    """Path, type with weakness, and place of each leaf, of arrays or their shapes."""
    found = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path)
        kind = f"{leaf.dtype}{list(leaf.shape)}{' weak' * leaf.weak_type}"
        spec = jax.typeof(leaf).sharding.spec
        found.append((name, kind, tuple(spec) + (None,) * (leaf.ndim - len(spec))))
    return found


XS = jnp.arange(3.0)


@pytest.fixture(autouse=True)
def _no_rank_promotion() -> Iterator[None]:
    with jax.numpy_rank_promotion("raise"):
        yield


@subjects
def test_explicit_axes_and_no_rank_promotion(subject: Subject) -> None:
    with mesh_of(AxisType.Explicit):
        link, params = subject.make(NAMES), model()
        found = jax.eval_shape(lambda params: run(subject, link, params, XS), params)
        start = link.init(params)
    assert types_of(found) == types_of((params, start))


@subjects
def test_float64_stays_float64(subject: Subject) -> None:
    with jax.enable_x64(True):
        link = subject.make(dict.fromkeys(NAMES, np.float64(0)))
        params = model()
        xs = jnp.arange(3, dtype=jnp.float64)
        found = jax.eval_shape(lambda params: run(subject, link, params, xs), params)
        assert types_of(found) == types_of((params, link.init(params)))
        for name, kind, _ in types_of(found[1]):
            assert kind.startswith(("float64", "int32")), name


@subjects
def test_abstract_init_is_init(subject: Subject) -> None:
    with mesh_of(AxisType.Explicit):
        link, params = subject.make(NAMES), model()
        state, abstract = link.init(params), jax.eval_shape(link.init, params)
        assert jax.tree.structure(state) == jax.tree.structure(abstract)
        assert types_of(state) == types_of(abstract)


@subjects
def test_a_fresh_state_can_be_donated_with_the_parameters(subject: Subject) -> None:
    link = subject.make(NAMES)
    assert_apart(MODEL, link.init(MODEL))


@methods
@pytest.mark.parametrize("tasks", [NAMES, 4], ids=["names", "number"])
def test_a_fresh_state_of_a_balancer_can_be_donated(method: Method, tasks: Any) -> None:
    if method.by_name and isinstance(tasks, int):
        pytest.skip("names the tasks")
    names = NAMES if isinstance(tasks, tuple) else tuple(map(str, range(tasks)))
    balancer = method.make(names)
    losses = jnp.ones(4) if isinstance(tasks, int) else dict.fromkeys(names, 1.0)
    assert_apart(jax.tree.map(jnp.asarray, losses), balancer.init(losses))


def assert_apart(params: Any, state: Any) -> None:
    """No buffer stands in two places."""
    seen: dict[int, str] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path((params, state))[0]:
        name = jax.tree_util.keystr(path)
        for shard in leaf.addressable_shards:
            other = seen.setdefault(shard.data.unsafe_buffer_pointer(), name)
            assert other == name


@pytest.mark.parametrize(
    "make",
    [
        toys.balancers.uncertainty,
        toys.balancers.imtl_l,
        toys.balancers.famo,
        toys.balancers.grad_norm,
        lambda optimizer: toys.balancers.auto_lambda(0.1, optimizer=optimizer),
    ],
)
def test_an_optimizer_may_keep_what_it_starts_from(make: Any) -> None:
    keeping = optax.GradientTransformation(
        lambda params: params, lambda updates, state, params=None: (updates, state)
    )
    assert_apart((), make(optimizer=keeping).init(jnp.ones(3)))


@pytest.mark.parametrize(
    "make",
    [
        toys.balancers.uncertainty,
        toys.balancers.imtl_l,
        lambda init_value: toys.balancers.auto_lambda(0.1, init_value=init_value),
        optax.inject_hyperparams(toys.balancers.imtl_l),
    ],
)
def test_a_start_given_as_an_array_stays_with_the_caller(make: Any) -> None:
    start = jnp.linspace(0.1, 0.3, 3)
    state = make(init_value=start).init(jnp.ones(3))
    assert_apart(start, optax.tree.get(state, "inner_state", state))


ONE_COMPILATION = ["prioritization", "moco-shared", "dwa", "famo"]


@pytest.mark.parametrize(
    "subject",
    [
        pytest.param(
            subject,
            id=subject.name,
            marks=[] if subject.name in ONE_COMPILATION else [pytest.mark.slow],
        )
        for subject in SUBJECTS
    ],
)
def test_one_compilation_with_donation(subject: Subject) -> None:
    with mesh_of(AxisType.Explicit):
        link = subject.make(NAMES)

        def donating(params: Any, state: Any, x: jax.Array) -> Any:
            return step(subject, link, params, state, x)

        jitted = jax.jit(donating, donate_argnums=(0, 1))
        # Copies, because placing what is already in place would give it away.
        params = jax.tree.map(jnp.copy, model())
        state = link.init(params)
        for x in XS[1:]:
            params, state = jitted(params, state, x)
        assert toys.num_compilations(jitted) == 1
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((params, state)))


def of_number(name: str) -> tuple[Hyperparameter, Callable[[Any], Any]]:
    """A hyperparameter, and what makes a link of the transformation that takes it."""
    if name in NUMBERS:
        return NUMBERS[name], lambda link: link
    return NUMBERS_OF_METHODS[name], lambda balancer: toys.balance(balancer, NAMES)


@numbers
def test_schedules_by_inject_hyperparams(name: str) -> None:
    number, lift = of_number(name)
    link = lift(number.inject(NAMES, lambda count: 0.5 + 0.1 * count))
    subject = Subject(name, lambda tasks: link)
    found = jax.eval_shape(lambda params: run(subject, link, params, XS), MODEL)
    assert types_of(found) == types_of((MODEL, link.init(MODEL)))


@pytest.mark.slow
@numbers
def test_a_schedule_is_the_number_of_each_step(name: str) -> None:
    number, lift = of_number(name)
    whole = number.name in ("k", "num_steps")
    scheduled = number.inject(NAMES, lambda count: 2 if whole else 0.5 + 0.1 * count)
    subject = Subject(name, lambda tasks: tasks)

    @jax.jit
    def by_schedule(params: Any) -> Any:
        return run(subject, lift(scheduled), params, XS)

    @jax.jit
    def by_hand(params: Any) -> Any:
        state = lift(number.set(NAMES, 2 if whole else 0.5)).init(params)
        for index, x in enumerate(XS[1:]):
            link = lift(number.set(NAMES, 2 if whole else 0.5 + 0.1 * index))
            params, state = step(subject, link, params, state, x)
        return params

    # A few hundred sums and products, in another order.
    toys.assert_close(by_schedule(MODEL)[0], by_hand(MODEL), ulps=1000)


def test_each_method_with_a_float_has_a_schedule_above() -> None:
    covered = {number.factory for number in NUMBERS_OF_METHODS.values()}
    for name in dir(toys.balancers):
        factory = getattr(toys.balancers, name)
        # What `scalarization` takes is a function, in which optax sees a schedule.
        others = name == "scalarization" or name.endswith("_weights")
        if not inspect.isfunction(factory) or others:
            continue
        defaults = [p.default for p in inspect.signature(factory).parameters.values()]
        if any(isinstance(default, float) for default in defaults):
            assert factory in covered, name
