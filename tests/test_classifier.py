"Text classifiers against a float64 loop over one document, in all kinds of company, on odd files and on bad input."
import json
import os
import pickle

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.text import all as ft
from fastai.text.models import core as fastai_core
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from rnn_fastai import all as rf
from rnn_fastai.data.documents import PaddedText
from rnn_fastai.models.documents import get_text_classifier
from rnn_fastai.ship.bundle import load_learner

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

def detach_state(state): return {k: v.detach() for k,v in state.items()}

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
            with torch.no_grad(): back_outs,_ = read(cell, w, early[::-1], detach_state(go))
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
    model[0].full_rows = 1   # few documents, too, are read in chunks of `seq_len`
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
    x = PaddedText(padded(make_docs()))
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

# ---- Without a gradient, and penalties

@pytest.mark.parametrize('bidir', [False, True], ids=['one way', 'both'])
def test_a_frozen_encoder_says_the_same(bidir):
    model,x = net(bidir=bidir),padded(make_docs())
    want = model(x).logits
    model[0].requires_grad_(False)
    out = model(x)
    assert_close(out.logits, want, **CLOSE)
    assert out.raw is None and out.logits.requires_grad

def test_penalties_are_means_over_real_steps():
    docs = make_docs()
    model = net(max_len=10)
    rows = [model(torch.tensor([d])).raw[0] for d in docs]
    ar = torch.cat(rows).square().mean()
    tar = torch.cat([r[1:] - r[:-1] for r in rows]).square().mean()
    out = model(padded(docs, more=5))
    assert_close((rf.ar_penalty(out.raw, out.real), rf.tar_penalty(out.raw, out.real)), (ar, tar), rtol=1e-4, atol=1e-6)

# ---- The learner

WORDS = 'one two three four five six seven eight nine ten good bad fine awful'.split()
def make_frame(n=40, hi=12, seed=0):
    rng = np.random.default_rng(seed)
    texts = [' '.join(rng.choice(WORDS, rng.integers(1, hi))) for _ in range(n)]
    return pd.DataFrame(dict(text=texts, label=rng.choice(['neg', 'pos', 'so'], n), stars=rng.integers(1, 6, n),
                             score=rng.random(n), tags=[';'.join(rng.choice(list('xyz'), 2, False)) for _ in range(n)]))

def loaders(df=None, **args):
    base = dict(text_col='text', label_col='label', bs=4, seed=1, device='cpu', text_vocab=VOCAB)
    return rf.TextDataLoaders.from_df(make_frame() if df is None else df, **{**base, **args})
VOCAB = ['xxunk', 'xxpad', 'xxbos', 'xxeos', 'xxfld', 'xxrep', 'xxwrep', 'xxup', 'xxmaj', *WORDS]

def make(dls=None, arch='AWD_LSTM', path='.', config=None, **kwargs):
    torch.manual_seed(0)
    learn = rf.text_classifier_learner(loaders() if dls is None else dls, arch, pretrained=False, path=path,
                                       config={**SMALL, **(config or {})}, **kwargs)
    learn.remove_cb(ft.ProgressCallback)
    learn.logger = lambda *a: None
    return learn

KINDS = dict(names={}, ints=dict(label_col='stars'), many=dict(label_col='tags', label_delim=';'),
             value=dict(label_col='score', y_block=ft.RegressionBlock()))
@pytest.mark.parametrize('kind', KINDS)
def test_kinds_of_labels(kind, tmp_path):
    dls = loaders(**KINDS[kind])
    learn = make(dls, path=tmp_path, y_range=(0, 1) if kind == 'value' else None)
    learn.fit(1)
    preds,y = learn.get_preds()
    assert len(preds) == len(y) == len(dls.valid_ds)
    texts = dls.valid_ds.items.text.tolist()
    alone = torch.stack([learn.predict(t)[2] for t in texts])
    assert_close(alone.as_subclass(torch.Tensor), preds.as_subclass(torch.Tensor), **CLOSE)
    learn.show_results(max_n=2)
    if kind == 'value': assert preds.min() > 0 and preds.max() < 1

@pytest.mark.parametrize('bs', [1, 13])
def test_batches_of_one(bs, tmp_path):
    learn = make(loaders(make_frame(27), bs=bs, valid_pct=0.5), path=tmp_path)
    learn.fit(1)
    assert all(p.isfinite().all() for p in learn.model.parameters())
    assert all(b.isfinite().all() for b in learn.model.buffers())

def test_interpretation_and_smoothed_labels(tmp_path):
    learn = make(path=tmp_path, loss_func=ft.LabelSmoothingCrossEntropyFlat())
    learn.fit(1)
    interp = ft.ClassificationInterpretation.from_learner(learn)
    preds,y = learn.get_preds()
    want = torch.zeros(3, 3, dtype=torch.long)
    for a,b in zip(y.tolist(), preds.argmax(1).tolist(), strict=True): want[a, b] += 1
    assert interp.confusion_matrix().tolist() == want.tolist()
    interp.plot_top_losses(2)
    learn.lr_find(num_it=5, show_plot=False, suggest_funcs=None)

def test_long_and_empty_texts(tmp_path):
    learn = make(path=tmp_path, max_len=5, seq_len=3)
    for text in ('', 'good', 'good bad '*40):
        want = learn.get_preds(dl=learn.dls.test_dl(['one two', text, 'three '*20]))[0][1]
        assert_close(learn.predict(text)[2], want, **CLOSE)

@pytest.mark.parametrize('n,parts', [(1, [40]), (2, [32, 8]), (8, [8]*5), (20, [8]*5)])
def test_few_documents_are_read_in_few_parts(n, parts, monkeypatch):
    "One document goes through in one go, where a full batch would take five parts; the answers are the same."
    model,ids = net(max_len=40, seq_len=8),padded(make_docs([40]*n))
    want,seen = logits(model, ids),[]
    model[0].full_rows = 8
    hook = model[0].module.register_forward_hook(lambda m, args, out: seen.append(args[0].size(1)))
    assert_close(logits(model, ids), want, **CLOSE)
    hook.remove()
    assert seen == parts
    early = net(max_len=3, seq_len=8)   # what is read without being kept
    want,early[0].full_rows = logits(early, ids),8
    assert_close(logits(early, ids), want, **CLOSE)

# ---- Eight bits

def trained(tmp_path, arch='AWD_LSTM', **config):
    learn = make(arch=arch, path=tmp_path, config=dict(dict(emb_sz=40, n_hid=60), **config))
    with learn.no_bar(): learn.fit(2, 1e-2)
    return learn

TEXT = 'good bad one two three '*9

@pytest.mark.parametrize('arch,config', [('AWD_LSTM', {}), ('AWD_LSTM', dict(bidir=True)), ('AWD_GRU', {}),
                                         ('AWD_QRNN', {}), ('AWD_RNN', {})], ids=str)
def test_eight_bits_answer_almost_alike(arch, config, tmp_path):
    learn = trained(tmp_path, arch, **config)
    model,whole,eighth = learn.model,learn.predict(TEXT)[2],learn.predict(TEXT, int8=True)[2]
    assert learn.model is model
    assert_close(eighth, whole, rtol=0, atol=0.03)
    if arch in ('AWD_LSTM', 'AWD_GRU'): assert (eighth != whole).any()
    assert_close(learn.predict(TEXT)[2], whole, **EXACT)
    assert len(learn.predict(TEXT, with_input=True, int8=True)) == 4

@pytest.mark.parametrize('change', ['fit', 'data', 'load', 'new'])
def test_eight_bits_follow_the_weights(change, tmp_path):
    learn = trained(tmp_path)
    before = learn.predict(TEXT, int8=True)[2]
    rnn = learn.model[0].module.rnns[0]
    if change == 'fit':
        with learn.no_bar(): learn.fit(3, 0.05)
    if change == 'data': rnn.weight_hh_l0.data.mul_(-3)
    if change == 'load':
        other = make(path=tmp_path, config=dict(emb_sz=40, n_hid=60))
        other.model.load_state_dict({k: v*2 for k,v in learn.model.state_dict().items()})
        other.save('other', with_opt=False)
        learn.load('other', with_opt=False)
    if change == 'new': rnn.weight_ih_l0 = nn.Parameter(-4*rnn.weight_ih_l0.data)
    now = learn.predict(TEXT, int8=True)[2]
    assert (now - before).abs().max() > 1e-3
    assert_close(now, learn.predict(TEXT)[2], rtol=0, atol=0.03)

def test_training_drops_copies(tmp_path):
    learn = trained(tmp_path)
    learn.predict(TEXT, int8=True)
    assert learn.twin.made
    with learn.no_bar(): learn.fit(1)
    assert not learn.twin.made

def test_eight_bits_of_a_net_that_cannot_be_copied(tmp_path):
    "fastai's own AWD_LSTM keeps dropped weights, with their history, in its layers."
    class Own(ft.AWD_LSTM): pass
    with pytest.MonkeyPatch.context() as m:
        m.setitem(fastai_core._model_meta, Own, fastai_core._model_meta[ft.AWD_LSTM])
        learn = make(arch=Own, path=tmp_path)
    with pytest.raises(TypeError, match='FastaiClassifier cannot be copied .*without int8'):
        learn.predict(TEXT, int8=True)
    assert learn.predict(TEXT)[2].sum() > 0.99

def test_eight_bits_leave_nothing_in_files(tmp_path):
    learn = trained(tmp_path)
    sizes = []
    for _ in range(2):
        learn.export('learn.pkl')
        sizes.append((tmp_path/'learn.pkl').stat().st_size)
        learn.predict(TEXT, int8=True)
    assert abs(sizes[1] - sizes[0]) < 1000

def test_eight_bits_where_there_are_none(tmp_path, monkeypatch):
    learn = trained(tmp_path)
    model = learn.model
    monkeypatch.setattr(type(torch.backends.quantized), 'supported_engines', ['none'])
    with pytest.raises(RuntimeError, match='no int8 kernels for this processor; leave int8 out'):
        learn.predict(TEXT, int8=True)
    assert learn.model is model and learn.predict(TEXT)
    monkeypatch.undo()
    hook = learn.model[0].register_forward_hook(lambda *args: None)
    with pytest.raises(ValueError, match='int8=True needs a model on the CPU, without hooks'):
        learn.predict(TEXT, int8=True)
    hook.remove()
    learn.model.to('meta')
    with pytest.raises(ValueError, match='int8=True needs a model on the CPU'): learn.predict(TEXT, int8=True)
    learn.model = model.to_empty(device='cpu').double()
    with pytest.raises(ValueError, match='int8 is for float32 weights on the CPU; this one is torch.float64'):
        learn.predict(TEXT, int8=True)
    assert learn.model is model

@pytest.mark.parametrize('arch', ARCHS)
def test_groups_hold_each_weight_once(arch, tmp_path):
    learn = make(arch=arch, path=tmp_path)
    learn.create_opt()
    held = [id(p) for pg in learn.opt.param_lists for p in pg]
    assert sorted(held) == sorted(id(p) for p in learn.model.parameters()) and len(learn.opt.param_lists) == 4
    learn.freeze()
    assert [p.requires_grad for p in learn.model[0].parameters()] == [False]*len(list(learn.model[0].parameters()))
    learn.freeze_to(-2)
    assert all(p.requires_grad for p in learn.model[0].module.rnns[-1].parameters())

class Free(ft.Callback):
    "How many weights train in each fit, and for how many epochs."
    def before_fit(self):
        if hasattr(self.learn, 'gather_preds'): return
        self.seen = [*getattr(self, 'seen', []), (sum(p.requires_grad for p in self.model.parameters()), self.n_epoch)]

def test_fine_tune_trains_all_where_nothing_was_learnt(tmp_path):
    free = Free()
    learn = make(path=tmp_path, cbs=free)
    learn.freeze()
    learn.fine_tune(2, 1e-2)
    assert free.seen == [(len(list(learn.model.parameters())), 3)]

def test_fine_tune_starts_with_the_head_where_something_was(tmp_path):
    free = Free()
    make(path=tmp_path).save_encoder('enc')
    learn = make(path=tmp_path, cbs=free).load_encoder('enc')
    learn.fine_tune(2, 1e-2)
    assert free.seen == [(len(list(learn.model[1].parameters())), 1), (len(list(learn.model.parameters())), 2)]

# ---- Weights from elsewhere

def rows_of(learn): return dict(zip(learn.dls.vocab[0], learn.model[0].module.encoder.weight.detach(), strict=True))

@pytest.mark.parametrize('vocab', [[VOCAB[0], *VOCAB[:0:-1]], VOCAB[:16], [*VOCAB, 'new', 'words']], ids=['order', 'fewer', 'more'])
def test_encoders_move_to_other_vocabularies(vocab, tmp_path):
    old = make(path=tmp_path)
    old.save_encoder('enc')
    learn = make(loaders(text_vocab=vocab), path=tmp_path).load_encoder('enc')
    was,now = rows_of(old),rows_of(learn)
    for w in vocab:
        want = was[w] if w in was else old.model[0].module.encoder.weight.detach().mean(0)
        if w != 'xxpad': assert_close(now[w], want)
    assert (learn.transfer.n_found, learn.transfer.n_words) == (sum(w in VOCAB for w in vocab), len(vocab))
    assert f'{learn.transfer.n_found} of {len(vocab)} words found' in str(learn.transfer)

class Kernels(TorchDispatchMode):
    "Counts torch's operations."
    n = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += 1
        return func(*args, **(kwargs or {}))

def test_transfer_to_a_large_vocabulary_takes_no_step_per_word(tmp_path):
    vocab = [*VOCAB, *(f'w{i}' for i in range(40_000))]
    dls = loaders(text_vocab=vocab)
    make(dls, path=tmp_path).save_encoder('enc')
    learn = make(dls, path=tmp_path)
    with Kernels() as ran: learn.load_encoder('enc')
    assert 0 < ran.n < 1000

def unchanged(learn, f, error, match):
    "`f` raises, and leaves the weights and what trains as they were."
    before = {k: v.clone() for k,v in learn.model.state_dict().items()}
    free = [p.requires_grad for p in learn.model.parameters()]
    with pytest.raises(error, match=match): f()
    assert_close(dict(learn.model.state_dict()), before, **EXACT)
    assert [p.requires_grad for p in learn.model.parameters()] == free and learn.transfer is None

def test_encoders_that_do_not_fit(tmp_path):
    make(path=tmp_path).save_encoder('enc')
    other = make(loaders(text_vocab=[*VOCAB[:9], 'alpha', 'beta']), path=tmp_path)
    unchanged(other, lambda: other.load_encoder('enc'), ValueError, 'None of the 11 words .* among the 23')
    for arch,cfg in (('AWD_GRU', {}), ('AWD_LSTM', dict(n_hid=10)), ('AWD_LSTM', dict(n_layers=3)),
                     ('AWD_LSTM', dict(bidir=True))):
        learn = make(arch=arch, path=tmp_path, config=cfg)
        unchanged(learn, lambda learn=learn: learn.load_encoder('enc'), ValueError, 'do not fit the model')

@pytest.mark.parametrize('text,match', [('["a"', 'cannot be read as a vocabulary'), ('{"a": 1}', 'no vocabulary'),
                                        (json.dumps(['w']*99), 'do not belong together')])
def test_vocabularies_that_do_not_fit(text, match, tmp_path):
    learn = make(path=tmp_path)
    learn.save_encoder('enc')
    (tmp_path/'models'/'enc.vocab.json').write_text(text)
    other = make(loaders(text_vocab=[VOCAB[0], *VOCAB[:0:-1]]), path=tmp_path)
    unchanged(other, lambda: other.load_encoder('enc'), ValueError, match)

class Evil:
    "Makes a folder when it is unpickled."
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return os.mkdir,(self.path,)

@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
def test_pickles_that_run_code_are_refused(legacy, tmp_path):
    learn = make(path=tmp_path)
    file = learn.save_encoder('enc.pth')
    state = {**torch.load(file), 'more': Evil(tmp_path/'pwned')}
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)
    fresh = make(path=tmp_path)
    unchanged(fresh, lambda: fresh.load_encoder('enc'), ValueError, 'holds objects besides weights')
    torch.save({'0.encoder.weight': torch.zeros(3, 6)}, tmp_path/'lm.pth')
    (tmp_path/'lm.pkl').write_bytes(pickle.dumps(Evil(tmp_path/'pwned')))
    unchanged(fresh, lambda: fresh.load_pretrained(tmp_path/'lm.pth', tmp_path/'lm.pkl'), ValueError, 'mkdir')
    assert not (tmp_path/'pwned').exists()

# ---- Both readings

@pytest.mark.parametrize('kind', KINDS)
def test_both_readings_are_the_mean(kind, tmp_path):
    args = KINDS[kind]
    pair = make(loaders(**args), path=tmp_path),make(loaders(backwards=True, **args), path=tmp_path)
    torch.manual_seed(1)
    for p in pair[1].model.parameters(): p.data += 0.3*torch.randn_like(p)
    both = rf.combine_directions(*pair)
    (p,y),(a,z),(b,_) = (l.get_preds() for l in (both, *pair))
    assert y.tolist() == z.tolist() and not torch.allclose(a, b, atol=1e-3)
    assert_close(p, (a + b)/2, **CLOSE)
    both.fit(1, 1e-3)
    both.save('both')
    again = rf.combine_directions(make(loaders(**args), path=tmp_path), make(loaders(backwards=True, **args), path=tmp_path))
    assert_close(again.load('both').get_preds()[0], both.get_preds()[0], **CLOSE)

def test_readings_that_do_not_go_together(tmp_path):
    forth,back = make(path=tmp_path),make(loaders(backwards=True), path=tmp_path)
    for a,b,match in ((back, forth, 'backwards is True for the first loaders and False for the second'),
                      (forth, make(loaders(backwards=True, text_vocab=VOCAB[:20])), '23 and 20 words, of which 20'),
                      (forth, make(loaders(backwards=True, label_col='stars')), 'The labels differ')):
        with pytest.raises(ValueError, match=match): rf.combine_directions(a, b)

# ---- Bad input

@pytest.mark.parametrize('args,match', [
    (dict(arch='AWD_LTSM'), "Unknown architecture 'AWD_LTSM'"), (dict(config=dict(hid=3)), "config has no entry 'hid'"),
    (dict(max_len=0), 'max_len=0'), (dict(seq_len=0), 'seq_len=0'), (dict(ps=[0.1, 0.2]), 'ps has 3 entries'),
    (dict(ps=[1.5]), 'ps=1.5'), (dict(lin_ftrs=[4, 4], ps=[0.1]), 'ps has 2 entries, but there are 3 linear layers'),
    (dict(config=dict(n_hid=7, bidir=True)), 'n_hid=7 cannot be shared')])
def test_arguments_that_do_not_fit(args, match):
    with pytest.raises(ValueError, match=match): make(**args)

def test_one_class_only():
    with pytest.raises(ValueError, match="All labels are 'pos': there is nothing to tell apart. Give texts"):
        make(loaders(make_frame().assign(label='pos')))

def test_rows_of_padding_alone():
    for model in (net(), net(bidir=True)):
        with pytest.raises(ValueError, match='Row 1 of the batch is all padding'): model(torch.tensor([[2, 3], [1, 1]]))

def test_texts_without_a_token():
    no_bos = rf.TextTokenizer(rules=[])
    df = make_frame()
    df.loc[7, 'text'] = ''
    with pytest.raises(ValueError, match='Text [0-9]+ of [0-9]+ has no token; leave'):
        loaders(df, tok_tfm=no_bos)

# ---- Files and arguments that are odd in other ways

NO_WEIGHTS = {'tensor': torch.ones(3), 'list': [torch.ones(2)], 'none': None, 'numbers for names': {1: torch.ones(2)},
              'empty': {}, 'no embedding': {'emb.w': torch.ones(3, 3)}, 'text': {'encoder.weight': 'x'},
              'one number': {'encoder.weight': torch.tensor(1.)}}

@pytest.mark.parametrize('with_vocab', [False, True], ids=['', 'vocab'])
@pytest.mark.parametrize('what', NO_WEIGHTS)
def test_files_without_weights_are_named(what, with_vocab, tmp_path):
    learn = make(path=tmp_path)
    learn.save_encoder('odd.pth')
    torch.save(NO_WEIGHTS[what], tmp_path/'models'/'odd.pth')
    if not with_vocab: (tmp_path/'models'/'odd.vocab.json').unlink()
    unchanged(learn, lambda: learn.load_encoder('odd'), ValueError, 'odd.pth')
    unchanged(learn, lambda: learn.load('odd'), ValueError, 'odd.pth')

def test_load_pretrained_of_an_encoder_names_the_file(tmp_path):
    learn = make(path=tmp_path)
    file = learn.save_encoder('enc')
    def load(): learn.load_pretrained(file, file.with_suffix('.vocab.json'), model=learn.model[0].module)
    unchanged(learn, load, ValueError, 'enc.safetensors')

def test_a_vocabulary_shorter_than_the_weights_is_refused(tmp_path):
    learn = make(path=tmp_path)
    learn.save_encoder('enc')
    (tmp_path/'models'/'enc.vocab.json').write_text(json.dumps(VOCAB[:12]))
    unchanged(learn, lambda: learn.load_encoder('enc'), ValueError, r'\b(has 12|12 words)\b')

@pytest.mark.parametrize('words', [['w']*99, ['alpha', 'beta']*11 + ['gamma']], ids=['more', 'others'])
def test_vocabularies_that_do_not_fit_are_named(words, tmp_path):
    learn = make(path=tmp_path)
    learn.save_encoder('enc')
    (tmp_path/'models'/'enc.vocab.json').write_text(json.dumps(words))
    unchanged(learn, lambda: learn.load_encoder('enc'), ValueError, r'enc\.(safetensors|vocab\.json)')

DAMAGED = {'append to a string': b'\x80\x04\x8c\x01a\x8c\x01ba.',
           'set an item of a number': b'\x80\x04K\x01K\x02K\x03s.', 'huge frame': b'\x80\x04\x95' + b'\xff'*8 + b'].',
           'huge string': b'\x80\x04\x8e' + (2**62).to_bytes(8, 'little'), 'nested': b'['*100_000}

@pytest.mark.parametrize('how', DAMAGED)
def test_damaged_vocabularies(how, tmp_path):
    file = tmp_path/('v.json' if how == 'nested' else 'v.pkl')
    file.write_bytes(DAMAGED[how])
    with pytest.raises(ValueError, match=file.name): rf.read_vocab(file)

def test_folder_in_place_of_a_vocabulary(tmp_path):
    (tmp_path/'v.json').mkdir()
    with pytest.raises(ValueError, match='v.json'): rf.read_vocab(tmp_path/'v.json')

def sure_pair(tmp_path, **kwargs):
    "Two readings that are sure of different answers."
    pair = make(path=tmp_path, **kwargs),make(loaders(backwards=True), path=tmp_path, **kwargs)
    for learn,k in zip(pair, (4., -4.), strict=True):
        for p in learn.model.parameters(): p.data *= k
    return pair

@pytest.mark.parametrize('loss', [ft.CrossEntropyLossFlat(weight=torch.tensor([1., 2., 3.])), ft.FocalLossFlat(),
                                  ft.LabelSmoothingCrossEntropyFlat(), ft.LabelSmoothingCrossEntropy()],
                         ids=lambda l: type(l).__name__)
def test_both_readings_are_the_mean_by_any_loss(loss, tmp_path):
    pair = sure_pair(tmp_path, loss_func=loss)
    (a,_),(b,_),(p,_) = (l.get_preds() for l in (*pair, rf.combine_directions(*pair)))
    assert (a - b).abs().max() > 0.3
    assert_close(p, (a + b)/2, **CLOSE)

def test_joined_answers_of_sure_nets_are_finite():
    x = torch.tensor([[400., -400.], [-400., 400.], [0., 0.]], dtype=torch.float64, requires_grad=True)
    for loss,f in ((ft.CrossEntropyLossFlat(), lambda t: t.softmax(-1)), (ft.BCEWithLogitsLossFlat(), torch.sigmoid)):
        out = rf.mean_answer(x, x.detach().flip(0)/8, loss)
        assert_close(f(out), (f(x) + f(x.detach().flip(0)/8))/2, **DOUBLE)
        assert torch.autograd.grad(out.sum(), x)[0].isfinite().all()

def test_readings_of_other_outputs_are_refused(tmp_path):
    df = make_frame().assign(two=0.5, one=lambda d: d.tags.str[0])
    value = loaders(df, label_col='score', y_block=ft.RegressionBlock())
    values = loaders(df, label_col=['score', 'two'], y_block=ft.RegressionBlock(n_out=2), backwards=True)
    one,many = loaders(df, label_col='one'),loaders(df, label_col='tags', label_delim=';', backwards=True)
    for a,b in ((value, values), (one, many)):
        with pytest.raises(ValueError): rf.combine_directions(make(a, path=tmp_path), make(b, path=tmp_path))

def test_both_readings_as_a_learner(tmp_path):
    pair = make(path=tmp_path),make(loaders(backwards=True), path=tmp_path)
    both = rf.combine_directions(*pair)
    both.remove_cb(ft.ProgressCallback)
    both.logger = lambda *a: None
    before = [p.clone() for p in both.model.parameters()]
    both.fine_tune(1, 1e-2)
    assert not any(torch.equal(p, q) for p,q in zip(both.model.parameters(), before, strict=True))
    assert both.model.forwards is pair[0].model and both.model.backwards is pair[1].model
    assert_close(both.predict('one two')[2], (pair[0].predict('one two')[2] + pair[1].predict('one two')[2])/2, **CLOSE)
    pair[0].save_encoder('enc')
    for f in (both.save_encoder, both.load_encoder):
        with pytest.raises(TypeError, match='BidirectionalEnsemble has no separate encoder'): f('enc')
    ft.ClassificationInterpretation.from_learner(both).plot_top_losses(2)
    both.show_results(max_n=2)
    both.lr_find(num_it=5, show_plot=False, suggest_funcs=None)
    both.export('both.pkl')
    again = load_learner(tmp_path/'both.pkl')
    assert_close(again.predict('one two')[2], both.predict('one two')[2], **CLOSE)

def test_both_readings_with_padding_on_the_left():
    one,two = net(seed=1),net(seed=2)
    both = rf.BidirectionalEnsemble(one, two, ft.CrossEntropyLossFlat()).eval()
    docs = make_docs()
    want = torch.cat([rf.mean_answer(logits(one, torch.tensor([d])), logits(two, torch.tensor([d[::-1]])),
                                     ft.CrossEntropyLossFlat()) for d in docs])
    with torch.no_grad():
        for how in ('left', 'right', 'both'): assert_close(both(padded(docs, how, 3)), want, **CLOSE)

def test_one_tag_that_is_there_or_not(tmp_path):
    df = make_frame().assign(tags=['x', '']*20)
    learn = make(loaders(df, label_col='tags', label_delim=';'), path=tmp_path)
    learn.fit(1)
    assert learn.get_preds()[0].shape == (8, 1)

ODD_ARGS = dict(ps=[0.1, ['a'], [-0.1]], lin_ftrs=[50, [0], [-1], [2.5], ['a']], n_out=[0, -1, 2.5, True],
                y_range=[5, (1,), (3, 1), (1, 1)], drop_mult=[3, -1], max_len=[-5, 2.5, '9'], seq_len=[None, 1.5])

@pytest.mark.parametrize('name,value', [(k, v) for k,vs in ODD_ARGS.items() for v in vs])
def test_arguments_are_named(name, value):
    with pytest.raises((ValueError, TypeError)) as e: make(**{name: value})
    shown = value[0] if isinstance(value, list) else value
    assert name in str(e.value) and str(shown) in str(e.value) and 'could not be told' not in str(e.value)

# ---- More of the learner

class Added(ft.Callback):
    "What the penalties add to the loss of each batch, and what they should add, a document at a time."
    order = 99
    def after_loss(self):
        if not self.training: return
        (x,),docs = self.learn.xb,[]
        with torch.no_grad():
            for row in x.as_subclass(torch.Tensor): docs.append(self.learn.model[0](row[None, row != 1]).out[0])
        ar = torch.cat(docs).square().mean()
        steps = torch.cat([d[1:] - d[:-1] for d in docs])
        tar = steps.square().mean() if len(steps) else torch.tensor(0.)
        added = (self.learn.loss_grad - self.learn.loss).detach()
        self.seen = [*getattr(self, 'seen', []), (added.item(), (3*ar + 2*tar).item(), len({len(d) for d in docs}))]

@pytest.mark.parametrize('bidir', [False, True], ids=['one way', 'both'])
def test_penalties_in_training_are_of_real_steps(bidir, tmp_path):
    added = Added()
    learn = make(path=tmp_path, alpha=3., beta=2., cbs=added, config={**NO_DROP, 'bidir': bidir}, max_len=6)
    learn.model[0].module.encoder.weight.data *= 30
    learn.fit(1, 0.)
    assert len(added.seen) == len(learn.dls.train) and max(n for *_,n in added.seen) > 1
    for got,want,_ in added.seen: assert abs(got - want) < 1e-3*want

class Rates(ft.Callback):
    "Rates of all groups in each step."
    def before_step(self): self.seen = [*getattr(self, 'seen', []), [h['lr'] for h in self.opt.hypers]]

def test_rates_of_fine_tune_are_fastais(tmp_path):
    make(path=tmp_path).save_encoder('enc')
    ours,theirs = Rates(),Rates()
    args = dict(epochs=2, base_lr=3e-3, freeze_epochs=2, lr_mult=50, pct_start=0.4, div=4.)
    make(path=tmp_path, cbs=ours).load_encoder('enc').fine_tune(**args)
    ft.Learner.fine_tune(make(path=tmp_path, cbs=theirs).load_encoder('enc'), **args)
    assert ours.seen == theirs.seen and len({tuple(r) for r in ours.seen}) > 10 and len(set(ours.seen[-1])) == 4

@pytest.mark.parametrize('pool', ['last', 'max', 'mean', 'concat'])
@pytest.mark.parametrize('bidir', [False, True], ids=['one way', 'both'])
def test_pools_of_small_nets(pool, bidir):
    dls,docs = loaders(),[[5, 9, 3], [8, 2, 7, 12, 20, 4, 4], [6]]
    torch.manual_seed(0)
    learn = rf.rnn_learner(dls, 'LSTM', n_hid=4, emb_sz=6, pool=pool, bidirectional=bidir)
    model,plain = learn.model.eval().double(),nn.LSTM(6, 4, batch_first=True, bidirectional=bidir).double()
    plain.load_state_dict(model.rnn.state_dict())
    want = []
    for d in docs:
        h,(end,_) = plain(model.inp(torch.tensor([d])))
        parts = dict(last=end.flatten(), max=h[0].max(0)[0], mean=h[0].mean(0))
        want.append(model.head(torch.cat(list(parts.values())) if pool == 'concat' else parts[pool]))
    for how in ('right', 'left', 'both'): assert_close(model(padded(docs, how, 2)), torch.stack(want), **DOUBLE)

def test_drop_of_small_nets_is_for_training_only():
    torch.manual_seed(0)
    model = rf.rnn_learner(loaders(), 'GRU', n_hid=4, pool='mean', drop=0.5).model
    x,seen = torch.randint(2, 20, (3, 9)),[]
    model.rnn.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach()))
    model.eval()
    assert_close(model(x), model(x), **EXACT)
    model.train()
    assert not torch.equal(model(x), model(x))
    whole,dropped = seen[0],seen[2]
    ratio = dropped/whole   # one mask for all steps of a sequence
    assert_close(ratio, ratio[:, :1].expand_as(ratio))
    assert set(ratio.round(decimals=4).unique().tolist()) == {0., 2.}

def test_frozen_layers_below_a_trained_one_say_the_same(tmp_path):
    learn = make(path=tmp_path, config=NO_DROP, max_len=10, seq_len=3)
    model,x = learn.model.eval(),padded([[i % 20 + 2 for i in d] for d in make_docs()])
    want = model(x).logits.detach()
    learn.create_opt()
    for n in (-1, -2, -3, 0):
        learn.freeze_to(n)
        out = model(x)
        assert_close(out.logits, want, **CLOSE)
        assert (out.raw is None) == (n == -1)

@pytest.mark.parametrize('bidir', [False, True], ids=['one way', 'both'])
@pytest.mark.parametrize('arch', ARCHS)
def test_half_precision(arch, bidir):
    model = net(arch, bidir, scale=1.)
    with torch.autocast('cpu', torch.bfloat16):
        half = model(padded(make_docs())).logits
        half.float().sum().backward()
        frozen = logits(model, padded(make_docs()))
    want = logits(model, padded(make_docs()))
    for out in (half, frozen): assert_close(out.detach().float(), want, rtol=0.1, atol=0.1)


# --- Many texts at once ---

@pytest.mark.parametrize('kind', ['labels', 'several', 'values'])
def test_classify_gives_what_predict_gives_for_each(kind):
    "In the order of the texts, whatever their lengths; of a list, a column and a frame."
    labels = {'labels': ['a', 'b'], 'several': ['a;b', 'b'], 'values': [0.5, 2.]}[kind]
    df = pd.DataFrame({'text': ['one two three four', 'five']*10, 'label': labels*10})
    how = {'labels': {}, 'several': dict(label_delim=';'), 'values': dict(y_block=rf.RegressionBlock())}[kind]
    dls = rf.TextDataLoaders.from_df(df, text_col='text', label_col='label', bs=4, seed=1, **how)
    learn = rf.text_classifier_learner(dls, 'AWD_LSTM', config=dict(emb_sz=6, n_hid=6, n_layers=1), pretrained=False)
    texts = ['five', 'one two three four five', 'two', 'three four one', 'one']
    with learn.no_bar():
        many,each = learn.classify(texts, bs=2),[learn.predict(t) for t in texts]
        for a,b in zip(many, each, strict=True):
            if kind == 'values': assert_close(list(a[0]), list(b[0]))
            else: assert list(a[0]) == list(b[0])
            assert_close(a[1], b[1]); assert_close(a[2], b[2])
        frame = pd.DataFrame({'text': texts})
        for other in (frame, frame.text):
            for a,b in zip(learn.classify(other), many, strict=True): assert_close(a[2], b[2])
        assert learn.classify([]) == []
        for odd in (texts, frame):
            with pytest.raises(TypeError, match='predict takes one text. For many, call classify'): learn.predict(odd)
