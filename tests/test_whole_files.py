"One atomic writer: files and folders are whole or as before, drafts of the dead are swept, nothing else is touched."
import fcntl
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from rnn_fastai.files import sweep, write_folder, write_whole, written_whole

def names(folder): return sorted(p.name for p in folder.iterdir())

def child(code, *args):
    "A process that runs `code` with the arguments, and says when it comes to a place."
    code = f"import os, signal, sys, time\nfrom pathlib import Path\nfrom rnn_fastai.files import *\n{textwrap.dedent(code)}"
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], stdout=subprocess.PIPE, text=True)

FILE = """
    with written_whole(sys.argv[1]) as p:
        p.write_text('half'); print('here', flush=True); time.sleep(100)
"""
FOLDER = """
    def half(folder):
        (folder/'a').write_text('half'); print('here', flush=True); time.sleep(100)
    write_folder(Path(sys.argv[1]), half, {'a'})
"""

@pytest.mark.parametrize('code', [FILE, FOLDER])
def test_the_draft_of_a_living_writer_stays_and_that_of_a_dead_one_goes(code, tmp_path):
    p = child(code, tmp_path/'out')
    assert p.stdout.readline() == 'here\n'
    draft, = names(tmp_path)
    for other in ('one', 'two'): write_whole(tmp_path/other, 'text')
    assert names(tmp_path) == [draft, 'one', 'two']
    p.kill(); p.communicate()
    assert names(tmp_path) == [draft, 'one', 'two']
    write_whole(tmp_path/'one', 'again')
    assert names(tmp_path) == ['one', 'two']

@pytest.mark.parametrize('what', ['file', 'folder'])
def test_killed_at_random_moments(what, tmp_path):
    "What is there is the old or the new, whole, and the next writer leaves nothing else."
    code = """
        def one(folder):
            for n in 'abc': (folder/n).write_text(str(i)*20_000)
        print('here', flush=True)
        for i in range(1, 10_000):
            if sys.argv[2] == 'file': write_whole(sys.argv[1], str(i)*20_000)
            else: write_folder(Path(sys.argv[1]), one, set('abc'))
    """
    rng,out = random.Random(0),tmp_path/'out'
    for _ in range(12):
        p = child(code, out, what)
        p.stdout.readline()
        time.sleep(rng.uniform(0.001, 0.05))
        p.kill(); p.communicate()
        sweep(tmp_path)   # of a folder that was moved away, the old one comes back
        assert names(tmp_path) in ([], ['out'])
        texts = [f.read_text() for f in (out.iterdir() if what == 'folder' else [out])] if out.exists() else []
        assert len(texts) in ((0, 3) if what == 'folder' else (0, 1)) and len(set(texts)) <= 1
        assert not texts or texts[0] == texts[0][:len(texts[0])//20_000]*20_000

def test_a_folder_that_was_moved_away_comes_back(tmp_path):
    "Killed between the two renames, a writer has left the old folder in its draft."
    def fill(folder): (folder/'a').write_text('old')
    write_folder(tmp_path/'out', fill, {'a'})
    code = """
        rename = Path.rename
        def killed(p, to):
            if p.name == 'new': os.kill(os.getpid(), signal.SIGKILL)
            return rename(p, to)
        Path.rename = killed
        write_folder(Path(sys.argv[1]), lambda folder: (folder/'a').write_text('new'), {'a'})
    """
    p = child(code, tmp_path/'out')
    p.communicate()
    assert p.returncode == -signal.SIGKILL and not (tmp_path/'out').exists()
    write_whole(tmp_path/'other', 'text')
    assert names(tmp_path) == ['other', 'out'] and (tmp_path/'out'/'a').read_text() == 'old'

def test_an_interrupt_between_the_renames_loses_nothing(tmp_path, monkeypatch):
    write_folder(tmp_path/'out', lambda folder: (folder/'a').write_text('old'), {'a'})
    rename = type(tmp_path).rename
    def broken(p, to):
        if p.name == 'new': raise KeyboardInterrupt
        return rename(p, to)
    monkeypatch.setattr(type(tmp_path), 'rename', broken)
    with pytest.raises(KeyboardInterrupt): write_folder(tmp_path/'out', lambda folder: (folder/'a').write_text('new'), {'a'})
    assert names(tmp_path) == ['out'] and (tmp_path/'out'/'a').read_text() == 'old'

def test_sweeping_takes_nothing_of_others(tmp_path):
    mine = ['.a.rnn_fastai-0123456', '.a.rnn_fastai-0123456g', 'a.rnn_fastai-01234567', '.a.tmp', '.a.txt.part', 'a',
            '.a.rnn_fastai-01234567.txt']
    for n in mine: (tmp_path/n).write_text('mine')
    (tmp_path/'.link.rnn_fastai-01234567').symlink_to(tmp_path/'a')
    write_whole(tmp_path/'b', 'text')
    assert names(tmp_path) == sorted([*mine, 'b', '.link.rnn_fastai-01234567'])

def test_two_writers_at_once_both_write(tmp_path):
    code = """
        for i in range(60):
            write_whole(sys.argv[1], sys.argv[2]*10_000)
            assert Path(sys.argv[1]).read_text() in ('a'*10_000, 'b'*10_000)
    """
    pair = [child(code, tmp_path/'out', name) for name in 'ab']
    assert [p.wait() for p in pair] == [0, 0] and names(tmp_path) == ['out']
    for p in pair: p.stdout.close()

def test_a_draft_is_swept_before_it_is_held(tmp_path, monkeypatch):
    "Another writer may take a new draft, not yet held, for one that was left: the writer makes another."
    made,flock = [],fcntl.flock
    def late(fd, how):
        draft = next(p for p in tmp_path.iterdir() if p.name.startswith('.out'))
        if not made: draft.unlink()
        made.append(draft.name)
        return flock(fd, how)
    monkeypatch.setattr(fcntl, 'flock', late)
    write_whole(tmp_path/'out', 'text')
    assert len(set(made)) == 2 and names(tmp_path) == ['out'] and (tmp_path/'out').read_text() == 'text'

def test_without_locks_nothing_is_swept(tmp_path, monkeypatch):
    (tmp_path/'.a.rnn_fastai-01234567').write_text('left')
    def none(fd, how): raise OSError(95, 'Operation not supported')
    monkeypatch.setattr(fcntl, 'flock', none)
    write_whole(tmp_path/'out', 'text')
    assert names(tmp_path) == ['.a.rnn_fastai-01234567', 'out']

@pytest.mark.parametrize('name', ['ж'*127, 'a'*255, '名'*85, 'a b\nc', '-x', '.hidden'])
def test_odd_and_long_names(name, tmp_path):
    write_whole(tmp_path/name, 'text')
    with written_whole(tmp_path/name) as p: p.write_text('more')
    assert names(tmp_path) == [name] and (tmp_path/name).read_text() == 'more'

def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path/'file').write_text('text')
    for path in (tmp_path/'file'/'a', tmp_path, tmp_path/('a'*256)):
        with pytest.raises(OSError) as e: write_whole(path, 'text')
        assert f'{path} could not be written' in str(e.value) and 'nothing was changed' in str(e.value)
    assert names(tmp_path) == ['file'] and (tmp_path/'file').read_text() == 'text'

@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_a_folder_that_is_read_only(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match='out could not be written'): write_whole(tmp_path/'out', 'text')
    finally: tmp_path.chmod(0o700)
