"Characters and subwords: any text comes back, training is repeatable, files hold all, errors say what to do."
import copy
import hashlib
import json
import pickle
import random
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import calls_of
from fastai.text.core import BOS
from fastcore.basics import defaults
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rnn_fastai.data.corpus import Corpus
from rnn_fastai.data.subwords import ByteLevelTokenizer, CharTokenizer

WORDS = 'the unhappiness of happy people was not in their happiness but in their unkindness'.split()
ODD = ['', ' ', '  a  b\n\n\tc ', '\0\x01\x1c\x7f\x85\xa0', '👩‍🚀🏽 🇩🇪', 'e\u0301 é', '漢字かな', "it's  'll 1,234.5",
       'xxbos xxunk', 'xxbos', 'xxfake xxpad xxmaj', 'ĠĊ Ġthe ‹xxbos›', '\u2028\u3000\ufeff\U0010ffff',
       '<|endoftext|>[UNK]<unk>', 'x'*5000]
LONE = ['\ud83d', 'a\udc00b', '\ud83d\ude00', '\ude00\ud83d']

def make_texts(n=60, seed=0):
    "Texts of random words, some with special tokens spelled out."
    rng = random.Random(seed)
    return [' '.join(rng.choices(WORDS, k=20)) + rng.choice(['', '\nxxbos', '\nxxfake', ' 😀']) for _ in range(n)]

def make_letters(n=300, seed=0):
    "Texts of random letters, of which there is always more to learn."
    rng = random.Random(seed)
    return [''.join(rng.choices('abcdefgh ', k=40)) for _ in range(n)]

@pytest.fixture(scope='module', params=['bpe', 'unigram'])
def sub(request): return ByteLevelTokenizer(400, request.param).train(make_texts())

texts = st.lists(st.text(), max_size=6)
words = st.lists(st.sampled_from([*WORDS, *" \n\u3000\x1c😀", "'s", 'xxbos', 'xxunk']), max_size=20).map(''.join)
any_texts = st.lists(st.text(st.characters(exclude_categories=())), max_size=6)   # with lone surrogates

def by_text(tok, texts):
    "What `number` gives, spelled out text by text."
    ids,ends = tok.number(texts)
    assert ids.dtype == np.int32 and ends.dtype == np.int64 and len(ends) == len(texts)
    return [[tok.toks[i] for i in part] for part in np.split(ids, ends)[:-1]]

# ---- Round trips

@settings(max_examples=300, deadline=None)
@given(any_texts)
@example(ODD + LONE)
def test_any_string_comes_back_from_characters(texts):
    tok = CharTokenizer()
    spelt = by_text(tok, texts)
    assert spelt == [[BOS, *t] for t in texts] == list(tok(texts))
    assert [tok.decode(o) for o in spelt] == texts
    assert tok.toks == [BOS, *dict.fromkeys(''.join(texts))]   # numbered in the order they are met

@settings(max_examples=300, deadline=None)
@given(texts | st.lists(words, max_size=6))
@example(ODD)
def test_any_valid_text_comes_back_from_subwords(sub, texts):
    spelt = by_text(sub, texts)
    assert all(o[0] == BOS and o.count(BOS) == 1 and 'xxunk' not in o for o in spelt)
    assert [sub.decode(o) for o in spelt] == texts

def test_what_looks_like_a_special_token_stays_apart(sub):
    assert len(set(sub.vocab)) == len(sub.vocab)
    bpe = ByteLevelTokenizer(300).train(['xxbos\nxxunk\nxxfake\n']*9)
    assert bpe('xxbos') == [BOS, '‹xxbos›'] and bpe('xxfake') == [BOS, '‹xxfake›']
    assert bpe.decode(bpe('xxbos')) == 'xxbos'

def test_batches_do_not_matter(sub):
    many = make_texts(300, seed=1) + ODD
    small = copy.copy(sub)
    small._batch = 100
    for a,b in zip(sub.number(many), small.number(many), strict=True): np.testing.assert_array_equal(a, b)
    assert by_text(sub, many) == [sub(t) for t in many]

@pytest.mark.parametrize('n', [0, 1])
def test_no_texts_and_empty_ones(sub, n):
    for tok in (sub, CharTokenizer()): assert by_text(tok, ['']*n) == [[BOS]]*n and list(tok(['']*n)) == [[BOS]]*n

def test_special_tokens_stand_for_no_text(sub):
    special = [*defaults.text_spec_tok, 'xxfake']
    for tok in (sub, CharTokenizer()): assert tok.decode([*special, 'a', *special, 'b']) == 'ab'

def test_half_a_character_is_shown_as_such(sub):
    assert sub.decode(sub('漢')[:-1]) == '�'

# ---- Vocabulary and training

@pytest.mark.parametrize('kind', ['bpe', 'unigram'])
@pytest.mark.parametrize('vocab_sz', [265, 266, 300, 320])
def test_the_vocabulary_is_of_the_size_asked_for(kind, vocab_sz):
    tok = ByteLevelTokenizer(vocab_sz, kind).train(make_letters())
    assert len(tok.vocab) == vocab_sz and tok.vocab is tok.toks
    assert tok.vocab[:9] == defaults.text_spec_tok and tok.vocab.index(BOS) == 2
    assert tok.decode(tok(ODD[4])) == ODD[4]

def test_a_corpus_has_the_tokenizers_numbers(sub):
    many = make_texts(20, seed=2) + ODD
    corpus = Corpus.from_tokens(sub(many), sub.vocab)
    np.testing.assert_array_equal(corpus.ids, sub.number(many)[0])
    assert not (corpus.ids == 0).any()

HASHES = """
import sys
sys.path.insert(0, 'tests')
from test_subwords import hashes, CharTokenizer, ByteLevelTokenizer
CharTokenizer()('a'); ByteLevelTokenizer()
print('tokenizers' in sys.modules, *hashes())
"""

def hashes():
    "Hashes of what is trained on the same texts, for both kinds."
    trained = (ByteLevelTokenizer(n, kind).train(iter(make())) for kind in ('bpe', 'unigram') for n in (300, 400)
               for make in (make_texts, make_letters))
    return [hashlib.md5(repr(o.__getstate__()).encode()).hexdigest() for o in trained]

def test_training_is_repeatable_and_the_library_is_imported_only_for_it(request):
    here = hashes()
    assert hashes() == here
    run = subprocess.run([sys.executable, '-c', HASHES], cwd=request.config.rootpath, capture_output=True, text=True,
                         check=True)
    assert run.stdout.split() == ['False', *here]

def test_training_reads_a_stream_once_and_starts_anew():
    tok = ByteLevelTokenizer(300)
    assert tok.train(t for t in make_texts()) is tok and tok.trained
    first = tok.vocab
    assert tok.train(['zzzz qqqq']*9).vocab != first and any('zz' in t for t in tok.vocab)

# ---- Files and pickles

def same(a, b):
    assert a.__getstate__() == b.__getstate__() and a.vocab == b.vocab and a.trained == b.trained
    assert by_text(a, ODD) == by_text(b, ODD)

def test_files_and_pickles_hold_all(sub, tmp_path):
    sub.save(tmp_path/'a.json')
    sub.save(str(tmp_path/'b.json'))
    assert (tmp_path/'a.json').read_bytes() == (tmp_path/'b.json').read_bytes()
    for again in (ByteLevelTokenizer.load(tmp_path/'a.json'), ByteLevelTokenizer(file=str(tmp_path/'b.json')),
                  pickle.loads(pickle.dumps(sub)), copy.deepcopy(sub)): same(sub, again)
    assert not pickle.loads(pickle.dumps(ByteLevelTokenizer(500))).trained

def test_a_file_keeps_its_special_tokens(sub, tmp_path, monkeypatch):
    sub.save(tmp_path/'a.json')
    monkeypatch.setattr(defaults, 'text_spec_tok', [*defaults.text_spec_tok, 'xxnew'])
    same(sub, ByteLevelTokenizer.load(tmp_path/'a.json'))
    assert ByteLevelTokenizer(300).train(make_texts()).vocab[9] == 'xxnew'

def test_characters_are_pickled_without_the_table():
    tok = CharTokenizer()
    tok.number(ODD + LONE)
    data = pickle.dumps(tok)
    again = pickle.loads(data)
    assert len(data) < 2000 and again.toks == tok.toks and by_text(again, ODD + LONE) == by_text(tok, ODD + LONE)
    again.number(['ß'])
    assert 'ß' in again.toks and 'ß' not in tok.toks
    shared = copy.copy(tok)
    shared.number(['ß'])
    assert 'ß' not in tok.toks

# ---- Errors

def test_bad_settings():
    with pytest.raises(ValueError, match="vocab_sz=264 must be at least 265: 256 bytes and 9 special tokens"):
        ByteLevelTokenizer(264)
    for bad in (0, True, 3e3): pytest.raises(ValueError, ByteLevelTokenizer, bad).match('vocab_sz')
    with pytest.raises(ValueError, match="model_type 'BPE'. Did you mean 'bpe'"): ByteLevelTokenizer(model_type='BPE')

def test_not_trained(tmp_path):
    tok = ByteLevelTokenizer()
    assert not tok.trained and tok.vocab is None and 'not trained' in repr(tok)
    for f,x in ((tok.number, ['a']), (tok, 'a'), (tok.decode, ['a']), (tok.save, tmp_path/'a.json')):
        with pytest.raises(ValueError, match="not trained: call `train`"): f(x)
    assert not (tmp_path/'a.json').exists()

@pytest.mark.parametrize('kind', ['bpe', 'unigram'])
def test_training_that_cannot_be_leaves_all_as_it_was(kind):
    tok = ByteLevelTokenizer(300, kind).train(make_texts())
    was = tok.__getstate__()
    for bad in ([], iter([]), ['', '']):
        with pytest.raises(ValueError, match="no text to train on"): tok.train(bad)
    with pytest.raises(TypeError, match="Text 2 is no text but float: nan"): tok.train(['a', 'b', float('nan')])
    with pytest.raises(ValueError, match="Text 1 has half of a surrogate pair"): tok.train(['a', LONE[1]])
    with pytest.raises(TypeError, match="not one text"): tok.train('abc')
    assert tok.__getstate__() == was

@pytest.mark.parametrize('lone', LONE)
def test_half_of_a_surrogate_pair_has_no_bytes(sub, lone):
    with pytest.raises(ValueError, match=r"Text 2 has half of a surrogate pair, .* at \d"): sub.number(['a', 'b', lone])
    valid = lone.encode('utf8', 'replace').decode()   # as the message says
    assert sub.decode(sub(valid)) == valid

def test_what_is_no_text(sub):
    with pytest.raises(TypeError, match="Text 1 is no text but NoneType"): sub.number(['a', None])
    with pytest.raises(TypeError): CharTokenizer().number(['a', None])

def changed(state, **model):
    return json.dumps({**state, 'model': {**state['model'], **model}})

def test_broken_files_are_named(sub, tmp_path):
    file = tmp_path/'broken.json'
    sub.save(file)
    text = file.read_text(encoding='utf8')
    state = json.loads(text)
    one = dict(id=0, content='a', single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    small = dict(type='WordLevel', vocab={'a': 0}, unk_token='a')
    for data in ('', 'null', '[]', '{}', '{"model": {}}', text[:-9], json.dumps(state['model']), '{"model": null}',
                 json.dumps({**state, 'more': 1}), changed(state, added_tokens=[one]), changed(state, model=small)):
        file.write_text(data, encoding='utf8')
        with pytest.raises(ValueError, match=r"broken\.json is nothing that `ByteLevelTokenizer.save` wrote"):
            ByteLevelTokenizer.load(file)
    file.write_bytes(b'\xff\xfe\xfd')
    with pytest.raises(ValueError, match=r"broken\.json"): ByteLevelTokenizer(file=file)
    with pytest.raises(FileNotFoundError): ByteLevelTokenizer.load(tmp_path/'none.json')

def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tokenizers', None)
    with pytest.raises(ImportError, match="pip install tokenizers"): ByteLevelTokenizer().train(['a'])

# ---- Many at once

def test_threads_get_the_same_numbers():
    tok,parts = CharTokenizer(),[[chr(c + d) for d in range(200)] for c in range(0, 4000, 100)]
    got = [None]*len(parts)
    def work(i): got[i] = tok.number(parts[i])[0]
    threads = [threading.Thread(target=work, args=[i]) for i in range(len(parts))]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(set(tok.toks)) == len(tok.toks)
    for ids,part in zip(got, parts, strict=True): assert [tok.toks[i] for i in ids if i] == part

def test_calls_do_not_grow_with_the_characters():
    "A text ten times as long, or texts ten times as many, take the same calls per text."
    text = ' '.join(random.Random(0).choices([*WORDS, 'naïve', '漢字'], k=200))
    def calls(texts): return calls_of(CharTokenizer().number, texts)[1]
    few,long,many = calls([text]*10),calls([text*10]*10),calls([text]*100)
    assert long <= few + 10 and many <= 10*few and len(CharTokenizer().number([text])[0]) > len(text)
