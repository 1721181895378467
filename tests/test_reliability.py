"""The trials of docs/reliability.md: devices, bad steps, long runs, checkpoints."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import dtp_jax
from benchmarks import _trials, _two_processes, reliability, soak
from benchmarks._collectives import sent
from dtp_jax.gradients import _spread
from tests import toys

NAMES = _trials.NAMES
KINDS = [AxisType.Auto, AxisType.Explicit]
# Two steps of sums over some hundred terms, and what is solved for from them.
DEVIATION = 1e-4


def some(*names: str) -> Any:
    """All links, those that are named in the quick tests."""
    return pytest.mark.parametrize(
        "name",
        [
            pytest.param(name, marks=[] if name in names else [pytest.mark.slow])
            for name in _trials.LINKS
        ],
    )


QUICK_MESHES = {
    ("upgrad", "fully sharded", AxisType.Auto),
    ("moco-focal", "2 x 4", AxisType.Explicit),
}


@pytest.mark.parametrize(
    ("name", "mesh", "kind"),
    [
        pytest.param(*case, marks=[] if case in QUICK_MESHES else [pytest.mark.slow])
        for name in _trials.LINKS
        for mesh in _trials.MESHES
        for kind in KINDS
        if name not in _trials.NOT_SPREAD
        for case in [(name, mesh, kind)]
    ],
)
def test_eight_devices_train_as_one_does(name: str, mesh: str, kind: AxisType) -> None:
    assert _trials.on_a_mesh(name, mesh, kind) < DEVIATION


@pytest.mark.slow
def test_two_processes_train_as_one_device_does() -> None:
    names = ["dynamic_task_prioritization", "famo", "upgrad", "moco-focal"]
    assert max(_two_processes.deviations(names).values()) < DEVIATION


@some("moco-focal")
def test_a_bad_step_is_one_in_which_the_task_was_masked(name: str) -> None:
    distance, number = _trials.poisoned_steps(name)
    assert number == 24
    assert distance <= 2.0**-20


@some("famo")
def test_a_run_of_many_steps_stays_finite(name: str, request: Any) -> None:
    slow = request.node.get_closest_marker("slow") is not None
    assert _trials.long_run(name, 100_000 if slow else 3_000) < 1e9


@some("db_mtl-focal")
def test_a_restored_run_goes_on_with_the_same_bits(name: str) -> None:
    assert _trials.checkpointed(name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("in_context", [True, False])
def test_what_is_remembered_starts_spread_as_the_parameters_are(
    kind: AxisType, in_context: bool
) -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    specs = {"first": P("x", None), "last": P(None, "x")}
    params = {
        name: jax.device_put(np.ones((8, 16), np.float32), jax.NamedSharding(mesh, s))
        for name, s in specs.items()
    }
    combiners: Any = dtp_jax.combiners
    links = [
        combiners.moco(NAMES),
        combiners.db_mtl(NAMES),
        combiners.one_at_a_time(NAMES, toys.balancers.mgda()),
        toys.balance(toys.balancers.excess_mtl(params), NAMES),
    ]
    for link in links:
        if in_context:
            with jax.set_mesh(mesh):
                state = link.init(params)
        else:
            state = link.init(params)
        rows = [x for x in jax.tree.leaves(state) if x.shape == (4, 8, 16)]
        assert len(rows) == 2
        shards = [x.sharding.shard_shape(x.shape) for x in rows]
        assert shards == [(4, 1, 16), (4, 8, 2)]


def traffic(
    link: Any, mode: Any = "auto", *, spread: bool
) -> tuple[dict[str, int], Any]:
    program, size = reliability.traffic_of(link, mode, spread, P("x"))
    return sent(program), (program, int(size))


def test_a_step_by_kpis_sends_the_losses_and_kpis_and_nothing_else() -> None:
    link = toys.dynamic_task_prioritization(NAMES)
    plain, _ = traffic(None, spread=False)
    found, _ = traffic(link, spread=False)
    assert set(found) == set(plain) == {"all-reduce"}
    # Float32 losses and KPIs, of which plain training has none to send.
    assert 0 <= found["all-reduce"] - plain["all-reduce"] <= 2 * 4 * len(NAMES)


@pytest.mark.parametrize("mode", ["auto", pytest.param("vmap", marks=pytest.mark.slow)])
def test_a_step_by_the_gramian_reduces_each_row_once_and_gathers_none(
    mode: Any,
) -> None:
    link = toys.balance(toys.balancers.upgrad(), NAMES)
    plain, (_, size) = traffic(None, spread=True)
    found, _ = traffic(link, mode, spread=True)
    few = 4 * 4 * len(NAMES) ** 2 * (reliability.DEPTH + 1) + 64
    # The gradients of T tasks, one more where the rows are not kept, and [T, T].
    passes = len(NAMES) + (mode != "auto")
    assert found["all-reduce"] <= passes * size + few
    # The parameters, once for each layer and pass as in plain training.
    assert found["all-gather"] <= plain["all-gather"] + few


@pytest.mark.skipif(
    _spread.shard_alike is None, reason="this version of JAX has no shard_alike"
)
@pytest.mark.parametrize(
    "mode", ["switch", pytest.param("map", marks=pytest.mark.slow)]
)
def test_rows_of_a_loop_are_spread_as_the_parameters_are(mode: Any) -> None:
    link = toys.balance(toys.balancers.upgrad(), NAMES)
    _, (plain, size) = traffic(None, spread=True)
    _, (program, _) = traffic(link, mode, spread=True)
    held = [p.memory_analysis().temp_size_in_bytes for p in (plain, program)]
    # Whole, the rows of T tasks would be another 4.
    assert held[1] - held[0] < 2.5 * size


@pytest.mark.slow
def test_a_run_that_is_killed_ends_in_the_same_bits() -> None:
    assert "the same bits" in soak.soak(num_steps=600, num_kills=2)


def test_a_soak_has_its_place_on_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n## First\n\nText.\n")
    assert not soak.section_of(page)
    soak.write_section(page, "the same bits.")
    soak.write_section(page, "the same bits again.")
    assert page.read_text().startswith("# Page\n\n## First\n\nText.\n\n## Faults")
    assert page.read_text().count(soak.HEADING) == 1
    assert page.read_text().endswith("the same bits again.\n")
    assert soak.section_of(page).endswith("the same bits again.\n")


def test_the_page_says_what_it_should() -> None:
    text = reliability.calculation()
    # 2 B a number, 10 B of them, sent and received: 40 GB; gathered twice and
    # reduce-scattered: 60 GB.
    assert (
        "| plain, KPIs, losses, T = 8       |            40 |            60 |" in text
    )
    page = Path(reliability.__file__).parent.parent / "docs" / "reliability.md"
    shown = page.read_text(encoding="utf-8")
    missing = [
        n for n in set(_trials.LINKS) - _trials.VARIANTS if f"| {n} " not in shown
    ]
    assert not missing
    rows = [line for line in shown.splitlines() if line.startswith("| ")]
    assert not [row for row in rows if " no |" in row]
