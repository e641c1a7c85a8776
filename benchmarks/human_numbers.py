"The demo and the honest split over several seeds. Writes benchmarks/results/human_numbers.json."
import argparse
import statistics
import tempfile
import warnings

import common
import torch
from fastai.callback.progress import ProgressCallback
from fastcore.basics import defaults

from rnn_fastai.data.sets import human_numbers_100
from rnn_fastai.recipes import PROMPTS, is_exact, stream_scores, train_demo, train_honest

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


def record(row: dict):
    "Write one more row; another run of the same seed takes the place of the one before."
    rows = {(r["what"], r["seed"]): r for r in [*common.read("human_numbers"), row]}
    acc = {k: [r["accuracy"] for r in rows.values() if r["what"] == k] for k, _ in rows}
    summary = {k: dict(median=statistics.median(v), least=min(v), most=max(v)) for k, v in acc.items()}
    common.write("human_numbers", [rows[k] for k in sorted(rows)], summary=summary)


def main():
    "Run both, or the one asked for, for several seeds."
    jobs = dict(demo=demo, honest=honest)
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("which", nargs="*", default=list(jobs), help="demo, honest; both by default")
    p.add_argument("--seeds", type=int, default=5, help="how many seeds, from 0 on")
    args = p.parse_args()
    defaults.callbacks = [cb for cb in defaults.callbacks if cb is not ProgressCallback]
    with tempfile.TemporaryDirectory() as d:
        for which in args.which:
            for seed in range(args.seeds):
                row = dict(jobs[which](seed, d), threads=torch.get_num_threads())
                print(row, flush=True)
                record(row)


if __name__ == "__main__": main()
