from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from dtp_jax import TaskGradients
from dtp_jax.balancers import pcd_weights
from tests.solvers.problems import draw, independent
from tests.toys import balancers

rule = jax.jit(pcd_weights, static_argnames="primary")


def direction(weights: jax.Array, rows: np.ndarray) -> np.ndarray:
    return np.asarray(weights, np.float64) @ rows


def by_definition(rows: np.ndarray, tau: float) -> np.ndarray:
    """The step for rows of any lengths, the first task leading, in float64."""
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    # d = h_1 + H' m with the smallest norm such that H d >= tau: the distance from
    # the cone, a non-negative least-squares problem in the multipliers.
    others = units[1:]
    square = others @ others.T
    slopes = tau - others @ units[0]
    factor = np.linalg.cholesky(square + 1e-12 * np.eye(len(square)))
    multipliers, _ = optimize.nnls(factor.T, np.linalg.solve(factor, slopes))
    step = units[0] + multipliers @ others
    return step / np.linalg.norm(step) * np.linalg.norm(rows[0])


def test_by_definition() -> None:
    for seed in range(6):
        rows = draw(independent, 4, 6, seed)
        for tau in (0.0, 0.02, 0.2):
            weights = rule(jnp.asarray(rows @ rows.T, jnp.float32), primary=0, tau=tau)
            found, expected = direction(weights, rows), by_definition(rows, tau)
            error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
            # The multipliers lose digits to the condition number of some hundreds.
            assert error < 4e-6


def test_scales_and_preferences_by_definition() -> None:
    rows = draw(independent, 3, 6)
    scales = np.array([2.0, 0.5, 3.0])
    preferences = np.array([1.0, 4.0, 0.5])
    h = rows / scales[:, None] * preferences[:, None]
    weights = rule(
        jnp.asarray(rows @ rows.T, jnp.float32),
        jnp.asarray(preferences, jnp.float32),
        primary=1,
        scales=jnp.asarray(scales, jnp.float32),
        tau=0.1,
    )
    found = direction(weights, rows)
    length = preferences[1] * np.linalg.norm(rows[1])
    np.testing.assert_allclose(np.linalg.norm(found), length, rtol=1e-4)
    # Up to its length it is a vector whose gap to h_2 is a combination of the others,
    # with non-negative factors only where the constraint holds with equality.
    factors = np.asarray(weights) * scales / preferences
    step = factors / factors[1] @ h
    progress = h @ step - 0.1 * np.sum(h**2, axis=1)
    for other in (0, 2):
        assert progress[other] > -1e-4
        assert factors[other] == 0 or abs(progress[other]) < 1e-4


def test_the_average_of_squared_norms_is_bias_corrected() -> None:
    balancer: Any = balancers.pcd("b", tau=0.1, decay=0.9, eps=0.0)
    losses = {"a": 1.0, "b": 1.0}
    state = balancer.init(losses)
    average = np.zeros(2)
    for step in range(3):
        rows = draw(independent, 2, 4, step)
        gradients = TaskGradients.from_stacked(jnp.asarray(rows, jnp.float32), losses)
        weights, state = balancer.update(losses, state, task_gradients=gradients)
        average = 0.9 * average + 0.1 * np.sum(rows**2, axis=1)
        scales = np.sqrt(average / (1 - 0.9 ** (step + 1)))
        expected = rule(
            jnp.asarray(rows @ rows.T, jnp.float32),
            primary=1,
            scales=jnp.asarray(scales, jnp.float32),
            tau=0.1,
        )
        found = [weights["a"], weights["b"]]
        np.testing.assert_allclose(found, np.maximum(expected, 1e-30), rtol=1e-4)
    np.testing.assert_array_equal(state.num_updates, [3, 3])


@pytest.mark.parametrize("angle", [0.1, 0.01])
def test_a_gradient_that_is_almost_opposite_is_not_conflicted_with(
    angle: float,
) -> None:
    # What is left of the step is as long as the angle, and has its rounding from
    # numbers of order one.
    rows = np.array([[1.0, 0.0], [-np.cos(angle), np.sin(angle)]])
    weights = rule(jnp.asarray(rows @ rows.T, jnp.float32), primary=0, tau=0.0)
    step = direction(weights, rows)
    eps = float(np.finfo(np.float32).eps)
    assert abs(rows[1] @ step) / np.linalg.norm(step) < 4 * eps / angle
    np.testing.assert_allclose(np.linalg.norm(step), 1, atol=8 * eps / angle**2)


def test_constraints_that_almost_exclude_each_other_hold() -> None:
    # The others are 0.02 from opposite: their progress takes a long way across.
    angle, tau = 0.02, 0.1
    half = np.array([[0.0, np.cos(angle / 2), np.sin(angle / 2)]])
    turned = half * np.array([[1.0], [-1.0]])
    turned[1, 2] *= -1
    rows = np.vstack([[1.0, 0.0, 0.0], turned])
    weights = rule(jnp.asarray(rows @ rows.T, jnp.float32), primary=0, tau=tau)
    # The nearest point is (1, 0, tau / sin(angle / 2)).
    expected = np.array([1, 0, tau / np.sin(angle / 2)])
    expected /= np.linalg.norm(expected)
    # The correlation of the two is known to machine epsilon, and what they may not
    # share, angle^2 / 2, to the quotient.
    tolerance = 8 * float(np.finfo(np.float32).eps) / angle**2
    np.testing.assert_allclose(direction(weights, rows), expected, atol=tolerance)


@pytest.mark.parametrize("angle", [1e-3, 3e-4, 1e-4, 1e-5])
def test_a_step_that_is_all_rounding_is_never_long(angle: float) -> None:
    for seed in range(4):
        plane = np.linalg.qr(np.random.default_rng(seed).normal(size=(6, 2)))[0].T
        rows = np.array([[1.0, 0.0], [-np.cos(angle), np.sin(angle)]]) @ plane
        weights = rule(jnp.asarray(rows @ rows.T, jnp.float32), primary=0, tau=0.0)
        assert np.linalg.norm(direction(weights, rows)) < 1.2


def test_constraints_that_exclude_each_other_end_in_a_finite_step() -> None:
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    weights = rule(jnp.asarray(rows @ rows.T, jnp.float32), primary=0, tau=0.5)
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(direction(weights, rows), [1, 0], atol=1e-2)


def test_a_zero_primary_gradient_stops_the_step() -> None:
    rows = np.array([[0.0, 0.0], [1.0, 1.0]])
    weights = rule(jnp.asarray(rows @ rows.T, jnp.float32), primary=0)
    np.testing.assert_array_equal(weights, 0)


def test_errors() -> None:
    with pytest.raises(ValueError, match="primary must be one of a, b, got 'c'"):
        balancers.pcd("c").init({"a": 1.0, "b": 1.0})
    with pytest.raises(ValueError, match="primary must be one of"):
        balancers.pcd(2).init(jnp.ones(2))
    with pytest.raises(ValueError, match="tau must be"):
        balancers.pcd(0, tau=-0.1)
    with pytest.raises(ValueError, match="decay must be"):
        balancers.pcd(0, decay=1.0)
