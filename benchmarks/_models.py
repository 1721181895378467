"""The network that the benchmarks train: a trunk of dense layers and T heads."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp

CLASSES = 10


def names(num_tasks: int) -> list[str]:
    """Names whose sorted order is that of their numbers."""
    return [f"t{task:02d}" for task in range(num_tasks)]


def init(num_tasks: int, widths: tuple[int, ...], seed: int = 0) -> dict[str, Any]:
    """Parameters: a trunk of the given widths, and a linear head for each task."""
    keys = iter(jax.random.split(jax.random.key(seed), len(widths) + num_tasks))

    def dense(inputs: int, outputs: int) -> dict[str, jax.Array]:
        weight = jax.random.normal(next(keys), (inputs, outputs)) / inputs**0.5
        return {"w": weight, "b": jnp.zeros(outputs)}

    trunk = [dense(a, b) for a, b in itertools.pairwise(widths)]
    heads = {name: dense(widths[-1], CLASSES) for name in names(num_tasks)}
    return {"trunk": trunk, "heads": heads}


def batch(num_tasks: int, inputs: int, size: int, seed: int = 1) -> dict[str, Any]:
    """Random inputs, and random classes for each task."""
    x_key, y_key = jax.random.split(jax.random.key(seed))
    labels = jax.random.randint(y_key, (num_tasks, size), 0, CLASSES)
    return {
        "x": jax.random.normal(x_key, (size, inputs)),
        "y": dict(zip(names(num_tasks), labels, strict=True)),
    }


def losses_and_kpis(params: Any, batch: Any) -> tuple[Any, Any]:
    """Cross-entropy and accuracy of each task."""
    hidden = batch["x"]
    for layer in params["trunk"]:
        hidden = jax.nn.relu(hidden @ layer["w"] + layer["b"])
    losses, kpis = {}, {}
    for name, head in params["heads"].items():
        # Losses are computed in float32, whatever the rest is.
        logits = (hidden @ head["w"] + head["b"]).astype(jnp.float32)
        labels = batch["y"][name]
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
        losses[name] = -jnp.mean(log_p)
        kpis[name] = jnp.mean(jnp.argmax(logits, axis=1) == labels)
    return losses, kpis


def num_params(params: Any) -> int:
    """The number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
