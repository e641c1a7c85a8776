"Files of weights and optimizers: safetensors and `.pth`, damaged, hostile, half written, and as fastai's callbacks use them."
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import zipfile
from functools import partial

import pandas as pd
import pytest
import safetensors.torch
import torch
from fastai.text import all as ft

import rnn_fastai.all as rf
from rnn_fastai.files import FilePart
from rnn_fastai.learner.tensors import TensorFile, tensor_bytes
from rnn_fastai.learner.weights import opt_file

ROWS = pd.DataFrame({'text': ['one two three four', 'four three two', 'two two one']*24, 'held': [False, True]*36})
SMALL = dict(emb_sz=8, n_hid=12, n_layers=1, output_p=0., hidden_p=0., input_p=0., embed_p=0., weight_p=0.)

@pytest.fixture(scope='module')
def dls(): return rf.TextDataLoaders.from_df(ROWS, text_col='text', is_lm=True, valid_col='held', bs=4, seq_len=5, device='cpu', shuffle=False)

@pytest.fixture
def make(dls, tmp_path):
    def one(seed=0, **kwargs):
        torch.manual_seed(seed)
        learn = rf.language_model_learner(dls, 'AWD_LSTM', SMALL, pretrained=False, path=tmp_path, **kwargs)
        return learn
    one.folder = tmp_path/'models'
    return one

def fit(learn, n=1, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, 1e-2, **kwargs)
    return learn

def weights(learn): return {k: v.clone() for k,v in learn.model.state_dict().items()}
def same(a, b): return all(torch.equal(v, b[k]) for k,v in a.items())
def names(folder): return sorted(os.listdir(folder))

# ---- which file

def test_names_and_suffixes(make):
    a,b = fit(make()),make(1)
    assert a.save('a') == make.folder/'a.safetensors' and names(make.folder) == ['a.opt.safetensors', 'a.safetensors']
    assert a.save('a.b') == make.folder/'a.b.safetensors' and b.load('a.b') is b
    assert b.save('a.pth') == make.folder/'a.pth' and b.save('sub/c').parent == make.folder/'sub'
    assert not same(weights(a), weights(b.load('a.pth', with_opt=False))) or same(weights(a), weights(b))
    for what in ('a', 'a.safetensors', make.folder/'a.safetensors', str(make.folder/'a')):
        assert same(weights(make(2).load(what)), weights(a))

def test_safetensors_come_first_and_a_pth_is_found(make):
    a,b = make(0),make(1)
    b.save('x.pth')
    assert same(weights(make(2).load('x')), weights(b))
    a.save('x')
    assert same(weights(make(2).load('x')), weights(a)) and same(weights(make(2).load('x.pth')), weights(b))

def test_other_tools_read_the_weights(make):
    a = make()
    state = safetensors.torch.load_file(a.save('a'))
    assert set(a.model.state_dict()) - set(state) == {'1.decoder.weight'}   # tied
    assert all(torch.equal(v, a.model.state_dict()[k]) for k,v in state.items())
    state['1.decoder.weight'] = state['0.encoder.weight'].clone()
    safetensors.torch.save_file(state, make.folder/'theirs.safetensors')   # and we read theirs
    assert same(weights(make(1).load('theirs')), weights(a))

# ---- fastai's callbacks

@pytest.mark.parametrize('fname', ['model', 'model.pth'])
@pytest.mark.parametrize('with_opt', [False, True])
def test_save_model_callback(make, fname, with_opt):
    kept = {}
    class Keep(ft.Callback):
        order = 80   # after SaveModelCallback
        def after_epoch(self): kept[self.learn.recorder.values[-1][1]] = weights(self.learn)
    learn = fit(make(), 4, cbs=[ft.SaveModelCallback(fname=fname, with_opt=with_opt), Keep()])
    assert same(weights(learn), kept[min(kept)])
    suffix = 'pth' if fname.endswith('pth') else 'safetensors'
    assert (make.folder/f'model.{suffix}').exists()
    assert (make.folder/'model.opt.safetensors').exists() == (with_opt and suffix != 'pth')
    fit(learn, 2, cbs=ft.SaveModelCallback(fname=fname, reset_on_fit=False))

def test_save_model_callback_every_epoch_and_at_end(make):
    learn = make()
    fit(learn, 3, cbs=ft.SaveModelCallback(every_epoch=True, with_opt=True))
    assert [n for n in names(make.folder) if 'opt' not in n] == [f'model_{i}.safetensors' for i in range(3)]
    assert same(weights(make(1).load('model_2', with_opt=True)), weights(learn))
    cb = ft.SaveModelCallback(fname='end', at_end=True)
    fit(learn, 2, cbs=cb)
    assert cb.last_saved_path == make.folder/'end.safetensors' and same(weights(make(1).load('end')), weights(learn))

def test_lr_find_leaves_weights_optimizer_and_folder_as_they_were(make):
    learn = fit(make())
    before,opt = weights(learn),[v.clone() for s in learn.opt.state_dict()['state'] for v in s.values() if torch.is_tensor(v)]
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=6, show_plot=False, suggest_funcs=None)
    assert same(weights(learn), before) and names(make.folder) == []
    after = [v for s in learn.opt.state_dict()['state'] for v in s.values() if torch.is_tensor(v)]
    assert len(opt) == len(after) and all(map(torch.equal, opt, after))
    assert learn.save('a').suffix == '.safetensors'

def test_a_callback_that_looks_for_a_pth_gets_one(make):
    class CometCallback(ft.Callback): pass   # fastai's logs `<name>.pth` of `SaveModelCallback`
    make.folder.mkdir()
    (make.folder/'model.safetensors').write_text('of before')
    learn = fit(make(), 2, cbs=[CometCallback(), ft.SaveModelCallback()])
    assert (make.folder/'model.pth').exists() and same(weights(make(1).load('model.pth')), weights(learn))

def test_fastai_reads_a_pth_and_says_that_it_reads_no_safetensors(make, dls):
    a = fit(make())
    a.save('a.pth'), a.save('b')
    model = ft.get_language_model(ft.AWD_LSTM, len(dls.vocab), {**ft.awd_lstm_lm_config, **SMALL})
    theirs = ft.LMLearner(dls, model, loss_func=ft.CrossEntropyLossFlat(), path=a.path)
    theirs.load('a', with_opt=False)
    assert torch.equal(theirs.model[0].encoder.weight, a.model[0].encoder.weight)
    with pytest.raises(FileNotFoundError): theirs.load('b')

# ---- optimizers

@pytest.mark.parametrize('opt_func', [rf.Adam, ft.Adam, partial(ft.Lamb, wd=.1), partial(ft.RMSProp, mom=.9),
                                      partial(rf.OptimWrapper, opt=torch.optim.AdamW), partial(rf.OptimWrapper, opt=torch.optim.SGD)])
def test_optimizers_go_on_where_they_were(make, opt_func):
    a,b = fit(make(opt_func=opt_func)),make(1, opt_func=opt_func)
    a.save('a')
    b.load('a', with_opt=True)
    for l in (a, b): fit(l, reset_opt=False)
    assert same(weights(a), weights(b))

def test_an_optimizer_that_keeps_more_starts_that_afresh(make):
    "fastai's `Lookahead` keeps a copy of the weights besides the state of its steps; it goes on from those loaded."
    a,b = fit(make(opt_func=ft.ranger)),make(1, opt_func=ft.ranger)
    for name in ('a', 'a.pth'):
        a.save(name)
        b.load(name, with_opt=True)
        assert same(weights(a), weights(b)) and b.opt.count == 0 and b.opt.slow_weights is None
        fit(b, reset_opt=False)
    with a.no_bar(), a.no_logging(): a.lr_find(num_it=6, show_plot=False, suggest_funcs=None)
    assert same(weights(a), weights(make(2, opt_func=ft.ranger).load('a')))

def test_an_optimizer_of_other_weights_is_not_loaded(make):
    "As a process leaves it that was killed between writing the two files."
    a,b = fit(make(0)),fit(make(1))
    a.save('a')
    old = opt_file(make.folder/'a.safetensors').read_bytes()
    b.save('a')
    opt_file(make.folder/'a.safetensors').write_bytes(old)
    c = make(2)
    with pytest.raises(ValueError, match='a.opt.safetensors belongs to other weights'): c.load('a', with_opt=True)
    with pytest.warns(UserWarning, match='is not loaded, only the weights. .*belongs to other weights'): c.load('a')
    assert same(weights(c), weights(b))

def test_frozen_layers_and_groups(make):
    a,b = make(0),make(1)
    a.freeze_to(-1)
    fit(a)
    a.save('a')
    b.freeze_to(-1)
    b.load('a', with_opt=True)
    for l in (a, b): fit(l, reset_opt=False)
    assert same(weights(a), weights(b))

loop = {}
loop['a'] = loop
P = torch.ones(8)
BAD_STATES = {
    'none': None, 'number': 3, 'text': 'x', 'empty': {}, 'list': [], 'no lists': {'state': 3, 'hypers': 4},
    'no hypers': {'state': [], 'hypers': []}, 'state of numbers': lambda s: {**s, 'state': [3]*len(s['state'])},
    'hypers of numbers': lambda s: {**s, 'hypers': [3]*len(s['hypers'])}, 'more': lambda s: {**s, 'state': s['state']*2},
    'text in state': lambda s: {**s, 'state': [{'grad_avg': 'x'}]*len(s['state'])},
    'list in state': lambda s: {**s, 'state': [{'grad_avg': [1]}]*len(s['state'])},
    'loop': lambda s: {**s, 'state': [loop]*len(s['state'])}, 'loop in hypers': lambda s: {**s, 'hypers': [dict(h, lr=loop) for h in s['hypers']]},
    'huge': lambda s: {**s, 'state': [{'grad_avg': P[:1, None].expand(2*10**5, 2*10**5)}]*len(s['state'])},
    'complex': lambda s: {**s, 'state': [{'grad_avg': torch.tensor(float('nan')*1j)}]*len(s['state'])},
    'sparse': lambda s: {**s, 'state': [{k: v.to_sparse() if torch.is_tensor(v) and v.dim() else v for k,v in d.items()} for d in s['state']]},
    'lr text': lambda s: {**s, 'hypers': [dict(h, lr='x') for h in s['hypers']]},
    'lr list': lambda s: {**s, 'hypers': [dict(h, lr=[1]) for h in s['hypers']]},
    'lr none': lambda s: {**s, 'hypers': [dict(h, lr=None) for h in s['hypers']]},
    'lr nan': lambda s: {**s, 'hypers': [dict(h, lr=float('nan')) for h in s['hypers']]},
    'other names': lambda s: {**s, 'hypers': [{1: 2, 'a': 3} for h in s['hypers']]},
    'param_groups': {'param_groups': 3, 'state': 4}, 'group of none': {'param_groups': [None], 'state': {}},
    'params none': {'param_groups': [{'params': None}], 'state': {}}, 'params lists': {'param_groups': [{'params': [[1]]}], 'state': {}},
    'state none': {'param_groups': [{'params': [1]}], 'state': None},
}

@pytest.mark.filterwarnings('ignore:Sparse')
@pytest.mark.parametrize('bad', BAD_STATES.values(), ids=BAD_STATES)
def test_broken_optimizer_states(make, bad):
    "A named error where the state must be loaded, else a warning, and the weights are loaded all the same."
    a = fit(make())
    file = a.save('a.pth')
    state = torch.load(file, weights_only=False)
    torch.save({**state, 'opt': bad(state['opt']) if callable(bad) else bad}, file)
    b = make(1)
    with pytest.raises(ValueError, match='optimizer'): b.load('a', with_opt=True)
    with pytest.warns(UserWarning, match="optimizer's state is not loaded"): b.load('a')
    assert same(weights(b), weights(a))
    fit(b, reset_opt=False)

@pytest.mark.parametrize('change', [dict(state=3), dict(state={}), dict(state={'x': 3}), dict(hypers=[]), dict(hypers={'$tensor': 'none'}),
                                    dict(hypers=[{'$tensor': []}]), dict(hypers=3), dict(state={'0.encoder.weight': {'grad_avg': {'$tensor': {'a': 1}}}})])
def test_broken_optimizer_files(make, change):
    a = fit(make())
    a.save('a')
    f = TensorFile(FilePart.whole(make.folder/'a.opt.safetensors'))
    (make.folder/'a.opt.safetensors').write_bytes(tensor_bytes(f.tensors(), {**f.notes, **change}))
    b = make(1)
    with pytest.raises(ValueError): b.load('a', with_opt=True)
    with pytest.warns(UserWarning, match="optimizer's state is not loaded"): b.load('a')
    fit(b, reset_opt=False)

# ---- damaged

@pytest.mark.parametrize('name', ['a.safetensors', 'a.pth', 'a.opt.safetensors'])
def test_changed_bytes(make, name):
    "300 times some bytes are changed: the file is refused by name, or (zip of torch's) the bytes mean nothing."
    a,b = fit(make()),make(1)
    a.save('a.pth' if name == 'a.pth' else 'a')
    file,rng = make.folder/name,random.Random(0)
    data,loaded,want = file.read_bytes(),0,weights(a)
    for _ in range(300):
        changed = bytearray(data)
        for at in rng.sample(range(len(data)), rng.randint(1, 4)): changed[at] ^= rng.randint(1, 255)
        file.write_bytes(changed)
        before = weights(b)
        try: b.load(name if name == 'a.pth' else 'a', with_opt=True)
        except ValueError as e:
            assert name in str(e) and same(weights(b), before), e
        else:
            loaded += 1
            assert same(weights(b), want)
    assert loaded == 0 or name == 'a.pth'

@pytest.mark.parametrize('kind', ['a', 'a.pth'])
def test_cut_short(make, kind):
    a = fit(make())
    file = a.save(kind)
    data = file.read_bytes()
    for n in {0, 1, 7, 8, 9, 100, len(data)//2, len(data)-1}:
        file.write_bytes(data[:n])
        with pytest.raises(ValueError, match=file.name): make(1).load(file)

@pytest.mark.parametrize('change, said', [
    (lambda w: w.long(), "holds numbers of torch.int64, and the model's are torch.float32"), (lambda w: w > 0, 'torch.bool'),
    (lambda w: w.to(torch.complex64), 'torch.complex64'), (lambda w: w*float('nan'), 'not finite'),
    (lambda w: w + float('inf'), 'not finite'), (lambda w: w[1:], 'there')])
def test_safetensors_that_are_no_weights(make, change, said):
    a = make()
    state = {k: v for k,v in weights(a).items() if k != '1.decoder.weight'}
    state['0.rnns.0.bias_ih_l0'] = change(state['0.rnns.0.bias_ih_l0'])
    make.folder.mkdir(exist_ok=True)
    (make.folder/'a.safetensors').write_bytes(tensor_bytes({**state, '1.decoder.weight': state['0.encoder.weight']}))
    with pytest.raises(ValueError, match='a.safetensors') as e: a.load('a')
    assert said in str(e.value) and '0.rnns.0.bias_ih_l0' in str(e.value)

def test_a_compressed_pth_is_refused(make):
    file = make().save('a.pth')
    with zipfile.ZipFile(file) as z: parts = {i.filename: z.read(i) for i in z.infolist()}
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as z:
        for n,d in parts.items(): z.writestr(n, d)
    with pytest.raises(ValueError, match='a.pth, .* is damaged'): make(1).load('a')

def test_a_pickle_renamed_to_safetensors(make, tmp_path):
    class Code:
        def __reduce__(self): return os.mkdir,(str(tmp_path/'ran'),)
    make.folder.mkdir(exist_ok=True)
    torch.save({'w': Code()}, make.folder/'a.safetensors')
    for f in (make().load, make().load_encoder):
        with pytest.raises(ValueError, match='a.safetensors, .*not a file of tensors'): f('a')
    assert not (tmp_path/'ran').exists()

def test_a_killed_save_leaves_the_old_file_and_its_draft_is_swept(make):
    a = make()
    a.save('a')
    code = """
        import os, signal, sys, torch
        from pathlib import Path
        from rnn_fastai.learner.weights import write_weights
        write = Path.write_bytes
        def half(self, data):
            write(self, data[:len(data)//2])
            os.kill(os.getpid(), signal.SIGKILL)
        Path.write_bytes = half
        write_weights(sys.argv[1], {'w': torch.ones(99)})
    """
    p = subprocess.run([sys.executable, '-c', textwrap.dedent(code), str(make.folder/'a.safetensors')], env=dict(os.environ))
    assert p.returncode == -signal.SIGKILL and len(names(make.folder)) == 2
    assert same(weights(make(1).load('a')), weights(a))
    a.save('b')
    assert names(make.folder) == ['a.safetensors', 'b.safetensors']

# ---- encoders

@pytest.mark.parametrize('name', ['enc', 'enc.pth'])
def test_an_encoder_goes_to_another_vocabulary(make, name, tmp_path):
    a = make()
    a.save_encoder(name)
    vocab = [*list(a.dls.vocab)[:9], 'new', *reversed(list(a.dls.vocab)[9:])]
    other = rf.TextDataLoaders.from_df(ROWS, text_col='text', is_lm=True, valid_col='held', bs=4, seq_len=5, text_vocab=vocab)
    b = rf.language_model_learner(other, 'AWD_LSTM', SMALL, pretrained=False, path=tmp_path)
    with b.no_bar(): b.load_encoder(name)
    for w in {*a.dls.vocab} - {'xxfake'}: assert torch.equal(b.model[0].encoder.weight[vocab.index(w)], a.model[0].encoder.weight[a.dls.vocab.index(w)])

def test_an_encoder_and_another_vocabulary_are_refused(make):
    a = make()
    a.save_encoder('enc')
    file = make.folder/'enc.vocab.json'
    words = json.loads(file.read_text())
    file.write_text(json.dumps(words[:2] + words[:1:-1]))   # as many words
    with pytest.raises(ValueError, match='do not belong together'): a.load_encoder('enc')
    file.unlink()
    with pytest.raises(ValueError, match='has lost its vocabulary; put it at'): a.load_encoder('enc')

SENTS = pd.DataFrame({'tokens': [['the', 'dog', 'sleeps'], ['a', 'cat', 'ran', 'off']]*8,
                      'tags': [['DET', 'NOUN', 'VERB'], ['DET', 'NOUN', 'VERB', 'ADV']]*8})

@pytest.mark.parametrize('how', [dict(chars=False), dict(chars=True)])
@pytest.mark.parametrize('crf', [False, True])
@pytest.mark.parametrize('suffix', ['', '.pth'])
def test_a_taggers_encoder_comes_back(how, crf, suffix, tmp_path):
    "A tagger of cells wrote an encoder that it refused to read, as its embedding has another name."
    dls = rf.TagDataLoaders.from_df(SENTS, path=tmp_path, seed=1, bs=4, **how)
    a,b = (rf.tagger_learner(dls, n_hid=5, emb_sz=5, crf=crf) for _ in range(2))
    a.save_encoder('enc' + suffix)
    with b.no_bar(): b.load_encoder('enc' + suffix)
    assert same(a.model[0].state_dict(), b.model[0].state_dict()) and b.transfer.n_found == len(dls.vocab[0])

def test_a_taggers_encoder_goes_to_other_words_and_letters(tmp_path):
    dls = rf.TagDataLoaders.from_df(SENTS, path=tmp_path, seed=1, bs=4, min_freq=1, chars=True)
    more = pd.concat([SENTS, pd.DataFrame({'tokens': [['zoo', 'the', 'ran', 'zizz', 'zaz']]*9, 'tags': [['NOUN', 'DET', 'VERB', 'ADV', 'ADV']]*9})])
    other = rf.TagDataLoaders.from_df(more, path=tmp_path, seed=1, bs=4, min_freq=1, chars=True)
    a,b = (rf.tagger_learner(d, n_hid=5, emb_sz=5) for d in (dls, other))
    a.save_encoder('enc')
    with b.no_bar(): b.load_encoder('enc')
    def rows(learn): return learn.dls.vocab[0],learn.model[0].words.weight
    def letters(learn): return learn.dls.train_ds.chars.names,learn.model[0].chars.emb.weight
    for f in (rows, letters):
        (old,w),(new,v) = f(a),f(b)
        assert old != new and len(set(old) & set(new)) >= 3
        for n in {*new} - {'xxfake'}: assert torch.equal(v[new.index(n)], w[old.index(n)]) if n in old else torch.allclose(v[new.index(n)], w.mean(0))
