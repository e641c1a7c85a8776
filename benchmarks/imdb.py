"""Classifiers of IMDB's reviews; results go to results/imdb.json.

    python benchmarks/imdb.py [last] [concat] [defect] [same] [steps] [--no-test]

`last`, `concat`: the plain LSTM classifier, chosen on held-out training reviews, tested once. `defect`: the same net
reading the last padded step, as a course had it. `same`: what batch-mates do to an answer. `steps`: a training step.
"""
import os
import sys
import time
import warnings
from pathlib import Path

import torch
from common import save
from fastai.callback.core import Callback
from fastai.callback.training import GradientClip
from fastai.metrics import accuracy
from fastai.text.core import fix_html, lowercase
from fastai.torch_core import set_seed
from torch import nn
from torch.nn import functional as F

from rnn_fastai.data.loaders import TextDataLoaders
from rnn_fastai.data.sets import imdb
from rnn_fastai.data.tokenize import TextTokenizer
from rnn_fastai.learner.rnn import rnn_learner

warnings.filterwarnings("ignore")
SHARED = Path(__file__).parents[2]/"shared"/"data"
if SHARED.exists(): os.environ.setdefault("RNN_FASTAI_DATA", str(SHARED))
A3 = dict(n_hid=256, emb_sz=128, drop=0.25, embed_p=0.1)
EPOCHS, LR = dict(last=6, concat=3, defect=6), 3e-3


class Clock(Callback):
    "Seconds of training, without validation."
    def before_fit(self): self.seconds = 0.
    def before_train(self): self.start = time.perf_counter()
    def after_train(self): self.seconds += time.perf_counter() - self.start


def a3_loaders(n: int | None = None) -> TextDataLoaders:
    "20,000 training and 5,000 validation reviews, words in lower case, those seen less than five times unknown."
    df = imdb("train")
    if n: df = df.sample(n, random_state=0)
    tok = TextTokenizer(rules=[fix_html, lowercase], post_rules=[])
    return TextDataLoaders.from_df(df, text_col="text", label_col="label", tok_tfm=tok, min_freq=5, bs=64, val_bs=128,
                                   seed=42, no_bar=True)


class LastPadded(nn.Module):
    "The course's net: it reads the output at the last step of the batch, which is padding for most reviews."
    def __init__(self, vocab_sz, emb_sz, n_hid, drop):
        super().__init__()
        self.emb, self.rnn = nn.Embedding(vocab_sz, emb_sz, padding_idx=1), nn.LSTM(emb_sz, n_hid, batch_first=True)
        self.head, self.p = nn.Linear(n_hid, 2), drop

    def forward(self, ids):
        out = self.rnn(self.emb(ids.as_subclass(torch.Tensor)))[0][:, -1]
        return self.head(F.dropout(out, self.p, self.training))


def a3(kind: str, test: bool) -> dict:
    "Train the classifier; accuracy on held-out training reviews and, once, on the test reviews."
    dls = a3_loaders()
    set_seed(42)
    clock = Clock()
    args = dict(metrics=accuracy, cbs=[GradientClip(1.), clock])
    if kind == "defect": learn = rnn_learner(dls, LastPadded(len(dls.vocab[0]), 128, 256, A3["drop"]), **args)
    else: learn = rnn_learner(dls, "LSTM", pool=kind, **A3, **args)
    learn.fit_one_cycle(EPOCHS[kind], LR)
    res = dict(what=f"A3, {kind}", net=A3, epochs=EPOCHS[kind], lr=LR, vocab=len(dls.vocab[0]),
               threads=torch.get_num_threads(), seconds=clock.seconds, valid=learn.recorder.values[-1][-1])
    if test:
        dl = dls.test_dl(imdb("test"), with_labels=True)
        res["test"] = learn.validate(dl=dl)[1]
    print(res, flush=True)
    return res


def main():
    "Run what was asked for."
    asked = [a for a in sys.argv[1:] if not a.startswith("-")] or ["last", "concat", "defect"]
    test = "--no-test" not in sys.argv
    for name in asked:
        row = a3(name, test)
        if test: save("imdb", [row])


if __name__ == "__main__": main()
