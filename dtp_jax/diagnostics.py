"""What to log: weights, KPIs and conflicts.

For a state with an axis of seeds, or of steps, map these functions:
``jax.vmap(task_weights)``.

* Of the optimizer's state, at no cost: `task_weights`, `kpis`, `kpi_problems`.
* Of weights: `effective_num_tasks`.
* Of `TaskGradients`, for a Gramian: `cosines`, `num_conflicts`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from dtp_jax._core import linalg
from dtp_jax._core.layout import layout_of, missing_value
from dtp_jax.gradients import TaskGradients
from dtp_jax.kpi import KpiState

__all__ = [
    "cosines",
    "effective_num_tasks",
    "kpi_problems",
    "kpis",
    "num_conflicts",
    "task_weights",
]

# KPIs are means of floats, which may leave [0, 1] by rounding.
_ROUNDING = 1e-5


def task_weights(opt_state: Any) -> dict[str, jax.Array]:
    """The weights of the last step by task name.

    Args:
        opt_state: The state of an optimizer whose chain holds one balancing link.

    Returns:
        A dict from the name of each task to its weight, float32. A name is the path of
        the task, "a/b" in ``{"a": {"b": ...}}``; where that would be the same for two
        tasks it is "['a']['b']".

    Raises:
        ValueError: If the state holds no task weights, or more than one set, or has an
            axis of seeds.

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax import dynamic_task_prioritization
        >>> tx = dynamic_task_prioritization(["left", "right"])
        >>> {k: v.item() for k, v in task_weights(tx.init(jnp.zeros(2))).items()}
        {'left': 1.0, 'right': 1.0}
    """
    weights = _get(opt_state, "task_weights", "a link of dtp_jax.balance")
    _check_one(opt_state, weights)
    return _by_name(weights)


def kpis(opt_state: Any) -> dict[str, jax.Array]:
    """The averaged KPIs by task name.

    Args:
        opt_state: The state of an optimizer whose chain holds one KPI-driven link.

    Returns:
        A dict from the name of each task to its averaged KPI, in [0, 1]; NaN for a task
        that was not observed yet (infinity where `jax_debug_nans` forbids NaN).

    Raises:
        ValueError: If the state holds no KPIs, more than one set, or not one KPI for
            each task (under `optax.masked`), or has an axis of seeds.

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax import dynamic_task_prioritization
        >>> tx = dynamic_task_prioritization(["left", "right"])
        >>> {k: v.item() for k, v in kpis(tx.init(jnp.zeros(2))).items()}
        {'left': nan, 'right': nan}
    """
    state = _get(opt_state, "kpis", "a KPI-driven balancer")
    names = list(task_weights(opt_state))
    if state.mean.shape != (len(names),):
        raise ValueError(
            f"The KPIs of shape {list(state.mean.shape)} do not belong to the "
            f"{len(names)} tasks one by one: they are masked, or need jax.vmap."
        )
    means = jnp.where(state.count > 0, state.mean, missing_value())
    return dict(zip(names, means, strict=True))


def kpi_problems(opt_state: Any, *, num_steps: int = 1000) -> dict[str, str]:
    """Tasks whose KPIs look wrong, and what may be the reason.

    KPIs that come as JAX arrays are clipped to [0, 1] without a word, since looking at
    them would wait for the device; the state of `dynamic_task_prioritization` keeps
    what was seen. Ask now and then, outside of `jax.jit`.

    Args:
        opt_state: The state of an optimizer whose chain holds one
            `dynamic_task_prioritization`.
        num_steps: After how many observations in a row at 0 or at the largest value a
            KPI is said to stand there.

    Returns:
        A dict from the names of such tasks to a sentence each, empty if all is well.
        Named are tasks whose KPI left [0, 1] at some time (one with a range in
        `kpi_range` may), was never observed though others were, or stands at an end.

    Raises:
        ValueError: If the state holds no such link, or more than one.

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax import TaskGradients, dynamic_task_prioritization
        >>> tx = dynamic_task_prioritization(["left", "right"])
        >>> gradients = TaskGradients.from_stacked(
        ...     jnp.eye(2), {"left": jnp.array(1.0), "right": jnp.array(1.0)}
        ... )
        >>> kpis = {"left": jnp.array(85.0), "right": jnp.array(0.5)}
        >>> _, state = tx.update(gradients, tx.init(None), kpis=kpis)
        >>> list(kpi_problems(state))
        ['left']
    """
    lowest, highest, at_end, state = (
        _get(opt_state, name, "`dynamic_task_prioritization`")
        for name in ("lowest", "highest", "at_end", "kpis")
    )
    started = int(jnp.max(state.count)) > 0
    problems = {}
    for index, name in enumerate(task_weights(opt_state)):
        low, high = float(lowest[index]), float(highest[index])
        stood, mean = int(at_end[index]), float(state.mean[index])
        if int(state.count[index]) == 0:
            if started:
                problems[name] = "never observed: its weight is its preference."
        elif low < -_ROUNDING or high > 1 + _ROUNDING:
            problems[name] = (
                f"outside of [0, 1], from {low:.6g} to {high:.6g}, and clipped: divide "
                "percentages by 100, or give kpi_range."
            )
        elif stood >= num_steps:
            end = "0: no weight can tell how bad it is" if mean < 0.5 else "its best"
            problems[name] = (
                f"stands at {end}, {stood} observations in a row. Is its scale right? "
                "See kpi_range."
            )
    return problems


def effective_num_tasks(weights: Any) -> jax.Array:
    """How many tasks the weights amount to: the exponential of their entropy.

    Computes ``exp(-sum_t q_t log q_t)`` with ``q = |w| / sum |w|``: T for equal
    weights, 1 if one task has all the weight.

    Args:
        weights: A pytree of weights.

    Returns:
        A scalar in [1, T], or 0 if all weights are zero.

    Example:
        >>> effective_num_tasks({"a": 0.5, "b": 0.5, "c": 0.0}).item()
        2.0
    """
    layout = layout_of(weights)
    absolute = jnp.abs(layout.vector("weights", weights))
    largest = jnp.max(absolute)
    relative = absolute / linalg.positive(largest)
    total = jnp.sum(relative)
    shares = relative / linalg.positive(total)
    positive = shares > 0
    terms = jnp.where(positive, shares * jnp.log(jnp.where(positive, shares, 1)), 0)
    return jnp.where(total > 0, jnp.exp(-jnp.sum(terms)), 0)


def cosines(task_gradients: TaskGradients) -> jax.Array:
    """The cosines of the angles between the gradients of the tasks.

    Args:
        task_gradients: A `TaskGradients`. Its Gramian is computed, which costs about T
            backward passes: log it every so many steps.

    Returns:
        ``[T, T]`` in [-1, 1], the tasks in the order of the leaves of the losses; zero
        where a gradient is zero.

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax import TaskGradients
        >>> rows = jnp.array([[2.0, 0.0], [-1.0, 0.0], [0.0, 3.0]])
        >>> cosines(TaskGradients.from_stacked(rows)).tolist()
        [[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    return linalg.correlation(task_gradients.gramian())[0]


def num_conflicts(
    task_gradients: TaskGradients, *, threshold: jax.typing.ArrayLike = 0.0
) -> jax.Array:
    """The number of pairs of tasks whose gradients point against each other.

    Args:
        task_gradients: A `TaskGradients`, whose Gramian is computed.
        threshold: A pair is in conflict if its cosine is below this.

    Returns:
        An int32 scalar in [0, T (T - 1) / 2].

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax import TaskGradients
        >>> rows = jnp.array([[2.0, 0.0], [-1.0, 0.0], [0.0, 3.0]])
        >>> num_conflicts(TaskGradients.from_stacked(rows)).item()
        1
    """
    against = cosines(task_gradients) < threshold
    return jnp.sum(jnp.triu(against, k=1), dtype=jnp.int32)


def _get(opt_state: Any, name: str, source: str) -> Any:
    try:
        value = optax.tree.get(opt_state, name)
    except KeyError as error:
        raise ValueError(
            f"The optimizer state holds several `{name}`: pass the state of one link."
        ) from error
    if value is None:
        raise ValueError(
            f"The optimizer state holds no `{name}`, which {source} would put there."
        )

    return _out_of_variables(value)


def _out_of_variables(tree: Any) -> Any:
    # The state of an nnx optimizer has its arrays in variables, which are no leaves.
    def in_variable(leaf: Any) -> bool:
        return hasattr(leaf, "get_value")

    return jax.tree.map(
        lambda leaf: leaf.get_value() if in_variable(leaf) else leaf,
        tree,
        is_leaf=in_variable,
    )


def _check_one(opt_state: Any, weights: Any) -> None:
    """Raises if the state looks like several, stacked by `jax.vmap` or `lax.scan`."""
    one_array = jax.tree_util.treedef_is_leaf(jax.tree.structure(weights))
    if one_array and jnp.ndim(weights) == 1:
        return
    # Tasks in arrays have an axis, too, but then a counter or an average has another.
    opt_state = _out_of_variables(opt_state)
    first_axes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(opt_state)}
    found = optax.tree.get_all_with_path(opt_state, "kpis")
    averages = [kpis.mean for _, kpis in found if isinstance(kpis, KpiState)]
    if len(first_axes) > 1 or () in first_axes or 1 in map(jnp.ndim, averages):
        return
    raise ValueError(
        f"Everything in the optimizer state has a first axis of {first_axes.pop()[0]}, "
        "as if it counted seeds or steps: map this function, too, "
        "jax.vmap(dtp_jax.diagnostics.task_weights)(opt_state). If it counts tasks, "
        'read the weights by optax.tree.get(opt_state, "task_weights").'
    )


def _by_name(tree: Any) -> dict[str, jax.Array]:
    layout = layout_of(tree)
    flat = [jnp.ravel(jnp.asarray(leaf)) for leaf in jax.tree.leaves(tree)]
    return dict(zip(layout.names, jnp.concatenate(flat), strict=True))
