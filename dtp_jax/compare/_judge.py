"""The losses and KPIs of a problem, read and checked."""

from typing import Any

import jax
import numpy as np

from dtp_jax._core.layout import TaskLayout

from ._problem import Problem


def losses_and_kpis(problem: Problem, params: Any, batch: Any) -> tuple[Any, Any]:
    """The losses of a batch, and its KPIs or None.

    Args:
        problem: Whose.
        params: Of the network.
        batch: To be judged.

    Returns:
        A pair.
    """
    found = problem.losses(params, batch)
    pair = isinstance(found, tuple) and len(found) == 2
    if pair and jax.tree.structure(found) != problem.layout.treedef:
        return found
    return found, None


def kpis_of(problem: Problem, params: Any, data: Any) -> jax.Array:
    """The KPIs by which methods are compared.

    Args:
        problem: Whose.
        params: Of the network.
        data: Of the validation or of the test.

    Returns:
        ``[T]``.

    Raises:
        ValueError: If there are none, or they do not match the tasks.
    """
    if problem.evaluate is not None:
        kpis = problem.evaluate(params, data)
    else:
        kpis = losses_and_kpis(problem, params, data)[1]
    if kpis is None:
        raise ValueError(
            "There is nothing to compare methods by: losses must return a pair of "
            "losses and KPIs, or the problem needs evaluate=."
        )
    return problem.layout.vector("kpis", kpis)


def check_kpis(
    kpis: np.ndarray, layout: TaskLayout, where: str, *, known: bool = False
) -> None:
    """Checks that KPIs lie in [0, 1].

    Args:
        kpis: ``[..., T]``.
        layout: Of the tasks.
        where: What they are of, for the message.
        known: Whether they must be numbers. Otherwise NaN passes.

    Raises:
        ValueError: If one does not, naming its task.
    """
    rounding = 1e-5
    for name, column in zip(layout.names, np.moveaxis(kpis, -1, 0), strict=True):
        outside = (column < -rounding) | (column > 1 + rounding)
        if known:
            outside |= ~np.isfinite(column)
        if outside.any():
            value = np.extract(outside, column)[0]
            raise ValueError(
                f"The KPI of {name} {where} is {value:.6g}, which is not in [0, 1]: "
                "higher must be better, 0 the worst and 1 the best. Divide percentages "
                "by 100; dtp_jax.metrics makes KPIs of errors (bounded_error, exp_loss,"
                " relative)."
            )
