"""Runs the study: ``python -m benchmarks.dtp_study``, under fifteen minutes.

Every question writes its tables to a file of its own, and, with ``--page``, between the
marks of its name in a document.
"""

import argparse
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from . import (
    decades,
    dial,
    floors,
    joins,
    kpis,
    memory,
    moving,
    noise,
    sampling,
    single_examples,
    warm_up,
)
from ._harness import Size

QUESTIONS: dict[str, Callable[[Size], str]] = {
    "memory": memory.report,
    "noise": noise.report,
    "gamma": dial.report,
    "kpis": kpis.report,
    "stages": joins.report,
    "warm_up": warm_up.report,
    "floor": floors.report,
    "sampling": sampling.report,
    "decades": decades.report,
    "moving": moving.report,
    "single_examples": single_examples.report,
}


def write_into(page: str, name: str, text: str) -> str:
    """Replaces what stands between the marks of a question.

    Args:
        page: A document.
        name: Of the question.
        text: What is to stand there.

    Returns:
        The new document.

    Raises:
        ValueError: If the page does not have these marks once.
    """
    begin, end = marks(name)
    pattern = re.compile(f"(?<={re.escape(begin)}\n).*?(?={re.escape(end)})", re.DOTALL)
    new, count = pattern.subn(lambda _: f"\n{text}\n\n", page)
    if count != 1:
        raise ValueError(f"The page must have {begin} and {end} once.")
    return new


def marks(name: str) -> tuple[str, str]:
    """The lines around the tables of a question.

    Args:
        name: Of the question.

    Returns:
        The first and the last.
    """
    return f"<!-- begin {name}, by make dtp-study -->", f"<!-- end {name} -->"


def main(argv: Sequence[str] | None = None) -> None:
    """Answers the questions one after the other.

    Args:
        argv: Of the command line.
    """
    parser = argparse.ArgumentParser(description="What prioritization does, and where.")
    parser.add_argument("--out", type=Path, default=Path("outputs/dtp_study"))
    parser.add_argument("--page", type=Path, help="a document to write into")
    parser.add_argument("--only", nargs="+", choices=QUESTIONS, default=[*QUESTIONS])
    parser.add_argument("--seeds", type=int, default=Size().num_seeds)
    parser.add_argument("--steps", type=int, default=Size().num_steps)
    args = parser.parse_args(argv)
    size = Size(args.seeds, args.steps, min(Size().measurements, args.steps // 8))
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        start = time.perf_counter()
        text = QUESTIONS[name](size)
        text += f"\n\n{size.num_seeds} seeds."
        (args.out / f"{name}.md").write_text(f"{text}\n", encoding="utf-8")
        if args.page:
            page = write_into(args.page.read_text(encoding="utf-8"), name, text)
            args.page.write_text(page, encoding="utf-8")
        print(
            f"\n## {name} ({time.perf_counter() - start:.0f} s)\n\n{text}\n", flush=True
        )


if __name__ == "__main__":
    main()
