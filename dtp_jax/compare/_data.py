"""What steps and measurements read."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._problem import Problem


class Data(NamedTuple):
    """What a round reads; `train` is None where batches come from a function."""

    train: Any
    validation: Any
    test: Any


def data_of(problem: Problem) -> Data:
    """What a round reads, as arrays on the device.

    Args:
        problem: Whose.

    Returns:
        The data.
    """
    train = None if callable(problem.train) else problem.train
    return jax.tree.map(jnp.asarray, Data(train, problem.validation, problem.test))


def key_of(seed: Any, purpose: int) -> jax.Array:
    """A key: 0 for parameters, 1 for batches, 2 for methods, 3 for second batches."""
    return jax.random.fold_in(jax.random.key(seed), purpose)


def batch_of(problem: Problem, data: Data, key: jax.Array, number: jax.Array) -> Any:
    """The batch of a step.

    Args:
        problem: Whose.
        data: What is drawn from.
        key: Of the network.
        number: Of the step, an int32 scalar.

    Returns:
        A batch.
    """
    key = jax.random.fold_in(key, number)
    if callable(problem.train):
        return problem.train(key, number)
    size = len(jax.tree.leaves(data.train)[0])
    rows = jax.random.randint(key, (problem.batch_size,), 0, size)
    return jax.tree.map(lambda column: column[rows], data.train)


def first_batch(problem: Problem, data: Data, seed: int = 0) -> Any:
    """The batch of the first step.

    Args:
        problem: Whose.
        data: What is drawn from.
        seed: Of the draw.

    Returns:
        A batch.
    """
    return batch_of(problem, data, key_of(seed, 1), jnp.int32(0))
