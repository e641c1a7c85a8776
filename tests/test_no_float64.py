"Where a device has no float64, none is made there: jobs on the simulated device, which then refuses it."
import pytest

there = pytest.importorskip('test_simulated')   # which skips where torch takes no device written in Python
pytestmark = there.pytestmark

def test_a_device_without_float64(): there.run_there('float64_cases.py')
