"""Balancers: optax transformations from preferences to task weights."""

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
