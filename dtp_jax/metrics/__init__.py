"""From measurements to KPIs: functions whose answer is in [0, 1], higher is better.

Every function returns a float32 scalar and takes a mask, `where`, of the examples that
count: an array of the shape the function names, with 1 for sizes to be repeated, or
None for all. **With no example to judge the answer is NaN, which the library reads as
"not observed"**: the task keeps the KPI that it had.

An example whose prediction or target is not finite counts as wrong, so that a network
that diverges does not look good; mask the examples whose target is missing. Integers of
any width and size are compared and subtracted before they are converted. All functions
run under `jax.jit` and `jax.vmap`.

* Classification: `accuracy`, `top_k_accuracy`, `average_precision`.
* Boxes, masks, keypoints: `mean_box_iou`, `mean_mask_iou`, `pck`.
* Regression: `within_threshold`, `bounded_error`, `correlation`.
* Any loss: `exp_loss`.
* KPIs of different tasks on one scale: `relative`; what guessing scores:
  `chance_accuracy`, `chance_bounded_error`, `chance_mean_box_iou` and
  `chance_correlation`.

`mean_box_iou`, `bounded_error`, `correlation` and `exp_loss` can be differentiated:
their gradients are finite everywhere. The others are piecewise constant: their
gradients are zero.
"""

from ._classification import accuracy as accuracy
from ._classification import average_precision as average_precision
from ._classification import top_k_accuracy as top_k_accuracy
from ._errors import bounded_error as bounded_error
from ._errors import correlation as correlation
from ._errors import exp_loss as exp_loss
from ._errors import within_threshold as within_threshold
from ._overlap import mean_box_iou as mean_box_iou
from ._overlap import mean_mask_iou as mean_mask_iou
from ._overlap import pck as pck
from ._relative import chance_accuracy as chance_accuracy
from ._relative import chance_bounded_error as chance_bounded_error
from ._relative import chance_correlation as chance_correlation
from ._relative import chance_mean_box_iou as chance_mean_box_iou
from ._relative import relative as relative

__all__ = [
    "accuracy",
    "average_precision",
    "bounded_error",
    "chance_accuracy",
    "chance_bounded_error",
    "chance_correlation",
    "chance_mean_box_iou",
    "correlation",
    "exp_loss",
    "mean_box_iou",
    "mean_mask_iou",
    "pck",
    "relative",
    "top_k_accuracy",
    "within_threshold",
]
