"""What the modules define, read from their text: names, arguments with types, defaults and comments, docstrings, lines.

Nothing is imported, so pages are made without torch. Arguments are documented by the comments behind them ("docments")."""
import ast
import copy
import io
import tokenize
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Arg(NamedTuple):
    "An argument, a field, or what is returned."
    name: str            # with the stars of `*args` and `**kwargs`
    type: str            # as written; empty where there is none
    default: str         # as written; empty where there is none
    comment: str         # what stands behind it


class Thing(NamedTuple):
    "A function, class or value that a module defines."
    name: str            # methods with their class: `Recurrent.forward`
    kind: str            # 'function', 'class', 'method', 'property' or 'data'
    call: str            # how it is called, without types: `(x, state=None)`; empty for properties and values
    args: list[Arg]      # of a class those of its `__init__`, or its fields
    returns: Arg | None
    doc: str
    bases: list[str]     # of a class
    notes: list[str]     # decorators that readers should know
    lines: tuple[int, int]
    members: list["Thing"]


def _comments(text: str) -> dict[int, str]:
    "Line -> the comment at its end."
    found = (t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT)
    return {t.start[0]: t.string.lstrip("# ").strip() for t in found}


def _comment(comments: dict, first: int, last: int) -> str:
    "The comment behind what ends on a line, or on the lines above it, as far as the one before reaches."
    return comments.get(last, "") or " ".join(comments[i] for i in range(first, last) if i in comments)


def _args(f: ast.FunctionDef, comments: dict, skip: int = 0) -> list[Arg]:
    "The arguments of a function, without the first `skip`."
    a = f.args
    plain = [*a.posonlyargs, *a.args]
    defaults = [None]*(len(plain) - len(a.defaults)) + [*a.defaults]
    rows = [("", p, d) for p, d in zip(plain, defaults, strict=True)]
    if a.vararg: rows.append(("*", a.vararg, None))
    rows += [("", p, d) for p, d in zip(a.kwonlyargs, a.kw_defaults, strict=True)]
    if a.kwarg: rows.append(("**", a.kwarg, None))
    res, before = [], f.lineno
    for star, p, d in rows:
        last = (d or p).end_lineno or p.lineno
        kind, default = (ast.unparse(n) if n else "" for n in (p.annotation, d))
        res.append(Arg(star + p.arg, kind, default, _comment(comments, before + 1, last) if last > f.lineno else ""))
        before = last
    return res[skip:]


def _returns(f: ast.FunctionDef, comments: dict) -> Arg | None:
    "What a function gives, by its annotation and the comment behind it."
    if f.returns is None: return None
    last = f.returns.end_lineno or f.lineno
    one_line = last == f.lineno and f.body[0].lineno == last
    return Arg("", ast.unparse(f.returns), "", "" if one_line else comments.get(last, ""))


def _call(f: ast.FunctionDef, skip: int) -> str:
    "The arguments of a function with their defaults, without types and without the first `skip`."
    a = copy.deepcopy(f.args)
    first = a.posonlyargs or a.args
    del first[:skip]
    for p in (*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))): p.annotation = None
    for some in (a.defaults, a.kw_defaults):   # a default that is worked out stands in the table alone
        some[:] = [ast.Constant(...) if d and any(isinstance(n, ast.GeneratorExp) for n in ast.walk(d)) else d for d in some]
    return f"({ast.unparse(a)})"


def _notes(n: ast.FunctionDef | ast.ClassDef) -> list[str]:
    return [ast.unparse(d) for d in n.decorator_list]


def _function(n: ast.FunctionDef, comments: dict, owner: str = "") -> Thing:
    "A function, or a method of `owner`."
    notes = _notes(n)
    bound = bool(owner) and "staticmethod" not in notes
    kind = "property" if {"property", "cached_property"} & {*notes} else "method" if owner else "function"
    name = f"{owner}.{n.name}" if owner else n.name
    call = "" if kind == "property" else _call(n, int(bound))
    return Thing(name, kind, call, _args(n, comments, int(bound)), _returns(n, comments), ast.get_docstring(n) or "", [], notes,
                 (n.lineno, n.end_lineno or n.lineno), [])


def _methods(n: ast.ClassDef, comments: dict, owner: str) -> list[Thing]:
    "The methods of a class under the name of `owner`, without setters."
    found = [_function(m, comments, owner) for m in n.body if isinstance(m, ast.FunctionDef)]
    return [m for m in found if not any(d.endswith(".setter") for d in m.notes)]


def _public(methods: list[Thing]) -> list[Thing]:
    "Those that users call, each once."
    return list({m.name: m for m in methods if not m.name.split(".")[1].startswith("_")}.values())


def _fields(n: ast.ClassDef, comments: dict) -> list[Arg]:
    "What a named tuple or a dataclass is made of."
    return [Arg(a.target.id, ast.unparse(a.annotation), ast.unparse(a.value) if a.value else "",
                comments.get(a.end_lineno or a.lineno, ""))
            for a in n.body if isinstance(a, ast.AnnAssign) and isinstance(a.target, ast.Name)]


def _lineage(n: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> list[ast.ClassDef]:
    "A class, and those of its module that it is built on."
    return [n, *(a for b in n.bases if ast.unparse(b) in classes for a in _lineage(classes[ast.unparse(b)], classes))]


def _class(n: ast.ClassDef, comments: dict, classes: dict[str, ast.ClassDef]) -> Thing:
    "A class with its public methods; arguments are those of `__init__`, its own or inherited, or its fields."
    inits = (m for c in _lineage(n, classes) for m in _methods(c, comments, n.name) if m.name.endswith(".__init__"))
    init, bases = next(inits, None), [ast.unparse(b) for b in n.bases]
    has_fields = "NamedTuple" in bases or any(d.startswith("dataclass") for d in _notes(n))
    args = init.args if init else _fields(n, comments) if has_fields else []
    call = init.call if init else "" if not args else f"({', '.join(a.name + f'={a.default}'*bool(a.default) for a in args)})"
    return Thing(n.name, "class", call, args, None, ast.get_docstring(n) or "", bases, _notes(n),
                 (n.lineno, n.end_lineno or n.lineno), _public(_methods(n, comments, n.name)))


def _heirs(classes: dict[str, ast.ClassDef], public: list) -> dict[str, str]:
    "Private class -> the first public one that is built on it: its methods are documented as the heir's."
    return {c.name: name for name in reversed(public) if name in classes
            for c in _lineage(classes[name], classes) if c.name.startswith("_")}


def _values(n: ast.Assign | ast.AnnAssign) -> list[str]:
    "The names that a line gives a value."
    targets = n.targets if isinstance(n, ast.Assign) else [n.target]
    return [t.id for a in targets for t in ast.walk(a) if isinstance(t, ast.Name)]


def _patched(n: ast.FunctionDef, comments: dict) -> list[Thing]:
    "Methods that a function becomes under `@patch`: one for each class that its first argument names."
    kind = n.args.args[0].annotation
    owners = [ast.unparse(o) for o in (kind.elts if isinstance(kind, ast.Tuple) else [kind])] if kind else []
    return [_function(n, comments, o) for owner in owners for o in owner.split(" | ")]


def _things(n: ast.stmt, comments: dict, classes: dict, public: list) -> list[Thing]:
    "What a statement at the top of a module makes public."
    if isinstance(n, ast.FunctionDef):
        if any(d.startswith("patch") for d in _notes(n)): return _patched(n, comments)
        return [_function(n, comments)] if n.name in public else []
    if isinstance(n, ast.ClassDef):
        heir = _heirs(classes, public).get(n.name)
        if heir: return _public(_methods(n, comments, heir))
        return [_class(n, comments, classes)] if n.name in public else []
    if not isinstance(n, ast.Assign | ast.AnnAssign): return []
    lines = n.lineno, n.end_lineno or n.lineno
    doc = comments.get(lines[1], "")
    return [Thing(name, "data", "", [], None, doc, [], [], lines, []) for name in _values(n) if name in public]


def read_module(path: Path) -> list[Thing]:
    "What a module makes public, in its order: the names in `__all__`, and the methods that it gives to classes."
    text = path.read_text(encoding="utf8")
    comments, tree = _comments(text), ast.parse(text)
    lists = (n for n in tree.body if isinstance(n, ast.Assign) and _values(n) == ["__all__"])
    public = ast.literal_eval(next(lists).value)
    classes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}
    found: dict[str, Thing] = {}
    for n in tree.body:
        for t in _things(n, comments, classes, public): found.setdefault(t.name, t)
    borrowed = {a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) and n.level for a in n.names}
    lost = {*public} - {*found} - borrowed   # what is borrowed stands where it is defined
    if lost: raise ValueError(f"{path}: names in __all__ that are not defined at the top of the module: {sorted(lost)}")
    return [*found.values()]


def modules() -> dict[str, Path]:
    "Module, as in `models.cells` -> its file."
    home = ROOT/"rnn_fastai"
    made = [p for p in sorted(home.rglob("*.py")) if p.name not in ("__init__.py", "_modidx.py", "all.py", "__main__.py")]
    return {".".join(p.relative_to(home).with_suffix("").parts): p for p in made}
