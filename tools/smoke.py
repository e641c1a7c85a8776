"What a newcomer does, with the installed package alone, in an empty folder: train on a CSV, write, look inside, ship."
import random
import subprocess
import sys
import tempfile
from pathlib import Path

WORDS = "one two three four five six seven eight nine ten".split()


def write_csv(file: Path) -> None:
    "Texts that count, from somewhere to somewhere."
    rng = random.Random(0)
    starts = [rng.randrange(6) for _ in range(200)]
    file.write_text("\n".join(["text", *(" ".join(WORDS[i:i+5]) for i in starts)]) + "\n", encoding="utf8")


def main() -> None:
    "Raises where a step does not work."
    import matplotlib
    matplotlib.use("agg")
    import rnn_fastai
    import rnn_fastai.all as rf
    root = Path(__file__).resolve().parent.parent
    assert root not in Path(rnn_fastai.__file__).resolve().parents, f"{rnn_fastai.__file__} is not the installed package"
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        write_csv(here/"counts.csv")
        dls = rf.TextDataLoaders.from_csv(here, "counts.csv", text_col="text", is_lm=True, seq_len=8, bs=16, seed=42)
        learn = rf.language_model_learner(dls, "AWD_LSTM", dict(emb_sz=16, n_hid=32, n_layers=1), pretrained=False)
        with learn.no_bar(): learn.fit_one_cycle(5, 3e-2)
        told = learn.predict("one two", 3, temperature=0, no_bar=True)
        assert told.startswith("one two"), told
        rec = learn.record("one two three", parts=("states", "logits"), no_bar=True)
        rf.save_plot(rf.plot_states(rec), here/"states.svg")
        assert ">three</text>" in (here/"states.svg").read_text(encoding="utf8")
        learn.save_bundle(here/"model")
        assert rf.load_bundle(here/"model").predict("one two", 3, temperature=0, no_bar=True) == told
        cmd = [Path(sys.executable).parent/"rnn_fastai", "predict", here/"model", "one two"]
        assert "one two" in subprocess.run(cmd, check=True, capture_output=True, text=True, cwd=here).stdout
    print(f"rnn_fastai {rnn_fastai.__version__} on Python {sys.version.split()[0]}: {told!r}")


if __name__ == "__main__": main()
