"""Fast adaptive multitask optimization."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dtp_jax._core.balancer import Balancer, nonzero, transformation
from dtp_jax._core.checks import check_optimizer, check_scalar
from dtp_jax._core.layout import layout_of, per_task
from dtp_jax._core.numerics import softmax_over
from dtp_jax._core.reads import read_losses


class FamoState(NamedTuple):
    """State of `famo`."""

    logits: jax.Array  # [T]
    optimizer: Any  # the state of the inner optimizer
    losses: jax.Array  # [T], before the last step
    known: jax.Array  # [T], int32, 1 where the last step had a loss


def famo(
    *,
    learning_rate: optax.ScalarOrSchedule = 0.025,
    weight_decay: jax.typing.ArrayLike = 1e-3,
    min_losses: Any = 0.0,
    eps: float = 1e-8,
    optimizer: optax.GradientTransformation | None = None,
) -> Balancer:
    """Lets all losses fall at the same rate, judged by what the last step did.

    With logits ``x``, ``z = softmax(x)`` and the gaps ``D = L - min_losses + eps``, the
    weights are those of a step on ``sum_t z_t log D_t``, made to sum to one::

        w = (z / D) / sum(z / D)
        delta = log D(before the step) - log D(after the step)
        x <- optimizer(x, gradient = J' delta + weight_decay * x)

    where ``J`` is the derivative of the softmax: the logit of a task that improved more
    than the others goes down. The first step leaves the logits at zero. Softmax and
    sums go over the active tasks; a task moves its logit if it was active in this step
    and the last. Preferences multiply the weights.

    The losses after the step are those of the extra argument `previous_losses`, the
    previous batch at the current parameters, a pytree like the tasks: the paper's rule,
    for one more forward pass, ``previous_losses=losses_fn(params, previous_batch)``.
    Without it they are the losses of this step, which cost nothing, and the difference
    of two batches enters as noise. None or NaN in it means "not known".

    Args:
        learning_rate: Of the default optimizer, Adam.
        weight_decay: The paper's gamma: forgets old improvements. The paper says 1e-3;
            the authors' code defaults to 0.01, and their scripts use 0.01, 0.001, and 0
            for the two-task toy.
        min_losses: A lower bound of each loss; a scalar or a pytree like the tasks. A
            loss below it counts as equal to it.
        eps: Added to the gaps. A gap below it does not count any more; choose a smaller
            one where losses fall below 1e-7.
        optimizer: Moves the logits in place of Adam.

    Returns:
        A loss-driven balancer whose weights sum to 1 for preferences of one. Instead of
        zero, which would mean "not active", an active task gets 1e-30.

    Raises:
        TypeError: If `optimizer` is none of optax.
        ValueError: If a hyperparameter is out of range; from `update`, if there are no
            losses, or `min_losses` or `previous_losses` do not match the tasks.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> balancer = famo(optimizer=optax.sgd(1.0), weight_decay=0.0)
        >>> ones, losses = jnp.ones(2), jnp.array([1.0, 3.0])
        >>> weights, state = balancer.update(ones, balancer.init(losses), losses)
        >>> [round(weight, 4) for weight in weights.tolist()]
        [0.75, 0.25]
        >>> after = jnp.array([jnp.exp(-1.0), 3.0])  # delta = 1 and 0
        >>> _, state = balancer.update(ones, state, losses, previous_losses=after)
        >>> [round(logit, 4) for logit in state.logits.tolist()]
        [-0.25, 0.25]

    References:
        Liu, Feng, Stone, Liu, "FAMO: Fast Adaptive Multitask Optimization", NeurIPS
        2023, algorithm 1, and the authors' code, which differentiates ``log D`` with
        the same constant: on a fixed sequence the weights agree to rounding. Heads:
        ``balance(..., heads="weights")``.
    """
    check_scalar("learning_rate", learning_rate, low=0, open_low=True)
    check_scalar("weight_decay", weight_decay, low=0)
    check_scalar("eps", eps, low=0, open_low=True)
    check_optimizer("optimizer", optimizer)
    inner = optax.adam(learning_rate) if optimizer is None else optimizer

    def init(params: Any) -> FamoState:
        layout = layout_of(params)
        zeros = jnp.zeros((layout.num_tasks,), layout.dtype)
        known = jnp.zeros((layout.num_tasks,), jnp.int32)
        # Arrays of their own: a donated buffer may stand in one field only.
        return FamoState(zeros, inner.init(jnp.copy(zeros)), jnp.copy(zeros), known)

    def update(
        updates: Any,
        state: FamoState,
        params: Any = None,
        *,
        previous_losses: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, FamoState]:
        del extra_args
        layout, losses, preferences = read_losses("famo", updates, params)
        after = losses
        if previous_losses is not None:
            after = layout.vector("previous_losses", previous_losses)
            after = jax.lax.stop_gradient(after)
        active = preferences > 0
        lowest = per_task("min_losses", min_losses, layout)

        def log_gap(losses: jax.Array, valid: jax.Array) -> jax.Array:
            gap = jnp.clip(losses - lowest, 0, jnp.finfo(losses.dtype).max)
            return jnp.log(jnp.where(valid, gap, 1) + eps)

        known = active & (state.known > 0) & jnp.isfinite(after)
        delta = log_gap(state.losses, known) - log_gap(after, known)
        logits, optimizer_state = _move(inner, state, delta, known, weight_decay)

        # In logarithms, since z / D may leave the range of float32.
        shares = softmax_over(active, logits - log_gap(losses, active))
        weights = nonzero(preferences * shares, preferences)
        recorded = jnp.where(active, losses, state.losses)
        new = FamoState(logits, optimizer_state, recorded, active.astype(jnp.int32))
        return layout.tree(weights), new

    return transformation(init, update)


def _move(
    inner: optax.GradientTransformation,
    state: FamoState,
    delta: jax.Array,
    known: jax.Array,
    weight_decay: jax.typing.ArrayLike,
) -> tuple[jax.Array, Any]:
    """One step of the optimizer on the logits of the known tasks."""
    z = softmax_over(known, state.logits)
    gradient = z * (delta - jnp.sum(z * delta, where=known))
    gradient = jnp.where(known, gradient + weight_decay * state.logits, 0)
    step, new = inner.update(gradient, state.optimizer, state.logits)
    moved = jnp.asarray(optax.apply_updates(state.logits, step))
    # A step without a single observation, such as the first, must not count in Adam.
    new = jax.tree.map(
        lambda new, old: jnp.where(known.any(), new, old), new, state.optimizer
    )
    return jnp.where(known, moved, state.logits), new
