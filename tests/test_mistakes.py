"What users stumbled over who had the documentation alone: a misspelt argument, a folder of something else, a wrong column."
import json

import pandas as pd
import pytest
import torch

import rnn_fastai.all as rf
from rnn_fastai.cli.jobs import answer_texts, load_task, score_model

FILMS = pd.DataFrame({"text": ["a fine film so good", "bad and too long"]*20, "label": ["pos", "neg"]*20})
SENTS = pd.DataFrame({"tokens": [["a", "dog"]]*20, "tags": [["DET", "NOUN"]]*20})


def films() -> rf.TextDataLoaders: return rf.TextDataLoaders.from_df(FILMS, text_col="text", label_col="label", bs=8, seed=0)


def lm_texts() -> rf.TextDataLoaders: return rf.TextDataLoaders.from_df(FILMS, text_col="text", is_lm=True, bs=4, seq_len=4, seed=0)


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> rf.RNNLearner:
    "A classifier of `text_lstm`, trained in bfloat16."
    return rf.text_lstm(FILMS, epochs=1, bs=8, seed=0, no_bar=True, min_freq=1, path=tmp_path_factory.mktemp("judge"),
                        model_args=dict(n_hid=8, emb_sz=8, half=True))


CALLS = {
    "rnn_learner": (lambda: rf.rnn_learner(films(), "LSTM", nhid=8), "'nhid'. Did you mean 'n_hid'"),
    "language_model_learner": (lambda: rf.language_model_learner(lm_texts(), "AWD_LSTM", pretraned=False),
                               "'pretraned'. Did you mean 'pretrained'"),
    "text_classifier_learner": (lambda: rf.text_classifier_learner(films(), "AWD_LSTM", metric=rf.accuracy),
                                "'metric'. Did you mean 'metrics'"),
    "tagger_learner": (lambda: rf.tagger_learner(rf.TagDataLoaders.from_df(SENTS), nhid=8), "'nhid'. Did you mean 'n_hid'"),
    "train_tagger": (lambda: rf.train_tagger(SENTS, epoch=1), "'epoch'. Did you mean 'epochs'"),
    "text_lstm": (lambda: rf.text_lstm(FILMS, n_hid=8), "n_hid is of the net; pass model_args=dict"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_misspelt_argument_is_named_with_what_is_near(name):
    call, said = CALLS[name]
    with pytest.raises(TypeError, match=said): call()


def test_a_net_over_vectors_answers_at_a_shell_as_here(judge, tmp_path, capsys):
    folder = str(judge.save_bundle(tmp_path/"judge"))
    learn, task = load_task(folder)
    assert task == "classifier"
    name, i, probs = judge.predict("a fine film")
    torch.testing.assert_close(learn.predict("a fine film")[2], probs, rtol=0, atol=0)
    capsys.readouterr()
    answer_texts(folder, ("a fine film",))
    assert capsys.readouterr().out == f"{name}\t{probs[i]:.4f}\ta fine film\n"
    FILMS.to_csv(tmp_path/"films.csv", index=False)
    score_model(folder, str(tmp_path/"films.csv"))
    said = capsys.readouterr().out
    assert said.startswith("40 rows: loss") and "macro avg" in said


def test_many_texts_are_answered_as_each_alone_and_one_draws_nothing(judge, capfd):
    texts = ["a fine film", "bad"]
    both = judge.classify(texts)
    capfd.readouterr()
    one = [judge.predict(t) for t in texts]
    assert [b[0] for b in both] == [o[0] for o in one]
    torch.testing.assert_close(torch.stack([b[2] for b in both]), torch.stack([o[2] for o in one]))
    assert capfd.readouterr().out == ""


def test_small_sequences_are_not_texts_to_classify():
    learn = rf.rnn_learner(rf.SeqDataLoaders.from_series("abc "*9), n_hid=4)
    with pytest.raises(TypeError, match="The loaders are of small sequences of kind .*; call predict for each"):
        learn.classify(["hi!"])


def test_unlabelled_texts_must_be_a_frame():
    with pytest.raises(TypeError, match="unlabelled is a list; it must be a frame with a column 'text'"):
        rf.text_lstm(FILMS, unlabelled=["more"])


def test_files_of_something_else_are_not_replaced(judge, tmp_path):
    for name in ("config.json", "vocab.json"):
        folder = tmp_path/name.split(".")[0]
        folder.mkdir()
        (folder/name).write_text(json.dumps(dict(mine=1)))
        with pytest.raises(FileExistsError, match=f"holds {name} of something else than a bundle; name another folder"):
            judge.save_bundle(folder)
        assert [f.name for f in folder.iterdir() if not f.name.startswith(".")] == [name]
        assert json.loads((folder/name).read_text()) == dict(mine=1)
    with pytest.raises(ValueError, match="folder is ''"): judge.save_bundle("")
    for _ in range(2): judge.save_bundle(tmp_path/"again")   # a bundle is replaced


def test_a_column_of_numbers_of_rows_is_asked_about():
    df = FILMS.assign(ticket=range(len(FILMS)))
    with pytest.raises(ValueError, match="32 training rows have 32 different labels: is it the right column"):
        rf.TextDataLoaders.from_df(df, text_col="text", label_col="ticket", seed=0)
    with pytest.raises(ValueError, match="Each label must stand in a training row too; stratify=True sees to it"):
        rf.TextDataLoaders.from_df(FILMS.assign(label=["odd"] + FILMS.label[1:].tolist(), held=[True] + [False]*39),
                                   text_col="text", label_col="label", valid_col="held")
