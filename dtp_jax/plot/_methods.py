"""Methods side by side: points with intervals, trade-offs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ._looks import COLORS, NotebookFigure, style


def intervals(
    rows: Mapping[str, Mapping[str, Sequence[float]]], *, label: str = ""
) -> Figure:
    """Points with intervals, a row for each method and a panel for each quantity.

    Args:
        rows: By method and quantity, ``(mean, low, high)``. An end that is not finite
            is not drawn.
        label: Of all the horizontal axes.

    Returns:
        A figure.

    Raises:
        ValueError: If there is no row, or rows have different quantities.

    Example:
        >>> figure = intervals({"equal": {"average": (0.5, 0.4, 0.6)}}, label="KPI")
        >>> [axis.get_title() for axis in figure.axes]
        ['average']
    """
    panels = _columns(rows)
    with style():
        size = (1.6 + min(3.2, 9 / len(panels)) * len(panels), 0.9 + 0.28 * len(rows))
        figure = NotebookFigure(figsize=size)
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, panel in zip(axes, panels, strict=True):
            for place, values in enumerate(rows.values()):
                mean, low, high = values[panel]
                color = COLORS[0] if place else COLORS[6]
                if np.isfinite([low, high]).all():
                    axis.hlines(place, low, high, color=color)
                axis.plot(mean, place, "o", color=color, markersize=5)
            # The first method is the yardstick.
            first = next(iter(rows.values()))[panel][0]
            axis.axvline(first, color="#7f7f7f", linestyle="--", linewidth=1, zorder=0)
            axis.set_title(panel)
            axis.grid(axis="y", visible=False)
        axes[0].set_yticks(np.arange(len(rows)), list(rows))
        axes[0].set_ylim(len(rows) - 0.5, -0.5)
        if label:
            figure.supxlabel(label, fontsize=10)
        return figure


def tradeoff(points: Mapping[str, Sequence[float]], *, labels: Sequence[str]) -> Figure:
    """A point for each method: two quantities, and a third as its colour.

    Args:
        points: By method, ``(x, y, color)``.
        labels: Of the three.

    Returns:
        A figure.

    Raises:
        ValueError: If there is no point.

    Example:
        >>> figure = tradeoff({"equal": (0.5, 0.3, 1.0)}, labels=("a", "b", "time"))
        >>> figure.axes[0].get_xlabel()
        'a'
    """
    if not points:
        raise ValueError("points is empty: give one for each method.")
    with style():
        figure = NotebookFigure(figsize=(7, 4.8))
        axis = figure.subplots()
        x, y, color = np.array([tuple(point) for point in points.values()]).T
        drawn = axis.scatter(x, y, c=color, cmap="viridis", s=45, zorder=2)
        named: dict[tuple[str, str], list[str]] = {}
        for name, left, up in zip(points, x, y, strict=True):
            named.setdefault((f"{left:.3g}", f"{up:.3g}"), []).append(name)
        for names in named.values():
            # Methods in one place share a label.
            left, up, _ = points[names[0]]
            axis.annotate(
                ", ".join(names),
                (left, up),
                xytext=(5, 4),
                textcoords="offset points",
                fontsize=8,
            )
        axis.set(xlabel=labels[0], ylabel=labels[1])
        axis.margins(0.15)
        figure.colorbar(drawn, ax=axis, label=labels[2])
        return figure


def _columns(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    kinds = {tuple(row) for row in rows.values()}
    if len(kinds) != 1:
        raise ValueError(
            f"rows must be some methods with the same quantities, got {sorted(kinds)}."
        )
    return list(kinds.pop())
