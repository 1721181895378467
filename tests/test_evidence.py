"""The problems of the evidence are what they say, and the page is made of results."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import seeds_and_rates
from benchmarks.evidence import __main__ as evidence
from benchmarks.evidence import (
    _stored,
    digits,
    find,
    multi_mnist,
    physics,
    poles,
    valleys,
)
from benchmarks.evidence._catalogue import FEW, catalogue
from benchmarks.evidence._page import PICTURE, findings, overview, page
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
    assert "not run: two digits; row of twelve;" in text
    for part in ("## Over the problems", "## Two valleys", "| DTP ", "seeds"):
        assert part in text
    assert str(tmp_path) in capsys.readouterr().out
    assert (tmp_path / PICTURE).exists()
    assert f"]({PICTURE})" in text
    # Nothing on the page says whose machine it was.
    assert str(tmp_path) not in text


def test_runs_are_kept_and_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_stored, "KEPT", tmp_path / "runs.tar.xz")
    first, second = tmp_path / "first", tmp_path / "second"
    expected = tiny.run(first / "some_problem")
    _stored.keep(first)
    _stored.unpack(second)

    def runs(full: Path) -> dict[str, bytes]:
        files = (full / "some_problem" / "runs").rglob("*")
        return {
            str(path.relative_to(full)): path.read_bytes()
            for path in files
            if path.is_file()
        }

    assert runs(second) == runs(first)
    _stored.forget(second / "some_problem", ["DTP"])
    left = runs(second)
    assert set(runs(first)) - set(left) == {
        name for name in runs(first) if "/dtp-" in name
    }
    assert b"DTP" not in left["some_problem/runs/plan.json"]
    # What is there is not taken anew; what was forgotten is trained again.
    _stored.unpack(second)
    assert runs(second) == left
    found = tiny.run(second / "some_problem").rows["DTP"].kpis
    np.testing.assert_array_equal(found, expected.rows["DTP"].kpis)
    monkeypatch.setattr(_stored, "versions", lambda: {"jax": "another"})
    _stored.unpack(tmp_path / "third")
    assert not (tmp_path / "third").exists()


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
    # There is one rate only.
    assert found["DTP"][8] == "1.0"
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
    ways = ["side by side", "chunks of 3", "all in one go"]
    ways += ["one after the other", "step by step"]
    assert [row[1] for row in rows] == ways


def test_the_network_of_the_paper_convolves() -> None:
    params = multi_mnist.init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (3, 18, 18))
    features = images[..., None]
    for layer in params["trunk"][:2]:
        channels = features.shape[-1]
        features = jax.lax.conv_general_dilated(
            features,
            layer["w"].reshape(5, 5, channels, -1),
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        features = features + layer["b"]
        if channels == 1:
            features = jax.lax.reduce_window(
                features, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
            )
        features = jax.nn.relu(features)
    last = params["trunk"][2]
    features = jax.nn.relu(features.reshape(3, -1) @ last["w"] + last["b"])
    heads = []
    for task in range(2):
        hidden, out = jax.tree.map(lambda leaf, task=task: leaf[task], params["heads"])
        inner = jax.nn.relu(features @ hidden["w"] + hidden["b"])
        heads.append(inner @ out["w"] + out["b"])
    found = multi_mnist.network(params, images)
    np.testing.assert_allclose(found, np.stack(heads, axis=1), atol=1e-4)


def test_pairs_of_the_paper_overlap() -> None:
    images = np.zeros((2, 14, 14), np.float32)
    images[0], images[1, 0, 0] = 0.5, 1.0
    found = multi_mnist.pairs(images, np.array([3, 8], np.int32), 20)
    pixels = found["images"] * 0.3081 + 0.1307
    left, right = (found["labels"] == 8).T
    # The right one begins three pixels below and to the right.
    both = np.maximum(np.where(left, 0.0, 0.5), np.where(right, 1.0, 0.5))
    np.testing.assert_allclose(pixels[:, 3, 3], both, atol=1e-6)
    np.testing.assert_allclose(pixels[:, 0, 0], np.where(left, 1.0, 0.5), atol=1e-6)
    np.testing.assert_allclose(pixels[:, 16, 16], np.where(right, 0.0, 0.5), atol=1e-6)


def test_a_paper_has_a_table_of_its_own() -> None:
    def losses(point: Any, batch: Any) -> tuple[Any, Any]:
        return jax.tree.map(
            lambda three: multi_mnist.by_name(three[:2]),
            tiny.losses_and_kpis(point, batch),
        )

    result = compare(
        tiny.changed(tasks=["left", "right"], losses=losses, num_steps=2),
        {"DTP": tiny.METHODS["DTP"]},
        rates=(0.1,),
        seeds=2,
        tuning_seeds=1,
        measurements=1,
        progress=False,
    )
    text = page({"MultiMNIST": result, "two valleys": result}, FULL)
    # It has no part in what is said over the problems.
    overall, paper = text.split("## MultiMNIST")
    assert "| equal weights |        1 |" in overall
    left, right = 100 * result.rows["equal weights"].kpis[:, -1].mean(axis=0)
    row = next(line for line in paper.splitlines() if "96.46" in line)
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells == ["equal weights", f"{left:.2f}", f"{right:.2f}", "96.46", "94.99"]
    # What did not run has no row.
    assert "96.27" not in paper


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
