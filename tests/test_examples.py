import numpy as np
import pytest

from examples import _digits, two_digits


@pytest.fixture(scope="module")
def splits():
    return _digits.split_digits()


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


def test_two_digits_writes_table_and_plots(tmp_path, capsys):
    two_digits.main(["--out", str(tmp_path), "--steps", "100", "--seeds", "2"])
    written = (tmp_path / "results.md").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert written in printed
    for method in two_digits.methods_to_compare(100):
        assert f"| {method} " in written
        assert (f"{method}: left weight" in printed) == method.startswith("DTP")
    for column in (*two_digits.COLUMNS, "step time"):
        assert f"| {column} " in written
    assert "nan" not in written
    for name in ("samples", "weights", "kpis", "comparison"):
        data = (tmp_path / f"{name}.png").read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) < 150_000


@pytest.mark.parametrize("argument", ["--steps=50", "--steps=150", "--seeds=1"])
def test_two_digits_rejects_what_it_cannot_report(argument, capsys):
    with pytest.raises(SystemExit):
        two_digits.main([argument])
    assert "multiple of 100" in capsys.readouterr().err
