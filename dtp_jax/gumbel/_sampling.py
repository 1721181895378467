"""Samples, and choosing by Gumbel noise."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dtp_jax._core import linalg
from dtp_jax._core.checks import check_number, check_whole
from dtp_jax._core.numerics import divide, exp_minus, working_type

from ._parameters import parameters, positive


def sample(
    key: jax.Array,
    loc: ArrayLike = 0.0,
    scale: ArrayLike = 1.0,
    shape: tuple[int, ...] | None = None,
    dtype: jax.typing.DTypeLike | None = None,
) -> jax.Array:
    """Draws ``loc + scale g``, where `g` is standard Gumbel noise.

    The draws are differentiable in `loc` and `scale`. The noise is that of
    `jax.random.gumbel`, drawn in float32 or wider and cast at the end, since noise
    drawn in bfloat16 is far from Gumbel. The values of `g` end at about 16 in float32,
    which is too soon for events rarer than 1e-7; the configuration flag
    ``jax_use_high_dynamic_range_gumbel`` doubles that.

    Args:
        key: PRNG key.
        loc: Mode of the distribution.
        scale: Width of the distribution, positive.
        shape: Shape of the result, which `loc` and `scale` must broadcast to. None for
            their broadcast shape.
        dtype: Floating dtype of the result. None for that of `loc` and `scale`.

    Returns:
        Independent draws.

    Raises:
        ValueError: If `scale` is a Python number that is not positive, if `loc` and
            `scale` do not broadcast to `shape`, or if `dtype` is not floating.

    Example:
        >>> draws = sample(jax.random.key(0), loc=jnp.array([1.0, 2.0]), scale=1e-9)
        >>> print(draws)  # As good as no noise.
        [1. 2.]

    References:
        Gumbel, "Statistics of Extremes", 1958.
    """
    dtype = jnp.result_type(loc, scale, float) if dtype is None else dtype
    dtype = jnp.result_type(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be floating, got {dtype}.")
    loc, scale = parameters(loc, scale)
    if shape is None:
        shape = loc.shape
    elif jnp.broadcast_shapes(shape, loc.shape) != tuple(shape):
        raise ValueError(
            f"loc and scale must broadcast to shape {list(shape)}, got "
            f"{list(loc.shape)} for the two of them."
        )
    noise = jax.random.gumbel(key, shape, jnp.promote_types(dtype, jnp.float32))
    loc, scale = jnp.broadcast_to(loc, shape), jnp.broadcast_to(scale, shape)
    return (loc + scale * noise).astype(dtype)


def perturbed_logits(key: jax.Array, logits: ArrayLike) -> jax.Array:
    """Adds independent standard Gumbel noise to each logit.

    The largest perturbed logit is at `i` with probability ``softmax(logits)[i]``, and
    the order of all of them is that of drawing without replacement. `gumbel_softmax`
    and `top_k` use these values if they have the same key. They give the importance
    weights of the `k` indices from `top_k`: if `kappa` is the largest perturbed logit
    that is not among them, a weight of ``1 / sf(kappa, loc=logits)`` for those above it
    and of zero for the others has mean one.

    Args:
        key: PRNG key.
        logits: Unnormalized log-probabilities of any shape, in [-inf, inf).

    Returns:
        The perturbed logits, in float32 or wider; -inf where the logit is -inf.

    Example:
        >>> perturbed = perturbed_logits(jax.random.key(0), jnp.array([1e9, -jnp.inf]))
        >>> print(perturbed)
        [1.e+09   -inf]

    References:
        Kool et al., "Stochastic Beams and Where to Find Them", ICML 2019.
    """
    logits = _at_least_float32(logits)
    return logits + jax.random.gumbel(key, logits.shape, logits.dtype)


def gumbel_max(key: jax.Array, logits: ArrayLike, axis: int = -1) -> jax.Array:
    """Draws the index `i` with probability ``softmax(logits)[i]``.

    This is `jax.random.categorical`, which adds Gumbel noise and takes the argmax. The
    only difference is that logits of less than float32 are widened first, since noise
    in their own precision would be far from Gumbel.

    Args:
        key: PRNG key.
        logits: Unnormalized log-probabilities, in [-inf, inf). An index whose logit is
            -inf is never drawn, unless all of them are, which gives the index zero.
        axis: The axis of the distribution.

    Returns:
        One index for each distribution, of the shape of `logits` without `axis`.

    Raises:
        ValueError: If `logits` is a scalar.

    Example:
        >>> logits = jnp.array([-jnp.inf, 0.0, -jnp.inf])
        >>> print(gumbel_max(jax.random.key(0), logits))
        1

    References:
        Maddison et al., "A* Sampling", NeurIPS 2014.
    """
    logits = _at_least_float32(logits)
    _check_axis(logits)
    return jax.random.categorical(key, logits, axis)


def gumbel_softmax(
    key: jax.Array,
    logits: ArrayLike,
    temperature: ArrayLike = 1.0,
    *,
    hard: bool = False,
    axis: int = -1,
) -> jax.Array:
    """Draws a differentiable, approximately one-hot vector.

    Computes ``softmax((logits + g) / temperature)`` with standard Gumbel noise `g`. Its
    largest entry is at `i` with probability ``softmax(logits)[i]``. The lower the
    temperature, the closer the draw is to one-hot and the larger is the variance of its
    gradient.

    With ``hard=True`` the value is exactly one-hot, and the derivative is that of the
    soft vector (straight-through): it is biased, as it belongs to another value.

    Args:
        key: PRNG key.
        logits: Unnormalized log-probabilities, in [-inf, inf). Where a logit is -inf,
            the result and its derivative are zero, also if all of them are.
        temperature: Positive; broadcasts to the shape of `logits`.
        hard: Whether to return a one-hot vector.
        axis: The axis of the distribution.

    Returns:
        Non-negative values whose sum over `axis` is one, of the shape of `logits`.

    Raises:
        ValueError: If `temperature` is a Python number that is not positive or does not
            broadcast, or if `logits` is a scalar.

    Example:
        >>> logits = jnp.array([0.0, 100.0, -jnp.inf])  # The noise is below 20.
        >>> print(gumbel_softmax(jax.random.key(0), logits, 0.5, hard=True))
        [0. 1. 0.]

    References:
        Jang et al., "Categorical Reparameterization with Gumbel-Softmax", ICLR 2017,
        eq. 2 and section 2.2. Maddison et al., "The Concrete Distribution", ICLR 2017.
    """
    check_number("temperature", temperature, low=0, open_low=True)
    perturbed = perturbed_logits(key, logits)
    _check_axis(perturbed)
    temperature = positive(temperature, perturbed.dtype)
    temperature = jnp.broadcast_to(temperature, perturbed.shape)

    possible = perturbed != -jnp.inf
    top = jnp.max(
        perturbed, axis, keepdims=True, initial=jnp.finfo(perturbed.dtype).min
    )
    # Nothing is above zero after the largest is subtracted, so that a low temperature
    # can only underflow to zero.
    gaps = jnp.where(possible, jax.lax.stop_gradient(top) - perturbed, 0)
    powers = jnp.where(possible, exp_minus(divide(gaps, temperature)), 0)
    total = jnp.sum(powers, axis, keepdims=True)
    soft = powers / linalg.positive(total)
    soft = soft.astype(jnp.result_type(logits, float))
    if not hard:
        return soft
    choice = jnp.argmax(perturbed, axis)
    one_hot = jax.nn.one_hot(choice, soft.shape[axis], dtype=soft.dtype, axis=axis)
    # The bracket is exactly zero, so that no rounding is left in the value.
    return jnp.where(possible, one_hot, 0) + (soft - jax.lax.stop_gradient(soft))


def top_k(key: jax.Array, logits: ArrayLike, k: int) -> jax.Array:
    """Draws `k` different indices, one after the other, without replacement.

    Each is drawn with probabilities ``softmax(logits)`` among those that are left. It
    takes the `k` largest of `perturbed_logits` with the same key, which returns the
    values. `jax.random.categorical` with ``replace=False`` draws the same distribution,
    but may return indices whose logit is -inf.

    Args:
        key: PRNG key.
        logits: Unnormalized log-probabilities of shape [..., n], in [-inf, inf).
        k: How many to draw, in [1, n].

    Returns:
        Indices in the order of the draws, of shape [..., k] and dtype int32. If fewer
        than `k` logits are above -inf, the last places are `n`: an index out of bounds,
        which `jax.nn.one_hot` and scatters (``x.at[indices].set``) ignore.

    Raises:
        ValueError: If `k` is not an integer of at least one, if it is larger than `n`,
            or if `logits` is a scalar.

    Example:
        >>> logits = jnp.array([100.0, -jnp.inf, 200.0])  # The noise is below 20.
        >>> print(top_k(jax.random.key(0), logits, 3))
        [2 0 3]

    References:
        Kool et al., "Stochastic Beams and Where to Find Them", ICML 2019.
    """
    check_whole("k", k, low=1)
    perturbed = perturbed_logits(key, logits)
    _check_axis(perturbed)
    size = perturbed.shape[-1]
    if k > size:
        raise ValueError(f"k must be at most the number of logits, {size}, got {k}.")
    values, indices = jax.lax.top_k(perturbed, k)
    return jnp.where(values == -jnp.inf, size, indices)


def _at_least_float32(logits: ArrayLike) -> jax.Array:
    return jnp.asarray(logits, working_type(logits))


def _check_axis(logits: jax.Array) -> None:
    if logits.ndim == 0:
        raise ValueError("logits must have shape [..., n], got [].")
