"Run by `test_no_float64.py` in a process of its own: jobs on a device that has no float64, as MPS has none."
import pytest
import simulated
import torch
from bundles import NEW
from fastai.text import all as ft
from test_gpu import LEARNERS, clas, lm

from rnn_fastai import all as rf
from rnn_fastai import core

far = simulated.far

def without_float64(o):
    if isinstance(o, torch.Tensor) and o.dtype == torch.float64: raise TypeError("The device has no float64.")
    return far(o)

@pytest.fixture(autouse=True)
def no_float64(monkeypatch):
    monkeypatch.setattr(simulated, 'far', without_float64)
    monkeypatch.setattr(core, '_NO_FLOAT64', {'sim'})

@pytest.fixture(params=['lm', 'lm in chunks', 'classifier', 'tagger, crf', 'sLSTM', 'minLSTM'])
def learn(request):
    ft.set_seed(0)
    learn = LEARNERS[request.param]()
    learn.remove_cb(ft.ProgressCallback)
    learn.kind = request.param
    return learn

def text_of(learn): return {'tagg': ['the', 'cat'], 'sLST': 'abca', 'minL': 'abca'}.get(learn.kind[:4], NEW[0])

@pytest.mark.parametrize('make', [lambda x: x.double(), lambda x: x.cumsum(0, dtype=torch.float64),
                                  lambda x: torch.zeros(3, dtype=torch.float64, device=x.device),
                                  lambda x: torch.tensor([1., 2.]).double().to(x.device)])
def test_the_device_has_no_float64(make):
    with pytest.raises(TypeError, match='no float64'): make(torch.ones(3, device='sim:0'))

def test_trainings_and_predictions(learn, tmp_path):
    cbs = [rf.LossHistory(), rf.HiddenStateCapture(), rf.Checkpoint(tmp_path, every=4)]
    with learn.no_logging(): learn.fit_one_cycle(1, 1e-3, cbs=cbs)
    learn.validate(), learn.get_preds(), learn.predict(text_of(learn)), learn.show_results(max_n=2)
    with learn.capture(parts='all'): learn.validate()
    if not learn.kind.startswith('tagger'): learn.record(text_of(learn))

def test_trainings_of_other_kinds():
    for make,fit in ((lm, lambda l: l.fit(2, cbs=rf.AveragedSGD())), (lm, lambda l: l.lr_find(show_plot=False)),
                     (clas, lambda l: l.fit_gradually(1))):
        learn = make()
        with learn.no_bar(), learn.no_logging(): fit(learn)

RULES = [dict(temperature=0), dict(seed=1), dict(seed=1, top_k=3), dict(seed=1, top_p=0.5), dict(seed=1, typical_p=0.5),
         dict(seed=1, min_p=0.1, repetition_penalty=1.2, frequency_penalty=0.2, no_repeat_ngram=2)]

def test_texts_are_the_cpus():
    learn = lm()
    learn.model.to('sim:0').eval()
    def write():
        kw = dict(n_words=6, no_bar=True)
        return ([t.text for r in RULES for t in learn.generate(NEW, **r, **kw)],
                [t.text for g,d in ((1, 0.), (2, 0.5)) for t in learn.beam_search(NEW, width=4, groups=g, diversity=d, **kw)],
                ''.join(learn.stream(NEW[0], n_words=6, seed=2)), [s.perplexity for s in learn.score(NEW, no_bar=True)],
                learn.score(NEW, cache=rf.NeuralCache(), dynamic=rf.DynamicEvaluation(), no_bar=True)[0].perplexity)
    there = write()
    learn.generate(NEW, n_words=3, seed=torch.Generator().manual_seed(1), no_bar=True)
    learn.model.cpu()
    assert write() == there

def test_what_looks_inside():
    learn = lm()
    learn.model.to('sim:0')
    ids = torch.tensor([[2, 5, 3, 2, 5, 3]], device='sim:0')
    rf.next_token_loss(learn.model, ids), rf.saliency(learn.model, ids), rf.memory_length(learn.model, ids)
    rf.unit_effects(learn.model, lambda: rf.next_token_loss(learn.model, ids), units=[0, 1])
