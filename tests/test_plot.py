from operator import methodcaller
from typing import Any

import jax.numpy as jnp
import matplotlib as mpl
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
        ([{"a": 1.0}], "dict of quantities"),
        ({"a": [1.0, 2.0]}, "a dict {task: scalar} for each time"),
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


def test_seeds_become_means_and_bands() -> None:
    values = np.array([[[1.0, 0.0], [2.0, 4.0]], [[3.0, 0.0], [2.0, 8.0]]])
    figure = plot.weights({"DTP": values}, ["a", "b"], every=10, log=True)
    (axis,) = figure.axes
    assert axis.get_yscale() == "log"
    first, second = axis.lines
    np.testing.assert_array_equal(first.get_xdata(), [10, 20])
    np.testing.assert_array_equal(first.get_ydata(), [2.0, 2.0])
    # No logarithm of zero: a task that is not active has a gap.
    np.testing.assert_array_equal(second.get_ydata(), [np.nan, 6.0])
    ends = axis.collections[0].get_paths()[0].get_extents()
    assert (ends.y0, ends.y1) == (1.0, 3.0)


def test_curves_have_a_panel_for_each_task() -> None:
    kpis = {"equal": np.full((4, 2), 0.1), "DTP": np.full((3, 4, 2), 0.2)}
    figure = plot.curves(kpis, ["a", "b"], label="accuracy")
    for axis, name in zip(figure.axes, "ab", strict=True):
        assert axis.get_title() == name
        assert [line.get_label() for line in axis.lines] == ["equal", "DTP"]
    assert figure.axes[0].get_ylabel() == "accuracy"
    assert [text.get_text() for text in figure.legends[0].texts] == ["equal", "DTP"]


@pytest.mark.parametrize("draw", [plot.weights, plot.curves])
def test_columns_that_are_not_tasks_are_refused(draw: Any) -> None:
    with pytest.raises(ValueError, match=r"expected \[E, 3\]"):
        draw({"DTP": np.ones((5, 2))}, ["a", "b", "c"])
    with pytest.raises(ValueError, match="series is empty"):
        draw({}, ["a"])


def test_a_style_ends_where_it_should() -> None:
    before = dict(mpl.rcParams)
    with plot.style():
        assert not mpl.rcParams["axes.spines.top"]
    assert dict(mpl.rcParams) == before
