"Readers of tagged sentences on wild input, and the public sets from every place they may lie in, broken ones too."
import bz2
import csv
import gzip
import hashlib
import io
import lzma
import os
import random
import re
import socketserver
import tarfile
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pandas as pd
import pytest
from fastai.data.external import fastai_cfg

from rnn_fastai.data import sets
from rnn_fastai.data.conll import file_text, read_columns, read_conllu

SHARED = Path(os.environ.get('RNN_FASTAI_DATA', Path(__file__).resolve().parents[2]/'shared'/'data'))
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the folder of public sets, {SHARED}, is missing")
PACK = {'.txt': bytes, '.xz': lzma.compress, '.gz': gzip.compress, '.bz2': bz2.compress}
UPOS = set('ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X'.split())

def packed(path, text):
    "Write `text` to `path`, packed as its suffix tells."
    data = text.encode()
    if path.suffix == '.zip':
        with zipfile.ZipFile(path, 'w') as z: z.writestr('folder/', ''); z.writestr('folder/a.txt', data)
    else: path.write_bytes(PACK[path.suffix](data))
    return path

def word(i, form='a', upos='X', head='0'): return f'{i}\t{form}\t_\t{upos}\t_\t_\t{head}\troot\t_\t_'
def stream(text): return io.StringIO(text, newline='')

TREES = f"# sent_id = 1\n# text = a  b\n{word(1)}\n{word(2, 'b', 'Y', '1')}\n\n{word(1, 'c')}\n\n"
COLS = 'a O\nb B-x\n\nc O\n\n'

# ---- The text of a file

@pytest.mark.parametrize('suffix', [*PACK, '.zip', '.XZ'])
def test_packed_files_are_read_as_they_are(tmp_path, suffix):
    text = 'naïve\r\n\u2028 \x85\n\n'
    path = tmp_path/f'a{suffix.lower()}'
    packed(path, text)
    path = path.rename(path.with_suffix(suffix))
    assert file_text(path) == file_text(str(path)) == text

@pytest.mark.parametrize('suffix', ['.xz', '.gz', '.bz2', '.zip'])
def test_broken_archives_are_named(tmp_path, suffix):
    path = packed(tmp_path/f'a{suffix}', 'some text'*100)
    whole = path.read_bytes()
    for data in (whole[:-6], whole[:20], b'no archive at all'):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"a\{suffix} cannot be unpacked as \{suffix}"): file_text(path)

@pytest.mark.parametrize('n', [0, 2])
def test_a_zip_holds_one_file(tmp_path, n):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        for i in range(n): z.writestr(f'{i}.txt', 'a')
    with pytest.raises(ValueError, match=f"it holds {n} files, and one is expected"): file_text(tmp_path/'a.zip')

@pytest.mark.parametrize('read', [file_text, read_conllu, read_columns])
def test_missing_file(tmp_path, read):
    (tmp_path/'aa.txt').write_text('a O')
    said = f"There is no file a.txt in the folder '{tmp_path}'. Did you mean 'aa.txt'?"
    with pytest.raises(FileNotFoundError, match=re.escape(said)): read(tmp_path/'a.txt')
    with pytest.raises(FileNotFoundError, match="There is no folder '.*b', so no file a.txt in it"): read(tmp_path/'b'/'a.txt')

@pytest.mark.parametrize('read', [file_text, read_conllu, read_columns])
def test_invalid_utf8_names_file_and_line(tmp_path, read):
    (tmp_path/'a.txt').write_bytes(b'one\ntwo\nna\xefve O\n')
    path = tmp_path/'a.txt'
    with pytest.raises(ValueError, match="a.txt is not valid UTF-8: byte 0xef at position 10, line 3"): read(path)
    with open(path, encoding='utf8') as f, pytest.raises(ValueError, match="a.txt is not valid UTF-8"): read(f)

# ---- Readers

@pytest.mark.parametrize('read,text', [(read_conllu, TREES), (read_columns, COLS)], ids=['conllu', 'columns'])
def test_forms_of_a_file_make_no_difference(tmp_path, read, text):
    df = read(stream(text))
    assert len(df) == 2
    for other in (text.rstrip('\n'), text[:-1], '\n\n'+text+'\n\n', '\ufeff'+text, text.replace('\n\n', '\n \t\n\n')):
        for lines in (other, other.replace('\n', '\r\n')):
            assert read(stream(lines)).equals(df)
            assert read(io.BytesIO(lines.encode())).equals(df)
            for suffix in [*PACK, '.zip']: assert read(packed(tmp_path/f'a{suffix}', lines)).equals(df)
    with open(tmp_path/'a.txt', encoding='utf8') as f: assert read(f).equals(df)

def test_read_conllu_values():
    df = read_conllu(stream(TREES))
    assert df.columns.tolist() == 'sent_id text tokens lemma upos xpos feats head deprel'.split()
    assert df.iloc[0].tolist() == ['1', 'a  b', ['a', 'b'], ['_']*2, ['X', 'Y'], ['_']*2, ['_']*2, [0, 1], ['root']*2]
    assert df.sent_id[1] is None and df.text[1] is None
    assert read_conllu(stream(TREES), []).columns.tolist() == ['sent_id', 'text', 'tokens']
    assert read_conllu(stream(TREES), iter(['misc', 'head'])).columns.tolist()[3:] == ['misc', 'head']

def test_ranges_and_empty_nodes_are_no_words():
    rest = '\t_'*8
    rows = [f'0.1\te{rest}', f'1-2\tab{rest}', word(1), word(2, 'b'), f'2.1\te{rest}', f'2.2\te{rest}',
            word(3, 'c', head='_')]
    df = read_conllu(stream('\n'.join(rows)))
    assert df.tokens[0] == ['a', 'b', 'c'] and df['head'][0] == [0, 0, None]

@pytest.mark.parametrize('line,match', [
    ('3\tc', "line 5: found 2 columns, expected 10 with tabs between: ID FORM LEMMA"),
    ('c', "line 5: found 1 column, expected 10"), (word(3)+'\t_', "line 5: found 11 columns, expected 10"),
    (word(3).replace('\t', ' '), "line 5: found 1 column"), (word(2), "line 5: found ID '2', expected 3"),
    (word('x'), "line 5: found ID 'x', expected 3"), (word('03'), "line 5: found ID '03'"),
    (word('³'), "line 5: found ID '³'"),
    (word('3-'), "line 5: found ID '3-'"), (word(3, head='-1'), "line 5: found HEAD '-1'"),
    (word(3, head='²'), "line 5: found HEAD '²'"), (word(3, head=''), "line 5: found HEAD ''"),
    (word(3, form=''), "line 5: found an empty FORM")])
def test_bad_conllu_lines_are_named(tmp_path, line, match):
    path = packed(tmp_path/'a.xz', TREES.replace('\n\n', f'\n{line}\n\n', 1))
    with pytest.raises(ValueError, match=f"a.xz, {match}"): read_conllu(path)

@pytest.mark.parametrize('line,match', [
    ('x', "line 3: found 1 column, expected 2 as in line 1. The line: 'x'"),
    ('x y O', "line 3: found 3 columns, expected 2 as in line 1")])
def test_bad_column_lines_are_named(tmp_path, line, match):
    path = packed(tmp_path/'a.gz', COLS.replace('\n\n', f'\n{line}\n\n', 1))
    with pytest.raises(ValueError, match=f"a.gz, {match}"): read_columns(path)

@pytest.mark.parametrize('read', [read_conllu, read_columns])
@pytest.mark.parametrize('text', ['', '\n\n', '\ufeff', ' \n\t\r\n'])
def test_no_sentence_at_all(tmp_path, read, text):
    with pytest.raises(ValueError, match="a.bz2 holds no sentence"): read(packed(tmp_path/'a.bz2', text))
    with pytest.raises(ValueError, match="the stream holds no sentence"): read(stream(text))

def test_comments_or_marks_alone_are_no_sentence():
    with pytest.raises(ValueError, match="no sentence"): read_conllu(stream('# text = a\n\n1-2\tab'+'\t_'*8))
    with pytest.raises(ValueError, match="no sentence"): read_columns(stream('-DOCSTART- -X- O O\n\n'))

def test_unknown_fields():
    for f in ('pos', 'form', 'id', 3):
        with pytest.raises(ValueError, match=f"fields has {f!r}, which is no column of CoNLL-U"):
            read_conllu(stream(TREES), [f])

def test_columns_by_number_and_separator():
    text = 'O|a b|X\nB|c|Y\n'
    df = read_columns(stream(text), sep='|', token_col=1, tag_col=0)
    assert df.tokens[0] == ['a b', 'c'] and df.tags[0] == ['O', 'B']
    assert read_columns(stream(text), sep='|', token_col=-2).tags[0] == ['X', 'Y']
    for kwargs in (dict(tag_col=3), dict(token_col=-4)):
        with pytest.raises(ValueError, match="is not a column: the stream, line 1 has 3, from 0 to 2"):
            read_columns(stream(text), sep='|', **kwargs)
    with pytest.raises(ValueError, match="sep='' divides nothing"): read_columns(stream(text), sep='')
    with pytest.raises(ValueError, match="line 1: found 1 column, expected at least 2"):
        read_columns(stream(text), sep=';')
    with pytest.raises(ValueError, match="line 1: an empty token or tag"): read_columns(stream('\tO\n'))

def test_tabs_or_blanks():
    assert read_columns(stream('New York\tLOC\n')).tokens[0] == ['New York']
    assert read_columns(stream('a\u00a0b   O  \n')).tokens[0] == ['a\u00a0b']
    with pytest.raises(ValueError, match="line 2: found 1 column"): read_columns(stream('a\tO\nb O\n'))

def test_docstart_parts_sentences():
    assert read_columns(stream('-DOCSTART- O\na O\n-DOCSTART-\nb O\n')).tokens.tolist() == [['a'], ['b']]

def test_round_trips_of_wild_tokens(tmp_path, monkeypatch):
    monkeypatch.setenv('HYPOTHESIS_STORAGE_DIRECTORY', str(tmp_path))
    hyp,st = pytest.importorskip('hypothesis'),pytest.importorskip('hypothesis.strategies')
    chars = st.characters(blacklist_characters='\t\n\r ', blacklist_categories=['Cs'])
    wild = st.text(chars, min_size=1, max_size=6)
    sents = st.lists(st.lists(st.tuples(wild, wild), min_size=1, max_size=6), min_size=1, max_size=5)

    @hyp.settings(deadline=None, max_examples=200)
    @hyp.given(sents, st.sampled_from(['\n', '\r\n']), st.sampled_from(['', '\n', '\n\n']))
    def check(sents, nl, end):
        tokens,tags = ([[pair[i] for pair in s] for s in sents] for i in (0, 1))
        df = read_conllu(stream('\n\n'.join('\n'.join(word(i, *pair) for i,pair in enumerate(s, 1)) for s in sents)
                                .replace('\n', nl) + end))
        assert (df.tokens.tolist(), df.upos.tolist()) == (tokens, tags)
        if sents[0][0][0].startswith(('\ufeff', '-DOCSTART-')): return
        for sep in '\t ':
            lines = '\n\n'.join('\n'.join(sep.join(pair) for pair in s) for s in sents)
            if any(line.isspace() for line in lines.split('\n')): continue   # all of it white space: a blank line
            df = read_columns(stream(lines.replace('\n', nl) + end))
            assert (df.tokens.tolist(), df.tags.tolist()) == (tokens, tags)
    check()

# ---- Downloads

@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    "No set lies anywhere, and downloads go to a folder of the test."
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path/'home'))
    monkeypatch.delenv('RNN_FASTAI_DATA', raising=False)
    fastai_cfg.cache_clear()
    yield
    fastai_cfg.cache_clear()

def digest(path, algo='sha256'): return f'{algo}:{hashlib.new(algo, path.read_bytes()).hexdigest()}'
def files(folder): return sorted(str(p.relative_to(folder)) for p in folder.rglob('*') if not p.is_dir())

@pytest.mark.parametrize('algo', ['md5', 'sha256', 'SHA256'])
def test_fetch_file(tmp_path, algo):
    src,dest = tmp_path/'a b.txt',tmp_path/'x'/'y'/'b.txt'
    src.write_bytes(os.urandom(200_000))
    good = digest(src, algo.lower()).replace(algo.lower(), algo)
    assert sets.fetch_file(src.as_uri(), str(dest), good) == dest
    assert dest.read_bytes() == src.read_bytes() and files(tmp_path/'x') == ['y/b.txt']
    src.unlink()
    assert sets.fetch_file(src.as_uri(), dest, good) == dest      # nothing is fetched
    dest.write_bytes(b'changed')
    with pytest.raises(RuntimeError, match="The file there now has"): sets.fetch_file(src.as_uri(), dest, good)
    assert dest.read_bytes() == b'changed'

def test_a_bad_file_is_replaced(tmp_path):
    src,dest = tmp_path/'a.txt',tmp_path/'b.txt'
    src.write_text('right')
    dest.write_text('wrong')
    sets.fetch_file(src.as_uri(), dest, digest(src))
    assert dest.read_text() == 'right'

def test_another_checksum_leaves_nothing(tmp_path):
    src,dest = tmp_path/'a.txt',tmp_path/'x'/'b.txt'
    src.write_text('changed at its source')
    with pytest.raises(RuntimeError) as e: sets.fetch_file(src.as_uri(), dest, 'md5:' + 'f'*32)
    for part in (src.as_uri(), str(dest), digest(src, 'md5')[4:], 'f'*32, "try again, or put the right file at"):
        assert part in str(e.value)
    assert list((tmp_path/'x').iterdir()) == []

@pytest.mark.parametrize('url', ['file:///nowhere/a.txt', 'http://127.0.0.1:9/a.txt', 'nonsense', 'http://'])
def test_no_network(tmp_path, url):
    with pytest.raises(RuntimeError, match=f"Could not fetch {url}: .*Put the file at {tmp_path/'x'/'a.txt'}, or set"):
        sets.fetch_file(url, tmp_path/'x'/'a.txt', 'md5:' + '0'*32)
    assert list((tmp_path/'x').iterdir()) == []

@pytest.mark.parametrize('bad', ['', 'md5', 'md5:', 'sha1:00', '0'*32])
def test_digest_needs_its_kind(tmp_path, bad):
    with pytest.raises(ValueError, match=f"digest={bad!r} must be a checksum with its kind first"):
        sets.fetch_file('file:///a', tmp_path/'a', bad)

class Server(BaseHTTPRequestHandler):
    "Gives 1,000 bytes for /whole, half of them for /half, and an error for anything else."
    def do_GET(self):
        if self.path not in ('/whole', '/half', '/unknown'): return self.send_error(503)
        self.send_response(200)
        if self.path != '/unknown': self.send_header('Content-Length', '1000')
        self.end_headers()
        self.wfile.write(b'x'*(500 if self.path == '/half' else 1000))
    def log_message(self, *args): pass

@pytest.fixture
def server():
    with socketserver.ThreadingTCPServer(('127.0.0.1', 0), Server) as s:
        threading.Thread(target=s.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{s.server_address[1]}'
        s.shutdown()

def test_cut_connections(tmp_path, server, monkeypatch):
    monkeypatch.setenv('no_proxy', '*')
    dest,good = tmp_path/'x'/'a','sha256:' + hashlib.sha256(b'x'*1000).hexdigest()
    with pytest.raises(RuntimeError, match="ended after 500 of 1,000 bytes"):
        sets.fetch_file(f'{server}/half', dest, good)
    with pytest.raises(RuntimeError, match="503"): sets.fetch_file(f'{server}/other', dest, good)
    assert list(dest.parent.iterdir()) == []
    for name in ('whole', 'unknown'):
        assert sets.fetch_file(f'{server}/{name}', dest, good).read_bytes() == b'x'*1000
        dest.unlink()

def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    class Cut:
        headers,n_reads = {},0
        def __enter__(self): return self
        def __exit__(self, *args): pass
        def read(self, n):
            self.n_reads += 1
            if self.n_reads == 1: return b'abc'
            raise KeyboardInterrupt
    monkeypatch.setattr(sets, 'urlopen', lambda *args, **kwargs: Cut())
    with pytest.raises(KeyboardInterrupt): sets.fetch_file('http://a', tmp_path/'x'/'a', 'md5:' + '0'*32)
    assert list((tmp_path/'x').iterdir()) == []

# ---- Small sets in all layouts

REVIEWS = {'train/neg/0_3': 'Dull.', 'train/neg/9_2': 'NA', 'train/neg/10_1': 'No "plot",\r\nnone,\rno.',
           'train/pos/0_9': 'Très bon!', 'test/neg/0_2': '10', 'test/pos/0_10': "don't",
           'train/unsup/0_0': '', 'train/unsup/1_0': '\x85\u2028'}   # in the order of label and number
WIKI = ' \n = A = \n \n a <unk> . \n = x , W = \n = y \n \n = = B = = \n \n b \n \n = C = \n \n c \n'

def make_tree(root):
    for name,text in REVIEWS.items():
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        (root/f'{name}.txt').write_bytes(text.encode())
        (root/name).with_name('notes.html').write_text('no review')
    return root

def make_csv(folder, suffix):
    folder.mkdir(parents=True)
    for split in ('train', 'test', 'unsup'):
        rows = []
        for name,text in REVIEWS.items():
            part,label,stem = name.split('/')
            if split != ('unsup' if label == 'unsup' else part): continue
            rows.append(dict(file=f'{name}.txt', label=label, rating=int(stem.split('_')[1]), text=text))
        pd.DataFrame(rows).to_csv(folder/f'imdb_{split}.csv{suffix}', index=False, quoting=csv.QUOTE_ALL)

def serve(monkeypatch, name, url, digests=None):
    "Let a set come from another address."
    s = sets._SETS[name]
    monkeypatch.setitem(sets._SETS, name, replace(s, url=url, digests=digests or s.digests))

def serve_imdb(monkeypatch, archive):
    serve(monkeypatch, 'imdb', archive.as_uri(), dict.fromkeys(['train', 'test', 'unsup'], digest(archive, 'md5')))

def make_archive(path):
    with tarfile.open(path, 'w:gz') as tar: tar.add(make_tree(path.parent/'aclImdb'), 'aclImdb')
    return path

def test_all_sources_of_imdb_agree(tmp_path, monkeypatch):
    make_csv(tmp_path/'csv'/'imdb', '')
    make_csv(tmp_path/'xz'/'imdb', '.xz')
    make_tree(tmp_path/'tree1'/'imdb'/'aclImdb')
    make_tree(tmp_path/'tree2'/'aclImdb')
    archive = make_archive(tmp_path/'aclImdb_v1.tar.gz')
    serve_imdb(monkeypatch, archive)
    frames = []
    for place in ('csv', 'xz', 'tree1', 'tree2', 'nowhere'):
        monkeypatch.setenv('RNN_FASTAI_DATA', str(tmp_path/place))
        frames.append(sets.imdb(['train', 'test', 'unsup']))
    monkeypatch.setenv('RNN_FASTAI_DATA', '')
    archive.unlink()
    frames.append(sets.imdb(('train', 'test', 'unsup')))        # from what was kept
    assert all(df.equals(frames[0]) for df in frames)
    df = frames[0]
    assert df.columns.tolist() == ['text', 'label', 'rating', 'split', 'is_valid']
    assert df.text.tolist() == list(REVIEWS.values())
    assert df.rating.tolist() == [3, 2, 1, 9, 2, 10, 0, 0] and df.is_valid.tolist() == [False]*4 + [True]*2 + [False]*2
    assert files(tmp_path/'home'/'data'/'rnn_fastai'/'imdb') == [
        'aclImdb_v1.tar.gz', 'imdb_test.csv', 'imdb_train.csv', 'imdb_unsup.csv']

def test_splits_in_the_order_asked_for(tmp_path, monkeypatch):
    make_csv(tmp_path/'imdb', '.xz')
    monkeypatch.setenv('RNN_FASTAI_DATA', str(tmp_path))
    df = sets.imdb(['unsup', 'test'])
    assert df.split.tolist() == ['unsup']*2 + ['test']*2 and df.index.tolist() == [0, 1, 2, 3]
    assert sets.imdb('test').equals(sets.imdb(('test',)))

def test_a_split_that_is_missing_is_downloaded(tmp_path, monkeypatch):
    make_csv(tmp_path/'imdb', '')
    (tmp_path/'imdb'/'imdb_test.csv').unlink()
    archive = make_archive(tmp_path/'a.tar.gz')
    serve_imdb(monkeypatch, archive)
    (tmp_path/'aclImdb').rename(tmp_path/'away')
    monkeypatch.setenv('RNN_FASTAI_DATA', str(tmp_path))
    assert sets.imdb().split.tolist() == ['train']*4 + ['test']*2

def test_evil_members_of_an_archive_touch_nothing(tmp_path, monkeypatch):
    make_tree(tmp_path/'aclImdb')
    (tmp_path/'secret.txt').write_text('secret')
    outside = str(tmp_path/'outside.txt')
    with tarfile.open(tmp_path/'evil.tar.gz', 'w:gz') as tar:
        tar.add(tmp_path/'aclImdb', 'aclImdb')
        for name in ('../evil.txt', '../../../../evil.txt', outside, 'aclImdb/../../evil.txt',
                     'aclImdb/train/pos/x/7_7.txt', 'aclImdb/train/pos/../../../../7_7.txt',
                     '/aclImdb/train/pos/7_7.txt', '../aclImdb/train/pos/7_7.txt'):
            tar.addfile(tarfile.TarInfo(name))
        for i,(kind,to) in enumerate(((tarfile.SYMTYPE, str(tmp_path/'secret.txt')), (tarfile.LNKTYPE, '../secret.txt'),
                                      (tarfile.SYMTYPE, '0_9.txt'), (tarfile.FIFOTYPE, ''), (tarfile.CHRTYPE, ''))):
            info = tarfile.TarInfo(f'aclImdb/train/pos/{i+100}_9.txt')
            info.type,info.linkname = kind,to
            tar.addfile(info)
    before = files(tmp_path)
    serve_imdb(monkeypatch, tmp_path/'evil.tar.gz')
    df = sets.imdb(['train', 'test', 'unsup'])
    assert sorted(df.text) == sorted(REVIEWS.values())
    new = set(files(tmp_path)) - set(before)
    kept = ('evil.tar.gz', 'imdb_train.csv', 'imdb_test.csv', 'imdb_unsup.csv')
    assert new == {'home/config.ini', *(f'home/data/rnn_fastai/imdb/{n}' for n in kept)}
    assert not list(tmp_path.parent.glob('*evil*.txt')) and not list(tmp_path.parent.parent.glob('*evil*.txt'))

def test_faulty_imdb_files(tmp_path, monkeypatch):
    monkeypatch.setenv('RNN_FASTAI_DATA', str(tmp_path))
    make_csv(tmp_path/'imdb', '')
    path = tmp_path/'imdb'/'imdb_train.csv'
    for text,match in (('', "imdb_train.csv is empty"),
                       ('a,b\n1,2', "imdb_train.csv: label='label' is not a column"),
                       ('label,rating,text\nneg,x,a', "imdb_train.csv: column 'rating' holds other values than int"),
                       ('label,rating,text\nneg,,a', "imdb_train.csv: column 'rating' holds other values than int")):
        path.write_text(text)
        with pytest.raises(ValueError, match=match): sets.imdb('train')
    path.write_bytes(b'label,rating,text\nneg,1,na\xefve')
    with pytest.raises(ValueError, match="imdb_train.csv is not valid UTF-8"): sets.imdb('train')
    path.unlink()
    path.with_name('imdb_train.csv.xz').write_bytes(b'no archive')
    with pytest.raises(ValueError, match="imdb_train.csv.xz cannot be unpacked"): sets.imdb('train')
    path.with_name('imdb_train.csv.xz').unlink()
    tree = make_tree(tmp_path/'aclImdb')
    for p in (tree/'train'/'pos').iterdir(): p.unlink()
    with pytest.raises(ValueError, match="pos holds no reviews"): sets.imdb('train')
    (tree/'test'/'neg'/'1_1.txt').write_bytes(b'\xff')
    (tmp_path/'imdb'/'imdb_test.csv').unlink()
    with pytest.raises(ValueError, match="1_1.txt is not valid UTF-8"): sets.imdb('test')

SAMPLE = 'label,text,is_valid\nnegative,"Dull, long",False\npositive,null,True\n'

@pytest.mark.parametrize('suffix', ['', '.xz'])
def test_imdb_sample(tmp_path, monkeypatch, suffix):
    monkeypatch.setenv('RNN_FASTAI_DATA', str(tmp_path))
    (tmp_path/'imdb_sample').mkdir()
    data = SAMPLE.encode()
    (tmp_path/'imdb_sample'/f'texts.csv{suffix}').write_bytes(lzma.compress(data) if suffix else data)
    df = sets.imdb_sample()
    assert df.columns.tolist() == ['label', 'text', 'is_valid']
    assert df.text.tolist() == ['Dull, long', 'null'] and df.is_valid.tolist() == [False, True]

def test_imdb_sample_through_fastai(tmp_path, monkeypatch):
    (tmp_path/'imdb_sample').mkdir()
    (tmp_path/'imdb_sample'/'texts.csv').write_text(SAMPLE)
    with tarfile.open(tmp_path/'imdb_sample.tgz', 'w:gz') as tar: tar.add(tmp_path/'imdb_sample', 'imdb_sample')
    serve(monkeypatch, 'imdb_sample', (tmp_path/'imdb_sample.tgz').as_uri())
    assert sets.imdb_sample().label.tolist() == ['negative', 'positive']
    assert (tmp_path/'home'/'data'/'imdb_sample'/'texts.csv').exists()

@pytest.mark.parametrize('name,get,splits,texts', [
    ('wikitext2', sets.wikitext2, ('train', 'valid', 'test'), WIKI),
    ('ud_ewt', sets.ud_ewt, ('train', 'dev', 'test'), TREES)])
def test_raw_files_from_every_place(tmp_path, monkeypatch, name, get, splits, texts):
    s = sets._SETS[name]
    for place in ('plain', 'xz'): (tmp_path/place/s.folder).mkdir(parents=True)
    for split in splits:
        path = tmp_path/'plain'/s.folder/s.file.format(split)
        path.write_bytes(texts.encode())
        (tmp_path/'xz'/s.folder/f'{path.name}.xz').write_bytes(lzma.compress(texts.encode()))
    serve(monkeypatch, name, f"{(tmp_path/'plain').as_uri()}/{s.folder}/{s.file}", dict.fromkeys(splits, digest(path)))
    frames = []
    for place in ('plain', 'xz', 'nowhere', '', 'nowhere'):
        monkeypatch.setenv('RNN_FASTAI_DATA', str(tmp_path/place) if place else '')
        frames.append(get())
    assert all(df.equals(frames[0]) for df in frames)
    assert frames[0].split.tolist() == [s for s in splits for _ in range(2)]
    assert frames[0].is_valid.tolist() == [False]*2 + [True]*4
    assert files(tmp_path/'home'/'data'/'rnn_fastai'/s.folder) == sorted(map(s.file.format, splits))
    kept = tmp_path/'home'/'data'/'rnn_fastai'/s.folder/s.file.format('test')
    kept.write_text('broken')                                     # is fetched again
    assert get().equals(frames[0])

def test_articles_joined_are_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv('RNN_FASTAI_DATA', str(tmp_path))
    (tmp_path/'wikitext-2').mkdir()
    rng = random.Random(0)
    lines = [' \n', '\n', ' \n = T = \n \n', ' = T = \n', ' = = S = = \n', ' word <unk> . \n', ' = x , W = \n', ' \r\n',
             ' = T = \r\n', ' a\u2028b\x85c \n', ' = T = ']
    n_raised = 0
    for _ in range(300):
        raw = ''.join(rng.choices(lines, k=rng.randint(0, 12))).encode()
        (tmp_path/'wikitext-2'/'train.txt').write_bytes(raw)
        try: df = sets.wikitext2('train')
        except ValueError as e: n_raised += "train.txt holds no articles" in str(e)
        else: assert ''.join(df.text).encode() == raw
    assert 20 < n_raised < 200

def test_what_starts_an_article():
    assert sets._articles(WIKI) == [WIKI[:WIKI.index(' = C')], WIKI[WIKI.index(' = C'):]]
    assert sets._articles(' = A = \n\nb') == [' = A = \n\nb']
    assert sets._articles('x\n\n = A = ') == ['x\n\n = A = ']
    for text in ('', ' = A = \nb', 'a\n = A = \n\n', ' = = A = = \n', '= A =\n'):
        with pytest.raises(ValueError, match="no line ' = Title = '"): sets._articles(text)

GETTERS = {'imdb': sets.imdb, 'imdb_sample': sets.imdb_sample, 'wikitext2': sets.wikitext2, 'ud_ewt': sets.ud_ewt}

@pytest.mark.parametrize('name', GETTERS)
def test_nowhere_to_be_had(tmp_path, monkeypatch, name):
    s = sets._SETS[name]
    serve(monkeypatch, name, f"file:///nowhere/{s.url.rsplit('/', 1)[1]}")
    with pytest.raises(RuntimeError, match="Could not fetch file:///nowhere/.*RNN_FASTAI_DATA is not set") as e:
        GETTERS[name]()
    assert re.search(f"Put the .*file at {tmp_path/'home'/'data'}.*/{s.folder}/", str(e.value))
    assert f"in it may be: {s.folder}/{s.file.format('train')}, {s.folder}/{s.file.format('train')}.xz" in str(e.value)
    monkeypatch.setenv('RNN_FASTAI_DATA', str(tmp_path/'empty'))
    with pytest.raises(RuntimeError, match=f"RNN_FASTAI_DATA='{tmp_path/'empty'}' has none of: {s.folder}/"):
        GETTERS[name]()

@pytest.mark.parametrize('name', ['imdb', 'wikitext2', 'ud_ewt'])
def test_unknown_splits(name):
    for splits in ('trains', ['train', 'trains'], ('trains',)):
        with pytest.raises(ValueError, match=f"{name} has no split 'trains'. Did you mean 'train'"):
            GETTERS[name](splits)
    for splits in ([], ['train', 'train']):
        with pytest.raises(ValueError, match="must name splits, each of them once"): GETTERS[name](splits)

# ---- The sets themselves

@pytest.fixture
def shared(monkeypatch):
    monkeypatch.setenv('RNN_FASTAI_DATA', str(SHARED))

def n_words(texts, splits): return texts.str.split().str.len().groupby(splits).sum().to_dict()

@needs_shared
def test_imdb_sample_whole(shared):
    df = sets.imdb_sample()
    assert (len(df), int(df.is_valid.sum())) == (1000, 200)
    assert df.groupby(['is_valid', 'label']).size().tolist() == [417, 383, 107, 93]
    assert df.text.str.split().str.len().sum() == 247_797

@needs_shared
def test_wikitext2_whole(shared):
    df = sets.wikitext2()
    assert df.groupby('split', sort=False).size().to_dict() == {'train': 600, 'valid': 60, 'test': 60}
    for split,part in df.groupby('split'):
        raw = ''.join(part.text).encode()
        assert 'sha256:' + hashlib.sha256(raw).hexdigest() == sets._SETS['wikitext2'].digests[split]
    assert n_words(df.text, df.split) == {'train': 2_051_910, 'valid': 213_886, 'test': 241_211}
    assert df.is_valid.sum() == 120

@needs_shared
def test_ud_ewt_whole(shared):
    df = sets.ud_ewt()
    assert df.groupby('split', sort=False).size().to_dict() == {'train': 12_544, 'dev': 2001, 'test': 2077}
    assert df.tokens.str.len().groupby(df.split).sum().to_dict() == {'train': 204_577, 'dev': 25_147, 'test': 25_094}
    assert {t for tags in df.upos for t in tags} == UPOS and len(UPOS) == 17
    assert len({t for tags in df.xpos for t in tags}) == 49
    assert df.sent_id.notna().all() and df.text.notna().all() and df.sent_id.is_unique
    assert all(h.count(0) == 1 and max(h) <= len(h) for h in df['head'])
    n = df.tokens.str.len()
    for f in ('lemma', 'upos', 'xpos', 'feats', 'head', 'deprel'): assert (df[f].str.len() == n).all()

@needs_shared
@pytest.mark.parametrize('split', ['train', 'dev', 'test'])
def test_raw_ud_ewt_has_the_checksum(split):
    raw = file_text(SHARED/'ud_ewt'/f'en_ewt-ud-{split}.conllu.xz').encode()
    assert 'sha256:' + hashlib.sha256(raw).hexdigest() == sets._SETS['ud_ewt'].digests[split]

def members(df):
    "Name below aclImdb and text of each review, by its place in the frame."
    parts,number = df.split.replace('unsup', 'train'),df.groupby(['split', 'label']).cumcount()
    return [(f'{part}/{label}/{i}_{rating}.txt', text)
            for part,label,i,rating,text in zip(parts, df.label, number, df.rating, df.text, strict=True)]

@needs_shared
@pytest.mark.slow
def test_imdb_whole(shared):
    df = sets.imdb(['train', 'test', 'unsup'])
    assert df.groupby(['split', 'label']).size().to_dict() == {
        ('train', 'neg'): 12_500, ('train', 'pos'): 12_500, ('test', 'neg'): 12_500, ('test', 'pos'): 12_500,
        ('unsup', 'unsup'): 50_000}
    assert n_words(df.text, df.split) == {'train': 5_844_680, 'test': 5_713_167, 'unsup': 11_721_682}
    assert df.rating[df.label == 'neg'].between(1, 4).all() and df.rating[df.label == 'pos'].between(7, 10).all()
    assert (df.rating[df.label == 'unsup'] == 0).all() and df.is_valid.sum() == 25_000
    splits = ('train', 'test', 'unsup')
    raw = pd.concat([pd.read_csv(SHARED/'imdb'/f'imdb_{s}.csv.xz', keep_default_na=False) for s in splits])
    assert [name for name,_ in members(df)] == raw.file.tolist()
    assert raw.file.iloc[[0, 24_999]].tolist() == ['train/neg/0_3.txt', 'train/pos/12499_7.txt']
    assert raw.text.tolist() == df.text.tolist()

@needs_shared
@pytest.mark.slow
def test_imdb_from_an_archive_of_all_reviews(shared, tmp_path, monkeypatch):
    df = sets.imdb(['train', 'test', 'unsup'])
    rows,archive = members(df),tmp_path/'aclImdb_v1.tar.gz'
    random.Random(0).shuffle(rows)
    with tarfile.open(archive, 'w:gz', compresslevel=1) as tar:
        for name,text in rows:
            info,data = tarfile.TarInfo(f'aclImdb/{name}'),text.encode()
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    serve_imdb(monkeypatch, archive)
    monkeypatch.delenv('RNN_FASTAI_DATA')
    assert sets.imdb(['train', 'test', 'unsup']).equals(df)
