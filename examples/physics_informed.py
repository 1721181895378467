"""A physics-informed network: the equation and the boundary compete for its weights.

A network that has seen no data solves the Helmholtz equation ``laplace(u) + k^2 u = q``
on the square [-1, 1]^2 with ``u = 0`` on its sides. Three losses, mean squares all, are
three tasks: the residual of the equation, and u on the two sides of each axis. A wave
within makes the residual large and steep, so that with equal weights the sides starve.
The source q belongs to a known solution, to compare with. Run it with

    python -m examples.physics_informed

and look at ``outputs/physics_informed``. A method is one line of `methods_to_compare`;
the rest of the training step does not change with it::

    link = balance(balancers.config(), TASKS)
    tx = optax.chain(link, optax.adam(rate))

    gradients = task_gradients(losses_fn)(params, points)
    updates, opt_state = tx.update(gradients, opt_state, params, kpis=kpis)
    params = optax.apply_updates(params, updates)

Every method sees the same initial parameters and points, with Adam at the same learning
rate, which ``--rate`` changes. Each run tunes the fixed weights, on other seeds, by the
error against the known solution, which in practice nobody has. All else runs at the
settings of its paper, or of the library where the paper has none.
"""

import argparse
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from matplotlib.figure import Figure
from tqdm import tqdm

from dtp_jax import (
    Balancer,
    balance,
    balancers,
    curricula,
    diagnostics,
    dynamic_task_prioritization,
    plot,
    task_gradients,
)
from examples import _plots

TASKS = ("residual", "x_sides", "y_sides")
WAVES = (1, 2)  # half periods of the solution from 0 to 1 along x and y
WAVENUMBER = 1.0
WIDTH, DEPTH = 40, 3
NUM_POINTS = {"residual": 128, "x_sides": 32, "y_sides": 32}  # of each step
# Of the sides, where the residual counts one.
GRID = (10.0, 100.0, 1000.0)
TUNING_SEEDS = 3
# All methods train in turns, a short round of steps each, in an order that rotates. A
# busy machine then slows all of them, and their relative times mean something.
ROUNDS = 20
# Gradients of single points are dear: the kernels are traced at a few of each task.
TRACE_POINTS = 16
SHOWN = ("DTP, relative", "uncertainty", "lr_annealing, mean", "ntk")  # in weights.png
# What a method reads, and the colour that says so in the plot.
READS = {
    "nothing": _plots.BLACK,
    "losses": _plots.BLUE,
    "KPIs": _plots.GREEN,
    "gradients": _plots.RED,
}


class Points(NamedTuple):
    """Points ``[N, 2]`` of a step, new ones in each."""

    residual: Any
    x_sides: Any
    y_sides: Any


def solution(points: jax.typing.ArrayLike) -> jax.Array:
    """The solution at points ``[..., 2]``: a product of sines."""
    return jnp.prod(jnp.sin(jnp.pi * jnp.array(WAVES) * points), axis=-1)


def source(points: jax.typing.ArrayLike) -> jax.Array:
    """The right-hand side q at points ``[..., 2]``, which belongs to the solution."""
    return _SYMBOL * solution(points)


def network(params: Any, points: Any) -> jax.Array:
    """The network u at points ``[..., 2]``."""
    *hidden, last = params
    features = jnp.asarray(points)
    for layer in hidden:
        features = jnp.tanh(features @ layer["w"] + layer["b"])
    return (features @ last["w"] + last["b"])[..., 0]


def network_and_laplacian(params: Any, points: Any) -> tuple[jax.Array, jax.Array]:
    """The network and the sum of its second derivatives at points ``[N, 2]``.

    Values, slopes along x and y and Laplacians go forward through the layers together,
    as rows of one matrix.
    """
    size = len(points)
    slopes = jnp.repeat(jnp.eye(2), size, axis=0)
    rows = jnp.concatenate([points, slopes, jnp.zeros((size, 2))])
    *hidden, last = params
    for layer in hidden:
        value, dx, dy, laplacian = jnp.split(rows @ layer["w"], 4)
        value = jnp.tanh(value + layer["b"])
        # tanh' = 1 - tanh^2 and tanh'' = -2 tanh tanh'.
        bent = laplacian - 2 * value * (dx**2 + dy**2)
        first = 1 - value**2
        rows = jnp.concatenate([value, first * dx, first * dy, first * bent])
    out = (rows @ last["w"])[:, 0]
    return out[:size] + last["b"], out[3 * size :]


def residuals(params: Any, points: Points) -> dict[str, jax.Array]:
    """What each task wants to be zero, at each of its points."""
    u, laplacian = network_and_laplacian(params, points.residual)
    return {
        "residual": laplacian + WAVENUMBER**2 * u - source(points.residual),
        "x_sides": network(params, points.x_sides),
        "y_sides": network(params, points.y_sides),
    }


def losses_fn(params: Any, points: Points) -> dict[str, jax.Array]:
    """The mean square of the residuals of each task."""
    found = residuals(params, points)
    return {task: jnp.mean(residual**2) for task, residual in found.items()}


def kpis_of(losses: dict[str, Any], scales: dict[str, float]) -> dict[str, jax.Array]:
    """KPIs made from losses: one without any loss, falling to 0.05 at three scales."""
    return {
        task: jnp.exp(-jnp.clip(loss / scales[task], 0, 3))
        for task, loss in losses.items()
    }


class Method(NamedTuple):
    """A way to train."""

    link: Balancer | None  # None is plain training on the sum of the losses
    reads: str  # a key of READS
    weights: Any = None  # [T] or [R, T], of a link made by `fixed`
    traces: bool = False  # whether the step offers gradients of single points
    scales: dict[str, float] = dict.fromkeys(TASKS, 1.0)  # of the losses in the KPIs


def fixed(weights: Any) -> Method:
    """Fixed weights, which may differ between the networks that train together.

    They live in the state. The link starts from ones; `train` puts the weights in.
    """

    def constant(residual: Any, x_sides: Any, y_sides: Any) -> Balancer:
        weights = {"residual": residual, "x_sides": x_sides, "y_sides": y_sides}
        return balancers.constant(weights)

    ones = dict.fromkeys(TASKS, 1.0)
    link = optax.inject_hyperparams(constant)(**ones)
    return Method(balance(link, TASKS), "nothing", weights)


def methods_to_compare(weights: Any) -> dict[str, Method]:
    """Equal weights first: times are relative to those of the first method."""
    by_losses = {
        # The plain variant is for losses of one scale.
        "soft_adapt": balancers.soft_adapt(variant="normalized"),
        # The paper's settings for its Helmholtz problem.
        "relobralo": balancers.relobralo(
            alpha=0.99, temperature=1e-5, rho=0.99, seed=0
        ),
        "dwa": balancers.dwa(),
        "uncertainty": balancers.uncertainty(),
        "imtl_l": balancers.imtl_l(),
        "famo": balancers.famo(),
    }
    by_gradients = {
        "lr_annealing": balancers.lr_annealing("residual", refresh_every=10),
        "lr_annealing, mean": balancers.lr_annealing(
            "residual", statistic="mean", refresh_every=10
        ),
        "grad_norm": balancers.grad_norm(refresh_every=10),
        "grad_norm, softmax": balancers.grad_norm(
            parametrization="softmax", refresh_every=10
        ),
        "ntk": balancers.ntk(refresh_every=100),
        "ntk, rates": balancers.ntk(refresh_every=10, decay=0.9),
        "config": balancers.config(),
        "config, every 10": curricula.every_k(balancers.config(), 10),
        "upgrad": balancers.upgrad(),
    }
    dtp = dynamic_task_prioritization(TASKS)
    # The mean squares of the source and, on the sides, of the solution.
    relative = {"residual": _SYMBOL**2 / 4, "x_sides": 0.25, "y_sides": 0.25}
    methods = {
        "equal weights": Method(None, "nothing"),
        "fixed weights": fixed(weights),
        "DTP": Method(dtp, "KPIs"),
        "DTP, relative": Method(dtp, "KPIs", scales=relative),
    }
    for reads, found in (("losses", by_losses), ("gradients", by_gradients)):
        for name, balancer in found.items():
            methods[name] = Method(balance(balancer, TASKS), reads)
    # The paper's traces. Without them `ntk` goes by the gradients of the losses.
    methods["ntk"] = methods["ntk"]._replace(traces=True)
    return methods


def optimizer(method: Method, rate: float, num_steps: int) -> Any:
    """The optimizer of all methods; only its first link differs."""
    adam = optax.adam(optax.cosine_decay_schedule(rate, num_steps))
    return optax.chain(method.link or optax.identity(), adam)


def train_step(
    method: Method, tx: Any, params: Any, opt_state: Any, points: Points
) -> tuple[Any, Any, Any]:
    """One step; the third output are the task weights."""
    if method.link is None:
        gradient = jax.grad(lambda params: sum(losses_fn(params, points).values()))
        updates, opt_state = tx.update(gradient(params), opt_state, params)
        weights = dict.fromkeys(TASKS, jnp.ones(()))
        return optax.apply_updates(params, updates), opt_state, weights
    gradients = task_gradients(losses_fn)(params, points)
    more: dict[str, Any] = {"kpis": kpis_of(gradients.losses, method.scales)}
    if method.traces:
        few = Points(*(column[:TRACE_POINTS] for column in points))
        at_points = task_gradients(residuals, gramian="vmap")
        more["residual_gradients"] = at_points(params, few)
    updates, opt_state = tx.update(gradients, opt_state, params, **more)
    weights = diagnostics.task_weights(opt_state)
    return optax.apply_updates(params, updates), opt_state, weights


def network_axes(opt_state: Any) -> Any:
    """Axes of the networks for `jax.vmap`, 0 but None for the counters of refreshes.

    These are the same in all networks. Were they mapped, too, every step would compute
    what only each tenth one needs.
    """

    def axis(path, leaf):
        del leaf
        return None if getattr(path[-1], "name", None) == "step" else 0

    return jax.tree_util.tree_map_with_path(axis, opt_state)


def compile_round(method: Method, tx: Any, axes: Any) -> Any:
    """Some steps of R networks at a time."""

    def train_round(params, opt_state, points):
        def body(carry, points):
            params, opt_state = carry
            *carry, weights = train_step(method, tx, params, opt_state, points)
            return tuple(carry), weights

        carry, weights = jax.lax.scan(body, (params, opt_state), points)
        return *carry, weights

    mapped = jax.vmap(train_round, in_axes=(0, axes, 0), out_axes=(0, axes, 0))
    return jax.jit(mapped)


def draw_points(rng: np.random.Generator, num_steps: int) -> Points:
    """Random points of some steps, ``[num_steps, N, 2]``."""
    drawn = {
        task: rng.uniform(-1, 1, (num_steps, number, 2)).astype(np.float32)
        for task, number in NUM_POINTS.items()
    }
    for axis, task in enumerate(TASKS[1:]):
        side = drawn[task][..., axis]
        side[:] = np.where(np.arange(side.shape[-1]) % 2, 1, -1)
    return Points(**drawn)


def init_params(key: jax.Array) -> Any:
    """Glorot's initialization."""
    sizes = [2, *[WIDTH] * DEPTH, 1]
    keys = jax.random.split(key, len(sizes) - 1)
    params = []
    for key, inputs, outputs in zip(keys, sizes[:-1], sizes[1:], strict=True):
        kernel = jax.random.normal(key, (inputs, outputs))
        scale = jnp.sqrt(2 / (inputs + outputs))
        params.append({"w": scale * kernel, "b": jnp.zeros(outputs)})
    return params


class Run(NamedTuple):
    """What a method has done with R networks, N steps each."""

    params: Any  # leaves [R, ...]
    weights: dict[str, np.ndarray]  # [R, N]
    seconds: np.ndarray  # [rounds]


def train(
    methods: dict[str, Method], seeds: Sequence[int], rate: float, num_steps: int
) -> dict[str, Run]:
    """Trains all methods in turns, a network for each seed at once.

    A seed stands for initial parameters and points, the same for every method.
    """
    initial = jax.jit(jax.vmap(lambda seed: init_params(jax.random.key(seed))))(
        np.array(seeds)
    )
    params = dict.fromkeys(methods, initial)
    states, rounds = {}, {}
    for name, method in methods.items():
        tx = optimizer(method, rate, num_steps)
        axes = network_axes(jax.eval_shape(tx.init, initial))
        state = jax.vmap(tx.init, out_axes=axes)(initial)
        if method.weights is not None:
            each = np.broadcast_to(method.weights, (len(seeds), len(TASKS)))
            columns = jnp.asarray(each.T, jnp.float32)
            named = dict(zip(TASKS, columns, strict=True))
            state = optax.tree.set(state, hyperparams=named)
        states[name] = state
        rounds[name] = compile_round(method, tx, axes)
    logs: dict[str, list[Any]] = {name: [] for name in methods}
    seconds: dict[str, list[float]] = {name: [] for name in methods}

    progress = tqdm(total=ROUNDS * len(methods), unit="round", mininterval=0.5)
    names = list(methods)
    for number in range(ROUNDS):
        generators = [np.random.default_rng((seed, number)) for seed in seeds]
        drawn = [draw_points(rng, num_steps // ROUNDS) for rng in generators]
        points = jax.device_put(jax.tree.map(lambda *x: np.stack(x), *drawn))
        first = number % len(names)
        for name in names[first:] + names[:first]:
            progress.set_description(name)
            start = time.perf_counter()
            params[name], states[name], log = jax.block_until_ready(
                rounds[name](params[name], states[name], points)
            )
            seconds[name].append(time.perf_counter() - start)
            logs[name].append(jax.device_get(log))
            progress.update()
    progress.close()

    runs = {}
    for name in methods:
        weights = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *logs[name])
        # The first round compiles.
        runs[name] = Run(params[name], weights, np.array(seconds[name][1:]))
    return runs


class Result(NamedTuple):
    """How well R networks solve the equation."""

    errors: np.ndarray  # [R], norm of the error in percent of that of the solution
    losses: dict[str, np.ndarray]  # [R], at many points
    fields: np.ndarray  # [R, 81, 81], u on a grid, x first


def evaluate(runs: dict[str, Run]) -> dict[str, Result]:
    """Compares the networks with the solution on a grid."""
    grid = _grid()
    truth = np.asarray(solution(grid))
    many = [
        column.reshape(-1, 2) for column in draw_points(np.random.default_rng(0), 32)
    ]

    @jax.jit
    @jax.vmap
    def measure(params):
        return network(params, grid), losses_fn(params, Points(*many))

    results = {}
    for name, run in runs.items():
        fields, losses = jax.device_get(measure(run.params))
        errors = np.linalg.norm(fields - truth, axis=(1, 2)) / np.linalg.norm(truth)
        results[name] = Result(100 * errors, losses, fields)
    return results


def tune_weights(
    rate: float, num_steps: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Fixed weights ``[T]`` with the least mean error, and all errors of the grid."""
    pairs = [(x, y) for x in GRID for y in GRID]
    weights = np.array([(1.0, *pair) for pair in pairs])
    each = np.repeat(weights, TUNING_SEEDS, axis=0)
    seeds = list(range(TUNING_SEEDS)) * len(weights)
    runs = train({"fixed weights": fixed(each)}, seeds, rate, num_steps)
    errors = evaluate(runs)["fixed weights"].errors.reshape(len(weights), TUNING_SEEDS)
    best = weights[errors.mean(axis=1).argmin()]
    rows = errors.reshape(len(GRID), len(GRID), TUNING_SEEDS).swapaxes(1, 2)
    return best, {f"x sides {x:g}": row for x, row in zip(GRID, rows, strict=True)}


def table_of(
    methods: dict[str, Method], runs: dict[str, Run], results: dict[str, Result]
) -> str:
    """The table of the methods."""
    names = ["reads", "error in %", "median", "residual", "sides", "weights", "time"]
    columns: dict[str, dict[str, str]] = {name: {} for name in names}
    base = next(iter(runs.values())).seconds
    for name, (errors, losses, _) in results.items():
        ratios = side_weights(runs[name])
        late = max(1, len(ratios["residual"][0]) // 10)
        cells = [
            methods[name].reads,
            f"{errors.mean():.1f} ± {errors.std(ddof=1):.1f}",
            f"{np.median(errors):.1f}",
            f"{np.median(losses['residual']):.2g}",
            f"{np.median(losses['x_sides'] + losses['y_sides']):.0e}",
            ", ".join(
                f"{np.median(ratios[task][:, -late:]):.2g}" for task in TASKS[1:]
            ),
            f"{np.median(runs[name].seconds / base):.2f}",
        ]
        for column, cell in zip(columns.values(), cells, strict=True):
            column[name] = cell
    # All columns are text: the table would take standard errors of numbers.
    return _plots.table({name: np.empty((2, 0)) for name in results}, (), columns)


def side_weights(run: Run) -> dict[str, np.ndarray]:
    """Weights relative to that of the residual; no more matters to Adam."""
    return {task: run.weights[task] / run.weights["residual"] for task in TASKS}


def main(argv: Sequence[str] | None = None) -> None:
    """Tunes the weights, trains, prints the tables and writes them and the plots."""
    parser = argparse.ArgumentParser(description="A physics-informed network.")
    parser.add_argument("--out", type=Path, default=Path("outputs/physics_informed"))
    parser.add_argument(
        "--steps", type=int, default=3000, help=f"a multiple of {ROUNDS}"
    )
    parser.add_argument("--seeds", type=int, default=5, help="2 or more")
    parser.add_argument("--rate", type=float, default=0.01, help="the learning rate")
    args = parser.parse_args(argv)
    if args.steps < ROUNDS or args.steps % ROUNDS or args.seeds < 2:
        parser.error(f"--steps must be a multiple of {ROUNDS}, --seeds at least 2")
    start = time.perf_counter()

    weights, tuning = tune_weights(args.rate, args.steps)
    tuning_seconds = time.perf_counter() - start
    methods = methods_to_compare(weights)
    seeds = [TUNING_SEEDS + number for number in range(args.seeds)]
    runs = train(methods, seeds, args.rate, args.steps)
    results = evaluate(runs)

    notes = f"""
        Error: norm of the difference from the solution in percent of the norm of the
        solution, mean and standard deviation over {args.seeds} seeds, which vary
        initial parameters and points, and their median; u = 0 has an error of 100.
        Residual and sides: the losses at the end, that of the sides summed, medians.
        Weights: those of the x and y sides relative to that of the residual, medians
        over the last tenth of the steps. Time: that of a step relative to plain
        training on the sum of the losses, all networks of a method at once, medians
        over {ROUNDS - 1} rounds that the methods ran in turns. {args.steps} steps of
        Adam, learning rate {args.rate:g}, falling to zero like a cosine. The fixed
        weights are the best of {len(GRID) ** 2} by the mean error over {TUNING_SEEDS}
        other seeds, which cost {len(GRID) ** 2 * TUNING_SEEDS} more runs
        ({tuning_seconds:.0f} s); no other method was tuned. The errors of that grid,
        means and standard errors:
    """
    report = "\n\n".join(
        [
            table_of(methods, runs, results),
            textwrap.fill(textwrap.dedent(notes).strip(), 88),
            _plots.table(tuning, [f"y sides {weight:g}" for weight in GRID], {}),
            f"The run took {time.perf_counter() - start:.0f} s.\n",
        ]
    )
    print(f"\n{report}")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.md").write_text(report, encoding="utf-8")
    plot_errors(args.out / "errors.png", methods, results)
    plot_fields(args.out / "solutions.png", results)
    shown = {name: side_weights(runs[name]) for name in SHOWN if name in runs}
    window = max(1, args.steps // 100)
    _plots.weights(args.out / "weights.png", shown, TASKS, window)
    print(f"Tables and plots are in {args.out}.")


def plot_errors(
    path: Path, methods: dict[str, Method], results: dict[str, Result]
) -> None:
    """Draws the error of each seed and their mean, a row for each method."""
    with plot.style():
        figure = Figure(figsize=(8, 0.27 * len(results) + 1.2))
        axis = figure.subplots()
        for reads, color in READS.items():
            rows = [n for n, name in enumerate(results) if methods[name].reads == reads]
            for row in rows:
                errors = list(results.values())[row].errors
                axis.hlines(row, errors.min(), errors.max(), color=color, linewidth=1)
                axis.plot(errors, np.full(len(errors), row), "|", color=color)
                label = f"reads {reads}" if row == rows[0] else None
                axis.plot(errors.mean(), row, "o", color=color, label=label)
        equal = next(iter(results.values())).errors.mean()
        for error, text in ((equal, "equal weights"), (100, "u = 0")):
            axis.axvline(error, color=_plots.GREY, linestyle=_plots.DASHED, zorder=0)
            axis.text(error, -0.9, f" {text}", color=_plots.GREY, va="bottom")
        axis.set(xscale="log", xlabel="error in percent, means and all seeds")
        axis.set_ylim(len(results) - 0.4, -0.8)
        axis.set_yticks(np.arange(len(results)), list(results))
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="y", visible=False)
        axis.xaxis.set_major_formatter("{x:g}")
        figure.legend(loc="outside lower center", ncols=len(READS))
        figure.savefig(path)


def plot_fields(path: Path, results: dict[str, Result]) -> None:
    """Draws the solution, and what equal weights and the best method make of it.

    Of each method the network with the median error.
    """
    equal, best = (
        next(iter(results)),
        min(results, key=lambda n: results[n].errors.mean()),
    )
    truth = np.asarray(solution(_grid()))
    images = [("solution", truth, 1.1)]
    for name in (equal, best):
        errors = results[name].errors
        number = int(np.argsort(errors)[len(errors) // 2])
        difference = results[name].fields[number] - truth
        images.append((f"{name}: {errors[number]:.1f} %", truth + difference, 1.1))
        reach = float(np.abs(difference).max())
        images.append(("minus the solution", difference, reach))
    with plot.style(), mpl.rc_context({"axes.grid": False}):
        figure = Figure(figsize=(10, 2.7))
        axes = figure.subplots(1, len(images), sharey=True)
        look: Any = {"origin": "lower", "extent": (-1, 1, -1, 1)}
        # Bands of one colour read like contours, and the file stays small.
        look["cmap"] = mpl.colormaps["RdBu_r"].resampled(15)
        for axis, (title, field, reach) in zip(axes, images, strict=True):
            shown = axis.imshow(field.T, vmin=-reach, vmax=reach, **look)
            axis.set(title=title, xticks=(-1, 0, 1), yticks=(-1, 0, 1))
            figure.colorbar(shown, ax=axis, orientation="horizontal")
        figure.savefig(path)


def _grid() -> np.ndarray:
    line = np.linspace(-1, 1, 81, dtype=np.float32)
    return np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1)


_SYMBOL = WAVENUMBER**2 - np.pi**2 * float(np.sum(np.square(WAVES)))


if __name__ == "__main__":
    main()
