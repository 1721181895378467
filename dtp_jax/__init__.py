"""Dynamic Task Prioritization and multi-task balancing for JAX and optax.

A step, in four names:

* `task_gradients`: in place of `jax.value_and_grad`, for a function that returns
  several losses; `feature_task_gradients` looks at shared features. Both return a
  `TaskGradients`, which has computed no gradient yet.
* `dynamic_task_prioritization`: the first link of the optimizer's chain; tasks that do
  badly lead.
* `balance`: any other balancer as the first link. `clip_each_task` stands before it.
* ``update(task_gradients, state, params, kpis=kpis)`` of the chain: what sets the step.

Modules:

* `balancers`: published rules for task weights, by what they read.
* `combiners`: rules that are no weighting.
* `curricula`: stages, warm-up, every k-th step, sampled tasks.
* `metrics`: KPIs in [0, 1].
* `losses`, `boxes`, `gumbel`, `information`: the toolbox, arrays in and arrays out.
* `diagnostics`: weights, KPIs and conflicts to log.
* `solvers`: the convex problems behind the methods.
* `compare`: which method for my problem, in one call.
* `nnx`, `linen`: for flax, with the extra "flax". `plot`: figures, with "plot".

The core without optax: `init_kpis`, `update_kpis`, `focal_weights`, `combine_losses`,
and the states `KpiState` and `BalanceState`. `Balancer` is the type of all balancers
and links.
"""

import importlib
import importlib.util
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

__all__ = [
    "BalanceState",
    "Balancer",
    "KpiState",
    "TaskGradients",
    "__version__",
    "balance",
    "balancers",
    "boxes",
    "clip_each_task",
    "combine_losses",
    "combiners",
    "curricula",
    "diagnostics",
    "dynamic_task_prioritization",
    "feature_task_gradients",
    "focal_weights",
    "gumbel",
    "information",
    "init_kpis",
    "losses",
    "metrics",
    "resize_tasks",
    "solvers",
    "task_gradients",
    "update_kpis",
]

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


def __dir__() -> list[str]:
    """What there is to see, with the modules of those extras that are installed."""
    needed = {"nnx": "flax", "linen": "flax", "plot": "matplotlib", "compare": "optax"}
    found = {name for name, extra in needed.items() if importlib.util.find_spec(extra)}
    return sorted({*__all__, *found})
