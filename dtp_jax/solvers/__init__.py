"""Solvers of the small convex problems behind the Gramian-driven methods.

All take a ``[T, T]`` Gramian, run in the program, and say how much they miss.

* `min_norm_point`: the nearest point of a hull, of MGDA.
* `project_onto_dual_cone`: of UPGrad and `dual_projection`.
* `nonnegative_quadratic`: quadratic problems with entries of at least zero.
* `cagrad_problem`: of CAGrad.
* `nash_equation`, `fair_equation`: of Nash-MTL and FairGrad.
* `equal_projections`: of IMTL-G.
"""

from dtp_jax.solvers._quadratic import nonnegative_quadratic as nonnegative_quadratic

from ._bargaining import NashPoint as NashPoint
from ._bargaining import fair_equation as fair_equation  # of FairGrad
from ._bargaining import nash_equation as nash_equation  # of Nash-MTL
from ._cagrad_problem import CagradPoint as CagradPoint
from ._cagrad_problem import cagrad_problem as cagrad_problem  # of CAGrad
from ._dual_cone import DualConePoint as DualConePoint
from ._dual_cone import project_onto_dual_cone as project_onto_dual_cone  # of UPGrad
from ._equal_projections import EqualProjections as EqualProjections
from ._equal_projections import equal_projections as equal_projections  # of IMTL-G
from ._min_norm import MinNormPoint as MinNormPoint
from ._min_norm import min_norm_point as min_norm_point  # nearest point of a hull

__all__ = [
    "CagradPoint",
    "DualConePoint",
    "EqualProjections",
    "MinNormPoint",
    "NashPoint",
    "cagrad_problem",
    "equal_projections",
    "fair_equation",
    "min_norm_point",
    "nash_equation",
    "nonnegative_quadratic",
    "project_onto_dual_cone",
]
