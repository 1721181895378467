"""Links: what stands first in an optimizer's chain, from T gradients to one."""

from ._balance import BalanceState as BalanceState
from ._balance import balance as balance
from ._clipping import clip_each_task as clip_each_task
from ._prioritization import (
    dynamic_task_prioritization as dynamic_task_prioritization,
)
