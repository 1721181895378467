"""The reference, the derivatives of the network, and that everything is written."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import allen_cahn


def test_the_reference_has_converged_and_solves_the_equation() -> None:
    times, places, u = allen_cahn.reference()
    _, _, fine = allen_cahn.reference(num_steps=4000)
    assert np.abs(u - fine).max() < 1e-8
    start = places**2 * np.cos(np.pi * places)
    np.testing.assert_allclose(u[0], start, atol=1e-12)
    np.testing.assert_allclose(allen_cahn.start(places), start, atol=1e-6)
    # By differences in time, against the right-hand side by Fourier.
    middle = (u[2:] - u[:-2]) / (times[2] - times[0])
    waves = np.pi * np.fft.fftfreq(len(places), 1 / len(places))
    u_xx = np.fft.ifft(-(waves**2) * np.fft.fft(u)).real
    right = 1e-4 * u_xx + 5 * u - 5 * u**3
    scale = np.abs(right).max()
    assert np.abs(middle - right[1:-1])[5:].max() < 0.01 * scale


def test_derivatives_of_the_network() -> None:
    params = allen_cahn.init_params(jax.random.key(0))
    t, x = jnp.array([0.2, 0.7, 1.0]), jnp.array([-0.9, 0.1, 0.55])

    def u(t: jax.Array, x: jax.Array) -> jax.Array:
        return allen_cahn.solution(params, t[None], x[None])[0]

    def residual(t: jax.Array, x: jax.Array) -> jax.Array:
        u_xx = jax.grad(jax.grad(u, argnums=1), argnums=1)(t, x)
        return jax.grad(u)(t, x) - 1e-4 * u_xx - 5 * u(t, x) + 5 * u(t, x) ** 3

    expected = jax.jit(jax.vmap(residual))(t, x) ** 2
    np.testing.assert_allclose(allen_cahn.squares(params, t, x), expected, rtol=1e-4)
    later = allen_cahn.solution(params, t, x + 2) - allen_cahn.start(x + 2)
    now = allen_cahn.solution(params, t, x) - allen_cahn.start(x)
    np.testing.assert_allclose(later, now, atol=1e-5)
    at_start = allen_cahn.solution(params, 0 * t, x)
    np.testing.assert_array_equal(at_start, allen_cahn.start(x))


@pytest.mark.slow
def test_writes_table_and_figure(tmp_path: Path) -> None:
    allen_cahn.main(["--steps", "20", "--seeds", "2", "--out", str(tmp_path)])
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert all(name in text for name in allen_cahn.methods_to_compare())
    assert "nan" not in text
    assert (tmp_path / "allen_cahn.png").stat().st_size > 10_000


def test_wrong_arguments() -> None:
    with pytest.raises(SystemExit):
        allen_cahn.main(["--steps", "30"])
