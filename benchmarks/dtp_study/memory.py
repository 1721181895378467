"""How long Adam remembers, and weights that do not sum to a fixed number."""

from ._harness import (
    Row,
    Size,
    prioritized,
    rate_of,
    row_of_twelve,
    setting,
    table,
    three_tasks,
    train,
    weighted,
)

MEMORIES = (0.9, 0.95, 0.999)
# The defaults of version 0.1, and what the paper's headline runs have.
OLD = {"gamma": 2.0, "alpha": 0.75, "ramp_steps": 0}
PAPER = OLD | {"gamma": 1.0}


def report(size: Size) -> str:
    """Three lengths of memory for plain and normalized weights.

    Args:
        size: How much to run.

    Returns:
        Markdown.
    """
    rows = {}
    problems = {
        "three tasks": (three_tasks(size), "constant"),
        "row of twelve": (row_of_twelve(size), "cosine"),
    }
    for title, (problem, schedule) in problems.items():
        equal = rate_of(title, schedule, "equal weights")
        ours = rate_of(title, schedule, "DTP")
        plain = prioritized(problem, normalize=None)
        variants = {
            "equal weights": (weighted(problem), equal, {}),
            "plain, gamma 1, alpha 0.75 (the paper)": (plain, ours, PAPER),
            "plain, gamma 2, alpha 0.75 (version 0.1)": (plain, ours, OLD),
            "DTP": (prioritized(problem), ours, {}),
        }
        for name, (make, rate, options) in variants.items():
            for b2 in MEMORIES:
                cosine = schedule == "cosine"
                numbers = setting(rate, cosine=cosine, b2=b2, **options)
                rows[title, name, b2] = Row(problem, make, numbers)
    logs = train(rows, size, "memory")
    head = ["method", *(f"b2 {b2:g}: " for b2 in MEMORIES)]
    parts = []
    for title, (_, schedule) in problems.items():
        names = dict.fromkeys(name for which, name, _ in rows if which == title)
        lines = {name: [logs[title, name, b2] for b2 in MEMORIES] for name in names}
        parts += [f"{title.capitalize()}, {schedule} rate:", table(head, lines)]
    return "\n\n".join(parts)
