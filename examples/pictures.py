"""The pictures of the documents that need no training.

    python -m examples.pictures --out docs/pictures

The cost of a step is read from the tables of docs/benchmarks.md, which hold what
`make bench` prints.
"""

import argparse
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

from dtp_jax import focal_weights, plot

BENCHMARKS = Path(__file__).parent.parent / "docs" / "benchmarks.md"
GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)
TASKS = (2, 8, 40)
RATIOS = (1, 2, 5, 10, 20)


def draw_focal_weights(path: Path) -> None:
    """The weight of a task over its KPI, for several gamma.

    Args:
        path: Of the picture.
    """
    kpis = np.linspace(0.01, 0.999, 300)
    figure, axis = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
    for gamma, color in zip(GAMMAS, np.linspace(0.85, 0.0, len(GAMMAS)), strict=True):
        weights = np.asarray(focal_weights(kpis, gamma))
        axis.plot(
            kpis,
            weights,
            color=mpl.colormaps["viridis"](color),
            label=f"gamma {gamma:g}",
        )
    axis.set(xlabel="averaged KPI", ylabel="weight, not normalized", yscale="log")
    axis.set_ylim(1e-4, 10)
    axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def costs() -> dict[str, list[tuple[int, float]]]:
    """By way, the tasks and the cost in plain steps, of the table of the Gramian."""
    text = BENCHMARKS.read_text(encoding="utf-8").split("## The Gramian", 1)[1]
    table = text.split("\n## ")[0]
    found: dict[str, list[tuple[int, float]]] = {}
    head: list[str] = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if "T" in cells:
            head = cells
        elif head and len(cells) == len(head) and cells[head.index("T")].isdigit():
            row = dict(zip(head, cells, strict=True))
            ratio = re.match(r"[\d.]+", row.get("/ plain", ""))
            if ratio:
                found.setdefault(cells[0], []).append((int(row["T"]), float(ratio[0])))
        elif not line.startswith("|"):
            head = []
    return found


def draw_costs(path: Path) -> None:
    """The cost of a step against the number of tasks.

    Args:
        path: Of the picture.
    """
    figure, axis = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
    for name, points in costs().items():
        if len(points) > 1:
            axis.plot(
                *zip(*sorted(points), strict=True), "o-", label=name, markersize=4
            )
    axis.set(xlabel="tasks", ylabel="plain steps", xscale="log", yscale="log")
    axis.set_xticks(TASKS, [str(tasks) for tasks in TASKS])
    axis.set_yticks(RATIOS, [str(ratio) for ratio in RATIOS])
    axis.minorticks_off()
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


CENTERED: Any = {"ha": "center", "va": "center", "size": 9}
BOXES = (
    ("losses_fn", "one loss and\none KPI per task", "#f0f0f0"),
    ("task_gradients", "one forward pass,\nno gradient yet", "#f0f0f0"),
    ("link", "balance(balancer) or\na combiner: first", "#cfe3f2"),
    ("the rest of the chain", "clipping, Adam,\nschedules", "#f0f0f0"),
)


def draw_chain(path: Path) -> None:
    """Which part goes where.

    Args:
        path: Of the picture.
    """
    figure, axis = plt.subplots(figsize=(7, 2.6), layout="none")
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.99)
    axis.set(xlim=(-0.1, 8.0), ylim=(0, 2.8))
    axis.axis("off")
    edge = {"boxstyle": "round,pad=0.45", "ec": "#555555"}
    for place, (name, text, color) in enumerate(BOXES):
        x = 0.85 + 2.1 * place
        label = f"$\\bf{{{name}}}$".replace("_", "\\_").replace(" ", "\\ ")
        style = {"boxstyle": edge["boxstyle"], "ec": edge["ec"], "fc": color}
        axis.text(x, 2.1, f"{label}\n{text}", bbox=style, **CENTERED)
        if place:
            axis.annotate(
                "", (x - 0.9, 2.1), (x - 1.2, 2.1), arrowprops={"arrowstyle": "->"}
            )
    inner = (
        "curriculum ( balancer )\nKPIs, losses or gradients in,\none weight a task out"
    )
    style = {"boxstyle": edge["boxstyle"], "ec": edge["ec"], "fc": "#fbe3d3"}
    axis.text(5.05, 0.6, inner, bbox=style, **CENTERED)
    axis.annotate("", (4.8, 1.6), (4.8, 1.1), arrowprops={"arrowstyle": "->"})
    axis.annotate("", (5.3, 1.1), (5.3, 1.6), arrowprops={"arrowstyle": "->"})
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(out: Path) -> None:
    """Draws all pictures.

    Args:
        out: The folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    with plot.style():
        draw_focal_weights(out / "focal_weights.png")
        draw_costs(out / "costs.png")
        draw_chain(out / "chain.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs/pictures"))
    main(parser.parse_args().out)
