"Tagged sentences: tags in line with parts of words, targets that count, rows in order, files, bad input, training."
import os
import warnings
from functools import cache
from pathlib import Path

import fastai.text.core
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.text import all as ft
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from rnn_fastai import all as rf
from rnn_fastai.data.documents import PaddedText
from rnn_fastai.data.tags import tag_corpus, word_parts
from rnn_fastai.ship.bundle import load_learner

SHARED = Path(os.environ.get('RNN_FASTAI_DATA', Path(__file__).resolve().parents[2]/'shared'/'data'))
WORDS = "the cat sat Naïve on-the MAT 12,5 don't ! 日本".split()
TAGS = dict(zip(WORDS, 'DET NOUN VERB ADJ ADP NOUN NUM VERB PUNCT NOUN'.split(), strict=True))

@pytest.fixture(autouse=True)
def one_process(monkeypatch): monkeypatch.setattr(fastai.text.core, 'parallelable', lambda *a, **k: False)

def make_frame(n=40, lo=1, hi=15):
    "Sentences with ties of length; an index with duplicates that is not the row's number."
    rng = np.random.default_rng(0)
    sents = [rng.choice(WORDS, rng.integers(lo, hi)).tolist() for _ in range(n)]
    df = pd.DataFrame({'id': range(n), 'tokens': sents, 'tags': [[TAGS[w] for w in s] for s in sents],
                       'held': rng.random(n) < 0.3})
    return df.set_axis([i//3 for i in range(n)][::-1])

BASE = dict(bs=4, seed=1, min_freq=1, device='cpu')
def loaders(df=None, **args): return rf.TagDataLoaders.from_df(make_frame() if df is None else df, **{**BASE, **args})

def subwords(): return rf.ByteLevelTokenizer(290).train(' '.join(s) for s in make_frame().tokens)
TOKS = {'words': lambda: None, 'lower': lambda: str.lower, 'spacy': rf.WordTokenizer, 'rules': rf.TextTokenizer,
        'chars': rf.CharTokenizer, 'subwords': subwords, 'function': lambda: (lambda w: w[:2])}

def parts_of(tok, w):
    "What the net reads of one word, found another way: the word alone."
    if tok is None: return [w]
    if isinstance(tok, rf.WordTokenizer): return tok.tokenize(w)
    if isinstance(tok, rf.CorpusTokenizer): return tok(w)[1:]   # after xxbos
    return [tok(w)]

# ---- Tags in line with parts

@pytest.mark.parametrize('name', TOKS)
def test_first_part_of_each_word_has_its_tag(name):
    tok,df = TOKS[name](),make_frame()
    dls = loaders(df, tok=tok)
    vocab,tags = dls.vocab
    assert list(tags) == sorted(set(TAGS.values())) and dls.c == len(tags)
    for ds in (dls.train_ds, dls.valid_ds):
        for (x,y),words,names in zip(ds[:], ds.items.tokens, ds.items.tags, strict=True):
            want = [(p, t if j == 0 else None) for w,t in zip(words, names, strict=True)
                    for j,p in enumerate(parts_of(tok, w))]
            got = [(vocab[i], None if t == rf.TAG_IGNORE else tags[t])
                   for i,t in zip(x.tolist(), y.tolist(), strict=True)]
            assert got == want

def test_some_tokenizers_split_words():
    n = {name: len(loaders(tok=TOKS[name]()).train_ds.corpus.ids) for name in TOKS}
    assert n['words'] == n['lower'] == n['function'] < n['subwords'] < n['chars'] and n['words'] < n['spacy']

def test_each_word_keeps_its_one_tag():
    df = make_frame()
    for tok in TOKS.values():
        dls = loaders(df, tok=tok())
        n = sum(int((y != rf.TAG_IGNORE).sum()) for dl in (dls.train.new(shuffle=False, drop_last=False), dls.valid)
                for _,y in dl)
        assert n == df.tokens.map(len).sum()

@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.text(max_size=6), max_size=5), max_size=5),
       st.sampled_from(['words', 'rules', 'chars', 'spacy']))
def test_any_words_have_a_part(sents, name):
    tags = [['N']*len(s) for s in sents]
    corpus,y = tag_corpus(sents, tags, ['N'], TOKS[name](), min_freq=1)
    n = [int((y[a:b] == 0).sum()) for a,b in zip(corpus.offsets, corpus.offsets[1:], strict=False)]
    assert n == list(map(len, sents))
    assert len(y) == len(corpus.ids)

def test_words_without_parts_are_unknown():
    for tok in (rf.TextTokenizer(), rf.WordTokenizer(), rf.CharTokenizer()):
        parts = word_parts(['', 'a'], tok)
        assert parts[''] == ('xxunk',) and parts['a'] == ('a',)

@pytest.mark.parametrize('tok', [rf.WordTokenizer, rf.TextTokenizer, rf.CharTokenizer, rf.ByteLevelTokenizer])
def test_classes_of_tokenizers_are_taken(tok):
    assert len(loaders(tok=tok).train.one_batch()[0]) == 4

def test_subwords_are_learnt_from_the_training_rows_and_give_the_vocabulary():
    tok = rf.ByteLevelTokenizer(290)
    dls = loaders(tok=tok)
    assert tok.trained and list(dls.vocab[0]) == list(tok.vocab)

# ---- Batches

@pytest.mark.parametrize('name', ['words', 'chars'])
def test_batches_hold_the_items(name):
    dls = loaders(tok=TOKS[name]())
    for dl in dls:
        idxs,at = dl.get_idxs(),0
        for x,y in dl.new(get_idxs=lambda idxs=idxs: idxs):
            assert type(x) is PaddedText and x.shape == y.shape and x.dtype == y.dtype == torch.int64
            for xr,yr,n in zip(x, y, x.lens.tolist(), strict=True):
                a,b = dl.dataset[idxs[at]]
                assert (xr[:n].tolist(), yr[:n].tolist()) == (a.tolist(), b.tolist())
                assert (xr[n:] == 1).all() and (yr[n:] == rf.TAG_IGNORE).all()
                at += 1

def test_epochs():
    dls = loaders()
    seen = [sorted(str(fastai_row(r)) for x,_ in dls.train.new(drop_last=False) for r in x) for _ in range(2)]
    assert seen[0] == seen[1] == sorted(str(x.tolist()) for x,_ in dls.train_ds[:])
    lens = [n for x,_ in dls.valid for n in x.lens.tolist()]
    assert lens == sorted(lens, reverse=True) and len(lens) == len(dls.valid_ds)

def fastai_row(x): return [i for i in x.tolist() if i != 1]

def test_splits():
    df = make_frame()
    a,b,c = loaders(df),loaders(df),loaders(df, seed=2)
    assert a.valid_ds.items.id.tolist() == b.valid_ds.items.id.tolist() != c.valid_ds.items.id.tolist()
    assert a.valid_ds.items.id.tolist() == df.iloc[list(ft.RandomSplitter(0.2, seed=1)(df)[1])].id.tolist()
    held = loaders(df, valid_col='held')
    assert held.valid_ds.items.held.all() and not held.train_ds.items.held.any()
    assert len(loaders(df, valid_pct=0.5).valid_ds) == 20

def test_words_of_validation_are_unknown():
    df = make_frame()
    df['tokens'] = [[w+'?' if h else w for w in s] for s,h in zip(df.tokens, df.held, strict=True)]
    assert loaders(df, valid_col='held').valid_ds.corpus.ids.max() == 0

def test_loss_counts_real_tokens_only():
    dls = loaders(tok=rf.CharTokenizer())
    x,y = dls.one_batch()
    out = torch.randn(*x.shape, dls.c)
    logp = F.log_softmax(out, -1)
    by_hand = [-logp[i, j, y[i, j]] for i in range(y.shape[0]) for j in range(y.shape[1]) if y[i, j] != rf.TAG_IGNORE]
    assert_close(dls.loss_func(out, y).item(), torch.stack(by_hand).mean().item(), rtol=1e-5, atol=1e-6)
    other = out.clone()
    other[torch.Tensor(y) == rf.TAG_IGNORE] = 99.
    assert_close(dls.loss_func(other, y).item(), dls.loss_func(out, y).item())

def test_shown_and_decoded(capsys):
    dls = loaders(tok=rf.CharTokenizer())
    dls.show_batch()
    dls.valid.show_batch(max_n=2)
    dls.test_dl([['the', 'cat']]).show_batch()
    heads = [h for h in map(str.split, capsys.readouterr().out.splitlines()) if h[0] == 'text']
    assert [len(h) for h in heads] == [2, 2, 1]   # sentences to be tagged have no tags
    text,tags = loaders().valid_ds.decode(loaders().valid_ds[0])
    row = loaders().valid_ds.items.iloc[0]
    assert (str(text), str(tags)) == (' '.join(row.tokens), ' '.join(row.tags))
    assert '·' in str(dls.valid_ds.decode(dls.valid_ds[0])[1])

def test_new_sentences():
    df,dls = make_frame(),loaders()
    x,y = dls.test_dl(df, with_labels=True).one_batch()
    assert x.shape == y.shape and len(dls.test_dl(df.drop(columns='tags')).one_batch()) == 1
    for new in ([['the', 'cat']], [('the', 'cat')], ['the cat'], 'the cat', pd.DataFrame({'tokens': [['the', 'cat']]})):
        x, = dls.test_dl(new).one_batch()
        assert dls.vocab[0][x[0, 0]] == 'the' and x.shape == (1, 2)
    with pytest.raises(ValueError, match="'NEW'"):
        dls.test_dl(df.assign(tags=[['NEW']*len(s) for s in df.tokens]), with_labels=True)

@pytest.mark.parametrize('names', [('words', 'pos'), (1, 0), ('tags', 'tokens'), ('a b', ''),
                                   (np.int64(5), 'x')], ids=str)
def test_names_of_columns(names):
    df = make_frame()
    odd = pd.DataFrame({'id': 1, 'a': df.tokens, 'b': df.tags}).set_axis(pd.Index(['id', *names], dtype=object), axis=1)
    dls = loaders(odd, token_col=1, tag_col=2)
    assert [x.tolist() for x,_ in dls.valid] == [x.tolist() for x,_ in loaders(df).valid]
    if not isinstance(names[0], int): assert len(loaders(odd, token_col=names[0], tag_col=names[1]).vocab[1]) == 7
    assert len(dls.test_dl(odd, with_labels=True).one_batch()) == 2

@pytest.mark.parametrize('wrap', [list, tuple, np.array, ft.L])
def test_kinds_of_lists(wrap):
    df = make_frame()
    got = loaders(df.assign(tokens=[wrap(s) for s in df.tokens], tags=[wrap(s) for s in df.tags]))
    assert [b[1].tolist() for b in got.valid] == [b[1].tolist() for b in loaders(df).valid]
    assert {type(t) for t in got.vocab[0]} == {str}

# ---- Files

CONLLU = ''.join(''.join(f'{i}\t{w}\t_\t{TAGS[w]}\tX\t_\t0\troot\t_\t_\n' for i,w in enumerate(s, 1)) + '\n'
                 for s in make_frame().tokens)
COLUMNS = '\n\n'.join('\n'.join(f'{w} {TAGS[w]}' for w in s) for s in make_frame().tokens)

def test_from_files(tmp_path):
    (tmp_path/'a.conllu').write_text(CONLLU, encoding='utf8')
    (tmp_path/'a.txt').write_text(COLUMNS, encoding='utf8')
    one,two = (rf.TagDataLoaders.from_files(tmp_path/f, tmp_path/f, bs=4, min_freq=1, device='cpu')
               for f in ('a.conllu', 'a.txt'))
    for dls in (one, two):
        assert len(dls.train_ds) == len(dls.valid_ds) == 40 and list(dls.vocab[1]) == sorted(set(TAGS.values()))
        assert dls.valid_ds.items.tokens.tolist() == make_frame().tokens.tolist()
    assert [y.tolist() for _,y in one.valid] == [y.tolist() for _,y in two.valid]
    other = rf.TagDataLoaders.from_files(tmp_path/'a.conllu', tmp_path/'a.conllu', tag_col='xpos', device='cpu')
    assert list(other.vocab[1]) == ['X']

def test_from_frames_of_readers(tmp_path):
    (tmp_path/'a.conllu').write_text(CONLLU, encoding='utf8')
    (tmp_path/'a.txt').write_text(COLUMNS, encoding='utf8')
    a = loaders(rf.read_conllu(tmp_path/'a.conllu'), tag_col='upos')
    b = loaders(rf.read_columns(tmp_path/'a.txt'))
    assert [y.tolist() for _,y in a.valid] == [y.tolist() for _,y in b.valid]

def test_broken_file_is_named(tmp_path):
    (tmp_path/'a.conllu').write_text(CONLLU + '1\tx\n', encoding='utf8')
    with pytest.raises(ValueError, match=r'a\.conllu, line'):
        rf.TagDataLoaders.from_files(tmp_path/'a.conllu', tmp_path/'a.conllu')
    with pytest.raises(FileNotFoundError, match='none.conllu'):
        rf.TagDataLoaders.from_files(tmp_path/'none.conllu', tmp_path/'a.conllu')

def test_treebank():
    file = SHARED/'ud_ewt'/'en_ewt-ud-dev.conllu.xz'
    if not file.exists(): pytest.skip(f'{file} is not here; point RNN_FASTAI_DATA to the folder of data sets')
    tok,df = rf.ByteLevelTokenizer(4000),rf.read_conllu(file, ['upos'])
    dls = rf.TagDataLoaders.from_df(df, tag_col='upos', device='cpu', seed=1, tok=tok)
    assert dls.c == 17 and dls.train.waste < 0.15
    running = sum(len(t) - 1 for t in tok(' '.join(s) for s in dls.train_ds.items.tokens))
    assert dls.train_ds.lens.sum() < 1.1*running   # words are cut as they are in running text, for which it was trained

# ---- Bad input

def with_value(col, value, row=3):
    df = make_frame()
    df.iat[row, df.columns.get_loc(col)] = value
    return df
def unseen():
    df = make_frame()
    at = int(df.held.argmax())
    df.iat[at, 2] = ['NEW']*len(df.tokens.iloc[at])
    return df
def doubled(col):
    df = make_frame()
    return pd.concat([df, df[[col]]], axis=1)

BAD = {
    'tokens a string': (lambda: with_value('tokens', 'a cat'), {}, TypeError, ["'tokens'", 'lists', "'a cat'"]),
    'tokens missing': (lambda: with_value('tokens', None), {}, TypeError, ["'tokens'", 'None']),
    'tokens nan': (lambda: with_value('tokens', float('nan')), {}, TypeError, ["'tokens'", 'nan']),
    'a token is a number': (lambda: with_value('tokens', [5]), {}, TypeError, ["'tokens'", '5']),
    'a token is missing': (lambda: with_value('tokens', [None]), {}, TypeError, ["'tokens'", 'None']),
    'a token is bytes': (lambda: with_value('tokens', [b'a']), {}, TypeError, ["'tokens'", "b'a'"]),
    'tags missing': (lambda: with_value('tags', None), {}, TypeError, ["'tags'", 'None']),
    'a tag is nan': (lambda: with_value('tags', [float('nan')]), {}, TypeError, ["'tags'", 'nan']),
    'tags too few': (lambda: with_value('tags', []), {}, ValueError, ['0 tags', 'tokens', 'ow 12']),
    'tag unseen': (unseen, dict(valid_col='held'), ValueError, ["'NEW'", "'ADJ', 'ADP'"]),
    'no token column': (make_frame, dict(token_col='words'), ValueError, ["token_col='words'", "'tokens'"]),
    'no tag column': (make_frame, dict(tag_col='tag'), ValueError, ["tag_col='tag'", "'tags'"]),
    'no valid column': (make_frame, dict(valid_col='valid'), ValueError, ["valid_col='valid'", "'held'"]),
    'valid_col nan': (lambda: make_frame().assign(held=[None, *[True]*39]), dict(valid_col='held'), ValueError,
                      ["'held'", 'true or false', 'None']),
    'valid_col half': (lambda: make_frame().assign(held=0.5), dict(valid_col='held'), ValueError, ["'held'", '0.5']),
    'valid_col words': (lambda: make_frame().assign(held=['train', 'dev']*20), dict(valid_col='held'), ValueError,
                        ["'held'", 'true or false', "'train'"]),
    'valid_pct negative': (make_frame, dict(valid_pct=-0.1), ValueError, ['valid_pct=-0.1', 'at least 0 and below 1']),
    'valid_pct one': (make_frame, dict(valid_pct=1), ValueError, ['valid_pct=1']),
    'valid_pct nan': (make_frame, dict(valid_pct=float('nan')), ValueError, ['valid_pct=nan']),
    'valid_pct text': (make_frame, dict(valid_pct='0.2'), ValueError, ["valid_pct='0.2'"]),
    'tokens twice': (lambda: doubled('tokens'), {}, ValueError, ["'tokens'", 'several columns']),
    'tags twice, by place': (lambda: doubled('tags'), dict(tag_col=2), ValueError, ["'tags'", 'several columns']),
    'no rows': (lambda: make_frame()[:0], {}, ValueError, ['no rows']),
    'no training rows': (lambda: make_frame().assign(held=True), dict(valid_col='held'), ValueError, ['training']),
    'bs': (make_frame, dict(bs=0), ValueError, ['bs=0']),
    'val_bs': (make_frame, dict(val_bs=1.5), ValueError, ['val_bs=1.5']),
    'name': (make_frame, dict(batch=1), TypeError, ["'batch'"]),
    'function gives a list': (make_frame, dict(tok=str.split), TypeError, ['tok', 'list']),
    'function gives a number': (make_frame, dict(tok=len), TypeError, ['tok', 'int']),
    'no function': (make_frame, dict(tok='lower'), (TypeError, ValueError), ['tok', "'lower'"])}

@pytest.mark.parametrize('case', BAD)
def test_bad_input(case):
    make,args,err,words = BAD[case]
    with pytest.raises(err) as e: loaders(make(), **args)
    assert all(w in str(e.value) for w in words), str(e.value)

def test_empty_sentences():
    df = make_frame(lo=0, hi=4)
    assert (df.tokens.map(len) == 0).any()
    with pytest.raises(ValueError, match='Sentence [0-9]+ of [0-9]+ has no token'): loaders(df, tok=rf.CharTokenizer())

# ---- Learners

class Tagger(nn.Module):
    "Both directions over padded sentences, of which the lengths are told."
    def __init__(self, n, c):
        super().__init__()
        self.emb,self.out = nn.Embedding(n, 24),nn.Linear(48, c)
        self.rnn = nn.LSTM(24, 24, batch_first=True, bidirectional=True)
    def forward(self, x):
        e = nn.utils.rnn.pack_padded_sequence(self.emb(x.as_subclass(torch.Tensor)), x.lens, batch_first=True)
        return self.out(nn.utils.rnn.pad_packed_sequence(self.rnn(e)[0], batch_first=True)[0])

def tag_accuracy(out, y):
    real = y != rf.TAG_IGNORE
    return (out.argmax(-1) == y)[real].float().mean()

def learner(dls, path='.'):
    torch.manual_seed(0)
    learn = rf.Learner(dls, Tagger(len(dls.vocab[0]), dls.c), metrics=tag_accuracy, path=path)
    learn.remove_cb(rf.ProgressCallback)
    return learn

@cache
def trained(name='words'):
    learn = learner(loaders(make_frame(20).assign(held=False), tok=TOKS[name](), valid_pct=0.05))
    learn.dls.valid = learn.dls.train.new(shuffle=False, drop_last=False)
    with learn.no_logging(): learn.fit(25, 3e-2)
    return learn

@pytest.mark.parametrize('name', ['words', *(pytest.param(n, marks=pytest.mark.slow) for n in ('rules', 'chars'))])
def test_a_net_learns_the_tags(name):
    learn = trained(name)
    loss,acc = learn.validate()
    assert acc > 0.98 and loss < 0.15

def test_predict():
    learn = trained()
    tags,ids,probs = learn.predict(['the', 'cat', 'sat'])
    assert str(tags) == 'DET NOUN VERB' and ids.shape == (3,) and probs.shape == (3, learn.dls.c)
    assert str(learn.predict('the cat sat')[0]) == 'DET NOUN VERB'

def alone(learn, tokens):
    "Outputs of one sentence."
    x, = learn.dls.test_dl([tokens]).one_batch()
    with torch.no_grad(): return learn.model.eval()(x)[0].softmax(-1)

def test_predictions_are_in_row_order(bs=64):
    "Sentences of all lengths in one batch: predictions of each row."
    learn,df = trained(),make_frame()
    dl = learn.dls.test_dl(df, with_labels=True, bs=bs)
    preds,y = learn.get_preds(dl=dl)
    assert len(preds) == len(y) == len(df)
    for p,t,tokens,names in zip(preds, y, df.tokens, df.tags, strict=True):
        assert_close(torch.Tensor(p[:len(tokens)]), alone(learn, tokens), rtol=1e-4, atol=1e-5)
        assert [learn.dls.vocab[1][i] for i in t[:len(tokens)]] == names and (t[len(tokens):] == rf.TAG_IGNORE).all()

def test_show_results(capsys):
    trained().show_results()
    assert capsys.readouterr().out.split()[:3] == ['text', 'target', 'prediction']

def test_exported_and_loaded(tmp_path):
    for tok in ('words', 'lower', 'chars', 'subwords'):
        learn = learner(loaders(tok=TOKS[tok]()), tmp_path)
        learn.export('e.pkl')
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            again = load_learner(tmp_path/'e.pkl', allow_pickle=True)   # fastai's own `Learner` writes one
        assert_close(again.predict(['the', 'cat'])[2], learn.predict(['the', 'cat'])[2])
        assert list(again.dls.vocab[1]) == list(learn.dls.vocab[1])

def test_seed_repeats_training():
    def losses():
        ft.set_seed(3)
        learn = learner(loaders())
        with learn.no_logging(): learn.fit(2)
        return [float(v) for v in learn.recorder.losses]
    assert losses() == losses()
