"What `test_ranks` runs in one process and in two: small trainings whose losses, weights and predictions are compared."
import os
import shutil
import signal
import sys
import warnings
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import CSVLogger, ShowGraphCallback
from fastai.callback.schedule import minimum
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import GradientAccumulation
from fastai.data.block import RegressionBlock
from fastai.learner import Learner
from fastai.metrics import F1Score, Perplexity, accuracy, accuracy_multi, mse
from fastai.torch_core import default_device, num_distrib, rank_distrib, set_seed
from torch import nn

from rnn_fastai.callback import ranks  # noqa: F401 # gives fastai's own learners `distrib_ctx` too
from rnn_fastai.callback.capture import HiddenStateCapture
from rnn_fastai.callback.chunked_loss import ChunkedCrossEntropy
from rnn_fastai.callback.history import LossHistory
from rnn_fastai.callback.regularize import rnn_cbs
from rnn_fastai.callback.schedule import AveragedSGD, VariableLength
from rnn_fastai.data.loaders import TextDataLoaders
from rnn_fastai.data.sequences import SeqDataLoaders
from rnn_fastai.data.tags import TagDataLoaders
from rnn_fastai.learner.checkpoint import Checkpoint
from rnn_fastai.learner.classifier import text_classifier_learner
from rnn_fastai.learner.lm import language_model_learner
from rnn_fastai.learner.rnn import rnn_learner
from rnn_fastai.learner.tagger import tagger_learner
from rnn_fastai.ship import bundle  # noqa: F401 # gives learners `save_bundle`

DROP = dict(output_p=0., hidden_p=0., input_p=0., embed_p=0., weight_p=0.)
CONFIG = dict(emb_sz=6, n_hid=8, n_layers=2, **DROP)

def frame(n=61, seed=0):
    "Texts of many lengths with labels of three kinds, a sixth of them held out."
    rng = np.random.default_rng(seed)
    words = [f'w{i}' for i in range(20)]
    texts = [rng.choice(words, k).tolist() for k in rng.integers(3, 30, n)]
    return pd.DataFrame(dict(
        text=[' '.join(t) for t in texts], tokens=texts, label=rng.choice(['a', 'b', 'c'], n), value=rng.random(n),
        many=[' '.join(rng.choice(['a', 'b', 'c'], rng.integers(0, 3), replace=False)) for _ in range(n)],
        tags=[[('B-X', 'I-X', 'O')[int(w[1:]) % 3] for w in t] for t in texts], held=[i % 6 == 0 for i in range(n)]))

# ---- Learners

def lm(path, bs=5, cbs=(), seed=0, **kwargs):
    dls = TextDataLoaders.from_df(frame(seed=seed), is_lm=True, text_col='text', valid_col='held', seq_len=6, bs=bs,
                                  path=path, **kwargs)
    return language_model_learner(dls, 'AWD_LSTM', config={**CONFIG, 'tie_weights': True}, pretrained=False,
                                  metrics=[accuracy, Perplexity()], cbs=list(cbs))

def classifier(path, bs=5, label='label', cbs=(), metrics=None, loaders=None, **kwargs):
    dls = TextDataLoaders.from_df(frame(), text_col='text', label_col=label, valid_col='held', bs=bs, path=path,
                                  drop_last=False, **(loaders or {}))
    metrics = [accuracy, F1Score(average='macro')] if metrics is None else metrics
    return text_classifier_learner(dls, 'AWD_LSTM', config=CONFIG, pretrained=False, metrics=metrics, ps=[0.], max_len=12,
                                   cbs=list(cbs), **kwargs)

def tagger(path, bs=5, crf=False, chars=True):
    dls = TagDataLoaders.from_df(frame(), valid_col='held', bs=bs, path=path, chars=chars, min_freq=1)
    return tagger_learner(dls, 'GRU', emb_sz=6, n_hid=5, letter_emb=3, letter_hid=4, drop=0., embed_p=0., crf=crf, scheme=None)

def pairs(path, kind='many-to-one', bs=5, **kwargs):
    xs = frame(31).tokens.tolist()
    ys = {'many-to-one': [t[0] for t in xs], 'many-to-many': [t[::-1] for t in xs], 'encoder-decoder': [t[:3] for t in xs]}
    dls = SeqDataLoaders.from_pairs(xs, ys[kind], kind, bs=bs, seed=1)
    return rnn_learner(dls, 'GRU', 6, path=path, metrics=accuracy if kind == 'many-to-one' else None, **kwargs)

def series(path):
    "Rows of unlike length: in the last windows, the second rank has no target that counts."
    dls = SeqDataLoaders.from_series([list('abcabcabcabcabcabc'), list('cabcabcabcabc'), list('bca')], seq_len=4)
    return rnn_learner(dls, 'LSTM', 6, path=path)

def weighted(): return nn.CrossEntropyLoss(weight=torch.tensor([1., 2., 5.], dtype=torch.float64))

def same_item(item): return item   # a step of fastai's loop

def lm_cbs(): return [VariableLength(), AveragedSGD(patience=1), ChunkedCrossEntropy()]

# ---- Trainings: a learner, and how it is trained

CASES = dict(
    lm=(lm, partial(Learner.fit_one_cycle, n_epoch=7, lr_max=1e-2)),                     # 29 batches of 5 rows
    lm_one_row=(partial(lm, bs=1), partial(Learner.fit, n_epoch=1, lr=1e-2)),            # fewer rows than ranks
    lm_recipe=(partial(lm, cbs=()), lambda learn: learn.fit(3, 5e-2, cbs=lm_cbs())),
    classifier=(partial(classifier, bs=7), partial(Learner.fit, n_epoch=25, lr=1e-3)),    # the last of 8 batches has one row
    penalties=(partial(classifier, alpha=2., beta=1.), partial(Learner.fit, n_epoch=2, lr=1e-2)),
    gradual=(classifier, partial(Learner.fit_gradually, epochs=1)),
    weights=(lambda path: classifier(path, loss_func=weighted()), partial(Learner.fit, n_epoch=3, lr=1e-2)),
    summed=(lambda path: classifier(path, loss_func=nn.CrossEntropyLoss(reduction='sum')),
            partial(Learner.fit, n_epoch=2, lr=1e-2)),
    accumulated=(classifier, lambda learn: learn.fit(4, 1e-2, cbs=GradientAccumulation(12))),
    several=(lambda path: classifier(path, label='many', loaders=dict(label_delim=' '), metrics=[accuracy_multi]),
             partial(Learner.fit, n_epoch=2, lr=1e-2)),
    values=(lambda path: classifier(path, label='value', metrics=[mse], loaders=dict(y_block=RegressionBlock())), partial(Learner.fit, n_epoch=2, lr=1e-2)),
    changed=(lambda path: classifier(path, loaders=dict(after_item=same_item)), partial(Learner.fit, n_epoch=2, lr=1e-2)),
    lm_changed=(lambda path: lm(path, after_item=same_item), partial(Learner.fit, n_epoch=1, lr=1e-2)),
    tagger=(tagger, partial(Learner.fit, n_epoch=3, lr=1e-2)),
    crf=(partial(tagger, crf=True, chars=False, bs=1), partial(Learner.fit, n_epoch=1, lr=1e-2)),
    label=(pairs, partial(Learner.fit, n_epoch=3, lr=1e-2)),
    decoder=(partial(pairs, kind='encoder-decoder', bs=4), partial(Learner.fit, n_epoch=2, lr=1e-2)),
    series=(series, partial(Learner.fit, n_epoch=4, lr=1e-2)),
    stopped=(classifier, lambda learn: learn.fit(30, 5e-2, cbs=[EarlyStoppingCallback(patience=1), SaveModelCallback()])),
)

def in_ranks(learn): return learn.distrib_ctx() if num_distrib() else nullcontext()   # as the README says it

def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.state_dict().values() if p.ndim])

def train(name, path):
    "Train one case in float64: what it reports, what it has learnt, what it predicts, and the next random numbers."
    make,fit = CASES[name]
    set_seed(3)
    learn = make(path)
    learn.model.double()
    with in_ranks(learn), learn.no_bar(), learn.no_logging():
        fit(learn)
        res = dict(losses=torch.stack(list(learn.recorder.losses)), table=torch.tensor([list(r) for r in learn.recorder.values]),
                   numbers=torch.tensor([np.random.rand(), torch.rand(1).item()]))
        res['valid'] = torch.tensor(list(learn.validate()))
        res['preds'] = [torch.as_tensor(t).as_subclass(torch.Tensor) for t in learn.get_preds()[:2]]
        if name in ('classifier', 'lm'): res['each'] = learn.get_preds(with_loss=True)[2].as_subclass(torch.Tensor)
    return dict(res, weights=weights(learn))

# ---- What only several processes show

def state_of(learn):
    "What a context must leave as it was."
    return (type(learn.model), learn.logger, {type(cb) for cb in learn.cbs}, [id(dl) for dl in learn.dls.loaders],
            [dl.share for dl in learn.dls], [d for dl in learn.dls for d in (str(dl.device),)],
            [k for o in (*learn.metrics, *learn.cbs, *learn.model.modules()) for k in vars(o)
             if k in ('accumulate', 'after_loss', 'before_step', 'forward')], [len(b[0]) for b in learn.dls.train])

class Fails(Callback):
    "Raises in the third batch."
    order = 90
    def before_step(self):
        if self.iter == 2: raise KeyError('in the third batch')

def restored(path):
    "Whether learners are as before: after a fit, and after one that failed."
    res = []
    for learn in (lm(path), classifier(path, cbs=[GradientAccumulation(3)])):
        before = state_of(learn)
        with in_ranks(learn), learn.no_bar(): learn.fit(1)
        res.append(state_of(learn) == before)
        try:
            with in_ranks(learn), learn.no_bar(): learn.fit(1, cbs=Fails())
        except KeyError: res.append(state_of(learn) == before)
    return res

def refused(path):
    "The messages about data that are not the same on all ranks."
    res = {}
    for name,make in dict(bs=lambda r: lm(path, bs=5 - r), seed=lambda r: lm(path, seed=r), labels=lambda r: pairs(path, bs=3 + r)).items():
        learn = make(rank_distrib())
        try:
            with in_ranks(learn), learn.no_bar(): learn.fit(1)
        except ValueError as e: res[name] = str(e)
    return res

def files(path):
    "What `save` gives on each rank, whether all can load it, and who wrote."
    learn = lm(path)
    file = learn.save('kept')
    with in_ranks(learn): learn.load('kept')
    return str(file),str(learn.save_bundle(Path(path)/'bundle'))

def logged(path):
    "A log that goes on, and a graph; what is in the log, and whether all of the callbacks may run afterwards."
    learn = classifier(path)
    learn.path = Path(path)/'log'
    learn.path.mkdir(parents=True, exist_ok=True)
    cbs = [CSVLogger(append=True), ShowGraphCallback()]
    with in_ranks(learn):
        for _ in range(2): learn.fit(1, cbs=cbs)
    return learn.recorder.values,pd.read_csv(learn.path/'history.csv'),[cb.run for cb in cbs]

def looks(path):
    "What else learners do: found rates, histories, predictions, new texts, recordings, frozen models."
    set_seed(3)
    learn,res = classifier(path, cbs=[LossHistory()]),{}
    captured = HiddenStateCapture(when='valid')
    with in_ranks(learn), learn.no_bar(), learn.no_logging():
        res['rates'] = learn.lr_find(num_it=10, suggest_funcs=minimum, show_plot=False)[0]
        res['found'] = weights(learn)   # as before the search
        learn.fit(2, 1e-2)
        res['history'] = torch.tensor(learn.loss_history.losses)
        res['label'] = learn.predict('w1 w2 w3')[2]
        res['new'] = learn.get_preds(dl=learn.dls.test_dl(frame(7).text.tolist()))[0]
        learn.validate(cbs=captured)
        res['given'] = learn.get_preds(dl=[learn.dls.valid.one_batch()])[0]   # as `show_results` does
        learn.show_results(max_n=2)
        learn.freeze_to(len(learn.opt.param_lists))
        for p in learn.model.parameters(): p.requires_grad_(False)
        res['frozen'] = torch.tensor(list(learn.validate()))
    res['texts'] = len(captured.recording.docs)
    return res

class Cut(Callback):
    "Stops a training in its 45th step, once."
    stop = True
    def before_batch(self):
        if not (Cut.stop and self.training and (self.epoch, self.iter) == (1, 15)): return
        Cut.stop = False
        raise KeyError('cut')

def dropping(path, seed):
    "A language model with dropout, whose ranks draw different numbers."
    set_seed(3)
    learn = language_model_learner(lm(path).dls, 'AWD_LSTM', config=dict(emb_sz=6, n_hid=8, n_layers=2), pretrained=False,
                                   path=path)
    set_seed(seed + rank_distrib())
    return learn

def ended(learn):
    return [weights(learn), [list(map(float, r)) for r in learn.recorder.values], np.random.rand(), torch.rand(3)]

def resumed(path):
    "A training in one piece, and one that was cut, of which a rank lost its last checkpoint; what is said without them."
    folder,res = Path(path)/'cut',{}
    whole = dropping(path, 5)
    with in_ranks(whole), whole.no_bar(), whole.no_logging(): whole.fit(2, 1e-2)
    res['whole'] = ended(whole)
    cut = dropping(path, 5)
    with suppress(KeyError), in_ranks(cut), cut.no_bar(), cut.no_logging():
        cut.fit(2, 1e-2, cbs=[Checkpoint(folder, every=10), Cut()])
    own = folder/'rank1'
    if rank_distrib() == 1: shutil.rmtree(own/'checkpoint-000040')
    cut = dropping(path, 50)
    with in_ranks(cut), cut.no_bar(), cut.no_logging():
        cut.resume(folder, cbs=Cut())
        res['resumed'] = ended(cut)
        if rank_distrib() == 1: shutil.rmtree(own)
        try: cut.resume(folder)
        except ValueError as e: res['said'] = str(e)
    return res

class Dies(Callback):
    "Kills the last process in the third batch."
    def before_step(self):
        if self.iter == 2 and rank_distrib() == num_distrib() - 1: os.kill(os.getpid(), signal.SIGKILL)

def die(path):
    "Train until one of the processes dies."
    learn = lm(path)
    with in_ranks(learn): learn.fit(1, cbs=Dies())

def plain(path):
    "fastai's own learner over our loaders, which knows several processes once `callback.ranks` is imported."
    set_seed(3)
    made = lm(path)
    learn = Learner(made.dls, made.model, made.loss_func, cbs=rnn_cbs(1., 1.), metrics=accuracy, path=path)
    with (learn.distrib_ctx(cpu=True) if num_distrib() else nullcontext()), learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    return torch.tensor([list(r) for r in learn.recorder.values]),weights(learn)

if __name__ == '__main__':
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    default_device(use=False)
    out = Path(sys.argv[1])
    if sys.argv[2:] == ['dies']: die(out/'models')
    found = {name: train(name, out/'models') for name in CASES}
    found.update({f.__name__: f(out/'models') for f in (restored, refused, files, looks, plain, resumed, logged)})
    torch.save(found, out/f'rank{rank_distrib()}.pt')
