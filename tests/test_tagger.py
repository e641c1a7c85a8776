"Taggers: the CRF against all labellings, entities against the shared task's rules, sentences in all kinds of company."
import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.text import all as ft
from torch import nn
from torch.testing import assert_close

from rnn_fastai import all as rf
from rnn_fastai.models.tagger import CRF, LetterEncoder, Tagger, WordEncoder

CLOSE = dict(rtol=0, atol=1e-5)

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
    pairs = sum(crf.follow[a, b] for a,b in itertools.pairwise(way))
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
    found = crf.best(scores, real)
    assert [tuple(f[r].tolist()) for f,r in zip(found, real, strict=True)] == best

def test_padding_and_mates_have_no_say():
    crf,scores,labels,real = crf_case(9)
    crf,scores = crf.float(),scores.detach().float()
    wide = torch.cat([scores, torch.full((5, 3, 3), 99.)], 1)
    more = torch.cat([real, torch.zeros(5, 3, dtype=torch.bool)], 1)
    filled = torch.cat([labels, torch.full((5, 3), rf.TAG_IGNORE)], 1)
    assert_close(crf(wide, filled, more), crf(scores, labels, real))
    assert crf.best(wide, more)[:, :4].tolist() == crf.best(scores, real).tolist()
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

# ---- Letters

def test_letters_of_words():
    letters = rf.WordLetters([['aba', 'ß', 'aba'], ['a'*50]], ['xxpad', 'xxunk', 'a', 'b'], max_len=8)
    assert letters.which.tolist() == [0, 1, 0, 2]
    assert letters.rows.tolist() == [[2, 3, 2, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0], [2]*8]

# ---- Company

CELLS = [(c, n) for c in ('LSTM', 'GRU', 'RNN', 'minGRU', 'QRNN') for n in (1, 2)]
@pytest.mark.parametrize('with_letters', [True, False], ids=['letters', 'ids'])
@pytest.mark.parametrize('cell,layers', CELLS)
def test_company_does_not_matter(cell, layers, with_letters):
    torch.manual_seed(0)
    letters = LetterEncoder(9, 3, 4, cell) if with_letters else None
    net = Tagger(WordEncoder(nn.Embedding(30, 5), letters, cell, 6, layers), 4).eval()
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
    base = dict(bs=8, seed=1, device='cpu', tok=str.lower, letters=True)
    return rf.TagDataLoaders.from_df(make_frame() if df is None else df, **{**base, **args})

def make(dls=None, path='.', **args):
    torch.manual_seed(0)
    small = dict(emb_sz=6, n_hid=6, letter_hid=3, letter_emb=3) if args.get('arch', 'LSTM') in rf.cells else {}
    learn = rf.tagger_learner(loaders() if dls is None else dls, path=path, **{**small, **args})
    learn.remove_cb(ft.ProgressCallback)
    learn.logger = lambda *a: None
    return learn

@pytest.mark.parametrize('crf', [False, True])
@pytest.mark.parametrize('with_letters', [True, False])
@pytest.mark.parametrize('bs', [1, 8])
def test_all_ways_to_ask_agree(crf, with_letters, bs, tmp_path):
    learn = make(loaders(letters=with_letters, bs=bs), tmp_path, crf=crf)
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

def test_crf_learns_what_follows(tmp_path):
    rng = np.random.default_rng(0)
    tags = [['A', 'B']*int(rng.integers(1, 5)) for _ in range(80)]
    df = pd.DataFrame(dict(tokens=[['w']*len(t) for t in tags], tags=tags))
    learn = make(loaders(df, letters=False), tmp_path, crf=True)
    learn.fit(8, 3e-2)
    follow = learn.model.crf.follow.detach()
    assert follow[0, 1] > follow[0, 0] and follow[1, 0] > follow[1, 1]
    assert [t for _,t in learn.predict(['w']*6)] == ['A', 'B']*3

def test_encoder_of_a_language_model(tmp_path):
    small = dict(emb_sz=6, n_hid=6, n_layers=2)
    texts = pd.DataFrame(dict(text=make_frame().tokens.map(' '.join)))
    lm_dls = rf.TextDataLoaders.from_df(texts, is_lm=True, bs=4, seq_len=5, path=tmp_path, device='cpu')
    rf.language_model_learner(lm_dls, 'AWD_GRU', small, pretrained=False).save_encoder('enc')
    dls = loaders(tok=rf.TextTokenizer(), letters=False, text_vocab=list(lm_dls.vocab))
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

def test_words_never_seen(tmp_path):
    learn = make(path=tmp_path)
    assert [w for w,_ in learn.predict('Zyx qqq ß')] == ['Zyx', 'qqq', 'ß']
    assert learn.tag([]) == []

@pytest.mark.parametrize('f,error,match', [
    (lambda: make(loaders(tok=rf.TextTokenizer(), letters=True)), ValueError, 'letters=True reads whole words'),
    (lambda: make(cell_args=1), TypeError, 'cell_args'), (lambda: make(arch='LSTMM'), ValueError, "Unknown cell 'LSTMM'"),
    (lambda: make().predict(''), ValueError, 'Sentence 0 of 1 has no token'),
    (lambda: make(loaders(make_frame().assign(tags=[['X']*len(t) for t in make_frame().tags]))), ValueError,
     "All tags are 'X'"),
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
