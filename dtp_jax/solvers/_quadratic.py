"""Convex quadratic functions on the non-negative orthant, for one and many slopes."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax.solvers._algebra import LIBRARY, Algebra
from dtp_jax.solvers._interior_point import interior_point
from dtp_jax.solvers._kernel import by_platform, split_by_platform

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
        x, residual = by_platform(_one, (matrix, linears[0]), (None, 1))
        return x[None], residual[None]
    # A kernel works on all problems at the same time, each in a block of its own.
    x, residual = split_by_platform(
        _one, _together, (matrix, linears), (None, 1), (False, True)
    )
    return x, residual


def _one(matrix: jax.Array, linear: jax.Array, *, algebra: Algebra) -> list[jax.Array]:
    x = interior_point(matrix, -linear, algebra=algebra)[0]
    return list(_polished(matrix, linear, x, algebra))


def _together(matrix: jax.Array, linears: jax.Array) -> list[jax.Array]:
    """All problems in lock step, and what that leaves one by one."""
    end = _pivot(matrix, linears.T)

    def left(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        return jnp.any(state[2])

    # A loop and not a condition: under `vmap` it still runs only as often as needed.
    def solve_one(
        state: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        x, residual, unsettled = state
        k = jnp.argmax(unsettled)
        found, smaller = _one(matrix, linears[k], algebra=LIBRARY)
        better = smaller < residual[k]
        x = x.at[k].set(jnp.where(better, found, x[k]))
        residual = residual.at[k].set(jnp.where(better, smaller, residual[k]))
        return x, residual, unsettled.at[k].set(False)

    start = (jnp.maximum(end.x, 0).T, end.residual, ~end.done)
    x, residual, _ = jax.lax.while_loop(left, solve_one, start)
    return [x, residual]


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


def _pivot(matrix: jax.Array, linears: jax.Array) -> _Pivot:
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
        tolerance = eps * size(x)[None, :]
        wrong = jnp.where(free, x < 0, slope < -tolerance)
        num_wrong = jnp.sum(wrong, axis=0, dtype=jnp.int32)
        residual = _residual(jnp.maximum(x, 0), slope + product(jnp.maximum(-x, 0)))
        right = num_wrong == 0
        # Signs that stay right while the equations are solved further are the answer.
        done = state.done | (right & (residual <= 4 * eps))
        fewer = num_wrong < state.least
        patience = jnp.where(fewer, _PATIENCE, state.patience - 1)
        return _Pivot(
            x=jnp.where(going[None, :], x, state.x),
            free=free ^ (wrong & going[None, :]),
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
    return jax.lax.while_loop(unsettled, iterate, start)


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
        left = state.left - step[None, :] * image
        squared = jnp.where(going, jnp.sum(left**2, axis=0), state.squared)
        ratio = squared / jnp.where(going, state.squared, 1)
        return _Conjugate(
            x=state.x + step[None, :] * state.direction,
            left=left,
            direction=jnp.where(
                going[None, :], left + ratio[None, :] * state.direction, 0
            ),
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
    matrix: jax.Array, linear: jax.Array, x: jax.Array, algebra: Algebra
) -> tuple[jax.Array, jax.Array]:
    """Solves once more, exactly, and returns the better of both."""

    def residual(x: jax.Array) -> jax.Array:
        return _residual(x, algebra.product(matrix, x) + linear)

    solved = _exact(matrix, linear, x, algebra)
    before, after = residual(x), residual(solved)
    # A singular matrix has no factorization, and `after` is NaN. Where rounding is all
    # that is left of either, the solved one is better: its zeros are zeros.
    better = after <= jnp.maximum(before, jnp.finfo(x.dtype).eps)
    return jnp.where(better, solved, x), jnp.where(better, after, before)


def _exact(
    matrix: jax.Array, linear: jax.Array, x: jax.Array, algebra: Algebra
) -> jax.Array:
    """Solves the linear equations of the entries that are not zero at a solution."""
    slope = algebra.product(matrix, x) + linear
    free = x > slope
    start = jnp.where(free, x, 0)
    solved = solved_exactly(matrix, linear, start, free, 0.0, 2, algebra)
    return jnp.maximum(solved, 0)


def solved_exactly(
    matrix: jax.Array,
    linear: jax.Array,
    x: jax.Array,
    free: jax.Array,
    ridge: jax.typing.ArrayLike,
    num_corrections: int,
    algebra: Algebra,
) -> jax.Array:
    """Corrects the free entries of x until their slope is zero, the others being zero.

    With a ridge there is a factorization also if the equations are dependent; it
    shortens the corrections.
    """
    one = jnp.eye(x.size, dtype=bool)
    submatrix = jnp.where(free[:, None] & free[None, :] | one, matrix, 0)
    submatrix = submatrix + jnp.where(one, ridge, 0)
    factor = algebra.factor(submatrix)
    for _ in range(num_corrections):
        slope = algebra.product(matrix, x) + linear
        x = x - algebra.solve(factor, jnp.where(free, slope, 0))
    return x
