"""Figures of methods: points with intervals, trade-offs, weights over time.

* Of a run: `over_time` draws logged weights and KPIs, `cosines` who pulls against whom.
* Of methods side by side: `weights` and `curves` over time, `intervals`, `tradeoff`.
* For figures of your own: `style`, and `COLORS`, those of Okabe and Ito.

The functions return figures of matplotlib and touch no global state: show them in a
notebook, or ``figure.savefig("name.png")``.
"""

from ._looks import COLORS as COLORS  # of Okabe and Ito
from ._looks import style as style
from ._methods import intervals as intervals
from ._methods import tradeoff as tradeoff
from ._over_time import curves as curves
from ._over_time import weights as weights  # a panel for each method
from ._run import cosines as cosines  # who pulls against whom
from ._run import over_time as over_time  # what was logged

__all__ = [
    "COLORS",
    "cosines",
    "curves",
    "intervals",
    "over_time",
    "style",
    "tradeoff",
    "weights",
]
