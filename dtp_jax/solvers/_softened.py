"""A convex quadratic function on the non-negative orthant that may have no minimum."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax.solvers._algebra import Algebra, any_of
from dtp_jax.solvers._interior_point import interior_point
from dtp_jax.solvers._kernel import by_platform
from dtp_jax.solvers._quadratic import solved_exactly

# What an inequality without a solution may be missed by, relative to its multiplier,
# and what the rounding of multipliers may add to a squared length, relative to it.
_SOFTNESS = 1e-5
_ROUNDING = 2.0

# Rounds of exact solutions, which change the set of unknowns. One is usual.
_MAX_EXACT_ROUNDS = 3


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
    return by_platform(_solve, (matrix, linear), (None, 1))[0]


def _solve(
    matrix: jax.Array, linear: jax.Array, *, algebra: Algebra
) -> list[jax.Array]:
    eps = jnp.finfo(linear.dtype).eps
    one = jnp.eye(linear.size, dtype=matrix.dtype)

    def attempt(state: _Attempt) -> _Attempt:
        softened = matrix + state.softness * one
        start = interior_point(softened, -linear, algebra=algebra)[0]
        x, solved = _settled(matrix, linear, start, algebra)
        size = 1 + jnp.sum(x * algebra.product(matrix, x))
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
    return [jax.lax.while_loop(lambda state: ~state.done, attempt, first).x]


class _Attempt(NamedTuple):
    x: jax.Array  # [T]
    softness: jax.Array  # [], of the next attempt
    done: jax.Array  # [], bool
    num_attempts: jax.Array  # [], int32


class _Round(NamedTuple):
    x: jax.Array  # [T], the best so far
    violation: jax.Array  # [], of its conditions
    free: jax.Array  # [T], bool
    changed: jax.Array  # [], bool, whether that is another set than before
    num_rounds: jax.Array  # [], int32


def _settled(
    matrix: jax.Array, linear: jax.Array, start: jax.Array, algebra: Algebra
) -> tuple[jax.Array, jax.Array]:
    """Exact solutions from an approximate one, and whether they lead anywhere."""
    eps = jnp.finfo(linear.dtype).eps
    ridge = 4 * eps * linear.size**0.5

    def slope(x: jax.Array) -> jax.Array:
        return algebra.product(matrix, x) + linear

    def violation(x: jax.Array) -> jax.Array:
        return jnp.max(jnp.abs(jnp.minimum(x, slope(x))))

    def unsettled(state: _Round) -> jax.Array:
        rounding = 4 * eps * (1 + jnp.sum(state.x))
        going = state.changed & (state.violation > rounding)
        return going & (state.num_rounds < _MAX_EXACT_ROUNDS)

    def iterate(state: _Round) -> _Round:
        x = jnp.where(state.free, state.x, 0)
        solved = solved_exactly(matrix, linear, x, state.free, ridge, 3, algebra)
        free = jnp.where(state.free, solved > 0, slope(solved) < 0)
        solved = jnp.maximum(solved, 0)
        found = violation(solved)
        better = found < state.violation
        return _Round(
            x=jnp.where(better, solved, state.x),
            violation=jnp.where(better, found, state.violation),
            free=free,
            changed=any_of(free != state.free),
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
