"""The tries of every method, and how one of them is chosen."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from ._methods import Method
from ._ranks import improvement, ranks
from ._settings import Setting

# Rows that train with constant weights share a program, whose number is a vector.
WEIGHTS = "weights"

Rule = Literal["average", "worst", "rank", "improvement"]


def tries_of(method: Method, rates: Sequence[float]) -> list[Setting]:
    """As many settings as there are rates, each rate once.

    The settings of the method take turns along the rates, so that each of them meets
    low and high ones. They are spread evenly where there are more settings than rates.

    Args:
        method: With its grid.
        rates: In the order of their size.

    Returns:
        A setting for each rate.
    """
    settings = method.settings
    if len(settings) > len(rates):
        places = np.linspace(0, len(settings) - 1, len(rates)).round().astype(int)
        settings = [settings[place] for place in places]
    return [
        {"rate": float(rate), "numbers": settings[place % len(settings)]}
        for place, rate in enumerate(rates)
    ]


def constant(rate: float, weights: Sequence[float]) -> Setting:
    """A setting of constant weights.

    Args:
        rate: The learning rate.
        weights: ``[T]``.

    Returns:
        The setting.
    """
    return {"rate": float(rate), "numbers": {WEIGHTS: [float(w) for w in weights]}}


def single_tries(num_tasks: int, rates: Sequence[float]) -> list[list[Setting]]:
    """For each task the settings of a network that learns nothing else.

    Args:
        num_tasks: T.
        rates: To try.

    Returns:
        T lists.
    """
    alone = np.eye(num_tasks).tolist()
    return [[constant(rate, weights) for rate in rates] for weights in alone]


def fixed_tries(
    best_rates: Sequence[float], num_tasks: int, count: int, span: float
) -> list[Setting]:
    """Equal weights at the best rate, and draws of weights at the best two.

    The logarithms of the weights are uniform over `span`; their mean is made one, as
    that of equal weights is, so that they go with the same rates.

    Args:
        best_rates: Of equal weights, the best first.
        num_tasks: T.
        count: How many settings.
        span: The largest ratio of two weights, above 1.

    Returns:
        `count` settings.
    """
    rng = np.random.default_rng(0)
    found = [constant(best_rates[0], np.ones(num_tasks).tolist())]
    for place in range(count - 1):
        draw = np.exp(rng.uniform(0, math.log(span), num_tasks))
        weights = (draw / draw.mean()).round(6).tolist()
        found.append(constant(best_rates[place % min(2, len(best_rates))], weights))
    return found


def scores(kpis: np.ndarray, rule: Rule, reference: np.ndarray) -> np.ndarray:
    """How good the tries of a method are by a rule, the larger the better.

    Args:
        kpis: ``[tries, S, T]`` on validation data.
        rule: "average" and "worst" of the tasks, means over the seeds; "rank", the mean
            over the tasks of the rank among the tries; "improvement" over networks of
            single tasks.
        reference: ``[T]``, what these reach on validation data.

    Returns:
        ``[tries]``.

    Example:
        >>> kpis = np.array([[[0.9, 0.2]], [[0.6, 0.4]]])
        >>> scores(kpis, "average", np.ones(2)).round(3).tolist()
        [0.55, 0.5]
        >>> scores(kpis, "worst", np.ones(2)).tolist()
        [0.2, 0.4]
    """
    if rule == "average":
        return kpis.mean(axis=(1, 2))
    if rule == "worst":
        return kpis.min(axis=2).mean(axis=1)
    means = kpis.mean(axis=1)
    if rule == "rank":
        return -ranks(means).mean(axis=1)
    return improvement(means, reference)


def check_rule(rule: str) -> None:
    """Checks the name of a rule.

    Args:
        rule: By which settings are chosen.

    Raises:
        ValueError: If there is no such rule.
    """
    if rule not in get_args(Rule):
        names = ", ".join(map(repr, get_args(Rule)))
        raise ValueError(f"rule must be one of {names}, got {rule!r}.")
