"""What a user says about a problem and about methods."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from dtp_jax._core.balancer import Link, checked_balancer
from dtp_jax._core.checks import check_whole
from dtp_jax._core.layout import TaskLayout, task_layout
from dtp_jax.gradients import Shared
from dtp_jax.links import balance

MakeLink = Callable[..., optax.GradientTransformation]


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


class Method:
    """A method with numbers of its own to be tuned.

    Args:
        make: From the tasks and these numbers, as keyword arguments, to a link of an
            optimizer's chain or to a balancer. The numbers are traced: one program
            serves the whole grid.
        grid: The values to try of each number, all combinations of them.

    Raises:
        ValueError: If a number has no value.

    Example:
        >>> from dtp_jax import dynamic_task_prioritization
        >>> method = Method(dynamic_task_prioritization, gamma=[0.5, 1.0, 2.0])
        >>> len(method.settings), method.settings[0]
        (3, {'gamma': 0.5})
    """

    def __init__(self, make: MakeLink, **grid: Sequence[float]) -> None:
        """Notes the function and the grid; see the class."""
        for name, values in grid.items():
            if len(values) == 0:
                raise ValueError(f"The grid of {name} is empty: give a value to try.")
        self.make = make
        self.grid: dict[str, list[float]] = {
            name: [float(value) for value in values] for name, values in grid.items()
        }

    @property
    def settings(self) -> list[dict[str, float]]:
        """All combinations of the grid; one without numbers if it has none."""
        found: list[dict[str, float]] = [{}]
        for name, values in self.grid.items():
            found = [old | {name: value} for old in found for value in values]
        return found


def as_methods(methods: Mapping[str, Any], problem: Problem) -> dict[str, Method]:
    """Reads what a user gives as methods.

    Args:
        methods: By name: a `Method`; a link; a balancer, which gets wrapped in
            `dtp_jax.balance`; or a function from the tasks to one of both.
        problem: Whose tasks they are for.

    Returns:
        Methods by name whose `make` returns links.

    Raises:
        ValueError: If a name is empty or not fit to be the name of a file.
        TypeError: If a method is none of these.
    """
    found = {}
    for name, method in methods.items():
        if not name or set(name) & set('/\\:*?"<>|\n'):
            raise ValueError(
                f"The name of a method becomes that of a file, got {name!r}: use "
                "letters, digits, spaces and commas."
            )
        if isinstance(method, optax.GradientTransformation):
            found[name] = Method(_same(method, problem))
        elif isinstance(method, Method):
            found[name] = _linked(name, method.make, method.grid)
        elif callable(method):
            found[name] = _linked(name, method, {})
        else:
            raise TypeError(
                f"The method {name!r} must be a link, a balancer, a function from the "
                f"tasks to one, or a Method, got {type(method).__name__}."
            )
    return found


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


def _linked(name: str, make: MakeLink, grid: Any) -> Method:
    def made(tasks: Any, **numbers: Any) -> optax.GradientTransformation:
        found = make(tasks, **numbers)
        if not isinstance(found, optax.GradientTransformation):
            raise TypeError(
                f"The method {name!r} returned {type(found).__name__} where a link or "
                "a balancer was expected. Its function gets the tasks: "
                "lambda tasks: dtp_jax.balancers.mgda()."
            )
        return as_link(found, tasks)

    return Method(made, **grid)


def _same(method: optax.GradientTransformation, problem: Problem) -> MakeLink:
    link = as_link(method, problem.tasks)

    def make(tasks: Any) -> optax.GradientTransformation:
        del tasks
        return link

    return make


def as_link(method: Any, tasks: Any) -> optax.GradientTransformation:
    """Wraps a balancer in `dtp_jax.balance`; a link, or a chain with one, stays.

    Args:
        method: An optax transformation.
        tasks: As for `dtp_jax.balance`.

    Returns:
        A link.
    """
    if isinstance(method, Link):
        return method
    try:
        checked_balancer("the method", method, task_layout(tasks))
    except TypeError:
        # A chain that holds a link says so.
        return method
    return balance(method, tasks)
