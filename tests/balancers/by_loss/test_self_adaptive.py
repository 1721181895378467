from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax import task_gradients
from tests.balancers.sequences import LOSSES, over
from tests.toys import balance, balancers


@pytest.mark.parametrize("power", [1, 2, 4])
def test_multipliers_climb_their_losses(power: int) -> None:
    balancer = balancers.self_adaptive(
        optimizer=optax.sgd(1e-3), mask=lambda x: x**power, init_value=0.5
    )
    weights, state = over(balancer, LOSSES)
    multipliers = np.full(3, 0.5)
    for row, found in zip(LOSSES, weights, strict=True):
        np.testing.assert_allclose(found, multipliers**power, rtol=1e-5)
        multipliers = multipliers + 1e-3 * power * multipliers ** (power - 1) * row
    np.testing.assert_allclose(state.multipliers, multipliers, rtol=1e-5)


def test_one_joint_step_on_the_saddle() -> None:
    # Descent in the parameters and ascent in the multipliers of one function.
    x = jnp.linspace(-1.0, 1.0, 7)

    def losses_fn(params: Any) -> jax.Array:
        return (params[0] * x + params[1] * x**2 - 1) ** 2

    params, multipliers = jnp.array([0.3, -0.7]), jnp.linspace(0.2, 1.4, 7)
    balancer = balancers.self_adaptive(
        optimizer=optax.sgd(0.1), mask=jax.nn.sigmoid, init_value=multipliers
    )
    link = balance(balancer, 7)
    gradients = task_gradients(losses_fn)(params)
    updates, state = link.update(gradients, link.init(params), params)

    def saddle(params: Any, multipliers: jax.Array) -> jax.Array:
        return jnp.sum(jax.nn.sigmoid(multipliers) * losses_fn(params))

    down, up = jax.grad(saddle, argnums=(0, 1))(params, multipliers)
    np.testing.assert_allclose(updates, down, rtol=1e-5)
    found = state.balancer.multipliers
    np.testing.assert_allclose(found, multipliers + 0.1 * up, rtol=1e-5)


def test_adam_is_the_default_and_goes_up() -> None:
    _, state = over(balancers.self_adaptive(), LOSSES[:1])
    np.testing.assert_allclose(state.multipliers, 1.005, rtol=1e-5)


def test_points_that_are_not_in_the_step_keep_their_multiplier() -> None:
    losses = np.array([[1.0, 1.0, 1.0], [1.0, np.nan, 1.0], [1.0, 1.0, 1.0]])
    wanted = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    balancer = balancers.self_adaptive(optimizer=optax.sgd(0.1, 0.9), mask=lambda x: x)
    weights, state = over(balancer, losses, wanted)
    np.testing.assert_allclose(state.multipliers[2], 1.1, rtol=1e-6)
    assert state.multipliers[0] > state.multipliers[1] > state.multipliers[2]
    np.testing.assert_array_equal(weights > 0, wanted * np.isfinite(losses) > 0)


def test_a_thousand_steps_of_zero_and_huge_losses() -> None:
    losses = np.tile([[0.0, 1.0, 3e38]], (1000, 1))
    weights, state = over(balancers.self_adaptive(), losses)
    assert np.isfinite(weights).all()
    assert np.isfinite(state.multipliers).all()
    np.testing.assert_array_equal(weights[:, 0], 1)
    assert (np.diff(weights[:, 1:], axis=0) > 0).all()


def test_a_wrong_start() -> None:
    balancer = balancers.self_adaptive(init_value=jnp.ones(3))
    with pytest.raises(ValueError, match="init_value"):
        balancer.init(jnp.ones(4))
