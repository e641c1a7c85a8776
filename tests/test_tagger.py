"Taggers: the CRF against all labellings, entities against the shared task's rules, sentences in all kinds of company."
import itertools
import random
import re
import warnings
from functools import cache, partial

import fastai.text.core
import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.text import all as ft
from torch import nn
from torch.testing import assert_close

from rnn_fastai import all as rf
from rnn_fastai.data.schemes import convert_tags, entities, entity_f1, tag_place
from rnn_fastai.data.tags import WordChars
from rnn_fastai.learner.tagger import CRFLoss, tagger_plan, train_tagger
from rnn_fastai.models.tagger import (
    CRF,
    CharCNN,
    CharEncoder,
    Tagger,
    WordEncoder,
    WordShape,
    cell_tagger,
    letter_kinds,
)
from rnn_fastai.ship.bundle import load_learner
from rnn_fastai.ship.onnx import _tag_facts
from rnn_fastai.ship.pick import best_path

matplotlib.use('Agg')
CLOSE = dict(rtol=0, atol=1e-5)

@pytest.fixture(autouse=True)
def one_process(monkeypatch): monkeypatch.setattr(fastai.text.core, 'parallelable', lambda *a, **k: False)

# ---- The field against every labelling

def crf_case(seed, n=3, sl=4, bs=5):
    g = torch.Generator().manual_seed(seed)
    crf = CRF(n).double()
    for p in crf.parameters(): p.data = torch.randn(p.shape, generator=g, dtype=torch.float64)
    lengths = torch.randint(1, sl+1, (bs,), generator=g)
    real = torch.arange(sl) < lengths[:, None]
    scores = torch.randn(bs, sl, n, generator=g, dtype=torch.float64).requires_grad_()
    labels = torch.randint(n, (bs, sl), generator=g).masked_fill(~real, rf.TAG_IGNORE)
    return crf,scores,labels,real

def value(crf, s, way):
    pairs = sum(crf.transitions[a, b] for a,b in itertools.pairwise(way))
    return crf.start[way[0]] + crf.end[way[-1]] + sum(s[i, l] for i,l in enumerate(way)) + pairs

def all_ways(crf, s): return {w: value(crf, s, w) for w in itertools.product(range(len(crf.start)), repeat=len(s))}

@pytest.mark.parametrize('seed', range(4))
def test_loss_gradient_and_best_labelling(seed):
    crf,scores,labels,real = crf_case(seed)
    losses,best = [],[]
    for s,y,r in zip(scores, labels, real, strict=True):
        ways = all_ways(crf, s[r])
        losses.append(torch.stack(list(ways.values())).logsumexp(0) - ways[tuple(y[r].tolist())])
        best.append(max(ways, key=ways.get))
    leaves = [scores, *crf.parameters()]
    want = torch.autograd.grad(sum(losses)/real.sum(), leaves)
    loss = crf(scores, labels, real)
    assert_close(loss, sum(losses)/real.sum())
    assert_close(torch.autograd.grad(loss, leaves), want)
    found = crf.decode(scores, real)
    assert [tuple(f[r].tolist()) for f,r in zip(found, real, strict=True)] == best

def test_padding_and_mates_have_no_say():
    crf,scores,labels,real = crf_case(9)
    crf,scores = crf.float(),scores.detach().float()
    wide = torch.cat([scores, torch.full((5, 3, 3), 99.)], 1)
    more = torch.cat([real, torch.zeros(5, 3, dtype=torch.bool)], 1)
    filled = torch.cat([labels, torch.full((5, 3), rf.TAG_IGNORE)], 1)
    assert_close(crf(wide, filled, more), crf(scores, labels, real))
    assert crf.decode(wide, more)[:, :4].tolist() == crf.decode(scores, real).tolist()
    alone = [crf(s[None, :int(r.sum())], y[None, :int(r.sum())], r[None, :int(r.sum())])*r.sum()
             for s,y,r in zip(scores, labels, real, strict=True)]
    assert_close(sum(alone)/real.sum(), crf(scores, labels, real))

# ---- Entities by the rules of the shared task

def task_entities(tags):
    "The shared task's rules (conlleval), pair by pair of neighbours."
    found,start,before,kind_before = set(),None,'O',''
    for i,tag in enumerate([*tags, 'O']):
        place,kind = tag[0],tag.partition('-')[2]
        ends = (before in 'ES' or (before in 'BI' and place in 'BSO') or (before != 'O' and kind_before != kind))
        starts = (place in 'BS' or (before in 'ESO' and place in 'EI') or (place != 'O' and kind_before != kind))
        if start is not None and ends: found,start = found | {(kind_before, start, i)},None
        if starts: start = i
        before,kind_before = place,kind
    return found

def test_entities_follow_the_shared_task():
    rng = np.random.default_rng(0)
    names = ['O', *(f'{p}-{k}' for p in 'BIES' for k in ('PER', 'LOC-X'))]
    for _ in range(3000):
        tags = rng.choice(names, rng.integers(1, 9)).tolist()
        assert set(rf.entities(tags)) == task_entities(tags), tags

SCHEMES = {'IO': 'IO', 'IOB1': 'IBO', 'IOB2': 'BIO', 'IOE1': 'IEO', 'IOE2': 'EIO', 'IOBES': 'IOBES', 'BILOU': 'BILOU',
           'BILOUE': 'BILOUE', 'BMES': 'BMESO', 'BMEWO': 'BMEWO'}

def scheme_entities(tags):
    "By the schemes' definition: a token goes on with the one before where that has not ended and this does not begin."
    read = [(None, '') if t == 'O' else (t[0], t[2:]) for t in tags]
    goes_on = [k == l and p in tuple('BIM') and q in tuple('IMEL') for (p,k),(q,l) in itertools.pairwise(read)]
    starts = [i for i,(p,_) in enumerate(read) if p and not (i and goes_on[i-1])]
    ends = [i+1 for i,(p,_) in enumerate(read) if p and not (i < len(read)-1 and goes_on[i])]
    return [(read[i][1], i, j) for i,j in zip(starts, ends, strict=True)]

def draw_tags(rng, places, n): return [p if p == 'O' else f'{p}-{rng.choice(["PER", "LOC"])}' for p in rng.choices(places, k=n)]

@pytest.mark.parametrize('scheme', SCHEMES)
def test_entities_of_every_scheme(scheme):
    rng = random.Random(0)
    for _ in range(3000):
        tags = draw_tags(rng, SCHEMES[scheme], rng.randint(1, 9))
        assert entities(tags) == scheme_entities(tags), tags
        assert {*entities(tags)} == task_entities([t[0].translate(str.maketrans('LUMW', 'ESIS')) + t[1:] for t in tags])

def write_tags(names, n, chars):
    "Tags of entities (kind, start, end) by a scheme: letters of the first, a middle, the last and the only token."
    tags = ['O']*n
    for kind,a,b in names:
        places = chars[3] if b - a == 1 else chars[0] + chars[1]*(b-a-2) + chars[2]
        tags[a:b] = [f'{p}-{kind}' for p in places]
    return tags

@pytest.mark.parametrize('chars', ['BIIB', 'BIES', 'BILU', 'BMES', 'BMEW', 'IIEE'])
def test_entities_come_back_as_they_were_tagged(chars):
    "Names side by side too; B-I-I-B is IOB2, I-I-E-E is IOE2."
    rng = random.Random(0)
    for _ in range(300):
        names,at = [],0
        while at < 12:
            n = rng.randint(1, 4)
            if rng.random() < 0.7: names.append((rng.choice(['PER', 'LOC-X']), at, at+n))
            at += n
        assert entities(write_tags(names, at, chars)) == names

def test_f1_is_the_same_in_every_scheme():
    def tags(chars): return write_tags([('PER', 0, 2), ('PER', 2, 3), ('LOC', 4, 7)], 8, chars)
    def guess(chars): return write_tags([('PER', 0, 2), ('PER', 2, 3), ('LOC', 4, 6)], 8, chars)
    for chars in ('BIIB', 'BIES', 'BILU', 'BMEW'):
        assert entity_f1([guess(chars)], [tags(chars)]) == pytest.approx(dict(precision=2/3, recall=2/3, f1=2/3))

@pytest.mark.parametrize('tag', ['X-PER', 'PER-B', 'PER-I', 'b-PER', 'BEG-PER', 'PRP-S', '-LRB-', 'B_PER', 'B:PER', 'B/PER', 'B.PER', '-'])
def test_tags_of_no_scheme_are_refused(tag, tmp_path):
    for go in (lambda: tag_place(tag), lambda: entities(['O', tag]), lambda: entity_f1([['O']], [[tag]])):
        with pytest.raises(ValueError, match=f'Tag {re.escape(repr(tag))} does not say where.*B-PER'): go()
    df = make_frame().assign(tags=[['O']*(len(t)-1) + [tag] for t in make_frame().tags])
    assert [m.name for m in make(loaders(df), tmp_path).metrics] == ['accuracy']
    with pytest.raises(ValueError, match='does not say where'): make(loaders(df), tmp_path, metrics=[rf.EntityF1()])
    with pytest.raises(ValueError, match='does not say where'): make(loaders(df), tmp_path, metrics=rf.EntityF1())

@pytest.mark.parametrize('tag', [3, np.nan, None])
def test_tags_that_are_no_text(tag):
    for go in (lambda: tag_place(tag), lambda: entities(['O', tag]), lambda: entity_f1([['O']], [[tag]])):
        with pytest.raises(TypeError, match=f"Tag {tag!r} is of the type {type(tag).__name__}; tags are texts such as 'B-PER'"): go()

@pytest.mark.parametrize('flat', ['O', 'B-PER', 'B-PER I-PER O'])
def test_a_text_is_no_list_of_tags(flat):
    "One list of tags where a list for each sentence is wanted, and sentences that are not split."
    for go in (lambda: entities(flat), lambda: entity_f1([flat, flat], [flat, flat]), lambda: entity_f1([['O']*len(flat)], [flat])):
        with pytest.raises(TypeError, match=f"The tags '{flat}' are one text; give a list"): go()

def test_unequal_numbers_of_sentences():
    for a,b in ((1, 2), (2, 1), (0, 1)):
        with pytest.raises(ValueError, match=f'There are {a} guessed sentences and {b} right ones'):
            entity_f1([['O']]*a, iter([['O']]*b))

@pytest.mark.parametrize('tag', ['O', 'NOUN', 'X', '_', '[CLS]', 'PRP$', '.', ',', '·', '日本'])
def test_tags_that_name_nothing(tag): assert entities([tag, 'B-PER', tag]) == [('PER', 1, 2)]

@pytest.mark.parametrize('tags,named', [('I-PER O', True), ('U-PER O', True), ('L-PER', True), ('E-X NOUN', True), ('B-PER', True),
                                        ('M-PER O', True), ('W-PER O', True), ('NOUN VERB', False), ('S O', False), ('B I O', False),
                                        ('PRP-S NOUN', False), ('S-PER X-PER', False), ('O X', False)])
def test_f1_is_measured_where_tags_name_entities(tags, named, tmp_path):
    tags = [*tags.split(), 'O']
    df = make_frame().assign(tags=[[tags[(i+j) % len(tags)] for j in range(len(t))] for i,t in enumerate(make_frame().tags)])
    learn = make(loaders(df), tmp_path)
    assert [m.name for m in learn.metrics] == ['accuracy', *['f1']*named]
    assert len(learn.validate()) == 2 + named

# ---- What is said of a tag's probability

def test_probabilities_of_a_crf_are_its_own(tmp_path):
    "A softmax of the scores would find one tag everywhere, which the field never answers."
    learn = make(path=tmp_path, crf=True)
    learn.model.crf.transitions.data = -50*torch.eye(len(learn.dls.train_ds.tags))   # no tag follows itself
    learn.model[1].bias.data[0] = 9.                                        # and one is the likeliest of each token
    probs,y,best = learn.get_preds(with_decoded=True)
    real = y != rf.TAG_IGNORE
    assert (best[real] != 0).any() and (probs.argmax(-1)[real] != 0).any()
    assert_close(probs.sum(-1), real.float())
    sents = learn.dls.valid_ds.sents
    for s,tags,p,r in zip(sents, learn.tag(sents, with_probs=True), probs, real, strict=True):
        names = learn.dls.train_ds.tags
        assert [w for w,*_ in tags] == s and [(w, t) for w,t,_ in tags] == learn.predict(s)
        assert_close(torch.tensor([x for *_,x in tags]), p[r][range(len(s)), [names.index(t) for _,t,_ in tags]], **CLOSE)

@pytest.mark.parametrize('tok', [str.lower, rf.TextTokenizer], ids=['words', 'parts'])
@pytest.mark.parametrize('crf', [False, True])
def test_all_probabilities_agree(crf, tok, tmp_path):
    "Summed over all taggings: one, the probability of each tag, and that of each entity. Words that are cut, too."
    if crf and tok is not str.lower: return
    names,rng = ['B-A', 'I-A', 'O'],random.Random(0)
    tags = [convert_tags(rng.choices(names, k=rng.randint(1, 4)), 'IOB2') for _ in range(30)]
    df = pd.DataFrame(dict(tokens=[[rng.choice(["can't", 'Go', 'on']) for _ in t] for t in tags], tags=tags))
    learn = make(loaders(df, tok=tok, chars=False), tmp_path, crf=crf)
    learn.model.apply(lambda m: [p.data.mul_(3) for p in m.parameters(recurse=False)])
    for s in (["can't"], ["Go", "can't", "on", "can't"]):
        every,sure = learn.predict(s, n_best=3**len(s)),learn.predict(s, with_probs=True)
        assert sum(t.prob for t in every) == pytest.approx(1, abs=1e-5)
        assert [t.prob for t in every] == sorted((t.prob for t in every), reverse=True)
        assert every[0].words == learn.predict(s) == [x[:2] for x in sure] == learn.predict(s, n_best=1)[0].words
        if crf: assert all(convert_tags([t for _,t in x.words], 'IOB2') == [t for _,t in x.words] for x in every)
        for k,(_,tag,p) in enumerate(sure): assert p == pytest.approx(sum(x.prob for x in every if x.words[k][1] == tag), abs=1e-5)
        for e in learn.entities([s])[0]:
            assert e.text == ' '.join(s[e.start:e.end])
            hold = [x.prob for x in every if (e.kind, e.start, e.end) in entities([t for _,t in x.words])]
            assert e.confidence == pytest.approx(sum(hold), abs=1e-5)
        both = learn.predict(s, n_best=2, with_probs=True)
        assert [x[:2] for x in both[1].words] == every[1].words and both[0].words == sure

def test_probabilities_do_not_depend_on_company(tmp_path):
    learn = make(loaders(sentences(words=NAMES)), tmp_path, crf=True)
    sents = sentences(20, NAMES, seed=5).tokens.tolist()
    for ask in (partial(learn.tag, with_probs=True), learn.entities, partial(learn.tag, n_best=2)):
        for one,many in zip((ask([s])[0] for s in sents), ask(sents, bs=8), strict=True):
            assert len(one) == len(many)
            for a,b in zip(one, many, strict=True):
                assert a[:-1] == b[:-1] and a[-1] == pytest.approx(b[-1], abs=1e-5)
    assert learn.entities([]) == learn.tag([], n_best=2) == []

def test_what_the_scheme_forbids_is_no_answer(tmp_path):
    "Untrained and told to answer `I-PER` everywhere, in training and in probabilities."
    learn = make(loaders(sentences(words=NAMES)), tmp_path, crf=True)
    names = learn.dls.train_ds.tags
    learn.model[1].bias.data[names.index('I-PER')] = 30.
    for s in learn.tag(learn.dls.valid_ds.sents):
        tags = [t for _,t in s]
        assert tags[1:] == ['I-PER']*(len(tags)-1) and convert_tags(tags, 'IOB2') == tags
    p = learn.get_preds()[0]
    assert (p[:, 0, names.index('I-PER')] < 1e-6).all() and np.isfinite(learn.validate()[0])
    free = make(loaders(sentences(words=NAMES)), tmp_path, crf=True, scheme=None)
    assert free.model.crf.forbidden is None
    free.model[1].bias.data[names.index('I-PER')] = 30.
    assert free.predict(['Ann'])[0][1] == 'I-PER'

@pytest.mark.parametrize('what', ['Training', 'Validation'])
def test_a_broken_scheme_names_row_and_token(what, tmp_path):
    df = sentences(words=NAMES).reset_index(drop=True)
    row = next(i for i,r in df.iterrows() if len(r.tags) > 3 and r.held == (what == 'Validation'))
    df.at[row, 'tags'] = ['O', 'O', 'I-PER', *df.tags[row][3:]]
    dls = rf.TagDataLoaders.from_df(df, valid_col='held', path=tmp_path, device='cpu')
    word = re.escape(repr(df.tokens[row][2]))
    with pytest.raises(ValueError, match=rf"{what} sentence of row {row}, token 2 \({word}\): The tag 'I-PER' cannot come after 'O' in the scheme IOB2.*convert_tags.*scheme=None"):
        rf.tagger_learner(dls, n_hid=4, emb_sz=4, crf=True)
    rf.tagger_learner(dls, n_hid=4, emb_sz=4), rf.tagger_learner(dls, n_hid=4, emb_sz=4, crf=True, scheme=None)
    mended = df.assign(tags=[convert_tags(t, 'IOB2') for t in df.tags])
    rf.tagger_learner(rf.TagDataLoaders.from_df(mended, valid_col='held', path=tmp_path), n_hid=4, emb_sz=4, crf=True)

@pytest.mark.parametrize('scheme,match', [('IOB3', "Unknown scheme 'IOB3'. Did you mean"), ('BIOES', "cannot (come after|end).*in the scheme BIOES"),
                                          ('IOE2', "The tag 'B-(LOC|PER)' is not of the scheme IOE2")])
def test_another_scheme_is_refused(scheme, match, tmp_path):
    with pytest.raises(ValueError, match=match): make(loaders(sentences(words=NAMES)), tmp_path, crf=True, scheme=scheme)

def test_tags_unseen_in_training(tmp_path):
    "Of validation rows, and of a test loader."
    learn,df = make(loaders(sentences(words=NAMES)), tmp_path, crf=True),sentences(9, NAMES, seed=3)
    df = df.assign(tags=[['B-ORG', *t[1:]] for t in df.tags])
    with pytest.raises(ValueError, match="Tag 'B-ORG' of row 0 is not among those of the training rows.*Add training rows"):
        learn.dls.test_dl(df, with_labels=True)
    learn.tag(df)   # reads no tags

@pytest.mark.parametrize('n', [0, -2, 1.5, '3'])
def test_how_many_taggings(n, tmp_path):
    with pytest.raises((TypeError, ValueError), match='n_best='): make(path=tmp_path).predict(['cat'], n_best=n)

# ---- Letters

def test_letters_of_words():
    chars = WordChars([['aba', 'ß', 'aba'], ['a'*50]], ['xxpad', 'xxunk', 'a', 'b'], max_len=8)
    assert chars.which.tolist() == [0, 1, 0, 2]
    assert chars.rows.tolist() == [[2, 3, 2, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0], [2]*8]

def plain_filters(net, word):
    "What a `CharCNN` makes of one word without padding, by loops."
    half,w,b = net.conv.kernel_size[0]//2,net.conv.weight,net.conv.bias
    best = [-np.inf]*net.n_out
    for i in range(len(word)):
        for f in range(net.n_out):
            seen = [(j, i+j-half) for j in range(2*half+1) if 0 <= i+j-half < len(word)]
            best[f] = max(best[f], b[f].item() + sum((w[f, :, j]*net.emb.weight[word[at]]).sum().item() for j,at in seen))
    return torch.tensor(best, dtype=torch.float64).tanh()

@pytest.mark.parametrize('width', [1, 3, 5, 9])
def test_filters_by_loops(width):   # the widest sees more than the longest word
    torch.manual_seed(width)
    net = CharCNN(12, 4, 5, width).double()
    words = [torch.randint(1, 12, (n,)).tolist() for n in (1, 2, 3, 6, 1, 4)]
    for longest in (6, 7, 20):
        rows = torch.tensor([w + [0]*(longest-len(w)) for w in words])
        assert_close(net(rows), torch.stack([plain_filters(net, w) for w in words]))

def test_gradients_of_filters_do_not_know_of_padding():
    net = CharCNN(9, 3, 4, 3).double()
    rows = torch.tensor([[2, 5, 3, 0], [7, 0, 0, 0], [0, 0, 0, 0]])
    def grads(rows):
        net.zero_grad()
        (net(rows)*torch.arange(4)).sum().backward()
        return [p.grad.clone() for p in net.parameters()]
    short,long = grads(rows),grads(torch.nn.functional.pad(rows, (0, 5)))
    assert_close(short, long)
    assert_close(short, grads(rows[:2])) and not short[0][0].any()   # a word without letters teaches nothing
    assert all(g.isfinite().all() for g in short)

SHAPES = {   # capital first, capital later, small, digit, hyphen, other, many letters
    'Seoul': '1010001', 'seoul': '0010001', 'NATO': '1100001', 'iPhone': '0110001', 'A': '1000000', 'a': '0010000',
    '4th': '0011001', '1984': '0001001', '3.5': '0001011', 'on-line': '0010101', '—': '0000100', '$': '0000010',
    'U.S.': '1100011', 'Élan': '1010001', 'ß': '0010000', '日本': '0010001', '٣': '0001000', '': '0000000'}

def test_shapes_of_words():
    names = ['xxpad', 'xxunk', *sorted({c for w in SHAPES for c in w})]
    shape = WordShape(letter_kinds(names), 3)
    rows = torch.from_numpy(WordChars([list(SHAPES)], names, max_len=12).rows)
    assert [f'{i:07b}'[::-1] for i in shape.shapes(rows).tolist()] == list(SHAPES.values())
    assert shape.shapes(torch.tensor([[1]])).item() == 2**5   # a rare letter is of no kind that matters
    assert_close(shape(rows)[0], shape(torch.nn.functional.pad(rows, (0, 9)))[0])

# ---- Company

CELLS = [(c, n) for c in ('LSTM', 'GRU', 'RNN', 'minGRU', 'QRNN') for n in (1, 2)]
SPELLING = {'chars': lambda cell: (CharEncoder(9, 3, 4, cell), None), 'ids': lambda cell: (None, None),
            'filters': lambda cell: (CharCNN(9, 3, 4), WordShape([0, 5, 1, 1, 2, 2, 3, 4, 2])),
            'shapes': lambda cell: (None, WordShape([0, 5, 1, 1, 2, 2, 3, 4, 2]))}
@pytest.mark.parametrize('spelling', SPELLING)
@pytest.mark.parametrize('cell,layers', CELLS)
def test_company_does_not_matter(cell, layers, spelling):
    torch.manual_seed(0)
    chars,shape = SPELLING[spelling](cell)
    with_letters = spelling != 'ids'
    net = Tagger(WordEncoder(nn.Embedding(30, 5), chars, cell, 6, layers, shape=shape), 4).eval()
    for p in net.parameters(): p.data *= 2
    lens = [7, 3, 1, 5]
    ids = torch.randint(2, 30, (4, 7)).masked_fill(torch.arange(7) >= torch.tensor(lens)[:, None], 1)
    words = torch.randint(1, 9, (12, 5)).masked_fill(torch.arange(5) >= torch.randint(1, 6, (12, 1)), 0)
    which = torch.randint(12, (4, 7))
    def run(rows, sl): return net(ids[rows, :sl], *((words, which[rows, :sl]) if with_letters else ()))
    both,order = run([0, 1, 2, 3], 7),[2, 0, 3]
    for i,n in enumerate(lens): assert_close(run([i], n)[0], both[i, :n], **CLOSE)
    assert_close(run(order, 7)[1], both[0], **CLOSE)

# ---- The learner

def make_frame(n=60, seed=0):
    rng = np.random.default_rng(seed)
    kinds = dict(DET=['the', 'A', 'this'], NOUN=['cat', 'dogs', 'sun'], VERB=['runs', 'sees', 'ate'])
    tags = [['DET', 'NOUN', 'VERB', *['DET', 'NOUN']*rng.integers(0, 4)][:rng.integers(1, 9)] for _ in range(n)]
    return pd.DataFrame(dict(tokens=[[str(rng.choice(kinds[t])) for t in ts] for ts in tags], tags=tags))

def loaders(df=None, **args):
    base = dict(bs=8, seed=1, device='cpu', tok=str.lower, chars=True)
    return rf.TagDataLoaders.from_df(make_frame() if df is None else df, **{**base, **args})

def make(dls=None, path='.', **args):
    torch.manual_seed(0)
    small = dict(emb_sz=6, n_hid=6, letter_hid=3, letter_emb=3) if args.get('arch', 'LSTM') in rf.cells else {}
    learn = rf.tagger_learner(loaders() if dls is None else dls, path=path, **{**small, **args})
    learn.remove_cb(ft.ProgressCallback)
    learn.logger = lambda *a: None
    return learn

@pytest.mark.parametrize('with_letters', [True, False])
def test_summary(with_letters, tmp_path):
    told = make(loaders(chars=with_letters), tmp_path).summary()
    assert told.startswith('Tagger (Input shape: 8 x ')
    kinds = [r.kind for r in told.rows]
    assert [kinds.count(k) for k in ('Embedding', 'Recurrent', 'Linear')] == ([2, 2, 1] if with_letters else [1, 1, 1])

@pytest.mark.parametrize('crf', [False, True])
@pytest.mark.parametrize('with_letters', [True, False])
@pytest.mark.parametrize('bs', [1, 8])
def test_all_ways_to_ask_agree(crf, with_letters, bs, tmp_path):
    learn = make(loaders(chars=with_letters, bs=bs), tmp_path, crf=crf)
    learn.fit(1, 1e-2)
    sents = learn.dls.valid_ds.sents
    probs,y,best = learn.get_preds(with_decoded=True)
    names = learn.dls.train_ds.tags
    by_learner = [[names[i] for i in b[t != rf.TAG_IGNORE].tolist()] for b,t in zip(best, y, strict=True)]
    assert by_learner == [[t for _,t in learn.predict(s)] for s in sents] == [[t for _,t in s] for s in learn.tag(sents)]
    right = learn.dls.valid_ds.items.tags.tolist()
    hits = [g == r for gs,rs in zip(by_learner, right, strict=True) for g,r in zip(gs, rs, strict=True)]
    assert learn.validate()[1] == pytest.approx(np.mean(hits))
    assert [[names[i] for i in t[t != rf.TAG_IGNORE].tolist()] for t in y] == right
    assert_close(probs.sum(-1), (y != rf.TAG_IGNORE).float())
    learn.show_results(max_n=2)

def test_order_and_many_batches(tmp_path):
    learn = make(path=tmp_path)
    sents = [s[::-1] for s in make_frame(90, seed=3).tokens]
    assert [[w for w,_ in s] for s in learn.tag(sents, bs=4)] == sents
    assert learn.tag(sents, bs=4) == learn.tag(sents, bs=64)
    assert learn.tag(make_frame(5)) == learn.tag(make_frame(5).tokens.tolist())

@pytest.mark.parametrize('crf', [False, True])
def test_files_and_rates(crf, tmp_path):
    learn = make(path=tmp_path, crf=crf)
    learn.fit(1, 1e-2)
    learn.save('a')
    other = make(path=tmp_path, crf=crf)
    other.model.apply(lambda m: [p.data.normal_() for p in m.parameters()])
    other.load('a')
    assert other.tag(make_frame(9, 5)) == learn.tag(make_frame(9, 5))
    assert_close(list(other.validate()), list(learn.validate()))
    learn.lr_find(num_it=5, show_plot=False, suggest_funcs=None)

FEATURES = [dict(letters='CNN'), dict(letters=None, shape_emb=3), dict(letters='CNN', shape_emb=3), dict(shape_emb=3)]

@pytest.mark.parametrize('args', FEATURES, ids=str)
def test_features_learn_and_are_kept(args, tmp_path):
    learn = make(path=tmp_path, crf=True, **args)
    had = {k: w.clone() for k,w in learn.model[0].state_dict().items()}
    learn.fit(1, 1e-2)
    now = learn.model[0].state_dict()
    assert all(not torch.equal(had[k], now[k]) for k in had)   # all of them take part
    sents,want = make_frame(9, 5).tokens.tolist(),learn.tag(make_frame(9, 5), with_probs=True)
    learn.save('a')
    assert make(path=tmp_path, crf=True, **args).load('a').tag(sents, with_probs=True) == want
    assert load_learner(learn.save_bundle(tmp_path/'m')).tag(sents, with_probs=True) == want
    learn.save_encoder('enc')   # to loaders with other letters, by name
    other = make(loaders(make_frame(40, 7).assign(tokens=lambda d: [[*s[:-1], s[-1]+'éz'] for s in d.tokens])), tmp_path, **args)
    other.load_encoder('enc')
    for k in set(had) & {'shape.emb.weight', 'chars.conv.weight'}: assert_close(other.model[0].state_dict()[k], now[k])
    if 'chars.emb.weight' in now:
        a,b = (l.dls.train_ds.chars.names.index('s') for l in (learn, other))
        assert_close(other.model[0].chars.emb.weight[b], learn.model[0].chars.emb.weight[a])

def test_a_shape_tells_words_apart(tmp_path):
    rng = np.random.default_rng(0)   # no word or letter comes twice: only its shape says what it is
    letters = iter(map(chr, range(0xAC00, 0xAC00 + 4000)))
    word = {'DIGIT': lambda: f'{rng.integers(100, 10**6)}', 'NAME': lambda: chr(rng.integers(65, 91)) + 'x', 'WORD': lambda: next(letters)}
    tags = [list(rng.choice(list(word), 6)) for _ in range(80)]
    df = pd.DataFrame(dict(tokens=[[str(word[t]()) for t in ts] for ts in tags], tags=[list(map(str, ts)) for ts in tags]))
    learn = make(loaders(df, tok=None), tmp_path, letters=None, shape_emb=4)
    learn.fit(8, 2e-2)
    assert learn.validate()[1] == 1

def test_one_call_fits_the_number_of_sentences(tmp_path):
    small = dict(emb_sz=6, n_hid=6, letter_hid=3, letter_emb=3, cbs=[])
    with ft.no_random():
        learn = train_tagger(make_frame(), epochs=1, seed=0, path=tmp_path, learner_args=small)
        loaded = load_learner(learn.save_bundle(tmp_path/'m'))
    plan = tagger_plan(60)
    assert (learn.dls.bs, learn.model[0].rnn.num_layers, learn.model.crf) == (plan.bs, plan.num_layers, None)
    sents = make_frame(9, 5).tokens.tolist()
    assert loaded.tag(sents, with_probs=True) == learn.tag(sents, with_probs=True)
    mine = train_tagger(make_frame(), epochs=1, seed=0, bs=4, chars=False, tok=None, crf=True, path=tmp_path,
                        learner_args=dict(emb_sz=6, n_hid=6, num_layers=2, drop=0.1, metrics=[]))
    assert (mine.dls.bs, mine.model[0].spelling, mine.model[0].rnn.num_layers, mine.model[0].drop.p) == (4, [], 2, 0.1)
    assert mine.model.crf is not None and 'A' in mine.dls.vocab[0]   # tok=None keeps capitals

@pytest.mark.parametrize('args,match', [(dict(epochs=0), 'epochs=0'), (dict(token_col='words'), "'words'"),
                                        (dict(learner_args=dict(letters='CNM')), "letters='CNM' is unknown")])
def test_one_call_refuses_at_once(args, match):
    with pytest.raises((ValueError, KeyError), match=match): train_tagger(make_frame(), seed=0, **args)

def test_crf_learns_what_follows(tmp_path):
    rng = np.random.default_rng(0)
    tags = [['A', 'B']*int(rng.integers(1, 5)) for _ in range(80)]
    df = pd.DataFrame(dict(tokens=[['w']*len(t) for t in tags], tags=tags))
    learn = make(loaders(df, chars=False), tmp_path, crf=True)
    learn.fit(8, 3e-2)
    follow = learn.model.crf.transitions.detach()
    assert follow[0, 1] > follow[0, 0] and follow[1, 0] > follow[1, 1]
    assert [t for _,t in learn.predict(['w']*6)] == ['A', 'B']*3

def test_encoder_of_a_language_model(tmp_path):
    small = dict(emb_sz=6, n_hid=6, n_layers=2)
    texts = pd.DataFrame(dict(text=make_frame().tokens.map(' '.join)))
    lm_dls = rf.TextDataLoaders.from_df(texts, is_lm=True, bs=4, seq_len=5, path=tmp_path, device='cpu')
    rf.language_model_learner(lm_dls, 'AWD_GRU', small, pretrained=False).save_encoder('enc')
    dls = loaders(tok=rf.TextTokenizer(), chars=False, text_vocab=list(lm_dls.vocab))
    learn = make(dls, tmp_path, arch='AWD_GRU', config=small).load_encoder('enc')
    assert not any(p.requires_grad for p in learn.model[0].parameters())
    learn.fine_tune(1, 1e-2)
    assert [w for w,_ in learn.predict(["can't", 'The', 'dogs'])] == ["can't", 'The', 'dogs']
    assert_close(list(learn.validate())[1], tag_share(learn))

def tag_share(learn):
    "Accuracy over the first parts of words, by hand."
    _,y,best = learn.get_preds(with_decoded=True)
    real = y != rf.TAG_IGNORE
    return (best[real] == y[real]).double().mean().item()

def test_white_space_of_a_text_is_no_word(tmp_path):
    df = pd.DataFrame({'tokens': [['a', 'b'], ['b', 'c']]*4, 'tags': [['X', 'Y'], ['Y', 'Z']]*4})
    learn = rf.tagger_learner(rf.TagDataLoaders.from_df(df, bs=2, path=tmp_path, seed=0), n_hid=4, emb_sz=4)
    plain = learn.predict('a b c')
    for text in ('a  b c', '\n a b\tc ', 'a\rb\u00a0c\r\n'): assert learn.predict(text) == plain == learn.tag([text])[0]
    assert len(learn.predict(['a', ' ', 'b'])) == 3   # words that are given stay
    with pytest.raises(ValueError, match='has no token'): learn.predict(' \n')

def test_words_never_seen(tmp_path):
    learn = make(path=tmp_path)
    assert [w for w,_ in learn.predict('Zyx qqq ß')] == ['Zyx', 'qqq', 'ß']
    assert learn.tag([]) == []

@pytest.mark.parametrize('f,error,match', [
    (lambda: make(loaders(tok=rf.TextTokenizer(), chars=True)), ValueError, 'chars=True reads whole words'),
    (lambda: make(cell_args=1), TypeError, 'cell_args'), (lambda: make(arch='LSTMM'), ValueError, "Unknown cell or architecture 'LSTMM'"),
    (lambda: make().predict(''), ValueError, "item='' has no token; give a text with a word"),
    (lambda: make().predict([]), ValueError, r"item=\[\] has no token"), (lambda: make().predict(None), TypeError, 'item is a NoneType; predict takes one text'),
    (lambda: make().predict(7), TypeError, 'item is a int; predict takes one text, or a list of tokens. For many, call tag'),
    (lambda: make().predict(['a', 7]), TypeError, r'item\[1\] is a int; a token must be a string'),
    (lambda: make(loaders(make_frame().assign(tags=[['X']*len(t) for t in make_frame().tags]))), ValueError,
     "All tags are 'X'"),
    (lambda: make(letters='CNNN'), ValueError, "letters='CNNN' is unknown. Did you mean 'CNN'"),
    (lambda: make(loaders(chars=False), letters='CNN'), ValueError, "letters='CNN' and shape_emb=0 read letters; make the loaders with chars=True"),
    (lambda: make(loaders(chars=False), shape_emb=3), ValueError, 'shape_emb=3 read letters; make the loaders with chars=True'),
    (lambda: make(letters=None), ValueError, 'read no letters; make the loaders with chars=False'),
    (lambda: make(shape_emb=-1), ValueError, 'shape_emb=-1 must be a whole number of at least 0'),
    (lambda: cell_tagger('GRU', 9, 2, n_letters=5, shape_emb=3), ValueError, 'shape_emb=3 needs the kind of each of the 5 letters'),
    (lambda: CharCNN(9, width=4), ValueError, 'width=4 has no middle'),
    (lambda: make(n_hid=0), ValueError, 'hidden_size=0|n_hid=0'), (lambda: make(drop=1.5), ValueError, '=1.5')])
def test_bad_input(f, error, match):
    with pytest.raises(error, match=match): f()

def test_tags_of_the_validation_rows_alone():
    df = make_frame()
    df.at[3, 'tags'] = ['NEW']*len(df.tokens[3])
    with pytest.raises(ValueError, match="Tag 'NEW' of row 3 is not among those of the training rows"):
        loaders(df.assign(held=df.index == 3), valid_col='held')

def test_training_ends_quietly(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        make(path=tmp_path, crf=True).fit_one_cycle(1, 1e-2)

@pytest.mark.parametrize('arch', ['LSTM', 'GRU', 'AWD_LSTM'])
def test_eight_bits_tag_almost_alike(arch, tmp_path):
    "Scores are near, though not the same; and they follow the weights."
    dls = loaders(chars=arch != 'AWD_LSTM')
    small = dict(config=dict(emb_sz=40, n_hid=60, n_layers=2)) if arch == 'AWD_LSTM' else dict(n_hid=60, emb_sz=40)
    learn = make(dls, tmp_path, arch=arch, **small)
    for _ in range(2):
        words,model = dls.train_ds.sents[0],learn.model
        b = [t.as_subclass(torch.Tensor) for t in dls.test_dl([words]).one_batch()]
        with torch.no_grad(): want = model.eval()(*b)
        with learn._in_bits(True), torch.no_grad(): got = learn.model(*b)
        assert learn.model is model and (got != want).any()
        assert_close(got, want, rtol=0, atol=0.05)
        assert [w for w,_ in learn.predict(words, int8=True)] == words
        for p in model.parameters(): p.data *= 1.3

# ---- The field: any number of labels, precision, company

def make_crf(n, seed=0, scale=1.):
    torch.manual_seed(seed)
    crf = CRF(n).double()
    for p in crf.parameters(): p.data = torch.randn_like(p)*scale
    return crf

def all_values(crf, scores):
    "All labellings of one sentence and their scores."
    ways = list(itertools.product(range(scores.size(1)), repeat=len(scores)))
    return ways,torch.stack([value(crf, scores, w) for w in ways])

def ragged(lens, n, seed=0):
    "Scores and labels of sentences; NaN scores and odd labels where there is padding."
    g = torch.Generator().manual_seed(seed)
    sl = max(lens)
    real = torch.arange(sl) < torch.tensor(lens)[:, None]
    scores = torch.randn(len(lens), sl, n, dtype=torch.float64, generator=g)
    labels = torch.randint(n, (len(lens), sl), generator=g)
    return scores.masked_fill(~real[..., None], 1e3),labels.masked_fill(~real, rf.TAG_IGNORE),real

CRFS = [(1, [3, 1]), (2, [1]), (2, [1, 5, 2, 4]), (3, [4, 4, 1]), (4, [2, 3, 4, 1]), (5, [3])]

@pytest.mark.parametrize('scale', [0., 1., 30.])
@pytest.mark.parametrize('n,lens', CRFS)
def test_crf_against_all_labellings(n, lens, scale):
    for seed in range(3):
        crf,(scores,labels,real) = make_crf(n, seed, scale),ragged(lens, n, seed)
        right,total,best = crf.score(scores, labels, real),crf.log_partition(scores, real),crf.decode(scores, real)
        for b,k in enumerate(lens):
            ways,values = all_values(crf, scores[b, :k])
            assert_close(total[b], values.logsumexp(0))
            assert_close(right[b], value(crf, scores[b, :k], labels[b, :k].tolist()))
            assert_close(value(crf, scores[b, :k], best[b, :k].tolist()), values.max())
            assert (best[b, k:] == 0).all() and tuple(best[b, :k].tolist()) in ways

def test_crf_loss_keeps_double_precision():
    crf,(scores,labels,real) = make_crf(3),ragged([4, 1, 3], 3)
    want = (crf.log_partition(scores, real) - crf.score(scores, labels, real)).sum()/8
    assert_close(crf(scores, labels, real), want, rtol=1e-12, atol=0)
    assert_close(CRFLoss(crf)(scores, labels), want, rtol=1e-12, atol=0)

def test_crf_loss_of_half_precision_is_close():
    crf,(scores,labels,real) = make_crf(3).float(),ragged([4, 1, 3], 3)
    scores = scores.masked_fill(~real[..., None], 0.)
    want = crf(scores.float(), labels, real)
    assert_close(crf(scores.bfloat16(), labels, real), want, rtol=0.03, atol=0.03)
    with torch.autocast('cpu', torch.bfloat16): assert_close(crf(scores.float(), labels, real), want, **CLOSE)

def test_crf_of_padding_and_mates():
    "The sum of the losses is that of the sentences alone; padding gets no gradient."
    lens = [5, 1, 3, 2]
    crf,(scores,labels,real) = make_crf(4),ragged(lens, 4)
    scores.requires_grad_()
    whole = crf.log_partition(scores, real) - crf.score(scores, labels, real)
    for b,k in enumerate(lens):
        one = slice(b, b+1),slice(0, k)
        assert_close(crf.log_partition(scores[one], real[one]) - crf.score(scores[one], labels[one], real[one]),
                     whole[b:b+1])
        assert crf.decode(scores, real)[b, :k].tolist() == crf.decode(scores[one], real[one])[0].tolist()
    whole.sum().backward()
    assert (scores.grad[~real] == 0).all() and (scores.grad[real] != 0).any()
    wide = torch.cat([scores.detach(), torch.full((4, 3, 4), -7.).double()], 1)
    more = torch.cat([real, torch.zeros(4, 3, dtype=torch.bool)], 1)
    assert_close(crf.log_partition(wide, more), crf.log_partition(scores, real))
    assert crf.decode(wide, more)[:, :5].tolist() == crf.decode(scores, real).tolist()

def test_neighbours_matter():
    "A forbidden pair is never answered, however likely each tag is alone."
    crf = make_crf(3, scale=0.)
    crf.transitions.data[0, 1] = -1e4
    scores = torch.tensor([[[2., 0, 1], [0, 2, 1.5]]]).double()
    assert scores.argmax(-1).tolist() == [[0, 1]]
    assert crf.decode(scores, torch.ones(1, 2, dtype=torch.bool)).tolist() == [[0, 2]]

# ---- All short sentences, and F1

def in_order(tags): return sorted(task_entities(list(tags)), key=lambda e: e[1])

def random_tags(rng, n, odds=1):
    places = 'BIESO' + 'O'*odds
    return [p if p == 'O' else f'{p}-{rng.choice(["PER", "LOC", "X-Y"])}' for p in rng.choices(places, k=n)]

def test_entities_of_all_short_sentences():
    tags = ['O', *(f'{p}-{k}' for p in 'BIES' for k in 'xy')]
    for n in range(5):
        for seq in itertools.product(tags, repeat=n): assert entities(list(seq)) == in_order(seq), seq

def test_entities_know_their_parts():
    e, = entities(['O', 'B-PER', 'I-PER'])
    assert isinstance(e, rf.Entity) and (e.kind, e.start, e.end) == ('PER', 1, 3)
    assert entities([]) == [] and entities(['B', 'I', 'O', 'B']) == [('', 0, 2), ('', 3, 4)]

def plain_f1(guessed, right):
    "Scores from lists of (sentence, entity)."
    g,r = ([(i, e) for i,tags in enumerate(o) for e in in_order(tags)] for o in (guessed, right))
    hits = sum(e in r for e in g)
    p,q = hits/len(g) if g else 0.,hits/len(r) if r else 0.
    return dict(precision=p, recall=q, f1=2*p*q/(p+q) if p + q else 0.)

def test_f1_equals_the_rules():
    rng = random.Random(1)
    for _ in range(400):
        lens = [rng.randint(0, 6) for _ in range(rng.randint(0, 4))]
        right = [random_tags(rng, n) for n in lens]
        guessed = [[t if rng.random() < 0.7 else new for t,new in zip(r, random_tags(rng, len(r)), strict=True)]
                   for r in right]
        got,want = entity_f1(guessed, right),plain_f1(guessed, right)
        assert got == pytest.approx(want)
    assert entity_f1([], []) == dict(precision=0., recall=0., f1=0.)

def test_f1_of_unequal_lists():
    with pytest.raises(ValueError, match='Sentence 1 has 2 guessed tags and 1 right'):
        entity_f1([['O'], ['O', 'O']], [['O'], ['O']])
    with pytest.raises(ValueError): entity_f1([['O']], [])

# ---- Letters

def corpus_of(sents): return rf.Corpus.from_tokens(sents, min_freq=1)

def spelt(chars, row): return ''.join(chars.names[i] if i > 1 else '?' for i in row.tolist() if i)

def test_letters_spell_the_words():
    sents = [['naïve', 'cat', 'cat'], ['日本', '🙂x', 'e\u0301', 'tac'], ['cat']]
    chars = WordChars(sents, min_freq=1)
    x,which = chars.batch(corpus_of(sents), np.array([1, 0, 2]))
    for row,sent in zip(which, (sents[1], sents[0], sents[2]), strict=True):
        assert [spelt(chars, x[i]) for i in row[:len(sent)].tolist()] == sent
    assert len(x) == len({w for s in sents for w in s}) and chars.names[:2] == ['xxpad', 'xxunk']
    assert x.size(1) == 5 and which.shape == (3, 4) and int(which.max()) == len(x) - 1
    x,which = chars.batch(corpus_of(sents), np.array([2]))
    assert x.shape == (1, 3) and which.tolist() == [[0]]   # a batch has its own words only

@pytest.mark.parametrize('max_len', [1, 2, 5, 8])
def test_long_words_keep_both_ends(max_len):
    word = 'abcdefghij'
    chars = WordChars([[word, word[:max_len]]], min_freq=1, max_len=max_len)
    x,_ = chars.batch(corpus_of([[word, word[:max_len]]]), np.array([0]))
    got = spelt(chars, x[0])
    assert len(got) == max_len and word.startswith(got[:max_len//2]) and word.endswith(got[max_len//2:])
    if max_len > 1: assert spelt(chars, x[1]) == word[:max_len]

def test_rare_letters_are_unknown():
    sents = [['aa', 'ab', 'ac', 'ab', 'ab', 'b']]
    chars = WordChars(sents, min_freq=3)
    assert chars.names == ['xxpad', 'xxunk', 'a']        # b stands in two of the different words, c in one
    again = WordChars([['cab', 'a']], chars.names)
    assert again.rows[0, :4].tolist() == [1, 2, 1, 0] and again.names == chars.names

# ---- Sentences in all kinds of company

WORDS = {'DET': ['the', 'a', 'some'], 'NOUN': ['cat', 'Dog', 'sun', 'naïve', '日本'], 'VERB': ['runs', 'saw', 'ate']}
NAMES = {'B-PER': ['Ann', 'Bob'], 'I-PER': ['Lee', 'Roe'], 'O': ['met', 'and', 'saw'], 'B-LOC': ['Rome', 'Bonn']}

def sentences(n=30, words=WORDS, hi=12, seed=0):
    "Sentences of one to `hi` words, with ties; an index with duplicates that is not the row's number."
    rng = random.Random(seed)
    tags = [convert_tags(rng.choices(list(words), k=rng.randint(1, hi)), 'IOB2') for _ in range(n)]
    sents = [[rng.choice(words[t]) for t in ts] for ts in tags]
    df = pd.DataFrame({'tokens': sents, 'tags': tags, 'held': [i % 3 == 0 for i in range(n)]})
    return df.set_axis([i//3 for i in range(n)][::-1])

BASE = dict(bs=4, valid_col='held', min_freq=1, device='cpu')
def tag_loaders(df=None, **args):
    return rf.TagDataLoaders.from_df(sentences() if df is None else df, **{**BASE, **args})

def silent(learn):
    learn.remove_cb(rf.ProgressCallback)
    learn.logger = lambda *a: None
    return learn

TINY = dict(emb_sz=5, n_hid=6, letter_emb=4, letter_hid=3)
def learner(dls=None, *args, scale=4., **kwargs):
    "A tagger with random weights that are large enough to tell things apart."
    torch.manual_seed(0)
    learn = rf.tagger_learner(tag_loaders() if dls is None else dls, *args, **{**TINY, **kwargs})
    for p in learn.model.parameters(): p.data *= scale
    return silent(learn)

@cache
def known(chars=True, crf=True, cell='LSTM', layers=1):
    return learner(tag_loaders(sentences(words=NAMES), chars=chars, bs=3), cell, crf=crf, num_layers=layers)

def scores_of(learn, sents, bs):
    "Scores of each sentence's tokens, in the order of `sents`."
    dl,res = learn.dls.test_dl(sents, bs=bs),[None]*len(sents)
    at = iter(dl.get_idxs())
    with torch.no_grad():
        for b in dl:
            for out,ids in zip(learn.model.eval()(*b), torch.Tensor(b[0].float()), strict=True):
                res[next(at)] = out[:int((ids != 1).sum())]
    return res

@pytest.mark.parametrize('layers', [1, 2])
@pytest.mark.parametrize('chars', [False, True])
@pytest.mark.parametrize('cell', ['LSTM', 'GRU', 'RNN', 'minGRU'])
def test_scores_do_not_depend_on_company(cell, chars, layers):
    learn = known(chars, False, cell, layers)
    sents = [*sentences(9, NAMES, seed=3).tokens, ['never'], ['Ann', 'unheard', 'of', '🙂'], ['Ann']]
    alone = [scores_of(learn, [s], 1)[0] for s in sents]
    assert max(a.std() for a in alone) > 0.01 and len({round(float(a.sum()), 4) for a in alone}) > len(sents)//2
    for bs in (2, 5, 64):
        for a,b in zip(alone, scores_of(learn, sents, bs), strict=True): assert_close(a, b, rtol=1e-4, atol=1e-4)
    back = scores_of(learn, sents[::-1], 5)[::-1]
    for a,b in zip(alone, back, strict=True): assert_close(a, b, rtol=1e-4, atol=1e-4)

def test_letters_tell_unknown_words_apart():
    ids,spelling = known(False, False),known(True, False)
    pair = [['Ann', 'Annq'], ['Ann', 'eee']]
    a,b = scores_of(ids, pair, 2)
    assert_close(a, b)
    a,b = scores_of(spelling, pair, 2)
    assert (a - b).abs().max() > 1e-3

def test_both_directions_are_read():
    learn = known(False, False)
    a,b,c = scores_of(learn, [['Ann', 'met', 'Bob'], ['Ann', 'met', 'Lee'], ['Roe', 'met', 'Bob']], 3)
    assert (a[0] - b[0]).abs().max() > 1e-4 and (a[2] - c[2]).abs().max() > 1e-4

@pytest.mark.parametrize('crf', [False, True])
def test_loss_does_not_depend_on_padding_and_mates(crf):
    "The loss of a batch is the mean over its tokens of that of the sentences alone."
    learn,df = known(True, crf),sentences(7, NAMES, seed=4)
    def loss(part, bs):
        b = learn.dls.test_dl(part, with_labels=True, bs=bs).one_batch()
        with torch.no_grad(): return float(learn.loss_func(learn.model.eval()(*b[:3]), b[-1]))
    alone = [loss(df.iloc[[i]], 1)*len(df.tokens.iloc[i]) for i in range(7)]
    assert loss(df, 7) == pytest.approx(sum(alone)/df.tokens.map(len).sum(), rel=1e-4)

# ---- All ways to ask agree

KINDS = {'softmax': dict(chars=False, crf=False), 'chars': dict(chars=True, crf=False),
         'crf': dict(chars=False, crf=True), 'both': dict(chars=True, crf=True)}

@pytest.mark.parametrize('kind', KINDS)
def test_answers_agree(kind):
    learn = known(**KINDS[kind])
    ds = learn.dls.valid_ds
    names,sents,right = ds.tags,ds.sents,ds.items.tags.tolist()
    tagged = learn.tag(sents, no_bar=True)
    for bs in (1, 3, 64): assert learn.tag(sents, bs=bs, no_bar=True) == tagged
    assert [learn.predict(s) for s in sents] == tagged
    assert learn.tag(ds.items, no_bar=True) == tagged
    assert learn.tag(sents[::-1], bs=2)[::-1] == tagged
    probs,y,best = learn.get_preds(with_decoded=True)
    for bs in (1, 2):
        again = learn.get_preds(dl=learn.dls.valid.new(bs=bs), with_decoded=True)
        assert_close(again[0], probs, rtol=1e-4, atol=1e-4)
        assert torch.equal(again[1], y) and torch.equal(again[2], best)
    guessed = [[t for _,t in s] for s in tagged]
    for i,s in enumerate(sents):
        n = len(s)
        assert [w for w,_ in tagged[i]] == s
        assert [names[k] for k in best[i, :n]] == guessed[i] and [names[k] for k in y[i, :n]] == right[i]
        assert (best[i, n:] == rf.TAG_IGNORE).all() and (y[i, n:] == rf.TAG_IGNORE).all() and (probs[i, n:] == 0).all()
    assert_close(probs.sum(-1), (y != rf.TAG_IGNORE).float())
    loss,acc,f1 = learn.validate()
    pairs = [a == b for g,r in zip(guessed, right, strict=True) for a,b in zip(g, r, strict=True)]
    assert acc == pytest.approx(sum(pairs)/len(pairs)) and f1 == pytest.approx(plain_f1(guessed, right)['f1'])
    assert 0 < acc < 1 and np.isfinite(loss)
    if not learn.model.crf: assert torch.equal(probs.argmax(-1)[y >= 0], best[y >= 0])

def test_training_sentences_in_order():
    learn = known()
    ds = learn.dls.train_ds
    _,y,best = learn.get_preds(0, with_decoded=True)
    assert len(y) == len(ds) > len(ds)//3*3 - 3
    for i,(tags,s) in enumerate(zip(ds.items.tags, ds.sents, strict=True)):
        assert [ds.tags[k] for k in y[i, :len(s)]] == tags
        assert [ds.tags[k] for k in best[i, :len(s)]] == [t for _,t in learn.predict(s)]

def test_texts_and_frames():
    learn = known()
    assert [w for w,_ in learn.predict('Ann met Bob.')] == ['Ann', 'met', 'Bob', '.']
    assert learn.tag('Ann met Bob') == [learn.predict(['Ann', 'met', 'Bob'])]
    assert learn.tag(['Ann met', ('Bob',), np.array(['Rome'])]) == [learn.predict(s) for s in
                                                                    (['Ann', 'met'], ['Bob'], ['Rome'])]
    assert learn.tag([]) == []

def test_words_unheard_of():
    for chars in (False, True):
        learn = known(chars)
        res = learn.predict(['qqq', '🙂', 'zz'*40])
        assert [w for w,_ in res] == ['qqq', '🙂', 'zz'*40] and {t for _,t in res} <= set(learn.dls.vocab[1])

@pytest.mark.parametrize('chars', [False, True])
@pytest.mark.parametrize('sent', [['xxpad', 'Ann'], ['Ann', 'xxpad', 'met'], ['xxpad'], ['Ann', 'xxpad']])
def test_a_word_that_is_called_like_padding(chars, sent):
    assert [w for w,_ in known(chars).predict(sent)] == sent

@pytest.mark.parametrize('sent', [[''], ['', 'Ann'], ['Ann', '']])
@pytest.mark.parametrize('chars', [False, True])
def test_a_word_without_letters(chars, sent): assert [w for w,_ in known(chars).predict(sent)] == sent

def test_predicting_leaves_the_model_alone():
    learn = known()
    learn.model.train()
    learn.model[1].eval()
    before = [m.training for m in learn.model.modules()]
    a = learn.predict(['Ann', 'met'])
    learn.get_preds()
    assert [m.training for m in learn.model.modules()] == before and learn.predict(['Ann', 'met']) == a
    assert all(p.grad is None for p in learn.model.parameters())

@pytest.mark.parametrize('kind', KINDS)
def test_show_results(monkeypatch, kind):
    learn,shown = known(**KINDS[kind]),[]
    monkeypatch.setattr('rnn_fastai.learner.tagger.show_frame', shown.append)
    for ds_idx in (0, 1):
        learn.show_results(ds_idx, max_n=2)
        df = shown.pop()
        assert list(df.columns) == ['text', 'target', 'prediction'] and len(df) == 2
        for text,target,found in df.itertuples(index=False):
            sent = str(text).split()
            assert len(str(target).split()) == len(sent)
            assert str(found).split() == [t for _,t in learn.predict(sent)]

@pytest.mark.parametrize('chars', [False, True])
def test_show_results_without_tags(monkeypatch, chars):
    "Sentences without tags: refused with a reason, or shown without targets that nobody gave."
    learn,shown = known(chars),[]
    monkeypatch.setattr('rnn_fastai.learner.tagger.show_frame', shown.append)
    try: learn.show_results(dl=learn.dls.test_dl([['Ann', 'met'], ['Bob']]))
    except (TypeError, ValueError) as e: assert 'tags' in str(e) or 'target' in str(e), e
    else:
        row = shown[0].iloc[0]
        assert str(row['prediction']).split() == [t for _,t in learn.predict(['Ann', 'met'])]
        assert not set(str(row.get('target', '')).split()) & set(learn.dls.vocab[1]), shown[0]

# ---- Training, files

def weights(learn): return [p.detach().clone() for p in learn.model.parameters()]

@pytest.mark.parametrize('crf', [False, True])
def test_learns_what_can_be_learnt(crf):
    dls = tag_loaders(sentences(60, NAMES, seed=7), chars=True)
    torch.manual_seed(0)
    learn = silent(rf.tagger_learner(dls, **{**TINY, 'emb_sz': 12, 'n_hid': 12}, crf=crf, drop=0., embed_p=0.))
    before = weights(learn)
    learn.fit(6, 3e-2)
    assert all((a != b).any() for a,b in zip(before, weights(learn), strict=True))
    loss,acc,f1 = learn.validate()
    assert acc > 0.95 and f1 > 0.9

def test_record_reads_words_by_default_and_letters_by_name():
    learn,sents = learner(tag_loaders(chars=True)),[['A', 'word'], ['Three', 'more', 'words']]
    rec = learn.record(sents)
    assert rec.layers == ['0.rnn.l0', '0.rnn.l0_reverse'] and [len(rec['0.rnn.l0', 'h', d]) for d in range(2)] == [2, 3]
    letters = learn.record(sents[:1], layers='0.chars')
    assert all(n.startswith('0.chars') for n in letters.layers)

@pytest.mark.parametrize('crf', [False, True])
def test_saved_and_loaded(tmp_path, crf):
    dls = tag_loaders(chars=True, path=tmp_path)
    one,two = learner(dls, crf=crf),learner(dls, crf=crf, scale=-2.)
    one.fit(1, 1e-3)
    sents = dls.valid_ds.sents
    assert one.tag(sents) != two.tag(sents)
    one.save('m')
    two.load('m')
    assert one.tag(sents) == two.tag(sents) and one.validate() == two.validate()
    if crf: assert two.loss_func.crf is two.model.crf
    one.export('e.pkl')
    again = load_learner(tmp_path/'e.pkl')
    assert again.tag(sents) == one.tag(sents)
    if crf: assert again.loss_func.crf is again.model.crf

def test_lr_find_leaves_the_weights(tmp_path):
    learn = learner(tag_loaders(path=tmp_path), crf=True)
    before = weights(learn)
    learn.lr_find(num_it=8, show_plot=False, suggest_funcs=None)
    for a,b in zip(before, weights(learn), strict=True): assert torch.equal(a, b)
    assert not list((tmp_path/'models').glob('*'))

def test_fine_tune_trains_all():
    learn = learner(scale=1.)
    before = weights(learn)
    learn.fine_tune(1, 1e-2)
    assert all((a != b).any() for a,b in zip(before, weights(learn), strict=True))
    assert all(p.requires_grad for p in learn.model.parameters())

ARCH = dict(emb_sz=6, n_hid=7, n_layers=2)
@pytest.fixture
def encoder(tmp_path):
    "Loaders of a language model, and the learner whose encoder is saved as `enc`."
    df = pd.DataFrame({'text': sentences().tokens.map(' '.join)})
    dls = rf.TextDataLoaders.from_df(df, is_lm=True, bs=2, seq_len=5, seed=0, min_freq=1, path=tmp_path, device='cpu')
    lm = silent(rf.language_model_learner(dls, 'AWD_LSTM', ARCH, pretrained=False))
    lm.save_encoder('enc')
    return lm

@pytest.mark.parametrize('crf', [False, True])
def test_encoder_by_word(tmp_path, encoder, crf, capsys):
    "By word, whatever ids the words have in either vocabulary."
    dls = tag_loaders(path=tmp_path)
    learn = silent(rf.tagger_learner(dls, 'AWD_LSTM', ARCH, crf=crf))
    learn.load_encoder('enc')
    own,theirs = list(dls.vocab[0]),list(encoder.dls.vocab)
    both = [w for w in own if w in theirs and not w.startswith('xx')]
    assert len(both) >= 8 and own != theirs
    emb,src = learn.model[0].module.encoder.weight,encoder.model[0].encoder.weight
    for w in both: assert_close(emb[own.index(w)], src[theirs.index(w)])
    frozen,head = list(learn.model[0].parameters()),list(learn.model[1].parameters())
    assert not any(p.requires_grad for p in frozen) and all(p.requires_grad for p in head)
    before = weights(learn)
    learn.fine_tune(1, 1e-2)
    assert all((a != b).any() for a,b in zip(before, weights(learn), strict=True))
    sents = dls.valid_ds.sents
    alone = [learn.predict(s) for s in sents]
    assert learn.tag(sents, bs=4) == alone

def test_encoder_of_another_size_is_refused(tmp_path, encoder):
    learn = silent(rf.tagger_learner(tag_loaders(path=tmp_path), 'AWD_LSTM', dict(ARCH, n_hid=9)))
    before = weights(learn)
    with pytest.raises(ValueError, match='enc'): learn.load_encoder('enc')
    for a,b in zip(before, weights(learn), strict=True): assert torch.equal(a, b)

def test_encoder_into_a_net_of_words_is_refused(tmp_path, encoder):
    learn = learner(tag_loaders(path=tmp_path))
    before = weights(learn)
    with pytest.raises(ValueError, match='enc'): learn.load_encoder('enc')
    for a,b in zip(before, weights(learn), strict=True): assert torch.equal(a, b)

# ---- Words that a tokenizer cuts

def cut_frame():
    df = sentences()
    df['tokens'] = [[{'cat': "can't", 'Dog': 'New-York', 'saw': '12,5'}.get(w, w) for w in s] for s in df.tokens]
    return df

@pytest.mark.parametrize('tok', [rf.TextTokenizer, rf.CharTokenizer, rf.WordTokenizer])
def test_cut_words_come_back_whole(tok):
    learn = learner(tag_loaders(cut_frame(), tok=tok()))
    ds = learn.dls.valid_ds
    assert (ds.y == rf.TAG_IGNORE).any()
    tagged = learn.tag(ds.items, bs=4)
    assert [[w for w,_ in s] for s in tagged] == ds.sents and tagged == [learn.predict(s) for s in ds.sents]
    _,y,best = learn.get_preds(with_decoded=True)
    for i,s in enumerate(tagged): assert [ds.tags[k] for k in best[i][y[i] >= 0]] == [t for _,t in s]
    pairs = [a == b for s,r in zip(tagged, ds.items.tags, strict=True) for (_,a),b in zip(s, r, strict=True)]
    assert learn.validate()[1] == pytest.approx(sum(pairs)/len(pairs))

def test_crf_with_cut_words_is_refused():
    with pytest.raises(ValueError, match='crf=True.*tokenizer cuts words'):
        learner(tag_loaders(cut_frame(), tok=rf.TextTokenizer()), crf=True)

def test_crf_with_words_cut_in_validation_only():
    "Refused, as the loss would skip over the gaps."
    df = sentences()
    df['tokens'] = [["can't" if h and w == 'cat' else w.lower() for w in s]
                    for s,h in zip(df.tokens, df.held, strict=True)]
    dls = tag_loaders(df, tok=rf.TextTokenizer())
    assert (dls.valid_ds.y == rf.TAG_IGNORE).any() and not (dls.train_ds.y == rf.TAG_IGNORE).any()
    with pytest.raises(ValueError, match='crf=True'): learner(dls, crf=True)

def test_letters_with_a_tokenizer_are_refused():
    for tok in (rf.TextTokenizer(), rf.TextTokenizer, rf.CharTokenizer()):
        with pytest.raises(ValueError, match='chars=True.*tok='): tag_loaders(tok=tok, chars=True)

def test_letters_with_a_function_are_those_of_the_word():
    dls = tag_loaders(chars=True, tok=str.lower)
    words = {spelt(dls.train_ds.chars, r) for r in dls.train_ds.chars.rows}
    assert 'Dog' in dls.train_ds.sents[0] + sum(dls.train_ds.sents, [])
    assert 'dog' in dls.vocab[0] and 'Dog' not in dls.vocab[0] and not any(w == 'dog' for w in words)

# ---- Bad input

def tags_in_validation_only():
    df = sentences()
    df['tags'] = [['X' if h else t for t in s] for s,h in zip(df.tags, df.held, strict=True)]
    return tag_loaders(df)

def from_two_files(tmp_path, **args):
    one,two = tmp_path/'a.txt',tmp_path/'b.txt'
    one.write_text('Ann B-PER\nmet O\n\nBob B-PER\n', encoding='utf-8')
    two.write_text('Rome B-LOC\n\nmet O\n', encoding='utf-8')
    return rf.TagDataLoaders.from_files(one, two, **{'bs': 2, 'min_freq': 1, **args})

def text_loaders():
    return rf.TextDataLoaders.from_df(pd.DataFrame({'text': ['a b']*9, 'label': list('xyx')*3}), text_col='text',
                                      label_col='label', bs=2, device='cpu', tok_tfm=ft.BaseTokenizer())

BAD = {
    'tag of validation only': (tags_in_validation_only, ValueError, ["'X'", 'row', "'DET'"]),
    'cell': (lambda: learner(None, 'LSTN'), ValueError, ["'LSTN'", "'LSTM'"]),
    'cell and architecture': (lambda: learner(None, 'AWD_LSTN'), ValueError, ["'AWD_LSTN'", "'AWD_LSTM'"]),
    'config of a cell': (lambda: learner(config=dict(n_hid=3)), ValueError, ['config', "'LSTM'"]),
    'config entry': (lambda: learner(None, 'AWD_LSTM', dict(hidden=3)), ValueError, ["'hidden'"]),
    'letters and architecture': (lambda: learner(tag_loaders(chars=True), 'AWD_LSTM', ARCH), ValueError,
                                 ["'AWD_LSTM'", 'chars=False']),
    'one tag': (lambda: learner(tag_loaders(sentences().assign(tags=lambda d: [['A']*len(t) for t in d.tokens]))),
                ValueError, ["'A'"]),
    'no tags': (lambda: learner(text_loaders()), TypeError, ['TextDataLoaders', 'tags', 'TagDataLoaders']),
    'letter_hid': (lambda: learner(tag_loaders(chars=True), letter_hid=0), ValueError, ['letter_hid=0']),
    'letter_emb': (lambda: learner(tag_loaders(chars=True), letter_emb=0), ValueError, ['letter_emb=0']),
    'emb_sz': (lambda: learner(emb_sz=0), ValueError, ['emb_sz=0']),
    'num_layers': (lambda: learner(num_layers=0), ValueError, ['num_layers=0']),
    'embed_p': (lambda: learner(embed_p=-0.1), ValueError, ['embed_p=-0.1']),
    'unknown argument': (lambda: learner(hidden=3), TypeError, ['hidden']),
    'empty sentence': (lambda: known().tag([['Ann'], []]), ValueError, ['Sentence 1 of 2', 'no token']),
    'empty text': (lambda: known().predict(''), ValueError, ['no token']),
    'bs': (lambda: known().tag([['Ann']], bs=0), ValueError, ['bs=0']),
    'number': (lambda: known().predict(5), TypeError, ['item is a int', 'a list of tokens']),
    'list of numbers': (lambda: known().predict([5]), TypeError, ['item[0] is a int', 'must be a string']),
    'frame without tokens': (lambda: known().tag(pd.DataFrame({'words': [['Ann']]})), ValueError,
                             ["'tokens'", "'words'"]),
    'no label of a CRF': (lambda: CRF(0), ValueError, ['n=0'])}

@pytest.mark.parametrize('case', BAD)
def test_more_bad_input(case):
    make,err,words = BAD[case]
    with pytest.raises(err) as e: make()
    assert all(w in str(e.value) for w in words), str(e.value)

def test_empty_sentences_are_told_of():
    df = sentences()
    df.iat[4, 0],df.iat[4, 1] = [],[]
    for chars in (False, True):
        with pytest.raises(ValueError, match='Sentence 2 of 20 has no token.*leave'): tag_loaders(df, chars=chars)

def test_tags_of_validation_in_a_file(tmp_path):
    with pytest.raises(ValueError, match="'B-LOC'"): from_two_files(tmp_path)

def test_from_files(tmp_path):
    one,two = tmp_path/'train.conllu',tmp_path/'valid.conllu'
    row = '{}\t{}\t_\t{}\t_\t_\t_\t_\t_\t_\n'
    def text(sents): return '\n'.join(''.join(row.format(i, w, t) for i,(w,t) in enumerate(s, 1)) for s in sents)
    sents = [list(zip(a, b, strict=True)) for a,b in zip(sentences().tokens, sentences().tags, strict=True)]
    one.write_text(text(sents[:20]), encoding='utf-8')
    two.write_text(text(sents[20:]), encoding='utf-8')
    dls = rf.TagDataLoaders.from_files(one, two, bs=4, min_freq=1, chars=True, path=tmp_path, device='cpu')
    assert dls.train_ds.sents == [[w for w,_ in s] for s in sents[:20]]
    assert dls.valid_ds.items.tags.tolist() == [[t for _,t in s] for s in sents[20:]]
    learn = learner(dls)
    learn.fit(1, 1e-2)
    assert learn.tag(dls.valid_ds.items) == [learn.predict(s) for s in dls.valid_ds.sents]

# ---- Rules go with the model

def test_the_rules_go_with_the_model(tmp_path):
    "Into a bundle and an exported model; a bundle without rules has none."
    for scheme in ('auto', None):
        learn = make(loaders(sentences(words=NAMES)), tmp_path, crf=True, scheme=scheme)
        learn.model[1].bias.data[learn.dls.train_ds.tags.index('I-PER')] = 5.
        sents = sentences(9, NAMES, seed=5).tokens.tolist()
        again = load_learner(learn.save_bundle(tmp_path/f'{scheme}'))
        rules = learn.model.crf.forbidden
        assert again.model.crf.forbidden is None if rules is None else again.model.crf.forbidden.equal(rules)
        for ask in (partial(rf.TaggerLearner.tag, with_probs=True), rf.TaggerLearner.entities, partial(rf.TaggerLearner.tag, n_best=3)):
            assert ask(again, sents) == ask(learn, sents)
        b = learn.dls.test_dl(sents[:4]).one_batch()
        out,real = learn._scores(b, learn.dls.valid)
        crf = _tag_facts(learn, learn.dls.train_ds)['crf']
        assert best_path(out.numpy(), real.sum(1).numpy(), crf).tolist() == learn.model.crf.decode(out, real).tolist()

def test_weights_of_a_tagger_without_rules_still_load(tmp_path):
    old,new = (make(loaders(sentences(words=NAMES)), tmp_path, crf=True, scheme=s) for s in (None, 'auto'))
    old.save('old')
    new.load('old')
    assert_close(new.model.crf.transitions, old.model.crf.transitions)

def test_vectors_with_capitals_are_looked_up_as_they_stand(tmp_path):
    small = dict(n_hid=6, letter_hid=3, letter_emb=3, cbs=[])
    for names,cased in ((('A', 'cat', 'Paris'), True), (('a', 'cat', 'paris'), False)):
        vectors = {w: np.random.default_rng(i).normal(size=6) for i,w in enumerate(names)}
        learn = train_tagger(make_frame(), vectors, epochs=1, seed=0, path=tmp_path, learner_args=small)
        vocab = learn.dls.vocab[0]
        assert ('A' in vocab) == cased and vocab[vocab.id_of('PARIS')] == ('xxunk' if cased else 'paris')
        assert len(learn.tag([['Paris', 'cat']], no_bar=True)[0]) == 2

def test_a_tokenizer_that_cuts_words_needs_no_further_argument(tmp_path):
    learn = train_tagger(make_frame(), epochs=1, seed=0, path=tmp_path, tok=rf.TextTokenizer(), learner_args=dict(emb_sz=6, n_hid=6))
    assert learn.dls.train_ds.chars is None

@pytest.mark.parametrize('crf', [True, False])
def test_the_likeliest_taggings_of_long_sentences(crf, tmp_path):
    "Each of 3**-n or less, which float32 cannot hold."
    found, = make(path=tmp_path, crf=crf).tag([['A', 'cat', 'runs']*60], no_bar=True, n_best=3)
    assert len(found) == 3 and all(t.prob > 0 for t in found) and len({tuple(t.words) for t in found}) == 3

def test_tagging_draws_no_random_number(tmp_path):
    learn = make(path=tmp_path)
    before = torch.get_rng_state()
    learn.tag([['A', 'cat']], no_bar=True, n_best=2)
    assert torch.equal(torch.get_rng_state(), before)

def test_a_broken_scheme_names_the_row(tmp_path):
    df = pd.DataFrame(dict(tokens=[['in', 'York']]*30, tags=[['O', 'B-LOC']]*30), index=[f'r{i}' for i in range(30)])
    df.at['r7', 'tags'] = ['O', 'I-LOC']
    dls = loaders(df.assign(held=[i > 20 for i in range(30)]).sample(frac=1, random_state=0), valid_col='held')
    with pytest.raises(ValueError, match="Training sentence of row 'r7', token 1 .'York'.: The tag"):
        make(dls, tmp_path, crf=True, scheme='IOB2')
