"""ULMFiT on IMDB without outside weights, in a size that two CPU cores can train; results go to results/ulmfit.json.

    python benchmarks/ulmfit.py [lm] [classifier] [ensemble] [lowshot] [small] [--backwards] [--reviews N] [--epochs N]

`lm`: a language model of training and unlabelled reviews (no text of the test set). `classifier`: trained on 22,500
labels on top of it. `ensemble`: its mean with one that reads backwards. `lowshot`: 100 and 500 labels, with and without
the language model. `small`: all labels, from the small model that comes with the package. Recipes are fixed on held-out training reviews; the test reviews are read once for each figure.
"""
import argparse
import os
import time
import warnings
from pathlib import Path

import pandas as pd
import torch
from common import save
from fastai.metrics import accuracy
from fastai.torch_core import set_seed

import rnn_fastai.learner.calibration  # noqa: F401  gives learners `calibrate`
from rnn_fastai.callback.schedule import layer_rates
from rnn_fastai.data.loaders import TextDataLoaders
from rnn_fastai.data.sets import imdb
from rnn_fastai.learner.classifier import combine_directions, text_classifier_learner
from rnn_fastai.learner.pretrained import shipped_vocab
from rnn_fastai.learner.ulmfit import fine_tune_classifier, fine_tune_lm
from rnn_fastai.learner.weights import read_vocab
from rnn_fastai.models.awd import AWD_LSTM
from rnn_fastai.models.calibration import expected_calibration_error

warnings.filterwarnings("ignore")
SHARED = Path(__file__).parents[2]/"shared"/"data"
if SHARED.exists(): os.environ.setdefault("RNN_FASTAI_DATA", str(SHARED))
OUT = Path(__file__).parents[1]/"out"/"ulmfit"
CONFIG = dict(emb_sz=200, n_hid=500, n_layers=2)
MAX_VOCAB, SEED, SMALL = 12_000, 42, "AWD_LSTM_small"


def train_lm(n: int, epochs: int, backwards: bool) -> dict:
    "One cycle over `n` reviews, a twentieth held out."
    df = imdb(("train", "unsup")).sample(n, random_state=SEED)
    dls = TextDataLoaders.from_df(df, text_col="text", is_lm=True, valid_pct=0.05, seed=SEED, max_vocab=MAX_VOCAB,
                                  bs=64, seq_len=72, backwards=backwards, path=OUT, no_bar=True)
    set_seed(SEED)
    start = time.perf_counter()
    learn = fine_tune_lm(dls, AWD_LSTM, epochs, 1e-2, CONFIG, 0.2, pretrained=False)
    took = time.perf_counter() - start
    learn.save_encoder(name(backwards))
    loss, acc = learn.recorder.values[-1][1:3]
    return dict(what=f"language model{', backwards' if backwards else ''}", reviews=n, epochs=epochs, config=CONFIG,
                tokens=dls.train.n_tokens, seconds=took, valid_loss=loss, accuracy=acc)


def name(backwards: bool) -> str:
    "Name of the encoder's file."
    return "encoder_backwards" if backwards else "encoder"


def loaders(df: pd.DataFrame, backwards: bool, bs: int) -> TextDataLoaders:
    "Loaders of labelled reviews, a tenth held out, over the language model's words."
    vocab = read_vocab(OUT/"models"/f"{name(backwards)}.vocab.json")
    return TextDataLoaders.from_df(df, text_col="text", label_col="label", text_vocab=vocab, valid_pct=0.1, seed=SEED,
                                   stratify=True, bs=bs, val_bs=64, backwards=backwards, path=OUT, no_bar=True)


def tested(learn, **row) -> dict:
    "Accuracy on held-out training reviews and on the test reviews."
    with learn.no_bar(), learn.no_logging(): valid = learn.validate()[1]
    res = dict(row, valid=valid, test=learn.validate(dl=learn.dls.test_dl(imdb("test"), with_labels=True))[1])
    print(res, flush=True)
    return res


def classifier(backwards: bool) -> dict:
    "All labels, the encoder unfrozen layer by layer."
    dls = loaders(imdb("train"), backwards, 64)
    set_seed(SEED)
    start = time.perf_counter()
    learn = fine_tune_classifier(dls, name(backwards), AWD_LSTM, 2, config=CONFIG, max_len=400)
    took = time.perf_counter() - start
    learn.save(f"classifier{'_backwards' if backwards else ''}", with_opt=False)
    return tested(learn, what=f"classifier{', backwards' if backwards else ''}", labels=len(dls.train_ds), seconds=took)


def ensemble() -> dict:
    "The mean of both readings, trained before."
    pair = [text_classifier_learner(loaders(imdb("train"), b, 64), AWD_LSTM, config=CONFIG, pretrained=False,
                                    max_len=400, metrics=accuracy, path=OUT) for b in (False, True)]
    for learn, file in zip(pair, ("classifier", "classifier_backwards"), strict=True): learn.load(file)
    return tested(combine_directions(*pair), what="both readings", labels=len(pair[0].dls.train_ds))


def from_small() -> dict:
    "All labels, from the small model: an epoch of the head, one of all layers; calibrated on the reviews held out."
    dls = TextDataLoaders.from_df(imdb("train"), text_col="text", label_col="label", text_vocab=shipped_vocab(SMALL),
                                  valid_pct=0.1, seed=SEED, stratify=True, bs=64, val_bs=64, path=OUT, no_bar=True)
    set_seed(SEED)
    start = time.perf_counter()
    learn = text_classifier_learner(dls, SMALL, drop_mult=0.5, max_len=400, metrics=accuracy, path=OUT).to_bf16()
    with learn.no_bar():
        learn.freeze()
        learn.fit_one_cycle(1, 2e-2)
        learn.unfreeze()
        learn.fit_one_cycle(1, layer_rates(5e-3, 4, 2.6))
        took, valid = time.perf_counter() - start, learn.recorder.values[-1][-1]
        learn.save("small", with_opt=False)
        learn.calibrate()
        probs, y = learn.get_preds(dl=dls.test_dl(imdb("test"), with_labels=True))
    t = learn.loss_func.temperature
    plain = (probs.log()*t).softmax(1)   # as they were before
    return dict(what="classifier from the small model", labels=len(dls.train_ds), seconds=took, valid=valid,
                test=accuracy(probs, y).item(), temperature=t, error_before=expected_calibration_error(plain, y),
                error_after=expected_calibration_error(probs, y))


def lowshot(n: int, with_lm: bool) -> dict:
    "`n` labels for training and a tenth more to look at; the same net with and without what it has read before."
    df = imdb("train").groupby("label").sample(n*10//18, random_state=SEED)
    dls = loaders(df, False, 16)
    set_seed(SEED)
    start = time.perf_counter()
    if with_lm: learn = fine_tune_classifier(dls, name(False), AWD_LSTM, 10, config=CONFIG, max_len=400)
    else:
        learn = text_classifier_learner(dls, AWD_LSTM, config=CONFIG, pretrained=False, drop_mult=0.5, max_len=400,
                                        metrics=accuracy, path=OUT)
        learn.fit_one_cycle(13, 3e-3)
    took = time.perf_counter() - start
    return tested(learn, what=f"{n} labels, {'with' if with_lm else 'without'} the language model",
                  labels=len(dls.train_ds), seconds=took)


def main():
    "Run what was asked for."
    p = argparse.ArgumentParser()
    p.add_argument("parts", nargs="*", default=["lm", "classifier", "lowshot"])
    p.add_argument("--backwards", action="store_true")
    p.add_argument("--reviews", type=int, default=75_000)
    p.add_argument("--epochs", type=int, default=1)
    args = p.parse_args()
    for part in args.parts:
        if part == "lm": rows = [train_lm(args.reviews, args.epochs, args.backwards)]
        elif part == "classifier": rows = [classifier(args.backwards)]
        elif part == "ensemble": rows = [ensemble()]
        elif part == "small": rows = [from_small()]
        else: rows = [lowshot(n, w) for n in (100, 500) for w in (True, False)]
        for r in rows: r["threads"] = torch.get_num_threads()
        print(rows, flush=True)
        save("ulmfit", rows)


if __name__ == "__main__": main()
