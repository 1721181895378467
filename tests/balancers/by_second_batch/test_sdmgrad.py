from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import TaskGradients
from dtp_jax.balancers.by_second_batch import _sdmgrad

sdmgrad: Any = _sdmgrad.sdmgrad
stacked = TaskGradients.from_stacked
rule = jax.jit(_sdmgrad.sdmgrad_weights)
ONES, UNIFORM = jnp.ones(4), jnp.full(4, 0.25)


def batches(seed: int = 0) -> np.ndarray:
    """Gradients [2, 4, P] of noisy batches of the same tasks."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(4, 9)) * np.array([0.5, 1.0, 1.5, 0.8])[:, None]
    return rows + 0.3 * rng.normal(size=(2, 4, 9))


def weights_of(
    gramian: Any,
    preferences: Any = ONES,
    simplex: Any = UNIFORM,
    *,
    rate: float = 10.0,
    num_iters: int = 20,
    reg: float = 0.3,
    momentum: float = 0.5,
    capped: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """The rule, so that calls share one compilation."""
    gramian, preferences = (jnp.asarray(x, jnp.float32) for x in (gramian, preferences))
    found = rule(
        gramian,
        preferences,
        simplex=jnp.asarray(simplex, jnp.float32),
        learning_rate=rate,
        num_iters=num_iters,
        reg=reg,
        momentum=momentum,
        capped=capped,
    )
    return np.asarray(found[0]), np.asarray(found[1])


def nearest_on_simplex(values: np.ndarray) -> np.ndarray:
    """The threshold that leaves the sum 1, by bisection."""
    low, high = values.min() - 1, values.max()
    for _ in range(200):
        middle = (low + high) / 2
        above = np.maximum(values - middle, 0).sum() > 1
        low, high = (middle, high) if above else (low, middle)
    return np.maximum(values - low, 0)


def test_the_definition() -> None:
    preferences = np.array([0.5, 1.0, 2.0, 3.0])
    multipliers = np.full(4, 0.25)
    found = multipliers
    for seed in range(6):
        first, second = batches(seed)
        matrix = first @ second.T
        scale = np.mean(np.sqrt(np.diag(matrix))) ** 2
        velocity = np.zeros(4)
        for _ in range(20):
            slope = matrix @ (multipliers + 0.4 / 4) / scale
            velocity = 0.6 * velocity + slope
            multipliers = nearest_on_simplex(multipliers - 0.3 * velocity)
        options = {"rate": 0.3, "reg": 0.4, "momentum": 0.6, "capped": False}
        weights, found = weights_of(matrix, preferences, found, **options)
        np.testing.assert_allclose(found, multipliers, atol=1e-5)
        expected = preferences * (multipliers + 0.1) / 1.4
        np.testing.assert_allclose(weights, expected, rtol=1e-4)


@pytest.mark.parametrize("reg", [0.0, 0.3, 2.0])
def test_settles_where_no_step_shortens_the_direction(reg: float) -> None:
    for seed in range(4):
        rows = batches(seed)[0]
        gramian = rows @ rows.T
        weights, found = weights_of(gramian, reg=reg, num_iters=5000)
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
        np.testing.assert_allclose(weights, (found + reg / 4) / (1 + reg), rtol=1e-5)
        floor = reg / (1 + reg) / 4
        assert (weights >= floor - 1e-6).all()
        # Tasks above their floor have the same slope, the others a larger one. For
        # reg = 0 that is what makes the vector the shortest of the hull.
        slopes = gramian @ weights / np.max(gramian)
        free = weights > floor + 1e-5
        np.testing.assert_allclose(slopes[free], slopes.min(), atol=1e-4)


def test_a_strong_pull_gives_the_mean() -> None:
    rows = batches(1)[0]
    np.testing.assert_allclose(weights_of(rows @ rows.T, reg=1e4)[0], 0.25, rtol=1e-3)


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1e6, 1e15])
def test_units_do_not_matter(scale: float) -> None:
    first, second = batches()
    expected, _ = weights_of(first @ second.T)
    found, _ = weights_of(scale**2 * (first @ second.T))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_cap_keeps_the_iteration_from_jumping() -> None:
    rows = batches()[0]
    gramian = rows @ rows.T

    def square(weights: np.ndarray) -> float:
        return weights @ gramian @ weights

    smallest = square(weights_of(gramian, num_iters=400)[0])
    assert square(weights_of(gramian)[0]) < 1.05 * smallest
    assert square(weights_of(gramian, capped=False)[0]) > 1.5 * smallest


def test_batches_that_disagree() -> None:
    first = batches()[0]
    # The diagonal is negative, or nearly zero next to the rest.
    turned = np.array([[0.0, 1.0], [-1.0, 1e-30]])
    block = np.block([[turned, np.zeros((2, 2))], [np.zeros((2, 2)), turned]])
    for gramian in (-first @ first.T, block, np.zeros((4, 4)), np.ones((4, 4))):
        for capped in (True, False):
            weights, found = weights_of(gramian, capped=capped)
            np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
            np.testing.assert_allclose(found.sum(), 1, rtol=1e-5)
            assert (found >= 0).all()
    # What overflowed leaves the multipliers where they are.
    huge = np.full((4, 4), np.inf)
    np.fill_diagonal(huge, 1.0)
    start = [0.1, 0.2, 0.3, 0.4]
    np.testing.assert_allclose(weights_of(huge, ONES, start)[1], start, rtol=1e-6)


def test_absent_and_bad_tasks_take_no_part() -> None:
    first, second = batches()
    present, start = [0, 1, 3], np.array([0.1, 0.4, 0.3, 0.2])
    matrix = first @ second.T
    weights, found = weights_of(matrix, [1, 1, 0, 1], start)
    assert weights[2] == 0
    assert found[2] == np.float32(0.3)
    # The same problem of three tasks, whose multipliers sum to one again.
    three = start[present] + 0.1
    smaller, left = rule(
        jnp.asarray(matrix[np.ix_(present, present)], jnp.float32),
        simplex=jnp.asarray(three, jnp.float32),
    )
    np.testing.assert_allclose(weights[present], smaller, rtol=1e-5)
    np.testing.assert_allclose(found[present], left, rtol=1e-5)
    for side in (0, 1):
        rows = [first.copy(), second.copy()]
        rows[side][2, 4] = np.nan
        bad = weights_of(rows[0] @ rows[1].T, ONES, start)
        np.testing.assert_array_equal(bad[0], weights)
        np.testing.assert_array_equal(bad[1], found)


def test_the_balancer() -> None:
    rows = jnp.asarray([*batches(), batches(1)[0]], jnp.float32)
    balancer = sdmgrad()

    @jax.jit
    def two_steps(rows: jax.Array) -> Any:
        first, second, third = map(stacked, rows)
        given = {"task_gradients": first, "second_task_gradients": second}
        weights, state = balancer.update(ONES, balancer.init(ONES), **given)
        after, _ = balancer.update(ONES, state, third_task_gradients=third, **given)
        return weights, after

    weights, after = two_steps(rows)
    expected, found = weights_of(rows[0] @ rows[1].T)
    np.testing.assert_allclose(weights, expected, rtol=1e-4)
    expected, _ = weights_of(rows[1] @ rows[2].T, ONES, found)
    np.testing.assert_allclose(after, expected, rtol=1e-4)


def test_missing_or_wrong_arguments() -> None:
    wrong = [
        ({"learning_rate": 0.0}, "learning_rate must be a number in"),
        ({"num_iters": 0}, "num_iters must be an integer of at least 1"),
        ({"reg": -0.1}, "reg must be a number in"),
        ({"momentum": 1.0}, "momentum must be a number in"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            sdmgrad(**options)
    balancer, ones = sdmgrad(), jnp.ones(2)
    state, first = balancer.init(ones), stacked(jnp.eye(2))
    with pytest.raises(ValueError, match=r"needs `second_task_gradients`.*another bat"):
        balancer.update(ones, state, task_gradients=first)
    with pytest.raises(ValueError, match="sdmgrad needs `task_gradients`"):
        balancer.update(ones, state, second_task_gradients=first)


def test_float64() -> None:
    with jax.enable_x64(True):
        gramian = jnp.diag(jnp.array([4.0, 1.0]))
        weights, _ = rule(gramian, reg=0.25, num_iters=400)
        assert weights.dtype == jnp.float64
        np.testing.assert_allclose(weights, [0.2, 0.8], rtol=1e-13)
