"""Every method and what the contract suite needs to know of it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import optax

from dtp_jax import balancers, curricula
from tests import toys


@dataclasses.dataclass(frozen=True)
class Method:
    """A factory call and the properties that the method declares.

    Attributes:
        name: For the test's id.
        make: From the names of the tasks to the balancer.
        by_name: Whether a hyperparameter names the tasks, so that they must have names.
    """

    name: str
    make: Callable[[tuple[str, ...]], Any]
    by_name: bool = False


def _join_later(names: tuple[str, ...]) -> Any:
    return curricula.stages({0: list(names), 2: list(names)}, balancers.focal())


METHODS = [
    Method("focal", lambda names: balancers.focal()),
    Method("focal-gamma-0", lambda names: balancers.focal(gamma=0.0, alpha=1.0)),
    Method(
        "focal-per-task",
        lambda names: balancers.focal(gamma=dict.fromkeys(names, 1.0)),
        by_name=True,
    ),
    Method("normalize_weights", lambda names: balancers.normalize_weights()),
    Method(
        "normalize_weights-1", lambda names: balancers.normalize_weights("sum_to_1")
    ),
    Method("stages", _join_later),
    Method("warm_up", lambda names: curricula.warm_up(balancers.focal(), 2)),
    Method(
        "focal-normalized",
        lambda names: optax.chain(balancers.focal(), balancers.normalize_weights()),
    ),
    Method(
        "focal-ema", lambda names: optax.chain(balancers.focal(), optax.ema(decay=0.9))
    ),
    Method("uncertainty", lambda names: balancers.uncertainty()),
    Method(
        "uncertainty-positive",
        lambda names: balancers.uncertainty(
            kind="classification", optimizer=optax.sgd(0.1), positive=True
        ),
    ),
    Method(
        "focal-uncertainty",
        lambda names: optax.chain(
            balancers.focal(), balancers.uncertainty(kind="laplace")
        ),
    ),
    Method("mgda", lambda names: balancers.mgda()),
    Method("mgda-l2", lambda names: balancers.mgda(normalization="l2")),
    Method("mgda-loss+", lambda names: balancers.mgda(normalization="loss+")),
    Method(
        "focal-mgda", lambda names: optax.chain(balancers.focal(), balancers.mgda())
    ),
    Method("toy-memory", lambda names: toys.remember_losses()),
    Method("toy-projected", lambda names: toys.projected()),
    Method("toy-gramian", lambda names: toys.equal_norms()),
    Method(
        "focal-then-gramian",
        lambda names: optax.chain(balancers.focal(gamma=1.0), toys.equal_norms()),
    ),
]
