"""Loss functions of single examples, for use next to task weights."""

import jax
import jax.numpy as jnp
import optax

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


def uncertainty_regression(
    loss: jax.typing.ArrayLike,
    log_variance: jax.typing.ArrayLike,
    *,
    positive: bool = False,
    bound: jax.typing.ArrayLike = 10.0,
) -> jax.Array:
    """Squared error weighted by a learned variance.

    Computes ``exp(-s) L / 2 + s / 2``, the negative log-likelihood of a Gaussian with
    log-variance s, less a constant. Its optimum in s is ``log L``; it is unbounded
    below as L vanishes. For log-variances kept among the parameters of a model (keep
    them out of weight decay); `dtp_jax.balancers.uncertainty` keeps them elsewhere.

    Beyond ``|s| = bound`` the value is that of the nearest end plus half the distance,
    so that a log-variance outside is drawn back and everything stays finite.

    Args:
        loss: ``[...]``, squared errors, at least 0.
        log_variance: ``[...]``, s.
        positive: Replaces ``s / 2`` by ``log(1 + exp(s))``, which keeps the sum
            positive (Liebel and Koerner); its optimum is ``exp(s) = (L + sqrt(L^2 + 8
            L)) / 4``.
        bound: Largest absolute log-variance that is used as it is, above 0.

    Returns:
        ``[...]``.

    Raises:
        ValueError: If `bound` is a number that is not positive.

    Example:
        At the optimum ``s = log 3`` the value is ``(1 + log 3) / 2``.

        >>> import math
        >>> round(uncertainty_regression(3.0, math.log(3.0)).item(), 4)
        1.0493

    References:
        Kendall, Gal, Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses",
        CVPR 2018, equation 7; Liebel and Koerner, "Auxiliary Tasks in Multi-task
        Learning", 2018.
    """
    s, outside = _bounded(log_variance, bound)
    regularizer = jax.nn.softplus(s) if positive else 0.5 * s
    return 0.5 * jnp.exp(-s) * loss + regularizer + outside


def uncertainty_classification(
    logits: jax.Array,
    labels: jax.Array,
    log_variance: jax.typing.ArrayLike,
    *,
    exact_temperature: bool = False,
    bound: jax.typing.ArrayLike = 10.0,
) -> jax.Array:
    """Cross-entropy weighted by a learned temperature.

    Computes ``exp(-s) L + s / 2``, where L is the cross-entropy; its optimum in s is
    ``log 2L``. This approximates the likelihood of a softmax with the temperature
    ``exp(s)``, exactly so at s = 0. With ``exact_temperature=True`` the likelihood
    itself, ``-log softmax(logits exp(-s))[label]``, at the same cost.

    Args:
        logits: ``[..., C]``.
        labels: ``[...]``, integers in [0, C).
        log_variance: ``[...]``, s.
        exact_temperature: Whether to compute the likelihood instead of its
            approximation.
        bound: Largest absolute log-variance that is used as it is, above 0; see
            `uncertainty_regression`.

    Returns:
        ``[...]``.

    Raises:
        ValueError: If `bound` is a number that is not positive.

    Example:
        Two equal logits: ``log 2`` at s = 0, either way.

        >>> import jax.numpy as jnp
        >>> round(uncertainty_classification(jnp.zeros(2), jnp.array(0), 0.0).item(), 4)
        0.6931

    References:
        Kendall, Gal, Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses",
        CVPR 2018, equations 8 to 10.
    """
    s, outside = _bounded(log_variance, bound)
    cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels
    if exact_temperature:
        tempered = logits * jnp.exp(-s)[..., None]
        return cross_entropy(tempered, labels) + outside
    return jnp.exp(-s) * cross_entropy(logits, labels) + 0.5 * s + outside


def uncertainty_laplace(
    loss: jax.typing.ArrayLike,
    log_scale: jax.typing.ArrayLike,
    *,
    bound: jax.typing.ArrayLike = 10.0,
) -> jax.Array:
    """Absolute error weighted by a learned scale.

    Computes ``exp(-b) L + b``, the negative log-likelihood of a Laplace distribution
    with log-scale b, less a constant. Its optimum in b is ``log L``.

    Args:
        loss: ``[...]``, absolute errors, at least 0.
        log_scale: ``[...]``, b.
        bound: Largest absolute log-scale that is used as it is, above 0; see
            `uncertainty_regression`.

    Returns:
        ``[...]``.

    Raises:
        ValueError: If `bound` is a number that is not positive.

    Example:
        >>> uncertainty_laplace(3.0, 0.0).item()
        3.0

    References:
        Kendall, Gal, Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses",
        CVPR 2018, section 3.2, which says "similarly" for a Laplace likelihood.
    """
    b, outside = _bounded(log_scale, bound)
    return jnp.exp(-b) * loss + b + outside


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


def general_robust_loss(
    x: jax.typing.ArrayLike, alpha: jax.typing.ArrayLike, scale: jax.typing.ArrayLike
) -> jax.Array:
    """Barron's loss, of which many robust losses are special cases.

    Computes ``(|alpha - 2| / alpha) (((x / scale)^2 / |alpha - 2| + 1)^(alpha / 2) -
    1)`` and its limits: half the square for alpha = 2, Charbonnier for 1, Cauchy for 0,
    Geman-McClure for -2, Welsch for -inf.

    Args:
        x: ``[...]``, residuals.
        alpha: The shape; the smaller, the less outliers count. Any real number, -inf or
            inf. Its derivative is zero at the special values: 0, 2, the infinite ones.
        scale: The residual at which robustness sets in, above 0.

    Returns:
        ``[...]``, at least 0.

    Raises:
        ValueError: If `scale` is a number that is not positive.

    Example:
        ``sqrt(1 + 1) - 1`` for alpha = 1:

        >>> round(general_robust_loss(2.0, 1.0, 2.0).item(), 4)
        0.4142

    References:
        Barron, "A General and Adaptive Robust Loss Function", CVPR 2019, equation 8.
    """
    check_number("scale", scale, low=0, open_low=True)
    dtype = jnp.result_type(jnp.float32, x, alpha, scale)
    x, alpha = jnp.asarray(x, dtype), jnp.asarray(alpha, dtype)
    # Beyond, the square would overflow.
    half = 0.5 * jnp.square(jnp.clip(x / scale, -1e18, 1e18))
    # expm1 overflows at 88 in float32.
    capped = jnp.minimum(half, 87.0)
    eps = jnp.finfo(dtype).eps
    regular = (jnp.abs(alpha) > eps) & (jnp.abs(alpha - 2) > eps) & jnp.isfinite(alpha)
    # The special values get a stand-in, for which the general formula is finite.
    a = jnp.where(regular, alpha, 1.0)
    b = jnp.abs(a - 2)
    # (1 + u)^(a / 2) - 1 by log1p and expm1 keeps the digits of small residuals.
    exponent = jnp.minimum(0.5 * a * jnp.log1p(2 * half / b), 87.0)
    special = jnp.where(
        alpha == jnp.inf,
        jnp.expm1(capped),
        jnp.where(
            alpha == -jnp.inf,
            -jnp.expm1(-half),
            jnp.where(jnp.abs(alpha) <= eps, jnp.log1p(half), half),
        ),
    )
    return jnp.where(regular, b / a * jnp.expm1(exponent), special)


def _bounded(
    log_variance: jax.typing.ArrayLike, bound: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
    check_number("bound", bound, low=0, open_low=True)
    s, limit = jnp.asarray(log_variance), jnp.asarray(bound)
    inside = jnp.where(s > limit, limit, jnp.where(s < -limit, -limit, s))
    return inside, 0.5 * jnp.abs(s - inside)
