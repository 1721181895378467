"""Kinds of axes of a mesh of devices."""

from typing import Any

import jax


def is_explicit(mesh: Any) -> bool:
    """Whether a mesh, concrete or abstract, has axes that are part of types.

    Args:
        mesh: The mesh of a sharding.

    Returns:
        True if an axis is explicit; False if the mesh has no axes.

    Example:
        >>> import jax
        >>> is_explicit(jax.sharding.get_abstract_mesh())
        False
    """
    return jax.sharding.AxisType.Explicit in tuple(mesh.axis_types)


def is_automatic(mesh: Any) -> bool:
    """Whether a mesh has an axis of several devices that the compiler deals with.

    Args:
        mesh: The mesh of a sharding, concrete or abstract.

    Returns:
        False if the mesh has no axes.

    Example:
        >>> import jax
        >>> is_automatic(jax.sharding.get_abstract_mesh())
        False
    """
    axes = zip(mesh.axis_types, mesh.axis_sizes, strict=True)
    automatic = jax.sharding.AxisType.Auto
    return any(kind == automatic and size > 1 for kind, size in axes)
