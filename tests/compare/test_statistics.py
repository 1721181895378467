"""Intervals cover as they claim, and ties are ties."""

from typing import Any

import numpy as np
import pytest
import scipy.stats

from dtp_jax.compare._chances import holm, win_rate
from dtp_jax.compare._ranks import improvement, ranks
from dtp_jax.compare._student import (
    p_value,
    t_distribution,
    t_interval,
    t_quantile,
)


@pytest.mark.parametrize("degrees", [1, 2, 3, 9, 10, 200])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_quantiles_are_those_of_scipy(degrees: int, confidence: float) -> None:
    expected = scipy.stats.t.ppf((1 + confidence) / 2, degrees)
    found = t_quantile(confidence, degrees)
    assert found == pytest.approx(expected, rel=1e-10)
    assert t_distribution(np.inf, degrees) == pytest.approx(1)


def test_p_values_are_those_of_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0.3, 1, 12), rng.normal(0, 1, 12)
    expected = scipy.stats.ttest_rel(ours, theirs).pvalue
    assert p_value(ours - theirs) == pytest.approx(expected, rel=1e-9)


def within(share: Any, expected: float, draws: int) -> bool:
    """Whether a share of draws is as near to what was expected as it should be."""
    error = np.sqrt(expected * (1 - expected) / draws)
    return abs(share - expected) < 4 * error


@pytest.mark.parametrize("seeds", [2, 3, 10])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_intervals_of_normal_means_cover_as_they_claim(
    seeds: int, confidence: float
) -> None:
    draws = 4000
    values = np.random.default_rng(seeds).normal(0.7, 0.1, (seeds, draws))
    _, low, high = t_interval(values, confidence)
    assert within(np.mean((low <= 0.7) & (high >= 0.7)), confidence, draws)


def test_paired_intervals_cover_and_are_shorter() -> None:
    # What the seed brings is common to both methods, and ten times the difference.
    rng = np.random.default_rng(1)
    draws = 4000
    of_seed = rng.normal(0.5, 0.1, (10, draws))
    ours = of_seed + rng.normal(0.02, 0.01, (10, draws))
    _, low, high = t_interval(ours - of_seed)
    assert within(np.mean((low <= 0.02) & (high >= 0.02)), 0.95, draws)
    alone = t_interval(ours)
    assert np.mean(high - low) < 0.2 * np.mean(alone.high - alone.low)


def test_intervals_of_accuracies_cover_about_as_they_claim() -> None:
    # A KPI near the end of its range is skewed: the assumption holds less well.
    rng = np.random.default_rng(2)
    accuracies = rng.beta(45, 5, (10, 4000))
    _, low, high = t_interval(accuracies)
    assert np.mean((low <= 0.9) & (high >= 0.9)) == pytest.approx(0.95, abs=0.015)


def test_of_one_seed_nothing_is_known() -> None:
    interval = t_interval(np.array([0.5]))
    assert (interval.low, interval.high) == (-np.inf, np.inf)
    assert p_value(np.array([0.5])) == 1


def test_equal_methods_are_called_different_as_rarely_as_claimed() -> None:
    rng = np.random.default_rng(3)
    draws, methods = 1000, 8
    called = 0
    for _ in range(draws):
        differences = rng.normal(0, 0.02, (methods, 10))
        called += any(holm([p_value(d) for d in differences]))
    # Holm's bound is not far from the truth for independent differences.
    assert called / draws < 0.05 + 4 * np.sqrt(0.05 * 0.95 / draws)
    assert called > 0


def test_holm_is_bonferroni_for_the_smallest_and_stops_at_the_first_failure() -> None:
    assert holm([0.012, 0.013, 0.06, 0.9]) == [True, True, False, False]
    assert holm([0.0126, 0.013, 0.02, 0.9]) == [False] * 4
    assert holm([]) == []


def test_ties_are_ties() -> None:
    same = np.full(6, 0.8)
    assert p_value(same - same) == 1
    assert win_rate(same, same).mean == 0.5
    np.testing.assert_array_equal(ranks(np.stack([same, same])), 1.5)
    # A mean of equal numbers rounds; their interval has no length all the same.
    interval = t_interval(np.full(7, 0.1))
    assert interval.low == interval.high


def test_the_same_difference_in_every_seed_is_none_of_chance() -> None:
    assert p_value(np.full(3, 0.25)) == 0


@pytest.mark.parametrize("truth", [0.5, 0.8])
def test_wilsons_interval_covers_about_as_it_claims(truth: float) -> None:
    rng = np.random.default_rng(4)
    covered = []
    for _ in range(2000):
        wins = rng.random(20) < truth
        _, low, high = win_rate(wins.astype(float), np.full(20, 0.5))
        covered.append(low <= truth <= high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.03)


def test_wilsons_interval_is_that_of_scipy() -> None:
    ours = np.array([1.0] * 7 + [0.0] * 3)
    found = win_rate(ours, np.full(10, 0.5))
    expected = scipy.stats.binomtest(7, 10).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-4)


def test_ranks_are_those_of_scipy() -> None:
    values = np.random.default_rng(5).integers(0, 4, (7, 5)).astype(float)
    expected = scipy.stats.rankdata(-values, axis=0)
    np.testing.assert_array_equal(ranks(values), expected)


def test_improvement_leaves_out_tasks_without_a_reference() -> None:
    kpis, reference = np.array([0.6, 0.9]), np.array([0.5, 0.0])
    assert improvement(kpis, reference) == pytest.approx(0.2)
    assert np.isnan(improvement(kpis, np.zeros(2)))
