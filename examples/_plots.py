"""How the examples show results: tables, and figures drawn with `dtp_jax.plot`.

Pictures of their own, of images and boxes, look like those figures.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dtp_jax import plot
from examples._tables import markdown

BLUE, RED, GREEN, PURPLE, ORANGE, SKY, BLACK = plot.COLORS
GREY = "#7f7f7f"
DASHED, DOTTED = (0, (4, 1.5)), (0, (1, 1.2))
# Two baselines, then three methods in two variants each.
METHOD_LOOKS: Any = [
    {"color": GREY, "linestyle": "-", "marker": "s"},
    {"color": BLACK, "linestyle": DASHED, "marker": "s"},
]
for color in (BLUE, RED, GREEN):
    METHOD_LOOKS += [
        {"color": color, "linestyle": DOTTED, "marker": "^"},
        {"color": color, "linestyle": "-", "marker": "o"},
    ]

Series = Mapping[str, Mapping[str, np.ndarray]]  # method -> task -> [S, N]
Results = Mapping[str, np.ndarray]  # method -> [S, columns]


def mean_and_error(result: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the S seeds and its standard error."""
    errors = result.std(axis=0, ddof=1) / np.sqrt(len(result))
    return result.mean(axis=0), errors


def table(
    results: Results, columns: Sequence[str], more: Mapping[str, Mapping[str, str]]
) -> str:
    """The results, and further columns, in Markdown that reads well in a terminal."""
    rows = [["method", *columns, *more]]
    for name, result in results.items():
        numbers = zip(*mean_and_error(result), strict=True)
        cells = [f"{mean:.1f} ± {error:.1f}" for mean, error in numbers]
        rows.append([name, *cells, *(cells[name] for cells in more.values())])
    return markdown(rows)


def samples(path: Path, images: np.ndarray, titles: Sequence[str], label: str) -> None:
    """Draws images in rows of six, each with its labels above."""
    with plot.style():
        num_rows = -(-len(images) // 6)
        figure = Figure(figsize=(9, 1.4 * num_rows + 0.45))
        figure.suptitle(label, fontsize=10.5)
        axes = figure.subplots(num_rows, 6, squeeze=False).ravel()
        for axis in axes:
            axis.axis("off")
        for axis, image, title in zip(axes, images, titles, strict=False):
            axis.imshow(image, cmap="gray_r", vmin=0, vmax=1)
            axis.set_title(title, pad=3)
        _save(figure, path)


def detections(
    path: Path,
    images: np.ndarray,
    truths: np.ndarray,
    boxes: np.ndarray,
    deviations: np.ndarray,
    titles: Sequence[str],
    label: str,
) -> None:
    """Draws predicted boxes, two deviations either way of each side, true boxes."""
    with plot.style():
        num_rows = -(-len(images) // 6)
        figure = Figure(figsize=(9, 1.65 * num_rows + 0.45))
        figure.suptitle(label, fontsize=10.5)
        axes = figure.subplots(num_rows, 6, squeeze=False).ravel()
        for axis in axes:
            axis.axis("off")
        parts = zip(axes, images, truths, boxes, 2 * deviations, titles, strict=False)
        for axis, image, truth, box, (left, top, right, bottom), title in parts:
            height, width = image.shape
            extent = (0, width, height, 0)
            axis.imshow(image, cmap="gray_r", vmin=0, vmax=1, extent=extent)
            band = {"color": BLUE, "alpha": 0.25, "linewidth": 0}
            x1, y1, x2, y2 = box
            for x, reach in ((x1, left), (x2, right)):
                axis.fill_betweenx([y1, y2], x - reach, x + reach, **band)
            for y, reach in ((y1, top), (y2, bottom)):
                axis.fill_between([x1, x2], y - reach, y + reach, **band)
            axis.plot(*_outline(box), color=BLUE, linewidth=1.4)
            axis.plot(*_outline(truth), color=RED, linewidth=1.4, linestyle=DASHED)
            axis.set(xlim=(0, width), ylim=(height, 0))
            axis.set_title(title, pad=3)
        _save(figure, path)


def weights(
    path: Path,
    series: Series,
    tasks: Sequence[str],
    window: int,
    every: int = 1,
) -> None:
    """Draws smoothed task weights over steps, a panel for each method.

    From one number to the next it is `every` steps.
    """
    shown, every = _smooth(series, tasks, window, every, gaps=True)
    plot.weights(shown, tasks, every=every, log=True).savefig(path)


def curves(
    path: Path,
    series: Series,
    tasks: Sequence[str],
    window: int,
    label: str,
    every: int = 1,
) -> None:
    """Draws smoothed KPIs: a panel for each task, a line for each method.

    From one number to the next it is `every` steps.
    """
    shown, every = _smooth(series, tasks, window, every)
    plot.curves(shown, tasks, every=every, label=label).savefig(path)


def comparison(
    path: Path, results: Results, columns: Sequence[str], label: str
) -> None:
    """Draws means with standard errors: a panel per column, a row per method."""
    rows = {}
    for method, result in results.items():
        parts = zip(columns, *mean_and_error(result), strict=True)
        rows[method] = {
            column: (mean, mean - error, mean + error) for column, mean, error in parts
        }
    plot.intervals(rows, label=label).savefig(path)


def by_ink(
    path: Path,
    images: np.ndarray,
    inks: np.ndarray,
    results: Results,
    reference: np.ndarray,
) -> None:
    """Draws KPIs of the places of a row by their ink, below a few of the images.

    Points are means over the seeds, bars standard errors.
    """
    with plot.style():
        figure = Figure(figsize=(9, 5.2))
        parts: Any = figure.subfigures(2, 1, height_ratios=(1, 3.4))
        above, below = parts
        axes: Any = above.subplots(1, len(images), squeeze=False)[0]
        for axis, image in zip(axes, images, strict=True):
            axis.imshow(image, cmap="gray_r", vmin=0, vmax=1)
            axis.axis("off")
        above.suptitle("twelve tasks: which digit stands in each place", fontsize=10.5)
        order = np.argsort(-inks)
        places = np.arange(len(inks))
        axis = below.subplots()
        for (method, result), look in zip(results.items(), METHOD_LOOKS, strict=False):
            mean, error = mean_and_error(result[:, order])
            axis.errorbar(places, mean, yerr=error, label=method, markersize=4, **look)
        line = {"color": BLACK, "linestyle": "", "marker": "_", "markersize": 14}
        axis.plot(places, reference[order], label="network of its own", **line)
        axis.set_xticks(places, [f"{ink:.2f}" for ink in inks[order]])
        axis.set(xlabel="ink of the place", ylabel="accuracy on test digits, percent")
        axis.legend()
        _save(figure, path)


def _outline(box: np.ndarray) -> tuple[list[float], list[float]]:
    x1, y1, x2, y2 = box.tolist()
    return [x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1]


def _smooth(
    series: Series, tasks: Sequence[str], window: int, every: int, gaps: bool = False
) -> tuple[dict[str, np.ndarray], int]:
    """Means over the last `window` numbers, at a few hundred steps, ``[S, E, T]``.

    Where there are gaps a zero is one, such as the weight of a task that is not active.
    """
    shown = {}
    for method, values in series.items():
        whole = np.stack([values[task] for task in tasks], axis=-1).astype(float)
        shown[method] = np.where(whole > 0, whole, np.nan) if gaps else whole
    length = next(iter(shown.values())).shape[1]
    thin = max(1, length // 300)

    def trailing(row: np.ndarray) -> np.ndarray:
        known = np.isfinite(row)
        kernel = np.ones(window)
        sums = np.convolve(np.where(known, row, 0), kernel)[:length]
        counts = np.convolve(known, kernel)[:length]
        return np.where(counts > 0.5, sums / np.maximum(counts, 1), np.nan)

    smooth = {
        method: np.apply_along_axis(trailing, 1, each)[:, thin - 1 :: thin]
        for method, each in shown.items()
    }
    return smooth, every * thin


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path)
