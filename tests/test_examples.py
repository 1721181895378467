import json

import numpy as np
import pytest

from examples import _contest, _digits, _methods, _problems, two_digits

SCHEDULES = list(_methods.SCHEDULES)


@pytest.fixture(scope="module")
def splits():
    return _digits.split_digits()


@pytest.fixture(scope="module")
def tuned():
    return json.loads(two_digits.TUNED.read_text(encoding="utf-8"))


def test_splits_share_no_digit(splits):
    # All of scikit-learn's digits differ, so their pixels tell whether one is shared.
    pixels = [{image.tobytes() for image in split.images} for split in splits.values()]
    sizes = [len(digits) for digits in pixels]
    assert sizes == list(_digits.SPLITS.values())
    assert len(set.union(*pixels)) == sum(sizes) == 1797


def test_pairs_are_reproducible_and_in_range(splits):
    pairs = _digits.make_pairs(splits["train"], 200, seed=3)
    again = _digits.make_pairs(splits["train"], 200, seed=3)
    other = _digits.make_pairs(splits["train"], 200, seed=4)
    for values, repeated in zip(pairs, again, strict=True):
        np.testing.assert_array_equal(values, repeated)
    assert not np.array_equal(pairs.images, other.images)
    assert pairs.images.shape == (200, _digits.HEIGHT, _digits.WIDTH)
    assert pairs.images.dtype == pairs.overlap.dtype == np.float32
    for labels in (pairs.left, pairs.right):
        assert set(labels.tolist()) == set(range(_digits.NUM_CLASSES))
    assert pairs.overlap.min() >= 0
    assert pairs.overlap.max() <= 1


def test_overlap_is_the_covered_share(monkeypatch):
    # Without noise, full ink over all of a faint square: what is not faint is covered.
    monkeypatch.setattr(_digits, "NOISE", 0.0)
    square = np.ones((1, _digits.DIGIT, _digits.DIGIT), np.float32)
    pairs = _digits.make_pairs(_digits.Digits(square, np.zeros(1, np.int32)), 20)
    faint = np.isclose(pairs.images, _digits.FAINT).sum((1, 2))
    np.testing.assert_allclose(pairs.overlap, 1 - faint / square.size, rtol=1e-6)


def test_each_place_of_a_row_has_its_ink(monkeypatch):
    # Without noise, squares of full ink: a column has that of the darkest digit on it.
    monkeypatch.setattr(_digits, "NOISE", 0.0)
    square = np.ones((1, _digits.DIGIT, _digits.DIGIT), np.float32)
    rows = _digits.make_rows(_digits.Digits(square, np.full(1, 7, np.int32)), 2)
    inks = _digits.row_inks()
    columns = np.arange(rows.images.shape[2])
    first = _digits.STRIDE * np.arange(_digits.ROW)[:, None]
    covers = (columns >= first) & (columns < first + _digits.DIGIT)
    expected = np.where(covers, inks[:, None], 0).max(axis=0)
    np.testing.assert_allclose(rows.images[1, 3], expected, rtol=1e-6)
    assert (rows.labels == 7).all()
    assert (inks.min(), inks.max()) == pytest.approx((_digits.FAINTEST, 1))


def test_steps_to_a_share_wait_for_the_worst_task():
    # Two tasks with references 50 and 80, four measurements of ten steps each.
    fast = [[10, 70], [40, 70], [45, 60], [45, 70]]
    never = [[50, 10]] * 4
    steps = _contest.steps_to_share(
        np.array([fast, never]), np.array([50, 80]), 0.8, num_steps=40
    )
    assert steps.tolist() == [20, np.inf]


def test_differences_are_of_the_same_seed():
    equal = np.array([70.0, 80.0, 90.0])
    better = equal + np.array([1.0, 2.0, 3.0])
    mean, error = _contest.mean_and_error(better - equal)
    # The standard deviation of 1, 2, 3 is one.
    assert (mean, error) == pytest.approx((2, 1 / np.sqrt(3)))
    assert _contest.with_error(better - equal, "+") == "+2.0 ± 0.6"


def _result(average, worst):
    of = np.array(worst)
    kpis = np.zeros((2, 3, 3))
    average = np.array(average)
    return two_digits.Result(1e-3, kpis, kpis, average, of, of, np.full(2, 80.0))


def test_checks_say_whether_the_promises_hold():
    equal = _result([80.0, 82.0], [20.0, 22.0])
    good = _result([79.5, 81.5], [32.0, 34.0])
    bad = _result([78.0, 80.0], [22.0, 20.0])

    def printed(ours):
        of = {
            (method, schedule): result
            for schedule in SCHEDULES
            for method, result in {"equal weights": equal, "DTP": ours}.items()
        }
        text = two_digits.checks({"three tasks": of, "row of twelve": of})
        return [line.split(":")[0] for line in text.splitlines()]

    assert printed(good) == ["* holds"] * 6
    assert printed(bad) == ["* MISSED"] * 6


def test_choices_are_those_of_the_stored_scores(tuned):
    contests = _methods.contests()
    assert list(tuned) == list(contests)
    for name, contest in contests.items():
        assert list(tuned[name]) == SCHEDULES
        for of in tuned[name].values():
            names = contest.problem.names
            assert {len(values) for values in of["single"].values()} == {len(names)}
            assert set(of["single"]["rates"]) <= set(_methods.RATES)
            assert list(of["methods"]) == list(_methods.methods(contest.problem))
            for row, choice in of["methods"].items():
                criterion = _methods.FIXED.get(row, "average")
                scores = [each[criterion] for each in choice["tried"]]
                assert choice["criterion"] == criterion
                assert scores[choice["chosen"]] == max(scores)


def test_budgets_are_equal_and_rates_of_one_grid(tuned):
    for name, contest in _methods.contests().items():
        for of in tuned[name].values():
            equal = of["methods"]["equal weights"]["tried"]
            best = sorted(equal, key=lambda each: -each["average"])[:2]
            for row, choice in of["methods"].items():
                assert len(choice["tried"]) == len(_methods.RATES)
                rates = [each["rate"] for each in choice["tried"]]
                if row in _methods.FIXED:
                    assert set(rates) == {each["rate"] for each in best}
                    weights = [each["weights"] for each in choice["tried"]]
                    assert weights == contest.fixed * 2
                else:
                    assert rates == list(_methods.RATES)


@pytest.fixture
def tiny(monkeypatch):
    """Few images and measurements, so that a run takes the time of compiling it."""
    sizes = dict.fromkeys(_problems.SIZES, (200, 100, 100))
    monkeypatch.setattr(_problems, "SIZES", sizes)
    for module in (_methods, two_digits):
        monkeypatch.setattr(module, "MEASUREMENTS", 2)


def test_two_digits_writes_tables_and_plots(tiny, tmp_path, capsys):
    two_digits.main(["--out", str(tmp_path), "--steps", "8", "--seeds", "2"])
    written = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert written in capsys.readouterr().out
    rows = _methods.methods(_methods.contests()["three tasks"].problem)
    for method in rows:
        # Two problems and two schedules.
        assert written.count(f"| {method} ") == 4
    for column in ("average", "worst task", "worst / single", "worst, difference"):
        assert f"| {column} " in written
    assert "nan" not in written
    for name in ("samples", "weights", "kpis", "comparison", "row"):
        data = (tmp_path / f"{name}.png").read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) < 150_000


@pytest.mark.slow
def test_two_digits_tunes_every_row(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(two_digits, "TUNED", tmp_path / "tuned.json")
    two_digits.main(["--tune", "--steps", "8"])
    found = json.loads(two_digits.TUNED.read_text(encoding="utf-8"))
    test_choices_are_those_of_the_stored_scores(found)
    test_budgets_are_equal_and_rates_of_one_grid(found)


@pytest.mark.parametrize("argument", ["--steps=40", "--steps=90", "--seeds=1"])
def test_two_digits_rejects_what_it_cannot_report(argument, capsys):
    with pytest.raises(SystemExit):
        two_digits.main([argument])
    assert "multiple of 80" in capsys.readouterr().err
