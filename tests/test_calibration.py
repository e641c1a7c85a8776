"Classes of which one is rare, and answers that are as sure as they are right: losses, loaders, learners, files."
import math
import subprocess
import sys
import warnings

import bundles as b
import numpy as np
import pytest
import torch
from bundles import clas, clas_dls, pairs, rnn, texts
from fastai.text import all as ft
from scipy.optimize import minimize_scalar
from sklearn.metrics import classification_report, f1_score
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from rnn_fastai import all as rf
from rnn_fastai.data.balance import balanced_loaders, class_counts, class_weights
from rnn_fastai.data.documents import DocDataLoader
from rnn_fastai.learner import calibration  # noqa: F401 # gives learners their methods
from rnn_fastai.models.calibration import best_threshold, fit_temperature
from rnn_fastai.models.focal import FocalLoss
from rnn_fastai.models.losses import CalibratedLoss, plain_loss
from rnn_fastai.ship.bundle import load_bundle

LABELS = {'binary': {}, 'many': dict(label_col='number'), 'multilabel': b.LABELS['lists']}

@pytest.fixture(params=LABELS)
def learn(request):
    "A learner of labels whose outputs are wide apart."
    ft.set_seed(0)
    learn = clas(dls=clas_dls(**LABELS[request.param]))
    for p in learn.model[1].parameters(): p.data.mul_(2).add_(torch.randn_like(p)*0.3)
    learn.kind = request.param
    return learn

def rows(learn): return learn.dls.test_dl(texts(), with_labels=True)
def answers(learn): return learn.get_preds(dl=rows(learn), with_decoded=True)
def logits(learn): return learn.get_preds(dl=rows(learn), act=ft.noop)[0]
def quiet(learn):
    learn.remove_cb(ft.ProgressCallback)
    learn.logger = ft.noop
    return learn

def test_the_temperature_is_that_of_the_least_loss(learn):
    x,y = logits(learn).double(),answers(learn)[1]
    f = F.binary_cross_entropy_with_logits if learn.kind == 'multilabel' else F.cross_entropy
    y = y.double() if learn.kind == 'multilabel' else y
    best = math.exp(minimize_scalar(lambda u: float(f(x*math.exp(u), y)), bounds=(-15, 10), method='bounded', options=dict(xatol=1e-10)).x)
    try: t = learn.calibrate(dl=rows(learn))
    except ValueError as e: assert 'no best temperature' in str(e) and (best < 1e-5 or best > 1e3)
    else:
        assert math.isclose(t, 1/best, rel_tol=1e-3)
        assert f(x/t, y) <= min(f(x, y), f(x*best, y) + 1e-12)

def test_a_known_factor_comes_back():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, generator=rng, dtype=torch.double)
    y = torch.multinomial(x.softmax(1), 1, generator=rng)[:, 0]
    t = fit_temperature(x, y)
    for k in (0.01, 0.5, 7., 1e4): assert math.isclose(fit_temperature(k*x, y), k*t, rel_tol=1e-9)
    assert math.isclose(fit_temperature(3*x + 100*torch.randn(400, 1, generator=rng), y), 3*t, rel_tol=1e-6)

def test_labels_stay_and_thresholds_move_along(learn):
    before = answers(learn)
    learn.loss_func = CalibratedLoss(learn.loss_func, 4.)
    assert torch.equal(answers(learn)[2], before[2]) and not torch.allclose(answers(learn)[0], before[0])
    learn.uncalibrate()
    assert torch.equal(answers(learn)[0], before[0])
    if learn.kind == 'many':
        with pytest.raises(ValueError, match='this learner gives one of 3'): learn.set_thresholds(0.3)
        with pytest.raises(ValueError, match='this learner gives one of 3'): learn.choose_thresholds(dl=rows(learn))
        return
    learn.set_thresholds(0.3)
    at = answers(learn)[2]
    try: learn.calibrate(dl=rows(learn))
    except ValueError: pytest.skip('outputs of random weights have no temperature here')
    assert torch.equal(answers(learn)[2], at)

def calibrated(learn):
    learn.loss_func = CalibratedLoss(learn.loss_func, 2.5, None if learn.kind == 'many' else [0.4, 0.6] if learn.kind == 'multilabel' else 0.4)
    return learn

def test_files_in_another_process(learn, tmp_path):
    calibrated(learn).save_bundle(tmp_path/'m')
    again = load_bundle(tmp_path/'m')
    assert repr(again.loss_func) == repr(learn.loss_func)
    assert_close(answers(again), answers(learn), rtol=0, atol=0)
    code = ("import sys, torch\nfrom rnn_fastai.ship.bundle import load_bundle\n"
            "torch.save([load_bundle(sys.argv[1]).predict(t)[1:] for t in ('The CAT', 'mat')], sys.argv[2])")
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code, str(tmp_path/'m'), str(tmp_path/'x')], check=True)
    for (i,p),t in zip(torch.load(tmp_path/'x', weights_only=False), ('The CAT', 'mat'), strict=True):
        assert_close([i, p], list(learn.predict(t)[1:]), rtol=0, atol=0)

def test_weights_bring_their_temperature(learn, tmp_path):
    other,plain = clas(dls=learn.dls),clas(dls=learn.dls)
    file,old = calibrated(learn).save(tmp_path/'w'),plain.save(tmp_path/'plain')
    assert repr(other.load(file).loss_func) == repr(learn.loss_func)
    assert_close(answers(other), answers(learn), rtol=0, atol=0)
    assert not isinstance(other.load(old).loss_func, CalibratedLoss)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        quiet(learn).lr_find(show_plot=False, num_it=3)
    assert isinstance(learn.loss_func, CalibratedLoss)
    with pytest.warns(UserWarning, match='belong to the weights before'): learn.fit(1, 1e-3)
    assert not isinstance(learn.loss_func, CalibratedLoss)

def test_exports_answer_the_same(learn, tmp_path):
    pytest.importorskip('onnxruntime'); pytest.importorskip('onnxscript')
    from rnn_fastai.ship.batching import classify
    from rnn_fastai.ship.onnx import export_onnx
    from rnn_fastai.ship.onnx_model import OnnxModel
    calibrated(learn)
    probs,_,best = answers(learn)
    names = list(learn.dls.vocab[1])
    many = learn.kind == 'multilabel'
    want = [[n for n,y in zip(names, d, strict=True) if y] if many else names[d] for d in best.tolist()]
    got = OnnxModel(export_onnx(learn, tmp_path/'o')).classify(texts().text.tolist())
    assert [g.label for g in got] == want
    np.testing.assert_allclose([list(g.probs.values()) for g in got], probs, atol=1e-4)
    served = classify(learn, texts().text.tolist())
    np.testing.assert_allclose([list(s['probabilities'].values()) for s in served], probs, atol=1e-5)

def test_learners_of_sequences():
    learn = rnn(pairs('many-to-one'))
    before = learn.predict('ab')
    learn.loss_func = CalibratedLoss(learn.loss_func, 3.)
    label,i,p = learn.predict('ab')
    assert (label, i) == before[:2]
    assert_close(p, (before[2].log()/3).softmax(-1))
    learn.set_thresholds(1.)
    assert learn.predict('ab')[0] == 'x'

def test_the_report_is_scikit_learns(learn):
    calibrated(learn)
    probs,y,best = answers(learn)
    want = classification_report(y.numpy(), best.numpy(), labels=range(probs.shape[1]), output_dict=True, zero_division=0)
    report = learn.class_report(dl=rows(learn))
    for at,name in enumerate(learn.dls.vocab[1]): assert report.iloc[at].to_dict() == pytest.approx(want[str(at)]), name
    for name in ('macro avg', 'weighted avg'): assert report.loc[name].to_dict() == pytest.approx(want[name])
    if learn.kind != 'multilabel':
        metric = ft.F1Score(average='macro')
        learn.metrics = [metric]
        learn.uncalibrate()
        macro = f1_score(y, answers(learn)[2], average='macro')
        assert learn.validate(dl=rows(learn))[1] == pytest.approx(macro) == pytest.approx(learn.class_report(dl=rows(learn)).loc['macro avg', 'f1-score'])

def test_thresholds_of_each_label():
    learn = clas(dls=clas_dls(**LABELS['multilabel']))
    found = learn.choose_thresholds(dl=rows(learn))
    assert list(found) == list(learn.dls.vocab[1]) and learn.loss_func.thresholds == list(found.values())
    probs,y,_ = answers(learn)
    for i,t in enumerate(found.values()):
        best = max(f1_score(y[:, i], probs[:, i] > c) for c in [0, *probs[:, i].tolist()])
        assert f1_score(y[:, i], probs[:, i] > t) == pytest.approx(best)
    same = texts()[lambda df: df.many == 'a;b']
    with pytest.warns(UserWarning, match='All rows, or none, have'): assert set(learn.choose_thresholds(dl=learn.dls.test_dl(same, with_labels=True)).values()) == {0.5}
    learn.set_thresholds(dict.fromkeys(found, 0.2))
    assert learn.loss_func.thresholds == [0.2]*len(found)

@pytest.mark.parametrize(('call', 'match'), [
    (lambda l: l.set_thresholds(-0.1), 'thresholds=-0.1 is no probability'),
    (lambda l: l.set_thresholds(float('nan')), 'thresholds=nan is no probability'),
    (lambda l: l.set_thresholds('0.5'), "thresholds='0.5' is no probability; it must be a number from 0 to 1"),
    (lambda l: l.set_thresholds(['0.5']), "thresholds='0.5' is no probability"),
    (lambda l: l.set_thresholds([0.1, 0.2]), r"thresholds has 2 numbers; it must have 1: of \['pos'\]"),
    (lambda l: l.set_thresholds(dict(bad=0.1)), r"one for each of \['pos'\]"),
    (lambda l: l.choose_thresholds(dl=rows(l), recall=2.), 'Label .*: recall=2.0'),
    (lambda l: l.choose_thresholds(dl=l.dls.test_dl(texts()[lambda df: df.label == 'neg'], with_labels=True)), 'targets are the same'),
    (lambda l: l.calibrate(dl=l.dls.test_dl(['The CAT'])), 'The rows have no labels'),
    (lambda l: load_bundle(l.save_bundle(l.path/'none')).calibrate(), 'no batch to predict')])
def test_bad_input_is_named(call, match, tmp_path):
    learn = clas(path=tmp_path)
    with pytest.raises(ValueError, match=match): call(learn)

def test_what_has_no_classes_is_refused():
    value = clas(dls=clas_dls(**b.LABELS['value']))
    for call in (value.calibrate, value.class_report, value.plot_reliability):
        with pytest.raises(TypeError, match='a regression, whose answers are values'): call()
    with pytest.raises(ValueError, match='A regression has no thresholds'): value.set_thresholds(0.5)
    with pytest.raises(TypeError, match="of kind 'many-to-many'"): rnn(pairs('many-to-many')).calibrate()

# ---- Focal loss

@pytest.mark.parametrize('gamma', [0., 0.5, 1., 2., 5.])
def test_derivatives_of_the_focal_loss(gamma):
    torch.manual_seed(0)
    x,y = torch.randn(5, 3, dtype=torch.double, requires_grad=True),torch.tensor([0, 1, 2, 0, -100])
    f = FocalLoss(gamma, [1., 2., 5.]).double()
    assert torch.autograd.gradcheck(lambda x: f(x, y), x) and torch.autograd.gradgradcheck(lambda x: f(x, y), x)
    p,w = x.detach().softmax(1)[range(4), y[:4]],torch.tensor([1., 2., 5.]).double()[y[:4]]
    assert_close(f(x, y).detach(), (w*(1 - p)**gamma*-p.log()).sum()/w.sum())
    for scale in (50., 5e3):   # so sure that 1 - p is zero
        big = (x.detach().float()*scale).requires_grad_()
        assert torch.autograd.grad(FocalLoss(gamma)(big, y), big)[0].isfinite().all()
    for half in (torch.half, torch.bfloat16):
        assert_close(f.float()(x.to(half), y), f(x.to(half).float(), y))

def test_a_focal_loss_trains_and_is_kept(tmp_path):
    learn = quiet(clas(loss_func=FocalLoss(1.5, class_weights(clas_dls()))))
    learn.fit(1, 1e-3)
    learn.loss_func = CalibratedLoss(learn.loss_func, 2., 0.3)
    again = load_bundle(learn.save_bundle(tmp_path/'m'))
    assert repr(again.loss_func) == repr(learn.loss_func) and isinstance(plain_loss(again.loss_func), FocalLoss)
    assert_close(plain_loss(again.loss_func).weight, plain_loss(learn.loss_func).weight)
    assert_close(answers(again), answers(learn), rtol=0, atol=0)

# ---- Even sampling

def test_even_sampling_trains_and_goes_on(tmp_path):
    class Stop(ft.Callback):
        stop = True
        def after_batch(self):
            if self.stop and self.training and self.learn.train_iter == 8: raise KeyboardInterrupt
    def make():
        ft.set_seed(3)
        return quiet(clas(dls=balanced_loaders(clas_dls(bs=2))))
    whole = make()
    whole.fit(2, 1e-2)
    cut = make()
    with pytest.raises(KeyboardInterrupt): cut.fit(2, 1e-2, cbs=[rf.Checkpoint(tmp_path/'c', every=2), Stop()])
    again = make()
    stop = Stop()
    stop.stop = False
    again.resume(tmp_path/'c', cbs=stop)
    assert_close([p.detach() for p in again.model.parameters()], [p.detach() for p in whole.model.parameters()], rtol=0, atol=0)

def test_processes_share_an_even_order():
    dls = balanced_loaders(clas_dls(bs=4))
    def epoch(dl):
        ft.set_seed(5)
        return [x[0].as_subclass(torch.Tensor) for x in dl]
    whole = epoch(dls.train)
    with dls.train.shared(0, 2): first = epoch(dls.train)
    with dls.train.shared(1, 2): second = epoch(dls.train)
    assert_close([torch.cat(p) for p in zip(first, second, strict=True)], whole)
    assert dls.train.facts()['wgts'] != clas_dls(bs=4).train.facts()['wgts'] and isinstance(dls.train, DocDataLoader)

def test_even_sampling_is_even():
    dls = clas_dls(bs=4)
    n = class_counts(dls)
    assert n['neg'] > n['pos']
    even = balanced_loaders(dls)
    ft.set_seed(0)
    y = torch.cat([t.as_subclass(torch.Tensor) for _ in range(100) for _,t in even.train])
    assert abs(y.double().mean() - 0.5) < 5*0.5/len(y)**0.5
    with pytest.raises(TypeError, match='one label a text'): balanced_loaders(pairs('many-to-one'))
    assert class_counts(pairs('many-to-one')) == dict(x=2, y=1)

def test_weights_of_losses_by_class():
    w = class_weights(clas_dls(), dict(pos=3, neg=1))
    assert w.tolist() == [1., 3.]
    learn = quiet(clas(loss_func=ft.CrossEntropyLossFlat(weight=w)))
    x,y = logits(learn),answers(learn)[1]
    assert learn.validate(dl=learn.dls.test_dl(texts(), with_labels=True, bs=30))[0] == pytest.approx(float(nn.CrossEntropyLoss(w)(x, y)), rel=1e-4)
    for given,match in ((dict(pos=1, neg=1, mixed=2), "no class 'mixed'"), (dict(neg=1), "weight of 'pos' is missing")):
        with pytest.raises(ValueError, match=match): class_weights(clas_dls(), given)
    learn = quiet(clas(dls=clas_dls(**LABELS['multilabel'])))
    learn.loss_func = ft.BCEWithLogitsLossFlat(pos_weight=class_weights(learn.dls))
    learn.fit(1, 1e-3)

# ---- The edges of numbers

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_a_threshold_holds_in_the_numbers_it_is_compared_in(dtype):
    p,y = torch.tensor([1., 1., 1 - 2**-24, 0.2], dtype=dtype),torch.tensor([1, 1, 0, 0])
    t = best_threshold(p, y)
    assert (p.float() > torch.tensor(t)).tolist() == [True, True, False, False] and np.float32(t) == t

def test_probabilities_of_zero_are_no_yes():
    p,y = torch.tensor([0.9, 0., 0.]),torch.tensor([0, 1, 1])
    t = best_threshold(p, y, recall=0.)
    assert 0 < t < 0.9
    with pytest.raises(ValueError, match='out of reach: the highest is 0.0000'): best_threshold(p, y, recall=0.5)

def test_all_of_a_label_may_be_wanted():
    p,y = torch.tensor([0.9, 0.8, 0.4, 0.1]),torch.tensor([1, 1, 0, 1])
    assert 0.4 <= best_threshold(p, y, precision=1.) < 0.8 and best_threshold(p, y, recall=1.) < 0.1

def test_bfloat16_answers_have_the_same_threshold():
    loss = CalibratedLoss(b.clas_dls().loss_func, 1., 0.501)
    p = torch.tensor([[0.5, 0.5], [0.498, 0.502]])
    assert loss.decodes(p.bfloat16()).tolist() == (p.bfloat16().float()[:, 1] > 0.501).long().tolist()
