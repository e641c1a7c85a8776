"Beam search against all texts there are, against a plain search with lists, and what it costs and leaves alone."
import random
from collections import Counter
from itertools import product

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rnn_fastai.generate.beam import Beam, beam_search
from rnn_fastai.models.awd import AWD_LSTM, LMOutput, get_language_model
from rnn_fastai.models.cells import cells
from rnn_fastai.models.recurrent import Recurrent
from rnn_fastai.models.seq2seq import SequenceModel

pytestmark = pytest.mark.usefixtures("one_thread")


PROMPTS = [torch.tensor(p) for p in ([1], [2, 1, 3, 1], [0, 2], [3, 3, 2, 1, 0, 1, 2])]


def language_model(vocab_sz, cell="LSTM", seed=0, scale=6):
    "One whose probabilities differ, in float64."
    torch.manual_seed(seed)
    model = get_language_model(f"AWD_{cell}", vocab_sz, dict(emb_sz=6, n_hid=8, n_layers=2), drop_mult=0.).eval().double()
    for p in model.parameters(): p.data.mul_(scale)
    return model


def logps_of(model, prompt, texts):
    "Log-probabilities of the tokens after a prompt, for texts of one length, each read whole: n,sl."
    texts = torch.tensor(texts)
    with torch.no_grad(): logits = model(torch.cat([torch.tensor(prompt).expand(len(texts), -1), texts], 1)).logits
    return logits.log_softmax(-1)[:, len(prompt)-1:-1].gather(2, texts[..., None])[..., 0]


def texts_of(n, vocab_sz, n_words, how):
    "All texts of n tokens that may come out."
    for ids in product([i for i in range(vocab_sz) if i not in how.forbidden], repeat=n):
        stop = ids[-1] in how.stops
        if any(i in how.stops for i in ids[:-1]) or (stop and n <= how.min_new_tokens) or not (stop or n == n_words): continue
        yield list(ids)


def best_texts(model, prompt, vocab_sz, n_words, how):
    "All texts that may come out, best first, with their scores."
    scored = []
    for n in range(1, n_words+1):
        texts = list(texts_of(n, vocab_sz, n_words, how))
        if texts: scored += zip(texts, (logps_of(model, prompt, texts).sum(1)/n**how.length_penalty).tolist(), strict=True)
    return sorted(scored, key=lambda s: -s[1])[:how.n]


def ngrams_block(text, n): return {text[i] for i in range(n-1, len(text)) if text[i-n+1:i] == text[len(text)-n+1:]}


def plain_search(model, prompt, n_words, how, vocab_sz):
    "The search with lists, to the last step, each hypothesis by the whole text; the texts found, best first, and all scores."
    groups,found,known = [[([], 0.)] for _ in range(how.groups)],{},{}
    def after(ids):
        if tuple(ids) not in known:
            with torch.no_grad(): known[tuple(ids)] = model(torch.tensor([prompt + ids])).logits[0, -1].log_softmax(-1).tolist()
        return known[tuple(ids)]
    for t in range(1, n_words+1):
        taken = Counter()
        for g,beams in enumerate(groups):
            options = []
            for ids,total in beams:
                out = {*how.forbidden, *(how.stops if t <= how.min_new_tokens else ())}
                may = [i for i in range(vocab_sz) if i not in out]
                blocked = ngrams_block(prompt + ids, how.no_repeat_ngram) if how.no_repeat_ngram else ()
                for i in [i for i in may if i not in blocked] or may:
                    total_i = total + after(ids)[i]
                    options.append((total_i - how.diversity*taken[i], total_i, ids + [i]))
            chosen = sorted(options, key=lambda o: -o[0])[:how.width//how.groups]
            groups[g] = []
            for _,total,ids in chosen:
                if ids[-1] in how.stops or t == n_words: found[tuple(ids)] = total/len(ids)**how.length_penalty
                else: groups[g].append((ids, total))
            taken.update(ids[-1] for *_,ids in chosen)
    return sorted(found.items(), key=lambda f: -f[1])[:how.n]


def check_same(found, want):
    assert [h.ids for h in found] == [list(t) for t,_ in want]
    for h,(_,s) in zip(found, want, strict=True): assert h.score == pytest.approx(s, rel=1e-9)


@pytest.mark.parametrize("power", [0, 0.7, 1, 2])
@pytest.mark.parametrize("rules", [dict(), dict(stops=(0,)), dict(stops=(0, 3), min_new_tokens=2), dict(forbidden=(2,)),
                                   dict(stops=(1,), forbidden=(3,), min_new_tokens=1), dict(stops=(0,), min_new_tokens=4)],
                         ids=lambda r: ",".join(r) or "plain")
def test_finds_the_best_of_all_texts(power, rules):
    model,how = language_model(4),Beam(4**3, 4**3, power, **rules)
    for prompt,found in zip(PROMPTS, beam_search(model, PROMPTS, 4, how), strict=True):
        want = best_texts(model, prompt.tolist(), 4, 4, how)
        check_same(found, want)
        for h in found:
            assert_close(h.logps, logps_of(model, prompt.tolist(), [h.ids])[0], rtol=1e-9, atol=1e-9)
            assert h.ended == ("stop token" if h.ids[-1] in how.stops else "length")
        first, = beam_search(model, [prompt], 4, Beam(4**3, 1, power, **rules))   # and stops as soon as it is sure
        check_same(first, want[:1])


@pytest.mark.parametrize("cell", list(cells))
def test_every_cell(cell):
    model,how = language_model(4, cell, seed=3),Beam(16, 5, 0.7, stops=(0,))
    together = beam_search(model, PROMPTS, 3, how, part=2)
    for prompt,found in zip(PROMPTS, together, strict=True):
        check_same(found, best_texts(model, prompt.tolist(), 4, 3, how))
        alone, = beam_search(model, [prompt], 3, how)
        assert [h.ids for h in alone] == [h.ids for h in found]


def random_options(rng, vocab_sz):
    groups = rng.choice([1, 1, 2, 3])
    width = groups*rng.choice([1, 2, 3])
    ids = rng.sample(range(vocab_sz), 4)
    return Beam(width, rng.randint(1, width), rng.choice([0, 0.7, 1, 2]), groups, rng.choice([0.4, 2.]) if groups > 1 else 0.,
                forbidden=tuple(ids[:rng.randint(0, 2)]), stops=tuple(ids[2:2+rng.randint(0, 2)]), min_new_tokens=rng.randint(0, 3),
                no_repeat_ngram=rng.choice([0, 0, 1, 2, 3]))


@pytest.mark.parametrize("seed", range(40))
def test_as_a_plain_search_with_lists(seed):
    rng = random.Random(seed)
    vocab_sz,n_words = rng.randint(4, 9),rng.randint(3, 7)
    model = language_model(vocab_sz, rng.choice(list(cells)), seed, rng.choice([3, 6]))
    how = random_options(rng, vocab_sz)
    for prompt,found in zip(PROMPTS, beam_search(model, PROMPTS, n_words, how, part=3), strict=True):
        check_same(found, plain_search(model, prompt.tolist(), n_words, how, vocab_sz))


def test_options_above_matter():
    "Otherwise a search that ignores one could pass."
    model = language_model(9, seed=5)
    base = dict(width=6, n=6, stops=(2, 3))
    def found(**kwargs): return [[h.ids for h in f] for f in beam_search(model, PROMPTS, 6, Beam(**{**base, **kwargs}))]
    seen = [found()] + [found(**k) for k in (dict(width=9), dict(n=2), dict(length_penalty=3), dict(groups=3, diversity=1.),
                        dict(groups=2, diversity=1.), dict(groups=2, diversity=0.2), dict(forbidden=(0, 1)), dict(stops=()),
                        dict(min_new_tokens=4), dict(no_repeat_ngram=1), dict(no_repeat_ngram=2))]
    assert all(a != b for i,a in enumerate(seen) for b in seen[:i])


@pytest.mark.parametrize("rules", [dict(), dict(stops=(4, 5)), dict(stops=(4,), forbidden=(1,), min_new_tokens=3)])
def test_a_beam_of_one_is_greedy(rules):
    model,how = language_model(9, seed=1),Beam(1, **rules)
    for prompt,found in zip(PROMPTS, beam_search(model, PROMPTS, 12, how), strict=True):
        ids = []
        while len(ids) < 12 and not (ids and ids[-1] in how.stops):
            with torch.no_grad(): logits = model(torch.tensor([prompt.tolist() + ids])).logits[0, -1]
            logits[list(how.forbidden + (how.stops if len(ids) < how.min_new_tokens else ()))] = -torch.inf
            ids.append(logits.argmax().item())
        assert [h.ids for h in found] == [ids]


def test_sorted_and_distinct_and_wider_is_no_worse():
    model = language_model(5, seed=2)
    for power in (0, 1):
        best = [beam_search(model, PROMPTS, 3, Beam(w, 1, power, stops=(0,))) for w in (25, 30, 60, 125)]
        scores = [[f[0].score for f in found] for found in best]
        assert all(b >= a for less,more in zip(scores, scores[1:], strict=False) for a,b in zip(less, more, strict=True))
    for found in beam_search(language_model(9), PROMPTS, 10, Beam(12, 12, groups=4, diversity=0.5, stops=(0,))):
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
        assert len({tuple(h.ids) for h in found}) == len(found)


def test_width_beyond_all_there_is():
    model = language_model(3)
    for found in beam_search(model, PROMPTS[:1], 2, Beam(100, 100)): assert len(found) == 9
    for found in beam_search(model, PROMPTS[:1], 3, Beam(100, 100, stops=(0,))): assert len(found) == 1 + 2 + 12


def test_groups():
    model = language_model(7, seed=4)
    for found in beam_search(model, PROMPTS, 5, Beam(6, 6, groups=6, diversity=1e6)):
        assert len({h.ids[0] for h in found}) == 6
    one = beam_search(model, PROMPTS, 5, Beam(2, 2))
    for a,b in zip(one, beam_search(model, PROMPTS, 5, Beam(6, 6, groups=3, diversity=0.5)), strict=True):
        assert {tuple(h.ids) for h in a} <= {tuple(h.ids) for h in b}   # the first group knows of no other
    chosen = beam_search(model, PROMPTS, 1, Beam(6, 6, groups=3, diversity=1e-9))   # all groups choose the same
    assert all(len(f) == 2 for f in chosen)


class Counted(nn.Module):
    "A model that tells how many rows it was given, with `logits` for a vocabulary of its own."
    def __init__(self, logits): super().__init__(); self.logits,self.rows = logits,[]
    def read(self, ids, state=None, lengths=None): return torch.zeros(1, len(ids), 1)
    def forward(self, ids, state=None):
        self.rows.append(len(ids))
        return LMOutput(self.logits[ids], None, None, torch.zeros(1, len(ids), 1))


def test_stops_when_nothing_better_can_come():
    logits = torch.tensor([[0.9, 0.1, 0.], [0.1, 0.45, 0.45], [0.1, 0.45, 0.45]]).log()
    model,reports = Counted(logits),[]
    def report(done, total): reports.append((done, total))
    beam = Beam(2, length_penalty=0, stops=(0,))
    (found,) = beam_search(model, [torch.tensor([0])], 1000, beam, on_progress=report)
    assert found[0].ids == [0] and len(model.rows) == 1 and reports == [(1000, 1000)]
    model = Counted(logits)
    pair = beam_search(model, [torch.tensor([0]), torch.tensor([1])], 30, beam, on_progress=report)
    assert [f[0].ids for f in pair][0] == [0]
    assert model.rows[:3] == [2, 2, 2] and len(model.rows) <= 30
    assert reports[1:] == sorted(reports[1:]) and reports[-1] == (60, 60) and {t for _,t in reports[1:]} == {60}


def test_equal_scores_have_an_order():
    model = Counted(torch.zeros(6, 6, dtype=torch.float64))
    (found,) = beam_search(model, [torch.tensor([3])], 2, Beam(36, 36))
    assert [h.ids for h in found] == [[i, j] for i in range(6) for j in range(6)]
    assert len({h.score for h in found}) == 1


def test_tokens_of_no_probability_are_never_handed_out():
    logits = torch.full((3, 3), -torch.inf)
    logits[:, 1] = 0.
    (found,) = beam_search(Counted(logits), [torch.tensor([0])], 4, Beam(3, 3))
    assert [h.ids for h in found] == [[1]*4] and found[0].score == 0
    assert beam_search(Counted(logits), [torch.tensor([0])], 4, Beam(3, 3, forbidden=(1,))) == [[]]


def test_half_precision_is_summed_in_full():
    logits = torch.randn(50, 50, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    (found,) = beam_search(Counted(logits), [torch.tensor([0])], 200, Beam(3, 3))
    for h in found:
        want = logits.double().log_softmax(-1)[torch.tensor([0, *h.ids[:-1]]), torch.tensor(h.ids)]
        assert h.logps.dtype == torch.float32
        assert_close(h.logps.double(), want, rtol=1e-5, atol=1e-6)
        assert_close(h.score, want.mean().item(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("cell", ["GRU", "LSTM", "minGRU"])
def test_sequence_models(cell):
    torch.manual_seed(0)
    model = SequenceModel(nn.Embedding(4, 5), Recurrent(cell, 5, 6, batch_first=True), 4, stream=True).double().eval()
    for p in model.parameters(): p.data.mul_(4)
    how = Beam(16, 4, stops=(0,))
    for prompt,found in zip(PROMPTS, beam_search(model, PROMPTS, 3, how), strict=True):
        check_same(found, best_texts(model, prompt.tolist(), 4, 3, how))


def test_model_and_prompts_stay_as_they_are():
    model = get_language_model(AWD_LSTM, 9, dict(emb_sz=6, n_hid=8, n_layers=2)).eval()
    before,prompts = {k: v.clone() for k,v in model.state_dict().items()},[p.clone() for p in PROMPTS]
    found = beam_search(model, PROMPTS, 5, Beam(4, 2))
    assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert all(torch.equal(a, b) for a,b in zip(prompts, PROMPTS, strict=True))
    assert not any(h.logps.requires_grad for f in found for h in f)
    assert all(h.logps.untyped_storage().nbytes() == 5*4 for f in found for h in f)   # and holds no more than is its own
