from typing import Any

import jax.numpy as jnp
import pytest

from dtp_jax._core import checks


@pytest.mark.parametrize("value", [0, 0.5, 1, True])
def test_numbers_in_the_interval_pass(value: float) -> None:
    checks.check_number("x", value, low=0, high=1)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
def test_numbers_outside_are_named(value: float) -> None:
    with pytest.raises(ValueError, match=r"x must be a number in \[0, 1\], got"):
        checks.check_number("x", value, low=0, high=1)


def test_open_ends_are_excluded() -> None:
    with pytest.raises(ValueError, match=r"in \(0, inf\), got 0"):
        checks.check_number("x", 0, low=0, open_low=True)
    with pytest.raises(ValueError, match=r"in \(-inf, 1\), got 1"):
        checks.check_number("x", 1, high=1, open_high=True)


def test_arrays_are_trusted() -> None:
    checks.check_number("x", jnp.array(7.0), low=0, high=1)
    checks.check_whole("n", jnp.array(-7))


@pytest.mark.parametrize("value", [-1, 2.0, True])
def test_whole_numbers(value: float) -> None:
    checks.check_whole("n", 0)
    with pytest.raises(ValueError, match="n must be an integer of at least 0"):
        checks.check_whole("n", value)


def test_last_axis() -> None:
    checks.check_last_axis("boxes", jnp.zeros((3, 4)), 4)
    for wrong in (jnp.zeros((4, 3)), jnp.zeros(())):
        with pytest.raises(ValueError, match=r"boxes must have shape \[\.\.\., 4\]"):
            checks.check_last_axis("boxes", wrong, 4)


def test_no_axes_are_added_silently() -> None:
    checks.check_no_new_axes(a=jnp.zeros((8, 5)), b=jnp.zeros((8, 1)), c=2.0)
    listed: Any = [1.0, 2.0]
    checks.check_no_new_axes(a=listed, b=jnp.zeros(1))
    for shapes in (((8,), (8, 1)), ((8, 5), (5,)), ((8,), (7,))):
        a, b = map(jnp.zeros, shapes)
        with pytest.raises(ValueError, match="Add missing axes") as info:
            checks.check_no_new_axes(left=a, right=b)
        assert f"left {list(shapes[0])}, right {list(shapes[1])}" in str(info.value)


def test_labels_are_one_for_each_row() -> None:
    listed: Any = [0] * 8
    checks.check_labels(jnp.zeros((8, 5)), listed)
    for labels in (jnp.zeros((8, 1)), jnp.zeros((8, 5)), 0):
        with pytest.raises(ValueError, match="same leading axes, got"):
            checks.check_labels(jnp.zeros((8, 5)), labels)
    with pytest.raises(ValueError, match="same leading axes, got"):
        checks.check_labels(1.0, 0)
