"""Bad input is found out before anything is trained."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtp_jax import balance, balancers, dynamic_task_prioritization
from dtp_jax.compare import Method, compare
from tests.compare import tiny


@pytest.fixture(autouse=True)
def _nothing_is_trained(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    def trained(*args: Any) -> Any:
        raise AssertionError("training has begun")

    if "trains" not in request.node.name:
        monkeypatch.setattr("dtp_jax.compare._train._Chunk.advance", trained)
        monkeypatch.setattr("dtp_jax.compare._compare.measure_costs", trained)


def losses_with(kpis: Any) -> Any:
    def losses(point: Any, batch: Any) -> Any:
        return tiny.losses_and_kpis(point, batch)[0], kpis

    return losses


@pytest.mark.parametrize(
    ("kpis", "message"),
    [
        ([0.5, 85.0, 0.5], "The KPI of 1 on a batch.* is 85.*percentages"),
        ([0.5, 0.5, -0.1], "The KPI of 2 .*not in"),
        ([jnp.nan, 0.5, 0.5], "The KPI of 0 on validation data.* is nan"),
        ([0.5, 0.5], "kpis .*shape"),
    ],
)
def test_kpis_outside_of_their_range(kpis: Any, message: str) -> None:
    problem = tiny.changed(losses=losses_with(jnp.array(kpis)))
    with pytest.raises(ValueError, match=message):
        compare(problem, tiny.METHODS)


def test_kpis_that_leave_their_range_in_training_trains() -> None:
    def evaluate(point: Any, data: Any) -> Any:
        del data
        return jnp.where(jnp.all(jnp.abs(point) < 0.5), 2.0, 0.5) * jnp.ones(3)

    problem = tiny.changed(evaluate=evaluate, init=lambda key: jnp.ones(2))
    with pytest.raises(ValueError, match="in training by single tasks, is 2"):
        compare(problem, {}, rates=(0.1,), seeds=2, progress=False)


def test_a_method_without_what_it_reads() -> None:
    problem = tiny.changed(
        losses=lambda point, batch: tiny.losses_and_kpis(point, batch)[0],
        evaluate=lambda point, data: tiny.losses_and_kpis(point, data)[1],
    )
    with pytest.raises(ValueError, match=r"'DTP' cannot train this .* needs `kpis`"):
        compare(problem, {"DTP": dynamic_task_prioritization})


def test_nothing_to_compare_by() -> None:
    problem = tiny.changed(
        losses=lambda point, batch: tiny.losses_and_kpis(point, batch)[0]
    )
    with pytest.raises(ValueError, match="nothing to compare methods by"):
        compare(problem, {})


def test_a_method_of_other_tasks() -> None:
    with pytest.raises(ValueError, match="'two' cannot train this problem"):
        compare(tiny.PROBLEM, {"two": balance(balancers.mgda(), 2)})


@pytest.mark.parametrize(
    ("methods", "error", "message"),
    [
        ({"equal weights": balancers.mgda()}, ValueError, "always in"),
        ({"a/b": balancers.mgda()}, ValueError, "that of a file"),
        ({"a": 3}, TypeError, "'a' must be a link"),
        ({"a": lambda tasks: None}, TypeError, "'a' returned NoneType"),
    ],
)
def test_methods_that_are_none(methods: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        compare(tiny.PROBLEM, methods)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rates": ()}, "rates"),
        ({"rates": (0.1, 0.1)}, "different numbers above 0"),
        ({"seeds": 1}, "seeds must be an integer of at least 2"),
        ({"rule": "mean"}, "rule must be one of 'average'"),
        ({"confidence": 1.0}, "confidence"),
        ({"weight_span": 1.0}, "weight_span"),
    ],
)
def test_numbers_out_of_range(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(tiny.PROBLEM, {}, **options)


def test_data_without_a_common_axis() -> None:
    problem = tiny.changed(train={"a": np.zeros(3), "b": np.zeros(4)})
    with pytest.raises(ValueError, match="common first axis"):
        compare(problem, {})


def test_an_empty_grid() -> None:
    with pytest.raises(ValueError, match="grid of gamma is empty"):
        Method(dynamic_task_prioritization, gamma=[])


def test_a_problem_that_cannot_be_mapped_trains_seed_by_seed() -> None:
    # A callback without a rule for jax.vmap.
    def from_outside(point: jax.Array) -> jax.Array:
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(lambda x: np.float32(0), shape, point)

    def evaluate(point: Any, data: Any) -> Any:
        return tiny.losses_and_kpis(point, data)[1] + from_outside(point)

    options: dict[str, Any] = {"rates": (0.1,), "seeds": 2, "tuning_seeds": 1}
    options |= {"measurements": 1, "progress": False}
    methods = {"same": optax.identity()}
    with pytest.warns(UserWarning, match="cannot be mapped over seeds.*one by one"):
        found = compare(tiny.changed(evaluate=evaluate), methods, **options)
    expected = compare(tiny.PROBLEM, methods, **options)
    for name, row in found.rows.items():
        np.testing.assert_allclose(row.kpis, expected.rows[name].kpis, rtol=1e-5)
    assert "seeds ran one by one" in found.summary()
