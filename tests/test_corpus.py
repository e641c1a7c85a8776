"Corpora: every source, fastai's vocabulary entry for entry, files on the disk in every state, and the cache."
import errno
import fcntl
import json
import mmap
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections import Counter
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from fastai.text import all as ft
from hypothesis import given, settings
from hypothesis import strategies as st

from rnn_fastai import all as rf
from rnn_fastai import progress as progress_module
from rnn_fastai.data import cache as cache_module
from rnn_fastai.data import corpus as corpus_module
from rnn_fastai.data import loaders as loaders_module
from rnn_fastai.data import texts as texts_module
from rnn_fastai.data.cache import corpus_key
from rnn_fastai.data.texts import frame_texts
from rnn_fastai.data.tokenize import as_tokenizer, chunks_of

WORDS = 'One two THREE four five six seven, eight. nine ten über don\'t 日本'.split()
SPECIAL = ft.defaults.text_spec_tok

def make_texts(n=30, seed=0):
    rng = np.random.default_rng(seed)
    return [' '.join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(n)]

def content(c): return [d.tolist() for d in c],list(c.vocab)
def same(a, b):
    "Two corpora hold the same, in the same types."
    assert content(a) == content(b)
    assert (a.ids.dtype, a.offsets.dtype) == (b.ids.dtype, b.offsets.dtype)

def build(texts, *args, **kwargs): return rf.Corpus.from_texts(texts, *args, no_bar=True, **kwargs)
def small_chunks(monkeypatch, size):
    for m in (corpus_module, cache_module): monkeypatch.setattr(m, 'chunks_of', partial(chunks_of, size=size))

# ---- Sources

def frame(texts): return pd.DataFrame({'n': range(len(texts)), 'a text': texts}).iloc[::-1].iloc[::-1]

def as_files(texts, path):
    "A tree of text files whose sorted paths are in the order of `texts`."
    files = [path/('test' if i % 2 else 'test/pos')/f'{i:03}.txt' for i in range(len(texts))]
    for f,t in zip(sorted(files), texts, strict=True):
        f.parent.mkdir(parents=True, exist_ok=True)
        f.write_text(t, encoding='utf8', newline='')
    return path

def as_csv(texts, path): frame(texts).to_csv(path, index=False); return path
def as_parquet(texts, path, **kwargs): frame(texts).to_parquet(path, **kwargs); return path

SOURCES = {
    'list': lambda t, p: (t,), 'tuple': lambda t, p: (tuple(t),), 'generator': lambda t, p: (iter(t),),
    'map': lambda t, p: (map(str, t),), 'array': lambda t, p: (np.array(t, dtype=object),),
    'L': lambda t, p: (ft.L(t),), 'dict values': lambda t, p: (dict(enumerate(t)).values(),),
    'series': lambda t, p: (pd.Series(t, index=range(9, 9+len(t))),),
    'frame by name': lambda t, p: (frame(t), 'a text'), 'frame by place': lambda t, p: (frame(t), 1),
    'frame by last place': lambda t, p: (frame(t), -1),
    'string dtype': lambda t, p: (frame(t).convert_dtypes(), 1),
    'category': lambda t, p: (frame(t).astype('category'), 1),
    'object dtype': lambda t, p: (frame(t).astype(object), 1),
    'csv': lambda t, p: (as_csv(t, p/'a.csv'), 1), 'csv as str': lambda t, p: (str(as_csv(t, p/'a.csv')), 'a text'),
    'csv.xz': lambda t, p: (as_csv(t, p/'a.csv.xz'), -1), 'csv.gz': lambda t, p: (as_csv(t, p/'a.csv.gz'), 'a text'),
    'parquet': lambda t, p: (as_parquet(t, p/'a.parquet'), 1),
    'parquet, several groups': lambda t, p: (as_parquet(t, p/'a.parquet', row_group_size=4), 'a text'),
    'folder': lambda t, p: (as_files(t, p/'tree'),), 'folder as str': lambda t, p: (str(as_files(t, p/'tree')),),
    'files': lambda t, p: (sorted(ft.get_text_files(as_files(t, p/'tree'))),)}

@pytest.mark.parametrize('rows', [3, 10**4])
@pytest.mark.parametrize('source', SOURCES)
def test_every_source_gives_the_same_corpus(tmp_path, monkeypatch, source, rows):
    monkeypatch.setattr(texts_module, '_ROWS', rows)
    texts = [*make_texts(), 'two\nlines, "quoted"', '  ']
    same(build(*SOURCES[source](texts, tmp_path)), build(texts))

def test_parquet_place_counts_columns_not_the_index(tmp_path):
    frame(make_texts()).iloc[::-1].to_parquet(tmp_path/'a.parquet')   # an index that is written too
    same(build(tmp_path/'a.parquet', -1), build(make_texts()[::-1]))

@pytest.mark.parametrize('cols', [['a', 'b'], ['b', 'a'], [1, 0], ['b']])
@pytest.mark.parametrize('suffix', ['csv', 'parquet'])
def test_several_columns_of_files_as_of_frames(tmp_path, monkeypatch, suffix, cols):
    monkeypatch.setattr(texts_module, '_ROWS', 7)
    df = pd.DataFrame({'a': make_texts(), 'n': 1, 'b': make_texts(seed=1)})[['a', 'b', 'n']]
    if suffix == 'csv': df.to_csv(tmp_path/'a.csv', index=False)
    else: df.to_parquet(tmp_path/'a.parquet')
    same(build(tmp_path/f'a.{suffix}', cols), build(df, cols))
    assert ('xxfld' in list(rf.TextTokenizer()(frame_texts(df, cols)))[0]) == (len(cols) > 1)

@pytest.mark.parametrize('rows', [2, 10**4])
def test_numbers_among_the_texts_of_a_csv_stay_texts(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(texts_module, '_ROWS', rows)   # a part may hold nothing but numbers
    texts = ['one two', 'three', '1984', '7', 'four']
    pd.DataFrame({'text': texts}).to_csv(tmp_path/'a.csv', index=False)
    same(build(tmp_path/'a.csv'), build(texts))

def test_row_of_a_bad_text_in_a_later_part(tmp_path, monkeypatch):
    monkeypatch.setattr(texts_module, '_ROWS', 5)
    df = pd.DataFrame({'text': make_texts(20)}).astype(object)
    df.iloc[13, 0] = None
    df.to_parquet(tmp_path/'a.parquet')
    with pytest.raises(ValueError, match="'text'.*row 13"): build(tmp_path/'a.parquet')

@pytest.mark.parametrize('suffix', ['csv', 'parquet'])
def test_file_without_rows(tmp_path, suffix):
    df = pd.DataFrame({'text': []}, dtype=str)
    if suffix == 'csv': df.to_csv(tmp_path/'a.csv', index=False)
    else: df.to_parquet(tmp_path/'a.parquet')
    with pytest.raises(ValueError, match='no rows'): build(tmp_path/f'a.{suffix}')

def test_one_text_is_not_taken_for_a_path():
    for text in ('a text', 'A text that is as long as a review. '*50, 'a\0b', 'two\nlines'):
        with pytest.raises(FileNotFoundError, match=r'no file or folder.*pass a list: \[text\]'): build(text)

def test_text_file_is_not_read_as_a_table(tmp_path):
    (tmp_path/'book.txt').write_text('It was, in short, the best of times.\nIt was the worst.\n')
    try: c = build(tmp_path/'book.txt', min_freq=1)
    except (ValueError, TypeError): return   # to refuse it is fine
    assert c.vocab.decode(c[0])[:5] == ['xxbos', 'xxmaj', 'it', 'was', ',']

BAD = [([None], TypeError, ['Text 0', 'NoneType']), (['a', 5], TypeError, ['Text 1', 'int', '5']),
       (['a', b'b'], TypeError, ['Text 1', 'bytes']), (['a', float('nan')], TypeError, ['Text 1', 'float']),
       (['a', ['b']], TypeError, ['Text 1', 'list']), ([5.], TypeError, ['Text 0']),
       (pd.Series(['a', None]), ValueError, ['1 missing', 'row 1']),
       (pd.Series(['a', 'b', 3], index=list('xyz'), name='t'), TypeError, ["'t'", "'z'", '3']),
       (pd.DataFrame({'t': [1, 2]}), TypeError, ["'t'", 'not strings', 'row 0']),
       (pd.DataFrame({'t': ['a', b'b']}), TypeError, ["'t'", "b'b'"]),
       (pd.DataFrame({'t': []}), ValueError, ['no rows']), (Path('/no/such.csv'), FileNotFoundError, ['/no/such.csv'])]

@pytest.mark.parametrize('source,err,words', BAD)
@pytest.mark.parametrize('cached', [False, True])
def test_bad_texts(tmp_path, source, err, words, cached):
    with pytest.raises(err) as e:
        if cached: rf.cached_corpus(source, cache=tmp_path/'c', no_bar=True)
        else: build(source)
    assert all(w in str(e.value) for w in words), str(e.value)
    assert not list(tmp_path.rglob('*.npy'))

def test_folder_without_texts_and_file_of_other_bytes(tmp_path):
    with pytest.raises(ValueError, match='no .txt file'): build(tmp_path)
    (tmp_path/'a.txt').write_bytes('naïve'.encode('latin-1'))
    with pytest.raises(ValueError, match=r'a\.txt is not valid UTF-8.*position 2'): build(tmp_path)

@pytest.mark.parametrize('col', [0, 'text'])
def test_two_columns_of_one_name(col):
    df = pd.DataFrame([['a', 'b', 1]], columns=['text', 'text', 'n'])
    with pytest.raises(ValueError, match='several columns'): build(df, col)

# ---- Vocabulary and ids

def with_fastai(docs, **kwargs):
    "Vocabulary and ids as fastai makes them of tokens."
    vocab = ft.make_vocab(Counter(t for d in docs for t in d), **kwargs)
    num = ft.Numericalize()
    num.vocab,num.o2i = vocab,{t: i for i,t in enumerate(vocab) if t != 'xxfake'}
    return [[num.o2i.get(t, 0) for t in d] for d in docs],vocab

HOW = [{}, dict(min_freq=1), dict(min_freq=2), dict(min_freq=99), dict(max_vocab=12), dict(max_vocab=1),
       dict(max_vocab=3, min_freq=1), dict(special_toks=['xxunk', 'xxpad', 'two']), dict(special_toks=[]),
       dict(special_toks=['zzz', 'xxunk', 'xxunk'], min_freq=1), dict(min_freq=0), dict(max_vocab=16, min_freq=1)]

@pytest.mark.parametrize('how', HOW, ids=str)
@pytest.mark.parametrize('size', [1, 7, 50, 400, 10**6])
def test_vocabulary_equals_fastai(monkeypatch, size, how):
    small_chunks(monkeypatch, size)
    texts = make_texts(60)
    docs = list(rf.TextTokenizer()(texts))
    assert content(build(texts, **how)) == with_fastai(docs, **how)
    assert content(rf.Corpus.from_tokens(docs, **how)) == with_fastai(docs, **how)

ODD = [*'abcdef', 'xxbos', 'xxunk', '', ' ', 'é', '\ud800']
@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.sampled_from(ODD), max_size=8), max_size=9),
       st.integers(0, 4), st.integers(1, 20), st.sampled_from([None, [], ['xxunk', 'b'], SPECIAL]))
def test_any_tokens_give_fastai_vocabulary(docs, min_freq, max_vocab, special):
    how = dict(min_freq=min_freq, max_vocab=max_vocab, special_toks=special)
    assert content(rf.Corpus.from_tokens(docs, **how)) == with_fastai(docs, **how)

def test_numericalize_of_fastai_gives_the_same_ids():
    docs = list(rf.TextTokenizer()(make_texts(50)))
    num = ft.Numericalize(min_freq=2)
    num.setup(ft.L(docs))
    c = rf.Corpus.from_tokens(docs, min_freq=2)
    assert content(c) == ([num(d).tolist() for d in docs], list(num.vocab))

@pytest.mark.parametrize('rules', [None, []], ids=['rules', 'no_rules'])
def test_words_that_post_rules_make_one_token_are_counted_together(rules):
    tok = rf.TextTokenizer(rules=rules, post_rules=[str.lower])
    corpus = rf.Corpus.from_texts(['one one oNe', 'oNE'], tokenizer=tok, min_freq=4)
    assert corpus.vocab.count('one') == 1 and (corpus.ids == corpus.vocab.o2i['one']).sum() == 4

def test_ties_follow_the_first_sight_over_chunks(monkeypatch):
    texts = ['b a', 'c b', 'a c', 'd', 'd e e']   # all twice
    for size in (1, 2, 4, 100):
        small_chunks(monkeypatch, size)
        assert build(texts, min_freq=2).vocab[len(SPECIAL):][:5] == list('bacde')

@pytest.mark.parametrize('n,dtype', [(8, 'u1'), (256, 'u1'), (257, 'u2'), (65536, 'u2'), (65537, 'u4')])
def test_id_dtype(n, dtype):
    vocab = ['xxunk', *(f't{i}' for i in range(n-1))]
    c = rf.Corpus.from_tokens([[vocab[-1], 'no'], []], vocab)
    assert c.ids.dtype == dtype and c[0].tolist() == [n-1, 0]
    assert rf.Corpus.from_ids([[n-1]]).ids.dtype == dtype

def test_given_vocabulary_and_tokenizers_own(tmp_path):
    texts = make_texts()
    vocab = ['xxunk', 'two', 'xxbos', 'ten']
    assert list(build(texts, vocab=vocab).vocab) == vocab and build(texts, vocab=vocab).ids.max() == 3
    sub = rf.ByteLevelTokenizer(300).train(texts)
    assert list(build(texts, tokenizer=sub).vocab) == list(sub.vocab)
    assert build(texts, tokenizer=sub).vocab.decode(build(texts, tokenizer=sub)[3]) == next(iter(sub([texts[3]])))
    chars = build(texts, tokenizer=rf.CharTokenizer())
    assert ''.join(chars.vocab.decode(chars[0][1:])) == texts[0]   # every character is known by default

@pytest.mark.parametrize('vocab,err,words', [
    ([], ValueError, ['xxunk']), (['a'], ValueError, ['xxunk', "'a'"]), ('xxunk', TypeError, ['str']),
    ([1, 2], TypeError, ['int']), (['xxunk', 2], TypeError, ['int'])])
def test_bad_vocabularies(vocab, err, words):
    with pytest.raises(err) as e: build(['a'], vocab=vocab)
    assert all(w in str(e.value) for w in words), str(e.value)

@pytest.mark.parametrize('n', [0, -1, 2.5, None, True])
def test_bad_max_vocab(n):
    with pytest.raises(ValueError, match='max_vocab'): build(['a'], max_vocab=n)

def test_empty_texts_and_no_texts():
    c = build(['', ' ', '\n', 'a', ''], min_freq=1)
    assert [len(d) for d in c][0] == 1 and c.vocab.decode(c[4]) == ['xxbos']
    none = build([])
    assert (len(none), len(none.ids), none.lens.tolist()) == (0, 0, []) and list(none) == []
    assert '0 documents' in none.report

def test_corpus_is_a_sequence():
    c = rf.Corpus.from_ids([[1, 2], [], [3]])
    assert (c[-1].tolist(), c[np.int64(0)].tolist(), [d.tolist() for d in c]) == ([3], [1, 2], [[1, 2], [], [3]])
    for i in (3, -4):
        with pytest.raises(IndexError): c[i]

@pytest.mark.parametrize('offsets', [[0, 2, 1, 3], [0, 5, 3], [1, 3], [0, 2], []])
def test_bad_offsets(offsets):
    with pytest.raises(ValueError, match='offsets'): rf.Corpus(np.arange(3), np.array(offsets, dtype=int), rf.Vocab())

def test_report_counts():
    c = build(['two two two zebra', '', 'two'], min_freq=3)
    n_unk = sum(i == 0 for d in c for i in d)
    assert c.report.startswith(f'3 documents, 1 of them empty; {len(c.ids)} tokens, {n_unk/len(c.ids):.2%}')

# ---- On the disk

def saved(path, texts=None):
    words = None if texts is None else tokenizer()   # spaCy takes no lone surrogates
    c = build(make_texts() if texts is None else texts, min_freq=1, tokenizer=words)
    return c,c.save(path/'c')

def mapped(a):
    "Whether an array lies in a mapped file."
    while a is not None and not isinstance(a, mmap.mmap): a = getattr(a, 'base', None)
    return a is not None

@pytest.mark.parametrize('texts', [None, [], [''], ['a \ud800 b', '\udfff'], ['日本 🦊']], ids=str)
def test_saved_and_opened(tmp_path, texts):
    c,path = saved(tmp_path, texts)
    again = rf.Corpus.open(str(path))
    same(again, c)
    assert type(again.vocab) is rf.Vocab and again.vocab.o2i == c.vocab.o2i and again.report == c.report
    assert os.listdir(tmp_path) == ['c'] and sorted(os.listdir(path)) == ['corpus.json', 'ids.npy', 'offsets.npy']

def test_halves_of_a_pair_stay_two_characters(tmp_path):
    c = rf.Corpus.from_tokens([['\ud83d\ude00']], min_freq=1)   # two characters, which JSON would make one
    assert list(rf.Corpus.open(c.save(tmp_path/'c')).vocab) == list(c.vocab)

def test_saved_vocabulary_is_read_again(tmp_path):
    for vocab in (['xxunk', 'ü日'], ['xxunk', '\ud800']):
        rf.Vocab(vocab).save(tmp_path/'v.json')
        assert json.loads((tmp_path/'v.json').read_text(encoding='utf8')) == vocab

def test_opened_ids_stay_on_the_disk(tmp_path):
    c,path = saved(tmp_path)
    again = rf.Corpus.open(path)
    assert mapped(again.ids) and not again.ids.flags.writeable
    copy = pickle.loads(pickle.dumps(again))
    same(copy, c)
    for d in (again, copy):
        dl = rf.LMDataLoader(rf.LMDataset(d), bs=2, seq_len=5)
        want = rf.LMDataLoader(rf.LMDataset(c), bs=2, seq_len=5)
        assert [x.tolist() for x,_ in dl] == [x.tolist() for x,_ in want]
        x, = rf.DocDataLoader(rf.DocDataset(d), bs=4).one_batch()
        assert x.tolist() == rf.DocDataLoader(rf.DocDataset(c), bs=4).one_batch()[0].tolist()

def swap(path, data):
    "Write other bytes, in a new file: a mapped one must not change."
    path.unlink()
    path.write_bytes(data)

def cut(name, n): return lambda p: swap(p/name, (p/name).read_bytes()[:n])
def flip(name, at):
    def f(p):
        data = bytearray((p/name).read_bytes())
        data[at] ^= 1
        swap(p/name, bytes(data))
    return f
def lose(name): return lambda p: (p/name).unlink()
def array(name, a): return lambda p: np.save(p/name, a(np.load(p/name)))
def put(name, data): return lambda p: swap(p/name, data)
def meta(f):
    def change(p):
        m = json.loads((p/'corpus.json').read_text())
        swap(p/'corpus.json', json.dumps(f(m)).encode())
    return change
def zipped(p): np.savez(p/'x.npz', a=np.arange(3)); (p/'x.npz').rename(p/'ids.npy')
def other_vocab(m): m['vocab'][-9] = 'other'; return m
def short_vocab(m): m['vocab'] = m['vocab'][:10]; return m
def first_word(p):
    "Flip a bit in a token, so that the file stays JSON."
    data = (p/'corpus.json').read_bytes()
    flip('corpus.json', data.index(b'"two"') + 1)(p)

DAMAGE = {
    'ids cut': cut('ids.npy', -1), 'ids cut in the header': cut('ids.npy', 20), 'ids empty': cut('ids.npy', 0),
    'offsets cut': cut('offsets.npy', -8), 'offsets empty': cut('offsets.npy', 0), 'json cut': cut('corpus.json', -5),
    'json empty': cut('corpus.json', 0), 'ids lost': lose('ids.npy'), 'offsets lost': lose('offsets.npy'),
    'json lost': lose('corpus.json'), 'ids flipped': flip('ids.npy', -3), 'offsets flipped': flip('offsets.npy', -20),
    'ids magic flipped': flip('ids.npy', 0), 'ids header flipped': flip('ids.npy', 30),
    'token flipped': first_word, 'vocabulary changed': meta(other_vocab), 'vocabulary cut': meta(short_vocab),
    'vocabulary lost': meta(lambda m: {k: v for k,v in m.items() if k != 'vocab'}),
    'other format': meta(lambda m: {**m, 'format': 0}), 'format of the future': meta(lambda m: {**m, 'format': 99}),
    'json a list': meta(lambda m: [m]), 'json null': meta(lambda m: None), 'json no dict': put('corpus.json', b'5'),
    'json no text': put('corpus.json', b'\xff\xfe\x00'), 'json deep': put('corpus.json', b'['*10**5),
    'offsets wrong': array('offsets.npy', lambda a: a+1), 'offsets falling': array('offsets.npy', lambda a: a[::-1]),
    'offsets of fewer': array('offsets.npy', lambda a: a[:-1]), 'offsets of floats': array('offsets.npy', np.float64),
    'ids of another type': array('ids.npy', np.int64), 'ids of two axes': array('ids.npy', lambda a: a[None]),
    'pickle': put('ids.npy', pickle.dumps(os.getcwd)), 'zip': zipped,
    'array of objects': lambda p: np.save(p/'ids.npy', np.array([print]), allow_pickle=True),
    'folder in place of a file': lambda p: ((p/'ids.npy').unlink(), (p/'ids.npy').mkdir())}

@pytest.mark.parametrize('damage', DAMAGE)
def test_damage_is_told_and_the_cache_built_anew(tmp_path, damage):
    want,path = saved(tmp_path)
    DAMAGE[damage](path)
    with pytest.raises(ValueError, match=rf'saved corpus {re.escape(str(path))} is damaged'): rf.Corpus.open(path)
    same(rf.cached_corpus(make_texts(), cache=tmp_path/'k', no_bar=True, min_freq=1), want)
    entry, = (tmp_path/'k').iterdir()
    DAMAGE[damage](entry)
    with pytest.warns(UserWarning, match='damaged.*built again'): again = kept(tmp_path/'k', min_freq=1)
    same(again, want)
    same(rf.Corpus.open(entry), want)

@pytest.mark.parametrize('seed', range(3))
def test_no_flipped_bit_goes_unseen(tmp_path, seed):
    want,path = saved(tmp_path)
    rng = np.random.default_rng(seed)
    for name in sorted(os.listdir(path)):
        data = (path/name).read_bytes()
        for at in rng.integers(0, len(data), 10):
            bad = bytearray(data)
            bad[at] ^= 1 << int(rng.integers(8))
            swap(path/name, bytes(bad))
            try: same(rf.Corpus.open(path), want)   # such as a blank in a header
            except ValueError as e: assert 'damaged' in str(e)
        swap(path/name, data)

def test_no_corpus_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='no saved corpus'): rf.Corpus.open(tmp_path/'none')

def test_saving_over_an_older_one(tmp_path):
    old,path = saved(tmp_path)
    old = rf.Corpus.open(path)
    words = content(old)
    new = build(make_texts(seed=3))
    new.save(path)
    same(rf.Corpus.open(path), new)
    assert content(old) == words            # it is mapped, and its file lives on
    old.save(path)
    rf.Corpus.open(path).save(path)         # over itself
    same(rf.Corpus.open(path), old)
    assert os.listdir(tmp_path) == ['c']

def test_saving_does_not_delete_what_is_no_corpus(tmp_path):
    path = as_files(make_texts(), tmp_path/'texts')
    before = sorted(path.rglob('*'))
    with suppress(OSError, ValueError): build(path).save(path)             # a slip: the folder of the texts themselves
    assert set(before) <= set(path.rglob('*'))
    (tmp_path/'notes.txt').write_text('mine')
    with suppress(OSError, ValueError): build(path).save(tmp_path/'notes.txt')
    assert (tmp_path/'notes.txt').read_text() == 'mine'

@pytest.mark.parametrize('nth', [1, 2])
@pytest.mark.parametrize('err', [OSError(errno.EIO, 'broken'), KeyboardInterrupt()])
def test_old_one_stays_where_renaming_fails(tmp_path, monkeypatch, nth, err):
    old,path = saved(tmp_path)
    calls,rename = [],Path.rename
    def fails(self, target):
        calls.append(self)
        if len(calls) == nth: raise err
        return rename(self, target)
    monkeypatch.setattr(Path, 'rename', fails)
    with pytest.raises(type(err)): build(make_texts(seed=3)).save(path)
    same(rf.Corpus.open(path), old)
    assert os.listdir(tmp_path) == ['c']

def script(code, *args, hashseed='0', **kwargs):
    "Start a Python with `code`."
    env = {**os.environ, 'PYTHONHASHSEED': hashseed, 'PYTHONWARNINGS': 'ignore'}
    return subprocess.Popen([sys.executable, '-c', textwrap.dedent(code), *map(str, args)], text=True, env=env,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs)

def done(p, timeout=120):
    out,err = p.communicate(timeout=timeout)
    assert p.returncode == 0, err[-3000:]
    return out.splitlines()

FULL = '''
    import sys, os, signal, resource, warnings, json
    from pathlib import Path
    import numpy as np
    from rnn_fastai.data.corpus import Corpus
    from rnn_fastai.data.cache import cached_corpus
    from rnn_fastai.data.tokenize import TextTokenizer
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    path = Path(sys.argv[1])
    def content(c): return [d.tolist() for d in c],list(c.vocab)
    old = Corpus.from_ids([[1, 2, 3]], ['xxunk', 'a', 'b', 'c'])
    new = Corpus.from_ids([[i % 300] * 40 for i in range(200)], ['xxunk', *map(str, range(300))])
    old.save(path/'over')
    def limit(n): resource.setrlimit(resource.RLIMIT_FSIZE, (n, resource.RLIM_INFINITY))
    largest = 0
    for n in [0, 1, 64, 127, 128, 129, 500, 1000, 1700, 1735, 1736, 2000, 3000, 4096, 8192, 16000, 16127]:
        for name in ('fresh', 'over'):
            limit(n)
            try: new.save(path/name)
            except OSError as e:
                limit(resource.RLIM_INFINITY)
                assert 'could not be written' in str(e) and 'nothing was changed' in str(e), str(e)
                assert 'Errno None' not in str(e), str(e)
            else: raise AssertionError(f'saved within {n} bytes')
            assert os.listdir(path) == ['over'] and content(Corpus.open(path/'over')) == content(old)
    tok = TextTokenizer(lambda ts: (t.split() for t in ts), rules=[])
    for at in (10, 500):
        with warnings.catch_warnings(record=True) as w:
            warnings.simplefilter('always')
            limit(at)
            c = cached_corpus(['a b'] * 500, cache=path/'k', no_bar=True, max_vocab=99)
            limit(resource.RLIM_INFINITY)
        assert len(c) == 500 and ['not kept' in str(x.message) for x in w] == [True], [str(x.message) for x in w]
        assert not list((path/'k').glob('*')) and not list((path/'k').glob('.*'))
    new.save(path/'over')
    assert content(Corpus.open(path/'over')) == content(new)
    print('ok')
'''

def test_full_disk(tmp_path):
    assert done(script(FULL, tmp_path)) == ['ok']

# ---- The cache

def kept(folder, texts=None, **kwargs):
    return rf.cached_corpus(make_texts() if texts is None else texts, cache=folder, no_bar=True, **kwargs)

@pytest.fixture
def no_build(monkeypatch):
    "Make building fail: what is found needs none."
    def fails(): monkeypatch.setattr(rf.Corpus, 'from_texts', lambda *a, **k: pytest.fail('built again'))
    return fails

def test_cache_finds_what_it_kept(tmp_path, no_build):
    want = build(make_texts(), min_freq=2)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        same(kept(tmp_path/'deep'/'k', min_freq=2), want)
        no_build()
        again = kept(str(tmp_path/'deep'/'k'), min_freq=2)
    same(again, want)
    assert mapped(again.ids)

@pytest.mark.parametrize('source', SOURCES)
def test_cache_of_every_source(tmp_path, no_build, source):
    texts = make_texts()
    want = build(texts)
    source = SOURCES[source](texts, tmp_path)
    same(rf.cached_corpus(*source, cache=tmp_path/'k', no_bar=True), want)
    no_build()
    same(rf.cached_corpus(texts, cache=tmp_path/'k', no_bar=True), want)   # the texts count, not where they come from
    assert len(os.listdir(tmp_path/'k')) == 1

def test_one_shot_iterables_are_not_lost(tmp_path):
    texts = make_texts()
    for it in (iter(texts), (t for t in texts), map(str, texts)): same(kept(tmp_path, it), build(texts))
    assert len(os.listdir(tmp_path)) == 1

def test_lone_surrogates(tmp_path, no_build):
    texts = ['a \ud800 b', 'a \udc00', '\ud83d\ude00']
    want = kept(tmp_path, texts, tokenizer=tokenizer(), min_freq=1)
    no_build()
    same(kept(tmp_path, texts, tokenizer=tokenizer(), min_freq=1), want)

def test_lone_surrogates_that_spacy_cannot_take():
    try: build(['fine', 'a \ud800 b'])
    except ValueError as e: assert 'ext 1' in str(e)   # which text it is

def test_cache_folder(tmp_path):
    assert rf.cache_folder('a/b') == Path('a/b') == rf.cache_folder(Path('a/b'))
    assert rf.cache_folder(True).parts[-2:] == ('rnn_fastai', 'corpora')
    kept(False)                              # keeps nothing, anywhere

def double(t): return t + t
def shout(t): return t.upper()
class Cutter:
    def __init__(self, n): self.n = n
    def __call__(self, items): return (t.split()[:self.n] for t in items)

def suffix_rule(s):
    def add(t): return t + s
    return add
def bound_rules(): return [lambda t, k=k: t*k for k in (1, 2)]
one_line = [lambda t: t.upper(), lambda t: t.lower()]

def split_all(items): return (t.split() for t in items)
def tokenizer(**kwargs): return rf.TextTokenizer(kwargs.pop('tok', split_all), **kwargs)
PAIRS = {
    'min_freq': (dict(min_freq=2), dict(min_freq=3)), 'max_vocab': (dict(max_vocab=9), dict(max_vocab=10)),
    'special_toks': (dict(special_toks=['xxunk']), dict(special_toks=['xxunk', 'xxpad'])),
    'order of special_toks': (dict(special_toks=['xxunk', 'b']), dict(special_toks=['b', 'xxunk'])),
    'vocab': (dict(vocab=['xxunk', 'a']), dict(vocab=['xxunk', 'b'])), 'no vocab': ({}, dict(vocab=['xxunk', 'b'])),
    'tokenizer': ({}, dict(tokenizer=rf.TextTokenizer(rules=[]))), 'lang': tuple(dict(tokenizer=rf.TextTokenizer(
        rf.WordTokenizer(la))) for la in ('en', 'de')),
    'special of words': tuple(dict(tokenizer=rf.TextTokenizer(rf.WordTokenizer(special_toks=s)))
                              for s in (['a'], ['b'])),
    'rules': (dict(tokenizer=tokenizer(rules=[double])), dict(tokenizer=tokenizer(rules=[shout]))),
    'order of rules': tuple(dict(tokenizer=tokenizer(rules=r)) for r in ([double, shout], [shout, double])),
    'post_rules': tuple(dict(tokenizer=tokenizer(post_rules=r)) for r in ([], [ft.lowercase])),
    'sep': tuple(dict(tokenizer=tokenizer(sep=s)) for s in ('', ' ')),
    'closure': tuple(dict(tokenizer=tokenizer(rules=[suffix_rule(s)])) for s in 'xy'),
    'default of an argument': tuple(dict(tokenizer=tokenizer(rules=[f])) for f in bound_rules()),
    'two lambdas in one line': tuple(dict(tokenizer=tokenizer(rules=[f])) for f in one_line),
    'partial': tuple(dict(tokenizer=tokenizer(rules=[partial(re.sub, 'a', b)])) for b in 'xy'),
    'method of a pattern': tuple(dict(tokenizer=tokenizer(rules=[partial(re.compile(a).sub, 'z')])) for a in 'tn'),
    'method of a string': tuple(dict(tokenizer=tokenizer(rules=[a.join])) for a in 'xy'),
    'builtin': tuple(dict(tokenizer=tokenizer(rules=[f])) for f in (str.upper, str.lower)),
    'state of a callable': tuple(dict(tokenizer=tokenizer(tok=Cutter(n))) for n in (1, 2)),
    'class of a callable': tuple(dict(tokenizer=tokenizer(tok=f)) for f in (Cutter(1), split_all))}

def key(texts=None, **kwargs):
    "The key, or None where there is none."
    try: return corpus_key(make_texts() if texts is None else texts, **kwargs)
    except TypeError: return None

@pytest.mark.parametrize('pair', PAIRS)
def test_key_differs_with_each_setting(pair):
    a,b = (key(**how) for how in PAIRS[pair])
    assert a != b or a is b is None         # where things cannot be told apart, nothing is kept
    assert [a, b] == [key(**how) for how in PAIRS[pair]]

@pytest.mark.parametrize('pair', PAIRS)
def test_cache_never_gives_the_corpus_of_other_settings(tmp_path, pair):
    for how in PAIRS[pair]:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            same(kept(tmp_path, **how), build(make_texts(), **how))

def test_key_differs_with_texts_and_their_order():
    texts = [['ab', 'c'], ['a', 'bc'], ['abc'], ['abc', ''], ['', 'abc'], ['c', 'ab'], ['ab', 'd'], [], [''], ['', ''],
             ['ab ', 'c'], ['AB', 'c'], ['\ud800'], ['\ud801'], ['é'], ['e\u0301']]
    keys = [key(t) for t in texts]
    assert len(set(keys)) == len(texts) and keys == [key(t) for t in texts]

def test_key_does_not_depend_on_chunks_or_kind_of_iterable(monkeypatch):
    texts = make_texts()
    keys = {key(texts), key(tuple(texts)), key(iter(texts)), key(pd.Series(texts))}
    assert len(keys) == 1

@pytest.mark.parametrize('make', [rf.TextTokenizer, rf.CharTokenizer, tokenizer, rf.WordTokenizer,
                                  lambda: rf.ByteLevelTokenizer(300).train(make_texts())])
def test_key_of_a_tokenizer_does_not_change_with_use(make):
    tok = make()
    before = key(tokenizer=tok)
    list(as_tokenizer(tok)(make_texts(seed=7)))
    assert before == key(tokenizer=tok) == key(tokenizer=make()) and before is not None

IN_TWO = '''
    import json, sys
    sys.path.insert(0, sys.argv[1])
    import test_corpus as t
    print(json.dumps(t.all_keys()))
'''
def all_keys():
    "A key for each of many settings."
    rules = {'set': member_rule({'one', 'two', 'three', 'four', 'five'}), 'dict': member_rule({'one': 1, 'two': 2})}
    keys = {f'{k} {i}': key(**how) for k,pair in PAIRS.items() for i,how in enumerate(pair)}
    keys |= {k: key(tokenizer=tokenizer(rules=[r])) for k,r in rules.items()}
    return {**keys, 'subwords': key(tokenizer=rf.ByteLevelTokenizer(300).train(make_texts()))}

def member_rule(words):
    def rule(text): return text if text in words else text + '.'
    return rule

@pytest.mark.slow
def test_key_is_the_same_in_other_processes():
    there,here = json.loads(done(script(IN_TWO, Path(__file__).parent, hashseed='1'))[-1]),all_keys()
    assert {k: v for k,v in there.items() if here[k] != v} == {}
    assert None not in (here['dict'], here['subwords'])

def recursive():
    def rule(t): return rule(t[:-1]) if t.endswith('.') else t
    return rule
def unset():
    def rule(t): return later if False else t
    if False: later = 1
    return rule
class Odd:
    def __call__(self, t): return t
    def __reduce_ex__(self, protocol): raise TypeError('cannot pickle it')

@pytest.mark.parametrize('rule', [eval('lambda t: t'), Odd(), Cutter(3).__call__, recursive(), unset(),
                                  suffix_rule(re.compile('a').pattern), np.char.upper],
                         ids='eval odd method recursive unset closure numpy'.split())
def test_rules_that_cannot_be_told_are_still_run(tmp_path, rule):
    "Where no key can be made the corpus is built, with a warning; where one can, it is kept."
    def text(t): return str(rule(t)) if not isinstance(rule, type(Cutter(3).__call__)) else t
    tok = tokenizer(rules=[rule] if rule(['x'] if isinstance(rule, type(Cutter(3).__call__)) else 'x') == 'x' else [])
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        same(kept(tmp_path, tokenizer=tok), build(make_texts(), tokenizer=tok))
    told = [str(x.message) for x in w if 'not kept' in str(x.message)]
    assert len(told) == (not os.listdir(tmp_path))

@pytest.mark.parametrize('what', ['file', 'inside of a file', 'read only'])
def test_folder_that_cannot_be_written(tmp_path, what):
    (tmp_path/'f').write_text('a file')
    folder = dict(zip(('file', 'inside of a file', 'read only'), (tmp_path/'f', tmp_path/'f'/'x', tmp_path/'r'),
                      strict=True))[what]
    if what == 'read only':
        folder.mkdir()
        folder.chmod(0o500)
        if os.access(folder, os.W_OK): pytest.skip('this user may write everywhere')
    with pytest.warns(UserWarning, match='not kept on the disk'): c = kept(folder)
    same(c, build(make_texts()))
    assert (tmp_path/'f').read_text() == 'a file'

def test_file_in_the_place_of_an_entry(tmp_path):
    want = kept(tmp_path)
    entry, = tmp_path.iterdir()
    entry.rename(tmp_path/'away')
    entry.write_text('no folder')
    with pytest.warns(UserWarning): same(kept(tmp_path), want)

def test_temporary_folders_of_the_dead_are_swept(tmp_path):
    kept(tmp_path)
    entry, = tmp_path.iterdir()
    dead,living = (tmp_path/f'.{entry.name}.rnn_fastai-{s}' for s in ('abcd1234', 'abcd5678'))
    for p in (dead, living): (p/'new').mkdir(parents=True)
    fd = os.open(living, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)   # as the writer holds it while it lives
    kept(tmp_path, make_texts(seed=1))
    assert not dead.exists() and living.exists() and entry.exists()
    os.close(fd)
    kept(tmp_path, make_texts(seed=2))
    assert not living.exists()

def test_sweeping_takes_nothing_of_others(tmp_path):
    mine = [tmp_path/n for n in ('.venv3.11', '.config.d', 'data.v1', '.git', '.notes.txt')]
    for p in mine[:-1]:
        p.mkdir()
        (p/'keep').write_text('mine')
    mine[-1].write_text('mine')
    kept(tmp_path)
    assert [p.name for p in mine if not p.exists()] == []

def test_temporary_folder_that_vanishes_while_sweeping(tmp_path):
    (tmp_path/f'.{"0"*32}.rnn_fastai-abcd1234').symlink_to(tmp_path/'gone')   # there when listed, not when asked
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        same(kept(tmp_path), build(make_texts()))

FORK = multiprocessing.get_context('fork')   # at once, where a new interpreter takes seconds to import

def half_done(folder, pipe):
    "Write an entry, and stop in the middle of it."
    save = corpus_module.save_array
    def slow(file, a):
        save(file, a)
        if 'offsets' in str(file):
            pipe.send('half')
            time.sleep(100)
    corpus_module.save_array = slow
    kept(folder, tokenizer=tokenizer())

def test_killed_process_leaves_nothing_that_counts(tmp_path):
    here,there = FORK.Pipe()
    p = FORK.Process(target=half_done, args=(tmp_path, there))
    p.start()
    assert here.recv() == 'half'
    p.kill()
    p.join()
    left, = tmp_path.iterdir()
    assert left.name.startswith('.') and p.exitcode == -signal.SIGKILL
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for _ in range(2): same(kept(tmp_path, tokenizer=tokenizer()), build(make_texts(), tokenizer=tokenizer()))
        kept(tmp_path, make_texts(seed=5), tokenizer=tokenizer())
    assert not left.exists() and len(os.listdir(tmp_path)) == 2

def many_rounds(path, gate, pipe, n):
    "Ask for one entry after the other, each at the same time as the other process; tell what went wrong."
    said = []
    warnings.simplefilter('error')
    for i in range(n):
        texts = make_texts(20, i % 3)
        want = content(build(texts, tokenizer=tokenizer()))
        gate.wait(30)
        try: said += [] if content(kept(path/f'k{i // 3}', texts, tokenizer=tokenizer())) == want else ['other ids']
        except BaseException as e: said.append(repr(e)[:300])
    pipe.send(said)

def test_two_processes_at_once(tmp_path):
    gate,n = FORK.Barrier(2),75
    pipes = [FORK.Pipe() for _ in range(2)]
    pair = [FORK.Process(target=many_rounds, args=(tmp_path, gate, there, n)) for _,there in pipes]
    for p in pair: p.start()
    said = [here.recv() for here,_ in pipes]
    for p in pair: p.join()
    assert said == [[], []]
    for k in tmp_path.iterdir():
        assert len(os.listdir(k)) == 3
        for entry in k.iterdir(): rf.Corpus.open(entry)

def test_other_process_is_quicker(tmp_path, monkeypatch):
    "Another process puts the same entry in place while this one writes: it is kept, and there is nothing to tell."
    save = rf.Corpus.save
    def slower(self, path):
        save(self, path)
        return save(self, path) if meanwhile is None else meanwhile(self, path)
    def meanwhile(self, path):
        rename = Path.rename
        def late(p, target):
            if p.name == 'new' and not (path/'corpus.json').exists(): write_other(path)
            return rename(p, target)
        monkeypatch.setattr(Path, 'rename', late)
        return save(self, path)
    def write_other(path):
        path.mkdir()
        for f in (tmp_path/'other').iterdir(): (path/f.name).write_bytes(f.read_bytes())
    build(make_texts()).save(tmp_path/'other')
    monkeypatch.setattr(rf.Corpus, 'save', meanwhile)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        same(kept(tmp_path/'k'), build(make_texts()))
    entry, = (tmp_path/'k').iterdir()
    same(rf.Corpus.open(entry), build(make_texts()))

# ---- What is said

def loaders(**kwargs):
    df = pd.DataFrame({'text': make_texts(40), 'label': ['a', 'b']*20})
    return rf.TextDataLoaders.from_df(df, text_col='text', label_col='label', bs=4, device='cpu', **kwargs)

@pytest.mark.parametrize('is_lm', [False, True])
@pytest.mark.parametrize('args,said', [({}, False), (dict(verbose=True), True), (dict(no_bar=True), False),
                                       (dict(verbose=True, no_bar=True), True)])
def test_report_of_loaders(capsys, is_lm, args, said):
    dls = loaders(is_lm=is_lm, **args)
    out = capsys.readouterr().out
    assert (dls.train_ds.corpus.report in out) == said and (said or out == '')

def test_slow_work_shows_a_bar_and_a_report_unless_told_not_to(capsys, monkeypatch):
    clock,made = count(0, 5),[]
    for m in (progress_module, loaders_module):
        monkeypatch.setattr(m, 'time', SimpleNamespace(time=lambda: next(clock), monotonic=lambda: next(clock)))
    monkeypatch.setattr(progress_module, 'progress_bar', lambda *a, **k: made.append(a) or FakeBar())
    monkeypatch.setattr(progress_module, 'can_draw', lambda: True)
    loaders(no_bar=True)
    assert (capsys.readouterr().out, made) == ('', [])
    dls = loaders()
    assert dls.train_ds.corpus.report in capsys.readouterr().out and len(made) == 1
    monkeypatch.setattr(progress_module, 'can_draw', lambda: False)   # as in a pipe
    loaders()
    assert len(made) == 1

class FakeBar:
    def update(self, n): assert 0 <= n <= 40

@pytest.mark.parametrize('is_lm', [False, True])
def test_loaders_with_a_cache(tmp_path, no_build, is_lm):
    want = loaders(is_lm=is_lm, seed=1)
    first = loaders(is_lm=is_lm, seed=1, cache=tmp_path)
    no_build()
    again = loaders(is_lm=is_lm, seed=1, cache=tmp_path)
    assert mapped(again.train_ds.corpus.ids) and len(os.listdir(tmp_path)) == 1
    for dls in (first, again): assert [x.tolist() for x,_ in dls.valid] == [x.tolist() for x,_ in want.valid]

def test_another_tokenizer_loads_no_words():
    "spaCy and its language take a second, which characters do not need."
    code = ("import sys; from rnn_fastai.all import *\n"
            "dls = TextDataLoaders.from_df(pd.DataFrame(dict(text=['abc abd']*9)), is_lm=True, text_col='text',\n"
            "                              tok_tfm=CharTokenizer(), seq_len=3, bs=2, no_bar=True)\n"
            "print('spacy' in sys.modules)")
    assert subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True).stdout == 'False\n'
