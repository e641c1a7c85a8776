"Trainings that are cut and go on: the same weights, optimizer, table, callbacks and next random numbers, to the bit."
import random
from contextlib import contextmanager
from functools import cache, partial

import numpy as np
import pytest
import torch
from bundles import clas_dls, lm_dls, pairs, series, tag_dls, texts
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau
from fastai.callback.training import GradientAccumulation
from fastai.text import all as ft
from fastcore.foundation import L
from torch import nn
from torch.amp import GradScaler, autocast

from rnn_fastai import all as rf
from rnn_fastai.learner.checkpoint import Checkpoint, list_checkpoints
from rnn_fastai.learner.packing import pack

pytestmark = pytest.mark.usefixtures('one_thread')
TINY = dict(emb_sz=6, n_hid=6, n_layers=2)

# ---- A cut

class Cut(Exception): pass

@contextmanager
def cut_after(monkeypatch, event, n):
    "End a training right after the `n`-th of some event, as a killed process ends: no other event follows."
    call,left = ft.Learner.__call__,[n]
    def counting(self, name):
        call(self, name)
        left[0] -= name == event
        if not left[0]: raise Cut
    with monkeypatch.context() as m:
        m.setattr(ft.Learner, '__call__', counting)
        yield

# ---- Learners

class CpuScaler(MixedPrecision):
    "fastai's mixed precision with the means of the CPU, and a scale that grows often."
    def before_fit(self):
        self.autocast,self.learn.scaler = autocast('cpu', dtype=torch.bfloat16),GradScaler('cpu', growth_interval=3)
        self.scales = L()

class Bag(nn.Module):
    "A net of the user's own, with batch norm, whose running means are buffers."
    def __init__(self, n, c):
        super().__init__()
        self.emb,self.norm,self.out = nn.Embedding(n, 5),nn.BatchNorm1d(5),nn.Linear(5, c)
    def forward(self, ids): return self.out(self.norm(self.emb(ids).mean(1)))

PAIRS = dict(xs=['ab', 'bca', 'c', 'cc', 'abab', 'b', 'ca', 'cba', 'aa'], labels='xyxyxyxyx')
def many_pairs(kind):
    ys = {'many-to-one': PAIRS['labels'], 'many-to-many': ['xyxy'[:len(x)] for x in PAIRS['xs']]}.get(kind, ['xy', 'y', 'x']*3)
    xs = [x[0] for x in PAIRS['xs']] if kind == 'one-to-many' else PAIRS['xs']
    return rf.SeqDataLoaders.from_pairs(xs, list(ys), kind, bs=2, valid_pct=0.2, seed=0, device='cpu')

def lm(arch='AWD_LSTM', **args):
    return rf.language_model_learner(lm_dls(bs=3, seq_len=9, shuffle=True), arch, TINY, pretrained=False, **args)
def fastai_lm():   # keeps its state inside
    dls = lm_dls(bs=3, seq_len=9)
    return rf.LMLearner(dls, rf.SequentialRNN(*rf.get_language_model('AWD_LSTM', len(dls.vocab), TINY)),
                        loss_func=ft.CrossEntropyLossFlat())
def clas(dls=None, **args):
    return rf.text_classifier_learner(dls or clas_dls(), 'AWD_LSTM', pretrained=False, config=TINY, metrics=ft.accuracy, **args)
def theirs():
    return ft.TextDataLoaders.from_df(texts(), text_col='text', label_col='label', bs=4, seed=0, num_workers=0)
def tagger(): return rf.tagger_learner(tag_dls(str.lower, chars=True), 'LSTM', emb_sz=6, n_hid=6, crf=True)
def rnn(dls, **args): return rf.rnn_learner(dls, 'GRU', 5, **args)
def plain():
    dls = many_pairs('many-to-one')
    return ft.Learner(dls, Bag(len(dls.vocab[0]), 2), ft.CrossEntropyLossFlat(), metrics=ft.accuracy)

one_cycle = 'fit_one_cycle',dict(n_epoch=3, lr_max=5e-2)
SGD = partial(ft.OptimWrapper, opt=torch.optim.SGD, momentum=0.9)
RECIPES = {   # what makes a learner; how it is trained; callbacks of the call
    'lm': (lm, one_cycle, lambda: [rf.LossHistory()]),
    'variable length': (lm, one_cycle, lambda: [rf.VariableLength(std=2.)]),
    'nt-asgd': (partial(lm, opt_func=ft.SGD), ('fit', dict(n_epoch=4, lr=30.)), lambda: [rf.AveragedSGD(1)]),
    'fine_tune': (lm, ('fine_tune', dict(epochs=2, base_lr=1e-2)), list),
    'sgdr': (lm, ('fit_sgdr', dict(n_cycles=2, cycle_len=1, lr_max=slice(1e-3, 1e-2))), list),
    'flat_cos': (partial(lm, opt_func=ft.ranger), ('fit_flat_cos', dict(n_epoch=2, lr=np.float64(1e-2))), list),
    'chunked': (partial(lm, cbs=rf.ChunkedCrossEntropy), one_cycle, list),
    'state inside': (fastai_lm, one_cycle, list),
    'accumulation': (partial(lm, opt_func=ft.Adam), one_cycle, lambda: [GradientAccumulation(7)]),
    'scaler': (lm, one_cycle, lambda: [CpuScaler()]),
    "torch's optimizer": (partial(lm, opt_func=SGD), one_cycle, list),
    'classifier': (clas, ('fit_gradually', dict(epochs=2)), list),
    'trackers': (clas, ('fit', dict(n_epoch=4, lr=5e-2)), lambda: [
        EarlyStoppingCallback(patience=2), ReduceLROnPlateau(patience=1), ft.SaveModelCallback()]),
    "fastai's loaders": (lambda: clas(theirs()), one_cycle, list),
    'tagger': (tagger, one_cycle, lambda: [ft.MixedPrecision('bf16')]),
    'next': (lambda: rnn(series('abcabdabcab'*3, seq_len=4)), one_cycle, lambda: [rf.ShowDecoded(1)]),
    **{k: (lambda k=k: rnn(many_pairs(k)), ('fit_slanted', dict(n_epoch=3, lr_max=1e-2)), list)
       for k in ('many-to-one', 'many-to-many', 'one-to-many', 'encoder-decoder')},
    "fastai's learner": (plain, one_cycle, list),
}

def made(name, tmp_path):
    "A learner, its random streams set."
    random.seed(1); np.random.seed(1); torch.manual_seed(1)
    learn = RECIPES[name][0]()
    learn.path = tmp_path
    if hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
    learn.logger = ft.noop
    if name != 'tagger': learn.recorder.train_metrics = bool(learn.metrics)
    return learn

def train(learn, name, cbs):
    method,args = RECIPES[name][1]
    getattr(learn, method)(**args, cbs=cbs)

def result(learn, cbs):
    "All that a training leaves, as JSON and tensors."
    r,tensors = learn.recorder,{}
    of_cbs = [{k: v for k,v in vars(cb).items() if isinstance(v, (int, float, list, L, dict))} for cb in cbs]
    said = pack(dict(model=learn.model.state_dict(), opt=learn.opt.state_dict(), table=r.values, losses=r.losses, lrs=r.lrs,
                     iters=r.iters, names=r.metric_names, hps=getattr(r, 'hps', None), cbs=of_cbs, last=learn.final_record,
                     epoch=learn.epoch, steps=learn.train_iter, pct=learn.pct_train, smooth=learn.smooth_loss,
                     trains=[p.requires_grad for p in learn.model.parameters()],
                     python=random.random(), numpy=np.random.rand(), torch=torch.rand(3),
                     loaders=[dl.rng.random() for dl in learn.dls.loaders]), tensors, '')
    return said,tensors

def assert_same(got, want):
    (said,tensors),(said_before,before) = got,want
    assert {k: v for k,v in said.items() if said_before[k] != v} == {}
    assert tensors.keys() == before.keys()
    assert [k for k,t in tensors.items() if not torch.equal(t, before[k])] == []

@cache
def whole(name, folder):
    "What the training in one piece leaves, and how many events there were of each kind."
    learn,cbs,n = made(name, folder),RECIPES[name][2](),{}
    call = ft.Learner.__call__
    def counting(self, event):
        n[event] = n.get(event, 0) + 1
        call(self, event)
    ft.Learner.__call__ = counting
    try: train(learn, name, cbs)
    finally: ft.Learner.__call__ = call
    if name == 'nt-asgd': assert cbs[0].since is not None
    if name == 'trackers': assert n['after_cancel_fit']
    return result(learn, cbs),n

@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('whole')

CUTS = {'a step': ('after_step', 0.4), 'late': ('after_batch', 0.85), 'validation': ('before_validate', 0.6),
        'between epochs': ('after_epoch', 0.4), 'at the end': ('after_fit', 1.)}

@pytest.mark.parametrize('where', CUTS)
@pytest.mark.parametrize('name', RECIPES)
def test_the_same_as_in_one_piece(name, where, tmp_path, folder, monkeypatch):
    (want,n),(event,part) = whole(name, folder),CUTS[where]
    make_cbs = RECIPES[name][2]
    learn = made(name, tmp_path)
    with cut_after(monkeypatch, event, max(round(n[event]*part), 1)), pytest.raises(Cut):
        train(learn, name, [*make_cbs(), Checkpoint(tmp_path/'c', every=3)])
    assert 1 <= len(list_checkpoints(tmp_path/'c')) <= 3
    learn,cbs = made(name, tmp_path),make_cbs()
    torch.rand(5); random.random(); np.random.rand()   # another history of the process
    learn.resume(tmp_path/'c', cbs=cbs)
    assert_same(result(learn, cbs), want)
