from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax._core.balancer import transformation
from dtp_jax.balancers import uncertainty
from dtp_jax.balancers.by_loss import _average_losses
from tests import toys
from tests.balancers.sequences import LOSSES, over
from tests.toys import assert_near

average_losses: Any = _average_losses.average_losses


# Its weights are what it sees: the losses.
def seen(preferences: Any, losses: Any) -> Any:
    return losses


SEEN = optax.stateless(seen)


def remembers() -> Any:
    """Weights that are the sum of all losses seen, times the preferences."""

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        state = state + params
        return updates * state, state

    return transformation(jnp.zeros_like, update)


def test_decides_on_the_means_of_windows() -> None:
    found, state = over(average_losses(SEEN, 4), LOSSES)
    first, second = LOSSES[:4].mean(axis=0), LOSSES[4:8].mean(axis=0)
    expected = [np.ones(3)] * 3 + [first] * 4 + [second] * 3
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert int(state.step) == 2
    np.testing.assert_allclose(state.losses, LOSSES[8:].mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("num_tasks", [1, 64])
def test_the_state_after_a_thousand_steps(num_tasks: int) -> None:
    losses = np.random.default_rng(0).normal(size=(1000, num_tasks))
    found, state = over(average_losses(remembers(), 50), losses)
    means = losses.reshape(20, 50, num_tasks).mean(axis=1).cumsum(axis=0)
    assert_near(found[-1], means[-1], rtol=1e-3)
    assert_near(found[-2], means[-2], rtol=1e-3)
    assert_near(state.balancer, means[-1], rtol=1e-3)
    assert int(state.step) == 0
    assert not state.counts.any()


def test_windows_of_one_step_change_nothing() -> None:
    preferences = np.random.default_rng(0).uniform(0.5, 2, LOSSES.shape)
    preferences[3:6, 1] = 0
    inner = uncertainty(optimizer=optax.sgd(0.1))
    expected, expected_state = over(inner, LOSSES, preferences)
    found, state = over(average_losses(inner, 1), LOSSES, preferences)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    chex.assert_trees_all_close(state.balancer, expected_state, rtol=1e-6)


def test_missing_tasks_are_averaged_over_the_steps_they_have() -> None:
    losses = np.array([[1.0, 5, 9], [3, 7, 9], [2, 2, 9], [4, 6, 9], [8, 8, 8]])
    preferences = np.array([[1.0, 2, 0], [1, 0, 0], [1, 1, 0], [1, 3, 0], [0, 1, 6]])
    losses[1, 1] = np.nan
    found, _ = over(average_losses(remembers(), 2), losses, preferences)
    expected = [
        [1, 2, 0],  # no decision yet: the preferences
        [2, 0, 0],  # means (2, 5), but the second task is not active in this step
        [2, 10, 0],  # the last decision, with the preference of that window
        [2 + 3, (5 + 4) * 2, 0],
        [0, 18, 6],  # the third joins with its preference
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_task_that_misses_a_window_starts_again_with_its_preference() -> None:
    preferences = np.ones((6, 2))
    preferences[2:5, 1] = 0
    balancer = average_losses(optax.chain(SEEN, optax.ema(0.5)), 2)
    found, _ = over(balancer, LOSSES[:6, :2], preferences)
    assert (found[:, 0] > 0).all()
    np.testing.assert_array_equal(found[2:5, 1], 0)
    assert found[5, 1] not in (0, 1)  # The window that ends here has seen it.
    preferences[5] = 0
    found, _ = over(balancer, LOSSES[:6, :2], preferences)
    np.testing.assert_array_equal(found[5], 0)


def test_means_do_not_overflow() -> None:
    values = np.array([0.0, -1.0, 1e-30, 3.4e38, -3.4e38])
    found, state = over(average_losses(SEEN, 4), np.tile(values, (7, 1)))
    chex.assert_tree_all_finite(state)
    # A weight of zero would mean that the task was left out.
    expected = np.where(values == 0, 1e-30, values)
    np.testing.assert_allclose(found[3:], [expected] * 4, rtol=1e-5)
    signs = np.array([1, -1, 1, -1, -1, 1, 1])[:, None]
    found, _ = over(average_losses(SEEN, 4), signs * values)
    assert np.isfinite(found).all()


def test_the_length_may_be_traced_and_mapped() -> None:
    losses = jnp.asarray(LOSSES, jnp.float32)

    @jax.jit
    @jax.vmap
    def run(k: jax.Array) -> jax.Array:
        balancer = average_losses(SEEN, k)

        def step(state: Any, loss: jax.Array) -> Any:
            weights, state = balancer.update(jnp.ones(3), state, loss)
            return state, weights

        return jax.lax.scan(step, balancer.init(losses[0]), losses)[1]

    found = run(jnp.array([1, 4]))
    np.testing.assert_allclose(found[0], LOSSES, rtol=1e-6)
    np.testing.assert_allclose(found[1, 7:], [LOSSES[4:8].mean(axis=0)] * 3, rtol=1e-5)


def test_the_balancer_costs_nothing_in_between() -> None:
    """Its update is in a branch that is not taken; here it reads gradients."""
    balancer = average_losses(toys.equal_norms(), 3)
    steps = toys.random_steps(2)
    found = toys.weights_over(balancer, steps)
    norms = jnp.linalg.norm(steps.jacobians[2], axis=1)
    np.testing.assert_allclose(found[:2], 1)
    np.testing.assert_allclose(found[2:], jnp.tile(1 / norms, (3, 1)), rtol=1e-5)

    def one(state: Any, losses: jax.Array) -> Any:
        return average_losses(SEEN, 3).update(jnp.ones(2), state, losses)

    text = str(jax.make_jaxpr(one)(average_losses(SEEN, 3).init(jnp.ones(2)), norms))
    assert text.count("cond[") == 1


def test_errors_say_what_to_do() -> None:
    for k in (0, 1.5):
        with pytest.raises(ValueError, match="k must be an integer of at least 1"):
            average_losses(SEEN, k)
    with pytest.raises(TypeError, match=r"It is a function: call it, as in uncertaint"):
        average_losses(uncertainty, 2)
    ones = jnp.ones(2)
    balancer = average_losses(SEEN, 2)
    with pytest.raises(ValueError, match="average_losses needs `losses`"):
        balancer.update(ones, balancer.init(ones))
