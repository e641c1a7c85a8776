"""Settings of Sphinx for the site; `make docs` writes the pages beside a copy of it, and calls Sphinx (`tools/make_site.py`).

Nothing is loaded from elsewhere: fonts are the reader's own, formulas are MathML, search is a file beside the pages."""
import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

logger = logging.getLogger(__name__)

project = "rnn_fastai"
author = copyright = "The rnn_fastai developers"
language = "en"
smartquotes = False   # texts and code are full of quotes that mean themselves

extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath", "deflist", "attrs_block"]
myst_heading_anchors = 3
myst_dmath_allow_space = myst_dmath_allow_digits = False
suppress_warnings = ["myst.header"]   # notebooks may leave a level out
exclude_patterns = ["_static"]

add_module_names = False
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "rnn_fastai"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_js_files = [("copy.js", {"id": "all-there"})]   # the last thing of a page
html_search_scorer = "scorer.js"
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
html_domain_indices = False   # the reference is a list of modules
html_math_renderer = "mathml"
pygments_style, pygments_dark_style = "a11y-high-contrast-light", "a11y-high-contrast-dark"


def _mathml(self, node: nodes.Element, block: bool) -> None:
    "A formula as MathML, which browsers draw themselves."
    try: self.body.append(tex2mathml(node.astext(), as_block=block))
    except Exception: logger.warning("not a formula: %s", node.astext(), location=node)
    raise nodes.SkipNode


class LinkNames(SphinxPostTransform):
    """Code in a text that is a public name becomes a link to its entry. A plain word, such as `states`, may be an
    argument or a column as well: it becomes one where it is called, or a method of `learn`."""
    default_priority = 999

    def run(self, **kwargs: object) -> None:
        "Look at every piece of code outside of links, titles and signatures."
        known = _public_names(self.env)
        for node in [*self.document.findall(nodes.literal)]:
            found = re.fullmatch(r"(?:learn\.)?([A-Za-z_][\w.]*)(\(.*\))?", node.astext())
            plain = found and found[0].isalpha() and found[0].islower()
            page, anchor = known.get(found[1], ("", "")) if found and not plain else ("", "")
            if not page or isinstance(node.parent, nodes.reference | nodes.title): continue
            link = make_refnode(self.app.builder, self.env.docname, page, anchor, node.deepcopy(), found[1])
            node.replace_self(link)


def _public_names(env: object) -> dict[str, tuple[str, str]]:
    "Short name -> page and anchor; names that several modules define are left out."
    if hasattr(env, "rnn_names"): return env.rnn_names
    found: dict[str, set] = {}
    for full, entry in env.get_domain("py").objects.items():
        if entry.objtype == "module": found.setdefault(full.removeprefix("rnn_fastai."), set()).add((entry.docname, entry.node_id))
        else:
            parts = full.split(".")
            owner = [parts[-2]] if parts[-2][0].isupper() else []
            names = {".".join([*owner, parts[-1]])}
            if owner and owner[0].endswith("Learner"): names.add(parts[-1])
            for name in names: found.setdefault(name, set()).add((entry.docname, entry.node_id))
    env.rnn_names = {name: next(iter(places)) for name, places in found.items() if len(places) == 1}
    return env.rnn_names


def _wait(app: object, page: str, template: str, context: dict, doctree: object) -> None:
    "Draw a page when all of it is there: tables and the footer would move with each part that comes."
    context["metatags"] = context.get("metatags", "") + '<link rel="expect" href="#all-there" blocking="render">'


def setup(app: object) -> None:
    "Formulas, links, and when a page is drawn."
    app.connect("html-page-context", _wait)
    app.add_html_math_renderer("mathml", (lambda s, n: _mathml(s, n, False), None), (lambda s, n: _mathml(s, n, True), None))
    app.add_post_transform(LinkNames)
