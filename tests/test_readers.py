"Files of strangers: CSV with its faults, texts, column files with comments, word vectors."
import bz2
import csv
import gzip
import io
import lzma
import random
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rnn_fastai.all as rf
from rnn_fastai.data import texts as texts_module
from rnn_fastai.data.texts import read_csv, texts_of

BASE = dict(bs=2, seed=1, device='cpu', no_bar=True)

def write(path, data, encoding='utf8'):
    "A file of these bytes, or of this text, packed as its suffix says."
    data = data if isinstance(data, bytes) else data.encode(encoding)
    pack = {'.xz': lzma.compress, '.gz': gzip.compress, '.bz2': bz2.compress}.get(path.suffix, bytes)
    if path.suffix == '.zip':
        with zipfile.ZipFile(path, 'w') as z: z.writestr('a.csv', data)
    else: path.write_bytes(pack(data))
    return path

# ---- CSV: every door

DOORS = {
    'texts_of': lambda f: list(texts_of(f, 'text')),
    'Corpus': lambda f: rf.Corpus.from_texts(f, 'text', no_bar=True),
    'read_csv': lambda f: read_csv(f, dict(text_col='text'), dict(label_col='label')),
    'from_csv': lambda f: rf.TextDataLoaders.from_csv(f.parent, f.name, text_col='text', label_col='label', **BASE),
    'from_csv by place': lambda f: rf.TextDataLoaders.from_csv(f.parent, f.name, **BASE),
    'from_csv lm': lambda f: rf.TextDataLoaders.from_csv(f.parent, f.name, text_col='text', is_lm=True, **BASE)}

GOOD = 'text,label\n' + 'a fine film,pos\nnot so fine,neg\n'*4

FAULTS = {
    'every row': (GOOD.replace('\n', ',\n').replace('label,', 'label'), "line 2: found 3 fields, expected 2 as in line 1"),
    'every row, a field': ('text,label\na,pos,x\nb,neg,x\n', "line 2: found 3 fields"),
    'one row': (GOOD + 'a fine, long film,pos\n', "line 10: found 3 fields, expected 2"),
    'after a text of two lines': ('text,label\n"a\nb",pos\n\nc,d,neg\n', "line 5: found 3 fields"),
    'CR alone': ('text,label\ra,pos\rb,c,neg\r', "line 3: found 3 fields"),
    'CRLF': ('text,label\r\na,pos\r\nb,c,neg\r\n', "line 3: found 3 fields"),
    'open quote': (GOOD + '"never closed,neg\na,pos\n', "line 10: a quote opens in this row and is not closed"),
    'empty': ('', "is empty"), 'blank lines': ('\n\n', "is empty"), 'header': ('text,label\n', "has no rows"),
    'latin-1': (GOOD.replace('not', 'n\xf6t').encode('latin-1'), "not valid UTF-8: byte 0xf6 at position 28, line 3"),
    'UTF-16': (GOOD.encode('utf-16'), "not valid UTF-8: byte 0xff at position 0, line 1. It starts as UTF-16"),
    'UTF-16 without a mark': (GOOD.encode('utf-16-le'), "has zero bytes, as UTF-16"),
    'Parquet': (b'PAR1' + bytes(range(256)), "is a Parquet file"),
    'two columns of one name': ('text,text,label\na,b,pos\n', "'text' names several columns")}

@pytest.mark.parametrize('door', DOORS)
@pytest.mark.parametrize('fault', FAULTS)
def test_faults_of_csv_files_are_named(tmp_path, door, fault):
    data,said = FAULTS[fault]
    with pytest.raises(ValueError) as e: DOORS[door](write(tmp_path/'faulty.csv', data))
    assert 'faulty.csv' in str(e.value) and said in str(e.value), str(e.value)

@pytest.mark.parametrize('suffix', ['.xz', '.gz', '.bz2', '.zip'])
def test_faults_of_packed_files(tmp_path, suffix):
    read = DOORS['texts_of']
    assert read(write(tmp_path/f'a.csv{suffix}', GOOD))[0] == 'a fine film'
    with pytest.raises(ValueError, match=f"a.csv{suffix}, line 10: found 3"):
        read(write(tmp_path/f'a.csv{suffix}', GOOD + 'a,b,c'))
    with pytest.raises(ValueError, match=f"a.csv{suffix} is not valid UTF-8: byte 0xe9 at position {len(GOOD)}, line 10"):
        read(write(tmp_path/f'a.csv{suffix}', GOOD.encode() + b'\xe9'))
    (tmp_path/f'a.csv{suffix}').write_bytes(b'no archive')
    with pytest.raises(ValueError, match=f"a.csv{suffix} cannot be unpacked"): read(tmp_path/f'a.csv{suffix}')

def test_short_rows(tmp_path):
    "A row may lack what nobody asked for, and nothing else."
    file = write(tmp_path/'a.csv', 'label,text,note\npos,a,x\nneg,b\npos\n')
    assert list(texts_of(file, 'label')) == ['pos', 'neg', 'pos']
    with pytest.raises(ValueError, match="a.csv, line 4: found 1 fields, and none for the column 'text'"):
        list(texts_of(file, 'text'))
    with pytest.raises(ValueError, match="line 3: .* none for the column 'note'"):
        read_csv(file, dict(text_col='label'), dict(valid_col='note'))
    assert read_csv(file).note.isna().tolist() == [False, True, True]

@pytest.mark.parametrize('door', ['texts_of', 'Corpus'])
def test_a_csv_file_named_parquet(tmp_path, door):
    with pytest.raises(ValueError, match="a.parquet cannot be read as Parquet"):
        DOORS[door](write(tmp_path/'a.parquet', GOOD))

@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
@pytest.mark.parametrize('mark', ['', '\ufeff'])
def test_texts_stay_as_they_stand(tmp_path, end, mark):
    odd = ['null', 'NA', 'None', 'nan', 'NaN', 'n/a', '', '7', '1e5', 'True', 'a\u2028b\x85c', ' x ', '"q"', 'a,b', 'a\nb']
    with open(tmp_path/'a.csv', 'w', encoding='utf8', newline='') as f:
        f.write(mark)
        csv.writer(f, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([['text', 'label'], *([t, 'NA'] for t in odd)])
    assert list(texts_of(tmp_path/'a.csv', 'text')) == odd
    df = read_csv(tmp_path/'a.csv', dict(text_col=0))
    assert df.text.tolist() == odd and df.label.tolist() == ['NA']*len(odd) and df.columns.tolist() == ['text', 'label']

def test_numbers_stay_numbers_and_labels_names(tmp_path):
    rows = [f'{t},{i},{i/2},{"NA" if i % 2 else "x"},{i == 0}' for i,t in enumerate(['7', '8', '9', '10'])]
    write(tmp_path/'labels.csv', '\n'.join(['text,n,x,name,flag', *rows]))
    df = read_csv(tmp_path/'labels.csv', dict(text_col='text'))
    assert df.text.tolist() == ['7', '8', '9', '10'] and df.name.tolist() == ['x', 'NA']*2
    assert [df[c].dtype for c in ('n', 'x', 'flag')] == [np.int64, np.float64, np.bool_]
    dls = rf.TextDataLoaders.from_csv(tmp_path, text_col='text', label_col='name', valid_col='flag', bs=1, device='cpu',
                                      val_bs=1, no_bar=True)
    assert dls.vocab[1] == ['NA', 'x']
    write(tmp_path/'labels.csv', 'text,label\n' + 'a,1\n'*3 + 'b,\n' + 'c,2\n'*3)
    with pytest.raises(ValueError, match='row 3|missing'): rf.TextDataLoaders.from_csv(tmp_path, **BASE)

def test_a_column_has_one_type_however_long(tmp_path):
    "pandas guesses for each part of a large file: labels '1' would be a number in one and a string in another."
    write(tmp_path/'a.csv', 'text,label\n' + 'a,1\n'*300_000 + 'b,x\n')
    assert set(read_csv(tmp_path/'a.csv', dict(text_col=0)).label) == {'1', 'x'}

def random_frame(rng):
    "Texts of odd characters, and columns of several types."
    n,chars = rng.randint(1, 12), 'ab,"\'\n\r\r\n;#|\t é\u2028\u00a0'
    text = lambda: rng.choice(['', 'null', 'a']) if rng.random() < 0.3 else 'x' + ''.join(rng.choices(chars, k=rng.randint(0, 9)))
    return pd.DataFrame({'n': [rng.randint(-9, 9) for _ in range(n)], 'text': [text() for _ in range(n)],
                         'x': [rng.choice([None, rng.random()]) for _ in range(n)], 'other': [text() for _ in range(n)],
                         'flag': [rng.random() < 0.5 for _ in range(n)]})

@pytest.mark.parametrize('seed', range(25))
def test_well_formed_files_as_pandas_reads_them(tmp_path, seed):
    rng = random.Random(seed)
    df,sep = random_frame(rng),rng.choice(',;\t|')
    df.to_csv(tmp_path/'a.csv', index=rng.random() < 0.5, sep=sep, quoting=csv.QUOTE_NONNUMERIC)
    got = read_csv(tmp_path/'a.csv', dict(a='text', b=['other']), delimiter=sep)
    want = pd.read_csv(tmp_path/'a.csv', sep=sep, keep_default_na=False, na_values={c: [''] for c in 'n x flag'.split()},
                       dtype=dict(text=str, other=str))
    pd.testing.assert_frame_equal(got, want)
    assert got.text.tolist() == df.text.tolist()
    if sep == ',': assert list(texts_of(tmp_path/'a.csv', 'text')) == df.text.tolist()

def test_texts_come_while_a_file_is_read(tmp_path):
    "The first texts of a file are there although its end is damaged."
    file = write(tmp_path/'a.csv', GOOD*2000 + 'a,b,c,d\n')
    texts = texts_of(file, 'text')
    assert [next(texts) for _ in range(3)] == ['a fine film', 'not so fine', 'a fine film']
    with pytest.raises(ValueError, match="line 18001: found 4 fields"): list(texts)

@pytest.mark.parametrize('sep', [',', '\t', ';', '|'])
def test_delimiters_are_found_in_the_header(tmp_path, sep):
    file = write(tmp_path/'labels.csv', (sep.join(['\n"text"', 'la bel']) + '\n' + f'a: "b" c{sep}pos\nd{sep}neg\n'*4))
    assert list(texts_of(file, 'text'))[:2] == ['a: "b" c', 'd']
    assert read_csv(file)['la bel'].tolist() == ['pos', 'neg']*4
    assert rf.TextDataLoaders.from_csv(tmp_path, **BASE).vocab[1] == ['neg', 'pos']   # as fastai does
    notes = write(tmp_path/'b.csv', f'a note\n\ntext{sep}n\na{sep}1\n')
    assert read_csv(notes, header=1).to_dict('list') == dict(text=['a'], n=[1])
    with pytest.raises(ValueError, match="header=-1 must be"): read_csv(notes, header=-1)
    with pytest.raises(ValueError, match="b.csv is empty"): read_csv(notes, header=7)

def test_long_fields(tmp_path):
    long = 'word '*100_000   # Python's csv module stops at 131,072 characters by default
    assert list(texts_of(write(tmp_path/'a.csv', f'text\n{long}\n'))) == [long]

# ---- Text files

def test_text_files(tmp_path):
    for name,data in {'a': b'\xef\xbb\xbfgreat film', 'b': b'great\r\nfilm', 'c': 'grëat'.encode()}.items():
        write(tmp_path/f'{name}.txt', data)
    assert list(texts_of(tmp_path)) == ['great film', 'great\nfilm', 'grëat']
    assert 'great' in rf.Corpus.from_texts(tmp_path, min_freq=1, no_bar=True).vocab
    write(tmp_path/'d.txt', 'text'.encode('utf-16'))
    with pytest.raises(ValueError, match="d.txt is not valid UTF-8: byte 0xff at position 0, line 1. It starts as UTF-16"):
        list(texts_of(tmp_path))

def test_byte_order_mark_in_a_folder_of_labels(tmp_path):
    for i in range(6):
        for part in ('train', 'valid'):
            (tmp_path/part/'ab'[i % 2]).mkdir(parents=True, exist_ok=True)
            write(tmp_path/part/'ab'[i % 2]/f'{i}.txt', b'\xef\xbb\xbfgreat film')
    dls = rf.TextDataLoaders.from_folder(tmp_path, bs=2, device='cpu', no_bar=True)
    assert 'great' in dls.vocab[0] and not [t for t in dls.vocab[0] if '\ufeff' in t]
