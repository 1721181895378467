"""Interleaved medians, compiled costs and tables."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from dtp_jax.compare._tables import markdown


class Cost(NamedTuple):
    """What the compiler says of a function."""

    flops: float  # NaN where it does not say
    temp_bytes: int
    compile_seconds: float


def compiled(function: Callable[..., Any], *args: Any) -> tuple[Any, Cost]:
    """Compiles a function for its arguments and reads off its cost.

    XLA counts the body of a loop once, however often it runs.
    """
    lowered = jax.jit(function).lower(*args)
    start = time.perf_counter()
    program: Any = lowered.compile()
    seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    temp_bytes = memory.temp_size_in_bytes if memory is not None else 0
    return program, Cost(flops_of(program), temp_bytes, seconds)


def flops_of(program: Any) -> float:
    """What a lowered or compiled program counts; NaN on devices that do not count."""
    return (program.cost_analysis() or {}).get("flops", math.nan)


def compiled_together(
    jobs: Mapping[str, tuple[Callable[..., Any], tuple[Any, ...]]], workers: int = 1
) -> dict[str, tuple[Any, Cost] | Exception]:
    """`compiled` for several functions and their arguments, in threads.

    Args:
        jobs: From a name to a function and its arguments.
        workers: How many compile at a time. Compile times are then those of a busy
            machine.

    Returns:
        From each name to what `compiled` returns, or to what it raised.
    """

    def one(job: tuple[Callable[..., Any], tuple[Any, ...]]) -> Any:
        try:
            return compiled(job[0], *job[1])
        except Exception as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(jobs, pool.map(one, jobs.values()), strict=True))


def interleaved(
    functions: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 15,
    min_seconds: float = 0.01,
    max_seconds: float = math.inf,
    pause: float = 0.0,
) -> dict[str, float]:
    """Median seconds of each function, all timed in turn so that drift hits all alike.

    A function faster than `min_seconds` is repeated within a round. If all rounds would
    take longer than `max_seconds`, there are fewer, but no fewer than three. A pause
    before each function, in seconds, lets threads that the last one left spinning go to
    sleep.
    """
    repeats, seconds_of_round = {}, 0.0
    for name, function in functions.items():
        jax.block_until_ready(function())
        seconds = _seconds(function, 1)
        if seconds < 1:
            seconds = min(seconds, *(_seconds(function, 1) for _ in range(2)))
        repeats[name] = max(1, int(min_seconds / max(seconds, 1e-7)))
        seconds_of_round += repeats[name] * seconds
    if rounds * seconds_of_round > max_seconds:
        rounds = min(rounds, max(3, int(max_seconds / seconds_of_round)))
    samples: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for number in range(rounds):
        # No function always follows the same one.
        first = number % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(pause)
            samples[name].append(_seconds(functions[name], repeats[name]))
    return {name: statistics.median(times) for name, times in samples.items()}


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that reads well in a terminal, too."""
    return f"{title}\n\n{markdown([header, *rows])}\n"


def _seconds(function: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    out = None
    for _ in range(repeats):
        out = function()
    jax.block_until_ready(out)
    return (time.perf_counter() - start) / repeats
