"""One figure of all toy problems."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dtp_jax import plot
from examples import _toy_results, _toys
from examples._plots import BLACK, BLUE, DASHED, GREEN, GREY, ORANGE, PURPLE, RED, SKY

START_COLORS = (BLUE, RED, GREEN)  # on the two valleys
# Equal weights last: where they do as another method does, both can be seen.
LOOKS: Any = {
    "MGDA": {"color": SKY, "linestyle": "-"},
    "CAGrad": {"color": ORANGE, "linestyle": "-"},
    "Nash-MTL": {"color": PURPLE, "linestyle": "-"},
    "UPGrad": {"color": RED, "linestyle": "-"},
    "FAMO": {"color": GREEN, "linestyle": "-"},
    "equal weights": {"color": BLACK, "linestyle": DASHED},
}
# Its paths are close to those of equal weights.
NOT_DRAWN = "FAMO, decay 0.001"
FRONT: Any = {"color": "#c4c4c4", "linewidth": 5, "solid_capstyle": "butt"}
START: Any = {"linestyle": "", "marker": "o", "markersize": 4.5}
END: Any = {"linestyle": "", "marker": "*", "markersize": 9}


def draw(path: Path, runs: _toy_results.Runs, grad_norm_steps: int) -> None:
    """Draws the paths on the two valleys, and a panel for each other problem.

    Args:
        path: Of the PNG file.
        runs: What to draw.
        grad_norm_steps: The number of steps on GradNorm's toy.
    """
    with plot.style(), mpl.rc_context({"font.size": 9, "axes.titlesize": 9.5}):
        figure = Figure(figsize=(12.5, 9.4))
        parts: Any = figure.subfigures(2, 1, height_ratios=(1.85, 1))
        above, below = parts
        axes: Any = above.subplots(2, 5, sharex=True, sharey=True)
        shown = [name for name in runs.valleys if name != NOT_DRAWN]
        side, mean = _mean_of_valleys()
        shades = LinearSegmentedColormap.from_list("shades", ["#ffffff", "#a8a8a8"])
        for axis, name in zip(axes.flat, shown, strict=True):
            axis.contourf(side, side, mean, levels=12, cmap=shades)
            _paths(axis, name, runs.valleys[name][1.0])
        above.suptitle("two valleys: u and v, darker where the mean is higher")
        looks = {
            "start": START | {"color": GREY},
            "end": END | {"color": BLACK},
            "Pareto set": FRONT | {"color": ORANGE},
        }
        _legend(above, looks)

        axes = below.subplots(1, 5)
        _quadratics(axes[0], runs, "EWQ", (17.0, 17.0))
        # The front goes on, but no path comes near.
        _quadratics(axes[1], runs, "CQF", (2.1, 6.5))
        _fonseca(axes[2], runs.fonseca)
        _grad_norm(axes[3], runs.grad_norm, grad_norm_steps)
        _many_tasks(axes[4], runs.many_tasks)
        _legend(below, {"front": FRONT} | LOOKS)
        figure.savefig(path)


def _mean_of_valleys() -> tuple[np.ndarray, np.ndarray]:
    side = np.linspace(-10.5, 10.5, 120)
    grid = jnp.asarray(np.stack(np.meshgrid(side, side)), jnp.float32)
    losses = jax.jit(jax.vmap(jax.vmap(_toys.two_valleys, 1), 1))(grid)
    return side, np.asarray(losses).mean(axis=-1)


def _paths(axis: Any, name: str, paths: np.ndarray) -> None:
    axis.plot(*_toys.two_valleys_front(100).T, **FRONT | {"color": ORANGE})
    for points, color in zip(paths, START_COLORS, strict=True):
        axis.plot(*points.T, color=color, linewidth=1.3)
        axis.plot(*points[0], color=color, **START)
        axis.plot(*points[-1], color=BLACK, zorder=5, **END)
    reached = _toy_results.first_reached(paths) >= 0
    axis.set_title(f"{name}: {reached.sum()} of {len(reached)} arrive")
    axis.grid(visible=False)


def _quadratics(
    axis: Any, runs: _toy_results.Runs, problem: str, limits: tuple[float, float]
) -> None:
    toy = _toys.QUADRATICS[problem]
    axis.plot(*toy.front().T, **FRONT)
    for name, look in LOOKS.items():
        if name in runs.quadratics:
            for points in runs.quadratics[name][problem]:
                losses = toy.losses(points)
                axis.plot(*losses.T, linewidth=1.3, **look)
                axis.plot(*losses[0], color=GREY, **START)
                axis.plot(*losses[-1], color=look["color"], **END)
    axis.set(title=f"quadratic forms, {problem}", xlabel="loss 1", ylabel="loss 2")
    axis.set(xlim=(-limits[0] / 20, limits[0]), ylim=(-limits[1] / 20, limits[1]))


def _fonseca(axis: Any, runs: dict[str, np.ndarray]) -> None:
    axis.plot(*_toys.fonseca_fleming_front(200).T, **FRONT)
    looks = {"weighted sum": {"color": BLACK, "marker": "s", "markersize": 7}}
    looks["Chebyshev"] = {"color": BLUE, "marker": "*", "markersize": 8}
    for name, losses in runs.items():
        axis.plot(*losses.T, linestyle="", label=name, **looks[name])
    axis.set(title="Fonseca-Fleming", xlabel="loss 1", ylabel="loss 2")
    axis.legend(loc="lower left")


def _grad_norm(axis: Any, runs: dict[tuple[int, str], Any], num_steps: int) -> None:
    for name, style in (("GradNorm", "-"), ("GradNorm, softmax", DASHED)):
        weights = runs[2, name]["weights"].mean(axis=0)
        steps = np.linspace(0, num_steps, len(weights))
        for task, color, sigma in ((0, BLUE, "1"), (1, RED, "100")):
            label = f"sigma {sigma}" if style == "-" else None
            axis.plot(steps, weights[:, task], color=color, ls=style, label=label)
    title = "weights of GradNorm, softmax dashed"
    axis.set(title=title, xlabel="step", yscale="log", ylim=(5e-4, 5))
    axis.legend(loc="lower right")


def _many_tasks(axis: Any, runs: dict[str, np.ndarray]) -> None:
    for name, losses in runs.items():
        relative = losses / losses[0]
        band = {"color": LOOKS[name]["color"], "alpha": 0.25, "linewidth": 0}
        steps = np.arange(len(relative))
        axis.fill_between(steps, relative.min(axis=1), relative.max(axis=1), **band)
        axis.plot(steps, relative.mean(axis=1), **LOOKS[name])
    axis.set(title="100 tasks, L / L(0) and range", xlabel="step")


def _legend(figure: Any, looks: dict[str, Any]) -> None:
    lines = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines))
