import numpy as np
import pytest

from tests.balancers.sequences import LOSSES, over
from tests.toys import balancers


@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_shares_of_what_is_left_over_the_losses(num_steps: int) -> None:
    weights, state = over(balancers.igb(num_steps=num_steps), LOSSES)
    base = LOSSES[:num_steps].mean(axis=0)
    for step, (row, found) in enumerate(zip(LOSSES, weights, strict=True)):
        powers = np.exp(row / base) if step >= num_steps else np.ones(3)
        expected = 3 * powers / powers.sum() / row
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(state.means, base, rtol=1e-6)
    np.testing.assert_array_equal(state.counts, num_steps)


def test_scales_do_not_matter() -> None:
    scales = np.array([1e-10, 1.0, 1e15])
    balancer = balancers.igb(num_steps=2)
    plain, _ = over(balancer, LOSSES)
    scaled, _ = over(balancers.igb(num_steps=2), LOSSES * [1e-3, 1.0, 1e3])
    np.testing.assert_allclose(scaled * [1e-3, 1.0, 1e3], plain, rtol=1e-5)
    extreme, _ = over(balancer, LOSSES * scales)
    assert np.isfinite(extreme).all()


def test_masked_and_bad_steps_do_not_count_and_others_share() -> None:
    losses, wanted = LOSSES.copy(), np.ones(LOSSES.shape)
    losses[0, 0], wanted[1, 1] = np.nan, 0.0
    weights, state = over(balancers.igb(num_steps=2), losses, wanted)
    np.testing.assert_allclose(state.means[0], LOSSES[1:3, 0].mean(), rtol=1e-6)
    np.testing.assert_allclose(state.means[1], LOSSES[[0, 2], 1].mean(), rtol=1e-6)
    # Two tasks share two, three share three.
    totals = (weights * np.nan_to_num(losses)).sum(axis=1)
    np.testing.assert_allclose(totals, [2, 2, *[3] * 8], rtol=1e-5)


@pytest.mark.parametrize("loss", [0.0, 1e-30, 3e38])
def test_degenerate_losses(loss: float) -> None:
    losses = np.tile([[loss, 1.0]], (1000, 1))
    weights, state = over(balancers.igb(), losses)
    assert np.isfinite(weights).all()
    assert np.isfinite(state.means).all()
    weights, _ = over(balancers.igb(), np.full((300, 1), loss))
    assert (weights > 0).all()


def test_a_wrong_number_of_steps() -> None:
    with pytest.raises(ValueError, match="num_steps must be"):
        balancers.igb(num_steps=0)
