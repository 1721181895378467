"""The largest worst gain of a task within a ball around the mean gradient."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg
from dtp_jax._core.checks import check_number
from dtp_jax.solvers._algebra import Algebra, all_of
from dtp_jax.solvers._kernel import by_platform

# Some six to ten iterations are usual, and forty the most seen in random draws whose
# rows spread over twelve decades. What has not settled by this number will not, and the
# residual says so.
_MAX_ITERS = 60

# The smallest ratio of a preference to the length of its row, relative to the largest.
_MIN_COST = 1e-15

# A smaller radius has the weights of this one.
_MIN_RADIUS = 1e-6


class CagradPoint(NamedTuple):
    """Result of `cagrad_problem`."""

    weights: jax.Array  # [T], on the simplex
    change: jax.Array  # [T], what the weights of the mean change by
    residual: jax.Array  # [], at least 0


def cagrad_problem(
    gramian: jax.Array,
    preferences: jax.Array | None = None,
    *,
    c: jax.typing.ArrayLike = 0.5,
) -> CagradPoint:
    """Raises the smallest gain of a row, near the weighted mean of the rows.

    With the mean ``g0 = sum_t p_t g_t / T`` over T active tasks, solves two problems
    that are dual to each other::

        max_d  min_t <g_t, d> / p_t                    norm(d - g0) <= c norm(g0)
        min_w  <g_w, g0> + c norm(g0) norm(g_w)        w >= 0, sum_t w_t = 1

    where ``g_w = sum_t w_t g_t / p_t``. If that is not zero, ``d = g0 + c norm(g0) g_w
    / norm(g_w)``. An interior-point method finds both answers at once, to rounding and
    whatever the lengths of the rows, in some eight Cholesky factorizations. Where
    several weightings will do, as with equal rows, it is one that spreads the weight.

    ``g_w`` is zero where the hull of some rows contains zero, as with opposite rows, so
    that none of them can gain without another's loss, while the ball reaches a ``d``
    without any loss. Then ``g_w`` does not say where to go, but ``d`` is found all the
    same; its weights may be a thousand times the usual, and mostly cancel.

    Zero rows gain and lose nothing: they get no weight, but count in the mean. If all
    rows are zero the weights are uniform. No derivative flows through the solution.

    Args:
        gramian: ``[T, T]``, the inner products of the rows ``g_t``.
        preferences: ``[T]``, at least 0; a task with zero leaves the problem, whatever
            its row of the Gramian holds. None for ones. A ratio ``p_t / norm(g_t)`` of
            less than 1e-15 of the largest counts as that.
        c: The radius of the ball, relative to ``norm(g0)``; at least 0. From 1 on the
            ball contains zero, and ``d`` is zero if no direction is without loss; for
            exactly 1 it is then less precise, with residuals up to 1e-3.

    Returns:
        The weights ``w``, in float32 or in float64 if the Gramian is, all zero if no
        task is active; the change, which makes ``d = sum_t (p_t / T + change_t) g_t``;
        and how much both miss optimality. This residual is the largest violation of the
        ball, of ``<g_t, d> >= v p_t`` for a common value v, divided by ``norm(g_t)``,
        or of the equality where there is weight, and the distance between the values of
        both problems, all relative to ``sum_t (p_t / T + change_t) norm(g_t)``.
        Rounding of the Gramian amounts to about one machine epsilon of it. NaN says
        that an entry of the Gramian is not finite.

    Raises:
        ValueError: If the shapes do not fit or c is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> rows = jnp.array([[4.0, 0.0], [0.0, 3.0]])  # norm(g0) is 2.5
        >>> point = cagrad_problem(rows @ rows.T, c=0.4)
        >>> [round(x, 4) for x in ((0.5 + point.change) @ rows).tolist()]
        [2.0, 2.5]

    References:
        Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS
        2021, section 3.1, for the problems. Mehrotra, "On the implementation of a
        primal-dual interior point method", SIAM Journal on Optimization 2(4), 1992, for
        the steps.
    """
    check_number("c", c, low=0, high=math.inf, open_high=True)
    return _solve(gramian, preferences, c)[0]


@jax.jit
def _solve(
    gramian: jax.Array, preferences: jax.Array | None, c: jax.typing.ArrayLike
) -> tuple[CagradPoint, jax.Array]:
    """The answer, and the number of iterations."""
    gramian, preferences = linalg.subproblem(gramian, preferences)
    dtype, num_tasks = preferences.dtype, preferences.size
    c = jax.lax.stop_gradient(jnp.asarray(c, dtype))
    active = preferences > 0
    num_active = linalg.positive(jnp.sum(active, dtype=dtype))
    cosines, norms = linalg.correlation(gramian)
    members = active & (norms > 0)
    cosines = jnp.where(jnp.eye(num_tasks, dtype=bool), 1, cosines)

    # Compilers turn two divisions into one by the product, which may underflow; a
    # product of two quotients they leave as it is.
    longest = linalg.positive(jnp.max(jnp.where(members, norms, 0)))
    largest = linalg.positive(jnp.max(jnp.where(members, preferences, 0)))
    inverse = jnp.where(members, longest / linalg.positive(norms), 0)
    relative = preferences * (1 / largest)

    # From here on the rows and their mean have length one. The coefficients of `g_w`
    # are then `y_t = w_t |g_t| / p_t`, up to a factor, with `r' y = 1`.
    mean = jnp.where(members, relative * (norms * (1 / longest)), 0)
    scale = linalg.positive(jnp.max(mean))
    mean = (mean / scale) * (1 / num_active)
    slopes = jnp.matmul(cosines, mean, precision="highest")
    size = jnp.sqrt(jnp.maximum(jnp.sum(mean * slopes), 0))
    slopes = jnp.clip(slopes / linalg.positive(size), -1, 1)
    r = inverse * (1 / linalg.positive(jnp.max(inverse))) * relative
    r = jnp.maximum(r / linalg.positive(jnp.max(r)), _MIN_COST)
    r = jnp.where(members, r, 0)
    # A task that is no member is on its own, gains enough and costs nothing.
    slopes = jnp.where(members, slopes, 1)
    r = jnp.where(jnp.any(members), r, 1)

    radius = jnp.maximum(c, _MIN_RADIUS)
    x, y, level, num_iters = by_platform(
        _interior_point,
        (cosines, slopes / (1 + radius), r, radius / (1 + radius)),
        (None, 1, 0, 0),
    )
    x, y = _trimmed(x, members), _trimmed(y, members)
    y = y / linalg.positive(jnp.sum(y))
    weights = y * r
    weights = jnp.where(
        jnp.any(members),
        weights / linalg.positive(jnp.sum(weights)),
        active / num_active,
    )
    change = (((c * size) * scale) * x) * inverse * largest

    turn = jnp.matmul(cosines, x, precision="highest")
    gains = slopes + radius * turn - (1 + radius) * level * r
    norm = jnp.sqrt(jnp.maximum(jnp.sum(x * turn), 0))
    both = linalg.squared_norm(cosines, y)
    distance = jnp.sqrt(jnp.maximum(both, 0)) - jnp.sum(y * turn)
    missing = [
        jnp.max(jnp.where(members, -gains, 0)),
        jnp.abs(jnp.sum(y * gains)),
        radius * jnp.maximum(norm - 1, 0),
        radius * jnp.abs(distance),
    ]
    # Without a mean there is no ball, and nothing to miss.
    sizes = jnp.sum(mean) + radius * size * jnp.sum(jnp.abs(x))
    residual = size * jnp.max(jnp.stack(missing)) / linalg.positive(sizes)
    return CagradPoint(weights, change, residual), num_iters


def _trimmed(values: jax.Array, members: jax.Array) -> jax.Array:
    # What is lost in the rounding of the sum stands for zero, which an interior point
    # never reaches.
    values = jnp.where(members, values, 0)
    sizes = jnp.abs(values)
    lost = sizes < jnp.finfo(values.dtype).eps / 16 * jnp.sum(sizes)
    return jnp.where(lost, 0, values)


class _Iterate(NamedTuple):
    x: jax.Array  # [T], the coefficients of the change, as a part of the ball
    y: jax.Array  # [T], positive, the weights
    slack: jax.Array  # [T], positive, what the gains are above the level
    room: jax.Array  # [], positive, half of what is left of the squared radius
    pull: jax.Array  # [], positive, the multiplier of the ball
    level: jax.Array  # []
    gap: jax.Array  # [], of both values, relative to the sum of y
    last_gap: jax.Array  # []
    ridge: jax.Array  # []
    num_iters: jax.Array  # [], int32


def _interior_point(
    cosines: jax.Array,
    slopes: jax.Array,
    r: jax.Array,
    share: jax.Array,
    *,
    algebra: Algebra,
) -> list[jax.Array]:
    """Maximizes the level of the gains.

    That is the largest ``level`` with ``slopes + share C x >= level r`` and ``x' C x <=
    1``. The conditions for ``y``, the multipliers of the gains, and ``pull``, that of
    the ball, are ``r' y = 1`` and ``C y = pull C x``; and each multiplier or what it
    multiplies is zero. Newton steps lead there from inside.
    """
    eps = jnp.finfo(r.dtype).eps
    num_tasks = r.shape[0]
    one = jnp.eye(num_tasks, dtype=bool)
    # A ridge of the size of rounding makes the rows independent, so that the solution
    # is unique and the change finite where zero is in the hull.
    matrix = jnp.where(one, 1 + 4 * eps, cosines)

    def product(x: jax.Array) -> jax.Array:
        return algebra.product(matrix, x)

    def missing(state: _Iterate) -> tuple[jax.Array, jax.Array, jax.Array]:
        image = product(state.x)
        excess = state.slack - (slopes + share * image - state.level * r)
        overshoot = state.room - (1 - jnp.sum(state.x * image)) / 2
        return image, excess, overshoot

    def unsettled(state: _Iterate) -> jax.Array:
        size = jnp.maximum(jnp.sum(jnp.abs(state.x)), 1)
        _, excess, overshoot = missing(state)
        relative = jnp.abs(excess) / (size + jnp.abs(state.level) * r)
        wrong = jnp.maximum(jnp.max(relative), jnp.abs(overshoot) / size**2)
        done = (state.gap < eps / 2**8) & (wrong < 4 * eps)
        stalled = state.gap > state.last_gap / 2
        done |= stalled & (state.gap < eps) & (wrong < 64 * eps)
        return ~done & (state.num_iters < _MAX_ITERS)

    def iterate(state: _Iterate) -> _Iterate:
        x, y, slack, room, pull, level, gap, last_gap, ridge, num_iters = state
        image, excess, overshoot = missing(state)
        total = 1 - jnp.sum(r * y)
        apart = y - pull * x
        ratios = slack / y
        diagonal = jnp.where(one, pull * ratios + share * ridge, 0)
        factor = algebra.factor(share * matrix + diagonal)
        if algebra.indexes:
            # One call of the library for both.
            columns = algebra.solve(factor, jnp.stack([ratios * x, r], axis=1))
            by_pull, by_level = columns[:, 0], columns[:, 1]
        else:
            by_pull = algebra.solve(factor, ratios * x)
            by_level = algebra.solve(factor, r)
        a11 = room + pull * jnp.sum(image * by_pull)
        a12 = -pull * jnp.sum(image * by_level)
        a21 = jnp.sum(r * (x - pull * by_pull))
        a22 = pull * jnp.sum(r * by_level)

        def newton(lack: jax.Array, ball_lack: jax.Array) -> "_Step":
            # The step that adds what the products lack and removes all errors.
            fixed = ratios * apart + lack / y + excess
            base = algebra.solve(factor, fixed)
            b1 = ball_lack + pull * (overshoot + jnp.sum(image * base))
            b2 = total + jnp.sum(r * (apart - pull * base))
            determinant = a11 * a22 - a12 * a21
            dpull = (b1 * a22 - a12 * b2) / determinant
            dlevel = (a11 * b2 - a21 * b1) / determinant
            dx = base - by_pull * dpull + by_level * dlevel
            turn = product(dx)
            # Each from the equation that is the more precise.
            dslack = share * turn - r * dlevel - excess
            dy = pull * dx + x * dpull - apart
            small = y < pull * slack
            dy, dslack = (
                jnp.where(small, (lack - y * dslack) / slack, dy),
                jnp.where(small, dslack, (lack - slack * dy) / y),
            )
            droom = (ball_lack - room * dpull) / pull
            return _Step(dx, dy, dslack, droom, dpull, dlevel, turn)

        def to_zero(values: jax.Array, steps: jax.Array) -> jax.Array:
            falling = steps < 0
            steps = jnp.where(falling, -steps, 1)
            return jnp.where(falling, values / steps, jnp.inf)

        def largest(step: "_Step") -> jax.Array:
            entries = jnp.minimum(to_zero(y, step.y), to_zero(slack, step.slack))
            ball = jnp.minimum(to_zero(room, step.room), to_zero(pull, step.pull))
            return jnp.minimum(jnp.min(entries), ball)

        # A trial step says how far the gap can fall, and how wrong its linear model is
        # (where it is short, less so). A gap that grew may be the start of a cycle: a
        # step towards equal products ends it.
        trial = newton(-y * slack, -pull * room)
        length = jnp.minimum(largest(trial), 1)
        mean = (jnp.sum(y * slack) + share * pull * room) / (num_tasks + 1)
        after = jnp.sum((y + length * trial.y) * (slack + length * trial.slack))
        ball = (pull + length * trial.pull) * (room + length * trial.room)
        after = (after + share * ball) / (num_tasks + 1)
        smallest = jnp.where(gap > last_gap, jnp.full_like(mean, 0.3), 0)
        ratio = jnp.maximum((after / mean) ** 3, smallest)
        # The floor keeps what tends to zero from underflowing.
        centre = jnp.maximum(ratio * mean, eps**2 * jnp.sum(y) / num_tasks)
        step = newton(
            centre - y * slack - length * trial.y * trial.slack,
            centre / share - pull * room - length * trial.pull * trial.room,
        )
        length = jnp.minimum(jnp.clip(1 - ratio, 0.9, 0.999) * largest(step), 1)
        # The ball is round, and its linear model worthless far away.
        squared = jnp.sum(x * image)
        limit = jnp.maximum(2, 1.5 * squared) - squared
        slope, curvature = jnp.sum(image * step.x), jnp.sum(step.x * step.turn)
        root = slope + jnp.sqrt(jnp.maximum(slope**2 + curvature * limit, 0))
        length = jnp.where(root > 0, jnp.minimum(length, limit / root), length)

        new_x = x + length * step.x
        new_y = y + length * step.y
        norm = jnp.sqrt(jnp.maximum(jnp.sum(new_y * product(new_y)), 0))
        new_slack = slack + length * step.slack
        new_room = room + length * step.room
        # At the solution `pull` is at least this norm.
        new_pull = jnp.maximum(pull + length * step.pull, 0.9 * norm)
        new_gap = jnp.sum(new_y * new_slack) + share * new_pull * new_room
        # A factorization that broke down is tried again with a larger ridge.
        good = jnp.isfinite(new_gap) & all_of(jnp.isfinite(new_x))
        new = _Iterate(
            x=new_x,
            y=new_y,
            slack=new_slack,
            room=new_room,
            pull=new_pull,
            level=level + length * step.level,
            gap=new_gap / jnp.sum(new_y),
            last_gap=gap,
            ridge=ridge,
            num_iters=num_iters + 1,
        )
        old = state._replace(
            last_gap=jnp.full_like(gap, jnp.inf),
            ridge=8 * ridge,
            num_iters=num_iters + 1,
        )
        return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)

    # Inside of all bounds, with equal products for all rows.
    infinite = jnp.full((), jnp.inf, r.dtype)
    level = jnp.min(jnp.where(r > 0, (slopes - 1) / linalg.positive(r), 0))
    slack = slopes - level * r
    y = 1 / slack
    y = y / jnp.sum(r * y)
    squared = jnp.maximum(jnp.sum(y * product(y)), 1e-4 * jnp.sum(y**2))
    pull = 2 * jnp.sqrt(squared)
    x = y / pull
    image = product(x)
    start = _Iterate(
        x=x,
        y=y,
        slack=slack + share * image,
        room=(1 - jnp.sum(x * image)) / 2,
        pull=pull,
        level=level,
        gap=infinite,
        last_gap=infinite,
        ridge=jnp.full((), 8 * eps, r.dtype),
        num_iters=jnp.zeros((), jnp.int32),
    )
    end = jax.lax.while_loop(unsettled, iterate, start)
    # A weight that vanishes says more precisely how small the change is.
    exact = end.y / end.pull
    close = jnp.abs(end.x - exact) <= 32 * eps * jnp.sum(exact)
    tail = close & (exact < end.slack)
    return [jnp.where(tail, exact, end.x), end.y, end.level, end.num_iters]


class _Step(NamedTuple):
    x: jax.Array  # [T]
    y: jax.Array  # [T]
    slack: jax.Array  # [T]
    room: jax.Array  # []
    pull: jax.Array  # []
    level: jax.Array  # []
    turn: jax.Array  # [T], the image of x
