"""Three tasks of unequal difficulty on images of two overlapping digits.

Compares fixed weights with Dynamic Task Prioritization (DTP). Run it with

    python -m examples.two_digits

and look at ``outputs/two_digits``. These are the lines that matter::

    tx = optax.chain(dynamic_task_prioritization(TASKS), optax.adam(1e-3))

    gradients, kpis = task_gradients(losses_fn, has_aux=True)(params, batch)
    updates, opt_state = tx.update(gradients, opt_state, params, kpis=kpis)
    params = optax.apply_updates(params, updates)

Every method sees the same initial parameters, batches and number of steps, with Adam at
the same learning rate. The rate was chosen for equal weights, then the fixed weights at
that rate, both on validation digits; ``--tune`` repeats the choice. The settings of DTP
are the library's defaults.
"""

import argparse
import functools
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from dtp_jax import (
    diagnostics,
    dynamic_task_prioritization,
    metrics,
    task_gradients,
)
from examples import _digits, _plots

TASKS = ("left", "right", "overlap")
COLUMNS = (*TASKS, "average")
EQUAL = {"left": 1.0, "right": 1.0, "overlap": 1.0}
# The best weights of `--tune` that are not equal, by the average KPI on the validation
# digits. Equal weights do as well there, up to noise: the losses are of similar size.
FIXED = {"left": 1.0, "right": 2.0, "overlap": 1.0}
LEARNING_RATE = 3e-3

NUM_PAIRS = {"train": 40_000, "validation": 2_000, "test": 4_000}
BATCH_SIZE = 64
# All methods train in turns, a short round of steps each, in an order that rotates. A
# busy machine then slows all of them, and their relative times mean something.
ROUNDS = 100


class Net(nnx.Module):
    """A shared trunk with one head for each task."""

    def __init__(self, rngs: nnx.Rngs, width: int = 128):
        """Makes the layers."""
        pixels = _digits.HEIGHT * _digits.WIDTH
        self.trunk = nnx.Sequential(
            nnx.Linear(pixels, width, rngs=rngs),
            nnx.relu,
            nnx.Linear(width, width, rngs=rngs),
            nnx.relu,
        )
        self.left = nnx.Linear(width, _digits.NUM_CLASSES, rngs=rngs)
        self.right = nnx.Linear(width, _digits.NUM_CLASSES, rngs=rngs)
        self.overlap = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        """Returns logits for the digits and a number for the overlap."""
        features = self.trunk(images.reshape(len(images), -1))
        return {
            "left": self.left(features),
            "right": self.right(features),
            "overlap": self.overlap(features)[:, 0],
        }


def losses_and_kpis(params: Any, batch: _digits.Pairs) -> tuple[Any, Any]:
    """One loss and one KPI in [0, 1] for each task."""
    out = nnx.merge(_graphdef(), params)(batch.images)
    scale = _digits.OVERLAP_SCALE
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    losses = {
        "left": cross_entropy(out["left"], batch.left).mean(),
        "right": cross_entropy(out["right"], batch.right).mean(),
        "overlap": jnp.mean(((out["overlap"] - batch.overlap) / scale) ** 2),
    }
    kpis = {
        "left": metrics.accuracy(out["left"], batch.left),
        "right": metrics.accuracy(out["right"], batch.right),
        "overlap": metrics.bounded_error(out["overlap"], batch.overlap, scale),
    }
    return losses, kpis


class Method(NamedTuple):
    """A way to train: an optimizer, and a step that returns KPIs and weights."""

    tx: optax.GradientTransformationExtraArgs
    step: Callable[..., Any]


def prioritized(learning_rate: float, **options: Any) -> Method:
    """Dynamic Task Prioritization."""
    tx = optax.chain(
        dynamic_task_prioritization(TASKS, **options), optax.adam(learning_rate)
    )

    def step(params, opt_state, batch):
        gradients, kpis = task_gradients(losses_and_kpis, has_aux=True)(params, batch)
        updates, opt_state = tx.update(gradients, opt_state, params, kpis=kpis)
        log = (kpis, diagnostics.task_weights(opt_state))
        return optax.apply_updates(params, updates), opt_state, log

    return Method(tx, step)


def weighted_sum(learning_rate: float, weights: dict[str, float]) -> Method:
    """Plain training on a fixed weighted sum of the losses."""
    tx = optax.with_extra_args_support(optax.adam(learning_rate))

    def total_loss(params, batch):
        losses, kpis = losses_and_kpis(params, batch)
        return sum(weights[task] * losses[task] for task in TASKS), kpis

    def step(params, opt_state, batch):
        gradient, kpis = jax.grad(total_loss, has_aux=True)(params, batch)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, (kpis, None)

    return Method(tx, step)


def methods_to_compare(num_steps: int) -> dict[str, Method]:
    """Equal weights first: times are relative to those of the first method."""
    easy_first = {
        0: ["left"],
        num_steps // 10: ["left", "right"],
        num_steps // 5: ["left", "right", "overlap"],
    }
    methods = {
        "equal weights": weighted_sum(LEARNING_RATE, EQUAL),
        "fixed weights": weighted_sum(LEARNING_RATE, FIXED),
    }
    variants = {
        "DTP gamma 1": {"gamma": 1.0},
        "DTP gamma 2": {"gamma": 2.0},
        "DTP stages": {"gamma": 2.0, "stages": easy_first},
    }
    for name, options in variants.items():
        methods[name] = prioritized(LEARNING_RATE, **options)
        # The paper's weights scale the gradient as a whole, too. Adam gets used to
        # small ones and takes steps that are far too large when a KPI falls. Weights
        # with a fixed sum only say how the tasks share the gradient.
        methods[f"{name}, sum to T"] = prioritized(
            LEARNING_RATE, normalize="sum_to_T", **options
        )
    return methods


def methods_to_tune() -> dict[str, Method]:
    """Learning rates for equal weights, and weights at the learning rate chosen."""
    methods = {
        f"equal weights, rate {rate}": weighted_sum(rate, EQUAL)
        for rate in (3e-4, 1e-3, 3e-3, 1e-2)
    }
    for right in (1.0, 2.0, 4.0):
        for overlap in (0.5, 1.0, 2.0, 4.0):
            weights = {"left": 1.0, "right": right, "overlap": overlap}
            name = f"right x {right}, overlap x {overlap}"
            methods[name] = weighted_sum(LEARNING_RATE, weights)
    return methods


class Run(NamedTuple):
    """What a method has done: S seeds, N steps."""

    params: Any  # leaves [S, ...]
    opt_state: Any  # leaves [S, ...]
    kpis: dict[str, np.ndarray]  # [S, N], on the training batches
    weights: dict[str, np.ndarray] | None  # [S, N]; None if fixed
    seconds: np.ndarray  # [rounds]


def train(
    methods: dict[str, Method], pairs: _digits.Pairs, num_seeds: int, num_steps: int
) -> dict[str, Run]:
    """Trains all methods in turns, all seeds of a method at once."""
    keys = jax.random.split(jax.random.key(0), num_seeds)
    initial = jax.vmap(_init_params)(keys)
    params = dict.fromkeys(methods, initial)
    states = {name: jax.vmap(m.tx.init)(initial) for name, m in methods.items()}
    rounds = {name: _compile_round(m.step) for name, m in methods.items()}
    logs: dict[str, list[Any]] = {name: [] for name in methods}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    data, rng = jax.device_put(pairs), np.random.default_rng(0)

    progress = tqdm(total=ROUNDS * len(methods), unit="round", mininterval=0.5)
    names = list(methods)
    for number in range(ROUNDS):
        size = (num_seeds, num_steps // ROUNDS, BATCH_SIZE)
        batches = rng.integers(len(pairs.left), size=size, dtype=np.int32)
        first = number % len(names)
        for name in names[first:] + names[:first]:
            progress.set_description(name)
            start = time.perf_counter()
            params[name], states[name], log = jax.block_until_ready(
                rounds[name](params[name], states[name], data, batches)
            )
            seconds[name].append(time.perf_counter() - start)
            logs[name].append(jax.device_get(log))
            progress.update()
    progress.close()

    runs = {}
    for name in methods:
        kpis, weights = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *logs[name])
        # The first round compiles.
        times = np.array(seconds[name][1:])
        runs[name] = Run(params[name], states[name], kpis, weights, times)
    return runs


def _init_params(key):
    return nnx.as_pure(nnx.state(Net(nnx.Rngs(key)), nnx.Param))


@functools.cache
def _graphdef():
    return nnx.graphdef(nnx.eval_shape(lambda: Net(nnx.Rngs(0))))


def _compile_round(step: Callable[..., Any]) -> Callable[..., Any]:
    def one_seed(params, opt_state, data, batches):
        def body(carry, rows):
            batch = jax.tree.map(lambda column: column[rows], data)
            params, opt_state, log = step(*carry, batch)
            return (params, opt_state), log

        carry, logs = jax.lax.scan(body, (params, opt_state), batches)
        return *carry, logs

    return jax.jit(jax.vmap(one_seed, in_axes=(0, 0, None, 0)))


def describe(opt_states: Any) -> str:
    """Weights and KPIs by name, means over the seeds: what to log."""
    weights = jax.vmap(diagnostics.task_weights)(opt_states)
    kpis = jax.vmap(diagnostics.kpis)(opt_states)
    effective = jax.vmap(diagnostics.effective_num_tasks)(weights).mean()
    tasks = [
        f"{task} weight {weights[task].mean():.3f} at KPI {kpis[task].mean():.2f}"
        for task in TASKS
    ]
    return f"{', '.join(tasks)}; {effective:.1f} effective tasks"


def evaluate(runs: dict[str, Run], pairs: _digits.Pairs) -> dict[str, np.ndarray]:
    """KPIs on unseen digits, in percent: ``[S, 4]``, the tasks and their average."""
    kpis_of = jax.jit(jax.vmap(lambda params: losses_and_kpis(params, pairs)[1]))
    results = {}
    for name, run in runs.items():
        kpis = kpis_of(run.params)
        columns = np.stack([np.asarray(kpis[task]) for task in TASKS], axis=1)
        results[name] = 100 * np.c_[columns, columns.mean(axis=1)]
    return results


def relative_times(runs: dict[str, Run]) -> dict[str, str]:
    """Time relative to the first method: median and quartiles over the rounds."""
    base = next(iter(runs.values())).seconds
    texts = {}
    for name, run in runs.items():
        low, median, high = np.quantile(run.seconds / base, [0.25, 0.5, 0.75])
        texts[name] = f"{median:.2f} ({low:.2f} to {high:.2f})"
    return texts


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, prints the table and writes it and the plots."""
    parser = argparse.ArgumentParser(description="DTP on two overlapping digits.")
    parser.add_argument("--out", type=Path, default=Path("outputs/two_digits"))
    parser.add_argument(
        "--steps", type=int, default=4000, help=f"a multiple of {ROUNDS}"
    )
    parser.add_argument("--seeds", type=int, default=5, help="2 or more")
    parser.add_argument("--tune", action="store_true", help="compare fixed weights")
    args = parser.parse_args(argv)
    if args.steps < ROUNDS or args.steps % ROUNDS or args.seeds < 2:
        parser.error(f"--steps must be a multiple of {ROUNDS}, --seeds at least 2")
    start = time.perf_counter()

    digits = _digits.split_digits()
    split = "validation" if args.tune else "test"
    seen = _digits.make_pairs(digits["train"], NUM_PAIRS["train"])
    unseen = _digits.make_pairs(digits[split], NUM_PAIRS[split])
    methods = methods_to_tune() if args.tune else methods_to_compare(args.steps)
    runs = train(methods, seen, args.seeds, args.steps)
    results = evaluate(runs, unseen)
    for name, run in runs.items():
        if run.weights is not None:
            print(f"{name}: {describe(run.opt_state)}")

    table = _plots.table(results, COLUMNS, {"step time": relative_times(runs)})
    notes = f"""
        KPIs on {split} digits in percent: accuracy of the two digits, bounded error of
        the overlap (100 is exact, 0 is off by {_digits.OVERLAP_SCALE} or more). Means
        and standard errors over {args.seeds} seeds, which vary initial parameters and
        batches but not the digits. {args.steps} steps of Adam, learning rate
        {LEARNING_RATE}. Step times are ratios to "{next(iter(runs))}" measured in this
        run, medians and quartiles over {ROUNDS - 1} rounds that the methods ran in
        turns. The run took {time.perf_counter() - start:.0f} s.
    """
    report = f"{table}\n\n{textwrap.fill(textwrap.dedent(notes).strip(), 88)}\n"
    print(f"\n{report}")
    if not args.tune:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "results.md").write_text(report, encoding="utf-8")
        plot(args.out, unseen, runs, results)
        print(f"Table and plots are in {args.out}.")


def plot(
    out: Path,
    pairs: _digits.Pairs,
    runs: dict[str, Run],
    results: dict[str, np.ndarray],
) -> None:
    """Writes the four plots."""
    labels = zip(pairs.left, pairs.right, pairs.overlap, strict=True)
    titles = [f"{left}, {right}, {overlap:.2f}" for left, right, overlap in labels]
    what = (
        "class of the left digit, class of the right digit, covered share of the right"
    )
    _plots.samples(out / "samples.png", pairs.images[:18], titles[:18], what)
    weights = {name: run.weights for name, run in runs.items() if run.weights}
    kpis = {name: run.kpis for name, run in runs.items()}
    window = max(1, kpis["equal weights"]["left"].shape[1] // 40)
    _plots.weights(out / "weights.png", weights, TASKS, window)
    _plots.curves(
        out / "kpis.png", kpis, TASKS, window, "KPI on training batches, smoothed"
    )
    what = "KPI on test digits in percent, mean and standard error over the seeds"
    _plots.comparison(out / "comparison.png", results, COLUMNS, what)


if __name__ == "__main__":
    main()
