"""Gram products of task gradients, at full precision and in blocks where that pays."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .checks import is_traced
from .meshes import is_automatic, is_explicit

# On CPU a product of [T, P] with its transpose runs 1.5 to 3 times faster in slices
# that stay in cache, if the whole does not. `make bench` prints the comparison.
BLOCK_COLUMNS = 16384
_MIN_SIZE_FOR_BLOCKS = 2**21

# Gradients of T tasks by parameter: stacked, ``[T, ...]``, or one array for each.
Rows = Sequence[jax.Array | Sequence[jax.Array]]

# A sum of rows reads and writes its total once for so many rows. Half or twice as many
# take about as long, one row at a time half as long again.
_ROWS_AT_ONCE = 8


def gram(rows: jax.Array, others: jax.Array | None = None) -> jax.Array:
    """Inner products of the rows of one leaf, with each other or with other rows.

    Computes ``G[s, t] = <rows[s], others[t]>`` over all but the first axis, in float32
    or better whatever the dtype of the rows and the default precision.

    Args:
        rows: ``[T, ...]``.
        others: ``[S, ...]`` of the same dtype; None for the rows themselves.

    Returns:
        ``[T, S]`` in float32, or in float64 if the rows have it.

    Example:
        >>> import jax.numpy as jnp
        >>> gram(jnp.array([[1.0, 2.0], [3.0, 0.0]])).tolist()
        [[5.0, 3.0], [3.0, 9.0]]
    """
    # Joining axes that are spread over devices would gather the rows.
    if _on_a_mesh(rows):
        return _plain_gram(rows, others)
    # On an accelerator one large product is right, over axes that may be sharded. Only
    # the CPU gains from blocks, and from joining axes, which is 2 to 4 times faster.
    in_cache = rows.size < _MIN_SIZE_FOR_BLOCKS or rows[0].size < 2 * BLOCK_COLUMNS
    on_cpu = _flat_gram if in_cache else _blocked_gram
    # Passed twice, the same rows would be read twice where nothing is compiled around.
    operands = (rows,) if others is None else (rows, others)
    return jax.lax.platform_dependent(*operands, cpu=on_cpu, default=_plain_gram)


def weighted_sum(weights: jax.Array, rows: jax.Array) -> jax.Array:
    """The weighted sum of the rows of one leaf, without those of weight zero.

    Args:
        weights: ``[T]``.
        rows: ``[T, ...]``. A row of weight zero may hold NaN.

    Returns:
        ``sum_t weights[t] rows[t]``, ``[...]`` in the dtype of the rows, summed in
        float32 or better.

    Example:
        >>> import jax.numpy as jnp
        >>> rows = jnp.array([[1.0, 2.0], [jnp.nan, 0.0]])
        >>> weighted_sum(jnp.array([3.0, 0.0]), rows).tolist()
        [3.0, 6.0]
    """
    # On CPU a reduction over the first axis of a large array walks through memory in
    # strides, 10 to 50 times slower than adding rows.
    total_of = _weighted_sum if is_traced() else _compiled_weighted_sum
    return total_of(weights, rows).astype(rows.dtype)


def weighted_sum_of(weights: jax.Array, rows: Sequence[jax.Array]) -> jax.Array:
    """What `weighted_sum` returns, of few rows that are arrays of their own.

    Args:
        weights: ``[T]``.
        rows: T arrays of one shape. One of weight zero may hold NaN.

    Returns:
        Their weighted sum in the dtype of the rows, summed in float32 or better.

    Example:
        >>> import jax.numpy as jnp
        >>> rows = [jnp.array([1.0, 2.0]), jnp.array([jnp.nan, 0.0])]
        >>> weighted_sum_of(jnp.array([3.0, 0.0]), rows).tolist()
        [3.0, 6.0]
    """
    return _sum(weights, rows, range(len(rows))).astype(rows[0].dtype)


def column_of(rows: Rows, weights: jax.Array) -> jax.Array:
    """The inner products of each row with a weighted sum of all.

    Computes ``J (J' w)``, which is ``G w`` without the rounding of the Gramian G: what
    cancels in the sum does so before the products are taken.

    Args:
        rows: J, by parameter: ``[T, ...]``, or T arrays.
        weights: ``w``, ``[T]``. A row of weight zero may hold NaN.

    Returns:
        ``[T]`` in float32 or better.

    Example:
        >>> import jax.numpy as jnp
        >>> rows = jnp.array([[1.0, 2.0], [3.0, 0.0]])
        >>> column_of([rows], jnp.array([1.0, -1.0])).tolist()
        [2.0, -6.0]
    """
    columns = jnp.zeros_like(weights)
    for leaf in rows:
        whole = isinstance(leaf, jax.Array)
        dtype = _accumulator((leaf if whole else leaf[0]).dtype)
        if whole:
            total = weighted_sum(weights, leaf.astype(dtype))
            products = gram(leaf.astype(dtype), total[None])[:, 0]
        else:
            tasks = [row.astype(dtype) for row in leaf]
            total = weighted_sum_of(weights, tasks)
            products = jnp.stack([gram(x[None], total[None])[0, 0] for x in tasks])
        columns += products
    return columns


def unit(vector: jax.Array) -> jax.Array:
    """A vector divided by its norm; zero stays zero.

    Args:
        vector: ``[T]``, of any scale; infinite entries count as the largest finite one.

    Returns:
        ``[T]``.

    Example:
        >>> import jax.numpy as jnp
        >>> [round(entry, 4) for entry in unit(jnp.array([3e30, 4e30])).tolist()]
        [0.6, 0.8]
    """
    finite = jnp.finfo(vector.dtype).max
    vector = jnp.clip(vector, -finite, finite)
    largest = jnp.max(jnp.abs(vector))
    vector = vector / positive(largest)
    norm = jnp.sqrt(jnp.sum(vector**2))
    return vector / positive(norm)


def subproblem(
    gramian: jax.typing.ArrayLike, preferences: jax.typing.ArrayLike | None
) -> tuple[jax.Array, jax.Array]:
    """Prepares what a rule on a Gramian gets: the problem of the active tasks.

    Args:
        gramian: ``[T, T]``.
        preferences: ``[T]``, at least 0; None for ones.

    Returns:
        Both in float32, or in float64 if the Gramian is, with derivatives stopped. A
        task without a positive preference, or whose own entry of the Gramian is not
        finite, is not active: its preference is zero, and so are its row and column,
        whatever they held.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> gramian = jnp.array([[1.0, jnp.nan], [jnp.nan, jnp.nan]])
        >>> [x.tolist() for x in subproblem(gramian, None)]
        [[[1.0, 0.0], [0.0, 0.0]], [1.0, 0.0]]
    """
    gramian = jnp.asarray(gramian)
    dtype = _accumulator(gramian.dtype)
    gramian = jax.lax.stop_gradient(gramian.astype(dtype))
    if preferences is None:
        preferences = jnp.ones(gramian.shape[:1], dtype)
    preferences = jax.lax.stop_gradient(jnp.asarray(preferences, dtype))
    num_tasks = preferences.size
    if gramian.shape != (num_tasks, num_tasks) or preferences.ndim != 1:
        raise ValueError(
            f"gramian must be [T, T] and preferences [T], got {list(gramian.shape)} "
            f"and {list(preferences.shape)}."
        )
    active = (preferences > 0) & jnp.isfinite(jnp.diagonal(gramian))
    # What is not active may hold NaN, which no product with zero removes.
    gramian = jnp.where(active[:, None] & active[None, :], gramian, 0)
    return gramian, jnp.where(active, preferences, 0)


def correlation(gramian: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Splits a Gramian into correlations and the norms of its rows.

    Args:
        gramian: ``[T, T]``, positive semi-definite.

    Returns:
        The cosines ``[T, T]``, zero wherever one of the two gradients is zero, and the
        norms ``[T]``.

    Example:
        >>> import jax.numpy as jnp
        >>> cosines, norms = correlation(jnp.array([[4.0, -3.0], [-3.0, 9.0]]))
        >>> cosines.tolist(), norms.tolist()
        ([[1.0, -0.5], [-0.5, 1.0]], [2.0, 3.0])
    """
    norms = jnp.sqrt(jnp.maximum(jnp.diagonal(gramian), 0))
    inverse = jnp.where(norms > 0, 1 / positive(norms), 0)
    # One factor at a time: the product of two norms may underflow.
    cosines = (gramian * inverse[:, None]) * inverse[None, :]
    return jnp.clip(cosines, -1, 1), norms


def positive(values: jax.Array) -> jax.Array:
    """Numbers to divide by, where those that are not positive are of no account.

    Args:
        values: Of any shape.

    Returns:
        The values, with 1 in place of those that are not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> positive(jnp.array([4.0, 0.0])).tolist()
        [4.0, 1.0]
    """
    return jnp.where(values > 0, values, 1)


def cholesky_solve(factor: jax.Array, columns: jax.Array) -> jax.Array:
    """Solves ``L L' x = b`` for one or several b.

    Args:
        factor: ``L``, ``[T, T]``, lower triangular.
        columns: ``b``, ``[T]`` or ``[T, K]``.

    Returns:
        ``x``, of the shape of b; NaN where the factorization broke down.

    Example:
        >>> import jax.numpy as jnp
        >>> cholesky_solve(jnp.diag(jnp.array([2.0, 1.0])), jnp.ones(2)).tolist()
        [0.25, 1.0]
    """
    x = columns if columns.ndim == 2 else columns[:, None]
    for transpose in (False, True):
        x = jax.lax.linalg.triangular_solve(
            factor, x, left_side=True, lower=True, transpose_a=transpose
        )
    return x.reshape(columns.shape)


def squared_norm(gramian: jax.Array, weights: jax.Array) -> jax.Array:
    """The squared norm of a weighted sum of rows.

    Args:
        gramian: ``[T, T]``, the inner products of the rows.
        weights: ``[T]``.

    Returns:
        ``w' G w``, which rounding may make negative where the rows cancel.

    Example:
        >>> import jax.numpy as jnp
        >>> squared_norm(jnp.eye(2), jnp.array([3.0, 4.0])).item()
        25.0
    """
    return jnp.sum(weights * jnp.matmul(gramian, weights, precision="highest"))


def project_to_simplex(values: jax.Array, active: jax.Array) -> jax.Array:
    """The nearest point of the simplex of the active tasks.

    Args:
        values: ``[T]``, finite, of any size.
        active: ``[T]`` booleans.

    Returns:
        ``[T]``, at least 0 with sum 1; zero for the others, and for all if none is
        active.

    Example:
        >>> import jax.numpy as jnp
        >>> values, active = jnp.array([0.5, 9.0, 0.25]), jnp.array([True, False, True])
        >>> project_to_simplex(values, active).tolist()
        [0.625, 0.0, 0.375]
    """
    # The threshold lies within one of the largest value. Moving that to zero keeps the
    # digits of large ones, and what is two below it counts for nothing.
    largest = jnp.max(jnp.where(active, values, -jnp.inf))
    distances = jnp.where(active, jnp.maximum(values - largest, -2), -2)
    return jnp.where(active, optax.projections.projection_simplex(distances), 0)


def _weighted(weight: jax.Array, row: jax.Array) -> jax.Array:
    return jnp.where(weight != 0, weight * row.astype(_accumulator(row.dtype)), 0)


def _sum(weights: jax.Array, rows: Any, tasks: Sequence[Any]) -> jax.Array:
    terms = [_weighted(weights[task], rows[task]) for task in tasks]
    return functools.reduce(jnp.add, terms)


def _weighted_sum(weights: jax.Array, rows: jax.Array) -> jax.Array:
    return jax.lax.platform_dependent(
        weights, rows, cpu=_add_rows, default=_reduce_rows
    )


# On its own it is compiled once for its shapes, and not in every call.
_compiled_weighted_sum = jax.jit(_weighted_sum)


def _add_rows(weights: jax.Array, rows: jax.Array) -> jax.Array:
    num_tasks = rows.shape[0]
    # The loop starts from the rows that make up no block, or from the first block.
    done = num_tasks % _ROWS_AT_ONCE or _ROWS_AT_ONCE
    blocks = (num_tasks - done) // _ROWS_AT_ONCE

    def add(block: jax.Array, total: jax.Array) -> jax.Array:
        first = done + block * _ROWS_AT_ONCE
        tasks = [first + number for number in range(_ROWS_AT_ONCE)]
        return total + _sum(weights, rows, tasks)

    start = _sum(weights, rows, range(done))
    return jax.lax.fori_loop(0, blocks, add, start) if blocks else start


def _reduce_rows(weights: jax.Array, rows: jax.Array) -> jax.Array:
    return jnp.sum(jax.vmap(_weighted)(weights, rows), axis=0)


def _plain_gram(rows: jax.Array, others: jax.Array | None = None) -> jax.Array:
    others = rows if others is None else others
    axes = tuple(range(1, rows.ndim))
    product = functools.partial(
        jax.lax.dot_general,
        dimension_numbers=((axes, axes), ((), ())),
        precision="highest",
        preferred_element_type=_accumulator(rows.dtype),
    )
    # With an explicit mesh the layout of a contraction over sharded axes is ambiguous;
    # a [T, T] matrix belongs on every device.
    if _explicit_mesh(rows):
        mesh = jax.typeof(rows).sharding.mesh
        everywhere = jax.NamedSharding(mesh, jax.P(None, None))
        return product(rows, others, out_sharding=everywhere)
    return product(rows, others)


def _flat_gram(*rows: jax.Array) -> jax.Array:
    return _plain_gram(*[x.reshape(x.shape[0], -1) for x in rows])


def _blocked_gram(*rows: jax.Array) -> jax.Array:
    flat = [x.reshape(x.shape[0], -1) for x in rows]
    num_blocks = flat[0].shape[1] // BLOCK_COLUMNS

    def add(block: jax.Array, total: jax.Array) -> jax.Array:
        start = (0, block * BLOCK_COLUMNS)
        slices = [
            jax.lax.dynamic_slice(x, start, (x.shape[0], BLOCK_COLUMNS)) for x in flat
        ]
        return total + _plain_gram(*slices)

    rest = _plain_gram(*[x[:, num_blocks * BLOCK_COLUMNS :] for x in flat])
    return jax.lax.fori_loop(0, num_blocks, add, rest)


def _accumulator(dtype: jax.typing.DTypeLike) -> jax.typing.DTypeLike:
    return jnp.promote_types(jnp.float32, dtype)


def _explicit_mesh(rows: jax.Array) -> bool:
    return is_explicit(jax.typeof(rows).sharding.mesh)


def _on_a_mesh(rows: jax.Array) -> bool:
    mesh = jax.typeof(rows).sharding.mesh
    return is_explicit(mesh) or is_automatic(mesh)
