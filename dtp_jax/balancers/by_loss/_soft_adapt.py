"""Weights from the rates of change of the losses."""

import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg
from dtp_jax._core.balancer import Balancer, nonzero, transformation
from dtp_jax._core.checks import check_scalar, check_static, check_whole
from dtp_jax._core.counters import count_up
from dtp_jax._core.layout import layout_of
from dtp_jax._core.numerics import softmax_over
from dtp_jax._core.reads import read_losses

Variant = Literal["original", "normalized", "loss_weighted", "normalized_loss_weighted"]

# Small enough that sums of a few stay in float32, far beyond where a softmax saturates.
_LARGEST = 1e36


class SoftAdaptState(NamedTuple):
    """State of `soft_adapt`."""

    history: jax.Array  # [order, T], the last losses, the newest first
    known: jax.Array  # [T], int32, how many of them there are


def soft_adapt(
    *,
    beta: jax.typing.ArrayLike = 0.1,
    variant: Variant = "original",
    order: int = 1,
) -> Balancer:
    """Prioritizes the tasks whose loss rises the most, or falls the least.

    With ``s`` the rate of change of each loss per step and ``f`` its mean over the last
    ``order + 1`` steps::

        variant                     weights
        original                    softmax(beta * s)
        normalized                  softmax(beta * s / sum(abs(s)))
        loss_weighted               f * exp(beta * s), divided by their sum
        normalized_loss_weighted    both

    The rates are in units of the losses: "original" suits losses of one scale, or needs
    a larger `beta` for small ones. A rate is zero until a task has been active for
    ``order + 1`` steps, so that the first weights are equal, or proportional to the
    losses in the variants weighted by them, whose losses must be at least 0. Sums go
    over the active tasks; preferences multiply the weights.

    Args:
        beta: How much a rate counts; if negative, falling losses are preferred.
        variant: One of the above.
        order: Of the backward difference that estimates the rate, from 1 to 5. A higher
            one follows a smooth loss more closely, and the noise of batches too. Under
            `optax.inject_hyperparams` say ``static_args=("order",)``.

    Returns:
        A loss-driven balancer whose weights sum to 1 for preferences of one. Instead of
        zero, which would mean "not active", an active task gets 1e-30.

    Raises:
        ValueError: If a hyperparameter is out of range or `variant` unknown; from
            `update`, if there are no losses.

    Example:
        >>> import jax.numpy as jnp
        >>> balancer, ones = soft_adapt(beta=1.0), jnp.ones(2)
        >>> state = balancer.init(ones)
        >>> for losses in [[2.0, 4.0], [3.0, 4.0]]:
        ...     weights, state = balancer.update(ones, state, jnp.array(losses))
        ...     print([round(weight, 4) for weight in weights.tolist()])
        [0.5, 0.5]
        [0.7311, 0.2689]

    References:
        Heydari, Thompson, Mehmood, "SoftAdapt: Techniques for Adaptive Loss Weighting
        of Neural Networks with Multi-Part Loss Functions", 2019, section 3.1. Their
        package takes forward differences, which are the rate at the oldest of the
        losses; the two agree for order 1, up to its 1e-8 in the denominator. It divides
        by the plain sum of the rates where "normalized" takes absolute values, as their
        first code does: a sum near zero or below it would turn the priorities around.
        It decides once in several steps and starts from weights of one; here that is
        `average_losses` around this balancer, and `normalize_weights` after it. Heads:
        ``balance(..., heads="weights")``.
    """
    check_scalar("beta", beta)
    check_static("order", order)
    check_whole("order", order, low=1)
    if order > 5:
        raise ValueError(f"order must be at most 5, got {order}.")
    if variant not in get_args(Variant):
        raise ValueError(
            f"variant must be one of {get_args(Variant)}, got {variant!r}."
        )

    def init(params: Any) -> SoftAdaptState:
        layout = layout_of(params)
        history = jnp.zeros((order, layout.num_tasks), layout.dtype)
        return SoftAdaptState(history, jnp.zeros((layout.num_tasks,), jnp.int32))

    def update(
        updates: Any, state: SoftAdaptState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, SoftAdaptState]:
        del extra_args
        layout, losses, preferences = read_losses("soft_adapt", updates, params)
        active = preferences > 0

        losses = jnp.where(active, jnp.clip(losses, -_LARGEST, _LARGEST), 0)
        window = jnp.concatenate([losses[None], state.history])
        coefficients = jnp.array(_backward_difference(order), layout.dtype)
        rates = jnp.sum(coefficients[:, None] * window, axis=0)
        rates = jnp.where(active & (state.known >= order), rates, 0)
        if variant.startswith("normalized"):
            rates = _normalized(rates)
        logits = jnp.clip(beta * rates, -_LARGEST, _LARGEST)
        if variant.endswith("loss_weighted"):
            # Missing losses are zero. The smallest number stands for a loss of zero, so
            # that losses that are all zero have equal weights.
            mean = jnp.sum(window, axis=0) / count_up(state.known)
            logits += jnp.log(jnp.maximum(mean, jnp.finfo(mean.dtype).tiny))
        weights = preferences * softmax_over(active, logits)
        new = SoftAdaptState(
            jnp.where(active, window[:-1], state.history),
            jnp.minimum(count_up(state.known, active), order),
        )
        return layout.tree(nonzero(weights, preferences)), new

    return transformation(init, update)


def _normalized(rates: jax.Array) -> jax.Array:
    """Rates whose absolute values sum to one, or are all zero."""
    largest = jnp.max(jnp.abs(rates))
    # The sum of the rates themselves might overflow.
    relative = rates / linalg.positive(largest)
    return relative / jnp.maximum(jnp.sum(jnp.abs(relative)), 1)


def _backward_difference(order: int) -> list[float]:
    """Coefficients of the slope at the newest of ``order + 1`` values, newest first.

    The slope is the sum of ``(k-th backward difference) / k``.
    """
    terms = range(1, order + 1)
    return [
        (-1) ** j * sum(math.comb(k, j) / k for k in terms) for j in range(order + 1)
    ]
