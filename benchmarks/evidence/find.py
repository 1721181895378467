"""Find a digit among clutter, and read it: convolutions, two tasks of other kinds."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtp_jax import boxes
from dtp_jax.compare import Problem
from examples import _digits, find_digit

from ._size import Size, adam, in_trunk

# Inputs, outputs and stride of each layer: half of the channels of the example.
SHAPES = ((1, 8, 2), (8, 16, 2), (16, 32, 1), (32, 32, 1))


def find_and_read(size: Size) -> Problem:
    """The detector of the example, with a loss that knows how sure it is.

    KPIs are the mean overlap of the box with the best score, and the share of the
    digits that are read right.

    Args:
        size: How much.

    Returns:
        The problem.
    """
    digits = _digits.split_digits()
    train, validation, test = (
        _digits.make_scenes(digits[split], size.count(count))
        for split, count in (("train", 10_000), ("validation", 500), ("test", 1000))
    )
    steps = size.steps(600)
    return Problem(
        tasks=find_digit.TASKS,
        init=_init,
        losses=_losses_and_kpis,
        train=train,
        validation=validation,
        test=test,
        optimizer=adam(steps),
        num_steps=steps,
        batch_size=find_digit.BATCH_SIZE,
        evaluate=_evaluate,
        shared=in_trunk,
    )


def _losses_and_kpis(params: Any, scenes: Any) -> tuple[Any, Any]:
    model: Any = functools.partial(_network, params)
    return find_digit.losses_and_kpis(model, scenes)


def _init(key: jax.Array) -> Any:
    *keys, logits, offsets, variances = jax.random.split(key, len(SHAPES) + 3)
    width = SHAPES[-1][1]
    return {
        "trunk": [
            dense(key, 9 * inputs, outputs, 2.0)
            for key, (inputs, outputs, _) in zip(keys, SHAPES, strict=True)
        ],
        "logits": dense(logits, width, find_digit.BACKGROUND + 1, 1.0),
        "offsets": dense(offsets, width, 4, 1.0),
        # As `boxes.log_variance_init`, so that training starts close to the plain loss.
        "log_variances": dense(variances, width, 4, 1e-8 * width),
    }


def dense(key: jax.Array, inputs: int, outputs: int, gain: float) -> Any:
    """A layer whose weights have a variance of ``gain / inputs``."""
    kernel = jax.random.normal(key, (inputs, outputs)) * (gain / inputs) ** 0.5
    return {"w": kernel, "b": jnp.zeros(outputs)}


def _network(params: Any, images: Any) -> find_digit.Proposals:
    features = jnp.asarray(images)[..., None]
    for layer, (_, _, stride) in zip(params["trunk"], SHAPES, strict=True):
        features = jax.nn.relu(patches(features, stride) @ layer["w"] + layer["b"])
    features = features.reshape(features.shape[0], -1, features.shape[-1])
    heads = ("logits", "offsets", "log_variances")
    out = (features @ params[head]["w"] + params[head]["b"] for head in heads)
    return find_digit.Proposals(*out)


def patches(features: jax.Array, stride: int) -> jax.Array:
    """What a convolution of 3 by 3 reads, ``[N, H / stride, W / stride, 9 C]``.

    A product of matrices then does what `jax.lax.conv` does, which on CPU is slow in
    the loops that `compare` trains in, and slower when mapped over networks.
    """
    height, width = features.shape[1:3]
    # With a stride of two "SAME" pads below and to the right only.
    before = 1 if stride == 1 else 0
    padded = jnp.pad(features, ((0, 0), (before, 1), (before, 1), (0, 0)))
    shifted = [
        padded[:, row : row + height : stride, column : column + width : stride]
        for row in range(3)
        for column in range(3)
    ]
    return jnp.concatenate(shifted, axis=-1)


def _evaluate(params: Any, scenes: Any) -> dict[str, jax.Array]:
    logits, offsets, _ = _network(params, scenes.images)
    probabilities = jax.nn.softmax(logits)[..., : find_digit.BACKGROUND]
    best = probabilities.max(axis=-1).argmax(axis=1)
    decoded = boxes.decode(offsets * find_digit.UNIT, find_digit.anchors())
    rows = np.arange(len(best))
    overlaps = boxes.iou(decoded[rows, best], scenes.boxes)
    read = probabilities[rows, best].argmax(axis=-1) == scenes.labels
    return {"box": jnp.mean(overlaps), "class": jnp.mean(read)}
