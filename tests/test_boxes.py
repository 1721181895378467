import itertools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax import boxes
from tests.toys import assert_near

# Boxes built from these are ordinary, degenerate, inverted, tiny or huge. The last two
# are on either side of the length that counts as zero.
COORDINATES = [0.0, 1.0, -2.5, 1e6, -1e15, 1e-6, 1e-17, 1e-19]
HARD_PAIRS = st.lists(st.sampled_from(COORDINATES), min_size=8, max_size=8)

jitted_iou = jax.jit(jax.value_and_grad(boxes.iou, argnums=(0, 1)))
jitted_encode = jax.jit(boxes.encode)
jitted_decode = jax.jit(boxes.decode)
jitted_giou = jax.jit(jax.value_and_grad(boxes.giou, argnums=(0, 1)))


def box(*corners):
    return jnp.array(corners, jnp.float32)


def iou_by_definition(a, b):
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    intersection = np.prod(np.maximum(sides, 0))
    areas = [np.prod(np.maximum(c[2:] - c[:2], 0)) for c in (a, b)]
    union = sum(areas) - intersection
    return intersection / union if union > 0 else 0.0


def giou_by_definition(a, b):
    corners = np.stack([a[:2], a[2:], b[:2], b[2:]])
    enclosure = np.prod(corners.max(0) - corners.min(0))
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    intersection = np.prod(np.maximum(sides, 0))
    areas = [np.prod(np.maximum(c[2:] - c[:2], 0)) for c in (a, b)]
    rest = enclosure - sum(areas) + intersection
    penalty = rest / enclosure if enclosure > 0 else 0.0
    return iou_by_definition(a, b) - penalty


def draw_boxes(seed, size):
    """Overlapping boxes in the unit square."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 0.6, (size, 2))
    return np.concatenate([corners, corners + rng.uniform(0.1, 0.4, (size, 2))], -1)


def test_iou_and_giou_follow_the_definition():
    a, b = draw_boxes(0, 60), draw_boxes(1, 60)
    # Some are inverted along one or both axes.
    a[:5] = a[:5, [2, 1, 0, 3]]
    b[3:8] = b[3:8, [2, 3, 0, 1]]
    for function, definition in [
        (boxes.iou, iou_by_definition),
        (boxes.giou, giou_by_definition),
    ]:
        expected = [[definition(x, y) for y in b] for x in a]
        actual = function(jnp.array(a)[:, None], jnp.array(b))
        np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_giou_of_the_documentation_of_tensorflow_addons():
    # tfa.losses.GIoULoss gives a mean loss of 1.5041667 for these boxes.
    a = jnp.array([[4.0, 3.0, 7.0, 5.0], [5.0, 6.0, 10.0, 7.0]])
    b = jnp.array([[3.0, 4.0, 6.0, 8.0], [14.0, 14.0, 15.0, 15.0]])
    assert float(jnp.mean(1 - boxes.giou(a, b))) == pytest.approx(1.5041667, abs=1e-6)


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(HARD_PAIRS)
def test_overlaps_of_hard_boxes_are_finite_bounded_and_symmetric(corners):
    a, b = box(*corners[:4]), box(*corners[4:])
    for function, low in [(jitted_iou, 0), (jitted_giou, -1)]:
        value, gradients = function(a, b)
        assert low - 1e-6 <= value <= 1 + 1e-6
        assert np.isfinite(gradients).all()
        np.testing.assert_allclose(value, function(b, a)[0], atol=1e-6)
    assert jitted_giou(a, b)[0] <= jitted_iou(a, b)[0] + 1e-6


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1.0, 1e18])
def test_overlaps_do_not_depend_on_the_scale(scale):
    a, b = jnp.float32(draw_boxes(2, 30)), jnp.float32(draw_boxes(3, 30))
    for function in (boxes.iou, boxes.giou):
        graph = jax.jit(jax.vmap(jax.value_and_grad(function)))
        value, slope = graph(a, b)
        scaled_value, scaled_slope = graph(a * scale, b * scale)
        np.testing.assert_allclose(scaled_value, value, atol=1e-5)
        np.testing.assert_allclose(scaled_slope * scale, slope, atol=2e-4)


def test_overlaps_of_boxes_without_area():
    point, other = box(1, 1, 1, 1), box(2, 2, 2, 2)
    line, inverted = box(0, 1, 4, 1), box(3, 3, 1, 1)
    for degenerate in (point, line, inverted):
        assert boxes.iou(degenerate, degenerate) == 0
        assert boxes.iou(degenerate, box(0, 0, 4, 4)) == 0
        # The box is its own enclosure, with nothing in it but the degenerate one.
        assert boxes.giou(degenerate, box(0, 0, 4, 4)) == 0
    assert boxes.giou(point, point) == 0
    assert boxes.giou(point, other) == -1
    assert boxes.iou(box(0, 0, 1, 1), box(0, 0, 1, 1)) == 1
    assert boxes.giou(box(0, 0, 1, 1), box(0, 0, 1, 1)) == 1


def test_giou_has_a_gradient_where_boxes_are_apart():
    a, b = box(0, 0, 1, 1), box(3, 0, 4, 1)
    # With x2 as the only unknown, GIoU = (x2 + 1) / 4 - 1 up to x2 = 3.
    np.testing.assert_allclose(jax.grad(boxes.giou)(a, b)[2], 1 / 4, rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(boxes.iou)(a, b), 0)


def test_nan_in_a_box_stays_visible():
    assert jnp.isnan(boxes.iou(box(0, 0, jnp.nan, 1), box(0, 0, 1, 1)))
    assert jnp.isnan(boxes.giou(box(0, 0, jnp.nan, 1), box(0, 0, 1, 1)))


def test_half_precision_and_integers_are_computed_in_float32():
    a = jnp.array([0, 0, 300, 300])
    for dtype in (jnp.int32, jnp.bfloat16, jnp.float16):
        assert boxes.iou(a.astype(dtype), a.astype(dtype)).dtype == jnp.float32
    assert boxes.iou(a.astype(jnp.float16), a.astype(jnp.float16)) == 1


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(
    st.lists(st.floats(-100, 100, width=32), min_size=8, max_size=8),
)
def test_decode_inverts_encode(corners):
    target, anchor = box(*corners[:4]), box(*corners[4:])
    offsets = jitted_encode(target, anchor)
    assert np.isfinite(offsets).all()
    np.testing.assert_allclose(jitted_decode(offsets, anchor), target, atol=1e-4)


def test_encode_measures_each_corner_in_sizes_of_the_anchor():
    anchors = jnp.float32(draw_boxes(4, 9))
    targets = jnp.float32(draw_boxes(5, 9))
    width, height = anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]
    offsets = boxes.encode(targets, anchors)
    for axis, size in enumerate([width, height, width, height]):
        expected = (targets[:, axis] - anchors[:, axis]) / size
        np.testing.assert_allclose(offsets[:, axis], expected, rtol=1e-5)
    np.testing.assert_array_equal(boxes.encode(anchors, anchors), 0)
    np.testing.assert_array_equal(boxes.decode(jnp.zeros([9, 4]), anchors), anchors)


@pytest.mark.parametrize("anchor", [(2, 2, 2, 2), (5, 5, 1, 1), (0, 0, 1e-14, 1)])
def test_degenerate_anchors_are_finite(anchor):
    target = box(1, 2, 3, 4)
    for function in (boxes.encode, boxes.decode):
        gradients = jax.jacrev(function, argnums=(0, 1))(target, box(*anchor))
        assert np.isfinite(gradients).all()
    offsets = boxes.encode(target, box(*anchor))
    np.testing.assert_allclose(boxes.decode(offsets, box(*anchor)), target, atol=1e-5)


def test_kl_loss_is_the_gaussian_likelihood_of_small_errors():
    errors = jnp.linspace(-1, 1, 24).reshape(6, 4)
    log_variances = jnp.linspace(-3, 3, 24).reshape(6, 4)
    nll = -jax.scipy.stats.norm.logpdf(errors, scale=jnp.exp(log_variances / 2))
    actual = boxes.kl_loss(errors, jnp.zeros(4), log_variances)
    np.testing.assert_allclose(actual, nll - 0.5 * math.log(2 * math.pi), atol=2e-5)


def test_kl_loss_at_unit_variance_is_the_huber_loss():
    errors = jnp.linspace(-4, 4, 32).reshape(8, 4)
    actual = boxes.kl_loss(2 + errors, jnp.full(4, 2.0), jnp.zeros(4))
    np.testing.assert_allclose(actual, optax.losses.huber_loss(errors), atol=1e-6)


def test_kl_loss_is_smooth_where_its_pieces_meet():
    def loss(error):
        value = boxes.kl_loss(jnp.full(4, error), jnp.zeros(4), jnp.full(4, 0.7))
        return value[0]

    below, at, above = np.nextafter(np.float32(1), 0), 1.0, np.float32(1 + 1e-6)
    for function, expected in [
        (loss, 0.5 * math.exp(-0.7) + 0.35),
        (jax.grad(loss), math.exp(-0.7)),
    ]:
        for error in (below, at, above):
            assert float(function(error)) == pytest.approx(expected, rel=1e-5)


def test_kl_loss_is_smallest_at_twice_the_huber_loss():
    # d/dalpha (exp(-alpha) rho + alpha / 2) = 0 gives exp(alpha) = 2 rho.
    errors = jnp.array([0.1, 0.9, 1.5, 30.0])
    best = jnp.log(2 * optax.losses.huber_loss(errors))
    slope = jax.grad(lambda alpha: jnp.sum(boxes.kl_loss(errors, 0 * errors, alpha)))
    np.testing.assert_allclose(slope(best), 0, atol=1e-5)
    assert (slope(best - 0.1) < 0).all()
    assert (slope(best + 0.1) > 0).all()


def test_kl_loss_brings_the_log_variance_back_into_its_interval():
    def slope(alpha, error):
        arguments = jnp.full(4, error), jnp.zeros(4)
        return jax.grad(lambda alpha: jnp.sum(boxes.kl_loss(*arguments, alpha)))(alpha)

    for error, far in itertools.product([0.0, 1e-3, 1.0, 1e8], [10.1, 500.0, 1e20]):
        np.testing.assert_allclose(slope(jnp.full(4, far), error), 0.5)
        np.testing.assert_allclose(slope(jnp.full(4, -far), error), -0.5)


def test_kl_loss_clamps_only_outside_of_the_interval():
    error, zeros = jnp.full(4, 2.0), jnp.zeros(4)
    alpha = jnp.array([-3.0, -1.0, 1.0, 5.0])
    actual = boxes.kl_loss(error, zeros, alpha, log_variance_min=-2, log_variance_max=4)
    exact = jnp.exp(-alpha) * 1.5 + alpha / 2
    np.testing.assert_allclose(actual[1:3], exact[1:3], rtol=1e-6)
    np.testing.assert_allclose(actual[0], math.exp(2) * 1.5 - 1 + 0.5, rtol=1e-6)
    np.testing.assert_allclose(actual[3], math.exp(-4) * 1.5 + 2 + 0.5, rtol=1e-6)


def test_kl_loss_is_finite_everywhere():
    values = jnp.array([0.0, 1.0, -1.0, 1e-20, 1e30, -1e30])
    alphas = jnp.array([0.0, -10.0, 10.0, -1e30, 1e30])
    grid = jnp.meshgrid(values, values, alphas)
    arguments = [jnp.repeat(x.reshape(-1, 1), 4, axis=1) for x in grid]
    assert jnp.isfinite(boxes.kl_loss(*arguments)).all()

    @jax.jit
    def slope(*arguments):
        return jax.vjp(boxes.kl_loss, *arguments)[1](jnp.full([180, 4], 1e-6))

    for gradient in slope(*arguments):
        assert jnp.isfinite(gradient).all()


def test_log_variance_head_starts_as_smooth_l1():
    weights = boxes.log_variance_init()(jax.random.key(0), (1024, 4), jnp.float32)
    assert weights.shape == (1024, 4)
    assert float(jnp.std(weights)) == pytest.approx(1e-4, rel=0.1)
    features = jax.random.normal(jax.random.key(1), (8, 1024))
    errors = jax.random.normal(jax.random.key(2), (8, 4))
    actual = boxes.kl_loss(errors, 0 * errors, features @ weights)
    np.testing.assert_allclose(actual, optax.losses.huber_loss(errors), atol=0.05)


voting = jax.jit(boxes.variance_voting, static_argnames="max_outputs")


def voting_by_algorithm(
    candidates,
    scores,
    variances,
    mask,
    *,
    sigma_t=0.02,
    iou_threshold=0.5,
    soft=False,
    soft_sigma=0.5,
    score_threshold=0.001,
    max_outputs=None,
    voters="all",
):
    """Algorithm 1 with lists, in float64."""
    scores = np.array(scores, float)
    everyone = [i for i in range(len(scores)) if mask[i]]
    remaining = [i for i in everyone if scores[i] >= score_threshold]
    kept = []
    while remaining and len(kept) < (max_outputs or len(scores)):
        best = max(remaining, key=lambda i: scores[i])
        overlap = [iou_by_definition(candidates[best], other) for other in candidates]
        electorate = everyone if voters == "all" else remaining
        numerator, denominator = np.zeros(4), np.zeros(4)
        for i in electorate:
            if i == best or overlap[i] > 0:
                p = 1 if i == best else math.exp(-((1 - overlap[i]) ** 2) / sigma_t)
                numerator += p * candidates[i] / variances[i]
                denominator += p / variances[i]
        kept.append((numerator / denominator, scores[best], best))
        remaining.remove(best)
        if soft:
            for i in remaining:
                scores[i] *= math.exp(-(overlap[i] ** 2) / soft_sigma)
            remaining = [i for i in remaining if scores[i] >= score_threshold]
        else:
            remaining = [i for i in remaining if overlap[i] <= iou_threshold]
    return kept


def draw_detections(seed, size=16):
    rng = np.random.default_rng(seed)
    scores = rng.permutation(size) / size
    return draw_boxes(seed, size), scores, rng.uniform(0.1, 2, (size, 4))


def assert_voted(voted, expected):
    count = len(expected)
    np.testing.assert_array_equal(voted.valid, np.arange(len(voted.valid)) < count)
    for place, (corners, score, index) in enumerate(expected):
        assert voted.indices[place] == index
        np.testing.assert_allclose(voted.boxes[place], corners, atol=2e-5)
        np.testing.assert_allclose(voted.scores[place], score, rtol=1e-4)
    np.testing.assert_array_equal(voted.boxes[count:], 0)
    np.testing.assert_array_equal(voted.scores[count:], 0)
    np.testing.assert_array_equal(voted.indices[count:], -1)


@pytest.mark.parametrize("voters", ["all", "remaining"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sigma_t": 0.2, "iou_threshold": 0.23, "max_outputs": 5},
        {"soft": True, "score_threshold": 0.2, "sigma_t": 0.1},
        {"soft": True, "soft_sigma": 0.11, "max_outputs": 20},
    ],
    ids=str,
)
def test_variance_voting_follows_the_algorithm(options, voters):
    @jax.jit
    @jax.vmap
    def vote(detection, mask):
        return boxes.variance_voting(*detection, mask=mask, voters=voters, **options)

    detections = [draw_detections(seed) for seed in range(12)]
    masks = np.random.default_rng(0).uniform(size=(12, 16)) < 0.8
    masks[0] = True
    masks[1] = False
    stacked = [np.stack(part) for part in zip(*detections, strict=True)]
    together = jax.tree.map(np.asarray, vote(stacked, masks))
    for image, (detection, mask) in enumerate(zip(detections, masks, strict=True)):
        expected = voting_by_algorithm(*detection, mask, voters=voters, **options)
        assert_voted(jax.tree.map(lambda x, i=image: x[i], together), expected)


def test_voting_is_the_same_with_and_without_jit():
    detection = [jnp.array(part) for part in draw_detections(5)]
    for x, y in zip(boxes.variance_voting(*detection), voting(*detection), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)


def test_masked_boxes_have_no_influence():
    candidates, scores, variances = map(jnp.array, draw_detections(3))
    mask = jnp.arange(16) % 3 > 0
    expected = voting(candidates, scores, variances, mask=mask)
    broken = [jnp.where(mask[:, None], x, jnp.nan) for x in (candidates, variances)]
    for bad in (broken[0], candidates):
        actual = voting(bad, jnp.where(mask, scores, 2), broken[1], mask=mask)
        for x, y in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(x, y)
    # Boxes that are not finite need no mask.
    actual = voting(broken[0], scores, variances)
    np.testing.assert_array_equal(actual.boxes, expected.boxes)


def test_agreeing_boxes_stay_where_they_are():
    same = jnp.tile(box(0.1, 0.2, 0.7, 0.9), (5, 1))
    scores = jnp.linspace(0.9, 0.5, 5)
    voted = voting(same, scores, jnp.full([5, 4], 0.3))
    np.testing.assert_array_equal(voted.boxes[0], same[0])
    assert voted.valid.sum() == 1


def test_a_narrow_vote_leaves_plain_suppression():
    candidates, scores, variances = map(jnp.array, draw_detections(4))
    voted = voting(candidates, scores, variances, sigma_t=1e-12)
    kept = voted.valid
    np.testing.assert_array_equal(voted.boxes[kept], candidates[voted.indices[kept]])


@pytest.mark.parametrize("variance", [1e-12, 0.0])
def test_a_certain_neighbour_draws_the_box_to_itself(variance):
    candidates = jnp.array([[0.0, 0.0, 4.0, 1.0], [0.5, 0.0, 4.5, 1.0]])
    variances = jnp.ones([2, 4]).at[1].set(variance)
    voted = voting(candidates, jnp.array([0.9, 0.8]), variances)
    np.testing.assert_allclose(voted.boxes[0], candidates[1], atol=1e-5)
    assert float(voted.scores[0]) == pytest.approx(0.9)


@pytest.mark.parametrize("variance", [jnp.nan, -1.0, jnp.inf])
def test_an_unknown_variance_moves_nothing(variance):
    candidates = jnp.array([[0.0, 0.0, 4.0, 1.0], [0.5, 0.0, 4.5, 1.0]])
    scores = jnp.array([0.9, 0.8])
    unknown = jnp.full(4, variance)
    voted = voting(candidates, scores, jnp.ones([2, 4]).at[1].set(unknown))
    np.testing.assert_array_equal(voted.boxes[0], candidates[0])
    alone = voting(candidates[:1], scores[:1], unknown[None])
    np.testing.assert_array_equal(alone.boxes[0], candidates[0])


def test_voting_without_boxes():
    nothing = jnp.zeros([0, 4]), jnp.zeros(0), jnp.zeros([0, 4])
    assert voting(*nothing).boxes.shape == (0, 4)
    voted = voting(*nothing, max_outputs=3)
    assert_voted(voted, [])
    assert voted.boxes.shape == (3, 4)


def test_boxes_without_area_are_kept_as_they_are():
    candidates = jnp.array([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 4.0, 4.0], [3, 3, 1, 1]])
    voted = voting(candidates, jnp.array([3.0, 2, 1]), jnp.ones([3, 4]))
    np.testing.assert_array_equal(voted.boxes, candidates)
    assert voted.valid.all()


def test_equal_scores_are_taken_in_order():
    candidates = jnp.array([[i, 0.0, i + 0.5, 1.0] for i in range(4)])
    voted = voting(candidates, jnp.ones(4), jnp.ones([4, 4]))
    np.testing.assert_array_equal(voted.indices, [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma_t": 0.0}, "sigma_t must be"),
        ({"sigma_t": float("nan")}, "sigma_t must be"),
        ({"iou_threshold": 1.5}, "iou_threshold must be"),
        ({"soft_sigma": -1}, "soft_sigma must be"),
        ({"score_threshold": -0.1}, "score_threshold must be"),
        ({"max_outputs": 0}, "max_outputs must be"),
        ({"voters": "some"}, "voters must be"),
        ({"mask": jnp.ones(2, bool)}, "jax.vmap"),
    ],
)
def test_voting_checks_its_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        boxes.variance_voting(
            jnp.zeros([3, 4]), jnp.ones(3), jnp.ones([3, 4]), **options
        )


def test_wrong_shapes_and_numbers_raise():
    with pytest.raises(ValueError, match=r"boxes_a must have shape \[\.\.\., 4\]"):
        boxes.iou(jnp.zeros(3), jnp.zeros(4))
    with pytest.raises(ValueError, match="anchors must have shape"):
        boxes.encode(jnp.zeros(4), jnp.zeros([4, 1]))
    with pytest.raises(ValueError, match="log_variance must have shape"):
        boxes.kl_loss(jnp.zeros(4), jnp.zeros(4), 0.0)
    for least in (1, np.float32(1)):
        with pytest.raises(ValueError, match="log_variance_max must be"):
            boxes.kl_loss(
                jnp.zeros(4),
                jnp.zeros(4),
                jnp.zeros(4),
                log_variance_min=least,
                log_variance_max=0,
            )
    with pytest.raises(ValueError, match="stddev must be"):
        boxes.log_variance_init(-1.0)
    with pytest.raises(ValueError, match=r"jax\.vmap"):
        boxes.variance_voting(jnp.zeros([2, 3, 4]), jnp.ones(3), jnp.ones([3, 4]))


def test_bounded_iou_loss_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 10, (200, 2))
    target = np.concatenate([low, low + rng.uniform(1, 5, (200, 2))], axis=1)
    predicted = target + rng.normal(size=(200, 4))
    beta, eps = 0.2, 1e-3
    expected = np.zeros((200, 4))
    for axis in range(2):
        w = np.maximum(predicted[:, axis + 2] - predicted[:, axis], 0)
        w_t = target[:, axis + 2] - target[:, axis]
        d = np.abs(predicted[:, [axis, axis + 2]].mean(1)
                   - target[:, [axis, axis + 2]].mean(1))  # fmt: skip
        center = 1 - np.maximum((w_t - 2 * d) / (w_t + 2 * d + eps), 0)
        size = 1 - np.minimum(w_t / (w + eps), w / (w_t + eps))
        for column, cost in ((axis, center), (axis + 2, size)):
            square = cost**2 / (2 * beta)
            expected[:, column] = np.where(cost < beta, square, cost - beta / 2)
    found = boxes.bounded_iou_loss(jnp.array(predicted), jnp.array(target))
    assert_near(found, expected, rtol=1e-4)


def test_the_grade_of_a_size_is_the_iou_of_boxes_that_differ_in_it() -> None:
    target = jnp.array([0.0, 0.0, 4.0, 3.0])
    for width in (1.0, 2.5, 4.0, 7.0):
        box = jnp.array([2 - width / 2, 0.0, 2 + width / 2, 3.0])
        # Linear beyond a tiny beta, the loss gives the grade back.
        loss = boxes.bounded_iou_loss(box, target, beta=1e-6, eps=1e-6)
        np.testing.assert_allclose(1 - loss[2], boxes.iou(box, target), rtol=1e-5)


@pytest.mark.parametrize("box", [[1.0, 1.0, 1.0, 1.0], [3.0, 3.0, 1.0, 1.0]])
def test_bounded_iou_loss_of_degenerate_boxes_is_finite(box: list[float]) -> None:
    def total(prediction: jax.Array, target: jax.Array) -> jax.Array:
        return boxes.bounded_iou_loss(prediction, target).sum()

    other = jnp.array([0.0, 0.0, 2.0, 2.0])
    for pair in ((jnp.array(box), other), (other, jnp.array(box))):
        value, slopes = jax.value_and_grad(total, (0, 1))(*pair)
        assert np.isfinite(value)
        assert np.isfinite(slopes[0]).all()
        assert not slopes[1].any()
    same = boxes.bounded_iou_loss(other, other)
    np.testing.assert_allclose(same, 0, atol=1e-6)
    with pytest.raises(ValueError, match="beta must be"):
        boxes.bounded_iou_loss(other, other, beta=0.0)


def test_integer_corners_far_from_the_origin_keep_their_sides() -> None:
    near = jnp.array([[0, 0, 10, 5], [2, 1, 9, 8]])
    far = near + 2**27
    for function in (boxes.iou, boxes.giou, boxes.encode):
        np.testing.assert_array_equal(function(*far), function(*near))
    assert boxes.iou(far[0], far[0]) == 1
    with jax.enable_x64(True):
        far = near.astype(jnp.int64) + 2**60
        for function in (boxes.iou, boxes.giou, boxes.encode):
            expected = function(*near)
            np.testing.assert_allclose(function(*far), expected, rtol=1e-6)
