"""The coordinate-wise trimmed mean."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from dtp_jax._core import control, linalg
from dtp_jax._core.balancer import Balancer
from dtp_jax._core.checks import check_whole
from dtp_jax._core.layout import task_layout
from dtp_jax.links._combiner import Combined, Inputs, combiner


def trim_and_average(
    rows: jax.Array, preferences: jax.Array, num_trimmed: int
) -> jax.Array:
    """The rule of `trimmed_mean` for one parameter.

    Args:
        rows: ``[T, ...]``, the gradients of the tasks.
        preferences: ``[T]``, at least 0; a row of preference zero may hold NaN.
        num_trimmed: How many of the largest and of the smallest to leave out.

    Returns:
        ``[...]``, the mean, weighted by the preferences, of what is left of the tasks
        with a preference; zero if there are none.

    Example:
        >>> rows = jnp.array([[1.0, 7.0], [2.0, -1e30], [9.0, 8.0], [4.0, 9.0]])
        >>> trim_and_average(rows, jnp.ones(4), 1).tolist()
        [3.0, 7.5]
    """
    rows = rows.astype(jnp.promote_types(jnp.float32, rows.dtype))
    active = preferences > 0
    count = jnp.sum(active)
    trimmed = jnp.minimum(num_trimmed, jnp.maximum(count - 1, 0) // 2)
    scale = jnp.max(preferences)
    weights = preferences / linalg.positive(scale)

    # Thresholds first, then the mean of what lies between: subtracting the extremes
    # from the sum would leave the rounding error of the extremes. A sort along the
    # first axis takes 10 to 100 times longer on CPU.
    smallest, largest = _extremes(rows, active, num_trimmed)
    below, num_below = _threshold(smallest, rows[0], trimmed, -jnp.inf)
    above, num_above = _threshold(largest, rows[0], trimmed, jnp.inf)

    def add(total: Any, task: Any) -> tuple[Any, None]:
        row, weight, is_active = task
        between = is_active & (row > below) & (row < above)
        at_below, at_above = is_active & (row == below), is_active & (row == above)
        terms = (
            jnp.where(between, weight * row, 0),
            jnp.where(between, weight, 0),
            jnp.where(at_below, weight, 0),
            jnp.where(at_above, weight, 0),
            jnp.where(at_below, 1.0, 0).astype(row.dtype),
            jnp.where(at_above, 1.0, 0).astype(row.dtype),
        )
        return jax.tree.map(jnp.add, total, terms), None

    zeros = jnp.zeros_like(rows[0])
    sums, _ = control.scan(
        add, (zeros,) * 6, (rows, weights.astype(rows.dtype), active)
    )
    total, weight, weight_below, weight_above, ties_below, ties_above = sums
    # Of several equal values at the edge it does not matter which ones are left out,
    # but their weights may differ: they share, so that the order of tasks is no matter.
    weight_below *= 1 - num_below / jnp.maximum(ties_below, 1)
    weight_above *= 1 - num_above / jnp.maximum(ties_above, 1)
    total += weight_below * jnp.where(trimmed > 0, below, 0)
    total += weight_above * jnp.where(trimmed > 0, above, 0)
    weight += weight_below + weight_above
    mean = total / linalg.positive(weight)
    return jnp.where(below == above, below, mean)


def trimmed_mean(
    tasks: Any,
    *,
    num_trimmed: int,
    preferences: optax.GradientTransformation | None = None,
) -> Balancer:
    """Averages, in each entry of the gradient, the tasks that are not extreme.

    Leaves out the `num_trimmed` largest and the `num_trimmed` smallest values of each
    entry and takes the mean of the others. Up to `num_trimmed` tasks may send whatever
    they like: each entry stays between the values of other tasks.

    Where n tasks are active and n is less than ``2 * num_trimmed + 1``, it leaves out
    ``(n - 1) // 2`` on each side: the median is the limit.

    Preferences weight the mean of what is left, so that only their ratios count; what
    is left out depends on the gradients alone. Parameters that are not shared get the
    sum of the gradients times the preferences. Say which are (`shared=` of
    `task_gradients`): in the parameters of a head all tasks but one have zeros, and the
    one is extreme.

    Args:
        tasks: Names, for losses given as ``{name: scalar}``; an int T, for losses given
            as one [T] array; or an example pytree of the losses.
        num_trimmed: How many values to leave out on each side, with ``T >= 2 *
            num_trimmed + 1``.
        preferences: A balancer that runs first, as in `balance`; None for ones.

    Returns:
        A combiner: a gradient transformation from the gradients of the tasks to one.

    Raises:
        ValueError: If `num_trimmed` is negative, no Python int, or too large.

    Example:
        >>> tx = trimmed_mean(3, num_trimmed=1)
        >>> rows, params = jnp.array([[1.0, 5.0], [2.0, 6.0], [9.0, -8.0]]), jnp.ones(2)
        >>> tx.update(rows, tx.init(params), params)[0].tolist()
        [2.0, 5.0]

    References:
        Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
        Rates", ICML 2018, definition 2, with ``beta = num_trimmed / T``.
    """
    num_tasks = task_layout(tasks).num_tasks
    check_whole("num_trimmed", num_trimmed)
    if not isinstance(num_trimmed, int):
        raise ValueError(
            "num_trimmed must be a Python int. `inject_hyperparams` makes an array of "
            "it: add static_args=('num_trimmed',)."
        )
    if num_tasks < 2 * num_trimmed + 1:
        raise ValueError(
            f"trimmed_mean needs at least 2 * num_trimmed + 1 = {2 * num_trimmed + 1} "
            f"tasks, got {num_tasks}: lower num_trimmed."
        )

    def rule(inputs: Inputs, memory: Any) -> Combined:
        gradients = [
            trim_and_average(rows, inputs.preferences, num_trimmed)
            for rows in inputs.rows
        ]
        return Combined(gradients, memory, inputs.preferences)

    return combiner(rule, tasks, preferences=preferences)


def _extremes(
    rows: jax.Array, active: jax.Array, number: int
) -> tuple[jax.Array, jax.Array]:
    """The smallest values ascending and the largest descending, ``[number, ...]``."""

    def insert(smallest: jax.Array, row: jax.Array) -> jax.Array:
        before = jnp.concatenate([jnp.full_like(smallest[:1], -jnp.inf), smallest[:-1]])
        return jnp.minimum(smallest, jnp.maximum(before, row[None]))

    def step(kept: Any, task: Any) -> tuple[Any, None]:
        row, is_active = task
        low = insert(kept[0], jnp.where(is_active, row, jnp.inf))
        return (low, insert(kept[1], jnp.where(is_active, -row, jnp.inf))), None

    # There are more rows than that, and slices of them are sharded like them.
    start = jnp.full_like(rows[:number], jnp.inf)
    (smallest, negated), _ = control.scan(step, (start, start), (rows, active))
    return smallest, -negated


def _threshold(
    extremes: jax.Array, like: jax.Array, trimmed: jax.Array, outside: float
) -> tuple[jax.Array, jax.Array]:
    """The last value to be left out, and how many equal to it are to be left out."""
    bound, number = jnp.full_like(like, outside), jnp.zeros_like(like)
    if extremes.shape[0] == 0:
        return bound, number
    threshold = jnp.where(trimmed > 0, extremes[jnp.maximum(trimmed, 1) - 1], bound)
    for index in range(extremes.shape[0]):
        equal = (index < trimmed) & (extremes[index] == threshold)
        number += jnp.where(equal, 1, 0)
    return threshold, number
