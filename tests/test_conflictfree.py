"""Momentum ConFIG against the authors' package, where PyTorch is installed."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.combiner_catalogue import combiners
from tests.toys import assert_near, balancers

torch: Any = pytest.importorskip("torch", reason="make test-torchjd installs PyTorch")
operators: Any = pytest.importorskip("conflictfree.momentum_operator")

TURNS = [0, 1, 2, 0, 1, 2, 2, 0, 1, 1, 2, 0, 0, 1, 2, 1, 0, 2]
ROWS = np.random.default_rng(0).normal(size=(len(TURNS), 40))
# One task has much longer gradients than the others.
ROWS = (ROWS * np.array([1.0, 30.0, 0.1])[TURNS][:, None]).astype(np.float32)


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.999), (0.5, 0.9)])
def test_momentum_config_of_its_authors(b1: float, b2: float) -> None:
    theirs = operators.PseudoMomentumOperator(3, beta_1=b1, beta_2=b2)
    expected = [
        theirs.calculate_gradient(task, torch.from_numpy(row)).numpy()
        for row, task in zip(ROWS, TURNS, strict=True)
    ]
    # Theirs holds Adam, which starts when every task was seen.
    adam = optax.conditionally_transform(
        optax.scale_by_adam(b1, b2),
        lambda step, **extra_args: jnp.asarray(step) >= 2,
    )
    link = combiners.one_at_a_time(3, balancers.config(), decay=b1)
    tx: Any = optax.chain(link, adam)
    params = jnp.zeros(40)
    state, found = tx.init(params), []
    for row, task in zip(ROWS, TURNS, strict=True):
        update, state = tx.update(jnp.asarray(row), state, params, task=task)
        found.append(np.asarray(update))
    assert_near(np.array(found), np.array(expected), rtol=2e-3)
