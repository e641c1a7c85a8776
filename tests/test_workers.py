"Items made by other processes: the same batches in the same order; nothing waits for ever."
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.torch_core import set_seed
from workers_cases import KINDS, die, epoch, loader, same_item

HERE = Path(__file__).parent

@pytest.mark.skipif(sys.platform != 'linux', reason='other systems start processes afresh')
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('changed', [{}, dict(after_item=same_item)], ids=['whole batches', 'steps'])
def test_workers_give_the_same_batches_in_the_same_order(kind, changed):
    seen = []
    for n in (0, 2):
        set_seed(5)
        dl = loader(kind, num_workers=n, **changed)
        seen.append((epoch(dl), epoch(dl), torch.rand(1), np.random.rand()))
    assert seen[0] == seen[1] and seen[0][0] != seen[0][1]

@pytest.mark.slow
def test_processes_that_start_afresh_do_too_and_end_with_the_program():
    done = subprocess.run([sys.executable, HERE/'workers_cases.py'], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split('\n')[:-1] == ['lm True 29', 'documents True 10', 'tags True 10', 'left']

@pytest.mark.skipif(sys.platform != 'linux', reason='other systems start processes afresh')
@pytest.mark.parametrize('kind', KINDS)
def test_a_worker_that_dies_is_an_error(kind):
    with pytest.raises(RuntimeError, match='DataLoader worker .* (killed by signal|exited unexpectedly)'):
        epoch(loader(kind, after_item=die, num_workers=2))

def test_an_error_in_a_worker_is_that_error():
    def odd(item): raise KeyError('no such item')
    with pytest.raises(KeyError, match='no such item'): epoch(loader('documents', after_item=odd, num_workers=1))
