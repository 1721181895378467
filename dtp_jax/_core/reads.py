"""What a balancer reads of a step, or how the user supplies it."""

import sys
from typing import Any

import jax
import jax.numpy as jnp

from .layout import TaskLayout, layout_of


def read_losses(
    name: str, updates: Any, params: Any, *, instead: str = ""
) -> tuple[TaskLayout, jax.Array, jax.Array]:
    """What the `update` of a loss-driven balancer got.

    Args:
        name: The name of the balancer, for the messages.
        updates: The preferences, as `update` got them.
        params: The losses, as `update` got them.
        instead: What else the user may supply, for the message.

    Returns:
        The layout of the tasks; the losses ``[T]``, through which no derivative flows;
        and the preferences ``[T]``, zero where a loss is not finite.

    Raises:
        ValueError: If there are no losses, or they do not fit the preferences.
    """
    how = (
        "pass a TaskGradients, losses= next to stacked gradients, or the losses as the "
        "third argument of a balancer's own update"
    ) + (f"; or {instead}" if instead else "")
    params = required(params, "losses", name, how)
    layout = layout_of(updates)
    losses = jax.lax.stop_gradient(layout.vector("losses", params))
    preferences = layout.vector("preferences", updates)
    return layout, losses, jnp.where(jnp.isfinite(losses), preferences, 0)


def divisible(losses: jax.Array, active: jax.Array) -> jax.Array:
    """Losses to divide by, for methods that are meant for losses greater than 0.

    Args:
        losses: ``[T]``.
        active: ``[T]``, which of them count.

    Returns:
        ``[T]``, at least 1e-12 of the largest active loss, also for tasks that are not
        active; 1 for all if no active loss is positive.

    Example:
        >>> active = jnp.array([True, True, False])
        >>> divisible(jnp.array([2.0, 0.0, 3.0]), active).tolist()[0]
        2.0
    """
    losses = jnp.where(active, jnp.maximum(losses, 0), 0)
    largest = jnp.max(losses)
    return jnp.maximum(losses, jnp.where(largest > 0, 1e-12 * largest, 1))


def required(value: Any, name: str, method: str, how: str) -> Any:
    """Returns an extra argument, or says how to supply it.

    Args:
        value: What the step supplied, None for nothing.
        name: The name of the extra argument.
        method: The method that needs it.
        how: How the user supplies it.

    Returns:
        The value.

    Raises:
        ValueError: If it is None.
    """
    if value is None:
        # The user may well have given it, to a class that does not pass it on.
        hint = ""
        if "flax" in sys.modules:
            hint = (
                " With flax's own TrainState, which passes nothing on to update, it "
                "takes dtp_jax.linen.TrainState."
            )
        raise ValueError(
            f"{method} needs `{name}`, which this step did not supply: {how}.{hint}"
        )
    return value


def required_gradients(task_gradients: Any, method: str) -> Any:
    """Returns the task gradients, or says how to supply them.

    Args:
        task_gradients: What the step supplied as the extra argument.
        method: The name of the balancer, for the message.

    Returns:
        The task gradients.

    Raises:
        ValueError: If they are None.
    """
    how = "wrap the balancer in dtp_jax.balance, or pass task_gradients= to update"
    return required(task_gradients, "task_gradients", method, how)


def stream_of(key: Any, constant: int, method: str) -> jax.Array:
    """The PRNG key of one link, from the key that all links of a chain share.

    Args:
        key: What the step supplied as the extra argument.
        constant: Of the method.
        method: The name of the method, for the messages.

    Returns:
        A key.

    Raises:
        ValueError: If there is no key.
    """
    how = "pass key=, a new jax.random.key in each step, to update"
    return jax.random.fold_in(required(key, "key", method, how), constant)


def gramian_of(task_gradients: Any, preferences: jax.Array, method: str) -> jax.Array:
    """The [T, T] Gramian that a gradient-driven balancer reads.

    Args:
        task_gradients: What the step supplied as the extra argument.
        preferences: ``[T]``.
        method: The name of the balancer, for the messages.

    Returns:
        The Gramian, through which no derivative flows. The rows and columns of tasks
        that are not active, or whose gradient is NaN, are zero.

    Raises:
        ValueError: If there are no task gradients, or of another number of tasks.
    """
    gradients = _gradients_of(task_gradients, preferences, method)
    gramian = gradients.gramian()
    active = (preferences > 0) & ~jnp.isnan(jnp.diagonal(gramian))
    gramian = jnp.where(active[:, None] & active[None, :], gramian, 0)
    return jax.lax.stop_gradient(gramian)


def squared_norms_of(
    task_gradients: Any, preferences: jax.Array, method: str
) -> jax.Array:
    """The diagonal of what `gramian_of` returns, without the cost of the rest.

    Args:
        task_gradients: What the step supplied as the extra argument.
        preferences: ``[T]``.
        method: The name of the balancer, for the messages.

    Returns:
        ``[T]``, zero for tasks that are not active; no derivative flows through it.

    Raises:
        ValueError: As `gramian_of` does.
    """
    gradients = _gradients_of(task_gradients, preferences, method)
    squares = jnp.where(preferences > 0, gradients.squared_norms(), 0)
    return jax.lax.stop_gradient(squares)


def _gradients_of(task_gradients: Any, preferences: jax.Array, method: str) -> Any:
    gradients = required_gradients(task_gradients, method)
    if gradients.num_tasks != preferences.size:
        raise ValueError(
            f"{method} got {preferences.size} preferences for {gradients.num_tasks} "
            "task gradients. `optax.masked` cannot hide tasks from it: use "
            "curricula.stages or the extra argument task_mask instead."
        )
    return gradients
