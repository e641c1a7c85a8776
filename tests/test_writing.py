"Generation as a demanding user meets it: odds, texts, odd input, streams, weights that change, memory, the command."
import builtins
import copy
import gc
import inspect
import json
import math
import random
import resource
import sys
import threading
import time
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import bytes_of, calls_of
from fastai.text import all as ft
from scipy.stats import chisquare
from torch import nn
from torch.testing import assert_close

from rnn_fastai import all as rf
from rnn_fastai.cli.main import main
from rnn_fastai.learner.lm import encode_prompts

# Models and loaders

WORDS = 'one two three four five six seven eight nine ten'.split()
SPECIAL = 'xxunk xxpad xxbos xxeos xxfld xxrep xxwrep xxup xxmaj'.split()
VOCAB = [*SPECIAL, *WORDS, *'.,!?', '2', '3', '40', '\n', 'xxfake']

def word_loaders(**kwargs):
    rng = np.random.default_rng(0)
    df = pd.DataFrame({'text': [' '.join(rng.choice(WORDS, rng.integers(4, 20))) + ' .' for _ in range(20)]})
    return rf.TextDataLoaders.from_df(df, is_lm=True, text_vocab=VOCAB, bs=2, seq_len=9, seed=1, device='cpu', **kwargs)

def piece_loaders(tok):
    rng = np.random.default_rng(0)
    some = ['naïve café', 'hello wörld', 'one, two', 'ab ba\n', 'x\ufffdy', '🙂 ok']
    df = pd.DataFrame({'text': [' '.join(rng.choice(some, 8)) for _ in range(30)]})
    return rf.TextDataLoaders.from_df(df, is_lm=True, tok_tfm=tok, bs=2, seq_len=9, seed=1, device='cpu')

def decided(learn, by=3):
    for p in learn.model.parameters(): p.data.mul_(by)
    return learn

def awd(dls, cell='LSTM', emb_sz=136, n_hid=144):   # so large that matrices are laid out again for generation
    torch.manual_seed(0)
    config = dict(emb_sz=emb_sz, n_hid=n_hid, n_layers=2)
    return decided(rf.language_model_learner(dls, f'AWD_{cell}', config=config, pretrained=False))

class Sums(nn.Module):
    "A module of somebody's own that gives logits alone."
    def __init__(self, vocab_sz, n=140):
        super().__init__()
        self.emb,self.out = nn.Embedding(vocab_sz, n),nn.Linear(n, vocab_sz)
    def forward(self, ids): return self.out(self.emb(ids).cumsum(1).tanh())*2

class Net(nn.Module):
    "One that gives logits and a state."
    def __init__(self, vocab_sz, n=140):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(vocab_sz, n),nn.LSTM(n, n, 2, batch_first=True),nn.Linear(n, vocab_sz)
    def forward(self, ids, state=None):
        out,state = self.rnn(self.emb(ids), state)
        return self.out(out),state

@cache
def loaders(kind):
    if kind == 'chars': return piece_loaders(rf.CharTokenizer())
    if kind == 'subwords': return piece_loaders(rf.ByteLevelTokenizer(290))
    if kind == 'series': return rf.SeqDataLoaders.from_series('the quick brown fox jumps over a lazy dog. '*4)
    if kind == 'series of words': return rf.SeqDataLoaders.from_series([WORDS*3, WORDS[::-1]*2])
    if kind == 'series of numbers': return rf.SeqDataLoaders.from_series([3, 1, 4, 1, 5, 9, 2, 6, 5, 35]*3)
    return word_loaders(backwards=kind == 'backwards')

def make(kind):
    dls = loaders(kind)
    torch.manual_seed(1)
    if kind in ('words', 'backwards', 'chars', 'subwords'): return awd(dls, {'chars': 'GRU'}.get(kind, 'LSTM'))
    if kind == 'logits': return rf.rnn_learner(dls, Sums(len(dls.vocab)))
    if kind == 'state': return decided(rf.rnn_learner(dls, Net(len(dls.vocab))))
    return decided(rf.rnn_learner(dls, 'LSTM' if kind == 'series' else 'GRU', n_hid=140))

@cache
def ours(kind): return make(kind)

# Prompts, and their tokens in the order in which the model reads them.
WORD_PROMPTS = {'one': ['one'], 'Two THREE': ['xxmaj', 'two', 'xxup', 'three'], 'ten nine, eight. seven!!!!':
                ['ten', 'nine', ',', 'eight', '.', 'seven', 'xxrep', '4', '!'], '': [], 'one two': ['one', 'two']}
WORD_PROMPTS = {k: ['xxbos', *(t if t in VOCAB else 'xxunk' for t in v)] for k,v in WORD_PROMPTS.items()}
PROMPTS = dict.fromkeys(('words', 'logits', 'state'), WORD_PROMPTS)
PROMPTS['backwards'] = {k: v[:0:-1] for k,v in WORD_PROMPTS.items() if k}
PROMPTS['chars'] = {k: ['xxbos', *k] for k in ('a', 'naïve', '🙂 two, one', '', 'ab\n', ' b')}
PROMPTS['subwords'] = dict.fromkeys(('a', 'naïve', '🙂 two, one', '', '€', 'hello wörld'))
PROMPTS['series'] = {k: list(k) for k in ('t', 'the quick', 'brown fox jum', 'dog.', ' ')}
PROMPTS['series of words'] = {'one': ['one'], 'two three  four': ['two', 'three', 'four'], 'ten nine': ['ten', 'nine']}
KINDS = list(PROMPTS)

def words_of(learn): return list(learn.dls.vocab)

def start_of(learn, kind, prompt):
    toks = PROMPTS[kind][prompt]
    if toks is not None: return [words_of(learn).index(t) for t in toks]
    tok = learn.dls.train_ds.tokenizer   # the library's own numbers, after the special tokens
    special = len(tok.special_toks)
    return [words_of(learn).index('xxbos'), *(i + special for i in tok._model.tok.encode(prompt).ids)]

def banned(learn, no_unk=True):
    return [i for i,t in enumerate(words_of(learn)) if t in ('xxfake', 'xxfld') or (no_unk and t == 'xxunk') or
            (isinstance(learn, rf.RNNLearner) and t == 'xxpad')]

@torch.no_grad()
def all_logits(model, ids):
    out = model.eval()(torch.tensor([ids]))
    return getattr(out, 'logits', out)[0]

def slow(learn, ids, n_words):
    "The likeliest tokens, with all of the text read again for each."
    ids,n = list(ids),len(ids)
    for _ in range(n_words):
        logits = all_logits(learn.model, ids)[-1].clone()
        logits[banned(learn)] = -torch.inf
        ids.append(logits.argmax().item())
    return ids[n:]

def write(learn, prompts, n_words=12, **kwargs): return learn.generate(prompts, n_words, no_bar=True, **kwargs)
def texts(*args, **kwargs): return [t.text for t in write(*args, **kwargs)]
def ids_of(learn, t): return [words_of(learn).index(w) for w in t.tokens]

# Odds

V = 'abcde'
TABLE = np.array([[1.2, -.4, .3, .9, -1.1], [.2, 1.5, -.7, .6, -.2], [-.5, .8, 1.1, -1.3, .4],
                  [.7, .1, -.9, 1.4, -.3], [-.8, .5, 1.6, .3, 1.]])   # logits after each letter

class Table(nn.Module):
    def __init__(self, table):
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.tensor(table, dtype=torch.float32))
    def forward(self, ids): return self.table(ids)

@cache
def table_learner(): return rf.rnn_learner(rf.SeqDataLoaders.from_series(V*3), Table(TABLE))

def softmax(z):
    e = np.exp(z - z.max())
    return e/e.sum()

def most(order, probs, p):
    "The first of an order that make a probability of p."
    kept,mass = [],0.
    for i in order:
        kept.append(i)
        mass += probs[i]
        if mass >= p: break
    return kept

def odds(prompt, new, n_words, o):
    "Probabilities of the next letter, by the formulas of the papers, in float64. `prompt`, `new`: numbers of letters."
    z = TABLE[(prompt + new)[-1]].copy()
    model,r = softmax(z),o.get('repetition_penalty', 1.)
    for i in set(prompt + new): z[i] = z[i]/r if z[i] > 0 else z[i]*r
    count = np.bincount(new, minlength=len(V))
    z -= o.get('frequency_penalty', 0.)*count + o.get('presence_penalty', 0.)*(count > 0)
    ok = np.ones(len(V), bool)
    ok[[V.index(t) for t in o.get('forbidden', ())]] = False
    missing = [V.index(t) for t in o.get('required', ()) if V.index(t) not in new]
    early = len(new) < o.get('min_words', 0)
    soft = ok.copy()
    if early or missing: soft[[V.index(t) for t in o.get('stop_tokens', ())]] = False
    n,seq = o.get('no_repeat_ngram', 0),prompt + new
    if n: soft[[i for i in range(len(V)) if i not in missing and
                (*seq[len(seq)-n+1:], i) in [tuple(seq[k:k+n]) for k in range(len(seq)-n+1)]]] = False
    if soft.any(): ok = soft
    if missing and n_words - len(new) <= len(missing): ok = np.isin(np.arange(len(V)), missing)
    if 'epsilon_cutoff' in o: ok &= model >= o['epsilon_cutoff']
    z = np.where(ok, z, -np.inf)/o.get('temperature', 1.)
    def keep(kept): return np.where(np.isin(np.arange(len(V)), kept), z, -np.inf)
    if 'top_k' in o: z = keep(np.argsort(-z)[:o['top_k']])
    if 'top_p' in o: z = keep(most(np.argsort(-z), softmax(z), o['top_p']))
    if 'min_p' in o: z = keep(np.flatnonzero(softmax(z) >= o['min_p']*softmax(z).max()))
    if 'typical_p' in o:
        p = softmax(z)
        entropy = -sum(q*math.log(q) for q in p if q > 0)
        z = keep(most(sorted(np.flatnonzero(p), key=lambda i: abs(-math.log(p[i]) - entropy)), p, o['typical_p']))
    return softmax(z)

def joint(prompt, n_words, o):
    "Probability of every text."
    res = {}
    def go(new, p):
        text = ''.join(V[i] for i in new)
        stopped = new and len(new) >= max(o.get('min_words', 0), 1) and (
            text[-1] in o.get('stop_tokens', ()) and len(new) > o.get('min_words', 0) or
            'stop' in o and text.endswith(o['stop']))
        if stopped or len(new) == n_words: res[text] = res.get(text, 0) + p
        else:
            for i,q in enumerate(odds(prompt, new, n_words, o)):
                if q > 0: go([*new, i], p*q)
    go([], 1.)
    return res

OPTIONS = [dict(), dict(temperature=0.5), dict(temperature=1.9), dict(top_k=2), dict(top_p=0.7), dict(min_p=0.3),
           dict(typical_p=0.6), dict(epsilon_cutoff=0.12), dict(repetition_penalty=1.7), dict(frequency_penalty=0.9),
           dict(presence_penalty=-1.3), dict(forbidden=['b', 'd']), dict(required=['d', 'e']), dict(no_repeat_ngram=2),
           dict(no_repeat_ngram=1), dict(stop_tokens=['c']), dict(stop_tokens=['c'], min_words=2), dict(stop='ab'),
           dict(stop='a', min_words=2), dict(temperature=0.7, top_k=4, top_p=0.8),
           dict(temperature=1.6, min_p=0.25, repetition_penalty=1.4, forbidden=['a']),
           dict(typical_p=0.8, frequency_penalty=0.6, top_k=4), dict(required=['e'], stop_tokens=['c'], top_k=3),
           dict(epsilon_cutoff=0.1, temperature=2.5, presence_penalty=1.)]

def named(o): return ','.join(f'{k}={v}' for k,v in o.items()) if isinstance(o, dict) else None

@pytest.mark.parametrize('seed', [5, None, 'generator'])
@pytest.mark.parametrize('o', OPTIONS, ids=lambda o: named(o) or 'plain')
def test_texts_come_as_often_as_the_formulas_say(o, seed):
    n,n_words = 2000,3
    want = joint([0, 2], n_words, o)
    assert abs(sum(want.values()) - 1) < 1e-12
    torch.manual_seed(3)
    seed = torch.Generator().manual_seed(4) if seed == 'generator' else seed
    found = [''.join(t.tokens) for t in write(table_learner(), 'ac', n_words, n=n, bs=n, seed=seed, **o)]
    assert set(found) <= set(want)
    counts = {k: found.count(k) for k in want}
    rare = [k for k in want if n*want[k] < 5]
    cells = [([k], want[k]) for k in want if k not in rare] + [(rare, sum(want[k] for k in rare))]*bool(rare)
    if len(cells) == 1: return
    p = chisquare([sum(counts[k] for k in ks) for ks,_ in cells], [n*q for _,q in cells], sum_check=False).pvalue
    assert p > 1e-3, p

@pytest.mark.parametrize('o,p', [   # of a, b, c, d by hand: probabilities 1/2, 1/4, 3/20, 1/10
    (dict(), (.5, .25, .15, .1)), (dict(temperature=0.5), (.25, .0625, .0225, .01)), (dict(top_k=2), (2, 1, 0, 0)),
    (dict(top_p=0.74), (2, 1, 0, 0)), (dict(top_p=0.76), (.5, .25, .15, 0)), (dict(top_p=0.4), (1, 0, 0, 0)),
    (dict(min_p=0.29), (.5, .25, .15, 0)), (dict(min_p=0.31), (2, 1, 0, 0)), (dict(min_p=1.), (1, 0, 0, 0)),
    (dict(typical_p=0.2), (0, 1, 0, 0)), (dict(typical_p=0.5), (2, 1, 0, 0)), (dict(typical_p=0.8), (.5, .25, .15, 0)),
    (dict(epsilon_cutoff=0.12), (.5, .25, .15, 0)), (dict(epsilon_cutoff=0.12, temperature=0.5), (.25, .0625, .0225, 0)),
    (dict(repetition_penalty=2.), (.5, .25, .15, .01)),   # the logit of d is log 0.1, which twice makes 0.01
    (dict(forbidden=(0,), top_p=0.45), (0, 1, 0, 0)), (dict(top_k=3, top_p=0.8), (2, 1, 0, 0)),
    (dict(temperature=0.5, top_p=0.7), (1, 0, 0, 0))], ids=named)
def test_worked_numbers(o, p):
    logits = torch.tensor([.5, .25, .15, .1]).log().expand(4000, 4)
    sampler = rf.TokenSampler(rf.Sampling(**o), [torch.tensor([3])]*4000, 4, 1, seed=1, samples=list(range(4000)))
    got,logps,_ = sampler.pick(logits, list(range(4000)))
    p = np.array(p)/sum(p)
    seen = np.bincount(got.numpy(), minlength=4)/4000
    assert (np.abs(seen - p) <= 4.5*np.sqrt(p*(1-p)/4000)).all(), seen
    assert_close(logps, logits[0][got])   # the model's own, whatever the rule

@pytest.mark.parametrize('rule', [rf.keep_top_p, rf.keep_typical])
def test_a_share_of_one_leaves_nothing_out(rule):
    for seed in range(6):
        logits = torch.randn(4, 3000, generator=torch.Generator().manual_seed(seed))*6
        assert_close(rule(logits, 1.), logits, rtol=0, atol=0)

def test_a_tiny_temperature_is_greedy():
    for t in (1e-3, 1e-20, 1e-39):
        for seed in (1, None): assert texts(ours('words'), 'one', temperature=t, seed=seed) == \
            texts(ours('words'), 'one', temperature=0)

def test_required_tokens_all_come_before_a_text_ends():
    "Also where one of them is a stop token: it would end the text before the others have come."
    for n_words in (2, 5):
        for t in write(table_learner(), 'a', n_words, n=300, seed=1, required=['c', 'e'], stop_tokens=['c']):
            assert {'c', 'e'} <= set(t.tokens), t

def test_no_end_before_min_words_even_when_all_runs_are_used_up():
    "`no_repeat_ngram=1` soon forbids all letters; what then is left must not be the end."
    for t in write(table_learner(), 'a', 9, n=100, seed=1, no_repeat_ngram=1, stop_tokens=['c'], min_words=8):
        assert 'c' not in t.tokens[:8] and len(t.tokens) == 9

# Texts

@pytest.mark.parametrize('kind', KINDS)
def test_greedy_is_the_slow_way(kind):
    learn,prompts = ours(kind),list(PROMPTS[kind])
    for got,p in zip(write(learn, prompts, temperature=0), prompts, strict=True):
        start = start_of(learn, kind, p)
        want = slow(learn, start, 12)
        assert ids_of(learn, got) == want, p
        logps = all_logits(learn.model, start + want).log_softmax(-1)[len(start)-1:-1]
        assert_close(got.logps, logps.gather(1, torch.tensor(want)[:, None])[:, 0], rtol=1e-3, atol=1e-3)
        assert (got.prompt, got.ended) == (p, 'length')

@pytest.mark.parametrize('kind', [k for k in KINDS if k != 'backwards'])
def test_texts_begin_with_their_prompts(kind):
    for t in write(ours(kind), list(PROMPTS[kind]), 3, seed=1):
        p = ' '.join(t.prompt.split()) if kind == 'series of words' else t.prompt
        if kind in ('words', 'logits', 'state'): p = p.replace('nine, eight. seven!!!!', 'nine , eight . seven')
        assert t.text.startswith(p), t

@pytest.mark.parametrize('how', [dict(temperature=0), dict(seed=7), dict(seed=np.int64(7)), dict(seed=7, int8=True),
                                 dict(seed=7, top_p=0.9, repetition_penalty=1.2, stop_tokens='.', n=2)], ids=named)
@pytest.mark.parametrize('kind', KINDS)
def test_each_as_if_alone(kind, how):
    learn,prompts = ours(kind),list(PROMPTS[kind])
    if 'stop_tokens' in how and '.' not in words_of(learn): how = {**how, 'stop_tokens': words_of(learn)[-1]}
    n = how.get('n', 1)
    alone = {p: [(t.text, t.ended, t.tokens) for t in write(learn, p, **how)] for p in prompts}
    for order in (prompts, prompts[::-1], [prompts[-1], *prompts, *prompts[:2]]):
        for bs in (3, 64):
            got = [(t.text, t.ended, t.tokens) for t in write(learn, order, bs=bs, **how)]
            assert [got[i:i+n] for i in range(0, len(got), n)] == [alone[p] for p in order]

@pytest.mark.parametrize('cell', list(rf.cells))
def test_small_models_of_every_cell_as_if_alone(cell):
    "Matrices too small to be laid out again, over thirty tokens; and words of equal logits."
    learn = awd(loaders('words'), cell, 24, 32)
    w = learn.model[1].decoder
    with torch.no_grad():
        for a,b in (('one', 'ten'), ('two', 'nine'), ('three', '!')):
            a,b = VOCAB.index(a),VOCAB.index(b)
            w.weight[b],w.bias[b] = w.weight[a],w.bias[a]
    prompts = [' '.join(WORDS[:k]) for k in range(6)]
    for how in (dict(temperature=0), dict(seed=3)):
        together = texts(learn, prompts, 30, **how)
        assert [texts(learn, p, 30, **how)[0] for p in prompts] == together
        assert texts(learn, prompts[::-1]*3, 30, bs=5, **how) == together[::-1]*3

@pytest.mark.parametrize('how', [dict(cache=rf.NeuralCache(size=6, theta=0.4, weight=0.4)),
    dict(n=2, cache=rf.NeuralCache(weight=0.5)),
                                 dict(dynamic=rf.DynamicEvaluation(lr=0.3))], ids=named)
@pytest.mark.parametrize('kind', ['words', 'chars', 'series'])
def test_adapted_texts_as_if_alone(kind, how):
    learn,prompts = ours(kind),list(PROMPTS[kind])
    alone = {p: texts(learn, p, seed=2, **how) for p in prompts}
    for bs in (2, 64): assert texts(learn, prompts + prompts[::-2], seed=2, bs=bs, **how) == \
        [t for p in prompts + prompts[::-2] for t in alone[p]]

@pytest.mark.parametrize('cell', ['LSTM', 'GRU', 'minGRU'])
def test_int8_reads_prompts_of_any_length_alike(cell):
    "Whether a prompt is read by a kernel of plain weights or by steps in eight bits must not hang on its company."
    learn,prompts = awd(loaders('words'), cell),[' '.join(WORDS[:k]) for k in range(6)]
    together = write(learn, prompts, 1, temperature=0, int8=True)
    for p,t in zip(prompts, together, strict=True):
        alone, = write(learn, p, 1, temperature=0, int8=True)
        assert_close(alone.logps, t.logps, rtol=0, atol=2e-5)

@pytest.mark.parametrize('cell', ['LSTM', 'GRU'])
def test_one_prompt_in_eight_bits(cell):
    "Its steps are taken by a kernel of eight bits; the probabilities are near to those of the model."
    learn = awd(loaders('words'), cell)
    for prompt in ('one', ' '.join(WORDS)):
        t, = write(learn, prompt, 12, int8=True)
        ids = [VOCAB.index(w) for w in ('xxbos', *prompt.split())]
        want = all_logits(learn.model, ids + ids_of(learn, t)).log_softmax(-1)[len(ids)-1:-1]
        assert_close(t.logps, want.gather(1, torch.tensor(ids_of(learn, t))[:, None])[:, 0], rtol=0, atol=0.1)

def test_threads_write_with_one_learner():
    "As a server does; each of them gets its own text."
    learn,found,errors = ours('words'),{},[]
    want = [texts(learn, 'one', 40, seed=k)[0] for k in range(4)]
    def job(k):
        try: found[k] = [texts(learn, 'one', 40, seed=k)[0] for _ in range(8)]
        except Exception as e: errors.append(repr(e))
    threads = [threading.Thread(target=job, args=(k,)) for k in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert not errors, errors
    assert found == {k: [w]*8 for k,w in enumerate(want)}

def test_samples_differ_and_the_first_ones_stay():
    learn = ours('words')
    five = texts(learn, ['one', 'two'], seed=1, n=5)
    assert len(set(five)) == 10
    assert texts(learn, ['one', 'two'], seed=1, n=3) == five[:3] + five[5:8]
    assert texts(learn, 'one', seed=2, n=5) != five[:5]

def test_longer_texts_go_on_from_shorter_ones():
    for how in (dict(temperature=0), dict(seed=2), dict(seed=2, min_p=0.1)):
        short,long = (texts(ours('words'), ['one', 'two'], n, **how) for n in (5, 90))
        assert all(l.startswith(s) for s,l in zip(short, long, strict=True))

class Script(nn.Module):
    "Writes given tokens after a prompt of `lead` tokens, and then the first one on and on; its state is a position."
    calls,on_call = 0,None
    def __init__(self, script, lead, vocab_sz):
        super().__init__()
        self.rows = nn.Parameter(nn.functional.one_hot(torch.tensor(script), vocab_sz)*40.)
        self.lead = lead
    def forward(self, ids, state=None):
        Script.calls += 1
        if Script.on_call: Script.on_call(Script.calls)
        at = torch.arange(1, ids.size(1) + 1).expand_as(ids) + (0 if state is None else state[0].long())
        now = (at - self.lead).clamp(0, len(self.rows) - 1)
        return self.rows[now], at[None, :, -1:].float()

@pytest.fixture(autouse=True)
def quiet():
    Script.calls,Script.on_call = 0,None
    yield
    Script.calls,Script.on_call = 0,None

def scripted(kind, prompt, script):
    "A learner that goes on from a prompt with these tokens."
    learn,vocab = ours(kind),words_of(ours(kind))
    script = [vocab.index(t) if isinstance(t, str) else t for t in script]
    return rf.rnn_learner(loaders(kind), Script(script, len(encode_prompts(learn._texts(), [prompt])[0]), len(vocab)))

def byte_tokens(*values):
    "Tokens that stand for single bytes, by the mapping of GPT-2 that the library follows."
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    odd = [b for b in range(256) if b not in plain]
    return [chr(b) if b in plain else chr(256 + odd.index(b)) for b in values]

EURO,FACE = byte_tokens(*'€'.encode()),byte_tokens(*'😀'.encode())
SCRIPTS = {   # kind, prompt, tokens, options, what comes after the prompt, why it ends
    'capitals': ('words', 'one', 'xxmaj two xxup three xxrep 3 ! xxwrep 2 five .', {}, ' Two THREE !!! five five .',
        'length'),
    'capital in the prompt': ('words', 'one xxmaj', 'two three', {}, ' Two three', 'length'),
    'unfinished rule at the end': ('words', 'one', 'two xxwrep 3', {}, ' two', 'length'),
    'stop': ('words', 'one', 'two three four', dict(stop=' three'), ' two', 'stop string'),
    'stop begins and does not complete': ('words', 'one', 'four six four five six', dict(stop='four five'),
    ' four six ', 'stop string'),
    'stop begins at the end': ('words', 'one', 'six four', dict(stop='four five'), ' six four', 'length'),
    'stop begins twice': ('words', 'one', 'four four five six', dict(stop='four five'), ' four ', 'stop string'),
    'the earlier stop': ('words', 'one', 'two three four', dict(stop=['three four', 'two three']), ' ', 'stop string'),
    'stop inside a word': ('words', 'one', 'two seven', dict(stop='eve'), ' two s', 'stop string'),
    'stop in capitals': ('words', 'one', 'three xxup three', dict(stop='THR'), ' three ', 'stop string'),
    'stop in a repetition': ('words', 'one', 'two xxrep 3 ! one', dict(stop='!!'), ' two ', 'stop string'),
    'stop at a border': ('words', 'one', 'two . \n three', dict(stop='. \n'), ' two ', 'stop string'),
    'stop before min_words': ('words', 'one', 'two three two six two', dict(stop='two', min_words=4),
    ' two three two six ', 'stop string'),
    'stop across min_words': ('words', 'one', 'six two three six', dict(stop='two three', min_words=3), ' six ',
        'stop string'),
    'stop at once': ('words', 'one', 'two', dict(stop=' two'), '', 'stop string'),
    'stop in a repeated word': ('words', 'one', 'two xxrep 2 three', dict(stop='threethree'), ' two ', 'stop string'),
    'stop token': ('words', 'one', 'two . three', dict(stop_tokens='.'), ' two .', 'stop token'),
    'stop token as the last': ('words', 'one', 'two .', dict(stop_tokens='.'), ' two .', 'stop token'),
    'empty prompt': ('words', '', 'xxmaj two three', {}, 'Two three', 'length'),
    'stop after an empty prompt': ('words', '', 'two three', dict(stop='two'), '', 'stop string'),
    'forty signs that are not shown': ('words', 'one', ['xxbos']*40 + ['two', 'three'], {}, ' two three', 'length'),
    'forty capitals': ('words', 'one', ['xxmaj']*40 + ['two', 'three'], {}, ' Two three', 'length'),
    'stop after forty signs': ('words', 'one', ['xxbos']*40 + ['two', 'three'], dict(stop=' three'), ' two',
        'stop string'),
    'stop over signs': ('words', 'one', ['two', *['xxbos']*40, 'three', 'four'], dict(stop='two three'), ' ',
        'stop string'),
    'bytes': ('subwords', 'a', [*EURO, 'a', *FACE], {}, '€a😀', 'length'),
    'bytes, not all': ('subwords', 'a', ['b', *EURO[:2]], {}, 'b\ufffd', 'length'),
    'bytes that are no character': ('subwords', 'a', [*EURO[1:], 'a'], {}, '\ufffd\ufffda', 'length'),
    'forty such bytes': ('subwords', 'a', [EURO[1]]*40 + ['a'], {}, '\ufffd'*40 + 'a', 'length'),
    'stop of three bytes': ('subwords', 'a', ['b', *EURO, 'a'], dict(stop='€'), 'b', 'stop string'),
    'stop that two bytes begin': ('subwords', 'a', ['b', *EURO[:2], 'a', *EURO, 'b'], dict(stop='€b'), 'b\ufffda',
        'stop string'),
    'stop of bytes, not all': ('subwords', 'a', ['b', *EURO[:2]], dict(stop='b€'), 'b\ufffd', 'length'),
    'letters': ('chars', 'a', 'aaab', dict(stop='aab'), 'a', 'stop string'),
    'letters that do not complete': ('chars', 'a', 'abaa', dict(stop='aab'), 'abaa', 'length'),
    'a letter that stands for none': ('chars', 'a', 'x\ufffd', {}, 'x\ufffd', 'length'),
    'the same before a stop': ('chars', 'a', 'x\ufffdb', dict(stop='b'), 'x\ufffd', 'stop string'),
    'stop at it': ('chars', 'a', 'x\ufffdb', dict(stop='\ufffd'), 'x', 'stop string'),
    'blanks': ('chars', ' ', 'a b', {}, 'a b', 'length')}

@pytest.mark.parametrize('name', SCRIPTS)
def test_what_is_written_and_streamed(name):
    kind,prompt,script,how,want,why = SCRIPTS[name]
    script = list(script.split(' ')) if isinstance(script, str) and kind == 'words' else list(script)
    learn = scripted(kind, prompt, script)
    how = dict(temperature=0, n_words=len(script), **how)
    t, = learn.generate(prompt, no_bar=True, **how)
    shown = prompt.replace(' xxmaj', '')
    assert (t.text, t.ended) == (shown + want, why)
    assert t.tokens == script[:len(t.tokens)] and len(t.logps) == len(t.tokens)
    pieces = list(learn.stream(prompt, **how))
    assert ''.join(pieces) == t.text
    assert pieces[0] == shown

@pytest.mark.parametrize('kind', [k for k in KINDS if k != 'backwards'])
def test_streams_join_to_the_text(kind):
    learn,vocab = ours(kind),words_of(ours(kind))
    for i,p in enumerate(PROMPTS[kind]):
        for how in (dict(temperature=0), dict(seed=i, temperature=2.), dict(seed=i, stop_tokens=vocab[-2], min_words=4),
                    dict(seed=i, top_k=9, no_repeat_ngram=2, stop='e')):
            t, = write(learn, p, 40, **how)
            assert ''.join(learn.stream(p, 40, **how)) == t.text

def test_stream_with_cache_and_dynamic_evaluation():
    prompt = 'one two three four five one two three'
    for how in (dict(cache=rf.NeuralCache(theta=0.5, weight=0.4)), dict(dynamic=rf.DynamicEvaluation(lr=0.5))):
        t, = write(ours('words'), prompt, 20, seed=1, **how)
        assert ''.join(ours('words').stream(prompt, 20, seed=1, **how)) == t.text
        assert t.text != texts(ours('words'), prompt, 20, seed=1)[0]

def test_a_stream_is_lazy_and_a_piece_is_shown_as_soon_as_it_is_sure():
    learn = scripted('words', 'one two', 'three xxmaj four five six four'.split())
    stream = learn.stream('one two', 6, temperature=0, stop='six four')
    first = Script.calls
    assert first <= 1   # a look at what the model gives
    seen = [(next(stream), Script.calls - first) for _ in range(4)]
    assert [p for p,_ in seen][:3] == ['one two', ' three', ' Four']
    calls = [c for _,c in seen]
    assert calls[0] <= 1 and calls[1] - calls[0] <= 2 and calls[2] - calls[1] == 2   # xxmaj, and the word
    assert ''.join(p for p,_ in seen) + ''.join(stream) == 'one two three Four five '

def mind(learn):
    "All that a call could change in a learner, and the random streams."
    m = learn.model
    return ({k: v.clone() for k,v in m.state_dict().items()}, [x.training for x in m.modules()],
            [(id(p), p.requires_grad, p.grad is None, type(p)) for p in m.parameters()], list(learn.cbs), learn.opt,
            [len(h) for x in m.modules() for h in (x._forward_hooks, x._forward_pre_hooks, x._backward_hooks)],
            random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),
            torch.is_grad_enabled(), torch.backends.quantized.engine, torch.get_num_threads(),
            [k for k in vars(learn) if k != '_twin'])

def same_mind(a, b):
    assert_close(a[0], b[0], rtol=0, atol=0)
    for x,y in zip(a[1:], b[1:], strict=True): assert x == y

ACTS = {'greedy': lambda l: write(l, ['one', 'two three'], temperature=0),
    'seed': lambda l: write(l, 'one', seed=1, n=3),
        'int8': lambda l: write(l, 'one', seed=1, int8=True),
        'generator': lambda l: write(l, 'one', seed=torch.Generator().manual_seed(1)),
        'cache': lambda l: write(l, 'one two', seed=1, cache=rf.NeuralCache()),
        'dynamic': lambda l: write(l, 'one two', seed=1, dynamic=rf.DynamicEvaluation()),
        'beam': lambda l: l.beam_search('one', 5, no_bar=True), 'stream': lambda l: list(l.stream('one', 5, seed=1)),
        'closed stream': lambda l: next(l.stream('one', 5, seed=1)), 'score': lambda l: l.score(['one two', 'one']),
        'score with all': lambda l: l.score('one two', cache=rf.NeuralCache(), dynamic=rf.DynamicEvaluation()),
        'inference mode': lambda l: torch.inference_mode()(lambda: write(l, 'one', seed=1))()}

@pytest.mark.parametrize('kind', ['words', 'state'])
@pytest.mark.parametrize('act', ACTS)
def test_nothing_is_left_behind(act, kind):
    if kind == 'state' and act in ('cache', 'score with all'): return   # its states are not given
    learn = make(kind)
    first = [m for m in learn.model.modules() if m is not learn.model][0]
    learn.model.train()
    first.eval()
    before = mind(learn)
    ACTS[act](learn)
    same_mind(before, mind(learn))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)   # weights can still be trained
    assert all(p.grad is None or p.grad.isfinite().all() for p in learn.model.parameters())

@pytest.mark.parametrize('act', ['generate', 'stream', 'beam_search', 'score'])
def test_an_interrupt_loses_nothing(act):
    learn = scripted('words', 'one', WORDS)
    learn.model.train()
    before = mind(learn)
    def stop(calls):
        if calls == 6: raise KeyboardInterrupt
    Script.on_call = stop
    if act == 'score': Script.calls = 4
    call = dict(generate=lambda: write(learn, 'one', temperature=0), beam_search=lambda: learn.beam_search('one', 9),
                stream=lambda: shown.extend(iter(learn.stream('one', 9, temperature=0))),
                    score=lambda: learn.score('one two'))
    shown = []
    with pytest.raises(KeyboardInterrupt): call[act]()
    same_mind(before, mind(learn))
    Script.on_call = None
    assert texts(learn, 'one', 9, temperature=0) == ['one ' + ' '.join(WORDS[:9])]
    if act == 'stream': assert len(shown) >= 3 and ('one ' + ' '.join(WORDS)).startswith(''.join(shown))

def test_a_stream_is_left_in_the_middle():
    learn = ours('words')
    learn.model.train()
    want,before = texts(learn, 'one', seed=1),mind(learn)
    stream = learn.stream('one', 30, seed=1)
    for _ in range(4): next(stream)
    same_mind(before, mind(learn))
    stream.close()
    assert next(stream, None) is None
    same_mind(before, mind(learn))
    assert texts(learn, 'one', seed=1) == want

def test_two_streams_at_once():
    learn = ours('words')
    alone = [list(learn.stream(p, 30, seed=1)) for p in ('one', 'two three')]
    both = list(zip(*(learn.stream(p, 30, seed=1) for p in ('one', 'two three')), strict=False))
    assert [list(x) for x in zip(*both, strict=True)] == [a[:len(both)] for a in alone]
    one = learn.stream('one', 30, seed=1)
    got = [next(one) for _ in range(5)]
    write(learn, ['nine', 'ten'], 5, seed=4, int8=True)   # and another call meanwhile
    assert got + list(one) == alone[0]

@pytest.mark.parametrize('temperature', [0, 1.])
def test_training_between_two_pieces(temperature):
    "What it says is not defined then (see `stream`), but the text goes on to its end, and the next one sees the weights."
    learn = awd(word_loaders())
    stream = learn.stream('one', 25, temperature=temperature, seed=None if temperature == 0 else 3,
                          forbidden=SPECIAL[1:])
    got = [next(stream) for _ in range(6)]
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.03)
    assert len([*got, *stream]) == 26
    text, = write(learn, ['one'], 8, temperature=0, forbidden=SPECIAL[1:])
    ids,vocab = [words_of(learn).index(t) for t in ('xxbos', 'one')],words_of(learn)
    for tok in text.tokens:
        with torch.no_grad(): logits = learn.model.eval()(torch.tensor([ids])).logits[0, -1]
        logits[[*range(len(SPECIAL)), VOCAB.index('xxfake')]] = -torch.inf
        assert vocab[logits.argmax()] == tok
        ids.append(vocab.index(tok))

# Predict, beams, scores

def test_predict_has_fastais_signature():
    def args(cls): return [(p.name, p.default) for p in inspect.signature(cls.predict).parameters.values()]
    ours_,theirs = args(rf.LMLearner),args(ft.LMLearner)
    assert [n for n,_ in ours_] == [*(n for n,_ in theirs), 'int8']   # ours comes last
    ours_ = ours_[:-1]
    assert [d for n,d in ours_ if n != 'decoder'] == [d for n,d in theirs if n != 'decoder']

@pytest.mark.parametrize('name', ['generate', 'stream', 'beam_search'])
def test_signatures_tell_all_options(name):
    params = inspect.signature(getattr(rf.LMLearner, name)).parameters
    assert not any(p.kind is p.VAR_KEYWORD for p in params.values())
    own = dict(generate='prompts n_words n seed bs int8 cache dynamic no_bar',
        stream='prompt n_words seed int8 cache dynamic',
               beam_search='prompts n_words width n length_penalty groups diversity stop_tokens forbidden bs min_words')
    more = ('temperature top_k top_p min_p typical_p epsilon_cutoff repetition_penalty frequency_penalty presence_penalty '
            'no_repeat_ngram forbidden required stop stop_tokens min_words no_unk decoder')
    if name == 'beam_search': more = ''
    assert not set(f'{own[name]} {more}'.split()) - set(params)
    defaults = {k: p.default for k,p in params.items() if p.default is not p.empty}
    learn,args = ours('words'),dict(defaults, n_words=3)
    args.pop('prompts', args.pop('prompt', None))
    list(getattr(learn, name)('one', **args))   # each is taken by its name, with its default

@pytest.mark.parametrize('o', [dict(), dict(stop_tokens=['c']), dict(length_penalty=0.), dict(forbidden=['a', 'd']),
                               dict(stop_tokens=['c', 'd'], min_words=2, length_penalty=2.)], ids=named)
def test_a_wide_beam_finds_the_best_of_all(o):
    logp = np.log(np.exp(TABLE)/np.exp(TABLE).sum(-1, keepdims=True))
    found = {}
    def go(new, s):
        if new and (len(new) == 3 or V[new[-1]] in o.get('stop_tokens', ()) and len(new) > o.get('min_words', 0)):
            found[''.join(V[i] for i in new)] = s/len(new)**o.get('length_penalty', 1.)
            return
        for i in range(len(V)):
            early = len(new) < o.get('min_words', 0) and V[i] in o.get('stop_tokens', ())
            if V[i] not in o.get('forbidden', ()) and not early: go([*new, i], s + logp[([2] + new)[-1], i])
    go([], 0.)
    best = sorted(found, key=lambda k: -found[k])[:6]
    got = table_learner().beam_search(['ac', 'c'], 3, width=30, n=6, no_bar=True, **o)
    for some in (got[:6], got[6:]):
        assert [''.join(t.tokens) for t in some] == best
        assert_close([t.logps.sum().item()/len(t.tokens)**o.get('length_penalty', 1.) for t in some],
                     [found[k] for k in best], rtol=1e-4, atol=1e-4)
    assert [t.text for t in got] == ['ac' + b for b in best] + ['c' + b for b in best]

@pytest.mark.parametrize('kind', KINDS)
def test_scores_and_beams_of_every_kind(kind):
    learn,prompts = ours(kind),[p for p in PROMPTS[kind] if p]
    for s,p in zip(learn.score(prompts, bs=3, no_bar=True), prompts, strict=True):
        ids = start_of(learn, kind, p)
        if kind == 'backwards': ids.append(words_of(learn).index('xxbos'))   # a whole text: it has its beginning
        want = all_logits(learn.model, ids).log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        assert_close(s.logps, want, rtol=1e-3, atol=1e-3)
        assert s.tokens == [words_of(learn)[i] for i in ids[1:]] and s.text == p
        if len(ids) > 1: assert abs(s.perplexity - math.exp(-want.mean())) < 1e-2*s.perplexity
    alone = [learn.beam_search(p, 6, width=3, n=2, no_bar=True) for p in prompts]
    got = learn.beam_search(prompts[::-1], 6, width=3, n=2, bs=6, no_bar=True)
    assert [t.text for t in got] == [t.text for two in alone[::-1] for t in two]

def test_one_wide_beam_is_greedy():
    got = ours('words').beam_search(list(WORD_PROMPTS), 12, width=1, no_bar=True)
    assert [t.text for t in got] == texts(ours('words'), list(WORD_PROMPTS), temperature=0)

def test_cache_by_the_formula():
    "Of scores, and of what is written: the mixture of Grave et al., in float64."
    learn,c = ours('words'),rf.NeuralCache(size=4, theta=0.4, weight=0.3)
    t, = write(learn, 'one two one two three', 8, seed=1, cache=c)
    ids = start_of(learn, 'words', 'one two') + [VOCAB.index(w) for w in 'one two three'.split()] + ids_of(learn, t)
    with torch.no_grad(): out = learn.model.eval()(torch.tensor([ids]))
    h,p = out.raw[0].double().numpy(),out.logits[0].double().softmax(-1).numpy()
    want = []
    for k in range(len(ids) - 1):   # ids[k+1] is predicted from h[k]; pairs (h[i], ids[i+1]) with i < k are known
        old = range(max(0, k - 4), k)
        if not old: mix = p[k]
        else:
            w = softmax(np.array([0.4*h[i] @ h[k] for i in old]))
            cached = np.zeros(len(VOCAB))
            for q,i in zip(w, old, strict=True): cached[ids[i+1]] += q
            mix = 0.7*p[k] + 0.3*cached
        want.append(math.log(mix[ids[k+1]]))
    assert_close(t.logps, torch.tensor(want[-8:], dtype=torch.float32), rtol=1e-3, atol=1e-3)
    if '40' not in t.tokens and not set(t.tokens) & set(SPECIAL):
        s, = learn.score(t.text, cache=c, no_bar=True)
        assert_close(s.logps, torch.tensor(want, dtype=torch.float32), rtol=1e-3, atol=1e-3)

def test_dynamic_evaluation_by_hand():
    learn,d = ours('words'),rf.DynamicEvaluation(lr=0.3, every=3)
    prompt = 'one two three four five six seven'
    ids = [VOCAB.index(t) for t in ('xxbos', *prompt.split())]
    model,state = copy.deepcopy(learn.model).eval(),None
    for at in range(0, len(ids) - 1, 3):
        x,y = ids[at:at+3],ids[at+1:at+4]
        out = model(torch.tensor([x[:len(y)]]), state)
        loss = nn.functional.cross_entropy(out.logits[0], torch.tensor(y))
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters(): p -= 0.3*p.grad
        state = tuple(tuple(s.detach() for s in l) for l in out.state)
    got, = write(learn, prompt, 8, temperature=0, dynamic=d)
    want = []
    for _ in range(2):   # whether the last few tokens make a step too, after which nothing is read, may be either way
        want.append(slow(rf.LMLearner(learn.dls, model, loss_func=nn.CrossEntropyLoss()), ids, 8))
        with torch.no_grad():
            for p in model.parameters(): p += 0.3*p.grad
    assert ids_of(learn, got) in want and ids_of(learn, got) != slow(learn, ids, 8)

def test_long_texts_are_scored_in_bounded_memory():
    learn = big_vocabulary()
    def score(n): return learn.score(' '.join(['w7 w8 w9']*n), no_bar=True)[0].logps
    score(10_000)   # so that what the allocator keeps is there
    before = resident()
    with peak() as most: logps = score(40_000)
    assert len(logps) == 120_000 and logps.isfinite().all()
    assert most() - before < 500   # all logits at once would be 1,900 MB

# Weights that change

def changed_by_training(learn):
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.02)

def changed_by_load(learn):
    sd = {k: v + 0.3*torch.sin(torch.arange(v.numel()).view(v.shape)) for k,v in learn.model.state_dict().items()}
    learn.model.load_state_dict(sd)

def changed_row(learn): learn.model[1].decoder.weight.data[VOCAB.index('two')] *= -3
def changed_bias(learn): learn.model[1].decoder.bias.data[VOCAB.index('two')] += 9
def swapped_rows(learn):
    w = learn.model[1].decoder.weight.data
    w[[VOCAB.index('one'), VOCAB.index('nine')]] = w[[VOCAB.index('nine'), VOCAB.index('one')]]
def new_data(learn): learn.model[1].decoder.weight.data = -learn.model[1].decoder.weight.data
def new_parameter(learn): learn.model[1].decoder.weight = nn.Parameter(-learn.model[1].decoder.weight.data)
def one_entry(learn): learn.model[0].rnns[1].cells[0].weight_hh.data[7, 9] += 3.
def by_numpy(learn): learn.model[1].decoder.weight.data.numpy()[3:9] *= -2

@pytest.mark.parametrize('int8', [False, True])
@pytest.mark.parametrize('change', [changed_by_training, changed_by_load, changed_row, changed_bias, swapped_rows,
    new_data,
                                    new_parameter, one_entry, by_numpy], ids=lambda f: getattr(f, '__name__', None))
def test_changed_weights_are_seen(change, int8):
    learn = awd(word_loaders())
    for how in (dict(temperature=0), dict()): write(learn, ['one', 'two three'], 4, int8=int8, **how)
    change(learn)
    for how in (dict(temperature=0), dict(seed=3), dict()):
        for t in write(learn, ['one', 'two three'], 12, int8=int8, **how):
            ids = [VOCAB.index(w) for w in ('xxbos', *t.prompt.split())]
            want = all_logits(learn.model, ids + ids_of(learn, t)).log_softmax(-1)[len(ids)-1:-1]
            want = want.gather(1, torch.tensor(ids_of(learn, t))[:, None])[:, 0]
            tol = 0.5 if int8 else 1e-3
            assert_close(t.logps, want, rtol=tol, atol=tol)

@pytest.mark.parametrize('at', [(354, 354), (709, 354), (354, 100), (5, 5)])
def test_an_edit_of_one_weight_is_seen_wherever_it_is(at):
    "Also where sin(355) = -0.00003: what tells of changes must not weigh any entry so little."
    learn = big_vocabulary(emb_sz=400)
    w = learn.model[1].decoder.weight
    def bias(): return write(learn, 'w1', 1, temperature=0, stop_tokens=())[0]
    ids = [words_of(learn).index(t) for t in ('xxbos', 'w1')]
    bias()
    old = w.data[at].item()
    try:
        with torch.no_grad(): h = learn.model.eval()(torch.tensor([ids])).raw[0, -1, at[1]].item()
        w.data[at] += 60/h   # this token is now the likeliest by far
        got = bias()
        logits = all_logits(learn.model, ids)[-1]
        assert logits.argmax().item() == at[0]
        assert got.tokens == [words_of(learn)[at[0]]]
    finally: w.data[at] = old

def test_a_changed_attribute_of_a_module_is_seen():
    class Warm(Sums):
        factor = 1.
        def forward(self, ids): return super().forward(ids)*self.factor
    torch.manual_seed(0)
    learn = rf.rnn_learner(loaders('words'), Warm(len(VOCAB)))
    before, = write(learn, 'one', 3, temperature=0)
    learn.model.module.factor = -1.
    after, = write(learn, 'one', 3, temperature=0)
    assert ids_of(learn, after) == slow(learn, [VOCAB.index(t) for t in ('xxbos', 'one')], 3) != ids_of(learn, before)

@pytest.mark.parametrize('seed', [1, None])
@pytest.mark.parametrize('temperature', [0, 1.])
def test_weights_that_are_not_a_number_are_told_of(temperature, seed):
    "Training that diverged must not look like text."
    learn = awd(word_loaders(), emb_sz=16, n_hid=16)
    learn.model[1].decoder.weight.data[4:] = math.nan
    with pytest.raises((FloatingPointError, ValueError, RuntimeError), match='(?i)nan|not a number|inf'):
        write(learn, 'one', temperature=temperature, seed=seed)

# Memory

def resident():
    "Resident memory, in MB."
    gc.collect()
    return int(Path('/proc/self/statm').read_text().split()[1])*resource.getpagesize()/2**20

class peak:
    "The most memory that is resident while a block runs."
    def __enter__(self):
        self.most,self.on = resident(),True
        def watch():
            while self.on:
                now = int(Path('/proc/self/statm').read_text().split()[1])*resource.getpagesize()/2**20
                self.most = max(self.most, now)
                time.sleep(0.01)
        self.thread = threading.Thread(target=watch)
        self.thread.start()
        return lambda: self.most
    def __exit__(self, *args):
        self.on = False
        self.thread.join()

@cache
def big_vocabulary(emb_sz=8):
    "A small model over four thousand words."
    vocab = [*SPECIAL, *(f'w{i}' for i in range(3991))]
    df = pd.DataFrame({'text': ['w1 w2 w3 w4 w5 w6']*20})
    dls = rf.TextDataLoaders.from_df(df, is_lm=True, text_vocab=vocab, tok_tfm=Blanks(), bs=2, seq_len=9, seed=1,
        device='cpu')
    torch.manual_seed(0)
    config = dict(emb_sz=emb_sz, n_hid=8, n_layers=1)
    return rf.language_model_learner(dls, 'AWD_minGRU', config=config, pretrained=False)

class Blanks(rf.TextTokenizer):
    "Words are what stands between blanks."
    def __init__(self, *args, **kwargs): super().__init__(tok=Split(), rules=[], post_rules=[])
class Split:
    def __call__(self, items): return (['xxbos', *t.split()] for t in items)

def tensors():
    gc.collect()
    return sum(o.numel() for o in gc.get_objects() if type(o) is torch.Tensor)

@pytest.mark.parametrize('how', [dict(), dict(top_p=0.9, repetition_penalty=1.2), dict(stop='two two two two two two'),
                                 dict(cache=rf.NeuralCache(size=50))], ids=named)
def test_memory_does_not_grow_with_the_text(how):
    learn,held = awd(loaders('words'), emb_sz=8, n_hid=8),[]
    stream = learn.stream('one', 1000, seed=1, **how)
    for k,_ in enumerate(stream):
        if k in (120, 500): held.append(tensors())
    assert len(held) == 2 and held[1] <= held[0]

@pytest.mark.parametrize('how', [dict(), dict(no_repeat_ngram=3), dict(stop='two two two two'),
    dict(required='xxpad')], ids=named)
def test_work_for_a_token_does_not_grow_with_the_text(how):
    "Calls and memory of one token, within one stream each: after forty thousand tokens, and after forty."
    learn = awd(loaders('words'), emb_sz=8, n_hid=8)
    def run(n):
        stream = learn.stream(' '.join(WORDS*n), 60, seed=1, **how)
        for _ in range(5): next(stream)
        return [np.median([f(next, stream)[1] for _ in range(15)]) for f in (calls_of, bytes_of)]
    run(4)
    assert all(late < 1.5*early for early,late in zip(run(4), run(4000), strict=True))

@pytest.mark.slow
def test_a_prompt_of_a_million_tokens():
    learn = big_vocabulary()
    prompt = ' '.join(['w7 w8 w9 w10']*250_000)
    before = resident()
    with peak() as most: text = ''.join(learn.stream(prompt, 3, seed=1))
    assert text.startswith('w7 w8 w9 w10 w7') and len(text) > len(prompt)
    assert most() - before < 700   # ids, strings and texts; all logits would be 16 GB, all states 64 MB for each layer

# Bad input

BAD = {   # options, what the message must name
    'prompts=None': (dict(prompts=None), ['prompt', 'None']), 'prompts=5': (dict(prompts=5), ['prompt', 'int']),
    'prompts=bytes': (dict(prompts=b'one'), ['bytes']), 'prompts=dict': (dict(prompts={'one': 1}), ['dict']),
    'prompts=[None]': (dict(prompts=['one', None]), ['NoneType']), 'prompts=[b]': (dict(prompts=[b'one']), ['bytes']),
    'prompts=[[]]': (dict(prompts=['one', ['two']]), ['list']),
    'prompts=nan': (dict(prompts=['one', math.nan]), ['float']),
    'unknown words': (dict(prompts=['one', 'Zebra yak']), ['Zebra yak', 'one']),
    'n=0': (dict(n=0), ['n=0']), 'n=1.5': (dict(n=1.5), ['n=1.5']), 'bs=0': (dict(bs=0), ['bs=0']),
    'bs=-1': (dict(bs=-1), ['bs=-1']), 'n_words=0': (dict(n_words=0), ['n_words=0']),
    'n_words=None': (dict(n_words=None), ['n_words=None']), 'min_words=-1': (dict(min_words=-1), ['min_words=-1']),
    'min_words': (dict(min_words=50), ['min_words=50', 'n_words=4']),
    'temperature=-1': (dict(temperature=-1.), ['temperature=-1']),
    'temperature=nan': (dict(temperature=math.nan), ['temperature=nan']),
    'temperature=inf': (dict(temperature=math.inf), ['temperature=inf']),
    'temperature=str': (dict(temperature='1'), ["temperature='1'"]),
    'temperature=None': (dict(temperature=None), ['temperature=None']),
    'top_p=0': (dict(top_p=0.), ['top_p=0']), 'top_p=1.1': (dict(top_p=1.1), ['top_p=1.1']),
    'top_p=-1': (dict(top_p=-1), ['top_p=-1']),
    'top_p=nan': (dict(top_p=math.nan), ['top_p=nan']), 'top_p=str': (dict(top_p='0.5'), ["top_p='0.5'"]),
    'typical_p=0': (dict(typical_p=0), ['typical_p=0']), 'min_p=2': (dict(min_p=2), ['min_p=2']),
    'min_p=nan': (dict(min_p=math.nan), ['min_p=nan']),
    'epsilon_cutoff=-1': (dict(epsilon_cutoff=-1), ['epsilon_cutoff=-1']), 'top_k=0': (dict(top_k=0), ['top_k=0']),
    'top_k=2.5': (dict(top_k=2.5), ['top_k=2.5']),
    'top_k=999': (dict(top_k=999), ['top_k=999', str(len(VOCAB))]),
    'repetition_penalty=0': (dict(repetition_penalty=0), ['repetition_penalty=0']),
    'repetition_penalty=str': (dict(repetition_penalty='1'), ["repetition_penalty='1'"]),
    'frequency_penalty=nan': (dict(frequency_penalty=math.nan), ['frequency_penalty=nan']),
    'presence_penalty=str': (dict(presence_penalty='a'), ["presence_penalty='a'"]),
    'no_repeat_ngram=-1': (dict(no_repeat_ngram=-1), ['no_repeat_ngram=-1']),
    'temperature=0 and top_k': (dict(temperature=0, top_k=3), ['temperature=0', 'top_k=3']),
    'temperature=0 and n': (dict(temperature=0, n=2), ['temperature=0', 'n=2']),
    'temperature=0 and typical_p': (dict(temperature=0, typical_p=0.5), ['temperature=0', 'typical_p=0.5']),
    'forbidden and required': (dict(forbidden=['one'], required=['two', 'one']), ['forbidden', 'required', "'one'"]),
    'required xxunk': (dict(required=['xxunk']), ['required', "'xxunk'", 'no_unk']),
    'forbidden and stop_tokens': (dict(forbidden='.', stop_tokens='.'), ['forbidden', 'stop_tokens', "'.'"]),
    'required too many': (dict(required=WORDS), ['required', 'n_words=4']),
    'forbidden all': (dict(forbidden=VOCAB), ['forbidden']),
    'forbidden all that come': (dict(forbidden=VOCAB[1:-1]), ['forbidden']),
    'all end': (dict(stop_tokens=[t for t in VOCAB if t not in ('xxunk', 'xxfake')], min_words=2), ['min_words=2']),
    'forbidden odd': (dict(forbidden=['tow']), ['forbidden', "'tow'", "'two'"]),
    'required odd': (dict(required='zebra'), ['required', 'zebra']),
    'stop_tokens odd': (dict(stop_tokens='Two'), ['stop_tokens', "'Two'", "'two'"]),
    'forbidden=5': (dict(forbidden=5), ['forbidden', '5']),
    'stop_tokens=None': (dict(stop_tokens=None), ['stop_tokens', 'None']), 'stop=5': (dict(stop=5), ['stop', '5']),
    'stop never': (dict(stop='qqzz'), ["'qqzz'", 'never']), 'stop glued': (dict(stop='one,'), ["'one,'", 'never']),
    'stop empty': (dict(stop=['.', '']), ["''"]), 'stop part': (dict(stop='one twq'), ["'one twq'", 'never']),
    'stop with two blanks': (dict(stop='one  two'), ["'one  two'"]),
    'seed=1.5': (dict(seed=1.5), ['seed=1.5']), 'seed=-1': (dict(seed=-1), ['seed=-1']),
    'seed=str': (dict(seed='a'), ["seed='a'"]),
    'seed=True': (dict(seed=True), ['seed=True']), 'seed=str, greedy': (dict(seed='a', temperature=0), ["seed='a'"]),
    'cache=True': (dict(cache=True), ['cache', 'True']), 'cache class': (dict(cache=rf.NeuralCache), ['cache']),
    'dynamic=0.1': (dict(dynamic=0.1), ['dynamic', '0.1']),
    'cache=dynamic': (dict(cache=rf.DynamicEvaluation()), ['cache']),
    'unknown': (dict(top_q=1), ['top_q'])}

@pytest.mark.parametrize('call', ['generate', 'stream'])
@pytest.mark.parametrize('name', BAD)
def test_bad_input_is_told_by_name(name, call):
    "At once, with the argument and its value, and nothing has happened."
    learn,(how,words) = ours('words'),BAD[name]
    how = {'n_words': 4, **how}
    if call == 'stream':
        if {'n', 'bs'} & set(how): return
        prompts = how.pop('prompts', 'one')
        how['prompt'] = prompts[-1] if isinstance(prompts, list) else prompts
    else: how = {'prompts': 'one', 'no_bar': True, **how}
    before = mind(learn)
    with pytest.raises((ValueError, TypeError)) as e: getattr(learn, call)(**how)   # a stream: before its first piece
    missing = [w for w in words if w not in str(e.value)]
    assert not missing, str(e.value)
    same_mind(before, mind(learn))

@pytest.mark.parametrize('call,how,words', [
    ('beam_search', dict(n=6), ['n=6', 'width=5']), ('beam_search', dict(width=0), ['width=0']),
        ('beam_search', dict(bs=0), ['bs=0']),
    ('beam_search', dict(prompts=None), ['prompt', 'None']), ('beam_search', dict(temperature=0.5), ['temperature']),
    ('beam_search', dict(prompts={'one': 1}), ['dict']), ('beam_search', dict(forbidden=VOCAB[1:-1]), ['forbidden']),
    ('beam_search', dict(stop_tokens='.', forbidden='.'), ['stop_tokens', 'forbidden', "'.'"]),
    ('score', dict(texts=None), ['text', 'None']), ('score', dict(texts=b'one'), ['bytes']),
        ('score', dict(texts=['one', 5]), ['int']),
    ('score', dict(texts={'one': 1}), ['dict']), ('score', dict(bs=0), ['bs=0']),
        ('score', dict(cache=True), ['cache', 'True']),
    ('score', dict(dynamic=True), ['dynamic', 'True']), ('score', dict(cach=1), ['cach'])],
    ids=lambda o: named(o) if isinstance(o, dict) else None)
def test_bad_input_of_beams_and_scores(call, how, words):
    learn = ours('words')
    how = {**({'prompts': 'one', 'n_words': 4} if call == 'beam_search' else {'texts': 'one'}), **how}
    with pytest.raises((ValueError, TypeError)) as e: getattr(learn, call)(**how)
    assert not [w for w in words if w not in str(e.value)], str(e.value)

def test_good_input():
    learn = ours('words')
    want = texts(learn, ['one', 'two'], seed=1)
    for p in (pd.Series(['one', 'two'], index=[5, 9]), ('one', 'two'), np.array(['one', 'two']), iter(['one', 'two'])):
        assert texts(learn, p, seed=1) == want
    assert texts(learn, [], seed=1) == [] == learn.score([]) == learn.beam_search([])
    assert texts(learn, 'one', seed=2**40)[0] != texts(learn, 'one', seed=0)[0]
    assert all(t.ended == 'stop token' for t in write(learn, 'one', 400, n=5, seed=1, stop_tokens=['.', ',', '?']))
    assert 'xxunk' in write(learn, 'one', 4, seed=1, no_unk=False, required='xxunk')[0].tokens
    only = write(learn, 'one', 30, seed=1, forbidden=[t for t in VOCAB if t not in ('two', 'xxfake', 'xxunk')])
    assert only[0].tokens == ['two']*30

def test_series_say_what_is_wrong():
    learn = ours('series of numbers')
    t, = write(learn, [[3, 1, 4]], 6, temperature=0)
    assert len(t.tokens) == 6 and set(t.tokens) <= {3, 1, 4, 5, 9, 2, 6, 35}
    assert learn.predict([3, 1, 4], 6, temperature=0) == [3, 1, 4, *t.tokens]
    for how,words in ((dict(prompts=[[3, 77]]), ['77']), (dict(forbidden=[77]), ['forbidden', '77', '35']),
                      (dict(prompts=[[]]), ['empty'])):
        with pytest.raises(ValueError) as e: write(learn, **{'prompts': [[3]], **how})
        assert not [w for w in words if w not in str(e.value)], str(e.value)
    with pytest.raises(ValueError, match='(?i)prompt'): learn.generate()   # an empty one, from which no series goes on

def test_int8_of_other_floats_says_so():
    learn = awd(word_loaders())
    learn.model.double()
    assert texts(learn, 'one', temperature=0)
    with pytest.raises(ValueError, match='float64'): texts(learn, 'one', int8=True)

def test_one_bad_prompt_is_told_before_anything_is_written():
    learn = scripted('words', 'one', WORDS)
    with pytest.raises(ValueError, match='Zebra'): write(learn, ['one', 'Zebra'])
    assert Script.calls <= 1

def test_repetitions_of_any_number_can_be_read():
    "A model may write any number after `xxrep`; a text is then odd, but there."
    for toks in (['xxrep', '9'*30, 'a'], ['xxwrep', '9'*30, 'a'], ['xxrep', '10000000000000', 'a']):
        assert isinstance(' '.join(rf.decode_spec_tokens(['b', *toks, 'c'])), str)
    words = 'xxmaj xxup one xxrep 2 xxmaj two xxwrep x three xxwrep 2 four xxrep 0 a .'.split()
    assert rf.decode_spec_tokens(words) == ['ONE', 'Two', 'three', 'four', 'four', '', '.']   # `x` is no number

# The command

@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    "A language model, and one that is none, trained by the command."
    path = tmp_path_factory.mktemp('command')
    rng = np.random.default_rng(0)
    pd.DataFrame({'text': [' '.join(rng.choice(WORDS, 20)) for _ in range(40)],
        'label': ['x', 'y']*20}).to_csv(path/'t.csv', index=False)
    with pytest.MonkeyPatch.context() as m:
        for task in ('lm', 'classifier'):
            small = ['--epochs', '1', '--emb-sz', '16', '--n-hid', '16', '--n-layers', '1', '--bs', '4']
            m.setattr(sys, 'argv', ['rnn_fastai', 'train', task, str(path/'t.csv'), '--out', str(path/task), *small])
            main()
    return path

@pytest.fixture()
def run(folders, monkeypatch, capsys):
    "`generate` in this process: exit status (0 for none), output, complaints."
    capsys.readouterr()
    def go(*args, lines=None, typed=None, model='lm'):
        monkeypatch.setattr(sys, 'argv', ['rnn_fastai', 'generate', str(folders/model), *map(str, args)])
        source = iter(typed if typed is not None else lines or [])
        class Input:
            buffer = (f'{t}\n'.encode() for t in source)
            def isatty(self): return typed is not None
        def ask(prompt=''):
            line = next(source, EOFError)
            if isinstance(line, type): raise line
            return line
        monkeypatch.setattr(sys, 'stdin', Input())
        monkeypatch.setattr(builtins, 'input', ask)
        try: code = main()
        except SystemExit as e: code = e.code
        out,err = capsys.readouterr()
        if isinstance(code, str): code,err = 1,err + code
        return code or 0,out,err
    return go

@cache
def loaded(folder): return rf.load_bundle(folder)

def test_command_writes_what_the_learner_does(run, folders):
    prompts = ['one two', 'three', 'ten nine eight']
    want = texts(loaded(folders/'lm'), prompts, 9, seed=4)
    how = ('--n-words', 9, '--seed', 4)
    assert run(*prompts, *how) == (0, ''.join(f'{t}\n' for t in want), '')
    assert run(*how, lines=prompts) == run(*prompts, *how, '--bs', 2) == run(*prompts, *how)
    (folders/'p.txt').write_text('\n'.join(prompts), encoding='utf8')
    assert run(*how, '--file', folders/'p.txt') == run(*prompts, *how)
    code,out,err = run(*how, typed=prompts)
    assert code == 0 and err == '' and [l for l in out.splitlines() if l] == want

def test_command_gives_json(run, folders):
    code,out,_ = run('one', 'two', '--n', 2, '--seed', 1, '--n-words', 6, '--stop-tokens', 'three four', '--as-json')
    rows,want = [json.loads(l) for l in out.splitlines()],write(loaded(folders/'lm'), ['one', 'two'], 6, n=2, seed=1,
        stop_tokens=['three', 'four'])
    assert code == 0
    for r,t in zip(rows, want, strict=True): assert {**t._asdict(), 'logps': r['logps']} == r
    assert_close(torch.tensor(rows[1]['logps']), want[1].logps)

def test_command_options(run, folders):
    learn = loaded(folders/'lm')
    for args,how in ((('--temperature', 0), dict(temperature=0)), (('--top-k', 2, '--seed', 1), dict(top_k=2, seed=1)),
                     (('--top-p', .5, '--seed', 1), dict(top_p=.5, seed=1)),
                         (('--min-p', .9, '--seed', 1), dict(min_p=.9, seed=1)),
                     (('--typical-p', .3, '--seed', 1), dict(typical_p=.3, seed=1)),
                     (('--repetition-penalty', 3, '--seed', 1), dict(repetition_penalty=3, seed=1)),
                     (('--frequency-penalty', 3, '--seed', 1), dict(frequency_penalty=3, seed=1)),
                     (('--no-repeat-ngram', 1, '--seed', 1), dict(no_repeat_ngram=1, seed=1)),
                     (('--stop', ' two', '--seed', 1, '--min-words', 3), dict(stop=' two', seed=1, min_words=3)),
                     (('--forbidden', 'one two', '--seed', 1), dict(forbidden=['one', 'two'], seed=1)),
                     (('--required', 'one two', '--seed', 1), dict(required=['one', 'two'], seed=1)),
                     (('--int8', '--seed', 1), dict(int8=True, seed=1))):
        assert run('one', '--n-words', 15, *args) == (0, texts(learn, 'one', 15, **how)[0] + '\n', ''), args
    got = [t.text for t in learn.beam_search('one', 5, width=4, n=2, no_bar=True)]
    assert run('one', '--n-words', 5, '--beam', 4, '--n', 2) == (0, ''.join(f'{t}\n' for t in got), '')

@pytest.mark.parametrize('as_json', [False, True])
def test_command_goes_on_after_a_bad_prompt(run, folders, as_json):
    want = texts(loaded(folders/'lm'), ['one', 'two'], 5, seed=1)
    code,out,err = run('one', 'Zebra', 'two', '--n-words', 5, '--seed', 1, *['--as-json']*as_json)
    assert code == 1 and '1 of the prompts could not be continued' in err
    if as_json:
        rows = [json.loads(l) for l in out.splitlines()]
        assert [r.get('text') for r in rows] == [want[0], None, want[1]] and 'Zebra' in rows[1]['error']
    else: assert out.splitlines() == want and "'Zebra'" in err

def test_command_typed(run, folders):
    "An interrupt ends a text, or at the prompt all; a bad prompt is told of and asked again."
    want = texts(loaded(folders/'lm'), ['one', 'two'], 5, seed=1)
    code,out,err = run('--n-words', 5, '--seed', 1, typed=['one', 'Zebra', 'two', KeyboardInterrupt, 'three'])
    assert code == 0 and [l for l in out.splitlines() if l] == want and "'Zebra'" in err

@pytest.mark.parametrize('args,words', [
    (('--bs', 0), ['--bs 0']), (('--bs', -1), ['--bs -1']), (('--n', 0), ['--n 0']), (('--beam', 0), ['beam']),
        (('--top-k', 0), ['--top-k 0']),
    (('--top-k', 99999), ['--top-k 99999']), (('--seed', -1), ['--seed -1']), (('--temperature', -1), ['--temperature -1']),
    (('--temperature', 0, '--top-p', .5), ['--temperature 0', '--top-p 0.5']), (('--n-words', 0), ['--n-words 0']),
    (('--stop', 'qqzz'), ['qqzz']), (('--forbidden', 'zebra'), ['forbidden', 'zebra']),
        (('--beam', 2, '--top-k', 3), ['--beam', '--top-k']),
    (('--beam', 2, '--temperature', .5), ['beam', 'temperature']), (('--beam', 2, '--stop', 'two'), ['beam', 'stop']),
    (('--beam', 2, '--n', 3), ['--n 3', '2'])],
    ids=lambda a: ' '.join(map(str, a)))
def test_command_refuses_at_once(run, args, words):
    "One message, no text, and not one complaint for each prompt."
    code,out,err = run(*args, lines=['one', 'two', 'three'])
    assert code == 1 and out == ''
    assert not [w for w in words if w not in err], err
    assert 'Traceback' not in err and len(err.strip().splitlines()) == 1, err

@pytest.mark.parametrize('args,words', [(('one', '--file', 'f'), ['file', 'exclude']),
    (('--file', 'nofile'), ['nofile']),
                                        (('--file', '/tmp'), ['/tmp'])], ids=lambda a: ' '.join(a))
def test_command_and_files(run, args, words):
    code,out,err = run(*args)
    assert code == 1 and out == '' and not [w for w in words if w not in err], err

def test_command_needs_a_language_model(run, folders):
    code,out,err = run('one', model='classifier')
    assert code == 1 and out == '' and 'classifier' in err and 'predict' in err
    assert run('one', model='nowhere')[0] == 1

def test_command_help_names_all_options(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['rnn_fastai', 'generate', '--help'])
    with pytest.raises(SystemExit): main()
    out = capsys.readouterr().out
    options = ('file n-words n temperature top-k top-p min-p typical-p repetition-penalty frequency-penalty '
               'no-repeat-ngram stop stop-tokens forbidden required min-words beam seed int8 bs as-json')
    assert not [o for o in options.split() if f'--{o}' not in out]

# --- What no reader wants to see ---

def test_a_text_of_one_column_opens_no_field_and_shows_the_prompt_as_it_was_typed():
    "Likeliest of all is `xxfld`; it comes where it is asked for, and where texts have several fields."
    df = pd.DataFrame({'a': ['one two three']*20, 'b': ['ten nine']*20})
    for cols,comes in (('a', False), (['a', 'b'], True)):
        dls = rf.TextDataLoaders.from_df(df, is_lm=True, text_col=cols, bs=4, seq_len=5, seed=1)
        learn = rf.language_model_learner(dls, 'AWD_LSTM', config=dict(emb_sz=4, n_hid=4, n_layers=1), pretrained=False)
        with torch.no_grad(): learn.model[1].decoder.bias[list(dls.vocab).index('xxfld')] = 99.
        how = dict(n_words=3, temperature=0, no_bar=True)
        assert ('xxfld' in learn.generate('one', **how)[0].tokens) == comes
        assert ('xxfld' in learn.beam_search('one', n_words=3, no_bar=True)[0].tokens) == comes
        assert learn.generate('one', stop_tokens='xxfld', **how)[0].tokens == ['xxfld']
        shown = [learn.predict('one Zebra, THREE', **how), learn.generate('one Zebra, THREE', **how)[0].text,
                 ''.join(learn.stream('one Zebra, THREE', n_words=3, temperature=0)),
                 learn.beam_search('one Zebra, THREE', n_words=3, no_bar=True)[0].text]
        assert all(t.startswith('one Zebra , THREE') and 'xxunk' not in t for t in shown), shown
