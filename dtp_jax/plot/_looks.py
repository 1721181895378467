"""What all figures look like."""

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np

try:
    import matplotlib as mpl
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'dtp_jax.plot needs matplotlib: pip install "dtp-jax[plot]"', name=error.name
    ) from error

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
# Line styles repeat what colours say.
_LINES: Any = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
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
    "lines.linewidth": 1.5,
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Within it, figures of matplotlib look like those of this module.

    Yields:
        Nothing.

    Example:
        >>> from matplotlib.figure import Figure
        >>> with style():
        ...     axis = Figure().subplots()
        >>> axis.spines["top"].get_visible()
        False
    """
    with mpl.rc_context(_STYLE):
        yield


class NotebookFigure(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        self.savefig(data, format="png")
        return data.getvalue()


def colors_of(num: int) -> list[Any]:
    """A colour for each of some tasks; of many, from the first to the last.

    Args:
        num: Of tasks.

    Returns:
        Colours of matplotlib.
    """
    if num <= len(COLORS):
        return list(COLORS[:num])
    return list(mpl.colormaps["viridis"](np.linspace(0, 0.95, num)))


def lines_of(num: int) -> list[dict[str, Any]]:
    """Colours and line styles, told apart by both as long as there are few.

    Args:
        num: Of lines.

    Returns:
        Keywords of matplotlib.
    """
    return [
        {"color": color, "linestyle": _LINES[place % len(_LINES)]}
        for place, color in enumerate(colors_of(num))
    ]


def legend_below(figure: Figure, axis: Any, num_columns: int) -> None:
    """One legend for all panels.

    Args:
        figure: Of the panels.
        axis: One of them.
        num_columns: At most.
    """
    handles, labels = axis.get_legend_handles_labels()
    # As many as the figure is wide enough for.
    inches = 0.8 + 0.08 * max(map(len, labels), default=0)
    fitting = int(figure.get_size_inches()[0] / inches)
    count = max(1, min(num_columns, len(labels), fitting))
    figure.legend(handles, labels, loc="outside lower center", ncols=count)
