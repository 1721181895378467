"""Dynamic Task Prioritization and multi-task balancing for JAX and optax."""

import importlib
import sys
from typing import TYPE_CHECKING

from dtp_jax import balancers as balancers
from dtp_jax import boxes as boxes
from dtp_jax import combiners as combiners
from dtp_jax import curricula as curricula
from dtp_jax import diagnostics as diagnostics
from dtp_jax import gumbel as gumbel
from dtp_jax import information as information
from dtp_jax import losses as losses
from dtp_jax import metrics as metrics
from dtp_jax import solvers as solvers
from dtp_jax._core.balancer import Balancer as Balancer
from dtp_jax.gradients import TaskGradients as TaskGradients
from dtp_jax.gradients import feature_task_gradients as feature_task_gradients
from dtp_jax.gradients import task_gradients as task_gradients
from dtp_jax.kpi import KpiState as KpiState
from dtp_jax.kpi import combine_losses as combine_losses
from dtp_jax.kpi import focal_weights as focal_weights
from dtp_jax.kpi import init_kpis as init_kpis
from dtp_jax.kpi import update_kpis as update_kpis
from dtp_jax.links import BalanceState as BalanceState
from dtp_jax.links import balance as balance
from dtp_jax.links import clip_each_task as clip_each_task
from dtp_jax.links import (
    dynamic_task_prioritization as dynamic_task_prioritization,
)
from dtp_jax.links import resize_tasks as resize_tasks

__version__ = "0.1.0"


# These need flax or matplotlib, which are extras, or are seldom needed: they are
# imported when they are first used. A type checker must not see the function, or it
# believes in every name.
if TYPE_CHECKING:
    from dtp_jax import compare as compare
    from dtp_jax import linen as linen
    from dtp_jax import nnx as nnx
    from dtp_jax import plot as plot
else:

    def __getattr__(name):
        if name in ("nnx", "linen", "compare", "plot"):
            return importlib.import_module(f"dtp_jax.{name}")
        raise AttributeError(
            f"module 'dtp_jax' has no attribute {name!r}",
            name=name,
            obj=sys.modules[__name__],
        )
