"""Classifiers beside fastai's and the packed recipe, in one process; results go to results/classifier.json.

    python benchmarks/classifier.py [same] [a3] [awd] [memory]

`same`: what batch-mates, padding, order and chunks do to an answer. `a3`, `awd`: a training step. `memory`: its peak.
"""
import json
import statistics
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import in_turns, save
from fastai.callback.progress import ProgressCallback
from fastai.text import all as ft
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from rnn_fastai import all as rf
from rnn_fastai.core import flush_denormals
from rnn_fastai.learner.weights import canonical_names
from rnn_fastai.models.awd import canonical_name

warnings.filterwarnings("ignore")
WORDS = [f"w{i}" for i in range(1, 4000)]


def documents(n: int, lo: int, hi: int, seed: int = 0) -> list:
    "Random ids, `lo` to `hi` of them."
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.integers(2, 1000, rng.integers(lo, hi+1))) for _ in range(n)]


def padded(docs: list) -> torch.Tensor:
    "Rows, padded on the right."
    return nn.utils.rnn.pad_sequence(docs, batch_first=True, padding_value=1)


@torch.no_grad()
def same() -> list:
    "How far an answer moves with the batch it is in: 500 documents, weights three times as large."
    docs, rows = documents(500, 20, 2000), []
    rng = np.random.default_rng(1)
    cfg = dict(emb_sz=40, n_hid=60, n_layers=2)
    for bidir in (False, True):
        torch.manual_seed(0)
        ours = rf.get_text_classifier("AWD_LSTM", 1000, 3, config=dict(cfg, bidir=bidir)).eval()
        for p in ours.parameters(): p.mul_(3)
        theirs = ft.get_text_classifier(ft.AWD_LSTM, 1000, 3, config=dict(ft.awd_lstm_clas_config, **cfg, bidir=bidir))
        theirs.eval()
        if not bidir:   # fastai's two directions share no weights' names with anyone
            mine = canonical_names(ours.state_dict())
            theirs.load_state_dict({k: mine[canonical_name(k)] for k in theirs.state_dict()})
        else:
            for p in theirs.parameters(): p.mul_(3)

        def their_batch(some, theirs=theirs):
            b = ft.pad_input_chunk([(ft.TensorText(d), 0) for d in some], pad_idx=1, seq_len=72)
            return theirs(torch.stack([x for x, _ in b]))[0]

        def run(f, order, bs=16):
            out = [None]*len(docs)
            for i in range(0, len(order), bs):
                for k, o in zip(order[i:i+bs], f([docs[k] for k in order[i:i+bs]]), strict=True): out[k] = o
            return torch.stack(out)

        def our_batch(some, seq_len=72, ours=ours):
            ours[0].seq_len = seq_len
            return ours(padded(some)).logits

        by_length = sorted(range(len(docs)), key=lambda i: -len(docs[i]))
        orders = dict(alone=by_length, sorted=by_length, shuffled=rng.permutation(len(docs)).tolist())
        for who, f in (("ours", our_batch), ("fastai", their_batch)):
            alone = run(f, by_length, 1)
            found = {k: run(f, o) for k, o in orders.items() if k != "alone" and (who == "ours" or k == "sorted")}
            if who == "ours": found["chunks of 17"] = run(lambda s: our_batch(s, 17), by_length)
            far = {k: (v - alone).abs().max(1)[0] for k, v in found.items()}
            flips = {k: int((v.argmax(1) != alone.argmax(1)).sum()) for k, v in found.items()}
            rows.append(dict(what=f"{who}, {2 if bidir else 1} directions", documents=len(docs),
                             furthest={k: v.max().item() for k, v in far.items()},
                             moved={k: int((v > 1e-3).sum()) for k, v in far.items()}, flipped=flips))
            print(rows[-1], flush=True)
    return rows


def a3() -> list:
    "Time a step of the plain LSTM classifier: 64 reviews of 180 to 240 words, against packing."
    docs = documents(64, 180, 240)
    docs.sort(key=len, reverse=True)
    ids, lens, y = padded(docs), torch.tensor([len(d) for d in docs]), torch.randint(2, (64,))
    rnn = rf.Recurrent("LSTM", 128, 256, batch_first=True)
    ours = rf.SequenceModel(nn.Embedding(1000, 128, padding_idx=1), rnn, 2, every_step=False, pad=1)
    emb, lstm, head = nn.Embedding(1000, 128, padding_idx=1), nn.LSTM(128, 256, batch_first=True), nn.Linear(256, 2)
    plain = nn.ModuleList([emb, lstm, head])
    emb.load_state_dict(ours.inp.state_dict()); lstm.load_state_dict(ours.rnn.state_dict())
    head.load_state_dict(ours.head.state_dict())
    opts = [torch.optim.Adam(m.parameters(), fused=True) for m in (ours, plain)]

    def step_ours():
        with flush_denormals():
            opts[0].zero_grad()
            F.cross_entropy(ours(ids), y).backward()
            opts[0].step()

    def step_packed():
        opts[1].zero_grad()
        out = lstm(pack_padded_sequence(emb(ids), lens, batch_first=True))[1][0][-1]
        F.cross_entropy(head(out), y).backward()
        opts[1].step()

    def step_bare():   # the kernel alone, over the padded batch
        with flush_denormals():
            opts[1].zero_grad()
            out = lstm(emb(ids))[0][torch.arange(64), lens-1]
            F.cross_entropy(head(out), y).backward()
            opts[1].step()
    times = in_turns(dict(ours=step_ours, packed=step_packed, bare=step_bare), repeats=7)
    med = {k: statistics.median(v) for k, v in times.items()}
    print(f"A3's step: {med}, {med['packed']/med['ours']:.1f}x the packed recipe, {med['ours']/med['bare']:.2f} of the bare")
    return [dict(what="A3 step", seconds=med, runs=times, ratio=med["packed"]/med["ours"])]


def reviews(n: int = 64) -> pd.DataFrame:
    "Texts of 180 to 240 words."
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(180, 241))) for _ in range(n+8)]
    return pd.DataFrame(dict(text=texts, label=["a", "b"]*((n+8)//2), held=[False]*n + [True]*8))


def learner(m, bs: int = 16):
    "The default AWD_LSTM classifier, of this package or of fastai, over the same texts."
    if m is ft: ft.defaults.cpus = 1
    dls = m.TextDataLoaders.from_df(reviews(), text_col="text", label_col="label", valid_col="held", bs=bs, path="/tmp")
    learn = m.text_classifier_learner(dls, m.AWD_LSTM, pretrained=False)
    learn.remove_cb(ProgressCallback)
    learn.logger = lambda *a: None
    return learn


def awd() -> list:
    "A step of the AWD_LSTM classifier: 16 texts of 180 to 240 words, four steps and their validation at a time."
    both = dict(ours=learner(rf), fastai=learner(ft))
    times = in_turns({k: lambda v=v: v.fit(1, 1e-3) for k, v in both.items()}, repeats=3)
    med = {k: statistics.median(v) for k, v in times.items()}
    print(f"AWD_LSTM classifier, four steps: {med}, {med['fastai']/med['ours']:.2f}x")
    return [dict(what="AWD_LSTM classifier, four steps", seconds=med, runs=times, ratio=med["fastai"]/med["ours"])]


def resident(what: str) -> int:
    "Memory of this process in bytes: VmRSS now, VmHWM at its peak."
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1])*1024 for line in lines if line.startswith(what))


def memory() -> list:
    "Peak memory of a training step beyond what the learner takes, each in a process of its own."
    peaks = {k: json.loads(subprocess.check_output([sys.executable, __file__, "--peak", k]).splitlines()[-1])
             for k in ("ours", "fastai")}
    print(f"peak memory of training: {peaks}")
    return [dict(what="AWD_LSTM classifier, peak memory", bytes=peaks)]


def main():
    "Run what was asked for."
    if "--peak" in sys.argv:
        learn = learner(rf if sys.argv[-1] == "ours" else ft)
        Path("/proc/self/clear_refs").write_text("5")   # the peak so far, a parent's too, is forgotten
        before = resident("VmRSS")
        learn.fit(1, 1e-3)
        print(resident("VmHWM") - before)
        return
    parts = dict(same=same, a3=a3, awd=awd, memory=memory)
    for name in sys.argv[1:] or parts: save("classifier", parts[name]())


if __name__ == "__main__": main()
