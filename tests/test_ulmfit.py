"The recipe's parts: the chunked loss, averaged SGD, streams cut at random, schedules, and all of them in one call."
import copy
import math
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.text import all as ft
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from rnn_fastai import all as rf
from rnn_fastai.callback import chunked_loss
from rnn_fastai.callback.chunked_loss import LazyCrossEntropy
from rnn_fastai.callback.schedule import stream_widths
from rnn_fastai.models.losses import LazyLogits
from rnn_fastai.ship.bundle import load_learner

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
        for cbs in ([], [rf.ChunkedCrossEntropy(chunk=11)]):
            learn = lm(tmp_path, cbs, metrics=[ft.accuracy, ft.Perplexity()])
            learn.loss_func = loss
            learn.fit(1, 1e-2)
            both.append((weights(learn), list(learn.recorder.values[-1]), list(learn.validate())))
            assert learn.loss_func is loss and learn.model[1].lazy is False
        assert_close(both[1], both[0], rtol=1e-3, atol=1e-4)

@pytest.mark.parametrize('free,whole', [(None, False), (0, False), (10**8, True)])
def test_a_gpu_with_room_makes_all_logits(free, whole, tmp_path, monkeypatch):
    asked,made,make = [],[],LazyLogits.whole
    monkeypatch.setattr(chunked_loss, '_free_bytes', lambda device: asked.append(device) or free)
    monkeypatch.setattr(chunked_loss, '_ROWS', 11)
    monkeypatch.setattr(LazyLogits, 'whole', lambda self: made.append(self) or make(self))
    both = []
    for cbs in ([], [rf.ChunkedCrossEntropy()]):
        learn = lm(tmp_path, cbs)
        learn.fit(1, 1e-2)
        both.append(weights(learn))
    assert bool(made) == whole and 1 <= len(asked) <= 4   # once for each size of a batch
    assert_close(*both, **(dict(rtol=0, atol=0) if whole else dict(rtol=1e-3, atol=1e-4)))

class Stop(ft.Callback):
    "Interrupts the second batch."
    def __init__(self, event): setattr(self, event, self.stop)
    def stop(self):
        if self.learn.iter == 1: raise KeyboardInterrupt

@pytest.mark.parametrize('event', ['after_pred', 'after_loss', 'after_step'])
def test_lean_loss_after_an_interrupt(event, tmp_path):
    learn = lm(tmp_path, [rf.ChunkedCrossEntropy()])
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

class Uphill(ft.Callback):
    "The loss rises in every epoch."
    def after_backward(self):
        for p in self.learn.model.parameters(): p.grad.neg_()

@pytest.mark.parametrize('patience', [1, 2])
def test_mean_of_the_steps(patience, tmp_path):
    avg,steps = rf.AveragedSGD(patience),Steps()
    learn = lm(tmp_path, [avg, Uphill(), steps], opt_func=ft.SGD)
    learn.fit(7, 0.5)
    losses = [v[1] for v in learn.recorder.values]
    assert losses == sorted(losses) and avg.since == rule(losses, patience) == patience + 2
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
        w = stream_widths(n, seq_len, np.random.default_rng(seed))
        assert w.sum() == n and w.min() >= 1 and (w[:-1] >= 5).all()

def stream(dl): return torch.cat([x.as_subclass(torch.Tensor) for x,_ in dl], 1)

def test_a_stream_cut_otherwise_is_the_same_stream():
    dl = rf.LMDataLoader([torch.arange(2000) % 97], bs=3, seq_len=7)
    want = stream(dl)
    for seed in range(5):
        dl.cut(stream_widths(dl.bl, 7, np.random.default_rng(seed), std=3.))
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
    assert sorted(p.stem for p in (tmp_path/'models').glob('*.safetensors')) == names[reading]
    assert 'words found' in capsys.readouterr().out

@pytest.mark.parametrize('args,match', [
    (dict(reading='sideways'), "reading='sideways' is unknown"), (dict(label_col='mood'), "label_col='mood'"),
    (dict(text_col='body'), "text_col='body'"), (dict(smooth=2.), 'smooth=2.0'), (dict(valid_col='held'), "'held'"),
    (dict(unlabelled=pd.DataFrame(dict(body=['a']))), "text_col='text'")])
def test_errors_come_before_training(args, match, tmp_path):
    with pytest.raises(ValueError, match=match): rf.ulmfit(reviews(), path=tmp_path, **{**QUICK, **args})
    assert not [p for p in tmp_path.rglob('*') if p.is_file()]

# ---- Cross-entropy: other shapes, types and options

@pytest.mark.parametrize('chunk', [*range(1, 14), 512])
@pytest.mark.parametrize('ignore', [-100, 1, 5])
def test_chunks_and_ignored_targets(chunk, ignore):
    "Also where the ignored target is a word of the vocabulary, such as padding."
    ours,theirs = leaves(seed=chunk),leaves(seed=chunk)
    a = rf.linear_cross_entropy(*ours, Y.masked_fill(Y < 0, ignore), ignore, 0.2, chunk)
    b = F.cross_entropy(F.linear(*theirs), Y.masked_fill(Y < 0, ignore), ignore_index=ignore, label_smoothing=0.2)
    a.backward(); b.backward()
    assert_close(a, b)
    assert_close([p.grad for p in ours], [p.grad for p in theirs])

def test_gradients_through_what_comes_before():
    "States bs,sl,hid that are a view with strides, and a weight that is shared with the layer before."
    def loss(f):
        _,w,b = leaves(n=12)
        ids = torch.arange(12).view(3, 4) % 7
        x = (w[ids].transpose(0, 1)*2).tanh()[..., ::2].repeat_interleave(2, -1)
        f(x, w, b, ids.t()).backward()
        return w.grad,b.grad
    def theirs(x, w, b, y): return F.cross_entropy(F.linear(x, w, b).flatten(0, 1), y.flatten())
    assert_close(loss(lambda *a: rf.linear_cross_entropy(*a, chunk=5)), loss(theirs))

def test_large_logits_do_not_overflow():
    x,w,b = leaves()
    got = rf.linear_cross_entropy(x*1e4, w, b, Y, chunk=3)
    assert_close(got, F.cross_entropy(F.linear(x*1e4, w, b), Y))

class Products(torch.utils._python_dispatch.TorchDispatchMode):
    "Counts matrix products."
    n = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += func._schema.name in ('aten::mm', 'aten::addmm', 'aten::addmm_')
        return func(*args, **(kwargs or {}))

def test_no_gradient_is_made_where_none_is_wanted():
    "In validation, though weights are free."
    ours = leaves()
    with torch.no_grad(), Products() as count: rf.linear_cross_entropy(*ours, Y, chunk=5)
    assert count.n == 2
    with Products() as count: rf.linear_cross_entropy(*ours, Y, chunk=5)
    assert count.n == 6

@pytest.mark.parametrize('args,match', [
    (dict(chunk=0), 'chunk=0'), (dict(chunk=2.5), 'chunk=2.5'), (dict(label_smoothing=1.), 'label_smoothing=1.0'),
    (dict(label_smoothing=-0.1), 'label_smoothing=-0.1')])
def test_bad_options_of_the_loss(args, match):
    with pytest.raises(ValueError, match=match): rf.linear_cross_entropy(*leaves(), Y, **args)

def test_bad_targets():
    with pytest.raises(ValueError, match='10 states and 9 targets'): rf.linear_cross_entropy(*leaves(), Y[:9])
    for odd in (7, -1):
        with pytest.raises((IndexError, RuntimeError)): rf.linear_cross_entropy(*leaves(), Y.masked_fill(Y == 3, odd))

def test_lazy_logits():
    x,w,b = (p.detach() for p in leaves(n=12))
    lazy = LazyLogits(x.view(3, 4, 4), w, b)
    whole = F.linear(x.view(3, 4, 4), w, b)
    assert_close(lazy.whole(), whole)
    assert torch.equal(lazy.argmax(-1), whole.argmax(-1)) and lazy.dtype == torch.float64
    y = torch.arange(12).view(3, 4) % 7
    assert_close(lazy.loss(y, chunk=5, label_smoothing=0.1),
                 F.cross_entropy(whole.flatten(0, 1), y.flatten(), label_smoothing=0.1))

# ---- The chunked loss in learners

class At(ft.Callback):
    "Raises once at an event, before or after all others."
    def __init__(self, event, error=KeyboardInterrupt, order=1000):
        self.error,self.order,self.armed = error,order,True
        setattr(self, event, self.stop)
    def stop(self):
        if not self.armed or self.learn.iter < 1: return
        self.armed = False
        raise self.error

@pytest.mark.parametrize('event', ['before_batch', 'after_pred', 'after_loss', 'before_backward', 'before_step'])
@pytest.mark.parametrize('order', [-1000, 1000])
@pytest.mark.parametrize('error', [KeyboardInterrupt, ft.CancelBatchException, ft.CancelFitException])
def test_logits_are_whole_after_an_end_of_any_kind(tmp_path, event, order, error):
    learn = lm(tmp_path, [rf.ChunkedCrossEntropy()])
    try: learn.fit(1, 1e-3, cbs=At(event, error, order))
    except KeyboardInterrupt: assert error is KeyboardInterrupt
    x,_ = learn.dls.valid.one_batch()
    with torch.no_grad(): out = learn.model.eval()(x)
    assert isinstance(getattr(out, 'logits', out), torch.Tensor) and learn.model[1].lazy is False
    assert isinstance(learn.predict('one', 2, no_bar=True), str)

def test_an_error_within_the_model_leaves_logits_whole(tmp_path):
    learn = lm(tmp_path, [rf.ChunkedCrossEntropy()])
    def fail(*args): raise MemoryError
    hook = learn.model[0].register_forward_pre_hook(fail)
    with pytest.raises(MemoryError): learn.fit(1)
    hook.remove()
    assert isinstance(learn.predict('one', 2, no_bar=True), str)

def test_exported_after_an_interrupt(tmp_path):
    learn = lm(tmp_path, [rf.ChunkedCrossEntropy()])
    with pytest.raises(KeyboardInterrupt): learn.fit(1, 1e-3, cbs=At('after_loss'))
    want = learn.predict('one', 3, temperature=0, no_bar=True)
    learn.export('e.pkl')
    again = load_learner(tmp_path/'e.pkl')
    assert again.predict('one', 3, temperature=0, no_bar=True) == want

def test_a_lean_loss_is_copied():
    loss = LazyCrossEntropy(ft.CrossEntropyLossFlat(), 7)
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert twin.chunk == 7 and isinstance(twin.loss_func, ft.CrossEntropyLossFlat)
    assert not hasattr(loss, 'no_such_thing')

def test_lean_loss_that_is_taken_out_again(tmp_path):
    learn = lm(tmp_path, [rf.ChunkedCrossEntropy()])
    learn.fit(1, 1e-3)
    learn.remove_cb(rf.ChunkedCrossEntropy)
    learn.fit(1, 1e-3)
    assert type(learn.loss_func) is ft.CrossEntropyLossFlat and np.isfinite(learn.validate()[0])
    learn.fit(1, 1e-3, cbs=rf.ChunkedCrossEntropy(5))
    assert type(learn.loss_func) is ft.CrossEntropyLossFlat
    assert not any(isinstance(c, rf.ChunkedCrossEntropy) for c in learn.cbs)

def test_lean_loss_with_a_metric_that_needs_logits(tmp_path):
    "It is right, or the message names callback and metric; the learner is usable afterwards."
    top = ft.partial(ft.top_k_accuracy, k=3)
    learn = lm(tmp_path, [rf.ChunkedCrossEntropy()], metrics=top)
    try: loss,acc = learn.validate()
    except (AttributeError, TypeError) as e: assert 'ChunkedCrossEntropy' in str(e), e
    else: assert acc == pytest.approx(lm(tmp_path, metrics=top).validate()[1])
    assert isinstance(learn.predict('one', 2, no_bar=True), str)

# ---- Averages: other callbacks, other settings

def usual_rule(losses, patience):
    "Merity's own lines, epoch by epoch: the epoch after which averaging starts."
    best = []
    for t,v in enumerate(losses):
        if len(best) > patience and v > min(best[:-patience]): return t + 1
        best.append(v)

class Losses(ft.Callback):
    "Puts other validation losses into the records."
    order = ft.Recorder.order
    def __init__(self, losses): self.losses = losses
    def after_epoch(self):
        if self.recorder.values: self.recorder.values[-1][1] = self.losses[self.epoch]

@pytest.mark.parametrize('losses', [
    [5, 4, 3, 2, 1, 0], [5, 4, 3, 3.5, 2, 1], [5, 4, 3, 3.5, 3.2, 4], [1, 2, 3, 4, 5, 6], [3, 3, 3, 3, 3, 3],
    [3, 2, 4, 2, 3, 1], [1, 5, 0.5, 5, 5, 0]])
@pytest.mark.parametrize('patience', [1, 2, 3])
def test_averaging_starts_by_the_rule(losses, patience, tmp_path):
    avg = rf.AveragedSGD(patience)
    learn = quick(tmp_path, [avg, Losses(losses)])
    learn.fit(6, 1e-3)
    assert avg.since == usual_rule(losses, patience) == rule(losses, patience)

def quick(path, cbs=(), **kwargs):
    "A language model on a few batches."
    df = frame(4)
    dls = rf.TextDataLoaders.from_df(df, is_lm=True, seq_len=40, text_col='text', valid_pct=0.5, seed=0, bs=2,
                                     path=path, device='cpu')
    ft.set_seed(0)
    learn = rf.language_model_learner(dls, 'AWD_LSTM', SMALL, pretrained=False, **{'opt_func': ft.SGD, 'cbs': list(cbs),
                                                                                     **kwargs})
    learn.remove_cb(ft.ProgressCallback)
    learn.logger = lambda *a: None
    return learn

UP = [1, 2, 3, 4, 5, 6, 7]
def test_the_mean_is_what_is_validated(tmp_path):
    avg = rf.AveragedSGD(1)
    learn = quick(tmp_path, [Losses(UP), avg])
    seen = []
    class Note(ft.Callback):
        order = avg.order + 1
        def after_step(self): seen.append((self.epoch, weights(self.learn)))
        def after_epoch(self): seen.append((self.epoch, 'kept', weights(self.learn)))
        def before_train(self): seen.append((self.epoch, 'start', weights(self.learn)))
        def before_validate(self): seen.append((self.epoch, 'mean', weights(self.learn)))
    learn.add_cb(Note())
    learn.fit(5, 1.)
    assert avg.since == 3
    def at(epoch, what): return next(s[2] for s in seen if s[:2] == (epoch, what))
    steps = [s for s in seen if len(s) == 2]
    first = [w for e,w in steps if e == 3]
    assert_close(at(3, 'mean'), [torch.stack(w).mean(0) for w in zip(*first, strict=True)], **TINY)
    assert_close(at(3, 'kept'), at(3, 'mean'), rtol=0, atol=0)     # what other callbacks save is the mean
    assert_close(at(4, 'start'), first[-1], rtol=0, atol=0)        # and training goes on from the last step
    both = [w for e,w in steps if e >= 3]
    assert_close(weights(learn), [torch.stack(w).mean(0) for w in zip(*both, strict=True)], **TINY)
    assert_close(weights(learn), at(4, 'mean'), rtol=0, atol=0)

def test_the_best_model_that_is_saved_is_the_one_validated(tmp_path, capsys):
    "With `SaveModelCallback`: the file holds the mean of the steps up to the epoch whose loss was the least."
    avg,steps = rf.AveragedSGD(1),Steps()
    learn = quick(tmp_path, [Losses([3, 4, 5, 2, 1, 6, 6]), avg, steps])
    learn.fit(7, 1., cbs=ft.SaveModelCallback())
    assert avg.since == 3
    until = [w for e,w in steps.seen if 3 <= e <= 4]
    assert_close(weights(learn), [torch.stack(w).mean(0) for w in zip(*until, strict=True)], **TINY)

def test_a_metric_of_training_is_no_validation_loss(tmp_path):
    "With `train_metrics` the records have other columns."
    avg = rf.AveragedSGD(1)
    learn = quick(tmp_path, [avg], metrics=ft.accuracy)
    learn.recorder.train_metrics = True
    learn.fit(5, 1.)
    at = learn.recorder.metric_names.index('valid_loss') - 1
    assert avg.losses == [v[at] for v in learn.recorder.values][:len(avg.losses)]

def test_averages_begin_anew(tmp_path):
    avg = rf.AveragedSGD(1)
    learn = quick(tmp_path, [Losses(UP), avg])
    learn.fit(4, 1.)
    after = weights(learn)
    learn.lr_find(num_it=6, show_plot=False, suggest_funcs=None)
    assert_close(weights(learn), after, rtol=0, atol=0)
    learn.fit(2, 1e-3)   # too few epochs to average
    assert avg.since is None
    learn.fit(4, 1e-3)
    assert avg.since == 3

# ---- Streams: what comes back

def test_the_stream_comes_back_after_an_interrupt(tmp_path):
    for where in ('before_batch', 'after_loss', 'before_step'):
        learn = quick(tmp_path, [rf.VariableLength()])
        want = [x.shape for x,_ in learn.dls.train]
        with pytest.raises(KeyboardInterrupt): learn.fit(1, 1e-2, cbs=At(where))
        learn.remove_cb(rf.VariableLength)
        assert [x.shape for x,_ in learn.dls.train] == want
        assert {h['lr'] for h in learn.opt.hypers} == {1e-2}

def test_rates_with_a_schedule_and_skipped_steps(tmp_path):
    seen = []
    class Note(ft.Callback):
        order = rf.VariableLength.order + 1
        def before_step(self): seen.append((self.xb[0].size(1), [h['lr'] for h in self.opt.hypers], self.pct_train))
    learn = lm(tmp_path, [rf.VariableLength(), Note()])
    learn.fit_one_cycle(2, 1e-2)
    plain = learn.recorder.hps['lr']
    assert len(plain) == len(seen) and len({n for n,*_ in seen}) > 3
    for lr,(n,rates,_) in zip(plain, seen, strict=True): assert rates == pytest.approx([lr*n/20]*len(rates))
    assert max(plain) == pytest.approx(1e-2, rel=0.05) and plain[-1] < 1e-4   # the cycle is run through
    seen.clear()
    learn.fit(1, 1e-2, cbs=ft.GradientAccumulation(16))
    assert {h['lr'] for h in learn.opt.hypers} == {1e-2} and seen

def test_epochs_are_cut_otherwise_and_lose_nothing(tmp_path):
    cuts,toks = [],[]
    class Note(ft.Callback):
        def before_train(self): cuts.append([]); toks.append([])
        def before_batch(self):
            if self.training:
                cuts[-1].append(self.xb[0].size(1))
                toks[-1].append(self.xb[0].as_subclass(torch.Tensor).clone())
    learn = lm(tmp_path, [rf.VariableLength()])
    learn.dls.train.shuffle = False
    learn.fit(2, 1e-3, cbs=Note())
    a,b = (torch.cat(t, 1) for t in toks)
    assert torch.equal(a, b) and torch.equal(a, stream(learn.dls.train)) and cuts[0] != cuts[1]

def test_widths_without_chance_and_their_middle():
    rng = np.random.default_rng(0)
    assert stream_widths(100, 30, rng, 0., 0.).tolist() == [30, 30, 30, 10]
    w = stream_widths(200_000, 70, rng)[:-1]
    assert abs(np.median(w) - 70) <= 1 and 0.03 < (w < 50).mean() < 0.07 and w.max() < 100
    for n in range(1, 40):
        for seq_len in (1, 2, 5, 30):
            w = stream_widths(n, seq_len, rng, 0.5, 50.)
            assert w.sum() == n and w.min() >= 1 and len(w) <= n//5 + 1

@pytest.mark.parametrize('args', [dict(p_half=1.5), dict(p_half=-0.1), dict(std=-1.)])
def test_bad_lengths(args):
    (name,value), = args.items()
    with pytest.raises(ValueError, match=f'{name}={value}'): rf.VariableLength(**args)

# ---- Schedules over groups

class Layers(nn.Module):
    "Layers of one weight each; the loss pulls at all."
    def __init__(self, n):
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(n))
    def forward(self, x): return sum(p(x) for p in self.parts)

def layered(n, **kwargs):
    dl = ft.DataLoader([(torch.ones(1), torch.full((1,), 9.))]*20, bs=2)
    learn = ft.Learner(ft.DataLoaders(dl, dl, device='cpu'), Layers(n), loss_func=F.mse_loss,
                       splitter=lambda m: [list(p.parameters()) for p in m.parts], **kwargs)
    learn.remove_cb(ft.ProgressCallback)
    learn.logger = lambda *a: None
    return learn

@pytest.mark.parametrize('n,parts', [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 3, 4]), (5, [1, 2, 3, 5]),
                                     (9, [1, 2, 3, 9])])
def test_stages_of_gradual_unfreezing(n, parts):
    "Which weights move in each stage, for how long, and how fast at most."
    learn,seen = layered(n),[]
    class Note(ft.Callback):
        order = ft.ParamScheduler.order + 1
        def before_fit(self): self.start,self.top = weights(self.learn),np.zeros(n)
        def before_batch(self): self.top = np.maximum(self.top, [h['lr'] for h in self.opt.hypers])
        def after_fit(self):
            moved = [bool((a != b).any()) for a,b in zip(self.start, weights(self.learn), strict=True)]
            seen.append((moved, self.n_epoch, self.top))
    learn.fit_gradually(3, 1e-2, 2, 2., cbs=Note())
    div = [1, 2, 4][:len(parts)-1] + [20]
    assert len(seen) == len(parts)
    for (moved,epochs,top),k,d in zip(seen, parts, div, strict=True):
        assert moved == [False]*(n-k) + [True]*k and epochs == (3 if k == n else 2)
        assert top == pytest.approx([1e-2/d/2**i for i in reversed(range(n))], rel=0.02)
    assert all(p.requires_grad for p in learn.model.parameters())

@pytest.mark.parametrize('args', [dict(epochs=0), dict(stage_epochs=0), dict(epochs=1.5)])
def test_bad_stages_train_nothing(args):
    (name,value), = args.items()
    learn = layered(2)
    before = weights(learn)
    with pytest.raises(ValueError, match=f'{name}={value}'): learn.fit_gradually(**args)
    assert_close(weights(learn), before, rtol=0, atol=0)

@pytest.mark.parametrize('cut_frac,ratio,n', [(0.1, 32, 3), (0.5, 4, 1), (0.9, 10, 2)])
def test_slanted_triangle_for_each_group(cut_frac, ratio, n):
    "The paper's equation 3 where its `cut` is whole; callbacks given are called, and groups keep their proportions."
    learn,rates = layered(3),[]
    class Note(ft.Callback):
        def before_step(self): rates.append([h['lr'] for h in self.opt.hypers])
    learn.fit_slanted(n, [1e-3, 1e-2, 1e-1], cut_frac, ratio, cbs=[Note()])
    total = 10*n
    cut = int(total*cut_frac)
    assert len(rates) == total
    for t,got in enumerate(rates):
        p = t/cut if t < cut else 1 - (t - cut)/(cut*(1/cut_frac - 1))
        assert got == pytest.approx([m*(1 + p*(ratio - 1))/ratio for m in (1e-3, 1e-2, 1e-1)])

def test_slanted_triangle_by_the_learners_own_rate():
    learn = layered(2, lr=0.03)
    learn.fit_slanted(2)
    assert max(learn.recorder.hps['lr']) == pytest.approx(0.03)

@pytest.mark.parametrize('args', [dict(cut_frac=0.), dict(cut_frac=1.), dict(cut_frac=-1.), dict(ratio=0.),
                                  dict(ratio=-2.)])
def test_bad_triangles(args):
    (name,value), = args.items()
    learn = layered(2)
    before = weights(learn)
    with pytest.raises(ValueError, match=f'{name}={value}'): learn.fit_slanted(1, 1e-2, **args)
    assert_close(weights(learn), before, rtol=0, atol=0)

# ---- In one call: columns, labels, and errors at once

def test_unlabelled_texts_of_the_same_name_by_number(tmp_path):
    "The column's name counts, wherever it stands among the others."
    more = pd.DataFrame(dict(id=['wrongword']*9, text=['rightword']*9))
    for col in ('text', 0):
        texts = rf.lm_texts(reviews(2), col, more)
        assert list(texts.columns) == ['text'] and texts.text.tolist()[-9:] == ['rightword']*9
    assert len(texts) == 13 and texts.index.is_unique

@pytest.mark.parametrize('labels', [[1, 0], [0.5, 1.5], [True, False], ['a', 'b']])
def test_kinds_of_labels(labels, tmp_path):
    df = reviews(8).assign(label=labels*8, held=[False]*12 + [True]*4)
    learn = rf.ulmfit(df, valid_col='held', path=tmp_path, **QUICK)
    assert list(learn.dls.vocab[1]) == sorted(labels) and len(learn.dls.valid_ds) == 4
    assert str(learn.predict('good one')[0]) in map(str, labels)

def test_smooth_is_the_loss_of_the_classifier_alone(tmp_path):
    learn = rf.ulmfit(reviews(8), path=tmp_path, smooth=0.25, **QUICK)
    assert isinstance(learn.loss_func, ft.LabelSmoothingCrossEntropyFlat) and learn.loss_func.func.eps == 0.25
    assert type(rf.ulmfit(reviews(8), path=tmp_path, **QUICK).loss_func) is ft.CrossEntropyLossFlat

def with_label(value):
    df = reviews(8).astype({'label': object})
    df.iat[3, 1] = value
    return df

BAD = {
    'arch': (dict(arch='AWD_LSTN'), "'AWD_LSTN'"), 'config': (dict(config=dict(SMALL, hidden=3)), "'hidden'"),
    'epochs': (dict(epochs=0), 'epochs=0'),
    'clas_args': (dict(clas_args=dict(no_such=1)), 'no_such'), 'lm_args': (dict(lm_args=dict(no_such=1)), 'no_such'),
    'clas_args drop': (dict(clas_args=dict(drop_mult=99.)), '99|probability'),
    'lm_args drop': (dict(lm_args=dict(drop_mult=99.)), '99|probability'),
    'smooth 1': (dict(smooth=1.), 'smooth=1.0'), 'smooth -1': (dict(smooth=-1.), 'smooth=-1'),
    'argument': (dict(no_such=1), 'no_such'), 'bs': (dict(bs=0), 'bs=0'), 'bs too large': (dict(bs=5000), '5000|bs'),
    'valid_pct': (dict(valid_pct=1.5), 'valid_pct=1.5'), 'reading': (dict(reading=None), 'reading=None'),
    'label missing': (dict(df=with_label(None)), 'label'), 'no rows': (dict(df=reviews(8)[:0]), 'row|none|no text'),
    'one label': (dict(df=reviews(8).assign(label='x')), "'x'")}

@pytest.mark.parametrize('case', BAD)
def test_nothing_is_trained_before_an_error(case, tmp_path, monkeypatch):
    args,match = BAD[case]
    args,fits = dict(args),[]
    fit = rf.TextLearner.fit
    monkeypatch.setattr(rf.TextLearner, 'fit', lambda self, *a, **k: (fits.append(1), fit(self, *a, **k)))
    with pytest.raises((TypeError, ValueError), match=match):
        rf.ulmfit(args.pop('df', reviews(8)), path=tmp_path, **{**QUICK, **args})
    assert not fits and not list(tmp_path.rglob('*.safetensors'))

def test_several_labels_a_row(tmp_path):
    "Trained with their own loss and a metric that fits, or refused at once."
    df = reviews(8).assign(label=['x;y', 'y']*8)
    try: learn = rf.ulmfit(df, label_delim=';', path=tmp_path, **QUICK)
    except (TypeError, ValueError):
        assert not [p for p in tmp_path.rglob('*') if p.is_file()]
        return
    assert all(np.isfinite(v) for v in learn.validate())

def test_smoothed_regression_is_refused_at_once(tmp_path):
    with pytest.raises((TypeError, ValueError), match='smooth'):
        rf.ulmfit(reviews(8), label_col='stars', y_block=ft.RegressionBlock(), smooth=0.1, path=tmp_path, **QUICK)
    assert not [p for p in tmp_path.rglob('*') if p.is_file()]
