"""The frame of a combiner: from the gradients of T tasks to one gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dtp_jax._core import linalg
from dtp_jax._core.balancer import Balancer, checked_balancer, link
from dtp_jax._core.layout import TaskLayout, missing_value, task_layout
from dtp_jax._core.probe import probed
from dtp_jax.gradients import Shared, shared_mask, zero_rows
from dtp_jax.links._step import check_state, gradients_of, read_step


class CombinerState(NamedTuple):
    """State of a combiner."""

    of_link = True  # for `checked_balancer`; no field

    # Those of the last step, a pytree like the tasks: names say whose state it is.
    task_preferences: Any
    preferences: Any  # the state of the balancer that ran first
    memory: Any  # what the combiner itself remembers


class Inputs(NamedTuple):
    """What a combiner's rule reads of a step.

    The rows of a task without a preference may hold anything, NaN too.
    """

    rows: list[jax.Array]  # of each shared parameter, [T, *param] in its dtype
    preferences: jax.Array  # [T], zero for a task that is not active
    losses: jax.Array | None  # [T], one for a task that is not active
    key: jax.Array | None  # the PRNG key of the step


class Combined(NamedTuple):
    """What a combiner's rule returns."""

    gradients: list[jax.Array]  # of each shared parameter [*param], of any float type
    memory: Any  # with the structure and types of what came in
    unshared_weights: jax.Array  # [T], of the gradients of the other parameters


def combiner(
    rule: Callable[[Inputs, Any], Combined],
    tasks: Any,
    *,
    preferences: optax.GradientTransformation | None,
    init_memory: Callable[[Any, TaskLayout], Any] = lambda params, layout: (),
    shared: Shared | None = None,
    remembers: bool = False,
) -> Balancer:
    """Builds a combiner from its rule.

    Args:
        rule: A pure function from the inputs of a step and the memory to the combined
            gradients and the memory.
        tasks: Names, for losses given as ``{name: scalar}``; an int T, for losses given
            as one [T] array; or an example pytree of the losses.
        preferences: A balancer that runs first; None for preferences of one.
        init_memory: From the parameters and the layout of the tasks to the memory at
            the start.
        shared: Which parameters are shared, where the gradients do not say.
        remembers: Whether the memory is of the parameters that `shared` selects.

    Returns:
        A gradient transformation from the gradients of the tasks to one gradient. Its
        `update` reads what that of `balance` reads, by the same rules.
    """
    layout = task_layout(tasks)
    first = checked_balancer(
        "preferences", optax.identity() if preferences is None else preferences, layout
    )

    def init(params: Any) -> CombinerState:
        ours = probed(layout)
        ones, zeros = ours.full(1.0), ours.full(0.0)
        return CombinerState(ones, first.init(zeros), init_memory(params, ours))

    def update(
        updates: Any,
        state: CombinerState,
        params: Any = None,
        *,
        losses: Any = None,
        kpis: Any = None,
        task_mask: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, CombinerState]:
        lazy = gradients_of(updates, params, layout, shared=shared)
        # Side by side the tasks cannot spoil each other, as they can in one pass.
        gradients = lazy.stacked()
        stack = gradients.stack()
        like = jax.tree.map(
            lambda rows: jax.ShapeDtypeStruct(rows.shape[1:], rows.dtype), stack
        )
        if remembers:
            _check_shared(shared_mask(shared, like), gradients.shared)
        check_state(state, jax.eval_shape(init, like), layout)
        step = read_step(
            gradients,
            layout,
            losses=losses,
            kpis=kpis,
            task_mask=task_mask,
            extra_args=extra_args,
        )
        wanted, first_state = step.run(first, step.preferences(), state.preferences)

        leaves, treedef = jax.tree.flatten(stack)
        inputs = Inputs(
            [leaf for leaf, used in zip(leaves, gradients.shared, strict=True) if used],
            wanted,
            None if step.losses is None else layout.vector("losses", step.losses),
            extra_args.get("key"),
        )
        found = rule(inputs, state.memory)
        combined = iter(found.gradients)
        whole = [
            next(combined).astype(leaf.dtype)
            if used
            else linalg.weighted_sum(found.unshared_weights, leaf)
            for leaf, used in zip(leaves, gradients.shared, strict=True)
        ]
        # Gradients that a schedule scaled before this link have no meaning.
        untouched = gradients.untouched()
        whole = [jnp.where(untouched, leaf, missing_value()) for leaf in whole]
        new = CombinerState(layout.tree(wanted), first_state, found.memory)
        return treedef.unflatten(whole), new

    return link(init, update)


def memory_of_rows(layout: TaskLayout, shared: Shared | None, params: Any) -> Any:
    """Zeros for each task and each shared parameter.

    Args:
        layout: The layout of the tasks.
        shared: As for `combiner`.
        params: The parameters.

    Returns:
        A pytree like the parameters with leaves ``[T, *param]`` in float32, or float64
        where the parameter is, sharded as it is; None in place of those that are not
        shared.
    """
    num_tasks = layout.num_tasks
    leaves, treedef = jax.tree.flatten(params)
    mask = shared_mask(shared, params)
    pairs = zip(leaves, mask, strict=True)
    return treedef.unflatten(
        [zero_rows(num_tasks, leaf) if used else None for leaf, used in pairs]
    )


def weighted(weights: jax.Array, rows: jax.Array) -> jax.Array:
    """The rows times their weights, without those of weight zero.

    Args:
        weights: ``[T]``, or a scalar for one row.
        rows: ``[T, *param]``, or ``[*param]``. A row of weight zero may hold NaN.

    Returns:
        An array like the rows in float32, or float64 if they are.
    """
    rows = rows.astype(jnp.promote_types(jnp.float32, rows.dtype))
    column = weights.reshape(-1, *[1] * (rows.ndim - 1)) if weights.ndim else weights
    return jnp.where(column != 0, rows * column.astype(rows.dtype), 0)


def _check_shared(ours: tuple[bool, ...], theirs: tuple[bool, ...]) -> None:
    if ours != theirs:
        raise ValueError(
            "The combiner remembers gradients of other parameters than those that the "
            f"gradients share: {sum(ours)} and {sum(theirs)} of {len(ours)}. Give "
            "both the same `shared`, task_gradients(..., shared=...) and the combiner."
        )
