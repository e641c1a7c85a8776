"""Writes docs/results.md from benchmarks/results: what the recipes of this package reach, beside what is published."""
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT/"benchmarks"/"results", ROOT/"docs"/"results.md"

INTRO = """<!-- made from benchmarks/results by `make results`; do not edit -->

# Results

What recipes of this package reach on public data, beside what was published. Every figure comes from a script in
`benchmarks/` by way of its file in `benchmarks/results/`. Settings were chosen on validation data, which is part of the
training data where a set has no validation part; a test set was read once for each recipe. Published figures are the
best of their kind, mostly of larger nets and on GPUs; they say how far there is to go, not that the conditions were equal.
Training is timed by the clock; where other work went on beside it, by the processor.
"""


class Row(NamedTuple):
    "A line of a table: a figure of ours, where it stands, and how it came about."
    system: str      # what was trained
    file: str        # name of the results file
    what: str        # name of the row in it
    key: str         # name of the figure in the row; parts of a path are joined by dots
    show: str        # format of the figure
    recipe: str      # script and its main settings


class Published(NamedTuple):
    "A figure of others."
    system: str
    figure: str
    source: str      # with a link


class Task(NamedTuple):
    "A set of data and a measure."
    title: str
    measure: str
    rows: list[Row]
    published: list[Published]


TASKS = [
    Task("Sentiment of film reviews (IMDB)", "accuracy on the 25,000 test reviews", [
        Row("LSTM, last state, labels only", "imdb", "A3, last", "test", "{:.1%}", "`imdb.py last`"),
        Row("LSTM, pooled states, labels only", "imdb", "A3, concat", "test", "{:.1%}", "`imdb.py concat`"),
        Row("Two-way LSTM, pooled; words start from vectors learnt from 72,500 reviews, with labels or not; the first of three "
            "nets", "imdb_text", "own vectors, full", "test.nets.0", "{:.1%}", "`imdb_text.py full`"),
        Row("The mean of the three", "imdb_text", "own vectors, full", "test.mean", "{:.1%}", "`imdb_text.py full`"),
        Row("Two nets that learn, for two epochs, what the mean of two others tells of 50,000 reviews without labels; their mean",
            "imdb_text", "own vectors, self-training, full", "students.test.mean", "{:.1%}", "`imdb_text.py full --students 2`"),
        Row("The mean of these four nets", "imdb_text", "own vectors, self-training, full", "all.test", "{:.1%}",
            "`imdb_text.py full --students 2`"),
        Row("ULMFiT, a small language model of the reviews", "ulmfit", "classifier", "test", "{:.1%}",
            "`ulmfit.py lm classifier`"),
        Row("The small model that comes with the package, an epoch of the head and one of all layers", "ulmfit",
            "classifier from the small model", "test", "{:.1%}", "`ulmfit.py small`"),
    ], [
        Published("LSTM over one-hot words with pooling, and unlabelled reviews", "94.1 %",
                  "[Johnson and Zhang, 2016](https://arxiv.org/abs/1602.02373)"),
        Published("LSTM, virtual adversarial training", "94.1 %", "[Miyato et al., 2017](https://arxiv.org/abs/1605.07725)"),
        Published("ULMFiT, both readings", "95.4 %", "[Howard and Ruder, 2018](https://arxiv.org/abs/1801.06146)"),
        Published("Two-way LSTM, mixed objective", "95.7 %", "[Sachan et al., 2019](https://arxiv.org/abs/2009.04007)"),
    ]),
    Task("Few labels (IMDB)", "accuracy on the 25,000 test reviews; as many labels of each kind, drawn from the training reviews; all "
         "other training reviews and those without labels are read without theirs", [
        *[Row(f"{n} labels, spread by topics (`with_pseudo_labels`) over 20,000 reviews, which `text_lstm` learns", "few_labels",
              f"lstm, {n} labels", "test", "{:.1%}", "`few_labels.py lstm`") for n in (100, 500)],
        *[Row(f"{n} labels, spread over 10,000 reviews, from the small model that comes with the package", "few_labels",
              f"small, {n} labels", "test", "{:.1%}", "`few_labels.py small`") for n in (100, 500)],
        *[Row(f"{n} labels and no more, ULMFiT", "ulmfit", f"{n} labels, with the language model", "test", "{:.1%}",
              "`ulmfit.py lowshot`") for n in (100, 500)],
    ], [
        Published("20 labels, Transformer from random weights, plain and with unsupervised data augmentation", "56.7 %, 74.8 %",
                  "[Xie et al., 2019](https://arxiv.org/abs/1904.12848)"),
        Published("20 labels, BERT tuned on the reviews, plain and with the same", "93.5 %, 95.8 %",
                  "[Xie et al., 2019](https://arxiv.org/abs/1904.12848)"),
    ]),
    Task("Calibration (IMDB)", "expected calibration error of the last classifier on the 25,000 test reviews, 15 bins", [
        Row("As it was trained", "ulmfit", "classifier from the small model", "error_before", "{:.4f}", "`ulmfit.py small`"),
        Row("With a temperature, chosen on 2,500 training reviews held out", "ulmfit", "classifier from the small model",
            "error_after", "{:.4f}", "`ulmfit.py small`"),
    ], []),
    Task("Parts of speech (UD English EWT)", "accuracy of the 17 universal tags on the test sentences", [
        Row("Words and letters, two-way LSTM", "tagger", "UD EWT, coarse tags", "test", "{:.1%}", "`tagger.py`"),
        Row("The same with a CRF", "tagger", "UD EWT, coarse tags, CRF", "test", "{:.1%}", "`tagger.py`"),
        Row("`train_tagger`: words of GloVe 6B 50d, letters by convolution, shapes", "tagger",
            "UD EWT, coarse tags, one call, glove-6b-50d", "test", "{:.1%}", "`tagger.py`"),
        Row("The same, and the states of the small model that comes with the package (`lms`)", "tagger",
            "UD EWT, coarse tags, one call, glove-6b-50d, AWD_LSTM_small", "test", "{:.1%}", "`tagger.py`"),
    ], []),
    Task("Parts of speech from 500 sentences (UD English EWT)", "accuracy of the same tags on the validation sentences, by which no "
         "setting was chosen here; mean of three draws of 500 training sentences", [
        Row(f"`train_tagger`{system}", "tagger", f"UD EWT, coarse tags, 500 sentences{what}", "valid", "{:.1%}", "`tagger.py few`")
        for system, what in (("", ""), (", words of GloVe 6B 50d", ", glove-6b-50d"),
                             (", states of the small model that comes with the package", ", AWD_LSTM_small"),
                             (", both", ", glove-6b-50d, AWD_LSTM_small"))
    ], []),
    Task("Names in tweets (Broad Twitter Corpus)", "F1 of entities in part f (training leaves out sentences of part b with user names, which "
         "it tags otherwise than the others)", [
        Row("`train_tagger`: words, letters by convolution, shapes, CRF; mean of three nets", "entities", "BTC, names",
            "test", "{:.1%}", "`entities.py`"),
        Row("The same with all words of GloVe 6B 50d", "entities", "BTC, names, vectors glove-6b-50d", "test", "{:.1%}",
            "`entities.py`"),
        Row("The same, and the states of the small model that comes with the package (`lms`)", "entities",
            "BTC, names, vectors glove-6b-50d, AWD_LSTM_small", "test", "{:.1%}", "`entities.py lms`"),
    ], []),
    Task("The small model that comes with the package", "perplexity of texts that it has not read, over its 20,000 words", [
        Row("700 reviews of IMDB", "small_model", "perplexity, packed", "reviews", "{:.1f}", "`small_model.py`"),
        Row("60 articles, WikiText-2 validation, with capitals as marks", "small_model", "perplexity, packed", "articles",
            "{:.1f}", "`small_model.py`"),
    ], []),
    Task("Language model (WikiText-2)", "perplexity of the whole test text as one stream, or of its first 20,000 tokens", [
        Row("AWD-LSTM of two layers of 800, two hours of two cores: bfloat16, epochs over samples of the words, the last "
            "one over all", "wikitext", "scoring", "plain.perplexity", "{:.1f}", "`wikitext.py`"),
        Row("with a neural cache", "wikitext", "scoring", "cache.perplexity", "{:.1f}", "`wikitext.py`"),
        *[Row(f"First 20,000 tokens, {name}", "wikitext", "scoring, first 20,000 tokens", f"{key}.perplexity", "{:.1f}",
              "`wikitext.py`") for name, key in (("plainly", "plain"), ("with a neural cache", "cache"),
                                                 ("with dynamic evaluation", "dynamic"), ("with both", "both"))],
    ], [
        Published("AWD-LSTM, the whole test text", "65.8", "[Merity et al., 2017](https://arxiv.org/abs/1708.02182)"),
        Published("with a neural cache", "52.0", "[Merity et al., 2017](https://arxiv.org/abs/1708.02182)"),
        Published("with dynamic evaluation", "44.3", "[Krause et al., 2017](https://arxiv.org/abs/1709.07432)"),
    ]),
]


def figure(row: dict, key: str) -> Any:
    "What stands in a row at a path of names."
    for part in key.split("."): row = row[int(part) if part.isdigit() else part]
    return row


def lines(row: Row) -> str:
    "A line of our table, where there is such a result."
    held = json.loads((RESULTS/f"{row.file}.json").read_text(encoding="utf8"))
    found = next(r for r in held["rows"] if r["what"] == row.what)
    took = [v for v in map(found.get, ("cpu_seconds", "seconds")) if isinstance(v, (int, float))]
    time = f"{min(took)/60:.0f} min" if took else ""   # the processor's, where other work held up the clock
    n = found.get("threads")
    threads = f", {n} thread{'s'*(n > 1)}" if n else ""
    shown = row.show.format(figure(found, row.key)).replace("%", " %")
    machine, date = (found.get(k, held[k]) for k in ("cpu", "date"))
    return f"| {row.system} | {shown} | {row.recipe} | {time} | {machine}{threads}, {date} |"


def table(task: Task) -> str:
    "A section of the page."
    ours = ["| recipe | figure | script | training | machine |", "|---|---|---|---|---|", *map(lines, task.rows)]
    theirs = ["| published | figure | source |", "|---|---|---|", *(f"| {p.system} | {p.figure} | {p.source} |" for p in task.published)]
    parts = [f"## {task.title}", f"Measure: {task.measure}.", "\n".join(ours), "\n".join(theirs) if task.published else ""]
    return "\n\n".join(p for p in parts if p)


def make_results() -> str:
    "The text of the page."
    return "\n\n".join([INTRO.rstrip(), *map(table, TASKS)]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(make_results(), encoding="utf8")
    sys.exit(0)
