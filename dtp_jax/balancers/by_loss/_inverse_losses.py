"""Losses of one size: weights of one over the first losses."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg
from dtp_jax._core.balancer import Balancer, nonzero, transformation
from dtp_jax._core.checks import check_whole
from dtp_jax._core.counters import count_up
from dtp_jax._core.layout import layout_of
from dtp_jax._core.reads import read_losses

# The smallest mean that divides, relative to the largest.
_MIN_MEAN = 1e-12


class InverseLossesState(NamedTuple):
    """State of `inverse_losses`."""

    means: jax.Array  # [T], of the magnitudes of the first losses
    counts: jax.Array  # [T], int32, how many losses are in the mean


def inverse_losses(*, num_steps: jax.typing.ArrayLike = 10) -> Balancer:
    """Divides each loss by what it was at the start.

    The weight is one over the mean magnitude of the first `num_steps` losses of the
    task, the running mean while there are fewer, and stays as it is from then on. So
    losses that differ by decades start with the same size, and fall as they can. It
    knows nothing of who needs attention: let a rule that does follow, as in
    ``optax.chain(inverse_losses(), focal(), normalize_weights())``.

    Each task counts for itself: one that joins later starts with its own first losses,
    and steps in which a task is not active, or its loss is not finite, do not count.
    Preferences multiply the weights.

    Args:
        num_steps: How many losses make the mean, at least 1.

    Returns:
        A loss-driven balancer. A mean below 1e-12 of the largest among the active tasks
        counts as that.

    Raises:
        ValueError: If `num_steps` is no integer of at least 1; from `update`, if there
            are no losses or they do not match the tasks.

    Example:
        >>> import jax.numpy as jnp
        >>> balancer, ones = inverse_losses(num_steps=1), jnp.ones(2)
        >>> state = balancer.init(ones)
        >>> weights, state = balancer.update(ones, state, jnp.array([4.0, 0.5]))
        >>> weights.tolist()
        [0.25, 2.0]
        >>> balancer.update(ones, state, jnp.array([1.0, 0.1]))[0].tolist()
        [0.25, 2.0]

    References:
        Common practice; the first step of GradNorm's relative losses, Chen et al., ICML
        2018, and of loss-ratio methods. Heads: ``balance(..., heads="weights")``.
    """
    check_whole("num_steps", num_steps, low=1)

    def init(params: Any) -> InverseLossesState:
        layout = layout_of(params)
        return InverseLossesState(
            jnp.zeros((layout.num_tasks,), layout.dtype),
            jnp.zeros((layout.num_tasks,), jnp.int32),
        )

    def update(
        updates: Any, state: InverseLossesState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, InverseLossesState]:
        del extra_args
        layout, losses, preferences = read_losses("inverse_losses", updates, params)
        active = preferences > 0
        counted = active & (state.counts < num_steps)
        counts = count_up(state.counts, counted)
        size = jnp.where(counted, jnp.abs(losses), 0)
        # In this form the mean does not overflow.
        share = 1 / jnp.maximum(counts, 1).astype(layout.dtype)
        moved = state.means + (size * share - state.means * share)
        means = jnp.where(counted, moved, state.means)
        largest = jnp.max(jnp.where(active, means, 0))
        divisors = jnp.maximum(means, _MIN_MEAN * largest)
        divisors = linalg.positive(divisors)
        weights = nonzero(preferences / divisors, preferences)
        return layout.tree(weights), InverseLossesState(means, counts)

    return transformation(init, update)
