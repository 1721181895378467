"""How `make docs-site` builds the site; the sources are those of the repository."""

import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import _names
import _pages

import dtp_jax

project = "dtp_jax"
author = "The dtp_jax authors"
version = release = dtp_jax.__version__

# The source folder is the root of the repository, so that a link between two pages is
# the same here and in the web view of the repository.
root_doc = "docs/index"
include_patterns = ["docs/**", "examples/README.md", "CHANGELOG.md", "CONTRIBUTING.md"]
# Extra and static files are tried against them, too, as "./site.css".
exclude_patterns = [".*", "[.]?*/**", "outputs", "outputs/**", "docs/dtp_study/*.md"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
# A tutorial is short enough to be run each time; an error in a cell is an error here.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
# The kernel of the cells: that of Python, less talkative.
os.environ["JUPYTER_PATH"] = str(Path(__file__).parent / "_jupyter")

# Formulas stand in literal blocks; examples are doctests, which are known as Python.
highlight_language = "none"
default_role = "py:obj"
autodoc_typehints = "none"
# A signature that would take several lines has a line for each argument.
maximum_signature_line_length = 70
toc_object_entries_show_parents = "hide"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_use_rtype = False
napoleon_custom_sections = [("References", "notes")]

html_theme = "sphinx_book_theme"
html_title = "dtp_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["sort.js"]
html_extra_path = ["_root"]
html_copy_source = False
# What it shows of each page begins with the menu of the theme.
html_show_search_summary = False
html_theme_options = {
    # The search field stands in the sidebar.
    "navbar_persistent": [],
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}

# Every page but those is written by people.
_pages.write(Path(__file__).parent)


def add_title(app, docname, source):
    """Gives the tables that an example wrote their name in docs/index.md as a title.

    Args:
        app: The Sphinx application.
        docname: The page.
        source: A list with its text, which is changed.
    """
    if docname.endswith("/results") and not source[0].startswith("# "):
        index = (Path(__file__).parent / "index.md").read_text(encoding="utf-8")
        page = docname.removeprefix("docs/")
        title = re.search(rf"^(.+) <{page}>$", index, re.MULTILINE)
        source[0] = f"# {title[1]}\n\n{source[0]}"


def setup(app):
    """Titles for tables, and links from names in code to their pages.

    Args:
        app: The Sphinx application.
    """
    app.connect("source-read", add_title)
    app.connect("doctree-read", _names.link_names)
    app.connect("doctree-read", _names.add_other_names)
