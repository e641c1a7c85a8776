"""What a checkpoint every 100 steps costs a training of the default AWD_LSTM; results go to results/checkpoint.json.

    python benchmarks/checkpoint.py [pairs of windows]

A checkpoint is written every four steps, beside the training. The two steps from its start on are compared with the two
before it, in which nothing is written. Time of the clock, and of the processors, which other programs do not change: that
of the thread that writes is in it.
"""
import statistics
import sys
import tempfile
import time

import numpy as np
import torch
from common import save
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders

from rnn_fastai.data.corpus import Corpus, Vocab
from rnn_fastai.data.lm import LMDataLoader, LMDataset
from rnn_fastai.learner.checkpoint import Checkpoint, list_checkpoints, read_checkpoint
from rnn_fastai.learner.lm import language_model_learner

VOCAB, BS, SEQ_LEN, HALF = 30_000, 64, 72, 2   # HALF: steps of a window, more than the writing takes


class Clock(Callback):
    "The times at the end of each step, before a checkpoint begins: of the clock and of the processors."
    order = 10**6

    def before_train(self): self.times = [(time.perf_counter(), time.process_time())]
    def after_batch(self):
        if self.training: self.times.append((time.perf_counter(), time.process_time()))


def learner(n_steps: int):
    "The default AWD_LSTM over random ids, enough for some steps."
    rng = np.random.default_rng(0)
    vocab = Vocab([f"w{i}" for i in range(VOCAB)])
    def loader(n):
        return LMDataLoader(LMDataset(Corpus.from_ids([rng.integers(9, VOCAB, n)], vocab)), bs=BS, seq_len=SEQ_LEN)
    dls = DataLoaders(loader(n_steps*BS*SEQ_LEN + 1), loader(BS*2), device="cpu")
    return language_model_learner(dls, "AWD_LSTM", pretrained=False)


def main():
    "Windows with and without a checkpoint, in turns."
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    torch.manual_seed(0)
    learn, clock = learner(HALF*(2*pairs + 1)), Clock()
    with tempfile.TemporaryDirectory() as tmp, learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3, cbs=[clock, Checkpoint(tmp, every=2*HALF, keep=1)])
        last = list_checkpoints(tmp)[-1]
        size = sum(f.stat().st_size for f in last.iterdir())
        start = time.perf_counter()
        read_checkpoint(last)
        read = time.perf_counter() - start
    res = dict(what=f"a checkpoint of AWD_LSTM, {VOCAB} words, every 100 steps", bytes=size, read_s=read,
               threads=torch.get_num_threads())
    for name, times in zip(("clock", "processors"), zip(*clock.times[::HALF], strict=True), strict=True):
        windows = np.diff(times)
        without, with_one = windows[1::2][:pairs], windows[2::2][:pairs]   # the first window warms up
        step, cost = statistics.median(without)/HALF, statistics.median(with_one - without)
        res[name] = dict(step_s=step, checkpoint_s=cost, slower=cost/(100*step),
                         runs=dict(without=without.tolist(), with_one=with_one.tolist()))
        print(f"{name}: a step takes {step:.2f} s, a checkpoint of {size/1e6:,.0f} MB {cost:.2f} s more: every 100 steps "
              f"{100*cost/(100*step):.2f} % slower", flush=True)
    save("checkpoint", [res])


if __name__ == "__main__": main()
