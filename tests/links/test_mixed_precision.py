"""Parameters and activations in bfloat16: what is computed in more than that."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax import combine_losses, combiners, task_gradients
from tests.toys import balance, balancers, dynamic_task_prioritization

NAMES = ("a", "b", "c")
KPIS = {"a": jnp.float32(0.3), "b": jnp.float32(0.7), "c": jnp.float32(0.9)}
KEYS = jax.random.split(jax.random.key(0), 6)
BATCH = jax.random.normal(KEYS[0], (64, 16), jnp.bfloat16)
TARGETS = dict(zip(NAMES, jax.random.normal(KEYS[1], (3, 64)), strict=True))
PARAMS = {
    "trunk": jax.random.normal(KEYS[2], (16, 300), jnp.bfloat16) / 4,
    # What is usually left in float32.
    "scale": jnp.ones(300),
    "heads": {
        name: jax.random.normal(key, (300,), jnp.bfloat16) / 16
        for name, key in zip(NAMES, KEYS[3:], strict=True)
    },
}
# By what each reads: KPIs, norms of gradients, their Gramian; and one that is no
# weighting.
LINKS: dict[str, Callable[[], Any]] = {
    "dynamic_task_prioritization": lambda: dynamic_task_prioritization(NAMES),
    "grad_norm": lambda: balance(balancers.grad_norm(), NAMES),
    "upgrad": lambda: balance(balancers.upgrad(), NAMES),
    "trimmed_mean": lambda: combiners.trimmed_mean(NAMES, num_trimmed=1),
}


def losses_fn(params: Any) -> dict[str, jax.Array]:
    hidden = BATCH @ params["trunk"] * params["scale"].astype(jnp.bfloat16)
    hidden = jax.nn.relu(hidden)
    assert hidden.dtype == jnp.bfloat16
    return {
        name: jnp.mean((hidden @ head - TARGETS[name]) ** 2)
        for name, head in params["heads"].items()
    }


def dtypes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.dtype, tree)


@functools.partial(jax.jit, static_argnums=0)
def update(link: Any, params: Any) -> Any:
    gradients = task_gradients(losses_fn)(params)
    return link.update(gradients, link.init(params), params, kpis=KPIS)


def flat(tree: Any) -> np.ndarray:
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves)


@functools.cache
def rows() -> np.ndarray:
    """``[T, P]``, the gradients as they are in bfloat16, in float64."""
    stack = jax.jit(lambda params: task_gradients(losses_fn)(params).stack())(PARAMS)
    assert dtypes(stack) == dtypes(PARAMS)
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(stack)]
    return np.concatenate([leaf.reshape(len(NAMES), -1) for leaf in leaves], axis=1)


@pytest.mark.parametrize("name", LINKS)
def test_a_step_in_bfloat16(name: str) -> None:
    tx = optax.chain(LINKS[name](), optax.adam(1e-2))

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        gradients = task_gradients(losses_fn)(params)
        updates, state = tx.update(gradients, state, params, kpis=KPIS)
        return updates, optax.apply_updates(params, updates), state

    state = tx.init(PARAMS)
    updates, params, after = step(PARAMS, state)
    assert dtypes(updates) == dtypes(params) == dtypes(PARAMS)
    # The link keeps nothing in less than float32, and no step changes a type.
    assert dtypes(after) == dtypes(state)
    kept = [leaf.dtype for leaf in jax.tree.leaves(after[0])]
    assert jnp.bfloat16 not in kept
    updates, params, after = step(params, after)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params))


def test_the_gramian_is_that_of_the_rows_summed_in_float32() -> None:
    gramian = jax.jit(lambda p: task_gradients(losses_fn)(p).gramian())(PARAMS)
    assert gramian.dtype == jnp.float32
    exact = rows() @ rows().T
    lengths = np.sqrt(np.diagonal(exact))
    # A sum in bfloat16 would miss by 4e-3 and more.
    error = np.abs(gramian - exact) / np.outer(lengths, lengths)
    assert np.max(error) < 1e-6


@pytest.mark.parametrize("name", ["dynamic_task_prioritization", "grad_norm"])
def test_one_backward_pass_is_that_of_plain_training(name: str) -> None:
    updates, state = update(LINKS[name](), PARAMS)
    weights = state.task_weights
    assert set(dtypes(weights).values()) == {jnp.dtype(jnp.float32)}

    @jax.jit
    def plain(params: Any) -> Any:
        return jax.grad(lambda p: combine_losses(losses_fn(p), weights))(params)

    for x, y in zip(*map(jax.tree.leaves, (updates, plain(PARAMS))), strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float32), y, rtol=2.0**-7)


def test_weights_and_sum_of_the_rows_in_bfloat16_are_those_of_float32() -> None:
    updates, state = update(LINKS["upgrad"](), PARAMS)
    weights = np.asarray(jax.tree.leaves(state.task_weights))
    assert weights.dtype == np.float32
    gramian = jnp.asarray(rows() @ rows().T, jnp.float32)
    np.testing.assert_allclose(
        weights, balancers.upgrad_weights(gramian), rtol=1e-5, atol=0
    )
    # Half a unit of the last of eight bits in the sum, and in the rows, of which one
    # program may leave out a rounding that another does.
    error = np.abs(flat(updates) - weights @ rows())
    assert np.all(error <= 2.0**-7 * (np.abs(weights) @ np.abs(rows())))


def test_a_combiner_trims_the_rows_as_they_are() -> None:
    updates, _ = update(LINKS["trimmed_mean"](), PARAMS)
    # Of three entries the middle one is left.
    np.testing.assert_allclose(flat(updates), np.median(rows(), axis=0), rtol=2.0**-7)
