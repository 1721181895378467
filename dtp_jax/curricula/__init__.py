"""Curricula: which tasks take part, and from when on a balancer decides.

What wraps a balancer, and is a balancer again:

* `stages`: tasks join, or leave, at given steps; `check_stages` checks such a plan.
* `warm_up`: the first steps of each task with its preference as weight.
* `every_k`: asks a balancer on every k-th step.

What draws tasks, so that a step computes a few of many:

* `sample_tasks`: k of T tasks by priority, a function.
* `task_sampler`: the same by any KPI- or loss-driven balancer, with a state.
"""

from ._every_k import EveryKState as EveryKState
from ._every_k import every_k as every_k
from ._sampling import SampledTasks as SampledTasks
from ._sampling import Sampling as Sampling
from ._sampling import sample_tasks as sample_tasks
from ._stages import Schedule as Schedule
from ._stages import StagesState as StagesState
from ._stages import check_stages as check_stages
from ._stages import stages as stages
from ._task_sampler import TaskSampler as TaskSampler
from ._task_sampler import TaskSamplerState as TaskSamplerState
from ._task_sampler import task_sampler as task_sampler
from ._warm_up import WarmUpState as WarmUpState
from ._warm_up import warm_up as warm_up

__all__ = [
    "EveryKState",
    "SampledTasks",
    "Sampling",
    "Schedule",
    "StagesState",
    "TaskSampler",
    "TaskSamplerState",
    "WarmUpState",
    "check_stages",
    "every_k",
    "sample_tasks",
    "stages",
    "task_sampler",
    "warm_up",
]
