"""Which tasks to compute in a step, where not all of them can be."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from dtp_jax import curricula, focal_weights, init_kpis, metrics, update_kpis
from examples import _contest, _digits
from examples._contest import with_error
from examples._tables import markdown

from ._harness import Size

NUM_TASKS, DRAWN, BATCH, WIDTH = 16, 2, 32, 64
RATES = (3e-3, 6e-3, 1e-2)
# KPIs of drawn tasks are rare; see `dynamic_task_prioritization`.
ALPHA, GAMMA = 0.2, 1.0


class Rule(NamedTuple):
    """How tasks are drawn, and whether their losses are multiplied by something."""

    uniform: float  # the share of the draws that is uniform
    weights: float = 0.0  # 1: by the focal weights
    factors: float = 0.0  # 1: by the inverse probabilities of the draw


RULES = {
    "uniform": Rule(1.0),
    "uniform, losses times focal weights": Rule(1.0, weights=1.0),
    "by focal weights, losses times weights and factors": Rule(0.0, 1.0, 1.0),
    "by focal weights": Rule(0.0),
    "half uniform, half by focal weights": Rule(0.5),
}


class _Tasks(NamedTuple):
    """Digits seen through a permutation of the pixels and noise, one for each task."""

    permutations: jax.Array  # [T, 64]
    noise: jax.Array  # [T]
    digits: dict[str, tuple[jax.Array, jax.Array]]  # split -> images [N, 64], labels

    def batch(self, split: str, key: jax.Array, task: jax.Array, size: int) -> Any:
        """Images and labels of a task."""
        images, labels = self.digits[split]
        rows_key, noise_key = jax.random.split(key)
        rows = jax.random.randint(rows_key, (size,), 0, len(labels))
        noise = self.noise[task] * jax.random.normal(noise_key, (size, images.shape[1]))
        return images[rows][:, self.permutations[task]] + noise, labels[rows]


def _make_tasks() -> _Tasks:
    rng = np.random.default_rng(0)
    pixels = _digits.DIGIT**2
    permutations = np.stack([rng.permutation(pixels) for _ in range(NUM_TASKS)])
    digits = {
        split: (jnp.asarray(d.images.reshape(-1, pixels)), jnp.asarray(d.labels))
        for split, d in _digits.split_digits().items()
    }
    noise = jnp.linspace(0.0, 0.5, NUM_TASKS)
    return _Tasks(jnp.asarray(permutations), noise, digits)


def _init_params(key: jax.Array) -> Any:
    shapes = {
        "first": (_digits.DIGIT**2, WIDTH),
        "second": (WIDTH, WIDTH),
        "heads": (NUM_TASKS, WIDTH, _digits.NUM_CLASSES),
    }
    return {
        name: {
            "kernel": jax.random.normal(jax.random.fold_in(key, i), shape)
            / np.sqrt(shape[-2]),
            "bias": jnp.zeros((*shape[:-2], shape[-1])),
        }
        for i, (name, shape) in enumerate(shapes.items())
    }


def _logits(params: Any, task: jax.Array, images: jax.Array) -> jax.Array:
    for name in ("first", "second"):
        images = jax.nn.relu(images @ params[name]["kernel"] + params[name]["bias"])
    head = jax.tree.map(lambda x: x[task], params["heads"])
    return images @ head["kernel"] + head["bias"]


def _program(tasks: _Tasks, num_steps: int) -> Callable[..., Any]:
    """From a rule, a rate and a seed to accuracies by split and draws, ``[T]``."""

    def loss_and_kpi(params, task, images, labels):
        logits = _logits(params, task, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), metrics.accuracy(logits, labels)

    @jax.jit
    def run(rule, rate, seed):
        key = jax.random.key(seed)
        params = _init_params(jax.random.fold_in(key, 0))
        setting = {"rate": rate, "cosine": jnp.float32(1)}
        tx = optax.adam(_contest.learning_rate(setting, num_steps))

        def step(carry, key):
            params, opt_state, kpis, draws = carry
            draw_key, batch_key = jax.random.split(key)
            # As large as a weight can be, until the first KPI is known.
            focal = focal_weights(jnp.where(kpis.count > 0, kpis.mean, 0), GAMMA)
            focal *= NUM_TASKS / focal.sum()
            drawn = curricula.sample_tasks(draw_key, focal, DRAWN, uniform=rule.uniform)
            weights = jnp.where(rule.weights > 0, focal[drawn.indices], 1)
            # Without factors the mean over the drawn tasks, with them over all.
            scale = jnp.where(rule.factors > 0, drawn.factors / NUM_TASKS, 1 / DRAWN)
            images, labels = jax.vmap(
                lambda key, task: tasks.batch("train", key, task, BATCH)
            )(jax.random.split(batch_key, DRAWN), drawn.indices)

            def total(params):
                losses, found = jax.vmap(loss_and_kpi, (None, 0, 0, 0))(
                    params, drawn.indices, images, labels
                )
                return jnp.sum(scale * weights * losses), found

            gradient, found = jax.grad(total, has_aux=True)(params)
            updates, opt_state = tx.update(gradient, opt_state, params)
            params = optax.apply_updates(params, updates)
            observed = jnp.full(NUM_TASKS, jnp.nan).at[drawn.indices].set(found)
            kpis = update_kpis(kpis, observed, ALPHA)
            return (params, opt_state, kpis, draws.at[drawn.indices].add(1)), None

        start = (params, tx.init(params), init_kpis(NUM_TASKS), jnp.zeros(NUM_TASKS))
        keys = jax.random.split(jax.random.fold_in(key, 1), num_steps)
        (params, _, _, draws), _ = jax.lax.scan(step, start, keys)

        def accuracy(split, key, task):
            images, labels = tasks.batch(split, key, task, 500)
            return metrics.accuracy(_logits(params, task, images), labels)

        keys = jax.random.split(jax.random.key(12345), NUM_TASKS)
        found = {
            split: jax.vmap(functools.partial(accuracy, split))(
                keys, jnp.arange(NUM_TASKS)
            )
            for split in ("validation", "test")
        }
        return found, draws

    return run


def report(size: Size) -> str:
    """Five rules of drawing, each at the best of three rates.

    Args:
        size: How much to run.

    Returns:
        Markdown.
    """
    tasks, num_steps = _make_tasks(), 3 * size.num_steps // 4
    lines = [
        [
            *("tasks are drawn", "rate", "average", "worst task"),
            *("draws, least noise", "draws, most noise"),
        ]
    ]
    total = 1 + len(RULES) * (2 * len(RATES) + size.num_seeds)
    with (
        ThreadPoolExecutor(2) as pool,
        tqdm(total=total, desc="sampling", unit="run", mininterval=0.5) as progress,
    ):

        def run(rule, rate, seed):
            args = (Rule(*map(jnp.float32, rule)), jnp.float32(rate), seed)
            found = jax.device_get(program(*args))
            progress.update()
            return found

        def tuned(rule):
            tries = {
                rate: [run(rule, rate, seed)[0]["validation"] for seed in (100, 101)]
                for rate in RATES
            }
            rate = max(tries, key=lambda rate: float(np.mean(tries[rate])))
            runs = [run(rule, rate, seed) for seed in size.seeds]
            kpis = np.stack([kpis["test"] for kpis, _ in runs])
            return rate, kpis, np.stack([draws for _, draws in runs])

        program = _program(tasks, num_steps)
        run(RULES["uniform"], RATES[0], 100)  # compiles it once
        found = zip(RULES, pool.map(tuned, RULES.values()), strict=True)
        for name, (rate, kpis, draws) in found:
            means = draws.mean(axis=0)
            kpis = 100 * kpis
            measured = (with_error(kpis.mean(axis=1)), with_error(kpis.min(axis=1)))
            ends = (f"{means[:4].mean():.0f}", f"{means[-4:].mean():.0f}")
            lines.append([name, f"{rate:g}", *measured, *ends])
    text = (
        f"{NUM_TASKS} tasks with data of their own, digits through a permutation of "
        f"the pixels with noise that grows from task to task; {DRAWN} of them in each "
        f"of {num_steps} steps, cosine decay; gamma {GAMMA:g}, alpha {ALPHA:g}. Draws "
        "are those of one of the four tasks with the least and the most noise:"
    )
    return f"{text}\n\n{markdown(lines)}"
