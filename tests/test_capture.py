"Capture: every number against loops written out in double precision; models untouched; tokens, budgets and bad input."
import contextlib
import copy
import gc
import io
import os
import pickle
import subprocess
import sys
import warnings
import weakref
from collections import Counter

import fastai.text.core
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.text import all as ft
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence
from torch.testing import assert_close

from rnn_fastai import all as rf
from rnn_fastai.callback.capture import HiddenStateCapture, loaders_vocab
from rnn_fastai.data.task import seq_kinds
from rnn_fastai.inside.capture import capture
from rnn_fastai.inside.recording import Recording
from rnn_fastai.models import recurrent
from rnn_fastai.models.awd import get_language_model
from rnn_fastai.models.cells import cells, get_cell
from rnn_fastai.models.dropout import drop_weight
from rnn_fastai.models.recurrent import Recurrent
from rnn_fastai.models.state import fit_state

CLOSE = dict(rtol=1e-5, atol=1e-5)
PARTS = 'x', 'states', 'gates'

@pytest.fixture(autouse=True)
def one_process(monkeypatch): monkeypatch.setattr(fastai.text.core, 'parallelable', lambda *a, **k: False)

# ---- the papers' equations for rows of a batch, in double precision: gates, and the new state

def lin(w, k, n, x, name='ih'):
    "Block `k` of `n` of an affine map."
    W,b = w[f'weight_{name}'].chunk(n)[k],w.get(f'bias_{name}')
    return x @ W.T + (0. if b is None else b.chunk(n)[k])

def pre(w, n, x, h): return [lin(w, k, n, x) + lin(w, k, n, h, 'hh') for k in range(n)]
def norm(x, gain, bias):
    m = x.mean(-1, keepdim=True)
    y = gain*(x - m)/(((x - m)**2).mean(-1, keepdim=True) + 1e-5).sqrt()
    return y if bias is None else y + bias
def project(w, m): return m @ w['weight_hr'].T if 'weight_hr' in w else m

def elman(w, x, h, nonlinearity='tanh'):
    a, = pre(w, 1, x, h)
    return {},(a.tanh() if nonlinearity == 'tanh' else a.clamp(min=0),)

def lstm(w, x, h, c, **_):
    i,f,g,o = pre(w, 4, x, h)
    i,f,g,o = i.sigmoid(),f.sigmoid(),g.tanh(),o.sigmoid()
    c = f*c + i*g
    return dict(input=i, forget=f, cell=g, output=o),(project(w, o*c.tanh()),c)

def gru(w, x, h):
    r,z = ((lin(w, k, 3, x) + lin(w, k, 3, h, 'hh')).sigmoid() for k in (0, 1))
    n = (lin(w, 2, 3, x) + r*lin(w, 2, 3, h, 'hh')).tanh()
    return dict(reset=r, update=z, new=n),((1-z)*n + z*h,)

def peephole(w, x, h, c, **_):
    (i,f,g,o),(wi,wf,wo) = pre(w, 4, x, h),w['weight_ch']
    i,f,g = (i + wi*c).sigmoid(),(f + wf*c).sigmoid(),g.tanh()
    c = f*c + i*g
    o = (o + wo*c).sigmoid()
    return dict(input=i, forget=f, cell=g, output=o),(project(w, o*c.tanh()),c)

def layer_norm(w, x, h, c):
    a = norm(x @ w['weight_ih'].T, w['norm_ih'], w.get('bias_ih')) + \
        norm(h @ w['weight_hh'].T, w['norm_hh'], w.get('bias_hh'))
    i,f,g,o = a.chunk(4, -1)
    i,f,g,o = i.sigmoid(),f.sigmoid(),g.tanh(),o.sigmoid()
    c = f*c + i*g
    return dict(input=i, forget=f, cell=g, output=o),(o*norm(c, w['norm_c'], w.get('bias_c')).tanh(),c)

def mogrifier(w, x, h, c, rounds=5, **_):
    for i in range(1, rounds+1):
        if i % 2: x = 2*(h @ w[f'weight_m{i-1}'].T).sigmoid()*x
        else: h = 2*(x @ w[f'weight_m{i-1}'].T).sigmoid()*h
    return lstm(w, x, h, c)

def slstm(w, x, h, c, n, m):
    i,f,z,o = pre(w, 4, x, h)
    f = f.sigmoid().log() + torch.where(n == 0, -torch.inf, m)   # nothing is kept before the first step
    m = torch.maximum(f, i)
    i,f,z,o = (i - m).exp(),(f - m).exp(),z.tanh(),o.sigmoid()
    c,n = f*c + i*z,f*n + i
    return dict(input=i, forget=f, cell=z, output=o),(o*c/n,c,n,m)

def indrnn(w, x, h): return {},((lin(w, 0, 1, x) + w['weight_hh']*h).clamp(min=0),)

def sru(w, x, h, c):
    (vf,vr),skip = w['weight_ch'],x @ w['weight_ix'].T if 'weight_ix' in w else x
    g,f,r = lin(w, 0, 3, x),(lin(w, 1, 3, x) + vf*c).sigmoid(),(lin(w, 2, 3, x) + vr*c).sigmoid()
    c = f*c + (1-f)*g
    return dict(cell=g, forget=f, reset=r),(r*c + (1-r)*skip,c)

def min_gru(w, x, h):
    z,g = lin(w, 0, 2, x).sigmoid(),lin(w, 1, 2, x)
    return dict(update=z, new=g),((1-z)*h + z*g,)

def min_lstm(w, x, h):
    f,i,g = lin(w, 0, 3, x).sigmoid(),lin(w, 1, 3, x).sigmoid(),lin(w, 2, 3, x)
    f,i = f/(f+i),i/(f+i)
    return dict(forget=f, input=i, new=g),(f*h + i*g,)

def qrnn(w, x, h, c, p=None, window=2):
    ps = [0.]*3 if p is None else p.chunk(3, -1)
    z,f,o = (lin(w, k, 3, x) + ps[k] for k in range(3))
    z,f,o = z.tanh(),f.sigmoid(),o.sigmoid()
    c = f*c + (1-f)*z
    return dict(cell=z, forget=f, output=o),(o*c,c) if p is None else (o*c,c,x @ w['weight_ip'].T)

PAPERS = dict(RNN=elman, LSTM=lstm, GRU=gru, PeepholeLSTM=peephole, LayerNormLSTM=layer_norm, MogrifierLSTM=mogrifier,
              sLSTM=slstm, IndRNN=indrnn, SRU=sru, minGRU=min_gru, minLSTM=min_lstm, QRNN=qrnn)
STATES = dict(LSTM='hc', PeepholeLSTM='hc', LayerNormLSTM='hc', MogrifierLSTM='hc', sLSTM='hcnm', SRU='hc', QRNN='hcp')
CASES = [('RNN', {}), ('RNN', dict(nonlinearity='relu')), ('LSTM', {}), ('LSTM', dict(proj_size=2)), ('GRU', {}),
         ('PeepholeLSTM', {}), ('PeepholeLSTM', dict(proj_size=2)), ('LayerNormLSTM', {}), ('MogrifierLSTM', {}),
         ('MogrifierLSTM', dict(rounds=2, proj_size=2)), ('sLSTM', {}), ('IndRNN', {}), ('SRU', {}), ('minGRU', {}),
         ('minLSTM', {}), ('QRNN', {}), ('QRNN', dict(window=1))]

def label(v): return ','.join(f'{k}={x}' for k,x in v.items()) or 'plain' if isinstance(v, dict) else str(v)
by_case = pytest.mark.parametrize('name,args', CASES, ids=label)
by_torch = pytest.mark.parametrize('kind', ['RNN', 'LSTM', 'GRU'])

def test_every_cell_is_swept(): assert set(cells) == set(PAPERS) == {n for n,_ in CASES}

# ---- helpers

def states_of(kind, args): return 'hc' if kind == 'QRNN' and args.get('window') == 1 else STATES.get(kind, 'h')

def weights(module, suffix='', **other):
    "A cell's weights by their names in the cell, in double precision."
    ws = {n.removesuffix(suffix): p for n,p in module.named_parameters() if n.endswith(suffix)}
    return {n: p.detach().double() for n,p in {**ws, **other}.items()}

def sizes_of(kind, w, args):
    hid = w['weight_ih'].size(0)//dict(RNN=1, IndRNN=1, GRU=3, minGRU=2, SRU=3, QRNN=3, minLSTM=3).get(kind, 4)
    return [args.get('proj_size') or hid if s == 'h' else 3*hid if s == 'p' else hid for s in states_of(kind, args)]

def zeros(kind, w, args): return tuple(torch.zeros(n, dtype=torch.double) for n in sizes_of(kind, w, args))

def loop(kind, w, x, state=None, **args):
    "Every part of every step of one sequence, and the last state."
    state,out = zeros(kind, w, args) if state is None else state,{}
    for t in x.double():
        gates,state = PAPERS[kind](w, t, *state, **args)
        for k,v in (*gates.items(), *zip(states_of(kind, args), state, strict=True)): out.setdefault(k, []).append(v)
    return {k: torch.stack(v) for k,v in out.items()},state

def tensor(a): return torch.from_numpy(np.array(a))
def suffixes(nl, both): return [(l, d, f"_l{l}{'_reverse' if d else ''}") for l in range(nl) for d in range(1+both)]
def names_of(root, n_layers, both):
    if n_layers == 1 and not both: return [root]
    return [f"{root}.{s[1:]}" for *_,s in suffixes(n_layers, both)]

def same(got, want, **tol): assert_close(tensor(got).double(), want.double(), **{**CLOSE, **tol})

def check(rec, root, module, kind, xs, args=None, start=None, drops=None, dropped=0., own=None, **tol):
    "All that was recorded of a layer or stack, for sequences `xs` (one document each), against loops by hand."
    args,both,nl = args or {},getattr(module, 'bidirectional', False),getattr(module, 'num_layers', 1)
    names = names_of(root, nl, both)
    assert len(rec) == len(xs) and set(names) <= set(rec.layers)
    assert rec.docs.n_steps.tolist() == [len(x) for x in xs]
    below = [x.double() for x in xs]
    for i,(name,(_,back,suffix)) in enumerate(zip(names, suffixes(nl, both), strict=True)):
        suffix = suffix if hasattr(module, 'num_layers') else ''   # a cell has none
        if i % (1+both) == 0: outs = [[] for _ in xs]
        w = own[i] if own else weights(module, suffix, **(drops[i] if drops else {}))
        for d,x in enumerate(below):
            if dropped and i >= 1+both:   # what was dropped is zero, the rest is scaled
                read = tensor(rec[name, 'x', d]).double()
                kept = read != 0
                same(rec[name, 'x', d], torch.where(kept, x/(1-dropped), 0.))
                x = torch.where(kept, x/(1-dropped), 0.)
            else: same(rec[name, 'x', d], x, **tol)
            s0 = None if start is None else tuple(s[i, d].double() for s in start)
            want,_ = loop(kind, w, x.flip(0) if back else x, s0, **args)
            assert set(rec.parts(name)) == {'x', *want}
            for k,v in want.items(): same(rec[name, k, d], v.flip(0) if back else v, **tol)
            outs[d].append(want['h'].flip(0) if back else want['h'])
        if (i+1) % (1+both) == 0: below = [torch.cat(o, -1) for o in outs]
    return below

def build(name, n_in=3, hid=4, seed=0, scale=0.6, cls=Recurrent, **kwargs):
    torch.manual_seed(seed)
    rnn = cls(name, n_in, hid, **kwargs) if cls is Recurrent else cls(n_in, hid, **kwargs)
    for p in rnn.parameters(): p.data.normal_(0, scale)
    return rnn

def rows(x, lengths, first): return [(x[b] if first else x[:, b])[:n] for b,n in enumerate(lengths)]
def tup(s): return s if isinstance(s, tuple) else (s,)
def clean(model):
    "Nothing of a capture is left on a model."
    for m in model.modules():
        assert 'forward' not in vars(m) and 'watch' not in vars(m) and 'edit' not in vars(m)
        assert not (m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks)
    return True

# ---- exact: Recurrent

LENGTHS = [5, 7, 1, 4]
@pytest.mark.parametrize('first', [False, True])
@pytest.mark.parametrize('extra', [dict(), dict(num_layers=2, bidirectional=True), dict(bias=False, num_layers=3)],
                         ids=label)
@by_case
def test_recurrent(name, args, extra, first):
    rnn = build(name, **args, **extra, batch_first=first)
    x = torch.randn(*((4, 7) if first else (7, 4)), 3)
    for lengths in (None, LENGTHS):
        with capture(rnn, parts='all') as rec, torch.no_grad(): out,_ = rnn(x, None, lengths)
        top = check(rec, 'recurrent', rnn, name, rows(x, lengths or [7]*4, first), args)
        for o,t in zip(rows(out, lengths or [7]*4, first), top, strict=True): assert_close(o.double(), t, **CLOSE)
    assert clean(rnn)

@pytest.mark.parametrize('backend', ['fused', 'scan', 'loop'])
@by_case
def test_recurrent_backends_and_state(name, args, backend):
    try: rnn = build(name, backend=backend, num_layers=2, bidirectional=True, **args)
    except ValueError: pytest.skip('the cell has none')
    x,n = torch.randn(7, 4, 3),[torch.Size((4, 4, k)) for k in rnn.cells[0].sizes]
    state = tuple(torch.randn(s) for s in n)
    if name == 'sLSTM': state = (*state[:2], state[2].abs()+0.5, state[3])
    for lengths in (None, torch.tensor(LENGTHS)):
        with capture(rnn, parts='all') as rec: rnn(x, state if len(n) > 1 else state[0], lengths)
        check(rec, 'recurrent', rnn, name, rows(x, LENGTHS if lengths is not None else [7]*4, False), args, state)
    flat = tuple(s[:, 1] for s in state)
    with capture(rnn, parts='all') as rec: rnn(x[:, 1], flat if len(n) > 1 else flat[0])   # no batch
    check(rec, 'recurrent', rnn, name, [x[:, 1]], args, tuple(s[:, 1:2] for s in state))

@pytest.mark.parametrize('sort', [True, False])
@pytest.mark.parametrize('first', [True, False])
@by_case
def test_recurrent_packed(name, args, first, sort):
    rnn,lengths = build(name, bidirectional=True, batch_first=first, **args),sorted(LENGTHS)[::-1] if sort else LENGTHS
    xs = [torch.randn(n, 3) for n in lengths]
    with capture(rnn, parts=PARTS) as rec: rnn(pack_sequence(xs, enforce_sorted=sort))
    check(rec, 'recurrent', rnn, name, xs, args)

@pytest.mark.parametrize('backend', ['auto', 'loop'])
@by_case
def test_weight_drop_shows_the_mask_drawn(name, args, backend):
    try: rnn = build(name, hid=8, backend=backend, weight_p=0.5, num_layers=2, bidirectional=True, **args)
    except ValueError: pytest.skip('nothing to drop')
    x = torch.randn(6, 3, 3)
    masks = set()
    for seed in range(3):
        torch.manual_seed(seed)
        drops = [{n: drop_weight(p, 0.5) for n,p in c.named_parameters() if n in c.dropped} for c in rnn.cells]
        torch.manual_seed(seed)
        with capture(rnn, parts='all') as rec: rnn(x, None, [6, 2, 5])
        check(rec, 'recurrent', rnn, name, rows(x, [6, 2, 5], False), args, drops=drops)
        masks.add(tuple((next(iter(drops[0].values())) != 0).flatten().tolist()))
    assert len(masks) == 3
    with capture(rnn.eval(), parts='all') as rec: rnn(x)
    check(rec, 'recurrent', rnn, name, rows(x, [6]*3, False), args)

@by_case
def test_dropout_between_layers(name, args):
    rnn = build(name, hid=8, scale=0.4, num_layers=3, dropout=0.4, bidirectional=True, **args)
    x = torch.randn(6, 3, 3)
    for lengths in (None, [6, 2, 5]):
        with capture(rnn, parts='all') as rec: rnn(x, None, lengths)
        check(rec, 'recurrent', rnn, name, rows(x, lengths or [6]*3, False), args, dropped=0.4)
        zero = (rec['recurrent.l1', 'x'] == 0).mean()
        assert 0.2 < zero < 0.6 or name == 'IndRNN' or args.get('nonlinearity') == 'relu'

@by_case
def test_zoneout(name, args):
    rnn,x = build(name, hid=6, zoneout_p=0.3, backend='loop', **args),torch.randn(9, 4, 3)
    w,ps = weights(rnn, '_l0'),rnn._zone
    for train in (True, False):
        rnn.train(train)
        with capture(rnn, parts='all') as rec: rnn(x)
        for d in range(4):
            before,kept = zeros(name, w, args),[]
            for t in range(9):   # each step from what was recorded of the step before
                gates,new = PAPERS[name](w, x[t, d].double(), *before, **args)
                now = tuple(tensor(rec[0, s, d, t]).double() for s in states_of(name, args))
                for k,v in gates.items(): same(rec[0, k, d, t], v)
                for p,o,n,r in zip(ps, before, new, now, strict=True):
                    if not train: assert_close(r, p*o + (1-p)*n, **CLOSE)
                    else:
                        old = (r == o) & ((n - o).abs() > 1e-4)
                        assert_close(torch.where(old, o, n), r, **CLOSE)
                        if p: kept.append(old)
                before = now
            assert not train or 0.05 < torch.cat(kept).double().mean() < 0.6

def test_batches_of_many_sizes():
    rnn = build('LSTM', batch_first=True, num_layers=2)
    xs = [torch.randn(bs, sl, 3) for bs,sl in ((4, 7), (2, 7), (5, 3), (1, 1), (4, 7))]
    with capture(rnn, parts='all') as rec, torch.no_grad():
        for x in xs: rnn(x)
    check(rec, 'recurrent', rnn, 'LSTM', [s for x in xs for s in x])
    assert rec.docs.batch.tolist() == [0]*4 + [1]*2 + [2]*5 + [3] + [4]*4
    assert rec.docs.row.tolist() == [*range(4), *range(2), *range(5), 0, *range(4)]

@pytest.mark.slow
@pytest.mark.parametrize('name', ['LSTM', 'minLSTM', 'sLSTM'])
def test_compiled_backend(name):
    rnn,x = build(name, backend='compile', num_layers=2, bidirectional=True),torch.randn(19, 3, 3)
    for lengths in (None, [19, 3, 8]):
        with capture(rnn, parts='all') as rec: rnn(x, None, lengths)
        check(rec, 'recurrent', rnn, name, rows(x, lengths or [19]*3, False))

# ---- exact: torch's layers and cells

TORCH = dict(RNN=nn.RNN, LSTM=nn.LSTM, GRU=nn.GRU)
@pytest.mark.parametrize('extra', [dict(), dict(bias=False, bidirectional=True), dict(num_layers=3, batch_first=True),
                                   dict(num_layers=2, bidirectional=True, dropout=0.4)], ids=label)
@pytest.mark.parametrize('packed', [None, 'sorted', 'unsorted'])
@pytest.mark.parametrize('kind,args', [('RNN', {}), ('RNN', dict(nonlinearity='relu')), ('LSTM', {}),
                                       ('LSTM', dict(proj_size=2)), ('GRU', {})], ids=label)
def test_torch_layers(kind, args, packed, extra):
    rnn,p = build(kind, hid=6, cls=TORCH[kind], **args, **extra),extra.get('dropout', 0.)
    n = rnn.num_layers*(1+rnn.bidirectional)
    lengths = [7]*4 if packed is None else sorted(LENGTHS)[::-1] if packed == 'sorted' else LENGTHS
    x = torch.randn(7, 4, 3)
    state = (torch.randn(n, 4, args.get('proj_size', 6)), *([torch.randn(n, 4, 6)] if kind == 'LSTM' else []))
    inp = x.transpose(0, 1) if rnn.batch_first else x
    if packed: inp = pack_padded_sequence(inp, torch.tensor(lengths), rnn.batch_first, packed == 'sorted')
    for s in (None, state):
        with capture(rnn, parts=PARTS) as rec:
            out,_ = rnn(inp, s if s is None or kind == 'LSTM' else s[0])
        top = check(rec, type(rnn).__name__.lower(), rnn, kind, rows(x, lengths, False), args, s, dropped=p)
        out = pad_packed_sequence(out)[0] if packed else out.transpose(0, 1) if rnn.batch_first else out
        for d,(l,t) in enumerate(zip(lengths, top, strict=True)): assert_close(out[:l, d].double(), t, **CLOSE)
    if not packed:
        with capture(rnn.eval(), parts=PARTS) as rec: rnn(x[:, 2])
        check(rec, type(rnn).__name__.lower(), rnn, kind, [x[:, 2]], args)
    assert clean(rnn)

class Stepped(nn.Module):
    "Steps a cell by hand over ids or vectors, time first or batch first."
    def __init__(self, cell, n_ids=9, n_in=3, axis=1):
        super().__init__()
        self.emb,self.cell,self.axis = nn.Embedding(n_ids, n_in) if n_ids else nn.Identity(),cell,axis
    def forward(self, ids, state=None):
        out = []
        for x in self.emb(ids).unbind(self.axis):
            state = self.cell(x, state)
            out.append(tup(state)[0])
        return torch.stack(out, self.axis),state

OURS = [(n, a, lambda n=n, a=a: get_cell(n)(3, 4, **a)) for n,a in CASES]
RELU = dict(nonlinearity='relu')
THEIRS = [('RNN', {}, lambda: nn.RNNCell(3, 4)), ('RNN', RELU, lambda: nn.RNNCell(3, 4, **RELU)),
          ('LSTM', {}, lambda: nn.LSTMCell(3, 4)), ('LSTM', {}, lambda: nn.LSTMCell(3, 4, bias=False)),
          ('GRU', {}, lambda: nn.GRUCell(3, 4))]
@pytest.mark.parametrize('name,args,make', OURS + THEIRS, ids=lambda v: '' if callable(v) else label(v))
def test_stepped_cells(name, args, make):
    torch.manual_seed(0)
    for n_ids in (9, None):
        net = Stepped(make(), n_ids)
        ids = torch.randint(9, (4, 7)) if n_ids else torch.randn(4, 7, 3)
        with capture(net, parts='all') as rec: net(ids)
        x = net.emb(ids).detach()
        check(rec, 'cell', net.cell, name, list(x), args)
        if n_ids: assert rec.ids().tolist() == ids.flatten().tolist()
        if name == 'IndRNN' or args.get('nonlinearity'): continue   # states of zero: see below
        with capture(net, parts='all') as rec:   # the second goes on from the first
            _,state = net(ids[:, :3])
            net(ids[:, 3:], state)
        check(rec, 'cell', net.cell, name, list(x), args)
        assert clean(net)

# ---- exact: what a training model did

def awd_weights(drop):
    "Of fastai's `WeightDropout`: the weights as the last call dropped them."
    return weights(drop.module, '_l0', weight_hh=drop.module.weight_hh_l0)

@pytest.mark.parametrize('train', [True, False])
def test_fastai_awd_lstm(train):
    torch.manual_seed(0)
    enc = ft.AWD_LSTM(12, 5, 6, 3).train(train)
    for p in enc.parameters(): p.data.normal_(0, 0.5)
    enc.reset()
    names,start = [f'rnns.{i}.module' for i in range(3)],None
    for ids in (torch.randint(2, 12, (4, 7)), torch.randint(2, 12, (4, 5)), torch.randint(2, 12, (2, 5))):
        start = [[s[0].double() for s in h] for h in enc.hidden]
        with capture(enc, parts=PARTS) as rec: out = enc(ids)
        assert rec.layers == names and rec.ids().tolist() == ids.flatten().tolist()
        for i,(name,drop) in enumerate(zip(names, enc.rnns, strict=True)):
            w = awd_weights(drop)
            assert not train or 0.2 < (w['weight_hh'] == 0).double().mean() < 0.8
            for d in range(len(ids)):
                h0 = tuple(s[d] if d < len(s) else torch.zeros_like(s[0]) for s in start[i])
                want,_ = loop('LSTM', w, tensor(rec[name, 'x', d]), h0)
                for k,v in want.items(): same(rec[name, k, d], v)
        assert_close(tensor(rec[names[-1], 'h']), out.flatten(0, 1), rtol=0, atol=0)
    assert clean(enc)

@pytest.mark.parametrize('arch,kind', [('AWD_LSTM', 'LSTM'), ('AWD_GRU', 'GRU'), ('AWD_QRNN', 'QRNN')])
@pytest.mark.parametrize('train', [True, False])
def test_zoo_models(arch, kind, train, monkeypatch):
    torch.manual_seed(0)
    lm = get_language_model(arch, 12, dict(emb_sz=5, n_hid=6, n_layers=2)).train(train)
    for p in lm.parameters(): p.data.normal_(0, 0.5)
    state,seen = None,[]
    drop_weights = recurrent._Pass._drop_weights   # the masks that were drawn, from the outside
    monkeypatch.setattr(recurrent._Pass, '_drop_weights', lambda p: seen.append(drop_weights(p)) or seen[-1])
    starts = [None, None]
    for n in (4, 4, 2):
        ids = torch.randint(2, 12, (n, 7))
        state = None if state is None else fit_state(state, n)
        starts = [None if state is None else tup(s) for s in state] if state else [None, None]
        seen.clear()
        with capture(lm, parts=('x', 'states', 'gates', 'logits')) as rec: out = lm(ids, state)
        for i,r in enumerate(lm[0].rnns):
            w = weights(r, '_l0', **seen[i][0])
            for d in range(n):
                s0 = None if starts[i] is None else tuple(s[0, d].detach().double() for s in starts[i])
                args = dict(window=r.cells[0].window) if kind == 'QRNN' else {}
                want,_ = loop(kind, w, tensor(rec[f'0.rnns.{i}', 'x', d]), s0, **args)
                for k,v in want.items(): same(rec[f'0.rnns.{i}', k, d], v)
        assert_close(tensor(rec['output', 'logits']), out.logits.detach().flatten(0, 1), rtol=0, atol=0)
        assert rec.ids().tolist() == ids.flatten().tolist()
        state = out.state

@pytest.mark.parametrize('name,args', [('LSTM', {}), ('GRU', {}), ('minGRU', {}), ('sLSTM', {}), ('torch', {})])
def test_autocast(name, args):
    "In bfloat16 the states are those that the model had, as single precision; the random stream and outputs stay."
    rnn = build('LSTM', cls=nn.LSTM) if name == 'torch' else build(name)
    x = torch.randn(7, 4, 3)
    with torch.autocast('cpu', torch.bfloat16):
        try: want,_ = rnn(x)
        except RuntimeError:
            if name != 'torch': raise
            pytest.skip("torch has no LSTM of this type for this processor")
        with capture(rnn, parts=PARTS) as rec: out,_ = rnn(x)
    assert out.dtype == want.dtype and torch.equal(out, want)
    h = rec[0, 'h'].reshape(4, 7, -1).transpose(1, 0, 2)
    assert np.array_equal(h, out.detach().float().numpy()) and rec[0, 'h'].dtype == np.float32
    exact = build('LSTM', cls=nn.LSTM) if name == 'torch' else build(name)
    with capture(exact, parts=PARTS) as near: exact(x)
    for p in near.parts(0): np.testing.assert_allclose(rec[0, p], near[0, p], atol=0.06, rtol=0.06)

# ---- documents

def test_rows_whose_state_is_zero_go_on():
    rnn = build('IndRNN', batch_first=True)
    rnn.bias_ih_l0.data.zero_()
    x = torch.randn(4, 6, 3)
    x[1] = 0.
    with capture(rnn, parts=PARTS) as rec:
        _,s = rnn(x[:, :3])
        rnn(x[:, 3:], s)
    check(rec, 'recurrent', rnn, 'IndRNN', list(x))

# ---- untouched

def everything(model):
    "What must be as before on every module."
    return [(n, m.training, sorted(vars(m)), len(m._forward_hooks), len(m._backward_hooks))
            for n,m in model.named_modules()]

def tensors_of(o):
    "All tensors in a nest, as plain ones."
    if isinstance(o, torch.Tensor): return [o]
    if isinstance(o, (tuple, list)): return [t for e in o for t in tensors_of(e)]
    return [t for e in o.values() for t in tensors_of(e)] if isinstance(o, dict) else []

def ran(name, around):
    "Outputs, gradients, weights and the random stream after two steps of training."
    model,run = built(name)
    torch.manual_seed(7)
    opt,res,before = torch.optim.SGD(model.parameters(), 0.1),[],everything(model)
    with around(model):
        for _ in range(2):
            out = tensors_of(run(model))
            opt.zero_grad()
            sum(o.float().pow(2).mean() for o in out if o.requires_grad).backward()
            res += [o.detach().clone() for o in out]
            res += [p.grad.clone() for p in model.parameters() if p.grad is not None]
            opt.step()
    assert everything(model) == before and clean(model)
    return [*res, *model.state_dict().values(), torch.get_rng_state()]

def seq_net(kind, cell='LSTM', vocab=9, **kwargs):
    task = rf.SeqTask(kind, list('_bcdefghi')[:vocab], list('abcde'), 0 if kind != 'next' else None)
    return rf.sequence_model(task, cell, 6, **kwargs)

PAD_IDS = torch.tensor([[3, 4, 5, 6, 1], [3, 2, 0, 0, 0], [8, 7, 6, 0, 0]])
LEFT_IDS = torch.tensor([[3, 4, 5, 6, 1], [0, 0, 0, 3, 2], [0, 0, 8, 7, 6]])
def unpadded(ids): return [[i for i in r if i] for r in ids.tolist()]
TGT = torch.tensor([[0, 1, 2, 3], [0, 4, 4, 1], [0, 2, 1, 1]])
X = torch.linspace(-2, 2, 7*4*3).cos().view(7, 4, 3)
MODELS = {
    'LSTM': lambda: (build('LSTM'), lambda m: m(X)),
    'zoneout': lambda: (build('LSTM', zoneout_p=0.3), lambda m: m(X, None, LENGTHS)),
    'all drops': lambda: (build('GRU', num_layers=3, dropout=0.4, weight_p=0.5, bidirectional=True), lambda m: m(X)),
    'padded drops': lambda: (build('GRU', num_layers=3, dropout=0.4, weight_p=0.5, bidirectional=True),
                             lambda m: m(X, None, LENGTHS)),
    'sLSTM': lambda: (build('sLSTM', bidirectional=True, weight_p=0.3), lambda m: m(X)),
    'packed': lambda: (build('LSTM', num_layers=2, dropout=0.3),
                       lambda m: m(pack_padded_sequence(X, torch.tensor(LENGTHS), enforce_sorted=False))[0].data),
    'nn.LSTM': lambda: (build('LSTM', cls=nn.LSTM, num_layers=3, dropout=0.4, bidirectional=True), lambda m: m(X)),
    'nn.GRU packed': lambda: (build('GRU', cls=nn.GRU, num_layers=3, dropout=0.4), lambda m: m(
        pack_padded_sequence(X, torch.tensor(LENGTHS), enforce_sorted=False))[0].data),
    'nn.RNN no batch': lambda: (build('RNN', cls=nn.RNN, num_layers=2), lambda m: m(X[:, 0])),
    'LSTMCell': lambda: (Stepped(nn.LSTMCell(3, 4)), lambda m: m(PAD_IDS)),
    'our cell': lambda: (Stepped(get_cell('MogrifierLSTM')(3, 4)), lambda m: m(PAD_IDS)),
    'fastai': lambda: (ft.AWD_LSTM(12, 5, 6, 3), lambda m: m(PAD_IDS)),
    'LM': lambda: (get_language_model('AWD_LSTM', 12, dict(emb_sz=5, n_hid=6, n_layers=2)), lambda m: m(PAD_IDS)),
    'QRNN LM': lambda: (get_language_model('AWD_QRNN', 12, dict(emb_sz=5, n_hid=6, n_layers=2)), lambda m: m(PAD_IDS)),
    'next': lambda: (seq_net('next'), lambda m: m(PAD_IDS)),
    'many-to-one': lambda: (seq_net('many-to-one', bidirectional=True), lambda m: m(LEFT_IDS)),
    'many-to-many': lambda: (seq_net('many-to-many', num_layers=2, dropout=0.3), lambda m: m(PAD_IDS)),
    'one-to-many': lambda: (seq_net('one-to-many'), lambda m: m(torch.tensor([1, 2, 3]), TGT)),
    'encoder-decoder': lambda: (seq_net('encoder-decoder', attention=True, bidirectional=True),
                                lambda m: m(PAD_IDS, TGT)),
}
by_model = pytest.mark.parametrize('model', MODELS)
plain = contextlib.nullcontext

def built(name):
    torch.manual_seed(1)
    model,run = MODELS[name]()
    return model.train(),run

def recurrent_modules(model):
    return [m for m in model.modules() if isinstance(m, (Recurrent, nn.RNNBase, nn.RNNCellBase, rf.Cell))]

@by_model
def test_training_is_the_same_to_the_last_bit(model):
    want,ours = ran(model, lambda m: plain()),all(isinstance(m, Recurrent) for m in recurrent_modules(built(model)[0]))
    for p in (PARTS, 'h', *([('h', 'grad_h')] if ours else [])):
        got = ran(model, lambda m, p=p: capture(m, parts=p, pad=0))
        assert len(got) == len(want) and all(torch.equal(a, b) for a,b in zip(got, want, strict=True)), p

@by_model
def test_evaluation_is_the_same_to_the_last_bit(model):
    (model,run),(twin,_) = built(model),built(model)
    with torch.no_grad():
        torch.manual_seed(3)
        want,rng = tensors_of(run(twin.eval())),torch.get_rng_state()
        torch.manual_seed(3)
        with capture(model.eval(), parts=PARTS): got = tensors_of(run(model))
    assert all(torch.equal(a, b) for a,b in zip(got, want, strict=True)) and torch.equal(torch.get_rng_state(), rng)

class Stop(KeyboardInterrupt): pass

@by_model
@pytest.mark.parametrize('error', [ValueError, Stop])
def test_clean_after_errors(model, error, monkeypatch):
    model,run = built(model)
    before = everything(model)
    def breaks(*args, **kwargs): raise error
    with pytest.raises(error), capture(model): raise error         # in the block
    with pytest.raises(error), capture(model):                     # after a batch
        run(model)
        raise error
    assert everything(model) == before and clean(model)
    last = [m for m in model.modules() if not list(m.children())][-1]
    for m in (last, recurrent_modules(model)[-1]):       # in a forward, of whatever comes late
        with monkeypatch.context() as mp:
            mp.setattr(type(m), 'forward', breaks)
            with pytest.raises(error), capture(model) as rec: run(model)
        assert everything(model) == before and clean(model) and rec.n_steps == 0
    with capture(model) as rec: run(model)                         # and it can be captured again
    assert rec.n_steps > 0

@pytest.mark.parametrize('model', [m for m in MODELS if m != 'fastai'])   # which cannot be copied once it was called
def test_copies(model):
    model,run = built(model)
    model.eval()
    with capture(model, parts=PARTS) as rec:
        run(model)
        sd,twin,buf = model.state_dict(),copy.deepcopy(model),io.BytesIO()
        torch.save(model, buf)
        copies = [twin, pickle.loads(pickle.dumps(model)), torch.load(io.BytesIO(buf.getvalue()), weights_only=False)]
        want,n = tensors_of(run(model)),rec.n_steps
        for other in copies:
            assert all(torch.equal(a, b) for a,b in zip(tensors_of(run(other)), want, strict=True))
        assert rec.n_steps == n   # a copy writes nothing
    assert clean(model)
    for other in (*copies, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.load_state_dict(sd)
        assert all(torch.equal(a, b) for a,b in zip(tensors_of(run(other)), want, strict=True)) and rec.n_steps == n
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))): assert clean(other)

def plain_forward(module): return module.forward.__func__ is type(module).forward

def test_a_copy_made_meanwhile_captures_nothing():
    rnn = build('LSTM', batch_first=True)
    before = len(pickle.dumps(rnn))
    with capture(rnn):
        rnn(torch.randn(50, 99, 3))
        twin,size = copy.deepcopy(rnn),len(pickle.dumps(rnn))
    assert size < before + 5000   # the recording is not in the file
    x = weakref.ref(tensor_in := torch.randn(2, 3, 3))
    twin(tensor_in)
    del tensor_in
    gc.collect()
    assert x() is None and twin.watch is None and twin.forward.__self__ is twin and plain_forward(twin)

# ---- memory: nothing of a batch is held

@pytest.mark.parametrize('parts', [PARTS, ('h', 'grad_h')])
@pytest.mark.parametrize('make', [lambda: build('LSTM', num_layers=2, dropout=0.2), lambda: build('GRU', cls=nn.GRU)])
def test_no_graph_is_held(make, parts):
    rnn = make()
    if not isinstance(rnn, Recurrent) and 'grad_h' in parts: pytest.skip('for Recurrent alone')
    refs = []
    class Graph:   # dies with the graph that it is part of
        pass
    with capture(rnn, parts=parts):
        for _ in range(3):
            x = torch.randn(7, 4, 3, requires_grad=True)
            mark = Graph()
            y = x*1
            y.grad_fn.metadata['mark'] = mark
            out,_ = rnn(y)
            refs.append((weakref.ref(mark), weakref.ref(out)))
            if len(refs) != 2: out.pow(2).mean().backward()   # the second batch has no backward pass
            del x, y, out, mark, _
        gc.collect()
        assert all(r() is None for r,_ in refs[:-1]) and all(o() is None for _,o in refs)
    gc.collect()
    assert all(r() is None and o() is None for r,o in refs)

# ---- gradients of states

def taped(w, kind, x, s0, args):
    "A loop whose states keep their gradients."
    state,tape = s0,[]
    for t in x:
        _,state = PAPERS[kind](w, t, *state, **args)
        for s in state: s.retain_grad() if s.requires_grad else None
        tape.append(state)
    return tape

def check_grads(rec, rnn, kind, x, lengths, loss, args, drops=None, tol=1e-5):
    "`loss` takes outputs (bs,sl,features) and last states (cells,bs,features) in double precision."
    both,nl = rnn.bidirectional,rnn.num_layers
    below,lasts,tapes = [s.double() for s in rows(x, lengths, False)],[],[]
    for i,(_,back,suffix) in enumerate(suffixes(nl, both)):
        if i % (1+both) == 0: outs = [[] for _ in below]
        w = {n: p.requires_grad_() for n,p in weights(rnn, suffix, **(drops[i] if drops else {})).items()}
        tapes.append([taped(w, kind, s.flip(0) if back else s, zeros(kind, w, args), args) for s in below])
        for d,tape in enumerate(tapes[-1]):
            h = torch.stack([s[0] for s in tape])
            outs[d].append(h.flip(0) if back else h)
        lasts.append([tape[-1] for tape in tapes[-1]])
        if (i+1) % (1+both) == 0: below = [torch.cat(o, -1) for o in outs]
    out = nn.utils.rnn.pad_sequence(below, batch_first=True)
    last = tuple(torch.stack([torch.stack([r[e] for r in ends]) for ends in lasts]) for e in range(len(lasts[0][0])))
    loss(out, last).backward()
    for name,(_,back,_),cell_tapes in zip(names_of('recurrent', nl, both), suffixes(nl, both), tapes, strict=True):
        for d,tape in enumerate(cell_tapes):
            for e,s in enumerate(states_of(kind, args)):
                g = torch.stack([torch.zeros_like(st[e]) if st[e].grad is None else st[e].grad for st in tape])
                same(rec[name, f'grad_{s}', d], g.flip(0) if back else g, rtol=tol, atol=tol)

def squares(out, last): return (out.double()*torch.arange(out.size(-1))).pow(2).mean() + out.double().sin().sum()
def of_last(out, last): return (last[0][-1].double() - 0.5).pow(2).sum()
def of_all(out, last): return squares(out, last) + sum((i+1)*s.double().pow(2).sum() for i,s in enumerate(last))
LOSSES = dict(squares=squares, last=of_last, all=of_all)

def grad_parts(rnn): return tuple(f'grad_{s}' for s in rnn.cells[0].states)

@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize('extra', [dict(), dict(bidirectional=True, num_layers=2)], ids=label)
@by_case
def test_gradients(name, args, extra, loss):
    rnn,x = build(name, **args, **extra),torch.randn(7, 4, 3)
    if args.get('nonlinearity'): rnn = build(name, scale=0.3, **args, **extra)
    for lengths in (None, LENGTHS):
        with capture(rnn, parts=('h', *grad_parts(rnn))) as rec:
            out,last = rnn(x, None, lengths)
            LOSSES[loss](out.transpose(0, 1), tup(last)).backward()
        check_grads(rec, rnn, name, x, lengths or [7]*4, LOSSES[loss], args, tol=3e-5 if extra else 1e-5)

@pytest.mark.parametrize('backend', ['auto', 'loop'])
@pytest.mark.parametrize('name', ['LSTM', 'GRU', 'SRU', 'PeepholeLSTM', 'minLSTM'])
def test_gradients_while_training(name, backend):
    "Dropped weights, an optimizer that changes them in between, batches of many sizes, and one without backward."
    rnn = build(name, weight_p=0.5, num_layers=2, backend=backend)
    opt = torch.optim.Adam(rnn.parameters(), 0.1)
    xs,was = [torch.randn(sl, bs, 3) for sl,bs in ((7, 4), (3, 2), (5, 4), (6, 1))],[]
    with capture(rnn, parts=('h', *grad_parts(rnn))) as rec:
        for i,x in enumerate(xs):
            torch.manual_seed(i)
            drops = [{n: drop_weight(p, 0.5).detach() for n,p in c.named_parameters() if n in c.dropped}
                     for c in rnn.cells]
            was.append((drops, copy.deepcopy(rnn)))
            torch.manual_seed(i)
            out,last = rnn(x)
            if i == 2: continue
            opt.zero_grad()
            of_all(out.transpose(0, 1), tup(last)).backward()
            opt.step()
    assert clean(rnn)
    for i,(x,(drops,old)) in enumerate(zip(xs, was, strict=True)):
        docs = np.flatnonzero(rec.docs.batch == i)
        part = rec.select(docs)
        if i == 2: assert all(np.isnan(part[l, g]).all() for l in (0, 1) for g in grad_parts(rnn)); continue
        for c in old.modules(): c.__dict__.pop('watch', None), c.__dict__.pop('forward', None)
        check_grads(part, old, name, x, [len(x)]*x.size(1), of_all, {}, drops)

def test_gradients_through_carried_state_and_two_losses():
    rnn,x = build('GRU', batch_first=True),torch.randn(2, 6, 3)
    with capture(rnn, parts=('h', 'grad_h')) as rec:
        out,_ = rnn(x)
        (out[:, 2].sum() + out[:, 4].pow(2).sum()).backward()
    g = rec[0, 'grad_h', 1]
    assert (g[5] == 0).all() and (g[:5] != 0).any(1).all()
    with capture(rnn, parts=('h', 'grad_h')) as rec, torch.no_grad(): rnn(x)   # nothing to derive
    assert 'grad_h' not in rec.parts(0) or np.isnan(rec[0, 'grad_h']).all()

# ---- tokens: each document is what was read

class Reader(rf.Callback):
    "Writes down what the model is given: ids of each batch, and whether the state went on."
    order = 900
    def before_fit(self): self.rows = getattr(self, 'rows', [])
    def before_batch(self):
        self.rows.append((self.training, self.xb[0].clone().as_subclass(torch.Tensor), self.learn.rnn.state is None))

def streams(reads, pad=None):
    "Documents of a stream's rows: a row goes on until the state starts afresh."
    docs = []
    for training,ids,fresh in reads:
        if fresh: open_docs = [(training, []) for _ in ids]; docs += open_docs
        for doc,row in zip(open_docs, ids.tolist(), strict=False): doc[1].extend(i for i in row if i != pad)
    return [(t, d) for t,d in docs if d]

def numbers(n=24): return pd.DataFrame({'text': [' '.join(w for w in np.random.default_rng(i).choice(
    'one two three four five six'.split(), 5 + i % 7)) for i in range(n)]})

def quiet(learn):
    if hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
    learn.logger = rf.noop
    return learn

@pytest.fixture(scope='module')
def lm_dls():
    with pytest.MonkeyPatch.context() as m:
        m.setattr(fastai.text.core, 'parallelable', lambda *a, **k: False)
        return rf.TextDataLoaders.from_df(numbers(), is_lm=True, text_col='text', bs=3, seq_len=7, seed=0, device='cpu')

def lm_learner(dls, **kwargs):
    with rf.seeded(0): return quiet(rf.language_model_learner(
        dls, rf.AWD_LSTM, config=dict(emb_sz=6, n_hid=8, n_layers=2), pretrained=False, **kwargs))

def told(rec): return [(bool(t), rec.ids(d).tolist()) for d,t in enumerate(rec.docs.training)]

@pytest.mark.parametrize('as_callback', [True, False])
def test_language_model_training(lm_dls, as_callback):
    learn,reader = lm_learner(lm_dls),Reader()
    if as_callback:
        cb = HiddenStateCapture(parts='h')
        learn.fit(3, 1e-3, cbs=[cb, reader])
        rec = cb.recording
    else:
        with learn.capture(parts='h') as rec: learn.fit(3, 1e-3, cbs=reader)
    want = streams(reader.rows)
    assert sum(not t for t,_ in want) == 3*3 and told(rec) == want
    assert len({tuple(d) for t,d in want if t}) == 9   # shuffled: each epoch reads other rows
    assert rec.tokens(0) == [lm_dls.vocab[i] for i in want[0][1]] and clean(learn.model)
    assert set('one two three four five six xxbos'.split()) <= set(rec.split('xxbos').tokens())
    for d in range(len(rec)): assert rec.steps(d).tolist() == list(range(len(rec.ids(d))))

@pytest.mark.parametrize('when', ['train', 'valid'])
def test_callback_in_one_phase(lm_dls, when):
    learn,reader = lm_learner(lm_dls),Reader()
    cb = HiddenStateCapture(parts=('h', 'grad_h') if when == 'train' else 'h', when=when)
    learn.fit(2, 1e-3, cbs=[cb, reader])
    assert told(cb.recording) == [w for w in streams(reader.rows) if w[0] == (when == 'train')]
    if when == 'train':
        assert all(np.isfinite(cb.recording[l, 'grad_h']).all() for l in (0, 1))

@pytest.mark.parametrize('sizes', [(4, 2, 3), (1, 4, 1), (3, 3, 2)])
def test_state_fitted_to_another_batch_size(sizes):
    lm = get_language_model('AWD_GRU', 12, dict(emb_sz=5, n_hid=6, n_layers=2)).eval()
    state,reads,before = None,[],0
    with capture(lm, parts='h') as rec:
        for bs in sizes:
            ids = torch.randint(2, 12, (bs, 5))
            if state is not None: state = fit_state(state, bs)
            state = lm(ids, state).state
            reads.append((ids, min(before, bs)))   # so many rows go on, others start
            before = bs
    docs,rows = [],[]
    for ids,k in reads:
        rows = rows[:k] + [docs.append([]) or docs[-1] for _ in range(len(ids)-k)]
        for doc,r in zip(rows, ids.tolist(), strict=True): doc.extend(r)
    assert [rec.ids(d).tolist() for d in range(len(rec))] == docs

def test_generation_is_one_document(lm_dls):
    learn = lm_learner(lm_dls)
    for prompt,n in (('one two', 1), ('one two three', 6), ('four', 4)):
        with learn.capture(parts=('h', 'c')) as rec: text = learn.predict(prompt, n, no_bar=True, temperature=0)
        assert len(rec) == 1
        toks = rec.tokens(0)
        assert toks[:1+len(prompt.split())] == ['xxbos', *prompt.split()] and len(toks) == len(prompt.split()) + n
        assert text.split()[:len(toks)-1] == toks[1:] or 'xx' in ' '.join(toks[1:])
        whole = learn.model.eval()(torch.tensor([rec.ids(0).tolist()]))
        same(rec[-1, 'h', 0], whole.raw[0].detach())
    with learn.capture(parts='h') as rec:
        for prompt in ('one two', 'one two', 'six'): learn.predict(prompt, 3, no_bar=True)
    assert len(rec) == 3 and [rec.tokens(d)[:2] for d in range(3)] == [['xxbos', 'one']]*2 + [['xxbos', 'six']]

def test_record_is_each_text_alone(lm_dls):
    learn = lm_learner(lm_dls)
    texts = ['one two three', 'four', 'six five four three two one', 'two']
    learn.model.train()
    for bs in (1, 3, 16):
        rec = learn.record(texts, parts=('h', 'c', 'gates', 'logits'), bs=bs)
        assert [rec.tokens(d) for d in range(4)] == [['xxbos', *t.split()] for t in texts]
        for d in range(4):
            with rf.evaluating(learn.model), torch.no_grad(): out = learn.model(torch.tensor([rec.ids(d).tolist()]))
            same(rec['output', 'logits', d], out.logits[0])
            same(rec[-2, 'h', d], out.raw[0])
    assert all(m.training for m in learn.model.modules()) and clean(learn.model) and not rec.docs.training.any()

@pytest.mark.parametrize('ids', [PAD_IDS, LEFT_IDS], ids=['right', 'left'])
@pytest.mark.parametrize('kind', ['many-to-one', 'many-to-many'])
@pytest.mark.parametrize('bidirectional', [True, False])
def test_padding_is_not_recorded(kind, ids, bidirectional):
    if kind == 'many-to-many' and ids is LEFT_IDS: pytest.skip('tags are read with padding on the right')
    net = seq_net(kind, bidirectional=bidirectional).eval()
    with capture(net, parts=('x', 'states', 'gates', 'logits'), vocab=list('_bcdefghi'), pad=0) as rec: out = net(ids)
    want = unpadded(ids)
    assert [rec.ids(d).tolist() for d in range(3)] == want
    for d,w in enumerate(want):
        with capture(net, parts=('x', 'states', 'gates')) as alone: net(torch.tensor([w]))
        for key in alone.sizes: same(rec[(*key, d)], tensor(alone[key]))
        if kind == 'many-to-one':
            assert np.isnan(rec['output', 'logits', d, :-1]).all()
            same(rec['output', 'logits', d, -1], out[d].detach())
        else: same(rec['output', 'logits', d], out[d, :len(w)].detach())

def read_rows(dl, pad):
    return [[i for i in r if i != pad] for b in dl for r in b[0].as_subclass(torch.Tensor).tolist()]

def test_tagged_sentences():
    rng,words = np.random.default_rng(0),'the cat sat on mat'.split()
    sents = [rng.choice(words, rng.integers(1, 9)).tolist() for _ in range(30)]
    df = pd.DataFrame(dict(tokens=sents, tags=[[w[0] for w in s] for s in sents]))
    dls = rf.TagDataLoaders.from_df(df, bs=4, seed=1, min_freq=1, device='cpu')
    known = loaders_vocab(dls)
    vocab,pad = known['vocab'],known['pad']
    task = rf.SeqTask('many-to-many', list(vocab), list(dls.vocab[1]), pad)
    loss = ft.CrossEntropyLossFlat(ignore_index=rf.TAG_IGNORE)
    learn = quiet(ft.Learner(dls, rf.sequence_model(task, 'LSTM', 6, bidirectional=True), loss_func=loss))
    with learn.capture(parts=('h', 'x', 'logits')) as rec: learn.validate()
    want = read_rows(dls.valid, pad)
    assert [rec.ids(d).tolist() for d in range(len(rec))] == want and len(want) > 4
    assert sorted(map(str, rec.tokens())) == sorted(str(vocab[i]) for r in want for i in r)
    emb = learn.model.inp.weight.detach()
    for d,w in enumerate(want): same(rec['rnn.l0', 'x', d], emb[torch.tensor(w)])
    assert set(rec.tokens()) <= set(words) | {'xxbos', 'xxunk', 'xxeos'}

@pytest.mark.parametrize('attention', [True, False])
@pytest.mark.parametrize('bidirectional', [True, False])
def test_encoder_and_decoder_have_their_own_tokens(attention, bidirectional):
    xs = ['ab', 'abc', 'c', 'bbbb', 'cab', 'ac']
    ys = [s[::-1].upper() for s in xs]
    dls = rf.SeqDataLoaders.from_pairs(xs, ys, 'encoder-decoder', valid_pct=0, seed=0, device='cpu')
    learn = quiet(rf.rnn_learner(dls, 'GRU', 6, attention=attention, bidirectional=bidirectional))
    src,tgt,y = dls.valid.one_batch()
    with learn.capture(parts=('x', 'h')) as rec, torch.no_grad(): learn.model(src, tgt)
    encoder = [l for l in rec.layers if l.startswith('encoder.')][0]
    docs_of = {l: [d for d in range(len(rec)) if np.isfinite(rec[l, 'h', d]).any()] for l in (encoder, 'rnn')}
    assert len(docs_of['rnn']) == len(docs_of[encoder]) == 6 and not set(docs_of['rnn']) & set(docs_of[encoder])
    read = [[dls.task.vocab[i] for i in r if i != dls.task.pad] for r in src.tolist()]
    assert [rec.tokens(d) for d in docs_of[encoder]] == read and sorted(map(''.join, read)) == sorted(xs)
    emb = learn.model.inp.weight.detach()
    for d,r,n in zip(docs_of['rnn'], tgt.tolist(), (y != rf.IGNORE).sum(1).tolist(), strict=True):
        toks = rec.tokens(d)
        assert len(toks) >= n and toks == [dls.task.y_vocab[i] for i in r][:len(toks)]   # what fills up may be left out
        same(rec['rnn', 'x', d], emb[torch.tensor(r[:len(toks)])])
    with learn.capture('rnn', parts='h') as rec, torch.no_grad(): learn.model(src, tgt)
    assert len(rec) == 6 and rec.tokens(0)[0] == 'xxbos'

def test_predict_of_a_decoder():
    xs = ['ab', 'abc', 'c', 'bbbb']
    dls = rf.SeqDataLoaders.from_pairs(xs, [s[::-1] for s in xs], 'encoder-decoder', valid_pct=0, seed=0, device='cpu')
    learn = quiet(rf.rnn_learner(dls, 'LSTM', 6, attention=True))
    with learn.capture(parts='h') as rec: got = learn.predict('abc')
    assert ''.join(rec.tokens(0)) == 'abc' and clean(learn.model)
    read = rec.tokens(slice(1, None))   # what it wrote, one step late
    assert len(rec) == 2 and read[0] == 'xxbos' and [t for t in read if len(t) == 1] == got[:len(read)-1]

def test_one_hot_without_ids():
    rnn,ids = build('GRU', n_in=6, batch_first=True),torch.randint(6, (3, 5))
    with capture(rnn, parts='h', vocab=list('abcdef')) as rec: rnn(F.one_hot(ids, 6).float())
    assert rec.ids().tolist() == ids.flatten().tolist() and rec.tokens(0) == ['abcdef'[i] for i in ids[0]]
    with capture(rnn, parts='h', vocab=list('abcdef')) as rec: rnn(torch.randn(3, 5, 6))
    assert set(rec.ids().tolist()) == {-1} and rec.tokens() == ['']*15

class TimeFirst(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.emb,self.rnn = nn.Embedding(9, 3),layer
    def forward(self, ids): return self.rnn(self.emb(ids))[0]

@pytest.mark.parametrize('make', [lambda: nn.GRU(3, 4), lambda: Recurrent('GRU', 3, 4, num_layers=2)])
def test_sequence_first(make):
    net = TimeFirst(make())
    for sl,bs in ((7, 2), (2, 7), (5, 1), (1, 5)):
        ids = torch.randint(9, (sl, bs))
        with capture(net, parts=('x', 'h')) as rec: net(ids)
        assert [rec.ids(d).tolist() for d in range(len(rec))] == ids.T.tolist(), (sl, bs)
        for d in range(bs): same(rec[0, 'x', d], net.emb(ids)[:, d].detach())
    square = torch.randint(9, (4, 4))
    with pytest.raises(ValueError, match='batch_first'), capture(net, parts='h'): net(square)
    assert clean(net)
    with capture(net, parts=('x', 'h'), batch_first=False) as rec: net(square)
    assert [rec.ids(d).tolist() for d in range(4)] == square.T.tolist()
    batch_first = TimeFirst(build('GRU', batch_first=True))
    with capture(batch_first, parts=('x', 'h')) as rec: batch_first(square)
    assert [rec.ids(d).tolist() for d in range(4)] == square.tolist()

@pytest.mark.parametrize('axis', [0, 1])
def test_square_batches_of_stepped_cells(axis):
    net,ids = Stepped(nn.GRUCell(3, 4), axis=axis),torch.randint(9, (4, 4))
    with capture(net, parts=('x', 'h'), batch_first=axis == 1) as rec: net(ids)
    assert [rec.ids(d).tolist() for d in range(4)] == (ids if axis else ids.T).tolist()
    for d in range(4): same(rec[0, 'x', d], net.emb(ids if axis else ids.T)[d].detach())

@pytest.mark.parametrize('m', [rf, ft], ids=['ours', 'fastai'])
def test_text_classifier(m):
    df = pd.DataFrame(dict(text=numbers(30).text, label=['ab'[i % 2] for i in range(30)]))
    dls = m.TextDataLoaders.from_df(df, text_col='text', label_col='label', bs=4, seed=1, device='cpu')
    learn = m.text_classifier_learner(dls, rf.AWD_LSTM if m is rf else ft.AWD_LSTM, seq_len=4, pretrained=False,
                                      config=dict(ft.awd_lstm_clas_config, emb_sz=6, n_hid=8, n_layers=2))
    quiet(learn)
    vocab = list(dls.vocab[0])
    with capture(learn.model, parts=('x', 'h'), vocab=vocab, pad=vocab.index('xxpad')) as rec: learn.validate()
    want = [[i for i in r if i != 1] for x,_ in dls.valid for r in x.as_subclass(torch.Tensor).tolist()]
    got = Counter(tuple(rec.ids(d).tolist()) for d in range(len(rec)))
    assert 1 not in rec.ids() and got == Counter(map(tuple, want)) and clean(learn.model)
    learn.fit(1, 1e-3, cbs=HiddenStateCapture(parts='h'))
    assert clean(learn.model)
    with learn.capture(parts='h') as rec: learn.predict('one two three')
    assert rec.tokens() == ['xxbos', 'one', 'two', 'three']

# ---- budget

def feed(rnn, n=10, bs=2, sl=6, **kwargs):
    "A capture of `n` batches, each of which is told by its number."
    with warnings.catch_warnings(), capture(rnn, **{**dict(parts='h'), **kwargs}) as rec, torch.no_grad():
        warnings.simplefilter('ignore')
        for i in range(n):
            rnn(torch.full((sl, bs, 3), float(i)))
            assert rec.store.nbytes <= kwargs.get('budget', 2**30)
    return rec

BATCH = 6*2*(4*4 + 8)   # bytes of a batch: numbers, and an id for each step
def batches(rec): return rec.docs.batch.unique().tolist()

def test_stops_where_it_is_full():
    rnn = build('RNN')
    whole = feed(rnn)
    for k in (1, 3, 9):
        with pytest.warns(UserWarning, match=f'full after {k} batches') as w, \
             capture(rnn, parts='h', budget=k*BATCH) as rec:
            for i in range(10): rnn(torch.full((6, 2, 3), float(i)))
        assert len(w) == 1 and batches(rec) == list(range(k)) and len(rec.notes) == 1 and f'{k*BATCH:,}' in rec.notes[0]
        assert np.array_equal(rec[0, 'h'], whole[0, 'h', range(2*k)])
    assert feed(rnn, budget=10*BATCH).notes == [] and len(feed(rnn, budget=10*BATCH)) == 20

@pytest.mark.parametrize('k', [1, 2, 3, 5, 8])
@pytest.mark.parametrize('n', [1, 7, 16, 40])
def test_samples_where_it_is_full(k, n):
    rnn = build('RNN')
    rec,whole = feed(rnn, n, budget=k*BATCH, when_full='sample'),feed(rnn, n)
    stride = next(2**i for i in range(9) if len(range(0, n, 2**i)) <= k)
    assert batches(rec) == list(range(0, n, stride)) and rec.store.nbytes <= k*BATCH
    rows = [d for b in batches(rec) for d in (2*b, 2*b+1)]
    assert np.array_equal(rec[0, 'h'], whole[0, 'h', rows])
    assert (rec.notes == []) == (stride == 1) and all(str(stride) in note for note in rec.notes)

def test_sampled_batches_of_different_sizes():
    rnn,sizes = build('RNN'),[1, 4, 2, 7, 1, 1, 3, 5, 2, 6]
    for budget in (2000, 3000, 5000):
        with capture(rnn, parts='h', budget=budget, when_full='sample') as rec:
            for i,bs in enumerate(sizes):
                rnn(torch.full((6, bs, 3), float(i)))
                assert rec.store.nbytes <= budget
        kept = batches(rec)
        assert kept and kept[0] == 0 and len({b - a for a,b in zip(kept, kept[1:], strict=False)} | {1}) <= 2
        for b in kept: assert (rec.docs.batch == b).sum() == sizes[b]

@pytest.mark.parametrize('dtype', ['float32', 'float16'])
def test_spilt_files_equal_memory(tmp_path, dtype):
    net,ids = TimeFirst(build('LSTM', batch_first=True, num_layers=2)),[torch.randint(9, (bs, 5)) for bs in (3, 1, 4)]
    def go(**kwargs):
        with capture(net, parts='all', vocab=list('abcdefghi'), dtype=dtype, **kwargs) as rec, torch.no_grad():
            for i in ids: net(i)
        return rec
    rec,spilt = go(),go(when_full='spill', folder=tmp_path/'rec', budget=10**5)
    assert spilt.store.nbytes == 0
    for got in (spilt, Recording.load(tmp_path/'rec')):
        assert got.layers == rec.layers and got.tokens() == rec.tokens() and got.docs.equals(rec.docs)
        for key in rec.sizes: assert np.array_equal(got[key], rec[key]) and got[key].dtype == dtype
    with pytest.raises(FileExistsError): go(when_full='spill', folder=tmp_path/'rec')
    assert clean(net)

def test_half_precision_is_rounded_single():
    rnn,x = build('LSTM'),torch.randn(7, 4, 3)
    with capture(rnn, parts='all') as a: rnn(x)
    with capture(rnn, parts='all', dtype='float16') as b: rnn(x)
    for key in a.sizes: assert np.array_equal(a[key].astype(np.float16), b[key])
    assert 2*b.nbytes == a.nbytes

@pytest.mark.parametrize('steps', [slice(-1, None), slice(0, 1), slice(2, 5), slice(None, None, 3), slice(-3, -1),
                                   slice(9, None)], ids=str)
@pytest.mark.parametrize('lengths', [None, LENGTHS])
def test_some_steps(steps, lengths):
    rnn,x = build('LSTM', bidirectional=True),torch.randn(7, 4, 3)
    with capture(rnn, parts=PARTS) as whole: rnn(x, None, lengths)
    with capture(rnn, parts=PARTS, steps=steps) as rec: rnn(x, None, lengths)
    want = [d for d in range(4) if len(range((lengths or [7]*4)[d])[steps])]
    assert len(rec) == len(want)
    for i,d in enumerate(want):
        assert rec.steps(i).tolist() == list(range(len(whole.ids(d))))[steps]
        for key in rec.sizes: assert np.array_equal(rec[(*key, i)], whole[(*key, d)][steps])

@pytest.mark.parametrize('which', [slice(3), slice(1, 8, 3), slice(20, None), [0, 5, 9], []], ids=str)
def test_some_batches(which):
    rnn = build('RNN')
    rec,whole = feed(rnn, batches=which),feed(rnn)
    want = list(range(10)[which]) if isinstance(which, slice) else which
    assert batches(rec) == want
    if want: assert np.array_equal(rec[0, 'h'], whole[0, 'h', [d for b in want for d in (2*b, 2*b+1)]])

@pytest.mark.parametrize('when_full', ['stop', 'sample'])
@pytest.mark.parametrize('parts', ['h', ('h', 'grad_h'), ('x', 'h', 'logits')])
def test_a_batch_beyond_the_budget(parts, when_full):
    rnn = build('GRU')
    with pytest.raises(ValueError) as e, capture(rnn, parts=parts, budget=100, when_full=when_full) as rec:
        rnn(torch.randn(6, 2, 3))
    needed = [int(n.replace(',', '')) for n in str(e.value).split() if n[0].isdigit()]
    assert 'budget=100 ' in str(e.value) and max(needed) >= BATCH
    assert clean(rnn) and rec.n_steps == 0
    assert feed(rnn, parts=parts if 'grad_h' not in parts else 'h').n_steps == 120

def test_gradients_count(): # they come after the states, and are within the budget too
    rnn,x = build('GRU'),torch.randn(50, 4, 3)
    for when_full in ('stop', 'sample'):
        with warnings.catch_warnings(), capture(rnn, parts=('h', 'grad_h'), budget=20000, when_full=when_full) as rec:
            warnings.simplefilter('ignore')
            for _ in range(6):
                rnn(x)[0].sum().backward()
                assert rec.store.nbytes <= 20000
        assert rec.store.nbytes <= 20000 and len(rec) >= 4 and np.isfinite(rec[0, 'grad_h']).all()

PEAK = """
import sys, torch
from rnn_fastai.all import Recurrent
from rnn_fastai.inside.capture import capture
from contextlib import nullcontext
def peak(): return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM'))/1024
budget,when_full,on = int(sys.argv[1])*2**20,sys.argv[2],sys.argv[3] == 'on'
torch.set_num_threads(1)
torch.manual_seed(0)
rnn = Recurrent('LSTM', 32, 128, num_layers=2).eval()
x = torch.randn(64, 8, 32)
options = dict(parts=('states', 'gates'), budget=budget, when_full=when_full)
if len(sys.argv) > 4: options['folder'] = sys.argv[4]
with torch.no_grad():
    for _ in range(3): rnn(x)
    with capture(rnn, parts=('states', 'gates')): rnn(x[:2, :1])
    with capture(rnn, **options) if on else nullcontext():
        for _ in range(120): rnn(x)
print(peak())
"""
def peak(*args, **env):
    "Most memory, in MB, that a run of 120 batches (3 MB each, if captured) takes."
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore', **env}
    run = [sys.executable, '-c', PEAK, *map(str, args)]
    return float(subprocess.run(run, capture_output=True, text=True, env=env, check=True).stdout)

@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='reads /proc')
@pytest.mark.parametrize('mb,env', [(160, dict(MALLOC_MMAP_THRESHOLD_='65536')), (320, {})], ids=['160', '320, plain'])
def test_peak_of_memory(tmp_path, mb, env):
    "With glibc as it is, some 10 to 15 MB of holes between small objects come on top, whatever the budget."
    bare = peak(mb, 'stop', 'off', **env)
    over = [peak(mb, when_full, 'on', **env) - bare for when_full in ('stop', 'sample')]
    over.append(peak(mb, 'spill', 'on', tmp_path/'rec', **env) - bare + 120)   # of its budget it needs little
    assert max(over) <= 1.1*mb, over

def test_disk_full(tmp_path, monkeypatch):
    "Training goes on; what was written before can be read."
    from rnn_fastai.inside import recording
    for limit in (0, 700, 1500, 2500, 5000):
        rnn,left = build('GRU', batch_first=True),[limit]
        folder = tmp_path/str(limit)
        append = recording._GrowingFile.append
        def full(self, rows, append=append, left=left):
            left[0] -= np.asarray(rows).nbytes
            if left[0] < 0: raise OSError(28, 'No space left on device')
            append(self, rows)
        xs = [torch.randn(3, 5, 3) for _ in range(12)]
        with monkeypatch.context() as m, warnings.catch_warnings(record=True) as w:
            warnings.simplefilter('always')
            m.setattr(recording._GrowingFile, 'append', full)
            opt = torch.optim.SGD(rnn.parameters(), 0.1)
            outs = []
            with capture(rnn, parts=('h', 'x'), when_full='spill', folder=folder) as rec:
                for x in xs:
                    outs.append(rnn(x)[0])
                    opt.zero_grad(); outs[-1].pow(2).mean().backward(); opt.step()
        assert len(outs) == 12 and clean(rnn)
        assert [str(v.message) for v in w if 'No space left' in str(v.message)] and rec.notes
        n = len(batches(rec))
        assert n < 12 and len(rec) == 3*n
        if n:
            for got in (rec, Recording.load(folder)):
                assert np.array_equal(got[0, 'h'].reshape(3*n, 5, 4), torch.cat(outs[:n]).detach().numpy())
                assert np.array_equal(got[0, 'x'].reshape(3*n, 5, 3), torch.cat(xs[:n]).numpy())

FULL = """
import resource, signal, sys, torch, warnings
from rnn_fastai.all import Recurrent
from rnn_fastai.inside.capture import capture
from rnn_fastai.inside.recording import Recording
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
rnn = Recurrent('GRU', 3, 8, batch_first=True)
outs = []
with warnings.catch_warnings(record=True) as w, capture(rnn, when_full='spill', folder=sys.argv[1]) as rec:
    warnings.simplefilter('always')
    for i in range(100): outs.append(rnn(torch.randn(4, 5, 3))[0].detach())
assert len(w) == 1 and 'File too large' in str(w[0].message), [str(v.message) for v in w]
got = Recording.load(sys.argv[1])
n = len(got)//4
assert 0 < n < 100 and len(rec) == len(got), n
assert (got[0, 'h'].reshape(4*n, 5, 8) == torch.cat(outs[:n]).numpy()).all()
print('fine', n)
"""
@pytest.mark.skipif(sys.platform == 'win32', reason='no limit of file sizes')
@pytest.mark.slow
def test_file_too_large(tmp_path):
    out = subprocess.run([sys.executable, '-c', FULL, tmp_path/'rec'], capture_output=True, text=True)
    assert out.stdout.startswith('fine'), out.stderr

# ---- bad input

class NoBatch(nn.Module):
    "Reads every second of its ids: what it read cannot be told."
    def __init__(self):
        super().__init__()
        self.emb,self.rnn = nn.Embedding(9, 3),nn.GRU(3, 4, batch_first=True)
    def forward(self, ids): return self.rnn(self.emb(ids)[:, ::2])[0]

class Wrong(nn.Module):
    "Gives no tensor."
    def __init__(self):
        super().__init__()
        self.rnn,self.odd = nn.GRU(3, 4),nn.Identity()
    def forward(self, x):
        self.odd('text')
        return self.rnn(x)

BAD = [
    (dict(layers='rn'), ValueError, 'rnn.l0'), (dict(layers=['rnn', 'head']), ValueError, 'rnn.l1'),
    (dict(layers=7), ValueError, 'rnn.l0'), (dict(layers=-3), ValueError, 'rnn.l1'),
    (dict(layers='rnn.l2'), ValueError, 'rnn.l1'),
    (dict(parts='g'), ValueError, "'h'"), (dict(parts=('h', 'reset')), ValueError, "'reset'.*forget"),
    (dict(parts=()), ValueError, 'empty'), (dict(parts=[]), ValueError, 'empty'),
    (dict(parts='grad_x'), ValueError, 'grad_h'),
    (dict(dtype='float64'), ValueError, "'float16'"), (dict(dtype=torch.float16), ValueError, "dtype"),
    (dict(when_full='spil'), ValueError, "'spill'"), (dict(when_full='spill'), ValueError, 'folder'),
    (dict(folder='there'), ValueError, 'spill'), (dict(budget=0), ValueError, 'budget'),
    (dict(budget=-5), ValueError, 'budget'),
    (dict(steps=3), TypeError, 'slice'), (dict(steps=[0, 1]), TypeError, 'slice'),
    (dict(option=1), TypeError, 'option'),
]
@pytest.mark.parametrize('args,error,message', BAD, ids=lambda v: str(v) if isinstance(v, dict) else '')
def test_bad_options(args, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = TimeFirst(build('LSTM', num_layers=2))
    before = everything(net)
    with pytest.raises(error, match=f'(?s){message}'), capture(net, **args): net(torch.zeros(5, 2).long())
    assert everything(net) == before and clean(net) and not list(tmp_path.iterdir())

@pytest.mark.parametrize('parts', [None, 3, ('h', 3)])
def test_parts_that_are_no_names(parts):
    with pytest.raises((TypeError, ValueError), match='part'), capture(build('LSTM'), parts=parts): pass

@pytest.mark.parametrize('make', [lambda: nn.Linear(3, 4), nn.Sequential, lambda: nn.Sequential(nn.Tanh())])
def test_models_without_layers(make):
    with pytest.raises(ValueError, match='no recurrent layer'), capture(make()): pass

def test_other_modules_by_name():
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh())
    x = torch.randn(4, 7, 3)
    with capture(net, '0', parts='out') as rec: net(x)
    assert rec.layers == ['0'] and np.array_equal(rec[0, 'out'], net[0](x).detach().flatten(0, 1))
    lm = get_language_model('AWD_LSTM', 12, dict(emb_sz=5, n_hid=6, n_layers=2)).eval()
    ids = torch.randint(12, (3, 4))
    with capture(lm, ['0.encoder', '0.rnns'], parts=('h', 'out')) as rec: lm(ids)
    assert np.array_equal(rec['0.encoder', 'out'], lm[0].encoder(ids).detach().flatten(0, 1))
    assert rec.ids().tolist() == ids.flatten().tolist()
    assert rec.layers == ['0.encoder', '0.rnns.0', '0.rnns.1']

def test_compiled_and_scripted_models():
    rnn = build('GRU', cls=nn.GRU)
    wrapped = nn.Sequential(torch.compile(rnn))
    in_place = build('LSTM')
    in_place.compile()
    for model in (torch.compile(rnn), wrapped, in_place):
        with pytest.raises(TypeError, match='compiled.*Capture the module'), capture(model): pass
    with pytest.raises(TypeError, match='scripted'), capture(torch.jit.script(rnn)): pass
    traced = nn.Sequential(torch.jit.trace(nn.Linear(3, 4), torch.randn(2, 3)))
    with pytest.raises(TypeError, match='scripted'), capture(traced): pass
    assert clean(rnn)
    with capture(torch.compile(rnn)._orig_mod, parts='h') as rec: rnn(torch.randn(5, 2, 3))
    assert rec.n_steps == 10

def test_nested_captures():
    net,x = nn.ModuleDict(dict(a=build('LSTM'), b=build('GRU', cls=nn.GRU))),torch.randn(5, 2, 3)
    for inner in (net['a'], net['b']):
        with capture(net) as rec:
            with pytest.raises(RuntimeError, match='captured already'), capture(inner): pass
            inner(x)   # the outer one goes on
        assert rec.n_steps == 10 and clean(net)
    with capture(net['a']) as a, capture(net['b']) as b:   # others are free
        net['a'](x), net['b'](x)
    assert a.n_steps == b.n_steps == 10 and clean(net)
    with capture(net['a']), pytest.raises(RuntimeError, match='captured already'), capture(net): pass
    assert clean(net)

def test_two_captures_of_different_layers_of_a_model():
    net,ids = TimeFirst(build('LSTM', num_layers=2, batch_first=True)),torch.randint(9, (2, 5))
    want = net(ids)
    try:
        with capture(net, 'rnn.l0', parts='h') as a, capture(net, 'rnn.l1', parts='h') as b: got = net(ids)
    except RuntimeError as e: assert 'captured already' in str(e)
    else: assert torch.equal(got, want) and a.n_steps == b.n_steps == 10
    assert clean(net)

def test_the_batch_axis_is_unknown():
    net = NoBatch()
    with pytest.raises(ValueError, match='batch axis'), capture(net): net(torch.zeros(4, 6).long())
    assert clean(net) and len(net(torch.zeros(4, 6).long())) == 4
    wrong = Wrong()
    with pytest.raises(TypeError, match='odd gives str'), capture(wrong, 'odd', parts='out'):
        wrong(torch.randn(5, 2, 3))
    assert clean(wrong)

def test_gradients_of_torch_layers_are_refused():
    for make in (lambda: nn.GRU(3, 4), lambda: Stepped(nn.GRUCell(3, 4))):
        with pytest.raises(ValueError, match='from_torch|Recurrent'), capture(make(), parts='grad_h'): pass
    layer,x = nn.GRU(3, 4),torch.randn(5, 2, 3)
    rnn = Recurrent.from_torch(layer)
    with capture(rnn, parts=('h', 'grad_h')) as rec: rnn(x)[0].pow(2).mean().backward()
    check_grads(rec, rnn, 'GRU', x, [5, 5], lambda out, last: out.pow(2).mean(), {})

# ---- fastai's training loop

class Breaks(rf.Callback):
    "Raises at an event of a batch."
    def __init__(self, event, error, n=2):
        self.n,self.error = n,error
        setattr(self, event, self.stop)
    def stop(self):
        self.n -= 1
        if self.n == 0: raise self.error

EVENTS = ['before_batch', 'after_pred', 'after_loss', 'before_backward', 'after_backward', 'after_step', 'after_batch']
@pytest.mark.parametrize('event', EVENTS)
@pytest.mark.parametrize('error', [ValueError('broken'), KeyboardInterrupt()], ids=['error', 'interrupt'])
@pytest.mark.parametrize('parts', ['h', ('h', 'grad_h')], ids=str)
def test_clean_after_a_callback_raises(lm_dls, event, error, parts):
    learn = lm_learner(lm_dls)
    before = everything(learn.model)
    cb = HiddenStateCapture(parts=parts)
    with pytest.raises(type(error)): learn.fit(1, 1e-3, cbs=[cb, Breaks(event, error)])
    assert clean(learn.model)
    if event != 'before_batch': assert cb.recording.n_steps >= 21
    with pytest.raises(type(error)), learn.capture(parts=parts) as rec: learn.fit(1, 1e-3, cbs=Breaks(event, error))
    assert clean(learn.model) and rec.n_steps >= 21
    learn.model.train()
    assert everything(learn.model) == before

def test_cancelled_batches_and_fits(lm_dls):
    for cancel in (ft.CancelBatchException, ft.CancelTrainException, ft.CancelEpochException, ft.CancelFitException):
        for event in ('before_batch', 'after_pred', 'after_loss'):
            learn = lm_learner(lm_dls)
            cb = HiddenStateCapture(parts=('h', 'grad_h'))
            learn.fit(2, 1e-3, cbs=[cb, Breaks(event, cancel)])
            assert clean(learn.model) and np.isfinite(cb.recording[0, 'h']).all()

@pytest.mark.parametrize('how', ['callback', 'block'])
@pytest.mark.parametrize('parts', ['h', PARTS, ('h', 'grad_h')], ids=str)
def test_training_with_a_learner_is_the_same(lm_dls, how, parts):
    def trained(on):
        with rf.seeded(5):
            learn = lm_learner(lm_dls)
            cbs = HiddenStateCapture(parts=parts) if on and how == 'callback' else None
            with learn.capture(parts=parts) if on and how == 'block' else plain(): learn.fit_one_cycle(2, 1e-2, cbs=cbs)
            losses = [torch.tensor(float(v)) for r in learn.recorder.values for v in r]
            return [*learn.model.state_dict().values(), *losses, torch.get_rng_state()]
    want,got = trained(False),trained(True)
    assert all(torch.equal(a, b) for a,b in zip(got, want, strict=True))

@pytest.mark.parametrize('kind', seq_kinds)
@pytest.mark.parametrize('opts', [dict(), dict(num_layers=2, dropout=0.3, weight_p=0.3)], ids=label)
def test_learners_of_every_kind(kind, opts):
    seqs = ['ab', 'abc', 'c', 'bbbb', 'cab', 'ac']
    if kind == 'next':
        rows = [list('abcabCab'), list('bcabC'), list('cab')]
        dls = rf.SeqDataLoaders.from_series(rows, seq_len=3, device='cpu')
    else:
        ys = {'many-to-one': [s[0] for s in seqs], 'many-to-many': [s.upper() for s in seqs],
              'one-to-many': ['aa', 'bb', 'cc']*2, 'encoder-decoder': [s[::-1] for s in seqs]}[kind]
        xs = list('abc')*2 if kind == 'one-to-many' else seqs
        dls = rf.SeqDataLoaders.from_pairs(xs, ys, kind, valid_pct=0, seed=0, device='cpu', bs=4)
    def trained(on):
        with rf.seeded(5):
            learn = quiet(rf.rnn_learner(dls, 'LSTM', 6, **opts))
            cb = HiddenStateCapture(parts=('x', 'states', 'gates', 'grad_h'))
            learn.fit(2, 1e-2, cbs=cb if on else None)
            assert clean(learn.model)
            return learn,cb,[*learn.model.state_dict().values(), torch.get_rng_state()]
    (_,_,want),(learn,cb,got) = trained(False),trained(True)
    assert all(torch.equal(a, b) for a,b in zip(got, want, strict=True))
    rec = cb.recording
    assert {l.split('.')[0] for l in rec.layers} <= {'rnn', 'encoder'} and rec.n_steps > 0
    train = rec.docs.training.to_numpy()
    assert train.any() and not train.all()
    layer = rec.layers[-1]
    here = [d for d in np.flatnonzero(train) if np.isfinite(rec[layer, 'h', d]).any()]
    assert all(np.isfinite(rec[layer, 'grad_h', d]).all() for d in here)
    assert all(np.isnan(rec[layer, 'grad_h', d]).all() for d in np.flatnonzero(~train))   # no backward in validation
    item = 'a' if kind == 'one-to-many' else 'abc'
    if kind in ('next', 'many-to-one', 'many-to-many'):
        own = learn.record(['abc', 'ca'], parts=('x', 'states', 'gates'))
        assert [''.join(own.tokens(d)) for d in range(2)] == ['abc', 'ca']
    with learn.capture(parts='h') as rec: learn.predict(item)
    assert clean(learn.model) and rec.n_steps > 0
    if kind != 'one-to-many': assert ''.join(rec.tokens(0)) == 'abc'

def test_predict_goes_on_as_one_document_with_and_without_a_state():
    dls = rf.SeqDataLoaders.from_series('abcabcabc'*4, device='cpu')
    learn = quiet(rf.rnn_learner(dls, 'GRU', 6))
    with learn.capture(parts='h') as rec: text = learn.predict('abc', 5, temperature=0, no_bar=True)
    assert len(rec) == 1 and ''.join(rec.tokens(0)) == text[:-1]

# ---- called in odd ways

class Again(nn.Module):
    "Calls one layer step by step on its own: a step is not a document."
    def __init__(self, layer):
        super().__init__()
        self.emb,self.rnn = nn.Embedding(9, 3),layer
    def forward(self, ids):
        state,out = None,[]
        for t in range(ids.size(1)):
            o,state = self.rnn(self.emb(ids)[:, t:t+1], state)
            out.append(o)
        return torch.cat(out, 1)

class AgainOnce(Again):
    "The same, with one look-up."
    def forward(self, ids):
        state,out,x = None,[],self.emb(ids)
        for t in range(ids.size(1)):
            o,state = self.rnn(x[:, t:t+1], state)
            out.append(o)
        return torch.cat(out, 1)

@pytest.mark.parametrize('make', [lambda: nn.LSTM(3, 4, batch_first=True), lambda: build('LSTM', batch_first=True)])
def test_a_layer_called_step_by_step(make):
    net,ids = AgainOnce(make()),torch.randint(9, (3, 5))
    with capture(net, parts=PARTS) as rec: out = net(ids)
    assert [rec.ids(d).tolist() for d in range(len(rec))] == ids.tolist()
    for d in range(3): same(rec[0, 'h', d], out[d].detach())

def test_called_under_no_grad_inference_mode_and_with_keywords():
    rnn,x = build('LSTM', num_layers=2, bidirectional=True),torch.randn(7, 4, 3)
    with torch.inference_mode(), capture(rnn, parts=PARTS) as rec: rnn(x=x, lengths=torch.tensor(LENGTHS), state=None)
    check(rec, 'recurrent', rnn, 'LSTM', rows(x, LENGTHS, False))
    layer = build('LSTM', cls=nn.LSTM, num_layers=2)
    with torch.inference_mode(), capture(layer, parts=PARTS) as rec: layer(input=x, hx=None)
    check(rec, 'lstm', layer, 'LSTM', list(x.transpose(0, 1)))
    cell = build('GRU', cls=nn.GRUCell)
    with torch.inference_mode(), capture(cell, parts=PARTS) as rec: cell(input=x[0], hx=None)
    check(rec, 'grucell', cell, 'GRU', list(x[:1].transpose(0, 1)))

class ByKeyword(TimeFirst):
    "Names the arguments."
    def forward(self, ids): return self.rnn(input=self.emb(input=ids), hx=None)[0]

def test_an_embedding_called_by_keyword():
    net,ids = ByKeyword(nn.GRU(3, 4, batch_first=True)),torch.randint(9, (2, 5))
    with capture(net, parts='h') as rec: net(ids=ids)
    assert rec.ids().tolist() == ids.flatten().tolist()

@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16])
def test_models_of_other_types(dtype):
    tol = {} if dtype is torch.float64 else dict(rtol=0.05, atol=0.05)
    for rnn in (build('LSTM', num_layers=2), build('GRU'), build('LSTM', cls=nn.LSTM, num_layers=2),
                build('PeepholeLSTM')):
        rnn,x = rnn.to(dtype),torch.randn(7, 4, 3).to(dtype)
        try: want,_ = rnn(x)
        except RuntimeError: continue   # torch has no such kernel here
        with capture(rnn, parts=PARTS) as rec: out,_ = rnn(x)
        assert torch.equal(out, want) and rec[-1, 'h'].dtype == np.float32
        same(rec[-1, 'h'], out.detach().transpose(0, 1).flatten(0, 1).float())
        kind = 'LSTM' if isinstance(rnn, nn.LSTM) else type(rnn.cells[0]).__name__.removesuffix('Cell')
        check(rec, rec.layers[0].split('.')[0], rnn, kind, list(x.transpose(0, 1)), **tol)

def test_shared_layers_and_default_layers():
    rnn = build('GRU', batch_first=True)
    net = nn.ModuleDict(dict(a=rnn, b=rnn))
    with capture(net, parts='h') as rec: rnn(torch.randn(2, 5, 3))
    assert len(rec.layers) == 1 and clean(net)
    lm = get_language_model('AWD_GRU', 12, dict(emb_sz=5, n_hid=6, n_layers=3))
    for which,want in ((None, [0, 1, 2]), (0, [0]), (-1, [2]), ([0, 2], [0, 2]), ('0.rnns.1', [1]),
                       ('0.rnns', [0, 1, 2]), ('0', [0, 1, 2])):
        with capture(lm, which, parts='h') as rec: lm(torch.zeros(2, 3).long())
        assert rec.layers == [f'0.rnns.{i}' for i in want]

class Positions(nn.Module):
    "Looks positions up before tokens."
    def __init__(self, spread):
        super().__init__()
        self.pos,self.emb,self.spread = nn.Embedding(20, 3),nn.Embedding(9, 3),spread
        self.rnn = nn.GRU(3, 4, batch_first=True)
    def forward(self, ids):
        pos = torch.arange(ids.size(1))
        x = self.pos(pos.expand_as(ids) if self.spread else pos)
        return self.rnn(x + self.emb(ids))[0]

@pytest.mark.parametrize('spread', [True, False])
@pytest.mark.parametrize('bs', [1, 3])
def test_positions_are_no_tokens(spread, bs):
    net,ids = Positions(spread),torch.randint(1, 9, (bs, 5)).flip(1)
    ids[:, 0] = 8
    with capture(net, parts='h') as rec: net(ids)
    assert [rec.ids(d).tolist() for d in range(len(rec))] == ids.tolist()

class Masked(nn.Module):
    "Takes vectors and which of them count."
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)
    def forward(self, x, mask): return self.rnn(x*mask[..., None])[0]

def test_a_mask_is_no_token():
    net,mask = Masked(),torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    with capture(net, parts='h', vocab=['no', 'yes']) as rec: net(torch.randn(2, 5, 3), mask)
    assert set(rec.ids().tolist()) == {-1} and rec.n_steps == 10

def test_edits_are_seen():
    rnn,x = build('LSTM', num_layers=2),torch.randn(7, 4, 3)
    rnn.edit = lambda i, t, state: (state[0]*0.5, state[1]) if t == 3 and i == 0 else state
    want,_ = rnn(x)
    with capture(rnn, parts=PARTS) as rec: out,_ = rnn(x)
    del rnn.edit
    assert torch.equal(out, want)
    w = weights(rnn, '_l0')
    for d in range(4):
        state = zeros('LSTM', w, {})
        for t in range(7):
            gates,state = lstm(w, x[t, d].double(), *state)
            if t == 3: state = (state[0]*0.5, state[1])
            for k,v in (*gates.items(), *zip('hc', state, strict=True)): same(rec[0, k, d, t], v)
        same(rec[1, 'x', d], tensor(rec[0, 'h', d]))
        same(rec[1, 'h', d], out[:, d].detach())

def test_two_backward_passes_add_up():
    rnn,x = build('GRU', batch_first=True),torch.randn(2, 6, 3)
    with capture(rnn, parts=('h', 'grad_h')) as both:
        out,_ = rnn(x)
        (out[:, 2].sum() + out[:, 4].pow(2).sum()).backward()
    with capture(rnn, parts=('h', 'grad_h')) as rec:
        out,_ = rnn(x)
        out[:, 2].sum().backward(retain_graph=True)
        out[:, 4].pow(2).sum().backward()
    same(rec[0, 'grad_h'], tensor(both[0, 'grad_h']))

@pytest.mark.parametrize('name', ['LSTM', 'GRU', 'minGRU', 'MogrifierLSTM'])
@pytest.mark.parametrize('train', [True, False])
def test_gradients_with_zoneout(name, train):
    rnn,x,p = build(name, zoneout_p=0.4).train(train),torch.randn(7, 4, 3),0.4
    torch.manual_seed(2)
    u = torch.rand(7, 4, 4)   # one draw for all entries
    torch.manual_seed(2)
    with capture(rnn, parts=('h', *grad_parts(rnn))) as rec:
        out,_ = rnn(x)
        squares(out.transpose(0, 1), None).backward()
    w = {n: v.requires_grad_() for n,v in weights(rnn, '_l0').items()}
    tapes = []
    for d in range(4):
        state,tape = zeros(name, w, {}),[]
        for t in range(7):
            _,new = PAPERS[name](w, x[t, d].double(), *state)
            state = tuple(torch.where(u[t, d] < p, o, n) if train else p*o + (1-p)*n
                          for o,n in zip(state, new, strict=True))
            for s in state: s.retain_grad()
            tape.append(state)
        tapes.append(tape)
    squares(torch.stack([torch.stack([s[0] for s in tape]) for tape in tapes]), None).backward()
    for d,tape in enumerate(tapes):
        for e,s in enumerate(states_of(name, {})):
            g = torch.stack([torch.zeros_like(st[e]) if st[e].grad is None else st[e].grad for st in tape])
            same(rec[0, f'grad_{s}', d], g)

def test_a_failed_batch_leaves_no_trace():
    net = TimeFirst(build('LSTM', batch_first=True))
    a,b = torch.randint(9, (2, 5)),torch.randint(9, (3, 4))
    with capture(net, parts='h') as rec:
        net(a)
        with pytest.raises(IndexError): net(torch.full((2, 5), 99))
        with pytest.raises(ValueError): net.rnn(torch.randn(2, 5, 7))
        net(b)
    assert [rec.ids(d).tolist() for d in range(len(rec))] == a.tolist() + b.tolist() and clean(net)

def test_checkpointed_layers_are_recorded_once():
    from torch.utils.checkpoint import checkpoint
    class Net(TimeFirst):
        def forward(self, ids): return checkpoint(self.rnn, self.emb(ids), use_reentrant=False)[0]
    net,ids = Net(build('LSTM', batch_first=True)),torch.randint(9, (2, 5))
    want = net(ids)
    with capture(net, parts='h') as rec:
        out = net(ids)
        out.pow(2).mean().backward()
    assert torch.equal(out, want) and [rec.ids(d).tolist() for d in range(len(rec))] == ids.tolist()

def test_own_forward_and_hooks_stay():
    net,calls,ids = TimeFirst(build('GRU', batch_first=True)),[],torch.randint(9, (2, 5))
    inner = net.forward
    net.forward = mine = lambda ids: calls.append('forward') or inner(ids)
    handle = net.rnn.register_forward_hook(lambda *a: calls.append('hook'))
    with capture(net, parts='h') as rec: net(ids)
    assert calls == ['forward', 'hook'] and net.forward is mine and rec.n_steps == 10
    net(ids)
    assert calls == ['forward', 'hook']*2
    handle.remove()

@pytest.mark.parametrize('packed', [True, False])
def test_both_directions_without_packing(packed):
    "Right padding that the layer reads too: what is recorded is what it gave at the tokens."
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb = nn.Embedding(9, 3, padding_idx=0)
            self.rnn = nn.LSTM(3, 4, num_layers=2, batch_first=True, bidirectional=True)
        def forward(self, ids):
            x = self.emb(ids)
            if not packed: return self.rnn(x)[0]
            x = pack_padded_sequence(x, (ids != 0).sum(1), batch_first=True, enforce_sorted=False)
            return pad_packed_sequence(self.rnn(x)[0], batch_first=True)[0]
    net = Net()
    with capture(net, parts=('h', 'logits'), pad=0) as rec: out = net(PAD_IDS).detach()
    assert [rec.ids(d).tolist() for d in range(3)] == unpadded(PAD_IDS)
    for d,w in enumerate(unpadded(PAD_IDS)):
        same(rec['rnn.l1', 'h', d], out[d, :len(w), :4])
        same(rec['rnn.l1_reverse', 'h', d], out[d, :len(w), 4:])
        same(rec['output', 'logits', d], out[d, :len(w)])

def test_rows_of_padding_alone():
    net,ids = TimeFirst(nn.GRU(3, 4, batch_first=True)),torch.tensor([[3, 4, 5], [0, 0, 0], [6, 0, 0]])
    with capture(net, parts='h', pad=0) as rec: out = net(ids)
    assert [rec.ids(d).tolist() for d in range(len(rec))] == [[3, 4, 5], [6]] and rec.docs.row.tolist() == [0, 2]
    same(rec[0, 'h', 1], out[2, :1].detach())

def test_the_smallest_batches():
    for net in (TimeFirst(nn.GRU(3, 4, batch_first=True)), TimeFirst(build('LSTM')), Stepped(nn.GRUCell(3, 4))):
        with capture(net, parts=('h', 'logits')) as rec: net(torch.tensor([[4]]))
        assert rec.ids().tolist() == [4] and rec.n_steps == 1

def test_learned_first_state():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.h,self.rnn = nn.Parameter(torch.randn(1, 1, 4)),build('GRU')
        def forward(self, x): return self.rnn(x, self.h.expand(-1, x.size(1), -1).contiguous())[0]
    net,xs = Net(),[torch.randn(5, 3, 3) for _ in range(3)]
    for x in xs: net(x).pow(2).mean().backward()
    want = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    with capture(net, parts=('h', 'grad_h', 'x')) as rec:
        for x in xs: net(x).pow(2).mean().backward()
    assert len(rec) == 9 and all(torch.equal(p.grad, g) for p,g in zip(net.parameters(), want, strict=True))
    w,start = weights(net.rnn, '_l0'),(net.h[0, 0].detach().double(),)
    for d in range(9): same(rec[0, 'h', d], loop('GRU', w, xs[d//3][:, d % 3], start)[0]['h'])

def test_texts_of_fastais_loaders_with_labels_are_recorded():
    df = pd.DataFrame(dict(text=['the cat sat', 'a dog ran far', 'the dog sat']*8, label=['a', 'b', 'a']*8))
    dls = ft.TextDataLoaders.from_df(df, text_col='text', label_col='label', bs=4, seed=1, n_workers=1)
    rec = quiet(rf.rnn_learner(dls, 'GRU', n_hid=6)).record(['the cat sat', 'a dog'])
    assert [rec.tokens(d) for d in range(2)] == [['xxbos', 'the', 'cat', 'sat'], ['xxbos', 'a', 'dog']]
