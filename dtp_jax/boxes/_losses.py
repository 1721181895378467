"""Losses of boxes."""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from dtp_jax._core.checks import check_number, known_number
from dtp_jax._core.numerics import difference

from ._inputs import as_boxes, as_pairs


def kl_loss(
    prediction: ArrayLike,
    target: ArrayLike,
    log_variance: ArrayLike,
    *,
    log_variance_min: ArrayLike = -10.0,
    log_variance_max: ArrayLike = 10.0,
) -> jax.Array:
    """Regression loss of a Gaussian coordinate with predicted variance, per coordinate.

    Computes ``exp(-alpha) huber(prediction - target) + alpha / 2``, where ``alpha`` is
    the log-variance, and ``huber(e)`` is ``e^2 / 2`` for ``|e| <= 1`` and
    ``|e| - 1 / 2`` beyond. For small errors it is the KL divergence from the target (a
    point mass) to ``N(prediction, exp(alpha))``, less its constants; with ``alpha = 0``
    it is smooth-L1.

    In ``alpha`` the loss is unbounded below as the error vanishes, so ``alpha`` is
    clamped (the paper does not say). Outside the interval the loss is that of the
    nearest end plus half the distance to it: the gradient there has size 1/2 and points
    back inside, so that no log-variance can get stuck or drift away.

    Args:
        prediction: Offsets, ``[..., 4]``, as `encode` makes them.
        target: Offsets, ``[..., 4]``.
        log_variance: Log-variances of the offsets, ``[..., 4]``. The standard deviation
            is ``exp(log_variance / 2)``.
        log_variance_min: Lower end of the interval that is used as it is.
        log_variance_max: Upper end.

    Returns:
        Losses, ``[..., 4]``, may be negative. The paper sums them over the coordinates
        and averages over the boxes.

    Raises:
        ValueError: If a last axis is not of size 4, or the interval is empty.

    Example:
        An error of 2, at variance 1 and at its best variance, ``2 huber = 3``: there
        the loss is ``(1 + log 3) / 2``.

        >>> error, zeros = jnp.full(4, 2.0), jnp.zeros(4)
        >>> print(kl_loss(error, zeros, zeros))
        [1.5 1.5 1.5 1.5]
        >>> round(float(kl_loss(error, zeros, jnp.full(4, jnp.log(3)))[0]), 4)
        1.0493

    References:
        He et al., "Bounding Box Regression with Uncertainty", CVPR 2019, sec. 3.2.
    """
    check_number("log_variance_min", log_variance_min, infinite=True)
    least = known_number(log_variance_min)
    check_number("log_variance_max", log_variance_max, low=least, infinite=True)
    prediction, target = as_pairs("prediction", prediction, "target", target)
    error = difference(prediction, target)
    log_variance = as_boxes("log_variance", log_variance)
    error, log_variance = jnp.broadcast_arrays(error, log_variance)
    inside = jnp.clip(log_variance, log_variance_min, log_variance_max)
    outside = jnp.abs(log_variance - inside)
    error = optax.losses.huber_loss(error, delta=1.0)
    return jnp.exp(-inside) * error + 0.5 * (inside + outside)


def bounded_iou_loss(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    beta: ArrayLike = 0.2,
    eps: ArrayLike = 1e-3,
) -> jax.Array:
    """Grades offset and size along each axis by what they alone cost in IoU.

    With d the distance of the centres along an axis and w, w_t the two lengths, the
    offset has the grade ``max(0, (w_t - 2 d) / (w_t + 2 d))`` and the size ``min(w /
    w_t, w_t / w)``, the IoU of boxes that differ in this size only. The loss is
    ``huber(1 - grade)`` of each, where ``huber(c)`` is ``c^2 / (2 beta)`` below beta
    and ``c - beta / 2`` beyond. No derivative flows into the target. Where the distance
    exceeds half of ``w_t`` the grade of the offset is 0, without slope.

    Args:
        prediction: Boxes, ``[..., 4]``. Inverted ones have length zero.
        target: Boxes, ``[..., 4]``.
        beta: Where the loss turns from square to linear, in (0, 1].
        eps: Added to the denominators, in the units of the boxes, above 0.

    Returns:
        ``[..., 4]`` in [0, 1 - beta / 2], for x, y, width and height.

    Raises:
        ValueError: If a last axis is not of size 4, or a number is out of its range.

    Example:
        Half the width at the same centre: the grade is 1/2, ``0.5 - 0.2 / 2 = 0.4``.

        >>> wide = jnp.array([0.0, 0.0, 4.0, 2.0])
        >>> half = jnp.array([1.0, 0.0, 3.0, 2.0])
        >>> [round(x, 2) for x in bounded_iou_loss(half, wide).tolist()]
        [0.0, 0.0, 0.4, 0.0]

    References:
        Tychsen-Smith and Petersson, "Improving Object Localization with Fitness NMS and
        Bounded IoU Loss", CVPR 2018; the formula is that of public implementations.
    """
    check_number("beta", beta, low=0, high=1, open_low=True)
    check_number("eps", eps, low=0, open_low=True)
    box, goal = as_pairs("prediction", prediction, "target", target)
    goal = jax.lax.stop_gradient(goal)
    size = jnp.maximum(difference(box[..., 2:], box[..., :2]), 0)
    goal_size = jnp.maximum(difference(goal[..., 2:], goal[..., :2]), 0)
    # Twice the distance of the centres.
    shifts = difference(box, goal)
    apart = jnp.abs(shifts[..., 2:] + shifts[..., :2])
    of_center = jnp.maximum((goal_size - apart) / (goal_size + apart + eps), 0)
    of_size = jnp.minimum(goal_size / (size + eps), size / (goal_size + eps))
    cost = 1 - jnp.concatenate([of_center, of_size], axis=-1)
    return jnp.where(cost < beta, cost**2 / (2 * beta), cost - beta / 2)


def log_variance_init(stddev: float = 1e-4) -> jax.nn.initializers.Initializer:
    """Initializer of the weights of a log-variance head, next to a bias of zeros.

    Draws from ``N(0, stddev^2)``, so that training starts as smooth-L1 regression.

    Args:
        stddev: Standard deviation of the weights.

    Returns:
        A function ``(key, shape, dtype) -> weights`` for ``kernel_init`` and the like.

    Raises:
        ValueError: If `stddev` is negative.

    Example:
        >>> weights = log_variance_init()(jax.random.key(0), (256, 4), jnp.float32)
        >>> bool(jnp.max(jnp.abs(weights)) < 1e-3)
        True

    References:
        He et al., "Bounding Box Regression with Uncertainty", CVPR 2019, sec. 3.2.
    """
    check_number("stddev", stddev, low=0)
    return jax.nn.initializers.normal(stddev)
