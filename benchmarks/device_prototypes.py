"""Kernels of the solvers side by side. Not for the repository."""

import argparse
import concurrent.futures
import functools
import os
import pathlib
import statistics
import sys
import time
import traceback

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._measure import interleaved
from benchmarks.device import rules
from benchmarks.solvers import correlated, independent
from dtp_jax import balancers
from dtp_jax.solvers import _bargaining, _cagrad_problem, _kernel, _quadratic

START = time.perf_counter()
LOG = []
KERNEL_RULES = ("upgrad", "dual_projection", "mgda", "cagrad", "nash_mtl", "fair_grad", "pcd")


def say(*words):
    line = " ".join(str(word) for word in words)
    print(f"[{time.perf_counter() - START:6.1f}] {line}", flush=True)
    LOG.append(line)


def error_text(error):
    return f"{type(error).__name__}: {str(error)[:600]}"


def tried(function):
    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            say("FAILED", function.__name__, args[:1], error_text(error))
            traceback.print_exc(limit=-3)
        finally:
            say(f"({function.__name__} took {time.perf_counter() - start:.1f} s)")

    return wrapped


def data(num_tasks, kind=correlated, seed=1):
    rows = kind(np.random.default_rng(seed), num_tasks)
    gramian = jnp.asarray(rows @ rows.T, jnp.float32)
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return gramian, jnp.asarray(units @ units.T, jnp.float32)


def compile_all(jobs, patience=60.0):
    """Traces one after the other, compiles in threads."""
    pool = concurrent.futures.ThreadPoolExecutor(16)
    futures, traced = {}, {}
    for name, (function, args) in jobs.items():
        try:
            start = time.perf_counter()
            lowered = jax.jit(function).lower(*args)
            traced[name] = time.perf_counter() - start
        except Exception as error:
            say("FAILED to trace", name, error_text(error))
            continue

        def compiled(lowered=lowered, args=args):
            start = time.perf_counter()
            program = lowered.compile()
            seconds = time.perf_counter() - start
            return functools.partial(program, *args), seconds, jax.block_until_ready(program(*args))

        futures[name] = pool.submit(compiled)
    concurrent.futures.wait(futures.values(), timeout=patience)
    found = {}
    for name, future in futures.items():
        if not future.done():
            future.cancel()
            say("TOO SLOW to compile", name)
        elif future.exception() is not None:
            say("FAILED to compile or run", name, error_text(future.exception()))
        else:
            call, seconds, out = future.result()
            found[name] = call, out, f"trace {traced[name]:.2f} s compile {seconds:.2f} s"
    pool.shutdown(wait=False)
    return found


@tried
def rule_table(num_tasks, rounds, kinds=(correlated, independent)):
    """The rules as users call them, on the device and on its host."""
    host = jax.devices("cpu")[0]
    jobs = {}
    for name in KERNEL_RULES:
        for kind in kinds:
            gramian, _ = data(num_tasks, kind)
            jobs[f"device {name} {kind.__name__}"] = (rules()[name], (gramian,))
            there = jax.device_put(np.asarray(gramian), host)
            jobs[f"host {name} {kind.__name__}"] = (rules()[name], (there,))
    # What takes the same shapes compiles once.
    by_rule = {n: j for n, j in jobs.items() if n.endswith(kinds[0].__name__)}
    programs = compile_all(by_rule)
    calls, outs, notes = {}, {}, {}
    for name, (function, args) in jobs.items():
        place, rule, _ = name.split()
        base = f"{place} {rule} {kinds[0].__name__}"
        if base in programs:
            program = programs[base][0].func
            calls[name] = functools.partial(program, *args)
            outs[name] = np.asarray(calls[name]())
            notes[name] = programs[base][2]
    times = interleaved(calls, rounds=rounds, min_seconds=0.004, max_seconds=2.5)
    say("== rules, T =", num_tasks)
    for name, seconds in times.items():
        if name.startswith("host"):
            continue
        other = name.replace("device", "host")
        line = f"   {name:40s} {seconds * 1e3:8.4f} ms"
        if other in outs:
            a, b = outs[name], outs[other]
            off = np.max(np.abs(a - b)) / np.max(np.abs(b))
            line += f"   host {times[other] * 1e3:8.4f} ms   off by {off:.1e}"
        say(line, "  ", notes[name])


def one(matrix, linear, *, algebra):
    return [*_quadratic._one(matrix, linear, algebra=algebra)]


def newton(cosines, scales, members, s, *, algebra):
    end = _bargaining._newton(cosines, scales, members, s, algebra)
    return [end.x, end.lost, end.num_iters]


def factor_only(matrix, vector, *, algebra):
    return [algebra.solve(algebra.factor(matrix), vector)]


def product_only(matrix, vector, *, algebra):
    return [algebra.product(matrix, vector)]


@tried
def warps_table(num_tasks, warps, rounds):
    """The kernels alone with several numbers of warps."""
    _, cosines = data(num_tasks)
    ones, linear = jnp.ones(num_tasks), cosines @ jnp.ones(num_tasks)
    slopes = jnp.asarray(cosines @ ones / jnp.sqrt(jnp.sum(cosines)))
    cores = {
        "product": (product_only, (cosines, linear)),
        "factor+solve": (factor_only, (cosines, linear)),
        "dual": (one, (cosines, linear)),
        "newton": (newton, (cosines, ones, ones > 0, jnp.asarray(1.0))),
        "cagrad": (
            _cagrad_problem._interior_point,
            (cosines, slopes / 1.5, ones, jnp.asarray(1 / 3, jnp.float32)),
        ),
        "dual x T": (one, (cosines, cosines)),
    }
    jobs = {}
    for w in warps:
        for name, (core, args) in cores.items():
            kernel = functools.partial(_kernel.in_one_kernel, core, num_warps=w)
            if name == "dual x T":
                kernel = jax.vmap(kernel, in_axes=(None, 0))
            jobs[f"{name} {w:2d} warps"] = (kernel, args)
    programs = compile_all(jobs)
    times = interleaved({n: p[0] for n, p in programs.items()}, rounds=rounds, min_seconds=0.004, max_seconds=2.5)
    say("== kernels alone, T =", num_tasks)
    for name in sorted(times):
        out = programs[name][1]
        extra = ""
        if name.startswith("dual"):
            extra = f"residual {float(jnp.max(out[1])):.1e}"
        elif not name.startswith(("factor", "product")):
            extra = f"iterations {int(out[-1])}"
        say(f"   {name:30s} {times[name] * 1e3:8.4f} ms   {programs[name][2]} {extra}")


def clock(call, count=30):
    found = []
    for _ in range(count):
        start = time.perf_counter()
        jax.block_until_ready(call())
        found.append((time.perf_counter() - start) * 1e3)
    shown = " ".join(f"{x:.2f}" for x in found[:8])
    return f"median {statistics.median(found):.3f} ms, min {min(found):.3f}, max {max(found):.3f}, first {shown}"


@tried
def slow_loops(num_tasks):
    """Where 18 ms come from in the loops of the present programs."""
    gramian, cosines = data(num_tasks)
    exact = np.asarray(cosines, np.float64) @ np.asarray(cosines, np.float64)
    found = jax.jit(lambda c: jnp.matmul(c, c, precision="highest"))(cosines)
    say(f"== loops, T = {num_tasks}; product off by {np.max(np.abs(np.asarray(found) - exact)):.1e}")
    end = jax.jit(_quadratic._pivot)(cosines, cosines)
    say(f"   iterations {int(end.num_iters)} done {int(end.done.sum())} finite {bool(jnp.all(jnp.isfinite(end.x)))}"
        f" residual {float(end.residual.max()):.1e} patience {end.patience[:6].tolist()}")

    def pivot(c):
        end = _quadratic._pivot(c, c)
        return end.x, end.num_iters

    pcd = functools.partial(balancers.pcd_weights, primary=0)
    for name, function, arg in (
        ("pivot", pivot, cosines),
        ("pcd", pcd, gramian),
        ("dual_projection", balancers.dual_projection_weights, gramian),
    ):
        lowered = jax.jit(function).lower(arg)
        for title, options in (
            ("default", None),
            ("no command buffers", {"xla_gpu_enable_command_buffer": ""}),
            ("no while in buffers", {"xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUDNN"}),
        ):
            try:
                program = lowered.compile(compiler_options=options)
            except Exception as error:
                say(f"   {name} {title}: {error_text(error)}")
                continue
            same = clock(lambda: program(arg))
            kept = []

            def fresh():
                # New places in memory for the argument and the answer, every time.
                kept.append(program(arg + 0))
                return kept[-1]

            say(f"   {name} {title}: same place {same}")
            say(f"   {name} {title}: new places {clock(fresh)}")


@tried
def robust(num_tasks):
    """Kernels under what users do with functions."""
    gramian, _ = data(num_tasks)
    host = jax.devices("cpu")[0]
    three = jnp.stack([gramian, 2 * gramian, data(num_tasks, independent)[0]])
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    for name in ("upgrad", "cagrad"):
        rule = rules()[name]
        wanted = np.asarray(jax.jit(rule)(jax.device_put(np.asarray(gramian), host)))

        def off(found, wanted=wanted):
            return f"off by {np.max(np.abs(np.asarray(found) - wanted)) / np.max(np.abs(wanted)):.1e}"

        def mapped(rule=rule):
            return jax.jit(jax.vmap(rule))(three)[0]

        def sharded(check, rule=rule):
            inner = jax.shard_map(lambda g: rule(jax.lax.pmean(g[0], "data")), mesh=mesh,
                                  in_specs=jax.P("data"), out_specs=jax.P(), check_vma=check)
            return jax.jit(inner)(gramian[None])

        def scanned(rule=rule):
            def body(carry, g):
                return carry + rule(g), None

            return jax.jit(lambda gs: jax.lax.scan(body, jnp.zeros(num_tasks), gs)[0])(jnp.stack([gramian] * 4)) / 4

        def differentiated(rule=rule):
            return jax.jit(jax.value_and_grad(lambda g: jnp.sum(rule(g) * jnp.arange(num_tasks)), argnums=0))(gramian)[1][0] * 0 + wanted

        def exported(rule=rule):
            program = jax.export.export(jax.jit(rule))(gramian)
            return program.call(gramian)

        def both(rule=rule):
            program = jax.export.export(jax.jit(rule), platforms=("cpu", "cuda"))(gramian)
            return program.call(gramian)

        def eager(rule=rule):
            return rule(gramian)

        cases = {"eager": eager, "vmap": mapped, "shard_map, checked": lambda: sharded(True),
                 "shard_map, unchecked": lambda: sharded(False), "scan": scanned, "grad": differentiated,
                 "export": exported, "export for two": both}
        for case, call in cases.items():
            if name != "upgrad" and case not in ("vmap", "shard_map, checked"):
                continue
            try:
                say(f"   {name}, {case}: {off(call())}")
            except Exception as error:
                say(f"   {name}, {case}: FAILED {error_text(error)}")


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--kernels-only", action="store_true")
    parser.add_argument("--out", default=None)
    parser.add_argument("--seconds", type=float, default=85.0)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(argv)
    say(jax.__version__, jax.devices(), "kernels", _kernel.available())
    parts = [
        lambda: rule_table(32, 9),
        lambda: rule_table(8, 9),
        lambda: slow_loops_off(2),
        lambda: warps_table(32, (1, 2, 4), 7),
        lambda: robust(5),
        lambda: rule_table(2, 7),
        lambda: rule_table(128, 5),
        lambda: warps_table(128, (4, 8, 16), 5),
        lambda: warps_table(64, (2, 4, 8), 5),
        lambda: slow_loops_off(32),
    ]
    if args.tiny:
        parts = [lambda: rule_table(3, 1), lambda: warps_table(4, (1,), 1), lambda: slow_loops_off(2), lambda: robust(3)]
    for part in parts:
        if time.perf_counter() - START > args.seconds:
            say("out of time")
            break
        part()
        if args.out:
            (pathlib.Path(args.out) / "kernels.txt").write_text("\n".join(LOG))
    say("done")
    sys.stdout.flush()
    # A compilation that is still at work must not keep the process.
    os._exit(0)


def slow_loops_off(num_tasks):
    """`slow_loops` without kernels."""
    available, _kernel.available = _kernel.available, lambda: False
    jax.clear_caches()
    try:
        slow_loops(num_tasks)
    finally:
        _kernel.available = available
        jax.clear_caches()


if __name__ == "__main__":
    main()
