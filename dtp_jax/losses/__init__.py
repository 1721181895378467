"""Loss functions of single examples, for use next to task weights.

All compute in float32, or in float64 when given it. Shapes are not broadcast by adding
axes: ``[B]`` next to ``[B, 1]`` raises. An infinite loss has finite derivatives, so
that an example that a mask leaves out leaves nothing behind.

* Focal: `sigmoid_focal_loss`, `softmax_focal_loss`, `bounded_error_focal_loss`.
* With a learned uncertainty: `uncertainty_regression`, `uncertainty_classification`,
  `uncertainty_laplace`.
* Robust: `general_robust_loss`. Rare classes: `class_balanced_weights`.
"""

from ._class_balance import class_balanced_weights as class_balanced_weights
from ._focal import bounded_error_focal_loss as bounded_error_focal_loss
from ._focal import sigmoid_focal_loss as sigmoid_focal_loss
from ._focal import softmax_focal_loss as softmax_focal_loss
from ._robust import general_robust_loss as general_robust_loss
from ._uncertainty import uncertainty_classification as uncertainty_classification
from ._uncertainty import uncertainty_laplace as uncertainty_laplace
from ._uncertainty import uncertainty_regression as uncertainty_regression

__all__ = [
    "bounded_error_focal_loss",
    "class_balanced_weights",
    "general_robust_loss",
    "sigmoid_focal_loss",
    "softmax_focal_loss",
    "uncertainty_classification",
    "uncertainty_laplace",
    "uncertainty_regression",
]
