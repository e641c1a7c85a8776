"""A small AWD_LSTM trained on WikiText-2, and what dynamic evaluation and a neural cache do for it; results go to
results/wikitext.json.

    python benchmarks/wikitext.py [train] [score]

`train`: two epochs on two CPU cores. `score`: perplexity of the test text as one stream, plainly and with both.
"""
import os
import sys
import time
import warnings
from pathlib import Path

import common
from fastai.torch_core import set_seed

from rnn_fastai.callback.lean import LeanLoss
from rnn_fastai.data.corpus import Corpus
from rnn_fastai.data.lm import LMDataLoader, LMDataset
from rnn_fastai.data.loaders import TextDataLoaders
from rnn_fastai.data.sets import wikitext2
from rnn_fastai.learner import LMLearner, language_model_learner
from rnn_fastai.models.zoo import AWD_LSTM

warnings.filterwarnings("ignore")
SHARED = Path(__file__).parents[2]/"shared"/"data"
if SHARED.exists(): os.environ.setdefault("RNN_FASTAI_DATA", str(SHARED))
OUT = Path(__file__).parents[1]/"out"/"wikitext"
CONFIG = dict(emb_sz=200, n_hid=400, n_layers=2)
SEED, EPOCHS = 42, 2


def tokens(split: str) -> list[str]:
    "The published tokens of a split: words parted by blanks, `<eos>` after each line."
    return [t for text in wikitext2(split).text for line in text.splitlines() for t in (*line.split(), "<eos>")]


def learner() -> LMLearner:
    "A learner of random weights over all published types."
    train, valid = (Corpus.from_tokens([tokens("train")], min_freq=1, special_toks=["xxunk", "xxpad"]), tokens("valid"))
    valid = Corpus.from_tokens([valid], train.vocab)
    dls = [LMDataLoader(LMDataset(c), bs=bs, seq_len=70) for c, bs in ((train, 40), (valid, 20))]
    set_seed(SEED)
    return language_model_learner(TextDataLoaders(*dls, path=OUT), AWD_LSTM, CONFIG, 0.5, pretrained=False, cbs=LeanLoss())


def train() -> list:
    learn = learner()
    start = time.perf_counter()
    learn.fit_one_cycle(EPOCHS, 1e-2)
    learn.save("small", with_opt=False)
    loss = learn.recorder.values[-1][1]
    return [dict(what="training", config=CONFIG, epochs=EPOCHS, tokens=learn.dls.train.n_tokens, valid_loss=loss,
                 seconds=time.perf_counter() - start)]


def main():
    for name in sys.argv[1:] or ["train", "score"]: common.save("wikitext", dict(train=train)[name]())


if __name__ == "__main__": main()
