"""Writes the head of each lesson, the cell that installs the package where it is missing, and the table of lessons of the
front page, from docs/site/course.yml and the address of the repository in settings.ini (then: `make readme`). With `--time`, runs lessons and prints the processor time that each took."""
import json
import resource
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
HEAD, INSTALL, TABLE = "lessonhd", "lessonin", "lessonls"   # ids of cells


def course() -> list[dict]:
    "The lessons in order."
    return yaml.safe_load((ROOT/"docs"/"site"/"course.yml").read_text(encoding="utf8"))


def lesson_path(name: str) -> Path: return ROOT/"nbs"/f"800_tutorial.{name}.ipynb"


def repository() -> str:
    "The address of the repository."
    cfg = ConfigParser(delimiters=["="])
    cfg.read(ROOT/"settings.ini", encoding="utf8")
    return cfg["DEFAULT"]["git_url"]


def colab_address(lesson: dict) -> str:
    "Where a lesson opens in Colab."
    place = repository().split("//")[1].replace(".com", "", 1)
    return f"https://colab.research.google.com/{place}/blob/main/nbs/{lesson_path(lesson['notebook']).name}"


def lesson_head(number: int, total: int, lesson: dict) -> str:
    "A table: what is learnt, what is needed, how long it takes, and where to open it."
    return f"""| Lesson {number} of {total} | [Open in Colab]({colab_address(lesson)}) |
|---|---|
| You learn | {lesson['learn']} |
| You need | {lesson['need']} |
| Time to run | {lesson['seconds']} s on one core |"""


def install_cell(lesson: dict) -> str:
    "Code that gets the package, and the files of the lessons, where they are missing."
    extras = f"[{lesson['extras']}]" if "extras" in lesson else ""
    return f"""from importlib.util import find_spec
if not find_spec('rnn_fastai'):   # in Colab, say
    !git clone -q --depth 1 {repository()} course
    %pip install -q './course{extras}'
    %cd -q course/nbs"""


def with_head(cells: list[dict], number: int, total: int, lesson: dict) -> list[dict]:
    "The cells of a lesson, with its head and what installs the package behind its title."
    head = dict(cell_type="markdown", id=HEAD, metadata={}, source=lesson_head(number, total, lesson).splitlines(True))
    install = dict(cell_type="code", execution_count=None, id=INSTALL, metadata={}, outputs=[],
                   source=install_cell(lesson).splitlines(True))
    title, *rest = [c for c in cells if c["id"] not in (HEAD, INSTALL)]
    return [title, head, install, *rest]


def read(path: Path) -> dict: return json.loads(path.read_text(encoding="utf8"))


def write(path: Path, nb: dict) -> None:
    path.write_text(json.dumps(nb, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf8")


def lesson_table() -> str:
    "The course for the front page: a row for each lesson."
    rows = []
    for i, lesson in enumerate(course(), 1):
        path = lesson_path(lesson["notebook"])
        title = read(path)["cells"][0]["source"][0].removeprefix("# ").strip()
        rows.append(f"| {i} | [{title}](nbs/{path.name}) | {lesson['learn']} |")
    return "\n".join(["## Lessons", "", "One course, in order; each has exercises with answers, and opens in Colab.", "",
                      "| | lesson | you learn |", "|---|---|---|", *rows])


def write_all() -> None:
    "Write the heads of all lessons, and the table of the front page."
    for i, lesson in enumerate(lessons := course(), 1):
        nb = read(path := lesson_path(lesson["notebook"]))
        write(path, nb | dict(cells=with_head(nb["cells"], i, len(lessons), lesson)))
    index = read(path := ROOT/"nbs"/"index.ipynb")
    for c in index["cells"]:
        if c["id"] == TABLE: c["source"] = lesson_table().splitlines(True)
    write(path, index)


def print_times(names: list[str]) -> None:
    "Run lessons one by one, and print the processor time of each, its processes included."
    before = 0.
    for name in names or [x["notebook"] for x in course()]:
        cmd = ["nbdev-test", str(lesson_path(name)), "--n-workers", "0", "--cell-timeout", "0"]
        subprocess.run(cmd, check=True, cwd=ROOT)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        total = used.ru_utime + used.ru_stime
        print(f"{name:<16} {total - before:6.1f} s", flush=True)
        before = total


if __name__ == "__main__":
    if sys.argv[1:2] == ["--time"]: print_times(sys.argv[2:])
    else: write_all()
