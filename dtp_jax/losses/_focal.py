"""Focal losses."""

import jax
import jax.numpy as jnp
import optax

from dtp_jax._core.checks import check_no_new_axes, check_number, check_same_shape
from dtp_jax._core.numerics import as_floats, divide, working_type

from ._logits import margin_of


def sigmoid_focal_loss(
    logits: jax.typing.ArrayLike,
    labels: jax.typing.ArrayLike,
    gamma: jax.typing.ArrayLike = 2.0,
) -> jax.Array:
    """Binary focal loss of each example, from logits.

    Computes ``-(1 - p)**gamma * log(p)``, where p is the probability of the true class.

    This is `optax.losses.sigmoid_focal_loss`, which computes it in logs, so that value
    and gradient are finite for every finite logit and gamma, and has a balance of the
    classes, ``alpha``, too. What is added: logits of half precision are computed in
    float32, labels may be booleans or integers, infinite logits have their limit, and
    shapes that do not fit raise.

    Args:
        logits: ``[...]``.
        labels: ``[...]``, or a scalar: 1 or True for the positive class. Floats between
            0 and 1 are soft labels.
        gamma: How fast easy examples are discounted, at least 0; 0 is cross-entropy. A
            scalar, or ``[...]`` with 1 for sizes to be repeated.

    Returns:
        ``[...]``, at least 0. Where the true class has no probability at all, the loss
        is inf; its slope in the logit has size one, as in the limit.

    Raises:
        ValueError: If gamma is a negative number or the shapes do not fit.

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
    logits, labels = as_floats(logits), jnp.asarray(labels)
    if logits.ndim and labels.ndim:
        check_same_shape("logits", logits, "labels", labels)
    check_no_new_axes(logits=logits, gamma=gamma)
    if not jnp.issubdtype(labels.dtype, jnp.floating):
        labels = labels > 0
    logits, labels = jnp.broadcast_arrays(logits, labels.astype(logits.dtype))
    # Far from zero the products of the formula are infinity times zero. There the loss
    # is linear in the logit, times a power of the label that the logit speaks against.
    far = jnp.abs(logits) > 1e30
    loss = optax.losses.sigmoid_focal_loss(
        jnp.where(far, 0, logits), labels, gamma=jnp.asarray(gamma)
    )
    against = jnp.where(logits > 0, 1 - labels, labels)
    wrong = against > 0
    power = jnp.exp((1 + gamma) * jnp.log(jnp.where(wrong, against, 1)))
    limit = jax.lax.stop_gradient(power) * jnp.where(wrong & far, jnp.abs(logits), 0)
    return jnp.where(far, limit, loss)


def softmax_focal_loss(
    logits: jax.typing.ArrayLike,
    labels: jax.typing.ArrayLike,
    gamma: jax.typing.ArrayLike = 2.0,
) -> jax.Array:
    """Multi-class focal loss of each example, from logits.

    Computes ``-(1 - p)**gamma * log(p)``, where p is the softmax probability of the
    true class. ``1 - p`` is summed over the other classes, in logs, so that value and
    gradient are finite and accurate even where p rounds to one. Classes with a logit of
    ``-inf`` are left out.

    Args:
        logits: ``[..., C]``.
        labels: ``[...]``, integers in [0, C); the loss of any other label is NaN.
        gamma: How fast easy examples are discounted, at least 0; 0 is cross-entropy. A
            scalar, or ``[...]`` with 1 for sizes to be repeated.

    Returns:
        ``[...]``, at least 0, in float32 or better. Where the true class is left out,
        the loss is inf, and its gradient in the other logits is that of the limit.

    Raises:
        ValueError: If gamma is a negative number, the labels are not integers or the
            shapes do not fit.

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
    margin, certain, unknown = margin_of(logits, labels)
    check_no_new_axes(labels=labels, gamma=gamma)
    # The softmax of one class against the rest is a sigmoid of the margin.
    loss = jnp.where(certain, 0, sigmoid_focal_loss(margin, 1, gamma))
    return jnp.where(unknown, jnp.nan, loss)


def bounded_error_focal_loss(
    errors: jax.typing.ArrayLike,
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
        gamma: How fast small errors are discounted, at least 0. A scalar, or ``[...]``
            with 1 for sizes to be repeated, as are the others.
        scale: The largest possible error, such as the size of the image; above 0.
        p_min: Bounds the loss where the error is near `scale`, in (0, 1); the gradient
            is zero beyond, so choose a `scale` that errors do not reach.

    Returns:
        ``[...]`` in [0, -log(p_min)], in float32 or better. Small errors keep their
        digits.

    Raises:
        ValueError: If a number is out of its range or the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> losses = bounded_error_focal_loss(jnp.array([0.0, 5.0]), scale=10.0)
        >>> [round(loss, 4) for loss in losses.tolist()]
        [0.0, 0.1733]

    References:
        Guo et al., "Dynamic Task Prioritization for Multitask Learning", ECCV 2018,
        section 3.1.
    """
    check_number("gamma", gamma, low=0)
    check_number("scale", scale, low=0, open_low=True)
    check_number("p_min", p_min, low=0, high=1, open_low=True, open_high=True)
    check_no_new_axes(errors=errors, gamma=gamma, scale=scale, p_min=p_min)
    dtype = working_type(errors, scale)
    errors, gamma, scale, p_min = (
        jnp.asarray(argument, dtype) for argument in (errors, gamma, scale, p_min)
    )
    # The error itself is 1 - p, with all its digits. p has lost those of small errors.
    rest = divide(jnp.abs(errors), scale)
    bounded = 1 - rest < p_min
    perfect = rest == 0
    log_p = jnp.where(bounded, jnp.log(p_min), jnp.log1p(-jnp.where(bounded, 0, rest)))
    log_rest = jnp.where(
        bounded, jnp.log1p(-p_min), jnp.log(jnp.where(bounded | perfect, 1, rest))
    )
    # 0**gamma, with 0**0 = 1, has no logarithm.
    power = jnp.where(perfect, (gamma == 0).astype(dtype), jnp.exp(gamma * log_rest))
    # Subtracting from zero gives 0.0 for a perfect prediction; a negation, -0.0.
    return 0.0 - power * log_p
