"What `learn.summary()` tells of learners of every kind."
import pytest
import torch
from bundles import CASES, build
from fastai.torch_core import get_model

from rnn_fastai.all import load_learner
from rnn_fastai.learner.summary import layer_rows

@pytest.mark.parametrize('case', CASES)
def test_every_weight_is_counted_once(case):
    learn = build(case)
    weights = list(learn.model.parameters())
    n, trained = sum(p.numel() for p in weights), sum(p.numel() for p in weights if p.requires_grad)
    told = learn.summary()
    assert sum(r.n_params for r in told.rows) == n and sum(r.n_trainable for r in told.rows) == trained
    assert f"Total params: {n:,}\nTotal trainable params: {trained:,}\nTotal non-trainable params: {n - trained:,}" in told
    assert type(get_model(learn.model)).__name__ in told.splitlines()[0]
    assert all(r.shape for r in told.rows if r.name)   # nothing that has weights was left out of the run


def test_a_recurrent_layer_has_as_many_weights_as_torch_s():
    rows = {r.name: r for r in build('lm AWD_LSTM').summary().rows}
    lstm = torch.nn.LSTM(6, 6)
    assert rows['0.rnns.0'].n_params == sum(p.numel() for p in lstm.parameters())
    assert rows['1.decoder'].n_shared == rows['0.encoder'].n_params


def test_a_summary_changes_nothing():
    learn = build('lm AWD_LSTM')
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    callbacks = list(learn.cbs)
    first = learn.summary()
    assert learn.summary() == first and list(learn.cbs) == callbacks
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())
    assert not any(m._forward_hooks for m in learn.model.modules())


def test_a_failed_run_leaves_no_hooks():
    layer = torch.nn.Linear(2, 2)
    def fail(): raise RuntimeError('broken')
    with pytest.raises(RuntimeError, match='broken'): list(layer_rows(layer, fail))
    assert not layer._forward_hooks


def test_frozen_groups_are_told_as_such():
    learn = build('clas words')
    learn.freeze()
    told = learn.summary()
    assert 'Model frozen up to parameter group #' in told
    assert {r.n_trainable for r in told.rows if r.name.startswith('0.') and r.n_params} == {0}
    learn.unfreeze()
    assert 'Model unfrozen' in learn.summary()


def test_without_a_training_batch_it_says_what_is_missing(tmp_path):
    learn = build('lm AWD_LSTM')
    learn.export(tmp_path/'bundle')
    with pytest.raises(ValueError, match='read'): load_learner(tmp_path/'bundle').summary()
