"Turns executed notebooks and definitions of modules into Markdown for the site: MyST, which Sphinx reads."
import base64
import html
import json
import re
import struct
from pathlib import Path

from signatures import ROOT, Arg, Thing, modules, read_module

PICTURES = "_static/pictures"   # folder of the pictures, in the folder of the pages


def read_cells(nb: Path) -> list[dict]:
    "The cells of a notebook, with `source` as one string."
    cells = json.loads(nb.read_text(encoding="utf8"))["cells"]
    return [{**c, "source": "".join(c["source"])} for c in cells]


def directives(cell: dict) -> dict[str, str]:
    "What stands in lines as `#| name: value` of a code cell."
    found = re.findall(r"^#\|\s*([\w-]+):?[ ]*(.*)$", cell["source"], re.M) if cell["cell_type"] == "code" else []
    return {name: value.strip().strip('"') for name, value in found}


def code_of(cell: dict) -> str:
    "The code of a cell without directives."
    return re.sub(r"^#\|.*\n?", "", cell["source"], flags=re.M).strip("\n")


def fenced(kind: str, text: str, options: str = "") -> str:
    "A block with a fence that is longer than any within."
    fence = "`"*max(3, 1 + max(map(len, re.findall(r"`{3,}", text)), default=0))
    return f"{fence}{kind}\n{options}{text}\n{fence}"


def raw(text: str) -> str: return fenced("{raw} html", text)


class Pictures:
    "Writes pictures of notebooks to files beside the pages, and gives the HTML that shows them without a shift."
    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, name: str, data: str, alt: str, up: str) -> str:
        "A picture in base64 as a file; `up` leads from the page to the top."
        png = base64.b64decode(data)
        width, height = struct.unpack(">II", png[16:24])
        path = self.folder/PICTURES/f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png)
        return (f'<img class="picture" src="{up}{PICTURES}/{name}.png" width="{width}" height="{height}" '
                f'alt="{html.escape(alt)}" loading="lazy">')


def plain_html(text: str) -> str:
    "HTML of an output without its own styles: the site has one for all tables."
    text = re.sub(r"<style.*?</style>", "", text, flags=re.S)
    return re.sub(r' border="1"| style="text-align: (right|left);"', "", text).strip()


def show_output(o: dict, cell: dict, name: str, pictures: Pictures, up: str) -> str:
    "An output of a cell, in the richest form that it has."
    data = {k: "".join(v) for k, v in o.get("data", {}).items()}
    if "image/png" in data:
        last = (code_of(cell).splitlines() or ["code"])[0]
        return raw(pictures.add(name, data["image/png"], directives(cell).get("fig-alt") or f"Picture of {last}", up))
    if "text/markdown" in data: return fenced("{code-block} text", data["text/markdown"].strip(), ":class: output\n\n")
    if "text/html" in data: return raw(f'<div class="output">{plain_html(data["text/html"])}</div>')
    text = "".join(o.get("text", data.get("text/plain", []))).rstrip()
    text = re.sub(r"\x1b\[[\d;]*m", "", text)
    return fenced("{code-block} text", text, ":class: output\n\n") if text.strip("\n ") else ""


def show_code(cell: dict, name: str, pictures: Pictures, up: str) -> str:
    "A code cell with its outputs. What a notebook hides can be opened: imports and checks that later cells need."
    what, code = directives(cell), code_of(cell)
    block = fenced("python", code)
    if "hide" in what:
        block = f"{raw('<details class=hidden><summary>Hidden cell</summary>')}\n\n{block}\n\n{raw('</details>')}"
    parts = [] if "echo" in what or not code else [block]
    for i, o in enumerate(cell.get("outputs", [])): parts.append(show_output(o, cell, f"{name}-{i}", pictures, up))
    return "\n\n".join(filter(None, parts))


def fix_links(text: str, here: str) -> str:
    "Links of notebooks and notes, as links between pages of the site; `here` is the folder of the page."
    up = "../" if here else ""
    text = re.sub(r"\]\(([\w.]+)\.html(#[^)]*)?\)", r"](\1.md)", text)
    lessons = "" if here == "lessons" else f"{up}lessons/"
    text = re.sub(r"\]\(800_tutorial\.(\w+)\.ipynb\)", rf"]({lessons}\1.md)", text)
    notes = {"docs/design.md": "project/design.md", "docs/scale.md": "guides/scale.md", "docs/results.md": "project/results.md",
             "scale.md": "guides/scale.md", "design.md": "project/design.md",
             "../docs/results.md": "project/results.md",
             "rnn_fastai/pretrained/awd_lstm_small.md": "project/small-model.md",
             "../rnn_fastai/pretrained/awd_lstm_small.md": "project/small-model.md"}
    for old, new in notes.items(): text = text.replace(f"]({old})", f"]({up}{new})")
    return text


# Pages of the reference

def in_cell(text: str) -> str:
    "Text for a cell of a table."
    return " ".join(text.replace("|", r"\|").split())


def as_code(text: str) -> str:
    "Code within a line."
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def show_args(args: list[Arg]) -> str:
    "A table of arguments; a column that all leave empty is left out."
    head = ["argument", "type", "default", "meaning"]
    rows = [[as_code(a.name), *(as_code(v) if v else "" for v in (a.type, a.default)), a.comment] for a in args]
    keep = [i for i in range(4) if any(r[i] for r in rows)]
    lines = [[head[i] for i in keep], ["---"]*len(keep), *([in_cell(r[i]) for i in keep] for r in rows)]
    return fenced("{table}", "\n".join(f"| {' | '.join(r)} |" for r in lines), ":class: args\n\n")


def show_types(args: list[Arg]) -> str:
    "Arguments and their types in a line, where nothing more is said of any."
    return "**Takes** " + ", ".join(as_code(a.name) + (f": {as_code(a.type)}" if a.type else "") for a in args)


def show_return(r: Arg | None) -> str:
    "What a function gives."
    if r is None or r.type == "None": return ""
    return f"**Returns** {as_code(r.type.strip(chr(39)))}" + (f": {r.comment}" if r.comment else "")


def source_link(module: str, lines: tuple[int, int]) -> str:
    "A link to the lines of a definition."
    return (f'<a class="source" href="../source/{module}.html#L-{lines[0]}" '
            f'title="rnn_fastai/{module.replace(".", "/")}.py, from line {lines[0]}">source</a>')


CELL = {"step", "project", "terms", "scan", "inside", "all_states", "recur", "add_parameters"}   # what `Cell` documents


def what_it_does(t: Thing) -> str:
    "The docstring, or where a method is explained that is called by others."
    owner, _, name = t.name.rpartition(".")
    if t.doc or not owner: return t.doc
    if name.startswith(("before_", "after_")): return "What is done at this event of a training; the learner calls it."
    return "A part of the contract of `Cell`; layers call it." if name in CELL and owner.endswith("Cell") else ""


def show_thing(t: Thing, module: str) -> str:
    "The entry of a name: how it is called, what it does, its arguments, what it gives, where it is written."
    body = [what_it_does(t)]
    if t.kind == "class" and t.bases: body.append("Built on " + ", ".join(map(as_code, t.bases)) + ".")
    if any(a.comment for a in t.args): body.append(show_args(t.args))
    elif any(a.type for a in t.args): body.append(show_types(t.args))
    body += [f"`**kwargs`: those of {as_code(re.split('[(,)]', d)[1])}." for d in t.notes if d.startswith("delegates(")]
    body += [show_return(t.returns), source_link(module, t.lines)]
    body += [show_thing(m, module) for m in t.members]
    options = ":classmethod:\n" if "classmethod" in t.notes else ":staticmethod:\n" if "staticmethod" in t.notes else ""
    return fenced(f"{{py:{t.kind}}} {t.name}{t.call}", "\n\n".join(filter(None, body)), options + "\n")


def first_sentence(text: str) -> str:
    "The first sentence of a docstring."
    para = text.strip().split("\n\n")[0]
    return re.split(r"(?<=[.:])\s+(?=[A-Z])", " ".join(para.split()))[0]


def cell_lines(path: Path) -> dict[str, tuple[int, int]]:
    "Cell of the notebook -> the lines of a module that come from it."
    lines = path.read_text(encoding="utf8").splitlines()
    starts = [(i, m[1]) for i, line in enumerate(lines, 1) for m in [re.match(r"# %% .*ipynb #(\w+)", line)] if m]
    ends = [i - 1 for i, _ in starts[1:]] + [len(lines)]
    return {cell: (i, end) for (i, cell), end in zip(starts, ends, strict=True)}


def subtitle(cells: list[dict]) -> str:
    "The line that says what a notebook is about."
    found = (re.search(r"^> (.+)$", c["source"], re.M) for c in cells if c["cell_type"] == "markdown")
    return next((m[1] for m in found if m), "")


def without_title(text: str) -> str:
    "Markdown without the title and the line under it."
    return re.sub(r"\A\s*# [^\n]*\n*(> [^\n]*\n*)?", "", text)


def summary_table(things: list[Thing]) -> str:
    "All names of a module, with what they do."
    rows = [f"| {{py:obj}}`~{t.name}` | {in_cell(first_sentence(t.doc))} |" for t in things if "." not in t.name]
    return fenced("{table}", "\n".join(["| name | |", "|---|---|", *rows]), ":class: names\n\n")


def module_page(module: str, path: Path, nb: Path, pictures: Pictures) -> str:
    "The page of a module: its names, then its notebook, with an entry where a name is defined."
    things, cells, where = read_module(path), read_cells(nb), cell_lines(path)
    parts = [f"(module-{module})=\n# {module}", subtitle(cells), fenced(f"{{py:module}} rnn_fastai.{module}", ""),
             f'`rnn_fastai.{module}` <a class="source" href="../source/{module}.html">source</a> '
             f'<a class="source" href="../_static/notebooks/{nb.name}" download>notebook</a>',
             summary_table(things)]
    for c in cells:
        what = directives(c)
        if c["cell_type"] == "markdown": parts.append(fix_links(without_title(c["source"]), "api"))
        elif "default_exp" in what: continue
        elif "export" in what or "exporti" in what:
            first, last = where.get(c["id"], (0, -1))
            entries = [show_thing(t, module) for t in things if first <= t.lines[0] <= last]
            helpers = [source_link(module, (first, last))] if re.search(r"^(def|class|@)", c["source"], re.M) else []
            parts += entries or helpers
        else: parts.append(show_code(c, f"{module}-{c['id']}", pictures, "../"))
    return "\n\n".join(filter(None, parts)) + "\n"


def reference_pages(pictures: Pictures) -> dict[str, str]:
    "Name of a page -> its text, for all modules."
    notebooks = {nb.stem.split("_", 1)[1]: nb for nb in (ROOT/"nbs").glob("[0-9]*.ipynb")}
    return {f"api/{m}": module_page(m, path, notebooks[m], pictures) for m, path in modules().items()}


def source_page(module: str, path: Path) -> str:
    "The text of a module with numbered lines that links can name; not searched."
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer
    look = HtmlFormatter(linenos="inline", lineanchors="L", anchorlinenos=True, cssclass="highlight source")
    text = highlight(path.read_text(encoding="utf8"), PythonLexer(), look)
    intro = f"The text of the module. What it is for: [{module}](../api/{module}.md)."
    return f"---\norphan: true\nnosearch: true\n---\n\n# {module}.py\n\n{intro}\n\n{raw(text)}\n"
