"The language model's data against fastai's, batch for batch, over a grid of sizes; and each argument matters."
import os
import random
from functools import cache
from pathlib import Path

import fastai.text.core
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.text import all as ft
from torch.testing import assert_close

from rnn_fastai import all as rf
from rnn_fastai.data.lm import TokenStream

SHARED = Path(os.environ.get('RNN_FASTAI_DATA', Path(__file__).resolve().parents[2]/'shared'/'data'))
LENS = dict(plain=[5, 12, 3, 30, 8, 21], empty=[0, 5, 0, 0, 9, 1, 17, 0], ones=[1]*45, single=[80],
            many=np.random.default_rng(3).integers(0, 9, 60).tolist())
WORDS = 'One two THREE four five six seven, eight. nine ten'.split()

@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    "fastai tokenizes in this process: same tokens, no time for workers to start."
    monkeypatch.setattr(fastai.text.core, 'parallelable', lambda *a, **k: False)

def make_docs(lens, seed=0):
    "Documents of random ids from 2 to 400."
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 400, n) for n in lens]

def tagged_docs(lens):
    "Documents whose ids tell where they are: the 1000 times document plus position."
    return [1000*(i+1) + np.arange(n) for i,n in enumerate(lens)]

def tensors(docs): return [ft.TensorText(torch.tensor(d, dtype=torch.long)) for d in docs]
def lm_data(docs, **kwargs): return rf.LMDataset(rf.Corpus.from_ids(docs), **kwargs)

def same(ours, theirs):
    "Two loaders give the same batches: values, shapes, dtypes and classes."
    a,b = list(ours),list(theirs)
    assert len(a) == len(b) == len(ours) == len(theirs) > 0
    for xy,uv in zip(a, b, strict=True):
        assert [type(o).__name__ for o in xy] == [type(o).__name__ for o in uv]
        for o,p in zip(xy, uv, strict=True): assert_close(torch.Tensor(o), torch.Tensor(p), rtol=0, atol=0)

def same_dls(ours, theirs):
    assert list(ours.vocab) == list(theirs.vocab)
    same(ours.train, theirs.train)
    same(ours.valid, theirs.valid)

def stream_of(dl):
    "The stream that an epoch read, from its batches: rows end to end, then the last target."
    batches = list(dl)
    return torch.cat([x for x,_ in batches], 1).flatten().tolist() + [int(batches[-1][1][-1, -1])]

# ---- LMDataLoader

@pytest.mark.parametrize('seq_len', [1, 4, 5, 72])
@pytest.mark.parametrize('bs', [1, 2, 3, 7])
@pytest.mark.parametrize('name', LENS)
def test_batches_equal_fastai(name, bs, seq_len):
    docs = make_docs(LENS[name])
    ours = rf.LMDataLoader(lm_data(docs), bs=bs, seq_len=seq_len)
    same(ours, ft.LMDataLoader(tensors(docs), bs=bs, seq_len=seq_len))
    same(rf.LMDataLoader(tensors(docs), bs=bs, seq_len=seq_len), ours)

@pytest.mark.parametrize('bs,seq_len', [(1, 5), (3, 4), (7, 72)])
def test_backwards_equals_fastai_on_reversed_documents(bs, seq_len):
    docs = make_docs(LENS['many'])
    ours = rf.LMDataLoader(lm_data(docs, backwards=True), bs=bs, seq_len=seq_len)
    same(ours, ft.LMDataLoader(tensors([d[::-1].copy() for d in docs]), bs=bs, seq_len=seq_len))

@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int64])
def test_memmap(tmp_path, dtype):
    docs = [d % 256 for d in make_docs(LENS['many'])]
    flat = np.concatenate(docs).astype(dtype)
    flat.tofile(tmp_path/'ids.bin')
    ids = np.memmap(tmp_path/'ids.bin', dtype=dtype, mode='r')
    corpus = rf.Corpus(ids, np.cumsum([0, *map(len, docs)]), rf.Vocab())
    same(rf.LMDataLoader(rf.LMDataset(corpus), bs=3, seq_len=5),
         ft.LMDataLoader(tensors(docs), bs=3, seq_len=5))
    assert corpus.ids is ids   # no copy was made

@pytest.mark.parametrize('block', [1, 13, 64, 10**6])
def test_block_size_does_not_matter(monkeypatch, block):
    data = lm_data(make_docs(LENS['many']))
    want = list(rf.LMDataLoader(data, bs=4, seq_len=6))
    monkeypatch.setattr(rf.LMDataLoader, '_block', block)
    same(rf.LMDataLoader(data, bs=4, seq_len=6), want)

@pytest.mark.parametrize('backwards', [False, True])
@pytest.mark.parametrize('bs', [1, 5])
def test_shuffled_epochs_hold_whole_documents(bs, backwards):
    lens = [0, 7, 1, 13, 5, 0, 4, 10, 9, 1, 11]   # 61 tokens: 60 inputs fill 5 rows
    step = -1 if backwards else 1
    docs = {d[::step][0]: d[::step].tolist() for d in tagged_docs(lens) if len(d)}
    dl = rf.LMDataLoader(lm_data(tagged_docs(lens), backwards=backwards), bs=bs, seq_len=6, shuffle=True)
    orders = set()
    for _ in range(5):
        left,order = stream_of(dl),[]
        while left:
            doc = docs[left[0]]
            assert left[:len(doc)] == doc
            order.append(doc[0])
            left = left[len(doc):]
        assert sorted(order) == sorted(docs)   # every document, once
        orders.add(tuple(order))
    assert len(orders) == 5

def test_seed_repeats_epochs():
    def epochs(seed):
        ft.set_seed(seed)
        dl = rf.LMDataLoader(lm_data(tagged_docs(LENS['plain'])), bs=2, seq_len=6, shuffle=True)
        return [stream_of(dl) for _ in range(3)]
    assert epochs(1) == epochs(1) != epochs(2)
    assert len({tuple(e) for e in epochs(1)}) == 3

def test_unshuffled_epochs_are_equal_and_leave_random_streams():
    dl = rf.LMDataLoader(lm_data(make_docs(LENS['plain'])), bs=2, seq_len=6)
    before = torch.get_rng_state(),np.random.get_state()[1].tolist(),random.getstate()
    same(dl, list(dl))
    assert_close(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]

@pytest.mark.parametrize('args', [dict(bs=2), dict(seq_len=3), dict(bs=5, seq_len=11), {}])
def test_new(args):
    docs = make_docs(LENS['plain'])
    ours,theirs = (dl.new(**args) for dl in (rf.LMDataLoader(lm_data(docs), bs=4, seq_len=7),
                                             ft.LMDataLoader(tensors(docs), bs=4, seq_len=7)))
    same(ours, theirs)

@pytest.mark.parametrize('n,bs', [(0, 1), (1, 1), (4, 4), (3, 7)])
def test_too_short_for_a_batch(n, bs):
    dl = rf.LMDataLoader(lm_data([np.arange(n)]), bs=bs, seq_len=5)
    assert len(dl) == 0
    with pytest.raises(ValueError, match=f'too short for one batch: {n} tokens.*at least {bs+1}'): next(iter(dl))
    same(rf.LMDataLoader(lm_data([np.arange(bs+1)]), bs=bs, seq_len=5),   # one token more than rows is enough
         ft.LMDataLoader(tensors([np.arange(bs+1)]), bs=bs, seq_len=5))

@pytest.mark.parametrize('arg', ['bs', 'seq_len'])
@pytest.mark.parametrize('value', [0, -1, 2.5, None, True])
def test_bad_sizes(arg, value):
    with pytest.raises(ValueError, match=f'{arg}={value}'): rf.LMDataLoader(lm_data([[1, 2, 3]]), **{arg: value})

# ---- TokenStream

@pytest.mark.parametrize('backwards', [False, True])
def test_stream_reads_as_naive_concatenation(backwards):
    rng = np.random.default_rng(11)
    for trial in range(150):
        docs = make_docs(rng.integers(0, rng.integers(1, 12)+1, rng.integers(1, 20)), trial)
        which = rng.permutation(len(docs))[:rng.integers(1, len(docs)+1)]
        naive = np.concatenate([docs[i][::-1] if backwards else docs[i] for i in which])
        stream = TokenStream(rf.Corpus.from_ids(docs), which, backwards)
        assert len(stream) == len(naive)
        if len(naive) == 0: continue
        n = int(rng.integers(1, len(naive)+1))
        at = rng.integers(0, len(naive)-n+1, rng.integers(1, 7))
        got = stream.read(at, n)
        assert got.dtype == np.int64
        np.testing.assert_array_equal(got, np.stack([naive[a:a+n] for a in at]))

@pytest.mark.parametrize('offsets', [[0, 2], [1, 3], [], [0, 4]])
def test_corpus_offsets_must_cover_the_ids(offsets):
    with pytest.raises(ValueError, match='offsets'): rf.Corpus(np.arange(3), np.array(offsets), rf.Vocab())

# ---- TextDataLoaders

def make_texts(n, seed=0):
    rng = np.random.default_rng(seed)
    return [' '.join(rng.choice(WORDS, rng.integers(3, 20))) for _ in range(n)]

def make_frame(n=36):
    held = np.random.default_rng(5).random(n) < 0.3
    df = pd.DataFrame({'text': make_texts(n, 1), 'body': make_texts(n, 2), 'label': 0, 'held': held})
    return df.iloc[::-1]   # an index that is not the row's number

BASE = dict(is_lm=True, bs=4, seq_len=7, text_col='text', seed=1, shuffle=False, device='cpu')
VOCAB = ['xxunk', 'xxpad', 'xxbos', 'ten', 'two', 'xxup', 'nine', 'xxfake']
DF_ARGS = [dict(valid_pct=0.4), dict(seed=2), dict(text_col='body'), dict(text_col=1), dict(text_col=-3),
           dict(text_col=['text', 'body']), dict(text_col=[1, 0]), dict(text_col=['body']), dict(valid_col='held'),
           dict(valid_col=3), dict(text_vocab=VOCAB), dict(tok_tfm=ft.BaseTokenizer()), dict(seq_len=3),
           dict(backwards=True), dict(bs=3), dict(val_bs=2), dict(val_bs=1, bs=5, seq_len=72, backwards=True)]
def names(args): return ','.join(f'{k}={v}' if not hasattr(v, 'split_char') else k for k,v in args.items())

def content(dls):
    "All that a pair of loaders gives, as plain Python."
    return list(dls.vocab),[[(x.tolist(), y.tolist()) for x,y in dl] for dl in (dls.train, dls.valid)]

@cache
def plain(): return content(rf.TextDataLoaders.from_df(make_frame(), **BASE))

@pytest.mark.parametrize('args', [{}, *DF_ARGS], ids=names)
def test_from_df_equals_fastai_and_each_argument_matters(args):
    df = make_frame()
    ours,theirs = (m.TextDataLoaders.from_df(df, **{**BASE, **args}) for m in (rf, ft))
    same_dls(ours, theirs)
    assert (content(ours) != plain()) == bool(args)

@pytest.mark.parametrize('args', [dict(shuffle=True), dict(val_shuffle=True), dict(min_freq=60), dict(max_vocab=12)],
                         ids=names)
def test_argument_of_ours_matters(args):
    assert content(rf.TextDataLoaders.from_df(make_frame(), **{**BASE, **args})) != plain()

def test_device_and_path(tmp_path):
    dls = rf.TextDataLoaders.from_df(make_frame(), **{**BASE, 'device': 'meta', 'path': tmp_path})
    assert {o.device.type for dl in dls for o in dl.one_batch()} == {'meta'} == {dls.device.type}
    assert dls.path == tmp_path

def test_split_without_a_seed_follows_the_global_stream():
    def content_of(m, seed):
        ft.set_seed(seed)
        return content(m.TextDataLoaders.from_df(make_frame(), **{**BASE, 'seed': None}))
    assert content_of(rf, 3) == content_of(ft, 3) != content_of(rf, 4)

def test_shuffle_leaves_validation_in_order():
    dls = rf.TextDataLoaders.from_df(make_frame(), **{**BASE, 'shuffle': True})
    same(dls.valid, list(dls.valid))
    assert content(dls) != content(dls)
    same(dls.valid, ft.TextDataLoaders.from_df(make_frame(), **BASE).valid)

@pytest.mark.parametrize('args', [dict(min_freq=60), dict(max_vocab=12), dict(backwards=True), dict(seq_len=3)],
                         ids=names)
def test_data_block_equals_fastai(args):
    def loaders(m):
        block = m.DataBlock(blocks=m.TextBlock.from_df('body', is_lm=True, **args), get_x=m.ColReader('text'),
                            splitter=m.RandomSplitter(0.3, seed=4))
        return block.dataloaders(make_frame(), bs=3, shuffle=False)
    ours = loaders(rf)
    same_dls(ours, loaders(ft))
    assert type(ours.train) is rf.LMDataLoader

@pytest.mark.parametrize('args,write', [
    (dict(csv_fname='a.csv', text_col='body'), dict(index=False)),
    (dict(text_col='text', valid_col='held'), dict(index=False)),
    (dict(header=None, text_col=1), dict(index=False, header=False)),
    (dict(delimiter=';', text_col='text'), dict(index=False, sep=';')),
    (dict(quoting=3, delimiter='\t', text_col=0), dict(index=False, sep='\t', quoting=3))])
def test_from_csv_equals_fastai(tmp_path, args, write):
    make_frame().to_csv(tmp_path/args.get('csv_fname', 'labels.csv'), **write)
    same_dls(*(m.TextDataLoaders.from_csv(tmp_path, **{**BASE, **args}) for m in (rf, ft)))

def make_folder(path, parts=('train/a', 'train/b', 'valid/a')):
    for k,part in enumerate(parts):
        (path/part).mkdir(parents=True)
        for i,t in enumerate(make_texts(9, k)): (path/part/f'{i}.txt').write_text(f'{t} {part}\nÜber', encoding='utf8')
    (path/parts[0]/'not_a_text.md').write_text('other', encoding='utf8')

def by_name(files): return [[i for i,f in enumerate(files) if (f.stem > '3') == train] for train in (True, False)]
FOLDER_ARGS = [dict(valid_pct=0.3), dict(valid_pct=0.3, seed=7), dict(train='valid', valid='train'),
               dict(backwards=True), dict(text_vocab=VOCAB), dict(tok_tfm=ft.BaseTokenizer()), dict(seq_len=3),
               dict(bs=2), dict(val_bs=2), dict(splitter=by_name)]
def folder_base(): return {k: v for k,v in BASE.items() if k != 'text_col'}

@pytest.mark.parametrize('args', [{}, *FOLDER_ARGS], ids=lambda a: ','.join(a))
def test_from_folder_equals_fastai(tmp_path, args):
    make_folder(tmp_path/'texts')
    ours,theirs = (m.TextDataLoaders.from_folder(tmp_path/'texts', **{**folder_base(), **args}) for m in (rf, ft))
    same_dls(ours, theirs)
    if args: assert content(ours) != content(rf.TextDataLoaders.from_folder(str(tmp_path/'texts'), **folder_base()))

def test_from_folder_counts_words_of_other_folders_too(tmp_path):
    make_folder(tmp_path/'texts', ('train/a', 'valid/a', 'unsup'))
    same_dls(*(m.TextDataLoaders.from_folder(tmp_path/'texts', **folder_base()) for m in (rf, ft)))

@pytest.mark.parametrize('special', [['xxunk', 'xxpad', 'xxbos', 'two'], ft.defaults.text_spec_tok + ['two'], ['two']])
def test_special_tokens_of_the_tokenizer_equal_fastai(special):
    same_dls(*(m.TextDataLoaders.from_df(make_frame(), tok_tfm=m.WordTokenizer(special_toks=special), **BASE)
               for m in (rf, ft)))

@pytest.mark.parametrize('args', [dict(drop_last=True), dict(num_workers=2), dict(label_col=2), dict(verbose=False)],
                         ids=names)
def test_fastai_loader_arguments_are_taken(args):
    ours,theirs = (m.TextDataLoaders.from_df(make_frame(), **{**BASE, **args}) for m in (rf, ft))
    assert ours.train.shuffle == theirs.train.shuffle
    same_dls(ours, theirs)

def test_misspelt_argument_is_refused():
    with pytest.raises(TypeError, match="'seqlen'.*'seq_len'"):
        rf.TextDataLoaders.from_df(make_frame(), seqlen=5, **BASE)

def test_number_of_a_column_is_its_place():
    df = make_frame()[['text', 'body']].set_axis([1, 0], axis=1)
    same_dls(*(m.TextDataLoaders.from_df(df, **{**BASE, 'text_col': 0}) for m in (rf, ft)))

def test_other_texts_equal_fastai():
    texts = ['one two three', 'Ten unknown TEN', 'nine']
    ours,theirs = (m.TextDataLoaders.from_df(make_frame(), **BASE).test_dl(texts, bs=2) for m in (rf, ft))
    for a,b in zip(ours.items, theirs.items, strict=True): assert_close(torch.Tensor(a), torch.Tensor(b))
    same(ours, theirs)

def broken(col, value):
    df = make_frame().astype(object)
    df.iloc[3, df.columns.get_loc(col)] = value
    return df

@pytest.mark.parametrize('df,args,err,words', [
    (make_frame(), dict(text_col='txt'), ValueError, ["'txt'", "'text'", "'body'"]),
    (make_frame(), dict(text_col=9), ValueError, ['9', "'text'"]),
    (make_frame(), dict(text_col=['text', 'bdy']), ValueError, ["'bdy'", "'body'"]),
    (make_frame(), dict(valid_col='is_valid'), ValueError, ["'is_valid'", "'held'"]),
    (broken('text', None), {}, ValueError, ["'text'", 'row 32']),
    (broken('text', float('nan')), {}, ValueError, ["'text'", 'row 32']),
    (broken('text', 5), {}, TypeError, ["'text'", 'row 32', '5']),
    (make_frame().iloc[:0], {}, ValueError, ['no rows']),
    (make_frame(), dict(bs=10**4), ValueError, ['training texts', 'too short', 'bs=10000']),
    (make_frame(), dict(val_bs=10**4), ValueError, ['validation texts', 'too short']),
    (make_frame(), dict(bs=0), ValueError, ['bs=0']), (make_frame(), dict(val_bs=0), ValueError, ['val_bs=0']),
    (make_frame(), dict(seq_len=0), ValueError, ['seq_len=0'])])
def test_bad_frames(df, args, err, words):
    with pytest.raises(err) as e: rf.TextDataLoaders.from_df(df, **{**BASE, **args})
    assert all(w in str(e.value) for w in words), str(e.value)

@pytest.mark.parametrize('n_rows', [120, pytest.param(None, marks=pytest.mark.slow)])
def test_imdb_sample_equals_fastai(n_rows):
    file = SHARED/'imdb_sample'/'texts.csv.xz'
    if not file.exists(): pytest.skip(f'{file} is not here; point RNN_FASTAI_DATA to the folder of data sets')
    df = pd.read_csv(file, nrows=n_rows)
    args = {**BASE, 'bs': 16, 'seq_len': 72}
    same_dls(*(m.TextDataLoaders.from_df(df, **args) for m in (rf, ft)))


def test_show_batch_is_a_table(monkeypatch):
    "Rows of the batch beside the same one token later, under the names that fastai gives them."
    df = pd.DataFrame({'text': ['one two three four five six seven']*20})
    dls = rf.TextDataLoaders.from_df(df, text_col='text', is_lm=True, bs=4, seq_len=3, seed=1)
    b,shown = dls.train.one_batch(),[]
    monkeypatch.setattr('rnn_fastai.data.lm.show_frame', shown.append)
    dls.train.show_batch(b, max_n=2)
    def texts(ids): return [' '.join(dls.vocab[i] for i in row) for row in ids[:2]]
    assert shown[0].to_dict('list') == {'text': texts(b[0]), 'text_': texts(b[1])}
