"""Tests and figures on a machine that has a GPU, Python 3.12 and torch, and of ours nothing but this folder.

    python tools/gpu.py collect    anywhere with the package registry: puts what that machine may lack into wheels/ (3 MB)
    python tools/gpu.py            there: the tests marked `cuda`, 2 minutes at most, then benchmarks/gpu.py, 3 minutes
"""
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ROOT/"wheels"
# Newer ones of fastprogress bring a web server along. spaCy is not needed: the tests cut texts at blanks.
NAMES = ("fastai", "fastcore", "fasttransform", "fasttransport", "fastprogress<1.1", "fastdownload", "plum-dispatch<2.10",
         "beartype", "cloudpickle")
PLATFORMS = "manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"


def collect():
    "Download wheels for Python 3.12."
    where = [o for p in PLATFORMS for o in ("--platform", p)]
    of = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp", *where]
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *of, "-d", WHEELS, *NAMES], check=True)
    print(*sorted(w.name for w in WHEELS.glob("*.whl")), sep="\n")


def run() -> int:
    "Tests, then figures, even where a test failed."
    with tempfile.TemporaryDirectory() as site:
        for w in WHEELS.glob("*.whl"): zipfile.ZipFile(w).extractall(site)
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), site, os.environ.get("PYTHONPATH", "")])}
        pytest = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", "tests/test_gpu.py"]
        try: tests = subprocess.run(pytest, cwd=ROOT, env=env, timeout=120).returncode
        except subprocess.TimeoutExpired:
            print("The tests took more than two minutes, and were ended.")
            tests = 1
        figures = subprocess.run([sys.executable, "benchmarks/gpu.py", "--seconds", "180"], cwd=ROOT, env=env).returncode
    return tests or figures


if __name__ == "__main__": sys.exit(collect() if sys.argv[1:] == ["collect"] else run())
