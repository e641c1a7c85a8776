"Bad input about devices: none of that name, no memory left on it, eight bits where there are none."
import copy
import gc
import weakref
from functools import partial

import pytest
import torch
from bundles import NEW, clas_dls, lm_dls, series, tag_dls
from fastai.text import all as ft
from torch.testing import assert_close

from rnn_fastai import all as rf
from rnn_fastai.devices import OutOfMemory

pytestmark = pytest.mark.usefixtures('one_thread')
CONFIG = dict(emb_sz=8, n_hid=12, n_layers=2)
WORDS = ft.BaseTokenizer()
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 4.00 GiB.")

def quiet(learn):
    learn.remove_cb(ft.ProgressCallback)
    return learn

def lm(**args): return quiet(rf.language_model_learner(lm_dls(WORDS, bs=4), 'AWD_LSTM', CONFIG, pretrained=False, **args))
def clas(): return quiet(rf.text_classifier_learner(clas_dls(WORDS, bs=8), 'AWD_LSTM', config=CONFIG, pretrained=False))
def tagger(): return quiet(rf.tagger_learner(tag_dls(), 'LSTM', emb_sz=6, n_hid=6, crf=True))
def rnn(): return quiet(rf.rnn_learner(series(seq_len=3), 'GRU', 8))
LEARNERS = dict(lm=lm, classifier=clas, tagger=tagger, rnn=rnn)
by_kind = pytest.mark.parametrize('kind', LEARNERS)

class _Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x.clone()
    @staticmethod
    def backward(ctx, g): raise FULL

class NoRoom:
    "A layer that has no memory in some of its calls: forwards, backwards, or only where it has many rows."
    def __init__(self, layer, when=lambda x: True, backward=False):
        self.layer,self.when,self.backward,self.kept = layer,when,backward,[]
        layer.register_forward_hook(self)

    def __call__(self, layer, x, out):
        out,*rest = out
        if not self.when(x[0]): return out,*rest
        self.kept.append(weakref.ref(out))
        if not self.backward: raise FULL
        return _Fails.apply(out),*rest

def layer_of(learn): return [m for m in learn.model.modules() if isinstance(m, rf.Recurrent)][-1]

def in_fit(learn, **cbs):
    with learn.no_logging(): learn.fit(1, 1e-2, **cbs)

# ---- Training

@by_kind
@pytest.mark.parametrize('backward', [False, True], ids=['forward', 'backward'])
def test_a_step_that_does_not_fit(kind, backward):
    "The message says what to try; weights, gradients, modes and random learner are as after the last whole step."
    learn,calls = LEARNERS[kind](),[]
    learn.create_opt()
    third = NoRoom(layer_of(learn), lambda x: calls.append(x) or len(calls) == 2, backward)
    class Keep(ft.Callback):
        def after_batch(self): self.weights = copy.deepcopy(dict(self.model.named_parameters()))
    keep = Keep()
    with pytest.raises(OutOfMemory, match=r"There is no memory for a batch of \d+ x \d+ tokens; make loaders with .*"
                                          r"\(CUDA out of memory\. Tried to allocate 2") as e: in_fit(learn, cbs=keep)
    assert ('bs=' in str(e.value)) == (kind != 'rnn') and ('seq_len=' in str(e.value)) == (kind in ('lm', 'rnn'))
    assert isinstance(e.value, torch.OutOfMemoryError)
    assert_close(dict(learn.model.named_parameters()), keep.weights, rtol=0, atol=0)
    assert all(p.grad is None or not p.grad.any() for p in learn.model.parameters())
    gc.collect()
    assert third.kept and all(r() is None for r in third.kept), "the batch is still held"
    layer_of(learn)._forward_hooks.clear()
    in_fit(learn)
    assert learn.recorder.losses[-1].isfinite()

@by_kind
def test_a_batch_of_validation_that_does_not_fit(kind):
    learn = LEARNERS[kind]()
    NoRoom(layer_of(learn))
    for work in (learn.validate, learn.get_preds):
        with pytest.raises(OutOfMemory, match='val_bs=' if kind != 'rnn' else 'seq_len='): work()
    layer_of(learn)._forward_hooks.clear()
    learn.validate()

def test_one_row_alone_and_other_errors():
    learn = quiet(rf.text_classifier_learner(clas_dls(WORDS, bs=1), 'AWD_LSTM', config=CONFIG, pretrained=False))
    NoRoom(layer_of(learn))
    with pytest.raises(OutOfMemory, match=r"a batch of 1 x \d+ tokens; make loaders with shorter texts"): in_fit(learn)
    def odd(*_): raise RuntimeError("shapes do not fit")
    learn = lm()
    layer_of(learn).register_forward_hook(odd)
    with pytest.raises(RuntimeError, match='^shapes do not fit$'): in_fit(learn)

def test_an_interrupt_leaves_no_gradient():
    "Half of a batch's gradients would go into the next training's first step."
    class Interrupt(ft.Callback):
        def after_backward(self): raise KeyboardInterrupt
    learn = lm()
    with pytest.raises(KeyboardInterrupt): in_fit(learn, cbs=Interrupt())
    assert all(p.grad is None for p in learn.model.parameters())

def test_mixed_precision_and_chunks_after_a_step_that_does_not_fit():
    learn = lm(cbs=rf.ChunkedCrossEntropy()).to_bf16()
    NoRoom(layer_of(learn))
    with pytest.raises(OutOfMemory): in_fit(learn)
    assert not torch.is_autocast_enabled('cpu') and not learn.model[1].lazy
    assert type(learn.loss_func) is type(lm().loss_func)

# ---- Capture and records

def test_captures_of_a_batch_that_does_not_fit():
    "The recording holds whole batches only."
    for parts in ('states', 'all', ('h', 'grad_h')):
        for backward in (False, True):
            learn,calls = lm(),[]
            NoRoom(layer_of(learn), lambda x, calls=calls: calls.append(x) or len(calls) == 3, backward)
            cb = rf.HiddenStateCapture(parts=parts)
            with pytest.raises(OutOfMemory): in_fit(learn, cbs=cb)
            rec = cb.recording
            whole = 3 if backward and 'grad_h' not in parts else 2
            for layer in rec.layers:
                for part in rec.parts(layer): assert rec[layer, part].shape[0] == whole*4*7
            assert not any(hasattr(m, 'watch') and m.watch for m in learn.model.modules())

def test_no_memory_to_capture(monkeypatch):
    learn = lm()
    def full(*args): raise FULL
    monkeypatch.setattr('rnn_fastai.inside.capture.look_inside', full)
    with learn.capture() as rec, pytest.raises(OutOfMemory, match=r"no memory to capture 0\.rnns\.0 over 7 steps of 4 rows; "
                                                                  r"capture fewer parts or layers, or run the model on 2 rows"):
        learn.model(learn.dls.one_batch()[0])
    assert not len(rec)

def test_records_of_texts_that_do_not_fit():
    learn = clas()
    NoRoom(layer_of(learn), lambda x: len(x) > 2)
    with pytest.raises(OutOfMemory, match=r"no memory for 4 texts at once; try bs=2\."): learn.record(NEW*2, bs=4)
    assert len(learn.record(NEW*2, bs=2))

# ---- Texts

def test_texts_that_do_not_fit():
    learn,kw = lm(),dict(n_words=3, no_bar=True)
    learn.model.eval()
    want = [t.text for t in learn.generate(NEW*4, temperature=0, bs=4, **kw)]
    NoRoom(learn.model[0].rnns[0], lambda x: len(x) > 4)   # hooks keep the model from being laid out anew
    with pytest.raises(OutOfMemory, match=r"no memory for 8 texts at once; try bs=4\."): learn.generate(NEW*4, **kw)
    with pytest.raises(OutOfMemory, match=r"no memory for 10 hypotheses at once; try bs=5\."): learn.beam_search(NEW, width=5, **kw)
    with pytest.raises(OutOfMemory, match=r"no memory for 8 texts at once; try bs=4\."): learn.score(NEW*4, no_bar=True)
    assert [t.text for t in learn.generate(NEW*4, temperature=0, bs=4, **kw)] == want
    NoRoom(learn.model[0].rnns[0])
    with pytest.raises(OutOfMemory, match="no memory for one of the texts alone; make it shorter"): learn.generate(NEW[0], **kw)

# ---- Devices that are not there

@pytest.fixture(autouse=True)
def no_gpu(monkeypatch): monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
not_there = partial(pytest.raises, ValueError, match=r"device='cuda' is not there\. This machine has cpu\.")

@pytest.mark.parametrize('make', [lm_dls, clas_dls, tag_dls, series,
                                  lambda device: rf.SeqDataLoaders.from_pairs(['ab', 'c'], ['x', 'y'], 'many-to-one', valid_pct=0, device=device)])
def test_loaders_for_a_device_that_is_not_there(make):
    with not_there(): make(device='cuda') if make is not series else rf.SeqDataLoaders.from_series('abcab', device='cuda')

def test_models_for_a_device_that_is_not_there(tmp_path):
    learn = lm()
    learn.path = tmp_path
    learn.save('one'), learn.save_encoder('enc'), learn.save_bundle(tmp_path/'b')
    for read in (partial(learn.load, 'one'), partial(learn.load_encoder, 'enc'), partial(rf.load_bundle, tmp_path/'b'),
                 partial(rf.from_hub, 'user/name')):
        with not_there(): read(device='cuda')
    with pytest.raises(ValueError, match="device='gpu' is not known. This machine has cpu"): rf.load_bundle(tmp_path/'b', device='gpu')
    assert rf.load_bundle(tmp_path/'b', device='cpu').predict('mat', n_words=1, no_bar=True)

def test_eight_bits_on_another_device():
    learn = lm()
    learn.model.to('meta')
    with pytest.raises(ValueError, match="int8=True needs a model on the CPU.*leave it out"): learn.stepper(int8=True)
