from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax.balancers.by_loss import _imtl_l
from tests.balancers.sequences import LOSSES, over

imtl_l: Any = _imtl_l.imtl_l
SGD = imtl_l(optimizer=optax.sgd(0.02))
ONES = jnp.ones(3)


def papers_weights(
    losses: np.ndarray, rate: float, start: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Gradient descent on exp(s) L - s, written out; the weights before each step."""
    s, weights = np.full(losses.shape[1], start), []
    for loss in losses:
        weights.append(np.exp(s))
        s = s - rate * (np.exp(s) * loss - 1)
    return np.array(weights), s


@pytest.mark.parametrize("start", [0.0, -1.0])
def test_agrees_with_the_paper_over_a_sequence(start: float) -> None:
    balancer = imtl_l(optimizer=optax.sgd(0.02), init_value=start)
    weights, state = over(balancer, LOSSES)
    expected, s = papers_weights(LOSSES, 0.02, start)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    np.testing.assert_allclose(state.log_scales, s, rtol=1e-5)


@pytest.mark.parametrize("num_tasks", [1, 64])
def test_the_weighted_losses_are_one_after_a_thousand_steps(num_tasks: int) -> None:
    loss = np.geomspace(0.1, 30, num_tasks)
    losses = np.broadcast_to(loss, (1000, num_tasks))
    weights, state = over(imtl_l(optimizer=optax.adam(0.1)), losses)
    np.testing.assert_allclose(weights[-1] * loss, 1, rtol=1e-3)
    np.testing.assert_allclose(state.log_scales, -np.log(loss), atol=1e-3)


def test_weights_and_steps_are_derivatives_of_the_objective() -> None:
    balancer = imtl_l(optimizer=optax.sgd(1.0), init_value=0.3)
    losses = jnp.array([0.2, 1.0, 7.0])
    weights, state = jax.jit(balancer.update)(ONES, balancer.init(ONES), losses)

    def objective(losses: jax.Array, s: jax.Array) -> jax.Array:
        return jnp.sum(jnp.exp(s) * losses - s)

    by_loss, by_s = jax.grad(objective, (0, 1))(losses, jnp.full(3, 0.3))
    np.testing.assert_allclose(weights, by_loss, rtol=1e-6)
    np.testing.assert_allclose(state.log_scales, 0.3 - by_s, rtol=1e-5)


@pytest.mark.parametrize("loss", [0.0, -1.0, 1e-38, 1e30, 3e38])
def test_extreme_losses_stay_finite_and_are_forgotten(loss: float) -> None:
    balancer = imtl_l(optimizer=optax.adam(0.5), bound=4.0)
    losses = np.ones((3100, 3))
    losses[:100] = loss
    weights, state = over(balancer, losses)
    chex.assert_tree_all_finite((weights, state))
    np.testing.assert_allclose(weights[99], np.exp(-4 if loss > 1 else 4), rtol=1e-5)
    np.testing.assert_allclose(weights[-1], 1, atol=0.05)


def test_equal_losses_have_equal_weights() -> None:
    weights, _ = over(SGD, np.full((10, 3), 2.0))
    np.testing.assert_allclose(weights, weights[:, :1] * np.ones(3), rtol=1e-6)


def test_preferences_multiply_and_inactive_tasks_keep_their_scale() -> None:
    balancer = imtl_l()
    preferences = np.tile([2.0, 1.0, 0.5], (10, 1))
    preferences[4:7, 1] = 0
    weights, state = over(balancer, LOSSES, preferences)
    alone, _ = over(balancer, LOSSES[:, [0, 2]])
    np.testing.assert_allclose(weights[:, [0, 2]], alone * [2.0, 0.5], rtol=1e-5)
    np.testing.assert_array_equal(weights[4:7, 1], 0)
    _, before = over(balancer, LOSSES[:4], preferences[:4])
    _, after = over(balancer, LOSSES[:7], preferences[:7])
    assert float(before.log_scales[1]) == float(after.log_scales[1])
    assert float(state.log_scales[1]) != float(after.log_scales[1])


def test_float64() -> None:
    with jax.enable_x64(True):
        weights, state = over(SGD, LOSSES)
        assert weights.dtype == state.log_scales.dtype == jnp.float64
        np.testing.assert_allclose(weights, papers_weights(LOSSES, 0.02)[0], 1e-13)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="bound must be a number in"):
        imtl_l(bound=0.0)
    with pytest.raises(ValueError, match="imtl_l needs `losses`"):
        SGD.update(ONES, SGD.init(ONES))
