"""What is trained: the tries of every method, the seeds, and how many at a time."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np

from ._problem import Method
from ._program import Setting
from ._statistics import improvement, ranks

EQUAL, FIXED, SINGLE = "equal weights", "fixed weights", "single tasks"
ALWAYS = (EQUAL, FIXED, SINGLE)
# Rows that train with constant weights share a program, whose number is a vector.
WEIGHTS = "weights"

Rule = Literal["average", "worst", "rank", "improvement"]


class Work(NamedTuple):
    """Networks to train in one program: a setting and a seed for each."""

    settings: list[Setting]
    seeds: list[int]

    @classmethod
    def each(cls, settings: Sequence[Setting], seeds: Sequence[int]) -> "Work":
        """Every setting with every seed, settings first."""
        return cls(
            [setting for setting in settings for _ in seeds],
            [seed for _ in settings for seed in seeds],
        )


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


def chunk_size_of(counts: Sequence[int], most: int) -> int:
    """How many networks to train at a time, so that little is trained in vain.

    All chunks of a comparison have one size, so that a method is compiled once; the
    last of a row is filled up. A chunk costs about as much as two networks besides
    those that it holds.

    Args:
        counts: The numbers of networks that are to be trained, row by row.
        most: That memory allows, 1 or more.

    Returns:
        In [1, most].

    Example:
        Eighteen and ten go into chunks of ten.

        >>> chunk_size_of([18, 10], 100)
        10
    """

    def cost(size: int) -> int:
        return sum((size + 2) * -(-count // size) for count in counts)

    return min(range(1, max(1, min(most, max(counts))) + 1), key=cost)


def affordable(cost: float, count: int) -> list[int]:
    """The tries that a method has in the time that equal weights take for all of theirs.

    Args:
        cost: Of a step, relative to equal weights.
        count: The number of their tries.

    Returns:
        Places, those in the middle first to be kept.

    Example:
        >>> affordable(1.0, 4), affordable(2.1, 4), affordable(9.0, 4)
        ([0, 1, 2, 3], [1, 2], [1])
    """
    kept = max(1, min(count, round(count / cost)))
    from_middle = sorted(range(count), key=lambda place: abs(place - (count - 1) / 2))
    return sorted(from_middle[:kept])


def check_stored(stored: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Checks that a stored plan is of the same comparison.

    Methods may be added, and left out; those that stay must be the same.

    Args:
        stored: From the folder.
        now: Of this call.

    Raises:
        ValueError: If something differs, naming it.
    """
    differing = [key for key in now if key != "methods" and stored[key] != now[key]]
    old, new = stored["methods"], now["methods"]
    both = [name for name in new if name in old]
    differing += [f"the method {name!r}" for name in both if old[name] != new[name]]
    if differing:
        raise ValueError(
            "The folder holds a comparison that differs in "
            f"{', '.join(differing)}: give another out=, or remove the folder to start "
            "again."
        )


def versions() -> dict[str, str]:
    """What rounding depends on.

    Returns:
        Versions and the kind of device by name.
    """
    import jaxlib
    import optax

    return {
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "optax": optax.__version__,
        "device": jax.devices()[0].device_kind,
    }
