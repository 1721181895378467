"""One run: what was logged, and who pulls against whom."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ._looks import COLORS, NotebookFigure, legend_below, lines_of, style


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
    if not isinstance(logs, Mapping):
        raise ValueError(
            f"logs must be a dict of quantities, got {type(logs).__name__}: "
            'over_time({"weight": weights, "KPI": kpis}).'
        )
    series = {name: _by_task(name, log) for name, log in logs.items()}
    kinds = {tuple(each) for each in series.values()}
    if len(kinds) != 1:
        raise ValueError(
            f"logs must be of some quantities with the same tasks, got {sorted(kinds)}."
        )
    names = list(kinds.pop())
    looks = lines_of(len(names))
    with style():
        figure = NotebookFigure(figsize=(1.2 + 3.6 * len(series), 3.2))
        axes = figure.subplots(1, len(series), squeeze=False)[0]
        for axis, (quantity, each) in zip(axes, series.items(), strict=True):
            for look, (task, values) in zip(looks, each.items(), strict=True):
                steps = every * np.arange(1, len(values) + 1)
                axis.plot(steps, values, label=task, **look)
            axis.set(title=quantity, xlabel="step")
        if len(names) <= len(COLORS):
            legend_below(figure, axes[0], len(names))
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
    with style():
        size = 1.8 + 0.55 * num_tasks
        figure = NotebookFigure(figsize=(size + 0.8, size))
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


def _by_task(name: str, log: Any) -> dict[str, np.ndarray]:
    """What was logged of one quantity, ``{task: [E]}``."""
    if not isinstance(log, Mapping):
        rows = list(log)
        if not all(isinstance(row, Mapping) for row in rows):
            raise ValueError(
                f"The log of {name} must hold a dict {{task: scalar}} for each time, "
                "or be one dict {task: [E]}."
            )
        if len({tuple(row) for row in rows}) > 1:
            raise ValueError(
                f"The tasks of the log of {name} change on the way: give every time "
                "the same ones, with NaN for what is not known."
            )
        log = {task: [row[task] for row in rows] for task in (rows[0] if rows else ())}
    if not log:
        raise ValueError(f"The log of {name} is empty: leave it out.")
    return {task: np.asarray(values, float) for task, values in log.items()}
