"""Leaves that show whether a pytree was taken for gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Most arithmetic makes a float of an integer, which shows while tracing, and the rest
# makes another number of it.
_DTYPE = np.dtype(np.int8)
_NUMBER = 77

# Its square is infinite, and so is every norm that has it among the leaves.
_LARGE = np.finfo(np.float32).max

_MESSAGE = (
    "The TaskGradients were changed by a transformation that took them for gradients: "
    "put clipping, scaling and the like after the balancing link, "
    "optax.chain(balance(...), optax.clip_by_global_norm(...), ...). Their leaves are "
    "the losses and what a backward pass needs: compute with what .combine(weights) or "
    ".stack() returns, and average over devices by task_gradients(..., axis_name=...)."
)


def _refuse(*args: Any, **kwargs: Any) -> Any:
    raise ValueError(_MESSAGE)


# To JAX an array like any other, so that it passes through `jax.jit`, which makes an
# ordinary one of it. Until then arithmetic with it says what is wrong.
_Sealed = type(
    "_Sealed",
    (np.ndarray,),
    {
        "__array_ufunc__": _refuse,
        # Before the operators of the arrays of JAX.
        "__array_priority__": 1e4,
        "astype": _refuse,
        # Of this the norms of optax take the square.
        "real": property(_refuse),
    },
)


def new_seal() -> Any:
    """A pytree of two leaves that few functions leave as they are."""
    number = np.full((), _NUMBER, _DTYPE).view(_Sealed)
    return number, np.full((), _LARGE, np.float32).view(_Sealed)


def unbroken(seal: Any) -> Any:
    """Whether a seal is as it was made.

    Args:
        seal: The pytree, perhaps after it passed through `jax.jit` and the like.

    Returns:
        A boolean; True itself where that is known while tracing.

    Raises:
        ValueError: If arithmetic changed its type, or mapping its shape.
    """
    number = seal[0]
    if isinstance(number, _Sealed):
        return True
    if getattr(number, "dtype", None) != _DTYPE:
        raise ValueError(_MESSAGE)
    if jnp.shape(number) != ():
        raise ValueError(
            "The TaskGradients came out of a mapped function, such as by "
            "vmap(task_gradients(f)): make and use them inside of it."
        )
    return jnp.asarray(number) == _NUMBER


def visibly(seal: Any, results: Any) -> Any:
    """What was computed, or NaN where the seal is broken.

    Args:
        seal: What came along with what the results were computed from.
        results: A pytree of arrays of floats.

    Returns:
        A pytree like the results; the results themselves where that is known.

    Raises:
        ValueError: As `unbroken` does.
    """
    whole = unbroken(seal)
    if whole is True:
        return results
    return jax.tree.map(lambda leaf: jnp.where(whole, leaf, jnp.nan), results)
