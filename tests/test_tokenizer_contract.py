"fastai's contract of tokenizers: its functions take ours, our loaders take its own and users', with the same results."
import pickle
from collections import Counter

import pandas as pd
import pytest
from fastai.text import all as ft

from rnn_fastai import all as rf

DF = pd.DataFrame({'text': ["The cat isn't here.", 'A dog, a CAT and the dogs', 'the the the cat sat!!!!', 'dogs sat'],
                   'label': ['a', 'b', 'a', 'b'], 'more': ['x Y', 'y', 'X', 'z']})
DF = pd.concat([DF]*8, ignore_index=True)
TEXTS = DF.text.tolist()

class Frequent:
    "Learns which words are frequent; the others lose all but the first letter. Remembers how it was set up."
    def __init__(self): self.setups,self.known = [],set()
    def setup(self, items, rules=None):
        texts = list(ft.maps(*(rules or []), items))
        self.setups.append(texts)
        self.known = {w for w,n in Counter(' '.join(texts).split()).items() if n > 8}
    def __call__(self, items): return ([w if w in self.known else w[0] for w in t.split()] for t in items)

class ByE(ft.BaseTokenizer):
    def __init__(self): super().__init__(split_char='e')

def sentence_piece(tmp_path):
    pytest.importorskip('sentencepiece')
    return ft.SubwordTokenizer(vocab_sz=60, cache_dir=tmp_path)

MAKERS = dict(learned=lambda p: Frequent(), subwords=sentence_piece, blanks=lambda p: ft.BaseTokenizer(),
              subclass=lambda p: ByE(), words=lambda p: rf.WordTokenizer())

@pytest.fixture(params=MAKERS)
def toks(request, tmp_path):
    "Two tokenizers of one kind: for fastai, for us."
    return [MAKERS[request.param](tmp_path/n) for n in ('a', 'b')]

@pytest.fixture
def folder(tmp_path):
    for i,(text,label) in enumerate(zip(DF.text, DF.label, strict=True)):
        file = tmp_path/'texts'/('valid' if i%4 == 0 else 'train')/label/f'{i}.txt'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path/'texts'

def rows(dls):
    "Ids of the validation texts, without what pads them."
    return [[i for i in row if i != 1] for b in dls.valid for row in b[0].tolist()]

def assert_same_loaders(theirs, ours):
    assert list(map(list, ft.L(ours.vocab))) == list(map(list, ft.L(theirs.vocab))) and rows(ours) == rows(theirs)
    new = ['the cat and unseen words']
    assert list(ours.test_dl(new))[0][0].tolist() == list(theirs.test_dl(new))[0][0].tolist()

# ---- Loaders

@pytest.mark.parametrize('is_lm', [True, False], ids=['lm', 'classifier'])
@pytest.mark.parametrize('cols', ['text', ['text', 'more']], ids=['one', 'two'])
def test_frames(toks, is_lm, cols):
    how = dict(text_col=cols, label_col='label', is_lm=is_lm, seq_len=4, bs=2, seed=0)
    assert_same_loaders(*(m.TextDataLoaders.from_df(DF, tok_tfm=t, **how) for m,t in zip((ft, rf), toks, strict=True)))

@pytest.mark.parametrize('is_lm', [True, False], ids=['lm', 'classifier'])
def test_folders(toks, is_lm, folder):
    "fastai counts what its processes finish first, so among equally frequent tokens the order is not certain."
    theirs,ours = (m.TextDataLoaders.from_folder(folder, tok_tfm=t, is_lm=is_lm, seq_len=4, bs=2)
                   for m,t in zip((ft, rf), toks, strict=True))
    def vocab(dls): return dls.vocab if is_lm else dls.vocab[0]
    def tokens(dls): return sorted([vocab(dls)[i] for i in row] for row in rows(dls))
    assert sorted(vocab(ours)) == sorted(vocab(theirs)) and tokens(ours) == tokens(theirs)

def blocks(m, tok, is_lm):
    text,label = m.TextBlock.from_df('text', is_lm=is_lm, tok=tok, seq_len=4),[] if is_lm else [m.CategoryBlock]
    return m.DataBlock([text, *label], get_x=m.ColReader('text'), get_y=None if is_lm else m.ColReader('label'),
                       splitter=m.RandomSplitter(seed=0)).dataloaders(DF, bs=2, seq_len=4)

@pytest.mark.parametrize('is_lm', [True, False], ids=['lm', 'classifier'])
def test_blocks(toks, is_lm): assert_same_loaders(*(blocks(m, t, is_lm) for m,t in zip((ft, rf), toks, strict=True)))

def test_the_transform(toks, folder):
    "`Tokenizer` alone: of a frame, of a folder, of a text."
    def tokens(m, tok):
        tls = m.TfmdLists(DF, m.Tokenizer.from_df('text', tok=tok)),m.TfmdLists(
            m.get_text_files(folder), m.Tokenizer.from_folder(folder, tok=tok, n_workers=0, skip_if_exists=False))
        one = m.Tokenizer(tok)
        return [*([list(x) for x in tl] for tl in tls), list(one(TEXTS[0])), one.decode(one(TEXTS[0]))]
    ours,theirs = (tokens(m, t) for m,t in zip((rf, ft), toks, strict=True))
    assert ours == theirs

@pytest.mark.parametrize('door', ['frame', 'block', 'corpus', 'iterator', 'cache'])
def test_setup_is_called_once_with_all_texts_and_the_rules(door, tmp_path):
    tok = Frequent()
    if door == 'frame': rf.TextDataLoaders.from_df(DF, is_lm=True, seq_len=4, bs=2, tok_tfm=tok)
    elif door == 'block': blocks(rf, tok, True)
    elif door == 'corpus': rf.Corpus.from_texts(DF, 'text', rf.TextTokenizer(tok))
    elif door == 'iterator': rf.Corpus.from_texts(iter(TEXTS), tokenizer=rf.TextTokenizer(tok))
    else: rf.cached_corpus(iter(TEXTS), tokenizer=rf.TextTokenizer(tok), cache=tmp_path)
    assert tok.setups == [list(ft.maps(*ft.defaults.text_proc_rules, TEXTS))]

def test_a_class_is_instantiated():
    dls = rf.TextDataLoaders.from_df(DF, is_lm=True, seq_len=4, bs=2, tok_tfm=Frequent)
    assert len(dls.train_ds.tokenizer.tok.setups) == 1 and len(blocks(rf, Frequent, False).train_ds) == 26

def test_what_is_learnt_is_kept():
    "A `TextTokenizer` is trained once; a bare tokenizer for each set of loaders, as with fastai."
    tok = rf.TextTokenizer(Frequent())
    want = [list(t) for t in tok.train(TEXTS)(TEXTS)]
    for other in (tok, rf.TextTokenizer(tok), pickle.loads(pickle.dumps(tok))):
        assert other.trained
        rf.TextDataLoaders.from_df(DF, is_lm=True, seq_len=4, bs=2, tok_tfm=other)
        assert len(other.tok.setups) == 1 and list(other(TEXTS)) == want
    bare = Frequent()
    for _ in range(2): rf.TextDataLoaders.from_df(DF, is_lm=True, seq_len=4, bs=2, tok_tfm=bare)
    assert len(bare.setups) == 2

def test_the_cache_knows_what_was_learnt(tmp_path):
    a,b,c = (rf.TextTokenizer(Frequent()) for _ in range(3))
    first = rf.cached_corpus(TEXTS, tokenizer=a, cache=tmp_path)
    again = rf.cached_corpus(TEXTS, tokenizer=b, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1 and b.trained and (first.ids == again.ids).all()
    rf.cached_corpus(TEXTS, tokenizer=c.train(['cat']*9), cache=tmp_path)   # it knows other words
    assert len(list(tmp_path.iterdir())) == 2

def vocab_of(tok): return tok.vocab if isinstance(tok, rf.ByteLevelTokenizer) else None

@pytest.mark.parametrize('make', [rf.CharTokenizer, lambda: rf.ByteLevelTokenizer(300), rf.TextTokenizer,
                                  lambda: rf.TextTokenizer(rules=[str.upper])])
@pytest.mark.parametrize('is_lm', [True, False], ids=['lm', 'classifier'])
def test_our_tokenizers_in_a_block_apply_no_rules_of_fastai(make, is_lm):
    block,direct = blocks(rf, make(), is_lm),make()
    text = block.train_ds[0] if is_lm else block.train_ds[0][0]
    if not direct.trained: direct.train(TEXTS)
    vocab = block.vocab if is_lm else block.vocab[0]
    rows = [direct(t) for t in TEXTS]
    got = [vocab[int(i)] for i in (text[0] if isinstance(text, tuple) else text)]
    assert [t for t in got if t != 'xxunk'] == [t for t in rows[TEXTS.index(first_text(block))] if t in vocab]

def first_text(block):
    "The text that the first training item was made from."
    return DF.text[block.train_ds.items.index[0]]

def test_decode_by_the_tokenizers_own_rule():
    for tok in (rf.CharTokenizer(), rf.ByteLevelTokenizer(300).train(TEXTS)):
        tfm = rf.Tokenizer(tok)
        assert tfm.decode(tfm(TEXTS[0])) == TEXTS[0]

# ---- fastai's functions with our tokenizers

def test_names_are_fastais():
    assert rf.BaseTokenizer is ft.BaseTokenizer and rf.SubwordTokenizer is rf.SentencePieceTokenizer
    assert isinstance(rf.WordTokenizer(), rf.SpacyTokenizer) and issubclass(rf.WordTokenizer, ft.WordTokenizer)
    toks = rf.first(rf.WordTokenizer()([TEXTS[0]]))
    assert isinstance(toks, rf.L) and toks == rf.first(rf.SpacyTokenizer()([TEXTS[0]]))
    assert [d.text for d in next(rf.WordTokenizer().pipe([TEXTS[0]]))] == list(toks)
    assert rf.first(rf.BaseTokenizer()(['a b'])) == ['a', 'b'] and rf.first(rf.BaseTokenizer('x')(['axb'])) == ['a', 'b']

@pytest.mark.parametrize('rules', [None, [ft.fix_html, ft.lowercase]], ids=['all', 'two'])
def test_texts_alone(rules):
    tok,ref = rf.WordTokenizer(),ft.SpacyTokenizer()
    assert [rf.tokenize1(t, tok, rules=rules) for t in TEXTS] == [ft.tokenize1(t, ref, rules=rules) for t in TEXTS]
    assert [*rf.TokenizeWithRules(tok, rules)(TEXTS)] == [*ft.TokenizeWithRules(ref, rules)(TEXTS)]
    for n in (0, 2):
        want = sorted(ft.parallel_tokenize(TEXTS, ref, rules, n_workers=0))
        assert sorted(rf.parallel_tokenize(TEXTS, tok, rules, n_workers=n)) == want
        assert rf.tokenize_texts(TEXTS, n, rules, tok) == [t for _,t in want]

def test_frames_and_files(folder):
    tok,ref = rf.WordTokenizer(),ft.SpacyTokenizer()
    (ours,count),(theirs,their_count) = (m.tokenize_df(DF, ['text', 'more'], n_workers=0, tok=t)
                                         for m,t in ((rf, tok), (ft, ref)))
    pd.testing.assert_frame_equal(ours, theirs)
    assert count == their_count
    def read(m, out):
        files = (p for p in out.rglob('*') if p.is_file())
        return {str(p.relative_to(out)): m.load_pickle(p) if p.suffix == '.pkl' else p.read_text() for p in files}
    def written(m, t, out):
        made = m.tokenize_folder(folder, n_workers=0, tok=t, skip_if_exists=False)
        m.tokenize_files(m.get_text_files(folder), folder, out/'files', n_workers=0, tok=t)
        (out/'texts.csv').write_text(DF[['label', 'text']].to_csv(index=False))
        m.tokenize_csv(out/'texts.csv', 'text', n_workers=0, tok=t)
        frame,counter = m.load_tokenized_csv(out/'texts_tok.csv')
        return read(m, made),read(m, out),frame.to_dict(),counter
    outs = [folder.parent/n for n in ('ours', 'theirs')]
    for o in outs: o.mkdir()
    ours = written(rf, tok, outs[0])
    assert ours == written(ft, ref, outs[1]) and len(ours[0]) == len(DF) + 2 and len(ours[1]) == len(DF) + 5

def test_fastais_functions_train_subwords():
    tok = rf.ByteLevelTokenizer(300)
    toks = rf.tokenize_texts(TEXTS, n_workers=0, rules=[str.upper], tok=tok)
    want = rf.ByteLevelTokenizer(300).train(map(str.upper, TEXTS))
    assert tok.vocab == want.vocab and toks == list(want(map(str.upper, TEXTS)))
    tok.setup(['other texts'])
    assert tok.vocab == want.vocab   # it is trained already

def test_subwords_as_in_fastais_book(tmp_path):
    pytest.importorskip('sentencepiece')
    texts = [' '.join(t) for t in zip(TEXTS, reversed(TEXTS), ['it rained on the Plain again and again']*32, strict=True)]
    def subword(m, sz):
        sp = m.SubwordTokenizer(vocab_sz=sz, cache_dir=tmp_path/f'{m.__name__}{sz}')
        sp.setup(texts)
        return ' '.join(m.first(sp([texts[0]]))[:40])
    assert subword(rf, 200) == subword(ft, 200) and '▁' in subword(rf, 200)

# ---- Any tokenizer through every door

ODD = ["The cat  isn't here.", 'señor ≠ 7!\tx\nY', 'A dog, a CAT']   # words, signs and blanks, some of them once

@pytest.fixture
def odd_folder(tmp_path):
    for i,text in enumerate(ODD*4):
        file = tmp_path/'odd'/('valid' if i%4 == 0 else 'train')/'ab'[i%2]/f'{i}.txt'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(('\ufeff' if i%3 == 0 else '') + text, encoding='utf8')
    return tmp_path/'odd'

TOKENIZERS = dict(none=lambda: None, words=rf.WordTokenizer, class_=lambda: rf.WordTokenizer, spacy=rf.SpacyTokenizer,
                  blanks=lambda: rf.BaseTokenizer, learned=Frequent, function=lambda: lambda texts: map(str.split, texts),
                  characters=rf.CharTokenizer, class_of_characters=lambda: rf.CharTokenizer,
                  parts=lambda: rf.ByteLevelTokenizer(300), ours=rf.TextTokenizer,
                  ours_own=lambda: rf.TextTokenizer(rf.BaseTokenizer(), [str.lower], []),
                  capitals=lambda: rf.TextTokenizer(rf.CharTokenizer(), [str.upper]),
                  transform=lambda: rf.Tokenizer(rf.SpacyTokenizer()), fastais=lambda: ft.Tokenizer(ft.SpacyTokenizer()),
                  transform_of_characters=lambda: rf.Tokenizer(rf.CharTokenizer(), rules=[str.lower]))

@pytest.mark.parametrize('name', TOKENIZERS)
def test_every_door_gives_the_same_tokens(name, odd_folder):
    make,files = TOKENIZERS[name],sorted(rf.get_text_files(odd_folder))
    texts = [f.read_text(encoding='utf-8-sig') for f in files]
    tok = rf.TextTokenizer(make()) if not isinstance(make(), rf.CorpusTokenizer) else make()
    want = list(tok.train(texts)(texts))
    tfm = rf.Tokenizer.from_folder(odd_folder, tok=make(), n_workers=0)
    assert [list(tfm(f)) for f in files] == want and tfm.counter == Counter(t for ts in want for t in ts)
    assert tfm.get_lengths(files) == list(map(len, want))
    df = pd.DataFrame({'text': texts})
    assert [*map(list, rf.TfmdLists(df, rf.Tokenizer.from_df('text', tok=make())).items.text)] == want
    for toks in want: assert tfm.decode(toks) == tok.decode(toks)
    direct = rf.TextDataLoaders.from_folder(odd_folder, tok_tfm=make(), bs=2, min_freq=1)
    block = rf.DataBlock((rf.TextBlock.from_folder(odd_folder, tok=make(), n_workers=0, min_freq=1), rf.CategoryBlock),
                         get_items=rf.get_text_files, get_y=rf.parent_label,
                         splitter=rf.GrandparentSplitter()).dataloaders(odd_folder, bs=2)
    def spelt(dls): return sorted([dls.vocab[0][i] for i in row] for row in rows(dls))
    assert spelt(block) == spelt(direct)

def test_tokens_of_a_folder_are_not_taken_from_another_tokenizer(odd_folder):
    "Nor are those of files that came later missing."
    def tokens(tok): return list(rf.Tokenizer.from_folder(odd_folder, tok=tok, n_workers=0)(file))
    file = odd_folder/'valid'/'a'/'0.txt'
    words = ['xxbos', 'xxmaj', 'the', 'cat', 'is', "n't", 'here', '.']
    assert tokens(None) == words and tokens(rf.BaseTokenizer()) == ['xxbos', 'xxmaj', 'the', 'cat', "isn't", 'here.']
    made = odd_folder.parent/'odd_tok'/'valid'/'a'/'0.txt'
    assert tokens(None) == words
    made.write_text('kept')
    assert tokens(rf.WordTokenizer()) == ['kept'] and tokens(rf.WordTokenizer('de'))[1:3] == ['xxmaj', 'the']
    (odd_folder/'new.txt').write_text('later')
    assert list(rf.Tokenizer.from_folder(odd_folder, tok=rf.WordTokenizer('de'))(odd_folder/'new.txt')) == ['xxbos', 'later']

def test_a_tokenizer_that_learns_knows_new_texts_the_second_time_too(odd_folder, tmp_path):
    pytest.importorskip('sentencepiece')
    def make(): return rf.Tokenizer.from_folder(odd_folder, n_workers=0, tok=rf.SubwordTokenizer(
        vocab_sz=60, cache_dir=tmp_path))
    assert list(make()('a cat')) == list(make()('a cat'))

def test_files_that_are_no_utf8(odd_folder):
    "fastai names no file. With `encoding` they are read, and so are their tokens."
    (odd_folder/'train'/'a'/'old.txt').write_bytes('é à'.encode('latin-1'))
    for tok in (None, rf.CharTokenizer()):
        with pytest.raises(ValueError, match=r'old\.txt is not valid UTF-8'):
            rf.Tokenizer.from_folder(odd_folder, tok=tok, n_workers=0)
    for file in rf.get_text_files(odd_folder): file.write_bytes('é à'.encode('latin-1'))
    tfm = rf.Tokenizer.from_folder(odd_folder, encoding='latin-1', n_workers=0, skip_if_exists=False)
    assert list(tfm(file)) == ['xxbos', 'é', 'à']
    with pytest.raises(TypeError, match="output_dir"):
        rf.Tokenizer.from_folder(odd_folder, tok=rf.CharTokenizer(), output_dir=odd_folder/'out')

def test_rare_characters_are_known_in_a_block():
    df = pd.DataFrame({'text': ['a cat']*10 + ['señor'], 'label': list('ab'*5) + ['a']})
    def vocab(tok, **kw): return rf.DataBlock((rf.TextBlock.from_df('text', tok=tok, **kw), rf.CategoryBlock),
        get_x=rf.ColReader('text'), get_y=rf.ColReader('label')).dataloaders(df, bs=2).vocab[0]
    assert 'ñ' in vocab(rf.CharTokenizer()) and 'ñ' not in vocab(rf.CharTokenizer(), min_freq=3)
    assert 'señor' not in vocab(None) and 'señor' in vocab(None, min_freq=1)

@pytest.mark.parametrize('text', ODD)
@pytest.mark.parametrize('make', [rf.CharTokenizer, lambda: rf.ByteLevelTokenizer(300).train(ODD)])
def test_rules_of_ones_own_before_characters(make, text):
    "No blanks between characters, no `xxbos` in letters, no sign for a blank; also after a copy."
    tok,plain = rf.TextTokenizer(make(), [str.upper]),make()
    for t in (tok, pickle.loads(pickle.dumps(tok)), rf.TextTokenizer(rf.Tokenizer(make(), [str.upper]))):
        assert t(text) == plain(text.upper()) and t.decode(t(text)) == text.upper()
        assert (t.min_freq, t.vocab, t.trained) == (1, plain.vocab, True)
    assert rf.TextTokenizer(make())(text) == plain(text)
    assert not rf.TextTokenizer(rf.ByteLevelTokenizer(300)).trained
    own = rf.TextTokenizer(make(), post_rules=[str.upper])   # its tokens are not those of the vocabulary any more
    assert own.vocab is None and own(text) == [t.upper() for t in plain(text)]

@pytest.mark.parametrize('tok,err,words', [
    (str.split, TypeError, ["method 'split'", 'an iterable of texts', 'BaseTokenizer']),
    (lambda texts: None, TypeError, ['an iterable of texts']),
    (lambda texts: [['one']], ValueError, ['tokens of 1 texts for']),
    (lambda texts: ([1, 2] for _ in texts), TypeError, ['tokenizer gave 1, of type int']),
    (rf.TextTokenizer(post_rules=[lambda t: [t]]), TypeError, ['post_rules', "of type list", 'a string for each']),
    (rf.TextTokenizer(ft.BaseTokenizer(), post_rules=[lambda t: None]), TypeError, ['post_rules', 'NoneType'])])
def test_tokenizers_that_give_something_else(tok, err, words):
    with pytest.raises(err) as e: rf.TextDataLoaders.from_df(DF, is_lm=True, seq_len=4, bs=2, tok_tfm=tok)
    assert all(w in str(e.value) for w in words), str(e.value)
