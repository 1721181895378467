"""Trains methods in two processes that share a mesh: a part of `make reliability`.

python -m benchmarks._two_processes upgrad famo

Two processes with four devices each find each other over loopback, and train on one
mesh of eight devices, data parallel. What comes out is compared with one device.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

PROCESSES, DEVICES = 2, 4


def deviations(names: Sequence[str]) -> dict[str, float]:
    """How far training in two processes is from training on one device.

    Args:
        names: Of links.

    Returns:
        By link, the largest distance relative to the largest entry of an array.
    """
    if not names:
        return {}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={DEVICES}"
    children: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as folder:
        # Not through pipes: one that is full would stop a process that the other needs.
        files = [Path(folder) / str(number) for number in range(PROCESSES)]
        try:
            for number, file in enumerate(files):
                command = [sys.executable, "-m", "benchmarks._two_processes", *names]
                command += ["--number", str(number), "--port", str(port)]
                settings = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
                with file.open("w") as out:
                    children.append(subprocess.Popen(command, env=settings, stdout=out))
            codes = [child.wait(timeout=120 + 120 * len(names)) for child in children]
        finally:
            for child in children:
                child.kill()
                child.wait()
        said = [file.read_text(encoding="utf-8") for file in files]
    if any(codes):
        sys.exit("A process failed.")
    # Gloo, which carries what they send, says hello between the lines.
    lines = [[line.split() for line in text.splitlines()] for text in said]
    found = [{cells[0]: cells[-1] for cells in each if cells} for each in lines]
    return {name: max(float(each[name]) for each in found) for name in names}


def train_with_another(names: Sequence[str], number: int, port: int) -> None:
    """What a process does: trains with the other one, and prints how far it is off."""
    jax.distributed.initialize(
        f"127.0.0.1:{port}", num_processes=PROCESSES, process_id=number
    )
    # It makes arrays, before which the processes must know each other.
    from benchmarks import _trials

    mesh = jax.make_mesh((PROCESSES * DEVICES,), ("x",), axis_types=(AxisType.Auto,))
    for name in names:
        with jax.set_mesh(mesh):
            everywhere = NamedSharding(mesh, P())
            params = jax.device_put(jax.tree.map(np.asarray, _trials.MODEL), everywhere)
            x = jax.device_put(np.asarray(_trials.X), NamedSharding(mesh, P("x")))
            found = _trials.trained(_trials.LINKS[name](_trials.NAMES), params, x)
        here = jax.tree.map(_held_here, found)
        # On a device of its own.
        with jax.default_device(jax.local_devices()[0]):
            expected = _trials.on_one_device(name)
        print(name, _trials.deviation(here, expected), flush=True)
        jax.clear_caches()


def _held_here(leaf: Any) -> Any:
    """An array that is whole on each device; infinite if they disagree."""
    parts = [np.asarray(shard.data) for shard in leaf.addressable_shards]
    same = all(np.array_equal(part, parts[0], equal_nan=True) for part in parts)
    whole = parts[0].shape == leaf.shape
    return parts[0] if same and whole else np.full(leaf.shape, np.inf)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.number is None:
        print(deviations(args.names))
    else:
        train_with_another(args.names, args.number, args.port)
