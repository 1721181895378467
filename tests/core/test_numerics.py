import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax._core import numerics

EPS = float(np.finfo(np.float32).eps)
# Around zero, around what float32 holds exactly, and the ends.
SIGNED = [0, 1, -1, 5, 2**24 + 1, -(2**24) - 1, 2**27 + 3, 2**30 + 77]
SIGNED += [2**31 - 1, -(2**31)]
UNSIGNED = [0, 1, 7, 2**24 + 1, 2**31, 2**32 - 1]
WIDE = [*SIGNED, 2**40 + 3, 2**53 + 1, 2**62 + 2**20 + 1, 2**63 - 1, -(2**63)]


def assert_exact_differences(left, right, a, b, eps):
    """Compares with the differences of Python's integers and fractions."""
    pairs = list(itertools.product(left, right))
    x, y = (np.array(part) for part in zip(*pairs, strict=True))
    found = numerics.difference(jnp.asarray(x, a), jnp.asarray(y, b))
    for difference, (i, j) in zip(found.tolist(), pairs, strict=True):
        expected = Fraction(i) - Fraction(j)
        # Two parts may have to be rounded, and their sum.
        assert abs(Fraction(difference) - expected) <= eps * abs(expected)


def test_large_integers_are_subtracted_before_they_are_converted() -> None:
    assert_exact_differences(SIGNED, SIGNED, jnp.int32, jnp.int32, EPS)
    assert_exact_differences(UNSIGNED, UNSIGNED, jnp.uint32, jnp.uint32, EPS)
    assert_exact_differences(UNSIGNED, SIGNED, jnp.uint32, jnp.int32, EPS)
    floats = [0.25, -1.5, 2.0**24, -(2.0**25), 2.0**31]
    assert_exact_differences(SIGNED, floats, jnp.int32, jnp.float32, EPS)
    narrow = [-128, -1, 0, 127]
    assert_exact_differences(narrow, narrow, jnp.int8, jnp.int8, 0)


def test_integers_of_64_bits_are_subtracted_before_they_are_converted() -> None:
    with jax.enable_x64(True):
        assert_exact_differences(WIDE, WIDE, jnp.int64, jnp.int64, EPS)
        assert_exact_differences(WIDE, SIGNED, jnp.int64, jnp.int32, EPS)
        halves = [0.5, 2.0**53, -(2.0**63)]
        eps = float(np.finfo(np.float64).eps)
        assert_exact_differences(WIDE, halves, jnp.int64, jnp.float64, eps)


def test_a_difference_of_floats_is_the_ordinary_one() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 9)).astype(np.float32)
    np.testing.assert_array_equal(numerics.difference(x, y), x - y)
    slope = jax.grad(lambda a: numerics.difference(a, jnp.arange(3)).sum())
    np.testing.assert_array_equal(slope(jnp.ones(3)), 1)
    assert numerics.difference(jnp.bfloat16(1), jnp.int8(2)).dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32", "uint32"])
def test_class_indices_of_any_width(dtype: str) -> None:
    limits = np.iinfo(dtype)
    labels = np.array([limits.min, 3, limits.max], dtype)
    for num_classes in (3, 4, 256, 300):
        expected = [n if 0 <= n < num_classes else -1 for n in labels.tolist()]
        found = numerics.class_indices(jnp.asarray(labels), num_classes)
        assert found.dtype == jnp.int32
        assert found.tolist() == expected


def test_class_indices_that_32_bits_would_cut_off() -> None:
    labels = np.array([2**32, 2**32 + 1, -(2**63), 1])
    assert numerics.class_indices(labels, 5).tolist() == [-1, -1, -1, 1]
    with jax.enable_x64(True):
        found = numerics.class_indices(jnp.asarray(labels), 5)
    assert found.tolist() == [-1, -1, -1, 1]


def test_what_a_user_gives_loses_nothing() -> None:
    assert numerics.exact(np.int64(7)).dtype == jnp.int32
    assert numerics.exact(jnp.array([1, 2])).dtype == jnp.int32
    assert numerics.exact(True).dtype == jnp.int32
    assert numerics.exact(0.5).dtype == jnp.float32
    assert numerics.exact(jnp.bfloat16(1)).dtype == jnp.bfloat16
    assert numerics.exact(2**40).item() == 2**40
    in_list = jax.jit(lambda x: numerics.exact(jnp.stack([x, 2])))(1)
    assert in_list.tolist() == [1, 2]


def test_integer_logits_keep_their_differences() -> None:
    logits = jnp.array([[2**27, 2**27 + 1], [7, 2**31 - 1]], jnp.int32)
    mask = jnp.array([[True, True], [True, False]])
    found = numerics.relative_logits(logits, where=mask)
    assert found[0].tolist() == [-1, 0]
    # What is masked is not the largest.
    assert found[1, 0] == 0


def test_expm1_has_the_derivative_exp() -> None:
    x = np.array([-80.0, -20.0, -1.0, 0.0, 1e-6, 3.0], np.float32)
    np.testing.assert_array_equal(numerics.expm1(x), jnp.expm1(x))
    slope = jax.vmap(jax.grad(numerics.expm1))(x)
    curve = jax.vmap(jax.grad(jax.grad(numerics.expm1_minus_identity)))(x)
    # The exponential of the machine has a relative error of a few roundings.
    for derivative in (slope, curve):
        np.testing.assert_allclose(derivative, np.exp(np.float64(x)), rtol=4 * EPS)
