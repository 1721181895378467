"""Plain files that survive a kill: each is written whole, or not at all."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

PLAN, COSTS = "plan", "costs"


class Store:
    """Files of a comparison in a folder, or in memory only.

    Args:
        folder: Made when something is first written; None for memory.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        """Notes the folder; see the class."""
        self.folder = None if folder is None else Path(folder)
        self._arrays: dict[str, dict[str, np.ndarray]] = {}
        self._notes: dict[str, Any] = {}

    def read(self, name: str) -> dict[str, np.ndarray] | None:
        """Arrays that were written under a name, or None."""
        if self.folder is None:
            return self._arrays.get(name)
        path = self._path(name, "npz")
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as file:
            return dict(file)

    def write(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes arrays, in one go."""
        if self.folder is None:
            self._arrays[name] = dict(arrays)
            return
        # The names of arrays are arguments, which the types of numpy do not expect.
        save: Any = np.savez
        self._replace(self._path(name, "npz"), lambda file: save(file, **arrays))

    def forget(self, name: str) -> None:
        """Removes arrays, if there are any."""
        self._arrays.pop(name, None)
        if self.folder is not None:
            self._path(name, "npz").unlink(missing_ok=True)

    def read_note(self, name: str) -> Any:
        """What JSON can hold, or None."""
        if self.folder is None:
            return self._notes.get(name)
        path = self._path(name, "json")
        return json.loads(path.read_text("utf-8")) if path.exists() else None

    def write_note(self, name: str, value: Any) -> None:
        """Writes what JSON can hold, in one go."""
        text = json.dumps(value, indent=1)
        self._notes[name] = json.loads(text)
        if self.folder is not None:
            self._replace(
                self._path(name, "json"), lambda file: file.write(text.encode())
            )

    def _path(self, name: str, ending: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.{ending}"

    def _replace(self, path: Path, write: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A rename within a folder happens at once, so that no half of a file is read.
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def file_name(name: str) -> str:
    """A name of a method that any file system takes, different for different ones.

    Args:
        name: Of the method.

    Returns:
        Letters, digits and hyphens.
    """
    readable = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return f"{readable[:40]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
