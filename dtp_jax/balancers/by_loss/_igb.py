"""Improvable gap balancing: what is left of each loss."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax._core.balancer import Balancer, nonzero, transformation
from dtp_jax._core.checks import check_whole
from dtp_jax._core.layout import layout_of
from dtp_jax._core.numerics import softmax_over
from dtp_jax._core.reads import divisible, read_losses


class IgbState(NamedTuple):
    """State of `igb`."""

    means: jax.Array  # [T], of the first losses
    counts: jax.Array  # [T], int32, how many losses are in the mean


def igb(*, num_steps: jax.typing.ArrayLike = 100) -> Balancer:
    """Weights log losses by how much of the early loss is left to improve.

    With B_t the mean of the first `num_steps` losses of the task, then fixed, and the T
    active tasks::

        w_t = T softmax(L / B)_t / L_t

    which is the gradient of ``sum_t T softmax(L / B)_t log(L_t)`` for constant
    softmax: the paper weights logarithms, so that the scale of a loss does not matter.
    Until B is known the weights are ``1 / L_t``. A task that has come down to a tenth
    of its early loss has the share ``exp(0.1 - 1)`` of one that has not moved.

    Each task counts for itself; steps in which a task is not active, or its loss is not
    finite, do not count. Preferences multiply the weights.

    Args:
        num_steps: How many losses make the mean, at least 1; the paper takes those of
            one epoch.

    Returns:
        A loss-driven balancer, for losses greater than 0. A loss below 1e-12 of the
        largest among the active tasks counts as that.

    Raises:
        ValueError: If `num_steps` is no integer of at least 1; from `update`, if there
            are no losses or they do not match the tasks.

    Example:
        >>> import jax.numpy as jnp
        >>> balancer, ones = igb(num_steps=1), jnp.ones(2)
        >>> state = balancer.init(ones)
        >>> weights, state = balancer.update(ones, state, jnp.array([4.0, 0.5]))
        >>> weights.tolist()
        [0.25, 2.0]
        >>> weights, _ = balancer.update(ones, state, jnp.array([2.0, 0.5]))
        >>> [round(weight, 4) for weight in weights.tolist()]  # of 1 / (1 + exp(0.5))
        [0.3775, 2.4898]

    References:
        Dai, Fei, Lu, "Improvable Gap Balancing for Multi-Task Learning", UAI 2023, its
        first version, and the authors' code (`ImprovableGapBalancing_v1`). The second
        version, whose weights an agent learns by reinforcement, is a training of its
        own and no rule, so that it is left out. Heads: ``balance(...,
        heads="weights")``.
    """
    check_whole("num_steps", num_steps, low=1)

    def init(params: Any) -> IgbState:
        layout = layout_of(params)
        return IgbState(
            jnp.zeros((layout.num_tasks,), layout.dtype),
            jnp.zeros((layout.num_tasks,), jnp.int32),
        )

    def update(
        updates: Any, state: IgbState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, IgbState]:
        del extra_args
        layout, losses, preferences = read_losses("igb", updates, params)
        active = preferences > 0
        losses = divisible(losses, active)
        known = state.counts >= num_steps
        means = jnp.where(known & (state.means > 0), state.means, losses)
        ratios = jnp.where(known, losses / means, 1)
        shares = jnp.sum(active) * softmax_over(active, jnp.minimum(ratios, 1e30))
        weights = nonzero(preferences * shares / losses, preferences)

        counted = active & ~known
        counts = state.counts + counted.astype(jnp.int32)
        # In this form the mean does not overflow.
        share = 1 / jnp.maximum(counts, 1).astype(layout.dtype)
        moved = state.means + (losses * share - state.means * share)
        means = jnp.where(counted, moved, state.means)
        return layout.tree(weights), IgbState(means, counts)

    return transformation(init, update)
