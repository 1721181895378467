"""Names in code that have a page of their own become links to it."""

import functools
import re
from pathlib import Path

from docutils import nodes
from sphinx import addnodes

LIST = Path(__file__).parent.parent / "tests" / "public_names.txt"
# Words that mean something else as often.
ALSO_WORDS = {"constant", "random", "floor", "losses", "weights"}


@functools.cache
def targets():
    """From what pages write to the full name."""
    found = {}
    for full in LIST.read_text(encoding="utf-8").split():
        parts = full.split(".")[1:]
        found[full] = full
        found[".".join(parts)] = full
        is_method = parts[0] in ("balancers", "combiners") and len(parts) > 1
        if is_method and parts[-1] not in ALSO_WORDS:
            found.setdefault(parts[-1], full)
    for word in ALSO_WORDS:
        found.pop(word, None)
    return found


def link_names(app, doctree):
    """Wraps code that is a public name in a reference to it.

    Args:
        app: The Sphinx application.
        doctree: The page.
    """
    if not doctree.get("source", "").endswith(".md"):
        return
    for literal in list(doctree.findall(nodes.literal)):
        if isinstance(literal.parent, (nodes.reference, addnodes.pending_xref)):
            continue
        name = re.sub(r"\(.*\)$", "", literal.astext())
        full = targets().get(name)
        if full is None or literal.parent is None:
            continue
        reference = addnodes.pending_xref(
            "",
            refdomain="py",
            reftype="obj",
            reftarget=full,
            refdoc=app.env.docname,
            refwarn=False,
        )
        literal.replace_self(reference)
        reference += literal
