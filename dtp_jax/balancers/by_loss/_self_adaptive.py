"""Weights that climb the losses while the parameters descend them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dtp_jax._core.balancer import Balancer, nonzero, transformation
from dtp_jax._core.checks import check_optimizer
from dtp_jax._core.layout import layout_of, per_task
from dtp_jax._core.reads import read_losses

_LARGEST_LOSS = 1e15


class SelfAdaptiveState(NamedTuple):
    """State of `self_adaptive`."""

    multipliers: jax.Array  # [T], lambda
    optimizer: Any  # the state of the inner optimizer


def self_adaptive(
    *,
    optimizer: optax.GradientTransformation | None = None,
    mask: Callable[[jax.Array], jax.Array] = jnp.square,
    init_value: Any = 1.0,
) -> Balancer:
    """Weights each point by a function of a multiplier that climbs its loss.

    The saddle point of ``sum_t m(lambda_t) L_t``, which the parameters descend and the
    multipliers climb, with m the mask, an increasing function: the gradient of
    ``lambda_t`` is ``m'(lambda_t) L_t``, and the weight of a step is ``m(lambda_t)``
    before it. Where a loss stays large, its weight grows; none ever falls while losses
    are positive, unless the optimizer overshoots.

    The tasks are the points of a fixed set, by the thousand, or few losses: the cost is
    one forward and one backward pass. Masks of the paper are ``jnp.square``, other
    powers, and ``lambda x: bound * jax.nn.sigmoid(steepness * x)``, which bounds the
    weights. A point that is masked, not active, or whose loss is not finite keeps its
    multiplier. Preferences multiply the weights.

    Args:
        optimizer: Moves the multipliers, upwards; Adam at a rate of 0.005 by default,
            as in the paper. No weight decay.
        mask: From multipliers ``[T]`` to weights at least 0, elementwise.
        init_value: Of the multipliers. A number, or one per task; the paper also draws
            them uniformly from [0, 1], which an array ``[T]`` is for.

    Returns:
        A loss-driven balancer, for losses of at least 0, which count up to 1e15.

    Raises:
        TypeError: If `optimizer` is none of optax.
        ValueError: If `init_value` does not match the tasks; from `update`, if there
            are no losses or they do not match the tasks.

    Example:
        >>> import jax.numpy as jnp
        >>> balancer = self_adaptive(optimizer=optax.sgd(0.5))
        >>> ones = jnp.ones(2)
        >>> state = balancer.init(ones)
        >>> losses = jnp.array([2.0, 0.0])
        >>> weights, state = balancer.update(ones, state, losses)
        >>> weights.tolist(), state.multipliers.tolist()  # 1 + 0.5 * 2 * 2
        ([1.0, 1.0], [3.0, 1.0])

    References:
        McClenny & Braga-Neto, "Self-adaptive physics-informed neural networks", Journal
        of Computational Physics 2023, whose loss has the factor 1/2, which the rate of
        the multipliers absorbs.
    """
    check_optimizer("optimizer", optimizer)
    inner = optax.adam(5e-3) if optimizer is None else optimizer

    def init(params: Any) -> SelfAdaptiveState:
        start = per_task("init_value", init_value, layout_of(params))
        # Copies: an array of the caller, or one that the optimizer keeps, would be
        # donated with the state.
        return SelfAdaptiveState(jnp.copy(start), inner.init(jnp.copy(start)))

    def update(
        updates: Any, state: SelfAdaptiveState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, SelfAdaptiveState]:
        del extra_args
        layout, losses, preferences = read_losses("self_adaptive", updates, params)
        active = preferences > 0
        multipliers = state.multipliers
        values, pull = jax.vjp(mask, multipliers)
        # The square of a huge gradient would stay in the memory of Adam for ever.
        loss = jnp.clip(losses, 0, _LARGEST_LOSS)
        slope = -pull(jnp.where(active, loss, 0).astype(values.dtype))[0]
        step, inner_state = inner.update(slope, state.optimizer, multipliers)
        moved = jnp.asarray(optax.apply_updates(multipliers, step))
        usable = active & jnp.isfinite(moved)
        # Momentum would move the multiplier of a point that is not active.
        new = SelfAdaptiveState(jnp.where(usable, moved, multipliers), inner_state)
        values = jnp.clip(values, 0, jnp.finfo(values.dtype).max)
        weights = nonzero(preferences * values.astype(layout.dtype), preferences)
        return layout.tree(weights), new

    return transformation(init, update)
