from typing import Any

import numpy as np
import pytest

from tests.balancers.sequences import LOSSES, over
from tests.toys import balancers


def by_definition(losses: Any, beta_c: float, beta_w: float) -> np.ndarray:
    means, weights, found = np.zeros(3), np.ones(3), []
    for step, row in enumerate(np.asarray(losses, np.float64)):
        means = beta_c * means + (1 - beta_c) * row**2
        rates = row / np.sqrt(means / (1 - beta_c ** (step + 1)))
        weights = beta_w * weights + (1 - beta_w) * rates / rates.mean()
        found.append(weights)
    return np.array(found)


@pytest.mark.parametrize(("beta_c", "beta_w"), [(0.9, 0.8), (0.999, 0.999), (0.5, 0.0)])
def test_slow_points_gain(beta_c: float, beta_w: float) -> None:
    balancer = balancers.balanced_residual_decay(mean_decay=beta_c, weight_decay=beta_w)
    weights, _ = over(balancer, LOSSES)
    expected = by_definition(LOSSES, beta_c, beta_w)
    np.testing.assert_allclose(weights, expected, rtol=2e-5)
    # The first falls, the third rises.
    assert weights[-1, 2] > weights[-1, 1] > weights[-1, 0]


def test_the_mean_stays_one_and_scales_do_not_matter() -> None:
    balancer = balancers.balanced_residual_decay(mean_decay=0.9, weight_decay=0.9)
    weights, _ = over(balancer, LOSSES)
    np.testing.assert_allclose(weights.mean(axis=1), 1, rtol=1e-5)
    scaled, _ = over(balancer, LOSSES * np.array([1e-15, 1.0, 1e18]))
    np.testing.assert_allclose(scaled, weights, rtol=1e-5)


def test_an_equal_course_leaves_the_weights_equal() -> None:
    course = np.exp(-np.arange(1000.0) / 40)[:, None] * np.array([[3.0, 1e-3, 5e4]])
    weights, _ = over(balancers.balanced_residual_decay(), course)
    np.testing.assert_allclose(weights, 1, rtol=1e-3)


def test_points_that_are_not_in_the_step_keep_their_state() -> None:
    losses, wanted = LOSSES.copy(), np.ones(LOSSES.shape)
    balancer = balancers.balanced_residual_decay(mean_decay=0.9, weight_decay=0.5)
    _, before = over(balancer, losses[:5])
    losses[5, 1], wanted[5, 2] = np.nan, 0.0
    weights, after = over(balancer, losses[:6], wanted[:6])
    np.testing.assert_array_equal(weights[5] > 0, [True, False, False])
    for now, then in zip(after, before, strict=True):
        np.testing.assert_array_equal(now[1:], then[1:])
    assert after.counts.tolist() == [6, 5, 5]


@pytest.mark.parametrize("loss", [0.0, 1e-38, 3e38])
def test_degenerate_losses(loss: float) -> None:
    weights, state = over(balancers.balanced_residual_decay(), np.full((20, 4), loss))
    np.testing.assert_allclose(weights, 1, rtol=1e-5)
    assert np.isfinite(state.means).all()
    # A loss that is zero has decayed: it loses weight, but none is negative.
    losses = np.tile([[loss, 1.0]], (50, 1))
    balancer = balancers.balanced_residual_decay(mean_decay=0.9, weight_decay=0.9)
    weights, _ = over(balancer, losses)
    assert (weights > 0).all()
    assert np.isfinite(weights).all()


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="mean_decay must be"):
        balancers.balanced_residual_decay(mean_decay=1.0)
    with pytest.raises(ValueError, match="weight_decay must be"):
        balancers.balanced_residual_decay(weight_decay=-0.1)
