"Recordings against a naive oracle: blocks and segments at random, in memory, on the disk, saved, cut, put together."
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnn_fastai.inside.recording import SEGMENT, FolderStore, Recording

VOCAB = ['xxbos', 'a', 'b', 'c']
KEYS = [('rnn', 'h'), ('rnn', 'c'), ('output', 'logits')]
SIZES = dict(zip(KEYS, (3, 2, 4), strict=True))


@st.composite
def batches(draw):
    "For each batch: rows of it, (document, steps); and which parts it records."
    rows = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), min_size=1, max_size=4, unique_by=lambda r: r[0])
    return draw(st.lists(st.tuples(rows, st.sets(st.sampled_from(KEYS[1:]))), min_size=1, max_size=5))


def fill(rec, plan, seed):
    "Add the batches to `rec`; what it should hold, by document: ids, and rows of each part."
    rng, want = np.random.default_rng(seed), {}
    for b, (rows, extra) in enumerate(plan):
        keys, n = [KEYS[0], *(k for k in KEYS if k in extra)], sum(n for _, n in rows)
        arrays = {k: rng.normal(size=(n, SIZES[k])).astype(np.float32) for k in keys}
        ids, segs, at = rng.integers(0, 4, n), np.zeros(len(rows), SEGMENT), 0
        for i, (doc, steps) in enumerate(rows):
            held = want.setdefault(doc, {'ids': [], **{k: [] for k in KEYS}})
            segs[i] = (doc, len(held['ids']), 0, at, steps, b, i, False)
            held['ids'] += ids[at:at+steps].tolist()
            for k in KEYS:
                nothing = np.full((steps, SIZES[k]), np.nan, np.float32)
                held[k].append(arrays[k][at:at+steps] if k in arrays else nothing)
            at += steps
        rec.add(arrays, segs, ids)
    return [{k: v if k == 'ids' else np.concatenate(v) for k, v in want[d].items()} for d in sorted(want)]


def check(rec, want):
    assert len(rec) == len(want) and rec.n_steps == sum(len(w['ids']) for w in want)
    for d, w in enumerate(want):
        assert rec.ids(d).tolist() == w['ids'] and rec.tokens(d) == [VOCAB[i] for i in w['ids']]
        assert rec.steps(d).tolist() == list(range(len(w['ids'])))
        for k in rec.sizes: np.testing.assert_array_equal(rec[(*k, d)], w[k])
    for k in rec.sizes:
        np.testing.assert_array_equal(rec[k], np.concatenate([w[k] for w in want]))
        np.testing.assert_array_equal(rec[(*k, slice(None, None, -1))], np.concatenate([w[k] for w in want[::-1]]))


@settings(max_examples=20, deadline=None)
@given(plan=batches(), seed=st.integers(0, 99))
def test_blocks_and_segments(plan, seed, tmp_path_factory):
    folder = tmp_path_factory.mktemp('rec')
    rec, disk = Recording(vocab=VOCAB), Recording(FolderStore(folder/'disk', VOCAB), VOCAB)
    want = fill(rec, plan, seed)
    fill(disk, plan, seed)
    for r in (rec, disk, Recording.load(folder/'disk'), Recording.load(rec.save(folder/'saved'))): check(r, want)
    both = Recording.concat([rec, rec])
    check(both, want + want)
    some = rec.select(docs=slice(None, None, 2), parts='h', units=[2, 0])
    np.testing.assert_array_equal(some[0, 'h'], np.concatenate([w[KEYS[0]][:, [2, 0]] for w in want[::2]]))
    frame = rec.to_frame(0, 'h')
    np.testing.assert_array_equal(frame.drop(columns='token').to_numpy(), rec[0, 'h'])


@settings(max_examples=40, deadline=None)
@given(plan=batches(), seed=st.integers(0, 99))
def test_split(plan, seed):
    rec = Recording(vocab=VOCAB)
    want = []
    for w in fill(rec, plan, seed):
        cuts = sorted({0, *(i for i, t in enumerate(w['ids']) if t == 0)}) + [len(w['ids'])]
        want += [{k: v[a:b] for k, v in w.items()} for a, b in zip(cuts, cuts[1:], strict=False)]
    check(rec.split('xxbos'), want)


def test_a_document_is_read_without_the_others(tmp_path):
    "A recording larger than what is read: the map of one document is a view of its rows."
    rec = Recording(FolderStore(tmp_path/'rec'))
    segs = np.zeros(50, SEGMENT)
    segs['doc'], segs['n'], segs['start'] = np.arange(50), 100, np.arange(50)*100
    rec.add({('rnn', 'h'): np.arange(5000*8, dtype=np.float16).reshape(5000, 8) % 512}, segs)
    one = Recording.load(tmp_path/'rec')[0, 'h', 7]
    assert isinstance(one, np.memmap) and one.shape == (100, 8) and one.dtype == np.float16
    assert one.offset > 0 or one.base is not None


def test_empty_recordings(tmp_path):
    rec = Recording()
    assert len(rec) == 0 and rec.n_steps == 0 and rec.layers == [] and 'empty' in repr(rec) and len(rec.docs) == 0
    with pytest.raises(KeyError, match="There is no layer 0"): rec[0, 'h']
    back = Recording.load(rec.save(tmp_path/'rec'))
    assert len(back) == 0


@pytest.mark.parametrize('name', ['recording.json', 'segments.npy', 'ids.npy', '000.npy'])
def test_damaged_folders(tmp_path, name):
    rec = Recording.from_arrays({('rnn', 'h'): np.zeros((4, 2))}, [4])
    rec.save(tmp_path/'rec')
    whole = (tmp_path/'rec'/name).read_bytes()
    for part in (whole[:len(whole)//2], b''):
        (tmp_path/'rec'/name).write_bytes(part)
        with pytest.raises(ValueError, match="is damaged"): Recording.load(tmp_path/'rec')

def test_a_mask_picks_documents_and_other_values_are_refused():
    rec = Recording.from_arrays({('rnn', 'h'): np.arange(12.).reshape(6, 2)}, [1, 2, 3])
    for mask in (np.array([True, False, True]), [True, False, True]):
        np.testing.assert_array_equal(rec['rnn', 'h', mask], rec['rnn', 'h', [0, 2]])
        assert len(rec.select(mask)) == 2 and rec.doc_numbers(mask) == [0, 2]
    assert rec.doc_numbers(range(2)) == [0, 1] and rec.doc_numbers(np.int8(-1)) == [2] and rec.doc_numbers([]) == []
    with pytest.raises(IndexError, match='mask of 2 does not fit 3 documents'): rec.doc_numbers([True, False])
    for odd in (1.5, 'a', [1.5], None, [[0, 1]]):
        with pytest.raises(TypeError, match='must be the number of a document'): rec.doc_numbers(odd)
