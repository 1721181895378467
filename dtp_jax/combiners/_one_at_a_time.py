"""One task a step: rules of the Gramian on averaged gradients, refreshed in turns."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dtp_jax._core import linalg
from dtp_jax._core.balancer import Balancer, checked_balancer, link
from dtp_jax._core.checks import check_scalar
from dtp_jax._core.counters import count_up
from dtp_jax._core.layout import task_layout
from dtp_jax._core.numerics import is_finite
from dtp_jax._core.probe import probed
from dtp_jax.gradients import Stacked, TaskGradients
from dtp_jax.links._combiner import memory_of_rows, weighted
from dtp_jax.links._one_gradient import check_one_gradient, place_of
from dtp_jax.links._step import check_state


class OneAtATimeState(NamedTuple):
    """State of `one_at_a_time`."""

    of_link = True  # for `checked_balancer`; no field

    task_weights: Any  # of the last step, a pytree like the tasks
    tracked: Any  # [T, *param], running sums of the gradients of each task
    gramian: jax.Array  # [T, T], of what is tracked
    counts: jax.Array  # [T], int32, how often each task was seen
    steps: jax.Array  # [], int32, updates that were not zero
    direction: Any  # [*param], running sum of the answers
    balancer: Any


def one_at_a_time(
    tasks: Any,
    balancer: optax.GradientTransformation,
    *,
    decay: jax.typing.ArrayLike = 0.9,
) -> Balancer:
    """Computes the gradient of one task a step, and balances the averages of all.

    A step costs one forward and one backward pass of one task, whatever T is. The
    `task` of the step refreshes its running average; the balancer weighs the averages
    of all tasks, corrected for their start; and Adam's momentum makes the balanced
    direction of what comes out. With k_t how often the task was seen and n the number
    of updates::

        m_t <- decay * m_t + (1 - decay) * g                  # of the task of the step
        d = sum_t w_t m_t / (1 - decay^k_t)                   # w of the balancer
        s_n = (1 - decay^n) * d
        update = (s_n - decay * s_(n-1)) / (1 - decay)

    So the first moment of `optax.adam` with ``b1=decay`` is s_n, and corrected d; its
    second moment is that of the update. With ``balancers.config()`` this is momentum
    ConFIG.

    Draw the task in turns, or by priority (`curricula.sample_tasks`), and differentiate
    its loss alone::

        def loss_fn(params, task, batch):
            return jax.lax.switch(task, [loss_a, loss_b], params, batch)

        gradient = jax.grad(loss_fn)(params, task, batch)
        updates, state = tx.update(gradient, state, params, task=task)

    Until every active task was seen once the updates are zero, which Adam would count:
    `optax.conditionally_transform` keeps it still for the first T - 1 steps. A task
    that joins later takes no part until it was seen, nor does one that is masked, and
    a gradient that is not finite is left out; averages stay. If no task is active, the
    update is zero.

    The averages take T times the memory of the parameters, spread as these are, and lag
    by some T / (1 - decay) steps. All parameters count as shared.

    Args:
        tasks: Names, for losses given as ``{name: scalar}``; an int T, for losses given
            as one [T] array; or an example pytree of the losses.
        balancer: A rule that reads the Gramian, such as ``balancers.config()``. It gets
            no losses and no KPIs.
        decay: Of the averages, in [0, 1): b1 of the Adam that follows.

    Returns:
        A gradient transformation from the gradient of one task. Its `update` needs
        ``task=``, a name or a position, which may be traced.

    Raises:
        ValueError: If `decay` is out of range; from `update`, if there is no `task`,
            or it is none of the tasks, or the gradients are those of several.

    Example:
        >>> from dtp_jax import balancers
        >>> tx = one_at_a_time(["a", "b"], balancers.mgda(), decay=0.5)
        >>> params = jnp.zeros(2)
        >>> state = tx.init(params)
        >>> first, state = tx.update(jnp.array([2.0, 0.0]), state, params, task="a")
        >>> second, state = tx.update(jnp.array([0.0, 2.0]), state, params, task="b")
        >>> first.tolist(), second.tolist()
        ([0.0, 0.0], [1.0, 1.0])

    References:
        Liu, Chu, Thuerey, "ConFIG: Towards Conflict-free Training of Physics Informed
        Neural Networks", ICLR 2025, algorithm 2, and the authors' package conflictfree,
        whose `PseudoMomentumOperator` is this with `balancers.config` and Adam.
    """
    layout = task_layout(tasks)
    rule = checked_balancer("balancer", balancer, layout)
    check_scalar("decay", decay, low=0, high=1, open_high=True)

    def init(params: Any) -> OneAtATimeState:
        ours = probed(layout)
        size, tracked = ours.num_tasks, memory_of_rows(ours, None, params)
        return OneAtATimeState(
            ours.full(0.0),
            tracked,
            jnp.zeros((size, size), ours.dtype),
            jnp.zeros((size,), jnp.int32),
            jnp.zeros((), jnp.int32),
            jax.tree.map(lambda rows: jnp.zeros_like(rows[0]), tracked),
            rule.init(ours.full(0.0)),
        )

    def update(
        updates: Any,
        state: OneAtATimeState,
        params: Any = None,
        *,
        task: Any = None,
        task_mask: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, OneAtATimeState]:
        check_one_gradient(updates, state.direction, "one_at_a_time")
        check_state(state, jax.eval_shape(init, updates), layout)
        place = place_of(task, layout, "one_at_a_time")
        active = jnp.ones((layout.num_tasks,), bool)
        if task_mask is not None:
            active = layout.vector("task_mask", task_mask, dtype=bool)
        seen = active[place] & is_finite(updates)

        tracked, gramian = _refreshed(state, updates, place, decay, seen)
        counts = count_up(state.counts, seen & (jnp.arange(layout.num_tasks) == place))
        waits = (state.steps == 0) & jnp.any(active & (counts == 0))
        usable = active & (counts > 0)
        goes = ~waits & jnp.any(usable)

        # Of a task that was never seen there is nothing to correct.
        started = 1 - decay ** jnp.maximum(counts, 1).astype(layout.dtype)
        scales = jnp.asarray(1 / started, layout.dtype)
        rows = jax.tree.map(lambda x: weighted(scales, x), tracked)
        known = gramian * scales[:, None] * scales[None, :]
        ones, shared = layout.full(1.0), (True,) * len(jax.tree.leaves(rows))
        gradients = TaskGradients(ones, Stacked(rows, shared, known))
        wanted = layout.tree(usable.astype(layout.dtype))
        weights, of_rule = rule.update(
            wanted, state.balancer, ones, task_gradients=gradients, **extra_args
        )
        vector = jax.lax.stop_gradient(layout.vector("weights", weights))
        vector = jnp.where(usable, vector, 0)

        steps = count_up(state.steps, goes)
        part = 1 - decay ** jnp.maximum(steps, 1).astype(layout.dtype)
        answer = jax.tree.map(lambda x: part * linalg.weighted_sum(vector, x), rows)

        def pseudo(new: jax.Array, old: jax.Array, like: Any) -> jax.Array:
            moved = jnp.where(goes, (new - decay * old) / (1 - decay), 0)
            return moved.astype(jnp.result_type(like))

        def kept(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(goes, new, old).astype(old.dtype)

        direction = jax.tree.map(kept, answer, state.direction)
        of_rule = jax.tree.map(kept, of_rule, state.balancer)
        used = layout.tree(vector)
        new = OneAtATimeState(used, tracked, gramian, counts, steps, direction, of_rule)
        return jax.tree.map(pseudo, answer, state.direction, updates), new

    return link(init, update)


def _refreshed(
    state: OneAtATimeState, gradient: Any, place: Any, decay: Any, seen: jax.Array
) -> tuple[Any, jax.Array]:
    products = jnp.zeros(state.counts.shape, state.gramian.dtype)
    leaves, treedef = jax.tree.flatten(state.tracked)
    moved = []
    for rows, new in zip(leaves, jax.tree.leaves(gradient), strict=True):
        old = jax.lax.dynamic_index_in_dim(rows, place, keepdims=False)
        row = decay * old + (1 - decay) * new.astype(rows.dtype)
        row = jnp.where(seen, row, old).astype(rows.dtype)
        rows = jax.lax.dynamic_update_index_in_dim(rows, row, place, 0)
        # The rows of the other tasks did not move: T products in place of T^2.
        products += linalg.gram(rows, row[None])[:, 0].astype(products.dtype)
        moved.append(rows)
    gramian = state.gramian.at[place].set(products).at[:, place].set(products)
    return treedef.unflatten(moved), gramian
