"""A small AWD_LSTM trained on WikiText-2, and what dynamic evaluation and a neural cache do for it; results go to
results/wikitext.json.

    python benchmarks/wikitext.py [train] [score]
    python benchmarks/wikitext.py pack FILE

`train`: two epochs on two CPU cores. `score`: perplexity of the test text as one stream, plainly and with both. `pack`:
the three texts as ids in one file, for machines that have neither the data nor a network.
"""
import itertools
import json
import os
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import common
import numpy as np
import torch
from fastai.torch_core import set_seed

from rnn_fastai.callback.chunked_loss import ChunkedCrossEntropy
from rnn_fastai.data.corpus import Corpus, Vocab
from rnn_fastai.data.lm import LMDataLoader, LMDataset
from rnn_fastai.data.loaders import TextDataLoaders
from rnn_fastai.data.sets import wikitext2
from rnn_fastai.generate.adapt import DynamicEvaluation, NeuralCache
from rnn_fastai.generate.score import score_ids
from rnn_fastai.learner.lm import LMLearner, language_model_learner
from rnn_fastai.models.awd import AWD_LSTM

warnings.filterwarnings("ignore")
SHARED = Path(__file__).parents[2]/"shared"/"data"
if SHARED.exists(): os.environ.setdefault("RNN_FASTAI_DATA", str(SHARED))
OUT = Path(__file__).parents[1]/"out"/"wikitext"
CONFIG = dict(emb_sz=200, n_hid=400, n_layers=2)
SEED, EPOCHS = 42, 2
SPLITS = "train", "valid", "test"
# Tokens that are scored, and that the settings are chosen on; the settings to choose from.
N_TEST, N_CACHE, N_DYNAMIC, N_GATHER = 20_000, 20_000, 5_000, 16_000
CACHES = (500, 2000), (0.1, 0.3, 0.6), (0.05, 0.1, 0.2, 0.3)     # size, theta, weight
DYNAMICS = (0.001, 0.), (0.002, 0.), (0.004, 0.), (0.002, 0.001)   # lr, decay
PUBLISHED = dict(plain=64.7, cache=50.6, dynamic=44.3)   # AWD-LSTM: salesforce/awd-lstm-lm; Krause et al., 2018


def tokens(split: str) -> list[str]:
    "The published tokens of a split: words separated by blanks, `<eos>` after each line."
    return [t for text in wikitext2(split).text for line in text.splitlines() for t in (*line.split(), "<eos>")]


def corpora() -> list[Corpus]:
    "Train, valid and test text over all published types, each as one document."
    train = Corpus.from_tokens([tokens("train")], min_freq=1, special_toks=["xxunk", "xxpad"])
    return [train, *(Corpus.from_tokens([tokens(split)], train.vocab) for split in SPLITS[1:])]


def pack(file: str):
    "Write the ids of all texts and the vocabulary, compressed (4 MB)."
    texts = corpora()
    vocab = np.frombuffer(json.dumps(texts[0].vocab).encode(), np.uint8)
    np.savez_compressed(file, vocab=vocab, **dict(zip(SPLITS, (c.ids for c in texts), strict=True)))


def unpack(file: str | Path) -> list[Corpus]:
    "The corpora that `pack` wrote."
    with np.load(file, allow_pickle=False) as held:
        vocab = Vocab(json.loads(held["vocab"].tobytes()))
        return [Corpus(ids, np.array([0, len(ids)]), vocab) for ids in (held[s] for s in SPLITS)]


def learner() -> LMLearner:
    "A learner of random weights over all published types."
    train, valid, _ = corpora()
    dls = [LMDataLoader(LMDataset(c), bs=bs, seq_len=70) for c, bs in ((train, 40), (valid, 20))]
    set_seed(SEED)
    return language_model_learner(TextDataLoaders(*dls, path=OUT), AWD_LSTM, CONFIG, 0.5, pretrained=False, cbs=ChunkedCrossEntropy())


def train() -> list:
    learn = learner()
    start = time.perf_counter()
    learn.fit_one_cycle(EPOCHS, 1e-2)
    learn.save("small", with_opt=False)
    loss = learn.recorder.values[-1][1]
    return [dict(what="training", config=CONFIG, epochs=EPOCHS, tokens=learn.dls.train.n_tokens, valid_loss=loss,
                 seconds=time.perf_counter() - start)]


def ids(corpus: Corpus, n: int) -> torch.Tensor:
    "The first tokens of a corpus, and the one after them."
    return torch.as_tensor(corpus.ids[:n + 1].astype("int64"))


def scored(model: torch.nn.Module, text: torch.Tensor, **kwargs) -> dict:
    "Perplexity of a text as one stream, and the time it takes."
    start = time.perf_counter()
    logps, = score_ids(model, [text], **kwargs)
    return dict(perplexity=logps.double().mean().neg().exp().item(), seconds=time.perf_counter() - start)


@torch.no_grad()
def best_cache(model: torch.nn.Module, text: torch.Tensor) -> NeuralCache:
    "The settings that are best on a text: the model reads it once, for all of them."
    state, parts = None, []
    for x, y in zip(text[None, :-1].split(256, 1), text[None, 1:].split(256, 1), strict=True):
        out = model(x, state)
        parts.append((out.logits.log_softmax(-1).gather(-1, y[..., None])[..., 0], out.raw, y))
        state = out.state
    def loss(cache):
        memory = cache.start()
        return -torch.cat([memory.score(*part) for part in parts], 1).mean().item()
    return min((NeuralCache(*how) for how in itertools.product(*CACHES)), key=loss)


def score() -> list:
    "Perplexity of the test text, each means as the validation text would have it."
    torch.set_num_threads(1)
    train, valid, test = corpora()
    learn = learner()
    model = learn.load("small").model.eval()
    start = time.perf_counter()
    cache = best_cache(model, ids(valid, N_CACHE))
    gathered = DynamicEvaluation().gather(model, ids(train, N_GATHER))
    text = ids(valid, N_DYNAMIC)
    tried = {how: scored(model, text, dynamic=replace(gathered, lr=how[0], decay=how[1])) for how in DYNAMICS}
    lr, decay = min(tried, key=lambda how: tried[how]["perplexity"])
    ways = dict(plain={}, cache=dict(cache=cache), dynamic=dict(dynamic=replace(gathered, lr=lr, decay=decay)))
    choice = time.perf_counter() - start
    ways["both"] = ways["cache"] | ways["dynamic"]
    rows = {k: scored(model, ids(test, N_TEST), **kw) for k, kw in ways.items()}
    for k, r in rows.items():
        r["relative"] = r["perplexity"]/rows["plain"]["perplexity"]
        print(f"{k}: perplexity {r['perplexity']:.2f}, {r['relative']:.3f} of plain, {r['seconds']:.0f} s", flush=True)
    settings = dict(**vars(cache), lr=lr, decay=decay, every=gathered.every)
    return [dict(what="scoring", tokens=N_TEST, **rows, settings=settings, choice_seconds=choice, published=PUBLISHED)]


def main():
    if sys.argv[1:2] == ["pack"]: return pack(*sys.argv[2:])
    for name in sys.argv[1:] or ["train", "score"]: common.save("wikitext", dict(train=train, score=score)[name]())


if __name__ == "__main__": main()
