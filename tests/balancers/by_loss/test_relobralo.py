from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax.balancers.by_loss import _relobralo
from tests.balancers.sequences import LOSSES, over
from tests.toys import assert_near

relobralo: Any = _relobralo.relobralo
DEFAULT = relobralo(seed=0)
LIVELY = relobralo(alpha=0.6, temperature=0.5, rho=0.4)
ONES = jnp.ones(3)
KEYS = jax.random.split(jax.random.key(3), 1000)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def papers_step(
    losses: np.ndarray,
    t: int,
    last: np.ndarray,
    keep: bool,
    alpha: float,
    temperature: float,
) -> np.ndarray:
    """Equation 11 of the paper for t > 0, written out."""

    def balanced(reference: np.ndarray) -> np.ndarray:
        return losses.shape[1] * softmax(losses[t] / (temperature * reference))

    history = last if keep else balanced(losses[0])
    return alpha * history + (1 - alpha) * balanced(losses[t - 1])


def papers_weights(losses: np.ndarray, keeps: Any, **rest: float) -> np.ndarray:
    weights = [np.ones(losses.shape[1])]
    for t in range(1, len(losses)):
        weights.append(papers_step(losses, t, weights[-1], keeps[t], **rest))
    return np.array(weights)


@pytest.mark.parametrize("rho", [0.0, 1.0])
def test_agrees_with_the_paper_over_a_sequence(rho: float) -> None:
    rest = {"alpha": 0.7, "temperature": 0.3}
    weights, state = over(relobralo(rho=rho, seed=0, **rest), LOSSES)
    expected = papers_weights(LOSSES, [rho == 1] * 10, **rest)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    np.testing.assert_allclose(state.weights, expected[-1], rtol=1e-5)
    np.testing.assert_allclose([state.first, state.last], LOSSES[[0, -1]], rtol=1e-6)
    assert int(state.step) == 10


@pytest.mark.parametrize("num_tasks", [1, 64])
def test_a_thousand_random_steps(num_tasks: int) -> None:
    losses = np.random.default_rng(0).uniform(0.5, 2, (1000, num_tasks))
    weights, state = over(LIVELY, losses, key=KEYS)
    np.testing.assert_allclose(weights.sum(axis=1), num_tasks, rtol=1e-5)
    np.testing.assert_allclose([state.first, state.last], losses[[0, -1]], rtol=1e-6)
    if num_tasks == 1:
        return
    # Each step did one or the other, for all tasks, and as often as asked for.
    kept = 0
    for t in range(1, 1000):
        last = np.asarray(weights[t - 1], float)
        looked, stayed = (
            papers_step(losses, t, last, keep, alpha=0.6, temperature=0.5)
            for keep in (False, True)
        )
        closer = np.abs(weights[t] - stayed).max() < np.abs(weights[t] - looked).max()
        kept += closer
        expected = stayed if closer else looked
        assert_near(weights[t], expected, rtol=1e-4)
    assert abs(kept / 999 - 0.4) < 4 * np.sqrt(0.4 * 0.6 / 999)


def test_the_seed_counts_the_steps_and_the_key_repeats() -> None:
    seeded = relobralo(alpha=0.6, temperature=0.5, rho=0.4, seed=5)
    losses = np.tile(LOSSES, (6, 1))
    first, state = over(seeded, losses)
    np.testing.assert_array_equal(over(seeded, losses)[0], first)
    assert int(state.step) == 60
    by_key, _ = over(LIVELY, losses, key=KEYS[:60])
    assert np.abs(by_key - first).max() > 0.1
    np.testing.assert_array_equal(over(LIVELY, losses, key=KEYS[:60])[0], by_key)


def test_the_temperature_evens_out() -> None:
    even, _ = over(relobralo(temperature=1e6, seed=0), LOSSES)
    np.testing.assert_allclose(even, 1, rtol=1e-5)
    sharp, _ = over(relobralo(alpha=0.0, temperature=1e-5, seed=0), LOSSES)
    slowest = np.argmax(LOSSES[1:] / LOSSES[:-1], axis=1)
    np.testing.assert_array_equal(np.argmax(sharp[1:], axis=1), slowest)
    np.testing.assert_allclose(sharp[1:].max(axis=1), 3, rtol=1e-6)
    np.testing.assert_allclose(sharp[1:].min(axis=1), 1e-30, rtol=1e-6)


def test_the_unit_of_a_loss_does_not_matter() -> None:
    expected, _ = over(DEFAULT, LOSSES)
    found, _ = over(DEFAULT, LOSSES * np.array([1e-6, 1.0, 1e30]))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 3e38])
def test_equal_losses_have_equal_weights(value: float) -> None:
    weights, _ = over(DEFAULT, np.full((10, 3), value))
    np.testing.assert_allclose(weights, 1, rtol=1e-6)


def test_zero_negative_and_huge_losses() -> None:
    losses = np.array([[1.0, 0.0, 1e-30], [0.0, 0.0, 3e38], [-1.0, 5.0, 1.0]])
    balancer = relobralo(alpha=0.0, temperature=1.0, seed=0)
    weights, state = over(balancer, losses)
    chex.assert_tree_all_finite((weights, state))
    np.testing.assert_allclose(weights[1], [1e-30, 1e-30, 3.0], rtol=1e-6)
    # The first two compare with zero, the third with 3e38.
    expected = 3 * softmax(np.array([1.0, 1.0, 0.0]))
    np.testing.assert_allclose(weights[2], expected, rtol=1e-5)
    # The start of the second task is its first loss above zero.
    np.testing.assert_allclose(state.first, [1.0, 5.0, 1e-30], rtol=1e-6)


def test_preferences_multiply_the_weights_of_the_active_tasks() -> None:
    weights, state = over(DEFAULT, LOSSES, jnp.array([2.0, 0.0, 0.5]))
    active = np.array([0, 2])
    rest = {"alpha": 0.999, "temperature": 0.1}
    expected = papers_weights(LOSSES[:, active], [True] * 10, **rest)
    np.testing.assert_allclose(weights[:, active], expected * [2.0, 0.5], rtol=1e-5)
    np.testing.assert_array_equal(weights[:, 1], 0)
    assert float(state.first[1]) == float(state.last[1]) == 0


def test_a_task_that_joins_later_has_made_no_progress() -> None:
    rest = {"alpha": 0.8, "temperature": 0.5}
    preferences = np.ones((10, 3))
    preferences[:6, 1] = 0
    weights, state = over(relobralo(rho=1.0, seed=0, **rest), LOSSES, preferences)
    pair = papers_weights(LOSSES[:6, [0, 2]], [True] * 6, **rest)
    # The weights of the pair sum to 2; with the one of the new task all sum to 3.
    history = np.array([pair[-1, 0], 1.0, pair[-1, 1]])
    ratios = LOSSES[6] / LOSSES[5]
    ratios[1] = 1
    expected = 0.8 * history + 0.2 * 3 * softmax(ratios / 0.5)
    np.testing.assert_allclose(weights[6], expected, rtol=1e-5)
    assert float(state.first[1]) == np.float32(LOSSES[6, 1])


def test_the_rest_takes_over_the_weight_of_a_task_that_leaves() -> None:
    preferences = np.ones((10, 3))
    preferences[7:, 2] = 0
    weights, _ = over(DEFAULT, LOSSES, preferences)
    np.testing.assert_allclose(weights.sum(axis=1), [3] * 7 + [2] * 3, rtol=1e-5)


def test_float64() -> None:
    with jax.enable_x64(True):
        weights, state = over(relobralo(rho=1.0, seed=0), LOSSES)
        assert weights.dtype == state.weights.dtype == jnp.float64
        rest = {"alpha": 0.999, "temperature": 0.1}
        expected = papers_weights(LOSSES, [True] * 10, **rest)
        np.testing.assert_allclose(weights, expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 1.1}, "alpha must be a number in"),
        ({"temperature": 0.0}, "temperature must be a number in"),
        ({"rho": -0.1}, "rho must be a number in"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
    ],
)
def test_hyperparameters_are_checked(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        relobralo(**arguments)


def test_errors_say_what_to_do() -> None:
    state = LIVELY.init(ONES)
    with pytest.raises(ValueError, match="relobralo needs `losses`"):
        LIVELY.update(ONES, state, key=KEYS[0])
    with pytest.raises(ValueError, match=r"needs `key`.*relobralo\(seed=0\)"):
        LIVELY.update(ONES, state, ONES)
