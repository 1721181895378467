"""Chunks of networks in threads: which may run beside each other."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dtp_jax import balance, balancers
from dtp_jax.compare import _train
from tests.compare import tiny

ROOT = Path(__file__).parents[2]
METHODS = {
    "ConFIG": balance(balancers.config(), 3),
    "CAGrad": balance(balancers.cagrad(), 3),
    "MGDA": balance(balancers.mgda(), 3),
}


def test_programs_that_hold_a_thread_of_xla_do_not_meet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    advance = _train._Chunk.advance
    running: list[str] = []
    met: set[frozenset[str]] = set()
    lock = threading.Lock()

    def watched(chunk: _train._Chunk) -> None:
        with lock:
            running.append(chunk.row)
            met.add(frozenset(running))
        time.sleep(0.005)
        advance(chunk)
        with lock:
            running.remove(chunk.row)

    monkeypatch.setattr(_train._Chunk, "advance", watched)
    tiny.run(threads=3, methods=METHODS)
    holding = {"ConFIG", "CAGrad", "MGDA"}
    assert all(len(group & holding) <= 1 for group in met)
    assert any(len(group - holding) > 1 for group in met)
    assert any(group & holding and group - holding for group in met)


# Without that order it waits for ever at the first round, with jaxlib 0.10.2.
SCRIPT = """
import numpy as np, jax, jax.numpy as jnp, optax
from dtp_jax import balance, balancers
from dtp_jax.compare import Problem, compare

places = np.random.default_rng(0).normal(size=(32, 40)).astype(np.float32)

def losses(point, batch):
    squares = jnp.mean((point - places) ** 2, axis=1)
    return squares, jnp.exp(-squares)

data = np.zeros((8, 1), np.float32)
methods = {
    "IMTL-G": balance(balancers.imtl_g(), 32), "CAGrad": balance(balancers.cagrad(), 32)
}
compare(
    Problem(
        tasks=32, init=lambda key: jax.random.normal(key, (40,)), losses=losses,
        train=data, validation=data, test=data, optimizer=optax.sgd, num_steps=200,
    ),
    methods, rates=(0.01, 0.03), seeds=100, tuning_seeds=50, chunk_size=100,
    measurements=1, threads=2, progress=False,
)
print("done")
"""


@pytest.mark.slow
def test_batches_of_factorizations_in_two_threads_come_to_an_end() -> None:
    end = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        timeout=400,
        check=True,
        capture_output=True,
        text=True,
    )
    assert end.stdout.endswith("done\n")
