"""Small linear algebra: by the library, or written out for one kernel."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg


class Algebra(NamedTuple):
    """What the solvers ask of matrices ``[T, T]``.

    Attributes:
        product: A matrix times a vector.
        factor: Prepares a positive definite matrix for `solve`. What is not positive
            definite gives NaN.
        solve: From what `factor` returns and a vector to the solution.
        indexes: Whether arrays may be made of constants, and indexed, for which there
            are no instructions in a kernel.
    """

    product: Callable[[jax.Array, jax.Array], jax.Array]
    factor: Callable[[jax.Array], jax.Array]
    solve: Callable[[jax.Array, jax.Array], jax.Array]
    indexes: bool


def all_of(conditions: jax.Array) -> jax.Array:
    """`jnp.all`, for which there is no instruction in a kernel."""
    return jnp.sum(conditions, dtype=jnp.int32) == conditions.size


def any_of(conditions: jax.Array) -> jax.Array:
    """`jnp.any`, for which there is no instruction in a kernel."""
    return jnp.sum(conditions, dtype=jnp.int32) > 0


def _library_product(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    return jnp.matmul(matrix, vector, precision="highest")


def _library_factor(matrix: jax.Array) -> jax.Array:
    return jnp.linalg.cholesky(matrix, symmetrize_input=False)


LIBRARY = Algebra(_library_product, _library_factor, linalg.cholesky_solve, True)


def _product(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    return jnp.sum(matrix * vector[None, :], axis=1)


def _places(size: int) -> tuple[jax.Array, jax.Array]:
    rows = jax.lax.broadcasted_iota(jnp.int32, (size, size), 0)
    columns = jax.lax.broadcasted_iota(jnp.int32, (size, size), 1)
    return rows, columns


def _factor(matrix: jax.Array) -> jax.Array:
    """Pivots on the diagonal, and below it the inverse of the unit factor ``L``."""
    size = matrix.shape[0]
    rows, columns = _places(size)
    index = jax.lax.broadcasted_iota(jnp.int32, (size,), 0)

    def eliminate(k: Any, m: jax.Array) -> jax.Array:
        row = jnp.sum(jnp.where(rows == k, m, 0), axis=0)
        pivot = jnp.sum(jnp.where(index == k, row, 0))
        inverse = jnp.where(pivot > 0, 1 / pivot, jnp.nan)
        # What is left of the matrix is symmetric, so its row is also its column.
        factors = jnp.where(index > k, row * inverse, 0)
        row = jnp.where(index == k, 1, row)
        m = jnp.where((columns == k) & (rows > k), 0, m)
        return m - factors[:, None] * row[None, :]

    return jax.lax.fori_loop(0, size, eliminate, matrix)


def _solve(factor: jax.Array, vector: jax.Array) -> jax.Array:
    rows, columns = _places(factor.shape[0])
    pivots = jnp.sum(jnp.where(rows == columns, factor, 0), axis=1)
    pivots = jnp.where(pivots > 0, pivots, jnp.nan)
    below = jnp.where(rows > columns, factor, 0)
    z = (vector + jnp.sum(below * vector[None, :], axis=1)) / pivots
    return z + jnp.sum(below * z[:, None], axis=0)


WRITTEN_OUT = Algebra(_product, _factor, _solve, False)
