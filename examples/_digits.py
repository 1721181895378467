"""Images made from scikit-learn's handwritten digits, with labels for several tasks.

Pairs are two overlapping digits, the left one in full ink, the right one in faint ink
and partly under it. Three tasks: the class of the left digit, the class of the right
one, and how much of the right one is covered.

Rows are many digits side by side, each partly over its neighbours, in ink that ranges
from full to hardly visible: one task per place, the class of the digit there.

Scenes are one digit of any size somewhere among fragments of others; in half of them a
grey bar hides one side of it. Two tasks: where the digit is, and its class.
"""

from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits

DIGIT = 8  # height and width of a source digit
HEIGHT, WIDTH = 10, 14  # of the canvas
NUM_CLASSES = 10
SPLITS = {"train": 1000, "validation": 300, "test": 497}  # source digits in each
FAINT = 0.6  # ink of the right digit
NOISE = 0.05  # standard deviation of the pixel noise

# The largest error of the overlap that is worth anything. It is about the standard
# deviation of the overlap, so that guessing the mean is worth little.
OVERLAP_SCALE = 0.15

ROW = 12  # digits in a row
STRIDE = 5  # columns from one digit of a row to the next
FAINTEST = 0.1  # ink of the faintest digit of a row

SCENE = 24  # height and width of a scene
BAR = 5  # width of the grey bars in scenes, in pixels
NUM_FRAGMENTS = 2  # halves of other digits in each scene
INK = 0.4  # what a pixel must exceed to lie in the box of its digit


class Digits(NamedTuple):
    """Source digits; no two splits share one."""

    images: np.ndarray  # [N, 8, 8] in [0, 1]
    labels: np.ndarray  # [N], int


class Pairs(NamedTuple):
    """Images of two digits, with a label for each task."""

    images: np.ndarray  # [N, 10, 14]
    left: np.ndarray  # [N], int, class of the left digit
    right: np.ndarray  # [N], int, class of the right digit
    overlap: np.ndarray  # [N], in [0, 1], covered share of the right digit's ink


class Rows(NamedTuple):
    """Images of many digits side by side, with a label for each place."""

    images: np.ndarray  # [N, 8, 63]
    labels: np.ndarray  # [N, ROW], int, class of the digit in each place


class Scenes(NamedTuple):
    """Images of one digit among clutter, with its place and class."""

    images: np.ndarray  # [N, 24, 24]
    labels: np.ndarray  # [N], int, class of the digit
    boxes: np.ndarray  # [N, 4], x1, y1, x2, y2 around its ink, in pixels
    hidden: np.ndarray  # [N, 4], bool, which sides of the box a bar hides


def split_digits(seed: int = 0) -> dict[str, Digits]:
    """Splits scikit-learn's 1797 digits, before any pairs are made."""
    images, labels = load_digits(return_X_y=True)
    images = np.asarray(images, np.float32).reshape(-1, DIGIT, DIGIT) / 16
    labels = np.asarray(labels, np.int32)
    order = np.random.default_rng(seed).permutation(len(labels))
    parts = np.split(order, np.cumsum(list(SPLITS.values()))[:-1])
    return {
        name: Digits(images[part], labels[part])
        for name, part in zip(SPLITS, parts, strict=True)
    }


class Layers(NamedTuple):
    """Two digits on canvases of their own, before they are laid over each other."""

    above: np.ndarray  # [N, 10, 14], the left digit
    below: np.ndarray  # [N, 10, 14], the right one
    left: np.ndarray  # [N], int, class of the left digit
    right: np.ndarray  # [N], int, class of the right digit


def make_layers(digits: Digits, num_pairs: int, rng: np.random.Generator) -> Layers:
    """Draws pairs of digits, at random places, both in full ink."""
    left, right = rng.integers(len(digits.labels), size=(2, num_pairs))
    tops = rng.integers(HEIGHT - DIGIT + 1, size=(2, num_pairs))
    left_column = rng.integers(0, 2, size=num_pairs)
    right_column = rng.integers(2, WIDTH - DIGIT + 1, size=num_pairs)
    above = _on_canvas(digits.images[left], tops[0], left_column)
    below = _on_canvas(digits.images[right], tops[1], right_column)
    return Layers(above, below, digits.labels[left], digits.labels[right])


def make_pairs(digits: Digits, num_pairs: int, seed: int = 0) -> Pairs:
    """Draws pairs of digits, at random places, into one image each."""
    rng = np.random.default_rng(seed)
    above, below, left, right = make_layers(digits, num_pairs, rng)
    covered = np.minimum(above, below).sum((1, 2)) / below.sum((1, 2))
    images = np.maximum(above, FAINT * below)
    images += rng.normal(scale=NOISE, size=images.shape)
    return Pairs(images.astype(np.float32), left, right, covered.astype(np.float32))


def row_inks() -> np.ndarray:
    """The ink of each place of a row, ``[ROW]``, in no particular order."""
    return np.random.default_rng(0).permutation(np.geomspace(1.0, FAINTEST, ROW))


def make_rows(digits: Digits, num_rows: int, seed: int = 0) -> Rows:
    """Draws a digit for each place of each row."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(digits.labels), size=(num_rows, ROW))
    shape = (num_rows, DIGIT, STRIDE * (ROW - 1) + DIGIT)
    images = np.zeros(shape, np.float32)
    for place, ink in enumerate(row_inks().tolist()):
        part = images[:, :, STRIDE * place : STRIDE * place + DIGIT]
        np.maximum(part, ink * digits.images[chosen[:, place]], out=part)
    images += rng.normal(scale=NOISE, size=shape)
    return Rows(images.astype(np.float32), digits.labels[chosen])


def make_scenes(digits: Digits, num_scenes: int, seed: int = 0) -> Scenes:
    """Draws one digit, fragments of others and bars into each image."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(digits.labels), size=num_scenes)
    sizes = rng.uniform(11, 15, (num_scenes, 1)) * rng.uniform(
        0.9, 1.1, (num_scenes, 2)
    )
    corners = rng.uniform(0, SCENE - sizes)
    images = _scaled(digits.images[chosen], corners, sizes)
    ink = _ink_boxes(digits.images[chosen])
    boxes = np.tile(corners, 2) + ink * np.tile(sizes, 2) / DIGIT

    halves = np.zeros((4, DIGIT, DIGIT), np.float32)
    middle = DIGIT // 2
    halves[0, :middle] = halves[1, middle:] = halves[2, :, :middle] = 1
    halves[3, :, middle:] = 1
    for _ in range(NUM_FRAGMENTS):
        others = digits.images[rng.integers(len(digits.labels), size=num_scenes)]
        fragments = others * halves[rng.integers(4, size=num_scenes)]
        sizes = rng.uniform(8, 14, (num_scenes, 2))
        corners = rng.uniform(-3, SCENE + 3 - sizes)
        images = np.maximum(images, _scaled(fragments, corners, sizes))

    # The bar is not centred on the side that it hides, or it would give it away.
    hidden = np.zeros((num_scenes, 4), bool)
    sides = rng.integers(4, size=num_scenes)
    hidden[np.arange(num_scenes), sides] = rng.random(num_scenes) < 0.5
    middles = boxes + rng.uniform(-0.4, 0.4, (num_scenes, 1)) * BAR
    distances = np.abs(np.arange(SCENE) + 0.5 - middles[..., None])
    distances = np.where(hidden[..., None], distances, np.inf)
    columns, rows = distances[:, ::2].min(1), distances[:, 1::2].min(1)
    in_bar = np.minimum(columns[:, None, :], rows[:, :, None]) < BAR / 2
    images = np.where(in_bar, 0.5, images)
    images += rng.normal(scale=NOISE, size=images.shape)
    return Scenes(
        images.astype(np.float32),
        digits.labels[chosen],
        boxes.astype(np.float32),
        hidden,
    )


def _scaled(digits: np.ndarray, corners: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Draws digits of `sizes` with their upper left at `corners`, both ``[N, 2]``.

    Bilinear interpolation is one matrix product per axis.
    """
    centres = np.arange(SCENE) + 0.5
    source = (centres - corners[..., None]) * DIGIT / sizes[..., None] - 0.5
    distances = np.abs(source[..., None] - np.arange(DIGIT))
    columns, rows = np.moveaxis(np.maximum(0, 1 - distances), 1, 0)
    return rows @ digits @ columns.transpose(0, 2, 1)


def _ink_boxes(digits: np.ndarray) -> np.ndarray:
    """The smallest boxes around the ink, ``[N, 4]``, in source pixels."""
    ink = np.asarray(digits > INK)
    columns, rows = ink.max(1), ink.max(2)
    low = [axis.argmax(1) for axis in (columns, rows)]
    high = [DIGIT - axis[:, ::-1].argmax(1) for axis in (columns, rows)]
    return np.stack(low + high, axis=1)


def _on_canvas(digits: np.ndarray, top: np.ndarray, column: np.ndarray) -> np.ndarray:
    canvas = np.zeros((len(digits), HEIGHT, WIDTH), np.float32)
    rows = top[:, None, None] + np.arange(DIGIT)[:, None]
    columns = column[:, None, None] + np.arange(DIGIT)
    canvas[np.arange(len(digits))[:, None, None], rows, columns] = digits
    return canvas
