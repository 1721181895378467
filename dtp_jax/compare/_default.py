"""A dozen methods for those who do not know the field."""

from collections.abc import Callable
from typing import Any

import optax

from dtp_jax import balancers, combiners, curricula
from dtp_jax.links import balance, dynamic_task_prioritization


def default_methods(tasks: Any) -> dict[str, Any]:
    """A sensible dozen, the cheap ones first.

    * As cheap as plain training: `dynamic_task_prioritization` (reads KPIs), `random`,
      `uncertainty`, `imtl_l`, `dwa` and `famo` (read losses).
    * A backward pass for each task now and then: `grad_norm` and `upgrad`, refreshed on
      every tenth step. Many networks in one program compute that on every step, so that
      training takes longer than the table says.
    * A backward pass for each task: `upgrad`, `cagrad`, `nash_mtl`, and `upgrad` with
      focal preferences; `grad_drop`, which holds the gradients of all tasks.

    All are at their defaults, and have no numbers to be tuned but the rate.

    Args:
        tasks: As for `dtp_jax.balance`.

    Returns:
        Links by name, for `compare`.

    Example:
        >>> methods = default_methods(["left", "right"])
        >>> len(methods), next(iter(methods))
        (13, 'DTP')
    """
    every_tenth = curricula.every_k(balancers.upgrad(), 10)
    with_upgrad = dynamic_task_prioritization(tasks, balancer=balancers.upgrad())
    found: dict[str, Any] = {"DTP": dynamic_task_prioritization(tasks)}
    of: dict[str, Callable[[], optax.GradientTransformation]] = {
        "random weights": balancers.random,
        "uncertainty": balancers.uncertainty,
        "IMTL-L": balancers.imtl_l,
        "DWA": balancers.dwa,
        "FAMO": balancers.famo,
        "GradNorm, every 10": lambda: balancers.grad_norm(refresh_every=10),
        "UPGrad, every 10": lambda: every_tenth,
        "UPGrad": balancers.upgrad,
        "CAGrad": balancers.cagrad,
        "Nash-MTL": balancers.nash_mtl,
    }
    found |= {name: balance(make(), tasks) for name, make in of.items()}
    found["DTP, UPGrad"] = with_upgrad
    found["GradDrop"] = combiners.grad_drop(tasks)
    return found
