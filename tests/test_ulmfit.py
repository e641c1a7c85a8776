"The recipe's parts: the lean loss, averaged SGD, streams cut at random, schedules, and all of them in one call."
import math

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.text import all as ft
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from rnn_fastai import all as rf

SMALL = dict(emb_sz=6, n_hid=8, n_layers=2)
TINY = dict(rtol=1e-4, atol=1e-5)

# ---- Cross-entropy without all logits

def leaves(seed=0, n=10, vocab=7, hid=4):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=g, dtype=torch.float64).requires_grad_() for s in ((n, hid), (vocab, hid), (vocab,))]

Y = torch.tensor([0, 3, -100, 6, 1, 2, -100, 4, 4, 5])
@pytest.mark.parametrize('smooth', [0., 0.1, 0.9])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('chunk', [1, 3, 10, 13])
def test_values_and_gradients(chunk, bias, smooth):
    ours,theirs = leaves(),leaves()
    b = 2 if not bias else 3
    a = rf.linear_cross_entropy(*ours[:2], ours[2] if bias else None, Y, label_smoothing=smooth, chunk=chunk)
    want = F.cross_entropy(F.linear(*theirs[:b]), Y, label_smoothing=smooth)
    (2.5*a).backward()
    (2.5*want).backward()
    assert_close(a, want)
    assert_close([p.grad for p in ours[:b]], [p.grad for p in theirs[:b]])

@pytest.mark.parametrize('free', range(8))
def test_frozen_parts_get_no_gradient(free):
    ours,theirs = leaves(),leaves()
    for k,(a,b) in enumerate(zip(ours, theirs, strict=True)):
        for t in (a, b): t.requires_grad_(bool(free >> k & 1))
    loss = rf.linear_cross_entropy(*ours, Y, chunk=4)
    assert_close(loss.detach(), F.cross_entropy(F.linear(*theirs), Y).detach())
    if not free: return
    loss.backward()
    F.cross_entropy(F.linear(*theirs), Y).backward()
    assert_close([p.grad for p in ours], [p.grad for p in theirs])

def test_states_that_are_not_contiguous():
    x,w,b = leaves(n=12)
    y = torch.arange(12).view(4, 3) % 7
    got = rf.linear_cross_entropy(x.view(3, 4, 4).transpose(0, 1), w, b, y)
    assert_close(got, F.cross_entropy(F.linear(x.view(3, 4, 4).transpose(0, 1).reshape(12, 4), w, b), y.flatten()))

def test_no_target_counts():
    x,w,b = leaves()
    ours = rf.linear_cross_entropy(x, w, b, torch.full((10,), -100))
    assert math.isnan(ours) and math.isnan(F.cross_entropy(F.linear(x, w, b), torch.full((10,), -100)))

def test_half_precision():
    full = [p.detach().float() for p in leaves(n=64, vocab=50, hid=16)]
    y = torch.arange(64) % 50
    want = [p.clone().requires_grad_() for p in full]
    F.cross_entropy(F.linear(*want), y).backward()
    for cast in (True, False):
        ours = [p.clone().to(torch.bfloat16 if cast else torch.float32).requires_grad_() for p in full]
        with torch.autocast('cpu', torch.bfloat16, enabled=not cast):
            loss = rf.linear_cross_entropy(*ours, y, chunk=10)
        loss.backward()
        assert loss.dtype == torch.float32 and [p.grad.dtype for p in ours] == [p.dtype for p in ours]
        for a,b in zip(ours, want, strict=True): assert_close(a.grad.float(), b.grad, rtol=0.1, atol=3e-3)

# ---- In a learner

def frame(n=30): return rf.human_numbers_100(n)
def lm(path, cbs=(), seq_len=20, **kwargs):
    dls = rf.TextDataLoaders.from_df(frame(), is_lm=True, seq_len=seq_len, text_col='text', seed=0, bs=8, path=path,
                                     device='cpu')
    ft.set_seed(0)
    learn = rf.language_model_learner(dls, 'AWD_LSTM', SMALL, pretrained=False, cbs=list(cbs), **kwargs)
    learn.remove_cb(ft.ProgressCallback)
    learn.logger = lambda *a: None
    return learn

def weights(learn): return [p.detach().clone() for p in learn.model.parameters()]

def test_lean_training_is_the_same(tmp_path):
    for loss in (ft.CrossEntropyLossFlat(), ft.LabelSmoothingCrossEntropyFlat(eps=0.1)):
        both = []
        for cbs in ([], [rf.LeanLoss(chunk=11)]):
            learn = lm(tmp_path, cbs, metrics=[ft.accuracy, ft.Perplexity()])
            learn.loss_func = loss
            learn.fit(1, 1e-2)
            both.append((weights(learn), list(learn.recorder.values[-1]), list(learn.validate())))
            assert learn.loss_func is loss and learn.model[1].lean is False
        assert_close(both[1], both[0], rtol=1e-3, atol=1e-4)

class Stop(ft.Callback):
    "Interrupts the second batch."
    def __init__(self, event): setattr(self, event, self.stop)
    def stop(self):
        if self.learn.iter == 1: raise KeyboardInterrupt

@pytest.mark.parametrize('event', ['after_pred', 'after_loss', 'after_step'])
def test_lean_loss_after_an_interrupt(event, tmp_path):
    learn = lm(tmp_path, [rf.LeanLoss()])
    with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=Stop(event))
    assert isinstance(learn.predict('one', 3, no_bar=True), str)
    assert isinstance(learn.get_preds()[0], torch.Tensor)
    learn.fit(1, 1e-3)
    assert isinstance(learn.loss_func, ft.CrossEntropyLossFlat)
    learn.lr_find(num_it=3, show_plot=False, suggest_funcs=None)
    assert isinstance(learn.loss_func, ft.CrossEntropyLossFlat)

# ---- Averages

class Steps(ft.Callback):
    "Weights after each step, with the epoch."
    order = rf.AveragedSGD.order-1
    def before_fit(self):
        if not hasattr(self.learn, 'gather_preds'): self.seen = []
    def after_step(self): self.seen.append((self.epoch, weights(self.learn)))

def rule(losses, patience):
    "The first epoch after which the loss is above the least one of all but the last `patience` epochs."
    for t,v in enumerate(losses):
        if t > patience and v > min(losses[:t-patience]): return t + 1
    return None

@pytest.mark.parametrize('patience', [1, 2])
def test_mean_of_the_steps(patience, tmp_path):
    avg,steps = rf.AveragedSGD(patience),Steps()
    learn = lm(tmp_path, [avg, steps], opt_func=ft.SGD)
    learn.fit(7, 15.)
    losses = [v[1] for v in learn.recorder.values]
    assert avg.since == rule(losses, patience) and avg.since is not None
    late = [w for e,w in steps.seen if e >= avg.since]
    assert_close(weights(learn), [torch.stack(w).mean(0) for w in zip(*late, strict=True)], rtol=1e-3, atol=1e-4)
    after = weights(learn)
    learn.validate(); learn.get_preds()
    assert_close(weights(learn), after, rtol=0, atol=0)

def test_no_average_while_the_loss_falls(tmp_path):
    avg,steps = rf.AveragedSGD(3),Steps()
    learn = lm(tmp_path, [avg, steps])
    learn.fit(3, 1e-2)
    assert avg.since is None
    assert_close(weights(learn), steps.seen[-1][1], rtol=0, atol=0)

# ---- Streams

@pytest.mark.parametrize('n,seq_len', [(1, 5), (5, 5), (7, 2), (100, 70), (3000, 70)])
def test_widths_make_up_the_stream(n, seq_len):
    for seed in range(20):
        w = rf.stream_widths(n, seq_len, np.random.default_rng(seed))
        assert w.sum() == n and w.min() >= 1 and (w[:-1] >= 5).all()

def stream(dl): return torch.cat([x.as_subclass(torch.Tensor) for x,_ in dl], 1)

def test_a_stream_cut_otherwise_is_the_same_stream():
    dl = rf.LMDataLoader([torch.arange(2000) % 97], bs=3, seq_len=7)
    want = stream(dl)
    for seed in range(5):
        dl.cut(rf.stream_widths(dl.bl, 7, np.random.default_rng(seed), std=3.))
        assert torch.equal(stream(dl), want) and len(dl) == len(list(dl))
        for x,y in dl: assert torch.equal(x[:, 1:].as_subclass(torch.Tensor), y[:, :-1].as_subclass(torch.Tensor))
    dl.cut(None)
    assert [x.size(1) for x,_ in dl] == [7]*95 + [1]

@pytest.mark.parametrize('widths', [[5], [0, 666], [667], [-1, 667]])
def test_widths_that_do_not_fit(widths):
    dl = rf.LMDataLoader([torch.arange(2000)], bs=3, seq_len=7)
    with pytest.raises(ValueError, match='the stream has 666'): dl.cut(widths)
    assert [x.size(1) for x,_ in dl][:2] == [7, 7]

def test_rates_and_lengths_come_back(tmp_path):
    learn = lm(tmp_path, [rf.VariableLength()])
    with pytest.raises(KeyboardInterrupt): learn.fit(1, 1e-2, cbs=Stop('after_loss'))
    learn.fit_one_cycle(2, 1e-2)
    assert {x.size(1) for x,_ in learn.dls.train} - {20} <= {learn.dls.train.bl % 20}
    assert max(learn.recorder.hps['lr']) <= 1e-2 + 1e-9     # the schedule never sees the scaled rate
    with pytest.raises(TypeError, match='VariableLength cuts streams'):
        ft.Learner(ft.DataLoaders([1], [1]), nn.Linear(1, 1), loss_func=F.mse_loss, cbs=rf.VariableLength()).fit(1)

# ---- Schedules

def test_slanted_triangle(tmp_path):
    learn = lm(tmp_path)
    learn.fit_slanted(3, 1e-2, cut_frac=0.25, ratio=8)
    lrs = learn.recorder.hps['lr']
    cut = 0.25*len(lrs)
    for t,lr in enumerate(lrs):   # equation 3 of the paper
        p = t/cut if t < cut else 1 - (t - cut)/(len(lrs) - cut)
        assert lr == pytest.approx(1e-2*(1 + p*(8 - 1))/8, rel=1e-6)

# ---- In one call

def reviews(n=40):
    return pd.DataFrame(dict(text=['good one, fine', 'bad two, awful']*n, label=['pos', 'neg']*n, stars=[5, 1]*n))

QUICK = dict(config=SMALL, pretrained=False, bs=4, seq_len=6, lm_epochs=1, epochs=1, no_bar=True)
@pytest.mark.parametrize('reading,label', [('forward', 'label'), ('backward', 'stars'), ('both', 'label')])
def test_one_call(reading, label, tmp_path, capsys):
    more = pd.DataFrame(dict(text=['a fine one']*9, other=range(9)))
    learn = rf.ulmfit(reviews(), label_col=label, unlabelled=more, reading=reading, path=tmp_path, smooth=0.1, **QUICK)
    assert learn.predict('good')[2].shape == (2,) and learn.validate()[1] >= 0
    names = {'forward': ['encoder'], 'backward': ['encoder_backwards'], 'both': ['encoder', 'encoder_backwards']}
    assert sorted(p.stem for p in (tmp_path/'models').glob('*.pth')) == names[reading]
    assert 'words found' in capsys.readouterr().out

@pytest.mark.parametrize('args,match', [
    (dict(reading='sideways'), "reading='sideways' is unknown"), (dict(label_col='mood'), "label_col='mood'"),
    (dict(text_col='body'), "text_col='body'"), (dict(smooth=2.), 'smooth=2.0'), (dict(valid_col='held'), "'held'"),
    (dict(unlabelled=pd.DataFrame(dict(body=['a']))), "text_col='text'")])
def test_errors_come_before_training(args, match, tmp_path):
    with pytest.raises(ValueError, match=match): rf.ulmfit(reviews(), path=tmp_path, **{**QUICK, **args})
    assert not list(tmp_path.rglob('*.pth'))
