"Corpora built in shards: the ids of `Corpus.from_texts` from every source, what goes wrong, and reading across shards."
import errno
import gzip
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import rnn_fastai.data.partitions as partitions_module
import rnn_fastai.data.shards as shards_module
from rnn_fastai import all as rf
from rnn_fastai.data.arrays import ShardedArray, gather, slices_of
from rnn_fastai.data.shards import Corpus

ROOT = Path(__file__).parent.parent
WORDS = 'the a film of and Was good BAD plot, very very very it\'s end. www.a.com ("so") 日本 🦊'.split()


def make_texts(n=60, seed=0):
    rng = np.random.default_rng(seed)
    return [' '.join(rng.choice(WORDS, rng.integers(0, 12))) + ' w' * (i % 3 == 0) + f' u{i // 4}' for i in range(n)]

TEXTS = make_texts()


def same(a, b):
    assert np.array_equal(a.ids[:], b.ids) and a.ids.dtype == b.ids.dtype
    assert np.array_equal(a.offsets, b.offsets) and list(a.vocab) == list(b.vocab)

def build(source, folder, *args, **kwargs): return Corpus.build(source, folder, *args, no_bar=True, **kwargs)
def whole(texts=TEXTS, **kwargs): return Corpus.from_texts(texts, no_bar=True, **kwargs)
def pieces(folder): return sorted((folder/'counted').rglob('*.npz'))
def n_shards(corpus): return len(corpus.ids.files)

@pytest.fixture
def small(monkeypatch):
    "Pieces of a few texts, and parts of a few rows."
    monkeypatch.setattr(shards_module, '_PIECE', 200)
    cut = partitions_module.partitions_of
    monkeypatch.setattr(shards_module, 'partitions_of', lambda source, cols: cut(source, cols, rows=17))

# ---- Sources

CUTS = [0, 13, 13, 40, 60]   # the second part is empty
FRAMES = [pd.DataFrame({'n': range(a, b), 'text': pd.Series(TEXTS[a:b], dtype=str)}) for a,b in pairwise(CUTS)]
FRAME = pd.DataFrame({'n': range(60), 'text': TEXTS})

def files(write, pattern):
    def make(d):
        for i,df in enumerate(FRAMES): write(df, str(d/pattern.format(i)))
        return d
    return make

def csv(df, file): df.to_csv(file, index=False)
def jsonl(df, file): df.to_json(file, orient='records', lines=True, force_ascii=False)
def zstd(df, file):
    with pa.CompressedOutputStream(file, 'zstd') as f: f.write(df.to_csv(index=False).encode())

def txt(d):
    for i,t in enumerate(TEXTS): (d/f'{i:02d}.txt').write_text(t)
    return d

def bag(d):
    import dask.bag as db
    return db.from_delayed([delayed(df.text.tolist()) for df in FRAMES])

def delayed(o):
    import dask
    return dask.delayed(o)

def dask_frame(d):
    import dask.dataframe as dd
    return dd.from_pandas(FRAME, npartitions=4)

def polars(d):
    import polars as pl
    return pl.from_pandas(FRAME)

def hugging_face(d):
    import datasets
    return datasets.Dataset.from_pandas(FRAME)

SOURCES = {
    'csv': files(csv, '{}.csv'), 'csv.gz': files(csv, '{}.csv.gz'), 'csv.bz2': files(csv, '{}.csv.bz2'),
    'csv.xz': files(csv, '{}.csv.xz'), 'csv.zst': files(zstd, '{}.csv.zst'),
    'parquet': files(lambda df, f: df.to_parquet(f, row_group_size=7), 'part.{}.parquet'),
    'jsonl': files(jsonl, '{}.jsonl'), 'jsonl.gz': files(jsonl, '{}.jsonl.gz'),
    'pattern': lambda d: str(files(csv, '{}.csv')(d)/'*.csv'), 'paths': lambda d: sorted(files(csv, '{}.csv')(d).iterdir()),
    'one file': lambda d: FRAME.to_csv(d/'a.csv', index=False) or d/'a.csv', 'folder of texts': txt,
    'list': lambda d: TEXTS, 'iterator': lambda d: iter(TEXTS), 'dictionaries': lambda d: iter(FRAME.to_dict('records')),
    'frame': lambda d: FRAME, 'series': lambda d: FRAME.text, 'arrow': lambda d: pa.table(FRAME),
    'bag': bag, 'dask frame': dask_frame, 'polars': polars, 'lazy polars': lambda d: polars(d).lazy(),
    'datasets': hugging_face, 'datasets, chosen': lambda d: hugging_face(d).select([*range(59, -1, -1)]).select([*range(59, -1, -1)]),
    'datasets, streamed': lambda d: hugging_face(d).to_iterable_dataset(),
}

@pytest.mark.parametrize('source', SOURCES)
def test_every_source_gives_the_ids_of_one_corpus(source, tmp_path, small):
    (tmp_path/'source').mkdir()
    made = SOURCES[source](tmp_path/'source')
    import dask
    with dask.config.set(scheduler='threads'): corpus = build(made, tmp_path/'c', 'text')
    same(corpus, whole())
    assert n_shards(corpus) > 4 and corpus.report == whole().report
    assert sorted(p.name for p in (tmp_path/'c').iterdir()) == ['corpus.json', 'ids', 'offsets.npy']

def test_frames_of_arrow_are_not_copied_to_pandas(tmp_path, monkeypatch):
    sources = [SOURCES[s](None) for s in ('arrow', 'polars', 'datasets')]
    def copied(*args, **kwargs): raise AssertionError('copied to pandas')
    import polars as pl
    monkeypatch.setattr(pl.DataFrame, 'to_pandas', copied)
    import datasets
    monkeypatch.setattr(datasets.Dataset, 'to_pandas', copied)
    for i,s in enumerate(sources): same(build(s, tmp_path/str(i), 'text'), whole())

@pytest.mark.slow
def test_packages_of_sources_are_imported_for_them_alone():
    code = """
        import sys, tempfile
        from rnn_fastai.data.shards import Corpus
        Corpus.build(['a b'], tempfile.mkdtemp())
        print({'dask', 'polars', 'datasets', 'distributed'} & set(sys.modules))
    """
    out = subprocess.run([sys.executable, '-c', textwrap.dedent(code)], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == 'set()'

@pytest.mark.parametrize('how', [dict(min_freq=1), dict(max_vocab=12), dict(special_toks=['xxunk', 'film']),
                                 dict(vocab=['xxunk', 'film', 'xxbos']), dict(tokenizer='chars')], ids=str)
def test_settings_of_the_vocabulary(how, tmp_path, small):
    if 'tokenizer' in how: how = dict(tokenizer=rf.CharTokenizer())
    same(build(TEXTS, tmp_path/'c', **how), whole(**how))

def test_several_columns_are_marked(tmp_path, small):
    df = pd.DataFrame({'a': TEXTS, 'b': TEXTS[::-1]})
    df.to_parquet(tmp_path/'a.parquet')
    for i,s in enumerate((tmp_path/'a.parquet', df, df.to_dict('records'))):
        same(build(s, tmp_path/str(i), ['b', 'a']), whole(df, text_cols=['b', 'a']))

def test_halves_of_surrogate_pairs_and_texts_without_tokens(tmp_path, small):
    texts = ['\ud800 a', '\udfff', '', '\ud83d\ude00']*30
    same(build(texts, tmp_path/'chars', tokenizer=rf.CharTokenizer()), whole(texts, tokenizer=rf.CharTokenizer()))
    bare = rf.TextTokenizer(lambda ts: (t.split() for t in ts), rules=[])
    texts = [''] * 300 + ['a b'] + [''] * 300
    same(build(texts, tmp_path/'bare', tokenizer=bare), whole(texts, tokenizer=bare))
    none = build([' ', ''], tmp_path/'none', tokenizer=bare)
    assert len(none) == 2 and len(none.ids) == 0 and none.report.startswith('2 documents, 2 of them empty; 0 tokens')

# ---- Workers

@pytest.fixture
def forked(monkeypatch):
    "Workers start at once, where new interpreters take seconds to import."
    fork = multiprocessing.get_context('fork')
    monkeypatch.setattr(shards_module.multiprocessing, 'get_context', lambda how: fork)

@pytest.mark.parametrize('source', ['csv.gz', 'frame', 'polars', 'datasets', 'folder of texts'])
def test_two_workers_give_the_same_shards(source, tmp_path, small, forked):
    (tmp_path/'s').mkdir()
    two,one = (build(SOURCES[source](tmp_path/'s'), tmp_path/str(n), 'text', workers=n) for n in (2, 1))
    same(two, whole())
    assert [f.name for f in two.ids.files] == [f.name for f in one.ids.files] and n_shards(two) > 4

def test_dask_runs_partitions_by_its_own_scheduler(tmp_path, monkeypatch):
    import dask
    ran = []
    def get(dsk, keys, **kwargs):
        ran.append(len(keys))
        return dask.get(dsk, keys, **kwargs)
    with dask.config.set(scheduler=get): same(build(bag(None), tmp_path/'c'), whole())
    assert ran and max(ran) >= 3

@pytest.mark.slow
def test_a_bag_runs_in_the_processes_of_dask(tmp_path):
    same(build(bag(None), tmp_path/'c'), whole())

@pytest.mark.slow
def test_a_client_of_distributed_runs_partitions(tmp_path):
    from distributed import Client, LocalCluster
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster):
        same(build(dask_frame(None), tmp_path/'c', 'text'), whole())

def dies(texts):
    "A word tokenizer that ends its process at one text."
    for t in texts:
        if ' u13' in t: os._exit(3)
        yield t.split()

def lives(texts): return (t.split() for t in texts)

def fails(texts): return ({}[w] for t in texts for w in t.split())

def test_a_worker_that_dies_is_an_error_that_keeps_what_is_finished(tmp_path, forked, monkeypatch):
    (tmp_path/'s').mkdir()
    source = SOURCES['csv'](tmp_path/'s')
    with pytest.raises(RuntimeError, match='A worker process died at partition .*csv or one of the next'):
        build(source, tmp_path/'c', 'text', workers=2, tokenizer=rf.TextTokenizer(dies))
    assert not (tmp_path/'c'/'corpus.json').exists() and len(pieces(tmp_path/'c')) <= 2
    with pytest.raises(ValueError, match='is not finished. Go on with Corpus.build'): Corpus.open(tmp_path/'c')
    lives_tok = rf.TextTokenizer(lives)
    same(build(source, tmp_path/'c', 'text', tokenizer=lives_tok), whole(tokenizer=lives_tok))

# ---- Killed

SCRIPT = """
    import os, sys
    import rnn_fastai.data.shards as shards
    from rnn_fastai.data.shards import Corpus
    {body}
    if __name__ == '__main__':
        Corpus.build(sys.argv[1], sys.argv[2], 'text', workers=int(sys.argv[3]), no_bar=True)
"""

def script(tmp_path, body, *args):
    "A Python that builds by `SCRIPT`, with `body` in it, which its workers run too."
    (tmp_path/'script.py').write_text(textwrap.dedent(SCRIPT).format(body=textwrap.dedent(body)))
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONWARNINGS': 'ignore'}
    return subprocess.Popen([sys.executable, str(tmp_path/'script.py'), *map(str, args)], text=True, env=env,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

SLOW = """
    import time
    write = shards._Count._write
    def slow(self, file, texts):
        write(self, file, texts)
        print('one', flush=True)
        time.sleep(0.3)
    shards._Count._write = slow
"""

def alive(pid):
    "Whether a process is there and no zombie."
    try: return ') Z ' not in Path(f'/proc/{pid}/stat').read_text()
    except FileNotFoundError: return False

def children(pid): return [int(c) for c in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]

@pytest.mark.slow
def test_a_script_that_its_workers_run_again_ends(tmp_path):
    "Without `if __name__ == '__main__'`, a worker would wait for the lock that its parent holds."
    (tmp_path/'script.py').write_text("from rnn_fastai.data.shards import Corpus\n"
                                      "Corpus.build(['a', 'b'], 'c', workers=2, no_bar=True)\n")
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONWARNINGS': 'ignore'}
    done = subprocess.run([sys.executable, 'script.py'], cwd=tmp_path, env=env, text=True, timeout=300,
                          capture_output=True)
    assert done.returncode == 1 and "below `if __name__ == '__main__':`" in done.stderr

@pytest.mark.parametrize('workers', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_build_goes_on_with_the_shards_that_are_whole(workers, tmp_path, monkeypatch):
    (tmp_path/'s').mkdir()
    source = SOURCES['csv'](tmp_path/'s')
    p = script(tmp_path, SLOW, source, tmp_path/'c', workers)
    assert p.stdout.readline() == 'one\n'
    workers = children(p.pid)
    p.kill(); p.communicate()
    left = pieces(tmp_path/'c')
    assert 1 <= len(left) < 4
    for _ in range(100):
        if not any(map(alive, workers)): break
        time.sleep(0.1)
    assert not any(map(alive, workers))   # no worker is left behind
    written,write = [],shards_module._Count._write
    def watched(self, file, texts):
        written.append(file)
        write(self, file, texts)
    monkeypatch.setattr(shards_module._Count, '_write', watched)
    same(build(source, tmp_path/'c', 'text'), whole())
    assert len(written) + len(left) == 3 and not set(written) & set(left)

class Killed(Exception): pass

def test_cut_at_any_write_the_build_goes_on(tmp_path, small, monkeypatch):
    "A build puts a number of files in place; others stop before each of them, and are built again."
    done,left,replace = 0,1000,os.replace
    def counted(a, b):
        nonlocal done
        if done == left: raise Killed
        done += 1
        return replace(a, b)
    monkeypatch.setattr(os, 'replace', counted)
    build(TEXTS, tmp_path/'c')
    total = done
    assert total > 15
    for at in range(total):
        done,left = 0,at
        with pytest.raises(Killed): build(TEXTS, tmp_path/str(at))
        left = 1000
        same(build(TEXTS, tmp_path/str(at)), whole())
        assert sorted(p.name for p in (tmp_path/str(at)).iterdir()) == ['corpus.json', 'ids', 'offsets.npy']
        assert done == total + (at == total-1)   # nothing was done twice but the small file of offsets, at the last

def test_killed_before_it_was_tidied(tmp_path, small, monkeypatch):
    "The corpus is there, and what it was made from too; the next build removes that."
    def stop(*args): raise Killed
    with monkeypatch.context() as m:
        m.setattr(shards_module, '_tidy', stop)
        with pytest.raises(Killed): build(TEXTS, tmp_path/'c')
    same(Corpus.open(tmp_path/'c'), whole())
    assert pieces(tmp_path/'c')
    same(build(TEXTS, tmp_path/'c'), whole())
    assert sorted(p.name for p in (tmp_path/'c').iterdir()) == ['corpus.json', 'ids', 'offsets.npy']

# ---- Bad input

BAD = {
    'csv': ('1.csv', 'n,text\n1,a\n2\n', "1.csv, line 3: found 1 fields, and none for the column 'text'"),
    'csv, too many': ('1.csv', 'n,text\n1,a,b\n', '1.csv, line 2: found 3 fields'),
    'csv, empty': ('1.csv', '', '1.csv is empty: it has no row of names'),
    'csv, no column': ('1.csv', 'n,texts\n1,a\n', "1.csv: text_col='text' is not a column .* Did you mean 'texts'"),
    'csv, other bytes': ('1.csv', b'n,text\n1,na\xefve\n', '1.csv is not valid UTF-8: byte 0xef .* line 2'),
    'jsonl': ('1.jsonl', '{"text": "a"}\n{"text": null}\n', "1.jsonl, line 2: the text of 'text' is missing"),
    'jsonl, cut': ('1.jsonl', '{"text": "a"}\n{"te', '1.jsonl, line 2 is no JSON'),
    'gz, cut': ('1.csv.gz', gzip.compress(b'n,text\n' + b'1,a\n'*999)[:-9], '1.csv.gz cannot be unpacked'),
    'parquet': ('1.parquet', b'PAR1 other', '1.parquet cannot be read as Parquet'),
    'text': ('1.txt', b'\xff', '1.txt is not valid UTF-8'),
}

@pytest.mark.parametrize('bad', BAD)
def test_a_bad_row_names_file_and_row(bad, tmp_path):
    name,data,fault = BAD[bad]
    (tmp_path/'s').mkdir()
    (tmp_path/'s'/name).write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(ValueError, match=fault): build(tmp_path/'s', tmp_path/'c', 'text')

def test_a_bad_row_of_parquet_and_of_tables(tmp_path, small):
    df = FRAME.astype(object)
    df.iloc[41, 1] = None
    df.to_parquet(tmp_path/'a.parquet')
    import polars as pl
    for source,where in ((tmp_path/'a.parquet', 'a.parquet: Column'), (pl.from_pandas(df), 'Rows 34 to 51: Column')):
        with pytest.raises(ValueError, match=f"{where} 'text' has 1 missing texts, the first in row 41"):
            build(source, tmp_path/'c', 'text')
    with pytest.raises(TypeError, match="a.parquet: Column 'n' holds 60 values that are not strings"):
        build(tmp_path/'a.parquet', tmp_path/'c', 'n')

def test_a_bad_row_of_dask_names_the_partition(tmp_path):
    import dask.bag as db
    for rows,err,fault in ((['a', 1], TypeError, 'Partition 1: Text 1 is no string but int'),
                           ([{'text': None}], ValueError, "Partition 1: Text 0: the text of 'text' is missing")):
        source = db.from_delayed([delayed(['a']), delayed(rows)])
        import dask
        with dask.config.set(scheduler='sync'), pytest.raises(err, match=fault): build(source, tmp_path/'c', 'text')

@pytest.mark.parametrize('source, err, fault', [
    ([], ValueError, 'The source has no texts'), (iter([]), ValueError, 'The source has no texts'),
    (pd.DataFrame({'text': []}), ValueError, 'no rows'), ('no/such/*.csv', FileNotFoundError, "no/such/\\*.csv"),
    (b'text', TypeError, 'bytes'), (['a', None], TypeError, 'Text 1 is no string but NoneType'),
    ({'a': 1}, TypeError, 'dict'), (5, TypeError, "'5' is of type int"), (None, TypeError, 'NoneType')])
def test_no_source(source, err, fault, tmp_path):
    with pytest.raises(err, match=fault): build(source, tmp_path/'c')

@pytest.mark.parametrize('name', ['table.tsv', 'paper.pdf', 'folder'])
def test_files_of_other_kinds_are_no_texts(name, tmp_path):
    (tmp_path/'s'/'folder').mkdir(parents=True)
    (tmp_path/'s'/'a.csv').write_text('text\nhello\n')
    if name != 'folder': (tmp_path/'s'/name).write_text('text\thello')
    for source in [str(tmp_path/'s'/(name[:3] + '*'))] + [tmp_path/'s'/name]*(name != 'folder'):
        with pytest.raises(ValueError, match=f'{name} is no .csv, .parquet, .jsonl or .txt file. Choose files by'):
            build(source, tmp_path/'c', 'text')

def test_names_of_files_are_not_taken_for_texts(tmp_path):
    (tmp_path/'a.csv').write_text('text\nhello\n')
    with pytest.raises(ValueError, match=r'is the name of a file. For its content, give paths: .Path.f. for f in'):
        build([str(tmp_path/'a.csv')], tmp_path/'c', 'text')
    same(build(['a.csv'], tmp_path/'c'), whole(['a.csv']))   # no such file: a text

def test_an_error_of_the_tokenizer_names_the_texts(tmp_path, small):
    (tmp_path/'a.jsonl').write_text('{"text": "one two three"}\n'*20 + '{"text": "half \\ud800"}\n')
    with pytest.raises(ValueError, match=r"a.jsonl, texts from number 16 on: Text 4 holds '.ud800'"):
        build(tmp_path/'a.jsonl', tmp_path/'c', 'text')
    with pytest.raises(RuntimeError, match="a.jsonl, texts from number 0 on: the tokenizer failed with KeyError: 'xxbos'"):
        build(tmp_path/'a.jsonl', tmp_path/'c', 'text', tokenizer=rf.TextTokenizer(fails))

@pytest.mark.parametrize('how, err, fault', [(dict(min_freq='x'), TypeError, "min_freq='x'"),
                                             (dict(max_vocab=0), ValueError, 'max_vocab=0')])
def test_settings_are_checked_before_any_text_is_read(how, err, fault, tmp_path):
    def texts():
        raise AssertionError
        yield
    with pytest.raises((ValueError, TypeError), match=fault): build(texts(), tmp_path/'c', **how)

def test_tokenizers_and_vocabularies_of_other_types(tmp_path):
    vocab = ['xxunk', 'xxbos', 'film']
    same(build(TEXTS, tmp_path/'v', vocab=iter(vocab)), whole(vocab=vocab))
    same(build(TEXTS, tmp_path/'c', tokenizer=rf.CharTokenizer), whole(tokenizer=rf.CharTokenizer()))
    same(build(TEXTS, tmp_path/'f', tokenizer=lives), whole(tokenizer=rf.TextTokenizer(lives)))

def test_all_files_empty(tmp_path):
    (tmp_path/'s').mkdir()
    for i in range(2): (tmp_path/'s'/f'{i}.csv').write_text('text\n')
    with pytest.raises(ValueError, match='The source has no texts'): build(tmp_path/'s', tmp_path/'c')

def test_a_source_that_changed_since_the_killed_build(tmp_path, small, monkeypatch):
    "What changed is counted again, and nothing of the old text is left."
    (tmp_path/'s').mkdir()
    source = SOURCES['csv'](tmp_path/'s')
    def stop(*args): raise Killed
    with monkeypatch.context() as m:
        m.setattr(shards_module, '_add_up', stop)
        with pytest.raises(Killed): build(source, tmp_path/'c', 'text')
    df = FRAMES[2].assign(text=make_texts(27, seed=7))
    csv(df, source/'2.csv')
    texts = [*TEXTS[:13], *df.text, *TEXTS[40:]]
    corpus = build(source, tmp_path/'c', 'text')
    same(corpus, whole(texts))
    assert {f.name for f in (tmp_path/'c'/'ids').iterdir()} == {f.name for f in corpus.ids.files}
    csv(FRAMES[2], source/'2.csv')
    with pytest.raises(FileExistsError, match='corpus of other texts'): build(source, tmp_path/'c', 'text')
    same(Corpus.open(tmp_path/'c'), whole(texts))

def lives_backwards(texts): return (t.split()[::-1] for t in texts)

def test_a_killed_build_of_another_tokenizer_gives_no_shards(tmp_path, small, monkeypatch):
    "The texts and the vocabulary are the same, and all shards were there."
    vocab = ['xxunk', 'film', 'good', 'the']
    def stop(*args, **kwargs): raise Killed
    for cut in (lives, lives_backwards):
        tok = rf.TextTokenizer(cut, rules=[])
        with monkeypatch.context() as m:
            m.setattr(shards_module, 'write_sharded', stop)
            with pytest.raises(Killed): build(TEXTS, tmp_path/'c', tokenizer=tok, vocab=vocab)
        assert len(list((tmp_path/'c'/'ids').iterdir())) == len(pieces(tmp_path/'c')) > 4
    same(build(TEXTS, tmp_path/'c', tokenizer=tok, vocab=vocab), whole(tokenizer=tok, vocab=vocab))

class Changing:
    "Other texts at each reading."
    n = 0
    def __iter__(self):
        self.n += 1
        return iter(make_texts(seed=self.n))

def test_a_source_that_changes_between_training_and_counting(tmp_path):
    with pytest.raises(ValueError, match='The source gave other texts when it was read again'):
        build(Changing(), tmp_path/'c', tokenizer=rf.ByteLevelTokenizer(300))
    with pytest.raises(ValueError, match='the tokenizer must be trained before'):
        build(iter(TEXTS), tmp_path/'c', tokenizer=rf.ByteLevelTokenizer(300))

def test_a_tokenizer_learns_from_all_parts(tmp_path, small):
    want = whole(tokenizer=rf.ByteLevelTokenizer(300))
    for i,source in enumerate((TEXTS, bag(None))):
        tok = rf.ByteLevelTokenizer(300)
        import dask
        with dask.config.set(scheduler='sync'): same(build(source, tmp_path/str(i), tokenizer=tok), want)
        assert tok.trained

@pytest.mark.parametrize('at', ['_Count', 'save_array', 'write_sharded'])
def test_a_full_disk(at, tmp_path, small, monkeypatch):
    "It says what is kept, leaves no part of a file, and the build goes on when there is room."
    n = 0
    def full(*args, **kwargs):
        nonlocal n
        n += 1
        if n == 2 or at == 'write_sharded': raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **kwargs)
    with monkeypatch.context() as m:
        owner,name = (np, 'savez') if at == '_Count' else (shards_module, at)
        real = getattr(owner, name)
        m.setattr(owner, name, full)
        with pytest.raises(OSError, match='could not be written .No space left on device.. What is finished is kept') as e:
            build(TEXTS, tmp_path/'c')
        assert e.value.errno == errno.ENOSPC
    assert not list((tmp_path/'c').rglob('.*')) and not (tmp_path/'c'/'corpus.json').exists()
    kept = {p: p.stat().st_mtime_ns for p in pieces(tmp_path/'c')}
    assert kept
    same(build(TEXTS, tmp_path/'c'), whole())

def test_other_things_in_the_folder_stay(tmp_path):
    (tmp_path/'notes').write_text('mine')
    with pytest.raises(FileExistsError, match='holds other things .notes.'): build(TEXTS, tmp_path)
    assert (tmp_path/'notes').read_text() == 'mine'
    whole().save(tmp_path/'flat')
    with pytest.raises(FileExistsError, match='holds other things .ids.npy.'): build(TEXTS, tmp_path/'flat')

def test_arguments_that_do_not_go_together(tmp_path):
    with pytest.raises(ValueError, match='workers=0'): build(TEXTS, tmp_path/'c', workers=0)
    with pytest.raises(ValueError, match='An iterator is read in one process'): build(iter(TEXTS), tmp_path/'c', workers=2)
    bare = rf.TextTokenizer(lambda ts: (t.split() for t in ts), rules=[])
    with pytest.raises(TypeError, match='tokenizer cannot be sent to workers'): build(TEXTS, tmp_path/'c', tokenizer=bare, workers=2)

def damage(name, f):
    def change(p):
        file = sorted((p/name).iterdir())[1] if (p/name).is_dir() else p/name
        data = f(file.read_bytes())
        file.unlink()   # a mapped file must not change
        if data is not None: file.write_bytes(data)
    return change

@pytest.mark.parametrize('change', [
    damage('ids', lambda b: b[:-1]), damage('ids', lambda b: None), damage('offsets.npy', lambda b: b[:-1] + b'\1'),
    damage('corpus.json', lambda b: b.replace(b'film', b'Film')), damage('corpus.json', lambda b: b[:-5])])
def test_a_damaged_corpus_is_not_opened(change, tmp_path, small):
    build(TEXTS, tmp_path/'c')
    change(tmp_path/'c')
    with pytest.raises(ValueError, match='is damaged'): Corpus.open(tmp_path/'c')

def test_a_damaged_list_of_shards_is_named(tmp_path, small):
    build(TEXTS, tmp_path/'c')
    damage('corpus.json', lambda b: b[:-5])(tmp_path/'c')
    with pytest.raises(ValueError, match='corpus.json is not the JSON that was written'): build(TEXTS, tmp_path/'c')

def test_two_builds_at_once_give_one_corpus(tmp_path, small):
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(3) as pool:
        for corpus in pool.map(lambda _: build(TEXTS, tmp_path/'c'), range(3)): same(corpus, whole())

# ---- Reading

@pytest.fixture(scope='module')
def sharded(tmp_path_factory):
    "A corpus of 40 shards and the same in one array; documents of 0 to 60 tokens."
    rng = np.random.default_rng(3)
    docs = [rng.integers(0, 500, n) for n in rng.integers(0, 60, 800)]
    d = tmp_path_factory.mktemp('sharded')
    vocab = ['xxunk', 'xxpad', *map(str, range(2, 500))]
    flat = Corpus.from_ids(docs, vocab)
    (d/'ids').mkdir()
    for k in range(40): shards_module.save_array(d/'ids'/f'{k}', flat.ids[flat.offsets[20*k]:flat.offsets[20*k+20]])
    shards_module.write_sharded(d, [str(k) for k in range(40)], flat.offsets, vocab)
    return Corpus.open(d),flat

@pytest.mark.parametrize('backwards', [False, True])
@pytest.mark.parametrize('shuffle', [False, True])
def test_batches_of_a_language_model(sharded, shuffle, backwards):
    got = []
    for corpus in sharded:
        rf.set_seed(0)
        dl = rf.LMDataLoader(rf.LMDataset(corpus, backwards=backwards), bs=8, seq_len=13, shuffle=shuffle)
        got.append([b for _ in range(2) for b in dl])
    assert len(got[0]) == len(got[1]) > 100
    assert all(np.array_equal(a[k], b[k]) for a,b in zip(*got, strict=True) for k in (0, 1))

@pytest.mark.parametrize('backwards', [False, True])
def test_batches_of_documents(sharded, backwards):
    got = []
    for corpus in sharded:
        rf.set_seed(0)
        docs = np.flatnonzero(corpus.lens)
        dl = rf.DocDataLoader(rf.DocDataset(corpus, docs, backwards=backwards), bs=32, shuffle=True)
        got.append([x for x, in dl])
    assert len(got[0]) == len(got[1]) > 20
    assert all(np.array_equal(a, b) and np.array_equal(a.lens, b.lens) for a,b in zip(*got, strict=True))

@pytest.mark.parametrize('long', [0, 32, 10**9])
def test_slices_of_any_shape(sharded, long, monkeypatch):
    array,flat = (c.ids for c in sharded)
    monkeypatch.setattr(ShardedArray, '_long', long)
    rng = np.random.default_rng(0)
    for most in (3, 50, 3000):   # within a shard, over an edge, over several shards
        starts = rng.integers(0, len(flat), 50)
        n = np.minimum(rng.integers(0, most, 50), len(flat) - starts)
        for back in (False, True): assert np.array_equal(gather(array, starts, n, back), gather(flat, starts, n, back))
        assert all(map(np.array_equal, slices_of(array, starts, n), slices_of(flat, starts, n)))
        at = rng.integers(-len(flat), len(flat), (4, 9))
        assert np.array_equal(array[at], flat[at]) and array[at].dtype == flat.dtype
    for a,b in ((0, 0), (5, len(flat)), (-3, None), (len(flat), len(flat)), (700, 20)): assert np.array_equal(array[a:b], flat[a:b])

def test_an_index_means_what_it_means_to_numpy(sharded):
    array,flat = (c.ids for c in sharded)
    mask = np.arange(len(flat)) % 3 == 0
    for at in (mask, [], [True]*len(flat), np.uint8(3), [[1, 2], [-1, 0]], slice(None, None, -7)):
        assert np.array_equal(array[at], flat[at]) and np.shape(array[at]) == np.shape(flat[at])
    for at in (mask[:-1], np.append(mask, True), [False]*5, True, 1.5, [1.0], (1, 2), 'a'):
        with pytest.raises(IndexError, match=f'is no index of {len(flat)} values: give a slice, whole numbers'): array[at]

def test_one_document_is_read_in_place(sharded):
    corpus,flat = sharded
    doc = corpus[5]
    assert doc.base is not None and not doc.flags.writeable and np.array_equal(doc, flat[5])
    assert all(map(np.array_equal, corpus, flat))

def test_pickled_by_name_and_saved_as_one(sharded, tmp_path):
    corpus,flat = sharded
    assert len(pickle.dumps(corpus.ids)) < 5000
    same(pickle.loads(pickle.dumps(corpus)), flat)
    again = Corpus.open(corpus.save(tmp_path/'flat'))
    assert isinstance(again.ids, np.ndarray)
    same(again, flat)

def test_loaders_of_a_corpus(sharded):
    corpus,flat = sharded
    got = [rf.TextDataLoaders.from_corpus(c, valid_pct=0.25, seed=1, bs=8, seq_len=9, shuffle=False) for c in sharded]
    for a,b in zip(*got, strict=True):
        assert len(a) == len(b) and all(np.array_equal(x, y) for (x, _),(y, _) in zip(a, b, strict=True))
    assert len(got[0].valid_ds) == 200 and not set(got[0].train_ds.docs.tolist()) & set(got[0].valid_ds.docs.tolist())
    assert got[0].vocab == flat.vocab
    with pytest.raises(TypeError, match='corpus is of type str; give a Corpus, e.g. Corpus.open'):
        rf.TextDataLoaders.from_corpus('corpus')

def chi_square(table):
    want = table.sum(0)*table.sum(1)[:, None]/table.sum()
    return ((table - want)**2/want).sum()

def orders(loader, n):
    for seed in range(n):
        rf.set_seed(seed)
        yield loader()

def test_documents_of_each_shard_are_spread_evenly(sharded):
    "Shards against tenths of the epoch: chi-square over 40 seeds has the mean and the spread of its distribution."
    corpus = sharded[0]
    dl = rf.LMDataLoader(rf.LMDataset(corpus), bs=8, seq_len=13, shuffle=True)
    def lm():
        dl.randomize(); dl.shuffle_fn([])
        return dl.docs
    free = 39*9   # degrees of freedom
    values = []
    for order in orders(lm, 40):
        assert sorted(order.tolist()) == list(range(800))
        table = np.zeros((40, 10))
        np.add.at(table, (order // 20, np.arange(800) // 80), 1)
        values.append(chi_square(table))
    assert abs(np.mean(values) - free*800/799) < 4*(2*free/40)**0.5, np.mean(values)
    assert max(values) < free + 5*(2*free)**0.5
    in_order = np.zeros((40, 10))
    np.add.at(in_order, (np.arange(800) // 20, np.arange(800) // 80), 1)
    assert chi_square(in_order) > 10*free   # what the test is against: shards one after the other

def test_nothing_is_read_to_shuffle(sharded, monkeypatch):
    corpus = sharded[0]
    def read(*args, **kwargs): raise AssertionError('ids were read')
    for name in ('__getitem__', 'slices', 'gather'): monkeypatch.setattr(ShardedArray, name, read)
    dl = rf.LMDataLoader(rf.LMDataset(corpus), bs=8, seq_len=13, shuffle=True)
    dl.randomize(); dl.shuffle_fn([])
    docs = rf.DocDataLoader(rf.DocDataset(corpus, np.flatnonzero(corpus.lens)), bs=8, shuffle=True)
    docs.randomize()
    assert len(docs.get_idxs()) == (corpus.lens > 0).sum()
    with pytest.raises(AssertionError, match='ids were read'): next(iter(dl))
