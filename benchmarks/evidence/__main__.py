"""Compares the catalogue on all problems: ``python -m benchmarks.evidence``.

It takes hours on two cores and may be stopped at any time: started again, it goes on.
``--short`` takes minutes, ``--tiny`` seconds for a problem; neither tells anything
about the methods.
"""

import argparse
import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from dtp_jax.compare import Comparison, compare

from ._catalogue import FEW, catalogue
from ._page import PICTURE, page, picture
from ._problems import PROBLEMS, WITHOUT_HEADS
from ._size import FULL, SHORT, Size
from ._stored import forget, keep, unpack

TINY = Size(seeds=2, tuning_seeds=1, tries=1, share=0.003, measurements=1)


def run(name: str, size: Size, few: Sequence[str] | None, out: Path) -> Comparison:
    """Compares methods on one problem, or reads what was found before.

    Args:
        name: Of the problem.
        size: How much.
        few: The methods, None for all that the problem has.
        out: A folder for this problem.

    Returns:
        The comparison.
    """
    evidence = PROBLEMS[name]
    problem = evidence.make(size)
    methods = catalogue(problem.tasks, has_trunk=name not in WITHOUT_HEADS)
    few = evidence.methods if few is None else few
    if few is not None:
        methods = {each: methods[each] for each in few}
    on_cpu = jax.default_backend() == "cpu"
    return compare(
        problem,
        methods,
        rates=size.rates(evidence.low, evidence.high),
        seeds=size.seeds,
        tuning_seeds=size.tuning_seeds,
        rule=evidence.rule,
        measurements=size.measurements,
        # What is set is for a few cores; an accelerator takes what fits.
        chunk_size=evidence.chunk_size if on_cpu else None,
        max_bytes=2**30 if on_cpu else 2**34,
        out=out,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the problems one after the other and writes the page.

    Args:
        argv: Of the command line.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs/evidence"))
    parser.add_argument("--page", type=Path, help="where to write the page")
    parser.add_argument("--only", nargs="+", choices=PROBLEMS, default=[*PROBLEMS])
    parser.add_argument("--methods", nargs="+", help="all by default")
    parser.add_argument(
        "--again", nargs="+", default=[], help="methods that changed, to be run again"
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the runs in the repository"
    )
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--short", action="store_true", help="under five minutes")
    forms.add_argument("--tiny", action="store_true", help="seconds for a problem")
    args = parser.parse_args(argv)
    size, few, form = FULL, args.methods, "full"
    if args.short:
        size, few, form = SHORT, few or FEW, "short"
    elif args.tiny:
        size, few, form = TINY, few or FEW[:1], "tiny"
    results = {}
    if form == "full":
        unpack(args.out / form)
    for name in args.only:
        needs = PROBLEMS[name].needs
        if needs and importlib.util.find_spec(needs) is None:
            print(f"{name} is left out: it needs {needs}.", flush=True)
            continue
        start = time.perf_counter()
        print(f"{name}:", flush=True)
        out = args.out / form / name.replace(" ", "_")
        forget(out, args.again)
        results[name] = run(name, size, few, out)
        print(f"{results[name].table()}\n", flush=True)
        print(f"{name} took {time.perf_counter() - start:.0f} s.\n", flush=True)
    if args.keep:
        keep(args.out / "full")
    where = args.page or args.out / form / "evidence.md"
    where.write_text(page(results, size), encoding="utf-8")
    drawn = picture(results)
    if drawn is not None:
        (where.parent / PICTURE).parent.mkdir(exist_ok=True)
        drawn.savefig(where.parent / PICTURE)
    print(f"The page is in {where}.")


if __name__ == "__main__":
    main()
