"The model card: what it says of each learner, what the hub reads of it, and what stays of an edited one."
import subprocess
import sys
import warnings
from pathlib import Path

import pandas as pd
import pytest
from fastai.metrics import accuracy
from fastai.text.data import CategoryBlock, MultiCategoryBlock, RegressionBlock

from rnn_fastai.data.loaders import TextDataLoaders
from rnn_fastai.data.sequences import SeqDataLoaders
from rnn_fastai.data.subwords import CharTokenizer
from rnn_fastai.data.tags import TagDataLoaders
from rnn_fastai.learner.classifier import text_classifier_learner
from rnn_fastai.learner.lm import language_model_learner
from rnn_fastai.learner.rnn import rnn_learner
from rnn_fastai.learner.tagger import tagger_learner
from rnn_fastai.ship.bundle import load_bundle
from rnn_fastai.ship.card import layer_sizes, model_card, renew_card

SMALL = dict(emb_sz=8, n_hid=12, n_layers=2)
FRAME = pd.DataFrame(dict(text=['a good film', 'a bad one', 'so so', 'very good']*5, label=['a|b', '`x`', '-->', 'x --']*5,
                          both=['p;q', 'p', 'q', 'p;q']*5, score=[1., 2., 3., 4.]*5))
NAMES = ('lm', 'characters', 'labels', 'multilabel', 'values', 'tagger', 'next', 'many-to-one', 'one-to-many')


def text_loaders(**args): return TextDataLoaders.from_df(FRAME, text_col='text', bs=4, seed=1, **args)

def classifier(**args):
    return text_classifier_learner(text_loaders(**args), 'AWD_LSTM', config=SMALL, pretrained=False)

def pairs(xs, ys, kind): return rnn_learner(SeqDataLoaders.from_pairs(xs*5, ys*5, kind, bs=4), 'GRU', n_hid=4)

def make(name):
    "A learner of a kind."
    sents = pd.DataFrame(dict(tokens=[['A', 'film', 'ends'], ['It', 'is', 'good']]*6, tags=[['DET', 'N', 'V'], ['P', 'V', 'A']]*6))
    kinds = {
        'lm': lambda: language_model_learner(text_loaders(is_lm=True, seq_len=5), 'AWD_LSTM', config=SMALL, pretrained=False,
                                             metrics=accuracy),
        'characters': lambda: language_model_learner(text_loaders(is_lm=True, seq_len=5, tok_tfm=CharTokenizer()), 'AWD_LSTM',
                                                     config=SMALL, pretrained=False),
        'labels': lambda: classifier(label_col='label', y_block=CategoryBlock),
        'multilabel': lambda: classifier(label_col='both', label_delim=';', y_block=MultiCategoryBlock),
        'values': lambda: classifier(label_col='score', y_block=RegressionBlock),
        'tagger': lambda: tagger_learner(TagDataLoaders.from_df(sents, tok=str.lower, bs=4), 'LSTM', emb_sz=4, n_hid=4),
        'next': lambda: rnn_learner(SeqDataLoaders.from_series('abcd'*9, n_series=2, seq_len=6), 'LSTM', n_hid=4),
        'many-to-one': lambda: pairs(['abc', 'bca', 'cab'], [0, 1, 1], 'many-to-one'),
        'one-to-many': lambda: pairs(['a', 'b', 'c'], ['abc', 'bca', 'cab'], 'one-to-many')}
    return kinds[name]()


@pytest.fixture(scope='module')
def learners(): return {n: make(n) for n in NAMES}


@pytest.mark.parametrize('name', NAMES)
def test_the_hub_reads_the_card_and_the_layers_have_all_parameters(learners, name):
    hub = pytest.importorskip('huggingface_hub')
    learn = learners[name]
    card = hub.ModelCard(model_card(learn, 'me/a model', license='mit', valid_loss=1.5))
    assert (card.data.license, card.data.library_name, card.data.model_name) == (
        'mit', 'rnn_fastai', 'a model' if card.data.pipeline_tag else None)
    if card.data.pipeline_tag: assert [(r.metric_name, r.metric_value) for r in card.data.eval_results] == [('valid_loss', 1.5)]
    n = sum(p.numel() for p in learn.model.parameters())
    assert f'| parameters | {n:,} |' in card.text and sum(k for *_,k in layer_sizes(learn.model)) == n


@pytest.mark.parametrize('name', NAMES)
def test_the_line_that_asks_the_learner_works(learners, name):
    learn = learners[name]
    line = model_card(learn).partition("load_bundle('model')\n")[2].partition('\n```')[0]
    assert line.startswith('learn.predict(')
    with learn.no_bar(), learn.no_logging(): assert eval(line, dict(learn=learn)) is not None


def test_languages_are_said_where_they_are_known(learners):
    assert '\nlanguage: en\n' in model_card(learners['lm'])
    for name in ('characters', 'tagger', 'next'): assert '\nlanguage:' not in model_card(learners[name])


def test_labels_of_any_kind_stay_within_their_cell(learners):
    row = next(l for l in model_card(learners['labels']).splitlines() if l.startswith('| 4 labels'))
    assert row == r'| 4 labels | `-->`, `` `x` ``, `a\|b`, `x --` |'


@pytest.mark.parametrize('license', ['MIT License', '', 'mit\nlanguage: fr', 7])
def test_a_licence_that_the_hub_could_not_know_is_named(learners, license):
    with pytest.raises(ValueError, match='license=.*is no identifier of the hub. Use one such as'):
        model_card(learners['lm'], license=license)


def test_what_was_written_by_hand_stays(learners):
    old,new = (model_card(learners['lm'], 'm', valid_loss=v) for v in (1, 2))
    edited = old.replace('\n---\n\n<!--', '\ndatasets: [mine]\n---\nOn top.\n<!--', 1) + 'At the end.\n'
    got = renew_card(edited, new)
    assert got.index('datasets:') < got.index('On top.') < got.index('# m') < got.index('At the end.')
    assert '| `valid_loss` | 2.0000 |' in got and '| `valid_loss` | 1.0000 |' not in got
    assert renew_card(got, new) == got
    windows = renew_card(edited.replace('\n', '\r\n'), new)
    assert 'On top.' in windows and windows.count('# m\n') == 1 and '1.0000' not in windows


@pytest.mark.parametrize('damage', [lambda c: c.replace('<!-- rnn_fastai: end -->', ''), lambda c: 'Mine alone.\n',
                                    lambda c: c.replace('<!-- rnn_fastai: made', '<!-- made')])
def test_a_card_without_the_comments_keeps_its_text(learners, damage):
    old = damage(model_card(learners['lm'], valid_loss=1))
    got = renew_card(old, model_card(learners['lm'], valid_loss=2))
    assert got.endswith(old.split('---\n')[-1]) and 'value: 2.0' in got


@pytest.mark.parametrize('head', ['a: [', 'just words', '- a\n- b', 'a: b: c'])
def test_a_card_with_broken_metadata_stays_and_is_warned_of(learners, head):
    old = f'---\n{head}\n---\n# Mine\n'
    with pytest.warns(UserWarning, match='README.md stays as it is, as its metadata'):
        assert renew_card(old, model_card(learners['lm'])) == old


def test_no_card_and_an_empty_card_are_made_whole(learners):
    new = model_card(learners['lm'])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert renew_card(None, new) == renew_card('', new) == renew_card(' \n', new) == new


def test_a_licence_replaces_the_old_one_and_no_licence_leaves_it(learners):
    new = model_card(learners['lm'])
    old = renew_card(new, new, license='mit')
    assert '\nlicense: mit\n' in old and '\nlicense: mit\n' in renew_card(old, new)
    assert '\nlicense: apache-2.0\n' in renew_card(old, new, license='apache-2.0')


# In a bundle.

@pytest.fixture(scope='module')
def folder(learners, tmp_path_factory):
    learn = learners['lm']
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    return learn.save_bundle(tmp_path_factory.mktemp('cards')/'counting', bleu=0.5)

def card_of(folder): return (folder/'README.md').read_text(encoding='utf8')

@pytest.mark.slow
def test_the_code_of_the_card_works_in_a_new_process(folder):
    code = card_of(folder).partition('```python\n')[2].partition('```')[0]
    here = str(Path(__file__).parents[1])
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', f'import sys; sys.path.insert(0, {here!r})\n{code}\nprint(learn.last_scores)'],
                         cwd=folder.parent, capture_output=True, text=True, check=True).stdout
    assert "'bleu': 0.5" in out

def test_figures_and_sizes_of_data_survive_a_load_and_a_save(learners, folder, tmp_path):
    learn,again = learners['lm'],load_bundle(folder, device='cpu')
    assert again.last_scores == {**learn.last_scores, 'bleu': 0.5} and 'valid_loss' in again.last_scores
    assert again.trained_on['train'] == dict(texts=16, tokens=int(learn.dls.train_ds.lens.sum()))
    again.predict('a good', 2, no_bar=True)
    text = card_of(again.save_bundle(tmp_path/'counting'))
    assert f"Trained on 16 texts of {learn.dls.train_ds.lens.sum()} tokens; validated on 4 texts of" in text
    assert f"| `valid_loss` | {learn.last_scores['valid_loss']:.4f} | last epoch |" in text

def test_a_prediction_does_not_change_the_figures(learners, folder, tmp_path):
    learn = learners['lm']
    learn.predict('a good', 2, no_bar=True)
    with learn.no_bar(), learn.no_logging(): learn.validate()
    assert '| `train_loss` |' in card_of(learn.save_bundle(tmp_path/'counting'))

def test_a_second_save_keeps_what_was_written_by_hand(learners, folder, tmp_path):
    learn,at = learners['lm'],tmp_path/'m'
    learn.save_bundle(at)
    (at/'README.md').write_text(card_of(at).replace('Write here', 'Of my own. Write here'), encoding='utf8')
    learn.save_bundle(at, bleu=0.25)
    assert 'Of my own.' in card_of(at) and '| `bleu` | 0.2500 |' in card_of(at)
    (at/'README.md').unlink()
    learn.save_bundle(at)
    assert '# m\n' in card_of(at)

def test_a_card_in_another_encoding_stays(learners, tmp_path):
    at = learners['lm'].save_bundle(tmp_path/'m')
    (at/'README.md').write_bytes('Zürich'.encode('latin-1'))
    with pytest.warns(UserWarning, match='stays as it is, as it is not UTF-8'): learners['lm'].save_bundle(at)
    assert (at/'README.md').read_bytes() == 'Zürich'.encode('latin-1')

def test_figures_of_a_bundle_that_are_no_numbers_are_refused(folder, tmp_path):
    from rnn_fastai.ship.storage import read_files, write_files
    stored = read_files(folder)
    texts = {n: stored.text(n) for n in stored.texts}
    for name,value in dict(scores={'bleu': 'high'}, trained_on={'train': {'texts': 'many'}, 'valid': {}}).items():
        write_files(tmp_path/name, {**stored.config, name: value}, stored.tensors(), texts)
        with pytest.raises(ValueError, match='cannot be opened'): load_bundle(tmp_path/name)
