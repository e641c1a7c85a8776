"Language models whose states a tagger reads: against the models themselves, through training, saving and loading."
import json
from copy import deepcopy

import bundles as b
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.text import all as ft
from torch.testing import assert_close

from rnn_fastai import all as rf
from rnn_fastai.data.tags import LMWords, WordChars
from rnn_fastai.learner.tagger import lm_reader
from rnn_fastai.models.tagger import lm_states
from rnn_fastai.ship.bundle import load_bundle
from rnn_fastai.ship.onnx import export_onnx

KINDS = {'words': lambda back: b.lm('AWD_LSTM', b.lm_dls(backwards=back)),
         'letters': lambda back: b.lm('AWD_GRU', b.lm_dls(rf.CharTokenizer(), backwards=back)),
         'letters in texts': lambda back: b.lm('AWD_GRU', b.lm_dls(rf.TextTokenizer(rf.CharTokenizer()), backwards=back)),
         'subwords': lambda back: b.lm('AWD_LSTM', b.lm_dls(rf.ByteLevelTokenizer(300), backwards=back)),
         'adaptive': lambda back: b.lm('AWD_LSTM', b.lm_dls(backwards=back), config=dict(b.CONFIG, head='adaptive'))}
SENTS = [['The', 'CAT', 'sat'], ['12,5'], ['Unseen', 'mat', '!', "don't", 'soooo']]

def own_states(lm, words, end, spaced):
    "States at each word, from the tokens of the whole sentence as the model's tokenizer gives them."
    tok,vocab,back = lm.dls.train_ds.tokenizer,lm.dls.train_ds.vocab,lm.dls.train_ds.backwards
    whole = ' '*spaced + ' '.join(words)
    toks = [t for t in next(iter(tok([whole]))) if t != 'xxbos']
    ids = torch.tensor([vocab.id_of(t) for t in (toks[::-1] if back else toks)])
    out = lm.model[0].eval()(torch.cat([torch.tensor([vocab.index('xxbos')]), ids])[None])[0][0]
    return torch.stack([out[len(toks) - end[i] if back else end[i + 1]] for i in range(len(words))])

def ends_of(lm, words, spaced):
    "How many tokens come before each word and after the last, by the tokens of ever longer beginnings."
    tok = lm.dls.train_ds.tokenizer
    def n(k): return len([t for t in next(iter(tok([' '*spaced + ' '.join(words[:k])]))) if t != 'xxbos']) if k else 0
    return [n(k) for k in range(len(words) + 1)]

@pytest.mark.parametrize('back', [False, True])
@pytest.mark.parametrize('kind', KINDS)
def test_states_are_those_of_the_whole_sentence(kind, back):
    lm,spaced = KINDS[kind](back),kind not in ('words', 'adaptive')
    states,reader = lm_reader(lm)
    chars = WordChars(SENTS, lms=[reader])
    corpus = rf.Corpus(np.arange(9), np.array([0, 3, 4, 9]), rf.Vocab(['xxpad']))
    _,which,parts = chars.batch(corpus, np.arange(3))
    real = torch.arange(5) < torch.tensor([3, 1, 5])[:, None]
    out = states(parts, which, real)
    for row,words in zip(out, SENTS, strict=True):
        want = own_states(lm, words, ends_of(lm, words, spaced), spaced)
        assert_close(row[:len(words)], want, atol=1e-6, rtol=1e-5)

def tagger(**args):
    learn = b.tagger(dls=b.tag_dls(str.lower, chars=True), letter_hid=3, letter_emb=3, **{'lms': b.readers(), **args})
    learn.remove_cb(ft.ProgressCallback)
    learn.logger = lambda *a: None
    return learn

@pytest.mark.parametrize('crf', [False, True])
def test_models_stay_as_they_are(crf, tmp_path):
    learn = tagger(crf=crf, path=tmp_path)
    before = deepcopy([dict(m.encoder.state_dict()) for m in learn.model[0].lms])
    learn.fit_one_cycle(2, 1e-2)
    learn.fine_tune(1, 1e-2)
    learn.unfreeze()
    learn.fit(1, 1e-2)
    assert_close([dict(m.encoder.state_dict()) for m in learn.model[0].lms], before)
    trained = {id(p) for group in learn.opt.param_lists for p in group}
    assert not trained & {id(p) for m in learn.model[0].lms for p in m.parameters()}
    assert all(not m.encoder.training for m in learn.model.train()[0].lms)
    sents = learn.dls.valid_ds.sents
    assert learn.tag(sents) == [learn.predict(s) for s in sents]
    learn.save('t')
    again = tagger(crf=crf, path=tmp_path).load('t')
    assert_close(again.get_preds()[0], learn.get_preds()[0])

def test_learner_goes_on_by_itself():
    lm = b.lm('AWD_LSTM')
    learn = tagger(lms=lm)
    before = learn.get_preds()[0]
    with torch.no_grad(): lm.model[0].encoder.weight.add_(1.)
    assert_close(learn.get_preds()[0], before)

def test_word_that_no_tags_had_is_read():
    "Two words the tagger does not know get other scores where the language model knows them."
    learn = tagger(lms=b.lm(dls=rf.TextDataLoaders.from_df(pd.DataFrame(dict(text=['up down']*30)), is_lm=True, bs=2,
                            text_col='text', seq_len=5, min_freq=1, no_bar=True, device='cpu')), letters=None, shape_emb=2)
    up,down,other,one = (learn._word_scores([[w]], 1, True) for w in ('up', 'dawn', 'doon', 'down'))
    up,down,other,one = (next(s)[2] for s in (up, down, other, one))
    assert_close(down, other)
    assert not torch.allclose(up, one)

@pytest.mark.parametrize('zipped', [False, True])
def test_bundle_holds_them(zipped, tmp_path):
    learn = tagger(path=tmp_path, crf=True)
    learn.fit(1, 1e-2)
    if zipped: learn.export('t.pkl')
    path = tmp_path/'t.pkl' if zipped else learn.save_bundle(tmp_path/'t')
    again = load_bundle(path)
    assert [(m.backwards, len(m.vocab)) for m in again.dls.train_ds.chars.lms] == \
           [(m.backwards, len(m.vocab)) for m in learn.dls.train_ds.chars.lms]
    for s in SENTS: assert again.predict(s, with_probs=True) == learn.predict(s, with_probs=True)

def lists(change):
    "A change of the lists of the loaders."
    def changed(texts):
        found = json.loads(texts['vocab.json'])
        change(found['lm_vocabs'])
        return texts | {'vocab.json': json.dumps(found)}
    return dict(texts=changed)

@pytest.mark.parametrize('change,match', [
    (lists(lambda vocabs: vocabs.pop()), 'There are 3 language models and 2 vocabularies'),
    (lists(lambda vocabs: vocabs[0].remove('xxbos')), "vocabulary lacks 'xxbos'"),
    (lists(lambda vocabs: vocabs[1].append(3)), r'lm_vocabs\[1\] must be a list of texts'),
    (lists(lambda vocabs: vocabs[1].extend('vwxyz'*9)), 'too long for the model'),
    (dict(change=lambda c: c['data']['lms'][0].update(backwards='no')), "Language model 0's backwards='no'"),
    (dict(change=lambda c: c['data'].pop('lms')), 'There are 0 language models and 3 vocabularies')])
def test_hostile_bundle_is_named(change, match, tmp_path):
    path = b.rewrite(tagger(path=tmp_path).save_bundle(tmp_path/'t'), **change)
    with pytest.raises(rf.BundleError, match=match): load_bundle(path)

@pytest.mark.parametrize('make,error,match', [
    (lambda: tagger(lms=3), TypeError, 'lms holds int 3; give learners of `language_model_learner`'),
    (lambda: tagger(lms=b.clas()), TypeError, 'lms holds TextLearner|lms holds ClassifierLearner'),
    (lambda: tagger(lms='AWD_LSTM'), ValueError, "lms='AWD_LSTM' is no model that comes with the package"),
    (lambda: tagger(lms='small'), ValueError, "lms='small' is no model that comes with the package"),
    (lambda: b.tagger(dls=b.tag_dls(), lms=b.lm()), ValueError, 'make the loaders with chars=True'),
    (lambda: rf.tagger_learner(b.tag_dls(), 'AWD_LSTM', config=b.CONFIG, lms=b.lm()), ValueError, 'lms are for a tagger over a cell'),
    (lambda: LMWords(None, ['xxunk', 'a']), ValueError, "vocabulary lacks 'xxbos'"),
    (lambda: export_onnx(tagger(), 't'), ValueError, 'cannot be exported; keep it as a bundle')])
def test_error_names_the_remedy(make, error, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=match): make()

def test_shipped_model_reads(tmp_path):
    learn = tagger(lms='AWD_LSTM_small', path=tmp_path)
    full = rf.language_model_learner(b.lm_dls(known_words=rf.shipped_vocab()), 'AWD_LSTM_small')
    at = [full.dls.vocab.index(w) for w in ('the', 'cat', 'sat')]
    mine = learn.model[0].lms[0].encoder
    rows = [learn.dls.train_ds.chars.lms[0].vocab.index(w) for w in ('the', 'cat', 'sat')]
    assert_close(mine.encoder.weight[rows], full.model[0].encoder.weight[at])
    ids = torch.tensor([rows])
    assert_close(mine(ids)[0], full.model[0].eval()(torch.tensor([at]))[0])

def test_gradients_pass_by():
    "The head's gradient is that of features that are numbers."
    states = lm_states('AWD_LSTM', 9, b.CONFIG, 2)
    out = states(torch.tensor([[5, 3]]), torch.tensor([[0]]), torch.tensor([[True]]))
    assert not out.requires_grad

def test_states_of_the_tagger_are_recorded():
    "The tagger's own layers by default, one state a word; the language models' by name, one a token of theirs."
    learn = tagger()
    assert learn.record([['The', 'CAT', 'sat']]).layers == ['0.rnn.l0', '0.rnn.l0_reverse']
    own, = (n for n in learn.record([['The', 'CAT', 'sat']], '0.lms.1.encoder.rnns.0').layers)
    assert own == '0.lms.1.encoder.rnns.0'
    before = learn.predict('The CAT', with_probs=True)
    with rf.edit_states(learn.model, rf.clamp('0.rnn.l0', 0, 5.)): assert learn.predict('The CAT', with_probs=True) != before
    assert learn.predict('The CAT', with_probs=True) == before
