"""Decisions on the mean losses of windows of steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dtp_jax._core import control
from dtp_jax._core.balancer import Balancer, checked_balancer, nonzero, transformation
from dtp_jax._core.checks import check_whole
from dtp_jax._core.counters import count_up
from dtp_jax._core.layout import layout_of
from dtp_jax._core.reads import read_losses


class AverageLossesState(NamedTuple):
    """State of `average_losses`."""

    losses: jax.Array  # [T], mean over the steps of the window so far
    preferences: jax.Array  # [T], likewise
    counts: jax.Array  # [T], int32, number of these steps in which a task was active
    step: jax.Array  # [], int32, number of steps of the window so far
    weights: jax.Array  # [T], of the last decision, zero where it left a task out
    balancer: Any  # the state of the wrapped balancer


def average_losses(
    balancer: optax.GradientTransformation, k: jax.typing.ArrayLike
) -> Balancer:
    """Lets a balancer decide every k steps, on the mean losses of these steps.

    Several rules are meant for the mean losses of epochs: wrap them with the number of
    steps of an epoch as k. In the last step of each window of k steps the balancer is
    updated with the mean losses, and from then on its weights are used until the next
    decision. A step costs the balancer nothing in between, unless it is under a `vmap`
    that maps the counter too. With ``k = 1`` this is the balancer itself.

    Losses and preferences are averaged over the steps of the window in which the task
    was active. A task that was active in none of them is not active for the balancer in
    this update. Until a decision includes it, the weight of a task is its preference,
    also in the first window. The weight of a task that is not active in a step is zero.

    What else the balancer reads, such as KPIs or gradients, is that of the last step of
    the window.

    Args:
        balancer: The balancer to wrap.
        k: The number of steps in a window, at least 1.

    Returns:
        A loss-driven balancer.

    Raises:
        ValueError: If `k` is not a positive integer; from `update`, if there are no
            losses.
        TypeError: If `balancer` is not a balancer.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> weights_are_losses = optax.stateless(lambda preferences, losses: losses)
        >>> balancer, ones = average_losses(weights_are_losses, 2), jnp.ones(2)
        >>> state = balancer.init(ones)
        >>> for losses in ([5.0, 1.0], [7.0, 2.0], [0.0, 0.0]):
        ...     weights, state = balancer.update(ones, state, jnp.array(losses))
        ...     print(weights.tolist())
        [1.0, 1.0]
        [6.0, 1.5]
        [6.0, 1.5]
    """
    balancer = checked_balancer("balancer", balancer)
    check_whole("k", k, low=1)

    def init(params: Any) -> AverageLossesState:
        layout = layout_of(params)
        zeros = jnp.zeros((layout.num_tasks,), layout.dtype)
        counts = jnp.zeros((layout.num_tasks,), jnp.int32)
        step = jnp.zeros((), jnp.int32)
        # Arrays of their own: a donated buffer may stand in one field only.
        return AverageLossesState(
            losses=zeros,
            preferences=jnp.copy(zeros),
            counts=counts,
            step=step,
            weights=jnp.copy(zeros),
            balancer=balancer.init(params),
        )

    def update(
        updates: Any, state: AverageLossesState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, AverageLossesState]:
        layout, losses, preferences = read_losses("average_losses", updates, params)
        active = preferences > 0
        counts = count_up(state.counts, active)
        mean_losses = _averaged(state.losses, losses, counts, active)
        mean_preferences = _averaged(state.preferences, preferences, counts, active)
        step = count_up(state.step)
        full = step >= k

        def decide(balancer_state: Any) -> tuple[jax.Array, Any]:
            weights, balancer_state = balancer.update(
                layout.tree(mean_preferences),
                balancer_state,
                layout.tree(jnp.where(counts > 0, mean_losses, 1)),
                **extra_args,
            )
            # A balancer that remembers, such as `optax.ema`, must not revive a task.
            weights = nonzero(layout.vector("weights", weights), mean_preferences)
            return weights.astype(state.weights.dtype), balancer_state

        def keep(balancer_state: Any) -> tuple[jax.Array, Any]:
            return state.weights, balancer_state

        weights, balancer_state = control.cond(full, decide, keep, state.balancer)
        used = jnp.where(weights != 0, weights, preferences)
        new_state = AverageLossesState(
            losses=jnp.where(full, 0, mean_losses),
            preferences=jnp.where(full, 0, mean_preferences),
            counts=jnp.where(full, 0, counts),
            step=jnp.where(full, 0, step),
            weights=weights,
            balancer=balancer_state,
        )
        return layout.tree(jnp.where(active, used, 0)), new_state

    return transformation(init, update)


def _averaged(
    mean: jax.Array, value: jax.Array, counts: jax.Array, active: jax.Array
) -> jax.Array:
    """The mean of one value more, in a form that does not overflow."""
    share = 1 / jnp.maximum(counts, 1).astype(mean.dtype)
    return jnp.where(active, mean + (value * share - mean * share), mean)
