"""Parts of speech of UD English EWT; results go to results/tagger.json.

    python benchmarks/tagger.py [softmax] [crf] [recipe] [--vectors=glove-6b-50d] [--no-test]

`recipe` is `train_tagger` with its own settings, and word vectors where they are named. All was chosen on the
treebank's own validation sentences; each is tested once.
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
    "Seconds of training, without validation."
    def before_fit(self): self.seconds = 0.
    def before_train(self): self.start = time.perf_counter()
    def after_train(self): self.seconds += time.perf_counter() - self.start


def plain(fit: pd.DataFrame, clock: Clock, crf: bool) -> TaggerLearner:
    "Words and letters, one layer."
    dls = TagDataLoaders.from_df(fit, valid_col="held", tok=str.lower, min_freq=2, chars=True, bs=BS, val_bs=128)
    set_seed(SEED)
    learn = tagger_learner(dls, crf=crf, cbs=clock)
    learn.fit_one_cycle(EPOCHS, LR)
    return learn


def recipe(fit: pd.DataFrame, clock: Clock, vectors: str | None) -> TaggerLearner:
    "One call."
    set_seed(SEED)
    return train_tagger(fit, vectors=vectors, valid_col="held", val_bs=128, learner_args=dict(cbs=clock))


def run(name: str, vectors: str | None, test: bool) -> dict:
    "Train, and score the validation and, once, the test sentences."
    df = ud_ewt().rename(columns={"upos": "tags"})
    fit, clock = df[df.split.isin(["train", "dev"])], Clock()
    fit = fit.assign(held=fit.split == "dev")
    learn = recipe(fit, clock, vectors) if name == "recipe" else plain(fit, clock, name == "crf")
    what = {"softmax": "", "crf": ", CRF", "recipe": ", one call" + (f", {vectors}" if vectors else "")}
    res = dict(what="UD EWT, coarse tags" + what[name], epochs=learn.n_epoch, lr=LR,
               bs=learn.dls.bs, seed=SEED, threads=torch.get_num_threads(), seconds=clock.seconds,
               valid=learn.recorder.values[-1][-1])
    if test: res["test"] = learn.validate(dl=learn.dls.test_dl(df[df.split == "test"], with_labels=True))[-1]
    print(res, flush=True)
    return res


def main():
    "Run what was asked for."
    asked = [a for a in sys.argv[1:] if not a.startswith("-")] or ["softmax", "crf", "recipe"]
    vectors = next((a.partition("=")[2] for a in sys.argv if a.startswith("--vectors=")), None)
    for name in asked:
        row = run(name, vectors, "--no-test" not in sys.argv)
        if "test" in row: save("tagger", [row])


if __name__ == "__main__": main()
