"""Convex quadratic functions on the non-negative orthant, for one and many slopes."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax._core.linalg import squared_norm
from dtp_jax.solvers._algebra import LIBRARY, Algebra
from dtp_jax.solvers._interior_point import interior_point

# Rounds of pivoting in a row that may fail to reduce the number of wrong signs, and
# iterations of conjugate gradients in one round and in all. Random problems of full
# rank take three to twelve rounds and 20 to 400 iterations; what takes more is left to
# the other method.
_PATIENCE = 5
_MAX_CG_ITERS = 60
_MAX_ALL_CG_ITERS = 400

# What an inequality without a solution may be missed by, relative to its multiplier,
# and what the rounding of multipliers may add to a squared length, relative to it.
_SOFTNESS = 1e-5
_ROUNDING = 2.0

# Rounds of exact solutions, which change the set of unknowns. One is usual.
_MAX_EXACT_ROUNDS = 3

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


def softened_quadratic(matrix: jax.Array, linear: jax.Array) -> jax.Array:
    """Minimizes ``x' A x / 2 + b' x`` over ``x >= 0``, also where there is no minimum.

    The minimum for ``A + softness I`` always exists. It is a start from which the
    entries that are not zero are solved for exactly. Where that leads nowhere, as where
    ``A x + b >= 0`` has no solution or rounding hides it, the start is the answer: it
    misses those inequalities by as little as possible in the sense of least squares. If
    its entries are so large that ``1 + x' A x`` is rounding, a larger softness bounds
    them.

    Args:
        matrix: ``A``, ``[T, T]``, positive semi-definite with a diagonal of ones.
        linear: ``b``, ``[T]``, of order one.

    Returns:
        ``[T]``.

    Example:
        >>> import jax.numpy as jnp
        >>> opposite = jnp.array([[1.0, -1.0], [-1.0, 1.0]])
        >>> x = softened_quadratic(opposite, jnp.array([0.5, -0.5]))
        >>> [round(entry, 4) for entry in x.tolist()]
        [0.0, 0.5]
        >>> x = softened_quadratic(opposite, jnp.array([-0.5, -0.5]))
        >>> [int(entry / 10) for entry in x.tolist()]  # 0.5 / 1.4e-3
        [36, 36]
    """
    eps = jnp.finfo(linear.dtype).eps
    one = jnp.eye(linear.size, dtype=matrix.dtype)

    def attempt(state: _Attempt) -> _Attempt:
        start = interior_point(matrix + state.softness * one, -linear)[0]
        x, solved = _settled(matrix, linear, start)
        size = 1 + squared_norm(matrix, x)
        bounded = eps * jnp.sum(x) ** 2 < _ROUNDING * size
        again = state.num_attempts > 0
        return _Attempt(
            x=x,
            softness=4 * jnp.sqrt(jnp.full_like(state.softness, eps)),
            done=solved | bounded | again,
            num_attempts=state.num_attempts + 1,
        )

    first = _Attempt(
        x=jnp.zeros_like(linear),
        softness=jnp.full((), _SOFTNESS, linear.dtype),
        done=jnp.zeros((), bool),
        num_attempts=jnp.zeros((), jnp.int32),
    )
    return jax.lax.while_loop(lambda state: ~state.done, attempt, first).x


class _Attempt(NamedTuple):
    x: jax.Array  # [T]
    softness: jax.Array  # [], of the next attempt
    done: jax.Array  # [], bool
    num_attempts: jax.Array  # [], int32


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
    matrix: jax.Array, linear: jax.Array, x: jax.Array, algebra: Algebra = LIBRARY
) -> tuple[jax.Array, jax.Array]:
    """Solves once more, exactly, and returns the better of both."""

    def residual(x: jax.Array) -> jax.Array:
        return _residual(x, algebra.product(matrix, x) + linear)

    solved = _exact(matrix, linear, x, algebra)
    before, after = residual(x), residual(solved)
    # A singular matrix has no factorization, and `after` is NaN.
    better = after < before
    return jnp.where(better, solved, x), jnp.where(better, after, before)


def _exact(
    matrix: jax.Array, linear: jax.Array, x: jax.Array, algebra: Algebra
) -> jax.Array:
    """Solves the linear equations of the entries that are not zero at a solution."""
    slope = algebra.product(matrix, x) + linear
    free = x > slope
    start = jnp.where(free, x, 0)
    solved = _solved(matrix, linear, start, free, 0.0, 2, algebra)
    return jnp.maximum(solved, 0)


def _solved(
    matrix: jax.Array,
    linear: jax.Array,
    x: jax.Array,
    free: jax.Array,
    ridge: jax.typing.ArrayLike,
    num_corrections: int,
    algebra: Algebra = LIBRARY,
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


class _Round(NamedTuple):
    x: jax.Array  # [T], the best so far
    violation: jax.Array  # [], of its conditions
    free: jax.Array  # [T], bool
    changed: jax.Array  # [], bool, whether that is another set than before
    num_rounds: jax.Array  # [], int32


def _settled(
    matrix: jax.Array, linear: jax.Array, start: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Exact solutions from an approximate one, and whether they lead anywhere."""
    eps = jnp.finfo(linear.dtype).eps
    ridge = 4 * eps * linear.size**0.5

    def slope(x: jax.Array) -> jax.Array:
        return jnp.matmul(matrix, x, precision="highest") + linear

    def violation(x: jax.Array) -> jax.Array:
        return jnp.max(jnp.abs(jnp.minimum(x, slope(x))))

    def unsettled(state: _Round) -> jax.Array:
        rounding = 4 * eps * (1 + jnp.sum(state.x))
        going = state.changed & (state.violation > rounding)
        return going & (state.num_rounds < _MAX_EXACT_ROUNDS)

    def iterate(state: _Round) -> _Round:
        x = jnp.where(state.free, state.x, 0)
        solved = _solved(matrix, linear, x, state.free, ridge, 3)
        free = jnp.where(state.free, solved > 0, slope(solved) < 0)
        solved = jnp.maximum(solved, 0)
        found = violation(solved)
        better = found < state.violation
        return _Round(
            x=jnp.where(better, solved, state.x),
            violation=jnp.where(better, found, state.violation),
            free=free,
            changed=jnp.any(free != state.free),
            num_rounds=state.num_rounds + 1,
        )

    before = violation(start)
    first = _Round(
        x=start,
        violation=before,
        free=start > slope(start),
        changed=jnp.ones((), bool),
        num_rounds=jnp.zeros((), jnp.int32),
    )
    end = jax.lax.while_loop(unsettled, iterate, first)
    # Entries that rounding made huge come no closer. Their size must not count in their
    # favour, so the violation is absolute.
    solved = end.violation < jnp.maximum(before / 4, 8 * eps)
    return jnp.where(solved, end.x, start), solved
