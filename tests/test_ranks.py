"Two processes train what one trains: the same losses, weights, metrics and predictions."
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import ranks_cases
import torch
from torch.testing import assert_close

import rnn_fastai.callback
from rnn_fastai.ship.bundle import load_bundle

HERE = Path(__file__).parent
CLOSE = dict(rtol=1e-5, atol=1e-5)

def launch(n, *args, timeout=600):
    "Run a script in several processes, and wait for it; it must not hang."
    cmd = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={n}', *map(str, args)]
    return subprocess.run(cmd, capture_output=True, text=True, timeout=timeout, cwd=HERE)

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    "What both ranks of two found."
    pytest.importorskip('accelerate')
    out = tmp_path_factory.mktemp('two')
    done = launch(2, HERE/'ranks_cases.py', out)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(out/f'rank{r}.pt', weights_only=False) for r in range(2)]

@pytest.mark.parametrize('name', ranks_cases.CASES)
def test_two_processes_train_what_one_trains(name, two, one_thread, tmp_path):
    one = ranks_cases.train(name, tmp_path)
    for r in range(2): assert_close(two[r][name], one, **CLOSE)
    assert_close(two[0][name], two[1][name], rtol=0, atol=0)   # so both take the same decisions

@pytest.mark.parametrize('name', ['looks', 'plain'])
def test_all_else_that_learners_do_is_that_of_one_process(name, two, one_thread, tmp_path):
    one = getattr(ranks_cases, name)(tmp_path)
    if name == 'looks': assert sum(t['looks'].pop('texts') for t in two) == one.pop('texts')   # each records its own rows
    for r in range(2): assert_close(two[r][name], one, rtol=1e-3, atol=1e-4)   # in float32

def test_learners_are_as_before_also_after_an_error(two):
    assert [t['restored'] for t in two] == [[True]*4]*2

def test_ranks_that_were_given_different_data_say_so_at_the_start(two):
    assert two[0]['refused'] == two[1]['refused']
    said = two[0]['refused']
    for what in ('bs (training) is 5 on rank 0, 4 on rank 1', 'batches (training) is 29 on rank 0, 36 on rank 1'):
        assert what in said['bs']
    assert 'tokens (training) is 868 on rank 0, 834 on rank 1' in said['seed']
    assert 'bs (training) is 3 on rank 0, 4 on rank 1' in said['labels']
    assert all('Read the same data, with the same seeds, on all ranks.' in s for s in said.values())

def test_rank_0_writes_and_all_ranks_know_where(two):
    assert two[0]['files'] == two[1]['files']
    assert all(Path(f).exists() for f in two[0]['files'])

def test_a_training_of_two_processes_goes_on_to_the_bit(two):
    "Also where one of them was killed before it wrote its last checkpoint."
    for t in two: assert_close(t['resumed']['resumed'], t['resumed']['whole'], rtol=0, atol=0)
    ends = [t['resumed']['resumed'] for t in two]
    assert_close(ends[0][:2], ends[1][:2], rtol=0, atol=0)
    assert ends[0][2] != ends[1][2]   # each drew its own dropout
    for t in two: assert 'no checkpoints of rank 1: go on with as many processes' in t['resumed']['said']

def test_rank_0_alone_writes_logs_and_draws(two):
    rows = two[0]['logged'][1]
    assert rows.epoch.tolist() == ['0', 'epoch', '0']   # each fit writes its names, as fastai does
    for t in two:
        assert float(rows.valid_loss.iloc[-1]) == pytest.approx(float(t['logged'][0][-1][1]))
        assert t['logged'][2] == [True, True]

def test_accelerate_must_know_of_all_processes(monkeypatch):
    "Else each process would train for itself, on its rows alone."
    pytest.importorskip('accelerate')
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(RuntimeError, match='knows of 1 process, and 2 were started.*cpu=True'):
        ranks_cases.ranks._check_knows_all(SimpleNamespace(num_processes=1))

@pytest.mark.slow
def test_a_process_that_dies_ends_all_of_them(tmp_path):
    pytest.importorskip('accelerate')
    done = launch(2, HERE/'ranks_cases.py', tmp_path, 'dies', timeout=300)
    assert done.returncode != 0 and 'Signal 9 (SIGKILL)' in done.stderr and not list(tmp_path.glob('rank*.pt'))

def test_without_accelerate_the_error_says_what_to_install(monkeypatch, tmp_path):
    for name in [m for m in sys.modules if m.split('.')[0] == 'accelerate' or m == 'fastai.distributed']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'accelerate', None)
    monkeypatch.delitem(sys.modules, 'rnn_fastai.callback.ranks')
    monkeypatch.delattr(rnn_fastai.callback, 'ranks')
    with pytest.raises(ImportError, match='pip install accelerate'), ranks_cases.lm(tmp_path).distrib_ctx(): pass

@pytest.mark.slow
@pytest.mark.parametrize('start', [['torch.distributed.run', '--standalone', '--nproc_per_node=2', '--no-python'],
    ['accelerate.commands.launch', '--multi_gpu', '--num_processes=2', '--num_machines=1', '--mixed_precision=no',
     '--dynamo_backend=no', '--no_python']], ids=['torchrun', 'accelerate'])
def test_the_command_trains_in_several_processes(start, tmp_path):
    pytest.importorskip('accelerate')
    ranks_cases.frame()[['text', 'label']].to_csv(tmp_path/'texts.csv', index=False)
    command = [sys.executable, '-c', 'from rnn_fastai.cli.entry import main; main()']
    sizes = '--epochs 1 --bs 5 --emb-sz 8 --n-hid 8 --n-layers 1 --drop 0'.split()
    def run(start, *args):
        return subprocess.run([*start, *args], capture_output=True, text=True, timeout=300, cwd=tmp_path, check=True).stdout
    for task,extra in (('lm', sizes), ('classifier', ['--encoder', 'lm', '--epochs', '1', '--bs', '5', '--drop', '0'])):
        args = ['train', task, 'texts.csv', *extra, '--out']
        said = run([sys.executable, '-m', *start, *command], *args, f'{task}2')
        alone = run(command, *args, task)
        assert said.count('The model is in') == alone.count('The model is in') == 1   # rank 0 prints
        if task == 'classifier': continue   # its head has dropout
        def figures(text): return [float(n) for n in re.findall(r'(?:loss|accuracy) (\d+\.\d+)', text)]
        assert figures(said) == pytest.approx(figures(alone), abs=2e-4) and len(figures(said)) >= 5
        old,new = (load_bundle(tmp_path/f).model.state_dict() for f in (task, f'{task}2'))
        assert_close(new, old, rtol=1e-3, atol=1e-4)
    assert load_bundle(tmp_path/'classifier2').predict('w1 w2')[0] in 'abc'
