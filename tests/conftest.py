"What several test files share."
import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    "Models that are too small for threads to pay run on one."
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)
