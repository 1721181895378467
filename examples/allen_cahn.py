"""An equation in time: a network that fits the end before the start is lost.

A network that has seen no data solves the Allen-Cahn equation ``u_t = 0.0001 u_xx +
5 u - 5 u^3`` for t in [0, 1], periodic in x on [-1, 1), from ``u = x^2 cos(pi x)`` on.
Start and period are built in, so that what is left is the residual of the equation, at
points of a fixed grid. Zero has no residual at all, and a network with equal weights
comes close to it: it gives up the start for the end. Run it with

    python -m examples.allen_cahn

and look at ``outputs/allen_cahn``. The reference is a spectral method of fourth order
in time, in float64. A method is one line of `methods_to_compare`; with losses of times
or of points as tasks, whose weights start from ``1 / N``, the mean::

    mean = balancers.constant(1 / NUM_TIMES)
    link = balance(optax.chain(mean, balancers.causal(10.0)), NUM_TIMES)

Every method sees the same initial parameters and the same points, with Adam at the same
falling rate. None was tuned; two settings of the causal weights are shown, since they
hang on their tolerance.
"""

import argparse
import itertools
import textwrap
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from tqdm import tqdm

from dtp_jax import balance, balancers, combiners, task_gradients
from examples._contest import with_error
from examples._tables import markdown

DIFFUSION, REACTION = 1e-4, 5.0
NUM_TIMES, NUM_PLACES = 24, 32
NUM_POINTS = NUM_TIMES * NUM_PLACES
NUM_QUARTERS = 4  # of the time, of which a step of momentum ConFIG takes one
WIDTH, DEPTH, NUM_WAVES = 64, 3, 5
RATE = 1e-3
LADDER = (1.0, 10.0, 100.0)
MEASUREMENTS = 20


class Method(NamedTuple):
    """A method and what it takes for a task."""

    link: Callable[[], optax.GradientTransformation]
    tasks: str  # "times", "points" or "quarters", one of these a step


def methods_to_compare() -> dict[str, Method]:
    """The methods by name."""

    def of(number: int, *rules: Any) -> Any:
        mean = balancers.constant(1 / number)
        return lambda: balance(optax.chain(mean, *rules), number)

    momentum_config = combiners.one_at_a_time(NUM_QUARTERS, balancers.config())
    return {
        "equal weights": Method(of(NUM_TIMES), "times"),
        "causal, tolerance 10": Method(of(NUM_TIMES, balancers.causal(10.0)), "times"),
        "causal, ladder to 100": Method(
            of(NUM_TIMES, balancers.causal(LADDER)), "times"
        ),
        "residual attention": Method(
            of(NUM_POINTS, balancers.residual_attention()), "points"
        ),
        "equal, a quarter a step": Method(optax.identity, "quarters"),
        "momentum ConFIG": Method(lambda: momentum_config, "quarters"),
    }


def start(x: Any) -> Any:
    """U at time zero."""
    return x**2 * jnp.cos(jnp.pi * x)


def reference(
    num_places: int = 256, num_steps: int = 2000, num_times: int = 100
) -> Any:
    """The solution by the exponential Runge-Kutta method of Cox and Matthews.

    Coefficients are means over a circle in the complex plane (Kassam and Trefethen,
    2005), which keeps their digits.

    Args:
        num_places: Of the periodic grid.
        num_steps: In time, a multiple of `num_times`.
        num_times: After the start.

    Returns:
        Times ``[E + 1]``, places ``[N]`` and u ``[E + 1, N]``, in float64.
    """
    x = 2 * np.arange(num_places) / num_places - 1
    waves = np.pi * np.fft.fftfreq(num_places, 1 / num_places)
    step = 1 / num_steps
    linear = step * (REACTION - DIFFUSION * waves**2)
    circle = np.exp(1j * np.pi * (np.arange(1, 33) - 0.5) / 32)
    z = linear[:, None] + circle

    def mean(values: np.ndarray) -> np.ndarray:
        return step * values.mean(axis=1).real

    half = mean((np.exp(z / 2) - 1) / z)
    first = mean((-4 - z + np.exp(z) * (4 - 3 * z + z**2)) / z**3)
    middle = mean((2 + z + np.exp(z) * (z - 2)) / z**3)
    last = mean((-4 - 3 * z - z**2 + np.exp(z) * (4 - z)) / z**3)
    whole, part = np.exp(linear), np.exp(linear / 2)

    def reaction(v: np.ndarray) -> np.ndarray:
        return -REACTION * np.fft.fft(np.fft.ifft(v).real ** 3)

    v = np.fft.fft(x**2 * np.cos(np.pi * x))
    found = [np.fft.ifft(v).real]
    for number in range(1, num_steps + 1):
        a_rate = reaction(v)
        a = part * v + half * a_rate
        b_rate = reaction(a)
        b = part * v + half * b_rate
        c_rate = reaction(b)
        c = part * a + half * (2 * c_rate - a_rate)
        v = whole * v + first * a_rate + 2 * middle * (b_rate + c_rate)
        v = v + last * reaction(c)
        if number % (num_steps // num_times) == 0:
            found.append(np.fft.ifft(v).real)
    return np.linspace(0, 1, num_times + 1), x, np.array(found)


def init_params(key: jax.Array) -> list[dict[str, jax.Array]]:
    """Dense layers from a time and waves in x to one number."""
    sizes = [1 + 2 * NUM_WAVES, *[WIDTH] * DEPTH, 1]
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {"w": jax.random.normal(k, shape) / np.sqrt(shape[0]), "b": jnp.zeros(shape[1])}
        for k, shape in zip(keys, itertools.pairwise(sizes), strict=True)
    ]


def network(params: Any, t: jax.Array, x: jax.Array) -> tuple[jax.Array, ...]:
    """A network at points ``[N]``, and its derivatives by t, by x and twice by x.

    They go forward through the layers together, as rows of one matrix.
    """
    waves = jnp.pi * jnp.arange(1, NUM_WAVES + 1)
    angles = x[:, None] * waves
    cos, sin, zero = jnp.cos(angles), jnp.sin(angles), jnp.zeros_like(angles)
    one = jnp.ones_like(t)[:, None]
    rows = jnp.concatenate(
        [
            jnp.concatenate([t[:, None], cos, sin], axis=1),
            jnp.concatenate([one, zero, zero], axis=1),
            jnp.concatenate([0 * one, -waves * sin, waves * cos], axis=1),
            jnp.concatenate([0 * one, -(waves**2) * cos, -(waves**2) * sin], axis=1),
        ]
    )
    for layer in params[:-1]:
        value, by_t, by_x, twice = jnp.split(rows @ layer["w"], 4)
        value = jnp.tanh(value + layer["b"])
        slope = 1 - value**2
        twice = slope * (twice - 2 * value * by_x**2)
        rows = jnp.concatenate([value, slope * by_t, slope * by_x, twice])
    value, by_t, by_x, twice = jnp.split((rows @ params[-1]["w"])[:, 0], 4)
    return value + params[-1]["b"], by_t, by_x, twice


def solution(params: Any, t: jax.Array, x: jax.Array) -> jax.Array:
    """The network's u at points ``[N]``, which starts as it must."""
    return start(x) + t * network(params, t, x)[0]


def squares(params: Any, t: jax.Array, x: jax.Array) -> jax.Array:
    """Squared residuals of the equation at points ``[N]``."""
    value, by_t, _, twice = network(params, t, x)
    u = start(x) + t * value
    cos, sin = jnp.cos(jnp.pi * x), jnp.sin(jnp.pi * x)
    of_start = 2 * cos - 4 * jnp.pi * x * sin - (jnp.pi * x) ** 2 * cos
    u_xx = of_start + t * twice
    return (value + t * by_t - DIFFUSION * u_xx - REACTION * (u - u**3)) ** 2


def grid() -> tuple[jax.Array, jax.Array]:
    """Times and places of the points ``[NUM_POINTS]``, time by time."""
    times = (jnp.arange(NUM_TIMES) + 0.5) / NUM_TIMES
    places = 2 * jnp.arange(NUM_PLACES) / NUM_PLACES - 1
    # Shifted from time to time, so that they do not miss the same waves.
    places = places + 2 * jnp.arange(NUM_TIMES)[:, None] * 0.618 % (2 / NUM_PLACES)
    return jnp.repeat(times, NUM_PLACES), places.reshape(-1)


class Run(NamedTuple):
    """What one seed of a method did."""

    errors: np.ndarray  # [E], relative to the reference, in percent
    loss: float  # the mean square of the residual at the end
    seconds: float
    solution: np.ndarray  # like the reference


def train(method: Method, seed: int, num_steps: int, truth: Any) -> Run:
    """Trains a network.

    One task a step means as many more steps, so that as many points are seen.
    """
    times, places, exact = truth
    points = grid()
    turns = NUM_QUARTERS if method.tasks == "quarters" else 1
    rate = optax.cosine_decay_schedule(RATE, num_steps * turns)
    tx = optax.with_extra_args_support(optax.chain(method.link(), optax.adam(rate)))

    def losses_fn(params: Any) -> jax.Array:
        found = squares(params, *points)
        return (
            found if method.tasks == "points" else found.reshape(NUM_TIMES, -1).mean(1)
        )

    def loss_of_quarter(params: Any, quarter: jax.Array) -> jax.Array:
        t, x = (p.reshape(NUM_QUARTERS, -1)[quarter] for p in points)
        return jnp.mean(squares(params, t, x))

    def step(carry: Any, number: jax.Array) -> tuple[Any, None]:
        params, state = carry
        if method.tasks == "quarters":
            quarter = number % NUM_QUARTERS
            gradient = jax.grad(loss_of_quarter)(params, quarter)
            updates, state = tx.update(gradient, state, params, task=quarter)
        else:
            gradients: Any = task_gradients(losses_fn)(params)
            updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    t, x = (jnp.asarray(a.ravel()) for a in np.meshgrid(times, places, indexing="ij"))

    @jax.jit
    def part(carry: Any, numbers: jax.Array) -> Any:
        carry, _ = jax.lax.scan(step, carry, numbers)
        return carry, solution(carry[0], t, x), jnp.mean(squares(carry[0], *points))

    params = init_params(jax.random.key(seed))
    carry, errors, began = (params, tx.init(params)), [], time.perf_counter()
    found, loss = np.zeros(exact.size), np.inf
    for numbers in jnp.arange(num_steps * turns).reshape(MEASUREMENTS, -1):
        carry, found, loss = jax.device_get(part(carry, numbers))
        off = np.linalg.norm(found - exact.ravel()) / np.linalg.norm(exact)
        errors.append(100 * off)
    seconds = time.perf_counter() - began
    return Run(np.array(errors), float(loss), seconds, found.reshape(exact.shape))


def table(runs: dict[str, list[Run]]) -> str:
    """Errors, means and standard errors over the seeds."""
    rows = [["method", "tasks", "error in %", "residual", "time / equal"]]
    methods = methods_to_compare()
    equal = np.median([run.seconds for run in runs["equal weights"]])
    for name, of in runs.items():
        errors = np.array([run.errors[-1] for run in of])
        residual = np.median([run.loss for run in of])
        seconds = np.median([run.seconds for run in of])
        cells = [with_error(errors), f"{residual:.1e}", f"{seconds / equal:.2f}"]
        rows.append([name, methods[name].tasks, *cells])
    return markdown(rows)


def report(runs: dict[str, list[Run]], num_steps: int) -> str:
    """The table and how to read it."""
    number = len(next(iter(runs.values())))
    notes = f"""
        Error: norm of the difference from the spectral reference in percent of its
        norm, at the end, mean and standard error over {number} seeds, which vary
        initial parameters. Residual: its mean square at the {NUM_POINTS} points.
        {num_steps} steps of Adam, learning rate {RATE:g}, falling to zero like a
        cosine. The last two take a quarter of the time in each of four times as many
        steps, so that as many points are seen. Times include compiling.
    """
    text = textwrap.fill(" ".join(notes.split()), 88)
    return f"{table(runs)}\n\n{text}\n"


def plot(out: Path, runs: dict[str, list[Run]], truth: Any, num_steps: int) -> None:
    """Draws the solutions of the first seed, and errors over the training."""
    times, places, exact = truth
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    shown = {"reference": exact} | {
        name: runs[name][0].solution
        for name in ("equal weights", "causal, tolerance 10", "momentum ConFIG")
    }
    for axis, (name, values) in zip(axes, shown.items(), strict=False):
        image = axis.pcolormesh(
            times, places, values.T, cmap="RdBu_r", vmin=-1, vmax=1, shading="nearest"
        )
        axis.set(title=name, xlabel="time", ylabel="x")
        figure.colorbar(image, ax=axis)
    at_end = axes[4]
    for name, values in shown.items():
        at_end.plot(places, values[-1], label=name)
    at_end.set(title="at the end", xlabel="x", ylabel="u")
    at_end.legend(fontsize=7)
    steps = num_steps * np.arange(1, MEASUREMENTS + 1) / MEASUREMENTS
    for name, of in runs.items():
        median = np.median([run.errors for run in of], axis=0)
        axes[5].semilogy(steps, median, label=name)
    axes[5].set(title="error in %, median", xlabel="steps, or four of a quarter")
    axes[5].legend(fontsize=7)
    figure.savefig(out / "allen_cahn.png", dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, prints the table and writes it and the figure."""
    parser = argparse.ArgumentParser(description="The Allen-Cahn equation in time.")
    parser.add_argument("--out", type=Path, default=Path("outputs/allen_cahn"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seeds", type=int, default=3, help="2 or more")
    args = parser.parse_args(argv)
    if args.steps < MEASUREMENTS or args.steps % MEASUREMENTS or args.seeds < 2:
        parser.error(
            f"--steps must be a multiple of {MEASUREMENTS}, --seeds at least 2"
        )
    began = time.perf_counter()
    truth = reference()
    methods = methods_to_compare()
    with (
        ThreadPoolExecutor(2) as pool,
        tqdm(total=len(methods) * args.seeds, unit="run") as progress,
    ):

        def run(name: str, seed: int) -> Run:
            found = train(methods[name], seed, args.steps, truth)
            progress.update()
            return found

        started = {
            name: [pool.submit(run, name, seed) for seed in range(args.seeds)]
            for name in methods
        }
        runs = {name: [each.result() for each in of] for name, of in started.items()}
    text = report(runs, args.steps)
    print(f"\n{text}")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.md").write_text(text, encoding="utf-8")
    plot(args.out, runs, truth, args.steps)
    print(f"It took {time.perf_counter() - began:.0f} s. See {args.out}.")


if __name__ == "__main__":
    main()
