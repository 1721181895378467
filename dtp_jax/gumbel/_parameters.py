"""What a user gives as the parameters of a distribution."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dtp_jax._core.checks import check_number


def parameters(*arguments: ArrayLike) -> list[jax.Array]:
    """Promotes and broadcasts; the last argument is a scale."""
    check_number("scale", arguments[-1], low=0, open_low=True)
    dtype = jnp.result_type(*arguments, float)
    *rest, scale = [jnp.asarray(argument, dtype) for argument in arguments]
    scale = jnp.where(scale > 0, scale, jnp.nan)
    return list(jnp.broadcast_arrays(*rest, scale))
