"""A training step at the demo's size: `Learner.fit`, and bare loops over less and less of it, on one thread, in turns.
Writes benchmarks/results/fit.json."""
import statistics
import time
import warnings

import common
import torch
from fastai.callback.core import Callback, CancelValidException
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from torch import Tensor, nn
from torch.nn import functional as F

import rnn_fastai.all as rf
from rnn_fastai.core import flush_denormals
from rnn_fastai.models.state import detach_state
from rnn_fastai.recipes import DEMO, DEMO_CONFIG

warnings.filterwarnings("ignore")
REPEATS = 15


class TrainOnly(Callback):
    "Leaves validation out."
    def before_validate(self): raise CancelValidException


class TorchLayer(nn.LSTM):
    "torch's layer in place of a `Recurrent`: no weight dropout."
    def forward(self, x, state=None, lengths=None): return super().forward(x, state)


class Net(nn.Module):
    "The demo's net of torch's modules alone: embedding, layers, tied decoder; nothing is dropped or penalised."
    def __init__(self, n_words: int, emb_sz: int, n_hid: int, n_layers: int):
        super().__init__()
        widths = [emb_sz] + [n_hid]*(n_layers - 1) + [emb_sz]
        self.emb, self.dec = nn.Embedding(n_words, emb_sz), nn.Linear(emb_sz, n_words)
        self.rnns = nn.ModuleList(TorchLayer(widths[i], widths[i+1], batch_first=True) for i in range(n_layers))
        self.dec.weight = self.emb.weight

    def forward(self, ids, states):
        x, new = self.emb(ids), []
        for rnn, s in zip(self.rnns, states or [None]*len(self.rnns), strict=True):
            x, s = rnn(x, s)
            new.append(s)
        return self.dec(x), tuple(new)


def learner(dls):
    "The demo's learner, without validation."
    return rf.language_model_learner(dls, "AWD_LSTM", DEMO_CONFIG, DEMO["drop_mult"], pretrained=False,
                                     metrics=accuracy, cbs=TrainOnly())


def fit(learn):
    "An epoch of `fit`."
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)


def plain_loop(dls, model, opt, losses):
    "An epoch of a bare loop; `losses` gives loss and state from model, batch and state."
    model.train()
    state = None
    with flush_denormals():
        for x, y in dls.train:
            loss, state = losses(model, x.as_subclass(Tensor), y.as_subclass(Tensor), state)
            loss.backward()
            opt.step()
            opt.zero_grad()
            state = detach_state(state)


def model_loss(model, x, y, state):
    "Cross-entropy with both penalties, as `fit` trains."
    out = model(x, state)
    loss = F.cross_entropy(out.logits.flatten(0, 1), y.flatten())
    return loss + 2*rf.ar_penalty(out.dropped) + rf.tar_penalty(out.raw), out.state


def net_loss(model, x, y, state):
    "Cross-entropy alone."
    logits, state = model(x, state)
    return F.cross_entropy(logits.flatten(0, 1), y.flatten()), state


def loops(dls) -> dict:
    "What is timed, by name."
    learn, same, swapped = (learner(dls) for _ in range(3))
    enc = swapped.model[0]
    for i, r in enumerate(enc.rnns): enc.rnns[i] = TorchLayer(r.input_size, r.hidden_size, batch_first=True)
    net = Net(len(dls.vocab), **DEMO_CONFIG)
    opts = [rf.Adam([list(m.parameters())], lr=1e-3, wd=0.01) for m in (same.model, swapped.model, net)]
    return {"fit": lambda: fit(learn),
            "bare loop, same model": lambda: plain_loop(dls, same.model, opts[0], model_loss),
            "bare loop, nn.LSTM as its layers": lambda: plain_loop(dls, swapped.model, opts[1], model_loss),
            "bare loop, torch's modules alone": lambda: plain_loop(dls, net, opts[2], net_loss)}


def main():
    "Time all loops in turns, in CPU time of one thread, which other work on the machine does not add to."
    torch.set_num_threads(1)
    set_seed(42)
    dls = rf.TextDataLoaders.from_df(rf.human_numbers(), is_lm=True, seq_len=5, text_col="text", seed=42,
                                     val_bs=DEMO["val_bs"])
    fs = loops(dls)
    times = common.in_turns(fs, REPEATS, clock=time.process_time)
    steps = len(dls.train)
    ms = {k: statistics.median(v)/steps*1e3 for k, v in times.items()}
    base = dict(zip(list(ms)[:-1], list(ms)[1:], strict=True))
    rows = [dict(what=k, unit="ms a step", value=v, runs=[t/steps*1e3 for t in times[k]],
                 **({"ratio": v/ms[base[k]], "to": base[k]} if k in base else {})) for k, v in ms.items()]
    for r in rows:
        print(f"{r['what']}: {r['value']:.2f} ms a step" + (f", {r['ratio']:.2f}x {r['to']}" if "to" in r else ""))
    common.write("fit", rows, threads=1, steps=steps)


if __name__ == "__main__": main()
