"Batches that are cut on a device, or go there from pinned memory: those of the CPU, to the bit."
import copy
import gc
import pickle
import random

import numpy as np
import pytest
import torch
from bundles import sents, texts
from fastai.text import all as ft
from torch.testing import assert_close

from rnn_fastai import all as rf
from rnn_fastai import devices
from rnn_fastai.data import device as device_module
from rnn_fastai.data.arrays import ShardedArray
from rnn_fastai.data.device import fits, resident_ids, send
from rnn_fastai.data.lm import DeviceStream, TokenStream

RNG = np.random.default_rng(0)
DOCS = [RNG.integers(0, 300, n) for n in [0, 1, *RNG.integers(0, 40, 60), 0]]

@pytest.fixture
def room(monkeypatch):
    "The CPU stands for a GPU with room for all ids; gives how often a corpus was asked about."
    asked = []
    device_module._there.clear()
    monkeypatch.setattr(device_module, 'fits', lambda n_bytes, device: asked.append(n_bytes) or True)
    return asked

@pytest.fixture
def gpu(monkeypatch):
    "A GPU that is not there: tensors that go to it by way of pinned memory are noted, and stay."
    sent,to = [],torch.Tensor.to
    class Pinned(torch.Tensor): pass
    def move(t, *args, **kwargs):
        if 'cuda' not in str(args[:1]): return to(t, *args, **kwargs)
        sent.append((type(t).__name__, kwargs.get('non_blocking')))
        return t.as_subclass(torch.Tensor)
    monkeypatch.setattr(device_module, '_is_gpu', lambda device: 'cuda' in str(device))
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (0, 2**30))
    monkeypatch.setattr(devices, '_count', lambda kind: 1)
    monkeypatch.setattr(torch.Tensor, 'pin_memory', lambda t, *args: t.as_subclass(Pinned))
    monkeypatch.setattr(torch.Tensor, 'to', move)
    return sent

def corpus(docs=None): return rf.Corpus.from_ids(DOCS if docs is None else docs)
def epochs(dl, n=2, start=0, seed=3):
    random.seed(seed)
    return [b for _ in range(n) for b in dl.iter_from(start)]

def same(a, b):
    assert len(a) == len(b) > 0
    for xs,ys in zip(a, b, strict=True):
        for x,y in zip(xs, ys, strict=True):
            assert type(x) is type(y) and x.stride() == y.stride()
            assert_close(x.data, y.data, rtol=0, atol=0)

# ---- Ids that live there

@pytest.mark.parametrize('backwards', [False, True])
def test_a_stream_on_a_device_is_the_stream(backwards):
    for trial in range(50):
        rng = np.random.default_rng(trial)
        docs = corpus()
        stream = TokenStream(docs, rng.integers(0, len(docs), rng.integers(1, 30)), backwards)   # some twice
        if not len(stream): continue
        n = int(rng.integers(1, len(stream)+1))
        at = rng.integers(0, len(stream)-n+1, 5)
        got = DeviceStream(stream, torch.from_numpy(docs.ids.astype(np.int32))).read(at, n)
        assert_close(got, torch.from_numpy(stream.read(at, n)), rtol=0, atol=0)

@pytest.mark.parametrize('how', [{}, dict(shuffle=True), dict(backwards=True, shuffle=True), dict(start=2),
                                 dict(widths=True), dict(ranks=True)], ids=str)
def test_batches_are_the_cpus(how, room, monkeypatch):
    data = rf.LMDataset(corpus(), np.arange(len(DOCS))[::2], backwards=how.get('backwards', False))
    def batches():
        dl = rf.LMDataLoader(data, bs=3, seq_len=7, shuffle=how.get('shuffle', False), device='cpu')
        if 'widths' in how: dl.cut([1]*(dl.bl-5) + [5])
        if 'ranks' not in how: return epochs(dl, start=how.get('start', 0))
        with dl.shared(1, 2): return epochs(dl)
    there = batches()
    assert len(room) == 1   # the ids went there once
    monkeypatch.setattr(device_module, 'fits', lambda *args: False)
    device_module._there.clear()
    same(there, batches())

def test_blocks_do_not_show(room):
    dls = [rf.LMDataLoader(corpus(), bs=3, seq_len=7, device='cpu') for _ in range(2)]
    dls[1]._block_there = 1
    same(*map(epochs, dls))

def test_training_and_validation_share_the_ids_which_go_with_the_corpus(room):
    docs = corpus()
    for half in (slice(0, None, 2), slice(1, None, 2)):
        epochs(rf.LMDataLoader(rf.LMDataset(docs, np.arange(len(docs))[half]), bs=3, device='cpu'))
    assert room == [4*len(docs.ids)] and list(device_module._there.keys()) == [docs]
    for other in (copy.deepcopy(docs), pickle.loads(pickle.dumps(docs))): np.testing.assert_array_equal(other.ids, docs.ids)
    del docs, other
    gc.collect()
    assert not device_module._there

def test_ids_in_files_and_of_many_words(room, tmp_path):
    ids = np.arange(90_000, dtype=np.uint32)
    for i,part in enumerate((ids[:7], ids[7:])): np.save(tmp_path/f'{i}.npy', part)
    sharded = rf.Corpus(ShardedArray([tmp_path/'0.npy', tmp_path/'1.npy']), np.array([0, len(ids)]), rf.Vocab())
    got = resident_ids(sharded, 'cpu')
    assert got.dtype == torch.int64 and got.tolist() == ids.tolist()
    assert resident_ids(corpus(), 'cpu').dtype == torch.int32

def test_a_copy_that_fails_leaves_nothing_half_done(room, monkeypatch):
    def full(*args): raise torch.OutOfMemoryError('CUDA out of memory')
    docs = corpus()
    with monkeypatch.context() as m, pytest.raises(torch.OutOfMemoryError):
        m.setattr(torch.Tensor, 'copy_', full)
        resident_ids(docs, 'cpu')
    assert resident_ids(docs, 'cpu').tolist() == docs.ids.tolist()

def test_ids_take_a_tenth_of_the_free_memory_at_most(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (1000, 10**9))
    assert [fits(n, 'cuda:0') for n in (100, 101)] == [True, False]
    assert not fits(1, 'cpu') and not fits(1, 'mps')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert not fits(1, 'cuda:0')

# ---- Copies

def test_without_room_a_block_goes_there_from_pinned_memory(gpu):
    dl = rf.LMDataLoader(corpus(), bs=3, seq_len=7, device='cuda:0')
    got = epochs(dl, 1)
    assert gpu == [('Pinned', True)] and len(got) > 5   # one copy for all of them
    same(got, epochs(dl.new(device='cpu'), 1))

def test_all_loaders_send_batches_from_pinned_memory(gpu):
    df = texts(30)
    df['label'] = ['yes', 'no']*15
    how = dict(bs=8, seed=0, min_freq=1, device='cuda:0')
    clas = rf.TextDataLoaders.from_df(df, text_col='text', label_col='label', tok_tfm=ft.BaseTokenizer(), **how)
    tags = rf.TagDataLoaders.from_df(sents(30), tok=str.lower, chars=True, **how)
    pairs = rf.SeqDataLoaders.from_pairs(['ab', 'bca', 'c'], ['x', 'y', 'x'], 'many-to-one', valid_pct=0, device='cuda:0')
    series = rf.SeqDataLoaders.from_series('abcabd'*9, seq_len=8, device='cuda:0')
    for dls,n in ((clas, 2), (tags, 4), (pairs, 2), (series, 2)):
        gpu.clear()
        b = next(iter(dls[1]))
        assert gpu == [('Pinned', True)]*n
        same([b], [next(iter(dls[1].new(device='cpu')))])
    assert next(iter(clas[1]))[0].lens.tolist() == next(iter(clas[1].new(device='cpu')))[0].lens.tolist()

def test_nothing_is_sent_without_a_device(gpu):
    b = (torch.arange(3),)
    assert send(b, None) is b and not gpu and send(b, 'cpu')[0].tolist() == [0, 1, 2]
