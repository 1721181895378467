"""What all functions of boxes read."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dtp_jax._core.checks import check_last_axis


def as_boxes(name: str, array: ArrayLike) -> jax.Array:
    check_last_axis(name, array, 4)
    return as_floats(array)


def as_floats(array: ArrayLike) -> jax.Array:
    array = jnp.asarray(array)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
