"""Student's t: how far a mean over seeds may be off.

Seeds are taken for independent draws of a random variable whose mean over S seeds is
about normal. What every seed shares, such as the data set, is no part of the noise.
"""

import functools
import math
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean and the two ends of its confidence interval, arrays of one shape."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def t_distribution(t: float, degrees: int) -> float:
    """The probability that Student's t lies in [-t, t].

    A finite sum for whole degrees of freedom, in ``theta = atan(t / sqrt(degrees))``:
    with ``c = cos(theta)`` and ``s = sin(theta)``, ``s (1 + c^2 / 2 + 3 c^4 / 8 +
    ...)`` up to ``c^(degrees - 2)`` for even ones, and ``2 / pi (theta + s (c + 2 c^3 /
    3 + ...))`` up to the same power for odd ones.

    Args:
        t: At least 0; may be infinite.
        degrees: Of freedom, 1 or more.

    Returns:
        A number in [0, 1].

    Example:
        Cauchy's distribution, of one degree, has half of its mass in [-1, 1].

        >>> round(t_distribution(1.0, 1), 12)
        0.5

    References:
        Abramowitz & Stegun, "Handbook of Mathematical Functions", 26.7.3 and 26.7.4.
    """
    theta = math.atan2(t, math.sqrt(degrees)) if math.isfinite(t) else math.pi / 2
    cosine, sine = math.cos(theta), math.sin(theta)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = 0.0
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    found = 2 / math.pi * (theta + sine * total) if odd else sine * total
    return min(max(found, 0.0), 1.0)


@functools.lru_cache
def t_quantile(confidence: float, degrees: int) -> float:
    """The t for which Student's distribution has `confidence` in [-t, t].

    Args:
        confidence: In (0, 1).
        degrees: Of freedom, 1 or more.

    Returns:
        A number above 0, to rounding.

    Example:
        >>> round(t_quantile(0.95, 9), 3)
        2.262
    """
    low, high = 0.0, 1.0
    while t_distribution(high, degrees) < confidence:
        high *= 2
    # Sixty halvings leave nothing between two neighbouring floats.
    for _ in range(60):
        middle = (low + high) / 2
        if t_distribution(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def t_interval(values: np.ndarray, confidence: float = 0.95) -> Interval:
    """The mean over the seeds and Student's interval around it.

    Computes ``mean -/+ t s / sqrt(S)``. The interval covers the true mean with the
    probability `confidence` if the S values are independent and normal; it is close to
    that for means of several tasks, and further off for KPIs at the ends of [0, 1].
    For differences seed by seed it is the paired interval.

    Args:
        values: ``[S, ...]``, a row for each seed.
        confidence: In (0, 1).

    Returns:
        Arrays ``[...]``; for one seed the ends are infinite.

    Example:
        The values 1, 2, 3 have the standard deviation 1.

        >>> mean, low, high = t_interval(np.array([1.0, 2.0, 3.0]))
        >>> mean.item(), round((high - mean).item() * 3**0.5, 4)
        (2.0, 4.3027)
    """
    values = np.asarray(values, float)
    mean = values.mean(axis=0)
    if len(values) < 2:
        return Interval(mean, np.full_like(mean, -np.inf), np.full_like(mean, np.inf))
    # Equal values have a mean that differs from them by rounding.
    spread = np.where(np.ptp(values, axis=0) > 0, values.std(axis=0, ddof=1), 0.0)
    reach = t_quantile(confidence, len(values) - 1) * spread / math.sqrt(len(values))
    return Interval(mean, mean - reach, mean + reach)


def p_value(differences: np.ndarray) -> float:
    """Two-sided p-value of the paired t-test, for the mean difference being zero.

    Args:
        differences: ``[S]``.

    Returns:
        In [0, 1]: 1 if all differences are zero, 0 if all are the same other number, 1
        for one seed, of which nothing can be said.

    Example:
        >>> p_value(np.zeros(4)), p_value(np.full(4, 0.1))
        (1.0, 0.0)
    """
    differences = np.asarray(differences, float)
    if len(differences) < 2 or not differences.any():
        return 1.0
    if np.ptp(differences) == 0:
        return 0.0
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    t = abs(differences.mean()) / error
    return max(0.0, 1 - t_distribution(float(t), len(differences) - 1))
