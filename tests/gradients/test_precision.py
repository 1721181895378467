"""Products of the library are exact to float32, whatever the precision of models.

All numbers are integers, and all sums below 2^24, so that float32 makes no error in any
order. A device's default may keep eleven digits of a factor, or eight.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import TaskGradients, task_gradients
from dtp_jax._core import linalg

# In each row one number of twelve binary digits, among small ones. Twice its square is
# still below 2^24.
ROWS = np.random.default_rng(0).integers(-1, 2, (4, 3, 700))
ROWS[np.arange(4), 0, np.arange(4)] = 2875
GRAMIAN = np.tensordot(ROWS, ROWS, axes=((1, 2), (1, 2)))


@pytest.mark.parametrize("precision", ["default", "bfloat16", None])
def test_a_gramian_of_given_gradients_is_exact(precision: str | None) -> None:
    def gramian(rows: jax.Array) -> jax.Array:
        return TaskGradients.from_stacked(rows).gramian()

    # None is what users get who set nothing.
    with jax.default_matmul_precision(precision):
        found = jax.jit(gramian)(jnp.asarray(ROWS, jnp.float32))
    np.testing.assert_array_equal(found, GRAMIAN)


def test_sums_and_columns_of_given_gradients_are_exact() -> None:
    rows, weights = jnp.asarray(ROWS, jnp.float32), np.array([2, -1, 0, 1])
    given = jnp.asarray(weights, jnp.float32)

    def combine(rows: jax.Array) -> jax.Array:
        return TaskGradients.from_stacked(rows).combine(given)

    with jax.default_matmul_precision("default"):
        total, column = jax.jit(combine)(rows), jax.jit(linalg.column_of)([rows], given)
    np.testing.assert_array_equal(total, np.tensordot(weights, ROWS, 1))
    np.testing.assert_array_equal(column, GRAMIAN @ weights)


@pytest.mark.parametrize("mode", ["unrolled", "switch", "vmap", "chunks", "map"])
def test_a_gramian_in_bfloat16_is_summed_in_float32(mode: Any) -> None:
    given = np.random.default_rng(1).integers(-15, 16, (4, 3, 700))
    rows = jnp.asarray(given, jnp.bfloat16)

    def losses_fn(params: jax.Array) -> jax.Array:
        # Without products of matrices, so that the gradients are the rows.
        return jnp.sum((params * rows).astype(jnp.float32), axis=(1, 2))

    make = task_gradients(losses_fn, gramian=mode)
    with jax.default_matmul_precision("default"):
        found = jax.jit(lambda params: make(params).gramian())(jnp.zeros_like(rows[0]))
    assert found.dtype == jnp.float32
    exact = np.tensordot(given, given, axes=((1, 2), (1, 2)))
    np.testing.assert_array_equal(found, exact)
