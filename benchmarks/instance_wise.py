"""Every example of a batch as a task: time and memory of the ways to the Gramian.

Each row is a whole step of MGDA over the examples of a batch, against plain training on
the mean of their losses. Temporary memory is what the compiler reserves besides the
arguments and results of the step.
"""

import argparse
import functools
from collections.abc import Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import optax

from benchmarks import _models
from benchmarks._measure import compiled, interleaved, table
from dtp_jax import TaskGradients, balance, balancers, task_gradients
from dtp_jax.gradients import GramianMode

MODES = [mode for mode in get_args(GramianMode) if mode != "auto"]
WIDTHS = (64, 512, 512)


def one_loss(params: Any, x: jax.Array, label: jax.Array) -> jax.Array:
    """The cross-entropy of one example."""
    hidden = x
    for layer in params["trunk"]:
        hidden = jax.nn.relu(hidden @ layer["w"] + layer["b"])
    (head,) = params["heads"].values()
    return -jax.nn.log_softmax(hidden @ head["w"] + head["b"])[label]


def losses_fn(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
    """The losses of the examples, ``[B]``."""
    return jax.vmap(one_loss, (None, 0, 0))(params, x, labels)


def rows_of(batch_size: int, modes: Sequence[Any], rounds: int) -> list[list[str]]:
    """Measures plain training and every way for one size of the batch."""
    params = _models.init(1, WIDTHS)
    batch = _models.batch(1, WIDTHS[0], batch_size)
    x, (labels,) = batch["x"], batch["y"].values()
    link: Any = balance(balancers.mgda(), batch_size)
    state = link.init(params)

    def plain(params: Any, state: Any, x: jax.Array, labels: jax.Array) -> Any:
        gradient = jax.grad(lambda p: jnp.mean(losses_fn(p, x, labels)))(params)
        return optax.apply_updates(params, gradient), state

    def of_gradients(make: Any) -> Any:
        def step(params: Any, state: Any, x: jax.Array, labels: jax.Array) -> Any:
            gradients = make(params, x, labels)
            updates, state = link.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        return step

    def example_by_example(params: Any, x: jax.Array, labels: jax.Array) -> Any:
        of_one = jax.value_and_grad(one_loss)
        losses, stacked = jax.vmap(of_one, (None, 0, 0))(params, x, labels)
        return TaskGradients.from_stacked(stacked, losses)

    functions = {"plain": plain, "vmap(grad)": of_gradients(example_by_example)}
    for mode in modes:
        functions[mode] = of_gradients(task_gradients(losses_fn, gramian=mode))
    args = (params, state, x, labels)
    programs = {name: compiled(f, *args) for name, f in functions.items()}
    times = interleaved(
        {
            name: functools.partial(program, *args)
            for name, (program, _) in programs.items()
        },
        rounds=rounds,
    )
    jacobian = batch_size * _models.num_params(params) * 4 / 2**20
    return [
        [
            name,
            str(batch_size),
            f"{times[name] * 1e3:.1f}",
            f"{times[name] / times['plain']:.1f}",
            f"{programs[name][1].temp_bytes / 2**20:.1f}",
            f"{programs[name][1].temp_bytes / 2**20 / jacobian:.2f}",
            f"{programs[name][1].compile_seconds:.1f}",
        ]
        for name in functions
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 128])
    args = parser.parse_args(argv)
    rows = []
    for size in args.batches:
        # A pass for each of more examples takes long to compile, and "auto" does not.
        each = ("unrolled", "switch") if size > 64 else ()
        modes = [mode for mode in MODES if mode not in each]
        rows += rows_of(size, modes, args.rounds)
    header = ["gradients", "B", "ms", "/ plain", "temp MiB", "/ Jacobian", "compile s"]
    print(table("MGDA over the examples of a batch", header, rows))


if __name__ == "__main__":
    main()
