"""Loss after 200 steps in bfloat16 against float32, on the CPU; results go to results/half.json.

    python benchmarks/half.py [--seeds 3] [NAME ...]

Learners of every kind, on data of the demo's size: a language model and every cell on human numbers, a classifier on
IMDB's sample, taggers on a treebank, an encoder and decoder on pairs. `autocast` is `learn.to_bf16()`, `weights` is
`learn.model.bfloat16()`. All train for one cycle of 200 steps, or nearly. A training is chaotic, so what counts is the
mean of the validation loss over seeds; `again` is float32 from weights that differ by rounding, which tells how far
apart trainings come by chance.
"""
import argparse
import os
import random
import statistics
import warnings
from functools import cache, partial
from pathlib import Path

import pandas as pd
import torch
from common import save
from fastai.torch_core import set_seed

import rnn_fastai.all as rf
from rnn_fastai.callback.precision import MixedPrecision
from rnn_fastai.recipes import DEMO, DEMO_CONFIG

warnings.filterwarnings("ignore")
SHARED = Path(__file__).parents[2]/"shared"/"data"
if SHARED.exists(): os.environ.setdefault("RNN_FASTAI_DATA", str(SHARED))
MODES = "float32", "again", "autocast", "weights"
STEPS = 200
DATA = dict(device="cpu", no_bar=True)


def lm(seed: int, arch: str = "AWD_LSTM", **args):
    "The demo's language model, on a tenth of its rows, as validation takes all of theirs."
    dls = rf.TextDataLoaders.from_df(rf.human_numbers_100()[:200], is_lm=True, text_col="text", seq_len=5, seed=seed,
                                     val_bs=DEMO["val_bs"], **DATA)
    return rf.language_model_learner(dls, arch, DEMO_CONFIG, DEMO["drop_mult"], pretrained=False, **args), 3e-3


def classifier(seed: int, arch: str = "AWD_LSTM"):
    "Opinions of 1,000 reviews, of which the first 60 words count."
    df = rf.imdb_sample()
    df["text"] = df.text.str.split().str[:60].str.join(" ")
    dls = rf.TextDataLoaders.from_df(df, text_col="text", label_col="label", valid_col="is_valid", bs=32, seed=seed, **DATA)
    return rf.text_classifier_learner(dls, arch, config=DEMO_CONFIG, pretrained=False, drop_mult=0.5), 1e-3


@cache
def treebank() -> pd.DataFrame:
    "3,000 of its sentences."
    df = rf.ud_ewt().rename(columns={"upos": "tags"})
    return df[df.split.isin(["train", "dev"])].sample(3000, random_state=0)


def tagger(seed: int, **args):
    "Parts of speech, by words and letters."
    df = treebank()
    dls = rf.TagDataLoaders.from_df(df.assign(held=df.split == "dev"), valid_col="held", tok=str.lower, min_freq=2,
                                    chars=True, bs=32, seed=seed, device="cpu")
    return rf.tagger_learner(dls, "LSTM", emb_sz=50, n_hid=64, **args), 4e-3


def pairs(seed: int, **args):
    "Turn words of letters round."
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(3, 7))) for _ in range(1000)]
    dls = rf.SeqDataLoaders.from_pairs(words, [w[::-1] for w in words], "encoder-decoder", bs=32, seed=seed, device="cpu")
    return rf.rnn_learner(dls, "GRU", 64, **args), 2e-3


LEARNERS = {
    "language model": lm, "language model, loss in chunks": partial(lm, cbs=rf.ChunkedCrossEntropy()),
    **{f"AWD_{c}": partial(lm, arch=f"AWD_{c}") for c in rf.cells if c != "LSTM"},
    "classifier": classifier, "tagger": tagger, "tagger, CRF": partial(tagger, crf=True),
    "encoder and decoder": pairs, "with attention": partial(pairs, attention=True)}


def loss_after(make, mode: str, seed: int) -> float:
    "Validation loss, worked out as the model was trained."
    set_seed(seed)
    learn, lr = make(seed)
    if mode == "again":
        for w in learn.model.parameters(): w.data.mul_(1 + 1e-6)
    if mode == "weights": learn.model.bfloat16()
    if mode == "autocast": learn.add_cb(MixedPrecision("bf16"))
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(max(round(STEPS/len(learn.dls.train)), 1), lr)
    return float(learn.recorder.values[-1][1])


def compare(name: str, seeds: int) -> dict:
    "Losses of all modes and seeds; ratios of means, and the largest distance of one seed."
    loss = {m: [loss_after(LEARNERS[name], m, s) for s in range(seeds)] for m in MODES}
    mean = {m: statistics.mean(v) for m, v in loss.items()}
    res = dict(what=name, steps=STEPS, loss=loss, mean=mean)
    for m in MODES[1:]:
        each = [a/b - 1 for a, b in zip(loss[m], loss["float32"], strict=True)]
        res[m] = dict(of_means=mean[m]/mean["float32"] - 1, largest=max(each, key=abs))
    print(f"{name}: float32 {mean['float32']:.4f}, " + ", ".join(
        f"{m} {res[m]['of_means']:+.2%} (a seed {res[m]['largest']:+.2%})" for m in MODES[1:]), flush=True)
    return res


def main():
    "Each learner's row is written as soon as it is known."
    p = argparse.ArgumentParser()
    p.add_argument("names", nargs="*")
    p.add_argument("--seeds", type=int, default=3)
    args = p.parse_args()
    for name in args.names or LEARNERS: save("half", [compare(name, args.seeds)], threads=torch.get_num_threads())


if __name__ == "__main__": main()
