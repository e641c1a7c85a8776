"Faults of learners that were found by use: weights that are no weights, states between sentences, labels without names."
from functools import partial

import pandas as pd
import pytest
import torch
from fastai.text import all as fastai_text
from torch import nn
from torch.nn import functional as F

import rnn_fastai.all as rf

SMALL = dict(emb_sz=8, n_hid=12, n_layers=1)
ROWS = pd.DataFrame({'text': ['one two three four', 'four three two', 'two two one']*8, 'label': ['a', 'b', 'c']*8,
                     'pair': ['n', 'p', 'n']*8, 'value': [1., 0., .5]*8, 'tags': ['a;b', 'b', 'a']*8,
                     'held': [False, True]*12})
SENTS = pd.DataFrame({'tokens': [['the', 'dog', 'sleeps'], ['a', 'cat', 'ran', 'off']]*8,
                      'tags': [['DET', 'NOUN', 'VERB'], ['DET', 'NOUN', 'VERB', 'ADV']]*8})

def lm_loaders(path='.'):
    df = ROWS.assign(text=ROWS.text*3)
    return rf.TextDataLoaders.from_df(df, path, text_col='text', is_lm=True, valid_col='held', bs=4, seq_len=5)

def lm(dls, **kwargs):
    return rf.language_model_learner(dls, rf.AWD_LSTM, config=SMALL, pretrained=False, **kwargs)

def loaders(label, module=rf, **kwargs):
    return module.TextDataLoaders.from_df(ROWS, text_col='text', label_col=label, valid_col='held', bs=8, **kwargs)

def quietly(learn, func, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): return func(*args, **kwargs)

@pytest.mark.parametrize('change, said', [
    (lambda w: w.long(), "holds numbers of torch.int64, and the model's are torch.float32"),
    (lambda w: w > 0, "numbers of torch.bool"),
    (lambda w: w.to(torch.complex64), "numbers of torch.complex64"),
    (lambda w: w*float('nan'), "32 of 32 numbers that are not finite, the first nan"),
    (lambda w: torch.where(torch.arange(32) == 3, float('inf'), w), "1 of 32 numbers that are not finite, the first inf"),
    (lambda w: w.double().sign()*1e300, "not finite"),   # finite there, and not in the model's type
    (lambda w: w.to_sparse(), "no plain numbers, but a tensor of torch.float32 and torch.sparse_coo"),
    (lambda w: w.to('meta'), "on meta")])
def test_weights_that_are_no_weights_are_refused_by_name(change, said, tmp_path):
    "Integers, complex numbers, NaN and the like were cast in silence. The model stays as it was."
    learn = lm(lm_loaders(tmp_path))
    file = learn.save('whole.pth', with_opt=False)
    wgts = torch.load(file)
    name = next(k for k in wgts if k.endswith('bias_ih_l0'))
    wgts = {k: w + 1 for k,w in wgts.items()}
    torch.save({**wgts, name: change(wgts[name])}, file.with_name('bad.pth'))
    encoder = {k[2:]: w for k,w in wgts.items() if k.startswith('0.')}
    torch.save({**encoder, name[2:]: change(wgts[name])}, file.with_name('bad_encoder.pth'))
    before = {k: w.clone() for k,w in learn.model.state_dict().items()}
    for read,what in ((learn.load, 'bad'), (learn.load_encoder, 'bad_encoder')):
        with pytest.raises(ValueError) as e: read(what)
        assert said in str(e.value) and 'bias_ih_l0 holds' in str(e.value) and f'{what}.pth' in str(e.value)
        assert str(e.value).rstrip('.').split('. ')[-1].startswith(('Save', 'Load'))   # the remedy
    for k,w in learn.model.state_dict().items(): assert torch.equal(w, before[k])

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_float_types_are_cast(dtype, tmp_path):
    learn = lm(lm_loaders(tmp_path))
    file = learn.save('whole.pth', with_opt=False)
    torch.save({k: w.to(dtype) for k,w in torch.load(file).items()}, file)
    want = {k: w.to(dtype).float() for k,w in learn.model.state_dict().items()}
    learn.load('whole')
    for k,w in learn.model.state_dict().items(): assert torch.equal(w, want[k])

def test_buffers_may_be_whole_numbers_and_infinite(tmp_path):
    "A batch norm counts its batches; a mask is infinite. Neither keeps a model from coming back."
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)
            self.register_buffer('mask', torch.tensor([0., -float('inf')]))
    model,other = Masked(),Masked()
    model.norm(torch.randn(4, 3))
    assert rf.load_weights(other, model.state_dict()) == 6 and other.norm.num_batches_tracked == 1

@pytest.mark.parametrize('what', [3, torch.tensor(1.), None, [1], 'text', {'model': None, 'opt': None}])
def test_files_of_other_things_are_refused(what, tmp_path):
    learn = lm(lm_loaders(tmp_path))
    file = learn.save('other.pth')
    torch.save(what, file)
    with pytest.raises(ValueError, match='not weights by name'): learn.load('other')

@pytest.mark.parametrize('opt', [None, 'x', {}, {'state': [], 'hypers': None}, {'state': [], 'hypers': []}])
def test_damaged_optimizer_state_leaves_the_weights(opt, tmp_path):
    learn = lm(lm_loaders(tmp_path))
    file = learn.save('damaged.pth', with_opt=False)
    torch.save({'model': torch.load(file), 'opt': opt}, file)
    with pytest.warns(UserWarning, match="optimizer's state is not loaded, only the weights"): learn.load('damaged')
    with pytest.raises(ValueError, match='optimizer'): learn.load('damaged', with_opt=True)

def test_optimizer_state_that_is_not_finite_is_not_loaded(tmp_path):
    learn = lm(lm_loaders(tmp_path))
    quietly(learn, learn.fit, 1)
    learn.opt.state[learn.model[0].encoder.weight]['grad_avg'].fill_(float('nan'))
    for name in ('diverged', 'diverged.pth'):
        learn.save(name)
        with pytest.raises(ValueError, match='grad_avg.* numbers that are not finite'): learn.load(name, with_opt=True)

def test_torchs_optimizers_come_back_by_name(tmp_path):
    "fastai wraps them as `OptimWrapper`; a file of one was written and could not be read again."
    wrapped = partial(rf.OptimWrapper, opt=torch.optim.AdamW)
    learn,again = (lm(lm_loaders(tmp_path), opt_func=wrapped) for _ in range(2))
    quietly(learn, learn.fit, 1)
    learn.save('torchs'), learn.save('torchs.pth')
    again.load('torchs', with_opt=True)
    for a,b in zip(learn.model.parameters(), again.model.parameters(), strict=True):
        mine,its = learn.opt.opt.state[a],again.opt.opt.state[b]
        assert torch.equal(a, b) and torch.equal(mine['exp_avg'], its['exp_avg']) and its['step'] == mine['step'] > 0
    quietly(again, again.fit, 1)
    with pytest.raises(ValueError, match='of another kind'): lm(lm_loaders(tmp_path)).load('torchs', with_opt=True)
    dls = fastai_text.TextDataLoaders.from_df(ROWS.assign(text=ROWS.text*3), tmp_path, text_col='text', is_lm=True,
                                              valid_col='held', bs=4, seq_len=5)
    config = {**fastai_text.awd_lstm_lm_config, **SMALL}
    theirs = fastai_text.language_model_learner(dls, fastai_text.AWD_LSTM, config=config, pretrained=False,
                                                opt_func=wrapped)
    theirs.load('torchs', with_opt=True)
    raw = theirs.opt.opt.state[theirs.model[0].rnns[0].weight_hh_l0_raw]['exp_avg']
    assert torch.equal(raw, learn.opt.opt.state[learn.model[0].rnns[0].weight_hh_l0]['exp_avg'])

class Remembering(nn.Module):
    "A net that keeps its state inside, until it is reset."
    def __init__(self, n_words, n_out, parts=1):
        super().__init__()
        self.emb,self.rnn,self.out = nn.Embedding(n_words, 8),nn.GRU(8, 8, batch_first=True),nn.Linear(8, n_out)
        self.h,self.parts = None,parts
    def forward(self, ids):
        if self.h is not None and self.h.size(1) != len(ids): self.h = None
        raw,h = self.rnn(self.emb(ids), self.h)
        self.h = h.detach()
        return self.out(raw) if self.parts == 1 else (self.out(raw), raw, raw)
    def reset(self): self.h = None

@pytest.mark.parametrize('parts', [1, 3])
def test_a_tagger_with_a_state_inside_reads_each_sentence_as_if_alone(parts):
    dls = rf.TagDataLoaders.from_df(SENTS, seed=1, bs=1)
    torch.manual_seed(0)
    model = Remembering(len(dls.vocab[0]), len(dls.vocab[1]), parts)
    learn = rf.TaggerLearner(dls, model, loss_func=rf.CrossEntropyLossFlat())
    probs,targets = quietly(learn, learn.get_preds)
    quietly(learn, learn.predict, 'the dog sleeps')
    again,_ = quietly(learn, learn.get_preds)
    assert torch.equal(probs, again)
    for row,sent in zip(probs, dls.valid_ds, strict=True):
        model.reset()
        with torch.no_grad(): out = model(sent[0][None].as_subclass(torch.Tensor))
        want = (out if parts == 1 else out[0])[0].softmax(-1)
        torch.testing.assert_close(row[:len(want)], want)
    sents = list(SENTS.tokens)[:4]
    assert learn.tag(sents, bs=1, no_bar=True) == [learn.tag([s], no_bar=True)[0] for s in sents]

@pytest.mark.parametrize('parts', [1, 3])
@pytest.mark.parametrize('series, prompt', [('abcab'*12, 'ab'), (['one', 'two', 'six']*20, ['one', 'two'])])
def test_a_model_with_a_state_inside_writes_over_a_series(series, prompt, parts):
    "Greedy, sampled and beamed texts over `SeqDataLoaders` are those of the whole prefix, read from the start."
    dls = rf.SeqDataLoaders.from_series(series, n_series=3, seq_len=5)
    vocab = dls.task.vocab
    torch.manual_seed(1)
    model = Remembering(len(vocab), len(vocab), parts)
    learn = rf.rnn_learner(dls, model)
    quietly(learn, learn.fit, 1, 1e-2)
    model.eval()
    @torch.no_grad()
    def logits(ids):
        model.reset()
        out = model(torch.tensor([ids]))
        return (out if parts == 1 else out[0])[0]
    ids = start = dls.task.encode(list(prompt))[0].tolist()
    never = learn._never(True)
    for _ in range(6): ids = [*ids, int(logits(ids)[-1].index_fill(0, torch.tensor(never, dtype=torch.long), -1e9).argmax())]
    want = [vocab[i] for i in ids[len(start):]]
    model(torch.zeros(1, 2, dtype=torch.long))   # a state from elsewhere
    text, = learn.generate([prompt], 6, temperature=0, no_bar=True)
    assert text.tokens == want
    assert learn.predict(prompt, 6, temperature=0, no_bar=True)[len(prompt):] in (''.join(want), want)
    both = learn.generate([prompt, prompt[:1]], 6, n=2, seed=3, no_bar=True)
    assert [t.tokens for t in both[:2]] == [t.tokens for t in learn.generate([prompt], 6, n=2, seed=3, no_bar=True)]
    assert learn.beam_search([prompt], 1, width=2, no_bar=True)[0].tokens == want[:1]
    score, = learn.score([prompt], no_bar=True)
    right = logits(start).log_softmax(-1)[:-1].gather(1, torch.tensor(start[1:])[:, None])[:, 0]
    torch.testing.assert_close(score.logps, right)

@pytest.mark.parametrize('loss', [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=torch.tensor([1., 2., 3., 1.])),
                                  F.cross_entropy, lambda p,y: F.cross_entropy(p.flatten(0, 1), y.flatten())])
def test_a_tagger_with_a_plain_loss_of_torchs(loss):
    "The loss over real tokens alone, probabilities by softmax, and tags with names."
    dls = rf.TagDataLoaders.from_df(SENTS, seed=1, bs=4)
    learn = rf.tagger_learner(dls, n_hid=4, emb_sz=4, loss_func=loss)
    quietly(learn, learn.fit, 1)
    x,y = dls.valid.one_batch()
    with torch.no_grad(): out = learn.model.eval()(x).as_subclass(torch.Tensor)
    y = y.as_subclass(torch.Tensor)
    plain = loss if isinstance(loss, nn.Module) else F.cross_entropy
    torch.testing.assert_close(learn.loss_func(out, y), plain(out[y >= 0], y[y >= 0]))
    probs,targets = learn.get_preds()
    torch.testing.assert_close(probs.sum(-1), (probs.sum(-1) > 0).float())
    assert {t for _,t in learn.predict('the cat ran')} <= set(dls.vocab[1])

def test_a_language_model_with_a_loss_of_somebodys_own_gives_probabilities():
    learn = lm(lm_loaders(), loss_func=lambda p,y: F.cross_entropy(p.flatten(0, 1), y.flatten()))
    quietly(learn, learn.fit, 1)
    probs,_,tokens = quietly(learn, learn.get_preds, with_decoded=True)
    torch.testing.assert_close(probs.sum(-1), torch.ones(probs.shape[:2]))
    assert torch.equal(tokens.as_subclass(torch.Tensor), probs.argmax(-1))
    quietly(learn, learn.show_results, max_n=1)

def test_a_class_of_losses_is_refused():
    with pytest.raises(TypeError, match=r'loss_func=CrossEntropyLoss is a class; pass a loss, such as CrossEntropyLoss\(\)'):
        rf.text_classifier_learner(loaders('label'), rf.AWD_LSTM, config=SMALL, pretrained=False,
                                   loss_func=nn.CrossEntropyLoss)

def test_values_have_no_names_in_the_vocabulary():
    "With `RegressionBlock` the vocabulary is that of the texts alone, as in fastai."
    ours,theirs = (loaders('value', m, y_block=rf.RegressionBlock()) for m in (rf, fastai_text))
    assert list(ours.vocab) == list(theirs.vocab) and ours.c == theirs.c == 1
    assert rf.text_vocab(ours) == ours.vocab and rf.label_vocab(ours) == rf.label_vocab(theirs) == []
    assert rf.label_vocab(loaders('label')) == ['a', 'b', 'c']

@pytest.mark.parametrize('label, how', [('label', {}), ('tags', dict(label_delim=';')),
                                        ('value', dict(y_block=rf.RegressionBlock()))])
def test_rnn_learner_takes_every_kind_of_labels(label, how):
    dls = loaders(label, **how)
    learn = rf.rnn_learner(dls, n_hid=4)
    quietly(learn, learn.fit, 1)
    preds,_ = quietly(learn, learn.get_preds)
    want = dict(label=3, tags=2, value=1)[label]
    assert preds.shape[1] == want and type(learn.loss_func) is type(dls.loss_func)
    answer = quietly(learn, learn.predict, 'one two')[0]
    if label == 'label': assert answer in dls.vocab[1]

def test_fastais_classifier_over_our_encoder(tmp_path):
    "`SequentialRNN(SentenceEncoder(AWD_LSTM), PoolingLinearClassifier)` gives fastai's outputs, trains, and comes back."
    dls = loaders('label')
    def model(m, n):
        enc = m.AWD_LSTM(n, 8, 12, 2, hidden_p=0., input_p=0., embed_p=0., weight_p=1e-9)
        return m.SequentialRNN(m.SentenceEncoder(5, enc, 1), m.PoolingLinearClassifier([24, 10, 3], [0., 0.], 5))
    ours,theirs = (model(m, 30).eval() for m in (rf, fastai_text))
    rf.load_weights(ours, theirs.state_dict())
    ids = torch.randint(2, 30, (3, 12), generator=torch.Generator().manual_seed(0))
    ids[1, :3],ids[2, :7] = 1,1
    for _ in range(2):   # the state starts from nothing at each call, as in fastai
        for a,b in zip(ours(ids), theirs(ids), strict=True): torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    learn,again = (rf.TextLearner(dls, model(rf, len(dls.vocab[0])), loss_func=rf.CrossEntropyLossFlat(), path=tmp_path,
                                  splitter=rf.awd_lstm_clas_split) for _ in range(2))
    quietly(learn, learn.fit, 1)
    learn.save('parts')
    again.load('parts', with_opt=True)
    for (k,a),b in zip(learn.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), k
    learn.save_encoder('encoder')
    again.load_encoder('encoder')
    assert quietly(again, again.predict, 'one two')[0] in dls.vocab[1]

class CPUPrecision(rf.MixedPrecision):
    "fastai's mixed precision with the means of the CPU."
    def before_fit(self):
        self.autocast = torch.autocast('cpu', dtype=torch.bfloat16)
        self.learn.scaler,self.scales = torch.amp.GradScaler('cpu', enabled=False),rf.L()

class Interrupt(rf.Callback):
    def after_pred(self): raise KeyboardInterrupt

def test_an_interrupt_in_mixed_precision_leaves_nothing_behind(tmp_path):
    "fastai leaves autocast on: what follows runs in half precision, and the next training on weights of before."
    learns = [lm(lm_loaders(tmp_path)) for _ in range(2)]
    learns[1].model.load_state_dict(learns[0].model.state_dict())
    with pytest.raises(KeyboardInterrupt): quietly(learns[0], learns[0].fit, 1, cbs=[CPUPrecision(), Interrupt()])
    assert not torch.is_autocast_enabled('cpu')
    with torch.no_grad(): assert learns[0].model(torch.ones(1, 3).long()).logits.dtype == torch.float32
    for learn in learns:
        rf.set_seed(0)
        learn.dls.train.rng.seed(0)
        quietly(learn, learn.fit, 2, cbs=[CPUPrecision()])
    for a,b in zip(*(l.model.parameters() for l in learns), strict=True): assert torch.equal(a, b)


# --- Mistakes at the door ---

FRAME = pd.DataFrame({'text': ['one two three', 'four five six']*20, 'label': ['a', 'b']*20})

@pytest.mark.parametrize('df,said', [('a.csv', 'df is of type str.*read files with pd.read_csv, or call from_csv'),
                                     (FRAME.text, 'df is of type Series.*make one of texts'), (['one'], 'df is of type list.*make one of texts')])
def test_what_is_no_frame(df, said):
    with pytest.raises(TypeError, match=said): rf.TextDataLoaders.from_df(df, text_col='text', is_lm=True)

def test_a_missing_file_names_its_neighbours(tmp_path):
    FRAME.to_csv(tmp_path/'texts.csv', index=False)
    with pytest.raises(FileNotFoundError, match=r"There is no file text.csv in .*Did you mean 'texts.csv'\?"):
        rf.TextDataLoaders.from_csv(tmp_path, 'text.csv', text_col='text', is_lm=True)

def test_names_of_tokenizers():
    for how,said in ((dict(tok_tfm='ko'), "'ko' is a name; give a tokenizer"), (dict(tok='bpe'), "Unexpected argument 'tok'. Did you mean .*'tok_tfm'")):
        with pytest.raises(TypeError, match=said): rf.TextDataLoaders.from_df(FRAME, text_col='text', is_lm=True, **how)

def test_loaders_of_another_task():
    kinds = {True: rf.TextDataLoaders.from_df(FRAME, text_col='text', is_lm=True, bs=4, seq_len=4),
             False: rf.TextDataLoaders.from_df(FRAME, text_col='text', label_col='label', bs=4)}
    small = dict(arch='AWD_LSTM', config=dict(emb_sz=4, n_hid=4, n_layers=1), pretrained=False)
    with pytest.raises(ValueError, match='These are loaders for a classifier. Make others: .*is_lm=True'): rf.language_model_learner(kinds[False], **small)
    with pytest.raises(ValueError, match='These are loaders for a language model. Make others'): rf.text_classifier_learner(kinds[True], **small)
    for make in (rf.language_model_learner, rf.text_classifier_learner):
        for odd in (FRAME, 'a.csv', [1]):
            with pytest.raises(TypeError, match=f'dls is of type {type(odd).__name__}; it must be loaders'): make(odd, **small)
    learn = rf.language_model_learner(kinds[True], **small)
    with pytest.raises(TypeError, match="Unexpected argument 'n_word'. Did you mean 'n_words'"): learn.generate('one', n_word=3)
    with pytest.raises(TypeError, match="Unexpected argument 'n_word'. Did you mean 'n_words'"): learn.beam_search('one', n_word=3)
    with pytest.raises(TypeError, match="Unexpected argument 'top_n'"): learn.stream('one', top_n=3)

def test_labels_that_look_alike(recwarn):
    def said(labels):
        recwarn.clear()
        rf.TextDataLoaders.from_df(FRAME.assign(label=labels*(40//len(labels))), text_col='text', label_col='label', valid_pct=0., bs=4)
        return [str(w.message) for w in recwarn if 'Column' in str(w.message)]
    assert said(['Good', 'good ']) == ["Column 'label': the labels ['Good', 'good '] differ by blanks or case alone, and are taken for "
                                       '2 labels. Make them one, if they are.']
    assert 'holds numbers such as 0.5, which are taken for 4 labels' in said([0.5, 1.5, 2.5, 3.])[0]
    assert said(['good', 'bad']) == said([1, 2]) == said([1., 2.]) == []

def test_a_loss_that_becomes_nan_is_told_once(recwarn):
    dls = rf.TextDataLoaders.from_df(FRAME, text_col='text', is_lm=True, bs=4, seq_len=4)
    learn = rf.language_model_learner(dls, 'AWD_LSTM', config=dict(emb_sz=4, n_hid=4, n_layers=1), pretrained=False)
    class Spoil(rf.Callback):
        def after_batch(self):
            if self.training and self.epoch == 1 and self.iter == 2: self.model[1].decoder.bias.data.fill_(float('nan'))
    with learn.no_bar(), learn.no_logging(): learn.fit(3, 1e-3, cbs=Spoil())
    said = [str(w.message) for w in recwarn if 'NaN' in str(w.message)]
    assert said == ['The loss became NaN in epoch 1, batch 3, at a rate of 0.001, and the weights are lost. Train a new learner, with a '
                    'lower rate.']
