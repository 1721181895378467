"""The equations of Nash-MTL and FairGrad."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg
from dtp_jax._core.checks import check_number
from dtp_jax.solvers._algebra import Algebra, all_of, any_of
from dtp_jax.solvers._interior_point import interior_point
from dtp_jax.solvers._kernel import by_platform

# Four iterations are usual and a dozen with nearly opposite rows; preferences or norms
# over many decades take some dozens. What has not settled by this number will not, and
# the residual says so.
_MAX_ITERS = 100

# The residual from which it is checked whether there is a solution at all.
_DOUBTFUL = 0.01


class NashPoint(NamedTuple):
    """Result of `nash_equation` and `fair_equation`."""

    weights: jax.Array  # [T], at least 0
    residual: jax.Array  # [], at least 0


def nash_equation(
    gramian: jax.Array, preferences: jax.Array | None = None
) -> NashPoint:
    """Weights of the Nash bargaining solution.

    Solves ``a_t (G a)_t = p_t`` for ``a > 0``: every task's part ``a_t g_t`` has the
    inner product ``p_t`` with the sum ``d = sum_t a_t g_t``. So ``|d|^2 = sum_t p_t``
    whatever the lengths of the rows. It is `fair_equation` for ``alpha = 1``, which
    says what the answer is where there is no solution.

    Args:
        gramian: ``[T, T]``, the inner products of the rows.
        preferences: ``[T]``, at least 0; a task with zero leaves the problem and gets
            the weight zero, whatever its row of the Gramian holds. None for ones.

    Returns:
        As from `fair_equation`.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> weights, residual = nash_equation(jnp.array([[4.0, 0.0], [0.0, 0.25]]))
        >>> [round(weight, 4) for weight in weights.tolist()]
        [0.5, 2.0]

    References:
        Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022, claim 3.1.
    """
    return fair_equation(gramian, preferences, alpha=1.0)


def fair_equation(
    gramian: jax.Array,
    preferences: jax.Array | None = None,
    *,
    alpha: jax.typing.ArrayLike = 1.0,
) -> NashPoint:
    """Weights of the alpha-fair direction.

    Solves ``a_t = p_t (G a)_t^(-alpha)`` for ``a > 0``. With ``s = 1 / alpha`` the
    solution is the minimum of the strictly convex function ``a' G a / 2 - sum_t p_t^s
    a_t^(1 - s) / (1 - s)``, where ``log a_t`` takes the place of the power for ``s =
    1``. So it is unique. It exists unless zero is in the convex hull of the rows.

    Newton's method finds it in about four Cholesky factorizations, with some more for
    nearly opposite rows or entries over many decades. No derivative flows through it.

    Args:
        gramian: ``[T, T]``, the inner products of the rows.
        preferences: ``[T]``, at least 0; a task with zero leaves the problem and gets
            the weight zero, whatever its row of the Gramian holds. None for ones.
        alpha: At least 0. The larger, the more a task counts that gains little. Zero
            has the solution ``a = p``, whatever the rows.

    Returns:
        The weights, in float32 or in float64 if the Gramian is; and the largest
        relative error of an equation, ``max_t |(a_t / p_t)^s (G a)_t - 1|``. Rounding
        of the weights alone amounts to one machine epsilon of the same with absolute
        values in place of the entries of the Gramian. That is much where rows are
        nearly opposite, or a task of small preference conflicts with the others.

        A zero row has no equation and gets the weight zero; so does a row whose own
        entry of the Gramian is not finite. NaN says that another entry is not. A weight
        that would be smaller than about 1e-30 of the others is zero, and its equation
        is not counted.

        If there is no solution, the residual is 1 and the weights are those of the
        shortest vector in the convex hull of the rows, taken as unit vectors. It is
        zero, and the weights have the sum 1. That is also the answer where rounding
        hides a solution: where some positive combination of unit vectors along the rows
        is shorter than four roots of machine epsilon (1.4e-3, or 6e-8 in float64) times
        the norm of its coefficients.

    Raises:
        ValueError: If the shapes do not fit, or `alpha` is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> gramian = jnp.array([[4.0, 0.0], [0.0, 0.25]])
        >>> weights, residual = fair_equation(gramian, alpha=2.0)
        >>> [round(weight, 4) for weight in weights.tolist()]
        [0.3969, 2.5198]

    References:
        Ban & Ji, "Fair Resource Allocation in Multi-Task Learning", ICML 2024, for the
        equation, there ``G w = w^(-1 / alpha)``.
    """
    check_number("alpha", alpha, low=0)
    gramian, preferences = linalg.subproblem(gramian, preferences)
    alpha = jnp.asarray(alpha, gramian.dtype)
    point = _solve(gramian, preferences, 1 / linalg.positive(alpha))[0]
    sums = jnp.where(jnp.diagonal(gramian) > 0, preferences, 0)
    at_the_end = NashPoint(sums, jnp.zeros_like(point.residual))
    return jax.tree.map(lambda a, b: jnp.where(alpha > 0, a, b), point, at_the_end)


@jax.jit
def _solve(
    gramian: jax.Array, preferences: jax.Array, s: jax.Array
) -> tuple[NashPoint, jax.Array]:
    """The answer, and the number of iterations."""
    cosines, norms = linalg.correlation(gramian)
    weights, residual, num_iters = by_platform(
        _solve_scaled, (gramian, cosines, norms, preferences, s), (0, 0, 0, 0, 0)
    )
    return NashPoint(weights, residual), num_iters


def _solve_scaled(
    gramian: jax.Array,
    cosines: jax.Array,
    norms: jax.Array,
    preferences: jax.Array,
    s: jax.Array,
    *,
    algebra: Algebra,
) -> list[jax.Array]:
    members = (preferences > 0) & (norms > 0)
    # In terms of `x_t = a_t |g_t|` the equation is `C x = y` with `y = c (x / c)^-s`,
    # where `c` would be the solution if all rows were orthogonal. Only the ratios of
    # its entries matter for the accuracy, so the largest is one.
    logs = (s * _log(preferences) + (s - 1) * _log(norms)) / (1 + s)
    largest = jnp.max(jnp.where(members, logs, -jnp.inf))
    largest = jnp.where(any_of(members), largest, 0)
    scales = jnp.exp(jnp.where(members, logs - largest, 0))
    end = _newton(cosines, scales, members, s, algebra)

    vanished = end.x <= _smallest(end.x.dtype)
    x = jnp.where(members & ~vanished, end.x * jnp.exp(largest), 0)
    weights = x / jnp.where(members, norms, 1)
    slopes = algebra.product(gramian, weights)
    ratios = weights / jnp.where(members, preferences, 1)
    misses = jnp.where(members & ~vanished, jnp.abs(ratios**s * slopes - 1), 0)
    residual = jnp.max(misses)
    # A large residual is the fault of rounding, or there is no solution because some of
    # the rows are opposite: then their entries grow until rounding hides their slopes.
    weights, residual = jax.lax.cond(
        end.lost | (residual > _DOUBTFUL),
        lambda: _unless_stationary(
            weights, residual, cosines, norms, end.lost, algebra
        ),
        lambda: (weights, residual),
    )
    return [weights, residual, end.num_iters]


class _Iterate(NamedTuple):
    x: jax.Array  # [T], positive
    change: jax.Array  # [], the largest relative change of an entry of x or y
    settled: jax.Array  # [], bool, whether x solved the equation, to rounding
    lost: jax.Array  # [], bool, whether x showed zero in the hull, to rounding
    ridge: jax.Array  # []
    num_iters: jax.Array  # [], int32


def _newton(
    cosines: jax.Array,
    scales: jax.Array,
    members: jax.Array,
    s: jax.Array,
    algebra: Algebra,
) -> _Iterate:
    """Solves ``C x = y`` with ``y = scales (x / scales)^-s`` for the members."""
    eps, smallest = jnp.finfo(scales.dtype).eps, _smallest(scales.dtype)
    diagonal = jnp.eye(scales.size, dtype=bool)
    sizes = jnp.abs(cosines)

    def unsettled(state: _Iterate) -> jax.Array:
        done = (state.change < jnp.sqrt(eps)) | state.settled | state.lost
        return ~done & (state.num_iters < _MAX_ITERS)

    def iterate(state: _Iterate) -> _Iterate:
        x = state.x
        y = jnp.where(members, scales * (x / scales) ** -s, 0)
        slopes = algebra.product(cosines, x)
        rounding = eps * algebra.product(sizes, x)
        settled = all_of(jnp.abs(slopes - y) <= 4 * rounding)

        squared = jnp.sum(x * slopes)
        shortest = _negligible(jnp.where(members, x, 0))
        lost = squared < shortest
        # The best multiple of `x` brings iterates that are far away closer. Near the
        # end its rounding would do harm.
        multiple = jnp.sum(x * y) / linalg.positive(jnp.maximum(squared, shortest))
        far = (state.change > 0.5) & (multiple > 0)
        multiple = jnp.where(far, multiple, 1) ** (1 / (1 + s))
        x, slopes = x * multiple, slopes * multiple
        y = jnp.minimum(y * multiple**-s, 1 / smallest)

        # Newton's step `x z` has `(C + s Y / X) x z = y - C x`. Scaled to a diagonal of
        # one, the matrix is at least as well conditioned as the problem. The ridge
        # keeps its factorization going, and does not change where the steps lead.
        share = jnp.sqrt(x / (x + s * y))
        matrix = share[:, None] * cosines * share[None, :]
        matrix = jnp.where(diagonal, 1 + state.ridge, matrix)
        factor = algebra.factor(matrix)
        z = algebra.solve(factor, share * (y - slopes)) * (share / x)

        # An entry that grows takes the step for `x`, one that falls the step for `y`,
        # which is `-s z` relative to `y`. So all stay positive at full length, also
        # where the right entry is smaller by decades.
        falling = jnp.minimum(z, 0)
        new = x * jnp.where(z > 0, 1 + z, (1 - s * falling) ** (-1 / s))
        new = jnp.maximum(new, smallest)
        change = jnp.max(jnp.abs(new / x - 1)) * jnp.maximum(s, 1)
        # A factorization that broke down is tried again with a larger ridge.
        good = all_of(jnp.isfinite(new))
        return _Iterate(
            x=jnp.where(good, new, x),
            change=jnp.where(good, change, jnp.inf),
            settled=settled,
            lost=lost,
            ridge=jnp.where(good, state.ridge, 8 * state.ridge),
            num_iters=state.num_iters + 1,
        )

    start = _Iterate(
        # NaN anywhere is NaN everywhere.
        x=scales + 0 * jnp.sum(cosines),
        change=jnp.full_like(s, jnp.inf),
        settled=s < 0,
        lost=s < 0,
        ridge=jnp.full_like(s, 8 * eps),
        num_iters=jnp.zeros_like(s, jnp.int32),
    )
    return jax.lax.while_loop(unsettled, iterate, start)


def _unless_stationary(
    weights: jax.Array,
    residual: jax.Array,
    cosines: jax.Array,
    norms: jax.Array,
    stationary: jax.Array,
    algebra: Algebra,
) -> tuple[jax.Array, jax.Array]:
    """The answer, or that of rows with zero in their hull if it is there."""
    members = norms > 0
    # Up to a factor, the minimum of `x' C x` with a sum of one. What is no member is
    # pushed towards zero.
    matrix = jnp.where(jnp.eye(members.size, dtype=bool), 1, cosines) + 1
    linear = jnp.where(members, jnp.ones_like(norms), -1)
    level = 1 / members.size
    x, _ = interior_point(
        matrix, linear, start=level, smallest_size=0.5, algebra=algebra
    )
    # What is lost in the rounding of the sum stands for zero, which the method never
    # reaches.
    x = jnp.where(members & (x > jnp.finfo(x.dtype).eps / 16 * jnp.sum(x)), x, 0)
    squared = jnp.sum(x * algebra.product(cosines, x))
    stationary |= squared < _negligible(x)
    smallest = jnp.min(jnp.where(members, norms, jnp.inf))
    shortest = x * jnp.where(members, smallest / jnp.where(members, norms, 1), 0)
    shortest = shortest / linalg.positive(jnp.sum(shortest))
    return (
        jnp.where(stationary, shortest, weights),
        jnp.where(stationary, 1, residual),
    )


def _negligible(x: jax.Array) -> jax.Array:
    """A squared norm of a sum of ``x_t`` times unit rows that is zero to rounding."""
    return 16 * jnp.finfo(x.dtype).eps * jnp.sum(x**2)


def _smallest(dtype: jax.typing.DTypeLike) -> jax.Array:
    """The smallest entry of an iterate, far enough from underflow."""
    return jnp.finfo(dtype).tiny * jnp.asarray(1e8, dtype)


def _log(values: jax.Array) -> jax.Array:
    return jnp.log(linalg.positive(values))
