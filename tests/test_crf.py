"A conditional random field against all labellings, one by one: sums, probabilities, the best few, spans, rules."
import copy
import itertools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, vmap
from torch.testing import assert_close

from rnn_fastai.models.crf import CRF

EXACT = dict(rtol=0, atol=1e-6)

# ---- Random cases, and all labellings that are allowed

def make_rules(g, n):
    "Random rules by which a sentence of any length has a labelling."
    allowed = torch.rand(n+1, n+1, generator=g) < 0.7
    allowed[0, 0] = allowed[-1, 0] = allowed[0, -1] = True   # label 0 all along
    return allowed

def make_case(seed):
    "A field, scores of sentences of different lengths with noise after their ends, and where tokens are."
    g = torch.Generator().manual_seed(seed)
    n,sl,bs = (int(torch.randint(a, b, (), generator=g)) for a,b in ((2, 5), (1, 6), (1, 4)))
    crf = CRF(n, make_rules(g, n) if seed % 4 else None).double()
    for p in crf.parameters(): p.data = torch.randn(p.shape, generator=g, dtype=torch.float64)*(1 + seed % 3)
    lengths = torch.randint(1, sl+1, (bs,), generator=g)
    lengths[0] = sl
    real = torch.arange(sl) < lengths[:, None]
    scores = torch.randn(bs, sl, n, generator=g, dtype=torch.float64)*(1 + seed % 5)
    return crf,scores.masked_fill(~real[..., None], 50.),real

def listed(crf, scores):
    "All labellings of one sentence that are allowed, and their scores, by the definition."
    n,rules = scores.size(1),torch.ones(scores.size(1)+1, scores.size(1)+1, dtype=torch.bool)
    if crf.forbidden is not None: rules = ~crf.forbidden
    def steps(w): return itertools.pairwise([n, *w, n])
    ways = [w for w in itertools.product(range(n), repeat=len(scores)) if all(rules[a, b] for a,b in steps(w))]
    def value(w):
        pairs = sum(crf.transitions[a, b].item() for a,b in itertools.pairwise(w))
        return (crf.start[w[0]] + crf.end[w[-1]]).item() + pairs + sum(scores[i, l].item() for i,l in enumerate(w))
    return ways,torch.tensor([value(w) for w in ways], dtype=torch.float64)

def spans_of(way, joins):
    "Runs of labels that go on with each other: label of the first, start, stop."
    starts = [i for i,l in enumerate(way) if i == 0 or not joins[way[i-1], l]]
    return [(way[a], a, b) for a,b in itertools.pairwise([*starts, len(way)])]

@pytest.mark.parametrize('seed', range(200))
def test_all_is_as_all_labellings_say(seed):
    crf,scores,real = make_case(seed)
    with torch.no_grad(): total,probs = crf.log_partition(scores, real),crf.marginals(scores, real)
    labels,best = crf.n_best(scores, real, 6)
    assert_close(probs.sum(-1), torch.ones_like(probs[..., 0]), **EXACT)
    joins = torch.rand(crf.start.shape*2, generator=torch.Generator().manual_seed(seed)) < 0.5
    for b,r in enumerate(real):
        ways,values = listed(crf, scores[b, r])
        share,k = values.softmax(0),int(r.sum())
        assert_close(total[b], values.logsumexp(0), **EXACT)
        told = torch.zeros(k, len(crf.start), dtype=torch.float64)
        for w,p in zip(ways, share, strict=True): told[range(k), w] += p
        assert_close(probs[b, :k], told, **EXACT)
        order = values.argsort(descending=True)[:6]
        assert_close(best[b, :len(order)], share[order], **EXACT)
        assert (best[b, len(order):] == 0).all() and (labels[b, :, k:] == 0).all()
        assert [tuple(w[:k].tolist()) for w in labels[b, :len(order)]] == [ways[i] for i in order]
        assert tuple(crf.decode(scores, real)[b, :k].tolist()) == ways[order[0]]
        assert_close(crf.score(scores, labels[:, 0], real)[b], values[order[0]], **EXACT)
        found = sorted({s for w in ways for s in spans_of(w, joins)})
        want = [sum(p for w,p in zip(ways, share, strict=True) if s in spans_of(w, joins)) for s in found]
        firsts = torch.eye(len(crf.start), dtype=torch.bool)[[s[0] for s in found]]
        got = crf.span_probs(scores, real, [(b, *s[1:]) for s in found], firsts, joins)
        assert_close(got, torch.stack(want), **EXACT)

def test_sums_over_sequences_are_the_marginals():
    "n_best with room for all labellings is the whole distribution."
    for seed in range(20):
        crf,scores,real = make_case(seed)
        labels,best = crf.n_best(scores, real, len(crf.start)**scores.size(1))
        assert_close(best.sum(1), torch.ones(len(real), dtype=torch.float64), **EXACT)
        hot = torch.nn.functional.one_hot(labels, len(crf.start))
        assert_close((hot*best[..., None, None]).sum(1)[real], crf.marginals(scores, real)[real], **EXACT)

# ---- Derivatives

def test_derivatives_of_the_sum_and_of_probabilities():
    for seed in (1, 2, 3):
        crf,scores,real = make_case(seed)
        names = [n for n,_ in crf.named_parameters()]
        def run(method, scores, *params, crf=crf, real=real, names=names):
            class Run(torch.nn.Module):
                def __init__(self): super().__init__(); self.crf = crf
                def forward(self, scores):
                    out = getattr(self.crf, method)(scores, real)
                    return out.masked_fill(~real[..., None], 0.) if method == 'marginals' else out
            return functional_call(Run(), {f'crf.{n}': p for n,p in zip(names, params, strict=True)}, (scores,))
        inputs = scores.clone().requires_grad_(),*(p.detach().clone().requires_grad_() for p in crf.parameters())
        for method in ('log_partition', 'marginals'):
            def f(*args, method=method): return run(method, *args)
            assert gradcheck(f, inputs, fast_mode=True) and gradgradcheck(f, inputs, fast_mode=True)

def test_the_gradient_of_the_sum_is_the_marginals():
    for seed in range(12):
        crf,scores,real = make_case(seed)
        scores.requires_grad_()
        got = torch.autograd.grad(crf.log_partition(scores, real).sum(), scores)[0]
        assert_close(got, crf.marginals(scores, real).masked_fill(~real[..., None], 0.).detach())

def test_transforms_of_torch():
    crf,scores,real = make_case(7)
    for p in crf.parameters(): p.requires_grad_(False)
    each = vmap(grad(lambda s, r: crf.log_partition(s[None], r[None]).sum()))(scores, real)
    assert_close(each, crf.marginals(scores, real).masked_fill(~real[..., None], 0.))

def test_what_is_forbidden_learns_nothing():
    crf,scores,real = make_case(1)
    best = crf.decode(scores, real)
    crf(scores, best, real).backward()
    rows = {'start': crf.forbidden[-1, :-1], 'transitions': crf.forbidden[:-1, :-1], 'end': crf.forbidden[:-1, -1]}
    assert any(m.any() for m in rows.values())
    for name,mask in rows.items(): assert (getattr(crf, name).grad[mask] == 0).all()

# ---- Types and sizes

@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_other_types(dtype):
    "Numbers of fewer bits give what double makes of the same numbers."
    crf,scores,real = make_case(5)
    low,wide = copy.deepcopy(crf).to(dtype),copy.deepcopy(crf).to(dtype).double()
    scores = scores.to(dtype)
    for f in (lambda c, s: c.marginals(s, real), lambda c, s: c.log_partition(s, real), lambda c, s: c.n_best(s, real, 3)[1]):
        got = f(low, scores)
        assert got.dtype == torch.float32
        assert_close(got.double(), f(wide, scores.double()), rtol=1e-6, atol=1e-6)
    assert low.n_best(scores, real, 3)[0].equal(wide.n_best(scores.double(), real, 3)[0])
    with torch.autocast('cpu', torch.bfloat16): assert_close(low.marginals(scores, real), wide.marginals(scores.double(), real).float())

def test_a_long_sentence_of_extreme_scores():
    torch.manual_seed(0)
    allowed = torch.ones(4, 4, dtype=torch.bool)
    allowed[0, 1] = False
    crf,scores,real = CRF(3, allowed),100*torch.randn(1, 2000, 3),torch.ones(1, 2000, dtype=torch.bool)
    scores.requires_grad_()
    crf.log_partition(scores, real).sum().backward()
    probs = crf.marginals(scores, real)
    assert_close(scores.grad, probs.detach()), assert_close(probs.sum(-1), torch.ones(1, 2000))
    assert crf.transitions.grad.isfinite().all() and crf.transitions.grad[0, 1] == 0
    best = crf.decode(scores, real)
    assert crf.log_partition(scores, real) >= crf.score(scores, best, real) - 0.1
    assert not ((best[:, :-1] == 0) & (best[:, 1:] == 1)).any()

def test_a_sentence_that_no_labelling_fits():
    "Numbers all the same."
    crf = CRF(2, [[True, False, True], [True, True, False], [False, True, True]])
    scores,real = torch.randn(1, 1, 2),torch.ones(1, 1, dtype=torch.bool)   # 0 may not begin, 1 may not end
    assert_close(crf.marginals(scores, real).sum(-1), torch.ones(1, 1))
    assert crf.n_best(scores, real, 2)[1].tolist() == [[0., 0.]]
    assert crf(scores, torch.tensor([[0]]), real).isfinite() and crf.decode(scores, real).tolist() in ([[0]], [[1]])

# ---- Rules

def test_a_copy_and_its_files_keep_the_rules(tmp_path):
    "The rules are a setting: files of weights do not hold them, and fit a field with and without."
    crf,scores,real = make_case(3)
    assert set(crf.state_dict()) == {'start', 'end', 'transitions'}
    twin = copy.deepcopy(crf)
    assert twin.forbidden.equal(crf.forbidden) and twin.bfloat16().forbidden.dtype == torch.bool
    free = CRF(len(crf.start)).double()
    free.load_state_dict(crf.state_dict())
    assert (free.log_partition(scores, real) >= crf.log_partition(scores, real)).all()

@pytest.mark.parametrize('allowed', [torch.ones(3, 3, dtype=torch.bool), torch.ones(4, 4), [[True]*4]*3])
def test_rules_of_another_shape(allowed):
    with pytest.raises(ValueError, match='for 3 labels it must be 4 x 4 truths'): CRF(3, allowed)
@pytest.mark.parametrize('n', [0, -1, 1.5])
def test_how_many_are_wanted(n):
    with pytest.raises((TypeError, ValueError), match='n='): CRF(2).n_best(torch.zeros(1, 1, 2), torch.ones(1, 1) > 0, n)
