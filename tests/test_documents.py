"The classification loader against fastai's on the same frames, in real learners, on odd and on bad input."
import pickle
import random
from functools import cache

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
from rnn_fastai.data.documents import PaddedText
from rnn_fastai.learner.weights import canonical_names
from rnn_fastai.models.awd import canonical_name
from rnn_fastai.ship.bundle import load_learner

matplotlib.use('Agg')
WORDS = 'One two THREE four five six seven, eight. nine ten'.split()

@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    "fastai tokenizes in this process: same tokens, no time for workers to start."
    monkeypatch.setattr(fastai.text.core, 'parallelable', lambda *a, **k: False)

def make_texts(n, lo=0, hi=20, seed=0):
    rng = np.random.default_rng(seed)
    return [' '.join(rng.choice(WORDS, rng.integers(lo, hi))) for _ in range(n)]

def make_frame(n=41, hi=20):
    "Texts with ties of length and empty ones; all kinds of labels; an index that is not the row's number."
    rng = np.random.default_rng(5)
    tags = [';'.join(sorted(set(rng.choice(list('xyz'), rng.integers(0, 4))))) for _ in range(n)]
    df = pd.DataFrame({'text': make_texts(n, hi=hi, seed=1), 'label': rng.choice(['neg', 'pos', 'so'], n), 'tags': tags,
                       'score': rng.normal(size=n).round(3), 'stars': rng.integers(1, 6, n),
                       'body': make_texts(n, seed=2), 'good': rng.random(n) < 0.5, 'held': rng.random(n) < 0.3,
                       'mood': rng.choice(['neg', 'so'], n)})
    df['kind'] = df.label.astype('category')
    for k in 'xyz': df[k] = df.tags.str.contains(k).astype(int)
    return df.iloc[::-1]

BASE = dict(text_col='text', label_col='label', bs=4, seed=1, device='cpu')
def loaders(m=rf, df=None, **args):
    return m.TextDataLoaders.from_df(make_frame() if df is None else df, **{**BASE, **args})

@cache
def plain(m=rf): return loaders(m)

# ---- Parity with fastai

def fastai_row(x):
    "A row of fastai's batches without padding."
    return [i for i in x.tolist() if i != 1]

def rows_of(dl):
    "Ids without padding, and targets, of each row of each batch."
    return [[(fastai_row(x), y.tolist()) for x,y in zip(*b, strict=True)] for b in dl]

def same_dls(ours, theirs):
    "Vocabularies, targets, splits and validation batches."
    a,b = (list(map(list, d.vocab)) if isinstance(d.vocab, ft.L) else [list(d.vocab)] for d in (ours, theirs))
    assert a[0] == b[0] and a[1:] in (b[1:], [[]])   # numbers have no names, and fastai no list for them
    assert ours.c == theirs.c and type(ours.loss_func) is type(theirs.loss_func)
    assert rows_of(ours.valid) == rows_of(theirs.valid)
    (_,y),(_,v) = ours.valid.one_batch(),theirs.valid.one_batch()
    assert (type(y), y.dtype, y.shape) == (type(v), v.dtype, v.shape)
    assert sorted(map(repr, items_of(ours.train_ds))) == sorted(map(repr, items_of(theirs.train_ds)))

def items_of(ds): return [(x.tolist(), y.tolist()) for x,y in (ds[i] for i in range(len(ds)))]
def multi_hot(): return ft.MultiCategoryBlock(encoded=True, vocab=['x', 'y', 'z'])

LABELS = {
    'names': {}, 'by place': dict(label_col=1), 'by last place': dict(label_col=-5),
    'one in a list': dict(label_col=['label']),
    'ints': dict(label_col='stars'), 'bools': dict(label_col='good'), 'categorical': dict(label_col='kind'),
    'floats as categories': dict(label_col='score', valid_col='held0'),
    'block': dict(y_block=ft.CategoryBlock(vocab=['so', 'pos', 'neg'], sort=False)),
    'block class': dict(y_block=ft.CategoryBlock),
    'block in a list': dict(y_block=[ft.CategoryBlock()]), 'add_na': dict(y_block=ft.CategoryBlock(add_na=True)),
    'delim': dict(label_col='tags', label_delim=';', y_block=ft.MultiCategoryBlock()),
    'delim, block class': dict(label_col='tags', label_delim=';', y_block=ft.MultiCategoryBlock),
    'two columns': dict(label_col=['label', 'mood']), 'columns by place': dict(label_col=[1, -2], y_block=None, x=1),
    'encoded': dict(label_col=['x', 'y', 'z'], y_block=multi_hot()),
    'regression': dict(label_col='score', y_block=ft.RegressionBlock()),
    'regression class': dict(label_col='score', y_block=ft.RegressionBlock),
    'regression of ints': dict(label_col='stars', y_block=ft.RegressionBlock()),
    'regression of two': dict(label_col=['score', 'stars'], y_block=ft.RegressionBlock(n_out=2))}

@pytest.mark.parametrize('kind', LABELS)
def test_labels_equal_fastai(kind):
    args,df = dict(LABELS[kind]),make_frame()
    if args.pop('x', 0): args['label_col'] = [1, 8]
    if 'valid_col' in args: df['held0'],df['score'] = df.held,df.stars/2
    same_dls(*(loaders(m, df, tok_tfm=ft.BaseTokenizer(), **args) for m in (rf, ft)))   # quicker than spaCy

OPTIONS = [dict(seed=2), dict(valid_pct=0.5), dict(valid_col='held'), dict(valid_col=7),
           dict(text_col=['text', 'body']),
           dict(text_col=[5, 0]), dict(text_col=5), dict(backwards=True), dict(bs=3), dict(val_bs=7), dict(bs=100),
           dict(tok_tfm=ft.BaseTokenizer()), dict(text_vocab=['xxunk', 'xxpad', 'xxbos', 'ten', 'two', 'xxfake'])]

@pytest.mark.parametrize('args', OPTIONS, ids=lambda a: ','.join(a))
def test_options_equal_fastai(args): same_dls(*(loaders(m, **args) for m in (rf, ft)))

@pytest.mark.parametrize('args', [dict(min_freq=50), dict(max_vocab=12), dict(shuffle=False), *OPTIONS],
                         ids=lambda a: ','.join(a))
def test_options_matter(args):
    torch.manual_seed(0); random.seed(0)
    a = loaders(**args)
    random.seed(0)
    b = loaders()
    assert [rows_of(d) for d in a] + [list(a.vocab[0])] != [rows_of(d) for d in b] + [list(b.vocab[0])]

def test_split_without_a_seed_follows_the_global_stream():
    def content(m, seed):
        ft.set_seed(seed)
        return rows_of(loaders(m, seed=None).valid)
    assert content(rf, 3) == content(ft, 3) != content(rf, 4)

def test_new_texts_equal_fastai():
    texts = ['ten', 'one two three unknown', '', 'Two two', 'nine']
    ours,theirs = (plain(m).test_dl(texts, bs=2) for m in (rf, ft))
    assert [[fastai_row(x) for x in b[0]] for b in ours] == [[fastai_row(x) for x in b[0]] for b in theirs]
    df = make_frame()
    ours,theirs = (plain(m).test_dl(df, with_labels=True, bs=2) for m in (rf, ft))
    assert rows_of(ours) == rows_of(theirs)
    assert len(plain().test_dl(df).one_batch()) == 1

@pytest.mark.parametrize('kind', ['names', 'ints', 'bools', 'delim', 'encoded', 'regression', 'regression of two'])
def test_decoded_batches_equal_fastai(kind):
    ours,theirs = (loaders(m, tok_tfm=ft.BaseTokenizer(), **LABELS[kind]) for m in (rf, ft))
    a,b = (d.valid.decode_batch(d.valid.one_batch(), max_n=3) for d in (ours, theirs))
    assert len(a) == len(b) == 3
    for (t,y),(u,v) in zip(a, b, strict=True):
        assert str(t) == str(u) and type(y) is type(v)
        assert str(y) == str(v)

@pytest.mark.parametrize('kind', ['names', 'delim', 'regression'])
def test_show_batch(capsys, kind):
    dls = loaders(**LABELS[kind])
    dls.show_batch(max_n=2)
    dls.valid.show_batch()
    dls.test_dl(['one two']).show_batch()
    heads = [h for h in map(str.split, capsys.readouterr().out.splitlines()) if h[0] == 'text']
    assert [len(h) for h in heads] == [2, 2, 1]   # texts to be predicted have no target

# ---- Rows, lengths, padding

def test_lens_and_padding():
    for dl in plain():
        for x,_ in dl:
            assert type(x) is PaddedText and x.dtype == torch.int64 and x.shape[1] == x.lens.max()
            assert x.lens.dtype == torch.int64 and x.lens.device.type == 'cpu'
            real = torch.arange(x.shape[1]) < x.lens[:, None]
            assert_close(torch.Tensor(x) != 1, real)
            assert x.lens.tolist() == sorted(x.lens.tolist(), reverse=True)

def test_backwards_is_padded_on_the_right_too():
    dls = loaders(backwards=True)
    for (x,_),(u,_) in zip(dls.valid, plain().valid, strict=True):
        for row,other,n in zip(x.tolist(), u.tolist(), x.lens.tolist(), strict=True): assert row[:n] == other[:n][::-1]
    text,_ = dls.valid.decode_batch(dls.valid.one_batch())[0]
    assert str(text).endswith('xxbos')

@pytest.mark.parametrize('lens', [[1, 3000, 2, 1, 1], [1], [1]*9, [5, 5, 5, 4], list(range(1, 40))])
@pytest.mark.parametrize('bs', [1, 2, 64])
@pytest.mark.parametrize('shuffle', [False, True])
def test_any_lengths(lens, bs, shuffle):
    c = rf.Corpus.from_ids([np.full(n, i+2) for i,n in enumerate(lens)], ['xxunk', 'xxpad', *map(str, range(99))])
    dl = rf.DocDataLoader(rf.DocDataset(c), bs=bs, shuffle=shuffle)
    rows = [r for x, in dl for r in x.tolist()]
    assert sorted((r[0]-2, sum(i != 1 for i in r)) for r in rows) == list(enumerate(lens))
    assert len(list(dl)) == len(dl) == -(-len(lens)//bs)
    assert next(iter(dl))[0].shape[1] == max(lens)   # the longest comes first
    assert 0 <= dl.waste < 1

def test_documents_of_no_ids():
    c = rf.Corpus.from_ids([[], [2, 3], []], ['xxunk', 'xxpad', 'a', 'b'])
    with pytest.raises(ValueError, match=r'Text 0 of 3 has no token \(2 have none\); leave'): rf.DocDataset(c)

def test_no_documents():
    dl = plain().test_dl([])
    assert list(dl) == [] and len(dl) == 0 and dl.waste == 0
    assert list(loaders(valid_pct=0.).valid) == []

def test_one_document():
    dls = loaders(df=make_frame()[:1], bs=64)
    assert (len(dls.train), len(dls.valid), dls.c) == (1, 0, 1)
    (x,y), = dls.train
    assert x.shape[0] == 1 and y.tolist() == [0]

# ---- Order and shuffling

def numbered(lens, **kwargs):
    "Documents whose first id is their number; a loader draws its seed from Python's generator."
    random.seed(0)
    vocab = ['xxunk', 'xxpad', *map(str, range(len(lens)))]
    c = rf.Corpus.from_ids([np.full(n, i+2) for i,n in enumerate(lens)], vocab)
    return rf.DocDataLoader(rf.DocDataset(c), **kwargs)

def epoch(dl): return [(x[:, 0]-2).tolist() for x, in dl]
LENGTHS = np.random.default_rng(0).integers(20, 400, 500).tolist()

def test_every_document_once_an_epoch_with_other_mates():
    dl = numbered(LENGTHS, bs=16, shuffle=True)
    epochs = [epoch(dl) for _ in range(3)]
    for e in epochs: assert sorted(sum(e, [])) == list(range(500)) and [len(b) for b in e[:-1]] == [16]*31
    assert repeated(epochs) <= 0.1
    assert len({tuple(e[1]) for e in epochs}) == 3
    assert all(max(LENGTHS) == max(LENGTHS[i] for i in e[0]) for e in epochs)

def repeated(epochs):
    "Share of the batches that two epochs on end have in common, in the mean."
    sets = [{frozenset(b) for b in e} for e in epochs]
    return np.mean([len(a & b)/len(b) for a,b in zip(sets, sets[1:], strict=False)])

@pytest.mark.parametrize('lens', [range(3, 67), range(10, 42), range(100, 420, 5)])
def test_other_mates_where_all_lengths_differ(lens):
    dl = numbered(list(lens), bs=8, shuffle=True)
    assert repeated([epoch(dl) for _ in range(40)]) <= 0.5

def test_batches_of_an_epoch_come_in_any_order_of_length():
    means = [np.mean([LENGTHS[i] for i in b]) for b in epoch(numbered(LENGTHS, bs=16, shuffle=True))]
    assert abs(np.corrcoef(means[1:-1], range(len(means)-2))[0, 1]) < 0.5

def test_little_is_padding():
    dl = numbered(LENGTHS, bs=16, shuffle=True)
    n = sum(x.numel() for x, in dl)
    assert dl.waste < 0.06 and 1 - sum(LENGTHS)/n < 0.06
    still = numbered(LENGTHS, bs=16)
    assert abs(still.waste - (1 - sum(LENGTHS)/sum(x.numel() for x, in still))) < 1e-9

def test_drop_last_drops_others_each_epoch():
    dl = numbered(LENGTHS[:50], bs=16, shuffle=True, drop_last=True)
    gone = [set(range(50)) - set(sum(epoch(dl), [])) for _ in range(30)]
    assert {len(g) for g in gone} == {2} and len(set(map(frozenset, gone))) > 10
    assert len(set().union(*gone)) > 25     # long ones and short ones
    assert len(dl) == 3 == len(list(dl))

def test_training_loader_keeps_documents_where_there_is_no_whole_batch():
    dls = loaders(bs=1000)
    assert len(dls.train) == 1 and len(dls.train.one_batch()[0]) == len(dls.train_ds)
    assert len(loaders(df=make_frame(40), bs=32).train) == 1   # 32 rows: one batch, whole

def test_set_seed_repeats_epochs():
    def epochs(seed):
        ft.set_seed(seed)
        dls = loaders()
        return [rows_of(dls.train) for _ in range(3)]
    assert epochs(1) == epochs(1) != epochs(2)

def test_unshuffled_loaders_leave_random_streams():
    dls = loaders()
    before = torch.get_rng_state(),np.random.get_state()[1].tolist(),random.getstate()
    assert rows_of(dls.valid) == rows_of(dls.valid)
    assert_close(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]

def test_new_loaders():
    dl = plain().valid.new(bs=2)
    assert (dl.bs, len(dl.one_batch()[0]), dl.dataset is plain().valid_ds) == (2, 2, True)
    shuffled = plain().valid.new(shuffle=True)
    assert sorted(map(repr, sum(rows_of(shuffled), []))) == sorted(map(repr, sum(rows_of(plain().valid), [])))
    assert not plain().train.new(['one']).shuffle and not plain().train.new(['one']).drop_last
    for bs in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match='bs='): plain().valid.new(bs=bs)

def test_other_devices():
    dls = loaders().to('meta')
    for dl in dls:
        x,y = dl.one_batch()
        assert x.device.type == y.device.type == 'meta' and x.lens.device.type == 'cpu'
    x,y = loaders(device='meta').train.one_batch()
    assert x.device.type == 'meta' and torch.device(dls.device).type == 'meta'

def test_loaders_are_pickled():
    dls = pickle.loads(pickle.dumps(plain()))
    assert rows_of(dls.valid) == rows_of(plain().valid)
    assert plain().new_empty().valid.dataset.corpus.lens.sum() == 0

def test_transforms_of_batches_are_run():
    dls = loaders(after_batch=Doubled())
    assert (dls.valid.one_batch()[1] == 2*plain().valid.one_batch()[1]).all()
    x,_ = dls.valid.one_batch()
    assert x.lens.tolist() == (torch.Tensor(x) != 1).sum(1).tolist()

class Doubled(ft.Transform):
    def encodes(self, y:ft.TensorCategory): return y*2

# ---- Learners

class Bag(nn.Module):
    "Mean of embeddings of the real tokens; wants lengths."
    def __init__(self, n, c):
        super().__init__()
        self.emb,self.out = nn.Embedding(n, 8, padding_idx=1),nn.Linear(8, c)
    def forward(self, x):
        assert x.lens.tolist() == (x.as_subclass(torch.Tensor) != 1).sum(1).tolist()
        h = self.emb(x.as_subclass(torch.Tensor)).sum(1)/x.lens.to(x.device)[:, None]
        return self.out(h)

def bag(dls, path, **kwargs):
    torch.manual_seed(0)
    learn = rf.Learner(dls, Bag(len(rf.text_vocab(dls)), dls.c), path=path, **kwargs)
    learn.remove_cb(rf.ProgressCallback)
    return learn

def expected(learn, texts):
    "Outputs one text at a time, in the order of rows."
    dls,out = learn.dls,[]
    for t in texts:
        x, = dls.test_dl([t]).one_batch()
        with torch.no_grad(): out.append(learn.model.eval()(x)[0])
    return torch.stack(out)

INDEXES = {'reversed': lambda n: range(n)[::-1], 'duplicates': lambda n: [i//3 for i in range(n)],
           'names': lambda n: [f'r{i}' for i in range(n)], 'all one': lambda n: [7]*n}

@pytest.mark.parametrize('index', INDEXES)
@pytest.mark.parametrize('bs', [3, 64])
def test_predictions_are_in_row_order(tmp_path, index, bs):
    df = make_frame()
    df.index = INDEXES[index](len(df))
    dls = loaders(df=df, bs=bs, valid_col='held')
    learn = bag(dls, tmp_path)
    logits = dict(act=ft.noop)
    for ds_idx,part in ((0, df[~df.held]), (1, df[df.held])):
        want = expected(learn, part.text)
        preds,y = learn.get_preds(ds_idx=ds_idx, **logits)
        assert_close(preds, want)
        assert [dls.vocab[1][i] for i in y] == part.label.tolist()
        assert_close(learn.get_preds(dl=dls[ds_idx].new(bs=5), **logits)[0], want)
        assert_close(learn.get_preds(dl=dls[ds_idx].new(bs=5, shuffle=True), **logits)[0], want)
    assert_close(learn.get_preds(dl=dls.test_dl(df), **logits)[0], expected(learn, df.text))
    assert_close(learn.get_preds(dl=dls.test_dl(df.text), **logits)[0], expected(learn, df.text))

@pytest.mark.parametrize('kind', ['names', 'ints', 'delim', 'encoded', 'regression', 'regression of two'])
def test_learner_of_each_kind(tmp_path, kind):
    dls = loaders(**LABELS[kind])
    learn = bag(dls, tmp_path)
    learn.fit(1)
    preds,y,dec,losses = learn.get_preds(with_decoded=True, with_loss=True)
    assert len(preds) == len(y) == len(dec) == len(losses) == len(dls.valid_ds)
    assert_close(torch.Tensor(y), torch.Tensor(dls.valid_ds.y))
    assert_close(losses.mean().item(), learn.validate()[0], rtol=1e-4, atol=1e-5)
    label,_,p = learn.predict('one two three')
    assert_close(p, learn.get_preds(dl=dls.test_dl(['one two three']))[0][0])
    if kind == 'names': assert str(label) == dls.vocab[1][p.argmax()]

CONFIG = {**ft.awd_lstm_clas_config, 'emb_sz': 6, 'n_hid': 6, 'n_layers': 2}
def awd(dls, path, m=rf, **kwargs):
    torch.manual_seed(0)
    arch = m.AWD_LSTM if m is ft else 'AWD_LSTM'
    learn = m.text_classifier_learner(dls, arch, config=CONFIG, pretrained=False, metrics=ft.accuracy, path=path,
                                      **kwargs)
    learn.remove_cb(ft.ProgressCallback)
    return learn

def load_ours(theirs, ours):
    "Our weights by fastai's names."
    mine = canonical_names(ours.state_dict())
    theirs.load_state_dict({k: mine[canonical_name(k)] for k in theirs.state_dict()})

def alone(theirs, dl):
    "fastai's probabilities for each document by itself, in the order of a loader: there it is right."
    theirs.model.eval()
    with torch.no_grad():
        rows = [x[x != 1] for b in dl for x in b[0].as_subclass(torch.Tensor)]
        return torch.cat([theirs.model(x[None])[0].softmax(-1) for x in rows])

@pytest.mark.parametrize('hi,args,how', [(20, {}, {}), (260, {}, {}), (260, dict(bs=3), dict(seq_len=20)),
                                         (20, dict(backwards=True), {}),
                                         (20, dict(text_col=['text', 'body']), dict(seq_len=7))])
def test_classifier_equals_fastai(tmp_path, hi, args, how):
    df = make_frame(hi=hi)
    seq_len = how.get('seq_len', 72)         # fastai's loaders pad by whole steps of the model, so they must know
    ours = awd(loaders(df=df, **args), tmp_path, **how)
    theirs = awd(loaders(ft, df, seq_len=seq_len, **args), tmp_path, ft, **how)
    load_ours(theirs.model, ours.model)
    (p,y),(q,z) = ours.get_preds(),theirs.get_preds()
    own = ours.get_preds(reorder=False)[0]
    assert_close(own, alone(theirs, ours.dls.valid), rtol=0, atol=1e-5)
    assert y.tolist() == z.tolist()
    if args.get('backwards') or seq_len == 7: return     # there fastai's answer depends on padding
    assert_close(p, q, rtol=0, atol=1e-5)
    assert_close(ours.validate(), theirs.validate(), rtol=0, atol=1e-5)

def test_fastai_arch_is_taken(tmp_path):
    rf.text_classifier_learner(plain(), ft.AWD_LSTM, config=CONFIG, pretrained=False, path=tmp_path)

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    learn = awd(loaders(), tmp_path_factory.mktemp('learn'))
    learn.fit(1)
    return learn

def test_predict(trained):
    label,i,p = trained.predict('one two three')
    assert label == trained.dls.vocab[1][i] and i == p.argmax() and p.shape == (3,)
    text,*_ = trained.predict('one two', with_input=True)
    assert str(text) == 'xxbos one two'
    assert_close(trained.predict('')[2], trained.get_preds(dl=trained.dls.test_dl(['']))[0][0])

def test_predict_a_row_of_a_frame(trained):
    row = make_frame().iloc[3]
    assert_close(trained.predict(row)[2], trained.predict(row.text)[2])

def test_known_words_are_met_again(trained):
    words = rf.WordTokenizer()
    assert words.cut(['one', 'it']) == words.cut(['one', 'it']) == [('one',), ('it',)]
    assert words.cut([]) == []
    rf.WordTokenizer().tokenize('quagga')                          # fills the cache that all share
    assert list(rf.TextTokenizer()(['quagga'])) == [['xxbos', 'quagga']]

def test_show_results(trained, capsys):
    trained.show_results(max_n=2)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ['text', 'target', 'prediction'] and len(rows) == 2

def test_exported_and_loaded(trained):
    trained.export('e.pkl')
    again = load_learner(trained.path/'e.pkl')
    df = make_frame()
    for dl in (lambda d: d.test_dl(df), lambda d: d.test_dl(df, with_labels=True), lambda d: d.test_dl(list(df.text))):
        a,b = (learn.get_preds(dl=dl(learn.dls)) for learn in (again, trained))
        assert_close(a[0], b[0])
    assert again.predict('one two')[0] == trained.predict('one two')[0] and again.dls.vocab[1] == trained.dls.vocab[1]
    assert len(again.dls.train_ds) == 0 and len(again.dls.train_ds.y if again.dls.train_ds.y is not None else []) == 0

def test_interpretation(trained, capsys):
    interp = ft.ClassificationInterpretation.from_learner(trained)
    preds,y,losses = trained.get_preds(with_loss=True)
    assert_close(torch.Tensor(interp.losses), torch.Tensor(losses))
    top,idx,items = interp.top_losses(3, items=True)
    assert_close(torch.Tensor(losses)[torch.Tensor(idx).long()], torch.Tensor(top))
    assert items.text.tolist() == [trained.dls.valid_ds.items.text.iloc[i] for i in idx.tolist()]
    want = np.zeros((3, 3), dtype=int)
    for t,p in zip(y.tolist(), preds.argmax(1).tolist(), strict=True): want[t, p] += 1
    assert interp.confusion_matrix().tolist() == want.tolist()
    interp.plot_confusion_matrix()
    interp.print_classification_report()
    capsys.readouterr()
    interp.plot_top_losses(2)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ['text', 'target', 'predicted', 'probability', 'loss'] and len(rows) == 2
    assert [float(r.split()[-1]) for r in rows] == pytest.approx(top[:2].tolist(), abs=1e-4)

def test_rows_of_an_interpretation_belong_to_their_losses(trained):
    interp = ft.Interpretation.from_learner(trained)
    _,preds,y,_,losses = interp[list(range(len(trained.dls.valid_ds)))]
    assert_close(-preds[range(len(y)), torch.Tensor(y).long()].log(), torch.Tensor(losses))

def test_mixed_order_of_other_bs(trained):
    a = trained.get_preds()[0]
    trained.dls.valid.bs = 3
    try: assert_close(trained.get_preds()[0], a)
    finally: trained.dls.valid.bs = 4

# ---- Splits

def share(labels): return pd.Series(labels).value_counts(normalize=True)

def test_stratified_split():
    df = pd.DataFrame({'text': make_texts(400), 'label': ['a']*320 + ['b']*60 + ['c']*20})
    dls = loaders(df=df, stratify=True, valid_pct=0.25)
    for ds in (dls.train_ds, dls.valid_ds): assert (share(ds.items.label) - share(df.label)).abs().max() < 0.006
    assert len(dls.valid_ds) == 100
    assert not loaders(df=df, stratify=True, seed=2).valid_ds.items.equals(loaders(df=df, stratify=True).valid_ds.items)
    assert loaders(df=df, stratify=True).valid_ds.items.equals(loaders(df=df, stratify=True).valid_ds.items)

def test_stratified_split_of_a_label_that_is_met_once():
    df = pd.DataFrame({'text': make_texts(20), 'label': ['a']*19 + ['b']})
    with pytest.raises(ValueError, match='stratify'): loaders(df=df, stratify=True)

def test_stratified_split_names_missing_labels():
    df = make_frame().astype(object)
    for gone in (None, float('nan')):
        df.iloc[3, 1] = gone
        with pytest.raises(ValueError, match="'label'.*missing"): loaders(df=df, stratify=True)

@pytest.mark.parametrize('args', [dict(label_col='tags', label_delim=';'),
                                  dict(label_col='score', y_block=ft.RegressionBlock())])
def test_stratified_split_of_other_labels(args):
    try: loaders(stratify=True, **args)
    except ValueError as e: assert 'stratify' in str(e)

@pytest.mark.parametrize('values', [[True, False], [1, 0], [1., 0.]])
def test_valid_col_of_other_types(values):
    df = make_frame()
    df['v'] = [values[not h] for h in df.held]
    assert loaders(df=df, valid_col='v').valid_ds.items.held.all()

@pytest.mark.parametrize('values', [['True', 'False'], [True, None], [float('nan'), 1.], ['valid', 'train']])
def test_valid_col_of_no_truth_values_is_refused(values):
    df = make_frame()
    df['v'] = pd.Series([values[not h] for h in df.held], df.index, dtype=object)
    with pytest.raises((ValueError, TypeError), match="'v'"): loaders(df=df, valid_col='v')

# ---- Folders and CSV

def make_tree(path, parts, n=6):
    for k,part in enumerate(parts):
        (path/part).mkdir(parents=True, exist_ok=True)
        for i,t in enumerate(make_texts(n, seed=k)):
            (path/part/f'{i}.txt').write_text(f'{t} {part}\nÜber', encoding='utf8')
    return path

FOLDER = {k: v for k,v in BASE.items() if not k.endswith('_col')}
def from_folder(m, path, **args): return m.TextDataLoaders.from_folder(path, **{**FOLDER, **args})
TREE = 'train/neg', 'train/pos', 'valid/neg', 'valid/pos'

@pytest.mark.parametrize('args', [{}, dict(backwards=True), dict(valid_pct=0.3), dict(train='valid', valid='train'),
                                  dict(vocab=['pos', 'neg']), dict(bs=3, val_bs=5)], ids=lambda a: ','.join(a))
def test_from_folder_equals_fastai(tmp_path, args):
    make_tree(tmp_path/'t', TREE)
    same_dls(*(from_folder(m, tmp_path/'t', **args) for m in (rf, ft)))

def aclimdb(path):
    "The tree of aclImdb, lists of addresses and all."
    make_tree(path, ('train/neg', 'train/pos', 'train/unsup', 'test/neg', 'test/pos'))
    for f in ('README', 'imdb.vocab', 'imdbEr.txt', 'train/urls_pos.txt', 'train/urls_neg.txt', 'train/urls_unsup.txt',
              'test/urls_pos.txt', 'test/urls_neg.txt', 'train/labeledBow.feat'):
        (path/f).write_text('http://no.where/\n'*9)
    return path

def test_aclimdb_equals_fastai(tmp_path):
    aclimdb(tmp_path/'t')
    for f in (tmp_path/'t'/'train'/'unsup').iterdir(): f.unlink()
    same_dls(*(from_folder(m, tmp_path/'t', valid='test') for m in (rf, ft)))

def test_aclimdb_as_a_language_model_and_a_corpus(tmp_path):
    aclimdb(tmp_path/'t')
    assert len(rf.Corpus.from_texts(tmp_path/'t'/'train'/'pos')) == 6
    ours,theirs = (from_folder(m, tmp_path/'t', valid='test', is_lm=True, seq_len=5, shuffle=False) for m in (rf, ft))
    assert list(ours.vocab) == list(theirs.vocab) and len(ours.valid) == len(theirs.valid)

def test_other_folders_beside_are_left_alone(tmp_path):
    make_tree(tmp_path/'t', (*TREE, 'unsup', 'other/strange'))
    dls = from_folder(rf, tmp_path/'t')
    assert list(dls.vocab[1]) == ['neg', 'pos'] and len(dls.train_ds) + len(dls.valid_ds) == 24

def test_label_that_only_the_validation_folder_has(tmp_path):
    make_tree(tmp_path/'t', (*TREE, 'valid/odd'))
    with pytest.raises(ValueError, match="label 'odd'.*'neg', 'pos'"): from_folder(rf, tmp_path/'t')

def test_stratified_folder(tmp_path):
    make_tree(tmp_path/'t', ('a', 'b'), 20)
    dls = from_folder(rf, tmp_path/'t', valid_pct=0.2, stratify=True)
    assert dls.valid_ds.y.tolist().count(0) == 4 == dls.valid_ds.y.tolist().count(1)

def test_folder_predictions_and_files(tmp_path):
    make_tree(tmp_path/'t', TREE)
    dls = from_folder(rf, tmp_path/'t')
    learn = bag(dls, tmp_path)
    files = dls.valid_ds.items
    want = expected(learn, [f.read_text(encoding='utf8') for f in files])
    assert_close(learn.get_preds(act=ft.noop)[0], want)
    assert_close(learn.get_preds(dl=dls.test_dl(files), act=ft.noop)[0], want)
    assert_close(learn.get_preds(dl=dls.test_dl(files, with_labels=True))[1].tolist(), dls.valid_ds.y.tolist())

@pytest.mark.parametrize('args', [dict(valid='test'), dict(train='tran')])
def test_folder_that_is_not_there(tmp_path, args):
    make_tree(tmp_path/'t', TREE)
    with pytest.raises(ValueError, match='(?i)test|tran|none'):
        assert len(from_folder(rf, tmp_path/'t', **args).valid) > 0

@pytest.mark.parametrize('args,write', [
    ({}, dict(index=False)), (dict(csv_fname='a.csv', label_col='stars'), dict(index=False)),
    (dict(label_col='tags', label_delim=';', y_block=ft.MultiCategoryBlock()), dict(index=False)),
    (dict(header=None, text_col=0, label_col=1), dict(index=False, header=False)),
    (dict(delimiter=';', valid_col='held'), dict(index=False, sep=';'))])
def test_from_csv_equals_fastai(tmp_path, args, write):
    df = make_frame()
    df = df[(df.text != '') & (df.body != '') & (df.tags != '')]
    df.to_csv(tmp_path/args.get('csv_fname', 'labels.csv'), **write)
    same_dls(*(m.TextDataLoaders.from_csv(tmp_path, **{**BASE, **args}) for m in (rf, ft)))

# ---- Names and bad input

@pytest.mark.parametrize('text,label', [('index', 'size'), ('a b', 'values'), ('', 'T'), ('text_length', 'count'),
                                        (7, 8), (1, 0), ('lens', 'dtype'), (True, False), (np.int64(3), 'x'),
                                        ('naïve', 'label.x')])
def test_odd_names_of_columns(text, label):
    df = make_frame()
    odd = pd.DataFrame({text: df.text, 'between': 1, label: df.label})
    if isinstance(text, int) and text in (0, 1) and not isinstance(text, bool): text,label = 0,2   # places
    dls = loaders(df=odd, text_col=text, label_col=label)
    assert rows_of(dls.valid) == rows_of(plain().valid)
    assert [x.tolist() for x, in dls.test_dl(odd)] == [x.tolist() for x, in plain().test_dl(df)]

def with_value(col, value, row=3):
    df = make_frame().astype(object)
    df.iat[row, df.columns.get_loc(col)] = value
    return df
def doubled(*cols):
    df = make_frame()
    return pd.concat([df, df[list(cols)]], axis=1)
def held(label):
    "A label that only a held-out row has."
    df = make_frame()
    df.loc[df.index[df.held.argmax()], 'label'] = label
    return df

BAD = {
    'label missing': (lambda: with_value('label', None), {}, ValueError, ["'label'", '1 missing', 'dropna']),
    'label nan': (lambda: with_value('label', float('nan')), {}, ValueError, ["'label'", '1 missing']),
    'label NaT': (lambda: with_value('label', pd.NaT), {}, ValueError, ["'label'", '1 missing']),
    'score missing': (lambda: with_value('score', None), LABELS['regression'], ValueError, ["'score'", '1 missing']),
    'tags missing': (lambda: with_value('tags', None), LABELS['delim'], ValueError, ["'tags'", '1 missing']),
    'one of two missing': (lambda: with_value('mood', None), LABELS['two columns'], ValueError,
                          ["'mood'", '1 missing']),
    'score no number': (lambda: with_value('score', 'high'), LABELS['regression'], (ValueError, TypeError),
                        ["'score'", 'high']),
    'labels of two types': (lambda: with_value('label', 5), {}, (ValueError, TypeError), ["'label'"]),
    'label unseen': (lambda: held('new'), dict(valid_col='held'), ValueError,
                     ["'label'", "'new'", "'neg', 'pos', 'so'"]),
    'text missing': (lambda: with_value('text', None), {}, ValueError, ["'text'", 'missing']),
    'text number': (lambda: with_value('text', 5), {}, TypeError, ["'text'", '5']),
    'text bytes': (lambda: with_value('text', b'x'), {}, TypeError, ["'text'", "b'x'"]),
    'no text column': (make_frame, dict(text_col='txt'), ValueError, ["text_col='txt'", "'text'"]),
    'no label column': (make_frame, dict(label_col='lable'), ValueError, ["label_col='lable'", "'label'"]),
    'no such place': (make_frame, dict(label_col=99), ValueError, ['label_col=99']),
    'no valid column': (make_frame, dict(valid_col='is_valid'), ValueError, ["valid_col='is_valid'", "'held'"]),
    'text column twice': (lambda: doubled('text'), {}, ValueError, ["'text'", 'several columns']),
    'text column twice, by place': (lambda: doubled('text'), dict(text_col=0), ValueError,
                                    ["'text'", 'several columns']),
    'label column twice': (lambda: doubled('label'), {}, ValueError, ["'label'", 'several columns']),
    'label column twice, by place': (lambda: doubled('label'), dict(label_col=1), ValueError,
                                     ["'label'", 'several columns']),
    'valid column twice': (lambda: doubled('held'), dict(valid_col='held'), ValueError, ["'held'", 'several columns']),
    'no rows': (lambda: make_frame()[:0], {}, ValueError, ['no rows']),
    'no training rows': (lambda: make_frame().assign(held=True), dict(valid_col='held'), ValueError,
                         ['training set', 'is empty']),
    'bs': (make_frame, dict(bs=0), ValueError, ['bs=0']),
    'val_bs': (make_frame, dict(val_bs=-1), ValueError, ['val_bs=-1']),
    'bs of a float': (make_frame, dict(bs=2.), ValueError, ['bs=2.0']),
    'name': (make_frame, dict(batch=5), TypeError, ["'batch'"]),
    'near name': (make_frame, dict(sufle=True), TypeError, ["'shuffle'"]),
    'valid_pct': (make_frame, dict(valid_pct=1.5), ValueError, ['valid_pct']),
    'two blocks': (make_frame, dict(y_block=[ft.CategoryBlock(), ft.RegressionBlock()]),
                   (ValueError, TypeError), ['y_block']),
    'no block': (make_frame, dict(y_block='category'), (ValueError, TypeError), ['y_block']),
    'no text vocab': (make_frame, dict(text_vocab=['xxunk', 'a']), ValueError, ['xxpad']),
    'label vocab lacks one': (make_frame, dict(y_block=ft.CategoryBlock(vocab=['neg', 'pos'])), ValueError,
                              ["'label'", "'so'"])}

@pytest.mark.parametrize('case', BAD)
def test_bad_input(case):
    make,args,err,words = BAD[case]
    with pytest.raises(err) as e: loaders(df=make(), **args)
    assert all(w in str(e.value) for w in words), str(e.value)

def test_columns_twice_that_nobody_asks_for_do_no_harm():
    assert rows_of(loaders(df=doubled('body', 'score')).valid) == rows_of(plain().valid)

def test_rows_in_messages_are_named_as_the_frame_names_them():
    df = with_value('label', None, 3)
    with pytest.raises(ValueError, match=rf'row {df.index[3]}\b'): loaders(df=df)
    with pytest.raises(ValueError, match=rf'row {df.index[3]}\b'): loaders(df=with_value('text', None, 3))

def test_unseen_label_of_new_texts():
    df = make_frame().assign(label='new')
    assert len(plain().test_dl(df).one_batch()) == 1
    with pytest.raises(ValueError, match="'new'"): plain().test_dl(df, with_labels=True)

@pytest.mark.parametrize('wrap', [list, tuple, np.array, set])
def test_lists_of_labels_in_a_column(wrap):
    df = make_frame()
    df['many'] = [wrap(t.split(';')) if t else wrap([]) for t in df.tags]
    a = loaders(df=df, label_col='many', y_block=ft.MultiCategoryBlock())
    assert rows_of(a.valid) == rows_of(loaders(df=df, **LABELS['delim']).valid)

def test_delimited_labels_need_no_block():
    assert rows_of(loaders(label_col='tags', label_delim=';').valid) == rows_of(loaders(**LABELS['delim']).valid)

def test_tokenizers():
    df = make_frame()
    for tok in (rf.CharTokenizer, rf.CharTokenizer(), rf.ByteLevelTokenizer(300),
                rf.TextTokenizer(split_all, rules=[])):
        dls = loaders(df=df, tok_tfm=tok)
        text,_ = dls.valid.decode_batch(dls.valid.one_batch())[0]
        assert len(str(text)) > 5
        label,_ = bag(dls, '.').predict('one two')[:2]
        assert label in dls.vocab[1]

def split_all(items): return (['xxbos', *t.split()] for t in items)

# ---- DataBlock

SLOW = [pytest.param(a, marks=pytest.mark.slow) for a in (dict(backwards=True), dict(min_freq=30))]
@pytest.mark.parametrize('args', [{}, *SLOW], ids=lambda a: ','.join(a))
def test_data_block(tmp_path, args):
    def block(m):
        return m.DataBlock(blocks=(m.TextBlock.from_df('text', is_lm=False, **args), m.CategoryBlock),
                           get_x=m.ColReader('text'), get_y=m.ColReader('label'),
                           splitter=m.RandomSplitter(0.3, seed=4))
    df = make_frame(hi=200)
    dls = [block(m).dataloaders(df, bs=4, device='cpu') for m in (rf, ft)]
    ours,theirs = (awd(d, tmp_path, m) for d,m in zip(dls, (rf, ft), strict=True))
    load_ours(theirs.model, ours.model)
    assert list(dls[0].vocab[0]) == list(dls[1].vocab[0])
    assert_close(ours.get_preds(reorder=False)[0], alone(theirs, dls[0].valid), rtol=0, atol=1e-5)
    ours.fit(1)
    assert ours.predict('one two')[0] in dls[0].vocab[1]
