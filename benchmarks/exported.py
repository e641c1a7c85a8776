"""Exported models beside torch: size on the disk and milliseconds for one short text; results go to results/onnx.json.

    python benchmarks/exported.py [classifier] [tagger] [lm] [--repeats 50]

Nets of default sizes with random weights over 20,000 words: what they answer does not matter here. A text has 50 words.
`predict` goes from text to answer, tokenizer included; `net` from ids to scores. On one thread, beside the time that passes
stands the processor's, which does not depend on what else runs.
"""
import os
import statistics
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import by_two_clocks, save

from rnn_fastai.data.loaders import TextDataLoaders
from rnn_fastai.data.tags import TagDataLoaders
from rnn_fastai.learner.classifier import text_classifier_learner
from rnn_fastai.learner.lm import language_model_learner
from rnn_fastai.learner.tagger import tagger_learner
from rnn_fastai.ship.onnx import export_onnx
from rnn_fastai.ship.onnx_model import OnnxModel

warnings.filterwarnings("ignore")
N_WORDS, LENGTH = 20_000, 50
RNG = np.random.default_rng(0)
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))
VOCAB = [*"xxunk xxpad xxbos xxeos xxfld xxrep xxwrep xxup xxmaj".split(),
         *dict.fromkeys("".join(RNG.choice(LETTERS, RNG.integers(3, 10))) for _ in range(N_WORDS))]


def words(n: int = LENGTH) -> list: return [str(w) for w in RNG.choice(VOCAB[9:], n)]


def texts(**kwargs) -> pd.DataFrame:
    "Texts of 50 words; other columns as they are given."
    return pd.DataFrame(dict(text=[" ".join(words()) for _ in range(64)], **kwargs))


def without_bar(learn):
    "The learner, quiet."
    learn.remove_cb(learn.progress)
    return learn


def classifier() -> tuple:
    "A classifier, what it is asked, and its net alone: by reader."
    dls = TextDataLoaders.from_df(texts(label=["a", "b"]*32), text_col="text", label_col="label", text_vocab=VOCAB, seed=0)
    learn, text = without_bar(text_classifier_learner(dls, "AWD_LSTM", pretrained=False)), " ".join(words())
    model = learn.model.eval()
    ids = torch.from_numpy(dls.train_ds.new([text])[0][0].numpy())[None]
    n = np.array([ids.shape[1]])
    return (learn, lambda: learn.predict(text), lambda m: m.classify(text), lambda: model(ids),
            lambda g: partial(g.run, g.start(1), ids.numpy(), n, skip=n*0))


def tagger() -> tuple:
    "The same of a tagger with letters and a CRF."
    sents = [words() for _ in range(64)]
    df = pd.DataFrame(dict(tokens=sents, tags=[[f"TAG{len(w)}" for w in s] for s in sents]))
    dls = TagDataLoaders.from_df(df, tok=str.lower, chars=True, text_vocab=VOCAB, seed=0)
    learn, sent = without_bar(tagger_learner(dls, crf=True)), words()
    b = [t.as_subclass(torch.Tensor) for t in dls.test_dl([sent]).one_batch()]
    feed = dict(zip(("ids", "chars", "which"), (t.numpy() for t in b), strict=True), lengths=np.array([LENGTH]))
    model = learn.model.eval()
    return (learn, lambda: learn.predict(sent), lambda m: m.tag([sent]), lambda: model(*b), lambda g: partial(g.run, {}, **feed))


def lm() -> tuple:
    "The same of a language model, which writes 50 words; its net alone takes one step."
    dls = TextDataLoaders.from_df(texts(), is_lm=True, text_col="text", text_vocab=VOCAB, seed=0)
    learn, prompt = without_bar(language_model_learner(dls, "AWD_LSTM", pretrained=False)), words(1)[0]
    step, ids = learn.stepper(False, False), torch.tensor([[20]])
    state, one = learn.model.eval()(ids).state, np.array([1])
    kwargs = dict(n_words=LENGTH, temperature=0)
    return (learn, lambda: learn.generate(prompt, **kwargs), lambda m: m.generate(prompt, **kwargs), lambda: step(ids, state),
            lambda g: partial(g.run, g.start(1), ids.numpy(), one))


def medians(fs: dict, repeats: int) -> dict:
    "Milliseconds of functions called in turn: those that pass, and those of the processor."
    wall, cpu = by_two_clocks(fs, repeats)
    return {unit: {k: 1000*statistics.median(v) for k, v in t.items()} for unit, t in (("ms", wall), ("cpu_ms", cpu))}


def size(folder: Path) -> float: return sum(f.stat().st_size for f in folder.iterdir())/1e6


@torch.no_grad()
def measure(name: str, repeats: int, tmp: Path) -> dict:
    "Sizes and times of one kind."
    learn, predict, ask, net, run = dict(classifier=classifier, tagger=tagger, lm=lm)[name]()
    folders = {k: export_onnx(learn, tmp/f"{name}-{k}", int8=k == "onnx_int8") for k in ("onnx", "onnx_int8")}
    models = {k: OnnxModel(f, torch.get_num_threads()) for k, f in folders.items()}
    weights = sum(p.numel()*p.element_size() for p in learn.model.parameters())/1e6
    whole = {"torch": predict} | {k: (lambda m=m: ask(m)) for k, m in models.items()}
    alone = {"torch": net} | {k: run(m._graphs[0]) for k, m in models.items()}
    res = dict(what=name, mb=dict(torch=weights, **{k: size(f) for k, f in folders.items()}), load=os.getloadavg()[0],
               threads=torch.get_num_threads(), repeats=repeats)
    for key, fs in (("predict", whole), ("net", alone)):
        n = max(repeats//(10 if name == "lm" and key == "predict" else 1), 3)
        res[key] = medians(fs, n)
    print(res, flush=True)
    return res


def main():
    "Run what was asked for."
    args = sys.argv[1:]
    repeats = int(args.pop(args.index("--repeats") + 1)) if "--repeats" in args else 50
    asked = [a for a in args if not a.startswith("-")] or ["classifier", "tagger", "lm"]
    with tempfile.TemporaryDirectory() as tmp: rows = [measure(n, repeats, Path(tmp)) for n in asked]
    save("onnx", rows)


if __name__ == "__main__": main()
