"Trainings that are cut and go on: the same weights, optimizer, table, callbacks and next random numbers, to the bit."
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import cache, partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import clas_dls, lm_dls, series, tag_dls, texts
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau
from fastai.callback.training import GradientAccumulation
from fastai.text import all as ft
from fastcore.foundation import L
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.amp import GradScaler, autocast
from torch.utils.data import DataLoader, TensorDataset

from rnn_fastai import all as rf
from rnn_fastai.data.ranks import checksum
from rnn_fastai.learner import checkpoint, snapshot
from rnn_fastai.learner.checkpoint import (
    Checkpoint,
    CheckpointError,
    NewerFormatError,
    list_checkpoints,
    read_checkpoint,
)
from rnn_fastai.learner.packing import pack

pytestmark = pytest.mark.usefixtures('one_thread')
HERE = Path(__file__).parent
TINY = dict(emb_sz=6, n_hid=6, n_layers=2)

# ---- A cut

class Cut(Exception): pass

@contextmanager
def after_events(f):
    "Call `f` with the name of each event of a learner, once its callbacks have run."
    def hearing(call):
        def heard(self, name):
            call(self, name)
            f(name)
        return heard
    with pytest.MonkeyPatch.context() as m:
        for cls in (ft.Learner, rf.TextLearner): m.setattr(cls, '__call__', hearing(cls.__call__))
        yield

def ending(event, n, end):
    "Count down `n` events of a kind, then end."
    left = [n]
    def count(name):
        left[0] -= name == event
        if not left[0]: end()
    return after_events(count)

def cut_after(event, n):
    "End a training right after the `n`-th of some event, as a killed process ends: no other event follows."
    def cut(): raise Cut
    return ending(event, n, cut)

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
    steps = ['xyxy'[:len(x)] for x in PAIRS['xs']]
    ys = {'many-to-one': PAIRS['labels'], 'many-to-many': steps}.get(kind, ['xy', 'y', 'x']*3)
    xs = [x[0] for x in PAIRS['xs']] if kind == 'one-to-many' else PAIRS['xs']
    return rf.SeqDataLoaders.from_pairs(xs, list(ys), kind, bs=2, valid_pct=0.2, seed=0, device='cpu')

def lm(config=TINY, **args):
    return rf.language_model_learner(lm_dls(bs=3, seq_len=9, shuffle=True), 'AWD_LSTM', config, pretrained=False, **args)
def fastai_lm():   # keeps its state inside
    dls = lm_dls(bs=3, seq_len=9)
    return rf.LMLearner(dls, rf.SequentialRNN(*rf.get_language_model('AWD_LSTM', len(dls.vocab), TINY)),
                        loss_func=ft.CrossEntropyLossFlat())
def clas(dls=None, **args):
    return rf.text_classifier_learner(dls or clas_dls(), 'AWD_LSTM', pretrained=False, config=TINY,
                                      metrics=ft.accuracy, **args)
def theirs():
    return ft.TextDataLoaders.from_df(texts(), text_col='text', label_col='label', bs=4, seed=0, num_workers=0)
def tagger(): return rf.tagger_learner(tag_dls(str.lower, chars=True), 'LSTM', emb_sz=6, n_hid=6, crf=True)
def rnn(dls, **args): return rf.rnn_learner(dls, 'GRU', 5, **args)
def plain():
    dls = many_pairs('many-to-one')
    return ft.Learner(dls, Bag(len(dls.vocab[0]), 2), ft.CrossEntropyLossFlat(), metrics=ft.accuracy)

def numbers():
    g = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randint(9, (22, 5), generator=g), torch.randint(2, (22,), generator=g))
def bag_learner(dls): return ft.Learner(dls, Bag(9, 2), ft.CrossEntropyLossFlat(), metrics=ft.accuracy)
def with_torchs_loaders(generator=None):
    ds = numbers()
    g = None if generator is None else torch.Generator().manual_seed(generator)
    return bag_learner(ft.DataLoaders(DataLoader(ds, 4, shuffle=True, generator=g), DataLoader(ds, 4), device='cpu'))

class Noisy:
    "Items of which each is drawn at random whenever it is looked at."
    def __init__(self, ds): self.ds = ds
    def __len__(self): return len(self.ds)
    def __getitem__(self, i):
        x,y = self.ds[i]
        return (x + torch.randint(9, (5,)) + random.randrange(9) + np.random.randint(9)) % 9,y
def with_noise(): return bag_learner(ft.DataLoaders.from_dsets(ds := Noisy(numbers()), ds, bs=4, num_workers=0, device='cpu'))

one_cycle = 'fit_one_cycle',dict(n_epoch=3, lr_max=5e-2)
SGD = partial(ft.OptimWrapper, opt=torch.optim.SGD, momentum=0.9)
RECIPES = {   # what makes a learner; how it is trained; callbacks of the call
    'lm': (lm, one_cycle, lambda: [rf.LossHistory()]),
    'variable length': (lm, one_cycle, lambda: [rf.VariableLength(std=2.)]),
    'nt-asgd': (partial(lm, opt_func=ft.SGD), ('fit', dict(n_epoch=4, lr=30.)), lambda: [rf.AveragedSGD(1)]),
    'best epoch': (clas, ('fit', dict(n_epoch=4, lr=.5)), lambda: [rf.KeepBest()]),
    'fine_tune': (lm, ('fine_tune', dict(epochs=2, base_lr=1e-2)), list),
    'sgdr': (lm, ('fit_sgdr', dict(n_cycles=2, cycle_len=1, lr_max=slice(1e-3, 1e-2))), list),
    'flat_cos': (partial(lm, opt_func=ft.ranger), ('fit_flat_cos', dict(n_epoch=2, lr=1e-2)), list),
    'chunked': (partial(lm, cbs=rf.ChunkedCrossEntropy), one_cycle, list),
    'adaptive head': (partial(lm, dict(TINY, head='adaptive', cutoffs=[5, 9]), cbs=rf.ChunkedCrossEntropy), one_cycle, list),
    'mixture, sampled': (partial(lm, dict(TINY, head='mixture', n_softmaxes=2), cbs=rf.SampledCrossEntropy), one_cycle, list),
    'state inside': (fastai_lm, one_cycle, list),
    'accumulation': (partial(lm, opt_func=ft.Adam), one_cycle, lambda: [GradientAccumulation(5)]),
    'scaler': (lm, one_cycle, lambda: [CpuScaler()]),
    "torch's optimizer": (partial(lm, opt_func=SGD), one_cycle, list),
    'classifier': (clas, ('fit_gradually', dict(epochs=2)), list),
    'trackers': (clas, ('fit', dict(n_epoch=9, lr=.5)), lambda: [
        EarlyStoppingCallback(patience=2), ReduceLROnPlateau(patience=1), ft.SaveModelCallback()]),
    "fastai's loaders": (lambda: clas(theirs()), one_cycle, list),
    'tagger': (tagger, one_cycle, lambda: [ft.MixedPrecision('bf16')]),
    'next': (lambda: rnn(series('abcabdabcab'*3, seq_len=4)), one_cycle, lambda: [rf.ShowDecoded(1)]),
    **{k: (lambda k=k: rnn(many_pairs(k)), ('fit_slanted', dict(n_epoch=3, lr_max=1e-2)), list)
       for k in ('many-to-one', 'many-to-many', 'one-to-many', 'encoder-decoder')},
    "fastai's learner": (plain, one_cycle, list),
    "torch's loaders": (with_torchs_loaders, ('fit', dict(n_epoch=3, lr=1e-2, start_epoch=1)), list),
    'generator': (partial(with_torchs_loaders, 5), one_cycle, list),
    'noise': (with_noise, one_cycle, list),
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

def kept(cb):
    "What a callback has gathered, without the times of epochs."
    state = {k: v for k,v in vars(cb).items() if isinstance(v, (int, float, list, L, dict))}
    return {**state, 'rows': [{**r, 'time': ''} for r in state['rows']]} if 'rows' in state else state

def result(learn, cbs):
    "All that a training leaves, as JSON and tensors."
    r,tensors = learn.recorder,{}
    said = pack(dict(model=learn.model.state_dict(), opt=learn.opt.state_dict(), table=r.values, losses=r.losses,
                     lrs=r.lrs, iters=r.iters, names=r.metric_names, hps=getattr(r, 'hps', None),
                     cbs=list(map(kept, cbs)), last=learn.final_record, scores=getattr(learn, 'last_scores', None),
                     epoch=learn.epoch, steps=learn.train_iter, pct=learn.pct_train, smooth=learn.smooth_loss,
                     trains=[p.requires_grad for p in learn.model.parameters()],
                     modes=[m.training for m in learn.model.modules()],
                     python=random.random(), numpy=np.random.rand(), torch=torch.rand(3),
                     loaders=[dl.rng.random() for dl in learn.dls.loaders if hasattr(dl, 'rng')]), tensors, '')
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
    with after_events(lambda event: n.update({event: n.get(event, 0) + 1})): train(learn, name, cbs)
    if name == 'nt-asgd': assert cbs[0].since is not None
    if name == 'trackers': assert n['after_cancel_fit']
    return result(learn, cbs),n

@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('whole')

CUTS = {'a step': ('after_step', 0.4), 'late': ('after_batch', 0.85), 'validation': ('before_validate', 0.6),
        'between epochs': ('after_epoch', 0.4), 'at the end': ('after_fit', 1.)}

GRID = [(name, where) for name in RECIPES for where in CUTS]
FAST = [o for i,o in enumerate(GRID) if o[0] == 'lm' or i%6 in (0, 3) or o[0] in ('generator', 'noise')]   # each learner is cut at one or two places

def cut_and_resume(name, where, folder, n, **options):
    "Train up to a cut, then go on in another learner; what that leaves."
    event,part = CUTS[where]
    learn = made(name, folder)
    with cut_after(event, max(round(n[event]*part), 1)), pytest.raises(Cut):
        train(learn, name, [*RECIPES[name][2](), Checkpoint(folder/'c', every=3, **options)])
    assert 1 <= len(list_checkpoints(folder/'c')) <= 3
    return go_on(name, folder)

def go_on(name, folder):
    "What a training leaves that goes on in another learner and after another history of the process."
    learn,cbs = made(name, folder),RECIPES[name][2]()
    torch.rand(5); random.random(); np.random.rand()
    assert learn.resume(folder/'c', cbs=cbs) is learn
    return result(learn, cbs)

@pytest.mark.parametrize('name,where', FAST)
def test_the_same_as_in_one_piece(name, where, tmp_path, folder):
    want,n = whole(name, folder)
    assert_same(cut_and_resume(name, where, tmp_path, n), want)

@pytest.mark.slow
@pytest.mark.parametrize('name,where', [o for o in GRID if o not in FAST])
def test_the_same_at_all_places(name, where, tmp_path, folder):
    test_the_same_as_in_one_piece(name, where, tmp_path, folder)

def test_a_training_that_is_cut_again_and_again(tmp_path, folder):
    "Each time a few steps later; every process but the last is cut."
    want,n = whole('fine_tune', folder)
    for k in range(99):
        learn = made('fine_tune', tmp_path)
        try:
            with cut_after('after_step', 7):
                if k: learn.resume(tmp_path/'c')
                else: train(learn, 'fine_tune', Checkpoint(tmp_path/'c', every=2, keep=1))
        except Cut:
            assert len(list_checkpoints(tmp_path/'c')) == 1
            continue
        break
    assert k >= n['after_step']//7 > 3
    assert_same(result(learn, []), want)

def test_a_training_that_has_ended_comes_back_as_it_ended(tmp_path, folder):
    want,_ = whole('lm', folder)
    learn = made('lm', tmp_path)
    train(learn, 'lm', [*RECIPES['lm'][2](), Checkpoint(tmp_path/'c', every=1000)])
    said,tensors = result(made('lm', tmp_path).resume(tmp_path/'c'), [])   # those of the call are gone
    assert_same((said, tensors), ({**want[0], 'cbs': []}, {k: want[1][k] for k in tensors}))

def test_a_checkpoint_changes_no_result(tmp_path, folder):
    want,_ = whole('lm', folder)
    learn,cbs = made('lm', tmp_path),RECIPES['lm'][2]()
    train(learn, 'lm', [*cbs, Checkpoint(tmp_path/'c', every=2)])
    assert_same(result(learn, cbs), want)

CHILD = """
import os, signal, sys
import torch
from safetensors.torch import save_file
torch.set_num_threads(1)
import test_checkpoint as t
from pathlib import Path
name,folder,event,n = sys.argv[1],Path(sys.argv[2]),sys.argv[3],int(sys.argv[4])
learn,cbs = t.made(name, folder),t.RECIPES[name][2]()
with t.ending(event, n, lambda: os.kill(os.getpid(), signal.SIGKILL)):
    if t.list_checkpoints(folder/'c'): learn.resume(folder/'c', cbs=cbs)
    else: t.train(learn, name, [*cbs, t.Checkpoint(folder/'c', every=2)])
said,tensors = t.result(learn, cbs)
save_file({k: v.clone(memory_format=torch.contiguous_format) for k,v in tensors.items()}, folder/'result.safetensors')
(folder/'result.json').write_text(t.json.dumps(said))
"""

@pytest.mark.slow
def test_killed_processes(tmp_path, folder):
    "Processes that end by SIGKILL at random steps and boundaries, 20 or more, whatever their writers are doing."
    rng,kills = random.Random(0),0
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, (HERE, HERE.parent))), 'OMP_NUM_THREADS': '1'}
    for name in ('variable length', 'nt-asgd', 'fine_tune', 'classifier', 'tagger', 'encoder-decoder', 'accumulation', 'scaler'):
        where = tmp_path/name
        where.mkdir()
        while not (where/'result.json').exists():
            event = rng.choice(['after_step']*4 + ['before_validate', 'after_epoch', 'after_fit'])
            n = rng.randint(3, 12) if event == 'after_step' else 1
            done = subprocess.run([sys.executable, '-c', CHILD, name, where, event, str(n)], env=env, timeout=300)
            assert done.returncode in (0, -signal.SIGKILL)
            kills += done.returncode != 0
        said,tensors = json.loads((where/'result.json').read_text()),load_file(where/'result.safetensors')
        (want,before),_ = whole(name, folder)
        assert_same((said, tensors), (json.loads(json.dumps(want)), before))
    assert kills >= 20

# ---- Files

def cut_lm(folder, n=10, **options):
    "A folder with checkpoints of a language model that was cut."
    learn = made('fine_tune', folder)
    with cut_after('after_step', n), pytest.raises(Cut):
        train(learn, 'fine_tune', Checkpoint(folder/'c', **{'every': 2, **options}))
    return list_checkpoints(folder/'c')

def test_the_last_ones_are_kept_and_hold_no_pickle(tmp_path):
    found = cut_lm(tmp_path, keep=2)
    assert [p.name for p in found] == ['checkpoint-000006', 'checkpoint-000008']   # the cut was within step 10
    assert {f.name for p in found for f in p.iterdir()} == {'state.json', 'state.safetensors'}
    json.loads((found[0]/'state.json').read_text())
    assert load_file(found[0]/'state.safetensors')
    assert sorted(p.name for p in (tmp_path/'c').iterdir()) == [p.name for p in found]

def damage(file, how):
    data = bytearray(file.read_bytes())
    if how == 'a byte': data[len(data)*2//3] ^= 1
    file.write_bytes({'a byte': data, 'cut short': data[:-9], 'empty': b''}.get(how))

@pytest.mark.parametrize('name', ['state.json', 'state.safetensors'])
@pytest.mark.parametrize('how', ['a byte', 'cut short', 'empty', 'missing'])
def test_a_damaged_one_is_named_and_the_one_before_is_taken(name, how, tmp_path, folder):
    before,last = cut_lm(tmp_path)[-2:]
    if how == 'missing': (last/name).unlink()
    else: damage(last/name, how)
    with pytest.raises(CheckpointError, match=f'{last} is damaged'): read_checkpoint(last)
    if name == 'state.json' and how == 'a byte':   # once is enough
        with pytest.warns(UserWarning, match=f'{last} is damaged: .*{before.name}, is taken'): got = go_on('fine_tune', tmp_path)
        assert_same(got, whole('fine_tune', folder)[0])

def test_where_none_is_whole(tmp_path):
    for p in cut_lm(tmp_path): damage(p/'state.json', 'empty')
    with pytest.warns(UserWarning, match='damaged'), pytest.raises(CheckpointError, match='No checkpoint before it is whole'):
        made('fine_tune', tmp_path).resume(tmp_path/'c')
    for folder in (tmp_path/'none', tmp_path/'models'):
        with pytest.raises(FileNotFoundError, match=f'There is no checkpoint in {folder}'): made('lm', tmp_path).resume(folder)

def rewrite(folder, **changes):
    "Change what a checkpoint says, with a checksum that fits."
    file = folder/'state.json'
    facts = json.loads(file.read_text())
    for k,v in changes.items(): (facts if k in facts else facts['saved'])[k] = v
    facts['checksum'] = '0'*64
    text = json.dumps(facts)
    file.write_text(text.replace('0'*64, hashlib.sha256(text.encode()).hexdigest(), 1))

def read_versions(folder): return json.loads((folder/'state.json').read_text())['saved']['versions']

def test_a_newer_format_and_other_versions(tmp_path, folder):
    last = cut_lm(tmp_path)[-1]
    rewrite(last, format=2)
    with pytest.raises(NewerFormatError, match='has format 2, and this version reads up to 1. Update'):
        made('fine_tune', tmp_path).resume(tmp_path/'c')
    rewrite(last, format=1, versions={**read_versions(last), 'torch': '1.0'})
    with pytest.warns(UserWarning, match='last bits of results may differ: torch was 1.0 and is 2'):
        got = go_on('fine_tune', tmp_path)
    assert_same(got, whole('fine_tune', folder)[0])

def test_a_method_that_does_not_train_is_not_called(tmp_path):
    last = cut_lm(tmp_path)[-1]
    rewrite(last, call=dict(name='export', args={}, cbs=read_checkpoint(last).call['cbs']))
    with pytest.raises(CheckpointError, match="names the method 'export', which does not train"):
        made('fine_tune', tmp_path).resume(tmp_path/'c')

@pytest.mark.parametrize('n_full', [2, 99])
def test_a_full_disk_does_not_end_the_training(n_full, tmp_path, folder, monkeypatch):
    "The first checkpoints, or all, cannot be written; those that were there stay."
    calls,save = [],checkpoint.save_file
    def full(tensors, file):
        calls.append(file)
        if 3 < len(calls) <= 3 + n_full: raise SafetensorError('I/O error: No space left on device (os error 28)')
        save(tensors, file)
    monkeypatch.setattr(checkpoint, 'save_file', full)
    learn = made('fine_tune', tmp_path)
    with pytest.warns(UserWarning, match='checkpoint-0000.. could not be written .*No space left.*The training goes on'):
        train(learn, 'fine_tune', Checkpoint(tmp_path/'c', every=2))
    assert_same(result(learn, []), whole('fine_tune', folder)[0])
    found = list_checkpoints(tmp_path/'c')
    assert len(found) == 3 and len(list((tmp_path/'c').iterdir())) == 3
    for p in found: read_checkpoint(p)
    assert (found[0].name == 'checkpoint-000002') == (n_full == 99)

def test_other_processes_write_in_folders_of_their_own(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(checkpoint, 'rank_distrib', lambda: 1)
    train(made('fine_tune', tmp_path), 'fine_tune', Checkpoint(tmp_path/'c', every=2))
    assert [p.name for p in (tmp_path/'c').iterdir()] == ['rank1'] and list_checkpoints(tmp_path/'c'/'rank1')

def test_a_training_goes_on_in_as_many_processes_as_it_had(tmp_path, monkeypatch):
    cut_lm(tmp_path)
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(ValueError, match='processes was 1 and is 2'): made('fine_tune', tmp_path).resume(tmp_path/'c')

def test_minutes(tmp_path, monkeypatch):
    clock = count(0, 20)   # seconds go by at each look: one a step
    monkeypatch.setattr(checkpoint.time, 'monotonic', lambda: next(clock))
    assert [int(p.name[-2:]) for p in cut_lm(tmp_path, n=13, keep=9, minutes=1)] == [3, 6, 9, 12]

# ---- Another training

OTHERS = {
    'model': (lambda: lm(config=dict(TINY, n_hid=7)), r'0.rnns.0.weight_ih_l0 was float32 \[24, 6\] and is float32 \[28, 6\]; '),
    'texts': (lambda: with_data(lm_dls(bs=3, seq_len=9, shuffle=True, valid_pct=0.3)), 'train documents was 24 and is 21'),
    'order': (lambda: with_data(lm_dls(bs=3, seq_len=9, shuffle=True, seed=5)), 'train (lengths|choice) was [0-9a-f]+ and is'),
    'batch': (lambda: with_data(lm_dls(bs=4, seq_len=9, shuffle=True)), 'train bs was 3 and is 4'),
    'length': (lambda: with_data(lm_dls(bs=3, seq_len=8, shuffle=True)), 'train seq_len was 9 and is 8'),
    'shuffle': (lambda: with_data(lm_dls(bs=3, seq_len=9, shuffle=False)), 'train shuffle was True and is False'),
    'optimizer': (lambda: lm(opt_func=ft.SGD), r'optimizer was FusedAdam\(adamw\) and is Optimizer\(weight_decay, sgd_step\)'),
    'loss': (lambda: lm(loss_func=ft.LabelSmoothingCrossEntropyFlat()), 'loss was CrossEntropyLoss and is LabelSmoothing'),
    'rate': (lambda: lm(lr=0.5), 'learn.lr was 0.001 and is 0.5'),
    'learner': (lambda: ft.Learner((o := lm()).dls, o.model, ft.CrossEntropyLossFlat()), 'learner was LMLearner and is Learner'),
    'callbacks': (lambda: lm(cbs=rf.LossHistory()), 'cut without LossHistory, which the learner has; leave it out'),
    'penalty': (lambda: lm(alpha=0., beta=0.), r'cut with RNNRegularizer\(alpha=2.0, beta=1.0\), which the learner lacks; pass it as cbs='),
    'size of penalty': (lambda: lm(alpha=5.), r'cut with RNNRegularizer\(alpha=2.0, beta=1.0\), which the learner lacks'),
    'dropout': (lambda: lm(drop_mult=0.5), r'0.embed_dp was WordDropout\(embed_p=0.02\) and is WordDropout\(embed_p=0.01\)'),
    'part': (lambda: with_part(lm(), nn.Dropout(0.1)), r'1.output_dp was RNNDropout\(p=0.1\) and is Dropout\(p=0.1'),
    'metrics': (lambda: lm(metrics=ft.accuracy), r"metrics was \[\] and is \['accuracy'\]"),
    'norm': (lambda: lm(train_bn=False), 'learn.train_bn was True and is False'),
}
def with_part(learn, part):
    learn.model[1].output_dp = part
    return learn
def with_data(dls): return rf.language_model_learner(dls, 'AWD_LSTM', TINY, pretrained=False)

@pytest.fixture(scope='module')
def cut_folder(tmp_path_factory):
    cut_lm(folder := tmp_path_factory.mktemp('cut'))
    return folder/'c'

@pytest.mark.parametrize('what', OTHERS)
def test_another_training_is_refused_and_left_alone(what, cut_folder):
    make,said = OTHERS[what]
    learn = make()
    before = {k: t.clone() for k,t in learn.model.state_dict().items()}
    with pytest.raises(ValueError, match=said): learn.resume(cut_folder)
    for k,t in learn.model.state_dict().items(): assert torch.equal(t, before[k])

@pytest.mark.parametrize('then,now,said', [
    (GradientAccumulation(8), GradientAccumulation(16), r'cut with GradientAccumulation\(n_acc=8\), which'),
    (EarlyStoppingCallback(patience=1), EarlyStoppingCallback(patience=2), r'cut with EarlyStoppingCallback\(.*patience=1.*\), which')])
def test_callbacks_with_other_settings_are_refused(then, now, said, tmp_path):
    with cut_after('after_step', 4), pytest.raises(Cut):
        made('lm', tmp_path).fit(1, cbs=[then, Checkpoint(tmp_path/'c', every=2)])
    with pytest.raises(ValueError, match=said): made('lm', tmp_path).resume(tmp_path/'c', cbs=now)

def test_other_weights_of_classes_are_refused(tmp_path):
    def learner(*w):
        learn = made('classifier', tmp_path)
        learn.loss_func = ft.CrossEntropyLossFlat(weight=torch.tensor(w))
        return learn
    with cut_after('after_step', 2), pytest.raises(Cut):
        learner(1., 2.).fit(2, cbs=Checkpoint(tmp_path/'c', every=1))
    with pytest.raises(ValueError, match='loss weight was [0-9a-f]+ and is'): learner(1., 3.).resume(tmp_path/'c')
    learner(1., 2.).resume(tmp_path/'c')

def test_a_checksum_reads_little_of_a_large_array():
    read = []
    class Ids:
        def __len__(self): return 10**12
        def __getitem__(self, at):
            read.append(len(at))
            return at % 999
    assert checksum(Ids()) and read == [64*1024]
    a = np.arange(10**6) % 60_000
    for dtype in (np.int32, np.uint16): assert checksum(a.astype(dtype)) == checksum(a)
    assert len({checksum(x) for x in (a, a[:-1], a[::-1], a*0.5, np.zeros(0), np.zeros(1))}) == 6

# ---- The call

@pytest.mark.parametrize('args,said', [
    (dict(wd=lambda: 1), r'fit.wd is of type function, which a checkpoint cannot hold'),
    (dict(wd=torch.float32), r'fit.wd is of type dtype')])
def test_arguments_that_cannot_be_kept(args, said, tmp_path):
    learn = made('lm', tmp_path)
    with pytest.raises(TypeError, match=said): learn.fit(1, **args, cbs=Checkpoint(tmp_path/'c'))
    assert not (tmp_path/'c').exists() and '_call' not in vars(learn)

@pytest.mark.parametrize('args,said', [(dict(every=0), 'every=0'), (dict(keep=0), 'keep=0'), (dict(keep=1.5), 'keep=1.5'),
                                       (dict(minutes=0), 'minutes=0'), (dict(minutes=float('nan')), 'minutes=nan')])
def test_bad_options(args, said):
    with pytest.raises(ValueError, match=said): Checkpoint('c', **args)

def test_a_new_training_does_not_write_over_one_that_was_cut(tmp_path):
    last = cut_lm(tmp_path)[-1]
    learn = made('lm', tmp_path)
    with pytest.raises(ValueError, match=r"c holds a training that was cut at step 8: go on with learn.resume\('.*c'\), or delete"):
        learn.fit(1, cbs=Checkpoint(tmp_path/'c'))
    made('fine_tune', tmp_path).resume(tmp_path/'c')
    ended = list_checkpoints(tmp_path/'c')[-1]
    learn.fit(1, cbs=Checkpoint(tmp_path/'c', keep=1))   # counts on
    found = list_checkpoints(tmp_path/'c')
    assert len(found) == 1 and found[0].name > ended.name > last.name

def test_two_trainings_at_once_have_two_folders(tmp_path):
    class Second(ft.Callback):
        def after_step(self):
            with pytest.raises(ValueError, match="Another training writes its checkpoints to .*c now: wait until it has ended"):
                made('next', tmp_path).fit(1, cbs=Checkpoint(tmp_path/'c'))
            self.tried = True
    learn,second = made('next', tmp_path),Second()
    learn.fit(1, cbs=[second, Checkpoint(tmp_path/'c')])
    assert second.tried and len(list_checkpoints(tmp_path/'c')) == 1
    made('next', tmp_path).fit(1, cbs=Checkpoint(tmp_path/'c'))   # the folder is free again

def test_two_checkpoints(tmp_path):
    learn = made('lm', tmp_path)
    with pytest.raises(ValueError, match='two Checkpoints'): learn.fit(1, cbs=[Checkpoint(tmp_path/'a'), Checkpoint(tmp_path/'b')])

def test_a_checkpoint_of_another_folder(tmp_path):
    cut_lm(tmp_path)
    with pytest.raises(ValueError, match="Checkpoint writes to .*other, and the training is in .*c: name one folder"):
        made('fine_tune', tmp_path).resume(tmp_path/'c', cbs=Checkpoint(tmp_path/'other'))

def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(OSError, match='file/c cannot be made a folder .*name another one'):
        made('lm', tmp_path).fit(1, cbs=Checkpoint(tmp_path/'file'/'c'))

def test_neither_searches_nor_validations_are_kept(tmp_path, folder):
    learn = made('fine_tune', tmp_path)
    learn.add_cb(Checkpoint(tmp_path/'c', every=2))
    learn.lr_find(show_plot=False, num_it=6)
    learn.validate()
    learn.get_preds()
    assert not (tmp_path/'c').exists()
    learn = made('fine_tune', tmp_path).add_cb(Checkpoint(tmp_path/'c', every=2))
    train(learn, 'fine_tune', None)
    learn.validate()
    assert len(list_checkpoints(tmp_path/'c')) == 3

def test_an_interrupt_leaves_whole_checkpoints_and_no_thread(tmp_path, folder):
    "The same learner may go on, as in a notebook, or another one."
    learn,n = made('fine_tune', tmp_path),threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        def one_batch(i, b):
            if i == 5: raise KeyboardInterrupt
            type(learn).one_batch(learn, i, b)
        learn.one_batch = one_batch
        train(learn, 'fine_tune', Checkpoint(tmp_path/'c', every=1))
    assert threading.active_count() == n and '_call' not in vars(learn)
    assert [read_checkpoint(p).step for p in list_checkpoints(tmp_path/'c')] == [3, 4, 5]
    shutil.copytree(tmp_path/'c', tmp_path/'again'/'c')
    assert_same(go_on('fine_tune', tmp_path/'again'), whole('fine_tune', folder)[0])
    del learn.one_batch
    assert_same(result(learn.resume(tmp_path/'c'), []), whole('fine_tune', folder)[0])

def test_the_table_shows_the_epochs_before(tmp_path, folder):
    want,n = whole('lm', folder)
    cut_and_resume('lm', 'between epochs', tmp_path, n)
    rows = []
    learn = made('lm', tmp_path)
    learn.logger = rows.append
    for p in list_checkpoints(tmp_path/'c')[1:]: shutil.rmtree(p)   # back to one within the training
    learn.resume(tmp_path/'c', cbs=[*RECIPES['lm'][2](), ft.CSVLogger()])   # what only shows may differ
    assert [l.split(',')[0] for l in (tmp_path/'history.csv').read_text().splitlines()] == ['epoch', '0', '1', '2']
    assert [r[0] for r in rows] == [0, 1, 2] and [r[1:3] for r in rows] == [L(v) for v in learn.recorder.values]

def test_loaders_with_processes_are_not_forked_beside_a_thread(tmp_path, monkeypatch):
    learn,waits = made('fine_tune', tmp_path),[]
    monkeypatch.setattr(Checkpoint, '_wait', lambda self: waits.append(1))
    monkeypatch.setattr(checkpoint, '_write_and_prune', lambda *args: None)
    learn.fit(1, cbs=Checkpoint(tmp_path/'a', every=1000))
    alone = len(waits)
    learn.dls.train.fake_l.num_workers = 1
    learn.fit(1, cbs=Checkpoint(tmp_path/'a', every=1000))
    assert len(waits) - alone > alone

# ---- Loaders

@pytest.mark.parametrize('make', [lambda: lm_dls(bs=3, seq_len=4, shuffle=True), clas_dls, tag_dls, lambda: many_pairs('many-to-one'),
                                  lambda: series('abcabdabcab'*3, seq_len=4), theirs])
def test_a_loader_goes_on_after_some_batches(make):
    dl = make().train
    n,rngs = len(dl),[random.getstate(), np.random.get_state(), torch.get_rng_state(), dl.rng.getstate()]
    whole = [tuple(torch.Tensor(t) for t in b) for b in dl]
    for k in (1, 2, n-1, n):
        random.setstate(rngs[0]); np.random.set_state(rngs[1]); torch.set_rng_state(rngs[2]); dl.rng.setstate(rngs[3])
        rest = list(snapshot.batches_after(dl, k))
        assert len(rest) == n - k
        for b,want in zip(rest, whole[k:], strict=True):
            for t,w in zip(b, want, strict=True): assert torch.equal(torch.Tensor(t), w)
    with pytest.raises(ValueError, match='The loader has less than 99 batches'): snapshot.batches_after(dl, 99)

def test_batches_before_are_not_built(monkeypatch):
    built = []
    dl = clas_dls().train
    batch = type(dl.dataset).batch
    monkeypatch.setattr(type(dl.dataset), 'batch', lambda self, *args: built.append(1) or batch(self, *args))
    list(snapshot.batches_after(dl, len(dl)-1))
    assert len(built) == 2
