"""Runs all notebooks and tests as other processors would: one row of the table below after the other.

    python tools/test_anywhere.py [names of emulations; all if none are given]

Each emulation runs in a copy of the tree under build/anywhere/, so nothing is written into the tree. What the runs
print is kept beside the copy, in notebooks.txt and tests.txt. Exit status 1 where anything fails.
"""
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from contextlib import contextmanager
from pathlib import Path

# MKL has its own switch for instructions; it is obeyed on Intel's processors alone.
OLD = dict(ATEN_CPU_CAPABILITY="default", ONEDNN_MAX_CPU_ISA="SSE41", MKL_ENABLE_INSTRUCTIONS="SSE4_2")
MIDDLE = dict(ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2", MKL_ENABLE_INSTRUCTIONS="AVX2")
EMULATIONS = {  # name: kernels, threads, is the machine busy with other work?
    "native": ({}, 2, False),
    "old": (OLD, 1, False),
    "middle": (MIDDLE, 2, False),
    "middle-1": (MIDDLE, 1, False),
    "busy": ({}, 2, True),
}
ROOT = Path(__file__).resolve().parent.parent
KERNELS = "import torch; print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())"


def copy_tree(to: Path) -> None:
    "Copies what git knows or would add, as it stands now."
    shutil.rmtree(to, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True,
                            stdout=subprocess.PIPE, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if not (ROOT/name).is_file(): continue   # deleted, or a link to a folder
        (to/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT/name, to/name)


def environment(tree: Path, kernels: dict, threads: int) -> dict:
    "Variables of a run: the package comes from the copy, the public sets from where the tree finds them."
    data = ROOT.parent/"shared"/"data"
    found = dict(RNN_FASTAI_DATA=str(data)) if data.exists() else {}
    return {**found, **os.environ, **kernels, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(tree),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@contextmanager
def others(busy: bool):
    "As many busy processes as cores, if the machine is to be busy."
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() if busy else 0)]
    try: yield
    finally:
        for p in loops: p.kill()


def notebooks(tree: Path, env: dict, workers: int, out: Path) -> tuple[int, int]:
    "How many notebooks pass, and how many do not: those that nbdev names last, or all if it ends before that."
    with out.open("w") as f:
        run = subprocess.run(["nbdev-test", "--n-workers", str(workers), "--do-print", "--timing", "--cell-timeout", "0"],
                             cwd=tree, env=env, stdout=f, stderr=subprocess.STDOUT)
    every = len([*tree.glob("nbs/*.ipynb")])
    named = out.read_text(errors="replace").partition("Tests Failed On The Following Notebooks:")[2]
    bad = named.count(".ipynb") or (every if run.returncode else 0)
    return every - bad, bad


def tests(tree: Path, env: dict, workers: int, out: Path) -> tuple[int, int]:
    "How many tests pass, and how many do not; a run that ends early counts as one more that does not."
    report = out.with_suffix(".xml")
    report.unlink(missing_ok=True)
    with out.open("w") as f:
        run = subprocess.run([sys.executable, "-m", "pytest", "-q", "-n", str(workers), "--dist", "loadfile", "--durations=20",
                              f"--junitxml={report}"], cwd=tree, env=env, stdout=f, stderr=subprocess.STDOUT)
    if not report.exists(): return 0, 1
    n = {k: int(v) for k, v in ElementTree.parse(report).find("testsuite").attrib.items() if v.isdigit()}
    bad = n["failures"] + n["errors"]
    return n["tests"] - bad - n["skipped"], bad or int(run.returncode != 0)


def main(names: list[str]) -> int:
    "Exit status: 0 where all emulations pass."
    if unknown := [n for n in names if n not in EMULATIONS]:
        raise SystemExit(f"Unknown emulations: {', '.join(unknown)}. Available: {', '.join(EMULATIONS)}.")
    rows, failed = [], 0
    for name in names or EMULATIONS:
        kernels, threads, busy = EMULATIONS[name]
        home = ROOT/"build"/"anywhere"/name
        tree = home/"tree"
        copy_tree(tree)
        env, workers, start = environment(tree, kernels, threads), max(os.cpu_count()//threads, 1), time.time()
        used = subprocess.run([sys.executable, "-c", KERNELS], env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
        with others(busy):
            nb, test = (f(tree, env, workers, home/out) for f, out in ((notebooks, "notebooks.txt"), (tests, "tests.txt")))
        failed += nb[1] + test[1]
        rows.append(f"| {name} | {' | '.join(used.split())} | {nb[0]} / {nb[1]} | {test[0]:,} / {test[1]} | {(time.time()-start)/60:.0f} |")
        print(rows[-1], flush=True)
    print("\n| emulation | kernels | threads | notebooks passed / failed | tests passed / failed | minutes |", "|---|---|---|---|---|---|",
          *rows, sep="\n")
    return int(failed > 0)


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
