"""How `make docs-site` builds the site; the sources are those of the repository."""

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
exclude_patterns = [".*", ".*/**", "outputs", "outputs/**", "docs/dtp_study/*.md"]

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

default_role = "py:obj"
autodoc_typehints = "none"
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
html_theme_options = {
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}

# Every page but those is written by people.
_pages.write(Path(__file__).parent)


def setup(app):
    """Links names in code to their pages."""
    app.connect("doctree-read", _names.link_names)
