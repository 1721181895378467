"""The gradients of two batches."""

import jax

from dtp_jax._core import linalg

from ._rows import shared_rows
from ._task_gradients import TaskGradients


def cross_gramian(first: TaskGradients, second: TaskGradients) -> jax.Array:
    """Inner products of the gradients of two batches, over the shared parameters.

    Its expectation over independent batches is the Gramian of the expected gradients,
    which that of a single batch exceeds by the covariance of the noise. It costs a
    backward pass per task of each batch that is not stacked, and the memory of the
    rows.

    Args:
        first: The task gradients of one batch.
        second: Those of another, with respect to the same parameters.

    Returns:
        ``[T, T]``, ``<first[s], second[t]>`` in float32 or better; not symmetric.

    Raises:
        ValueError: If the tasks or the shared parameters differ, or a batch has
            gradients at the level of features.

    Example:
        >>> import jax.numpy as jnp
        >>> first = TaskGradients.from_stacked(jnp.array([[1.0, 0.0], [0.0, 2.0]]))
        >>> second = TaskGradients.from_stacked(jnp.array([[1.0, 1.0], [0.0, 3.0]]))
        >>> cross_gramian(first, second).tolist()
        [[1.0, 0.0], [2.0, 6.0]]
    """
    rows, others = shared_rows(first), shared_rows(second)
    shapes = [x.shape for x in rows], [x.shape for x in others]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "The two batches must have gradients of the same tasks and the same shared "
            f"parameters, [T, *param]; got the shapes {shapes[0]} and {shapes[1]}."
        )
    grams = [linalg.gram(x, y) for x, y in zip(rows, others, strict=True)]
    return sum(grams[1:], start=grams[0])
