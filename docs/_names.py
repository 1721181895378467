"""Names in code that have a page of their own become links to it."""

import functools
import re

import _pages
from docutils import nodes
from sphinx import addnodes

# Words that mean something else as often.
ALSO_WORDS = {"constant", "random", "floor", "losses", "weights"}


@functools.cache
def targets():
    """From what pages write to the full name."""
    found = {}
    for full in _pages.public_names():
        parts = full.split(".")[1:]
        found[full] = full
        found[".".join(parts)] = full
        is_method = parts[0] in ("balancers", "combiners") and len(parts) > 1
        if is_method and parts[-1] not in ALSO_WORDS:
            found.setdefault(parts[-1], full)
    for word in ALSO_WORDS:
        found.pop(word, None)
    return found


@functools.cache
def same():
    """The public names of each object that has several, by each of them."""
    found = {}
    for full in _pages.public_names():
        value = _pages.resolve(full)
        # Numbers and strings may be one object by chance.
        if callable(value):
            found.setdefault(id(value), []).append(full)
    return {full: names for names in found.values() for full in names}


def add_other_names(app, doctree):
    """Lets what is described once be found by each of its public names.

    Args:
        app: The Sphinx application.
        doctree: The page.
    """
    python = app.env.domains.python_domain
    for signature in doctree.findall(addnodes.desc_signature):
        for name in list(signature["ids"]):
            for other in same().get(name, ()):
                if other in signature["ids"]:
                    continue
                signature["ids"].append(other)
                if other not in python.objects:
                    kind = signature.parent["objtype"]
                    python.note_object(other, kind, other, aliased=True)


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
