"""Generation against fastai's `predict` and bare loops of `nn.LSTMCell`s; results go to results/generate.json.

    python benchmarks/generate.py [one] [long] [many]

`one`: a prompt, 50 words. `long`: 500 words; fastai's time grows with their square, so it runs once. `many`: 32 prompts.
"""
import statistics
import sys
import warnings
from functools import partial

import common
import fastai.text.all as fa
import torch
from torch import nn

import rnn_fastai.all as rf

warnings.filterwarnings("ignore")
PROMPT = "one, two,"


def learners() -> dict:
    "Default AWD_LSTMs of random weights over human numbers."
    res, df = {}, rf.human_numbers_100(100)
    for name, lib in (("fastai", fa), ("ours", rf)):
        dls = lib.TextDataLoaders.from_df(df, is_lm=True, seq_len=5, text_col="text", seed=0, bs=8)
        res[name] = lib.language_model_learner(dls, lib.AWD_LSTM, pretrained=False)
    return res


@torch.no_grad()
def bare(cells: list, n: int):
    "The products of `n` steps, as torch's own cells do them."
    state = [(torch.zeros(1, c.hidden_size),)*2 for c in cells]
    for _ in range(n):
        x = torch.ones(1, 400)
        for i, c in enumerate(cells):
            state[i] = c(x, state[i])
            x = state[i][0]


def runs(both: dict, n: int) -> dict:
    cells = [nn.LSTMCell(i, o) for i, o in ((400, 1152), (1152, 1152), (1152, 400))]
    ours = both["ours"]
    return dict(fastai=lambda: both["fastai"].predict(PROMPT, n, no_bar=True),
                ours=lambda: ours.predict(PROMPT, n, no_bar=True),
                generate=lambda: ours.generate(PROMPT, n, no_bar=True), bare=partial(bare, cells, n))


def one(both: dict) -> list:
    "Fifty words; eight bits apart, as a learner keeps one layout at a time."
    times = common.in_turns(runs(both, 50), 5)
    eight = common.in_turns(dict(int8=lambda: both["ours"].generate(PROMPT, 50, int8=True, no_bar=True)), 5)
    med = {k: statistics.median(v) for k, v in (times | eight).items()}
    print({k: f"{v*1e3:.0f} ms, {med['fastai']/v:.0f}x, {v/med['bare']:.2f} of bare" for k, v in med.items()})
    return [dict(what="one prompt, 50 words", seconds=med, fastai_over={k: med["fastai"]/v for k, v in med.items()},
                 of_bare={k: v/med["bare"] for k, v in med.items()}, runs=times | eight)]


def long(both: dict) -> list:
    fs = runs(both, 500)
    fast = {k: statistics.median(v) for k, v in common.in_turns({k: fs[k] for k in ("ours", "generate", "bare")}, 3).items()}
    med = dict(fast, fastai=common.seconds(fs["fastai"]))
    print({k: f"{v:.2f} s, {med['fastai']/v:.0f}x" for k, v in med.items()})
    return [dict(what="one prompt, 500 words", seconds=med, fastai_over={k: med["fastai"]/v for k, v in med.items()})]


def many(both: dict) -> list:
    "Words a second for 32 prompts, against one prompt after another."
    prompts = [" ".join(["one", "two", "three", "four", "five"][:1+i % 5]) for i in range(32)]
    fs = dict(fastai=lambda: both["fastai"].predict(PROMPT, 50, no_bar=True),
              generate=lambda: both["ours"].generate(prompts, 50, no_bar=True))
    times = common.in_turns(fs, 3)
    times |= common.in_turns(dict(int8=lambda: both["ours"].generate(prompts, 50, int8=True, no_bar=True)), 3)
    rate = {k: (50 if k == "fastai" else 32*50)/statistics.median(v) for k, v in times.items()}
    print({k: f"{v:,.0f} words/s, {v/rate['fastai']:.0f}x" for k, v in rate.items()})
    return [dict(what="32 prompts, 50 words", words_per_second=rate, of_fastai={k: v/rate["fastai"] for k, v in rate.items()},
                 runs=times)]


def main():
    both = learners()
    for name in sys.argv[1:] or ["one", "long", "many"]:
        common.save("generate", dict(one=one, long=long, many=many)[name](both))


if __name__ == "__main__": main()
