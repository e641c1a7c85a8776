"""A layer's kernel as CUDA graphs, without a GPU: cuDNN is torch's kernel on the CPU, a graph repeats recorded operations.

cuDNN's pass backwards spoils what its pass forwards left, so the one here does."""
import copy
import gc
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from test_graphs import FakeGraph, gpu  # noqa: F401
from torch import Tensor, nn
from torch.testing import assert_close

from rnn_fastai.models import graphs
from rnn_fastai.models.graphs import KernelGraphs, kernel_call
from rnn_fastai.models.kernels import run_kernel

KINDS = ['rnn_relu', 'rnn_tanh', 'lstm', 'gru']   # in the order of cuDNN's numbers
LAYERS = dict(rnn_relu=lambda **kw: nn.RNN(3, 4, nonlinearity='relu', **kw), rnn_tanh=lambda **kw: nn.RNN(3, 4, **kw),
              lstm=lambda **kw: nn.LSTM(3, 4, **kw), gru=lambda **kw: nn.GRU(3, 4, **kw))

def kernel(x:Tensor, weights:list[Tensor], h:Tensor, c:Tensor|None, mode:int, layers:int, two:bool) -> list[Tensor]:
    state,bias = (h,) if c is None else (h, c),len(weights)//len(h) > 2
    out,last = run_kernel(KINDS[mode], x, state, list(weights), bias, layers, bidirectional=two, training=True)
    return [out, *last]

@torch.library.custom_op('kernel_graphs::forward', mutates_args=())
def forward(x:Tensor, weights:list[Tensor], h:Tensor, c:Tensor|None, mode:int, layers:int, two:bool) -> list[Tensor]:
    return [t.clone() for t in kernel(x, weights, h, c, mode, layers, two)]

@torch.library.custom_op('kernel_graphs::backward', mutates_args=('reserve',))
def backward(reserve:Tensor, weights:list[Tensor], h:Tensor, c:Tensor|None, ds:list[Tensor], mode:int, layers:int,
             two:bool) -> list[Tensor]:
    def work():   # in a thread of its own: below an operation there is no autograd
        leaves = [t.detach().clone().requires_grad_() for t in (reserve, h, *([] if c is None else [c]), *weights)]
        n = len(leaves) - len(weights)
        made = kernel(leaves[0], leaves[n:], leaves[1], leaves[2] if n == 3 else None, mode, layers, two)
        return [g.clone() for g in torch.autograd.grad(made, leaves, ds)]
    with ThreadPoolExecutor(1) as pool: grads = pool.submit(work).result()
    reserve.zero_()
    return grads

def cudnn(x, weights, each, flat, h, c, mode, hid, proj, layers, first, dropout, train, two, sizes, drop):
    assert not (first or dropout or sizes or drop) and each == len(weights)//len(h)
    out,*last = forward(x, weights, h, c, mode, layers, two)
    return out,*(*last, h.new_empty(0))[:2],x.clone(),flat   # x stands for the reserve

def cudnn_backward(x, weights, each, flat, h, c, out, d_out, d_h, d_c, mode, hid, proj, layers, first, dropout, train,
                   two, sizes, drop, reserve, mask):
    assert train and bool(d_c is None) == bool(c is None)
    dx,dh,*ds = backward(reserve, weights, h, c, [d for d in (d_out, d_h, d_c) if d is not None], mode, layers, two)
    dc = None if c is None else ds.pop(0)
    return dx if mask[0] else None,dh if mask[1] else None,dc if mask[2] else None,ds if mask[3] else []

@pytest.fixture(autouse=True)
def cuda(monkeypatch, gpu):   # noqa: F811
    monkeypatch.setattr(torch, '_cudnn_rnn', cudnn)
    monkeypatch.setattr(torch, '_cudnn_rnn_flatten_weight', lambda ws, *args: ws[0])
    monkeypatch.setattr(graphs, '_backward', cudnn_backward)
    monkeypatch.setattr(torch.backends.cudnn, 'is_acceptable', lambda x: True)
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: False)
    stream = SimpleNamespace(stream_id=0, wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device: stream)
    monkeypatch.setattr(graphs, '_AFTER', 3)
    memory = dict(mem_get_info=(60, 100), memory_reserved=30, memory_allocated=20)
    for name,value in memory.items(): monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)

def draw(kind, sl=6, two=False, layers=1, seed=None):
    if seed is not None: torch.manual_seed(seed)
    state = tuple(torch.randn(layers*(2 if two else 1), 2, 4)/2 for _ in range(2 if kind == 'lstm' else 1))
    return torch.randn(sl, 2, 3),state

class Layer:
    "torch's layer, whose calls are graphs."
    def __init__(self, kind, **kw):
        torch.manual_seed(0)
        self.kind,self.kw,self.own,self.graphs = kind,kw,LAYERS[kind](**kw),KernelGraphs()
        self.weights = list(self.own.parameters())

    def __call__(self, x, state, cell=0):
        kw = self.kw
        call = kernel_call(self.kind, cell, x, state, self.weights, kw.get('bias', True), kw.get('num_layers', 1),
                           kw.get('bidirectional', False))
        return self.graphs.run(call, x, state, self.weights)

    def plain(self, x, state):
        out,last = self.own(x, state if self.kind == 'lstm' else state[0])
        return out,last if self.kind == 'lstm' else (last,)

    def warm(self, n=3, **kw):
        "So many calls, which are ordinary."
        for _ in range(n):
            x,state = draw(self.kind, **kw)
            assert self(x.requires_grad_(), state) is None

def grads(made, leaves, seed=5, **kw):
    torch.manual_seed(seed)
    flat = made[0],*made[1]
    return torch.autograd.grad(flat, leaves, [torch.randn_like(t) for t in flat], **kw)

HOW = [{}, dict(bias=False), dict(bidirectional=True), dict(num_layers=2)]
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('how', HOW, ids=str)
def test_answers_and_gradients(kind, how):
    layer,n = Layer(kind, **how),len(FakeGraph.made)
    shape = dict(two=how.get('bidirectional', False), layers=how.get('num_layers', 1))
    layer.warm(**shape)
    for i in range(4):
        x,state = draw(kind, seed=i, **shape)
        leaves = [t.requires_grad_() for t in (x, *state)] + layer.weights
        if i == 0: layer.graphs.kinds = {k._replace(grads=(True,)*3): v for k,v in layer.graphs.kinds.items()}
        got,want = layer(x, state),layer.plain(x, state)
        assert_close(got, want)
        for a,b in zip(grads(got, leaves), grads(want, leaves), strict=True): assert_close(a, b)
    assert layer.graphs.lacks is None and len(FakeGraph.made) == n + 2
    assert [g.replays for g in FakeGraph.made[n:]] == [2 + 4, 1 + 4]   # the first ones are compared

@pytest.mark.parametrize('wants', ['x', 'state', 'weights', 'none'])
def test_wanted_gradients(wants):
    layer = Layer('lstm')
    for w in layer.weights: w.requires_grad_(wants == 'weights')
    for _ in range(5):
        x,state = draw('lstm')
        leaves = dict(x=[x], state=state, weights=layer.weights, none=[])[wants]
        for t in leaves: t.requires_grad_()
        got = None   # the turn of the call before ends
        got = layer(x, state)
    assert_close(got, layer.plain(x, state), rtol=0, atol=0)
    if leaves:
        for a,b in zip(grads(got, leaves), grads(layer.plain(x, state), leaves), strict=True): assert_close(a, b)
    assert len(FakeGraph.made) == (2 if leaves else 1)

def test_inference():
    layer,last = Layer('lstm'),None
    for mode in (torch.no_grad, torch.inference_mode, torch.no_grad):
        for _ in range(5):
            x,state = draw('lstm')
            with mode(): got = layer(x, state)
            if got: assert_close(got, layer.plain(x, state), rtol=0, atol=0)
            last = got or last
    assert len(FakeGraph.made) == 2 and last and layer.graphs.lacks is None

def test_what_is_given_stays():
    "Nobody holds memory that a later call writes."
    layer = Layer('lstm')
    layer.warm()
    held = []
    for i in range(3):
        x,state = draw('lstm', seed=i)
        out,last = layer(x.requires_grad_(), state)
        held.append([*grads((out, last), [x, *layer.weights]), out, *last])
    for i,got in enumerate(held):
        x,state = draw('lstm', seed=i)
        out,last = layer.plain(x.requires_grad_(), state)
        for a,b in zip(got, [*grads((out, last), [x, *layer.weights]), out, *last], strict=True): assert_close(a, b)

def test_one_pass_at_a_time():
    "While a pass backwards may come the graph takes no other call; then, or when none can come, it does."
    layer = Layer('lstm')
    layer.warm()
    x,state = draw('lstm')
    first = layer(x.requires_grad_(), state)
    assert first is not None and layer(x, state) is None
    grads(first, [x])
    second = layer(x, state)   # `first` is still held
    assert second is not None and layer(x, state) is None
    del second
    gc.collect()
    assert layer(x, state) is not None

def test_a_second_pass_backwards():
    "It runs the kernel again: the first one spoilt the graph's memory, and another call may have written it."
    layer = Layer('lstm')
    layer.warm()
    x,state = draw('lstm', seed=1)
    leaves = [x.requires_grad_(), *layer.weights]
    got,want = layer(x, state),grads(layer.plain(x, state), leaves)
    for again in range(3):
        for a,b in zip(grads(got, leaves, retain_graph=True), want, strict=True): assert_close(a, b)
        if again == 1:
            other,state = draw('lstm')
            assert layer(other.requires_grad_(), state) is not None   # the graph's memory is another call's

def test_second_derivatives():
    "They are those of the kernel, or its refusal: cuDNN has none. Not zeros."
    layer = Layer('rnn_tanh')
    layer.warm()
    x,state = draw('rnn_tanh')
    res = []
    for run in (layer, layer.plain):
        dx, = torch.autograd.grad(run(x.requires_grad_(), state)[0].square().sum(), x, create_graph=True)
        res.append(torch.autograd.grad(dx.square().sum(), [x, *layer.weights]))
    for a,b in zip(*res, strict=True): assert_close(a, b)

@contextmanager
def autocast():
    "As `torch.autocast`, which is off for CUDA where there is none."
    before = torch.get_autocast_dtype('cuda')
    torch.set_autocast_dtype('cuda', torch.bfloat16)
    torch.set_autocast_enabled('cuda', True)
    yield
    torch.set_autocast_enabled('cuda', False)
    torch.set_autocast_dtype('cuda', before)

def test_autocast():
    layer = Layer('lstm')
    x,state = draw('lstm')
    def run():
        with autocast(): return layer(x.requires_grad_(), state)
    for _ in range(3): assert run() is None
    got = run()
    assert {t.dtype for t in (got[0], *got[1])} == {torch.bfloat16}
    assert_close(got, layer.plain(x, state), rtol=5e-2, atol=5e-2, check_dtype=False)
    for a,b in zip(grads(got, [x, *layer.weights]), [x, *layer.weights], strict=True): assert a.dtype == b.dtype == torch.float32
    assert layer(x, state) is None   # in float32 it is another kind

def test_kinds_that_come_rarely():
    "Each has to come often enough while few others do; the oldest is given up."
    layer = Layer('lstm')
    for _ in range(4):
        for sl in range(5, 15): assert layer(*draw('lstm', sl)) is None   # ten kinds
    assert not FakeGraph.made and len(layer.graphs.kinds) == 8
    for _ in range(4):
        for sl in range(5, 12): layer(*draw('lstm', sl))
    assert len(FakeGraph.made) == 2*7

def test_short_runs_and_cells_apart():
    layer = Layer('lstm')
    for _ in range(9): assert layer(*draw('lstm', 4)) is None
    x,state = draw('lstm')
    for _ in range(4): one,two = layer(x, state),layer(x, state, cell=1)
    assert one is not None and two is not None and len(FakeGraph.made) == 4

def test_lengths_that_come_and_go():
    "They cost a limited number of recordings; graphs that are there stay in use."
    layer = Layer('lstm')
    for sl in range(5, 30):
        for _ in range(5): layer(*draw('lstm', sl))
    assert len(FakeGraph.made) == 2*16 and '16 kinds' in layer.graphs.lacks
    for _ in range(5): last = layer(*draw('lstm', 20))
    assert last is not None and layer(*draw('lstm', 29)) is None

def test_a_full_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (14, 100))
    layer = Layer('lstm')
    layer.warm(9)
    assert not FakeGraph.made and 'a quarter' in layer.graphs.lacks
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (15, 100))
    layer = Layer('lstm')
    layer.warm()
    assert layer(draw('lstm')[0].requires_grad_(), draw('lstm')[1]) is not None

def test_copies_make_their_own():
    layer = Layer('lstm')
    layer.warm(4 - 1)
    layer(*draw('lstm'))
    for twin in (copy.deepcopy(layer.graphs), pickle.loads(pickle.dumps(layer.graphs))): assert twin.kinds == {}

def test_the_switch(monkeypatch):
    monkeypatch.setenv('RNN_FASTAI_CUDA_GRAPHS', '0')
    Layer('lstm').warm(9)
    assert not FakeGraph.made

# ---- A failure changes no answer

class Failing(FakeGraph):
    def replay(self): raise RuntimeError("CUDA error")
def no_memory(*args, **kwargs): raise torch.OutOfMemoryError("CUDA out of memory.")

@pytest.mark.parametrize('name,wrong,why', [('CUDAGraph', Failing, 'RuntimeError: CUDA error'), ('graph', no_memory, 'out of memory')])
def test_a_recording_that_fails(name, wrong, why, monkeypatch):
    monkeypatch.setattr(torch.cuda, name, wrong)
    layer,generator = Layer('lstm'),torch.cuda.default_generators[None]
    generator.offset = 12
    layer.warm(9)
    assert why in layer.graphs.lacks and (generator.offset, generator.recording) == (12, False)

@pytest.mark.parametrize('name', ['forward', 'backward'])
def test_a_graph_that_gives_other_numbers(name, monkeypatch):
    layer,right = Layer('lstm'),getattr(graphs.KernelGraph, name)
    def wrong(*args): return [t if t is None else t*1.05 for t in right(*args)]
    monkeypatch.setattr(graphs.KernelGraph, name, wrong)
    layer.warm(9)
    assert layer.graphs.lacks == "the first one gave other numbers"
