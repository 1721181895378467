"""What a balancer is, and the frames of those without a memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .layout import TaskLayout, layout_of
from .reads import gramian_of, read_losses

# A balancer is an optax transformation whose parameters are the losses and whose
# updates are the task weights: `init(losses)` and
# `update(preferences, state, losses, **extra_args) -> (weights, state)`.
Balancer = optax.GradientTransformationExtraArgs


# The weight of a task that is active but does not count. Zero would mean "not active"
# to the next link of a chain; from here a link may scale by 1e-8 without reaching it.
SMALLEST_WEIGHT = 1e-30


class Link(optax.GradientTransformationExtraArgs):
    """A transformation of an optimizer's chain, which gets the gradients of the tasks.

    To optax it is a transformation like others. That it is no balancer, which gets the
    task weights, only shows in this type, and in the type of its state: a named tuple
    with ``of_link = True`` as a class attribute.
    """


def link(init: Callable[..., Any], update: Callable[..., Any]) -> Balancer:
    """Builds a link of an optimizer's chain, as `transformation` does a balancer.

    Args:
        init: From the parameters to the state.
        update: From updates, state, params and extra arguments to updates and state.

    Returns:
        The link.
    """
    return Link(init, update)


def transformation(init: Callable[..., Any], update: Callable[..., Any]) -> Balancer:
    """Builds a balancer; the one place that meets the types of optax.

    Args:
        init: From the losses (or parameters) to the state.
        update: From updates, state, params and extra arguments to updates and state.

    Returns:
        The transformation.
    """
    return optax.GradientTransformationExtraArgs(init, update)


def stateless_weighting(
    rule: Callable[[jax.Array], jax.Array],
) -> Balancer:
    """A balancer that maps the [T] vector of preferences to the [T] weights.

    Args:
        rule: A pure function from and to a [T] vector. It need not look after inactive
            tasks: their weights are set to zero afterwards.

    Returns:
        A balancer without state.
    """

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        del params, extra_args
        layout = layout_of(updates)
        preferences = layout.vector("preferences", updates)
        weights = rule(preferences)
        return layout.tree(jnp.where(preferences > 0, weights, 0)), state

    return transformation(lambda params: optax.EmptyState(), update)


def gramian_weighting(
    name: str,
    rule: Callable[..., jax.Array],
    rows_of: Callable[[Any], Any] | None = None,
) -> Balancer:
    """A balancer that maps the Gramian and the preferences to the weights.

    Args:
        name: The name of the balancer, for the messages.
        rule: A pure function from ``[T, T]`` and ``[T]`` to ``[T]``. A task with the
            preference zero must not influence the others: its rows and columns of the
            Gramian are zero, and so is its own weight afterwards. A weight of zero of
            an active task becomes `SMALLEST_WEIGHT`.
        rows_of: What the rule gets as a third argument, if anything: a function of the
            task gradients, called when their Gramian is computed.

    Returns:
        A balancer without state that reads the extra argument `task_gradients`.
    """

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        task_gradients: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, Any]:
        del params, extra_args
        layout = layout_of(updates)
        preferences = layout.vector("preferences", updates)
        gramian = gramian_of(task_gradients, preferences, name)
        rows = () if rows_of is None else (rows_of(task_gradients),)
        weights = rule(gramian, preferences, *rows)
        return layout.tree(nonzero(weights, preferences)), state

    return transformation(lambda params: optax.EmptyState(), update)


def loss_weighting(
    name: str, rule: Callable[[jax.Array, jax.Array, TaskLayout], jax.Array]
) -> Balancer:
    """A balancer that maps the losses and the preferences to the weights.

    Args:
        name: The name of the balancer, for the messages.
        rule: A pure function from losses ``[T]``, preferences ``[T]`` and the layout of
            the tasks, with which `per_task` reads hyperparameters, to weights ``[T]``.
            A task that is not active has the preference zero and the loss zero, and
            must not influence the others; its own weight becomes zero afterwards. A
            weight of zero of an active task becomes `SMALLEST_WEIGHT`.

    Returns:
        A balancer without state that reads the losses. A task whose loss is not finite
        counts as not active, and no derivative flows through the losses.
    """

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        del extra_args
        layout, losses, preferences = read_losses(name, updates, params)
        losses = jnp.where(preferences > 0, losses, 0)
        weights = rule(losses, preferences, layout)
        return layout.tree(nonzero(weights, preferences)), state

    return transformation(lambda params: optax.EmptyState(), update)


def nonzero(weights: jax.Array, preferences: jax.Array) -> jax.Array:
    """Weights that say which tasks are active to the next link of a chain.

    Args:
        weights: ``[T]``, of any sign.
        preferences: ``[T]``.

    Returns:
        ``[T]``: zero for a task without a preference; for an active one its weight, or
        `SMALLEST_WEIGHT` where that is zero or smaller.
    """
    # A weight may be negative on purpose, but zero would mean "not active".
    vanished = jnp.abs(weights) < SMALLEST_WEIGHT
    weights = jnp.where(vanished, SMALLEST_WEIGHT, weights)
    return jnp.where(preferences > 0, weights, 0)


def checked_balancer(
    name: str, balancer: Any, layout: TaskLayout | None = None
) -> optax.GradientTransformationExtraArgs:
    """Checks that something is a balancer and lets it take extra arguments.

    Args:
        name: The argument it was given as, for the message.
        balancer: An optax transformation.
        layout: The layout of the tasks, if it is known: then the check also finds a
            link in a chain or a wrapper, which have no type to tell.

    Returns:
        The balancer.

    Raises:
        TypeError: If it is no transformation, such as a factory that was not called, or
            a link, which takes the gradients of the tasks.
    """
    if not isinstance(balancer, optax.GradientTransformation):
        hint = ""
        if callable(balancer):
            called = getattr(balancer, "__name__", "balancer")
            hint = f" It is a function: call it, as in {called}()."
        if isinstance(balancer, (int, float, str, list, tuple, dict)):
            hint = (
                " Where tasks or numbers are given as well, the balancer comes first."
            )
        if hasattr(balancer, "gradient_transformation"):
            hint = " Its method gradient_transformation() returns one."
        raise TypeError(
            f"{name} must be a balancer (an optax gradient transformation on the task "
            f"weights), got {type(balancer).__name__}.{hint}"
        )
    if isinstance(balancer, Link) or (layout and _holds_link(balancer, layout)):
        raise TypeError(
            f"{name} is already a link, or holds one: it works on the gradients of the "
            "tasks and goes into the optimizer's chain as it is, optax.chain(link, "
            f"optax.adam(1e-3)). What {name} takes is a balancer, which works on the "
            "task weights, such as dtp_jax.balancers.mgda(). For focal weights before "
            "a balancer there is dtp_jax.dynamic_task_prioritization(tasks, "
            "balancer=...), before a combiner preferences=dtp_jax.balancers.focal()."
        )
    return optax.with_extra_args_support(balancer)


def _holds_link(balancer: optax.GradientTransformation, layout: TaskLayout) -> bool:
    # Whatever wraps a link keeps its state in its own. Shapes are enough: nothing is
    # computed, so that no device is asked for when a module defines its optimizer.
    state = jax.eval_shape(lambda: balancer.init(layout.full(0.0)))

    def of_link(node: Any) -> bool:
        return getattr(type(node), "of_link", False)

    return any(map(of_link, jax.tree.leaves(state, is_leaf=of_link)))
