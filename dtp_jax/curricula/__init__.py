"""Curricula: which tasks take part, and from when on a balancer decides."""

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
