"""The figures of docs/scale.md, calculated and simulated; results go to results/scale.json.

    python benchmarks/scale.py
"""
import os
import re
from collections import Counter
from pathlib import Path

import common
import numpy as np

SHARED = Path(__file__).resolve().parents[2]/"shared"/"data"
if SHARED.exists(): os.environ.setdefault("RNN_FASTAI_DATA", str(SHARED))
SIZES = {"10 GB": 1e10, "1 TB": 1e12, "100 TB": 1e14}
# Measured on 2 GB of IMDb: tokens and documents of a byte of text. One process numbers 5 MB a second; pieces are 25 MB.
TOKENS, DOCUMENTS, RATE, PIECE, ID = 0.166, 1/1540, 5e6, 2.5e7, 2


def heaps() -> tuple:
    "How many different words there are after n words of English reviews: k and b of k*n**b, with what was counted."
    from rnn_fastai.data.sets import imdb
    seen, n, points, at = set(), 0, [], 100_000
    for text in imdb("unsup").text:
        words = re.findall(r"\w+|[^\w\s]", text.lower())
        seen.update(words)
        n += len(words)
        if n >= at:
            points.append((n, len(seen)))
            at *= 2
    b, k = np.polyfit(*np.log(points[2:]).T, 1)
    return float(np.exp(k)), float(b), points


def sizes(k: float, b: float) -> list:
    "Files, memory and time at each size."
    rows = []
    for what, size in SIZES.items():
        tokens, docs, types = size*TOKENS, size*DOCUMENTS, k*(size*TOKENS)**b
        piece_types = k*(PIECE*TOKENS)**b
        rows.append(dict(what=what, tokens=tokens, documents=docs, ids_gb=tokens*ID/1e9, shards=size/PIECE,
                         hours_of_one_worker=size/RATE/3600, offsets_gb=docs*8/1e9, epoch_order_gb=docs*8*5/1e9,
                         types=types, merge_gb=types*150/1e9, merge_hours=piece_types*size/PIECE*0.3e-6/3600))
    return rows


def pruned_merge(rng, n_types: int = 1_000_000, shards: int = 100, tokens: int = 1_000_000, keep: int = 60_000) -> list:
    "What a vocabulary loses where each shard sends its frequent tokens alone."
    p = 1/(np.arange(n_types) + 2.7)
    p /= p.sum()
    total, merged, sent = np.zeros(n_types, np.int64), {c: np.zeros(n_types, np.int64) for c in (2, 3, 5)}, Counter()
    for _ in range(shards):
        counts = np.bincount(np.searchsorted(np.cumsum(p), rng.random(tokens)), minlength=n_types)[:n_types]
        total += counts
        sent[1] += int((counts > 0).sum())
        for c, m in merged.items():
            m += np.where(counts >= c, counts, 0)
            sent[c] += int((counts >= c).sum())
    true = set(np.argsort(-total, kind="stable")[:keep].tolist())
    rows = []
    for c, m in merged.items():
        lost = np.array(sorted(true - set(np.argsort(-m, kind="stable")[:keep].tolist())), dtype=np.int64)
        rows.append(dict(what=f"counts below {c} stay in their shard", sent=sent[c]/sent[1], lost=len(lost)/keep,
                         lost_tokens=float(total[lost].sum()/total.sum())))
    return rows


def mixed(order: np.ndarray, batch: int = 64) -> float:
    "Effective number of shards in a batch: one over the chance that two of its documents come from one shard."
    rows = order[:len(order)//batch*batch].reshape(-1, batch)
    same = np.mean([(np.bincount(r)**2 - np.bincount(r)).sum()/(batch*(batch - 1)) for r in rows])
    return float(1/max(same, 1e-9))


def interleaved(rng, n: int, docs: int, opened: int) -> np.ndarray:
    "Shards of a random order, `opened` at a time, whose documents are shuffled together."
    shards = rng.permutation(n)
    return np.concatenate([rng.permutation(np.repeat(shards[i:i+opened], docs)) for i in range(0, n, opened)])


def buffered(rng, n: int, docs: int, size: int) -> np.ndarray:
    "Shards of a random order, one after the other, through a buffer from which documents are drawn."
    buffer, out = [], []
    for s in np.repeat(rng.permutation(n), docs).tolist():
        buffer.append(s)
        if len(buffer) > size:
            i = rng.integers(len(buffer))
            buffer[i], buffer[-1] = buffer[-1], buffer[i]
            out.append(buffer.pop())
    return np.array([*out, *rng.permutation(buffer).tolist()])


def shuffles(rng, n: int = 200, docs: int = 1000) -> list:
    "How well each way of shuffling mixes."
    ways = {"all documents": rng.permutation(np.repeat(np.arange(n), docs)),
            **{f"{k} shards at a time": interleaved(rng, n, docs, k) for k in (64, 16, 4)},
            **{f"one shard at a time, a buffer of {k} shards": buffered(rng, n, docs, int(k*docs)) for k in (4, 1, 0.1)}}
    return [dict(what=k, shards_in_a_batch=mixed(v)) for k, v in ways.items()]


def reading(tokens_per_second: float = 1e6, length: float = 255) -> list:
    "What reading documents at random asks of a disk or a network, for one accelerator of a million tokens a second."
    docs = tokens_per_second/length
    return [dict(what="in whole shards", mb_per_second=tokens_per_second*ID/1e6, reads_per_second=tokens_per_second/(PIECE*TOKENS)),
            dict(what="document by document", mb_per_second=docs*(4096 + length*ID)/1e6, reads_per_second=docs)]


def main():
    rng = np.random.default_rng(0)
    k, b, points = heaps()
    rows = [*sizes(k, b), *pruned_merge(rng), *shuffles(rng), *reading()]
    for r in rows: print({n: float(f"{v:.3g}") if isinstance(v, float) else v for n, v in r.items()}, flush=True)
    common.write("scale", rows, heaps=dict(k=k, b=b, counted=points))


if __name__ == "__main__": main()
