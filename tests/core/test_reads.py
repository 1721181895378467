import jax.numpy as jnp
import pytest

from dtp_jax._core import reads


def test_gramian_of_another_number_of_tasks() -> None:
    with pytest.raises(ValueError, match="rule needs `task_gradients`"):
        reads.gramian_of(None, jnp.ones(2), "rule")
