"`predict` against fastai's slow path on the same weights, its cost counted in operations, and what it leaves alone."
import random

import fastai.text.core
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.text import all as ft
from torch.testing import assert_close

from rnn_fastai import all as rf
from rnn_fastai import progress

WORDS = 'One two THREE four five six seven eight nine ten'.split()
PROMPTS = ['one', 'One two', 'TEN nine eight, seven', 'two unheard two unheard', 'five ' * 12]
CONFIG = dict(ft.awd_lstm_lm_config, emb_sz=16, n_hid=24, n_layers=2, tie_weights=False)

def text_frame():
    rng = np.random.default_rng(0)
    return pd.DataFrame({'text': [' '.join(rng.choice(WORDS, rng.integers(4, 25))) for _ in range(30)]})

def make_learner(m, path, dls=None, **kwargs):
    dls = dls or m.TextDataLoaders.from_df(text_frame(), is_lm=True, bs=2, seq_len=9, seed=1, device='cpu')
    return m.language_model_learner(dls, m.AWD_LSTM, config=CONFIG, pretrained=False, path=path, **kwargs)

@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    "Our learner and fastai's with the same decided weights, for which `xxfake` and `xxfld` are out of reach and `xxunk` is likely."
    path = tmp_path_factory.mktemp('models')
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(fastai.text.core, 'parallelable', lambda *a, **k: False)
        ours,theirs = (make_learner(m, path) for m in (rf, ft))
    sd = theirs.model.state_dict()
    for k,w in sd.items():
        if k.endswith(('_raw', 'weight_ih_l0', 'decoder.weight')): w.normal_(0, 1.2)
    sd['0.encoder.weight'].normal_(0, 2)
    sd['0.encoder_dp.emb.weight'].copy_(sd['0.encoder.weight'])
    vocab = list(theirs.dls.vocab)
    sd['1.decoder.bias'][[i for i,t in enumerate(vocab) if t in ('xxfake', 'xxfld')]] = -1e4
    sd['1.decoder.bias'][0] = 3.
    theirs.model.load_state_dict(sd)
    rf.load_weights(ours.model, sd)
    assert list(ours.dls.vocab) == vocab
    return ours,theirs

@pytest.fixture()
def ours(pair): return pair[0]

def fastai_greedy(learn, *args, monkeypatch, **kwargs):
    with monkeypatch.context() as m:
        m.setattr(torch, 'multinomial', lambda p, n: p.argmax()[None])
        return learn.predict(*args, no_bar=True, **kwargs)

SHOWN = {'TEN nine eight xxunk seven': 'TEN nine eight , seven', 'two xxunk two xxunk': 'two unheard two unheard',
         'five': ' '.join(['five']*12)}   # prompts of which a token is unknown, as fastai shows them and as they are

def as_typed(text, prompt):
    "fastai's text, with the prompt as it was typed: `12`, the comma and `unheard` are not in the vocabulary."
    want = ' '.join(prompt.replace(',', ' ,').split())
    if want not in SHOWN.values(): return text
    had = next(k for k,v in SHOWN.items() if v == want)
    assert text.startswith(had)
    return want + text[len(had):]

@pytest.mark.parametrize('no_unk', [True, False])
@pytest.mark.parametrize('prompt', PROMPTS)
def test_greedy_equals_fastai(pair, monkeypatch, prompt, no_unk):
    ours,theirs = pair
    want = fastai_greedy(theirs, prompt, 25, no_unk=no_unk, monkeypatch=monkeypatch)
    assert ours.predict(prompt, 25, no_unk=no_unk, temperature=0, no_bar=True) == as_typed(want, prompt)
    assert len(set(want.split())) > 3 or not no_unk   # the weights do not stand still

@pytest.mark.parametrize('kwargs', [{}, dict(temperature=0.5), dict(temperature=2.), dict(min_p=0.05),
                                    dict(no_unk=False),
                                    dict(temperature=0.7, min_p=0.02), dict(min_p=0.3, temperature=3.)],
                         ids=lambda k: ','.join(f'{a}={b}' for a,b in k.items()) or 'plain')
@pytest.mark.parametrize('seed', [1, 2])
@pytest.mark.filterwarnings('ignore:.*higher than|.*probability')
def test_sampled_equals_fastai_from_the_same_seed(pair, seed, kwargs):
    texts = []
    for learn in pair:
        torch.manual_seed(seed)
        texts.append([learn.predict(p, 20, no_bar=True, **kwargs) for p in PROMPTS[:3]])
    assert texts[0] == list(map(as_typed, texts[1], PROMPTS))

@pytest.mark.parametrize('kwargs', [dict(temperature=0), dict(temperature=4.), dict(min_p=0.2), dict(no_unk=False),
                                    dict(decoder=lambda toks: toks), dict(n_words=12)], ids=lambda k: next(iter(k)))
def test_argument_matters(ours, kwargs):
    def text(**k):
        torch.manual_seed(5)
        return ours.predict('One two', no_bar=True, **{'n_words': 20, **k})
    assert text() == text() != text(**kwargs)

def test_last_word_alone_keeps_the_context(ours):
    texts = [ours.predict('one two three', 15, temperature=0, only_last_word=o, no_bar=True) for o in (False, True)]
    assert texts[0] == texts[1]

def test_low_temperature_tends_to_greedy(ours):
    low,greedy = (ours.predict('one two', 20, temperature=t, no_bar=True) for t in (1e-3, 0))
    assert low == greedy

@pytest.mark.parametrize('n_words', [1, 5, 60])
@pytest.mark.parametrize('prompt', ['one', 'one two three four five six'])
def test_one_step_a_word(ours, prompt, n_words):
    "The prompt is read once; then every word costs one forward pass of one token, however long the text has grown."
    passes,logits = [],[]
    hooks = [ours.model[0].register_forward_hook(lambda m, args, out: passes.append(tuple(args[0].shape))),
             ours.model[1].register_forward_hook(lambda m, args, out: logits.append(tuple(args[0].shape[:2])))]
    try: ours.predict(prompt, n_words, no_bar=True)
    finally:
        for h in hooks: h.remove()
    assert passes == [(1, len(prompt.split())), *[(1, 1)]*n_words]   # with xxbos, one token less than the prompt has
    assert logits == [(1, 1)]*n_words                                # no logits are made for the prompt

def test_backwards_puts_words_before_the_prompt(tmp_path):
    torch.manual_seed(1)
    dls = rf.TextDataLoaders.from_df(text_frame(), is_lm=True, bs=2, seq_len=9, seed=1, backwards=True, device='cpu')
    learn = make_learner(rf, tmp_path, dls)
    for p in learn.model.parameters(): p.data.normal_(0, 0.8)
    model,vocab,text = learn.model.eval(),list(dls.vocab),['six', 'five', 'four']
    allowed = [i for i,t in enumerate(vocab) if t not in ('xxfake', 'xxunk')]
    for _ in range(15):   # the slow way: all of the text at every word
        probs = model(torch.tensor([[vocab.index(t) for t in text]])).logits[0, -1]
        text.append(vocab[max(allowed, key=lambda i, p=probs: p[i])])
    want = [t for t in text if t not in ('xxbos', 'xxpad')][::-1]
    got = learn.predict('four five six', 15, temperature=0, decoder=lambda t: t, no_bar=True)
    assert got == ' '.join(want)
    assert got.endswith('four five six')

@pytest.mark.parametrize('training', [True, False])
def test_predict_leaves_the_model_alone(ours, training):
    model = ours.model.train(training)
    for p in model.parameters(): p.grad = torch.ones_like(p)
    before = {k: v.clone() for k,v in model.state_dict().items()}
    needs = [p.requires_grad for p in model.parameters()]
    cbs,opt = list(ours.cbs),ours.opt
    ours.predict('one two', 10, no_bar=True)
    assert {m.training for m in model.modules()} == {training}
    assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert [p.requires_grad for p in model.parameters()] == needs
    assert all((p.grad == 1).all() for p in model.parameters())
    assert list(ours.cbs) == cbs and ours.opt is opt
    assert not any(m._forward_hooks for m in model.modules())
    ours.model.zero_grad()

def test_modules_in_different_modes_stay_so(ours):
    ours.model.train()
    ours.model[1].eval()
    try:
        ours.predict('one two', 2, no_bar=True)
        assert ours.model[0].training and not ours.model[1].training
    finally: ours.model.eval()

def test_training_mode_comes_back_after_an_interruption(ours):
    def stop(*args): raise KeyboardInterrupt
    ours.model.train()
    hook = ours.model[1].register_forward_hook(stop)
    try:
        with pytest.raises(KeyboardInterrupt): ours.predict('one two', 10, no_bar=True)
        assert all(m.training for m in ours.model.modules())
    finally:
        hook.remove()
        ours.model.eval()

def streams(): return torch.get_rng_state().tolist(),np.random.get_state()[1].tolist(),random.getstate()

def test_random_streams(ours):
    "Greedy generation draws nothing; sampling draws from torch's stream alone, one word at a time."
    before = streams()
    ours.predict('one two', 10, temperature=0, no_bar=True)
    assert streams() == before
    torch.manual_seed(3)
    ours.predict('one two', 10, no_bar=True)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    for _ in range(10): torch.multinomial(torch.ones(len(ours.dls.vocab)), 1)
    assert_close(after, torch.get_rng_state())
    assert streams()[1:] == before[1:]

def test_twice_the_same(ours):
    texts = {ours.predict('one two', 10, temperature=0, no_bar=True) for _ in range(3)}
    assert len(texts) == 1   # no state is left from call to call
    longer = ours.predict('one two', 20, temperature=0, no_bar=True)
    assert longer.startswith(texts.pop())

@pytest.mark.filterwarnings('ignore')
def test_bar(ours, capsys, monkeypatch):
    monkeypatch.setattr(progress, '_AFTER', 0)
    n = len(ours._ids(['one two'])[0]) - 1 + 5   # tokens read and written
    def drawn(**kwargs):
        ours.predict('one two', 5, **kwargs)
        return f'{n}/{n}' in capsys.readouterr().out
    assert not drawn()   # into a file
    monkeypatch.setattr(progress, 'can_draw', lambda: True)
    assert drawn() == hasattr(ours, 'progress') and not drawn(no_bar=True)
    with ours.no_bar(): assert not drawn()

def test_min_p_out_of_reach_warns(ours):
    with pytest.warns(UserWarning, match='min_p=1.0'): ours.predict('one', 3, min_p=1., no_bar=True)

@pytest.mark.parametrize('args,kwargs,words', [
    ((None,), {}, ['NoneType']), ((5,), {}, ['int']),
    (('one', 0), {}, ['n_words=0']),
    (('one', -2), {}, ['n_words=-2']), (('one', 2.5), {}, ['n_words=2.5']),
    (('one', 2), dict(temperature=-1), ['temperature=-1']), (('one', 2), dict(min_p=1.5), ['min_p=1.5']),
    (('one', 2), dict(min_p=-0.1), ['min_p=-0.1'])])
def test_bad_input(ours, args, kwargs, words):
    before = streams()
    err = ValueError if isinstance(args[0], str) else TypeError
    with pytest.raises(err) as e: ours.predict(*args, no_bar=True, **kwargs)
    assert all(w in str(e.value) for w in words), str(e.value)
    assert streams() == before

@pytest.mark.parametrize('prompt', ['', '  \n'])
def test_an_empty_prompt_begins_a_text(ours, prompt):
    vocab,ids = list(ours.dls.vocab),[2]
    for _ in range(8):
        logits = ours.model.eval()(torch.tensor([ids])).logits[0, -1]
        logits[[vocab.index(t) for t in ('xxunk', 'xxfake')]] = -torch.inf
        ids.append(logits.argmax().item())
    want = ' '.join(vocab[i] for i in ids if vocab[i] not in ('xxbos', 'xxpad'))
    assert ours.predict(prompt, 8, temperature=0, no_bar=True, decoder=lambda t: t) == want

@pytest.mark.parametrize('temperature', [float('inf'), float('nan')])
def test_odd_temperature(ours, temperature):
    "Refused, or at least words come out: infinity makes all words equally likely."
    try: text = ours.predict('one', 30, temperature=temperature, no_bar=True)
    except ValueError as e: assert 'temperature' in str(e)
    else: assert temperature == float('inf') and len(set(text.split())) > 5

@pytest.mark.parametrize('ids', [[2], [2, 9, 10, 11]])
def test_generate_yields_as_it_goes(ours, ids):
    model,ids = ours.model.eval(),torch.tensor(ids)
    steps = rf.generate(model, ids, 50, rf.Sampling(temperature=0))
    first = [next(steps) for _ in range(6)]
    text = ids.tolist()
    for i in first:   # each is the most likely after all that stands before it
        assert i == model(torch.tensor([text])).logits[0, -1].argmax().item()
        text.append(i)
    with pytest.raises(ValueError, match='empty'): next(rf.generate(model, ids[:0], 3))

def test_draws_by_probability():
    "Frequencies of a model that always gives the same logits, against fastai's arithmetic on probabilities."
    class Same(torch.nn.Module):
        def forward(self, ids): return logits.expand(*ids.shape, 4)
    logits,n = torch.tensor([0., 1., 2., -1.]),4000
    torch.manual_seed(0)
    for temperature,min_p,banned in ((1., None, ()), (0.5, None, ()), (2., None, (2,)), (1., 0.1, ())):
        probs = logits.softmax(0)
        probs[list(banned)] = 0.
        if min_p is not None: probs[probs < min_p] = 0.
        probs = probs.pow(1/temperature)/probs.pow(1/temperature).sum()
        how = rf.Sampling(temperature, epsilon_cutoff=min_p, forbidden=banned)
        sampler = rf.TokenSampler(how, [torch.tensor([0])]*n, 4, 1)
        seen = torch.bincount(sampler.pick(logits.expand(n, 4), list(range(n)))[0], minlength=4)/n
        assert ((seen-probs).abs() <= 5*(probs*(1-probs)/n).sqrt()).all()
    assert len(set(rf.generate(Same(), torch.tensor([0]), 50))) > 2
    assert_close(logits, torch.tensor([0., 1., 2., -1.]))   # the argument is not written to
