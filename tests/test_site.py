"The site: every lesson, module and name has its place; definitions are read rightly; the code of guides runs."
import base64
import importlib
import inspect
import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from fastcore.docments import docments
from PIL import Image
from test_project import MODULES, NOTEBOOKS, module_name, public_callables

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT/"tools"))
import make_site  # noqa: E402
from make_site import HERE, course, lesson_file, toctree, with_pictures, write_pages  # noqa: E402
from pages import (  # noqa: E402
    Pictures,
    directives,
    fix_links,
    plain_html,
    read_cells,
    show_args,
    show_output,
    show_types,
    what_it_does,
)
from signatures import Arg, Thing, read_module  # noqa: E402

# The rows that five course texts are counted by.
ROWS = [f"{part}{i}" for part, n in dict(A=6, B=4, C=1, D=4, E=11).items() for i in range(1, n + 1)]
GUIDES = sorted([HERE/"index.md", *(HERE/"guides").glob("*.md")])


def test_the_course_holds_every_lesson_once():
    lessons = [lesson_file(x["notebook"]) for x in course()]
    assert sorted(lessons) == [nb for nb in NOTEBOOKS if "tutorial" in nb.name]
    for x in course(): assert x["learn"] and x["need"] and 0 < x["seconds"] < 200, x


def test_every_row_of_the_course_texts_leads_to_cells_that_exist():
    parts = yaml.safe_load((HERE/"rows.yml").read_text(encoding="utf8"))["parts"]
    rows = {row: cells.split() for part in parts for row, (_, cells) in part["rows"].items()}
    assert [*rows] == ROWS
    for row, cells in rows.items():
        for name, cell in (c.split("/") for c in cells):
            assert cell in {c["id"] for c in read_cells(lesson_file(name))}, f"{row}: {name} has no cell {cell}"


def test_arguments_are_read_as_python_sees_them():
    "Signatures, types, defaults and comments, read from the text, are those of the objects that Python has made."
    wrong = []
    for p in MODULES:
        mod = importlib.import_module(f"rnn_fastai.{module_name(p)}")
        for t in read_module(p):
            o = inspect.unwrap(getattr(mod, t.name, None) or (lambda: 0))
            if t.kind != "function" or not inspect.isfunction(o) or o.__name__ != t.name: continue
            code = o.__code__
            n = code.co_argcount + code.co_kwonlyargcount
            stars = ["*"]*bool(code.co_flags & inspect.CO_VARARGS) + ["**"]*bool(code.co_flags & inspect.CO_VARKEYWORDS)
            names = [*code.co_varnames[:n], *map(str.__add__, stars, code.co_varnames[n:])]
            got = [a.name for a in t.args]
            if sorted(got) != sorted(names): wrong.append((p.name, t.name, got, names))
            docs = docments(o, returns=False)
            for a in t.args:
                said = docs.get(a.name.lstrip("*"))
                if isinstance(said, str) and " ".join(said.split()) != " ".join(a.comment.split()):
                    wrong.append((p.name, t.name, a.name, a.comment, said))
            assert t.doc == (inspect.getdoc(o) or ""), t.name
            assert t.lines[0] <= code.co_firstlineno + len(t.notes) <= t.lines[1], t.name
    assert not wrong, "\n".join(map(str, wrong))


def test_an_entry_has_types_defaults_comments_and_what_comes_back(tmp_path):
    file = tmp_path/"some.py"
    file.write_text('__all__ = ["f", "Pair", "Net", "LIMIT"]\n'
                    'LIMIT = 3 # most of them\n'
                    '@wraps(g)\ndef f(\n    x:Tensor, # bs,sl\n    n:int|None=None, # How many\n    *,\n    deep=(1, 2), # Sizes\n'
                    ') -> Tensor: # bs\n    "Do it. Well."\n'
                    'class Pair(NamedTuple):\n    "Two."\n    a:int   # first\n    b:str=""   # second\n'
                    'class _Base(nn.Module):\n    def __init__(self,\n        size:int, # Width\n    ): pass\n'
                    '    def run(self): "Run."\n'
                    'class Net(_Base): "A net."\n'
                    '@patch\ndef grow(self:Net, by:int=1): "More."\n')
    f, pair, run, net, grow = (t for t in read_module(file) if t.kind != "data")
    assert (f.call, f.returns) == ("(x, n=None, *, deep=(1, 2))", Arg("", "Tensor", "", "bs"))
    assert f.args == [Arg("x", "Tensor", "", "bs,sl"), Arg("n", "int | None", "None", "How many"), Arg("deep", "", "(1, 2)", "Sizes")]
    assert pair.args == [Arg("a", "int", "", "first"), Arg("b", "str", "''", "second")]
    assert (run.name, net.call, net.args) == ("Net.run", "(size)", [Arg("size", "int", "", "Width")])   # its base is private
    assert (grow.name, grow.call) == ("Net.grow", "(by=1)")
    assert show_args(f.args[:1]).splitlines()[3:] == ["| argument | type | meaning |", "| --- | --- | --- |",
                                                      "| `x` | `Tensor` | bs,sl |", "```"]
    file.write_text('__all__ = ["lost"]\n')
    with pytest.raises(ValueError, match="lost"): read_module(file)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    "The folder of all pages, as Sphinx gets them."
    folder = tmp_path_factory.mktemp("pages")
    write_pages(folder)
    return folder


def test_every_public_name_has_an_entry(pages):
    lacking = []
    for _, o in public_callables():
        name = inspect.unwrap(o).__qualname__.removesuffix(".__init__")   # its own one, where it has another as well
        if not o.__module__.startswith("rnn_fastai.") or name.split(".")[-1].startswith("_"): continue
        page = (pages/"api"/f"{o.__module__.removeprefix('rnn_fastai.')}.md").read_text(encoding="utf8")
        if not re.search(rf"^`+{{py:\w+}} {re.escape(name)}(\(|$)", page, re.M): lacking.append(name)
    assert not lacking, lacking


def test_what_all_gives_of_ours_has_an_entry(pages):
    import rnn_fastai.all as rf
    text = "\n".join(p.read_text(encoding="utf8") for p in (pages/"api").glob("*.md"))
    found = {*re.findall(r"^`+{py:\w+} (\w+)", text, re.M)}
    ours = {n for n in dir(rf) if str(getattr(getattr(rf, n), "__module__", "")).startswith("rnn_fastai.") and n[0] != "_"}
    assert ours - found == set()


def test_every_page_is_in_a_list_of_pages(pages):
    names = {p.relative_to(pages).with_suffix("").as_posix() for p in pages.rglob("*.md")}
    assert {f"api/{module_name(p)}" for p in MODULES} <= names
    listed = {"index"}
    for name in names:
        text = (pages/f"{name}.md").read_text(encoding="utf8")
        for block in re.findall(r"```{toctree}\n(.*?)```", text, re.S):
            here = name.rpartition("/")[0]
            for line in block.splitlines():
                target = (re.search(r"<(.+)>", line) or [0, line])[1].strip()
                if target and target[0] != ":": listed.add(f"{here}/{target}".lstrip("/"))
    assert {n for n in names if not n.startswith("source/")} == listed


@pytest.mark.parametrize("guide", GUIDES, ids=lambda p: p.stem)
def test_the_code_of_a_guide_runs_from_top_to_bottom(guide, tmp_path, monkeypatch, capsys):
    "A block of text below a block of code is what the code prints."
    import matplotlib
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", guide.read_text(encoding="utf8"), re.M | re.S)
    assert blocks
    for (kind, code), (after, said) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if kind != "python": continue
        capsys.readouterr()
        exec(compile(code, guide.name, "exec"), scope)
        if after == "text": assert capsys.readouterr().out.strip() == said.strip()
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize("guide", GUIDES, ids=lambda p: p.stem)
def test_code_of_a_guide_fits_its_column(guide):
    "The column of text has room for 90 letters in the browser tried; fonts differ, so lines have 84 at most."
    blocks = re.findall(r"^```(?:python|sh|text)\n(.*?)^```$", guide.read_text(encoding="utf8"), re.M | re.S)
    assert not [line for block in blocks for line in block.splitlines() if len(line) > 84]


def test_pictures_of_a_page_come_from_cells(tmp_path):
    pictures = Pictures(tmp_path)
    got = with_pictures("![Units](800_tutorial.hi/e2aecf4e)", pictures, "../")
    src = re.search(r'src="\.\./([^"]+)" width="(\d+)" height="(\d+)" alt="Units"', got)
    assert (tmp_path/src[1]).read_bytes()[:4] == b"\x89PNG" and int(src[2]) > 100
    with pytest.raises(ValueError, match="has no picture in cell 9ba84fec"):
        with_pictures("![x](800_tutorial.hi/9ba84fec)", pictures, "")


def test_ramps_of_colours_keep_their_steps_in_small_pictures():
    "With 64 colours those of two ramps are 7 off and more; lines on white need no more."
    from matplotlib import colormaps
    from small_outputs import small_png
    def png(pixels):
        out = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(out, "png")
        return base64.b64encode(out.getvalue()).decode()
    def pixels(png): return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")).astype(int)
    values = np.random.default_rng(0).random((100, 100))
    held = np.hstack([colormaps[name](values, bytes=True)[..., :3] for name in ("coolwarm", "Purples")])
    got = pixels(small := small_png(png(held)))
    assert np.abs(got - held).max() <= 3 and len(small) < len(png(held))
    in_order = got[:, 100:].sum(2).ravel()[values.ravel().argsort()]
    assert (np.diff(in_order) <= 0).all()               # purples only get darker
    assert small_png(small) == small
    lines = np.full((100, 200, 3), 255, np.uint8)
    lines[40:42], lines[:, 90] = (0, 0, 200), np.arange(100)[:, None]
    assert len(np.unique(pixels(small_png(png(lines))).reshape(-1, 3), axis=0)) <= 64


def test_arguments_without_a_meaning_are_a_line_and_not_a_table(pages):
    assert show_types([Arg("ids", "Tensor", "", ""), Arg("state", "", "", "")]) == "**Takes** `ids`: `Tensor`, `state`"
    assert "**Takes** `ids`: `Tensor`, `state`: `Any`" in (pages/"api"/"models.awd.md").read_text(encoding="utf8")
    for page in (pages/"api").glob("*.md"):
        heads = re.findall(r"^:class: args\n\n(.*)$", page.read_text(encoding="utf8"), re.M)
        assert all(head.endswith("| meaning |") for head in heads), page


def test_outputs_links_and_directives(tmp_path):
    assert directives(dict(cell_type="code", source='#| export\n#| fig-alt: "A line"\nx = 1')) == {"export": "", "fig-alt": "A line"}
    assert plain_html('<div><style scoped>a\n</style><table border="1" class="dataframe"></div>') == '<div><table class="dataframe"></div>'
    assert fix_links("[a](models.crf.html#x) [b](docs/scale.md)", "api") == "[a](models.crf.md) [b](../guides/scale.md)"
    code = dict(cell_type="code", source="f()")
    shown = show_output(dict(text=["\x1b[1mbold\x1b[0m ```\n"]), code, "n", Pictures(tmp_path), "")
    assert shown.startswith("````{code-block} text") and "bold ```" in shown and "\x1b" not in shown
    assert toctree(["a"]).splitlines() == ["```{toctree}", ":hidden:", "", "a", "```"]


def test_the_site_is_made_and_not_kept(): assert f"/{make_site.SITE.name}/" in (ROOT/".gitignore").read_text().split()


def test_what_contributing_tells_to_do_can_be_done():
    "Commands are installed, targets are in the Makefile, and files exist."
    text = (ROOT/"CONTRIBUTING.md").read_text(encoding="utf8")
    targets = re.findall(r"^([\w-]+):", (ROOT/"Makefile").read_text(encoding="utf8"), re.M)
    lines = "\n".join(re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)).splitlines()
    assert len(lines) >= 12
    for line in filter(None, lines):
        name, *args = line.split("#")[0].split()
        if name == "make": assert args[0] in targets, line
        elif name != "source": assert (Path(sys.executable).parent/name).exists(), line
        for file in re.findall(r"(?:tools|tests)/\w+\.py", line): assert (ROOT/file).exists(), line
    for target in re.findall(r"`make ([\w-]+)`", text): assert target in targets
    for file in re.findall(r"`((?:docs|nbs|rnn_fastai)/[\w./]*|[A-Z]+\.md)`", text): assert (ROOT/file).exists(), file
    size, cell, line = map(int, re.search(r"at most (\d+) lines, classes and exported cells (\d+), lines (\d+)", text).groups())
    house = (ROOT/"tests"/"test_project.py").read_text(encoding="utf8")
    assert f"<= {size}" in house and f"> {cell}]" in house and f"> {line} " in house


def test_events_and_parts_of_cells_say_what_they_are():
    def method(name, doc=""): return Thing(name, "method", "()", [], None, doc, [], [], (1, 2), [])
    assert "event" in what_it_does(method("StateFeeder.after_batch"))
    assert "contract of `Cell`" in what_it_does(method("LayerNormLSTMCell.inside"))
    assert what_it_does(method("Recurrent.forward")) == what_it_does(method("Other.inside")) == ""
    assert what_it_does(method("StateFeeder.after_batch", "Own words.")) == "Own words."
