"Half precision on the CPU: trainings in autocast and in pure bfloat16, and forward in float16, against float32."
import copy
from functools import partial

import pytest
import torch
from bundles import clas_dls, lm_dls, pairs, sents, series, texts
from fastai.callback import fp16
from fastai.text import all as ft
from torch.testing import assert_close

from rnn_fastai import all as rf
from rnn_fastai.callback.precision import MixedPrecision
from rnn_fastai.models.cells import cells
from rnn_fastai.models.losses import linear_cross_entropy

pytestmark = pytest.mark.usefixtures('one_thread')
CONFIG = dict(emb_sz=16, n_hid=24, n_layers=2)
WORDS = ft.BaseTokenizer()

# ---- Learners of every kind

def lm(arch='AWD_LSTM', head='linear', cbs=None, **own):
    config = dict(CONFIG, head=head, **own)
    return rf.language_model_learner(lm_dls(WORDS, bs=4), arch, config, pretrained=False, cbs=cbs)
def clas(arch='AWD_LSTM'): return rf.text_classifier_learner(clas_dls(WORDS, bs=8), arch, config=CONFIG, pretrained=False)
def tagger(arch='LSTM', **args):
    dls = rf.TagDataLoaders.from_df(sents(40), bs=8, seed=0, device='cpu', min_freq=1, chars=args.pop('chars', None))
    return rf.tagger_learner(dls, arch, **args)
def rnn(cell='GRU', **args): return rf.rnn_learner(series('abcabdabcab'*9, seq_len=8), cell, 16, **args)
def pair(kind, cell='GRU', **args): return rf.rnn_learner(pairs(kind, bs=3), cell, 16, **args)

SMALL = dict(emb_sz=16, n_hid=16)
LEARNERS = {
    **{f'rnn {c}': partial(rnn, c) for c in cells}, **{f'lm {c}': partial(lm, f'AWD_{c}') for c in cells},
    'lm in chunks': partial(lm, cbs=rf.ChunkedCrossEntropy()),
    'lm adaptive': partial(lm, head='adaptive', cutoffs=[5, 9], cbs=rf.ChunkedCrossEntropy()),
    'lm mixture': partial(lm, head='mixture', n_softmaxes=2, cbs=rf.ChunkedCrossEntropy(8)),
    'lm mixture, whole': partial(lm, head='mixture', n_softmaxes=2),
    'classifier': clas, 'classifier QRNN': partial(clas, 'AWD_QRNN'),
    'tagger': partial(tagger, **SMALL), 'tagger, chars': partial(tagger, **SMALL, chars=True),
    'tagger, crf': partial(tagger, **SMALL, crf=True), 'tagger, arch': partial(tagger, 'AWD_GRU', config=CONFIG, crf=True),
    'all dropouts': partial(rnn, num_layers=2, dropout=0.2, weight_p=0.2, zoneout_p=0.1, drop=0.1, embed_p=0.1),
    'one-hot': partial(rnn, 'LSTM', one_hot=True), 'both ways': partial(pair, 'many-to-one', 'LSTM', bidirectional=True),
    **{k: partial(pair, k) for k in ('many-to-one', 'many-to-many', 'one-to-many', 'encoder-decoder')},
    'attention': partial(pair, 'encoder-decoder', 'LSTM', attention=True)}
by_kind = pytest.mark.parametrize('kind', LEARNERS)

class Types(ft.Callback):
    "Notes what autocast is at work where the model is called."
    order = 50   # after mixed precision
    def before_fit(self): self.casts = set()
    def before_batch(self): self.casts.add(torch.get_autocast_dtype('cpu') if torch.is_autocast_enabled('cpu') else None)

def trained(kind, change=lambda learn: None):
    "A learner after a few steps, and their losses, in float32."
    ft.set_seed(0)
    learn = LEARNERS[kind]()
    learn.remove_cb(ft.ProgressCallback)
    change(learn)
    ft.set_seed(0)
    learn.add_cb(Types())
    with learn.no_logging(): learn.fit(1, 2e-3)
    return learn,torch.stack([l.as_subclass(torch.Tensor).float() for l in learn.recorder.losses])

@pytest.fixture(scope='module')
def full():
    "Losses in float32, made once for each kind."
    made = {}
    return lambda kind: made[kind] if kind in made else made.setdefault(kind, trained(kind)[1])

@by_kind
def test_training_in_autocast(kind, full):
    "Every step's loss within 2 % of float32's, which it is not to the bit; weights stay in float32."
    learn,losses = trained(kind, lambda learn: learn.to_bf16())
    assert learn.types.casts == {torch.bfloat16}
    assert not torch.is_autocast_enabled('cpu') and not losses.equal(full(kind))
    assert {p.dtype for p in learn.model.parameters()} == {torch.float32}
    assert_close(losses, full(kind), rtol=0.02, atol=0)

@by_kind
def test_training_in_bfloat16(kind, full):
    "Weights too: every step's loss within 5 % of float32's."
    learn,losses = trained(kind, lambda learn: learn.model.bfloat16())
    assert {p.dtype for p in learn.model.parameters()} == {torch.bfloat16}
    assert_close(losses, full(kind), rtol=0.05, atol=0)

@by_kind
def test_forward_in_float16(kind):
    "Logits within 0.01 of float32's, in evaluation; those of a whole model in float16."
    learn = LEARNERS[kind]()
    *x,_ = learn.dls.one_batch()
    model = learn.model.eval()
    with torch.no_grad(): want,got = model(*x),copy.deepcopy(model).half()(*x)
    want,got = (getattr(o, 'logits', o) for o in (want, got))
    assert got.dtype == torch.float16
    assert_close(got.float(), want, rtol=0.01, atol=0.01)

# ---- fastai's switches

def test_switches_of_precision():
    "`to_fp16`, `to_bf16` and `to_fp32` of every learner; a training that is done leaves no autocast behind."
    for make in (lm, clas, partial(tagger, **SMALL), rnn):
        learn = make()
        assert type(learn.to_bf16().mixed_precision) is MixedPrecision
        assert not any(isinstance(cb, fp16.MixedPrecision) for cb in learn.to_fp32().cbs)
        assert learn.to_fp16(init_scale=2.**8).mixed_precision.kwargs['init_scale'] == 2**8

@pytest.mark.parametrize('kind', ['lm GRU', 'classifier', 'tagger, crf', 'rnn LSTM'])
def test_training_in_float16(kind, full):
    "The loss is scaled on the CPU too; validation and predictions are in float16 as well."
    learn,losses = trained(kind, lambda learn: learn.to_fp16(init_scale=2.**8))
    assert learn.types.casts == {torch.float16}
    assert_close(losses, full(kind), rtol=0.02, atol=0)
    learn.validate(), learn.get_preds()
    assert learn.types.casts == {torch.float16}
    learn.to_fp32().validate()
    assert learn.types.casts == {None}

class Overflow(ft.Callback):
    "Makes the first gradient infinite, and keeps weights and scale before and after each step."
    def before_fit(self): self.weights,self.scale = [],[]
    def before_step(self):   # before mixed precision looks at gradients
        if not self.weights: next(self.model.parameters()).grad[0] = torch.inf
        self.weights.append([p.detach().clone() for p in self.model.parameters()])
        self.scale.append(self.learn.scaler.get_scale())

def test_a_step_whose_gradients_overflow_is_left_out():
    learn = rnn('LSTM').to_fp16(init_scale=2.**8)
    learn.remove_cb(ft.ProgressCallback)
    with learn.no_logging(): learn.fit(1, 1e-2, cbs=(cb := Overflow()))
    first,second,third = ([w.clone() for w in ws] for ws in cb.weights[:3])
    assert all(a.equal(b) for a,b in zip(first, second, strict=True)) and not second[0].equal(third[0])
    assert cb.scale[:2] == [2**8, 2**7]

def test_devices_without_a_type(monkeypatch):
    "The training does not begin; the message says what to do."
    learn = rnn().to_bf16()
    monkeypatch.setattr(torch.amp, 'is_autocast_available', lambda kind: False)
    before = copy.deepcopy(learn.model.state_dict())
    no_type = pytest.raises(ValueError, match=r"torch has no mixed precision on cpu; train in float32: learn\.to_fp32\(\)")
    with no_type, learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert_close(learn.model.state_dict(), before, rtol=0, atol=0)

def test_ulmfit_in_bfloat16(tmp_path):
    seen = Types(),Types()
    learn = rf.ulmfit(texts(60), config=CONFIG, pretrained=False, epochs=1, bs=8, path=tmp_path, tok_tfm=WORDS,
                      min_freq=1, device='cpu', no_bar=True, lm_args=dict(cbs=[MixedPrecision('bf16'), seen[0]]),
                      clas_args=dict(cbs=[MixedPrecision('bf16'), seen[1]]))
    assert all(cb.casts == {torch.bfloat16} for cb in seen)
    probs = learn.predict('The CAT sat')[2]
    assert probs.isfinite().all() and probs.sum() == pytest.approx(1, abs=1e-5)

# ---- What stays in float32

def test_sums_are_in_full_precision():
    "Sums over many terms, from numbers of 16 bits, are those of float64 on the same numbers."
    torch.manual_seed(0)
    crf,real = rf.CRF(5).bfloat16(),torch.arange(300) < torch.tensor([300, 7])[:, None]
    scores,y = torch.randn(2, 300, 5).bfloat16(),torch.randint(5, (2, 300))
    loss = crf(scores, y, real)
    assert loss.dtype == torch.float32
    want = copy.deepcopy(crf).double()(scores.double(), y, real)
    assert_close(loss.double(), want, rtol=1e-5, atol=0)
    with torch.autocast('cpu', torch.bfloat16): assert_close(crf.float()(scores, y, real).double(), want, rtol=1e-5, atol=0)
    assert crf.decode(scores, real).equal(copy.deepcopy(crf).double().decode(scores.double(), real))
    x,w,y = torch.randn(600, 8).bfloat16(),torch.randn(900, 8).bfloat16(),torch.randint(900, (600,))
    want = torch.nn.functional.cross_entropy((x @ w.T).double(), y)   # logits of 16 bits, as the layer gives them
    assert_close(linear_cross_entropy(x, w, None, y).double(), want, rtol=1e-5, atol=0)

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_writes_and_scores(dtype):
    learn = trained('lm LSTM')[0]
    kw = dict(no_bar=True)
    want = [s.perplexity for s in learn.score(['The CAT sat on-the mat', 'mat'], **kw)]
    learn.model.to(dtype)
    got = [s.perplexity for s in learn.score(['The CAT sat on-the mat', 'mat'], **kw)]
    assert got == pytest.approx(want, rel=0.02, nan_ok=True)
    for texts_ in (learn.generate(['The CAT', 'mat'], n_words=6, seed=1, top_p=0.9, typical_p=0.9, **kw),
                   learn.beam_search('The CAT', width=3, n_words=6, **kw)):
        assert all(t.logps.dtype == torch.float32 and t.logps.isfinite().all() for t in texts_)

def test_dropped_weights_of_an_indrnn_do_not_explode():
    "Its recurrent weights are a vector: dropped entries would scale the others above one."
    torch.manual_seed(0)
    rnn_ = rf.Recurrent('IndRNN', 4, 32, weight_p=0.5)
    x = torch.randn(1000, 2, 4)
    with torch.no_grad(): plain,dropped = rnn_.eval()(x)[0],rnn_.train()(x)[0]
    assert dropped.max() < 4*plain.max() and not dropped.equal(plain)

def test_the_mean_over_a_long_document():
    "Its sum is beyond float16, and its length beyond bfloat16's digits."
    torch.manual_seed(0)
    out,lengths = 60*torch.rand(2, 3001, 4, dtype=torch.double),torch.tensor([3001, 2999])
    want = rf.pool_states(out, out[:, -1], lengths, 'mean')
    for dtype,rtol in ((torch.float16, 2**-9), (torch.bfloat16, 2**-6), (torch.float32, 1e-5)):
        assert_close(rf.pool_states(out.to(dtype), out[:, -1].to(dtype), lengths, 'mean').double(), want, rtol=rtol, atol=0)
