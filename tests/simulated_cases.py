"""What runs on the simulated device: every public model, cell, head, loss, sampler and callback, alone or in a learner.

Run by `test_simulated.py`, in a process of its own. A job does something on a device and gives what came of it. Each
must give the same on the CPU; together they must run all that works with tensors; and a tensor of the CPU that is
planted within any of it must not go unseen."""
import importlib
import inspect
import pkgutil
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from itertools import product
from types import CodeType, FunctionType

import fastai.text.core
import pytest
import torch
from bundles import CONFIG, answers, build, sents, texts
from fastai.text import all as ft
from fastai.torch_core import set_seed
from simulated import planted, recorded, watched
from test_cells import RUNS, label
from test_cells import build as layer
from torch import Tensor, nn

from rnn_fastai import all as rf
from rnn_fastai.callback.adversarial import AdversarialTraining, EntropyMinimization, VirtualAdversarial
from rnn_fastai.cli import main
from rnn_fastai.generate import decode, sampling
from rnn_fastai.generate.score import adapted_to
from rnn_fastai.inside.capture import capture
from rnn_fastai.inside.interventions import word_saliency
from rnn_fastai.models import calibration, documents, focal, losses, state
from rnn_fastai.models.awd import StatefulEncoder, get_language_model
from rnn_fastai.models.heads import SigmoidRange

CPU,SIM = torch.device('cpu'),torch.device('sim:0')
fastai.text.core.parallelable = lambda *a, **k: False   # tokenize in this process

# ---- Jobs

def run_layer(name, args, backend, device):
    "Outputs, last state and gradients of a layer that reads sequences of different lengths from both ends."
    rnn = layer(name, 3, 4, num_layers=2, bidirectional=True, backend=backend, **args).to(device)
    x = torch.randn(7, 3, 3, dtype=torch.double).to(device).requires_grad_()
    out,last = rnn(x, None, [7, 2, 5])
    out.sin().sum().backward()
    return [out, last, x.grad, [p.grad for p in rnn.parameters()]]

def learner(case, device):
    set_seed(1)
    learn = build(case)
    learn.dls.to(device)
    learn.model.to(device)
    return learn

_callbacks:set[type] = set()   # that were there in a training

class Names(ft.Callback):
    "Notes which callbacks there are."
    def before_fit(self): _callbacks.update(map(type, self.learn.cbs))

def train(case, device, cbs=(), says=lambda learn: None, epochs=1, lr=1e-2):
    "Losses, weights, and what `says` says of the learner."
    learn = learner(case, device)
    if len(learn.dls.train): learn.fit(epochs, lr, cbs=[Names(), *(c() for c in cbs)])
    return [learn.recorder.losses, list(learn.model.state_dict().values()), says(learn)]

def ask(case, device): return train(case, device, says=answers)

PROMPTS = ['The CAT', 'mat']
WRITING = {'greedy': dict(temperature=0), 'seeded': dict(seed=3, n=2), 'own generator': dict(seed=-1),
           'rules': dict(seed=3, top_k=5, top_p=0.9, min_p=0.01, typical_p=0.9, temperature=0.8, repetition_penalty=1.2,
                         no_repeat_ngram=3, frequency_penalty=0.1, presence_penalty=0.1),
           'cache': dict(seed=3, cache=rf.NeuralCache())}
def write(args, device):
    if args.get('seed') == -1: args = dict(args, seed=torch.Generator(device).manual_seed(1))
    return [(t.text, t.logps) for t in learner('lm AWD_LSTM', device).generate(PROMPTS, 9, no_bar=True, **args)]

def other_writing(device):
    learn = learner('lm AWD_LSTM', device)
    adapted = dict(cache=rf.NeuralCache(), dynamic=rf.DynamicEvaluation())
    return [[t.text for t in learn.beam_search('The CAT', width=4, n_words=5, no_bar=True, groups=2, diversity=0.5)],
            ''.join(learn.stream('The CAT', n_words=5, temperature=0)),
            [s.logps for s in learn.score(['The CAT sat on-the mat '*4, 'mat'], no_bar=True, **adapted)]]

def adapted(device):
    learn = learner('lm AWD_LSTM', device)
    ids = torch.tensor([4, 5, 6, 7]*5).to(device)
    model = adapted_to(learn.model, ids, rf.DynamicEvaluation())
    return [model(ids[None]).logits, list(decode.generate(model, ids, 5, rf.Sampling(temperature=0)))]

def rule(f, device, *args):
    torch.manual_seed(1)
    return f(torch.randn(3, 7).to(device), *(a.to(device) if isinstance(a, Tensor) else a for a in args))
RULES = {'apply_temperature': (0.7,), 'keep_top_k': (3,), 'keep_top_p': (0.8,), 'keep_min_p': (0.1,),
         'keep_typical': (0.8,), 'keep_epsilon': (torch.full((3, 7), 1/7), 0.2),
         'penalize_repetition': (torch.eye(3, 7) > 0, 1.3),
         'penalize_counts': (torch.eye(3, 7), 0.1, 0.2), 'forbid': (torch.tensor([1, 5]),),
         'keep_only': (torch.tensor([1, 5]),), 'draw': (torch.full((3,), 0.5, dtype=torch.double),)}

def loss(make, device, targets=5):
    "A loss and its gradient."
    torch.manual_seed(1)
    x = torch.randn(6, targets).to(device).requires_grad_()
    got = make(x, torch.randint(targets, (6,)).to(device))
    return [got, torch.autograd.grad(got, x)]
def chunked(x, y):
    w = torch.linspace(-1, 1, 20, device=x.device).view(4, 5).requires_grad_()
    out = losses.linear_cross_entropy(x, w, None, y % 4, chunk=4)
    return out + torch.autograd.grad(out, w, create_graph=True)[0].square().sum()

def sampled(x, y):   # so many draws that each word is there
    w = torch.linspace(-1, 1, 20, device=x.device).view(4, 5)
    return losses.sampled_cross_entropy(x, w, None, y % 4, torch.full((4,), 0.25, device=x.device), 200)

def drawn(*sizes, seed=1): return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))

def pieces(device):
    "What no learner calls."
    torch.manual_seed(1)
    ids,h = torch.tensor([[4, 5, 6, 7, 1, 1, 1], [4, 5, 6, 7, 8, 9, 4]]).to(device),drawn(2, 2, 7).to(device)
    encoder = StatefulEncoder(get_language_model('AWD_LSTM', 20, CONFIG, 0.)[0]).to(device)
    return [documents.chunk_padded(ids, 1, 2), state.put_rows(h, h[:, 1:], ids[0, 4:5] - 1), encoder(ids), encoder(ids),
            losses.token_accuracy(h, ids[:, :2]), losses.LazyLogits(h, h[0], None).argmax(),
            losses.LazyLogits(h, h[0], None).whole(), SigmoidRange(1, 5).to(device)(h)]

def many_nets(cell, device):
    nets,x = rf.ManyNets(cell, 2, 3, 2, n_nets=3).to(device),drawn(5, 2, 2).to(device)
    return [nets(x), nets.fit(x, (x[..., 0] > 0).long(), 2, no_bar=True)]

def inside(name, device):
    torch.manual_seed(1)
    net = (layer(name, 3, 4, num_layers=2) if isinstance(name, str) else name(3, 4, 2).double()).to(device)
    x = drawn(6, 2, 3).double().to(device)
    with capture(net, parts='all') as rec: net(x)[0].sin().sum().backward()
    return [torch.as_tensor(rec[l, p, 0]) for l in rec.layers for p in rec.parts(l)]

def interventions(device):
    learn = learner('next', device)
    model,ids = learn.model,torch.tensor([[0, 1, 2, 0, 1], [2, 1, 0, 0, 1]]).to(device)
    with rf.edit_states(model, rf.clamp(0, 1, 0.5), rf.ablate(0, [2])): one = rf.next_token_loss(model, ids)
    effects = rf.unit_effects(model, lambda: rf.next_token_loss(model, ids), no_bar=True)
    return [one, torch.tensor(effects.change.tolist()), torch.tensor(rf.memory_length(model, ids).influence.tolist()),
            rf.saliency(model, ids), rf.saliency(model, ids, method='integrated', n_points=2),
            word_saliency(model, (ids[:1],), lambda logits: logits[0, -1].max())]

TRAININGS = {   # what is trained, with which callbacks, and how
    'regularizer': ('lm AWD_LSTM', [rf.RNNRegularizer], {}), 'chunked': ('lm AWD_LSTM', [rf.ChunkedCrossEntropy], {}),
    'adaptive in chunks': ('lm adaptive', [rf.ChunkedCrossEntropy], {}),
    'mixture in chunks': ('lm mixture', [partial(rf.ChunkedCrossEntropy, 8)], {}),
    'mixture, sampled': ('lm mixture', [partial(rf.SampledCrossEntropy, 2000)], {}),
    'sampled': ('lm AWD_LSTM', [partial(rf.SampledCrossEntropy, 2000)], {}),
    'variable length': ('lm AWD_LSTM', [rf.VariableLength], {}),
    'history': ('next', [rf.LossHistory, rf.ShowDecoded], dict(epochs=2)),
    'best': ('next', [rf.KeepBest], dict(epochs=2)), 'averaged': ('next', [partial(rf.AveragedSGD, 1)], dict(epochs=5, lr=1.)),
    'capture': ('next', [partial(rf.HiddenStateCapture, parts=('h', 'grad_h'))], {}),
    'adversarial': ('clas words', [partial(AdversarialTraining, 2.)], {}),
    'virtual': ('clas words', [partial(VirtualAdversarial, 2., entropy=1., power_iterations=1)], {}),
    'virtual, texts': ('clas words', [partial(VirtualAdversarial, 2., texts=['The CAT sat', 'mat'], bs=2)], {}),
    'virtual, lists': ('clas lists', [partial(VirtualAdversarial, 2.)], {}),
    'entropy': ('clas words', [EntropyMinimization], {})}
LEARNERS = ['lm AWD_LSTM', 'lm AWD_QRNN', 'lm untied', 'lm adaptive', 'lm adaptive untied', 'lm mixture',
            'clas words', 'clas bidir', 'clas both', 'clas lists', 'clas value', 'tagger chars', 'tagger filters',
            'tagger shapes', 'tagger lower', 'tagger arch', 'tagger vectors', 'tagger lms', 'next', 'next words', 'next zoneout',
            'next one-hot', 'next torch', 'next own net', 'rnn one-to-many', 'rnn many-to-many',
            'rnn encoder-decoder', 'rnn attention', 'rnn pool', 'rnn both ends']
LOSSES = {'OneHotMSE': losses.OneHotMSE(),
          'AnsweringLoss': losses.with_answers(nn.CrossEntropyLoss(torch.ones(5))), 'linear_cross_entropy': chunked,
          'sampled_cross_entropy': sampled, 'FocalLoss': focal.FocalLoss(1.5, torch.linspace(1, 2, 5))}
def answering(loss, thresholds, device):
    "Probabilities and answers of a calibrated loss, and its value."
    loss,x = losses.CalibratedLoss(loss, 2., thresholds),drawn(6, 2).to(device)
    probs = loss.activation(x)
    y = (probs > 0.5).float() if thresholds else probs.argmax(-1)
    return [loss(x, y), probs, loss.decodes(probs), losses.plain_loss(loss)(x, y)]
def calibrating(device):
    "What is fitted to outputs of a device; numbers of the CPU come of it."
    x = drawn(50, 3).to(device)
    y,yes = (x + drawn(50, 3, seed=2).to(device)).argmax(1),(x[:, 0] + drawn(50, seed=3).to(device) > 0)
    p = x.softmax(1)
    return [torch.tensor([calibration.fit_temperature(x, y), calibration.brier_score(p, y),
                          calibration.expected_calibration_error(p, y), calibration.expected_calibration_error(p[:, 0], yes, 3, 'mass'),
                          calibration.best_threshold(p[:, 0], yes)])]

JOBS:dict[str, Callable] = {
    **{f'{name} {label(args)} {backend}': partial(run_layer, name, args, backend) for name,args,backend in RUNS},
    **{n: lambda device, n=n: rule(getattr(sampling, n), device, *RULES[n]) for n in RULES},
    **{n: partial(loss, f) for n,f in LOSSES.items()},
    'calibrating': calibrating, 'answering': partial(answering, ft.CrossEntropyLossFlat(), None),
    'answering yes': partial(answering, ft.BCEWithLogitsLossFlat(), [0.4, 0.6]),
    'pieces': pieces, 'adapted': adapted, 'interventions': interventions,
    'many nets': partial(many_nets, 'GRU'), 'plain nets': partial(many_nets, 'RNN'),
    **{f'inside {getattr(n, "__name__", n)}': partial(inside, n) for n in ('LSTM', 'sLSTM', 'minGRU', nn.GRU)},
    **{c: partial(ask, c) for c in LEARNERS},
    **{n: partial(train, case, cbs=cbs, **args) for n,(case,cbs,args) in TRAININGS.items()},
    **{f'write {n}': partial(write, args) for n,args in WRITING.items()}, 'other writing': other_writing}

# ---- A job says the same on the device

_ran:dict[str, tuple[float, set[CodeType]]] = {}   # seconds on the device, and the code whose operations they were

def run(job):
    "Do a job on the device, and note whose operations it takes."
    start = time.process_time()
    with watched() as codes:
        try: return JOBS[job](device=SIM)
        finally: _ran[job] = time.process_time() - start,codes

def leaves(o) -> list:
    "Numbers, texts and plain tensors of the CPU."
    if isinstance(o, Tensor): return [o.detach().cpu().as_subclass(Tensor)]
    if isinstance(o, str) and o.replace('.', '').replace('-', '').isdigit(): return [torch.tensor(float(o))]
    return [t for x in o for t in leaves(x)] if isinstance(o, (list, tuple)) else [o]

@pytest.mark.parametrize('job', JOBS)
def test_a_job_says_the_same(job):
    for far,near in zip(leaves(run(job)), leaves(JOBS[job](device=CPU)), strict=True):
        if isinstance(near, Tensor): torch.testing.assert_close(far, near, rtol=1e-4, atol=1e-5, equal_nan=True)
        else: assert far == (pytest.approx(near, abs=1e-5) if isinstance(near, float) else near)

# ---- All that works with tensors is in a job

def functions_of(o) -> list[FunctionType]:
    "A function, or those that a class defines itself."
    found = vars(o).values() if isinstance(o, type) else [o]
    found = [getattr(f, 'fget', None) or getattr(f, '__func__', f) for f in found if not isinstance(f, type)]
    found = [inspect.unwrap(f) for f in found]
    return [f for f in found if isinstance(f, FunctionType)]

def takes_tensors(o) -> bool:
    return any('Tensor' in str(kind) for f in functions_of(o) for kind in f.__annotations__.values())

def public(*folders:str) -> dict[str, object]:
    "Modules, callbacks and what takes or gives tensors, of all that some folders offer."
    found = {}
    for folder in folders:
        package = importlib.import_module(f'rnn_fastai.{folder}')
        for m in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):
            module = importlib.import_module(m.name)
            for n in module.__all__:
                o = getattr(module, n)
                kind = isinstance(o, type) and issubclass(o, (nn.Module, ft.Callback))
                if callable(o) and (kind or takes_tensors(o)): found[n] = o
    return found

# Callbacks that hand on what others have made; a job has them all the same.
HANDS_ON = {'ChunkedCrossEntropy', 'SampledCrossEntropy', 'LossHistory', 'LastScores', 'VariableLength',
            'ModelResetter', 'RNNCallback', 'StateFeeder'}
LEFT_OUT = {
    'builds or describes, and leaves the work to others':
        'Cell RecurrentBase StatefulModel NeuralCache DynamicEvaluation Codec Generated GrowingText '
        'with_state torch_weights check_like check_input check_state is_compact EntropyMinimization RecordedLosses '
        'AdaptiveDecoder',
    'for the CPU alone': 'PackedWeight packed_product int8_product int8_kernel check_int8 quantize_rows lstm_kernel Draws',
    'copies weights, which a model loads from any device': 'KeepBest',
    'for a GPU of CUDA alone': 'kernel_call KernelGraph KernelGraphs',
    'compiled, or in half precision, which the simulation is not': 'take_compiled_steps run_flash MixedPrecision',
    'draws or writes numbers of the CPU': 'plot_nets word_shares random_state set_random_state',
    'takes outputs to the CPU first, for float64; the job `calibrating` runs them':
        'reliability expected_calibration_error brier_score fit_temperature best_threshold',
    'for several processes, which have tests of their own': 'count_items RankLoss ranks_norm RankTrainer'}
PUBLIC = public('models', 'generate', 'callback', 'inside')
LISTED = [n for n in PUBLIC if not any(n in names.split() for names in LEFT_OUT.values())
          and not (isinstance(PUBLIC[n], type) and issubclass(PUBLIC[n], tuple))]

@cache
def jobs_of(name:str) -> list[str]:
    "The jobs that run operations of what is public under a name, the shortest first."
    codes = {f.__code__ for f in functions_of(PUBLIC[name])}
    for job in JOBS:
        if job not in _ran: run(job)
    return sorted((j for j,(_,ran) in _ran.items() if codes & ran), key=lambda j: _ran[j][0])

@pytest.mark.parametrize('name', LISTED)
def test_all_that_is_public_is_in_a_job(name):
    if name in HANDS_ON: assert PUBLIC[name] in _callbacks
    else: assert jobs_of(name)

def test_what_is_left_out_is_there():
    names = ' '.join(LEFT_OUT.values()).split()
    assert set(names) <= set(PUBLIC) and set(PUBLIC) >= HANDS_ON

# ---- A tensor of the CPU does not go unseen

PLANTS = 6   # results of the first so many operations of something

def is_caught(name:str) -> bool:
    codes = {f.__code__ for f in functions_of(PUBLIC[name])}
    for job,n in product(jobs_of(name), range(PLANTS)):
        try:
            with planted(codes, n): JOBS[job](device=SIM)
        except Exception as e:
            assert 'device' in str(e) or 'sim:0' in str(e), f"{job}: {e}"
            return True
    return False

@pytest.mark.parametrize('name', [n for n in LISTED if n not in HANDS_ON])
def test_a_planted_tensor_is_caught(name): assert is_caught(name)

# ---- How often a step waits for the device

class Counted(ft.Callback):
    "Counts waits and copies over the steps of an epoch; those of the last one stay, where nothing is done for once."
    order = -100   # what others do after the steps does not count
    def before_train(self):
        self.block = recorded()
        self.found = self.block.__enter__()
    def after_train(self): self.block.__exit__(None, None, None)

def kinds(found, n) -> dict:
    "How often each kind comes in each of `n` steps."
    total = Counter()
    for (what,_),times in found.items(): total[what] += times
    return {what: times/n for what,times in total.items() if times >= n}   # the others come less often than that

# The loss is read for the progress bar and the table, by the `to the CPU` that is everywhere. A classifier reads the
# lengths of documents once, since shapes depend on them; taggers check those of sentences and of words, once each.
# What goes to the device is the batch, and lengths that are used there; batches of a stream are cut there.
STEPS = {'lm AWD_LSTM': {'to the CPU': 1}, 'lm AWD_QRNN': {'to the CPU': 1},
         'next': {'to the CPU': 1, 'to the device': 2}, 'next one-hot': {'to the CPU': 1, 'to the device': 2},
         'clas words': {'to the CPU': 2, 'to the device': 3},
         'tagger lower': {'to the CPU': 2, 'to the device': 2}, 'tagger chars': {'to the CPU': 3, 'to the device': 4}}

@pytest.mark.parametrize('case', STEPS)
def test_waits_of_a_training_step(case):
    learn,counted = learner(case, SIM),Counted()
    learn.fit(2, 1e-2, cbs=counted)
    assert kinds(counted.found, len(learn.dls.train)) == STEPS[case]

WAITS = {'item', 'to the CPU', 'unique', 'nonzero', 'masked_select', 'equal', 'bincount', 'repeat_interleave',
         'index by bool'}
def waits_of_a_token(write, *, few=3, more=13) -> float:
    "Waits of texts of more tokens, less those of texts of few, for each token more."
    found = []
    for n in (few, more):
        with recorded() as counter: write(n)
        found.append(sum(times for (what,_),times in counter.items() if what in WAITS))
    return (found[1] - found[0])/(more - few)

@pytest.mark.parametrize('args', [
    dict(temperature=0), dict(), dict(seed=3), dict(seed=3, top_p=0.9, top_k=5, min_p=0.01), dict(epsilon_cutoff=0.01),
    dict(seed=3, repetition_penalty=1.2, frequency_penalty=0.1), dict(no_repeat_ngram=2), dict(required='cat'),
    dict(cache=rf.NeuralCache())], ids=str)
def test_waits_of_a_new_word(args):
    "One: the ids come to the CPU, with their logarithms, and with whether the model gave numbers."
    learn,prompts = learner('lm AWD_LSTM', SIM),PROMPTS[:1] if 'cache' in args else PROMPTS   # it takes one length
    assert waits_of_a_token(lambda n: learn.generate(prompts, n, no_bar=True, **args)) == 1

def test_waits_of_a_large_vocabulary():
    "One more, to see whether the first 256 tokens hold the mass that `top_p` keeps."
    def pick(n):
        sampler = sampling.TokenSampler(rf.Sampling(top_p=0.5), [torch.tensor([0]).to(SIM)], 400, n)
        for _ in range(n): sampler.pick(drawn(1, 400).to(SIM), [0])
    assert waits_of_a_token(pick) == 2

@pytest.mark.parametrize('args', [dict(), dict(width=4, groups=2, diversity=0.5), dict(no_repeat_ngram=2)], ids=str)
def test_waits_of_a_step_of_beams(args):
    learn = learner('lm AWD_LSTM', SIM)
    assert waits_of_a_token(lambda n: learn.beam_search(PROMPTS, n_words=n, no_bar=True, **args)) == 1

@pytest.mark.parametrize('cb', [rf.LossHistory, partial(rf.ShowDecoded, 20)])
def test_callbacks_add_no_waits(cb):
    learn,counted = learner('next', SIM),Counted()
    learn.fit(2, 1e-2, cbs=[counted, cb()])
    assert kinds(counted.found, len(learn.dls.train)) == STEPS['next']

# What is recorded comes to the CPU: of each layer what it holds, the ids, and whether a row goes on from the batch before.
# The ids that a layer looked up are compared with what went into the model.
CAPTURED = {'lm AWD_LSTM': {'to the CPU': 7, 'equal': 1}, 'next': {'to the CPU': 4, 'equal': 1, 'to the device': 2}}

@pytest.mark.parametrize('case', CAPTURED)
def test_waits_of_a_step_with_capture(case):
    learn,counted = learner(case, SIM),Counted()
    learn.fit(2, 1e-2, cbs=[counted, rf.HiddenStateCapture(when='train')])
    assert kinds(counted.found, len(learn.dls.train)) == CAPTURED[case]

def test_losses_do_not_wait():
    "Nor does a metric. A sample of words waits, as how many different ones there are is a size."
    x,y = drawn(6, 5).to(SIM).requires_grad_(),torch.tensor([1, 2, -100, 0, 3, 4]).to(SIM)
    with recorded() as found:
        for f in (*(f for f in LOSSES.values() if f is not sampled), losses.token_accuracy): f(x, y.clamp(min=0) if f is not LOSSES['OneHotMSE'] else y)
    assert not {what for what,_ in found} - {'to the device'}

# ---- Commands

TASKS = {'lm': (texts, ['The CAT', 'mat']), 'classifier': (texts, ['The CAT sat', 'mat']), 'tagger': (sents, ['The mat sat'])}
def commands_said(task, folder, device, monkeypatch, capsys):
    "What the commands print for a task, on a device, without the times and folders."
    default = ft.default_device
    for m in list(sys.modules.values()):
        if vars(m).get('default_device') is default: monkeypatch.setattr(m, 'default_device', lambda *_: device)
    data,out = folder/'data.parquet',folder/device.type
    make,new = TASKS[task]
    make().to_parquet(data)
    main.train(task, str(data), str(out), epochs=1, bs=2, emb_sz=6, n_hid=6, n_layers=1, lr=0.01)
    main.evaluate(str(out), str(data))
    main.predict(str(out), *new, seed=1)
    if task == 'lm': main.generate(str(out), *new, n_words=5, seed=1, as_json=True)
    monkeypatch.undo()
    return re.sub(r'\d+:\d\d|[\d.]+ s\b', '', capsys.readouterr().out.replace(str(out), ''))

@pytest.mark.parametrize('task', TASKS)
def test_commands_say_the_same(task, tmp_path, monkeypatch, capsys):
    with recorded() as counter: sim = commands_said(task, tmp_path, SIM, monkeypatch, capsys)
    assert counter   # they were there
    cpu,number = commands_said(task, tmp_path, CPU, monkeypatch, capsys),r'-?\d+\.\d+'
    assert re.sub(number, '', sim) == re.sub(number, '', cpu)
    assert [*map(float, re.findall(number, sim))] == pytest.approx([*map(float, re.findall(number, cpu))], rel=1e-4, abs=1e-5)
