"""What a step costs relative to plain training, one network at a time."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._data import Data, batch_of, key_of
from ._judge import losses_and_kpis
from ._problem import Problem
from ._program import Program
from ._settings import Setting

PLAIN = "plain"


def measure_costs(
    programs: Mapping[str, Program],
    settings: Mapping[str, Setting],
    data: Data,
    *,
    rounds: int = 7,
    min_seconds: float = 0.02,
    max_seconds: float = 60.0,
) -> dict[str, dict[str, float]]:
    """Times steps of one network with each method, and plain ones, all in turn.

    A network trains alone here: many at once hide what a step costs, and what a method
    computes on every k-th step only is then computed on all of them. Plain training
    takes the gradient of the sum of the losses, by `jax.grad`.

    Args:
        programs: By row.
        settings: One for each row.
        data: What to train on.
        rounds: How often each is timed; the medians count.
        min_seconds: How long a timing must at least take.
        max_seconds: What all together may take; three rounds if that is too short.

    Returns:
        For each row, "plain" first: "seconds" of a step, "bytes" of temporary memory,
        "time" and "memory" relative to plain.
    """
    seed, start = np.int32(0), np.int32(0)
    rows = {PLAIN: next(iter(programs)), **{row: row for row in programs}}
    # Steps in a row, so that what happens on every tenth of them counts with a tenth.
    num_steps = 20
    compiled, seconds, sizes, params = {}, {}, {}, None
    for name, row in rows.items():
        program, setting = programs[row], settings[row]
        train = _plain(program) if name == PLAIN else program.train
        if name == PLAIN:
            params = jax.jit(program.init)(setting, seed)[0]
            tx = program.problem.optimizer(setting["rate"])
            carry = (params, tx.init(params))
        else:
            carry = (params, program.init_optimizer(setting, params))

        def steps(carry, setting, data, train=train):
            return train(carry, setting, seed, start, data, num_steps)

        executable: Any = jax.jit(steps).lower(carry, setting, data).compile()
        memory = executable.memory_analysis()
        sizes[name] = 0 if memory is None else memory.temp_size_in_bytes
        held = sum(leaf.nbytes for leaf in jax.tree.leaves(carry))
        sizes[name] += held
        compiled[name] = _call(executable, carry, setting, data)
        seconds[name] = []
    repeats, of_round = {}, 0.0
    for name, call in compiled.items():
        once = min(_seconds(call, 1) for _ in range(2))
        repeats[name] = max(1, int(min_seconds / max(once, 1e-7)))
        of_round += repeats[name] * once
    rounds = max(3, min(rounds, int(max_seconds / of_round)))
    names = list(compiled)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(_seconds(compiled[name], repeats[name]) / num_steps)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    return {
        name: {
            "seconds": medians[name],
            "bytes": float(sizes[name]),
            "time": medians[name] / medians[PLAIN],
            "memory": sizes[name] / max(1, sizes[PLAIN]),
        }
        for name in compiled
    }


def train_plain(
    problem: Problem,
    carry: Any,
    setting: Setting,
    seed: Any,
    start: Any,
    data: Data,
    num_steps: int,
) -> Any:
    """Training on the sum of the losses without anything of this library.

    Args:
        problem: What is trained.
        carry: Parameters and the state of the problem's optimizer.
        setting: Of which only the rate counts.
        seed: Of the batches.
        start: The number of the first step.
        data: What to train on.
        num_steps: How many steps.

    Returns:
        Parameters and state after them.
    """
    tx = problem.optimizer(setting["rate"])

    def step(carry: Any, number: jax.Array) -> tuple[Any, None]:
        params, opt_state = carry
        batch = batch_of(problem, data, key_of(seed, 1), number)

        def total(params: Any) -> jax.Array:
            losses = losses_and_kpis(problem, params, batch)[0]
            return problem.layout.vector("losses", losses).sum()

        updates, opt_state = tx.update(jax.grad(total)(params), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    numbers = start + jnp.arange(num_steps, dtype=jnp.int32)
    return jax.lax.scan(step, carry, numbers)[0]


def _plain(program: Program) -> Callable[..., Any]:
    def train(*args: Any) -> Any:
        return train_plain(program.problem, *args)

    return train


def _call(executable: Any, *args: Any) -> Callable[[], Any]:
    return lambda: executable(*args)


def _seconds(function: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    out = None
    for _ in range(repeats):
        out = function()
    jax.block_until_ready(out)
    return (time.perf_counter() - start) / repeats
