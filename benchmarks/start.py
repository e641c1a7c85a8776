"""How long a new process takes: help texts, imports, 2,500 reviews to LM batches. Writes benchmarks/results/start.json.

Each figure is of processes of its own, in turns, and their median. `first` is a process that finds an empty cache folder,
`later` one that finds what the first has left there: spaCy's patterns, nothing of the reviews. `loaders` counts from a frame
to the first batch, once all is imported; `process` counts all, from the start of Python to its end."""
import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

SHARED = Path(__file__).resolve().parents[2]/"shared"/"data"
if SHARED.exists(): os.environ.setdefault("RNN_FASTAI_DATA", str(SHARED))
COMMANDS = "demo", "train", "eval", "predict", "generate", "export-onnx", "push", "serve"
READ = "import pandas as pd; df = pd.read_parquet(sys.argv[1])"
FASTAI = """
from fastai.text import all as fa
block = lambda: fa.DataBlock(fa.TextBlock.from_df('text', is_lm=True, n_workers={n}), get_x=fa.ColReader('text'),
                             splitter=fa.RandomSplitter(0.2, seed=0)).dataloaders(df)
"""
OURS = """
import rnn_fastai.all as rf
block = lambda: rf.TextDataLoaders.from_df(df, text_col='text', is_lm=True, seed=0, no_bar=True)
"""
BATCHES = """
start = time.perf_counter()
dls = block(); dls.train.one_batch(); dls.valid.one_batch()
print('seconds', time.perf_counter() - start)
"""


def process(code: str, *args, home: str | None = None) -> tuple[float, float]:
    "Seconds of a process that runs `code`, and those that it reports, if it does."
    env = {**os.environ, **({"XDG_CACHE_HOME": home} if home else {})}
    start = time.perf_counter()
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", code, *args], capture_output=True, text=True, check=True, env=env).stdout
    took = time.perf_counter() - start
    return took, float(out.split("seconds ")[1].split()[0]) if "seconds " in out else took


def in_turns(fs: dict, repeats: int) -> dict:
    "What each function gives, `repeats` times, in turns."
    times = {k: [] for k in fs}
    for _ in range(repeats):
        for k, f in fs.items(): times[k].append(f())
    return times


def bench_help(repeats: int) -> list:
    "The help of the command, of each of its commands, and an error."
    code = "import sys; sys.argv = ['rnn_fastai', *sys.argv[1:]]; from rnn_fastai.cli.entry import main; main()"
    calls = {"--help": ["--help"], **{f"{c} --help": [c, "--help"] for c in COMMANDS}}
    times = in_turns({k: lambda args=args: process(code, *args)[0] for k, args in calls.items()}, repeats)
    med = {k: statistics.median(v) for k, v in times.items()}
    for k, t in med.items(): print(f"{k}: {t:.3f} s", flush=True)
    return [dict(what="help texts", unit="s", seconds=med, longest=max(med.values()), runs=times)]


def bench_imports(repeats: int) -> list:
    "`from rnn_fastai.all import *` beside fastai's."
    codes = dict(python="pass", torch="import torch", fastai="import fastai.text.all", ours="import rnn_fastai.all")
    times = in_turns({k: lambda code=code: process(code)[0] for k, code in codes.items()}, repeats)
    med = {k: statistics.median(v) for k, v in times.items()}
    print("imports:", {k: round(v, 3) for k, v in med.items()}, f"over fastai {med['ours'] - med['fastai']:.3f} s", flush=True)
    return [dict(what="imports", unit="s", seconds=med, over_fastai=med["ours"] - med["fastai"], runs=times)]


def bench_cold(repeats: int) -> list:
    "2,500 reviews to LM loaders and a batch of each."
    from rnn_fastai.data.sets import imdb
    with tempfile.TemporaryDirectory() as d:
        file = f"{d}/reviews.parquet"
        imdb("train").sample(2500, random_state=0).to_parquet(file)
        head = f"import sys, time; {READ}"
        def fastai(n): return lambda: process(head + FASTAI.format(n=n) + BATCHES, file)
        def ours(home): return lambda: process(head + OURS + BATCHES, file, home=home or tempfile.mkdtemp(dir=d))
        ours(f"{d}/home")()
        times = in_turns({"fastai, 0 workers": fastai(0), "fastai, 2 workers": fastai(2), "first": ours(None),
                          "later": ours(f"{d}/home")}, repeats)
    med = {k: {w: statistics.median(t[i] for t in v) for i, w in enumerate(("process", "loaders"))} for k, v in times.items()}
    for k, t in med.items(): print(f"{k}: loaders {t['loaders']:.3f} s, process {t['process']:.3f} s", flush=True)
    rows = []
    for k in ("first", "later"):
        ratio = {f"{w}, {n} workers": med[f"fastai, {n} workers"][w]/med[k][w] for w in ("loaders", "process") for n in (0, 2)}
        print(k, {w: round(r, 2) for w, r in ratio.items()}, flush=True)
        rows.append(dict(what=f"IMDB, 2,500 reviews to LM batches, {k} process", unit="s", ratios=ratio, seconds=med[k]))
    return [dict(what="IMDB, 2,500 reviews to LM batches, fastai", unit="s", seconds={k: v for k, v in med.items() if "fastai" in k}),
            *rows, dict(what="IMDB, 2,500 reviews to LM batches, runs", unit="s", runs=times)]


JOBS = dict(help=bench_help, imports=bench_imports, cold=bench_cold)


def main():
    "Run the jobs named, or all."
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("jobs", nargs="*", help=f"some of: {', '.join(JOBS)}")
    p.add_argument("--repeats", type=int, default=5)
    args = p.parse_args()
    odd = set(args.jobs) - set(JOBS)
    if odd: p.error(f"unknown: {', '.join(odd)}")
    for name in args.jobs or JOBS: common.save("start", JOBS[name](args.repeats))


if __name__ == "__main__": main()
