"""Configuration of the documentation site, which `nox -s docs` builds with Sphinx.

The source directory is the root of the repository, so that a link from a page to a plugin's README
works on the site and in the repository alike.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

project = "fusion-core"
author = "The fusion-core developers"
project_copyright = f"2026, {author}"
_PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
release = version = _PROJECT["version"]

root_doc = "docs/index"
include_patterns = [
    *("docs/*.md", "docs/*/*.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
    *("plugins/*/README.md", "plugins/*/CHANGELOG.md", "plugins/*/build/README.md"),
    *("benchmarks/README.md", "examples/README.md"),
]
exclude_patterns = ["**/.venv/**", ".nox/**"]
extensions = ["myst_parser", "sphinx_copybutton"]

myst_enable_extensions = ["deflist", "fieldlist"]
myst_heading_anchors = 4
# `# doctest` and recipe comments are text of their own language, not Sphinx's.
suppress_warnings = ["misc.highlighting_failure"]

html_theme = "furo"
html_title = "fusion-core"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_theme_options = {
    "top_of_page_buttons": [],
    "navigation_with_keys": True,
}
html_extra_path = ["static/index.html"]
html_copy_source = False
html_show_sourcelink = False

copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True

linkcheck_anchors = False
