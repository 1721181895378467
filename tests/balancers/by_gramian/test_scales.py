"""No rule adds an absolute constant, or drops what is below one."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtp_jax import balancers
from tests.solvers.problems import correlated, draw

KEY = jax.random.key(0)

# What gradients times c do to the weights: they are multiplied by c to this power.
RULES: dict[str, tuple[Callable[..., Any], float]] = {
    "aligned_mtl": (balancers.aligned_mtl_weights, 0),
    "cagrad": (balancers.cagrad_weights, 0),
    "config": (balancers.config_weights, 0),
    "dual_projection": (balancers.dual_projection_weights, 0),
    "fair_grad": (functools.partial(balancers.fair_grad_weights, alpha=3.0), -1.5),
    "grad_vac": (functools.partial(balancers.grad_vac_weights, key=KEY), 0),
    "imtl_g": (balancers.imtl_g_weights, 0),
    "krum": (functools.partial(balancers.krum_weights, num_byzantine=1), 0),
    "mgda": (balancers.mgda_weights, 0),
    "mgda-l2": (functools.partial(balancers.mgda_weights, normalization="l2"), 0),
    "nash_mtl": (functools.partial(balancers.nash_mtl_weights, max_norm=None), -1),
    "pcd": (functools.partial(balancers.pcd_weights, primary=0), 0),
    "pcgrad": (functools.partial(balancers.pcgrad_weights, key=KEY), 0),
    "upgrad": (balancers.upgrad_weights, 0),
}


@jax.jit
@jax.vmap
def all_weights(gramian: jax.Array) -> dict[str, Any]:
    return {name: rule(gramian) for name, (rule, _) in RULES.items()}


def test_units_of_the_gradients() -> None:
    rows = draw(correlated, 4, 9, 2, 1)
    factors = np.array([1.0, 2.0**-40, 2.0**40, 2.0**-50])
    gramians = jnp.asarray(np.multiply.outer(factors**2, rows @ rows.T), jnp.float32)
    for name, found in all_weights(gramians).items():
        weights = found[0] if name == "grad_vac" else found
        expected = np.multiply.outer(factors ** RULES[name][1], weights[0])
        # The factors are powers of two, and change no digit but in logarithms.
        np.testing.assert_allclose(weights, expected, rtol=1e-4, err_msg=name)
