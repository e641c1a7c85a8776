"""Corpora in shards: memory and rate of building, speed of reading; results go to results/shards.json.

    python benchmarks/shards.py [--mb 2000]

Texts of IMDb are repeated until there are `--mb` million characters, in 50 Parquet files. Each build runs in a process of
its own, from a cold start, and the start of its workers counts. Then batches are cut from the 50 shards and, in turns,
from the same ids in one array, saved and opened. What is written goes to a temporary folder.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from itertools import chain, cycle, islice, pairwise
from pathlib import Path

import common

warnings.filterwarnings("ignore")
SHARED = Path(__file__).resolve().parents[2]/"shared"/"data"
if SHARED.exists(): os.environ.setdefault("RNN_FASTAI_DATA", str(SHARED))
PARTS = 50


def write_parts(texts: list, n_chars: int, folder: Path):
    "Repeat texts up to a size, in files of as many texts."
    import pandas as pd
    n = max(round(n_chars*len(texts)/sum(map(len, texts))), PARTS)
    source = cycle(texts)
    for i in range(PARTS):
        part = list(islice(source, n*(i+1)//PARTS - n*i//PARTS))
        pd.DataFrame(dict(text=part)).to_parquet(folder/f"{i:03d}.parquet")


def build(how: str, source: Path, folder: Path):
    "One build, in this process and its workers; says how long it took and how much memory each took at its peak."
    from rnn_fastai.data.shards import Corpus
    from rnn_fastai.data.texts import texts_of
    start = time.perf_counter()
    if how == "from_texts":
        texts: Iterator = chain.from_iterable(texts_of(f) for f in sorted(source.iterdir()))
        corpus = Corpus.from_texts(texts, no_bar=True)
        corpus.save(folder)
    else: corpus = Corpus.build(source, folder, workers=int(how), no_bar=True)
    took = time.perf_counter() - start
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    peaks = [u.ru_maxrss/1024 for u in used]
    print(json.dumps(dict(seconds=took, cpu_seconds=sum(u.ru_utime + u.ru_stime for u in used), peak_mb=peaks[0],
                          worker_peak_mb=peaks[1] if how not in ("from_texts", "1") else None, documents=len(corpus), tokens=len(corpus.ids), types=len(corpus.vocab))))


def build_row(how: str, source: Path, folder: Path, mb: float) -> dict:
    "The row of one build."
    out = subprocess.run([sys.executable, __file__, "--how", how, "--source", source, "--folder", folder], text=True,
                         check=True, stdout=subprocess.PIPE).stdout
    name = "Corpus.from_texts and save" if how == "from_texts" else f"Corpus.build, workers={how}"
    res = dict(what=f"{name}, {mb:g} MB", **json.loads(out.splitlines()[-1]))
    res["mb_per_second"] = mb/res["seconds"]
    print(res, flush=True)
    return res


def batches(loader, n: int):
    "Cut `n` batches."
    for _ in islice(loader, n): pass


def reading(folder: Path, n: int) -> list:
    "Rows of reading: a language model, documents, and documents of ten tokens, from shards and from one array."
    import numpy as np

    from rnn_fastai.data.documents import DocDataLoader, DocDataset
    from rnn_fastai.data.lm import LMDataLoader, LMDataset
    from rnn_fastai.data.shards import Corpus
    corpora = {k: Corpus.open(folder/k) for k in ("shards", "array")}
    edges = np.unique(np.concatenate([[0], *(np.append(np.arange(a, b, 10), b) for a, b in shard_edges(corpora["shards"]))]))
    short = {k: Corpus(c.ids, edges, c.vocab) for k, c in corpora.items()}
    kinds = {"language model, 64 x 72": (lambda c: LMDataLoader(LMDataset(c), bs=64, shuffle=True, device="cpu"), corpora),
             "documents, 64 a batch": (lambda c: DocDataLoader(DocDataset(c), bs=64, shuffle=True, device="cpu"), corpora),
             "language model, documents of 10 tokens": (
                 lambda c: LMDataLoader(LMDataset(c), bs=64, shuffle=True, device="cpu"), short)}
    return [read_row(what, {k: one_epoch(make(c)) for k, c in some.items()}, n) for what, (make, some) in kinds.items()]


def shard_edges(corpus) -> list:
    "First and last place of each shard."
    stops = [0]
    for part in corpus.ids.parts: stops.append(stops[-1] + len(part))
    return list(pairwise(stops))


def one_epoch(loader):
    "A loader that keeps the order of its first epoch, so that batches alone are timed."
    loader.randomize()
    order = loader.get_idxs() if hasattr(loader, "waste") else loader.shuffle_fn([])
    loader.shuffle = False
    if hasattr(loader, "waste"): loader.get_idxs = lambda: order
    return loader


def read_row(what: str, loaders: dict, n: int) -> dict:
    "Batches a second from shards and from one array."
    times = common.in_turns({k: (lambda d=d: batches(d, n)) for k, d in loaders.items()}, 15)
    value = {k: n/statistics.median(v) for k, v in times.items()}
    res = dict(what=f"reading: {what}", unit="batches/s", **value, ratio=value["shards"]/value["array"], runs=times)
    print({k: v for k, v in res.items() if k != "runs"}, flush=True)
    return res


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--mb", type=float, default=2000)
    args.add_argument("--hows", nargs="*", default=["from_texts", "1", "2"])
    args.add_argument("--batches", type=int, default=200)
    for name in ("--how", "--source", "--folder"): args.add_argument(name, help=argparse.SUPPRESS)
    args = args.parse_args()
    if args.how: return build(args.how, Path(args.source), Path(args.folder))
    before = Path("/proc/loadavg").read_text().split()[0]
    with tempfile.TemporaryDirectory() as d:
        from rnn_fastai.data.sets import imdb
        folder = Path(d)
        (folder/"source").mkdir()
        write_parts(imdb("unsup").text.tolist(), int(args.mb*1e6), folder/"source")
        rows = [build_row(how, folder/"source", folder/how, args.mb) for how in args.hows]
        (folder/args.hows[-1]).rename(folder/"shards")
        from rnn_fastai.data.shards import Corpus
        corpus = Corpus.open(folder/"shards")
        corpus.save(folder/"array")
        if "from_texts" in args.hows:
            same = Corpus.open(folder/"from_texts")
            assert (corpus.ids[:] == same.ids).all() and corpus.vocab == same.vocab, "other ids than in one process"
        rows += reading(folder, args.batches)
    common.save("shards", rows, load_before=before, load_after=Path("/proc/loadavg").read_text().split()[0])


if __name__ == "__main__": main()
