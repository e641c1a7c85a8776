"""One review classified, one prompt continued, beside what reading the weights takes; results go to results/one.json.

    python benchmarks/one.py [time] [prompt] [accuracy]

`time`: `predict` of 374 words by the default AWD_LSTM (random weights): fastai, in chunks of 72 words, in one go, in eight
bits; beside them torch's layers alone, and the bare reading of the recurrent weights, once for each word. `prompt`: 50
words after one prompt, as in generate.py. Run these with OMP_NUM_THREADS=1 for one thread: then the time of the processor,
which counts no other programs, stands for all. `accuracy`: a small net is trained for some minutes, and 2,000 test reviews
are classified one by one, in batches, and in eight bits.
"""
import os
import statistics
import sys
import warnings
from functools import partial
from pathlib import Path

import fastai.text.all as fa
import generate
import numpy as np
import pandas as pd
import torch
from common import by_two_clocks, save
from fastai.metrics import accuracy as accuracy_of
from torch import nn

import rnn_fastai.all as rf

warnings.filterwarnings("ignore")
SHARED = Path(__file__).parents[2]/"shared"/"data"
if SHARED.exists(): os.environ.setdefault("RNN_FASTAI_DATA", str(SHARED))
N_WORDS, LENGTH = 20_000, 374
SMALL = dict(emb_sz=64, n_hid=128, n_layers=2)


def words(n: int, seed: int) -> str:
    "A text of random words."
    return " ".join(f"w{i}" for i in np.random.default_rng(seed).integers(0, N_WORDS, n))


def learners() -> dict:
    "Default classifiers of random weights, over the same texts."
    df = pd.DataFrame(dict(text=[words(1500, i) for i in range(64)], label=["a", "b"]*32))
    res = {}
    for name, lib in (("fastai", fa), ("ours", rf)):
        dls = lib.TextDataLoaders.from_df(df, text_col="text", label_col="label", seed=0, bs=8, path="/tmp")
        res[name] = lib.text_classifier_learner(dls, lib.AWD_LSTM, pretrained=False)
        res[name].remove_cb(res[name].progress)
    return res


@torch.no_grad()
def chunked(learn, text: str):
    "`predict` in chunks of 72 words for one text, too, as for a full batch."
    learn.model[0].full_rows = 1
    try: learn.predict(text)
    finally: del learn.model[0].full_rows


@torch.no_grad()
def layers(rnns: list, n: int):
    "torch's kernels alone, each over all words."
    x = torch.ones(1, n, 400)
    for rnn in rnns: x = rnn(x)[0]


@torch.no_grad()
def reading(weights: list, n: int):
    "Sums of the recurrent weights, once for each word."
    for _ in range(n):
        for w in weights: w.sum()


def ways() -> dict:
    "What is timed, by name."
    both, text = learners(), words(LENGTH, 99)
    ours = both["ours"]
    sizes = [(r.input_size, r.hidden_size) for r in ours.model[0].module.rnns]
    rnns = [nn.LSTM(*s, batch_first=True).eval() for s in sizes]
    return dict(fastai=lambda: both["fastai"].predict(text), chunks=partial(chunked, ours, text),
                ours=lambda: ours.predict(text), int8=lambda: ours.predict(text, int8=True),
                layers=partial(layers, rnns, LENGTH), reading=partial(reading, [r.weight_hh_l0 for r in rnns], LENGTH))


def measured(what: str, fs: dict, base: str, repeats: int = 7) -> list:
    "Medians of the time that passes and of the processor's, and how many times faster than one of them all are."
    wall, cpu = by_two_clocks(fs, repeats)
    med, own = ({k: statistics.median(v) for k, v in t.items()} for t in (wall, cpu))
    n = torch.get_num_threads()
    used = own if n == 1 else med
    over = {k: used[base]/v for k, v in used.items()}
    print(what, {k: f"{used[k]*1e3:,.0f} ms, {v:.2f}x" for k, v in over.items()}, flush=True)
    return [dict(what=f"{what}, {n} thread{'s'*(n > 1)}", seconds=med, cpu_seconds=own, load=os.getloadavg()[0],
                 **{f"{base}_over": over}, runs=wall)]


def prompt() -> list:
    "50 words after one prompt; `reading` sums all weights of the layers, once for each word."
    both = generate.learners()
    weights = [w for r in both["ours"].model[0].rnns for w in (r.weight_ih_l0, r.weight_hh_l0)]
    fs = generate.runs(both, 50) | dict(reading=partial(reading, weights, 50))
    return measured("one prompt, 50 words", fs, "fastai", 5)


def trained():
    "A classifier trained on the first 120 words of 12,000 reviews."
    df = rf.imdb("train").sample(12_000, random_state=0)
    df["text"] = df.text.str.split().str[:120].str.join(" ")
    dls = rf.TextDataLoaders.from_df(df, text_col="text", label_col="label", valid_pct=0.1, seed=0, max_vocab=N_WORDS, bs=64,
                                     path="/tmp", no_bar=True)
    rf.set_seed(0)
    learn = rf.text_classifier_learner(dls, rf.AWD_LSTM, config=SMALL, pretrained=False, drop_mult=0.3,
                                       metrics=accuracy_of)
    learn.fit_one_cycle(4, 1e-2)
    return learn


@torch.no_grad()
def answers(learn, dl, int8: bool = False, full_rows: int = 64) -> torch.Tensor:
    "Probabilities of all reviews, as `predict` finds them where the loader gives one at a time."
    with learn._in_bits(int8):
        learn.model[0].full_rows = full_rows
        return learn.get_preds(dl=dl)[0]


def accuracy() -> list:
    "The same 2,000 test reviews one by one (in chunks, in one go, in eight bits) and in batches."
    learn, df = trained(), rf.imdb("test").sample(2000, random_state=0)
    y = torch.tensor([learn.dls.vocab[1].o2i[v] for v in df.label])
    one, many = (learn.dls.test_dl(df, bs=bs) for bs in (1, 64))
    found = dict(batches=answers(learn, many), chunks=answers(learn, one, full_rows=1), ours=answers(learn, one),
                 int8=answers(learn, one, int8=True))
    ref = found["chunks"]
    rows = {k: dict(accuracy=(p.argmax(1) == y).float().mean().item(), furthest=(p - ref).abs().max().item(),
                    mean=(p - ref).abs().mean().item(), other_labels=int((p.argmax(1) != ref.argmax(1)).sum()))
            for k, p in found.items()}
    for k, r in rows.items(): print(k, r, flush=True)
    return [dict(what="2,000 reviews one by one", net=SMALL, **rows)]


def main():
    jobs = dict(time=lambda: measured(f"predict of {LENGTH} words", ways(), "chunks"), prompt=prompt, accuracy=accuracy)
    for name in sys.argv[1:] or jobs: save("one", jobs[name]())


if __name__ == "__main__": main()
