"What loaders, learners, texts and scores say of themselves at a prompt: true, cheap, and never an error."
import re
import time
from xml.etree import ElementTree

import pandas as pd
import pytest
import torch
from fastai.data.load import DataLoader

import rnn_fastai.all as rf

ROWS = pd.DataFrame({'text': ['one two three four', 'four three two', 'two one <one>']*8, 'label': ['a', 'b<i>', 'c']*8,
                     'value': [1., 0., .5]*8, 'tokens': [['one', 'two'], ['three'], ['two', 'one']]*8,
                     'tags': [['A', 'B'], ['C'], ['B', 'A']]*8, 'held': [False]*18 + [True]*6})
SMALL = dict(config=dict(emb_sz=8, n_hid=12, n_layers=2), pretrained=False)
HOW = dict(text_col='text', valid_col='held', bs=4)

def lm():
    dls = rf.TextDataLoaders.from_df(ROWS, is_lm=True, seq_len=5, **HOW)
    return rf.language_model_learner(dls, rf.AWD_LSTM, metrics=rf.accuracy, **SMALL)
def classifier():
    return rf.text_classifier_learner(rf.TextDataLoaders.from_df(ROWS, label_col='label', **HOW), rf.AWD_LSTM, **SMALL)
def regression():
    dls = rf.TextDataLoaders.from_df(ROWS, label_col='value', y_block=rf.RegressionBlock(), **HOW)
    return rf.text_classifier_learner(dls, rf.AWD_LSTM, **SMALL)
def tagger():
    return rf.tagger_learner(rf.TagDataLoaders.from_df(ROWS, valid_col='held', bs=4, min_freq=1), emb_sz=8, n_hid=12)
def series(): return rf.rnn_learner(rf.SeqDataLoaders.from_series('hello world. '*20), 'GRU', n_hid=4)

LEARNERS = dict(lm=lm, classifier=classifier, regression=regression, tagger=tagger, series=series)
LABELS = dict(classifier='3: a, b<i>, c', tagger='3: A, B, C')

def facts(o): return dict(re.split(r'  +', line.strip(), maxsplit=1) for line in repr(o).splitlines()[1:])

@pytest.mark.parametrize('kind', LEARNERS)
def test_learners_and_loaders_say_what_they_are(kind, monkeypatch):
    "Without reading a batch; the numbers are those of the model and of the data."
    learn = LEARNERS[kind]()
    monkeypatch.setattr(DataLoader, '__iter__', lambda self: pytest.fail('the data are read'))
    start,said = time.perf_counter(),facts(learn)
    assert time.perf_counter() - start < 0.2 and repr(learn).startswith(f'{type(learn).__name__}\n')
    assert said['parameters'] == f'{sum(p.numel() for p in learn.model.parameters()):,}'
    assert said['vocabulary'].startswith(f'{len(learn.dls.train.task.vocab)} tokens') and said.get('labels') == LABELS.get(kind)
    assert {k: v for k,v in facts(learn.dls).items() if k not in ('for', 'device')} == {k: v for k,v in said.items() if k not in ('model', 'parameters')}
    if kind != 'series':
        n = [sum(map(len, ROWS.tokens[:18]))] if kind == 'tagger' else [int(learn.dls.train_ds.lens.sum())]
        assert said['train'].startswith(f'18 texts of {n[0]} tokens, in {len(learn.dls.train)} batches of 4') and '6 texts' in said['valid']

@pytest.mark.parametrize('kind', LEARNERS)
def test_they_are_tables_in_a_notebook(kind):
    learn = LEARNERS[kind]()
    for o in (learn, learn.dls):
        title,table = ElementTree.fromstring(f'<p>{o._repr_html_()}</p>')
        assert title.text == type(o).__name__ and dict([td.text for td in tr] for tr in table) == facts(o)

def test_what_was_trained(tmp_path):
    learn = classifier()
    assert 'last epoch' not in facts(learn)
    learn.freeze()
    assert re.search('of which [1-9,]+ are frozen', facts(learn)['parameters'])
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    assert facts(learn)['last epoch'] == ', '.join(f'{k} {v:.4f}' for k,v in learn.last_scores.items())
    learn.notes = dict(epochs=1, data='a.csv')
    learn.save_bundle(tmp_path/'m')
    said = facts(rf.load_bundle(tmp_path/'m'))
    assert said['notes'] == 'epochs: 1, data: a.csv' and said['trained on'].startswith('train 18 texts of') and 'train' not in said

@pytest.mark.parametrize('cls', [rf.LMLearner, rf.TaggerLearner, rf.ClassifierLearner, rf.RNNLearner, rf.TextDataLoaders,
                                 rf.TagDataLoaders, rf.SeqDataLoaders, rf.Recording])
def test_half_built_objects_are_shown_too(cls):
    o = cls.__new__(cls)
    assert cls.__name__ in repr(o) and isinstance(o._repr_html_(), str)

def test_over_fastais_loaders():
    from fastai.text.all import TextDataLoaders
    dls = TextDataLoaders.from_df(ROWS, is_lm=True, seq_len=5, **HOW)
    learn = rf.language_model_learner(dls, rf.AWD_LSTM, **SMALL)
    assert facts(learn)['parameters'] == f'{sum(p.numel() for p in learn.model.parameters()):,}'

def test_texts_and_scores():
    "Lists, as ever, with a line for each; what a text says is what it holds."
    learn = lm()
    texts,scores = learn.generate(['one', 'two'], 4, seed=1, no_bar=True),learn.score(['one two', 'two one'], no_bar=True)
    beams = learn.beam_search('one', 3, width=2, n=2, no_bar=True)
    for o in (texts, scores, beams):
        assert isinstance(o, list) and len(o) == 2 and o == list(o) and len(repr(o).splitlines()) == 2
        assert o._repr_html_().count('<tr>') == 3
    t,s = texts[0],scores[0]
    logp = t.logps.sum().item()
    assert repr(t) == f"Generated(prompt: 'one', text: {t.text!r}, tokens: 4, ended: length, log-probability: {logp:.2f})"
    assert t == tuple(t) and t._replace(text='x').text == 'x'   # a named tuple, as ever
    assert repr(s) == f"Score(text: 'one two', tokens: {len(s.tokens)}, loss: {s.loss:.4f}, perplexity: {s.perplexity:.4g})"
    long = rf.Generated('a', 'b '*400, ['b'], torch.zeros(1), 'length')
    assert len(repr(long)) < 400 and '…' in repr(long)
