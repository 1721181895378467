"""How many observations a KPI is averaged over."""

from ._harness import (
    Row,
    Size,
    prioritized,
    rate_of,
    setting,
    table,
    three_tasks,
    train,
)

ALPHAS = (0.01, 0.05, 0.2, 0.75)


def report(size: Size) -> str:
    """Four values of alpha, for normalized weights and plain ones.

    Args:
        size: How much to run.

    Returns:
        Markdown.
    """
    problem = three_tasks(size)
    rate = rate_of("three tasks", "constant", "DTP")
    rows = {
        (alpha, normalize): Row(
            problem,
            prioritized(problem, normalize=normalize),
            setting(rate, alpha=alpha),
        )
        for alpha in ALPHAS
        for normalize in ("sum_to_T", None)
    }
    logs = train(rows, size, "noise")
    head = ["alpha", "DTP: ", "normalize=None: "]
    lines = {a: [logs[a, "sum_to_T"], logs[a, None]] for a in ALPHAS}
    return f"Three tasks, constant rate:\n\n{table(head, lines)}"
