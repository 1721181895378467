"""A link is no balancer, and says so where one is expected."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
import pytest

import dtp_jax
from dtp_jax import balancers, combiners
from dtp_jax._core.balancer import checked_balancer
from tests.toys import balance, curricula, dynamic_task_prioritization

NAMES = ["a", "b"]
LINKS: dict[str, Callable[[], Any]] = {
    "balance": lambda: balance(balancers.focal(), NAMES),
    "dynamic_task_prioritization": lambda: dynamic_task_prioritization(NAMES),
    "grad_drop": lambda: combiners.grad_drop(NAMES),
    "moco": lambda: combiners.moco(NAMES),
    "db_mtl": lambda: combiners.db_mtl(NAMES),
    "trimmed_mean": lambda: combiners.trimmed_mean(NAMES, num_trimmed=0),
    "clip_each_task": lambda: dtp_jax.clip_each_task(1.0),
}
TAKERS: dict[str, Callable[[Any], Any]] = {
    "balance": lambda link: balance(link, NAMES),
    "balance, preferences": lambda link: balance(
        balancers.mgda(), NAMES, preferences=link
    ),
    "dynamic_task_prioritization": lambda link: dynamic_task_prioritization(
        NAMES, balancer=link
    ),
    "combiner": lambda link: combiners.grad_drop(NAMES, preferences=link),
    "stages": lambda link: curricula.stages({0: NAMES}, link),
    "warm_up": lambda link: curricula.warm_up(link, 3),
    "every_k": lambda link: curricula.every_k(link, 3),
    "average_losses": lambda link: balancers.average_losses(link, 2),
}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("link", LINKS)
def test_a_link_in_place_of_a_balancer(link: str, taker: str) -> None:
    name = (
        "preferences" if taker in ("balance, preferences", "combiner") else "balancer"
    )
    message = rf"{name} is already a link.*optax.chain\(link.*What {name} takes"
    with pytest.raises(TypeError, match=message):
        TAKERS[taker](LINKS[link]())


@pytest.mark.parametrize("taker", list(TAKERS)[:4])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda link: optax.chain(link, optax.ema(0.9)),
        lambda link: optax.chain(optax.identity(), optax.chain(link)),
        lambda link: optax.named_chain(("link", link)),
        lambda link: optax.masked(link, {"a": True, "b": False}),
        lambda link: optax.apply_if_finite(link, 3),
        lambda link: optax.inject_hyperparams(lambda decay: link)(decay=0.9),
        lambda link: curricula.warm_up(optax.chain(link), 3),
    ],
)
def test_a_link_that_something_holds(wrap: Any, taker: str) -> None:
    with pytest.raises(TypeError, match="is already a link, or holds one"):
        TAKERS[taker](wrap(LINKS["dynamic_task_prioritization"]()))


def test_a_clip_of_gradients_among_balancers() -> None:
    # It has no state by which the link could know it before it runs.
    chained = optax.chain(dtp_jax.clip_each_task(1.0), balancers.focal())
    link = balance(chained, NAMES)
    gradients = dtp_jax.TaskGradients.from_stacked(jnp.eye(2))
    with pytest.raises(ValueError, match=r"before the link, optax.chain\(clip_each"):
        link.update(gradients, link.init(None), kpis={"a": 0.5, "b": 0.5})


@pytest.mark.parametrize("name", LINKS)
def test_a_link_is_a_transformation_like_others(name: str) -> None:
    link = LINKS[name]()
    init, update = link
    assert isinstance(link, optax.GradientTransformationExtraArgs)
    assert (init, update) == (link.init, link.update)
    assert optax.with_extra_args_support(link) is link
    assert link._replace(init=init) == link


def test_balancers_and_wrapped_balancers_are_none() -> None:
    for balancer in (
        optax.identity(),
        optax.chain(balancers.focal(), optax.ema(0.9)),
        optax.inject_hyperparams(balancers.focal)(gamma=1.0),
        curricula.every_k(balancers.mgda(), 3),
    ):
        balance(balancer, NAMES, preferences=balancer)


def test_a_wrapper_that_has_to_be_asked_for_its_transformation() -> None:
    steps = optax.MultiSteps(optax.identity(), 2)
    with pytest.raises(TypeError, match=r"got MultiSteps. Its method gradient_transf"):
        checked_balancer("balancer", steps)
