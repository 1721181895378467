"""The two problems of the demo: networks with several heads, and what is trained.

``PAIRS`` has three tasks of comparable losses, which equal weights serve well. ``ROW``
has twelve of very unequal difficulty in a small trunk, where some starve.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from dtp_jax import metrics
from examples import _digits

# Images for training, validation and test.
SIZES = {"pairs": (40_000, 2_000, 2_000), "row": (20_000, 2_000, 2_000)}

cross_entropy = optax.softmax_cross_entropy_with_integer_labels


class Problem(NamedTuple):
    """Data, a network and its tasks."""

    tasks: Any  # what `dynamic_task_prioritization` takes: names, or a number
    names: tuple[str, ...]  # of the tasks, in the order of the losses
    init_params: Callable[[jax.Array], Any]  # from a key
    # (params, batch) -> one loss and one KPI in [0, 1] for each task
    losses_and_kpis: Callable[[Any, Any], tuple[Any, Any]]
    make_data: Callable[[], Mapping[str, Any]]  # batches "train", "validation", "test"
    num_steps: int
    batch_size: int = 64
    # Changes a batch, given the step; for data that move.
    prepare: Callable[[Any, jax.Array], Any] = lambda batch, step: batch
    # (params, batch) -> the KPIs to judge by, if not those above.
    judge: Callable[[Any, Any], Any] | None = None

    def judged(self, params: Any, batch: Any) -> Any:
        """The KPIs on unseen images."""
        if self.judge is not None:
            return self.judge(params, batch)
        return self.losses_and_kpis(params, batch)[1]


class PairNet(nnx.Module):
    """A shared trunk with one head for each of three tasks."""

    def __init__(self, rngs: nnx.Rngs, width: int):
        """Makes the layers."""
        self.trunk = _trunk(rngs, _digits.HEIGHT * _digits.WIDTH, width)
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


class RowNet(nnx.Module):
    """A small shared trunk; the heads of all places are one matrix."""

    def __init__(self, rngs: nnx.Rngs, width: int):
        """Makes the layers."""
        shape = _digits.make_rows(_digits.split_digits()["train"], 1).images.shape
        self.trunk = _trunk(rngs, shape[1] * shape[2], width)
        self.heads = nnx.Linear(width, _digits.ROW * _digits.NUM_CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits, ``[N, ROW, classes]``."""
        logits = self.heads(self.trunk(images.reshape(len(images), -1)))
        return logits.reshape(len(images), _digits.ROW, -1)


def _trunk(rngs: nnx.Rngs, num_pixels: int, width: int) -> nnx.Sequential:
    return nnx.Sequential(
        nnx.Linear(num_pixels, width, rngs=rngs),
        nnx.relu,
        nnx.Linear(width, width, rngs=rngs),
        nnx.relu,
    )


def pair_losses_and_kpis(
    out: dict[str, jax.Array],
    batch: _digits.Pairs,
    kpi_scale: float = _digits.OVERLAP_SCALE,
) -> tuple[Any, Any]:
    """Cross-entropies and accuracies of the digits, errors of the overlap.

    Args:
        out: Of the network.
        batch: Images and labels.
        kpi_scale: The error of the overlap at which its KPI is 0.

    Returns:
        One loss and one KPI for each task.
    """
    scale = _digits.OVERLAP_SCALE
    losses = {
        "left": cross_entropy(out["left"], batch.left).mean(),
        "right": cross_entropy(out["right"], batch.right).mean(),
        "overlap": jnp.mean(((out["overlap"] - batch.overlap) / scale) ** 2),
    }
    kpis = {
        "left": metrics.accuracy(out["left"], batch.left),
        "right": metrics.accuracy(out["right"], batch.right),
        "overlap": metrics.bounded_error(out["overlap"], batch.overlap, kpi_scale),
    }
    return losses, kpis


def row_losses_and_kpis(
    logits: jax.Array, batch: _digits.Rows
) -> tuple[jax.Array, jax.Array]:
    """A cross-entropy and an accuracy for each place, ``[ROW]``."""
    losses = cross_entropy(logits, batch.labels).mean(axis=0)
    return losses, jax.vmap(metrics.accuracy, in_axes=1)(logits, batch.labels)


@functools.cache
def pairs(width: int = 128, num_steps: int = 4000) -> Problem:
    """Three tasks on images of two overlapping digits."""
    names = ("left", "overlap", "right")

    def make_data():
        return _data(_digits.make_pairs, SIZES["pairs"])

    net = functools.partial(PairNet, width=width)
    init_params, losses_and_kpis = functional(net, pair_losses_and_kpis)
    return Problem(names, names, init_params, losses_and_kpis, make_data, num_steps)


@functools.cache
def row(width: int = 64, num_steps: int = 2000) -> Problem:
    """Twelve tasks on images of a row of twelve digits."""
    names = tuple(f"place {place}" for place in range(_digits.ROW))

    def make_data():
        return _data(_digits.make_rows, SIZES["row"])

    net = functools.partial(RowNet, width=width)
    init_params, losses_and_kpis = functional(net, row_losses_and_kpis)
    tasks = _digits.ROW
    return Problem(tasks, names, init_params, losses_and_kpis, make_data, num_steps)


def _data(make: Callable[..., Any], sizes: Any) -> dict[str, Any]:
    digits = _digits.split_digits()
    splits = zip(("train", "validation", "test"), sizes, strict=True)
    return {split: make(digits[split], size) for split, size in splits}


def functional(net: Callable[[nnx.Rngs], Any], measure: Callable[..., Any]) -> Any:
    """A network as pure functions of its parameters.

    Args:
        net: Makes the module.
        measure: From what it returns and the batch to losses and KPIs.

    Returns:
        `init_params` and `losses_and_kpis` of a `Problem`.
    """

    @functools.cache
    def graphdef():
        return nnx.graphdef(nnx.eval_shape(lambda: net(nnx.Rngs(0))))

    def init_params(key):
        return nnx.as_pure(nnx.state(net(nnx.Rngs(key)), nnx.Param))

    def losses_and_kpis(params, batch):
        return measure(nnx.merge(graphdef(), params)(batch.images), batch)

    return init_params, losses_and_kpis
