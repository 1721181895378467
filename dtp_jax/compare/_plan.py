"""What is trained: rows, networks, how many at a time."""

import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax

from ._settings import Setting

EQUAL, FIXED, SINGLE = "equal weights", "fixed weights", "single tasks"
ALWAYS = (EQUAL, FIXED, SINGLE)


class Work(NamedTuple):
    """Networks to train in one program: a setting and a seed for each."""

    settings: list[Setting]
    seeds: list[int]

    @classmethod
    def each(cls, settings: Sequence[Setting], seeds: Sequence[int]) -> "Work":
        """Every setting with every seed, settings first."""
        return cls(
            [setting for setting in settings for _ in seeds],
            [seed for _ in settings for seed in seeds],
        )


def chunk_size_of(counts: Sequence[int], most: int) -> int:
    """How many networks to train at a time, so that little is trained in vain.

    All chunks of a comparison have one size, so that a method is compiled once; the
    last of a row is filled up. A chunk costs about as much as two networks besides
    those that it holds.

    Args:
        counts: The numbers of networks that are to be trained, row by row.
        most: That memory allows, 1 or more.

    Returns:
        In [1, most].

    Example:
        Eighteen and ten go into chunks of ten.

        >>> chunk_size_of([18, 10], 100)
        10
    """

    def cost(size: int) -> int:
        return sum((size + 2) * -(-count // size) for count in counts)

    return min(range(1, max(1, min(most, max(counts))) + 1), key=cost)


def default_threads() -> int:
    """How many chunks train side by side if nobody says.

    Returns:
        As many as there are cores for this process, up to eight, on a CPU, which a
        program of small networks does not fill; one elsewhere.
    """
    if jax.default_backend() != "cpu":
        return 1
    # Not every system tells on which cores a process may run.
    of_process = getattr(os, "sched_getaffinity", None)
    cores = len(of_process(0)) if of_process else os.cpu_count() or 1
    return min(8, cores)


def affordable(cost: float, count: int) -> list[int]:
    """The tries of a method in the time that equal weights take for theirs.

    Args:
        cost: Of a step, relative to equal weights.
        count: The number of their tries.

    Returns:
        Places, those in the middle first to be kept.

    Example:
        >>> affordable(1.0, 4), affordable(2.1, 4), affordable(9.0, 4)
        ([0, 1, 2, 3], [1, 2], [1])
    """
    kept = max(1, min(count, round(count / cost)))
    from_middle = sorted(range(count), key=lambda place: abs(place - (count - 1) / 2))
    return sorted(from_middle[:kept])


def check_stored(stored: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Checks that a stored plan is of the same comparison.

    Methods may be added, and left out; those that stay must be the same.

    Args:
        stored: From the folder.
        now: Of this call.

    Raises:
        ValueError: If something differs, naming it.
    """
    differing = [key for key in now if key != "methods" and stored[key] != now[key]]
    old, new = stored["methods"], now["methods"]
    both = [name for name in new if name in old]
    differing += [f"the method {name!r}" for name in both if old[name] != new[name]]
    if differing:
        raise ValueError(
            "The folder holds a comparison that differs in "
            f"{', '.join(differing)}: give another out=, or remove the folder to start "
            "again."
        )


def versions() -> dict[str, str]:
    """What rounding depends on.

    Returns:
        Versions and the kind of device by name.
    """
    found = {name: metadata.version(name) for name in ("jax", "jaxlib", "optax")}
    return found | {"device": jax.devices()[0].device_kind}
