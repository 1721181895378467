"""Weights of points whose residuals decay more slowly than those of others."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg
from dtp_jax._core.balancer import Balancer, nonzero, transformation
from dtp_jax._core.checks import check_scalar
from dtp_jax._core.counters import count_up
from dtp_jax._core.layout import layout_of
from dtp_jax._core.reads import read_losses


class BalancedResidualDecayState(NamedTuple):
    """State of `balanced_residual_decay`."""

    means: jax.Array  # [T], running means of the losses, roots of means of squares
    weights: jax.Array  # [T]
    counts: jax.Array  # [T], int32, observations of each point


def balanced_residual_decay(
    *,
    mean_decay: jax.typing.ArrayLike = 0.999,
    weight_decay: jax.typing.ArrayLike = 0.999,
) -> Balancer:
    """Weights each point by how slowly its residual decays, compared with the others.

    The tasks are points, and their losses squared residuals, ``L_t = r_t^2``. A point
    whose loss is still what it was has a high ratio of the loss to the running root
    mean square of its past, one whose loss falls fast a low one::

        m_t <- mean_decay * m_t + (1 - mean_decay) * L_t^2
        q_t = L_t / sqrt(m_t / (1 - mean_decay^k_t))
        w_t <- weight_decay * w_t + (1 - weight_decay) * q_t / mean_s q_s

    with k_t the number of observations of the point. Weights start at 1, their mean
    stays 1 while all points are active, and none exceeds T. The weights of a step hold
    its losses already. The scale of a point's loss does not matter, only its course.

    A point that is masked, not active, or whose loss is not finite keeps its state.
    Preferences multiply the weights.

    Args:
        mean_decay: Of the running mean, in [0, 1).
        weight_decay: Of the weights, in [0, 1).

    Returns:
        A loss-driven balancer of the cost of a fixed weighted sum.

    Raises:
        ValueError: If a decay is not in [0, 1); from `update`, if there are no losses
            or they do not match the tasks.

    Example:
        >>> import jax.numpy as jnp
        >>> balancer = balanced_residual_decay(mean_decay=0.0, weight_decay=0.5)
        >>> ones = jnp.ones(2)
        >>> state = balancer.init(ones)
        >>> weights, _ = balancer.update(ones, state, jnp.array([4.0, 0.1]))
        >>> weights.tolist()  # without a memory each ratio is 1
        [1.0, 1.0]

    References:
        Chen, Howard & Stinis, "Self-adaptive weights based on balanced residual decay
        rate for physics-informed neural networks and deep operator networks", 2024. The
        authors' code adds 1e-14 to the root and forgets by the steps since a point was
        last seen; here each observation counts once. Their factor for the whole loss,
        which keeps the learning rate at the edge of stability, is the optimizer's.
    """
    check_scalar("mean_decay", mean_decay, low=0, high=1, open_high=True)
    check_scalar("weight_decay", weight_decay, low=0, high=1, open_high=True)

    def init(params: Any) -> BalancedResidualDecayState:
        layout = layout_of(params)
        zeros = jnp.zeros((layout.num_tasks,), layout.dtype)
        counts = jnp.zeros((layout.num_tasks,), jnp.int32)
        return BalancedResidualDecayState(zeros, jnp.ones_like(zeros), counts)

    def update(
        updates: Any,
        state: BalancedResidualDecayState,
        params: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, BalancedResidualDecayState]:
        del extra_args
        name = "balanced_residual_decay"
        layout, losses, preferences = read_losses(name, updates, params)
        active = preferences > 0
        losses = jnp.where(active, jnp.maximum(losses, 0), 0)
        counts = count_up(state.counts)
        # The root of the mean, in units of the larger part: squares would overflow.
        size = jnp.maximum(state.means, losses)
        unit = linalg.positive(size)
        kept, new = jnp.square(state.means / unit), jnp.square(losses / unit)
        means = unit * jnp.sqrt(mean_decay * kept + (1 - mean_decay) * new)
        powers = counts.astype(layout.dtype) * jnp.log(mean_decay)
        started = -jnp.expm1(powers).astype(layout.dtype)
        # A loss of zero has decayed, or was never there.
        ratios = losses * jnp.sqrt(started) / linalg.positive(means)
        number = jnp.maximum(jnp.sum(active), 1)
        mean = jnp.sum(jnp.where(active, ratios, 0)) / number
        target = jnp.where(mean > 0, ratios / linalg.positive(mean), 1)
        moved = weight_decay * state.weights + (1 - weight_decay) * target
        kept_if = BalancedResidualDecayState(
            jnp.where(active, means.astype(layout.dtype), state.means),
            jnp.where(active, moved.astype(layout.dtype), state.weights),
            jnp.where(active, counts, state.counts),
        )
        weights = nonzero(preferences * kept_if.weights, preferences)
        return layout.tree(weights), kept_if

    return transformation(init, update)
