"""What a link reads that gets the gradient of one task in a step."""

from typing import Any

import jax
import jax.numpy as jnp

from dtp_jax._core.layout import TaskLayout


def place_of(task: Any, layout: TaskLayout, method: str) -> Any:
    """The position of the task of the step.

    Args:
        task: Its name or position; an array, which may be traced, is trusted.
        layout: The layout of the tasks.
        method: The name of the link, for the messages.

    Returns:
        An integer.

    Raises:
        ValueError: If there is none, or no such task.
    """
    if task is None:
        raise ValueError(
            f"{method} needs `task`, the one that the gradient is of: pass task=, its "
            "name or its position, to update."
        )
    if isinstance(task, jax.Array):
        return task
    return layout.position("task", task)


def check_one_gradient(updates: Any, like: Any, method: str) -> None:
    """Checks that something is the gradient of one task.

    Args:
        updates: What `update` got.
        like: A pytree of its structure and shapes.
        method: The name of the link, for the messages.

    Raises:
        ValueError: If it is not, saying what to do.
    """
    if hasattr(updates, "gramian"):
        raise ValueError(
            f"{method} takes the gradient of one task, but got the TaskGradients: "
            "differentiate the loss of one task, jax.grad(loss_fn)(params, task)."
        )
    if jax.tree.structure(like) == jax.tree.structure(updates):
        pairs = zip(jax.tree.leaves(like), jax.tree.leaves(updates), strict=True)
        if all(jnp.shape(x) == jnp.shape(y) for x, y in pairs):
            return
    raise ValueError(
        f"{method} takes the gradient of one task, a pytree like the parameters that "
        "it was initialized with."
    )
