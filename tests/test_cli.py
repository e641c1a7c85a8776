"The command `rnn_fastai`, run as a user runs it, and its front door in this process (a call mostly imports fastai)."
import os
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import pytest

import rnn_fastai
from rnn_fastai.cli import main

COMMAND = Path(sys.executable).with_name('rnn_fastai')
CALLS = dict(help=('--help',), unknown=('dmeo',), demo_help=('demo', '--help'))

@cache
def calls():
    "All calls, started at once from another folder than the repository."
    if not COMMAND.exists(): pytest.skip(f'{COMMAND} is not there; install the package into this environment')
    here = str(Path(rnn_fastai.__file__).parents[1])
    start = partial(subprocess.Popen, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd='/',
                    env={**os.environ, 'OMP_NUM_THREADS': '1', 'COLUMNS': '120', 'PYTHONPATH': here})
    return {k: start([COMMAND, *args]) for k,args in CALLS.items()}

@cache
def result(name):
    "Exit status, output and complaints of a call."
    out,err = calls()[name].communicate(timeout=120)
    return calls()[name].returncode,out,err

@pytest.fixture()
def run(monkeypatch, capsys):
    "Calls the command in this process; gives its exit status, output and complaints."
    def go(*args):
        monkeypatch.setattr(sys, 'argv', ['rnn_fastai', *args])
        try: code = main()
        except SystemExit as e: code = e.code
        return code,*capsys.readouterr()
    return go

def test_help_lists_the_commands(run):
    code,out,err = result('help')
    assert code == 0 and 'Traceback' not in err
    assert 'usage: rnn_fastai COMMAND' in out
    assert 'demo: Train a language model on human numbers' in out
    assert run() == run('-h') == (None, out, '')

def test_unknown_command(run):
    code,out,err = result('unknown')
    assert code == 1 and out == '' and 'Traceback' not in err
    assert "rnn_fastai: Unknown command 'dmeo'. Did you mean 'demo'?" in err
    assert "There is: 'demo'" in run('qqq')[0] and 'Did you mean' not in run('qqq')[0]

def test_help_of_demo_lists_its_arguments():
    code,out,err = result('demo_help')
    assert code == 0 and 'Traceback' not in err
    assert out.startswith('usage: rnn_fastai demo')
    wanted = '--honest', '--seed', '--out', 'Train a language model on human numbers', '8,001 to 9,999', 'default: 42'
    assert [w for w in wanted if w not in out] == []

@pytest.mark.parametrize('args,words', [(('--seed', 'three'), 'invalid int value'), (('--bogus',), '--bogus'),
                                        (('extra',), 'extra')], ids=lambda a: a[0] if isinstance(a, tuple) else '')
def test_bad_argument_of_demo(run, args, words):
    code,out,err = run('demo', *args)
    assert code == 2 and out == ''
    assert 'usage: rnn_fastai demo' in err and words in err
