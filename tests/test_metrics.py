import warnings

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from dtp_jax import boxes, metrics

SIZE = 12
DIFFERENTIABLE = {
    "bounded_error": lambda p, t, where: metrics.bounded_error(p, t, 2.0, where=where),
    "correlation": lambda p, t, where: metrics.correlation(p, t, where=where),
    "exp_loss": lambda p, t, where: metrics.exp_loss(p - t, scale=0.5, where=where),
    "mean_box_iou": lambda p, t, where: metrics.mean_box_iou(
        p.reshape(-1, 4), t.reshape(-1, 4), where=where.reshape(-1, 4)[:, 0]
    ),
}
# Predictions of twelve elements, targets to match and which of them count.
CALLS = DIFFERENTIABLE | {
    "accuracy": lambda p, t, where: metrics.accuracy(
        jnp.stack([p, t], -1), jnp.int32(t > 0), where=where
    ),
    "average_precision": lambda p, t, where: metrics.average_precision(
        p, t > 0, where=where
    ),
    "mean_mask_iou": lambda p, t, where: metrics.mean_mask_iou(
        jnp.int32(p > 0), jnp.int32(t > 0), 2, where=where
    ),
    "pck": lambda p, t, where: metrics.pck(
        p.reshape(-1, 2), t.reshape(-1, 2), 1.5, where=where.reshape(-1, 2)[:, 0]
    ),
    "top_k_accuracy": lambda p, t, where: metrics.top_k_accuracy(
        jnp.stack([p, t, t], -1), jnp.int32(t > 0), 2, where=where
    ),
    "within_threshold": lambda p, t, where: metrics.within_threshold(
        p, t, 0.7, where=where
    ),
}
JITTED = {name: jax.jit(call) for name, call in CALLS.items()}
GRADIENTS = {
    name: jax.jit(jax.grad(call, argnums=(0, 1)))
    for name, call in DIFFERENTIABLE.items()
}

each_metric = pytest.mark.parametrize("name", sorted(CALLS))
each_differentiable = pytest.mark.parametrize("name", sorted(DIFFERENTIABLE))
# Functions of a few calls to jit as a whole: op by op, each shape compiles many times.
accuracy = jax.jit(metrics.accuracy)
average_precision = jax.jit(metrics.average_precision)
correlation = jax.jit(metrics.correlation)
mean_mask_iou = jax.jit(metrics.mean_mask_iou, static_argnums=2)
pck = jax.jit(metrics.pck)

masks = st.lists(st.booleans(), min_size=SIZE, max_size=SIZE).map(np.array)


def examples(seed):
    """Boxes, among other things: the corners ascend in each group of four."""
    rng = np.random.default_rng(seed)
    predicted, target = np.sort(rng.normal(size=(2, SIZE // 4, 4)), -1).reshape(2, SIZE)
    # All-or-nothing groups of four, so that every metric reads the same mask.
    where = np.repeat([True, False, True], 4)
    return jnp.float32(predicted), jnp.float32(target), where


# What every metric owes


@each_metric
def test_answers_are_float32_scalars_between_zero_and_one(name):
    answers = [JITTED[name](*examples(seed)) for seed in range(5)]
    for answer in answers:
        assert answer.shape == ()
        assert answer.dtype == jnp.float32
        assert 0 <= answer <= 1
    without_jit = CALLS[name](*examples(4))
    assert without_jit == pytest.approx(float(answers[4]), abs=1e-6)


@each_metric
def test_vmap_is_a_loop(name):
    batch = [np.stack(part) for part in zip(*map(examples, range(4)), strict=True)]
    expected = [JITTED[name](*examples(seed)) for seed in range(4)]
    actual = jax.jit(jax.vmap(CALLS[name]))(*batch)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


@each_metric
def test_without_examples_the_answer_is_nan(name):
    predicted, target, where = examples(0)
    assert np.isnan(JITTED[name](predicted, target, np.zeros_like(where)))
    assert np.isnan(JITTED[name](predicted[:0], target[:0], where[:0]))


@each_metric
def test_masked_examples_have_no_influence(name):
    predicted, target, where = examples(1)
    expected = JITTED[name](predicted, target, where)
    for junk in (jnp.nan, jnp.inf, -1e30, 7.0):
        answer = JITTED[name](
            jnp.where(where, predicted, junk), jnp.where(where, target, junk), where
        )
        assert answer == expected
    kept = JITTED[name](predicted[where], target[where], where[where])
    assert kept == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize(
    "name", sorted(CALLS.keys() - {"average_precision", "mean_mask_iou"})
)
def test_nan_predictions_are_wrong(name):
    predicted, target, where = examples(2)
    answer = JITTED[name](predicted, target, where)
    assert JITTED[name](predicted.at[:4].set(jnp.nan), target, where) <= answer
    assert JITTED[name](jnp.full(SIZE, jnp.nan), target, where) == 0


@each_differentiable
def test_gradients_are_finite_at_the_edges(name):
    good, target, where = examples(3)
    edges = [jnp.zeros(SIZE), target, jnp.full(SIZE, 1e30), good.at[:5].set(jnp.nan)]
    edges += [target + 2, jnp.full(SIZE, -jnp.inf), good * 1e-38, -target]
    for predicted in edges:
        for targets in (target, jnp.zeros(SIZE), target.at[2].set(jnp.nan)):
            for mask in (where, ~where, where & False):
                gradients = GRADIENTS[name](predicted, targets, mask)
                assert np.isfinite(gradients).all()


@each_differentiable
def test_gradients_are_those_of_finite_differences(name):
    predicted, target, where = examples(5)
    predicted = target + 0.1 * (predicted - target)
    gradient = GRADIENTS[name](predicted, target, where)[0]
    direction = jnp.cos(jnp.arange(SIZE))
    step = 1e-2 * direction
    change = JITTED[name](predicted + step, target, where)
    change -= JITTED[name](predicted - step, target, where)
    np.testing.assert_allclose(change / 0.02, gradient @ direction, atol=5e-3)
    assert np.abs(gradient).max() > 0


# Classification


@pytest.mark.parametrize("k", [1, 2, 4, 5])
def test_top_k_accuracy_is_that_of_scikit_learn(k):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(40, 5)), rng.integers(0, 5, 40)
    where = rng.uniform(size=40) < 0.7
    with warnings.catch_warnings():
        # It warns that with k = C the answer is 1.
        warnings.simplefilter("ignore", sklearn.exceptions.UndefinedMetricWarning)
        expected = sklearn.metrics.top_k_accuracy_score(
            labels[where], logits[where], k=k, labels=range(5)
        )
    actual = metrics.top_k_accuracy(jnp.array(logits), labels, k, where=where)
    assert float(actual) == pytest.approx(expected)
    if k == 1:
        assert accuracy(jnp.array(logits), labels, where=where) == actual


def test_constant_logits_name_the_first_classes():
    labels = jnp.arange(5)
    for k in (1, 3, 5):
        score = metrics.top_k_accuracy(jnp.zeros([5, 5]), labels, k)
        assert float(score) == pytest.approx(k / 5)


def test_labels_out_of_range_are_not_met():
    logits = jnp.zeros([3, 4])
    assert accuracy(logits, jnp.array([-1, 4, 255])) == 0
    assert metrics.top_k_accuracy(logits, jnp.array([-1, 4, 255]), 4) == 0


def test_a_nan_logit_makes_an_example_wrong_and_infinity_does_not():
    logits = jnp.array([[jnp.nan, 0.0], [0.0, -jnp.inf], [1.0, jnp.inf]])
    correct = accuracy(logits, jnp.array([0, 0, 1]))
    assert float(correct) == pytest.approx(2 / 3)


def test_accuracy_of_pixels():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(2, 3, 4, 5)), rng.integers(0, 5, (2, 3, 4))
    expected = np.mean(logits.argmax(-1) == labels)
    actual = accuracy(jnp.array(logits), labels)
    assert float(actual) == pytest.approx(expected)
    # A mask of whole images.
    where = np.array([False, True]).reshape(2, 1, 1)
    expected = np.mean(logits[1].argmax(-1) == labels[1])
    actual = accuracy(jnp.array(logits), labels, where=where)
    assert float(actual) == pytest.approx(expected)


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(
    st.lists(st.integers(-2, 3), min_size=SIZE, max_size=SIZE), masks, masks
)
def test_average_precision_is_that_of_scikit_learn_with_ties(scores, labels, where):
    scores = np.array(scores) / 4
    actual = average_precision(scores, labels, where=where)
    if not (labels & where).any():
        assert np.isnan(actual)
        return
    expected = sklearn.metrics.average_precision_score(labels[where], scores[where])
    assert float(actual) == pytest.approx(expected, abs=1e-6)


def test_average_precision_of_a_large_ranking():
    rng = np.random.default_rng(2)
    labels = rng.uniform(size=5000) < 0.03
    scores = np.float32(rng.normal(size=5000) + labels)
    expected = sklearn.metrics.average_precision_score(labels, scores)
    for integers in (labels, labels.astype(int), 2 * labels.astype(int) - 1):
        actual = average_precision(scores, jnp.array(integers))
        assert float(actual) == pytest.approx(expected, abs=1e-6)


def test_average_precision_at_its_limits():
    labels = jnp.arange(10) < 3
    assert average_precision(jnp.arange(10.0)[::-1], labels) == 1
    constant = average_precision(jnp.zeros(10), labels)
    assert float(constant) == pytest.approx(0.3)
    signed_zeros = jnp.where(jnp.arange(10) % 2 == 0, 0.0, -0.0)
    assert average_precision(signed_zeros, labels) == constant
    ignorant = average_precision(jnp.full(10, -jnp.inf), labels)
    assert ignorant == constant
    # The positives come last: (1/8 + 2/9 + 3/10) / 3.
    worst = average_precision(jnp.where(labels, jnp.nan, 0.0), labels)
    assert float(worst) == pytest.approx(0.3)
    diverged = average_precision(jnp.where(labels, 1.0, jnp.nan), labels)
    assert float(diverged) == pytest.approx(0.3)


# Boxes, masks, keypoints


def test_mean_box_iou_is_the_mean_of_the_overlaps():
    rng = np.random.default_rng(3)
    target = np.sort(rng.uniform(size=(2, 5, 2, 2)), -2).reshape(2, 5, 4)
    predicted = jnp.array(target + 0.05 * rng.normal(size=target.shape))
    where = rng.uniform(size=(2, 5)) < 0.6
    expected = boxes.iou(predicted, target)[where].mean()
    actual = metrics.mean_box_iou(predicted, jnp.array(target), where=where)
    assert float(actual) == pytest.approx(float(expected))


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(
    st.lists(st.integers(0, 3), min_size=SIZE, max_size=SIZE),
    st.lists(st.integers(0, 3), min_size=SIZE, max_size=SIZE),
    masks,
)
def test_mean_mask_iou_is_the_jaccard_score_of_the_classes_present(p, t, where):
    predicted, target = np.array(p, np.int32), np.array(t, np.int32)
    actual = mean_mask_iou(predicted, target, 5, where=where)
    if not where.any():
        assert np.isnan(actual)
        return
    predicted, target = predicted[where], target[where]
    expected = sklearn.metrics.jaccard_score(
        target, predicted, labels=np.union1d(predicted, target), average="macro"
    )
    assert float(actual) == pytest.approx(expected, abs=1e-6)


def test_void_pixels_do_not_count_and_impossible_predictions_are_wrong():
    target = jnp.array([[0, 0, 1], [255, -1, 1]], jnp.int32)
    predicted = jnp.array([[0, 7, -3], [0, 1, 1]], jnp.int32)
    # Class 0 meets one of two pixels and class 1 one of two; class 2 does not occur.
    assert mean_mask_iou(predicted, target, 3) == 0.5
    unsigned = mean_mask_iou(predicted.clip(0).astype(jnp.uint8), target, 3)
    # Now -3 is 0, which adds a pixel to class 0.
    assert float(unsigned) == pytest.approx((1 / 3 + 1 / 2) / 2)
    # More classes than the labels have values: 255 is a class, which is missed.
    many = mean_mask_iou(jnp.uint8([3, 1]), jnp.uint8([3, 255]), 300)
    assert float(many) == pytest.approx(1 / 3)


def test_pck_takes_one_scale_per_person():
    # Two people with three keypoints each, off by 0, 1 and 2.
    target = jnp.zeros([2, 3, 2])
    predicted = target.at[:, :, 1].set(jnp.arange(3.0))
    assert float(pck(predicted, target, 2.0)) == pytest.approx(2 / 3)
    scale = jnp.array([[2.0], [4.0]])
    assert float(pck(predicted, target, scale)) == pytest.approx(5 / 6)
    tight = pck(predicted, target, scale, threshold=0.1)
    assert float(tight) == pytest.approx(2 / 6)
    visible = jnp.array([[True, True, True], [False, False, False]])
    seen = pck(predicted, target, scale, where=visible)
    assert float(seen) == pytest.approx(2 / 3)
    for missing in (0.0, -1.0, jnp.nan):
        assert pck(target, target, jnp.array(missing)) == 0


# Regression and losses


def test_within_threshold_and_bounded_error_by_definition():
    rng = np.random.default_rng(4)
    predicted, target = rng.normal(size=(2, 6, 5))
    where = rng.uniform(size=(6, 5)) < 0.5
    scale = rng.uniform(0.5, 2, (6, 1))
    error = np.abs(predicted - target)
    actual = metrics.within_threshold(predicted, target, scale, where=where)
    assert float(actual) == pytest.approx((error <= scale)[where].mean())
    actual = metrics.bounded_error(predicted, target, scale, where=where)
    expected = (1 - np.clip(error / scale, 0, 1))[where].mean()
    assert float(actual) == pytest.approx(expected, abs=1e-6)
    assert metrics.within_threshold(target, target, 0) == 1
    assert metrics.bounded_error(predicted, target, jnp.zeros(())) == 0


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e18])
def test_correlation_is_that_of_scipy_at_any_scale_and_offset(scale, offset):
    rng = np.random.default_rng(5)
    target = (rng.normal(size=(6, 7)) + offset).astype(np.float32)
    predicted = (scale * (0.5 * target + rng.normal(size=(6, 7)))).astype(np.float32)
    where = rng.uniform(size=(6, 7)) < 0.7
    in_float64 = [x[where].astype(float) for x in (predicted, target)]
    r = np.asarray(scipy.stats.pearsonr(*in_float64))[0]
    actual = correlation(predicted, target, where=where)
    assert float(actual) == pytest.approx((r + 1) / 2, abs=1e-5)


def test_correlation_at_its_limits():
    x = jnp.linspace(-3, 5, 11)
    assert correlation(2 * x + 7, x) == pytest.approx(1, abs=1e-6)
    assert correlation(-x, x) == pytest.approx(0, abs=1e-6)
    for constant in (0.0, 0.1, 1e8):
        assert correlation(jnp.full(11, constant), x) == 0.5
        assert correlation(x, jnp.full(11, constant)) == 0.5
    assert correlation(x[:1], x[:1]) == 0.5
    assert correlation(x.at[3].set(jnp.nan), x) == 0


def test_exp_loss_of_cross_entropies_is_the_mean_true_probability():
    probabilities = jnp.array([0.1, 0.5, 0.9])
    actual = metrics.exp_loss(-jnp.log(probabilities))
    assert float(actual) == pytest.approx(0.5, abs=1e-6)
    assert float(metrics.exp_loss(3.0, scale=3)) == pytest.approx(np.exp(-1))
    assert metrics.exp_loss(-1.0) == 1
    assert metrics.exp_loss(jnp.inf) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: metrics.accuracy(x, x), "same leading axes"),
        (lambda x: metrics.accuracy(x, x[:, 0]), "argmax"),
        (
            lambda x: metrics.top_k_accuracy(x, jnp.ones(6, int), 4),
            "at most the number",
        ),
        (lambda x: metrics.top_k_accuracy(x, jnp.ones(6, int), 0), "k must be"),
        (lambda x: metrics.average_precision(x, x > 0), "jax.vmap"),
        (lambda x: metrics.average_precision(x[0], x[0]), "integers"),
        (lambda x: metrics.mean_box_iou(x, x), "predicted must have shape"),
        (lambda x: metrics.mean_mask_iou(x, x, 3), "argmax"),
        (lambda x: metrics.mean_mask_iou(x > 0, x > 0, 0), "num_classes must be"),
        (lambda x: metrics.pck(x, x, 1.0), "predicted must have shape"),
        (lambda x: metrics.pck(x[:, :2], x[:, :2], 0.0), "scale must be"),
        (lambda x: metrics.pck(x[:, :2], x[:, :2], 1, threshold=-1), "threshold must"),
        (lambda x: metrics.within_threshold(x, x, -1), "threshold must be"),
        (lambda x: metrics.bounded_error(x, x[:, :1], 1.0), "same shape"),
        (lambda x: metrics.bounded_error(x, x, 0), "scale must be"),
        (lambda x: metrics.correlation(x[0], x), "same shape"),
        (lambda x: metrics.exp_loss(x, scale=-1.0), "scale must be"),
        (lambda x: metrics.exp_loss(x, where=jnp.ones(3)), "where must be a scalar"),
        (lambda x: metrics.exp_loss(x, where=jnp.ones([6, 2])), "where must be"),
        (lambda x: metrics.bounded_error(x, x, x[0]), "scale must be a scalar or have"),
        (lambda x: metrics.pck(x[:, :2], x[:, :2], x[:, :1]), "Add the missing axes"),
    ],
)
def test_wrong_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones([6, 3]))


OFFSET = 2**27  # neighbours of it are one number in float32


def test_large_integers_keep_their_differences() -> None:
    small, other = jnp.arange(8), jnp.arange(8)[::-1] * 2
    large, far = small + OFFSET, other + OFFSET
    np.testing.assert_allclose(
        metrics.correlation(large, far), metrics.correlation(small, other), rtol=1e-6
    )
    for function in (
        lambda a, b: metrics.within_threshold(a, b, 2.5),
        lambda a, b: metrics.bounded_error(a, b, 20.0),
        lambda a, b: metrics.pck(a.reshape(4, 2), b.reshape(4, 2), 12.0),
        lambda a, b: metrics.mean_box_iou(a.reshape(2, 4), a.reshape(2, 4) + 1),
        lambda a, b: metrics.average_precision(a, jnp.arange(8) % 3 > 0),
    ):
        expected = function(small, other)
        assert 0 < expected < 1
        np.testing.assert_allclose(function(large, far), expected, rtol=1e-6)
    # One apart, which float32 does not see: no hit at half.
    assert (
        metrics.within_threshold(jnp.array([2**24 + 1]), jnp.array([2**24]), 0.5) == 0
    )


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint32"])
def test_labels_of_any_width_count_alike(dtype: str) -> None:
    rng = np.random.default_rng(3)
    logits = jnp.asarray(rng.normal(size=(400, 120)), jnp.float32)
    labels = rng.integers(0, 120, 400)
    narrow = jnp.asarray(labels, dtype)
    wide = jnp.asarray(labels)
    assert metrics.accuracy(logits, narrow) == metrics.accuracy(logits, wide)
    found = metrics.top_k_accuracy(logits, narrow, 60)
    assert found == metrics.top_k_accuracy(logits, wide, 60)
    guessed = jnp.asarray(rng.integers(0, 120, 400))
    found = metrics.mean_mask_iou(guessed.astype(dtype), narrow, 120)
    assert found == metrics.mean_mask_iou(guessed, wide, 120)


def test_labels_of_64_bits_do_not_wrap_to_a_class() -> None:
    with jax.enable_x64(True):
        for label in (2**32, np.iinfo(np.int64).min):
            outside = jnp.array([label, 1], jnp.int64)
            # A target that is no class is void, a prediction that is none is wrong.
            assert metrics.mean_mask_iou(jnp.array([1, 1]), outside, 2) == 1
            assert metrics.mean_mask_iou(outside, jnp.array([0, 1]), 2) == 0.5
            assert metrics.accuracy(jnp.eye(2), outside) == 0.5
