"""Weights of classes of unequal size."""

import jax
import jax.numpy as jnp

from dtp_jax._core.checks import check_number


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
        ValueError: If `beta` is a number outside of [0, 1).

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
    counts = jnp.asarray(counts, jnp.result_type(jnp.float32, beta))
    present = counts > 0
    # beta = 0 has no logarithm; one sample is then as good as many.
    logs = jnp.log1p(-(1 - jnp.where(beta == 0, 0.5, beta)))
    effective = -jnp.expm1(jnp.where(present, counts, 1) * logs) / (1 - beta)
    inverse = jnp.where(present, 1 / jnp.where(beta == 0, 1, effective), 0)
    total = jnp.sum(inverse)
    return inverse * jnp.sum(present) / jnp.where(total > 0, total, 1)
