"""Two tasks in one detector: find the digit among clutter, and read it.

Compares equal weights with Dynamic Task Prioritization (DTP), and a plain loss on the
boxes with one that predicts how far each side may be off. Run it with

    python -m examples.find_digit

and look at ``outputs/find_digit``. These are the lines that matter::

    link = dynamic_task_prioritization(TASKS)
    tx = optax.chain(link, optax.adam(1e-3))
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

from dtp_jax import (
    Balancer,
    balance,
    boxes,
    diagnostics,
    dynamic_task_prioritization,
    metrics,
)
from dtp_jax.nnx import Optimizer, task_gradients
from examples import _digits, _plots

TASKS = ("box", "class")
COLUMNS = ("accuracy", "IoU", "IoU voted", "> 0.75", "> 0.75 even", "> 0.75 voted")
SHOWN = "DTP, KL"  # the method whose boxes are drawn
LEARNING_RATE = 1e-2
BATCH_SIZE = 32
NUM_SCENES = {"train": 20_000, "validation": 2_000, "test": 2_000}

# Channels in and out, and stride, of each convolution.
SHAPES = ((1, 16, 2), (16, 32, 2), (32, 64, 1), (64, 64, 1))
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
        layers = []
        for inputs, outputs, stride in SHAPES:
            conv = nnx.Conv(inputs, outputs, (3, 3), strides=stride, rngs=rngs)
            layers += [conv, nnx.relu]
        self.trunk = nnx.Sequential(*layers)
        width = SHAPES[-1][1]
        self.logits = nnx.Linear(width, _digits.NUM_CLASSES + 1, rngs=rngs)
        self.offsets = nnx.Linear(width, 4, rngs=rngs)
        self.uncertain = uncertain
        if uncertain:
            init = boxes.log_variance_init()
            self.log_variances = nnx.Linear(width, 4, kernel_init=init, rngs=rngs)

    def __call__(self, images: jax.typing.ArrayLike) -> Proposals:
        """Returns proposals ``[B, P, ...]``; if not uncertain, log-variances of 0."""
        features = self.trunk(jnp.asarray(images)[..., None])
        features = features.reshape(features.shape[0], -1, features.shape[-1])
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


class Method(NamedTuple):
    """A way to train."""

    link: Balancer  # from the gradients of the tasks to one
    uncertain: bool = True  # whether the network predicts variances
    learning_rate: float = LEARNING_RATE


def methods_to_compare() -> dict[str, Method]:
    """Fixed weights and DTP; `balance` without a balancer leaves all weights at 1."""
    equal = balance(optax.identity(), TASKS)
    papers = dynamic_task_prioritization(
        TASKS, gamma=1.0, alpha=0.75, normalize=None, ramp_steps=0
    )
    return {
        "equal weights, smooth-L1": Method(equal, uncertain=False),
        "equal weights, KL": Method(equal),
        "DTP, KL": Method(dynamic_task_prioritization(TASKS)),
        "DTP, paper's weights, KL": Method(papers),
    }


def methods_to_tune() -> dict[str, Method]:
    """Learning rates for the first method."""
    equal = balance(optax.identity(), TASKS)
    return {
        f"equal weights, smooth-L1, rate {rate}": Method(equal, False, rate)
        for rate in (2e-3, 5e-3, 1e-2, 2e-2)
    }


class Run(NamedTuple):
    """What a method has done: S seeds, N steps."""

    models: list[Detector]
    kpis: dict[str, np.ndarray]  # [S, N], on the training batches
    weights: dict[str, np.ndarray]  # [S, N]


@nnx.jit
def train_step(model: Detector, optimizer: Optimizer, batch: _digits.Scenes) -> Any:
    """Trains on a batch and returns its KPIs and the task weights."""
    gradients, kpis = task_gradients(losses_and_kpis, has_aux=True)(model, batch)
    optimizer.update(model, gradients, kpis=kpis)
    opt_state = nnx.as_pure(optimizer.opt_state)
    return kpis, diagnostics.task_weights(opt_state)


def train(
    methods: dict[str, Method], scenes: _digits.Scenes, num_seeds: int, num_steps: int
) -> dict[str, Run]:
    """Trains all methods on the same batches, from the same trunks."""
    runs = {}
    progress = tqdm(total=len(methods) * num_seeds * num_steps, mininterval=0.5)
    for name, method in methods.items():
        progress.set_description(name)
        rate = optax.cosine_decay_schedule(method.learning_rate, num_steps)
        tx = optax.chain(method.link, optax.adam(rate))
        models, logs = [], []
        for seed in range(num_seeds):
            model = Detector(nnx.Rngs(seed), method.uncertain)
            optimizer = Optimizer(model, tx, wrt=nnx.Param)
            rng = np.random.default_rng(seed)
            steps = []
            for _ in range(num_steps):
                rows = rng.integers(len(scenes.labels), size=BATCH_SIZE)
                batch = jax.tree.map(lambda column, rows=rows: column[rows], scenes)
                steps.append(train_step(model, optimizer, batch))
                progress.update()
            models.append(model)
            logs.append(jax.tree.map(lambda *x: np.stack(x), *jax.device_get(steps)))
        kpis, weights = jax.tree.map(lambda *x: np.stack(x), *logs)
        runs[name] = Run(models, kpis, weights)
    progress.close()
    return runs


class Detections(NamedTuple):
    """The digit found in each of B images."""

    labels: jax.Array  # [B], int
    boxes: jax.Array  # [B, 4], those of the proposals with the best scores, in pixels
    deviations: jax.Array  # [B, 4], their standard deviations, in pixels
    voted: jax.Array  # [B, 4], moved to the vote of their neighbours
    evenly_voted: jax.Array  # [B, 4], the same, as if all variances were equal


@nnx.jit
def detect(model: Detector, images: jax.Array | np.ndarray) -> Detections:
    """Decodes all proposals; the one that is surest of its class says what it is."""
    logits, offsets, log_variances = model(images)
    probabilities = jax.nn.softmax(logits)[..., :BACKGROUND]
    scores = probabilities.max(axis=-1)
    pixels = UNIT * np.tile(ANCHOR_SIZE, 2)
    decoded = boxes.decode(offsets * UNIT, anchors())
    variances = jnp.exp(log_variances) * pixels**2
    # There is one digit in each image, however low its score, and no second one.
    vote = jax.vmap(
        functools.partial(boxes.variance_voting, max_outputs=1, score_threshold=0)
    )
    voted = vote(decoded, scores, variances)
    rows, best = np.arange(len(images)), voted.indices[:, 0]
    return Detections(
        probabilities[rows, best].argmax(axis=-1),
        decoded[rows, best],
        jnp.sqrt(variances[rows, best]),
        voted.boxes[:, 0],
        vote(decoded, scores, jnp.ones_like(variances)).boxes[:, 0],
    )


def evaluate(model: Detector, scenes: _digits.Scenes) -> np.ndarray:
    """Accuracy and overlaps on unseen digits, in percent: ``[columns]``."""
    found = detect(model, scenes.images)
    correct = found.labels == scenes.labels
    top, even, voted = (
        boxes.iou(candidates, scenes.boxes)
        for candidates in (found.boxes, found.evenly_voted, found.voted)
    )
    shares = [overlap > 0.75 for overlap in (top, even, voted)]
    return 100 * np.array([np.mean(x) for x in (correct, top, voted, *shares)])


def describe(run: Run, scenes: _digits.Scenes) -> str:
    """How the predicted standard deviations compare with the errors."""
    found = [detect(model, scenes.images) for model in run.models]
    deviations = np.stack([one.deviations for one in found])
    errors = np.abs(np.stack([one.boxes for one in found]) - scenes.boxes)
    within = np.mean(errors <= 2 * deviations)
    parts = [f"{within:.0%} of the sides within two standard deviations"]
    for name, sides in (("hidden", scenes.hidden), ("others", ~scenes.hidden)):
        # The few digits that are missed altogether would rule means.
        deviation, error = (np.median(x[:, sides]) for x in (deviations, errors))
        parts.append(f"{name}: median deviation {deviation:.2f}, error {error:.2f} px")
    return "; ".join(parts)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, prints the table and writes it and the plots."""
    parser = argparse.ArgumentParser(description="Finding and reading a digit.")
    parser.add_argument("--out", type=Path, default=Path("outputs/find_digit"))
    parser.add_argument("--steps", type=int, default=1200, help="1 or more")
    parser.add_argument("--seeds", type=int, default=4, help="2 or more")
    parser.add_argument("--tune", action="store_true", help="compare learning rates")
    args = parser.parse_args(argv)
    if args.steps < 1 or args.seeds < 2:
        parser.error("--steps must be at least 1, --seeds at least 2")
    start = time.perf_counter()

    digits = _digits.split_digits()
    split = "validation" if args.tune else "test"
    seen = _digits.make_scenes(digits["train"], NUM_SCENES["train"])
    unseen = _digits.make_scenes(digits[split], NUM_SCENES[split])
    methods = methods_to_tune() if args.tune else methods_to_compare()
    runs = train(methods, seen, args.seeds, args.steps)
    results = {
        name: np.stack([evaluate(model, unseen) for model in run.models])
        for name, run in runs.items()
    }
    for name, run in runs.items():
        if methods[name].uncertain:
            print(f"{name}: {describe(run, unseen)}")

    table = _plots.table(results, COLUMNS, {})
    rate = "as named" if args.tune else LEARNING_RATE
    notes = f"""
        Results on {split} digits in percent: accuracy; mean IoU of the box with the
        best score, and of that box after variance voting; share of the boxes with IoU
        above 0.75: the best box, after votes with equal variances, after variance
        voting. With smooth-L1 all variances are equal. Means and standard errors over
        {args.seeds} seeds, which vary initial parameters and batches but not the
        digits. {args.steps} steps of Adam, learning rate {rate}, falling to zero like
        a cosine. The run took {time.perf_counter() - start:.0f} s.
    """
    report = f"{table}\n\n{textwrap.fill(textwrap.dedent(notes).strip(), 88)}\n"
    print(f"\n{report}")
    if not args.tune:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "results.md").write_text(report, encoding="utf-8")
        plot(args.out, unseen, runs)
        print(f"Table and plots are in {args.out}.")


def plot(out: Path, scenes: _digits.Scenes, runs: dict[str, Run]) -> None:
    """Writes the three plots."""
    first = _digits.Scenes(*(column[:12] for column in scenes))
    found = detect(runs[SHOWN].models[0], first.images)
    titles = [
        str(label) if label == truth else f"{label} (is {truth})"
        for label, truth in zip(found.labels.tolist(), first.labels, strict=True)
    ]
    _plots.detections(
        out / "predictions.png",
        first.images,
        first.boxes,
        np.asarray(found.voted),
        np.asarray(found.deviations),
        titles,
        f"{SHOWN}: voted boxes, bands of two standard deviations; dashed: truth",
    )
    kpis = {name: run.kpis for name, run in runs.items()}
    weights = {name: run.weights for name, run in runs.items() if "DTP" in name}
    window = max(1, kpis[SHOWN]["box"].shape[1] // 40)
    _plots.weights(out / "weights.png", weights, TASKS, window)
    _plots.curves(
        out / "kpis.png", kpis, TASKS, window, "KPI on training batches, smoothed"
    )


if __name__ == "__main__":
    main()
