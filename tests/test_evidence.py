"""The problems of the evidence are what they say, and the page is made of results."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import seeds_and_rates
from benchmarks.evidence import __main__ as evidence
from benchmarks.evidence import digits, find, physics, poles, valleys
from benchmarks.evidence._catalogue import FEW, catalogue
from benchmarks.evidence._page import findings, overview
from benchmarks.evidence._problems import PROBLEMS
from benchmarks.evidence._size import FULL, SHORT, Size
from dtp_jax.compare import compare
from dtp_jax.compare._checks import checked_data
from examples import _toys, physics_informed
from tests.compare import tiny

TINY = evidence.TINY


def test_the_page_is_made_of_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    arguments = ["--tiny", "--only", "two valleys", "--out", str(tmp_path)]
    evidence.main([*arguments, "--page", str(page)])
    text = page.read_text(encoding="utf-8")
    assert "nan" not in text
    for part in ("## Over the problems", "## Two valleys", "| DTP ", "seeds"):
        assert part in text
    assert str(tmp_path) in capsys.readouterr().out
    # Nothing on the page says whose machine it was.
    assert str(tmp_path) not in text


def test_the_overview_counts_what_differs() -> None:
    result = compare(
        tiny.PROBLEM,
        {"DTP": tiny.METHODS["DTP"]},
        rates=(0.1,),
        seeds=3,
        tuning_seeds=1,
        measurements=1,
        progress=False,
    )
    both = {"two digits": result, "two valleys": result}
    rows = [line.split("|") for line in overview(both).splitlines()]
    found = {row[1].strip(): [cell.strip() for cell in row[2:]] for row in rows[2:]}
    assert set(found) == set(result.rows)
    assert found["fixed weights"][0] == "2"
    assert found["fixed weights"][5] == "50"
    assert found["fixed weights"][6] == "0, 0"
    text = findings(both)
    better = result.verdicts(result.values()["average"], "fixed weights")["DTP"]
    suffices = "two digits; two valleys" if better != "better" else "no problem"
    assert f"by more than noise: {suffices}." in text


def test_there_are_enough_problems_and_they_cover_the_kinds() -> None:
    assert len(PROBLEMS) >= 7
    for each in PROBLEMS.values():
        assert 0 < each.low < each.high


@pytest.mark.parametrize("size", [FULL, SHORT, TINY])
def test_rates_go_from_end_to_end(size: Size) -> None:
    rates = size.rates(1e-3, 1.6e-2)
    assert len(rates) == size.tries
    if size.tries > 1:
        assert (rates[0], rates[-1]) == pytest.approx((1e-3, 1.6e-2))
        steps = np.diff(np.log(rates))
        np.testing.assert_allclose(steps, steps[0], rtol=0.02)


def test_the_catalogue_is_of_different_methods() -> None:
    methods = catalogue(8)
    assert set(FEW) <= set(methods)
    assert len(methods) >= 35


def test_guessing_the_mean_explains_nothing_of_the_lower_half() -> None:
    problem = digits.lower_half(TINY)
    params = jax.tree.map(jnp.zeros_like, problem.init(jax.random.key(0)))
    means = problem.train[:, 1].mean(axis=0)
    params["heads"]["b"] = jnp.asarray(means)[:, None]
    _, kpis = problem.losses(params, problem.train)
    varied = problem.train[:, 1].var(axis=0) > 1e-5
    assert varied.sum() == 29
    np.testing.assert_allclose(kpis[varied], 0, atol=1e-3)
    assert np.all(np.asarray(kpis)[~varied] > 0)


def test_the_middle_of_the_front_has_three_quarters() -> None:
    problem = valleys.two_valleys(TINY)
    _, kpis = problem.losses(jnp.array([0.0, _toys.VALLEY_MEAN_V]), None)
    np.testing.assert_allclose(kpis, 0.75, atol=0.01)
    for u, expected in ((7.0, [1, 0]), (-7.0, [0, 1])):
        end = jnp.array([u, _toys.two_valleys_front(2)[0, 1]])
        np.testing.assert_allclose(problem.losses(end, None)[1], expected, atol=0.01)


def test_zero_is_worth_nothing_to_the_equation_and_all_to_the_sides() -> None:
    problem = physics.helmholtz(TINY)
    params = jax.tree.map(jnp.zeros_like, problem.init(jax.random.key(0)))
    _, kpis = problem.losses(params, problem.validation)
    assert kpis["residual"] == pytest.approx(0, abs=0.02)
    assert kpis["x_sides"] == kpis["y_sides"] == 1
    sides = problem.train(jax.random.key(0), 0).y_sides
    np.testing.assert_array_equal(np.abs(sides[:, 1]), 1)
    assert sides.shape == (physics_informed.NUM_POINTS["y_sides"], 2)


@pytest.mark.parametrize("stride", [1, 2])
def test_patches_are_what_a_convolution_reads(stride: int) -> None:
    images = jax.random.normal(jax.random.key(0), (2, 8, 6, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 5))
    expected = jax.lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    found = find.patches(images, stride) @ kernel.reshape(-1, 5)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_poles_move_like_poles() -> None:
    still = jnp.zeros(4)
    left, right = (poles.move(still, jnp.int32(a), 0.5, 9.8) for a in (0, 1))
    np.testing.assert_allclose(left, -right, rtol=1e-6)
    # Pushed to the right, the cart goes there and the pole falls to the left.
    assert right[1] > 0 > right[3]
    # A pole that leans falls further, a short one faster.
    leaning = still.at[2].set(0.1)
    falls = [poles.move(leaning, jnp.int32(1), length, 9.8)[3] for length in (0.1, 1.0)]
    pushed = [
        poles.move(leaning, jnp.int32(0), length, 9.8)[3] for length in (0.1, 1.0)
    ]
    assert sum(falls[:1] + pushed[:1]) > sum(falls[1:] + pushed[1:]) > 0


def test_a_policy_is_judged_by_the_time_up() -> None:
    problem = poles.eight_poles(TINY)
    params = problem.init(jax.random.key(0))
    evaluate: Any = problem.evaluate
    kpis = jax.jit(evaluate)(params, problem.test)
    assert kpis.shape == (poles.NUM_TASKS,)
    # Nobody is down at once, and nobody untrained stays up.
    assert float(kpis.min()) > 0.02
    assert float(kpis.mean()) < 0.6


def test_seeds_and_rates_are_timed() -> None:
    rows = seeds_and_rates.rows_of(["DTP"], num_seeds=1, num_steps=2, rounds=1, chunk=3)
    ways = ["one program", "chunks of 3", "one after the other", "step by step"]
    assert [row[1] for row in rows] == ways


@pytest.mark.slow
def test_one_program_is_three_times_faster_than_step_by_step() -> None:
    rows = seeds_and_rates.rows_of(["DTP", "UPGrad"], 10, 100, rounds=3, chunk=20)
    ratios = {(row[0], row[1]): float(row[3]) for row in rows}
    for method in ("DTP", "UPGrad"):
        assert ratios[method, "step by step"] > 3
        assert ratios[method, "one after the other"] > 1.5


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_trains(name: str, tmp_path: Path) -> None:
    if PROBLEMS[name].needs:
        pytest.importorskip(PROBLEMS[name].needs)
    found = evidence.run(name, TINY, FEW[:1], tmp_path)
    assert np.isfinite(found.rows["DTP"].kpis).all()


@pytest.mark.slow
def test_every_method_of_the_catalogue_trains() -> None:
    problem = digits.lower_half(TINY)
    data = checked_data(problem)
    assert data.train is not None
    found = compare(
        problem,
        catalogue(problem.tasks),
        rates=(1e-3,),
        seeds=2,
        tuning_seeds=1,
        measurements=1,
        progress=False,
    )
    for name, row in found.rows.items():
        assert np.isfinite(row.kpis).all(), name
