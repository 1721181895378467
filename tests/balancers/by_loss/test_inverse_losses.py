from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax.balancers import InverseLossesState
from tests.toys import balance, balancers

LOSSES = jnp.array([[4.0, 0.5, 100.0], [2.0, 0.25, 300.0], [1.0, 0.1, 50.0]])


def run(balancer: Any, losses: Any, preferences: Any = None) -> tuple[np.ndarray, Any]:
    state, found = balancer.init(losses[0]), []
    for index, row in enumerate(losses):
        wanted = jnp.ones(3) if preferences is None else preferences[index]
        weights, state = balancer.update(wanted, state, row)
        found.append(weights)
    return np.array(found), state


@pytest.mark.parametrize("num_steps", [1, 2, 3, 10])
def test_one_over_the_mean_of_the_first_losses(num_steps: int) -> None:
    found, state = run(balancers.inverse_losses(num_steps=num_steps), LOSSES)
    for step in range(3):
        first = np.asarray(LOSSES[: min(step + 1, num_steps)])
        np.testing.assert_allclose(found[step], 1 / first.mean(0), rtol=1e-6)
    assert state.counts.tolist() == [min(3, num_steps)] * 3


def test_magnitudes_count_and_zero_divides_by_the_least() -> None:
    losses = jnp.array([[-4.0, 0.0, 2.0]])
    found, _ = run(balancers.inverse_losses(), losses)
    np.testing.assert_allclose(found[0], [0.25, 1 / 4e-12, 0.5], rtol=1e-5)
    nothing, _ = run(balancers.inverse_losses(), jnp.zeros((1, 3)))
    np.testing.assert_array_equal(nothing[0], 1)


def test_masked_and_non_finite_steps_do_not_count() -> None:
    losses = LOSSES.at[1, 0].set(jnp.nan)
    wanted = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    found, state = run(balancers.inverse_losses(num_steps=2), losses, wanted)
    # The third task joins at the second step, with its own first losses.
    assert found[0, 2] == found[1, 0] == 0
    np.testing.assert_allclose(found[1, 2], 1 / 300, rtol=1e-6)
    np.testing.assert_allclose(found[2], [1 / 2.5, 1 / 0.375, 1 / 175], rtol=1e-6)
    assert state.counts.tolist() == [2, 2, 2]


def test_preferences_multiply() -> None:
    wanted = jnp.broadcast_to(jnp.array([2.0, 0.5, 1.0]), (3, 3))
    plain, _ = run(balancers.inverse_losses(), LOSSES)
    found, _ = run(balancers.inverse_losses(), LOSSES, wanted)
    np.testing.assert_allclose(found, wanted * plain, rtol=1e-6)


def test_the_weighted_losses_start_at_one_in_a_chain_with_focal() -> None:
    chain = optax.chain(
        balancers.inverse_losses(num_steps=1),
        balancers.focal(gamma=0.0),
        balancers.normalize_weights(),
    )
    link = balance(chain, 3)
    gradients = jnp.eye(3)
    _, state = link.update(
        gradients,
        link.init(jnp.ones(3)),
        jnp.ones(3),
        losses=LOSSES[0],
        kpis=jnp.full(3, 0.5),
    )
    weighted = np.asarray(state.task_weights * LOSSES[0])
    np.testing.assert_allclose(weighted, weighted[0], rtol=1e-6)


def test_means_do_not_overflow() -> None:
    losses = jnp.full((3, 3), 3e38)
    _, state = run(balancers.inverse_losses(), losses)
    np.testing.assert_allclose(state.means, 3e38, rtol=1e-6)
    assert isinstance(state, InverseLossesState)


@pytest.mark.parametrize("num_steps", [0, 1.5, -1])
def test_wrong_number_of_steps(num_steps: Any) -> None:
    with pytest.raises(ValueError, match="num_steps must be an integer"):
        balancers.inverse_losses(num_steps=num_steps)
    with pytest.raises(ValueError, match="inverse_losses needs `losses`"):
        balancers.inverse_losses().update(jnp.ones(2), jax.eval_shape(lambda: 0))
