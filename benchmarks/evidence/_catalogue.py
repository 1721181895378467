"""The methods of the catalogue, at their defaults, where they apply."""

from collections.abc import Callable
from typing import Any

import optax

from dtp_jax import balancers, combiners, curricula, dynamic_task_prioritization
from dtp_jax._core.layout import task_layout
from dtp_jax.compare import Method

from ._size import in_trunk

# What the short form runs.
FEW = ("DTP", "UPGrad")


def catalogue(tasks: Any, *, has_trunk: bool = True) -> dict[str, Any]:
    """Every method that needs no task to be named and no order of them.

    `pcd`, `lr_annealing` and `meta_balance` are for problems with a first task,
    `causal` and `residual_attention` for losses of times and points, `dcgd` for two,
    and `one_at_a_time` for a step of its own; `krum` and
    `trimmed_mean` leave tasks out, for which there must be four or more.

    Args:
        tasks: Of the problem.
        has_trunk: Whether parameters are shared by some and not by all, as combiners
            with an argument `shared` ask.

    Returns:
        What `compare` takes.
    """
    num_tasks = task_layout(tasks).num_tasks
    kpis: dict[str, Any] = {
        "DTP": Method(dynamic_task_prioritization),
        # By default weights are focal after 500 steps, which is most of a short run.
        "DTP, short ramp": lambda tasks: dynamic_task_prioritization(
            tasks, warmup_steps=50, ramp_steps=50
        ),
        "DTP, gamma": Method(dynamic_task_prioritization, gamma=[0.5, 1.0, 3.0]),
    }
    losses: dict[str, Callable[[], Any]] = {
        "random weights": balancers.random,
        "uncertainty": balancers.uncertainty,
        "IMTL-L": balancers.imtl_l,
        "geometric": balancers.geometric,
        "inverse losses": balancers.inverse_losses,
        "DWA": lambda: balancers.average_losses(balancers.dwa(), 20),
        "FAMO": balancers.famo,
        "SoftAdapt": lambda: balancers.soft_adapt(variant="normalized"),
        "ReLoBRaLo": balancers.relobralo,
        "Chebyshev": balancers.chebyshev,
        "IGB": balancers.igb,
        "GO4Align": balancers.go4align,
        "self-adaptive": balancers.self_adaptive,
        "residual decay": balancers.balanced_residual_decay,
    }
    norms: dict[str, Callable[[], Any]] = {
        "GradNorm, every 10": lambda: balancers.grad_norm(refresh_every=10),
        "equal norms, every 10": lambda: balancers.equal_norms(refresh_every=10),
        "NTK, every 10": lambda: balancers.ntk(refresh_every=10),
        "ExcessMTL": balancers.excess_mtl,
        "norm balancer": balancers.norm_balancer,
    }
    gradients: dict[str, Callable[[], Any]] = {
        "MGDA": balancers.mgda,
        "UPGrad": balancers.upgrad,
        "UPGrad, every 10": lambda: curricula.every_k(balancers.upgrad(), 10),
        "dual projection": balancers.dual_projection,
        "PCGrad": balancers.pcgrad,
        "GradVac": balancers.grad_vac,
        "CAGrad": balancers.cagrad,
        "Nash-MTL": balancers.nash_mtl,
        "FairGrad": lambda: balancers.fair_grad(alpha=2.0),
        "IMTL-G": balancers.imtl_g,
        "Aligned-MTL": balancers.aligned_mtl,
        "ConFIG": balancers.config,
        "MoDo": balancers.modo,
        "SDMGrad": balancers.sdmgrad,
        "auto-lambda": lambda: balancers.auto_lambda(1e-3),
    }
    several: dict[str, Any] = {
        "DTP, UPGrad": lambda tasks: dynamic_task_prioritization(
            tasks, balancer=balancers.upgrad()
        ),
        "GradDrop": combiners.grad_drop,
    }
    if has_trunk:
        several["MoCo"] = lambda tasks: combiners.moco(tasks, shared=in_trunk)
        several["DB-MTL"] = lambda tasks: combiners.db_mtl(tasks, shared=in_trunk)
    if num_tasks >= 4:
        gradients["Krum"] = lambda: balancers.krum(num_byzantine=1)
        several["trimmed mean"] = lambda tasks: combiners.trimmed_mean(
            tasks, num_trimmed=1
        )
    of_factories = {**losses, **norms, **gradients}
    made = {name: _called(make) for name, make in of_factories.items()}
    return kpis | made | several


def _called(
    make: Callable[[], optax.GradientTransformation],
) -> Callable[[Any], optax.GradientTransformation]:
    """From the tasks, which the method need not know."""
    return lambda tasks: make()
