"""Weights of classes of unequal size."""

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg
from dtp_jax._core.checks import check_number
from dtp_jax._core.numerics import as_floats, expm1


def class_balanced_weights(
    counts: jax.typing.ArrayLike, beta: jax.typing.ArrayLike
) -> jax.Array:
    """Weights of classes by their effective number of samples.

    Computes ``1 / E_n`` with ``E_n = (1 - beta^n) / (1 - beta)``, scaled to sum to the
    number of classes. Multiply the loss of an example by the weight of its class.

    Args:
        counts: ``[C]``, the number of samples of each class. A class without samples
            has weight zero and does not count in the sum.
        beta: In [0, 1). 0 weights all classes alike; towards 1 the weights become
            inversely proportional to the counts. The best value depends on the data:
            the paper uses 0.9 to 0.9999.

    Returns:
        ``[C]``.

    Raises:
        ValueError: If `beta` is a number outside of [0, 1), or the shapes do not fit.

    Example:
        ``E = 1, 1.5`` for one and two samples at beta = 0.5.

        >>> import jax.numpy as jnp
        >>> weights = class_balanced_weights(jnp.array([1, 2]), 0.5)
        >>> [round(weight, 4) for weight in weights.tolist()]
        [1.2, 0.8]

    References:
        Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR
        2019, equation 3.
    """
    check_number("beta", beta, low=0, high=1, open_high=True)
    if jnp.ndim(counts) != 1 or jnp.ndim(beta) != 0:
        raise ValueError(
            "counts must have shape [C] and beta must be a scalar, got "
            f"{list(jnp.shape(counts))} and {list(jnp.shape(beta))}."
        )
    dtype = jnp.result_type(jnp.float32, beta)
    counts = jnp.asarray(counts, dtype)
    present = counts > 0
    # A number of Python is taken from one in its own 64 bits: in 32, 0.99999999 is one.
    # An array is what it is, and float32 near one is subtracted from one exactly.
    rest = jnp.asarray(1 - (as_floats(beta) if isinstance(beta, jax.Array) else beta))
    rest = rest.astype(dtype)
    # beta = 0 has no logarithm; one sample is then as good as many.
    zero = rest == 1
    logs = jnp.log1p(-jnp.where(zero, 0.5, rest))
    effective = -expm1(jnp.where(present, counts, 1) * logs) / rest
    inverse = jnp.where(present, 1 / jnp.where(zero, 1, effective), 0)
    total = jnp.sum(inverse)
    return inverse * jnp.sum(present) / linalg.positive(total)
