"""The point of smallest norm in the convex hull of the task gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg
from dtp_jax.solvers._algebra import Algebra
from dtp_jax.solvers._interior_point import interior_point
from dtp_jax.solvers._kernel import by_platform


class MinNormPoint(NamedTuple):
    """Result of `min_norm_point`."""

    weights: jax.Array  # [T], at least 0
    residual: jax.Array  # [], at least 0


def min_norm_point(
    gramian: jax.Array, preferences: jax.Array | None = None
) -> MinNormPoint:
    """Weights of the point of smallest norm in the convex hull of the rows.

    Computes ``argmin_w w' G w`` subject to ``w >= 0`` and ``sum_t p_t w_t = 1``, with
    preferences ``p``. For ``p = 1`` the weights lie on the simplex and
    ``d = sum_t w_t g_t`` is the point of the hull of the rows ``g_t`` that is nearest
    to zero. In general it is that of the hull of the rows ``g_t / p_t``.

    The answer is exact to rounding whatever the lengths of the rows: an interior-point
    method finds it in about eight Cholesky factorizations, and two tasks have a closed
    form. Where several weightings give the same ``d``, as with equal rows or more tasks
    than parameters, it is one that spreads the weight over all tasks it may; equal
    rows get equal weights. If rows are zero, ``d = 0`` and they alone get weight, in
    proportion to their preferences. So the weights are uniform if all rows are zero.

    No derivative flows through it.

    Args:
        gramian: ``[T, T]``, the inner products of the rows.
        preferences: ``[T]``, at least 0; a task with zero leaves the problem and gets
            the weight zero, whatever its row of the Gramian holds. None for ones.

    Returns:
        The weights, in float32 or in float64 if the Gramian is, all zero if no task
        has a preference; and how much they miss optimality,
        ``max_t (p_t |d|^2 - <g_t, d>) / (|g_t| sum_s w_s |g_s|)``, or zero if that is
        negative. Rounding of the Gramian amounts to about one machine epsilon of it;
        the cosine between ``d`` and a row is out by this times
        ``sum_s w_s |g_s| / |d|``. A larger residual means that rows are long and nearly
        opposite. A row whose own entry of the Gramian is not finite is left out; NaN
        says that another entry is not.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> rows = jnp.array([[2.0, 0.0], [0.0, 1.0], [3.0, 3.0]])
        >>> weights, residual = min_norm_point(rows @ rows.T)
        >>> [round(weight, 4) for weight in weights.tolist()]
        [0.2, 0.8, 0.0]

    References:
        Wolfe, "Finding the nearest point in a polytope", Mathematical Programming 11,
        1976, for the problem. Mehrotra, "On the implementation of a primal-dual
        interior point method", SIAM Journal on Optimization 2(4), 1992, for the steps.
    """
    return _solve(gramian, preferences)[0]


@jax.jit
def _solve(
    gramian: jax.Array, preferences: jax.Array | None
) -> tuple[MinNormPoint, jax.Array]:
    """The answer, and the number of iterations."""
    gramian, preferences = linalg.subproblem(gramian, preferences)
    dtype, num_tasks = preferences.dtype, preferences.size
    active = preferences > 0
    cosines, norms = linalg.correlation(gramian)
    # Zero rows, if any, are a problem of their own, in which they count as orthonormal.
    zero = active & (norms == 0)
    members = jnp.where(jnp.any(zero), zero, active)
    lengths = linalg.positive(norms)
    cosines = jnp.where(members[:, None] & members[None, :], cosines, 0)
    cosines = jnp.where(jnp.eye(num_tasks, dtype=bool), 1, cosines)

    # In terms of `x_t = w_t |g_t|` the problem is `min x' C x` with `r' x = 1`. Only
    # the ratios of `r = p / |g|` matter, so that nothing is squared or overflows.
    # Compilers turn two divisions into one by the product, which may underflow; a
    # product of two quotients they leave as it is.
    largest = linalg.positive(jnp.max(preferences))
    r = jnp.where(members, (preferences / largest) * (1 / lengths), 0)
    unit = linalg.positive(jnp.max(r))
    r = r / unit

    num_iters = jnp.zeros((), jnp.int32)
    if num_tasks == 1:
        x = jnp.ones_like(r)
    elif num_tasks == 2:
        x = _of_two(cosines[0, 1], r)
    else:
        x, num_iters = _interior_point(cosines, r, members)
    x = jnp.where(members, x, 0)
    # What is lost in the rounding of the sum stands for zero, which the method never
    # reaches.
    x = jnp.where(x < jnp.finfo(dtype).eps / 16 * jnp.sum(x), 0, x)
    x = x / linalg.positive(jnp.sum(r * x))

    products = jnp.matmul(cosines, x, precision="highest")
    violation = jnp.where(members, r * jnp.sum(x * products) - products, 0)
    residual = jnp.maximum(jnp.max(violation), 0) / linalg.positive(jnp.sum(x))
    weights = jnp.where(members, (x / (lengths * unit)) * (1 / largest), 0)
    return MinNormPoint(weights, residual), num_iters


def _of_two(cosine: jax.Array, r: jax.Array) -> jax.Array:
    # Two positive weights solve `C x = r` up to a factor. Otherwise the entry of the
    # longer row is negative: the foot of the perpendicular lies outside the hull.
    x = jnp.maximum(r - cosine * r[::-1], 0)
    # Both are zero for equal rows, where every weighting will do.
    return jnp.where(jnp.any(x > 0), x, 1)


def _interior_point(
    cosines: jax.Array, r: jax.Array, members: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Minimizes ``x' C x + (r' x - 1)^2`` over ``x >= 0``.

    Up to a factor that is the minimum of ``x' C x`` with ``r' x = 1``. Unlike that
    problem it stays bounded and well scaled where zero is in the hull.
    """
    num_tasks = r.shape[0]
    matrix = cosines + r[:, None] * r[None, :]
    # A task that is no member is on its own and pushed towards zero.
    linear = jnp.where(members, r, -1)
    # The best point with equal entries, unless it is too close to the boundary. The
    # solution has `r' x` of at least a half, hence a sum of no less.
    level = jnp.maximum(jnp.sum(r) / jnp.sum(matrix), 0.1 / num_tasks)
    x, num_iters = by_platform(_from_inside, (matrix, linear, level), (None, -1, 0))
    return x, num_iters


def _from_inside(
    matrix: jax.Array, linear: jax.Array, level: jax.Array, *, algebra: Algebra
) -> list[jax.Array]:
    end = interior_point(
        matrix, linear, start=level, smallest_size=0.5, algebra=algebra
    )
    return list(end)
