"What learners say where another kind of learner, or something else, was meant."
import pandas as pd
import pytest
from bundles import build, clas_dls, quiet

from rnn_fastai import all as rf
from rnn_fastai.cli.jobs import score_model
from rnn_fastai.ship.bundle import load_bundle

@pytest.mark.parametrize('case, method, meant', [
    ('clas words', 'generate', 'a language model, of language_model_learner'), ('tagger chars', 'score', 'a language model'),
    ('lm AWD_LSTM', 'classify', 'a classifier, of text_classifier_learner'), ('lm AWD_LSTM', 'entities', 'a tagger, of tagger_learner'),
    ('clas words', 'tag', 'a tagger'), ('lm AWD_LSTM', 'class_report', 'a classifier, of text_classifier_learner, or a tagger'),
    ('tagger chars', 'set_thresholds', 'a classifier'), ('lm AWD_LSTM', 'calibrate', 'a classifier')])
def test_a_method_of_another_kind_names_that_kind(case, method, meant):
    learn = build(case)
    with pytest.raises(AttributeError, match=f"has no '{method}'; that is for {meant}"): getattr(learn, method)
    assert not hasattr(learn, method)
    with pytest.raises(AttributeError) as plain: _ = learn.nothing_of_this_name
    assert 'that is for' not in str(plain.value)


@pytest.mark.parametrize('item', [None, 5, float('nan'), b'a', ['a']])
def test_a_classifier_takes_one_text(item):
    with pytest.raises(TypeError, match=f'item is a {type(item).__name__}; predict takes one text'): build('clas words').predict(item)


@pytest.mark.parametrize('metrics', ['acc', ['acc'], [3]])
def test_metrics_that_cannot_be_called_are_refused_at_once(metrics):
    with pytest.raises(TypeError, match='metrics holds .*; it must hold functions or metrics'):
        rf.text_classifier_learner(clas_dls(), rf.AWD_LSTM, pretrained=False, metrics=metrics)


def test_a_text_is_classified_without_a_bar(capsys):
    learn = build('clas words')
    with learn.no_logging(): learn.predict('the cat')
    assert capsys.readouterr().out == ''


def test_a_loaded_learner_shows_no_results_without_data(tmp_path):
    learn = quiet(build('clas words'))
    learn.save_bundle(tmp_path/'own'/'bundle')
    loaded = load_bundle(tmp_path/'own'/'bundle')
    with pytest.raises(ValueError, match='has no batch to show'): loaded.show_results()
    assert loaded.path == tmp_path/'own'   # and what it saves does not lie in the bundle
    with pytest.raises(FileNotFoundError, match="There is no bundle .*bundel. Did you mean 'bundle'"): load_bundle(tmp_path/'own'/'bundel')


def test_results_are_shown_whole_outside_of_notebooks(capsys):
    quiet(build('clas words')).show_results()
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ['text', 'target', 'prediction'] and all(r.split()[-1] in ('neg', 'pos') for r in rows)


def test_empty_texts_of_a_file_are_told(tmp_path):
    (tmp_path/'own.csv').write_text('text,label\n' + 'a b,x\nc d,y\n'*9 + ',x\n" ",y\n')
    with pytest.warns(UserWarning, match="Column 'text': 2 of 20 rows without a text, the first row 18"):
        rf.TextDataLoaders.from_csv(tmp_path, 'own.csv', text_col='text', label_col='label', bs=4, no_bar=True)


def test_a_file_in_another_encoding_is_read_by_its_name(tmp_path):
    (tmp_path/'own.csv').write_bytes(('text,label\n' + 'til Nørrebro,x\nbrød,y\n'*9).encode('cp1252'))
    args = dict(text_col='text', label_col='label', bs=4, no_bar=True, min_freq=1)
    with pytest.raises(ValueError, match='It may be CP1252'): rf.TextDataLoaders.from_csv(tmp_path, 'own.csv', **args)
    dls = rf.TextDataLoaders.from_csv(tmp_path, 'own.csv', encoding='cp1252', **args)
    assert 'brød' in dls.vocab[0]


def test_a_missing_folder_is_told_from_a_missing_file(tmp_path):
    for n in range(60): (tmp_path/f'a{n}.txt').touch()
    (tmp_path/'tickets.csv').touch()
    with pytest.raises(FileNotFoundError, match="There is no folder '.*none'"): rf.TextDataLoaders.from_csv(tmp_path/'none', 'a.csv')
    with pytest.raises(FileNotFoundError, match=r"Did you mean 'tickets\.csv'\? .* and 11 more"): rf.TextDataLoaders.from_csv(tmp_path, 'tikets.csv')


def test_scores_are_read_from_the_columns_of_the_training(tmp_path, capsys):
    df = pd.DataFrame(dict(Message=['a good film', 'a bad one']*10, kind=['x', 'y']*10))
    dls = rf.TextDataLoaders.from_df(df, text_col='Message', label_col='kind', bs=4, min_freq=1, no_bar=True)
    learn = rf.text_classifier_learner(dls, rf.AWD_LSTM, pretrained=False, config=dict(emb_sz=6, n_hid=6, n_layers=1))
    learn.save_bundle(tmp_path/'bundle')
    df.to_csv(tmp_path/'own.csv', index=False)
    score_model(str(tmp_path/'bundle'), str(tmp_path/'own.csv'), quiet=True)
    assert capsys.readouterr().out.startswith('20 rows: ')


def test_a_whole_path_makes_no_folder_of_models(tmp_path):
    learn = build('clas words')
    learn.path = tmp_path/'own'
    assert learn.save(tmp_path/'w').parent == tmp_path and not (tmp_path/'own').exists()
    assert learn.save('w').parent == tmp_path/'own'/'models'
    learn.load(tmp_path/'w')
