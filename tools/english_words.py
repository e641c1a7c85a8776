"Writes the rules of English words that come with the package, from the spaCy that is installed: when `tests/test_words.py` says so."
import shutil
from importlib.metadata import files
from pathlib import Path

from rnn_fastai.data import words

def main():
    "Replace what is in `rnn_fastai/data/english`, spaCy's licence with it."
    folder = Path(words.__file__).with_name("english")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    lang = words.load_spacy("en")
    rules = words.rules_of(lang)
    assert words._agrees(words.WordCutter(rules), lang.tokenizer), "spaCy cuts words in another way now: see WordCutter"
    name = words.english_file().name
    (folder/name).write_text(words._file_text(name, rules), encoding="utf8")
    licence = next(f for f in files("spacy") if f.name == "LICENSE")
    shutil.copy(licence.locate(), folder/"LICENSE")
    print(f"{folder/name}: {(folder/name).stat().st_size:,} bytes")


if __name__ == "__main__": main()
