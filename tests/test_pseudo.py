"Texts as points by their words, and labels that follow from few: against dense algebra, other classifiers, and enumeration."
import numpy as np
import pandas as pd
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from rnn_fastai import all as rf
from rnn_fastai.data.topics import topics, word_weights
from rnn_fastai.learner.pseudo import topic_probs, with_pseudo_labels
from rnn_fastai.learner.text_lstm import text_lstm

pytestmark = pytest.mark.usefixtures('one_thread')
ARGS = dict(min_freq=1, no_bar=True)

def corpus(n=60, seed=0):
    rng = np.random.default_rng(seed)
    docs = [rng.choice(30, rng.integers(1, 12), p=rng.dirichlet(np.full(30, 0.3))) for _ in range(n)]
    return rf.Corpus.from_ids(docs, [f'w{i}' for i in range(30)])

# ---- Texts as points

def test_weights_are_those_of_a_plain_vectorizer():
    texts = corpus()
    lines = [' '.join(texts.vocab[i] for i in d) for d in (texts[i] for i in range(len(texts)))]
    counts = TfidfVectorizer(binary=True, use_idf=False, norm=None, token_pattern=r'\S+', vocabulary=texts.vocab).fit_transform(lines)
    held = np.asarray((counts > 0).sum(0)).ravel()
    want = counts.toarray()*np.log(len(lines)/np.maximum(held, 1))
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    np.testing.assert_allclose(word_weights(texts).toarray(), want, atol=1e-6)

@pytest.mark.parametrize('seed', range(4))
def test_points_keep_the_angles_of_the_widest_directions(seed):
    texts = rf.Corpus.from_texts(frame(300, seed), 'text', **ARGS)   # three directions are wider than all others
    points,whole = topics(texts, 3, seed=seed).astype(np.float64),word_weights(texts).toarray().astype(np.float64)
    u,s,_ = np.linalg.svd(whole)
    want = u[:, :3]*s[:3]
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    np.testing.assert_allclose(points@points.T, want@want.T, atol=2e-3)   # signs and order aside
    assert points.shape == (300, 3)

def test_the_corpus_stays_as_it_is():
    texts = corpus()
    before = texts.offsets.copy(),np.asarray(texts.ids).copy()
    word_weights(texts); topics(texts, 3)
    np.testing.assert_array_equal(texts.offsets, before[0]); np.testing.assert_array_equal(texts.ids, before[1])

def test_a_text_without_words_is_no_point():
    texts = rf.Corpus.from_ids([[0, 1], [], [0, 2], [0]], ['the', 'a', 'b'])
    assert np.linalg.norm(topics(texts, 2), axis=1) == pytest.approx([1, 0, 1, 1])   # 'the' isn't in all of them

def test_a_corpus_from_the_disk(tmp_path):
    df = frame(20)
    texts = rf.Corpus.from_texts(df, 'text', **ARGS)
    texts.save(tmp_path/'kept')
    np.testing.assert_allclose(topics(rf.Corpus.open(tmp_path/'kept'), 4), topics(texts, 4))

# ---- Labels of other texts

def frame(n, seed=0, labels=('pos', 'neg', 'odd'), known=5):
    "Texts that tell their label by three of five words each, among others."
    rng = np.random.default_rng(seed)
    df = pd.DataFrame(dict(label=[labels[i % len(labels)] for i in range(n)]))
    df['text'] = [' '.join([f'{l}{i}' for i in rng.integers(known, size=3)] + [f'w{i}' for i in rng.integers(20, size=3)]) for l in df.label]
    return df

@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('labels', [('pos', 'neg'), ('a', 'b', 'c', 'd'), (0, 1), (True, False)], ids=str)
def test_labels_follow_from_few(labels, seed):
    few,more = frame(len(labels)*15, seed, labels, known=2),frame(600, seed + 10, labels)
    both = with_pseudo_labels(few, more[['text']], valid_pct=0, seed=seed, **ARGS)
    assert both.label[:len(few)].tolist() == few.label.tolist() and set(map(type, both.label)) == {type(labels[0])}
    found = both[len(few):].merge(more.drop_duplicates('text'), on='text', suffixes=('', '_true'))
    assert (found.label == found.label_true).mean() > 0.85
    assert not both.is_valid.any() and both.prob.between(1/len(labels), 1).all()

def test_topics_see_what_words_of_the_labels_do_not():
    "A classifier over the words of the labelled texts alone knows little of others."
    gains = []
    for seed in range(6):
        few,more = frame(30, seed, ('pos', 'neg'), known=2),frame(600, seed + 10, ('pos', 'neg'), known=8)
        both = with_pseudo_labels(few, more[['text']], valid_pct=0, share=1., **ARGS)
        found = both[30:].merge(more.drop_duplicates('text'), on='text', suffixes=('', '_true'))
        words = TfidfVectorizer(token_pattern=r'\S+')
        plain = LogisticRegression(C=10).fit(words.fit_transform(few.text), few.label)
        gains.append((found.label == found.label_true).mean() - plain.score(words.transform(more.text), more.label))
    assert np.mean(gains) > 0.03

def test_held_out_rows_teach_nothing():
    few,more = frame(60),frame(300, 1)
    few['held'] = np.arange(60) % 4 == 0
    want = with_pseudo_labels(few, more, valid_col='held', **ARGS)
    other = few.copy()
    other.loc[other.held, ['text', 'label']] = ['pos0 neg0 secret', 'neg']
    got = with_pseudo_labels(other, more, valid_col='held', **ARGS)
    pd.testing.assert_frame_equal(got[60:], want[60:])
    assert want.is_valid[:60].tolist() == few.held.tolist()
    assert got.text[:60].tolist() == other.text.tolist() and len(got) == len(want)

def test_the_split_is_that_of_the_loaders():
    few = frame(50)
    held = with_pseudo_labels(few, frame(200, 1), valid_pct=0.3, seed=7, **ARGS).is_valid[:50]
    dls = rf.TextDataLoaders.from_df(few, text_col='text', label_col='label', valid_pct=0.3, seed=7, **ARGS)
    assert sorted(few.text[held]) == sorted(dls.valid_ds.items.text)

def test_the_surest_of_each_label_come_along():
    few,more = frame(60),frame(400, 1).drop_duplicates('text')
    every,half = (with_pseudo_labels(few, more, valid_pct=0, share=s, **ARGS)[60:] for s in (1., 0.5))
    assert sorted(every.text) == sorted(set(more.text) - set(few.text))
    for label,rows in every.groupby('label'):
        some = half[half.label == label]
        assert len(some) == -(-len(rows)//2) and some.prob.min() >= rows[~rows.text.isin(some.text)].prob.max()
    assert [more.text.tolist().index(t) for t in half.text] == sorted(more.text.tolist().index(t) for t in half.text)

def test_other_columns_and_places():
    few,more = frame(60).rename(columns={'text': 'Body', 'label': 'Kind'}),frame(200, 1).rename(columns={'text': 'Body'})
    by_name,by_place = (with_pseudo_labels(few, more, t, l, valid_pct=0, **ARGS) for t,l in (('Body', 'Kind'), (1, 0)))
    pd.testing.assert_frame_equal(by_name, by_place)
    assert by_name.columns.tolist() == ['Body', 'Kind', 'is_valid', 'prob']

def test_probabilities_are_chosen_by_likelihood():
    "Points whose label is by one direction among many: fewer, or all; probabilities sum to one."
    points = np.random.default_rng(0).normal(size=(400, 120))
    y = (points[:, 0] > 0).astype(int)
    probs = topic_probs(points, y[:100])
    assert probs.sum(1) == pytest.approx(np.ones(300)) and (probs.argmax(1) == y[100:]).mean() > 0.85
    late = (points[:, 40] > 0).astype(int)   # beyond the first 25: the wider points are found
    assert (topic_probs(points, late[:200]).argmax(1) == late[200:]).mean() > 0.7

def test_a_net_learns_from_labels_that_follow():
    few,more = frame(30, 0, ('pos', 'neg'), known=2),frame(400, 1, ('pos', 'neg'))
    args = dict(valid_pct=0, seed=0, **ARGS)
    both = with_pseudo_labels(few, more, **args)
    learn = text_lstm(both, valid_col='is_valid', epochs=4, lr=2e-2, bs=16, model_args=dict(n_hid=8, emb_sz=8, half=False), **ARGS)
    others = frame(200, 2, ('pos', 'neg'))
    with learn.no_bar(): right = learn.validate(dl=learn.dls.test_dl(others, with_labels=True))[1]
    assert right > 0.8

# ---- What is left out

def test_texts_of_the_frame_are_not_added_again():
    few,more = frame(60),frame(300, 1)
    with pytest.warns(UserWarning, match=r'12 of the 360 unlabelled texts are validation texts, and are left out'):
        both = with_pseudo_labels(few, pd.concat([few, more]), share=1., **ARGS)
    assert not both.text[60:].isin(few.text).any()
    pd.testing.assert_frame_equal(both, with_pseudo_labels(few, more[~more.text.isin(few.text)], share=1., **ARGS))

def test_a_text_in_both_parts_is_no_reason_to_warn(recwarn):
    few = pd.concat([frame(40), frame(40)], ignore_index=True).assign(held=np.arange(80) >= 40)
    with_pseudo_labels(few, pd.concat([few[:5], frame(100, 1)]), valid_col='held', **ARGS)
    assert not [w for w in recwarn if 'unlabelled' in str(w.message)]

@pytest.mark.parametrize('tok', [None, rf.TextTokenizer(rules=[], post_rules=[])], ids=['rules', 'plain'])
def test_texts_without_words_are_never_sure(tok):
    few,more = frame(100, labels=('pos',)*9 + ('neg',)),frame(100, 1, ('pos', 'neg'))
    odd = pd.DataFrame(dict(text=['']*20))
    both = with_pseudo_labels(few, pd.concat([odd, more]), valid_pct=0, share=1., tok_tfm=tok, **ARGS)
    assert not both.text[100:].isin(['']).any() and len(both) > 150
    with pytest.raises(ValueError, match='No unlabelled text holds a word that tells texts apart'):
        with_pseudo_labels(few, odd, valid_pct=0, tok_tfm=tok, **ARGS)

@pytest.mark.parametrize('seed', range(4))
def test_labels_are_held_out_in_parts(seed):
    few = frame(60)
    few.loc[55:, 'label'] = 'rare'
    both = with_pseudo_labels(few, frame(200, 1), valid_pct=0.4, stratify=True, seed=seed, **ARGS)
    held = both[:60].groupby('label').is_valid.sum()
    assert held['rare'] == 2 and held.sum() == 24

def test_rows_that_are_held_out_are_checked_too():
    few = frame(60).assign(held=np.arange(60) >= 50)
    for col,value,match in (('text', None, "'text' has 1 missing texts, the first in row 55"), ('label', np.nan, "missing labels, the first in row 55")):
        odd = few.copy()
        odd.loc[55, col] = value
        with pytest.raises(ValueError, match=match): with_pseudo_labels(odd, frame(100, 1), valid_col='held', **ARGS)

def test_a_missing_text_is_named_by_its_own_frame():
    more = frame(20, 1)
    more.index = [f'r{i}' for i in range(20)]
    more.loc['r7', 'text'] = None
    with pytest.raises(ValueError, match="unlabelled: Column 'text' has 1 missing texts, the first in row 'r7'"):
        with_pseudo_labels(frame(30), more, **ARGS)

def test_frames_stay_as_they_are():
    few,more = frame(40),frame(100, 1)
    before = few.copy(),more.copy()
    with_pseudo_labels(few, more, **ARGS)
    pd.testing.assert_frame_equal(few, before[0]); pd.testing.assert_frame_equal(more, before[1])

def test_strength_and_topics_are_those_likeliest_on_rows_held_out(monkeypatch):
    "Labels that are half noise: the points are trusted least."
    rng = np.random.default_rng(0)
    points,tried = rng.normal(size=(300, 100)),[]
    y = (points[:, 0] + rng.normal(0, 3, 300) > 0).astype(int)
    fit = LogisticRegression.fit
    monkeypatch.setattr(LogisticRegression, 'fit', lambda self, x, y: tried.append((x.shape[1], self.C)) or fit(self, x, y))
    topic_probs(points, y[:150])
    assert tried[-1] == (12, 1.) and len(set(tried)) == 16

# ---- A net as the teacher

def test_a_teacher_tells_labels_in_the_order_of_the_frame():
    few,more = frame(60, labels=('pos', 'neg')),frame(100, 1, ('neg', 'pos'))   # the frame begins with 'pos', the vocabulary with 'neg'
    learn = text_lstm(few, epochs=6, lr=3e-2, bs=16, model_args=dict(n_hid=8, emb_sz=8, half=False), **ARGS)
    both = with_pseudo_labels(few, more, teacher=learn, share=1., no_bar=True)
    assert both.is_valid[:60].sum() == 12 and len(learn.dls.valid_ds) == 12
    for text,label,prob in both[60:80][['text', 'label', 'prob']].itertuples(index=False):
        told,_,probs = learn.predict(text)
        assert told == label and probs.max().item() == pytest.approx(prob, abs=1e-5)

def test_a_teacher_of_other_labels_is_refused():
    learn = text_lstm(frame(30), epochs=1, bs=8, model_args=dict(n_hid=4, emb_sz=4, half=False), **ARGS)
    with pytest.raises(ValueError, match='are not those of the training rows'):
        with_pseudo_labels(frame(30, labels=('a', 'b')), frame(30, 1), teacher=learn)
    values = rf.TextDataLoaders.from_df(frame(30).assign(label=np.linspace(0, 1, 30)), text_col='text', label_col='label', y_block=rf.RegressionBlock(), **ARGS)
    with pytest.raises(ValueError, match='teacher must tell one label a text'):
        with_pseudo_labels(frame(30), frame(30, 1), teacher=rf.rnn_learner(values, 'GRU', 4))
