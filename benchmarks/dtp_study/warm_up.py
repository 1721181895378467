"""How long the weights stay equal at the start."""

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

# Of 4000 steps.
SHARES = {0: 0.0, 100: 0.025, 400: 0.1, 1000: 0.25, 2000: 0.5}


def report(size: Size) -> str:
    """Five lengths of warm-up, moved out of at once and over the default ramp.

    Args:
        size: How much to run.

    Returns:
        Markdown.
    """
    problem = three_tasks(size)
    rate = rate_of("three tasks", "constant", "DTP")
    rows = {}
    for share in SHARES.values():
        for name, options in {"at once": {"ramp_steps": 0}, "default": {}}.items():
            steps = round(share * size.num_steps)
            numbers = setting(rate, warmup_steps=steps, **options)
            rows[share, name] = Row(problem, prioritized(problem), numbers)
    logs = train(rows, size, "warm-up")
    head = ["warmup_steps", "ramp_steps 0: ", "default ramp: "]
    lines = {
        steps: [logs[share, "at once"], logs[share, "default"]]
        for steps, share in SHARES.items()
    }
    return f"Three tasks, constant rate:\n\n{table(head, lines)}"
