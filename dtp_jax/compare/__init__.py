"""Methods compared on your own problem, in one call.

`compare` trains methods on a `Problem` over several seeds and learning rates, tunes
them alike on validation data, and says which of the differences on test data are more
than noise. `default_methods` is a dozen to begin with. The extra `compare` installs
what it shows progress and figures with; it works without.

* `compare`, `default_methods`: the call, and what it takes if nothing is given.
* `Problem`, `Method`: what goes in.
* `Comparison`, `Row`, `Results`, `Interval`: what comes out.
"""

from ._compare import compare as compare
from ._comparison import Comparison as Comparison
from ._default import default_methods as default_methods
from ._methods import Method as Method
from ._problem import Problem as Problem
from ._result import Results as Results
from ._result import Row as Row
from ._student import Interval as Interval

__all__ = [
    "Comparison",
    "Interval",
    "Method",
    "Problem",
    "Results",
    "Row",
    "compare",
    "default_methods",
]
