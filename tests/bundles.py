"Learners of every kind and their answers. `main` opens all bundles of a folder, and writes what each learner answers."
import json
import random
import shutil
import sys
from pathlib import Path

import fastai.text.core
import numpy as np
import pandas as pd
import torch
from fastai.text import all as ft
from torch import nn

from rnn_fastai import all as rf
from rnn_fastai.models.origin import maker
from rnn_fastai.ship.bundle import load_bundle
from rnn_fastai.ship.storage import read_files, write_files

WORDS = "The CAT sat on-the Naïve mat 12,5 don't ! soooo".split()
NEW = ["The naïve CAT don't sat !", 'mat  unseen ÄÖ']
CONFIG = dict(emb_sz=6, n_hid=6, n_layers=2)
SMALL = dict(config=CONFIG)
CELL = dict(emb_sz=6, n_hid=6)

# ---- Bundles that say something else

def rewrite(folder, change=lambda c: None, tensors=lambda t: t, texts=lambda t: t):
    "A bundle that says something else, written with right checksums."
    stored = read_files(folder)
    config = json.loads(json.dumps(stored.config))
    change(config)
    found = texts({n: stored.text(n) for n in stored.texts})
    wgts = tensors(stored.tensors())
    shutil.rmtree(folder)
    return write_files(folder, config, wgts, found)

# ---- Data

def texts(n=30):
    rng = random.Random(0)
    rows = [' '.join(rng.choices(WORDS, k=8)) for _ in range(n)]
    df = pd.DataFrame(dict(text=rows, title=[r[:9] for r in rows], label=['neg', 'pos', 'neg']*(n//3),
                           stars=[1., 2.5, 4.]*(n//3), many=['a;b', 'b', '']*(n//3), number=[3, 10, 2]*(n//3)))
    return df.assign(x=df.number % 2, y=1 - df.number % 2, truth=df.stars > 2)

def sents(n=20):
    rng = random.Random(1)
    toks = [rng.choices(WORDS, k=rng.randint(1, 6)) for _ in range(n)]
    return pd.DataFrame(dict(tokens=toks, tags=[['B-X' if w.isalpha() else 'O' for w in s] for s in toks]))

def lm_dls(tok=None, **args):
    return rf.TextDataLoaders.from_df(texts(), **{**dict(is_lm=True, text_col='text', tok_tfm=tok, bs=2, seq_len=7,
                                                         seed=0, device='cpu', min_freq=1, no_bar=True), **args})
def clas_dls(tok=None, **args):
    return rf.TextDataLoaders.from_df(texts(), **{**dict(text_col='text', label_col='label', tok_tfm=tok, bs=4, seed=0,
                                                         device='cpu', min_freq=1, no_bar=True), **args})
def tag_dls(tok=None, **args):
    return rf.TagDataLoaders.from_df(sents(), **{**dict(tok=tok, bs=4, seed=0, device='cpu', min_freq=1), **args})

def series(toks='abcabdabcab', **args): return rf.SeqDataLoaders.from_series(toks, device='cpu', **args)
PAIRS = {'many-to-one': (['ab', 'bca', 'c'], ['x', 'y', 'x']), 'many-to-many': (['ab', 'bca', 'c'], ['xy', 'yyx', 'x']),
         'one-to-many': (['a', 'b', 'c'], ['xy', 'yyx', 'x']), 'encoder-decoder': (['ab', 'bca', 'c'], ['xyx', 'y', 'yy'])}
def pairs(kind, words=False, **args):
    xs,ys = PAIRS[kind]
    if words: xs = [[f'w{c}' for c in s] for s in xs]
    return rf.SeqDataLoaders.from_pairs(xs, ys, kind, valid_pct=0, device='cpu', **args)

# ---- Cells and modules of one's own

class Mean(rf.Cell):
    def step(self, gx, state): return ((state[0] + gx)/2,)

class Scaled(rf.Cell):
    "A cell with an argument of its own."
    def __init__(self, input_size, hidden_size, bias=True, scale=1.):
        self.scale = scale
        super().__init__(input_size, hidden_size, bias)
    def step(self, gx, state): return (torch.tanh(gx*self.scale + self.recur(state[0])),)

class Net(nn.Module):
    "Its attributes tell the arguments."
    def __init__(self, vocab_sz, n_hid=5, deep=True):
        super().__init__()
        self.vocab_sz,self.n_hid,self.deep = vocab_sz,n_hid,deep
        self.emb,self.rnn = nn.Embedding(vocab_sz, n_hid),nn.GRU(n_hid, n_hid, 2 if deep else 1, batch_first=True)
        self.head = nn.Linear(n_hid, vocab_sz)
        self.register_buffer('scale', torch.linspace(0.5, 1.5, vocab_sz), persistent=False)
    def forward(self, ids, state=None):
        out,state = self.rnn(self.emb(ids), state)
        return self.head(out)*self.scale,state

@maker
class Noted(nn.Module):
    "Its arguments are noted by `maker`; another module is among them."
    def __init__(self, vocab_sz, width, inner):
        super().__init__()
        self.emb,self.inner,self.out = nn.Embedding(vocab_sz, width),inner,nn.Linear(width, vocab_sz)
    def forward(self, ids): return self.out(self.inner(self.emb(ids)))

class Tied(nn.Module):
    "Weights that two layers share."
    def __init__(self, vocab_sz, n_hid):
        super().__init__()
        self.vocab_sz,self.n_hid = vocab_sz,n_hid
        self.emb,self.head = nn.Embedding(vocab_sz, n_hid),nn.Linear(n_hid, vocab_sz, bias=False)
        self.head.weight = self.emb.weight
    def forward(self, ids): return self.head(torch.tanh(self.emb(ids)))

OWN = [Mean, Scaled, Net, Tied]   # what a reader allows; `Noted` is registered where this module is imported
rf.awd_arch(Mean)

def own_arch():   # of a language model
    return rf.language_model_learner(lm_dls(), 'AWD_Mean', pretrained=False, **SMALL)

# ---- Learners

def lm(arch='AWD_GRU', dls=None, **args):
    return rf.language_model_learner(dls or lm_dls(), arch, pretrained=False, **{**SMALL, **args})
def clas(arch='AWD_GRU', dls=None, **args):
    return rf.text_classifier_learner(dls or clas_dls(), arch, pretrained=False, **{**SMALL, **args})
def tagger(arch='LSTM', dls=None, **args): return rf.tagger_learner(dls or tag_dls(), arch, **{**CELL, **args})
def readers():
    "Language models that cut words in other ways, forwards and backwards."
    return [lm(), lm('AWD_LSTM', lm_dls(rf.CharTokenizer(), backwards=True)), lm(dls=lm_dls(rf.ByteLevelTokenizer(290)))]
def rnn(dls, cell='GRU', n_hid=5, **args): return rf.rnn_learner(dls, cell, n_hid, **args)
def both():
    names = ft.CategoryBlock(['pos', 'neg'], sort=False)
    dls = clas_dls(y_block=names)
    back = clas('AWD_LSTM', clas_dls(y_block=names, backwards=True, text_vocab=dls.vocab[0]))
    for p in back.model.parameters(): p.data *= 2
    return rf.combine_directions(clas('AWD_LSTM', dls), back)

TOKS = {'words': lambda: None, 'german': lambda: rf.WordTokenizer('de'), 'characters': rf.CharTokenizer,
        'subwords': lambda: rf.ByteLevelTokenizer(290), 'unigram': lambda: rf.ByteLevelTokenizer(290, 'unigram'),
        'split': lambda: rf.TextTokenizer(fastai.text.core.BaseTokenizer(' '), rules=[]),
        'few rules': lambda: rf.TextTokenizer(rules=[ft.fix_html, ft.lowercase], post_rules=[], sep='_')}
LABELS = {'numbers as names': dict(label_col='number'), 'truth': dict(label_col='truth'),
          'unsorted': dict(y_block=ft.CategoryBlock(['pos', 'neg'], sort=False)),
          'with what is missing': dict(y_block=ft.CategoryBlock(add_na=True)),
          'lists': dict(label_col='many', label_delim=';'),
          'named lists': dict(label_col='many', label_delim=';', y_block=ft.MultiCategoryBlock(vocab=['b', 'a'])),
          'encoded': dict(label_col=['x', 'y'], y_block=ft.MultiCategoryBlock(encoded=True, vocab=['y', 'x'])),
          'value': dict(label_col='stars', y_block=ft.RegressionBlock()),
          'values': dict(label_col=['stars', 'number'], y_block=ft.RegressionBlock())}
VECTORS = {w.lower(): np.ones(6, 'f4')*i/9 for i,w in enumerate(WORDS)}

CASES = {
    **{f'lm {t}': lambda make=make: lm(dls=lm_dls(make())) for t,make in TOKS.items()},
    **{f'lm {a}': lambda a=a: lm(a) for a in rf.archs if a != 'AWD_Mean'},
    'lm own cell': own_arch,
    'lm backwards': lambda: lm(dls=lm_dls(backwards=True)),
    'lm columns': lambda: lm(dls=lm_dls(text_col=['title', 'text'])),
    'lm adaptive': lambda: lm(config=dict(CONFIG, head='adaptive', cutoffs=[5, 9])),
    'lm adaptive untied': lambda: lm(config=dict(CONFIG, head='adaptive', cutoffs=[8], tie_weights=False)),
    'lm mixture': lambda: lm(config=dict(CONFIG, head='mixture', n_softmaxes=2)),
    'lm untied': lambda: lm(config=dict(CONFIG, tie_weights=False, out_bias=False)),
    **{f'clas {t}': lambda make=make: clas(dls=clas_dls(make())) for t,make in TOKS.items()},
    **{f'clas {k}': lambda args=args: clas(dls=clas_dls(**args)) for k,args in LABELS.items()},
    'clas backwards': lambda: clas(dls=clas_dls(backwards=True)),
    'clas bidir': lambda: clas('AWD_LSTM', config=dict(CONFIG, bidir=True), max_len=5, lin_ftrs=[7], ps=[0.2]),
    'clas range': lambda: clas(dls=clas_dls(**LABELS['value']), y_range=(1., 5.), drop_mult=0.1),
    'clas both': both,
    **{f'tagger {t}': lambda make=make: tagger(dls=tag_dls(make())) for t,make in TOKS.items() if t != 'split'},
    'tagger lower': lambda: tagger('GRU', tag_dls(str.lower), num_layers=2, crf=True),
    'tagger chars': lambda: tagger(dls=tag_dls(str.casefold, chars=True), letter_hid=3, letter_emb=3, crf=True),
    'tagger filters': lambda: tagger(dls=tag_dls(str.lower, chars=True), letters='CNN', shape_emb=3, letter_hid=3, letter_emb=3),
    'tagger shapes': lambda: tagger('GRU', tag_dls(str.lower, chars=True), letters=None, shape_emb=4),
    'tagger arch': lambda: rf.tagger_learner(tag_dls(str.lower), 'AWD_LSTM', config=CONFIG, crf=True),
    'tagger vectors': lambda: tagger(dls=tag_dls(str.lower), vectors=VECTORS),
    'tagger lms': lambda: tagger(dls=tag_dls(str.lower, chars=True), letter_hid=3, letter_emb=3, lms=readers()),
    'tagger own cell': lambda: tagger(Mean),
    'next': lambda: rnn(series()), 'next words': lambda: rnn(series(['one', 'two', 'one', 'three']*3), 'LSTM'),
    'next numbers': lambda: rnn(series([1, 2, 3, 1, 2, 1]*3), 'sLSTM'),
    'next ragged': lambda: rnn(series([list('abcab'), list('abc')]), 'RNN', num_layers=2),
    'next one-hot': lambda: rnn(series(), one_hot=True), 'next one-hot emb': lambda: rnn(series(), one_hot=True, emb_sz=3),
    'next vectors': lambda: rnn(series(['the', 'cat', 'sat', 'mat']*3), vectors=VECTORS),
    'next own cell': lambda: rnn(series(), Mean), 'next own args': lambda: rnn(series(), Scaled, cell_args=dict(scale=0.5)),
    'next layer': lambda: rf.rnn_learner(series(), nn.LSTM(3, 4, 2), emb_sz=3),
    'next recurrent': lambda: rf.rnn_learner(series(), rf.Recurrent('RNN', 3, 4, nonlinearity='relu'), emb_sz=3),
    'next zoneout': lambda: rnn(series(), 'LSTM', zoneout_p=(0.1, 0.2), weight_p=0.1, drop=0.2, embed_p=0.1),
    'next torch': lambda: rf.module_learner(series(), nn.Sequential(nn.Embedding(4, 5), nn.Tanh(), nn.Linear(5, 4))),
    'next own net': lambda: rf.module_learner(series(), Net(4)), 'next noted': lambda: rf.module_learner(series(), Noted(4, 3, nn.Linear(3, 3))),
    'next tied': lambda: rf.module_learner(series(), Tied(4, 3)),
    'next one-hot net': lambda: rf.module_learner(series(), nn.Linear(4, 4), one_hot=True),
    **{f'rnn {k}': lambda k=k: rnn(pairs(k)) for k in PAIRS},
    'rnn pool': lambda: rnn(pairs('many-to-one', True), 'LSTM', pool='concat', bidirectional=True),
    'rnn both ends': lambda: rnn(pairs('many-to-many'), 'QRNN', bidirectional=True),
    'rnn attention': lambda: rnn(pairs('encoder-decoder', True), 'LSTM', attention=True, bidirectional=True, num_layers=2),
    'rnn over texts': lambda: rnn(lm_dls()), 'rnn over labels': lambda: rnn(clas_dls(), pool='max'),
    'rnn over lists': lambda: rnn(clas_dls(**LABELS['lists'])), 'rnn over values': lambda: rnn(clas_dls(**LABELS['value'])),
}

def build(case):
    "A learner whose weights are far from those of any other one, and which has been trained a little."
    torch.manual_seed(1)
    learn = quiet(CASES[case]())
    for p in learn.model.parameters(): p.data += torch.randn_like(p)*0.3
    return learn

def quiet(learn):
    learn.remove_cb(ft.ProgressCallback)
    learn.logger = lambda *a: None
    return learn

# ---- Answers

def _texts(learn):
    new = {'temperature': 0, 'no_bar': True}
    found = [(t.text, t.tokens, t.logps) for t in learn.generate(NEW, 9, seed=3, no_bar=True)]
    preds = learn.get_preds(dl=learn.dls.valid.new(list(texts().text), bs=2))
    return [learn.predict(NEW[0], 5, **new), found, [(s.tokens, s.logps) for s in learn.score(NEW, no_bar=True)], preds]

def _labels(learn):
    preds = learn.get_preds(dl=learn.dls.test_dl(texts()), with_decoded=True)
    return [[(str(n), i, p) for n,i,p in map(learn.predict, NEW)], preds, list(map(str, learn.dls.vocab[1:2]))]

def _tags(learn):
    new = [t.split() for t in NEW]
    dl = learn.dls.test_dl(sents(), with_labels=True)
    more = [learn.predict(new[0], n_best=2, with_probs=True), learn.tag(new, with_probs=True)]
    return [more, learn.predict(new[0]), learn.tag(new), learn.get_preds(dl=dl, with_decoded=True), list(learn.validate(dl=dl))]

def _sequences(learn):
    task = learn.task
    known = [t for t in task.vocab if not str(t).startswith('xx')]
    if task.kind == 'next':
        found = [(t.text, t.logps) for t in learn.generate([known[:2]], 9, seed=3, no_bar=True)]
        dls = rf.SeqDataLoaders.from_series(known*3, vocab=task.vocab, device='cpu')
        return [learn.predict(known[:2], 5, temperature=0), found, [s.logps for s in learn.score([known], no_bar=True)],
                learn.get_preds(dl=dls.valid)]
    item = known[0] if task.kind == 'one-to-many' else known
    found = learn.predict(item)
    return [list(found) if isinstance(found, tuple) else found]

def answers(learn):
    "What a learner says of new data, as lists of texts and tensors."
    for n,f in dict(LMLearner=_texts, ClassifierLearner=_labels, TaggerLearner=_tags).items():
        if type(learn).__name__ == n: return plain(f(learn))
    return plain((_sequences if isinstance(learn.dls, rf.SeqDataLoaders) else _labels)(learn))

def plain(o):
    "Nothing but lists, texts, numbers and plain tensors."
    if isinstance(o, torch.Tensor): return o.detach().as_subclass(torch.Tensor).clone()
    if isinstance(o, (list, tuple)): return [plain(x) for x in o]
    return str(o) if not isinstance(o, (int, float, str, bool, type(None))) else o

def same_bits(a, b):
    "Whether answers are the same, tensors to the bit."
    if isinstance(a, torch.Tensor): return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, list): return len(a) == len(b) and all(map(same_bits, a, b))
    return a == b

def main():
    fastai.text.core.parallelable = lambda *a, **k: False
    here = Path(sys.argv[1])
    allow = [f'bundles.{c.__name__}' for c in OWN]
    found = {}
    for folder in sorted(here.iterdir()): found[folder.name] = answers(quiet(load_bundle(folder, allow)))
    torch.save(found, here/'answers.pt')
