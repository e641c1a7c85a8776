"Loaders whose items other processes make, started afresh (`spawn`); the last one is left in the middle of an epoch."
import multiprocessing
import os
import signal
import sys
import warnings

from ranks_cases import frame
from torch.utils.data import get_worker_info

from rnn_fastai.data.loaders import TextDataLoaders
from rnn_fastai.data.tags import TagDataLoaders

def same_item(item): return item   # a step of fastai's loop, so that this loop runs

def die(item):
    "Kill the process that makes the item, unless it is the main one."
    if get_worker_info() is not None: os.kill(os.getpid(), signal.SIGKILL)
    return item

def loader(kind, **kwargs):
    "The training loader of a kind, shuffled."
    if kind == 'tags': return TagDataLoaders.from_df(frame(), valid_col='held', bs=5).train.new(**kwargs)
    args = dict(is_lm=True, seq_len=6) if kind == 'lm' else dict(label_col='label')
    return TextDataLoaders.from_df(frame(), text_col='text', valid_col='held', bs=5, **args, **kwargs).train

KINDS = 'lm','documents','tags'

def epoch(dl): return [[t.tolist() for t in b] for b in dl]

if __name__ == '__main__':
    warnings.simplefilter('ignore')
    multiprocessing.set_start_method('spawn')
    from fastai.torch_core import set_seed
    for kind in KINDS:
        both = []
        for n in (0, 2):
            set_seed(5)
            both.append(epoch(loader(kind, after_item=same_item, num_workers=n)))
        print(kind, both[0] == both[1], len(both[0]))
    batches = iter(loader('documents', after_item=same_item, num_workers=2))
    next(batches)
    print('left', flush=True)
    sys.exit()   # `batches` still has its workers
