"""Candidates for what runs on a device, side by side. Not for the repository."""

import argparse
import concurrent.futures
import contextlib
import functools
import os
import pathlib
import sys
import time
import traceback

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _models
from benchmarks._measure import interleaved
from benchmarks.solvers import correlated, independent
from dtp_jax import balancers, solvers, task_gradients
from dtp_jax.solvers import _algebra, _bargaining, _cagrad_problem, _kernel
from dtp_jax.solvers import _interior_point, _quadratic

W = _algebra.WRITTEN_OUT
START = time.perf_counter()
LOG = []
PATIENCE = 50.0


def say(*words):
    line = " ".join(str(word) for word in words)
    print(f"[{time.perf_counter() - START:6.1f}] {line}", flush=True)
    LOG.append(line)


def tried(function):
    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            say("FAILED", function.__name__, args[:1], repr(error)[:600])
            traceback.print_exc(limit=-2)
            return None

    return wrapped


def compile_all(jobs):
    """From name -> (function, args) to name -> thunk, compiled in parallel."""

    def one(item):
        name, (function, args) = item
        try:
            start = time.perf_counter()
            lowered = jax.jit(function).lower(*args)
            middle = time.perf_counter()
            program = lowered.compile()
            end = time.perf_counter()
            out = jax.block_until_ready(program(*args))
            return name, (functools.partial(program, *args), out, middle - start, end - middle)
        except BaseException as error:
            say("FAILED to compile or run", name, repr(error)[:800])
            return name, None

    pool = concurrent.futures.ThreadPoolExecutor(16)
    futures = {name: pool.submit(one, (name, job)) for name, job in jobs.items()}
    done, late = concurrent.futures.wait(futures.values(), timeout=PATIENCE)
    for name, future in futures.items():
        if future in late:
            future.cancel()
            say("TOO SLOW to compile", name)
    pool.shutdown(wait=False)
    found = {name: f.result()[1] for name, f in futures.items() if f in done}
    return {name: value for name, value in found.items() if value is not None}


def timed(title, jobs, rounds=9, show=None, reference=None):
    programs = compile_all(jobs)
    times = interleaved({n: p[0] for n, p in programs.items()}, rounds=rounds, min_seconds=0.004, max_seconds=6.0)
    say("==", title)
    for name, seconds in times.items():
        extra = show(name, programs[name][1]) if show else ""
        say(f"   {name:34s} {seconds * 1e3:9.4f} ms   trace {programs[name][2]:.2f} s compile {programs[name][3]:.2f} s {extra}")


# ------------------------------------------------------------------ solvers
def ip(matrix, linear):
    x, n = _interior_point.interior_point(matrix, -linear, algebra=W)
    x, r = _quadratic._polished(matrix, linear, x, W)
    return [x, r, n]


def ip_library(matrix, linear):
    x, n = _interior_point.interior_point(matrix, -linear)
    x, r = _quadratic._polished(matrix, linear, x)
    return [x, r, n]


def newton(cosines, scales, members, s):
    end = _bargaining._newton(cosines, scales, members > 0, s[0], W)
    return [end.x, end.lost.astype(jnp.int32), end.num_iters]


def newton_library(cosines, scales, members, s):
    end = _bargaining._newton(cosines, scales, members > 0, s[0])
    return [end.x, end.lost.astype(jnp.int32), end.num_iters]


def cagrad(cosines, slopes, r, share):
    end = _cagrad_problem._interior_point(cosines, slopes, r, share[0], W)
    return [end.x, end.y, end.gap, end.num_iters]


def cagrad_library(cosines, slopes, r, share):
    end = _cagrad_problem._interior_point(cosines, slopes, r, share[0])
    return [end.x, end.y, end.gap, end.num_iters]


def factor_solve(matrix, vector):
    return [W.solve(W.factor(matrix), vector)]


def factor_solve_library(matrix, vector):
    A = _algebra.LIBRARY
    return [A.solve(A.factor(matrix), vector)]


@contextlib.contextmanager
def frozen(turns):
    """Loops of a fixed number of turns, the state frozen when the loop would end."""
    old = jax.lax.while_loop

    def loop(condition, body, state):
        def turn(_, state):
            going = condition(state)
            new = body(state)
            return jax.tree.map(lambda a, b: jnp.where(going, a, b), new, state)

        return jax.lax.fori_loop(0, turns, turn, state)

    jax.lax.while_loop = loop
    try:
        yield
    finally:
        jax.lax.while_loop = old


def frozen_version(function, turns):
    def wrapped(*args):
        with frozen(turns):
            return function(*args)

    return wrapped


def data(num_tasks, kind=correlated):
    rows = kind(np.random.default_rng(1), num_tasks)
    gramian = jnp.asarray(rows @ rows.T, jnp.float32)
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = jnp.asarray(units @ units.T, jnp.float32)
    return gramian, cosines


def kernel(function, num_warps, interpret):
    return functools.partial(_kernel.in_one_kernel, function, num_warps=num_warps, interpret=interpret)


@tried
def solver_tables(num_tasks, warps, interpret, rounds):
    gramian, cosines = data(num_tasks)
    ones, one = jnp.ones(num_tasks), jnp.ones(1)
    # One projection onto the dual cone, and all T of them.
    linear = cosines @ ones
    jobs = {
        "present dual_projection": (balancers.dual_projection_weights, (gramian,)),
        "present ip+polish (library)": (ip_library, (cosines, linear)),
        "present mgda": (balancers.mgda_weights, (gramian,)),
        "present upgrad": (balancers.upgrad_weights, (gramian,)),
        "present nash": (balancers.nash_mtl_weights, (gramian,)),
        "present newton (library)": (newton_library, (cosines, ones, ones, one)),
        "present cagrad": (balancers.cagrad_weights, (gramian,)),
        "present config": (balancers.config_weights, (gramian,)),
        "present imtl_g": (balancers.imtl_g_weights, (gramian,)),
        "present aligned_mtl": (balancers.aligned_mtl_weights, (gramian,)),
        "present pcd": (functools.partial(balancers.pcd_weights, primary=0), (gramian,)),
        "pivot (present, T columns)": (
            _quadratic.nonnegative_quadratic,
            (cosines, cosines),
        ),
    }
    slopes = jnp.asarray(cosines @ ones / jnp.sqrt(jnp.sum(cosines)))
    cagrad_args = (cosines, slopes / 1.5, ones, jnp.full(1, 1 / 3, jnp.float32))
    for w in warps:
        jobs[f"kernel {w:2d} warps factor+solve"] = (kernel(factor_solve, w, interpret), (cosines, linear))
        jobs[f"kernel {w:2d} warps ip+polish"] = (kernel(ip, w, interpret), (cosines, linear))
        jobs[f"kernel {w:2d} warps ip x T"] = (
            jax.vmap(kernel(ip, w, interpret), in_axes=(None, 0)),
            (cosines, cosines),
        )
        jobs[f"kernel {w:2d} warps newton"] = (kernel(newton, w, interpret), (cosines, ones, ones, one))
        jobs[f"kernel {w:2d} warps cagrad"] = (kernel(cagrad, w, interpret), cagrad_args)
    jobs["library cagrad"] = (cagrad_library, cagrad_args)
    jobs["library factor+solve"] = (factor_solve_library, (cosines, linear))
    if num_tasks <= 32:
        jobs["written-out factor+solve"] = (factor_solve, (cosines, linear))
        jobs["frozen 12 turns ip (library)"] = (frozen_version(ip_library, 12), (cosines, linear))
        if num_tasks <= 8:
            jobs["frozen 12 turns ip (written out)"] = (frozen_version(ip, 12), (cosines, linear))

    def show(name, out):
        if "ip" in name.split() or "ip+polish" in name:
            x, r, n = (np.asarray(v) for v in out)
            return f"residual {r.max():.1e} iterations {n.max()} sum {x.sum():.6f}"
        if "newton" in name:
            return f"iterations {int(out[2])} sum {float(out[0].sum()):.6f}"
        if name.startswith(("kernel", "library")) and "cagrad" in name:
            return f"iterations {int(out[3])} gap {float(out[2]):.1e} sum {float(out[0].sum()):.6f}"
        if "factor" in name:
            missed = np.abs(np.asarray(cosines) @ np.asarray(out[0]) - np.asarray(linear)).max()
            return f"missed {missed:.1e}"
        return ""

    timed(f"T = {num_tasks}", jobs, rounds, show)


@tried
def small_costs(rounds):
    x, matrix = jnp.ones(8), jnp.eye(32) * 2
    turns = jnp.asarray(32, jnp.int32)

    def body(_, x):
        return jnp.cos(x) * jnp.sum(x)

    def fixed(x):
        return jax.lax.fori_loop(0, 32, body, x)

    def counted(x, turns):
        return jax.lax.fori_loop(0, turns, body, x)

    def one(x):
        return body(0, x)

    def unrolled(x):
        for _ in range(32):
            x = body(0, x)
        return x

    def conditional(x):
        return jax.lax.cond(x[0] > 0, lambda x: x + 1, lambda x: x * 2, x)

    def factor(matrix):
        return jnp.linalg.cholesky(matrix, symmetrize_input=False)

    def solve(matrix, x):
        return jax.lax.linalg.triangular_solve(matrix, x, left_side=True, lower=True)

    wide = jnp.ones((32, 1))
    E = jax.lax.linalg.EighImplementation
    jobs = {
        "one reduction": (one, (x,)),
        "32 turns, count known": (fixed, (x,)),
        "32 turns, count read": (counted, (x, turns)),
        "32 turns, unrolled": (unrolled, (x,)),
        "cond": (conditional, (x,)),
        "cholesky 32": (factor, (matrix,)),
        "triangular_solve 32": (solve, (matrix, wide)),
        "matmul 32": (lambda m: jnp.matmul(m, m, precision="highest"), (matrix,)),
    }
    for size in (8, 32, 128):
        gramian, _ = data(size)
        for name in ("QR", "JACOBI"):
            how = getattr(E, name, None)
            if how is not None:
                jobs[f"eigh {size} {name}"] = (
                    functools.partial(jax.lax.linalg.eigh, symmetrize_input=False, implementation=how),
                    (gramian,),
                )
        jobs[f"eigh {size} default"] = (functools.partial(jax.lax.linalg.eigh, symmetrize_input=False), (gramian,))
    timed("small costs", jobs, rounds)


# ------------------------------------------------------------------ Gramian
def chunked(losses_fn, shared, chunk):
    """One-hot cotangents, a chunk at a time."""

    def gradient(params, batch):
        trunk = params["trunk"]
        losses, pull = jax.vjp(lambda t: losses_fn(params | {"trunk": t}, batch), trunk)
        names = list(losses)
        units = jnp.eye(len(names))

        def row(unit):
            return pull(dict(zip(names, unit, strict=True)))[0]

        rows = jax.lax.map(row, units, batch_size=chunk)
        gramian = sum(
            jnp.tensordot(r.reshape(len(names), -1), r.reshape(len(names), -1), ((1,), (1,)), precision="highest")
            for r in jax.tree.leaves(rows)
        )
        weights = dict(zip(names, 1 / jnp.sqrt(jnp.diagonal(gramian)), strict=True))
        return jax.grad(lambda p: sum(weights[n] * v for n, v in losses_fn(p, batch).items()))(params)

    return gradient


def split(chunk, precision="highest", combine="pull"):
    """Heads one by one, the trunk a chunk of tasks at a time."""

    def trunk_fn(trunk, x):
        for layer in trunk:
            x = jax.nn.relu(x @ layer["w"] + layer["b"])
        return x

    def head_loss(head, hidden, labels):
        logits = hidden @ head["w"] + head["b"]
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
        return -jnp.mean(log_p)

    def gradient(params, batch):
        hidden, pull = jax.vjp(lambda t: trunk_fn(t, batch["x"]), params["trunk"])
        names = list(params["heads"])
        found = [jax.grad(head_loss, argnums=(0, 1))(params["heads"][n], hidden, batch["y"][n]) for n in names]
        cotangents = jnp.stack([f[1] for f in found])

        def row(cotangent):
            return pull(cotangent)[0]

        rows = jax.vmap(row)(cotangents) if chunk == 0 else jax.lax.map(row, cotangents, batch_size=chunk)
        flat = [r.reshape(len(names), -1) for r in jax.tree.leaves(rows)]
        gramian = sum(jnp.tensordot(r, r, ((1,), (1,)), precision=precision) for r in flat)
        weights = 1 / jnp.sqrt(jnp.diagonal(gramian))
        if combine == "pull":
            trunk = row(jnp.tensordot(weights, cotangents, 1))
        else:
            trunk = jax.tree.map(lambda r: jnp.tensordot(weights, r, 1, precision="highest"), rows)
        heads = {n: jax.tree.map(lambda g, w=w: w * g, f[0]) for n, f, w in zip(names, found, weights, strict=True)}
        return {"trunk": trunk, "heads": heads}

    return gradient


@tried
def gramian_table(name, widths, size, num_tasks, ways, rounds):
    params = _models.init(num_tasks, widths)
    batch = _models.batch(num_tasks, widths[0], size)

    def losses_fn(params, batch):
        return _models.losses_and_kpis(params, batch)[0]

    def plain(params, batch):
        return jax.grad(lambda p: sum(losses_fn(p, batch).values()))(params)

    def way(mode):
        make = task_gradients(losses_fn, shared={"trunk": True, "heads": False}, gramian=mode)

        def gradient(params, batch):
            gradients = make(params, batch)
            return gradients.combine(1 / jnp.sqrt(jnp.diagonal(gradients.gramian())))

        return gradient

    def gram_only(precision):
        def product(rows):
            return jnp.tensordot(rows, rows, ((1,), (1,)), precision=precision)

        return product

    def trunk_pass(params, batch):
        # A backward pass of the trunk alone, and its forward pass.
        def trunk(trunk):
            x = batch["x"]
            for layer in trunk:
                x = jax.nn.relu(x @ layer["w"] + layer["b"])
            return jnp.sum(x)

        return jax.grad(trunk)(params["trunk"])

    count = sum(leaf.size for leaf in jax.tree.leaves(params["trunk"]))
    rows = jax.random.normal(jax.random.key(0), (num_tasks, min(count, 2**25)))
    builders = {
        "plain": plain,
        "trunk pass": trunk_pass,
        "present switch": way("switch"),
        "present vmap": way("vmap"),
        "present map": way("map"),
        "one-hot chunk 4": chunked(losses_fn, None, 4),
        "one-hot chunk 8": chunked(losses_fn, None, 8),
        "one-hot chunk 20": chunked(losses_fn, None, 20),
        "split map": split(1),
        "split chunk 4": split(4),
        "split chunk 8": split(8),
        "split chunk 8, kept": split(8, combine="kept"),
        "split chunk 8, high": split(8, precision="high"),
        "split chunk 20": split(20),
        "split all": split(0),
        "split all, high": split(0, precision="high"),
    }
    jobs = {way: (builders[way], (params, batch)) for way in ways}
    for precision in ("highest", "high", "default"):
        jobs[f"gram product {rows.shape} {precision}"] = (gram_only(precision), (rows,))
    programs = {}
    for way, value in compile_all(jobs).items():
        programs[way] = value[0]
        out = None
        del out
        say(f"   {way}: compile {value[3]:.1f} s")
    times = interleaved(programs, rounds=rounds, min_seconds=0.01, max_seconds=8.0)
    say("==", name, "T =", num_tasks, "parameters of the trunk", count)
    for way, seconds in times.items():
        say(f"   {way:34s} {seconds * 1e3:9.3f} ms   / plain {seconds / times.get('plain', np.nan):.2f}")


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--out", default=None)
    parser.add_argument("--seconds", type=float, default=200.0)
    args = parser.parse_args(argv)
    say(jax.__version__, jax.devices())
    interpret = jax.default_backend() == "cpu"
    rounds = 3 if args.short else 9

    def save():
        if args.out:
            path = pathlib.Path(args.out) / "prototypes.txt"
            path.write_text("\n".join(LOG))

    small, wide = ((64, 512, 512), 256), ((1024, 4096, 4096), 2048)
    if args.short:
        small, wide = ((16, 32, 32), 8), ((16, 32, 32), 8)
    many = 4 if args.short else 40
    ways = ["plain", "trunk pass", "present switch", "present vmap", "one-hot chunk 8",
            "split map", "split chunk 4", "split chunk 8", "split chunk 8, kept",
            "split chunk 20", "split all"]  # fmt: skip
    wide_ways = ["plain", "trunk pass", "present switch", "one-hot chunk 4", "split map",
                 "split chunk 4", "split chunk 8", "split chunk 8, high", "split chunk 20"]  # fmt: skip
    parts = [
        lambda: solver_tables(8, (1, 2, 4), interpret, rounds),
        lambda: solver_tables(32, (1, 2, 4, 8), interpret, rounds),
        lambda: gramian_table("small net", *small, many, ways, 5),
        lambda: gramian_table("wide net", *wide, many, wide_ways, 3),
        lambda: solver_tables(128, (8, 16), interpret, 5),
        lambda: small_costs(rounds),
        lambda: solver_tables(2, (1,), interpret, rounds),
    ]
    if args.short:
        parts = [
            lambda: solver_tables(4, (1,), interpret, 1),
            lambda: small_costs(1),
            lambda: gramian_table("small net", *small, many, ways, 1),
            lambda: gramian_table("wide net", *wide, many, wide_ways, 1),
        ]
    for part in parts:
        if time.perf_counter() - START > args.seconds:
            say("out of time")
            break
        part()
        save()
    say("done")
    save()
    # A compilation that is still at work must not keep the process.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
