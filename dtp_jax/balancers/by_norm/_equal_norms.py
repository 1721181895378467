"""Gradients of equal norm: the default rule of jaxpi."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax._core import control, linalg
from dtp_jax._core.balancer import Balancer, nonzero, transformation
from dtp_jax._core.checks import check_number, check_scalar, check_whole
from dtp_jax._core.counters import next_step
from dtp_jax._core.layout import layout_of, per_task
from dtp_jax._core.reads import squared_norms_of


class EqualNormsState(NamedTuple):
    """State of `equal_norms`."""

    weights: jax.Array  # [T], before preferences
    step: jax.Array  # [], int32, number of updates


def equal_norms(
    *,
    momentum: jax.typing.ArrayLike = 0.9,
    refresh_every: jax.typing.ArrayLike = 1000,
    eps: jax.typing.ArrayLike = 1e-5,
    init_value: Any = 1.0,
) -> Balancer:
    """Brings the gradients of all tasks to one norm, their mean, slowly.

    For physics-informed networks: what jaxpi calls ``scheme="grad_norm"``. In steps 0,
    k, 2k and so on, with n_t the norm of the gradient of task t over the shared
    parameters (see `task_gradients`; for a network without heads these are all) and the
    mean over the active tasks::

        w_t <- momentum * w_t + (1 - momentum) * mean(n) / (n_t + eps * mean(n))

    In between the weights stay, and a step costs what a fixed weighted sum costs; a
    refresh costs one backward pass per task, in every step under a `vmap` that maps the
    counter too. The weights of a step have already seen its gradients. Preferences
    multiply the weights.

    No new value is larger than ``1 / eps``, that of a task whose gradient is zero. A
    task that is not active, or whose gradient is not finite, keeps its weight, and so
    do all where all gradients are zero. Norms must be from 1e-18 to 1e18 in float32,
    which holds their squares.

    Args:
        momentum: The share of the old weight, in [0, 1).
        refresh_every: The number of steps from one look at the gradients to the next.
        eps: What a norm is at least, relative to the mean; at least 0.
        init_value: The weights at the start, at least 0: a scalar or a pytree like the
            tasks.

    Returns:
        A balancer that reads task gradients, not losses. Instead of zero, which would
        mean "not active", an active task gets 1e-30.

    Raises:
        ValueError: If a hyperparameter is out of range or does not match the tasks;
            from `update`, if there are no task gradients.

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax import TaskGradients
        >>> balancer, ones = equal_norms(momentum=0.5, eps=0.0), jnp.ones(2)
        >>> gradients = TaskGradients.from_stacked(jnp.array([[3.0, 4.0], [0.0, 1.0]]))
        >>> weights, _ = balancer.update(
        ...     ones, balancer.init(ones), task_gradients=gradients
        ... )
        >>> [round(weight, 4) for weight in weights.tolist()]  # 0.5 + 0.5 (3/5, 3/1)
        [0.8, 2.0]

    References:
        Wang, Sankaran, Wang, Perdikaris, "An Expert's Guide to Training
        Physics-informed Neural Networks", 2023 (arXiv 2308.08468), algorithm 1, and the
        authors' code (`jaxpi/models.py`), whose defaults these are; on a fixed sequence
        the weights agree with it to rounding. It looks at the gradients after its step,
        so that its first step has the weights of the start. The paper has the sum of
        the norms in place of their mean. `grad_norm` is another method. Heads:
        ``balance(..., heads="weights")``.
    """
    check_scalar("momentum", momentum, low=0, high=1, open_high=True)
    check_whole("refresh_every", refresh_every, low=1)
    check_scalar("eps", eps, low=0)
    for number in jax.tree.leaves(init_value):
        check_number("init_value", number, low=0)

    def init(params: Any) -> EqualNormsState:
        start = per_task("init_value", init_value, layout_of(params))
        return EqualNormsState(start, jnp.zeros((), jnp.int32))

    def update(
        updates: Any,
        state: EqualNormsState,
        params: Any = None,
        *,
        task_gradients: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, EqualNormsState]:
        del params, extra_args
        layout = layout_of(updates)
        preferences = layout.vector("preferences", updates)

        def refresh() -> jax.Array:
            squares = squared_norms_of(task_gradients, preferences, "equal_norms")
            measured = (preferences > 0) & jnp.isfinite(squares)
            norms = jnp.sqrt(jnp.where(measured, squares, 0))
            mean = jnp.sum(norms) / jnp.maximum(jnp.sum(measured), 1)
            # Relative to the mean first: eps times a tiny mean may be zero.
            relative = norms / linalg.positive(mean) + eps
            usable = measured & (mean > 0) & (relative > 0)
            wanted = 1 / jnp.where(usable, relative, 1)
            moved = momentum * state.weights + (1 - momentum) * wanted
            return jnp.where(usable, moved, state.weights).astype(layout.dtype)

        refreshes = state.step % refresh_every == 0
        weights = control.cond(refreshes, refresh, lambda: state.weights)
        step = next_step(state.step, refresh_every)
        used = nonzero(preferences * weights, preferences)
        return layout.tree(used), EqualNormsState(weights, step)

    return transformation(init, update)
