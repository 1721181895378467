"""Several differences at a time, and the probability of winning."""

import math
import statistics
from collections.abc import Sequence

import numpy as np

from ._student import Interval


def holm(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which of several differences are more than noise, all taken together.

    Holm's method: the k-th smallest of n p-values must be at most ``level / (n - k +
    1)``, and so must all before it. The probability that any true zero is called a
    difference is then at most `level`.

    Args:
        p_values: One for each difference.
        level: In (0, 1).

    Returns:
        True for what is more than noise.

    Example:
        >>> holm([0.04, 0.001, 0.03])
        [False, True, False]

    References:
        Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979.
    """
    found = [False] * len(p_values)
    ordered = sorted(range(len(p_values)), key=lambda place: p_values[place])
    for count, place in enumerate(ordered):
        if p_values[place] > level / (len(p_values) - count):
            break
        found[place] = True
    return found


def win_rate(
    ours: np.ndarray, theirs: np.ndarray, confidence: float = 0.95
) -> Interval:
    """The probability of beating another method with the same seed.

    The share of the seeds in which ours is better, a tie counting half, with Wilson's
    interval for a share.

    Args:
        ours: ``[S]``.
        theirs: ``[S]``, of the same seeds.
        confidence: In (0, 1).

    Returns:
        Scalars in [0, 1].

    Example:
        >>> win_rate(np.array([1.0, 2.0]), np.array([1.0, 1.0])).mean.item()
        0.75

    References:
        Wilson, "Probable Inference, the Law of Succession, and Statistical Inference",
        1927.
    """
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    share = np.mean((ours > theirs) + 0.5 * (ours == theirs))
    size = len(ours)
    z2 = statistics.NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    middle = (share + z2 / (2 * size)) / (1 + z2 / size)
    inner = share * (1 - share) / size + z2 / (4 * size**2)
    reach = math.sqrt(z2 * inner) / (1 + z2 / size)
    ends = np.clip([middle - reach, middle + reach], 0.0, 1.0)
    return Interval(np.asarray(share), ends[0], ends[1])
