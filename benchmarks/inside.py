"""What capture costs: time beside the forward pass, memory, a million tokens to the disk; results go to results/inside.json.

    python benchmarks/inside.py [cost] [memory] [million]

`cost` also times TorchLens, where it is installed (`pip install torchlens`).
"""
import importlib.util
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
from common import in_turns, save

from rnn_fastai.core import seeded
from rnn_fastai.inside.capture import capture
from rnn_fastai.inside.recording import Recording
from rnn_fastai.models.awd import get_language_model

BS, SL, VOCAB = 32, 70, 60_000


def model(vocab: int = VOCAB):
    with seeded(0): return get_language_model("AWD_LSTM", vocab).eval()


def batch(vocab: int = VOCAB, n: int = BS):
    with seeded(1): return torch.randint(2, vocab, (n, SL))


def captured(net, x, **kwargs):
    "One forward pass under capture, as a function without arguments."
    def run():
        with torch.no_grad(), capture(net, **kwargs): net(x)
    return run


def lens(net, x):
    "TorchLens: every operation's output of one forward pass."
    import torchlens

    def run():
        with torch.no_grad(): torchlens.trace(net, x)   # keeps all outputs by default
    return run


def cost_of(what: str, net, x, repeats: int, others: dict | None = None) -> dict:
    def plain():
        with torch.no_grad(): net(x)
    runs = {"forward": plain, "h": captured(net, x, parts="h"), "h c": captured(net, x),
            "h c gates": captured(net, x, parts=("states", "gates")), **(others or {})}
    times = in_turns(runs, repeats)
    med = {k: statistics.median(v) for k, v in times.items()}
    times_forward = {k: v/med["forward"] for k, v in med.items()}
    print(f"{what}: forward {med['forward']:.3f} s; " + ", ".join(f"{k} {v:.2f}x" for k, v in times_forward.items()), flush=True)
    return dict(what=what, seconds=med, times_forward=times_forward, runs=times)


def products(net, x) -> dict:
    "The bare floor of the gates: the products of inputs and states with the weights, all steps at once."
    layers = [(r.cells[0], torch.randn(x.numel(), r.input_size), torch.randn(x.numel(), r.hidden_size)) for r in net[0].rnns]

    def run():
        with torch.no_grad():
            for c, a, h in layers: torch.addmm(a @ c.weight_ih.T, h, c.weight_hh.T)
    return {"bare products": run}


def cost() -> list:
    net, x = model(), batch()
    res = [cost_of("language model, 60,000 words", net, x, 7), cost_of("encoder alone", net[0], x, 9, products(net, x))]
    if importlib.util.find_spec("torchlens") is not None:
        net, x = model(1000), batch(1000)
        row = cost_of("language model, 1,000 words", net, x, 5)
        times = in_turns({"TorchLens": lens(net, x)}, 3)["TorchLens"]   # last: it wraps torch's functions for good
        row["seconds"]["TorchLens"], row["runs"]["TorchLens"] = statistics.median(times), times
        row["times_forward"]["TorchLens"] = row["seconds"]["TorchLens"]/row["seconds"]["forward"]
        print(f"TorchLens {row['times_forward']['TorchLens']:.2f}x (no cell states, no gates)", flush=True)
        res.append(row)
    return res


def peak(parts: tuple, budget: int, n: int, folder: str | None) -> int:
    "Peak memory of this process after `n` batches, in bytes."
    net = model(1000)
    xs = [batch(1000)]*n
    how = dict(when_full="spill", folder=folder) if folder else dict(when_full="sample")
    with torch.no_grad():
        net(xs[0])
        if not parts:
            for x in xs: net(x)
        else:
            with capture(net, parts=parts, budget=budget, **how):
                for x in xs: net(x)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024


def peak_apart(*args) -> int:
    "`peak` in a process of its own."
    code = f"import inside; print(inside.peak{args!r})"
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=sys.path[0]).stdout)


def memory() -> list:
    plain, rows = peak_apart((), 0, 12, None), []
    for parts in (("states",), ("states", "gates")):
        for mb in (200, 400):
            for spill in (False, True):
                with tempfile.TemporaryDirectory() as d:
                    extra = peak_apart(parts, mb*10**6, 12, f"{d}/rec" if spill else None) - plain
                what = f"peak memory: {' '.join(parts)}, budget {mb} MB, {'to disk' if spill else 'in memory'}"
                rows.append(dict(what=what, budget_mb=mb, extra_mb=extra/1e6, share=extra/1e6/mb))
                print(f"{what}: {extra/1e6:,.0f} MB more than without", flush=True)
    return rows


def million(tokens: int = 1_000_000, budget: int = 500_000_000) -> list:
    "States of the three layers over a million tokens, as 16-bit numbers, each batch at once to the disk."
    net, before = model(10_000)[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    folder = tempfile.mkdtemp()
    n, state, start = -(-tokens//(BS*SL)), None, time.perf_counter()
    forward = 0.
    with seeded(2): stream = torch.randint(2, 10_000, (n, BS, SL))
    with torch.no_grad(), capture(net, parts="h", dtype="float16", budget=budget, when_full="spill", folder=f"{folder}/rec"):
        for x in stream: state = net(x, state)[1]
    took = time.perf_counter() - start
    start = time.perf_counter()
    with torch.no_grad():
        for x in stream[:20]: net(x)
    forward = (time.perf_counter() - start)/20*n
    rec = Recording.load(f"{folder}/rec")
    extra = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    start = time.perf_counter()
    mean = np.asarray(rec[0, "h", 5], dtype=np.float32).mean()
    row = dict(what="a million tokens, three layers, h as float16, to disk", tokens=rec.n_steps, documents=len(rec),
               disk_gb=rec.nbytes/1e9, budget_mb=budget/1e6, extra_mb=extra*1024/1e6, seconds=took, forward_seconds=forward,
               read_a_document_ms=(time.perf_counter() - start)*1e3, mean=float(mean))
    print(json.dumps(row), flush=True)
    shutil.rmtree(folder)
    return [row]


JOBS = dict(cost=cost, memory=memory, million=million)

if __name__ == "__main__":
    for job in sys.argv[1:] or JOBS: save("inside", JOBS[job]())
