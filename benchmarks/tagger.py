"""Parts of speech of UD English EWT; results go to results/tagger.json.

    python benchmarks/tagger.py [softmax] [crf] [recipe] [few] [--vectors=glove-6b-50d] [--lms=AWD_LSTM_small] [--no-test]

`recipe` is `train_tagger` with its own settings, and word vectors and a language model where they are named; `few` the
same from 500 sentences, three draws of them, scored on the validation sentences alone. All was chosen on the treebank's
own validation sentences; each is tested once.
"""
import os
import sys
import time
import warnings
from pathlib import Path

import pandas as pd
import torch
from common import save
from fastai.callback.core import Callback
from fastai.torch_core import set_seed

from rnn_fastai.data.sets import ud_ewt
from rnn_fastai.data.tags import TagDataLoaders
from rnn_fastai.learner.tagger import TaggerLearner, tagger_learner, train_tagger

warnings.filterwarnings("ignore")
SHARED = Path(__file__).parents[2]/"shared"/"data"
if SHARED.exists(): os.environ.setdefault("RNN_FASTAI_DATA", str(SHARED))
EPOCHS, LR, BS, SEED = 8, 4e-3, 32, 42


class Clock(Callback):
    "Seconds of all training, without validation."
    seconds = 0.
    def before_train(self): self.start = time.perf_counter()
    def after_train(self): self.seconds += time.perf_counter() - self.start


def plain(fit: pd.DataFrame, clock: Clock, crf: bool) -> TaggerLearner:
    "Words and letters, one layer."
    dls = TagDataLoaders.from_df(fit, valid_col="held", tok=str.lower, min_freq=2, chars=True, bs=BS, val_bs=128)
    set_seed(SEED)
    learn = tagger_learner(dls, crf=crf, cbs=clock)
    learn.fit_one_cycle(EPOCHS, LR)
    return learn


def recipe(fit: pd.DataFrame, clock: Clock, **readers) -> TaggerLearner:
    "One call; `readers` are vectors and a language model."
    set_seed(SEED)
    return train_tagger(fit, valid_col="held", val_bs=128, learner_args=dict(cbs=clock), **readers)


def sentences() -> tuple[pd.DataFrame, pd.DataFrame]:
    "Training and validation sentences, which are held out; test sentences."
    df = ud_ewt().rename(columns={"upos": "tags"})
    fit = df[df.split.isin(["train", "dev"])]
    return fit.assign(held=fit.split == "dev"), df[df.split == "test"]


def few(readers: dict, n: int = 500) -> dict:
    "Train on `n` sentences, drawn three times; mean accuracy of the validation sentences."
    fit, _ = sentences()
    scores, clock = [], Clock()
    for draw in range(3):
        drawn = fit[~fit.held].sample(n, random_state=draw)
        learn = recipe(pd.concat([drawn, fit[fit.held]], ignore_index=True), clock, **readers)
        scores.append(learn.validate()[-1])
        print(readers, scores[-1], flush=True)
    return dict(what=", ".join([f"UD EWT, coarse tags, {n} sentences", *readers.values()]), seed=SEED, scores=scores,
                valid=sum(scores)/len(scores), seconds=clock.seconds, threads=torch.get_num_threads())


def run(name: str, readers: dict, test: bool) -> dict:
    "Train, and score the validation and, once, the test sentences."
    (fit, held), clock = sentences(), Clock()
    learn = recipe(fit, clock, **readers) if name == "recipe" else plain(fit, clock, name == "crf")
    what = {"softmax": "", "crf": ", CRF", "recipe": "".join([", one call", *(f", {v}" for v in readers.values())])}
    res = dict(what="UD EWT, coarse tags" + what[name], epochs=learn.n_epoch, lr=LR,
               bs=learn.dls.bs, seed=SEED, threads=torch.get_num_threads(), seconds=clock.seconds,
               valid=learn.validate()[-1])
    if test: res["test"] = learn.validate(dl=learn.dls.test_dl(held, with_labels=True))[-1]
    print(res, flush=True)
    return res


def main():
    "Run what was asked for."
    asked = [a for a in sys.argv[1:] if not a.startswith("-")] or ["softmax", "crf", "recipe"]
    given = {k: v for k, _, v in (a.removeprefix("--").partition("=") for a in sys.argv[1:]) if v}
    for name in asked:
        row = few(given) if name == "few" else run(name, given, "--no-test" not in sys.argv)
        if name == "few" or "test" in row: save("tagger", [row])


if __name__ == "__main__": main()
