"""Where it does not help: focal losses of single examples when classes are rare."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from dtp_jax import losses
from examples import _contest
from examples._contest import with_error
from examples._tables import markdown

from ._harness import Size

RATES = (1e-3, 3e-3, 1e-2)
COUNTS = np.geomspace(80, 4, 10).round().astype(int)  # training examples of each class
WIDTH, BATCH = 64, 64
LOSSES = {
    "cross-entropy": (0.0, False),
    "focal, gamma 1": (1.0, False),
    "focal, gamma 2": (2.0, False),
    "focal, gamma 5": (5.0, False),
    "class-balanced cross-entropy": (0.0, True),
    "class-balanced focal, gamma 2": (2.0, True),
}


def _split(seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Few training examples, the fewer the higher the class; 50 of each to judge by."""
    images, labels = load_digits(return_X_y=True)
    images = np.asarray(images, np.float32) / 16
    rng = np.random.default_rng(seed)
    rows: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": []}
    for label, count in enumerate(rng.permutation(COUNTS)):
        own = rng.permutation(np.flatnonzero(labels == label))
        rows["test"].append(own[:50])
        rows["validation"].append(own[50:80])
        rows["train"].append(own[80 : 80 + count])
    return {
        split: (
            images[np.concatenate(own)],
            np.asarray(labels)[np.concatenate(own)].astype(np.int32),
        )
        for split, own in rows.items()
    }


def _train(data: Any, gamma: Any, class_weights: Any, rate: Any, seed: Any, steps: int):
    images, labels = data["train"]
    key = jax.random.key(seed)
    sizes = (images.shape[1], WIDTH, WIDTH, 10)
    params = [
        (jax.random.normal(jax.random.fold_in(key, i), (a, b)) / a**0.5, jnp.zeros(b))
        for i, (a, b) in enumerate(itertools.pairwise(sizes))
    ]
    tx = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def logits_of(params, x):
        for kernel, bias in params[:-1]:
            x = jax.nn.relu(x @ kernel + bias)
        return x @ params[-1][0] + params[-1][1]

    def step(carry, key):
        params, state = carry
        rows = jax.random.randint(key, (BATCH,), 0, len(labels))

        def loss(params):
            of = losses.softmax_focal_loss(
                logits_of(params, images[rows]), labels[rows], gamma
            )
            return jnp.mean(class_weights[labels[rows]] * of)

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.fold_in(key, 99), steps)
    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), keys)
    return {
        split: _judged(logits_of(params, data[split][0]), data[split][1])
        for split in ("validation", "test")
    }


def _judged(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    # Each class has as many images to judge by, so that the accuracy is balanced.
    right = jnp.argmax(logits, axis=1) == labels
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return {"accuracy": 100 * jnp.mean(right), "log loss": jnp.mean(loss)}


def report(size: Size) -> str:
    """Six losses, each at the best of three rates of every split.

    Args:
        size: How much to run.

    Returns:
        Markdown.
    """
    steps = size.num_steps // 4
    splits = [_split(seed) for seed in size.seeds]
    data: Any = jax.tree.map(lambda *x: np.stack(x), *splits)
    program = _program(steps)
    lines = [["loss of an example", "balanced accuracy", "log loss"]]
    for name, (gamma, balanced) in LOSSES.items():
        found = program(data, jnp.float32(gamma), balanced, jnp.asarray(RATES))
        best = np.argmax(found["validation"]["accuracy"], axis=1)
        chosen = {
            what: np.take_along_axis(np.asarray(values), best[:, None], axis=1)[:, 0]
            for what, values in found["test"].items()
        }
        mean, error = _contest.mean_and_error(chosen["log loss"])
        lines.append(
            [name, with_error(chosen["accuracy"]), f"{mean:.2f} ± {error:.2f}"]
        )
    text = (
        f"Digits, {COUNTS.max()} to {COUNTS.min()} training examples of a class, "
        f"{size.num_seeds} splits, the best of {len(RATES)} rates on validation images "
        "by balanced accuracy:"
    )
    return f"{text}\n\n{markdown(lines)}"


def _program(steps: int) -> Callable[..., Any]:
    @jax.jit
    def every_split(data, gamma, balanced, rates):
        def one(split, seed):
            counts = jnp.bincount(split["train"][1], length=10)
            # The weights of beta towards 1.
            by_class = losses.class_balanced_weights(counts, 0.999)
            class_weights = jnp.where(balanced, by_class, 1.0)
            return jax.lax.map(
                lambda rate: _train(split, gamma, class_weights, rate, seed, steps),
                rates,
            )

        number = len(data["train"][1])
        return jax.lax.map(lambda x: one(*x), (data, jnp.arange(number)))

    return every_split
