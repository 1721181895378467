"""Priority-constrained descent."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax._core.balancer import Balancer, nonzero, transformation
from dtp_jax._core.checks import check_number, check_scalar
from dtp_jax._core.counters import count_up
from dtp_jax._core.layout import layout_of, per_task
from dtp_jax._core.linalg import correlation, positive, squared_norm, subproblem
from dtp_jax._core.reads import gramian_of
from dtp_jax.solvers._softened import softened_quadratic


class PcdState(NamedTuple):
    """State of `pcd`."""

    squared_norms: jax.Array  # [T], averages, not yet corrected for their start at zero
    num_updates: jax.Array  # [T], int32, steps in which the task was active


def pcd_weights(
    gramian: jax.Array,
    preferences: jax.Array | None = None,
    *,
    primary: int,
    scales: jax.Array | None = None,
    tau: jax.typing.ArrayLike = 0.02,
) -> jax.Array:
    """The rule of `pcd`, from the Gramian to the weights.

    Args:
        gramian: ``[T, T]``, the inner products of the task gradients.
        preferences: ``[T]``, at least 0. None for ones.
        primary: The position of the task that leads.
        scales: ``[T]``, what each gradient is divided by; None for its own norm.
        tau: Least progress of the other tasks, a scalar or ``[T]``.

    Returns:
        ``[T]``, at least 0.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 2.0]])
        >>> weights = pcd_weights(gramian, primary=0, tau=0.0)
        >>> [round(weight, 3) for weight in weights.tolist()]  # at a right angle to g_2
        [1.414, 0.707]
    """
    gramian, preferences = subproblem(gramian, preferences)
    num_tasks = preferences.size
    cosines, norms = correlation(gramian)
    scales = norms if scales is None else jnp.asarray(scales, norms.dtype)
    lengths = preferences * jnp.where(scales > 0, norms / positive(scales), 0)
    first = jnp.arange(num_tasks) == primary
    # A task without a gradient cannot be asked for progress.
    others = ~first & (lengths > 0)

    # The multipliers of unit gradients, relative to the length of the primary one.
    lead = lengths[primary]
    relative = jnp.where(others, lengths / positive(lead), 0)
    wanted = jnp.asarray(tau, norms.dtype) * relative
    matrix = jnp.where(others[:, None] & others[None, :], cosines, 0)
    matrix = jnp.where(jnp.eye(num_tasks, dtype=bool), 1, matrix)
    linear = jnp.where(others, cosines[primary] - wanted, 0)
    size = jnp.maximum(jnp.max(jnp.abs(linear)), 1)
    found = softened_quadratic(matrix, linear / size)
    parts = jnp.where(first, 1, jnp.where(others, found * size, 0))

    # The step gets the length of the gradient of the primary task.
    squared = squared_norm(cosines, parts)
    # Parts that cancel leave rounding, and a root of it in the length. That must not be
    # blown up to full length.
    noise = 2 * jnp.finfo(norms.dtype).eps * jnp.sum(parts) ** 2
    step = jnp.sqrt(jnp.maximum(squared, noise))
    length = preferences[primary] * norms[primary]
    weights = (parts / step) * (length / positive(norms))
    return jnp.where((lead > 0) & (parts > 0), weights, 0)


def pcd(
    primary: str | int,
    *,
    tau: Any = 0.02,
    decay: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
) -> Balancer:
    """Follows one task, as far as all others make a little progress.

    Each gradient is divided by the root mean square of its norm, ``h_t = g_t / sqrt(v_t
    + eps)`` with the bias-corrected average ``v_t`` of ``norm(g_t)^2``. The step is the
    vector nearest to that of the primary task::

        d = argmin norm(d - h_1)^2    subject to    <h_j, d> >= tau norm(h_j)^2

    for the other tasks j, and then gets the length of ``g_1``. Preferences scale the
    ``h_t``. A zero primary gradient gives a zero step. Where the constraints exclude
    each other they are missed by as little as possible, in the least-squares sense;
    elsewhere they hold to rounding. Where nothing is left of the step but rounding, as
    with gradients within 1e-3 of opposite in float32, it is shorter than ``g_1``.

    `update` needs the task gradients, which `balance` supplies.

    Args:
        primary: The task that leads: its name, or its position in the order of
            `jax.tree.leaves`. A position needs ``static_args=("primary",)`` under
            `optax.inject_hyperparams`.
        tau: Least progress of the other tasks, relative to that of a step along their
            own gradient; a scalar or a pytree like the tasks. Zero forbids only
            conflict.
        decay: Of the average of the squared norms, in [0, 1).
        eps: Added to it.

    Returns:
        A balancer whose weights are at least 0.

    Raises:
        ValueError: If a number is out of range, `primary` is no task, or from `update`,
            if there are no task gradients.

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax import TaskGradients
        >>> balancer, ones = pcd(0, tau=0.0), jnp.ones(2)
        >>> rows = jnp.array([[1.0, 0.0], [-1.0, 1.0]])
        >>> gradients = TaskGradients.from_stacked(rows)
        >>> weights, _ = balancer.update(
        ...     ones, balancer.init(ones), task_gradients=gradients
        ... )
        >>> [round(weight, 3) for weight in gradients.combine(weights).tolist()]
        [0.707, 0.707]

    References:
        Priority-Constrained Descent, Transactions on Machine Learning Research, 2026.
        Heads: ``balance(..., heads="preferences")`` leaves those of single tasks
        unscaled.
    """
    for leaf in jax.tree.leaves(tau):
        check_number("tau", leaf, low=0)
    check_scalar("decay", decay, low=0, high=1, open_high=True)
    check_scalar("eps", eps, low=0)

    def init(params: Any) -> PcdState:
        layout = layout_of(params)
        layout.position("primary", primary)
        zeros = jnp.zeros((layout.num_tasks,), layout.dtype)
        return PcdState(zeros, jnp.zeros((layout.num_tasks,), jnp.int32))

    def update(
        updates: Any,
        state: PcdState,
        params: Any = None,
        *,
        task_gradients: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, PcdState]:
        del params, extra_args
        layout = layout_of(updates)
        preferences = layout.vector("preferences", updates)
        gramian, known = subproblem(
            gramian_of(task_gradients, preferences, "pcd"), preferences
        )
        average = decay * state.squared_norms + (1 - decay) * jnp.diagonal(gramian)
        average = jnp.where(known > 0, average, state.squared_norms)
        num_updates = count_up(state.num_updates, known > 0)
        start = 1 - jnp.asarray(decay, average.dtype) ** num_updates
        scales = jnp.sqrt(average / jnp.where(num_updates > 0, start, 1) + eps)
        weights = pcd_weights(
            gramian,
            known,
            primary=layout.position("primary", primary),
            scales=scales,
            tau=per_task("tau", tau, layout),
        )
        new = PcdState(average.astype(state.squared_norms.dtype), num_updates)
        return layout.tree(nonzero(weights, preferences)), new

    return transformation(init, update)
