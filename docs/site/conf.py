"The site: notebooks by MyST-NB, mathematics as MathML (no script, no fonts, no other host), the rest from Sphinx."

import re
from configparser import ConfigParser
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.errors import ExtensionError

_settings = ConfigParser()
_settings.read(Path(__file__).with_name("settings.ini"), encoding="utf-8")
_cfg = _settings["DEFAULT"]

project, author, copyright, version = _cfg["title"], _cfg["author"], _cfg["copyright"], _cfg["version"]
release = version
extensions = ["myst_nb", "sphinx_design"]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "attrs_inline", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_merge_streams = True
suppress_warnings = ["myst.header"]
html_theme = "pydata_sphinx_theme"
html_title = project
exclude_patterns = ["**/download"]  # as they are, for the reader
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_search_scorer = str(Path(__file__).with_name("_static") / "scorer.js")
html_show_sourcelink = False
html_math_renderer = "mathml"
_wide = ("nbs/tutorials/explore", "live", "benchmark", "index")
html_theme_options = {
    "show_prev_next": True,
    "navigation_with_keys": True,
    "show_toc_level": 2,
    "header_links_before_dropdown": 6,
    "navbar_persistent": ["search-button"],
    "secondary_sidebar_items": {"**": ["page-toc"]} | {page: [] for page in _wide},
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "footer_start": ["copyright"],
    "footer_end": [],
}
# pages with nothing below them
_alone = ("index", "install", "learn", "benchmark", "gallery", "glossary", "references", "cite")
_alone += ("nbs/tutorials/explore", "live")
html_sidebars = {"**": ["sidebar-nav-bs"]} | {page: [] for page in _alone}


def _mathml(latex: str, display: str) -> str:
    try:
        return convert(latex, display=display)
    except Exception as e:
        raise ExtensionError(f"formula cannot be set: {latex!r} ({e})") from e


def _inline(self, node):
    self.body.append(f'<span class="math">{_mathml(node.astext(), "inline")}</span>')
    raise nodes.SkipNode


def _block(self, node):
    self.body.append(f'<div class="math">{_mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def lesson_path() -> list[str]:
    "The pages of the learning path, in the order of its table."
    rows = [s for s in Path(__file__).with_name("learn.md").read_text(encoding="utf-8").splitlines() if s[:1] == "|"]
    found = ["learn", *re.findall(r"\]\((nbs/[^)#]+)\.ipynb\)", "\n".join(rows)), "benchmark"]
    return list(dict.fromkeys(found))


def _neighbours(app, page, template, context, tree):
    "Previous and next follow the learning path, with the titles of the pages; beside it they follow the menu."
    path = lesson_path()
    if page in path and app.builder.name == "html":
        at = path.index(page)
        for name, other in (("prev", at - 1), ("next", at + 1)):
            if 0 <= other < len(path) and not (page == "benchmark" and name == "next"):
                title = app.env.titles[path[other]].astext()
                context[name] = {"link": app.builder.get_relative_uri(page, path[other]), "title": title}


def setup(app):
    app.connect("html-page-context", _neighbours)
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
