"Edits of states, for every cell, stacked and in both directions, ours and torch's."
import numpy as np
import pytest
import torch
from torch import nn

from rnn_fastai.inside.capture import capture
from rnn_fastai.inside.interventions import (
    Edit,
    ablate,
    clamp,
    edit_states,
    memory_length,
    patch_states,
    saliency,
    unit_effects,
)
from rnn_fastai.inside.plots import color_text, plot_states
from rnn_fastai.inside.probes import top_contexts
from rnn_fastai.inside.recording import Recording
from rnn_fastai.models.cells import cells
from rnn_fastai.models.recurrent import Recurrent
from rnn_fastai.models.seq2seq import SequenceModel

KINDS = {'stacked, both ways': dict(num_layers=2, bidirectional=True), 'one layer': {}}
LAYERS = {**{n: lambda n=n, **kw: Recurrent(n, 5, 4, **kw) for n in cells},
          **{f'nn.{k.__name__}': lambda k=k, **kw: k(5, 4, **kw) for k in (nn.RNN, nn.LSTM, nn.GRU)}}


@pytest.fixture(params=LAYERS)
def make(request): return LAYERS[request.param]


@pytest.mark.parametrize('kind', KINDS)
@torch.no_grad()
def test_states_of_another_run_give_its_outputs(make, kind):
    torch.manual_seed(0)
    layer = make(**KINDS[kind])
    a, b = torch.randn(6, 1, 5), torch.randn(6, 1, 5)
    with capture(layer) as rec: plain, other = layer(a)[0], layer(b)[0]

    def states_of(doc):
        edits = []
        for name, part in rec.sizes:
            states = rec[name, part, doc]
            edits.append(patch_states(name, slice(None), states[::-1] if name.endswith('_reverse') else states, part))
        return edits   # steps are counted in the order of reading
    with edit_states(layer, *states_of(0)): torch.testing.assert_close(layer(a)[0], plain, atol=1e-5, rtol=1e-5)
    with edit_states(layer, *states_of(1)): torch.testing.assert_close(layer(a)[0], other, atol=1e-5, rtol=1e-5)
    assert 'forward' not in vars(layer) and torch.equal(layer(a)[0], plain)


@torch.no_grad()
def test_one_unit_for_some_steps(make):
    torch.manual_seed(0)
    layer, x = make(), torch.randn(6, 2, 5)
    plain = layer(x)[0]
    name = type(layer).__name__.lower()
    with edit_states(layer, clamp(name, 1, 0.25, steps=[3])): out = layer(x)[0]
    assert (out[3, :, 1] == 0.25).all()
    torch.testing.assert_close(out[:3], plain[:3], atol=1e-6, rtol=1e-5)
    with edit_states(layer, clamp(name, 1, 0.25, steps=[3])):   # counted over calls
        half = layer(x[:2])
        rest = layer(x[2:], half[1])[0]
    torch.testing.assert_close(torch.cat([half[0], rest]), out, atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize('steps', [3, np.int64(3), {3}, range(3, 4), np.array([3])])
def test_steps_are_a_number_or_several(steps):
    layer, x = Recurrent('GRU', 5, 4), torch.randn(6, 2, 5)
    with edit_states(layer, clamp(0, 1, 0.25, steps=steps)): out = layer(x)[0]
    assert (out[:, :, 1] == 0.25).all(1).tolist() == [False]*3 + [True] + [False]*2
    with pytest.raises(ValueError, match=r'steps=slice\(0, 3, None\).*range'), edit_states(layer, clamp(0, 1, 0.25, steps=slice(0, 3))): pass
    assert layer.edit is None


@pytest.mark.parametrize('value', ['x', float('nan'), float('inf'), None, [1., 'a'], [1., 2.]])
def test_values_that_units_cannot_hold_are_refused_at_once(value):
    for make in (clamp, Edit):
        with pytest.raises(ValueError, match='Units cannot hold|There are 2 values for 1 units'), edit_states(Recurrent('GRU', 5, 4), make(0, 1, value)): pass
    with pytest.raises(ValueError, match='Units cannot hold'): patch_states(0, 1, np.full((2, 4), np.nan))
    with pytest.raises(ValueError, match='Units cannot hold'): ablate(0, 1, [float('nan')]*4)


@pytest.mark.parametrize('unit', ['a', 1.5, None, True, [], [0, 'a']])
def test_what_is_no_unit_is_refused_at_once(unit):
    rec = Recording.from_arrays({('rnn', 'h'): np.zeros((3, 4))}, [3], [0, 1, 2], [*'abc'])
    for call in (lambda: clamp(0, unit, 1.), lambda: ablate(0, unit), lambda: color_text(rec, unit), lambda: top_contexts(rec, unit)):
        with pytest.raises(ValueError, match='units?=.* must be the number of'): call()
    if unit is not None:
        with pytest.raises(ValueError, match='units=.* must be the number of a unit, or several'): plot_states(rec, units=unit)


def test_all_is_put_back_after_an_error():
    layer = nn.LSTM(5, 4)
    with pytest.raises(KeyError), edit_states(layer, ablate('lstm', 0)): raise KeyError
    assert 'forward' not in vars(layer)
    rnn = Recurrent('LSTM', 5, 4)
    with pytest.raises(KeyError), edit_states(rnn, ablate(0, 0)): raise KeyError
    assert rnn.edit is None


def test_gradients_go_through_edits():
    rnn, x = Recurrent('GRU', 5, 4).double(), torch.randn(4, 2, 5).double().requires_grad_()
    with edit_states(rnn, clamp(0, [0, 1, 2, 3], 0., steps=[2])): rnn(x)[0][3].sum().backward()
    assert (x.grad[:3] == 0).all() and (x.grad[3] != 0).any()   # nothing passes the step that is held


def test_effects_are_of_all_units_by_default():
    for layer, n in ((nn.LSTM(5, 4, proj_size=3), 3), (nn.GRU(5, 4), 4), (Recurrent('LSTM', 5, 4, proj_size=3), 3)):
        assert sorted(unit_effects(layer, lambda: 0., no_bar=True).units) == list(range(n))
    with pytest.raises(TypeError, match='0 is LSTMCell, not a layer over time'):
        unit_effects(nn.Sequential(nn.LSTMCell(5, 4)), lambda: 0., no_bar=True)


def test_effects_of_a_unit_that_is_not_used():
    torch.manual_seed(0)
    net = SequenceModel(nn.Embedding(9, 5), Recurrent('RNN', 5, 4, batch_first=True), 3)
    with torch.no_grad():
        net.head.weight[:, 2] = 0
        net.rnn.weight_hh_l0[:, 2] = 0
    ids = torch.randint(9, (2, 6))
    effects = unit_effects(net, lambda: net(ids).pow(2).mean().item(), no_bar=True).set_index('units')
    assert effects.change[2] == 0 and (effects.change.drop(2) != 0).all()


@pytest.mark.parametrize('cell', ['RNN', 'LSTM', 'GRU', 'minGRU', 'sLSTM'])   # layer norm is not smooth at zero
def test_integrated_gradients_are_complete(cell):
    torch.manual_seed(0)
    net = SequenceModel(nn.Embedding(9, 6), Recurrent(cell, 6, 5, batch_first=True), 3, every_step=False).double()
    ids = torch.randint(9, (3, 7))
    shares = saliency(net, ids, 2, 'integrated', 200)
    with torch.no_grad():
        whole = net(ids)[:, 2]
        net.inp.weight.zero_()
        torch.testing.assert_close(shares.sum(1), whole - net(ids)[:, 2], atol=1e-4, rtol=0)


def test_memory_of_a_latch():
    "A net that keeps the first token's value for ever is moved by that token alone."
    class Latch(nn.Module):
        def forward(self, ids): return nn.functional.one_hot(ids[:, :1], 9).double()*4
    ids = torch.randint(9, (5, 6), generator=torch.Generator().manual_seed(0))
    found = memory_length(Latch(), ids, max_back=9)
    assert len(found) == 6 and np.flatnonzero(found.influence > 1e-9).tolist() == [5]
