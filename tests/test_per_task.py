"""What a user writes per task goes by the names of the tasks, never by a list."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dtp_jax
from dtp_jax import TaskGradients, clip_each_task, focal_weights
from tests.toys import balance, balancers, curricula

combiners: Any = dtp_jax.combiners

# In the order of the user, which is not the sorted one.
TASKS = ["b", "a"]
LOSSES = {"b": jnp.array(1.0), "a": jnp.array(0.8)}
KPIS = {"b": jnp.array(0.3), "a": jnp.array(0.6)}
# Of the tasks in the order of `jax.tree.leaves`.
ROWS = jnp.array([[1.0, 0.5, 0.0], [-0.4, 1.0, 2.0]])
PARAMS = jnp.zeros(3)


def _balanced(factory: Callable[..., Any], name: str, **others: Any) -> Any:
    return lambda tasks, value: balance(factory(**{name: value}, **others), tasks)


def _small(bound: Any) -> Any:
    """Bounds of weights of 0.3."""
    return lambda **named: optax.chain(balancers.constant(0.3), bound(**named))


# From the tasks and the value of a hyperparameter to a link.
PER_TASK = {
    "constant-weights": _balanced(balancers.constant, "weights"),
    "focal-gamma": _balanced(balancers.focal, "gamma"),
    "famo-min_losses": _balanced(balancers.famo, "min_losses"),
    "chebyshev-reference": _balanced(balancers.chebyshev, "reference"),
    "chebyshev-nadir": _balanced(balancers.chebyshev, "nadir"),
    "boundary-direction": _balanced(balancers.boundary_intersection, "direction"),
    "boundary-reference": _balanced(balancers.boundary_intersection, "reference"),
    "cosmos-direction": _balanced(balancers.cosmos, "direction"),
    "pcd-tau": _balanced(balancers.pcd, "tau", primary=0),
    "floor-min_weight": _balanced(_small(balancers.floor), "min_weight"),
    "clip_weights-low": _balanced(_small(balancers.clip_weights), "low"),
    "clip_weights-high": _balanced(_small(balancers.clip_weights), "high"),
    "uncertainty-init_value": _balanced(balancers.uncertainty, "init_value"),
    "imtl_l-init_value": _balanced(balancers.imtl_l, "init_value"),
    "auto_lambda-init_value": _balanced(
        balancers.auto_lambda, "init_value", learning_rate=0.1
    ),
    "prioritization-gamma": lambda tasks, value: dtp_jax.dynamic_task_prioritization(
        tasks, gamma=value, warmup_steps=0, ramp_steps=0
    ),
    "grad_drop-leak": lambda tasks, value: combiners.grad_drop(tasks, leak=value),
}
per_task = pytest.mark.parametrize("make", PER_TASK.values(), ids=PER_TASK.keys())


def step(link: Any, *, named: bool) -> Any:
    """The gradient of a step, whose rows are those of a and b."""

    def supplied(tree: Any) -> Any:
        return tree if named else jnp.stack(jax.tree.leaves(tree))

    gradients = TaskGradients.from_stacked(ROWS, supplied(LOSSES))
    others = TaskGradients.from_stacked(2 * ROWS)
    more = {"kpis": supplied(KPIS), "key": jax.random.key(0)}
    state = link.init(PARAMS)
    return link.update(gradients, state, second_task_gradients=others, **more)[0]


@per_task
@pytest.mark.parametrize("value", [[0.2, 0.7], np.array([0.2, 0.7])])
def test_a_list_with_named_tasks_raises_and_shows_the_dict(
    make: Any, value: Any
) -> None:
    with pytest.raises(ValueError, match=r"by name, {'a': \.\.\., 'b': \.\.\.}; got"):
        jax.eval_shape(lambda: step(make(TASKS, value), named=True))


@per_task
def test_an_unknown_name_raises_and_lists_the_tasks(make: Any) -> None:
    message = r"tasks a, b: .*without an entry: \['a'\]; entries of no task: \['c'\]"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: step(make(TASKS, {"b": 0.2, "c": 0.7}), named=True))


@per_task
def test_a_dict_goes_by_name_as_an_array_by_position(make: Any) -> None:
    named, by_array, other = jax.jit(
        lambda: (
            step(make(TASKS, {"b": 0.2, "a": 0.7}), named=True),
            step(make(2, [0.7, 0.2]), named=False),
            step(make(2, [0.2, 0.7]), named=False),
        )
    )()
    np.testing.assert_allclose(named, by_array, rtol=1e-6)
    assert not np.allclose(named, other, rtol=1e-3)


def test_links_that_know_their_tasks_raise_when_they_are_made() -> None:
    for name in ("prioritization-gamma", "grad_drop-leak"):
        with pytest.raises(ValueError, match="a list of 2, whose order"):
            PER_TASK[name](TASKS, [0.2, 0.7])
        with pytest.raises(ValueError, match="entries of no task"):
            PER_TASK[name](TASKS, {"b": 0.2, "a": 0.7, "c": 0.1})


def test_a_gamma_for_each_task_can_be_mapped_over() -> None:
    gammas = {"a": jnp.array([0.0, 1.0, 2.0]), "b": jnp.array([1.0, 0.5, 0.0])}

    def weights(gamma: Any) -> Any:
        link = balance(balancers.focal(gamma=gamma, alpha=1.0), TASKS)
        gradients = TaskGradients.from_stacked(ROWS, LOSSES)
        return link.update(gradients, link.init(PARAMS), kpis=KPIS)[1].task_weights

    found = jax.jit(jax.vmap(weights))(gammas)
    for task in TASKS:
        expected = [focal_weights(KPIS[task], gamma) for gamma in gammas[task]]
        np.testing.assert_allclose(found[task], expected, rtol=1e-6)


ONE_NUMBER = [
    (balancers.dwa, "temperature"),
    (balancers.soft_adapt, "beta"),
    (balancers.relobralo, "alpha"),
    (balancers.relobralo, "temperature"),
    (balancers.relobralo, "rho"),
    (balancers.focal, "alpha"),
    (balancers.focal, "kpi_min"),
    (balancers.famo, "weight_decay"),
    (balancers.famo, "learning_rate"),
    (balancers.famo, "eps"),
    (balancers.uncertainty, "bound"),
    (balancers.imtl_l, "bound"),
    (balancers.cosmos, "penalty"),
    (balancers.boundary_intersection, "penalty"),
    (balancers.chebyshev, "mu"),
    (balancers.grad_norm, "alpha"),
    (balancers.grad_norm, "min_weight"),
    (functools.partial(balancers.lr_annealing, "a"), "alpha"),
    (balancers.ntk, "decay"),
    (balancers.auto_lambda, "learning_rate"),
    (functools.partial(balancers.auto_lambda, 0.1), "min_weight"),
    (balancers.modo, "gamma"),
    (balancers.modo, "rho"),
    (balancers.sdmgrad, "learning_rate"),
    (balancers.sdmgrad, "reg"),
    (balancers.sdmgrad, "momentum"),
    (functools.partial(balancers.scalarization, jnp.sum), "fill"),
    (functools.partial(balancers.pcd, "a"), "decay"),
    (functools.partial(balancers.pcd, "a"), "eps"),
    (functools.partial(curricula.warm_up, balancers.focal()), "num_steps"),
    (balancers.cagrad, "c"),
    (balancers.fair_grad, "alpha"),
    (balancers.nash_mtl, "max_norm"),
    (balancers.grad_vac, "beta"),
    (balancers.excess_mtl, "step_size"),
    (balancers.equal_norms, "momentum"),
    (clip_each_task, "max_norm"),
    (functools.partial(combiners.moco, TASKS), "beta"),
    (functools.partial(combiners.db_mtl, TASKS), "eps"),
]


@pytest.mark.parametrize(("factory", "name"), ONE_NUMBER)
def test_an_array_where_one_number_holds_for_all_raises(
    factory: Any, name: str
) -> None:
    message = rf"{name} must be one number for all tasks, got one array of shape \[2\]"
    with pytest.raises(ValueError, match=message):
        factory(**{name: np.array([0.2, 0.7])})
    with pytest.raises(ValueError, match=rf"{name} must be one .*, got a list"):
        factory(**{name: [0.2, 0.7]})
    with pytest.raises(ValueError, match=rf"{name} must be one .*, got a dict"):
        factory(**{name: {"a": 0.2, "b": 0.7}})
