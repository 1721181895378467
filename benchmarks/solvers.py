"""The solvers: time, residual and iterations by kind and number of tasks."""

import argparse
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._measure import interleaved, table
from dtp_jax.solvers import _min_norm


def independent(rng: np.random.Generator, num_tasks: int) -> np.ndarray:
    """Rows of equal lengths in ten dimensions per task."""
    return rng.normal(size=(num_tasks, 10 * num_tasks))


def correlated(rng: np.random.Generator, num_tasks: int) -> np.ndarray:
    """Rows that share a part, some with the opposite sign, in few dimensions."""
    rows = rng.normal(size=(num_tasks, num_tasks + 3))
    signs = rng.choice([-1, 0, 1], (num_tasks, 1))
    return rows + 0.7 * rng.normal(size=num_tasks + 3) * signs


def uneven(rng: np.random.Generator, num_tasks: int) -> np.ndarray:
    """Correlated rows whose lengths spread over twelve decades."""
    scales = 10 ** rng.uniform(-6, 6, (num_tasks, 1))
    return correlated(rng, num_tasks) * scales


def dependent(rng: np.random.Generator, num_tasks: int) -> np.ndarray:
    """More rows than dimensions, all on one side."""
    return np.abs(rng.normal(size=(num_tasks, max(2, num_tasks // 2))))


KINDS: list[Callable[[np.random.Generator, int], np.ndarray]] = [
    independent,
    correlated,
    uneven,
    dependent,
]


def shortfall(rows: np.ndarray, weights: jax.Array) -> float:
    """The largest ``(|d|^2 - <g_t, d>) / (|g_t| |d|)``, in float64."""
    d = np.asarray(weights, np.float64) @ rows
    lengths = np.linalg.norm(rows, axis=1)
    return float(np.max((d @ d - rows @ d) / lengths) / np.linalg.norm(d))


def min_norm_rows(num_tasks: int, rounds: int, draws: int) -> list[list[str]]:
    """Measures the min-norm point of one number of tasks."""
    solve = jax.jit(functools.partial(_min_norm._solve, preferences=None))
    functions, found = {}, []
    for kind in KINDS:
        worst, residual, num_iters = -np.inf, 0.0, []
        for seed in range(draws):
            rows = kind(np.random.default_rng(seed), num_tasks)
            rows = rows.astype(np.float32).astype(np.float64)
            gramian = jnp.asarray(rows @ rows.T, jnp.float32)
            point, iterations = solve(gramian)
            worst = max(worst, shortfall(rows, point.weights))
            residual = max(residual, float(point.residual))
            num_iters.append(int(iterations))
            if seed == 0:
                functions[kind.__name__] = functools.partial(solve, gramian)
        mean = float(np.mean(num_iters))
        iterations = f"{mean:.1f} / {max(num_iters)}"
        found.append([f"{residual:.0e}", f"{worst:.0e}", iterations])
    times = interleaved(functions, rounds=rounds)
    return [
        [name, str(num_tasks), f"{times[name] * 1e3:.3f}", *rest]
        for name, rest in zip(functions, found, strict=True)
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--tasks", nargs="+", type=int, default=[2, 8, 32, 128])
    args = parser.parse_args(argv)
    rows = [
        row for t in args.tasks for row in min_norm_rows(t, args.rounds, args.draws)
    ]
    header = ["rows", "T", "ms", "worst residual", "worst angle", "iterations"]
    title = "Min-norm point in float32; iterations are mean / most"
    print(table(title, header, rows))


if __name__ == "__main__":
    main()
