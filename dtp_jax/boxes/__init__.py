"""Boxes with uncertain corners: overlap, regression targets, KL loss, variance voting.

A box is ``[..., 4]``: ``x1, y1, x2, y2`` with ``x1 <= x2`` and ``y1 <= y2``. A box that
is inverted along an axis (``x2 < x1``) has no area, like one whose corners coincide.
All functions compute, and answer, in float32, or in float64 when given it. Coordinates
that are integers are subtracted before they are converted, so that large ones keep
their digits.

* Overlap: `iou`, `giou`. Offsets from anchors: `encode`, `decode`.
* Losses: `kl_loss` of corners with uncertainty, `bounded_iou_loss`; the head of
  variances starts from `log_variance_init`.
* Detections: `variance_voting`.
"""

from ._encoding import decode as decode
from ._encoding import encode as encode
from ._losses import bounded_iou_loss as bounded_iou_loss
from ._losses import kl_loss as kl_loss
from ._losses import log_variance_init as log_variance_init
from ._overlap import giou as giou
from ._overlap import iou as iou
from ._voting import VotedBoxes as VotedBoxes
from ._voting import variance_voting as variance_voting

__all__ = [
    "VotedBoxes",
    "bounded_iou_loss",
    "decode",
    "encode",
    "giou",
    "iou",
    "kl_loss",
    "log_variance_init",
    "variance_voting",
]
