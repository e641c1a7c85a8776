"""Parts of speech of UD English EWT; results go to results/tagger.json.

    python benchmarks/tagger.py [softmax] [crf] [--no-test]

Chosen on the treebank's own validation sentences; tested once.
"""
import os
import sys
import time
import warnings
from pathlib import Path

import torch
from common import save
from fastai.callback.core import Callback
from fastai.torch_core import set_seed

from rnn_fastai.data.sets import ud_ewt
from rnn_fastai.data.tags import TagDataLoaders
from rnn_fastai.learner.tagger import tagger_learner

warnings.filterwarnings("ignore")
SHARED = Path(__file__).parents[2]/"shared"/"data"
if SHARED.exists(): os.environ.setdefault("RNN_FASTAI_DATA", str(SHARED))
EPOCHS, LR, BS = 8, 4e-3, 32


class Clock(Callback):
    "Seconds of training, without validation."
    def before_fit(self): self.seconds = 0.
    def before_train(self): self.start = time.perf_counter()
    def after_train(self): self.seconds += time.perf_counter() - self.start


def tag_ewt(crf: bool, test: bool) -> dict:
    "Train on words and letters; accuracy on the validation and, once, on the test sentences."
    df = ud_ewt().rename(columns={"upos": "tags"})
    fit = df[df.split.isin(["train", "dev"])]
    dls = TagDataLoaders.from_df(fit.assign(held=fit.split == "dev"), valid_col="held", tok=str.lower, min_freq=2,
                                 chars=True, bs=BS, val_bs=128)
    set_seed(42)
    clock = Clock()
    learn = tagger_learner(dls, crf=crf, cbs=clock)
    learn.fit_one_cycle(EPOCHS, LR)
    res = dict(what="UD EWT, coarse tags" + (", CRF" if crf else ""), epochs=EPOCHS, lr=LR, bs=BS,
               threads=torch.get_num_threads(), seconds=clock.seconds, valid=learn.recorder.values[-1][-1])
    if test: res["test"] = learn.validate(dl=dls.test_dl(df[df.split == "test"], with_labels=True))[1]
    print(res, flush=True)
    return res


def main():
    "Run what was asked for."
    asked = [a for a in sys.argv[1:] if not a.startswith("-")] or ["softmax", "crf"]
    for name in asked:
        row = tag_ewt(name == "crf", "--no-test" not in sys.argv)
        if "test" in row: save("tagger", [row])


if __name__ == "__main__": main()
