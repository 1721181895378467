"""Nonsense for every argument: a clear error, or a finite answer of the right shape."""

import contextlib
import inspect
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dtp_jax
from dtp_jax import balancers, combiners, curricula, gumbel, information, losses
from tests import toys

NAMES = ("a", "b", "c")
STEP = jax.tree.map(lambda x: x[0], toys.random_steps(3, num_steps=1, seed=0))
PARAMS = jnp.zeros(STEP.jacobians.shape[-1])
BY_NAME = dict.fromkeys(NAMES, 1.0)
# For arguments without a default.
REQUIRED: dict[str, Any] = {
    "balancer": balancers.mgda(),
    "direction": BY_NAME,
    "fn": lambda losses: losses["a"] + losses["b"] ** 2,
    "high": 2.0,
    "k": 2,
    "learning_rate": 0.1,
    "low": 0.1,
    "min_weight": 0.1,
    "nadir": BY_NAME,
    "num_byzantine": 0,
    "num_steps": 2,
    "num_trimmed": 1,
    "primary": "a",
    "references": BY_NAME,
    "schedule": {0: ["a", "b", "c"]},
    "shares": BY_NAME,
    "tasks": NAMES,
    "tolerance": 1.0,
    "weights": BY_NAME,
}
NONSENSE: dict[str, Any] = {
    "nan": float("nan"),
    "inf": float("inf"),
    "text": "0.3",
    "complex": 1j,
    "complex array": np.array(1j),
    "list": [1.0],
    "vector": np.ones(3),
    "other names": {"a": 1.0},
    "object": object(),
    "NumPy nan": np.float32("nan"),
    "NumPy complex": np.complex64(1j),
}
# Infinity is no bound, and makes weights even.
FINE = {
    ("clip_weights", "high", "inf"),
    ("dwa", "temperature", "inf"),
    ("imtl_l", "bound", "inf"),
    ("relobralo", "temperature", "inf"),
    ("scalarization", "fill", "inf"),
    ("uncertainty", "bound", "inf"),
}
# Arguments that are no numbers and have tests of their own.
NO_NUMBERS = {"tasks", "balancer", "fn", "schedule", "shared", "mask"}


def factories() -> dict[str, Callable[..., Any]]:
    """All that make a balancer or a link."""
    modules = (balancers, combiners, curricula)
    found = {n: getattr(m, n) for m in modules for n in m.__all__}
    # It takes losses in the order of time, and no names.
    found.pop("causal")
    found["dynamic_task_prioritization"] = dtp_jax.dynamic_task_prioritization
    returns = ("Balancer", "Link", "GradientTransformation")
    returns += ("GradientTransformationExtraArgs",)
    return {
        name: each
        for name, each in found.items()
        if inspect.isfunction(each)
        and str(inspect.signature(each).return_annotation)
        .rsplit(".", 1)[-1]
        .startswith(returns)
    }


FACTORIES = factories()


def takes_numbers(argument: inspect.Parameter) -> bool:
    """Whether nonsense for it is nonsense for a number."""
    if argument.name in NO_NUMBERS or argument.kind is argument.VAR_KEYWORD:
        return False
    return not isinstance(argument.default, (bool, tuple))


def of_words(argument: inspect.Parameter) -> bool:
    """Whether it is a choice of strings."""
    return isinstance(argument.default, str) or argument.name.startswith("normaliz")


CASES = [
    (name, argument.name, kind)
    for name, factory in FACTORIES.items()
    for argument in inspect.signature(factory).parameters.values()
    if takes_numbers(argument)
    for kind in NONSENSE
    # An array is no option in words, which Python says less well.
    if not (kind == "vector" and of_words(argument))
    if (name, argument.name, kind) not in FINE
]


def made(name: str, **arguments: Any) -> Any:
    """A link with these arguments, and with those that it must have."""
    factory = FACTORIES[name]
    required = {
        each.name: REQUIRED[each.name]
        for each in inspect.signature(factory).parameters.values()
        if each.default is inspect.Parameter.empty
        and each.kind is not inspect.Parameter.VAR_KEYWORD
    }
    found: Any = factory(**required | arguments)
    is_link = name in combiners.__all__ or name == "dynamic_task_prioritization"
    return found if is_link else toys.balance(found, NAMES)


def trace(link: Any) -> Any:
    """A step as far as its shapes."""
    return jax.eval_shape(lambda: toys.update(link, link.init(PARAMS), STEP, NAMES)[0])


def test_all_factories_are_here() -> None:
    assert len(FACTORIES) > 50
    assert {"mgda", "moco", "stages", "dynamic_task_prioritization"} <= set(FACTORIES)


@pytest.mark.parametrize("name", FACTORIES)
def test_nonsense_for_a_number_is_an_error_that_names_it(name: str) -> None:
    silent = []
    for _, argument, kind in (case for case in CASES if case[0] == name):
        try:
            trace(made(name, **{argument: NONSENSE[kind]}))
        except (ValueError, TypeError) as error:
            if not re.search(rf"\b{argument}\b", str(error)):
                silent.append((argument, kind, str(error)[:80]))
        else:
            silent.append((argument, kind, "nothing"))
    assert not silent


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("every_k", {"k": np.float64(2.5)}, "k must be an integer"),
        ("every_k", {"k": np.int64(0)}, "k must be an integer"),
        ("dwa", {"lag": np.int64(2)}, "lag must be 0 or 1"),
        ("cagrad", {"rescale": np.float64(5)}, "rescale must be 0, 1 or 2"),
        ("cagrad", {"c": 10**400}, "c must be a number"),
        ("clip_weights", {"low": float("inf")}, r"low must be .* \[-inf, inf\)"),
        ("clip_weights", {"low": np.float32(3), "high": 2.0}, r"in \[3.0, inf\]"),
        ("auto_lambda", {"primary": {"a": 1}}, "primary must be a list"),
        ("uncertainty", {"optimizer": optax.adam}, "call it, with a learning rate"),
        (
            "uncertainty",
            {"optimizer": optax.MultiSteps(optax.adam(0.1), 2)},
            r"gradient_transformation\(\) returns one",
        ),
        ("excess_mtl", {"params": {"w": 1.0}}, "params must hold the arrays"),
    ],
)
def test_errors_say_what_was_wanted(name: str, arguments: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        trace(made(name, **arguments))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("every_k", {"k": np.int64(2)}),
        ("auto_lambda", {"primary": {"a"}}),
        ("auto_lambda", {"primary": np.array([0, 2])}),
        ("pcd", {"primary": jnp.array(1)}),
        ("uncertainty", {"bound": float("inf")}),
        ("dwa", {"temperature": np.inf}),
        ("clip_weights", {"low": {"a": -np.inf, "b": 0.1, "c": 0.2}}),
    ],
)
def test_what_means_something_is_taken(name: str, arguments: Any) -> None:
    link = made(name, **arguments)
    assert np.isfinite(toys.update(link, link.init(PARAMS), STEP, NAMES)[0]).all()


TEXTS = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), max_size=6
)
NUMBERS = st.sampled_from(
    [0.0, 1e-30, 1e-8, 0.5, 1.0, 1e3, 1e8, 1e30, float("nan"), float("inf"), -1.0]
)


@st.composite
def task_sets(draw: Any) -> list[str] | int:
    """Names of tasks, odd ones among them, or how many there are."""
    names = draw(st.lists(TEXTS, min_size=1, max_size=4, unique=True))
    return names if draw(st.booleans()) else len(names)


SLOW = ("dynamic_task_prioritization", "famo", "upgrad", "equal_norms")


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_names_types_and_numbers_give_finite_updates(name: str, data: Any) -> None:
    tasks = data.draw(task_sets())
    dtype = data.draw(st.sampled_from(["float32", "bfloat16", "float16"]))
    count = tasks if isinstance(tasks, int) else len(tasks)
    params = data.draw(
        st.sampled_from(
            [
                jnp.ones((), dtype),
                jnp.ones((2, 1), dtype),
                {"w": jnp.ones(3, dtype), "empty": jnp.ones((0, 2), dtype)},
                [jnp.ones(2, dtype), (jnp.ones((1, 1, 2), "float32"),)],
            ]
        )
    )
    values = [data.draw(NUMBERS) for _ in range(2 * count)]
    if name == "dynamic_task_prioritization":
        link: Any = dtp_jax.dynamic_task_prioritization(tasks, warmup_steps=1)
    else:
        link = dtp_jax.balance(getattr(balancers, name)(), tasks)

    def like_tasks(of_task: Any) -> Any:
        found = [of_task(index) for index in range(count)]
        if isinstance(tasks, int):
            return jnp.stack(found)
        return dict(zip(tasks, found, strict=True))

    def losses_fn(params: Any) -> Any:
        total = sum(
            jnp.sum(jnp.sin(x).astype("float32")) for x in jax.tree.leaves(params)
        )
        return like_tasks(lambda i: values[i] * (total - i))

    tx = optax.chain(link, optax.sgd(1e-3))

    def step(params: Any, state: Any) -> Any:
        gradients = dtp_jax.task_gradients(losses_fn)(params)
        kpis = like_tasks(lambda i: jnp.clip(jnp.asarray(values[count + i]), 0, 1))
        return tx.update(gradients, state, params, kpis=kpis)

    state = tx.init(params)
    for _ in range(2):
        updates, state = jax.jit(step)(params, state)
        pairs = zip(*map(jax.tree.leaves, (updates, params)), strict=True)
        assert all((u.shape, u.dtype) == (p.shape, p.dtype) for u, p in pairs)
        weights = optax.tree.get(state, "task_weights")
        assert all(np.isfinite(w).all() for w in jax.tree.leaves(weights))


# Pure functions of numbers, and what each of their arguments may be.
UNIT, POSITIVE, REAL = (0.01, 0.99), (0.05, 20.0), (-20.0, 20.0)
FUNCTIONS: dict[str, tuple[Callable[..., Any], list[tuple[float, float]]]] = {
    **{
        f"gumbel.{name}": (getattr(gumbel, name), [REAL, REAL, POSITIVE])
        for name in ("cdf", "logcdf", "logpdf", "logsf", "pdf", "sf")
    },
    "gumbel.ppf": (gumbel.ppf, [UNIT, REAL, POSITIVE]),
    "gumbel.isf": (gumbel.isf, [UNIT, REAL, POSITIVE]),
    "gumbel.entropy": (gumbel.entropy, [REAL, POSITIVE]),
    "gumbel.kl_divergence": (gumbel.kl_divergence, [(-2.0, 2.0), (0.5, 2.0)] * 2),
    "gaussian_kl": (information.gaussian_kl_divergence, [(-5.0, 5.0)] * 4),
    "gaussian_entropy": (information.gaussian_entropy, [REAL]),
    "self_information": (information.self_information, [UNIT]),
    "general_robust_loss": (losses.general_robust_loss, [REAL, REAL, POSITIVE]),
    "uncertainty_regression": (losses.uncertainty_regression, [POSITIVE, REAL]),
    "uncertainty_laplace": (losses.uncertainty_laplace, [POSITIVE, REAL]),
}
SHAPES = ((), (1,), (3,), (2, 1), (2, 3), (3, 2), (0, 3))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_functions_of_numbers_are_finite_and_of_the_shape_of_their_arguments(
    data: Any,
) -> None:
    name = data.draw(st.sampled_from(sorted(FUNCTIONS)))
    function, ranges = FUNCTIONS[name]
    # In float16 the largest number is 65504, which some of these exceed.
    dtype = data.draw(st.sampled_from(["float32", "bfloat16"]))
    shapes = [data.draw(st.sampled_from(SHAPES)) for _ in ranges]
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    arguments = [
        jnp.asarray(generator.uniform(low, high, shape), dtype)
        for (low, high), shape in zip(ranges, shapes, strict=True)
    ]
    try:
        expected = np.broadcast_shapes(*shapes)
    except ValueError:
        with pytest.raises((ValueError, TypeError), match="shape"):
            function(*arguments)
        return
    # Losses take no new axes, which distributions do, as those of SciPy.
    axes = {len(shape) for shape in shapes if shape}
    with contextlib.ExitStack() as stack:
        if len(axes) > 1 and name.startswith(("uncertainty", "general")):
            stack.enter_context(pytest.raises(ValueError, match="shape"))
        found = function(*arguments)
        assert found.shape == expected
        assert jnp.issubdtype(found.dtype, jnp.floating)
        assert jnp.isfinite(found).all()
