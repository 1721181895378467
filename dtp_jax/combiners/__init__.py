"""Combiners: optax transformations from the gradients of T tasks to one gradient.

For rules that are no weighting. A combiner is a link: it stands first in an optimizer's
chain, without `dtp_jax.balance`. It holds the gradients of all tasks.

* `grad_drop`: one sign for each entry (Chen et al., 2020).
* `trimmed_mean`: robust to wrong gradients (Yin et al., 2018).
* `moco`: tracked gradients (Fernando et al., 2023).
* `db_mtl`: log losses, equal norms (Lin et al., 2023).
* `meta_balance`: auxiliary gradients of the primary's size (He et al., 2022).
* `one_at_a_time`: one task a step, a rule on averages of all (Liu et al., 2024).

A name that ends in ``State`` is the state of a combiner.
"""

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

__all__ = [
    "DbMtlState",
    "MetaBalanceState",
    "MocoState",
    "OneAtATimeState",
    "db_mtl",
    "grad_drop",
    "meta_balance",
    "moco",
    "one_at_a_time",
    "trimmed_mean",
]
