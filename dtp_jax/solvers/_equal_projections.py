"""The vector whose projections on the unit gradients are given."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg
from dtp_jax.solvers._algebra import Algebra
from dtp_jax.solvers._kernel import split_by_platform
from dtp_jax.solvers._pseudo_inverse import PseudoInverse, pseudo_inverse

# The pivots of a factorization from which on the correlations count as regular, and no
# eigenvalues are needed.
_MIN_PIVOT = 0.03

# The same where the gradients themselves can make good what the correlations lost.
_MIN_PIVOT_BEFORE_ROWS = 0.3

# How often the answer from the eigenvalues is corrected at most. What remains wrong
# falls to a thousandth each time, to a third where an eigenvalue hardly counts.
_MAX_CORRECTIONS = 8

# How often the gradients correct what a kernel found, which does not have them. They
# are read twice each time; to ask whether that is needed would ask the host.
_CORRECTIONS_BY_ROWS = 2

# The most tasks in a kernel, which holds four matrices in its registers.
_MAX_SIZE = 64

# Eigenvalues and pivots up to so many times rounding count as zero.
_ROUNDING = 8


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
    the size of rounding count as zero, which are those below some 1e-6 of the largest
    in float32. No derivative flows through the solution.

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
    return _solve(gramian, preferences, None)[0]


def attained_projections(
    gramian: jax.Array, preferences: jax.Array, rows: linalg.Rows | None = None
) -> tuple[jax.Array, jax.Array]:
    """What `equal_projections` finds, and the projections that it has.

    Args:
        gramian: As for `equal_projections`.
        preferences: As for `equal_projections`.
        rows: The gradients themselves as `linalg.column_of` takes them, where they are
            at hand. Where the correlations are ill-conditioned, they make good what is
            lost in its rounding: the error grows with the condition number of the unit
            gradients, not with that of the correlations, its square.

    Returns:
        The coefficients ``x`` and the projections ``<u_t, v>``, both ``[T]``; these are
        the preferences themselves if there is a vector that has them.
    """
    point, attained = _solve(gramian, preferences, rows)
    return point.coefficients, attained


@jax.jit
def _solve(
    gramian: jax.Array, preferences: jax.Array | None, rows: linalg.Rows | None
) -> tuple[EqualProjections, jax.Array]:
    """The answer, and the projections that it has."""
    gramian, preferences = linalg.subproblem(gramian, preferences)
    cosines, norms = linalg.correlation(gramian)
    one = jnp.eye(preferences.size, dtype=bool)
    cosines = jnp.where(one, 1, cosines)
    targets = jnp.where(norms > 0, preferences, 0)
    scale = linalg.positive(jnp.max(targets))
    targets = targets / scale
    inverse = jnp.where(norms > 0, 1 / linalg.positive(norms), 0)

    def by_cosines(x: jax.Array) -> jax.Array:
        return jnp.matmul(cosines, x, precision="highest")

    def by_rows(x: jax.Array) -> jax.Array:
        products = linalg.column_of(rows or [], inverse * x) * inverse
        # What is not active may hold NaN.
        return jnp.where(norms > 0, products, 0)

    by_library = functools.partial(
        _by_library, by_cosines if rows is None else by_rows, rows is not None
    )

    def with_rows(found: list[jax.Array]) -> list[jax.Array]:
        x, attained, *factors = found
        largest = jnp.max(jnp.abs(x))
        for _ in range(_CORRECTIONS_BY_ROWS):
            step = PseudoInverse(*factors).times(attained - by_rows(x))
            size = jnp.max(jnp.abs(step))
            # Where what counts as zero is not, corrections may grow.
            shrinks = size < largest / 2
            x = x + jnp.where(shrinks, step, 0)
            largest = jnp.where(shrinks, size, 0)
        return [x, attained]

    if targets.size > _MAX_SIZE:
        x, attained = by_library(cosines, targets)
    else:
        x, attained = split_by_platform(
            functools.partial(_by_pivots, keep=rows is not None),
            by_library,
            (cosines, targets),
            (0, 0),
            finish=None if rows is None else with_rows,
        )
    x = jnp.where(targets > 0, x, 0)
    missing = jnp.max(jnp.abs(by_cosines(x) - targets))
    residual = missing / jnp.maximum(jnp.max(jnp.abs(x)), 1)
    return EqualProjections(x * scale, residual), attained * scale


def _by_library(
    product: Callable[[jax.Array], jax.Array],
    has_rows: bool,
    cosines: jax.Array,
    targets: jax.Array,
) -> list[jax.Array]:
    factor = jnp.linalg.cholesky(cosines, symmetrize_input=False)
    # Where the factorization breaks down the pivots are NaN, and the test fails.
    least = _MIN_PIVOT_BEFORE_ROWS if has_rows else _MIN_PIVOT
    regular = jnp.all(jnp.diagonal(factor) > least)
    return jax.lax.cond(
        regular,
        lambda: [_by_factor(cosines, factor, targets), targets],
        lambda: _by_eigenvalues(cosines, targets, product),
    )


def _by_factor(cosines: jax.Array, factor: jax.Array, targets: jax.Array) -> jax.Array:
    x = jnp.zeros_like(targets)
    for _ in range(2):
        missing = targets - jnp.matmul(cosines, x, precision="highest")
        x = x + linalg.cholesky_solve(factor, missing)
    return x


def _by_eigenvalues(
    cosines: jax.Array,
    targets: jax.Array,
    product: Callable[[jax.Array], jax.Array],
) -> list[jax.Array]:
    """The answer where the correlations may be singular.

    Their eigenvectors start it, and `product`, a multiplication by the correlations
    that is as exact as can be, corrects it.
    """
    vectors, values = jax.lax.linalg.eigh(cosines, symmetrize_input=False)
    # What rounding adds to the eigenvalues: of the entries, and of the decomposition.
    noise = jnp.max(values) + targets.size**0.5
    kept = values > _ROUNDING * jnp.finfo(values.dtype).eps * noise
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)

    def solved(projections: jax.Array) -> jax.Array:
        parts = jnp.matmul(projections, vectors, precision="highest") * inverse
        return jnp.matmul(vectors, parts, precision="highest")

    return _corrected_answer(solved, jnp.all(kept), product, targets)


def _by_pivots(
    cosines: jax.Array, targets: jax.Array, *, keep: bool, algebra: Algebra
) -> list[jax.Array]:
    """The same by what a kernel has, and the pseudo-inverse with it if `keep`.

    Correlations filled up with zeros have as many zero rows as were added. Of the
    algebra that solvers get it needs nothing.
    """
    diagonal = cosines * jnp.eye(targets.size, dtype=cosines.dtype)
    num_tasks = jnp.sum(diagonal)
    # No eigenvalue is larger than a sum of absolute values.
    noise = jnp.max(jnp.sum(jnp.abs(cosines), axis=1)) + jnp.sqrt(num_tasks)
    eps = jnp.finfo(cosines.dtype).eps
    found = pseudo_inverse(cosines, _ROUNDING * eps * noise)
    regular = found.rank() == num_tasks.astype(jnp.int32)
    # The correlations still have what counts as zero. Corrections would blow it up.
    answer = _corrected_answer(found.times, regular, found.undone, targets)
    return [*answer, *found] if keep else answer


def _corrected_answer(
    solved: Callable[[jax.Array], jax.Array],
    regular: jax.Array,
    product: Callable[[jax.Array], jax.Array],
    targets: jax.Array,
) -> list[jax.Array]:
    # First the part of the targets that no vector has: it is orthogonal to all columns.
    # What is taken from it must be the projections of some vector, as products are. The
    # directions of small eigenvalues are that only roughly.
    beyond = _corrected(
        jnp.where(regular, 0, targets),
        lambda part: -product(solved(solved(product(part)))),
    )
    attained = targets - beyond
    x = _corrected(solved(attained), lambda x: solved(attained - product(x)))
    return [x, attained]


class _Correction(NamedTuple):
    x: jax.Array  # [T]
    size: jax.Array  # [], of the last correction
    size_before: jax.Array  # []
    num_iters: jax.Array  # [], int32


def _corrected(x: jax.Array, correction: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Adds corrections while they shrink and are more than rounding."""
    eps = jnp.finfo(x.dtype).eps

    def shrinking(state: _Correction) -> jax.Array:
        counts = state.size > eps * jnp.max(jnp.abs(state.x))
        shrinks = state.size < state.size_before / 2
        return counts & shrinks & (state.num_iters < _MAX_CORRECTIONS)

    def correct(state: _Correction) -> _Correction:
        step = correction(state.x)
        size = jnp.max(jnp.abs(step))
        return _Correction(state.x + step, size, state.size, state.num_iters + 1)

    largest = jnp.full((), jnp.finfo(x.dtype).max, x.dtype)
    start = _Correction(x, largest / 4, largest, jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(shrinking, correct, start).x
