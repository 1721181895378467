import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import metrics


def test_relative_is_the_share_of_the_way() -> None:
    kpi = jnp.array([0.0, 0.1, 0.3, 0.9, 1.0])
    found = metrics.relative(kpi, chance=0.1, reference=0.9)
    np.testing.assert_allclose(found, [0, 0, 0.25, 0.99, 0.99], rtol=1e-6)
    np.testing.assert_allclose(metrics.relative(kpi, 0.1, 0.9, cap=1.0)[3:], 1.0)


def test_lower_may_be_better() -> None:
    found = metrics.relative(jnp.array([5.0, 4.0, 3.0, 1.0]), chance=4.0, reference=2.0)
    np.testing.assert_allclose(found, [0, 0, 0.5, 0.99], rtol=1e-6)


def test_per_task_ends_and_what_was_not_observed() -> None:
    kpis = {"a": 0.5, "b": None, "c": jnp.array(jnp.nan), "d": jnp.array(jnp.inf)}
    found = metrics.relative(
        kpis, chance=dict.fromkeys("abcd", 0.0), reference=dict.fromkeys("abcd", 2.0)
    )
    assert found["a"] == 0.25
    assert found["b"] is None
    assert np.isnan(found["c"])
    assert np.isnan(found["d"])


def test_it_is_differentiable_inside_and_flat_outside() -> None:
    slope = jax.vmap(jax.grad(lambda x: metrics.relative(x, 0.2, 0.7)))
    found = slope(jnp.array([0.1, 0.3, 0.6, 0.8, jnp.nan]))
    np.testing.assert_allclose(found, [0, 2, 2, 0, 0], rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.5, 0.3, 0.3), "must differ, got 0.3 twice"),
        ((0.5, np.float32(2), 2.0), "must differ"),
        ((0.5, float("nan"), 1.0), "must be finite"),
        ((0.5, np.float32("inf"), 1.0), "must be finite"),
        ((0.5, 0.0, 1.0, 0.0), "cap must be"),
        (({"a": 0.5}, {"b": 0.0}), "chance must be one number, or a pytree like"),
    ],
)
def test_wrong_ends(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.relative(*arguments)


def test_chance_levels_are_what_constants_score() -> None:
    rng = np.random.default_rng(0)
    labels = jnp.asarray(rng.integers(-1, 4, (30, 5)), jnp.int32)
    where = jnp.asarray(rng.random((30, 5)) < 0.7)
    best = max(
        float(jnp.mean(labels == c, where=where)) for c in np.unique(np.asarray(labels))
    )
    found = metrics.chance_accuracy(labels, where=where)
    np.testing.assert_allclose(found, best, rtol=1e-6)
    target = jnp.asarray(rng.normal(size=(41,)), jnp.float32)
    guess = jnp.full_like(target, jnp.median(target))
    np.testing.assert_allclose(
        metrics.chance_bounded_error(target, 2.0),
        metrics.bounded_error(guess, target, 2.0),
        rtol=1e-6,
    )
    corners = jnp.asarray(np.sort(rng.random((21, 2, 2)), axis=1).reshape(21, 4))
    one = jnp.broadcast_to(jnp.median(corners, axis=0), corners.shape)
    np.testing.assert_allclose(
        metrics.chance_mean_box_iou(corners),
        metrics.mean_box_iou(one, corners),
        rtol=1e-6,
    )
    x, y = jnp.asarray(rng.normal(size=(2, 20_000)), jnp.float32)
    np.testing.assert_allclose(
        metrics.correlation(x, y), metrics.chance_correlation(), atol=0.02
    )


def test_without_examples_there_is_no_chance_level() -> None:
    none = jnp.zeros(3, bool)
    assert np.isnan(metrics.chance_accuracy(jnp.arange(3), where=none))
    assert np.isnan(metrics.chance_bounded_error(jnp.arange(3.0), 1.0, where=none))
    assert np.isnan(metrics.chance_mean_box_iou(jnp.zeros((3, 4)), where=none))
