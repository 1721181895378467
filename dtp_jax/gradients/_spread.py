"""Gradients that lie over the devices as their parameters do."""

import contextlib
from collections.abc import Sequence
from typing import Any

import jax

from dtp_jax._core import meshes

shard_alike: Any = None
# Gone from jax 0.12 on, and nothing in its place: gradients that a loop stacks are then
# spread as the compiler likes.
with contextlib.suppress(ImportError):
    from jax.experimental.shard_alike import shard_alike


def may_be_spread(kinds: Sequence[Any]) -> bool:
    """Whether arrays of these types may have parts on several devices.

    Args:
        kinds: Types, as `jax.typeof` returns them.

    Returns:
        True if one lies on a mesh with an automatic axis of more than one device, over
        which the compiler may spread it, or is spread over an explicit axis.
    """
    return any(
        meshes.is_automatic(kind.sharding.mesh)
        or (
            meshes.is_explicit(kind.sharding.mesh)
            and any(part is not None for part in kind.sharding.spec)
        )
        for kind in kinds
    )


def references(leaves: Sequence[jax.Array]) -> list[jax.Array]:
    """What `alike` needs to know of the parameters.

    Args:
        leaves: The parameters.

    Returns:
        The parameters; none where no axis of a mesh is automatic, or JAX has no way to
        say it.
    """
    if shard_alike is None:
        return []
    automatic = [meshes.is_automatic(jax.typeof(x).sharding.mesh) for x in leaves]
    return list(leaves) if any(automatic) else []


def alike(tree: Any, like: Sequence[jax.Array]) -> Any:
    """The same gradient, spread over the devices as the parameters are.

    Left to itself, the compiler keeps the gradients that a loop stacks whole on each
    device. What the types do not say on automatic axes, this does.

    Args:
        tree: A gradient, a pytree like the parameters.
        like: What `references` returned.

    Returns:
        A pytree like it.
    """
    if not like:
        return tree
    leaves, treedef = jax.tree.flatten(tree)
    pairs = zip(leaves, like, strict=True)
    return treedef.unflatten([shard_alike(row, param)[0] for row, param in pairs])
