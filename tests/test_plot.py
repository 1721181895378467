from operator import methodcaller
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import plot


def test_over_time_takes_lists_of_dicts_and_stacked_dicts() -> None:
    steps = [{"a": jnp.array(1.0), "b": jnp.array(0.0)}, {"a": 2.0, "b": np.nan}]
    stacked = {"a": np.array([1.0, 2.0]), "b": np.array([0.0, np.nan])}
    figure = plot.over_time({"weight": steps, "KPI": stacked}, every=5)
    left, right = figure.axes
    assert (left.get_title(), right.get_title()) == ("weight", "KPI")
    for mine, theirs in zip(left.lines, right.lines, strict=True):
        np.testing.assert_array_equal(mine.get_xdata(), [5, 10])
        np.testing.assert_array_equal(mine.get_ydata(), theirs.get_ydata())


@pytest.mark.parametrize(
    ("logs", "message"),
    [
        ({}, "the same tasks"),
        ({"weight": []}, "is empty"),
        ({"weight": [{"a": 1.0}, {"b": 1.0}]}, "change on the way"),
        ({"weight": [{"a": 1.0}], "KPI": [{"b": 1.0}]}, "the same tasks"),
    ],
)
def test_over_time_says_what_does_not_fit(logs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot.over_time(logs)


def test_cosines_are_drawn_as_they_are() -> None:
    matrix = np.array([[1.0, -0.25, 0.0], [-0.25, 1.0, 0.5], [0.0, 0.5, 1.0]])
    axis = plot.cosines(matrix, ["a", "b", "c"]).axes[0]
    np.testing.assert_array_equal(axis.images[0].get_array(), matrix)
    assert len(axis.texts) == 9
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"expected \[2, 2\]"):
        plot.cosines(matrix, ["a", "b"])


def test_a_notebook_shows_a_figure() -> None:
    figure = plot.cosines(np.eye(20), list(map(str, range(20))))
    assert not figure.axes[0].texts
    assert methodcaller("_repr_png_")(figure).startswith(b"\x89PNG")
