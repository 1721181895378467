"""Gradient sign dropout."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from dtp_jax._core import control, linalg
from dtp_jax._core.balancer import Balancer
from dtp_jax._core.checks import check_number
from dtp_jax._core.layout import check_per_task, per_task, task_layout
from dtp_jax._core.reads import required
from dtp_jax.links._combiner import Combined, Inputs, combiner, weighted

# Folded into the key, so that several links of a chain may share one.
_CONSTANT = 0x6D12


def drop_signs(
    rows: jax.Array,
    preferences: jax.Array,
    uniform: jax.Array,
    leak: jax.Array | float = 0.0,
) -> jax.Array:
    """The rule of `grad_drop` for one parameter.

    Args:
        rows: ``[T, ...]``, the gradients of the tasks.
        preferences: ``[T]``, their factors; a row of preference zero may hold NaN.
        uniform: ``[...]``, random numbers in [0, 1), float32 or float64.
        leak: ``[T]`` or a scalar, in [0, 1].

    Returns:
        ``[...]``, the combined gradient.

    Example:
        >>> rows = jnp.array([[3.0, 3.0, 3.0], [-1.0, -1.0, 1.0]])
        >>> uniform = jnp.array([0.7, 0.8, 0.99])  # the purity is 3/4, 3/4 and 1
        >>> drop_signs(rows, jnp.ones(2), uniform).tolist()
        [3.0, -1.0, 4.0]
    """
    leaks = jnp.broadcast_to(jnp.asarray(leak, uniform.dtype), rows.shape[:1])
    zeros = jnp.zeros_like(rows[0], uniform.dtype)

    # Row after row: a reduction over the first axis is slow on CPU.
    def sizes(total: Any, task: Any) -> tuple[Any, None]:
        row, above, below = weighted(*task), *total
        return (above + jnp.maximum(row, 0), below + jnp.maximum(-row, 0)), None

    (above, below), _ = control.scan(sizes, (zeros, zeros), (preferences, rows))
    total = above + below
    # Exactly 1 where nothing is negative, so that no number reaches it.
    purity = above / linalg.positive(total)
    positive = uniform < purity

    def add(total: jax.Array, task: Any) -> tuple[jax.Array, None]:
        leak, *task = task
        row = weighted(*task)
        return total + jnp.where((row > 0) == positive, row, leak * row), None

    return control.scan(add, zeros, (leaks, preferences, rows))[0]


def grad_drop(
    tasks: Any,
    *,
    leak: Any = 0.0,
    preferences: optax.GradientTransformation | None = None,
) -> Balancer:
    """Keeps, in each entry of the gradient, only one sign, drawn by its share.

    With the purity ``P = (1 + sum_t g_t / sum_t |g_t|) / 2`` of an entry, the positive
    values of all tasks are kept with probability P and the negative ones else; the
    entry is the sum of what is kept. Tasks that agree lose nothing. A task of leak l
    keeps the part l of what would be dropped.

    `update` needs the extra argument `key`, a new PRNG key for each step such as
    ``jax.random.fold_in(key, step)``. The same key decides the same for all tasks and
    on every device.

    Preferences multiply the gradients. Parameters that are not shared get the sum of
    the gradients times the preferences.

    Args:
        tasks: Names, for losses given as ``{name: scalar}``; an int T, for losses given
            as one [T] array; or an example pytree of the losses.
        leak: How much of a dropped value leaks through, in [0, 1]; a scalar or a
            pytree like the tasks. 1 gives the sum of the gradients.
        preferences: A balancer that runs first, as in `balance`; None for ones.

    Returns:
        A combiner: a gradient transformation from the gradients of the tasks to one.

    Raises:
        ValueError: If `leak` is not in [0, 1]; from `update`, if there is no key.

    Example:
        >>> tx = grad_drop(2)
        >>> rows, params = jnp.array([[3.0, 2.0], [-1.0, 2.0]]), jnp.zeros(2)
        >>> updates, _ = tx.update(rows, tx.init(params), params, key=jax.random.key(0))
        >>> updates.tolist() in ([3.0, 4.0], [-1.0, 4.0])
        True

    References:
        Chen et al., "Just Pick a Sign: Optimizing Deep Multitask Models with Gradient
        Sign Dropout", NeurIPS 2020, equations 1 and 2, f the identity. The paper drops
        gradients of activations, with the signs of the activations and summed over the
        batch; this drops gradients of parameters, and its unscaled gradients of the
        heads are those of preferences of one.
    """
    layout = task_layout(tasks)
    for value in jax.tree.leaves(leak):
        check_number("leak", value, low=0, high=1)
    check_per_task("leak", leak, layout)

    def rule(inputs: Inputs, memory: Any) -> Combined:
        how = "pass key=jax.random.fold_in(key, step) to update"
        key = jax.random.fold_in(
            required(inputs.key, "key", "grad_drop", how), _CONSTANT
        )
        leaks = per_task("leak", leak, layout)

        def combined(index: int, rows: jax.Array) -> jax.Array:
            of_leaf = jax.random.fold_in(key, index)
            dtype = jnp.promote_types(jnp.float32, rows.dtype)
            uniform = jax.random.uniform(of_leaf, rows.shape[1:], dtype)
            return drop_signs(rows, inputs.preferences, uniform, leaks)

        gradients = [combined(i, rows) for i, rows in enumerate(inputs.rows)]
        return Combined(gradients, memory, inputs.preferences)

    return combiner(rule, tasks, preferences=preferences)
