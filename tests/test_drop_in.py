"What users bring from fastai: nets that keep their state inside, losses of torch's, files, configs and signatures."
import inspect
from functools import partial

import fastai.text.all as fast
import pytest
import torch
from fastcore.basics import noop
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import rnn_fastai.all as rf
from rnn_fastai.learner.weights import shared_weights

CLOSE = dict(rtol=1e-5, atol=1e-6)
BS,SL = 16,8


# --- Nets as chapter 12 of fastai's book builds them, each a step further ---

class ThreeWords(nn.Module):
    "Three words to the next; the state is a sum that goes through one layer."
    def __init__(self, n, hid=16):
        super().__init__()
        self.words,self.step,self.out = nn.Embedding(n, hid),nn.Linear(hid, hid),nn.Linear(hid, n)
    def forward(self, x):
        h = 0
        for t in range(3): h = F.relu(self.step(h + self.words(x[:, t])))
        return self.out(h)


class KeepsState(ThreeWords):
    "The same, which goes on from the last batch."
    h = 0
    def forward(self, x):
        h = self.h
        for t in range(3): h = F.relu(self.step(h + self.words(x[:, t])))
        self.h = h.detach()
        return self.out(h)
    def reset(self): self.h = 0


class EveryStep(KeepsState):
    "The same, with an answer at every step."
    def forward(self, x):
        h,outs = self.h,[]
        for t in range(x.size(1)):
            h = F.relu(self.step(h + self.words(x[:, t])))
            outs.append(self.out(h))
        self.h = h.detach()
        return torch.stack(outs, 1)


class Stacked(nn.Module):
    "Layers of torch's; the state is a tensor for batches of one size."
    def __init__(self, n, hid=16, layers=2, bs=BS):
        super().__init__()
        self.words,self.rnn,self.out = nn.Embedding(n, hid),nn.RNN(hid, hid, layers, batch_first=True),nn.Linear(hid, n)
        self.h = torch.zeros(layers, bs, hid)
    def forward(self, x):
        raw,h = self.rnn(self.words(x), self.h)
        self.h = h.detach()
        return self.out(raw)
    def reset(self): self.h.zero_()


class StackedLSTM(nn.Module):
    "Layers of LSTM; the state is a list of two tensors."
    def __init__(self, n, hid=16, layers=2, bs=BS):
        super().__init__()
        self.words,self.rnn,self.out = nn.Embedding(n, hid),nn.LSTM(hid, hid, layers, batch_first=True),nn.Linear(hid, n)
        self.h = [torch.zeros(layers, bs, hid) for _ in range(2)]
    def forward(self, x):
        raw,h = self.rnn(self.words(x), tuple(self.h))
        self.h = [s.detach() for s in h]
        return self.out(raw)
    def reset(self):
        for s in self.h: s.zero_()


class Regularized(StackedLSTM):
    "With dropout, tied weights, and outputs of three parts for AR and TAR."
    def __init__(self, n, hid=16, layers=2, bs=BS, p=0.3):
        super().__init__(n, hid, layers, bs)
        self.drop,self.out.weight = nn.Dropout(p),self.words.weight
    def forward(self, x):
        raw,h = self.rnn(self.words(x), tuple(self.h))
        self.h = [s.detach() for s in h]
        out = self.drop(raw)
        return self.out(out),raw,out


class AnySize(Regularized):
    "The same for batches of any size: the first one after `reset` sets it."
    def reset(self): self.h = None
    def forward(self, x):
        raw,h = self.rnn(self.words(x), self.h)
        self.h = tuple(s.detach() for s in h)
        out = self.drop(raw)
        return self.out(out),raw,out


TOKENS = ' . '.join(rf.human_numbers()['text'][:300]).split()
VOCAB = list(dict.fromkeys(TOKENS))
IDS = [VOCAB.index(t) for t in TOKENS]


def rows(pairs):
    "Pairs in an order in which each row of a batch goes on in the next."
    m = len(pairs)//BS
    return [pairs[j*m + i] for i in range(m) for j in range(BS)]


def chapter_loaders(every_step):
    n = SL if every_step else 3
    ids = torch.tensor(IDS)
    pairs = [(ids[i:i+n], ids[i+1:i+n+1] if every_step else ids[i+n]) for i in range(0, len(ids)-n-1, n)]
    cut = len(pairs)*4//5
    return fast.DataLoaders.from_dsets(rows(pairs[:cut]), rows(pairs[cut:]), bs=BS, drop_last=True, shuffle=False,
                                       device='cpu')


def trained(make, net, dls, seed=7):
    "Losses of training and validation after each of two epochs."
    rf.set_seed(seed, reproducible=True)
    learn = make(dls, net(len(VOCAB)))
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, 1e-2)
    return torch.tensor([v[:2] for v in learn.recorder.values])


def losses_in_fastai(net, dls):
    def make(dls, model):
        if net in (Regularized, AnySize): return fast.TextLearner(dls, model, loss_func=fast.CrossEntropyLossFlat())
        return fast.Learner(dls, model, loss_func=fast.CrossEntropyLossFlat(), moms=(0.8, 0.7, 0.8),
                            cbs=fast.ModelResetter if hasattr(model, 'reset') else None)
    return trained(make, net, dls)


NETS = ThreeWords,KeepsState,EveryStep,Stacked,StackedLSTM,Regularized,AnySize

@pytest.mark.parametrize('net', NETS)
def test_nets_of_the_book_train_as_under_fastai(net):
    dls = chapter_loaders(net not in (ThreeWords, KeepsState))
    theirs = losses_in_fastai(net, dls)
    for cls,loss_func in ((rf.TextLearner, fast.CrossEntropyLossFlat()), (rf.LMLearner, F.cross_entropy)):
        def make(dls, model): return cls(dls, model, loss_func=loss_func, opt_func=fast.Adam)   # noqa: B023
        assert_close(trained(make, net, dls), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('net', NETS[2:])
def test_nets_of_the_book_train_in_rnn_learner(net):
    dls = rf.SeqDataLoaders.from_series(TOKENS, BS, SL, valid=TOKENS[:1000], device='cpu')
    assert dls.task.vocab == VOCAB
    drop_in = trained(lambda dls, n: rf.rnn_learner(dls, n, alpha=2., beta=1., moms=(0.8, 0.7, 0.8), opt_func=fast.Adam), net, dls)
    assert_close(drop_in, losses_in_fastai(net, dls), rtol=1e-5, atol=1e-5)


class Log(nn.Linear):
    "Counts calls of `reset`, and notes after how many batches each came."
    def __init__(self): super().__init__(1, 1); self.events = []
    def forward(self, x): self.events.append('batch'); return super().forward(x)
    def reset(self): self.events.append('reset')


def test_a_model_is_reset_when_fastai_resets_it():
    batches = [(torch.ones(2, 1), torch.ones(2, 1))]*3
    def events(cls, wrap=noop, **kw):
        log = Log()
        learn = cls(fast.DataLoaders(batches, batches), wrap(log), loss_func=nn.MSELoss(), alpha=0, beta=0, **kw)
        with learn.no_bar(), learn.no_logging():
            learn.fit(2); learn.validate(); learn.get_preds(dl=batches); learn.fit(1)
        return log.events
    class Three(nn.Module):   # fastai's callback takes outputs of three parts
        def __init__(self, m): super().__init__(); self.m = m
        def forward(self, x): y = self.m(x); return y,y[:, None],y[:, None]
        def reset(self): self.m.reset()
    theirs = events(fast.TextLearner, Three)
    assert theirs.count('reset') >= 9
    for cls in (rf.TextLearner, rf.LMLearner, rf.ClassifierLearner): assert events(cls) == events(cls, Three) == theirs
    # A part that alone has `reset` is reset at the same places; fastai itself does it twice where a fit begins.
    def places(events): return [e for i,e in enumerate(events) if e == 'batch' or events[i-1:i] != ['reset']]
    assert places(events(rf.TextLearner, lambda m: nn.Sequential(nn.Identity(), m))) == places(theirs)
    learn = rf.TextLearner(fast.DataLoaders(batches, batches), Log(), loss_func=nn.MSELoss())
    assert isinstance(learn.model_resetter, fast.ModelResetter)


# --- Generation from a state inside ---

def number_loaders(**kw):
    return rf.TextDataLoaders.from_df(rf.human_numbers_100(12), is_lm=True, seq_len=SL, text_col='text', seed=0, bs=4, device='cpu',
                                      **kw)


def by_hand(model, ids, n, rows):
    "The likeliest tokens, from the whole prefix each time, by a model whose state starts from zero."
    ids = ids.clone()
    for _ in range(n):
        model.reset()
        with torch.no_grad(): out = model(ids[None].expand(rows, -1))
        ids = torch.cat([ids, out[0][0, -1].argmax()[None]])
    return ids.tolist()


@pytest.mark.parametrize('net', [Regularized, AnySize])
@pytest.mark.parametrize('kind', ['LMLearner', 'rnn_learner'])
def test_models_with_a_state_inside_write_and_score(net, kind):
    dls = number_loaders()
    rf.set_seed(3)
    model = net(len(dls.vocab), bs=4)
    if kind == 'LMLearner': learn = rf.LMLearner(dls, model, loss_func=nn.CrossEntropyLoss())
    else: learn = rf.rnn_learner(dls, model, alpha=2., beta=1.)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    prompts = ['one, two, three', 'ninety one', 'one, two']
    ids = [learn._ids([p])[0] for p in prompts]
    model.eval()
    want = [by_hand(model, i, 6, 4) for i in ids]
    names = [[dls.vocab[i] for i in w[-6:]] for w in want]
    none = dict(temperature=0, no_unk=False, forbidden=())
    made = learn.generate(prompts, 6, no_bar=True, **none)
    assert [t.tokens for t in made] == names
    for p,t in zip(prompts, made, strict=True):
        assert learn.predict(p, 6, temperature=0, no_unk=False, no_bar=True) == t.text if kind == 'LMLearner' else True
        assert ''.join(learn.stream(p, 6, **none)) == t.text
    assert [t.tokens for t in learn.beam_search(prompts, 6, width=1, no_unk=False, no_bar=True)] == names
    for score,i in zip(learn.score(prompts, no_bar=True), ids, strict=True):
        model.reset()
        with torch.no_grad(): logp = model(i[None].expand(4, -1))[0][0].log_softmax(-1)
        assert_close(score.logps, logp[:-1].gather(1, i[1:, None])[:, 0], **CLOSE)
    with pytest.raises(ValueError, match='keeps no state inside'): learn.generate('one', 2, int8=True)
    adapted = learn.generate('one, two', 3, dynamic=rf.DynamicEvaluation(lr=1e-6), no_bar=True, **none)
    assert adapted[0].tokens == made[2].tokens[:3]
    assert learn.score('one, two', cache=rf.NeuralCache(), no_bar=True)[0].logps.isfinite().all()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-4)   # what generation left inside does no harm


def test_fastais_own_language_model_writes_under_our_learner():
    dls = number_loaders()
    cfg = {**fast.awd_lstm_lm_config, 'emb_sz': 8, 'n_hid': 12, 'n_layers': 2}
    rf.set_seed(1)
    theirs = fast.get_language_model(fast.AWD_LSTM, len(dls.vocab), cfg).eval()
    ours = rf.get_language_model('AWD_LSTM', len(dls.vocab), cfg)
    rf.load_weights(ours, theirs.state_dict())
    a,b = (rf.LMLearner(dls, m, loss_func=fast.CrossEntropyLossFlat()) for m in (theirs, ours))
    with a.no_bar(), a.no_logging(), b.no_bar(), b.no_logging(): assert_close(a.validate(), b.validate(), **CLOSE)
    for prompt in ('one, two,', 'seven'):
        assert a.predict(prompt, 8, temperature=0, no_bar=True) == b.predict(prompt, 8, temperature=0, no_bar=True)
    assert_close(a.score('one, two, three')[0].logps, b.score('one, two, three')[0].logps, **CLOSE)


# --- Arguments ---

def small(**kw): return dict(emb_sz=8, n_hid=12, n_layers=2, **kw)


def text_loaders(**kw):
    import pandas as pd
    df = pd.DataFrame({'text': ['a fine film', 'a bad film', 'fine, fine', 'bad and dull', 'very fine', 'dull']*6,
                       'label': ['pos', 'neg']*18})
    df['label'] = ['pos' if 'fine' in t else 'neg' for t in df.text]
    return rf.TextDataLoaders.from_df(df, text_col='text', label_col='label', valid_pct=0.3, seed=1, bs=8, device='cpu', **kw)


def test_loss_and_splitter_are_arguments():
    def halves(m): return [list(m[0].parameters()), [p for p in m[1].parameters() if p is not m[0].encoder.weight]]
    def parts(m): return [list(m[0].parameters()), list(m[1].parameters())]
    loss = fast.LabelSmoothingCrossEntropyFlat()
    lm = rf.language_model_learner(number_loaders(), 'AWD_LSTM', config=small(), pretrained=False, loss_func=loss,
                                   splitter=halves)
    clas = rf.text_classifier_learner(text_loaders(), 'AWD_LSTM', config=small(), pretrained=False, loss_func=loss,
                                      splitter=parts)
    for learn in (lm, clas):
        learn.create_opt()
        assert learn.loss_func is loss and len(learn.opt.param_lists) == 2


@pytest.mark.parametrize('name', ['language_model_learner', 'text_classifier_learner', 'rnn_learner', 'TextLearner',
                                  'LMLearner', 'ClassifierLearner', 'RNNLearner'])
def test_all_arguments_are_visible(name):
    ours = inspect.signature(getattr(rf, name)).parameters
    common = 'loss_func', 'lr', 'splitter', 'cbs', 'metrics', 'path', 'model_dir', 'wd', 'moms', 'opt_func'
    assert {*common} <= {*ours}
    if hasattr(fast, name): assert {*inspect.signature(getattr(fast, name)).parameters} <= {*ours}


def test_get_preds_has_fastais_default():
    ours,theirs = (inspect.signature(m.LMLearner.get_preds).parameters['reorder'].default for m in (rf, fast))
    assert ours == theirs
    learn = rf.language_model_learner(number_loaders(), 'AWD_LSTM', config=small(), pretrained=False)
    with learn.no_bar(): some = [learn.get_preds(reorder=r)[0] for r in (True, False)]
    assert_close(*some, rtol=0, atol=0)


def test_config_takes_init():
    def ones(m):
        if isinstance(m, nn.Linear): nn.init.ones_(m.weight)
    lm = rf.language_model_learner(number_loaders(), 'AWD_LSTM', config=small(init=ones), pretrained=False)
    clas = rf.text_classifier_learner(text_loaders(), 'AWD_LSTM', config=small(init=ones), pretrained=False)
    for learn in (lm, clas):
        assert all((m.weight == 1).all() for m in learn.model.modules() if isinstance(m, nn.Linear))
    with pytest.raises(ValueError, match="no entry 'inti'"):
        rf.get_language_model('AWD_LSTM', 9, small(inti=ones))


class OwnArch(nn.Module):
    "An encoder by fastai's contract."
    def __init__(self, vocab_sz, width, hidden_p=0.1, pad_token=1):
        super().__init__()
        self.encoder,self.rnn = nn.Embedding(vocab_sz, width, padding_idx=pad_token),nn.GRU(width, width, batch_first=True)
        self.drop = nn.Dropout(hidden_p)
        self.reset()
    def reset(self): self.h = None
    def forward(self, x):
        h = self.h
        if h is not None and h.size(1) != len(x):
            h = torch.cat([h, h.new_zeros(1, max(len(x)-h.size(1), 0), h.size(2))], 1)[:, :len(x)].contiguous()
        out,h = self.rnn(self.encoder(x), h)
        self.h = h.detach()
        return self.drop(out)


class OurSubclass(rf.AWD_LSTM): pass


META = {OwnArch: dict(hid_name='width', config_lm=dict(width=8, hidden_p=0.1, output_p=0.1, tie_weights=True, out_bias=True),
                      config_clas=dict(width=8, hidden_p=0.1, output_p=0.1),
                      split_lm=lambda m: [list(m[0].parameters()), list(m[1].parameters())[-1:]],
                      split_clas=lambda m: [list(m[0].parameters()), list(m[1].parameters())]),
        OurSubclass: dict(hid_name='emb_sz', config_lm={**rf.awd_lstm_lm_config, **small()}, split_lm=rf.awd_lstm_lm_split,
                          config_clas={**rf.awd_lstm_clas_config, **small()}, split_clas=rf.awd_lstm_clas_split)}


@pytest.fixture
def own_archs(monkeypatch):
    from fastai.text.models.core import _model_meta
    for arch,facts in META.items(): monkeypatch.setitem(_model_meta, arch, facts)


@pytest.mark.parametrize('arch', list(META))
def test_architectures_entered_in_fastai(arch, own_archs):
    lm = rf.language_model_learner(number_loaders(), arch, pretrained=False)
    with lm.no_bar(), lm.no_logging(): lm.fit(1)
    assert len(lm.opt.param_lists) >= 2 and lm.predict('one, two', 3, no_bar=True).startswith('one , two')
    dls = text_loaders()
    clas = rf.text_classifier_learner(dls, arch, pretrained=False, seq_len=2)
    with clas.no_bar(), clas.no_logging(): clas.fit(1)
    with clas.no_bar(): label,_,probs = clas.predict('a fine film')
    assert label in dls.vocab[1]
    assert_close(probs.sum(), torch.tensor(1.), **CLOSE)
    alone = torch.stack([clas.predict(t)[2] for t in ('a fine film', 'bad', 'a very dull and very bad film')])
    assert_close(clas.get_preds(dl=dls.test_dl(['a fine film', 'bad', 'a very dull and very bad film']))[0], alone, **CLOSE)


def test_a_classifier_of_fastais_parts_gives_fastais_values(own_archs):
    dls = text_loaders()
    rf.set_seed(2)
    clas = rf.text_classifier_learner(dls, OwnArch, pretrained=False, seq_len=2)
    rf.set_seed(2)
    theirs = fast.get_text_classifier(OwnArch, len(dls.vocab[0]), 2, seq_len=2, drop_mult=0.5).eval()
    docs = [torch.tensor(d) for d in ([2, 5, 6, 7, 8, 9, 4], [2, 5], [2, 7, 8])]
    padded = torch.stack([fast.pad_chunk(d, pad_idx=1, seq_len=2, pad_len=7) for d in (docs[0], docs[2], docs[1])])
    mine = torch.stack([F.pad(d, (0, 7-len(d)), value=1) for d in docs])
    clas.model.eval()
    with torch.no_grad(): assert_close(clas.model(mine)[0], theirs(padded)[0][[0, 2, 1]], **CLOSE)


def test_match_embeds_with_rows_beyond_the_vocabulary():
    w,b = torch.randn(4, 3),torch.randn(4)
    def wgts(): return {'0.encoder.weight': w.clone(), '1.decoder.weight': w.clone(), '1.decoder.bias': b.clone()}
    for new in (['b', 'new', 'a'], ['a', 'b', 'c']):
        theirs = fast.match_embeds(wgts(), ['a', 'b', 'c'], new)
        ours = rf.match_embeds(wgts(), ['a', 'b', 'c'], new)
        assert {*ours} == {*theirs}
        for k in ours: assert_close(ours[k], theirs[k])
    with pytest.raises(ValueError, match='have 4 words, and the vocabulary that should go with them has 5'):
        rf.match_embeds(wgts(), list('abcde'), ['a'])


# --- Losses of torch's ---

def text_values():
    import pandas as pd
    texts = ['a fine film', 'a bad film', 'fine, fine', 'bad and dull', 'very fine', 'dull']*6
    df = pd.DataFrame({'text': texts, 'y': [float('fine' in t) for t in texts]})
    return rf.TextDataLoaders.from_df(df, text_col='text', label_col='y', y_block=fast.RegressionBlock(), valid_pct=0.3,
                                      seed=1, bs=8, device='cpu')


def text_many():
    import pandas as pd
    texts = ['a fine film', 'a bad film', 'fine, fine', 'bad and dull', 'very fine', 'dull']*6
    df = pd.DataFrame({'text': texts, 'y': ['fine;short' if 'fine' in t else 'short' for t in texts]})
    return rf.TextDataLoaders.from_df(df, text_col='text', label_col='y', label_delim=';', valid_pct=0.3, seed=1, bs=8,
                                      device='cpu')


def own_loss(out, y): return F.cross_entropy(out, y)

LOSSES = {'module': (text_loaders, nn.CrossEntropyLoss), 'smoothed': (text_loaders, lambda: nn.CrossEntropyLoss(label_smoothing=0.1)),
          'fastai smoothed': (text_loaders, fast.LabelSmoothingCrossEntropy), 'function': (text_loaders, lambda: F.cross_entropy),
          'partial': (text_loaders, lambda: partial(F.cross_entropy, label_smoothing=0.1)),
          'own': (text_loaders, lambda: own_loss), 'focal': (text_loaders, fast.FocalLoss),
          'many': (text_many, nn.BCEWithLogitsLoss), 'many, weighted': (text_many, lambda: nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2., 1.]))),
          'many, function': (text_many, lambda: F.binary_cross_entropy_with_logits),
          'values': (text_values, nn.MSELoss), 'values, function': (text_values, lambda: F.l1_loss)}

@pytest.mark.parametrize('name', list(LOSSES))
def test_losses_of_torchs_answer(name, capsys):
    make,loss = LOSSES[name]
    dls = make()
    n = 1 if make is text_values else 2
    learn = rf.text_classifier_learner(dls, 'AWD_LSTM', config=small(), pretrained=False, loss_func=loss(), n_out=n)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        answer,decoded,preds = learn.predict('a fine film')
        probs,y,best = learn.get_preds(with_decoded=True)
        learn.show_results(max_n=2)
    assert probs.shape[:1] == y.shape[:1]
    with torch.no_grad(): raw = torch.cat([learn.model.eval()(b[0]).logits for b in dls.valid.new(shuffle=False)])
    order = torch.tensor(dls.valid.new(shuffle=False).get_idxs()).argsort()
    want = raw[order].softmax(-1) if make is text_loaders else raw[order].sigmoid() if make is text_many else raw[order]
    assert_close(probs.as_subclass(torch.Tensor), want, **CLOSE)
    if make is text_loaders:
        assert answer in ('neg', 'pos') and answer == dls.vocab[1][int(preds.argmax())]
        assert best.tolist() == probs.argmax(-1).tolist()
        if name != 'own':   # which takes no `reduction`
            with learn.no_bar(): assert learn.get_preds(with_loss=True)[2].shape == y.shape
    elif make is text_many: assert decoded.tolist() == (preds > 0.5).tolist()
    else: assert_close(decoded, preds)


def test_values_are_not_spread_over_pairs_of_rows():
    dls = text_values()
    runs = []
    for loss in (nn.MSELoss(), fast.MSELossFlat(), F.mse_loss):
        rf.set_seed(4)
        learn = rf.text_classifier_learner(dls, 'AWD_LSTM', config=small(), pretrained=False, loss_func=loss, n_out=1)
        with learn.no_bar(): runs.append(learn.validate())
    assert_close(runs[0], runs[1], **CLOSE); assert_close(runs[2], runs[1], **CLOSE)


def test_losses_set_later_and_in_rnn_learner():
    learn = rf.text_classifier_learner(text_loaders(), 'AWD_LSTM', config=small(), pretrained=False)
    learn.loss_func = nn.CrossEntropyLoss()
    with learn.no_bar(): assert learn.predict('a fine film')[0] in ('neg', 'pos')
    net = rf.rnn_learner(text_loaders(), 'GRU', n_hid=8, loss_func=F.cross_entropy)
    with net.no_bar(), net.no_logging(): net.fit(1)
    with net.no_bar(): assert net.predict('a fine film')[0] in ('neg', 'pos')
    runs = []
    for loss in (nn.CrossEntropyLoss(), fast.CrossEntropyLossFlat()):
        rf.set_seed(4)
        lm = rf.language_model_learner(number_loaders(), 'AWD_LSTM', config=small(), pretrained=False, loss_func=loss)
        with lm.no_bar(): runs.append(lm.validate())
    assert_close(*runs, **CLOSE)


# --- Prompts of unknown words ---

def test_predict_goes_on_from_an_unknown_word():
    learn = rf.language_model_learner(number_loaders(), 'AWD_LSTM', config=small(), pretrained=False)
    how = dict(temperature=0, no_bar=True)
    with pytest.warns(UserWarning, match="'Zebra quagga' holds no word that the model knows.*goes on from xxunk"):
        text = learn.predict('Zebra quagga', 3, **how)
    for strict in (learn.generate, learn.beam_search, lambda p, **kw: learn.stream(p, temperature=0)):
        with pytest.raises(ValueError, match="'Zebra quagga' holds no word"): strict('Zebra quagga', no_bar=True)
    with pytest.warns(UserWarning): assert learn.generate('Zebra quagga', 3, strict=False, **how)[0].text == text
    with pytest.warns(UserWarning): assert ''.join(learn.stream('Zebra quagga', 3, strict=False, temperature=0)) == text
    with pytest.warns(UserWarning): assert len(learn.beam_search('Zebra quagga', 3, strict=False, no_bar=True)[0].tokens) == 3


# --- Files that fastai reads ---

def in_fastai(ours, kind):
    "fastai's learner of the same sizes, with files in the same folder."
    if kind == 'lm':
        model = fast.get_language_model(fast.AWD_LSTM, len(ours.dls.vocab), {**fast.awd_lstm_lm_config, **small()})
        return fast.LMLearner(ours.dls, model, loss_func=fast.CrossEntropyLossFlat(), splitter=fast.awd_lstm_lm_split, path=ours.path)
    model = fast.get_text_classifier(fast.AWD_LSTM, len(ours.dls.vocab[0]), 2, config=small())
    return fast.TextLearner(ours.dls, model, loss_func=fast.CrossEntropyLossFlat(), splitter=fast.awd_lstm_clas_split, path=ours.path)


def of_ours(kind, path):
    if kind == 'lm': return rf.language_model_learner(number_loaders(), 'AWD_LSTM', config=small(), pretrained=False, path=path)
    return rf.text_classifier_learner(text_loaders(), 'AWD_LSTM', config=small(), pretrained=False, path=path)


@pytest.mark.parametrize('kind', ['lm', 'classifier'])
def test_fastai_reads_our_files_and_we_read_its(kind, tmp_path):
    import warnings
    ours = of_ours(kind, tmp_path)
    with ours.no_bar(), ours.no_logging(): ours.fit(1)
    ours.save('mine.pth')
    theirs = in_fastai(ours, kind)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        theirs.load('mine', with_opt=True)
    ids = torch.tensor([[2, 5, 6, 7, 8]])
    def logits(learn):
        learn.model.eval(); learn.model.reset()
        with torch.no_grad(): return learn.model(ids)[0]
    assert_close(logits(theirs), logits(ours), **CLOSE)
    for a,b in ((ours.model[0], theirs.model[0]), ):
        a,b = getattr(a, 'module', a),getattr(b, 'module', b)
        for name in ('grad_avg', 'sqr_avg'):
            assert_close(theirs.opt.state[b.encoder.weight][name], ours.opt.state[a.encoder.weight][name])
            for i in range(2):
                assert_close(theirs.opt.state[b.rnns[i].weight_hh_l0_raw][name], ours.opt.state[a.rnns[i].weight_hh_l0][name])
                assert_close(theirs.opt.state[b.rnns[i].module.weight_ih_l0][name], ours.opt.state[a.rnns[i].weight_ih_l0][name])
    with theirs.no_bar(), theirs.no_logging(): theirs.fit(1, 1e-3)
    theirs.save('theirs')
    again = of_ours(kind, tmp_path).load('theirs', with_opt=True).load('mine', with_opt=True)
    assert_close(logits(again), logits(ours), rtol=0, atol=0)
    again.load('theirs', with_opt=True)
    assert_close(logits(again), logits(theirs), **CLOSE)
    ours.save_encoder('enc.pth')
    fresh = in_fastai(ours, kind)
    fresh.load_encoder('enc')
    def encoded(learn):
        enc = learn.model[0]
        enc = getattr(enc, 'module', enc).eval()
        enc.reset()
        with torch.no_grad(): out = enc(ids)
        return out[0] if isinstance(out, tuple) else out
    assert_close(encoded(fresh), encoded(ours), **CLOSE)
    fresh.save_encoder('enc_theirs')
    assert_close(encoded(of_ours(kind, tmp_path).load_encoder('enc_theirs')), encoded(ours), **CLOSE)


@pytest.mark.parametrize('bidir', [False, True])
@pytest.mark.parametrize('kind', ['lm', 'classifier'])
def test_names_of_weights_are_fastais(kind, bidir):
    cfg = small(bidir=bidir)
    if kind == 'lm':
        if bidir: return
        ours,theirs = rf.get_language_model('AWD_LSTM', 9, cfg),fast.get_language_model(fast.AWD_LSTM, 9, {**fast.awd_lstm_lm_config, **cfg})
    else: ours,theirs = (m.get_text_classifier(fast.AWD_LSTM if m is fast else 'AWD_LSTM', 9, 2, config=cfg) for m in (rf, fast))
    assert list(shared_weights(ours)) == list(theirs.state_dict())
    theirs.load_state_dict(shared_weights(ours))
    ours.load_state_dict(theirs.state_dict())   # by torch's own means too
    with pytest.raises(RuntimeError, match='Missing key'): ours.load_state_dict({})


# --- fastai's contract ---

def test_sequential_rnn_is_fastais():
    cfg = dict(emb_sz=8, n_hid=12, n_layers=2)
    rf.set_seed(5)
    enc = fast.AWD_LSTM(20, **cfg)
    theirs = fast.SequentialRNN(enc, fast.LinearDecoder(20, 8, tie_encoder=enc.encoder)).eval()
    own = rf.AWD_LSTM(20, **cfg)
    ours = rf.SequentialRNN(own, fast.LinearDecoder(20, 8, tie_encoder=own.encoder)).eval()
    rf.load_weights(ours, theirs.state_dict())
    assert isinstance(ours, fast.SequentialRNN)
    def steps(model):
        res = []
        for n,sl in ((3, 5), (3, 2), (5, 4), (2, 4)):   # the batch grows, and shrinks
            torch.manual_seed(n)
            res.append(model(torch.randint(0, 20, (n, sl))))
            res.append([list(s) for s in model[0].hidden])
        model.reset()
        res.append([list(s) for s in model[0].hidden])
        return res
    assert_close(steps(ours), steps(theirs), **CLOSE)
    a,b = ours[0],theirs[0]
    assert (a.emb_sz, a.n_hid, a.n_layers, a.pad_token, a.bs) == (b.emb_sz, b.n_hid, b.n_layers, b.pad_token, b.bs)
    assert list(shared_weights(ours)) == list(theirs.state_dict())
    theirs.load_state_dict(shared_weights(ours))


def test_outputs_can_be_seen_after_a_batch():
    seen = []
    class Look(fast.Callback):
        def after_batch(self): seen.append((self.learn.rnn.out.shape, self.learn.rnn.raw_out.shape))
    learn = rf.language_model_learner(number_loaders(), 'AWD_LSTM', config=small(), pretrained=False, cbs=Look())
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert seen and all(a == b and a[0] == 4 for a,b in seen)
    assert learn.rnn.out is None   # the graph does not outlive its batch
    learn.model.reset(); learn.model[0].reset()


def test_fastais_head_on_our_classifier():
    learn = rf.text_classifier_learner(text_loaders(), 'AWD_LSTM', config=small(), pretrained=False)
    head = rf.PoolingLinearClassifier([24, 50, 2], [0.4, 0.1], bptt=72)
    head.load_state_dict(learn.model[1].state_dict())
    with learn.no_bar(): before = learn.get_preds()[0]
    learn.model[1] = head
    with learn.no_bar(): assert_close(learn.get_preds()[0], before, **CLOSE)
    assert isinstance(head, fast.PoolingLinearClassifier)


@pytest.mark.parametrize('kind', ['classifier', 'tagger', 'lm'])
def test_tta_is_get_preds_where_nothing_is_random(kind):
    from test_serve import learner
    learn = learner(kind)
    with learn.no_bar():
        for i in (0, 1):
            want = learn.get_preds(dl=learn.dls[i].new(shuffle=False, drop_last=False))
            assert_close(learn.tta(i), want, **CLOSE)
            assert_close(learn.tta(i, use_max=True), want, **CLOSE)
        (augmented,plain),y = learn.tta(beta=None, n=2)
        assert_close((augmented, plain, y), (want[0], *want), **CLOSE)
    assert learn.dls.valid.dataset.split_idx == 1


def test_tta_is_fastais():
    import pandas as pd
    df = pd.DataFrame({'text': ['a fine film', 'a bad film', 'fine, fine', 'bad and dull', 'very fine', 'dull']*6})
    df['label'],df['valid'] = ['pos' if 'fine' in t else 'neg' for t in df.text],[i > 25 for i in range(36)]
    args = dict(text_col='text', label_col='label', valid_col='valid', bs=8, device='cpu')
    ours = rf.text_classifier_learner(rf.TextDataLoaders.from_df(df, **args), 'AWD_LSTM', config=small(), pretrained=False)
    dls = fast.TextDataLoaders.from_df(df, **args)
    assert list(dls.vocab[0]) == list(ours.dls.vocab[0])
    theirs = fast.TextLearner(dls, in_fastai(ours, 'classifier').model, loss_func=fast.CrossEntropyLossFlat())
    theirs.model.load_state_dict(shared_weights(ours.model))
    with ours.no_bar(), theirs.no_bar(): assert_close(ours.tta(), [torch.Tensor(p) if p.is_floating_point() else torch.as_tensor(p) for p in theirs.tta()], **CLOSE)
