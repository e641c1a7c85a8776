"The course: each lesson has a head, installs what it needs, draws, and ends with exercises whose answers are run."
import json
import re
import statistics
import sys
from pathlib import Path

import pytest
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT/"tools"))
import lessons  # noqa: E402

COURSE = lessons.course()
NAMES = [x["notebook"] for x in COURSE]
ANSWER = re.compile(r"\*\*Exercise (\d)\.\*\* (.+?)\n\n<details>\n<summary>Answer</summary>\n\n(.+?)\n\n```python\n(.+?)\n```\n\n</details>", re.S)


def read(name: str) -> list[dict]:
    "The cells of a lesson, each source as one string."
    cells = json.loads(lessons.lesson_path(name).read_text(encoding="utf8"))["cells"]
    return [{**c, "source": "".join(c["source"])} for c in cells]


def test_the_course_holds_every_lesson_once():
    assert sorted(NAMES) == sorted(p.stem.removeprefix("800_tutorial.") for p in (ROOT/"nbs").glob("800_tutorial.*.ipynb"))


def test_a_lesson_needs_earlier_ones_only():
    for i, x in enumerate(COURSE, 1):
        found = re.search(r"lessons? ([\d, and]+)", x["need"])
        assert i == 1 or found, x
        if found: assert all(int(n) < i for n in re.findall(r"\d+", found[1])), x


def test_running_times_are_short():
    assert statistics.median(x["seconds"] for x in COURSE) < 40


@pytest.mark.parametrize("number, lesson", enumerate(COURSE, 1), ids=NAMES)
def test_the_head_says_what_the_course_says(number, lesson):
    cells = json.loads(lessons.lesson_path(lesson["notebook"]).read_text(encoding="utf8"))["cells"]
    assert lessons.with_head(cells, number, len(COURSE), lesson) == cells, "run tools/lessons.py"
    head = "".join(cells[1]["source"])
    assert re.match(r"# .+\n\n> .+", "".join(cells[0]["source"]))
    for part in ("You learn", "You need", "Time to run", f"blob/main/nbs/{lessons.lesson_path(lesson['notebook']).name}"): assert part in head


@pytest.mark.parametrize("name", NAMES)
def test_the_install_cell_does_nothing_where_the_package_is(name):
    code = TransformerManager().transform_cell(read(name)[2]["source"])
    assert "get_ipython()" in code
    exec(code, {})   # would fail at `get_ipython`, which is not defined here
    with pytest.raises(NameError, match="get_ipython"): exec(code.replace("find_spec('rnn_fastai')", "None"), {})


@pytest.mark.parametrize("name", NAMES)
def test_two_pictures(name):
    outputs = [o for c in read(name) if c["cell_type"] == "code" for o in c["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert sum(bool({"image/png", "image/svg+xml"} & set(o.get("data", {}))) for o in outputs) >= 2


@pytest.mark.parametrize("name", NAMES)
def test_each_picture_is_described(name):
    for c in read(name):
        if c["cell_type"] != "code" or not any("image/png" in o.get("data", {}) for o in c["outputs"]): continue
        said = re.search(r"^#\| fig-alt: (.+)$", c["source"], re.M)
        assert said and len(said[1]) > 50, f"{c['id']}: say in `#| fig-alt: ...` what is seen"


@pytest.mark.parametrize("name", NAMES)
def test_code_is_read_without_scrolling(name):
    "The page of a lesson has room for 100 characters."
    cells = [c for c in read(name) if c["id"] != lessons.INSTALL]
    shown = [c["source"] for c in cells if c["cell_type"] == "code"]
    shown += [code for c in cells if c["cell_type"] == "markdown" for code in re.findall(r"```python\n(.+?)\n```", c["source"], re.S)]
    assert not [line for code in shown for line in code.split("\n") if len(line) > 100 and not line.startswith("#|")]


@pytest.mark.parametrize("name", NAMES)
def test_two_exercises_with_answers_that_are_run(name):
    cells = read(name)
    found = [(i, m) for i, c in enumerate(cells) for m in [ANSWER.search(c["source"])] if c["cell_type"] == "markdown" and m]
    assert [int(m[1]) for _, m in found] == list(range(1, len(found) + 1)) and len(found) >= 2
    assert sum(c["source"].count("**Exercise") for c in cells) == len(found)
    assert "## Exercises" in cells[found[0][0]]["source"]
    for i, m in found:
        run = cells[i + 1]
        assert run["source"] == "#| hide\n" + m[4], f"exercise {m[1]}: what is shown is not what is run"
        assert "assert" in m[4] or "test_eq" in m[4] or "expect_fail" in m[4]
        assert len(m[2]) > 80 and len(m[3]) > 80
        assert not run["outputs"] and run["metadata"]["jupyter"]["source_hidden"]   # an answer is not seen before it is asked for


def test_the_front_page_lists_the_course_in_order():
    assert lessons.lesson_table() in (ROOT/"README.md").read_text(encoding="utf8"), "run tools/lessons.py, then `make readme`"


def test_the_first_lesson_draws_a_hidden_state_in_ten_cells():
    code = [c for c in read(NAMES[0]) if c["cell_type"] == "code"]
    assert "pip install" in code[0]["source"]
    drawn = [i for i, c in enumerate(code, 1) if "plot_states" in c["source"] and any("image/png" in o.get("data", {}) for o in c["outputs"])]
    assert drawn[0] <= 10
