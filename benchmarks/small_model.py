"""The small English language model that comes with the package; results go to results/small_model.json.

    python benchmarks/small_model.py [data] [train] [pack] [score] [card]

`data`: reviews of IMDB without their labels (training and unlabelled ones, none that stands among the test reviews) and
WikiText-2's training articles, as one corpus of 20,000 words. `train`: one cycle in bfloat16 on one core, resumed where
it was cut off. `pack`: into the package. `score`: perplexity of held-out reviews and articles, before and after packing. `card`: what
the model is, with these figures, beside its weights.
"""
import os
import re
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import read, save
from fastai.callback.training import GradientClip
from fastai.torch_core import set_seed

from rnn_fastai.callback.chunked_loss import SampledCrossEntropy
from rnn_fastai.data.corpus import Corpus
from rnn_fastai.data.lm import LMDataLoader, LMDataset
from rnn_fastai.data.loaders import TextDataLoaders
from rnn_fastai.data.sets import imdb, wikitext2
from rnn_fastai.generate.score import score_ids
from rnn_fastai.learner.checkpoint import Checkpoint
from rnn_fastai.learner.lm import LMLearner, language_model_learner
from rnn_fastai.learner.pretrained import SHIPPED, write_pretrained

warnings.filterwarnings("ignore")
SHARED = Path(__file__).parents[2]/"shared"/"data"
if SHARED.exists(): os.environ.setdefault("RNN_FASTAI_DATA", str(SHARED))
OUT = Path(os.environ.get("SMALL_MODEL", Path(__file__).parents[1]/"out"/"small_model"))
WORDS, HELD_OUT, SEED = 20_000, 700, 42
EPOCHS, LR, DROP = 1, 4e-3, 0.1


def as_written(article: str) -> str:
    "An article of WikiText as its author may have written it: no marks around signs in numbers, one line end."
    text = re.sub(r" @(.)@ ", r"\1", article).replace("<unk>", "xxunk")
    text = re.sub(r"\n ?(=+ .*? =+) ?(?=\n)", lambda m: "\n" + m[1].strip(), text)
    return re.sub(r" *\n[ \n]*", "\n", text).strip()


def reviews() -> list[str]:
    "Training and unlabelled reviews, each once, in random order; none that is also a test review."
    texts = pd.concat([imdb("train").text, imdb("unsup").text], ignore_index=True).drop_duplicates()
    return texts[~texts.isin(set(imdb("test").text))].sample(frac=1, random_state=0).tolist()


def data() -> list:
    "Write the corpora: for training, and held-out reviews and articles."
    start = time.perf_counter()
    texts, articles = reviews(), [as_written(t) for t in wikitext2("train").text]
    kept = [*texts[HELD_OUT:], *articles]
    np.random.default_rng(0).shuffle(kept)
    train = Corpus.from_texts(kept, max_vocab=WORDS)
    train.save(OUT/"train")
    valid = dict(reviews=texts[:HELD_OUT], articles=[as_written(t) for t in wikitext2("valid").text])
    held = {k: Corpus.from_texts(v, vocab=train.vocab) for k, v in valid.items()}
    for k, corpus in held.items(): corpus.save(OUT/k)
    sizes = {k: dict(documents=len(c), tokens=len(c.ids), unknown=float((c.ids == 0).mean()))
             for k, c in dict(train=train, **held).items()}
    return [dict(what="data", words=len(train.vocab), seconds=time.perf_counter() - start, **sizes)]


def learner() -> LMLearner:
    "A learner of random weights over the corpora."
    train, valid = (LMDataLoader(LMDataset(Corpus.open(OUT/k)), bs=64, seq_len=70, shuffle=k == "train")
                    for k in ("train", "reviews"))
    set_seed(SEED)
    return language_model_learner(TextDataLoaders(train, valid, path=OUT), "AWD_LSTM_small", None, DROP,
                                  pretrained=False, alpha=0., beta=0., cbs=[SampledCrossEntropy(), GradientClip(1.)])


def train() -> list:
    "One cycle, from the last checkpoint where there is one."
    torch.set_num_threads(1)
    learn = learner().to_bf16()
    start = time.perf_counter()
    if (OUT/"checkpoints").exists(): learn.resume(OUT/"checkpoints")
    else:
        learn.fit_one_cycle(EPOCHS, LR, moms=(0.8, 0.7, 0.8), wd=0.01, cbs=Checkpoint(OUT/"checkpoints", every=1000))
    learn.save("small", with_opt=False)
    return [dict(what="training", epochs=EPOCHS, lr=LR, drop_mult=DROP, tokens=learn.dls.train.n_tokens, threads=1,
                 precision="bfloat16", seconds=time.perf_counter() - start, valid_loss=learn.recorder.values[-1][1])]


def pack() -> list:
    "Into the package, in eight bits."
    learn = learner().load("small")
    file = SHIPPED/"awd_lstm_small.safetensors"
    write_pretrained(file, learn.model, learn.dls.vocab)
    return [dict(what="packed", bytes=file.stat().st_size, weights=sum(p.numel() for p in learn.model.parameters()))]


def perplexity(model: torch.nn.Module, corpus: Corpus) -> float:
    "Of all documents but the word that begins each, each from a state of zeros."
    docs = [torch.as_tensor(corpus[i].astype("int64")) for i in range(len(corpus))]
    return torch.cat([p.flatten() for p in score_ids(model, docs)]).double().mean().neg().exp().item()


def score() -> list:
    "Perplexity of what was held out, with the weights as trained and as packed."
    torch.set_num_threads(1)
    rows = []
    for what in ("trained", "packed"):
        learn = learner()
        learn = learn.load("small") if what == "trained" else learn.load_pretrained(
            SHIPPED/"awd_lstm_small.safetensors", SHIPPED/"awd_lstm_small.vocab.json")
        model = learn.model.eval()
        rows.append(dict(what=f"perplexity, {what}", **{k: perplexity(model, Corpus.open(OUT/k)) for k in ("reviews", "articles")}))
        print(rows[-1], flush=True)
    return rows


CARD = """# AWD_LSTM_small

A small English language model, to start from where there is no network: `language_model_learner(dls, 'AWD_LSTM_small')`,
`text_classifier_learner(dls, 'AWD_LSTM_small')`, `ulmfit(df, arch='AWD_LSTM_small')`.

| | |
|---|---|
| net | AWD-LSTM: embedding of 256, two layers of 768 and 256 units, decoder shared with the embedding; {weights:,} weights |
| words | {words:,}, cut by spaCy's English rules and fastai's marks (`xxmaj` and others) |
| read | {documents:,} texts, {tokens:,} tokens: the reviews of IMDB without their labels (training and unlabelled ones; none that stands among the test reviews) and the training articles of WikiText-2 |
| training | {epochs} epoch, {hours:.1f} hours on one core, matrix products in bfloat16, over a sample of the words (`SampledCrossEntropy`) |
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


def card() -> list:
    "Write the card from the results."
    row = {r["what"]: r for r in read("small_model")}
    made, trained = row["data"], row["training"]
    text = CARD.format(weights=row["packed"]["weights"], words=made["words"], documents=made["train"]["documents"],
                       tokens=made["train"]["tokens"], epochs=trained["epochs"], hours=trained["seconds"]/3600,
                       megabytes=row["packed"]["bytes"]/1e6, unknown_reviews=made["reviews"]["unknown"],
                       unknown_articles=made["articles"]["unknown"], trained=row["perplexity, trained"],
                       packed=row["perplexity, packed"])
    (SHIPPED/"awd_lstm_small.md").write_text(text)
    return []


def main():
    "Run what was asked for."
    steps = dict(data=data, train=train, pack=pack, score=score, card=card)
    for name in sys.argv[1:] or steps: save("small_model", steps[name]())


if __name__ == "__main__": main()
