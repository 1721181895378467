"""The vector whose projections on the unit gradients are given."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg

# The pivots of a factorization from which on the correlations count as regular, and no
# eigenvalues are needed.
_MIN_PIVOT = 0.03


class EqualProjections(NamedTuple):
    """Result of `equal_projections`."""

    coefficients: jax.Array  # [T], of the unit gradients
    residual: jax.Array  # [], at least 0


def equal_projections(
    gramian: jax.Array, preferences: jax.Array | None = None
) -> EqualProjections:
    """Finds the vector that points along all gradients to the same extent.

    With the unit gradients ``u_t = g_t / norm(g_t)``, computes the shortest vector
    ``v`` that has ``<u_t, v> = p_t``, or comes closest to that in the sense of least
    squares: ``v = sum_t x_t u_t`` with ``x = pinv(C) p`` and the correlations ``C``.

    Zero gradients have no direction and leave the problem. Eigenvalues of ``C`` below
    the size of rounding count as zero. No derivative flows through the solution.

    Args:
        gramian: ``[T, T]``, the inner products of the gradients ``g_t``.
        preferences: ``[T]``, the projections ``p``, at least 0; a task with zero leaves
            the problem. None for ones.

    Returns:
        The coefficients ``x``, in float32 or in float64 if the Gramian is; and the
        largest ``abs(<u_t, v> - p_t)``, relative to the largest preference or ``x``.
        Rounding amounts to about 1e-7 of it; otherwise no vector has these
        projections.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> rows = jnp.array([[2.0, 0.0], [3.0, 3.0]])
        >>> x = equal_projections(rows @ rows.T).coefficients
        >>> units = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
        >>> [round(projection, 4) for projection in (units @ (x @ units)).tolist()]
        [1.0, 1.0]
    """
    return _solve(gramian, preferences)


@jax.jit
def _solve(gramian: jax.Array, preferences: jax.Array | None) -> EqualProjections:
    gramian, preferences = linalg.subproblem(gramian, preferences)
    cosines, norms = linalg.correlation(gramian)
    one = jnp.eye(preferences.size, dtype=bool)
    cosines = jnp.where(one, 1, cosines)
    targets = jnp.where(norms > 0, preferences, 0)
    scale = linalg.positive(jnp.max(targets))
    targets = targets / scale
    factor = jnp.linalg.cholesky(cosines, symmetrize_input=False)
    # Where the factorization breaks down the pivots are NaN, and the test fails.
    regular = jnp.all(jnp.diagonal(factor) > _MIN_PIVOT)
    x = jax.lax.cond(regular, _by_factor, _by_eigenvalues, cosines, factor, targets)
    x = jnp.where(targets > 0, x, 0)
    missing = jnp.matmul(cosines, x, precision="highest") - targets
    size = jnp.maximum(jnp.max(jnp.abs(x)), 1)
    return EqualProjections(x * scale, jnp.max(jnp.abs(missing)) / size)


def _by_factor(cosines: jax.Array, factor: jax.Array, targets: jax.Array) -> jax.Array:
    x = jnp.zeros_like(targets)
    for _ in range(2):
        missing = targets - jnp.matmul(cosines, x, precision="highest")
        x = x + linalg.cholesky_solve(factor, missing)
    return x


def _by_eigenvalues(
    cosines: jax.Array, factor: jax.Array, targets: jax.Array
) -> jax.Array:
    del factor
    vectors, values = jax.lax.linalg.eigh(cosines, symmetrize_input=False)
    # What rounding adds to the eigenvalues: of the entries, and of the decomposition.
    noise = jnp.max(values) + targets.size**0.5
    kept = values > 8 * jnp.finfo(values.dtype).eps * noise
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
    parts = jnp.matmul(targets, vectors, precision="highest") * inverse
    return jnp.matmul(vectors, parts, precision="highest")
