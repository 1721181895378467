from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax import TaskGradients, diagnostics, task_gradients
from tests import toys
from tests.toys import balance, dynamic_task_prioritization

STEP = toys.Steps(jnp.ones(2), jnp.array([0.5, 0.1]), jnp.eye(2))


def trained(tx: Any) -> Any:
    return toys.update(tx, tx.init(jnp.zeros(2)), STEP, ("right", "left"))[1]


def test_weights_and_kpis_by_name_from_a_chain() -> None:
    link = dynamic_task_prioritization(
        ["left", "right"], warmup_steps=0, ramp_steps=0, normalize=None
    )
    state = trained(optax.chain(link, optax.clip_by_global_norm(1.0), optax.sgd(0.1)))
    weights, kpis = diagnostics.task_weights(state), diagnostics.kpis(state)
    assert list(weights) == ["left", "right"]
    np.testing.assert_allclose(kpis["left"], 0.1, rtol=1e-6)
    np.testing.assert_allclose(weights["right"], 0.25 * np.log(2), rtol=1e-6)


def test_names_of_tasks_in_one_array_are_positions() -> None:
    state = dynamic_task_prioritization(2).init(None)
    assert list(diagnostics.task_weights(state)) == ["0", "1"]
    assert np.isnan(diagnostics.kpis(state)["0"])


def test_tasks_with_the_same_path_are_both_there() -> None:
    tasks = {"a/b": jnp.zeros(()), "a": {"b": jnp.zeros(())}}
    link = dynamic_task_prioritization(
        tasks, warmup_steps=0, ramp_steps=0, normalize=None
    )
    gradients = TaskGradients.from_stacked(jnp.eye(2), tasks)
    kpis = {"a/b": 0.5, "a": {"b": 0.1}}
    _, state = link.update(gradients, link.init(None), kpis=kpis)
    found = diagnostics.kpis(state)
    assert {name: round(float(kpi), 6) for name, kpi in found.items()} == {
        "['a']['b']": 0.1,
        "['a/b']": 0.5,
    }
    weights = diagnostics.task_weights(state)
    np.testing.assert_allclose(weights["['a/b']"], 0.25 * np.log(2), rtol=1e-6)


def seeds(tx: Any) -> Any:
    return jax.vmap(tx.init)({"w": jnp.zeros((3, 2))})


@pytest.mark.parametrize(
    ("tx", "names"),
    [
        (balance(optax.identity(), ["a", "b"]), ["a", "b"]),
        (dynamic_task_prioritization(["a", "b"]), ["a", "b"]),
        (dynamic_task_prioritization({"a": jnp.zeros(2)}), ["a/0", "a/1"]),
        (optax.chain(balance(optax.identity(), 2), optax.adam(0.1)), ["0", "1"]),
    ],
)
def test_a_state_with_an_axis_of_seeds_says_to_map(tx: Any, names: list[str]) -> None:
    state = seeds(tx)
    with pytest.raises(ValueError, match=r"first axis of 3.*jax.vmap\(dtp_jax"):
        diagnostics.task_weights(state)
    found = jax.vmap(diagnostics.task_weights)(state)
    assert list(found) == names
    assert {weights.shape for weights in found.values()} == {(3,)}
    one = jax.tree.map(lambda leaf: leaf[0], state)
    assert list(diagnostics.task_weights(one)) == names


def test_an_axis_of_tasks_that_nothing_tells_from_one_of_seeds() -> None:
    state = balance(optax.identity(), {"a": jnp.zeros(2)}).init(None)
    with pytest.raises(ValueError, match="If it counts tasks, read the weights by"):
        diagnostics.task_weights(state)
    # A counter anywhere in the state tells.
    assert list(diagnostics.task_weights((state, jnp.zeros(())))) == ["a/0", "a/1"]


def test_kpis_of_a_state_with_an_axis_of_seeds_or_steps() -> None:
    link = dynamic_task_prioritization(["a", "b"])
    with pytest.raises(ValueError, match=r"jax.vmap\(dtp_jax"):
        diagnostics.kpis(seeds(link))
    assert set(jax.vmap(diagnostics.kpis)(seeds(link))) == {"a", "b"}
    _, history = jax.lax.scan(lambda s, _: (s, s), link.init(None), length=4)
    with pytest.raises(ValueError, match="first axis of 4"):
        diagnostics.task_weights(history)


def test_a_state_without_a_link() -> None:
    state = optax.adam(1e-3).init(jnp.zeros(2))
    with pytest.raises(ValueError, match="no `task_weights`, which a link of"):
        diagnostics.task_weights(state)
    plain = balance(optax.identity(), 2).init(None)
    with pytest.raises(ValueError, match="no `kpis`"):
        diagnostics.kpis(plain)


def test_two_links_are_ambiguous() -> None:
    link = balance(optax.identity(), 2)
    with pytest.raises(ValueError, match="several `task_weights`"):
        diagnostics.task_weights((link.init(None), link.init(None)))


@pytest.mark.parametrize("size", [2e-37, 1.0, 1e37])
def test_effective_number_of_tasks(size: float) -> None:
    def effective(*weights: float) -> float:
        return float(diagnostics.effective_num_tasks(jnp.array(weights) * size))

    assert effective(1.0, 1.0, 1.0) == pytest.approx(3.0)
    assert effective(0.0, 2.0, 0.0) == pytest.approx(1.0)
    assert effective(0.0, 0.0) == 0.0
    shares = np.array([0.7, 0.2, 0.1])
    expected = np.exp(-np.sum(shares * np.log(shares)))
    assert effective(*shares) == pytest.approx(expected, rel=1e-5)


def test_cosines_and_conflicts_of_a_lazy_gradient() -> None:
    def losses(x: jnp.ndarray) -> dict[str, jnp.ndarray]:
        return {"a": x[0], "b": -2 * x[0] + 2 * x[1], "c": x[1]}

    gradients = task_gradients(losses)(jnp.zeros(2))
    half = np.sqrt(0.5)
    expected = [[1, -half, 0], [-half, 1, half], [0, half, 1]]
    np.testing.assert_allclose(diagnostics.cosines(gradients), expected, atol=1e-6)
    assert int(diagnostics.num_conflicts(gradients)) == 1
    assert int(diagnostics.num_conflicts(gradients, threshold=0.5)) == 2


def test_a_zero_gradient_is_in_no_conflict() -> None:
    gradients = TaskGradients.from_stacked(jnp.array([[0.0, 0.0], [1.0, 0.0]]))
    assert int(diagnostics.num_conflicts(gradients)) == 0


def test_kpi_problems_are_named() -> None:
    names = ["bad", "dead", "done", "fine", "none"]
    link = toys.dynamic_task_prioritization(names, warmup_steps=0)
    rows, ones = jnp.eye(5), dict.fromkeys(names, jnp.ones(()))
    gradients = TaskGradients.from_stacked(rows, ones)
    update, state = jax.jit(link.update), link.init(None)
    assert diagnostics.kpi_problems(state) == {}
    for bad in (0.5, 85.0, 0.6):
        kpis = {"bad": bad, "dead": 0.0, "done": 1.0, "fine": 0.5, "none": jnp.nan}
        _, state = update(gradients, state, kpis=jax.tree.map(jnp.asarray, kpis))
    problems = diagnostics.kpi_problems(state, num_steps=3)
    assert list(problems) == ["bad", "dead", "done", "none"]
    assert "from 0.5 to 85" in problems["bad"]
    assert "stands at 0" in problems["dead"]
    assert "stands at its best" in problems["done"]
    assert "never observed" in problems["none"]
    assert list(diagnostics.kpi_problems(state, num_steps=4)) == ["bad", "none"]


def test_a_kpi_with_a_range_may_leave_it() -> None:
    link = toys.dynamic_task_prioritization(["a"], kpi_range={"a": (10.0, 90.0)})
    gradients = TaskGradients.from_stacked(jnp.eye(1), {"a": jnp.ones(())})
    _, state = link.update(gradients, link.init(None), kpis={"a": jnp.array(95.0)})
    assert diagnostics.kpi_problems(state) == {}
