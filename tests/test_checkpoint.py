from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from dtp_jax import dynamic_task_prioritization, task_gradients
from tests.saving import by_flax, by_orbax

PARAMS = {"w": jnp.array([0.5, -0.3, 0.8])}
BATCHES = jax.random.normal(jax.random.key(0), (6, 4, 3))
LINK = dynamic_task_prioritization(
    ["a", "b"], warmup_steps=1, stages={0: ["a"], 2: ["a", "b"]}, normalize="sum_to_T"
)
TX = optax.chain(LINK, optax.clip_by_global_norm(1.0), optax.adam(0.05))


def losses_fn(params: Any, x: jax.Array) -> dict[str, jax.Array]:
    out = x @ params["w"]
    return {"a": jnp.mean((out - 1.0) ** 2), "b": jnp.mean(out**2)}


@jax.jit
def step(params: Any, state: Any, x: jax.Array) -> Any:
    gradients = task_gradients(losses_fn)(params, x)
    kpis = {name: jnp.exp(-loss) for name, loss in gradients.losses.items()}
    updates, state = TX.update(gradients, state, params, kpis=kpis)
    return optax.apply_updates(params, updates), state


def train(carry: tuple[Any, Any], batches: jax.Array) -> tuple[Any, Any]:
    params, state = carry
    for x in batches:
        params, state = step(params, state, x)
    return params, state


@pytest.mark.parametrize("round_trip", [by_flax, by_orbax])
def test_training_continues_bit_for_bit(round_trip: Any, tmp_path: Path) -> None:
    middle = train((PARAMS, TX.init(PARAMS)), BATCHES[:3])
    expected = train(middle, BATCHES[3:])
    fresh = (PARAMS, TX.init(PARAMS))
    restored = round_trip(middle, fresh, tmp_path)
    chex.assert_trees_all_equal(restored, middle)
    chex.assert_trees_all_equal(train(restored, BATCHES[3:]), expected)
