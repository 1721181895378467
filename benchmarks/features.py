"""MGDA at the level of parameters and of features (MGDA-UB), against a plain step.

The same network with T heads stacked in one array: a trunk 64-512-512 and heads 512-10,
a batch of 256. A step is the gradient and an update by SGD.
"""

import argparse
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import _models
from benchmarks._measure import compiled, interleaved, table
from dtp_jax import balance, balancers, feature_task_gradients, task_gradients

WIDTHS, BATCH = (64, 512, 512), 256


def encoder(params: Any, batch: Any) -> jax.Array:
    """The features, [BATCH, 512]."""
    hidden = batch["x"]
    for layer in params["trunk"]:
        hidden = jax.nn.relu(hidden @ layer["w"] + layer["b"])
    return hidden


def head(params: Any, features: jax.Array, labels: jax.Array) -> jax.Array:
    """The loss of one task."""
    logits = features @ params["w"] + params["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def rows_of(num_tasks: int, rounds: int) -> list[list[str]]:
    """Measures every step for one number of tasks."""
    separate = _models.init(num_tasks, WIDTHS)
    stack = jax.tree.map(lambda *heads: jnp.stack(heads), *separate["heads"].values())
    params = {"trunk": separate["trunk"], "heads": stack}
    batch = _models.batch(num_tasks, WIDTHS[0], BATCH)
    batch["y"] = jnp.stack(list(batch["y"].values()))

    def losses_fn(params: Any, batch: Any) -> jax.Array:
        features = encoder(params, batch)
        return jax.vmap(head, (0, None, 0))(params["heads"], features, batch["y"])

    shared = {"trunk": True, "heads": False}
    of_parameters = task_gradients(losses_fn, shared=shared)
    of_features = feature_task_gradients(
        encoder, head, stacked=lambda params, batch: (params["heads"], batch["y"])
    )
    link = balance(balancers.mgda(), num_tasks, heads="preferences")
    tx = optax.chain(link, optax.sgd(0.01))

    def plain(params: Any, batch: Any) -> Any:
        gradient = jax.grad(lambda params: losses_fn(params, batch).sum())(params)
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient)

    def balanced(make: Any, params: Any, batch: Any) -> Any:
        state = tx.init(params)
        gradients: Any = make(params, batch)
        updates, _ = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates)

    steps = {
        "plain": plain,
        "MGDA, Gramian of the trunk": functools.partial(balanced, of_parameters),
        "MGDA-UB, Gramian of the features": functools.partial(balanced, of_features),
    }
    programs = {name: compiled(step, params, batch) for name, step in steps.items()}
    times = interleaved(
        {n: functools.partial(p, params, batch) for n, (p, _) in programs.items()},
        rounds=rounds,
    )
    return [
        [
            name,
            str(num_tasks),
            f"{times[name] * 1e3:.1f}",
            f"{times[name] / times['plain']:.2f}",
            f"{programs[name][1].temp_bytes / 2**20:.1f}",
        ]
        for name in steps
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--tasks", nargs="+", type=int, default=[2, 8, 40])
    args = parser.parse_args(argv)
    rows = [row for t in args.tasks for row in rows_of(t, args.rounds)]
    header = ["step", "T", "ms", "/ plain", "temp MiB"]
    print(table("MGDA and MGDA-UB, heads stacked", header, rows))


if __name__ == "__main__":
    main()
