"""The size of gradients at features, example by example."""

from typing import Any

import jax
import jax.numpy as jnp

from ._features import FeatureMap
from ._task_gradients import TaskGradients


def at_features(gradients: Any) -> bool:
    """Whether gradients are known at features, so that a Gramian costs no encoder.

    Args:
        gradients: A `TaskGradients`, or anything else.

    Returns:
        True for those of `feature_task_gradients`.

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax import TaskGradients
        >>> from dtp_jax.gradients import feature_task_gradients
        >>> at_features(TaskGradients.from_stacked(jnp.eye(2)))
        False
        >>> heads = lambda params, z: {"a": jnp.sum(z), "b": jnp.sum(z[0])}
        >>> at_features(feature_task_gradients(lambda p: p, heads)(jnp.ones((2, 4))))
        True
    """
    return isinstance(getattr(gradients, "_map", None), FeatureMap)


def example_norms(gradients: Any) -> jax.Array:
    """Norms of the gradients at the features of one example, averaged over the batch.

    Costs a backward pass through the heads, and none through the encoder.

    Args:
        gradients: Of `feature_task_gradients`, with features whose first axis is that
            of the examples.

    Returns:
        ``[T]`` in float32 or better: the mean over the examples b of
        ``norm(dL_t / dz_b)``, with z_b all features of an example.

    Raises:
        ValueError: If they are no gradients at features, or the features differ in
            their first axis.

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax.gradients import feature_task_gradients
        >>> heads = lambda params, z: {"a": jnp.sum(z), "b": jnp.sum(z[0])}
        >>> z = jnp.ones((2, 4))
        >>> gradients = feature_task_gradients(lambda params: params, heads)(z)
        >>> example_norms(gradients).tolist()  # 2 and 2, 2 and 0
        [2.0, 1.0]
    """
    linear_map = gradients._map if isinstance(gradients, TaskGradients) else None
    if not isinstance(linear_map, FeatureMap):
        raise ValueError(
            "Norms of single examples need gradients at features, whose first axis is "
            "that of the examples: use dtp_jax.feature_task_gradients."
        )
    rows = jax.tree.leaves(linear_map.rows())
    sizes = {row.shape[1:2] for row in rows}
    if len(sizes) > 1 or () in sizes:
        shapes = [list(row.shape[1:]) for row in rows]
        raise ValueError(
            "The first axis of all features must be that of the examples, but their "
            f"shapes are {shapes}."
        )
    total = sum((_squares(row) for row in rows), start=jnp.zeros(()))
    # The loss is the mean over D shards, so that the gradient here is the D-th part.
    shards = linear_map.shards
    return shards.mean(jnp.mean(jnp.sqrt(total), axis=1)) / shards.number


def _squares(rows: jax.Array) -> jax.Array:
    rows = rows.astype(jnp.promote_types(jnp.float32, rows.dtype))
    return jnp.sum(jnp.square(rows), axis=tuple(range(2, rows.ndim)))
