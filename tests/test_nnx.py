from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import dtp_jax
from dtp_jax import balance, balancers, combine_losses, diagnostics, focal_weights
from dtp_jax import nnx as dtp_nnx
from tests import devices, toys
from tests.toys import assert_near

KPIS = {"left": 0.3, "right": 0.8}
X = jax.random.normal(jax.random.key(0), (16, 3))


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.trunk = nnx.Linear(3, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout: Any = nnx.Dropout(0.5, rngs=rngs)
        self.left: Any = nnx.Linear(8, 1, rngs=rngs)
        self.right = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = self.dropout(nnx.relu(self.norm(self.trunk(x))))
        return self.left(hidden), self.right(hidden)


class Pair(nnx.Module):
    def __init__(self) -> None:
        self.w = nnx.Param(jnp.ones(2))

    def losses(self) -> dict[str, jax.Array]:
        return {"left": jnp.sum(self.w[...]), "right": jnp.sum(self.w[...] ** 2)}


def losses_fn(model: Model, x: jax.Array) -> tuple[dict[str, jax.Array], Any]:
    left, right = model(x)
    losses = {"left": jnp.mean((left - 1) ** 2), "right": jnp.mean(right**2)}
    return losses, {name: jnp.exp(-loss) for name, loss in losses.items()}


def variables(model: nnx.Module) -> Any:
    return nnx.to_pure_dict(nnx.state(model))


def data(tree: Any) -> Any:
    """Arrays only: typed keys have no arithmetic."""
    return jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        else x,
        tree,
    )  # fmt: skip


def test_trains_as_the_plain_weighted_sum_does() -> None:
    ours, plain = Model(nnx.Rngs(0)), Model(nnx.Rngs(0))
    tx = optax.chain(balance(balancers.focal(), KPIS), optax.adam(0.1))
    optimizer = dtp_nnx.Optimizer(ours, tx, wrt=nnx.Param)
    other = nnx.Optimizer(plain, optax.adam(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model: Model, optimizer: Any, x: jax.Array) -> Any:
        gradients, _ = dtp_nnx.task_gradients(losses_fn, has_aux=True)(model, x)
        optimizer.update(model, gradients, kpis=KPIS)
        return gradients.losses

    @nnx.jit
    def plain_step(model: Model, optimizer: Any, x: jax.Array) -> Any:
        def total(model: Model) -> Any:
            losses, _ = losses_fn(model, x)
            return combine_losses(losses, focal_weights(KPIS)), losses

        gradient, losses = nnx.grad(total, has_aux=True)(model)
        optimizer.update(model, gradient)
        return losses

    for _ in range(3):
        found, expected = step(ours, optimizer, X), plain_step(plain, other, X)
        chex.assert_trees_all_close(found, expected, rtol=1e-4)
    # Parameters, batch statistics and dropout counters advanced alike, once per step.
    assert_near(data(variables(ours)), data(variables(plain)), rtol=1e-3)
    assert int(ours.dropout.rngs.count[...]) == 3
    assert int(optimizer.step[...]) == 3


def test_kpis_of_the_same_forward_pass() -> None:
    model = Model(nnx.Rngs(0))
    link = dtp_jax.dynamic_task_prioritization(
        KPIS, warmup_steps=0, alpha=1.0, ramp_steps=0, normalize=None
    )
    tx = optax.chain(link, optax.adam(0.1))
    optimizer = dtp_nnx.Optimizer(model, tx, wrt=nnx.Param)
    calls = []

    def counted(model: Model, x: jax.Array) -> Any:
        calls.append(1)
        return losses_fn(model, x)

    @nnx.jit
    def step(model: Model, optimizer: Any, x: jax.Array) -> Any:
        gradients, kpis = dtp_nnx.task_gradients(counted, has_aux=True)(model, x)
        optimizer.update(model, gradients, kpis=kpis)
        return kpis

    kpis = step(model, optimizer, X)
    assert len(calls) == 1
    step(model, optimizer, X)
    assert len(calls) == 1  # Compiled once.
    kpis = step(model, optimizer, X)
    expected = focal_weights(kpis)
    for state in (optimizer.opt_state, nnx.as_pure(optimizer.opt_state)):
        chex.assert_trees_all_close(diagnostics.kpis(state), kpis, rtol=1e-6)
        weights = diagnostics.task_weights(state)
        chex.assert_trees_all_close(weights, expected, rtol=1e-5)


def test_shared_parameters_by_path() -> None:
    model = Model(nnx.Rngs(0))
    make = dtp_nnx.task_gradients(
        losses_fn, has_aux=True, shared=lambda path: path.startswith(("trunk", "norm"))
    )
    gradients, _ = make(model, X)
    stack = nnx.to_pure_dict(gradients.stack())
    rows = [stack["trunk"]["kernel"], stack["trunk"]["bias"], *stack["norm"].values()]
    flat = np.concatenate([np.asarray(r).reshape(2, -1) for r in rows], axis=1)
    np.testing.assert_allclose(gradients.gramian(), flat @ flat.T, rtol=1e-4)
    assert not stack["left"]["kernel"][1].any()


def test_a_gramian_driven_method() -> None:
    model = Model(nnx.Rngs(0))
    tx = optax.chain(balance(toys.equal_norms(), KPIS), optax.sgd(0.1))
    optimizer = dtp_nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model: Model, optimizer: Any, x: jax.Array) -> None:
        gradients, _ = dtp_nnx.task_gradients(losses_fn, has_aux=True)(model, x)
        optimizer.update(model, gradients)

    step(model, optimizer, X)
    weights = diagnostics.task_weights(optimizer.opt_state)
    assert weights["left"] != weights["right"]


def test_ordinary_gradients_still_work() -> None:
    model = Model(nnx.Rngs(0))
    optimizer = dtp_nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    before = jnp.array(model.left.bias[...])
    gradient = nnx.grad(lambda model: losses_fn(model, X)[0]["left"])(model)
    optimizer.update(model, gradient)
    assert not np.array_equal(before, model.left.bias[...])


def test_stacked_gradients() -> None:
    lazy, stacked = Model(nnx.Rngs(0)), Model(nnx.Rngs(0))
    for model, how in ((lazy, lambda g: g), (stacked, lambda g: g.stack())):
        tx = optax.chain(balance(balancers.focal(), KPIS), optax.sgd(0.1))
        optimizer = dtp_nnx.Optimizer(model, tx, wrt=nnx.Param)
        gradients, _ = dtp_nnx.task_gradients(losses_fn, has_aux=True)(model, X)
        optimizer.update(model, how(gradients), kpis=KPIS)
    # A bias before a normalization has a gradient of rounding errors: of all of them.
    found, expected = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(data(variables(model)))])
        for model in (lazy, stacked)
    )
    assert_near(found, expected, rtol=1e-6)


def test_a_missing_kpi_leaves_the_model_as_it_was() -> None:
    model = Model(nnx.Rngs(0))
    tx = optax.chain(balance(balancers.focal(), KPIS), optax.adam(0.1))
    optimizer = dtp_nnx.Optimizer(model, tx, wrt=nnx.Param)
    gradients, _ = dtp_nnx.task_gradients(losses_fn, has_aux=True)(model, X)
    before = data(variables(model))
    with pytest.raises(ValueError, match="focal needs `kpis`"):
        optimizer.update(model, gradients)
    chex.assert_trees_all_equal(data(variables(model)), before)
    assert int(optimizer.step[...]) == 0


def test_the_optimizer_of_flax_is_not_the_one() -> None:
    model = Pair()
    link = balance(balancers.focal(), KPIS)
    gradients: Any = dtp_nnx.task_gradients(Pair.losses)(model)
    message = r"use dtp_jax.nnx.Optimizer"
    for tx in (optax.chain(link, optax.sgd(0.1)), optax.adam(0.1)):
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        with pytest.raises(ValueError, match=message):
            optimizer.update(model, gradients, kpis=KPIS)
    optimizer = nnx.Optimizer(model, link, wrt=nnx.Param)
    with pytest.raises(ValueError, match=message):
        nnx.jit(type(optimizer).update)(optimizer, model, gradients, kpis=KPIS)
    with pytest.raises(ValueError, match=message):
        optimizer.update(model, gradients.stack(), kpis=KPIS)


def test_task_gradients_go_in_and_out_of_nnx_jit() -> None:
    model = Pair()
    gradients = nnx.jit(dtp_nnx.task_gradients(Pair.losses))(model)
    combined = nnx.jit(lambda g: g.combine({"left": 1.0, "right": 2.0}))(gradients)
    assert combined["w"].tolist() == [5.0, 5.0]


def test_seeds_by_vmap() -> None:
    tx = optax.chain(balance(balancers.focal(), KPIS), optax.adam(0.1))

    @nnx.vmap
    def train(key: jax.Array) -> jax.Array:
        model = Model(nnx.Rngs(key))
        optimizer = dtp_nnx.Optimizer(model, tx, wrt=nnx.Param)
        gradients, kpis = dtp_nnx.task_gradients(losses_fn, has_aux=True)(model, X)
        optimizer.update(model, gradients, kpis=kpis)
        return losses_fn(model, X)[0]["left"]

    losses = train(jax.random.split(jax.random.key(0), 3))
    assert losses.shape == (3,)
    assert len(set(losses.tolist())) == 3


# Mistakes.


def test_the_core_function_on_a_module_names_the_one_to_use() -> None:
    makes: list[Any] = [
        dtp_jax.task_gradients(losses_fn, has_aux=True),
        dtp_jax.feature_task_gradients(lambda model, x: x, losses_fn),
    ]
    models: list[Any] = [
        Model(nnx.Rngs(0)),
        {"net": nnx.Linear(3, 2, rngs=nnx.Rngs(0))},
    ]
    for make in makes:
        for model in models:
            with pytest.raises(ValueError, match=r"module, (Model|Linear).*use dtp_"):
                make(model, X)


def test_the_core_function_on_the_state_of_a_module_as_its_message_says() -> None:
    model = Model(nnx.Rngs(0))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def losses(params: Any, x: jax.Array) -> Any:
        return losses_fn(nnx.merge(graphdef, params, rest, copy=True), x)[0]

    found = dtp_jax.task_gradients(losses)(params, X).gramian()
    expected, _ = dtp_nnx.task_gradients(losses_fn, has_aux=True)(model, X)
    np.testing.assert_allclose(found, expected.gramian(), rtol=1e-5)


LEFT = nnx.All(nnx.Param, nnx.PathContains("left"))


@pytest.mark.parametrize("kind", ["lazy", "stacked", "features"])
@pytest.mark.parametrize(
    ("of_gradients", "of_optimizer", "message"),
    [
        (nnx.Param, LEFT, "without a gradient: none; unknown to the optimizer: norm/"),
        (LEFT, nnx.Param, "without a gradient: norm/bias, .*; unknown .*: none. Give"),
    ],
)
def test_gradients_of_other_variables_than_those_of_the_optimizer(
    kind: str, of_gradients: Any, of_optimizer: Any, message: str
) -> None:
    model = Model(nnx.Rngs(0))
    tx = optax.chain(balance(balancers.focal(), KPIS), optax.sgd(0.1))
    optimizer = dtp_nnx.Optimizer(model, tx, wrt=of_optimizer)
    make = dtp_nnx.task_gradients(losses_fn, has_aux=True, wrt=of_gradients)
    gradients: Any = make(model, X)[0]
    if kind == "stacked":
        gradients = gradients.stack()
    if kind == "features":
        params = nnx.as_pure(nnx.state(model, of_gradients))
        gradients = dtp_jax.feature_task_gradients(
            lambda params: X, lambda params, z: {"left": z.sum(), "right": z.sum()}
        )(params)
    before = data(variables(model))
    with pytest.raises(ValueError, match=f"{message}.*wrt"):
        optimizer.update(model, gradients, kpis=KPIS)
    chex.assert_trees_all_equal(data(variables(model)), before)


def test_ordinary_gradients_of_other_variables() -> None:
    model = Model(nnx.Rngs(0))
    optimizer = dtp_nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)

    def loss(model: Model) -> jax.Array:
        return losses_fn(model, X)[0]["left"]

    gradient = nnx.grad(loss, argnums=nnx.DiffState(0, LEFT))(model)
    with pytest.raises(ValueError, match="other variables than those that the optim"):
        optimizer.update(model, gradient)


def test_a_parameter_of_integers_is_named() -> None:
    model = Model(nnx.Rngs(0))
    model.left.table = nnx.Param(jnp.arange(3))
    make = dtp_nnx.task_gradients(losses_fn, has_aux=True)
    with pytest.raises(ValueError, match=r"table.* has dtype int32.*what wrt selects"):
        make(model, X)


# A batch that is split by hand.


class Synchronized(nnx.Module):
    def __init__(self, axis_name: str | None) -> None:
        rngs = nnx.Rngs(0)
        # A bias in front of the normalization would have a gradient of rounding errors.
        self.trunk = nnx.Linear(3, 8, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, axis_name=axis_name, rngs=rngs)
        self.heads = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        left, right = self.heads(jnp.tanh(self.norm(self.trunk(x)))).T
        return left, right


def synchronized_losses(model: Any, x: jax.Array) -> Any:
    left, right = model(x)
    losses = {"left": jnp.mean((left - 1) ** 2), "right": jnp.mean(right**2)}
    return losses, {"left": jnp.mean(left > 0), "right": jnp.mean(right > 0)}


def trained(axis_name: str | None, x: jax.Array) -> Any:
    model = Synchronized(axis_name)
    tx = optax.chain(balance(toys.equal_norms(), KPIS), optax.adam(0.01))
    optimizer = dtp_nnx.Optimizer(model, tx, wrt=nnx.Param)
    make = dtp_nnx.task_gradients(
        synchronized_losses, has_aux=True, axis_name=axis_name
    )
    losses = None
    for _ in range(2):
        gradients, kpis = make(model, x)
        kpis = jax.lax.pmean(kpis, axis_name) if axis_name else kpis
        optimizer.update(model, gradients, kpis=kpis)
        losses = gradients.losses
    return losses, variables(model)


@pytest.mark.parametrize("check_vma", [True, False])
def test_steps_on_shards_are_those_on_one_device(check_vma: bool) -> None:
    mesh = devices.mesh("data", num_devices=4)

    def local(x: jax.Array) -> Any:
        return jax.tree.map(lambda leaf: leaf[None], trained("data", x))

    mapped = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=jax.P("data"),
        out_specs=jax.P("data"),
        check_vma=check_vma,
    )
    found = jax.jit(mapped)(X)
    expected = jax.jit(lambda x: trained(None, x))(X)
    for device in range(4):
        of_device = jax.tree.map(lambda leaf, d=device: leaf[d], found)
        # Adam divides by the size of an entry, and with it by that of its error.
        assert_near(of_device, expected, rtol=1e-4)
