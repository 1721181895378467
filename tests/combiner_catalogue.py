"""Every combiner and what its contract suite needs to know of it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

import dtp_jax
from dtp_jax._core.balancer import stateless_weighting
from tests.toys import balancers

# The types of optax admit no TaskGradients.
combiners: Any = dtp_jax.combiners


@dataclasses.dataclass(frozen=True)
class Combiner:
    """A factory call.

    Attributes:
        name: For the test's id.
        make: From the tasks and their number to the combiner.
        variant: Whether it is left to the slow tests.
        static: The hyperparameters that `optax.inject_hyperparams` must not trace.
        dtype: Of losses and gradients.
    """

    name: str
    make: Callable[[Any, int], Any]
    variant: bool = False
    static: tuple[str, ...] = ()
    dtype: Any = jnp.float32


def fixed(weights: Any) -> Any:
    """Preferences times fixed weights."""
    return stateless_weighting(lambda preferences: preferences * jnp.array(weights))


def _focal() -> Any:
    return balancers.focal(gamma=1.0)


def _third(tasks: Any, n: int) -> Any:
    """The task that the suite keeps in its place when it changes their order."""
    named = isinstance(tasks, (tuple, list, dict)) and "c" in tasks
    return "c" if named else min(2, n - 1)


COMBINERS = [
    Combiner("grad_drop", lambda tasks, n: combiners.grad_drop(tasks)),
    Combiner(
        "grad_drop-leak-focal",
        lambda tasks, n: combiners.grad_drop(tasks, leak=0.3, preferences=_focal()),
    ),
    Combiner(
        "trimmed_mean-focal",
        lambda tasks, n: combiners.trimmed_mean(
            tasks, num_trimmed=min(1, (n - 1) // 2), preferences=_focal()
        ),
        static=("num_trimmed",),
    ),
    Combiner(
        "meta_balance-focal",
        lambda tasks, n: combiners.meta_balance(
            tasks, _third(tasks, n), relax=0.6, preferences=_focal()
        ),
        static=("primary", "strategy"),
    ),
    Combiner(
        "moco-focal",
        lambda tasks, n: combiners.moco(
            tasks, gamma=0.01, rho=0.1, preferences=_focal()
        ),
    ),
    Combiner(
        "db_mtl-focal", lambda tasks, n: combiners.db_mtl(tasks, preferences=_focal())
    ),
]
