"""All that matters on an accelerator, in one run of under three minutes.

For whatever device JAX finds: a step of Dynamic Task Prioritization, the solvers (on
the device, on its host, and TorchJD's if it is installed, with its Gramian on the
device), the ways of the Gramian, and whole steps. Medians of rounds in turn, compile
times, and memory as the compiler and the device report it. One table that fails does
not stop the next.
"""

import argparse
import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import dtp_step, gramian, methods
from benchmarks._measure import compiled_together, interleaved, table
from benchmarks.solvers import independent
from dtp_jax import balancers
from dtp_jax.solvers import _kernel

# Widths and batch: bound by launches, and large enough to fill a device.
SMALL = (64, 512, 512), 256
WIDE = (1024, 4096, 4096), 2048
TINY = (8, 16, 16), 4

STEPS = (
    "dynamic_task_prioritization",
    "famo",
    "mgda",
    "upgrad",
    "dual_projection",
    "cagrad",
    "nash_mtl",
    "aligned_mtl",
    "config",
    "trimmed_mean",
)

# What TorchJD calls the rules; the others it has in no form that takes a Gramian.
THEIRS = {
    "upgrad": "UPGradWeighting",
    "dual_projection": "DualProjWeighting",
    "mgda": "MGDAWeighting",
    "imtl_g": "IMTLGWeighting",
    "aligned_mtl": "AlignedMTLWeighting",
    "pcgrad": "PCGradWeighting",
}


def rules() -> dict[str, Callable[[jax.Array], Any]]:
    """Every rule from the Gramian to the weights."""
    key = jax.random.key(0)
    return {
        "upgrad": balancers.upgrad_weights,
        "dual_projection": balancers.dual_projection_weights,
        "mgda": balancers.mgda_weights,
        "cagrad": balancers.cagrad_weights,
        "nash_mtl": balancers.nash_mtl_weights,
        "fair_grad": functools.partial(balancers.fair_grad_weights, alpha=2.0),
        "pcd": functools.partial(balancers.pcd_weights, primary=0),
        "config": balancers.config_weights,
        "imtl_g": balancers.imtl_g_weights,
        "aligned_mtl": balancers.aligned_mtl_weights,
        "pcgrad": functools.partial(balancers.pcgrad_weights, key=key),
        "grad_vac": functools.partial(balancers.grad_vac_weights, key=key),
    }


def solver_rows(num_tasks: int, rounds: int, workers: int) -> list[list[str]]:
    """Milliseconds of every rule: device, there without kernels, host, TorchJD."""
    rows = independent(np.random.default_rng(0), num_tasks).astype(np.float32)
    values = np.asarray(rows @ rows.T)
    places = {"device": jax.devices()[0], "host": jax.devices("cpu")[0]}
    jobs = {
        f"{name} {place}": (rule, (jax.device_put(values, device),))
        for name, rule in rules().items()
        for place, device in places.items()
    }
    functions, compile_seconds = {}, {}
    programs = compiled_together(jobs, workers)
    if _kernel.available():
        loops = {
            name.replace("device", "loops"): job
            for name, job in jobs.items()
            if "device" in name
        }
        with _without_kernels():
            programs |= compiled_together(loops, workers)
        jobs |= loops
    for name, found in programs.items():
        if isinstance(found, Exception):
            print(f"{name}, T = {num_tasks}: {found}", file=sys.stderr)
            continue
        functions[name] = functools.partial(found[0], *jobs[name][1])
        compile_seconds[name] = found[1].compile_seconds
    for name, call in _peers(values).items():
        functions[f"{name} peer"] = call
    times = interleaved(functions, rounds=rounds, min_seconds=0.003, max_seconds=4)

    def cell(name: str) -> str:
        return f"{times[name] * 1e3:.3f}" if name in times else "-"

    return [
        [
            name,
            str(num_tasks),
            *[cell(f"{name} {place}") for place in ("device", "loops", "host", "peer")],
            f"{compile_seconds.get(f'{name} device', np.nan):.2f}",
        ]
        for name in rules()
    ]


@contextlib.contextmanager
def _without_kernels() -> Iterator[None]:
    """As with ``DTP_JAX_KERNELS=0`` from the start."""
    before = os.environ.get("DTP_JAX_KERNELS")
    os.environ["DTP_JAX_KERNELS"] = "0"
    _forget()
    try:
        yield
    finally:
        os.environ.pop("DTP_JAX_KERNELS")
        if before is not None:
            os.environ["DTP_JAX_KERNELS"] = before
        _forget()


def _forget() -> None:
    _kernel._available.cache_clear()
    # What was traced before is not traced again.
    jax.clear_caches()


def _peers(values: np.ndarray) -> dict[str, Callable[[], Any]]:
    """TorchJD's rules that work on this Gramian."""
    if importlib.util.find_spec("torchjd") is None:
        return {}
    torch = importlib.import_module("torch")
    aggregation = importlib.import_module("torchjd.aggregation")
    on_gpu = torch.cuda.is_available()
    there = torch.from_numpy(values).to("cuda" if on_gpu else "cpu")
    calls = {}
    for name, theirs in THEIRS.items():
        weighting = getattr(aggregation, theirs, lambda: None)()

        def call(weighting: Any = weighting) -> None:
            with torch.no_grad():
                weighting(there)
            if on_gpu:
                torch.cuda.synchronize()

        try:
            call()
        except Exception as error:
            print(f"TorchJD's {name}: {error}", file=sys.stderr)
        else:
            calls[name] = call
    return calls


def ceiling_rows(rounds: int, short: bool) -> list[list[str]]:
    """What the device reaches: copies, products, and calls of nothing much."""
    size, length = (256, 2**20) if short else (8192, 2**29)
    keys = jax.random.split(jax.random.key(0), 2)
    square = jax.random.normal(keys[0], (size, size))
    long = jax.random.normal(keys[1], (length,))

    def product(dtype: Any, precision: Any) -> Callable[[jax.Array], jax.Array]:
        def multiply(x: jax.Array) -> jax.Array:
            x = x.astype(dtype)
            return jnp.matmul(x, x, precision=precision)

        return multiply

    jobs: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "bfloat16 product": (product(jnp.bfloat16, "default"), (square,)),
        "float32 product, default": (product(jnp.float32, "default"), (square,)),
        "float32 product, highest": (product(jnp.float32, "highest"), (square,)),
        "copy": (lambda x: x + 1, (long,)),
        "empty program": (lambda x: x + 1, (square[:8, :8],)),
    }
    programs = {
        name: functools.partial(found[0], *jobs[name][1])
        for name, found in compiled_together(jobs).items()
        if not isinstance(found, Exception)
    }
    times = interleaved(programs, rounds=min(rounds, 5))
    rows = []
    for name, seconds in times.items():
        rate = ""
        if "product" in name:
            rate = f"{2 * size**3 / seconds / 1e12:.1f} TFLOP/s"
        elif name == "copy":
            rate = f"{2 * long.nbytes / seconds / 1e12:.2f} TB/s"
        rows.append([name, f"{seconds * 1e3:.4f}", rate])
    return rows


def versions() -> str:
    """The device and what runs on it."""
    found = [f"{jax.devices()[0].device_kind} ({jax.default_backend()})"]
    for name in ("jax", "optax", "torch", "torchjd"):
        if importlib.util.find_spec(name) is not None:
            found.append(f"{name} {importlib.metadata.version(name)}")
    found.append(f"kernels {'on' if _kernel.available() else 'off'}")
    return ", ".join(found)


def parts(short: bool, workers: int) -> dict[str, tuple[Callable[[], Any], list[str]]]:
    """From the title of each table to its rows and header, what matters most first."""
    small, wide = (TINY, TINY) if short else (SMALL, WIDE)
    few = 1 if short else 7
    tasks = [2] if short else [2, 8, 32, 128]
    many = 3 if short else 40
    way_header = ["way", "T", "ms", "/ plain", "temp MiB", "compile s"]
    step_header = ["method", "T", "ms", "/ plain", "FLOPs / plain"]
    dtp_header = ["model", "T", "plain ms", "DTP / plain", "noise", "FLOPs", "temp"]

    def dtp(name: str, setting: Any) -> Callable[[], Any]:
        counts = [2] if short else [2, 8]
        return lambda: [dtp_step.row(name, t, few * 3, setting) for t in counts]

    def solvers() -> list[list[str]]:
        return [row for t in tasks for row in solver_rows(t, few, workers)]

    def ways(setting: Any, names: Any, many_names: Any) -> Callable[[], Any]:
        def rows() -> list[list[str]]:
            widths, size = setting
            found = []
            for t, modes in ((min(8, many), names), (many, many_names)):
                found += gramian.rows_of(
                    t, few, modes=modes, widths=widths, size=size, workers=workers
                )
            return found

        return rows

    def steps(setting: Any, names: Sequence[str], t: int) -> Callable[[], Any]:
        widths, size = setting
        return lambda: methods.rows_of(
            names, t, few, widths, size=size, workers=workers, max_seconds=6
        )

    chosen = STEPS[:4] if short else STEPS
    two = ("dynamic_task_prioritization", "upgrad")
    return {
        "Step of Dynamic Task Prioritization": (dtp("small", small), dtp_header),
        "Step of Dynamic Task Prioritization, wide net": (
            dtp("wide", wide),
            dtp_header,
        ),
        "Rules from a Gramian, ms": (
            solvers,
            ["rule", "T", "device", "loops", "host", "TorchJD", "compile s"],
        ),
        "Whole steps, small net": (steps(small, chosen, min(8, many)), step_header),
        "Gramian and combination, small net": (
            ways(
                small,
                ("unrolled", "switch", "vmap"),
                ("switch", "vmap", "chunks", "map"),
            ),
            way_header,
        ),
        "Gramian and combination, wide net": (
            # By "vmap" 40 gradients of this net take 50 GB.
            ways(wide, ("unrolled", "switch"), ("switch", "chunks")),
            way_header,
        ),
        "Whole steps, small net, more tasks": (steps(small, two, many), step_header),
        "The Gramian beside that of a model at the highest precision": (
            lambda: gramian.precision_rows(min(8, many), *small),
            gramian.PRECISION_HEADER,
        ),
        "Ceilings": (lambda: ceiling_rows(few, short), ["operation", "ms", "rate"]),
        "Whole steps, wide net": (steps(wide, two, min(8, many)), step_header),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="one round of tiny sizes")
    parser.add_argument(
        "--seconds", type=float, default=140.0, help="start no table later"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="a folder for device.md")
    args = parser.parse_args(argv)
    start, printed = time.perf_counter(), []

    def show(text: str) -> None:
        print(text, flush=True)
        printed.append(text)
        if args.out is not None:
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / "device.md").write_text("\n".join(printed))

    show(f"{versions()}\n")
    # The wide net is made for accelerators: on a CPU it takes minutes for a table.
    narrow = jax.default_backend() == "cpu" and not args.short
    for title, (rows, header) in parts(args.short, args.workers).items():
        if narrow and "wide net" in title:
            show(f"{title}: left out on a CPU\n")
            continue
        if time.perf_counter() - start > args.seconds:
            show(f"{title}: left out, out of time\n")
            continue
        began = time.perf_counter()
        try:
            show(table(title, header, rows()))
        except Exception as error:
            traceback.print_exc()
            show(f"{title}: failed, {error!r}\n")
        print(f"({time.perf_counter() - began:.0f} s)\n", flush=True)
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        show(
            f"Peak memory of all of this: {stats['peak_bytes_in_use'] / 2**30:.1f} GiB"
        )
    show(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
