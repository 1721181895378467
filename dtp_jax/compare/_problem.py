"""What a user says about a problem."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from dtp_jax._core.checks import check_whole
from dtp_jax._core.layout import TaskLayout, task_layout
from dtp_jax.gradients import Shared


@dataclasses.dataclass(frozen=True)
class Problem:
    """A multi-task problem: parameters, losses, data and an optimizer.

    Everything is a pure function that `jax.jit` and `jax.vmap` can take. `compare`
    trains many seeds in one program; a problem that cannot be mapped is trained seed by
    seed, which takes longer.

    Attributes:
        tasks: Names, for losses given as ``{name: scalar}``; an int T, for losses given
            as one [T] array; or an example pytree of the losses.
        init: From a PRNG key to parameters.
        losses: ``losses(params, batch)`` returns a pair of the losses and the KPIs,
            one of each for every task; or the losses alone if no method reads KPIs and
            there is `evaluate`. KPIs are in [0, 1], higher is better.
        train: What batches are drawn from: a pytree of arrays with a common first axis,
            of which a step takes `batch_size` rows at random, with replacement; or a
            function of a key and of the step, an int32 scalar, that returns a batch.
        validation: What `evaluate` gets when a learning rate or a setting is chosen.
        test: What `evaluate` gets when a result is reported.
        optimizer: From a learning rate, which is traced, to an optax transformation.
        num_steps: Of training, 1 or more.
        batch_size: Of an array data set.
        evaluate: ``evaluate(params, data)`` returns the KPIs by which methods are
            compared, in [0, 1] and like the losses. None for those of `losses`.
        shared: Over which parameters methods take the Gramian; see
            `dtp_jax.task_gradients`.

    Example:
        Two outputs of a linear map, whose targets contradict each other.

        >>> import jax.numpy as jnp
        >>> def losses(w, batch):
        ...     errors = {"a": w - batch.mean(), "b": w + batch.mean()}
        ...     kpis = jax.tree.map(lambda error: jnp.exp(-jnp.abs(error)), errors)
        ...     return jax.tree.map(jnp.square, errors), kpis
        >>> problem = Problem(
        ...     tasks=["a", "b"], init=jax.random.normal, losses=losses,
        ...     train=jnp.ones(8), validation=jnp.ones(8), test=jnp.ones(8),
        ...     optimizer=optax.sgd, num_steps=10, batch_size=4,
        ... )
        >>> problem.names
        ('a', 'b')
    """

    tasks: Any
    init: Callable[[jax.Array], Any]
    losses: Callable[[Any, Any], Any]
    train: Any
    validation: Any
    test: Any
    optimizer: Callable[[Any], optax.GradientTransformation]
    num_steps: int
    batch_size: int = 64
    evaluate: Callable[[Any, Any], Any] | None = None
    shared: Shared | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tasks, in the order of the leaves of the losses."""
        return tuple(self.layout.names)

    @property
    def layout(self) -> TaskLayout:
        """How the tasks lie in the pytree of the losses."""
        return task_layout(self.tasks)


def check_problem(problem: Problem) -> None:
    """Checks what can be seen without calling a function of the problem.

    Args:
        problem: To be checked.

    Raises:
        ValueError: If a number is out of range, or the arrays to train on are none or
            of different lengths.
    """
    check_whole("num_steps", problem.num_steps, low=1)
    check_whole("batch_size", problem.batch_size, low=1)
    if callable(problem.train):
        return
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(problem.train)}
    if len(lengths) != 1 or lengths == {()}:
        raise ValueError(
            "train must be arrays with a common first axis, of which a step takes "
            "batch_size rows, or a function of a key and a step; got arrays of lengths "
            f"{sorted(lengths)}."
        )
