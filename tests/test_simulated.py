"On a simulated device (`simulated.py`), in a process of its own: the same numbers as on the CPU, no device mixed up."
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(not hasattr(backend_registration, '_setup_privateuseone_for_python_backend'),
                                reason="this version of torch takes no device written in Python")

def run_there(*args:str):
    "Run pytest where the device is, and fail with what it prints."
    env = dict(os.environ, TEST_DEVICE='sim:0', PYTHONPATH=os.pathsep.join([str(HERE), str(HERE.parent)]))
    res = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-p', 'simulated', '--tb=short', *args], env=env,
                         cwd=HERE, capture_output=True, text=True)
    assert res.returncode == 0 and ' passed' in res.stdout, res.stdout[-9000:] + res.stderr[-3000:]

def test_every_model_cell_head_loss_sampler_and_callback(): run_there('simulated_cases.py')

# Autocast is not simulated, and learners of all kinds are in the cases above.
WHOLE = 'not float16 and not bfloat16 and not checkpoints_resume'
OTHERS = ' and not '.join([WHOLE, 'learners_train', 'predictions', 'training_again', 'layers_are_the_cpus'])
def test_what_a_gpu_is_tested_by(): run_there('test_gpu.py', '-k', OTHERS)

@pytest.mark.slow
def test_all_that_a_gpu_is_tested_by(): run_there('test_gpu.py', '-k', WHOLE)
