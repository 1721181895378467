"""Tasks whose weights start plain."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dtp_jax._core.balancer import Balancer, checked_balancer, transformation
from dtp_jax._core.checks import check_scalar, check_whole
from dtp_jax._core.counters import count_up
from dtp_jax._core.layout import layout_of

from ._stages import blend, ramp


class WarmUpState(NamedTuple):
    """State of `warm_up`."""

    active_steps: jax.Array  # [T], int32
    balancer: Any  # the state of the wrapped balancer


def warm_up(
    balancer: optax.GradientTransformation,
    num_steps: jax.typing.ArrayLike,
    *,
    ramp_steps: jax.typing.ArrayLike = 0,
) -> Balancer:
    """Lets each task train with its preference as weight for its first steps.

    A KPI of an untrained network says nothing, so for the first `num_steps` steps in
    which a task is active (has a positive preference) its weight is its preference. The
    balancer's state learns meanwhile. Over the next `ramp_steps` steps the weight moves
    in equal steps from the preference to the answer of the balancer. Where answers are
    small numbers, as focal weights of good tasks, wrap ``optax.chain(balancers.focal(),
    balancers.normalize_weights())``: of a mix with 1, small ones are the smaller part.

    Args:
        balancer: The balancer to wrap.
        num_steps: The number of steps, counted for each task on its own, at least 0.
        ramp_steps: Over how many steps the weight moves; 0 for at once.

    Returns:
        A balancer.

    Raises:
        ValueError: If `num_steps` or `ramp_steps` is a negative number or a float.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> balancer = warm_up(optax.scale(5.0), 1)
        >>> state = balancer.init(jnp.ones(2))
        >>> weights, state = balancer.update(jnp.array([1.0, 0.0]), state)
        >>> weights.tolist()
        [1.0, 0.0]
        >>> weights, state = balancer.update(jnp.array([1.0, 1.0]), state)
        >>> weights.tolist()
        [5.0, 1.0]
    """
    balancer = checked_balancer("balancer", balancer)
    # Of its errors this says best what is wrong with one number for each task.
    check_scalar("num_steps", num_steps)
    check_whole("num_steps", num_steps)
    check_whole("ramp_steps", ramp_steps)

    def init(params: Any) -> WarmUpState:
        active_steps = jnp.zeros((layout_of(params).num_tasks,), jnp.int32)
        return WarmUpState(active_steps, balancer.init(params))

    def update(
        updates: Any, state: WarmUpState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, WarmUpState]:
        layout = layout_of(updates)
        preferences = layout.vector("preferences", updates)
        weights, balancer_state = balancer.update(
            updates, state.balancer, params, **extra_args
        )
        weights = layout.vector("weights", weights)
        steps, active = state.active_steps, preferences > 0
        share = ramp(steps - num_steps, ramp_steps, layout.dtype)
        weights = jnp.where(active, blend(preferences, weights, share), weights)
        steps = count_up(steps, active)
        return layout.tree(weights), WarmUpState(steps, balancer_state)

    return transformation(init, update)
