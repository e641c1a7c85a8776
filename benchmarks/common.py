"Timing in turns, and the description of the machine."
import gc
import json
import os
import platform
import statistics
import time
from pathlib import Path

RESULTS = Path(__file__).parent/"results"


def cpu() -> str:
    "The processor's name."
    try: lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError: return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def environment() -> dict:
    "Hardware and versions."
    from importlib.metadata import distributions
    names = ("fastai", "torch", "spacy", "numpy", "pandas", "rnn_fastai")
    here = {d.name: d.version for d in distributions()}   # a machine with a GPU may have the folder of the package only
    return dict(cpu=cpu(), cores=len(os.sched_getaffinity(0)), python=platform.python_version(),
                versions={n: here[n] for n in names if n in here}, date=time.strftime("%Y-%m-%d"))


def seconds(f, clock=time.perf_counter) -> float:
    "Time of one call, with the garbage collector out of the way: wall time, or that of another clock."
    gc.collect()
    gc.disable()
    start = clock()
    try: f()
    finally: gc.enable()
    return clock() - start


def in_turns(fs: dict, repeats: int, warmup: int = 1, clock=time.perf_counter) -> dict:
    "Call the functions in turn, `repeats` times; the times of each, in seconds. The slow ones warm up once only."
    for f in fs.values():
        for _ in range(warmup): f()
    times = {k: [] for k in fs}
    for _ in range(repeats):
        for k, f in fs.items(): times[k].append(seconds(f, clock))
    return times


def by_two_clocks(fs: dict, repeats: int) -> tuple[dict, dict]:
    "As `in_turns`: the time that passes, and that of the processor, which other work does not add to."
    wall, cpu = ({k: [] for k in fs} for _ in range(2))
    for f in fs.values(): f()
    for _ in range(repeats):
        for k, f in fs.items():
            def timed(f=f, times=cpu[k]):
                start = time.process_time()
                f()
                times.append(time.process_time() - start)
            wall[k].append(seconds(timed))
    return wall, cpu


def row(what: str, times: dict, unit: str = "s", per: dict | None = None, floor: str | None = None) -> dict:
    "A row of the report: medians of `times`, turned into a rate where `per` says how much was done in each."
    med = {k: statistics.median(v) for k, v in times.items()}
    value = {k: per[k]/v if per else v for k, v in med.items()}
    ratio = value["ours"]/value["fastai"] if per else value["fastai"]/value["ours"]
    res = dict(what=what, unit=unit, fastai=value["fastai"], ours=value["ours"], ratio=ratio, runs=times)
    if floor: res.update(bare=value[floor], bare_is=floor)
    bare = f", bare loop {value[floor]:,.4g}" if floor else ""
    print(f"{what}: fastai {value['fastai']:,.4g}, ours {value['ours']:,.4g} {unit}{bare}: {ratio:,.2f}x", flush=True)
    return res


def write(name: str, rows: list, **extra):
    "Write results as JSON, with hardware and versions."
    RESULTS.mkdir(exist_ok=True)
    (RESULTS/f"{name}.json").write_text(json.dumps({**environment(), **extra, "rows": rows}, indent=1) + "\n")


def about(name: str) -> dict:
    "What was written before, rows and all else; nothing where there is no such file."
    file = RESULTS/f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else {}


def read(name: str) -> list:
    "Rows written before; none where there is no such file."
    return about(name).get("rows", [])


def save(name: str, rows: list, **extra):
    "Write results; rows that were not run again stay as they are."
    new, before = {r["what"]: r for r in rows}, about(name)
    made = {k: before[k] for k in ("cpu", "date") if k in before}   # of rows that say nothing of their own
    kept = [new.pop(r["what"], made | r) for r in before.get("rows", [])]
    write(name, kept + list(new.values()), **extra)
