"""A train state for flax linen that takes task gradients and extra arguments."""

import dataclasses
from typing import Any, Self

import optax

from dtp_jax.gradients import TaskGradients

try:
    from flax.training import train_state
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'dtp_jax.linen needs flax: pip install "dtp-jax[flax]"', name=error.name
    ) from error

__all__ = [
    "TrainState",
]


class TrainState(train_state.TrainState):
    """`flax.training.train_state.TrainState` that passes extra arguments to optax.

    Make the gradients with `dtp_jax.task_gradients` and ``has_aux=True``, and return
    changed collections such as batch statistics through the auxiliary output, so that
    one forward pass serves all.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
        >>> from dtp_jax import dynamic_task_prioritization, task_gradients
        >>> model = nn.Dense(2)
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 3)))
        >>> tx = optax.chain(dynamic_task_prioritization(["a", "b"]), optax.sgd(0.1))
        >>> state = TrainState.create(
        ...     apply_fn=model.apply, params=variables["params"], tx=tx
        ... )
        >>> def losses_fn(params, x):
        ...     out = state.apply_fn({"params": params}, x)
        ...     return {"a": jnp.mean(out[:, 0] ** 2), "b": jnp.mean(out[:, 1] ** 2)}
        >>> gradients = task_gradients(losses_fn)(state.params, jnp.ones((1, 3)))
        >>> state = state.apply_gradients(grads=gradients, kpis={"a": 0.2, "b": 0.7})
        >>> state.step
        1
    """

    def apply_gradients(self, *, grads: Any, **kwargs: Any) -> Self:
        """Updates parameters and optimizer state.

        Args:
            grads: A `TaskGradients`, gradients stacked along a first axis of tasks, or
                ordinary gradients if the chain has no balancing link.
            **kwargs: What is a field of this class, such as ``batch_stats`` of a
                subclass, replaces it; all else, such as ``kpis``, goes to the optimizer
                as an extra argument.

        Returns:
            The new state, its step one higher.
        """
        fields = {field.name for field in dataclasses.fields(self)}
        replaced = {name: kwargs[name] for name in kwargs if name in fields}
        extra_args = {name: kwargs[name] for name in kwargs if name not in fields}
        of_tasks: Any = grads
        if not extra_args and not isinstance(grads, TaskGradients):
            return super().apply_gradients(grads=grads, **replaced)
        tx = optax.with_extra_args_support(self.tx)
        updates, opt_state = tx.update(
            of_tasks, self.opt_state, self.params, **extra_args
        )
        params = optax.apply_updates(self.params, updates)
        return self.replace(
            step=self.step + 1, params=params, opt_state=opt_state, **replaced
        )
