"""One weight for each group of tasks that stand alike."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg
from dtp_jax._core.balancer import Balancer, nonzero, transformation
from dtp_jax._core.checks import check_scalar, check_whole
from dtp_jax._core.layout import layout_of
from dtp_jax._core.reads import divisible, read_losses

_LARGEST_MOVE = 60.0  # of the logarithm of a share in one step
_SMALLEST_LOG = -60.0


class Go4AlignState(NamedTuple):
    """State of `go4align`."""

    log_risks: jax.Array  # [T], log q up to a constant, so that only differences count


def go4align(
    *, num_groups: int = 2, step_size: jax.typing.ArrayLike = 1e-4
) -> Balancer:
    """Evens out the losses, then gives tasks of a group the same weight.

    Over all steps each task has a share q_t of the risk, which falls with its losses.
    In every step::

        q_t <- q_t exp(-step_size L_t), then divided by their sum
        v_t = q_t (sum_s L_s) / L_t
        w_t = mean of v over the group of the task

    The groups are those of at most `num_groups` for which the sum of squared distances
    of the v_t to the means of their groups is smallest. Of numbers on a line this can
    be computed exactly, so that the same losses always have the same groups; it costs
    ``O(num_groups T^2)``, which is for tasks by the dozen, not by the thousand.

    A task that is not active, or whose loss is not finite, keeps its share and is in no
    group. Preferences multiply the weights.

    Args:
        num_groups: The number of groups, a Python integer of at least 1; with 1 all
            weights are equal, with T each task has its own.
        step_size: Of the shares, at least 0.

    Returns:
        A loss-driven balancer, for losses greater than 0. A loss below 1e-12 of the
        largest among the active tasks counts as that.

    Raises:
        ValueError: If a hyperparameter is out of range; from `update`, if there are no
            losses or they do not match the tasks.

    Example:
        >>> import jax.numpy as jnp
        >>> balancer, ones = go4align(num_groups=2, step_size=0.0), jnp.ones(3)
        >>> losses = jnp.array([1.0, 4.0, 5.0])
        >>> weights, _ = balancer.update(ones, balancer.init(ones), losses)
        >>> [round(weight, 4) for weight in weights.tolist()]  # of 10/3, 10/12, 10/15
        [3.3333, 0.75, 0.75]

    References:
        Shen, Wang, Xiao, Van Noord, Worring, "GO4Align: Group Optimization for
        Multi-Task Alignment", NeurIPS 2024, and the authors' code, one update per step
        with the losses of the step; its k-means starts at random, and may end in a
        worse grouping. Heads: ``balance(..., heads="weights")``.
    """
    check_whole("num_groups", num_groups, low=1)
    check_scalar("step_size", step_size, low=0)

    def init(params: Any) -> Go4AlignState:
        layout = layout_of(params)
        # Only ratios count: whoever joins later starts as the others did.
        return Go4AlignState(jnp.zeros((layout.num_tasks,), layout.dtype))

    def update(
        updates: Any, state: Go4AlignState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Go4AlignState]:
        del extra_args
        layout, losses, preferences = read_losses("go4align", updates, params)
        active = preferences > 0
        losses = divisible(losses, active)

        # Of the active tasks, whose shares have the sum that they had before.
        before = jnp.where(active, state.log_risks, -jnp.inf)
        total = _log_sum(before, active)
        moved = state.log_risks - jnp.minimum(step_size * losses, _LARGEST_MOVE)
        moved += total - _log_sum(jnp.where(active, moved, -jnp.inf), active)
        moved = jnp.maximum(moved, _SMALLEST_LOG).astype(layout.dtype)
        risks = jnp.where(active, jnp.exp(moved - total), 0)

        # Relative to the largest, so that the sum does not overflow; by roots, since
        # one over a number as large as that is flushed to zero.
        root = jnp.sqrt(jnp.max(losses))
        relative = jnp.square(jnp.sqrt(losses) / root)
        total = jnp.sum(jnp.where(active, relative, 0))
        sizes = risks * total / jnp.where(active, relative, 1)
        weights = group_means(sizes, active, num_groups)
        state = Go4AlignState(jnp.where(active, moved, state.log_risks))
        return layout.tree(nonzero(preferences * weights, preferences)), state

    return transformation(init, update)


def _log_sum(logs: jax.Array, active: jax.Array) -> jax.Array:
    return jnp.where(jnp.any(active), jax.nn.logsumexp(logs, where=active), 0)


def group_means(values: jax.Array, active: jax.Array, num_groups: int) -> jax.Array:
    """The mean of the group of each number, for the best groups.

    Args:
        values: ``[T]``, at least 0.
        active: ``[T]``, which of them count.
        num_groups: How many groups there may be, at least 1.

    Returns:
        ``[T]``. The groups have the smallest possible sum of squared distances to
        their means; what does not count is in none and keeps its value.

    Example:
        >>> values = jnp.array([5.0, 1.0, 4.0, 9.0])
        >>> group_means(values, jnp.array([True, True, True, False]), 2).tolist()
        [4.5, 1.0, 4.5, 9.0]
    """
    num_tasks = values.size
    # Groups are runs of the sorted numbers; those that do not count come last.
    order = jnp.argsort(jnp.where(active, values, jnp.inf))
    counted = active[order]
    number = jnp.sum(counted)
    largest = jnp.max(jnp.where(active, values, 0))
    scale = linalg.positive(largest)
    line = jnp.where(counted, values[order] / scale, 0)
    sums = jnp.concatenate([jnp.zeros(1, line.dtype), jnp.cumsum(line)])
    squares = jnp.concatenate([jnp.zeros(1, line.dtype), jnp.cumsum(line * line)])
    starts = jnp.arange(num_tasks + 1)
    length = jnp.maximum(starts[None, :] - starts[:, None], 1)
    # Of the run from i to j, without j: what it is away from its mean.
    total = sums[None, :] - sums[:, None]
    spread = squares[None, :] - squares[:, None] - total * total / length
    forward = starts[:, None] < starts[None, :]
    spread = jnp.where(forward, jnp.maximum(spread, 0), jnp.inf)
    spread = jnp.where(starts[:, None] == starts[None, :], 0, spread)
    # best[k][j]: the first j numbers in k groups, of which some may be empty.
    best, cuts = spread[0], []
    for _ in range(min(num_groups, num_tasks) - 1):
        through = best[:, None] + spread
        cuts.append(jnp.argmin(through, axis=0))
        best = jnp.min(through, axis=0)
    end, starts_of = number, jnp.zeros(num_tasks + 1, jnp.int32)
    for cut in reversed(cuts):
        end = cut[end]
        starts_of = starts_of.at[end].set(1)
    group = jnp.cumsum(starts_of)[:num_tasks]
    members = (group[:, None] == group[None, :]) & counted[None, :]
    sizes = jnp.maximum(jnp.sum(members, axis=1), 1)
    means = scale * jnp.sum(jnp.where(members, line[None, :], 0), axis=1) / sizes
    found = jnp.where(counted, means, values[order])
    return jnp.zeros_like(values).at[order].set(found)
