"""What training may be saved with, as round trips through a file."""

from pathlib import Path
from typing import Any

import flax.serialization
import orbax.checkpoint as ocp

# Its types want arguments that its decorator supplies.
make_checkpointer: Any = ocp.StandardCheckpointer


def by_flax(tree: Any, like: Any, folder: Path) -> Any:
    """A tree as flax restores it into another of its structure."""
    file = folder / "state.msgpack"
    file.write_bytes(flax.serialization.to_bytes(tree))
    return flax.serialization.from_bytes(like, file.read_bytes())


def by_orbax(tree: Any, like: Any, folder: Path) -> Any:
    """The same by Orbax."""
    with make_checkpointer() as checkpointer:
        checkpointer.save(folder / "state", tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "state", like)
