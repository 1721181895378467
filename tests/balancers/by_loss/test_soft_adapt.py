from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax.balancers.by_loss import _soft_adapt
from tests.balancers.sequences import LOSSES, over

soft_adapt: Any = _soft_adapt.soft_adapt
DEFAULT = soft_adapt()
ONES = jnp.ones(3)

# Backward differences from tables of finite differences, the newest value first.
COEFFICIENTS = {
    1: [1, -1],
    2: [3 / 2, -2, 1 / 2],
    3: [11 / 6, -3, 3 / 2, -1 / 3],
    4: [25 / 12, -4, 3, -4 / 3, 1 / 4],
    5: [137 / 60, -5, 5, -10 / 3, 5 / 4, -1 / 5],
}


def papers_weights(
    losses: np.ndarray, beta: float, variant: str = "original", order: int = 1
) -> np.ndarray:
    """The rule of the paper, written out; rates of zero until they are known."""
    weights = []
    for t in range(len(losses)):
        rates = np.zeros(losses.shape[1])
        if t >= order:
            rates = COEFFICIENTS[order] @ losses[t - order : t + 1][::-1]
        if variant.startswith("normalized") and rates.any():
            rates = rates / np.sum(np.abs(rates))
        scores = np.exp(beta * (rates - rates.max()))
        if variant.endswith("loss_weighted"):
            scores *= losses[max(0, t - order) : t + 1].mean(axis=0)
        weights.append(scores / scores.sum())
    return np.array(weights)


@pytest.mark.parametrize(
    ("variant", "order"),
    [
        ("original", 1),
        ("normalized", 2),
        ("loss_weighted", 3),
        ("normalized_loss_weighted", 5),
    ],
)
def test_agrees_with_the_paper_over_a_sequence(variant: str, order: int) -> None:
    weights, _ = over(soft_adapt(beta=2.0, variant=variant, order=order), LOSSES)
    expected = papers_weights(LOSSES, 2.0, variant, order)
    np.testing.assert_allclose(weights, expected, rtol=1e-4)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_the_difference_is_exact_for_polynomials_up_to_its_order(order: int) -> None:
    coefficients = np.array(_soft_adapt._backward_difference(order))
    np.testing.assert_allclose(coefficients, COEFFICIENTS[order], rtol=1e-12)
    times = 2.0 - np.arange(order + 1)
    for power in range(order + 1):
        slope = power * 2.0 ** (power - 1) if power else 0.0
        np.testing.assert_allclose(coefficients @ times**power, slope, atol=1e-10)


@pytest.mark.parametrize("num_tasks", [1, 64])
def test_the_state_after_a_thousand_steps(num_tasks: int) -> None:
    losses = np.random.default_rng(0).uniform(0.1, 9, (1000, num_tasks))
    weights, state = over(soft_adapt(order=3), losses)
    expected = papers_weights(losses, 0.1, order=3)
    np.testing.assert_allclose(weights, expected, rtol=2e-5)
    np.testing.assert_allclose(state.history, losses[:-4:-1], rtol=1e-6)
    assert (state.known == 3).all()


def test_a_negative_beta_prefers_the_falling_losses() -> None:
    rising = over(soft_adapt(beta=2.0), LOSSES)[0][-1]
    falling = over(soft_adapt(beta=-2.0), LOSSES)[0][-1]
    np.testing.assert_array_equal(np.argsort(rising), np.argsort(-falling))
    np.testing.assert_allclose(over(soft_adapt(beta=0.0), LOSSES)[0], 1 / 3, rtol=1e-6)


def test_units_do_not_matter_once_normalized() -> None:
    balancer = soft_adapt(variant="normalized_loss_weighted")
    expected, _ = over(balancer, LOSSES)
    for unit in (1e-30, 1e30):
        np.testing.assert_allclose(over(balancer, LOSSES * unit)[0], expected, 1e-5)


@pytest.mark.parametrize("variant", ["original", "normalized_loss_weighted"])
def test_equal_losses_have_equal_weights(variant: str) -> None:
    balancer = soft_adapt(variant=variant)
    for value in (0.0, 1.0, -1.0, 3e38):
        weights, _ = over(balancer, np.full((10, 3), value))
        np.testing.assert_allclose(weights, 1 / 3, rtol=1e-6)


def test_negative_losses_have_rates_as_others_do() -> None:
    weights, _ = over(DEFAULT, LOSSES - 30)
    np.testing.assert_allclose(weights, papers_weights(LOSSES, 0.1), rtol=1e-5)


def test_huge_rates() -> None:
    losses = np.array([[1.0, 1.0, 1.0], [3e38, 1.0, 1e30], [-3e38, 1.0, 1.0]])
    for variant in ("original", "loss_weighted"):
        weights, state = over(soft_adapt(variant=variant), losses)
        chex.assert_tree_all_finite((weights, state))
        np.testing.assert_allclose(weights[1], [1.0, 1e-30, 1e-30], rtol=1e-6)
        np.testing.assert_allclose(weights[2], [1e-30, 1.0, 1e-30], rtol=1e-6)
    chex.assert_tree_all_finite(over(soft_adapt(beta=1e30, order=5), losses))


def test_a_loss_of_zero_has_no_weight_where_losses_count() -> None:
    losses = np.tile([0.0, 1.0, 3.0], (4, 1))
    weights, _ = over(soft_adapt(variant="loss_weighted"), losses)
    np.testing.assert_allclose(weights[-1], [1e-30, 0.25, 0.75], rtol=1e-5)


def test_preferences_multiply_the_weights_of_the_active_tasks() -> None:
    weights, state = over(DEFAULT, LOSSES, jnp.array([2.0, 0.0, 0.5]))
    active = np.array([0, 2])
    expected = np.array([2.0, 0.5]) * papers_weights(LOSSES[:, active], 0.1)
    np.testing.assert_allclose(weights[:, active], expected, rtol=1e-5)
    np.testing.assert_array_equal(weights[:, 1], 0)
    assert float(state.history[0, 1]) == float(state.known[1]) == 0


def test_a_task_that_joins_later_has_no_rate_at_first() -> None:
    preferences = np.ones((10, 3))
    preferences[:6, 1] = 0
    weights, _ = over(soft_adapt(beta=2.0, order=2), LOSSES, preferences)
    for t in (6, 7, 8):
        rates = COEFFICIENTS[2] @ LOSSES[t - 2 : t + 1][::-1]
        rates[1] *= t == 8
        expected = np.exp(2 * rates) / np.sum(np.exp(2 * rates))
        np.testing.assert_allclose(weights[t], expected, rtol=1e-4)


def test_float64() -> None:
    with jax.enable_x64(True):
        weights, state = over(DEFAULT, LOSSES)
        assert weights.dtype == state.history.dtype == jnp.float64
        np.testing.assert_allclose(weights, papers_weights(LOSSES, 0.1), 1e-13)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": float("nan")}, "beta must be a number"),
        ({"order": 0}, "order must be an integer of at least 1"),
        ({"order": 6}, "order must be at most 5"),
        ({"variant": "soft"}, "variant must be one of"),
    ],
)
def test_hyperparameters_are_checked(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        soft_adapt(**arguments)


def test_losses_are_needed() -> None:
    with pytest.raises(ValueError, match="soft_adapt needs `losses`"):
        DEFAULT.update(ONES, DEFAULT.init(ONES))
