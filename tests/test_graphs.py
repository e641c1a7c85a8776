"""Steps of generation as CUDA graphs, without a GPU: a graph that records operations, and repeats them on their memory.

While a step is recorded nothing is done, as on a GPU: what operations wrote is taken back, and what they gave is junk
until the first replay. A replay runs no Python of the model, and a wait for the device breaks the recording."""
import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rnn_fastai.generate import graphs
from rnn_fastai.generate.adapt import NeuralCache
from rnn_fastai.generate.decode import Continuation
from rnn_fastai.generate.graphs import GraphedSteps, graph_lacks
from rnn_fastai.generate.sampling import Sampling, TokenSampler
from rnn_fastai.inside.capture import capture
from rnn_fastai.models import graphs as layer_graphs
from rnn_fastai.models.awd import LMOutput, get_language_model
from rnn_fastai.models.state import map_state

WAITS = 'item', 'is_nonzero', '_local_scalar_dense', 'nonzero', 'equal', 'masked_select'

def tensors(o):
    "Those of a nest of arguments."
    if isinstance(o, Tensor): return [o]
    return [t for part in o for t in tensors(part)] if isinstance(o, (tuple, list)) else []

def place(t): return t.untyped_storage().data_ptr()

class Generator:
    "One whose state is broken while a recording goes on."
    def __init__(self, offset=0): self.offset,self.recording = offset,False
    def clone_state(self): return Generator(self.offset)
    def get_offset(self): return self.offset
    def graphsafe_set_state(self, other): self.__dict__.update(other.__dict__)

class Recorder(TorchDispatchMode):
    "Notes operations: what they are given, and what they gave."
    def __init__(self):
        super().__init__()
        self.calls,self.before = [],{}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs,given = kwargs or {},tensors((*args, *(kwargs or {}).values()))
        if func.overloadpacket.__name__ in WAITS: raise RuntimeError("operation not permitted when stream is capturing")
        written = [s.name for s in func._schema.arguments if s.alias_info and s.alias_info.is_write]
        if written:
            for t in given: self.before.setdefault(place(t), (t, t.clone()))
        out = func(*args, **kwargs)
        fresh = [t for t in tensors((out,)) if place(t) not in {place(g) for g in given}]
        if fresh or written: self.calls.append((func, args, kwargs, out, fresh))
        return out

class FakeGraph:
    "In place of `torch.cuda.CUDAGraph`."
    made:list = []
    def __init__(self):
        self.recorder,self.replays = Recorder(),0
        FakeGraph.made.append(self)

    def take_back(self):
        for _,_,_,_,fresh in self.recorder.calls:
            for t in fresh: t.fill_(torch.nan if t.is_floating_point() else 0)
        for t,was in self.recorder.before.values(): t.copy_(was)

    def replay(self):
        self.replays += 1
        for func,args,kwargs,out,fresh in self.recorder.calls:
            again = func(*args, **kwargs)
            for mine,new in zip(tensors((out,)), tensors((again,)), strict=True):
                if any(mine is t for t in fresh): mine.copy_(new)

@contextlib.contextmanager
def fake_recording(graph, stream, capture_error_mode):
    "In place of `torch.cuda.graph`."
    assert capture_error_mode == 'thread_local'
    generator = torch.cuda.default_generators[None]
    generator.recording = True
    with graph.recorder: yield   # an error leaves the generator as it is
    graph.take_back()
    generator.recording = False

@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name,f in dict(CUDAGraph=FakeGraph, graph=fake_recording, Stream=lambda device: stream,
                       current_stream=lambda device: stream, stream=lambda s: contextlib.nullcontext(),
                       device=lambda d: contextlib.nullcontext(), default_generators={None: Generator()}).items():
        monkeypatch.setattr(torch.cuda, name, f)
    monkeypatch.setattr(layer_graphs, '_has_graphs', lambda device: True)
    monkeypatch.setattr(graphs, '_AFTER', 4)
    FakeGraph.made = []

def lm(arch='AWD_LSTM', **config):
    torch.manual_seed(1)
    return get_language_model(arch, 40, dict(emb_sz=12, n_hid=16, n_layers=2, **config)).eval()

PROMPTS = [torch.tensor(p) for p in ([3, 5, 8], [4], [9, 9, 2, 7], [3, 5, 8])]
def write(model, sampling=None, n=20, ends=(), prompts=PROMPTS, each=lambda t, texts: None, **kwargs):
    "Ids and logarithms of all texts; `ends` says after how many tokens some of them end."
    sampler = TokenSampler(sampling or Sampling(temperature=1.2), prompts, 40, n, 3, list(range(len(prompts))))
    texts,out = Continuation(model, prompts, sampler, **kwargs),[[] for _ in prompts]
    for t in range(n):
        each(t, texts)
        step = texts.step()
        for r,i,logp in zip(step.rows, step.ids.tolist(), step.logps.tolist(), strict=True): out[r].append((i, logp))
        texts.keep([r for r in step.rows if dict(ends).get(r) != t])
    return out,texts.run

def plainly(monkeypatch, *args, **kwargs):
    "The same without graphs."
    with monkeypatch.context() as m:
        m.setenv('RNN_FASTAI_CUDA_GRAPHS', '0')
        out,run = write(*args, **kwargs)
    assert getattr(run, 'graph', None) is None
    return out

def n_replays(): return [g.replays for g in FakeGraph.made]

@pytest.mark.parametrize('arch', ['AWD_LSTM', 'AWD_GRU', 'AWD_SRU', 'AWD_QRNN', 'AWD_RNN', 'AWD_minGRU', 'AWD_sLSTM'])
@pytest.mark.parametrize('n', [1, 4])
def test_texts_are_the_same(arch, n, monkeypatch):
    "With the first replay, which is compared with a step; a text's first step, without a state, is no step of the shape."
    model = lm(arch)
    for sampling in (Sampling(temperature=0), Sampling(), Sampling(top_p=0.9, repetition_penalty=1.3)):
        FakeGraph.made = []
        got,run = write(model, sampling, prompts=PROMPTS[:n])
        assert run.lacks is None and n_replays() == [20 - 4 + 1]
        assert got == plainly(monkeypatch, model, sampling, prompts=PROMPTS[:n])

def test_a_text_of_one_token_before_it():
    "It starts without a state."
    got,run = write(lm(), prompts=PROMPTS[1:2])
    assert n_replays() == [20 - 1 - 4 + 1] and run.graph is not None

def test_short_texts_have_no_graph():
    write(lm(), n=3)
    assert not FakeGraph.made

def test_texts_that_end(monkeypatch):
    "A smaller batch is another shape: recorded again once it has come often enough, and not before."
    ends = {0: 6, 3: 8}
    got,run = write(lm(), ends=ends.items())
    assert n_replays() == [7 - 4 + 1, 11 - 4 + 1]
    assert got == plainly(monkeypatch, lm(), ends=ends.items())

def test_texts_that_join(monkeypatch):
    late = PROMPTS[2:]
    def texts():
        sampler = TokenSampler(Sampling(temperature=0), PROMPTS, 40, 30)
        going,out = Continuation(lm(), PROMPTS[:2], sampler),[[] for _ in PROMPTS]
        for t in range(20):
            if t == 9: going.join(Continuation(lm(), late, sampler), [2, 3])
            step = going.step()
            for r,i in zip(step.rows, step.ids.tolist(), strict=True): out[r].append(i)
        return out
    got = texts()
    assert len(FakeGraph.made) == 2
    monkeypatch.setenv('RNN_FASTAI_CUDA_GRAPHS', '0')
    assert got == texts()

def test_who_looks_gets_ordinary_steps(monkeypatch):
    "Hooks, capture and interventions in the midst of a text; afterwards the graph goes on from where the text is."
    model,calls,blocks = lm(),[],contextlib.ExitStack()
    def hook(*args): calls.append(args)
    def each(t, texts):
        if t == 8: blocks.callback(model[0].rnns[0].register_forward_hook(hook).remove)
        if t == 11: blocks.close()
        if t == 13: blocks.rec = blocks.enter_context(capture(model, parts='states'))
        if t == 15: blocks.close()
    got,_ = write(model, each=each)
    assert len(calls) == 3 and len(blocks.rec.layers) == 2 and n_replays() == [20 - 4 - 3 - 2 + 1]
    assert got == plainly(monkeypatch, model)

def test_training_mode_gradients_and_autocast():
    model,steps = lm(),GraphedSteps(lm(), 'cuda')
    ids,state = torch.tensor([[3]]),model(torch.tensor([[3]])).state
    for block in (torch.enable_grad(), torch.autocast('cpu', torch.bfloat16)):
        with torch.no_grad(), block:
            for _ in range(9): steps(ids, state)
    steps.model.train()
    with torch.no_grad():
        for _ in range(9): steps(ids, state)
        assert steps.graph is None
        steps.model.eval()
        for _ in range(9): steps(ids, state)
    assert steps.graph is not None

def test_weights_that_move_get_a_new_graph(monkeypatch):
    "Weights that are changed where they lie are those that a graph reads."
    def change(model):
        def each(t, texts):
            for p in model.parameters():
                if t == 9: p.data = p.data*1.5
                if t == 16: p.data.mul_(0.5)
        return each
    a,b = lm(),lm()
    got,_ = write(a, each=change(a))
    assert len(FakeGraph.made) == 2 and got == plainly(monkeypatch, b, each=change(b))

class Own(nn.Module):
    "A user's layer, around a model."
    def __init__(self, model):
        super().__init__()
        self.model,self.n = model,0
    def read(self, *args): return self.model.read(*args)
    def forward(self, ids, state=None):
        self.n += 1   # which a graph would not repeat
        return self.model(ids, state)

def test_what_a_model_lacks(monkeypatch):
    model,buffered = lm(),lm()
    assert graph_lacks(model, 'cuda') is None
    assert graph_lacks(Own(model), 'cuda').startswith('Own may do in Python')
    buffered.register_buffer('seen', torch.zeros(1))
    assert 'buffers' in graph_lacks(buffered, 'cuda')
    monkeypatch.setenv('RNN_FASTAI_CUDA_GRAPHS', '0')
    assert graph_lacks(model, 'cuda') == "RNN_FASTAI_CUDA_GRAPHS=0 asks for none"

def test_other_models_and_a_cache_step_ordinarily(monkeypatch):
    own = Own(lm())
    same = PROMPTS[:1]*2
    write(own, prompts=same)
    assert own.n == 20 and not FakeGraph.made
    got,_ = write(lm(), prompts=same, cache=NeuralCache())
    assert not FakeGraph.made and got == plainly(monkeypatch, lm(), prompts=same, cache=NeuralCache())

# ---- A failure changes no answer

def test_a_wait_breaks_the_recording(monkeypatch):
    "Steps are ordinary from then on, and random numbers go on where they were."
    model,generator = lm(),torch.cuda.default_generators[None]
    generator.offset = 12
    for rnn in model[0].rnns: rnn.check_nan = True   # waits for the device
    got,run = write(model)
    assert 'not permitted' in run.lacks and run.graph is None and len(FakeGraph.made) == 1
    assert (generator.offset, generator.recording) == (12, False)
    assert got == plainly(monkeypatch, model)

def test_a_step_that_draws(monkeypatch):
    model,generator = lm(),torch.cuda.default_generators[None]
    forward = type(model).forward
    def draws(self, *args):
        generator.offset += 4
        return forward(self, *args)
    monkeypatch.setattr(type(model), 'forward', draws)
    _,run = write(model)
    assert run.lacks == "a step draws random numbers" and generator.offset == 20*4

class Lazy(FakeGraph):
    "Leaves out its last operation, a copy into the state."
    def replay(self):
        self.recorder.calls = self.recorder.calls[:-1]
        super().replay()
class Failing(FakeGraph):
    def replay(self): raise RuntimeError("CUDA error")

@pytest.mark.parametrize('kind,why', [(Lazy, 'other numbers'), (Failing, 'CUDA error')])
def test_a_graph_that_is_wrong_is_not_used(kind, why, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'CUDAGraph', kind)
    got,run = write(lm())
    assert why in run.lacks and run.graph is None and got == plainly(monkeypatch, lm())

def test_no_memory_for_a_graph(monkeypatch):
    def no_memory(*args, **kwargs): raise torch.OutOfMemoryError("CUDA out of memory.")
    monkeypatch.setattr(torch.cuda, 'graph', no_memory)
    got,run = write(lm())
    assert 'out of memory' in run.lacks and got == plainly(monkeypatch, lm())

# ---- The tests of this file see what is wrong

def _no_ids(self, ids, state):
    self.ids = ids   # a new tensor, which the graph does not read
    self.graph.replay()
    return self.out

def _old_state(self, ids, state):
    old = map_state(torch.clone, state)
    return right_step(self, ids, state)._replace(state=old)   # not the memory that was written

right_step = graphs._Graph.step
@pytest.mark.parametrize('wrong', [_no_ids, _old_state])
def test_a_wrong_step_is_seen(wrong, monkeypatch):
    "Right at first, when it is compared, and wrong later."
    done = []
    def step(self, ids, state):
        done.append(1)
        return (right_step if len(done) < 3 else wrong)(self, ids, state)
    monkeypatch.setattr(graphs._Graph, 'step', step)
    got,run = write(lm())
    assert run.graph is not None and got != plainly(monkeypatch, lm())

def test_a_replay_runs_no_python(monkeypatch):
    model,calls = lm(),[]
    forward = type(model).forward
    monkeypatch.setattr(type(model), 'forward', lambda self, *args: calls.append(1) or forward(self, *args))
    write(model, n=40)
    assert len(calls) == 4 + 2 + 1   # ordinary steps, two before the recording, and the recording

def test_entries_of_a_state_that_are_older_ones(monkeypatch):
    "A state that moves along: each entry becomes the next one, and the output shows an old one."
    class Window(nn.Module):
        def read(self, ids, state=None): return self(ids, state).state
        def forward(self, ids, state=None):
            if state is None: state = tuple(torch.zeros(1, len(ids), 1) for _ in range(3))
            new = (ids[None, :, -1:].float() + 0.1*state[2], state[0], state[1].view_as(state[1]))
            return LMOutput(torch.sin(new[0]*torch.arange(40.) + new[2]).transpose(0, 1), state[2], None, new)
    monkeypatch.setattr(graphs, '_KNOWN', ('test_graphs',))
    got,run = write(Window(), prompts=PROMPTS[:1])
    assert run.graph is not None and got == plainly(monkeypatch, Window(), prompts=PROMPTS[:1])
