from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import TaskGradients, task_gradients
from dtp_jax.balancers.by_second_batch import _modo
from tests.toys import balance

modo: Any = _modo.modo
stacked = TaskGradients.from_stacked


def batches(seed: int = 0, num_batches: int = 3) -> np.ndarray:
    """Gradients [B, 4, P] of noisy batches of the same tasks."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(4, 9)) * np.array([0.5, 1.0, 1.5, 0.8])[:, None]
    return rows + 0.3 * rng.normal(size=(num_batches, 4, 9))


def nearest_on_simplex(values: np.ndarray) -> np.ndarray:
    """The threshold that leaves the sum 1, by bisection."""
    low, high = values.min() - 1, values.max()
    for _ in range(200):
        middle = (low + high) / 2
        above = np.maximum(values - middle, 0).sum() > 1
        low, high = (middle, high) if above else (low, middle)
    return np.maximum(values - low, 0)


@jax.jit
def steps(rows: jax.Array, wanted: jax.Array, gamma: Any, rho: Any) -> Any:
    """Weights [S, T] and multipliers [S, T] over steps [S, B, T, P]."""
    balancer = modo(gamma=gamma, rho=rho)

    def one(state: Any, given: tuple[jax.Array, jax.Array]) -> Any:
        first, second = stacked(given[0][0]), stacked(given[0][1])
        weights, state = balancer.update(
            given[1], state, task_gradients=first, second_task_gradients=second
        )
        return state, (weights, state.simplex)

    return jax.lax.scan(one, balancer.init(wanted[0]), (rows, wanted))[1]


def run(rows: Any, wanted: Any = None, gamma: float = 0.1, rho: float = 0.1) -> Any:
    rows = jnp.asarray(rows, jnp.float32)
    wanted = np.ones(4) if wanted is None else wanted
    wanted = jnp.broadcast_to(jnp.asarray(wanted, jnp.float32), (len(rows), 4))
    return steps(rows, wanted, gamma, rho)


MANY = np.stack([batches(seed, 2) for seed in range(40)])


def test_the_definition() -> None:
    preferences = np.array([0.5, 1.0, 2.0, 3.0])
    weights, found = run(MANY, preferences, 0.05, 0.2)
    multipliers = np.full(4, 0.25)
    for index, (first, second) in enumerate(MANY):
        slope = first @ (second.T @ multipliers) + 0.2 * multipliers
        multipliers = nearest_on_simplex(multipliers - 0.05 * slope)
        np.testing.assert_allclose(found[index], multipliers, atol=2e-5)
        expected = np.maximum(preferences * multipliers, 1e-30)
        np.testing.assert_allclose(weights[index], expected, atol=1e-4)


def test_settles_at_the_shortest_vector() -> None:
    rows = batches(3)[0]
    gramian = rows @ rows.T
    weights, _ = run(np.broadcast_to(rows, (40, 2, 4, 9)), rho=0.0)
    weights = np.asarray(weights, np.float64)
    squares = [found @ gramian @ found for found in weights]
    assert (np.diff(squares) <= 1e-6).all()
    # All tasks have weight here, so none may have a smaller slope than the others.
    assert (weights[-1] > 0.02).all()
    np.testing.assert_allclose(gramian @ weights[-1], squares[-1], atol=3e-3)


def test_tasks_come_and_go() -> None:
    wanted = np.ones((40, 4))
    wanted[:20, 1] = 0
    wanted[30:, 2] = 0
    weights, found = run(MANY, wanted)
    np.testing.assert_array_equal(weights[:20, 1], 0)
    np.testing.assert_array_equal(found[:20, 1], 0.25)
    np.testing.assert_array_equal(found[30:, 2], np.repeat(found[29, 2], 10))
    active = np.where(wanted > 0, found, 0)
    np.testing.assert_allclose(active.sum(axis=1), 1, rtol=1e-5)
    # What the absent task would have sent does not matter.
    garbage = MANY.copy()
    garbage[:20, :, 1] = np.nan
    np.testing.assert_array_equal(run(garbage, wanted)[0], weights)


@pytest.mark.parametrize("batch", [0, 1])
def test_a_bad_row_of_either_batch_drops_the_task(batch: int) -> None:
    broken, wanted = MANY.copy(), np.ones((40, 4))
    broken[5, batch, 2, 3] = np.nan
    wanted[5, 2] = 0
    weights, found = run(broken)
    expected, masked = run(MANY, wanted)
    np.testing.assert_allclose(weights, np.maximum(expected, 1e-30), rtol=1e-6)
    np.testing.assert_array_equal(found, masked)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e6, 1e18, 1e30])
def test_finite_at_any_scale(scale: float) -> None:
    weights, found = run(MANY * scale, rho=0.0)
    np.testing.assert_allclose(np.sum(found, axis=1), 1, rtol=1e-5)
    assert (np.asarray(found) >= 0).all()
    assert np.isfinite(weights).all()
    if scale < 1e-6:
        np.testing.assert_allclose(weights, 0.25, rtol=1e-5)


def test_three_batches() -> None:
    rows = jnp.asarray(batches(), jnp.float32)

    @jax.jit
    def weights(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        first, second, third = map(stacked, rows)
        found, _ = modo().update(
            jnp.ones(4),
            modo().init(jnp.ones(4)),
            task_gradients=first,
            second_task_gradients=second,
            third_task_gradients=third,
        )
        return found, _modo.modo_weights(rows[1] @ rows[2].T)[0]

    found, expected = weights(rows)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_only_shared_parameters_count() -> None:
    def losses_fn(params: Any, x: Any) -> Any:
        trunk, head = params["trunk"], params["head"]
        return {"a": 2 * x * trunk[0] + 9 * head, "b": trunk[1] * x - 9 * head}

    params = {"trunk": jnp.ones(2), "head": jnp.ones(())}
    gradients = task_gradients(losses_fn, shared={"trunk": True, "head": False})
    link = balance(modo(rho=0.0), ["a", "b"])

    @jax.jit
    def step(params: Any) -> Any:
        first, second = gradients(params, 1.0), gradients(params, 0.5)
        return link.update(first, link.init(params), second_task_gradients=second)

    updates, state = step(params)
    # Over the trunk the products are diag(4, 1) / 2.
    np.testing.assert_allclose(state.task_weights["a"], 0.4625, rtol=1e-6)
    np.testing.assert_allclose(updates["trunk"], [2 * 0.4625, 0.5375], rtol=1e-6)


def test_missing_or_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="gamma must be a number in"):
        modo(gamma=-0.1)
    with pytest.raises(ValueError, match="rho must be a number in"):
        modo(rho=-1.0)
    balancer, ones = modo(), jnp.ones(2)
    state, first = balancer.init(ones), stacked(jnp.eye(2))
    with pytest.raises(ValueError, match=r"needs `second_task_gradients`.*another bat"):
        balancer.update(ones, state, task_gradients=first)
    with pytest.raises(ValueError, match="modo needs `task_gradients`"):
        balancer.update(ones, state, second_task_gradients=first)
    with pytest.raises(ValueError, match="same tasks and the same shared"):
        balancer.update(
            ones, state, task_gradients=first, second_task_gradients=stacked(jnp.eye(3))
        )
    with pytest.raises(ValueError, match=r"gramian must be \[T, T\]"):
        balancer.update(
            jnp.ones(3), state, task_gradients=first, second_task_gradients=first
        )


def test_float64() -> None:
    with jax.enable_x64(True):
        gramian = jnp.array([[2.0, 0.0], [0.5, 1.0]])
        weights, _ = _modo.modo_weights(gramian, gamma=0.1, rho=0.0)
        assert weights.dtype == jnp.float64
        # The slope is (1, 3/4), whose mean the projection takes away.
        np.testing.assert_allclose(weights, [0.4875, 0.5125], rtol=1e-14)
