"""Figures of methods: points with intervals, trade-offs, weights over time.

* Of a run: `over_time` draws logged weights and KPIs, `cosines` who pulls against whom.
* Of methods side by side: `intervals`, `tradeoff`, `weights`.

The functions return figures of matplotlib and touch no global state: show them in a
notebook, or ``figure.savefig("name.png")``. Colours are those of Okabe and Ito.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

try:
    import matplotlib as mpl
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'dtp_jax.plot needs matplotlib: pip install "dtp-jax[plot]"', name=error.name
    ) from error

__all__ = [
    "COLORS",
    "cosines",
    "intervals",
    "over_time",
    "tradeoff",
    "weights",
]

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_STYLE: Any = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10.5,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "font.size": 10,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
}


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
    with _style():
        size = (1.6 + 3.2 * len(panels), 0.9 + 0.28 * len(rows))
        figure = _Figure(figsize=size)
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
            axis.set(title=panel, xlabel=label)
            axis.grid(axis="y", visible=False)
        axes[0].set_yticks(np.arange(len(rows)), list(rows))
        axes[0].set_ylim(len(rows) - 0.5, -0.5)
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
    with _style():
        figure = _Figure(figsize=(7, 4.8))
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


def weights(
    series: Mapping[str, Any], names: Sequence[str], *, every: int = 1
) -> Figure:
    """Task weights over time, a panel for each method.

    Args:
        series: By method, ``[E, T]``.
        names: Of the T tasks. With more than seven tasks, colours go from the first
            task to the last.
        every: The number of steps from one of the E to the next.

    Returns:
        A figure.

    Raises:
        ValueError: If there is no series, or one has not T columns.

    Example:
        >>> figure = weights({"DTP": np.ones((5, 2))}, ["left", "right"], every=10)
        >>> figure.axes[0].lines[0].get_xdata().tolist()
        [10, 20, 30, 40, 50]
    """
    if not series:
        raise ValueError("series is empty: give one for each method.")
    arrays = {name: np.asarray(each) for name, each in series.items()}
    for name, each in arrays.items():
        if each.ndim != 2 or each.shape[1] != len(names):
            raise ValueError(
                f"The weights of {name} have shape {list(each.shape)}, expected "
                f"[E, {len(names)}]: a column for each task."
            )
    colors = _colors(len(names))
    with _style():
        num_columns = min(4, len(arrays))
        num_rows = -(-len(arrays) // num_columns)
        figure = _Figure(figsize=(0.6 + 2.6 * num_columns, 0.9 + 2.1 * num_rows))
        axes = figure.subplots(num_rows, num_columns, sharex=True, squeeze=False)
        for axis in axes.ravel()[len(arrays) :]:
            axis.axis("off")
        for axis, (name, each) in zip(axes.ravel(), arrays.items(), strict=False):
            steps = every * np.arange(1, len(each) + 1)
            for task, color, column in zip(names, colors, each.T, strict=False):
                axis.plot(steps, column, color=color, label=task, linewidth=1.4)
            axis.set_title(name)
        for axis in axes[-1]:
            axis.set_xlabel("step")
        handles, found = axes[0, 0].get_legend_handles_labels()
        if len(names) <= len(COLORS):
            figure.legend(
                handles, found, loc="outside lower center", ncols=min(7, len(names))
            )
        return figure


def over_time(logs: Mapping[str, Any], *, every: int = 1) -> Figure:
    """What was logged in a run, a panel for each quantity and a line for each task.

    Args:
        logs: By quantity, such as "weight" and "KPI": a sequence with a dict ``{task:
            scalar}`` for each of E times, such as what `dtp_jax.diagnostics` returns,
            or one dict ``{task: [E]}``, as `jax.lax.scan` stacks them. NaN is a gap.
        every: The number of steps from one of the E to the next.

    Returns:
        A figure.

    Raises:
        ValueError: If there is nothing to draw, or the quantities have other tasks.

    Example:
        >>> weights = [{"left": 1.0, "right": 1.0}, {"left": 0.5, "right": 1.5}]
        >>> figure = over_time({"weight": weights}, every=10)
        >>> [axis.get_title() for axis in figure.axes]
        ['weight']
        >>> figure.axes[0].lines[1].get_ydata().tolist()
        [1.0, 1.5]
    """
    series = {name: _by_task(name, log) for name, log in logs.items()}
    kinds = {tuple(each) for each in series.values()}
    if len(kinds) != 1:
        raise ValueError(
            f"logs must be of some quantities with the same tasks, got {sorted(kinds)}."
        )
    names = list(kinds.pop())
    colors = _colors(len(names))
    with _style():
        figure = _Figure(figsize=(1.2 + 3.6 * len(series), 3.2))
        axes = figure.subplots(1, len(series), squeeze=False)[0]
        for axis, (quantity, each) in zip(axes, series.items(), strict=True):
            for color, (task, values) in zip(colors, each.items(), strict=True):
                steps = every * np.arange(1, len(values) + 1)
                axis.plot(steps, values, color=color, label=task, linewidth=1.4)
            axis.set(title=quantity, xlabel="step")
        handles, found = axes[0].get_legend_handles_labels()
        if len(names) <= len(COLORS):
            figure.legend(handles, found, loc="outside lower center", ncols=len(names))
        return figure


def cosines(matrix: Any, names: Sequence[str]) -> Figure:
    """The cosines between the gradients of the tasks, blue where they agree.

    Args:
        matrix: ``[T, T]`` in [-1, 1], as `dtp_jax.diagnostics.cosines` returns it.
        names: Of the T tasks, in the order of the leaves of the losses: sorted, for a
            dict.

    Returns:
        A figure.

    Raises:
        ValueError: If the matrix is not ``[T, T]``.

    Example:
        >>> figure = cosines([[1.0, -0.5], [-0.5, 1.0]], ["left", "right"])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['1.00', '-0.50', '-0.50', '1.00']
    """
    values, num_tasks = np.asarray(matrix, float), len(names)
    if values.shape != (num_tasks, num_tasks):
        raise ValueError(
            f"The cosines have shape {list(values.shape)}, expected "
            f"[{num_tasks}, {num_tasks}]: a row and a column for each of the names."
        )
    with _style():
        size = 1.8 + 0.55 * num_tasks
        figure = _Figure(figsize=(size + 0.8, size))
        axis = figure.subplots()
        drawn = axis.imshow(values, cmap="RdBu", vmin=-1, vmax=1)
        axis.grid(visible=False)
        axis.set_xticks(range(num_tasks), names, rotation=45, ha="right")
        axis.set_yticks(range(num_tasks), names)
        # The figures of many tasks would run into each other.
        for (row, column), value in np.ndenumerate(values) if num_tasks <= 12 else ():
            color = "white" if abs(value) > 0.6 else "black"
            text = f"{value:.2f}"
            axis.text(column, row, text, ha="center", va="center", color=color)
        figure.colorbar(drawn, ax=axis, label="cosine", shrink=0.8)
        return figure


class _Figure(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        self.savefig(data, format="png")
        return data.getvalue()


def _by_task(name: str, log: Any) -> dict[str, np.ndarray]:
    """What was logged of one quantity, ``{task: [E]}``."""
    if not isinstance(log, Mapping):
        rows = list(log)
        if len({tuple(row) for row in rows}) > 1:
            raise ValueError(
                f"The tasks of the log of {name} change on the way: give every time "
                "the same ones, with NaN for what is not known."
            )
        log = {task: [row[task] for row in rows] for task in (rows[0] if rows else ())}
    if not log:
        raise ValueError(f"The log of {name} is empty: leave it out.")
    return {task: np.asarray(values, float) for task, values in log.items()}


def _colors(num: int) -> list[Any]:
    if num <= len(COLORS):
        return list(COLORS[:num])
    return list(mpl.colormaps["viridis"](np.linspace(0, 0.95, num)))


@contextlib.contextmanager
def _style() -> Iterator[None]:
    with mpl.rc_context(_STYLE):
        yield


def _columns(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    kinds = {tuple(row) for row in rows.values()}
    if len(kinds) != 1:
        raise ValueError(
            f"rows must be some methods with the same quantities, got {sorted(kinds)}."
        )
    return list(kinds.pop())
