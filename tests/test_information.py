import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats
from scipy.spatial.distance import jensenshannon

from dtp_jax import gumbel, information

EPS = float(np.finfo(np.float32).eps)
# Sums of at most seven float32 terms below one in size, each of a few roundings.
ATOL = 20 * EPS

ONE = ["entropy", "entropy_from_logits"]
PAIRS = ["cross_entropy", "kl_divergence", "js_divergence"]
ALL = [*ONE, *PAIRS, *(f"{name}_from_logits" for name in PAIRS)]


def random_pair(seed=0, num_rows=5, size=7):
    """Two rows of distributions in float64, which share some zeros."""
    p, q = np.random.default_rng(seed).dirichlet(np.ones(size), (2, num_rows))
    p[:, 0] = q[:, 0] = 0  # Zero in both,
    p[:, 1] = 0  # and in the truth only.
    return p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)


def to_logits(p):
    """Logits of distributions, shifted: only their differences matter."""
    with np.errstate(divide="ignore"):
        return np.log(p) + 1.5


def arguments(name, p, q):
    pair = (p,) if name in ONE else (p, q)
    return tuple(map(to_logits, pair)) if name.endswith("logits") else pair


def expected_value(name, p, q, base=None):
    name = name.removesuffix("_from_logits")
    if name == "js_divergence":
        return jensenshannon(p.T, q.T, base=base) ** 2
    entropy = stats.entropy(p.T, base=base)
    if name == "entropy":
        return entropy
    divergence = stats.entropy(p.T, q.T, base=base)
    return divergence if name == "kl_divergence" else entropy + divergence


def expected_derivatives(name, p, q):
    """Derivatives by the formulas written out, zero where an argument is zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        log_p, log_q, log_m = np.log(p), np.log(q), np.log((p + q) / 2)
        in_p, in_q = {
            "entropy": (-log_p - 1, None),
            "cross_entropy": (-log_q, -p / q),
            "kl_divergence": (log_p - log_q + 1, -p / q),
            "js_divergence": ((log_p - log_m) / 2, (log_q - log_m) / 2),
        }[name.removesuffix("_from_logits")]
    derivatives = []
    for x, in_x in ((p, in_p), (q, in_q)):
        if in_x is not None and name.endswith("logits"):
            # Through a softmax: x_i (1[i = j] - x_j).
            in_x = x * np.where(x > 0, in_x, 0)
            in_x = in_x - x * in_x.sum(-1, keepdims=True)
        derivatives.append(in_x)
    return [d for d in derivatives if d is not None]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("base", [None, 2])
def test_values_match_scipy_with_zeros(name, base):
    p, q = random_pair()
    function = jax.jit(functools.partial(getattr(information, name), base=base))
    expected = expected_value(name, p, q, base=base)
    actual = function(*arguments(name, p, q))
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=ATOL, atol=ATOL)


@pytest.mark.parametrize("name", ALL)
def test_derivatives_match_the_formulas(name):
    p, q = random_pair()
    function = getattr(information, name)
    inputs = arguments(name, p, q)
    gradient = jax.grad(lambda *xs: function(*xs).sum(), range(len(inputs)))
    for x, actual, expected in zip(
        (p, q),
        jax.jit(gradient)(*inputs),
        expected_derivatives(name, p, q),
        strict=False,
    ):
        assert np.isfinite(actual).all()
        np.testing.assert_allclose(
            np.where(x > 0, actual, 0), np.where(x > 0, expected, 0), 1e-5, ATOL
        )
        if name.endswith("logits"):
            np.testing.assert_array_equal(actual[x == 0], 0)


def test_derivatives_at_zero_probabilities():
    p, q = np.array([0.0, 0.0, 1.0]), np.array([0.0, 0.5, 0.5])
    np.testing.assert_allclose(jax.jit(jax.grad(information.entropy))(p), [0, 0, -1])
    cross_entropy, kl_divergence, js_divergence = (
        jax.jit(jax.grad(getattr(information, name), (0, 1)))(p, q) for name in PAIRS
    )
    # Cross-entropy is linear in p.
    np.testing.assert_allclose(cross_entropy[0], [0, math.log(2), math.log(2)], EPS)
    np.testing.assert_allclose(kl_divergence[0], [0, 0, 1 + math.log(2)], 2 * EPS)
    for _, in_q in (cross_entropy, kl_divergence):
        np.testing.assert_allclose(in_q, [0, 0, -2])
    assert np.isfinite(js_divergence).all()
    assert jax.grad(information.self_information)(0.0) == 0


@pytest.mark.parametrize("name", ["cross_entropy", "kl_divergence"])
@pytest.mark.parametrize("suffix", ["", "_from_logits"])
def test_what_the_model_excludes_is_infinitely_wrong(name, suffix):
    p, q = np.array([0.5, 0.5, 0.0]), np.array([1.0, 0.0, 0.0])
    function = getattr(information, name + suffix)
    value, derivatives = jax.jit(jax.value_and_grad(function, (0, 1)))(
        *arguments(name + suffix, p, q)
    )
    assert value == jnp.inf
    assert np.isfinite(derivatives).all()


@pytest.mark.parametrize("name", ALL)
def test_masked_entries_have_no_influence(name):
    p, q = random_pair(num_rows=2)
    inputs = arguments(name, p, q)
    mask = np.array([[True] * 7 + [False] * 2, [True] * 6 + [False] * 3])
    # The second row loses an entry: what is left is a smaller softmax, but is not
    # normalized if it is probabilities.
    kept = [
        np.where(mask[:, :7], x, -np.inf if "logits" in name else 0) for x in inputs
    ]
    function = getattr(information, name)
    expected = jax.jit(function)(*kept)

    @jax.jit
    def value_and_grad(*xs):
        def total(*xs):
            values = function(*xs, where=mask)
            return values.sum(), values

        return jax.grad(total, range(len(xs)), has_aux=True)(*xs)

    for junk in (np.nan, np.inf, 3.0):
        padded = [np.pad(x, ((0, 0), (0, 2))) for x in inputs]
        for x in padded:
            x[~mask] = junk
        derivatives, actual = value_and_grad(*padded)
        np.testing.assert_allclose(actual, expected, rtol=ATOL, atol=ATOL)
        for derivative in derivatives:
            assert np.isfinite(derivative).all()
            np.testing.assert_array_equal(derivative[~mask], 0)


@pytest.mark.parametrize("name", ALL)
def test_several_axes_are_one_that_is_folded(name):
    p, q = (x.reshape(3, 14) / 2 for x in random_pair(num_rows=6))
    function = getattr(information, name)
    folded = [x.reshape(3, 2, 7).swapaxes(0, 1) for x in arguments(name, p, q)]
    actual = jax.jit(functools.partial(function, axis=(0, -1)))(*folded)
    np.testing.assert_allclose(actual, expected_value(name, p, q), ATOL, ATOL)

    p, q = p.ravel() / 3, q.ravel() / 3
    folded = [x.reshape(3, 14) for x in arguments(name, p, q)]
    actual = jax.jit(functools.partial(function, axis=None))(*folded)
    np.testing.assert_allclose(actual, expected_value(name, p, q), ATOL, ATOL)


@pytest.mark.parametrize("name", ALL)
def test_jit_vmap_and_broadcasting(name):
    p, q = random_pair()
    inputs = [np.asarray(x, np.float32) for x in arguments(name, p, q)]
    function = getattr(information, name)
    expected = function(*inputs)
    assert expected.shape == (5,)
    for transformed in (function, jax.vmap(function)):
        actual = jax.jit(transformed)(*inputs)
        np.testing.assert_allclose(actual, expected, rtol=ATOL, atol=ATOL)
    if name not in ONE:
        actual = jax.jit(function)(inputs[0][0], inputs[1])
        expected = jax.jit(function)(np.tile(inputs[0][0], (5, 1)), inputs[1])
        np.testing.assert_allclose(actual, expected, rtol=ATOL, atol=ATOL)


@pytest.mark.parametrize("name", [*ALL, "self_information"])
def test_base(name):
    p, q = random_pair(num_rows=1)
    function = functools.partial(getattr(information, name), *arguments(name, p, q)[:2])
    if name == "self_information":
        function = functools.partial(information.self_information, p)
    for base in (0, -2.0, math.nan, 1, 1.0, np.float32(1)):
        with pytest.raises(ValueError, match="base must"):
            function(base=base)
    nats = function()
    # A base may be traced, and is then not checked.
    in_ten = jax.jit(lambda base: function(base=base))(10.0)
    np.testing.assert_allclose(in_ten, nats / math.log(10), rtol=4 * EPS)
    np.testing.assert_allclose(function(base=10), nats / math.log(10), rtol=4 * EPS)


def test_self_information():
    assert information.self_information(1.0) == 0
    assert information.self_information(0.0) == jnp.inf
    # Independent events: their information adds up.
    p, q = np.random.default_rng(0).uniform(size=(2, 9))
    together = information.self_information(p * q)
    apart = information.self_information(p) + information.self_information(q)
    np.testing.assert_allclose(together, apart, rtol=4 * EPS, atol=4 * EPS)
    assert information.self_information(1e-30) == pytest.approx(30 * math.log(10))


def test_entropy_is_expected_self_information():
    p = random_pair()[0] + 1e-3
    expected = (p * information.self_information(p)).sum(-1)
    np.testing.assert_allclose(information.entropy(p), expected, rtol=ATOL)


def test_entropies_of_independent_pairs_add_up():
    p, q = random_pair()
    joint = p[:, :, None] * q[:, None, :]
    actual = information.entropy(joint, axis=(1, 2))
    expected = information.entropy(p) + information.entropy(q)
    # Up to 49 terms.
    np.testing.assert_allclose(actual, expected, rtol=50 * EPS)
    r = np.roll(p, 1, 0)
    joint_r = r[:, :, None] * q[:, None, :]
    actual = information.kl_divergence(joint, joint_r, axis=(1, 2))
    expected = information.kl_divergence(p, r)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=50 * EPS)


def test_entropy_bounds():
    uniform = np.full(16, 1 / 16)
    assert float(information.entropy(uniform, base=2)) == pytest.approx(4)
    assert float(
        information.entropy_from_logits(np.zeros(16), base=2)
    ) == pytest.approx(4)
    p, _ = random_pair(1, num_rows=500)
    assert np.all(information.entropy(p) <= math.log(5) + ATOL)  # Five are not zero.
    assert information.entropy(np.eye(3)[1]) == 0
    assert information.entropy_from_logits(to_logits(np.eye(3)[1])) == 0


@pytest.mark.parametrize("suffix", ["", "_from_logits"])
def test_divergence_properties(suffix):
    p, q = random_pair(2, num_rows=500)
    p, q = (to_logits(x) if suffix else x for x in (p, q))
    h, ce, kl, js = (
        jax.jit(getattr(information, name + suffix)) for name in ("entropy", *PAIRS)
    )
    assert np.all(kl(p, q) >= -ATOL)
    np.testing.assert_allclose(ce(p, q), h(p) + kl(p, q), rtol=ATOL, atol=ATOL)
    np.testing.assert_allclose(js(p, q), js(q, p), rtol=ATOL, atol=EPS)
    assert np.all(js(p, q) >= -ATOL)
    assert np.all(js(p, q) <= math.log(2) + ATOL)
    # The square root is a metric: the triangle inequality.
    r = np.roll(q, 1, 0)
    distance = [np.sqrt(js(*pair)) for pair in ((p, r), (p, q), (q, r))]
    assert np.all(distance[0] <= distance[1] + distance[2] + ATOL)
    np.testing.assert_allclose(kl(p, p), 0, atol=ATOL)
    np.testing.assert_allclose(js(p, p), 0, atol=ATOL)


@pytest.mark.parametrize("name", ["js_divergence", "js_divergence_from_logits"])
def test_js_divergence_of_disjoint_distributions_is_log_2(name):
    p = np.array([0.25, 0.75, 0.0, 0.0, 0.0])
    q = np.array([0.0, 0.0, 0.5, 0.5, 0.0])
    function = jax.jit(jax.value_and_grad(getattr(information, name), (0, 1)))
    value, derivatives = function(*arguments(name, p, q))
    assert float(value) == pytest.approx(math.log(2), rel=4 * EPS)
    assert np.isfinite(derivatives).all()


def test_js_divergence_of_the_smallest_numbers():
    tiny = float(jnp.finfo(jnp.float32).tiny)
    p, q = jnp.array([1, tiny]), jnp.array([1.0, 0.0])
    value, derivatives = jax.jit(jax.value_and_grad(information.js_divergence))(p, q)
    assert value == 0
    assert np.isfinite(derivatives).all()


def test_probabilities_are_used_as_they_are():
    p, q = random_pair()
    size = 3.0
    h, ce, kl, js = (
        jax.jit(getattr(information, name)) for name in ("entropy", *PAIRS)
    )
    # Each formula, with p and q times a constant; sums of more than seven terms.
    for actual, expected in (
        (h(size * p), size * (h(p) - math.log(size))),
        (ce(size * p, size * q), size * (ce(p, q) - math.log(size))),
        (kl(size * p, q), size * (kl(p, q) + math.log(size))),
        (js(size * p, size * q), size * js(p, q)),
    ):
        np.testing.assert_allclose(actual, expected, rtol=size * ATOL, atol=size * ATOL)
    # The divergence from more than one may be negative: log(1 / 2).
    assert information.kl_divergence(np.ones(1), np.full(1, 2.0), base=2) == -1


@pytest.mark.parametrize("name", [name for name in ALL if "logits" in name])
def test_degenerate_logits(name):
    function = getattr(information, name)
    inputs = 1 if name in ONE else 2
    both = jax.jit(jax.value_and_grad(function, range(inputs)))
    # No entry at all, where the sum has no term; not even a NaN that is not used.
    with jax.debug_nans(True):
        value, derivatives = both(*[jnp.full(3, -jnp.inf)] * inputs)
    assert value == 0
    np.testing.assert_array_equal(derivatives, np.zeros((inputs, 3)))
    with jax.debug_nans(True):
        value = function(*[jnp.zeros(3)] * inputs, where=jnp.zeros(3, bool))
    assert value == 0
    # Far apart: all but one probability underflow.
    logits = [jnp.array([1e30, -1e30, 0.0]), jnp.array([1e30, 0.0, -1e30])][:inputs]
    value, derivatives = both(*logits)
    assert value == 0
    np.testing.assert_array_equal(derivatives, np.zeros((inputs, 3)))


def test_small_probabilities_keep_their_share_in_logits():
    # p = [1, exp(-200)] / (1 + exp(-200)): the second underflows in float32.
    p, q = jnp.array([0.0, -200.0]), jnp.array([-200.0, 0.0])
    assert float(information.kl_divergence_from_logits(p, q)) == pytest.approx(200)
    assert float(information.cross_entropy_from_logits(p, q)) == pytest.approx(200)
    # An event that p can produce, however rarely, and q cannot.
    q = jnp.array([0.0, -jnp.inf])
    assert information.kl_divergence_from_logits(p, q) == jnp.inf
    assert information.cross_entropy_from_logits(p, q) == jnp.inf


@pytest.mark.parametrize("name", ALL)
def test_other_dtypes(name):
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5])
    function = jax.jit(getattr(information, name))
    inputs = arguments(name, p, q)
    expected = expected_value(name, p, q)
    actual = function(*(jnp.asarray(x, jnp.bfloat16) for x in inputs))
    assert actual.dtype == jnp.bfloat16
    # Logits are below three; each of four roundings is one of 2^-8 of that.
    np.testing.assert_allclose(float(actual), expected, atol=12 / 256)
    with jax.enable_x64(True):
        actual = function(*inputs)
        assert actual.dtype == jnp.float64
        np.testing.assert_allclose(actual, expected, rtol=1e-14)
    assert information.entropy(jnp.array([1, 0])).dtype == jnp.float32


GAUSSIANS = [(0.0, 0.0, 0.0, 0.0), (1.0, 0.3, -0.5, 0.9), (0.0, 2.0, 1.0, -0.7)]


@pytest.mark.parametrize("case", GAUSSIANS)
def test_gaussian_kl_divergence_is_the_integral(case):
    p = {"loc": case[0], "scale": math.exp(case[1] / 2)}
    q = {"loc": case[2], "scale": math.exp(case[3] / 2)}

    def integrand(x):
        log_ratio = stats.norm.logpdf(x, **p) - stats.norm.logpdf(x, **q)
        return stats.norm.pdf(x, **p) * log_ratio

    ends = stats.norm.ppf(1e-16, **p), stats.norm.isf(1e-16, **p)
    expected, _ = integrate.quad(integrand, *ends)
    value = information.gaussian_kl_divergence(*case)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-12)
    entropy = information.gaussian_entropy(case[1])
    np.testing.assert_allclose(entropy, stats.norm.entropy(**p), rtol=4 * EPS)


def test_gaussian_kl_divergence_derivatives():
    case = m1, v1, m2, v2 = 1.0, 0.3, -0.5, 0.9
    distance = (m1 - m2) * math.exp(-v2)
    ratio = math.exp(v1 - v2)
    expected = [
        distance,
        (ratio - 1) / 2,
        -distance,
        (1 - ratio - distance * (m1 - m2)) / 2,
    ]
    kl = information.gaussian_kl_divergence
    gradient = jax.jit(jax.grad(kl, (0, 1, 2, 3)))
    np.testing.assert_allclose(gradient(*case), expected, rtol=8 * EPS)
    # The Fisher information of mean and log-variance at variance exp(v2).
    hessian = jax.jit(jax.hessian(kl, (2, 3)))(m1, v2, m1, v2)
    np.testing.assert_allclose(hessian, [[math.exp(-v2), 0], [0, 0.5]], rtol=8 * EPS)


def test_gaussian_kl_divergence_keeps_its_accuracy():
    # d^2 / 4 + d^3 / 12 for nearly equal variances.
    d = 2.0 ** -np.arange(5, 20)
    actual = jax.jit(information.gaussian_kl_divergence)(0.0, d, 0.0, 0.0)
    terms = [d**k / math.factorial(k) / 2 for k in range(2, 7)]
    np.testing.assert_allclose(actual, sum(terms), rtol=4 * EPS)


def test_gaussian_kl_divergence_at_extreme_variances():
    kl = jax.jit(jax.value_and_grad(information.gaussian_kl_divergence, (0, 1, 2, 3)))
    # exp(-log_variance) / 2 for means that differ by one.
    expected = {-300.0: math.inf, -80.0: math.exp(80) / 2, 80.0: math.exp(-80) / 2}
    for log_variance, distance in {**expected, 300.0: 0.0}.items():
        value, derivatives = kl(2.0, log_variance, 2.0, log_variance)
        assert value == 0
        np.testing.assert_array_equal(derivatives, 0)
        value, derivatives = kl(2.0, log_variance, 3.0, log_variance)
        # The exponent, 40, has been rounded before the square.
        assert float(value) == pytest.approx(distance, rel=100 * EPS)
        assert not np.isnan(derivatives).any()


def test_gaussian_kl_divergence_is_not_negative_and_has_an_order():
    arrays = np.random.default_rng(0).normal(size=(4, 500))
    values = jax.jit(jax.vmap(information.gaussian_kl_divergence))(*arrays)
    assert np.all(values >= 0)
    # Truth first: [log(v_q / v_p) + v_p / v_q - 1] / 2 with v_p = 1 and v_q = e.
    value = information.gaussian_kl_divergence(0.0, 0.0, 0.0, 1.0)
    assert float(value) == pytest.approx(1 / (2 * math.e))


def test_gumbel_kl_divergence_is_that_of_gumbel():
    assert information.gumbel_kl_divergence is gumbel.kl_divergence
