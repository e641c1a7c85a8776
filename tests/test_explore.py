"The explorer's answers are those of `record`, `score`, `generate`, `predict` and `edit_states`, for every kind of learner."
import base64
import json
import re
from functools import cache

import numpy as np
import pytest
import torch
from fastai.torch_core import get_model, set_seed
from test_serve import client, learner

import rnn_fastai.all as rf
from rnn_fastai.callback.capture import loaders_vocab
from rnn_fastai.ship import explore as module
from rnn_fastai.ship.batching import list_layers
from rnn_fastai.ship.explore import ask, compare, explore, nearest, shown_steps, traces, unit_edits
from rnn_fastai.ship.requests import Limits

TEXT = 'the story is bad, a good film'

def language_model(arch, n_layers):
    set_seed(3)
    return rf.language_model_learner(learner('lm').dls, arch, dict(emb_sz=8, n_hid=12, n_layers=n_layers), pretrained=False)

def with_cell(cell, **kwargs):
    set_seed(3)
    return rf.rnn_learner(learner('lm').dls, cell, **kwargs)

def series():
    set_seed(3)
    return rf.rnn_learner(rf.SeqDataLoaders.from_series('hi!'*20, n_series=4, seq_len=5, device='cpu'), 'GRU', n_hid=6)

MAKE = {'AWD_GRU': lambda: learner('lm'), 'backwards': lambda: learner('lm', backwards=True),
        'AWD_LSTM': lambda: language_model('AWD_LSTM', 3), 'AWD_QRNN': lambda: language_model('AWD_QRNN', 2),
        'PeepholeLSTM': lambda: with_cell('PeepholeLSTM', n_hid=6), 'minLSTM': lambda: with_cell('minLSTM', n_hid=6),
        'torch': lambda: with_cell(torch.nn.LSTM(8, 6, num_layers=2)), 'series': series}

@cache
def writer(name): return MAKE[name]()

def text_for(name): return 'hi!hi!hi' if name == 'series' else TEXT

def vocab_of(learn): return [str(t) for t in loaders_vocab(learn.dls)['vocab']]

def numbers(told): return np.frombuffer(base64.b64decode(told['values']), '<f4').reshape(len(told['steps']), -1)

def change(learn, layer, unit=1, value=0.5):
    "A change, as a request has it and as Python has it."
    name = list_layers(learn)[layer]['name']
    return dict(layer=layer, unit=unit, part='h', value=value),rf.clamp(name, unit, value)

@pytest.mark.parametrize('name', MAKE)
def test_a_language_model_is_read_as_python_reads_it(name):
    learn,text = writer(name),text_for(name)
    model = get_model(learn.model)
    for layer,about in enumerate(list_layers(learn)):
        request,edit = change(learn, layer)
        rec = learn.record(text, about['name'], ('states', 'logits'))
        with rf.edit_states(model, edit): scored,rec2 = learn.score(text, no_bar=True)[0],learn.record(text, about['name'], ('states', 'logits'))
        told, = explore(learn, [text], layer, edits=(request,), top=5)
        np.testing.assert_array_equal(numbers(told), rec[0, 'h', 0])
        assert told['tokens'] == rec.tokens(0) and told['n_units'] == rec[0, 'h', 0].shape[1]
        plain, = learn.score(text, no_bar=True)
        for said,score in ((told, plain), (told['changed'], scored)):
            np.testing.assert_allclose(said['p'][1:], score.logps.exp(), rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(said['perplexity'], score.perplexity, rtol=1e-5)
        vocab = vocab_of(learn)
        old,new = (rf.probabilities(r) for r in (rec, rec2))
        for step,near in enumerate(told['next']):
            best = np.maximum(old, new)[step]
            assert {t for t,_,_ in near} == {vocab[i] for i in np.argsort(-best)[:5]}
            for t,p,q in near:   # several tokens may have one name: xxfake
                assert any(np.allclose((p, q), (old[step, i], new[step, i]), atol=1e-6) for i,name in enumerate(vocab) if name == t)
            assert [p for _,p,_ in near] == sorted((p for _,p,_ in near), reverse=True)
        assert told['alternatives'] == [[], *told['next'][:-1]]
        assert not np.allclose(told['p'][1:], told['changed']['p'][1:], atol=1e-4)   # the change matters

@pytest.mark.parametrize('name', MAKE)
def test_continuations_are_those_of_generate(name):
    learn,text = writer(name),text_for(name)
    request,edit = change(learn, 0, value=3.)
    for options in (dict(seed=4), dict(seed=5, temperature=0.5, top_k=3), dict(seed=1, temperature=0.)):
        told, = compare(learn, [text], (request,), 8, **options)
        old, = learn.generate(text, 8, no_bar=True, **options)
        with rf.edit_states(get_model(learn.model), edit): new, = learn.generate(text, 8, no_bar=True, **options)
        for said,want in ((told['old'], old), (told['new'], new)):
            assert (said['text'], said['tokens'], said['ended']) == (want.text, want.tokens, want.ended)
            np.testing.assert_allclose(said['logps'], want.logps, atol=1e-5)
        assert compare(learn, [text], (), 8, **options)[0]['new'] is None
    drawn, = compare(learn, [text], (), 8)
    assert drawn['old'] == compare(learn, [text], (), 8, seed=drawn['seed'])[0]['old']

@pytest.mark.parametrize('name', MAKE)
def test_lines_are_those_of_record(name):
    learn,text = writer(name),text_for(name)
    request,edit = change(learn, 0)
    layer = list_layers(learn)[0]['name']
    told, = traces(learn, [text], (0, 1), 0, (request,))
    with rf.edit_states(get_model(learn.model), edit): recs = [learn.record(text, layer, list(told['traces'][0]['old']))]
    recs.insert(0, learn.record(text, layer, list(told['traces'][0]['old'])))
    for line in told['traces']:
        for key,rec in zip(('old', 'new'), recs, strict=True):
            for part,values in line[key].items(): np.testing.assert_array_equal(np.float32(values), rec[0, part, 0][:, line['unit']])
    assert told['traces'][1]['new']['h'] == [0.5]*len(told['steps'])

def test_gates_are_there_where_a_cell_has_them():
    assert set(traces(learner('lm'), ['a film'], (0,))[0]['traces'][0]['old']) == {'h', 'reset', 'update', 'new'}
    assert set(traces(writer('AWD_LSTM'), ['a film'], (0,))[0]['traces'][0]['old']) == {'h', 'c', 'input', 'forget', 'cell', 'output'}

def test_tokens_are_read_as_they_are():
    learn = learner('lm')
    toks = ('xxbos', 'a', 'xxunk', 'xxunk', 'xxunk', 'film')
    assert explore(learn, [toks])[0]['tokens'] == list(toks)
    assert explore(learn, [(*toks[:2], 'xxpad', *toks[2:])])[0] == explore(learn, [toks])[0]   # padding is no step

def test_states_of_a_cell_are_changed_before_the_output_is_made():
    "A cell state that is held moves h; h alone that is held leaves c of the same step."
    learn = writer('AWD_LSTM')
    told, = explore(learn, [TEXT], part='c', edits=(dict(layer=0, unit=2, part='c', value=4.),))
    assert told['states'] == ['h', 'c'] and told['changed']['perplexity'] != told['perplexity']
    line = traces(learn, [TEXT], (2,), edits=(dict(layer=0, unit=2, part='c', value=4.),))[0]['traces'][0]
    assert line['new']['c'] == [4.]*len(line['new']['c']) and line['new']['h'] != line['old']['h']

def test_a_removed_unit_is_an_ablated_one():
    learn = learner('lm')
    name = list_layers(learn)[0]['name']
    edit, = unit_edits(learn, (dict(layer=0, unit=7, part='h', value=None),))
    with rf.edit_states(get_model(learn.model), rf.ablate(name, 7)): want = learn.record(TEXT, name)[0, 'h', 0]
    with rf.edit_states(get_model(learn.model), edit): np.testing.assert_array_equal(learn.record(TEXT, name)[0, 'h', 0], want)

def test_classifiers_and_taggers_give_their_answers():
    for kind,text in (('classifier', 'a good film, the story'), ('tagger', 'the small dog runs'), ('numbers', 'a good film')):
        learn = learner(kind)
        request,edit = change(learn, 0, value=3.)
        told, = explore(learn, [text], edits=(request,))
        np.testing.assert_array_equal(numbers(told), learn.record(text, list_layers(learn)[0]['name'])[0, 'h', 0])
        def said(learn=learn, kind=kind, text=text):
            with learn.no_bar(): made = learn.predict(text)
            return dict(words=[w for w,_ in made], tags=[t for _,t in made]) if kind == 'tagger' else (made[0], made[2].numpy())
        plain = said()
        with rf.edit_states(get_model(learn.model), edit): new = said()
        for answer,want in ((told['answer'], plain), (told['changed']['answer'], new)):
            if kind == 'tagger': assert answer == want
            else:
                assert answer['label'] == want[0]
                np.testing.assert_allclose(list(answer['probabilities'].values()), want[1], atol=1e-5)
        assert told['answer'] != told['changed']['answer'] and 'next' not in told

def test_learners_of_series_too():
    for kind,ys in (('many-to-one', ['p', 'q', 'p', 'q']*8), ('many-to-many', ['ppq', 'pqq', 'qpq', 'qqp']*8)):
        set_seed(1)
        learn = rf.rnn_learner(rf.SeqDataLoaders.from_pairs(['aab', 'abb', 'bab', 'bba']*8, ys, kind, bs=4, device='cpu'), 'LSTM', n_hid=6)
        told, = explore(learn, ['abba'], edits=(change(learn, 0, value=5.)[0],))
        with learn.no_bar(): made = learn.predict('abba')
        assert told['answer'] != told['changed']['answer']
        if kind == 'many-to-one': assert told['answer']['label'] == made[0]
        else: assert told['answer']['tags'] == [t for _,t in made]

def test_a_long_text_is_read_whole_and_sampled():
    learn,text = learner('lm'),'a good film and the story '*80
    rec = learn.record(text, 0, ('states', 'logits'))
    told, = explore(learn, [text])
    assert told['n_tokens'] == rec.n_steps > 256 and len(told['steps']) <= 256 and told['steps'][-1] == rec.n_steps - 1
    assert set(np.diff(told['steps'])) == {told['steps'][1] - told['steps'][0]}
    np.testing.assert_array_equal(numbers(told), rec[0, 'h', 0][told['steps']])
    scored, = learn.score(text, no_bar=True)
    for s,p in zip(told['steps'], told['p'], strict=True):
        if s: np.testing.assert_allclose(p, scored.logps[s-1].exp(), rtol=1e-5)
    assert [a[0][0] for a in told['alternatives'] if a] == [learn.dls.vocab[i] for i in rf.probabilities(rec)[[s-1 for s in told['steps'] if s]].argmax(-1)]
    assert shown_steps(256) == range(256) and shown_steps(257)[-1] == 256

def test_a_text_whose_probabilities_are_too_many_is_refused(monkeypatch):
    monkeypatch.setattr(module, '_MOST_LOGITS', 24*20)
    explore(learner('lm'), ['a film '*8])
    with pytest.raises(ValueError, match='texts has one of 61 tokens; with 24 tokens in the vocabulary, 20 can be explored at once. Give a part'):
        explore(learner('lm'), ['a good film '*20])

def test_the_nearest_contexts_are_those_of_a_recording():
    learn = learner('lm')
    rec = learn.record(['a good film, the actors are fine', TEXT], parts=('states', 'gates'))
    for layer,part in ((0, 'h'), (1, 'update')):
        name = list_layers(learn)[layer]['name']
        told, = nearest(learn, ['the story'], 2, layer, part, 5, rec)
        own = learn.record('the story', name, part)[0, part, 0][2]
        every = [(np.linalg.norm(row - own), d, i) for d in range(2) for i,row in enumerate(np.float64(rec[name, part, d]))]
        want = sorted(every)[:5]
        assert [(c['doc'], c['step']) for c in told['contexts']] == [(d, i) for _,d,i in want]
        np.testing.assert_allclose([c['distance'] for c in told['contexts']], [v for v,_,_ in want], atol=1e-9)
    json.dumps(told)

def test_nothing_is_left_in_the_model():
    learn = learner('lm')
    before = explore(learn, [TEXT])[0]
    with pytest.raises(ValueError, match='no word that the model knows'): compare(learn, ['zzz'], (change(learn, 0)[0],))
    assert explore(learn, [TEXT])[0] == before and all(m.edit is None for m in learn.model.modules() if isinstance(m, rf.Recurrent))

REFUSED = [
    ('explore', dict(texts=['a'], layer=2), 'layer', 'layer=2 is not there; the numbers are 0 to 1'),
    ('explore', dict(texts=['a'], part='q'), 'part', "part='q' is not of 0.rnns.0; it has h, reset, update, new"),
    ('explore', dict(texts=['a'], edits=[dict(layer=0, unit=12)]), 'edits', 'edits[0]: unit=12 of 0.rnns.0 is not there; the numbers are 0 to 11'),
    ('explore', dict(texts=['a'], edits=[dict(layer=5, unit=1)]), 'edits', 'edits[0]: layer=5 is not there; the numbers are 0 to 1'),
    ('explore', dict(texts=['a'], edits=[dict(layer=0, unit=1, part='reset')]), 'edits', "part='reset' of 0.rnns.0 cannot be changed; h can"),
    ('explore', dict(texts=['a'], edits=[dict(layer=0, unit=1, value='2')]), 'edits', "edits[0]: value is '2'; it must be a number from"),
    ('explore', dict(texts=['a'], edits=[dict(layer=0, unit=-1)]), 'edits', 'edits[0]: unit is -1; it must be a whole number'),
    ('explore', dict(texts=['a'], edits=[dict(layer=0, unit=1)]*65), 'edits', 'it must be a list of up to 64 objects with the fields layer, unit, part, value'),
    ('explore', dict(texts=[' ']), 'texts', 'it must be a text of 1 to 20,000 characters'),
    ('explore', {}, 'texts', 'texts is missing'),
    ('explore', dict(tokens=['zzz']), 'tokens', "tokens has 'zzz', which is not in the vocabulary"),
    ('traces', dict(texts=['a'], units=[12]), 'units', 'units has 12; the numbers of 0.rnns.0 are 0 to 11'),
    ('traces', dict(texts=['a'], units=[1, 'b']), 'units', "units[1] is 'b'"),
    ('compare', dict(texts=['a'], n_words=201), 'n_words', 'it must be a whole number from 1 to 200'),
    ('nearest', dict(texts=['a'], step=0), None, 'There is no recording to look in; pass recording=learn.record(texts)')]

@pytest.mark.parametrize('task,body,field,words', REFUSED)
def test_refusals_name_the_field_and_the_remedy(task, body, field, words):
    with client('lm') as c: got = c.post(f'/{task}', json=body)
    assert got.status_code == 422 and words in got.json()['error']
    assert (got.json()['field'] or '').partition('[')[0] == (field or '')
    with pytest.raises(ValueError, match=re.escape(words)):
        ask(learner('lm'), task, body, Limits())

def test_the_server_answers_as_the_functions_do():
    learn = learner('lm')
    rec = learn.record([TEXT])
    edit = dict(layer=1, unit=3, part='h', value=-1.)
    with client('lm') as c:
        assert c.get('/health').json()['recording'] is None
        assert c.post('/explore', json=dict(texts=[TEXT], layer=1, edits=[edit])).json()['answers'] == explore(learn, [TEXT], 1, edits=(edit,))
        assert c.post('/compare', json=dict(texts=[TEXT], edits=[edit], seed=3, n_words=5)).json()['answers'] == compare(learn, [TEXT], (edit,), 5, 3, temperature=1., top_k=None, top_p=None)
    from starlette.testclient import TestClient

    from rnn_fastai.ship.serve import make_app
    with TestClient(make_app(learn, recording=rec)) as c:
        assert c.get('/health').json()['recording'] == f'{rec.n_steps} tokens of 1 text'
        assert c.post('/nearest', json=dict(texts=[TEXT], step=3)).json()['answers'] == nearest(learn, [TEXT], 3, recording=rec)

def test_a_learner_that_cannot_be_explored_says_what_can():
    set_seed(0)
    dls = rf.SeqDataLoaders.from_pairs(['ab', 'ba']*8, ['ba', 'ab']*8, 'encoder-decoder', bs=4, device='cpu')
    with pytest.raises(TypeError, match='RNNLearner cannot be explored; language models, classifiers and taggers can'): rf.rnn_learner(dls, 'GRU').explore()

def test_a_folder_without_a_recording_is_refused_before_the_model_is_loaded(tmp_path):
    with pytest.raises(FileNotFoundError, match='There is no recording in'): rf.serve(tmp_path, port=0, recording=tmp_path/'none')

@pytest.mark.parametrize('kind', ['lm', 'backwards', 'classifier', 'tagger'])
def test_unknown_words_are_told_as_they_were_typed(kind):
    learn = writer(kind) if kind == 'backwards' else learner(kind)
    text = 'the 안녕 film مرحبا 🙂'
    told, = explore(learn, [text])
    typed = [t for t in told['typed'] if t is not None]
    assert typed == {'backwards': ['🙂', 'مرحبا', '안녕'], 'tagger': ['안녕', 'film', 'مرحبا', '🙂']}.get(kind, ['안녕', 'مرحبا', '🙂'])
    assert [t is None for t in told['typed']] == [t != 'xxunk' for t in told['tokens']]
    if kind in ('lm', 'backwards'): assert explore(learn, [tuple(told['tokens'])])[0]['typed'] == [None]*told['n_tokens']   # tokens tell no word
    long, = explore(learn, [f'{text} '*80])   # of which some steps are shown
    assert set(long['typed']) <= {None, *typed} and len(long['typed']) == len(long['tokens'])
