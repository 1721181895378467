"""Runs that are kept in the repository, and those that are no longer true."""

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

from dtp_jax.compare._plan import versions
from dtp_jax.compare._store import COSTS, PLAN, file_name

# What trained for hours, so that a run goes on from there. Written by `--keep`.
KEPT = Path(__file__).with_name("runs.tar.xz")


def keep(full: Path) -> None:
    """Packs the runs of all problems into the repository.

    Args:
        full: The folder of the full form, with a folder for each problem.
    """
    with tarfile.open(KEPT, "w:xz") as archive:
        for path in sorted(full.glob("*/runs/**/*")):
            if path.is_file() and ".part" not in path.name:
                archive.add(path, path.relative_to(full), filter=_anonymous)


def unpack(full: Path) -> None:
    """Takes what the repository keeps, for each problem of which there is nothing yet.

    Runs of other versions of JAX are left: they round differently.

    Args:
        full: The folder of the full form.
    """
    if not KEPT.exists():
        return
    with tarfile.open(KEPT) as archive:
        for plan in [name for name in archive.getnames() if name.endswith("plan.json")]:
            problem = plan.split("/")[0]
            file = archive.extractfile(plan)
            same = file is not None and json.load(file)["versions"] == versions()
            if same and not (full / problem).exists():
                inside = [
                    each for each in archive if each.name.startswith(f"{problem}/")
                ]
                archive.extractall(full, inside, filter="data")


def forget(problem: Path, methods: Sequence[str]) -> None:
    """Removes what is stored of some methods, which then train again.

    Args:
        problem: The folder of a problem.
        methods: Their names.
    """
    runs = problem / "runs"
    for note in (PLAN, COSTS):
        path = runs / f"{note}.json"
        if path.exists():
            found = json.loads(path.read_text("utf-8"))
            of_methods = found["methods"] if note == PLAN else found
            for method in methods:
                of_methods.pop(method, None)
            path.write_text(json.dumps(found, indent=1), encoding="utf-8")
    for method in methods:
        for path in runs.glob(f"*/{file_name(method)}-*"):
            path.unlink()


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    return info
