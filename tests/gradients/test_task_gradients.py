from typing import Any, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from dtp_jax import TaskGradients, feature_task_gradients, task_gradients
from dtp_jax.gradients import (
    GramianMode,
    _linearized,
    cross_gramian,
    shared_rows,
)
from tests import devices, toys
from tests.toys import assert_near

MODES = get_args(GramianMode)
KEYS = jax.random.split(jax.random.key(0), 4)
PARAMS = {
    "trunk": {"w": jax.random.normal(KEYS[0], (5, 7)) / 2},
    "heads": {
        "a": jax.random.normal(KEYS[1], (7,)),
        "b": jax.random.normal(KEYS[2], (7,)),
    },
}
X = jax.random.normal(KEYS[3], (6, 5))
WEIGHTS = {"a": 0.3, "b": -2.0, "both": 1.5}


def losses_fn(params: Any, x: jax.Array) -> dict[str, jax.Array]:
    hidden = jnp.tanh(x @ params["trunk"]["w"])
    a, b = hidden @ params["heads"]["a"], hidden @ params["heads"]["b"]
    return {"b": jnp.mean((b - 1) ** 2), "a": jnp.mean(a**2), "both": jnp.mean(a * b)}


def jacobian(
    params: Any, keys: tuple[str, ...] = ("trunk", "heads"), x: Any = X
) -> np.ndarray:
    """[T, P] by reverse mode over the flattened losses, in float64."""
    with jax.enable_x64(True):
        double = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), params)
        x = jnp.asarray(np.asarray(x), jnp.float64)
        rows = jax.jacrev(losses_fn)(double, x)
        flat = [
            np.concatenate(
                [np.ravel(leaf) for leaf in jax.tree.leaves(rows[task][key])]
            )
            for task in sorted(rows)
            for key in keys
        ]
    per_task = len(keys)
    return np.stack(
        [np.concatenate(flat[i : i + per_task]) for i in range(0, len(flat), per_task)]
    )


def test_combine_is_the_gradient_of_the_weighted_sum() -> None:
    def total(params: Any) -> jax.Array:
        losses = losses_fn(params, X)
        return sum((WEIGHTS[name] * losses[name] for name in losses), jnp.zeros(()))

    expected = jax.grad(total)(PARAMS)
    gradients = task_gradients(losses_fn)(PARAMS, X)
    jax.tree.map(
        lambda a, b: assert_near(a, b, rtol=1e-5),
        gradients.combine(WEIGHTS),
        expected,
    )
    # A [T] vector is in the order of the leaves: a, b, both.
    in_order = gradients.combine(jnp.array([0.3, -2.0, 1.5]))
    jax.tree.map(np.testing.assert_array_equal, in_order, gradients.combine(WEIGHTS))
    assert gradients.num_tasks == 3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("jit", [True, False])
def test_every_way_of_computing_the_gramian_agrees(mode: Any, jit: bool) -> None:
    def gramian(params: Any) -> jax.Array:
        return task_gradients(losses_fn, gramian=mode)(params, X).gramian()

    rows = jacobian(PARAMS)
    found = jax.jit(gramian)(PARAMS) if jit else gramian(PARAMS)
    assert_near(found, rows @ rows.T, rtol=1e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "shared",
    [
        lambda path: path.startswith("trunk"),
        {"trunk": True, "heads": False},
        {"trunk": {"w": True}, "heads": {"a": False, "b": False}},
    ],
    ids=["path", "prefix", "mask"],
)
def test_the_gramian_of_shared_parameters(mode: Any, shared: Any) -> None:
    gradients = task_gradients(losses_fn, shared=shared, gramian=mode)(PARAMS, X)
    rows = jacobian(PARAMS, ("trunk",))
    assert_near(gradients.gramian(), rows @ rows.T, rtol=1e-4)
    stacked = TaskGradients.from_stacked(
        gradients.stack(), gradients.losses, shared=shared
    )
    np.testing.assert_allclose(stacked.gramian(), gradients.gramian(), rtol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_stack_holds_the_gradient_of_each_task(mode: Any) -> None:
    gradients = task_gradients(losses_fn, gramian=mode)(PARAMS, X)
    stack = gradients.stack()
    for index, name in enumerate(sorted(WEIGHTS)):
        one = {task: float(task == name) for task in WEIGHTS}
        jax.tree.map(
            lambda row, g, i=index: np.testing.assert_allclose(row[i], g, 1e-5, 1e-7),
            stack,
            gradients.combine(one),
        )


@pytest.mark.parametrize("mode", MODES)
def test_squared_norms_are_the_diagonal_of_the_gramian(mode: Any) -> None:
    shared = {"trunk": True, "heads": False}
    gradients = task_gradients(losses_fn, shared=shared, gramian=mode)(PARAMS, X)
    expected = np.sum(jacobian(PARAMS, ("trunk",)) ** 2, axis=1)
    np.testing.assert_allclose(gradients.squared_norms(), expected, rtol=1e-5)
    stacked = gradients.stacked()
    np.testing.assert_allclose(stacked.squared_norms(), expected, rtol=1e-5)


def products(function: Any) -> int:
    return str(jax.make_jaxpr(function)(PARAMS)).count("dot_general")


def test_the_sum_after_the_gramian_costs_no_further_backward_pass() -> None:
    shared = {"trunk": True, "heads": False}
    make = task_gradients(losses_fn, shared=shared)
    other = jnp.array([0.5, -1.0, 3.0])

    def gramian(params: Any) -> Any:
        return make(params, X).gramian()

    def both(params: Any) -> Any:
        gradients = make(params, X)
        return gradients.gramian(), gradients.combine(WEIGHTS, other)

    assert products(both) == products(gramian)
    found = jax.jit(both)(PARAMS)[1]
    # On its own it is a backward pass for the trunk and one for the heads.
    expected = make(PARAMS, X).combine(WEIGHTS, other)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-7), found, expected
    )


def test_a_row_of_weight_zero_does_not_enter_the_sum() -> None:
    def losses(x: jax.Array) -> dict[str, jax.Array]:
        return {"good": jnp.sum(x), "bad": jnp.sqrt(jnp.sum(x - 1)) * jnp.inf}

    gradients = task_gradients(losses)(jnp.ones(2))
    gradients.gramian()
    assert not np.isfinite(gradients.stack()).all()
    found = gradients.combine({"good": 2.0, "bad": 0.0})
    np.testing.assert_array_equal(found, [2.0, 2.0])


def test_what_a_branch_computes_stays_in_it() -> None:
    make = task_gradients(losses_fn)

    def step(params: Any) -> Any:
        gradients = make(params, X)

        def trace() -> jax.Array:
            return jnp.trace(gradients.gramian())

        size = jax.lax.cond(X[0, 0] < 100, trace, lambda: jnp.zeros(()))
        return size, gradients.combine(WEIGHTS)

    with jax.checking_leaks():
        size, found = jax.jit(step)(PARAMS)
    np.testing.assert_allclose(size, np.sum(jacobian(PARAMS) ** 2), rtol=1e-5)
    expected = make(PARAMS, X).combine(WEIGHTS)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-7), found, expected
    )


def test_unshared_parameters_take_their_own_weights() -> None:
    ones = {"a": 1.0, "b": 1.0, "both": 1.0}
    make = task_gradients(losses_fn, shared={"trunk": True, "heads": False})
    gradients = make(PARAMS, X)
    found = gradients.combine(WEIGHTS, ones)
    np.testing.assert_array_equal(
        found["trunk"]["w"], gradients.combine(WEIGHTS)["trunk"]["w"]
    )
    jax.tree.map(
        np.testing.assert_array_equal, found["heads"], gradients.combine(ones)["heads"]
    )
    with pytest.raises(ValueError, match="say which are, task_gradients"):
        task_gradients(losses_fn)(PARAMS, X).combine(WEIGHTS, ones)


def test_unshared_weights_cost_no_second_backward_pass() -> None:
    make = task_gradients(losses_fn, shared={"trunk": True, "heads": False})
    ones = {"a": 1.0, "b": 1.0, "both": 1.0}
    wide = jax.tree.map(lambda x: jnp.repeat(x, 50, axis=-1), PARAMS)

    def flops(unshared: Any) -> float:
        return toys.cost(lambda p: make(p, X).combine(WEIGHTS, unshared), wide)[0]

    assert flops(ones) <= 1.02 * flops(None)


def test_the_forward_pass_runs_once_and_aux_comes_through() -> None:
    calls = []

    def counted(params: Any, x: jax.Array) -> tuple[Any, Any]:
        calls.append(1)
        losses = losses_fn(params, x)
        return losses, {"kpi": losses["a"] < 1, "note": x}

    gradients, aux = task_gradients(counted, has_aux=True)(PARAMS, X)
    gradients.combine(WEIGHTS)
    gradients.gramian()
    assert len(calls) == 1
    np.testing.assert_array_equal(aux["note"], X)
    assert aux["kpi"].dtype == bool


def test_argnums_selects_one_or_several_arguments() -> None:
    def two(x: jax.Array, y: jax.Array, scale: float = 1.0) -> jax.Array:
        return scale * jnp.stack([x * y, y**2])

    x, y = jnp.array(2.0), jnp.array(3.0)
    second = task_gradients(two, argnums=1)(x, y)
    assert second.combine(jnp.array([1.0, 1.0])) == 2.0 + 6.0
    both = task_gradients(two, argnums=(0, 1))(x, y, scale=2.0)
    assert both.combine(jnp.array([1.0, 0.0])) == (6.0, 4.0)
    np.testing.assert_allclose(both.gramian(), [[52.0, 48.0], [48.0, 144.0]])


def test_a_constant_loss_has_no_gradient() -> None:
    gradients = task_gradients(lambda p: {"a": p**2, "b": 0.0})(jnp.array(3.0))
    assert float(gradients.combine({"a": 1.0, "b": 5.0})) == 6.0
    assert gradients.gramian().tolist() == [[36.0, 0.0], [0.0, 0.0]]


def test_losses_in_arrays_are_tasks_of_their_own() -> None:
    def per_example(params: jax.Array, x: jax.Array) -> dict[str, jax.Array]:
        return {"examples": jnp.square(x @ params), "norm": jnp.sum(params**2)}

    params, x = jnp.array([1.0, -1.0]), jnp.array([[1.0, 0.0], [1.0, 2.0]])
    gradients = task_gradients(per_example)(params, x)
    rows = np.array([[2.0, 0.0], [-2.0, -4.0], [2.0, -2.0]])
    np.testing.assert_allclose(gradients.stack(), rows)
    np.testing.assert_allclose(gradients.gramian(), rows @ rows.T)
    found = gradients.combine({"examples": jnp.array([1.0, 2.0]), "norm": 3.0})
    np.testing.assert_allclose(found, np.array([1.0, 2.0, 3.0]) @ rows)


def test_weights_are_cast_to_the_dtype_of_their_loss() -> None:
    def mixed(params: jax.Array) -> dict[str, jax.Array]:
        return {"low": jnp.sum(params.astype(jnp.bfloat16)), "full": jnp.sum(params)}

    combined = task_gradients(mixed)(jnp.ones(2)).combine({"low": 0.5, "full": 1.0})
    assert combined.dtype == jnp.float32
    assert combined.tolist() == [1.5, 1.5]


def test_custom_derivatives_rematerialization_and_scan() -> None:
    @jax.custom_vjp
    def square(x: jax.Array) -> jax.Array:
        return x**2

    square.defvjp(lambda x: (x**2, x), lambda x, ct: (2 * x * ct,))

    def deep(params: jax.Array) -> dict[str, jax.Array]:
        layer = jax.checkpoint(lambda c, _: (jnp.tanh(c * params), None))
        out, _ = jax.lax.scan(layer, jnp.ones(3), None, length=2)
        return {"a": jnp.sum(square(out)), "b": jnp.sum(out)}

    params = jnp.array([0.5, 1.0, 2.0])
    expected = jax.jacrev(deep)(params)
    rows = np.stack([expected["a"], expected["b"]])
    for mode in MODES:
        gradients = task_gradients(deep, gramian=mode)(params)
        np.testing.assert_allclose(gradients.stack(), rows, rtol=1e-6)
        np.testing.assert_allclose(gradients.gramian(), rows @ rows.T, rtol=1e-5)


def test_passes_through_jit_and_cond() -> None:
    make = jax.jit(task_gradients(losses_fn))
    gramian = jax.jit(lambda gradients: gradients.gramian())
    first, second = make(PARAMS, X), make(PARAMS, X)
    np.testing.assert_array_equal(gramian(first), gramian(second))
    assert toys.num_compilations(gramian) == 1

    @jax.jit
    def sometimes(params: Any, now: bool) -> jax.Array:
        gradients = task_gradients(losses_fn)(params, X)
        zeros = jnp.zeros((3, 3))
        return jax.lax.cond(now, lambda: gradients.gramian(), lambda: zeros)

    np.testing.assert_allclose(sometimes(PARAMS, True), gramian(first), rtol=1e-6)
    assert not sometimes(PARAMS, False).any()


def step(params: Any, x: jax.Array, mode: Any = "auto") -> Any:
    gradients = task_gradients(losses_fn, gramian=mode)(params, x)
    gramian = gradients.gramian()
    return gradients.combine(WEIGHTS), gramian


@pytest.mark.parametrize("mode", ["auto", "switch"])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_the_same_gradient_on_eight_devices(kind: AxisType, mode: str) -> None:
    mesh = devices.mesh("data", kind)
    x = jax.random.normal(jax.random.key(1), (64, 5))
    sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
    params = jax.device_put(PARAMS, jax.NamedSharding(mesh, jax.P()))
    jax.tree.map(
        lambda a, b: assert_near(a, b, rtol=1e-4),
        jax.jit(step, static_argnums=2)(params, sharded, mode),
        step(PARAMS, x),
    )


def test_stacked_gradients_sharded_on_a_later_axis() -> None:
    mesh = devices.mesh("x", AxisType.Explicit)
    rows = jnp.arange(2 * 4 * 16.0).reshape(2, 4, 16)
    sharded = jax.device_put(rows, jax.NamedSharding(mesh, jax.P(None, None, "x")))

    @jax.jit
    def use(rows: jax.Array) -> Any:
        gradients = TaskGradients.from_stacked(rows)
        combined = gradients.combine(jnp.array([1.0, -2.0]))
        return gradients.finite(), gradients.gramian(), combined

    for found, expected in zip(use(sharded), use(rows), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("mode", ["auto", "switch"])
def test_combine_inside_shard_map(mode: Any) -> None:
    # The gradient is that of the device's own batch; its mean is the global one.
    mesh = devices.mesh("data")
    x = jax.random.normal(jax.random.key(1), (64, 5))

    def local(params: Any, x: jax.Array) -> Any:
        params = jax.lax.pcast(params, "data", to="varying")
        gradients = task_gradients(losses_fn, gramian=mode)(params, x)
        size = jnp.trace(gradients.gramian())
        found = jax.tree.map(lambda g: g + 0 * size, gradients.combine(WEIGHTS))
        return jax.lax.pmean(found, "data")

    specs = (jax.P(), jax.P("data"))
    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=jax.P())
    jax.tree.map(
        lambda a, b: assert_near(a, b, rtol=1e-4),
        jax.jit(mapped)(PARAMS, x),
        step(PARAMS, x)[0],
    )


STACKED = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0], [jnp.nan, jnp.inf]])}


def test_stacked_gradients_leave_out_tasks_of_weight_zero() -> None:
    gradients = TaskGradients.from_stacked(STACKED)
    assert gradients.combine(jnp.array([1.0, -1.0, 0.0]))["w"].tolist() == [-2.0, -2.0]
    assert np.asarray(gradients.finite()).tolist() == [True, True, False]
    assert task_gradients(losses_fn)(PARAMS, X).finite() is None


def test_stacked_gradients_of_vmap_and_lazy_ones_agree() -> None:
    def one(params: Any, task: jax.Array) -> jax.Array:
        losses = losses_fn(params, X)
        return jnp.stack([losses[name] for name in sorted(losses)])[task]

    stacked = jax.vmap(jax.grad(one), (None, 0))(PARAMS, jnp.arange(3))
    gradients = TaskGradients.from_stacked(stacked)
    lazy = task_gradients(losses_fn)(PARAMS, X)
    np.testing.assert_allclose(gradients.gramian(), lazy.gramian(), rtol=1e-4)
    jax.tree.map(
        lambda a, b: assert_near(a, b, rtol=1e-4),
        gradients.combine(jnp.array([0.3, -2.0, 1.5])),
        lazy.combine(WEIGHTS),
    )


@pytest.mark.parametrize(
    ("stacked", "losses", "message"),
    [
        ({}, None, "no array"),
        ({"w": jnp.ones((2, 3)), "b": jnp.ones(3)}, None, r"stacked\['w'\] has shape"),
        ({"w": jnp.ones(())}, None, r"expected \[None, \*param\]"),
        ({"w": jnp.ones((2, 3))}, {"a": 0.0}, r"expected \[1, \*param\]"),
    ],
)
def test_wrong_stacks(stacked: Any, losses: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskGradients.from_stacked(stacked, losses)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="gramian must be one of auto, unrolled"):
        task_gradients(losses_fn, gramian=cast("Any", "fast"))
    with pytest.raises(ValueError, match="no loss"):
        task_gradients(lambda p: {})(PARAMS)
    with pytest.raises(ValueError, match=r"\['n'\] has dtype int32; a loss must be"):
        task_gradients(lambda p: {"n": jnp.array(3)})(PARAMS)
    with pytest.raises(
        ValueError, match=r"must return a pair \(losses, aux\), got dict"
    ):
        task_gradients(losses_fn, has_aux=True)(PARAMS, X)
    with pytest.raises(ValueError, match="pass the parameters by position"):
        task_gradients(losses_fn)(params=PARAMS, x=X)
    with pytest.raises(ValueError, match=r"parameter\['n'\] has dtype int32"):
        task_gradients(lambda p: p["w"] ** 2)({"w": 1.0, "n": jnp.array(1)})
    with pytest.raises(ValueError, match="selects none of the parameters heads/a"):
        task_gradients(losses_fn, shared=lambda path: path == "stem")(PARAMS, X)
    with pytest.raises(ValueError, match="not a prefix of the parameters"):
        task_gradients(losses_fn, shared={"trunk": True})(PARAMS, X)
    with pytest.raises(ValueError, match="only True and False"):
        task_gradients(losses_fn, shared={"trunk": 1, "heads": 0})(PARAMS, X)
    with pytest.raises(ValueError, match=r"without an entry: \['both'\]"):
        task_gradients(losses_fn)(PARAMS, X).combine({"a": 1.0, "b": 1.0})


def test_shared_rows_and_products_of_two_batches() -> None:
    def products(params: Any) -> Any:
        gradients = task_gradients(losses_fn, shared={"trunk": True, "heads": False})
        first, second = gradients(params, X), gradients(params, X[::-1] * 0.7)
        held = first.stacked(), second.stacked()
        cross = cross_gramian(first, second), cross_gramian(*held)
        return shared_rows(first), cross, cross_gramian(first, first), first.gramian()

    (rows,), cross, with_itself, gramian = jax.jit(products)(PARAMS)
    expected = jacobian(PARAMS, ("trunk",))
    assert_near(rows.reshape(3, -1), expected, rtol=1e-4)
    other = jacobian(PARAMS, ("trunk",), X[::-1] * 0.7)
    for found in cross:
        assert_near(found, expected @ other.T, rtol=1e-4)
    assert_near(with_itself, gramian, rtol=1e-5)


def test_products_of_two_batches_are_free_of_the_bias_of_noise() -> None:
    rows = np.random.default_rng(0).normal(size=(3, 8))
    noise = np.random.default_rng(1).normal(size=(2, 3, 4000, 8))
    noisy = rows[:, None] + noise
    first, second = (
        TaskGradients.from_stacked(jnp.asarray(batch, jnp.float32)) for batch in noisy
    )
    found = cross_gramian(first, second) / 4000
    np.testing.assert_allclose(found, rows @ rows.T, atol=0.3)
    biased = first.gramian() / 4000
    np.testing.assert_allclose(biased, rows @ rows.T + 8 * np.eye(3), atol=0.5)


def test_products_of_batches_that_do_not_fit() -> None:
    first = TaskGradients.from_stacked({"a": jnp.ones((2, 3)), "b": jnp.ones((2, 4))})
    less = TaskGradients.from_stacked({"a": jnp.ones((2, 3))})
    more = TaskGradients.from_stacked({"a": jnp.ones((3, 3)), "b": jnp.ones((3, 4))})
    for other in (less, more):
        with pytest.raises(ValueError, match=r"got the shapes \[\(2, 3\), \(2, 4\)\]"):
            cross_gramian(first, other)
    wrong: Any = {"a": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match=r"got dict.*TaskGradients.from_stacked"):
        cross_gramian(first, wrong)
    at_features: Any = feature_task_gradients(
        lambda params, x: params * x, lambda params, z, x: {"a": z, "b": 2 * z}
    )(jnp.array(1.0), 2.0)
    with pytest.raises(ValueError, match="features differ from batch to batch"):
        cross_gramian(at_features, at_features)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_chunks_are_as_large_as_their_memory_allows(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(leaves: list[jax.Array]) -> list[jax.Array]:
        shapes.append(leaves[0].shape)
        return leaves

    gradients = task_gradients(losses_fn, gramian="chunks")(PARAMS, X)
    linear_map: Any = gradients._map
    held = [*jax.tree.leaves(linear_map.jvp), *linear_map.param_types]
    of_task = sum(leaf.size * leaf.dtype.itemsize for leaf in held)
    monkeypatch.setattr(_linearized, "_CHUNK_BYTES", size * of_task)
    shapes: list[Any] = []
    program = str(jax.make_jaxpr(lambda: linear_map.each(rows))())
    # Two at a time, the third is left over.
    assert ("scan" in program) == (size < 3)
    assert len(shapes) == (2 if size == 2 else 1)
    found = jax.jit(lambda: gradients.gramian())()
    expected = task_gradients(losses_fn)(PARAMS, X).gramian()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("num_tasks", "backend", "expected"),
    [
        (8, "gpu", "unrolled"),
        (9, "gpu", "vmap"),
        (65, "gpu", "vmap"),
        (8, "cpu", "unrolled"),
        (9, "cpu", "switch"),
        (65, "cpu", "map"),
    ],
)
def test_the_way_that_is_chosen(
    num_tasks: int, backend: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    scales = jnp.arange(1.0, num_tasks + 1)
    gradients = task_gradients(lambda w: jnp.sin(w * scales))(jnp.ones(()))
    linear_map: Any = gradients._map
    assert linear_map._mode == expected
    # What is too large to be taken together.
    monkeypatch.setattr(_linearized, "_CHUNK_BYTES", 1)
    large = {9: "switch", 65: "chunks"} if backend == "gpu" else {}
    assert linear_map._mode == large.get(num_tasks, expected)


def test_repr_names_the_tasks_and_says_what_is_computed() -> None:
    gradients = task_gradients(lambda w: {"b": w, "a": w**2})(jnp.array(1.0))
    assert repr(gradients) == (
        "TaskGradients(2 tasks: a, b; no gradient is computed yet)"
    )
    held = TaskGradients.from_stacked(jnp.eye(9))
    assert repr(held).startswith("TaskGradients(9 tasks: ")
    assert repr(held).endswith(", ...; gradients are held)")
    # JAX puts anything in place of the leaves.
    assert "TaskGradients" in repr(jax.tree.map(lambda leaf: None, gradients))
    assert "TaskGradients" in repr(jax.tree.map(lambda leaf: "x", held))
