"""Gradients of several losses at once, computed only as far as a method needs them.

For users, also as ``dtp_jax.<name>``:

* `task_gradients`: in place of `jax.value_and_grad`, for several losses.
* `feature_task_gradients`: the same, its Gramian at shared features (MGDA-UB).
* `TaskGradients`: what both return.

For those who write methods:

* `cross_gramian`: inner products of the gradients of two batches.
* `row_norms`, `of_each_row`, `rows_at_hand`, `shared_rows`, `zero_rows`: the gradients
  one by one.
* `example_norms`: the norms of gradients of single examples, at features.
* `Shared`, `shared_mask`: which parameters the Gramian is taken over.
"""

from ._examples import at_features as at_features
from ._examples import example_norms as example_norms  # at features
from ._features import feature_task_gradients as feature_task_gradients
from ._inputs import split_aux as split_aux
from ._linearized import MAX_UNROLLED as MAX_UNROLLED
from ._linearized import GramianMode as GramianMode
from ._linearized import LinearMap as LinearMap
from ._linearized import in_a_loop as in_a_loop
from ._linearized import one_output as one_output
from ._linearized import weights_like as weights_like
from ._of_losses import task_gradients as task_gradients
from ._pairs import cross_gramian as cross_gramian  # of two batches
from ._rows import of_each_row as of_each_row
from ._rows import row_norms as row_norms
from ._rows import rows_at_hand as rows_at_hand
from ._rows import shared_rows as shared_rows
from ._rows import type_of as type_of
from ._rows import zero_rows as zero_rows
from ._shards import AxisName as AxisName
from ._shared import Shared as Shared
from ._shared import shared_mask as shared_mask
from ._stacked import Stacked as Stacked
from ._stacked import check_stacked as check_stacked
from ._task_gradients import TaskGradients as TaskGradients

__all__ = [
    "MAX_UNROLLED",
    "AxisName",
    "GramianMode",
    "LinearMap",
    "Shared",
    "Stacked",
    "TaskGradients",
    "at_features",
    "check_stacked",
    "cross_gramian",
    "example_norms",
    "feature_task_gradients",
    "in_a_loop",
    "of_each_row",
    "one_output",
    "row_norms",
    "rows_at_hand",
    "shared_mask",
    "shared_rows",
    "split_aux",
    "task_gradients",
    "type_of",
    "weights_like",
    "zero_rows",
]
