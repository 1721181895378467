"""Seeds and learning rates as an axis of one program, against one after the other.

A method of `dtp_jax.compare` trains S seeds and R rates of a small network: in chunks
of one program, side by side in a thread for each core, as `compare` does; the same
chunks one after the other; all in one go; the networks one after the other, by the same
program for one of them, a whole round of steps at a time; and step by step, by a Python
loop over a compiled step, as most training is written. Compilation is left out on all
sides.
"""

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks._measure import interleaved, table
from dtp_jax import balancers, dynamic_task_prioritization
from dtp_jax.compare import Problem
from dtp_jax.compare._checks import checked_data, make_programs
from dtp_jax.compare._many import many_at_once
from dtp_jax.compare._methods import as_methods
from dtp_jax.compare._plan import default_threads
from dtp_jax.compare._program import Program
from dtp_jax.compare._settings import of_one, stacked

METHODS = {
    "DTP": dynamic_task_prioritization,
    "uncertainty": lambda tasks: balancers.uncertainty(),
    "UPGrad": lambda tasks: balancers.upgrad(),
}
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
INPUTS, WIDTH, TASKS, BATCH = 4, 8, 4, 16


def problem_of(num_steps: int) -> Problem:
    """Regression with a hidden layer, as small as in many a study of a method."""

    def init(key: jax.Array) -> Any:
        first, second = jax.random.split(key)
        return {
            "first": jax.random.normal(first, (INPUTS, WIDTH)) / 2,
            "second": jax.random.normal(second, (WIDTH, TASKS)) / 3,
        }

    def losses(params: Any, batch: Any) -> tuple[Any, Any]:
        out = jnp.tanh(batch["x"] @ params["first"]) @ params["second"]
        errors = jnp.mean((out - batch["y"]) ** 2, axis=0)
        return errors, jnp.exp(-errors)

    def data(seed: int, size: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(size, INPUTS)).astype(np.float32)
        return {"x": x, "y": np.stack([np.sin(k * x[:, 0]) for k in range(TASKS)], 1)}

    return Problem(
        tasks=TASKS,
        init=init,
        losses=losses,
        train=data(0, 1000),
        validation=data(1, 100),
        test=data(2, 100),
        optimizer=optax.adam,
        num_steps=num_steps,
        batch_size=BATCH,
    )


def ways(
    program: Program, data: Any, num_seeds: int, chunk: int
) -> dict[str, Callable[[], Any]]:
    """The same training in several ways."""
    each = [{"rate": rate, "numbers": {}} for rate in RATES]
    settings = [setting for setting in each for _ in range(num_seeds)]
    seeds = np.tile(np.arange(num_seeds, dtype=np.int32), len(RATES))
    functions: Any = many_at_once(program)
    init, round_ = functions

    def in_chunks(size: int, threads: int = 1) -> Callable[[], Any]:
        parts = []
        for start in range(0, len(seeds), size):
            part = slice(start, start + size)
            setting = stacked(settings[part])
            parts.append((init(setting, seeds[part]), setting, seeds[part]))
        compiled: Any = round_.lower(*parts[0], np.int32(0), data).compile()

        def train(part: Any) -> Any:
            # A call returns before all is done, and threads are there to wait.
            return jax.block_until_ready(compiled(*part, np.int32(0), data))

        def side_by_side() -> Any:
            with ThreadPoolExecutor(threads) as pool:
                return list(pool.map(train, parts))

        return side_by_side

    one, start = of_one(settings[0]), np.int32(0)
    carry = jax.tree.map(lambda leaf: leaf[0], init(stacked(settings[:1]), seeds[:1]))
    whole: Any = jax.jit(program.round).lower(carry, one, start, start, data).compile()

    def step(carry: Any, setting: Any, seed: Any, number: Any) -> Any:
        return program.train(carry, setting, seed, number, data, 1)[0]

    of_step: Any = jax.jit(step).lower(carry, one, start, start).compile()

    def one_by_one() -> Any:
        return [whole(carry, one, seed, start, data) for seed in seeds]

    def stepwise() -> Any:
        # A part of the networks is enough: they all take as long.
        now = carry
        for number in range(program.steps):
            now = of_step(now, one, seeds[0], np.int32(number))
        return now

    return {
        "side by side": in_chunks(chunk, default_threads()),
        f"chunks of {chunk}": in_chunks(chunk),
        "all in one go": in_chunks(len(seeds)),
        "one after the other": one_by_one,
        "step by step": stepwise,
    }


def rows_of(
    names: Sequence[str], num_seeds: int, num_steps: int, rounds: int, chunk: int
) -> list[list[str]]:
    """Milliseconds of each way, and relative to the one that `compare` takes."""
    problem = problem_of(num_steps)
    data = checked_data(problem)
    methods = as_methods({name: METHODS[name] for name in names}, problem)
    setting = of_one({"rate": 1e-3, "numbers": {}})
    programs, _ = make_programs(
        problem, methods, dict.fromkeys(methods, setting), data, num_steps
    )
    rows = []
    for name, program in programs.items():
        seconds = interleaved(ways(program, data, num_seeds, chunk), rounds=rounds)
        seconds["step by step"] *= num_seeds * len(RATES)
        base = seconds["side by side"]
        rows += [
            [name, way, f"{1e3 * taken:.0f}", f"{taken / base:.1f}"]
            for way, taken in seconds.items()
        ]
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chunk", type=int, default=30)
    args = parser.parse_args(argv)
    rows = rows_of([*METHODS], args.seeds, args.steps, args.rounds, args.chunk)
    title = f"{args.seeds} seeds and {len(RATES)} rates, {args.steps} steps"
    print(table(title, ["method", "way", "ms", "/ side by side"], rows))


if __name__ == "__main__":
    main()
