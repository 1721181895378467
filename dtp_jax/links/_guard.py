"""Steps in which the gradient of a task is not finite."""

from collections.abc import Callable
from typing import Any

from dtp_jax._core import control
from dtp_jax._core.layout import TaskLayout
from dtp_jax._core.numerics import is_finite
from dtp_jax.gradients import TaskGradients, at_features

# From the gradients that the rule reads, those that are summed, and the mask of the
# tasks to the combined gradient and the state.
Attempt = Callable[[TaskGradients, TaskGradients, Any], tuple[Any, Any]]


def guarded(
    attempt: Attempt, gradients: TaskGradients, layout: TaskLayout, task_mask: Any
) -> tuple[Any, Any]:
    """A step, or if its gradient is not finite, that without the tasks at fault.

    Args:
        attempt: A step from the state that was.
        gradients: Those of the tasks.
        layout: The layout of the tasks.
        task_mask: Booleans, or None for all True.

    Returns:
        What `attempt` returns: of all tasks that the mask has, or of those whose own
        gradients are finite.
    """
    found = attempt(gradients, gradients, task_mask)
    if gradients.finite() is not None:
        # Side by side, those that are not finite were left out.
        return found

    def without() -> tuple[Any, Any]:
        rows = gradients.stacked()
        # Arrays side by side know which of them are.
        finite: Any = rows.finite()
        if task_mask is not None:
            finite &= layout.vector("task_mask", task_mask, dtype=bool)
        read = gradients if at_features(gradients) else rows
        return attempt(read, rows, layout.tree(finite))

    return control.cond(is_finite(found[0]), lambda: found, without)
