"""The frame of rules whose multipliers on the simplex follow two batches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dtp_jax._core.balancer import Balancer, nonzero, transformation
from dtp_jax._core.layout import layout_of
from dtp_jax._core.reads import required, required_gradients
from dtp_jax.gradients import cross_gramian

Rule = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def multiplier_weighting(
    name: str, state_type: Callable[[jax.Array], Any], rule: Rule
) -> Balancer:
    """A balancer that remembers a multiplier for each task, uniform at the start.

    Args:
        name: The name of the balancer, for the messages.
        state_type: Of the state, whose one field is ``simplex``.
        rule: A pure function from the products ``[T, T]`` of the gradients of two
            batches, the preferences ``[T]`` and the multipliers ``[T]`` to the weights
            and the new multipliers.

    Returns:
        A balancer that reads `task_gradients` and `second_task_gradients`; or, with
        `third_task_gradients`, the second and third.
    """

    def init(params: Any) -> Any:
        layout = layout_of(params)
        return state_type(
            jnp.full((layout.num_tasks,), 1 / layout.num_tasks, layout.dtype)
        )

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        task_gradients: Any = None,
        second_task_gradients: Any = None,
        third_task_gradients: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, Any]:
        del params, extra_args
        layout = layout_of(updates)
        preferences = layout.vector("preferences", updates)
        how = "pass the TaskGradients of another batch to update"
        second = required(second_task_gradients, "second_task_gradients", name, how)
        first, third = required_gradients(task_gradients, name), third_task_gradients
        pair = (first, second) if third is None else (second, third)
        gramian = cross_gramian(*pair)
        weights, simplex = rule(gramian, preferences, state.simplex)
        new = state_type(simplex.astype(state.simplex.dtype))
        return layout.tree(nonzero(weights, preferences)), new

    return transformation(init, update)
