from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.combiner_catalogue import combiners, fixed
from tests.toys import assert_near

RNG = np.random.default_rng(0)
SIZES = np.array([1.0, 30.0, 0.02])[:, None]
STEPS = {
    "a": RNG.normal(size=(7, 3, 5)) * SIZES,
    "b": RNG.normal(size=(7, 3, 2)) * SIZES[::-1],
}
PARAMS = {"a": jnp.zeros(5), "b": jnp.zeros(2)}


def of_the_authors(
    rows: np.ndarray,
    relax: float,
    beta: float,
    strategy: str = "both",
    p: Any = (1, 1, 1),
) -> np.ndarray:
    """One tensor; the averages start at zero, and their ratio needs no correction."""
    norms, found = np.zeros(3), []
    for step in rows:
        norms = beta * norms + (1 - beta) * np.linalg.norm(step, axis=1)
        ratios = norms[0] / norms
        if strategy == "reduce":
            ratios = np.minimum(ratios, 1)
        if strategy == "enlarge":
            ratios = np.maximum(ratios, 1)
        found.append((np.array(p) * (relax * ratios + 1 - relax)) @ step)
    return np.array(found)


def scanned(link: Any, steps: Any = STEPS, **extra: Any) -> Any:
    def one(state: Any, step: Any) -> Any:
        rows, more = step
        gradient, state = link.update(rows, state, PARAMS, **more)
        return state, gradient

    given = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), steps)
    extra = {name: jnp.asarray(value) for name, value in extra.items()}
    run = jax.jit(lambda xs: jax.lax.scan(one, link.init(PARAMS), xs))
    state, found = run((given, extra))
    return found, state


@pytest.mark.parametrize("strategy", ["both", "reduce", "enlarge"])
@pytest.mark.parametrize(("relax", "beta"), [(0.7, 0.9), (1.0, 0.0), (0.3, 0.5)])
def test_the_sequence_of_the_authors(strategy: str, relax: float, beta: float) -> None:
    link = combiners.meta_balance(3, 0, relax=relax, beta=beta, strategy=strategy)
    found, _ = scanned(link)
    for name, rows in STEPS.items():
        expected = of_the_authors(rows, relax, beta, strategy)
        assert_near(found[name], expected, rtol=1e-5)


def test_fully_relaxed_gradients_have_the_primary_size() -> None:
    link = combiners.meta_balance(["x", "y", "z"], "y", relax=1.0, beta=0.0)
    one = {name: rows[0] for name, rows in STEPS.items()}
    for task in range(3):
        rows = jax.tree.map(lambda x, task=task: jnp.asarray(x, jnp.float32), one)
        mask = {"x": task == 0, "y": True, "z": task == 2}
        both, _ = link.update(rows, link.init(PARAMS), PARAMS, task_mask=mask)
        for name, leaf in one.items():
            rest = np.asarray(both[name], np.float64) - leaf[1]
            size = 0 if task == 1 else np.linalg.norm(leaf[1])
            tolerance = 1e-4 * float(np.linalg.norm(leaf[1]))
            np.testing.assert_allclose(np.linalg.norm(rest), size, atol=tolerance)


def test_preferences_multiply_and_no_relaxation_is_the_sum() -> None:
    wanted = np.array([2.0, 0.5, 1.0], np.float32)
    found, _ = scanned(combiners.meta_balance(3, 0, preferences=fixed(wanted)))
    plain, _ = scanned(combiners.meta_balance(3, 0, relax=0.0))
    for name, rows in STEPS.items():
        assert_near(found[name], of_the_authors(rows, 0.7, 0.9, p=wanted), rtol=1e-5)
        assert_near(plain[name], rows.sum(axis=1), rtol=1e-5)


def test_without_the_primary_task_the_others_stay_as_they_are() -> None:
    mask = np.tile([False, True, True], (7, 1))
    found, state = scanned(combiners.meta_balance(3, 0), task_mask=mask)
    for name, rows in STEPS.items():
        assert_near(found[name], rows[:, 1:].sum(axis=1), rtol=1e-5)
    assert state.memory.corrections[0] == 0


def test_zero_and_bad_gradients() -> None:
    steps = {name: rows.copy() for name, rows in STEPS.items()}
    steps["a"][:, 1] = 0.0
    steps["b"][2, 2] = np.nan
    steps["b"][:, 0] = 0.0
    found, _ = scanned(combiners.meta_balance(3, 0), steps)
    assert np.isfinite(found["a"]).all()
    assert np.isfinite(found["b"]).all()
    assert_near(found["b"][0], steps["b"][0].sum(axis=0), rtol=1e-5)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="primary must be one of a, b"):
        combiners.meta_balance(["a", "b"], "c")
    with pytest.raises(ValueError, match="strategy must be one of"):
        combiners.meta_balance(2, 0, strategy="none")
    with pytest.raises(ValueError, match="relax must be"):
        combiners.meta_balance(2, 0, relax=1.5)
    with pytest.raises(ValueError, match="beta must be"):
        combiners.meta_balance(2, 0, beta=1.0)
