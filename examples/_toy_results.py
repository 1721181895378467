"""What the runs on toy problems came to: tables, and a comparison with the papers."""

import textwrap
from typing import NamedTuple

import numpy as np

from examples import _toys
from examples._tables import markdown

VALLEY_RECORDS = 1000  # of a run on the two valleys, after the start
# The front of the two valleys is below; what is stuck is above or between them.
REACHED = -8.0


class Runs(NamedTuple):
    """What all methods did on all problems."""

    valleys: dict[str, dict[float, np.ndarray]]  # by method, scale; [S, records, 2]
    quadratics: dict[str, dict[str, np.ndarray]]  # by method, problem; [S, N + 1, 2]
    fonseca: dict[str, np.ndarray]  # by method; [preferences, 2], losses at the end
    grad_norm: dict[tuple[int, str], dict[str, np.ndarray]]  # [seeds, records, T]
    many_tasks: dict[str, np.ndarray]  # by method; [N + 1, T], losses


class Outcome(NamedTuple):
    """A result from a paper, and what came out here."""

    claim: str
    found: str
    holds: bool


def first_reached(paths: np.ndarray) -> np.ndarray:
    """The first record below `REACHED` of paths ``[S, records, 2]``; -1 if none is."""
    below = paths[..., 1] < REACHED
    return np.where(below.any(axis=1), below.argmax(axis=1), -1)


def relative_losses(run: dict[str, np.ndarray]) -> np.ndarray:
    """Sums over the tasks of losses relative to the first, ``[seeds, records]``."""
    return np.sum(run["losses"] / run["losses"][:, :1], axis=-1)


def norm_deviation(run: dict[str, np.ndarray]) -> float:
    """How far weighted norms of the tasks are from equal, over the second half.

    The means over seeds and records of each task's share; GradNorm follows the norms of
    noisy gradients in steps of one size.
    """
    norms = run["weights"] * run["norms"]
    norms = norms[:, norms.shape[1] // 2 :]
    shares = norms / norms.mean(axis=-1, keepdims=True)
    return float(np.max(np.abs(shares.mean(axis=(0, 1)) - 1)))


def spread(losses: np.ndarray) -> np.ndarray:
    """Standard deviation over the tasks of ``log L / L(0)``, ``[N + 1]``."""
    return np.std(np.log(losses / losses[0]), axis=1)


def outcomes(runs: Runs) -> list[Outcome]:
    """Compares with the papers."""
    return [
        *_valley_outcomes(runs.valleys),
        *_fonseca_outcomes(runs.fonseca),
        *_grad_norm_outcomes(runs.grad_norm),
        _many_tasks_outcome(runs.many_tasks),
    ]


def _valley_outcomes(runs: dict[str, dict[float, np.ndarray]]) -> list[Outcome]:
    equal = {name: paths[1.0] for name, paths in runs.items()}
    tenth = {name: paths[0.1] for name, paths in runs.items()}
    stuck = int(np.sum(first_reached(equal["equal weights"]) < 0))
    claim = "equal weights: stuck from 2 of CAGrad's 3 starts"
    found = [Outcome(claim, f"from {stuck}", stuck == 2)]
    for name in ("CAGrad", "Aligned-MTL"):
        off = np.abs(equal[name][:, -1] - [0.0, _toys.VALLEY_MEAN_V]).max(axis=0)
        claim = f"{name}: to (0, {_toys.VALLEY_MEAN_V:.3f}) from all 3"
        text = f"u within {off[0]:.1g}, v within {off[1]:.1g}"
        found.append(Outcome(claim, text, bool(off.max() < 0.05)))
    u, v = tenth["Nash-MTL"][:, -1].T
    claim = "Nash-MTL: to the middle of the front from its 5 starts"
    holds = np.all(np.abs(u) < 5) and np.all(v < REACHED)
    found.append(Outcome(claim, f"u from {u.min():.2f} to {u.max():.2f}", bool(holds)))
    for name, wanted in (("FAMO", "all"), ("FAMO, decay 0.001", "not all")):
        reached = int(np.sum(first_reached(tenth[name]) >= 0))
        claim = f"{name}: to the front from {wanted} of its 5 starts"
        holds = (reached == 5) == (wanted == "all")
        found.append(Outcome(claim, f"from {reached}", holds))
    return found


def _fonseca_outcomes(runs: dict[str, np.ndarray]) -> list[Outcome]:
    front = _toys.fonseca_fleming_front(2001)
    found = []
    claims = {"weighted sum": "only the ends", "Chebyshev": "all"}
    for name, claim in claims.items():
        between = np.abs(_toys.fonseca_fleming_position(runs[name])) < 0.9
        number, off = np.sum(between), _toys.distance_to_front(runs[name], front).max()
        text = f"{number} of {len(between)} preferences lead between the ends"
        # The first and the last preference ask for the ends.
        wanted = len(between) - 2 if claim == "all" else 0
        holds = bool(number == wanted and off < 0.01)
        found.append(Outcome(f"{name}: {claim} of a concave front", text, holds))
    return found


def _grad_norm_outcomes(
    runs: dict[tuple[int, str], dict[str, np.ndarray]],
) -> list[Outcome]:
    two = runs[2, "GradNorm"]
    ratios = two["weights"][:, -1, 0] / two["weights"][:, -1, 1]
    claim = "GradNorm: the weight of sigma 1 above that of sigma 100"
    text = f"{ratios.min():.0f} to {ratios.max():.0f} times"
    found = [Outcome(claim, text, bool(ratios.min() > 10))]
    # Without the softmax a weight moves by more than its size.
    off = norm_deviation(runs[2, "GradNorm, softmax"])
    claim = "GradNorm, softmax: equal weighted norms of both gradients"
    found.append(Outcome(claim, f"within {100 * off:.0f} %", off < 0.1))
    ends = {key: float(relative_losses(run)[:, -1].mean()) for key, run in runs.items()}
    for num_tasks in (2, 10):
        names = ("GradNorm", "equal weights", "uncertainty")
        ours, equal, learned = (ends[num_tasks, name] for name in names)
        claim = f"GradNorm: the lowest test loss of {num_tasks} tasks"
        text = f"{ours:.2f}; equal weights {equal:.2f}, uncertainty {learned:.2f}"
        found.append(Outcome(claim, text, ours < min(equal, learned)))
    return found


def _many_tasks_outcome(runs: dict[str, np.ndarray]) -> Outcome:
    equal, ours = (float(spread(runs[n])[-1]) for n in ("equal weights", "FAMO"))
    text = f"log L / L(0) deviates by {ours:.3f}; equal weights {equal:.3f}"
    return Outcome("FAMO: 100 losses fall at equal rates", text, ours < equal / 2)


def report(runs: Runs, num_steps: int, grad_norm_steps: int) -> str:
    """The tables, in Markdown.

    Args:
        runs: What they are about.
        num_steps: On the two valleys with losses of equal scale.
        grad_norm_steps: On GradNorm's toy.
    """
    rows = [
        (outcome.claim, outcome.found, "yes" if outcome.holds else "NO")
        for outcome in outcomes(runs)
    ]
    parts = [markdown([("published", "here", "holds"), *rows])]
    parts += _valley_tables(runs.valleys, num_steps)
    text = """
        Quadratic forms: the distance of the losses from the front after the last step
        of gradient descent, for each start. The front of EWQ is one point.
    """
    parts.append(_paragraph(text))
    for problem, toy in _toys.QUADRATICS.items():
        columns = [f"({u:g}, {v:g})" for u, v in toy.starts]
        ends = {name: paths[problem][:, -1] for name, paths in runs.quadratics.items()}
        rows = [
            (name, *(f"{x:.2g}" for x in toy.distance_to_front(points)))
            for name, points in ends.items()
        ]
        parts.append(markdown([(f"{problem}, {toy.num_steps} steps", *columns), *rows]))
    text = f"""
        GradNorm's toy, {grad_norm_steps} steps of Adam: sum over the tasks of test
        losses relative to those at the start, mean and standard error over the seeds;
        the weight of the first task over that of the last, whose loss is the largest;
        how far the weighted norms of the gradients are from equal, on average over the
        second half of the steps.
    """
    parts.append(_paragraph(text))
    rows = [_grad_norm_row(*key, run) for key, run in runs.grad_norm.items()]
    header = ("tasks", "method", "test loss", "weights", "norms off by")
    return "\n\n".join([*parts, markdown([header, *rows])]) + "\n"


def _valley_tables(
    runs: dict[str, dict[float, np.ndarray]], num_steps: int
) -> list[str]:
    parts = []
    for scale, starts in _toys.VALLEY_STARTS.items():
        losses, steps = "", num_steps
        if scale != 1:
            losses, steps = f", the first loss times {scale:g}", num_steps // 2
        text = f"""
            Two valleys{losses}: u and v after {steps} steps of Adam for each start, and
            the step at which v was first seen below {REACHED:g}; "no" if it was not.
        """
        rows = []
        for name, by_scale in runs.items():
            # Adding zero turns -0.0 into 0.0.
            ends = np.round(by_scale[scale][:, -1], 2) + 0.0
            reached = first_reached(by_scale[scale]) * (num_steps // VALLEY_RECORDS)
            cells = [
                f"{u:.2f}, {v:.2f}, {'no' if step < 0 else step}"
                for (u, v), step in zip(ends, reached, strict=True)
            ]
            rows.append((name, *cells))
        header = ("method", *(f"({u:g}, {v:g})" for u, v in starts))
        parts += [_paragraph(text), markdown([header, *rows])]
    return parts


def _grad_norm_row(
    num_tasks: int, name: str, run: dict[str, np.ndarray]
) -> tuple[str, ...]:
    ends = relative_losses(run)[:, -1]
    error = ends.std(ddof=1) / np.sqrt(len(ends))
    weights = run["weights"][:, -1].mean(axis=0)
    return (
        str(num_tasks),
        name,
        f"{ends.mean():.2f} ± {error:.2f}",
        f"{weights[0] / weights[-1]:.3g}",
        f"{100 * norm_deviation(run):.0f} %",
    )


def _paragraph(text: str) -> str:
    return textwrap.fill(textwrap.dedent(text).strip(), 88)
