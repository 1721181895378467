"""The MultiMNIST experiment of Sener & Koltun in miniature: two tasks, many methods.

Compares networks of their own for each task, equal weights, uncertainty weights, MGDA,
MGDA-UB and Dynamic Task Prioritization (DTP) on images of two overlapping digits. The
tasks are the class of the left and that of the right digit. Run it with

    python -m examples.multi_mnist

and look at ``outputs/multi_mnist``. A method is one line of `methods_to_compare`; the
rest of the training step does not change with it::

    link = balance(balancers.mgda(), TASKS, heads="preferences")
    tx = optax.chain(link, optax.sgd(0.1, momentum=0.9))

    gradients, kpis = at_parameters(params, batch)
    updates, opt_state = tx.update(gradients, opt_state, params, kpis=kpis)
    params = optax.apply_updates(params, updates)

As in the paper, the optimizer is SGD with momentum 0.9, the learning rate is halved
after every 30 % of the steps, and each method chooses its own rate on validation
digits, all from one grid. New networks, with other seeds, are then trained at the
chosen rates and evaluated once on test digits.
"""

import argparse
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from dtp_jax import (
    Balancer,
    balance,
    balancers,
    diagnostics,
    dynamic_task_prioritization,
    feature_task_gradients,
    metrics,
    plot,
    task_gradients,
)
from examples import _digits, _plots

TASKS = ("left", "right")
RATES = (0.01, 0.03, 0.1, 0.3)  # of the grid
TUNING_SEEDS = 3  # for each rate
NUM_PAIRS = {"train": 40_000, "validation": 4_000, "test": 4_000}
BATCH_SIZE = 64
WIDTH = 64
# All methods train in turns, a short round of steps each, in an order that rotates. A
# busy machine then slows all of them, and their relative times mean something.
ROUNDS = 20


def encoder(params: Any, batch: _digits.Pairs) -> jax.Array:
    """The trunk that the tasks share: features ``[B, WIDTH]``."""
    features = batch.images.reshape(len(batch.images), -1)
    for layer in params["trunk"]:
        features = jax.nn.relu(_linear(layer, features))
    return jnp.asarray(features)


def heads(params: Any, features: jax.Array, batch: _digits.Pairs) -> tuple[Any, Any]:
    """One loss and one KPI, the accuracy, for each task that has a head."""
    losses, kpis = {}, {}
    for task, head in params["heads"].items():
        logits, labels = _linear(head, features), getattr(batch, task)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        losses[task] = cross_entropy.mean()
        kpis[task] = metrics.accuracy(logits, labels)
    return losses, kpis


def losses_and_kpis(params: Any, batch: _digits.Pairs) -> tuple[Any, Any]:
    """The whole network."""
    return heads(params, encoder(params, batch), batch)


# Only conflicts in the trunk count: no task but its own uses a head.
at_parameters = task_gradients(
    losses_and_kpis, has_aux=True, shared={"trunk": True, "heads": False}
)
at_features = feature_task_gradients(encoder, heads, has_aux=True)


class Method(NamedTuple):
    """A way to train."""

    link: Balancer  # from the gradients of the tasks to one
    gradients: Callable[..., Any] = at_parameters
    tasks: Sequence[str] = TASKS


def methods_to_compare() -> dict[str, Method]:
    """Two networks with one task each, then networks with both tasks.

    `balance` without a balancer leaves all weights at 1.
    """
    mgda = balance(balancers.mgda(), TASKS, heads="preferences")
    uncertainty = balancers.uncertainty(kind="classification")
    papers = dynamic_task_prioritization(
        TASKS, gamma=1.0, alpha=0.75, normalize=None, ramp_steps=0
    )
    return {
        "left alone": Method(balance(optax.identity(), ["left"]), tasks=["left"]),
        "right alone": Method(balance(optax.identity(), ["right"]), tasks=["right"]),
        "equal weights": Method(balance(optax.identity(), TASKS)),
        "uncertainty": Method(balance(uncertainty, TASKS)),
        "MGDA": Method(mgda),
        "MGDA-UB": Method(mgda, at_features),
        "DTP": Method(dynamic_task_prioritization(TASKS)),
        "DTP, paper's weights": Method(papers),
    }


def init_params(key: jax.Array) -> Any:
    """He's initialization of a trunk and of a head for each task."""
    pixels = _digits.HEIGHT * _digits.WIDTH
    first, second, *others = jax.random.split(key, 2 + len(TASKS))
    return {
        "trunk": [_init(first, pixels, WIDTH), _init(second, WIDTH, WIDTH)],
        "heads": {
            task: _init(key, WIDTH, _digits.NUM_CLASSES)
            for task, key in zip(TASKS, others, strict=True)
        },
    }


def optimizer(
    method: Method, rate: jax.typing.ArrayLike, num_steps: int
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of all methods; only its first link differs."""
    every = 3 * num_steps // 10
    halved = optax.exponential_decay(jnp.asarray(rate), every, 0.5, staircase=True)
    return optax.chain(method.link, optax.sgd(halved, momentum=0.9))


def train_step(
    method: Method, tx: Any, params: Any, opt_state: Any, batch: _digits.Pairs
) -> tuple[Any, Any]:
    """The step of all methods; KPIs are for those that read them."""
    gradients, kpis = method.gradients(params, batch)
    updates, opt_state = tx.update(gradients, opt_state, params, kpis=kpis)
    return optax.apply_updates(params, updates), opt_state


def compile_round(method: Method, num_steps: int) -> Callable[..., Any]:
    """Some steps of R networks at a time; the log is the mean of the task weights.

    The learning rate is an argument: one compiled program serves the whole grid.
    """

    def train_round(params, opt_state, rate, pairs, batches):
        tx = optimizer(method, rate, num_steps)

        def body(carry, rows):
            params, opt_state = carry
            batch = jax.tree.map(lambda column: column[rows], pairs)
            params, opt_state = train_step(method, tx, params, opt_state, batch)
            return (params, opt_state), diagnostics.task_weights(opt_state)

        carry, weights = jax.lax.scan(body, (params, opt_state), batches)
        return *carry, jax.tree.map(jnp.mean, weights)

    return jax.jit(jax.vmap(train_round, in_axes=(0, 0, 0, None, 0)))


class Run(NamedTuple):
    """What a method has done with R networks."""

    params: Any  # leaves [R, ...]
    weights: dict[str, np.ndarray]  # [R], means over all steps
    seconds: np.ndarray  # [rounds]


def train(
    methods: dict[str, Method],
    rounds: dict[str, Callable[..., Any]],
    rates: dict[str, np.ndarray],
    seeds: Sequence[int],
    pairs: _digits.Pairs,
    num_steps: int,
) -> dict[str, Run]:
    """Trains all methods in turns, a network for each seed (and its rate) at once.

    A seed stands for initial parameters and batches, the same for every method.
    """
    initial = jax.jit(jax.vmap(lambda seed: init_params(jax.random.key(seed))))(
        np.array(seeds)
    )
    params, states = {}, {}
    for name, method in methods.items():
        used = {task: initial["heads"][task] for task in method.tasks}
        params[name] = {"trunk": initial["trunk"], "heads": used}
        tx = optimizer(method, 0.0, num_steps)
        states[name] = jax.vmap(tx.init)(params[name])
    logs: dict[str, list[Any]] = {name: [] for name in methods}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    data, size = jax.device_put(pairs), (num_steps // ROUNDS, BATCH_SIZE)

    progress = tqdm(total=ROUNDS * len(methods), unit="round", mininterval=0.5)
    names = list(methods)
    for number in range(ROUNDS):
        generators = [np.random.default_rng((seed, number)) for seed in seeds]
        draws = [rng.integers(len(pairs.left), size=size) for rng in generators]
        batches = np.array(draws, np.int32)
        first = number % len(names)
        for name in names[first:] + names[:first]:
            progress.set_description(name)
            start = time.perf_counter()
            params[name], states[name], log = jax.block_until_ready(
                rounds[name](params[name], states[name], rates[name], data, batches)
            )
            seconds[name].append(time.perf_counter() - start)
            logs[name].append(jax.device_get(log))
            progress.update()
    progress.close()

    runs = {}
    for name in methods:
        weights = jax.tree.map(lambda *x: np.mean(x, axis=0), *logs[name])
        # The first round compiles.
        runs[name] = Run(params[name], weights, np.array(seconds[name][1:]))
    return runs


def evaluate(runs: dict[str, Run], pairs: _digits.Pairs) -> dict[str, np.ndarray]:
    """Accuracies on unseen digits in percent, ``[R, tasks of the method]``."""
    kpis_of = jax.jit(jax.vmap(lambda params: losses_and_kpis(params, pairs)[1]))
    results = {}
    for name, run in runs.items():
        kpis = kpis_of(run.params)
        columns = [kpis[task] for task in TASKS if task in kpis]
        results[name] = 100 * np.stack(columns, axis=1)
    return results


def grid() -> tuple[np.ndarray, list[int]]:
    """The rate and the seed of each network that serves to choose a rate."""
    rates = np.repeat(np.array(RATES, np.float32), TUNING_SEEDS)
    return rates, list(range(TUNING_SEEDS)) * len(RATES)


def by_rate(results: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Means over the tasks of the results of the grid, ``[TUNING_SEEDS, rates]``."""
    shape = (len(RATES), TUNING_SEEDS)
    return {name: x.mean(axis=1).reshape(shape).T for name, x in results.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Chooses the rates, trains, prints the tables and writes them and the plot."""
    parser = argparse.ArgumentParser(description="MultiMNIST in miniature.")
    parser.add_argument("--out", type=Path, default=Path("outputs/multi_mnist"))
    parser.add_argument(
        "--steps", type=int, default=5000, help=f"a multiple of {ROUNDS}"
    )
    parser.add_argument("--seeds", type=int, default=12, help="2 or more")
    args = parser.parse_args(argv)
    if args.steps < ROUNDS or args.steps % ROUNDS or args.seeds < 2:
        parser.error(f"--steps must be a multiple of {ROUNDS}, --seeds at least 2")
    start = time.perf_counter()

    digits = _digits.split_digits()
    seen, validation, test = (
        _digits.make_pairs(digits[split], number) for split, number in NUM_PAIRS.items()
    )
    methods = methods_to_compare()
    rounds = {name: compile_round(m, args.steps) for name, m in methods.items()}

    rates, seeds = grid()
    every_rate = dict.fromkeys(methods, rates)
    runs = train(methods, rounds, every_rate, seeds, seen, args.steps)
    tuning = by_rate(evaluate(runs, validation))
    best = {name: RATES[x.mean(axis=0).argmax()] for name, x in tuning.items()}

    seeds = [TUNING_SEEDS + number for number in range(args.seeds)]
    chosen = {name: np.full(args.seeds, best[name], np.float32) for name in methods}
    runs = train(methods, rounds, chosen, seeds, seen, args.steps)
    results = evaluate(runs, test)

    # The networks with one task each make one row, the first.
    names = [f"{task} alone" for task in TASKS]
    single = np.concatenate([results.pop(name) for name in names], axis=1)
    base = runs["equal weights"].seconds
    seconds = {name: runs[name].seconds for name in results}
    columns = {
        "rate": {name: f"{best[name]:g}" for name in results},
        "weight of right": {name: _share(runs[name].weights) for name in results},
        "step time": {n: f"{np.median(x / base):.2f}" for n, x in seconds.items()},
    }
    both = sum(runs[name].seconds for name in names)
    columns["rate"]["single tasks"] = ", ".join(f"{best[name]:g}" for name in names)
    columns["weight of right"]["single tasks"] = "-"
    columns["step time"]["single tasks"] = f"{np.median(both / base):.2f}"
    rate_names = [f"rate {rate:g}" for rate in RATES]
    notes = f"""
        Accuracy on test digits in percent, means and standard errors over {args.seeds}
        seeds, which vary initial parameters and batches but not the digits. Weight of
        right: its share of the sum of both weights in the trunk, each a mean over the
        steps. Step times are ratios to equal weights measured in this run, medians over
        {ROUNDS - 1} rounds that the methods ran in turns; single tasks are two
        networks. {args.steps} steps of SGD. The rates were chosen by the mean accuracy
        over the tasks on validation digits, {TUNING_SEEDS} other seeds each:
    """
    report = "\n\n".join(
        [
            _plots.table({"single tasks": single} | results, TASKS, columns),
            textwrap.fill(textwrap.dedent(notes).strip(), 88),
            _plots.table(tuning, rate_names, {}),
            f"The run took {time.perf_counter() - start:.0f} s.\n",
        ]
    )
    print(f"\n{report}")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.md").write_text(report, encoding="utf-8")
    labels = [f"accuracy of the {task} digit in percent" for task in TASKS]
    labels.append("time of a step, equal weights 1")
    points = {
        name: (*each.mean(axis=0), float(columns["step time"][name]))
        for name, each in ({"single tasks": single} | results).items()
    }
    plot.tradeoff(points, labels=labels).savefig(args.out / "accuracies.png")
    print(f"Tables and plot are in {args.out}.")


def _share(weights: dict[str, np.ndarray]) -> str:
    share = weights["right"] / (weights["left"] + weights["right"])
    return f"{share.mean():.2f}"


def _init(key, num_inputs, num_outputs):
    kernel = jax.random.normal(key, (num_inputs, num_outputs))
    return {"w": kernel * jnp.sqrt(2 / num_inputs), "b": jnp.zeros(num_outputs)}


def _linear(layer, x):
    return x @ layer["w"] + layer["b"]


if __name__ == "__main__":
    main()
