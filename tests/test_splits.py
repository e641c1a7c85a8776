"Every loader splits rows by the same rules, and refuses the same things."
import numpy as np
import pandas as pd
import pytest
from fastai.text import all as ft

from rnn_fastai import all as rf
from rnn_fastai.cli.main import train
from rnn_fastai.data.splits import column_splitter, random_splitter

N = 20
BASE = dict(bs=2, device='cpu')

def frame(held): return pd.DataFrame(dict(text=['a b c d']*N, label=['x', 'y']*(N//2), tokens=[['a', 'b']]*N,
                                          tags=[['A', 'B']]*N, held=pd.Series(held, dtype=object)))

def lm(df, **how): return rf.TextDataLoaders.from_df(df, is_lm=True, text_col='text', no_bar=True, **BASE, **how)
def classifier(df, **how):
    return rf.TextDataLoaders.from_df(df, text_col='text', label_col='label', no_bar=True, **BASE, **how)
def tags(df, **how): return rf.TagDataLoaders.from_df(df, **BASE, **how)
def pairs(df, valid_pct): return rf.SeqDataLoaders.from_pairs(df.text, df.label, 'many-to-one', valid_pct=valid_pct, **BASE)
def ulmfit(df, **how): return rf.ulmfit(df, pretrained=False, bs=2, no_bar=True, **how)
def folder(df, valid_pct, tmp_path):
    for i,t in enumerate(df.text): (tmp_path/f'{i}.txt').write_text(t)
    return rf.TextDataLoaders.from_folder(tmp_path, valid_pct=valid_pct, is_lm=True, no_bar=True, **BASE)

BY_COLUMN = {'lm': lm, 'classifier': classifier, 'tags': tags, 'ulmfit': ulmfit}

@pytest.mark.parametrize('door', BY_COLUMN)
@pytest.mark.parametrize('held', [[None]*2, [np.nan]*2, [0.5]*2, ['train', 'dev'], ['True', 'False'], [2, 0], [-1, 0], [pd.NA]*2], ids=str)
def test_columns_that_do_not_say_what_is_held_out(door, held):
    with pytest.raises(ValueError, match="valid_col='held' must be true or false in every row; it holds "):
        BY_COLUMN[door](frame(held*(N//2)), valid_col='held')

@pytest.mark.parametrize('door', ['lm', 'classifier', 'tags'])
@pytest.mark.parametrize('yes,no', [(True, False), (1, 0), (1., 0.), (np.bool_(True), np.bool_(False))], ids=str)
def test_columns_that_do(door, yes, no):
    dls = BY_COLUMN[door](frame([no, no, no, yes]*(N//4)), valid_col='held')
    assert (len(dls.train_ds), len(dls.valid_ds)) == (15, 5) and all(dls.valid_ds.items.held)

@pytest.mark.parametrize('door', [*BY_COLUMN, 'pairs'])
@pytest.mark.parametrize('valid_pct', [-0.1, 1, 1.5, float('nan'), float('inf'), '0.2', True], ids=repr)
def test_parts_that_are_none(door, valid_pct):
    with pytest.raises(ValueError, match=f'valid_pct={valid_pct!r} must be at least 0 and below 1'):
        {**BY_COLUMN, 'pairs': pairs}[door](frame([True]*N), valid_pct=valid_pct)

@pytest.mark.parametrize('valid_pct', [-0.1, 1, float('nan')])
def test_parts_of_folders(valid_pct, tmp_path):
    with pytest.raises(ValueError, match='must be at least 0 and below 1'): folder(frame([True]*N), valid_pct, tmp_path)

def test_the_split_is_fastais():
    df = frame([False, True]*(N//2))
    for ours,theirs in ((random_splitter(0.3, 7), ft.RandomSplitter(0.3, seed=7)),
                        (column_splitter(df, 'held'), ft.ColSplitter('held'))):
        assert [list(map(int, rows)) for rows in ours(df)] == [list(map(int, rows)) for rows in theirs(df)]

@pytest.mark.parametrize('task', ['lm', 'classifier', 'tagger'])
def test_the_command_says_so(task, tmp_path):
    df = frame(['train', 'dev']*(N//2)).assign(tokens='a b', tags='A B')
    df.to_csv(tmp_path/'d.csv', index=False)
    with pytest.raises(ValueError, match='must be true or false in every row'):
        train.__wrapped__(task, str(tmp_path/'d.csv'), str(tmp_path/'m'), valid='held')

@pytest.mark.parametrize('kind', [float, np.float32, np.float64], ids=lambda k: k.__name__)
def test_a_part_of_any_type_of_number(kind):
    dls = classifier(frame([False]*N), valid_pct=kind(0.5), stratify=True, seed=0)
    assert sorted(dls.valid_ds.items.label) == ['x']*(N//4) + ['y']*(N//4)

@pytest.mark.parametrize('how', [dict(valid_pct=0.5, seed=0), dict(valid_col='held')], ids=['random', 'column'])
def test_missing_labels_are_counted_in_all_rows(how):
    df = frame([True]*5 + [False]*(N-5)).assign(label=['x', None, 'y', 'x']*(N//4))
    with pytest.raises(ValueError, match=f"Column 'label' has {N//4} missing labels, the first in row 1"):
        classifier(df, **how)
