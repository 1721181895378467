import jax
import numpy as np
import pytest

from dtp_jax import balance, balancers
from examples import physics_informed
from examples.physics_informed import NUM_POINTS, TASKS, Method, Points
from tests.toys import assert_near


def small_params():
    return jax.tree.map(
        lambda leaf: np.ones(leaf.shape, leaf.dtype),
        jax.eval_shape(physics_informed.init_params, jax.random.key(0)),
    )


@pytest.fixture
def small(monkeypatch):
    """A network and numbers that compile quickly."""
    monkeypatch.setattr(physics_informed, "WIDTH", 4)
    monkeypatch.setattr(physics_informed, "DEPTH", 1)
    monkeypatch.setattr(physics_informed, "NUM_POINTS", dict.fromkeys(TASKS, 4))
    monkeypatch.setattr(physics_informed, "TRACE_POINTS", 2)
    monkeypatch.setattr(physics_informed, "ROUNDS", 2)


def test_solution_solves_the_equation():
    points = np.random.default_rng(0).uniform(-1, 1, (50, 2)).astype(np.float32)
    hessians = jax.jit(jax.vmap(jax.hessian(physics_informed.solution)))(points)
    u = physics_informed.solution(points)
    found = np.trace(hessians, axis1=1, axis2=2) + physics_informed.WAVENUMBER**2 * u
    assert_near(found, physics_informed.source(points), rtol=1e-4)
    corners = np.array([[1, 0.3], [-1, 0.3], [0.3, 1], [0.3, -1]], np.float32)
    np.testing.assert_allclose(physics_informed.solution(corners), 0, atol=1e-6)


def test_losses_agree_with_finite_differences():
    params = jax.jit(physics_informed.init_params)(jax.random.key(0))
    points = physics_informed.draw_points(np.random.default_rng(0), 1)
    points = Points(*(column[0] for column in points))
    losses = jax.jit(physics_informed.losses_fn)(params, points)

    def network(points):
        features = points.astype(np.float64)
        for number, layer in enumerate(params):
            features = features @ np.float64(layer["w"]) + np.float64(layer["b"])
            if number < len(params) - 1:
                features = np.tanh(features)
        return features[:, 0]

    inner, h = np.float64(points.residual), 1e-3
    u = network(inner)
    laplacian = sum(
        (network(inner + step) - 2 * u + network(inner - step)) / h**2
        for step in h * np.eye(2)
    )
    source = (1 - 5 * np.pi**2) * np.sin(np.pi * inner @ np.diag([1, 2])).prod(axis=1)
    expected = {
        "residual": np.mean((laplacian + u - source) ** 2),
        "x_sides": np.mean(network(points.x_sides) ** 2),
        "y_sides": np.mean(network(points.y_sides) ** 2),
    }
    for task in TASKS:
        np.testing.assert_allclose(losses[task], expected[task], rtol=1e-4)


def test_points_are_where_they_belong():
    points = physics_informed.draw_points(np.random.default_rng(3), 5)
    for task, column in zip(TASKS, points, strict=True):
        assert column.shape == (5, NUM_POINTS[task], 2)
        assert column.dtype == np.float32
        assert np.abs(column).max() <= 1
    assert np.abs(points.residual).max() < 1
    for axis, column in enumerate([points.x_sides, points.y_sides]):
        # Half of them on each of the two sides, spread along these.
        np.testing.assert_array_equal(np.abs(column[..., axis]), 1)
        np.testing.assert_array_equal(column[..., axis].sum(axis=1), 0)
        assert column[..., 1 - axis].std() > 0.4


def test_kpis_fall_with_the_losses():
    losses = {"residual": 0.0, "x_sides": 2.0, "y_sides": 1e9}
    scales = {"residual": 1.0, "x_sides": 4.0, "y_sides": 1.0}
    kpis = physics_informed.kpis_of(losses, scales)
    expected = np.exp([0, -0.5, -3])
    np.testing.assert_allclose([kpis[task] for task in TASKS], expected, rtol=1e-6)


@pytest.mark.usefixtures("small")
def test_every_method_takes_a_step():
    params = small_params()
    points = Points(*(np.zeros((4, 2), np.float32) for _ in TASKS))
    for method in physics_informed.methods_to_compare(np.ones(3)).values():
        tx = physics_informed.optimizer(method, 0.01, 10)

        def step(params, points, method=method, tx=tx):
            state = tx.init(params)
            return physics_informed.train_step(method, tx, params, state, points)

        new_params, _, weights = jax.eval_shape(step, params, points)
        assert jax.tree.structure(new_params) == jax.tree.structure(params)
        assert set(weights) == set(TASKS)
        assert method.reads in physics_informed.READS


@pytest.mark.usefixtures("small")
def test_networks_share_the_counters_of_refreshes():
    # With a counter for each network `cond` would turn into a select of both branches.
    balancer = balancers.lr_annealing("residual", refresh_every=10)
    method = Method(balance(balancer, TASKS), "gradients")
    tx = physics_informed.optimizer(method, 0.01, 10)
    one = small_params()
    two = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), one)
    axes = physics_informed.network_axes(jax.eval_shape(tx.init, one))
    states = jax.vmap(tx.init, out_axes=axes)(two)
    points = Points(*(np.zeros((2, 3, 4, 2), np.float32) for _ in TASKS))
    train_round = physics_informed.compile_round(method, tx, axes)
    assert "cond[" in str(train_round.trace(two, states, points).jaxpr)


@pytest.mark.usefixtures("small")
def test_writes_tables_and_plots(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(physics_informed, "GRID", (1.0, 10.0))
    monkeypatch.setattr(physics_informed, "TUNING_SEEDS", 2)
    every_method = physics_informed.methods_to_compare
    chosen = ["equal weights", "uncertainty"]
    monkeypatch.setattr(
        physics_informed,
        "methods_to_compare",
        lambda weights: {name: every_method(weights)[name] for name in chosen},
    )
    arguments = ["--out", str(tmp_path), "--steps", "4", "--seeds", "2"]
    physics_informed.main(arguments)
    written = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert written in capsys.readouterr().out
    assert "nan" not in written
    methods, _, tuning, _ = written.split("\n\n")
    assert _rows(methods) == chosen
    assert _rows(tuning) == ["x sides 1", "x sides 10"]
    for name in ("errors", "solutions", "weights"):
        data = (tmp_path / f"{name}.png").read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) < 150_000


def _rows(table):
    return [line.split("|")[1].strip() for line in table.splitlines()[2:]]


@pytest.mark.parametrize("argument", ["--steps=10", "--steps=30", "--seeds=1"])
def test_rejects_what_it_cannot_report(argument, capsys):
    with pytest.raises(SystemExit):
        physics_informed.main([argument])
    assert "multiple of 20" in capsys.readouterr().err
