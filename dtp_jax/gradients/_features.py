"""Gradients of several losses at the level of a shared representation."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp

from dtp_jax._core import control, linalg
from dtp_jax._core.layout import layout_of

from ._inputs import check_params, split_aux
from ._linearized import (
    MAX_UNROLLED,
    in_a_loop,
    one_output,
    squared_norm,
    weights_like,
)
from ._shards import AxisName, Shards, zeros_of
from ._split import Split
from ._task_gradients import TaskGradients


@overload
def feature_task_gradients(
    encoder: Callable[..., Any],
    heads: Callable[..., Any],
    has_aux: Literal[False] = False,
    *,
    stacked: Callable[..., tuple[Any, ...]] | None = None,
    axis_name: AxisName | None = None,
) -> Callable[..., TaskGradients]: ...
@overload
def feature_task_gradients(
    encoder: Callable[..., Any],
    heads: Callable[..., Any],
    has_aux: Literal[True],
    *,
    stacked: Callable[..., tuple[Any, ...]] | None = None,
    axis_name: AxisName | None = None,
) -> Callable[..., tuple[TaskGradients, Any]]: ...
@overload
def feature_task_gradients(
    encoder: Callable[..., Any],
    heads: Callable[..., Any],
    has_aux: bool = False,
    *,
    stacked: Callable[..., tuple[Any, ...]] | None = None,
    axis_name: AxisName | None = None,
) -> Callable[..., Any]: ...
def feature_task_gradients(
    encoder: Callable[..., Any],
    heads: Callable[..., Any],
    has_aux: bool = False,
    *,
    stacked: Callable[..., tuple[Any, ...]] | None = None,
    axis_name: AxisName | None = None,
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
            The heads get those of integers and booleans, too; gradients are those of
            the real ones.
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
        axis_name: The axes of `jax.shard_map` over which the batch is split, as for
            `dtp_jax.task_gradients`. The features of each shard count as those of
            other examples: the Gramian is that of all features together for losses
            that are means over shards. It takes no more than ``[T, T]`` numbers from
            each shard, and the gradient of the parameters is averaged once.

    Returns:
        A function of ``(params, *args)`` that returns a `TaskGradients`, or a pair of
        it and the auxiliary output. Call it inside `jax.jit`.

    Raises:
        ValueError: When called, if a loss is not a float, a parameter or a feature is
            complex, or with `stacked`, if a head returns more than one loss or the
            first axes differ.

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
    shards = Shards.over(axis_name)

    def wrapped(params: Any, *args: Any) -> Any:
        check_params(params)
        shards.check_mapped()
        params = shards.varying(params)

        def encoded(params: Any) -> tuple[list[jax.Array], Split]:
            split = Split.of("The feature", encoder(params, *args))
            return shards.varying(split.real), split.others()

        real, encoder_jvp, others = jax.linearize(encoded, params, has_aux=True)
        if not real:
            raise ValueError(
                "encoder returned no feature of real floats, of which losses have a "
                "gradient."
            )
        through_encoder = _Transposed(encoder_jvp, _Types.of(params))
        linear_map, aux = make(shards, through_encoder, params, real, others, args)
        losses = shards.mean_of_losses(linear_map.losses)
        gradients = TaskGradients(losses, linear_map)
        return (gradients, aux) if has_aux else gradients

    if stacked is None:
        make = functools.partial(_separate, heads, has_aux)
    else:
        make = functools.partial(_stacked, heads, has_aux, stacked)
    return wrapped


def _separate(
    heads: Callable[..., Any],
    has_aux: bool,
    shards: Shards,
    through_encoder: "_Transposed",
    params: Any,
    features: list[jax.Array],
    others: Split,
    args: tuple[Any, ...],
) -> tuple["_Separate", Any]:
    def of_params(params: Any, features: list[jax.Array]) -> Any:
        out = heads(params, others.merged(features), *args)
        losses, aux = split_aux(out, has_aux)
        return shards.varying(losses), aux

    losses, jvp, aux = jax.linearize(of_params, params, features, has_aux=True)
    types = _Types.of(params), _Types.of(features)
    return _Separate(losses, through_encoder, shards, jvp, *types), aux


def _stacked(
    head: Callable[..., Any],
    has_aux: bool,
    stacked: Callable[..., tuple[Any, ...]],
    shards: Shards,
    through_encoder: "_Transposed",
    params: Any,
    features: list[jax.Array],
    others: Split,
    args: tuple[Any, ...],
) -> tuple["_Stacked", Any]:
    def head_params_of(params: Any) -> tuple[list[jax.Array], Any]:
        head_params, *rest = stacked(params, *args)
        split = Split.of("The parameter of the heads", head_params)
        constants = jax.lax.stop_gradient((split.others(), rest))
        return shards.varying(split.real), constants

    head_params, select_jvp, constants = jax.linearize(
        head_params_of, params, has_aux=True
    )
    through_selection = _Transposed(select_jvp, _Types.of(params))

    # With the features not mapped, the products with them join into large ones.
    def one_head(head_params: list[jax.Array], constants: Any) -> Any:
        other_params, rest = constants

        def loss_of(head_params: list[jax.Array], features: list[jax.Array]) -> Any:
            of_head, of_all = other_params.merged(head_params), others.merged(features)
            loss, aux = split_aux(head(of_head, of_all, *rest), has_aux)
            if jax.tree.map(jnp.shape, loss) != ():
                raise ValueError(
                    "With stacked= a head must return one loss, a scalar; got "
                    f"{jax.tree.map(jnp.shape, loss)}."
                )
            return shards.varying(loss), aux

        gradient = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)
        (loss, aux), (of_head, of_features) = gradient(head_params, features)
        return loss, of_head, of_features, aux

    found = jax.vmap(one_head)(head_params, constants)
    losses, of_heads, of_features, aux = found
    maps = through_encoder, shards, through_selection
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
        return jax.tree.map(zeros_of, self.tree())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Transposed:
    """A linear function of the parameters, to be applied backwards."""

    jvp: Any
    params: _Types = dataclasses.field(metadata={"static": True})

    def __call__(self, cotangent: Any) -> Any:
        (gradient,) = jax.linear_transpose(self.jvp, self.params.tree())(cotangent)
        return gradient


class FeatureMap:
    """What is common to separate and stacked heads.

    Losses, features and their gradients are those of one shard.
    """

    losses: Any
    through_encoder: _Transposed
    shards: Shards

    def rows(self) -> Any:
        """``dL_t / dfeatures``, each leaf ``[T, ...]``."""
        raise NotImplementedError

    def through_heads(self, weights: jax.Array) -> Any:
        """The gradient of the weighted losses for constant features."""
        raise NotImplementedError

    def pull(self, weights: jax.Array, unshared: jax.Array | None = None) -> Any:
        """One backward pass through the heads and one through the encoder."""
        self.shards.check_same(weights)
        return self.shards.mean(self._pull(weights, unshared))

    def stack(self) -> Any:
        """The gradients of all tasks, one after the other."""
        layout = layout_of(self.losses)
        units = jnp.eye(layout.num_tasks, dtype=layout.dtype)
        return self.shards.mean(control.over(self._pull, units))

    def each(self, function: Callable[[list[jax.Array]], Any]) -> Any:
        """Not known of all shards together, as a function in general."""
        raise NotImplementedError

    def squared_norms(self) -> jax.Array:
        """Squared norms of the gradients at the features."""
        return self._of_all(jax.vmap(squared_norm)(jax.tree.leaves(self.rows())))

    def products(self, ones: jax.Array, vector: Any) -> jax.Array:
        """Inner products of the gradients of all parameters with a vector."""
        return self.shards.products(self._pull, ones, vector)

    def gramian(self) -> jax.Array:
        """Inner products of the gradients at the features."""
        grams = [linalg.gram(leaf) for leaf in jax.tree.leaves(self.rows())]
        return self._of_all(sum(grams[1:], start=grams[0]))

    def _of_all(self, products: jax.Array) -> jax.Array:
        # The features of all shards lie side by side, and products add up. A loss is
        # the mean of D, so that its gradient at the features of one is the D-th part.
        return self.shards.mean(products) / self.shards.number

    def _pull(self, weights: jax.Array, unshared: jax.Array | None = None) -> Any:
        # The Gramian needs the rows as well; the compiler merges the two.
        at_features = jax.tree.map(
            lambda rows: linalg.weighted_sum(weights, rows), self.rows()
        )
        of_encoder = self.through_encoder(at_features)
        of_heads = self.through_heads(weights if unshared is None else unshared)
        return jax.tree.map(jnp.add, of_encoder, of_heads)

    @property
    def treedef(self) -> Any:
        """The structure of the parameters."""
        return self.through_encoder.params.treedef

    @property
    def dtype(self) -> Any:
        """That of the parameters, float32 at least."""
        kinds = self.through_encoder.params.leaves
        return jnp.result_type(jnp.float32, *[kind.dtype for kind in kinds])

    def finite(self) -> None:
        """Not known without the gradients."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Separate(FeatureMap):
    """Heads of any kind: a linear function of parameters and features."""

    losses: Any
    through_encoder: _Transposed
    shards: Shards = dataclasses.field(metadata={"static": True})
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
            gradient = jax.linear_transpose(one_loss, self.features.tree())(one)[0]
            return self.shards.varying(gradient)

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
class _Stacked(FeatureMap):
    """Heads of one kind: their gradients, which scale with their weights."""

    losses: Any
    through_encoder: _Transposed
    shards: Shards = dataclasses.field(metadata={"static": True})
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
