"""Krum and Multi-Krum: gradients that many others are close to."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg
from dtp_jax._core.balancer import Balancer, gramian_weighting
from dtp_jax._core.checks import check_whole, known_number

# Up to so many, comparing all pairs of each task's distances takes the least time.
_MAX_TASKS_FOR_PAIRS = 16


def krum_weights(
    gramian: jax.Array,
    preferences: jax.Array | None = None,
    *,
    num_byzantine: Any,
    num_selected: Any = 1,
    squared: Any = True,
) -> jax.Array:
    """The rule of `krum`, from the Gramian to the weights.

    Args:
        gramian: ``[T, T]``, the inner products of the task gradients.
        preferences: ``[T]``, at least 0. None for ones.
        num_byzantine: See `krum`.
        num_selected: See `krum`.
        squared: See `krum`.

    Returns:
        ``[T]``, the preference over the number of the selected, or zero for a task that
        is not selected.

    Raises:
        ValueError: If the shapes do not fit, or there are too few tasks.

    Example:
        >>> import jax.numpy as jnp
        >>> rows = jnp.array([[1.0], [1.1], [1.3], [9.0]])
        >>> krum_weights(rows @ rows.T, num_byzantine=1).tolist()
        [1.0, 0.0, 0.0, 0.0]
        >>> krum_weights(rows @ rows.T, num_byzantine=1, num_selected=2).tolist()
        [0.5, 0.5, 0.0, 0.0]
    """
    _check(num_byzantine, num_selected)
    gramian, preferences = linalg.subproblem(gramian, preferences)
    num_tasks = preferences.size
    _check_tasks(num_tasks, num_byzantine, num_selected)
    active = preferences > 0
    num_active = jnp.sum(active, dtype=jnp.int32)
    largest = jnp.max(jnp.diagonal(gramian))
    gramian = gramian / linalg.positive(largest)
    lengths = jnp.diagonal(gramian)
    distances = jnp.maximum(lengths[:, None] + lengths[None, :] - 2 * gramian, 0)
    distances = jnp.where(squared, distances, jnp.sqrt(distances))
    others = active[:, None] & active[None, :] & ~jnp.eye(num_tasks, dtype=bool)
    distances = jnp.where(others, distances, jnp.inf)
    num_near = jnp.maximum(num_active - num_byzantine - 2, 1)
    scores = _sum_of_smallest(distances, jnp.minimum(num_near, num_active - 1))
    places = _places(jnp.where(active, scores, jnp.inf))
    count = jnp.maximum(jnp.minimum(num_selected, num_active), 1)
    return jnp.where(active & (places < count), preferences / count, 0)


def krum(*, num_byzantine: Any, num_selected: Any = 1, squared: Any = True) -> Balancer:
    """Takes the gradients that are closest to most of the others.

    The score of a gradient is the sum of the squared distances to its ``T -
    num_byzantine - 2`` nearest neighbours. The mean of the `num_selected` gradients of
    the smallest scores is the step, so up to `num_byzantine` gradients may be anything.
    Meant for gradients of one loss on several workers or batches, not for tasks.

    Tasks that are not active are neither selected nor neighbours. Where fewer than
    ``num_byzantine + 3`` are active, one neighbour makes the score, and if need be
    fewer are selected than asked for; nothing is protected then. Of equal scores the
    first in the order of the tasks wins; with one neighbour the two gradients that are
    closest to each other always have equal ones. In float32 the Gramian tells distances
    down to some 3e-4 of the longest gradient; shorter ones may count as zero.

    `update` needs the task gradients, which `balance` supplies.

    Args:
        num_byzantine: How many gradients may be wrong, at least 0; there must be 3
            tasks more.
        num_selected: How many gradients are averaged; 1 is Krum, more is Multi-Krum.
        squared: Whether distances are squared in the scores, as in the paper.

    Returns:
        A balancer that selects on the gradients as they are and multiplies the mean of
        the selected by their preferences. Instead of zero, which would mean "not
        active", an active task gets 1e-30.

    Raises:
        ValueError: If a number is out of range; from `update`, if there are too few
            tasks, or no task gradients.

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax import TaskGradients
        >>> balancer, ones = krum(num_byzantine=1, num_selected=2), jnp.ones(4)
        >>> rows = jnp.array([[1.0], [1.1], [1.3], [9.0]])
        >>> gradients = TaskGradients.from_stacked(rows)
        >>> state = balancer.init(ones)
        >>> weights, _ = balancer.update(ones, state, task_gradients=gradients)
        >>> [round(weight, 4) for weight in weights.tolist()]
        [0.5, 0.5, 0.0, 0.0]

    References:
        Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant
        Gradient Descent", NeurIPS 2017, section 4. TorchJD sums distances that are not
        squared: ``squared=False``. Heads: ``balance(..., heads="weights")``.
    """
    _check(num_byzantine, num_selected)
    rule = functools.partial(
        krum_weights,
        num_byzantine=num_byzantine,
        num_selected=num_selected,
        squared=squared,
    )
    return gramian_weighting("krum", rule)


def _places(values: jax.Array) -> jax.Array:
    """The place of each in the order of the last axis; of equals the first is first."""
    # Comparing all pairs takes less time than starting to sort, more so with ours on
    # the last axis, where the sum is over vectors.
    ours, others = values[..., None, :], values[..., :, None]
    earlier = ~jnp.tri(values.shape[-1], dtype=bool)
    earlier = jnp.expand_dims(earlier, tuple(range(values.ndim - 1)))
    return jnp.sum((others < ours) | ((others == ours) & earlier), axis=-2)


def _sum_of_smallest(values: jax.Array, count: jax.Array) -> jax.Array:
    """The sum of the smallest of each column, none of them negative."""
    if values.shape[0] <= _MAX_TASKS_FOR_PAIRS:
        return jnp.sum(jnp.where(_places(values.T) < count, values.T, 0), axis=1)
    # Bisection finds the largest of them. On a CPU it takes a tenth of the time of
    # sorting the columns, and it is exact because floats that are not negative are in
    # the order of their bits.
    num_bits = jnp.finfo(values.dtype).bits
    bits = values.view(f"int{num_bits}")

    def halve(step: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> Any:
        low, high = bounds
        middle = low + (high - low) // 2
        enough = jnp.sum(bits <= middle[None, :], axis=0) >= count
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    low = jnp.zeros_like(bits[0])
    high = jnp.full_like(values[0], jnp.inf).view(bits.dtype)
    _, high = jax.lax.fori_loop(0, num_bits - 1, halve, (low, high))
    largest = high.view(values.dtype)
    below = values < largest[None, :]
    rest = count - jnp.sum(below, axis=0)
    return jnp.sum(jnp.where(below, values, 0), axis=0) + rest * largest


def _check(num_byzantine: Any, num_selected: Any) -> None:
    check_whole("num_byzantine", num_byzantine)
    check_whole("num_selected", num_selected, low=1)


def _check_tasks(num_tasks: int, num_byzantine: Any, num_selected: Any) -> None:
    byzantine, selected = known_number(num_byzantine), known_number(num_selected)
    if byzantine is not None and num_tasks < byzantine + 3:
        raise ValueError(
            f"krum with num_byzantine={num_byzantine} needs at least "
            f"{byzantine + 3} tasks, got {num_tasks}: lower num_byzantine."
        )
    if selected is not None and num_tasks < selected:
        raise ValueError(
            f"krum cannot select num_selected={num_selected} of {num_tasks} tasks."
        )
