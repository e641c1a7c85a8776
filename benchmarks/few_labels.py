"""IMDB with 100 and 500 labels, spread by topics over reviews that have none; results go to results/few_labels.json.

    python benchmarks/few_labels.py topics           the classifier over topics alone, five draws of the labels
    python benchmarks/few_labels.py lstm [--test]    `text_lstm` trained on the reviews that it is sure of, one draw or more (--draws)
    python benchmarks/few_labels.py small [--test]   the classifier from the small model that comes with the package, likewise

Every draw has as many labels of each kind. All other training reviews and those without labels are read without theirs,
but for 2,500 that are held out and measured by. Settings were chosen on these; `--test` measures the test reviews too, once.
"""
import argparse
import os
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import save
from fastai.metrics import accuracy
from imdb_text import SIZES, reviews

from rnn_fastai.callback.schedule import Learner
from rnn_fastai.core import seeded
from rnn_fastai.data.loaders import TextDataLoaders
from rnn_fastai.data.sets import imdb
from rnn_fastai.learner.classifier import text_classifier_learner
from rnn_fastai.learner.pretrained import shipped_vocab
from rnn_fastai.learner.pseudo import with_pseudo_labels
from rnn_fastai.learner.text_lstm import text_lstm

warnings.filterwarnings("ignore")
SHARED = Path(__file__).parents[2]/"shared"/"data"
if SHARED.exists(): os.environ.setdefault("RNN_FASTAI_DATA", str(SHARED))
OUT = Path(__file__).parents[1]/"out"/"few_labels"
LABELS = 100, 500


def texts() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    "Reviews that labels are drawn from; all that are read without labels; those held out."
    df, more = reviews(*SIZES["dev"])
    given, held = df[~df.held], df[df.held]
    more = pd.concat([given[["text"]], more], ignore_index=True)
    return given, more[~more.text.isin(held.text)].drop_duplicates("text"), held


def spread(n: int, draw: int, share: float = 0.6) -> tuple[pd.DataFrame, pd.DataFrame]:
    "`n` labels and those that follow from them; the texts that are held out, with theirs."
    given, more, held = texts()
    few = given.groupby("label").sample(n//2, random_state=draw)
    return with_pseudo_labels(few, more, valid_pct=0, share=share, no_bar=True), held


def topics() -> list:
    "How often topics alone tell the label of reviews held out, and of the surest six tenths of them."
    given, more, held = texts()
    rows = []
    for n in LABELS:
        right, sure, took = [], [], []
        for draw in range(5):
            few = given.groupby("label").sample(n//2, random_state=draw)
            start = time.perf_counter()
            both = with_pseudo_labels(few, pd.concat([more, held[["text"]]]), valid_pct=0, share=1., no_bar=True)
            took.append(time.perf_counter() - start)
            found = both[n:].merge(held[["text", "label"]], on="text", suffixes=("", "_given")).sort_values("prob")
            hits = (found.label == found.label_given).to_numpy()
            right.append(hits.mean()); sure.append(hits[-6*len(hits)//10:].mean())
        rows.append(dict(what=f"topics, {n} labels", labels=n, seconds=float(np.median(took)), draws=right,
                         valid=float(np.mean(right)), spread=float(np.std(right)), surest=float(np.mean(sure))))
    return rows


def lstm(both: pd.DataFrame, n: int, seed: int) -> Learner:
    "`text_lstm` on the labels and 20,000 that follow; words start from vectors of all texts."
    return text_lstm(some(both, n, 20_000), valid_col="is_valid", unlabelled=texts()[1], epochs=2, seed=seed,
                     no_bar=True, path=OUT)


def small(both: pd.DataFrame, n: int, seed: int) -> Learner:
    "The small model on the labels and 10,000 that follow, in bfloat16: an epoch of the head and one of all layers."
    dls = TextDataLoaders.from_df(some(both, n, 10_000), text_col="text", label_col="label", valid_col="is_valid", bs=32,
                                  text_vocab=shipped_vocab(), no_bar=True, path=OUT)
    with seeded(seed):
        learn = text_classifier_learner(dls, "AWD_LSTM_small", metrics=accuracy, drop_mult=0.3, max_len=400).to_bf16()
        with learn.no_bar():
            learn.fit_one_cycle(1, 1e-2)
            learn.unfreeze()
            learn.fit_one_cycle(1, slice(5e-4, 5e-3))
    return learn


def some(both: pd.DataFrame, n: int, n_more: int) -> pd.DataFrame:
    "The labels that were given, and some of those that follow."
    return pd.concat([both[:n], both[n:].sample(n_more, random_state=0)])


def students(kind: str, draws: int, test: bool) -> list:
    "Nets trained on labels that follow from few."
    rows = []
    for n in LABELS:
        res = dict(what=f"{kind}, {n} labels", labels=n, runs=[])
        for draw in range(draws):
            start, cpu = time.perf_counter(), time.process_time()
            both, held = spread(n, draw)
            learn = dict(lstm=lstm, small=small)[kind](both, n, draw)
            run = dict(seconds=time.perf_counter() - start, cpu_seconds=time.process_time() - cpu)
            for part, df in dict(valid=held, **(dict(test=imdb("test")) if test else {})).items():
                with learn.no_bar(): run[part] = learn.validate(dl=learn.dls.test_dl(df, with_labels=True))[1]
            res["runs"].append(run)
            print(n, draw, run, flush=True)
        means = {k: float(np.mean([r[k] for r in res["runs"]])) for k in res["runs"][0]}
        rows.append(dict(res, **means, threads=torch.get_num_threads()))
    return rows


def main():
    "Run what was asked for."
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("kind", choices=("topics", "lstm", "small"))
    ask.add_argument("--draws", type=int, default=1)
    ask.add_argument("--test", action="store_true", help="measure the test reviews too")
    a = ask.parse_args()
    rows = topics() if a.kind == "topics" else students(a.kind, a.draws, a.test)
    for row in rows: print(row)
    save("few_labels", rows)


if __name__ == "__main__": main()
