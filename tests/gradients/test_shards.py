"""Batches split by hand, as in `jax.shard_map`, against the whole batch at once."""

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import dtp_jax
from dtp_jax import feature_task_gradients, task_gradients
from dtp_jax.gradients import GramianMode
from tests import devices, toys
from tests.toys import balance, balancers

MODES = [mode for mode in get_args(GramianMode) if mode != "auto"]
NUM_SHARDS = 4
NUM_EXAMPLES = 32
KEYS = jax.random.split(jax.random.key(0), 5)
PARAMS = {
    "trunk": jax.random.normal(KEYS[0], (5, 7)) / 2,
    "heads": {
        "a": jax.random.normal(KEYS[1], (7,)),
        "b": jax.random.normal(KEYS[2], (7,)),
    },
}
SIZE, TRUNK_SIZE = 49, 35
X = jax.random.normal(KEYS[3], (NUM_EXAMPLES, 5))
Y = jax.random.normal(KEYS[4], (NUM_EXAMPLES,))
SHARED = {"trunk": True, "heads": False}
both = pytest.mark.parametrize("check_vma", [True, False])


def mesh_of(*sizes: int) -> Any:
    return devices.mesh_of(dict(zip(("data", "more"), sizes, strict=False)))


def on_shards(
    function: Callable[..., Any], check_vma: bool, mesh: Any = None
) -> Callable[..., Any]:
    """Maps ``function(params, x, y)``; the results have an axis of devices."""
    mesh = mesh_of(NUM_SHARDS) if mesh is None else mesh
    split = jax.P(mesh.axis_names)

    def local(params: Any, x: jax.Array, y: jax.Array) -> Any:
        return jax.tree.map(lambda leaf: leaf[None], function(params, x, y))

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(jax.P(), split, split),
        out_specs=split,
        check_vma=check_vma,
    )


def assert_close(found: Any, expected: Any, rtol: float = 1e-5) -> None:
    """Every device has the same, which is right relative to the largest entry."""

    def one(found: jax.Array, expected: jax.Array) -> None:
        for of_device in found:
            np.testing.assert_array_equal(of_device, found[0])
        largest = float(jnp.max(jnp.abs(expected)))
        np.testing.assert_allclose(found[0], expected, rtol=0, atol=rtol * largest)

    jax.tree.map(one, found, expected)


def losses_fn(params: Any, x: jax.Array, y: jax.Array, axis: Any = None) -> Any:
    """Losses of a shard of every kind, and what they are for the whole batch."""
    average = functools.partial(jax.lax.pmean, axis_name=axis) if axis else lambda x: x
    hidden = jnp.tanh(x @ params["trunk"])
    # Statistics of the batch, as synchronized normalization has them.
    hidden = hidden - average(hidden.mean(axis=0))
    a, b = hidden @ params["heads"]["a"], hidden @ params["heads"]["b"]
    return {
        "constant": 0.0,
        "of_data": jnp.mean((a - y) ** 2),
        "of_params": jnp.sum(params["trunk"] ** 2),
        "averaged": average(jnp.mean(b**2)),
    }


WEIGHTS = {"constant": 1.0, "of_data": 0.3, "of_params": -2.0, "averaged": 1.5}
ONES = dict.fromkeys(WEIGHTS, 1.0)


def products_with(stack: Any, vector: Any) -> jax.Array:
    pairs = zip(jax.tree.leaves(stack), jax.tree.leaves(vector), strict=True)
    return sum(
        (jnp.einsum("t...,...->t", rows, leaf) for rows, leaf in pairs), jnp.zeros(())
    )


def expected_of(params: Any, x: jax.Array, y: jax.Array) -> Any:
    """What follows from the Jacobian of the whole batch."""
    jacobian = jax.jacrev(losses_fn)(params, x, y)
    names = sorted(WEIGHTS)
    stack = jax.tree.map(lambda *rows: jnp.stack(rows), *[jacobian[n] for n in names])
    flat = stack["trunk"].reshape(len(names), -1)
    weights = jnp.array([WEIGHTS[name] for name in names])

    def combined(weights: jax.Array) -> Any:
        return jax.tree.map(lambda rows: jnp.tensordot(weights, rows, 1), stack)

    mixed = {**combined(weights), "heads": combined(jnp.ones(4))["heads"]}
    return {
        "losses": losses_fn(params, x, y),
        "combined": combined(weights),
        "mixed": mixed,
        "stack": stack,
        "gramian": flat @ flat.T,
        "norms": jnp.sum(flat**2, axis=1),
        "products": products_with(stack, PARAMS),
        "after": mixed,
    }


@both
def test_gradients_of_shards_are_those_of_the_whole_batch(check_vma: bool) -> None:
    def of_mode(mode: Any, params: Any, x: jax.Array, y: jax.Array) -> Any:
        local = functools.partial(losses_fn, axis="data")
        gradients = task_gradients(
            local, shared=SHARED, gramian=mode, axis_name="data"
        )(params, x, y)
        return {
            "losses": gradients.losses,
            "combined": gradients.combine(WEIGHTS),
            "mixed": gradients.combine(WEIGHTS, ONES),
            "stack": gradients.stack(),
            "gramian": gradients.gramian(),
            "norms": gradients.squared_norms(),
            "products": gradients.products(PARAMS),
            # Of the rows that are kept, if any.
            "after": gradients.combine(WEIGHTS, ONES),
        }

    def all_modes(params: Any, x: jax.Array, y: jax.Array) -> Any:
        return {mode: of_mode(mode, params, x, y) for mode in MODES}

    found = jax.jit(on_shards(all_modes, check_vma))(PARAMS, X, Y)
    expected = expected_of(PARAMS, X, Y)
    for mode in MODES:
        assert_close(found[mode], expected)


@both
def test_a_mesh_of_two_axes_and_parameters_that_vary_already(check_vma: bool) -> None:
    axes = ("data", "more")

    def local(params: Any, x: jax.Array, y: jax.Array) -> Any:
        params = {
            **params,
            "trunk": jax.lax.pcast(params["trunk"], "data", to="varying"),
        }
        make = task_gradients(
            functools.partial(losses_fn, axis=axes), shared=SHARED, axis_name=axes
        )
        gradients = make(params, x, y)
        return gradients.gramian(), gradients.combine(WEIGHTS)

    found = jax.jit(on_shards(local, check_vma, mesh_of(2, 2)))(PARAMS, X, Y)
    expected = expected_of(PARAMS, X, Y)
    assert_close(found, (expected["gramian"], expected["combined"]))


def test_an_axis_of_vmap() -> None:
    def local(params: Any, x: jax.Array, y: jax.Array) -> Any:
        make = task_gradients(
            functools.partial(losses_fn, axis="i"), shared=SHARED, axis_name="i"
        )
        gradients = make(params, x, y)
        return gradients.losses, gradients.gramian(), gradients.combine(WEIGHTS)

    parts = X.reshape(NUM_SHARDS, -1, 5), Y.reshape(NUM_SHARDS, -1)
    found = jax.jit(jax.vmap(local, (None, 0, 0), axis_name="i"))(PARAMS, *parts)
    expected = expected_of(PARAMS, X, Y)
    wanted = [expected[name] for name in ("losses", "gramian", "combined")]
    assert_close(found, tuple(wanted))


def test_losses_in_half_precision_are_averaged_in_single() -> None:
    # Their sum is beyond the largest number of float16.
    def of_shard(x: jax.Array) -> Any:
        make = task_gradients(
            lambda p: {"a": (p * x).astype(jnp.float16)}, axis_name="i"
        )
        return make(jnp.array(1.0)).losses["a"]

    found = jax.vmap(of_shard, axis_name="i")(jnp.array([4e4, 5e4, 4e4, 3e4]))
    assert found.dtype == jnp.float16
    np.testing.assert_array_equal(found, jnp.float16(4e4))


# Features.


def encoder(params: Any, x: jax.Array, y: jax.Array) -> Any:
    del y
    inner = x @ params["trunk"]
    return {
        "hidden": jnp.tanh(inner),
        "which": jnp.argmax(inner, axis=-1),
        "positive": inner > 0,
    }


def one_head(weight: jax.Array, features: Any, y: jax.Array) -> jax.Array:
    hidden = features["hidden"] * (1 + features["which"][:, None])
    return jnp.mean((hidden @ weight - y * features["positive"].sum(axis=1)) ** 2)


def heads(params: Any, features: Any, x: jax.Array, y: jax.Array) -> Any:
    del x
    return [one_head(params["heads"]["a"], features, y), one_head(
        params["heads"]["b"], features, 2 * y
    )]  # fmt: skip


def stacked_heads(params: Any, x: jax.Array, y: jax.Array) -> Any:
    del x
    both_heads = jnp.stack([params["heads"]["a"], params["heads"]["b"]])
    return {"w": both_heads, "factor": jnp.array([1, 2])}, jnp.stack([y, y])


def one_of_stacked(of_head: Any, features: Any, y: jax.Array) -> jax.Array:
    return one_head(of_head["w"], features, of_head["factor"] * y)


def separate(axis_name: Any = None) -> Any:
    return feature_task_gradients(encoder, heads, axis_name=axis_name)


def stacked(axis_name: Any = None) -> Any:
    return feature_task_gradients(
        encoder, one_of_stacked, stacked=stacked_heads, axis_name=axis_name
    )


FEATURE_WEIGHTS = jnp.array([0.3, 2.0])


def expected_at_features() -> Any:
    """The Gramian of all features together, from its definition."""
    features = encoder(PARAMS, X, Y)

    def of_hidden(hidden: jax.Array) -> jax.Array:
        return jnp.stack(heads(PARAMS, {**features, "hidden": hidden}, X, Y))

    rows = jax.jacrev(of_hidden)(features["hidden"]).reshape(2, -1)

    def total(params: Any, weights: jax.Array) -> jax.Array:
        return weights @ jnp.stack(heads(params, encoder(params, X, Y), X, Y))

    of_weights = jax.grad(total)(PARAMS, FEATURE_WEIGHTS)
    of_ones = jax.grad(total)(PARAMS, jnp.ones(2))
    stack = jax.jacrev(lambda p: total(p, jnp.eye(2)))(PARAMS)
    return {
        "losses": of_hidden(features["hidden"]),
        "gramian": rows @ rows.T,
        "norms": jnp.sum(rows**2, axis=1),
        "combined": {"trunk": of_weights["trunk"], "heads": of_ones["heads"]},
        "stack": stack,
        "products": products_with(stack, PARAMS),
    }


def at_features(gradients: Any) -> Any:
    return {
        "losses": jnp.stack(list(gradients.losses)),
        "gramian": gradients.gramian(),
        "norms": gradients.squared_norms(),
        "combined": gradients.combine(FEATURE_WEIGHTS, jnp.ones(2)),
        "stack": gradients.stack(),
        "products": gradients.products(PARAMS),
    }


@both
def test_the_features_of_all_shards_together(check_vma: bool) -> None:
    def local(params: Any, x: jax.Array, y: jax.Array) -> Any:
        of_all = [make("data")(params, x, y) for make in (separate, stacked)]
        return [at_features(gradients) for gradients in of_all]

    expected = expected_at_features()
    for found in jax.jit(on_shards(local, check_vma))(PARAMS, X, Y):
        assert_close(found, expected)


def test_integers_and_booleans_among_the_features() -> None:
    expected = expected_at_features()
    for make in (separate, stacked):
        found = jax.jit(lambda p, m=make: at_features(m()(p, X, Y)))(PARAMS)
        assert_close(jax.tree.map(lambda leaf: leaf[None], found), expected)


# Several steps.

TASKS = {"a": 0.0, "b": 0.0}


def named_heads(params: Any, features: Any, x: jax.Array, y: jax.Array) -> Any:
    del x
    a, b = features @ params["heads"]["a"], features @ params["heads"]["b"]
    losses = {"a": jnp.mean((a - y) ** 2), "b": 3 * jnp.mean((b + jnp.sin(y)) ** 2)}
    return losses, {"a": jnp.mean(jnp.abs(a - y) < 1), "b": jnp.mean(jnp.abs(b) < 1)}


def hidden_of(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    del y
    return jnp.tanh(x @ params["trunk"])


def whole_network(params: Any, x: jax.Array, y: jax.Array) -> Any:
    return named_heads(params, hidden_of(params, x, y), x, y)


def links() -> dict[str, tuple[Any, bool]]:
    """First links of a chain, and whether their gradients are taken at features."""
    upgrad = balance(balancers.upgrad(), TASKS)
    return {
        "focal": (balance(balancers.focal(alpha=0.5), TASKS), False),
        "upgrad": (upgrad, False),
        "grad_norm": (balance(balancers.grad_norm(), TASKS), False),
        "db_mtl": (dtp_jax.combiners.db_mtl(TASKS), False),
        # It multiplies the rows by a vector instead of with each other.
        "auto_lambda": (balance(balancers.auto_lambda(0.1), TASKS), False),
        "features": (
            balance(toys.equal_norms(), TASKS, heads="preferences"),
            True,
        ),
    }


def one_step(
    link: Any, of_features: bool, axis: Any, params: Any, state: Any, data: Any
) -> Any:
    tx = optax.chain(link, optax.adam(0.01))
    if of_features:
        make = feature_task_gradients(
            hidden_of, named_heads, has_aux=True, axis_name=axis
        )
    else:
        make = task_gradients(whole_network, has_aux=True, axis_name=axis)
    gradients, kpis = make(params, *data)
    kpis = jax.lax.pmean(kpis, axis) if axis else kpis
    updates, state = tx.update(
        gradients, state, params, kpis=kpis, second_task_gradients=gradients
    )
    return optax.apply_updates(params, updates), state


def trained(axis: Any, params: Any, x: jax.Array, y: jax.Array) -> Any:
    """Parameters and state after some steps, by each method."""
    results = {}
    for name, (link, of_features) in links().items():
        step = functools.partial(one_step, link, of_features, axis)
        state = optax.chain(link, optax.adam(0.01)).init(params)
        (last, state), _ = jax.lax.scan(
            lambda carry, _, step=step: (step(*carry, (x, y)), None),
            (params, state),
            length=4,
        )
        results[name] = last, state
    return results


@functools.cache
def trained_on_one_device() -> Any:
    return jax.jit(functools.partial(trained, None))(PARAMS, X, Y)


@both
def test_steps_on_shards_are_those_on_one_device(check_vma: bool) -> None:
    on_all = on_shards(functools.partial(trained, "data"), check_vma)
    found = jax.jit(on_all)(PARAMS, X, Y)
    expected = trained_on_one_device()
    # Adam divides by the size of an entry: one that is a thousandth of the largest has
    # a relative error of 1e-4, by which a hundredth is added in each of four steps.
    for name in expected:
        assert_close(found[name], expected[name], rtol=1e-4)


# What travels between devices.


def numbers_averaged(function: Callable[..., Any], *args: Any) -> int:
    """How many numbers a mapped function sums over devices, before anything is cut."""
    jaxpr = jax.make_jaxpr(on_shards(function, check_vma=True))(*args)
    return sum(_averaged_in(jaxpr.jaxpr))


def _averaged_in(jaxpr: Any) -> Iterator[int]:
    for eqn in jaxpr.eqns:
        if eqn.primitive.name.startswith("psum"):
            yield sum(var.aval.size for var in eqn.invars)
        for value in jax.tree.leaves(list(eqn.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _averaged_in(inner)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        # One gradient, two KPIs; the losses are always there.
        ("focal", SIZE + 2),
        # The gradients of both tasks, whose sum is not averaged again.
        ("upgrad", 2 * SIZE + 2),
        ("db_mtl", 2 * SIZE + 2),
        # One gradient and a Gramian.
        ("features", SIZE + 4 + 2),
    ],
)
def test_how_many_numbers_a_step_averages(name: str, numbers: int) -> None:
    link, of_features = links()[name]
    state = optax.chain(link, optax.adam(0.01)).init(PARAMS)

    def local(params: Any, x: jax.Array, y: jax.Array) -> Any:
        return one_step(link, of_features, "data", params, state, (x, y))

    num_losses = 2
    assert numbers_averaged(local, PARAMS, X, Y) == numbers + num_losses


def test_the_compiled_step_by_kpis_averages_one_gradient() -> None:
    link, _ = links()["focal"]
    state = optax.chain(link, optax.adam(0.01)).init(PARAMS)

    def local(params: Any, x: jax.Array, y: jax.Array) -> Any:
        return one_step(link, False, "data", params, state, (x, y))

    step = jax.jit(on_shards(local, check_vma=False))
    compiled: Any = step.lower(PARAMS, X, Y).compile()
    shapes = re.findall(r"= (.*) all-reduce(?:-start)?\(", compiled.as_text())
    sizes = [
        np.prod([int(size) for size in dims.split(",") if size], dtype=int)
        for dims in re.findall(r"f32\[([\d,]*)\]", " ".join(shapes))
    ]
    # Next to the gradient, two losses, which must be finite, and two KPIs.
    assert sum(sizes) == SIZE + 2 + 2


def test_of_parameters_that_are_not_shared_only_the_sum_is_averaged() -> None:
    def local(params: Any, x: jax.Array, y: jax.Array) -> Any:
        make = task_gradients(losses_fn, shared=SHARED, axis_name="data")
        gradients = make(params, x, y)
        return gradients.gramian(), gradients.combine(WEIGHTS, ONES)

    numbers = 4 * TRUNK_SIZE + (SIZE - TRUNK_SIZE) + len(WEIGHTS)
    assert numbers_averaged(local, PARAMS, X, Y) == numbers


# What is said.


@both
def test_parts_of_unequal_size(check_vma: bool) -> None:
    # The recipe of the docstring: padded to equal shapes, and one part almost empty.
    real = jnp.arange(NUM_EXAMPLES) < 25

    def of_all(params: jax.Array, x: jax.Array, real: jax.Array, axis: Any) -> Any:
        size = real.sum().astype(jnp.float32)
        size = jax.lax.pmean(size, axis) if axis else size
        return {"a": jnp.sum(jnp.square(x @ params), where=real) / size}

    def local(params: jax.Array, x: jax.Array, real: jax.Array) -> Any:
        make = task_gradients(functools.partial(of_all, axis="data"), axis_name="data")
        gradients = make(params, x, real)
        return gradients.losses, gradients.combine([1.0])

    params = jnp.arange(5.0)
    found = jax.jit(on_shards(local, check_vma))(params, X, real)
    loss, gradient = jax.value_and_grad(lambda p: jnp.mean(jnp.square(X[:25] @ p)))(
        params
    )
    assert_close(found, ({"a": loss}, gradient))


def test_an_axis_that_is_not_mapped() -> None:
    makes: list[Any] = [
        task_gradients(losses_fn, axis_name="data"),
        separate("data"),
        task_gradients(losses_fn, axis_name=("data", "more")),
    ]
    for make in makes:
        with pytest.raises(ValueError, match=r"axis_name='data'.* is no mapped axis"):
            make(PARAMS, X, Y)


def test_weights_that_differ_from_shard_to_shard() -> None:
    link = balance(balancers.focal(), TASKS)

    def local(of_features: bool, params: Any, x: jax.Array, y: jax.Array) -> Any:
        if of_features:
            make = feature_task_gradients(
                hidden_of, named_heads, has_aux=True, axis_name="data"
            )
        else:
            make = task_gradients(whole_network, has_aux=True, axis_name="data")
        gradients, kpis = make(params, x, y)
        return link.update(gradients, link.init(params), params, kpis=kpis)[0]

    for of_features in (False, True):
        mapped = on_shards(functools.partial(local, of_features), check_vma=True)
        with pytest.raises(ValueError, match=r"kpis=jax.lax.pmean\(kpis, 'data'\)"):
            jax.eval_shape(mapped, PARAMS, X, Y)


@pytest.mark.parametrize("spec", [jax.P(), jax.P("x")], ids=["whole", "spread"])
def test_features_with_heads_on_explicit_axes(spec: Any) -> None:
    mesh = devices.mesh("x", AxisType.Explicit, NUM_SHARDS)
    x = jnp.ones((NUM_SHARDS, 8)) * jnp.arange(8.0)
    params = {"w": jnp.linspace(0.1, 1.0, 8), "a": jnp.ones(8), "b": jnp.arange(8.0)}

    def of(params: Any, x: jax.Array, cast: Any) -> Any:
        gradients = feature_task_gradients(
            lambda p, x: jnp.tanh(x * cast(p["w"])),
            lambda p, z, x: {n: jnp.mean((z * cast(p[n]) - 1) ** 2) for n in "ab"},
        )(params, x)
        return gradients.gramian(), gradients.combine({"a": 1.0, "b": 2.0})

    expected = of(params, x, lambda p: p[None])
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, spec)
        found = jax.jit(
            lambda p, x: of(p, x, lambda p: jax.sharding.reshard(p, jax.P())[None])
        )(placed, jax.device_put(x, jax.P("x")))
    toys.assert_close(found, expected, ulps=64)
