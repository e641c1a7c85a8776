"Files of weights: round trips, fastai's files, damaged and hostile ones, and pretrained archives from a local server."
import http.server
import io
import json
import os
import pickle
import shutil
import tarfile
import threading
from functools import partial

import fastai.text.core
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.external import fastai_cfg
from fastai.text import all as ft
from torch.testing import assert_close

from rnn_fastai import all as rf
from rnn_fastai.learner.weights import canonical_names, opt_file
from rnn_fastai.models.awd import canonical_name

WORDS = 'one two three four five six seven eight nine ten'.split()
NO_DROP = dict(output_p=0., hidden_p=0., input_p=0., embed_p=0., weight_p=1e-30)   # fastai's breaks at a weight_p of 0
CONFIG = dict(ft.awd_lstm_lm_config, emb_sz=6, n_hid=9, n_layers=2, **NO_DROP)
EXACT = dict(rtol=0, atol=0)

@pytest.fixture(scope='module')
def loaders():
    rng = np.random.default_rng(0)
    df = pd.DataFrame({'text': [' '.join(rng.choice(WORDS, rng.integers(4, 25))) for _ in range(40)]})
    args = dict(is_lm=True, bs=4, seq_len=7, seed=1, shuffle=False, device='cpu')
    with pytest.MonkeyPatch.context() as m:
        m.setattr(fastai.text.core, 'parallelable', lambda *a, **k: False)
        return {m: m.TextDataLoaders.from_df(df, **args) for m in (rf, ft)}

@pytest.fixture()
def make(loaders, tmp_path):
    "Makes learners of ours (or fastai's), each with its own random weights, that share a folder of models."
    seeds = iter(range(100))
    def one(m=rf, config=(), **kwargs):
        torch.manual_seed(next(seeds))
        return m.language_model_learner(loaders[m], m.AWD_LSTM, config={**CONFIG, **dict(config)}, pretrained=False,
                                        path=tmp_path, **kwargs)
    return one

def quietly(learn, method, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): return getattr(learn, method)(*args, **kwargs)

def weights(learn): return {k: v.clone() for k,v in learn.model.state_dict().items()}
def same_outputs(a, b, **tol):
    ids = torch.randint(20, (3, 8))
    for l in (a, b): l.model.eval().reset()
    assert_close(a.model(ids)[0], b.model(ids)[0], **tol)

class Code:
    "When unpickled by the ordinary way, makes a folder."
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir,(str(self.path),)

# ---- round trips

@pytest.mark.parametrize('cfg', [{}, dict(tie_weights=False), dict(out_bias=False, n_layers=3)], ids=str)
def test_round_trip(make, cfg):
    a,b = make(config=cfg),make(config=cfg)
    file = a.save('a')
    assert file == a.path/a.model_dir/'a.safetensors' and file.exists()
    assert any((weights(a)[k] != v).any() for k,v in weights(b).items())
    assert b.load('a') is b
    assert_close(weights(b), weights(a), **EXACT)
    if cfg.get('tie_weights', True): assert b.model[1].decoder.weight is b.model[0].encoder.weight

@pytest.mark.parametrize('fit', ['fit', 'fit_one_cycle'])
@pytest.mark.parametrize('opt_func', [rf.Adam, ft.Adam, partial(ft.SGD, mom=0.9), partial(rf.OptimWrapper, opt=torch.optim.AdamW)],
                         ids=['ours', 'fastai', 'sgd', 'torch'])
@pytest.mark.parametrize('name', ['a', 'a.pth'])
def test_optimizer_goes_on_where_it_was(make, fit, opt_func, name):
    a,b,c = (make(opt_func=opt_func) for _ in range(3))
    quietly(a, fit, 1, 1e-2)
    a.save(name)
    b.load('a'), c.load('a', with_opt=False)
    for l in (a, b, c): quietly(l, 'fit', 1, 1e-2, reset_opt=False)
    assert_close(weights(b), weights(a), **EXACT)
    assert a.recorder.values == b.recorder.values
    assert any((weights(a)[k] != v).any() for k,v in weights(c).items())   # without its state the steps differ

def test_save_without_optimizer(make):
    a = make()
    quietly(a, 'fit', 1, 1e-2)
    assert set(rf.read_weights(a.save('both.pth'))) == {'model', 'opt'}
    for bare in ('bare', 'bare.pth'):
        assert set(canonical_names(rf.read_weights(a.save(bare, with_opt=False)))) == set(a.model.state_dict())
    a.save('later')
    assert opt_file(a.save('later', with_opt=False)).exists() is False   # it was of other weights
    for f in ('both', 'bare', 'bare.pth', 'later'): assert_close(weights(make().load(f)), weights(a), **EXACT)

def test_with_opt_needs_an_optimizer_in_the_file(make):
    a,b = make(),make()
    a.save('a', with_opt=False)
    with pytest.raises(ValueError, match='holds no optimizer state'): b.load('a', with_opt=True)

def test_failed_load_with_opt_leaves_the_model(make):
    a,b = make(),make()
    a.save('a', with_opt=False)
    before = weights(b)
    with pytest.raises(ValueError): b.load('a', with_opt=True)
    assert_close(weights(b), before, **EXACT)

@pytest.mark.parametrize('other', [dict(splitter=ft.trainable_params), dict(opt_func=ft.SGD)], ids=','.join)
def test_optimizer_state_that_does_not_fit_is_left_out(make, other):
    a,b = make(),make()
    for k,v in other.items(): setattr(b, k, v)
    quietly(a, 'fit', 1, 1e-2)
    a.save('a')
    before = weights(b)
    with pytest.raises(ValueError, match='saved optimizer'): b.load('a', with_opt=True)
    assert_close(weights(b), before, **EXACT)
    with pytest.warns(UserWarning, match="optimizer's state is not loaded"): b.load('a')
    assert_close(weights(b), weights(a), **EXACT)
    quietly(b, 'fit', 1, 1e-2, reset_opt=False)

def test_encoder_round_trip_freezes_and_leaves_the_decoder(make):
    a,b = make(config=dict(tie_weights=False)),make(config=dict(tie_weights=False))
    decoder = b.model[1].decoder.weight.clone()
    a.save_encoder('enc')
    b.load_encoder('enc')
    assert_close(dict(b.model[0].state_dict()), dict(a.model[0].state_dict()), **EXACT)
    assert_close(b.model[1].decoder.weight.data, decoder.data, **EXACT)
    assert all(p.requires_grad != ('.rnns.' in n) for n,p in b.model.named_parameters())

# ---- fastai's files

def raw_and_module(sd):
    "The names of older files: beside each raw matrix the dropped copy that the kernel used."
    return {**sd, **{k.replace('_raw', '').replace('weight_hh', 'module.weight_hh'): torch.full_like(v, 7.)
                     for k,v in sd.items() if k.endswith('_raw')}}

@pytest.mark.parametrize('cfg', [{}, dict(tie_weights=False, n_layers=3), dict(out_bias=False)], ids=str)
@pytest.mark.parametrize('names', [lambda sd: sd, raw_and_module, lambda sd: dict(reversed(sd.items()))],
                         ids=['raw', 'raw_and_module', 'other_order'])
@pytest.mark.parametrize('legacy', [False, True])
def test_fastai_weights_give_the_same_outputs(make, cfg, names, legacy):
    ours,theirs = make(config=cfg),make(ft, config=cfg)
    file = theirs.path/theirs.model_dir/'theirs.pth'
    file.parent.mkdir(exist_ok=True)
    torch.save(names(theirs.model.state_dict()), file, _use_new_zipfile_serialization=not legacy)
    ours.load('theirs')
    same_outputs(ours, theirs, rtol=1e-5, atol=1e-5)

@pytest.mark.parametrize('fit', ['fit', 'fit_one_cycle'])
def test_fastai_saved_learner(make, fit):
    ours,theirs = make(),make(ft)
    quietly(theirs, fit, 1, 1e-2)
    theirs.save('theirs')
    ours.load('theirs')
    same_outputs(ours, theirs, rtol=1e-5, atol=1e-5)

@pytest.mark.parametrize('n_layers', [1, 3])
def test_fastai_optimizer_state_goes_on(make, n_layers):
    "fastai's file has the recurrent matrix first, our layer has it second: each must get its own averages."
    ours,theirs = make(config=dict(n_layers=n_layers)),make(ft, config=dict(n_layers=n_layers))
    quietly(theirs, 'fit', 1, 1e-2)
    theirs.save('theirs')
    ours.load('theirs')
    def averages(learn):
        return {n.replace('.module', '').replace('_raw', ''): learn.opt.state[p]['grad_avg']
                for n,p in learn.model.named_parameters()}
    assert_close(averages(ours), averages(theirs), **EXACT)   # first, as a misfit would crash the step
    for l in (ours, theirs): quietly(l, 'fit', 1, 1e-2, reset_opt=False)
    same_outputs(ours, theirs, rtol=1e-4, atol=1e-4)

def test_fastai_encoder(make):
    ours,theirs = make(config=dict(tie_weights=False)),make(ft, config=dict(tie_weights=False))
    (theirs.path/theirs.model_dir).mkdir(exist_ok=True)
    theirs.save_encoder('enc')
    ours.load_encoder('enc')
    ids = torch.randint(20, (3, 8))
    theirs.model.reset()
    assert_close(ours.model[0].eval()(ids)[0], theirs.model[0].eval()(ids), rtol=1e-5, atol=1e-5)

def test_encoder_goes_to_a_classifier_as_in_fastai(make, tmp_path):
    df = pd.DataFrame({'text': [f'one two three {w}' for w in WORDS]*3, 'label': list('ab')*15})
    cfg = dict(emb_sz=6, n_hid=9, n_layers=2)
    (tmp_path/'models').mkdir(exist_ok=True)
    lm = make(ft)
    lm.save_encoder('theirs')
    ours_lm = make()
    rf.load_weights(ours_lm.model, lm.model.state_dict())
    ours_lm.save_encoder('ours')
    encs = []
    for m,name in ((rf, 'ours'), (rf, 'theirs'), (ft, 'theirs')):
        dls = m.TextDataLoaders.from_df(df, text_vocab=list(lm.dls.vocab), bs=4, device='cpu', seed=1)
        learn = m.text_classifier_learner(dls, m.AWD_LSTM, config=cfg, pretrained=False, path=tmp_path)
        learn.load_encoder(name)
        free = {canonical_name(n): p.requires_grad for n,p in learn.model.named_parameters()}
        encs.append((canonical_names(learn.model[0].module.state_dict()), free))
    for sd,grads in encs[:2]:
        assert_close(sd, encs[2][0], **EXACT)
        assert grads == encs[2][1] and not all(grads.values())

# ---- damaged, ill-fitting and hostile files

@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
def test_cut_short(make, legacy):
    learn = make()
    before,file = weights(learn),learn.save('a.pth', with_opt=False)
    torch.save(torch.load(file), file, _use_new_zipfile_serialization=not legacy)
    data = file.read_bytes()
    lengths = {0, 1, 2, 3, *range(4, 400, 7), len(data)//4, len(data)//2, len(data)-100, len(data)-1}
    odd = []
    for n in sorted(lengths):
        file.write_bytes(data[:n])
        try: learn.load('a')
        except ValueError as e: assert str(file) in str(e) and 'damaged' in str(e)
        except Exception as e: odd.append((n, repr(e)))
        else: odd.append((n, 'was loaded'))
    assert_close(weights(learn), before, **EXACT)
    assert not odd

def test_not_a_file_of_weights(make):
    learn = make()
    with pytest.raises(FileNotFoundError, match='no file'): learn.load('nothing')
    learn.save('other')
    with pytest.raises(FileNotFoundError, match='other.safetensors'): learn.load('nothing')
    for content in (b'just text\n', b'\x00'*1000, b'PK\x03\x04 is how zip files start'):
        (learn.path/learn.model_dir/'odd.pth').write_bytes(content)
        with pytest.raises(ValueError, match='odd.pth'): learn.load('odd')

@pytest.mark.parametrize('cfg,words', [
    (dict(emb_sz=7), ['0.encoder.weight', '6) there', '7) here', '0.rnns.0.weight_ih_l0']),
    (dict(n_hid=10), ['0.rnns.0.weight_hh_l0: (36, 9) there, (40, 10) here']),
    (dict(n_layers=3), ['0.rnns.2.weight_ih_l0: missing there']),
    (dict(n_layers=1), ['0.rnns.1.weight_ih_l0: not in this model']),
    (dict(out_bias=False), ['1.decoder.bias: not in this model'])], ids=str)
@pytest.mark.parametrize('with_opt', [False, True])
def test_shapes_that_do_not_fit(make, cfg, words, with_opt):
    a,b = make(),make(config=cfg)
    if with_opt: a.create_opt()
    a.save('a', with_opt=with_opt)
    before = weights(b)
    with pytest.raises(ValueError) as e: b.load('a')
    assert all(w in str(e.value) for w in [*words, 'a.safetensors']), str(e.value)
    assert_close(weights(b), before, **EXACT)

def test_not_strict_takes_what_fits_by_name(make):
    a,b = make(),make(config=dict(n_layers=1))
    a.save('a', with_opt=False)
    own = weights(b)
    wgts = {k: v for k,v in rf.read_weights(a.path/a.model_dir/'a.safetensors').items() if not k.startswith('0.rnns.')}
    rf.write_weights(a.path/a.model_dir/'part.pth', wgts)
    with pytest.raises(ValueError, match='missing there'): b.load('part')
    b.load('part', strict=False)
    assert_close(weights(b), {**own, **canonical_names(wgts)}, **EXACT)

@pytest.mark.parametrize('as_state', [lambda c: c, lambda c: {'0.encoder.weight': c},
                                      lambda c: {'model': {}, 'opt': [c]},
                                      lambda c: {'model': {'x': torch.ones(2)}, 'opt': {'hypers': c}}])
@pytest.mark.parametrize('save', [torch.save, partial(torch.save, _use_new_zipfile_serialization=False),
                                  lambda o, f: f.write_bytes(pickle.dumps(o))], ids=['zip', 'legacy', 'pickle'])
def test_code_is_refused_and_not_run(make, tmp_path, as_state, save):
    learn,mark = make(),tmp_path/'it_ran'
    folder = learn.path/learn.model_dir
    folder.mkdir(exist_ok=True)
    for name in ('bad.pth', 'vocab.pkl'): save(as_state(Code(mark)), folder/name)
    torch.save({}, folder/'fine.pth')
    before = weights(learn)
    for load in (lambda: learn.load('bad'), lambda: learn.load_encoder('bad'),
                 lambda: learn.load_pretrained(folder/'bad.pth', folder/'vocab.pkl'),
                 lambda: learn.load_pretrained(folder/'fine.pth', folder/'vocab.pkl'),
                 lambda: rf.read_weights(folder/'bad.pth'), lambda: rf.read_vocab(folder/'vocab.pkl')):
        with pytest.raises(ValueError) as e: load()
        assert 'bad.pth' in str(e.value) or 'vocab.pkl' in str(e.value)
    assert not mark.exists()
    assert_close(weights(learn), before, **EXACT)
    if save is not torch.save: return
    torch.load(folder/'bad.pth', weights_only=False)
    assert mark.exists()   # the file would have run it

@pytest.mark.parametrize('vocab', [{'a': 1}, ['a', 2], 'abc', None, [['a']]], ids=str)
@pytest.mark.parametrize('ext', ['pkl', 'json'])
def test_vocabulary_must_be_strings(tmp_path, vocab, ext):
    file = tmp_path/f'v.{ext}'
    if ext == 'pkl': file.write_bytes(pickle.dumps(vocab))
    else: file.write_text(json.dumps(vocab))
    with pytest.raises(ValueError, match=f'v.{ext}'): rf.read_vocab(file)

@pytest.mark.parametrize('cut', [0, 1, 5, 20, -1])
@pytest.mark.parametrize('ext', ['pkl', 'json'])
def test_vocabulary_round_trip_and_cut_short(tmp_path, ext, cut):
    file,vocab = tmp_path/f'v.{ext}',['xxunk', 'Straße', 'two words']
    data = pickle.dumps(vocab) if ext == 'pkl' else json.dumps(vocab).encode()
    file.write_bytes(data)
    assert rf.read_vocab(file) == vocab
    file.write_bytes(data[:cut])
    with pytest.raises(ValueError, match=f'v.{ext}'): rf.read_vocab(file)

@pytest.mark.parametrize('err', [KeyboardInterrupt, OSError('no space left on device')], ids=['interrupt', 'disk'])
def test_interrupted_write_leaves_the_old_file(make, monkeypatch, err):
    learn,other = make(),make()
    file = learn.save('a.pth')
    old = file.read_bytes()
    def half(state, f, *args, **kwargs):
        (f if hasattr(f, 'write') else open(f, 'wb')).write(old[:len(old)//2])   # noqa: SIM115 (it is left open)
        raise err
    with monkeypatch.context() as m:
        m.setattr(torch, 'save', half)
        with pytest.raises(err if isinstance(err, type) else OSError): other.save('a.pth')
        with pytest.raises(err if isinstance(err, type) else OSError): other.save_encoder('new.pth')
    assert file.read_bytes() == old
    assert sorted(p.name for p in file.parent.iterdir()) == ['a.pth']   # no half file lies about
    assert_close(weights(other.load('a')), weights(learn), **EXACT)

# ---- pretrained archives

@pytest.fixture()
def server(tmp_path, monkeypatch):
    "A server of the files in `server.folder`; fastai's home is an empty folder meanwhile."
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path/'home'))
    fastai_cfg.cache_clear()   # it remembers the first home that it saw
    folder = tmp_path/'served'
    folder.mkdir()
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): asked.append(self.path)
    asked = []
    s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(folder)))
    s.folder,s.home,s.asked,s.url = folder,tmp_path/'home',asked,f'http://127.0.0.1:{s.server_port}'
    thread = threading.Thread(target=s.serve_forever, kwargs=dict(poll_interval=0.01))
    thread.start()
    yield s
    s.shutdown()
    thread.join()
    s.server_close()
    fastai_cfg.cache_clear()

def write_archive(file, **members):
    with tarfile.open(file, 'w:gz') as tar:
        for name,data in members.items():
            info = tarfile.TarInfo(f"{file.stem}/{name.replace('_', '.')}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

@pytest.fixture()
def pretrained(make):
    "fastai's weights and vocabulary as the bytes of two files; the vocabulary is not the loaders'."
    theirs = make(ft)
    rng = np.random.default_rng(1)
    vocab = [*list(theirs.dls.vocab)[:14], *(f'other{i}' for i in range(30))]
    order = rng.permutation(len(vocab))
    vocab = [vocab[i] for i in order]
    model = ft.get_language_model(ft.AWD_LSTM, len(vocab), CONFIG)
    for p in model.parameters(): p.data.normal_(0, 0.5)
    buf = io.BytesIO()
    torch.save(model.state_dict(), buf, _use_new_zipfile_serialization=False)   # as the published archive is
    return buf.getvalue(),pickle.dumps(vocab)

@pytest.mark.parametrize('backwards', [False, True])
def test_pretrained_learner_equals_fastai(loaders, make, server, pretrained, monkeypatch, tmp_path, backwards):
    write_archive(server.folder/'wt.tgz', a_pth=pretrained[0], b_pkl=pretrained[1])
    arch,facts = rf.archs.get('AWD_LSTM'),rf.archs.facts('AWD_LSTM')
    facts['url_bwd' if backwards else 'url'] = f'{server.url}/wt.tgz'
    facts['url' if backwards else 'url_bwd'] = f'{server.url}/absent.tgz'
    monkeypatch.setitem(rf.archs._items, 'AWD_LSTM', (arch, facts))
    learn = rf.language_model_learner(loaders[rf], 'AWD_LSTM', CONFIG, path=tmp_path, backwards=backwards)
    for name,data in zip(('w.pth', 'v.pkl'), pretrained, strict=True): (tmp_path/name).write_bytes(data)
    theirs = make(ft).load_pretrained(tmp_path/'w.pth', tmp_path/'v.pkl')
    same_outputs(learn, theirs, rtol=1e-5, atol=1e-5)
    frozen = [p.requires_grad for p in learn.model.parameters()]
    assert any(frozen) and not all(frozen)
    assert learn.model[1].decoder.weight is learn.model[0].encoder.weight
    n = len(server.asked)
    rf.language_model_learner(loaders[rf], 'AWD_LSTM', CONFIG, path=tmp_path, backwards=backwards)
    assert len(server.asked) == n   # it is there now
    (tmp_path/'models').mkdir(exist_ok=True)
    for name in ('w.pth', 'v.pkl'): shutil.copy(tmp_path/name, tmp_path/'models'/name)
    named = rf.language_model_learner(loaders[rf], 'AWD_LSTM', CONFIG, path=tmp_path, pretrained_fnames=('w', 'v'))
    assert_close(weights(named), weights(learn), **EXACT)

def failure(url):
    with pytest.raises(RuntimeError) as e: rf.fetch_pretrained(url)
    return str(e.value)

@pytest.mark.parametrize('down', [False, True], ids=['404', 'no_server'])
def test_archive_that_cannot_be_had(server, down):
    url = 'http://127.0.0.1:1/gone.tgz' if down else f'{server.url}/gone.tgz'
    said = failure(url)
    assert all(w in said for w in (url, str(server.home/'models'/'gone'), 'pretrained=False')), said
    assert down or '404' in said
    assert not (server.home/'models'/'gone').exists() and not (server.home/'archive'/'gone.tgz').exists()
    if down: return
    write_archive(server.folder/'gone.tgz', a_pth=b'w', b_pkl=b'v')   # and once it is there, it is had
    assert [f.read_bytes() for f in rf.fetch_pretrained(url)] == [b'w', b'v']

def test_unreachable_weights_leave_no_learner(loaders, server, monkeypatch, tmp_path):
    facts = {**rf.archs.facts('AWD_LSTM'), 'url': f'{server.url}/gone.tgz'}
    monkeypatch.setitem(rf.archs._items, 'AWD_LSTM', (rf.AWD_LSTM, facts))
    make = partial(rf.language_model_learner, loaders[rf], rf.AWD_LSTM, CONFIG, path=tmp_path)
    with pytest.raises(RuntimeError, match='pretrained=False'): make()
    assert make(pretrained=False)

@pytest.mark.parametrize('members', [dict(a_pth=b'w'), dict(b_pkl=b'v'), dict(readme_txt=b'r')], ids=','.join)
def test_incomplete_archive(server, members):
    write_archive(server.folder/'part.tgz', **members)
    said = failure(f'{server.url}/part.tgz')
    folder = str(server.home/'models'/'part')
    assert all(w in said for w in ('part.tgz', folder, 'incomplete', 'pretrained=False')), said

def test_remedy_for_an_incomplete_archive(server):
    write_archive(server.folder/'part.tgz', a_pth=b'w')
    assert 'Delete the folder to download again' in failure(f'{server.url}/part.tgz')
    write_archive(server.folder/'part.tgz', a_pth=b'w', b_pkl=b'v')
    shutil.rmtree(server.home/'models'/'part')
    assert len(rf.fetch_pretrained(f'{server.url}/part.tgz')) == 2

def test_damaged_archive(server):
    write_archive(server.folder/'cut.tgz', a_pth=os.urandom(9000), b_pkl=b'v')
    (server.folder/'cut.tgz').write_bytes((server.folder/'cut.tgz').read_bytes()[:4000])
    said = failure(f'{server.url}/cut.tgz')
    assert all(w in said for w in (f'{server.url}/cut.tgz', str(server.home/'models'/'cut'), 'pretrained=False')), said
    assert not (server.home/'models'/'cut').exists()

def test_damaged_archive_is_not_used_again(server):
    test_damaged_archive(server)
    write_archive(server.folder/'cut.tgz', a_pth=b'w', b_pkl=b'v')
    assert len(rf.fetch_pretrained(f'{server.url}/cut.tgz')) == 2
