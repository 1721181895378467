import optax
import pytest

from dtp_jax import balancers
from dtp_jax._core import balancer


def test_a_factory_that_was_not_called() -> None:
    with pytest.raises(TypeError, match=r"balancer must be .*call it, as in focal\(\)"):
        balancer.checked_balancer("balancer", balancers.focal)
    with pytest.raises(TypeError, match="got str"):
        balancer.checked_balancer("balancer", "focal")
    balancer.checked_balancer("balancer", optax.identity())
