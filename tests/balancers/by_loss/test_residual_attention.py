import numpy as np
import pytest

from tests.balancers.sequences import LOSSES, over
from tests.toys import balancers


@pytest.mark.parametrize("convention", ["inside", "outside"])
def test_running_sums_of_relative_residuals(convention: str) -> None:
    balancer = balancers.residual_attention(
        decay=0.9, rate=0.3, init_value=0.2, convention=convention
    )
    weights, state = over(balancer, LOSSES)
    multipliers = np.full(3, 0.2)
    for row, found in zip(LOSSES, weights, strict=True):
        residuals = np.sqrt(row)
        multipliers = 0.9 * multipliers + 0.3 * residuals / residuals.max()
        expected = multipliers**2 if convention == "inside" else multipliers
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(state.multipliers, multipliers, rtol=1e-5)


def test_the_loss_of_the_paper() -> None:
    # The gradient of mean (lambda r)^2 is that of the weighted squares over N.
    residuals = np.array([[0.5, -2.0, 1.0]])
    balancer = balancers.residual_attention(decay=0.0, rate=1.0)
    weights, _ = over(balancer, residuals**2, np.full(3, 1 / 3))
    multipliers = np.abs(residuals[0]) / 2
    found = np.sum(weights[0] * residuals[0] ** 2)
    np.testing.assert_allclose(found, np.mean((multipliers * residuals[0]) ** 2), 1e-6)


def test_multipliers_are_bounded_over_a_thousand_steps() -> None:
    losses = np.tile([[9.0, 1.0, 0.0]], (1000, 1))
    balancer = balancers.residual_attention(decay=0.99, rate=0.1)
    weights, state = over(balancer, losses)
    limits = 0.1 / (1 - 0.99) * np.array([1, 1 / 3, 0])
    np.testing.assert_allclose(state.multipliers, limits, rtol=1e-3)
    assert (weights > 0).all()


def test_points_that_are_not_in_the_step_keep_their_multiplier() -> None:
    losses = np.array([[1.0, 4.0, 9.0], [np.nan, 4.0, 1e9], [1.0, 4.0, 9.0]])
    wanted = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    balancer = balancers.residual_attention(decay=0.5, rate=1.0)
    weights, state = over(balancer, losses, wanted)
    np.testing.assert_allclose(state.multipliers, [1 / 3, 1 / 3 + 1, 1.5], rtol=1e-6)
    np.testing.assert_array_equal(weights > 0, wanted * np.isfinite(losses) > 0)


def test_zero_equal_and_huge_losses() -> None:
    for losses, share in (
        (np.zeros((1, 4)), 0.0),
        (np.full((1, 4), 1e-37), 1.0),
        (np.full((1, 4), 3e38), 1.0),
    ):
        balancer = balancers.residual_attention(rate=0.5, convention="outside")
        weights, _ = over(balancer, losses)
        np.testing.assert_allclose(weights, max(0.5 * share, 1e-30), rtol=1e-6)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="convention must be one of"):
        balancers.residual_attention(convention="both")
    with pytest.raises(ValueError, match="decay must be"):
        balancers.residual_attention(decay=1.0)
    with pytest.raises(ValueError, match="rate must be"):
        balancers.residual_attention(rate=-1.0)
