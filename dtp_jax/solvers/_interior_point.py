"""A convex quadratic function on the non-negative orthant, from inside."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax.solvers._algebra import LIBRARY, Algebra, all_of

# Some nine iterations are usual and 35 the most seen in random draws. What has not
# settled by this number will not, and the residual says so.
_MAX_INTERIOR_ITERS = 60

# How much of the way to the boundary a step goes at most, and the parts of it that are
# tried one after the other until no product falls below this share of their mean.
# Without that bound one step in some 10,000 problems leads into a cycle.
_STEP = 0.999
_PARTS = (1.0, 0.9, 0.75, 0.5, 0.25, 0.1)
_MIN_SHARE = 1e-3

# Iterations in a row that may fail to halve the least gap so far. Fewer take one short
# step for the end.
_INTERIOR_PATIENCE = 4


def interior_point(
    matrix: jax.Array,
    linear: jax.Array,
    *,
    start: jax.typing.ArrayLike = 0.5,
    smallest_size: float = 1.0,
    algebra: Algebra = LIBRARY,
) -> tuple[jax.Array, jax.Array]:
    """Minimizes ``x' A x / 2 - c' x`` over ``x >= 0``.

    With the slope ``y = A x - c``, the solution has ``x >= 0``, ``y >= 0`` and ``x y =
    0`` entry by entry. The method takes Newton steps towards that from inside.

    Args:
        matrix: ``A``, ``[T, T]``, positive semi-definite.
        linear: ``c``, ``[T]``, in the range of ``A``.
        start: The entries of ``x`` at the start.
        smallest_size: Of ``sum(x)``, to which all tolerances are relative.
        algebra: How products and equations of the matrices are computed.

    Returns:
        The solution, whose entries of zero are small positive numbers, and the number
        of iterations.
    """
    eps = jnp.finfo(linear.dtype).eps
    num_tasks = linear.shape[0]

    def slope(x: jax.Array) -> jax.Array:
        return algebra.product(matrix, x) - linear

    def size(x: jax.Array) -> jax.Array:
        return jnp.maximum(jnp.sum(x), smallest_size)

    def unsettled(state: _Iterate) -> jax.Array:
        excess = jnp.max(jnp.abs(state.excess)) / size(state.x)
        # The gap goes on falling long after the excess has reached rounding, except
        # where an entry and its slope are both zero.
        larger = jnp.max(jnp.minimum(state.x, state.y)) / size(state.x)
        small = (state.gap < eps / 2**16) | (larger < eps / 2**6)
        done = small & (excess < 4 * eps)
        close = (larger < 4 * eps) & (state.patience < _INTERIOR_PATIENCE)
        stalled = close | (state.patience <= 0)
        done |= stalled & (state.gap < eps) & (excess < 64 * eps)
        return ~done & (state.num_iters < _MAX_INTERIOR_ITERS)

    def iterate(state: _Iterate) -> _Iterate:
        x, y = state.x, state.y
        # The ridge keeps the factorization going where the rounded matrix is
        # indefinite. It shortens steps, but does not change where they lead.
        diagonal = jnp.where(jnp.eye(num_tasks, dtype=bool), y / x + state.ridge, 0)
        factor = algebra.factor(matrix + diagonal)

        def newton(target: jax.Array) -> tuple[jax.Array, jax.Array]:
            # The step towards `x y = target` and no excess.
            dx = algebra.solve(factor, target / x - y - state.excess)
            return dx, (target - y * dx) / x - y

        # A trial step says how far the gap can fall, and how wrong its linear model is
        # (where it is short, less so). A gap that grew may be the start of a cycle: a
        # step towards equal products ends it.
        dx, dy = newton(jnp.zeros_like(x))
        step = jnp.minimum(_to_boundary(x, y, dx, dy), 1)
        mean = jnp.mean(x * y)
        after = jnp.mean((x + step * dx) * (y + step * dy))
        circling = state.gap > state.last_gap
        smallest = jnp.where(circling, jnp.full_like(mean, 0.3), 0)
        ratio = jnp.maximum((after / mean) ** 3, smallest)
        # The floor keeps what tends to zero from underflowing.
        centre = jnp.maximum(ratio * mean, eps**2)
        dx, dy = newton(centre - step * dx * dy)
        step = jnp.minimum(_STEP * _to_boundary(x, y, dx, dy), 1)
        step = step * _balanced_part(x, y, step * dx, step * dy, algebra)

        # A factorization that broke down is tried again with a larger ridge.
        good = all_of(jnp.isfinite(dx) & jnp.isfinite(dy))
        x = jnp.where(good, x + step * dx, x)
        y = jnp.where(good, y + step * dy, y)
        gap = jnp.sum(x * y) / size(x) ** 2
        halved = gap < state.least_gap / 2
        return _Iterate(
            x=x,
            y=y,
            excess=slope(x) - y,
            gap=gap,
            last_gap=jnp.where(good, state.gap, jnp.inf),
            least_gap=jnp.where(halved, gap, state.least_gap),
            patience=jnp.where(halved | ~good, _INTERIOR_PATIENCE, state.patience - 1),
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
        least_gap=infinite,
        patience=jnp.full((), _INTERIOR_PATIENCE, jnp.int32),
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
    least_gap: jax.Array  # []
    patience: jax.Array  # [], int32, iterations left to halve it
    ridge: jax.Array  # []
    num_iters: jax.Array  # [], int32


def _to_boundary(x: jax.Array, y: jax.Array, dx: jax.Array, dy: jax.Array) -> jax.Array:
    def length(values: jax.Array, steps: jax.Array) -> jax.Array:
        falling = steps < 0
        lengths = values / jnp.where(falling, -steps, 1)
        return jnp.min(jnp.where(falling, lengths, jnp.inf))

    return jnp.minimum(length(x, dx), length(y, dy))


def _balanced_part(
    x: jax.Array, y: jax.Array, dx: jax.Array, dy: jax.Array, algebra: Algebra
) -> jax.Array:
    """How much of a step leaves no product far below the others."""
    if algebra.indexes:
        # All at once: on a CPU a dozen small sums take as long as the factorization.
        parts = jnp.array(_PARTS, x.dtype)
        of_step = jnp.outer(parts, dx), jnp.outer(parts, dy)
        products = (x[None, :] + of_step[0]) * (y[None, :] + of_step[1])
        least, mean = jnp.min(products, axis=1), jnp.mean(products, axis=1)
        return parts[jnp.argmax(least >= _MIN_SHARE * mean)]
    # From the last to the first, so that the first that is balanced has the last word.
    # If none is, that is the first, too.
    found = jnp.full((), _PARTS[0], x.dtype)
    for part in reversed(_PARTS):
        products = (x + part * dx) * (y + part * dy)
        balanced = jnp.min(products) >= _MIN_SHARE * jnp.mean(products)
        found = jnp.where(balanced, part, found)
    return found
