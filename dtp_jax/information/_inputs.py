"""What all measures read, and the unit in which they answer."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dtp_jax._core.checks import check_number

Axis = int | tuple[int, ...] | None


def check_base(base: ArrayLike | None) -> None:
    check_number("base", base, low=0, open_low=True)
    if isinstance(base, (int, float)) and base == 1:
        raise ValueError("base must not be 1, whose logarithm is zero.")


def in_base(nats: jax.Array, base: ArrayLike | None) -> jax.Array:
    return nats if base is None else nats / jnp.log(jnp.asarray(base, nats.dtype))


def total(terms: jax.Array, axis: Axis, base: ArrayLike | None) -> jax.Array:
    return in_base(jnp.sum(terms, axis), base)


def probabilities(where: ArrayLike | None, *arguments: ArrayLike) -> list[jax.Array]:
    """Promotes probabilities to a common dtype and puts zeros where they are masked.

    Masking the input, not the terms, keeps what is masked out of the derivative.
    """
    dtype = jnp.result_type(*arguments, float)
    arrays = [jnp.asarray(argument, dtype) for argument in arguments]
    return arrays if where is None else [jnp.where(where, p, 0) for p in arrays]


def log_probabilities(
    axis: Axis, where: ArrayLike | None, *arguments: ArrayLike
) -> list[jax.Array]:
    """Returns log-softmaxes, with the constant -inf for zero probabilities."""
    dtype = jnp.result_type(*arguments, float)
    arrays = [jnp.asarray(argument, dtype) for argument in arguments]
    results = []
    for logits in jnp.broadcast_arrays(*arrays):
        kept = logits != -jnp.inf
        kept = kept if where is None else kept & jnp.asarray(where, bool)
        # The softmax of nothing but -inf would be NaN.
        some = jnp.any(kept, axis, keepdims=True)
        log_p = jax.nn.log_softmax(
            jnp.where(kept, logits, jnp.where(some, -jnp.inf, 0)), axis
        )
        results.append(jnp.where(kept, log_p, -jnp.inf))
    return results
