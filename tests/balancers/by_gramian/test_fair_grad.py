from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax import TaskGradients
from dtp_jax._core import linalg
from dtp_jax.balancers import dual_projection_weights, mgda_weights
from dtp_jax.balancers.by_gramian import _fair_grad
from dtp_jax.balancers.by_gramian._fair_grad import fair_grad_weights
from dtp_jax.balancers.by_gramian._nash_mtl import nash_mtl_weights

# The types of optax do not admit a TaskGradients.
fair_grad: Any = _fair_grad.fair_grad


def rows_of(seed: int = 0, decades: float = 1.0) -> jax.Array:
    """Gradients [4, 9] whose lengths spread over some decades."""
    rng = np.random.default_rng(seed)
    lengths = 10 ** rng.uniform(-decades / 2, decades / 2, (4, 1))
    return jnp.asarray(rng.normal(size=(4, 9)) * lengths, jnp.float32)


def cosine(a: jax.Array, b: jax.Array) -> float:
    return float(a @ b / (jnp.linalg.norm(a) * jnp.linalg.norm(b)))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
def test_weights_by_definition(alpha: float) -> None:
    for seed, preferences in enumerate([[1, 1, 1, 1], [0.5, 2, 1, 0.2]]):
        rows, shares = rows_of(seed, decades=2), jnp.array(preferences, jnp.float32)
        weights = fair_grad_weights(linalg.gram(rows), shares, alpha=alpha)
        gains = rows @ (weights @ rows)
        np.testing.assert_allclose(weights, shares * gains**-alpha, rtol=1e-3)


def test_one_is_the_bargaining_solution() -> None:
    gramian, preferences = linalg.gram(rows_of()), jnp.array([0.5, 2.0, 1.0, 0.2])
    expected = nash_mtl_weights(gramian, preferences, max_norm=None)
    found = fair_grad_weights(gramian, preferences)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_tends_to_the_sum() -> None:
    # Every gain to the power of a hundredth is almost one.
    rows = jnp.abs(rows_of())
    weights = fair_grad_weights(linalg.gram(rows), alpha=0.01)
    np.testing.assert_allclose(weights, 1, rtol=0.05)


def test_tends_to_the_shortest_vector_of_the_hull() -> None:
    rows = rows_of()
    gramian = linalg.gram(rows)
    shortest = mgda_weights(gramian) @ rows
    cosines = [
        cosine(fair_grad_weights(gramian, alpha=alpha) @ rows, shortest)
        for alpha in (0.5, 1.0, 2.0, 10.0, 100.0)
    ]
    assert cosines == sorted(cosines)
    assert cosines[-1] > 0.9999


def test_a_zero_gradient_takes_no_part() -> None:
    rows = rows_of().at[2].set(0)
    weights = fair_grad_weights(linalg.gram(rows), alpha=2.0)
    present = jnp.array([1.0, 1.0, 0.0, 1.0])
    expected = fair_grad_weights(linalg.gram(rows), present, alpha=2.0)
    np.testing.assert_array_equal(weights, expected)
    assert float(weights[2]) == 0


def test_a_stationary_point_stops_the_descent() -> None:
    rows = rows_of()
    rows = rows.at[1].set(-2 * rows[3])
    for alpha in (0.5, 2.0):
        weights = fair_grad_weights(linalg.gram(rows), alpha=alpha)
        np.testing.assert_allclose(jnp.sum(weights), 1, rtol=1e-5)
        sizes = jnp.linalg.norm(weights[:, None] * rows, axis=1)
        assert float(jnp.linalg.norm(weights @ rows)) < 1e-3 * float(jnp.max(sizes))


def test_weights_that_vanish_are_active() -> None:
    # The short gradient makes gains of 1e3 for the long ones, and this to the power of
    # -100 is nothing.
    rows = jnp.array([[1.0, 0.0], [1e3, 0.0], [1e3, 0.0], [1e3, 0.0]])
    gradients = TaskGradients.from_stacked(rows)
    ones = jnp.ones(4)
    balancer = fair_grad(alpha=100.0)
    weights, _ = balancer.update(ones, (), ones, task_gradients=gradients)
    assert ((weights[1:] > 0) & (weights[1:] < 1e-29)).all()
    np.testing.assert_allclose(weights[0], 1, rtol=1e-5)


def test_alpha_may_be_scheduled() -> None:
    injected: Any = optax.inject_hyperparams(fair_grad)
    link = injected(alpha=lambda step: 1.0 + step)
    gradients = TaskGradients.from_stacked(rows_of())
    state = link.init(jnp.ones(4))
    for alpha in (1.0, 2.0):
        weights, state = link.update(jnp.ones(4), state, task_gradients=gradients)
        expected = fair_grad_weights(gradients.gramian(), alpha=alpha)
        np.testing.assert_allclose(weights, expected, rtol=1e-4)


def test_zero_is_the_sum_whatever_the_gradients() -> None:
    rows = rows_of().at[2].set(0)
    for conflicting in (rows, rows.at[1].set(-2 * rows[3]), 0 * rows):
        weights = fair_grad_weights(linalg.gram(conflicting), alpha=0.0)
        np.testing.assert_array_equal(weights @ conflicting, sum(conflicting))
    preferences = jnp.array([0.5, 2.0, 0.0, 0.2])
    weights = fair_grad_weights(linalg.gram(rows), preferences, alpha=0.0)
    np.testing.assert_array_equal(weights, preferences)


def test_zero_may_be_scheduled() -> None:
    injected: Any = optax.inject_hyperparams(fair_grad)
    link, rows = injected(alpha=lambda step: 1.0 - step), rows_of()
    gradients = TaskGradients.from_stacked(rows)
    state = link.init(jnp.ones(4))
    for alpha in (1.0, 0.0):
        weights, state = link.update(jnp.ones(4), state, task_gradients=gradients)
        expected = fair_grad_weights(linalg.gram(rows), alpha=alpha)
        np.testing.assert_allclose(weights, expected, rtol=1e-4)


def test_near_zero_conflicts_are_projected_away() -> None:
    # The second gradient conflicts with the sum, which it would get at zero itself.
    gramian = jnp.array([[9.0, -3.0], [-3.0, 2.0]])
    expected = dual_projection_weights(gramian)
    np.testing.assert_allclose(expected, [1, 1.5], rtol=1e-6)
    weights = fair_grad_weights(gramian, alpha=1e-3)
    np.testing.assert_allclose(weights, expected, rtol=2e-2)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"alpha must be a number in \[0, inf\)"):
        fair_grad(alpha=-0.1)
    with pytest.raises(ValueError, match=r"alpha must be a number in \[0, inf\)"):
        fair_grad_weights(jnp.eye(2), alpha=-1.0)
    ones = jnp.ones(2)
    with pytest.raises(ValueError, match="fair_grad needs `task_gradients`"):
        fair_grad().update(ones, (), ones)
