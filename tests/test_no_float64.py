"Where a device has no float64, none is made there: jobs on a pretended device that refuses it."
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

@pytest.mark.skipif(not (HERE/'simulated.py').exists(), reason="needs the simulated device")
def test_a_device_without_float64():
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(HERE), str(HERE.parent)]))
    done = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-p', 'simulated', str(HERE/'float64_cases.py')],
                          env=env, cwd=HERE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
