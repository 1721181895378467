"""Convex quadratic functions on the non-negative orthant, for one and many slopes."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax._core.linalg import cholesky_solve

# Some eight iterations are usual and twenty the most seen in random draws. What has not
# settled by this number will not, and the residual says so.
_MAX_INTERIOR_ITERS = 50

# How much of the way to the boundary a step goes at most.
_STEP = 0.999

# Rounds of pivoting in a row that may fail to reduce the number of wrong signs, and
# iterations of conjugate gradients in one round and in all. Random problems of full
# rank take three to twelve rounds and 20 to 400 iterations; what takes more is left to
# the other method.
_PATIENCE = 5
_MAX_CG_ITERS = 60
_MAX_ALL_CG_ITERS = 400

# How far the first round solves its linear equations, and each one more than the last,
# while the set of unknowns still changes.
_FIRST_ACCURACY = 0.03
_NEXT_ACCURACY = 0.3


def nonnegative_quadratic(
    matrix: jax.Array, linears: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Minimizes ``x' A x / 2 + b' x`` over ``x >= 0`` for many ``b`` at once.

    Pivots on the signs of ``x`` and of the slope ``A x + b``, all problems in lock step
    and with nothing but products of ``[T, T]`` matrices; what that does not settle,
    such as problems of a singular matrix, an interior-point method solves one by one.

    Args:
        matrix: ``A``, ``[T, T]``, positive semi-definite with a diagonal of ones.
        linears: The vectors ``b``, ``[K, T]``, of order one. A minimum exists if ``b``
            is in the range of ``A``; without one the residual is large.

    Returns:
        The solutions ``[K, T]``, and how much each misses optimality, ``[K]``: the
        largest ``|min(x, A x + b)|`` relative to ``1 + sum(x)``.

    Example:
        >>> import jax.numpy as jnp
        >>> x, _ = nonnegative_quadratic(jnp.eye(2), jnp.array([[-1.0, 2.0]]))
        >>> [round(entry, 4) for entry in x[0].tolist()]
        [1.0, 0.0]
    """
    if linears.shape[0] == 1:
        x = interior_point(matrix, -linears[0])[0]
        x, residual = _polished(matrix, linears[0], x)
        return x[None], residual[None]
    columns, residual, unsettled = _pivot(matrix, linears.T)

    def left(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        return jnp.any(state[2])

    # A loop and not a condition: under `vmap` it still runs only as often as needed.
    def solve_one(
        state: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        x, residual, unsettled = state
        k = jnp.argmax(unsettled)
        found = interior_point(matrix, -linears[k])[0]
        found, smaller = _polished(matrix, linears[k], found)
        better = smaller < residual[k]
        x = x.at[k].set(jnp.where(better, found, x[k]))
        residual = residual.at[k].set(jnp.where(better, smaller, residual[k]))
        return x, residual, unsettled.at[k].set(False)

    start = (columns.T, residual, unsettled)
    x, residual, _ = jax.lax.while_loop(left, solve_one, start)
    return x, residual


def interior_point(
    matrix: jax.Array,
    linear: jax.Array,
    *,
    start: jax.typing.ArrayLike = 0.5,
    smallest_size: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Minimizes ``x' A x / 2 - c' x`` over ``x >= 0``.

    With the slope ``y = A x - c``, the solution has ``x >= 0``, ``y >= 0`` and ``x y =
    0`` entry by entry. The method takes Newton steps towards that from inside.

    Args:
        matrix: ``A``, ``[T, T]``, positive semi-definite.
        linear: ``c``, ``[T]``, in the range of ``A``.
        start: The entries of ``x`` at the start.
        smallest_size: Of ``sum(x)``, to which all tolerances are relative.

    Returns:
        The solution, whose entries of zero are small positive numbers, and the number
        of iterations.
    """
    eps = jnp.finfo(linear.dtype).eps
    num_tasks = linear.shape[0]

    def slope(x: jax.Array) -> jax.Array:
        return jnp.matmul(matrix, x, precision="highest") - linear

    def size(x: jax.Array) -> jax.Array:
        return jnp.maximum(jnp.sum(x), smallest_size)

    def unsettled(state: _Iterate) -> jax.Array:
        excess = jnp.max(jnp.abs(state.excess)) / size(state.x)
        # The gap goes on falling long after the excess has reached rounding, except
        # where an entry and its slope are both zero.
        done = (state.gap < eps / 2**16) & (excess < 4 * eps)
        stalled = state.gap > state.last_gap / 2
        done |= stalled & (state.gap < eps) & (excess < 64 * eps)
        return ~done & (state.num_iters < _MAX_INTERIOR_ITERS)

    def iterate(state: _Iterate) -> _Iterate:
        x, y = state.x, state.y
        # The ridge keeps the factorization going where the rounded matrix is
        # indefinite. It shortens steps, but does not change where they lead.
        diagonal = jnp.where(jnp.eye(num_tasks, dtype=bool), y / x + state.ridge, 0)
        factor = jnp.linalg.cholesky(matrix + diagonal, symmetrize_input=False)

        def newton(target: jax.Array) -> tuple[jax.Array, jax.Array]:
            # The step towards `x y = target` and no excess.
            dx = cholesky_solve(factor, target / x - y - state.excess)
            return dx, (target - y * dx) / x - y

        # A trial step says how far the gap can fall, and how wrong its linear model is
        # (where it is short, less so). A gap that grew may be the start of a cycle: a
        # step towards equal products ends it.
        dx, dy = newton(jnp.zeros_like(x))
        step = jnp.minimum(_to_boundary(x, y, dx, dy), 1)
        mean = jnp.mean(x * y)
        after = jnp.mean((x + step * dx) * (y + step * dy))
        smallest = jnp.where(state.gap > state.last_gap, 0.3, 0)
        ratio = jnp.maximum((after / mean) ** 3, smallest)
        # The floor keeps what tends to zero from underflowing.
        centre = jnp.maximum(ratio * mean, eps**2)
        dx, dy = newton(centre - step * dx * dy)
        step = jnp.minimum(_STEP * _to_boundary(x, y, dx, dy), 1)

        # A factorization that broke down is tried again with a larger ridge.
        good = jnp.all(jnp.isfinite(dx)) & jnp.all(jnp.isfinite(dy))
        x = jnp.where(good, x + step * dx, x)
        y = jnp.where(good, y + step * dy, y)
        return _Iterate(
            x=x,
            y=y,
            excess=slope(x) - y,
            gap=jnp.sum(x * y) / size(x) ** 2,
            last_gap=jnp.where(good, state.gap, jnp.inf),
            ridge=jnp.where(good, state.ridge, 8 * state.ridge),
            num_iters=state.num_iters + 1,
        )

    x = jnp.full_like(linear, start)
    y = jnp.maximum(slope(x), 0.1)
    infinite = jnp.full((), jnp.inf, linear.dtype)
    first = _Iterate(
        x=x,
        y=y,
        excess=slope(x) - y,
        gap=infinite,
        last_gap=infinite,
        ridge=jnp.full((), 8 * eps, linear.dtype),
        num_iters=jnp.zeros((), jnp.int32),
    )
    end = jax.lax.while_loop(unsettled, iterate, first)
    return end.x, end.num_iters


class _Iterate(NamedTuple):
    x: jax.Array  # [T], positive
    y: jax.Array  # [T], positive, what the slope should be
    excess: jax.Array  # [T], the slope less y
    gap: jax.Array  # [], the product of x and y, relative to the size of x
    last_gap: jax.Array  # []
    ridge: jax.Array  # []
    num_iters: jax.Array  # [], int32


class _Pivot(NamedTuple):
    x: jax.Array  # [T, K]
    free: jax.Array  # [T, K], which entries are not held at zero
    residual: jax.Array  # [K]
    least: jax.Array  # [K], the fewest wrong signs so far
    patience: jax.Array  # [K], rounds left to have fewer
    exact: jax.Array  # [K], whether to solve for all digits
    done: jax.Array  # [K]
    accuracy: jax.Array  # [], to which the others are solved
    num_iters: jax.Array  # [], int32, of conjugate gradients


class _Conjugate(NamedTuple):
    x: jax.Array  # [T, K]
    left: jax.Array  # [T, K], the negative slope in the free entries
    direction: jax.Array  # [T, K]
    squared: jax.Array  # [K], the squared norm of what is left
    num_iters: jax.Array  # [], int32


def _pivot(
    matrix: jax.Array, linears: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Block principal pivoting, its linear equations by conjugate gradients.

    Each round solves ``A x + b = 0`` for the free entries, the others zero. Negative
    entries are then held at zero, entries of negative slope set free. If the equations
    are well conditioned, few rounds leave no sign wrong.
    """
    eps = jnp.finfo(linears.dtype).eps
    num_tasks, num_columns = linears.shape

    def product(x: jax.Array) -> jax.Array:
        return jnp.matmul(matrix, x, precision="highest")

    def size(x: jax.Array) -> jax.Array:
        return 1 + jnp.sum(jnp.abs(x), axis=0)

    def iterate(state: _Pivot) -> _Pivot:
        going = ~state.done & (state.patience > 0)
        free = state.free
        x = jnp.where(free, state.x, 0)
        left = jnp.where(free, -(product(x) + linears), 0)
        squared = jnp.sum(left**2, axis=0)
        loose = jnp.where(state.exact, 0, state.accuracy**2 * squared)
        goal = jnp.maximum(loose, (eps * size(x)) ** 2)
        goal = jnp.where(going, goal, jnp.inf)
        x, num_iters = _conjugate_gradients(product, free, x, left, goal)

        slope = product(x) + linears
        tolerance = eps * size(x)
        wrong = jnp.where(free, x < 0, slope < -tolerance)
        num_wrong = jnp.sum(wrong, axis=0, dtype=jnp.int32)
        residual = _residual(jnp.maximum(x, 0), slope + product(jnp.maximum(-x, 0)))
        right = num_wrong == 0
        # Signs that stay right while the equations are solved further are the answer.
        done = state.done | (right & (residual <= 4 * eps))
        fewer = num_wrong < state.least
        patience = jnp.where(fewer, _PATIENCE, state.patience - 1)
        return _Pivot(
            x=jnp.where(going, x, state.x),
            free=jnp.where(going, free ^ wrong, free),
            residual=jnp.where(going, residual, state.residual),
            least=jnp.minimum(num_wrong, state.least),
            patience=jnp.where(going, patience, state.patience),
            exact=right,
            done=done,
            accuracy=state.accuracy * _NEXT_ACCURACY,
            # The products beside those of the conjugate gradients count as one.
            num_iters=state.num_iters + num_iters + 1,
        )

    def unsettled(state: _Pivot) -> jax.Array:
        going = ~state.done & (state.patience > 0)
        return jnp.any(going) & (state.num_iters < _MAX_ALL_CG_ITERS)

    x = jnp.maximum(-linears, 0)
    start = _Pivot(
        x=x,
        free=linears < 0,
        residual=jnp.full((num_columns,), jnp.inf, linears.dtype),
        least=jnp.full((num_columns,), num_tasks + 1, jnp.int32),
        patience=jnp.full((num_columns,), _PATIENCE, jnp.int32),
        exact=jnp.zeros((num_columns,), bool),
        done=jnp.zeros((num_columns,), bool),
        accuracy=jnp.full((), _FIRST_ACCURACY, linears.dtype),
        num_iters=jnp.zeros((), jnp.int32),
    )
    end = jax.lax.while_loop(unsettled, iterate, start)
    return jnp.maximum(end.x, 0), end.residual, ~end.done


def _conjugate_gradients(
    product: Callable[[jax.Array], jax.Array],
    free: jax.Array,
    x: jax.Array,
    left: jax.Array,
    goal: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Improves ``x`` in its free entries until what is left is small, squared."""

    def unsettled(state: _Conjugate) -> jax.Array:
        return jnp.any(state.squared > goal) & (state.num_iters < _MAX_CG_ITERS)

    def iterate(state: _Conjugate) -> _Conjugate:
        image = jnp.where(free, product(state.direction), 0)
        curvature = jnp.sum(state.direction * image, axis=0)
        going = (curvature > 0) & (state.squared > goal)
        step = jnp.where(going, state.squared / jnp.where(going, curvature, 1), 0)
        left = state.left - step * image
        squared = jnp.where(going, jnp.sum(left**2, axis=0), state.squared)
        ratio = squared / jnp.where(going, state.squared, 1)
        return _Conjugate(
            x=state.x + step * state.direction,
            left=left,
            direction=jnp.where(going, left + ratio * state.direction, 0),
            squared=squared,
            num_iters=state.num_iters + 1,
        )

    squared = jnp.sum(left**2, axis=0)
    start = _Conjugate(x, left, left, squared, jnp.zeros((), jnp.int32))
    end = jax.lax.while_loop(unsettled, iterate, start)
    return end.x, end.num_iters


def _residual(x: jax.Array, slope: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(jnp.minimum(x, slope)), axis=0) / (1 + jnp.sum(x, axis=0))


def _polished(
    matrix: jax.Array, linear: jax.Array, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Solves once more, exactly, for the entries that are not zero."""

    def slope(x: jax.Array) -> jax.Array:
        return jnp.matmul(matrix, x, precision="highest") + linear

    free = x > slope(x)
    x = jnp.where(free, x, 0)
    one = jnp.eye(x.size, dtype=bool)
    submatrix = jnp.where(free[:, None] & free[None, :] | one, matrix, 0)
    factor = jnp.linalg.cholesky(submatrix, symmetrize_input=False)
    solved = x
    for _ in range(2):
        solved = solved - cholesky_solve(factor, jnp.where(free, slope(solved), 0))
    solved = jnp.where(free, jnp.maximum(solved, 0), 0)
    before, after = _residual(x, slope(x)), _residual(solved, slope(solved))
    # A singular matrix has no factorization, and `after` is NaN.
    better = after < before
    return jnp.where(better, solved, x), jnp.where(better, after, before)


def _to_boundary(x: jax.Array, y: jax.Array, dx: jax.Array, dy: jax.Array) -> jax.Array:
    values, steps = jnp.concatenate([x, y]), jnp.concatenate([dx, dy])
    falling = steps < 0
    return jnp.min(jnp.where(falling, values / jnp.where(falling, -steps, 1), jnp.inf))
