from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import TaskGradients, task_gradients
from dtp_jax.balancers.by_norm import _excess_mtl
from tests.toys import balance

excess_mtl: Any = _excess_mtl.excess_mtl
stacked = TaskGradients.from_stacked
SIZE = 6


@jax.jit
def jitted(rows: jax.Array, wanted: jax.Array, step_size: Any) -> Any:
    def scanned(balancer: Any) -> Any:
        def one(state: Any, given: tuple[jax.Array, jax.Array]) -> Any:
            gradients = stacked(given[0])
            weights, state = balancer.update(given[1], state, task_gradients=gradients)
            return state, weights

        return jax.lax.scan(one, balancer.init(wanted[0]), (rows, wanted))

    like = jax.ShapeDtypeStruct((SIZE,), jnp.float32)
    exact = excess_mtl(like, step_size=step_size)
    return scanned(exact), scanned(excess_mtl(step_size=step_size))


def run(rows: Any, wanted: Any = None, step_size: float = 0.5) -> Any:
    """State and weights [S, T] over steps [S, T, P], by the paper's rule and ours."""
    wanted = np.ones(3) if wanted is None else wanted
    wanted = jnp.broadcast_to(jnp.asarray(wanted, jnp.float32), (len(rows), 3))
    return jitted(jnp.asarray(rows, jnp.float32), wanted, step_size)


def gradients_of(seed: int = 0, num_steps: int = 20) -> np.ndarray:
    rng = np.random.default_rng(seed)
    sizes = 10 ** rng.uniform(-0.5, 0.5, (num_steps, 3, 1))
    return rng.normal(size=(num_steps, 3, SIZE)) * sizes


def written_out(rows: np.ndarray, step_size: float) -> np.ndarray:
    """Equations 6, 7 and 9, with the baseline of the authors."""
    squares, weights, baseline, found = 0.0, np.full(3, 1 / 3), None, []
    for gradients in rows:
        squares = squares + gradients**2
        excess = np.sum(gradients**2 / np.sqrt(squares), axis=1)
        if baseline is None:
            baseline = excess
        else:
            weights = weights * np.exp(step_size * excess / baseline)
            weights /= weights.sum()
        found.append(weights)
    return np.stack(found)


ROWS = gradients_of()


def test_the_definition() -> None:
    preferences = np.array([0.5, 1.0, 3.0])
    (state, found), (norms, ours) = run(ROWS, preferences, 0.1)
    expected = preferences * np.maximum(written_out(ROWS, 0.1), 1e-30)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(state.squares[0], np.sum(ROWS**2, axis=0), rtol=1e-5)
    # Ours is the same rule on the lengths.
    lengths = np.linalg.norm(ROWS, axis=2, keepdims=True)
    expected = preferences * np.maximum(written_out(lengths, 0.1), 1e-30)
    np.testing.assert_allclose(ours, expected, rtol=1e-4)
    assert norms.squares.shape == (3,)


def test_both_agree_on_multiples_of_one_gradient() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(20, 3, 1)) * rng.normal(size=(3, SIZE))
    (_, exact), (_, ours) = run(rows)
    np.testing.assert_allclose(exact, ours, rtol=1e-4)


def test_the_first_step_and_equal_tasks_leave_the_weights_uniform() -> None:
    for _, found in run(ROWS):
        np.testing.assert_allclose(found[0], 1 / 3, rtol=1e-6)
        assert np.ptp(found[1]) > 1e-3
    same = np.broadcast_to(ROWS[:, :1], ROWS.shape)
    for _, found in run(same):
        np.testing.assert_allclose(found, 1 / 3, rtol=1e-5)


def test_a_zero_gradient_at_the_start_leaves_its_task_behind() -> None:
    rows = np.broadcast_to(ROWS[0], (2, 3, SIZE)).copy()
    rows[0, 1] = 0
    for _, found in run(rows, step_size=0.5):
        np.testing.assert_allclose(found[0, 1] / found[0, [0, 2]], np.exp(-0.5), 1e-5)
        # Its first gradient is worth as much as that of any other.
        np.testing.assert_allclose(found[0, 0], found[0, 2], rtol=1e-6)


def test_the_slowest_task_gains() -> None:
    # The gradients of one task stay as they are, those of the others vanish.
    rows = np.broadcast_to(ROWS[0], (20, 3, SIZE)).copy()
    rows[:, 1:] *= 0.5 ** np.arange(20)[:, None, None]
    for _, found in run(rows, step_size=1.0):
        assert (np.diff(found[:, 0]) > -1e-6).all()
        assert found[-1, 0] > 0.9


def test_tasks_come_and_go() -> None:
    wanted = np.ones((20, 3))
    wanted[:5, 1] = 0
    wanted[12:, 2] = 0
    garbage = ROWS.copy()
    garbage[:5, 1] = np.nan
    garbage[12:, 2] = 1e25
    until = run(ROWS[:12], wanted[:12])
    both = zip(run(ROWS, wanted), run(garbage, wanted), until, strict=True)
    for (state, found), (same, other), (left, _) in both:
        np.testing.assert_array_equal(found, other)
        jax.tree.map(np.testing.assert_array_equal, state, same)
        np.testing.assert_array_equal(found[wanted == 0], 0)
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
        # A task that left keeps all that it had; one that joins counts as it should.
        assert state.log_weights[2] == left.log_weights[2]
        assert state.baselines[2] == left.baselines[2]
        assert (np.asarray(state.baselines) > 0).all()
    # While the second is absent, the others are a problem of two.
    pair = written_out(np.delete(ROWS[:5], 1, axis=1).repeat([1, 2], axis=1), 0.5)
    ratio = pair[:, 1] / pair[:, 0]
    found = run(ROWS, wanted)[0][1]
    np.testing.assert_allclose(found[:5, 2] / found[:5, 0], ratio, rtol=1e-3)


def test_a_row_that_is_not_finite_is_dropped() -> None:
    broken, wanted = ROWS.copy(), np.ones((20, 3))
    broken[[0, 7], 2, 1] = np.nan, np.inf
    wanted[[0, 7], 2] = 0
    for (state, found), (same, expected) in zip(
        run(broken), run(ROWS, wanted), strict=True
    ):
        np.testing.assert_allclose(found, np.maximum(expected, 1e-30), rtol=1e-6)
        jax.tree.map(np.testing.assert_array_equal, state, same)


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e12])
def test_units_do_not_matter(scale: float) -> None:
    expected = run(ROWS)
    found = run(ROWS * np.array([1.0, scale, 1.0])[:, None])
    for (state, weights), (_, plain) in zip(found, expected, strict=True):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
        np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
        if scale:
            np.testing.assert_allclose(weights, plain, rtol=1e-3, atol=1e-30)
        else:
            # Without a gradient there is no risk, and no weight in the end.
            assert (np.diff(weights[:, 1]) <= 0).all()
            assert weights[-1, 1] < weights[0, 1] < 0.34


def test_no_weight_is_lost_for_ever() -> None:
    rows = np.ones((20, 3, SIZE))
    rows[0, 0] = 1e-10
    rows[10:, 0] = 1e-10
    rows[10:, 1:] = 1e9
    for state, found in run(rows, step_size=10.0):
        # A tiny baseline makes a risk beyond all bounds.
        assert found[1, 0] > 0.99
        assert (found > 0).all()
        assert (np.asarray(state.log_weights) >= np.log(1e-30) - 1e-3).all()
        assert found[-1, 0] < 0.01


def test_only_shared_parameters_count() -> None:
    def losses_fn(params: Any, scale: Any) -> Any:
        trunk, head = params["trunk"], params["head"]
        return {
            "a": scale * jnp.sum(trunk["w"]) + 9 * head,
            "b": jnp.sum(trunk["w"][0]) + trunk["b"] - head,
        }

    params = {
        "trunk": {"w": jnp.ones((2, 2), jnp.bfloat16), "b": jnp.ones(())},
        "head": jnp.ones(()),
    }

    def shared(path: str) -> bool:
        return path.startswith("trunk")

    gradients = task_gradients(losses_fn, shared=shared)
    balancer = excess_mtl(params, shared=shared, step_size=1.0)
    link = balance(balancer, ["a", "b"])

    @jax.jit
    def two_steps(params: Any) -> Any:
        _, state = link.update(gradients(params, 1.0), link.init(params), params)
        return link.update(gradients(params, 2.0), state, params)[1]

    state = two_steps(params)
    assert [x.shape for x in state.balancer.squares] == [(2,), (2, 2, 2)]
    assert all(x.dtype == jnp.float32 for x in state.balancer.squares)
    np.testing.assert_allclose(state.balancer.baselines, [4, 3])
    # Gradients of 1 then 2 in four places, against 1 and 1 in three.
    risks = 4 / np.sqrt(5), 1 / np.sqrt(2)
    ratio = float(state.task_weights["a"] / state.task_weights["b"])
    np.testing.assert_allclose(ratio, np.exp(risks[0] - risks[1]), rtol=1e-5)


def test_missing_or_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="step_size must be a number in"):
        excess_mtl(step_size=-1.0)
    with pytest.raises(ValueError, match="give params, too"):
        excess_mtl(shared=lambda path: True)
    with pytest.raises(ValueError, match="shared selects none"):
        excess_mtl({"a": jnp.ones(2)}, shared=lambda path: False)
    ones = jnp.ones(2)
    for balancer in (excess_mtl(), excess_mtl(jnp.ones(3))):
        with pytest.raises(ValueError, match="excess_mtl needs `task_gradients`"):
            balancer.update(ones, balancer.init(ones))
    balancer = excess_mtl(jnp.ones(3))
    with pytest.raises(ValueError, match=r"\(2, 3\)\], but got \[\(2, 2\)\]"):
        balancer.update(ones, balancer.init(ones), task_gradients=stacked(jnp.eye(2)))
