"""Solvers of the small quadratic problems behind the Gramian-driven methods."""

from ._min_norm import MinNormPoint as MinNormPoint
from ._min_norm import min_norm_point as min_norm_point  # nearest point of a hull
