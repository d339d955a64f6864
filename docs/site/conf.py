"The site: notebooks by MyST-NB, mathematics as MathML (no script, no fonts, no other host), the rest from Sphinx."

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
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_math_renderer = "mathml"
html_theme_options = {
    "show_prev_next": True,
    "navigation_with_keys": True,
    "show_toc_level": 2,
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": {"**": ["page-toc"], "nbs/tutorials/explore": [], "live": [], "benchmark": []},
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "footer_start": ["copyright"],
    "footer_end": [],
}
# pages with nothing below them
_alone = ("index", "learn", "benchmark", "gallery", "glossary", "references", "cite", "nbs/tutorials/explore", "live")
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


def setup(app):
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
