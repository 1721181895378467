"""Weights that are computed now and then."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dtp_jax._core import control
from dtp_jax._core.balancer import Balancer, checked_balancer, nonzero, transformation
from dtp_jax._core.checks import check_whole
from dtp_jax._core.counters import next_step
from dtp_jax._core.layout import layout_of


class EveryKState(NamedTuple):
    """State of `every_k`."""

    step: jax.Array  # [], int32, number of updates so far
    weights: jax.Array  # [T], those of the last refresh
    balancer: Any  # the state of the wrapped balancer


def every_k(
    balancer: optax.GradientTransformation, k: jax.typing.ArrayLike
) -> Balancer:
    """Asks a balancer for weights on every k-th step, and keeps them in between.

    The balancer runs on steps 0, k, 2k and so on, in a `jax.lax.cond`: the Gramian, and
    the T backward passes that it takes, are computed on these steps only. In between a
    step costs what a fixed weighted sum costs. The weights are then those of the last
    refresh, whatever the preferences are now, with two exceptions: a task that is not
    active now has weight zero, and one that was not active at the refresh has its
    preference as its weight until the next.

    What the balancer remembers, such as averages of KPIs, learns at the refreshes only.
    Keep cheap balancers with a memory outside: ``optax.chain(focal(), every_k(mgda(),
    10))``.

    Under `jax.vmap` with a state of its own for each element the `cond` becomes a
    select that computes both: right, but it saves nothing.

    Args:
        balancer: The balancer to wrap.
        k: The number of steps from one refresh to the next, at least 1. With 1 the
            balancer decides every step.

    Returns:
        A balancer.

    Raises:
        ValueError: If `k` is a float or less than 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax import TaskGradients
        >>> from dtp_jax.balancers import mgda
        >>> balancer, ones = every_k(mgda(), 2), jnp.ones(2)
        >>> state = balancer.init(ones)
        >>> for scale in (1.0, 2.0, 2.0):
        ...     rows = jnp.array([[1.0, 0.0], [0.0, scale]])
        ...     gradients = TaskGradients.from_stacked(rows)
        ...     weights, state = balancer.update(ones, state, task_gradients=gradients)
        ...     print([round(weight, 4) for weight in weights.tolist()])
        [0.5, 0.5]
        [0.5, 0.5]
        [0.8, 0.2]
    """
    balancer = checked_balancer("balancer", balancer)
    check_whole("k", k, low=1)

    def init(params: Any) -> EveryKState:
        layout = layout_of(params)
        weights = jnp.zeros((layout.num_tasks,), layout.dtype)
        return EveryKState(jnp.zeros((), jnp.int32), weights, balancer.init(params))

    def update(
        updates: Any, state: EveryKState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, EveryKState]:
        layout = layout_of(updates)
        preferences = layout.vector("preferences", updates)

        def refresh() -> tuple[jax.Array, Any]:
            found, balancer_state = balancer.update(
                updates, state.balancer, params, **extra_args
            )
            # From here on a weight of zero means "not active at the refresh".
            weights = nonzero(layout.vector("weights", found), preferences)
            return weights.astype(state.weights.dtype), balancer_state

        stored, balancer_state = control.cond(
            state.step % k == 0, refresh, lambda: (state.weights, state.balancer)
        )
        weights = jnp.where(stored == 0, preferences, stored)
        weights = jnp.where(preferences > 0, weights, 0)
        step = next_step(state.step, k)
        return layout.tree(weights), EveryKState(step, stored, balancer_state)

    return transformation(init, update)
