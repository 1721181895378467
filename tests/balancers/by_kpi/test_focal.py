import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import focal_weights, init_kpis, update_kpis
from tests import toys
from tests.toys import balancers

ONES = jnp.ones(3)


def test_weights_are_the_focal_weights_of_the_averaged_kpis() -> None:
    steps = toys.random_steps(4)
    found = toys.weights_over(balancers.focal(gamma=1.0, alpha=0.6), steps)
    state = init_kpis(4)
    for index in range(steps.kpis.shape[0]):
        state = update_kpis(state, steps.kpis[index], 0.6)
        expected = focal_weights(state.mean, 1.0)
        np.testing.assert_allclose(found[index], expected, rtol=1e-5)


def test_preferences_multiply() -> None:
    balancer = balancers.focal()
    state, kpis = balancer.init(ONES), jnp.array([0.2, 0.5, 0.9])
    ones, _ = balancer.update(ONES, state, ONES, kpis=kpis)
    scaled, _ = balancer.update(jnp.array([1.0, 3.0, 0.0]), state, ONES, kpis=kpis)
    np.testing.assert_allclose(scaled, ones * jnp.array([1.0, 3.0, 0.0]), rtol=1e-6)


def test_a_solved_task_stays_active() -> None:
    balancer = balancers.focal()
    weights, _ = balancer.update(ONES, balancer.init(ONES), ONES, kpis=ONES)
    # Zero would mean "not active" to the next link.
    np.testing.assert_allclose(weights, 1e-30, rtol=1e-6)


def test_a_task_without_an_observation_keeps_its_preference() -> None:
    balancer = balancers.focal()
    kpis = jnp.array([jnp.nan, 0.1, 0.9])
    weights, state = balancer.update(ONES, balancer.init(ONES), ONES, kpis=kpis)
    assert float(weights[0]) == 1.0
    assert state.kpis.count.tolist() == [0, 1, 1]


@pytest.mark.parametrize("differentiate", [True, False])
def test_derivatives_flow_only_when_asked_for(differentiate: bool) -> None:
    balancer = balancers.focal(differentiate_kpis=differentiate)

    def total(kpis: jax.Array) -> jax.Array:
        return balancer.update(ONES, balancer.init(ONES), ONES, kpis=kpis)[0].sum()

    kpis = jnp.array([0.2, 0.5, 0.9])
    slope = jax.grad(total)(kpis)
    expected = jax.grad(lambda k: focal_weights(k).sum())(kpis)
    np.testing.assert_allclose(slope, expected if differentiate else 0 * kpis, 1e-6)


def test_missing_kpis_say_how_to_supply_them() -> None:
    balancer = balancers.focal()
    with pytest.raises(ValueError, match=r"focal needs `kpis`.*pass kpis="):
        balancer.update(ONES, balancer.init(ONES), ONES)


@pytest.mark.parametrize(
    "arguments", [{"gamma": -1.0}, {"alpha": 2.0}, {"kpi_min": 0.0}, {"kpi_min": 1.0}]
)
def test_hyperparameters_out_of_range(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be"):
        balancers.focal(**arguments)
