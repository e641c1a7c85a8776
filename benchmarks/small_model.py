"""The small English language model that comes with the package; results go to results/small_model.json.

    python benchmarks/small_model.py [--to small] [data] [train] [score] [probe] [pack] [card]
    python benchmarks/small_model.py [--to small] [--epochs 1] [--seconds S] [--bs 64] [--lr 4e-3] [--drop 0.1]
                                     [--bag 0] [unbundle] train
    python benchmarks/small_model.py bundle

`data`: reviews of IMDB without their labels (training and unlabelled ones, none that stands among the test reviews) and
WikiText-2's training articles, as one corpus of the words that the package knows. `bundle`: this corpus and the
held-out ones as one small file, for a machine with a GPU; `unbundle`: the corpora again, there. `train`: one cycle in
bfloat16, on a GPU where there is one; the weights are written, in eight bits, at the end of each epoch, to the file
`--to`. `score`: its perplexity of held-out reviews and articles. `probe`: what a logistic regression makes of its
states. `pack`: into the package. `card`: what the model is, with these figures, beside its weights.
"""
import argparse
import json
import lzma
import os
import re
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import read, save
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.schedule import ParamScheduler, combined_cos
from fastai.callback.training import GradientClip
from fastai.learner import Recorder
from fastai.text.core import BOS
from fastai.torch_core import set_seed
from torch import nn
from torch.nn import functional as F

from rnn_fastai.callback.chunked_loss import SampledCrossEntropy, word_shares
from rnn_fastai.data.corpus import Corpus, Vocab
from rnn_fastai.data.lm import LMDataLoader, LMDataset
from rnn_fastai.data.loaders import TextDataLoaders
from rnn_fastai.data.sets import imdb, wikitext2
from rnn_fastai.generate.score import score_ids
from rnn_fastai.learner.lm import LMLearner, language_model_learner
from rnn_fastai.learner.pretrained import SHIPPED, shipped_vocab, write_pretrained
from rnn_fastai.learner.weights import vocab_file
from rnn_fastai.models.awd import awd_lstm_lm_split
from rnn_fastai.models.heads import pool_states

warnings.filterwarnings("ignore")
SHARED = Path(__file__).parents[2]/"shared"/"data"
if SHARED.exists(): os.environ.setdefault("RNN_FASTAI_DATA", str(SHARED))
OUT = Path(os.environ.get("SMALL_MODEL", Path(__file__).parents[1]/"out"/"small_model"))
PARTS = "train", "reviews", "articles"   # the corpora
HELD_OUT, SEED = 700, 42


def as_written(article: str) -> str:
    "An article of WikiText as its author may have written it: no marks around signs in numbers, one line end."
    text = re.sub(r" @(.)@ ", r"\1", article).replace("<unk>", "xxunk")
    text = re.sub(r"\n ?(=+ .*? =+) ?(?=\n)", lambda m: "\n" + m[1].strip(), text)
    return re.sub(r" *\n[ \n]*", "\n", text).strip()


def reviews() -> list[str]:
    "Training and unlabelled reviews, each once, in random order; none that is also a test review."
    texts = pd.concat([imdb("train").text, imdb("unsup").text], ignore_index=True).drop_duplicates()
    return texts[~texts.isin(set(imdb("test").text))].sample(frac=1, random_state=0).tolist()


def data(args) -> list:
    "Write the corpora: for training, and held-out reviews and articles."
    start = time.perf_counter()
    texts, articles = reviews(), [as_written(t) for t in wikitext2("train").text]
    kept = [*texts[HELD_OUT:], *articles]
    np.random.default_rng(0).shuffle(kept)
    parts = kept, texts[:HELD_OUT], [as_written(t) for t in wikitext2("valid").text]
    made = {k: Corpus.from_texts(v, vocab=shipped_vocab()) for k, v in zip(PARTS, parts, strict=True)}
    for k, corpus in made.items(): corpus.save(OUT/k)
    sizes = {k: dict(documents=len(c), tokens=len(c.ids), unknown=float((c.ids == 0).mean())) for k, c in made.items()}
    return [dict(what="data", words=len(shipped_vocab()), seconds=time.perf_counter() - start, **sizes)]


def bundle(args) -> list:
    "All corpora in one file, of numbers in two bytes. The words are those of the package, which travels too."
    with lzma.open(OUT/"corpora.xz", "wb") as f:
        for k in PARTS:
            corpus = Corpus.open(OUT/k)
            for a in (corpus.lens, corpus.ids): np.save(f, np.asarray(a).astype(np.uint16))
    return []


def unbundle(args) -> list:
    "Write the corpora that `bundle` put together."
    with lzma.open(OUT/"corpora.xz") as f:
        for k in PARTS:
            lens, ids = np.load(f), np.load(f)
            Corpus(ids, np.append(0, lens.cumsum(dtype=np.int64)), Vocab(shipped_vocab())).save(OUT/k)
    return []


class Cycle(ParamScheduler):
    "fastai's one cycle over the steps or over `seconds`, whichever are over first."
    def __init__(self, lr: float, seconds: float):
        super().__init__(dict(lr=combined_cos(0.1, lr/25, lr, lr/1e5), mom=combined_cos(0.1, 0.8, 0.7, 0.8)))
        self.seconds = seconds

    def passed(self) -> float: return (time.perf_counter() - self.began)/self.seconds
    def before_fit(self):
        super().before_fit()
        self.began = time.perf_counter()
    def before_batch(self): self._update_val(min(max(self.pct_train, self.passed()), 1.))
    def after_batch(self):
        super().after_batch()
        if self.passed() >= 1: raise CancelFitException


class Diary(Callback):
    "Prints how the training goes, every so many steps, and writes the weights after each epoch and at the end."
    order, run_valid = Recorder.order + 1, False
    def __init__(self, file: Path, every: int = 200): self.file, self.every = file, every
    def before_fit(self): self.began, self.steps = time.perf_counter(), 0
    def note(self, **what):
        print(f"{time.perf_counter() - self.began:6.0f} s, epoch {self.steps/len(self.dls.train):.2f}:",
              *(f"{k} {v:.4g}" for k, v in what.items()), flush=True)

    def after_batch(self):
        self.steps += 1
        if self.steps % self.every == 0: self.note(loss=self.smooth_loss, lr=self.opt.hypers[0]["lr"])
    def after_epoch(self):
        self.note(valid_loss=self.recorder.values[-1][-1])
        self.after_fit()
    def after_fit(self): write_pretrained(self.file, self.model, self.dls.vocab)


class BagOfWords(Callback):
    """Every 8th state of the last layer tells the next 30 words of its document too, in any order: by a linear map, the
    decoder's matrix and a bias of its own. Rare words count the most. Only the model is kept of it in the end."""
    ahead, stride, run_valid = 30, 8, False
    def __init__(self, learn: LMLearner, weight: float):
        share, hid = word_shares(learn.dls).to(learn.dls.device), learn.model[0].emb_sz
        self.weight, self.bos = weight, learn.dls.vocab.index(BOS)
        self.rare = (1e-4/share.clamp(min=1e-8)).sqrt().clamp(max=1.)
        self.map = nn.Linear(hid, hid, device=share.device)
        self.bias = nn.Parameter((share*self.rare).clamp(min=1e-8).log())
        learn.splitter = lambda m: [*awd_lstm_lm_split(m), [*self.map.parameters(), self.bias]]

    def after_loss(self):
        "Add to what is differentiated, not to the loss that is shown."
        y = self.y.as_subclass(torch.Tensor)
        if y.size(1) < self.ahead: return
        words = y.unfold(1, self.ahead, self.stride)                                    # bs,windows,ahead
        states = self.map(self.rnn.raw_out[:, :1 - self.ahead:self.stride])             # bs,windows,hid
        logps = F.linear(states, self.model[1].decoder.weight, self.bias).log_softmax(-1).gather(-1, words)
        counts = self.rare[words].masked_fill((words == self.bos).cumsum(-1) > 0, 0.)   # the next document's do not
        self.learn.loss_grad = self.loss_grad - self.weight*(counts*logps).sum()/counts.sum()


def learner(bs: int = 64, drop_mult: float = 0.) -> LMLearner:
    "A learner of random weights over the corpora."
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train, valid = (LMDataLoader(LMDataset(Corpus.open(OUT/k)), bs=bs, seq_len=70, shuffle=k == "train", device=device)
                    for k in PARTS[:2])
    set_seed(SEED)
    dls = TextDataLoaders(train, valid, path=OUT, device=device)
    return language_model_learner(dls, "AWD_LSTM_small", None, drop_mult, pretrained=False, alpha=0., beta=0.)


def train(args) -> list:
    """One cycle. On a CPU the loss is that of a sample of the words, which is faster; a GPU is fast enough for all of
    them. A bias that starts from how common words are spares the states from learning that, and saturating."""
    learn = learner(args.bs, args.drop).to_bf16()
    bias, gpu = learn.model[1].decoder.bias, learn.dls.device.type == "cuda"
    bias.data = word_shares(learn.dls).clamp(min=1e-8).log().to(bias)
    cbs = [GradientClip(1.), Cycle(args.lr, args.seconds), diary := Diary(args.to)]
    if not gpu: cbs.append(SampledCrossEntropy())
    if args.bag: cbs.append(BagOfWords(learn, args.bag))
    start = time.perf_counter()
    with learn.no_bar(), learn.no_logging(): learn.fit(args.epochs, args.lr, wd=0.01, cbs=cbs)
    row = dict(what="training", epochs=diary.steps/len(learn.dls.train), lr=args.lr, drop_mult=args.drop, bs=args.bs,
               bag=args.bag, precision="bfloat16", seconds=time.perf_counter() - start,
               device=torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads")
    rows = [row, perplexities("trained", learn.model)]
    args.to.with_suffix(".json").write_text(json.dumps(rows))
    print(*rows, sep="\n", flush=True)
    return []   # `pack` enters the figures of the file that ships


def perplexities(what: str, model: nn.Module) -> dict:
    "Of all held-out documents but the word that begins each, each from a state of zeros."
    res = {}
    for k in PARTS[1:]:
        corpus = Corpus.open(OUT/k)
        docs = [torch.as_tensor(corpus[i].astype("int64")) for i in range(len(corpus))]
        res[k] = torch.cat([p.flatten() for p in score_ids(model.eval(), docs)]).double().mean().neg().exp().item()
    return dict(what=f"perplexity, {what}", **res)


def trained(args) -> nn.Module:
    "The model of the file `--to`."
    return learner().load_pretrained(args.to, vocab_file(SHIPPED/"awd_lstm_small.safetensors")).model.eval()


def score(args) -> list:
    "Perplexity of what was held out, with the weights as packed."
    return [perplexities("packed", trained(args))]


def states(enc: nn.Module, docs: list) -> np.ndarray:
    "Mean and maximum of each layer's states over each document."
    res = np.zeros((len(docs), 2*sum(rnn.n_out for rnn in enc.rnns)), np.float32)
    order = np.argsort([len(d) for d in docs])
    for some in np.array_split(order, len(docs)//64 + 1):
        lens = torch.tensor([len(docs[i]) for i in some])
        ids = nn.utils.rnn.pad_sequence([torch.as_tensor(docs[i].astype("int64")) for i in some], True, enc.pad_token)
        out, parts = enc.embed(ids), []
        for rnn in enc.rnns:
            out, _ = rnn(out, None, lens)
            parts += [pool_states(out, None, lens, pool) for pool in ("mean", "max")]
        res[some] = torch.cat(parts, 1).numpy()
    return res


@torch.no_grad()
def probe(args) -> list:
    "Accuracy of a logistic regression over frozen states, with few labels; of 2,000 training reviews, no test review."
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    df = imdb("train").sample(4000, random_state=0)
    corpus = Corpus.from_texts(df.text.tolist(), vocab=shipped_vocab(), no_bar=True)
    x, y = states(trained(args)[0], [corpus[i][:600] for i in range(len(corpus))]), (df.label == "pos").to_numpy()
    res = {}
    for n in (100, 500):
        draws = [np.random.default_rng(i).permutation(2000)[:n] for i in range(5)]
        fits = [make_pipeline(StandardScaler(), LogisticRegression(C=0.01)).fit(x[d], y[d]) for d in draws]
        res[f"{n} labels"] = float(np.mean([f.score(x[2000:], y[2000:]) for f in fits]))
    return [dict(what="probe, accuracy", **res)]


def pack(args) -> list:
    "Into the package, with the figures of its training."
    file = shutil.copy(args.to, SHIPPED/"awd_lstm_small.safetensors")
    return [*json.loads(args.to.with_suffix(".json").read_text()),
            dict(what="packed", bytes=file.stat().st_size, weights=sum(p.numel() for p in trained(args).parameters()))]


CARD = """# AWD_LSTM_small, a small pretrained language model

A language model of English, to start from where there is no network: `language_model_learner(dls, 'AWD_LSTM_small')`,
`text_classifier_learner(dls, 'AWD_LSTM_small')`, `ulmfit(df, arch='AWD_LSTM_small')`.

| | |
|---|---|
| net | AWD-LSTM: embedding of 256, two layers of 768 and 256 units, decoder shared with the embedding; {weights:,} weights |
| words | {words:,}, cut by spaCy's English rules and fastai's marks (`xxmaj` and others) |
| read | {documents:,} texts, {tokens:,} tokens: the reviews of IMDB without their labels (training and unlabelled ones; none that stands among the test reviews) and the training articles of WikiText-2 |
| training | {epochs:.1f} epochs, {minutes:.0f} minutes on {device}, matrix products in bfloat16{bag} |
| file | {megabytes:.1f} MB: matrices in eight bits, a factor for each row |

Perplexity of texts that it has not read, each from its beginning, and over these words only (others count as `xxunk`):

| | as trained | as packed |
|---|---|---|
| 700 reviews ({unknown_reviews:.1%} unknown words) | {trained[reviews]:.1f} | {packed[reviews]:.1f} |
| 60 articles, WikiText-2 validation ({unknown_articles:.1%}) | {trained[articles]:.1f} | {packed[articles]:.1f} |

## Limits

It knows English as film reviews and a few encyclopedia articles write it, with the opinions and the rudeness of those
who wrote them. What it writes sounds like a review and is not true. It reads forwards only. It is a start for
classifiers and taggers of English texts, not a source of facts. For texts far from reviews, fastai's large weights
(`AWD_LSTM`, from the network) know more words.

Sources: Maas et al., [Learning Word Vectors for Sentiment Analysis](https://aclanthology.org/P11-1015/), 2011; Merity et
al., [Pointer Sentinel Mixture Models](https://arxiv.org/abs/1609.07843), 2016 (text of Wikipedia, CC BY-SA 3.0).
"""


BAG = "; beside the next word, states tell which words the next 30 are"


def card(args) -> list:
    "Write the card from the results."
    row = {r["what"]: r for r in read("small_model")}
    made, trained = row["data"], row["training"]
    text = CARD.format(weights=row["packed"]["weights"], words=made["words"], documents=made["train"]["documents"],
                       tokens=made["train"]["tokens"], epochs=trained["epochs"], minutes=trained["seconds"]/60,
                       device=trained["device"], bag=BAG if trained["bag"] else "",
                       megabytes=row["packed"]["bytes"]/1e6, unknown_reviews=made["reviews"]["unknown"],
                       unknown_articles=made["articles"]["unknown"], trained=row["perplexity, trained"],
                       packed=row["perplexity, packed"])
    (SHIPPED/"awd_lstm_small.md").write_text(text)
    return []


STEPS = dict(data=data, train=train, score=score, probe=probe, pack=pack, card=card)
OTHERS = dict(bundle=bundle, unbundle=unbundle)


def main():
    "Run what was asked for."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("steps", nargs="*", help=", ".join(STEPS | OTHERS))
    p.add_argument("--to", default="small", help="name of the file of weights, or a path")
    p.add_argument("--epochs", type=int, default=1, help="the most to train")
    p.add_argument("--seconds", type=float, default=float("inf"), help="the most to train")
    p.add_argument("--bs", type=int, default=64)
    p.add_argument("--lr", type=float, default=4e-3)
    p.add_argument("--drop", type=float, default=0.1, help="factor on all dropouts")
    p.add_argument("--bag", type=float, default=0., help="weight of telling the bag of the next 30 words")
    args = p.parse_args()
    args.to = OUT/f"{args.to}.safetensors"   # a path that is absolute stays
    for name in args.steps or STEPS:
        if rows := (STEPS | OTHERS)[name](args): save("small_model", rows)


if __name__ == "__main__": main()
