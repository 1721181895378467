"""Links: what stands first in an optimizer's chain, from T gradients to one."""

from ._balance import BalanceState as BalanceState
from ._balance import balance as balance
from ._clipping import clip_each_task as clip_each_task
from ._prioritization import (
    dynamic_task_prioritization as dynamic_task_prioritization,
)
from ._prioritized import PrioritizationState as PrioritizationState
from ._prioritized import state_from_version_0_1 as state_from_version_0_1
from ._resize import resize_tasks as resize_tasks
