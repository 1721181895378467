"""The results of a comparison, with what shows them."""

import os
from pathlib import Path
from typing import Any

from ._files import figures, write
from ._report import report, summary, table, task_table, time_table
from ._result import Results


class Comparison(Results):
    """Methods side by side: print it for a table and how to read it.

    Its attributes, and the numbers that it computes from them, are those of `Results`.
    """

    def table(self) -> str:
        """The methods side by side, in Markdown."""
        return table(self)

    def task_table(self) -> str:
        """The KPI of every task, in Markdown."""
        return task_table(self)

    def time_table(self) -> str:
        """The methods with as many tries as fit into one time, in Markdown."""
        return time_table(self)

    def summary(self) -> str:
        """What the tables come to, in sentences."""
        return summary(self)

    def __str__(self) -> str:
        """Tables, summary, and how to read them."""
        return report(self)

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Writes tables, numbers and figures.

        Args:
            folder: Made if it is not there.

        Returns:
            The files: ``report.md``, ``summary.csv``, ``kpis.csv``, ``tries.csv``, and
            with matplotlib ``intervals.png``, ``tradeoff.png`` and ``weights.png``.
        """
        return write(self, Path(folder))

    def figures(self) -> dict[str, Any]:
        """Figures of matplotlib: "intervals", "tradeoff" and "weights".

        Raises:
            ModuleNotFoundError: Without matplotlib, which the extra `plot` installs.
        """
        return figures(self)
