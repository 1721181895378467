"""Meshes of devices, which skip a test where there are too few, and kernels."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import jax
import pytest
from jax.sharding import AxisType

from dtp_jax.solvers import _kernel


def mesh(
    name: str, kind: AxisType = AxisType.Auto, num_devices: int = 8
) -> jax.sharding.Mesh:
    """A mesh of one axis over the first devices."""
    return mesh_of({name: num_devices}, kind)


def mesh_of(sizes: dict[str, int], kind: AxisType = AxisType.Auto) -> Any:
    """A mesh over the first devices, from the names of its axes to their sizes."""
    wanted = math.prod(sizes.values())
    if jax.device_count() < wanted:
        pytest.skip(f"needs {wanted} devices, there are {jax.device_count()}")
    return jax.make_mesh(
        tuple(sizes.values()),
        tuple(sizes),
        axis_types=(kind,) * len(sizes),
        devices=jax.devices()[:wanted],
    )


@contextlib.contextmanager
def kernels(on: bool, interpreted: bool = False) -> Iterator[None]:
    """As on a machine whose CUDA devices take the kernels of the solvers, or do not.

    Interpreted, they run on any machine.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DTP_JAX_KERNELS", "interpret" if interpreted else str(int(on)))
        patch.setattr(_kernel, "available", lambda: on)
        # A solver that was traced before is not traced again.
        jax.clear_caches()
        yield
    jax.clear_caches()


@contextlib.contextmanager
def compiling_for_a_gpu() -> Iterator[None]:
    """What JAX must be told to make a program with kernels where no GPU is."""
    make: Any = jax.sharding.AbstractDevice
    try:
        device = make("NVIDIA H100", None, "gpu")
    except TypeError:  # before jax 0.10.1
        device = make("NVIDIA H100", None)
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        yield
