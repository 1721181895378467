"""Tables in Markdown, and numbers as text."""

from collections.abc import Sequence

import numpy as np

from ._student import Interval


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table that reads well in a terminal, too.

    Args:
        rows: The first is the head.

    Returns:
        Lines, without a newline at the end.

    Example:
        >>> print(markdown([["a", "number"], ["long", "1"]]))
        | a    | number |
        | ---- | -----: |
        | long |      1 |
    """
    widths = [max(2, *map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    first, *others = widths
    rules = ["-" * first, *("-" * (width - 1) + ":" for width in others)]
    return "\n".join([line(rows[0]), line(rules), *map(line, rows[1:])])


def percent(interval: Interval, sign: str = "") -> str:
    """A mean and half of its interval, in percent.

    Args:
        interval: Of scalars that are shares.
        sign: "+" to show the sign of the mean.

    Returns:
        Such as "81.0 ± 0.3".

    Example:
        >>> percent(Interval(*map(np.asarray, (0.81, 0.807, 0.813))))
        '81.0 ± 0.3'
    """
    return number(interval, 100, sign)


def number(interval: Interval, factor: float = 1.0, sign: str = "") -> str:
    """A mean and half of its interval.

    Args:
        interval: Of scalars.
        factor: What they are multiplied by.
        sign: "+" to show the sign of the mean.

    Returns:
        Such as "2.5 ± 0.3"; a dash if there is no number.
    """
    if not np.isfinite(interval.mean):
        return "-"
    # No negative zero.
    mean = round(factor * float(interval.mean), 1) + 0.0
    reach = factor * float(interval.high - interval.mean)
    return f"{mean:{sign}.1f} ± {reach:.1f}"
