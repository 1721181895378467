"""The link from a balancer on losses to an optimizer on parameters."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from dtp_jax._core.balancer import Balancer, checked_balancer, link
from dtp_jax._core.layout import missing_value, task_layout
from dtp_jax._core.probe import probed
from dtp_jax.gradients import TaskGradients
from dtp_jax.links._guard import guarded
from dtp_jax.links._step import check_state, gradients_of, read_step

Heads = Literal["weights", "preferences"]


class BalanceState(NamedTuple):
    """State of `balance`."""

    of_link = True  # for `checked_balancer`; no field

    task_weights: Any  # the weights of the last step, a pytree like the tasks
    preferences: Any  # the state of the balancer that ran first
    balancer: Any  # the state of the balancer


def balance(
    balancer: optax.GradientTransformation,
    tasks: Any,
    *,
    preferences: optax.GradientTransformation | None = None,
    heads: Heads = "weights",
    guard: bool = False,
) -> Balancer:
    """Turns a balancer into a link of an optimizer's chain.

    The link takes the gradients of T tasks and returns one gradient, that of
    ``sum_t w_t L_t`` with the weights that the balancer chose. Put it first:
    ``optax.chain(balance(...), optax.clip_by_global_norm(1.0), optax.adam(1e-3))``.
    Clipping or momentum before it would act on something else than a gradient;
    `optax.MultiSteps`, `optax.apply_if_finite` and the like go after it, not around.

    Its `update` takes a `TaskGradients`, or a pytree like the parameters with leaves
    ``[T, *param]`` (then `params` is required, and ``losses=`` where a method reads
    them), and these extra arguments:

    * ``kpis``: a pytree like the tasks; None or NaN means "not observed";
    * ``task_mask``: booleans like the tasks; a task that is False has no influence on
      this step: its weight is zero and its KPI counts as not observed;
    * what else the balancer asks for, such as ``key``.

    A task whose loss is not finite is treated like a masked one, and so is one whose
    stacked gradient is not. With a `TaskGradients` of `task_gradients` all tasks share
    one backward pass, in which zero times NaN may still reach shared parameters. Chain
    `optax.apply_if_finite` after this link to drop such a step, or say ``guard=True``
    to take it without the tasks at fault.

    Args:
        balancer: A balancer, or an optax chain of balancers and transformations.
        tasks: Names, for losses given as ``{name: scalar}``; an int T, for losses given
            as one [T] array; or an example pytree of the losses. The weights are
            float64 if the example is, else float32.
        preferences: A balancer that runs first. Its weights are the preferences that
            `balancer` starts from, in place of ones.
        heads: What the parameters outside of `shared` (see `task_gradients`) get:
            "weights", the final weights; "preferences", the preferences only, which are
            the unscaled gradients that several papers ask for. A curriculum belongs in
            `preferences` then: one inside `balancer` stops the shared parameters from
            learning a task, but not its head.
        guard: Whether to look if the combined gradient is finite, and if it is not, to
            compute the gradients of the tasks one by one, leave out those that are not
            finite and take the step again: weights, state and gradient are those of a
            step with these tasks masked. Other steps cost a reduction. The program
            holds the gradients of all tasks in a branch of `jax.lax.cond`: T times the
            memory of the parameters, and some three times the time to compile. Under
            `jax.vmap` every step pays for both branches. docs/reliability.md has
            figures.

    Returns:
        A gradient transformation whose state holds ``task_weights``:
        ``optax.tree.get(opt_state, "task_weights")``.

    Raises:
        ValueError: If `tasks` or `heads` cannot be read; from `update`, if losses,
            gradients, KPIs or a restored state do not match the tasks.
        TypeError: If `balancer` or `preferences` is no balancer, or is already a link,
            such as `dynamic_task_prioritization`, a combiner or another `balance`.

    Example:
        >>> import jax.numpy as jnp
        >>> from dtp_jax import balancers, task_gradients
        >>> def losses_fn(params):
        ...     return {"a": jnp.sum(params**2), "b": jnp.sum(params)}
        >>> params = jnp.ones(2)
        >>> tx = balance(balancers.focal(gamma=0.0), ["a", "b"])
        >>> gradients = task_gradients(losses_fn)(params)
        >>> kpis = {"a": 1.0, "b": 0.5}
        >>> updates, _ = tx.update(gradients, tx.init(params), params, kpis=kpis)
        >>> [round(update, 4) for update in updates.tolist()]
        [0.6931, 0.6931]
    """
    layout = task_layout(tasks)
    balancer = checked_balancer("balancer", balancer, layout)
    first = checked_balancer(
        "preferences", optax.identity() if preferences is None else preferences, layout
    )
    if heads not in get_args(Heads):
        raise ValueError(f"heads must be 'weights' or 'preferences', got {heads!r}.")

    def init(params: Any) -> BalanceState:
        del params
        ours = probed(layout)
        # Each gets arrays of its own, which it may keep: a donated buffer may stand in
        # one field only.
        return BalanceState(
            ours.full(1.0), first.init(ours.full(0.0)), balancer.init(ours.full(0.0))
        )

    def update(
        updates: Any,
        state: BalanceState,
        params: Any = None,
        *,
        losses: Any = None,
        kpis: Any = None,
        task_mask: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, BalanceState]:
        check_state(state, jax.eval_shape(init, None), layout)
        gradients = gradients_of(updates, params, layout)

        def attempt(
            read: TaskGradients, summed: TaskGradients, mask: Any
        ) -> tuple[Any, BalanceState]:
            step = read_step(
                read,
                layout,
                losses=losses,
                kpis=kpis,
                task_mask=mask,
                extra_args=extra_args,
            )
            wanted, first_state = step.run(first, step.preferences(), state.preferences)
            weights, balancer_state = step.run(balancer, wanted, state.balancer)
            unscaled = wanted if heads == "preferences" else None
            # Gradients that a schedule scaled before this link have no meaning.
            sealed = jnp.where(gradients.untouched(), weights, missing_value())
            combined = summed.combine(sealed, unscaled)
            new = BalanceState(layout.tree(weights), first_state, balancer_state)
            return combined, new

        if guard:
            return guarded(attempt, gradients, layout, task_mask)
        return attempt(gradients, gradients, task_mask)

    return link(init, update)
