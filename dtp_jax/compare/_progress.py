"""How far a comparison is, and how long it will go on."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Progress(Protocol):
    """What counts rounds of chunks."""

    def update(self, count: int) -> Any:
        """Some more are done."""
        ...

    def extend(self, count: int) -> Any:
        """There are more to do than was thought."""
        ...


class _Silent:
    def update(self, count: int) -> None:
        """Says nothing."""

    def extend(self, count: int) -> None:
        """Says nothing."""


class _Bar:
    """The bar of tqdm."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar

    def update(self, count: int) -> None:
        """Moves on."""
        self.bar.update(count)

    def extend(self, count: int) -> None:
        """Becomes longer."""
        self.bar.total += count
        self.bar.refresh()


class _Lines:
    """A line now and then, for those who do not have tqdm."""

    def __init__(self, total: int, title: str) -> None:
        self.total, self.title, self.done = total, title, 0
        self.start = self.last = time.perf_counter()

    def extend(self, count: int) -> None:
        """Goes on for longer."""
        self.total += count

    def update(self, count: int) -> None:
        """Writes a line if the last one is more than ten seconds old."""
        self.done += count
        now = time.perf_counter()
        if now - self.last > 10 and self.done:
            self.last = now
            left = (now - self.start) / self.done * (self.total - self.done)
            print(
                f"{self.title}: {self.done / self.total:.0%}, {left / 60:.1f} min left",
                file=sys.stderr,
                flush=True,
            )


@contextmanager
def progress_bar(total: int, title: str, shown: bool) -> Iterator[Progress]:
    """Shows how many of `total` rounds are done, with the time left.

    Args:
        total: The number of rounds.
        title: What is going on.
        shown: Whether to show anything.

    Yields:
        What counts.
    """
    if not shown:
        yield _Silent()
        return
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        yield _Lines(total, title)
        return
    with tqdm(total=total, desc=title, unit="round", mininterval=0.5) as bar:
        yield _Bar(bar)
