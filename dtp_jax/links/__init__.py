"""Links: what stands first in an optimizer's chain, from T gradients to one.

* `balance`: a balancer as a link.
* `dynamic_task_prioritization`: the ready-made one.
* `clip_each_task`: a bound on the norm of each task's gradient, before a link.
* `BalanceState`, `PrioritizationState`: their states;
  `state_from_version_0_1` converts older ones, `resize_tasks` takes one over to
  other tasks.
"""

from ._balance import BalanceState as BalanceState
from ._balance import balance as balance
from ._clipping import clip_each_task as clip_each_task
from ._prioritization import (
    dynamic_task_prioritization as dynamic_task_prioritization,
)
from ._prioritized import PrioritizationState as PrioritizationState
from ._prioritized import state_from_version_0_1 as state_from_version_0_1
from ._resize import resize_tasks as resize_tasks

__all__ = [
    "BalanceState",
    "PrioritizationState",
    "balance",
    "clip_each_task",
    "dynamic_task_prioritization",
    "resize_tasks",
    "state_from_version_0_1",
]
