"""Runs all notebooks and tests as other processors would, and prints a table; exit status 1 where something fails.

`python tools/test_anywhere.py` runs every emulation, `python tools/test_anywhere.py old busy` these two. What each run
prints is kept in build/anywhere. Nothing else is written, so two clones can run side by side."""
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOGS = ROOT/"build"/"anywhere"
BIN = Path(sys.executable).parent

# Instruction sets of torch's own kernels, of oneDNN's and of MKL's.
AVX2 = dict(ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2", MKL_ENABLE_INSTRUCTIONS="AVX2")
OLD = dict(ATEN_CPU_CAPABILITY="default", ONEDNN_MAX_CPU_ISA="SSE41", MKL_ENABLE_INSTRUCTIONS="SSE4_2")
# Threads of each process; `BUSY` processes work beside the tests. Threads that wait sleep, because a process runs on
# each core: threads that spin would take the other's time.
EMULATIONS = {
    "native": dict(OMP_NUM_THREADS=2),
    "native-1": dict(OMP_NUM_THREADS=1),
    "avx2": dict(AVX2, OMP_NUM_THREADS=2),
    "avx2-1": dict(AVX2, OMP_NUM_THREADS=1),
    "old": dict(OLD, OMP_NUM_THREADS=1),
    "old-2": dict(OLD, OMP_NUM_THREADS=2),
    "busy": dict(OMP_NUM_THREADS=2, BUSY=os.cpu_count()),
}


@contextmanager
def busy(n: int):
    "Keep `n` processes at work inside the block."
    procs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try: yield
    finally:
        for p in procs: p.kill()


def run(name: str, what: str, cmd: list, env: dict) -> str:
    "Run a command, keep what it prints in a file, and give it back."
    log = LOGS/f"{name}.{what}.log"
    with log.open("w") as out:
        code = subprocess.run(cmd, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, check=False,
                              env={**os.environ, **env, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}).returncode
    return log.read_text() + f"\nexit status {code}\n"


def notebooks(name: str, workers: int, env: dict) -> str:
    "Run all notebooks; 'all pass', or how many fail."
    cmd = [BIN/"nbdev-test", "--n-workers", str(workers), "--do-print", "--cell-timeout", "0"]
    text = run(name, "notebooks", cmd, env)
    return "all pass" if text.endswith("exit status 0\n") else f"{len(set(re.findall(r'Error in (.*)', text)))} fail"


def tests(name: str, workers: int, env: dict) -> str:
    "Run all tests; pytest's closing line."
    cmd = [sys.executable, "-m", "pytest", "-q", "-n", str(workers), "--dist", "loadfile", "-p", "no:cacheprovider"]
    text = run(name, "tests", cmd, env)
    found = re.findall(r"^(?:=+ )?(\d+ (?:passed|failed|error).*?) in ", text, re.M)
    good = text.endswith("exit status 0\n")
    return (found[-1] if found else "no test ran") + ("" if good else " FAILED" if found else "")


def main(names: list) -> int:
    "Exit status: 0 where all is green."
    odd = [n for n in names if n not in EMULATIONS]
    if odd: raise SystemExit(f"Unknown emulation {odd[0]!r}. Available: {', '.join(EMULATIONS)}.")
    LOGS.mkdir(parents=True, exist_ok=True)
    print("| emulation | notebooks | tests | minutes |\n|---|---|---|---|", flush=True)
    failed = False
    for name in names or EMULATIONS:
        env = {"OMP_WAIT_POLICY": "PASSIVE", **{k: str(v) for k, v in EMULATIONS[name].items()}}
        workers = os.cpu_count() or 1
        start = time.monotonic()
        with busy(int(env.pop("BUSY", 0))): results = [f(name, workers, env) for f in (notebooks, tests)]
        failed = failed or results[0] != "all pass" or "FAILED" in results[1] or "no test" in results[1]
        print(f"| {name} | {results[0]} | {results[1]} | {(time.monotonic() - start)/60:.0f} |", flush=True)
    return int(failed)


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
