"""Makes the site: pages from notebooks, modules and notes in out/site, and with Sphinx HTML in site/.

Nothing of the package is imported, no notebook is run, and no network is asked."""
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import yaml
from lessons import HEAD, INSTALL, colab_address, course
from pages import (
    Pictures,
    directives,
    fix_links,
    raw,
    read_cells,
    reference_pages,
    show_code,
    source_page,
    subtitle,
    without_title,
)
from signatures import ROOT, modules

HERE, PAGES, SITE = ROOT/"docs"/"site", ROOT/"out"/"site", ROOT/"site"
FOLDERS = dict(data="Texts to batches", models="Cells, layers, models", generate="Writing and scoring", inside="Looking inside",
               callback="Training", learner="Learners", ship="Out of the notebook", cli="The command", root="Root")


def folder_of(module: str) -> str: return module.split(".")[0] if "." in module else "root"


def toctree(pages: list[str], options: str = "") -> str:
    "A list of pages for the sidebar."
    return "\n".join(["```{toctree}", ":hidden:", *options.splitlines(), "", *pages, "```"])


# Lessons

def lesson_file(name: str) -> Path: return ROOT/"nbs"/f"800_tutorial.{name}.ipynb"


def title_of(cells: list[dict]) -> str:
    "The title of a notebook."
    return next(m[1] for c in cells for m in [re.search(r"^# (.+)$", c["source"], re.M)] if m)


def lesson_page(number: int, lesson: dict, pictures: Pictures) -> str:
    "A lesson with what it gives and takes at its top; each cell has an anchor, by its id."
    nb = lesson_file(lesson["notebook"])
    cells = read_cells(nb)
    download = f'<a class="source" href="../_static/notebooks/{nb.name}" download>{nb.name}</a>'
    parts = [f"# {number}. {title_of(cells)}", subtitle(cells),
             f"{{.facts}}\nYou learn\n: {lesson['learn']}\n\nYou need\n: {lesson['need']}\n\n"
             f"Time\n: {lesson['seconds']} s on one core\n\nNotebook\n: {download}, or [in Colab]({colab_address(lesson)})"]
    for before, c in pairwise([{"source": ""}, *cells]):
        answered = "<details" in before["source"] and "hide" in directives(c)   # the same code, run
        if c["id"] in (HEAD, INSTALL) or answered: continue
        anchor = f"({lesson['notebook']}-{c['id']})="
        shown = fix_links(without_title(c["source"]), "lessons") if c["cell_type"] == "markdown" else \
            show_code(c, f"{lesson['notebook']}-{c['id']}", pictures, "../")
        if shown.strip(): parts += [anchor, shown]
    return "\n\n".join(parts) + "\n"


def lesson_index(lessons: list[dict]) -> str:
    "The course: each lesson in a line."
    rows = [f"| {i} | [{title_of(read_cells(lesson_file(x['notebook'])))}]({x['notebook']}.md) | {x['learn']} | {x['need']} | "
            f"{x['seconds']} s |" for i, x in enumerate(lessons, 1)]
    table = "\n".join(["| | lesson | you learn | you need | time |", "|---|---|---|---|---|", *rows])
    intro = (HERE/"lessons.md").read_text(encoding="utf8")
    return f"{intro}\n```{{table}}\n:class: course\n\n{table}\n```\n\n" + toctree([*(x["notebook"] for x in lessons), "rows"])


def lead_to(cells: str, numbers: dict[str, int]) -> str:
    "Links to cells that are given as lesson/id, by the number of the lesson and that of the cell among those with code."
    found: dict[str, list[str]] = {}
    for lesson, cell in (c.split("/") for c in cells.split()):
        code = [c["id"] for c in read_cells(lesson_file(lesson)) if c["cell_type"] == "code"]
        found.setdefault(lesson, []).append(f"[cell {code.index(cell) + 1}](#{lesson}-{cell})")
    return "; ".join(f"[lesson {numbers[lesson]}]({lesson}.md), {', '.join(links)}" for lesson, links in found.items())


def rows_page() -> str:
    "What five course texts show, row by row, and the cells of lessons that show it here."
    held = yaml.safe_load((HERE/"rows.yml").read_text(encoding="utf8"))
    numbers = {x["notebook"]: i for i, x in enumerate(course(), 1)}
    parts = [held["intro"]]
    for part in held["parts"]:
        rows = [f"| {row} | {what} | {lead_to(cells, numbers)} |" for row, (what, cells) in part["rows"].items()]
        table = "\n".join(["| row | what it shows | where |", "|---|---|---|", *rows])
        parts += [f"## {part['title']}", f"```{{table}}\n:class: rows\n\n{table}\n```"]
    return "\n\n".join(parts) + "\n"


# Guides and notes

def with_pictures(text: str, pictures: Pictures, up: str) -> str:
    "Pictures written as `![alt](notebook/cell)` are taken from the outputs of that cell."
    def show(m: re.Match) -> str:
        nb, cell = ROOT/"nbs"/f"{m[2]}.ipynb", m[3]
        found = [o for c in read_cells(nb) if c["id"] == cell for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
        if not found: raise ValueError(f"{nb.name} has no picture in cell {cell}. Name a cell with one.")
        return raw(pictures.add(f"{m[2]}-{cell}", "".join(found[0]["data"]["image/png"]), m[1], up))
    return re.sub(r"!\[([^]]*)\]\(([\w.]+)/(\w{8})\)", show, text)


def benchmarks() -> str:
    "The figures of the README, as a page."
    found = re.search(r"^## How fast\n(.*)^## Develop", (ROOT/"README.md").read_text(encoding="utf8"), re.M | re.S)
    return "# Benchmarks\n" + found[1]


def notes() -> dict[str, str]:
    "Pages of the project that stand elsewhere in the repository."
    kept = {"project/design": "docs/design.md", "project/results": "docs/results.md", "guides/scale": "docs/scale.md",
            "project/changes": "CHANGELOG.md", "project/contributing": "CONTRIBUTING.md",
            "project/small-model": "rnn_fastai/pretrained/awd_lstm_small.md"}
    pages = {page: fix_links((ROOT/file).read_text(encoding="utf8"), page) for page, file in kept.items()}
    return {**pages, "project/benchmarks": fix_links(benchmarks(), "project")}


# The reference

def reference_index() -> dict[str, str]:
    "A page for each folder of modules, and one for all."
    found: dict[str, list[str]] = {f: [] for f in FOLDERS}
    for m in modules(): found[folder_of(m)].append(m)
    notebooks = {nb.stem.split("_", 1)[1]: nb for nb in (ROOT/"nbs").glob("[0-9]*.ipynb")}
    pages = {}
    for folder, title in FOLDERS.items():
        rows = [f"| [{m}]({m}.md) | {subtitle(read_cells(notebooks[m]))} |" for m in sorted(found[folder], key=lambda m: notebooks[m].name)]
        table = "\n".join(["```{table}\n:class: names\n", "| module | |", "|---|---|", *rows, "```"])
        head = title if folder == "root" else f"{folder}: {title[0].lower() + title[1:]}"
        pages[f"api/{folder}"] = f"# {head}\n\n{table}\n\n{toctree(sorted(found[folder], key=lambda m: notebooks[m].name))}\n"
    text = (HERE/"reference.md").read_text(encoding="utf8")
    lines = "\n".join(f"- [{f}]({f}.md): {t}" for f, t in FOLDERS.items())
    return {**pages, "api/index": f"{text}\n{lines}\n\n{toctree([*FOLDERS])}\n"}


def all_pages(folder: Path) -> dict[str, str]:
    "Name -> text of every page. Pictures are written to `folder`."
    pictures, lessons = Pictures(folder), course()
    own = {p.relative_to(HERE).with_suffix("").as_posix(): p for p in [HERE/"index.md", *(HERE/"guides").glob("*.md"),
                                                                       *(HERE/"project").glob("*.md")]}
    pages = {name: with_pictures(p.read_text(encoding="utf8"), pictures, "../"*name.count("/")) for name, p in own.items()}
    pages.update(notes())
    pages.update({f"lessons/{x['notebook']}": lesson_page(i, x, pictures) for i, x in enumerate(lessons, 1)})
    pages.update({"lessons/index": lesson_index(lessons), "lessons/rows": rows_page()})
    pages.update(reference_pages(pictures))
    pages.update(reference_index())
    pages.update({f"source/{m}": source_page(m, p) for m, p in modules().items()})
    return pages


def write_pages(folder: Path) -> int:
    "Writes all pages with their pictures and notebooks, and gives how many there are."
    shutil.rmtree(folder, ignore_errors=True)
    (folder/"_static"/"notebooks").mkdir(parents=True)
    for name, text in (pages := all_pages(folder)).items():
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/f"{name}.md").write_text(text, encoding="utf8")
    for file in ("style.css", "copy.js"): shutil.copy(HERE/file, folder/"_static")
    for file in ("conf.py", "scorer.js"): shutil.copy(HERE/file, folder)
    for nb in (ROOT/"nbs").glob("[0-9]*.ipynb"): shutil.copy(nb, folder/"_static"/"notebooks")
    return len(pages)


def make_site(pages: Path = PAGES, site: Path = SITE) -> None:
    "Writes the pages and makes HTML of them. A link that leads nowhere, and any other warning, is an error."
    n = write_pages(pages)
    shutil.rmtree(site, ignore_errors=True)
    version = re.search(r'__version__ = "(.+)"', (ROOT/"rnn_fastai"/"__init__.py").read_text(encoding="utf8"))[1]
    cmd = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "-d", pages.parent/"site-cache", "-E", "-W", "--keep-going",
           "-j", "2", "-D", f"release={version}", pages, site]
    subprocess.run(cmd, cwd=pages, check=True)
    print(f"{n} pages in {site}")


if __name__ == "__main__": make_site()
