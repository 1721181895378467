"""The ways of computing the Gramian: time, memory, compile time.

Each way is a whole gradient: the Gramian over the trunk, then one weighted backward
pass. It is compared with a plain backward pass of the same network.
"""

import argparse
import functools
from collections.abc import Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _models
from benchmarks._measure import compiled, compiled_together, interleaved, table
from dtp_jax import balancers, task_gradients
from dtp_jax._core import linalg
from dtp_jax.gradients import GramianMode

MODES = [mode for mode in get_args(GramianMode) if mode != "auto"]
WIDTHS, BATCH = (64, 512, 512), 256
PRECISION_HEADER = [
    "model", "T", "lengths off by", "cosines off by", "UPGrad's weights off by"
]  # fmt: skip


def rows_of(
    num_tasks: int,
    rounds: int,
    *,
    modes: Sequence[Any] = MODES,
    widths: tuple[int, ...] = WIDTHS,
    size: int = BATCH,
    workers: int = 1,
) -> list[list[str]]:
    """Measures every way for one number of tasks."""
    params = _models.init(num_tasks, widths)
    batch = _models.batch(num_tasks, widths[0], size)

    def losses_fn(params: Any, batch: Any) -> Any:
        return _models.losses_and_kpis(params, batch)[0]

    def plain(params: Any, batch: Any) -> Any:
        return jax.grad(lambda p: sum(losses_fn(p, batch).values()))(params)

    def way(mode: GramianMode) -> Any:
        make = task_gradients(
            losses_fn, shared={"trunk": True, "heads": False}, gramian=mode
        )

        def gradient(params: Any, batch: Any) -> Any:
            gradients = make(params, batch)
            weights = 1 / jnp.sqrt(jnp.diagonal(gradients.gramian()))
            return gradients.combine(weights)

        return gradient

    functions = {"plain": plain, **{mode: way(mode) for mode in modes}}
    together = compiled_together(
        {name: (f, (params, batch)) for name, f in functions.items()}, workers
    )
    programs = {n: p for n, p in together.items() if not isinstance(p, Exception)}
    times = interleaved(
        {
            name: functools.partial(program, params, batch)
            for name, (program, _) in programs.items()
        },
        rounds=rounds,
        max_seconds=6,
    )
    return [
        [
            name,
            str(num_tasks),
            f"{times[name] * 1e3:.2f}",
            f"{times[name] / times['plain']:.2f}",
            f"{programs[name][1].temp_bytes / 2**20:.1f}",
            f"{programs[name][1].compile_seconds:.2f}",
        ]
        for name in programs
    ]


def product_rows(rounds: int) -> list[list[str]]:
    """One product of a [T, P] matrix with its transpose, and the same in blocks."""
    found = []
    for num_tasks, columns in ((8, 10**5), (8, 10**6), (32, 10**6), (128, 262144)):
        values = np.random.default_rng(0).normal(size=(num_tasks, columns))
        matrix = jnp.asarray(values, jnp.float32)
        ways = {"plain": linalg._plain_gram, "blocked": linalg._blocked_gram}
        programs = {name: compiled(way, matrix)[0] for name, way in ways.items()}
        times = interleaved(
            {name: functools.partial(p, matrix) for name, p in programs.items()},
            rounds=rounds,
        )
        gigabytes = matrix.nbytes / 2**30
        found.append(
            [
                f"{num_tasks} x {columns}",
                f"{times['plain'] * 1e3:.2f}",
                f"{times['blocked'] * 1e3:.2f}",
                f"{times['plain'] / times['blocked']:.2f}",
                f"{gigabytes / times['blocked']:.1f}",
            ]
        )
    return found


def precision_rows(
    num_tasks: int, widths: tuple[int, ...] = WIDTHS, size: int = BATCH
) -> list[list[str]]:
    """What a model's products of fewer digits do to the Gramian and its weights."""
    params = _models.init(num_tasks, widths)
    batch = _models.batch(num_tasks, widths[0], size)

    def cast(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)

    def losses_fn(params: Any, half: bool) -> Any:
        x = cast(batch["x"]) if half else batch["x"]
        params = cast(params) if half else params
        return _models.losses_and_kpis(params, {**batch, "x": x})[0]

    def gramian(params: Any, half: bool, precision: str) -> np.ndarray:
        make = task_gradients(losses_fn, shared={"trunk": True, "heads": False})
        function = jax.jit(lambda params: make(params, half).gramian())
        with jax.default_matmul_precision(precision):
            return np.asarray(function(params), np.float64)

    def read(gramian: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        lengths = np.sqrt(np.diagonal(gramian))
        weights = balancers.upgrad_weights(jnp.asarray(gramian, jnp.float32))
        return lengths, gramian / np.outer(lengths, lengths), np.asarray(weights)

    lengths, cosines, weights = read(gramian(params, False, "highest"))
    found = []
    for name, args in {
        "float32, default precision": (params, False, "default"),
        "bfloat16 activations": (params, True, "default"),
        "bfloat16 parameters, too": (cast(params), True, "default"),
    }.items():
        other = read(gramian(*args))
        errors = (
            np.max(np.abs(other[0] / lengths - 1)),
            np.max(np.abs(other[1] - cosines)),
            np.max(np.abs(other[2] - weights)) / np.max(weights),
        )
        found.append([name, str(num_tasks), *(f"{error:.0e}" for error in errors)])
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tasks", nargs="+", type=int, default=[2, 8, 40])
    args = parser.parse_args(argv)
    rows = [row for t in args.tasks for row in rows_of(t, args.rounds)]
    header = ["way", "T", "ms", "/ plain", "temp MiB", "compile s"]
    title = "Gramian over the trunk and one weighted backward pass, by way"
    print(table(title, header, rows))
    header = ["T x P", "one product ms", "in blocks ms", "gain", "GiB/s"]
    print(table("The product itself", header, product_rows(args.rounds)))
    rows = [row for t in args.tasks for row in precision_rows(t)]
    title = "Beside a model in float32 at the highest precision"
    print(table(title, PRECISION_HEADER, rows))


if __name__ == "__main__":
    main()
