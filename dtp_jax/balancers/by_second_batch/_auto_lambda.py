"""Auto-lambda: weights that descend on the loss of a validation batch."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dtp_jax._core.balancer import Balancer, nonzero, transformation
from dtp_jax._core.checks import check_optimizer, check_scalar, check_static
from dtp_jax._core.layout import TaskLayout, layout_of, per_task
from dtp_jax._core.reads import required, required_gradients

# A derivative that is further above all before it counts as so many times their
# largest: the second moment of Adam would not forget it within the run, or overflow.
_LARGEST_JUMP = 1e3
_LARGEST_SLOPE = 1e15


class AutoLambdaState(NamedTuple):
    """State of `auto_lambda`."""

    meta_weights: jax.Array  # [T], before preferences
    largest: jax.Array  # [T], absolute values of the derivatives so far
    optimizer: Any  # the state of the inner optimizer


def auto_lambda(
    learning_rate: jax.typing.ArrayLike,
    *,
    primary: Sequence[str | int] | None = None,
    optimizer: optax.GradientTransformation | None = None,
    init_value: Any = 0.1,
    min_weight: jax.typing.ArrayLike | None = None,
) -> Balancer:
    """Learns the weights by what a step would do to the losses of another batch.

    After the step ``params - learning_rate * sum_t w_t g_t`` the validation loss of the
    primary tasks, ``V = sum_{t primary} L_t``, has the derivative ``-learning_rate
    <grad V, g_t>`` in ``w_t``, and the weights follow it::

        w <- optimizer(w, gradient = -learning_rate * <grad V(virtual), g>)

    So a task gains weight while its gradient points where the primary tasks improve on
    data that it was not computed from. The weights of a step have already moved.

    `update` needs the extra argument `second_task_gradients`, a `TaskGradients` of a
    validation batch. Where it is taken decides what is computed::

        at the virtual parameters      the exact derivative, the paper's rule
        at the current parameters      the same up to a term in learning_rate^2

    The virtual parameters are ``params - learning_rate * g``, where ``g =
    gradients.combine(optax.tree.get(opt_state, "meta_weights"))`` uses the weights
    before the step; that costs a backward pass. The rest costs one backward pass of the
    validation batch and one forward derivative of the losses, whatever T: no Gramian,
    and no finite differences. It goes over all parameters, heads included.

    Preferences multiply the weights; a task that is not active keeps its meta-weight
    and does not count as primary. A derivative that is not finite counts as zero, and
    one that is more than a thousand times the largest before it as a thousand times
    that, since the inner Adam would remember it for very long.

    Args:
        learning_rate: Of the virtual step, that of your optimizer. Adam makes the
            weights independent of it, unless the derivatives are tiny.
        primary: The tasks that matter, by name or position; None for all.
        optimizer: Moves the weights; Adam at the authors' rate of 1e-4 by default.
        init_value: The weights at the start; a scalar or a pytree like the tasks.
        min_weight: A lower bound; None lets weights turn negative, as in the paper,
            which undoes what a harmful task has taught.

    Returns:
        A balancer.

    Raises:
        TypeError: If `optimizer` is none of optax.
        ValueError: If a number is out of range or `primary` no list of tasks; from
            `update`, if there are no gradients of either batch.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from dtp_jax import TaskGradients
        >>> balancer = auto_lambda(1.0, primary=[0], optimizer=optax.sgd(0.1))
        >>> batch = TaskGradients.from_stacked(jnp.array([[1.0, 0.0], [1.0, 3.0]]))
        >>> other = TaskGradients.from_stacked(jnp.array([[2.0, 1.0], [0.0, 7.0]]))
        >>> ones = jnp.ones(2)
        >>> weights, _ = balancer.update(
        ...     ones, balancer.init(ones), task_gradients=batch,
        ...     second_task_gradients=other,
        ... )
        >>> [round(weight, 4) for weight in weights.tolist()]  # 0.1 + 0.1 (2, 5)
        [0.3, 0.6]

    References:
        Liu, James, Davison, Johns, "Auto-Lambda: Disentangling Dynamic Task
        Relationships", TMLR 2022. On a fixed sequence of gradients the weights agree to
        rounding with the derivative of the paper's meta-loss. The authors take the
        inner product by a finite difference of the losses, and their virtual step has
        the momentum and weight decay of their SGD: put these into the virtual
        parameters. Heads:
        ``balance(..., heads="weights")``.
    """
    check_scalar("learning_rate", learning_rate, low=0, open_low=True)
    check_scalar("min_weight", min_weight)
    check_optimizer("optimizer", optimizer)
    inner = optax.adam(1e-4) if optimizer is None else optimizer

    def init(params: Any) -> AutoLambdaState:
        layout = layout_of(params)
        _is_primary(primary, layout)
        start = per_task("init_value", init_value, layout)
        # Copies: an array of the caller, or one that the optimizer keeps, would be
        # donated with the state.
        zeros = jnp.zeros_like(start)
        return AutoLambdaState(jnp.copy(start), zeros, inner.init(jnp.copy(start)))

    def update(
        updates: Any,
        state: AutoLambdaState,
        params: Any = None,
        *,
        task_gradients: Any = None,
        second_task_gradients: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, AutoLambdaState]:
        del params, extra_args
        first = required_gradients(task_gradients, "auto_lambda")
        how = "pass the TaskGradients of a validation batch to update"
        name = "second_task_gradients"
        second = required(second_task_gradients, name, "auto_lambda", how)
        layout = layout_of(updates)
        preferences = layout.vector("preferences", updates)
        active = preferences > 0
        counted = (active & _is_primary(primary, layout)).astype(layout.dtype)

        products = jax.lax.stop_gradient(first.products(second.combine(counted)))
        known = active & jnp.isfinite(products)
        slope = jnp.where(known, -(learning_rate * products), 0).astype(layout.dtype)
        started = state.largest > 0
        bound = jnp.where(started, _LARGEST_JUMP * state.largest, _LARGEST_SLOPE)
        bound = jnp.minimum(bound, _LARGEST_SLOPE)
        slope = jnp.clip(slope, -bound, bound)
        largest = jnp.maximum(state.largest, jnp.abs(slope))
        step, new = inner.update(slope, state.optimizer, state.meta_weights)
        moved = jnp.asarray(optax.apply_updates(state.meta_weights, step))
        if min_weight is not None:
            moved = jnp.maximum(moved, min_weight)
        moved = jnp.where(active, moved, state.meta_weights)
        weights = nonzero(preferences * moved, preferences)
        return layout.tree(weights), AutoLambdaState(moved, largest, new)

    return transformation(init, update)


def _is_primary(primary: Sequence[str | int] | None, layout: TaskLayout) -> jax.Array:
    """``[T]``, which tasks are."""
    names = layout.names
    check_static("primary", primary, "a list of them")
    given: Any = range(len(names)) if primary is None else primary
    listed = isinstance(given, Iterable) and not isinstance(given, (str, Mapping))
    tasks = list(given) if listed and getattr(given, "shape", None) != () else []
    if not tasks:
        raise ValueError(f"primary must be a list of tasks, got {primary!r}.")
    found = [layout.position("each of primary", task) for task in tasks]
    return jnp.zeros((len(names),), bool).at[jnp.array(found)].set(True)
