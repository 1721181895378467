"""Combiners: optax transformations from the gradients of T tasks to one gradient."""

from ._db_mtl import DbMtlState as DbMtlState
from ._db_mtl import db_mtl as db_mtl  # log losses, equal norms (Lin et al., 2023)
from ._grad_drop import grad_drop as grad_drop  # one sign each (Chen et al., 2020)
from ._meta_balance import MetaBalanceState as MetaBalanceState
from ._meta_balance import (
    meta_balance as meta_balance,  # sizes of auxiliary gradients (He et al., 2022)
)
from ._moco import MocoState as MocoState
from ._moco import moco as moco  # tracked gradients (Fernando et al., 2023)
from ._one_at_a_time import OneAtATimeState as OneAtATimeState
from ._one_at_a_time import (
    one_at_a_time as one_at_a_time,  # momentum ConFIG and its kind (Liu et al., 2024)
)
from ._trimmed_mean import trimmed_mean as trimmed_mean  # robust (Yin et al., 2018)
