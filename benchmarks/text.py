"Text data at the size of IMDB, fastai and rnn_fastai side by side. Writes benchmarks/results/text.json."
import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import common
import numpy as np
import torch
from fastai.data.block import DataBlock
from fastai.data.transforms import ColReader, RandomSplitter
from fastai.text import all as fa

import rnn_fastai.all as rf
from rnn_fastai.data import sets, tokenize

warnings.filterwarnings("ignore")
SHARED = Path(__file__).resolve().parents[2]/"shared"/"data"
if SHARED.exists(): os.environ.setdefault("RNN_FASTAI_DATA", str(SHARED))


def forget():
    "Let go of every piece and word that was met: the next tokenizer starts cold."
    tokenize._piece_table.cache_clear()
    tokenize._share.cache_clear()


def ours_lm(df, cache=False):
    "Loaders and one batch of each."
    dls = rf.TextDataLoaders.from_df(df, text_col="text", is_lm=True, seed=0, cache=cache, no_bar=True)
    return dls, dls.train.one_batch(), dls.valid.one_batch()


def fastai_lm(df, n_workers: int):
    "The same by fastai's blocks, which have an argument for the number of processes."
    block = DataBlock(fa.TextBlock.from_df("text", is_lm=True, n_workers=n_workers), get_x=ColReader("text"),
                      splitter=RandomSplitter(0.2, seed=0))
    dls = block.dataloaders(df)
    return dls, dls.train.one_batch(), dls.valid.one_batch()


def same(what: str, texts: list) -> dict:
    "Whether tokens, text by text, and the vocabulary are fastai's."
    forget()
    theirs = list(map(list, fa.TokenizeWithRules(fa.SpacyTokenizer())(texts)))
    ours = list(rf.TextTokenizer()(texts))
    n = sum(a == b for a, b in zip(theirs, ours, strict=True))
    counts = Counter(t for toks in theirs for t in toks)
    vocab = list(rf.Corpus.from_texts(texts).vocab) == fa.make_vocab(counts)
    print(f"{what}: {n:,} of {len(texts):,} texts have the same tokens; same vocabulary: {vocab}", flush=True)
    return dict(what=f"same tokens, {what}", texts=len(texts), same=n, tokens=sum(map(len, ours)), same_vocab=vocab)


def bench_same() -> list:
    "All 25,000 training reviews, and WikiText-2 raw: its lines and its articles."
    raw = "".join(sets.wikitext2().text)
    return [same("IMDB, training reviews", sets.imdb("train").text.tolist()),
            same("WikiText-2, raw lines", raw.split("\n")), same("WikiText-2, articles", sets.wikitext2().text.tolist())]


def bench_cold() -> list:
    "A frame of all training reviews to LM batches, nothing known before; and from the disk cache."
    df = sets.imdb("train")
    times = {}
    for n in (0, 2): times[f"fastai, {n} workers"] = [common.seconds(partial(fastai_lm, df, n))]
    with tempfile.TemporaryDirectory() as cache:
        def cold():
            forget()
            ours_lm(df)
        times["cold"] = [common.seconds(cold) for _ in range(3)]
        times["warm"] = [common.seconds(partial(ours_lm, df)) for _ in range(3)]
        ours_lm(df, cache)
        def disk():
            forget()
            ours_lm(df, cache)
        times["disk"] = [common.seconds(disk) for _ in range(3)]
    best = min(v[0] for k, v in times.items() if k.startswith("fastai"))
    rows = []
    for kind in ("cold", "warm", "disk"):
        t = statistics.median(times[kind])
        rows.append(dict(what=f"IMDB, 25,000 reviews to LM batches, {kind}", unit="rows/s", fastai=len(df)/best, ours=len(df)/t,
                         ratio=best/t, seconds=t, runs=times))
        print(f"{kind}: fastai {best:.1f} s, ours {t:.2f} s: {best/t:.1f}x", flush=True)
    print({k: [round(x, 2) for x in v] for k, v in times.items()}, flush=True)
    return rows


def peak(kind: str):
    "Build LM loaders of all 100,000 reviews and print the peak of memory, in MB, before and after."
    df = sets.imdb(("train", "test", "unsup"))[["text"]]
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024, time.perf_counter()
    ours_lm(df) if kind == "ours" else fastai_lm(df, 0)
    print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024, time.perf_counter() - start)


def bench_memory() -> list:
    "Peak memory of a process that makes LM loaders of all 100,000 reviews."
    rows = {}
    for kind in ("ours", "fastai"):
        run = subprocess.run([sys.executable, __file__, "--peak", kind], capture_output=True, text=True, check=True)
        rows[kind] = list(map(float, run.stdout.split()[-3:]))
        print(kind, "MB before, peak, seconds:", rows[kind], flush=True)
    return [dict(what="IMDB, 100,000 reviews to LM loaders, peak memory", unit="MB", fastai=rows["fastai"][1],
                 ours=rows["ours"][1], ratio=rows["fastai"][1]/rows["ours"][1], seconds=rows["ours"][2],
                 fastai_seconds=rows["fastai"][2], frame_read=rows["ours"][0])]


def fastai_waste(dl) -> float:
    "Part of the ids of fastai's batches that is padding."
    n = real = 0
    for x, *_ in dl: n, real = n + x.numel(), real + int((x != 1).sum())
    return 1 - real/n


def bench_classify(n: int = 5000) -> list:
    "Batches of 64 reviews with labels, shuffled: tokens a second, without padding, and the part that is padding."
    df = sets.imdb("train").sample(n, random_state=0, ignore_index=True)
    args = dict(text_col="text", label_col="label", seed=0, bs=64)
    theirs, ours = fa.TextDataLoaders.from_df(df, **args), rf.TextDataLoaders.from_df(df, no_bar=True, **args)
    ds = ours.train_ds
    order = np.array(ours.train.get_idxs())
    at, real = np.split(order, range(64, len(order), 64)), int(ds.lens[order].sum())
    flat, starts, lens = ds.corpus.ids, ds.corpus.offsets[ds.docs], ds.lens

    def bare():
        for rows in at:
            out = np.full((len(rows), lens[rows].max()), 1)
            for o, r in zip(out, rows, strict=True): o[:lens[r]] = flat[starts[r]:starts[r]+lens[r]]
            torch.from_numpy(out), ds.y[rows]

    def all_of(dl):
        for _ in dl: pass
    times = common.in_turns(dict(fastai=partial(all_of, theirs.train), ours=partial(all_of, ours.train), bare=bare), 5)
    row = common.row(f"classification batches, 64 of {n:,} reviews", times, "tokens/s", dict.fromkeys(times, real), "bare")
    whole = rf.TextDataLoaders.from_df(sets.imdb("train"), no_bar=True, valid_pct=0., **{**args, "seed": None})
    waste = dict(fastai=fastai_waste(theirs.train), ours=ours.train.waste, ours_whole=whole.train.waste)
    print(f"padding: fastai {waste['fastai']:.1%}, ours {waste['ours']:.1%}; of all 25,000 {waste['ours_whole']:.1%}", flush=True)
    return [{**row, "waste": waste}]


def bench_characters() -> list:
    "Characters a second through `CharTokenizer`, and through it into a corpus."
    texts = sets.imdb("train").text.tolist()
    n = sum(map(len, texts))
    runs = dict(number=lambda: [rf.CharTokenizer().number(part) for part in tokenize.chunks_of(texts)],
                corpus=lambda: rf.Corpus.from_texts(texts, tokenizer=rf.CharTokenizer(), no_bar=True))
    rows = []
    for what, f in runs.items():
        t = statistics.median(common.seconds(f) for _ in range(3))
        print(f"characters, {what}: {n/t:,.0f} a second", flush=True)
        rows.append(dict(what=f"characters, {what}", unit="characters/s", rate=n/t, seconds=t))
    return rows


JOBS = dict(same=bench_same, cold=bench_cold, memory=bench_memory, classify=bench_classify, characters=bench_characters)


def main():
    "Run the jobs named, or all."
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("jobs", nargs="*", help=f"some of: {', '.join(JOBS)}")
    p.add_argument("--peak", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.peak: return peak(args.peak)
    odd = set(args.jobs) - set(JOBS)
    if odd: p.error(f"unknown: {', '.join(odd)}")
    for name in args.jobs or JOBS: common.save("text", JOBS[name]())


if __name__ == "__main__": main()
