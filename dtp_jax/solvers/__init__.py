"""Solvers of the small convex problems behind the Gramian-driven methods."""

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
