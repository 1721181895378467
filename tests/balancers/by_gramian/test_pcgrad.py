import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import TaskGradients
from dtp_jax._core.orders import visiting_orders
from dtp_jax.balancers.by_gramian import _pcgrad
from tests.toys import assert_near

pcgrad: Any = _pcgrad.pcgrad
KEYS = jax.random.split(jax.random.key(7), 2000)
ONES = jnp.ones(4)
jitted = jax.jit(
    jax.vmap(
        lambda gramian, preferences, key: _pcgrad.pcgrad_weights(
            gramian, preferences, key=key
        ),
        in_axes=(None, None, 0),
    )
)


def over_keys(gramian: Any, preferences: jax.Array = ONES) -> np.ndarray:
    """The weights [N, T] for each of the keys."""
    return np.asarray(jitted(gramian, preferences, KEYS))


def problem(num_tasks: int, seed: int = 0, decades: float = 0.5) -> np.ndarray:
    """Gradients [T, P] that conflict often."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(num_tasks, num_tasks)) - 0.2 * rng.normal(size=num_tasks)
    return rows * 10 ** rng.uniform(-decades, decades, (num_tasks, 1))


def gramian_of(rows: np.ndarray) -> jax.Array:
    return jnp.asarray(rows @ rows.T, jnp.float32)


def projected(rows: np.ndarray, task: int, order: Any) -> np.ndarray:
    """The gradient of a task after surgery, in the words of the paper."""
    gradient = rows[task].copy()
    for other in order:
        product = gradient @ rows[other]
        if product < 0:
            gradient -= product / (rows[other] @ rows[other]) * rows[other]
    return gradient


def mean_direction(rows: np.ndarray) -> np.ndarray:
    """The expected step: the mean over all orders, task by task."""
    tasks = range(len(rows))
    total = np.zeros(rows.shape[1])
    for task in tasks:
        others = [other for other in tasks if other != task]
        orders = list(itertools.permutations(others))
        total += sum(projected(rows, task, order) for order in orders) / len(orders)
    return total


def assert_mean(found: np.ndarray, expected: np.ndarray) -> None:
    """The draws [N, P] have this mean, by five standard errors of it."""
    draws = np.asarray(found, np.float64)
    error = draws.std(axis=0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(axis=0) - expected) <= 5 * error + 1e-5).all()


def test_the_definition() -> None:
    preferences = np.linspace(0.5, 2.0, 4)
    for seed in range(4):
        rows = problem(4, seed)
        scaled = preferences[:, None] * rows
        found = over_keys(gramian_of(rows), jnp.asarray(preferences, jnp.float32))
        assert (found >= preferences - 1e-6).all()
        for index in range(3):
            orders = np.asarray(visiting_orders(KEYS[index], 4)).T
            expected = sum(projected(scaled, task, orders[task]) for task in range(4))
            direction = found[index].astype(np.float64) @ rows
            assert_near(direction, expected, rtol=1e-4)


@pytest.mark.parametrize("preferences", [(1.0, 1.0), (0.5, 3.0)])
def test_two_tasks_have_a_closed_form(preferences: tuple[float, float]) -> None:
    for seed in range(5):
        rows = problem(2, seed)
        found = over_keys(gramian_of(rows), jnp.array(preferences))
        first, second = preferences
        against = max(-float(rows[0] @ rows[1]), 0)
        expected = [
            first + second * against / (rows[0] @ rows[0]),
            second + first * against / (rows[1] @ rows[1]),
        ]
        np.testing.assert_array_equal(found, found[:1].repeat(len(found), axis=0))
        np.testing.assert_allclose(found[0], expected, rtol=1e-5)


def test_without_conflict_the_step_is_the_sum() -> None:
    rows = np.abs(problem(4))
    preferences = jnp.array([1.0, 0.3, 2.0, 1.0])
    found = over_keys(gramian_of(rows), preferences)
    np.testing.assert_array_equal(found, np.broadcast_to(preferences, found.shape))


def test_the_orders_are_drawn_uniformly() -> None:
    for seed in (0, 1):
        rows = problem(4, seed)
        weights = over_keys(gramian_of(rows))
        assert_mean(weights @ rows, mean_direction(rows))
        assert len(np.unique(np.round(weights, 4), axis=0)) > 10


def test_equivariant_in_law_and_absent_tasks_have_no_influence() -> None:
    rows = problem(4, 2)
    order = [2, 0, 3, 1]
    found = over_keys(gramian_of(rows[order]))
    assert_mean(found @ rows[order], mean_direction(rows))

    present = [0, 1, 3]
    preferences = jnp.array([1.0, 1.0, 0.0, 1.0])
    gramian = np.array(gramian_of(rows))
    gramian[2] = gramian[:, 2] = np.nan
    found = over_keys(gramian, preferences)
    np.testing.assert_array_equal(found[:, 2], 0)
    assert_mean(found @ rows, mean_direction(rows[present]))
    # The same for a row that is not finite.
    bad = over_keys(gramian)
    np.testing.assert_array_equal(bad, found)


def test_lengths_only_scale_the_answer() -> None:
    rows, scales = problem(4), np.array([1e-6, 1.0, 1e3, 1e6])
    # A projection in a gradient of another length: the unit rule, written out.
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    preferences = jnp.asarray(scales, jnp.float32)
    expected = over_keys(gramian_of(unit), preferences) / scales
    found = over_keys(gramian_of(scales[:, None] * unit))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_degenerate_gradients() -> None:
    row = problem(4)[0]
    rows = np.array([1.0, -1.0, 1.0, -1.0])[:, None] * row
    # Every gradient meets an opposite one and vanishes.
    np.testing.assert_allclose(over_keys(gramian_of(rows)) @ rows, 0, atol=1e-5)
    np.testing.assert_array_equal(over_keys(gramian_of(np.stack([row] * 4))), 1)
    np.testing.assert_array_equal(over_keys(jnp.zeros((4, 4))), 1)
    rows = problem(4)
    rows[1] = 0
    np.testing.assert_array_equal(over_keys(gramian_of(rows))[:, 1], 1)


def test_float64() -> None:
    with jax.enable_x64(True):
        gramian = jnp.array([[1.0, -0.1], [-0.1, 1.0]])
        weights = _pcgrad.pcgrad_weights(gramian, key=jax.random.key(0))
        assert weights.dtype == jnp.float64
        np.testing.assert_allclose(weights, 1.1, rtol=1e-14)


def test_the_balancer() -> None:
    rows = problem(4)
    gradients = TaskGradients.from_stacked(jnp.asarray(rows, jnp.float32))
    given = {"task_gradients": gradients, "key": jax.random.key(3)}
    found, _ = pcgrad().update(ONES, (), **given)
    # The key is not used as it is, so that another link may use it.
    key = jax.random.fold_in(given["key"], _pcgrad._STREAM)
    orders = np.asarray(visiting_orders(key, 4)).T
    expected = sum(projected(rows, task, orders[task]) for task in range(4))
    assert_near(found @ rows, expected, rtol=1e-4)
    with pytest.raises(ValueError, match=r"pcgrad needs `key`.*new jax.random.key"):
        pcgrad().update(ONES, (), task_gradients=gradients)
    with pytest.raises(ValueError, match="pcgrad needs `task_gradients`"):
        pcgrad().update(ONES, (), key=given["key"])
