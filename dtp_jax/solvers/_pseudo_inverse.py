"""The pseudo-inverse of correlations without a library: by pivots, for one kernel."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class PseudoInverse(NamedTuple):
    """``(L L')^+`` with ``L = Q R``, kept as ``Q`` and the inverse of ``R``.

    All are ``[T, T]``. There are as many columns of L and Q as the rank; the others are
    zero, and are the last.
    """

    basis: jax.Array  # Q, orthonormal to rounding times the root of the condition
    inverse: jax.Array  # of R, upper triangular
    factor: jax.Array  # L

    def undone(self, vector: jax.Array) -> jax.Array:
        """The matrix that was inverted, ``L L'``, times a vector ``[T]``."""
        parts = jnp.sum(self.factor * vector[:, None], axis=0)
        return jnp.sum(self.factor * parts[None, :], axis=1)

    def times(self, vector: jax.Array) -> jax.Array:
        """The pseudo-inverse times a vector ``[T]``."""
        parts = jnp.sum(self.basis * vector[:, None], axis=0)
        parts = jnp.sum(self.inverse * parts[None, :], axis=1)
        parts = jnp.sum(self.inverse * parts[:, None], axis=0)
        return jnp.sum(self.basis * parts[None, :], axis=1)

    def rank(self) -> jax.Array:
        """The number of columns, int32."""
        lengths = jnp.sum(jnp.abs(self.basis), axis=0)
        return jnp.sum(lengths > 0, dtype=jnp.int32)


def pseudo_inverse(matrix: jax.Array, tolerance: jax.Array) -> PseudoInverse:
    """Prepares multiplications by the pseudo-inverse of a matrix.

    A factorization ``L L'`` by pivots, the largest first, ends where what is left is
    rounding; its columns are then made orthonormal. Both need no more than a kernel
    has: no indexing, and sums in place of products of matrices.

    Args:
        matrix: ``[T, T]``, positive semi-definite.
        tolerance: ``[]``, the size of eigenvalues up to which they count as zero. They
            are judged by quotients ``y' A y / y' y`` of vectors that make them small.

    Returns:
        The pseudo-inverse of a matrix that is as close as that, to rounding times the
        root of its condition number.

    Example:
        >>> import jax.numpy as jnp
        >>> matrix = jnp.array([[2.0, 2.0], [2.0, 2.0]])
        >>> found = pseudo_inverse(matrix, jnp.array(1e-6))
        >>> int(found.rank())
        1
        >>> [round(entry, 4) for entry in found.times(jnp.array([4.0, 0.0])).tolist()]
        [0.5, 0.5]
    """
    size = matrix.shape[0]
    index = jax.lax.broadcasted_iota(jnp.int32, (size,), 0)
    rows = jax.lax.broadcasted_iota(jnp.int32, (size, size), 0)
    columns = jax.lax.broadcasted_iota(jnp.int32, (size, size), 1)

    def factor(k: Any, state: tuple[jax.Array, jax.Array, jax.Array]) -> Any:
        left, vectors, lower = state
        # Row t of the vectors, y, has a one at t, and the product ``y' A y`` is what is
        # left of the diagonal there.
        diagonal = jnp.sum(jnp.where(rows == columns, left, 0), axis=1)
        quotients = diagonal / jnp.sum(vectors**2, axis=1)
        largest = jnp.max(quotients)
        # The first of those that are equal.
        chosen = index == jnp.min(jnp.where(quotients >= largest, index, size))
        pivot = jnp.sum(jnp.where(chosen, diagonal, 0))
        counts = largest > tolerance
        inverse = jnp.where(counts, jax.lax.rsqrt(jnp.where(counts, pivot, 1)), 0)
        column = jnp.sum(jnp.where(chosen[None, :], left, 0), axis=1) * inverse
        vector = jnp.sum(jnp.where(chosen[:, None], vectors, 0), axis=0) * inverse
        left = left - column[:, None] * column[None, :]
        # Nothing is left of the row that was chosen, not even rounding.
        left = jnp.where(chosen[:, None] | chosen[None, :], 0, left)
        others = jnp.where(chosen, 0, column)
        vectors = vectors - others[:, None] * vector[None, :]
        return left, vectors, jnp.where(columns == k, column[:, None], lower)

    def orthonormal(k: Any, state: tuple[jax.Array, jax.Array]) -> Any:
        basis, inverse = state
        column = jnp.sum(jnp.where(columns == k, basis, 0), axis=1)
        beside = jnp.sum(jnp.where(columns == k, inverse, 0), axis=1)
        squared = jnp.sum(column**2)
        scale = jnp.where(squared > 0, jax.lax.rsqrt(jnp.maximum(squared, 1e-30)), 0)
        column, beside = column * scale, beside * scale
        # What the later columns have of this one, taken from them.
        shares = jnp.sum(column[:, None] * basis, axis=0)
        shares = jnp.where(index > k, shares, 0)
        basis = basis - column[:, None] * shares[None, :]
        inverse = inverse - beside[:, None] * shares[None, :]
        here = columns == k
        return (
            jnp.where(here, column[:, None], basis),
            jnp.where(here, beside[:, None], inverse),
        )

    nothing = jnp.zeros_like(matrix)
    one = jnp.where(rows == columns, jnp.ones_like(matrix), 0)
    *_, lower = jax.lax.fori_loop(0, size, factor, (matrix, one, nothing))
    basis, inverse = jax.lax.fori_loop(0, size, orthonormal, (lower, one))
    return PseudoInverse(basis, inverse, lower)
