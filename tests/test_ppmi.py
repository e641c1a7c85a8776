"Word vectors learnt from texts: counts and logarithms against loops over dense tables, directions against a full SVD."
import numpy as np
import pandas as pd
import pytest

from rnn_fastai import all as rf
from rnn_fastai.data import ppmi as module
from rnn_fastai.data.lm import CorpusDataset
from rnn_fastai.data.ppmi import count_neighbours, learn_vectors, ppmi
from rnn_fastai.learner.text_lstm import mixed_loaders, own_vectors, text_lstm

def corpus(n_docs=30, n_words=40, seed=0):
    rng = np.random.default_rng(seed)
    docs = [rng.zipf(1.5, rng.integers(1, 60)) % n_words for _ in range(n_docs)]
    return rf.Corpus.from_ids(docs, [f'w{i}' for i in range(n_words + 2)])   # two words never occur

def dense_counts(docs, n, window):
    table = np.zeros((n, n))
    for doc in docs:
        for i,a in enumerate(doc):
            for j,b in enumerate(doc):
                if 0 < abs(i - j) <= window: table[a, b] += (window + 1 - abs(i - j))/window
    return table

def dense_ppmi(counts):
    near = counts.sum(0)**0.75
    with np.errstate(divide='ignore', invalid='ignore'):
        pmi = np.log(counts*near.sum()/(counts.sum(1)[:, None]*near[None]))
    return np.where(np.isfinite(pmi), np.maximum(pmi, 0), 0)

@pytest.mark.parametrize('window', [1, 2, 5, 100])
@pytest.mark.parametrize('part', [1, 17, 2_000_000])
def test_counts_are_those_of_loops(window, part, monkeypatch):
    monkeypatch.setattr(module, '_PART', part)
    texts = corpus()
    docs = np.array([3, 0, 7, 29, 11])
    said = []
    found = count_neighbours([CorpusDataset(texts, docs), CorpusDataset(texts, docs[:2])], window, lambda *a: said.append(a))
    want = dense_counts([texts[d] for d in [*docs, *docs[:2]]], 42, window)
    np.testing.assert_allclose(found.toarray(), want, rtol=1e-5)
    n = sum(map(len, map(texts.__getitem__, [*docs, *docs[:2]])))
    assert said[-1] == (n, n) and sorted(said) == said

def test_information_is_that_of_dense_tables():
    texts = corpus()
    counts = dense_counts([texts[d] for d in range(30)], 42, 5)
    np.testing.assert_allclose(ppmi(count_neighbours([CorpusDataset(texts)])).toarray(), dense_ppmi(counts), atol=1e-5)

@pytest.mark.parametrize('seed', range(3))
def test_vectors_are_the_main_directions(seed):
    "Up to the search's tolerance, their products are those of a full decomposition, whatever its signs."
    rng = np.random.default_rng(seed)
    topics = [rng.permutation(10) + 10*t for t in rng.integers(0, 4, 200)]     # documents of ten words each, of four kinds
    texts = rf.Corpus.from_ids([rng.choice(t, 30) for t in topics], [f'w{i}' for i in range(42)])
    vecs = learn_vectors(texts, 4, seed=seed, no_bar=True)
    seen = [i for i in range(42) if f'w{i}' in vecs]
    table = dense_ppmi(dense_counts([texts[d] for d in range(200)], 42, 5))[np.ix_(seen, seen)]
    u,s,_ = np.linalg.svd(table)
    want = u[:, :4]*np.sqrt(s[:4])
    got = vecs.table*want.std()/vecs.table.std()
    np.testing.assert_allclose(got@got.T, want@want.T, atol=0.03*np.abs(want@want.T).max())
    assert vecs.words == [f'w{i}' for i in seen] and 'w41' not in vecs
    assert vecs.table.dtype == np.float32 and vecs.table.std() == pytest.approx(0.3)

def test_documents_of_one_word_have_no_neighbours():
    texts = rf.Corpus.from_ids([[0], [1], [2]], list('abc'))
    assert count_neighbours([CorpusDataset(texts)]).nnz == 0
    with pytest.raises(ValueError, match='width=1 needs as many different words with neighbours; there are 0'): learn_vectors(texts, 1)

@pytest.mark.parametrize('args,error,match', [
    (dict(width=0), ValueError, 'width=0 must be'), (dict(width=99), ValueError, 'width=99 needs as many different words'),
    (dict(width=2, window=0), ValueError, 'window=0 must be'), (dict(width=2, seed=-1), ValueError, 'seed=-1 must be')])
def test_bad_arguments(args, error, match):
    with pytest.raises(error, match=match): learn_vectors(corpus(), no_bar=True, **args)

@pytest.mark.parametrize('texts', [None, 3, 'some text', [], ['a', 'b'], pd.DataFrame(dict(text=['a']))])
def test_what_is_no_data_set(texts):
    with pytest.raises(TypeError, match='is no data set of texts; give `dls.train_ds`'): learn_vectors(texts, 2)

FRAME = pd.DataFrame(dict(text=['good one, fine', 'nice and good', 'bad two, awful', 'so bad it is']*10,
                          label=['pos', 'pos', 'neg', 'neg']*10, held=[False]*30 + [True]*10))
FRAME.loc[30:, 'text'] += ' secret'
ARGS = dict(valid_col='held', bs=8, min_freq=1, no_bar=True)

def test_held_out_texts_teach_nothing():
    dls,texts = mixed_loaders(FRAME, FRAME[:30][['text']], **ARGS)
    assert 'secret' in dls.vocab[0] and 'secret' not in own_vectors(dls, texts, no_bar=True)

def test_recipe_starts_from_them():
    small = dict(n_hid=4, emb_sz=6, drop=0., half=False)
    own = text_lstm(FRAME, epochs=1, lr=1e-9, model_args=small, **ARGS)
    vecs = own_vectors(own.dls, width=6, no_bar=True)
    row = own.model.inp.weight[own.dls.vocab[0].index('good')].detach().numpy()
    np.testing.assert_allclose(row, vecs['good'], atol=1e-5)
    other = text_lstm(FRAME, epochs=1, lr=1e-9, model_args=small, vectors=None, **ARGS)
    row = other.model.inp.weight[own.dls.vocab[0].index('good')].detach().numpy()
    assert len(row) == 6 and not np.allclose(row, vecs['good'], atol=1e-2)
