"""IMDB by the parts of `text_lstm`: labels and unlabelled reviews, no language model; results go to
results/imdb_text.json.

    python benchmarks/imdb_text.py small                 2,000 labels and 4,000 reviews without: does all of it, in minutes
    python benchmarks/imdb_text.py dev [--epochs 3]      22,500 labels; accuracy on 2,500 held-out training reviews
    python benchmarks/imdb_text.py full                  the same, and the test reviews, read once

Word vectors are learnt first, once, from all training reviews that are not held out and from those without labels. Each
net trains on one thread in a process of its own, so two nets take two cores. Settings are chosen by `dev` alone:
`--set n_hid=128`, `--set adversarial=1`, for one or several settings of SETTINGS; a width of 0 does without own vectors.
With `--students 2` the mean of the nets tells labels of the reviews that have none, and as many nets again are trained on
these and the given ones, for two epochs (self-training, see `learner.pseudo`).
"""
import argparse
import json
import os
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import save
from fastai.text.core import fix_html, lowercase

from rnn_fastai.core import seeded
from rnn_fastai.data.sets import imdb
from rnn_fastai.data.tokenize import TextTokenizer
from rnn_fastai.learner.text_lstm import mixed_loaders, mixed_objective, own_vectors, text_lstm_learner

warnings.filterwarnings("ignore")
SHARED = Path(__file__).parents[2]/"shared"/"data"
if SHARED.exists(): os.environ.setdefault("RNN_FASTAI_DATA", str(SHARED))
N_VALID = 2500
SIZES = dict(small=(2000, 4000), dev=(22500, 50000), full=(22500, 50000))   # labels, reviews without
SETTINGS = dict(n_hid=128, width=256, drop=0.3, embed_p=0.1, lr=3e-3, bs=32, epsilon=1., adversarial=0., virtual=0.,
                entropy=0., min_freq=5)
MODEL, LOSSES = ("n_hid", "drop", "embed_p"), ("epsilon", "adversarial", "virtual", "entropy")


def reviews(n_labels: int, n_more: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    "Labelled training reviews, of which some are held out, and others without labels; the same ones always."
    df = imdb("train").sample(frac=1, random_state=0)[:N_VALID + n_labels]
    held = set(df.text[:N_VALID])
    more = imdb("unsup")[["text"]].sample(frac=1, random_state=0)[:n_more]
    return df.assign(held=np.arange(len(df)) < N_VALID), more[~more.text.isin(held)]


def picked(names: tuple, settings: dict) -> dict: return {k: settings[k] for k in names}


def loaders(kind: str, settings: dict, told: np.ndarray | None = None) -> tuple:
    "Loaders of the labelled reviews, and those without labels, which are among them where their labels were told."
    df, more = reviews(*SIZES[kind])
    if told is not None: df, more = pd.concat([df, more.assign(label=told, held=False)], ignore_index=True), None
    tok = TextTokenizer(rules=[fix_html, lowercase], post_rules=[])
    return mixed_loaders(df, more, valid_col="held", tok_tfm=tok, bs=settings["bs"], val_bs=128,
                         min_freq=settings["min_freq"], cache=True, no_bar=True)


def train(task: tuple) -> dict:
    "Train one net; its probabilities of held-out reviews and, if asked for, of the test reviews and those it teaches."
    kind, seed, epochs, settings, vectors, told, teaches = task
    torch.set_num_threads(1)
    start = time.perf_counter()
    dls, texts = loaders(kind, settings, told)
    read, cpu = time.perf_counter(), time.process_time()
    with seeded(seed):
        learn = text_lstm_learner(dls, vectors=vectors, **picked(MODEL, settings))
        cbs = mixed_objective(texts, bs=settings["bs"], seed=seed, **picked(LOSSES, settings))
        with learn.no_bar(): learn.fit_one_cycle(epochs, settings["lr"], cbs=cbs)
    trained, cpu = time.perf_counter(), time.process_time() - cpu
    curve = [v[2] for v in learn.recorder.values]
    with learn.no_bar(): probs, y = learn.get_preds()
    res = dict(seed=seed, reading=read - start, training=trained - read, cpu=cpu, curve=curve,
               labelled_a_cpu_second=epochs*len(dls.train_ds)/cpu, valid=(probs.numpy(), y.numpy()))
    if teaches:
        began = time.process_time()
        with learn.no_bar(): res["more"] = learn.get_preds(dl=dls.test_dl(reviews(*SIZES[kind])[1].text.tolist()))[0].numpy()
        res["cpu"] += time.process_time() - began
    if kind == "full":
        test = imdb("test")
        with learn.no_bar(): probs, y = learn.get_preds(dl=dls.test_dl(test, with_labels=True))
        res["test"] = probs.numpy(), y.numpy()
    return res


def accuracy(nets: list[dict], part: str) -> dict:
    "Accuracy of each net, and of the mean of their probabilities."
    y = nets[0][part][1]
    def share(p): return float((p.argmax(1) == y).mean())
    return dict(nets=[share(n[part][0]) for n in nets], mean=share(np.mean([n[part][0] for n in nets], 0)))


def main():
    "Run what was asked for."
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("kind", choices=SIZES)
    ask.add_argument("--epochs", type=int, default=3)
    ask.add_argument("--nets", type=int, default=2)
    ask.add_argument("--jobs", type=int, default=2, help="nets that train at the same time")
    ask.add_argument("--students", type=int, default=0, help="nets that learn what the first ones tell")
    ask.add_argument("--name", default="own vectors", help="of the row of results")
    ask.add_argument("--set", action="append", default=[], metavar="NAME=NUMBER")
    a = ask.parse_args()
    settings = {**SETTINGS, **{k: json.loads(v) for k, v in (s.split("=") for s in a.set)}}
    odd = [k for k in settings if k not in SETTINGS]
    if odd: ask.error(f"{odd[0]} is none of {', '.join(SETTINGS)}")
    start, cpu = time.perf_counter(), time.process_time()
    torch.set_num_threads(1)
    vectors = own_vectors(*loaders(a.kind, settings), settings["width"], no_bar=True) if settings["width"] else None
    cpu = time.process_time() - cpu
    print(f"vectors after {cpu:.0f} s", flush=True)
    parts = ("valid", "test") if a.kind == "full" else ("valid",)
    with ProcessPoolExecutor(a.jobs, get_context("spawn")) as pool:
        def trained(seeds, *rest): return list(pool.map(train, [(a.kind, seed, *rest) for seed in seeds]))
        nets, students = trained(range(a.nets), a.epochs, settings, vectors, None, a.students > 0), []
        print({part: accuracy(nets, part) for part in parts}, flush=True)
        if a.students:
            told = np.array(["neg", "pos"])[np.mean([n.pop("more") for n in nets], 0).argmax(1)]
            seeds = range(a.nets, a.nets + a.students)
            students = trained(seeds, 2, {**settings, "bs": 2*settings["bs"]}, vectors, told, False)
    def runs(nets): return [{k: v for k, v in n.items() if k not in parts} for n in nets]
    row = dict(what=f"{a.name}, {a.kind}", labels=SIZES[a.kind][0], unlabelled=SIZES[a.kind][1], settings=settings,
               epochs=a.epochs, jobs=a.jobs, seconds=time.perf_counter() - start,
               cpu_seconds=cpu + sum(n["cpu"] for n in nets + students), cpu_of_vectors=cpu, runs=runs(nets),
               **{part: accuracy(nets, part) for part in parts})
    if students:
        row |= dict(runs_of_students=runs(students), students={part: accuracy(students, part) for part in parts},
                    all={part: accuracy(nets + students, part)["mean"] for part in parts})
    print(json.dumps(row, indent=1), flush=True)
    save("imdb_text", [row])


if __name__ == "__main__": main()
