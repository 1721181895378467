"""Methods over time: their weights, and the KPIs that come of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ._looks import COLORS, NotebookFigure, legend_below, lines_of, style


def weights(
    series: Mapping[str, Any],
    names: Sequence[str],
    *,
    every: int = 1,
    log: bool = False,
    columns: int = 4,
) -> Figure:
    """Task weights over time, a panel for each method.

    Args:
        series: By method, ``[E, T]``, or ``[S, E, T]`` of S seeds: then lines are means
            and bands reach from the lowest seed to the highest. NaN is a gap.
        names: Of the T tasks. With more than seven tasks, colours go from the first
            task to the last.
        every: The number of steps from one of the E to the next.
        log: Whether weights have a logarithmic scale, on which zero is a gap.
        columns: How many panels stand beside each other at most.

    Returns:
        A figure.

    Raises:
        ValueError: If there is no series, or one has not T columns.

    Example:
        >>> figure = weights({"DTP": np.ones((5, 2))}, ["left", "right"], every=10)
        >>> figure.axes[0].lines[0].get_xdata().tolist()
        [10, 20, 30, 40, 50]
    """
    arrays = _arrays(series, names, "weights")
    looks = lines_of(len(names))
    with style():
        num_columns = min(columns, len(arrays))
        num_rows = -(-len(arrays) // num_columns)
        figure = NotebookFigure(figsize=(0.6 + 2.6 * num_columns, 0.9 + 2.1 * num_rows))
        axes = figure.subplots(num_rows, num_columns, sharex=True, squeeze=False)
        for axis in axes.ravel()[len(arrays) :]:
            axis.axis("off")
        for axis, (method, each) in zip(axes.ravel(), arrays.items(), strict=False):
            shown = np.where(each > 0, each, np.nan) if log else each
            for place, (task, look) in enumerate(zip(names, looks, strict=True)):
                _line(axis, shown[..., place], every, task, look)
            axis.set(title=method, yscale="log" if log else "linear")
        for axis in axes[:, 0]:
            axis.set_ylabel("task weight")
        for axis in axes[-1]:
            axis.set_xlabel("step")
        if len(names) <= len(COLORS):
            legend_below(figure, axes[0, 0], 7)
        return figure


def curves(
    series: Mapping[str, Any],
    names: Sequence[str],
    *,
    every: int = 1,
    label: str = "KPI",
) -> Figure:
    """What methods come to over time, a panel for each task and a line for each method.

    Args:
        series: By method, ``[E, T]``, or ``[S, E, T]`` of S seeds, of which the means
            are drawn.
        names: Of the T tasks.
        every: The number of steps from one of the E to the next.
        label: Of the vertical axis.

    Returns:
        A figure.

    Raises:
        ValueError: If there is no series, or one has not T columns.

    Example:
        >>> kpis = {"equal": np.zeros((3, 5, 2)), "DTP": np.ones((3, 5, 2))}
        >>> figure = curves(kpis, ["left", "right"])
        >>> [axis.get_title() for axis in figure.axes]
        ['left', 'right']
        >>> figure.axes[1].lines[1].get_ydata().tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    arrays = _arrays(series, names, label)
    looks = lines_of(len(arrays))
    with style():
        figure = NotebookFigure(figsize=(1.2 + 2.8 * len(names), 4))
        axes = figure.subplots(1, len(names), squeeze=False)[0]
        for place, (axis, task) in enumerate(zip(axes, names, strict=True)):
            for (method, each), look in zip(arrays.items(), looks, strict=True):
                mean = each[..., place] if each.ndim == 2 else each[..., place].mean(0)
                _line(axis, mean, every, method, look)
            axis.set(title=task, xlabel="step")
        axes[0].set_ylabel(label)
        legend_below(figure, axes[0], 4)
        return figure


def _arrays(
    series: Mapping[str, Any], names: Sequence[str], what: str
) -> dict[str, np.ndarray]:
    if not series:
        raise ValueError("series is empty: give one for each method.")
    arrays = {method: np.asarray(each, float) for method, each in series.items()}
    for method, each in arrays.items():
        if each.ndim not in (2, 3) or each.shape[-1] != len(names):
            raise ValueError(
                f"The {what} of {method} have shape {list(each.shape)}, expected "
                f"[E, {len(names)}], or [S, E, {len(names)}] of S seeds: a column for "
                "each task."
            )
    return arrays


def _line(axis: Any, values: np.ndarray, every: int, label: str, look: Any) -> None:
    """The mean over the seeds, if there are any, and from the lowest to the highest."""
    steps = every * np.arange(1, values.shape[-1] + 1)
    if values.ndim == 1:
        axis.plot(steps, values, label=label, **look)
        return
    axis.plot(steps, values.mean(axis=0), label=label, **look)
    low, high = values.min(axis=0), values.max(axis=0)
    axis.fill_between(steps, low, high, color=look["color"], alpha=0.15, linewidth=0)
