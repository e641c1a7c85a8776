"""Generation against fastai's `predict` and bare loops of `nn.LSTMCell`s; results go to results/generate.json.

    python benchmarks/generate.py [one] [long] [many] [memory] [quality]

`one`: a prompt, 50 words. `long`: 500 words; fastai's time grows with their square, so it runs once. `many`: 32 prompts.
`memory`: peak of short and long texts. `quality`: what eight bits cost a model trained on WikiText-2 (`wikitext.py`).
"""
import resource
import statistics
import sys
import warnings
from functools import partial

import common
import fastai.text.all as fa
import torch
from torch import nn
from torch.nn import functional as F

import rnn_fastai.all as rf
from rnn_fastai.models.packed import thin_linear

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


@torch.no_grad()
def products(weights: list, n: int):
    "The same products alone, as this processor is fastest: what reading the weights from memory takes."
    xs = {w.size(1): torch.ones(1, w.size(1)) for w in weights}
    for _ in range(n):
        for w in weights: thin_linear(xs[w.size(1)], w)


def runs(both: dict, n: int) -> dict:
    "Ways to write `n` words after one prompt."
    cells, ours = [nn.LSTMCell(i, o) for i, o in ((400, 1152), (1152, 1152), (1152, 400))], both["ours"]
    weights = [w for c in cells for w in (c.weight_ih, c.weight_hh)]
    return dict(fastai=lambda: both["fastai"].predict(PROMPT, n, no_bar=True),
                ours=lambda: ours.predict(PROMPT, n, no_bar=True),
                seeded=lambda: ours.generate(PROMPT, n, seed=1, no_bar=True),
                int8=lambda: ours.generate(PROMPT, n, int8=True, no_bar=True),
                bare=partial(bare, cells, n), products=partial(products, weights, n))


def row(what: str, times: dict) -> dict:
    "Medians; how many times faster than fastai; how many times as long as bare cells."
    med = {k: statistics.median(v) for k, v in times.items()}
    res = dict(what=what, seconds=med, fastai_over={k: med["fastai"]/v for k, v in med.items()},
               of_bare={k: v/med["bare"] for k, v in med.items()}, runs=times)
    print(what, {k: f"{v*1e3:,.0f} ms, {med['fastai']/v:.1f}x, {v/med['bare']:.2f} of bare" for k, v in med.items()}, flush=True)
    return res


def one(both: dict) -> list:
    return [row("one prompt, 50 words", common.in_turns(runs(both, 50), 9))]


def long(both: dict) -> list:
    fs = runs(both, 500)
    slow = fs.pop("fastai")
    return [row("one prompt, 500 words", common.in_turns(fs, 5) | dict(fastai=[common.seconds(slow)]))]


def many(both: dict) -> list:
    "Words a second for 32 prompts together, against fastai's one after another (which one prompt stands for)."
    prompts = [" ".join(["one", "two", "three", "four", "five"][:1+i % 5]) for i in range(32)]
    ours = both["ours"]
    fs = dict(fastai=lambda: both["fastai"].predict(PROMPT, 50, no_bar=True),
              generate=lambda: ours.generate(prompts, 50, no_bar=True),
              seeded=lambda: ours.generate(prompts, 50, seed=1, no_bar=True),
              int8=lambda: ours.generate(prompts, 50, int8=True, no_bar=True))
    times = common.in_turns(fs, 5)
    rate = {k: (50 if k == "fastai" else 32*50)/statistics.median(v) for k, v in times.items()}
    print({k: f"{v:,.0f} words/s, {v/rate['fastai']:.0f}x" for k, v in rate.items()}, flush=True)
    return [dict(what="32 prompts, 50 words", words_per_second=rate, of_fastai={k: v/rate["fastai"] for k, v in rate.items()},
                 runs=times)]


def peak() -> float:
    "Most memory that this process has held so far, in MB."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024


def memory(both: dict) -> list:
    "Growth of the peak when a text is 100 times as long."
    both["ours"].predict(PROMPT, 50, no_bar=True)
    short = peak()
    both["ours"].predict(PROMPT, 5000, no_bar=True)
    res = dict(what="memory", peak_mb_50_words=short, peak_mb_5000_words=peak())
    print(res, flush=True)
    return [res]


@torch.no_grad()
def quality(both: dict) -> list:
    "Perplexity on validation text of WikiText-2, in 32 bits and in eight."
    import wikitext
    learn = wikitext.learner().load("small")
    ids = torch.from_numpy(learn.dls.valid.dataset.corpus.ids[:64*201].astype("int64")).view(64, -1)
    res = {}
    for name, int8 in (("float32", False), ("int8", True)):
        model, state, losses = rf.prepack(learn.model, int8), None, []
        for t in range(ids.size(1) - 1):   # a step at a time, as generation goes
            out = model(ids[:, t:t+1], state)
            state = out.state
            losses.append(F.cross_entropy(out.logits[:, 0], ids[:, t+1]))
        res[name] = torch.stack(losses).mean().exp().item()
    print(res, flush=True)
    return [dict(what="quality of eight bits", perplexity=res, tokens=ids.numel(), worse=res["int8"]/res["float32"] - 1)]


def main():
    jobs = dict(one=one, long=long, many=many, memory=memory, quality=quality)
    both = learners()
    for name in sys.argv[1:] or jobs: common.save("generate", jobs[name](both))


if __name__ == "__main__": main()
