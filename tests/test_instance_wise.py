"""Every example of a batch as a task of its own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import instance_wise
from dtp_jax import task_gradients
from tests import toys
from tests.toys import assert_near, balance, balancers

B, T = 6, 2
KEYS = jax.random.split(jax.random.key(0), 4)
PARAMS = {
    "w": jax.random.normal(KEYS[0], (3, 4)),
    "heads": jax.random.normal(KEYS[1], (4, T)),
}
X = jax.random.normal(KEYS[2], (B, 3))
Y = jax.random.normal(KEYS[3], (B, T))


def errors(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """The squared error of each example and each output, ``[..., T]``."""
    return (jnp.tanh(x @ params["w"]) @ params["heads"] - y) ** 2


def per_example(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.sum(errors(params, x, y), axis=-1)


@pytest.mark.parametrize(
    "mode", ["unrolled", "switch", "vmap", "chunks", "map", "columns"]
)
def test_a_vector_of_losses_has_the_gradients_of_its_examples(mode: Any) -> None:
    @jax.jit
    def ours(params: Any) -> Any:
        gradients = task_gradients(per_example, gramian=mode)(params, X, Y)
        return gradients.losses, gradients.stack(), gradients.gramian()

    losses, rows, gramian = ours(PARAMS)
    expected = jax.vmap(jax.grad(per_example), (None, 0, 0))(PARAMS, X, Y)
    np.testing.assert_allclose(losses, per_example(PARAMS, X, Y), rtol=1e-6)
    for name, leaf in expected.items():
        assert_near(rows[name], leaf, rtol=1e-4)
    flat = np.concatenate([leaf.reshape(B, -1) for leaf in expected.values()], axis=1)
    assert_near(gramian, flat @ flat.T, rtol=1e-4)


def test_mgda_over_the_examples_lets_no_loss_grow() -> None:
    link = balance(balancers.mgda(), B)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        gradients = task_gradients(per_example)(params, X, Y)
        return link.update(gradients, state, params)

    updates, state = step(PARAMS, link.init(PARAMS))
    assert state.task_weights.shape == (B,)
    np.testing.assert_allclose(state.task_weights.sum(), 1, rtol=1e-5)

    def along(example: tuple[jax.Array, jax.Array]) -> Any:
        gradient = jax.grad(per_example)(PARAMS, *example)
        return optax.tree.vdot(gradient, updates)

    slopes = jax.vmap(along)((X, Y))
    square = optax.tree.vdot(updates, updates)
    assert np.all(slopes >= square * (1 - 1e-3) - 1e-6)


def test_examples_times_outputs_in_a_dict() -> None:
    """Losses ``[B, T]`` next to a scalar: ``B T + 1`` tasks, weights of that shape."""

    def losses_fn(params: Any) -> dict[str, jax.Array]:
        return {"fit": errors(params, X, Y), "size": jnp.sum(params["w"] ** 2)}

    example = {"fit": jnp.zeros((B, T)), "size": 0.0}
    link = balance(toys.equal_norms(), example)
    mask = {"fit": jnp.ones((B, T), bool).at[2, 1].set(False), "size": True}

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        gradients = task_gradients(losses_fn, gramian="map")(params)
        return link.update(gradients, state, params, task_mask=mask)

    updates, state = step(PARAMS, link.init(PARAMS))
    rows = jax.jacrev(lambda params: errors(params, X, Y))(PARAMS)
    flat = {name: np.asarray(leaf).reshape(B * T, -1) for name, leaf in rows.items()}
    norms = np.sqrt(sum((leaf**2).sum(axis=1) for leaf in flat.values()))
    expected = (1 / norms).reshape(B, T)
    expected[2, 1] = 0
    np.testing.assert_allclose(state.task_weights["fit"], expected, rtol=1e-4)
    size = 2 * np.asarray(PARAMS["w"])
    of_fit = (expected.reshape(-1) @ flat["w"]).reshape(size.shape)
    total = of_fit + size / np.linalg.norm(size)
    assert_near(updates["w"], total, rtol=1e-3)


def test_the_benchmark_runs() -> None:
    rows = instance_wise.rows_of(2, ["columns"], rounds=1)
    assert [row[0] for row in rows] == ["plain", "vmap(grad)", "columns"]
