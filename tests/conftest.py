"What several test files share."
import sys
import tracemalloc

import pytest
import torch

@pytest.fixture(scope="module")
def one_thread():
    "Models that are too small for threads to pay run on one."
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)

def calls_of(f, *args):
    "What `f` gives, and how many calls of functions it took. Unlike seconds, they are the same on every machine."
    n = 0
    def count(frame, event, arg):
        nonlocal n
        n += event in ('call', 'c_call')
    before = sys.getprofile()
    sys.setprofile(count)
    try: got = f(*args)
    finally: sys.setprofile(before)
    return got,n

def bytes_of(f, *args):
    "What `f` gives, and the most memory that Python and numpy held for it at once, in bytes."
    tracemalloc.start()
    try: return f(*args),tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()
