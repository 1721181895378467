import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dtp_jax import boxes
from examples import _digits, find_digit


@pytest.fixture(scope="module")
def splits():
    return _digits.split_digits()


@pytest.fixture
def clean(monkeypatch):
    """Scenes without noise and fragments."""
    monkeypatch.setattr(_digits, "NOISE", 0.0)
    monkeypatch.setattr(_digits, "NUM_FRAGMENTS", 0)


losses_and_kpis = nnx.jit(find_digit.losses_and_kpis)


class Oracle(find_digit.Detector):
    """A detector that makes given proposals."""

    def __init__(self, proposals):
        self.proposals = nnx.data(proposals)

    def __call__(self, images):
        del images
        return self.proposals


def test_scenes_are_reproducible_and_in_range(splits):
    scenes = _digits.make_scenes(splits["train"], 400, seed=3)
    again = _digits.make_scenes(splits["train"], 400, seed=3)
    other = _digits.make_scenes(splits["train"], 400, seed=4)
    for values, repeated in zip(scenes, again, strict=True):
        np.testing.assert_array_equal(values, repeated)
    assert not np.array_equal(scenes.images, other.images)
    assert scenes.images.shape == (400, _digits.SCENE, _digits.SCENE)
    assert scenes.images.dtype == scenes.boxes.dtype == np.float32
    assert set(scenes.labels.tolist()) == set(range(_digits.NUM_CLASSES))
    assert scenes.boxes.min() >= 0
    assert scenes.boxes.max() <= _digits.SCENE
    assert (scenes.boxes[:, 2:] > scenes.boxes[:, :2]).all()
    assert scenes.hidden.sum(axis=1).max() == 1
    assert scenes.hidden.any(axis=0).all()


@pytest.mark.usefixtures("clean")
def test_boxes_are_around_the_ink(monkeypatch):
    # Between a pixel with ink and one without, bilinear interpolation passes 1/2 right
    # on the side of the box: pixels whose centre is in the box are darker than that.
    monkeypatch.setattr(_digits, "BAR", 0)
    ink = np.zeros((1, _digits.DIGIT, _digits.DIGIT), np.float32)
    ink[:, 2:6, 1:4] = 1
    scenes = _digits.make_scenes(_digits.Digits(ink, np.zeros(1, np.int32)), 50)
    centres = np.arange(_digits.SCENE) + 0.5
    x1, y1, x2, y2 = np.split(scenes.boxes, 4, axis=1)
    columns = (scenes.images > 0.5).any(axis=1)
    np.testing.assert_array_equal(columns, (x1 < centres) & (centres < x2))
    rows = (scenes.images > 0.5).any(axis=2)
    np.testing.assert_array_equal(rows, (y1 < centres) & (centres < y2))


@pytest.mark.usefixtures("clean")
def test_bars_cover_the_hidden_sides(splits):
    scenes = _digits.make_scenes(splits["train"], 100)
    assert scenes.hidden.any()
    for image, box, hidden in zip(
        scenes.images, scenes.boxes, scenes.hidden, strict=True
    ):
        for side in np.flatnonzero(hidden):
            pixel = min(int(box[side]), _digits.SCENE - 1)
            line = image[:, pixel] if side % 2 == 0 else image[pixel]
            np.testing.assert_array_equal(line, 0.5)


def test_anchors_answer_for_the_digits_on_them():
    anchors = find_digit.anchors()
    assert anchors.shape == ((_digits.SCENE // find_digit.STRIDE) ** 2, 4)
    np.testing.assert_allclose(anchors.mean(axis=0).reshape(2, 2).mean(0), 12)
    np.testing.assert_array_equal(anchors[1] - anchors[0], [4, 0, 4, 0])
    np.testing.assert_array_equal(
        anchors[:, 2:] - anchors[:, :2], np.tile(find_digit.ANCHOR_SIZE, (36, 1))
    )


def test_perfect_proposals_have_no_loss_and_are_found(splits):
    scenes = _digits.make_scenes(splits["train"], 50)
    anchors = find_digit.anchors()
    truth = scenes.boxes[:, None]
    overlap = np.asarray(boxes.iou(anchors, truth))
    best = overlap == overlap.max(axis=1, keepdims=True)
    positive = (overlap >= find_digit.POSITIVE_IOU) | best
    labels = np.where(positive, scenes.labels[:, None], find_digit.BACKGROUND)
    offsets = boxes.encode(truth, anchors) / find_digit.UNIT
    logits = 100.0 * np.eye(find_digit.BACKGROUND + 1, dtype=np.float32)[labels]
    proposals = find_digit.Proposals(
        jnp.asarray(logits), offsets, jnp.zeros_like(offsets)
    )

    losses, kpis = losses_and_kpis(Oracle(proposals), scenes)
    assert losses["class"] == 0
    # The square of what a compiler may round otherwise than single operations.
    assert losses["box"] <= (8 * np.finfo(np.float32).eps) ** 2
    assert kpis["class"] == 1
    np.testing.assert_allclose(kpis["box"], 1, rtol=1e-5)

    found = find_digit.detect(Oracle(proposals), scenes.images)
    np.testing.assert_array_equal(found.labels, scenes.labels)
    for predicted in (found.boxes, found.voted, found.evenly_voted):
        np.testing.assert_allclose(predicted, scenes.boxes, atol=1e-4)
    # At log-variance zero the deviation is one unit of the anchor.
    deviation = find_digit.UNIT * np.tile(find_digit.ANCHOR_SIZE, (50, 2))
    np.testing.assert_allclose(found.deviations, deviation, rtol=1e-5)
    results = find_digit.evaluate(Oracle(proposals), scenes)
    np.testing.assert_allclose(results, 100, rtol=1e-5)


def test_with_equal_variances_the_box_loss_is_smooth_l1(splits):
    scenes = _digits.make_scenes(splits["train"], 4)
    anchors = find_digit.anchors()
    offsets = np.random.default_rng(0).normal(size=(4, len(anchors), 4))
    overlap = np.asarray(boxes.iou(anchors, scenes.boxes[:, None]))
    positive = overlap >= find_digit.POSITIVE_IOU
    assert positive.any(axis=1).all()
    sides = np.tile(find_digit.ANCHOR_SIZE, 2)
    targets = (scenes.boxes[:, None] - anchors) / sides / find_digit.UNIT
    errors = np.abs(offsets - targets)[positive]
    expected = np.where(errors < 1, errors**2 / 2, errors - 0.5).sum(1).mean()
    logits = jnp.zeros((4, len(anchors), find_digit.BACKGROUND + 1))
    offsets = jnp.asarray(offsets, jnp.float32)
    proposals = find_digit.Proposals(logits, offsets, jnp.zeros_like(offsets))
    losses, _ = losses_and_kpis(Oracle(proposals), scenes)
    np.testing.assert_allclose(losses["box"], expected, rtol=1e-5)


def test_find_digit_writes_table_and_plots(tmp_path, capsys, monkeypatch):
    sizes = {"train": 100, "validation": 50, "test": 50}
    monkeypatch.setattr(find_digit, "NUM_SCENES", sizes)
    # A smaller network compiles faster.
    monkeypatch.setattr(find_digit, "SHAPES", ((1, 8, 4),))
    find_digit.main(["--out", str(tmp_path), "--steps", "3", "--seeds", "2"])
    written = (tmp_path / "results.md").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert written in printed
    for name, method in find_digit.methods_to_compare().items():
        assert f"| {name} " in written
        assert (f"{name}: " in printed) == method.uncertain
    for column in find_digit.COLUMNS:
        assert f"| {column} " in written
    assert "nan" not in written
    for name in ("predictions", "weights", "kpis"):
        data = (tmp_path / f"{name}.png").read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) < 150_000


@pytest.mark.parametrize("argument", ["--steps=0", "--seeds=1"])
def test_find_digit_rejects_what_it_cannot_report(argument, capsys):
    with pytest.raises(SystemExit):
        find_digit.main([argument])
    assert "at least" in capsys.readouterr().err
