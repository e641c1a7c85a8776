"spaCy's way to cut words, kept between processes: the same tokens, whatever lies in the cache, and no spaCy where it is not needed."
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import spacy

import rnn_fastai
from rnn_fastai.data import words
from rnn_fastai.data.words import WordCutter, load_rules, load_spacy, rules_file, rules_of

TEXT = "(a.m.) well-made,isn't http://a.b/c?d=e, ':))' 10km/h. $5.00... I'd've"

@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    "An empty cache folder, nothing known of any language, and no rules that come with the package."
    monkeypatch.setattr(words, 'english_file', lambda: None)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'cache'))
    words._language_rules.cache_clear()
    yield tmp_path/'cache'/'rnn_fastai'
    words._language_rules.cache_clear()

@pytest.fixture
def no_spacy(monkeypatch):
    "spaCy may not be loaded."
    def fail(*args): raise AssertionError('spaCy was loaded')
    return lambda: monkeypatch.setattr(words, 'load_spacy', fail)

def tokens(lang='en', text=TEXT):
    "What the rules of a language make of a text, without those that this process has."
    words._language_rules.cache_clear()
    return list(WordCutter(load_rules(lang))(text))

def spacy_tokens(lang='en', text=TEXT): return [t.text for t in spacy.blank(lang).tokenizer(text)]

@pytest.mark.parametrize('lang', ['en', 'de', 'fa', 'fr', 'he'])
def test_rules_are_kept(home, no_spacy, lang):
    assert tokens(lang) == spacy_tokens(lang) and len(list(home.iterdir())) == 1
    no_spacy()
    assert tokens(lang) == spacy_tokens(lang)

BROKEN = dict(empty=lambda b: b'', cut=lambda b: b[:-100], longer=lambda b: b + b' ', binary=lambda b: bytes(range(256)),
              another=lambda b: b.replace(b'"cases"', b'"other"'), a_case=lambda b: b.replace(b'"a.m."', b'"a.n."'),
              no_sum=lambda b: b.partition(b'\n')[2], json=lambda b: b'[]', encoding=lambda b: b.decode().encode('utf-16'))

@pytest.mark.parametrize('how', BROKEN)
def test_a_file_that_is_not_what_was_written_is_written_again(home, how):
    tokens()
    [file] = home.iterdir()
    whole = file.read_bytes()
    file.write_bytes(BROKEN[how](whole))
    assert file.read_bytes() != whole and tokens() == spacy_tokens()
    assert file.read_bytes() == whole and list(home.iterdir()) == [file]

def test_a_file_of_another_language_in_its_place_is_not_used():
    tokens('de')
    rules_file('de').rename(rules_file('en'))
    assert tokens('en', "can't") == ['ca', "n't"] != spacy_tokens('de', "can't")

def test_other_versions_have_other_files(monkeypatch):
    files = {rules_file('en'), rules_file('de')}
    for name,value in (('version', lambda name: '0'), ('__version__', '0'), ('_FORMAT', 0)):
        with monkeypatch.context() as m:
            m.setattr(words, name, value)
            files.add(rules_file('en'))
    with monkeypatch.context() as m:
        m.setattr(words.platform, 'python_version', lambda: '0')
        files.add(rules_file('en'))
    assert len(files) == 6

def test_where_nothing_can_be_kept(monkeypatch, tmp_path):
    (tmp_path/'file').touch()
    (tmp_path/'odd'/'rnn_fastai'/rules_file('en').name).mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for place in ('/dev/null', tmp_path/'file', tmp_path/'odd'):
            monkeypatch.setenv('XDG_CACHE_HOME', str(place))
            assert tokens() == spacy_tokens()
        monkeypatch.setattr(words, 'write_whole', lambda *args: (_ for _ in ()).throw(PermissionError))
        monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'new'))
        assert tokens() == spacy_tokens() and not (tmp_path/'new').exists()
        monkeypatch.setattr(Path, 'home', lambda: (_ for _ in ()).throw(RuntimeError('no home')))
        assert rules_file('en') is None and tokens() == spacy_tokens()

def test_a_tokenizer_that_cuts_in_another_way_is_asked_itself(home, monkeypatch):
    "As one of a later version of spaCy may; nothing is kept then."
    from rnn_fastai.data.tokenize import WordTokenizer, _share
    monkeypatch.setattr(WordCutter, '_strip', lambda self, word: ([], word, []))
    _share.cache_clear()
    tok = WordTokenizer('en', ['xxunk'])
    assert tok._shared.cutter is None and not home.exists()
    assert tok.tokenize(TEXT) == [t for w in tok.cut(TEXT.split(' ')) for t in w] == spacy_tokens()
    _share.cache_clear()

def test_a_language_of_others_is_not_kept(home):
    "Whose versions the name of the file does not hold."
    from spacy.lang.en import English
    class Own(English):
        lang = 'xz'
        class Defaults(English.Defaults): tokenizer_exceptions = {'a.b': [{65: 'a'}, {65: '.b'}]}   # 65 is ORTH
    spacy.registry.languages.register('xz', func=Own)
    assert tokens('xz', '(a.b)') == ['(', 'a', '.b', ')'] and not home.exists()

def test_patterns_that_are_no_patterns_stay_with_spacy(home, monkeypatch):
    "A function in the place of a pattern cannot be kept."
    blank = spacy.blank('en')
    blank.tokenizer.token_match = lambda word: word == 'a.b'
    assert rules_of(blank).patterns == {}
    blank.tokenizer.token_match = None
    assert 'token' not in rules_of(blank).patterns and rules_of(blank).patterns

def test_words_that_are_left_whole():
    "`token_match` of spaCy, which few languages have."
    import re
    blank = spacy.blank('en')
    blank.tokenizer.token_match = re.compile(r'(a\.|\(x)+b?').fullmatch
    cut = WordCutter(rules_of(blank)._replace(patterns={**rules_of(blank).patterns, 'token': (r'(?:(a\.|\(x)+b?)$', 32)}))
    for text in ('a.a.b', '(x(x', '(a.a.)', '(x)', 'a.b,', '"a.', 'b'): assert list(cut(text)) == [t.text for t in blank.tokenizer(text)]

def test_special_tokens_are_not_kept(home, no_spacy):
    tokens()
    before = [f.read_bytes() for f in home.iterdir()]
    no_spacy()
    cut = WordCutter(load_rules('en', ('secret.word', 'xxmaj')))
    assert cut('secret.word.') == ('secret.word', '.') and [f.read_bytes() for f in home.iterdir()] == before

def test_the_rules_of_english_that_come_with_the_package(monkeypatch, home, no_spacy, tmp_path):
    "They are spaCy's, and used where the files that they were made from are the same."
    monkeypatch.undo()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    file = words.english_file()
    if not file.is_file(): pytest.skip(f'This spaCy ({spacy.__version__}) has other rules; tools/english_words.py writes them')
    assert file.read_text() == words._file_text(file.name, rules_of(load_spacy('en'))), 'run tools/english_words.py'
    no_spacy()
    assert tokens() == spacy_tokens() and not home.exists()
    other = tmp_path/'spacy'
    for name in words._SOURCES:
        (other/name).parent.mkdir(parents=True, exist_ok=True)
        (other/name).write_bytes((Path(spacy.__file__).parent/name).read_bytes())
    monkeypatch.setattr(words, 'find_spec', lambda name: SimpleNamespace(origin=str(other/'__init__.py')))
    assert words.english_file() == file
    for name in words._SOURCES:
        was = (other/name).read_bytes()
        (other/name).write_bytes(was + b'#')
        assert not words.english_file().is_file()
        (other/name).write_bytes(was)
    (other/name).unlink()
    assert words.english_file() is None

CODE = '''
import sys
from rnn_fastai.data import words
words.english_file = lambda: None
from rnn_fastai.data.tokenize import TextTokenizer
from rnn_fastai.data.corpus import Corpus
import json
texts = json.loads(sys.stdin.read())
c = Corpus.from_texts(texts, min_freq=1, no_bar=True)
print(json.dumps([[c.vocab[i] for i in doc] for doc in c]), 'spacy' in sys.modules, sep=chr(10))
'''

def start():
    env = {**os.environ, 'PYTHONPATH': str(Path(rnn_fastai.__file__).parents[1]), 'OMP_NUM_THREADS': '1'}
    return subprocess.Popen([sys.executable, '-W', 'ignore', '-c', CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

def test_processes_that_start_together_and_one_after_them(home):
    "All find the same tokens, leave one whole file and nothing else; the last needs no spaCy."
    texts = [TEXT, f'Words {TEXT} of my own :) )', 'a\x85b', 'the the the THE']
    from rnn_fastai.data.tokenize import TextTokenizer
    want = list(map(list, TextTokenizer()(texts)))
    def results(procs):
        outs = [p.communicate(json.dumps(texts), timeout=240)[0].splitlines() for p in procs]
        assert all(p.returncode == 0 for p in procs)
        return [(json.loads(toks), spacy_is_there) for toks,spacy_is_there in outs]
    assert [toks for toks,_ in results([start() for _ in range(3)])] == [want]*3
    assert [f.name for f in home.iterdir()] == [rules_file('en').name]
    assert results([start()]) == [(want, 'False')]
    assert 'own' not in rules_of(load_spacy('en')).cases and '"Words"' not in rules_file('en').read_text()   # nothing of a text is kept
