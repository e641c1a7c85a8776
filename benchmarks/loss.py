"""The loss over a large vocabulary, by chunks and plain: peak memory and time; results go to results/loss.json.

    python benchmarks/loss.py
"""
import json
import resource
import statistics
import subprocess
import sys

import torch
from common import in_turns, save
from torch.nn import functional as F

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


def main():
    "Memory in a process for each, time in turns in one."
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
