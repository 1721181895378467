"""Information theory: entropies and divergences that are right at zero.

Wherever two distributions occur, `p` comes first and is the truth, `q` is the model.
`optax.losses` has it the other way round: ``kl_divergence(log_predictions, targets)``
and ``softmax_cross_entropy(logits, labels)`` take the model first, and have NaN values
or derivatives at some zeros. `scipy.stats.entropy(p, q)` and
`jax.scipy.special.rel_entr(p, q)` have the order of this module.

Each measure of discrete distributions has two forms. The first takes probabilities.
They are used as they are and never normalized: if they do not sum to one, the formula
in the docstring is still what is computed. The second, ``..._from_logits``, takes
logits, of which the probabilities are the softmax; it should be preferred where there
are logits, since it keeps its accuracy for small probabilities.

Probabilities must not be negative, which is not checked. Conventions at zero:

* ``0 log 0 = 0`` and ``0 log(0 / q) = 0``, also for ``q = 0``.
* An entry with ``p > 0`` and ``q = 0`` makes cross-entropy and KL divergence inf.
* Where a term is inf or has an infinite slope (the entropy at ``p = 0``, the
  Jensen-Shannon divergence at ``p = 0 < q``), this slope is taken as zero, so that
  derivatives are always finite.

Half precision is computed in float32, and answered in its own type.

The keyword arguments of all of them: `axis`, an axis or several, or None for all, over
which the distribution extends; `where`, a mask that broadcasts to it, whose False
entries contribute nothing, whatever they contain, and are left out of a softmax;
`base`, the base of the logarithm, None for e. The unit is then nats; base 2 gives bits.

* Of probabilities: `self_information`, `entropy`, `cross_entropy`, `kl_divergence`,
  `js_divergence`.
* Of logits: `entropy_from_logits`, `cross_entropy_from_logits`,
  `kl_divergence_from_logits`, `js_divergence_from_logits`.
* Of densities: `gaussian_entropy`, `gaussian_kl_divergence`, `gumbel_kl_divergence`.
"""

from dtp_jax import gumbel

from ._gaussian import gaussian_entropy as gaussian_entropy
from ._gaussian import gaussian_kl_divergence as gaussian_kl_divergence
from ._logits import cross_entropy_from_logits as cross_entropy_from_logits
from ._logits import entropy_from_logits as entropy_from_logits
from ._logits import js_divergence_from_logits as js_divergence_from_logits
from ._logits import kl_divergence_from_logits as kl_divergence_from_logits
from ._probabilities import cross_entropy as cross_entropy
from ._probabilities import entropy as entropy
from ._probabilities import js_divergence as js_divergence
from ._probabilities import kl_divergence as kl_divergence
from ._probabilities import self_information as self_information

__all__ = [
    "cross_entropy",
    "cross_entropy_from_logits",
    "entropy",
    "entropy_from_logits",
    "gaussian_entropy",
    "gaussian_kl_divergence",
    "gumbel_kl_divergence",
    "js_divergence",
    "js_divergence_from_logits",
    "kl_divergence",
    "kl_divergence_from_logits",
    "self_information",
]

# The divergence of Gumbel distributions, in the order of this module: truth, model.
gumbel_kl_divergence = gumbel.kl_divergence
