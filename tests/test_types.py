"Types of numbers: inputs of another type or device than the weights, and autocast on the CPU, on any processor."
import copy
import os
import subprocess
import sys

import pandas as pd
import pytest
import torch
from fastai.callback import fp16
from fastai.text import all as ft
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from rnn_fastai import all as rf
from rnn_fastai.models import kernels
from rnn_fastai.models.awd import get_language_model
from rnn_fastai.models.cells import cells, get_cell
from rnn_fastai.models.documents import get_text_classifier
from rnn_fastai.models.ensemble import ManyNets
from rnn_fastai.models.heads import LMDecoder, PoolingClassifier
from rnn_fastai.models.losses import linear_cross_entropy
from rnn_fastai.models.packed import pack
from rnn_fastai.models.recurrent import Recurrent
from rnn_fastai.models.seq2seq import Attention, OneHot, SequenceModel, token_input
from rnn_fastai.models.tagger import CharEncoder, Tagger, WordEncoder

pytestmark = pytest.mark.usefixtures('one_thread')

def has(cell, backend):
    try: return bool(Recurrent(cell, 2, 3, backend=backend))
    except ValueError: return False
RUNS = [(c, b) for c in cells for b in ('fused', 'scan', 'loop') if has(c, b)]
by_run = pytest.mark.parametrize('name,backend', RUNS)

# ---- another type or device

def wrong(x, layer=torch.float32):
    return pytest.raises(TypeError, match=rf"The input is {x.dtype} and the layer {layer}\. Convert one of them: "
                                          rf"x\.to\({layer}\) or layer\.to\({x.dtype}\)")

OTHERS = [torch.float64, torch.float16, torch.bfloat16]

@pytest.mark.parametrize('dtype', OTHERS)
@by_run
def test_layers(name, backend, dtype):
    rnn,x = Recurrent(name, 2, 3, batch_first=True, backend=backend),torch.randn(2, 4, 2).to(dtype)
    packed = nn.utils.rnn.pack_padded_sequence(x, [4, 3], batch_first=True)
    for args in ((x,), (x, None, [4, 2]), (x[0],), (packed,)):
        with wrong(x): rnn(*args)
    rnn.eval()
    with torch.no_grad(), wrong(x): rnn(x[:, :1])   # the short way of one step
    half = Recurrent(name, 2, 3, backend=backend).to(dtype)
    with wrong(x.float(), dtype): half(x.float())
    assert half(x)[0].dtype == dtype   # the remedy
    assert rnn(x.to(torch.float32))[0].dtype == torch.float32

@pytest.mark.parametrize('name', cells)
def test_cells(name):
    cell,x = get_cell(name)(2, 3),torch.randn(4, 2).double()
    for t in (x, x[0]):
        with wrong(t): cell(t)
    with pytest.raises(ValueError, match="The input is on meta and the layer on cpu"): cell(x.float().to('meta'))

@pytest.mark.parametrize('name', ['RNN', 'LSTM', 'GRU'])
def test_many_nets(name):
    nets,x = ManyNets(name, 2, 3, 2, n_nets=2),torch.randn(4, 5, 2)
    with wrong(x.double()): nets(x.double())
    with pytest.raises(TypeError, match='torch.int64; ids must be embedded'): nets(x.long())
    with pytest.raises(ValueError, match='2 features, .*built for 3'): ManyNets(name, 3, 3, 2, n_nets=2)(x)

def test_heads():
    x,last = torch.randn(2, 3, 4).double(),torch.randn(2, 4).double()
    for call in (lambda: LMDecoder(5, 4)(x), lambda: PoolingClassifier([12, 2], [0.])(x, last),
                 lambda: Attention(4, 4)(x, x.float()), lambda: Attention(4, 4)(x.float(), x),
                 lambda: linear_cross_entropy(x, torch.randn(5, 4), None, torch.zeros(2, 3).long())):
        with wrong(x): call()

def test_models_that_take_embeddings():
    model,x = get_language_model('AWD_LSTM', 6, dict(emb_sz=3, n_hid=4, n_layers=2)),torch.randn(2, 3, 3)
    with wrong(x.double()): model[0](x.double(), from_embeds=True)

def test_other_devices():
    rnn,x = Recurrent('LSTM', 2, 3),torch.randn(4, 2, 2)
    with pytest.raises(ValueError, match="The input is on meta and the layer on cpu"): rnn(x.to('meta'))
    with pytest.raises(ValueError, match="The input is on cpu and the layer on meta"): rnn.to('meta')(x)

# ---- models and losses of other types

@pytest.mark.parametrize('dtype', OTHERS)
@pytest.mark.parametrize('emb_sz', [None, 4], ids=['alone', 'before a linear layer'])
def test_one_hot_vectors_have_the_type_of_the_model(emb_sz, dtype):
    torch.manual_seed(0)
    inp,n = token_input(6, emb_sz, one_hot=True)
    model,ids = SequenceModel(inp, Recurrent('GRU', n, 5, batch_first=True), 6),torch.tensor([[2, 3, 5], [0, 1, 4]])
    want = model(ids)
    got = copy.deepcopy(model).to(dtype)(ids)
    assert got.dtype == dtype
    assert_close(got.float(), want, rtol=0, atol=1e-6 if dtype == torch.float64 else 0.02)
    assert not OneHot(6).state_dict() and OneHot(6).to('meta')(ids.to('meta')).device.type == 'meta'

def test_one_hot_vectors_of_a_double_model_keep_its_digits():
    torch.manual_seed(0)
    model = SequenceModel(OneHot(3), Recurrent('RNN', 3, 2, batch_first=True, backend='loop'), 3).double()
    for p in model.parameters(): p.data = torch.randn_like(p)
    c,h = model.rnn.cells[0],torch.zeros(2, dtype=torch.double)
    for i in (2, 0): h = (c.weight_ih[:, i] + c.bias_ih + c.weight_hh@h + c.bias_hh).tanh()
    assert_close(model(torch.tensor([[2, 0]]))[0, -1], model.head.weight@h + model.head.bias, rtol=0, atol=1e-14)

@pytest.mark.parametrize('dtype', [torch.float32, *OTHERS])
def test_penalties_keep_double_and_leave_half_precision(dtype):
    "Against double precision on the same numbers, within rounding of the result's type."
    torch.manual_seed(0)
    h,real = (1 + torch.randn(3, 6, 5).double()/8).to(dtype),torch.arange(6) < torch.tensor([6, 3, 1])[:, None]
    full,x = torch.float64 if dtype == torch.float64 else torch.float32,h.double()
    for f,squares,counts in ((rf.ar_penalty, x**2, real), (rf.tar_penalty, (x[:, 1:] - x[:, :-1])**2, real[:, 1:])):
        for got,want in ((f(h), squares.mean()), (f(h, real), squares[counts].mean())):
            assert got.dtype == full
            assert_close(got.double(), want, rtol=8*torch.finfo(full).eps, atol=0)
    assert rf.tar_penalty(h[:, :1]).dtype == full

def test_probes_of_a_double_model_keep_its_digits():
    torch.manual_seed(0)
    model,ids = get_language_model('AWD_GRU', 6, dict(emb_sz=3, n_hid=4, n_layers=1)).double().eval(),torch.randint(6, (3, 7))
    with torch.no_grad(): logits = model(ids[:, :-1]).logits
    assert rf.next_token_loss(model, ids) == F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()

TEXTS = pd.DataFrame(dict(text=['a fine film , so good', 'bad and too long', 'not so bad at all', 'really']*5,
                          label=list('pnpn')*5))
SMALL = dict(config=dict(emb_sz=4, n_hid=5, n_layers=1), drop_mult=0., pretrained=False)
HOW = dict(seed=0, device='cpu')

def lean():
    dls = rf.TextDataLoaders.from_df(TEXTS, text_col='text', is_lm=True, bs=2, seq_len=5, no_bar=True, **HOW)
    return rf.language_model_learner(dls, 'AWD_LSTM', cbs=rf.ChunkedCrossEntropy(), **SMALL)
def crf():
    toks = [t.split() for t in TEXTS.text]
    df = pd.DataFrame(dict(tokens=toks, tags=[['A', 'B', 'A', 'A', 'B', 'A'][:len(t)] for t in toks]))
    return rf.tagger_learner(rf.TagDataLoaders.from_df(df, bs=4, **HOW), emb_sz=4, n_hid=5, drop=0., embed_p=0., crf=True)
def torchs_loss():
    dls = rf.TextDataLoaders.from_df(TEXTS, text_col='text', label_col='label', bs=4, no_bar=True, **HOW)
    return rf.text_classifier_learner(dls, 'AWD_LSTM', loss_func=nn.CrossEntropyLoss(), ps=[0.], **SMALL)
def one_hot(): return rf.rnn_learner(rf.SeqDataLoaders.from_series('hello world. '*20, device='cpu'), 'GRU', 5, one_hot=True)

def trained(make, change):
    "A learner after an epoch, and its losses of training and validation."
    torch.manual_seed(0)
    learn = make()
    learn.remove_cb(ft.ProgressCallback)
    change(learn)
    ft.set_seed(0)
    with learn.no_logging(): learn.fit(1, 1e-3)
    return learn,torch.tensor([float(v) for v in learn.recorder.values[-1][:2]])

by_learner = pytest.mark.parametrize('make', [lean, crf, torchs_loss, one_hot])

@by_learner
@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_learners_train_models_of_other_types(make, dtype):
    learn,losses = trained(make, lambda learn: learn.model.to(dtype))
    assert {p.dtype for p in learn.model.parameters()} == {dtype}
    assert_close(losses, trained(make, lambda learn: None)[1], rtol=1e-4 if dtype == torch.float64 else 0.05, atol=0)

@by_learner
@pytest.mark.parametrize('how', ['to_fp16', 'to_bf16'])
def test_mixed_precision(make, how):
    losses = [trained(make, change)[1] for change in (lambda learn: getattr(learn, how)(), lambda learn: None)]
    assert_close(*losses, rtol=0.05, atol=0)

@by_learner
@pytest.mark.parametrize('mode', ['fp16', 'bf16'])
def test_fastais_mixed_precision(make, mode):
    "Without a GPU fastai's callback asks outputs for their type and casts nothing, so that training is as without it."
    losses = [trained(make, change)[1] for change in (lambda learn: learn.add_cb(fp16.MixedPrecision(mode)), lambda learn: None)]
    assert_close(*losses, rtol=0.05 if torch.cuda.is_available() else 1e-3, atol=0)

@by_learner
def test_learners_train_in_autocast(make):
    with torch.autocast('cpu', torch.bfloat16): learn,losses = trained(make, lambda learn: None)
    assert {p.dtype for p in learn.model.parameters()} == {torch.float32}
    assert_close(losses, trained(make, lambda learn: None)[1], rtol=0.05, atol=0)

# ---- autocast on the CPU

@pytest.fixture(params=['as it is', 'no bfloat16'])
def processor(request, monkeypatch):
    "The processor of this machine, or one for which oneDNN has no kernels in bfloat16."
    if request.param != 'as it is': monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: False)
    return request.param

SHARP = 'LayerNormLSTM', 'IndRNN'   # a division by a small spread, and a corner, make much of rounding in gradients

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('lengths', [None, [5, 3]], ids=['full', 'padded'])
@by_run
def test_autocast(name, backend, lengths, dtype, processor):
    "States, outputs and gradients near those of float32; weights get gradients of their own type."
    torch.manual_seed(0)
    rnn,x = Recurrent(name, 3, 16, 2, bidirectional=True, backend=backend),torch.randn(5, 2, 3, requires_grad=True)
    found = []
    for cast in (True, False):
        with torch.autocast('cpu', dtype, enabled=cast): out,last = rnn(x, None, lengths)
        gs = torch.autograd.grad(out.float().pow(2).sum(), [x, *rnn.parameters()])
        last = last if isinstance(last, tuple) else (last,)
        assert all(g.isfinite().all() for g in gs) and {g.dtype for g in gs} == {torch.float32}
        if name in SHARP: gs = ()
        found.append([t.float() for t in (out, *last, *gs)])
        if cast and (name, backend) == ('LSTM', 'fused'): assert {t.dtype for t in (out, *last)} == {dtype}
    for a,b in zip(*found, strict=True): assert (a - b).norm() <= 0.05*b.norm() + 1e-3
    rnn.eval()
    with torch.no_grad(), torch.autocast('cpu', dtype): assert_close(rnn(x)[0].float(), rnn(x.float())[0].float())

def test_the_lstm_runs_in_single_precision(monkeypatch):
    "Where there is no kernel, it is the result of float32, rounded once; double precision stays as it is."
    monkeypatch.setattr(kernels, '_lacks_lstm', lambda x: torch.is_autocast_enabled('cpu'))
    rnn,x = Recurrent('LSTM', 3, 4),torch.randn(5, 2, 3)
    with torch.autocast('cpu', torch.bfloat16): out,(h,c) = rnn(x)
    want,(wh,wc) = rnn(x)
    assert_close((out, h, c), tuple(t.bfloat16() for t in (want, wh, wc)), rtol=0, atol=0)
    monkeypatch.undo()
    with torch.autocast('cpu', torch.bfloat16): assert rnn.double()(x.double())[0].dtype == torch.float64

@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('name', ['RNN', 'LSTM', 'GRU'])
def test_many_nets_in_autocast(name, bias, processor):
    nets,x = ManyNets(name, 2, 3, 4, n_nets=3, bias=bias),torch.randn(6, 2)
    with torch.autocast('cpu', torch.bfloat16): h,logits = nets(x)
    assert_close((h.float(), logits.float()), nets(x), rtol=0, atol=0.03)
    logits.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in nets.parameters())

IDS,Y = torch.tensor([[2, 3, 4, 5], [5, 2, 1, 1]]),torch.tensor([[0, 1, 1, 0], [1, 0, 1, 1]])
LETTERS,WHICH = torch.tensor([[1, 2, 0], [2, 1, 3]]),torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0]])

def models():
    config = dict(emb_sz=4, n_hid=6, n_layers=2)
    yield get_language_model('AWD_LSTM', 6, config, drop_mult=0.),(IDS,),Y
    for bidir in (False, True):
        m = get_text_classifier('AWD_LSTM', 6, 2, 2, dict(config, bidir=bidir), drop_mult=0., ps=[0.])
        yield m,(IDS,),Y[:, 0]
    words = WordEncoder(nn.Embedding(6, 2), CharEncoder(4, 2, 2), n_hid=3, drop=0., embed_p=0.)
    yield Tagger(words, 3),(IDS, LETTERS, WHICH),Y
    for name in ('LSTM', 'GRU', 'minGRU'):
        yield SequenceModel(nn.Embedding(6, 3), Recurrent(name, 3, 4, batch_first=True), 3, stream=True),(IDS,),Y

def test_models_in_autocast(processor):
    "Loss, gradients and answers of each kind of model; batch normalization in evaluation, as it magnifies rounding."
    torch.manual_seed(0)
    for model,inputs,y in models():
        found = []
        for cast in (True, False):
            m = copy.deepcopy(model).eval()
            with torch.autocast('cpu', torch.bfloat16, enabled=cast):
                out = m(*inputs)
                out = getattr(out, 'logits', out)
                loss = F.cross_entropy(out.flatten(0, -2).float(), y.flatten())
            loss.backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in m.parameters())
            with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=cast): out = m(*inputs)
            gs = torch.cat([p.grad.flatten() for p in m.parameters() if p.grad is not None])
            found.append((loss, getattr(out, 'logits', out).float(), gs))
        assert_close(*found, rtol=0.03, atol=0.03)

@pytest.mark.parametrize('kwargs', [{}, dict(int8=True), dict(reproducible=True)], ids=['packed', 'int8', 'reproducible'])
def test_packed_models_in_autocast(kwargs):
    if kwargs.get('int8') and 'x86' not in torch.backends.quantized.supported_engines: pytest.skip('no int8 kernels')
    torch.manual_seed(0)
    model = get_language_model('AWD_LSTM', 300, dict(emb_sz=200, n_hid=130, n_layers=2)).eval()
    packed,ids = pack(copy.deepcopy(model), **kwargs),torch.randint(300, (3, 6))
    with torch.no_grad():
        want = model(ids)
        with torch.autocast('cpu', torch.bfloat16): got = packed(ids[:, 3:], packed(ids[:, :3]).state)
    assert_close(got.logits.float(), want.logits[:, 3:], rtol=0, atol=0.01)

def test_on_a_processor_without_bfloat16():
    "oneDNN is told that the processor has no such instructions: its LSTM then raises, and ours does not."
    code = """
import torch
from torch import nn
from rnn_fastai.models.ensemble import ManyNets
from rnn_fastai.models.recurrent import Recurrent
rnn,x = Recurrent('LSTM', 3, 4, 2, bidirectional=True, dropout=0.),torch.randn(5, 2, 3)
nets = ManyNets('LSTM', 3, 4, 2, n_nets=2)
for dtype in (torch.bfloat16, torch.float16):
    for grad in (True, False):
        for lengths in (None, [5, 3]):
            with torch.autocast('cpu', dtype), torch.set_grad_enabled(grad): out,_ = rnn(x, None, lengths)
            assert out.dtype == dtype and (out.float() - rnn(x, None, lengths)[0]).abs().max() < 0.02
            if grad: out.float().sum().backward()
        with torch.autocast('cpu', dtype), torch.set_grad_enabled(grad): nets(x)
"""
    env = dict(os.environ, ONEDNN_MAX_CPU_ISA='AVX2', PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
