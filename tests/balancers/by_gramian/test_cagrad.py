from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax import TaskGradients
from dtp_jax.balancers.by_gramian import _cagrad
from tests import toys
from tests.solvers import problems

cagrad: Any = _cagrad.cagrad
cagrad_weights = _cagrad.cagrad_weights
rule = jax.jit(cagrad_weights)

ROWS = problems.draw(problems.correlated, 4, 12, 0, 1)
GRAMIAN = jnp.asarray(ROWS @ ROWS.T, jnp.float32)
ONES = jnp.ones(4)


def weigh(c: float, preferences: Any = ONES, rescale: int = 0) -> jax.Array:
    return rule(GRAMIAN, preferences, c=c, rescale=rescale)


def step(c: float, preferences: Any = ONES, rescale: int = 0) -> np.ndarray:
    return np.asarray(weigh(c, preferences, rescale), np.float64) @ ROWS


def test_the_distance_from_the_mean_and_its_direction() -> None:
    mean = ROWS.mean(axis=0)
    for c in (0.1, 0.5, 0.9):
        change = step(c) - mean
        size = float(np.linalg.norm(mean))
        np.testing.assert_allclose(np.linalg.norm(change), c * size, rtol=1e-5)
        # The change lies in the cone of the gradients that gain the least.
        gains = ROWS @ step(c)
        least = gains < gains.min() + 1e-4 * size * np.abs(gains).max()
        found, _, _, _ = np.linalg.lstsq(ROWS[least].T, change)
        np.testing.assert_allclose(ROWS[least].T @ found, change, atol=1e-3 * size)
        assert (found > 0).all()
        # It still descends on the mean.
        assert mean @ step(c) >= (1 - c) * size**2


def test_no_point_of_the_ball_has_a_larger_smallest_gain() -> None:
    rng = np.random.default_rng(0)
    preferences = jnp.array([1.0, 0.3, 2.0, 1.0])
    mean = preferences / 4 @ ROWS
    reached = np.min(ROWS @ step(0.5, preferences) / preferences)
    others = step(0.5, preferences) - mean + 0.3 * rng.normal(size=(5000, 12))
    others *= 0.5 * np.linalg.norm(mean) / np.linalg.norm(others, axis=1)[:, None]
    gains = np.min((mean + others) @ ROWS.T / np.asarray(preferences), axis=1)
    assert reached >= gains.max() - 1e-5 * np.abs(reached)


def test_the_mean_without_radius() -> None:
    np.testing.assert_allclose(weigh(0.0), 0.25, rtol=1e-6)
    preferences = jnp.array([1.0, 0.0, 3.0, 2.0])
    weights = weigh(0.0, preferences)
    np.testing.assert_allclose(weights, preferences / 3, rtol=1e-6)


def test_rescaled() -> None:
    for rescale, divisor in ((1, 1 + 0.5**2), (2, 1 + 0.5)):
        weights = weigh(0.5, rescale=rescale)
        np.testing.assert_allclose(weights * divisor, weigh(0.5), rtol=1e-5)


def test_orthogonal_gradients_gain_in_proportion_to_the_preferences() -> None:
    preferences = jnp.array([1.0, 4.0, 2.0, 0.5])
    weights = rule(jnp.eye(4), preferences, c=0.5, rescale=0)
    # The mean is in proportion, and a larger ball changes its length only.
    np.testing.assert_allclose(weights, 1.5 * preferences / 4, rtol=1e-5)


def test_hyperparameters_may_be_scheduled() -> None:
    injected: Any = optax.inject_hyperparams(_cagrad.cagrad)
    balancer = injected(c=lambda count: 0.1 + 0.4 * count, rescale=2)
    gradients = TaskGradients.from_stacked(jnp.asarray(ROWS, jnp.float32))
    update = jax.jit(
        lambda g, state: balancer.update(ONES, state, ONES, task_gradients=g)
    )
    state = balancer.init(ONES)
    for c in (0.1, 0.5):
        weights, state = update(gradients, state)
        np.testing.assert_allclose(weights, weigh(c, rescale=2), rtol=1e-4)
    assert toys.num_compilations(update) == 1


def test_unknown_hyperparameters() -> None:
    with pytest.raises(ValueError, match="c must be a number in"):
        cagrad(c=-0.1)
    for wrong in (3, "1"):
        with pytest.raises(ValueError, match="rescale must be 0, 1 or 2, got"):
            cagrad(rescale=wrong)
    with pytest.raises(ValueError, match="cagrad needs `task_gradients`"):
        cagrad().update(ONES, (), ONES)
