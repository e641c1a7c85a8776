"""The first hour of a new user, item by item: what is typed, and what must be said.

Of A3 (Ctrl-C, `--resume`) and A9 (arrow keys), what happens at a terminal is in test_terminal.py, and the whole of a
training that goes on in test_cli.py and test_checkpoint.py."""
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

import rnn_fastai
import rnn_fastai.all as rf
from rnn_fastai.cli.entry import main

TEXT,LABEL = 'Text of Story (raw)','My Mood?'
STORIES = pd.DataFrame({TEXT: ['good one, fine day', 'bad two, awful day']*20, LABEL: ['pos', 'neg']*20})
KOREAN = pd.DataFrame({'글': ['글을 읽는 사람은 자기 자신을 읽는다', '오늘은 날이 좋다']*10})
HELD = STORIES.assign(**{'Held out?': [0, 0, 0, 1]*10})
FILES = {'stories.csv': STORIES, 'three.csv': STORIES[:3], 'held.csv': HELD,
         'gap.csv': STORIES.assign(**{LABEL: [*STORIES[LABEL][:20], None, *STORIES[LABEL][21:]]}),
         'maybe.csv': HELD.assign(**{'Held out?': ['maybe', *HELD['Held out?'][1:]]}), 'large.csv': pd.concat([STORIES]*8)[:299],
         'new.csv': STORIES[:4].assign(**{TEXT: ['good zebra', 'good one', 'zebra', 'awful day']}), 'odd.csv': STORIES.assign(**{LABEL: 'odd'}),
         'alike.csv': STORIES.assign(**{LABEL: ['Good', 'good ']*20})}
TAGS = 'The\tDET\ndog\tNOUN\n\nGo\tVERB\n\n'*6
COLS = f"--text '{TEXT}'"
BOTH = f"{COLS} --label '{LABEL}'"
SMALL = '--emb-sz 6 --n-hid 6 --bs 4 --epochs 1'

def type_in(line):
    "Run a command in this process; gives its exit status or last words."
    was,sys.argv = sys.argv,['rnn_fastai', *shlex.split(line)]
    try: return main()
    except SystemExit as e: return e.code
    finally: sys.argv = was

@pytest.fixture(scope='module')
def start(tmp_path_factory):
    "A folder with files, and with small models that the command has made of them."
    root,was = tmp_path_factory.mktemp('first'),os.getcwd()
    for name,df in FILES.items(): df.to_csv(root/name, index=False)
    KOREAN.to_csv(root/'korean.csv', index=False, encoding='cp949')
    (root/'tags.tsv').write_text(TAGS)
    (root/'marks.tsv').write_bytes('글을\tNOUN\n읽는\tVERB\n사람은\tNOUN\n\n오늘은\tADV\n날이\tNOUN\n좋다\tADJ\n\n'.encode('cp949')*6)
    os.chdir(root)
    try:
        for line in (f"lm stories.csv {COLS} --n-layers 2 --out lm", f"classifier stories.csv {BOTH} --n-layers 2 --out mood",
                     "tagger tags.tsv --out tags", "lm korean.csv --text 글 --encoding cp949 --tok chars --out korean"):
            said = type_in(f"train {line} {SMALL} --quiet")
            assert said is None, (line, said)
    finally: os.chdir(was)
    return root

@pytest.fixture
def here(start, tmp_path, monkeypatch):
    "A fresh folder with copies of all that, in which the user stands."
    shutil.copytree(start, tmp_path/'work')
    monkeypatch.chdir(tmp_path/'work')
    from rnn_fastai import recipes
    from rnn_fastai.cli import jobs
    monkeypatch.setitem(recipes.DEMO, 'epochs', 1)   # a demo in seconds
    monkeypatch.setattr(jobs, 'human_numbers_100', partial(jobs.human_numbers_100, 40))

# What comes from inside the package or from a library, and means nothing to who has not typed it.
INSIDE = ('Traceback', 'NoneType', 'site-packages', 'rnn_fastai/', '.py:', '__init__', 'Sampling', 'inhomogeneous', 'not callable', 'weight_p',
          'held_out', 'Could not infer', 'indices must be', 'not iterable', 'codec', 'object at 0x', 'OverflowError',
          'KeyError', 'argument must be', '<class', '_jobs', 'ArrowInvalid', 'partial(', '[E0')
AT_A_SHELL = ('hidden_size', 'size of tensor', 'Errno', 'dtype', '`register`', 'df', 'frame', 'text_col',
              'label_col', 'valid_col', 'tok_tfm', 'from_df', 'from_csv', 'DataLoaders', 'dls', 'learn.',
              'encoding=', 'n_words=', 'Error:', 'fastai.')   # Python is no remedy there

def check_words(typed, said, inside):
    "No word from inside, but those that were typed."
    found = [w for w in inside if w in said.replace(f'rnn_fastai {typed.split()[0]}:', '') and w not in typed]
    assert not found, (found, said)

def names_what_was_given(typed, said):
    "One of the words that were typed, or what a file holds."
    command,*words = shlex.split(typed.removesuffix(f' {SMALL}'))
    return any(w in said for w in (TEXT, LABEL, 'Held out?', '3 rows', *([w for w in words if not w.startswith('--')] or [command])))

# ---- The command: item, what is typed, what is said

def train(rest): return f"train {rest} {SMALL}"

COMMAND = [
    ('A1', train(f"classifier stories.csv {BOTH} --encoder lm --out clas").replace('--emb-sz 6 --n-hid 6', ''), r'The model is in clas\.'),
    ('A1', train(f"classifier stories.csv {BOTH} --encoder ./lm --out ./deep/clas").replace('--emb-sz 6 --n-hid 6', ''), r'The model is in deep/clas\.'),
    ('A1', train("classifier stories.csv --encoder none --out clas"), r'There is no bundle none\.'),
    ('A1', train(f"classifier stories.csv {BOTH} --encoder tags --out clas"), r'--encoder: tags is a tagger, not a language model'),
    ('A2', train(f"lm stories.csv {COLS} --out stories.csv"), r'stories\.csv cannot be made a folder: stories\.csv is a file\. Name another one\.$'),
    ('A2', train(f"lm stories.csv {COLS} --out /dev/null/m"), r'/dev/null/m cannot be made a folder: /dev/null is a file\. Name another one\.$'),
    ('A2', train(f"lm stories.csv {COLS} --out new --lr 1000"), r'--lr 1000 must be a rate above 0 and at most 10, such as 1e-3'),
    ('A2', train(f"lm stories.csv {COLS} --out new --lr 1e6"), r'--lr 1e6 must be a rate'),
    ('A2', train(f"lm stories.csv {COLS} --out new --lr -3"), r'--lr -3 must be a rate'),
    ('A2', f"train lm stories.csv {COLS} --out new --epochs 0", r'--epochs 0 must be a whole number of at least 1'),
    ('A2', train(f"classifier three.csv {BOTH} --out new"), r'The data have 3 rows, and a tenth is held out: give 10 or more'),
    ('A3', train(f"lm stories.csv {COLS} --out new --resume"), r'There is no checkpoint in new/checkpoints, so the training begins'),
    ('A4', train(f"lm stories.csv {COLS} --out lm"), r'lm holds a model\. Name another folder with --out, or replace the model with --overwrite'),
    ('A4', train(f"lm stories.csv {COLS} --out lm --overwrite"), r'The model is in lm\.'),
    ('A5', "eval lm stories.csv", r'The model was trained on stories\.csv: of its 40 rows, the 4 held out are scored'),
    ('A5', "eval lm new.csv", r'4 rows: loss .*perplexity.*\n.*% are unknown to the model.*Where the next token is known: loss .*accuracy'),
    ('A5', "eval mood new.csv", r'Accuracy: [0-9.]+ on texts without an unknown token \(2\), [0-9.]+ on texts with one \(2\)[^$]*\n *pos +[0-9.]+'),
    ('A5', "eval tags tags.tsv", r'NOUN +[0-9.]+ +[0-9.]+'),
    ('A5', "eval mood odd.csv", r"Column 'My Mood\?', row 2: the model does not know the label 'odd'"),
    ('A6', "predict lm good zebra bad --n-words 2", r'good .*\n.*zebra.*\n.*bad '),
    ('A6', "generate lm good zebra bad --n-words 2", r"zebra.*\n.*1 of the prompts could not be continued"),
    ('A7', train("lm stories.csv --out new"), r"--text 'text' is not a column of the file\. .*Available: 'Text of Story \(raw\)', 'My Mood\?'"),
    ('A7', train(f"classifier stories.csv {COLS} --out new"), r"--label 'label' is not a column of the file"),
    ('A7', train(f"lm stories.csv {COLS} --valid Held --out new"), r"--valid Held is not a column of the file"),
    ('A7', train(f"lm maybe.csv {COLS} --valid 'Held out?' --out new"), r"Column 'Held out\?' must be true or false in every row; row 2 holds 'maybe'"),
    ('A7', train(f"lm held.csv {COLS} --valid 'Held out?' --out new"), r'The model is in new\.'),
    ('A7', train(f"lm stories.csv {COLS} --out new --drop 7"), r'--drop 7 must be at least 0 and below 4: it multiplies dropouts of AWD_LSTM'),
    ('A7', train(f"classifier gap.csv {BOTH} --out new"), r"gap\.csv: Column 'My Mood\?' has 1 empty fields, the first in row 22\. Fill them, or remove these rows"),
    ('A8', train("lm korean.csv --text 글 --out new"), r'korean\.csv is not valid UTF-8.*line 1.*It may be CP949\..*iconv -f CP949.* Or name its encoding, such as --encoding .cp949.\.$'),
    ('A8', train("lm korean.csv --text 글 --out new --encoding cp949"), r'The model is in new\.'),
    ('A8', train("lm korean.csv --text 글 --out new --encoding cp99"), r"--encoding cp99 is not known"),
    ('A8', "eval korean korean.csv", r'korean\.csv is not valid UTF-8.*It may be CP949\..*iconv -f CP949.* Or name its encoding, such as --encoding .cp949.\.$'),
    ('A8', "eval korean korean.csv --encoding cp949", r'20 rows, the 2 held out are scored'),
    ('A9', "--version", rf'rnn_fastai {re.escape(rnn_fastai.__version__)}'),
    ('A9', "dmeo", r"Unknown command 'dmeo'\. Did you mean 'demo'\? Available: .*'serve'\.$"),
    ('A9', "train --help", r'each\s+line\s+of\s+a\s+\.tsv\s+file\s+has\s+a\s+word,\s+a\s+tab\s+and\s+its\s+tag'),
    ('A9', "predict lm good --device cuda:7", r'--device cuda:7 is not there\. This machine has cpu'),
    ('A9', "predict lm good --device gpu", r'--device gpu is not known\. This machine has cpu'),
    ('A9', train(f"lm stories.csv {COLS} --out new --quiet"), r'^\nOn held-out rows: [^\n]* The model is in new\.\n$'),
    ('A9', "generate lm good --n-words 2 --json", r'^\{"prompt": "good", "text": "good .*"ended": "length"\}\n$'),
    *[('A9', train(f"lm stories.csv {COLS} --out new --tok {tok}"), r'The model is in new\.') for tok in ('words --lang xx', 'chars', 'bpe', 'unigram')],
    ('A9', train(f"lm stories.csv {COLS} --out new --tok bpee"), r"--tok bpee is not known\. Did you mean 'bpe'\?"),
    ('A9', train(f"lm stories.csv {COLS} --out new --lang qq"), r"--lang qq is not a language that spaCy has\. .*Available: 'af', .*'de', "),
    ('A9', train(f"lm stories.csv {COLS} --out new --arch AWD_LSTN"), r"Unknown architecture 'AWD_LSTN'\. Did you mean 'AWD_LSTM'"),
    ('A8', train("tagger marks.tsv --out new"), r'marks\.tsv is not valid UTF-8.*It may be CP949'),
    ('A8', train("tagger marks.tsv --out new --encoding cp949"), r'The model is in new\.'),
    ('A9', train("tagger tags.tsv --out new --tok chars"), r'--tok: the words of a tagger are those of its data'),
    ('A9', "demo --quiet --out shown", r'Losses drawn in shown/demo_losses\.png\. The model is in shown/demo\.'),
    ('A9', f"train lm large.csv {COLS} --out new --epochs 1", r'too large, and slow\. One that fits: --emb-sz 64 --n-hid 128 --n-layers 2'),
    ('A10', "generate lm good --n-words 40 --seed 1 --temperature 3", r'^good .*\n$'),
    ('A10', "predict lm good --n-words 40 --seed 1 --temperature 3", r'^good .*\n$'),
    ('A10', "generate korean 글 --n-words 20 --seed 1", r'^글.*\n$'),
    ('A10', "predict tags 'The dog'", r'^The/\w+ dog/\w+\n$'),
    ('A10', "predict mood 'good one' 'bad two'", r'^(pos|neg)\t[0-9.]+\tgood one\n(pos|neg)\t[0-9.]+\tbad two\n$'),
]

def ids(cases): return [f'{item} {typed[:70]}' for item,typed,_ in cases]

@pytest.mark.parametrize('item,typed,want', COMMAND, ids=ids(COMMAND))
def test_the_command_says(here, capsys, item, typed, want):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always', UserWarning)
        code = type_in(typed)
    out,err = capsys.readouterr()
    said = out + err + ''.join(f'{w.message}\n' for w in told if w.category is UserWarning) + (code or '')
    check_words(typed, said, INSIDE + AT_A_SHELL)
    assert re.search(want, said), said
    if code:
        assert '\n' not in code and code.startswith('rnn_fastai'), code
        assert names_what_was_given(typed, said), said
    if typed.startswith(('predict', 'generate')): assert not re.search('xxunk|xxfld', out), out
    if code and typed.startswith('train'): assert not Path('new').exists()

def test_a_model_keeps_what_it_was_made_of(start):
    "A9: in its card, under the names that were typed."
    card = (start/'mood'/'README.md').read_text()
    for name,value in dict(data='stories.csv', columns=f'text: {TEXT}, label: {LABEL}', epochs=1, seed=42).items(): assert f'| {name} | `{value}` |' in card
    assert rnn_fastai.__version__ in card and torch.__version__.partition('+')[0] in card

def test_a_folder_never_mixes_two_models(here):
    "A4: a classifier on an encoder, replaced by a language model, leaves nothing behind."
    for args in (f"classifier stories.csv {BOTH} --encoder lm --bs 4 --epochs 1", f"lm stories.csv {COLS} --overwrite {SMALL}"):
        assert type_in(f"train {args} --out both --quiet") is None
        assert {p.name for p in Path('both').rglob('*') if p.is_file()} == {'README.md', 'config.json', 'model.safetensors', 'vocab.json'}
    assert type_in("generate both good --n-words 2") is None

# ---- The notebook: item, what is typed, what is said: shown, warned of, or raised

class Forgets(rf.Cell):
    "A cell that computes two gates, and does not say so."
    def step(self, gx, state):
        a,b = (gx + self.recur(state[0])).chunk(2, -1)
        return (a.sigmoid()*b.tanh() + state[0],)

class Own(rf.Cell):
    "A cell without gates."
    def step(self, gx, state): return (torch.tanh(gx + self.recur(state[0])),)

@pytest.fixture(scope='module')
def names(start):
    "What a notebook holds after its first cells."
    df = STORIES.rename(columns={TEXT: 'text', LABEL: 'label'})
    lm_dls = rf.TextDataLoaders.from_df(df, text_col='text', is_lm=True, bs=4, seq_len=4)
    own = rf.rnn_learner(rf.SeqDataLoaders.from_series('hello world. '*20), Own, n_hid=4)
    lm,mood = (rf.load_bundle(start/d, device='cpu') for d in ('lm', 'mood'))
    rec = mood.record(['good one', 'bad two'])
    small = dict(config=dict(emb_sz=4, n_hid=4, n_layers=1), pretrained=False)
    clas_dls = rf.TextDataLoaders.from_df(df, text_col='text', label_col='label', bs=4)
    here = {**vars(rf), **vars(SimpleNamespace(df=df, lm_dls=lm_dls, clas_dls=clas_dls, lm=lm, mood=mood, own=own, rec=rec, small=small, Forgets=Forgets,
                                               Own=Own, start=start, LABEL=LABEL, read=lambda name: pd.read_csv(start/name)))}
    here['new'] = lambda dls: rf.language_model_learner(dls, 'AWD_LSTM', **small)
    return here

PYTHON = [
    ('A2', "new(lm_dls).fit(-1)", r'n_epoch=-1'),
    ('A2', "new(lm_dls).fit(1, 1e6)", r'lr=1000000\.0 must be'),
    ('A2', "new(lm_dls).fit_one_cycle(1, -3)", r'lr=-3\.0 must be'),
    ('A2', "new(lm_dls).fine_tune(-1)", r'^epochs=-1 must be a whole number of at least 0\.$'),
    ('A2', "mood.fine_tune(-1)", r'^epochs=-1 must be'),
    ('B1', "lm_dls.show_batch(max_n=2)", r'HTML object|text'),   # the table: nbs/170_data.loaders.ipynb
    ('B1', "lm_dls", r'^TextDataLoaders\n(.*\n)*  train +32 texts of 192 tokens'),
    ('B1', "lm_dls._repr_html_()", r'<t[dr]'),
    ('B1', "lm", r'^LMLearner\n(.*\n)*.*parameters'),
    ('B1', "lm.generate(['good', 'bad'], 3, seed=1, no_bar=True)", r"Generated\(prompt: 'good', text: .*\n.*Generated\(prompt: 'bad'"),
    ('B1', "lm.score(['good one'], no_bar=True)", r"Score\(text: 'good one', tokens: \d"),
    ('B1', "rec", r'^Recording of 2 documents'),
    ('B1', "rec._repr_html_()", r'<t[dr]'),
    ('B2', "rank_units(rec, ['pos', 'neg'])", r'unit +score'),
    ('B2', "rank_units(rec, ['pos', 'neg', 'neg'])", r'There are 3 labels; the recording has \d+ steps in 2 documents\. Give one for each step.*each document'),
    ('B2', "saliency(mood.model, 'good one')", r"not 'good one'\. For a text, call the learner's own `saliency\(text\)`"),
    ('B2', "mood.saliency('good one')", r': .*good \(-?[0-9.e-]+\) one \('),
    ('B2', "mood.record(5)", r'record reads a text or a sequence, or a list of them, not 5\.$'),
    ('B2', "own.record('hello', parts=('states', 'gates'))", r'No gates are recorded: Own names none\. A cell of your own names them in `gate_names`'),
    ('B3', "Recurrent(Forgets, 3, 4)", r'Forgets has gates = 1, .* sets the class attribute `gates`, such as gates = 2\.$'),
    ('B3', "Cell.__doc__", r'A subclass writes `step`(.|\n)*gates = 2\n +def step\(self, gx, state\):'),
    ('B4', "TextDataLoaders.from_df('stories.csv')", r'df is of type str.*read files with pd\.read_csv, or call from_csv'),
    ('B4', "TextDataLoaders.from_df(df.text, is_lm=True)", r"df is of type Series.*pd\.DataFrame\(\{'text': texts\}\)"),
    ('B4', "TextDataLoaders.from_df(['one'], is_lm=True)", r'df is of type list'),
    ('B4', "language_model_learner(df, AWD_LSTM)", r'dls is of type DataFrame; it must be loaders: dls = TextDataLoaders\.from_df'),
    ('B4', "language_model_learner(clas_dls, AWD_LSTM, **small)", r'These are loaders for a classifier\. Make others: .*is_lm=True'),
    ('B4', "text_classifier_learner(lm_dls, AWD_LSTM, **small)", r'These are loaders for a language model\. Make others'),
    ('B4', "lm.generate('one', n_word=3)", r"Unexpected argument 'n_word'\. Did you mean 'n_words' or "),
    ('B4', "TextDataLoaders.from_df(df, text_col='text', is_lm=True, tok='bpe')", r"Unexpected argument 'tok'\. Did you mean .*'tok_tfm'"),
    ('B4', "TextDataLoaders.from_df(df, text_col='text', is_lm=True, tok_tfm='ko')", r"'ko' is a name; give a tokenizer"),
    ('B4', "TextDataLoaders.from_csv(start, 'story.csv', is_lm=True)", r"There is no file story\.csv in .*Did you mean 'stories\.csv' or "),
    ('B4', "TextDataLoaders.from_df(df, text_col='story', is_lm=True)", r"text_col='story' is not a column of the frame"),
    ('B4', "TextDataLoaders.from_df(read('alike.csv'), label_col=LABEL)", r"labels \['Good', 'good '\] differ by blanks or case alone"),
    ('B4', "TextDataLoaders.from_df(df.assign(label=[.5, 1.5]*20), label_col='label', text_col='text')", r'numbers such as 0\.5, which are taken for 2 labels'),
    # A loss that becomes NaN: test_learner_faults.py
    ('B5', "mood.predict(['good one', 'bad two'])", r"item is a list; predict takes one text\. For many, call classify\.$"),
    ('B5', "mood.predict(df)", r"item is a DataFrame; predict takes one text\. For many, call classify\.$"),
    ('B5', "mood.predict(5)", r"item is a int; predict takes one text\."),
    ('B5', "[label for label,_,_ in mood.classify(['good one', 'bad two'])]", r"^\['(pos|neg)', '(pos|neg)'\]"),
    ('B5', "[label for label,_,_ in mood.classify(df[:2])]", r"^\['(pos|neg)', '(pos|neg)'\]"),
    ('B6', "WordTokenizer('ko')", r"lang='ko', spaCy needs a library that is missing here: .*natto-py.*\. Without it, lang='xx' cuts at blanks"),
    ('B6', "WordTokenizer('qq')", r"lang='qq' is not a language that spaCy has\. .*Available: 'af'"),
]

@pytest.mark.parametrize('item,typed,want', PYTHON, ids=ids(PYTHON))
def test_the_notebook_says(names, capsys, item, typed, want):
    said = ''
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always', UserWarning)
        try:
            shown = eval(typed, names)
            if shown is not None: said = shown if isinstance(shown, str) else repr(shown)
        except (ValueError, TypeError, OSError, ImportError) as e: said = str(e)
    said += ''.join(f'\n{w.message}' for w in told if w.category is UserWarning) + capsys.readouterr().out
    check_words(typed, said, INSIDE)
    assert re.search(want, said), said

def test_importing_says_nothing():
    "B7: no warning of fastai's, and no other."
    done = subprocess.run([sys.executable, '-c', 'import rnn_fastai.all'], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(Path(rnn_fastai.__file__).parents[1])})
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
