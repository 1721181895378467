"""Where the tasks lie in a state: what of it grows if there is one task more."""

import contextlib
import dataclasses
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import jax


@dataclasses.dataclass
class Probe:
    """What is found out while links are initialized.

    Attributes:
        grow: Whether each link is to start with one task more.
        layouts: Those of the links that were initialized, as they are otherwise.
        grown: The same with one task more.
    """

    grow: bool
    layouts: list[Any] = dataclasses.field(default_factory=list)
    grown: list[Any] = dataclasses.field(default_factory=list)


_PROBE: ContextVar[Probe | None] = ContextVar("_PROBE", default=None)


@contextlib.contextmanager
def probing(*, grow: bool) -> Iterator[Probe]:
    """Looks at the links that are initialized in its body."""
    probe = Probe(grow)
    token = _PROBE.set(probe)
    try:
        yield probe
    finally:
        _PROBE.reset(token)


def is_growing() -> bool:
    """Whether links start with a task more, of which no hyperparameter knows."""
    probe = _PROBE.get()
    return probe is not None and probe.grow


def probed(layout: Any) -> Any:
    """The layout with which a link has to be initialized: its own, but in a probe.

    Args:
        layout: The layout of its tasks.

    Returns:
        The same, or one of one more task, which keeps the names of the others.
    """
    probe = _PROBE.get()
    if probe is None:
        return layout
    treedef, shapes = _grown(layout.treedef, layout.shapes)
    grown = dataclasses.replace(layout, treedef=treedef, shapes=shapes)
    probe.layouts.append(layout)
    probe.grown.append(grown)
    return grown if probe.grow else layout


def _grown(treedef: Any, shapes: tuple[tuple[int, ...], ...]) -> Any:
    places = treedef.unflatten(range(len(shapes)))
    more: Any = None
    if type(places) is dict and places and all(isinstance(k, str) for k in places):
        more = {**places, max(places) + "+": -1}
    elif type(places) in (list, tuple):
        more = [*places, -1]
        more = tuple(more) if isinstance(places, tuple) else more
    if more is None:
        # Tasks in one array; the first leaf of any other pytree.
        first = shapes[0]
        first = (2,) if first == () else (first[0] + 1, *first[1:])
        return treedef, (first, *shapes[1:])
    order, treedef = jax.tree.flatten(more)
    return treedef, tuple(() if place < 0 else shapes[place] for place in order)
