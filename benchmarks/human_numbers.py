"The demo and the honest split over several seeds. Writes benchmarks/results/human_numbers.json."
import argparse
import statistics
import tempfile
import warnings

import common
import torch
from fastai.callback.progress import ProgressCallback
from fastcore.basics import defaults

from rnn_fastai.cli import PROMPTS, is_exact, stream_scores, train_demo, train_honest
from rnn_fastai.data.sets import human_numbers_100

warnings.filterwarnings("ignore")


def demo(seed: int, path: str) -> dict:
    "Accuracy, whether both continuations are exact, and seconds of training."
    df = human_numbers_100()
    learn, took = train_demo(df, seed, path)
    exact = all(is_exact(learn.predict(p, 50, temperature=0, no_bar=True), df.text[0]) for p in PROMPTS)
    return dict(what="demo", seed=seed, accuracy=learn.recorder.values[-1][2], exact=exact, seconds=took)


def honest(seed: int, path: str) -> dict:
    "Accuracy and perplexity on 8,001 to 9,999, and seconds of training."
    learn, took = train_honest(seed, path)
    return dict(what="honest", seed=seed, **stream_scores(learn), seconds=took)


def main():
    "Run both for the seeds asked for."
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--seeds", type=int, default=5, help="how many seeds, from 0 on")
    n = p.parse_args().seeds
    defaults.callbacks = [cb for cb in defaults.callbacks if cb is not ProgressCallback]
    rows = []
    with tempfile.TemporaryDirectory() as d:
        for f in (honest, demo):
            for seed in range(n):
                rows.append(f(seed, d))
                print(rows[-1], flush=True)
    summary = {k: dict(median=statistics.median(r["accuracy"] for r in rows if r["what"] == k),
                       least=min(r["accuracy"] for r in rows if r["what"] == k)) for k in ("demo", "honest")}
    common.write("human_numbers", rows, threads=torch.get_num_threads(), summary=summary)


if __name__ == "__main__": main()
