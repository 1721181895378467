import itertools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from dtp_jax import combine_losses
from dtp_jax.curricula import sample_tasks
from tests import toys

WEIGHTS = jnp.array([0.6, 0.2, 0.1, 0.06, 0.04]) * 7
GRADIENTS = np.array([1.0, -2.0, 3.0, 0.5, 10.0])
METHODS = ["gumbel", "systematic"]
NUM_DRAWS = 100_000


def draws(weights: jax.Array, k: int, method: Any) -> tuple[np.ndarray, np.ndarray]:
    keys = jax.random.split(jax.random.key(1), NUM_DRAWS)
    drawn = jax.jit(jax.vmap(lambda key: sample_tasks(key, weights, k, method=method)))
    found = drawn(keys)
    return np.asarray(found.indices), np.asarray(found.factors)


def inclusion_by_enumeration(k: int) -> np.ndarray:
    """Probabilities to be among k draws without replacement."""
    shares = np.asarray(WEIGHTS, np.float64) / float(WEIGHTS.sum())
    found = np.zeros(len(shares))
    for order in itertools.permutations(range(len(shares)), k):
        probability, rest = 1.0, 1.0
        for task in order:
            probability *= shares[task] / rest
            rest -= shares[task]
        found[list(order)] += probability
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_the_weighted_sum_is_unbiased(method: str, k: int) -> None:
    indices, factors = draws(WEIGHTS, k, method)
    assert all(len(set(row)) == k for row in indices[:2000].tolist())
    assert (factors >= 1 - 1e-6).all()
    terms = factors * np.asarray(WEIGHTS)[indices] * GRADIENTS[indices]
    sums = terms.sum(axis=1)
    expected = float(np.asarray(WEIGHTS) @ GRADIENTS)
    error = sums.std() / np.sqrt(NUM_DRAWS)
    assert abs(sums.mean() - expected) <= 4 * error + 1e-4
    if k == len(WEIGHTS):
        np.testing.assert_allclose(sums, expected, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_gumbel_draws_without_replacement(k: int) -> None:
    indices, _ = draws(WEIGHTS, k, "gumbel")
    frequencies = np.bincount(indices.ravel(), minlength=5) / NUM_DRAWS
    expected = inclusion_by_enumeration(k)
    errors = np.sqrt(expected * (1 - expected) / NUM_DRAWS)
    assert (np.abs(frequencies - expected) <= 4 * errors).all()


def test_the_factor_is_the_inverse_probability_given_the_threshold() -> None:
    # For k = 1 the threshold seen by task t is the largest perturbed log-weight of the
    # others, itself Gumbel at the logarithm of their sum: the expectation of the factor
    # where t is drawn is one, by quadrature.
    w = np.asarray(WEIGHTS, np.float64)
    for task in range(len(w)):
        others = np.log(w.sum() - w[task])

        def integrand(kappa: float, task: int = task, others: float = others) -> float:
            drawn = stats.gumbel_r.sf(kappa, np.log(w[task]))
            factor = 1 / -np.expm1(-np.exp(np.log(w[task]) - kappa))
            return stats.gumbel_r.pdf(kappa, others) * drawn * factor

        mean, _ = integrate.quad(integrand, -10, 30)
        assert mean == pytest.approx(1, abs=1e-6)

    # The same factor comes out of the function, for the threshold of a known draw.
    key = jax.random.key(3)
    drawn = sample_tasks(key, WEIGHTS, 1)
    noise = jax.random.gumbel(key, WEIGHTS.shape)
    perturbed = np.sort(np.asarray(jnp.log(WEIGHTS) + noise))[::-1]
    log_weight = np.log(float(WEIGHTS[drawn.indices[0]]))
    expected = 1 / -np.expm1(-np.exp(log_weight - perturbed[1]))
    np.testing.assert_allclose(drawn.factors[0], expected, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_systematic_draws_have_exact_inclusion_probabilities(k: int) -> None:
    indices, factors = draws(WEIGHTS, k, "systematic")
    # min(1, c w) that sum to k, by bisection on c.
    w, low, high = np.asarray(WEIGHTS, np.float64), 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if np.minimum(1, middle * w).sum() < k else (low, middle)
        )
    expected = np.minimum(1, low * w)
    frequencies = np.bincount(indices.ravel(), minlength=5) / NUM_DRAWS
    errors = np.sqrt(expected * (1 - expected) / NUM_DRAWS)
    assert (np.abs(frequencies - expected) <= 4 * errors + 1e-9).all()
    np.testing.assert_allclose(factors, 1 / expected[indices], rtol=1e-4)


@pytest.mark.parametrize("k", [2, 3])
def test_systematic_draws_vary_less(k: int) -> None:
    def variance(method: str) -> float:
        indices, factors = draws(WEIGHTS, k, method)
        terms = factors * np.asarray(WEIGHTS)[indices] * GRADIENTS[indices]
        return float(terms.sum(axis=1).var())

    assert variance("systematic") < variance("gumbel")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "num_tasks", [1, 2, pytest.param(64, marks=pytest.mark.slow), 128]
)
def test_many_tasks_of_uneven_weights_are_drawn_once(
    method: Any, num_tasks: int
) -> None:
    rng = np.random.default_rng(num_tasks)
    weights = jnp.asarray(10 ** rng.uniform(-12, 12, num_tasks), jnp.float32)
    for k in {1, (num_tasks + 1) // 2, num_tasks}:
        for seed in range(20):
            drawn = sample_tasks(jax.random.key(seed), weights, k, method=method)
            assert len(set(drawn.indices.tolist())) == k
            assert ((drawn.indices >= 0) & (drawn.indices < num_tasks)).all()
            assert np.isfinite(drawn.factors).all()


@pytest.mark.parametrize("method", METHODS)
def test_tasks_of_weight_zero_come_last_and_do_not_count(method: Any) -> None:
    weights = jnp.array([0.0, 2.0, 0.0, 1.0])
    for seed in range(50):
        two = sample_tasks(jax.random.key(seed), weights, 2, method=method)
        assert sorted(two.indices.tolist()) == [1, 3]
        np.testing.assert_allclose(two.factors, 1.0, rtol=1e-6)
        three = sample_tasks(jax.random.key(seed), weights, 3, method=method)
        factors = dict(zip(three.indices.tolist(), three.factors.tolist(), strict=True))
        assert len(factors) == 3
        assert factors.pop(1) == pytest.approx(1)
        assert factors.pop(3) == pytest.approx(1)
        assert list(factors.values()) == [0.0]
    none = sample_tasks(jax.random.key(0), jnp.zeros(4), 2, method=method)
    assert none.factors.tolist() == [0.0, 0.0]


def test_the_cost_is_that_of_the_drawn_tasks() -> None:
    num_tasks, width, batch = 32, 64, 128
    heads = jnp.ones((num_tasks, width, width))
    x = jnp.ones((num_tasks, batch, width))

    def step(heads: jax.Array, key: jax.Array, k: int) -> jax.Array:
        weights = jnp.linspace(0.1, 1.0, num_tasks)
        drawn = sample_tasks(key, weights, k)

        def total(heads: jax.Array) -> jax.Array:
            few, batches = heads[drawn.indices], x[drawn.indices]
            losses = jax.vmap(lambda h, b: jnp.mean((b @ h) ** 2))(few, batches)
            return combine_losses(losses, drawn.factors * weights[drawn.indices])

        return jax.grad(total)(heads)

    def flops(k: int) -> float:
        return toys.cost(lambda h, key: step(h, key, k), heads, jax.random.key(0))[0]

    assert flops(4) <= 0.2 * flops(num_tasks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 6}, "k must be at most the number of tasks, 5, got 6"),
        ({"k": 0}, "k must be an integer of at least 1"),
        ({"k": 2.0}, "k must be an integer of at least 1"),
        ({"weights": jnp.ones((2, 2))}, r"weights must have shape \[T\]"),
        ({"method": "poisson"}, "method must be one of"),
    ],
)
def test_errors_say_what_to_do(arguments: dict[str, Any], message: str) -> None:
    call = {"key": jax.random.key(0), "weights": WEIGHTS, "k": 2, **arguments}
    with pytest.raises(ValueError, match=message):
        cast("Any", sample_tasks)(**call)


@pytest.mark.parametrize("method", ["gumbel", "systematic"])
def test_a_uniform_share_is_a_mixture_whose_expectation_holds(method: Any) -> None:
    weights = jnp.array([8.0, 1.0, 0.0, 3.0, 0.5])
    keys = jax.random.split(jax.random.key(3), 20_000)

    def estimate(uniform: float) -> tuple[jax.Array, jax.Array]:
        def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            drawn = sample_tasks(key, weights, 2, method=method, uniform=uniform)
            share = jnp.zeros(5).at[drawn.indices].add(drawn.factors)
            return share * weights, jnp.zeros(5).at[drawn.indices].add(1.0)

        totals, counts = jax.jit(jax.vmap(one))(keys)
        return totals, counts.mean(0)

    for uniform in (0.5, 1.0):
        totals, counts = estimate(uniform)
        error = totals.std(0) / np.sqrt(len(keys))
        assert (jnp.abs(totals.mean(0) - weights) <= 5 * error + 1e-6).all()
        assert counts[2] == 0
        if method == "systematic":
            mixed = (1 - uniform) * weights / 12.5 + uniform / 4 * (weights > 0)
            expected = np.minimum(2 * mixed, 1)
            if uniform == 0.5:  # 0.89, 0.33, 0.49, 0.29: none is certain
                np.testing.assert_allclose(counts, expected, atol=0.015)
    # Drawn uniformly, all are drawn equally often.
    np.testing.assert_allclose(counts[jnp.array([0, 1, 3, 4])], 0.5, atol=0.015)


def test_a_uniform_share_of_zero_draws_as_before() -> None:
    key, weights = jax.random.key(1), jnp.array([3.0, 1.0, 2.0])
    plain = sample_tasks(key, weights, 2)
    for uniform in (0.0, jnp.array(0.0)):
        again = sample_tasks(key, weights, 2, uniform=uniform)
        np.testing.assert_array_equal(again.indices, plain.indices)
        np.testing.assert_allclose(again.factors, plain.factors, rtol=1e-6)
    with pytest.raises(ValueError, match="uniform must be"):
        sample_tasks(key, weights, 2, uniform=1.5)
