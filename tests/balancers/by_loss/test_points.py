"""Losses of points are tasks by the thousand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax import task_gradients
from tests import devices, toys
from tests.toys import balance, balancers

NUM_POINTS = 10_000
RULES = {
    "causal": balancers.causal,
    "residual_attention": balancers.residual_attention,
    "self_adaptive": balancers.self_adaptive,
    "balanced_residual_decay": balancers.balanced_residual_decay,
}


def losses_fn(params: Any, x: jax.Array) -> jax.Array:
    hidden = jnp.tanh(x[:, None] * params["in"] + params["shift"])
    hidden = jnp.tanh(hidden @ params["middle"])
    return (hidden @ params["out"] - jnp.sin(x)) ** 2


def params_of() -> Any:
    rng = np.random.default_rng(0)
    shapes = {"in": (64,), "shift": (64,), "middle": (64, 64), "out": (64,)}
    return {
        name: jnp.asarray(rng.normal(size=shape) / 6, jnp.float32)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("name", RULES)
def test_ten_thousand_points_cost_a_plain_step(name: str) -> None:
    params, x = params_of(), jnp.linspace(-3.0, 3.0, NUM_POINTS)
    tx = optax.chain(balance(RULES[name](), NUM_POINTS), optax.adam(1e-3))
    plain = optax.adam(1e-3)

    def plain_step(params: Any, state: Any) -> Any:
        gradient = jax.grad(lambda p: jnp.mean(losses_fn(p, x)))(params)
        updates, state = plain.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    def step(params: Any, state: Any) -> Any:
        gradients: Any = task_gradients(losses_fn)(params, x)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    flops, memory = toys.cost(step, params, tx.init(params))
    of_plain = toys.cost(plain_step, params, plain.init(params))
    assert flops <= 1.01 * of_plain[0]
    assert memory <= 1.05 * of_plain[1]


@pytest.mark.parametrize("name", RULES)
def test_the_state_is_spread_as_the_points_are(name: str) -> None:
    balancer = RULES[name]()
    losses = np.linspace(0.0, 1e-3, NUM_POINTS, dtype=np.float32)

    @jax.jit
    def step(preferences: Any, losses: Any) -> Any:
        return balancer.update(preferences, balancer.init(losses), losses)

    given = (np.ones_like(losses), losses)
    alone, _ = step(*given)
    mesh = devices.mesh("points")
    with jax.set_mesh(mesh):
        weights, state = step(*jax.device_put(given, jax.P("points")))
    toys.assert_near(weights, alone, rtol=1e-6)
    for leaf in jax.tree.leaves((weights, state)):
        if leaf.shape == (NUM_POINTS,):
            assert len({str(shard.index) for shard in leaf.addressable_shards}) == 8
