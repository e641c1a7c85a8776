"Schemes of tags: every way to write the same entities, rules of neighbours, scores as other libraries give them."
import random

import numpy as np
import pytest

from rnn_fastai.data.schemes import (
    allowed_transitions,
    check_scheme,
    convert_tags,
    entities,
    entity_f1,
    entity_scores,
    find_scheme,
    tag_place,
)

SCHEMES = ['IOB1', 'IOB2', 'BIOES', 'BILOU', 'BMES', 'BMEWO', 'IOE1', 'IOE2']

def draw(rng, letters='BIES'): return [rng.choice(['O', *(f'{l}-{k}' for l in letters for k in ('PER', 'LOC-X'))]) for _ in range(rng.randint(1, 9))]

@pytest.mark.parametrize('to', SCHEMES)
def test_any_tags_come_out_whole(to):
    "The entities stay, the scheme holds, and there and back is the same."
    rng = random.Random(0)
    for _ in range(500):
        tags = draw(rng, rng.choice(['BI', 'BIES', 'BILU', 'BMEW', 'IE']))
        new = convert_tags(tags, to)
        assert entities(new) == entities(tags) and convert_tags(convert_tags(new, 'BIOES'), to) == new
        check_scheme([new], to)
        assert [t for t in new if not tag_place(t)[0]] == [t for t in tags if not tag_place(t)[0]]

@pytest.mark.parametrize('name', SCHEMES)
def test_the_scheme_is_found(name):
    rng = random.Random(1)
    sents = [convert_tags(draw(rng), name) for _ in range(200)]
    assert find_scheme(sents) == name
    for other in SCHEMES:
        if other != name:
            with pytest.raises(ValueError, match=f'Sentence .*scheme {other}'): check_scheme(sents, other)

@pytest.mark.parametrize('name', SCHEMES)
def test_one_broken_tag_is_found(name):
    "In a large set, with its place; and the scheme that nearly all tags keep is the one that is named."
    rng = random.Random(2)
    sents = [convert_tags(draw(rng), name) for _ in range(300)]
    first = {'BIOES': 'I-Z', 'BILOU': 'I-Z', 'BMES': 'M-Z', 'BMEWO': 'M-Z', 'IOB2': 'I-Z', 'IOB1': 'B-Z', 'IOE2': 'I-Z', 'IOE1': 'E-Z'}[name]
    sents[123] = ['O', 'O', first, 'O']
    at = 3 if name.startswith('IOE') else 2   # what goes on backwards is missed at the next tag
    with pytest.raises(ValueError, match=f'Sentence 123, token {at}: The tag .* in the scheme {name}'): find_scheme(sents)

def test_rules_of_tags_without_places():
    assert allowed_transitions(['NOUN', 'VERB'], 'IOB2').values.all() and find_scheme([['NOUN', 'VERB'], ['S']]) is None

@pytest.mark.parametrize('f', [lambda n: convert_tags(['O'], n), lambda n: allowed_transitions(['O'], n), lambda n: check_scheme([], n)])
@pytest.mark.parametrize('name', ['iob2', 'IOB', None, 3])
def test_unknown_schemes(f, name):
    with pytest.raises(ValueError, match=f"Unknown scheme {name!r}.*IOB2"): f(name)

# ---- Scores

GUESS = ['B-LOC B-LOC B-PER B-PER I-PER I-PER B-LOC B-PER', 'B-PER I-PER B-LOC B-PER B-PER B-LOC B-LOC B-PER',
         'B-LOC I-LOC I-LOC I-LOC B-PER B-LOC I-LOC B-LOC', 'B-PER O B-PER B-LOC I-LOC I-LOC B-PER B-LOC',
         'B-PER B-LOC B-PER O B-LOC B-PER B-LOC B-LOC', 'O B-PER B-LOC B-PER B-PER B-LOC O B-PER']
RIGHT = ['B-PER B-LOC I-LOC B-PER O B-PER I-PER B-LOC', 'O B-PER B-LOC B-PER B-LOC B-PER B-LOC B-LOC',
         'B-PER I-PER I-PER B-PER I-PER B-PER O O', 'B-LOC B-LOC B-PER O B-LOC I-LOC I-LOC I-LOC',
         'B-LOC I-LOC B-PER B-PER B-LOC B-PER B-LOC I-LOC', 'B-LOC B-PER B-LOC B-PER I-PER B-LOC I-LOC I-LOC']
def split(sents): return [s.split() for s in sents]

def test_exact_scores_are_those_of_seqeval():
    "Of its version 1.2.2, on the sentences above."
    table = entity_scores(split(GUESS), split(RIGHT))
    assert list(table.index) == ['LOC', 'PER', 'all']
    np.testing.assert_allclose(table[['precision', 'recall', 'f1']].values, [
        [0.23529412, 0.26666667, 0.25], [0.27777778, 0.33333333, 0.3030303], [0.2571428571, 0.3, 0.2769230769]], atol=1e-7)
    assert table.right.tolist() == [15, 15, 30]
    assert entity_f1(split(GUESS), split(RIGHT)) == table.loc['all', ['precision', 'recall', 'f1']].to_dict()

def test_partial_scores_are_those_of_nervaluate():
    "Of its version 1.2.1 by kind (`ent_type`), where no entity meets two others."
    guess = split(['O B-PER I-PER O O B-LOC O', 'B-LOC O O B-PER I-PER I-PER', 'O O B-PER O'])
    right = split(['B-PER I-PER I-PER O O B-PER O', 'B-LOC I-LOC O B-PER I-PER O', 'O O O B-LOC'])
    assert entity_f1(guess, right)['f1'] == 0
    assert entity_f1(guess, right, partial=True) == pytest.approx(dict(precision=0.6, recall=0.6, f1=0.6))
    table = entity_scores(guess, right, partial=True)
    assert table.loc['PER'].tolist() == pytest.approx([2/3, 2/3, 2/3, 3, 3]) and table.at['LOC', 'f1'] == pytest.approx(0.5)

def test_partial_scores_count_each_side_by_itself():
    "A long guess over two entities is one hit of one; both are found."
    one,two = [['B-X', 'I-X', 'I-X']],[['B-X', 'O', 'B-X']]
    assert entity_f1(one, two, partial=True) == dict(precision=1., recall=1., f1=1.)
    assert entity_f1(two, [['B-X', 'I-X', 'O']], partial=True) == pytest.approx(dict(precision=0.5, recall=1., f1=2/3))
