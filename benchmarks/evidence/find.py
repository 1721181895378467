"""Find a digit among clutter, and read it: convolutions, two tasks of other kinds."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dtp_jax import boxes
from dtp_jax.compare import Problem
from examples import _digits, find_digit

from ._size import Size, adam, in_trunk


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
        losses=lambda params, batch: find_digit.losses_and_kpis(_model(params), batch),
        train=train,
        validation=validation,
        test=test,
        optimizer=adam(steps),
        num_steps=steps,
        batch_size=16,
        evaluate=_evaluate,
        shared=in_trunk,
    )


@functools.cache
def _graphdef() -> Any:
    return nnx.graphdef(nnx.eval_shape(lambda: find_digit.Detector(nnx.Rngs(0))))


def _init(key: jax.Array) -> Any:
    detector = find_digit.Detector(nnx.Rngs(key))
    return nnx.as_pure(nnx.state(detector, nnx.Param))


def _model(params: Any) -> find_digit.Detector:
    return nnx.merge(_graphdef(), params)


def _evaluate(params: Any, scenes: Any) -> dict[str, jax.Array]:
    logits, offsets, _ = _model(params)(scenes.images)
    probabilities = jax.nn.softmax(logits)[..., : find_digit.BACKGROUND]
    best = probabilities.max(axis=-1).argmax(axis=1)
    decoded = boxes.decode(offsets * find_digit.UNIT, find_digit.anchors())
    rows = np.arange(len(best))
    overlaps = boxes.iou(decoded[rows, best], scenes.boxes)
    read = probabilities[rows, best].argmax(axis=-1) == scenes.labels
    return {"box": jnp.mean(overlaps), "class": jnp.mean(read)}
