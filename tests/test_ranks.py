"Two processes train what one trains: the same losses, weights, metrics and predictions."
import subprocess
import sys
from pathlib import Path

import pytest
import ranks_cases
import torch
from torch.testing import assert_close

HERE = Path(__file__).parent
CLOSE = dict(rtol=1e-5, atol=1e-5)

def launch(n, *args, timeout=300):
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

def test_learners_are_as_before_also_after_an_error(two):
    assert [t['restored'] for t in two] == [[True]*4]*2

def test_ranks_that_were_given_different_data_say_so_at_the_start(two):
    assert two[0]['refused'] == two[1]['refused']
    said = two[0]['refused']
    assert 'bs (training) is 5 on rank 0, 4 on rank 1; batches (training) is 29 on rank 0, 36 on rank 1' in said['bs']
    assert 'tokens (training) is 868 on rank 0, 834 on rank 1' in said['seed']
    assert 'bs (training) is 3 on rank 0, 4 on rank 1' in said['labels']
    assert all('Read the same data, with the same seeds, on all ranks.' in s for s in said.values())

def test_rank_0_writes_and_all_ranks_know_where(two):
    assert two[0]['files'] == two[1]['files']
    assert all(Path(f).exists() for f in two[0]['files'])
