"fastai and rnn_fastai side by side, in one process, in turns. Writes benchmarks/results/fastai.json."
import argparse
import random
import warnings
from functools import partial

import common
import numpy as np
import torch
from fastai.data.core import DataLoaders
from fastai.losses import CrossEntropyLossFlat
from fastai.text import all as fa
from torch import nn
from torch.nn import functional as F

import rnn_fastai.all as rf
from rnn_fastai.recipes import DEMO, DEMO_CONFIG

warnings.filterwarnings("ignore")


def silent(learn):
    "Fit one epoch without bar and table."
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)


def take(dl, n: int):
    "The first `n` batches of a loader."
    for i, _ in enumerate(dl):
        if i + 1 == n: return


def corpus_docs(n_docs: int, rng) -> list:
    "Documents of 500 random ids on average."
    return [torch.from_numpy(rng.integers(0, 30_000, n)) for n in rng.integers(1, 1000, n_docs)]


def bench_loader(seq_len: int, n_theirs: int) -> dict:
    "Tokens a second out of the shuffled language model loader; beside it, slices of one flat array."
    docs = corpus_docs(4000, np.random.default_rng(0))
    flat = torch.cat(docs)
    ours = rf.LMDataLoader(docs, bs=64, seq_len=seq_len, shuffle=True)
    theirs = fa.LMDataLoader(fa.L(map(fa.TensorText, docs)), bs=64, seq_len=seq_len, shuffle=True)
    n_ours = min(len(ours), 3000)
    rows = flat[:64*(len(flat)//64)].view(64, -1)

    def bare():
        for i in range(0, n_ours*seq_len, seq_len): [rows[:, j:j+seq_len].contiguous() for j in (i, i+1)]
    fs = dict(fastai=partial(take, theirs, n_theirs), ours=partial(take, ours, n_ours), bare=bare)
    times = common.in_turns(fs, 5)
    n = 64*seq_len
    per = dict(fastai=n*n_theirs, ours=n*n_ours, bare=n*n_ours)
    return common.row(f"LM loader, 64 x {seq_len}", times, "tokens/s", per, "bare")


def bench_corpus_size() -> dict:
    "Time a batch for a corpus and for one a hundred times larger, both ours, after the shuffle that opens an epoch."
    def loader(n):
        ids = np.random.default_rng(0).integers(0, 30_000, n, dtype=np.uint16)
        c = rf.Corpus(ids, np.arange(0, n+1, 500), rf.Vocab(["x"]))
        return rf.LMDataLoader(rf.LMDataset(c), bs=64, seq_len=5, shuffle=True)
    its = {k: loader(n) for k, n in (("small", 1_000_000), ("large", 100_000_000))}
    live = {k: iter(dl) for k, dl in its.items()}

    def step(k):
        for _ in range(500):
            try: next(live[k])
            except StopIteration: live[k] = iter(its[k])
    times = common.in_turns({k: partial(step, k) for k in its}, 9)
    med = {k: float(np.median(v))/500*1e6 for k, v in times.items()}
    print(f"a batch of a corpus of 1 and of 100 million tokens: {med['small']:.1f} and {med['large']:.1f} microseconds")
    what = "time a batch, corpus 100 times larger"
    return dict(what=what, unit="microseconds", **med, ratio=med["large"]/med["small"])


def bench_build(kind: str, letters: str) -> dict:
    "Loaders from a frame of 50,000 rows of ten characters, other rows at every call."
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=4)) for _ in range(2000)]

    def build(cls):
        if letters: texts = ["".join(rng.choices(letters, k=10)) for _ in range(50_000)]
        else: texts = [f"{rng.choice(words)} {rng.choice(words)}." for _ in range(50_000)]
        cls.from_df(fa.pd.DataFrame({"text": texts}), is_lm=True, text_col="text", seed=0)
    fs = dict(fastai=partial(build, fa.TextDataLoaders), ours=partial(build, rf.TextDataLoaders))
    return common.row(f"loaders from 50,000 rows of ten characters, {kind}", common.in_turns(fs, 5))


def learners(batches: list, vocab_sz: int) -> dict:
    "A learner of each kind over the same batches, with the default config."
    dls = DataLoaders(batches, [])
    kw = dict(loss_func=CrossEntropyLossFlat())
    theirs = fa.LMLearner(dls, fa.get_language_model(fa.AWD_LSTM, vocab_sz), splitter=fa.awd_lstm_lm_split, **kw)
    ours = rf.LMLearner(dls, rf.get_language_model("AWD_LSTM", vocab_sz), splitter=rf.awd_lstm_lm_split, **kw)
    return dict(fastai=theirs, ours=ours)


class Plain(nn.Module):
    "Plain LSTM layers of the default sizes and a decoder: the kernels that a step cannot do without."
    def __init__(self, vocab_sz: int):
        super().__init__()
        self.emb, self.dec = nn.Embedding(vocab_sz, 400), nn.Linear(400, vocab_sz)
        self.rnns = nn.ModuleList(nn.LSTM(i, o, batch_first=True) for i, o in ((400, 1152), (1152, 1152), (1152, 400)))

    def forward(self, x):
        x = self.emb(x)
        for rnn in self.rnns: x = rnn(x)[0]
        return self.dec(x)


def bench_step(seq_len: int, n: int, vocab_sz: int = 40) -> dict:
    "Training steps of the default config through the `Learner`, with AR and TAR."
    torch.manual_seed(0)
    batches = [tuple(torch.randint(9, vocab_sz, (64, seq_len)) for _ in range(2)) for _ in range(n)]
    both, plain = learners(batches, vocab_sz), Plain(vocab_sz)
    opt = torch.optim.AdamW(plain.parameters(), lr=1e-3, fused=True)

    def bare():
        for x, y in batches:
            F.cross_entropy(plain(x).flatten(0, 1), y.flatten()).backward()
            opt.step()
            opt.zero_grad()
    fs = {k: partial(silent, learn) for k, learn in both.items()}
    times = common.in_turns({**fs, "bare": bare}, 5)
    times = {k: [t/n for t in v] for k, v in times.items()}
    return common.row(f"training step, default AWD_LSTM, 64 x {seq_len}", times, floor="bare")


def bench_epoch(repeats: int) -> dict:
    "A whole epoch, training and validation, of the demo's own frame and config."
    df, both = rf.human_numbers_100(), {}
    for k, lib, arch in (("fastai", fa, fa.AWD_LSTM), ("ours", rf, rf.AWD_LSTM)):
        dls = lib.TextDataLoaders.from_df(df, is_lm=True, seq_len=5, text_col="text", seed=0)
        config = {**rf.awd_lstm_lm_config, **DEMO_CONFIG}
        both[k] = lib.language_model_learner(dls, arch, config=config, drop_mult=DEMO["drop_mult"], pretrained=False,
                                             metrics=fa.accuracy)
    times = common.in_turns({k: partial(silent, v) for k, v in both.items()}, repeats, warmup=0)
    return common.row("an epoch of the demo", times)


def main():
    "Run all, or those named."
    jobs = dict(loader5=lambda: [bench_loader(5, 60)], loader72=lambda: [bench_loader(72, 40)],
                size=lambda: [bench_corpus_size()],
                build=lambda: [bench_build("no word twice", "abcdefgh "), bench_build("2,000 words", "")],
                step5=lambda: [bench_step(5, 4)],
                step72=lambda: [bench_step(72, 1)], epoch=lambda: [bench_epoch(2)])
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("only", nargs="*", help=f"which of {', '.join(jobs)}; all by default")
    only = p.parse_args().only
    rows = [r for name in only or jobs for r in jobs[name]()]
    common.save("fastai", rows, threads=torch.get_num_threads())


if __name__ == "__main__": main()
