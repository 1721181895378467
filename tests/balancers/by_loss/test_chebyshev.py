from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax.balancers import normalize_weights
from dtp_jax.balancers.by_loss import _chebyshev
from tests.balancers.sequences import LOSSES, over

chebyshev: Any = _chebyshev.chebyshev
REFERENCE = np.array([-0.5, 0.2, 10.0])
NADIR = np.array([2.0, 1.0, 21.0])
PREFERENCES = np.array([1.5, 0.3, 0.1])


@jax.jit
def jitted(losses: Any, preferences: Any, hyperparameters: Any) -> jax.Array:
    balancer = chebyshev(**hyperparameters)
    return jax.vmap(lambda p, x: balancer.update(p, (), x)[0])(preferences, losses)


def weigh(losses: Any, preferences: Any = 1.0, **hyperparameters: Any) -> np.ndarray:
    """The weights [10, 3]; there may be fewer losses, too."""
    filled = np.ones((10, 3))
    filled[: len(losses)] = losses
    preferences = np.broadcast_to(preferences, (10, 3))
    given = {"mu": 1.0, "reference": 0.0, **hyperparameters}
    given = {name: jnp.asarray(value, float) for name, value in given.items()}
    found = jitted(jnp.asarray(filled), jnp.asarray(preferences), given)
    return np.asarray(found)[: len(losses)]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("mu", [1.0, 0.05])
def test_agrees_with_the_paper_over_a_sequence(mu: float) -> None:
    found = weigh(LOSSES, PREFERENCES, mu=mu, reference=REFERENCE)
    expected = PREFERENCES * softmax(PREFERENCES * (LOSSES - REFERENCE) / mu)
    np.testing.assert_allclose(found, expected, rtol=5e-5, atol=1e-29)


@pytest.mark.parametrize("mu", [1.0, 0.1])
def test_agrees_with_the_authors_code_over_a_sequence(mu: float) -> None:
    """Which is n mu log sum (L / nadir)^(1/mu), with the derivative written out."""
    found, _ = over(chebyshev(mu=mu, nadir=NADIR), LOSSES)
    powers = (LOSSES / NADIR) ** (1 / mu)
    expected = 3 * powers / powers.sum(axis=1, keepdims=True) / LOSSES
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_preferences_keep_their_meaning_with_a_nadir() -> None:
    """A task of preference p is one whose range is one p-th as long."""
    found = weigh(LOSSES, PREFERENCES, nadir=NADIR, reference=REFERENCE)
    shorter = (NADIR - REFERENCE) / PREFERENCES + REFERENCE
    expected = weigh(LOSSES, nadir=shorter, reference=REFERENCE)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (found > 0).all()


def test_weights_are_derivatives_of_the_objective() -> None:
    def objective(losses: jax.Array) -> jax.Array:
        ideal, nadir = jnp.asarray(REFERENCE), jnp.asarray(NADIR)
        ratios = (losses - ideal) / (nadir - ideal)
        scaled = jnp.log(jnp.asarray(PREFERENCES) * ratios)
        return 3 * 0.5 * jax.nn.logsumexp(scaled / 0.5)

    with jax.enable_x64(True):
        found = weigh(LOSSES, PREFERENCES, mu=0.5, nadir=NADIR, reference=REFERENCE)
        assert found.dtype == np.float64
        expected = jax.vmap(jax.grad(objective))(jnp.asarray(LOSSES))
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_from_the_worst_task_alone_to_all_alike() -> None:
    sharp = weigh(LOSSES, PREFERENCES, mu=1e-4)
    worst = np.argmax(PREFERENCES * LOSSES, axis=1)
    np.testing.assert_allclose(sharp, PREFERENCES * np.eye(3)[worst], 1e-5, atol=1e-29)
    flat = weigh(LOSSES, PREFERENCES, mu=1e8)
    np.testing.assert_allclose(flat, np.tile(PREFERENCES / 3, (10, 1)), rtol=1e-5)


def test_on_the_simplex_as_in_the_paper() -> None:
    chain = optax.chain(normalize_weights("sum_to_1"), chebyshev(mu=0.2))
    found, _ = over(chain, LOSSES)
    expected = softmax(LOSSES / 3 / 0.2) / 3
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-29)


@pytest.mark.parametrize("num_tasks", [1, 64])
def test_a_thousand_steps(num_tasks: int) -> None:
    losses = np.random.default_rng(0).normal(size=(1000, num_tasks))
    found, _ = over(chebyshev(mu=0.7), losses)
    np.testing.assert_allclose(found, softmax(losses / 0.7), rtol=1e-5)


def test_equal_losses_of_any_size() -> None:
    losses = np.array([0.0, 1.0, -1.0, 3e38, 1e-38, -3e38])[:, None] * np.ones(3)
    np.testing.assert_allclose(weigh(losses), 1 / 3, rtol=1e-6)
    # Relative to the nadir these losses count as 1e-20 to 1e20.
    expected = 1 / (0.5 * np.clip(losses / 0.5, 1e-20, 1e20))
    np.testing.assert_allclose(weigh(losses, nadir=0.5), expected, rtol=1e-5)


def test_far_apart_losses_stay_finite() -> None:
    losses = np.array([[0.0, 3e38, -3e38], [1e-38, 1.0, 0.0]])
    for hyperparameters in ({}, {"nadir": 1.0}, {"mu": 1e-30}, {"nadir": 1e-18}):
        for preferences in (1.0, 1e-30, 1e30):
            found = weigh(losses, preferences, **hyperparameters)
            assert np.isfinite(found).all()
            assert (found > 0).all()


def test_many_losses_on_a_tiny_scale_stay_finite() -> None:
    # The count of the tasks, too, is divided by what may hardly be more than zero.
    found, _ = over(chebyshev(nadir=1e-20), np.zeros((1, 8)), np.ones(8))
    assert np.isfinite(found).all()


def test_a_nadir_that_is_not_above_counts_as_one_above() -> None:
    expected = weigh(LOSSES, nadir=1.0)
    np.testing.assert_allclose(weigh(LOSSES, nadir=0.0), expected, rtol=1e-6)


@pytest.mark.parametrize("hyperparameters", [{"mu": 2.0}, {"nadir": 3.0}])
def test_an_absent_task_leaves_the_maximum_and_the_count(hyperparameters: Any) -> None:
    expected, _ = over(chebyshev(**hyperparameters), LOSSES[:, [0, 2]], [0.5, 0.25])
    for factor in (1.0, 1e38, np.nan):
        losses = LOSSES * [1, factor, 1]
        found = weigh(losses, [0.5, 0.0, 0.25], **hyperparameters)
        np.testing.assert_allclose(found[:, [0, 2]], expected, rtol=1e-5)
        np.testing.assert_array_equal(found[:, 1], 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: chebyshev(mu=0.0), "mu must be a number in"),
        (lambda: chebyshev(nadir={"a": 0.0}), "nadir must be a number in"),
        (lambda: chebyshev().update(jnp.ones(2), ()), "chebyshev needs `losses`"),
        (
            lambda: chebyshev(reference=jnp.ones(3)).update(
                jnp.ones(2), (), jnp.ones(2)
            ),
            "reference has shape",
        ),
    ],
)
def test_errors_say_what_to_do(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
