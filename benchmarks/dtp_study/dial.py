"""gamma: between the average and the worst task."""

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

GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)


def report(size: Size) -> str:
    """Five values of gamma on both problems.

    Args:
        size: How much to run.

    Returns:
        Markdown.
    """
    problems = {
        "three tasks": (three_tasks(size), "constant"),
        "row of twelve": (row_of_twelve(size), "cosine"),
    }
    rows = {}
    for title, (problem, schedule) in problems.items():
        cosine = schedule == "cosine"
        rate = rate_of(title, schedule, "equal weights")
        numbers = setting(rate, cosine=cosine)
        rows["equal weights", title] = Row(problem, weighted(problem), numbers)
        rate = rate_of(title, schedule, "DTP")
        for gamma in GAMMAS:
            numbers = setting(rate, cosine=cosine, gamma=gamma)
            rows[gamma, title] = Row(problem, prioritized(problem), numbers)
    logs = train(rows, size, "gamma")
    head = ["gamma", *(f"{title}: " for title in problems)]
    names = ("equal weights", *GAMMAS)
    lines = {name: [logs[name, title] for title in problems] for name in names}
    text = "Three tasks at a constant rate, the row with cosine decay:"
    return f"{text}\n\n{table(head, lines)}"
