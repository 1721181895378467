"""A share of equal weights mixed in."""

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
)

FLOORS = (0.0, 0.1, 0.3, 0.6, 1.0)


def report(size: Size) -> str:
    """Five floors on both problems; 1 is equal weights.

    Args:
        size: How much to run.

    Returns:
        Markdown.
    """
    problems = {
        "three tasks": three_tasks(size),
        "row of twelve": row_of_twelve(size),
    }
    rows = {}
    for title, problem in problems.items():
        rate = rate_of(title, "cosine", "DTP")
        for floor in FLOORS:
            numbers = setting(rate, cosine=True, floor=floor)
            rows[floor, title] = Row(problem, prioritized(problem), numbers)
    logs = train(rows, size, "floor")
    head = ["floor", *(f"{title}: " for title in problems)]
    lines = {floor: [logs[floor, title] for title in problems] for floor in FLOORS}
    return f"Cosine decay; a floor of 1 is equal weights:\n\n{table(head, lines)}"
