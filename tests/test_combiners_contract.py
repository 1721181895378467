"""What every combiner owes, whichever it is; in float64, too, by the slow tests."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dtp_jax import TaskGradients, task_gradients
from tests import devices, toys
from tests.combiner_catalogue import COMBINERS, Combiner

NAMES = toys.NAMES
STEPS = toys.random_steps(len(NAMES), num_steps=4)
PARAMS = jnp.zeros(STEPS.jacobians.shape[-1])

# How far two ways to compute the same may lie apart: sums over the steps and the tasks
# of products, which those that remember take over the parameters as well.
ULPS = STEPS.losses.size * PARAMS.size

IN_FLOAT64 = [
    dataclasses.replace(method, name=f"{method.name}-float64", dtype=jnp.float64)
    for method in COMBINERS
]
combiners = pytest.mark.parametrize(
    "method",
    [pytest.param(method, id=method.name) for method in COMBINERS]
    + [
        pytest.param(method, id=method.name, marks=pytest.mark.slow)
        for method in IN_FLOAT64
    ],
)


@pytest.fixture(autouse=True)
def _precision(request: pytest.FixtureRequest) -> Iterator[None]:
    """Enables float64 for the methods that are tested in it."""
    method = request.node.callspec.params["method"]
    with jax.enable_x64(method.dtype == jnp.float64):
        yield


def cast(method: Combiner, tree: Any) -> Any:
    """The floats in the dtype of the method."""
    return jax.tree.map(
        lambda x: x.astype(method.dtype) if x.dtype == jnp.float32 else x, tree
    )


def tasks_of(method: Combiner, names: tuple[str, ...]) -> Any:
    if method.dtype == jnp.float64:
        return dict.fromkeys(names, np.float64(0))
    return names


@functools.cache
def runner(method: Combiner, names: tuple[str, ...]) -> Any:
    link = method.make(tasks_of(method, names), len(names))

    @jax.jit
    def run(steps: toys.Steps, mask: jax.Array, **extra_args: Any) -> Any:
        task_mask = dict(zip(names, mask, strict=True))

        def one(state: Any, step: toys.Steps) -> tuple[Any, Any]:
            gradient, state = toys.update(
                link, state, step, names, task_mask=task_mask, **extra_args
            )
            return state, gradient

        params = jnp.zeros_like(steps.jacobians[0, 0])
        state, gradients = jax.lax.scan(one, link.init(params), steps)
        return gradients, state

    return run


def run(
    method: Combiner,
    steps: toys.Steps,
    names: tuple[str, ...] = NAMES,
    active: Sequence[bool] | None = None,
    **extra_args: Any,
) -> tuple[jax.Array, Any]:
    names = names[: steps.losses.shape[1]]
    mask = jnp.array([True] * len(names) if active is None else active)
    return runner(method, names)(cast(method, steps), mask, **extra_args)


def at(steps: toys.Steps, index: int) -> toys.Steps:
    return jax.tree.map(lambda x: x[index], steps)


def make(method: Combiner) -> Any:
    return method.make(tasks_of(method, NAMES), len(NAMES))


def assert_close(found: Any, expected: Any) -> None:
    toys.assert_close(found, expected, ulps=ULPS)


@combiners
def test_jit_vmap_and_scan_agree(method: Combiner) -> None:
    link = make(method)

    def one(state: Any, step: toys.Steps) -> tuple[Any, Any]:
        gradient, state = toys.update(link, state, step, NAMES)
        return state, gradient

    jitted = jax.jit(one)
    steps = cast(method, STEPS)
    start = state = link.init(cast(method, PARAMS))
    found = []
    for index in range(2):
        state, gradient = jitted(state, at(steps, index))
        chex.assert_trees_all_equal_shapes_and_dtypes(state, start)
        found.append(gradient)
    assert toys.num_compilations(jitted) == 1
    for leaf in jax.tree.leaves(state):
        assert leaf.dtype in (method.dtype, jnp.int32)
        assert not leaf.weak_type
    assert_close(run(method, STEPS)[0][:2], jnp.stack(found))
    two = jax.tree.map(lambda x: np.stack([x, x]), (start, at(steps, 0)))
    _, batch = jax.jit(jax.vmap(one))(*two)
    assert_close(batch, jnp.stack([found[0], found[0]]))


def degenerate() -> dict[str, toys.Steps]:
    rows = STEPS.jacobians
    replaced = {
        "zero": jnp.zeros_like(rows),
        "equal": jnp.broadcast_to(rows[:, :1], rows.shape),
        "opposite": rows[:, :1] * jnp.array([1.0, -1.0, 1.0, -1.0])[:, None],
        "one-zero": rows.at[:, 1].set(0),
        "more-tasks-than-parameters": rows.at[..., 2:].set(0),
        "uneven": rows * jnp.array([1e-6, 1.0, 1e3, 1e6])[:, None],
    }
    cases = {name: STEPS._replace(jacobians=rows) for name, rows in replaced.items()}
    cases["zero-losses"] = STEPS._replace(losses=jnp.zeros_like(STEPS.losses))
    cases["huge-losses"] = STEPS._replace(losses=STEPS.losses * 1e30)
    cases["solved"] = STEPS._replace(kpis=jnp.ones_like(STEPS.kpis))
    cases["failing"] = STEPS._replace(kpis=jnp.zeros_like(STEPS.kpis))
    return cases


@combiners
def test_finite_on_degenerate_input(method: Combiner) -> None:
    for case, steps in degenerate().items():
        gradients, state = run(method, steps)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((gradients, state)))
        if case == "zero":
            assert not gradients.any()


@combiners
def test_a_single_task_keeps_its_direction(method: Combiner) -> None:
    one = toys.select(STEPS, [0])
    steps = jax.tree.map(lambda x: jnp.repeat(x[:1], 4, axis=0), one)
    gradients, _ = run(method, steps)
    lengths = jnp.linalg.norm(gradients, axis=1)
    row = cast(method, steps.jacobians[0, 0])
    assert_close(gradients @ row, lengths * jnp.linalg.norm(row))
    assert (lengths > 0).all()


@combiners
def test_an_absent_task_has_no_influence(method: Combiner) -> None:
    present = [0, 2, 3]
    found, _ = run(method, STEPS, active=[task in present for task in range(4)])
    names = tuple(NAMES[task] for task in present)
    expected, _ = run(method, toys.select(STEPS, present), names)
    assert_close(found, expected)


@combiners
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_bad_task_is_dropped_and_poisons_no_state(
    method: Combiner, bad: float
) -> None:
    masked, _ = run(method, STEPS, active=[True, True, False, True])
    by_row, state = run(
        method, STEPS._replace(jacobians=STEPS.jacobians.at[:, 2, 5].set(bad))
    )
    assert_close(by_row, masked)
    chex.assert_tree_all_finite(state)
    by_loss, state = run(method, STEPS._replace(losses=STEPS.losses.at[:, 2].set(bad)))
    assert_close(by_loss, masked)
    chex.assert_tree_all_finite(state)


@combiners
def test_without_any_task_nothing_moves(method: Combiner) -> None:
    gradients, state = run(method, STEPS, active=[False] * 4)
    assert not gradients.any()
    assert not any(jax.tree.leaves(state.task_preferences))
    start = make(method).init(cast(method, PARAMS))
    state = state._replace(task_preferences=start.task_preferences)
    toys.assert_close(state, start, ulps=1)


@combiners
def test_equivariant_to_the_order_of_tasks(method: Combiner) -> None:
    found, _ = run(method, toys.select(STEPS, [3, 0, 2, 1]))
    assert_close(found, run(method, STEPS)[0])


@combiners
def test_state_survives_serialization(method: Combiner) -> None:
    link = make(method)
    _, state = run(method, STEPS)
    data = flax.serialization.to_bytes(state)
    params = cast(method, PARAMS)
    restored = flax.serialization.from_bytes(link.init(params), data)
    chex.assert_trees_all_equal(restored, state)
    if jax.tree.leaves(state):
        two = method.make(tasks_of(method, NAMES[:2]), 2).init(params)
        with pytest.raises(ValueError, match="does not fit the 4 tasks a, b, c, d"):
            toys.update(link, two, at(cast(method, STEPS), 0), NAMES)


@combiners
def test_a_restored_state_of_renamed_tasks_is_an_error(method: Combiner) -> None:
    params, other = cast(method, PARAMS), ("w", "x", "y", "z")
    data = flax.serialization.to_bytes(make(method).init(params))
    start = method.make(tasks_of(method, other), 4).init(params)
    with pytest.raises(ValueError, match="keys"):
        flax.serialization.from_bytes(start, data)
    named = dict.fromkeys(NAMES, 0.0)
    state = start._replace(task_preferences=named)
    with pytest.raises(ValueError, match="does not fit the 4 tasks w, x, y, z"):
        toys.update(
            method.make(tasks_of(method, other), 4),
            state,
            at(cast(method, STEPS), 0),
            other,
        )


def losses_fn(params: Any, bad: jax.Array) -> dict[str, jax.Array]:
    hidden = jnp.tanh(params["trunk"].astype(params["heads"]["a"].dtype))
    heads = params["heads"].items()
    losses = {name: jnp.sum((hidden @ head - 1.0) ** 2) for name, head in heads}
    # The loss is finite and its derivative is not.
    return {**losses, "b": losses["b"] + 0 * jnp.sqrt(bad * params["heads"]["b"][0])}


MODEL = {
    "trunk": jnp.linspace(-1.0, 1.0, 6, dtype=jnp.bfloat16).reshape(2, 3),
    "heads": {name: jnp.linspace(0.3, 1.0, 3) + i for i, name in enumerate("abc")},
}


@combiners
def test_trains_a_model_in_which_one_task_is_bad(method: Combiner) -> None:
    link = method.make(tasks_of(method, ("a", "b", "c")), 3)
    model = cast(method, MODEL)
    # Those that remember are told what is shared, in their own tests.
    remembers = bool(jax.tree.leaves(link.init(model).memory))
    shared = None if remembers else {"trunk": True, "heads": False}
    tx = optax.chain(link, optax.adam(0.1))

    @jax.jit
    def step(params: Any, state: Any, bad: Any, active: Any) -> Any:
        gradients = task_gradients(losses_fn, shared=shared)(params, bad)
        return tx.update(
            gradients,
            state,
            params,
            kpis=dict.fromkeys("abc", 0.5),
            task_mask={"a": True, "b": active, "c": True},
            key=jax.random.key(1),
        )

    state = tx.init(model)
    bad = step(model, state, 0.0, True)
    chex.assert_tree_all_finite(bad)
    # The same numbers go through the same program.
    toys.assert_close(bad, step(model, state, 1.0, False), ulps=2)
    chex.assert_trees_all_equal_shapes_and_dtypes(bad[0], model)


@combiners
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(AxisType.Explicit, id="explicit"),
        pytest.param(AxisType.Auto, id="auto", marks=pytest.mark.slow),
    ],
)
def test_eight_devices_do_what_one_does(method: Combiner, kind: AxisType) -> None:
    steps, flat = cast(method, (at(STEPS, 0), PARAMS))
    params = {"everywhere": flat, "spread": jnp.zeros((*flat.shape, 2, 8), flat.dtype)}
    spec = {"everywhere": P(), "spread": P(None, None, "d")}
    row_spec = {"everywhere": P(), "spread": P(None, None, None, "d")}
    wave = jnp.cos(jnp.arange(16, dtype=flat.dtype).reshape(2, 8))
    spread = steps.jacobians[..., None, None] * wave
    gradients = {"everywhere": steps.jacobians, "spread": spread}
    losses, kpis, key = steps.losses, steps.kpis, jax.random.key(3)

    # Here by names, nothing compiled around it.
    named = TaskGradients.from_stacked(gradients, by_name(losses))
    link = make(method)
    expected = link.update(named, link.init(params), kpis=by_name(kpis), key=key)

    # There by numbers, and with arguments that are of no concern to it.
    mesh = devices.mesh("d", kind)
    link = method.make(4 if method.dtype == jnp.float32 else np.zeros(4), 4)

    @jax.jit
    def one(state: Any, rows: Any, params: Any) -> Any:
        given = {"losses": losses, "kpis": kpis, "key": key, "unrelated": jnp.ones(7)}
        return link.update(rows, state, params, value=1.0, **given)

    def put(tree: Any, specs: Any) -> Any:
        shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
        return jax.device_put(tree, shardings)

    with jax.set_mesh(mesh):
        placed = put(params, spec)
        found = one(link.init(placed), put(gradients, row_spec), placed)
    for shard in found[0]["everywhere"].addressable_shards:
        np.testing.assert_array_equal(shard.data, found[0]["everywhere"])
    # One array there, a dict here.
    np.testing.assert_allclose(
        found[1].task_preferences,
        jnp.stack(list(expected[1].task_preferences.values())),
        rtol=ULPS * float(jnp.finfo(flat.dtype).eps),
    )
    pair = [(x[0], x[1]._replace(task_preferences=())) for x in (found, expected)]
    assert_close(*map(jax.tree.leaves, pair))
    with pytest.raises(ValueError, match="no axis of tasks"):
        link.update(params, link.init(params), params, key=key, kpis=kpis)


def by_name(values: jax.Array) -> dict[str, jax.Array]:
    return dict(zip(NAMES, values, strict=True))
