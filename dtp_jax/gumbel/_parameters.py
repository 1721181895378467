"""What a user gives as the parameters of a distribution."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dtp_jax._core.checks import check_number
from dtp_jax._core.numerics import difference, divide, working_type


def parameters(*arguments: ArrayLike) -> list[jax.Array]:
    """Promotes and broadcasts; the last argument is a scale."""
    *rest, scale = arguments
    check_number("scale", scale, low=0, open_low=True)
    dtype = working_type(*arguments)
    arrays = [jnp.asarray(argument, dtype) for argument in rest]
    return list(jnp.broadcast_arrays(*arrays, positive(scale, dtype)))


def standardize(
    x: ArrayLike, loc: ArrayLike, scale: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Returns ``z = (x - loc) / scale`` and the scale."""
    check_number("scale", scale, low=0, open_low=True)
    dtype = working_type(x, loc, scale)
    distance, width = jnp.broadcast_arrays(
        difference(x, loc, dtype), positive(scale, dtype)
    )
    return divide(distance, width), width


def positive(scale: ArrayLike, dtype: Any) -> jax.Array:
    """A scale, or NaN where it is none."""
    width = jnp.asarray(scale, dtype)
    return jnp.where(width > 0, width, jnp.nan)
