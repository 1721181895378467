"""A TaskGradients that was taken for a pytree of gradients shows it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax import TaskGradients, feature_task_gradients, task_gradients

PARAMS = {"w": jnp.array([1.0, 2.0])}
WEIGHTS = {"a": 1.0, "b": 2.0}


def losses_fn(params: Any) -> dict[str, jax.Array]:
    return {"a": jnp.sum(params["w"] ** 2), "b": jnp.sum(params["w"])}


def lazy(params: Any) -> Any:
    return task_gradients(losses_fn)(params)


def stacked(params: Any) -> Any:
    return TaskGradients.from_stacked({"w": jnp.eye(2)}, losses_fn(params))


def at_features(params: Any) -> Any:
    return feature_task_gradients(lambda p: p["w"], lambda p, z: losses_fn({"w": z}))(
        params
    )


kinds = pytest.mark.parametrize("make", [lazy, stacked, at_features])
READS = {
    "losses": lambda gradients: gradients.losses,
    "combine": lambda gradients: gradients.combine(WEIGHTS),
    "gramian": lambda gradients: gradients.gramian(),
    "squared_norms": lambda gradients: gradients.squared_norms(),
    "stack": lambda gradients: gradients.stack(),
    "products": lambda gradients: gradients.products(PARAMS),
    "stacked": lambda gradients: gradients.stacked().gramian(),
}


def norm(tree: Any) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)))


def doubled(gradients: Any) -> Any:
    return jax.tree.map(lambda leaf: 2 * leaf, gradients)


MISTAKES = {
    "norm": optax.tree.norm,
    "doubled": doubled,
    "divided by an array": lambda g: jax.tree.map(lambda x: x / jnp.ones(()), g),
    "negative": lambda g: jax.tree.map(lambda x: -x, g),
    "sum of two": lambda g: jax.tree.map(lambda x, y: x + y, g, g),
    "cast": lambda g: jax.tree.map(lambda x: x.astype(jnp.bfloat16), g),
    "added by optax": lambda g: optax.tree.add(g, g),
    "clipped": lambda g: optax.clip_by_global_norm(1.0).update(g, optax.EmptyState()),
}


@kinds
@pytest.mark.parametrize("mistake", MISTAKES)
def test_arithmetic_on_the_leaves_is_an_error(make: Any, mistake: str) -> None:
    message = r"took (them|a TaskGradients) for .*combine\(weights\)"
    with pytest.raises(ValueError, match=message):
        MISTAKES[mistake](make(PARAMS))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda params: MISTAKES[mistake](make(params)), PARAMS)


def test_averaging_the_leaves_over_devices_is_an_error() -> None:
    def local(params: Any) -> Any:
        return jax.lax.pmean(lazy(params), "i").combine(WEIGHTS)

    params = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), PARAMS)
    with pytest.raises(ValueError, match="axis_name"):
        jax.vmap(local, axis_name="i")(params)


@kinds
@pytest.mark.parametrize("read", READS)
def test_what_only_a_value_shows_becomes_nan(make: Any, read: str) -> None:
    # Behind the border of a jitted function the seal is an array like any other.
    @jax.jit
    def use(gradients: Any) -> Any:
        return READS[read](gradients)

    whole = jax.jit(make)(PARAMS)
    expected = READS[read](make(PARAMS))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), use(whole), expected
    )
    for leaf in jax.tree.leaves(use(doubled(whole))):
        assert np.isnan(leaf).all()
    halves = jax.tree.map(lambda leaf: leaf / 2, whole)
    with pytest.raises(ValueError, match="took them for gradients"):
        use(halves)


def test_a_norm_behind_a_jitted_function_is_beyond_belief() -> None:
    gradients = jax.jit(lazy)(PARAMS)
    assert norm(gradients) > 1e38
    assert jax.jit(norm)(gradients) > 1e38


@kinds
def test_passes_through_transformations_unbroken(make: Any) -> None:
    def carried(params: Any) -> Any:
        gradients, _ = jax.lax.scan(
            lambda carry, _: (jax.lax.cond(True, lambda: carry, lambda: carry), None),
            make(params),
            length=2,
        )
        chosen = jax.tree.map(lambda x: jnp.where(True, x, x), gradients)
        return chosen.combine(WEIGHTS), jax.tree.map(jnp.asarray, make(params)).losses

    def mapped(params: Any) -> Any:
        many = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), params)
        return jax.vmap(lambda params: make(params).combine(WEIGHTS))(many)["w"][1]

    expected = make(PARAMS).combine(WEIGHTS)
    for run in (carried, jax.jit(carried)):
        combined, losses = run(PARAMS)
        np.testing.assert_allclose(combined["w"], expected["w"], rtol=1e-6)
        assert losses == losses_fn(PARAMS)
    np.testing.assert_allclose(mapped(PARAMS), expected["w"], rtol=1e-6)


def test_one_that_comes_out_of_vmap_says_so() -> None:
    many = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), PARAMS)
    gradients = jax.vmap(lazy)(many)
    with pytest.raises(ValueError, match=r"vmap\(task_gradients\(f\)\): make and use"):
        gradients.combine(WEIGHTS)
    # What maps them again is as good as what mapped first.
    found = jax.vmap(lambda g: g.gramian())(gradients)
    np.testing.assert_allclose(found[1], lazy(PARAMS).gramian(), rtol=1e-6)
