"""Balancers: optax transformations from preferences to task weights.

A balancer becomes a link of an optimizer's chain by `dtp_jax.balance`, or runs as part
of `dtp_jax.dynamic_task_prioritization`. The groups are the folders of this package:
what a method reads of a step, which is what it costs.

KPIs; the cost of a fixed weighted sum:

* `focal`: the tasks that do badly lead (Guo et al., 2018).

Losses; the cost of a fixed weighted sum:

* `uncertainty`: learned noise (Kendall et al., 2018).
* `imtl_l`: learned scales (Liu et al., 2021).
* `inverse_losses`: one size for all at the start.
* `geometric`: the geometric mean of the losses, GLS (Chennupati et al., 2019).
* `chebyshev`: a smooth maximum, STCH (Lin et al., 2024).
* `boundary_intersection`: along a ray, PBI (Zhang & Li, 2007).
* `cosmos`: a weighted sum and an angle (Ruchte & Grabocka, 2021).
* `scalarization`: any function of the losses.
* `dwa`: rates of descent (Liu et al., 2019).
* `soft_adapt`: rates of losses (Heydari et al., 2019).
* `relobralo`: the same, sometimes since the start (Bischof & Kraus, 2021).
* `famo`: equal rates of log losses (Liu et al., 2023).
* `igb`: improvable gaps (Dai et al., 2023).
* `go4align`: one weight for tasks that stand alike (Shen et al., 2024).
* `causal`: early times first (Wang et al., 2022).
* `residual_attention`, `self_adaptive`, `balanced_residual_decay`: thousands of points
  of a physics-informed network.
* `average_losses`: any of them on means over windows or epochs.

Sizes of the gradients; a backward pass per task when it looks:

* `grad_norm`: equal rates of training (Chen et al., 2018).
* `lr_annealing`: the size of the primary gradient (Wang et al., 2021).
* `equal_norms`: one norm for all, jaxpi's default (Wang et al., 2023).
* `norm_balancer`: shares of the gradient, EnCodec (Défossez et al., 2022).
* `ntk`: equal traces of tangent kernels (Wang et al., 2022).
* `excess_mtl`: excess risks (He et al., 2024).

Inner products of the gradients; a backward pass per task, and products:

* `upgrad`: no conflict with any task (Quinton & Rey, 2024).
* `dual_projection`: the sum, moved until nobody objects, GEM (2017).
* `mgda`: the shortest vector of the hull (Sener & Koltun, 2018).
* `pcgrad`: projections off conflicts (Yu et al., 2020).
* `grad_vac`: cosines raised to their mean (Wang et al., 2021).
* `cagrad`: the worst case near the mean (Liu et al., 2021).
* `nash_mtl`: the bargaining solution (Navon et al., 2022).
* `fair_grad`: alpha-fair progress (Ban & Ji, 2024).
* `imtl_g`: equal projections (Liu et al., 2021).
* `aligned_mtl`: equal eigenvalues (Senushkin et al., 2023).
* `config`: equal cosines, for physics (Liu et al., 2024).
* `dcgd`: the dual cone of two gradients (Hwang & Lim, 2024).
* `krum`: nearest to its neighbours (Blanchard et al., 2017).
* `pcd`: one task leads, the others progress (TMLR, 2026).

Gradients of other batches; a forward pass more for each:

* `modo`: MGDA without bias (Chen et al., 2023).
* `sdmgrad`: the same, towards the mean (Xiao et al., 2023).
* `auto_lambda`: the weights that help on other data (Liu et al., 2022).

Weights only; the tools of a chain:

* `constant`: fixed weights.
* `random`: new weights in each step, RLW (Lin et al., 2022).
* `normalize_weights`, `clip_weights`, `floor`: a fixed sum, bounds, a least weight.

The rules of methods that read the Gramian only, ``[T, T]`` to ``[T]``, are functions of
their own: `upgrad_weights`, `mgda_weights` and so on. A name that ends in ``State`` is
the state of a method.
"""

from .by_gramian._aligned_mtl import (
    aligned_mtl as aligned_mtl,  # equal eigenvalues (2023)
)
from .by_gramian._aligned_mtl import aligned_mtl_weights as aligned_mtl_weights
from .by_gramian._cagrad import cagrad as cagrad  # worst case near the mean (Liu, 2021)
from .by_gramian._cagrad import cagrad_weights as cagrad_weights
from .by_gramian._config import config as config  # conflict-free, for PINNs (Liu, 2024)
from .by_gramian._config import config_weights as config_weights
from .by_gramian._dcgd import dcgd as dcgd  # dual cone of two (Hwang & Lim, 2024)
from .by_gramian._dcgd import dcgd_weights as dcgd_weights
from .by_gramian._dual_projection import (
    dual_projection as dual_projection,  # GEM (Lopez-Paz)
)
from .by_gramian._dual_projection import (
    dual_projection_weights as dual_projection_weights,
)
from .by_gramian._fair_grad import (
    fair_grad as fair_grad,  # alpha-fair progress (Ban & Ji, 2024)
)
from .by_gramian._fair_grad import fair_grad_weights as fair_grad_weights
from .by_gramian._grad_vac import GradVacState as GradVacState
from .by_gramian._grad_vac import (
    grad_vac as grad_vac,  # cosines raised to their mean (Wang, 2021)
)
from .by_gramian._grad_vac import grad_vac_weights as grad_vac_weights
from .by_gramian._imtl_g import imtl_g as imtl_g  # equal projections (Liu, 2021)
from .by_gramian._imtl_g import imtl_g_weights as imtl_g_weights
from .by_gramian._krum import (
    krum as krum,  # nearest to its neighbours (Blanchard, 2017)
)
from .by_gramian._krum import krum_weights as krum_weights
from .by_gramian._mgda import (
    mgda as mgda,  # shortest vector of the hull (Sener & Koltun, 2018)
)
from .by_gramian._mgda import mgda_weights as mgda_weights
from .by_gramian._nash_mtl import (
    nash_mtl as nash_mtl,  # bargaining solution (Navon, 2022)
)
from .by_gramian._nash_mtl import nash_mtl_weights as nash_mtl_weights
from .by_gramian._pcd import PcdState as PcdState
from .by_gramian._pcd import (
    pcd as pcd,  # one task leads, the others progress (TMLR, 2026)
)
from .by_gramian._pcd import pcd_weights as pcd_weights
from .by_gramian._pcgrad import pcgrad as pcgrad  # projection off conflicts (Yu, 2020)
from .by_gramian._pcgrad import pcgrad_weights as pcgrad_weights
from .by_gramian._upgrad import (
    upgrad as upgrad,  # no conflict with any task (Quinton, 2024)
)
from .by_gramian._upgrad import upgrad_weights as upgrad_weights
from .by_kpi._focal import FocalState as FocalState
from .by_kpi._focal import focal as focal  # KPI-driven priority (Guo et al., 2018)
from .by_loss._average_losses import AverageLossesState as AverageLossesState
from .by_loss._average_losses import average_losses as average_losses  # windows, epochs
from .by_loss._balanced_residual_decay import (
    BalancedResidualDecayState as BalancedResidualDecayState,
)
from .by_loss._balanced_residual_decay import (
    balanced_residual_decay as balanced_residual_decay,  # slow points (Chen, 2024)
)
from .by_loss._boundary_intersection import (
    boundary_intersection as boundary_intersection,
)
from .by_loss._causal import CausalState as CausalState
from .by_loss._causal import causal as causal  # early times first (Wang, 2022)
from .by_loss._chebyshev import (
    chebyshev as chebyshev,  # smooth maximum, STCH (Lin, 2024)
)
from .by_loss._cosmos import (
    cosmos as cosmos,  # cosine penalty (Ruchte & Grabocka, 2021)
)
from .by_loss._dwa import DwaState as DwaState
from .by_loss._dwa import dwa as dwa  # rate of descent (Liu, 2019)
from .by_loss._dwa import dwa_weights as dwa_weights
from .by_loss._famo import FamoState as FamoState
from .by_loss._famo import famo as famo  # equal rates of log losses (Liu, 2023)
from .by_loss._geometric import geometric as geometric  # geometric mean, GLS (2019)
from .by_loss._go4align import Go4AlignState as Go4AlignState
from .by_loss._go4align import go4align as go4align  # groups of tasks (Shen, 2024)
from .by_loss._igb import IgbState as IgbState
from .by_loss._igb import igb as igb  # improvable gaps (Dai et al., 2023)
from .by_loss._imtl_l import ImtlLState as ImtlLState
from .by_loss._imtl_l import imtl_l as imtl_l  # learned scales of losses (Liu, 2021)
from .by_loss._inverse_losses import InverseLossesState as InverseLossesState
from .by_loss._inverse_losses import (
    inverse_losses as inverse_losses,  # one size for all at the start
)
from .by_loss._relobralo import RelobraloState as RelobraloState
from .by_loss._relobralo import (
    relobralo as relobralo,  # for PINNs (Bischof & Kraus, 2021)
)
from .by_loss._residual_attention import (
    ResidualAttentionState as ResidualAttentionState,
)
from .by_loss._residual_attention import (
    residual_attention as residual_attention,  # running residuals, RBA (2024)
)
from .by_loss._scalarization import (
    scalarization as scalarization,  # any function of losses
)
from .by_loss._self_adaptive import SelfAdaptiveState as SelfAdaptiveState
from .by_loss._self_adaptive import (
    self_adaptive as self_adaptive,  # climbing weights (McClenny, 2023)
)
from .by_loss._soft_adapt import SoftAdaptState as SoftAdaptState
from .by_loss._soft_adapt import (
    soft_adapt as soft_adapt,  # rates of losses (Heydari, 2019)
)
from .by_loss._uncertainty import UncertaintyState as UncertaintyState
from .by_loss._uncertainty import (
    uncertainty as uncertainty,  # learned noise (Kendall, 2018)
)
from .by_norm._equal_norms import EqualNormsState as EqualNormsState
from .by_norm._equal_norms import (
    equal_norms as equal_norms,  # jaxpi's default, for PINNs (Wang, 2023)
)
from .by_norm._excess_mtl import ExcessMtlState as ExcessMtlState
from .by_norm._excess_mtl import excess_mtl as excess_mtl  # excess risk (He, 2024)
from .by_norm._grad_norm import GradNormState as GradNormState
from .by_norm._grad_norm import (
    grad_norm as grad_norm,  # equal gradient norms (Chen, 2018)
)
from .by_norm._lr_annealing import LrAnnealingState as LrAnnealingState
from .by_norm._lr_annealing import (
    lr_annealing as lr_annealing,  # for PINNs (Wang, 2021)
)
from .by_norm._norm_balancer import NormBalancerState as NormBalancerState
from .by_norm._norm_balancer import (
    norm_balancer as norm_balancer,  # shares of the gradient, EnCodec (2022)
)
from .by_norm._ntk import NtkState as NtkState
from .by_norm._ntk import ntk as ntk  # equal tangent kernels, for PINNs (Wang, 2022)
from .by_second_batch._auto_lambda import AutoLambdaState as AutoLambdaState
from .by_second_batch._auto_lambda import (
    auto_lambda as auto_lambda,  # for other data (Liu, 2022)
)
from .by_second_batch._modo import ModoState as ModoState
from .by_second_batch._modo import modo as modo  # stochastic MGDA (Chen, 2023)
from .by_second_batch._modo import modo_weights as modo_weights
from .by_second_batch._sdmgrad import SdmgradState as SdmgradState
from .by_second_batch._sdmgrad import (
    sdmgrad as sdmgrad,  # towards the mean, stochastic (Xiao, 2023)
)
from .by_second_batch._sdmgrad import sdmgrad_weights as sdmgrad_weights
from .on_weights._clip_weights import (
    clip_weights as clip_weights,  # weights within bounds
)
from .on_weights._constant import constant as constant  # fixed weights
from .on_weights._floor import floor as floor  # a least weight
from .on_weights._normalize_weights import (
    normalize_weights as normalize_weights,  # sum to T or 1
)
from .on_weights._random import RandomState as RandomState
from .on_weights._random import random as random  # random weights, RLW (Lin, 2022)

__all__ = [
    "AutoLambdaState",
    "AverageLossesState",
    "BalancedResidualDecayState",
    "CausalState",
    "DwaState",
    "EqualNormsState",
    "ExcessMtlState",
    "FamoState",
    "FocalState",
    "Go4AlignState",
    "GradNormState",
    "GradVacState",
    "IgbState",
    "ImtlLState",
    "InverseLossesState",
    "LrAnnealingState",
    "ModoState",
    "NormBalancerState",
    "NtkState",
    "PcdState",
    "RandomState",
    "RelobraloState",
    "ResidualAttentionState",
    "SdmgradState",
    "SelfAdaptiveState",
    "SoftAdaptState",
    "UncertaintyState",
    "aligned_mtl",
    "aligned_mtl_weights",
    "auto_lambda",
    "average_losses",
    "balanced_residual_decay",
    "boundary_intersection",
    "cagrad",
    "cagrad_weights",
    "causal",
    "chebyshev",
    "clip_weights",
    "config",
    "config_weights",
    "constant",
    "cosmos",
    "dcgd",
    "dcgd_weights",
    "dual_projection",
    "dual_projection_weights",
    "dwa",
    "dwa_weights",
    "equal_norms",
    "excess_mtl",
    "fair_grad",
    "fair_grad_weights",
    "famo",
    "floor",
    "focal",
    "geometric",
    "go4align",
    "grad_norm",
    "grad_vac",
    "grad_vac_weights",
    "igb",
    "imtl_g",
    "imtl_g_weights",
    "imtl_l",
    "inverse_losses",
    "krum",
    "krum_weights",
    "lr_annealing",
    "mgda",
    "mgda_weights",
    "modo",
    "modo_weights",
    "nash_mtl",
    "nash_mtl_weights",
    "norm_balancer",
    "normalize_weights",
    "ntk",
    "pcd",
    "pcd_weights",
    "pcgrad",
    "pcgrad_weights",
    "random",
    "relobralo",
    "residual_attention",
    "scalarization",
    "sdmgrad",
    "sdmgrad_weights",
    "self_adaptive",
    "soft_adapt",
    "uncertainty",
    "upgrad",
    "upgrad_weights",
]
