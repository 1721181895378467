"""What `optax.ema` after a method is, and what it is not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests import toys
from tests.toys import balance, balancers

STEPS = toys.random_steps(2, num_steps=4)
NAMES = ("a", "b")


def smoothed(average: Any, start: Any = None) -> np.ndarray:
    """The weights of MGDA over the steps, smoothed, from a start of the average on."""
    link = balance(optax.chain(balancers.mgda(), average), NAMES)

    @jax.jit
    def run() -> Any:
        state = link.init(None)
        if start is not None:
            state = optax.tree.set(state, ema=start)
        found = []
        for index in range(4):
            step = jax.tree.map(lambda x, i=index: x[i], STEPS)
            _, state = toys.update(link, state, step, NAMES)
            found.append(jnp.stack([state.task_weights[name] for name in NAMES]))
        return jnp.stack(found)

    return np.asarray(run())


def test_ema_is_the_recursion_of_cr_mogm_only_from_its_start() -> None:
    plain = np.asarray(toys.weights_over(balancers.mgda(), STEPS, NAMES))
    average, expected = np.array([0.5, 0.5]), []
    for weights in plain:
        average = 0.9 * average + 0.1 * weights
        expected.append(average)
    start = {"a": jnp.array(0.5), "b": jnp.array(0.5)}
    found = smoothed(optax.ema(0.9, debias=False), start)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # Without a start the average starts from zero; the default divides that out.
    found = smoothed(optax.ema(0.9))
    np.testing.assert_allclose(found[0], plain[0], rtol=1e-5)
    second = (0.9 * plain[0] + plain[1]) / 1.9
    np.testing.assert_allclose(found[1], second, rtol=1e-5)
