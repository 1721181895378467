import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from dtp_jax import gumbel
from dtp_jax.gumbel import _moments

EPS = float(np.finfo(np.float32).eps)
FUNCTIONS = ["pdf", "logpdf", "cdf", "logcdf", "sf", "logsf"]

KL = jax.jit(gumbel.kl_divergence)
KL_AND_GRAD = jax.jit(jax.value_and_grad(gumbel.kl_divergence, (0, 1, 2, 3)))

# Twelve orders of magnitude in both tails: float32 values of z.
TAILS = 10.0 ** -np.arange(0.5, 12.6, 0.5)
Z = np.concatenate([stats.gumbel_r.ppf(TAILS), [0.0], stats.gumbel_r.isf(TAILS)])
Z = np.sort(Z).astype(np.float32)


def float64_value(name, z):
    if name == "logsf":
        # Scipy takes the log of a rounded survival, which is one in the left tail.
        left = np.log1p(-np.exp(-np.exp(-z)))
        return np.where(z < 0, left, stats.gumbel_r.logsf(z))
    return getattr(stats.gumbel_r, name)(z)


def float64_derivatives(name, z, scale):
    """In x, location (zero) and scale; and their sizes without cancellation."""
    t = np.exp(-z)
    density = np.exp(-z - t)
    slope, size, own, power = {
        "pdf": (density * (t - 1), density * (t + 1), density, 1),
        "logpdf": (t - 1, t + 1, 1, 0),
        "cdf": (density, density, 0, 0),
        "logcdf": (t, t, 0, 0),
        "sf": (-density, density, 0, 0),
        "logsf": (-t / np.expm1(t), t / np.expm1(t), 0, 0),
    }[name]
    factor = scale ** -(power + 1.0)
    derivatives = [slope, -slope, -z * slope - own]
    sizes = [size, size, np.abs(z) * size + own]
    return [factor * d for d in derivatives], [factor * s for s in sizes]


def units(z):
    """Relative float32 error, in EPS, of what changes as fast as exp(-z - exp(-z)).

    With errors of two EPS in each operation, z is wrong by 2 |z| EPS and exp(-z) by
    2 |z| + 2, and exp of their sum by at most (2 |z| + 4) (1 + exp(-z)) EPS.
    """
    return (2 * np.abs(z) + 4) * (1 + np.exp(-z)) + 4


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_are_accurate_in_both_tails(name):
    z = Z.astype(np.float64)
    for probabilities in (stats.gumbel_r.cdf(z), stats.gumbel_r.sf(z)):
        assert probabilities.min() < 1e-12
        assert probabilities.max() > 1 - 1e-12

    expected = float64_value(name, z)
    actual = np.asarray(jax.jit(getattr(gumbel, name))(Z), np.float64)
    # A log-density is a difference, whose error is that of its two terms.
    size = np.abs(z) + np.exp(-z) if name == "logpdf" else np.abs(expected)
    assert np.all(np.abs(actual - expected) <= EPS * units(z) * size)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_are_accurate_in_both_tails(name):
    z, scale = Z.astype(np.float64), 0.5
    expected, sizes = float64_derivatives(name, z, scale)
    gradient = jax.grad(getattr(gumbel, name), (0, 1, 2))
    # The scale is a power of two, so that z is the same as in float64.
    actual = jax.jit(jax.vmap(gradient, (0, None, None)))(scale * Z, 0.0, scale)
    for derivative, value, size in zip(actual, expected, sizes, strict=True):
        error = np.abs(np.asarray(derivative, np.float64) - value)
        assert np.all(error <= EPS * units(z) * size)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64_derivatives_match_finite_differences(name):
    z, scale, step = np.linspace(-2.0, 8.0, 21), 0.5, 1e-5
    call = getattr(stats.gumbel_r, name)
    point = [scale * z, 0.0, scale]
    expected, sizes = float64_derivatives(name, z, scale)
    for index in range(3):
        above, below = list(point), list(point)
        above[index], below[index] = above[index] + step, below[index] - step
        difference = (call(*above) - call(*below)) / (2 * step)
        # Two more derivatives give a factor of about [(1 + t) (1 + |z|) / scale]^2,
        # which is below 3e3, and some cross terms: the relative error is below
        # 1e5 step^2 / 6. The rounding of values of order ten leaves 1e-15 / step.
        bound = 2e-6 * sizes[index] + 2e-10
        assert np.all(np.abs(difference - expected[index]) <= bound)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_location_and_scale_broadcast(name):
    # Few bits, so that z is exact also in float32: it is in [-1.5, 3].
    x = np.array([-0.5, 0.25, 1.0])
    loc = np.array([[0.25], [-0.5]])
    scale = np.array([[0.5], [2.0]])
    actual = jax.jit(getattr(gumbel, name))(x, loc, scale)
    assert actual.shape == (2, 3)
    expected = getattr(stats.gumbel_r, name)(x, loc, scale)
    np.testing.assert_allclose(actual, expected, rtol=EPS * units(-1.5), atol=EPS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64_and_half_precision(name):
    function = jax.jit(jax.value_and_grad(getattr(gumbel, name)))
    z, expected_slopes = 1.0, float64_derivatives(name, 1.0, 1.0)[0]
    expected = float64_value(name, z), expected_slopes[0]
    with jax.enable_x64(True):
        actual = function(jnp.float64(z))
        assert actual[0].dtype == jnp.float64
        np.testing.assert_allclose(actual, expected, rtol=1e-14)
    for dtype in (jnp.bfloat16, jnp.float16):
        actual = function(dtype(z))
        assert actual[0].dtype == actual[1].dtype == dtype
        eps = float(jnp.finfo(dtype).eps)
        actual = [float(value) for value in actual]
        np.testing.assert_allclose(actual, expected, rtol=units(z) * eps)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_extreme_arguments(name):
    x = np.array([-np.inf, -3e38, -200.0, 200.0, 3e38, np.inf], np.float32)
    x, scale = (
        a.ravel() for a in np.meshgrid(x, np.array([1e-30, 1e-3, 1.0, 2.0], np.float32))
    )
    function = getattr(gumbel, name)
    both = jax.value_and_grad(function, (0, 1, 2))
    value, derivatives = jax.jit(jax.vmap(both, (0, None, 0)))(x, 0.0, scale)
    # The limits far from zero, where exp(-z) is zero or overflows.
    with np.errstate(over="ignore"):
        z = x / scale
        left, right = {
            "pdf": (0, 0),
            "logpdf": (-np.inf, -z - np.log(scale)),
            "cdf": (0, 1),
            "logcdf": (-np.inf, 0),
            "sf": (1, 0),
            "logsf": (0, -z),
        }[name]
    np.testing.assert_allclose(value, np.where(z < 0, left, right), 2 * EPS, atol=1e-37)
    assert not np.isnan(derivatives).any()
    primals, tangents = (x, np.zeros_like(x), scale), (np.ones_like(x),) * 3
    _, forward = jax.jit(functools.partial(jax.jvp, function))(primals, tangents)
    assert not np.isnan(forward).any()
    if name in ("pdf", "cdf", "sf"):
        np.testing.assert_allclose(derivatives, np.zeros((3, 24)), atol=1e-37)


def test_overflow_on_the_left():
    # exp(89) is above the largest float32.
    limits = {
        gumbel.logpdf: (-jnp.inf, jnp.inf),
        gumbel.logcdf: (-jnp.inf, jnp.inf),
        gumbel.pdf: (0, 0),
        gumbel.cdf: (0, 0),
        gumbel.sf: (1, 0),
        gumbel.logsf: (0, 0),
    }
    for function, expected in limits.items():
        assert jax.jit(jax.value_and_grad(function))(-89.0) == expected


@pytest.mark.parametrize(("name", "other"), [("ppf", "cdf"), ("isf", "sf")])
def test_quantiles(name, other):
    q = np.concatenate([TAILS, 1 - TAILS[TAILS > 1e-6]]).astype(np.float32)
    loc, scale = np.float32(-3.0), np.float32(0.5)
    both = jax.value_and_grad(getattr(gumbel, name), (0, 1, 2))
    actual, (in_q, in_loc, in_scale) = jax.jit(jax.vmap(both, (0, None, None)))(
        q, loc, scale
    )
    actual = np.asarray(actual, np.float64)
    expected = getattr(stats.gumbel_r, name)(q.astype(np.float64), loc, scale)
    # The inner logarithm has a relative error of a few EPS, an absolute one outside.
    z = (expected - loc) / scale
    assert np.all(np.abs(actual - expected) <= EPS * (4 * scale * (1 + abs(z)) + 4))

    density = stats.gumbel_r.pdf(expected, loc, scale)
    sign = {"ppf": 1, "isf": -1}[name]
    # The derivative of an inverse function; z is known to a few EPS, as above.
    np.testing.assert_allclose(in_q, sign / density, rtol=20 * EPS)
    np.testing.assert_array_equal(in_loc, 1)
    np.testing.assert_allclose(in_scale, z, rtol=8 * EPS, atol=8 * EPS)

    # The inverse of the other function, in units of its rounding error.
    again = jax.jit(getattr(gumbel, other))(actual, loc, scale)
    assert np.all(np.abs(np.float64(again) / q - 1) <= 4 * EPS * units(z))


def test_quantiles_at_the_ends():
    q = jnp.array([0.0, 1.0, -0.1, 1.1, jnp.nan])
    lowest, highest = -np.inf, np.inf
    expected = np.array([lowest, highest, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(gumbel.ppf(q, 3.0, 2.0), expected)
    np.testing.assert_array_equal(
        gumbel.isf(q, 3.0, 2.0), [highest, lowest, *expected[2:]]
    )
    for function in (gumbel.ppf, gumbel.isf):
        gradient = jax.jit(jax.grad(function, (0, 1, 2)))
        for end in (0.0, 1.0):
            in_q, in_loc, in_scale = gradient(end, 3.0, 2.0)
            assert (in_q, in_loc, in_scale) == (0, 1, function(end))


@pytest.mark.parametrize(
    ("name", "expected", "in_loc", "in_scale"),
    [
        ("mean", stats.gumbel_r.mean, 1, np.euler_gamma),
        ("median", stats.gumbel_r.median, 1, -math.log(math.log(2))),
        ("variance", stats.gumbel_r.var, 0, 2 * 0.25 * math.pi**2 / 6),
        ("entropy", stats.gumbel_r.entropy, 0, 1 / 0.25),
        ("mode", lambda loc, scale: loc, 1, 0),
    ],
)
def test_moments(name, expected, in_loc, in_scale):
    function = getattr(gumbel, name)
    loc, scale = np.array([[1.5], [-3.0]]), np.array([0.25, 7.0, 1e3])
    expected = np.broadcast_to(expected(loc, scale), (2, 3))
    # Sums of two terms of the size of the arguments.
    np.testing.assert_allclose(
        function(loc, scale), expected, rtol=4 * EPS, atol=4 * EPS
    )
    derivatives = jax.grad(function, (0, 1))(1.5, 0.25)
    np.testing.assert_allclose(derivatives, (in_loc, in_scale), rtol=4 * EPS)


def test_mode_has_the_largest_density():
    x = np.linspace(-2.0, 2.0, 401)
    densities = jax.jit(gumbel.pdf)(x, 0.5, 0.3)
    assert float(gumbel.mode(0.5, 0.3)) == pytest.approx(x[densities.argmax()])


DISTRIBUTION = [(name, (0.5,)) for name in [*FUNCTIONS, "ppf", "isf"]]
MOMENTS = [(name, ()) for name in ("mean", "mode", "median", "variance", "entropy")]


@pytest.mark.parametrize(("name", "arguments"), DISTRIBUTION + MOMENTS)
def test_scales_that_are_not_positive(name, arguments):
    function = functools.partial(getattr(gumbel, name), *arguments)
    for scale in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"scale must be a number in \(0, inf\)"):
            function(0.0, scale)
    values = function(0.0, jnp.array([-1.0, 0.0, 1.0]))
    np.testing.assert_array_equal(np.isnan(values), [True, True, False])


def test_kl_divergence_by_numbers():
    assert float(KL(1.0, 2.0, 0.5, 1.5)) == pytest.approx(0.0911868556, rel=1e-6)
    # One and the same scale: only exp(d) - 1 - d is left.
    np.testing.assert_allclose(
        [KL(0.0, 2.0, loc, 2.0) for loc in (3.0, -3.0)],
        [math.exp(1.5) - 2.5, math.exp(-1.5) + 0.5],
        rtol=1e-6,
    )


KL_CASES = [
    (1.0, 2.0, 0.5, 1.5),
    (0.0, 1.0, 0.3, 1.4),
    (0.0, 1.0, -2.0, 3.0),
    (2.0, 0.5, 1.0, 4.0),
    (-1.0, 3.0, 1.0, 2.1),
    (0.0, 1.49, 0.0, 1.0),
    (0.0, 1.51, 0.0, 1.0),
    (0.0, 0.51, 0.0, 1.0),
    (0.0, 0.49, 0.0, 1.0),
]


def kl_by_integration(loc_p, scale_p, loc_q, scale_q):
    def log_density(x, loc, scale):
        z = (x - loc) / scale
        return -z - math.exp(-z) - math.log(scale)

    def integrand(x):
        log_p = log_density(x, loc_p, scale_p)
        return math.exp(log_p) * (log_p - log_density(x, loc_q, scale_q))

    # Beyond, the density is below 1e-100 on the left and 1e-17 on the right.
    ends = loc_p - 5.5 * scale_p, loc_p + 40 * scale_p
    return integrate.quad(integrand, *ends, epsabs=1e-12, epsrel=1e-11, limit=200)[0]


@pytest.mark.parametrize("case", KL_CASES)
def test_kl_divergence_is_the_integral(case):
    with jax.enable_x64(True):
        value, derivatives = KL_AND_GRAD(*case)
        assert float(value) == pytest.approx(kl_by_integration(*case), rel=1e-8)
        for index in range(4):
            step = 1e-4
            moved = [
                kl_by_integration(
                    *(c + sign * step * (i == index) for i, c in enumerate(case))
                )
                for sign in (1, -1)
            ]
            # Third derivatives are below 100, integrals are right to 1e-10.
            difference = (moved[0] - moved[1]) / (2 * step)
            assert float(derivatives[index]) == pytest.approx(difference, abs=1e-5)
    # In float32, log-gamma has an error of about ten roundings of one.
    assert float(KL(*case)) == pytest.approx(float(value), rel=1e-4)


def test_kl_divergence_of_nearly_equal_distributions():
    # Half of the Fisher information of location and log-scale, at scale two.
    information = np.array(
        [
            [1, np.euler_gamma - 1],
            [np.euler_gamma - 1, math.pi**2 / 6 + (1 - np.euler_gamma) ** 2],
        ]
    )
    shift = 2.0**-14
    for direction in ([1, 0], [0, 1], [1, 1], [1, -1]):
        loc, excess = shift * np.array(direction)
        value = KL(2 * loc, 2 * (1 + excess), 0.0, 2.0)
        expected = shift**2 * (direction @ information @ direction) / 2
        # The next order is smaller by a factor of about `shift`.
        assert float(value) == pytest.approx(expected, rel=3 * shift)
    hessian = jax.jit(jax.hessian(KL, (2, 3)))(0.0, 2.0, 0.0, 2.0)
    np.testing.assert_allclose(hessian, information / 4, rtol=1e-6)


def test_kl_divergence_of_equal_distributions_is_zero():
    scale = jnp.array([1e-30, 0.3, 1.0, 7.0, 1e30])
    value, derivatives = jax.vmap(KL_AND_GRAD)(3 * scale, scale, 3 * scale, scale)
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_array_equal(derivatives, np.zeros((4, 5)))


def test_kl_divergence_is_not_negative_and_has_an_order():
    arguments = np.random.default_rng(0).normal(size=(4, 500))
    arguments[[1, 3]] = np.exp(arguments[[1, 3]])
    assert np.all(KL(*arguments) >= 0)
    # d = 1 and d = -1 at equal scales.
    assert float(KL(0.0, 1.0, 1.0, 1.0)) == pytest.approx(math.e - 2)
    assert float(KL(1.0, 1.0, 0.0, 1.0)) == pytest.approx(1 / math.e)


def test_kl_divergence_at_the_ends():
    value, derivatives = KL_AND_GRAD(0.0, 1.0, 0.0, 0.01)
    assert value == jnp.inf
    assert np.isfinite(derivatives).all()
    # With r near zero, log(Gamma(r)) = -log(r) - gamma r, and a = 0.
    value, derivatives = KL_AND_GRAD(0.0, 1e-20, 0.0, 1.0)
    assert float(value) == pytest.approx(20 * math.log(10) - np.euler_gamma, rel=1e-6)
    assert np.isfinite(derivatives).all()
    with pytest.raises(ValueError, match="scale_q must be a number"):
        gumbel.kl_divergence(0.0, 1.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="scale_p must be a number"):
        gumbel.kl_divergence(0.0, -1, 0.0, 1.0)
    assert np.isnan(gumbel.kl_divergence(0.0, 1.0, 0.0, jnp.array(-1.0)))


def test_zeta_values():
    expected = special.zetac(np.arange(len(_moments._ZETA_MINUS_ONE)) + 2)
    np.testing.assert_allclose(_moments._ZETA_MINUS_ONE, expected, rtol=1e-15)


def test_samples_follow_the_distribution():
    draws = gumbel.sample(jax.random.key(1), 3.0, 0.5, (20_000,))
    assert stats.kstest(draws, stats.gumbel_r(3.0, 0.5).cdf).pvalue > 0.01


def test_samples_broadcast_and_keep_their_dtype():
    key, loc, scale = jax.random.key(0), jnp.zeros((3, 1)), jnp.ones(2)
    assert gumbel.sample(key, loc, scale).shape == (3, 2)
    assert gumbel.sample(key, loc, scale, (5, 3, 2)).shape == (5, 3, 2)
    assert gumbel.sample(key, 0, 1, (4,)).dtype == jnp.float32
    assert gumbel.sample(key, jnp.bfloat16(0), 1).dtype == jnp.bfloat16
    with pytest.raises(
        ValueError, match=r"must broadcast to shape \[2\], got \[3, 2\]"
    ):
        gumbel.sample(key, loc, scale, (2,))
    with pytest.raises(ValueError, match="dtype must be floating, got int32"):
        gumbel.sample(key, dtype=jnp.int32)
    with pytest.raises(ValueError, match="scale must be a number"):
        gumbel.sample(key, 0.0, -1.0)


def test_noise_of_half_precision_is_that_of_float32():
    key = jax.random.key(2)
    wide = gumbel.sample(key, shape=(1000,))
    draws = gumbel.sample(key, shape=(1000,), dtype=jnp.bfloat16)
    np.testing.assert_array_equal(draws, wide.astype(jnp.bfloat16))
    logits = jnp.linspace(-1.0, 1.0, 3000).reshape(3, 1000).astype(jnp.bfloat16)
    wide = logits.astype(jnp.float32)
    for draw in (
        gumbel.perturbed_logits,
        gumbel.gumbel_max,
        functools.partial(gumbel.top_k, k=5),
    ):
        np.testing.assert_array_equal(draw(key, logits), draw(key, wide))
    soft = gumbel.gumbel_softmax(key, logits)
    expected = gumbel.gumbel_softmax(key, wide).astype(jnp.bfloat16)
    np.testing.assert_array_equal(soft, expected)
    assert soft.dtype == jnp.bfloat16


def test_samples_are_differentiable():
    def draw(loc, scale):
        return gumbel.sample(jax.random.key(0), loc, scale)

    in_loc, in_scale = jax.grad(draw, (0, 1))(2.0, 0.5)
    assert in_loc == 1
    assert float(in_scale) == pytest.approx(float((draw(2.0, 0.5) - 2) / 0.5))


PROBABILITIES = np.array([0.5, 0.25, 0.15, 0.0, 0.1])
with np.errstate(divide="ignore"):
    LOGITS = np.float32(np.log(PROBABILITIES) + 3)  # -inf at index 3.


def many(draw, num_draws=40_000):
    keys = jax.random.split(jax.random.key(3), num_draws)
    return np.asarray(jax.jit(jax.vmap(draw))(keys))


def assert_frequencies(draws, probabilities):
    """A chi-square test of the counts of draws, labelled from zero."""
    counts = np.bincount(draws, minlength=len(probabilities))
    assert len(counts) == len(probabilities)
    np.testing.assert_array_equal(counts[probabilities == 0], 0)
    possible = probabilities > 0
    expected = probabilities[possible] * len(draws)
    assert stats.chisquare(counts[possible], expected).pvalue > 0.01


def test_gumbel_max_draws_from_the_softmax():
    draws = many(lambda key: gumbel.gumbel_max(key, LOGITS))
    assert_frequencies(draws, PROBABILITIES)


def test_gumbel_max_axis():
    logits = jnp.where(jnp.eye(3, 4, 1) > 0, 0.0, -jnp.inf)  # Columns 1 to 3.
    np.testing.assert_array_equal(
        gumbel.gumbel_max(jax.random.key(0), logits), [1, 2, 3]
    )
    draws = gumbel.gumbel_max(jax.random.key(0), logits, axis=0)
    np.testing.assert_array_equal(draws, [0, 0, 1, 2])


def test_gumbel_softmax_is_the_softmax_of_perturbed_logits():
    key = jax.random.key(0)
    logits = jax.random.normal(jax.random.key(1), (4, 5))
    perturbed = np.float64(gumbel.perturbed_logits(key, logits))
    per_row = np.array([[0.5], [1.0], [2.0], [4.0]])
    for axis, temperature in ((-1, 0.7), (0, 2.0), (-1, per_row)):
        draw = jax.jit(functools.partial(gumbel.gumbel_softmax, axis=axis))
        expected = special.softmax(perturbed / temperature, axis)
        # Exponents are below 20 in size.
        np.testing.assert_allclose(draw(key, logits, temperature), expected, 40 * EPS)


def test_gumbel_softmax_draws_from_the_softmax():
    soft = many(lambda key: gumbel.gumbel_softmax(key, LOGITS, 0.5))
    np.testing.assert_allclose(soft.sum(-1), 1, rtol=1e-5)
    assert_frequencies(soft.argmax(-1), PROBABILITIES)


@pytest.mark.parametrize("axis", [-1, 0])
def test_straight_through(axis):
    logits = jax.random.normal(jax.random.key(1), (4, 5)).at[2, 3].set(-jnp.inf)

    def draw(hard, logits, temperature):
        key = jax.random.key(0)
        return gumbel.gumbel_softmax(key, logits, temperature, hard=hard, axis=axis)

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_vjp(hard):
        value, vjp = jax.vjp(functools.partial(draw, hard), logits, 0.7)
        return value, vjp(cotangent)

    cotangent = jax.random.normal(jax.random.key(2), (4, 5))
    hard, straight = value_and_vjp(True)
    soft, derivatives = value_and_vjp(False)
    np.testing.assert_array_equal(hard, soft == soft.max(axis, keepdims=True))
    np.testing.assert_array_equal(straight[0], derivatives[0])
    np.testing.assert_array_equal(straight[1], derivatives[1])

    # The Jacobian of a softmax: y_i (1[i = j] - y_j) / temperature.
    y = np.asarray(soft, np.float64)
    expected = y * (cotangent - np.sum(y * cotangent, axis, keepdims=True)) / 0.7
    np.testing.assert_allclose(derivatives[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("hard", [False, True])
def test_gumbel_softmax_degenerate_cases(hard):
    def draw(logits, temperature):
        return gumbel.gumbel_softmax(jax.random.key(0), logits, temperature, hard=hard)

    @jax.jit
    def value_and_vjp(logits, temperature):
        value, vjp = jax.vjp(draw, logits, temperature)
        return value, *vjp(jnp.array([1.0, 2.0, 4.0]))

    nothing = jnp.full(3, -jnp.inf)
    for logits in (nothing, nothing.at[1].set(2.0), jnp.array([0.0, -3e38, 3e38])):
        for temperature in (1e-37, 1.0, 1e37):
            value, in_logits, in_temperature = value_and_vjp(logits, temperature)
            assert np.isfinite([value, in_logits]).all()
            assert np.isfinite(in_temperature)
            impossible = np.isneginf(logits)
            np.testing.assert_array_equal(value[impossible], 0)
            np.testing.assert_array_equal(in_logits[impossible], 0)
            assert float(value.sum()) == pytest.approx(0 if impossible.all() else 1)
    np.testing.assert_array_equal(draw(nothing, 1.0), 0)
    # Cold: one-hot at the largest.
    np.testing.assert_array_equal(draw(jnp.array([0.0, 50.0, 0.0]), 1e-6), [0, 1, 0])
    for temperature in (0, -1.0):
        with pytest.raises(ValueError, match="temperature must be a number"):
            draw(jnp.zeros(3), temperature)
    assert np.isnan(draw(jnp.zeros(3), jnp.array(0.0))).all()


def ordered_draws(probabilities, k):
    """All ordered draws without replacement, and their probabilities."""
    draws = list(itertools.permutations(range(len(probabilities)), k))
    chances = []
    for draw in draws:
        left, chance = 1.0, 1.0
        for index in draw:
            chance *= probabilities[index] / left
            left -= probabilities[index]
        chances.append(chance)
    return np.array(draws), np.array(chances)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_draws_without_replacement(k):
    outcomes, chances = ordered_draws(PROBABILITIES, k)
    draws = many(lambda key: gumbel.top_k(key, LOGITS, k))
    assert draws.shape[1:] == (k,)
    base = len(PROBABILITIES) ** np.arange(k)
    labels = {label: i for i, label in enumerate((outcomes @ base).tolist())}
    assert_frequencies(
        np.array([labels[label] for label in (draws @ base).tolist()]), chances
    )
    # Inclusion: each frequency within four standard errors.
    included = (draws[:, :, None] == np.arange(5)).any(1).mean(0)
    expected = ((outcomes[:, :, None] == np.arange(5)).any(1) * chances[:, None]).sum(0)
    error = np.sqrt(expected * (1 - expected) / len(draws))
    assert np.all(np.abs(included - expected) <= 4 * error + 1e-12)


def test_top_k_weights_have_mean_one():
    def weights(key):
        perturbed = gumbel.perturbed_logits(key, LOGITS)
        kappa = jnp.sort(perturbed)[-3]
        chosen = jnp.zeros(5, bool).at[gumbel.top_k(key, LOGITS, 2)].set(True)
        return jnp.where(chosen, 1 / gumbel.sf(kappa, loc=LOGITS), 0)

    draws = many(weights)
    error = draws.std(0) / math.sqrt(len(draws))
    assert np.all(np.abs(draws.mean(0) - (PROBABILITIES > 0)) <= 4 * error)


def test_top_k_values_and_exhaustion():
    key = jax.random.key(5)
    logits = jnp.stack([LOGITS, jnp.full(5, -jnp.inf), jnp.arange(5.0)])
    draws = gumbel.top_k(key, logits, 5)
    perturbed = gumbel.perturbed_logits(key, logits)
    order = np.argsort(-perturbed, axis=-1, stable=True)
    # The third row is not exhausted, the first lacks one, and the second all.
    np.testing.assert_array_equal(draws, [[*order[0, :4], 5], [5] * 5, order[2]])
    one_hot = jax.nn.one_hot(draws, 5).sum(-2)
    np.testing.assert_array_equal(one_hot, logits > -jnp.inf)


def test_top_k_errors():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="k must be at most the number of logits, 3"):
        jax.jit(gumbel.top_k, static_argnums=2)(key, jnp.zeros(3), 4)
    for k in (0, True):
        with pytest.raises(ValueError, match="k must be an integer of at least 1"):
            gumbel.top_k(key, jnp.zeros(3), k)


def test_logits_have_an_axis():
    top_1 = functools.partial(gumbel.top_k, k=1)
    for draw in (gumbel.gumbel_max, gumbel.gumbel_softmax, top_1):
        with pytest.raises(ValueError, match="logits must have shape"):
            draw(jax.random.key(0), 1.0)


@pytest.mark.parametrize("name", [name for name, _ in DISTRIBUTION])
def test_jit_and_vmap(name):
    function = getattr(gumbel, name)
    x, loc, scale = np.random.default_rng(0).uniform(0.1, 0.9, (3, 4)).astype("f4")
    expected = function(x, loc, scale)
    for transformed in (function, jax.vmap(function)):
        # Compilers may fuse and reorder a handful of operations.
        actual = jax.jit(transformed)(x, loc, scale)
        np.testing.assert_allclose(actual, expected, 8 * EPS, 8 * EPS)


def test_jit_and_vmap_of_draws():
    keys = jax.random.split(jax.random.key(0), 3)
    logits = jax.random.normal(jax.random.key(1), (3, 6))
    for draw in (
        gumbel.sample,
        gumbel.gumbel_max,
        functools.partial(gumbel.gumbel_softmax, hard=True),
        functools.partial(gumbel.top_k, k=4),
    ):
        one = jax.jit(draw)
        rows = [one(key, row) for key, row in zip(keys, logits, strict=True)]
        actual = jax.jit(jax.vmap(draw))(keys, logits)
        np.testing.assert_allclose(actual, rows, 8 * EPS, 8 * EPS)
