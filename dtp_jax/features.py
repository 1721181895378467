"""Gradients of several losses at the level of a shared representation."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dtp_jax import linalg
from dtp_jax._base import layout_of
from dtp_jax._checks import check_whole
from dtp_jax.gradients import (
    TaskGradients,
    check_losses,
    one_output,
    weighted_sum,
    weights_like,
)


def feature_task_gradients(
    encoder: Callable[..., Any],
    heads: Callable[..., Any],
    has_aux: bool = False,
    *,
    stacked: int | None = None,
) -> Callable[..., Any]:
    """Task gradients whose Gramian is taken over shared features, as in MGDA-UB.

    The network is an encoder that makes features, and heads that make losses of them.
    The Gramian is that of ``dL_t / dfeatures``, which costs a backward pass through the
    heads; whatever the number of tasks, there is one backward pass through the encoder.
    Use it in place of `dtp_jax.task_gradients` with any Gramian-driven balancer.

    With weights w and head weights v (see ``balance(..., heads=...)``) the gradient is
    that of the encoder for ``sum_t w_t dL_t / dfeatures``, plus that of the heads for
    ``sum_t v_t L_t``. Return separate heads' losses as separate leaves, such as those
    of a dict: a backward pass through one head then touches no other. With leaves of
    their own, or stacked, a task of weight zero has no influence on the encoder even if
    its gradient is not finite.

    It is an approximation. If the Jacobian of the encoder has full rank, a combination
    that vanishes at the features shows a Pareto-stationary point of the parameters, and
    the other way round. But a direction that lowers all losses at the features need not
    do so at the parameters, against the second half of the paper's theorem 1: for
    feature gradients (1, 2) and (1, -1) MGDA's direction is (1, 0), and an encoder with
    ``J J' = [[1, -0.9], [-0.9, 1]]`` turns the products 1 and 1 into -0.8 and 1.9.

    Args:
        encoder: ``encoder(params, *args)`` returns the features, a pytree of arrays.
        heads: ``heads(params, features, *args)`` returns a pytree of float losses; with
            `has_aux`, a pair of it and anything else. Both functions get all
            parameters and use theirs.
        has_aux: Whether `heads` returns a pair.
        stacked: The number of heads T if they are stacked and mapped, so that `heads`
            returns one [T] array. The features that `heads` gets then have a new first
            axis of size T, and head t must use copy t only, as in ``jax.vmap(head)(
            params["heads"], features, labels)``. One backward pass through each head
            then serves all.

    Returns:
        A function of ``(params, *args)`` that returns a `TaskGradients`, or a pair of
        it and the auxiliary output. Call it inside `jax.jit`.

    Raises:
        ValueError: When called, if a loss is not a float, or `stacked` is not the
            number of losses.

    Example:
        >>> import jax.numpy as jnp
        >>> encoder = lambda params, x: params["scale"] * x
        >>> def heads(params, z, x):
        ...     return {"a": jnp.sum(params["a"] * z), "b": jnp.sum(z**2)}
        >>> params = {"scale": jnp.array(2.0), "a": jnp.array([1.0, -1.0])}
        >>> x = jnp.array([1.0, 0.5])
        >>> gradients = feature_task_gradients(encoder, heads)(params, x)
        >>> gradients.gramian().tolist()  # of (1, -1) and 2 z = (4, 2)
        [[2.0, 2.0], [2.0, 20.0]]
        >>> gradients.combine({"a": 1.0, "b": 0.0})["scale"].item()
        0.5

    References:
        Sener and Koltun, "Multi-Task Learning as Multi-Objective Optimization", NeurIPS
        2018, section 3.3. The paper leaves the gradients of the heads unscaled:
        ``heads="preferences"``.
    """
    if stacked is not None:
        check_whole("stacked", stacked, low=1)

    def wrapped(params: Any, *args: Any) -> Any:
        features, encoder_jvp = jax.linearize(lambda p: encoder(p, *args), params)

        def of_params(params: Any, features: Any) -> Any:
            out = heads(params, features, *args)
            losses, aux = out if has_aux else (out, None)
            check_losses(losses)
            return losses, aux

        copies = features
        if stacked is not None:
            copies = jax.tree.map(
                lambda x: jnp.broadcast_to(x, (stacked, *x.shape)), features
            )
        losses, heads_jvp, aux = jax.linearize(of_params, params, copies, has_aux=True)
        if stacked is not None:
            shapes = jax.tree.map(jnp.shape, losses)
            if shapes != (stacked,):
                raise ValueError(
                    f"With stacked={stacked} heads must return one array of shape "
                    f"[{stacked}], got {shapes}."
                )
        linear_map = _Features(
            losses,
            encoder_jvp,
            heads_jvp,
            _Types.of(params),
            _Types.of(features),
            stacked is not None,
        )
        gradients = TaskGradients(losses, linear_map)
        return (gradients, aux) if has_aux else gradients

    return wrapped


@dataclasses.dataclass(frozen=True)
class _Types:
    """The structure of a pytree and the types of its leaves, to be transposed to."""

    treedef: Any
    leaves: tuple[Any, ...]

    @classmethod
    def of(cls, tree: Any) -> "_Types":
        leaves, treedef = jax.tree.flatten(tree)
        return cls(treedef, tuple(jax.typeof(leaf) for leaf in leaves))

    def tree(self) -> Any:
        return self.treedef.unflatten(self.leaves)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Features:
    """The Jacobian as that of the encoder after those of the heads."""

    losses: Any
    encoder_jvp: Any
    heads_jvp: Any
    params: _Types = dataclasses.field(metadata={"static": True})
    features: _Types = dataclasses.field(metadata={"static": True})
    stacked: bool = dataclasses.field(metadata={"static": True})

    def pull(self, weights: jax.Array, unshared: jax.Array | None = None) -> Any:
        """One backward pass through the heads and one through the encoder."""
        # The Gramian needs the rows as well; the compiler merges the two.
        at_features = weighted_sum(weights, self._rows())
        (through_encoder,) = jax.linear_transpose(self.encoder_jvp, self.params.tree())(
            at_features
        )
        of_heads = self._through_heads(weights if unshared is None else unshared)
        return jax.tree.map(jnp.add, through_encoder, of_heads)

    def stack(self) -> Any:
        """The gradients of all tasks, one after the other."""
        num_tasks = layout_of(self.losses).num_tasks
        return jax.lax.map(self.pull, jnp.eye(num_tasks))

    def gramian(self) -> jax.Array:
        """Inner products of the gradients at the features."""
        grams = [linalg.gram(leaf) for leaf in jax.tree.leaves(self._rows())]
        return sum(grams[1:], start=grams[0])

    def finite(self) -> None:
        """Not known without the gradients."""

    def _through_heads(self, weights: jax.Array) -> Any:
        copies = jax.tree.map(jnp.zeros_like, self._copies())
        transposed = jax.linear_transpose(
            lambda params: self.heads_jvp(params, copies), self.params.tree()
        )
        (gradient,) = transposed(weights_like(self.losses, weights))
        return gradient

    def _rows(self) -> Any:
        """``dL_t / dfeatures``, each leaf ``[T, ...]``."""
        params = jax.tree.map(
            lambda kind: jnp.zeros(kind.shape, kind.dtype), self.params.tree()
        )

        def of_features(features: Any) -> Any:
            return self.heads_jvp(params, features)

        if self.stacked:
            ones = weights_like(self.losses, jnp.ones(jnp.shape(self.losses)))
            (rows,) = jax.linear_transpose(of_features, self._copies())(ones)
            return rows
        rows = []
        for task in range(layout_of(self.losses).num_tasks):
            one_loss, one = one_output(of_features, self.losses, task)
            rows += jax.linear_transpose(one_loss, self.features.tree())(one)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)

    def _copies(self) -> Any:
        """Arrays or types like what the heads get."""
        if not self.stacked:
            return self.features.tree()
        (num_tasks,) = jnp.shape(self.losses)
        return jax.tree.map(
            lambda kind: jax.ShapeDtypeStruct((num_tasks, *kind.shape), kind.dtype),
            self.features.tree(),
        )
