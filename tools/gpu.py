"""Tests and figures on a machine that has a GPU, Python 3.12 and torch, and of ours nothing but this folder.

    python tools/gpu.py collect    anywhere with the package registry: puts what that machine may lack into wheels/ (7 MB),
                                   with the ids of WikiText-2, where that is
    python tools/gpu.py            there: the tests marked `cuda`, 2 minutes at most, then benchmarks/gpu.py, 3 minutes,
                                   then a training in the rest of 8 minutes; another call goes on with it
"""
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ROOT/"wheels"
TESTS, FIGURES, ALL = 120, 180, 480   # seconds at most
# Newer ones of fastprogress bring a web server along. spaCy is not needed: the tests cut texts at blanks.
NAMES = ("fastai", "fastcore", "fasttransform", "fasttransport", "fastprogress<1.1", "fastdownload", "plum-dispatch<2.10",
         "beartype", "cloudpickle")
PLATFORMS = "manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"


def collect():
    "Download wheels for Python 3.12, and pack WikiText-2."
    where = [o for p in PLATFORMS for o in ("--platform", p)]
    of = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp", *where]
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *of, "-d", WHEELS, *NAMES], check=True)
    pack = [sys.executable, "benchmarks/wikitext.py", "pack", str(WHEELS/"wikitext-2.npz")]
    packed = subprocess.run(pack, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    if packed.returncode: print(f"WikiText-2 is left out: {packed.stderr.strip()[-200:]}")
    print(*sorted(w.name for w in WHEELS.iterdir()), sep="\n")


def run() -> int:
    "Tests, then figures, then the training, even where something failed before."
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as site:
        for w in WHEELS.glob("*.whl"): zipfile.ZipFile(w).extractall(site)
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), site, os.environ.get("PYTHONPATH", "")])}
        pytest = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", "tests/test_gpu.py"]
        try: tests = subprocess.run(pytest, cwd=ROOT, env=env, timeout=TESTS).returncode
        except subprocess.TimeoutExpired:
            print("The tests took more than two minutes, and were ended.")
            tests = 1
        def bench(seconds: float, *parts: str) -> int:
            script = [sys.executable, "benchmarks/gpu.py", "--seconds", f"{seconds:.0f}", *parts]
            return subprocess.run(script, cwd=ROOT, env=env).returncode
        figures = bench(FIGURES)
        quality = bench(ALL - (time.monotonic() - start), "quality")
    return tests or figures or quality


if __name__ == "__main__": sys.exit(collect() if sys.argv[1:] == ["collect"] else run())
