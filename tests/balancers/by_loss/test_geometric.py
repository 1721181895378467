from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax.balancers.by_loss import _geometric
from tests.balancers.sequences import LOSSES, over

geometric: Any = _geometric.geometric


@jax.jit
def jitted(losses: Any, preferences: Any) -> jax.Array:
    balancer = geometric()
    return jax.vmap(lambda p, x: balancer.update(p, (), x)[0])(preferences, losses)


def weigh(losses: Any, preferences: Any = 1.0) -> np.ndarray:
    """The weights [10, 3]; there may be fewer losses, too."""
    filled = np.ones((10, 3))
    filled[: len(losses)] = losses
    preferences = np.broadcast_to(preferences, filled.shape)
    found = jitted(jnp.asarray(filled), jnp.asarray(preferences, float))
    return np.asarray(found)[: len(losses)]


def by_definition(losses: np.ndarray, preferences: Any = 1.0) -> np.ndarray:
    """The derivative of the weighted geometric mean, written out."""
    shares = np.broadcast_to(preferences, losses.shape)
    shares = shares / shares.sum(axis=1, keepdims=True)
    mean = np.prod(losses**shares, axis=1, keepdims=True)
    return shares * mean / losses


def test_agrees_with_the_definition_over_a_sequence() -> None:
    found, _ = over(geometric(), LOSSES)
    np.testing.assert_allclose(found, by_definition(LOSSES), rtol=2e-6)
    # The objective is of degree one: Euler's theorem.
    mean = np.prod(LOSSES, axis=1) ** (1 / 3)
    np.testing.assert_allclose((found * LOSSES).sum(axis=1), mean, rtol=1e-6)


def test_preferences_weigh_the_mean() -> None:
    preferences = np.array([0.5, 2.0, 1e-3])
    found = weigh(LOSSES, preferences)
    np.testing.assert_allclose(found, by_definition(LOSSES, preferences), rtol=5e-6)
    np.testing.assert_allclose(weigh(LOSSES, preferences * 1e-25), found, rtol=1e-5)


@pytest.mark.parametrize("num_tasks", [1, 64])
def test_a_thousand_steps(num_tasks: int) -> None:
    losses = 10 ** np.random.default_rng(0).uniform(-5, 5, (1000, num_tasks))
    found, _ = over(geometric(), losses)
    np.testing.assert_allclose(found, by_definition(losses), rtol=2e-5)


@pytest.mark.parametrize("scale", [1e-35, 1e36])
def test_the_scale_of_all_losses_does_not_matter(scale: float) -> None:
    expected = by_definition(LOSSES)
    np.testing.assert_allclose(weigh(LOSSES * scale), expected, rtol=1e-5)


def test_losses_that_are_equal_or_not_positive() -> None:
    losses = np.array(
        [[1.0] * 3, [0.0] * 3, [-1.0] * 3, [3e38] * 3, [2, 0, -5], [2, 2e-12, 2e-12]]
    )
    found = weigh(losses)
    np.testing.assert_allclose(found[:4], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(found[4], found[5], rtol=1e-6)
    np.testing.assert_allclose(found[5], by_definition(losses[5:])[0], rtol=1e-5)


def test_an_absent_task_leaves_the_mean() -> None:
    losses = np.array([[1.0, 5.0, 4.0], [1.0, 1e38, 4.0], [1.0, np.nan, 4.0]])
    np.testing.assert_allclose(weigh(losses, [1, 0, 1]), [[1, 0, 0.25]] * 3, rtol=1e-6)
    # A loss that is not finite is absent, whatever its preference.
    np.testing.assert_allclose(weigh(losses)[2], [1, 0, 0.25], rtol=1e-6)


def test_float64() -> None:
    with jax.enable_x64(True):
        found = weigh(LOSSES)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, by_definition(LOSSES), rtol=1e-14)


def test_needs_losses() -> None:
    with pytest.raises(ValueError, match="geometric needs `losses`"):
        geometric().update(jnp.ones(2), ())
