"What is released: one version everywhere, a wheel and an sdist that are whole, a workflow; and CONTRIBUTING, done as it says."
import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import rnn_fastai

ROOT = Path(__file__).parent.parent
META = configparser.ConfigParser(delimiters=["="])
META.read(ROOT/"settings.ini", encoding="utf8")
META = META["DEFAULT"]


def run(*cmd, **args):
    "Run a command; what it prints is shown where it fails."
    done = subprocess.run([*map(str, cmd)], capture_output=True, text=True, **args)
    assert done.returncode == 0, f"{' '.join(map(str, cmd))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_one_version_and_one_description():
    cite = yaml.safe_load((ROOT/"CITATION.cff").read_text(encoding="utf8"))
    assert cite["version"] == rnn_fastai.__version__ and cite["cff-version"] == "1.2.0"
    assert (cite["title"], cite["abstract"], cite["license"]) == (META["name"], META["description"], META["license"])
    assert [a["name"] for a in cite["authors"]] == [META["author"]]
    first = re.search(r"^## (\S+)", (ROOT/"CHANGELOG.md").read_text(encoding="utf8"), re.M)[1]
    assert first == rnn_fastai.__version__ and "version" not in META


def test_pythons_are_in_step():
    "Classifiers, the tests' workflow and the oldest Python say the same."
    named = re.findall(r"Python :: (3\.\d+)", META["classifiers"])
    test = yaml.safe_load((ROOT/".github"/"workflows"/"test.yml").read_text(encoding="utf8"))
    assert test["jobs"]["test"]["strategy"]["matrix"]["python"] == named and named[0] == META["min_python"]
    tried = yaml.safe_load((ROOT/".github"/"workflows"/"release.yml").read_text(encoding="utf8"))["jobs"]["try"]
    assert tried["strategy"]["matrix"]["python"] == [named[0], named[-1]]


def test_release_publishes_what_was_tried_and_only_tags():
    jobs = yaml.safe_load((ROOT/".github"/"workflows"/"release.yml").read_text(encoding="utf8"))["jobs"]
    assert jobs["publish"]["needs"] == "try" and jobs["try"]["needs"] == "build"
    assert jobs["publish"]["permissions"] == {"id-token": "write"} and "ref_type == 'tag'" in jobs["publish"]["if"]
    text = (ROOT/".github"/"workflows"/"release.yml").read_text(encoding="utf8")
    assert "secrets." not in text and "password:" not in text
    for file in re.findall(r"tools/\w+\.py", text): assert (ROOT/file).exists()


def test_issue_forms_are_yaml():
    forms = [*(ROOT/".github"/"ISSUE_TEMPLATE").glob("*.yml")]
    assert len(forms) == 3
    for form in forms: assert yaml.safe_load(form.read_text(encoding="utf8"))["body"]


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    "The repository as it stands, without what git ignores, with a git of its own."
    to = tmp_path_factory.mktemp("clone")/"rnn_fastai"
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    for name in filter(None, listed):
        if not (ROOT/name).is_file(): continue
        (to/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/name, to/name)
    run("git", "init", "-q", cwd=to)
    run("git", "add", "-A", cwd=to)
    run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "start", cwd=to)
    return to


@pytest.fixture
def clone(copied):
    "That copy, as it was."
    run("git", "checkout", "-q", ".", cwd=copied)
    run("git", "clean", "-fdqx", cwd=copied)
    return copied


def surroundings(clone):
    "An environment whose Python finds the clone first."
    bin, path = Path(sys.executable).parent, f"{clone}:{os.environ.get('PYTHONPATH', '')}"
    return {**os.environ, "PATH": f"{bin}:{os.environ['PATH']}", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def test_metadata_of_the_wheel(clone):
    "Built without torch and without the net: links of the long description lead somewhere from PyPI."
    meta = run(sys.executable, "-c", "from setuptools.build_meta import prepare_metadata_for_build_wheel as f; print(f('.'))",
               cwd=clone, env=surroundings(clone)).split()[-1]
    text = (clone/meta/"METADATA").read_text(encoding="utf8")
    assert f"\nVersion: {rnn_fastai.__version__}\n" in text and "\nProject-URL: Changes, https://" in text
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 15 and all(link.startswith(("https://", "#")) for link in links)
    for file in re.findall(META["git_url"] + r"/blob/main/([^)#\s]+)", text): assert (ROOT/file).exists(), file


@pytest.mark.slow
def test_the_distribution_is_whole(clone):
    pytest.importorskip("twine")
    said = run(sys.executable, "tools/make_dist.py", cwd=clone, env=surroundings(clone))
    assert f"rnn_fastai-{rnn_fastai.__version__}-py3-none-any.whl" in said and said.count("PASSED") == 2
    (clone/"MANIFEST.in").write_text("prune tests\n")   # then the sdist lacks what setup.py reads
    shutil.rmtree(clone/"rnn_fastai.egg-info")             # which remembers what it held
    done = subprocess.run([sys.executable, "tools/make_dist.py"], cwd=clone, env=surroundings(clone), capture_output=True)
    assert done.returncode


def told(heading: str) -> list[str]:
    "Commands below a heading of CONTRIBUTING."
    text = (ROOT/"CONTRIBUTING.md").read_text(encoding="utf8")
    block = re.search(rf"^## {heading}\n.*?^```sh\n(.*?)^```$", text, re.M | re.S)[1]
    return [line.split("#")[0].strip() for line in block.splitlines() if line.split("#")[0].strip()]


@pytest.mark.slow
def test_a_change_made_as_contributing_tells(clone):
    "Edit a notebook, export, run, clean, test; the change arrives in the module, and nothing else changes."
    env, nb, module = surroundings(clone), clone/"nbs"/"220_models.recurrent.ipynb", clone/"rnn_fastai"/"models"/"recurrent.py"
    text = nb.read_text(encoding="utf8")
    found = re.search(r"#\| export\\n\",\n", text)
    nb.write_text(text[:found.end()] + "    \"# a remark of a newcomer\\n\",\n" + text[found.end():], encoding="utf8")
    assert run("git", "diff", "--name-only", cwd=clone).split() == ["nbs/220_models.recurrent.ipynb"]
    for line in told("Change something"): run("bash", "-c", line, cwd=clone, env=env)
    assert "# a remark of a newcomer" in module.read_text(encoding="utf8")
    for line in told("Test"):
        if not line.startswith("make"): run("bash", "-c", line, cwd=clone, env=env)
    changed = run("git", "status", "--porcelain", cwd=clone).split()[1::2]
    assert set(changed) == {"nbs/220_models.recurrent.ipynb", "rnn_fastai/models/recurrent.py"}


@pytest.mark.slow
def test_a_change_that_is_not_exported_is_found(clone):
    nb = clone/"nbs"/"000_core.ipynb"
    nb.write_text(nb.read_text(encoding="utf8").replace("#| export\\n\",\n", "#| export\\n\",\n    \"# forgotten\\n\",\n", 1), encoding="utf8")
    done = subprocess.run([sys.executable, "tools/check_sync.py"], cwd=clone, env=surroundings(clone), capture_output=True, text=True)
    assert done.returncode and "core" in done.stdout + done.stderr
