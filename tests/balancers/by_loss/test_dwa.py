from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import balancers
from dtp_jax.balancers.by_loss import _dwa
from tests.balancers.sequences import LOSSES, over

dwa: Any = _dwa.dwa
DEFAULT = dwa()
ONES = jnp.ones(3)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def authors_weights(losses: np.ndarray, temperature: float) -> np.ndarray:
    """The rule of the paper and of the authors' code, written out."""
    num_steps, num_tasks = losses.shape
    weights = np.ones((num_steps, num_tasks))
    for t in range(2, num_steps):
        rates = losses[t - 1] / losses[t - 2]
        weights[t] = num_tasks * softmax(rates / temperature)
    return weights


@pytest.mark.parametrize("temperature", [2.0, 0.1])
def test_agrees_with_the_authors_over_a_sequence(temperature: float) -> None:
    weights, state = over(dwa(temperature=temperature), LOSSES)
    np.testing.assert_allclose(weights, authors_weights(LOSSES, temperature), 1e-5)
    np.testing.assert_array_equal(weights[:2], 1)
    np.testing.assert_allclose(state.last, LOSSES[-1], rtol=1e-6)
    np.testing.assert_allclose(state.before_last, LOSSES[-2], rtol=1e-6)


def test_epochs_as_in_the_authors_code() -> None:
    k = 2
    weights, _ = over(balancers.average_losses(dwa(lag=0), k), LOSSES)
    epochs = LOSSES.reshape(-1, k, 3).mean(axis=1)
    expected = np.repeat(authors_weights(epochs, 2.0), k, axis=0)
    # The mean of an epoch is known in its last step, which uses it already.
    expected[k - 1 : -1] = expected[k:]
    np.testing.assert_allclose(weights[:-1], expected[:-1], rtol=1e-5)


@pytest.mark.parametrize("num_tasks", [1, 64])
def test_the_state_after_a_thousand_steps(num_tasks: int) -> None:
    losses = np.random.default_rng(0).uniform(0.1, 9, (1000, num_tasks))
    weights, state = over(DEFAULT, losses)
    np.testing.assert_allclose(weights, authors_weights(losses, 2.0), 2e-5)
    np.testing.assert_allclose(weights.sum(axis=1), num_tasks, rtol=1e-5)
    np.testing.assert_allclose([*state], losses[[-1, -2]], rtol=1e-6)


def test_the_unit_of_a_loss_does_not_matter() -> None:
    expected, _ = over(DEFAULT, LOSSES)
    found, _ = over(DEFAULT, LOSSES * np.array([1e-6, 1.0, 1e30]))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 3e38])
def test_equal_losses_have_equal_weights(value: float) -> None:
    weights, _ = over(DEFAULT, np.full((10, 3), value))
    np.testing.assert_allclose(weights, 1, rtol=1e-6)


def test_losses_at_and_below_zero() -> None:
    # Rates 0, 1 for want of anything to fall from (twice), and 0 for a negative one.
    last, before = jnp.array([0.0, 2.0, 0.0, -1.0]), jnp.array([1.0, 0.0, 0.0, 2.0])
    found = jax.jit(_dwa.dwa_weights)(last, before, jnp.ones(4), temperature=1.0)
    expected = 4 * softmax(np.array([0.0, 1.0, 1.0, 0.0]))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_huge_rate_takes_all_the_weight() -> None:
    losses = np.array([[1e-30, 1.0, 1.0], [3e38, 1.0, 1.0], [1.0, 1.0, 1.0]])
    weights, _ = over(dwa(temperature=1e-3), losses)
    np.testing.assert_allclose(weights[-1], [3.0, 1e-30, 1e-30], rtol=1e-6)


def test_preferences_multiply_the_weights_of_the_active_tasks() -> None:
    preferences = jnp.array([2.0, 0.0, 0.5])
    weights, state = over(DEFAULT, LOSSES, preferences)
    active = np.array([0, 2])
    expected = np.array([2.0, 0.5]) * authors_weights(LOSSES[:, active], 2.0)
    np.testing.assert_allclose(weights[:, active], expected, rtol=1e-5)
    np.testing.assert_array_equal(weights[:, 1], 0)
    assert float(state.last[1]) == 0


def test_a_task_that_joins_later_starts_as_one_that_stands_still() -> None:
    preferences = np.ones((10, 3))
    preferences[:6, 1] = 0
    weights, _ = over(DEFAULT, LOSSES, preferences)
    for t, rate in [(6, 1.0), (7, 1.0), (8, LOSSES[7, 1] / LOSSES[6, 1])]:
        rates = LOSSES[t - 1] / LOSSES[t - 2]
        rates[1] = rate
        np.testing.assert_allclose(weights[t], 3 * softmax(rates / 2), rtol=1e-5)


def test_no_active_task_changes_nothing() -> None:
    _, state = over(DEFAULT, LOSSES)
    nothing = jnp.full(3, jnp.nan)
    weights, new = jax.jit(DEFAULT.update)(jnp.zeros(3), state, nothing)
    np.testing.assert_array_equal(weights, 0)
    chex.assert_trees_all_equal(new, state)


def test_float64() -> None:
    with jax.enable_x64(True):
        weights, state = over(DEFAULT, LOSSES)
        assert weights.dtype == state.last.dtype == jnp.float64
        np.testing.assert_allclose(weights, authors_weights(LOSSES, 2.0), 1e-13)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="temperature must be a number in"):
        dwa(temperature=0.0)
    with pytest.raises(ValueError, match="lag must be 0 or 1, got 2"):
        dwa(lag=2)
    with pytest.raises(ValueError, match="dwa needs `losses`"):
        dwa().update(ONES, dwa().init(ONES))
