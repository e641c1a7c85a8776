"`rnn_learner` and what is around it: hand-written plain torch as the oracle, fastai's features, odd input and errors."
import bz2
import copy
import gzip
import inspect
import json
import lzma
import math
import pickle
from functools import partial
from itertools import product
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.testing import assert_close

from rnn_fastai.all import (
    IGNORE,
    ClassificationInterpretation,
    EarlyStoppingCallback,
    GradientClip,
    LMLearner,
    LMOutput,
    LossHistory,
    ManyNets,
    NextTokenLearner,
    OneHot,
    OneHotMSE,
    OptimWrapper,
    Recurrent,
    RNNLearner,
    Sampling,
    SaveModelCallback,
    SeqDataLoaders,
    ShowDecoded,
    TagDataLoaders,
    TextDataLoaders,
    cells,
    counting,
    evaluating,
    generate,
    module_learner,
    noop,
    plot_nets,
    plot_probs,
    read_vectors,
    rnn_learner,
    seeded,
    set_seed,
    token_accuracy,
    token_input,
    word_vectors,
)
from rnn_fastai.data.task import pad_ids, seq_kinds
from rnn_fastai.generate.decode import WholePrefix
from rnn_fastai.learner.rnn import RNNConfig
from rnn_fastai.ship.bundle import load_learner

matplotlib.use('agg')
CLOSE,EXACT,CPU = dict(rtol=1e-5, atol=1e-5),dict(rtol=1e-8, atol=1e-8),dict(device='cpu')
TORCH = dict(RNN=nn.RNN, LSTM=nn.LSTM, GRU=nn.GRU)
GLOVE = Path(__file__).parents[1]/'../shared/data/glove_50d_5k/glove-50d-5k.json.xz'
SEQS = ['ab', 'abc', 'c', 'bbbb', 'cab', 'ac', 'bca', 'b', 'aabb', 'cc']
VECS = {t: np.random.default_rng(ord(t)).normal(size=5) for t in 'abcABC1'}
INPUTS = dict(embedding=dict(emb_sz=5), one_hot=dict(one_hot=True), linear=dict(one_hot=True, emb_sz=5),
              vectors=dict(vectors=VECS))
by_cell = pytest.mark.parametrize('cell', list(cells))
by_torch = pytest.mark.parametrize('cell', list(TORCH))
by_input = pytest.mark.parametrize('inp', list(INPUTS))
by_kind = pytest.mark.parametrize('kind', seq_kinds)

def loaders(kind, n=1, **kwargs):
    "Small loaders of each kind, of sequences that differ in length."
    if kind == 'next': return SeqDataLoaders.from_series([list('abcabCab'), list('bcabC'), list('cab')], **CPU)
    ys = {'many-to-one': [s[0] for s in SEQS], 'many-to-many': [s.upper() for s in SEQS],
          'one-to-many': [s*2 for s in 'abc']*4, 'encoder-decoder': [s[::-1] for s in SEQS]}[kind]
    xs = list('abc')*4 if kind == 'one-to-many' else SEQS
    return SeqDataLoaders.from_pairs(xs*n, ys*n, kind, **{**dict(valid_pct=0, seed=0), **CPU, **kwargs})

def quiet(learn):
    if hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
    learn.logger = noop
    return learn

def make(dls, cell='GRU', n_hid=None, seed=0, **kwargs):
    with seeded(seed): return quiet(rnn_learner(dls, cell, n_hid, **kwargs))

def tup(s): return s if isinstance(s, tuple) else (s,)
def torch_opt(opt=torch.optim.Adam, **kwargs): return partial(OptimWrapper, opt=partial(opt, **kwargs))

# ---- every kind, cell, input and option trains

OPTIONS = [dict(), dict(num_layers=2, dropout=0.3), dict(bidirectional=True), dict(attention=True, num_layers=2),
           dict(attention=True, bidirectional=True)]
def options(kind): return [o for o in OPTIONS if not (kind == 'next' and o.get('bidirectional'))
                           and (kind == 'encoder-decoder' or not o.get('attention'))]

@by_kind
@by_cell
def test_every_combination_trains(kind, cell):
    dls = loaders(kind)
    batch,n_out = dls.valid.one_batch(),len(dls.task.y_vocab)
    for (i,inp),opts in product(enumerate(INPUTS), options(kind)):
        if i and cell not in ('LSTM', 'minGRU'): continue
        learn = make(dls, cell, 4, **INPUTS[inp], **opts)
        model,(*xb,y) = learn.model,batch
        out = model(*xb)
        logits = out.logits if kind == 'next' else out
        assert logits.shape == (*y.shape, n_out)
        loss = learn.loss_func(logits, y)
        loss.backward()
        still = [n for n,p in model.named_parameters() if p.dim() > 1 and (p.grad is None or not p.grad.any())]
        assert not still or cell in ('SRU', 'QRNN') and dls.task.n_inp == 2, (inp, opts, still)   # they do not read all
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        real = y != IGNORE
        assert_close(loss, F.cross_entropy(logits[real], y[real]))
        model.eval()
        assert_close(*(tup(model(*xb))[0] for _ in range(2)), rtol=0, atol=0)   # nothing is kept between calls

@by_kind
def test_dropouts_and_backend_arrive(kind):
    dls = loaders(kind)
    rnn = make(dls, 'LSTM', 6, num_layers=2, dropout=0.1, weight_p=0.2, zoneout_p=0.3, backend='loop', proj_size=3,
               cell_args=dict(bias=False)).model.rnn
    assert (rnn.dropout, rnn.weight_p, rnn.zoneout_p, rnn.backend, rnn.n_out) == (0.1, 0.2, 0.3, 'loop', 3)
    assert not any('bias' in n for n,_ in rnn.named_parameters())

# ---- against plain torch, written by hand

class ByHand(nn.Module):
    "Input, torch's layer over packed sequences, head."
    def __init__(self, learn, cell, kind):
        super().__init__()
        model = copy.deepcopy(learn.model)
        self.inp,self.head,self.task,self.kind,r = model.inp,model.head,learn.task,kind,model.rnn
        self.rnn = TORCH[cell](r.input_size, r.hidden_size, r.num_layers, batch_first=True,
                               bidirectional=r.bidirectional)
        self.rnn.load_state_dict(r.state_dict())

    def features(self, ids):
        if isinstance(self.inp, nn.Embedding): return self.inp.weight[ids]
        x = torch.eye(len(self.task.vocab))[ids]
        return x if isinstance(self.inp, OneHot) else x @ self.inp[1].weight.T + self.inp[1].bias

    def forward(self, ids):
        lengths = torch.full((len(ids),), ids.size(1)) if self.task.pad is None else (ids != self.task.pad).sum(1)
        out,h = self.rnn(pack_padded_sequence(self.features(ids), lengths, batch_first=True, enforce_sorted=False))
        if self.kind == 'many-to-one':
            h = h[0] if isinstance(h, tuple) else h
            return self.head(torch.cat([h[-2], h[-1]], 1) if self.rnn.bidirectional else h[-1])
        return self.head(pad_packed_sequence(out, batch_first=True)[0])

@by_torch
@by_input
@pytest.mark.parametrize('kind,bidir,layers', [('next', False, 2), ('many-to-one', True, 2), ('many-to-many', True, 1)])
def test_equals_plain_torch(cell, inp, kind, bidir, layers):
    learn = make(loaders(kind), cell, 6, bidirectional=bidir, num_layers=layers, lr=0.01, opt_func=torch_opt(),
                 **INPUTS[inp])
    *_,x,y = learn.dls.valid.one_batch()
    def ours():
        with evaluating(learn.model), torch.no_grad(): out = learn.model(x)
        return out.logits if kind == 'next' else out
    plain = ByHand(learn, cell, kind)
    opt = torch.optim.Adam(plain.parameters(), lr=0.01)
    real = torch.ones_like(y, dtype=torch.bool) if y.dim() == 1 else (y != IGNORE)
    assert_close(ours()[real], plain(x)[real], **CLOSE)
    for _ in range(3):
        opt.zero_grad(); F.cross_entropy(plain(x)[real], y[real]).backward()
        if isinstance(plain.inp, nn.Embedding) and plain.inp.padding_idx == 0: plain.inp.weight.grad[0] = 0
        opt.step()
    learn.fit(3)
    assert_close(ours()[real], plain(x)[real], **CLOSE)
    assert_close(torch.tensor(learn.validate()[0]), F.cross_entropy(plain(x)[real], y[real]).detach(), **CLOSE)

def test_default_optimizer_is_adamw():
    learn = make(SeqDataLoaders.from_series('abcabC'*5, **CPU), 'RNN', 6, one_hot=True, wd=0.1, wd_bn_bias=True)
    learn.task,x,y = learn.dls.task,*learn.dls.one_batch()
    plain = ByHand(learn, 'RNN', 'next')
    opt = torch.optim.AdamW(plain.parameters(), lr=0.01, betas=(0.9, 0.99), eps=1e-5, weight_decay=0.1)
    for _ in range(5): opt.zero_grad(); F.cross_entropy(plain(x)[0], y[0]).backward(); opt.step()
    learn.fit(5, 0.01)
    assert_close(learn.model(x).logits, plain(x), **CLOSE)

@pytest.mark.parametrize('own', [True, False])
def test_published_losses_of_human_numbers(own):   # row E4 of the course
    toks = counting(5, n_rounds=100)
    dls = SeqDataLoaders.from_series(toks, vocab=[',', 'one', 'two', 'three', 'four', 'five'], **CPU)
    hist = LossHistory()
    torch.manual_seed(43052)
    net = nn.ModuleDict(dict(lstm=nn.LSTM(6, 20, batch_first=True), lin=nn.Linear(20, 6))) if own else None
    if own: net.forward = lambda x: net.lin(net.lstm(x)[0])
    learn = quiet(rnn_learner(dls, net if own else 'LSTM', None if own else 20, one_hot=True, lr=0.1, cbs=hist))
    learn.fit(10)
    assert np.allclose(hist.frame.train_loss[[0, 1, 9]], [1.762846, 1.631212, 1.315507], atol=5e-6)
    assert np.allclose(hist.frame.valid_loss[[0, 1, 9]], [1.502211, 1.620583, 0.884034], atol=5e-6)
    want = [[0.935, 0.009, 0.015, 0.011, 0.016, 0.014], [0.133, 0.164, 0.242, 0.172, 0.141, 0.147]]
    assert np.allclose(learn.get_preds()[0][0, :2], want, atol=1e-3)

# ---- windows, state, modules of one's own

class Own(nn.Module):
    "A module whose output and state come in the form asked for."
    def __init__(self, form, n=4, hid=6):
        super().__init__()
        self.form,self.head = form,nn.Linear(hid, n)
        self.rnn = (nn.GRU if form == 'tensor' else nn.LSTM)(n, hid, batch_first=True)
    def forward(self, x, state=None):
        out,state = self.rnn(x, state)
        out = self.head(out)
        if self.form == 'output': return LMOutput(out, None, None, state)
        return [out, list(state)] if self.form == 'lists' else (out, None) if self.form == 'none' else (out, state)

class HandCell(nn.Module):
    "A loop over torch's cell: its state is bs,hid."
    def __init__(self, n=4, hid=6): super().__init__(); self.cell,self.head = nn.GRUCell(n, hid),nn.Linear(hid, n)
    def forward(self, x, h=None):
        out = []
        for t in range(x.size(1)): h = self.cell(x[:, t], h); out.append(self.head(h))
        return torch.stack(out, 1),h

def series(**kwargs): return SeqDataLoaders.from_series('abcabC'*8, n_series=3, **kwargs, **CPU)

@by_cell
@pytest.mark.parametrize('seq_len', [1, 4, 7])
def test_windows_equal_whole(cell, seq_len):
    learn = make(series(), cell, 5, one_hot=True, num_layers=2)
    whole,parts = learn.get_preds(),learn.get_preds(dl=series(seq_len=seq_len).valid)
    assert_close(parts[0], whole[0], **CLOSE)
    assert torch.equal(parts[1], whole[1])

@pytest.mark.parametrize('form', ['tensor', 'tuple', 'lists', 'output'])
def test_own_module_with_state(form):
    with seeded(0): net = Own(form)
    learn = make(series(seq_len=4), net, one_hot=True)
    learn.fit(2, 0.05)
    parts,whole = learn.get_preds()[0],learn.get_preds(dl=series().valid)[0]
    assert_close(parts, whole, **CLOSE)
    ids = learn.task.encode('abcab')
    with torch.no_grad(): logits = net(F.one_hot(ids, 4).float())
    logits = logits[0] if form != 'output' else logits.logits
    assert learn.predict('abcab', temperature=0)[-1] == learn.task.vocab[logits[0, -1].argmax()]

def test_own_module_whose_state_is_rows_first():
    with seeded(0): net = HandCell()
    learn = make(series(seq_len=4), net, one_hot=True)
    learn.fit(1)
    assert_close(learn.get_preds()[0], learn.get_preds(dl=series().valid)[0], **CLOSE)

def test_own_module_that_gives_no_state():
    learn = make(series(seq_len=4), Own('none'), one_hot=True)
    learn.fit(1)
    assert learn.predict('ab', 3).startswith('ab')

@pytest.mark.parametrize('args', [dict(n_hid=9), dict(num_layers=3), dict(bidirectional=True), dict(dropout=0.5),
                                  dict(attention=True), dict(emb_sz=3), dict(vectors='nowhere.txt'), dict(weight_p=0.1),
                                  dict(cell_args=dict(bias=False)), dict(backend='nonsense')], ids=str)
def test_own_module_takes_no_arguments_of_layers(args):
    with pytest.raises(ValueError): make(series(), Own('tuple'), **args)

@pytest.mark.parametrize('kind', ['many-to-one', 'many-to-many'])
def test_alpha_that_does_nothing_is_refused(kind):
    with pytest.raises((ValueError, TypeError)): make(loaders(kind), 'LSTM', 4, alpha=2.)

def test_penalties_matter_and_leave_the_loss_alone():
    dls,got = series(),{}
    for a,b in ((0., 0.), (5., 0.), (0., 5.)):
        learn = make(dls, 'GRU', 6, one_hot=True, alpha=a, beta=b, cbs=(hist := LossHistory()))
        learn.fit(1, 0.1)
        got[a, b] = hist.frame.train_loss[0],learn.model.rnn.weight_hh_l0.detach()
    assert len({round(l, 6) for l,_ in got.values()}) == 1
    assert not any(torch.equal(got[k][1], got[0., 0.][1]) for k in ((5., 0.), (0., 5.)))

def test_layers_built_already():
    dls,layer,rnn = series(),nn.LSTM(4, 6),Recurrent('GRU', 4, 6)
    learn = make(dls, layer, one_hot=True)
    learn.fit(1, 0.1)
    x = learn.dls.one_batch()[0]
    steps_first = F.one_hot(x, 4).float().transpose(0, 1)
    assert_close(learn.model(x).raw.transpose(0, 1), layer(steps_first)[0], **CLOSE)   # the parameters are shared
    make(dls, rnn, one_hot=True)
    assert rnn(torch.randn(7, 2, 4))[1].shape == (1, 2, 6)   # the caller's layer still takes steps first

def test_layers_built_already_take_no_arguments():
    with pytest.raises((ValueError, TypeError), match='nonlinearity'):
        make(series(), nn.RNN(4, 6), one_hot=True, cell_args=dict(nonlinearity='relu'))

def test_whole_prefix():
    class Bag(nn.Module):   # the mean of all read so far
        def __init__(self): super().__init__(); self.emb = nn.Embedding(4, 4)
        def forward(self, ids): return self.emb(ids).cumsum(1)/torch.arange(1, ids.size(1)+1)[:, None]
    with seeded(0): bag = Bag()
    wrapped,ids = WholePrefix(bag),torch.randint(4, (2, 9))
    one = wrapped(ids[:, :5]); two = wrapped(ids[:, 5:], one.state)
    assert_close(torch.cat([one.logits, two.logits], 1), bag(ids))
    assert torch.equal(two.state[0], ids)   # rows on the second axis, as in every state
    seq = ids[0].tolist()
    for _ in range(6): seq.append(bag(torch.tensor([seq]))[0, -1].argmax().item())
    assert list(generate(wrapped, ids[0], 6, Sampling(temperature=0))) == seq[9:]
    learn = make(series(), bag)
    text = ''.join(learn.task.vocab[i] for i in seq)
    assert learn.predict(text[:9], 6, temperature=0) == text

# ---- one answer, tags

@by_cell
@pytest.mark.parametrize('bidir', [False, True])
def test_batch_mates_and_padding_change_nothing(cell, bidir):
    learn = make(loaders('many-to-one'), cell, 5, bidirectional=bidir, num_layers=2)
    m,rows = learn.model.eval(),[learn.task.encode(s)[0] for s in SEQS]
    alone = torch.cat([m(r[None]) for r in rows])
    right,rng = pad_ids([r.tolist() for r in rows]),np.random.default_rng(0)
    left = torch.stack([r.roll(int((r == 0).sum())) for r in right])
    inside = torch.zeros(len(rows), 9, dtype=torch.long)
    for i,r in enumerate(rows): inside[i, np.sort(rng.permutation(9)[:len(r)])] = r
    for batch in (right, left, inside, F.pad(right, (0, 5))): assert_close(m(batch), alone, **CLOSE)
    assert_close(m(right.flip(0)), alone.flip(0), **CLOSE)
    label,i,probs = learn.predict(SEQS[3])
    assert_close(probs, alone[3].softmax(-1).detach(), **CLOSE)
    assert label == learn.task.y_vocab[i] and i == probs.argmax()

@by_cell
def test_tags_do_not_see_padding(cell):
    m = make(loaders('many-to-many'), cell, 5, bidirectional=True).model.eval()
    x = torch.tensor([[1, 2, 3]])
    assert_close(m(F.pad(x, (0, 4)))[:, :3], m(x), **CLOSE)

def test_padding_has_no_vector():
    emb,_ = token_input(3, vectors=torch.ones(3, 2), pad=0)
    assert not emb.weight[0].any() and emb.weight[1:].eq(1).all()

# ---- encoder and decoder

@by_torch
@pytest.mark.parametrize('opts', [dict(), dict(attention=True), dict(attention=True, bidirectional=True, num_layers=2)],
                         ids=str)
def test_seq2seq_by_hand(cell, opts):
    learn = make(loaders('encoder-decoder'), cell, 5, **opts)
    m = learn.model.eval()
    src,tgt,_ = learn.dls.valid.one_batch()
    def layer(r):
        t = TORCH[cell](r.input_size, r.hidden_size, r.num_layers, bidirectional=r.bidirectional)
        t.load_state_dict(r.state_dict())
        return t
    enc,dec,got = layer(m.encoder.rnn),layer(m.rnn),m(src, tgt)
    for b in range(len(src)):   # a pair at a time, with no padding, step by step
        s = src[b][src[b] != learn.task.pad]
        outs,h = enc(m.encoder.inp.weight[s])
        hs = tup(h)
        if opts.get('bidirectional'):
            hs = [torch.cat([x[0::2], x[1::2]], -1) for x in hs]
            hs = [torch.tanh(x @ w.weight.T + w.bias) for x,w in zip(hs, m.bridge, strict=True)]
        h = tuple(hs) if len(hs) > 1 else hs[0]
        for t in range(tgt.size(1)):
            o,h = dec(m.inp.weight[tgt[b, t]][None], h)
            if opts:
                w = torch.softmax(outs @ m.attention.score.weight.T @ o[0], 0)
                o = torch.tanh(torch.cat([w @ outs, o[0]]) @ m.attention.join.weight.T)[None]
            assert_close(got[b, t], m.head(o[0]), **CLOSE)

@pytest.mark.parametrize('kind', ['one-to-many', 'encoder-decoder'])
@by_torch
def test_write_is_greedy(kind, cell):
    learn = make(loaders(kind), cell, 8, attention=kind == 'encoder-decoder')
    learn.fit(15, 0.05)
    m,src = learn.model.eval(),learn.dls.valid.one_batch()[0]
    got = m.write(src, max_len=12)
    assert got.size(1) <= 12
    for s,row in zip(src, got, strict=True):
        tgt = [0]
        while len(tgt) < 13 and tgt[-1] != 1:
            tgt.append(m(s[None], torch.tensor([tgt]))[0, -1].argmax().item())
        assert row.tolist()[:len(tgt)-1] == tgt[1:]
    vocab,pad = learn.task.vocab,learn.task.pad
    x = vocab[src[0]] if kind == 'one-to-many' else [vocab[i] for i in src[0] if i != pad]
    assert learn.predict(x, 12) == learn.task.decode(got[0])
    assert len(learn.predict(x, 1)) <= 1

# ---- errors (losses)

def test_one_hot_mse():
    out,y = torch.randn(3, 4, 5, requires_grad=True),torch.randint(5, (3, 4))
    assert_close(OneHotMSE()(out, y), F.mse_loss(out, F.one_hot(y, 5).float()))
    y[1, 2:] = IGNORE
    assert_close(OneHotMSE()(out, y), F.mse_loss(out[y >= 0], F.one_hot(y[y >= 0], 5).float()))
    assert_close(token_accuracy(out, y), (out.argmax(-1) == y)[y >= 0].float().mean())
    assert torch.equal(OneHotMSE().decodes(out), out.argmax(-1))
    learn = make(series(), 'RNN', 6, one_hot=True, loss_func=OneHotMSE())
    preds,targs,dec = learn.get_preds(with_decoded=True)
    assert torch.equal(dec, preds.argmax(-1))
    assert learn.validate()[0] == pytest.approx(OneHotMSE()(preds, targs).item(), rel=1e-5)

def test_one_hot_mse_gives_losses_by_row():
    learn = make(series(), 'RNN', 6, loss_func=OneHotMSE())
    preds,targs,losses = learn.get_preds(with_loss=True)
    assert_close(losses, torch.stack([OneHotMSE()(p, t) for p,t in zip(preds, targs, strict=True)]), **CLOSE)

# ---- many nets

@pytest.mark.parametrize('cell,args', [('GRU', {}), ('LSTM', {}), ('RNN', {}), ('RNN', dict(nonlinearity='relu')),
                                       ('GRU', dict(bias=False)), ('LSTM', dict(bias=False)),
                                       ('RNN', dict(bias=False))], ids=str)
@pytest.mark.parametrize('bs', [None, 3])
def test_many_nets_equal_independent_ones(cell, args, bs):
    gen = torch.Generator().manual_seed(1)
    y = torch.randint(4, (12,) if bs is None else (12, bs), generator=gen)
    x = torch.eye(4).double()[torch.randint(4, y.shape, generator=gen)]
    many = ManyNets(cell, 4, 3, 4, n_nets=4, seed=5, **args).double()
    losses = many.fit(x, y, 10, lr=0.05, no_bar=True)
    h,logits = many(x)
    for i in range(4):
        torch.manual_seed(5+i)
        rnn,lin = TORCH[cell](4, 3, **args).double(),nn.Linear(3, 4).double()
        opt,alone = torch.optim.Adam([*rnn.parameters(), *lin.parameters()], lr=0.05),[]
        for _ in range(10):
            loss = F.cross_entropy(lin(rnn(x)[0]).flatten(0, -2), y.flatten())
            opt.zero_grad(); loss.backward(); opt.step(); alone.append(loss.item())
        assert_close(h[i], rnn(x)[0], **EXACT)
        assert_close(logits[i], lin(rnn(x)[0]), **EXACT)
        assert_close(losses[:, i].double(), torch.tensor(alone, dtype=torch.double), rtol=1e-6, atol=1e-6)

def test_many_nets_losses_are_of_the_nets_type():
    many,x = ManyNets('RNN', 4, 3, 4, n_nets=2).double(),torch.eye(4).double()
    assert many.fit(x, torch.arange(4), 1, no_bar=True).dtype == torch.double

def test_plot_nets():
    many,y = ManyNets('LSTM', 4, 3, 4, n_nets=7),torch.arange(20) % 4
    x = torch.eye(4)[y]
    h,logits = many(x)
    probs = logits.softmax(-1).detach()
    for targets,last in ((None, 6), (y, 4), (None, 20), (None, 99)):
        axs = plot_nets(many, x, targets, last, names=list('abcd'))
        parts = (h.detach(), probs) if targets is None else (probs, F.one_hot(y, 4).float().expand(7, -1, -1))
        for i,part in enumerate(parts):
            drawn = [np.asarray(ax.images[i].get_array()) for ax in axs]
            assert len(drawn) == 7 and all(map(partial(np.allclose, atol=1e-6), drawn, part[:, -last:]))
        left,right = axs[0].images
        assert (left.get_clim(), left.get_cmap().name) == (((-1, 1), 'signed') if targets is None else ((0, 1), 'Purples'))
        assert (right.get_clim(), right.get_cmap().name) == ((0, 1), 'Purples')
        assert axs[0].lines[0].get_xdata()[0] == parts[0].size(-1) - 0.5
        fig = axs[0].figure
        bars = [a.get_ylabel() for a in fig.axes if a.get_label() == '<colorbar>']
        assert bars == (['probability', 'hidden state h'] if targets is None else ['probability'])
        assert f'7 nets of 3 nodes: last {min(last, 20)} steps' in fig.get_suptitle()
        matplotlib.pyplot.close(fig)

def test_plot_nets_names_columns_and_rows():
    many,ids = ManyNets('RNN', 4, 3, 4, n_nets=5),torch.arange(20) % 4   # three maps above two
    def names(*args, **kwargs):
        axs = plot_nets(many, *args, **kwargs)
        texts = [[[t.get_text() for t in axis.get_ticklabels()] for axis in (ax.xaxis, ax.yaxis)] for ax in axs]
        matplotlib.pyplot.close('all')
        return texts
    onehot = torch.eye(4)[ids]
    got = names(onehot, names=['a', 'b', '$', ' '])
    rows,cols = [r'\$', '␣', 'a', 'b', r'\$', '␣'],['0', '1', '2', 'a', 'b', r'\$', '␣']
    assert [y for _,y in got] == [rows, [], [], rows, []]   # at the left edge
    assert [x for x,_ in got] == [[], [], cols, cols, cols]   # below the last map of each column
    assert names(onehot, ids, last=2, names=list('abcd'))[3] == [list('abcdabcd'), ['c', 'd']]
    numbers = [str(i) for i in range(14, 20)]
    assert names(onehot)[3] == [[*'012', *'0123'], numbers]
    assert names(2*onehot, names=list('abcd'))[3] == [[*'012', *'abcd'], numbers]   # which tokens these are is not known

@pytest.mark.parametrize('args', [dict(y=torch.zeros(40).long()), dict(y=torch.zeros(5).long()), dict(last=0),
                                  dict(last=-2), dict(names=['a'])], ids=['long y', 'short y', 'last=0', 'last=-2', 'one name'])
def test_plot_nets_errors(args):
    many,x = ManyNets('RNN', 4, 3, 4, n_nets=2),torch.eye(4)[torch.arange(20) % 4]
    try:
        with pytest.raises(ValueError): plot_nets(many, x, **args)
    finally: matplotlib.pyplot.close('all')

def test_plot_probs_takes_arrays_for_names():
    ax = plot_probs(np.eye(3), np.array(list('abc')), np.array(list('xyz')))
    assert [t.get_text() for t in ax.get_yticklabels()] == list('xyz')
    matplotlib.pyplot.close('all')

# ---- word vectors

@pytest.mark.parametrize('name,text', [('v.txt', 'the 1 -2\nof 3 .5\n'), ('v.txt', 'the 1 -2 \nof 3 5e-1'),
                                       ('v.vec', '2 2\nthe 1 -2\nof 3 .5\n'),
                                       ('v.json', '{"the": [1, -2], "of": [3, 0.5]}'),
                                       ('v.txt', 'the 1 -2\nof 3 .5\n\n')], ids=repr)
@pytest.mark.parametrize('pack', [None, 'gz', 'xz', 'bz2'])
def test_read_vectors(tmp_path, name, text, pack):
    if pack and text.endswith('\n\n'): pytest.skip('once is enough')
    data = text.encode()
    if pack: data,name = dict(gz=gzip, xz=lzma, bz2=bz2)[pack].compress(data),f'{name}.{pack}'
    (tmp_path/name).write_bytes(data)
    vecs = read_vectors(tmp_path/name)
    assert {w: v.tolist() for w,v in vecs.items()} == {'the': [1., -2.], 'of': [3., 0.5]}
    assert all(v.dtype == np.float32 for v in vecs.values())
    assert list(read_vectors(str(tmp_path/name), ['of', 'king'])) == ['of']

def test_vectors_of_words_with_blanks(tmp_path):   # glove.840B has several, such as `. . .`
    (tmp_path/'v.txt').write_text('the 1 -2\n. . . 3 0.5\n')
    assert {w: v.tolist() for w,v in read_vectors(tmp_path/'v.txt').items()} == {'the': [1., -2.], '. . .': [3., 0.5]}

@pytest.mark.parametrize('name,data,what', [
    ('v.txt', b'the 1 -2\nof 3\n', 'line 2'), ('v.txt', b'the 1 x\n', 'line 1'), ('v.txt', b'the\t1\t2\n', 'line 1'),
    ('v.txt', b'the,1,2\n', 'line 1'), ('v.txt', b'th\xe9 1 2\n', 'v.txt'), ('v.txt.gz', b'the 1 2\n', 'v.txt.gz'),
    ('v.json', b'{"the": ', 'is no JSON'), ('v.json', b'[1, 2]', 'v.json'),
    ('v.json', b'{"the": ["x"]}', 'v.json')], ids=repr)
def test_vectors_that_cannot_be_read(tmp_path, name, data, what):
    (tmp_path/name).write_bytes(data)
    with pytest.raises(ValueError, match=what.replace('.', r'\.')): read_vectors(tmp_path/name)

def test_word_vectors(tmp_path):
    words,have = ['King', 'queen', 'xyzzy', 3],{'king': [1, 2.], 'queen': torch.tensor([3., 4.])}
    vecs,missing = word_vectors(words, {**have, 'Queen': [0, 0]})
    assert vecs[:2].tolist() == [[1., 2.], [3., 4.]] and missing == ['xyzzy', '3'] and vecs.dtype == torch.float32
    assert torch.equal(vecs, word_vectors(words, have)[0])
    assert not torch.equal(vecs, word_vectors(words, have, seed=1)[0])
    with pytest.raises(FileNotFoundError, match='nowhere.txt'): word_vectors(['a'], tmp_path/'nowhere.txt')
    with pytest.raises(ValueError, match='None of the 1 words'): word_vectors(['a'], {'b': [1.]})
    dls = loaders('next')
    with pytest.raises(ValueError, match='emb_sz=4, but the vectors have 5'): make(dls, vectors=VECS, emb_sz=4)
    with pytest.raises(ValueError, match='exclude each other'): make(dls, vectors=VECS, one_hot=True)

@pytest.mark.skipif(not GLOVE.exists(), reason='the file of GloVe vectors is not here')
def test_real_vectors():
    toks = 'the king of france and the queen of england'.split()
    learn = make(SeqDataLoaders.from_series(toks, **CPU), 'LSTM', 8, vectors=GLOVE)
    with lzma.open(GLOVE, 'rt') as f: plain = json.load(f)
    for i,w in enumerate(learn.task.vocab): assert_close(learn.model.inp.weight[i].detach(), torch.tensor(plain[w]))
    before = learn.model.inp.weight.detach().clone()
    learn.fit(120, 0.02)
    assert not torch.equal(before, learn.model.inp.weight)   # they are trained on
    assert learn.predict('the king of', 2, temperature=0) == 'the king of france and'

# ---- loaders

S = SeqDataLoaders
@pytest.mark.parametrize('build,err,what', [
    (lambda: S.from_series(3), TypeError, 'must be'), (lambda: S.from_series(None), TypeError, 'must be'),
    (lambda: S.from_series([]), ValueError, 'empty'),
    (lambda: S.from_series([['a', 'b'], []]), ValueError, 'empty'),
    (lambda: S.from_series('a'), ValueError, 'two are needed'),
    (lambda: S.from_series('ab', n_series=2), ValueError, 'too many'),
    (lambda: S.from_series('ab', vocab=['a']), ValueError, "'b' is not in"),
    (lambda: S.from_series('ab', seq_len=0), ValueError, 'seq_len=0'),
    (lambda: S.from_series('abab', vocab=['a', 'b', 'a']), ValueError, 'twice|more than once|double'),
    (lambda: S.from_pairs(['a'], ['b'], 'next'), ValueError, "kind='next'"),
    (lambda: S.from_pairs(['a'], ['b'], 'many-to-one', valid_pct=-1), ValueError, 'valid_pct=-1'),
    (lambda: S.from_pairs(['a'], ['b'], 'many-to-one', valid_pct=0, bs=0), ValueError, 'bs=0'),
    (lambda: S.from_pairs(['a', ''], ['b', 'c'], 'many-to-one'), ValueError, 'empty'),
    (lambda: S.from_pairs(['a', 'b'], ['b', ''], 'encoder-decoder'), ValueError, 'empty'),
    (lambda: S.from_pairs([['a', ['b']]], ['x'], 'many-to-one', valid_pct=0), TypeError, 'not a token'),
    (lambda: S.from_pairs(['a'], ['x'], 'many-to-one', y_vocab=['y'], valid_pct=0), ValueError, "'x' is not in")],
    ids=lambda v: v if isinstance(v, str) else '')
def test_loader_errors(build, err, what):
    with pytest.raises(err, match=what): build()

def test_loaders_take_columns_and_arrays():
    df = pd.DataFrame(dict(x=SEQS, y=[len(s) for s in SEQS]))
    dls = S.from_pairs(df.x, df.y, 'many-to-one', valid_pct=0.3, seed=1, bs=4, **CPU)
    assert (dls.task.y_vocab, len(dls.train), len(dls.valid), dls.valid.n) == ([1, 2, 3, 4], 2, 1, 3)
    rows = sorted(x[x > 0].tolist() for t in (dls.train, dls.valid) for b in t for x in b[0])
    assert rows == sorted(dls.task.encode(s)[0].tolist() for s in SEQS)   # each row once
    assert [t.tolist() for t in S.from_series(np.array([7, 8, 7, 9]), **CPU).one_batch()] == [[[0, 1, 0]], [[1, 0, 2]]]

def test_rows_of_an_array_are_series():
    assert S.from_series(np.arange(12).reshape(3, 4), **CPU).one_batch()[0].shape == (3, 3)

def test_labels_that_are_tensors():
    assert len(S.from_pairs(['a']*4, torch.tensor([0, 1, 0, 1]), 'many-to-one', valid_pct=0).task.y_vocab) == 2

def test_numbers_as_labels_are_in_order():
    assert S.from_pairs(['a']*11, list(range(11)), 'many-to-one', valid_pct=0).task.y_vocab == list(range(11))

def test_set_seed_makes_splits_reproducible():
    def rows(): set_seed(42); return loaders('many-to-one', 3, seed=None, valid_pct=0.5).valid.tensors[0].tolist()
    assert rows() == rows()

def test_decoding_of_a_series_that_holds_special_tokens():
    toks = ['a', 'xxeos', 'b', 'a', 'xxeos', 'b']
    dls = S.from_series(toks, **CPU)
    assert dls.task.decode(dls.one_batch()[1][0]) == toks[1:]

def test_rows_of_different_length_in_windows():
    rows = [list('abcabcabca'), list('abc')]
    whole,parts = (S.from_series(rows, seq_len=n, **CPU) for n in (None, 3))
    learn = make(parts, 'LSTM', 4)
    learn.fit(1)
    real = whole.one_batch()[1] != IGNORE
    assert_close(learn.get_preds()[0][real], learn.get_preds(dl=whole.valid)[0][real], **CLOSE)

# ---- what fastai's learners can do

@by_kind
def test_life_of_a_learner(kind, tmp_path, capsys):
    dls = loaders(kind, n=2, **({} if kind == 'next' else dict(bs=32)))
    learn = make(dls, 'GRU', 6, path=tmp_path, metrics=token_accuracy, cbs=LossHistory())
    learn.fit_one_cycle(2, 1e-2); learn.freeze()
    assert len(learn.opt.param_lists) == 1 and all(p.requires_grad for p in learn.model.parameters())   # all trains
    learn.unfreeze(); learn.fine_tune(1); learn.fit_flat_cos(1); learn.fit_sgdr(1, 1)
    assert len(learn.loss_history.frame) == 6
    before = {k: v.clone() for k,v in learn.model.state_dict().items()}
    assert 0 < learn.lr_find(num_it=20, show_plot=False).valley < 10
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
    learn.fit(3, cbs=[SaveModelCallback(fname='best'), EarlyStoppingCallback(patience=2), GradientClip(0.1)])
    best = min(learn.loss_history.frame.valid_loss[6:])
    assert learn.validate()[0] == pytest.approx(best, rel=1e-5)   # the best one came back
    learn.save('here')
    want,_ = learn.get_preds()
    other = make(dls, 'GRU', 6, seed=3, path=tmp_path).load('here')
    assert_close(other.get_preds()[0], want)
    with pytest.raises(ValueError): make(dls, 'GRU', 7, path=tmp_path).load('here')
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert ('Seq2Seq' if dls.task.n_inp == 2 else 'SequenceModel') in learn.summary()
    dls.show_batch(max_n=2)
    twin = copy.deepcopy(learn)
    assert_close(twin.get_preds()[0], learn.get_preds()[0])
    assert pickle.loads(pickle.dumps(dls)).task == dls.task

@by_kind
def test_export_and_load_learner(kind, tmp_path):
    learn = make(loaders(kind), 'LSTM', 6, path=tmp_path)
    item,args = 'a',dict(temperature=0) if kind == 'next' else {}
    want = learn.predict(item, **args)
    learn.export('net.pkl')
    got = load_learner(tmp_path/'net.pkl').predict(item, **args)
    assert str(got) == str(want)
    assert learn.predict(item, **args) == want if kind != 'many-to-one' else True

@by_kind
def test_show_results(kind): make(loaders(kind)).show_results()

@pytest.mark.parametrize('kind', seq_kinds[1:])
def test_predictions_are_in_the_order_of_the_rows(kind):
    learn = make(loaders(kind, n=3, bs=4), 'GRU', 6)
    for dl in (None, learn.dls.train):   # as fastai: a loader that shuffles gives its rows in order
        for _ in range(2):
            preds,targs = learn.get_preds(ds_idx=0, dl=dl)
            want = learn.dls.train.tensors[-1]
            if not isinstance(targs, torch.Tensor): targs = pad_ids([t.tolist() for t in targs], IGNORE)
            assert torch.equal(targs, want)

def test_batches_of_different_width_are_gathered():
    dls = S.from_pairs(['a'*9, 'b', 'c'*4]*2, ['x'*9, 'y', 'z'*4]*2, 'many-to-many', bs=1, valid_pct=0, **CPU)
    preds,targs = make(dls, 'GRU', 4).get_preds()   # as lists of rows, or padded
    assert len(preds) == len(targs) == 6

def test_fastai_looks_at_the_vocabulary_of_labels():
    learn = make(loaders('many-to-one'), 'GRU', 6)
    interp = ClassificationInterpretation.from_learner(learn)
    assert interp.confusion_matrix().sum() == len(SEQS) and list(interp.vocab) == learn.task.y_vocab

def test_other_items_are_predicted_or_refused():
    learn = make(loaders('many-to-one'), 'GRU', 6)
    try: dl = learn.dls.test_dl(['abc', 'b'])
    except (NotImplementedError, TypeError, ValueError, AttributeError): return
    preds,_ = learn.get_preds(dl=dl)
    assert_close(preds, torch.stack([learn.predict(s)[2] for s in ('abc', 'b')]), **CLOSE)

def test_show_decoded(capsys):
    learn = make(S.from_series('abcabcab', **CPU), 'GRU', 8, one_hot=True, cbs=ShowDecoded(20))
    learn.fit(41, 0.05)
    assert [e for e,_,_ in learn.show_decoded.lines] == [0, 20, 40] and learn.show_decoded.lines[-1][2] == 'bcabcab'
    assert capsys.readouterr().out.count('epoch') == 3

@pytest.mark.parametrize('kind', seq_kinds[1:])
def test_show_decoded_of_every_kind(kind, capsys): make(loaders(kind), cbs=ShowDecoded(1)).fit(1)

def test_encoder_is_not_to_be_had(tmp_path):
    with pytest.raises((ValueError, TypeError, NotImplementedError), match='encoder'):
        make(loaders('next'), path=tmp_path).save_encoder('enc')

# ---- predict

def test_predict_reads_what_it_is_given():
    words = make(S.from_series(counting(5, n_rounds=2), **CPU), 'GRU', 4)
    assert words.predict('one ,', 2, temperature=0).split()[:2] == ['one', ',']
    assert words.predict(('one', ','), 2, temperature=0) == words.predict('one ,', 2, temperature=0).split()
    chars = make(series(), 'GRU', 4)
    assert len(chars.predict('ab', 5)) == 7 and isinstance(chars.predict(['a', 'b'], 1), list)
    numbers = make(S.from_series([1, 2, 3, 1, 2, 3], **CPU), 'GRU', 4)
    assert numbers.predict([1, 2], 1)[:2] == [1, 2]
    for bad in (3, None, torch.tensor([0, 1])):
        with pytest.raises(TypeError, match='must be a string or a list'): chars.predict(bad)
    for args in (dict(temperature=-1), dict(min_p=2), dict(n_words=0), dict(n_words=1.5)):
        with pytest.raises(ValueError, match=next(iter(args))): chars.predict('ab', **args)
    with pytest.raises(ValueError, match="'z' is not in the vocabulary"): chars.predict('abz')
    ragged = make(S.from_series([list('ab'), list('aba')], **CPU), 'GRU', 4)
    assert 'xxpad' not in ragged.predict(['a'], 60)
    mode = [m.training for m in chars.model.train().modules()]
    chars.predict('ab', 2)
    assert [m.training for m in chars.model.modules()] == mode

def test_message_for_a_number_given_as_text():
    learn = make(S.from_pairs([1, 2], ['one', 'two'], 'one-to-many', valid_pct=0, **CPU))
    with pytest.raises(ValueError) as e: learn.predict('1')
    assert "Did you mean '1'" not in str(e.value)

# ---- one learner per task

@by_kind
def test_each_kind_has_its_learner(kind):
    learn = make(loaders(kind), 'GRU', 4)
    assert isinstance(learn, RNNLearner) and isinstance(learn, NextTokenLearner) == (kind == 'next')
    if kind == 'next': return
    for act in (learn.generate, learn.stream, learn.beam_search, learn.score):
        with pytest.raises(TypeError, match=f"RNNLearner of kind '{kind}' does not generate, search or score texts; call"):
            act('ab')

def test_a_plain_learner_of_the_next_token_says_who_writes():
    dls = series()
    learn = RNNLearner(dls, make(dls, 'GRU', 4).model, loss_func=nn.CrossEntropyLoss())
    with pytest.raises(TypeError, match='make the learner with rnn_learner'): learn.score('ab')

def test_scores_and_texts_of_whole_numbers():
    learn = make(S.from_series([1, 2, 3, 1, 2, 3], **CPU), 'GRU', 4)
    score, = learn.score([[1, 2, 3]], no_bar=True)
    with torch.no_grad(): logits = learn.model.eval()(learn.task.encode([1, 2])).logits[0]
    assert score.tokens == [2, 3]
    assert_close(score.logps, logits.log_softmax(-1).gather(1, learn.task.encode([2, 3]).T)[:, 0], **CLOSE)
    assert all(isinstance(t, int) for t in learn.generate([[1]], 5, no_bar=True)[0].tokens)

def test_every_learner_runs_its_parents_init(monkeypatch, text_dls):
    import fastai.text.learner as fastai_text
    ran,init = [],fastai_text.TextLearner.__init__
    def noted(self, *args, **kwargs): ran.append(type(self).__name__); init(self, *args, **kwargs)
    monkeypatch.setattr(fastai_text.TextLearner, '__init__', noted)
    for dls in (loaders('next'), loaders('many-to-one'), *text_dls):
        learn = make(dls, 'GRU', 4)
        names = [cb.name for cb in learn.cbs]
        assert len(names) == len(set(names)) and all(type(cb).__module__ != 'fastai.callback.rnn' for cb in learn.cbs)
    assert ran == ['NextTokenLearner', 'RNNLearner', 'LMLearner', 'RNNLearner']

@pytest.mark.parametrize('one_hot', [False, True])
def test_a_module_by_either_door(one_hot):
    net = nn.Linear(4, 4) if one_hot else nn.Embedding(4, 4)
    a,b = make(series(), net, one_hot=one_hot),module_learner(series(), net, one_hot)
    x = a.dls.one_batch()[0]
    assert type(a) is type(b) and torch.equal(a.model(x), b.model(x))

def test_config_has_the_arguments_and_defaults_of_the_learner():
    ours = inspect.signature(rnn_learner).parameters
    for name,p in inspect.signature(RNNConfig).parameters.items(): assert ours[name].default == p.default, name

# ---- fastai's loaders

def frame(): return pd.DataFrame(dict(text=['one two three', 'four five six seven']*10, label=['x', 'y']*10))

@pytest.fixture(scope='module')
def text_dls():
    args = dict(text_col='text', bs=4, seed=0, device='cpu')
    return (TextDataLoaders.from_df(frame(), is_lm=True, seq_len=5, **args),
            TextDataLoaders.from_df(frame(), label_col='label', **args))

@pytest.mark.parametrize('cell', ['RNN', 'LSTM', 'sLSTM', 'minGRU'])
def test_texts(text_dls, cell, tmp_path):
    lm,clas = (make(d, cell, 6, path=tmp_path) for d in text_dls)
    assert (type(lm), type(clas)) == (LMLearner, RNNLearner)
    for learn in (lm, clas): learn.fit(1); learn.load(learn.save('m').stem); learn.validate()
    assert lm.predict('one two', 2, no_bar=True).startswith('one two')
    label,i,probs = clas.predict('four five six seven')
    assert label == clas.dls.vocab[1][i] and probs.sum().item() == pytest.approx(1)
    m = clas.model.eval()
    ids = torch.tensor([[2, 9, 8, 1, 1], [1, 1, 2, 9, 8]])   # padding on either side
    assert_close(m(ids)[0], m(ids)[1], **CLOSE)

def test_exported_text_learners(text_dls, tmp_path):
    for d,args in zip(text_dls, (dict(temperature=0, n_words=3, no_bar=True), {}), strict=True):
        learn = make(d, 'GRU', 6, path=tmp_path)
        learn.export('t.pkl')
        assert str(load_learner(tmp_path/'t.pkl').predict('one two', **args)) == str(learn.predict('one two', **args))

def test_fastais_own_loaders_of_a_language_model(monkeypatch):
    import fastai.text.all as ft
    import fastai.text.core
    monkeypatch.setattr(fastai.text.core, 'parallelable', lambda *a, **k: False)
    dls = ft.TextDataLoaders.from_df(frame(), is_lm=True, text_col='text', bs=4, seq_len=5, seed=0, device='cpu')
    try: learn = make(dls, 'GRU', 6)
    except (TypeError, ValueError): return   # refused at once
    learn.fit(1)
    assert math.isfinite(learn.validate()[0])


def test_training_goes_on_on_another_backend(tmp_path):
    "Five steps on one backend, saved with the optimizer, five on another: as ten on either."
    dls = SeqDataLoaders.from_series("abcabC"*10)

    def learner(backend):
        torch.manual_seed(0)
        return rnn_learner(dls, "LSTM", 8, one_hot=True, num_layers=2, lr=0.01, backend=backend, path=tmp_path)

    def run(learn, n):
        with learn.no_bar(), learn.no_logging(): learn.fit(n, reset_opt=False)
        return learn
    whole = [run(run(learner(b), 5), 5) for b in ("fused", "loop")]
    run(learner("fused"), 5).save("half")
    half = run(learner("loop").load("half"), 5)
    half.model.rnn.backend = "auto"
    x, _ = dls.one_batch()
    for learn in (*whole, half): assert_close(learn.model(x).logits, whole[0].model(x).logits, rtol=0, atol=1e-5)

def test_tagged_sentences_have_a_learner_of_their_own():
    dls = TagDataLoaders.from_df(pd.DataFrame(dict(tokens=[['a', 'b']]*6, tags=[['x', 'y']]*6)), min_freq=1, bs=2, **CPU)
    with pytest.raises(TypeError, match='tagger_learner'): rnn_learner(dls, 'LSTM', 4)
