"Adversarial and virtual adversarial training: against loops, Hessians and plain training, in every setting."
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from bundles import clas_dls, lm_dls, tag_dls, texts
from fastai.callback.training import GradientAccumulation
from fastai.text import all as ft
from test_checkpoint import Cut, cut_after
from torch import nn
from torch.testing import assert_close

from rnn_fastai import all as rf
from rnn_fastai.callback import adversarial
from rnn_fastai.callback.adversarial import (
    AdversarialTraining,
    EntropyMinimization,
    VirtualAdversarial,
    WordVectors,
    divergence,
    perturbation,
    vector_spread,
    virtual_shifts,
)
from rnn_fastai.learner.text_lstm import text_lstm

pytestmark = pytest.mark.usefixtures('one_thread')
WORDS = ft.BaseTokenizer()
MORE = texts(90).text[30:].tolist()

def rnn(dls=None, cell='LSTM', **args):
    return rf.rnn_learner(dls or clas_dls(WORDS, bs=8), cell, 8, **{**dict(bidirectional=True, pool='concat', drop=0.3, embed_p=0.1), **args})
def awd(dls=None, arch='AWD_LSTM', **args):
    return rf.text_classifier_learner(dls or clas_dls(WORDS, bs=8), arch, pretrained=False, alpha=0., beta=0.,
                                      config=dict(emb_sz=8, n_hid=8, n_layers=2), **args)
LEARNERS = {'rnn': rnn, 'rnn SRU': partial(rnn, cell='SRU'), 'awd': awd, 'awd QRNN': partial(awd, arch='AWD_QRNN'),
            'awd bidir': lambda **args: rf.text_classifier_learner(clas_dls(WORDS, bs=8), 'AWD_LSTM', pretrained=False, max_len=5,
                config=dict(emb_sz=8, n_hid=8, n_layers=2, bidir=True), **args),
            'awd cut': partial(awd, max_len=5), 'multilabel': lambda **args: rnn(clas_dls(WORDS, label_col='many', label_delim=';'), **args)}

class Steps(ft.Callback):
    "Keeps gradients before each step, with the batch and the random state before it."
    order = -200
    def before_fit(self): self.grads,self.batches,self.states,self.losses = [],[],[],[]
    def before_batch(self):
        if self.training: self.states.append(torch.get_rng_state()); self.batches.append((*self.xb, *self.yb))
    def before_step(self): self.grads.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.model.parameters()])

def trained(make, *cbs, epochs=1, lr=1e-2, change=lambda learn: None, **args):
    ft.set_seed(0)
    learn = make(cbs=list(cbs), **args)
    change(learn)
    ft.set_seed(1)
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, lr)
    return learn

def weights(learn) -> list: return [p.detach() for p in learn.model.parameters()]

# ---- The gradient, by hand in float64

def by_hand(model, loss_func, x, y, epsilon, state):
    "Gradients of the loss and of that of moved vectors, one forward pass after the other."
    def run():
        torch.set_rng_state(state)
        out = model(x)
        return loss_func(getattr(out, 'logits', out), y)
    emb = next(m for m in model.modules() if isinstance(m, nn.Embedding))
    plain,seen = run(),[]
    want = torch.autograd.grad(plain, list(model.parameters()), allow_unused=True)
    hook = emb.register_forward_hook(lambda m, i, o: seen.append((i[0], o)))
    loss = run()
    hook.remove()
    (ids,v), = seen
    g, = torch.autograd.grad(loss, v)
    rows = []
    for row,d in zip(ids, g, strict=True):   # text by text
        real = row != emb.padding_idx
        d = torch.where(real[:, None], d, 0.)
        rows.append(d/d.norm())
    real = v.detach()[ids != emb.padding_idx]
    r = torch.stack(rows)*epsilon*real.var(0, correction=0).mean().sqrt()
    hook = emb.register_forward_hook(lambda m, i, o: o + r)
    moved = torch.autograd.grad(run(), list(model.parameters()), allow_unused=True)
    hook.remove()
    return [sum(g for g in pair if g is not None) if any(g is not None for g in pair) else None
            for pair in zip(want, moved, strict=True)]

@pytest.mark.parametrize('kind', ['rnn', 'rnn SRU', 'awd', 'awd QRNN', 'multilabel'])
def test_gradient_is_that_of_two_passes(kind):
    steps = Steps()
    learn = trained(LEARNERS[kind], AdversarialTraining(2.), steps, lr=0., change=lambda learn: learn.model.double())
    model = learn.model.train()
    for i in range(2):
        *x,y = steps.batches[i]
        want = by_hand(model, learn.loss_func, *x, y, 2., steps.states[i])
        for got,w in zip(steps.grads[i], want, strict=True):
            assert_close(got, torch.zeros_like(got) if w is None else w, rtol=1e-9, atol=1e-12)

# ---- The direction without a label

def small(n_out, seed=0):
    "A net of float64 without dropout, ids, and a function from a perturbation to the divergence."
    torch.manual_seed(seed)
    emb,rnn,head = nn.Embedding(7, 3, padding_idx=1),nn.GRU(3, 4, batch_first=True),nn.Linear(4, n_out)
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb,self.rnn,self.head = emb,rnn,head
        def forward(self, ids): return self.head(self.rnn(self.emb(ids))[0].sum(1))
    return Net().double()

def directions(model, ids, epsilon, power_iterations=0):
    "What is added to the vectors, and these."
    words = WordVectors(model.emb)
    def moved(shifts):
        with words.moved(shifts): return model(ids)
    torch.manual_seed(0)
    with words.kept() as calls: z = model(ids)
    return virtual_shifts(z, calls, moved, epsilon, power_iterations)[0],calls[0]

def hessian(model, row):
    "Of the divergence, at no perturbation: features x features of one text."
    v = model.emb(row[None]).detach()
    def logits(r): return model.head(model.rnn(v + r.view_as(v))[0].sum(1))
    zero = torch.zeros(v.numel(), dtype=torch.double)
    return torch.autograd.functional.hessian(lambda r: divergence(logits(zero).detach(), logits(r)), zero)

@pytest.mark.parametrize('n_out,power,least', [(2, 0, 1 - 1e-9), (3, 0, None), (3, 30, 0.999), (4, 30, 0.999)])
def test_direction_is_the_leading_eigenvector(n_out, power, least):
    model,ids = small(n_out),torch.tensor([[2, 3, 4, 5], [6, 5, 2, 3]])
    r,(v,real) = directions(model, ids, epsilon=1e-4, power_iterations=power)
    assert_close(r.norm(dim=(1, 2)), 1e-4*vector_spread(v, real).expand(2))
    for row,d in zip(ids, r, strict=True):
        values,vectors = torch.linalg.eigh(hessian(model, row))
        assert values[-1] > 0 and (values[:-n_out + 1].abs() < 1e-9*values[-1]).all()   # as many as answers less one
        d = d.flatten()/d.norm()
        if least is not None: assert abs(d@vectors[:, -1]) > least
        assert_close((vectors[:, -n_out + 1:].T@d).norm(), torch.tensor(1., dtype=torch.double))   # within their space

def test_it_grows_the_divergence_more_than_other_directions():
    model,ids = small(2),torch.tensor([[2, 3, 4, 5]])
    r,(v,real) = directions(model, ids, epsilon=0.5)
    def at(shift):
        with WordVectors(model.emb).moved([shift]): return divergence(base, model(ids)).item()
    base = model(ids).detach()
    others = [perturbation(v, real, torch.randn_like(v), 0.5) for _ in range(50)]
    assert max(at(o) for o in others) < max(at(r), at(-r))

def test_divergence_is_differentiated_by_the_moved_answer_alone(monkeypatch):
    "The gradient of the callback is that of KL of a constant answer, by hand, with the same dropout."
    steps = Steps()
    cb,seen = VirtualAdversarial(2.),[]
    def shifts_of(z, calls, moved, *args):
        seen.append((z.detach().clone(), virtual_shifts(z, calls, moved, *args), starts[-1]))
        return seen[-1][1]
    starts,own = [],cb._inputs
    def inputs():
        starts.append(torch.get_rng_state())
        return own()
    cb._inputs = inputs
    monkeypatch.setattr(adversarial, 'virtual_shifts', shifts_of)
    learn = trained(rnn, cb, steps, lr=0., change=lambda learn: learn.model.double())
    x = steps.batches[0][0]
    model,(z,(r,),state) = learn.model.train(),seen[0]
    torch.set_rng_state(steps.states[0])
    want = list(torch.autograd.grad(learn.loss_func(model(x), steps.batches[0][-1]), list(model.parameters())))
    hook = model.inp.register_forward_hook(lambda m, i, o: o + r)
    torch.set_rng_state(state)
    moved = model(x)
    hook.remove()
    kl = (z.softmax(-1)*(z.log_softmax(-1) - moved.log_softmax(-1))).sum(-1).mean()
    torch.set_rng_state(state)
    assert_close(model(x).detach(), z)   # the clean pass had this dropout
    for got,w,g in zip(steps.grads[0], want, torch.autograd.grad(kl, list(model.parameters())), strict=True):
        assert_close(got, w + g, rtol=1e-9, atol=1e-12)

# ---- What must not change

OFF = [partial(AdversarialTraining, 0.), partial(AdversarialTraining, weight=0.), partial(VirtualAdversarial, 0., texts=MORE),
       partial(VirtualAdversarial, weight=0.), partial(EntropyMinimization, 0.)]
@pytest.mark.parametrize('kind', ['rnn', 'awd'])
def test_without_length_or_weight_training_is_plain(kind):
    plain = weights(trained(LEARNERS[kind], epochs=2))
    for cb in OFF: assert_close(weights(trained(LEARNERS[kind], cb(), epochs=2)), plain, rtol=0, atol=0)

ON = {'adversarial': partial(AdversarialTraining, 2.), 'virtual': partial(VirtualAdversarial, 2.),
      'virtual, texts': partial(VirtualAdversarial, 2., entropy=1., texts=MORE, bs=8),
      'virtual, power': partial(VirtualAdversarial, 2., power_iterations=1), 'entropy': partial(EntropyMinimization, texts=MORE, bs=8)}
@pytest.mark.parametrize('kind', LEARNERS)
@pytest.mark.parametrize('cb', ON)
def test_every_learner_trains(kind, cb):
    "It differs from plain training; validation and predictions are those of the same weights without the callback."
    plain,learn = trained(LEARNERS[kind]),trained(LEARNERS[kind], ON[cb]())
    assert all(p.isfinite().all() for p in weights(learn))
    assert any(not a.equal(b) for a,b in zip(weights(plain), weights(learn), strict=True))
    found = learn.validate(),learn.get_preds(),learn.predict(MORE[0])[-1]
    assert not any(m._forward_hooks for m in learn.model.modules())
    learn.remove_cbs([c for c in learn.cbs if type(c) is type(ON[cb]())])
    assert_close((learn.validate(), learn.get_preds(), learn.predict(MORE[0])[-1]), found, rtol=0, atol=0)

@pytest.mark.parametrize('cb', ON)
def test_statistics_are_those_of_the_labelled_batches(cb):
    "Batch normalisation counts each batch once, and its running mean is that of plain training."
    norms = []
    for cbs in ([], [ON[cb]()]):
        learn = trained(awd, *cbs, lr=0.)
        norms.append([m for m in learn.model.modules() if isinstance(m, nn.BatchNorm1d)][0])
    assert norms[0].num_batches_tracked == norms[1].num_batches_tracked == len(learn.dls.train)
    if 'adversarial' in cb: assert_close(norms[0].running_mean, norms[1].running_mean, rtol=0, atol=0)   # the same draws

def test_frozen_layers_get_no_gradient():
    def freeze(learn): learn.freeze()
    learn = trained(awd, AdversarialTraining(2.), VirtualAdversarial(2., texts=MORE, bs=8), change=freeze)
    start = trained(awd, change=freeze, lr=0.)
    same = [a.equal(b) for a,b in zip(weights(start), weights(learn), strict=True)]
    assert any(same) and not all(same)
    assert same == [not p.requires_grad for p in learn.model.parameters()]

# ---- Precision, accumulated gradients, checkpoints

@pytest.mark.parametrize('change', [lambda l: l.to_bf16(), lambda l: l.to_fp16(init_scale=2.**10)], ids=['bf16', 'fp16'])
@pytest.mark.parametrize('cb', ON)
def test_half_precision(cb, change):
    "Losses of every step near those of float32, which they are not to the bit."
    full,half = (trained(rnn, ON[cb](), epochs=2, lr=2e-3, change=c) for c in (lambda l: None, change))
    full,half = (torch.stack([torch.as_tensor(x) for x in l.recorder.losses]) for l in (full, half))
    assert_close(half, full, rtol=0.02, atol=0)
    assert not half.equal(full)

@pytest.mark.parametrize('cb', ['adversarial', 'virtual'])
def test_scale_of_float16_counts_for_both_losses(cb):
    "Unscaled gradients do not depend on the scale."
    found = []
    for scale in (2.**4, 2.**10):
        learn = trained(rnn, ON[cb](), lr=1e-3, change=lambda l, s=scale: l.to_fp16(init_scale=s))
        found.append(torch.cat([p.flatten() for p in weights(learn)]))
    assert_close(*found, rtol=0.05, atol=2e-3)

def test_accumulated_gradients_are_those_of_a_larger_batch():
    "Without dropout: two batches of four weigh as one of eight."
    def make(bs, cbs): return rnn(clas_dls(WORDS, bs=bs, shuffle=False), drop=0., embed_p=0., cbs=cbs)
    grads = []
    for bs,more in ((8, []), (4, [GradientAccumulation(8)])):
        steps = Steps()
        def sized(cbs, bs=bs): return make(bs, cbs)
        trained(sized, AdversarialTraining(2.), steps, *more, lr=0., change=lambda l: l.model.double())
        # before the step of the last batch that completes eight rows
        grads.append(steps.grads[0] if bs == 8 else steps.grads[1])
    for a,b in zip(*grads, strict=True): assert_close(a, b, rtol=0.05, atol=1e-3)   # spreads of vectors differ

@pytest.mark.parametrize('event,n', [('after_step', 2), ('after_step', 5)])
def test_a_cut_training_goes_on(event, n, tmp_path):
    def make(): return rnn(cbs=[ON['adversarial'](), ON['virtual, texts']()], metrics=ft.accuracy)
    def run(learn, act):
        ft.set_seed(1)
        with learn.no_bar(), learn.no_logging(): act(learn)
        return learn
    ft.set_seed(0)
    whole = run(make(), lambda l: l.fit(3, 1e-2, cbs=rf.Checkpoint(tmp_path/'whole', every=1)))
    ft.set_seed(0)
    with cut_after('after_batch', n), pytest.raises(Cut):
        run(make(), lambda l: l.fit(3, 1e-2, cbs=rf.Checkpoint(tmp_path/'cut', every=1)))
    ft.set_seed(5)
    again = run(make(), lambda l: l.resume(tmp_path/'cut'))
    assert_close(weights(again), weights(whole), rtol=0, atol=0)
    assert [list(v) for v in again.recorder.values] == [list(v) for v in whole.recorder.values]
    assert again.virtual_adversarial.n_given == whole.virtual_adversarial.n_given

def test_unlabelled_order_depends_on_the_seed_alone():
    "Neither on other random numbers, nor do labelled batches change."
    seen = []
    for seed in (0, 1):
        cb,steps = ON['virtual, texts'](),Steps()
        ft.set_seed(seed)
        own = cb._inputs
        given = []
        def inputs(own=own, given=given):
            given.append(own()[0].clone())
            return given[-1],
        cb._inputs = inputs
        learn = rnn(cbs=[cb, steps])
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
        seen.append(given)
    for a,b in zip(*seen, strict=True): assert a.equal(b)
    assert len(seen[0]) == len(learn.dls.train)

# ---- What is said

def test_losses_stand_in_the_table_of_training_alone():
    learn = trained(rnn, ON['adversarial'](), ON['virtual, texts'](), metrics=ft.accuracy, epochs=2)
    names = list(learn.recorder.metric_names)
    assert names == ['epoch', 'train_loss', 'valid_loss', 'accuracy', 'adversarial', 'virtual', 'entropy', 'time']
    assert all(len(v) == len(names) - 2 and min(v[3:]) > 0 for v in learn.recorder.values)
    assert set(learn.last_scores) >= {'adversarial', 'virtual', 'entropy'}
    assert len(learn.validate()) == 2 and [m.name for m in learn.metrics] == ['accuracy']

@pytest.mark.parametrize('cb', [AdversarialTraining, VirtualAdversarial])
def test_bad_numbers(cb):
    for args in (dict(epsilon=-1), dict(epsilon=float('nan')), dict(weight=-0.1), dict(weight='1')):
        name, = args
        with pytest.raises(ValueError, match=f'{name}=.* must be a number of at least 0'): cb(**args)
    if cb is VirtualAdversarial:
        for args in (dict(bs=0), dict(seed=-1), dict(power_iterations=-1)):
            with pytest.raises(ValueError, match='must be a whole number'): cb(**args)

def fails(make, *cbs, match, error=ValueError, **args):
    with pytest.raises(error, match=match): trained(make, *cbs, **args)

def test_models_and_losses_that_do_not_fit():
    adv,vat = AdversarialTraining(),VirtualAdversarial()
    fails(rnn, adv, match='SequenceModel has no nn.Embedding', error=TypeError, one_hot=True, embed_p=0.)
    def lm(cbs): return rf.language_model_learner(lm_dls(WORDS), 'AWD_LSTM', dict(emb_sz=6, n_hid=6, n_layers=1), pretrained=False, cbs=cbs)
    for cb in (adv, vat): fails(lm, cb, match='LanguageModel carries its state', error=TypeError)
    def values(cbs): return rnn(clas_dls(WORDS, label_col='stars', y_block=ft.RegressionBlock()), loss_func=ft.MSELossFlat(), cbs=cbs)
    fails(values, vat, match='compares probabilities, and BaseLoss', error=TypeError)
    trained(values, adv)   # a loss is all that it needs
    def tagger(cbs): return rf.tagger_learner(tag_dls(chars=True), 'LSTM', emb_sz=6, n_hid=6, cbs=cbs)
    fails(tagger, adv, match=r'has 2 embeddings: .*Name one by layer=')

def test_a_named_embedding():
    def tagger(cbs): return rf.tagger_learner(tag_dls(chars=True), 'LSTM', emb_sz=6, n_hid=6, cbs=cbs)
    name = next(n for n,m in tagger([]).model.named_modules() if isinstance(m, nn.Embedding))
    learn = trained(tagger, AdversarialTraining(layer=name))
    assert learn.recorder.values[-1][-1] > 0
    fails(tagger, AdversarialTraining(layer='x'), match="no embedding 'x'")

def test_unlabelled_texts_that_do_not_fit():
    fails(rnn, VirtualAdversarial(texts=[]), match='unlabelled texts are empty')
    fails(rnn, VirtualAdversarial(texts=pd.DataFrame(dict(text=[]))), match='unlabelled texts are empty')
    dls = clas_dls(WORDS, bs=8)
    held = dls.valid_ds.items.text.tolist()
    with pytest.warns(UserWarning, match=f'2 of the {len(MORE) + 2} unlabelled texts are validation texts'):
        trained(rnn, VirtualAdversarial(texts=[*MORE, *held[:2]]))
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        trained(rnn, VirtualAdversarial(texts=MORE))

def test_texts_may_be_a_frame_a_list_or_a_data_set():
    frame = pd.DataFrame(dict(text=MORE))
    found = []
    for form in (MORE, frame, clas_dls(WORDS).train_ds.new(frame)):
        learn = trained(rnn, VirtualAdversarial(2., texts=form, bs=8))
        found.append(np.concatenate([p.flatten().numpy() for p in weights(learn)]))
    assert (found[0] == found[1]).all() and (found[0] == found[2]).all()

# ---- The recipe

UNLABELLED = pd.DataFrame(dict(text=['CAT zebra ! zebra', 'mat zebra soooo']*4))
def recipe(**args):
    own = dict(unlabelled=UNLABELLED, epochs=1, bs=8, min_freq=1, no_bar=True, device='cpu', tok_tfm=WORDS,
               model_args=dict(n_hid=6, emb_sz=6, half=False, default_cbs=False))
    return text_lstm(texts(), **{**own, **args})

@pytest.mark.parametrize('objective', [None, {}], ids=['plain', 'mixed'])
def test_recipe_depends_on_its_seed_alone(objective):
    found = []
    for other in (0, 1):
        ft.set_seed(other)
        found.append(weights(recipe(seed=3, objective=objective)))
    assert_close(*found, rtol=0, atol=0)
    assert any(not a.equal(b) for a,b in zip(found[0], weights(recipe(seed=4, objective=objective)), strict=True))

def test_recipe_knows_words_of_unlabelled_texts():
    assert 'zebra' in rf.text_vocab(recipe().dls) and 'zebra' not in rf.text_vocab(recipe(unlabelled=None).dls)

@pytest.mark.parametrize('args', [dict(), dict(label_col='many', label_delim=';')], ids=['labels', 'multilabel'])
def test_mean_of_nets_is_the_mean_of_probabilities(args):
    both = recipe(n_nets=2, **args)
    probs = []
    for model in both.model.models:
        learn = rf.RNNLearner(both.dls, model, loss_func=both.loss_func)
        with learn.no_bar(): probs.append(learn.get_preds()[0])
    with both.no_bar(): assert_close(both.get_preds()[0], torch.stack(probs).mean(0))
    assert not probs[0].allclose(probs[1])

BAD = [(dict(epochs=0), 'epochs=0 must be'), (dict(n_nets=0), 'n_nets=0 must be'), (dict(label_col='none'), "label_col='none' is not"),
       (dict(unlabelled=UNLABELLED[:0]), 'unlabelled texts are empty'), (dict(objective=dict(virtual=-1)), 'weight=-1 must be'),
       (dict(unlabelled=UNLABELLED.rename(columns=dict(text='body'))), "text_col='text' is not a column")]
@pytest.mark.parametrize('args,match', BAD, ids=[m for _,m in BAD])
def test_recipe_says_what_does_not_fit_before_it_trains(args, match, monkeypatch):
    monkeypatch.setattr(rf.Learner, 'fit_one_cycle', lambda *a, **k: pytest.fail('it trains'))
    with pytest.raises(ValueError, match=match): recipe(**args)

@pytest.mark.parametrize('reader', [dict(), dict(vectors=None, objective=dict(adversarial=0))], ids=['own vectors', 'objective'])
def test_recipe_warns_of_validation_texts_among_the_unlabelled(reader):
    held = texts().assign(held=[i < 6 for i in range(30)])
    def run(more, **args): return text_lstm(held, valid_col='held', unlabelled=more, epochs=1, bs=8, min_freq=1, no_bar=True, tok_tfm=WORDS,
                                            device='cpu', model_args=dict(n_hid=6, emb_sz=6, half=False, default_cbs=False), **args)
    more = pd.concat([UNLABELLED, held[['text']][:2]])
    with pytest.warns(UserWarning, match='2 of the 10 unlabelled texts are validation texts'): run(more, **reader)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        run(more, vectors=None)   # nothing learns from them

def test_recipe_adds_losses_where_they_are_asked_for():
    def names(**args):
        learn = recipe(model_args=dict(n_hid=6, emb_sz=6, half=False), **args)
        return set(learn.recorder.metric_names)
    assert not names() & {'adversarial', 'virtual', 'entropy'} and names(objective={}) >= {'adversarial', 'virtual', 'entropy'}
    assert names(objective=dict(virtual=0, entropy=0)) & {'adversarial', 'virtual', 'entropy'} == {'adversarial'}

def test_recipe_reads_few_texts_often():
    assert len(recipe(epochs=None, model_args=dict(n_hid=6, emb_sz=6, half=False)).recorder.values) == 10
