"Files of strangers: CSV with its faults, texts, column files with comments, word vectors."
import bz2
import csv
import gzip
import io
import lzma
import random
import zipfile

import numpy as np
import pandas as pd
import pytest

import rnn_fastai.all as rf
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
    'every row': (GOOD.replace('\n', ',\n').replace('label,', 'label'),
                  "line 2: found 3 fields, expected 2 as in line 1"),
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
    with pytest.raises(ValueError, match=f"a.csv{suffix} is not valid.*byte 0xe9 at position {len(GOOD)}, line 10"):
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
    odd = ['null', 'NA', 'None', 'nan', 'NaN', 'n/a', '', '7', '1e5', 'True', 'a\u2028b\x85c', ' x ',
           '"q"', 'a,b', 'a\nb']
    with open(tmp_path/'a.csv', 'w', encoding='utf8', newline='') as f:
        f.write(mark)
        rows = [['text', 'label'], *([t, 'NA'] for t in odd)]
        csv.writer(f, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(rows)
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
    def text():
        if rng.random() < 0.3: return rng.choice(['', 'null', 'a'])
        return 'x' + ''.join(rng.choices(chars, k=rng.randint(0, 9)))
    return pd.DataFrame({'n': [rng.randint(-9, 9) for _ in range(n)], 'text': [text() for _ in range(n)],
                         'x': [rng.choice([None, rng.random()]) for _ in range(n)], 'other': [text() for _ in range(n)],
                         'flag': [rng.random() < 0.5 for _ in range(n)]})

@pytest.mark.parametrize('seed', range(25))
def test_well_formed_files_as_pandas_reads_them(tmp_path, seed):
    rng = random.Random(seed)
    df,sep = random_frame(rng),rng.choice(',;\t|')
    df.to_csv(tmp_path/'a.csv', index=rng.random() < 0.5, sep=sep, quoting=csv.QUOTE_NONNUMERIC)
    got = read_csv(tmp_path/'a.csv', dict(a='text', b=['other']), delimiter=sep)
    want = pd.read_csv(tmp_path/'a.csv', sep=sep, keep_default_na=False, dtype=dict(text=str, other=str),
                       na_values={c: [''] for c in 'n x flag'.split()})
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
    with pytest.raises(ValueError, match="d.txt is not valid UTF-8: byte 0xff at position 0, line 1. It starts as"):
        list(texts_of(tmp_path))

def test_byte_order_mark_in_a_folder_of_labels(tmp_path):
    for i in range(6):
        for part in ('train', 'valid'):
            (tmp_path/part/'ab'[i % 2]).mkdir(parents=True, exist_ok=True)
            write(tmp_path/part/'ab'[i % 2]/f'{i}.txt', b'\xef\xbb\xbfgreat film')
    dls = rf.TextDataLoaders.from_folder(tmp_path, bs=2, device='cpu', no_bar=True)
    assert 'great' in dls.vocab[0] and not [t for t in dls.vocab[0] if '\ufeff' in t]

# ---- Word vectors

@pytest.mark.filterwarnings('ignore:overflow')
@pytest.mark.parametrize('bad', ['nan', 'inf', '-inf', 'NaN', '1e39'])
@pytest.mark.parametrize('name', ['v.txt', 'v.vec.gz', 'v.json'])
def test_vectors_that_are_not_finite_are_named(tmp_path, name, bad):
    number = {'nan': 'NaN', 'inf': 'Infinity', '-inf': '-Infinity'}.get(bad, bad)
    data = f'{{"the": [1, 2], "of": [3, {number}]}}' if 'json' in name else f'the 1 2\nof 3 {bad}\n'
    file,where = write(tmp_path/name, data),'v.json' if 'json' in name else f'{name}, line 2'
    with pytest.raises(ValueError, match=f"{where}: the vector of 'of' has the value -?(nan|inf). Leave the word out"):
        rf.read_vectors(file)
    with pytest.raises(ValueError, match=f"{where}: the vector of 'of'"): rf.word_vectors(['the', 'of', 'x'], file)
    assert rf.read_vectors(file, ['the'])['the'].tolist() == [1, 2]
    assert np.isfinite(rf.word_vectors(['the', 'x'], rf.read_vectors(file, ['the']))[0]).all()
    with pytest.raises(ValueError, match="vectors: the vector of 'of' has the value -?(nan|inf)"):
        rf.word_vectors(['the', 'of'], dict(the=[1, 2], of=[3, float(bad)]))

def test_forms_of_vector_files(tmp_path):
    want = {'great': [1., 2.], 'a b': [3., 4.], '\u00a0': [5., 6.], 'x\u2028y\x85': [7., 8.], '9': [9., 9.]}
    lines = [f'{w} {a} {b}' for w,(a,b) in want.items()]
    for head in ('', '\ufeff', '5 2\n', '\ufeff5 2 \n'):
        for end in ('\n', '\r\n', ' \n', '\n\n'):
            for suffix in ('', '.gz', '.zip'):
                got = rf.read_vectors(write(tmp_path/f'v.txt{suffix}', head + end.join([*lines, ''])))
                assert {w: v.tolist() for w,v in got.items()} == want
    file = write(tmp_path/'v.json', '\ufeff{"great": [1, 2]}')
    assert rf.read_vectors(file)['great'].tolist() == [1, 2]

@pytest.mark.parametrize('data,said', [
    ('2 3\nthe 1 2\n', "line 2: 1 numbers|line 2: 2 numbers|line 1"), ('the 1 2\nof 1 2 x\n', "line 2: 'of 1' is not"),
    ('the 1 2\n\nof 1\n', "line 3: 1 numbers"), ('the 1 2\n'.encode('utf-16'), "not valid UTF-8.*UTF-16"),
    (b'the 1 2\nna\xefve 1 2\n', "byte 0xef at position 10, line 2")])
def test_faults_of_vector_files(tmp_path, data, said):
    with pytest.raises(ValueError, match=f"v.txt.*({said})"): rf.read_vectors(write(tmp_path/'v.txt', data))
    with pytest.raises(ValueError, match="is a folder"): rf.read_vectors(tmp_path)
    with pytest.raises(ValueError, match=r"differ in length: \[1, 2\] numbers"):
        rf.word_vectors('ab', dict(a=[1], b=[1, 2]))

# ---- Files of columns

def columns(text, **kwargs):
    df = rf.read_columns(io.StringIO(text, newline=''), **kwargs)
    return list(zip(df.tokens.tolist(), df.tags.tolist(), strict=True))

NER = [(['#', 'EU'], ['O', 'B-ORG']), (['#tag', '='], ['O', 'O'])]   # tokens that start as comments do

def layout(sep, end, n_cols, comments=()):
    "The sentences of `NER` as a file, each after the comments."
    middle = sep.join(['X']*(n_cols-2))
    rows = [[sep.join(filter(None, (w, middle, t))) for w,t in zip(*s, strict=True)] for s in NER]
    return end.join(line for r in rows for line in [*comments, *r, ''])

@pytest.mark.parametrize('sep', ['\t', ' '])
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
@pytest.mark.parametrize('n_cols', [2, 3, 4])
def test_comments_and_ends_of_lines(sep, end, n_cols):
    for comments in ([], ['# sent_id = 1'], ['# newdoc id = a.b', '# text = # EU', '# a longer note about it'],
                     ['# text ='], ['', '# newpar', ''], ['# a = b = c']):
        text = layout(sep, end, n_cols, comments)
        for t in (text, '\ufeff' + text, text + end*3): assert columns(t) == NER
        if sep == '\t': assert columns(text, sep=sep) == NER

@pytest.mark.parametrize('text,kwargs,said', [
    ('# sent_id = 1\n# a note\n\na O\nb\n', {}, 'line 5: found 1 column, expected 2 as in line 4'),
    ('# sent_id = 1\ra O\rb\r', {}, 'line 3: found 1 column'),
    ('a O\n# a comment amid words\n', {}, "line 2: found 5 columns.*Is it a comment. Then pass comment='#'"),
    ('a\tO\n#tag\n', {}, 'line 2: found 1 column'),
    ('a O\n\n# x = 1\n', dict(comment=''), 'line 3: found 4 columns, expected 2 as in line 1'),
    ('# only = comments\n# and\n', dict(comment='#'), 'holds no sentence'), ('# text = a\n', {}, 'holds no sentence'),
    ('a\tO\t\n', {}, 'line 1: an empty token or tag'), ('a\tO\nb\tO\t\n', {}, 'line 2: found 3 columns'),
    ('a\tO\nb\t \n', dict(sep='\t'), 'line 2: an empty token or tag')])
def test_faults_of_column_files(text, kwargs, said):
    with pytest.raises(ValueError, match=said): columns(text, **kwargs)

def test_comments_that_are_said_outright():
    assert columns('%% a b\na O\n%% c\nb O\n', comment='%%') == [(['a', 'b'], ['O', 'O'])]
    assert columns('#a O\nb O\n', comment='#') == [(['b'], ['O'])]
    assert columns('# sent_id = 1\na B C D\n', comment='') == [(['#', 'a'], ['1', 'D'])]

@pytest.mark.parametrize('sep', [None, '\t', '|'])
def test_blanks_around_fields_are_no_part_of_them(sep):
    lines = [f'a{sep or chr(9)}O ', f'b{sep or chr(9)}O', f' c {sep or chr(9)} O']
    assert columns('\n'.join(lines), sep=sep) == [(['a', 'b', 'c'], ['O']*3)]

def test_white_space_within_tokens():
    for token in ('a\u00a0b', 'a\u2028b', 'a\x85b', '\u3000', 'a\x0bb'):
        assert columns(f'{token} O\nc O') == columns(f'{token}\tO\nc\tO') == [([token, 'c'], ['O', 'O'])]

def test_conllu_with_ends_of_lines_of_all_kinds():
    text = '# sent_id = 1\n1\t#\t_\tX\t_\t_\t0\troot\t_\t_\n\n\n# sent_id = 2\n# text = a\n'
    text += '1\ta\t_\tX\t_\t_\t0\troot\t_\t_\n2\tb\n'
    for end in ('\n', '\r\n', '\r'):
        good = text.rsplit('2\tb', 1)[0].replace('\n', end)
        df = rf.read_conllu(io.StringIO(good, newline=''), ['upos'])
        assert (df.tokens.tolist(), df.sent_id.tolist()) == ([['#'], ['a']], ['1', '2'])
        with pytest.raises(ValueError, match='line 8: found 2 columns'):
            rf.read_conllu(io.StringIO(text.replace('\n', end), newline=''))

# ---- Fields between what a pattern matches

@pytest.mark.parametrize('pattern,between', [('::', '::'), (r'\^', '^'), (r'\s*;\s*', ' ;  '), (r'\t+', '\t\t')])
def test_fields_between_patterns_equal_those_of_pandas(pattern, between, tmp_path):
    rows = [['text', 'label', 'n'], ['a "b" c', 'NA', '1'], ['007', 'x', '2'], ['null', 'y', '2.5']]
    file = tmp_path/'a.csv'
    file.write_text('\ufeff' + '\r\n'.join([between.join(r) for r in rows] + ['', '']), encoding='utf8')
    want = pd.read_csv(file, sep=pattern, engine='python', keep_default_na=False, dtype={'text': str}, encoding='utf-8-sig')
    got = rf.read_csv(file, dict(text_col='text'), delimiter=pattern)
    assert got.to_dict('list') == want.to_dict('list')
    numbered = rf.read_csv(file, dict(text_col=0), header=None, delimiter=pattern)
    assert numbered[0].tolist() == [r[0] for r in rows]

@pytest.mark.parametrize('text,match', [('text::label\na::x\nb::y::\n', r'a\.csv, line 3: found 3 fields, expected 2'),
                                        ('text::label\na::x::\nb::y::\n', r'a\.csv, line 2: found 3 fields'),
                                        ('text::label\n\na\n', r"a\.csv, line 3: found 1 fields, and none for .*'label'"),
                                        ('', r'a\.csv is empty'), ('text::label\n', r'a\.csv has no rows')])
def test_faults_between_patterns_are_named(text, match, tmp_path):
    (tmp_path/'a.csv').write_text(text)
    with pytest.raises(ValueError, match=match):
        rf.TextDataLoaders.from_csv(tmp_path, 'a.csv', text_col='text', label_col='label', delimiter='::')

def test_a_pattern_that_is_none(tmp_path):
    (tmp_path/'a.csv').write_text('text,label\n')
    with pytest.raises(ValueError, match=r"delimiter='\(,' is no pattern"): rf.read_csv(tmp_path/'a.csv', delimiter='(,')

@pytest.mark.parametrize('source', [1, None, b'text', {'a': 'text'}])
def test_what_holds_no_texts_is_named(source):
    with pytest.raises(TypeError, match=f'is of type {type(source).__name__}; texts come as a frame'): texts_of(source)
    with pytest.raises(TypeError, match=f'df is of type {type(source).__name__}; it must be a frame'):
        rf.TextDataLoaders.from_df(source)
