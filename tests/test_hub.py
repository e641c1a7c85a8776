"Pushing to and loading from a hub, against one that the tests start on this machine."
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from rnn_fastai.data.loaders import TextDataLoaders
from rnn_fastai.data.sequences import SeqDataLoaders
from rnn_fastai.data.subwords import ByteLevelTokenizer
from rnn_fastai.learner.classifier import text_classifier_learner
from rnn_fastai.learner.lm import language_model_learner
from rnn_fastai.learner.rnn import module_learner
from rnn_fastai.ship.hub import FILES, HubError, from_hub
from rnn_fastai.ship.storage import BundleError

hub_library = pytest.importorskip('huggingface_hub')
SMALL = dict(emb_sz=8, n_hid=12, n_layers=2)
FRAME = pd.DataFrame(dict(text=['a good film', 'a bad one', 'so so', 'very good']*5, label=['pos', 'neg', 'neg', 'pos']*5))


def text_loaders(**args): return TextDataLoaders.from_df(FRAME, text_col='text', bs=4, seed=1, **args)

@pytest.fixture(scope='module')
def learn():
    res = text_classifier_learner(text_loaders(label_col='label'), 'AWD_LSTM', config=SMALL, pretrained=False)
    with res.no_bar(), res.no_logging(): res.fit(1, 1e-3)
    return res

def answers(learn):
    with learn.no_bar(): return [learn.predict(t)[2] for t in ('a good film', 'so bad', '')]

def files_asked(hub): return {p.rpartition('/')[2] for _,p in hub.asked if '/resolve/' in p}


def test_what_is_pushed_comes_back_with_the_same_answers(hub, learn):
    assert learn.push_to_hub('me/reviews', token='secret') == f'{hub.url}/me/reviews'
    repo = hub.repos['me/reviews']
    assert set(repo.files) == {'.gitattributes', 'config.json', 'model.safetensors', 'vocab.json', 'README.md'}
    assert len(repo.commits) == 2 and not repo.private   # all files in one commit
    again = from_hub('me/reviews', device='cpu')
    for a,b in zip(answers(again), answers(learn), strict=True): assert torch.equal(a, b)
    assert str(again.path) == str(again.dls.path) == '.' and again.save('w').is_file()


def test_the_card_on_the_hub_says_how_to_load_it(hub, learn):
    learn.push_to_hub('me/reviews', token='secret', license='mit')
    card = hub_library.ModelCard(hub.repos['me/reviews'].files['README.md'].decode())
    assert "learn = from_hub('me/reviews')" in card.text and '# reviews' in card.text
    assert (card.data.license, card.data.pipeline_tag) == ('mit', 'text-classification')
    assert card.data.eval_results[0].metric_value == learn.last_scores['valid_loss']


def test_a_second_push_keeps_what_was_written_by_hand_and_other_files(hub, learn):
    learn.push_to_hub('me/reviews', token='secret')
    repo = hub.repos['me/reviews']
    card = repo.files['README.md'].decode().replace('Write here', 'Reviews of 1999. Write here')
    repo.commit({**repo.files, 'README.md': card.encode(), 'photo.png': b'photo', 'tokenizer.json': b'{}'}, 'by hand')
    learn.push_to_hub('me/reviews', token='secret', message='More training')
    assert b'Reviews of 1999.' in repo.files['README.md'] and repo.files['photo.png'] == b'photo'
    assert 'tokenizer.json' not in repo.files   # of a bundle before, which had subwords
    assert repo.messages[-1] == 'More training'


def test_subwords_come_along(hub):
    dls = text_loaders(is_lm=True, seq_len=5, tok_tfm=ByteLevelTokenizer(vocab_sz=300))
    lm = language_model_learner(dls, 'AWD_LSTM', config=SMALL, pretrained=False)
    lm.push_to_hub('me/parts', token='secret')
    again = from_hub('me/parts', device='cpu')
    assert lm.predict('a bad', 5, temperature=0, no_bar=True) == again.predict('a bad', 5, temperature=0, no_bar=True)


class Net(torch.nn.Module):
    "A model of one's own."
    def __init__(self, n, width):
        super().__init__()
        self.n,self.width = n,width
        self.emb,self.out = torch.nn.Embedding(n, width),torch.nn.Linear(width, n)
    def forward(self, ids): return self.out(self.emb(ids))

def test_a_class_of_ones_own_is_named_in_the_card_and_wants_to_be_allowed(hub):
    own = module_learner(SeqDataLoaders.from_series('abcabd'), Net(4, 3))
    own.push_to_hub('me/own', token='secret')
    path = f'{Net.__module__}.Net'
    assert f"from_hub('me/own', allow=[{path!r}])" in hub.repos['me/own'].files['README.md'].decode()
    with pytest.raises(BundleError, match=f'me/own.*{path}.*not part of rnn_fastai'): from_hub('me/own')
    again = from_hub('me/own', allow=[Net], device='cpu')
    assert again.predict('ab', 2, temperature=0) == own.predict('ab', 2, temperature=0)


@pytest.mark.slow
def test_a_new_process_finds_the_hub_by_its_environment(hub, learn, tmp_path):
    learn.push_to_hub('me/reviews', private=True, token='secret')
    code = ("from rnn_fastai.ship.hub import from_hub\nlearn = from_hub('me/reviews', device='cpu')\n"
            "with learn.no_bar(): print(learn.predict('a good film')[2].tolist())")
    env = {**os.environ, 'HF_ENDPOINT': hub.url, 'HF_HOME': str(tmp_path/'home'), 'HF_TOKEN': 'secret',
           'HF_HUB_DISABLE_XET': '1', 'PYTHONPATH': str(Path(__file__).parents[1])}
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True, env=env).stdout
    assert json.loads(out) == answers(learn)[0].tolist()


def test_files_are_downloaded_once_and_only_those_of_a_bundle(hub, learn):
    learn.push_to_hub('me/reviews', token='secret')
    repo = hub.repos['me/reviews']
    repo.commit({**repo.files, 'evil.pkl': b'x', 'modeling.py': b'raise SystemExit', 'sub/config.json': b'{}'}, 'by hand')
    hub.asked.clear()
    from_hub('me/reviews')
    assert files_asked(hub) == set(FILES) & set(repo.files)
    hub.asked.clear()
    from_hub('me/reviews')
    assert files_asked(hub) == set()


def test_a_revision_is_that_revision(hub, learn):
    learn.push_to_hub('me/reviews', token='secret')
    repo = hub.repos['me/reviews']
    first = repo.head
    repo.commit({n: d for n,d in repo.files.items() if n != 'config.json'}, 'damaged')
    with pytest.raises(BundleError, match='me/reviews is no bundle: it has no config.json'): from_hub('me/reviews')
    from_hub('me/reviews', revision=first)
    with pytest.raises(HubError, match="has no revision 'v9': leave it out, or name a branch, tag or commit"):
        from_hub('me/reviews', revision='v9')


def test_another_library_s_model_is_refused_before_its_weights_are_downloaded(hub):
    hub.add('me/bert', {'config.json': b'{"model_type": "bert"}', 'model.safetensors': b'0'*100, 'vocab.json': b'{}'})
    with pytest.raises(BundleError, match='me/bert is no bundle: its config.json is of another kind'): from_hub('me/bert')
    assert files_asked(hub) == {'config.json'}


@pytest.mark.parametrize('name', ['model.safetensors', 'vocab.json', 'config.json'])
def test_a_changed_byte_is_found_and_named_with_the_repository(hub, learn, name):
    learn.push_to_hub('me/reviews', token='secret')
    repo = hub.repos['me/reviews']
    data = bytearray(repo.files[name])
    data[len(data)//2] ^= 1
    repo.commit({**repo.files, name: bytes(data)}, 'by hand')
    with pytest.raises(BundleError, match=f'^me/reviews/{name} .*|^me/reviews is no bundle'): from_hub('me/reviews')


def test_the_library_reads_the_card_without_metadata_of_its_own(hub, learn):
    hub.add('me/reviews', {'README.md': b'# My own card\n'})
    learn.push_to_hub('me/reviews', token='secret')
    text = hub.repos['me/reviews'].files['README.md'].decode()
    assert text.endswith('---\n# My own card\n') and 'library_name: rnn_fastai' in text


# The hub says no.

@pytest.mark.parametrize('call', [lambda l: l.push_to_hub('me/reviews', token='secret'), lambda l: from_hub('me/reviews')])
def test_a_hub_that_is_not_reachable_is_named(hub, learn, monkeypatch, call):
    monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', 'http://127.0.0.1:9')
    with pytest.raises(HubError, match='me/reviews on http://127.0.0.1:9 cannot be reached: check the network, and HF_ENDPOINT'):
        call(learn)


def test_what_is_in_the_cache_opens_without_a_hub(hub, learn, monkeypatch):
    learn.push_to_hub('me/reviews', token='secret')
    from_hub('me/reviews')
    monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', 'http://127.0.0.1:9')
    for a,b in zip(answers(from_hub('me/reviews', device='cpu')), answers(learn), strict=True): assert torch.equal(a, b)


def test_offline_is_named(hub, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(HubError, match='is not asked, as HF_HUB_OFFLINE is set: unset it'): from_hub('me/reviews')


def test_a_repository_that_is_not_there_is_named(hub):
    with pytest.raises(HubError, match='me/nothing on .* is not there, or may not be seen: check the name; if it is private'):
        from_hub('me/nothing', token='secret')


def test_a_private_repository_needs_its_owner(hub, learn):
    learn.push_to_hub('me/own', private=True, token='secret')
    assert hub.repos['me/own'].private
    for token in (None, 'other'):
        with pytest.raises(HubError, match='me/own on .* may not be seen.*log in with `hf auth login`, or pass a token'):
            from_hub('me/own', token=token)
    from_hub('me/own', token='secret')


@pytest.mark.parametrize('token,repo,words', [
    (None, 'me/reviews', 'does not know who asks: log in'), ('wrong', 'me/reviews', 'does not know who asks: log in'),
    ('other', 'me/reviews', 'does not allow this: log in with `hf auth login`, or pass a token that may write there'),
    ('other', 'me/there', 'does not allow this: log in with `hf auth login`, or pass a token that may write there')])
def test_who_may_not_write_is_told_so(hub, learn, token, repo, words):
    hub.add('me/there', {'config.json': b'{}'})
    with pytest.raises(HubError, match=f'{repo} on .* {words}'): learn.push_to_hub(repo, token=token)
    assert len(hub.repos['me/there'].commits) == 2 and 'me/reviews' not in hub.repos


def test_a_private_push_never_goes_to_a_public_repository(hub, learn):
    learn.push_to_hub('me/reviews', token='secret')
    with pytest.raises(HubError, match='me/reviews is there and public: make it private in its settings'):
        learn.push_to_hub('me/reviews', private=True, token='secret')
    assert len(hub.repos['me/reviews'].commits) == 2


def test_two_pushes_at_once_do_not_mix(hub, learn):
    learn.push_to_hub('me/reviews', token='secret')
    repo = hub.repos['me/reviews']
    hub.before_commit = lambda: repo.commit({**repo.files, 'vocab.json': b'new'}, 'another')
    with pytest.raises(HubError, match='was changed by another push in the meantime: push again'):
        learn.push_to_hub('me/reviews', token='secret')
    assert repo.files['vocab.json'] == b'new'


@pytest.mark.parametrize('path,status,words', [('/api/models/', 500, 'answers with the status 500: try again later'),
                                               ('/api/models/', 403, 'does not allow this'),
                                               ('/api/models/', 422, 'answers with the status 422: read its answer'),
                                               ('/api/models/', 429, 'has been asked too often: wait a while')])
def test_other_answers_are_named(hub, learn, path, status, words):
    hub.broken[path] = status
    for call in (lambda: learn.push_to_hub('me/reviews', token='secret'), lambda: from_hub('me/reviews')):
        with pytest.raises(HubError, match=f'me/reviews on .* {words}'): call()


def test_a_licence_that_the_hub_refuses_is_named_with_the_repository(hub, learn):
    with pytest.raises(ValueError, match='me/reviews on .* does not take this: Invalid metadata in README.md.*not gpl-9'):
        learn.push_to_hub('me/reviews', token='secret', license='gpl-9')
    assert len(hub.repos['me/reviews'].commits) == 1


def test_a_full_disk_is_named(hub, learn, monkeypatch):
    learn.push_to_hub('me/reviews', token='secret')
    def full(*args): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(shutil, 'copyfile', full)
    with pytest.raises(HubError, match='me/reviews on .* needs room and rights on this disk: free some space, or name another'):
        from_hub('me/reviews')


@pytest.mark.parametrize('repo', ['', 'a/b/c', '../x', 'me/re views', '-x', None, 7])
def test_a_name_of_no_repository_is_refused_before_anything_is_asked(hub, learn, repo):
    for call in (lambda: learn.push_to_hub(repo, token='secret'), lambda: from_hub(repo)):
        with pytest.raises(ValueError, match="repo=.* is no name of a repository. Use 'user/name'"): call()
    assert hub.asked == []


def test_a_learner_that_cannot_be_saved_makes_no_repository(hub):
    lm = language_model_learner(text_loaders(is_lm=True, seq_len=5), 'AWD_LSTM', config=SMALL, pretrained=False)
    lm.model[1].forward = lambda *args: None
    with pytest.raises(ValueError): lm.push_to_hub('me/reviews', token='secret')
    assert hub.asked == []


def test_without_the_library_the_extra_is_named(learn, monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    for call in (lambda: learn.push_to_hub('me/reviews'), lambda: from_hub('me/reviews')):
        with pytest.raises(ImportError, match=r'Install it with: pip install "rnn_fastai\[hub\]"'): call()


def test_the_library_is_not_imported_before_it_is_called():
    code = "import sys, rnn_fastai.ship.hub; print('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == 'False'


def test_a_public_repository_is_not_taken_for_a_private_one(hub, learn):
    learn.push_to_hub('me/reviews', token='secret')
    before = hub.repos['me/reviews'].head
    with pytest.raises(HubError, match='^me/reviews is there and public: make it private in its settings, or leave private out$'):
        learn.push_to_hub('me/reviews', private=True, token='secret')
    assert hub.repos['me/reviews'].head == before

def test_reading_that_is_not_allowed(hub, learn):
    learn.push_to_hub('me/reviews', token='secret')
    hub.broken['/resolve/'] = 403
    with pytest.raises(HubError, match='does not allow this: .* pass a token that may read there'): from_hub('me/reviews')

@pytest.mark.parametrize('revision', [3, True, ['main']])
def test_a_revision_is_a_name(hub, revision):
    with pytest.raises(ValueError, match='revision=.* is no name of a branch, a tag or a commit'): from_hub('me/reviews', revision)

def test_a_card_on_the_hub_that_is_no_text(hub, learn):
    hub.add('me/reviews', {'README.md': b'\xff\xfe'})
    with pytest.raises(ValueError, match='me/reviews/README.md is not UTF-8: .* Convert it'): learn.push_to_hub('me/reviews', token='secret')
    assert set(hub.repos['me/reviews'].files) == {'README.md'}
