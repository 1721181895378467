from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax.balancers.by_loss import _boundary_intersection
from dtp_jax.balancers.on_weights import _clip_weights
from tests.balancers.sequences import LOSSES, over
from tests.toys import assert_near

boundary_intersection: Any = _boundary_intersection.boundary_intersection
clip_weights: Any = _clip_weights.clip_weights
DIRECTION = np.array([0.3, 1.0, 5.0])
REFERENCE = np.array([0.1, 0.5, -2.0])
PREFERENCES = np.array([2.0, 0.5, 1.3])


@jax.jit
def jitted(losses: Any, preferences: Any, hyperparameters: Any) -> jax.Array:
    balancer = boundary_intersection(**hyperparameters)
    return jax.vmap(lambda p, x: balancer.update(p, (), x)[0])(preferences, losses)


def weigh(losses: Any, preferences: Any = 1.0, **hyperparameters: Any) -> np.ndarray:
    """The weights [10, T]; there may be fewer losses, too."""
    filled = np.ones((10, np.shape(losses)[1]))
    filled[: len(losses)] = losses
    preferences = np.broadcast_to(preferences, filled.shape)
    given = {"penalty": 5.0, "direction": 1.0, "reference": 0.0, **hyperparameters}
    given = {name: jnp.asarray(value, float) for name, value in given.items()}
    found = jitted(jnp.asarray(filled), jnp.asarray(preferences), given)
    return np.asarray(found)[: len(losses)]


def objective(losses: jax.Array, preferences: Any, penalty: float) -> jax.Array:
    """The definition of the paper, of the losses scaled by the preferences."""
    point = jnp.asarray(preferences) * (losses - jnp.asarray(REFERENCE))
    unit = jnp.asarray(DIRECTION / np.linalg.norm(DIRECTION))
    d1 = jnp.sum(point * unit)
    d2 = jnp.sqrt(jnp.sum((point - d1 * unit) ** 2))
    return d1 + penalty * d2


@pytest.mark.parametrize("penalty", [5.0, 0.1, 0.0])
@pytest.mark.parametrize("preferences", [np.ones(3), PREFERENCES])
def test_agrees_with_the_definition_over_a_sequence(
    preferences: Any, penalty: float
) -> None:
    given = {"penalty": penalty, "direction": DIRECTION, "reference": REFERENCE}
    found = weigh(LOSSES, preferences, **given)
    with jax.enable_x64(True):
        slopes = jax.vmap(jax.grad(objective), (0, None, None))
        expected = slopes(jnp.asarray(LOSSES), preferences, penalty)
        exact = weigh(LOSSES, preferences, **given)
        np.testing.assert_allclose(exact, expected, rtol=1e-11, atol=1e-12)
    assert_near(found, expected, rtol=1e-4)


def test_over_a_scan_the_norm_of_the_weights_is_fixed() -> None:
    losses = np.tile(LOSSES, (100, 1))
    found, _ = over(boundary_intersection(direction=DIRECTION), losses)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.sqrt(26), rtol=1e-5)


def test_on_the_ray_only_the_way_along_it_counts() -> None:
    sizes = np.array([1e-36, 1e-3, 1.0, 77.7, 1e36])[:, None]
    expected = np.tile(DIRECTION / np.linalg.norm(DIRECTION), (5, 1))
    found = weigh(sizes * DIRECTION, direction=DIRECTION)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # The preferences bend the ray: p * L is on it.
    bent = sizes * DIRECTION / PREFERENCES
    found = weigh(bent, PREFERENCES, direction=DIRECTION)
    np.testing.assert_allclose(found, expected * PREFERENCES, rtol=1e-5)


def test_equal_losses_of_64_tasks_and_of_one() -> None:
    values = np.array([0.0, 1.0, 0.3, -1.0, 3e38, 2e-38])[:, None]
    np.testing.assert_allclose(weigh(values * np.ones(64)), 1 / 8, rtol=1e-5)
    np.testing.assert_allclose(weigh(values, 3.0), 3, rtol=1e-6)


def test_only_ratios_of_losses_matter() -> None:
    expected = weigh(LOSSES)
    for size in (1e-35, 1e36):
        assert_near(weigh(LOSSES * size), expected, rtol=1e-5)


def test_small_losses_rise_unless_clipped() -> None:
    losses = np.array([[3.0, 1.0], [1.0, 3.0]])
    ahead = (np.array([1, 1]) + 5 * np.array([1, -1])) / np.sqrt(2)
    expected = np.array([ahead, ahead[::-1]])
    np.testing.assert_allclose(weigh(losses), expected, rtol=1e-5)
    held: Any = optax.chain(boundary_intersection(), clip_weights(low=0.0))
    found, _ = over(held, losses)
    np.testing.assert_allclose(found, np.maximum(expected, 1e-30), rtol=1e-5)
    # For two tasks a penalty below one needs no clipping.
    assert (weigh(losses, penalty=0.99) > 0).all()


def test_descent_ends_where_losses_times_preferences_are_on_the_ray() -> None:
    # The losses are positions on a front of which the product is one.
    balancer = boundary_intersection(direction=jnp.array([1.0, 2.0]))
    preferences = jnp.array([1.0, 4.0])

    def step(x: jax.Array, rate: jax.Array) -> tuple[jax.Array, None]:
        losses = jnp.stack([jnp.exp(x), jnp.exp(-x)])
        weights, _ = balancer.update(preferences, (), losses)
        slopes = jnp.stack([jnp.exp(x), -jnp.exp(-x)])
        return x - rate * jnp.sum(weights * slopes), None

    rates = 0.1 / (1 + jnp.arange(500.0))
    x, _ = jax.lax.scan(step, jnp.array(1.0), rates)
    # exp(x) / (4 exp(-x)) = 1 / 2
    np.testing.assert_allclose(x, np.log(2) / 2, atol=1e-2)


def test_an_absent_task_leaves_the_space() -> None:
    kept = [0, 2]
    expected = weigh(LOSSES[:, kept], [2, 1], direction=DIRECTION[kept])
    for factor in (1.0, 1e38, np.nan):
        found = weigh(LOSSES * [1, factor, 1], [2, 0, 1], direction=DIRECTION)
        np.testing.assert_allclose(found[:, kept], expected, rtol=1e-5)
        np.testing.assert_array_equal(found[:, 1], 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: boundary_intersection(penalty=-1.0), "penalty must be a number in"),
        (
            lambda: boundary_intersection(direction={"a": -1.0}),
            "direction must be a number in",
        ),
        (
            lambda: boundary_intersection().update(jnp.ones(2), ()),
            "boundary_intersection needs `losses`",
        ),
    ],
)
def test_errors_say_what_to_do(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
