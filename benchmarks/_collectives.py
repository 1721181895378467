"""What a compiled program sends from device to device."""

import re
from typing import Any

import numpy as np

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_OPERATION = re.compile(rf"= (.*?) ({_KINDS})(?:-start)?\(")
_ARRAY = re.compile(r"(?:f|bf|s|u|pred)(\d*)\[([\d,]*)\]")


def sent(compiled: Any) -> dict[str, int]:
    """Bytes of the results of each kind of collective operation.

    An operation in the body of a loop counts once, however often it runs.

    Args:
        compiled: A compiled function.

    Returns:
        From the name of an operation to the bytes of its results on one device.
    """
    totals: dict[str, int] = {}
    for line in compiled.as_text().splitlines():
        found = _OPERATION.search(line)
        if found is None:
            continue
        for bits, sizes in _ARRAY.findall(found.group(1)):
            axes = [int(size) for size in sizes.split(",") if size]
            size = int(np.prod(axes, dtype=int)) * max(int(bits or 8), 8) // 8
            totals[found.group(2)] = totals.get(found.group(2), 0) + size
    return totals
