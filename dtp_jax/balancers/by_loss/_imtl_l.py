"""Impartial loss balance: learned scales that bring all losses to one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dtp_jax._core.balancer import Balancer, nonzero, transformation
from dtp_jax._core.checks import check_optimizer, check_scalar
from dtp_jax._core.layout import layout_of, per_task
from dtp_jax._core.reads import read_losses


class ImtlLState(NamedTuple):
    """State of `imtl_l`."""

    log_scales: jax.Array  # [T]
    optimizer: Any  # the state of the inner optimizer


def imtl_l(
    *,
    optimizer: optax.GradientTransformation | None = None,
    init_value: Any = 0.0,
    bound: float = 10.0,
) -> Balancer:
    """Weights each task by a learned scale, which tends to one over its loss.

    Each task has a log-scale ``s``, which lives in the state of this balancer and
    descends on ``exp(s) L - s``; the weight is ``exp(s)``. For a constant loss s
    settles at ``-log L``, where all weighted losses are one, whatever their units. The
    weights of a step use the log-scales before the step, as in joint training.
    Preferences multiply the weights.

    Losses must be at least 0; a negative one counts as zero. The log-scales stay within
    ``[-bound, bound]``, so a loss of zero has the weight ``exp(bound)`` at most. A task
    that is not active keeps its log-scale.

    Args:
        optimizer: Moves the log-scales; Adam at a rate of 0.01 by default (our choice,
            the paper trains them with the optimizer of the parameters). No weight
            decay.
        init_value: The log-scales at the start; a scalar or a pytree like the tasks. 0
            in the paper, for weights of one.
        bound: Largest absolute log-scale (not in the paper).

    Returns:
        A loss-driven balancer.

    Raises:
        TypeError: If `optimizer` is none of optax.
        ValueError: If `bound` is not positive; from `update`, if there are no losses.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> balancer, ones = imtl_l(optimizer=optax.sgd(0.5)), jnp.ones(2)
        >>> losses = jnp.array([2.0, 0.5])
        >>> weights, state = balancer.update(ones, balancer.init(losses), losses)
        >>> weights.tolist(), state.log_scales.tolist()  # 0.5 (1 - L)
        ([1.0, 1.0], [-0.5, 0.25])

    References:
        Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021, its loss balance
        IMTL-L, with e as the base of the exponential. On a fixed
        sequence and with the same optimizer the weights agree with gradient descent on
        the paper's objective to rounding, up to the bound. Heads:
        ``balance(..., heads="weights")``. For the paper's whole IMTL see `imtl_g`: a
        chain of the two is another method.
    """
    check_scalar("bound", bound, low=0, open_low=True, infinite=True)
    check_optimizer("optimizer", optimizer)
    inner = optax.adam(1e-2) if optimizer is None else optimizer

    def init(params: Any) -> ImtlLState:
        layout = layout_of(params)
        start = per_task("init_value", init_value, layout)
        # Copies: an array of the caller, or one that the optimizer keeps, would be
        # donated with the state.
        return ImtlLState(jnp.copy(start), inner.init(jnp.copy(start)))

    def update(
        updates: Any, state: ImtlLState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, ImtlLState]:
        del extra_args
        layout, losses, preferences = read_losses("imtl_l", updates, params)
        active = preferences > 0
        s = state.log_scales
        weights = jnp.exp(s)

        # Beyond exp(bound) the optimum lies outside of the interval anyway, and the
        # square of a huge gradient would stay in the memory of Adam for ever.
        loss = jnp.clip(losses, 0, jnp.exp(bound))
        gradient = jnp.where(active, weights * loss - 1, 0)
        step, inner_state = inner.update(gradient, state.optimizer, s)
        moved = jnp.clip(jnp.asarray(optax.apply_updates(s, step)), -bound, bound)
        # Momentum would move the log-scale of a task that is not active.
        new = ImtlLState(jnp.where(active, moved, s), inner_state)
        return layout.tree(nonzero(preferences * weights, preferences)), new

    return transformation(init, update)
