"""Elementary functions whose derivatives survive extreme arguments."""

import jax
import jax.numpy as jnp


@jax.custom_jvp
def divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Division whose derivative survives extreme denominators."""
    return numerator / denominator


@divide.defjvp
def _divide_jvp(primals, tangents):
    # The square of the denominator, in the rule of JAX, is zero or infinite in float32
    # for denominators that are themselves harmless. The quotient may be infinite; it is
    # clipped so that a slope of zero in it stays zero.
    numerator, denominator = primals
    quotient = divide(numerator, denominator)
    largest = jnp.finfo(quotient.dtype).max
    slope = jnp.clip(quotient, -largest, largest)
    return quotient, (tangents[0] - slope * tangents[1]) / denominator


@jax.custom_jvp
def expm1_minus_identity(x: jax.Array) -> jax.Array:
    """``exp(x) - 1 - x``, at least zero and accurate near zero."""
    near = jnp.abs(x) < 0.5
    series = jnp.ones_like(x)
    for k in range(14, 2, -1):
        series = 1 + jnp.where(near, x, 0) / k * series
    # Where exp(x) overflows, so does the result, also if x itself is infinite.
    far = jnp.expm1(x) - jnp.minimum(x, 1000)
    return jnp.where(near, 0.5 * x * x * series, far)


@expm1_minus_identity.defjvp
def _expm1_minus_identity_jvp(primals, tangents):
    slope = jnp.expm1(primals[0])
    # An infinite slope would turn every zero it is multiplied by into NaN. Where the
    # value is inf, the slope only has to be large.
    large = float(jnp.finfo(slope.dtype).max) ** 0.5
    slope = jnp.where(jnp.isinf(slope), large, slope)
    return expm1_minus_identity(primals[0]), slope * tangents[0]


def exp_minus(z: jax.Array, low: float = -10.0) -> jax.Array:
    """Returns exp(-z), with the slope zero below `low` and where it underflows.

    At z = -10, exp(-exp(-z)) is zero in all precisions, and at z = 1000, exp(-z) is.
    """
    return jnp.exp(-jnp.where(z < low, low, jnp.where(z > 1000, 1000, z)))


def softmax_over(active: jax.Array, logits: jax.Array) -> jax.Array:
    """The softmax over some of the tasks.

    Args:
        active: ``[T]`` booleans, which ones.
        logits: ``[T]``.

    Returns:
        ``[T]``, zero for the other tasks, and for all if none is active.

    Example:
        >>> softmax_over(jnp.array([True, False, True]), jnp.zeros(3)).tolist()
        [0.5, 0.0, 0.5]
    """
    # Over nothing it would be NaN, on its way to zero, and `jax_debug_nans` raises.
    some = active | ~jnp.any(active)
    return jnp.where(active, jax.nn.softmax(logits, where=some), 0)
