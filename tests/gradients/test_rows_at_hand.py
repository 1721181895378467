from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import TaskGradients, task_gradients
from dtp_jax._core.linalg import column_of
from dtp_jax.gradients import rows_at_hand

ROWS = {
    "x": jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 4)), jnp.float32),
    "y": jnp.asarray(np.random.default_rng(1).normal(size=(3, 5)), jnp.float32),
}
PARAMS = jax.tree.map(lambda leaf: leaf[0], ROWS)
SHARED = {"x": True, "y": False}


def linear_losses(params: Any) -> jax.Array:
    products = jax.tree.map(
        lambda rows, leaf: jnp.tensordot(rows, leaf, leaf.ndim), ROWS, params
    )
    return products["x"] + products["y"]


def test_stacked_rows_are_at_hand() -> None:
    gradients = TaskGradients.from_stacked(ROWS, shared=SHARED)
    found = rows_at_hand(gradients)
    assert found is not None
    (rows,) = found
    np.testing.assert_array_equal(rows, ROWS["x"])


def test_rows_of_the_gramian_are_at_hand_in_its_trace() -> None:
    gradients = task_gradients(linear_losses, shared=SHARED)(PARAMS)
    assert rows_at_hand(gradients) is None
    gradients.gramian()
    found = rows_at_hand(gradients)
    assert found is not None
    np.testing.assert_allclose(jnp.stack(found[0]), ROWS["x"], rtol=1e-6)
    weights = jnp.array([1.0, -2.0, 0.5])
    expected = gradients.gramian() @ weights
    np.testing.assert_allclose(column_of(found, weights), expected, rtol=1e-5)

    def elsewhere() -> jax.Array:
        assert rows_at_hand(gradients) is None
        return jnp.zeros(())

    jax.lax.cond(True, elsewhere, elsewhere)


@pytest.mark.parametrize("mode", ["switch", "vmap", "map", "columns"])
def test_other_ways_keep_no_rows(mode: Any) -> None:
    def step(params: Any) -> jax.Array:
        gradients = task_gradients(linear_losses, gramian=mode)(params)
        gramian = gradients.gramian()
        assert rows_at_hand(gradients) is None
        return gramian

    jax.eval_shape(step, PARAMS)
