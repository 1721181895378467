"""Two overlapping handwritten digits in one image, from scikit-learn's digits.

The left digit is written in full ink, the right one in faint ink and partly under it.
Three tasks come with each image: the class of the left digit, the class of the right
one, and how much of the right one is covered.
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


def make_pairs(digits: Digits, num_pairs: int, seed: int = 0) -> Pairs:
    """Draws pairs of digits, at random places, into one image each."""
    rng = np.random.default_rng(seed)
    left, right = rng.integers(len(digits.labels), size=(2, num_pairs))
    tops = rng.integers(HEIGHT - DIGIT + 1, size=(2, num_pairs))
    left_column = rng.integers(0, 2, size=num_pairs)
    right_column = rng.integers(2, WIDTH - DIGIT + 1, size=num_pairs)
    above = _on_canvas(digits.images[left], tops[0], left_column)
    below = _on_canvas(digits.images[right], tops[1], right_column)
    covered = np.minimum(above, below).sum((1, 2)) / below.sum((1, 2))
    images = np.maximum(above, FAINT * below)
    images += rng.normal(scale=NOISE, size=images.shape)
    return Pairs(
        images.astype(np.float32),
        digits.labels[left],
        digits.labels[right],
        covered.astype(np.float32),
    )


def _on_canvas(digits: np.ndarray, top: np.ndarray, column: np.ndarray) -> np.ndarray:
    canvas = np.zeros((len(digits), HEIGHT, WIDTH), np.float32)
    rows = top[:, None, None] + np.arange(DIGIT)[:, None]
    columns = column[:, None, None] + np.arange(DIGIT)
    canvas[np.arange(len(digits))[:, None, None], rows, columns] = digits
    return canvas
