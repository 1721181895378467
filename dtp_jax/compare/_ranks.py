"""Ranks among methods, and improvement over networks of single tasks."""

import numpy as np


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks along the first axis, 1 for the largest, ties sharing their mean.

    Args:
        values: ``[M, ...]``, without NaN.

    Returns:
        ``[M, ...]``, in [1, M].

    Example:
        >>> ranks(np.array([0.3, 0.5, 0.3])).tolist()
        [2.5, 1.0, 2.5]
    """
    above = (values[None] > values[:, None]).sum(axis=1)
    equal = (values[None] == values[:, None]).sum(axis=1)
    return above + (equal + 1) / 2


def improvement(kpis: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The delta-m of the field: the mean relative improvement over single tasks.

    Computes ``mean_t (kpi_t - reference_t) / reference_t``; higher is better, as KPIs
    are. Tasks of reference zero have no relative improvement and are left out.

    Args:
        kpis: ``[..., T]``.
        reference: ``[T]`` or ``[..., T]``, of networks of one task.

    Returns:
        ``[...]``, 0 for "as good"; NaN if no task has a reference.

    Example:
        One task ten percent better, one as good.

        >>> improvement(np.array([0.55, 0.8]), np.array([0.5, 0.8])).round(6).item()
        0.05

    References:
        Maninis et al., "Attentive Single-Tasking of Multiple Tasks", CVPR 2019, eq. 4.
    """
    kpis, reference = np.broadcast_arrays(kpis, reference)
    known = reference > 0
    gains = (kpis - reference) / np.where(known, reference, 1)
    count = known.sum(axis=-1)
    total = np.where(known, gains, 0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
