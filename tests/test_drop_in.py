"What users bring from fastai: nets that keep their state inside, losses of torch's, files, configs and signatures."
import inspect
from functools import partial

import fastai.text.all as fast
import pytest
import torch
from fastai.callback.rnn import RNNCallback as FastaiRNNCallback
from fastcore.basics import noop
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import rnn_fastai.all as rf

CLOSE = dict(rtol=1e-5, atol=1e-6)
BS,SL = 16,8


# --- Nets as chapter 12 of fastai's book builds them, each a step further ---

class ThreeWords(nn.Module):
    "Three words to the next; the state is a sum that goes through one layer."
    def __init__(self, n, hid=16):
        super().__init__()
        self.words,self.step,self.out = nn.Embedding(n, hid),nn.Linear(hid, hid),nn.Linear(hid, n)
    def forward(self, x):
        h = 0
        for t in range(3): h = F.relu(self.step(h + self.words(x[:, t])))
        return self.out(h)


class KeepsState(ThreeWords):
    "The same, which goes on from the last batch."
    h = 0
    def forward(self, x):
        h = self.h
        for t in range(3): h = F.relu(self.step(h + self.words(x[:, t])))
        self.h = h.detach()
        return self.out(h)
    def reset(self): self.h = 0


class EveryStep(KeepsState):
    "The same, with an answer at every step."
    def forward(self, x):
        h,outs = self.h,[]
        for t in range(x.size(1)):
            h = F.relu(self.step(h + self.words(x[:, t])))
            outs.append(self.out(h))
        self.h = h.detach()
        return torch.stack(outs, 1)


class Stacked(nn.Module):
    "Layers of torch's; the state is a tensor for batches of one size."
    def __init__(self, n, hid=16, layers=2, bs=BS):
        super().__init__()
        self.words,self.rnn,self.out = nn.Embedding(n, hid),nn.RNN(hid, hid, layers, batch_first=True),nn.Linear(hid, n)
        self.h = torch.zeros(layers, bs, hid)
    def forward(self, x):
        raw,h = self.rnn(self.words(x), self.h)
        self.h = h.detach()
        return self.out(raw)
    def reset(self): self.h.zero_()


class StackedLSTM(nn.Module):
    "Layers of LSTM; the state is a list of two tensors."
    def __init__(self, n, hid=16, layers=2, bs=BS):
        super().__init__()
        self.words,self.rnn,self.out = nn.Embedding(n, hid),nn.LSTM(hid, hid, layers, batch_first=True),nn.Linear(hid, n)
        self.h = [torch.zeros(layers, bs, hid) for _ in range(2)]
    def forward(self, x):
        raw,h = self.rnn(self.words(x), tuple(self.h))
        self.h = [s.detach() for s in h]
        return self.out(raw)
    def reset(self):
        for s in self.h: s.zero_()


class Regularized(StackedLSTM):
    "With dropout, tied weights, and outputs of three parts for AR and TAR."
    def __init__(self, n, hid=16, layers=2, bs=BS, p=0.3):
        super().__init__(n, hid, layers, bs)
        self.drop,self.out.weight = nn.Dropout(p),self.words.weight
    def forward(self, x):
        raw,h = self.rnn(self.words(x), tuple(self.h))
        self.h = [s.detach() for s in h]
        out = self.drop(raw)
        return self.out(out),raw,out


class AnySize(Regularized):
    "The same for batches of any size: the first one after `reset` sets it."
    def reset(self): self.h = None
    def forward(self, x):
        raw,h = self.rnn(self.words(x), self.h)
        self.h = tuple(s.detach() for s in h)
        out = self.drop(raw)
        return self.out(out),raw,out


TOKENS = ' . '.join(rf.human_numbers()['text'][:800]).split()
VOCAB = list(dict.fromkeys(TOKENS))
IDS = [VOCAB.index(t) for t in TOKENS]


def rows(pairs):
    "Pairs in an order in which each row of a batch goes on in the next."
    m = len(pairs)//BS
    return [pairs[j*m + i] for i in range(m) for j in range(BS)]


def chapter_loaders(every_step):
    n = SL if every_step else 3
    ids = torch.tensor(IDS)
    pairs = [(ids[i:i+n], ids[i+1:i+n+1] if every_step else ids[i+n]) for i in range(0, len(ids)-n-1, n)]
    cut = len(pairs)*4//5
    return fast.DataLoaders.from_dsets(rows(pairs[:cut]), rows(pairs[cut:]), bs=BS, drop_last=True, shuffle=False,
                                       device='cpu')


def trained(make, net, dls, seed=7):
    rf.set_seed(seed, reproducible=True)
    learn = make(dls, net(len(VOCAB)))
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, 1e-2)
    return torch.tensor([v[:2] for v in learn.recorder.values])


def plain(cls, **kw): return lambda dls, net: cls(dls, net, loss_func=F.cross_entropy, cbs=[fast.ModelResetter] if hasattr(net, 'reset') and cls is fast.Learner else None, **kw)
def flat(cls, **kw): return lambda dls, net: cls(dls, net, loss_func=fast.CrossEntropyLossFlat(), **kw)


def losses_in_fastai(net, dls):
    every_step = net not in (ThreeWords, KeepsState)
    if not every_step: make = plain(fast.Learner, moms=(0.8, 0.7, 0.8))
    elif net in (Regularized, AnySize): make = flat(fast.TextLearner)
    else: make = flat(fast.Learner, cbs=fast.ModelResetter, moms=(0.8, 0.7, 0.8))
    return trained(make, net, dls)


NETS = ThreeWords,KeepsState,EveryStep,Stacked,StackedLSTM,Regularized,AnySize

@pytest.mark.parametrize('net', NETS)
def test_nets_of_the_book_train_as_under_fastai(net):
    dls = chapter_loaders(net not in (ThreeWords, KeepsState))
    theirs = losses_in_fastai(net, dls)
    for cls in (rf.TextLearner, rf.LMLearner):
        for loss_func in (fast.CrossEntropyLossFlat(), nn.CrossEntropyLoss(), F.cross_entropy):
            def make(dls, net): return cls(dls, net, loss_func=loss_func, opt_func=fast.Adam)   # noqa: B023
            assert_close(trained(make, net, dls), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('net', NETS[2:])
def test_nets_of_the_book_train_in_rnn_learner(net):
    dls = rf.SeqDataLoaders.from_series(TOKENS, BS, SL, valid=TOKENS[:1000], device='cpu')
    assert dls.task.vocab == VOCAB
    drop_in = trained(lambda dls, n: rf.rnn_learner(dls, n, alpha=2., beta=1., moms=(0.8, 0.7, 0.8), opt_func=fast.Adam), net, dls)
    assert_close(drop_in, losses_in_fastai(net, dls), rtol=1e-5, atol=1e-5)


class Log(nn.Linear):
    "Counts calls of `reset`, and notes after how many batches each came."
    def __init__(self): super().__init__(1, 1); self.events = []
    def forward(self, x): self.events.append('batch'); return super().forward(x)
    def reset(self): self.events.append('reset')


def test_a_model_is_reset_when_fastai_resets_it():
    batches = [(torch.ones(2, 1), torch.ones(2, 1))]*3
    def events(cls, wrap=noop, **kw):
        log = Log()
        learn = cls(fast.DataLoaders(batches, batches), wrap(log), loss_func=nn.MSELoss(), alpha=0, beta=0, **kw)
        with learn.no_bar(), learn.no_logging():
            learn.fit(2); learn.validate(); learn.get_preds(dl=batches); learn.fit(1)
        return log.events
    class Three(nn.Module):   # fastai's callback takes outputs of three parts
        def __init__(self, m): super().__init__(); self.m = m
        def forward(self, x): y = self.m(x); return y,y[:, None],y[:, None]
        def reset(self): self.m.reset()
    theirs = events(fast.TextLearner, Three)
    assert theirs.count('reset') >= 9
    for cls in (rf.TextLearner, rf.LMLearner, rf.ClassifierLearner): assert events(cls) == events(cls, Three) == theirs
    assert events(rf.TextLearner, lambda m: nn.Sequential(nn.Identity(), m)) == theirs   # a part that has `reset`
    learn = rf.TextLearner(fast.DataLoaders(batches, batches), Log(), loss_func=nn.MSELoss())
    assert isinstance(learn.model_resetter, fast.ModelResetter)
