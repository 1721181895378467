"""Two tasks in one detector: find the digit among clutter, and read it.

Compares equal weights with Dynamic Task Prioritization (DTP), and a plain loss on the
boxes with one that predicts how far each side may be off. Run it with

    python -m examples.find_digit

and look at ``outputs/find_digit``. These are the lines that matter::

    tx = optax.chain(
        dynamic_task_prioritization(TASKS, normalize="sum_to_T"), optax.adam(1e-3)
    )
    optimizer = Optimizer(model, tx, wrt=nnx.Param)

    gradients, kpis = task_gradients(losses_and_kpis, has_aux=True)(model, batch)
    optimizer.update(model, gradients, kpis=kpis)

    voted = variance_voting(boxes, scores, variances)

Every method sees the same batches and number of steps, with Adam at the same learning
rate, which was chosen for the first method on validation digits; ``--tune`` repeats the
choice. The settings of DTP and of the vote are the library's defaults.
"""

import argparse
import functools
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from dtp_jax import balance, boxes, diagnostics, dynamic_task_prioritization, metrics
from dtp_jax.nnx import Optimizer, task_gradients
from examples import _digits, _plots

TASKS = ("box", "class")
COLUMNS = ("accuracy", "mean IoU", "IoU > 0.75")
LEARNING_RATE = 3e-3
BATCH_SIZE = 32
NUM_SCENES = {"train": 20_000, "validation": 2_000, "test": 2_000}

# One anchor in each cell of a grid, of about the size of a digit.
STRIDE = 4
ANCHOR_SIZE = np.array([10.0, 13.0])
# Anchors that overlap the digit at least so much answer for it.
POSITIVE_IOU = 0.4
# Offsets are in tenths of the anchor, about one pixel each. Were they in anchors, all
# errors would be far below one, and the plain loss on them next to nothing.
UNIT = 0.1
BACKGROUND = _digits.NUM_CLASSES


class Proposals(NamedTuple):
    """What the network says about each of P anchors."""

    logits: jax.Array  # [..., P, 11], the digits and the background
    offsets: jax.Array  # [..., P, 4]
    log_variances: jax.Array  # [..., P, 4], of the offsets


class Detector(nnx.Module):
    """Convolutions down to a grid of cells, with three heads on each cell."""

    def __init__(self, rngs: nnx.Rngs, uncertain: bool = True):
        """Makes the layers."""
        conv = functools.partial(nnx.Conv, kernel_size=(3, 3), rngs=rngs)
        self.trunk = nnx.Sequential(
            conv(1, 16, strides=2),
            nnx.LayerNorm(16, rngs=rngs), nnx.relu,
            conv(16, 32, strides=2),
            nnx.LayerNorm(32, rngs=rngs), nnx.relu,
            conv(32, 32),
            nnx.LayerNorm(32, rngs=rngs), nnx.relu,
            conv(32, 32),
            nnx.LayerNorm(32, rngs=rngs), nnx.relu,
        )
        self.logits = nnx.Linear(32, _digits.NUM_CLASSES + 1, rngs=rngs)
        self.offsets = nnx.Linear(32, 4, rngs=rngs)
        self.uncertain = uncertain
        if uncertain:
            init = boxes.log_variance_init()
            self.log_variances = nnx.Linear(32, 4, kernel_init=init, rngs=rngs)

    def __call__(self, images: jax.Array) -> Proposals:
        """Returns proposals ``[B, P, ...]``; without uncertainty all variances are 1."""
        features = self.trunk(images[..., None])
        features = features.reshape(len(images), -1, features.shape[-1])
        offsets = self.offsets(features)
        log_variances = jnp.zeros_like(offsets)
        if self.uncertain:
            log_variances = self.log_variances(features)
        return Proposals(self.logits(features), offsets, log_variances)


def anchors() -> np.ndarray:
    """The anchors ``[P, 4]`` in the order of the cells, row by row."""
    centres = STRIDE * (np.arange(_digits.SCENE // STRIDE) + 0.5)
    centres = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
    corners = [centres - ANCHOR_SIZE / 2, centres + ANCHOR_SIZE / 2]
    return np.concatenate(corners, axis=-1).astype(np.float32)


def losses_and_kpis(model: Detector, batch: _digits.Scenes) -> tuple[Any, Any]:
    """One loss and one KPI in [0, 1] for each task."""
    logits, offsets, log_variances = model(batch.images)
    truth = jnp.broadcast_to(batch.boxes[:, None], offsets.shape)
    overlap = boxes.iou(anchors(), truth)
    # The best anchor answers for the digit even if none overlaps it enough.
    best = overlap == overlap.max(axis=1, keepdims=True)
    positive = (overlap >= POSITIVE_IOU) | best
    labels = jnp.where(positive, batch.labels[:, None], BACKGROUND)

    targets = boxes.encode(truth, anchors()) / UNIT
    # With log-variances of zero this is the plain smooth-L1 loss.
    box_losses = boxes.kl_loss(offsets, targets, log_variances).sum(-1)
    class_losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    losses = {
        "box": jnp.mean(box_losses, where=positive),
        "class": jnp.sum(class_losses) / jnp.sum(positive),
    }
    predicted = boxes.decode(offsets * UNIT, anchors())
    kpis = {
        "box": metrics.mean_box_iou(predicted, truth, where=positive),
        "class": metrics.accuracy(logits, labels, where=positive),
    }
    return losses, kpis


@nnx.jit
def train_step(model: Detector, optimizer: Optimizer, batch: _digits.Scenes) -> Any:
    """Trains on a batch and returns its KPIs and the task weights."""
    gradients, kpis = task_gradients(losses_and_kpis, has_aux=True)(model, batch)
    optimizer.update(model, gradients, kpis=kpis)
    return kpis, diagnostics.task_weights(optimizer.opt_state)
