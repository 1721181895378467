"""Weights of points that remember where residuals were large."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg
from dtp_jax._core.balancer import Balancer, nonzero, transformation
from dtp_jax._core.checks import check_scalar
from dtp_jax._core.layout import layout_of, per_task
from dtp_jax._core.reads import read_losses

Convention = Literal["inside", "outside"]


class ResidualAttentionState(NamedTuple):
    """State of `residual_attention`."""

    multipliers: jax.Array  # [T], lambda


def residual_attention(
    *,
    decay: jax.typing.ArrayLike = 0.999,
    rate: jax.typing.ArrayLike = 0.01,
    init_value: Any = 0.0,
    convention: Convention = "inside",
) -> Balancer:
    """Weights each point by the running sum of its relative residuals.

    The tasks are the points of a fixed set, by the thousand, and their losses squared
    residuals, ``L_t = r_t^2``::

        lambda_t <- decay * lambda_t + rate * sqrt(L_t) / max_s sqrt(L_s)
        w_t = lambda_t^2        # "inside": the loss is (lambda_t r_t)^2, the paper's
        w_t = lambda_t          # "outside": the loss is lambda_t r_t^2

    The multipliers stay below ``rate / (1 - decay)``, 10 with the defaults, which the
    point of the largest residual approaches. No gradient is needed.

    A point that is masked, not active, or whose loss is not finite keeps its
    multiplier. So a batch from a fixed set of N points is a mask, or losses of N points
    of which those not computed are NaN. Multipliers belong to points: with points drawn
    anew in each step they mean nothing, unless the tasks are cells of the domain and
    the losses are means over the points in them. Preferences multiply the weights.

    Args:
        decay: In [0, 1).
        rate: At least 0.
        init_value: Of the multipliers, at least 0. A number, or one per task.
        convention: What the multiplier multiplies, the residual or its square.

    Returns:
        A loss-driven balancer. Instead of zero, which would mean "not active", an
        active point gets 1e-30.

    Raises:
        ValueError: If a number is out of range or the convention is unknown; from
            `update`, if there are no losses or they do not match the tasks.

    Example:
        >>> import jax.numpy as jnp
        >>> balancer, ones = residual_attention(decay=0.5, rate=1.0), jnp.ones(2)
        >>> state = balancer.init(ones)
        >>> for losses in (jnp.array([4.0, 1.0]), jnp.array([4.0, 16.0])):
        ...     weights, state = balancer.update(ones, state, losses)
        >>> state.multipliers.tolist(), weights.tolist()  # 1 / 2 + 1 / 2, 1 / 4 + 1
        ([1.0, 1.25], [1.0, 1.5625])

    References:
        Anagnostopoulos et al., "Residual-based attention in physics-informed neural
        networks", CMAME 2024; their code starts at 0 and has rates of 0.01 and 0.001.
        Other code multiplies the squared residual: "outside". The paper takes means:
        preferences ``1 / N``.
    """
    check_scalar("decay", decay, low=0, high=1, open_high=True)
    check_scalar("rate", rate, low=0)
    if convention not in get_args(Convention):
        names = get_args(Convention)
        raise ValueError(f"convention must be one of {names}, got {convention!r}.")

    def init(params: Any) -> ResidualAttentionState:
        start = per_task("init_value", init_value, layout_of(params))
        return ResidualAttentionState(jnp.copy(start))

    def update(
        updates: Any, state: ResidualAttentionState, params: Any = None, **extra: Any
    ) -> tuple[Any, ResidualAttentionState]:
        del extra
        layout, losses, preferences = read_losses("residual_attention", updates, params)
        active = preferences > 0
        residuals = jnp.sqrt(jnp.where(active, jnp.maximum(losses, 0), 0))
        largest = jnp.max(residuals)
        # Where all residuals are zero, none stands out.
        shares = residuals / linalg.positive(largest)
        moved = decay * state.multipliers + rate * shares
        multipliers = jnp.where(active, moved.astype(layout.dtype), state.multipliers)
        factors = multipliers if convention == "outside" else jnp.square(multipliers)
        weights = nonzero(preferences * factors, preferences)
        return layout.tree(weights), ResidualAttentionState(multipliers)

    return transformation(init, update)
