"""No method adds arrays of different ranks: `jax.numpy_rank_promotion` forbids it."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from dtp_jax import TaskGradients, balance, balancers, solvers, task_gradients

LOSSES = {"a": jnp.ones(()), "b": jnp.array([2.0, 3.0]), "c": jnp.ones(())}
METHODS: dict[str, Any] = {
    "aligned_mtl": balancers.aligned_mtl(),
    "aligned_mtl-median": balancers.aligned_mtl(scale="median"),
    "cagrad": balancers.cagrad(),
    "config": balancers.config(),
    "dual_projection": balancers.dual_projection(),
    "excess_mtl": balancers.excess_mtl(),
    "excess_mtl-params": balancers.excess_mtl(
        {"x": jnp.ones((3, 2)), "y": jnp.ones(4)}
    ),
    "fair_grad": balancers.fair_grad(alpha=2.0),
    "grad_vac": balancers.grad_vac(),
    "imtl_g": balancers.imtl_g(),
    "krum": balancers.krum(num_byzantine=1),
    "mgda": balancers.mgda(),
    "mgda-loss+": balancers.mgda(normalization="loss+"),
    "nash_mtl": balancers.nash_mtl(),
    "pcd": balancers.pcd("a", tau=0.1),
    "pcgrad": balancers.pcgrad(),
    "upgrad": balancers.upgrad(),
}


def losses_of(params: Any) -> Any:
    total = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return jax.tree.map(lambda loss: loss * total, LOSSES)


# Tracing raises, so nothing needs to be compiled.
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_one_step(name: str, stacked: bool) -> None:
    params = {"x": jnp.ones((3, 2)), "y": jnp.ones(4)}
    link: Any = balance(METHODS[name], LOSSES)

    def step(params: Any) -> Any:
        state = link.init(params)
        gradients: Any = task_gradients(losses_of)(params)
        if stacked:
            gradients = TaskGradients.from_stacked(gradients.stack(), gradients.losses)
        return link.update(gradients, state, params, key=jax.random.key(0))

    with jax.numpy_rank_promotion("raise"):
        jax.eval_shape(step, params)


def many(gramian: jax.Array) -> Any:
    return solvers.project_onto_dual_cone(gramian, gramian)


@pytest.mark.parametrize(
    "solver",
    [
        solvers.cagrad_problem,
        solvers.equal_projections,
        solvers.fair_equation,
        solvers.min_norm_point,
        many,
    ],
)
@pytest.mark.parametrize("num_tasks", [1, 2, 5, 20])
def test_solvers(solver: Any, num_tasks: int) -> None:
    with jax.numpy_rank_promotion("raise"):
        jax.eval_shape(solver, jnp.eye(num_tasks))


def test_krum_of_many() -> None:
    with jax.numpy_rank_promotion("raise"):
        rule = balancers.krum_weights
        jax.eval_shape(lambda gramian: rule(gramian, num_byzantine=1), jnp.eye(20))
