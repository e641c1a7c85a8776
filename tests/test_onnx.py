"Exported learners beside the originals: all kinds, lengths and batches; a process without torch; bad input."
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rnn_fastai import all as rf
from rnn_fastai.models.cells import cells
from rnn_fastai.models.recurrent import Recurrent
from rnn_fastai.models.state import map_state
from rnn_fastai.models.tagger import CharEncoder
from rnn_fastai.ship import facts as facts_module
from rnn_fastai.ship import graph as graph_module
from rnn_fastai.ship import onnx as onnx_module
from rnn_fastai.ship.codec import make_cutter
from rnn_fastai.ship.graph import Graph, add_recurrent
from rnn_fastai.ship.onnx import export_onnx, net_parts
from rnn_fastai.ship.onnx_model import OnnxModel
from rnn_fastai.ship.parts import tokenizer_facts

LENGTHS,BATCHES = (1, 2, 17, 300, 2000),(1, 3, 64)
CONFIG = dict(emb_sz=8, n_hid=12, n_layers=2)
CLOSE = dict(rtol=0, atol=1e-4)
pytestmark = pytest.mark.usefixtures('one_thread')

# ---- Learners, small and hardly trained, with weights large enough that answers differ

def widen(learn, by=3.):
    "Larger recurrent weights and heads, so that states and answers vary."
    torch.manual_seed(1)
    for p in learn.model.parameters(): p.data.mul_(by).add_(torch.randn_like(p)*0.1)
    for m in learn.model.modules():
        if isinstance(m, nn.BatchNorm1d): m.running_mean.normal_(); m.running_var.uniform_(0.5, 2)
    return learn

WORDS = 'one two three four five six seven eight nine ten'.split()

def texts(n, seed=0):
    rng = np.random.default_rng(seed)
    return [' '.join(rng.choice(WORDS, rng.integers(1, 30))) for _ in range(n)]

@cache
def lm(arch='AWD_LSTM', tok='chars', backwards=False, by=3.):
    tfm = {'chars': rf.CharTokenizer, 'subwords': lambda: rf.ByteLevelTokenizer(300), 'words': lambda: None}[tok]()
    dls = rf.TextDataLoaders.from_df(pd.DataFrame(dict(text=texts(80))), is_lm=True, text_col='text', tok_tfm=tfm,
                                     seq_len=8, bs=4, seed=0, backwards=backwards)
    return widen(rf.language_model_learner(dls, arch, config=CONFIG, pretrained=False), by)

@cache
def classifier(labels='one', arch='AWD_LSTM', backwards=False, max_len=72*20, **config):
    df = pd.DataFrame(dict(text=texts(80), one=['a', 'b', 'c', 'b']*20, many=['a', 'a b', '', 'b c']*20,
                           number=np.linspace(-1, 2, 80)))
    args = {'one': {}, 'many': dict(label_delim=' '), 'number': dict(y_block=rf.RegressionBlock())}[labels]
    dls = rf.TextDataLoaders.from_df(df, text_col='text', label_col=labels, tok_tfm=rf.CharTokenizer(), bs=4, seed=0,
                                     backwards=backwards, **args)
    return widen(rf.text_classifier_learner(dls, arch, seq_len=16, config=dict(CONFIG, **config), pretrained=False,
                                            max_len=max_len, y_range=(-2, 3) if labels == 'number' else None))

def sentences(n, seed=0):
    rng = np.random.default_rng(seed)
    return [list(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(n)]

@cache
def tagger(arch='LSTM', chars=True, crf=True, tok=str.lower, letters='LSTM', shape_emb=0, **config):
    sents = [list(map(str, s)) for s in sentences(60)]
    df = pd.DataFrame(dict(tokens=sents, tags=[[f'T{len(w)}' for w in s] for s in sents]))
    dls = rf.TagDataLoaders.from_df(df, tok=tok, chars=chars, min_freq=1, bs=8, seed=0)
    if config: return widen(rf.tagger_learner(dls, arch, config=dict(CONFIG, **config), crf=crf), 2.)
    return widen(rf.tagger_learner(dls, arch, emb_sz=8, n_hid=8, letter_emb=4, letter_hid=4, crf=crf, letters=letters,
                                   shape_emb=shape_emb), 2.)

@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    "From a learner to its exported model; each is exported once."
    made = {}
    def of(learn, **kwargs):
        key = id(learn),*kwargs.items()
        if key not in made: made[key] = OnnxModel(export_onnx(learn, tmp_path_factory.mktemp('onnx')/'m', **kwargs), 1)
        return made[key]
    return of

# ---- Layers

def check_layer(layer, bs, sl):
    "Outputs and last states of a layer in torch and in onnxruntime, from a state, for lengths at random."
    import onnxruntime
    g,x,lengths = Graph(),torch.randn(sl, bs, layer.input_size),torch.randint(1, sl+1, (bs,))
    start = map_state(lambda s: torch.rand_like(s)*0.5, layer.eval().zero_state(x))
    names = [f's{i}' for i in range(len(start))]
    out,last = add_recurrent(g, layer, 'x', 'lengths', names)
    outs = [f'y{i}' for i in range(len(start)+1)]
    for n,v in zip(outs, [out, *last], strict=True): g.rename(v, n)
    model = g.model({'x': ('FLOAT', ['sl', 'bs', layer.input_size]), 'lengths': ('INT64', ['bs'])}
                    | {n: ('FLOAT', [s.size(0), 'bs', s.size(2)]) for n,s in zip(names, start, strict=True)},
                    {n: ('FLOAT', [f'{n}_{i}' for i in range(3)]) for n in outs})
    feed = dict(x=x.numpy(), lengths=lengths.numpy(), **{n: s.numpy() for n,s in zip(names, start, strict=True)})
    got,*ends = map(torch.from_numpy, onnxruntime.InferenceSession(model.SerializeToString()).run(outs, feed))
    with torch.no_grad(): want,end = layer(x, start if len(start) > 1 else start[0], lengths)
    real = torch.arange(sl)[:, None] < lengths
    assert_close(got[real], want[real], **CLOSE)
    for a,b in zip(ends, end if isinstance(end, tuple) else (end,), strict=True): assert_close(a, b, **CLOSE)

@pytest.mark.parametrize('cell', ['LSTM', 'GRU', 'RNN'])
def test_layers(cell):
    torch.manual_seed(0)
    for bs,sl in ((1, 1), (3, 17)): check_layer(Recurrent(cell, 5, 7, num_layers=2, bidirectional=True), bs, sl)

def test_a_layer_by_a_scan():
    torch.manual_seed(0)
    check_layer(Recurrent('sLSTM', 5, 7), 3, 17)

@pytest.mark.slow
@pytest.mark.parametrize('cell', [c for c in cells if c not in ('LSTM', 'GRU', 'RNN')])
@pytest.mark.parametrize('kwargs', [dict(bidirectional=True), dict(bias=False)], ids=str)
def test_layers_of_all_cells(cell, kwargs):
    torch.manual_seed(0)
    check_layer(Recurrent(cell, 5, 7, **kwargs), 3, 300)

@pytest.mark.slow
@pytest.mark.parametrize('args', [('LSTM', dict(proj_size=3)), ('QRNN', dict(window=1)), ('GRU', dict(zoneout_p=0.4)),
                                  ('LSTM', dict(zoneout_p=(0.5, 0.1))), ('MogrifierLSTM', dict(rounds=0))], ids=str)
def test_layers_with_settings(args):
    torch.manual_seed(0)
    check_layer(Recurrent(args[0], 5, 7, num_layers=2, **args[1]), 3, 40)

def test_saturated_gates_stay_numbers():
    torch.manual_seed(0)
    layer = Recurrent('minLSTM', 5, 7)
    for p in layer.parameters(): p.data.mul_(300)
    check_layer(layer, 3, 9)

# ---- Language models: logits and greedy tokens

def lm_case(exported, learn, sl, bs):
    "Logits of random ids in torch and in one call of the graph."
    model,net = learn.model.eval(),exported(learn)._graphs[0]
    ids = torch.randint(2, len(learn.dls.vocab), (bs, sl), generator=torch.Generator().manual_seed(sl))
    with torch.no_grad(): out = model(ids)
    logits,carried = net.run(net.start(bs), ids.numpy(), np.full(bs, sl))
    return ids.numpy(),out.logits,torch.from_numpy(logits),out.state,carried

@pytest.mark.parametrize('sl', LENGTHS)
@pytest.mark.parametrize('bs', BATCHES)
@pytest.mark.parametrize('arch', ['AWD_LSTM', 'AWD_GRU'])
def test_language_model_agrees(exported, arch, sl, bs):
    _,want,got,state,carried = lm_case(exported, lm(arch), sl, bs)
    assert_close(got, want, **CLOSE)
    assert torch.equal(got.argmax(-1), want.argmax(-1))
    flat = []
    map_state(flat.append, state)
    for a,b in zip(carried.values(), flat, strict=True): assert_close(torch.from_numpy(a), b, **CLOSE)

def test_parts_and_skimming_give_the_same_state(exported):
    net = exported(lm())._graphs[0]
    ids,_,whole,_,carried = lm_case(exported, lm(), 300, 3)
    some,outs = net.start(3),[]
    for i in range(0, 300, 7):
        part = ids[:, i:i+7]
        logits,some = net.run(some, part, np.full(3, part.shape[1]))
        outs.append(logits)
    assert_close(torch.from_numpy(np.concatenate(outs, 1)), whole, **CLOSE)
    skimmed = net.skim(net.start(3), ids, np.full(3, 300))
    for k,v in carried.items():
        np.testing.assert_allclose(some[k], v, atol=1e-5)
        np.testing.assert_allclose(skimmed[k], v, atol=1e-5)

KINDS = [('AWD_LSTM', 'chars', False), ('AWD_LSTM', 'words', False), ('AWD_GRU', 'subwords', False),
         ('AWD_LSTM', 'words', True)]

@pytest.mark.parametrize('kind', KINDS, ids=str)
@pytest.mark.parametrize('kwargs', [dict(temperature=0), dict(seed=1), dict(seed=2, top_k=5, temperature=0.8, n=2),
                                    dict(seed=3, top_p=0.9, stop_tokens=['e'])], ids=str)
def test_generates_what_the_learner_writes(exported, kind, kwargs):
    learn = lm(*kind)
    if 'stop_tokens' in kwargs: kwargs = dict(kwargs, stop_tokens=[next(t for t in learn.dls.vocab if t.endswith('e'))])
    prompts = ['One two', '', 'three', 'six '*40, 'one']
    ours,theirs = (o.generate(prompts, 25, **kwargs) for o in (exported(learn), learn))
    assert [w.text for w in ours] == [w.text for w in theirs]
    assert [w.tokens for w in ours] == [w.tokens for w in theirs]
    assert [w.ended for w in ours] == [w.ended for w in theirs]
    for a,b in zip(ours, theirs, strict=True): assert_close(torch.tensor(a.logps), b.logps, **CLOSE)

@pytest.mark.parametrize('kind', KINDS, ids=str)
def test_scores_as_the_learner(exported, kind):
    some = [*texts(3), 'One', 'one two '*200]
    for a,b in zip(exported(lm(*kind)).score(some), lm(*kind).score(some), strict=True):
        assert a.tokens == b.tokens
        assert_close(torch.from_numpy(a.logps), b.logps, **CLOSE)

def test_long_prompts_in_parts(exported):
    prompts = ['one two '*n for n in (1, 100, 300)]
    ours,theirs = (o.generate(prompts, 5, temperature=0) for o in (exported(lm()), lm()))
    assert [w.text for w in ours] == [w.text for w in theirs]

@pytest.mark.slow
def test_other_cells_write_the_same_text(exported):
    for arch in ('AWD_QRNN', 'AWD_LayerNormLSTM'):
        learn = lm(arch, by=1.)   # with wider weights, steps of the second amplify rounding a thousand times
        ours,theirs = (o.generate(['one'], 30, temperature=0) for o in (exported(learn), learn))
        assert ours[0].text == theirs[0].text

def test_rnn_learner_of_a_language_model(exported):
    learn = widen(rf.rnn_learner(lm().dls, 'GRU', n_hid=12, num_layers=2))
    ours,theirs = (o.generate(['one', 'two'], 20, temperature=0) for o in (exported(learn), learn))
    assert [w.text for w in ours] == [w.text for w in theirs]

def test_tied_weights_are_written_once(tmp_path):
    export_onnx(lm(), tmp_path/'m')
    n = sum(p.numel() for p in lm().model.parameters())   # of tied weights, one
    assert (tmp_path/'m'/'model.onnx').stat().st_size < 4*n + 20_000

def test_half_precision_is_exported_in_single(tmp_path):
    learn = lm.__wrapped__()
    learn.model.half()
    got = OnnxModel(export_onnx(learn, tmp_path/'m')).score('one two')[0]
    assert np.isfinite(got.logps).all() and next(learn.model.parameters()).dtype == torch.float16
    learn.model.float()
    assert_close(torch.from_numpy(got.logps), learn.score('one two')[0].logps, **CLOSE)

# ---- Classifiers: logits and labels

CLASSIFIERS = [dict(), dict(bidir=True), dict(labels='many'), dict(labels='number'), dict(arch='AWD_GRU', max_len=20),
               dict(bidir=True, max_len=20), dict(max_len=None), dict(backwards=True)]

def probs_of(learn, docs):
    "The learner's probabilities of texts."
    return learn.get_preds(dl=learn.dls.test_dl(docs, bs=64))[0].as_subclass(torch.Tensor)

def documents(bs, sl):
    "Texts of at most `sl` characters with `xxbos`."
    rng = np.random.default_rng(sl)
    whole = ' '.join(rng.choice(WORDS, sl))
    return [whole[i:i+sl-1] if k == 0 else whole[i:i+rng.integers(sl)] for k,i in enumerate(rng.integers(0, sl, bs))]

@pytest.mark.parametrize('kind', CLASSIFIERS, ids=str)
@pytest.mark.parametrize('sl', LENGTHS)
def test_classifier_agrees(exported, kind, sl):
    learn = classifier(**kind)
    for bs in BATCHES if sl < 2000 else BATCHES[:2]:
        docs = documents(bs, sl)
        ours,want = exported(learn).classify(docs, part=64),probs_of(learn, docs)
        values = kind.get('labels') == 'number'
        got = torch.tensor([o.label if values else list(o.probs.values()) for o in ours])
        assert_close(got, want, **CLOSE)
        assert values or got.argmax(1).equal(want.argmax(1))

def test_labels_are_those_of_predict(exported):
    docs = documents(4, 40)
    for kind in (dict(), dict(labels='many'), dict(labels='number')):
        for ours,doc in zip(exported(classifier(**kind)).classify(docs), docs, strict=True):
            want = classifier(**kind).predict(doc)[0]
            if kind.get('labels') == 'number': assert_close(torch.tensor(ours.label), torch.tensor(want), **CLOSE)
            else: assert ours.label == (list(want) if kind else str(want))

def test_logits_of_documents(exported):
    "Not only what the softmax leaves of them."
    learn,net = classifier(max_len=20),exported(classifier(max_len=20))._graphs[0]
    ids = torch.randint(2, 12, (64, 300), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): want = learn.model.eval()(ids).logits
    got,_ = net.run(net.start(64), ids.numpy(), np.full(64, 300), skip=np.full(64, 280))
    assert_close(torch.from_numpy(got), want, **CLOSE)

def test_two_directions_as_one(exported):
    both = rf.combine_directions(classifier(), classifier(backwards=True))
    docs = documents(5, 60)
    got = torch.tensor([list(o.probs.values()) for o in exported(both).classify(docs)])
    assert_close(got, probs_of(both, docs), **CLOSE)

@pytest.mark.parametrize('kwargs', [dict(), dict(bidirectional=True, num_layers=2, pool='concat'), dict(pool='max'),
                                    dict(pool='mean', one_hot=True), dict(one_hot=True, emb_sz=5)], ids=str)
def test_rnn_learner_of_texts(exported, kwargs):
    learn = widen(rf.rnn_learner(classifier().dls, 'GRU', n_hid=12, **kwargs))
    docs = documents(5, 60)
    got = torch.tensor([list(o.probs.values()) for o in exported(learn).classify(docs, part=7)])
    assert_close(got, probs_of(learn, docs), **CLOSE)

def test_a_document_is_never_in_memory_whole(exported, monkeypatch):
    "However long it is, the graph gets so many tokens at a time, and only of documents that go on."
    model = exported(classifier())
    net,seen = model._graphs[0],[]
    run = type(net).run
    monkeypatch.setattr(type(net), 'run', lambda self, c, ids, *a, **k: seen.append(ids.shape) or run(self, c, ids, *a, **k))
    model.classify(['one '*5000, 'two', 'three '*10], part=100)
    assert seen[0] == (3, 100) and max(s[1] for s in seen) == 100 and {s[0] for s in seen[1:]} == {1}
    assert len(seen) == 201   # 20,001 tokens

# ---- Taggers: scores and tags

TAGGERS = [dict(), dict(crf=False), dict(letters='CNN', shape_emb=3), dict(letters=None, shape_emb=3), dict(letters='CNN', crf=False), dict(chars=False, arch='GRU'), dict(chars=False, arch='AWD_LSTM', crf=True, bidir=True),
           dict(chars=False, arch='AWD_GRU', crf=False, bidir=False)]

@pytest.mark.parametrize('kind', TAGGERS, ids=str)
@pytest.mark.parametrize('sl', LENGTHS)
def test_tagger_agrees(exported, kind, sl):
    learn,rng = tagger(**kind),np.random.default_rng(sl)
    known = [*WORDS, 'Unknown', 'TWO', 'a-very-long-word-of-more-than-32-letters-altogether', 'é']
    for bs in BATCHES if sl < 2000 else BATCHES[:2]:
        sents = [[str(w) for w in rng.choice(known, sl if k == 0 else rng.integers(1, sl+1))] for k in range(bs)]
        assert exported(learn).tag(sents) == learn.tag(sents, no_bar=True)
        model,b = exported(learn),learn.dls.test_dl(sents[:3]).one_batch()
        feed = {k: t.as_subclass(torch.Tensor).numpy() for k,t in zip(('ids', 'chars', 'which'), b, strict=False)}
        lengths = (feed['ids'] != 1).sum(1)
        got,_ = model._graphs[0].run({}, lengths=lengths, **feed)
        with torch.no_grad(): want = learn.model.eval()(*b)
        real = torch.arange(want.size(1)) < torch.from_numpy(lengths)[:, None]
        assert_close(torch.from_numpy(got)[real], want.as_subclass(torch.Tensor)[real], **CLOSE)

def test_words_cut_into_parts(exported):
    for tok in (rf.CharTokenizer(), rf.WordTokenizer()):
        learn = tagger(chars=False, crf=False, tok=tok)
        sents = [["don't", 'one', 'xxpad', ''], ['two']]
        assert exported(learn).tag(sents) == learn.tag(sents, no_bar=True)

@pytest.mark.parametrize('tok', [None, str.lower, rf.WordTokenizer(), rf.CharTokenizer(), rf.TextTokenizer()])
def test_words_spelt_like_special_tokens(exported, tok):   # a word is the beginning of a text where no tokenizer adds one
    learn = tagger(chars=False, crf=False, tok=tok)
    net = exported(learn)
    words = ['one', 'xxbos', 'xxpad', 'xxunk', 'xxmaj', 'two']
    assert net.tag([words]) == learn.tag([words], no_bar=True)
    parts,ds = [i for w in words for i in net._reader.parts(w)],learn.dls.train_ds.new([words])
    assert parts == ds.batch(np.arange(1), torch.device('cpu'))[0][0].tolist()

def test_a_text_is_cut_by_spacy(exported):
    assert exported(tagger()).tag("It's one,  two\n three.") == [tagger().predict("It's one,  two\n three.")]

# ---- Words as the learner cuts them

@pytest.mark.parametrize('lang', ['en', 'de'])
def test_texts_are_cut_alike(lang):
    rng,tok = np.random.default_rng(0),rf.TextTokenizer(rf.WordTokenizer(lang))
    parts = ["#39;", 'amp;', '&lt;', '<br />', '\\n', ' @-@ ', '...', '/', '  ', ' ', ' ', '\n', '\n\n', '\t', 'so', 'SO', 'So',
             'A', 'é', '!!!!', '3.5', "don't", "l'eau", '\xa0', 'a-b', 'e.g.', 'U.S.', '(', ')', '"', 'xxmaj', 'www.a.com', '😀']
    some = [''.join(rng.choice(parts, rng.integers(1, 25))) for _ in range(400)]
    cut = make_cutter(tokenizer_facts(tok, {})).cut
    for text,toks in zip(some, tok(some), strict=True): assert cut(text) == toks, text

# ---- Graphs by the standard

def test_graphs_are_valid_onnx(exported):
    import onnx
    for learn in (lm(), classifier(), classifier(bidir=True), tagger()):
        onnx.checker.check_model(str(exported(learn).folder/'model.onnx'), full_check=True)

# ---- Eight bits

def test_int8_is_smaller_and_near(exported, tmp_path):
    size = {}
    for int8 in (False, True):
        dls = lm().dls
        learn = rf.language_model_learner(dls, 'AWD_LSTM', config=dict(emb_sz=64, n_hid=128, n_layers=2), pretrained=False)
        torch.manual_seed(0)
        for p in learn.model.parameters(): p.data.normal_(0, 0.1)
        model = OnnxModel(export_onnx(learn, tmp_path/str(int8), int8=int8))
        size[int8] = (tmp_path/str(int8)/'model.onnx').stat().st_size
        got = model.score('one two three')[0].perplexity
        assert abs(got/learn.score('one two three', no_bar=True)[0].perplexity - 1) < (0.1 if int8 else 1e-3)
    assert size[True] < size[False]/3

def test_int8_of_classifiers_and_taggers(exported):
    docs = documents(5, 60)
    got = torch.tensor([list(o.probs.values()) for o in exported(classifier(), int8=True).classify(docs)])
    assert_close(got, probs_of(classifier(), docs), rtol=0, atol=0.25)
    assert [len(s) for s in exported(tagger(), int8=True).tag([['one', 'two'], ['six']])] == [2, 1]

# ---- A process without torch

BLOCK = '''
    import sys
    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.split('.')[0] in {blocked}: raise ImportError(f'No module named {{name!r}}', name=name)
    sys.meta_path.insert(0, Blocked())
'''
HEAVY = ['torch', 'fastai', 'fastcore', 'pandas', 'pyarrow', 'onnx', 'onnxscript', 'spacy', 'safetensors', 'matplotlib']

def child(code, blocked, *args):
    "Run code in a process where some libraries cannot be imported."
    code = textwrap.dedent(BLOCK.format(blocked=blocked)) + textwrap.dedent(code)
    cmd = [sys.executable, '-c', code, *map(str, args)]
    return subprocess.run(cmd, capture_output=True, text=True, cwd=Path(__file__).parent.parent)

def test_runs_without_torch_and_fastai(exported):
    learners = lm(), lm('AWD_GRU', 'subwords'), classifier(), tagger()
    folders = [exported(l).folder for l in learners]
    done = child('''
        from rnn_fastai.ship.onnx_model import OnnxModel
        chars,subwords,classifier,tagger = map(OnnxModel, sys.argv[1:])
        for m in (chars, subwords): print(repr(m.generate(['one', 'two'], 20, temperature=0)[1].text))
        print(repr([c.label for c in classifier.classify(['one two', 'six'])]))
        print(tagger.tag([['one', 'two']]))
        assert not {'torch', 'fastai', 'pandas', 'spacy'} & set(sys.modules)
    ''', HEAVY, *folders)
    assert done.returncode == 0, done.stderr
    want = [repr(l.generate(['two'], 20, temperature=0)[0].text) for l in learners[:2]]
    want += [repr([str(classifier().predict(t)[0]) for t in ('one two', 'six')]),
             str(tagger().tag([['one', 'two']], no_bar=True))]
    assert done.stdout.splitlines() == want

def test_words_of_spacy_without_torch(exported):
    done = child('''
        from rnn_fastai.ship.onnx_model import OnnxModel
        print(repr(OnnxModel(sys.argv[1]).generate('One TWO', 20, temperature=0)[0].text))
    ''', [h for h in HEAVY if h != 'spacy'], exported(lm('AWD_LSTM', 'words')).folder)
    assert done.stdout.strip() == repr(lm('AWD_LSTM', 'words').generate('One TWO', 20, temperature=0)[0].text), done.stderr

def test_words_without_spacy_say_what_to_install(exported):
    done = child('''
        from rnn_fastai.ship.onnx_model import OnnxModel
        words,tagger = map(OnnxModel, sys.argv[1:])
        for call in (lambda: words.generate('one'), lambda: tagger.tag('one two')):
            try: call()
            except ImportError as e: print(e)
    ''', HEAVY, exported(lm('AWD_LSTM', 'words')).folder, exported(tagger()).folder)
    assert done.stdout.count('This model reads words of spaCy: pip install spacy') == 2, done.stderr

@pytest.mark.parametrize('lib', ['onnx', 'onnxscript', 'onnxruntime'])
def test_what_is_missing_is_named(lib, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, lib, None)
    with pytest.raises(ImportError, match=rf'ONNX needs the library {lib}: pip install "rnn_fastai\[onnx\]"'):
        export_onnx(lm(), tmp_path/'m')
    assert not (tmp_path/'m').exists()

def test_reader_without_onnxruntime(exported):
    done = child('''
        from rnn_fastai.ship.onnx_model import OnnxModel
        try: OnnxModel(sys.argv[1])
        except ImportError as e: print(e)
    ''', [*HEAVY, 'onnxruntime'], exported(lm()).folder)
    assert 'run in onnxruntime: pip install "rnn_fastai[onnx]"' in done.stdout, done.stderr

# ---- Bad input

def refused(learn, match, tmp_path):
    with pytest.raises(ValueError, match=match): export_onnx(learn, tmp_path/'m')
    assert not (tmp_path/'m').exists()

def test_what_cannot_be_exported_is_named(tmp_path):
    seqs = rf.SeqDataLoaders.from_pairs(['ab', 'bc', 'ca']*4, ['ba', 'cb', 'ac']*4, 'many-to-many', bs=2)
    refused(rf.rnn_learner(seqs, 'LSTM', 8), 'A RNNLearner over .* cannot be exported: ONNX is for', tmp_path)
    refused(rf.module_learner(lm().dls, nn.Embedding(len(lm().dls.vocab), len(lm().dls.vocab))),
            'A model of the class ModuleModel cannot be exported. Models that can: LanguageModel', tmp_path)
    fastai_lm = rf.language_model_learner(lm().dls, rf.AWD_LSTM, config=CONFIG, pretrained=False)
    fastai_lm.model[0].__class__ = type('OwnEncoder', (rf.AWD_LSTM,), {})
    refused(fastai_lm, 'OwnEncoder cannot be exported: ONNX needs a AWD_LSTM', tmp_path)
    own = classifier.__wrapped__()
    own.model[1].layers.append(nn.Softplus())
    refused(own, 'Softplus cannot be exported: ONNX needs a Linear', tmp_path)

def test_a_hook_or_an_edit_is_refused(tmp_path):
    learn = classifier.__wrapped__()
    with_hook = learn.model[1].register_forward_hook(lambda m, i, out: out + 1)
    refused(learn, 'its graph answers otherwise', tmp_path)
    with_hook.remove()
    export_onnx(learn, tmp_path/'m')
    edited = lm.__wrapped__()
    edited.model[0].rnns[0].edit = lambda i, t, state: tuple(s*0 for s in state)
    refused(edited, 'its graph answers otherwise', tmp_path/'2')

def test_labels_that_json_lacks(tmp_path):
    df = pd.DataFrame(dict(text=texts(8), label=list(pd.date_range('2020-01-01', periods=2))*4))
    dls = rf.TextDataLoaders.from_df(df, text_col='text', label_col='label', tok_tfm=rf.CharTokenizer(), bs=4, seed=0)
    learn = rf.text_classifier_learner(dls, 'AWD_LSTM', config=CONFIG, pretrained=False)
    refused(learn, r'The label Timestamp\(.*\) is a Timestamp, which cannot be exported', tmp_path)

def test_own_cells_are_exported(exported):
    class Leaky(rf.Cell):
        def step(self, gx, state): return (0.7*state[0] + 0.3*(gx + self.recur(state[0])).tanh(),)
    learn = widen(rf.rnn_learner(lm().dls, Leaky, n_hid=12))
    ours,theirs = (o.generate(['one', 'two'], 20, temperature=0) for o in (exported(learn), learn))
    assert [w.text for w in ours] == [w.text for w in theirs]

def test_a_model_for_other_loaders_is_refused(tmp_path):
    learn = rf.rnn_learner(classifier().dls, 'GRU', n_hid=12)
    learn.dls = lm().dls
    refused(learn, 'its loaders are for a language model, and its model is not', tmp_path)

def test_calls_of_other_kinds(exported):
    one,two,three = (exported(l) for l in (lm(), classifier(), tagger()))
    for call in (two.generate, two.score, three.generate, one.classify, three.classify, one.tag, two.tag):
        with pytest.raises(ValueError, match=r'holds a (language model|classifier|tagger), which cannot'): call(['one'])

def test_bad_texts(exported):
    for call in (exported(lm()).generate, exported(lm()).score, exported(classifier()).classify, exported(tagger()).tag):
        for odd in (3, b'one', None, dict(a=1), pd.DataFrame(dict(text=['one']))):
            with pytest.raises(TypeError, match='it must be a text, or a list of texts'): call(odd)
        with pytest.raises(TypeError): call([3])
    words = exported(lm('AWD_LSTM', 'words'))
    with pytest.raises(ValueError, match='holds no word that the model knows'): words.generate('zebra')
    with pytest.raises(ValueError, match='half of a surrogate pair'): words.score('one \ud800')
    for kwargs in (dict(n_words=0), dict(temperature=-1), dict(top_p=0), dict(seed=-1), dict(n=0), dict(bs=0),
                   dict(forbidden=['zebra']), dict(stop_tokens='zebra'), dict(temperature=0, top_k=3)):
        with pytest.raises(ValueError): words.generate('one', **kwargs)
    assert exported(classifier()).classify('') and exported(lm()).score('')[0].tokens == []

def test_folders_that_are_no_export(tmp_path, exported):
    with pytest.raises(FileNotFoundError, match='There is no exported model in'): OnnxModel(tmp_path)
    (tmp_path/'mine.txt').write_text('mine')
    with pytest.raises(OSError, match='holds other things'): export_onnx(lm(), tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ['mine.txt']

def test_changed_bytes_are_found(tmp_path):
    folder,rng = export_onnx(tagger(), tmp_path/'m'),np.random.default_rng(0)
    for name in ('model.onnx', 'model.json'):
        whole = (folder/name).read_bytes()
        for _ in range(60):
            data = bytearray(whole)
            at = rng.integers(len(data))
            data[at] ^= 1 << rng.integers(8)
            (folder/name).write_bytes(data)
            try: facts_module.read_facts(folder)
            except ValueError: continue
            assert name == 'model.json' and data.decode().split() == whole.decode().split()   # white space of JSON
        for n in rng.integers(0, len(whole), 20):
            (folder/name).write_bytes(whole[:n])
            with pytest.raises(ValueError): OnnxModel(folder)
        (folder/name).write_bytes(whole)
    OnnxModel(folder)

def test_facts_of_another_kind_of_file(tmp_path):
    export_onnx(lm(), tmp_path/'m')
    facts_module.write_facts(tmp_path/'m', dict(kind='lm', vocab=['a']), ['model.onnx'])
    with pytest.raises(ValueError, match=r"is no whole export: its tok is None"): OnnxModel(tmp_path/'m')

ODD_FACTS = dict(lm=dict(kind=['lm', 'x', None, []], vocab=['ab', None, [], [1]], net=[None, {}, 'x'], backwards=['x', None], tok=['x', {}, []]),
                 classifier=dict(labels=[None, 'ab', [None]], answers=['x', None, []], threshold=['x', None]),
                 tagger=dict(tags=[None, [], 'ab'], crf=['x', [], {}], chars=['x', []]))

@pytest.mark.parametrize('kind', ODD_FACTS)
def test_facts_that_were_edited(kind, tmp_path):
    export_onnx(dict(lm=lm, classifier=classifier, tagger=tagger)[kind](), tmp_path/'m')
    facts = facts_module.read_facts(tmp_path/'m')
    files = list(facts.pop('files'))
    for name,values in ODD_FACTS[kind].items():
        for value in values:
            if value == facts[name]: continue
            facts_module.write_facts(tmp_path/'m', {**facts, name: value}, files)
            with pytest.raises(ValueError, match=f'is no whole export.*({name}|KeyError)|unknown kind'): OnnxModel(tmp_path/'m')
    for name in {**ODD_FACTS[kind], 'net': 0}:
        facts_module.write_facts(tmp_path/'m', {k: v for k,v in facts.items() if k != name}, files)
        with pytest.raises(ValueError, match=f'is no whole export: its {name} is None'): OnnxModel(tmp_path/'m')
    facts_module.write_facts(tmp_path/'m', facts, files)
    assert OnnxModel(tmp_path/'m').kind == kind

def refusal(f, *args, **kwargs):
    with pytest.raises((ValueError, TypeError)) as e: f(*args, **kwargs)
    return type(e.value),str(e.value)

REFUSALS = [dict(prompts='unheard of'), dict(top_k=10**6), dict(top_k=0), dict(min_p=2), dict(top_p=0), dict(temperature=-1), dict(forbidden='zzz'), dict(stop_tokens='zzz'), dict(n_words=0),
            dict(n=True), dict(seed=-1), dict(bs=0), dict(prompts=3), dict(temperature=0, top_k=2), 'all']

@pytest.mark.parametrize('args', REFUSALS, ids=str)
def test_the_same_words_as_learners(args, tmp_path):
    learn = lm(tok='words')
    model = OnnxModel(export_onnx(learn, tmp_path/'m'))
    if args == 'all': args = dict(forbidden=list(model.vocab))
    args = {'prompts': 'the', **args}
    assert refusal(model.generate, **args) == refusal(learn.generate, **args, no_bar=True)

def test_the_same_words_of_empty_texts_as_learners(tmp_path):
    learn = tagger()
    model = OnnxModel(export_onnx(learn, tmp_path/'m'))
    mine,its = refusal(model.tag, [['a'], [], []]),refusal(learn.tag, [['a'], [], []])
    assert mine[0] is its[0] and its[1].startswith(mine[1]) and 'Sentence 1 of 3 has no token (2 have none)' in mine[1]

def test_a_share_of_nothing_keeps_all(tmp_path):
    model = OnnxModel(export_onnx(lm(), tmp_path/'m'))
    with np.errstate(all='raise'): assert model.generate('the', 9, seed=1, min_p=0.) == model.generate('the', 9, seed=1)

def test_a_failed_export_leaves_the_old_one(tmp_path, monkeypatch):
    folder = export_onnx(lm(), tmp_path/'m')
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    def fail(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(onnx_module, 'write_facts', fail)
    with pytest.raises(OSError, match='nothing was changed'): export_onnx(classifier(), folder)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before
    assert [f.name for f in tmp_path.iterdir()] == ['m']

def test_weights_that_no_file_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(graph_module, '_LIMIT', 1000)
    refused(lm(), r'The weights take .* GB; an ONNX file holds 2 GB', tmp_path)

def test_a_graph_that_was_not_exported_is_not_read(tmp_path):
    folder = export_onnx(classifier(), tmp_path/'m')
    (folder/'backwards.onnx').write_bytes(b'something else')
    assert OnnxModel(folder).classify('one')

def test_an_export_replaces_the_one_before(tmp_path):
    export_onnx(rf.combine_directions(classifier(), classifier(backwards=True)), tmp_path/'m')
    export_onnx(lm(), tmp_path/'m')
    assert sorted(f.name for f in (tmp_path/'m').iterdir()) == ['model.json', 'model.onnx']

def test_the_learner_stays_as_it_was(tmp_path):
    learn = lm.__wrapped__()
    learn.model.train()
    before = {k: v.clone() for k,v in learn.model.state_dict().items()}
    torch.manual_seed(3)
    a = torch.rand(1)
    torch.manual_seed(3)
    export_onnx(learn, tmp_path/'m')
    assert torch.equal(torch.rand(1), a) and learn.model.training
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())

def test_parts_of_a_model():
    parts = net_parts(tagger().model)
    assert parts.bidirectional and not parts.in_parts and [type(m) for m in parts.spelling] == [CharEncoder]
    assert net_parts(lm().model).in_parts and net_parts(classifier().model).in_parts
    assert not net_parts(classifier(bidir=True).model).in_parts

def own_rule(t): return t.replace('a', 'b')

def test_rules_of_ones_own_are_for_bundles(tmp_path):
    dls = rf.TextDataLoaders.from_df(pd.DataFrame(dict(text=texts(20))), is_lm=True, text_col='text', seq_len=8, bs=4,
                                     tok_tfm=rf.TextTokenizer(rules=[own_rule]))
    learn = rf.language_model_learner(dls, 'AWD_LSTM', config=CONFIG, pretrained=False)
    with pytest.raises(ValueError, match='tokenizer cannot be exported, as a reader without torch lacks its code: .*own_rule.* Keep the learner as a bundle'):
        export_onnx(learn, tmp_path/'m')
    assert not (tmp_path/'m').exists()
