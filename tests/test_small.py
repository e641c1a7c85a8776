"The small English model that comes with the package: it starts language models, classifiers and taggers offline."
import json

import pandas as pd
import pytest
import torch

import rnn_fastai.all as rf
from rnn_fastai.generate.score import perplexity_of
from rnn_fastai.learner.pretrained import SHIPPED, read_pretrained

TEXTS = ['The film was very good, and I liked the actors.', 'It is one of the worst films that I have seen.']*12
FRAME = pd.DataFrame({'text': TEXTS, 'label': ['pos', 'neg']*12})

@pytest.fixture(autouse=True)
def offline(monkeypatch):
    "No test of the small model may ask the network for anything."
    def refuse(*args, **kwargs): raise AssertionError("the network was asked")
    monkeypatch.setattr('socket.socket.connect', refuse)
    monkeypatch.setattr('rnn_fastai.learner.pretrained.fetch_pretrained', refuse)

def loaders(tmp_path, **kwargs):
    args = dict(text_col='text', valid_pct=0.25, seed=0, bs=4, no_bar=True, path=tmp_path, known_words=rf.shipped_vocab())
    return rf.TextDataLoaders.from_df(FRAME, **args | kwargs)

def test_the_file_is_small_and_has_a_card():
    files = {f.suffix: f.stat().st_size for f in SHIPPED.glob('awd_lstm_small.*')}
    assert files['.safetensors'] < 12e6 and sum(files.values()) < 12e6
    card = (SHIPPED/'awd_lstm_small.md').read_text(encoding='utf8')
    assert 'Limits' in card and 'erplexity' in card

def test_it_knows_english(tmp_path):
    "Perplexity of sentences, next to their words in another order, and to random weights."
    dls = loaders(tmp_path, is_lm=True, seq_len=8)
    small = rf.language_model_learner(dls, 'AWD_LSTM_small')
    fresh = rf.language_model_learner(dls, 'AWD_LSTM_small', pretrained=False)
    right = ["I have seen this film many times, and it is still one of my favorites.",
             "The acting is bad and the story makes no sense at all."]
    wrong = [' '.join(sorted(t.split())) for t in right]
    of = lambda learn, texts: perplexity_of(learn.score(texts))   # noqa: E731
    assert of(small, right) < 60 and of(small, wrong) > 5*of(small, right) and of(fresh, right) > 10_000

def test_words_and_weights_go_to_the_loaders(tmp_path):
    dls = loaders(tmp_path, is_lm=True, seq_len=8)
    learn,vocab = rf.language_model_learner(dls, 'AWD_LSTM_small'),list(dls.vocab)
    wgts,known = read_pretrained(SHIPPED/'awd_lstm_small.safetensors'),rf.shipped_vocab()
    assert set(known) <= set(vocab) and learn.transfer.n_found == len(set(vocab) & set(known))
    enc = learn.model[0]
    for word in ('film', 'the', 'xxmaj', 'gangster'):
        assert torch.equal(enc.encoder.weight[vocab.index(word)], wgts['0.encoder.weight'][known.index(word)])
    assert torch.equal(enc.rnns[1].weight_hh_l0, wgts['0.rnns.1.weight_hh_l0'])
    assert learn.model[1].decoder.weight is enc.encoder.weight
    assert not enc.rnns[1].weight_hh_l0.requires_grad and enc.encoder.weight.requires_grad   # frozen but for the words

def test_a_classifier_starts_from_it_and_is_the_same_after_loading(tmp_path):
    learn = rf.text_classifier_learner(loaders(tmp_path, label_col='label'), 'AWD_LSTM_small')
    enc = rf.language_model_learner(loaders(tmp_path, is_lm=True, seq_len=8), 'AWD_LSTM_small').model[0]
    for k,w in learn.model[0].module.rnns.state_dict().items(): assert torch.equal(w, enc.rnns.state_dict()[k]), k
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    learn.save_bundle(tmp_path/'b')
    back = rf.load_learner(tmp_path/'b')
    with learn.no_bar(), back.no_bar():
        for text in ('An gangster of dreadful scenes.', 'good'):
            a,b = learn.predict(text),back.predict(text)
            assert a[0] == b[0] and torch.equal(a[2], b[2])

def test_ulmfit_keeps_what_it_knows(tmp_path):
    learn = rf.ulmfit(FRAME, arch='AWD_LSTM_small', path=tmp_path, bs=4, lm_epochs=1, epochs=1, no_bar=True, valid_pct=0.25)
    assert {'gangster', 'actors', 'film'} <= set(learn.dls.vocab[0])

def test_without_a_network_the_large_weights_name_it(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path))
    from fastai.data.external import fastai_cfg
    fastai_cfg.cache_clear()
    try:
        with pytest.raises(RuntimeError, match="'AWD_LSTM_small' comes with the package"):
            rf.fetch_pretrained('http://localhost:9/none.tgz')
    finally: fastai_cfg.cache_clear()

def test_the_vocabulary_is_plain_json():
    vocab = json.loads((SHIPPED/'awd_lstm_small.vocab.json').read_text(encoding='utf8'))
    assert vocab[:2] == ['xxunk', 'xxpad'] and len(vocab) == len(set(vocab)) == 20_000
