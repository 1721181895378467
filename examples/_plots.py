"""How the examples show results: a table, and plots that everyone can read.

Colours are those of Okabe and Ito; line styles and markers repeat what they say.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from examples._tables import markdown

GREY, BLACK, BLUE, RED, GREEN = "#7f7f7f", "#000000", "#0072b2", "#d55e00", "#009e73"
DASHED, DOTTED = (0, (4, 1.5)), (0, (1, 1.2))
TASK_LOOKS: Any = [
    {"color": BLUE, "linestyle": "-"},
    {"color": RED, "linestyle": DASHED},
    {"color": GREEN, "linestyle": DOTTED},
]
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
STYLE: Any = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10.5,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "font.size": 10,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}

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
    with mpl.rc_context(STYLE):
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
    with mpl.rc_context(STYLE):
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
    num_rows: int = 2,
    every: int = 1,
) -> None:
    """Draws task weights over steps: a panel for each method, column by column.

    Lines are means over the seeds, bands reach from the lowest seed to the highest.
    From one number to the next it is `every` steps.
    """
    with mpl.rc_context(STYLE):
        num_columns = -(-len(series) // num_rows)
        figure = Figure(figsize=(9.5, 2.4 * num_rows + 0.6))
        axes: Any = figure.subplots(
            num_rows, num_columns, sharex=True, sharey="row", squeeze=False
        )
        for axis, (method, values) in zip(axes.T.flat, series.items(), strict=False):
            for task, look in zip(tasks, TASK_LOOKS, strict=False):
                # Zero means "not active": there is nothing to draw.
                active = np.where(values[task] > 0, values[task], np.nan)
                numbers, smooth = _smooth(active, window)
                steps = every * numbers
                axis.plot(steps, smooth.mean(0), label=task, **look)
                band = {"color": look["color"], "alpha": 0.15, "linewidth": 0}
                axis.fill_between(steps, smooth.min(0), smooth.max(0), **band)
            axis.set(title=method, yscale="log")
        for axis in axes[:, 0]:
            axis.set_ylabel("task weight")
        for axis in axes[-1]:
            axis.set_xlabel("step")
        _legend_below(figure, axes[0, 0], len(tasks))
        _save(figure, path)


def curves(
    path: Path,
    series: Series,
    tasks: Sequence[str],
    window: int,
    label: str,
    every: int = 1,
) -> None:
    """Draws means over the seeds: a panel for each task, a line for each method.

    From one number to the next it is `every` steps.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.5, 4))
        axes = figure.subplots(1, len(tasks), squeeze=False)[0]
        for axis, task in zip(axes, tasks, strict=True):
            for (method, values), look in zip(
                series.items(), METHOD_LOOKS, strict=False
            ):
                numbers, smooth = _smooth(values[task], window)
                steps = every * numbers
                line = {key: look[key] for key in ("color", "linestyle")}
                axis.plot(steps, smooth.mean(0), label=method, **line)
            axis.set(title=task, xlabel="step")
        axes[0].set_ylabel(label)
        _legend_below(figure, axes[0], 4)
        _save(figure, path)


def comparison(
    path: Path, results: Results, columns: Sequence[str], label: str
) -> None:
    """Draws means with standard errors: a panel per column, a row per method."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.5, 0.34 * len(results) + 1))
        axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        rows = np.arange(len(results))
        for row, result, look in zip(
            rows, results.values(), METHOD_LOOKS, strict=False
        ):
            for axis, mean, error in zip(axes, *mean_and_error(result), strict=True):
                point = {key: look[key] for key in ("color", "marker")}
                axis.errorbar(mean, row, xerr=error, capsize=3, **point)
        for axis, column in zip(axes, columns, strict=True):
            axis.set(title=column, ylim=(len(results) - 0.4, -0.6))
            axis.margins(x=0.15)
            axis.tick_params(axis="y", length=0)
        axes[0].set_yticks(rows, list(results))
        figure.supxlabel(label, fontsize=10)
        _save(figure, path)


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
    with mpl.rc_context(STYLE):
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


def tradeoff(
    path: Path,
    results: Results,
    reference: np.ndarray,
    labels: Sequence[str],
    title: str,
) -> None:
    """Draws two columns against each other: points for methods, lines for `reference`.

    Bars and bands are standard errors.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 4.5))
        axis = figure.subplots()
        (x, y), (x_error, y_error) = mean_and_error(reference)
        line = {"color": GREEN, "linestyle": DASHED, "linewidth": 1.2}
        band = {"color": GREEN, "alpha": 0.15, "linewidth": 0}
        axis.axvline(x, label=labels[2], **line)
        axis.axhline(y, **line)
        axis.axvspan(x - x_error, x + x_error, **band)
        axis.axhspan(y - y_error, y + y_error, **band)
        for (method, result), look in zip(results.items(), METHOD_LOOKS, strict=False):
            (x, y), (x_error, y_error) = mean_and_error(result)
            point = {"color": look["color"], "marker": look["marker"], "capsize": 3}
            axis.errorbar(
                x, y, xerr=x_error, yerr=y_error, linestyle="", label=method, **point
            )
        axis.set(xlabel=labels[0], ylabel=labels[1], title=title)
        axis.margins(0.1)
        figure.legend(*axis.get_legend_handles_labels(), loc="outside right center")
        _save(figure, path)


def _outline(box: np.ndarray) -> tuple[list[float], list[float]]:
    x1, y1, x2, y2 = box.tolist()
    return [x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1]


def _smooth(values: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Means over the last `window` steps, at a few hundred steps."""
    kernel = np.ones(window) / window
    smooth = np.stack([np.convolve(row, kernel, mode="valid") for row in values])
    thin = slice(None, None, max(1, smooth.shape[1] // 300))
    return np.arange(window, values.shape[1] + 1)[thin], smooth[:, thin]


def _legend_below(figure: Figure, axis: Any, num_columns: int) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=num_columns)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path)
