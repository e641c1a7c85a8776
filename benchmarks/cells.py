"""Cells and layers against torch's, in turns in one process; results go to results/cells.json.

    python benchmarks/cells.py [layers] [long] [grid] [memory] [compile]
"""
import json
import statistics
import subprocess
import sys
import time

import torch
from common import RESULTS, in_turns, read, write
from torch import nn
from torch.nn import functional as F

from rnn_fastai.core import flush_denormals
from rnn_fastai.models.cells import Cell, LSTMCell, cells
from rnn_fastai.models.ensemble import ManyNets
from rnn_fastai.models.recurrent import Recurrent

BS, N_IN, N_HID = 32, 128, 256


class HandLSTM(Cell):
    "An LSTM as a user would write it: no kernel."
    gates, states = 4, ("h", "c")

    def step(self, gx, state):
        return LSTMCell.update(self, state[1], (gx + self.recur(state[0])).chunk(4, -1))
    proj_size = 0


def train_step(layer, x):
    "Forward and backward over all outputs, as a function without arguments."
    def run():
        layer.zero_grad()
        layer(x)[0].sum().backward()
    return run


def step_loop(x):
    "The bare loop: input product for all steps, then `addmm` and the equations, nothing else."
    lstm = nn.LSTM(N_IN, N_HID)

    def run():
        lstm.zero_grad()
        h = c = x.new_zeros(BS, N_HID)
        out = []
        for g in F.linear(x, lstm.weight_ih_l0, lstm.bias_ih_l0).unbind(0):
            i, f, g, o = torch.addmm(g + lstm.bias_hh_l0, h, lstm.weight_hh_l0.t()).chunk(4, 1)
            c = f.sigmoid()*c + i.sigmoid()*g.tanh()
            h = o.sigmoid()*c.tanh()
            out.append(h)
        torch.stack(out).sum().backward()
    return run


def rows(what: str, times: dict, base: str) -> list:
    "Medians in milliseconds, and as multiples of `base`."
    med = {k: statistics.median(v) for k, v in times.items()}
    res = []
    for k, v in med.items():
        print(f"{what}: {k:28} {1e3*v:9.1f} ms  {v/med[base]:6.2f} x {base}", flush=True)
        res.append(dict(what=f"{what}: {k}", ms=1e3*v, of_base=v/med[base], base=base))
    return res


def layers() -> list:
    "Batch 32, 70 steps, 128 to 256."
    x = torch.randn(70, BS, N_IN)
    fs = {"nn.LSTM": train_step(nn.LSTM(N_IN, N_HID), x), "bare loop of LSTM products": step_loop(x),
          "HandLSTM, auto": train_step(Recurrent(HandLSTM, N_IN, N_HID), x),
          "LSTM, auto": train_step(Recurrent("LSTM", N_IN, N_HID), x),
          "LSTM, loop": train_step(Recurrent("LSTM", N_IN, N_HID, backend="loop"), x),
          "nn.GRU": train_step(nn.GRU(N_IN, N_HID), x), "GRU, auto": train_step(Recurrent("GRU", N_IN, N_HID), x),
          "GRU, loop": train_step(Recurrent("GRU", N_IN, N_HID, backend="loop"), x),
          "nn.RNN": train_step(nn.RNN(N_IN, N_HID), x), "RNN, auto": train_step(Recurrent("RNN", N_IN, N_HID), x)}
    fs |= {f"{n}, auto": train_step(Recurrent(n, N_IN, N_HID), x) for n in cells if f"{n}, auto" not in fs}
    res = rows("70 steps", in_turns(fs, 15, 2), "nn.LSTM")
    pairs = {k: fs[k] for k in ("nn.LSTM", "LSTM, auto", "nn.GRU", "GRU, auto", "nn.RNN", "RNN, auto")}
    times = in_turns(pairs, 40, 2)
    for kind in ("LSTM", "GRU", "RNN"):
        res += rows("fused against torch", {k: times[k] for k in (f"nn.{kind}", f"{kind}, auto")}, f"nn.{kind}")
    return res


def long() -> list:
    "512 steps: scans against torch's GRU."
    x = torch.randn(512, BS, N_IN)
    fs = {"nn.GRU": train_step(nn.GRU(N_IN, N_HID), x), "nn.LSTM": train_step(nn.LSTM(N_IN, N_HID), x)}
    fs |= {f"{n}, auto": train_step(Recurrent(n, N_IN, N_HID), x) for n in ("minGRU", "minLSTM", "QRNN", "SRU", "IndRNN")}
    lin = nn.Linear(N_IN, 2*N_HID)

    def product():
        lin.zero_grad()
        lin(x).sum().backward()
    fs["minGRU's product alone"] = product
    return rows("512 steps", in_turns(fs, 7), "nn.GRU")


def compile_() -> list:
    "Compiled against the loop, 72 steps (nine chunks), and what the first call costs."
    x, res = torch.randn(72, BS, N_IN), []
    for name, cell in (("HandLSTM", HandLSTM), ("LayerNormLSTM", "LayerNormLSTM"), ("sLSTM", "sLSTM")):
        compiled = train_step(Recurrent(cell, N_IN, N_HID, backend="compile"), x)
        start = time.perf_counter()
        compiled()
        first = time.perf_counter() - start
        fs = {"nn.LSTM": train_step(nn.LSTM(N_IN, N_HID), x), f"{name}, compile": compiled,
              f"{name}, loop": train_step(Recurrent(cell, N_IN, N_HID, backend="loop"), x)}
        res += rows("72 steps", in_turns(fs, 10), "nn.LSTM")
        res.append(dict(what=f"72 steps: {name}, first compiled call", ms=1e3*first))
        print(f"{name}: first compiled call {first:.1f} s", flush=True)
    return [r for i, r in enumerate(res) if r["what"] not in {q["what"] for q in res[:i]}]


def one_by_one(kind, n_hid: int, x, y, n_epochs: int, seed: int) -> list:
    "The reference's way: one net, its losses."
    torch.manual_seed(seed)
    rnn, head = kind(4, n_hid), nn.Linear(n_hid, 4)
    opt = torch.optim.Adam([*rnn.parameters(), *head.parameters()], lr=0.1)
    losses = []
    for _ in range(n_epochs):
        loss = F.cross_entropy(head(rnn(x)[0]), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return losses


def grid() -> list:
    "E1 and E2: 25 nets, 500 epochs; three nets run one by one stand for the 25. Losses agree net for net."
    e1 = torch.tensor(["abcC".index(t) for t in "abcabC"*100])
    coins = torch.randint(2, (50,), generator=torch.Generator().manual_seed(0)).tolist()
    e2 = torch.tensor(["abcC".index(t) for c in coins for t in "ab" + "cC"[c]])
    res = []
    for row, name, kind, ids, sizes in (("E1", "RNN", nn.RNN, e1, (3, 4, 8)), ("E2", "LSTM", nn.LSTM, e2, (3, 16))):
        x, y = torch.eye(4)[ids[:-1]], ids[1:]
        for n_hid in sizes:
            nets = ManyNets(name, 4, n_hid, 4)
            start = time.perf_counter()
            ours = nets.fit(x, y, 500, lr=0.1, no_bar=True)
            took = time.perf_counter() - start
            start = time.perf_counter()
            with flush_denormals():
                theirs = torch.tensor([one_by_one(kind, n_hid, x, y, 500, seed) for seed in range(3)])
            alone = (time.perf_counter() - start)*25/3
            gap = (ours[:, :3].T - theirs).abs().max(0).values
            early, until = gap[:50].max().item(), next((i for i, g in enumerate(gap) if g > 1e-3), 500)
            print(f"{row}, {n_hid} nodes: {took:.1f} s for 25 nets, one by one {alone:.1f} s: {alone/took:.1f}x; losses within "
                  f"{early:.1e} over 50 epochs, within 1e-3 for {until}", flush=True)
            res.append(dict(what=f"{row}, {n_hid} nodes, 25 nets", s=took, one_by_one_s=alone, ratio=alone/took,
                            gap_50_epochs=early, within_1e3_for=until))
    return res


def peak(cell: str, backend: str) -> float:
    "Peak memory in MiB of one training step at 2,000 steps, above that before it, in a fresh process."
    code = f"""
import resource, torch
from rnn_fastai.models.recurrent import Recurrent
rnn, x = Recurrent({cell!r}, {N_IN}, {N_HID}, backend={backend!r}), torch.randn(2000, {BS}, {N_IN})
rnn(x[:2])[0].sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rnn(x)[0].sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)/1024


def memory() -> list:
    "2,000 steps, batch 32: peak of a training step, beside the size of one state over all steps."
    one = 2000*BS*N_HID*4/2**20
    res = []
    for cell, backend in (("LSTM", "fused"), ("LSTM", "loop"), ("GRU", "fused"), ("GRU", "loop"), ("minGRU", "scan"),
                          ("minGRU", "loop"), ("QRNN", "scan"), ("QRNN", "loop")):
        mib = peak(cell, backend)
        print(f"2,000 steps: {cell}, {backend}: {mib:,.0f} MiB, {mib/one:.1f} times one state", flush=True)
        res.append(dict(what=f"2,000 steps, memory: {cell}, {backend}", mib=mib, of_one_state=mib/one))
    return res


JOBS = dict(layers=layers, long=long, grid=grid, memory=memory, compile=compile_)

if __name__ == "__main__":
    torch.manual_seed(0)
    with flush_denormals():
        new = [r for job in (sys.argv[1:] or JOBS) for r in JOBS[job]()]
    fresh = {r["what"]: r for r in new}
    kept = [fresh.pop(r["what"], r) for r in read("cells")]
    write("cells", kept + list(fresh.values()))
    json.loads((RESULTS/"cells.json").read_text())
