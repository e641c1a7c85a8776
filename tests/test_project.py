"The house: notebooks, modules and README in step; no star imports; documented arguments; sizes."
import ast
import dataclasses
import inspect
import json
import re
import sys
from pathlib import Path

import pytest
from fastcore.docments import docments

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT/"nbs").glob("*.ipynb"))
MODULES = [p for p in sorted((ROOT/"rnn_fastai").rglob("*.py")) if p.name not in ("__init__.py", "_modidx.py", "all.py", "__main__.py")]


def cells(nb: Path) -> list: return json.loads(nb.read_text(encoding="utf8"))["cells"]
def source(c: dict) -> str: return "".join(c["source"])
def module_name(p: Path) -> str: return ".".join(p.relative_to(ROOT/"rnn_fastai").with_suffix("").parts)


def exports(nb: Path) -> str | None:
    "The module that a notebook exports to, if it does."
    found = [m[1] for c in cells(nb) for m in [re.search(r"^#\| default_exp (\S+)", source(c), re.M)] if m]
    return found[0] if found else None


def test_every_module_has_its_notebook_and_the_other_way_round():
    assert {module_name(p) for p in MODULES} == {e for e in map(exports, NOTEBOOKS) if e}
    for nb in NOTEBOOKS:
        if exports(nb): assert nb.stem.split("_", 1)[1] == exports(nb)
        assert re.match(r"\d{3}_", nb.name) or nb.name == "index.ipynb", nb


def number(nb: Path) -> int: return int(nb.stem.split("_")[0])


def test_modules_import_only_from_lower_numbers():
    numbers = {exports(nb): number(nb) for nb in NOTEBOOKS if exports(nb)}
    assert len(set(numbers.values())) == len(numbers)
    for nb in NOTEBOOKS:
        if not exports(nb): continue
        src = "\n".join(source(c) for c in cells(nb) if source(c).startswith("#| export"))
        for name in re.findall(r"^from rnn_fastai\.(\S+) import", src, re.M):
            assert numbers[name] < number(nb), f"{nb.name} imports {name}"


# Folders from the ground up; a module imports from its own folder and from those before it. `recipes` uses them all.
FOLDERS = ["root", "data", "models", "generate", "inside", "callback", "learner", "ship", "recipes", "cli"]
# `data` is made with fastai and pandas; what is built on torch alone does not know it.
APART = {"models": {"data"}, "generate": {"data"}, "inside": {"data"}}


def folder(module: str) -> str:
    "The folder of a module; `recipes` stands above the others."
    return "recipes" if module == "recipes" else module.split(".")[0] if "." in module else "root"


def test_data_flows_one_way_between_folders():
    for p in MODULES:
        here = folder(module_name(p))
        for n in ast.walk(ast.parse(p.read_text(encoding="utf8"))):
            if not isinstance(n, ast.ImportFrom) or not n.level: continue
            base = module_name(p).split(".")[:-n.level]
            there = folder(".".join([*base, n.module or ""]).strip("."))
            assert FOLDERS.index(there) <= FOLDERS.index(here), f"{p}:{n.lineno}"
            assert there not in APART.get(here, ()), f"{p}:{n.lineno}"


def test_the_root_holds_what_all_folders_use():
    assert {module_name(p) for p in MODULES if "." not in module_name(p)} == {"core", "devices", "files", "progress", "recipes"}


@pytest.mark.parametrize("name", ["models", "generate", "inside"])
def test_what_needs_torch_alone_loads_alone(name):
    import subprocess
    heavy = {"fastai", "pandas", "pyarrow", "spacy", "sklearn"}
    mods = [m for m in map(module_name, MODULES) if folder(m) == name]
    code = "; ".join([*(f"import rnn_fastai.{m}" for m in mods), f"import sys; print(*{heavy} & set(sys.modules))"])
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == ""


def test_readers_of_exported_models_load_without_torch():
    import subprocess
    heavy = {"torch", "fastai", "fastcore", "pandas", "pyarrow", "spacy", "onnx", "onnxruntime", "tokenizers"}
    mods = "core", "data.rules", "ship.facts", "ship.codec", "ship.pick", "ship.onnx_model"
    code = "; ".join([*(f"import rnn_fastai.{m}" for m in mods), f"import sys; print(*{heavy} & set(sys.modules))"])
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == ""


def test_readme_is_made_from_the_index():
    sys.path.insert(0, str(ROOT/"tools"))
    from readme import make_readme
    assert (ROOT/"README.md").read_text(encoding="utf8") == make_readme()


def test_no_star_imports_and_no_bare_except():
    for p in MODULES:
        for n in ast.walk(ast.parse(p.read_text(encoding="utf8"))):
            assert not (isinstance(n, ast.ImportFrom) and any(a.name == "*" for a in n.names)), p
            assert not (isinstance(n, ast.ExceptHandler) and n.type is None), p


def nodes(p: Path, kind: type) -> list:
    return [n for n in ast.walk(ast.parse(p.read_text(encoding="utf8"))) if isinstance(n, kind)]

def n_lines(n: ast.AST) -> int: return n.end_lineno - n.lineno + 1


def test_functions_and_lines_are_short():
    sizes = sorted(n_lines(n) for p in MODULES for n in nodes(p, ast.FunctionDef))
    assert sizes[-1] <= 45 and sizes[len(sizes)*9//10] <= 16 and sizes[len(sizes)//2] <= 6, sizes
    for p in MODULES:
        lines = enumerate(p.read_text(encoding="utf8").splitlines(), 1)
        assert not [i for i, line in lines if len(line) > 120 and not line.startswith("__all__")], p


def test_classes_and_exported_cells_are_short():
    for p in MODULES: assert not [n.name for n in nodes(p, ast.ClassDef) if n_lines(n) > 80], p
    for nb in NOTEBOOKS:
        sizes = [source(c).count("\n") + 1 for c in cells(nb) if source(c).startswith("#| export")]
        assert max(sizes, default=0) <= 80, nb

def public_callables() -> list:
    "Public functions, classes and their public methods that the package defines, with a name to tell them by."
    import importlib
    res = []
    for p in MODULES:
        mod = importlib.import_module(f"rnn_fastai.{module_name(p)}")
        for name in mod.__all__:
            o = getattr(mod, name)
            if getattr(o, "__module__", None) != mod.__name__: continue
            if inspect.isclass(o):
                own = [v for k, v in vars(o).items() if inspect.isfunction(v) and (k == "__init__" or not k.startswith("_"))]
                made = dataclasses.is_dataclass(o) or getattr(o, "_is_protocol", False)   # its `__init__` is not written
                if made: own = [f for f in own if f is not o.__init__]
                res += [(f"{name}.{f.__name__}", f) for f in own] + [(name, o)]
            elif inspect.isfunction(o): res.append((name, o))
    return res


# What fastai calls by name: events of callbacks, and methods whose arguments are fastai's own; and what `Cell` documents.
INHERITED = {"fit", "new", "get_preds", "validate", "lr_find", "show_results", "step", "forward", "after_pred", "after_batch", "before_batch", "before_fit",
             "before_train", "before_validate", "after_fit", "after_loss", "after_epoch", "after_train", "after_cancel_batch",
             "create_opt", "activation", "decodes", "project", "terms", "scan", "inside", "all_states",
             "recur"}


def test_public_things_are_documented():
    lacking = []
    for name, o in public_callables():
        last = name.split(".")[-1]
        if last in INHERITED: continue
        if last != "__init__" and not inspect.getdoc(o): lacking.append(f"{name}: no docstring")
        if inspect.isclass(o): continue
        f = inspect.unwrap(o)
        own = f.__code__.co_varnames[:f.__code__.co_argcount]   # delegated arguments are documented where they come from
        params = [p for k, p in inspect.signature(f).parameters.items() if k in own]
        docs = docments(f, full=True, returns=False)
        for p in params:
            if p.name in ("self", "cls"): continue
            if p.annotation is p.empty: lacking.append(f"{name}({p.name}): no type")
            if not docs[p.name].docment: lacking.append(f"{name}({p.name}): no comment")
    assert not lacking, "\n".join(lacking)


def test_notebooks_are_lean_and_tested():
    for nb in NOTEBOOKS:
        cs = cells(nb)
        src = [source(c) for c in cs if c["cell_type"] == "code"]
        assert not any("skip_exec" in s for s in src), nb
        outputs = [json.dumps(c.get("outputs", [])) for c in cs]
        assert sum(map(len, outputs)) < 60_000, nb
        assert not re.search(r"/tmp/tmp\w{8}", "".join(outputs)), f"{nb}: run tools/small_outputs.py"
        n_exports = sum(s.startswith("#| export") for s in src)
        n_tests = sum(bool(re.search(r"\bassert|test_eq|assert_close|expect_fail", s)) for s in src)
        assert n_tests >= n_exports - 1, (nb, n_exports, n_tests)   # the cell of imports needs none


def test_modules_that_texts_name_exist():
    "A name such as `data.texts` in notebooks, docstrings and pages leads somewhere."
    folders = "|".join(f for f in FOLDERS if f not in ("root", "recipes"))
    named = re.compile(rf"(?:`(?:rnn_fastai\.)?|\b[Ss]ee )((?:{folders})\.(?!ipynb|md|html)[a-z_]\w*)")
    assert named.findall("see learner.lm and `rnn_fastai.data.lm`, `learner.fit()` of data.frames") == ["learner.lm", "data.lm", "learner.fit"]
    texts = {nb: "\n".join(map(source, cells(nb))) for nb in NOTEBOOKS}
    texts |= {p: p.read_text(encoding="utf8") for p in [*ROOT.glob("*.md"), *(ROOT/"docs").rglob("*.md")]}
    there = set(map(module_name, MODULES))
    assert not [(p.name, name) for p, text in texts.items() for name in named.findall(text) if name not in there]


OLD_ENGLISH = r"\banew\b|parted by|\bbe had\b|fastai's sake|\bmates\b|for nothing|come what may|There is: |stopped to fall"


def test_english_is_plain():
    for nb in NOTEBOOKS:
        for c in cells(nb): assert not re.search(OLD_ENGLISH, source(c)), (nb, re.search(OLD_ENGLISH, source(c)))


def test_all_gives_fastais_names_and_ours():
    import fastai.text.all as fa

    import rnn_fastai.all as rf
    missing = [n for n in dir(fa) if not n.startswith("_") and not hasattr(rf, n)]
    assert not missing
    for name in ("TextDataLoaders", "AWD_LSTM", "language_model_learner", "LMLearner", "LMDataLoader", "Adam"):
        assert getattr(rf, name) is not getattr(fa, name)
        assert getattr(rf, name).__module__.startswith("rnn_fastai.")
