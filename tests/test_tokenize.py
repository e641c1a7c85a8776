"The tokenizer against fastai's rules and spaCy: the same tokens for any text, in any company, by any settings."
import os
import pickle
import random
import re
import sys
import threading
import tracemalloc
from functools import cache, partial
from itertools import islice, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import spacy
from conftest import calls_of
from fastai.text import core as fc
from fastai.text.learner import decode_spec_tokens as fastai_decode
from fastcore.basics import defaults
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rnn_fastai.data import tokenize
from rnn_fastai.data.pretokenize import PIECE_RULES, rule_text
from rnn_fastai.data.tokenize import TextTokenizer, WordTokenizer, as_tokenizer, chunks_of, decode_spec_tokens

SHARED = Path(os.environ.get('RNN_FASTAI_DATA', Path(__file__).resolve().parents[2]/'shared'/'data'))
bounded = partial(settings, deadline=None, derandomize=True, database=None)

# ---- Both sides

@cache
def fastai_words(lang='en', special=None): return fc.SpacyTokenizer(lang, special and list(special))

def theirs(texts, lang='en', special=None, **rules):
    "fastai's tokens."
    return [list(t) for t in fc.TokenizeWithRules(fastai_words(lang, special), **rules)(texts)]

@pytest.fixture(autouse=True)
def again():
    "No test sees what the one before left in the caches that tokenizers share."
    forget()

def forget():
    "All that tokenizers have learnt (of English), so that the next text is the first."
    tokenize._piece_table.cache_clear()
    WordTokenizer()._cache.clear()

def spelt(tok, texts):
    "What `number` gives, spelled out; its arrays are looked at on the way."
    ids,ends = tok.number(texts)
    assert ids.dtype == np.int32 and len(ends) == len(texts) and (len(texts) == 0 or ends[-1] == len(ids))
    assert (np.diff(ends, prepend=0) >= 0).all()
    return [[tok.toks[i] for i in part] for part in np.split(ids, ends)[:len(texts)]]

def assert_same(texts, tok=None, **kwargs):
    "`tok` gives fastai's tokens by both ways; the first text that differs is shown alone."
    tok,want = TextTokenizer() if tok is None else tok,theirs(texts, **kwargs)
    for ours in ([list(t) for t in tok(texts)], spelt(tok, texts)):
        assert len(ours) == len(want)
        for text,a,b in zip(texts, ours, want, strict=True): assert a == b, f"{text!a}\nours   {a!a}\nfastai {b!a}"

# ---- Fragments of texts

CASES = sorted(spacy.blank('en').tokenizer.rules)
FACES = [c for c in CASES if not any(map(str.isalpha, c)) and not c.isspace()]
SPACES = [*'\t\r\v\f\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000', '\r\n', ' \t ', '\xa0 ']
HTML = """&amp; &amp &lt; &lt &nbsp; &nbsp &#39; &#39 #39; #146; #36; quot; amp; nbsp; &quot; &#32; &#10; &#9; &#2;
    &#0; &#133; &#160; &notit; &copy & && &; &# &#x &#46;&#46; &#97; &#65; &amp;amp; &NewLine; &emsp; am p; bsp; &fjlig;
    &sol; &bsol; &#xD800; &#x1F600; amp;#32; &lt;br""".split() + ['<br />']*3 + ['<br /', ' />', '<br  />', '< br />']
MARKS = ['@.@', ' @.@ ', ' @-@ ', ' @.@', '@-@ ', ' @,@ ', ' @.@ @.@ ', '\\n', '\\', '\\\\', '\\"', '\\ n', '/', '#',
         '<unk>', '<unk', 'unk>', '...', '..', '.', '....', '…', '. . .', *'''):'"-—''', "''", '--', '“q”']
XX = [*defaults.text_spec_tok, 'XXBOS', 'Xxrep', 'xxbos.', '(xxrep', 'xxrep 3 a', 'xxunkxxunk']
WORDS = """the The THE a A I is word Word wOrd WORD x X 1 12 A1 2nd 3.14 1,000 $5 5kg 10km/h 5€ 50% a.m. 10a.m.
    U.S. U.S.A. e.g. Mr. Dr. Ph.D. vs. etc. Jan. O'Neil don't Don't DON'T dont it's Its 'em 'cause y'all cannot
    gonna I'm we're would've John's s' 's ’s don’t rock'n'roll well-known a-b A-B -foo foo- http://www.a.com www.a.com
    a@b.com https://a.b/c?d=e#f foo.bar foo,bar foo:bar foo=bar "quoted" (paren) [brack] {x} `` «q» !? ?! !!! ,, ΑΣ ΑΣ.
    Σ AΣ İ İstanbul ß ŉ é e\u0301 E\u0301 Ÿ ﬁ Ⅷ Ａ 日本語。 שלום مرحبا 😀 👨‍👩‍👧 🇩🇪
    \u200d \u200b \ufeff \u00ad A\u0345 i\u0307 °C 5°C ½ x²
    1+1=2 C++ C# .NET #tag @user _ a_b ^_^ o_O XD :D 8-) (: </3 ><(((*> \x00 \x1b \x7f \ufffe""".split(' ')
WORDS = [w.strip('\n') for w in WORDS if w.strip('\n')]   # `split()` would take control characters for blanks
PLAIN = 'ab foo well re id ill ve nt cant im us am jan ain did foo-bar id-ill us-am'.split()
SIGNS = ',.!?;:)"\']'
BLANKS = [' ']*12 + ['', '', '  ', '\n', '\n', '\n\n', '\n \n', ' \n', '\n ', '<br />']

def torn(word, rng):
    "`word` with blanks and newlines in it."
    return ''.join(c + rng.choice(['', '', ' ', '\n', ' \n', '  ']) for c in word)

def repeated(rng):
    "One word again and again, with other things about it now and then."
    w = rng.choice(['a', 'the', 'The', '4', '3', 'xxrep', 'é', '_', 's', 'b-b', ':', ')'])
    gaps = [' ', ' ', ' ', ' ', '  ', '\n', *rng.choice([[], [], ['<br />', '\t', '\xa0', '/', '\n\n', ' \n']])]
    forms = [w.upper(), w.capitalize(), w+'s', w+'...', w*4, f'{w}&#32;{w}', f'b&#32;{w}', '&#2;', w+'.', f'"{w}',
             w+"'s", 'b']
    return ''.join((w if rng.random() < .8 else rng.choice(forms)) + rng.choice(gaps) for _ in range(rng.randint(2, 7)))

def stretched(rng):
    c = rng.choice('aA.!?-é14#/\\&<;日😀\'" \n():_xİΣ')
    return rng.choice(['', 'b', 'A', '.']) + c*rng.randint(2, 7) + rng.choice(['', 'b', 'B', c.upper(), '.'])

def plain(rng):
    "A word of the form that is cut without spaCy, more or less."
    signs = ''.join(rng.choices(SIGNS, k=rng.choice([0, 1, 1, 2, 3])))
    return rng.choice(['', '', '"', "'", '(', '[']) + rng.choice(PLAIN) + rng.choice(['', '', "'s", "'d"]) + signs

FRAGMENTS = [lambda rng, f=f: rng.choice(f) for f in (WORDS, WORDS, WORDS, HTML, MARKS, XX, CASES, FACES)]
FRAGMENTS += [lambda rng: torn(rng.choice(FACES), rng), lambda rng: torn(rng.choice(CASES), rng), repeated, stretched,
              plain, lambda rng: chr(rng.randint(*rng.choice([(0, 0x2ff), (0x300, 0xd7ff), (0xe000, 0x10ffff)])))]

def make_text(rng, fragments=FRAGMENTS):
    "A text of fragments; one in five has white space that is neither blank nor newline."
    blanks = BLANKS + SPACES*(rng.random() < .2)
    return ''.join(rng.choice(fragments)(rng) + rng.choice(blanks) for _ in range(rng.choice([0, 1, 2, 4, 8, 16])))

def make_texts(n, seed=0, **kwargs):
    rng = random.Random(seed)
    return [make_text(rng, **kwargs) for _ in range(n)]

def batches_of(strategy): return st.lists(strategy, min_size=1, max_size=20)

WHITE = ''.join(c for c in map(chr, range(0x3001)) if c.isspace())
any_text = st.text(st.characters(exclude_categories=['Cs']))
ascii_text = st.text(st.one_of(st.sampled_from(" \n aAbB.:;&#<>/\\'\"()-@,!"), st.characters(max_codepoint=0x2ff)))
white_text = st.text(st.one_of(st.sampled_from('aB.:)&;'), st.sampled_from(WHITE), st.just(' '), st.just('\n')))
pieces = st.sampled_from([*HTML, *MARKS, *XX, *WORDS, *FACES, *PLAIN, *CASES])
joined = st.lists(st.tuples(pieces, st.sampled_from(BLANKS)).map(''.join), max_size=12).map(''.join)

# ---- Any text

@bounded(max_examples=80)
@given(batches_of(any_text))
def test_any_unicode(texts): assert_same(texts)

@bounded(max_examples=80)
@given(batches_of(ascii_text))
def test_any_common_characters(texts): assert_same(texts)

@bounded(max_examples=60)
@given(batches_of(white_text))
def test_any_white_space(texts): assert_same(texts)

@bounded(max_examples=100)
@given(batches_of(joined))
@example(['&#2;'])
@example(['a1 &#2; b2 c3', 'b2'])
@example(['&#32;'])
@example(['', '', ''])
@example(['a a a b b b c c c'])
@example(['the the the\nthe the <br  />', '\nA a a a,a a'])
def test_fragments(texts): assert_same(texts)

@bounded(max_examples=60)
@given(joined, st.sampled_from(['&#2;', '&#32;', '&#2', 'a1 &#2;', '\n\n&#2;\n', '&#2;&#2;']))
def test_first_text_after_a_start(text, gone):
    "Nothing is known yet; a piece that comes to nothing is among the first."
    forget()
    assert_same([f'{text} {gone} {text}'])

@pytest.mark.parametrize('seed', range(3))
def test_random_fragments(seed):
    texts = make_texts(1000, seed)
    for i in range(0, len(texts), 50): assert_same(texts[i:i+50])

def test_every_special_case_of_spacy():
    "Alone, in signs, torn at any place by a blank or a newline, or two blanks; and in capitals."
    torn = [c[:i]+b+c[i:] for c in CASES for i in range(1, len(c)) for b in (' ', '\n') if b == ' ' or c in FACES]
    assert_same([t for c in CASES for t in (c, f'({c}).', f'x {c}\n{c} {c.upper()}', f'"{c}"{c}')])
    assert_same(torn)
    assert_same([' '.join(torn), '\n'.join(FACES), ' '.join(FACES), '  '.join(CASES)])

def test_all_white_space_between_words():
    assert_same([f'{a}{w}{v}{b}' for a,b in ('ab', 'A.', ':)', ('', '')) for w,v in product(WHITE, WHITE)])

def test_newlines_and_blanks_in_all_mixtures():
    assert_same([f'A{"".join(m)}b' for n in range(9) for m in product(' \n', repeat=n)])
    rng = random.Random(0)
    runs = [''.join(rng.choices(['\n', '\n ', ' \n', '\n  ', '<br />'], k=n)) for n in range(20, 35) for _ in range(12)]
    assert_same([f'{a}{r}{b}' for r in runs for a,b in (('a', 'b'), ('', 'b'), ('a', ''), (':', ')'), ('a', '/b'))])

@pytest.mark.parametrize('text', ['\ud800', 'a \udfff b', '\ud83d\ude00', 'z9z \ud800'])
@pytest.mark.parametrize('rules', [None, []])
def test_lone_surrogates_raise_as_in_fastai(text, rules):
    "It is spaCy that cannot have them, which ours says in words; what comes after is as ever."
    tok,said = TextTokenizer(rules=rules),'Text 1 holds' if rules is None else 'surrogates not allowed'
    with pytest.raises(UnicodeEncodeError): theirs(['fine', text], rules=rules)
    for call in (tok, tok.number, lambda ts: tok.number_all([[t] for t in ts])):
        with pytest.raises(ValueError, match=said): list(call(['fine', text, 'fine']))
    assert_same(['fine', 'z9z x9x', '&#xD800;'], tok, rules=rules)

# ---- Many texts at once

def test_order_and_company_do_not_matter():
    texts = make_texts(300, seed=7) + ['']*20
    random.Random(1).shuffle(texts)
    want = theirs(texts)
    forget()
    assert [next(TextTokenizer()([t])) for t in texts] == want
    forget()
    assert list(TextTokenizer()(texts)) == want == [*TextTokenizer()(texts[::-1])][::-1]

def test_no_text_and_one_text():
    tok = TextTokenizer()
    assert list(tok([])) == [] and spelt(tok, []) == [] and tok('One two') == theirs(['One two'])[0]
    assert_same([''])
    assert_same(['', 'a', '', '', '\n', ' ', 'b', ''])

@pytest.mark.parametrize('size', [1, 7, 100])
def test_chunks_do_not_show(size, monkeypatch):
    texts = make_texts(200, seed=size)
    parts = list(chunks_of(iter(texts), size))
    assert [t for p in parts for t in p] == texts and all(sum(map(len, p[:-1])) < size for p in parts)
    monkeypatch.setattr(tokenize, 'chunks_of', partial(chunks_of, size=size))
    forget()
    tok,want = TextTokenizer(),theirs(texts)
    assert list(tok(iter(texts))) == want
    numbered = [[tok.toks[i] for i in t] for ids,ends in tok.number_all(parts) for t in np.split(ids, ends)[:-1]]
    assert numbered == want

def test_generators_in_turns():
    "Two that are read a text at a time, and one that is left in the middle."
    texts,tok = make_texts(40, seed=9),TextTokenizer()
    tokenize_slowly = partial(tok.number_all, [[t] for t in texts])
    next(tokenize_slowly())
    a,b = tok(iter(texts)),tok(iter(texts[::-1]))
    got = [(next(a), next(b)) for _ in texts]
    assert [x for x,_ in got] == theirs(texts) == [x for _,x in got][::-1]

# ---- Plain words, cut without spaCy

def plain_cores(words):
    "Each word of spaCy's `rules` that has the form; what stands before an apostrophe or a full stop there, too."
    cores = {c.lower() for w in words for c in (w, re.split("['’.]", w)[0])} | set(PLAIN)
    return sorted(c for c in cores if re.fullmatch('[a-z]{2,}(-[a-z]{2,})*', c))

def assert_cut_as_spacy(words, cores, n_signs):
    "Any word made of a core with signs about it has spaCy's tokens, or none. Returns how many have some."
    signs,n = [''.join(s) for k in range(n_signs+1) for s in product(SIGNS, repeat=k)],0
    for core,pre in product(cores, ['', '"', "'", '(', '[']):
        made = [pre+core+s+g for s in ('', "'s") for g in signs]
        ours = {w: toks for w,toks in zip(made, tokenize._cut_plain(made, words._shared.cases), strict=True) if toks}
        doc = [t.text for t in words._shared.spacy('\n'.join(ours))] if ours else []
        n += len(ours)
        if doc == [t for toks in ours.values() for t in ('\n', *toks)][1:]: continue
        for w,toks in ours.items(): assert toks == tuple(t.text for t in words._shared.spacy(w)), w
    return n

def test_plain_words():
    words = WordTokenizer()
    cores = plain_cores(words._shared.spacy.rules)
    assert len(cores) > 200 and assert_cut_as_spacy(words, cores, 1) > 5_000
    assert assert_cut_as_spacy(words, ['foo', 're', 'us-am', 'xxbos'], 3) > 10_000
    assert tokenize._cut_plain(['foo', "don't", 'x'], words._shared.cases) == [('foo',), (), ()]

@pytest.mark.slow
@pytest.mark.parametrize('lang', 'en af cs et eu ga gd he hi la lv mk sk sq tl xx'.split())
def test_plain_words_with_all_signs(lang):
    words = WordTokenizer(lang)
    assert words._shared.cases is not None and assert_cut_as_spacy(words, plain_cores(words._shared.spacy.rules), 3) > 10_000

@pytest.mark.parametrize('words', [[], [''], ['c1', '', 'b-1', ''], ['hello', 'hello']])
def test_cut(words):
    "Also what is known, what is nothing, and no words at all."
    tok,want = WordTokenizer(),[tuple(w.split('-')) if '-' not in w else ('b-1',) for w in words]
    want = [() if w == '' else t for w,t in zip(words, want, strict=True)]
    forget()
    assert tok.cut(words) == want == tok.cut(words)
    assert tok.cut(words + ['new1']) == [*want, ('new1',)]

# ---- Other languages

ALPHABETS = dict(de='aäöüßÄ„“', fr="aàçœdlE'’", it="aàèl'dE", es='añá¿¡oN', ru='абвЖъ«', fi='aäöåkK', tr='ıiİIşğa',
                 xx='aßжא日', pt='ãõçaeA', pl='ąćęłaŁ', he='אבגדם״׳', el='αβσςΣΑά', hu='őűaáe', ar='ابتة،',
                 fa='ابپ\u200cی', hi='कखगी।', id='abcde-', uk="єіїґаЄ'", sv='åäöab', nl="aijë'")

@cache
def lang_fragments(lang):
    "Special cases of `lang`, whole and torn, words of its letters, and a few of the others."
    cases,letters = sorted(spacy.blank(lang).tokenizer.rules),ALPHABETS[lang]
    def word(rng): return ''.join(rng.choices(letters, k=rng.randint(1, 6))) + rng.choice(['', '', *".,-'", '...'])
    return [lambda rng: rng.choice(cases), lambda rng: torn(rng.choice(cases), rng), word, word, *FRAGMENTS]

@pytest.mark.parametrize('lang', 'de it es ru fi tr xx pt pl he el'.split())
def test_other_languages(lang):   # not French, which spaCy takes five seconds to load
    assert_same(make_texts(50, fragments=lang_fragments(lang)), TextTokenizer(WordTokenizer(lang)), lang=lang)

@pytest.mark.slow
@pytest.mark.parametrize('lang', sorted(ALPHABETS))
def test_other_languages_at_length(lang):
    for seed in range(20):
        texts = make_texts(100, seed, fragments=lang_fragments(lang))
        assert_same(texts, TextTokenizer(WordTokenizer(lang)), lang=lang)

def test_a_language_that_does_not_go_by_pieces():
    "fastai's tokenizer takes special tokens, which spaCy's for Chinese does not; so it is held against spaCy."
    tok,nlp = WordTokenizer('zh'),spacy.blank('zh')
    texts = ['我们在学习中文。', 'a 我 b', '', ' 中\n文 ']
    assert not tok.by_pieces and list(tok(texts)) == [[t.text for t in nlp(x)] for x in texts]
    want = [[fc.BOS[:2], *map(str, nlp(rule_text('我们 AB', PIECE_RULES)))][1:]]
    assert list(TextTokenizer(tok)(['我们 AB'])) == want == spelt(TextTokenizer(tok), ['我们 AB'])

def test_a_language_that_is_not_there():
    with pytest.raises(ValueError, match="lang='qq'"): WordTokenizer('qq')

# ---- Own settings

def shout(t): return t.replace('e', 'EE  ')
def no_stop(t): return t.replace('.', '')

RULES = dict(none=[], one=[fc.replace_rep], subset=[fc.fix_html, fc.rm_useless_spaces, fc.lowercase],
             extra=[*PIECE_RULES, shout], before=[shout, *PIECE_RULES], reordered=PIECE_RULES[::-1],
             caps=[fc.replace_all_caps, fc.replace_maj], words=[fc.replace_wrep, fc.spec_add_spaces, fc.replace_wrep],
             twice=PIECE_RULES*2, equal=tuple(PIECE_RULES))

@pytest.mark.parametrize('rules', RULES.values(), ids=RULES)
def test_own_rules(rules): assert_same(make_texts(400), TextTokenizer(rules=rules), rules=rules)

@bounded(max_examples=60)
@given(batches_of(st.one_of(white_text, any_text, joined)))
def test_no_rules(texts): assert_same(texts, TextTokenizer(rules=[]), rules=[])

@bounded(max_examples=40)
@given(batches_of(st.one_of(joined, ascii_text)), st.permutations(PIECE_RULES), st.integers(0, 8))
def test_any_rules(texts, rules, n): assert_same(texts, TextTokenizer(rules=rules[:n]), rules=rules[:n])

def test_a_rule_is_skipped_only_where_it_changes_nothing():
    for text in make_texts(2000, seed=5):
        for rule in PIECE_RULES: assert rule_text(text, [rule]) == rule(text), (rule, text)

POSTS = dict(none=[], upper=[str.upper], two=[fc.replace_space, no_stop], one=[lambda t: 'x'],
             length=[lambda t: t*2, len, str])

@pytest.mark.parametrize('post', POSTS.values(), ids=POSTS)
def test_own_post_rules(post):
    texts = make_texts(300)
    assert_same(texts, TextTokenizer(post_rules=post), post_rules=post)
    assert_same(texts, TextTokenizer(rules=[], post_rules=post), rules=[], post_rules=post)

def test_two_post_rules_in_turns():
    "Two tables, which share what spaCy cut: neither takes the other's tokens, or stumbles over what is known."
    texts = make_texts(60, seed=3)
    forget()
    toks = {post: TextTokenizer(post_rules=[post]) for post in (str.upper, str.title)}
    for i in range(0, 60, 5):
        for post,tok in toks.items(): assert_same(texts[i:i+5], tok, post_rules=[post])
    for post,tok in toks.items(): assert_same(texts, tok, post_rules=[post])

SPECIALS = [(), ('xxbos', 'xxunk'), ('new york',), (':x', ')x'), ('(foo',), ('foo.',), ("foo's",), ('xxbos the',),
            ('s t',), ('a\nb',), ('foo..',), ('"foo"',), ("'s",), ('-',), ('foo-',), ('.',), ('the the',), ('été x',),
            ('b c', 'a b', 'foo bar baz'), ("ab'", 'ab"]'), ('<unk>', '<br />'), ('İx', 'x/y', 'a#b')]

@pytest.mark.parametrize('special', SPECIALS, ids=repr)
def test_own_special_tokens(special):
    texts = [t for s in special + ('foo',) for t in
             (s, f'x {s} y', f'x{s}y', s + s, s.replace(' ', '\n'), f'({s}).', s.upper(), s.title(), f'{s} {s} {s}',
              f'x {s}\n{s}, {s}s', f'x\ty {s}', f'{s}/{s}', f'"{s}"', f"{s}'s:",
              *(s[:i]+' '+s[i:] for i in range(1, len(s))))]
    words = WordTokenizer(special_toks=list(special))
    texts += make_texts(10)
    for rules in (None, []): assert_same(texts, TextTokenizer(words, rules), special=special, rules=rules)

def test_a_cache_that_starts_anew():
    "Again and again, amid a call; tokens and their numbers stay."
    texts,want = make_texts(200, seed=11),None
    for buf_sz in (1, 10):
        tok = TextTokenizer(WordTokenizer(buf_sz=buf_sz))
        ids,ends = tok.number(texts)
        for i in range(0, 200, 10): assert_same(texts[i:i+10], tok)
        want = want or theirs(texts)
        assert [[tok.toks[i] for i in t] for t in np.split(ids, ends)[:-1]] == want
        assert (ids == tok.number(texts)[0]).all()
        assert_same(texts, TextTokenizer(WordTokenizer(buf_sz=buf_sz), []), rules=[])

def test_pickle():
    texts = make_texts(60, seed=4)
    words = WordTokenizer('de', ['new york'], 77)
    back = pickle.loads(pickle.dumps(words))
    assert (back.lang, back.special_toks, back.buf_sz) == ('de', ['new york'], 77)
    assert list(back(texts)) == list(words(texts))
    for rules,post in ((None, None), ([], [str.upper]), (RULES['subset'], []), (None, [str.upper])):
        tok = TextTokenizer(words, rules, post, sep='_')
        list(tok(texts[:30]))
        back = pickle.loads(pickle.dumps(tok))
        assert list(back(texts)) == list(tok(texts)) and back.sep == '_' and back.rules == tok.rules

class ByLetters:
    def __call__(self, items): return (list(str(t)) for t in items)

class Doubled(WordTokenizer):
    "A subclass may tokenize as it likes, so it is asked."
    def tokenize(self, text): return super().tokenize(text)*2

def by_e(): return fc.BaseTokenizer('e')

@pytest.mark.parametrize('make', [fc.BaseTokenizer, ByLetters, Doubled, fc.SpacyTokenizer, by_e])
def test_other_word_tokenizers(make):
    texts = make_texts(60, seed=6)
    want = [list(t) for t in fc.TokenizeWithRules(make())(texts)]
    assert list(TextTokenizer(make())(texts)) == want == spelt(TextTokenizer(make()), texts)
    if isinstance(make, type): assert list(as_tokenizer(make)(texts)) == want

def test_fastais_transform():
    tfm,texts = fc.Tokenizer(fc.SpacyTokenizer(), rules=RULES['subset'], sep='_'),make_texts(60, seed=8)
    tok = as_tokenizer(tfm)
    assert [list(t) for t in tok(texts)] == theirs(texts, rules=RULES['subset']) and tok.decode(['a', 'b']) == 'a_b'
    assert TextTokenizer(tok).rules == tok.rules and as_tokenizer(tok) is tok

# ---- Tokens back to words

some_words = st.sampled_from(['one', 'Two', 'ß', 'İ', "n't", '3', '12', '!', '', 'xxbos', 'xxunk'])
repetitions = st.tuples(st.sampled_from([fc.TK_REP, fc.TK_WREP]), st.integers(0, 12).map(str), some_words)
phrases = st.one_of(st.tuples(some_words), st.tuples(st.sampled_from([fc.TK_MAJ, fc.TK_UP]), some_words), repetitions)
openings = st.lists(st.one_of(some_words, st.sampled_from([fc.TK_MAJ, fc.TK_UP])), max_size=8)
endings = st.one_of(st.just(()), repetitions, repetitions.map(lambda r: r[:1]), repetitions.map(lambda r: r[:2]),
                    repetitions.map(lambda r: (r[0], 'xxunk', *r[1:])))

@bounded(max_examples=300)
@given(openings, endings)
@example([], ('xxwrep', '3', 'word'))
@example(['xxmaj'], ('xxrep', '4', 'a'))
def test_decode_as_fastai_up_to_the_first_repetition(opening, ending):
    toks = [*opening, *ending]
    assert decode_spec_tokens(toks) == fastai_decode(toks)

@bounded(max_examples=300)
@given(st.lists(phrases, max_size=8))
def test_decode_each_phrase_alone(parts):
    "A repetition does not reach into what follows (in fastai it does); each phrase is read as fastai reads it."
    assert decode_spec_tokens(t for p in parts for t in p) == [w for p in parts for w in fastai_decode(p)]

# ---- At once, and cut short

def in_threads(*jobs):
    "What the jobs give, run at once, with frequent turns; what one of them raises is raised."
    res,old = [None]*len(jobs),sys.getswitchinterval()
    def run(i):
        try: res[i] = jobs[i]()
        except BaseException as e: res[i] = e
    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(jobs))]
    sys.setswitchinterval(1e-5)
    try:
        for t in threads: t.start()
        for t in threads: t.join()
    finally: sys.setswitchinterval(old)
    for r in res:
        if isinstance(r, BaseException): raise r
    return res

THREADS = dict(one_table=lambda i: TextTokenizer(), no_rules=lambda i: TextTokenizer(rules=[]),
               own_post_rules=lambda i: TextTokenizer(post_rules=[(str.upper, str.lower)[i]]),
               own_sizes=lambda i: TextTokenizer(WordTokenizer(buf_sz=(10, 1000)[i])))

@pytest.mark.parametrize('make', THREADS.values(), ids=THREADS)
def test_two_threads(make):
    rng = random.Random(0)
    texts = [' '.join(f"w{rng.randint(0, 9999)}-x don't" for _ in range(20)) for _ in range(300)]
    want = []
    for i in range(2):
        forget()
        want.append(list(make(i)(texts)))
    forget()
    def job(i):
        tok = make(i)
        return [t for j in range(0, len(texts), 20) for t in tok(texts[j:j+20])]
    for ours,alone in zip(in_threads(partial(job, 0), partial(job, 1)), want, strict=True):
        assert sum(a != b for a,b in zip(ours, alone, strict=True)) == 0

class Interrupted:
    "What cuts words, stopped by the user after `n` calls."
    def __init__(self, cut, n): self.cut,self.n = cut,n
    def __call__(self, text):
        self.n -= 1
        if self.n < 0: raise KeyboardInterrupt
        return self.cut(text)

@pytest.mark.parametrize('rules', [None, []], ids=['rules', 'no_rules'])
@pytest.mark.parametrize('n', [0, 1])
@pytest.mark.parametrize('by_spacy', [False, True])
def test_an_interrupt_leaves_nothing_wrong_behind(n, rules, by_spacy, monkeypatch):
    forget()
    tok = TextTokenizer(rules=rules)
    words = tok.tok if tok._table is None else tok._table._cut.__self__
    monkeypatch.setattr(words._shared, 'batch', 2)
    if by_spacy: monkeypatch.setattr(words._shared, 'cutter', None)
    with monkeypatch.context() as m:
        name = 'spacy' if by_spacy else 'cutter'
        m.setattr(words._shared, name, Interrupted(getattr(words._shared, name), n))
        with pytest.raises(KeyboardInterrupt): list(tok(["zq1 isn't zq2 there, zq3-4 isn't."]))
    assert_same(["zq1 isn't zq2 there, zq3-4 isn't."], tok, rules=rules)

# ---- Sizes

def normal_text(n, seed=0):
    "About `n` characters of words, some with signs; it ends with a full stop."
    rng = random.Random(seed)
    vocab = [''.join(rng.choices('etaoinshrdlucmfw', k=rng.randint(2, 10))) for _ in range(20_000)]
    return ' '.join(w + rng.choice(['']*8 + [',', '.']) for w in rng.choices(vocab, k=n//8)) + ' end.'

@pytest.mark.slow
def test_ten_million_characters():
    "spaCy refuses more than a million; ours takes ten times as much, with no more calls per character than fastai."
    text = normal_text(900_000)
    [want],slow = calls_of(theirs, [text])
    forget()
    tok = TextTokenizer()
    big = ' '.join([text]*(10_000_000//len(text) + 1))
    (ids,ends),fast = calls_of(tok.number, [big])
    print(f"{len(big):,} characters {fast:,} calls, fastai {len(text):,} characters {slow:,} calls")
    assert len(big) >= 10_000_000 and fast < slow*len(big)/len(text)
    n,one = len(want) - 1,[tok.toks[i] for i in ids[:len(want)]]
    assert one == want and (ids[1:].reshape(-1, n) == ids[1:n+1]).all() and ends.tolist() == [len(ids)]

HUGE = dict(letter='x'*100_000, letters='ab'*50_000, cjk='日本語'*33_000, mixed='ab.c,d-e/f(g)'*3_000, digits='12'*50_000,
            newlines='\n'*100_000, inner='a' + '\n'*1000 + 'b', blanks='a' + ' '*100_000 + 'b', faces=': )'*8_000,
            inner_blanks='a' + '\n '*1000 + 'b', dots='. .'*8_000, runs='a' + '\n\n b'*1000, amps='&amp'*20_000)

@pytest.mark.parametrize('text', HUGE.values(), ids=HUGE)
def test_long_pieces(text): assert_same([text, 'a ' + text + ' b'])

REPETITIONS = dict(same='ha '*100_000, capitals='AB '*80_000, twice='the the cat cat '*7_000,
                   newline='no no no '*25_000 + '\n')

@pytest.mark.parametrize('text', REPETITIONS.values(), ids=REPETITIONS)
def test_long_repetition_is_no_trap(text):
    "The rule for repeated words looks at more than a piece; that takes a call or two per word."
    want = theirs([text])
    forget()
    ours,n = calls_of(lambda: list(TextTokenizer()([text])))
    assert ours == want and n < 2*len(text.split()) + 1000

def test_many_short_texts():
    assert_same(['a b c', '', "don't", ':', ')', 'a\tb', 'the the the']*500)

def test_small_calls_do_not_slow_down():
    "A text with a new word takes as many calls when 160,000 words are known as at the start."
    forget()
    tok = TextTokenizer()
    def small(name): return min(calls_of(tok, f'a new {name}{i}x9')[1] for i in range(5))
    first = small('p')
    tok.number([' '.join(map(''.join, islice(product('abcdefghijklmnopqrst', repeat=4), 160_000)))])
    assert small('r') < first + 50

# ---- Real texts

def shared(*path):
    "Path of a shared file; a test without it is skipped."
    path = SHARED.joinpath(*path)
    if not path.exists(): pytest.skip(f"{path} is not there")
    return path

def test_imdb_sample():
    texts = pd.read_csv(shared('imdb_sample', 'texts.csv.xz')).text.tolist()
    assert_same(texts[:150])

def test_a_letter_that_ends_a_word_is_none_of_the_next_ones():
    "New words are looked through together; each is a word of its own all the same."
    forget()
    assert_same(['cinema Aaaarrgh', 'odd dddone', 'buzz zzzoom Zzzz', 'a aaah', 'Booo oooh', 'pass ssssnake sss'])

@pytest.mark.slow
def test_all_imdb_reviews():
    texts = pd.read_csv(shared('imdb', 'imdb_train.csv.xz')).text.tolist()
    forget()
    ours,want = list(TextTokenizer()(texts)),theirs(texts)
    assert len(texts) == 25_000 and [i for i,(a,b) in enumerate(zip(ours, want, strict=True)) if a != b] == []

@pytest.mark.slow
@pytest.mark.parametrize('part', ['train', 'valid', 'test'])
def test_all_of_wikitext(part):
    import lzma
    file = shared('wikitext-2', f'{part}.txt.xz')
    with lzma.open(file, 'rt', encoding='utf8', newline='\n') as f: lines = f.readlines()
    for texts in (lines, ['\n'.join(lines[i:i+50]) for i in range(0, len(lines), 50)]):
        ours,want = list(TextTokenizer()(texts)),theirs(texts)
        assert [i for i,(a,b) in enumerate(zip(ours, want, strict=True)) if a != b] == []

def test_a_new_word_costs_little_in_a_large_table():
    "The table has room for the next words: it is not copied for each of them."
    tok,size = TextTokenizer(WordTokenizer(special_toks=['xxbos'])),20_000
    tok.number([' '.join(f'w{i}q' for i in range(size))])
    costs = []
    tracemalloc.start()
    try:
        for i in range(9):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            tok.number([f'new{i}q'])
            costs.append(tracemalloc.get_traced_memory()[1] - before)
    finally: tracemalloc.stop()
    assert np.median(costs) < 2*size   # bytes; a copy of all facts has more than 30 for each piece
    assert list(tok(['w7q new3q w12345q'])) == [['xxbos', 'w7q', 'new3q', 'w12345q']]
