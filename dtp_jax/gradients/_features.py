"""Gradients of several losses at the level of a shared representation."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dtp_jax._core import linalg
from dtp_jax._core.layout import layout_of

from ._linearized import MAX_UNROLLED, in_a_loop, one_output, split_aux, weights_like
from ._task_gradients import TaskGradients


def feature_task_gradients(
    encoder: Callable[..., Any],
    heads: Callable[..., Any],
    has_aux: bool = False,
    *,
    stacked: Callable[..., tuple[Any, ...]] | None = None,
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
            parameters and use theirs; with `stacked` see below.
        has_aux: Whether `heads` returns a pair.
        stacked: For heads of one kind whose parameters are stacked in arrays:
            ``stacked(params, *args)`` returns a tuple of pytrees with a first axis of
            size T, the heads' parameters first, such as ``(params["heads"],
            batch["labels"])``. `heads` is then one head, ``heads(head_params, features,
            labels)``, mapped over the first axes, and returns one loss; the losses are
            one [T] array. The parameters in other places of the tuple count as
            constants.

    Returns:
        A function of ``(params, *args)`` that returns a `TaskGradients`, or a pair of
        it and the auxiliary output. Call it inside `jax.jit`.

    Raises:
        ValueError: When called, if a loss is not a float, or with `stacked`, if a head
            returns more than one loss or the first axes differ.

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

    def wrapped(params: Any, *args: Any) -> Any:
        features, encoder_jvp = jax.linearize(lambda p: encoder(p, *args), params)
        through_encoder = _Transposed(encoder_jvp, _Types.of(params))
        if stacked is None:
            linear_map, aux = _separate(
                heads, has_aux, through_encoder, params, features, args
            )
        else:
            linear_map, aux = _stacked(
                heads, has_aux, stacked, through_encoder, params, features, args
            )
        gradients = TaskGradients(linear_map.losses, linear_map)
        return (gradients, aux) if has_aux else gradients

    return wrapped


def _separate(
    heads: Callable[..., Any],
    has_aux: bool,
    through_encoder: "_Transposed",
    params: Any,
    features: Any,
    args: tuple[Any, ...],
) -> tuple["_Separate", Any]:
    def of_params(params: Any, features: Any) -> Any:
        return split_aux(heads(params, features, *args), has_aux)

    losses, jvp, aux = jax.linearize(of_params, params, features, has_aux=True)
    types = _Types.of(params), _Types.of(features)
    return _Separate(losses, through_encoder, jvp, *types), aux


def _stacked(
    head: Callable[..., Any],
    has_aux: bool,
    stacked: Callable[..., tuple[Any, ...]],
    through_encoder: "_Transposed",
    params: Any,
    features: Any,
    args: tuple[Any, ...],
) -> tuple["_Stacked", Any]:
    def head_params_of(params: Any) -> tuple[Any, Any]:
        head_params, *rest = stacked(params, *args)
        return head_params, jax.lax.stop_gradient(rest)

    head_params, select_jvp, rest = jax.linearize(head_params_of, params, has_aux=True)
    through_selection = _Transposed(select_jvp, _Types.of(params))

    # With the features not mapped, the products with them join into large ones.
    def one_head(head_params: Any, *rest: Any) -> Any:
        def loss_of(head_params: Any, features: Any) -> Any:
            loss, aux = split_aux(head(head_params, features, *rest), has_aux)
            if jax.tree.map(jnp.shape, loss) != ():
                raise ValueError(
                    "With stacked= a head must return one loss, a scalar; got "
                    f"{jax.tree.map(jnp.shape, loss)}."
                )
            return loss, aux

        gradient = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)
        (loss, aux), (of_head, of_features) = gradient(head_params, features)
        return loss, of_head, of_features, aux

    found = jax.vmap(one_head)(head_params, *rest)
    losses, of_heads, of_features, aux = found
    maps = through_encoder, through_selection
    return _Stacked(losses, *maps, of_heads, of_features), aux


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

    def zeros(self) -> Any:
        return jax.tree.map(lambda kind: jnp.zeros(kind.shape, kind.dtype), self.tree())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Transposed:
    """A linear function of the parameters, to be applied backwards."""

    jvp: Any
    params: _Types = dataclasses.field(metadata={"static": True})

    def __call__(self, cotangent: Any) -> Any:
        (gradient,) = jax.linear_transpose(self.jvp, self.params.tree())(cotangent)
        return gradient


class _FeatureMap:
    """What is common to separate and stacked heads."""

    losses: Any
    through_encoder: _Transposed

    def rows(self) -> Any:
        """``dL_t / dfeatures``, each leaf ``[T, ...]``."""
        raise NotImplementedError

    def through_heads(self, weights: jax.Array) -> Any:
        """The gradient of the weighted losses for constant features."""
        raise NotImplementedError

    def pull(self, weights: jax.Array, unshared: jax.Array | None = None) -> Any:
        """One backward pass through the heads and one through the encoder."""
        # The Gramian needs the rows as well; the compiler merges the two.
        at_features = jax.tree.map(
            lambda rows: linalg.weighted_sum(weights, rows), self.rows()
        )
        of_encoder = self.through_encoder(at_features)
        of_heads = self.through_heads(weights if unshared is None else unshared)
        return jax.tree.map(jnp.add, of_encoder, of_heads)

    def stack(self) -> Any:
        """The gradients of all tasks, one after the other."""
        layout = layout_of(self.losses)
        return jax.lax.map(self.pull, jnp.eye(layout.num_tasks, dtype=layout.dtype))

    def each(self, function: Callable[[list[jax.Array]], Any]) -> Any:
        """A function of each task's gradient at the features."""
        return jax.vmap(function)(jax.tree.leaves(self.rows()))

    def gramian(self) -> jax.Array:
        """Inner products of the gradients at the features."""
        grams = [linalg.gram(leaf) for leaf in jax.tree.leaves(self.rows())]
        return sum(grams[1:], start=grams[0])

    def finite(self) -> None:
        """Not known without the gradients."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Separate(_FeatureMap):
    """Heads of any kind: a linear function of parameters and features."""

    losses: Any
    through_encoder: _Transposed
    heads_jvp: Any
    params: _Types = dataclasses.field(metadata={"static": True})
    features: _Types = dataclasses.field(metadata={"static": True})

    def rows(self) -> Any:
        """One backward pass through each head, on its own."""
        zeros = self.params.zeros()

        def of_features(features: Any) -> Any:
            return self.heads_jvp(zeros, features)

        def row(task: int) -> Any:
            one_loss, one = one_output(of_features, self.losses, task)
            return jax.linear_transpose(one_loss, self.features.tree())(one)[0]

        num_tasks = layout_of(self.losses).num_tasks
        calls = [functools.partial(row, task) for task in range(num_tasks)]
        if num_tasks > MAX_UNROLLED:
            return in_a_loop(calls)
        rows = [call() for call in calls]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)

    def through_heads(self, weights: jax.Array) -> Any:
        """One backward pass with the weights as cotangent."""
        zeros = self.features.zeros()

        def of_params(params: Any) -> Any:
            return self.heads_jvp(params, zeros)

        transposed = jax.linear_transpose(of_params, self.params.tree())
        return transposed(weights_like(self.losses, weights))[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Stacked(_FeatureMap):
    """Heads of one kind: their gradients, which scale with their weights."""

    losses: Any
    through_encoder: _Transposed
    through_selection: _Transposed
    of_heads: Any  # dL_t / dhead_t, leaves [T, ...]
    of_features: Any  # dL_t / dfeatures, leaves [T, ...]

    def rows(self) -> Any:
        """Known from the one backward pass through each head."""
        return self.of_features

    def through_heads(self, weights: jax.Array) -> Any:
        """Each head's gradient times its weight; none if that is zero."""

        def scaled(leaf: jax.Array) -> jax.Array:
            column = weights.reshape(-1, *[1] * (leaf.ndim - 1)).astype(leaf.dtype)
            return jnp.where(column != 0, column * leaf, 0)

        return self.through_selection(jax.tree.map(scaled, self.of_heads))
