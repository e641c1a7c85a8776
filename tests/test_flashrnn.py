"""The FlashRNN backend against the plain loop. A stand-in for the package, written from its documentation (README and
`flashrnn/vanilla` of version 1.0.8), runs on the CPU; so axes, order of gates, states and gradients are proven here."""
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from test_cells import build, rand, rand_state, tup
from torch.nn.utils.rnn import pack_padded_sequence
from torch.testing import assert_close

from rnn_fastai import all as rf
from rnn_fastai.inside.capture import capture
from rnn_fastai.models import flashrnn as module
from rnn_fastai.models.recurrent import Recurrent

CELLS = 'LSTM', 'GRU', 'RNN', 'sLSTM'
EXACT = dict(rtol=1e-9, atol=1e-9)
CLOSE = dict(rtol=1e-4, atol=1e-5)   # in float32

# ---- What the package documents: pre-activations, states -> states; all are lists of bs,heads,features

def lstm(x, r, b, s):
    i,f,z,o = (x[k] + r[k] + b[k] for k in range(4))
    c = f.sigmoid()*s[1] + i.sigmoid()*z.tanh()
    return [o.sigmoid()*c.tanh(), c]

def slstm(x, r, b, s):
    i,f,z,o = (x[k] + r[k] + b[k] for k in range(4))
    kept = torch.nn.functional.logsigmoid(f) + s[3]
    m = torch.where(s[2] == 0, i, torch.maximum(i, kept))
    ig,fg = (i - m).exp().clamp(max=1),(kept - m).exp().clamp(max=1)
    c,n = fg*s[1] + ig*z.tanh(),(fg*s[2] + ig).clamp(min=1)
    return [o.sigmoid()*c/n, c, n, m]

def gru(x, r, b, s):
    new = (x[2] + b[3] + (x[0] + r[1] + b[1]).sigmoid()*(r[0] + b[0])).tanh()
    z = (x[1] + r[2] + b[2]).sigmoid()
    return [z*s[0] + (1 - z)*new]

def elman(x, r, b, s): return [(x[0] + r[0] + b[0]).tanh()]

RULES = dict(lstm=lstm, slstm=slstm, gru=gru, elman=elman)
SHAPES = dict(lstm=(4, 4, 4, 2), slstm=(4, 4, 4, 4), gru=(3, 3, 4, 1), elman=(1, 1, 1, 1))   # of R, Wx, b; states

class Package:
    "Stands for the package; notes its calls."
    def __init__(self): self.calls = []

    def flashrnn(self, Wx, R, b, states=None, function='lstm', config=None, backend='cuda_fused', dtype='bfloat16'):
        "Wx: B,T,G,N,D; R: G,N,D,D (new, previous); b: G,N,D; states: S,B,1,N,D; gives S,B,T,N,D and S,B,1,N,D."
        (bs,sl,n_w,heads,dim),(n_r,n_x,n_b,n_s) = Wx.shape,SHAPES[function]
        assert (n_w, R.shape, b.shape) == (n_x, (n_r, heads, dim, dim), (n_b, heads, dim))
        assert states.shape == (n_s, bs, 1, heads, dim) and dtype == str(Wx.dtype)[6:]
        assert {t.dtype for t in (R, b, states)} == {Wx.dtype}
        self.calls.append((function, bs, sl))
        s,out = list(states[:, :, 0]),[]
        for t in range(sl):
            r = torch.einsum('bnp,gndp->gbnd', s[0], R)
            s = RULES[function](Wx[:, t].unbind(1), r, b, s)
            out.append(torch.stack(s))
        return torch.stack(out, 2),out[-1][:, :, None]

@pytest.fixture
def package(monkeypatch):
    "The package is installed, and the CPU stands for an H100."
    pkg = Package()
    monkeypatch.setitem(sys.modules, 'flashrnn', pkg)
    monkeypatch.setattr(module, '_capability', lambda device: (9, 0))
    monkeypatch.setattr(module, '_told', set())
    monkeypatch.setattr(module, '_failed', {})
    return pkg

def both(name, dtype=torch.float32, **args):
    "The same layer by FlashRNN and by the loop."
    loop = build(name, 8, 16, backend='loop', **args).to(dtype)
    flash = build(name, 8, 16, backend='flashrnn', **args).to(dtype)
    flash.load_state_dict(loop.state_dict())
    return flash,loop

def results(layer, x, state, lengths=None):
    x,state = x.detach().requires_grad_(),tuple(s.detach().requires_grad_() for s in state)
    out,last = layer(x, state if len(state) > 1 else state[0], lengths)
    made = [out, *tup(last)]
    scale = sum((t*torch.linspace(-1, 1, t.numel()).view(t.shape)).sum() for t in made)
    return made + list(torch.autograd.grad(scale, [x, *state, *layer.parameters()], materialize_grads=True, allow_unused=True))

# ---- The same results

@pytest.mark.parametrize('name', CELLS)
@pytest.mark.parametrize('args', [{}, dict(num_layers=2, bidirectional=True), dict(bias=False), dict(batch_first=True)], ids=str)
@pytest.mark.parametrize('lengths', [None, [7, 2, 5]], ids=['whole', 'padded'])
def test_results_and_gradients_are_the_loops(name, args, lengths, package, monkeypatch):
    monkeypatch.setattr(module, '_TYPES', (torch.float64,))   # the stand-in has it, so that differences are faults
    layers = both(name, torch.float64, **args)
    x,state = rand(3, 7, 8) if 'batch_first' in args else rand(7, 3, 8),list(rand_state(layers[1], 3))
    if name == 'sLSTM': state[2] = state[2].abs() + 1   # as it is after any step; FlashRNN keeps it there
    for a,b in zip(*(results(l, x, state, lengths) for l in layers), strict=True): assert_close(a, b, **EXACT)
    assert len(package.calls) == (4 if 'bidirectional' in args else 1)

@pytest.mark.parametrize('name', CELLS)
def test_from_the_first_state_on(name, package):
    flash,loop = both(name)
    x = rand(6, 2, 8).float()
    (a,s),(b,t) = flash(x),loop(x)
    assert_close((a, tup(s)), (b, tup(t)), **CLOSE)
    packed = pack_padded_sequence(x, torch.tensor([6, 3]))
    assert_close(flash(packed)[0].data, loop(packed)[0].data, **CLOSE)

@pytest.mark.parametrize('name', CELLS)
def test_half_precision_and_autocast(name, package):
    flash,loop = both(name)
    x = rand(6, 2, 8).float()
    with torch.autocast('cpu', torch.bfloat16): out,_ = flash(x)
    half,_ = flash.bfloat16()(x.bfloat16())
    assert out.dtype == half.dtype == torch.bfloat16 and len(package.calls) == 2
    for o in (out, half): assert (o.float() - loop(x)[0]).abs().max() < 0.05

def test_dropped_weights_and_what_is_captured(package):
    flash,loop = both('sLSTM', weight_p=0.5)
    x,res = rand(6, 2, 8).float(),[]
    for layer in (flash, loop):
        torch.manual_seed(1)
        with capture(layer, parts='all') as rec: layer(x)
        res.append(rec)
    assert package.calls
    for part in res[1].parts(res[1].layers[0]): assert_close(*(torch.as_tensor(r[r.layers[0], part, 0]) for r in res), **CLOSE)

# ---- Where it cannot run

def run_and_told(layer, x):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        outs = [layer(x)[0] for _ in range(2)]
    return outs,[str(w.message) for w in seen if 'FlashRNN' in str(w.message)]

LACKS = {
    'needs a GPU, and this is cpu': dict(card=None),
    'capability 8.0, and this GPU has 7.5': dict(card=(7, 5)),
    'no kernel for torch.float64': dict(dtype=torch.float64),
    'hidden_size=20 must be a multiple of 16': dict(hid=20),
    'not installed; `pip install flashrnn`': dict(gone=True),
    'no projection': dict(args=dict(proj_size=4)),
    'failed with ValueError: No working solution of constraints': dict(fails=True)}

@pytest.mark.parametrize('why', LACKS)
def test_it_says_so_once_and_another_backend_runs(why, package, monkeypatch):
    how = LACKS[why]
    if 'card' in how: monkeypatch.setattr(module, '_capability', lambda device: how['card'])
    if 'gone' in how: monkeypatch.setitem(sys.modules, 'flashrnn', None)
    def fail(*args, **kwargs):
        package.calls.append('failed')
        raise ValueError('No working solution of constraints for CUDA module')
    if 'fails' in how: monkeypatch.setitem(sys.modules, 'flashrnn', SimpleNamespace(flashrnn=fail))
    dtype,args = how.get('dtype', torch.float32),dict(hidden_size=how.get('hid', 16), **how.get('args', {}))
    layer = Recurrent('LSTM', 8, backend='flashrnn', **args).to(dtype)
    plain = Recurrent('LSTM', 8, **args).to(dtype)
    plain.load_state_dict(layer.state_dict())
    x = rand(5, 2, 8).to(dtype)
    outs,told = run_and_told(layer, x)
    assert len(told) == 1 and why in told[0] and 'Another backend runs in its place' in told[0]
    for o in outs: assert_close(o, plain(x)[0], **CLOSE)
    assert layer.plan(5)[0] == 'fused' and package.calls == (['failed'] if 'fails' in how else [])

def test_running_out_of_memory_is_no_reason_to_go_on(package, monkeypatch):
    def full(*args, **kwargs): raise torch.OutOfMemoryError('CUDA out of memory')
    monkeypatch.setattr(package, 'flashrnn', full)
    with pytest.raises(torch.OutOfMemoryError): both('sLSTM')[0](rand(5, 2, 8).float())
    assert not module._failed

def test_single_steps_edits_and_transforms_do_without(package):
    flash,loop = both('GRU')
    x,w = rand(5, 2, 8).float(),dict(flash.named_parameters())
    flash(x[:1])
    with pytest.warns(UserWarning, match='torch.func cannot transform it'):
        grads = torch.func.grad(lambda w: torch.func.functional_call(flash, w, (x,))[0].sum())(w)
    want = torch.autograd.grad(loop(x)[0].sum(), list(loop.parameters()))
    assert_close(list(grads.values()), list(want), **CLOSE)
    flash.edit = lambda i, t, state: state
    flash(x)
    assert not package.calls

def test_cells_that_have_none_say_so():
    assert {n for n in rf.cells if Recurrent(n, 16, 16)._cell.flash} == set(CELLS)
    for name,args in (('minGRU', {}), ('RNN', dict(nonlinearity='relu'))):
        with pytest.raises(ValueError, match="backend='flashrnn' is not available: .* has none"):
            Recurrent(name, 8, 16, backend='flashrnn', **args)
    with pytest.raises(ValueError, match='zoneout acts between steps'): Recurrent('LSTM', 8, 16, backend='flashrnn', zoneout_p=.1)
