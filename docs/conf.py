"""The documentation site: `make docs`. No network is needed, and a warning is an error."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

from edgelstm import __version__  # noqa: E402

project = "edgelstm"
copyright = "the edgelstm authors, Apache-2.0"
release = version = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "docstrings",
    "tree",
    "command_line",
    "notebooks",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "_ext"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # a subclass of torch.nn.Module says nothing of its base
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
default_role = "code"
html_theme = "furo"
html_title = "edgelstm"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
# Names of the standard library and of others are written in signatures; nothing is fetched to resolve them.
nitpicky = False
doctest_global_setup = "import numpy as np; import edgelstm"
smartquotes = False  # what stands in help texts is typed as it stands
