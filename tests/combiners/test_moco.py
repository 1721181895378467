from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import task_gradients
from dtp_jax.balancers import mgda_weights
from tests.combiner_catalogue import combiners, fixed
from tests.toys import assert_near

ROWS = np.random.default_rng(0).normal(size=(6, 3, 8))
PARAMS = jnp.zeros(8)


def project(v: np.ndarray) -> np.ndarray:
    """The nearest point of the simplex, by bisection for the shift."""
    low, high = v.min() - 1, v.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (
            (middle, high)
            if np.sum(np.maximum(v - middle, 0)) > 1
            else (
                low,
                middle,
            )
        )
    return np.maximum(v - low, 0)


def scanned(link: Any, rows: Any, **extra_args: Any) -> Any:
    def one(state: Any, step: Any) -> tuple[Any, Any]:
        gradient, state = link.update(step, state, PARAMS, **extra_args)
        return state, gradient

    return jax.jit(lambda rows: jax.lax.scan(one, link.init(PARAMS), rows))(rows)


def test_the_definition() -> None:
    hyper = {"beta": 0.6, "beta_sigma": 0.7, "gamma": 0.2, "gamma_sigma": 0.4}
    link = combiners.moco(3, **hyper, rho=0.3)
    state, found = scanned(link, jnp.asarray(ROWS, jnp.float32))
    y, weights = np.zeros((3, 8)), np.full(3, 1 / 3)
    for index, rows in enumerate(ROWS):
        k = index + 1
        y += 0.6 / k**0.7 * (rows - y)
        slope = (y @ y.T + 0.3 * np.eye(3)) @ weights
        weights = project(weights - 0.2 / k**0.4 * slope)
        assert_near(found[index], weights @ y, rtol=1e-4)
    assert_near(state.memory.tracked, y, rtol=1e-5)
    assert_near(state.memory.weights, weights, rtol=1e-4)


@pytest.mark.parametrize("p", [None, [0.5, 1.0, 2.0]])
def test_constant_gradients_lead_to_the_shortest_vector(p: Any) -> None:
    preferences = None if p is None else fixed(p)
    link = combiners.moco(
        3, beta=1.0, gamma=0.02, gamma_sigma=0.0, preferences=preferences
    )
    rows = jnp.asarray(ROWS[0], jnp.float32)
    _, found = scanned(link, jnp.broadcast_to(rows, (400, 3, 8)))
    gramian = jnp.asarray(ROWS[0] @ ROWS[0].T, jnp.float32)
    p = jnp.ones(3) if p is None else jnp.array(p)
    # Preferences count relative to the largest.
    expected = max(p) * mgda_weights(gramian, p) @ rows
    assert_near(found[-1], expected, rtol=1e-3)


def test_who_joins_late_is_soon_tracked_and_who_is_missing_is_kept() -> None:
    link = combiners.moco(3, beta=1.0)
    update = jax.jit(link.update)
    state = link.init(PARAMS)
    rows = jnp.asarray(ROWS[0], jnp.float32)
    for _ in range(5):
        without = jnp.array([True, True, False])
        _, state = update(rows, state, PARAMS, task_mask=without)
    assert not state.memory.tracked[2].any()
    _, state = update(rows, state, PARAMS, task_mask=jnp.ones(3, bool))
    np.testing.assert_array_equal(state.memory.tracked[2], rows[2])
    before = state.memory
    without = jnp.array([False, True, True])
    _, state = update(rows, state, PARAMS, task_mask=without)
    np.testing.assert_array_equal(state.memory.tracked[0], before.tracked[0])
    assert state.memory.weights[0] == before.weights[0]
    assert state.memory.steps.tolist() == [6, 7, 2]


def test_huge_gradients_stay_on_the_simplex() -> None:
    rows = jnp.asarray(ROWS, jnp.float32) * jnp.array([1e-6, 1.0, 1e6])[:, None]
    state, found = scanned(combiners.moco(3), rows)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(state.memory.weights.sum(), 1, rtol=1e-6)
    assert (state.memory.weights >= 0).all()


def losses_fn(params: Any) -> dict[str, jax.Array]:
    hidden = jnp.sin(params["trunk"])
    return {name: jnp.sum(hidden * head) for name, head in params["heads"].items()}


MODEL = {"trunk": jnp.arange(1.0, 4.0), "heads": {"a": jnp.ones(3), "b": jnp.ones(3)}}
SHARED = {"trunk": True, "heads": False}


def test_only_shared_parameters_are_tracked() -> None:
    link = combiners.moco(["a", "b"], shared=SHARED, preferences=fixed([0.5, 0.5]))
    gradients = task_gradients(losses_fn, shared=SHARED)(MODEL)
    update = jax.jit(link.update)
    updates, state = update(gradients, link.init(MODEL), MODEL)
    assert state.memory.tracked["heads"] == {"a": None, "b": None}
    assert state.memory.tracked["trunk"].shape == (2, 3)
    np.testing.assert_allclose(updates["heads"]["a"], 0.5 * jnp.sin(MODEL["trunk"]))
    # A plain stack is told by the combiner what is shared.
    plain, _ = update(gradients.stack(), link.init(MODEL), MODEL)
    jax.tree.map(np.testing.assert_array_equal, plain, updates)

    everything = combiners.moco(["a", "b"])
    with pytest.raises(ValueError, match=r"3 and 1 of 3. Give both the same `shared`"):
        everything.update(gradients, everything.init(MODEL), MODEL)


def test_float64_is_kept() -> None:
    with jax.enable_x64(True):
        rows = jnp.asarray(ROWS[0])
        link = combiners.moco(jnp.zeros(3))
        params = jnp.zeros(8)
        updates, state = jax.jit(link.update)(rows, link.init(params), params)
        assert updates.dtype == jnp.float64
        y = 0.5 * ROWS[0]
        weights = project(np.full(3, 1 / 3) - 0.1 * y @ y.T @ np.full(3, 1 / 3))
        np.testing.assert_allclose(updates, weights @ y, rtol=1e-12)
        np.testing.assert_allclose(state.memory.weights, weights, rtol=1e-12)
        # Where float64 is merely allowed, float32 stays float32.
        link, params = combiners.moco(3), PARAMS.astype(jnp.float32)
        start = jax.eval_shape(link.init, params)
        given = rows.astype(jnp.float32), start, params
        _, after = jax.eval_shape(link.update, *given)
        assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(
            lambda x: x.dtype, start
        )


@pytest.mark.parametrize(
    "wrong", [{"beta": 1.1}, {"beta_sigma": -1.0}, {"gamma": -0.1}, {"rho": -1.0}]
)
def test_wrong_arguments(wrong: Any) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} must be a number in"):
        combiners.moco(2, **wrong)


@pytest.mark.parametrize("size", [1e13, 1e20, 1e30, 3e38])
def test_rows_whose_products_overflow(size: float) -> None:
    # They point against each other: in the products, infinity less infinity.
    rows = jnp.array([[1.0, 0.5], [-1.0, 1.0]])
    link, params = combiners.moco(2), jnp.zeros(2)
    state = link.init(params)
    for number in range(10):
        scale = size if number == 3 else 1.0
        update, state = link.update(rows * scale, state, params)
        assert np.isfinite(update).all()
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
        np.testing.assert_allclose(state.memory.weights.sum(), 1, rtol=1e-6)


def test_other_units_change_nothing_that_is_not_long() -> None:
    # A step that is scaled with the rows goes to the same weights, on either side of
    # where their unit changes.
    rows, params = jnp.asarray(ROWS[0], jnp.float32), jnp.zeros(8)
    found = []
    for size in (2.0**20, 2.0**60):
        link = combiners.moco(3, gamma=0.1 / size**2)
        _, state = link.update(rows * size, link.init(params), params)
        found.append(state.memory.weights)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
