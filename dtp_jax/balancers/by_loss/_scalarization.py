"""Weights from any function of the losses."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dtp_jax._core.balancer import Balancer, loss_weighting
from dtp_jax._core.checks import check_scalar
from dtp_jax._core.layout import TaskLayout


def scalarization(
    fn: Callable[..., Any],
    *,
    fill: jax.typing.ArrayLike = 0.0,
    with_preferences: bool = False,
) -> Balancer:
    """Trains on any differentiable function of the losses.

    The gradient of ``fn(losses)`` with respect to the parameters is ``sum_t w_t g_t``
    with ``w = grad(fn)(losses)``, so every scalarization is a weighting. Preferences
    multiply the weights, ``w = p * grad(fn)(losses)``, unless `fn` reads them itself.

    `fn` gets the losses in the pytree of the tasks: a dict for named tasks, one ``[T]``
    array for a number of tasks. It sees `fill` in place of the loss of a task that is
    not active, whose weight is zero. So that such a task has no influence on the
    others, `fill` must be neutral: 0 for sums, 1 for products, ``-jnp.inf`` for a
    maximum. Where no number is neutral, as for a mean, let `fn` read the preferences:
    they are zero for these tasks.

    A weight may be negative where `fn` falls, and is as finite as the derivative of
    `fn`: guard it, for instance ``log(maximum(loss, 1e-12))`` for ``log(loss)``.

    Under `optax.inject_hyperparams` say ``static_args=("fn",)``, or it takes `fn` for
    a schedule.

    Args:
        fn: From the losses to one number; from the losses and the preferences, a pytree
            alike, if `with_preferences`.
        fill: What `fn` sees of a task that is not active.
        with_preferences: Whether `fn` takes the preferences as its second argument.
            Then the weights are its gradient, and it must see to it that a larger
            preference means a larger weight.

    Returns:
        A loss-driven balancer without state. Instead of zero, which would mean "not
        active", an active task gets 1e-30.

    Raises:
        TypeError: If `fn` is not a function.
        ValueError: From `update`, if there are no losses, or `fn` does not return one
            number.

    Example:
        >>> import jax.numpy as jnp
        >>> balancer = scalarization(lambda losses: losses["a"] ** 2 + losses["b"])
        >>> losses = {"a": jnp.array(3.0), "b": jnp.array(5.0)}
        >>> ones = {"a": 1.0, "b": 1.0}
        >>> weights, _ = balancer.update(ones, balancer.init(losses), losses)
        >>> weights["a"].item(), weights["b"].item()
        (6.0, 1.0)
    """
    if not callable(fn):
        hint = ""
        if isinstance(fn, jax.Array):
            hint = (
                " optax.inject_hyperparams takes a function for a schedule: add "
                "static_args=('fn',)."
            )
        raise TypeError(f"fn must be a function of the losses, got {fn!r}.{hint}")
    check_scalar("fill", fill, infinite=True)

    def rule(
        losses: jax.Array, preferences: jax.Array, layout: TaskLayout
    ) -> jax.Array:
        more = (layout.tree(preferences),) if with_preferences else ()

        def scalar(vector: jax.Array) -> jax.Array:
            value = jnp.asarray(fn(layout.tree(vector), *more))
            if value.shape != ():
                raise ValueError(
                    "The function given to scalarization must return one number, got "
                    f"an array of shape {list(value.shape)}."
                )
            return value

        seen = jnp.where(preferences > 0, losses, jnp.asarray(fill, losses.dtype))
        slopes = jax.grad(scalar)(seen)
        return slopes if with_preferences else preferences * slopes

    return loss_weighting("scalarization", rule)
