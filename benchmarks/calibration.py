"""How sure classifiers of reviews are, and what helps where a class is rare; results go to results/calibration.json.

    python benchmarks/calibration.py [imdb] [rare]

`imdb`: a pooled LSTM on 5,000 training reviews of IMDB. The temperature comes from 2,500 other training reviews; the test
set is read once, for the figures before and after. `rare`: one review of twenty is positive; macro F1 of plain training, of
weights, of even sampling, of the focal loss and of a chosen threshold, over three seeds, on training reviews held out.
"""
import json
import statistics
import sys
import time
import warnings

import numpy as np
import pandas as pd
import torch
from common import save
from fastai.losses import CrossEntropyLossFlat
from fastai.torch_core import set_seed
from fastcore.basics import noop
from torch.nn import functional as F

from rnn_fastai.data.balance import balanced_loaders, class_weights
from rnn_fastai.data.loaders import TextDataLoaders
from rnn_fastai.data.sets import imdb
from rnn_fastai.learner import calibration  # noqa: F401 # gives learners their methods
from rnn_fastai.learner.rnn import rnn_learner
from rnn_fastai.models.calibration import brier_score, expected_calibration_error
from rnn_fastai.models.focal import FocalLoss

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
SHAPE = dict(emb_sz=100, n_hid=96, pool="max", drop=0.3)


def loaders(df, bs: int = 32):
    "Loaders over reviews, of which `held` says which are for validation."
    return TextDataLoaders.from_df(df, text_col="text", label_col="label", valid_col="held", bs=bs, no_bar=True,
                                   device="cpu", max_vocab=20_000, tok_tfm=None)


def fit(dls, epochs: int, seed: int, loss=None):
    "A pooled LSTM after a short training."
    set_seed(seed)
    learn = rnn_learner(dls, "LSTM", loss_func=loss, **SHAPE)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 5e-3)
    return learn


def cut(df, n: int = 200):
    "Reviews without what comes after some words: this is about confidence, and saves time."
    return df.assign(text=[" ".join(t.split()[:n]) for t in df.text])


def figures(out: torch.Tensor, y: torch.Tensor, t: float) -> dict:
    "What a temperature does to outputs."
    x = out.double()/t
    p = x.softmax(1)
    return dict(ece=expected_calibration_error(p, y), ece_mass=expected_calibration_error(p, y, bins="mass"),
                nll=float(F.cross_entropy(x, y)), brier=brier_score(p, y), accuracy=float((p.argmax(1) == y).double().mean()))


def on_imdb() -> list:
    "Calibration errors on the test set, before and after."
    train, test = cut(imdb("train")).sample(7500, random_state=0), cut(imdb("test"))
    dls = loaders(train.assign(held=np.arange(7500) >= 5000).reset_index(drop=True))
    start = time.perf_counter()
    learn = fit(dls, 5, 0)
    t = learn.calibrate()
    took = time.perf_counter() - start
    with learn.no_bar(): out, y = learn.get_preds(dl=dls.test_dl(test, with_labels=True), act=noop)
    row = dict(what="IMDB test", train=5000, valid=2500, test=len(test), bins=15, temperature=t, seconds=took,
               before=figures(out, y, 1.), after=figures(out, y, t))
    print(json.dumps(row, indent=1), flush=True)
    return [row]


def rare() -> list:
    "Macro F1 where one review of twenty is positive."
    df, found = cut(imdb("train"), 100), {}
    names = sorted(df.label.unique())
    neg, pos = (df[df.label == n].sample(frac=1, random_state=0) for n in names)
    part = [neg[:1900].assign(held=False), pos[:100].assign(held=False), neg[1900:3800].assign(held=True),
            pos[100:200].assign(held=True), neg[3800:5700].assign(held=True), pos[200:300].assign(held=True)]
    dls = loaders(pd.concat(part[:4], ignore_index=True))
    score = pd.concat(part[4:], ignore_index=True)
    weights = class_weights(dls)
    ways = {"plain": (dls, None), "class weights": (dls, CrossEntropyLossFlat(weight=weights)),
            "even sampling": (balanced_loaders(dls), None), "focal": (dls, FocalLoss(2.)),
            "focal, class weights": (dls, FocalLoss(2., weights))}
    for seed in range(3):
        for name, (loads, loss) in ways.items():
            learn = fit(loads, 6, seed, loss)
            dl = dls.test_dl(score, with_labels=True)
            def f1(learn=learn, dl=dl): return float(learn.class_report(dl=dl).loc["macro avg", "f1-score"])
            found.setdefault(name, []).append(f1())
            if name == "plain":
                learn.choose_thresholds()
                found.setdefault("plain, threshold chosen", []).append(f1())
            print(seed, name, found[name][-1], flush=True)
    return [dict(what=f"1 of 20, {name}", macro_f1=statistics.mean(v), runs=v) for name, v in found.items()]


def main():
    "Run what was asked for."
    parts = dict(imdb=on_imdb, rare=rare)
    for name in sys.argv[1:] or parts: save("calibration", parts[name]())


if __name__ == "__main__": main()
