"""Which parameters count."""

from collections.abc import Callable
from typing import Any

import jax

# Which parameters count: None for all, a predicate on their path ("trunk/w"), or a
# pytree of booleans that is the parameters' structure or a prefix of it.
Shared = Callable[[str], bool] | Any


def shared_mask(shared: Shared | None, params: Any) -> tuple[bool, ...]:
    """Reads which parameters are shared.

    Args:
        shared: As for `task_gradients`.
        params: The parameters, or a pytree like them.

    Returns:
        One boolean for each parameter, in the order of `jax.tree.leaves`.

    Raises:
        ValueError: If `shared` does not fit the parameters or selects none.
    """
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]
    ]
    if shared is None:
        return (True,) * len(paths)
    if callable(shared):
        mask = tuple(bool(shared(path)) for path in paths)
    else:
        try:
            full = jax.tree.map(
                lambda use, subtree: jax.tree.map(lambda _: use, subtree),
                shared,
                params,
            )
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                "shared is not a prefix of the parameters, whose paths are "
                f"{', '.join(paths)}: {error}"
            ) from error
        mask = tuple(jax.tree.leaves(full))
        if not all(isinstance(use, bool) for use in mask):
            raise ValueError("shared must hold only True and False.")
    if not any(mask):
        raise ValueError(f"shared selects none of the parameters {', '.join(paths)}.")
    return mask


def check_heads(mask: tuple[bool, ...]) -> None:
    if all(mask):
        raise ValueError(
            "Every parameter is shared, so that there are no heads to weight in "
            "another way: say which are, task_gradients(..., shared=...)."
        )


def select(mask: tuple[bool, ...], shared: Any, unshared: Any) -> Any:
    ours, treedef = jax.tree.flatten(shared)
    leaves = zip(mask, ours, jax.tree.leaves(unshared), strict=True)
    return treedef.unflatten([a if used else b for used, a, b in leaves])
