"""What was tried on every method, and what survived: docs/reliability.md.

python -m benchmarks.reliability --out docs/reliability.md
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

# Before JAX starts: the meshes of the trials have eight devices.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import dtp_jax
from benchmarks import _trials, _two_processes, soak
from benchmarks._collectives import sent
from benchmarks._measure import compiled, interleaved, table
from dtp_jax import task_gradients

WIDTH, DEPTH, BATCH = 64, 4, 64
# Of the many small programs of the trials, each of which runs once.
COMPILED_FAST = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)
# The types of optax admit no TaskGradients.
balancers: Any = dtp_jax.balancers
combiners: Any = dtp_jax.combiners
balance: Any = dtp_jax.balance

INTRODUCTION = """# Reliability

What was tried on every method, and what travels between devices. Made by `make
reliability`, on eight simulated devices of a CPU; the last part by `make soak`.

## Every method

* *Devices*: two steps of a small network on five meshes of eight devices (data
  parallel, fully sharded, sharded on the last axis, tensor parallel, 2 x 4), with
  automatic and with explicit axes: the largest distance to one device, relative to
  the largest entry of an array. Task weights are the same bits on all devices, and
  what is remembered of each parameter starts spread as it is, or this says "no".
* *Processes*: the same of two processes with four devices each, which find each other
  over loopback (`jax.distributed`), data parallel.
* *Bad steps*: each task in turn has a NaN or infinite loss, or such an entry in its
  stacked gradient, in the second of four steps: the distance of state and updates to
  the run in which it was masked. 0 means the same bits.
* *Long run*: the largest number in the state, counters apart, after {steps:,} steps
  on noise; "no" if it is not finite.
* *Restart*: saved by flax and by Orbax, restored and trained on with the same bits.
"""

GRAMIAN = """## What travels

A network of {depth} layers of {width} x {width} and one head for each of 4 tasks,
float32. Bytes of the results of collective operations on one device, as multiples of
the bytes of all parameters. A CPU reduces a gradient whole and keeps a part where
accelerators reduce-scatter, which sends half as much; an operation in a loop counts
once.
"""

TEXT_ON_TRAFFIC = """
A step driven by KPIs or losses adds the losses and KPIs, a few bytes. A step that
reads the Gramian reduces the gradients of all tasks where plain training reduces one,
and one matrix `[T, T]`; no device gathers a gradient. "switch" and "map" gather
parameters that are spread over devices once per task, since they run one pass after
the other: on a mesh "auto" takes "unrolled" up to 64 tasks, and "vmap" above.
"""


def row_of(name: str, num_steps: int) -> list[str]:
    """What survived of a method."""
    worst = 0.0
    for mesh in _trials.MESHES:
        for kind in (AxisType.Auto, AxisType.Explicit):
            if name not in _trials.NOT_SPREAD:
                worst = max(worst, _trials.on_a_mesh(name, mesh, kind))
    bad, _ = _trials.poisoned_steps(name)
    largest = _trials.long_run(name, num_steps)
    devices = "-" if name in _trials.NOT_SPREAD else shown(worst)
    again = "yes" if _trials.checkpointed(name) else "no"
    return [name, devices, shown(bad), shown(largest), again]


def rows_of(names: Sequence[str], num_steps: int) -> list[list[str]]:
    """What survived of each method, tried in a process for each core.

    Args:
        names: Of the methods.
        num_steps: Of the long run.

    Returns:
        Their rows.
    """
    count = min(len(names), os.cpu_count() or 1)
    settings = os.environ | {"XLA_FLAGS": COMPILED_FAST}
    children = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.reliability", "--rows"),
                *("--steps", str(num_steps), "--methods", *names[number::count]),
            ],
            env=settings,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]

    def rows(child: subprocess.Popen[str]) -> list[list[str]]:
        found = []
        assert child.stdout is not None
        for line in child.stdout:
            print(line, end="", flush=True)
            found.append(json.loads(line))
        if child.wait():
            raise RuntimeError("The trials failed.")
        return found

    with ThreadPoolExecutor(count) as pool:
        try:
            futures = [pool.submit(rows, child) for child in children]
            # The first that fails ends the others.
            shares = [future.result() for future in as_completed(futures)]
        finally:
            for child in children:
                child.kill()
    found = {row[0]: row for share in shares for row in share}
    return [found[name] for name in names]


def shown(number: float) -> str:
    """A number, or "no" for what did not survive."""
    return "no" if number == float("inf") else f"{number:.1g}"


def layers(params: Any, x: jax.Array, batch: P) -> tuple[Any, Any]:
    """Losses and KPIs of some layers, activations spread as the batch is."""
    for weight in params["trunk"]:
        x = jax.lax.with_sharding_constraint(jnp.tanh(x @ weight), batch)
    errors = x @ params["heads"].T - 1
    of_tasks = jnp.mean(errors**2, axis=0), jnp.mean(jnp.abs(errors) < 1, axis=0)
    names = _trials.NAMES
    losses, kpis = ({n: of[i] for i, n in enumerate(names)} for of in of_tasks)
    return losses, kpis


def traffic_of(link: Any, mode: Any, spread: bool, batch_axis: P) -> tuple[Any, float]:
    """The compiled step on eight devices, and the bytes of the parameters."""
    keys = jax.random.split(jax.random.key(0), DEPTH + 1)
    trunk = [jax.random.normal(key, (WIDTH, WIDTH)) / 8 for key in keys[1:]]
    params = {"heads": jax.random.normal(keys[0], (4, WIDTH)), "trunk": trunk}
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    spec = P(None, "x") if spread else P()
    tx = optax.chain(optax.identity() if link is None else link, optax.sgd(0.1))

    def step(params: Any, state: Any, x: jax.Array) -> Any:
        if link is None:
            gradients, kpis = jax.grad(
                lambda p: (sum(layers(p, x, batch_axis)[0].values()), 0), has_aux=True
            )(params)
        else:
            make = task_gradients(
                lambda p: layers(p, x, batch_axis), has_aux=True, gramian=mode
            )
            gradients, kpis = make(params)
        updates, state = tx.update(
            gradients, state, params, kpis=kpis, key=jax.random.key(0)
        )
        updates = jax.tree.map(
            lambda u: jax.lax.with_sharding_constraint(u, spec), updates
        )
        return optax.apply_updates(params, updates), state

    with jax.set_mesh(mesh):
        params = jax.device_put(params, NamedSharding(mesh, spec))
        x = jax.device_put(jnp.ones((BATCH, WIDTH)), NamedSharding(mesh, batch_axis))
        program = jax.jit(step).lower(params, tx.init(params), x).compile()
    return program, 4.0 * sum(leaf.size for leaf in jax.tree.leaves(params))


def traffic() -> str:
    """The tables of what travels."""
    names = _trials.NAMES
    focal = dtp_jax.dynamic_task_prioritization(names)
    subjects = {
        "plain training": (None, "auto"),
        "dynamic_task_prioritization (KPIs)": (focal, "auto"),
        "dwa (losses)": (balance(balancers.dwa(), names), "auto"),
        "grad_norm (norms)": (balance(balancers.grad_norm(), names), "auto"),
        "upgrad (Gramian)": (balance(balancers.upgrad(), names), "auto"),
        'upgrad, "switch"': (balance(balancers.upgrad(), names), "switch"),
        'upgrad, "map"': (balance(balancers.upgrad(), names), "map"),
        'upgrad, "vmap"': (balance(balancers.upgrad(), names), "vmap"),
        "db_mtl (rows)": (combiners.db_mtl(names), "auto"),
    }
    parts = [GRAMIAN.format(depth=DEPTH, width=WIDTH)]
    for title, spread in (("Data parallel:", False), ("Fully sharded:", True)):
        rows = []
        for name, (link, mode) in subjects.items():
            program, size = traffic_of(link, mode, spread, P("x"))
            found = sent(program)
            cells = [
                f"{found.get(kind, 0) / size:.3f}"
                for kind in ("all-reduce", "all-gather", "reduce-scatter")
            ]
            temp = program.memory_analysis().temp_size_in_bytes / size
            rows.append([name, *cells, f"{temp:.2f}"])
        header = ["step", "all-reduce", "all-gather", "reduce-scatter", "memory"]
        parts.append(table(title, header, rows))
    return "\n".join(parts) + TEXT_ON_TRAFFIC


def calculation(devices: int = 1024, size: float = 10e9) -> str:
    """Bytes for a large run, from the pattern above."""
    gradient, parameters = 2 * size, 2 * size
    rows = []
    for tasks in (8, 64):
        for family, copies, held in (
            ("plain, KPIs, losses", 1, 0),
            ("norms, Gramian", tasks, tasks),
            ("rows that are remembered", tasks, 3 * tasks),
            ("Gramian at features", 1, 0),
        ):
            ring = (devices - 1) / devices
            sharded = ring * (2 * parameters + copies * gradient)
            rows.append(
                [
                    f"{family}, T = {tasks}",
                    f"{2 * ring * copies * gradient / 1e9:,.0f}",
                    f"{sharded / 1e9:,.0f}",
                    f"{held * gradient / devices / 1e9:.2f}",
                ]
            )
    title = (
        f"## {devices:,} devices, {size / 1e9:.0f} B parameters\n\nIn GB for each "
        "device and step, bfloat16. Data parallel: a ring sends each gradient twice.\n"
        "Fully sharded: parameters are gathered for both passes, and\n"
        "each gradient is reduce-scattered. Memory: a device's share of the gradients\n"
        "of all tasks, in float32 (and those of the step) where they are remembered."
    )
    header = ["family", "data parallel", "fully sharded", "memory, sharded"]
    return table(title, header, rows)


def guard() -> str:
    """What `guard=True` costs, beside `apply_if_finite`."""
    keys = jax.random.split(jax.random.key(0), DEPTH + 1)
    trunk = [jax.random.normal(key, (4 * WIDTH, 4 * WIDTH)) / 16 for key in keys[1:]]
    params = {"heads": jax.random.normal(keys[0], (4, 4 * WIDTH)), "trunk": trunk}
    x = jnp.ones((BATCH, 4 * WIDTH))
    make = dtp_jax.dynamic_task_prioritization
    plain: Any = make(_trials.NAMES)
    subjects = {
        "neither": optax.chain(plain, optax.sgd(0.1)),
        "apply_if_finite": optax.chain(plain, optax.apply_if_finite(optax.sgd(0.1), 5)),
        "guard=True": optax.chain(make(_trials.NAMES, guard=True), optax.sgd(0.1)),
    }
    programs, costs, mapped = {}, {}, {}
    for name, tx in subjects.items():

        def step(params: Any, state: Any, x: jax.Array, tx: Any = tx) -> Any:
            make = task_gradients(lambda p: _losses(p, x), has_aux=True)
            gradients, kpis = make(params)
            updates, state = tx.update(gradients, state, params, kpis=kpis)
            return optax.apply_updates(params, updates), state

        state = tx.init(params)
        program, costs[name] = compiled(step, params, state, x)
        programs[name] = lambda p=program, s=state: p(params, s, x)
        two = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), (params, state))
        over, _ = compiled(jax.vmap(step, (0, 0, None)), *two, x)
        mapped[name] = lambda p=over, t=two: p(*t, x)
    seconds, both = interleaved(programs), interleaved(mapped)
    size = 4.0 * sum(leaf.size for leaf in jax.tree.leaves(params))
    first = next(iter(subjects))
    rows = [
        [
            name,
            f"{seconds[name] / seconds[first]:.2f}",
            f"{costs[name].temp_bytes / size:.2f}",
            f"{costs[name].compile_seconds / costs[first].compile_seconds:.2f}",
            f"{both[name] / both[first]:.2f}",
        ]
        for name in subjects
    ]
    title = (
        "## A guard against gradients that are not finite\n\nA step of "
        "`dynamic_task_prioritization`, all gradients finite: time, memory in\n"
        "multiples of the parameters, time to compile, and time under `jax.vmap` over\n"
        "two sets of parameters, where both branches run. `apply_if_finite` drops a\n"
        "step that is not finite; the guard takes it without the tasks at fault."
    )
    header = ["", "time", "memory", "compiling", "mapped"]
    return table(title, header, rows)


def _losses(params: Any, x: jax.Array) -> tuple[Any, Any]:
    for weight in params["trunk"]:
        x = jnp.tanh(x @ weight)
    errors = x @ params["heads"].T - 1
    of_tasks = jnp.mean(errors**2, axis=0), jnp.mean(jnp.abs(errors) < 1, axis=0)
    losses, kpis = ({n: of[i] for i, n in enumerate(_trials.NAMES)} for of in of_tasks)
    return losses, kpis


def main(argv: list[str] | None = None) -> None:
    """Prints the page, or writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--methods", nargs="*")
    parser.add_argument("--rows", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    names = args.methods or [n for n in _trials.LINKS if n not in _trials.VARIANTS]
    if args.rows:
        for name in names:
            print(json.dumps(row_of(name, args.steps)), flush=True)
            # Each method has its programs, some dozen, which nothing else uses.
            jax.clear_caches()
        return
    rows = rows_of(names, args.steps)
    apart = _two_processes.deviations([n for n in names if n not in _trials.NOT_SPREAD])
    for row in rows:
        row.insert(2, shown(apart[row[0]]) if row[0] in apart else "-")
    header = ["method", "devices", "processes", "bad steps", "long run", "restart"]
    of_all = (
        INTRODUCTION.format(steps=args.steps),
        'To compile fast, all but "processes" is of programs with `XLA_FLAGS` of\n'
        f"`{COMPILED_FAST}`;\nthe figures of time, memory and traffic below are of "
        f"`{os.environ['XLA_FLAGS']}`.\n",
        table("", header, rows).lstrip(),
    )
    page = "\n".join([*of_all, guard(), traffic(), calculation()])
    if args.out:
        # `make soak` has a section of its own.
        page = page.rstrip("\n") + "\n\n" + soak.section_of(args.out)
        args.out.write_text(page.rstrip("\n") + "\n", encoding="utf-8")
    else:
        print(page)


if __name__ == "__main__":
    main()
