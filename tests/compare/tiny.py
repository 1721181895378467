"""A problem that trains in no time: a point pulled to three places, with noise."""

import dataclasses
import os
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dtp_jax import dynamic_task_prioritization
from dtp_jax.compare import Comparison, Method, Problem, compare
from dtp_jax.compare._store import Store

PLACES = np.array([[0.5, 0.0], [-0.3, 0.4], [0.0, -0.4]], np.float32)


def losses_and_kpis(point: Any, batch: Any) -> tuple[Any, Any]:
    shifted = PLACES + jnp.mean(batch["noise"], axis=0)
    squares = jnp.sum((point - shifted) ** 2, axis=1)
    return squares, jnp.exp(-squares)


def init(key: jax.Array) -> jax.Array:
    return jax.random.normal(key, (2,))


def noise(seed: int, size: int) -> dict[str, np.ndarray]:
    drawn = np.random.default_rng(seed).normal(scale=0.3, size=(size, 2))
    return {"noise": drawn.astype(np.float32)}


PROBLEM = Problem(
    tasks=3,
    init=init,
    losses=losses_and_kpis,
    train=noise(0, 50),
    validation=noise(1, 20),
    test=noise(2, 20),
    optimizer=lambda rate: optax.sgd(rate, momentum=0.9),
    num_steps=12,
    batch_size=4,
)


def changed(**fields: Any) -> Problem:
    return dataclasses.replace(PROBLEM, **fields)


METHODS = {"DTP": Method(dynamic_task_prioritization, gamma=[1.0, 2.0])}


def run(out: Any = None, **options: Any) -> Comparison:
    settings: dict[str, Any] = {"rates": (0.03, 0.1), "seeds": 3, "tuning_seeds": 2}
    settings |= {"measurements": 4, "chunk_size": 3, "save_every": 0.0}
    settings |= {"progress": False, "methods": METHODS}
    return compare(PROBLEM, out=out, **settings | options)


def kill_at(count: int, stop: Any) -> None:
    """Calls `stop` in the middle of the write of arrays number `count`."""
    write, written = Store.write, [0]

    def counted(self: Store, name: str, arrays: Any) -> None:
        written[0] += 1
        if written[0] == count:
            half = self.folder / "half.part" if self.folder else Path("half.part")
            half.parent.mkdir(parents=True, exist_ok=True)
            half.write_bytes(b"half of a file")
            stop()
        write(self, name, arrays)

    Store.write = counted


if __name__ == "__main__":
    kill_at(int(sys.argv[2]), lambda: os.kill(os.getpid(), signal.SIGKILL))
    run(sys.argv[1])
