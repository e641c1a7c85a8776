"The server: its contracts, what it refuses, answers beside others as alone, clients that leave."
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pandas as pd
import pytest
import torch
import uvicorn
from fastai.torch_core import set_seed
from starlette.testclient import TestClient

import rnn_fastai.all as rf
from rnn_fastai.cli.jobs import build_learner
from rnn_fastai.ship.requests import Limits
from rnn_fastai.ship.serve import make_app, serve

SMALL = dict(config=dict(emb_sz=8, n_hid=12, n_layers=2))
ARGS = dict(bs=8, device='cpu', seed=0, min_freq=1)
DF = pd.DataFrame({'text': ['a good film, the actors are fine', 'a bad film and the story is awful']*20, 'label': ['pos', 'neg']*20})
TEXTS = ['a good film', 'the story', 'bad, the actors are awful and the film is bad', 'fine']

@cache
def learner(kind, backwards=False):
    set_seed(1)
    if kind == 'tagger':
        sents = pd.DataFrame({'tokens': [['the', 'dog', 'runs'], ['a', 'small', 'cat', 'sleeps']]*10,
                              'tags': [['DET', 'NOUN', 'VERB'], ['DET', 'ADJ', 'NOUN', 'VERB']]*10})
        dls = rf.TagDataLoaders.from_df(sents, chars=True, **ARGS)
        learn = build_learner('tagger', dls, 'LSTM', dict(emb_sz=8, n_hid=8, crf=True))
    else:
        how = dict(is_lm=True, seq_len=6) if kind == 'lm' else dict(label_col='label')
        df = DF.replace({'label': dict(pos='10', neg='2')}) if kind == 'numbers' else DF   # names that are numbers
        dls = rf.TextDataLoaders.from_df(df, text_col='text', backwards=backwards, **how, **ARGS)
        learn = build_learner('lm' if kind == 'lm' else 'classifier', dls, 'AWD_GRU', SMALL)
    for p in learn.model.parameters(): p.data += torch.randn_like(p)*0.3   # answers that differ from text to text
    return learn

@contextmanager
def client(kind, limits=None, **kwargs):
    with TestClient(make_app(learner(kind, **kwargs), limits)) as c: yield c

@contextmanager
def live(kind, limits=None, recording=None):
    "A server of its own on a free port; gives the address and the worker's state through /health."
    sock = socket.socket()
    sock.bind(('127.0.0.1', 0))
    own = learner.__wrapped__(kind)   # while a test asks the shared one, a page may still ask the server's with units changed
    server = uvicorn.Server(uvicorn.Config(make_app(own, limits, recording=recording), log_level='error'))
    thread = threading.Thread(target=server.run, kwargs=dict(sockets=[sock]), daemon=True)
    thread.start()
    url = f'http://127.0.0.1:{sock.getsockname()[1]}'
    try:
        with httpx.Client(base_url=url, timeout=30) as c:
            wait_for(lambda: server.started)
            yield SimpleNamespace(url=url, client=c)
    finally:
        server.should_exit = True
        thread.join(30)
        sock.close()
    assert not thread.is_alive()

def wait_for(what, seconds=20):
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end: time.sleep(0.02)
    assert what()

def events(text):
    "Names and data of the events of a stream."
    found = [e.split('\n') for e in text.strip().split('\n\n')]
    return [(name.removeprefix('event: '), json.loads(data.removeprefix('data: '))) for name,data in found]

# ---- answers ----
def test_texts_are_those_of_generate():
    learn = learner('lm')
    for options in (dict(seed=3), dict(seed=4, temperature=0.7, top_k=5), dict(temperature=0), dict(seed=1, repetition_penalty=1.5),
                    dict(seed=2, stop=['story']), dict(seed=5, stop_tokens=['film'], min_words=3), dict(seed=6, required=['bad'])):
        want = [learn.generate(t, 12, no_bar=True, **options)[0] for t in TEXTS]
        with client('lm') as c:
            for t,w in zip(TEXTS, want, strict=True):
                got = c.post('/generate', json=dict(prompt=t, n_words=12, **options)).json()['texts'][0]
                assert (got['text'], got['tokens'], got['ended']) == (w.text, w.tokens, w.ended)
                np.testing.assert_allclose(got['logps'], w.logps, atol=1e-4)

def test_several_texts_of_a_prompt():
    want = [t.text for t in learner('lm').generate('a film', 9, n=3, seed=7, no_bar=True)]
    with client('lm') as c: got = c.post('/generate', json=dict(prompt='a film', n_words=9, n=3, seed=7)).json()
    assert [t['text'] for t in got['texts']] == want and len(set(want)) > 1

def test_a_seed_is_drawn_and_answered():
    with client('lm') as c:
        a,b = (c.post('/generate', json=dict(prompt='a', n_words=20)).json() for _ in range(2))
        again = c.post('/generate', json=dict(prompt='a', n_words=20, seed=a['seed'])).json()
    assert a['seed'] != b['seed'] and again == a

def test_texts_of_a_seed_do_not_depend_on_others_that_are_written():
    "40 requests at once, of different prompts, lengths and rules; joined at different steps."
    rng = random.Random(0)
    asked = [dict(prompt=rng.choice(TEXTS), n_words=rng.randint(1, 40), seed=k, **rng.choice(
        [{}, {}, dict(top_p=0.8), dict(temperature=0.5), dict(no_repeat_ngram=2), dict(frequency_penalty=0.5)])) for k in range(40)]
    learn = learner('lm')
    want = [learn.generate(a['prompt'], no_bar=True, **{k: v for k,v in a.items() if k != 'prompt'})[0].text for a in asked]
    def ask(a):
        time.sleep(a['seed']*0.003)
        return httpx.post(f'{s.url}/generate', json=a, timeout=60).json()['texts'][0]['text']
    with live('lm', Limits(max_rows=16)) as s, ThreadPoolExecutor(40) as pool: assert list(pool.map(ask, asked)) == want

def test_a_stream_tells_tokens_probabilities_and_candidates():
    learn = learner('lm')
    want = learn.generate('the film', 15, seed=3, no_bar=True)[0]
    with client('lm') as c: told = events(c.post('/generate', json=dict(prompt='the film', n_words=15, seed=3, stream=True, candidates=4)).text)
    (first,start),*tokens,(last,done) = told
    assert (first, last) == ('start', 'done') and start == dict(text='the film', tokens=['xxbos', 'the', 'film'], seed=3)
    assert done['texts'][0]['text'] == want.text == start['text'] + ''.join(e['text'] for _,e in tokens)
    assert [e['token'] for _,e in tokens] == want.tokens
    np.testing.assert_allclose([e['p'] for _,e in tokens], want.logps.exp(), atol=1e-4)
    probs = torch.tensor([[p for _,p in e['candidates']] for _,e in tokens])
    assert probs.shape == (15, 4) and (probs.diff() <= 0).all()
    ids = learn._codec(rf.decode_spec_tokens).encode(['the film'])[0][None]
    with torch.no_grad(): p,i = learn.model.eval()(ids).logits[0, -1].softmax(-1).topk(4)
    assert [t for t,_ in tokens[0][1]['candidates']] == [learn.dls.vocab[k] for k in i]
    np.testing.assert_allclose(probs[0], p, atol=1e-4)

def test_what_may_begin_a_stop_string_is_not_told_before_it_is_sure():
    learn = learner('lm')
    plain = learn.generate('a', 40, seed=2, no_bar=True)[0]
    stop = ' '.join(plain.text.split()[12:14])
    with client('lm') as c: told = events(c.post('/generate', json=dict(prompt='a', n_words=40, seed=2, stop=[stop], stream=True)).text)
    want = learn.generate('a', 40, seed=2, stop=[stop], no_bar=True)[0]
    assert want.ended == told[-1][1]['texts'][0]['ended'] == 'stop string'
    assert told[0][1]['text'] + ''.join(e['text'] for n,e in told if n == 'token') == want.text

def test_a_backwards_model_answers_without_a_stream():
    with client('lm', backwards=True) as c:
        assert not c.get('/health').json()['streams']
        got = c.post('/generate', json=dict(prompt='film', n_words=5, seed=1))
        assert got.json()['texts'][0]['text'] == learner('lm', backwards=True).generate('film', 5, seed=1, no_bar=True)[0].text
        refused = c.post('/generate', json=dict(prompt='film', stream=True))
    assert refused.status_code == 422 and refused.json()['field'] == 'stream'

@pytest.mark.parametrize('together', [False, True])
def test_classes_are_those_of_predict(together):
    learn = learner('classifier')
    with client('classifier') as c:
        groups = [TEXTS] if together else [[t] for t in TEXTS]
        got = [a for texts in groups for a in c.post('/classify', json=dict(texts=texts)).json()['answers']]
    for t,a in zip(TEXTS, got, strict=True):
        with learn.no_bar(): name,_,probs = learn.predict(t)
        assert a['label'] == name and list(a['probabilities']) == list(learn.dls.vocab[1])
        np.testing.assert_allclose(list(a['probabilities'].values()), probs, atol=2e-5)

def test_saliency_of_a_class_is_gradient_times_input():
    learn = learner('classifier')
    with client('classifier') as c:
        a, = c.post('/classify', json=dict(texts=[TEXTS[0]], saliency=True, label=1)).json()['answers']
        assert c.post('/classify', json=dict(texts=TEXTS, saliency=True)).json()['answers'][0]['explained'] in (0, 1)
        assert c.post('/classify', json=dict(texts=TEXTS, saliency=True, label=2)).json()['field'] == 'label'
    ids = learn.dls.train_ds.new([TEXTS[0]])[0][0].as_subclass(torch.Tensor)[None]
    want = rf.saliency(learn.model, ids, 1)[0]
    assert a['tokens'] == ['xxbos', 'a', 'good', 'film'] and a['explained'] == 1
    np.testing.assert_allclose(a['saliency'], want, atol=1e-4)

def test_saliency_of_both_directions():
    learn = rf.combine_directions(learner('classifier'), learner_backwards())
    with TestClient(make_app(learn)) as c: a, = c.post('/classify', json=dict(texts=[TEXTS[0]], saliency=True, label=0)).json()['answers']
    ids = learn.dls.train_ds.new([TEXTS[0]])[0][0].as_subclass(torch.Tensor)[None]
    want = rf.saliency(learn.model.forwards, ids, 0)[0] + rf.saliency(learn.model.backwards, ids.flip(1), 0)[0].flip(0)
    np.testing.assert_allclose(a['saliency'], want, atol=1e-4)

@cache
def learner_backwards():
    vocab = learner('classifier').dls.vocab[0]
    dls = rf.TextDataLoaders.from_df(DF, text_col='text', label_col='label', backwards=True, text_vocab=vocab, **ARGS)
    return build_learner('classifier', dls, 'AWD_GRU', SMALL)

def test_tags_are_those_of_predict_and_are_explained():
    learn,texts = learner('tagger'),['the small dog runs', 'a cat', 'it sleeps and runs, the dog']
    with client('tagger') as c:
        got = c.post('/tag', json=dict(texts=texts)).json()['answers']
        one, = c.post('/tag', json=dict(texts=texts[:1], saliency_of=2)).json()['answers']
        far = c.post('/tag', json=dict(texts=texts, saliency_of=3))
    assert [list(zip(a['words'], a['tags'], strict=True)) for a in got] == [learn.predict(t) for t in texts]
    assert len(one['saliency']) == 4 and one['explained'] == 2 and any(one['saliency'])
    assert far.status_code == 422 and far.json()['field'] == 'saliency_of'   # the second sentence has two words

def test_scores_and_states():
    learn = learner('lm')
    with client('lm') as c:
        scores = c.post('/score', json=dict(texts=TEXTS)).json()['answers']
        read = c.post('/states', json=dict(texts=TEXTS, layer=1, n_units=3)).json()['answers']
        one = c.post('/states', json=dict(texts=TEXTS, layer=1, unit=5)).json()['answers']
        tokens = c.post('/states', json=dict(tokens=read[0]['tokens'], layer=1, n_units=3)).json()['answers']
        none,odd = c.post('/states', json={}),c.post('/states', json=dict(tokens=['a', 'zzz']))
    assert tokens == read[:1]
    assert none.status_code == odd.status_code == 422 and (none.json()['field'], odd.json()['field']) == ('texts', 'tokens')
    for t,s in zip(learn.score(TEXTS, no_bar=True), scores, strict=True):
        assert s['tokens'] == t.tokens
        np.testing.assert_allclose(s['logps'], t.logps, atol=1e-4)
        np.testing.assert_allclose(s['perplexity'], t.perplexity, rtol=1e-3)
    rec = learn.record(TEXTS, 1, 'h', no_bar=True)
    for d,(a,b) in enumerate(zip(read, one, strict=True)):
        h = rec[0, 'h', d]
        assert a['tokens'] == rec.tokens(d) and h.std(0)[a['units']].min() >= np.sort(h.std(0))[-3] - 1e-6
        np.testing.assert_allclose(a['values'], h[:, a['units']].T, atol=1e-4)
        np.testing.assert_allclose(b['values'], h[:, 5:6].T, atol=1e-4)

def test_requests_that_wait_are_answered_together(monkeypatch):
    from rnn_fastai.ship import batching
    sizes,plain = [],batching.classify
    def slow(learn, texts, **options):
        sizes.append(len(texts))
        time.sleep(0.2)
        return plain(learn, texts, **options)
    monkeypatch.setitem(batching._TASKS[rf.ClassifierLearner], 'classify', slow)
    def ask(k): return httpx.post(f'{s.url}/classify', json=dict(texts=[TEXTS[k % 4]]), timeout=30).json()['answers'][0]
    with live('classifier') as s, ThreadPoolExecutor(12) as pool: got = list(pool.map(ask, range(12)))
    assert sum(sizes) == 12 and len(sizes) < 12
    for k,a in enumerate(got): assert a['label'] == plain(learner('classifier'), [TEXTS[k % 4]])[0]['label']

def test_learners_of_sequences_answer_too():
    xs = ['aba', 'bab', 'aab', 'bbb']*4
    for kind,ys in (('many-to-one', [x[0] for x in xs]), ('many-to-many', [x.upper() for x in xs])):
        learn = rf.rnn_learner(rf.SeqDataLoaders.from_pairs(xs, ys, kind, bs=4, device='cpu'), 'GRU', 5)
        with TestClient(make_app(learn)) as c:
            health,path = c.get('/health').json(),'classify' if kind == 'many-to-one' else 'tag'
            assert (health['tasks'], health['explains']) == ([path, 'states', 'explore', 'traces', 'nearest'], False)
            assert health['labels'] == [str(l) for l in learn.task.y_vocab]
            a, = c.post(f'/{path}', json=dict(texts=['ab'])).json()['answers']
            if path == 'tag': assert list(zip(a['words'], a['tags'], strict=True)) == learn.predict('ab')
            else: assert a['label'] == learn.predict('ab')[0] and c.post('/classify', json=dict(texts=['a'], saliency=True)).json()['field'] == 'saliency'
            assert c.post('/states', json=dict(texts=['ab'])).json()['answers'][0]['tokens'] == ['a', 'b']
    learn = rf.rnn_learner(rf.SeqDataLoaders.from_series('abcabcab'*9, device='cpu'), 'GRU', 5)
    with TestClient(make_app(learn)) as c: got = c.post('/generate', json=dict(prompt='ab', n_words=5, seed=2)).json()
    assert got['texts'][0]['text'] == learn.generate('ab', 5, seed=2, no_bar=True)[0].text
    learn = rf.rnn_learner(rf.SeqDataLoaders.from_pairs(xs, xs, 'encoder-decoder', bs=4, device='cpu'), 'GRU', 5)
    with pytest.raises(TypeError, match='RNNLearner cannot be served'): make_app(learn)

# ---- refusals ----
def test_only_what_the_model_can_do_is_offered():
    every = ['states', 'explore', 'traces', 'nearest']
    for kind,can in (('lm', ['generate', 'score', *every, 'compare']), ('classifier', ['classify', *every]), ('tagger', ['tag', *every])):
        with client(kind) as c:
            assert c.get('/health').json()['tasks'] == can
            assert [p.strip('/') for p in c.get('/openapi.json').json()['paths']] == ['health', *can]
            for other in {'generate', 'classify', 'tag', 'score', 'states', 'compare'} - {*can}:
                answer = c.post(f'/{other}', json=dict(texts=['a']))
                assert answer.status_code == 404 and f'does not answer at /{other}. It answers at /{can[0]}' in answer.json()['error']
            assert 'nothing at this path' in c.post('/other', json={}).json()['error']

def test_the_description_says_what_is_checked():
    from rnn_fastai.ship.requests import RequestError, request_fields
    for fields in request_fields(Limits()).values():
        for f in fields:
            s = f.schema()
            if 'maximum' not in s: continue
            f.check(s['maximum'])
            if not f.above: f.check(s['minimum'])
            for bad in (s['exclusiveMinimum'] if f.above else s['minimum'] - 1, s['maximum'] + 1):
                with pytest.raises(RequestError): f.check(bad)

@pytest.mark.parametrize('body, field', [
    (dict(prompt='zzz qqq'), 'prompt'), (dict(prompt=3), 'prompt'), (dict(prompt='a'*300), 'prompt'), (dict(n_words=0), 'n_words'),
    (dict(n_words=201), 'n_words'), (dict(n_words=2.5), 'n_words'), (dict(n_words=True), 'n_words'), (dict(seed=-1), 'seed'),
    (dict(seed=2**53), 'seed'), (dict(temperature='hot'), 'temperature'), (dict(temperature=-1), 'temperature'), (dict(top_k=5000), 'top_k'),
    (dict(temperature=0, top_p=0.5), 'temperature'), (dict(top_p=0), 'top_p'), (dict(stop=['zzz']), 'stop'), (dict(stop=''), 'stop'),
    (dict(stop_tokens=['zzz']), 'stop_tokens'), (dict(forbidden=[3]), 'forbidden[0]'), (dict(n=2, temperature=0), 'n'),
    (dict(required=['one'], forbidden=['one']), 'required'),
    (dict(n=2, stream=True), 'n'), (dict(arch='os.system'), 'arch'), (dict(min_words=100, n_words=5), 'min_words'), (dict(stream=1), 'stream'),
    ([], 'body'), ('a', 'body')])
def test_a_refusal_names_field_value_and_what_is_allowed(body, field):
    with client('lm', Limits(max_chars=200, max_words=200)) as c: answer = c.post('/generate', json=body)
    said = answer.json()
    assert answer.status_code == 422 and said['field'] == field, said
    assert said['error'] and said['allowed'] and said['value'] is not None

@pytest.mark.parametrize('texts, field', [([], 'texts'), ('a', 'texts'), ([''], 'texts[0]'), (['a', ' \n'], 'texts[1]'),
                                          (['a']*5, 'texts'), (['a'*201], 'texts[0]'), ([None], 'texts[0]'), (None, 'texts')])
@pytest.mark.parametrize('kind, path', [('classifier', 'classify'), ('tagger', 'tag'), ('lm', 'score'), ('lm', 'states')])
def test_texts_are_checked(kind, path, texts, field):
    with client(kind, Limits(max_chars=200, max_texts=4)) as c: answer = c.post(f'/{path}', json=dict(texts=texts))
    assert answer.status_code == 422 and answer.json()['field'] == field
    if '[' in field: assert 'it must be a text of 1 to 200 characters, not only blanks.' in answer.json()['error']

def test_a_share_of_0_is_refused_and_what_is_allowed_says_so():
    with client('lm') as c: said = c.post('/generate', json=dict(top_p=0)).json()
    assert said['allowed'] == 'a number above 0 and at most 1, or null' and said['error'] == f"top_p is 0; it must be {said['allowed']}."

def post(c, data, kind='application/json', path='/generate', method='POST'):
    return c.request(method, path, content=data, headers={'content-type': kind})

def test_bodies_are_checked():
    with client('lm', Limits(max_body=1000)) as c:
        for data,status in ((b'', 400), (b'{', 400), (b'\xff\xfe', 400), (b'{"temperature": NaN}', 400), (b'{"temperature": 1e999}', 422),
                            (b'[' * 400 + b']' * 400, 422), (b'{"prompt": "\\ud800"}', 422), (b'{"seed": 1' + b'0'*400 + b'}', 422),
                            (b'{"prompt": "' + b'a'*2000 + b'"}', 413)):
            assert post(c, data).status_code == status, data[:40]
        assert [post(c, b'{}', kind).status_code for kind in ('text/plain', '', 'application/x-www-form-urlencoded')] == [415]*3
        assert post(c, b'{"n_words": 2}', 'application/JSON; charset=utf-8').status_code == 200
        assert c.get('/generate').headers['allow'] == 'POST'

def malformed(rng):
    "A request that is wrong in some way: method, path, header and body."
    good = dict(prompt='a film', n_words=2)
    wrong = [None, True, -1, 0, 10**30, 1e308, 0.5, '', 'x', 'é\x00', [], [[]], {}, {'a': {}}, ['a', 3], '\ud83d', 'a'*30_000, [None]]
    names = ['n_words', 'seed', 'temperature', 'top_k', 'top_p', 'stop', 'stop_tokens', 'candidates', 'n', 'prompt', 'stream', 'min_words']
    deep = rng.randint(1, 60_000)
    def field():
        while True:   # a value that happens to fit is no mistake
            name,value = rng.choice(names),rng.choice(wrong)
            fits = dict(stop=[[]], stop_tokens=[[]], seed=[None, 0], temperature=[0, 0.5], top_p=[None, 0.5], top_k=[None], stream=[True],
                        candidates=[0], min_words=[0], prompt=['']).get(name, [])
            if not any(type(value) is type(f) and value == f for f in fits): return json.dumps({**good, name: value}).encode()
    bodies = [field, field, field, field,
              lambda: json.dumps({**good, rng.choice(['__class__', 'folder', '../x', 'model', '']): 'os.system'}).encode(),
              lambda: json.dumps(rng.choice([v for v in wrong if v != {}])).encode(),
              lambda: b'[' * deep, lambda: b'{"a":' * deep + b'1' + b'}' * deep,
              lambda: bytes(rng.randrange(256) for _ in range(rng.randint(0, 60))),
              lambda: json.dumps(good).encode()[:rng.randint(0, 25)],
              lambda: json.dumps(good).encode().replace(b'film', rng.choice([b'\xff\xfe', b'\xc0\x80', b'\xed\xa0\x80'])),
              lambda: f'{{"temperature": {rng.choice(["NaN", "Infinity", "-Infinity", "1e999", "01", "0x1"])}}}'.encode()]
    if rng.random() < 0.85: return 'POST', '/generate', 'application/json', rng.choice(bodies)()
    return rng.choice([('GET', '/generate', 'application/json', b''), ('PUT', '/score', 'application/json', b'{}'),
                       ('DELETE', '/health', '', b''), ('POST', '/', 'application/json', b'{}'), ('POST', '/generate', 'text/xml', b'<a/>'),
                       ('GET', '/../../etc/passwd', '', b''), ('GET', '/%2e%2e/setup.py', '', b''), ('PATCH', '/app.js', '', b''),
                       ('POST', '/classify', 'application/json', b'{"texts": ["a"]}'), ('GET', '/' + 'a'*3000, '', b'')])

def test_a_thousand_malformed_requests_are_refused():
    rng = random.Random(7)
    with client('lm', Limits(max_seconds=20)) as c:
        for k in range(1000):
            method,path,kind,data = malformed(rng)
            answer = post(c, data, kind, path, method)
            assert 400 <= answer.status_code < 500, (k, method, path, data[:80], answer.status_code, answer.text[:200])
            if method != 'HEAD': assert answer.json()['error']
        assert post(c, b'{"n_words": 2}').status_code == 200   # and it still answers

def test_a_text_of_ten_megabytes_is_refused():
    with live('lm') as s:
        answer = post(s.client, json.dumps(dict(prompt='a '*5_000_000)).encode())
        assert answer.status_code == 413 and '2,000,000 bytes' in answer.json()['error']
        assert post(s.client, b'{"n_words": 2}').status_code == 200

# ---- time, number, clients that leave ----
def open_texts(s): return s.client.get('/health').json()['waiting']

def test_a_client_that_leaves_stops_its_work():
    long = dict(prompt='a', n_words=10**6, seed=1)
    with live('lm', Limits(max_words=10**6, max_seconds=300)) as s:
        for stream in (False, True):
            with httpx.Client(base_url=s.url, timeout=httpx.Timeout(20, read=0.5)) as other:
                if stream:
                    with other.stream('POST', '/generate', json=dict(long, stream=True)) as answer:
                        parts = answer.iter_text()   # kept, as the connection is closed with it
                        assert next(parts).startswith('event: start')
                        assert open_texts(s) == 1
                else:
                    with pytest.raises(httpx.ReadTimeout): other.post('/generate', json=long)
            wait_for(lambda: open_texts(s) == 0)

def test_the_server_answers_while_the_model_works():
    with live('lm', Limits(max_words=10**6, max_seconds=300)) as s, httpx.Client(base_url=s.url, timeout=30) as other, \
         other.stream('POST', '/generate', json=dict(n_words=10**6, stream=True)):
        assert s.client.get('/health').json()['status'] == 'ok'
        assert post(s.client, b'{').status_code == 400
        assert post(s.client, b'{"n_words": 3}').json()['texts'][0]['ended'] == 'length'   # beside the long one
        assert s.client.post('/score', json=dict(texts=['a film'])).status_code == 200

def test_time_and_number_are_limited(monkeypatch):
    with client('lm', Limits(max_words=10**6, max_seconds=0.3)) as c:
        text = c.post('/generate', json=dict(n_words=10**6)).json()['texts'][0]
        assert text['ended'] == 'time' and 0 < len(text['tokens']) < 10**6
    from rnn_fastai.ship import batching
    go_on = threading.Event()
    monkeypatch.setitem(batching._TASKS[rf.TaggerLearner], 'tag', lambda learn, texts, **options: go_on.wait(20) and [{}])
    with client('tagger', Limits(max_seconds=0.1, max_waiting=1)) as c, ThreadPoolExecutor(1) as pool:
        first = pool.submit(c.post, '/tag', json=dict(texts=['a']))
        wait_for(lambda: c.get('/health').json()['waiting'] == 1)
        full = c.post('/tag', json=dict(texts=['a']))
        assert full.status_code == 429 and full.json()['allowed'] == 1
        late = first.result()
        assert late.status_code == 408 and '0.1 seconds' in late.json()['error']
        go_on.set()

def test_a_model_that_fails_does_not_end_the_server(monkeypatch):
    from rnn_fastai.ship import batching
    def fail(learn, texts, **options): raise RuntimeError('secret path')
    monkeypatch.setitem(batching._TASKS[rf.WritingLearner], 'score', fail)
    with TestClient(make_app(learner('lm')), raise_server_exceptions=False) as c:
        answer = c.post('/score', json=dict(texts=['a']))
        assert answer.status_code == 500 and 'secret' not in answer.text
        assert c.post('/generate', json=dict(n_words=2)).status_code == 200

# ---- the page's files, hosts, the door ----
def test_files_come_with_a_strict_policy_and_nothing_else_is_served():
    with client('lm') as c:
        for path,kind in (('/', 'text/html'), ('/app.js', 'text/javascript'), ('/explorer.js', 'text/javascript'), ('/style.css', 'text/css'), ('/docs', 'text/html'), ('/docs.js', 'text/javascript')):
            answer = c.get(path)
            assert answer.headers['content-type'] == f'{kind}; charset=utf-8'
            assert "default-src 'none'; script-src 'self'" in answer.headers['content-security-policy']
        for path in ('/index.html', '/../serve.py', '/page/app.js', '/setup.py', '/%2e%2e/serve.py'): assert c.get(path).status_code == 404

def test_scripts_put_texts_in_as_texts():
    folder = Path(rf.__file__).parent/'ship'/'page'
    for f in folder.glob('*.js'):
        for word in ('innerHTML', 'outerHTML', 'insertAdjacentHTML', 'document.write', 'eval(', 'new Function'): assert word not in f.read_text()
    for f in folder.glob('*'):
        for word in ('http://', 'https://', '//cdn', 'onclick=', 'style="', '<style'): assert word not in f.read_text(), (f, word)

def test_other_names_of_the_host_are_refused():
    with TestClient(make_app(learner('lm'), hosts={'localhost'}), base_url='http://localhost:8000') as c:
        assert c.get('/health').status_code == 200
        answer = c.get('/health', headers=dict(host='evil.example'))
        assert answer.status_code == 421 and answer.json()['allowed'] == ['localhost']

def test_the_door_names_the_extra():
    code = ("import sys, fastai.text.all\n"   # fastai's own requirements may load starlette
            "for m in [m for m in sys.modules if m.partition('.')[0] in ('starlette', 'uvicorn')]: del sys.modules[m]\n"
            "sys.modules['starlette'] = sys.modules['uvicorn'] = None\n"
            "import rnn_fastai.all, rnn_fastai.cli.jobs\n"
            "from rnn_fastai.ship.serve import make_app, serve\n"
            "for door in (lambda: make_app(None), lambda: serve('none')):\n"
            "    try: door()\n"
            "    except ImportError as e: print(e)")
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(out) == 2 and all('pip install "rnn_fastai[serve]"' in line for line in out)

def test_what_cannot_be_served_is_named(tmp_path):
    with pytest.raises(TypeError, match='str cannot be served'): make_app('a model')
    with pytest.raises(FileNotFoundError, match='There is no bundle in'): serve(tmp_path, port=0)
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f'The port {port} of 127.0.0.1 is in use'): serve(tmp_path, port=port)

def test_the_command_serves_a_bundle_until_it_is_interrupted(tmp_path):
    learner('tagger').save_bundle(tmp_path/'m')
    code = "import sys; sys.argv[0] = 'rnn_fastai'; from rnn_fastai.cli.entry import main; main()"
    with subprocess.Popen([sys.executable, '-c', code, 'serve', tmp_path/'m', '--port', '0'], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as p:
        line = p.stdout.readline()
        url = line.split(' is served at ')[1].split()[0]
        for _ in range(500):
            try: answer = httpx.post(f'{url}tag', json=dict(texts=['the dog']), timeout=30); break
            except httpx.TransportError: time.sleep(0.02)
        p.send_signal(2)
        try: out,err = p.communicate(timeout=60)
        finally: p.kill()
    assert answer.json()['answers'][0]['words'] == ['the', 'dog']
    assert p.returncode == 0 and 'Traceback' not in err, err

@pytest.mark.parametrize('writes', [False, True])
def test_interrupted_while_it_starts_or_writes(tmp_path, writes):
    learner('lm').save_bundle(tmp_path/'m')
    code = "import sys; sys.argv[0] = 'rnn_fastai'; from rnn_fastai.cli.entry import main; main()"
    lines: list[str] = []
    with subprocess.Popen([sys.executable, '-c', code, 'serve', tmp_path/'m', '--port', '0'], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as p:
        url = p.stdout.readline().split(' is served at ')[1].split()[0]
        if not writes: p.send_signal(2)
        else:
            ask = dict(prompt='a film', n_words=1000, stream=True)
            with httpx.stream('POST', f'{url}generate', json=ask, timeout=60) as r:
                for line in r.iter_lines():
                    if not lines: p.send_signal(2)
                    lines.append(line)
        try: err = p.communicate(timeout=60)[1]
        finally: p.kill()
    assert p.returncode == 0 and 'Traceback' not in err, err
    assert not writes or any(line in ('event: done', 'event: failed') for line in lines)

def test_an_interrupt_counts_before_the_server_runs():
    "A `KeyboardInterrupt` that comes while modules are imported may be swallowed; a handler of ours is not."
    from rnn_fastai.ship.serve import _stopped_by_interrupts
    server,before = SimpleNamespace(should_exit=False),signal.getsignal(signal.SIGINT)
    with _stopped_by_interrupts(server): signal.raise_signal(signal.SIGINT)
    assert server.should_exit and signal.getsignal(signal.SIGINT) is before

def test_answers_that_take_longer_than_a_stopping_server_waits_say_so(monkeypatch):
    from rnn_fastai.ship import serve as module
    monkeypatch.setattr(module, '_GRACE', 0.1)
    app = make_app(learner('lm'), Limits(max_words=10**6))
    sock = socket.socket()
    sock.bind(('127.0.0.1', 0))
    sock.listen()
    server = module._server(uvicorn.Config(app, log_level='error', timeout_graceful_shutdown=60), app.state.worker)
    thread = threading.Thread(target=server.run, kwargs=dict(sockets=[sock]), daemon=True)
    thread.start()
    ask = dict(prompt='a film', n_words=10**6, stream=True)
    with httpx.stream('POST', f'http://127.0.0.1:{sock.getsockname()[1]}/generate', json=ask, timeout=60) as r:
        lines = []
        for line in r.iter_lines():
            server.should_exit = True
            lines.append(line)
    assert lines[-3] == 'event: failed' and 'The server is being closed.' in lines[-2]
    thread.join(30)
    assert not thread.is_alive()

def test_names_of_hosts_are_read_in_any_case():
    with TestClient(make_app(learner('tagger'), hosts={'localhost'})) as c:
        assert c.get('/health', headers={'Host': 'LocalHost:80'}).status_code == 200
        assert c.get('/health', headers={'Host': 'elsewhere'}).status_code == 421
