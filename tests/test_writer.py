"`learn.generate` over every cell, after training, beside hooks, and through a file."
import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from rnn_fastai import all as rf
from rnn_fastai.generate.prepack import prepack
from rnn_fastai.learner.lm import encode_prompts
from rnn_fastai.ship.bundle import load_learner

WORDS = 'one two three four five six seven eight nine ten'.split()
PROMPTS = ['one', 'two three four', 'ten nine eight seven six five', '', 'one two']

def loaders(**kwargs):
    rng = np.random.default_rng(0)
    df = pd.DataFrame({'text': [' '.join(rng.choice(WORDS, rng.integers(4, 25))) for _ in range(30)]})
    return rf.TextDataLoaders.from_df(df, is_lm=True, bs=2, seq_len=9, seed=1, device='cpu', **kwargs)

def learner(cell='LSTM', dls=None, **kwargs):
    torch.manual_seed(0)
    config = dict(emb_sz=136, n_hid=144, n_layers=2)   # large enough that weights are packed
    learn = rf.language_model_learner(loaders() if dls is None else dls, f'AWD_{cell}', config=config,
                                      pretrained=False, **kwargs)
    for p in learn.model.parameters():
        if p.dim() == 2: p.data.mul_(3)   # gains of layer normalisation, times three, would make it chaotic
    return learn

@pytest.fixture(scope='module')
def ours(): return learner()

def texts(learn, prompts, n_words=15, **kwargs):
    return [t.text for t in learn.generate(prompts, n_words, no_bar=True, **kwargs)]

def assert_likeliest(learn, prompt, got, n_words):
    "Each greedy token is the likeliest, or as likely but for rounding, by the slow way: all of the text at every word."
    vocab = list(learn.dls.vocab)
    start,new = encode_prompts(learn._texts(), [prompt])[0].tolist(),[vocab.index(t) for t in got.tokens]
    ids = start + new
    with torch.no_grad(): logits = torch.stack([learn.model.eval()(torch.tensor([ids[:n]])).logits[0, -1]
                                                for n in range(len(start), len(ids))])
    logits[:, [i for i,t in enumerate(vocab) if t in ('xxunk', 'xxfake', 'xxfld')]] = -torch.inf
    assert len(new) == n_words
    assert_close(logits[range(n_words), new], logits.amax(1), atol=1e-4, rtol=0)

@pytest.mark.parametrize('cell', list(rf.cells))
def test_every_cell_as_the_slow_way_does(cell):
    learn = learner(cell)
    for got,prompt in zip(learn.generate(PROMPTS, 12, temperature=0, no_bar=True), PROMPTS, strict=True):
        assert_likeliest(learn, prompt, got, 12)
    assert texts(learn, PROMPTS, seed=2) == [texts(learn, p, seed=2)[0] for p in PROMPTS]

@pytest.mark.parametrize('int8', [False, True])
def test_order_and_batches_do_not_matter(ours, int8):
    want = texts(ours, PROMPTS, seed=1, n=3, int8=int8)
    assert texts(ours, PROMPTS, seed=1, n=3, bs=4, int8=int8) == want
    back = texts(ours, PROMPTS[::-1], seed=1, n=3, int8=int8)
    assert [back[i:i+3] for i in range(0, 15, 3)][::-1] == [want[i:i+3] for i in range(0, 15, 3)]
    assert len(set(want)) == 15

@pytest.mark.parametrize('n', [1, 2, 3])
def test_no_bit_of_a_row_depends_on_the_others(ours, n):
    twin,ids = prepack(ours.model, reproducible=True),torch.randint(5, 15, (6, 7))
    with torch.no_grad():
        all_rows,some = twin(ids),twin(ids[:n])
        assert torch.equal(some.logits, all_rows.logits[:n])
        next_all,next_some = twin(ids[:, :1], all_rows.state),twin(ids[:n, :1], some.state)
    assert torch.equal(next_some.logits, next_all.logits[:n])

def test_weights_trained_between_calls_are_seen():
    learn = learner()
    before = texts(learn, 'one', temperature=0)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.05)
    after, = learn.generate('one', 15, temperature=0, no_bar=True)
    assert_likeliest(learn, 'one', after, 15)
    assert after.text != before[0]

@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("cell", list(rf.cells))
def test_weights_that_are_shared_are_followed(cell, int8):
    "What has no second layout is not summed: a kept model must follow its changes, also those through `.data`."
    learn = learner(cell)
    kept,ids = learn.twin.of(learn.model.eval(), int8),torch.randint(5, 15, (2, 3))
    with torch.no_grad(): kept(ids)
    for p in learn.model.parameters():
        if p.dim() != 2: p.data.add_(torch.linspace(-0.2, 0.3, p.numel()).view_as(p))
    assert learn.twin.of(learn.model, int8) is kept
    with torch.no_grad(): assert_close(kept(ids).logits, prepack(learn.model, int8)(ids).logits, rtol=1e-5, atol=1e-5)

def test_hooks_see_what_is_written(ours):
    want,seen = texts(ours, 'one', temperature=0),[]
    hook = ours.model[1].register_forward_hook(lambda m, args, out: seen.append(args[0].shape[:2]))
    try: assert texts(ours, 'one', temperature=0) == want
    finally: hook.remove()
    assert seen == [(1, 1)]*15
    hook = ours.model[1].register_forward_hook(lambda *args: None)
    try:
        with pytest.raises(ValueError, match='int8'): texts(ours, 'one', int8=True)
    finally: hook.remove()

@pytest.mark.parametrize('training', [True, False])
def test_the_model_stays_as_it_is(ours, training):
    ours.model.train(training)
    before = {k: v.clone() for k,v in ours.model.state_dict().items()}
    texts(ours, PROMPTS, int8=True)
    assert {m.training for m in ours.model.modules()} == {training}
    assert_close(dict(ours.model.state_dict()), before, rtol=0, atol=0)
    assert {type(p) for p in ours.model.parameters()} == {torch.nn.Parameter}

def test_through_a_file(tmp_path):
    learn = learner(path=tmp_path)
    want = texts(learn, PROMPTS, seed=3)
    learn.export('all.pkl')
    assert (tmp_path/'all.pkl').stat().st_size < 3*sum(4*p.numel() for p in learn.model.parameters())
    assert texts(learn, PROMPTS, seed=3) == want
    assert texts(load_learner(tmp_path/'all.pkl'), PROMPTS, seed=3) == want

@pytest.mark.parametrize('way', ['drawn', 'cached', 'searched', 'scored'])
def test_reports_go_up_to_the_total(ours, monkeypatch, way):
    "Over several batches, prompts that are the same, parts of long prompts, and texts that end early."
    reports,prompts = [],[*PROMPTS, 'one', 'two three '*400]
    monkeypatch.setattr(ours, '_on_progress', lambda no_bar: lambda *r: reports.append(r))
    n = sum(len(i) - 1 for i in ours._ids(prompts))
    if way == 'scored': ours.score(prompts, bs=3)
    elif way == 'searched': ours.beam_search(prompts, 8, width=2, bs=4, stop_tokens=['nine'])
    else: ours.generate(prompts, 8, bs=3, seed=0, stop_tokens=['nine'], cache=rf.NeuralCache(50) if way == 'cached' else None)
    want = dict(scored=n, searched=8*len(prompts)).get(way, n + 8*len(prompts))
    done,totals = zip(*reports, strict=True)
    assert set(totals) == {want} and list(done) == sorted(done) and done[-1] == want and len(set(done)) >= 3

def test_backwards_writes_before_the_prompt():
    learn = learner(dls=loaders(backwards=True))
    special = [t for t in learn.dls.vocab if t.startswith('xx')]
    got = learn.generate(['three four', ''], 10, temperature=0, no_bar=True, decoder=lambda t: t,
                         forbidden=special)
    assert got[0].text.endswith('three four')
    assert got[0].text.split()[:-2] == got[0].tokens[::-1]
    with pytest.raises(ValueError, match='backwards'): texts(learn, 'one', stop='two')

def test_log_probabilities_are_the_models(ours):
    got, = ours.generate('one two', 20, seed=5, temperature=2., top_k=5, no_bar=True)
    vocab = list(ours.dls.vocab)
    start,new = encode_prompts(ours._texts(), ["one two"])[0].tolist(),[vocab.index(t) for t in got.tokens]
    with torch.no_grad(): logits = ours.model.eval()(torch.tensor([start + new])).logits[0]
    want = logits.log_softmax(-1)[len(start)-1:-1].gather(1, torch.tensor(new)[:, None])[:, 0]
    assert_close(got.logps, want, rtol=1e-3, atol=1e-3)

def test_bad_prompt_in_a_list_leaves_the_learner_usable(ours):
    with pytest.raises(ValueError, match='Zebra'): texts(ours, ['one', 'Zebra'])
    with pytest.raises(TypeError, match=r'prompts\[1\] must be a text, not NoneType None'): texts(ours, ['one', None])
    with pytest.raises(TypeError, match='top_q'): texts(ours, 'one', top_q=3)
    assert texts(ours, []) == [] and len(texts(ours, ['one'])) == 1
