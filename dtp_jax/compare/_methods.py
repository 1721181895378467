"""What a user says about methods."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optax

from dtp_jax._core.balancer import Link, checked_balancer
from dtp_jax._core.layout import task_layout
from dtp_jax.links import balance

from ._problem import Problem

# From the tasks, and numbers by name, to a link or a balancer.
MakeLink = Callable[..., Any]


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
