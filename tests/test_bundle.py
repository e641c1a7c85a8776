"Saved models answer as the ones that were saved, or are refused by name, and a save is whole or not at all."
import json
import os
import random
import shutil
import subprocess
import sys

import fastai.text.core
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.text import all as ft
from torch import nn
from torch.testing import assert_close

from rnn_fastai import all as rf
from rnn_fastai.ship import bundle as saved

ARCH = dict(config=dict(emb_sz=6, n_hid=6, n_layers=2))
CELL = dict(emb_sz=6, n_hid=6)
WORDS = "The CAT sat on-the Naïve mat 12,5 don't ! soooo".split()
NEW = ["The naïve CAT don't sat !", 'mat  unseen ÄÖ']

@pytest.fixture(autouse=True)
def one_process(monkeypatch): monkeypatch.setattr(fastai.text.core, 'parallelable', lambda *a, **k: False)

def texts(n=30):
    rng = random.Random(0)
    rows = [' '.join(rng.choices(WORDS, k=8)) for _ in range(n)]
    return pd.DataFrame(dict(text=rows, title=[r[:9] for r in rows], label=['neg', 'pos', 'neg']*(n//3),
                             stars=[1., 2.5, 4.]*(n//3), many=['a;b', 'b', '']*(n//3), number=[3, 10, 2]*(n//3)))

def sents(n=20):
    rng = random.Random(1)
    toks = [rng.choices(WORDS, k=rng.randint(1, 6)) for _ in range(n)]
    return pd.DataFrame(dict(tokens=toks, tags=[['X' if w.isalpha() else 'O' for w in s] for s in toks]))

TOKS = {'default': lambda: None, 'words': rf.WordTokenizer, 'german': lambda: rf.WordTokenizer('de'),
        'texts': rf.TextTokenizer, 'characters': rf.CharTokenizer, 'subwords': lambda: rf.ByteLevelTokenizer(290),
        'unigram': lambda: rf.ByteLevelTokenizer(290, 'unigram'),
        'split': lambda: rf.TextTokenizer(fastai.text.core.BaseTokenizer(' '), rules=[]),
        'few rules': lambda: rf.TextTokenizer(rules=[ft.fix_html, ft.lowercase], post_rules=[], sep='_')}

def lm_dls(tok=None, **args):
    return rf.TextDataLoaders.from_df(texts(), **{**dict(is_lm=True, text_col='text', tok_tfm=tok, bs=2, seq_len=7,
                                                         seed=0, device='cpu', min_freq=1, no_bar=True), **args})
def clas_dls(tok=None, **args):
    return rf.TextDataLoaders.from_df(texts(), **{**dict(text_col='text', label_col='label', tok_tfm=tok, bs=4, seed=0,
                                                         device='cpu', min_freq=1, no_bar=True), **args})
def tag_dls(tok=None, **args):
    return rf.TagDataLoaders.from_df(sents(), **{**dict(tok=tok, bs=4, seed=0, device='cpu', min_freq=1), **args})

def make(task, dls, arch='AWD_GRU', args=ARCH):
    "A learner whose weights are far from those of any other one."
    torch.manual_seed(1)
    learn = saved.build_learner(task, dls, arch, args)
    for p in learn.model.parameters(): p.data += torch.randn_like(p)*0.5
    return quiet(learn)

def quiet(learn):
    learn.remove_cb(ft.ProgressCallback)
    learn.logger = lambda *a: None
    return learn

def round_trip(folder, learn, task, arch='AWD_GRU', args=ARCH):
    random_state = torch.random.get_rng_state()
    assert rf.save_bundle(learn, folder, task, arch, args, score=0.5) == folder
    again,facts = rf.load_bundle(folder)
    assert torch.equal(random_state, torch.random.get_rng_state())
    assert (facts['task'], facts['arch'], facts['scores']) == (task, arch, dict(score=0.5))
    assert type(again) is type(learn) and type(again.loss_func) is type(learn.loss_func)
    for (k,a),b in zip(learn.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), k
    return quiet(again)

def same_texts(a, b):
    for l in (a, b): l.dls.valid_ds.new(NEW)
    said = [[(t.text, t.logps) for t in l.generate(NEW, 9, seed=3, no_bar=True)] for l in (a, b)]
    assert [t for t,_ in said[0]] == [t for t,_ in said[1]]
    for (_,p),(_,q) in zip(*said, strict=True): assert_close(p, q)
    for s,t in zip(*(l.score(NEW, no_bar=True) for l in (a, b)), strict=True):
        assert s.tokens == t.tokens
        assert_close(s.logps, t.logps)
    p,q = (l.get_preds(dl=l.dls.test_dl(texts())) for l in (a, b))
    assert_close(p, q)

def same_labels(a, b, new=None):
    new = texts() if new is None else new
    for l in (a, b): l.dl = l.dls.test_dl(new, with_labels=True)
    assert_close(*(l.get_preds(dl=l.dl) for l in (a, b)))
    assert_close(*(list(map(float, l.validate(dl=l.dl)))[0] for l in (a, b)))
    for t in NEW:
        (x,i,p),(y,j,q) = a.predict(t),b.predict(t)
        assert str(x) == str(y)
        assert_close((i, p), (j, q))

def same_tags(a, b):
    new = [t.split() for t in NEW]
    assert a.tag(new) == b.tag(new)
    for l in (a, b): l.dl = l.dls.test_dl(sents(), with_labels=True)
    assert_close(*(l.get_preds(dl=l.dl, with_decoded=True) for l in (a, b)))
    assert_close(*(list(l.validate(dl=l.dl)) for l in (a, b)))

# ---- Every tokenizer and task

@pytest.mark.parametrize('tok', TOKS)
def test_language_models_write_the_same(tok, tmp_path):
    learn = make('lm', lm_dls(TOKS[tok]()))
    same_texts(learn, round_trip(tmp_path/'m', learn, 'lm'))

@pytest.mark.parametrize('tok', TOKS)
def test_classifiers_say_the_same(tok, tmp_path):
    learn = make('classifier', clas_dls(TOKS[tok]()))
    same_labels(learn, round_trip(tmp_path/'m', learn, 'classifier'))

@pytest.mark.parametrize('tok', [*TOKS, 'lower', 'upper'])
def test_taggers_say_the_same(tok, tmp_path):
    make_tok = {**TOKS, 'lower': lambda: str.lower, 'upper': lambda: str.upper}[tok]
    learn = make('tagger', tag_dls(make_tok()), 'LSTM', CELL)
    same_tags(learn, round_trip(tmp_path/'m', learn, 'tagger', 'LSTM', CELL))

# ---- Other data

@pytest.mark.parametrize('task', ['lm', 'classifier'])
@pytest.mark.parametrize('args', [dict(backwards=True), dict(text_col=['title', 'text']), dict(text_col=0)], ids=str)
def test_directions_and_columns(task, args, tmp_path):
    learn = make(task, (lm_dls if task == 'lm' else clas_dls)(**args))
    again = round_trip(tmp_path/'m', learn, task)
    (same_texts if task == 'lm' else same_labels)(learn, again)

B = {'categories': dict(), 'numbers as names': dict(label_col='number'), 'truth': dict(label_col='truth'),
     'unsorted': dict(y_block=ft.CategoryBlock(['pos', 'neg'], sort=False)),
     'with what is missing': dict(y_block=ft.CategoryBlock(add_na=True)),
     'lists': dict(label_col='many', label_delim=';'),
     'named lists': dict(label_col='many', label_delim=';', y_block=ft.MultiCategoryBlock(vocab=['b', 'a'])),
     'encoded': dict(label_col=['x', 'y'], y_block=ft.MultiCategoryBlock(encoded=True, vocab=['y', 'x'])),
     'value': dict(label_col='stars', y_block=ft.RegressionBlock()),
     'values': dict(label_col=['stars', 'number'], y_block=ft.RegressionBlock())}

def more(): return texts().assign(x=lambda d: d.number % 2, y=lambda d: 1 - d.x, truth=lambda d: d.stars > 2)

@pytest.mark.parametrize('case', B)
def test_kinds_of_labels(case, tmp_path):
    dls = rf.TextDataLoaders.from_df(more(), **{**dict(text_col='text', label_col='label', bs=4, seed=0, device='cpu',
                                                       min_freq=1, no_bar=True), **B[case]})
    learn = make('classifier', dls)
    again = round_trip(tmp_path/'m', learn, 'classifier')
    assert list(again.dls.vocab[1]) == list(dls.vocab[1])
    assert [type(v) for v in again.dls.vocab[1]] == [type(v) for v in dls.vocab[1]]
    assert [m.name for m in again.metrics] == [m.name for m in learn.metrics]
    assert_close(list(again.validate(dl=again.dls.test_dl(more(), with_labels=True))),
                 list(learn.validate(dl=learn.dls.test_dl(more(), with_labels=True))))
    same_labels(learn, again, more())

def test_range_of_a_regression(tmp_path):
    args = dict(ARCH, y_range=(1., 5.), lin_ftrs=[7], ps=[0.2], max_len=5, drop_mult=0.1)
    learn = make('classifier', clas_dls(label_col='stars', y_block=ft.RegressionBlock()), 'AWD_LSTM', args)
    again = round_trip(tmp_path/'m', learn, 'classifier', 'AWD_LSTM', args)
    same_labels(learn, again)
    p = again.get_preds(dl=again.dls.test_dl(texts()))[0]
    assert p.min() >= 1 and p.max() <= 5

def test_labels_from_folders(tmp_path):
    for i,row in enumerate(texts().itertuples()):
        file = tmp_path/'set'/('train' if i % 3 else 'valid')/row.label/f'{i}.txt'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(row.text, encoding='utf8')
    dls = rf.TextDataLoaders.from_folder(tmp_path/'set', bs=4, device='cpu', no_bar=True, vocab=['neg', 'pos'])
    learn = make('classifier', dls)
    same_labels(learn, round_trip(tmp_path/'m', learn, 'classifier'), list((tmp_path/'set').rglob('*.txt')))

@pytest.mark.parametrize('arch,args,data', [
    ('GRU', dict(CELL, num_layers=2, crf=True), {}), ('minGRU', CELL, dict(chars=True)),
    ('LSTM', dict(CELL, letter_hid=3, letter_emb=3, crf=True), dict(chars=True, tok=str.casefold)),
    ('AWD_LSTM', dict(ARCH, crf=True), dict(tok=str.lower)), ('AWD_QRNN', dict(config=dict(ARCH['config'], bidir=True)), {})])
def test_taggers_over_other_nets(arch, args, data, tmp_path):
    learn = make('tagger', tag_dls(**data), arch, args)
    same_tags(learn, round_trip(tmp_path/'m', learn, 'tagger', arch, args))

def test_columns_of_taggers(tmp_path):
    df = sents().rename(columns=dict(tokens='words', tags='pos'))
    learn = make('tagger', rf.TagDataLoaders.from_df(df, 'words', 'pos', bs=4, seed=0, device='cpu'), 'LSTM', CELL)
    again = round_trip(tmp_path/'m', learn, 'tagger', 'LSTM', CELL)
    assert again.tag(df) == learn.tag(df)
    assert_close(list(again.validate(dl=again.dls.test_dl(df, with_labels=True))),
                 list(learn.validate(dl=learn.dls.test_dl(df, with_labels=True))))

@pytest.mark.parametrize('arch', ['AWD_LSTM', 'AWD_minGRU', rf.AWD_LSTM])
def test_architectures_by_name_or_class(arch, tmp_path):
    learn,name = make('lm', lm_dls(), arch),arch if isinstance(arch, str) else 'AWD_LSTM'
    rf.save_bundle(learn, tmp_path/'m', 'lm', arch, ARCH)
    again,facts = rf.load_bundle(tmp_path/'m')
    assert facts['arch'] == name
    same_texts(learn, quiet(again))

def test_two_readings(tmp_path):
    dls = clas_dls(y_block=ft.CategoryBlock(['pos', 'neg'], sort=False))
    back = clas_dls(y_block=ft.CategoryBlock(['pos', 'neg'], sort=False), backwards=True, text_vocab=dls.vocab[0])
    learn = quiet(rf.combine_directions(make('classifier', dls), make('classifier', back)))
    for p in learn.model.backwards.parameters(): p.data *= 2
    again = round_trip(tmp_path/'m', learn, 'classifier')
    same_labels(learn, again)
    again.fit(1)   # its groups of parameters are those of `combine_directions`

def test_another_process(tmp_path):
    learn = make('lm', lm_dls(rf.ByteLevelTokenizer(290)))
    rf.save_bundle(learn, tmp_path/'m', 'lm', 'AWD_GRU', ARCH)
    code = ("import sys, json; from rnn_fastai.ship.bundle import load_bundle; learn,_ = load_bundle(sys.argv[1])\n"
            "t, = learn.generate([sys.argv[2]], 12, seed=5, no_bar=True); print(json.dumps([t.text, t.logps.tolist()]))")
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, str(tmp_path/'m'), NEW[0]], check=True,
                         capture_output=True, text=True, encoding='utf8')
    text,logps = json.loads(res.stdout.splitlines()[-1])
    want, = learn.generate([NEW[0]], 12, seed=5, no_bar=True)
    assert text == want.text
    assert_close(torch.tensor(logps), want.logps.cpu().float())

def test_an_encoder_of_a_saved_language_model(tmp_path):
    learn = make('lm', lm_dls())
    again = round_trip(tmp_path/'m', learn, 'lm')
    file = again.save_encoder('encoder')
    clas = rf.text_classifier_learner(clas_dls(text_vocab=again.dls.vocab), 'AWD_GRU', pretrained=False, **ARCH)
    clas.load_encoder(file)
    assert_close(clas.model[0].module.encoder.weight, learn.model[0].encoder.weight)
    rf.save_bundle(learn, tmp_path/'m', 'lm', 'AWD_GRU', ARCH)
    assert file.exists()   # other files of the folder stay

def test_models_on_fastais_block(tmp_path):
    "The loader gathers the block's texts; prompts are cut by the default tokenizer, before and after."
    block = ft.DataBlock(rf.TextBlock.from_df('text', is_lm=True, seq_len=7), get_x=ft.ColReader('text'),
                         splitter=ft.RandomSplitter(0.2, seed=0))
    learn = make('lm', block.dataloaders(texts(), bs=2, device='cpu'))
    same_texts(learn, round_trip(tmp_path/'m', learn, 'lm'))

def test_the_learner_stays_as_it_is(tmp_path):
    learn = make('lm', lm_dls())
    learn.path = tmp_path/'own'
    before = {k: v for k,v in vars(learn).items() if k in ('path', 'model_dir', 'dls', 'model', 'opt', 'loss_func')}
    modes = [m.training for m in learn.model.modules()]
    rf.save_bundle(learn, tmp_path/'m', 'lm', 'AWD_GRU', ARCH)
    assert {k: vars(learn)[k] for k in before} == before and [m.training for m in learn.model.modules()] == modes
    assert learn.save('a').parent == tmp_path/'own'/'models'

# ---- Refused by name, and nothing is written

class OwnWords(rf.WordTokenizer): pass
class OwnChars(rf.CharTokenizer): pass
class OwnLearner(rf.LMLearner): pass
class OwnLoader(rf.LMDataLoader): pass

def own_rule(t): return t.replace('a', 'b')
def with_loss(learn, loss): learn.loss_func = loss; return learn
def with_module(learn):
    learn.model = nn.Sequential(*learn.model, nn.ReLU())
    return learn
def with_other_class():
    learn = make('lm', lm_dls())
    class Own(type(learn.model)):
        def forward(self, ids, state=None):
            out = super().forward(ids, state)
            return out._replace(logits=-out.logits)
    learn.model.__class__ = Own
    return learn
def with_other_forward():
    learn = make('lm', lm_dls())
    decoder = learn.model[1]
    forward = decoder.forward
    decoder.forward = lambda x: tuple(-o for o in forward(x))
    return learn
def with_weight(value):
    learn = make('lm', lm_dls())
    learn.model[1].decoder.bias.data[3] = value
    return learn
def of_fastai():
    block = ft.DataBlock((ft.TextBlock.from_df('text'), ft.CategoryBlock), get_x=ft.ColReader('text'),
                         get_y=ft.ColReader('label'), splitter=ft.RandomSplitter(0.2, seed=0))
    return quiet(rf.text_classifier_learner(block.dataloaders(texts(), bs=4, device='cpu'), 'AWD_GRU', pretrained=False, **ARCH))
def own_learner():
    dls = lm_dls()
    return OwnLearner(dls, make('lm', dls).model, loss_func=ft.CrossEntropyLossFlat())
def own_loader():
    learn = make('lm', lm_dls())
    learn.dls = ft.DataLoaders(OwnLoader(learn.dls.train_ds, bs=2), OwnLoader(learn.dls.train_ds, bs=2), device='cpu')
    return learn
def own_reader():
    learn = make('classifier', clas_dls())
    learn.dls.train_ds.read_labels = lambda df: ['pos']*len(df)
    return learn
def halves():
    "Two halves of a pair, which JSON makes one character of."
    return make('tagger', rf.TagDataLoaders.from_df(pd.DataFrame(dict(tokens=[['\ud83d\ude00', 'a']]*9, tags=[['A', 'B']]*9)),
                                                    bs=2, device='cpu'), 'LSTM', CELL)
def small_rnn(): return rf.rnn_learner(rf.SeqDataLoaders.from_series('abcabc', device='cpu'), 'GRU', 4)
def vectors(): return make('tagger', tag_dls(), 'LSTM', dict(CELL, vectors={w: np.ones(6, 'f4')*i for i,w in enumerate(WORDS)}))
def labels_of(values): return make('classifier', rf.TextDataLoaders.from_df(
    texts().assign(label=values*10), text_col='text', label_col='label', bs=4, device='cpu', no_bar=True))
def own_block():
    block = ft.TransformBlock(type_tfms=OwnCategorize())
    return make('classifier', clas_dls(y_block=block))
class OwnCategorize(ft.Categorize): pass

LM,CLAS,TAG = ('lm', 'AWD_GRU', ARCH),('classifier', 'AWD_GRU', ARCH),('tagger', 'LSTM', CELL)
REFUSED = {
    'own rule': (lambda: make('lm', lm_dls(rf.TextTokenizer(rules=[own_rule]))), LM, 'function own_rule'),
    'lambda': (lambda: make('lm', lm_dls(rf.TextTokenizer(post_rules=[lambda t: t]))), LM, '<lambda>'),
    'own words': (lambda: make('lm', lm_dls(OwnWords())), LM, "WordTokenizer"),
    'own characters': (lambda: make('classifier', clas_dls(OwnChars())), CLAS, 'CharTokenizer'),
    'spacy of fastai': (lambda: make('classifier', clas_dls(fastai.text.core.SpacyTokenizer())), CLAS, 'SpacyTokenizer'),
    'function of a tagger': (lambda: make('tagger', tag_dls(lambda w: w[:2]), 'LSTM', CELL), TAG, '<lambda>'),
    'own words of a tagger': (lambda: make('tagger', tag_dls(OwnWords()), 'LSTM', CELL), TAG, 'WordTokenizer'),
    'another kind': (lambda: make('lm', lm_dls()), CLAS, 'ClassifierLearner; LMLearner'),
    'sequences': (small_rnn, LM, 'NextTokenLearner cannot be kept'),
    'own learner': (own_learner, LM, 'OwnLearner cannot be kept'),
    'own loader': (own_loader, LM, 'OwnLoader'),
    'loaders of fastai': (of_fastai, CLAS, 'Datasets cannot be kept'),
    'own reader of labels': (own_reader, CLAS, 'read_labels='),
    'own block': (own_block, CLAS, 'OwnCategorize'),
    'dates': (lambda: labels_of(list(pd.to_datetime(['2020', '2021', '2022']))), CLAS, 'Timestamp'),
    'another module': (lambda: with_module(make('lm', lm_dls())), LM, 'Sequential of your own'),
    'another class': (with_other_class, LM, 'a Own of your own'),
    'another forward': (with_other_forward, LM, 'gives other answers'),
    'another size': (lambda: make('lm', lm_dls()), ('lm', 'AWD_GRU', dict(config=dict(emb_sz=6, n_hid=7, n_layers=2))),
                     "learner's weights do not fit"),
    'another cell': (lambda: make('lm', lm_dls()), ('lm', 'AWD_LSTM', ARCH), 'do not fit'),
    'no such architecture': (lambda: make('lm', lm_dls()), ('lm', 'AWD_GRX', ARCH), "'AWD_GRX'.*'AWD_GRU'"),
    'no such task': (lambda: make('lm', lm_dls()), ('lmm', 'AWD_GRU', ARCH), "'lmm'.*'lm'"),
    'no such argument': (lambda: make('lm', lm_dls()), ('lm', 'AWD_GRU', dict(ARCH, hidden=3)), "hidden"),
    'argument that is no JSON': (lambda: make('lm', lm_dls()), ('lm', 'AWD_GRU', dict(ARCH, lr=nn.Identity())), 'args.*Identity'),
    'rnn_learner over texts': (lambda: quiet(rf.rnn_learner(lm_dls(), 'GRU', 6)), LM, 'do not fit'),
    'smoothed labels': (lambda: with_loss(make('classifier', clas_dls()), ft.LabelSmoothingCrossEntropyFlat()), CLAS,
                        'loss_func=.*LabelSmoothing.*learn.loss_func = '),
    'weighted classes': (lambda: with_loss(make('classifier', clas_dls()), ft.CrossEntropyLossFlat(weight=torch.tensor([1., 3.]))),
                         CLAS, 'loss_func='),
    'another threshold': (lambda: with_loss(make('classifier', clas_dls(label_col='many', label_delim=';')),
                                            ft.BCEWithLogitsLossFlat(thresh=0.1)), CLAS, 'loss_func='),
    'another error': (lambda: with_loss(make('classifier', clas_dls(label_col='stars', y_block=ft.RegressionBlock())),
                                        ft.L1LossFlat()), CLAS, 'loss_func='),
    'loss of other shapes': (lambda: with_loss(make('tagger', tag_dls(), 'LSTM', CELL), nn.NLLLoss2d()), TAG, 'loss_func='),
    'nan': (lambda: with_weight(torch.nan), LM, 'bias holds 1 of 24 numbers that are not finite'),
    'infinity': (lambda: with_weight(-torch.inf), LM, 'bias holds 1 of 24 numbers that are not finite'),
    'half precision': (lambda: (learn := make('lm', lm_dls()), learn.model.half())[0], LM, 'torch.float16.*torch.float32'),
    'vectors': (vectors, ('tagger', 'LSTM', dict(CELL, vectors='glove.txt')), 'vectors.*emb_sz'),
    'halves of a pair': (halves, TAG, 'vocabulary')}

@pytest.mark.parametrize('case', REFUSED)
def test_refused_by_name(case, tmp_path):
    build,(task,arch,args),words = REFUSED[case]
    learn = build()
    with pytest.raises(ValueError, match=f'(?s){words}'): rf.save_bundle(learn, tmp_path/'m', task, arch, args)
    assert not (tmp_path/'m').exists()
    good = make('lm', lm_dls())
    rf.save_bundle(good, tmp_path/'m', 'lm', 'AWD_GRU', ARCH)
    before = {f.name: f.read_bytes() for f in (tmp_path/'m').iterdir()}
    with pytest.raises(ValueError): rf.save_bundle(learn, tmp_path/'m', task, arch, args)
    assert {f.name: f.read_bytes() for f in (tmp_path/'m').iterdir()} == before

def test_scores_that_are_no_json(tmp_path):
    learn = make('lm', lm_dls())
    with pytest.raises(ValueError, match='scores.*Tensor'):
        rf.save_bundle(learn, tmp_path/'m', *LM, loss=torch.ones(1))
    rf.save_bundle(learn, tmp_path/'m', *LM, loss=np.float32(0.5))
    assert rf.load_bundle(tmp_path/'m')[1]['scores'] == dict(loss=0.5)

def test_vectors_are_in_the_weights(tmp_path):
    learn = vectors()
    same_tags(learn, round_trip(tmp_path/'m', learn, 'tagger', 'LSTM', CELL))

def test_losses_set_back_can_be_kept(tmp_path):
    learn = with_loss(make('classifier', clas_dls()), ft.LabelSmoothingCrossEntropyFlat())
    learn.loss_func = ft.CrossEntropyLossFlat()
    same_labels(learn, round_trip(tmp_path/'m', learn, 'classifier'))

# ---- Whole or not at all

def test_a_save_that_is_killed_leaves_the_old_model_or_the_new_one(tmp_path, monkeypatch):
    "The folder as it is before each step that changes it: whichever model is there, it is whole."
    old,new = make('lm', lm_dls()),make('lm', lm_dls())
    for p in new.model.parameters(): p.data *= 2
    rf.save_bundle(old, tmp_path/'m', *LM)
    seen = []
    def watched(owner, name):
        f = getattr(owner, name)
        def g(*args, **kwargs):
            seen.append((name, shutil.copytree(tmp_path/'m', tmp_path/f'{len(seen)}')))
            return f(*args, **kwargs)
        monkeypatch.setattr(owner, name, g)
    for owner,name in ((torch, 'save'), (os, 'replace'), (saved.Path, 'unlink')): watched(owner, name)
    rf.save_bundle(new, tmp_path/'m', *LM)
    monkeypatch.undo()
    def bias(folder): return rf.load_bundle(folder)[0].model[1].decoder.bias
    which = [[torch.equal(bias(folder), l.model[1].decoder.bias) for l in (old, new)] for _,folder in seen]
    assert {n for n,_ in seen} == {'save', 'replace', 'unlink'}
    assert which == sorted([[True, False]]*which.count([True, False]) + [[False, True]]*which.count([False, True]))[::-1]
    assert [True, False] in which and [False, True] in which
    for _,folder in seen:
        rf.save_bundle(new, folder, *LM)
        assert sorted(f.name for f in folder.iterdir()) == ['facts.json', weights_of(folder).name]

@pytest.mark.parametrize('step', ['write_weights', 'replace'])
def test_a_full_disk_leaves_the_old_model(step, tmp_path, monkeypatch):
    learn = make('lm', lm_dls())
    rf.save_bundle(learn, tmp_path/'m', *LM)
    before = {f.name: f.read_bytes() for f in (tmp_path/'m').iterdir()}
    def full(*args, **kwargs): raise OSError(28, 'No space left on device')
    if step == 'replace': monkeypatch.setattr(saved.os, 'replace', full)
    else: monkeypatch.setattr(saved, 'write_weights', full)
    with pytest.raises(OSError, match='No space'): rf.save_bundle(learn, tmp_path/'m', *LM)
    assert {f.name: f.read_bytes() for f in (tmp_path/'m').iterdir()} == before

def test_other_files_in_the_folder_stay(tmp_path):
    "Even such as are called like weights; those of the model before, and what a killed process left, go."
    folder,learn = tmp_path/'m',make('lm', lm_dls())
    rf.save_bundle(learn, folder, *LM)
    old,parts = weights_of(folder),['weights-0123456789ab.pth.part', 'weights-0123456789ab.pth.json.part']
    own = ['notes.txt', 'weights-2024.csv', 'weights-best.pth', 'weights-0123456789ab.pth~', 'facts.json.bak']
    for name in own + parts: (folder/name).write_text('mine')
    (folder/'weights-old').mkdir()
    rf.save_bundle(learn, folder, *LM)
    assert sorted(f.name for f in folder.iterdir()) == sorted([*own, 'weights-old', 'facts.json', weights_of(folder).name])
    assert not old.exists()
    loaded,_ = rf.load_bundle(folder)
    file = loaded.save('weights-mine')   # what a loaded learner saves lies in its folder
    rf.save_bundle(loaded, folder, *LM)
    assert file.exists() and file.parent == folder

# ---- Damaged folders

@pytest.fixture(scope='module')
def kept(tmp_path_factory):
    learn = make('lm', lm_dls())
    return rf.save_bundle(learn, tmp_path_factory.mktemp('kept')/'m', *LM)

def copy_of(kept, tmp_path):
    return shutil.copytree(kept, tmp_path/'m')

def weights_of(folder): return folder/json.loads((folder/'facts.json').read_text())['weights']

BAD_WEIGHTS = {'nan': (lambda w: w*torch.nan, 'not finite'), 'integers': (lambda w: w.long(), 'torch.int64'),
               'complex': (lambda w: w*1j, 'torch.complex64'), 'double': (lambda w: w.double(), 'torch.float64'),
               'shape': (lambda w: w[:-1], 'do not fit the model'), 'no tensor': (lambda w: w.tolist(), 'not weights by name')}

@pytest.mark.parametrize('case', BAD_WEIGHTS)
def test_bad_weights_are_refused(case, kept, tmp_path):
    folder,(change,words) = copy_of(kept, tmp_path),BAD_WEIGHTS[case]
    file = weights_of(folder)
    wgts = torch.load(file, weights_only=True)
    torch.save({**wgts, '1.decoder.bias': change(wgts['1.decoder.bias'])}, file)
    with pytest.raises(ValueError, match=words) as e: rf.load_bundle(folder)
    assert file.name in str(e.value)

@pytest.mark.parametrize('change,words', [
    (lambda f: f.update(task='lmm'), "'lmm'"), (lambda f: f.pop('args'), "damaged .*'args'"),
    (lambda f: f.update(arch='AWD_NONE'), "'AWD_NONE'"), (lambda f: f.update(format=0), 'format 0'),
    (lambda f: f.pop('format'), 'format None'), (lambda f: f['data'].update(tok=dict(kind='own')), "damaged .*'own'"),
    (lambda f: f['data'].update(tok=dict(kind='function', name='os.system')), "damaged .*'os.system'"),
    (lambda f: f['data'].update(vocab=f['data']['vocab'][:-1]), 'do not fit'), (lambda f: f.update(args=3), 'damaged'),
    (lambda f: f['args'].update(hidden=1), 'damaged .*hidden'), (lambda f: f.update(data=None), 'damaged')])
def test_damaged_facts(change, words, kept, tmp_path):
    folder = copy_of(kept, tmp_path)
    facts = json.loads((folder/'facts.json').read_text())
    change(facts)
    (folder/'facts.json').write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=words): rf.load_bundle(folder)

def test_cut_or_missing_files(kept, tmp_path):
    folder = copy_of(kept, tmp_path)
    data = weights_of(folder).read_bytes()
    weights_of(folder).write_bytes(data[:len(data)//2])
    with pytest.raises(ValueError, match='damaged or cut short|is damaged'): rf.load_bundle(folder)
    weights_of(folder).unlink()
    with pytest.raises(FileNotFoundError, match='weights-'): rf.load_bundle(folder)
    for text in ('{"format": 1, ', '[]', '', '\udcff'):
        (folder/'facts.json').write_text(text, errors='surrogateescape')
        with pytest.raises(ValueError, match='facts.json is damaged'): rf.load_bundle(folder)
    (folder/'facts.json').write_text('{"format": 1}', encoding='utf-16')
    with pytest.raises(ValueError, match='facts.json is damaged .*utf-8'): rf.load_bundle(folder)
    with pytest.raises(FileNotFoundError, match='There is no model'): rf.load_bundle(tmp_path/'none')

# ---- Names

def test_fastais_functions_keep_their_names():
    from fastai import learner
    assert rf.save_model is learner.save_model and rf.load_model is learner.load_model
    assert rf.SentenceEncoder is ft.SentenceEncoder
