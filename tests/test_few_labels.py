"Training with few labels: what vectors, directions, balance and unlabelled texts keep of each other."
import numpy as np
import pandas as pd
import pytest
import torch
from bundles import clas_dls, lm_dls, tag_dls, texts
from fastai.text import all as ft
from test_checkpoint import Cut, cut_after
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from rnn_fastai import all as rf
from rnn_fastai.callback.adversarial import AdversarialTraining, VirtualAdversarial
from rnn_fastai.callback.chunked_loss import word_shares
from rnn_fastai.data.unlabelled import unlabelled_dataset
from rnn_fastai.learner.text_lstm import (
    MeanClassifier,
    mean_of_learners,
    mixed_loaders,
    own_vectors,
    text_lstm,
    text_lstm_learner,
)
from rnn_fastai.models.losses import CalibratedLoss, answer_kind, with_answers

pytestmark = pytest.mark.usefixtures('one_thread')
WORDS = ft.BaseTokenizer()
PLAIN = rf.TextTokenizer(rules=[], post_rules=[])   # without a token of its own at the start
MORE = pd.DataFrame(dict(text=['CAT zebra ! okapi', 'mat zebra soooo']*4))
VECTORS = {w: np.random.default_rng(i).normal(size=6).tolist() for i,w in enumerate(('mat', 'zebra', 'okapi', 'gnu'))}
ARGS = dict(bs=8, min_freq=1, no_bar=True, device='cpu', tok_tfm=WORDS)
SMALL = dict(n_hid=6, half=False)

def learner(dls=None, **args): return text_lstm_learner(clas_dls(WORDS, bs=8) if dls is None else dls, **{**SMALL, 'emb_sz': 6, **args})

# ---- Unlabelled texts

def test_unlabelled_texts_are_read_by_the_words_of_the_vectors():
    learn = text_lstm(texts(), unlabelled=MORE, vectors=VECTORS, epochs=1, objective={}, model_args=SMALL, **{**ARGS, 'min_freq': 3})
    assert {'virtual', 'entropy'} <= set(learn.recorder.metric_names)
    dls,more = mixed_loaders(texts(), MORE[:1], **{**ARGS, 'min_freq': 3})   # where 'okapi' is rare
    like = learner(dls, vectors=VECTORS, emb_sz=None).dls.train_ds
    read = unlabelled_dataset(more, like)
    assert 'okapi' not in rf.text_vocab(dls) and 'okapi' in [like.corpus.vocab[i] for i in read.corpus.ids]

def test_texts_of_the_other_direction_are_refused():
    there = clas_dls(WORDS, backwards=True, text_vocab=list(rf.text_vocab(clas_dls(WORDS)))).train_ds
    with pytest.raises(ValueError, match='backwards=True for the unlabelled texts, and False'):
        unlabelled_dataset(there, clas_dls(WORDS).train_ds)

def test_unlabelled_texts_are_read_once(monkeypatch):
    "A prediction begins a fit, for callbacks of the learner."
    from rnn_fastai.callback import adversarial
    read,plain = [],adversarial.unlabelled_dataset
    monkeypatch.setattr(adversarial, 'unlabelled_dataset', lambda *args: read.append(1) or plain(*args))
    learn = learner(cbs=VirtualAdversarial(texts=MORE.text.tolist(), bs=4))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1); learn.fit(1)
        for _ in range(2): learn.predict('mat')
    assert len(read) == 1
    learn.virtual_adversarial.texts = ['mat', 'CAT mat']   # others are
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert len(read) == 2 and len(learn.virtual_adversarial.batches.dataset) == 2

@pytest.mark.parametrize('other', [['something else']*8, MORE.text[:4].tolist(), None], ids=['others', 'fewer', 'none'])
def test_a_training_does_not_go_on_with_other_unlabelled_texts(other, tmp_path):
    def cb(more): return [VirtualAdversarial(texts=more, bs=4)]
    with cut_after('after_batch', 2), pytest.raises(Cut), (learn := learner()).no_bar():
        learn.fit(2, cbs=[rf.Checkpoint(tmp_path/'ck', every=1), *cb(MORE.text.tolist())])
    with (learn := learner()).no_bar(), pytest.raises(ValueError, match='not those of the checkpoint'): learn.resume(tmp_path/'ck', cbs=cb(other))
    with (learn := learner()).no_bar(): learn.resume(tmp_path/'ck', cbs=cb(MORE.text.tolist()))

def test_known_words_stay_with_unlabelled_texts():
    for more in (None, MORE): assert 'yak' in rf.text_vocab(mixed_loaders(texts(), more, known_words=['yak'], **ARGS)[0])

# ---- Word vectors

def test_fewer_words_than_numbers_of_a_vector():
    learn = text_lstm(texts(), epochs=1, model_args={**SMALL, 'emb_sz': 500}, **ARGS)
    assert 1 < learn.model.inp.embedding_dim < len(rf.text_vocab(learn.dls))

def test_words_without_neighbours_are_not_counted():
    df = pd.DataFrame(dict(text=['one', 'two', 'three four', 'four three', 'five']*2, label=['a', 'b']*5))
    vecs = own_vectors(rf.TextDataLoaders.from_df(df, text_col='text', label_col='label', valid_pct=0, **{**ARGS, 'bs': 2, 'tok_tfm': PLAIN}))
    assert sorted(vecs.words) == ['four', 'three']

def test_one_word_again_and_again_has_a_vector():
    df = pd.DataFrame(dict(text=['on on on', 'on on']*5, label=['a', 'b']*5))
    vecs = own_vectors(rf.TextDataLoaders.from_df(df, text_col='text', label_col='label', valid_pct=0, **{**ARGS, 'bs': 2, 'tok_tfm': PLAIN}))
    assert vecs.words == ['on'] and np.isfinite(vecs.table).all()

def test_vectors_leave_balanced_classes_balanced():
    dls = rf.balanced_loaders(clas_dls(WORDS, bs=8))
    there = learner(dls, vectors=VECTORS, emb_sz=None).dls
    assert dls.train.wgts is not None and (there.train.wgts == dls.train.wgts).all() and there.valid.wgts is None

# ---- Several nets

def test_a_mean_is_of_nets_that_read_in_one_direction():
    turned = clas_dls(WORDS, bs=8, backwards=True)
    with pytest.raises(ValueError, match='directions of learner 1 differ'): mean_of_learners([learner(), learner(turned)])

def test_a_mean_is_of_answers_of_one_kind():
    other = learner(loss_func=ft.MSELossFlat())
    with pytest.raises(ValueError, match='answers of learner 1 differ'): mean_of_learners([learner(), other])

def test_the_temperature_of_one_net_is_not_that_of_the_mean():
    first,second = learner(),learner()
    first.loss_func = CalibratedLoss(first.loss_func, 5.)
    both = mean_of_learners([first, second])
    first.loss_func = second.loss_func
    with both.no_bar(), first.no_bar(), second.no_bar():
        assert_close(both.get_preds()[0], torch.stack([l.get_preds()[0] for l in (first, second)]).mean(0))

def test_a_mean_of_models_that_give_states_too():
    class Pair(nn.Linear):
        def forward(self, x): return super().forward(x),x
    nets,x = [Pair(3, 2), Pair(3, 2)],torch.randn(4, 3)
    want = torch.stack([n(x)[0].softmax(-1) for n in nets]).mean(0)
    assert_close(MeanClassifier(nets, 'labels')(x).softmax(-1), want)

# ---- Losses, schedules, and models that read their table themselves

class OwnTable(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.emb,self.out = nn.Embedding(n, 4, padding_idx=1),nn.Linear(4, 3)
    def forward(self, x): return self.out(F.embedding(x, self.emb.weight).mean(1))

@pytest.mark.parametrize('cb', [AdversarialTraining, VirtualAdversarial])
def test_an_embedding_that_is_not_called_is_told(cb):
    dls = clas_dls(WORDS, bs=8)
    learn = rf.RNNLearner(dls, OwnTable(len(rf.text_vocab(dls))), loss_func=dls.loss_func, cbs=cb())
    with learn.no_bar(), learn.no_logging(), pytest.raises(TypeError, match='does not call its embedding'): learn.fit(1)

@pytest.mark.parametrize('cb', [AdversarialTraining, VirtualAdversarial])
def test_a_plain_learner_of_fastai(cb):
    dls = clas_dls(WORDS, bs=8)
    class Own(OwnTable):
        def forward(self, x): return self.out(self.emb(x).mean(1))
    learn = ft.Learner(dls, Own(len(rf.text_vocab(dls))), loss_func=dls.loss_func, cbs=cb())
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert learn.recorder.metric_names[3] in ('adversarial', 'virtual')

def test_log_probabilities_are_labels():
    assert answer_kind(with_answers(nn.NLLLoss())) == answer_kind(nn.NLLLoss()) == 'labels'

def test_a_step_that_is_left_out_leaves_the_rate():
    class Skip(ft.Callback):
        order = rf.VariableLength.order-1
        def before_step(self):
            if self.iter in (0, 3): raise ft.CancelStepException
    learn = rf.language_model_learner(lm_dls(WORDS), 'AWD_LSTM', dict(emb_sz=6, n_hid=8, n_layers=1), pretrained=False, cbs=[Skip(), rf.VariableLength()])
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    assert learn.opt.hypers[0]['lr'] == 1e-2

# ---- Words of the training texts

def held_out(): return pd.DataFrame(dict(text=['b b b b b b']*9 + ['a a a a c a']*9, held=[True]*9 + [False]*9))

def test_the_shares_of_words_are_those_of_training_texts():
    dls = rf.TextDataLoaders.from_df(held_out(), text_col='text', valid_col='held', is_lm=True, text_vocab=['xxunk', 'xxpad', 'a', 'b', 'c'],
                                     bs=2, seq_len=5, tok_tfm=PLAIN, device='cpu', no_bar=True)
    assert_close(word_shares(dls), torch.tensor([0., 0., 5/6, 0., 1/6]))
    dls.train.dataset = dls.train_ds.new_empty()   # as after loading
    assert word_shares(dls).tolist() == [0.]*5

def test_a_validation_changes_no_weight():
    learn = rf.language_model_learner(lm_dls(WORDS), 'AWD_LSTM', dict(emb_sz=6, n_hid=8, n_layers=1), pretrained=False, cbs=rf.SampledCrossEntropy(4))
    learn.model[1].decoder.bias.data.zero_()
    with learn.no_bar(), learn.no_logging():
        learn.validate()
        assert not learn.model[1].decoder.bias.any()
        learn.fit(1, 0.)
    assert learn.model[1].decoder.bias.any()

# ---- ULMFiT in one call

def test_a_stratified_split(tmp_path):
    learn = rf.ulmfit(texts(60), stratify=True, pretrained=False, config=dict(emb_sz=6, n_hid=8, n_layers=1), path=tmp_path, **{**ARGS, 'bs': 4})
    held = [learn.dls.vocab[1][int(y)] for _,y in learn.dls.valid_ds]
    assert sorted(held) == ['neg']*8 + ['pos']*4

def test_a_rate_of_the_classifier_is_checked_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(ft.Learner, 'fit', lambda *a, **k: pytest.fail('it trains'))
    with pytest.raises(ValueError, match='lr=-1.0 must be'):
        rf.ulmfit(texts(), pretrained=False, path=tmp_path, clas_args=dict(lr=-1.), **ARGS)

@pytest.mark.parametrize('pool', ['max', 'last'])
def test_vectors_where_no_row_is_held_out(pool, tmp_path):
    "All labels are for training where there are few."
    learn = text_lstm(texts(), valid_pct=0, unlabelled=MORE, vectors=VECTORS, epochs=1, model_args={**SMALL, 'pool': pool}, **ARGS)
    assert len(learn.dls.valid_ds) == 0 and learn.dls.valid_ds.corpus.vocab == learn.dls.train_ds.corpus.vocab
    again = rf.load_bundle(learn.save_bundle(tmp_path/'all'))
    assert_close(again.predict('okapi cat')[2], learn.predict('okapi cat')[2])

def test_a_tagger_with_vectors_where_no_row_is_held_out():
    learn = rf.tagger_learner(tag_dls(valid_pct=0), vectors=VECTORS, n_hid=4, emb_sz=6)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert [w for w,_ in learn.tag('okapi sat')[0]] == ['okapi', 'sat']

@pytest.mark.parametrize('no_bar', [True, False])
def test_no_bar_is_drawn_in_training_where_none_is_asked_for(no_bar, capsys):
    text_lstm(texts(), vectors=VECTORS, epochs=1, model_args=SMALL, **{**ARGS, 'no_bar': no_bar})
    assert ('Epoch 1/1' in capsys.readouterr().out) is not no_bar
