"""What a link of an optimizer's chain reads of a step: which tasks are active."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dtp_jax._core.balancer import Balancer
from dtp_jax._core.layout import TaskLayout, missing_value
from dtp_jax.gradients import Shared, TaskGradients, check_stacked
from dtp_jax.kpi import check_kpis


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of the tasks, checked and cleaned.

    Attributes:
        layout: The layout of the tasks.
        gradients: Their gradients.
        active: ``[T]``, which tasks take part in the step.
        losses: A pytree like the tasks, one where a task is not active; None if they
            are not known.
        extra_args: What else the step supplied, the KPIs of inactive tasks missing.
    """

    layout: TaskLayout
    gradients: TaskGradients
    active: jax.Array
    losses: Any
    extra_args: dict[str, Any]

    def preferences(self) -> jax.Array:
        """``[T]``, one for an active task, else zero."""
        return jnp.asarray(self.active, self.layout.dtype)

    def run(
        self, balancer: Balancer, preferences: jax.Array, state: Any
    ) -> tuple[jax.Array, Any]:
        """Updates a balancer.

        Args:
            balancer: The balancer.
            preferences: What it starts from, ``[T]``.
            state: Its state.

        Returns:
            Its weights ``[T]``, zero for a task that is not active, through which no
            derivative flows, and its state.
        """
        weights, state = balancer.update(
            self.layout.tree(preferences),
            state,
            self.losses,
            task_gradients=self.gradients,
            **self.extra_args,
        )
        vector = jax.lax.stop_gradient(self.layout.vector("weights", weights))
        return jnp.where(self.active, vector, 0), state


def read_step(
    gradients: TaskGradients,
    layout: TaskLayout,
    *,
    losses: Any,
    kpis: Any,
    task_mask: Any,
    extra_args: dict[str, Any],
) -> Step:
    """Finds out which tasks are active, and takes the others out of what they supply.

    A task is not active if its mask is False or its loss is not finite, nor if its
    gradient is not, as far as that is known without computing it.

    Args:
        gradients: The gradients of the tasks.
        layout: The layout of the tasks.
        losses: The losses; None for those of the gradients.
        kpis: The KPIs, or None.
        task_mask: Booleans, or None for all True.
        extra_args: The other extra arguments of the step.

    Returns:
        The step.

    Raises:
        ValueError: If losses, KPIs or mask do not match the tasks.
    """
    losses = gradients.losses if losses is None else losses
    active = jnp.ones((layout.num_tasks,), bool)
    if task_mask is not None:
        active &= layout.vector("task_mask", task_mask, dtype=bool)
    if losses is not None:
        layout.check("losses", losses)
        finite = jax.tree.map(jnp.isfinite, losses)
        active &= layout.vector("losses", finite, dtype=bool)
        # What is not finite must not enter a state, not even times zero; nor what a
        # cast to the dtype of the weights makes so.
        largest = jnp.finfo(layout.dtype).max
        loss = jnp.clip(layout.vector("losses", losses), -largest, largest)
        losses = layout.tree(jnp.where(active, loss, 1))
    finite = gradients.finite()
    if finite is not None:
        active &= finite
    if kpis is not None:
        check_kpis(kpis, layout)
        observed = jnp.where(active, layout.vector("kpis", kpis), missing_value())
        extra_args = {**extra_args, "kpis": layout.tree(observed)}
    return Step(layout, gradients, active, losses, extra_args)


def gradients_of(
    updates: Any, params: Any, layout: TaskLayout, *, shared: Shared | None = None
) -> TaskGradients:
    """Reads what came into the link.

    Args:
        updates: A `TaskGradients`, or a pytree like the parameters with leaves
            ``[T, *param]``.
        params: The parameters of the optimizer, or None.
        layout: The layout of the tasks.
        shared: Which parameters of a pytree are shared; a `TaskGradients` knows.

    Returns:
        A `TaskGradients`.

    Raises:
        ValueError: If it is neither, or of other tasks or parameters, or if a
            transformation before the link changed it.
    """
    if isinstance(updates, TaskGradients):
        updates.untouched()
        if updates.losses is not None:
            layout.check("losses", updates.losses)
        if updates.num_tasks != layout.num_tasks:
            raise ValueError(
                f"The gradients are of {updates.num_tasks} tasks, but the link was "
                f"made for the {layout.num_tasks} tasks {', '.join(layout.names)}."
            )
        if params is not None:
            updates.check_params(params)
        return updates
    if isinstance(updates, tuple) and any(
        isinstance(u, TaskGradients) for u in updates
    ):
        raise ValueError(
            "update got a tuple that holds the TaskGradients. With has_aux=True unpack "
            "it: gradients, aux = task_gradients(...)(params, ...)."
        )
    if params is None:
        raise ValueError(
            "A plain pytree of stacked gradients needs the parameters to be checked "
            "against: call update(gradients, state, params), or pass a TaskGradients "
            "of dtp_jax.task_gradients."
        )
    if jax.tree.leaves(params) and not jax.tree.leaves(updates):
        raise ValueError(
            "update got gradients without any array. flax.nnx.Optimizer drops what is "
            "no variable of nnx, such as stacked gradients: use dtp_jax.nnx.Optimizer "
            "in its place."
        )
    check_stacked(updates, params, layout.num_tasks)
    return TaskGradients.from_stacked(updates, shared=shared)


def check_state(state: Any, expected: Any, layout: TaskLayout) -> None:
    """Checks that a state, perhaps a restored one, belongs to these tasks.

    Args:
        state: The state.
        expected: What `init` returns, or its shapes.
        layout: The layout of the tasks.

    Raises:
        ValueError: If its structure or a shape differs.
    """
    found = None
    if jax.tree.structure(state) != jax.tree.structure(expected):
        found = f"its structure is {jax.tree.structure(state)}"
    else:
        ours = jax.tree_util.tree_flatten_with_path(expected)[0]
        for (path, leaf), restored in zip(ours, jax.tree.leaves(state), strict=True):
            if jnp.shape(restored) != leaf.shape:
                name = jax.tree_util.keystr(path)
                shapes = f"{list(jnp.shape(restored))}, expected {list(leaf.shape)}"
                found = f"{name} has shape {shapes}"
    if found is not None:
        raise ValueError(
            f"The optimizer state does not fit the {layout.num_tasks} tasks "
            f"{', '.join(layout.names)}: {found}. Was it saved with other tasks or "
            "another method? Restore it with the same ones, or call init again."
        )
