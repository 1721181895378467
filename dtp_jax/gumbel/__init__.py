"""The Gumbel distribution, and choosing by Gumbel noise.

The distribution of the maximum of many independent values, with location ``loc`` (its
mode, not its mean) and ``scale > 0``. Everywhere below, ``z = (x - loc) / scale`` and
``t = exp(-z)``. The arguments of all functions broadcast against each other. Values and
derivatives keep their relative accuracy in both tails, also in float32, except where
the condition of the problem forbids it: an error of one part in 1e7 in ``z`` becomes
one of ``|z| t`` parts in 1e7 in ``exp(-t)``.

A scale given as a Python number must be positive. In an array or a tracer, a scale that
is not positive gives NaN. A log-density and a log-cdf contain ``exp(-z)`` itself, which
overflows in float32 at about ``z = -88``: from there on they are -inf, with the largest
finite slope, of which nothing is left where a mask multiplies it by zero. `pdf` and
`cdf` have the value and the slope zero there. No slope is NaN. Half precision is
computed in float32 and answered in its own type; integers are subtracted before they
are converted.

`jax.scipy.stats.gumbel_r` has the first eight functions as well, but its `sf` loses all
digits in float32 beyond ``z = 16``, and some of its derivatives with respect to the
scale and the probability raise.

* Distribution: `pdf`, `logpdf`, `cdf`, `logcdf`, `sf`, `logsf`, `ppf`, `isf`; `mean`,
  `median`, `mode`, `variance`, `entropy`, `kl_divergence`.
* Draws: `sample`, `perturbed_logits`, `gumbel_max`, `gumbel_softmax`, `top_k`.
"""

from ._distribution import cdf as cdf
from ._distribution import isf as isf
from ._distribution import logcdf as logcdf
from ._distribution import logpdf as logpdf
from ._distribution import logsf as logsf
from ._distribution import pdf as pdf
from ._distribution import ppf as ppf
from ._distribution import sf as sf
from ._moments import entropy as entropy
from ._moments import kl_divergence as kl_divergence
from ._moments import mean as mean
from ._moments import median as median
from ._moments import mode as mode
from ._moments import variance as variance
from ._sampling import gumbel_max as gumbel_max
from ._sampling import gumbel_softmax as gumbel_softmax
from ._sampling import perturbed_logits as perturbed_logits
from ._sampling import sample as sample
from ._sampling import top_k as top_k

__all__ = [
    "cdf",
    "entropy",
    "gumbel_max",
    "gumbel_softmax",
    "isf",
    "kl_divergence",
    "logcdf",
    "logpdf",
    "logsf",
    "mean",
    "median",
    "mode",
    "pdf",
    "perturbed_logits",
    "ppf",
    "sample",
    "sf",
    "top_k",
    "variance",
]
