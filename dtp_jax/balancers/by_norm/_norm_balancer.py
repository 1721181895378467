"""Shares of the gradient: the balancer of EnCodec."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg
from dtp_jax._core.balancer import Balancer, nonzero, transformation
from dtp_jax._core.checks import check_number, check_scalar
from dtp_jax._core.layout import layout_of, per_task
from dtp_jax._core.reads import required_gradients, squared_norms_of
from dtp_jax.gradients import example_norms

_LARGEST_WEIGHT = 1e30


class NormBalancerState(NamedTuple):
    """State of `norm_balancer`."""

    norms: jax.Array  # [T], running sums of norms, 1 / correction times the average
    correction: jax.Array  # [T], 1 - decay^k for k observations


def norm_balancer(
    shares: Any = 1.0,
    *,
    total_norm: jax.typing.ArrayLike = 1.0,
    decay: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-12,
    per_example: bool = False,
) -> Balancer:
    """Gives each loss a share of the gradient, whatever its scale.

    With n_t the norm of the gradient of task t and its running average, corrected for
    its start::

        w_t = total_norm * (shares_t / sum_s shares_s) / (eps + average(n_t))

    So the weighted gradient of a task has the norm ``total_norm`` times its share, on
    average: shares of 3 and 1 mean that three quarters come from the first. Preferences
    multiply the shares.

    Meant for gradients at the output of a model, from `feature_task_gradients` with the
    losses as heads: norms cost one cheap pass through the losses, and the model is
    passed through once. What a loss has of the parameters beside that output, such as a
    penalty on codes inside of the model, is weighted, but not measured. With gradients
    of the parameters, of `task_gradients`, each step costs a backward pass per task.

    A task that is not active, or whose gradient is not finite, keeps its average; one
    that was never measured counts as of norm 1. A task whose gradients were all zero
    has the weight ``total_norm * share / eps``: 1e12 by default, which its first
    gradient brings down.

    Args:
        shares: What each task should have of the gradient, at least 0, 0 for none: a
            number or a pytree like the tasks.
        total_norm: The sum of the norms of the weighted gradients, greater than 0.
        decay: Of the running average, in [0, 1).
        eps: Added to the average, at least 0.
        per_example: Whether the norm is that of a single example's gradient, averaged
            over the batch, as the authors take it; for gradients at features only.

    Returns:
        A balancer that reads task gradients. Instead of zero, which would mean "not
        active", an active task gets 1e-30.

    Raises:
        ValueError: If a hyperparameter is out of range or does not match the tasks;
            from `update`, if there are no task gradients, or with `per_example` none
            at features.

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax import TaskGradients
        >>> balancer, ones = norm_balancer([3.0, 1.0]), jnp.ones(2)
        >>> gradients = TaskGradients.from_stacked(jnp.array([[3.0, 4.0], [0.0, 0.5]]))
        >>> weights, _ = balancer.update(
        ...     ones, balancer.init(ones), task_gradients=gradients
        ... )
        >>> [round(weight, 4) for weight in weights.tolist()]  # 3 / 4 / 5, 1 / 4 / 0.5
        [0.15, 0.5]

    References:
        Défossez et al., "High Fidelity Neural Audio Compression", 2022, section 3.4,
        and the authors' code, audiocraft's `Balancer`, whose rule this is; its default
        is ``per_example=True``. Heads: ``balance(..., heads="weights")``.
    """
    for number in jax.tree.leaves(shares):
        check_number("shares", number, low=0)
    check_scalar("total_norm", total_norm, low=0, open_low=True)
    check_scalar("decay", decay, low=0, high=1, open_high=True)
    check_scalar("eps", eps, low=0)

    def init(params: Any) -> NormBalancerState:
        layout = layout_of(params)
        zeros = jnp.zeros((layout.num_tasks,), layout.dtype)
        # An array of its own: a donated buffer may stand in one field only.
        return NormBalancerState(zeros, jnp.copy(zeros))

    def update(
        updates: Any,
        state: NormBalancerState,
        params: Any = None,
        *,
        task_gradients: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, NormBalancerState]:
        del params, extra_args
        layout = layout_of(updates)
        preferences = layout.vector("preferences", updates)
        found = _norms(task_gradients, preferences, per_example)
        measured = (preferences > 0) & jnp.isfinite(found)
        found = jnp.where(measured, found, 0)
        norms = decay * state.norms + (1 - decay) * found
        correction = decay * state.correction + (1 - decay)
        state = NormBalancerState(
            jnp.where(measured, norms.astype(layout.dtype), state.norms),
            jnp.where(measured, correction.astype(layout.dtype), state.correction),
        )
        started = state.correction > 0
        average = state.norms / jnp.where(started, state.correction, 1)
        wanted = per_task("shares", shares, layout)
        # Relative to the largest, so that sums and products stay in range.
        wanted *= preferences / linalg.positive(jnp.max(preferences))
        total = jnp.sum(wanted)
        wanted /= linalg.positive(total)
        divisor = jnp.maximum(eps + average, jnp.finfo(average.dtype).tiny)
        # Not measured yet, as where its gradient was never finite, is not short.
        divisor = jnp.where(started, divisor, 1)
        weights = jnp.minimum(total_norm * wanted / divisor, _LARGEST_WEIGHT)
        return layout.tree(nonzero(weights, preferences)), state

    return transformation(init, update)


def _norms(gradients: Any, preferences: jax.Array, per_example: bool) -> jax.Array:
    if not per_example:
        return jnp.sqrt(squared_norms_of(gradients, preferences, "norm_balancer"))
    gradients = required_gradients(gradients, "norm_balancer")
    return jax.lax.stop_gradient(example_norms(gradients)).astype(preferences.dtype)
