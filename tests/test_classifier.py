"Text classifiers against a float64 loop over one document, in all kinds of company, on odd files and on bad input."
import json
import os
import pickle
from functools import cache, partial

import fastai.text.core
import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.text import all as ft
from torch import nn
from torch.testing import assert_close

from rnn_fastai import all as rf
from rnn_fastai.callback.regularize import ar_penalty, tar_penalty
from rnn_fastai.models.classifier import DocumentEncoder, get_text_classifier
from rnn_fastai.models.heads import PoolingClassifier, pool_states

matplotlib.use('Agg')
EXACT,CLOSE,DOUBLE = dict(rtol=0, atol=0),dict(rtol=0, atol=1e-5),dict(rtol=1e-9, atol=1e-10)
SMALL = dict(emb_sz=6, n_hid=8, n_layers=2)
NO_DROP = dict(output_p=0., hidden_p=0., input_p=0., embed_p=0., weight_p=0.)
ORACLES = 'AWD_LSTM', 'AWD_GRU', 'AWD_QRNN', 'AWD_minGRU', 'AWD_minLSTM', 'AWD_RNN'
ARCHS = [f'AWD_{c}' for c in rf.cells if f'AWD_{c}' in rf.archs]
SCALES = dict(AWD_IndRNN=1., AWD_LayerNormLSTM=1.)   # with larger weights, they explode or are chaotic
LENS = 7, 31, 2, 19, 1, 12, 40

# ---- One document, step by step

def one_step(cell, w, x, state):
    "Output and next state of a cell whose weights are `w`, for one step of one document."
    gx = w['weight_ih']@x + w['bias_ih']
    if cell == 'minGRU':
        z,g = gx.chunk(2)
        h = (1 - z.sigmoid())*state['h'] + z.sigmoid()*g
        return dict(h=h)
    if cell == 'minLSTM':
        f,i,g = gx.chunk(3)
        f,i = f.sigmoid(),i.sigmoid()
        return dict(h=(f*state['h'] + i*g)/(f + i))
    if cell == 'QRNN':
        z,f,o = (gx + state['before'] if 'before' in state else gx).chunk(3)
        c = f.sigmoid()*state['c'] + (1 - f.sigmoid())*z.tanh()
        return dict(h=o.sigmoid()*c, c=c, before=w['weight_ip']@x)
    gh = w['weight_hh']@state['h'] + w['bias_hh']
    if cell == 'RNN': return dict(h=(gx + gh).tanh())
    if cell == 'GRU':
        (rx,zx,nx),(rh,zh,nh) = gx.chunk(3),gh.chunk(3)
        z,n = (zx + zh).sigmoid(),(nx + (rx + rh).sigmoid()*nh).tanh()
        return dict(h=(1 - z)*n + z*state['h'])
    i,f,g,o = (gx + gh).chunk(4)
    c = f.sigmoid()*state['c'] + i.sigmoid()*g.tanh()
    return dict(h=o.sigmoid()*c.tanh(), c=c)

def read(cell, w, xs, state=None):
    "States after each of `xs`, and the last one, of one layer in one direction."
    n = len(w['weight_ih'])//{'RNN': 1, 'minGRU': 2, 'LSTM': 4}.get(cell, 3)
    state,hs = state or dict(h=torch.zeros(n).double(), c=torch.zeros(n).double()),[]
    for x in xs:
        state = one_step(cell, w, x, state)
        hs.append(state['h'])
    return hs,state

def layer_weights(params, i, back=''):
    "Weights of one direction of layer `i` by the cell's own names."
    pre,suf = f'0.module.rnns.{i}.',f'_l0{back}'
    return {k[len(pre):-len(suf)]: v for k,v in params.items() if k.startswith(pre) and k.endswith(suf)}

def detached(state): return {k: v.detach() for k,v in state.items()}

def oracle(params, cell, doc, max_len, n_layers=2, bidir=False):
    "Logits of one document (a list of ids) in evaluation mode; the tokens before the last `max_len` get no gradient."
    emb,at = params['0.module.encoder.weight'],max(len(doc) - max_len, 0)
    early,late = list(emb[doc[:at]].detach()),list(emb[doc[at:]])
    for i in range(n_layers):
        w = layer_weights(params, i)
        with torch.no_grad(): outs,come = read(cell, w, early)
        hs,end = read(cell, w, late, come if early else None)
        last = hs[-1]
        if bidir:
            w = layer_weights(params, i, '_reverse')
            back,go = read(cell, w, late[::-1])
            with torch.no_grad(): back_outs,_ = read(cell, w, early[::-1], detached(go))
            last = torch.cat([last, (back_outs or back)[-1]])
            hs = [torch.cat(p) for p in zip(hs, back[::-1], strict=True)]
            outs = [torch.cat(p) for p in zip(outs, back_outs[::-1], strict=True)]
        early,late = outs,hs
    h = torch.stack(late)
    x = torch.cat([last, h.max(0)[0], h.mean(0)])
    for k in range(2):
        pre = f'1.layers.{k}.'
        mean,var,g,b = (params[f'{pre}0.{n}'] for n in ('running_mean', 'running_var', 'weight', 'bias'))
        x = (x - mean)/(var + 1e-5).sqrt()*g + b
        x = params[f'{pre}1.weight']@x
        if k == 0: x = x.relu()
    return x

def net(arch='AWD_LSTM', bidir=False, max_len=10, seq_len=4, scale=None, seed=0, **config):
    "A classifier without dropout, in evaluation mode, with large weights and statistics that are not those of birth."
    torch.manual_seed(seed)
    model = get_text_classifier(arch, 50, 3, seq_len, {**SMALL, **NO_DROP, 'bidir': bidir, **config}, max_len=max_len,
                                ps=[0.])
    for p in model[0].parameters(): p.data *= SCALES.get(arch, 3.) if scale is None else scale
    for k,b in model.named_buffers():
        if 'running' in k: b.uniform_(0.5, 1.5)
    return model.eval()

def make_docs(lens=LENS, seed=1):
    torch.manual_seed(seed)
    return [torch.randint(2, 50, (n,)).tolist() for n in lens]

def padded(docs, how='right', more=0):
    "Documents as rows, filled up on one side or on both."
    width = max(map(len, docs)) + more
    def row(d, i):
        n = width - len(d)
        left = dict(right=0, left=n, both=(n + i) // 2 if n else 0)[how]
        return [1]*left + d + [1]*(n-left)
    return torch.tensor([row(d, i % 2) for i,d in enumerate(docs)])

def logits(model, x):
    with torch.no_grad(): return model(x).logits

@pytest.mark.parametrize('bidir', [False, True], ids=['one way', 'both'])
@pytest.mark.parametrize('arch', ORACLES)
def test_logits_equal_a_loop_over_one_document(arch, bidir):
    docs = make_docs()
    for max_len,seq_len in ((10, 4), (12, 72), (1, 1), (None, 7), (40, 13)):
        model = net(arch, bidir, max_len, seq_len).double()
        want = torch.stack([oracle(model.state_dict(), arch[4:], d, max_len or 10**6, bidir=bidir) for d in docs])
        assert want.std(0).min() > 1e-3
        for how in ('right', 'left', 'both'):
            assert_close(logits(model, padded(docs, how, 3)), want, **DOUBLE)
            assert_close(model(padded(docs, how)).logits, want, **DOUBLE)

def test_three_layers_of_a_single_document_longer_than_all():
    model,(doc,) = net(n_layers=3, bidir=True, max_len=3).double(),make_docs([50])
    want = oracle(model.state_dict(), 'LSTM', doc, 3, n_layers=3, bidir=True)
    assert_close(logits(model, torch.tensor([doc]))[0], want, **DOUBLE)

def test_one_layer():
    model,(doc,) = net(n_layers=1, max_len=3).double(),make_docs([9])
    want = oracle(model.state_dict(), 'LSTM', doc, 3, n_layers=1)
    assert_close(logits(model, torch.tensor([doc]))[0], want, **DOUBLE)

@pytest.mark.parametrize('bidir', [False, True], ids=['one way', 'both'])
def test_torchs_lstm_says_the_same(bidir):
    model,docs = net(bidir=bidir, n_layers=1).double(),make_docs()
    enc,out = model[0].module,nn.LSTM(6, 3 if bidir else 6, batch_first=True, bidirectional=bidir).double()
    out.load_state_dict(enc.rnns[0].state_dict())
    for d in docs:
        h,(end,_) = out(enc.encoder(torch.tensor([d])))
        x = torch.cat([end.flatten(), h[0, -10:].max(0)[0], h[0, -10:].mean(0)])
        assert_close(logits(model, torch.tensor([d])), model[1].layers(x[None]).detach(), **DOUBLE)

# ---- Company

@pytest.mark.parametrize('bidir', [False, True], ids=['one way', 'both'])
@pytest.mark.parametrize('arch', ARCHS)
def test_company_does_not_matter(arch, bidir):
    docs,rng = make_docs(),np.random.default_rng(0)
    model = net(arch, bidir)
    alone = torch.cat([logits(model, torch.tensor([d])) for d in docs])
    assert alone.isfinite().all() and alone.std(0).min() > 1e-3
    for how in ('right', 'left', 'both'):
        for seq_len in (1, 3, 10, 100):
            order = rng.permutation(len(docs))[:rng.integers(1, len(docs)+1)]
            model[0].seq_len = seq_len
            x = padded([docs[i] for i in order], how, int(rng.integers(5)))
            assert_close(logits(model, x), alone[order], **CLOSE)
            assert_close(model(x).logits.detach(), alone[order], **CLOSE)

def test_the_same_document_many_times():
    model,(doc,other) = net(),make_docs([25, 40])
    got = logits(model, padded([doc, other, doc, doc]))
    assert_close(got[[0, 2, 3]], logits(model, torch.tensor([doc])).expand(3, -1), **CLOSE)

def test_early_tokens_matter():
    model,(doc,) = net(),make_docs([14])
    assert not torch.allclose(logits(model, torch.tensor([doc])), logits(model, torch.tensor([doc[4:]])), atol=1e-3)

@pytest.mark.parametrize('max_len', [5, None])
@pytest.mark.parametrize('n', [4, 5, 6])
def test_lengths_about_max_len(n, max_len):
    model,docs = net(max_len=max_len, seq_len=5),make_docs([n, n, 5, 1])
    alone = torch.cat([logits(model, torch.tensor([d])) for d in docs])
    assert_close(logits(model, padded(docs)), alone, **CLOSE)

def test_texts_of_the_loaders_type():
    x = rf.PaddedText(padded(make_docs()))
    out = net()(x)
    assert type(out.logits) is torch.Tensor and out.real.sum(1).tolist() == sorted(out.real.sum(1).tolist())[::-1]

# ---- Gradients

def grads(loss, params):
    gs = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    return {k: torch.zeros_like(p) if g is None else g for (k,p),g in zip(params.items(), gs, strict=True)}

@pytest.mark.parametrize('bidir', [False, True], ids=['one way', 'both'])
@pytest.mark.parametrize('arch', ['AWD_LSTM', 'AWD_GRU', 'AWD_QRNN', 'AWD_minGRU'])
def test_gradients_equal_a_loop_over_one_document(arch, bidir):
    docs,targets = make_docs(),torch.tensor([0, 1, 2, 0, 1, 2, 0])
    model = net(arch, bidir, scale=2.).double()
    leaves = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k,v in model.state_dict().items()}
    out = torch.stack([oracle(leaves, arch[4:], d, 10, bidir=bidir) for d in docs])
    names = [k for k,_ in model.named_parameters()]
    want = grads(nn.functional.cross_entropy(out, targets, reduction='sum'), {k: leaves[k] for k in names})
    for seq_len in (1, 72):
        for order in (range(7), (6, 2, 0, 4, 5, 3, 1)):
            model[0].seq_len = seq_len
            got = model(padded([docs[i] for i in order], 'both')).logits
            loss = nn.functional.cross_entropy(got, targets[list(order)], reduction='sum')
            assert_close(grads(loss, dict(model.named_parameters())), want, rtol=1e-7, atol=1e-9)
    apart = [nn.functional.cross_entropy(model(torch.tensor([d])).logits, t[None])
             for d,t in zip(docs, targets, strict=True)]
    assert_close(grads(sum(apart), dict(model.named_parameters())), want, rtol=1e-7, atol=1e-9)

@pytest.mark.parametrize('bidir', [False, True], ids=['one way', 'both'])
@pytest.mark.parametrize('arch', ARCHS)
def test_gradients_reach_the_last_tokens_and_no_others(arch, bidir):
    model = net(arch, bidir, max_len=6, seq_len=4, scale=1.5)
    docs = list(range(2, 22)),list(range(22, 32)),list(range(32, 36))   # each token once
    model(padded(docs)).logits.square().sum().backward()
    reached = model[0].module.encoder.weight.grad.abs().sum(1).nonzero().flatten().tolist()
    assert reached == [*range(16, 22), *range(26, 32), *range(32, 36)]

def test_gradients_reach_all_with_no_max_len():
    model = net(max_len=None, scale=1.)
    model(torch.arange(2, 42)[None]).logits.sum().backward()
    assert (model[0].module.encoder.weight.grad.abs().sum(1) > 0).nonzero().flatten().tolist() == list(range(2, 42))

@pytest.mark.parametrize('pad', [0, 1, 3])
def test_padding_of_another_id(pad):
    torch.manual_seed(0)
    model = get_text_classifier('AWD_LSTM', 20, 3, 4, {**SMALL, **NO_DROP}, ps=[0.], pad_idx=pad).eval()
    ids = [i for i in range(20) if i != pad]
    x = torch.tensor([ids, ids[:4] + [pad]*(len(ids)-4)])
    out = model(x).logits
    assert_close(out[1:], model(x[1:, :4]).logits, **CLOSE)
    out.square().sum().backward()
    assert (model[0].module.encoder.weight.grad.abs().sum(1) > 0).nonzero().flatten().tolist() == ids
