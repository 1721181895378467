"""Balancers: optax transformations from preferences to task weights."""

from ._focal import FocalState as FocalState
from ._focal import focal as focal  # KPI-driven priority (Guo et al., 2018)
from ._mgda import mgda as mgda  # shortest vector of the hull (Sener & Koltun, 2018)
from ._mgda import mgda_weights as mgda_weights
from ._normalize_weights import normalize_weights as normalize_weights  # sum to T or 1
from ._uncertainty import UncertaintyState as UncertaintyState
from ._uncertainty import uncertainty as uncertainty  # learned noise (Kendall, 2018)
