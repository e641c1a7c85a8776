"""fastai and this package on a GPU, in turns; each row goes to results/gpu.json as soon as it is known.

    python benchmarks/gpu.py [--device cuda] [--seconds 180] [--small] [ceilings] [step] [epoch] [write] [graphs]
                             [classifier] [capture] [cells]
    python benchmarks/gpu.py [--device cuda] [--seconds 180] [--small] quality
    python benchmarks/gpu.py [--device cuda] [--seconds 180] [--small] published

Parts that are still to do when the seconds are over are left out, and the file says so. `--small` shrinks every size,
and writes no figures: it shows that the script runs, on a CPU too. `quality`, a training of 20 epochs, is run where it is asked for;
it is cut when the seconds are over, and the next call goes on with it. So is `published`, the recipe of AWD-LSTM's
authors in full.
"""
import argparse
import contextlib
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import common
import numpy as np
import torch
import wikitext
from fastai.data.core import DataLoaders
from fastai.losses import CrossEntropyLossFlat
from fastai.text import all as fa
from run import Plain
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import rnn_fastai.all as rf
from rnn_fastai.generate.decode import Continuation
from rnn_fastai.models.documents import chunk_padded
from rnn_fastai.models.recurrent import Recurrent

warnings.filterwarnings("ignore")
TYPES = {"float32": None, "bfloat16": torch.bfloat16}
ROOT = Path(__file__).parents[1]


class Bench:
    "Sizes, the device, and the rows so far."
    def __init__(self, device: str, small: bool, until: float):
        self.device, self.small, self.until = torch.device(device), small, until
        self.rows, self.left_out = [], []   # rows, and what could not be measured

    def keep(self, parts: list):
        "Begin with the rows that were measured on this card before, where only some parts are asked for."
        if parts and self.device.type == "cuda" and common.about("gpu").get("card") == torch.cuda.get_device_name():
            held = common.about("gpu")
            self.rows, self.left_out = held["rows"], [o for o in held["left_out"] if o.split(":")[0] not in parts]

    def size(self, usual: int, small: int) -> int: return small if self.small else usual

    def wait(self):
        if self.device.type == "cuda": torch.cuda.synchronize()

    def late(self) -> bool: return time.monotonic() > self.until

    def write(self):
        if self.small or self.device.type != "cuda": return
        about = dict(card=torch.cuda.get_device_name(), cuda=torch.version.cuda, left_out=self.left_out)
        common.write("gpu", self.rows, **about)

    def add(self, what: str, unit: str = "", **values):
        "Note a row, in place of an older one, and show it."
        self.rows = [r for r in self.rows if r["what"] != what] + [dict(what=what, unit=unit, **values)]
        print(what, *(f"{k} {v:,.4g}" for k, v in values.items() if isinstance(v, int | float)), unit, flush=True)
        self.write()

    def turns(self, fs: dict, repeats: int = 5, warmup: int = 1) -> dict:
        "Medians of the seconds of each function, the device's work included."
        def timed(f):
            f()
            self.wait()
        times = common.in_turns({k: partial(timed, f) for k, f in fs.items()}, repeats, warmup)
        return {k: statistics.median(v) for k, v in times.items()}

    def busy(self, f) -> float:
        "Seconds that the device works in a call; the rest of the call it waits for the processor."
        if self.device.type != "cuda": return float("nan")
        with profile(activities=[ProfilerActivity.CUDA]) as p: f()
        return sum(e.self_device_time_total for e in p.key_averages())/1e6


def silent(learn, cbs=()):
    "Fit one epoch without bar and table."
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3, cbs=list(cbs))


def without_graphs(f: Callable, *args):
    "Call with ordinary kernels and steps."
    os.environ["RNN_FASTAI_CUDA_GRAPHS"] = "0"
    try: return f(*args)
    finally: del os.environ["RNN_FASTAI_CUDA_GRAPHS"]


def mixed(dtype) -> list: return [] if dtype is None else [fa.MixedPrecision("bf16")]


# ---- What the card can do

def ceilings(b: Bench):
    "A large product, and a copy."
    n = b.size(8192, 256)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        x, y = (torch.randn(n, n, device=b.device, dtype=dtype) for _ in range(2))
        t = b.turns({"mm": lambda x=x, y=y: [x@y for _ in range(5)]})["mm"]/5
        b.add(f"product {n} x {n} x {n}, {name}", "TFLOP/s", value=2*n**3/t/1e12)
    x = torch.randn(b.size(2**29, 2**16), device=b.device)
    t = b.turns({"copy": x.clone})["copy"]
    b.add("copy, bytes read and written", "TB/s", value=2*4*x.numel()/t/1e12)


# ---- Language model

def bare_loop(b: Bench, model: nn.Module, batches: list, dtype):
    "Forward, loss, backward and a fused step: what no training can do without."
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=b.device.type == "cuda")

    def run():
        for x, y in batches:
            with torch.autocast(b.device.type, dtype) if dtype else contextlib.nullcontext():
                loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
            loss.backward()
            opt.step()
            opt.zero_grad()
    return run


def step(b: Bench):
    "Steps of the default AWD_LSTM through `Learner.fit`, with AR and TAR, batch 64, 72 steps."
    vocab_sz, n, sl = b.size(30_000, 100), b.size(40, 2), b.size(72, 5)
    for name, dtype in TYPES.items():
        torch.manual_seed(0)
        batches = [tuple(torch.randint(9, vocab_sz, (64, sl), device=b.device) for _ in range(2)) for _ in range(n)]
        dls, kw, cbs = DataLoaders(batches, [], device=b.device), dict(loss_func=CrossEntropyLossFlat()), mixed(dtype)
        theirs = fa.LMLearner(dls, fa.get_language_model(fa.AWD_LSTM, vocab_sz), splitter=fa.awd_lstm_lm_split, **kw)
        ours = rf.LMLearner(dls, rf.get_language_model("AWD_LSTM", vocab_sz), splitter=rf.awd_lstm_lm_split, **kw)
        fs = dict(fastai=partial(silent, theirs, cbs), ours=partial(silent, ours, cbs),
                  ordinary=partial(without_graphs, silent, ours, cbs),
                  chunked=partial(silent, ours, [*cbs, rf.ChunkedCrossEntropy(512)]),
                  bare=bare_loop(b, Plain(vocab_sz).to(b.device), batches, dtype))
        med = {k: v/n*1e3 for k, v in b.turns(fs, 3).items()}
        b.add(f"LM step 64 x {sl}, {name}", "ms", **med, busy=b.busy(fs["ours"])/n*1e3, ratio=med["fastai"]/med["ours"],
              of_bare=med["bare"]/med["ours"], tokens_a_second=64*sl/med["ours"]*1e3)


def epoch(b: Bench):
    "A whole epoch of random ids with the loader, as tokens a second, and seconds for 30 million tokens."
    n, vocab_sz = b.size(2_000_000, 20_000), b.size(30_000, 100)
    rng = np.random.default_rng(0)
    ids = (rng.pareto(1., n)*3).astype(np.int64).clip(0, vocab_sz - 10).astype(np.uint16) + 9
    corpus = rf.Corpus(ids, np.arange(0, n+1, 250), rf.Vocab([f"w{i}" for i in range(vocab_sz)]))
    for bs in (64, 256):
        how = dict(bs=bs, seq_len=72, shuffle=True, device=b.device)
        loaders = [rf.LMDataLoader(rf.LMDataset(corpus), **how) for _ in range(2)]
        learn = rf.LMLearner(DataLoaders(loaders[0], []), rf.get_language_model("AWD_LSTM", vocab_sz).to(b.device),
                             loss_func=CrossEntropyLossFlat(), splitter=rf.awd_lstm_lm_split)
        med = b.turns({"fit": lambda learn=learn: silent(learn, mixed(torch.bfloat16)),
                       "loader": lambda dl=loaders[1]: [None for _ in dl]}, 1)
        b.add(f"epoch with its loader, bs {bs}, bfloat16", "tokens/s", **{k: n/v for k, v in med.items()},
              seconds_for_30_million=3e7/n*med["fit"])


# ---- Documents

def classifier(b: Bench):
    "Steps of a classifier over documents of 100 to 400 tokens, batch 64, the whole encoder trained."
    vocab_sz, n, long = b.size(30_000, 100), b.size(6, 2), b.size(400, 20)
    torch.manual_seed(0)
    batches = []
    for _ in range(n):
        x, lengths = torch.randint(9, vocab_sz, (64, long)), torch.randint(long//4, long+1, (64,))
        lengths = lengths.sort(descending=True)[0]
        x[torch.arange(long) >= lengths[:, None]] = 1
        x = chunk_padded(x, 1, 72)   # as fastai's loaders give it
        batches.append((x.to(b.device), torch.randint(2, (64,), device=b.device)))
    dls = DataLoaders(batches, [], device=b.device)
    for name, dtype in TYPES.items():
        fs = {}
        for k, lib, arch in (("fastai", fa, fa.AWD_LSTM), ("ours", rf, "AWD_LSTM")):
            model = lib.get_text_classifier(arch, vocab_sz, 2, seq_len=72, max_len=72*20)
            learn = lib.TextLearner(dls, model, loss_func=CrossEntropyLossFlat())
            fs[k] = lambda learn=learn, dtype=dtype: silent(learn, mixed(dtype))
        med = {k: v/n*1e3 for k, v in b.turns(fs, 3).items()}
        b.add(f"classifier step, 64 documents to {long} tokens, {name}", "ms", **med, ratio=med["fastai"]/med["ours"])


# ---- Texts

def write(b: Bench):
    "Words a second after 1 and 128 prompts; fastai writes one at a time."
    res, df = {}, rf.human_numbers_100(100)
    for name, lib in (("fastai", fa), ("ours", rf)):
        dls = lib.TextDataLoaders.from_df(df, is_lm=True, seq_len=5, text_col="text", seed=0, bs=8,
                                          tok_tfm=fa.BaseTokenizer(), device=b.device)
        res[name] = lib.language_model_learner(dls, lib.AWD_LSTM, pretrained=False)
        res[name].model.to(b.device)
    n, ours = b.size(50, 5), res["ours"]
    fs = dict(fastai=lambda: res["fastai"].predict("one two", n, no_bar=True),
              ours=lambda: ours.predict("one two", n, no_bar=True),
              seeded=lambda: ours.generate("one two", n, seed=1, no_bar=True))
    med = {k: n/v for k, v in b.turns(fs, 3).items()}
    b.add(f"one prompt, {n} words", "words/s", **med, ratio=med["ours"]/med["fastai"])
    one = med["fastai"]
    prompts = [" ".join(["one", "two", "three", "four", "five"][:1 + i % 5]) for i in range(128)]
    fs = dict(generate=lambda: ours.generate(prompts, n, no_bar=True),
              seeded=lambda: ours.generate(prompts, n, seed=1, no_bar=True),
              greedy=lambda: ours.generate(prompts, n, temperature=0, no_bar=True),
              filtered=lambda: ours.generate(prompts, n, seed=1, top_p=0.9, no_bar=True))
    med = {k: 128*n/v for k, v in b.turns(fs, 3).items()}
    b.add(f"128 prompts, {n} words", "words/s", **med, fastai_one=one, ratio=med["generate"]/one)


def graphs(b: Bench):
    "Tokens a second of the default AWD_LSTM after 1 and 128 prompts, in steps that are CUDA graphs and in ordinary ones."
    vocab_sz, n = b.size(30_000, 100), b.size(500, 40)
    model = rf.get_language_model("AWD_LSTM", vocab_sz).to(b.device).eval()

    def write(bs):
        prompts = [torch.tensor([9, 10], device=b.device)]*bs
        texts = Continuation(model, prompts, rf.TokenSampler(rf.Sampling(), prompts, vocab_sz, n, 1, list(range(bs))))
        for _ in range(n): texts.step()
    for bs in (1, b.size(128, 4)):
        med = b.turns({"graphs": partial(write, bs), "ordinary": partial(without_graphs, write, bs)}, 3)
        b.add(f"steps as CUDA graphs, {bs} prompts, {n} tokens", "tokens/s", **{k: bs*n/v for k, v in med.items()},
              ratio=med["ordinary"]/med["graphs"])


# ---- Layers

def cells(b: Bench):
    "Forward and backward of one layer, batch 32, 128 to 256 features, against cuDNN's LSTM."
    for sl in (64, 512, 2048) if not b.small else (8,):
        x, fs = torch.randn(sl, 32, 128, device=b.device), {}
        layers = {"nn.LSTM": nn.LSTM(128, 256), **{c: Recurrent(c, 128, 256) for c in rf.cells}}
        for k, layer in layers.items():
            if sl > 512 and k != "nn.LSTM" and layer.plan(sl, b.device)[0] == "loop": continue   # seconds each
            layer.to(b.device)

            def run(layer=layer, x=x):
                layer.zero_grad()
                layer(x)[0].sum().backward()
            fs[k] = run
        med = {k: v*1e3 for k, v in b.turns(fs, 3).items()}
        b.add(f"layers, {sl} steps", "ms", **med)
        if b.late(): return


def capture(b: Bench):
    "A training step with and without a recording of all states."
    layer, x = Recurrent("LSTM", 128, 256, num_layers=2).to(b.device), torch.randn(b.size(70, 5), 32, 128).to(b.device)

    def run():
        layer.zero_grad()
        layer(x)[0].sum().backward()

    def watched(parts):
        with rf.capture(layer, parts=parts): run()
    med = b.turns(dict(plain=run, states=lambda: watched("states"), all=lambda: watched("all")))
    b.add("capture of two layers, 70 steps", "ms", **{k: v*1e3 for k, v in med.items()})


# ---- A training

class OutOfTime(Exception): "The seconds are over."


class Watch(fa.Callback):
    "Notes the perplexity after each epoch, and cuts the training when the seconds are over."
    order = fa.Recorder.order + 2   # after weights were averaged
    def __init__(self, b: Bench, what: str): self.b, self.what, self.start = b, what, time.monotonic()
    def after_batch(self):
        if self.training and self.b.late(): raise OutOfTime("The seconds are over; the next call goes on with the training.")
    def after_epoch(self):
        train, valid = map(math.exp, self.recorder.values[-1][:2])
        done = self.epoch + 1
        self.b.add(f"{self.what} on WikiText-2, {self.n_epoch} epochs, bfloat16", "perplexity", value=valid, train=train,
                   epochs=done, steps=done*len(self.learn.dls.train), seconds_of_this_run=time.monotonic() - self.start)


def packed(b: Bench, part: str) -> list | None:
    "The three corpora of WikiText-2; none where the file is missing, which is noted."
    file = ROOT/"wheels"/"wikitext-2.npz"
    if file.exists():
        return [rf.Corpus(c.ids[:n], np.array([0, len(c.ids[:n])]), c.vocab)
                for c, n in zip(wikitext.unpack(file), (b.size(None, 9_000), *[b.size(None, 4_000)]*2), strict=True)]
    b.left_out.append(f"{part}: there is no {file.name} in wheels/; `make gpu-wheels` puts it there")
    print(b.left_out[-1])


def train(b: Bench, what: str, learn, test: rf.Corpus, fit):
    "A training through `Checkpoint`, from where the last call was cut, and the perplexity of the test text at its end."
    try:
        with learn.no_bar(), learn.no_logging(): fit([Watch(b, what)])
    except OutOfTime as e: return print(e.args[0].splitlines()[-1].strip())
    dl = rf.LMDataLoader(rf.LMDataset(test), bs=learn.dls.valid.bs, seq_len=70, device=b.device)
    with learn.no_bar(), learn.no_logging(): loss = learn.validate(dl=dl)[0]
    b.add(f"{what}, the test text", "perplexity", value=math.exp(loss))


SMALL = dict(emb_sz=16, n_hid=16)


def quality(b: Bench):
    "One cycle of 20 epochs on WikiText-2."
    if (texts := packed(b, "quality")) is None: return
    dls = wikitext.loaders(*texts[:2], b.size(104, 8), device=b.device)
    torch.manual_seed(0)
    learn = rf.language_model_learner(dls, rf.AWD_LSTM, SMALL if b.small else None, pretrained=False, wd=0.1).to_bf16()

    def fit(cbs):
        def cycle(cbs): learn.fit_one_cycle(20, 5e-3, moms=(0.8, 0.7, 0.8), div=10, cbs=cbs)
        wikitext.go_on(learn, ROOT/"out"/"gpu"/("small" if b.small else "wikitext-2"), cycle, cbs)
    train(b, "default AWD_LSTM", learn, texts[2], fit)


def published(b: Bench):
    "The recipe of AWD-LSTM's authors: NT-ASGD, 750 epochs."
    if (texts := packed(b, "published")) is None: return
    dls = wikitext.loaders(*texts[:2], b.size(80, 8), device=b.device)
    learn = wikitext.published(dls, wikitext.AWD_CONFIG | (SMALL if b.small else {})).to_bf16()
    folder = ROOT/"out"/"gpu"/("published-small" if b.small else "published")
    train(b, "published AWD_LSTM", learn, texts[2],
          lambda cbs: wikitext.fit_published(learn, folder, cbs, b.size(750, 2)))


PARTS = dict(ceilings=ceilings, step=step, epoch=epoch, write=write, graphs=graphs, classifier=classifier, capture=capture, cells=cells)
ASKED = dict(quality=quality, published=published)   # which all parts together leave out


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS | ASKED)}; all but the last two by default")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--seconds", type=float, default=180.)
    p.add_argument("--small", action="store_true")
    args = p.parse_args()
    if args.device == "cpu" and not args.small: sys.exit("There is no GPU here; --small shows on a CPU that the script runs.")
    b, failed = Bench(args.device, args.small, time.monotonic() + args.seconds), []
    b.keep(args.parts)
    for name in args.parts or PARTS:
        if b.late():
            b.left_out.append(name)
            continue
        try: (PARTS | ASKED)[name](b)
        except Exception as e:   # the next part is measured all the same
            failed.append(name)
            b.left_out.append(f"{name}: {type(e).__name__}: {e}")
            if b.small: raise
    b.write()
    sys.exit(f"Not measured: {b.left_out}" if failed else 0)


if __name__ == "__main__": main()
