"""The loss over a large vocabulary, by chunks and plain: peak memory and time; and the time of each head and loss of a
language model; results go to results/loss.json.

    python benchmarks/loss.py [heads]
"""
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from common import in_turns, save
from torch import nn
from torch.nn import functional as F

from rnn_fastai.models.heads import lm_heads
from rnn_fastai.models.losses import linear_cross_entropy

VOCAB, ROWS, HID = 60_008, 64*72, 400


def tensors():
    "States, weight, bias and targets."
    torch.manual_seed(0)
    x, w = torch.randn(ROWS, HID, requires_grad=True), torch.empty(VOCAB, HID).uniform_(-0.1, 0.1).requires_grad_()
    return x, w, torch.zeros(VOCAB, requires_grad=True), torch.randint(VOCAB, (ROWS,))


def step(kind: str, x, w, b, y):
    "Loss and gradients."
    for t in (x, w, b): t.grad = None
    loss = F.cross_entropy(F.linear(x, w, b), y) if kind == "plain" else linear_cross_entropy(x, w, b, y)
    loss.backward()
    return loss.item()


def peak() -> int:
    "Most memory that this process had, in bytes."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024


def heads(vocab: int = 33_280, rows: int = 16*70, hid: int = 400):
    "Seconds of one core for loss and gradients of each head, its weight shared with the embedding, in bfloat16 products."
    torch.set_num_threads(1)
    torch.manual_seed(0)
    emb, x = nn.Embedding(vocab, hid), torch.randn(1, rows, hid, requires_grad=True)
    share = 1/torch.arange(10., vocab + 10)   # words as common as in a language, more or less
    share /= share.sum()
    y = torch.multinomial(share, rows, replacement=True)[None]
    made = dict(linear=lm_heads.get("linear")(vocab, hid, 0., emb), adaptive=lm_heads.get("adaptive")(vocab, hid, 0., emb),
                mixture=lm_heads.get("mixture")(vocab, hid, 0., emb, n_softmaxes=4))
    losses = dict(full=("linear", lambda p: F.cross_entropy(p.whole().flatten(0, 1), y.flatten())),
                  chunked=("linear", lambda p: p.loss(y)), sampled=("linear", lambda p: p.sampled_loss(y, share, 2048)),
                  adaptive=("adaptive", lambda p: p.loss(y)), mixture_of_4=("mixture", lambda p: p.loss(y)),
                  mixture_of_4_sampled=("mixture", lambda p: p.sampled_loss(y, share, 2048)))

    def run(head, loss):
        x.grad = emb.weight.grad = None
        made[head].zero_grad()
        with torch.autocast("cpu", torch.bfloat16): total = loss(made[head].lazy_logits(x))
        total.backward()
    times = in_turns({k: lambda v=v: run(*v) for k, v in losses.items()}, repeats=3, clock=time.process_time)
    med = {k: statistics.median(v) for k, v in times.items()}
    for k, v in med.items(): print(f"{k}: {v:.3f} s of one core, {med['full']/v:.1f} times as fast as all logits", flush=True)
    save("loss", [dict(what=f"heads, {vocab} words, {rows} tokens, bfloat16", seconds=med, runs=times, threads=1)])


def main():
    "Memory in a process for each, time in turns in one."
    if sys.argv[1:] == ["heads"]: return heads()
    if len(sys.argv) > 1:
        args = tensors()
        torch.mm(torch.ones(512, 512), torch.ones(512, 512))
        before = peak()
        loss = step(sys.argv[1], *args)
        print(json.dumps(dict(bytes=peak() - before, loss=loss)))
        return
    run = {k: json.loads(subprocess.check_output([sys.executable, __file__, k])) for k in ("plain", "chunked")}
    args = tensors()
    times = in_turns({k: lambda k=k: step(k, *args) for k in run}, repeats=5)
    med = {k: statistics.median(v) for k, v in times.items()}
    res = dict(what=f"loss and gradients, {VOCAB} words, {ROWS} tokens", seconds=med, runs=times, peak=run,
               memory=run["chunked"]["bytes"]/run["plain"]["bytes"], time=med["chunked"]/med["plain"],
               threads=torch.get_num_threads())
    print(f"chunked: {res['memory']:.3f} of the plain loss's memory, {res['time']:.3f} of its time {run} {med}")
    save("loss", [res])


if __name__ == "__main__": main()
