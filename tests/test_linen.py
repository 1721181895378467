from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import core
from flax.training import train_state

from dtp_jax import balance, balancers, combine_losses, focal_weights, task_gradients
from dtp_jax.linen import TrainState
from tests.toys import assert_near

KPIS = {"left": 0.3, "right": 0.8}
X = jax.random.normal(jax.random.key(0), (16, 3))


class Model(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return nn.Dense(1, name="left")(x), nn.Dense(1, name="right")(x)


class State(TrainState):
    batch_stats: core.FrozenDict[str, Any] | dict[str, Any]


PARAMS = {"w": jnp.ones(2)}
SGD = optax.sgd(0.1)


def two_losses(params: Any) -> dict[str, jax.Array]:
    return {"left": jnp.sum(params["w"]), "right": jnp.sum(params["w"] ** 2)}


def make(tx: optax.GradientTransformation) -> State:
    model = Model()
    variables = model.init(jax.random.key(1), X, train=False)
    return State.create(
        apply_fn=model.apply,
        params=variables["params"],
        tx=tx,
        batch_stats=variables["batch_stats"],
    )


def losses_fn(params: Any, state: State) -> tuple[dict[str, jax.Array], Any]:
    key = jax.random.fold_in(jax.random.key(2), state.step)
    (left, right), changed = state.apply_fn(
        {"params": params, "batch_stats": state.batch_stats},
        X,
        train=True,
        rngs={"dropout": key},
        mutable=["batch_stats"],
    )
    losses = {"left": jnp.mean((left - 1) ** 2), "right": jnp.mean(right**2)}
    return losses, changed["batch_stats"]


def test_trains_as_the_plain_weighted_sum_does() -> None:
    @jax.jit
    def step(state: State) -> State:
        gradients, stats = task_gradients(losses_fn, has_aux=True)(state.params, state)
        return state.apply_gradients(grads=gradients, kpis=KPIS, batch_stats=stats)

    @jax.jit
    def plain_step(state: State) -> State:
        def total(params: Any) -> Any:
            losses, stats = losses_fn(params, state)
            return combine_losses(losses, focal_weights(KPIS)), stats

        gradient, stats = jax.grad(total, has_aux=True)(state.params)
        return state.apply_gradients(grads=gradient, batch_stats=stats)

    ours = make(optax.chain(balance(balancers.focal(), KPIS), optax.adam(0.1)))
    plain = make(optax.adam(0.1))
    for _ in range(3):
        ours, plain = step(ours), plain_step(plain)
    assert int(ours.step) == 3
    assert_near(ours.params, plain.params, rtol=1e-3)
    chex.assert_trees_all_close(ours.batch_stats, plain.batch_stats, rtol=1e-4)


def test_missing_kpis_are_an_error() -> None:
    state = make(optax.chain(balance(balancers.focal(), KPIS), optax.adam(0.1)))
    gradients, _ = task_gradients(losses_fn, has_aux=True)(state.params, state)
    with pytest.raises(ValueError, match="focal needs `kpis`"):
        state.apply_gradients(grads=gradients)


def test_the_train_state_of_flax_is_not_the_one() -> None:
    for tx in (optax.chain(balance(balancers.focal(), KPIS), optax.sgd(0.1)), SGD):
        state = train_state.TrainState.create(apply_fn=None, params=PARAMS, tx=tx)
        gradients: Any = task_gradients(two_losses)(state.params)
        with pytest.raises(TypeError, match=r"use dtp_jax.linen.TrainState.*kpis="):
            state.apply_gradients(grads=gradients, kpis=KPIS)
    link = balance(balancers.focal(), KPIS)
    state = train_state.TrainState.create(apply_fn=None, params=PARAMS, tx=link)
    stacked = task_gradients(two_losses)(state.params).stack()
    with pytest.raises(ValueError, match=r"kpis.*flax's own.*dtp_jax.linen.TrainSt"):
        state.apply_gradients(grads=stacked, kpis=KPIS)


def test_task_gradients_without_a_link() -> None:
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=SGD)
    gradients = task_gradients(two_losses)(state.params)
    with pytest.raises(ValueError, match="took a TaskGradients for a gradient"):
        state.apply_gradients(grads=gradients, kpis=KPIS)


def test_extra_arguments_reach_a_chain_that_takes_none() -> None:
    # A transformation of the old kind, whose update has no place for them.
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(lambda g: -0.1 * g, updates), state

    tx = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    state = make(tx)
    gradient = jax.tree.map(jnp.ones_like, state.params)
    state = state.apply_gradients(grads=gradient, kpis=KPIS)
    assert int(state.step) == 1
