"""What losses of classes read."""

import jax
import jax.numpy as jnp

from dtp_jax._core.checks import check_labels
from dtp_jax._core.numerics import class_indices, exact_type, relative_logits


def margin_of(
    logits: jax.typing.ArrayLike,
    labels: jax.typing.ArrayLike,
    factor: jax.typing.ArrayLike = 1.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """By how much the logit of the true class exceeds those of all others together.

    The softmax probability of the true class is the sigmoid of the margin, which keeps
    the digits of a probability near one, too.

    Args:
        logits: ``[..., C]``; classes with a logit of -inf are left out.
        labels: ``[...]``, integers of any width.
        factor: What the logits are multiplied by, positive: a scalar or ``[...]``.

    Returns:
        The margin, ``[...]``, in float32 or better; -inf if the true class is left out.
        Where there is no other class, which has no margin: a mask, ``[...]``. Where the
        label is none of the classes: a mask, ``[...]``.

    Raises:
        ValueError: If the labels are not integers, or not one for each row of logits.
    """
    dtype = exact_type(labels)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            f"labels must be integers of shape [...], got {dtype}; for one-hot "
            "labels take jnp.argmax(labels, axis=-1)."
        )
    check_labels(logits, labels)
    logits = relative_logits(logits)
    num_classes = logits.shape[-1]
    index = class_indices(labels, num_classes)
    factor = jnp.asarray(factor)
    if factor.ndim:
        shape = jnp.broadcast_shapes(index.shape, factor.shape)
        index = jnp.broadcast_to(index, shape)
        logits = jnp.broadcast_to(logits, (*shape, num_classes))
        factor = jnp.broadcast_to(factor, shape)[..., None]
    allowed = logits > -jnp.inf
    # Infinity times the factor would have no derivative in the factor.
    logits = jnp.where(allowed, logits, 0) * factor
    logits = jnp.where(allowed, logits, -jnp.inf)
    true = jax.nn.one_hot(index, num_classes, dtype=bool)
    others = ~true & allowed
    alone = ~jnp.any(others, axis=-1)
    # Without another class 1 - p is zero, whose logarithm would have no derivative.
    others = jnp.where(alone[..., None], True, others)
    logits = jnp.where(alone[..., None], 0, logits)
    log_others = jax.nn.logsumexp(logits, axis=-1, where=others)
    true_logit = jnp.sum(jnp.where(true, logits, 0), axis=-1)
    return true_logit - log_others, alone, index < 0
