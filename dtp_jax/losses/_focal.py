"""Focal losses."""

import jax
import jax.numpy as jnp

from dtp_jax._core.checks import check_number
from dtp_jax.kpi import focal_weights


def sigmoid_focal_loss(
    logits: jax.typing.ArrayLike,
    labels: jax.typing.ArrayLike,
    gamma: jax.typing.ArrayLike = 2.0,
) -> jax.Array:
    """Binary focal loss of each example, from logits.

    Computes ``-(1 - p)**gamma * log(p)``, where p is the probability of the true class,
    in logs, so that value and gradient are finite for every finite logit and gamma.
    `optax.losses.sigmoid_focal_loss` has a class balance too; its gradient is not
    finite at saturated logits for gamma below 1.

    Args:
        logits: ``[...]``.
        labels: ``[...]``, 1 or True for the positive class.
        gamma: How fast easy examples are discounted, at least 0; 0 is cross-entropy.

    Returns:
        ``[...]``, at least 0.

    Raises:
        ValueError: If gamma is a negative number.

    Example:
        A logit of 0 is a probability of one half: ``0.25 * log(2)``.

        >>> import jax.numpy as jnp
        >>> round(sigmoid_focal_loss(jnp.array(0.0), 1).item(), 4)
        0.1733

    References:
        Guo et al., "Dynamic Task Prioritization for Multitask Learning", ECCV 2018,
        equations 2 and 3; Lin et al., "Focal Loss for Dense Object Detection", 2017.
    """
    check_number("gamma", gamma, low=0)
    # Low precision has no digits left for 1 - p where p is near one.
    logits = jnp.asarray(logits)
    logits = logits.astype(jnp.promote_types(jnp.float32, logits.dtype))
    towards_true = jnp.where(jnp.asarray(labels) > 0.5, logits, -logits)
    log_p = jax.nn.log_sigmoid(towards_true)
    return -jnp.exp(gamma * jax.nn.log_sigmoid(-towards_true)) * log_p


def softmax_focal_loss(
    logits: jax.Array, labels: jax.Array, gamma: jax.typing.ArrayLike = 2.0
) -> jax.Array:
    """Multi-class focal loss of each example, from logits.

    Computes ``-(1 - p)**gamma * log(p)``, where p is the softmax probability of the
    true class. ``1 - p`` is summed over the other classes, in logs, so that value and
    gradient are finite and accurate even where p rounds to one. Classes with a logit of
    ``-inf`` are left out.

    Args:
        logits: ``[..., C]``.
        labels: ``[...]``, integers in [0, C); the loss of any other label is NaN.
        gamma: How fast easy examples are discounted, at least 0; 0 is cross-entropy.

    Returns:
        ``[...]``, at least 0.

    Raises:
        ValueError: If gamma is a negative number or the labels are not integers.

    Example:
        Three equal logits: ``(2 / 3)**2 * log(3)``.

        >>> import jax.numpy as jnp
        >>> round(softmax_focal_loss(jnp.zeros(3), jnp.array(1)).item(), 4)
        0.4883

    References:
        Guo et al., "Dynamic Task Prioritization for Multitask Learning", ECCV 2018,
        equation 3.
    """
    check_number("gamma", gamma, low=0)
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels must be integers of shape [...], got {labels.dtype}; for one-hot "
            "labels take jnp.argmax(labels, axis=-1)."
        )
    true = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    others = ~true & (logits > -jnp.inf)
    alone = ~jnp.any(others, axis=-1)
    # Without another class 1 - p is zero, whose logarithm would have no derivative.
    others = jnp.where(alone[..., None], True, others)
    log_others = jax.nn.logsumexp(logits, axis=-1, where=others)
    true_logit = jnp.sum(jnp.where(true, logits, 0), axis=-1)
    # The softmax of one class against the rest is a sigmoid of the margin.
    margin_loss = sigmoid_focal_loss(true_logit - log_others, 1, gamma)
    inside = (labels >= 0) & (labels < logits.shape[-1])
    return jnp.where(inside, jnp.where(alone, 0, margin_loss), jnp.nan)


def bounded_error_focal_loss(
    errors: jax.Array,
    gamma: jax.typing.ArrayLike = 2.0,
    *,
    scale: jax.typing.ArrayLike = 1.0,
    p_min: jax.typing.ArrayLike = 0.01,
) -> jax.Array:
    """Focal loss of regression errors of a known range.

    Computes ``-(1 - p)**gamma * log(p)`` with ``p = 1 - errors / scale``. The paper
    writes the focal function of the error itself, which would be infinite for a perfect
    prediction and zero for the worst; taking p as above is what its text describes.

    Args:
        errors: ``[...]``, absolute errors in [0, scale]; larger ones count as `scale`.
        gamma: How fast small errors are discounted, at least 0.
        scale: The largest possible error, such as the size of the image; above 0.
        p_min: Bounds the loss where the error is near `scale`, in (0, 1); the gradient
            is zero beyond, so choose a `scale` that errors do not reach.

    Returns:
        ``[...]`` in [0, -log(p_min)].

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> losses = bounded_error_focal_loss(jnp.array([0.0, 5.0]), scale=10.0)
        >>> [round(loss, 4) for loss in losses.tolist()]
        [0.0, 0.1733]

    References:
        Guo et al., "Dynamic Task Prioritization for Multitask Learning", ECCV 2018,
        section 3.1.
    """
    check_number("scale", scale, low=0, open_low=True)
    check_number("p_min", p_min, low=0, high=1, open_low=True, open_high=True)
    return focal_weights(1 - jnp.abs(errors) / scale, gamma, kpi_min=p_min)
