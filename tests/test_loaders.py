"Loaders as users of fastai know them: `set_seed` repeats training, hooks are run, attributes say what fastai's say."
import copy
import os
import pickle
import random
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import fastai.text.core
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.text import all as ft
from torch import nn
from torch.testing import assert_close

from rnn_fastai import all as rf
from rnn_fastai.data.texts import hold_texts

WORDS = 'one two three four five six seven eight'.split()

@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    "fastai tokenizes in this process: same tokens, no time for workers to start."
    monkeypatch.setattr(fastai.text.core, 'parallelable', lambda *a, **k: False)

def make_frame(n=37):
    rng = np.random.default_rng(0)
    texts = [' '.join(rng.choice(WORDS, rng.integers(3, 20))) for _ in range(n)]
    return pd.DataFrame({'text': texts, 'label': rng.choice(['neg', 'pos'], n)})

def make_tags(n=37):
    return pd.DataFrame({'tokens': [t.split() for t in make_frame(n).text],
                         'tags': [['X' if 'e' in w else 'O' for w in t.split()] for t in make_frame(n).text]})

ARGS = dict(bs=4, seed=1, text_col='text', device='cpu')
def lm(m=rf, **args): return m.TextDataLoaders.from_df(make_frame(), is_lm=True, **{**ARGS, 'seq_len': 7, **args})
def clas(m=rf, **args): return m.TextDataLoaders.from_df(make_frame(), label_col='label', **{**ARGS, **args})
def tags(**args): return rf.TagDataLoaders.from_df(make_tags(), bs=4, seed=1, device='cpu', **args)
def pairs(): return rf.SeqDataLoaders.from_pairs(make_tags().tokens, make_tags().tags, 'many-to-many', bs=4, seed=1,
                                                 device='cpu')
KINDS = dict(lm=lm, clas=clas, tags=tags, pairs=pairs)
OURS = dict(lm=lm, clas=clas, tags=tags)

def plain(b): return [t.tolist() for t in b]
def epochs(dl, n=2): return [[plain(b) for b in dl] for _ in range(n)]
def equal(a, b):
    "Two loaders, or lists of batches, are equal in values, types and lengths of texts."
    for x,y in zip(a, b, strict=True):
        assert [type(t) for t in x] == [type(t) for t in y]
        for t,u in zip(x, y, strict=True): assert_close(torch.Tensor(t), torch.Tensor(u), rtol=0, atol=0)
        if hasattr(x[0], 'lens'): assert_close(x[0].lens, y[0].lens)

# ---- the order of an epoch

@pytest.mark.parametrize('kind', KINDS)
def test_set_seed_before_or_after_the_loaders_repeats_epochs(kind):
    def before(seed):
        ft.set_seed(seed)
        return epochs(KINDS[kind]().train)
    def after(seed, dls=None):
        dls = dls or KINDS[kind]()
        ft.set_seed(seed)
        return epochs(dls.train)
    dls = KINDS[kind]()
    a,b = after(42, dls)
    assert before(42) == before(42) and after(42) == after(42, dls) == [a, b]
    assert a != b and after(43, dls) != [a, b] and before(43) != before(42)
    epochs(dls.train, 1)
    assert after(42, dls) == [a, b]         # from any state of the loader
    assert epochs(dls.train) != [a, b]      # and without a seed, another order

@pytest.mark.parametrize('kind', KINDS)
def test_copies_of_a_loader_follow_the_seed_too(kind):
    dls = KINDS[kind]()
    epochs(dls.train, 1)
    copies = [dls, copy.deepcopy(dls), pickle.loads(pickle.dumps(dls)), [dls.train.new()]]
    got = []
    for o in copies:
        ft.set_seed(42)
        got.append(epochs(o[0]))
    assert all(g == got[0] for g in got)

STREAM = dict(lm=random.seed, clas=np.random.seed, tags=np.random.seed, pairs=torch.manual_seed)
@pytest.mark.parametrize('seed', [random.seed, np.random.seed, torch.manual_seed])
@pytest.mark.parametrize('kind', KINDS)
def test_the_stream_is_that_of_fastai(kind, seed):
    "Seeding one of the three streams is enough for the loaders of its kind, ours and fastai's, and for no others."
    for make in [KINDS[kind], *([partial(KINDS[kind], ft)] if kind in ('lm', 'clas') else [])]:
        def one(n, make=make):
            dls = make()   # a new one: fastai shuffles the last order of a stream
            ft.set_seed(n)
            seed(7)
            return epochs(dls.train, 1)
        assert (one(1) == one(2)) == (seed == STREAM[kind])

@pytest.mark.parametrize('kind', KINDS)
def test_validation_leaves_the_streams_alone(kind):
    dls = KINDS[kind]()
    before = torch.get_rng_state(),np.random.get_state()[1].tolist(),random.getstate()
    epochs(dls.valid)
    assert_close(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]

@pytest.mark.parametrize('kind', OURS)
def test_an_rng_of_the_user_rules(kind):
    dls = OURS[kind]()
    def own(seed):
        dls.train.rng = random.Random(seed)
        return epochs(dls.train)
    ft.set_seed(1); a = own(3)
    ft.set_seed(2); state = random.getstate()
    assert own(3) == a != own(4) and a[0] != a[1]
    assert random.getstate() == state   # nothing is drawn from the global stream
    dls.train.rng = random.Random(3)
    assert epochs(copy.deepcopy(dls).train) == a

class Net(nn.Module):
    "Scores of the mean of embeddings; of each token for a stream."
    def __init__(self, n, c, stream):
        super().__init__()
        self.emb,self.out,self.drop,self.stream = nn.Embedding(n, 4),nn.Linear(4, c),nn.Dropout(0.1),stream
    def forward(self, x):
        h = self.drop(self.emb(torch.Tensor(x).long()))
        return self.out(h if self.stream else h.mean(1))

def losses(kind, m, order, seed=42):
    "Losses of two epochs, with the seed set before the loaders or after them."
    make = dict(lm=lm, clas=clas)[kind]
    if order == 'before': ft.set_seed(seed)
    dls = make(m)
    if order == 'after': ft.set_seed(seed)
    vocab = dls.vocab if kind == 'lm' else dls.vocab[0]
    learn = ft.Learner(dls, Net(len(vocab), len(vocab) if kind == 'lm' else 2, kind == 'lm'),
                       loss_func=ft.CrossEntropyLossFlat())
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2)
    return [list(map(float, r)) for r in learn.recorder.values]

@pytest.mark.parametrize('order', ['before', 'after'])
@pytest.mark.parametrize('kind', ['lm', 'clas'])
def test_training_repeats_as_with_fastai(kind, order):
    for m in (ft, rf):
        a = losses(kind, m, order)
        assert a == losses(kind, m, order) != losses(kind, m, order, 43)

def test_training_repeats_in_another_process():
    code = "import test_loaders as t; print([t.losses(k, t.rf, o) for k in ('lm', 'clas') for o in ('before', 'after')])"
    env = {**os.environ, 'PYTHONPATH': str(Path(rf.__file__).parent.parent)}   # the package that is tested here
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=Path(__file__).parent, capture_output=True,
                         text=True, check=True, env=env)
    assert eval(run.stdout) == [losses(k, rf, o) for k in ('lm', 'clas') for o in ('before', 'after')]

def test_a_copied_learner_trains_alike():
    learn = rf.language_model_learner(lm(), rf.AWD_LSTM, pretrained=False, config=dict(emb_sz=6, n_hid=5, n_layers=2))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    got = []
    for o in (copy.deepcopy(learn), learn):
        ft.set_seed(42)
        with o.no_bar(), o.no_logging(): o.fit(1)
        got.append(list(map(float, o.recorder.values[-1])))
    assert got[0] == got[1]

def test_random_lengths_of_a_stream_follow_the_seed():
    dls = lm(seq_len=20)
    def widths():
        learn = rf.language_model_learner(dls, rf.AWD_LSTM, pretrained=False, config=dict(emb_sz=4, n_hid=4, n_layers=1),
                                          cbs=rf.VariableLength())
        seen = []
        class See(ft.Callback):
            run_valid = False
            def before_batch(self): seen.append(self.xb[0].tolist())
        ft.set_seed(42)
        with learn.no_bar(), learn.no_logging(): learn.fit(2, cbs=See())
        return seen
    assert widths() == widths()

# ---- hooks

class Flag(ft.Transform):
    "Counts its calls and changes nothing."
    def __init__(self): self.n = 0
    def _count(self, x):
        self.n += 1
        return x
    def encodes(self, x:ft.TensorText): return self._count(x)
    def encodes(self, x:list): return self._count(x)   # noqa: F811 (fastai's transforms choose by type)

def same(o): return o
STEPS = dict(after_item=same, before_batch=same, wif=lambda: None,
             retain=lambda res, b: ft.retain_types(res, b[0]))

@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('part', [0, 1])
@pytest.mark.parametrize('step', STEPS)
@pytest.mark.parametrize('kind', OURS)
def test_fastais_loop_gives_the_same_batches(kind, step, part, workers):
    dl = OURS[kind]()[part]
    if workers and step != 'before_batch': return
    slow = dl.new(num_workers=workers, **{step: STEPS[step]})
    assert step in slow.changed_steps() and not dl.changed_steps()
    ft.set_seed(3); a = list(dl)
    ft.set_seed(3); b = list(slow)
    equal(a, b)

@pytest.mark.parametrize('how', ['argument', 'add_tfms'])
@pytest.mark.parametrize('event', ['after_item', 'before_batch', 'after_batch'])
@pytest.mark.parametrize('kind', OURS)
def test_transforms_are_run(kind, event, how):
    f,dls = Flag(),OURS[kind]()
    dl = dls.train.new(**{event: [f]}) if how == 'argument' else dls.train
    if how == 'add_tfms': dls.add_tfms([f], event, 'train')
    list(dls.valid)
    assert f.n == 0
    batches = list(dl)
    rows = sum(len(b[0]) for b in batches)
    texts = rows*(2 if kind == 'lm' else 1)   # the target of a language model is text too
    if event == 'after_batch': texts = len(batches)*(2 if kind == 'lm' else 1)
    if event == 'before_batch': texts = len(batches)
    assert f.n == texts

@pytest.mark.parametrize('event', ['after_item', 'before_batch', 'after_batch'])
@pytest.mark.parametrize('kind', ['lm', 'clas'])
def test_a_transform_for_training_alone_is_run_in_training_alone(kind, event):
    "As fastai does it: a transform says by `split_idx` in which part it is run."
    calls = {}
    for m in (ft, rf):
        dls = dict(lm=lm, clas=clas)[kind](m, num_workers=0)
        for split in (0, 1):
            f = Flag()
            f.split_idx = split
            dls.add_tfms([f], event)
            for i,dl in enumerate(dls):
                f.n = 0
                list(dl)
                calls[m, split, i] = f.n > 0
    for split in (0, 1):
        for i in (0, 1): assert calls[rf, split, i] == calls[ft, split, i] == (split == i)

def test_items_may_be_changed_and_skipped():
    "Labels flipped by `after_item`; every other row skipped."
    flipped = clas().valid.new(after_item=ft.ItemTransform(lambda o: (o[0], 1-o[1])))
    for (x,y),(u,v) in zip(clas().valid, flipped, strict=True):
        assert_close(torch.Tensor(x), torch.Tensor(u))
        assert_close(1-y, v)
    def short(o):
        if len(o[0]) > 9: raise ft.SkipItemException
        return o
    for m in (rf, ft):
        lens = [int((row != 1).sum()) for b in clas(m, num_workers=0).valid.new(after_item=ft.ItemTransform(short)) for row in b[0]]
        assert lens and max(lens) <= 9 and len(lens) == sum(len(o[0]) <= 9 for o in clas(m).valid_ds)

@pytest.mark.parametrize('pad', [ft.pad_input, ft.Pad_Chunk(seq_len=5), ft.Pad_Chunk(seq_len=5, pad_first=False)])
def test_paddings_of_fastai_may_stay(pad):
    for part in (0, 1):
        dl = clas()[part]
        ft.set_seed(3); a = list(dl)
        ft.set_seed(3); b = list(dl.new(before_batch=pad))
        equal(a, b)

def derived(base, **methods): return type('Derived', (base,), methods)

def test_subclass_of_the_language_models_loader():
    "`create_item`, `make_chunks` and `shuffle_fn` written for fastai's class do the same in ours."
    def create_item(self, seq):
        x,y = super(type(self), self).create_item(seq)
        return x+1,y
    def make_chunks(self):
        super(type(self), self).make_chunks()
        self.made = getattr(self, 'made', 0) + 1
    def shuffle_fn(self, idxs): return idxs[::-1]
    docs = [ft.TensorText(torch.arange(10*i, 10*i+9)) for i in range(9)]
    for method,shuffle in ((create_item, False), (make_chunks, False), (shuffle_fn, True)):
        a,b = (derived(m.LMDataLoader, **{method.__name__: method})(docs, bs=3, seq_len=5, shuffle=shuffle)
               for m in (rf, ft))
        equal(list(a), list(b))
        assert method.__name__ in a.changed_steps()
        if method is make_chunks: assert a.made == b.made

def test_pieces_of_a_stream_equal_fastais():
    docs = [ft.TensorText(torch.arange(10*i, 10*i+9)) for i in range(9)]
    for bs,sl in ((3, 5), (1, 7), (5, 72)):
        a,b = (m.LMDataLoader(docs, bs=bs, seq_len=sl) for m in (rf, ft))
        for name in ('bl', 'n', 'n_batches', 'last_len', 'seq_len', 'bs'): assert getattr(a, name) == getattr(b, name)
        assert list(a.lens) == list(b.lens)
        assert a.get_idxs() == b.get_idxs()
        equal([a.create_item(i) for i in range(a.n)], [b.create_item(i) for i in range(b.n)])
        with pytest.raises(IndexError): a.create_item(a.n)
        assert a.chunks[3:20].tolist() == b.chunks[3:20].tolist()
        a.shuffle_fn([]); a.docs = a.dataset.docs; a.make_chunks()
        assert a.chunks[3:20].tolist() == b.chunks[3:20].tolist()

def test_pieces_follow_a_stream_that_is_cut_otherwise():
    dl = rf.LMDataLoader([torch.arange(23)], bs=2, seq_len=5)
    dl.cut([2, 7, 2])
    whole = list(dl)
    dl.retain = STEPS['retain']   # from here on, fastai's loop
    assert [x.size(1) for x,_ in whole] == [2, 7, 2] and dl.changed_steps() == ['retain']
    equal(whole, list(dl))

@pytest.mark.parametrize('name', ['do_item', 'chunkify', 'do_batch', 'create_batch', 'sample', 'create_batches'])
@pytest.mark.parametrize('kind', OURS)
def test_every_step_is_watched(kind, name):
    "A subclass that overrides any method of fastai's loop is noticed."
    dl = OURS[kind]().valid
    assert not dl.changed_steps()
    cls = type('Derived', (type(dl),), {name: lambda self, *a: getattr(super(cls, self), name)(*a)})
    other = dl.new(cls=cls)
    assert other.changed_steps() == [name]
    equal(list(dl), list(other))

@pytest.mark.parametrize('kind', OURS)
def test_an_order_of_the_user(kind):
    "Items in the order of `get_idxs`, an iterator here."
    dl = OURS[kind]().valid
    idxs = dl.get_idxs()[-4:] + dl.get_idxs()[:4]
    got = [row for b in dl.new(get_idxs=lambda: iter(idxs)) for row in b[0].tolist()]
    want = [dl.create_item(i)[0].tolist() for i in idxs]
    assert [r[:len(w)] for r,w in zip(got, want, strict=True)] == want

def test_a_shuffle_of_the_user():
    dl = clas().train.new(shuffle_fn=lambda idxs: idxs)
    assert dl.get_idxs() == list(range(len(dl.dataset)))
    few = dl.new(shuffle=False, drop_last=False, n=5)
    assert few.get_idxs() == sorted(range(5), key=lambda i: -len(dl.dataset[i][0]))
    assert sum(len(x) for x,_ in few) == 5

@pytest.mark.parametrize('kind', ['lm', 'clas'])
def test_show_batch_of_one_row(kind):
    dl = dict(lm=lm, clas=clas)[kind]().train
    dl.show_batch(unique=True, max_n=2)   # an endless order
    assert not dl.changed_steps()

def test_sizes_and_options_of_torch():
    for m in (rf, ft): assert clas(m).valid.new(batch_size=3).one_batch()[0].shape[0] == 3
    assert rf.LMDataLoader(lm().train_ds, batch_size=3, seq_len=5).one_batch()[0].shape == (3, 5)
    for make in (lm, clas):
        dl = make().valid
        equal(list(dl), list(dl.new(num_workers=2, timeout=5, pin_memory=False, persistent_workers=True)))
    for m in (rf, ft):
        assert len(clas(m, shuffle=False, val_bs=3, num_workers=0).train) == 8
    assert len(clas(drop_last=False).train) == 8 and len(clas().train) == 7
    assert clas(val_shuffle=True).valid.shuffle and not clas().valid.shuffle

@pytest.mark.parametrize('make', [lm, clas])
def test_what_cannot_be_done_is_refused(make):
    dl = make().train
    with pytest.raises(ValueError, match='indexed=False'): type(dl)(dl.dataset, indexed=False)
    with pytest.raises(TypeError, match="'seqlen'.*'seq_len'|'seqlen'"): type(dl)(dl.dataset, seqlen=3)
    with pytest.raises(TypeError, match="'sampler'"): type(dl)(dl.dataset, sampler=[1])
    with pytest.raises(TypeError, match="'shuffle_train'.*'shuffle'"): make(shuffle_train=False)
    with pytest.raises(ValueError, match='batch_size|bs'): type(dl)(dl.dataset, batch_size=0)

def test_letters_refuse_the_loop_of_items():
    dls = tags(chars=True)
    dls.add_tfms([ft.Transform(lambda o: o)], 'after_item')
    with pytest.raises(TypeError, match='chars=True.*after_item.*after_batch'): dls.one_batch()

@pytest.mark.parametrize('event', ['before_iter', 'after_iter'])
@pytest.mark.parametrize('kind', KINDS)
def test_events_of_an_epoch(kind, event):
    dl,seen = KINDS[kind]().train,[]
    setattr(dl, event, lambda: seen.append(event))
    if kind != 'pairs': list(dl.new(after_item=same, **{event: getattr(dl, event)}))
    list(dl)
    assert set(seen) == {event}

def test_a_data_block_cuts_whole_batches():
    "Each `DataBlock` adds `ToTensor`, which leaves texts alone."
    block = ft.DataBlock(rf.TextBlock.from_df('text', is_lm=True), get_x=ft.ColReader('text'))
    dls = block.dataloaders(make_frame(), bs=4, seq_len=5)
    assert [type(f) for f in dls.after_item.fs] == [ft.ToTensor] and not dls.train.changed_steps()

# ---- attributes

ATTRS = {'numericalize': lambda d: d.numericalize(['xxbos', 'one', 'nine']).tolist(),
         'numericalize.vocab': lambda d: list(d.numericalize.vocab),
         'splits': lambda d: [list(s) for s in d.splits],
         'split_idx': lambda d: d.split_idx, 'n_inp': lambda d: d.n_inp, 'len(items)': lambda d: len(d.items)}
CLAS_ATTRS = {**ATTRS, 'categorize': lambda d: [int(d.categorize(o)) for o in ('pos', 'neg')],
              'categorize.vocab': lambda d: list(d.categorize.vocab), 'c': lambda d: d.c,
              'decoded': lambda d: d.categorize.decode(ft.TensorCategory(1)),
              'vocab': lambda d: [list(v) for v in d.vocab]}
@pytest.mark.parametrize('name', CLAS_ATTRS)
@pytest.mark.parametrize('kind', ['lm', 'clas'])
def test_attributes_equal_fastais(kind, name):
    if kind == 'lm' and name not in ATTRS: return
    get = CLAS_ATTRS[name]
    ours,theirs = (dict(lm=lm, clas=clas)[kind](m) for m in (rf, ft))
    for of in (lambda d: d, lambda d: d.train_ds, lambda d: d.valid_ds): assert get(of(ours)) == get(of(theirs))

def test_transforms_of_other_labels_equal_fastais():
    df = make_frame().assign(label=[f'a;{t[:2]}' for t in make_frame().text])
    for args in (dict(label_delim=';', y_block=ft.MultiCategoryBlock), dict(label_delim=';')):
        a = rf.TextDataLoaders.from_df(df, label_col='label', **{**ARGS, **args})
        b = ft.TextDataLoaders.from_df(df, label_col='label', **{**ARGS, 'y_block': ft.MultiCategoryBlock, **args})
        assert list(a.multi_categorize.vocab) == list(b.multi_categorize.vocab) and a.one_hot_encode.c == b.one_hot_encode.c

@pytest.mark.parametrize('kind', OURS)
def test_lists_of_items(kind):
    ds = OURS[kind]().train_ds
    n,mask = len(ds),np.arange(len(ds)) % 2 == 0
    for items,at in ((ft.L(ds), range(n)), (list(ds), range(n)), (ds[:], range(n)), (ds[[0, 1]], [0, 1]),
                     (ds[np.array([2, 1])], [2, 1]), (ds[mask], range(0, n, 2)), (ds[mask.tolist()], range(0, n, 2)),
                     (ds[-2:], [n-2, n-1]), (ds[torch.tensor([3])], [3]), (ds[ft.L(0, 4)], [0, 4])):
        assert len(items) == len(at)
        for o,i in zip(items, at, strict=True): assert [t.tolist() for t in o] == [t.tolist() for t in ds[i]]
    assert [t.tolist() for t in ds[-1]] == [t.tolist() for t in ds[np.int64(n-1)]]
    with pytest.raises(IndexError): ds[n]

def test_missing_attributes_are_missing():
    for name in ('tls', 'subset', 'categorise'):
        for ds in (lm().train_ds, clas().train_ds):
            with pytest.raises(AttributeError, match=name): getattr(ds, name)
    assert not hasattr(lm().train_ds, 'categorize')
    ds = clas().train_ds
    assert pickle.loads(pickle.dumps(ds)).categorize('pos') == copy.deepcopy(ds).categorize('pos') == ds.categorize('pos')

# ---- an empty validation set

def make_folder(path, parts=('train/a', 'train/b')):
    for k,part in enumerate(parts):
        (path/part).mkdir(parents=True)
        for i in range(12): (path/part/f'{i}.txt').write_text(' '.join(WORDS[(i+j+k) % 8] for j in range(4 + i % 3)))

@pytest.mark.parametrize('is_lm', [True, False])
def test_a_folder_without_validation(tmp_path, is_lm):
    make_folder(tmp_path)
    args = dict(is_lm=is_lm, bs=4, seq_len=5, device='cpu')
    with pytest.warns(UserWarning, match=r'validation set is empty.*valid=.*valid_pct='):
        ours = rf.TextDataLoaders.from_folder(tmp_path, **args)
    theirs = ft.TextDataLoaders.from_folder(tmp_path, **args)
    assert (len(ours.train_ds), len(ours.valid_ds), len(ours.valid)) == (24, 0, 0)
    assert (len(theirs.train_ds), len(theirs.valid_ds), len(theirs.valid)) == (24, 0, 0)
    make = rf.language_model_learner if is_lm else rf.text_classifier_learner
    learn = make(ours, rf.AWD_LSTM, pretrained=False, path=tmp_path, config=dict(emb_sz=6, n_hid=5, n_layers=2))
    with learn.no_bar(), learn.no_logging():
        learn.fit(2)
        assert [v[1] for v in learn.recorder.values] == [None, None]
    with pytest.raises(ValueError, match='learn.dls has no batch to validate on'): learn.validate()   # fastai: None

def test_no_warning_where_nothing_is_amiss(tmp_path):
    make_folder(tmp_path, ('train/a', 'train/b', 'valid/a'))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        rf.TextDataLoaders.from_folder(tmp_path, bs=4, device='cpu')
        rf.TextDataLoaders.from_folder(tmp_path, valid_pct=0.2, bs=4, device='cpu')
        assert len(lm(valid_pct=0).valid) == len(clas(valid_pct=0).valid) == 0

# ---- FetchPredsCallback

def small(kind):
    how = dict(pretrained=False, config=dict(emb_sz=6, n_hid=5, n_layers=2))
    if kind == 'lm': return rf.language_model_learner(lm(), rf.AWD_LSTM, **how)
    if kind == 'clas': return rf.text_classifier_learner(clas(), rf.AWD_LSTM, **how)
    return rf.rnn_learner(pairs(), 'GRU')

@pytest.mark.parametrize('kind', ['lm', 'clas', 'pairs'])
def test_predictions_can_be_fetched_while_training(kind):
    learn = small(kind)
    cb = ft.FetchPredsCallback()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0., cbs=cb)
        want = learn.get_preds()
    for a,b in zip(cb.preds[:2], want[:2], strict=True): assert_close(a, b)

# ---- The walk from a column to a batch, and what a loader is for

@pytest.mark.parametrize('make', [lm, clas], ids=['lm', 'clas'])
def test_a_column_is_checked_once(make, tmp_path, monkeypatch):
    "A tokenizer learns from it, a key is made of it, a corpus is built from it; all trust the door."
    from rnn_fastai.data import texts
    seen,check = [],texts.check_texts
    monkeypatch.setattr(texts, 'check_texts', lambda col: seen.append(col.name) or check(col))
    monkeypatch.setattr(texts, '_check_item', lambda i,t: pytest.fail(f'text {i} is looked at again'))
    make(cache=tmp_path, tok_tfm=rf.ByteLevelTokenizer(300))
    make(cache=tmp_path)
    assert seen == ['text']*2

@pytest.mark.parametrize('texts', [['one two'], ('one', 'two'), pd.Series(['one', 'two']), iter(['one', 'two'])],
                         ids=['list', 'tuple', 'column', 'iterator'])
def test_held_texts_are_read_again_and_not_checked_again(texts):
    held = hold_texts(texts)
    assert list(held) == list(held) and len(held) and rf.texts_of(held) is held

@pytest.mark.parametrize('kind,labels', [(lm, None), (clas, ['neg', 'pos']), (tags, ['O', 'X'])],
                         ids=['next', 'many-to-one', 'many-to-many'])
def test_every_loader_says_what_it_is_for(kind, labels, request):
    dls = kind()
    for dl in dls.loaders:
        task = dl.task
        assert task.kind == request.node.callspec.id and task.vocab == dl.dataset.corpus.vocab
        assert list(task.y_vocab) == list(task.vocab if labels is None else labels)
    assert dls.task == dls.train.task
