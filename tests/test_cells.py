"Cells and `Recurrent`: against the papers' equations, torch's kernels and finite differences; properties and errors."
import copy
import io
import math
import pickle
from collections import OrderedDict
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.testing import assert_close

from rnn_fastai.generate.prepack import prepack
from rnn_fastai.models import cells as cells_module
from rnn_fastai.models import kernels, recurrent, steps
from rnn_fastai.models import packed as products
from rnn_fastai.models.cells import (
    Cell,
    GRUCell,
    LinearCell,
    LSTMCell,
    MinGRUCell,
    MogrifierLSTMCell,
    QRNNCell,
    RNNCell,
    cells,
    check_cell,
    get_cell,
)
from rnn_fastai.models.dropout import drop_weight
from rnn_fastai.models.packed import thin_linear
from rnn_fastai.models.padding import check_lengths, last_steps, reverse_padded
from rnn_fastai.models.recurrent import Recurrent
from rnn_fastai.models.scan import linear_scan

EXACT = dict(rtol=1e-10, atol=1e-10)
CASES = [('RNN', {}), ('RNN', dict(nonlinearity='relu')), ('LSTM', {}), ('LSTM', dict(proj_size=2)), ('GRU', {}),
         ('PeepholeLSTM', {}), ('PeepholeLSTM', dict(proj_size=2)), ('LayerNormLSTM', {}), ('MogrifierLSTM', {}),
         ('MogrifierLSTM', dict(rounds=2, proj_size=2)), ('sLSTM', {}), ('IndRNN', {}), ('SRU', {}), ('minGRU', {}),
         ('minLSTM', {}), ('QRNN', {}), ('QRNN', dict(window=1))]

def label(v): return ','.join(f'{k}={x}' for k,x in v.items()) or 'plain' if isinstance(v, dict) else str(v)
def has(cell, backend, **kwargs):
    try: return bool(Recurrent(cell, 2, 3, backend=backend, **kwargs))
    except ValueError: return False
RUNS = [(*case, b) for case in CASES for b in ('fused', 'scan', 'loop') if has(case[0], b, **case[1])]
by_case = pytest.mark.parametrize('name,args', CASES, ids=label)
by_run = pytest.mark.parametrize('name,args,backend', RUNS, ids=label)
by_few = pytest.mark.parametrize('name,backend', [('LSTM', 'fused'), ('GRU', 'fused'), ('sLSTM', 'loop'),
                                                  ('minGRU', 'scan')])

def build(name, n_in=3, hid=4, seed=0, dtype=torch.double, scale=0.6, **kwargs):
    "A layer with weights (gains and biases too) that are far from special values."
    torch.manual_seed(seed)
    rnn = Recurrent(name, n_in, hid, **kwargs)
    for p in rnn.parameters(): p.data.normal_(0, scale)
    return rnn.to(dtype)

def rand(*sz, **kwargs): return torch.randn(*sz, dtype=torch.double, **kwargs)
def tup(state): return state if isinstance(state, tuple) else (state,)
def like(state): return state if len(state) > 1 else state[0]
def rand_state(rnn, bs=None):
    "A state that a cell can be in: sLSTM's n is above zero."
    c,dtype,batch = rnn.cells[0],next(rnn.parameters()).dtype,[] if bs is None else [bs]
    state = [torch.randn(len(rnn.cells), *batch, n).to(dtype) for n in c.sizes]
    return tuple(s.abs() + 0.5 if n == 'n' else s for n,s in zip(c.states, state, strict=True))

def grads(y, ts, **kwargs): return torch.autograd.grad(y, ts, **kwargs)
def total(out, last):
    "A number that every output and every entry of the state has its own share in."
    out = out.data if isinstance(out, PackedSequence) else out
    return sum((s*torch.linspace(-1, 1, s.numel(), dtype=s.dtype).view(s.shape).cos()).sum() for s in (out, *tup(last)))

# ---- the papers' equations, literally: numpy, one sequence and one step at a time

class Weights(dict):
    "Block `k` of `n` of a parameter; zero where there is none."
    def __init__(self, cell): super().__init__({n: p.detach().numpy() for n,p in cell.named_parameters()})
    def __call__(self, name, k=0, n=1): return np.split(self[name], n)[k] if name in self else 0.

def sigmoid(x): return 1/(1 + np.exp(-x))
def norm(x, gain, bias): return gain*(x - x.mean())/np.sqrt(((x - x.mean())**2).mean() + 1e-5) + bias
def W(w, k, n, x): return w('weight_ih', k, n) @ x + w('bias_ih', k, n)
def U(w, k, n, h): return w('weight_hh', k, n) @ h + w('bias_hh', k, n)

def elman(w, x, h, nonlinearity='tanh'):   # Elman 1990
    a = W(w, 0, 1, x) + U(w, 0, 1, h)
    return (np.tanh(a) if nonlinearity == 'tanh' else np.maximum(a, 0),)

def lstm(w, x, h, c, proj_size=0):   # Gers 1999; the projection: Sak 2014
    i,f,o = (sigmoid(W(w, k, 4, x) + U(w, k, 4, h)) for k in (0, 1, 3))
    c = f*c + i*np.tanh(W(w, 2, 4, x) + U(w, 2, 4, h))
    m = o*np.tanh(c)
    return w('weight_hr') @ m if proj_size else m,c

def gru(w, x, h):   # Cho 2014, with cuDNN's reset gate
    r,z = (sigmoid(W(w, k, 3, x) + U(w, k, 3, h)) for k in (0, 1))
    n = np.tanh(W(w, 2, 3, x) + r*U(w, 2, 3, h))
    return ((1-z)*n + z*h,)

def peephole(w, x, h, c, proj_size=0):   # Graves 2013, equations 7-11
    ci,cf,co = w('weight_ch')
    i = sigmoid(W(w, 0, 4, x) + U(w, 0, 4, h) + ci*c)
    f = sigmoid(W(w, 1, 4, x) + U(w, 1, 4, h) + cf*c)
    c = f*c + i*np.tanh(W(w, 2, 4, x) + U(w, 2, 4, h))
    o = sigmoid(W(w, 3, 4, x) + U(w, 3, 4, h) + co*c)
    return w('weight_hr') @ (o*np.tanh(c)) if proj_size else o*np.tanh(c),c

def layer_norm_lstm(w, x, h, c):   # Ba 2016, supplement, equations 20-22
    a = norm(w('weight_hh') @ h, w('norm_hh'), w('bias_hh')) + norm(w('weight_ih') @ x, w('norm_ih'), w('bias_ih'))
    i,f,g,o = np.split(a, 4)
    c = sigmoid(f)*c + sigmoid(i)*np.tanh(g)
    return sigmoid(o)*np.tanh(norm(c, w('norm_c'), w('bias_c'))),c

def mogrifier(w, x, h, c, rounds=5, proj_size=0):   # Melis 2020, equations 1-2; their round i is our i-1
    for i in range(1, rounds+1):
        if i % 2: x = 2*sigmoid(w(f'weight_m{i-1}') @ h)*x
        else: h = 2*sigmoid(w(f'weight_m{i-1}') @ x)*h
    return lstm(w, x, h, c, proj_size)

def slstm(w, x, h, c, n, m):   # Beck 2024, equations 8-17
    i,f,z,o = (W(w, k, 4, x) + U(w, k, 4, h) for k in range(4))
    log_f = np.log(sigmoid(f))
    m_new = np.maximum(log_f + m, i)
    i,f = np.exp(i - m_new),np.exp(log_f + m - m_new)
    c,n = f*c + i*np.tanh(z),f*n + i
    return sigmoid(o)*(c/n),c,n,m_new

def indrnn(w, x, h): return (np.maximum(W(w, 0, 1, x) + w('weight_hh')*h, 0),)   # Li 2018

def sru(w, x, h, c):   # Lei 2018, equations 3-6; the package's bias of the candidate is not in the paper
    v,skip = w('weight_ch'),w('weight_ix') @ x if 'weight_ix' in w else x
    f,r = sigmoid(W(w, 1, 3, x) + v[0]*c),sigmoid(W(w, 2, 3, x) + v[1]*c)
    c = f*c + (1-f)*W(w, 0, 3, x)
    return r*c + (1-r)*skip,c

def min_gru(w, x, h):   # Feng 2024
    z = sigmoid(W(w, 0, 2, x))
    return ((1-z)*h + z*W(w, 1, 2, x),)

def min_lstm(w, x, h):   # Feng 2024
    f,i = sigmoid(W(w, 0, 3, x)),sigmoid(W(w, 1, 3, x))
    return (f/(f+i)*h + i/(f+i)*W(w, 2, 3, x),)

def qrnn(w, x, h, c, p=0., window=2):   # Bradbury 2016, fo-pooling; p: what the last input adds to the gates
    z,f,o = (W(w, k, 3, x) + (np.split(p, 3)[k] if window == 2 else 0.) for k in range(3))
    c = sigmoid(f)*c + (1-sigmoid(f))*np.tanh(z)
    return (sigmoid(o)*c,c) if window == 1 else (sigmoid(o)*c,c,w('weight_ip') @ x)

PAPERS = dict(RNN=elman, LSTM=lstm, GRU=gru, PeepholeLSTM=peephole, LayerNormLSTM=layer_norm_lstm, IndRNN=indrnn,
              SRU=sru, MogrifierLSTM=mogrifier, sLSTM=slstm, minGRU=min_gru, minLSTM=min_lstm, QRNN=qrnn)

def test_every_cell_is_swept(): assert set(cells) == set(PAPERS) == {n for n,_ in CASES}

@pytest.mark.parametrize('n_in', [3, 4])
@pytest.mark.parametrize('bias', [True, False])
@by_run
def test_equations(name, args, backend, bias, n_in):
    rnn = build(name, n_in, bias=bias, backend=backend, **args)
    x,state = rand(9, 2, n_in),rand_state(rnn, 2)
    out,last = rnn(x, like(state))
    w = Weights(rnn.cells[0])
    for b in range(2):
        s = tuple(e[0, b].numpy() for e in state)
        for t in range(9):
            s = PAPERS[name](w, x[t, b].numpy(), *s, **args)
            assert_close(out[t, b], torch.from_numpy(s[0]), **EXACT)
        for got,want in zip(tup(last), s, strict=True): assert_close(got[0, b], torch.from_numpy(want), **EXACT)

@by_case
def test_a_cell_alone_takes_the_same_steps(name, args):
    rnn = build(name, **args)
    x,state = rand(5, 2, 3),rand_state(rnn, 2)
    out,last = rnn(x, like(state))
    s,alone = like(tuple(e[0] for e in state)),like(tuple(e[0, 1] for e in state))
    for t in range(5):
        s,alone = rnn.cells[0](x[t], s),rnn.cells[0](x[t, 1], alone)
        assert_close(tup(s)[0], out[t], **EXACT), assert_close(tup(alone)[0], out[t, 1], **EXACT)
    for a,b in zip(tup(s), tup(last), strict=True): assert_close(a, b[0], **EXACT)

def plain_slstm(w, x, h, c, n):
    "Beck's equations without the stabiliser."
    i,f,z,o = (W(w, k, 4, x) + U(w, k, 4, h) for k in range(4))
    c,n = sigmoid(f)*c + np.exp(i)*np.tanh(z),sigmoid(f)*n + np.exp(i)
    return sigmoid(o)*c/n,c,n

@pytest.mark.parametrize('shift', [0., 30., -30., -200.])
@pytest.mark.parametrize('dtype', [torch.double, torch.float])
def test_the_stabiliser_changes_nothing(shift, dtype):
    "An input gate of e^-200 is no number but zero in float32; h is the same nonetheless."
    rnn = build('sLSTM', scale=0.4)
    rnn.cells[0].bias_ih.data[:4] += shift
    w,x,s = Weights(rnn.cells[0]),rand(6, 3),(np.zeros(4),)*3
    out = copy.deepcopy(rnn).to(dtype)(x.to(dtype))[0].double()
    for t in range(6):
        s = plain_slstm(w, x[t].numpy(), *s)
        assert_close(out[t], torch.from_numpy(s[0]), **(EXACT if dtype == torch.double else dict(rtol=1e-4, atol=1e-5)))

# ---- gradients against finite differences

def check_grads(rnn, lengths=None, only_last=False, fast=True, sl=3):
    "With `fast`, one random product with the whole Jacobian; otherwise each of its entries."
    torch.manual_seed(1)
    bs = 2 if fast else 1
    x,state,names = rand(sl, bs, rnn.input_size),rand_state(rnn, bs),[n for n,_ in rnn.named_parameters()]
    ts,n = [x, *state, *rnn.parameters()],len(state) + 1
    def run(flat):
        torch.manual_seed(2)   # the same masks in every call
        x,*rest = (f.view(t.shape) for f,t in zip(flat.split([t.numel() for t in ts]), ts, strict=True))
        ws = dict(zip(names, rest[n-1:], strict=True))
        out,last = functional_call(rnn, ws, (x, like(tuple(rest[:n-1]))), dict(lengths=lengths))
        return torch.cat([t.flatten() for t in (tup(last) if only_last else (out, *tup(last)))])
    return torch.autograd.gradcheck(run, torch.cat([t.detach().flatten() for t in ts]).requires_grad_(), fast_mode=fast)

@by_run
def test_gradcheck(name, args, backend): assert check_grads(build(name, 2, 3, backend=backend, **args), fast=False, sl=2)

@pytest.mark.parametrize('lengths', [None, [2, 4], [1, 3]], ids=label)
@by_run
def test_gradcheck_both_ways_and_padded(name, args, backend, lengths):
    rnn = build(name, 2, 3, backend=backend, num_layers=2, bidirectional=True, **args)
    assert check_grads(rnn, lengths, sl=4)

@by_run
def test_gradcheck_of_last_states(name, args, backend):
    assert check_grads(build(name, 2, 3, backend=backend, **args), [3, 1], only_last=True)

@by_run
def test_gradcheck_in_training(name, args, backend):
    assert check_grads(build(name, 2, 3, backend=backend, num_layers=2, dropout=0.4, weight_p=0.4, **args))
    if backend != 'loop': return
    rnn = build(name, 2, 3, bidirectional=True, zoneout_p=0.4, **args)
    assert check_grads(rnn, [3, 2]) and check_grads(rnn.eval(), [3, 2])

@pytest.mark.parametrize('sz', [(1, 1, 1), (2, 2, 3), (5, 1, 2), (3, 40, 128)], ids=str)
def test_gradcheck_of_the_scan(sz):
    torch.manual_seed(0)
    ts = [rand(*s, requires_grad=True) for s in (sz, sz, sz[1:])]
    assert torch.autograd.gradcheck(linear_scan, ts, fast_mode=sz[1] > 2)
    turned = [t.detach().transpose(-1, -2).contiguous().requires_grad_() for t in ts]
    def run(a, b, s): return linear_scan(a.transpose(1, 2), b.transpose(1, 2), s.T)[::2]
    assert torch.autograd.gradcheck(run, turned, fast_mode=True)

# ---- torch's own layers

KINDS = dict(tanh=(nn.RNN, 'RNN', dict(nonlinearity='tanh')), relu=(nn.RNN, 'RNN', dict(nonlinearity='relu')),
             LSTM=(nn.LSTM, 'LSTM', {}), proj=(nn.LSTM, 'LSTM', dict(proj_size=2)), GRU=(nn.GRU, 'GRU', {}))
FORMS = dict(plain=None, alone=None, padded=[4, 2, 4, 1], sorted=[3, 3, 2, 1], unsorted=[2, 4, 2, 3])

def torchs(ref, x, state, form):
    "Output and last state of torch's layer, which takes padding only as a packed sequence."
    if FORMS[form] is None: return ref(x, state)
    packed = pack_padded_sequence(x, FORMS[form], ref.batch_first, enforce_sorted=form == 'sorted')
    out,last = ref(packed, state)
    return pad_packed_sequence(out, ref.batch_first, total_length=4)[0] if form == 'padded' else out,last

def ours(rnn, x, state, form):
    if FORMS[form] is None: return rnn(x, state)
    if form == 'padded': return rnn(x, state, lengths=FORMS[form])
    return rnn(pack_padded_sequence(x, FORMS[form], rnn.batch_first, enforce_sorted=form == 'sorted'), state)

def same_output(a, b, **tol):
    assert isinstance(a, PackedSequence) == isinstance(b, PackedSequence)
    for p,q in zip(*((o if isinstance(o, PackedSequence) else [o]) for o in (a, b)), strict=True):
        if p is not None or q is not None: assert_close(p, q, **tol)

@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('bidirectional', [False, True])
@pytest.mark.parametrize('num_layers', [1, 2, 3])
@pytest.mark.parametrize('kind', KINDS)
def test_equals_torch(kind, num_layers, bidirectional, bias):
    cls,name,args = KINDS[kind]
    args = dict(args, num_layers=num_layers, bidirectional=bidirectional, bias=bias)
    for batch_first in (False, True):
        torch.manual_seed(0)
        ref = cls(3, 4, batch_first=batch_first, **args).double()
        rnn = Recurrent(name, 3, 4, batch_first=batch_first, **args).double()
        rnn.load_state_dict(ref.state_dict())
        for form,with_state in product(FORMS, (False, True)):
            x = rand(*((4, 3) if form == 'alone' else (4, 4, 3)), requires_grad=True)
            entries = tuple(s.requires_grad_() for s in rand_state(rnn, None if form == 'alone' else 4))
            state = like(entries) if with_state else None
            ts = [x, *entries] if with_state else [x]
            out,last = torchs(ref, x, state, form)
            want = grads(total(out, last), [*ts, *ref.parameters()])
            for rnn.backend in ('fused', 'loop'):
                got,got_last = ours(rnn, x, state, form)
                same_output(got, out, **EXACT), assert_close(got_last, last, **EXACT)
                for p,q in zip(grads(total(got, got_last), [*ts, *rnn.parameters()]), want, strict=True):
                    assert_close(p, q, **EXACT)

@pytest.mark.parametrize('kind', KINDS)
def test_same_seed_same_weights_and_stream(kind):
    cls,name,args = KINDS[kind]
    for more in (dict(), dict(num_layers=2, bidirectional=True), dict(num_layers=2, bias=False)):
        torch.manual_seed(3); ref = cls(3, 4, **args, **more); after = torch.rand(1)
        torch.manual_seed(3); rnn = Recurrent(name, 3, 4, **args, **more)
        assert_close(torch.rand(1), after, rtol=0, atol=0)   # building draws no more than torch does
        assert list(rnn.state_dict()) == list(ref.state_dict())
        for p,q in zip(rnn.parameters(), ref.parameters(), strict=True): assert_close(p, q, rtol=0, atol=0)

@pytest.mark.parametrize('bidirectional', [False, True])
@pytest.mark.parametrize('kind', KINDS)
def test_dropout_draws_as_torch_does(kind, bidirectional):
    cls,name,args = KINDS[kind]
    args = dict(args, num_layers=3, bidirectional=bidirectional, dropout=0.4)
    for batch_first in (False, True):
        ref = cls(3, 4, batch_first=batch_first, **args).double()
        rnn = Recurrent(name, 3, 4, batch_first=batch_first, **args).double()
        rnn.load_state_dict(ref.state_dict())
        x = rand(6, 5, 3)
        torch.manual_seed(1); want = ref(x)
        for rnn.backend in ('fused', 'loop'):
            torch.manual_seed(1); assert_close(rnn(x), want, **EXACT)

@pytest.mark.parametrize('kind', KINDS)
def test_equals_torch_in_float32(kind):
    cls,name,args = KINDS[kind]
    ref = cls(3, 4, 2, bidirectional=True, **args)
    rnn = Recurrent(name, 3, 4, 2, bidirectional=True, **args)
    rnn.load_state_dict(ref.state_dict())
    x = torch.randn(70, 3, 3)
    for rnn.backend,train in product(('fused', 'loop'), (True, False)):
        with torch.set_grad_enabled(train): assert_close(rnn.train(train)(x), ref.train(train)(x), rtol=1e-5, atol=1e-5)

# ---- chunks, batch-mates, padding, lengths

@by_run
def test_chunked_equals_whole(name, args, backend):
    rnn = build(name, num_layers=2, backend=backend, **args)
    x,state = rand(13, 2, 3),like(rand_state(rnn, 2))
    whole,last = rnn(x, state)
    for cuts in ([1]*13, [5, 8], [12, 1], [1, 12], [3, 1, 4, 5]):
        s,outs = state,[]
        for part in x.split(cuts):
            out,s = rnn(part, s)
            outs.append(out)
        assert_close(torch.cat(outs), whole, **EXACT), assert_close(s, last, **EXACT)

def unpadded(rnn, x, lengths, state):
    "Each sequence alone."
    for b,n in enumerate(lengths): yield b,n,rnn(x[:n, b], like(tuple(s[:, b] for s in state)))

@by_run
def test_batch_mates_do_not_matter(name, args, backend):
    rnn = build(name, num_layers=2, bidirectional=True, backend=backend, **args)
    x,state,lengths = rand(6, 4, 3),rand_state(rnn, 4),[6, 1, 4, 2]
    out,last = rnn(x, like(state), lengths)
    for b,n,(alone,s) in unpadded(rnn, x, lengths, state):
        assert_close(out[:n, b], alone, **EXACT)
        assert_close(out[n:, b], torch.zeros_like(out[n:, b]), **EXACT)
        for p,q in zip(tup(last), tup(s), strict=True): assert_close(p[:, b], q, **EXACT)
    perm = torch.tensor([2, 0, 3, 1])
    out2,last2 = rnn(x[:, perm], like(tuple(s[:, perm] for s in state)), torch.tensor(lengths)[perm])
    assert_close(out2, out[:, perm], **EXACT), assert_close(last2, like(tuple(s[:, perm] for s in tup(last))), **EXACT)

def check_padding(rnn, *junk):
    x,lengths,state = rand(6, 3, 3),[6, 2, 4],like(rand_state(rnn, 3))
    pad = torch.arange(6)[:, None] >= torch.tensor(lengths)
    res = []
    for fill in (0., *junk):
        out,last = rnn(x.masked_fill(pad[..., None], fill), state, lengths)
        res.append((out, last, grads(total(out, last), list(rnn.parameters()))))
        assert_close(res[-1], res[0], **EXACT, msg=lambda m, f=fill: f'{f} in padding: {m}')

@by_run
def test_huge_padding_does_not_matter(name, args, backend):
    check_padding(build(name, num_layers=2, bidirectional=True, backend=backend, **args), 1e3, -1e6, 1e9, -1e30)

@by_few
def test_padding_that_is_no_number_does_not_matter(name, backend):
    "Neither to outputs and states nor to gradients: torch's packed sequences leave padding out."
    check_padding(build(name, num_layers=2, bidirectional=True, backend=backend), math.inf, math.nan)

@pytest.mark.parametrize('name,args', [('RNN', dict(nonlinearity='relu')), ('IndRNN', {})], ids=label)
def test_what_grows_over_padding_reaches_no_gradient(name, args):
    "A state that doubles at each step overflows in 400 steps of padding, none of which is real."
    rnn = Recurrent(name, 2, 2, **args)
    for p in rnn.parameters(): nn.init.ones_(p)
    nn.init.constant_(rnn.cells[0].weight_hh, 2.)
    x = torch.ones(400, 2, 2)
    x[:, 1] = 0.
    res = []
    for sl in (3, 400):
        out,last = rnn(torch.cat([x[:3], torch.zeros(sl-3, 2, 2)]), lengths=[3, 2])
        res.append(grads(last.sum(), list(rnn.parameters())))
    for p,q in zip(*res, strict=True): assert_close(p, q)

@pytest.mark.parametrize('name', ['LSTM', 'sLSTM', 'minGRU'])
def test_check_nan_leaves_padding_alone(name):
    rnn = build(name, num_layers=2, bidirectional=True, check_nan=True)
    for junk in (math.nan, math.inf):
        x = rand(4, 2, 3)
        x[2:, 1] = junk
        rnn(x, lengths=[4, 2])

@pytest.mark.parametrize('cell', ['LSTM', 'GRU', 'minGRU', 'sLSTM'])
def test_lengths_of_any_kind(cell):
    rnn,x,lens = build(cell, bidirectional=True),rand(6, 3, 3),[5, 2, 4]
    want = rnn(x, lengths=lens)
    kinds = (tuple, torch.tensor, np.array, partial(torch.tensor, dtype=torch.int32),
             partial(torch.tensor, dtype=torch.uint8), partial(np.array, dtype=np.int32),
             partial(np.array, dtype=np.int16))
    for kind in kinds: assert_close(rnn(x, lengths=kind(lens)), want, rtol=0, atol=0)
    strided = torch.tensor([5, 0, 2, 0, 4, 0])[::2]
    assert_close(rnn(x, lengths=strided), want, rtol=0, atol=0)
    assert_close(rnn(x, lengths=[6, 6, 6]), rnn(x), rtol=0, atol=0)
    rnn.batch_first = True
    assert_close(rnn(x.transpose(0, 1), lengths=lens)[0], want[0].transpose(0, 1), rtol=0, atol=0)

@by_case
def test_packing(name, args):
    "A packed sequence gives what lengths give, in torch's layout, whatever the cell."
    rnn = build(name, num_layers=2, bidirectional=True, batch_first=True, **args)
    x,lens,state = rand(4, 5, 3),[2, 4, 1, 4],like(rand_state(rnn, 4))
    packed = pack_padded_sequence(x, lens, True, enforce_sorted=False)
    out,last = rnn(packed, state)
    want,want_last = rnn(x, state, lens)
    assert_close((pad_packed_sequence(out, True, total_length=5)[0], last), (want, want_last), **EXACT)
    for a,b in zip(out[1:], packed[1:], strict=True): assert a is b

def test_helpers_of_padding():
    x = rand(5, 3, 2, requires_grad=True)
    lens = torch.tensor([5, 1, 3])
    y = reverse_padded(x, lens)
    for b,n in enumerate(lens): assert_close(y[:, b], torch.cat([x[:n, b].flip(0), x[n:, b]]), rtol=0, atol=0)
    assert_close(reverse_padded(x), x.flip(0), rtol=0, atol=0)
    assert_close(last_steps(x, lens), torch.stack([x[4, 0], x[0, 1], x[2, 2]]), rtol=0, atol=0)
    assert torch.autograd.gradcheck(lambda x: (reverse_padded(x, lens), last_steps(x, lens)), x)
    assert check_lengths(np.int64([3, 3]), 2, 3) is None and check_lengths((3, 1), 2, 3).dtype == torch.int64

# ---- inputs of every make

@by_run
def test_inputs_that_are_not_contiguous(name, args, backend):
    rnn = build(name, num_layers=2, backend=backend, **args)
    x,state = rand(5, 2, 3),rand_state(rnn, 2)
    want = rnn(x, like(state), [5, 3])
    odd = [torch.stack([x, x], -1)[..., 0], x.permute(2, 0, 1).contiguous().permute(1, 2, 0), x.flip(0).flip(0)]
    states = tuple(s.permute(2, 1, 0).contiguous().permute(2, 1, 0) for s in state)
    for y in odd: assert_close(rnn(y, like(states), [5, 3]), want, **EXACT)
    one = x[:1, :1].expand(5, 2, 3)
    assert_close(rnn(one), rnn(one.contiguous()), **EXACT)

@by_run
def test_the_smallest_sizes(name, args, backend):
    for sl,bs,n_in,hid in product((1, 2), (1, 2), (1, 3), (1, 4)):
        if hid == 1 and 'proj_size' in args: continue
        rnn = build(name, n_in, hid, backend=backend, bidirectional=True, **args)
        x = rand(sl, bs, n_in)
        (out,last),(out2,last2) = rnn(x),rnn(x, lengths=[1]*bs)
        assert out.shape == (sl, bs, 2*rnn.cells[0].sizes[0]) and [s.shape for s in tup(last)] == \
               [(2, bs, n) for n in rnn.cells[0].sizes]
        assert out.isfinite().all()
        alone,s = rnn(x[:, 0])
        assert_close(alone, out[:, 0], **EXACT)
        assert [t.shape for t in tup(s)] == [(2, n) for n in rnn.cells[0].sizes]
        if sl == 1: assert_close((out2, last2), (out, last), **EXACT)

@by_run
def test_other_types(name, args, backend):
    rnn = build(name, num_layers=2, bidirectional=True, backend=backend, scale=0.3, **args)
    x = rand(6, 3, 3)
    want,_ = rnn(x)
    for dtype,tol in ((torch.float, 1e-5), (torch.bfloat16, 0.1)):
        r = copy.deepcopy(rnn).to(dtype)
        for lengths in (None, [6, 2, 3]):
            out,last = r(x.to(dtype), like(tuple(torch.zeros_like(s) for s in rand_state(r, 3))), lengths)
            assert {out.dtype, *(s.dtype for s in tup(last))} == {dtype}
            assert_close(out[:, 0].double(), want[:, 0], rtol=0, atol=tol)
            gs = grads(total(out.float(), [s.float() for s in tup(last)][0]), list(r.parameters()))
            assert all(g.isfinite().all() for g in gs)

@pytest.mark.parametrize('kwargs', [{}, dict(zoneout_p=0.2), dict(weight_p=0.2)], ids=label)
@by_run
def test_autocast(name, args, backend, kwargs):
    "Mixed precision, in training and evaluation, from a state of zeros and from one that is passed on."
    if 'zoneout_p' in kwargs and backend != 'loop': return
    rnn = build(name, num_layers=2, backend=backend, dtype=torch.float, scale=0.3, **kwargs, **args)
    x = torch.randn(5, 2, 3)
    for train in (True, False):
        rnn.train(train)
        with torch.autocast('cpu', torch.bfloat16):
            state = rnn(x)[1]
            out,_ = rnn(x, state, [5, 3])
        gs = grads(out.float().sum(), list(rnn.parameters()))
        assert all(g.isfinite().all() for g in gs)
        want = rnn(x, like(tuple(s.float() for s in tup(state))), [5, 3])[0]
        if not train: assert_close(out.float(), want, rtol=0, atol=0.1)

@pytest.mark.parametrize('blocks', [False, True])
def test_thin_linear(blocks, monkeypatch):
    monkeypatch.setattr(products, '_blocks_pay', lambda n_threads: blocks)
    n_in = 257
    for sz,n_out in product([(1,), (7,), (8,), (2, 3), (0,), ()], [512, 513]):
        x,w,b = (torch.randn(*s) for s in ((*sz, n_in), (n_out, n_in), (n_out,)))
        for threads,grad in product((1, 2), (True, False)):
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                with torch.set_grad_enabled(grad):
                    for ww in (w, w.T.contiguous().T, torch.cat([w, w], 1)[:, :n_in]):
                        assert_close(thin_linear(x, ww, b), F.linear(x, ww, b), rtol=1e-4, atol=1e-4)
                        assert_close(thin_linear(x, ww), F.linear(x, ww), rtol=1e-4, atol=1e-4)
            finally: torch.set_num_threads(before)

@pytest.mark.parametrize('blocks', [False, True])
def test_packed_products_for_any_number_of_rows(blocks, monkeypatch):
    monkeypatch.setattr(products, '_blocks_pay', lambda n_threads: blocks)
    w,b = torch.randn(512, 300),torch.randn(512)
    with torch.no_grad():
        for (make,args),n in product(((products.packed_product, ()), (products.packed_product, (True,))), (1, 2, 3, 70)):
            x = torch.randn(n, 1, 300)
            assert_close(make(w, *args)(x, b), F.linear(x, w, b), rtol=1e-4, atol=1e-4)
            assert_close(make(w, *args)(x), F.linear(x, w), rtol=1e-4, atol=1e-4)

def test_the_faster_product_is_taken(monkeypatch):
    "Of a processor only the times count: the first is that of blocks, the second that of `F.linear`."
    for times,pays in (([1., 2.], True), ([2., 1.], False)):
        monkeypatch.setattr(products, '_best_time', lambda f, times=times: times.pop(0))
        assert products._blocks_pay.__wrapped__(1) is pays

@pytest.mark.parametrize('kw', [{}, dict(num_layers=2), dict(bias=False)], ids=str)
@pytest.mark.parametrize('n_in,hid', [(30, 40), (7, 5), (260, 130)])
def test_weights_of_an_lstm_laid_out_once(n_in, hid, kw):
    "A single step or several: near to the plain layer, and to the bit the same for a row in any company."
    torch.manual_seed(0)
    layer,x = Recurrent('LSTM', n_in, hid, batch_first=True, **kw).eval(),torch.randn(40, 6, n_in)
    twin = prepack(layer, reproducible=True)
    if twin.laid_out is None: pytest.skip('oneDNN is not at hand')
    state = tuple(torch.randn(layer.num_layers, 40, hid) for _ in range(2))
    with torch.no_grad():
        for sl in (1, 6):
            want,got = layer(x[:, :sl], state),twin(x[:, :sl], state)
            assert_close(got, want, rtol=0, atol=2e-6)
            for rows in (slice(1), slice(3), slice(7, 24), slice(39, 40)):
                out,last = twin(x[rows, :sl], tuple(s[:, rows] for s in state))
                assert_close(out, got[0][rows], rtol=0, atol=0)
                assert_close(last, tuple(s[:, rows] for s in got[1]), rtol=0, atol=0)
        lens = torch.randint(1, 7, (40,))
        assert_close(twin(x, state, lens), layer(x, state, lens), rtol=0, atol=2e-6)   # padded: by the plain kernel
        twin.watch,seen = lambda i,trace,out,last: (seen.append(i),(out, last))[1],[]
        assert_close(twin(x, state), layer(x, state), rtol=0, atol=2e-6)
        assert seen == list(range(layer.num_layers))   # who looks inside sees the plain layers

def rounded(x):
    "An input as torch's dynamic products round it: eight bits between its least and its largest number, or zero."
    return torch.quantize_per_tensor_dynamic(x.contiguous(), torch.quint8, not products.sums_fit()).dequantize().double()

def rounded_rows(w):
    "A weight with 127 steps to each side of zero, for each row."
    scale = w.abs().amax(1, keepdim=True).double()/127
    return (w.double()/scale).round().clamp(-128, 127)*scale

@pytest.mark.skipif('x86' not in torch.backends.quantized.supported_engines, reason="torch has no int8 kernels here")
@pytest.mark.filterwarnings('ignore:.*quantize')
@pytest.mark.parametrize('kind', ['LSTM', 'GRU'])
def test_the_kernel_of_eight_bits_against_a_loop(kind):
    "Inputs and weights are rounded, all else is exact: a loop in float64 over rounded numbers must give the same."
    torch.manual_seed(0)
    rnn,x = getattr(nn, kind)(24, 40),torch.randn(15, 1, 24)
    w_ih,w_hh,b_ih,b_hh = (p.detach() for p in rnn.parameters())
    state = torch.randn(2 if kind == 'LSTM' else 1, 1, 1, 40).unbind(0)
    gx,outs = rounded(x[:, 0])@rounded_rows(w_ih).T + b_ih,[]
    h,*c = (s[0].double() for s in state)
    for g in gx:
        gh = rounded(h.float())@rounded_rows(w_hh).T + b_hh
        if kind == 'LSTM':
            i,f,n,o = (g + gh).chunk(4, -1)
            c = [f.sigmoid()*c[0] + i.sigmoid()*n.tanh()]
            h = o.sigmoid()*c[0].tanh()
        else:
            (ri,zi,ni),(rh,zh,nh) = g.chunk(3, -1),gh.chunk(3, -1)
            n,z = (ni + (ri + rh).sigmoid()*nh).tanh(),(zi + zh).sigmoid()
            h = (1 - z)*n + z*h
        outs.append(h)
    with torch.no_grad(): out,last = kernels.int8_kernel(rnn.mode.lower(), [[w_ih, w_hh, b_ih, b_hh]]).run(x, state)
    assert_close(out[:3].double(), torch.stack(outs[:3]), rtol=0, atol=1e-5)
    assert_close(out.double(), torch.stack(outs), rtol=0, atol=0.01)   # a number between two steps may go either way
    assert_close(last[0], out[-1:], rtol=0, atol=0)

@pytest.mark.skipif('x86' not in torch.backends.quantized.supported_engines, reason="torch has no int8 kernels here")
@pytest.mark.parametrize('kw', [{}, dict(num_layers=2), dict(bidirectional=True), dict(bias=False)], ids=str)
@pytest.mark.parametrize('cell', ['LSTM', 'GRU', 'RNN', 'minGRU'])
def test_a_layer_in_eight_bits(cell, kw):
    "One sequence is read in eight bits, in one go as in two; several are read by the plain kernel."
    torch.manual_seed(0)
    layer = Recurrent(cell, 200, 120, **kw).eval()
    twin,x = prepack(layer, int8=True),torch.randn(20, 1, 200)
    with torch.no_grad():
        whole,state = twin(x)
        assert_close(whole, layer(x)[0], rtol=0, atol=0.05)
        if layer.cells[0].kernel in ('lstm', 'gru'):
            assert twin.laid_out is not None and (whole != layer(x)[0]).any()
            assert_close(twin(x.expand(-1, 3, -1))[0], layer(x.expand(-1, 3, -1))[0], rtol=0, atol=2e-6)
            layer.batch_first = twin.batch_first = True
            one,_ = twin(x.transpose(0, 1)[:, :1])   # a single step
            assert one.shape == (1, 1, layer.n_out)
            assert_close(one, layer(x.transpose(0, 1)[:, :1])[0], rtol=0, atol=0.05)
        else: assert twin.laid_out is None
    if not kw:   # with a gradient, the plain kernel
        g, = torch.autograd.grad(twin(x.requires_grad_())[0].sum(), x)
        assert_close(g, torch.autograd.grad(layer(x)[0].sum(), x)[0])

# ---- copies, files, state dicts

@by_case
def test_copies_and_files(name, args, tmp_path):
    rnn = build(name, num_layers=2, bidirectional=True, weight_p=0.1, **args)
    x = rand(4, 2, 3)
    rnn(x)[0].sum().backward()   # after a training step
    rnn.eval()
    want = rnn(x)
    torch.save(rnn, tmp_path/'rnn.pt')
    buf = io.BytesIO(pickle.dumps(rnn))
    others = copy.deepcopy(rnn),pickle.load(buf),torch.load(tmp_path/'rnn.pt', weights_only=False)
    for other in others:
        assert_close(other(x), want, rtol=0, atol=0)
        assert list(other.state_dict()) == list(rnn.state_dict())
        other.load_state_dict(rnn.state_dict())
        assert not {p.data_ptr() for p in other.parameters()} & {p.data_ptr() for p in rnn.parameters()}
    torch.save(rnn.state_dict(), tmp_path/'weights.pt')
    fresh = build(name, seed=5, num_layers=2, bidirectional=True, **args).eval()
    fresh.load_state_dict(torch.load(tmp_path/'weights.pt', weights_only=True))
    for p in rnn.parameters(): p.data.zero_()
    for other in (*others, fresh): assert_close(other(x), want, rtol=0, atol=0)   # a copy is not touched
    for p in others[0].parameters(): p.data.zero_()
    assert_close(others[0](x), rnn(x), rtol=0, atol=0)

class Deep(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.emb,self.body = nn.Linear(2, 3),nn.Sequential(nn.ModuleDict(dict(rnn=rnn)))
        self.head = nn.Linear(1, 1)

@pytest.mark.parametrize('kind', KINDS)
def test_state_dicts_go_both_ways(kind):
    cls,name,args = KINDS[kind]
    args = dict(args, num_layers=2, bidirectional=True)
    ref,rnn = cls(3, 4, **args),Recurrent(name, 3, 4, **args)
    for a,b in ((rnn, ref), (Deep(rnn), Deep(ref)), (nn.Sequential(Deep(rnn), nn.Linear(1, 1), rnn),
                                                     nn.Sequential(Deep(ref), nn.Linear(1, 1), ref))):
        assert list(a.state_dict()) == list(b.state_dict())
        assert {k: v.shape for k,v in a.state_dict().items()} == {k: v.shape for k,v in b.state_dict().items()}
        for src,dst in ((a, b), (b, a)):
            for p in src.parameters(): nn.init.normal_(p)
            given = src.state_dict()
            keys = list(given)
            assert not any(dst.load_state_dict(given))
            assert list(given) == keys   # the caller's dict is left alone
            for k,v in dst.state_dict().items(): assert_close(v, given[k], rtol=0, atol=0)
    assert set(rnn.state_dict(prefix='x.y.')) == {f'x.y.{k}' for k in ref.state_dict()}
    assert all(v.requires_grad for v in rnn.state_dict(keep_vars=True).values())

def test_strict_loading():
    rnn,deep = Recurrent('GRU', 3, 4, 2),Deep(Recurrent('GRU', 3, 4, 2))
    for m,pre in ((rnn, ''), (deep, 'body.0.rnn.')):
        good = m.state_dict()
        lacking = OrderedDict((k, v) for k,v in good.items() if not k.endswith('weight_hh_l1'))
        with pytest.raises(RuntimeError, match='Missing key'): m.load_state_dict(lacking)
        missing,unexpected = m.load_state_dict(lacking, strict=False)
        assert len(missing) == 1 and 'weight_hh' in missing[0] and not unexpected
        with pytest.raises(RuntimeError, match='size mismatch'):
            m.load_state_dict({**good, f'{pre}bias_ih_l0': torch.zeros(5)})
        for odd in ('weight_ih_l2', 'weight_xx_l0', 'weight_ih_l0_reverse', 'weight_ih'):
            with pytest.raises(RuntimeError, match=f'Unexpected key.*{odd}'):
                m.load_state_dict({**good, pre + odd: torch.zeros(1)})
        m.load_state_dict(good)

def test_loading_errors_name_keys_of_the_file():
    "What is missing is named as the file would have it, so that the two can be compared."
    rnn = Recurrent('GRU', 3, 4, 2)
    with pytest.raises(RuntimeError, match='weight_hh_l1'):
        rnn.load_state_dict({k: v for k,v in rnn.state_dict().items() if k != 'weight_hh_l1'})

def test_assigned_weights():
    src = build('LSTM', num_layers=2, bidirectional=True, proj_size=2)
    given,x = src.state_dict(),rand(4, 2, 3)
    with torch.device('meta'): rnn = Recurrent('LSTM', 3, 4, 2, bidirectional=True, proj_size=2)
    rnn.load_state_dict(given, assign=True)
    assert_close(rnn(x), src(x), rtol=0, atol=0)
    assert {p.data_ptr() for p in rnn.parameters()} == {v.data_ptr() for v in given.values()}
    src.flatten_parameters()
    assert_close(src(x), rnn(x), rtol=0, atol=0)

@by_case
def test_starting_anew_keeps_the_parameters(name, args):
    "`reset_parameters` is called on built modules too (after `to_empty`, say): same objects, type and device."
    cell = get_cell(name)(3, 4, **args).double()
    before = dict(cell.named_parameters())
    cell.reset_parameters()
    after = dict(cell.named_parameters())
    assert list(before) == list(after)
    for n in before: assert after[n] is before[n] and after[n].dtype == torch.double, n

@pytest.mark.parametrize('name', ['LSTM', 'IndRNN', 'LayerNormLSTM'])
def test_starting_the_cells_anew_starts_the_layer_anew(name):
    rnn = build(name, dtype=torch.float)
    cell, = rnn.cells
    cell.reset_parameters()
    want = {n: p.clone() for n,p in cell.named_parameters()}
    rnn(torch.ones(2, 1, 3))
    for n,p in want.items():
        for now in (getattr(rnn, f'{n}_l0'), getattr(cell, n)): assert_close(now, nn.Parameter(p), rtol=0, atol=0)

@by_case
def test_names_of_parameters_are_those_of_the_state_dict(name, args):
    rnn = build(name, num_layers=2, bidirectional=True, **args)
    assert [n for n,_ in rnn.named_parameters()] == list(rnn.state_dict())
    for c,suffix in zip(rnn.cells, ('_l0', '_l0_reverse', '_l1', '_l1_reverse'), strict=True):
        for n,p in c.named_parameters(): assert p is getattr(rnn, n + suffix)

@by_few
def test_other_weights_for_one_call(name, backend):
    "`functional_call`: the given weights are used, get the gradient, and leave nothing behind."
    rnn,other = (build(name, seed=s, num_layers=2, bidirectional=True, backend=backend) for s in (0, 1))
    x = rand(4, 2, 3)
    ws = {n: (p/2).detach().requires_grad_() for n,p in other.named_parameters()}
    out,_ = functional_call(rnn, {n: w*2 for n,w in ws.items()}, (x,))
    assert_close(out, other(x)[0], **EXACT)
    got,want = grads(out.sum(), list(ws.values())),grads(other(x)[0].sum(), list(other.parameters()))
    assert_close(got, tuple(2*g for g in want), **EXACT)
    assert_close(copy.deepcopy(rnn)(x), rnn(x), rtol=0, atol=0)   # a copy needs leaves: none of the above is kept
    assert_close(rnn(x), build(name, num_layers=2, bidirectional=True)(x), **EXACT)

def test_files_hold_each_weight_once():
    rnn = Recurrent('LSTM', 3, 40)
    size = len(pickle.dumps(rnn))
    rnn.load_state_dict({n: v.clone() for n,v in rnn.state_dict().items()}, assign=True)
    assert len(pickle.dumps(rnn)) < 1.1*size   # the weights that were replaced are gone

def test_weights_set_by_name():
    "A weight of the layer is replaced as in any module."
    a,b = build('GRU'),build('GRU', seed=1)
    x = rand(4, 2, 3)
    for n,p in b.named_parameters(): setattr(a, n, nn.Parameter(p.detach().clone()))
    assert_close(a(x), b(x), rtol=0, atol=0)
    assert all(c is getattr(a, f'{n}_l0') for n,c in a.cells[0].named_parameters())

def prune_half(m, name): return prune.l1_unstructured(m, name, 0.5)
@pytest.mark.parametrize('backend', ['auto', 'loop'])
@pytest.mark.parametrize('how', [parametrizations.weight_norm, parametrizations.spectral_norm, prune_half],
                         ids=lambda f: f.__name__)
def test_parametrized_and_pruned_weights(how, backend):
    "torch's own tools act on the layer's weights as they do on those of `nn.GRU`."
    ref,rnn = nn.GRU(3, 4).double(),build('GRU', backend=backend)
    ref.load_state_dict(rnn.state_dict())
    for m in (ref, rnn):
        torch.manual_seed(0)
        how(m, 'weight_hh_l0')
    x = rand(5, 2, 3)
    for _ in range(2):   # what lies under the weight has changed
        outs = [m.eval()(x)[0] for m in (rnn, ref)]
        assert_close(*outs, **EXACT)
        for m in (rnn, ref):
            with torch.no_grad():
                for n,p in m.named_parameters():
                    if 'weight_hh' in n: p.mul_(2)

# ---- gradients reach what they should

@by_run
def test_gradients_reach_every_parameter(name, args, backend):
    rnn = build(name, num_layers=3, bidirectional=True, backend=backend, weight_p=0.1, **args)
    out,_ = rnn(rand(6, 5, 3))
    out.pow(3).sum().backward()
    for n,p in rnn.named_parameters(): assert p.grad.abs().sum() > 0, n

@by_run
def test_frozen_parameters(name, args, backend):
    rnn = build(name, num_layers=2, backend=backend, **args)
    x = rand(5, 2, 3)
    rnn(x)[0].pow(2).sum().backward()
    want = {n: p.grad for n,p in rnn.named_parameters()}
    for frozen in ('weight_ih', 'bias_ih', '_l0'):
        rnn.zero_grad()
        for n,p in rnn.named_parameters(): p.requires_grad_(frozen not in n)
        rnn(x)[0].pow(2).sum().backward()
        for n,p in rnn.named_parameters():
            if frozen in n: assert p.grad is None
            else: assert_close(p.grad, want[n], **EXACT)
    for p in rnn.parameters(): p.requires_grad_(False)
    assert not rnn(x)[0].requires_grad

@by_run
def test_a_call_changes_nothing(name, args, backend):
    kwargs = dict(zoneout_p=0.1) if backend == 'loop' else {}
    rnn = build(name, num_layers=2, bidirectional=True, backend=backend, weight_p=0.3, dropout=0.2, **kwargs, **args)
    x,state = rand(5, 2, 3),rand_state(rnn, 2)
    seen = [t.clone() for t in (x, *state, *rnn.parameters())]
    attrs = {n: dict(vars(m)) for n,m in rnn.named_modules()}
    out,last = rnn(x, like(state), [5, 2])
    out.sum().backward()
    for a,b in zip(seen, (x, *state, *rnn.parameters()), strict=True): assert_close(a, b, rtol=0, atol=0)
    assert attrs == {n: dict(vars(m)) for n,m in rnn.named_modules()}
    rnn.eval()
    for a,b in zip(rnn(x), rnn(x), strict=True): assert_close(a, b, rtol=0, atol=0)

# ---- each argument matters

def out_of(rnn, x=None, seed=0, **kwargs):
    torch.manual_seed(seed)
    return rnn(torch.linspace(-2, 2, 54).view(6, 3, 3).double().sin() if x is None else x, **kwargs)[0]
def differ(a, b): return a.shape != b.shape or not torch.allclose(a, b)

def test_input_size_matters():
    assert RNNCell(5, 4).weight_ih.shape == (4, 5) and Recurrent('SRU', 5, 4, 2).cells[1].weight_ix is None
    assert Recurrent('LSTM', 5, 4, 2, bidirectional=True).cells[2].input_size == 8
def test_hidden_size_matters(): assert out_of(build('GRU', hid=7)).shape == (6, 3, 7)
def test_cell_matters():
    outs = [out_of(build(n, hid=3, **a)) for n,a in CASES if 'proj_size' not in a]
    assert all(differ(a, b) for i,a in enumerate(outs) for b in outs[:i])
@by_case
def test_bias_matters(name, args):
    a,b = (Recurrent(name, 3, 4, bias=bias, **args) for bias in (True, False))
    assert {n for n in a.state_dict() if n.startswith('bias')} == set(a.state_dict()) - set(b.state_dict()) != set()
    assert not (b.double()(torch.zeros(1, 3, 3).double())[0] != 0).any()   # nothing in, nothing out
def test_num_layers_matters():
    a,b = build('GRU', num_layers=2),Recurrent('GRU', 3, 4).double()
    b.load_state_dict({k: v for k,v in a.state_dict().items() if k.endswith('l0')})
    c = Recurrent('GRU', 4, 4).double()
    c.load_state_dict({k.replace('l1', 'l0'): v for k,v in a.state_dict().items() if k.endswith('l1')})
    assert_close(out_of(a), c(out_of(b))[0], **EXACT)
def test_batch_first_matters():
    a,b = build('GRU'),build('GRU', batch_first=True)
    x = rand(6, 3, 3)
    assert differ(a(x)[0], b(x)[0])
    assert_close(a(x)[0], b(x.transpose(0, 1))[0].transpose(0, 1), **EXACT)
    assert_close(a(x)[1], b(x.transpose(0, 1))[1], **EXACT)
    assert_close(a(x[:, 0]), b(x[:, 0]), **EXACT)
def test_dropout_matters():
    rnn = build('LayerNormLSTM', num_layers=2, dropout=0.5)
    assert differ(out_of(rnn), out_of(rnn, seed=1))
    rnn.eval()
    assert not differ(out_of(rnn), out_of(rnn, seed=1))
def test_dropout_of_one_layer_is_not_ignored_in_silence():
    "torch warns; no argument may do nothing without a word."
    with pytest.warns(UserWarning, match='dropout'): Recurrent('LSTM', 3, 4, dropout=0.5)
@by_case
def test_bidirectional_matters(name, args):
    "The second direction is the first one's computation on the sequence turned round."
    rnn = build(name, bidirectional=True, **args)
    one = Recurrent(name, 3, 4, **args).double()
    x = rand(6, 3, 3)
    out,last = rnn(x)
    for d,y in ((0, x), (1, x.flip(0))):
        own = {k: v for k,v in rnn.state_dict().items() if k.endswith('_reverse') == bool(d)}
        one.load_state_dict({k.replace('_reverse', ''): v for k,v in own.items()})
        got,s = one(y)
        assert_close(out.chunk(2, -1)[d], got.flip(0) if d else got, **EXACT)
        for p,q in zip(tup(last), tup(s), strict=True): assert_close(p[d], q[0], **EXACT)
@pytest.mark.parametrize('cell', ['LSTM', 'PeepholeLSTM', 'MogrifierLSTM'])
def test_proj_size_matters(cell):
    rnn = Recurrent(cell, 3, 4, 2, proj_size=2, bidirectional=True)
    out,(h,c) = rnn(torch.randn(6, 3, 3))
    assert (out.shape, h.shape, c.shape) == ((6, 3, 4), (4, 3, 2), (4, 3, 4))
    assert rnn.proj_size == 2 and 'weight_hr_l1_reverse' in rnn.state_dict()
@by_run
def test_weight_p_matters(name, args, backend):
    rnn = build(name, hid=16, backend=backend, weight_p=0.5, **args)
    assert differ(out_of(rnn), out_of(rnn, seed=1)) and not differ(out_of(rnn), out_of(rnn))
    torch.manual_seed(7)   # it is the same as a net whose weights were dropped by hand
    by_hand = copy.deepcopy(rnn).eval()
    for n,p in by_hand.cells[0].named_parameters():
        if n in by_hand.cells[0].dropped: p.data = drop_weight(p.data, 0.5)
    assert_close(out_of(rnn, seed=7), out_of(by_hand), **EXACT)
    assert not differ(out_of(rnn.eval()), out_of(rnn, seed=1))
@by_run
def test_weight_p_draws_the_same_on_each_backend(name, args, backend):
    a,b = (build(name, num_layers=2, bidirectional=True, backend=k, weight_p=0.5, **args) for k in (backend, 'loop'))
    for lengths in (None, [6, 2, 4]): assert_close(out_of(a, lengths=lengths), out_of(b, lengths=lengths), **EXACT)
def test_weight_p_that_finds_nothing_is_told():
    class NoMatrix(Cell):
        recurrent = False
        def step(self, gx, state): return (gx + state[0]/2,)
    with pytest.raises(ValueError, match='weight_p'): Recurrent(NoMatrix, 3, 4, weight_p=0.5)   # it has no weight_hh
@by_case
def test_zoneout_p_matters(name, args):
    rnn = build(name, hid=8, zoneout_p=0.5, **args)
    assert differ(out_of(rnn), out_of(rnn, seed=1)) and not differ(out_of(rnn), out_of(rnn))
    assert differ(out_of(rnn.eval()), out_of(build(name, hid=8, **args)))
    assert not differ(out_of(rnn), out_of(rnn, seed=1))
def test_backend_matters():
    assert [Recurrent('LSTM', 3, 4, backend=b).plan(9)[0] for b in ('auto', 'fused', 'loop', 'compile')] == \
           ['fused', 'fused', 'loop', 'compile']
    assert [Recurrent('minGRU', 3, 4, backend=b).plan(9)[0] for b in ('auto', 'loop')] == ['scan', 'loop']
    assert Recurrent('LSTM', 3, 4).plan(1)[0] == 'loop' and Recurrent('LSTM', 3, 4).plan(1, 'cuda')[0] == 'fused'
    assert all(Recurrent(n, 3, 4).plan(s)[1] for n,s in product(cells, (1, 70)))   # a reason
def test_check_nan_matters():
    x = torch.full((4, 2, 3), math.nan)
    assert Recurrent('GRU', 3, 4)(x)[0].isnan().all()
    with pytest.raises(FloatingPointError): Recurrent('GRU', 3, 4, check_nan=True)(x)
@by_run
def test_check_nan_changes_no_result(name, args, backend):
    a,b = (build(name, num_layers=2, bidirectional=True, backend=backend, check_nan=c, **args) for c in (False, True))
    for lengths in (None, [6, 1, 3]): assert_close(out_of(a, lengths=lengths), out_of(b, lengths=lengths), **EXACT)
def test_nonlinearity_matters():
    a,b = (build('RNN', nonlinearity=n) for n in ('tanh', 'relu'))
    assert out_of(a).min() < 0 and out_of(b).min() == 0 and a.cells[0].kernel != b.cells[0].kernel
def test_rounds_matter():
    outs = [out_of(build('MogrifierLSTM', rounds=r)) for r in range(4)]
    assert all(differ(a, b) for i,a in enumerate(outs) for b in outs[:i])
def test_window_matters():
    x = rand(6, 3, 3)
    y = x.clone()
    y[1] += 1
    for window in (1, 2):
        rnn = build('QRNN', window=window)
        with torch.no_grad(): rnn.cells[0].bias_ih[4:8] = -1e3   # no forgetting: a step shows its own inputs only
        assert (rnn(x)[0] != rnn(y)[0]).any(-1).any(-1).tolist() == [False, True, window == 2, False, False, False]
def test_repr_tells_what_was_built():
    text = repr(Recurrent('LSTM', 3, 4, 2, dropout=0.1, batch_first=True, zoneout_p=0.2))
    for part in ('3, 4', 'num_layers=2', 'dropout=0.1', 'batch_first=True', 'zoneout_p=0.2', 'auto (loop)'):
        assert part in text
    assert repr(GRUCell(3, 4, False)) == 'GRUCell(3, 4, bias=False)'

# ---- errors: name, value, remedy

class NoStep(Cell): pass
class NoTuple(Cell):
    def step(self, gx, state): return gx
class WrongShape(Cell):
    states = ('h', 'c')
    def step(self, gx, state): return gx,gx[:1]
class NoTensor(Cell):
    states = ('h', 'c')
    def step(self, gx, state): return gx,None
class NoTerms(LinearCell): pass
class Bursts(RNNCell):
    def step(self, gx, state): return (torch.where(gx > 90, gx*math.nan, gx),)

X,R = torch.randn(6, 3, 5),Recurrent('LSTM', 5, 4)
H = torch.zeros(1, 3, 4)
def packed(): return pack_padded_sequence(X, [6, 3, 1])
ERRORS = {
    'no step': (lambda: NoStep(3, 2)(X[0, :, :3]), NotImplementedError, ["NoStep", "step(gx, state)"]),
    'no step, layer': (lambda: Recurrent(NoStep, 3, 2), TypeError, ["NoStep lacks step(gx, state)", "one time step"]),
    'no terms': (lambda: NoTerms(3, 2)(X[0, :, :3]), NotImplementedError, ["NoTerms has no terms(gx)"]),
    'no tuple': (lambda: Recurrent(NoTuple, 3, 2), TypeError,
        ["NoTuple.step gives Tensor", "tuple of tensors", "states = ('h',)"]),
    'shapes of step': (lambda: Recurrent(WrongShape, 3, 2), TypeError,
        ["WrongShape.step", "[(2, 2), (1, 2)]", "('h', 'c')"]),
    'no tensor': (lambda: Recurrent(NoTensor, 3, 2), TypeError, ["NoTensor.step", "NoneType", "tensor"]),
    'unknown cell': (lambda: Recurrent('lstm', 5, 4), ValueError, ["'lstm'", "Did you mean 'LSTM'", "register"]),
    'instance': (lambda: get_cell(GRUCell(2, 2)), TypeError, ["GRUCell(2, 2)", "a name or a class, not an instance"]),
    'no cell': (lambda: Recurrent(nn.LSTM, 5, 4), TypeError, ["LSTM is not a cell", "subclass Cell", "minGRU"]),
    'input_size': (lambda: Recurrent('GRU', 0, 4), ValueError, ["input_size=0", "at least 1"]),
    'hidden_size': (lambda: Recurrent('GRU', 5, -1), ValueError, ["hidden_size=-1", "at least 1"]),
    'hidden_size, kind': (lambda: Recurrent('GRU', 5, 4.), ValueError, ["hidden_size=4.0", "whole number"]),
    'hidden_size, text': (lambda: Recurrent('LSTM', 5, '4'), ValueError, ["hidden_size='4'", "whole number"]),
    'hidden_size, none': (lambda: Recurrent('LSTM', 5, None), ValueError, ["hidden_size=None", "whole number"]),
    'num_layers': (lambda: Recurrent('GRU', 5, 4, 0), ValueError, ["num_layers=0", "at least 1"]),
    'num_layers, kind': (lambda: Recurrent('GRU', 5, 4, True), ValueError, ["num_layers=True", "whole number"]),
    'dropout': (lambda: Recurrent('GRU', 5, 4, dropout=1.), ValueError, ["dropout=1.0", "below 1"]),
    'weight_p': (lambda: Recurrent('GRU', 5, 4, weight_p=-0.1), ValueError, ["weight_p=-0.1", "at least 0"]),
    'zoneout_p': (lambda: Recurrent('GRU', 5, 4, zoneout_p=1), ValueError, ["zoneout_p=1", "below 1"]),
    'zoneout_p, nan': (lambda: Recurrent('GRU', 5, 4, zoneout_p=math.nan), ValueError,
        ["zoneout_p=nan", "probability"]),
    'zoneout_p, count': (lambda: Recurrent('LSTM', 5, 4, zoneout_p=[.1]*3), ValueError, ["3 entries", "has 2: h, c"]),
    'nonlinearity': (lambda: RNNCell(5, 4, nonlinearity='sin'), ValueError, ["nonlinearity='sin'", "'tanh' or 'relu'"]),
    'proj_size': (lambda: LSTMCell(5, 4, proj_size=4), ValueError, ["proj_size=4", "smaller than hidden_size=4"]),
    'proj_size, negative': (lambda: Recurrent('LSTM', 5, 4, proj_size=-1), ValueError, ["proj_size=-1", "at least 0"]),
    'proj_size, cell': (lambda: Recurrent('GRU', 5, 4, proj_size=2), TypeError, ["GRUCell", "'proj_size'"]),
    'rounds': (lambda: MogrifierLSTMCell(5, 4, rounds=-1), ValueError, ["rounds=-1", "at least 0"]),
    'window': (lambda: QRNNCell(5, 4, window=3), ValueError, ["window=3", "1 or 2"]),
    'window, kind': (lambda: QRNNCell(5, 4, window=2.), ValueError, ["window=2.0", "1 or 2"]),
    'odd argument': (lambda: Recurrent('RNN', 5, 4, nonlinearty='relu'), TypeError,
        ["RNNCell", "Did you mean 'nonlinearity'"]),
    'backend': (lambda: Recurrent('GRU', 5, 4, backend='fuse'), ValueError, ["backend='fuse'", "Did you mean 'fused'"]),
    'no kernel': (lambda: Recurrent('SRU', 5, 4, backend='fused'), ValueError,
        ["'fused'", "SRUCell has none", "'loop'"]),
    'no scan': (lambda: Recurrent('GRU', 5, 4, backend='scan'), ValueError, ["'scan'", "GRUCell has none", "'auto'"]),
    'zoneout': (lambda: Recurrent('GRU', 5, 4, backend='fused', zoneout_p=.1), ValueError,
        ["'fused'", "zoneout", "'compile'"]),
    'no tensor in': (lambda: R([[1.]*5]), TypeError, ["must be a tensor, not list"]),
    'array in': (lambda: R(X.numpy()), TypeError, ["must be a tensor, not ndarray"]),
    'no tensor in, cell': (lambda: R.cells[0]([1.]*5), TypeError, ["must be a tensor, not list"]),
    'ids': (lambda: R(torch.zeros(6, 3, dtype=torch.long)), TypeError, ["torch.int64", "embedded or one-hot"]),
    'dimensions': (lambda: R(X[0, 0]), ValueError, ["1 dimensions, (5,)", "2 or 3"]),
    'dimensions, cell': (lambda: R.cells[0](X), ValueError, ["3 dimensions, (6, 3, 5)", "1 or 2"]),
    'features': (lambda: R(X[..., :4]), ValueError, ["4 features, (6, 3, 4)", "built for 5"]),
    'no steps': (lambda: R(X[:0]), ValueError, ["no steps or no sequences", "(0, 3, 5)"]),
    'no sequences': (lambda: R(X[:, :0]), ValueError, ["no steps or no sequences", "(6, 0, 5)"]),
    'entries of state': (lambda: R(X, H), ValueError, ["1 entries", "must have 2: h, c"]),
    'state, shape': (lambda: R(X, (H, H[:, :2])), ValueError, ["State c is (1, 2, 4)", "must be (1, 3, 4)"]),
    'state, alone': (lambda: R(X[:, 0], (H, H)), ValueError, ["State h is (1, 3, 4)", "must be (1, 4)"]),
    'state, kind': (lambda: R(X, (H, None)), TypeError, ["State c is NoneType", "must be a tensor"]),
    'state, number': (lambda: R(X, 5), TypeError, ["tate", "int", "tensor"]),
    'state, dtype': (lambda: R(X, (H.double(), H)), TypeError, ["State h is torch.float64", "torch.float32", ".to"]),
    'state, device': (lambda: R(X, (H.to('meta'), H)), ValueError, ["State h is on meta", "input on cpu"]),
    'lengths, count': (lambda: R(X, lengths=[1, 2]), ValueError, ["shape (2,)", "holds 3 sequences"]),
    'lengths, number': (lambda: R(X, lengths=3), ValueError, ["shape ()", "holds 3 sequences"]),
    'lengths, zero': (lambda: R(X, lengths=[1, 0, 2]), ValueError, ["Sequence 1 has length 0", "leave out"]),
    'lengths, long': (lambda: R(X, lengths=[1, 2, 7]), ValueError, ["Sequence 2 has length 7", "has 6 steps"]),
    'lengths, float': (lambda: R(X, lengths=[1., 2., 3.]), TypeError, ["lengths are torch.float32", "whole numbers"]),
    'lengths, mask': (lambda: R(X, lengths=torch.ones(3).bool()), TypeError,
        ["lengths are torch.bool", "whole numbers"]),
    'lengths, alone': (lambda: R(X[:, 0], lengths=[6]), ValueError, ["lengths are for a batch"]),
    'lengths, packed': (lambda: R(packed(), lengths=[6, 3, 1]), ValueError, ["packed", "leave `lengths` out"]),
    'lengths, text': (lambda: R(X, lengths='abc'), TypeError, ["lengths", "whole numbers"]),
    'packed, features': (lambda: Recurrent('GRU', 4, 2)(packed()), ValueError, ["5 features", "built for 4"]),
}
@pytest.mark.parametrize('case', ERRORS)
def test_errors(case):
    call,kind,parts = ERRORS[case]
    with pytest.raises(kind) as e: call()
    for part in parts: assert part in str(e.value)

def test_errors_of_nan():
    x = torch.zeros(6, 3, 5)
    for batch_first in (False, True):
        rnn = Recurrent('LSTM', 5, 4, 2, check_nan=True, batch_first=batch_first)
        bad = x.clone()
        bad[4, 1, 2] = math.nan
        with pytest.raises(FloatingPointError, match='The input holds NaN: first at step 4, sequence 1'):
            rnn(bad.transpose(0, 1) if batch_first else bad)
    rnn.cells[1].bias_hh.data[0] = math.nan
    with pytest.raises(FloatingPointError, match='layer 1, step 0, sequence 0: its bias_hh hold NaN'):
        rnn(x.transpose(0, 1))
    rnn = Recurrent(Bursts, 5, 4, 2, bidirectional=True, check_nan=True)
    for p in rnn.parameters(): nn.init.zeros_(p)
    nn.init.ones_(rnn.cells[1].weight_ih)
    x[[1, 3], 2] = 100.
    for lengths,step in ((None, 3), ([6, 6, 3], 1)):
        text = rf'layer 0 \(backwards\), step {step}, sequence 2: its weights are numbers'
        with pytest.raises(FloatingPointError, match=text): rnn(x, lengths=lengths)

def test_a_backend_set_later_is_checked():
    rnn = Recurrent('SRU', 5, 4)
    for name in ('fused', 'cudnn'):
        with pytest.raises(ValueError, match='backend='): rnn.backend = name
        assert rnn.backend == 'auto' and 'auto' in repr(rnn)

# ---- cells of one's own

class Mixed(Cell):
    "A module inside, whose weight drops too."
    dropped = ('weight_hh', 'mix.weight')
    def __init__(self, input_size, hidden_size, bias=True, depth=1):
        super().__init__(input_size, hidden_size, bias)
        self.mix,self.depth = nn.Linear(hidden_size, hidden_size, bias=bias),depth
    def step(self, gx, state):
        h = torch.tanh(gx + self.recur(state[0]))
        for _ in range(self.depth): h = h + torch.tanh(self.mix(h))
        return (h,)

class Leaky(Cell):
    "Extra parameters, a buffer and two states of different widths."
    gates,states = 2,('h', 'slow')
    def __init__(self, input_size, hidden_size, bias=True):
        super().__init__(input_size, hidden_size, bias)
        self.leak = nn.Parameter(torch.rand(2*hidden_size))
        self.out = nn.Parameter(torch.randn(hidden_size, 2*hidden_size))
        self.register_buffer('gain', torch.tensor(1.5))
    @property
    def sizes(self): return self.hidden_size,2*self.hidden_size
    def step(self, gx, state):
        h,slow = state
        slow = torch.lerp(slow, torch.tanh(gx + self.recur(h)), self.leak.sigmoid())
        return self.gain*F.linear(slow, self.out).tanh(),slow

class Decay(LinearCell):
    def terms(self, gx): return torch.exp(-gx.exp()),gx

OWN = [(Mixed, {}), (Mixed, dict(depth=2)), (Leaky, {}), (Decay, {})]
by_own = pytest.mark.parametrize('cell,args', OWN, ids=lambda v: v.__name__ if isinstance(v, type) else label(v))

@by_own
def test_own_cell(cell, args):
    rnn = build(cell, num_layers=2, bidirectional=True, batch_first=True, **args)
    x,state,lengths = rand(3, 6, 3),rand_state(rnn, 3),[6, 2, 4]
    out,last = rnn(x, like(state), lengths)
    for b,n,(alone,s) in unpadded(rnn, x.transpose(0, 1), lengths, state):
        assert_close(out[b, :n], alone, **EXACT)
        for p,q in zip(tup(last), tup(s), strict=True): assert_close(p[:, b], q, **EXACT)
    packed,s = rnn(pack_padded_sequence(x, lengths, True, enforce_sorted=False), like(state))
    assert_close(pad_packed_sequence(packed, True)[0], out, **EXACT), assert_close(s, last, **EXACT)
    total(out, last).backward()
    assert all(p.grad.abs().sum() > 0 for p in rnn.parameters())
    one = build(cell, 2, 3, **args)
    assert check_grads(one, [3, 2])
    c,h = one.cells[0],like(tuple(s[0] for s in rand_state(one, 3)))
    x = rand(5, 3, 2)
    out,_ = one(x, like(tuple(s[None] for s in tup(h))))
    for t in range(5):
        h = c(x[t], h)
        assert_close(tup(h)[0], out[t], **EXACT)

@by_own
def test_own_cell_dropped_and_zoned(cell, args):
    rnn = build(cell, hid=8, num_layers=2, weight_p=0.5, zoneout_p=0.3, **args)
    x = rand(6, 3, 3)
    def run(seed): torch.manual_seed(seed); return rnn(x, lengths=[6, 2, 4])[0]
    assert differ(run(0), run(1)) and not differ(run(0), run(0))
    assert check_grads(build(cell, 2, 3, weight_p=0.5, zoneout_p=0.3, **args))
    with torch.no_grad():   # only what `dropped` names is dropped
        seen = recurrent._Pass(rnn, rnn.cells, x, None).drops[0]
        assert set(seen) == set(cell.dropped) and all((w == 0).any() for w in seen.values())
    rnn.eval()
    assert not differ(run(0), run(1))

@by_own
def test_own_cell_in_files(cell, args):
    rnn = build(cell, num_layers=2, bidirectional=True, **args)
    x = rand(6, 3, 3)
    for other in (copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn))): assert_close(other(x), rnn(x), rtol=0, atol=0)
    a,b = (nn.Sequential(OrderedDict(rnn=build(cell, seed=s, num_layers=2, bidirectional=True, **args)))
           for s in (1, 2))
    assert differ(a.rnn(x)[0], b.rnn(x)[0])
    keys = set(a.state_dict())
    assert all(k.startswith('rnn.') and k.rsplit('_l', 1)[1] in ('0', '0_reverse', '1', '1_reverse') for k in keys)
    assert 'rnn.weight_ih_l1_reverse' in keys and len(keys) == len(list(a.parameters())) + len(list(a.buffers()))
    assert not any(b.load_state_dict(a.state_dict()))
    assert_close(a.rnn(x), b.rnn(x), rtol=0, atol=0)

class OtherUpdate(LSTMCell):
    def update(self, c, pre): return super().update(c/2, pre)
class OtherRecur(GRUCell):
    def recur(self, h): return super().recur(h)/2
class HalfStep:
    def step(self, gx, state): return tuple(s/2 for s in super().step(gx, state))
class OtherBase(HalfStep, GRUCell): pass
class OtherBaseScan(HalfStep, MinGRUCell): pass
class OtherProject(GRUCell):
    def project(self, x): return super().project(x)/2
class MoreWeights(LSTMCell):
    def reset_parameters(self):
        self.spare = nn.Parameter(torch.empty(3))
        super().reset_parameters()
class StartsAtOne(RNNCell):
    def zero_state(self, x): return (x.new_ones(x.size(-2), self.hidden_size),)
class Halved(GRUCell):
    def step(self, gx, state): return (super().step(gx, state)[0]/2,)
class BelowHalved(Halved): pass

@pytest.mark.parametrize('cell', [OtherUpdate, OtherRecur, OtherBase, OtherBaseScan, OtherProject, MoreWeights,
                                  StartsAtOne, Halved, BelowHalved], ids=lambda c: c.__name__)
def test_what_a_subclass_changes_is_used(cell):
    "A layer gives what its cell gives step by step: it never runs the kernel of another cell."
    rnn = build(cell)
    x,state,want = rand(5, 2, 3),None,[]
    for t in range(5):
        state = rnn.cells[0](x[t], state)
        want.append(tup(state)[0])
    assert_close(rnn(x)[0], torch.stack(want), **EXACT)

class Buffers(Cell):
    "Buffers of both kinds, one of which a step sets again."
    def __init__(self, input_size, hidden_size, bias=True):
        super().__init__(input_size, hidden_size, bias)
        self.register_buffer('n_steps', torch.tensor(0))
        self.register_buffer('scratch', torch.tensor(1.), persistent=False)
    def step(self, gx, state):
        self.n_steps = self.n_steps + 1
        return ((gx + self.recur(state[0])).tanh(),)

def test_buffers_of_a_cell():
    rnn = Recurrent(Buffers, 3, 4, 2)
    assert rnn.state_dict()['n_steps_l0'] == 0   # trying the cell did not count
    rnn(X[..., :3]), rnn(X[..., :3])
    assert rnn.state_dict()['n_steps_l1'] == 12
    assert 'scratch_l0' not in rnn.state_dict()

class Clash(Mixed):
    def __init__(self, input_size, hidden_size, bias=True):
        super().__init__(input_size, hidden_size, bias)
        self.mix_weight = nn.Parameter(torch.zeros(7))

def test_two_parameters_never_share_a_name():
    "`mix.weight` and `mix_weight`: kept apart, or refused in words."
    try: rnn = Recurrent(Clash, 3, 4)
    except (KeyError, TypeError, ValueError) as e: assert 'mix_weight' in str(e)
    else: assert {p.shape for p in rnn.parameters()} >= {(4, 4), (7,)} and rnn(X[..., :3])[0].shape == (6, 3, 4)

class Dropped(Mixed):
    def __init__(self, input_size, hidden_size, bias=True):
        super().__init__(input_size, hidden_size, bias)
        self.drop = nn.Dropout(0.5)
    def step(self, gx, state): return (self.drop(super().step(gx, state)[0]),)

def test_modules_in_a_cell_train_and_evaluate():
    rnn = build(Dropped)
    assert differ(out_of(rnn), out_of(rnn, seed=1)) and not differ(out_of(rnn.eval()), out_of(rnn, seed=1))

def test_a_cell_whose_third_argument_is_not_bias():
    class Deep(Mixed):
        def __init__(self, input_size, hidden_size, depth=3): super().__init__(input_size, hidden_size, True, depth)
    try: rnn = Recurrent(Deep, 3, 4)
    except TypeError as e: assert 'bias' in str(e)   # refused in words, or built as it is by itself
    else: assert rnn.cells[0].depth == 3 and rnn.cells[0].depth is not True

def test_a_cell_that_takes_any_arguments():
    class Open(Mixed):
        def __init__(self, input_size, hidden_size, bias=True, **kwargs):
            super().__init__(input_size, hidden_size, bias, **kwargs)
    assert Recurrent(Open, 3, 4, depth=2).cells[0].depth == 2

def test_trying_a_cell_changes_nothing():
    torch.manual_seed(0)
    cell,before = Leaky(3, 4),torch.get_rng_state()
    seen = copy.deepcopy(cell.state_dict())
    assert check_cell(cell) is cell and torch.equal(before, torch.get_rng_state())
    assert_close(cell.state_dict(), seen, rtol=0, atol=0)
    assert not any(p.grad is not None for p in cell.parameters())

# ---- scans

LINEAR = [('minGRU', {}), ('minLSTM', {}), ('QRNN', {}), ('QRNN', dict(window=1))]
@pytest.mark.parametrize('name,args', LINEAR, ids=label)
def test_scan_equals_loop_for_every_length(name, args):
    scan,loop = (build(name, dtype=torch.float, backend=b, **args) for b in ('scan', 'loop'))
    x,state = torch.randn(70, 2, 3),like(rand_state(scan, 2))
    want,_ = loop(x, state)
    for sl in range(1, 71):
        out,last = scan(x[:sl], state)
        assert_close(out, want[:sl], rtol=0, atol=1e-5)
        assert_close(tup(last)[0][0], want[sl-1], rtol=0, atol=1e-5)
        if sl in (1, 2, 3, 4, 5, 16, 17, 31, 64, 70):
            ws = list(zip(scan.parameters(), loop.parameters(), strict=True))
            a,b = (grads(total(*r(x[:sl], state)), [w[i] for w in ws]) for i,r in enumerate((scan, loop)))
            for p,q in zip(a, b, strict=True): assert_close(p, q, rtol=1e-4, atol=1e-4)

@pytest.mark.parametrize('bs,hid', [(2, 4), (64, 80)], ids=str)
@pytest.mark.parametrize('name,args', LINEAR, ids=label)
def test_scan_equals_loop_on_long_sequences(name, args, bs, hid):
    scan,loop = (build(name, hid=hid, dtype=torch.float, backend=b, **args) for b in ('scan', 'loop'))
    x = torch.randn(2000 if hid == 4 else 150, bs, 3)
    with torch.no_grad(): assert_close(scan(x), loop(x), rtol=0, atol=1e-5)

# ---- zoneout

@by_case
def test_zoneout_in_evaluation_is_the_mean(name, args):
    "One step: its mean over many draws is what evaluation gives, in every entry."
    rnn = build(name, zoneout_p=0.3, **args)
    n = 20_000
    x,state = rand(1, 1, 3),rand_state(rnn, 1)
    want = tup(rnn.eval()(x, like(state))[1])
    torch.manual_seed(0)
    got = tup(rnn.train()(x.expand(1, n, 3), like(tuple(s.expand(-1, n, -1) for s in state)))[1])
    plain = tup(build(name, **args)(x, like(state))[1])
    cell, = rnn.cells
    for entry,g,w,p,s in zip(cell.states, got, want, plain, state, strict=True):
        if cell.zoned is not None and entry not in cell.zoned:
            assert_close(w, p, **EXACT)
            continue
        assert_close(g.mean(1), w[:, 0], rtol=0, atol=float((p - s).abs().max())*0.02)
        assert_close(w, 0.3*s + 0.7*p, **EXACT)
        kept = (g == s).double().mean().item()
        assert abs(kept - 0.3) < 0.02 and ((g == s) | ((g - p).abs() < 1e-12)).all()

@by_case
def test_zoneout_repeats(name, args):
    rnn = build(name, num_layers=2, bidirectional=True, backend='loop', zoneout_p=0.4, **args)
    assert_close(out_of(rnn), out_of(rnn), rtol=0, atol=0)
    assert_close(out_of(rnn, lengths=[6, 2, 3])[:, 0], out_of(rnn)[:, 0], **EXACT)

def test_zoneout_for_each_entry():
    rnn = build('LSTM', hid=50, zoneout_p=(0.5, 0.))
    state = rand_state(rnn, 3)
    _,last = rnn(rand(1, 3, 3), state)
    assert 0.3 < (last[0] == state[0]).double().mean() < 0.7 and not (last[1] == state[1]).any()

def test_zoneout_does_not_see_the_stabiliser():
    "Evaluation of sLSTM with zoneout is the mean of the memories c and n themselves, whatever scale they are kept in."
    rnn = build('sLSTM', zoneout_p=0.3).eval()
    x,(h,c,n,m) = rand(4, 2, 3),rand_state(rnn, 2)
    a,_ = rnn(x, (h, c, n, m))
    b,_ = rnn(x, (h, c*math.e, n*math.e, m-1))   # the same memories
    assert_close(a, b, **EXACT)

# ---- compiled

@pytest.fixture
def dynamo():
    torch._dynamo.reset()
    steps._compiled_steps.cache_clear()
    yield
    torch._dynamo.reset()
    steps._compiled_steps.cache_clear()

@by_case
def test_chunks_of_steps(name, args, monkeypatch):
    "What `compile` does, with the compiler left out: for every length the same as the loop."
    monkeypatch.setattr(torch, 'compile', lambda f, **kwargs: f)
    steps._compiled_steps.cache_clear()
    kwargs = dict(num_layers=2, bidirectional=True, weight_p=0.3, zoneout_p=0.3, **args)
    a,b = (build(name, backend=k, **kwargs) for k in ('loop', 'compile'))
    for sl,lengths in ((7, None), (8, [8, 1, 3]), (9, [9, 8, 2]), (17, None)):
        res = []
        for rnn in (a, b):
            torch.manual_seed(1)
            out,last = rnn(torch.linspace(-3, 3, sl*9).view(sl, 3, 3).double().cos(), lengths=lengths)
            res.append((out, last, grads(total(out, last), list(rnn.parameters()))))
        assert_close(res[0], res[1], **EXACT)
    steps._compiled_steps.cache_clear()

@pytest.mark.parametrize('name', ['GRU', 'sLSTM', 'minGRU'])
def test_a_chunk_is_one_graph(name, dynamo):
    "A break in the graph makes compiled code slower than the loop."
    rnn = build(name, dtype=torch.float)
    state = tuple(s[0] for s in rand_state(rnn, 2))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            gx = rnn.cells[0].project(torch.randn(3, 2, 3))
            found = torch._dynamo.explain(steps.take_steps)(rnn.cells[0], gx, state, None, (), ())
        assert (found.graph_count, found.graph_break_count) == (1, 0)

@pytest.mark.slow
def test_compile_serves_many_cells(dynamo, monkeypatch):
    "More cells than dynamo's limit of eight in one process: none falls back to the loop in silence."
    seen = []
    def count(gm, _): seen.append(gm); return gm
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend=count))
    monkeypatch.setattr(cells_module, 'thin_linear', F.linear)   # see test_a_chunk_is_one_graph
    for name in list(cells)[:9]:
        n = len(seen)
        build(name, backend='compile', dtype=torch.float)(torch.randn(8, 2, 3))
        assert len(seen) > n, f'{name}: the {list(cells).index(name)+1}th cell is not compiled'

@pytest.mark.slow
@pytest.mark.parametrize('name', list(cells))
def test_compiled_equals_loop(name, dynamo):
    "One length, with one step left over; both directions and all chunks share what is compiled."
    kwargs = dict(bidirectional=True, weight_p=0.3, zoneout_p=0.2, dtype=torch.float)
    res = []
    x = torch.randn(17, 3, 3)
    for backend in ('loop', 'compile'):
        rnn = build(name, backend=backend, **kwargs)
        torch.manual_seed(1)
        out,last = rnn(x, lengths=[17, 9, 4])
        res.append((out, last, grads(total(out, last), list(rnn.parameters()))))
    assert_close(res[1], res[0], rtol=1e-5, atol=1e-5)

@pytest.mark.parametrize('name', ['dropout', 'weight_p', 'zoneout_p'])
@pytest.mark.parametrize('value', ['a', None, 1., -0.1, float('nan')])
def test_what_is_no_probability_is_named(name, value):
    with pytest.raises(ValueError, match=f'{name}={value!r} must be a probability: at least 0 and below 1'):
        Recurrent('LSTM', 3, 4, num_layers=2, **{name: value})
