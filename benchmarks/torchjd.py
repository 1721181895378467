"""Side by side with TorchJD: solvers, aggregation, whole steps and peak memory.

Both libraries run in one process on the same number of threads and get the same float32
numbers; the milliseconds are medians of rounds in which they take turns. Every call is
timed to its end, those of TorchJD without a graph of derivatives wherever it allows
that. `make bench-torchjd` installs TorchJD 0.18.0 and torch 2.13.0. Beside the figures
stands the floor that the machine sets: its best rates of products and of reading
memory, whichever of the two libraries reaches them.
"""

import argparse
import functools
import importlib.metadata
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._measure import interleaved, table
from benchmarks._side_by_side import (
    Machine,
    finished,
    in_turn,
    limited,
    machine,
    milliseconds,
    peer,
    ratio,
)
from benchmarks._side_by_side_steps import memory_rows, step_rows
from dtp_jax import TaskGradients, balancers

PARTS = ("solvers", "kinds", "aggregation", "steps", "memory")

# Of each kind of matrix, so that no solver starts from its own answer.
DRAWS = 3

# TorchJD has no rule from a Gramian for these.
FROM_THE_MATRIX = ("Nash-MTL", "ConFIG")

# These of our rules take their memory as well, and return it after the weights.
WITH_MEMORY = ("PCGrad", "GradVac")


def independent(rng: np.random.Generator, num_tasks: int) -> np.ndarray:
    """Rows in ten dimensions per task."""
    return rng.normal(size=(num_tasks, 10 * num_tasks))


def correlated(rng: np.random.Generator, num_tasks: int) -> np.ndarray:
    """Rows that share a part, with either sign, in hardly enough dimensions."""
    signs = rng.choice([-1, 1], (num_tasks, 1))
    size = num_tasks + 2
    return rng.normal(size=(num_tasks, size)) + 0.7 * rng.normal(size=size) * signs


def clustered(rng: np.random.Generator, num_tasks: int) -> np.ndarray:
    """Rows close to one of four lines, some pointing the other way."""
    signs = rng.choice([-1, 1], (num_tasks, 1))
    size = 10 * num_tasks
    centres = rng.normal(size=(4, size))[rng.integers(0, 4, num_tasks)]
    return 0.05 * rng.normal(size=(num_tasks, size)) + centres * signs


def near_parallel(rng: np.random.Generator, num_tasks: int) -> np.ndarray:
    """Rows close to one line, some pointing the other way."""
    signs = rng.choice([-1, 1], (num_tasks, 1))
    size = 10 * num_tasks
    return 0.02 * rng.normal(size=(num_tasks, size)) + rng.normal(size=size) * signs


def graded(rng: np.random.Generator, num_tasks: int) -> np.ndarray:
    """Rows in T directions, along which they reach from one down to 1e-4."""
    return rng.normal(size=(num_tasks, num_tasks)) * np.logspace(0, -4, num_tasks)


def dependent(rng: np.random.Generator, num_tasks: int) -> np.ndarray:
    """Twice as many rows as dimensions."""
    return rng.normal(size=(num_tasks, max(1, num_tasks // 2)))


KINDS = {
    "random, P = 10 T": independent,
    "correlated, P = T + 2": correlated,
    "clustered, P = 10 T": clustered,
    "near-parallel, P = 10 T": near_parallel,
    "graded to 1e-4, P = T": graded,
    "random, P = T / 2": dependent,
}


def methods(num_tasks: int) -> dict[str, tuple[Callable[..., Any], Any]]:
    """The rule of ours and of TorchJD for each method."""
    agg = peer("torchjd.aggregation")
    pairs: dict[str, tuple[Callable[..., Any], Any]] = {
        "UPGrad": (balancers.upgrad_weights, agg.UPGradWeighting()),
        "DualProj": (balancers.dual_projection_weights, agg.DualProjWeighting()),
        "MGDA": (balancers.mgda_weights, agg.MGDAWeighting()),
        "CAGrad": (balancers.cagrad_weights, agg.CAGradWeighting(c=0.5)),
        "Nash-MTL": (balancers.nash_mtl_weights, agg.NashMTL(num_tasks).weighting),
        "FairGrad": (balancers.fair_grad_weights, agg.FairGradWeighting(alpha=1.0)),
        "PCGrad": (_pcgrad, agg.PCGradWeighting()),
        "GradVac": (_grad_vac, agg.GradVacWeighting()),
        "IMTL-G": (balancers.imtl_g_weights, agg.IMTLGWeighting()),
        "Aligned-MTL": (balancers.aligned_mtl_weights, agg.AlignedMTLWeighting()),
        "ConFIG": (balancers.config_weights, agg.ConFIG()),
        "PCD": (
            functools.partial(balancers.pcd_weights, primary=0),
            agg.PCDWeighting(),
        ),
    }
    if num_tasks > 3:
        rule = functools.partial(balancers.krum_weights, num_byzantine=1)
        pairs["Krum"] = (rule, agg.KrumWeighting(n_byzantine=1))
    return pairs


def solver_rows(num_tasks: int, rounds: int, best: Machine) -> list[list[str]]:
    """Measures every method for one number of tasks."""
    matrices = _draws(independent, num_tasks)
    gramians = [matrix @ matrix.T for matrix in matrices]
    empty = interleaved({"empty": _our_call(jax.jit(jnp.diagonal), gramians)})["empty"]
    floor = empty + 2 * num_tasks**3 / best.flops
    rows = []
    for name, (rule, weighting) in methods(num_tasks).items():
        memory = None
        if name in WITH_MEMORY:
            memory = jnp.zeros((), jnp.int32), jnp.zeros((num_tasks, num_tasks))
        inputs = matrices if name in FROM_THE_MATRIX else gramians
        theirs, ours = _times(
            _their_call(weighting, inputs),
            _our_call(jax.jit(rule), gramians, memory),
            rounds,
        )
        cells = [milliseconds(theirs), milliseconds(ours), ratio(theirs, ours)]
        rows.append([name, str(num_tasks), *cells, milliseconds(floor)])
    return rows


def conflict(rows: np.ndarray, weights: Any) -> float:
    """The least ``<g_t, d> / (|g_t| sum_s |w_s| |g_s|)``, in float64."""
    rows, weights = rows.astype(np.float64), np.asarray(weights, np.float64)
    lengths = np.linalg.norm(rows, axis=1)
    products = rows @ (weights @ rows) / lengths
    return float(products.min() / (np.abs(weights) @ lengths))


def kind_rows(num_tasks: int, rounds: int) -> list[list[str]]:
    """Measures UPGrad on every kind of rows."""
    weighting = peer("torchjd.aggregation").UPGradWeighting()
    rule, found = jax.jit(balancers.upgrad_weights), []
    for title, kind in KINDS.items():
        matrices = _draws(kind, num_tasks)
        gramians = [matrix @ matrix.T for matrix in matrices]
        their_call, our_call = (
            _their_call(weighting, gramians),
            _our_call(rule, gramians),
        )
        # A call goes on to the next matrix.
        their_worst, our_worst = (
            None if not _works(call) else min(conflict(m, call()) for m in matrices)
            for call in (their_call, our_call)
        )
        theirs, ours = _times(their_call, our_call, rounds)
        cells = [milliseconds(theirs), milliseconds(ours), ratio(theirs, ours)]
        worst = ["-" if w is None else f"{w:.0e}" for w in (their_worst, our_worst)]
        found.append([title, str(num_tasks), *cells, *worst])
    return found


AGGREGATORS: dict[str, Callable[..., Any]] = {
    "UPGrad": balancers.upgrad_weights,
    "MGDA": balancers.mgda_weights,
    "ConFIG": balancers.config_weights,
    "Mean": lambda gramian: jnp.full(gramian.shape[:1], 1 / gramian.shape[0]),
}


def aggregate(rule: Callable[..., Any], matrix: jax.Array) -> jax.Array:
    """One gradient of the rows of a matrix."""
    gradients = TaskGradients.from_stacked(matrix)
    return gradients.combine(rule(gradients.gramian()))


def aggregation_rows(
    num_tasks: int, columns: int, names: Sequence[str], rounds: int, best: Machine
) -> list[list[str]]:
    """Measures methods on one matrix."""
    torch, agg = peer("torch"), peer("torchjd.aggregation")
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((num_tasks, columns), np.float32)
    for_us, for_them = jnp.asarray(matrix), torch.from_numpy(matrix)
    rows = []
    for name in names:
        program = jax.jit(functools.partial(aggregate, AGGREGATORS[name]))
        our_call = functools.partial(finished, program, for_us)
        aggregator = getattr(agg, name)()
        their_call = functools.partial(aggregator, for_them)
        with torch.no_grad():
            times = in_turn({"theirs": their_call, "ours": our_call}, rounds)
            difference = _angle(their_call(), our_call())
        theirs, ours = times["theirs"], times["ours"]
        # The mean takes one read, and its products are nothing beside that.
        reads = (1 if name == "Mean" else 2) * matrix.nbytes / best.bandwidth
        products = 2 * num_tasks * matrix.size / best.flops
        cells = [milliseconds(theirs), milliseconds(ours), ratio(theirs, ours)]
        cells += [
            milliseconds(reads),
            milliseconds(None if name == "Mean" else products),
        ]
        size = f"{num_tasks} x {columns:.0e}".replace("e+0", "e")
        rows.append([name, size, *cells, f"{difference:.0e}"])
    return rows


def _pcgrad(gramian: jax.Array, memory: Any) -> tuple[jax.Array, Any]:
    step, rest = memory
    key = jax.random.fold_in(jax.random.key(0), step)
    return balancers.pcgrad_weights(gramian, key=key), (step + 1, rest)


def _grad_vac(gramian: jax.Array, memory: Any) -> tuple[jax.Array, Any]:
    step, last = memory
    key = jax.random.fold_in(jax.random.key(0), step)
    weights, last = balancers.grad_vac_weights(gramian, similarities=last, key=key)
    return weights, (step + 1, last)


def _draws(
    kind: Callable[[np.random.Generator, int], np.ndarray], num_tasks: int
) -> list[np.ndarray]:
    rngs = map(np.random.default_rng, range(DRAWS))
    return [kind(rng, num_tasks).astype(np.float32) for rng in rngs]


def _our_call(
    program: Callable[..., Any], inputs: Sequence[np.ndarray], memory: Any = None
) -> Callable[[], Any]:
    """Calls a program with one input after the other, and with its memory if any."""
    cycle, held = itertools.cycle([jnp.asarray(x) for x in inputs]), [memory]

    def call() -> Any:
        if memory is None:
            return finished(program, next(cycle))
        weights, held[0] = finished(program, next(cycle), held[0])
        return weights

    return call


def _their_call(module: Any, inputs: Sequence[np.ndarray]) -> Callable[[], Any]:
    torch = peer("torch")
    cycle = itertools.cycle([torch.from_numpy(x) for x in inputs])

    def call() -> Any:
        with torch.no_grad():
            return module(next(cycle))

    return call


def _works(call: Callable[[], Any]) -> bool:
    """Whether a solver has an answer for every matrix."""
    try:
        for _ in range(DRAWS):
            call()
    except Exception as error:
        print(f"No answer: {error}", file=sys.stderr)
        return False
    return True


def _times(
    their_call: Callable[[], Any], our_call: Callable[[], Any], rounds: int
) -> tuple[float | None, float]:
    calls = {"theirs": their_call} if _works(their_call) else {}
    times = in_turn({**calls, "ours": our_call}, rounds)
    return times.get("theirs"), times["ours"]


def _angle(theirs: Any, ours: Any) -> float:
    """One minus the cosine of two vectors, in float64."""
    theirs, ours = np.asarray(theirs, np.float64), np.asarray(ours, np.float64)
    squared = (theirs @ theirs) * (ours @ ours)
    return 1 - float(theirs @ ours / np.sqrt(squared)) if squared > 0 else np.nan


def _print_tables(args: argparse.Namespace) -> None:
    """Measures the parts and prints a table of each."""
    best, rounds = machine(), args.rounds
    times, version = ["TorchJD ms", "dtp_jax ms", "gain"], importlib.metadata.version
    print(
        f"TorchJD {version('torchjd')} on torch {version('torch')}, "
        f"dtp_jax on jax {version('jax')}, {args.threads} threads; at best "
        f"{best.flops / 1e9:.0f} GFLOP/s and {best.bandwidth / 2**30:.1f} GiB/s.\n"
        "The gain is TorchJD's milliseconds over ours.\n"
    )
    if "solvers" in args.parts:
        tasks = args.tasks or [2, 8, 32, 128]
        rows = [row for t in tasks for row in solver_rows(t, rounds, best)]
        title = (
            "Weights from a Gramian of random rows, P = 10 T\n"
            "The floor is an empty call and one product of [T, T] matrices."
        )
        print(table(title, ["method", "T", *times, "floor ms"], rows))
    if "kinds" in args.parts:
        rows = [row for t in args.tasks or [128] for row in kind_rows(t, rounds)]
        header = ["rows", "T", *times, "TorchJD's conflict", "dtp_jax's"]
        title = (
            "UPGrad by kind of rows\n"
            "The conflict is the least <g_t, d> / (|g_t| sum |w_s| |g_s|) of any task."
        )
        print(table(title, header, rows))
    if "aggregation" in args.parts:
        tasks, names = args.tasks or [8, 32], list(AGGREGATORS)
        matrices = [(t, p, names) for t in tasks for p in args.columns]
        if not args.tasks:
            matrices.append((128, 10**6, ["ConFIG"]))
        rows = [r for m in matrices for r in aggregation_rows(*m, rounds, best)]
        header = ["method", "T x P", *times, "reads ms", "products ms", "1 - cosine"]
        title = (
            "One gradient from a T x P matrix\n"
            "The floors are two reads from memory, for the mean one, and 2 T^2 P "
            "FLOPs; the cosine is that of the two answers."
        )
        print(table(title, header, rows))
    if "steps" in args.parts:
        tasks = args.tasks or [2, 8, 40]
        rows = [row for t in tasks for row in step_rows(t, rounds, best)]
        header = ["step", "T", *times, "TorchJD / plain", "dtp_jax / plain", "floor ms"]
        title = (
            "A whole training step\n"
            "The floor is that of the FLOPs that no way of computing it can save."
        )
        print(table(title, header, rows))
    if "memory" in args.parts:
        rows = [row for t in args.tasks or [40] for row in memory_rows(t)]
        header = ["step", "T", "TorchJD MiB", "dtp_jax MiB", "ratio", "temp MiB"]
        title = (
            "Peak of resident memory over that after set-up\n"
            "The ratio is our peak over TorchJD's; temp is what the compiler reserves."
        )
        print(table(title, header, rows))


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tasks", nargs="+", type=int, help="default: by part")
    columns = [10**4, 10**6, 10**7]
    parser.add_argument("--columns", nargs="+", type=int, default=columns)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    with limited(args.threads):
        _print_tables(args)


if __name__ == "__main__":
    main()
