"""AWD_LSTM trained on WikiText-2 in the time that there is, and what dynamic evaluation and a neural cache do for it;
results go to results/wikitext.json.

    python benchmarks/wikitext.py train [--hours 2] [--threads 2]
    python benchmarks/wikitext.py score [--weights FILE] [--tokens 20000] [--ways plain cache]
    python benchmarks/wikitext.py pack FILE

`train`: as many epochs as fit into the hours on this processor; a second call goes on where the first was cut. `score`:
perplexity of the test text, or its first tokens, as one stream in float32, plainly, with each means and with both, with
settings that were chosen on the validation text; dynamic evaluation of the whole text takes hours. `pack`: the three texts as ids in one file, for machines that have neither the data nor
a network. The published recipe is for GPUs: `gpu.py published`.
"""
import argparse
import itertools
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import common
import numpy as np
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.training import GradientClip
from fastai.optimizer import SGD
from fastai.torch_core import set_seed

from rnn_fastai.callback.chunked_loss import ChunkedCrossEntropy, SampledCrossEntropy
from rnn_fastai.callback.schedule import AveragedSGD, VariableLength
from rnn_fastai.data.corpus import Corpus, Vocab
from rnn_fastai.data.lm import LMDataLoader, LMDataset
from rnn_fastai.data.loaders import TextDataLoaders
from rnn_fastai.data.sets import wikitext2
from rnn_fastai.generate.adapt import DynamicEvaluation, NeuralCache
from rnn_fastai.generate.score import score_ids
from rnn_fastai.learner.checkpoint import Checkpoint
from rnn_fastai.learner.lm import LMLearner, language_model_learner
from rnn_fastai.models.awd import AWD_LSTM

warnings.filterwarnings("ignore")
SHARED = Path(__file__).parents[2]/"shared"/"data"
if SHARED.exists(): os.environ.setdefault("RNN_FASTAI_DATA", str(SHARED))
OUT = Path(__file__).parents[1]/"out"/"wikitext"
CONFIG, DROP = dict(emb_sz=400, n_hid=800, n_layers=2), 1.5   # wider nets read too few epochs in two hours
SEED, LR, LAST_LR, WD = 42, 5e-3, 1e-4, 0.05
LAST = 4            # epochs over samples that one over all words takes as long as
VALIDATION = 0.04   # part of an epoch's time that the validation after it takes, and more
# The recipe of salesforce/awd-lstm-lm for WikiText-2, which takes 750 epochs.
AWD_CONFIG = dict(emb_sz=400, n_hid=1150, n_layers=3, output_p=0.4, hidden_p=0.2, input_p=0.65, embed_p=0.1, weight_p=0.5)
SPLITS = "train", "valid", "test"
WAYS = "plain", "cache", "dynamic", "both"
# Tokens that the settings are chosen on; the settings to choose from.
N_CACHE, N_DYNAMIC, N_GATHER = 20_000, 5_000, 16_000
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


def loaders(train: Corpus, valid: Corpus, bs: int = 64, **kwargs) -> TextDataLoaders:
    "Batches of 70 steps."
    dls = [LMDataLoader(LMDataset(c), bs=n, seq_len=70, **kwargs) for c, n in ((train, bs), (valid, 20))]
    return TextDataLoaders(*dls, path=OUT, device=kwargs.get("device"))


def learner(dls: TextDataLoaders | None = None, config: dict = CONFIG) -> LMLearner:
    "A learner of random weights over all published types."
    set_seed(SEED)
    dls = loaders(*corpora()[:2]) if dls is None else dls
    return language_model_learner(dls, AWD_LSTM, config, DROP, pretrained=False, alpha=2., beta=1., cbs=GradientClip(1.))


def published(dls: TextDataLoaders, config: dict = AWD_CONFIG) -> LMLearner:
    "A learner with the published settings, for `fit_published`."
    set_seed(SEED)
    return language_model_learner(dls, AWD_LSTM, config, pretrained=False, alpha=2., beta=1., opt_func=SGD, wd=1.2e-6,
                                  cbs=GradientClip(0.25))


def fit_published(learn: LMLearner, folder: Path, cbs: tuple = (), epochs: int = 750):
    "NT-ASGD, in as many calls as it takes."
    def fit(cbs): learn.fit(epochs, 30., cbs=cbs)
    go_on(learn, folder, fit, [AveragedSGD(), VariableLength(), ChunkedCrossEntropy(), *cbs])


def go_on(learn: LMLearner, folder: Path, fit: Callable, cbs: list):
    "Take up a training where it was cut, or begin it; one that has ended gives its weights."
    try: learn.resume(folder, cbs=cbs)
    except FileNotFoundError: fit([Checkpoint(folder, minutes=5, keep=1), *cbs])


class Times(Callback):
    "Notes when each step ends, and ends the training after some."
    def __init__(self, n: int): self.n, self.ends = n, []
    def after_batch(self):
        self.ends.append(time.perf_counter())
        if len(self.ends) == self.n: raise CancelFitException


def epochs_in(hours: float, n_steps: int = 12) -> int:
    "How many epochs fit into the hours, by some steps of a learner that is not used for more."
    learn, times = learner().to_bf16(), Times(n_steps)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3, cbs=[SampledCrossEntropy(), times])
    step = statistics.median(b - a for a, b in itertools.pairwise(times.ends))
    return max(round(hours*3600/(step*len(learn.dls.train)*(1 + VALIDATION))) - LAST, 1)


def train(hours: float = 2., threads: int = 2, **_) -> list:
    "One cycle over samples of the words, and an epoch over all of them."
    torch.set_num_threads(threads)
    learn = learner().to_bf16()
    start, cpu = time.perf_counter(), time.process_time()
    def cycle(cbs): learn.fit_one_cycle(epochs_in(hours), LR, moms=(0.8, 0.7, 0.8), div=10, wd=WD, cbs=cbs)
    go_on(learn, OUT/"sampled", cycle, [SampledCrossEntropy()])
    go_on(learn, OUT/"whole", lambda cbs: learn.fit(1, LAST_LR, wd=WD, cbs=cbs), [ChunkedCrossEntropy()])
    learn.save("small", with_opt=False)
    learn.add_cb(ChunkedCrossEntropy())
    with learn.no_bar(), learn.no_logging(): loss, *_ = learn.validate()
    return [dict(what="training", config=CONFIG, drop_mult=DROP, hours=hours, threads=threads, precision="bfloat16",
                 tokens=learn.dls.train.n_tokens, valid_loss=loss, seconds_of_this_run=time.perf_counter() - start,
                 processor_seconds_of_this_run=time.process_time() - cpu)]


def ids(corpus: Corpus, n: int | None = None) -> torch.Tensor:
    "The first tokens of a corpus, and the one after them; all by default."
    return torch.as_tensor(corpus.ids[:None if n is None else n + 1].astype("int64"))


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


def best_dynamic(model: torch.nn.Module, train: torch.Tensor, text: torch.Tensor) -> DynamicEvaluation:
    "The settings that are best on a text."
    gathered = DynamicEvaluation().gather(model, train)
    tried = [replace(gathered, lr=lr, decay=decay) for lr, decay in DYNAMICS]
    return min(tried, key=lambda dynamic: scored(model, text, dynamic=dynamic)["perplexity"])


def score(weights: str = "small", n: int | None = None, names: tuple = WAYS, **_) -> list:
    "Perplexity of the test text, each means as the validation text would have it."
    torch.set_num_threads(1)
    train, valid, test = corpora()
    model = learner().load(weights).model.eval()
    start, ways = time.perf_counter(), dict(plain={})
    if {"cache", "both"} & {*names}: ways["cache"] = dict(cache=best_cache(model, ids(valid, N_CACHE)))
    if {"dynamic", "both"} & {*names}:
        ways["dynamic"] = dict(dynamic=best_dynamic(model, ids(train, N_GATHER), ids(valid, N_DYNAMIC)))
    if "both" in names: ways["both"] = ways["cache"] | ways["dynamic"]
    choice, text, rows = time.perf_counter() - start, ids(test, n), {}
    for k in names:
        rows[k] = r = scored(model, text, **ways[k])
        print(f"{k}: perplexity {r['perplexity']:.2f}, {r['seconds']:.0f} s", flush=True)
    settings = {k: {name: v for name, v in vars(how[k]).items() if name != "stats"} for k, how in ways.items() if k in how}
    what = "scoring" if n is None else f"scoring, first {n:,} tokens"
    return [dict(what=what, tokens=len(text) - 1, **rows, settings=settings, choice_seconds=choice, published=PUBLISHED)]


def main():
    "Do what was asked for."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("steps", nargs="*", default=["train", "score"], help="train, score; or pack and a file")
    p.add_argument("--hours", type=float, default=2.)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--tokens", type=int, help="score the first tokens of the test text only")
    p.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="what to score; all by default")
    p.add_argument("--weights", default="small", help="weights to score, without ending; those of `train` by default")
    args = p.parse_args()
    if args.steps[0] == "pack": return pack(args.steps[1])
    how = dict(hours=args.hours, threads=args.threads, weights=args.weights, n=args.tokens, names=args.ways)
    for name in args.steps: common.save("wikitext", dict(train=train, score=score)[name](**how))


if __name__ == "__main__": main()
