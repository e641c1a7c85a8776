"The main job, whole: minutes each, so run by `make test-slow`."
import pytest

from rnn_fastai.data.sets import human_numbers_100
from rnn_fastai.recipes import PROMPTS, is_exact, stream_scores, train_demo, train_honest

def quiet(f, *args):
    "Train without a progress bar, which would fill the log."
    from fastai.callback.progress import ProgressCallback
    from fastcore.basics import defaults
    before = list(defaults.callbacks)
    defaults.callbacks = [cb for cb in before if cb is not ProgressCallback]
    try: return f(*args)
    finally: defaults.callbacks = before


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_demo(seed, tmp_path):
    df = human_numbers_100()
    learn, took = quiet(train_demo, df, seed, tmp_path)
    accuracy = learn.recorder.values[-1][2]
    print(f"demo, seed {seed}: accuracy {accuracy:.6f}, {took:.0f} s")
    assert accuracy >= 0.9993
    for prompt in PROMPTS: assert is_exact(learn.predict(prompt, 50, temperature=0, no_bar=True), df.text[0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_honest(seed, tmp_path):
    learn, took = quiet(train_honest, seed, tmp_path)
    scores = stream_scores(learn)
    print(f"honest, seed {seed}: {scores}, {took:.0f} s")
    assert scores["accuracy"] > 0.92   # seeds spread from 0.947 to 0.997
