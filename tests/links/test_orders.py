"""Wrong orders and wrapping: the user sees what to do, whatever optax made of it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dtp_jax
from dtp_jax import TaskGradients, task_gradients
from tests.toys import balance, balancers

# The types of optax do not admit what these tests do on purpose.
opt: Any = optax
NAMES = ("a", "b", "c")
PARAMS = {"trunk": jnp.array([[0.3, -0.2], [0.1, 0.4]]), "head": jnp.array([1.0, 0.5])}
KPIS = dict.fromkeys(NAMES, 0.3)
SCHEDULE = optax.linear_schedule(0.5, 0.1, 5)
EVERYWHERE = {"trunk": True, "head": True}


def losses_fn(params: Any) -> dict[str, jax.Array]:
    hidden = jnp.tanh(params["trunk"] @ params["head"])
    return {"a": hidden[0] ** 2, "b": hidden[1] ** 2, "c": jnp.sum(params["head"] ** 2)}


def link() -> Any:
    return balance(balancers.focal(), NAMES)


def stepped(tx: Any, **extra_args: Any) -> Any:
    """One step, of which only the shapes are computed."""

    def step() -> Any:
        gradients = task_gradients(losses_fn)(PARAMS)
        updates, _ = tx.update(gradients, tx.init(PARAMS), PARAMS, **extra_args)
        return optax.apply_updates(PARAMS, updates)

    return jax.eval_shape(step)


def always(step: Any) -> bool:
    return True


def like(value: Any) -> Callable[[Any], Any]:
    return lambda params: jax.tree.map(lambda _: value, params)


TRANSFORMATIONS = {
    "clip_by_global_norm": opt.clip_by_global_norm(1.0),
    "clip": opt.clip(1.0),
    "adaptive_grad_clip": opt.adaptive_grad_clip(0.1),
    "scale_by_adam": opt.adam(0.1),
    "scale_by_factored_rms": opt.adafactor(0.1),
    "add_decayed_weights": opt.add_decayed_weights(0.1),
    "trace": opt.sgd(0.1, momentum=0.9),
    "scale": opt.sgd(0.1),
    "ema": opt.ema(0.9),
    "add_noise": opt.add_noise(0.1, 0.5, key=0),
    # These went unnoticed, or made NaN at run time.
    "scale_by_schedule": opt.scale_by_learning_rate(SCHEDULE),
    "set_to_zero": opt.set_to_zero(),
    "scale_by_sign": opt.scale_by_sign(),
    "zero_nans": opt.zero_nans(),
    "centralize": opt.centralize(),
    # These wrap another.
    "masked": opt.masked(opt.clip(1.0), like(True)),
    "partition": opt.partition({"x": opt.adam(0.1)}, like("x")),
    "apply_if_finite": opt.apply_if_finite(opt.identity(), 2),
    "apply_every": opt.apply_every(2),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_a_transformation_before_the_link_or_without_one(name: str) -> None:
    transformation = TRANSFORMATIONS[name]
    message = rf"optax.{name} took a TaskGradients for a gradient.*chain\(dtp_jax.bal"
    for tx in (opt.chain(transformation, link()), opt.chain(transformation)):
        with pytest.raises(ValueError, match=message):
            stepped(tx, kpis=KPIS)


def test_before_the_link_in_other_words() -> None:
    clip = opt.clip_by_global_norm
    message = "optax.clip_by_global_norm took a TaskGradients"
    for first in (
        opt.inject_hyperparams(clip)(max_norm=1.0),
        opt.chain(opt.identity(), opt.chain(clip(1.0))),
        opt.named_chain(("clip", clip(1.0))),
    ):
        with pytest.raises(ValueError, match=message):
            stepped(opt.chain(first, link(), opt.sgd(0.1)), kpis=KPIS)


@pytest.mark.parametrize(
    ("name", "around"),
    [
        ("apply_if_finite", lambda tx: opt.apply_if_finite(tx, 2)),
        (
            "conditionally_mask",
            lambda tx: opt.conditionally_mask(tx, lambda step: True),
        ),
        ("flatten", opt.flatten),
        ("masked", lambda tx: opt.masked(tx, like(True))),
        ("partition", lambda tx: opt.partition({"x": tx}, like("x"))),
        (
            "MultiSteps",
            lambda tx: opt.MultiSteps(tx, 2, should_skip_update_fn=opt.skip_not_finite),
        ),
    ],
)
def test_a_wrapper_around_the_link(name: str, around: Any) -> None:
    tx = around(opt.chain(link(), opt.sgd(0.1)))
    with pytest.raises(ValueError, match=f"optax.{name} took"):
        stepped(tx, kpis=KPIS)


def test_errors_of_jax_about_two_structures_say_what_to_do() -> None:
    chained = opt.chain(link(), opt.sgd(0.1))
    message = r"TaskGradients'> \(the gradients of several tasks: put a link that makes"
    if jax.__version_info__ < (0, 10, 1):
        message = "TaskGradients"  # Its messages name a type, and no more.
    for tx in (
        opt.MultiSteps(chained, 2),
        opt.conditionally_transform(chained, always),
        opt.chain(opt.keep_params_nonnegative(), link()),
        opt.chain(opt.masked(opt.clip(1.0), EVERYWHERE), link()),
        opt.partition({True: chained}, EVERYWHERE),
        opt.chain(opt.identity()),  # no link: the updates do not fit the parameters
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            stepped(tx, kpis=KPIS)


def test_two_links_in_a_chain() -> None:
    for second in (balance(balancers.mgda(), NAMES), dtp_jax.combiners.moco(NAMES)):
        with pytest.raises(ValueError, match=r"already summed.*a chain takes one"):
            stepped(opt.chain(link(), second), kpis=KPIS)


def test_gradients_that_passed_through_jit_are_known_too() -> None:
    gradients = jax.jit(task_gradients(losses_fn))(PARAMS)
    tx = opt.chain(opt.clip_by_global_norm(1.0), link())
    update = jax.jit(lambda g: tx.update(g, tx.init(PARAMS), PARAMS, kpis=KPIS))
    with pytest.raises(ValueError, match=r"optax.clip_by_global_norm took"):
        update(gradients)
    stacked = TaskGradients.from_stacked(gradients.stack())
    with pytest.raises(ValueError, match=r"optax.clip_by_global_norm took"):
        update(stacked)


def test_functions_of_optax_on_task_gradients() -> None:
    gradients = task_gradients(losses_fn)(PARAMS)
    with pytest.raises(ValueError, match=r"optax.tree.norm took.*`combine\(weights\)"):
        opt.tree.norm(gradients)
    with pytest.raises(ValueError, match=r"optax.tree.scale took a TaskGradients"):
        opt.tree.scale(2.0, gradients)
    mean = optax.microbatching.AccumulationType.MEAN

    def of_batch(batch: jax.Array) -> TaskGradients:
        return task_gradients(lambda params: {"a": jnp.sum(params * batch)})(
            jnp.ones(2)
        )

    accumulated = opt.microbatching.microbatch(of_batch, 0, 1, mean)
    with pytest.raises(ValueError, match=r"optax.microbatch took .*`stack\(\)`"):
        accumulated(jnp.ones((2, 2)))


def test_what_optax_does_not_touch_still_works() -> None:
    injected = opt.inject_hyperparams(
        lambda learning_rate: opt.chain(link(), opt.sgd(learning_rate))
    )
    noted = opt.snapshot("first", lambda updates: jnp.ones(()))
    for tx in (
        opt.chain(opt.identity(), opt.chain(link()), opt.clip(1.0)),
        opt.named_chain(("link", link()), ("adam", opt.adam(0.1))),
        opt.chain(noted, link()),
        opt.chain(dtp_jax.clip_each_task(1.0), link()),
        injected(learning_rate=SCHEDULE),
        opt.with_extra_args_support(link()),
    ):
        stepped(tx, kpis=KPIS)

    tx = opt.chain(opt.conditionally_transform(opt.identity(), always), link())

    # Operands and results of transformations of JAX are flattened as well.
    def branch(gradients: TaskGradients) -> TaskGradients:
        return gradients

    def step(gradients: TaskGradients, _: None) -> tuple[TaskGradients, None]:
        return gradients, None

    @jax.jit
    def update(gradients: TaskGradients) -> Any:
        gradients = jax.lax.cond(True, branch, branch, gradients)
        gradients, _ = jax.lax.scan(step, gradients, length=2)
        gradients = jax.checkpoint(branch)(gradients)
        return tx.update(gradients, tx.init(PARAMS), PARAMS, kpis=KPIS)[0]

    gradients = jax.jit(task_gradients(losses_fn))(PARAMS)
    expected = jax.jit(gradients.combine)(jnp.full(3, -(0.7**2) * np.log(0.3)))
    np.testing.assert_allclose(update(gradients)["head"], expected["head"], rtol=1e-5)


def test_arithmetic_of_other_authors_before_the_link() -> None:
    def mapped(function: Callable[[Any], Any]) -> Any:
        tx = opt.stateless(lambda updates, _: jax.tree.map(function, updates))
        return opt.chain(tx, link())

    with pytest.raises(ValueError, match="changed by a transformation that took them"):
        stepped(mapped(lambda leaf: 0.5 * leaf), kpis=KPIS)

    # One that keeps the types only shows when it runs.
    def scaled(leaf: Any) -> Any:
        return jnp.asarray(0.5, leaf.dtype) * leaf

    @jax.jit
    def step() -> Any:
        tx, gradients = mapped(scaled), task_gradients(losses_fn)(PARAMS)
        return tx.update(gradients, tx.init(PARAMS), PARAMS, kpis=KPIS)

    updates, state = step()
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(updates))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_taken_for_a_pair_or_a_dict() -> None:
    gradients = task_gradients(losses_fn)(PARAMS)
    with pytest.raises(TypeError, match=r"no entries.*`losses`.*`combine\(weights\)`"):
        _losses, _gradients = gradients
    with pytest.raises(TypeError, match="has_aux=True"):
        gradients["trunk"]
