"""On a GPU: what the same layers, losses, learners and texts give on the CPU, in every precision that trains there.

Run by `make gpu`, or by pytest where a GPU is at hand; `TEST_DEVICE=cpu` runs the same comparisons without one."""
import copy
import gc
import os
import random
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from bundles import lm_dls, sents, texts
from fastai.text import all as ft
from test_cells import RUNS, build, label, rand, rand_state, tup
from torch import nn
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence
from torch.testing import assert_close

from rnn_fastai import all as rf
from rnn_fastai.data import device as device_module
from rnn_fastai.generate.decode import Continuation
from rnn_fastai.inside.capture import capture
from rnn_fastai.models.dropout import drop_weight
from rnn_fastai.models.flashrnn import flash_lacks
from rnn_fastai.models.losses import linear_cross_entropy
from rnn_fastai.models.recurrent import Recurrent
from rnn_fastai.models.tagger import CRF

DEVICE = torch.device(os.environ.get('TEST_DEVICE', 'cuda:0'))
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(DEVICE.type == 'cuda' and not torch.cuda.is_available(),
                                                  reason="no GPU here")]
EXACT = dict(rtol=1e-9, atol=1e-9)
CLOSE = dict(rtol=1e-4, atol=1e-5)
SIZES = dict(emb_sz=32, n_hid=48, n_layers=2)
by_run = pytest.mark.parametrize('name,args,backend', RUNS, ids=label)
PRECISIONS = {'float32': list, 'float16': lambda: [rf.MixedPrecision('fp16')],
              'bfloat16': lambda: [rf.MixedPrecision('bf16')]}

@pytest.fixture(autouse=True)
def float32_means_float32(monkeypatch):
    "cuDNN's layers round products to TF32 where nobody says otherwise."
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)

def there(o): return tuple(map(there, o)) if isinstance(o, (tuple, list)) else o.to(DEVICE)
def here(o): return tuple(map(here, o)) if isinstance(o, (tuple, list)) else o.detach().cpu()
def twin(m): return copy.deepcopy(m).to(DEVICE)

def run_both(layer, x, state, lengths=None, pack=False):
    "Outputs, last states and all gradients, on the CPU and on the device."
    res = []
    for m,move in ((layer, lambda t: t), (twin(layer), there)):
        leaf,start = move(x).detach().requires_grad_(),tuple(move(s).detach().requires_grad_() for s in state)
        read = pack_padded_sequence(leaf, torch.tensor(lengths), enforce_sorted=False) if pack else leaf
        out,last = m(read, start if len(start) > 1 else start[0], *([lengths] if lengths and not pack else []))
        made = [out.data if pack else out, *tup(last)]
        scale = sum((t*move(torch.linspace(-1, 1, t.numel(), dtype=t.dtype)).view(t.shape).cos()).sum() for t in made)
        grads = torch.autograd.grad(scale, [leaf, *start, *m.parameters()], materialize_grads=True, allow_unused=True)
        res.append((here(made), here(grads)))
    return res

# ---- Layers

@by_run
@pytest.mark.parametrize('kind', ['whole', 'lengths', 'packed'])
def test_layers_are_the_cpus(name, args, backend, kind):
    for layers,two in ((1, False), (2, True)):
        if two and args.get('proj_size') and name == 'sLSTM': continue
        rnn = build(name, 3, 4, num_layers=layers, bidirectional=two, backend=backend, **args)
        x,lengths = rand(7, 3, 3),None if kind == 'whole' else [7, 2, 5]
        cpu,gpu = run_both(rnn, x, rand_state(rnn, 3), lengths, kind == 'packed')
        for a,b in zip(gpu, cpu, strict=True): assert_close(a, b, **EXACT)

@by_run
@pytest.mark.parametrize('dtype,tolerance', [(torch.float32, 1e-4), (torch.float16, 2e-2), (torch.bfloat16, 1e-1)],
                         ids=str)
def test_layers_in_each_type(name, args, backend, dtype, tolerance):
    "Against float64 on the CPU; 40 steps."
    rnn = build(name, 8, 16, num_layers=2, backend=backend, scale=0.2, **args)
    x = rand(40, 5, 8)
    want,_ = rnn(x)
    out,last = twin(rnn).to(dtype)(there(x).to(dtype))
    assert out.dtype == dtype and all(s.dtype == dtype for s in tup(last))
    assert (here(out).double() - want).abs().max() <= tolerance*max(1, want.abs().max())

def test_weights_of_a_layer_are_one_buffer():
    "So that cuDNN copies none: after a move, a load, a deep copy and a change of type."
    rnn = Recurrent('LSTM', 8, 16, num_layers=2).to(DEVICE)
    for m in (rnn, copy.deepcopy(rnn), copy.deepcopy(rnn).half()):
        m.load_state_dict(m.state_dict())
        with warnings.catch_warnings(action='error'):
            m(torch.randn(3, 2, 8, device=DEVICE, dtype=next(m.parameters()).dtype))

@pytest.mark.parametrize('name', ['RNN', 'LSTM', 'GRU', 'IndRNN', 'minGRU', 'MogrifierLSTM'])
def test_dropped_weights(name):
    "Output and gradients are those of a layer whose weights were dropped by hand."
    rnn = twin(Recurrent(name, 6, 10, num_layers=2, weight_p=0.5))
    x = torch.randn(9, 4, 6, device=DEVICE)
    torch.manual_seed(3)
    out,_ = rnn(x)
    got = torch.autograd.grad(out.sin().sum(), list(rnn.parameters()))
    plain = Recurrent(name, 6, 10, num_layers=2).to(DEVICE)
    plain.load_state_dict(rnn.state_dict())
    torch.manual_seed(3)
    names = {id(p): n for n,p in plain.named_parameters()}
    with plain._shared.lent(plain) as cells:
        dropped = {names[id(p)]: drop_weight(p, 0.5) for c in cells for n,p in c.named_parameters() if n in c.dropped}
    assert dropped and all((w == 0).any() for w in dropped.values())
    want,_ = functional_call(plain, dropped, (x,))
    assert_close(out, want, **CLOSE)
    assert_close(got, torch.autograd.grad(want.sin().sum(), list(plain.parameters())), rtol=1e-3, atol=1e-4)

def test_gradients_in_evaluation_mode():
    "cuDNN gives none unless it is told that it trains; saliency and adversarial steps want them."
    for name in ('RNN', 'LSTM', 'GRU'):
        rnn = build(name, 3, 4, num_layers=2, dropout=0.5).eval()
        cpu,gpu = run_both(rnn, rand(5, 2, 3), rand_state(rnn, 2))
        for a,b in zip(gpu, cpu, strict=True): assert_close(a, b, **EXACT)

def test_states_that_are_not_contiguous():
    rnn = build('LSTM', 3, 4)
    x,state = rand(5, 2, 3),tuple(s.transpose(0, 1).contiguous().transpose(0, 1) for s in rand_state(rnn, 2))
    far = twin(rnn)(there(x), there(state))
    assert_close(here(far), here(rnn(x, state)), **EXACT)

def test_tensors_of_a_default_device():
    "`torch.set_default_device` makes those tensors there that are made without a device."
    rnn = build('GRU', 3, 4)
    torch.set_default_device(DEVICE)
    try:
        with capture(rnn, parts='all'): rnn(rand(5, 2, 3).cpu(), None, [5, 2])
    finally: torch.set_default_device(None)

@pytest.mark.parametrize('name', ['LSTM', 'GRU', 'RNN', 'sLSTM'])
def test_flashrnn(name):
    "Against float64 on the CPU, with gradients; the kernels are compiled here, which takes minutes."
    pytest.importorskip('flashrnn')
    rnn = build(name, 16, 64, backend='flashrnn', scale=0.2)
    far,x = twin(rnn).bfloat16(),rand(40, 8, 16)
    if why := flash_lacks(far._cell, DEVICE, torch.bfloat16): pytest.skip(why)
    with warnings.catch_warnings(action='error'): out,_ = far(there(x).bfloat16())
    want = build(name, 16, 64, backend='loop', scale=0.2)
    want.load_state_dict(rnn.state_dict())
    near,_ = want(x)
    assert (here(out).double() - near).abs().max() < 0.05
    got,grads = (torch.autograd.grad(o.sum(), list(m.parameters())) for o,m in ((out, far), (near, want)))
    for a,b in zip(got, grads, strict=True): assert (here(a).double() - b).norm() < 0.1*b.norm()

# ---- Losses and heads

@pytest.mark.parametrize('ignore', [False, True])
def test_loss_in_chunks(ignore):
    x,w,b = rand(50, 7).requires_grad_(),rand(11, 7).requires_grad_(),rand(11).requires_grad_()
    y = torch.randint(11, (50,))
    if ignore: y[::3] = -100
    want = nn.functional.cross_entropy(x@w.t() + b, y)
    leaves = [there(t).detach().requires_grad_() for t in (x, w, b)]
    got = linear_cross_entropy(leaves[0], leaves[1], leaves[2], there(y))
    assert_close(here(got), here(want), **EXACT)
    assert_close(here(torch.autograd.grad(got, leaves)), torch.autograd.grad(want, [x, w, b]), **EXACT)

def test_weighted_loss_and_untrained_learners():
    "A loss of torch's with weights goes where the model is; a learner answers before it was trained."
    dls = clas().dls
    learn = _quiet(rf.text_classifier_learner(dls, 'AWD_LSTM', pretrained=False, config=SIZES,
                                              loss_func=nn.CrossEntropyLoss(torch.tensor([1., 2.]))))
    learn.validate(), learn.predict('The CAT sat')
    with learn.no_logging(): learn.fit(1, 1e-2)
    _quiet(tagger()).predict(['the', 'cat']), _quiet(lm()).predict('mat', n_words=2, no_bar=True)
    _quiet(lm()).validate(), _quiet(tagger(crf=True)).validate(), _quiet(rnn()).predict('ab')

def test_crf():
    crf = CRF(4, [[True, False, True, True, True], *[[True]*5]*4]).double()
    for p in crf.parameters(): p.data.normal_()
    scores,labels,real = rand(5, 6, 4),torch.randint(4, (5, 6)),torch.arange(6) < torch.tensor([6, 1, 3, 6, 2])[:, None]
    far = twin(crf)
    assert_close(here(far(there(scores), there(labels), there(real))), here(crf(scores, labels, real)), **EXACT)
    assert far.decode(there(scores), there(real)).tolist() == crf.decode(scores, real).tolist()
    assert_close(here(far.marginals(there(scores), there(real))), here(crf.marginals(scores, real)), **EXACT)
    for a,b in zip(far.n_best(there(scores), there(real), 3), crf.n_best(scores, real, 3), strict=True):
        assert_close(here(a), here(b), **EXACT)
    spans,inside = [(0, 1, 3), (1, 0, 1)],torch.eye(4)[:2] > 0
    far_probs = far.span_probs(there(scores), there(real), spans, inside, torch.eye(4) > 0)
    assert_close(here(far_probs), here(crf.span_probs(scores, real, spans, inside, torch.eye(4) > 0)), **EXACT)

# ---- Batches

@pytest.mark.parametrize('room', [True, False])
def test_batches_are_the_cpus(room, monkeypatch):
    "Cut on the device where the ids live there; else brought from pinned memory."
    if not room: monkeypatch.setattr(device_module, 'fits', lambda *args: False)
    rng = np.random.default_rng(0)
    corpus = rf.Corpus.from_ids([rng.integers(0, 300, n) for n in rng.integers(0, 900, 300)])
    def batches(device):
        random.seed(1)
        dl = rf.LMDataLoader(rf.LMDataset(corpus), bs=8, seq_len=20, shuffle=True, device=device)
        return [b for _ in range(2) for b in dl]
    far,near = batches(DEVICE),batches(torch.device('cpu'))
    assert (device_module.resident_ids(corpus, DEVICE) is not None) == (room and DEVICE.type == 'cuda')
    assert len(far) == len(near) > 500 and far[0][0].device == DEVICE
    for a,b in zip(far, near, strict=True): assert_close(here(a), here(b), rtol=0, atol=0)

# ---- Learners

def lm(arch='AWD_LSTM', **args):
    dls = lm_dls(ft.BaseTokenizer(), bs=4, seq_len=12, device=DEVICE)
    return rf.language_model_learner(dls, arch, pretrained=False, metrics=ft.accuracy, config=SIZES, **args)
def clas(arch='AWD_LSTM'):
    df = texts(60)
    df['label'] = ['yes', 'no']*30
    df.loc[df.label == 'yes', 'text'] += ' CAT'*9   # easy to learn
    dls = rf.TextDataLoaders.from_df(df, text_col='text', label_col='label', tok_tfm=ft.BaseTokenizer(), bs=8, seed=0,
                                     device=DEVICE, min_freq=1)
    return rf.text_classifier_learner(dls, arch, pretrained=False, config=SIZES, metrics=ft.accuracy)
def tagger(**args):
    dls = rf.TagDataLoaders.from_df(sents(40), tok=str.lower, bs=4, seed=0, device=DEVICE, min_freq=1, chars=True)
    return rf.tagger_learner(dls, 'LSTM', emb_sz=16, n_hid=16, **args)
def rnn(cell='GRU', **args):
    return rf.rnn_learner(rf.SeqDataLoaders.from_series('abcabdabcab'*9, seq_len=8, device=DEVICE), cell, 16, **args)
LEARNERS = {'lm': lm, 'lm in chunks': lambda: lm(cbs=rf.ChunkedCrossEntropy(16)),
            'lm, loss by memory': lambda: lm(cbs=rf.ChunkedCrossEntropy()), 'lm, QRNN': partial(lm, 'AWD_QRNN'),
            'classifier': clas, 'tagger': tagger, 'tagger, crf': partial(tagger, crf=True),
            **{c: partial(rnn, c) for c in ('RNN', 'LSTM', 'GRU', 'minLSTM', 'sLSTM', 'MogrifierLSTM')}}

def train(make, cbs, epochs=3, seed=1):
    ft.set_seed(seed)
    learn = make()
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 1e-2, cbs=cbs)
    return learn

@pytest.mark.parametrize('precision', PRECISIONS)
@pytest.mark.parametrize('kind', LEARNERS)
def test_learners_train(kind, precision):
    learn = train(LEARNERS[kind], PRECISIONS[precision]())
    assert next(learn.model.parameters()).device == DEVICE and learn.dls.one_batch()[0].device == DEVICE
    losses = torch.stack(list(learn.recorder.losses))
    assert losses.isfinite().all() and losses[-5:].mean() < losses[:5].mean()
    assert np.isfinite(_quiet(learn).validate()[0])

def _quiet(learn):
    learn.remove_cb(learn.progress)
    return learn

@pytest.mark.parametrize('kind', LEARNERS)
def test_predictions_are_the_cpus(kind):
    learn = _quiet(train(LEARNERS[kind], [], 1))
    preds,y = learn.get_preds()
    learn.model.cpu()
    learn.dls.to(torch.device('cpu'))
    want,y_want = learn.get_preds()
    assert_close(preds, want, rtol=1e-3, atol=1e-4)
    assert_close(y, y_want)

def test_a_label_does_not_depend_on_company():
    learn = _quiet(train(clas, [], 1))
    rows = texts(60).text.tolist() + ['mat', 'The CAT '*60]
    dl = learn.dls.test_dl(rows)
    many = learn.get_preds(dl=dl)[0]
    alone = torch.cat([learn.get_preds(dl=learn.dls.test_dl([r]))[0] for r in rows])
    assert_close(many, alone, **CLOSE)

@pytest.mark.parametrize('kind', ['lm', 'classifier', 'tagger', 'LSTM'])
@pytest.mark.parametrize('exactly', [False, True])
def test_training_again(kind, exactly, monkeypatch):
    "The same weights from the same seed where torch is asked for it; near ones always."
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    torch.use_deterministic_algorithms(exactly)
    try: one,two = (dict(train(LEARNERS[kind], [], 2).model.state_dict()) for _ in range(2))
    finally: torch.use_deterministic_algorithms(False)
    for n in one: assert_close(one[n], two[n], **(dict(rtol=0, atol=0) if exactly else dict(rtol=1e-2, atol=1e-2)))

SAVED = {k: LEARNERS[k] for k in ('lm', 'classifier', 'tagger', 'tagger, crf')}
@pytest.mark.parametrize('kind', SAVED)
def test_saved_and_loaded(kind, tmp_path):
    "A bundle of a model on a GPU opens on the CPU and on the GPU; `save` and `load` keep the device."
    learn = _quiet(train(SAVED[kind], [], 1))
    learn.path = tmp_path
    want = learn.get_preds()[0]
    learn.save('one')
    learn.load('one')
    assert_close(learn.get_preds()[0], want, **CLOSE)
    learn.save_bundle(tmp_path/'b')
    back = rf.load_bundle(tmp_path/'b')
    text = ['the', 'cat', 'sat'] if 'tagger' in kind else 'the cat sat'   # a text would be cut by spaCy
    assert str(back.predict(text)[0]) == str(learn.predict(text)[0]) or kind == 'lm'

def test_checkpoints_resume(tmp_path):
    torch.manual_seed(1)
    a = _quiet(lm())
    with a.no_logging(): a.fit_one_cycle(2, 1e-2, cbs=[rf.Checkpoint(tmp_path, every=3), *PRECISIONS['float16']()])
    torch.manual_seed(1)
    b = _quiet(lm())
    with b.no_logging(): b.resume(tmp_path, cbs=PRECISIONS['float16']())
    for n,w in a.model.state_dict().items(): assert_close(here(b.model.state_dict()[n]), here(w), rtol=1e-3, atol=1e-4)

# ---- Inside

@pytest.mark.parametrize('name', ['LSTM', 'GRU', 'sLSTM', 'minGRU', 'QRNN'])
def test_capture(name):
    net = build(name, 3, 4, num_layers=2)
    x = rand(6, 2, 3)
    recs = []
    for m,t in ((net, x), (twin(net), there(x))):
        with capture(m, parts='all', dtype='float32') as rec: m(t)[0].sin().sum().backward()
        recs.append(rec)
    a,b = recs
    for layer in a.layers:
        for part in a.parts(layer): np.testing.assert_allclose(b[layer, part, 0], a[layer, part, 0], **CLOSE)

def test_record_and_capture_of_learners():
    for kind in ('lm', 'classifier', 'LSTM'):
        learn = _quiet(train(LEARNERS[kind], [], 1))
        text = 'abcab' if kind == 'LSTM' else 'The CAT sat on-the mat'
        far = learn.record(text, parts=('states', 'logits') if kind != 'classifier' else 'states')
        learn.model.cpu()
        near = learn.record(text)
        for layer in near.layers: np.testing.assert_allclose(far[layer, 'h', 0], near[layer, 'h', 0], **CLOSE)

def test_capture_in_training():
    learn = _quiet(lm())
    cb = rf.HiddenStateCapture(parts=('h', 'grad_h'))
    with learn.no_logging(): learn.fit(1, 1e-3, cbs=cb)
    assert len(cb.recording)

# ---- Texts

def test_texts_are_the_cpus():
    "The same model writes the same, greedy, drawn with a seed, and in beams."
    learn = _quiet(train(lm, [], 1))
    learn.model.double()
    def write():
        kw = dict(n_words=12, no_bar=True)
        return ([t.text for t in learn.generate(['The CAT', 'mat'], temperature=0, **kw)],
                [t.text for t in learn.generate(['The CAT', 'mat'], n=3, seed=5, top_p=0.9, temperature=0.8, **kw)],
                [t.text for t in learn.generate(['The CAT', 'mat'], n=2, seed=5, top_k=5, min_p=0.01, typical_p=0.9,
                                                repetition_penalty=1.2, no_repeat_ngram=3, **kw)],
                [t.text for t in learn.beam_search('The CAT', width=4, **kw)],
                [round(s.perplexity, 3) for s in learn.score(['The CAT sat', 'mat'], no_bar=True)],
                ''.join(learn.stream('The CAT', n_words=9, temperature=0)),
                learn.predict('The CAT', n_words=9, temperature=0, no_bar=True))
    far = write()
    learn.model.cpu()
    assert write() == far

def test_generators_of_either_device():
    learn = _quiet(train(lm, [], 1))
    for g in (torch.Generator(), torch.Generator(DEVICE)):
        texts_ = [t.text for t in learn.generate(['mat'], n_words=9, seed=g.manual_seed(1), no_bar=True)]
        assert texts_ == [t.text for t in learn.generate(['mat'], n_words=9, seed=g.manual_seed(1), no_bar=True)]

def test_adaptation():
    learn = _quiet(train(lm, [], 1))
    kw = dict(no_bar=True, cache=rf.NeuralCache(), dynamic=rf.DynamicEvaluation())
    far = [s.perplexity for s in learn.score(['The CAT sat on-the mat '*4], **kw)]
    learn.model.cpu()
    assert far == pytest.approx([s.perplexity for s in learn.score(['The CAT sat on-the mat '*4], **kw)], rel=1e-3)

def test_encoder_decoder_and_pairs():
    cases = {'many-to-one': ['x', 'y', 'x'], 'many-to-many': ['xy', 'yyx', 'x'], 'encoder-decoder': ['xyx', 'y', 'yy']}
    for kind,ys in cases.items():
        dls = rf.SeqDataLoaders.from_pairs(['ab', 'bca', 'c'], ys, kind, valid_pct=0, device=DEVICE)
        learn = _quiet(rf.rnn_learner(dls, 'GRU', 8))
        with learn.no_logging(): learn.fit(3, 1e-2)
        learn.predict('ab')

# ---- Steps as CUDA graphs

on_gpu = pytest.mark.skipif(DEVICE.type != 'cuda', reason="records on a GPU")
def graph_lm(arch='AWD_LSTM'):
    torch.manual_seed(1)
    return rf.get_language_model(arch, 500, dict(emb_sz=64, n_hid=96, n_layers=3)).to(DEVICE).eval()

def written(model, bs, n=120, seed=3, **sampling):
    "Ids and logarithms of texts, and how the steps were made."
    prompts = [torch.arange(2, 5 + i % 3).to(DEVICE) for i in range(bs)]
    sampler = rf.TokenSampler(rf.Sampling(**sampling), prompts, 500, n, seed, list(range(bs)))
    texts = Continuation(model, prompts, sampler)
    steps = [texts.step() for _ in range(n)]
    return torch.stack([s.ids for s in steps]),torch.stack([s.logps for s in steps]),texts.run

def without_graphs(monkeypatch, *args, **kwargs):
    with monkeypatch.context() as m:
        m.setenv('RNN_FASTAI_CUDA_GRAPHS', '0')
        return written(*args, **kwargs)

@on_gpu
@pytest.mark.parametrize('arch', ['AWD_LSTM', 'AWD_GRU', 'AWD_SRU', 'AWD_QRNN', 'AWD_sLSTM'])
@pytest.mark.parametrize('bs', [1, 128])
def test_texts_of_graphs(arch, bs, monkeypatch):
    "To the bit those of ordinary steps; drawn with a seed, and by torch's numbers, which go on as they would."
    model = graph_lm(arch)
    for kw in (dict(temperature=0), dict(top_p=0.9), dict(seed=None)):
        torch.manual_seed(7)
        ids,logps,run = written(model, bs, **kw)
        after = torch.rand(1, device=DEVICE)
        assert run.graph is not None, run.lacks
        torch.manual_seed(7)
        want,want_logps,plain = without_graphs(monkeypatch, model, bs, **kw)
        assert plain.graph is None and torch.equal(after, torch.rand(1, device=DEVICE))
        assert_close((ids, logps), (want, want_logps), rtol=0, atol=0)

@on_gpu
def test_memory_of_graphs_is_given_back():
    def used():
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated(),torch.cuda.memory_reserved()
    model = graph_lm()
    written(model, 8)   # libraries keep their workspaces
    before = used()
    for _ in range(3): written(model, 8)
    assert used() == before

@on_gpu
def test_a_recording_that_fails(monkeypatch):
    "At a wait for the device; texts, and torch's random numbers, are those of ordinary steps, then and later."
    model = graph_lm()
    for r in model[0].rnns: r.check_nan = True
    torch.manual_seed(7)
    ids,logps,run = written(model, 4, seed=None)
    after = torch.rand(3, device=DEVICE)
    assert run.graph is None and 'recording failed' in run.lacks
    torch.manual_seed(7)
    want,want_logps,_ = without_graphs(monkeypatch, model, 4, seed=None)
    assert_close((ids, logps, after), (want, want_logps, torch.rand(3, device=DEVICE)), rtol=0, atol=0)
    assert written(graph_lm(), 4)[2].graph is not None

# ---- Kernels as CUDA graphs

GRAPHED = {'LSTM': {}, 'two ways': dict(bidirectional=True), 'three layers': dict(num_layers=3), 'projected': dict(proj_size=24),
           'no bias': dict(bias=False), 'dropped': dict(weight_p=0.3)}
GRAPHED = {**{k: ('LSTM', a) for k,a in GRAPHED.items()}, 'GRU': ('GRU', {}), 'RNN': ('RNN', {}),
           'ReLU': ('RNN', dict(nonlinearity='relu'))}

def calls(layer, n=20, dtype=None, wants=('x', 'state', 'weights'), lengths=None, sl=30):
    "Outputs, last states and gradients of several calls of one layer, all of one shape."
    res = []
    for p in layer.parameters(): p.requires_grad_('weights' in wants)
    for i in range(n):
        g = torch.Generator().manual_seed(i)
        def draw(*shape): return torch.randn(*shape, generator=g).to(DEVICE)   # noqa: B023
        x,state = draw(sl, 6, 32),tuple(draw(len(layer.cells), 6, k)/2 for k in layer._cell.sizes)
        x.requires_grad_('x' in wants)
        for s in state: s.requires_grad_('state' in wants)
        torch.manual_seed(i)
        with torch.autocast('cuda', dtype or torch.float16, enabled=dtype is not None):
            out,last = layer(x, state if len(state) > 1 else state[0], *([lengths] if lengths else []))
        made = out,*tup(last)
        leaves = [t for t in (x, *state, *layer.parameters()) if t.requires_grad]
        cotangents = [draw(*t.shape).to(t.dtype) for t in made]
        grads = torch.autograd.grad(made, leaves, cotangents) if leaves else ()
        res.append([t.detach().clone() for t in (*made, *grads)])
    return res

def graphs_of(layer): return [g for g in layer.graphs.kinds.values() if not isinstance(g, int)]

def equals_ordinary(monkeypatch, layer, graphs=1, **kwargs):
    "To the bit what the kernel gives by itself, gradients included."
    got = calls(layer, **kwargs)
    assert layer.graphs.lacks is None and len(graphs_of(layer)) == graphs
    with monkeypatch.context() as m:
        m.setenv('RNN_FASTAI_CUDA_GRAPHS', '0')
        want = calls(layer, **kwargs)
    for a,b in zip(got, want, strict=True): assert_close(a, b, rtol=0, atol=0)

@on_gpu
@pytest.mark.parametrize('kind', GRAPHED)
@pytest.mark.parametrize('dtype', [None, torch.float16, torch.bfloat16], ids=str)
def test_kernels_of_graphs(kind, dtype, monkeypatch):
    cell,args = GRAPHED[kind]
    layer = Recurrent(cell, 32, 48, **args).to(DEVICE)
    equals_ordinary(monkeypatch, layer, dtype=dtype)

@on_gpu
@pytest.mark.parametrize('wants', [(), ('x',), ('weights',), ('state', 'weights')], ids=str)
def test_gradients_of_graphs_that_are_wanted(wants, monkeypatch):
    layer = Recurrent('LSTM', 32, 48).to(DEVICE)
    equals_ordinary(monkeypatch, layer, wants=wants)

@on_gpu
def test_padded_kernels_of_graphs(monkeypatch):
    layer = Recurrent('LSTM', 32, 48, num_layers=2, bidirectional=True).to(DEVICE)
    equals_ordinary(monkeypatch, layer, lengths=[30, 12, 7, 30, 1, 22], graphs=4)

@on_gpu
def test_passes_that_wait_for_their_gradients():
    "Two passes forwards before the first backwards, and a second pass backwards."
    layer = Recurrent('LSTM', 32, 48).to(DEVICE)
    calls(layer)
    xs = [torch.randn(30, 6, 32, device=DEVICE) for _ in range(3)]
    def grads(outs, **kw): return [torch.autograd.grad(o.square().sum(), list(layer.parameters()), **kw) for o in outs]
    alone = []
    for x in xs: alone += grads([layer(x)[0]])
    outs = [layer(x)[0] for x in xs]
    together = grads(outs, retain_graph=True)
    layer(xs[0])[0].sum().backward()   # the graph goes on to another call
    again = grads(outs)
    for got in (together, again):
        for a,b in zip(got, alone, strict=True): assert_close(a, b, **CLOSE)
    assert graphs_of(layer)

@on_gpu
def test_gradients_are_not_the_graphs_own():
    "Accumulated over calls, and kept by whoever holds them."
    layer = Recurrent('LSTM', 32, 48).to(DEVICE)
    calls(layer)
    xs = [torch.randn(30, 6, 32, device=DEVICE) for _ in range(2)]
    want = 0
    for x in xs: want = want + torch.autograd.grad(layer(x)[0].sum(), layer.weight_hh_l0)[0]
    outs = []
    for x in xs:
        outs.append(layer(x)[0])
        outs[-1].sum().backward()
    assert_close(layer.weight_hh_l0.grad, want, **CLOSE)
    assert_close(outs[0], layer(xs[0])[0], rtol=0, atol=0)

@on_gpu
def test_a_language_model_trains_as_without_graphs(monkeypatch):
    losses = []
    for on in '10':
        monkeypatch.setenv('RNN_FASTAI_CUDA_GRAPHS', on)
        learn = train(LEARNERS['lm'], [], 6)
        losses.append(torch.stack(list(learn.recorder.losses)))
        assert bool(graphs_of(learn.model[0].rnns[0])) == (on == '1')
    assert_close(*losses, rtol=1e-4, atol=1e-4)

# ---- Memory

@pytest.mark.skipif(DEVICE.type != 'cuda', reason="counts the GPU's memory")
@pytest.mark.parametrize('kind', ['lm', 'classifier', 'tagger', 'LSTM'])
def test_memory_is_given_back(kind):
    def used():
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    train(LEARNERS[kind], [], 1)
    before = used()
    learn = train(LEARNERS[kind], PRECISIONS['float16'](), 1)
    if kind in ('lm', 'LSTM'): learn.predict('ab' if kind == 'LSTM' else 'mat', n_words=3, no_bar=True)
    with learn.capture(): _quiet(learn).validate()
    del learn
    assert used() <= before + 2**16
