"Gradients of gradients, against finite differences: all cells, backends, heads and losses; or an error, never a wrong number."
import copy

import pytest
import torch
from torch import func, nn
from torch.autograd import forward_ad, grad, gradcheck, gradgradcheck
from torch.func import functional_call
from torch.nn import functional as F
from torch.testing import assert_close

from rnn_fastai.models.awd import get_language_model
from rnn_fastai.models.cells import cells
from rnn_fastai.models.documents import get_text_classifier
from rnn_fastai.models.ensemble import ManyNets
from rnn_fastai.models.heads import AdaptiveDecoder, LMDecoder, MixtureDecoder, PoolingClassifier, pool_states
from rnn_fastai.models.losses import OneHotMSE, linear_cross_entropy
from rnn_fastai.models.packed import pack
from rnn_fastai.models.padding import reverse_padded
from rnn_fastai.models.recurrent import Recurrent
from rnn_fastai.models.scan import linear_scan
from rnn_fastai.models.seq2seq import Attention, Seq2Seq, SequenceModel
from rnn_fastai.models.tagger import CRF, CharEncoder, Tagger, WordEncoder

pytestmark = pytest.mark.usefixtures('one_thread')
CASES = [('RNN', {}), ('RNN', dict(nonlinearity='relu')), ('LSTM', {}), ('LSTM', dict(proj_size=2)), ('GRU', {}),
         ('PeepholeLSTM', {}), ('LayerNormLSTM', {}), ('MogrifierLSTM', dict(rounds=2)), ('sLSTM', {}), ('IndRNN', {}),
         ('SRU', {}), ('minGRU', {}), ('minLSTM', {}), ('QRNN', {}), ('QRNN', dict(window=1))]

def label(v): return ','.join(f'{k}={x}' for k,x in v.items()) or 'plain' if isinstance(v, dict) else str(v)
def tup(state): return state if isinstance(state, tuple) else (state,)
def rand(*sz): return torch.randn(*sz, dtype=torch.double, requires_grad=True)
def has(cell, backend, **kwargs):
    try: return bool(Recurrent(cell, 2, 3, backend=backend, **kwargs))
    except ValueError: return False
RUNS = [(*case, b) for case in CASES for b in ('fused', 'scan', 'loop') if has(case[0], b, **case[1])]

def build(make, seed=0):
    "A module in double precision, with weights far from special values."
    torch.manual_seed(seed)
    m = make().double()
    for p in m.parameters(): p.data.normal_(0, 0.6)
    return m

def derivatives(f, *ts, **kwargs):
    "First and second derivatives, along random directions, with regard to all of `ts`."
    assert gradcheck(f, ts, fast_mode=True, **kwargs) and gradgradcheck(f, ts, fast_mode=True, **kwargs)

def check(model, f, *inputs):
    "Derivatives of `f(called model, *inputs)` by inputs and weights; dropout draws the same at each call."
    ws = dict(model.named_parameters())
    flat = torch.cat([w.detach().flatten() for w in ws.values()]).requires_grad_()
    def run(flat, *inputs):
        torch.manual_seed(3)
        parts = flat.split([w.numel() for w in ws.values()])
        new = {n: p.view(w.shape) for (n,w),p in zip(ws.items(), parts, strict=True)}
        return f(lambda *args: functional_call(model, new, args), *inputs)
    derivatives(run, flat, *inputs)

def total(*outs):
    "A number that every output has its own share in."
    return sum((o*torch.linspace(1, 2, o.numel(), dtype=o.dtype).view(o.shape)).sum() for o in outs)

def check_layer(rnn, lengths=None, sl=3, bs=2):
    "Derivatives by the input, the state and the weights of a layer, of the output and of the last state."
    state = [rand(len(rnn.cells), bs, n) for n in rnn.cells[0].sizes]
    for s,name in zip(state, rnn.cells[0].states, strict=True):
        if name == 'n': s.data.abs_().add_(0.5)   # sLSTM's normalizer is above zero
    def f(call, x, *state):
        out,last = call(x, state if len(state) > 1 else state[0], lengths)
        return total(out, *tup(last))
    check(rnn, f, rand(sl, bs, rnn.input_size), *state)

# ---- layers

@pytest.mark.parametrize('lengths', [None, [3, 1]], ids=['full', 'padded'])
@pytest.mark.parametrize('both', [False, True], ids=['forwards', 'both ways'])
@pytest.mark.parametrize('name,args,backend', RUNS, ids=label)
def test_layers(name, args, backend, both, lengths):
    check_layer(build(lambda: Recurrent(name, 2, 3, bidirectional=both, backend=backend, **args)), lengths)

@pytest.mark.parametrize('name', ['LSTM', 'minGRU', 'QRNN'])
def test_stacks(name):
    check_layer(build(lambda: Recurrent(name, 2, 2, 2, bidirectional=True)), [3, 1])

@pytest.mark.parametrize('train', [True, False], ids=['training', 'evaluation'])
@pytest.mark.parametrize('kwargs', [dict(weight_p=0.3), dict(zoneout_p=0.3), dict(dropout=0.3, num_layers=2)], ids=label)
@pytest.mark.parametrize('name', ['RNN', 'LSTM', 'minGRU', 'QRNN', 'SRU'])
def test_dropouts(name, kwargs, train):
    check_layer(build(lambda: Recurrent(name, 2, 3, **kwargs)).train(train))

@pytest.mark.parametrize('sl,bs,hid', [(1, 2, 3), (7, 2, 3), (10, 1, 1), (3, 64, 65)])   # short, by blocks, in one block
def test_scan(sl, bs, hid):
    torch.manual_seed(0)
    derivatives(linear_scan, rand(sl, bs, hid), rand(sl, bs, hid), rand(bs, hid))

def test_scan_in_full():
    "Each entry of the second derivatives, and the third ones."
    torch.manual_seed(0)
    ts = rand(4, 1, 2),rand(4, 1, 2),rand(1, 2)
    assert gradgradcheck(linear_scan, ts)
    def first(*ts): return grad(linear_scan(*ts).pow(2).sum(), ts, create_graph=True)
    assert gradgradcheck(first, ts)

def test_reversing():
    derivatives(lambda x: reverse_padded(x, torch.tensor([4, 1, 3])), rand(4, 3, 2))

@pytest.mark.parametrize('lengths', [None, [5, 3]], ids=['full', 'padded'])
@pytest.mark.parametrize('name', cells)
def test_gradient_penalty(name, lengths):
    "As the loop has it, in single precision, for weights and input."
    found = []
    for backend in ('auto', 'loop'):
        torch.manual_seed(0)
        rnn,x = Recurrent(name, 3, 4, bidirectional=True, backend=backend),torch.randn(5, 2, 3, requires_grad=True)
        out,_ = rnn(x, None, lengths)
        g, = grad(out.pow(2).sum(), x, create_graph=True)
        penalty = (g.pow(2).sum() - 1)**2/100
        found.append((penalty, grad(penalty, [x, *rnn.parameters()], allow_unused=True)))
    for a,b in zip(found[0][1], found[1][1], strict=True):
        assert (a is None) == (b is None)
        if a is not None: assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert any(g is not None and g.abs().max() > 0 for g in found[0][1])
    assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-6)

# ---- torch's transforms, and gradients forward

def cubes(rnn, lengths): return lambda x: rnn(x, None, lengths)[0].pow(3)
TRANSFORMS = {
    'hessian': lambda f, x: func.hessian(lambda x: f(x).sum())(x),
    'reverse twice': lambda f, x: func.jacrev(func.jacrev(lambda x: f(x).sum()))(x),
    'forward twice': lambda f, x: func.jacfwd(func.jacfwd(lambda x: f(x).sum()))(x),
    'jacrev': lambda f, x: func.jacrev(f)(x),
    'jvp': lambda f, x: func.jvp(f, (x,), (x.cos(),))[1]}

@pytest.mark.parametrize('lengths', [None, [4, 3]], ids=['full', 'padded'])
@pytest.mark.parametrize('how', TRANSFORMS)
@pytest.mark.parametrize('name', ['LSTM', 'SRU', 'minGRU', 'minLSTM', 'QRNN'])
def test_transforms(name, how, lengths):
    "As the loop has them, in both directions."
    rnn,x = build(lambda: Recurrent(name, 2, 2, bidirectional=True)),rand(4, 2, 2).detach()
    got = TRANSFORMS[how](cubes(rnn, lengths), x)
    rnn.backend = 'loop'
    want = TRANSFORMS[how](cubes(rnn, lengths), x)
    assert want.abs().max() > 1e-3
    assert_close(got, want)

@pytest.mark.parametrize('grads', [True, False])
@pytest.mark.parametrize('name', ['minGRU', 'minLSTM', 'QRNN'])
def test_mapped_over_sequences(name, grads):
    "Outputs, and the gradient of the weights by each sequence alone."
    rnn,x = build(lambda: Recurrent(name, 2, 3)),rand(4, 5, 2).detach()
    with torch.set_grad_enabled(grads): assert_close(func.vmap(lambda x: rnn(x)[0], 1, 1)(x), rnn(x)[0])
    ws = {n: w.detach() for n,w in rnn.named_parameters()}
    def loss(ws, x): return functional_call(rnn, ws, (x,))[0].pow(2).sum()
    each = func.vmap(func.grad(loss), (None, 1))(ws, x)
    for n,g in each.items(): assert_close(g[3], func.grad(loss)(ws, x[:, 3])[n])

@pytest.mark.parametrize('which', range(3))
@pytest.mark.parametrize('sl,bs,hid', [(1, 2, 3), (7, 2, 3), (3, 64, 65)])
def test_scan_transformed(sl, bs, hid, which):
    "By each of its arguments, mapped or not."
    torch.manual_seed(0)
    ts = [rand(sl, bs, hid).detach(),rand(sl, bs, hid).detach(),rand(bs, hid).detach()]
    def loop(a, b, s):
        out = []
        for x,y in zip(a, b, strict=True): out.append(s := x*s + y)
        return torch.stack(out)
    def one(f): return lambda t: f(*ts[:which], t, *ts[which+1:])
    t = ts[which]
    many = torch.stack([t, 2*t, -t])
    assert_close(func.vmap(one(linear_scan))(many), torch.stack([one(loop)(t) for t in many]))
    assert_close(*(func.jvp(one(f), (t,), (t.sin(),))[1] for f in (linear_scan, loop)))
    for grads in (True, False):
        with torch.set_grad_enabled(grads), forward_ad.dual_level():
            got,want = (forward_ad.unpack_dual(one(f)(forward_ad.make_dual(t, t.sin()))).tangent for f in (linear_scan, loop))
            assert_close(got, want)

@pytest.mark.parametrize('how', TRANSFORMS)
@pytest.mark.parametrize('smooth', [0., 0.2])
def test_linear_cross_entropy_transformed(smooth, how):
    torch.manual_seed(0)
    x,w,b = (t.detach() for t in (rand(5, 3), rand(4, 3), rand(4)))
    def ours(w): return linear_cross_entropy(x, w, b, Y, label_smoothing=smooth, chunk=2)
    def theirs(w): return F.cross_entropy(F.linear(x, w, b), Y, label_smoothing=smooth)
    assert_close(*(TRANSFORMS[how](f, w) for f in (ours, theirs)))

@pytest.mark.parametrize('how', TRANSFORMS)
@pytest.mark.parametrize('args', [{}, dict(nonlinearity='relu')], ids=label)
def test_many_nets_transformed(args, how):
    "As one net after the other."
    nets,x = build(lambda: ManyNets('RNN', 2, 3, 2, n_nets=2, **args)),rand(3, 2, 2).detach()
    one = Recurrent('RNN', 2, 3, backend='loop', **args).double()
    each = [{f'{n}_l0': w[i] for n,w in nets.rnn.items()} for i in range(2)]
    def by_loop(x): return torch.stack([functional_call(one, ws, (x,))[0] for ws in each]).pow(2)
    assert_close(*(TRANSFORMS[how](f, x) for f in (lambda x: nets(x)[0].pow(2), by_loop)))

# ---- weights with a layout of their own

LAYOUTS = [dict(int8=False), dict(reproducible=True),
           pytest.param(dict(int8=True), marks=pytest.mark.skipif('x86' not in torch.backends.quantized.supported_engines,
                                                                  reason="torch has no int8 kernels here"))]

@pytest.mark.parametrize('kwargs', LAYOUTS, ids=label)
@pytest.mark.parametrize('bs', [1, 3])
def test_packed_weights_have_the_plain_derivatives(bs, kwargs):
    "By the input, backward twice and forward; and by the bias, also where the input wants no gradient."
    torch.manual_seed(0)
    plain = nn.Linear(150, 160)
    packed,x = pack(copy.deepcopy(plain), **kwargs),torch.randn(2, bs, 150)
    def net(m, x): return m(x.sin()).tanh()
    found = []
    for m in (plain, packed):
        leaf = x.clone().requires_grad_()
        g, = grad(net(m, leaf).pow(2).sum(), leaf, create_graph=True)
        found.append([g, *grad(g.pow(2).sum(), leaf), func.jvp(lambda x, m=m: net(m, x), (x,), (x.cos(),))[1]])
        with torch.no_grad(): found[-1].append(func.jvp(lambda x, m=m: net(m, x), (x,), (x.cos(),))[1])
        found[-1].append(grad(m(x).sin().sum(), m.bias)[0])
    exact = kwargs.get('int8', False)
    for i,(a,b) in enumerate(zip(*found, strict=True)):
        assert_close(a, b, rtol=1e-4, atol=0.05*bs if exact and i == 4 else 1e-5)   # by the bias, from eight bits

@pytest.mark.parametrize('name', ['LSTM', 'GRU', 'minGRU', 'MogrifierLSTM', 'LayerNormLSTM'])
def test_packed_layers_have_the_plain_gradients(name):
    "Biases get what they get in the plain layer, whether the input wants a gradient or not; and states move as there."
    torch.manual_seed(0)
    rnn = Recurrent(name, 150, 130).eval()
    packed = pack(copy.deepcopy(rnn))
    small = [n for n,p in rnn.named_parameters() if p.dim() == 1]
    for x in (torch.randn(1, 3, 150), torch.randn(4, 3, 150)):
        for wants in (False, True):
            x.requires_grad_(wants)
            gs = [grad(m(x)[0].pow(2).sum(), [dict(m.named_parameters())[n] for n in small], allow_unused=True)
                  for m in (rnn, packed)]
            assert_close(gs[1], gs[0], rtol=1e-4, atol=1e-4)
    x = torch.randn(1, 3, 150)
    assert_close(*(func.jvp(lambda x, m=m: m(x)[0], (x,), (x.cos(),))[1] for m in (packed, rnn)), rtol=1e-4, atol=1e-5)

# ---- many nets

@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('name,args', [('RNN', {}), ('RNN', dict(nonlinearity='relu')), ('LSTM', {}), ('GRU', {})], ids=label)
def test_many_nets(name, args, bias):
    nets = build(lambda: ManyNets(name, 2, 3, 2, n_nets=2, bias=bias, **args))
    check(nets, lambda call, x: total(*call(x)), rand(4, 2, 2))
    one = Recurrent(name, 2, 3, bias=bias, backend='loop', **args).double()
    one.load_state_dict({f'{n}_l0': w[1] for n,w in nets.rnn.items()})
    def second(h, x, w):
        g, = grad(h.pow(2).sum(), x, create_graph=True)
        return grad(g.pow(2).sum(), [x, w])
    x,w = rand(4, 2, 2),nets.rnn['weight_hh']
    (gx,gw),want = second(nets(x)[0][1], x, w),second(one(x)[0], x, one.weight_hh_l0)
    assert_close((gx, gw[1]), want)

# ---- heads and losses

Y = torch.tensor([0, 3, -100, 1, 2])

@pytest.mark.parametrize('chunk', [1, 2, 512])
@pytest.mark.parametrize('smooth', [0., 0.2])
@pytest.mark.parametrize('bias', [True, False])
def test_linear_cross_entropy(bias, smooth, chunk):
    torch.manual_seed(0)
    ts = rand(5, 3),rand(4, 3),*([rand(4)] if bias else [])
    def ours(x, w, b=None): return linear_cross_entropy(x, w, b, Y, label_smoothing=smooth, chunk=chunk)
    def theirs(x, w, b=None): return F.cross_entropy(F.linear(x, w, b), Y, label_smoothing=smooth)
    assert gradcheck(ours, ts) and gradgradcheck(ours, ts)
    both = [grad(grad(f(*ts)*3, ts[0], create_graph=True)[0].pow(2).sum(), ts, allow_unused=True) for f in (ours, theirs)]
    assert all(t is None or t.abs().max() > 1e-6 for t in both[1])
    for a,b in zip(*both, strict=True): assert_close(torch.zeros(()) if a is None else a, torch.zeros(()) if b is None else b)

@pytest.mark.parametrize('free', range(1, 8))
def test_linear_cross_entropy_with_frozen_parts(free):
    torch.manual_seed(0)
    ts = [t.requires_grad_(bool(free >> k & 1)) for k,t in enumerate((rand(5, 3).detach(), rand(4, 3).detach(), rand(4).detach()))]
    derivatives(lambda *ts: linear_cross_entropy(*ts, Y, chunk=2), *ts)

def test_linear_cross_entropy_in_autocast():
    "A penalty within rounding of bfloat16, with gradients in the types of what they belong to."
    torch.manual_seed(0)
    found = []
    ts = [t.detach().float().requires_grad_() for t in (rand(5, 3), rand(4, 3), rand(4))]
    for cast in (True, False):
        with torch.autocast('cpu', torch.bfloat16, enabled=cast):
            loss = linear_cross_entropy(*ts, Y, chunk=2)
            g, = grad(loss, ts[0], create_graph=True)
        found.append(grad(g.pow(2).sum(), ts))
    assert {g.dtype for g in found[0]} == {torch.float32}
    assert_close(found[0], found[1], rtol=0.03, atol=1e-3)

def states(): return rand(2, 3, 4)
LENGTHS,REAL = torch.tensor([3, 2]),torch.tensor([[True]*3, [True, True, False]])
IDS,LABELS = torch.tensor([[2, 3, 4], [5, 2, 1]]),torch.tensor([[0, 1, 1], [1, 0, -100]])

@pytest.mark.parametrize('pool', ['last', 'max', 'mean', 'concat'])
@pytest.mark.parametrize('train', [True, False])
def test_pooling(pool, train):
    torch.manual_seed(0)
    derivatives(lambda out, last: pool_states(out, last, LENGTHS, pool), states(), rand(2, 4))
    head = build(lambda: PoolingClassifier([12 if pool == 'concat' else 4, 3, 2], [0.2, 0.1], (0, 5), pool)).train(train)
    for norm in head.layers[:2]: norm[0].momentum = 0.   # each call normalizes by the same
    check(head, lambda call, out, last: call(out, last, LENGTHS), states(), rand(2, 4))

def test_attention():
    check(build(lambda: Attention(4, 3)), lambda call, out, src: call(out, src, LENGTHS), states(), rand(2, 3, 3))

@pytest.mark.parametrize('lazy', [False, True], ids=['whole', 'lazy'])
@pytest.mark.parametrize('tie', [True, False], ids=['tied', 'untied'])
@pytest.mark.parametrize('kind,args', [(AdaptiveDecoder, dict(cutoffs=[2, 4], div_value=1.5)), (MixtureDecoder, dict(n_softmaxes=2))])
def test_heads_of_words(kind, args, tie, lazy):
    "Of all probabilities, and of the loss by groups or by chunks."
    dec = build(lambda: kind(6, 4, 0.3, nn.Embedding(6, 4) if tie else None, **args))
    dec.lazy = lazy
    def f(call, x):
        out,dropped = call(x)
        return total(dropped) + (out.loss(Y[None], chunk=2) if lazy else total(out))
    check(dec, f, rand(1, 5, 4))

@pytest.mark.parametrize('lean', [False, True])
def test_decoder(lean):
    dec = build(lambda: LMDecoder(5, 4, 0.3))
    dec.lazy = lean
    def f(call, x):
        logits,dropped = call(x)
        return logits.loss(LABELS, chunk=2) if lean else F.cross_entropy(logits.flatten(0, 1), LABELS.flatten()),dropped
    check(dec, f, states())

def test_losses():
    torch.manual_seed(0)
    for f in (OneHotMSE(), OneHotMSE(reduction='none')): derivatives(lambda out, f=f: f(out, LABELS), states())

def test_crf():
    check(build(lambda: CRF(4)), lambda call, scores: call(scores, LABELS, REAL), states())

# ---- whole models

def loss_of(model, y, *inputs):
    def f(call):
        out = call(*inputs)
        out = getattr(out, 'logits', out)
        return F.cross_entropy(out.flatten(0, -2), y.flatten())
    check(model, f)

@pytest.mark.parametrize('arch', ['AWD_LSTM', 'AWD_QRNN', 'AWD_minGRU', 'AWD_RNN'])
def test_language_models(arch):
    model = build(lambda: get_language_model(arch, 6, dict(emb_sz=3, n_hid=4, n_layers=2)))
    loss_of(model, LABELS, IDS)

@pytest.mark.parametrize('bidir', [False, True])
@pytest.mark.parametrize('arch', ['AWD_LSTM', 'AWD_minGRU'])
def test_classifiers(arch, bidir):
    model = build(lambda: get_text_classifier(arch, 6, 2, config=dict(emb_sz=4, n_hid=4, n_layers=2, bidir=bidir), lin_ftrs=[3]))
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d): m.momentum = 0.
    loss_of(model, torch.tensor([0, 1]), IDS)

def test_other_models():
    def layer(n, **kwargs): return Recurrent('minGRU', n, 3, batch_first=True, **kwargs)
    seq = build(lambda: SequenceModel(nn.Embedding(6, 2), layer(2), 4, pad=1, drop=0.2, embed_p=0.2))
    loss_of(seq, LABELS, IDS)
    last = build(lambda: SequenceModel(nn.Embedding(6, 2), layer(2, bidirectional=True), 4, every_step=False, pad=1, pool='concat'))
    loss_of(last, torch.tensor([0, 1]), IDS)
    source = SequenceModel(nn.Embedding(6, 2), layer(2, bidirectional=True), 1, pad=1)
    loss_of(build(lambda: Seq2Seq(source, nn.Embedding(6, 2), layer(2), 4, attention=True)), LABELS, IDS, IDS)

class _Loss(nn.Module):
    "A tagger with the loss of its CRF."
    def __init__(self, tagger):
        super().__init__()
        self.tagger = tagger
    def forward(self, *inputs): return self.tagger.crf(self.tagger(*inputs), LABELS, REAL)

@pytest.mark.parametrize('crf', [False, True])
def test_tagger(crf):
    chars,which = torch.tensor([[1, 2, 0], [2, 1, 3]]),torch.tensor([[0, 1, 1], [1, 0, 0]])
    enc = WordEncoder(nn.Embedding(6, 2), CharEncoder(4, 2, 2), n_hid=2)
    tagger = build(lambda: Tagger(enc, 3, crf))
    if not crf: return loss_of(tagger, LABELS, IDS, chars, which)
    check(_Loss(tagger), lambda call: call(IDS, chars, which))

# ---- what has none

@pytest.mark.slow
def test_the_compiled_backend_says_no():
    rnn,x = Recurrent('sLSTM', 2, 3, backend='compile'),torch.randn(8, 2, 2, requires_grad=True)
    g, = grad(rnn(x)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='double backward'): grad(g.pow(2).sum(), x)
