"""What a `TaskGradients` answers to those who take it for a gradient."""

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

# Where jax.tree.map and its like are written, and those that map nothing.
_TREE_MODULES = {"jax.tree", "jax.tree_util", "jax._src.tree", "jax._src.tree_util"}
_OF_STRUCTURE = {"structure", "tree_structure"}
_LOOKED_FOR = ("optax", "flax")
_CHAIN = "optax.chain(dtp_jax.balance(balancer, tasks), optax.adam(1e-3))"


class _Described(type):
    """A class whose `repr` says where its instances belong.

    Where two pytrees do not match, such as the parameters and what should be a
    gradient, JAX prints their classes. Nothing else in its message could say what to
    do.
    """

    def __repr__(cls) -> str:
        """The class, and what to do with it."""
        return (
            f"{super().__repr__()} (the gradients of several tasks: put a link that "
            f"makes one of them first, {_CHAIN}, and wrappers such as "
            "optax.MultiSteps behind it, not around it)"
        )


class NoGradient(metaclass=_Described):
    """Says what to do where a gradient, a pytree like the parameters, is expected."""

    def __getitem__(self, key: Any) -> NoReturn:
        """For ``gradients["w"]``, and ``losses, gradients = ...``."""
        raise TypeError(
            f"A {type(self).__name__} has no entries. Its losses are `losses`; one "
            "gradient is `combine(weights)`, those of all tasks are `stack()`. If "
            "losses_fn returns a pair, say task_gradients(..., has_aux=True)."
        )

    def __iter__(self) -> Iterator[Any]:
        """For ``losses, gradients = ...``, which is refused like an entry.

        A type checker reads a tree of updates, so that it lets optax's `update` take
        one: the type that optax gives its updates is open to iterables.
        """
        return self[0]

    def __contains__(self, key: Any) -> NoReturn:
        """For the `TrainState` of flax, which looks for an entry of its own."""
        raise TypeError(
            f"A {type(self).__name__} has no entries to look for, which "
            "flax.training.train_state.TrainState does: use dtp_jax.linen.TrainState "
            "in its place, which also takes kpis= and the like."
        )


def refuse_maps() -> None:
    """Raises if the function that calls this flattens a pytree for optax.

    A transformation of optax maps over the leaves, which here are the numbers of a
    linear map. Most fail half-way, with a message on types, others go on to results
    without meaning, and neither gets to code of this library, except for the
    flattening. So that has to look who asks, and what for. JAX's own functions may:
    arguments of `jax.jit` and operands of `jax.lax.cond` are flattened, too. Nor is a
    look at the structure a map: `optax.masked` takes one at all extra arguments.

    Raises:
        ValueError: If it is optax, or an optimizer of flax, which would drop what is
            not of flax.
    """
    frame: FrameType | None = sys._getframe(2)
    functions = set()
    while _module(frame) in _TREE_MODULES and frame is not None:
        functions.add(frame.f_code.co_name)
        frame = frame.f_back
    if not _module(frame).startswith(_LOOKED_FOR) or functions & _OF_STRUCTURE:
        return
    if _is_in(frame, "optax"):
        raise ValueError(
            f"optax.{_transformation(frame)} took a TaskGradients for a gradient. It "
            "holds the gradients of several tasks. Put a link that makes one of them "
            "first (dtp_jax.balance, dtp_jax.dynamic_task_prioritization or one of "
            f"dtp_jax.combiners): {_CHAIN}. Other transformations go behind it, and "
            "MultiSteps, apply_if_finite, masked and the like around those, not around "
            "the link. Without optax, `combine(weights)` returns one gradient and "
            "`stack()` those of all tasks."
        )
    while _is_in(frame, "flax", "jax"):
        if _is_in(frame, "flax.nnx.training"):
            raise ValueError(
                "flax.nnx.Optimizer drops a TaskGradients, whose arrays are no "
                "variables of nnx: use dtp_jax.nnx.Optimizer in its place."
            )
        frame = frame.f_back if frame else None


def _module(frame: FrameType | None) -> str:
    return "" if frame is None else frame.f_globals.get("__name__", "")


def _is_in(frame: FrameType | None, *packages: str) -> bool:
    return f"{_module(frame)}.".startswith(tuple(f"{name}." for name in packages))


def _transformation(frame: FrameType | None) -> str:
    """The name of what the user wrote rather than of the functions that it calls."""
    name = ""
    while frame is not None and _is_in(frame, "optax", "jax"):
        if _is_in(frame, "optax"):
            name, *inner = frame.f_code.co_qualname.split(".")
            if inner and inner[-1].startswith("update"):
                break
        frame = frame.f_back
    return name.replace("tree_", "tree.")
