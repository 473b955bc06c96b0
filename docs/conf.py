"""The manual: ``make docs`` builds it into ``build/docs``, where it is read without a network.

Sphinx, because the docstrings are written in its language and it is well kept, when MkDocs has had no release
since 2024 and Material for MkDocs is in maintenance; MyST for pages in Markdown; furo, whose pages are read
on a telephone as well. Formulas become MathML, which browsers draw themselves, in a font that lies beside the
pages.
"""

from __future__ import annotations

import sys
from importlib.metadata import version as _version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_extensions"), str(HERE / "networks"), str(HERE.parent)]

import math_font  # noqa: E402

import pyops  # noqa: E402

project = "pyops"
author = "the pyops authors"
project_copyright = "the pyops authors, Apache-2.0"
version = release = pyops.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "docstrings", "mathml", "tables"]
exclude_patterns = ["_extensions"]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
myst_links_external_new_tab = True
html_math_renderer = "mathml"

# Every name that a page refers to exists, torch's and Python's aside, whose manuals are not here.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(torch|nn|collections|types|typing|pathlib|Path|numpy|functools)(\..*)?"),
    ("py:class", r"(Any|Callable|Sequence|Mapping|Iterable|Iterator|ModuleType)"),
    ("py:class", r"(Module|PackedSequence|Tensor)"),
    # In signatures: type variables, and classes that users do not name.
    ("py:class", r"pyops\..*"),
    ("py:mod", r"pyops\.ops"),
]

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_display_short_literal_types = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"pyops {release}"
html_static_path = ["_static", math_font.folder()]
html_css_files = ["manual.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "monokai"

if int(_version("sphinx").split(".")[0]) < 9:
    raise RuntimeError("the manual needs Sphinx 9: pip install 'pyops-kernels[docs]'")
