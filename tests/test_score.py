"Scores against slow loops in double precision: plain, with the neural cache, with dynamic evaluation, and with both."
import copy
import math
import subprocess
import sys
from decimal import Decimal
from functools import cache
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.testing import assert_close

from rnn_fastai.core import flush_denormals, seeded
from rnn_fastai.generate.adapt import CacheMemory, DynamicEvaluation, NeuralCache, adapting
from rnn_fastai.generate.score import Score, perplexity_of, score_ids
from rnn_fastai.models.awd import AWD_LSTM, get_language_model
from rnn_fastai.models.cells import cells
from rnn_fastai.models.recurrent import Recurrent
from rnn_fastai.models.seq2seq import SequenceModel, token_input

VOCAB = 23


pytestmark = pytest.mark.usefixtures("one_thread")


def make(cell="LSTM", tied=True, scale=3., **config):
    "A model of random weights that are large enough to matter, in double precision."
    config = dict(emb_sz=12, n_hid=14, n_layers=2, tie_weights=tied, **config)
    with seeded(1): model = get_language_model(f"AWD_{cell}", VOCAB, config).double()
    for p in model.parameters(): p.data.mul_(scale)
    return model.eval()


def texts(*lengths, seed=0):
    with seeded(seed): return [torch.randint(VOCAB, (n,)) for n in lengths]


def close(got, want, tol=1e-5): assert_close(got, [w.float() for w in want], rtol=tol, atol=tol)


def outputs(model, doc):
    "Log-probabilities and state before each token but the first, by reading the whole text before it."
    outs = [model(doc[None, :t]) for t in range(1, len(doc))]
    return [o.logits[0, -1].log_softmax(-1).detach() for o in outs], [o.raw[0, -1].detach() for o in outs]


def cached(cache, logps, hs, doc):
    "The mixture by its formula."
    res = []
    for t, (p, h) in enumerate(zip(logps, hs, strict=True)):
        total, hit = 0., 0.
        for i in range(max(0, t - cache.size), t):
            e = math.exp(cache.theta*sum(a*b for a, b in zip(h.tolist(), hs[i].tolist(), strict=True)))
            total += e
            hit += e*(doc[i+1] == doc[t+1]).item()
        own = math.exp(p[doc[t+1]])
        res.append(math.log((1 - cache.weight)*own + cache.weight*hit/total) if total else math.log(own))
    return torch.tensor(res)


def plain(model, doc):
    if len(doc) == 1: return torch.empty(0)
    return torch.stack([p[i] for p, i in zip(outputs(model, doc)[0], doc[1:], strict=True)])


def cut(state): return state.detach() if isinstance(state, torch.Tensor) else tuple(cut(s) for s in state)


def adapted(model, doc, lr, decay, every, eps=0., stats=None):
    "Log-probabilities and states of a model that takes steps, its weights in a dictionary."
    first = {k: p.detach().clone() for k, p in model.named_parameters()}
    now, state, logps, hs = {k: p.clone() for k, p in first.items()}, None, [], []
    if stats is not None:
        rms = {k: s**0.5 for k, s in stats.items()}
        mean = torch.cat([r.flatten() for r in rms.values()]).mean()
    for at in range(0, len(doc) - 1, every):
        x, y = doc[at:at+every][:len(doc)-1-at], doc[at+1:at+1+every]
        now = {k: p.detach().requires_grad_() for k, p in now.items()}
        out = functional_call(model, now, (x[None], state))
        lp = out.logits[0].log_softmax(-1)
        grads = torch.autograd.grad(-lp[range(len(y)), y].mean(), list(now.values()))
        logps += lp.detach(); hs += out.raw[0].detach()
        for (k, p), g in zip(now.items(), grads, strict=True):
            if stats is None: now[k] = p - lr*g + decay*(first[k] - p)
            else: now[k] = p - lr*g/(rms[k] + eps) + (decay*rms[k]/mean).clamp(max=1)*(first[k] - p)
        state = cut(out.state)
    return logps, hs


# Plain scores

@pytest.mark.parametrize("cell", list(cells))
def test_every_cell_as_a_softmax_for_every_prefix(cell):
    model, docs = make(cell), texts(9, 1, 30, 2, 17)
    close(score_ids(model, docs, bs=3, budget=800), [plain(model, d) for d in docs])


def test_untied_weights_and_plain_layers():
    docs = texts(9, 30)
    inp, n = token_input(VOCAB, 8)
    other = SequenceModel(inp, Recurrent("GRU", n, 10, batch_first=True), VOCAB, stream=True).double().eval()
    for model in (make(tied=False), other): close(score_ids(model, docs), [plain(model, d) for d in docs])


@pytest.mark.parametrize("cache", [None, NeuralCache(20, 1., 0.3)])
def test_batches_budgets_and_order_do_not_matter(cache):
    model, docs = make().float(), texts(*range(1, 80, 7), 5, 5, 1, 300)
    want = [score_ids(model, [d], cache=cache)[0] for d in docs]
    assert [len(w) for w in want] == [len(d) - 1 for d in docs]
    for bs, budget in ((1, 1), (4, 100), (7, 1000), (32, 2**24), (1000, 5000)):
        close(score_ids(model, docs, bs=bs, budget=budget, cache=cache), want)
    close(score_ids(model, docs[::-1], bs=4, cache=cache)[::-1], want)


def test_later_tokens_change_nothing():
    model, (doc,) = make(), texts(40)
    for kw in ({}, dict(cache=NeuralCache(theta=1.)), dict(dynamic=DynamicEvaluation(lr=0.5))):
        whole, = score_ids(model, [doc], **kw)
        part, = score_ids(model, [doc[:23]], **kw)
        close([part], [whole[:22]])


class Counting(nn.Module):
    "A model that notes the sizes of the logits it makes."
    def __init__(self):
        super().__init__()
        self.model, self.sizes = make().float(), []

    def forward(self, ids, state=None):
        out = self.model(ids, state)
        self.sizes.append(out.logits.numel())
        self.steps = max(getattr(self, "steps", 0), ids.size(1))
        return out


@pytest.mark.parametrize("budget", [2_000, 100_000])
def test_long_documents_in_bounded_memory(budget):
    model, docs = Counting().eval(), texts(200_000, 15_000, 5)
    if budget == 2_000: docs = [docs[0][:20_000], *docs[1:]]
    reports = []
    got = score_ids(model, docs, on_progress=lambda *r: reports.append(r), budget=budget)
    assert max(model.sizes) <= budget and sum(model.sizes) > budget and model.steps == min(512, budget//VOCAB)
    assert [len(g) for g in got] == [len(d) - 1 for d in docs]
    total = sum(map(len, got))
    assert all(a < b for a, b in pairwise(reports)) and reports[-1] == (total, total) and {t for _, t in reports} == {total}
    assert len(reports) == len(model.sizes) - 1
    close([got[0][:3000]], [score_ids(model, [docs[0][:3001]])[0]], 1e-4)


def test_many_documents_in_bounded_memory():
    model, docs = Counting().eval(), texts(*[6]*100)
    close(score_ids(model, docs, bs=100, budget=40*VOCAB), score_ids(model.model, docs))
    assert model.sizes[1:] == [40*VOCAB]*10 + [20*VOCAB*2, 20*VOCAB*2, 20*VOCAB]    # batches of 40, and one of 20


def test_what_the_cache_compares_is_bounded_too(monkeypatch):
    seen, score = [], CacheMemory.score
    def watched(self, own, h, ids):
        rows, sl = ids.shape
        seen.append(rows*sl*(self.cache.size + sl))
        res = score(self, own, h, ids)
        assert self.states.shape[:2] == self.ids.shape == (rows, self.cache.size)
        return res
    monkeypatch.setattr(CacheMemory, "score", watched)
    score_ids(make().float(), texts(3000, 100), cache=NeuralCache(size=50), budget=10_000)
    assert 8_000 < max(seen) <= 10_000 and 20 < len(seen) < 60


def test_whole_numbers_of_any_kind_and_halves():
    from fastai.text.data import TensorText
    model, (doc,) = make().float(), texts(30)
    want = score_ids(model, [doc])
    for d in (doc.int(), doc.to(torch.uint8), TensorText(doc)): close(score_ids(model, [d]), want)
    got = score_ids(model.bfloat16(), [doc], cache=NeuralCache(weight=0.))
    assert got[0].dtype == torch.float32
    close(got, want, 0.3)


# The cache

@pytest.mark.parametrize("cell, tied", [("LSTM", True), ("GRU", False), ("RNN", True)])
@pytest.mark.parametrize("cache", [NeuralCache(), NeuralCache(3, 2., 0.6), NeuralCache(1, 0., 0.2),
                                   NeuralCache(25, 1., 0.)])
def test_cache_by_its_formula(cell, tied, cache):
    model, docs = make(cell, tied), texts(50, 1, 35, 20)
    want = [cached(cache, *outputs(model, d), d) for d in docs]
    for budget in (2**24, 1000): close(score_ids(model, docs, cache=cache, budget=budget), want)
    if cache.weight == 0: close(score_ids(model, docs, cache=cache), score_ids(model, docs), 0)


def test_cache_of_unlike_numbers_against_exact_arithmetic():
    "States so long that every exponential would overflow or vanish, and probabilities far below the smallest float."
    with seeded(0): h, logits = torch.randn(1, 12, 4).double()*40, torch.randn(1, 12, 6).double()*200
    ids = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 2, 4, 0, 3, 1]])
    cache = NeuralCache(7, 3., 0.4)
    own = logits.log_softmax(-1)
    want = []
    for t in range(12):
        e = {i: (Decimal(cache.theta)*Decimal((h[0, t]@h[0, i]).item())).exp() for i in range(max(0, t-7), t)}
        hits = [sum((v for i, v in e.items() if ids[0, i] == w), Decimal(0)) for w in range(6)]
        p = [Decimal(x).exp() for x in own[0, t].tolist()]
        lam = Decimal(cache.weight)
        mixed = p if not e else [(1 - lam)*q + lam*c/sum(e.values()) for q, c in zip(p, hits, strict=True)]
        want.append([float(m.ln()) for m in mixed])
    want = torch.tensor(want, dtype=torch.float64)
    for kind, tol in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
        steps, got = cache.start(), []
        for t in range(12):
            got.append(steps.mix(logits[:, t].to(kind), h[:, t].to(kind)))
            steps.add(h[:, t].to(kind), ids[:, t])
        assert_close(torch.cat(got), want.to(kind), rtol=tol, atol=tol)
        whole = cache.start().score(own.gather(-1, ids[..., None])[..., 0].to(kind), h.to(kind), ids)
        assert_close(whole[0], want[range(12), ids[0]].to(kind), rtol=tol, atol=tol)


@pytest.mark.parametrize("theta", [0., 0.5, 2.])
def test_steps_by_the_formula_for_every_token(theta):
    with seeded(0): h, logits, ids = torch.randn(9, 2, 4), torch.randn(9, 2, 6), torch.randint(6, (9, 2))
    memory = NeuralCache(5, theta, 0.3).start()
    for t in range(9):
        for r, got in enumerate(memory.mix(logits[t], h[t])):
            e = {i: math.exp(theta*(h[t, r]@h[i, r]).item()) for i in range(max(0, t-5), t)}
            hits = torch.tensor([sum(v for i, v in e.items() if ids[i, r] == w) for w in range(6)])
            own = logits[t, r].softmax(0)
            assert_close(got.exp(), 0.7*own + 0.3*hits/sum(e.values()) if e else own)
        memory.add(h[t], ids[t])


def test_weight_near_one_is_the_cache_alone():
    memory = NeuralCache(weight=1 - 1e-9, theta=0.).start()
    for i in (2, 2, 0): memory.add(torch.zeros(1, 3).double(), torch.tensor([i]))
    got = memory.mix(torch.zeros(1, 4).double(), torch.ones(1, 3).double()).exp()
    assert_close(got, torch.tensor([[1/3, 0, 2/3, 0]], dtype=torch.float64), rtol=0, atol=1e-8)


def test_rows_taken_have_memories_of_their_own():
    with seeded(0): h, ids = torch.randn(5, 3, 4), torch.randint(6, (5, 3))
    memory, logits = NeuralCache(4).start(), torch.randn(3, 6)
    for t in range(5): memory.add(h[t], ids[t])
    before = memory.mix(logits, h[0])
    two = memory.take(torch.tensor([1, 1]))
    for _ in range(4): two.add(h[0, :2], ids[0, :2])
    assert_close(memory.mix(logits, h[0]), before, rtol=0, atol=0)
    assert not torch.allclose(two.mix(logits[:2], h[0, :2])[0], before[1])
    empty = NeuralCache().start().take(torch.tensor([0, 0]))
    assert_close(empty.mix(logits[:2], h[0, :2]), logits[:2].log_softmax(-1))


def test_where_nothing_repeats_the_cache_costs_its_share():
    with seeded(0): doc = torch.randperm(VOCAB)
    model = make()
    for w in (0.05, 0.5):
        diff = score_ids(model, [doc], cache=NeuralCache(weight=w))[0] - score_ids(model, [doc])[0]
        assert_close(diff[1:], torch.full_like(diff[1:], math.log1p(-w))); assert abs(diff[0]) < 1e-6


# Dynamic evaluation

@pytest.mark.parametrize("cell, tied, every, decay", [
    ("LSTM", True, 5, 0.), ("LSTM", True, 7, 0.3), ("LSTM", False, 1, 0.1), ("GRU", True, 4, 0.1),
    ("minGRU", False, 5, 0.2), ("RNN", True, 3, 0.)])
def test_dynamic_evaluation_by_a_loop(cell, tied, every, decay):
    model, docs = make(cell, tied, scale=2.), texts(33, 1, 12, 4)
    with seeded(3): stats = {k: torch.rand_like(p)**12*1e-2 for k, p in model.named_parameters()}
    for lr, eps, st in ((0.3, 0., None), (0.004, 0.01, stats)):
        how = DynamicEvaluation(lr=lr, decay=decay, every=every, stats=st, **(dict(eps=eps) if st else {}))
        runs = [adapted(model, d, lr, decay, every, eps, st) for d in docs]
        want = [torch.stack([p[i] for p, i in zip(ps, d[1:], strict=True)]) if ps else torch.empty(0)
                for (ps, _), d in zip(runs, docs, strict=True)]
        close(score_ids(model, docs, dynamic=how), want)
        assert (want[0] - plain(model, docs[0]))[every:].abs().max() > 1e-2      # the steps matter
        cache = NeuralCache(9, 1.5, 0.4)
        both = [cached(cache, *run, d) for run, d in zip(runs, docs, strict=True)]
        close(score_ids(model, docs, dynamic=how, cache=cache), both)


def test_no_step_is_no_change():
    model, docs = make(), texts(33, 12)
    close(score_ids(model, docs, dynamic=DynamicEvaluation(lr=0.)), [plain(model, d) for d in docs])
    close(score_ids(model, docs, dynamic=DynamicEvaluation(every=1000)), [plain(model, d) for d in docs])


@pytest.mark.parametrize("bs", [1, 3])
def test_gathered_squares(bs):
    model, (ids,) = make(tied=False), texts(95)
    sl = 94//bs
    rows = [(ids[r*sl:(r+1)*sl], ids[r*sl+1:(r+1)*sl+1]) for r in range(bs)]
    want, n, states = {k: 0. for k, _ in model.named_parameters()}, sl//4, [None]*bs
    for at in range(0, n*4, 4):
        total = dict.fromkeys(want, 0.)
        for r, (x, y) in enumerate(rows):
            ps = {k: p.detach().requires_grad_() for k, p in model.named_parameters()}
            out = functional_call(model, ps, (x[None, at:at+4], states[r]))
            loss = -out.logits[0].log_softmax(-1)[range(4), y[at:at+4]].mean()
            for k, g in zip(ps, torch.autograd.grad(loss, list(ps.values())), strict=True): total[k] += g/bs**0.5
            states[r] = cut(out.state)
        for k, g in total.items(): want[k] += g**2/n
    reports = []
    got = DynamicEvaluation(lr=0.1, decay=0.2, every=4).gather(model, ids, bs=bs, on_progress=lambda *r: reports.append(r))
    assert_close(got.stats, want)
    assert (got.lr, got.decay, got.every) == (0.1, 0.2, 4) and reports == [(k + 1, n) for k in range(n)]
    assert math.isfinite(score_ids(model, [ids], dynamic=got)[0].sum())


def snapshot(model):
    return ({k: v.clone() for k, v in model.state_dict().items()}, [m.training for m in model.modules()],
            [p.requires_grad for p in model.parameters()], [p.grad for p in model.parameters()],
            [id(p) for p in model.parameters()], torch.get_rng_state())


class Stop(BaseException): pass


@pytest.mark.parametrize("kw", [{}, dict(dynamic=DynamicEvaluation(lr=0.5), cache=NeuralCache())])
@pytest.mark.parametrize("stop", [False, True])
def test_everything_stays_as_it_was(kw, stop):
    model, docs = make(), texts(30, 25)
    if kw: model[0].rnns.train()
    for p in model.parameters(): p.grad = torch.ones_like(p)
    next(model.parameters()).requires_grad_(False)
    hook = model[1].register_forward_hook(lambda *args: None)
    before, tiny = snapshot(model), torch.full((1,), 1e-30)
    def on_progress(done, total):
        if stop and done > 0.3*total: raise Stop
    if stop:
        with pytest.raises(Stop): score_ids(model, docs, on_progress=on_progress, bs=1, **kw)
    else: score_ids(model, docs, on_progress=on_progress, **kw)
    after = snapshot(model)
    assert_close(after[0], before[0], rtol=0, atol=0)
    assert after[1:3] == before[1:3] and after[4] == before[4] and torch.equal(after[5], before[5])
    assert all(a is b for a, b in zip(after[3], before[3], strict=True)) and all((g == 1).all() for g in after[3])
    assert torch.is_grad_enabled() and torch.backends.cudnn.enabled and (tiny*1e-10).item() != 0
    hook.remove()
    assert not model[1]._forward_hooks


def test_copies_keep_ties_and_adapt_what_is_frozen():
    model, docs = make(), texts(30)
    dynamic = DynamicEvaluation(lr=0.5)
    with adapting(model, dynamic) as own:
        assert own.model[0].encoder.weight is own.model[1].decoder.weight
        assert own.model[0].encoder.weight is not model[0].encoder.weight
        assert not any(m.training for m in own.model.modules())
        assert torch.is_grad_enabled() and not torch.backends.cudnn.enabled
    want = score_ids(model, docs, dynamic=dynamic)
    for m in (copy.deepcopy(model).requires_grad_(False), copy.deepcopy(model).train()):
        close(score_ids(m, docs, dynamic=dynamic), want, 0)
    with torch.inference_mode(): close(score_ids(model, docs, dynamic=dynamic), want, 0)
    with flush_denormals(): close(score_ids(model, docs, dynamic=dynamic), want, 0)


# Gains

def test_repeated_strings_are_learnt():
    "Medians over nine random models and texts."
    config,pairs = dict(emb_sz=60, n_hid=60, n_layers=1, tie_weights=False),[]
    for seed in range(9):
        with seeded(seed): pairs.append((get_language_model(AWD_LSTM, VOCAB, config).eval(), torch.randint(VOCAB, (60,)).repeat(4)))
        for p in pairs[-1][0][0].parameters(): p.data.mul_(10)
    @cache
    def late(**kw): return torch.stack([score_ids(m, [doc], **kw)[0][-60:].mean().neg().exp() for m,doc in pairs]).median().item()
    memory, dynamic = NeuralCache(theta=1., weight=0.5), DynamicEvaluation(lr=1.)
    assert late() > 0.8*VOCAB and late(cache=memory) < 3 and late(dynamic=dynamic) < 4
    assert late(cache=memory, dynamic=dynamic) < min(late(cache=memory), late(dynamic=dynamic))
    # Each argument matters, and points the right way: a short memory has forgotten, small steps learn less.
    assert late(cache=NeuralCache(size=30, theta=1., weight=0.5)) > 4*late(cache=memory)
    assert late(cache=NeuralCache(theta=0., weight=0.5)) > 4*late(cache=memory)
    assert late(cache=NeuralCache(theta=1., weight=0.05)) > 2*late(cache=memory)
    assert late(dynamic=DynamicEvaluation(lr=0.1)) > 2*late(dynamic=dynamic)
    assert late(dynamic=DynamicEvaluation(lr=1., decay=0.5)) > 2*late(dynamic=dynamic)
    assert late(dynamic=DynamicEvaluation(lr=1., every=40)) > 2*late(dynamic=dynamic)


# At the door

def test_bad_documents():
    model, (doc,) = make(), texts(5)
    assert score_ids(model, []) == []
    for docs, error, words in (([doc, doc[:0]], ValueError, "Document 1 is empty"),
                               ([doc, torch.tensor([0, 1, VOCAB + 4])], ValueError,
                                f"Document 1 holds the id {VOCAB + 4}; the model's vocabulary has {VOCAB} tokens"),
                               ([torch.tensor([-3])], ValueError, "id -3"),
                               ([doc, [1, 2]], TypeError, "Document 1 is of type list"),
                               ([doc.float()], TypeError, "tensor of torch.float32"),
                               ([doc > 3], TypeError, "tensor of torch.bool"),
                               ([doc[None]], ValueError, r"shape \(1, 5\)")):
        for kw in ({}, dict(dynamic=DynamicEvaluation())):
            with pytest.raises(error, match=words): score_ids(model, docs, **kw)
    for kw in (dict(bs=0), dict(budget=0)):
        with pytest.raises(ValueError, match="must be a whole number of at least 1"): score_ids(model, [doc], **kw)
    with pytest.raises(ValueError, match="training mode"): score_ids(model.train(), [doc])


@pytest.mark.parametrize("none", [True, False])
def test_cache_needs_states(none):
    model, (doc,) = make(), texts(9)
    class Bare(nn.Module):
        def forward(self, ids, state=None):
            out = model(ids, state)
            return SimpleNamespace(logits=out.logits, state=out.state, **(dict(raw=None) if none else {}))
    bare = Bare().eval()
    close(score_ids(bare, [doc]), [plain(model, doc)])
    with pytest.raises(TypeError, match="SimpleNamespace lacks `raw`"):
        score_ids(bare, [doc], cache=NeuralCache())


@pytest.mark.parametrize("make_it, words", [
    (lambda: NeuralCache(size=0), "size=0"), (lambda: NeuralCache(size=2.5), "size=2.5"),
    (lambda: NeuralCache(theta=-0.1), "theta=-0.1"), (lambda: NeuralCache(theta=math.inf), "theta=inf"),
    (lambda: NeuralCache(theta=math.nan), "theta=nan"), (lambda: NeuralCache(theta="1"), "theta='1'"),
    (lambda: NeuralCache(weight=-0.1), "weight=-0.1"), (lambda: NeuralCache(weight=1), "weight=1 .*below 1"),
    (lambda: NeuralCache(weight=math.nan), "weight=nan"), (lambda: DynamicEvaluation(lr=-1), "lr=-1"),
    (lambda: DynamicEvaluation(lr=math.nan), "lr=nan"), (lambda: DynamicEvaluation(lr=math.inf), "lr=inf"),
    (lambda: DynamicEvaluation(decay=-1), "decay=-1"), (lambda: DynamicEvaluation(decay=1), "decay=1"),
    (lambda: DynamicEvaluation(every=0), "every=0"), (lambda: DynamicEvaluation(eps=math.nan), "eps=nan"),
    (lambda: DynamicEvaluation(every=4).gather(make(), torch.ones(12).long(), bs=3), "ids has 12 tokens.*need 13"),
    (lambda: DynamicEvaluation().gather(make(), torch.ones(99).long(), bs=0), "bs=0"),
    (lambda: score_ids(make(), texts(5), dynamic=DynamicEvaluation(stats={})), "stats of '0.enc.*' are missing")])
def test_bad_settings(make_it, words):
    with pytest.raises(ValueError, match=words): make_it()


@pytest.mark.parametrize("ids, words", [([1, 2], "ids is list"), (torch.ones(2, 50).long(), r"of the shape \(2, 50\)")])
def test_squares_of_no_text(ids, words):
    with pytest.raises(TypeError, match=words): DynamicEvaluation().gather(make(), ids)


def test_perplexity():
    scores = [Score("x " * n, ["x"]*n, -torch.arange(1., n + 1)) for n in (3, 0, 2)]
    assert scores[0].loss == 2. and math.isnan(scores[1].loss) and math.isnan(scores[1].perplexity)
    assert abs(scores[2].perplexity - math.exp(1.5)) < 1e-9
    assert abs(perplexity_of(scores) - math.exp((1+2+3+1+2)/5)) < 1e-9
    assert math.isnan(perplexity_of([])) and Score("x", ["x"], torch.tensor([-1e4])).perplexity == math.inf


def test_without_fastai():
    code = "import sys, rnn_fastai.generate.score; sys.exit(any(m.split('.')[0] == 'fastai' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
