"The command at a pseudo-terminal, as a person sits before it: arrow keys, Ctrl-C, prompts. Each process imports torch."
import os
import re
import signal
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import rnn_fastai

ptyprocess = pytest.importorskip('ptyprocess')
pytestmark = pytest.mark.slow
UP,CTRL_C = '\x1b[A','\x03'
SMALL = '--emb-sz', '6', '--n-hid', '6', '--bs', '4'

class Terminal:
    "A process at a terminal of its own, and all that it has written."
    def __init__(self, folder, *args):
        env = {**os.environ, 'OMP_NUM_THREADS': '1', 'TERM': 'xterm', 'PYTHONPATH': str(Path(rnn_fastai.__file__).parents[1])}
        self.p = ptyprocess.PtyProcessUnicode.spawn([sys.executable, '-m', 'rnn_fastai', *map(str, args)], env=env, cwd=str(folder), dimensions=(40, 200))
        self.seen = ''

    def until(self, words, n=1):
        "Read until words were written `n` times."
        while len(re.findall(words, self.seen)) < n: self.seen += self.p.read()
        return self

    def type(self, text):
        self.p.write(text)
        return self

    def end(self):
        "What was written by the end, without the marks that move the cursor; the exit status."
        try:
            while True: self.seen += self.p.read()
        except EOFError: pass
        self.p.wait()
        return re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', self.seen).replace('\r', ''),self.p.exitstatus

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Data with columns of odd names, and small models of them."
    root = tmp_path_factory.mktemp('terminal')
    df = pd.DataFrame({'Text of Story (raw)': ['good one, fine day', 'bad two, awful day']*40, 'My Mood?': ['pos', 'neg']*40})
    df.to_csv(root/'stories.csv', index=False)
    (root/'t.tsv').write_text('The\tDET\ndog\tNOUN\n\nGo\tVERB\n\n'*6)
    cols = '--text', 'Text of Story (raw)'
    jobs = [Terminal(root, 'train', 'lm', 'stories.csv', *cols, '--out', 'lm', '--epochs', '1', *SMALL),
            Terminal(root, 'train', 'classifier', 'stories.csv', *cols, '--label', 'My Mood?', '--out', 'mood', '--epochs', '1', *SMALL),
            Terminal(root, 'train', 'tagger', 't.tsv', '--out', 'tags', '--epochs', '1', *SMALL)]
    for job in jobs:
        said,status = job.end()
        assert status == 0 and 'The model is in' in said and 'Warning' not in said and 'Traceback' not in said, said
    return root

def test_a_training_that_is_stopped_goes_on(folder):
    "Ctrl-C ends it with one line that says how to go on; so it does, and the model is whole."
    args = 'train', 'lm', 'stories.csv', '--text', 'Text of Story (raw)', '--out', 'cut', *SMALL, '--epochs', '400'
    t = Terminal(folder, *args).until(r'\r3  ')   # the row of the fourth epoch
    said,status = t.type(CTRL_C).end()
    assert status == 1 and 'Traceback' not in said
    last = said.strip().splitlines()[-1]   # behind `^C`, which the terminal shows where the cursor is
    assert re.search(r'(^|\^C)rnn_fastai train: interrupted\. checkpoint-\d+ is kept in cut/checkpoints; go on with the same command and --resume\.$', last), said
    said,status = Terminal(folder, *args).end()
    assert status == 1 and 'go on with --resume, or delete the folder' in said
    said,status = Terminal(folder, *args[:-1], '300', '--resume').end()
    assert status == 1 and ' was 400 and is 300' in said
    t = Terminal(folder, *args, '--resume').until(r'\r\d+  ', 2)
    said,status = t.type(CTRL_C).end()
    assert status == 1 and 'go on with the same command and --resume.' in said and '\r0  ' not in t.seen   # it did not begin again

def test_a_prompt_is_typed_and_corrected(folder):
    "The line before comes back by the arrow, a word that is not known is told, Ctrl-C ends the command."
    t = Terminal(folder, 'generate', 'lm', '--n-words', '3', '--seed', '1').until('> ')
    t.type('good\r').until('> ', 2).type(UP + '\r').until('> ', 3).type('zebra\r').until('> ', 4)
    said,status = t.type(CTRL_C).end()
    first,second = re.findall(r'^good .*$', said.replace('> ', ''), re.M)[-2:]
    assert first == second and "The prompt 'zebra' holds no word that the model knows" in said
    assert status == 0 and 'Traceback' not in said and '^[[A' not in said

@pytest.mark.parametrize('model,text,answer', [('mood', 'good one', r'(pos|neg)\s+0\.\d+'), ('tags', 'The dog', r'The/\w+ dog/\w+')])
def test_texts_are_typed_to_predict(folder, model, text, answer):
    t = Terminal(folder, 'predict', model).until('> ')
    said,status = t.type(f'{text}\r').until('> ', 2).type('\x04').end()
    assert status == 0 and re.search(answer, said), said

@pytest.mark.parametrize('args', [('eval', 'lm', 'stories.csv'), ('predict', 'lm'), ('train', 'lm', 'stories.csv', '--out', 'new')], ids=' '.join)
def test_ctrl_c_at_once_is_one_line(folder, args):
    "While torch is imported, or the data are read."
    t = Terminal(folder, *args)
    time.sleep(1.5)
    said,status = t.type(CTRL_C).end()
    by_signal = t.p.signalstatus == signal.SIGINT   # so Python ends where the interrupt came through an `exec`
    assert 'Traceback' not in said and (status in (0, 1) or by_signal), said
