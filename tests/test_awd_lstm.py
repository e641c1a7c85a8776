"AWD_LSTM and its training against fastai's on the same weights and data, and against torch's kernels in float64."
from copy import deepcopy
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import fastai.callback.rnn as fastai_rnn
import fastai.text.core
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.text import all as ft
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from rnn_fastai import all as rf

VOCAB = 24
# fastai's weight drop breaks at exactly 0 under recent torch; this drops nothing either
NO_DROP = dict(output_p=0., hidden_p=0., input_p=0., embed_p=0., weight_p=1e-30)
CONFIGS = [dict(), dict(n_layers=1), dict(n_layers=3), dict(tie_weights=False), dict(out_bias=False),
           dict(n_layers=1, tie_weights=False, out_bias=False), dict(pad_token=0), dict(emb_sz=9, n_layers=4)]
EXACT = dict(rtol=1e-10, atol=1e-10)
def names(args): return ','.join(f'{k}={v}' for k,v in args.items()) or 'plain'
def our_name(n): return n.replace('.module', '').replace('_raw', '')   # of fastai's parameter

def config(**kwargs): return {**ft.awd_lstm_lm_config, **NO_DROP, 'emb_sz': 6, 'n_hid': 9, 'n_layers': 2, **kwargs}

def pair(dtype=torch.float64, seed=0, **kwargs):
    "Our model and fastai's with the same weights."
    torch.manual_seed(seed)
    theirs = ft.get_language_model(ft.AWD_LSTM, VOCAB, config(**kwargs)).to(dtype)
    for p in theirs.parameters(): p.data.normal_(0, 0.4)
    ours = rf.get_language_model(rf.AWD_LSTM, VOCAB, config(**kwargs)).to(dtype)
    rf.load_weights(ours, theirs.state_dict())
    theirs.reset()
    return ours,theirs

def layer(n_in, n_hid, weight_p, bidirectional=False):
    "One layer of the kind that AWD_LSTM stacks."
    return rf.Recurrent('LSTM', n_in, n_hid, batch_first=True, weight_p=weight_p, bidirectional=bidirectional)

def same_params(ours, theirs, what, **tol):
    "Parameters have equal names, and `what` of them is equal."
    a,b = dict(ours.named_parameters()),{our_name(n): p for n,p in theirs.named_parameters()}
    assert sorted(a) == sorted(b)
    for n in a: assert_close(what(a[n]), what(b[n]), **tol, msg=lambda m, n=n: f'{n}: {m}')

# ---- outputs and gradients

@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize('cfg', CONFIGS, ids=names)
def test_outputs_and_gradients_equal_fastai(cfg, train):
    ours,theirs = pair(**cfg)
    ours.train(train), theirs.train(train)
    state,losses = None,[0., 0.]
    for ids in torch.randint(VOCAB, (3, 4, 5)):   # the state goes on; ids of padding occur
        out = ours(ids, state)
        logits,raw,dropped = theirs(ids)
        for a,b in zip(out[:3], (logits, raw, dropped), strict=True): assert_close(a, b, **EXACT)
        state = rf.map_state(torch.Tensor.detach, out.state)
        for (h, c),(h2, c2) in zip(state, theirs[0].hidden, strict=True):
            assert_close(h, h2, **EXACT), assert_close(c, c2, **EXACT)
        y = torch.randint(VOCAB, (20,))
        losses = [l + F.cross_entropy(o.flatten(0, 1), y) + 2*d.pow(2).mean() + (r[:, 1:]-r[:, :-1]).pow(2).mean()
                  for l,(o, r, d) in zip(losses, (out[:3], (logits, raw, dropped)), strict=True)]
    assert_close(losses[0], losses[1], **EXACT)
    for l in losses: l.backward()
    same_params(ours, theirs, lambda p: p.grad, **EXACT)
    assert all(p.grad.abs().sum() > 0 for p in ours.parameters())

@pytest.mark.parametrize('n_layers', [1, 2, 3])
def test_bidirectional_encoder_equals_fastai(n_layers):
    torch.manual_seed(1)
    args = dict(emb_sz=6, n_hid=8, n_layers=n_layers, bidir=True, hidden_p=0., input_p=0., embed_p=0., weight_p=1e-30)
    ours,theirs = (m.AWD_LSTM(VOCAB, **args).double() for m in (rf, ft))
    rf.load_weights(ours, theirs.state_dict())
    theirs.reset()
    state = None
    for ids in torch.randint(VOCAB, (2, 3, 7)):
        out,state = ours(ids, None if state is None else rf.map_state(torch.Tensor.detach, state))
        want = theirs(ids)
        assert_close(out, want, **EXACT)
        for a,b in zip(state, theirs.hidden, strict=True): assert_close(a, b, **EXACT)
    for o in (out, want): o.pow(3).sum().backward()
    same_params(ours, theirs, lambda p: p.grad, **EXACT)

@pytest.mark.parametrize('bidir', [False, True])
@pytest.mark.parametrize('sl', [1, 2, 9])
def test_layer_equals_torch_kernel(sl, bidir):
    torch.manual_seed(2)
    ours = layer(5, 4, 0.5, bidir).double().eval()
    kernel = nn.LSTM(5, 4, batch_first=True, bidirectional=bidir).double()
    kernel.load_state_dict(ours.state_dict())
    x,n_dir = torch.randn(3, sl, 5, dtype=torch.double),2 if bidir else 1
    state = tuple(torch.randn(2, n_dir, 3, 4, dtype=torch.double))
    for s in (None, state):
        (a, sa),(b, sb) = ours(x, s),kernel(x, s)
        assert_close(a, b, **EXACT), assert_close(sa, sb, **EXACT)
        for o,st in ((a, sa), (b, sb)): (o.sin().sum() + st[1].cos().sum()).backward()
    same_params(ours, kernel, lambda p: p.grad, **EXACT)

@pytest.mark.parametrize('sl', [1, 3])
def test_gradcheck(sl):
    torch.manual_seed(3)
    rnn = layer(2, 3, 0.4).double().train()
    x,h,c = (torch.randn(*sz, dtype=torch.double, requires_grad=True) for sz in ((2, sl, 2), (1, 2, 3), (1, 2, 3)))
    def run(x, h, c, *ws):
        torch.manual_seed(0)   # the same weights drop in every call
        out,s = rnn(x, (h, c))
        return out,*s
    assert torch.autograd.gradcheck(run, (x, h, c, *rnn.parameters()))

@pytest.mark.parametrize('cfg', [dict(n_layers=1), dict(n_layers=3)], ids=names)
def test_chunked_equals_whole(cfg):
    model = pair(**cfg)[0].eval()
    ids = torch.randint(VOCAB, (3, 23))
    whole = model(ids)
    rng = np.random.default_rng(0)
    for _ in range(8):
        cuts = [0, *sorted(rng.choice(np.arange(1, 23), rng.integers(1, 12), replace=False)), 23]
        state,logits,raw = None,[],[]
        for i,j in pairwise(cuts):
            out = model(ids[:, i:j], state)
            state = out.state
            logits.append(out.logits), raw.append(out.raw)
        assert_close(torch.cat(logits, 1), whole.logits, **EXACT)
        assert_close(torch.cat(raw, 1), whole.raw, **EXACT)
        assert_close(state, whole.state, **EXACT)
    assert_close(model.read(ids[:, 5:], model.read(ids[:, :5])), whole.state, **EXACT)
    same = model(ids)
    assert_close(same.logits, whole.logits, rtol=0, atol=0)   # nothing is kept between calls

def test_batch_mates_do_not_matter():
    model = pair()[0].eval()
    ids = torch.randint(VOCAB, (5, 8))
    whole = model(ids)
    for i in range(5): assert_close(model(ids[i:i+1]).logits, whole.logits[i:i+1], **EXACT)
    perm = torch.randperm(5)
    assert_close(model(ids[perm]).logits, whole.logits[perm], **EXACT)

def test_embedded_input():
    enc = pair()[0][0].eval()
    ids = torch.randint(VOCAB, (2, 6))
    assert_close(enc(enc.encoder(ids), from_embeds=True), enc(ids), **EXACT)

def test_state_follows_the_batch_size_as_in_fastai():
    ours,theirs = (m.eval() for m in pair(n_layers=3))
    state = None
    for bs in (4, 2, 5, 5, 1, 3):
        ids = torch.randint(VOCAB, (bs, 4))
        out = ours(ids, None if state is None else rf.fit_state(state, bs))
        state = out.state
        assert_close(out.logits, theirs(ids)[0], **EXACT)

# ---- dropouts

@pytest.mark.parametrize('p', [1/2**16, 0.01, 0.2, 1/3, 0.5, 0.9])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_weight_drop_statistics(p, dtype):
    torch.manual_seed(4)
    w = torch.ones(799, 501, dtype=dtype, requires_grad=True)   # not a multiple of four entries
    out = rf.drop_weight(w, p)
    kept = out != 0
    n = w.numel()
    assert abs((~kept).sum().item() - n*p) < 5*(n*p*(1-p))**0.5 + n/2**17
    exact_p = round(p*2**16)/2**16   # the rate is rounded, and the scale is that of the rounded rate
    assert_close(out[kept], torch.full_like(out[kept], 1/(1-exact_p)), rtol=1e-6, atol=0)
    for lane in range(4):   # one random number serves four entries; each drops at the same rate, and on its own
        k = kept.flatten()[:n//4*4].view(-1, 4).to(torch.double)
        assert abs(k[:, lane].mean().item() - (1-p)) < 5*(p*(1-p)*4/n)**0.5 + 1e-5
        if p > 0.1: assert torch.corrcoef(k.T)[lane, (lane+1) % 4].abs() < 5*(4/n)**0.5
    out.sum().backward()
    assert_close(w.grad, out.detach(), rtol=0, atol=0)   # the gradient goes through the same mask
    assert not torch.equal(out, rf.drop_weight(w, p))

@pytest.mark.parametrize('n', range(1, 9))
def test_weight_drop_of_few_entries(n):
    torch.manual_seed(5)
    mean = torch.stack([rf.drop_weight(torch.full((n,), 3.), 0.25) for _ in range(3000)]).mean(0)
    assert_close(mean, torch.full((n,), 3.), rtol=0, atol=0.2)   # ten standard errors

def test_weight_drop_of_nearly_all():
    assert rf.drop_weight(torch.ones(8), 1-1e-6).isfinite().all()

def test_weight_drop_acts_on_recurrent_weights_in_training():
    "The property of the reference implementation: from no state the first step is the same, later ones differ."
    torch.manual_seed(6)
    rnn,x = layer(5, 7, 0.5).double(),torch.randn(3, 6, 5, dtype=torch.double)
    weights = {k: v.clone() for k,v in rnn.state_dict().items()}
    plain = rnn.eval()(x)[0]
    a,b = rnn.train()(x)[0],rnn(x)[0]
    assert_close(a[:, 0], plain[:, 0], **EXACT), assert_close(b[:, 0], plain[:, 0], **EXACT)
    assert all((u[:, 1:] != v[:, 1:]).all() for u,v in ((a, plain), (b, plain), (a, b)))
    assert_close(dict(rnn.state_dict()), weights, rtol=0, atol=0)
    # one mask for all rows and steps: equal rows stay equal
    twin,_ = rnn(x[:1].repeat(4, 1, 1))
    for row in twin[1:]: assert_close(row, twin[0], **EXACT)

@pytest.mark.parametrize('name', ['output_p', 'hidden_p', 'input_p', 'embed_p', 'weight_p'])
def test_each_dropout_matters_in_training_only(name):
    torch.manual_seed(7)
    model,ids = rf.get_language_model(rf.AWD_LSTM, VOCAB, config(**{name: 0.5})),torch.randint(VOCAB, (3, 6))
    plain = model.eval()(ids).logits
    assert_close(model(ids).logits, plain, rtol=0, atol=0)
    assert not torch.allclose(model.train()(ids).logits, plain)
    model = rf.get_language_model(rf.AWD_LSTM, VOCAB, config(**{name: 0.5}), drop_mult=0.)
    assert_close(model.train()(ids).logits, model.eval()(ids).logits, rtol=0, atol=1e-6)

def test_variational_dropout_has_one_mask_for_all_steps():
    x = torch.ones(64, 5, 50)
    out = rf.RNNDropout(0.3).train()(x)
    assert_close(out, out[:, :1].expand_as(out), rtol=0, atol=0)
    assert set(out.unique().tolist()) == {0., torch.tensor(1/0.7).item()}
    assert abs((out[:, 0] == 0).double().mean().item() - 0.3) < 5*(0.21/3200)**0.5
    emb = nn.Embedding(2000, 4)
    ids = torch.arange(2000).repeat(2, 3)
    words = rf.WordDropout(0.3).train()(ids, emb)/emb(ids)   # one mask for a word, wherever it stands
    assert_close(words, words[:1, :2000, :1].repeat(2, 3, 4), rtol=1e-6, atol=0)
    assert abs((words[0, :2000, 0] == 0).double().mean().item() - 0.3) < 5*(0.21/2000)**0.5

# ---- penalties

@pytest.mark.parametrize('alpha,beta', [(2., 1.), (0.5, 0.), (0., 3.)])
@pytest.mark.parametrize('shape', [(4, 5, 6), (2, 1, 3), (3, 2, 1)])
def test_penalties_equal_fastai(shape, alpha, beta):
    if shape[1] == 1: beta = 0.   # fastai's mean over no steps is nan
    raw,out = torch.randn(2, *shape)
    losses = []
    for cls in (rf.RNNRegularizer, fastai_rnn.RNNRegularizer):
        cb = cls(alpha, beta)
        rnn = SimpleNamespace(out=out, raw_out=raw, real=None)
        cb.learn = SimpleNamespace(training=True, loss_grad=torch.tensor(1.), rnn=rnn)
        cb.after_loss()
        losses.append(cb.learn.loss_grad)
    assert_close(*losses)
    assert (losses[0] > 1.) == (alpha+beta > 0)

def test_penalties_in_closed_form():
    ramp = torch.arange(12.).view(1, 4, 3)   # rises by 3 a step
    assert_close(rf.tar_penalty(ramp), torch.tensor(9.))
    assert_close(rf.ar_penalty(ramp), torch.tensor(sum(i*i for i in range(12))/12))
    assert_close(rf.tar_penalty(ramp[:, :1]), torch.tensor(0.))
    assert_close(rf.tar_penalty(ramp.half()), torch.tensor(9.))

# ---- training

@pytest.fixture(scope='module')
def frame():
    rng = np.random.default_rng(0)
    return pd.DataFrame({'text': [' '.join(rng.choice('one two three four five six'.split(), rng.integers(4, 25)))
                                  for _ in range(60)]})

@pytest.fixture(scope='module')
def loaders(frame):
    "Our loaders and fastai's, with the same batches."
    args = dict(is_lm=True, bs=5, val_bs=3, seq_len=7, seed=1, shuffle=False, device='cpu')
    with pytest.MonkeyPatch.context() as m:
        m.setattr(fastai.text.core, 'parallelable', lambda *a, **k: False)
        return [m.TextDataLoaders.from_df(frame, **args) for m in (rf, ft)]

class Losses(ft.Callback):
    "Keeps what each batch reports and what is differentiated; on request, the gradients of the first batch."
    order = 1000
    def before_fit(self): self.reported,self.full,self.grads = [],[],None
    def after_loss(self): self.full.append(self.learn.loss_grad.item())
    def after_batch(self): self.reported.append(self.learn.loss.item())
    def before_step(self):
        if self.grads is None: self.grads = [p.grad.clone() for p in self.learn.model.parameters() if p.requires_grad]

def learners(loaders, tmp_path, **kwargs):
    "Our learner and fastai's with the same weights."
    cfg,opt_func = config(**kwargs.pop('config', {})),kwargs.pop('opt_func', m_adam())
    res = []
    for m,dls in zip((rf, ft), loaders, strict=True):
        torch.manual_seed(3)
        res.append(m.language_model_learner(dls, m.AWD_LSTM, config=cfg, pretrained=False, path=tmp_path, cbs=Losses(),
                                            metrics=[ft.accuracy, ft.Perplexity()], **kwargs,
                                           opt_func=ft.SGD if opt_func is ft.SGD else opt_func(m)))
    rf.load_weights(res[0].model, res[1].model.state_dict())
    return res

def quietly(learn, method, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): return getattr(learn, method)(*args, **kwargs)

def m_adam(**kwargs): return lambda m: partial(m.Adam, **kwargs)

@pytest.mark.parametrize('method,args,kwargs', [
    ('fit', (1, 1e-2), {}), ('fit', (2, 1e-2), dict(alpha=0., beta=0.)), ('fit_one_cycle', (1, 1e-2), dict(wd=0.3)),
    ('fine_tune', (1, 1e-2), {}), ('fit_one_cycle', (1, slice(1e-4, 1e-2)), {}),
    ('fit', (1, 1e-2), dict(config=dict(tie_weights=False, n_layers=3), moms=(0.9, 0.5, 0.9))),
    ('fit_one_cycle', (1, 1e-2), dict(opt_func=ft.SGD, extra=lambda: ft.GradientClip(0.1))),
    ('fit', (2, 1e-2), dict(opt_func=m_adam(decouple_wd=False), wd=0.3)),
    ('fit', (1, 1e-2), dict(opt_func=m_adam(eps=1e-3, sqr_mom=0.9), wd_bn_bias=True, wd=0.5)),
    ('fit_flat_cos', (1, 1e-2), dict(extra=lambda: ft.GradientAccumulation(15))),
    ('fit', (3, 3e-2), dict(extra=lambda: [ft.SaveModelCallback(), ft.EarlyStoppingCallback(min_delta=9.)]))])
def test_training_equals_fastai(loaders, tmp_path, method, args, kwargs):
    kwargs = dict(kwargs)
    extra = kwargs.pop('extra', list)
    pairs = learners(loaders, tmp_path, **kwargs)
    for learn in pairs:
        learn.add_cbs(extra())
        quietly(learn, method, *args)
    ours,theirs = pairs
    assert len(ours.losses.reported) == len(theirs.losses.reported) > 20
    tol = dict(rtol=1e-4, atol=1e-4)
    for what in ('reported', 'full'):
        assert_close(*(torch.tensor(getattr(l.losses, what)) for l in pairs), **tol)
    assert_close(*(torch.tensor(l.recorder.values) for l in pairs), **tol)
    same_params(ours.model, theirs.model, lambda p: p.data, **tol)
    first = ours.losses.reported
    assert np.mean(first[-12:]) < first[0]   # and something was learnt

def test_lr_find_equals_fastai_and_restores(loaders, tmp_path):
    pairs = learners(loaders, tmp_path)
    before = deepcopy(pairs[0].model.state_dict())
    found = [quietly(l, 'lr_find', num_it=20, show_plot=False, suggest_funcs=(ft.valley, ft.steep)) for l in pairs]
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert_close(pairs[0].model.state_dict(), before, rtol=0, atol=0)
    assert not [p for p in tmp_path.rglob('*') if p.suffix in ('.pth', '.safetensors')]

def test_frozen_weights_do_not_move(loaders, tmp_path):
    "Not even after training unfrozen, when fastai's momentum and weight decay go on moving them."
    learn = learners(loaders, tmp_path)[0]
    quietly(learn, 'fit', 1, 1e-2)
    learn.freeze()
    before = deepcopy(learn.model.state_dict())
    quietly(learn, 'fit', 1, 1e-2, reset_opt=False)
    after = learn.model.state_dict()
    for k,w in before.items(): assert torch.equal(w, after[k]) == ('.rnns.' in k), k

def test_trained_model_is_copied(loaders, tmp_path):
    learn = learners(loaders, tmp_path)[0]
    quietly(learn, 'fit', 1, 1e-2)
    ids = torch.randint(VOCAB, (2, 5))
    want,twin = learn.model.eval()(ids).logits,deepcopy(learn.model)
    quietly(learn, 'fit', 1, 1e-2)
    assert_close(twin.eval()(ids).logits, want, rtol=0, atol=0)
    assert not torch.equal(learn.model.eval()(ids).logits, want)
    assert twin[1].decoder.weight is twin[0].encoder.weight

def test_loss_of_every_batch_is_kept(loaders, tmp_path):
    ours,theirs = learners(loaders, tmp_path)
    for learn in (ours, theirs): learn.remove_cb(Losses)   # which wants one loss a batch
    want = quietly(theirs, 'get_preds', with_loss=True, reorder=False)[2]
    assert_close(quietly(ours, 'get_preds', with_loss=True)[2], want)

def test_predictions_and_validation_equal_fastai(loaders, tmp_path):
    ours,theirs = learners(loaders, tmp_path)
    assert list(quietly(ours, 'validate')) == pytest.approx(list(quietly(theirs, 'validate')), rel=1e-5)
    for a,b in zip(quietly(ours, 'get_preds'), quietly(theirs, 'get_preds', reorder=False), strict=True):
        assert_close(torch.Tensor(a), torch.Tensor(b), rtol=1e-5, atol=1e-6)
    assert quietly(ours, 'validate') == quietly(ours, 'validate')   # each validation starts from no state

@pytest.mark.parametrize('cfg', [{}, dict(n_layers=3, tie_weights=False), dict(n_layers=1)], ids=names)
def test_freezing_and_groups_equal_fastai(loaders, tmp_path, cfg):
    ours,theirs = learners(loaders, tmp_path, config=cfg)
    def trained(learn): return {our_name(n) for n,p in learn.model.named_parameters() if p.requires_grad}
    def groups(learn):
        name = {id(p): our_name(n) for n,p in learn.model.named_parameters()}
        return [sorted(name[id(p)] for p in pl) for pl in learn.opt.param_lists]
    for l in (ours, theirs): l.create_opt()
    assert groups(ours) == groups(theirs)
    assert len(groups(ours)) == cfg.get('n_layers', 2) + 1
    seen = []
    for step in [('freeze',), *(('freeze_to', n) for n in (-1, -2, 1, 0)), ('unfreeze',)]:
        for l in (ours, theirs): getattr(l, step[0])(*step[1:])
        assert trained(ours) == trained(theirs) != set()
        seen.append(len(trained(ours)))
    assert seen[0] == seen[1] < seen[2] <= seen[4] == seen[5]
    for l in (ours, theirs): l.opt.set_hyper('lr', np.geomspace(1e-4, 1e-2, len(groups(l))))
    assert [h['lr'] for h in ours.opt.hypers] == [h['lr'] for h in theirs.opt.hypers]

@pytest.mark.parametrize('alpha,beta', [(2., 0.), (0., 1.), (2., 1.)])
def test_penalties_leave_the_reported_loss(loaders, tmp_path, alpha, beta):
    plain,penal = (learners(loaders, tmp_path, alpha=a, beta=b)[0] for a,b in ((0., 0.), (alpha, beta)))
    for l in (plain, penal): quietly(l, 'fit', 1, 0.)   # rate 0: the same weights for every batch
    assert plain.losses.reported == penal.losses.reported
    assert plain.losses.full == plain.losses.reported
    n = len(penal.dls.train)
    assert all(f > r for f,r in zip(penal.losses.full[:n], penal.losses.reported, strict=False))
    assert penal.losses.full[n:] == penal.losses.reported[n:]   # none in validation
    assert any(not torch.allclose(a, b) for a,b in zip(plain.losses.grads, penal.losses.grads, strict=True))
    assert plain.recorder.values == penal.recorder.values

def test_state_goes_from_batch_to_batch_in_training(loaders, tmp_path):
    "The second batch's reported loss, at rate 0, is that of the model fed both batches on end."
    learn = learners(loaders, tmp_path)[0]
    quietly(learn, 'fit', 1, 0.)
    model,state = learn.model.eval(),None
    for n,dl in ((0, learn.dls.train), (len(learn.dls.train), learn.dls.valid)):
        state = None   # training and validation each start afresh
        for i,(x, y) in enumerate(dl):
            out = model(x, state)
            state = out.state
            want = F.cross_entropy(torch.Tensor(out.logits).flatten(0, 1), torch.Tensor(y).flatten()).item()
            assert learn.losses.reported[n+i] == pytest.approx(want, rel=1e-5)
