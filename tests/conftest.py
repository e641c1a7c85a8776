"What several test files share."
import sys
import tracemalloc

import pytest
import torch
from fake_hub import running_hub

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

@pytest.fixture
def hub(tmp_path, monkeypatch):
    "A running hub that the library asks, with nothing in the cache; `secret` is the token of the user `me`."
    constants = pytest.importorskip('huggingface_hub.constants')
    with running_hub() as res:
        cache = tmp_path/'cache'
        for name,value in dict(ENDPOINT=res.url, HUGGINGFACE_CO_URL_TEMPLATE=res.url + '/{repo_id}/resolve/{revision}/{filename}',
                               HF_HUB_CACHE=str(cache), HF_TOKEN_PATH=str(tmp_path/'token'),
                               HF_STORED_TOKENS_PATH=str(tmp_path/'tokens'), HF_HUB_DISABLE_XET=True,
                               HF_HUB_DISABLE_TELEMETRY=True).items(): monkeypatch.setattr(constants, name, value)
        for name in ('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN'): monkeypatch.delenv(name, raising=False)
        monkeypatch.chdir(tmp_path)
        yield res
