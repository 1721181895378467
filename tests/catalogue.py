"""Every method and what the contract suite needs to know of it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dtp_jax import balancers, curricula
from tests import toys


@dataclasses.dataclass(frozen=True)
class Hyperparameter:
    """A number that a method takes, and that a schedule may change.

    Attributes:
        factory: The factory that takes it.
        name: What it calls it.
        args: The factory's other arguments, or functions of the names that make them.
        static: What optax must not trace.
        around: From what the factory makes to a balancer for named tasks.
    """

    factory: Callable[..., Any]
    name: str
    args: tuple[Any, ...] = ()
    static: tuple[str, ...] = ()
    around: Callable[[Any], Any] = lambda balancer: balancer

    def set(self, names: tuple[str, ...], value: Any) -> Any:
        """The balancer with this value."""
        return self._call(self.factory, names, value)

    def inject(self, names: tuple[str, ...], value: Any) -> Any:
        """The same by optax, which injects all other numbers as well."""
        injected = optax.inject_hyperparams(self.factory, self.static)
        return self._call(injected, names, value)

    def _call(self, factory: Callable[..., Any], names: Any, value: Any) -> Any:
        args = [arg(names) if callable(arg) else arg for arg in self.args]
        return self.around(factory(*args, **{self.name: value}))


@dataclasses.dataclass(frozen=True)
class Method:
    """A factory call and the properties that the method declares.

    Attributes:
        name: For the test's id.
        make: From the names of the tasks to the balancer.
        by_name: Whether a hyperparameter names the tasks, so that they must have names.
        random: Whether the answer depends on a key, so that some properties only hold
            in law.
        prefers: Whether a larger preference gives a larger weight.
        min_tasks: The fewest tasks the method takes.
        variant: Whether it is a setting of a method that stands here with another, so
            that it is left to the slow tests.
        static: The hyperparameters that `optax.inject_hyperparams` must not trace.
        number: A hyperparameter that is a float, if it has one.
        ordered: Whether the order of the tasks says something.
        dtype: Of losses and gradients.
    """

    name: str
    make: Callable[[tuple[str, ...]], Any]
    by_name: bool = False
    random: bool = False
    prefers: bool = True
    min_tasks: int = 1
    variant: bool = False
    static: tuple[str, ...] = ()
    number: Hyperparameter | None = None
    ordered: bool = False
    dtype: Any = jnp.float32


def _join_later(names: tuple[str, ...]) -> Any:
    return curricula.stages({0: list(names), 2: list(names)}, balancers.focal())


def _squares(losses: Any) -> jax.Array:
    return sum((jnp.sum(loss**2) for loss in jax.tree.leaves(losses)), jnp.zeros(()))


def _third(names: tuple[str, ...]) -> str:
    """The task that the suite keeps in its place when it changes their order."""
    return "c" if "c" in names else names[-1]


METHODS = [
    Method(
        "focal",
        lambda names: balancers.focal(),
        number=Hyperparameter(balancers.focal, "gamma"),
    ),
    Method(
        "focal-gamma-0",
        lambda names: balancers.focal(gamma=0.0, alpha=1.0),
        variant=True,
    ),
    Method(
        "focal-per-task",
        lambda names: balancers.focal(gamma=dict.fromkeys(names, 1.0)),
        by_name=True,
    ),
    Method("normalize_weights", lambda names: balancers.normalize_weights()),
    Method(
        "normalize_weights-1",
        lambda names: balancers.normalize_weights("sum_to_1"),
        variant=True,
    ),
    Method(
        "causal",
        lambda names: toys.in_one_array(balancers.causal()),
        ordered=True,
        number=Hyperparameter(balancers.causal, "tolerance", around=toys.in_one_array),
    ),
    Method(
        "causal-ladder",
        lambda names: toys.in_one_array(balancers.causal((0.1, 1.0, 10.0))),
        ordered=True,
        variant=True,
    ),
    Method(
        "residual_attention",
        lambda names: balancers.residual_attention(),
        number=Hyperparameter(balancers.residual_attention, "rate"),
    ),
    Method(
        "residual_attention-outside",
        lambda names: balancers.residual_attention(
            convention="outside", init_value=1.0
        ),
        variant=True,
    ),
    Method(
        "self_adaptive",
        lambda names: balancers.self_adaptive(),
        static=("mask",),
        number=Hyperparameter(balancers.self_adaptive, "init_value", static=("mask",)),
    ),
    Method(
        "self_adaptive-sigmoid",
        lambda names: balancers.self_adaptive(
            optimizer=optax.sgd(0.1), mask=lambda x: 5 * jax.nn.sigmoid(x)
        ),
        static=("mask",),
        variant=True,
    ),
    Method(
        "balanced_residual_decay",
        lambda names: balancers.balanced_residual_decay(),
        number=Hyperparameter(balancers.balanced_residual_decay, "mean_decay"),
    ),
    Method(
        "igb",
        lambda names: balancers.igb(num_steps=2),
    ),
    Method(
        "go4align",
        lambda names: balancers.go4align(),
        static=("num_groups",),
        number=Hyperparameter(balancers.go4align, "step_size", static=("num_groups",)),
    ),
    Method("stages", _join_later),
    Method(
        "warm_up",
        lambda names: curricula.warm_up(balancers.focal(), 2),
        number=Hyperparameter(curricula.warm_up, "num_steps", (balancers.focal(),)),
    ),
    Method(
        "focal-normalized",
        lambda names: optax.chain(balancers.focal(), balancers.normalize_weights()),
        variant=True,
    ),
    Method(
        "focal-ema", lambda names: optax.chain(balancers.focal(), optax.ema(decay=0.9))
    ),
    Method(
        "uncertainty",
        lambda names: balancers.uncertainty(),
        number=Hyperparameter(balancers.uncertainty, "bound"),
    ),
    Method(
        "uncertainty-positive",
        lambda names: balancers.uncertainty(
            kind="classification", optimizer=optax.sgd(0.1), positive=True
        ),
        variant=True,
    ),
    Method(
        "focal-uncertainty",
        lambda names: optax.chain(
            balancers.focal(), balancers.uncertainty(kind="laplace")
        ),
        variant=True,
    ),
    Method("mgda", lambda names: balancers.mgda()),
    Method("mgda-l2", lambda names: balancers.mgda(normalization="l2"), variant=True),
    Method(
        "mgda-loss+", lambda names: balancers.mgda(normalization="loss+"), variant=True
    ),
    Method(
        "focal-mgda",
        lambda names: optax.chain(balancers.focal(), balancers.mgda()),
        variant=True,
    ),
    Method("upgrad", lambda names: balancers.upgrad()),
    Method(
        "focal-upgrad",
        lambda names: optax.chain(balancers.focal(), balancers.upgrad()),
        variant=True,
    ),
    Method("dual_projection", lambda names: balancers.dual_projection()),
    Method(
        "pcd",
        lambda names: balancers.pcd(_third(names)),
        number=Hyperparameter(balancers.pcd, "tau", (_third,)),
    ),
    Method(
        "constant",
        lambda names: balancers.constant(dict.fromkeys(names, 0.5)),
        by_name=True,
    ),
    Method("random", lambda names: balancers.random(), random=True),
    Method(
        "scalarization",
        lambda names: balancers.scalarization(_squares),
        static=("fn",),
    ),
    Method("geometric", lambda names: balancers.geometric()),
    Method(
        "chebyshev",
        lambda names: balancers.chebyshev(),
        number=Hyperparameter(balancers.chebyshev, "mu"),
    ),
    Method(
        "chebyshev-nadir",
        lambda names: balancers.chebyshev(mu=0.5, nadir=2.0),
        variant=True,
    ),
    Method(
        "boundary_intersection",
        lambda names: balancers.boundary_intersection(penalty=0.5),
        number=Hyperparameter(balancers.boundary_intersection, "penalty"),
    ),
    Method(
        "boundary_intersection-clipped",
        lambda names: optax.chain(
            balancers.boundary_intersection(), balancers.clip_weights(low=0.0)
        ),
        variant=True,
    ),
    Method(
        "cosmos",
        lambda names: balancers.cosmos(),
        number=Hyperparameter(balancers.cosmos, "penalty"),
    ),
    Method(
        "geometric-floor",
        lambda names: optax.chain(balancers.geometric(), balancers.floor(0.01)),
    ),
    Method(
        "average_losses",
        lambda names: balancers.average_losses(balancers.uncertainty(), 2),
        number=Hyperparameter(balancers.average_losses, "k", (balancers.imtl_l(),)),
    ),
    Method(
        "cagrad",
        lambda names: balancers.cagrad(),
        number=Hyperparameter(balancers.cagrad, "c"),
    ),
    Method(
        "cagrad-rescaled",
        lambda names: balancers.cagrad(c=0.8, rescale=1),
        variant=True,
    ),
    Method("imtl_g", lambda names: balancers.imtl_g()),
    Method("aligned_mtl", lambda names: balancers.aligned_mtl()),
    Method(
        "aligned_mtl-rmse",
        lambda names: balancers.aligned_mtl(scale="rmse"),
        variant=True,
    ),
    Method("config", lambda names: balancers.config()),
    Method(
        "krum",
        lambda names: balancers.krum(num_byzantine=1, num_selected=2),
        prefers=False,
        min_tasks=4,
    ),
    Method(
        "nash_mtl",
        lambda names: balancers.nash_mtl(),
        number=Hyperparameter(balancers.nash_mtl, "max_norm"),
    ),
    Method(
        "nash_mtl-exact", lambda names: balancers.nash_mtl(max_norm=None), variant=True
    ),
    Method(
        "fair_grad",
        lambda names: balancers.fair_grad(alpha=2.0),
        number=Hyperparameter(balancers.fair_grad, "alpha"),
    ),
    Method("pcgrad", lambda names: balancers.pcgrad(), random=True),
    Method(
        "grad_vac",
        lambda names: balancers.grad_vac(),
        random=True,
        number=Hyperparameter(balancers.grad_vac, "beta"),
    ),
    Method(
        "modo",
        lambda names: balancers.modo(),
        number=Hyperparameter(balancers.modo, "gamma"),
    ),
    Method(
        "sdmgrad",
        lambda names: balancers.sdmgrad(num_iters=5),
        number=Hyperparameter(balancers.sdmgrad, "reg"),
    ),
    Method(
        "excess_mtl",
        lambda names: balancers.excess_mtl(step_size=0.1),
        number=Hyperparameter(balancers.excess_mtl, "step_size"),
    ),
    Method(
        "excess_mtl-params",
        lambda names: balancers.excess_mtl(jnp.zeros(16)),
        variant=True,
    ),
    Method(
        "inverse_losses",
        lambda names: balancers.inverse_losses(num_steps=2),
    ),
    Method(
        "equal_norms",
        lambda names: balancers.equal_norms(refresh_every=1),
        number=Hyperparameter(balancers.equal_norms, "momentum"),
    ),
    Method(
        "dwa",
        lambda names: balancers.dwa(),
        number=Hyperparameter(balancers.dwa, "temperature"),
    ),
    Method(
        "imtl_l",
        lambda names: balancers.imtl_l(),
        number=Hyperparameter(balancers.imtl_l, "bound"),
    ),
    Method(
        "famo",
        lambda names: balancers.famo(),
        number=Hyperparameter(balancers.famo, "weight_decay"),
    ),
    Method(
        "soft_adapt",
        lambda names: balancers.soft_adapt(variant="normalized"),
        number=Hyperparameter(balancers.soft_adapt, "beta", static=("order",)),
        static=("order",),
    ),
    Method(
        "relobralo",
        lambda names: balancers.relobralo(rho=0.5),
        random=True,
        number=Hyperparameter(balancers.relobralo, "temperature"),
    ),
    Method(
        "norm_balancer",
        lambda names: balancers.norm_balancer(),
        number=Hyperparameter(balancers.norm_balancer, "eps"),
    ),
    Method(
        "grad_norm",
        lambda names: balancers.grad_norm(),
        number=Hyperparameter(balancers.grad_norm, "alpha"),
    ),
    Method(
        "lr_annealing",
        lambda names: balancers.lr_annealing(_third(names)),
        number=Hyperparameter(balancers.lr_annealing, "alpha", (_third,)),
    ),
    Method(
        "ntk",
        lambda names: balancers.ntk(refresh_every=2),
        number=Hyperparameter(balancers.ntk, "decay"),
    ),
    Method(
        "auto_lambda",
        lambda names: balancers.auto_lambda(0.1),
        number=Hyperparameter(balancers.auto_lambda, "learning_rate"),
    ),
    Method(
        "every_k",
        lambda names: curricula.every_k(toys.projected(), 2),
        number=Hyperparameter(curricula.every_k, "k", (toys.projected(),)),
    ),
    Method(
        "focal-every_k-mgda",
        lambda names: optax.chain(
            balancers.focal(), curricula.every_k(balancers.mgda(), 2)
        ),
        variant=True,
    ),
    Method("toy-memory", lambda names: toys.remember_losses()),
    Method("toy-projected", lambda names: toys.projected(), variant=True),
    Method("toy-gramian", lambda names: toys.equal_norms()),
    Method(
        "focal-then-gramian",
        lambda names: optax.chain(balancers.focal(gamma=1.0), toys.equal_norms()),
    ),
]
