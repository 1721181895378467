from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax.balancers.by_loss import _cosmos
from tests.balancers.sequences import LOSSES, over
from tests.toys import assert_near

cosmos: Any = _cosmos.cosmos
DIRECTION = np.array([0.2, 0.7, 0.1])
PREFERENCES = np.array([2.0, 0.5, 1.3])


@jax.jit
def jitted(losses: Any, preferences: Any, hyperparameters: Any) -> jax.Array:
    balancer = cosmos(**hyperparameters)
    return jax.vmap(lambda p, x: balancer.update(p, (), x)[0])(preferences, losses)


def weigh(losses: Any, preferences: Any = 1.0, **hyperparameters: Any) -> np.ndarray:
    """The weights [10, T]; there may be fewer losses, too."""
    filled = np.ones((10, np.shape(losses)[1]))
    filled[: len(losses)] = losses
    preferences = np.broadcast_to(preferences, filled.shape)
    given = {"penalty": 1.0, "direction": 1.0, **hyperparameters}
    given = {name: jnp.asarray(value, float) for name, value in given.items()}
    found = jitted(jnp.asarray(filled), jnp.asarray(preferences), given)
    return np.asarray(found)[: len(losses)]


def objective(losses: jax.Array, preferences: Any, penalty: float) -> jax.Array:
    """The definition of the paper, of the losses scaled by the preferences."""
    point = jnp.asarray(preferences) * losses
    product = jnp.sum(jnp.asarray(DIRECTION) * point)
    norms = np.linalg.norm(DIRECTION) * jnp.sqrt(jnp.sum(point**2))
    return product - penalty * product / norms


@pytest.mark.parametrize("penalty", [8.0, 0.01, 0.0])
@pytest.mark.parametrize("preferences", [np.ones(3), PREFERENCES])
def test_agrees_with_the_definition_over_a_sequence(
    preferences: Any, penalty: float
) -> None:
    given = {"penalty": penalty, "direction": DIRECTION}
    found = weigh(LOSSES, preferences, **given)
    with jax.enable_x64(True):
        slopes = jax.vmap(jax.grad(objective), (0, None, None))
        expected = slopes(jnp.asarray(LOSSES), preferences, penalty)
        exact = weigh(LOSSES, preferences, **given)
        np.testing.assert_allclose(exact, expected, rtol=1e-12, atol=1e-13)
    assert_near(found, expected, rtol=1e-5)


def test_the_penalty_does_no_work_along_the_losses() -> None:
    """The cosine is of degree zero: Euler's theorem."""
    losses = np.random.default_rng(0).uniform(0.1, 3, (1000, 3))
    balancer = cosmos(penalty=5.0, direction=DIRECTION)
    found, _ = over(balancer, losses, PREFERENCES)
    work = (found * losses).sum(axis=1)
    np.testing.assert_allclose(work, losses @ (DIRECTION * PREFERENCES), rtol=1e-4)


def test_equal_losses_of_64_tasks_and_of_one() -> None:
    values = np.array([0.0, 1.0, 0.3, 3e38, 2e-38])[:, None]
    np.testing.assert_allclose(weigh(values * np.ones(64), penalty=8.0), 1, rtol=1e-5)
    np.testing.assert_allclose(weigh(-values, 3.0), 3, rtol=1e-6)


def test_losses_of_any_size_and_sign() -> None:
    losses = np.array(
        [[0.0, 0, 0], [3e38, 0, -3e38], [0, 3e38, 3e38], [0, 2e-38, 0], [-1, -2, 0]]
    )
    found = weigh(losses, direction=DIRECTION)
    assert np.isfinite(found).all()
    assert (found != 0).all()
    # At zero, and where the losses are huge, the weighted sum is all that is left.
    np.testing.assert_allclose(found[:3], [DIRECTION] * 3, rtol=1e-6)
    # Shorter vectors of losses count as of length 1e-30.
    unit = DIRECTION / np.linalg.norm(DIRECTION)
    expected = DIRECTION - unit * [1, 0, 1] * 1e30
    np.testing.assert_allclose(found[3], expected, rtol=1e-5)


def test_a_direction_for_each_step() -> None:
    directions = np.random.default_rng(0).dirichlet(np.ones(3), 10)

    def direction(step: Any) -> Any:
        return jnp.asarray(directions, jnp.float32)[step]

    found, _ = over(optax.inject_hyperparams(cosmos)(direction=direction), LOSSES)
    for step in (0, 9):
        expected = weigh(LOSSES, direction=directions[step])
        np.testing.assert_allclose(found[step], expected[step], rtol=1e-5)


def test_an_absent_task_leaves_the_space() -> None:
    kept = [0, 2]
    expected = weigh(LOSSES[:, kept], [2, 1], penalty=8.0, direction=DIRECTION[kept])
    for factor in (1.0, 1e38, np.nan):
        losses = LOSSES * [1, factor, 1]
        found = weigh(losses, [2, 0, 1], penalty=8.0, direction=DIRECTION)
        np.testing.assert_allclose(found[:, kept], expected, rtol=1e-5)
        np.testing.assert_array_equal(found[:, 1], 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cosmos(penalty=-1.0), "penalty must be a number in"),
        (lambda: cosmos(direction=-1.0), "direction must be a number in"),
        (lambda: cosmos().update(jnp.ones(2), ()), "cosmos needs `losses`"),
    ],
)
def test_errors_say_what_to_do(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
