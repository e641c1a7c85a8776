"A learner that comes back is the one that was saved, or it is refused by name; nothing in a bundle runs."
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import bundles as b
import fastai.text.core
import numpy as np
import pandas as pd
import pytest
import torch
from bundles import clas, clas_dls, lm, lm_dls, pairs, quiet, rewrite, rnn, series, tag_dls, tagger, texts
from fastai.text import all as ft
from torch import nn
from torch.testing import assert_close

from rnn_fastai import all as rf
from rnn_fastai.ship.bundle import load_bundle, load_learner
from rnn_fastai.ship.storage import BundleError, read_files

@pytest.fixture(autouse=True)
def one_process(monkeypatch): monkeypatch.setattr(fastai.text.core, 'parallelable', lambda *a, **k: False)

def weights(learn): return [p.detach().clone() for p in learn.model.parameters()]

# ---- Round trips

def test_every_learner_answers_the_same_to_the_bit_in_another_process(tmp_path):
    want = {}
    for case in b.CASES:
        learn,name = b.build(case),case.replace(' ', '_')
        before,state = weights(learn),torch.random.get_rng_state()
        learn.save_bundle(tmp_path/name)
        assert torch.equal(state, torch.random.get_rng_state()), case
        assert all(map(torch.equal, before, weights(learn))), case
        want[name] = b.answers(learn)
    code = 'import sys; sys.path.insert(0, sys.argv[2]); import bundles; bundles.main()'
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code, str(tmp_path), str(Path(__file__).parent)], check=True)
    got = torch.load(tmp_path/'answers.pt')
    assert got.keys() == want.keys()
    assert not [k for k in want if not b.same_bits(want[k], got[k])]

def same_training(learn, again, dls):
    "Both train on alike, to the bit."
    ends = []
    for l in (learn, again):
        l.dls,l.opt = dls(),None
        ft.set_seed(3)
        l.fit_one_cycle(1, 1e-2)
        ends.append((weights(l), l.recorder.losses, list(l.recorder.values[-1])))
    assert_close(*ends, rtol=1e-4, atol=1e-6)   # torch rounds by where weights lie in memory

@pytest.mark.parametrize('case,dls', [
    ('lm AWD_LSTM', lm_dls), ('clas lists', lambda: clas_dls(**b.LABELS['lists'])), ('clas range', lambda: clas_dls(**b.LABELS['value'])),
    ('tagger chars', lambda: tag_dls(str.casefold, chars=True)), ('next zoneout', series), ('rnn attention', lambda: pairs('encoder-decoder', True)),
    ('next tied', series)])
def test_training_goes_on(case, dls, tmp_path):
    learn = b.build(case)
    same_training(learn, quiet(load_bundle(learn.save_bundle(tmp_path/'m'), b.OWN)), dls)

def test_settings_of_training_come_back(tmp_path):
    learn = lm(wd=0.3, moms=(0.9, 0.8, 0.9), alpha=3., beta=0., lr=0.02, wd_bn_bias=True, metrics=[ft.accuracy, ft.Perplexity()],
               opt_func=ft.partial(rf.Adam, sqr_mom=0.9), loss_func=ft.LabelSmoothingCrossEntropyFlat(eps=0.2))
    learn.freeze()
    again = load_bundle(learn.save_bundle(tmp_path/'m'))
    for n in ('wd', 'moms', 'lr', 'wd_bn_bias', 'train_bn', 'splitter'): assert getattr(again, n) == getattr(learn, n), n
    assert (again.opt_func.func, again.opt_func.keywords) == (rf.Adam, dict(sqr_mom=0.9))
    assert [(cb.alpha, cb.beta) for cb in again.cbs if isinstance(cb, rf.RNNRegularizer)] == [(3., 0.)]
    assert [m.name for m in again.metrics] == ['accuracy', 'perplexity'] and again.loss_func.func.eps == 0.2
    assert [p.requires_grad for p in again.model.parameters()] == [p.requires_grad for p in learn.model.parameters()]
    assert not all(p.requires_grad for p in again.model.parameters())
    quiet(learn), quiet(again)
    same_training(learn, again, lm_dls)

def test_no_penalty_comes_back(tmp_path):
    again = load_bundle(lm(alpha=0., beta=0.).save_bundle(tmp_path/'m'))
    assert not [cb for cb in again.cbs if isinstance(cb, rf.RNNRegularizer)]

def test_weights_of_another_model_are_remembered(tmp_path):
    "`fine_tune` of a classifier goes by whether its encoder was loaded."
    quiet(lm(path=tmp_path)).save_encoder('enc')
    learn = quiet(clas(dls=clas_dls(text_vocab=lm_dls().vocab), path=tmp_path)).load_encoder('enc')
    again = load_bundle(learn.save_bundle(tmp_path/'m'))
    assert vars(again.transfer) == {**vars(learn.transfer), 'source': 'enc.safetensors'}
    assert again.opt.frozen_idx == learn.opt.frozen_idx > 0

LOSSES = {'smoothed': lambda: (clas(), ft.LabelSmoothingCrossEntropyFlat(eps=0.3)),
          'weighted': lambda: (clas(), ft.CrossEntropyLossFlat(weight=torch.tensor([1., 3.]))),
          'focal': lambda: (clas(), ft.FocalLossFlat(gamma=1.)), 'torch': lambda: (clas(), nn.CrossEntropyLoss(label_smoothing=0.1)),
          'function': lambda: (clas(), nn.functional.cross_entropy), 'partial': lambda: (clas(), ft.partial(nn.functional.cross_entropy, label_smoothing=0.2)),
          'threshold': lambda: (clas(dls=clas_dls(**b.LABELS['lists'])), ft.BCEWithLogitsLossFlat(thresh=0.1, pos_weight=torch.tensor([1., 2.]))),
          'absolute': lambda: (clas(dls=clas_dls(**b.LABELS['value'])), ft.L1LossFlat()), 'one-hot': lambda: (rnn(series()), rf.OneHotMSE())}

@pytest.mark.parametrize('case', LOSSES)
def test_losses_come_back(case, tmp_path):
    learn,loss = LOSSES[case]()
    learn.loss_func = loss
    again = load_bundle(learn.save_bundle(tmp_path/'m'))
    assert type(again.loss_func) is type(learn.loss_func)
    for l in (learn, again):
        l.dl = (l.dls.test_dl(texts(), with_labels=True) if not isinstance(l.dls, rf.SeqDataLoaders) else series().valid)
    assert_close(*(float(l.validate(dl=l.dl)[0]) for l in (learn, again)), rtol=0, atol=0)
    assert_close(*(l.get_preds(dl=l.dl, with_decoded=True) for l in (learn, again)), rtol=0, atol=0)

def test_metrics_come_back(tmp_path):
    metrics = [ft.accuracy, ft.F1Score(average='macro'), ft.MatthewsCorrCoef(), ft.partial(ft.top_k_accuracy, k=1), ft.error_rate]
    learn = quiet(clas(metrics=metrics))
    again = load_bundle(learn.save_bundle(tmp_path/'m'))
    values = [list(l.validate(dl=l.dls.test_dl(texts(), with_labels=True))) for l in (learn, again)]
    assert len(values[0]) == 6 and values[0] == values[1]
    learn.metrics = [lambda out, y: out.mean(), ft.accuracy]
    with pytest.warns(UserWarning, match='The metric <lambda> is not kept'): learn.save_bundle(tmp_path/'m')
    assert [m.name for m in load_bundle(tmp_path/'m').metrics] == ['accuracy']

def test_an_optimizer_without_a_name_is_left_out(tmp_path):
    learn = lm(opt_func=lambda p, lr: rf.Adam(p, lr, eps=1.))
    with pytest.warns(UserWarning, match='opt_func is not kept'): learn.save_bundle(tmp_path/'m')
    assert load_bundle(tmp_path/'m').opt_func is rf.Adam

def test_labels_keep_their_names_and_types(tmp_path):
    for args in b.LABELS.values():
        learn = clas(dls=clas_dls(**args))
        again = load_bundle(learn.save_bundle(tmp_path/'m'))
        names = [list(l.dls.vocab[1]) if len(l.dls.vocab) == 2 else [] for l in (learn, again)]
        assert names[0] == names[1] and list(map(type, names[0])) == list(map(type, names[1]))
        x = again.dls.test_dl(texts(), with_labels=True).one_batch()[1]
        assert_close(x, learn.dls.test_dl(texts(), with_labels=True).one_batch()[1])

def test_labels_from_folders(tmp_path):
    for i,row in enumerate(texts().itertuples()):
        file = tmp_path/'set'/('train' if i % 3 else 'valid')/row.label/f'{i}.txt'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(row.text, encoding='utf8')
    learn = quiet(clas(dls=rf.TextDataLoaders.from_folder(tmp_path/'set', bs=4, device='cpu', no_bar=True, vocab=['neg', 'pos'])))
    again = quiet(load_bundle(learn.save_bundle(tmp_path/'m')))
    files = list((tmp_path/'set').rglob('*.txt'))
    assert_close(*(list(l.validate(dl=l.dls.test_dl(files, with_labels=True))) for l in (learn, again)), rtol=0, atol=0)

def test_columns_of_taggers(tmp_path):
    df = b.sents().rename(columns=dict(tokens='words', tags='pos'))
    learn = quiet(tagger(dls=rf.TagDataLoaders.from_df(df, 'words', 'pos', bs=4, seed=0, device='cpu')))
    again = quiet(load_bundle(learn.save_bundle(tmp_path/'m')))
    assert again.tag(df) == learn.tag(df)
    assert [m.name for m in again.metrics] == ['accuracy', 'f1']

@pytest.mark.parametrize('arch', ['AWD_LSTM', rf.AWD_LSTM, rf.AWD_GRU], ids=str)
def test_architectures_by_name_or_class(arch, tmp_path):
    learn = lm(arch)
    learn.save_bundle(tmp_path/'m')
    assert read_files(tmp_path/'m').config['model']['args']['arch'] == (arch if isinstance(arch, str) else rf.archs.key(arch))

def test_models_on_fastais_block(tmp_path):
    "The loader gathers the block's texts; prompts are cut by the default tokenizer, before and after."
    block = ft.DataBlock(rf.TextBlock.from_df('text', is_lm=True, seq_len=7), get_x=ft.ColReader('text'),
                         splitter=ft.RandomSplitter(0.2, seed=0))
    learn = quiet(lm(dls=block.dataloaders(texts(), bs=2, device='cpu')))
    assert b.same_bits(b.answers(learn), b.answers(quiet(load_bundle(learn.save_bundle(tmp_path/'m')))))

def test_figures_of_the_last_validation_are_kept(tmp_path):
    learn = quiet(lm(metrics=ft.accuracy))
    learn.save_bundle(tmp_path/'m', hours=np.float32(0.5))
    assert read_files(tmp_path/'m').config['scores'] == dict(hours=0.5)
    learn.fit(2)
    learn.save_bundle(tmp_path/'m', hours=2)
    names = 'train_loss', 'valid_loss', 'accuracy'
    assert read_files(tmp_path/'m').config['scores'] == dict(zip(names, learn.recorder.values[-1], strict=True), hours=2)
    for bad in (torch.ones(1), 'much', math.nan, True):
        with pytest.raises(ValueError, match=r'scores: loss='): learn.save_bundle(tmp_path/'m', loss=bad)
    assert read_files(tmp_path/'m').config['scores']['hours'] == 2

def test_what_is_needed_is_written_down(tmp_path):
    found = read_files(rnn(series(), b.Mean).save_bundle(tmp_path/'m')).config
    assert found['allow'] == ['bundles.Mean'] and 'spacy' not in found['versions']
    found = read_files(lm().save_bundle(tmp_path/'m')).config
    assert found['allow'] == [] and set(found['versions']) == {'rnn_fastai', 'torch', 'fastai', 'spacy'}

def test_the_learner_stays_as_it_is(tmp_path):
    learn = quiet(lm())
    learn.path = tmp_path/'own'
    before = {k: vars(learn).get(k) for k in ('path', 'model_dir', 'dls', 'model', 'opt', '_loss_func')}
    modes = [m.training for m in learn.model.modules()]
    learn.save_bundle(tmp_path/'m')
    assert {k: vars(learn).get(k) for k in before} == before and [m.training for m in learn.model.modules()] == modes
    assert learn.save('a').parent == tmp_path/'own'/'models'

def test_an_encoder_of_a_loaded_language_model(tmp_path):
    learn = lm()
    again = load_bundle(learn.save_bundle(tmp_path/'m'))
    file = again.save_encoder('encoder')
    assert file.parent == tmp_path/'models'   # not in the bundle
    loaded = quiet(clas(dls=clas_dls(text_vocab=again.dls.vocab))).load_encoder(file)
    assert_close(loaded.model[0].module.encoder.weight, learn.model[0].encoder.weight)
    learn.save_bundle(tmp_path/'m')
    assert file.exists()   # other files of the folder stay

def test_vectors_are_in_the_weights(tmp_path):
    learn = b.build('tagger vectors')
    learn.save_bundle(tmp_path/'m')
    sizes = read_files(tmp_path/'m').config['model']['args']['vectors']   # of the tables, which are among the weights
    assert sizes == [len(learn.model[0].words.weight), None, len(learn.model[0].words.frozen)]
    assert_close(load_bundle(tmp_path/'m').model[0].words.weight, learn.model[0].words.weight)

def test_shared_weights_stay_shared(tmp_path):
    again = load_bundle(b.build('lm AWD_LSTM').save_bundle(tmp_path/'m'))
    assert again.model[1].decoder.weight is again.model[0].encoder.weight
    assert list(read_files(tmp_path/'m').header).count('1.decoder.weight') == 0

# ---- Cells and modules of one's own

def test_own_classes_must_be_allowed(tmp_path):
    learn = b.build('next own net')
    learn.save_bundle(tmp_path/'m')
    with pytest.raises(BundleError, match=r"made with bundles.Net, .* allow=\[Net\], or pass allow=\['bundles.Net'\]"): load_bundle(tmp_path/'m')
    class Net(b.Net): pass
    Net.__qualname__ = 'Net'
    for allow in (b.Net, [b.Net], 'bundles.Net', ['bundles.Net', b.Mean]):
        assert type(load_bundle(tmp_path/'m', allow).model.module) is b.Net
    assert type(load_bundle(tmp_path/'m', Net).model.module) is Net   # a class goes by its name
    with pytest.raises(BundleError, match='bundles.Net'): load_bundle(tmp_path/'m', b.Mean)
    with pytest.raises(ValueError, match=r"allow='bundles.None' cannot be imported"): load_bundle(tmp_path/'m', 'bundles.None')
    with pytest.raises(TypeError, match='allow holds 3'): load_bundle(tmp_path/'m', [3])

def test_nothing_is_imported_for_a_name_in_a_bundle(tmp_path):
    rnn(series(), b.Mean).save_bundle(tmp_path/'m')
    (tmp_path/'trap.py').write_text(f"open({str(tmp_path/'sprung')!r}, 'w').close()\nclass Mean: pass")
    rewrite(tmp_path/'m', lambda c: c['model']['args'].update(cell={'$part': 'trap.Mean'}))
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from rnn_fastai.ship.bundle import load_bundle; load_bundle({str(tmp_path/'m')!r})"
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert res.returncode and 'It was made with trap.Mean' in res.stderr and not (tmp_path/'sprung').exists()

def test_arguments_of_an_own_module_must_be_known(tmp_path):
    class Secret(b.Net):
        def __init__(self, vocab_sz, width): super().__init__(vocab_sz, width)
    learn = rf.module_learner(series(), Secret(4, 3))
    with pytest.raises(ValueError, match='with which width this Secret was made.*Set self.width.*@maker'): learn.save_bundle(tmp_path/'m')
    learn.model.module.width = 3
    learn.save_bundle(tmp_path/'m')
    assert b.same_bits(b.answers(learn), b.answers(load_bundle(tmp_path/'m', Secret)))
    learn.model.module.width = 5   # it says another size than it was built with
    with pytest.raises(ValueError, match=r'do not fit .*torch.float32 \(4, 3\) there, torch.float32 \(4, 5\) here'): learn.save_bundle(tmp_path/'m')

def test_an_own_loss_by_name(tmp_path):
    learn = quiet(rf.module_learner(series(), nn.Embedding(4, 4), loss_func=own_loss))
    learn.save_bundle(tmp_path/'m')
    with pytest.raises(BundleError, match='test_bundle.own_loss'): load_bundle(tmp_path/'m')
    assert load_bundle(tmp_path/'m', own_loss).loss_func.func is own_loss

def own_loss(out, y): return nn.functional.cross_entropy(out.flatten(0, -2), y.flatten()) + 1

# ---- Refused by name, and nothing is written

class OwnWords(rf.WordTokenizer): pass
class OwnChars(rf.CharTokenizer): pass
class OwnLearner(rf.LMLearner):
    def predict(self, *args, **kwargs): return super().predict(*args, **kwargs).upper()
class OwnCut:
    "A tokenizer of one's own, which cuts at a character."
    def __init__(self, at=' '): self.at = at
    def cut(self, text): return text.split(self.at)
    def __call__(self, texts): return map(self.cut, texts)
class Forgetful(OwnCut):
    def __init__(self, width): super().__init__(' '*width)
class OwnLoader(rf.LMDataLoader): pass
class OwnCategorize(ft.Categorize): pass

def own_rule(t): return t.replace('a', 'b')
def own_stem(w): return w[:2]
def own_labels(df): return df.label.tolist()
def changed(change, learn=lm):
    learn = learn()
    change(learn)
    return learn
def with_other_class(learn):
    class Own(type(learn.model)):
        def forward(self, ids, state=None):
            out = super().forward(ids, state)
            return out._replace(logits=-out.logits)
    learn.model.__class__ = Own
def with_other_forward(learn):
    forward = learn.model[1].forward
    learn.model[1].forward = lambda x: tuple(-o for o in forward(x))
def of_fastai():
    block = ft.DataBlock((ft.TextBlock.from_df('text'), ft.CategoryBlock), get_x=ft.ColReader('text'),
                         get_y=ft.ColReader('label'), splitter=ft.RandomSplitter(0.2, seed=0))
    return clas(dls=block.dataloaders(texts(), bs=4, device='cpu'))
def own_loader(learn): learn.dls = ft.DataLoaders(*[OwnLoader(learn.dls.train_ds, bs=2)]*2, device='cpu')
def own_reader(learn): learn.dls.train_ds.read_labels = lambda df: ['pos']*len(df)
def halves():
    "Two halves of a pair, which JSON makes one character of."
    df = pd.DataFrame(dict(tokens=[['\ud83d\ude00', 'a']]*9, tags=[['A', 'B']]*9))
    return tagger(dls=rf.TagDataLoaders.from_df(df, bs=2, device='cpu'))
def labels_of(values): return clas(dls=rf.TextDataLoaders.from_df(
    texts().assign(label=values*10), text_col='text', label_col='label', bs=4, device='cpu', no_bar=True))
def bias(value): return lambda learn: learn.model[1].decoder.bias.data.__setitem__(3, value)

REFUSED = {
    'lambda': (lambda: lm(dls=lm_dls(rf.TextTokenizer(post_rules=[lambda t: t]))), '<lambda>'),
    'a method': (lambda: lm(dls=lm_dls(rf.TextTokenizer(rules=[OwnCut('a').cut]))), 'OwnCut.cut'), 'a bound builtin': (lambda: lm(dls=lm_dls(rf.TextTokenizer(rules=['a'.join]))), 'built-in method join'),
    'own words of unknown settings': (lambda: lm(dls=lm_dls(Forgetful(3))), 'with which width this Forgetful was made.*@maker'),
    'spacy of fastai': (lambda: clas(dls=clas_dls(fastai.text.core.SpacyTokenizer())), 'SpacyTokenizer'),
    'function of a tagger': (lambda: tagger(dls=tag_dls(lambda w: w[:2])), '<lambda>'),
    'another learner': (lambda: rf.TextLearner(lm_dls(), lm().model, loss_func=ft.CrossEntropyLossFlat()), 'TextLearner cannot be kept'),
    'no momenta': (lambda: changed(lambda l: setattr(l, 'moms', None)), 'learn.moms=None cannot be kept; it must be three numbers'),
    'a rate that is none': (lambda: changed(lambda l: setattr(l, 'lr', None)), r'learn.lr=None .* a slice of two numbers'),
    'a rate as a tensor': (lambda: changed(lambda l: setattr(l, 'lr', torch.tensor(0.1))), r'learn.lr=tensor\(0.1000\) cannot be kept'),
    'an endless decay': (lambda: changed(lambda l: setattr(l, 'wd', torch.inf)), 'learn.wd=inf .* a number, or None'),
    'own loader': (lambda: changed(own_loader), 'OwnLoader'), 'loaders of fastai': (of_fastai, 'SortedDL cannot be kept'),
    'own reader of labels': (lambda: changed(own_reader, clas), 'read_labels='),
    'own block': (lambda: clas(dls=clas_dls(y_block=ft.TransformBlock(type_tfms=OwnCategorize()))), 'OwnCategorize'),
    'dates': (lambda: labels_of(list(pd.to_datetime(['2020', '2021', '2022']))), 'Timestamp'),
    'tokens that are bytes': (lambda: rnn(series([b'a', b'b']*4)), r"token b'a' is a bytes"),
    'another module': (lambda: changed(lambda l: setattr(l, 'model', nn.Sequential(*l.model, nn.ReLU()))), "AWD_LSTM was made"),
    'another module in its place': (lambda: changed(lambda l: l.model.__setitem__(1, nn.Linear(6, 24))), "do not fit"),
    'another class': (lambda: changed(with_other_class), 'is a Own, and was built as LanguageModel'),
    'another forward': (lambda: changed(with_other_forward), "forward of '1'"),
    'a hook': (lambda: changed(lambda l: l.model[1].decoder.register_forward_hook(lambda m, x, out: -out)), 'gives other answers'),
    'another dropout': (lambda: changed(lambda l: setattr(l.model[1].output_dp, 'p', 0.9)), "p of '1.output_dp' is 0.9, and was built as 0.1"),
    'other vocabulary': (lambda: changed(lambda l: setattr(l, 'dls', lm_dls(text_vocab=['xxunk', 'xxpad', 'the']))), '24 outputs.*3 tokens'),
    'own loss without a name': (lambda: changed(lambda l: setattr(l, 'loss_func', lambda out, y: out.mean())), 'loss_func=.*lambda'),
    'nan': (lambda: changed(bias(torch.nan)), 'bias holds 1 of 24 numbers that are not finite'),
    'infinity': (lambda: changed(bias(-torch.inf)), 'bias holds 1 of 24 numbers that are not finite'),
    'half precision in one part': (lambda: changed(lambda l: l.model[1].decoder.__setattr__('bias', nn.Parameter(l.model[1].decoder.bias.half()))), 'torch.float16.*torch.float32'),
    'no weights': (lambda: rf.module_learner(series(), nn.Identity(), one_hot=True), 'no weights'),
    'halves of a pair': (halves, 'vocabulary')}

@pytest.mark.parametrize('case', REFUSED)
def test_refused_by_name(case, tmp_path):
    build,words = REFUSED[case]
    learn = build()
    with pytest.raises(ValueError, match=f'(?s){words}'): learn.save_bundle(tmp_path/'m')
    assert not (tmp_path/'m').exists()
    lm().save_bundle(tmp_path/'m')
    before = {f.name: f.read_bytes() for f in (tmp_path/'m').iterdir()}
    with pytest.raises(ValueError): learn.save_bundle(tmp_path/'m')
    assert {f.name: f.read_bytes() for f in (tmp_path/'m').iterdir()} == before

def labels_by_name():
    learn = clas()
    learn.dls.train_ds.read_labels = own_labels
    return learn

OWN_PARTS = {
    'rule': (lambda: lm(dls=lm_dls(rf.TextTokenizer(rules=[ft.lowercase, own_rule], post_rules=[own_stem]))), ['own_rule', 'own_stem']),
    'words': (lambda: lm(dls=lm_dls(OwnWords())), ['OwnWords']), 'characters': (lambda: clas(dls=clas_dls(OwnChars())), ['OwnChars']),
    'tokenizer': (lambda: clas(dls=clas_dls(OwnCut('-'))), ['OwnCut']), 'within rules': (lambda: clas(dls=clas_dls(rf.TextTokenizer(OwnCut(), rules=[]))), ['OwnCut']),
    'words of a tagger': (lambda: tagger(dls=tag_dls(OwnWords())), ['OwnWords']), 'stems of a tagger': (lambda: tagger(dls=tag_dls(own_stem)), ['own_stem']),
    'reader of labels': (labels_by_name, ['own_labels']),
    'learner': (lambda: OwnLearner(lm_dls(), lm().model, loss_func=ft.CrossEntropyLossFlat()), ['OwnLearner'])}

def own_answers(learn): return learn.predict('the mat', 5, temperature=0, no_bar=True) if type(learn) is OwnLearner else b.answers(learn)

@pytest.mark.parametrize('case', OWN_PARTS)
def test_parts_of_ones_own(case, tmp_path):
    build,names = OWN_PARTS[case]
    learn,paths = quiet(build()),[f'test_bundle.{n}' for n in names]
    learn.save_bundle(tmp_path/'m')
    assert read_files(tmp_path/'m').config['allow'] == paths
    with pytest.raises(BundleError, match=rf"made with {paths[0]}, .*--allow {paths[0]}"): load_bundle(tmp_path/'m')
    again = load_bundle(tmp_path/'m', [globals()[n] for n in names])
    assert type(again) is type(learn) and b.same_bits(own_answers(learn), own_answers(quiet(again)))

def test_an_architecture_of_ones_own(tmp_path):
    class Half(rf.Cell):
        def step(self, gx, state): return (torch.tanh(gx + self.recur(state[0]))/2,)
    def forget():
        for registry,name in ((rf.archs, 'AWD_Half'), (rf.archs, 'odd')): registry._items.pop(name, None)
    try:
        rf.awd_arch(Half, n_layers=1)
        learn = b.quiet(lm('AWD_Half', config=dict(emb_sz=6, n_hid=6)))
        clas('AWD_Half', config=dict(emb_sz=6, n_hid=6)).save_bundle(tmp_path/'clas')
        rf.archs.register('odd', **rf.archs.facts('AWD_Half'))(rf.archs.get('AWD_Half'))
        lm('odd').save_bundle(tmp_path/'odd')
        learn.save_bundle(tmp_path/'m')
        forget()
        with pytest.raises(BundleError, match=r'made with test_bundle.*Half, .*--allow test_bundle.*Half'): load_bundle(tmp_path/'m')
        assert b.same_bits(b.answers(learn), b.answers(b.quiet(load_bundle(tmp_path/'m', Half))))
        forget()
        assert load_bundle(tmp_path/'clas', Half).dls.vocab[1] == ['neg', 'pos']
        with pytest.raises(BundleError, match="'odd' is not registered here.*awd_arch"): load_bundle(tmp_path/'odd', Half)
    finally: forget()

def test_losses_set_back_can_be_kept(tmp_path):
    learn = changed(lambda l: setattr(l, 'loss_func', lambda out, y: out.mean()))
    learn.loss_func = ft.CrossEntropyLossFlat()
    learn.save_bundle(tmp_path/'m')

# ---- Hostile configs: their checksums are right, what they say is not

@pytest.fixture(scope='module')
def kept(tmp_path_factory): return lm().save_bundle(tmp_path_factory.mktemp('kept')/'m')
@pytest.fixture
def copied(kept, tmp_path): return shutil.copytree(kept, tmp_path/'m')

def model(**args): return lambda c: c['model']['args'].update(args)
def config(**args): return lambda c: c['model']['args']['config'].update(args)
def data(**args): return lambda c: c['data'].update(args)
def learner(**args): return lambda c: c['learner'].update(args)
BIG = {'$part': 'torch.nn.Linear', 'args': {'in_features': 10**6, 'out_features': 10**6}}

def tok(**args): return lambda c: c['data']['tok'].update(args)
def loss(**args): return lambda c: c['learner']['loss_func']['args'].update(args)

HOSTILE = {
    'a joint that is none': (tok(sep=None), "The tokenizer's sep=None"), 'rules that are none': (tok(rules=''), "tokenizer's rules=''"), 'a rule that is none': (tok(post_rules=[[1]]), r'post_rules=\[\[1\]\]'),
    'more of a tokenizer': (tok(more=1), 'more=1'), 'no tokenizer': (data(tok=3), "tokenizer '3' is unknown"), 'special tokens': (lambda c: c['data']['tok']['tok'].update(special_toks='xx'), "special_toks='xx'"),
    'no column': (data(text_col=[]), r"The data's text_col=\[\]"), 'an odd column': (data(text_col={'a': 1}), 'text_col='), 'no direction': (data(backwards=''), "backwards=''"), 'more data': (data(more=1), 'more=1'), 'steps': (data(seq_len='7'), "seq_len='7'"),
    'an axis that is none': (loss(axis=None), 'loss_func=.* cannot be used'), 'another axis': (loss(axis=1), 'loss_func=.* cannot be used'), 'a reduction': (loss(reduction='x'), 'loss_func=.* x is not a valid value'),
    'no classes': (loss(flatten=False, axis=7), 'loss_func=.* cannot be used'), 'smoothing': (loss(label_smoothing=2), 'loss_func=.* label_smoothing'), 'an index': (loss(ignore_index='x'), 'loss_func=.*ignore_index'),
    'frozen': (learner(frozen=''), "frozen=''"), 'fixed': (learner(fixed=''), "fixed=''"), 'no task': (lambda c: c.update(task=3), 'task=3'), 'sizes': (lambda c: c.update(trained_on={'train': 3}), 'trained_on='),
    'a learner of others': (learner(kind={'$part': 'os.system'}), 'os.system'), 'a learner that is none': (learner(kind={'$part': 'torch.nn.ReLU'}), 'kind of learner .*ReLU'),
    'a billion layers': (config(n_layers=10**9), 'The number 1000000000 is too large'),
    'a million layers': (config(n_layers=10**6), 'many more tensors than the weights'),
    'one layer more': (config(n_layers=3), 'do not fit .*0.rnns.2'), 'wide': (config(emb_sz=10**6), 'many more numbers|do not fit'),
    'another vocabulary': (model(vocab_sz=25), 'do not fit'), 'negative': (model(vocab_sz=-1), 'vocab_sz=-1'), 'a factor that is none': (model(drop_mult='x'), "get_language_model cannot be made with .*'drop_mult': 'x'"),
    'another cell': (model(arch='AWD_LSTM'), 'do not fit'), 'no architecture': (model(arch='AWD_NONE'), "'AWD_NONE'.*'AWD_GRU'"),
    'no argument': (lambda c: c['model']['args'].pop('arch'), 'arch'), 'odd argument': (model(hidden=3), 'hidden'),
    'a class of others': (model(arch={'$part': 'os.system'}), r'made with os.system.*allow=\[system\]'),
    'a call of others': (lambda c: c.update(model={'$part': 'os.system', 'args': {'command': 'true'}}), 'os.system'),
    'an attribute of ours': (lambda c: c['model'].update({'$part': 'rnn_fastai.ship.bundle.os.system'}), 'bundle.os.system'),
    'large numbers in an argument': (config(init=BIG), 'many more numbers'), 'in a metric': (learner(metrics=[BIG]), 'many more numbers'),
    'in the loss': (learner(loss_func=BIG), 'many more numbers'), 'no model': (lambda c: c.update(model=[1]), 'should be the model is a list'),
    'a layer alone': (lambda c: c.update(model={'$part': 'torch.nn.ReLU'}), 'should be the model is a type'),
    'an odd name': (lambda c: c['model'].update({'$part': ['torch']}), 'cannot be opened'),
    'an odd learner': (learner(kind='Learner'), "'Learner' is unknown"), 'an odd rate': (learner(lr='fast'), "lr='fast' is not what was written"),
    'odd momenta': (learner(moms=[1]), r'moms=\[1\]'), 'odd metrics': (learner(metrics=[3]), r'metrics=\[3\]'), 'odd groups': (learner(splitter=3), 'splitter=3'),
    'other loaders': (data(kind='tags'), "lacks 'tags'"), 'a loss that is none': (learner(loss_func=1), 'loss_func=1 is no loss'), 'fixed parameters that are none': (learner(fixed=['x']), "fixed='x' is no parameter"),
    'odd rates': (learner(lr={'$slice': ['a', 1, None]}), "lr=slice.*is not what was written"),
    'more of a learner': (learner(cbs=[]), r'cbs=\[\] is not what was written'), 'less of a learner': (lambda c: c['learner'].pop('wd'), "lacks 'wd'"),
    'a crf': (learner(loss_func='crf'), 'crf'), 'odd loaders': (data(kind='own'), "'own' is unknown.*'texts'"),
    'an odd batch': (data(bs=0), 'bs=0'), 'a huge batch': (data(bs=10**9), 'too large'),
    'an odd tokenizer': (data(tok=dict(kind='own')), "'own' is unknown"), 'an odd rule': (lambda c: c['data']['tok'].update(rules=['os.system']), "'os.system' is unknown"),
    'an odd language': (lambda c: c['data']['tok']['tok'].update(lang='../x'), 'no language code'),
    'no such language': (lambda c: c['data']['tok']['tok'].update(lang='zzz'), "lang='zzz'"),
    'no data': (lambda c: c.pop('data'), "'data'"), 'data that are none': (lambda c: c.update(data=3), 'cannot be opened'),
    'deep': (lambda c: c.update(model=nested(30)), 'nested more than')}

def nested(n): return {'$part': 'torch.nn.Sequential', 'args': {'*': [nested(n-1)] if n else []}}

@pytest.mark.parametrize('case', HOSTILE)
def test_hostile_configs(case, copied):
    change,words = HOSTILE[case]
    rewrite(copied, change)
    with pytest.raises(BundleError, match=f'(?s){words}') as e: load_bundle(copied)
    assert str(copied) in str(e.value)

WEIGHTS = {'shape': (lambda w: w[:-1], r'1.decoder.bias: torch.float32 \(23,\) there, torch.float32 \(24,\) here'), 'integers': (lambda w: w.long(), 'torch.int64'),
           'complex': (lambda w: w*1j, 'torch.complex64'), 'double': (lambda w: w.double(), 'torch.float64'), 'infinite': (lambda w: torch.full_like(w, torch.inf), '1.decoder.bias holds 24 of 24 numbers that are not finite')}

def test_columns_and_labels_that_are_none(tmp_path):
    tagger().save_bundle(tmp_path/'t')
    for i,cols in enumerate(([], ['tokens'], 'ab', [None, None])):
        folder = rewrite(shutil.copytree(tmp_path/'t', tmp_path/f't{i}'), data(cols=cols))
        with pytest.raises(BundleError, match="The data's cols="): load_bundle(folder)
    clas().save_bundle(tmp_path/'c')
    for i,(args,words) in enumerate(((dict(names='ab'), "labels's names='ab'"), (dict(add_na=''), 'add_na='), (dict(n='2'), "n='2'"), (dict(shape=[None]), 'shape='),
                                     (dict(name=[]), r'name=\[\]'), (dict(columns={'delim': None}), "columns lacks 'label_cols'"), (dict(reader=3), 'reader=3'),
                                     (dict(columns={'label_cols': {}, 'delim': None}), "columns's label_cols={}"), (dict(folders=''), "folders=''"), (dict(more=1), 'more=1'))):
        folder = rewrite(shutil.copytree(tmp_path/'c', tmp_path/f'c{i}'), lambda c, args=args: c['data']['labels'].update(args))
        with pytest.raises(BundleError, match=words): load_bundle(folder)

@pytest.mark.parametrize('case', WEIGHTS)
def test_hostile_weights(case, copied):
    change,words = WEIGHTS[case]
    rewrite(copied, tensors=lambda t: {**t, '1.decoder.bias': change(t['1.decoder.bias'])})
    with pytest.raises(BundleError, match=words): load_bundle(copied)

def test_missing_and_further_weights(copied, tmp_path):
    other = shutil.copytree(copied, tmp_path/'n')
    rewrite(copied, tensors=lambda t: {k: w for k,w in t.items() if 'bias_ih' not in k})
    with pytest.raises(BundleError, match='in 2 tensors: 0.rnns.0.bias_ih_l0: missing there'): load_bundle(copied)
    rewrite(other, tensors=lambda t: {**t, 'more': torch.ones(1)})
    with pytest.raises(BundleError, match='in 1 tensors: more: not in this model'): load_bundle(other)

VOCABS = {'numbers': ('{"vocab": [1, 2]}', 'list of int'), 'none': ('{}', "'vocab'"), 'text': ('{"vocab": "abc"}', 'vocab must be a list'), 'damaged': ('{"vocab": [', 'vocab.json is not the JSON'),
          'a list': ('[]', 'cannot be opened'), 'shorter': ('{"vocab": ["xxunk", "xxpad"]}', '24 outputs; the loaders have 2'),
          'longer': (json.dumps(dict(vocab=[f'w{i}' for i in range(25)])), '25 tokens is too long'), 'long': (json.dumps(dict(vocab=['a']*3*10**5)), 'too many for weights'), 'deep': ('['*9999 + ']'*9999, 'vocab.json')}

@pytest.mark.parametrize('case', VOCABS)
def test_hostile_vocabularies(case, copied):
    text,words = VOCABS[case]
    rewrite(copied, texts=lambda t: {**t, 'vocab.json': text})
    with pytest.raises(BundleError, match=words): load_bundle(copied)

def test_tokens_of_sequences_that_are_none(tmp_path):
    rnn(series()).save_bundle(tmp_path/'a')
    rewrite(tmp_path/'a', texts=lambda t: {'vocab.json': t['vocab.json'].replace('"b"', '{"b": 1}', 1)})
    with pytest.raises(BundleError, match="The token {'b': 1} is a dict"): load_bundle(tmp_path/'a')

def test_a_shorter_vocabulary_of_labels_or_tags(tmp_path):
    tagger().save_bundle(tmp_path/'t')
    rewrite(tmp_path/'t', texts=lambda t: {'vocab.json': json.dumps({**json.loads(t['vocab.json']), 'tags': ['O']})})
    with pytest.raises(BundleError, match='2 outputs; the loaders have 1'): load_bundle(tmp_path/'t')
    clas().save_bundle(tmp_path/'c')
    rewrite(tmp_path/'c', lambda c: c['data']['labels'].update(names=['neg']))
    with pytest.raises(BundleError, match='2 outputs; the loaders have 1'): load_bundle(tmp_path/'c')

def test_hostile_subwords(tmp_path):
    lm(dls=lm_dls(rf.ByteLevelTokenizer(290))).save_bundle(tmp_path/'s')
    def change(**args): return lambda t: {**t, 'tokenizer.json': json.dumps({**json.loads(t['tokenizer.json']), **args})}
    for args,words in ((dict(pre_tokenizer={'type': 'Whitespace'}), 'pre_tokenizer'), (dict(normalizer={'type': 'NFC'}), 'normalizer'),
                       (dict(model={'type': 'BPE', 'vocab': {}, 'merges': []}), 'bytes'), (dict(model=3), 'cannot be opened')):
        folder = rewrite(shutil.copytree(tmp_path/'s', tmp_path/f'{words}'), texts=change(**args))
        with pytest.raises(BundleError, match=words): load_bundle(folder)
    folder = rewrite(tmp_path/'s', texts=lambda t: {k: v for k,v in t.items() if k == 'vocab.json'})
    with pytest.raises(BundleError, match='tokenizer.json'): load_bundle(folder)

# ---- Memory

@pytest.mark.skipif(not os.path.exists('/proc/self/clear_refs'), reason='Linux tells the peak')
@pytest.mark.slow
def test_a_refusal_takes_little_memory(copied):
    "Of a model that would need 4 TB, and of one whose layers would; measured in a process of its own."
    code = ("import sys; from rnn_fastai.ship.bundle import load_bundle; load_bundle(sys.argv[1])\n"
            "peak = lambda: int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])\n"
            "open('/proc/self/clear_refs', 'w').write('5')   # forget the peak of the imports\n"
            "before = peak()\n"
            "for f in sys.argv[2:]:\n"
            "    try: load_bundle(f)\n"
            "    except ValueError: continue\n"
            "    raise AssertionError(f)\n"
            "print((peak() - before)//1024)")
    bad = [rewrite(shutil.copytree(copied, copied.parent/f'{i}'), HOSTILE[c][0]) for i,c in enumerate(
        ('a million layers', 'wide', 'large numbers in an argument', 'in a metric', 'in the loss', 'a huge batch', 'deep'))]
    bad.append(rewrite(shutil.copytree(copied, copied.parent/'v'), texts=lambda t: {'vocab.json': json.dumps(dict(vocab=['a']*10**7))}))
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, copied, *bad], capture_output=True, text=True)
    assert res.returncode == 0, res.stderr
    assert int(res.stdout.split()[-1]) < 50

# ---- fastai's doors

@pytest.mark.parametrize('name', ['export.pkl', 'one.zip', 'folder'])
def test_export_and_load_learner(name, tmp_path):
    learn = quiet(clas(path=tmp_path))
    learn.export(*[name]*(name != 'export.pkl'))
    assert (tmp_path/name).is_dir() == (name == 'folder')
    before = sorted(f.name for f in tmp_path.iterdir())
    again = quiet(load_learner(tmp_path/name))
    assert b.same_bits(b.answers(again), b.answers(learn)) and again.dls.device == torch.device('cpu')
    assert sorted(f.name for f in tmp_path.iterdir()) == before

class Trap:
    def __reduce__(self): return os.mkdir, (str(self.path),)

@pytest.mark.parametrize('write', [lambda o, f: f.write_bytes(pickle.dumps(o)), torch.save, lambda o, f: torch.save(o, f, _use_new_zipfile_serialization=False)],
                         ids=['pickle', 'torch', 'old torch'])
def test_a_pickle_is_refused_before_a_byte_of_it_runs(write, tmp_path):
    trap = Trap()
    trap.path = tmp_path/'sprung'
    write(trap, tmp_path/'x.pkl')
    with pytest.raises(ValueError, match=r'x.pkl is a pickle.*pass allow_pickle=True'): load_learner(tmp_path/'x.pkl')
    assert not (tmp_path/'sprung').exists()

@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_all_protocols(protocol, tmp_path):
    for i,o in enumerate(({'a': 1}, [1, 2], (1, 'b'), 'text', dict.fromkeys(range(10**4), 'x'*100))):
        file = tmp_path/f'{i}'
        file.write_bytes(pickle.dumps(o, protocol=protocol))
        for load in (load_learner, load_bundle):
            with pytest.raises(BundleError, match=f'{i} is a pickle.*pass allow_pickle=True to load_learner'): load(file)

@pytest.mark.parametrize('data', [b'', b'.', b'x', b'hello world.', 'Sentence.\n'.encode('utf-16'), b'PK\x03\x04'], ids=repr)
def test_files_that_are_no_pickles(data, tmp_path):
    (tmp_path/'x').write_bytes(data)
    with pytest.raises(BundleError, match='neither a folder nor a zip'): load_learner(tmp_path/'x', allow_pickle=True)

def test_an_allowed_pickle(tmp_path):
    learn = quiet(clas(path=tmp_path))
    ft.Learner.export(learn, 'old.pkl')
    with pytest.warns(UserWarning, match='insecure'): again = load_learner(tmp_path/'old.pkl', allow_pickle=True)
    assert b.same_bits(b.answers(quiet(again)), b.answers(learn))
    again.path = tmp_path
    again.export('new')
    assert b.same_bits(b.answers(quiet(load_learner(tmp_path/'new'))), b.answers(learn))

def test_files_that_are_nothing(tmp_path, kept):
    for data in (b'', b'hello', b'PK\x05\x06' + b'\0'*18):
        (tmp_path/'f').write_bytes(data)
        with pytest.raises((ValueError, FileNotFoundError)): load_learner(tmp_path/'f')
    with pytest.raises(FileNotFoundError, match='There is no bundle'): load_learner(tmp_path/'none')
    (tmp_path/'d').mkdir()
    with pytest.raises(FileNotFoundError, match='config.json is missing'): load_bundle(tmp_path/'d')
    (tmp_path/'d'/'facts.json').write_text('{"format": 1}')
    with pytest.raises(FileNotFoundError, match='older format'): load_bundle(tmp_path/'d')

# ---- Names

def test_fastais_functions_keep_their_names():
    from fastai import learner
    assert rf.save_model is learner.save_model and rf.load_model is learner.load_model
    assert rf.SentenceEncoder is ft.SentenceEncoder

# ---- What a loaded learner writes, and trains on

@pytest.mark.parametrize('case', ['lm AWD_LSTM', 'clas words', 'rnn many-to-one'])
def test_a_loaded_learner_saves_beside_its_bundle_not_over_it(case, tmp_path):
    learn = b.build(case)
    learn.save_bundle(tmp_path)
    before = (tmp_path/'model.safetensors').read_bytes()
    again = quiet(load_bundle(tmp_path))
    again.dls = learn.dls
    again.fit(1, 1e-2, cbs=ft.SaveModelCallback(monitor='train_loss'))   # it saves as 'model'
    assert (tmp_path/'model.safetensors').read_bytes() == before
    assert b.same_bits(b.answers(load_bundle(tmp_path)), b.answers(learn))

@pytest.mark.parametrize('case', ['lm AWD_LSTM', 'clas words', 'tagger lower', 'next', 'rnn many-to-one', 'rnn encoder-decoder'])
def test_a_loaded_learner_has_no_data(case, tmp_path):
    learn = b.build(case)
    learn.fit(1, 1e-2)
    learn.save_bundle(tmp_path/'a')
    again = quiet(load_bundle(tmp_path/'a'))
    assert len(again.dls.train) == len(again.dls.valid) == len(list(again.dls.train)) == 0
    for call in (lambda: again.fit_one_cycle(1), again.lr_find, lambda: again.fit(1)):
        with pytest.raises(ValueError, match='no batch to train on.*set learn.dls'): call()
    for call,words in ((again.validate, 'validate on'), (partial(again.validate, 0), 'validate on'), (again.get_preds, 'predict'), (partial(again.get_preds, 0), 'predict')):
        with pytest.raises(ValueError, match=f'no batch to {words}.*set learn.dls'): call()
    again.dls = learn.dls
    assert again.validate() == again.validate(1) and all(v is not None for v in again.validate())
    again.save_bundle(tmp_path/'b')
    config,twice = (read_files(tmp_path/n).config for n in 'ab')
    assert config == twice and config['scores'] and config['trained_on']['train']

@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('case', ['lm AWD_LSTM', 'clas words', 'tagger chars', 'next own net'])
def test_models_of_other_float_types(case, dtype, tmp_path):
    learn = b.build(case)
    learn.model.to(dtype)
    learn.save_bundle(tmp_path)
    again = quiet(load_bundle(tmp_path, b.OWN))
    assert {t.dtype for t in again.model.state_dict().values() if t.is_floating_point()} == {dtype}
    assert all(map(torch.equal, learn.model.state_dict().values(), again.model.state_dict().values()))
    if dtype is torch.float64: assert b.same_bits(b.answers(learn), b.answers(again))

def test_parameters_that_were_fixed_by_hand_stay_fixed(tmp_path):
    learn = b.build('clas words')
    def trained(l): return [n for n,p in l.model.named_parameters() if p.requires_grad]
    learn.freeze_to(-2)
    next(p for p in reversed(list(learn.model.parameters())) if p.requires_grad).requires_grad_(False)
    learn.save_bundle(tmp_path)
    again = load_bundle(tmp_path)
    assert trained(again) == trained(learn)
    again.unfreeze()
    assert len(trained(again)) == len(list(learn.model.parameters()))

@pytest.mark.parametrize('lr', [slice(1e-4, 1e-2), slice(0.02)])
def test_rates_by_layer_come_back(lr, tmp_path):
    learn = clas(lr=lr)
    learn.save_bundle(tmp_path)
    assert load_bundle(tmp_path).lr == lr

@pytest.mark.parametrize('path', ['..', '.x', '...a.b'])
def test_a_relative_path_cannot_be_allowed(path):
    with pytest.raises(ValueError, match='cannot be imported.*import path of a class'): load_bundle('nothing', allow=[path])
