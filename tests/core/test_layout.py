import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax._core.layout import per_task, task_layout


class Pair(NamedTuple):
    left: Any
    right: Any


@pytest.mark.parametrize(
    "tasks", [["b", "a"], ("a", "b"), {"a", "b"}, {"b": 1.0, "a": 2}]
)
def test_names_are_sorted_as_a_dict_is(tasks: Any) -> None:
    layout = task_layout(tasks)
    assert layout.names == ["a", "b"]
    assert jax.tree.leaves(layout.tree(jnp.array([1.0, 2.0]))) == [1.0, 2.0]
    assert layout.tree(jnp.array([1.0, 2.0])) == {"a": 1.0, "b": 2.0}


@pytest.mark.parametrize(
    ("tasks", "names"),
    [
        (3, ["0", "1", "2"]),
        (jnp.zeros(2), ["0", "1"]),
        (jnp.zeros(()), ["0"]),
        (Pair(0.0, jnp.zeros(2)), ["left", "right/0", "right/1"]),
        ({"x": {"y": 0.0}, "z": jnp.zeros((2, 1))}, ["x/y", "z/0", "z/1"]),
        ([0.0, 0.0], ["0", "1"]),
    ],
)
def test_names_of_other_structures(tasks: Any, names: list[str]) -> None:
    layout = task_layout(tasks)
    assert layout.names == names
    assert layout.num_tasks == len(names)


@pytest.mark.parametrize(
    ("tasks", "names"),
    [
        ({"a/b": 0.0, "a": {"b": 0.0}, "c": 0.0}, ["['a']['b']", "['a/b']", "c"]),
        ({"a": jnp.zeros(2), "a/1": 0.0}, ["a/0", "['a'][1]", "['a/1']"]),
        ({"": 0.0, "0": 0.0}, ["['']", "['0']"]),
        ({"x": Pair(0.0, 0.0), "x/left": 0.0}, ["['x'].left", "x/right", "['x/left']"]),
        ([{"a": 0.0}, {"a": 0.0}], ["0/a", "1/a"]),
    ],
)
def test_two_tasks_never_have_the_same_name(tasks: Any, names: list[str]) -> None:
    layout = task_layout(tasks)
    assert layout.names == names
    found = [layout.position("task", name) for name in layout.names]
    assert found == list(range(layout.num_tasks))


def test_vector_and_tree_are_inverse() -> None:
    layout = task_layout({"x": jnp.zeros((2, 3)), "y": 0.0})
    vector = jnp.arange(7.0)
    np.testing.assert_array_equal(layout.vector("v", layout.tree(vector)), vector)
    assert layout.tree(vector)["x"].shape == (2, 3)


def test_dtype_is_float32_unless_the_tasks_are_float64() -> None:
    assert task_layout({"a": jnp.bfloat16(0)}).dtype == jnp.float32
    with jax.enable_x64(True):
        assert task_layout({"a": jnp.float64(0)}).dtype == jnp.float64
        assert task_layout(["a"]).dtype == jnp.float32


@pytest.mark.parametrize("tasks", [[], {}, (), 0, -1])
def test_no_task_is_an_error(tasks: Any) -> None:
    with pytest.raises(ValueError, match="tasks"):
        task_layout(tasks)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("ab", r"tasks must be a list of names, got one name: \['ab'\]"),
        (["a", "a"], "different names"),
        (True, "at least 1 task"),
        ({"a": object()}, "numbers or arrays"),
        (jnp.array(3), r"static_args=\('tasks',\)"),
    ],
)
def test_unreadable_tasks(tasks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task_layout(tasks)


LAYOUT = task_layout(["a", "b"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"a": 1.0},
            r"kpis does not match the tasks a, b: .*without an entry: \['b'\]",
        ),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, r"entries of no task: \['c'\]"),
        (
            {"a": 1.0, "B": 1.0},
            r"without an entry: \['b'\]; entries of no task: \['B'\]",
        ),
        ({"a": 1.0, "b": jnp.ones(2)}, r"kpis\['b'\] has shape \[2\], expected \[\]"),
        # An array has no names: its order may not be that of the sorted ones.
        (jnp.ones(2), r"expected entries \['a'\], \['b'\], got one array"),
        ([1.0, 2.0], "does not match"),
    ],
)
def test_what_does_not_match_is_named(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LAYOUT.vector("kpis", value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (jnp.array(2.0), "as if they were summed; leave that to the link"),
        ({"a": jnp.ones(3), "b": 1.0}, "such as its mean over the batch"),
        ([1.0, 2.0], "It is a list; name the tasks in a dict"),
    ],
)
def test_losses_that_do_not_match_are_told_what_to_do(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LAYOUT.vector("losses", value)


def test_a_balancer_in_the_place_of_the_tasks() -> None:
    with pytest.raises(ValueError, match=r"balance\(balancer, tasks\)"):
        task_layout(optax.identity())


def test_none_is_nan_or_false() -> None:
    assert np.isnan(LAYOUT.vector("kpis", {"a": None, "b": 1.0})).tolist() == [
        True,
        False,
    ]
    mask = LAYOUT.vector("mask", {"a": None, "b": True}, dtype=bool)
    assert mask.tolist() == [False, True]


def test_a_list_fits_tasks_in_one_array() -> None:
    layout = task_layout(2)
    vector = layout.vector("kpis", [0.5, None])
    assert vector[0] == 0.5
    assert np.isnan(vector[1])
    with pytest.raises(ValueError, match=r"shape \[3\], expected \[2\]"):
        layout.vector("kpis", [0.5, 0.5, 0.5])


@pytest.mark.parametrize("value", [2.0, jnp.array(2.0), {"b": 2.0, "a": 2.0}])
def test_per_task_hyperparameters(value: Any) -> None:
    assert per_task("gamma", value, LAYOUT).tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    "value", [[2.0, 3.0], (2.0, 3.0), np.array([2.0, 3.0]), jnp.array([2.0, 3.0])]
)
@pytest.mark.parametrize("tasks", [2, jnp.zeros(2), [0.0, 0.0], (0.0, 0.0)])
def test_a_list_gives_one_value_per_task_where_tasks_have_no_names(
    value: Any, tasks: Any
) -> None:
    assert per_task("gamma", value, task_layout(tasks)).tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    ("tasks", "value", "message"),
    [
        (["b", "a"], [10.0, 1.0], r"{'a': ..., 'b': ...}; got a list of 2, whose"),
        (["b", "a"], (10.0, 1.0), r"{'a': ..., 'b': ...}; got a tuple of 2"),
        (["b", "a"], np.ones(2), r"{'a': ..., 'b': ...}; got one array of shape [2]"),
        (["b", "a"], jnp.ones(2), r"{'a': ..., 'b': ...}; got one array of shape [2]"),
        (["a"], [2.0], r"{'a': ...}; got a list of 1"),
        (Pair(0.0, jnp.zeros(2)), [1.0] * 3, "Pair(left=..., right=<[2] numbers>)"),
        ({"x": {"y": 0.0}, "z": 0.0}, np.ones(2), "{'x': {'y': ...}, 'z': ...}"),
        (["b", "a"], {"b": 1.0, "c": 1.0}, "does not match the tasks a, b: tasks with"),
        (["b", "a"], {"a": 1.0, "b": None}, "gamma['b'] must be a number, got NoneTy"),
        (2, [1.0, None], "gamma[1] must be a number, got NoneType"),
        (["b", "a"], {"a": 1.0, "b": "2"}, "gamma['b'] must be a number, got str '2'"),
    ],
)
def test_what_is_not_one_value_per_named_task_raises(
    tasks: Any, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        per_task("gamma", value, task_layout(tasks))
