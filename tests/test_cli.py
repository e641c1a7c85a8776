"The command `rnn_fastai`, run as a user runs it, and its front door in this process (a call mostly imports fastai)."
import inspect
import io
import os
import re
import subprocess
import sys
import threading
import warnings
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from fastcore.basics import defaults
from fastcore.docments import docments

import rnn_fastai
from rnn_fastai.cli.entry import COMMANDS, main
from rnn_fastai.cli.main import commands

COMMAND = Path(sys.executable).with_name('rnn_fastai')
CALLS = dict(help=('--help',), unknown=('dmeo',), demo_help=('demo', '--help'))

@cache
def calls():
    "All calls, started at once from another folder than the repository."
    if not COMMAND.exists(): pytest.skip(f'{COMMAND} is not there; install the package into this environment')
    here = str(Path(rnn_fastai.__file__).parents[1])
    start = partial(subprocess.Popen, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd='/',
                    env={**os.environ, 'OMP_NUM_THREADS': '1', 'COLUMNS': '120', 'PYTHONPATH': here})
    return {k: start([COMMAND, *args]) for k,args in CALLS.items()}

@cache
def result(name):
    "Exit status, output and complaints of a call."
    out,err = calls()[name].communicate(timeout=120)
    return calls()[name].returncode,out,err

@pytest.fixture()
def run(monkeypatch, capsys):
    "Calls the command in this process; gives its exit status, output and complaints."
    def go(*args):
        monkeypatch.setattr(sys, 'argv', ['rnn_fastai', *map(str, args)])
        try: code = main()
        except SystemExit as e: code = e.code
        return code,*capsys.readouterr()
    return go

def test_help_lists_the_commands(run):
    code,out,err = result('help')
    assert code == 0 and 'Traceback' not in err
    assert 'usage: rnn_fastai COMMAND' in out
    assert 'demo: Train a language model on human numbers' in out
    assert run() == run('-h') == (None, out, '')

def test_unknown_command(run):
    code,out,err = result('unknown')
    assert code == 1 and out == '' and 'Traceback' not in err
    assert "rnn_fastai: Unknown command 'dmeo'. Did you mean 'demo'?" in err
    assert "Available: 'demo'" in run('qqq')[0] and 'Did you mean' not in run('qqq')[0]

def test_help_of_demo_lists_its_arguments():
    code,out,err = result('demo_help')
    assert code == 0 and 'Traceback' not in err
    assert out.startswith('usage: rnn_fastai demo')
    wanted = '--honest', '--seed', '--out', 'Train a language model on human numbers', '8,001 to 9,999', 'default: 42'
    assert [w for w in wanted if w not in out] == []

def test_the_version(run):
    assert run('--version') == (None, f'rnn_fastai {rnn_fastai.__version__}\n', '')

@pytest.mark.parametrize('name', COMMANDS)
def test_help_lists_all_arguments(run, monkeypatch, name):
    "With what each is, as it stands in the source; after a blank line, the version."
    monkeypatch.setenv('COLUMNS', '1000')
    code,out,err = run(name, '--help')
    assert (code, err) == (0, '') and out.startswith(f'usage: rnn_fastai {name} [-h]') and COMMANDS[name] in out
    f = inspect.unwrap(commands.get(name))
    docs,options = docments(f, full=True, returns=False),out.split('options:')[1]
    for k,v in docs.items():
        given = v.default is not inspect.Parameter.empty
        assert re.search(rf"^  {'--' if given else ''}{k.replace('_', '-')} .*{re.escape(v.docment)}", options if given else out, re.M), k
    assert out.endswith(f'\n\nrnn_fastai {rnn_fastai.__version__}\n')

QUICK = [['--help'], ['--version'], ['dmeo'], ['demo', '--seed', 'three'], ['demo', '--seed', '-1'], ['demo', '--bogus'],
         ['train', 'lm', 'none.csv'], ['train', 'odd', 'imdb'], ['train', 'lm', 'imdb', '--epochs', '0'],
         ['train', 'classifier', 'imdb', '--encoder', 'none'], ['train', 'lm', 'imdb', '--encoder', 'none'],
         ['train', 'lm', 'imdb', '--out', '/dev/null/m'], ['eval', 'none', 'imdb'], ['eval', '.', 'none.csv'], ['predict', 'none', 'a'],
         ['predict', '.', '--n-words', '0'], ['generate', '.', '--file', 'none'], ['generate', '.', 'a', '--seed', '-1'],
         ['generate', '.', '--bs', '0'], ['export-onnx', 'none', 'out'], ['push', 'none', 'me/m'], ['serve', 'none']]

def test_help_and_wrong_arguments_load_nothing(tmp_path):
    "In one process, so what one call loads shows in all that follow."
    code = """
import contextlib, io, sys
from rnn_fastai.cli.entry import main
for line in sys.stdin.read().splitlines():
    sys.argv = ['rnn_fastai', *line.split()]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try: main()
        except SystemExit: pass
    print(line, '->', *{'torch', 'fastai', 'pandas', 'spacy', 'numpy', 'pyarrow', 'matplotlib'} & set(sys.modules))
"""
    calls = [*QUICK, *([name, '--help'] for name in COMMANDS)]
    done = subprocess.run([sys.executable, '-c', code], input='\n'.join(map(' '.join, calls)), capture_output=True, text=True,
                          check=True, cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(Path(rnn_fastai.__file__).parents[1])})
    assert done.stdout.splitlines() == [f"{' '.join(c)} ->" for c in calls]

@pytest.mark.parametrize('args,words', [(('--seed', 'three'), 'invalid int value'), (('--bogus',), '--bogus'),
                                        (('extra',), 'extra')], ids=lambda a: a[0] if isinstance(a, tuple) else '')
def test_bad_argument_of_demo(run, args, words):
    code,out,err = run('demo', *args)
    assert code == 2 and out == ''
    assert 'usage: rnn_fastai demo' in err and words in err

# ---- Every command with data of all kinds, in this process

TEXTS = pd.DataFrame({'text': ['good one, fine day', 'bad two, awful day']*10, 'label': ['pos', 'neg']*10})
TAGS = 'The\tDET\ndog\tNOUN\n\nGo\tVERB\n\n'*6

@pytest.fixture(scope='module')
def models(tmp_path_factory):
    "A folder of small models, one for each task, and the data that they were trained on."
    root,was = tmp_path_factory.mktemp('models'),sys.argv
    TEXTS.to_csv(root/'a.csv', index=False)
    (root/'t.tsv').write_text(TAGS)
    sizes = '--emb-sz', '6', '--n-hid', '6', '--epochs', '1', '--bs', '4'
    try:
        for task,file in (('lm', 'a.csv'), ('classifier', 'a.csv'), ('tagger', 't.tsv')):
            layers = () if task == 'tagger' else ('--n-layers', '2')
            sys.argv = ['rnn_fastai', 'train', task, str(root/file), '--out', str(root/task), *sizes, *layers]
            main()
    finally: sys.argv = was
    return root

@pytest.fixture()
def typed(monkeypatch):
    "Puts text on the standard input, with its ends of lines as they are."
    def go(text): monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(text.encode()), 'utf8', newline='\n'))
    return go

ENDS = ['\n', '\r\n']

@pytest.mark.parametrize('end', ENDS)
def test_a_tagger_answers_all_lines(models, run, typed, end):
    "A blank line is a blank line in the answer, and lines after it are answered too."
    typed(end.join(['\ufeffThe dog', '', 'Go', '  ', 'Go dog']))
    code,out,err = run('predict', models/'tagger')
    words = [[w.rpartition('/')[0] for w in line.split()] for line in out.splitlines()]
    assert (code, words, err) == (None, [['The', 'dog'], [], ['Go'], [], ['Go', 'dog']], '')

@pytest.mark.parametrize('end', ENDS)
@pytest.mark.parametrize('task', ['classifier', 'lm'])
def test_ends_of_lines_are_no_words(models, run, typed, end, task):
    lines = ['good one', 'null', 'bad two', '1984']
    args = () if task == 'classifier' else ('--n-words', '2', '--temperature', '0')
    typed(end.join(lines) + end)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')   # of unknown words
        piped,given = run('predict', models/task, *args),run('predict', models/task, *lines, *args)
    assert piped == given and piped[0] is None and len(piped[1].splitlines()) == 4 and '\r' not in piped[1]

def test_a_text_that_cannot_be_answered_is_reported_and_the_others_are_answered(models, run, monkeypatch):
    from rnn_fastai.learner.lm import LMLearner
    def predict(self, text, **kwargs):
        if text == 'odd': raise ValueError('this one\ncannot be')
        return text.upper()
    monkeypatch.setattr(LMLearner, 'predict', predict)
    code,out,err = run('predict', models/'lm', 'good', 'odd', 'bad')
    assert (out, err) == ('GOOD\nBAD\n', 'text 2: this one cannot be\n')
    assert '1 of the texts could not be answered' in code

def test_unknown_words_in_a_prompt(models, run, typed):
    "`predict` goes on, `generate` says which prompt it is and goes on with the others; neither stops."
    typed('good\nzebra\nbad\n')
    with pytest.warns(UserWarning, match='zebra'): code,out,err = run('predict', models/'lm', '--n-words', '2')
    assert code is None and len(out.splitlines()) == 3
    typed('good\r\nzebra\r\nbad\r\n')
    code,out,err = run('generate', models/'lm', '--n-words', '2')
    assert '1 of the prompts' in code and len(out.splitlines()) == 2 and 'zebra' in err

def test_prompts_of_a_file(models, run, tmp_path):
    (tmp_path/'p.txt').write_bytes(b'\xef\xbb\xbfgood\r\nbad two\r\n')
    want = run('generate', models/'lm', 'good', 'bad two', '--n-words', '3', '--seed', '1')
    assert run('generate', models/'lm', '--file', tmp_path/'p.txt', '--n-words', '3', '--seed', '1') == want

def test_prompts_of_a_pipe(models, run, tmp_path):
    "As a shell hands over the output of another command: `--file <(command)`."
    want,pipe = run('generate', models/'lm', 'good', '--n-words', '3', '--seed', '1'),tmp_path/'pipe'
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("good\n",), daemon=True)
    writer.start()
    assert run('generate', models/'lm', '--file', pipe, '--n-words', '3', '--seed', '1') == want
    writer.join()
    assert 'is a folder; give a file of prompts' in run('generate', models/'lm', '--file', tmp_path)[0]

def test_white_space_is_no_word(models, run):
    "Blanks, tabs and returns in a text to be tagged."
    plain = run('predict', models/'tagger', 'a b c')
    for text in ('a  b c', ' a b\tc ', 'a\rb\n c\r'): assert run('predict', models/'tagger', text) == plain

ALL = ['lm', 'classifier', 'tagger']
FOUR = 'text,label,tokens,tags\n'
FILES = {   # name, content, tasks that read it
    'numbers.csv': (FOUR + '1984,1,1 2,X Y\n7,2,3,Y\n'*10, ALL),
    'words.csv': (FOUR + 'null,NA,null,NA\nNone,x,nan None,x y\n'*10, ALL),
    'semicolons.csv': ('text;label;tokens;tags\n' + 'a b;x;a b;X Y\nb;y;b;Y\n'*10, ALL),
    'table.tsv': ('text\tlabel\n' + 'a, b\tx\nb\ty\n'*10, ['lm', 'classifier']),
    'words.tsv': (TAGS.replace('dog', 'null').replace('The', '1984'), ['tagger']),
    **{f'words{s}': (TAGS.replace('\t', ' '), ['tagger']) for s in ('.conll', '.iob', '.bio', '.txt', '.CoNLL')},
    'words.conll.csv': (TAGS, []), 'comma.csv': (FOUR + 'a,x,a,X,\n'*10, []), 'empty.csv': ('', []),
    'header.csv': (FOUR, []), 'short.csv': (FOUR + 'a,x,a,X\nb\n'*10, ['lm']),
    'others.csv': ('a,b\n1,2\n', []), 'latin.csv': ('text,label,tokens,tags\nna\xefve,x,a,X\n'.encode('latin-1'), []),
    'wide.csv': ('text,label,tokens,tags\na,x,a,X\n'.encode('utf-16'), []), 'fake.parquet': ('text,label\na,x\n', []),
    'bytes.csv': (bytes(range(256)), []),
    'broken.csv.gz': ('no archive', []), 'lengths.csv': ('tokens,tags\na b,X\n', []),
    'labels.csv': ('text,label\n' + 'a,\nb,x\n'*10, ['lm']),
    'one.csv': (FOUR + 'a b c d,x,a,X\n'*10, ['lm']),
    'empty.conllu': ('', []), 'table.conllu': ('text,label\na,b\n', []), 'table.parquet': (TEXTS, ['lm', 'classifier']),
    'numbers.parquet': (TEXTS.assign(text=1, tokens=1, tags=2), []), 'missing.parquet': (TEXTS.assign(text=None), []),
    'lists.parquet': (pd.DataFrame(dict(tokens=[['a', 'b'], ['c']]*9, tags=[['X', 'Y'], ['Y']]*9)), ['tagger'])}

def put(folder, name):
    data = FILES[name][0]
    if isinstance(data, pd.DataFrame): data.to_parquet(folder/name)
    else: (folder/name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder/name

@pytest.mark.parametrize('task', ['lm', 'classifier', 'tagger'])
@pytest.mark.parametrize('name', FILES)
def test_training_takes_a_file_or_says_why_not(run, tmp_path, task, name):
    "A model, or one line that names the file: never a traceback."
    sizes = '--emb-sz', '4', '--n-hid', '4', '--epochs', '1', '--bs', '2'
    code,out,err = run('train', task, put(tmp_path, name), '--out', tmp_path/'m', *sizes)
    if task in FILES[name][1]: assert code is None and 'The model is in' in out, code
    else:
        assert isinstance(code, str) and code.startswith('rnn_fastai train: ') and '\n' not in code, (code, out)
        assert not (tmp_path/'m').exists() and out == ''

@pytest.mark.parametrize('task', ['lm', 'classifier', 'tagger'])
@pytest.mark.parametrize('name', FILES)
def test_scoring_takes_a_file_or_says_why_not(models, run, tmp_path, task, name):
    code,out,err = run('eval', models/task, put(tmp_path, name))
    if code is None: assert task in FILES[name][1] and 'rows: loss' in out
    else: assert isinstance(code, str) and code.startswith('rnn_fastai eval: ') and '\n' not in code, code

BAD = [('train', 'lm', 'FOLDER'), ('train', 'lm', 'FOLDER/none.csv'), ('train', 'odd', 'imdb'),
       ('eval', 'FOLDER', 'imdb'),
       ('eval', 'LM', 'FOLDER'), ('predict', 'FOLDER', 'a'), ('predict', 'LM/config.json', 'a'),
       ('predict', 'LM', 'a', '--n-words', '0'),
       ('predict', 'LM', 'a', '--temperature', '-1'), ('predict', 'LM', 'a', '--seed', '-1'),
       ('generate', 'LM', '--file', 'FOLDER'), ('generate', 'LM', '--file', 'FOLDER/none'), ('generate', 'TAGGER', 'a'),
       ('generate', 'LM', '--file', 'LM/model.safetensors'),
       ('train', 'lm', 'DATA', '--epochs', '0'), ('train', 'lm', 'DATA', '--bs', '0'),
       ('train', 'lm', 'DATA', '--drop', '9'),
       ('train', 'lm', 'DATA', '--arch', 'GRU'), ('train', 'tagger', 'DATA'),
       ('train', 'lm', 'DATA', '--valid', 'label'),
       ('train', 'classifier', 'DATA', '--encoder', 'TAGGER'), ('train', 'classifier', 'DATA', '--encoder', 'FOLDER'),
       ('train', 'lm', 'DATA', '--emb-sz', '0'), ('train', 'lm', 'DATA', '--seed', '-1'),
       ('train', 'lm', 'DATA', '--out', 'DATA')]

@pytest.mark.parametrize('args', BAD, ids=' '.join)
def test_bad_arguments_are_one_line(models, run, tmp_path, args):
    places = {'FOLDER': tmp_path, 'LM': models/'lm', 'TAGGER': models/'tagger', 'DATA': models/'a.csv'}
    def place(a):
        head,_,rest = a.partition('/')
        return a if head not in places else str(places[head]/rest if rest else places[head])
    code,out,err = run(*map(place, args))
    assert isinstance(code, str) and code.startswith(f'rnn_fastai {args[0]}: ') and '\n' not in code, (code, err)

# ---- Output that is no terminal

SMALL = '--emb-sz', '4', '--n-hid', '4', '--bs', '4'

def test_a_line_an_epoch(models, run, tmp_path):
    code,out,err = run('train', 'lm', models/'a.csv', '--out', tmp_path/'m', '--epochs', '3', *SMALL)
    lines = out.splitlines()
    assert code is None and '\r' not in out + err and '█' not in out
    assert [l.split(',')[0] for l in lines[:3]] == ['epoch 0', 'epoch 1', 'epoch 2'] and 'valid_loss' in lines[0]
    assert len(lines) == 5 and lines[3] == '' and lines[4].startswith('On held-out rows')

def test_real_pipes(models):
    "The command as a user's shell runs it: a pipe in, a file out."
    if not COMMAND.exists(): pytest.skip(f'{COMMAND} is not there; install the package into this environment')
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(Path(rnn_fastai.__file__).parents[1])}
    pipes = dict.fromkeys(['stdin', 'stdout', 'stderr'], subprocess.PIPE)
    def call(data, *args): return subprocess.Popen([COMMAND, *map(str, args)], env=env, **pipes),data
    calls = [call(b'The dog\r\n\r\nGo\r\n', 'predict', models/'tagger'),
             call(b'na\xefve\n', 'predict', models/'tagger'),
             call(b'', 'train', 'lm', models/'a.csv', '--out', models/'again', *SMALL, '--epochs', '2')]
    (out,err),(out2,err2),(out3,err3) = [p.communicate(data, timeout=240) for p,data in calls]
    codes = [p.returncode for p,_ in calls]
    assert codes == [0, 1, 0] and not any(b'Traceback' in e for e in (err, err2, err3))
    assert [[w.rpartition(b'/')[0] for w in l.split()] for l in out.splitlines()] == [[b'The', b'dog'], [], [b'Go']]
    assert out2 == b'' and b'The standard input is not UTF-8 in line 1' in err2
    assert b'\r' not in out3 + err3 and [l[:7] for l in out3.splitlines()[:2]] == [b'epoch 0', b'epoch 1']

@pytest.mark.parametrize('task', ['lm', 'classifier', 'tagger'])
def test_predict_in_eight_bits_is_what_the_learner_says(models, run, task):
    from rnn_fastai.cli.jobs import load_task
    learn = load_task(models/task, '')[0]
    greedy = dict(temperature=0., n_words=5) if task == 'lm' else {}
    with learn.no_bar(): said = learn.predict('good', int8=True, **greedy)
    args = ('--temperature', '0', '--n-words', '5') if greedy else ()
    code,out,err = run('predict', models/task, 'good', *args, '--int8')
    shown = {'lm': lambda: said, 'tagger': lambda: ' '.join(f'{w}/{t}' for w,t in said),
             'classifier': lambda: f'{said[0]}\t{said[2][said[1]]:.4f}\tgood'}[task]()
    assert (code, out) == (None, shown + '\n')

def test_a_seed_settles_what_predict_draws(models, run):
    calls = [run('predict', models/'lm', 'good', '--n-words', '12', '--seed', s) for s in ('1', '1', '2')]
    assert all(code is None for code,_,_ in calls)
    assert calls[0] == calls[1] != calls[2]

# ---- The way out: bundles, ONNX, the hub

@pytest.mark.parametrize('task', ['lm', 'classifier', 'tagger'])
def test_training_writes_a_bundle_with_figures_and_a_card(models, task):
    import rnn_fastai.all as rf
    learn = rf.load_bundle(models/task, device='cpu')
    assert {'loss', 'accuracy', 'valid_loss'} <= set(learn.last_scores)
    card = (models/task/'README.md').read_text()
    assert f"load_bundle({task!r})" in card and 'Trained on' in card

def test_a_pickle_is_no_model(run, tmp_path):
    (tmp_path/'m').mkdir()
    (tmp_path/'m'/'export.pkl').write_bytes(b'\x80\x04.')
    for name in ('predict', 'export-onnx', 'push'):
        more = {'predict': ['text'], 'export-onnx': [tmp_path/'o'], 'push': ['me/m']}[name]
        code,out,err = run(name, tmp_path/'m', *more)
        assert code.startswith(f'rnn_fastai {name}: There is no bundle in') and out == ''

@pytest.mark.parametrize('task', ['lm', 'classifier', 'tagger'])
def test_a_model_goes_over_to_onnx(models, run, tmp_path, task):
    pytest.importorskip('onnxruntime')
    import rnn_fastai.all as rf
    from rnn_fastai.ship.onnx_model import OnnxModel
    code,out,err = run('export-onnx', models/task, tmp_path/'o')
    assert code is None and f'The model is in {tmp_path}/o, ' in out
    learn,model = rf.load_bundle(models/task, device='cpu'),OnnxModel(tmp_path/'o')
    if task == 'tagger': assert model.tag(['The dog']) == learn.tag(['The dog'])
    elif task == 'lm':
        assert model.generate(['good'], 5, temperature=0)[0].text == learn.generate('good', 5, temperature=0, no_bar=True)[0].text
    else: assert model.classify(['good one'])[0].label == learn.predict('good one')[0]
    other = run('export-onnx', models/task, models)   # a folder of other things
    assert other[0].startswith('rnn_fastai export-onnx: ') and 'holds other things' in other[0]

def test_int8_is_smaller(models, run, tmp_path):
    pytest.importorskip('onnxruntime')
    sizes = []
    for i,args in enumerate(((), ('--int8',))):
        run('export-onnx', models/'lm', tmp_path/str(i), *args)
        sizes.append((tmp_path/str(i)/'model.onnx').stat().st_size)
    assert sizes[0] != sizes[1]   # of so small a net, the graph takes more than the weights

def test_a_model_is_pushed_with_the_card_of_its_folder(hub, models, run, tmp_path, monkeypatch):
    import shutil

    from rnn_fastai.ship.hub import from_hub
    monkeypatch.setenv('HF_TOKEN', 'secret')
    folder = shutil.copytree(models/'classifier', tmp_path/'reviews')
    card = (folder/'README.md').read_text()
    (folder/'README.md').write_text(card.replace('Write here', 'Of good and bad days. Write here'))
    code,out,err = run('push', folder, 'me/days', '--license', 'mit', '--private')
    assert (code, out) == (None, f'The model is at {hub.url}/me/days.\n')
    text = hub.repos['me/days'].files['README.md'].decode()
    assert 'Of good and bad days.' in text and "from_hub('me/days')" in text and '\nlicense: mit\n' in text
    assert 'Trained on' in text and hub.repos['me/days'].private
    assert from_hub('me/days').last_scores == from_hub('me/days').last_scores != {}
    code,out,err = run('push', folder, 'me/days/x')
    assert code.startswith("rnn_fastai push: repo 'me/days/x' is no name of a repository.")
    (folder/'README.md').write_bytes(b'\xff')
    assert 'README.md is not UTF-8' in run('push', folder, 'me/days')[0]

def test_without_the_extras_each_door_names_its_own(models, run, tmp_path, monkeypatch):
    for lib in ('huggingface_hub', 'onnx', 'onnxruntime'): monkeypatch.setitem(sys.modules, lib, None)
    assert 'pip install "rnn_fastai[hub]"' in run('push', models/'lm', 'me/m')[0]
    assert 'pip install "rnn_fastai[onnx]"' in run('export-onnx', models/'lm', tmp_path/'o')[0]

def test_an_encoder_from_a_folder_that_is_named_from_here(models, run, monkeypatch, tmp_path):
    monkeypatch.chdir(models)
    before = {f: f.read_bytes() for f in Path('lm').rglob('*') if f.is_file()}
    code,out,err = run('train', 'classifier', 'a.csv', '--encoder', 'lm', '--out', tmp_path/'clas', '--epochs', '1', '--bs', '4')
    assert code is None and 'The model is in' in out
    assert {f: f.read_bytes() for f in Path('lm').rglob('*') if f.is_file()} == before
    assert {f.name for f in (tmp_path/'clas').rglob('*') if f.is_file()} == {'README.md', 'config.json', 'model.safetensors', 'vocab.json'}

def test_a_place_that_takes_no_model_is_refused_before_the_training(models, run, monkeypatch):
    for name in ('read_data', 'set_seed'): monkeypatch.setattr(f'rnn_fastai.cli.jobs.{name}', lambda *a: pytest.fail('too late'))
    code,_,_ = run('train', 'lm', models/'a.csv', '--out', models/'a.csv', *SMALL)
    assert 'a.csv is a file. Name another' in code
    def full(*args, **kwargs): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('tempfile.TemporaryFile', full)
    code,_,_ = run('train', 'lm', models/'a.csv', '--out', models/'new', *SMALL)
    assert 'new may not be written to. Name another' in code and not (models/'new').exists()

@pytest.mark.parametrize('args,said', [
    (('--lr', '-3'), '--lr -3 must be a rate above 0 and at most 10'), (('--lr', '1000'), '--lr 1000 must be a rate'),
    (('--lr', 'nan'), '--lr nan must be a rate'), (('--epochs', '0'), '--epochs 0 must be a whole number of at least 1'),
    (('--drop', '7'), '--drop 7 must be at least 0 and below 4: it multiplies dropouts of AWD_LSTM')], ids=str)
def test_numbers_out_of_range_are_refused_before_the_training(models, run, tmp_path, args, said):
    code,_,_ = run('train', 'lm', models/'a.csv', '--out', tmp_path/'m', *SMALL, *args)
    assert said in code and not (tmp_path/'m').exists()

NUMBERS = [(name, k.replace('_', '-'), '-1' if p.annotation is int else 'nan') for name in COMMANDS
           for k,p in inspect.signature(inspect.unwrap(commands.get(name))).parameters.items() if p.annotation in (int, float)]

@pytest.mark.parametrize('name,option,value', NUMBERS, ids=str)
@pytest.mark.parametrize('task', ['lm', 'tagger'])
def test_every_number_out_of_range_is_named_as_it_was_typed(models, run, tmp_path, task, name, option, value):
    "In one line, with what it must be, and before anything is trained or written."
    data = models/('t.tsv' if task == 'tagger' else 'a.csv')
    args = dict(train=(task, data, '--out', tmp_path/'m'), demo=('--out', tmp_path/'m'), eval=(models/task, data), predict=(models/task, 'good'),
                generate=(models/'lm', 'good'), serve=(models/task,))[name]
    code,out,_ = run(name, *args, f'--{option}', value)
    if task == 'tagger' and name == 'predict' and option != 'seed' and not isinstance(code, str): return   # it writes nothing
    assert code.startswith(f'rnn_fastai {name}: --{option} {value} must be ') and code.endswith('.') and '\n' not in code and 'None' not in code
    assert out == '' and not (tmp_path/'m').exists()

@pytest.mark.parametrize('name,option,value', NUMBERS, ids=str)
def test_what_is_no_number_is_refused_by_the_option_it_stands_for(run, name, option, value):
    code,_,err = run(name, f'--{option}', 'x')
    assert code == 2 and re.search(rf"argument --{option}: invalid (int|float) value: 'x'$", err.strip())

def test_options_that_exclude_each_other_are_named_as_typed(models, run):
    assert run('generate', models/'lm', 'good', '--beam', '2', '--n', '3')[0] == 'rnn_fastai generate: --n 3 texts are more than --beam 2 finds.'
    code,_,_ = run('generate', models/'lm', 'good', '--beam', '2', '--top-k', '3')
    assert code == 'rnn_fastai generate: --beam 2 searches the likeliest text, and --top-k 3 is for texts that are drawn; leave one out.'

def test_a_warning_is_one_line(models):
    "As a shell shows it: the command, and what is odd; not a line of the source."
    done = subprocess.run([sys.executable, '-m', 'rnn_fastai', 'predict', str(models/'lm'), 'zebra', '--n-words', '2'], capture_output=True, text=True,
                          env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(Path(rnn_fastai.__file__).parents[1])})
    assert done.returncode == 0 and re.fullmatch(r"rnn_fastai predict: The prompt 'zebra' holds no word that the model knows\. .*\n", done.stderr)

def test_quiet_leaves_the_figures_alone(models, run, tmp_path, monkeypatch):
    "Without progress, notes and tables; the figures are those of the loud command."
    pd.DataFrame(dict(text=['good zebra', 'bad two'], label=['pos', 'neg'])).to_csv(tmp_path/'a.csv', index=False)
    for task,data in (('lm', tmp_path/'a.csv'), ('classifier', tmp_path/'a.csv'), ('tagger', models/'t.tsv')):
        loud,(_,quiet,err) = run('eval', models/task, data)[1].splitlines(),run('eval', models/task, data, '--quiet')
        assert quiet.splitlines() == [l for l in loud if re.match('[0-9]+ rows?: ', l)] and len(loud) > 1 and err == ''
    from rnn_fastai import recipes
    from rnn_fastai.cli import jobs
    monkeypatch.setitem(recipes.DEMO, 'epochs', 1)
    monkeypatch.setattr(jobs, 'human_numbers_100', partial(jobs.human_numbers_100, 40))
    code,out,_ = run('demo', '--quiet', '--out', tmp_path/'demo')
    assert code is None and 'epoch' not in out and '2,000 rows' not in out and out.count('goes on:') == 2 and (tmp_path/'demo'/'demo'/'config.json').exists()
    assert 'epoch' in run('demo', '--out', tmp_path/'demo')[1]

def test_a_model_is_replaced_only_where_that_is_asked_for(models, run, tmp_path):
    args = 'train', 'lm', models/'a.csv', '--out', tmp_path/'m', *SMALL, '--epochs', '1'
    assert run(*args)[0] is None
    before = (tmp_path/'m'/'model.safetensors').read_bytes()
    code,_,_ = run(*args, '--seed', '7')
    assert f"{tmp_path/'m'} holds a model" in code and '--overwrite' in code
    assert (tmp_path/'m'/'model.safetensors').read_bytes() == before
    assert run(*args, '--seed', '7', '--overwrite')[0] is None
    assert (tmp_path/'m'/'model.safetensors').read_bytes() != before
    assert {f.name for f in (tmp_path/'m').rglob('*') if f.is_file()} == {'README.md', 'config.json', 'model.safetensors', 'vocab.json'}

def test_json_has_two_names(models, run):
    args = 'generate', models/'lm', 'good', '--n-words', '3', '--temperature', '0'
    assert run(*args, '--json') == run(*args, '--as-json')

def test_a_model_knows_its_data_again(models, run, tmp_path):
    "Of the file that it was trained on, held-out rows are scored, as the training scored them; columns are remembered."
    df = pd.DataFrame({'Text (raw)': ['good one, fine day', 'bad two, awful day']*20, 'Mood': ['pos', 'neg']*20})
    df.to_csv(tmp_path/'a.csv', index=False)
    cols = '--text', 'Text (raw)', '--label', 'Mood'
    code,out,_ = run('train', 'classifier', tmp_path/'a.csv', *cols, '--out', tmp_path/'m', '--epochs', '1', '--quiet', *SMALL)
    assert code is None and len(out.splitlines()) == 2   # a blank line, and the figures
    (tmp_path/'a.csv').rename(tmp_path/'b.csv')
    code,again,_ = run('eval', tmp_path/'m', tmp_path/'b.csv')
    assert again.startswith(f"The model was trained on {tmp_path/'b.csv'}: of its 40 rows, the 4 held out are scored.\n4 rows: loss ")
    assert re.search('loss [0-9.]+, accuracy [0-9.]+', again)[0] == re.search('loss [0-9.]+, accuracy [0-9.]+', out)[0]
    df.assign(held=[True, False]*20).to_csv(tmp_path/'c.csv', index=False)
    code,out,_ = run('eval', tmp_path/'m', tmp_path/'c.csv')
    assert code is None and out.startswith('40 rows: loss ')   # another file: all rows
    df.assign(Mood='odd').to_csv(tmp_path/'d.csv', index=False)
    assert "Column 'Mood', row 2: the model does not know the label 'odd'." in run('eval', tmp_path/'m', tmp_path/'d.csv')[0]
    import rnn_fastai.all as rf
    notes = rf.load_bundle(tmp_path/'m', device='cpu').notes
    assert (notes['data'], notes['columns'], notes['rows'], notes['seed']) == ('a.csv', dict(text='Text (raw)', label='Mood'), 40, 42)
    assert '| columns | `text: Text (raw), label: Mood` |' in (tmp_path/'m'/'README.md').read_text()

def test_the_share_of_unknown_tokens(models, run, tmp_path):
    "`good` is known, `zebra` is not; the figures without unknown tokens are those that are computed by hand."
    pd.DataFrame(dict(text=['good zebra', 'zebra zebra good day'])).to_csv(tmp_path/'a.csv', index=False)
    code,out,_ = run('eval', models/'lm', tmp_path/'a.csv')
    assert 'Of 8 tokens, 37.5% are unknown to the model, and read as xxunk. Where the next token is known: loss ' in out
    from rnn_fastai.cli.jobs import load_task
    learn = load_task(models/'lm', '')[0]
    dl = learn.dls.valid.new(['good zebra', 'zebra zebra good day'], bs=1)
    (x,y), = dl   # one batch
    logits,y = learn.model.eval()(x).logits[0].as_subclass(torch.Tensor),y[0].as_subclass(torch.Tensor)
    loss = torch.nn.functional.cross_entropy(logits[y != 0], y[y != 0]).item()
    assert f'known: loss {loss:.4f}, accuracy' in out
    assert 'unknown' not in run('eval', models/'lm', models/'a.csv')[1]

def test_classifiers_and_taggers_are_scored_where_words_are_known_and_where_not(models, run, tmp_path):
    "`zebra` is known to neither; the figures are those of their answers one by one, and so are those of each class."
    from rnn_fastai.cli.jobs import load_task
    texts,labels = ['good zebra', 'good one', 'zebra', 'awful day'],['pos', 'neg', 'neg', 'neg']
    pd.DataFrame(dict(text=texts, label=labels)).to_csv(tmp_path/'a.csv', index=False)
    learn = load_task(models/'classifier', '')[0]
    right = [learn.predict(t)[0] == l for t,l in zip(texts, labels, strict=True)]
    code,out,_ = run('eval', models/'classifier', tmp_path/'a.csv')
    assert f'Accuracy: {(right[1] + right[3])/2:.4f} on texts without an unknown token (2), {(right[0] + right[2])/2:.4f} on texts with one (2).' in out
    assert re.search(r'^pos +[0-9.]+ +[0-9.]+ +[0-9.]+ +1$', out, re.M) and re.search(r'^neg +.* 3$', out, re.M)
    (tmp_path/'t.tsv').write_text('The\tDET\nzebra\tNOUN\n\nGo\tVERB\n\n')
    learn = load_task(models/'tagger', '')[0]
    (_,the),(_,zebra) = learn.predict(['The', 'zebra'])
    (_,go), = learn.predict(['Go'])
    code,out,_ = run('eval', models/'tagger', tmp_path/'t.tsv')
    assert f"Accuracy: {((the == 'DET') + (go == 'VERB'))/2:.4f} on known words (2), {float(zebra == 'NOUN'):.4f} on unknown words (1)." in out
    assert re.search(r'^NOUN +.* 1$', out, re.M) and out.startswith('2 rows: loss ')
    assert 'unknown' not in run('eval', models/'tagger', models/'t.tsv')[1]

def test_columns_and_rows_are_named_as_in_the_file(run, tmp_path):
    def said(name, text, *args):
        (tmp_path/name).write_text(text)
        return run('train', 'classifier', tmp_path/name, '--out', tmp_path/'m', *args)[0]
    body = 'My text,My label,Held?\n' + 'a b,x,0\nb c,y,1\n'*10
    cols = '--text', 'My text', '--label', 'My label', '--valid', 'Held?'
    assert "--text 'text' is not a column of the file" in said('a.csv', body)
    assert "Column 'My label' has 1 empty fields, the first in row 22. Fill them, or remove these rows." in said('a.csv', body + 'c,,0\n', *cols)
    assert "Column 'Held?' must be true or false in every row; row 22 holds 'maybe'." in said('a.csv', body + 'c,x,maybe\n', *cols)
    assert "Column 'Held?' is 0 in every row" in said('a.csv', body.replace(',1\n', ',0\n'), *cols)
    assert not (tmp_path/'m').exists()

@pytest.mark.parametrize('tok,toks', [('chars', 'g o o d'), ('bpe', ''), ('words', 'good')])
def test_tokens_by_name(models, run, tmp_path, tok, toks):
    more = ('--lang', 'xx') if tok == 'words' else ()
    code,out,_ = run('train', 'lm', models/'a.csv', '--out', tmp_path/'m', '--tok', tok, *more, '--epochs', '1', *SMALL)
    assert code is None
    import rnn_fastai.all as rf
    learn = rf.load_bundle(tmp_path/'m', device='cpu')
    assert not toks or list(learn.dls.train_ds.tokenizer(['good']))[0][1:] == toks.split()
    if tok == 'chars':   # a classifier on it reads characters too
        assert run('train', 'classifier', models/'a.csv', '--encoder', tmp_path/'m', '--out', tmp_path/'c', '--epochs', '1', '--bs', '4')[0] is None
        assert rf.load_bundle(tmp_path/'c', device='cpu').dls.vocab[0] == learn.dls.vocab

@pytest.mark.parametrize('args,said', [(('lm', '--tok', 'bpee'), "--tok bpee is not known. Did you mean 'bpe'?"),
                                       (('lm', '--tok', 'bpe', '--lang', 'de'), '--lang is for words, not for --tok bpe.'),
                                       (('tagger', '--tok', 'chars'), 'the words of a tagger are those of its data'),
                                       (('classifier', '--encoder', 'LM', '--lang', 'de'), 'the tokens are those of --encoder')])
def test_tokens_that_cannot_be(models, run, tmp_path, args, said):
    task,*rest = (models/'lm' if a == 'LM' else a for a in args)
    assert said in run('train', task, models/'a.csv', '--out', tmp_path/'m', *rest)[0]

def test_a_model_that_is_too_large_is_told():
    from rnn_fastai.cli.jobs import size_note
    net = SimpleNamespace(model=torch.nn.Embedding(60_000, 400), dls=SimpleNamespace(train_ds=SimpleNamespace(lens=torch.tensor([9_000]))))
    assert size_note(net, {}) == ('The model has 24 million parameters, and the training texts 9,000 tokens: it is too large, and slow. '
                                  'One that fits: --emb-sz 64 --n-hid 128 --n-layers 2\n')
    net.dls.train_ds.lens *= 100
    assert size_note(net, {}) == ''

def test_a_training_of_few_steps_is_told(models, run, tmp_path):
    "On the standard error, with what makes it longer; where it is long enough, or quiet, nothing is said."
    args = 'train', 'classifier', models/'a.csv', '--out', tmp_path/'m', '--overwrite', '--emb-sz', '4', '--n-hid', '4', '--bs', '16'
    said = 'The training has 2 steps, of a batch each, and the model will learn little: try --bs 2 or --epochs 40.\n'   # 18 rows
    assert run(*args, '--epochs', '2')[2] == said
    assert run(*args, '--epochs', '2', '--quiet')[2] == '' == run(*args, '--epochs', '20')[2]

def test_arrow_keys_at_the_prompt(models):
    "At a pseudo-terminal, the arrow up brings the line before back: it is answered twice."
    pexpect = pytest.importorskip('ptyprocess')
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'TERM': 'xterm', 'PYTHONPATH': str(Path(rnn_fastai.__file__).parents[1])}
    args = [sys.executable, '-m', 'rnn_fastai', 'generate', str(models/'lm'), '--n-words', '1', '--temperature', '0']
    p,seen = pexpect.PtyProcessUnicode.spawn(args, env=env),''
    def until(n):
        nonlocal seen
        while seen.count('> ') < n: seen += p.read()
    until(1); p.write('good\r'); until(2); p.write('\x1b[A\r'); until(3); p.sendeof()
    assert seen.count('> good') == 2 and '^[[A' not in seen, seen

def test_python_runs_the_package_as_a_command():
    said = subprocess.run([sys.executable, '-m', 'rnn_fastai', '--version'], capture_output=True, text=True)
    assert (said.returncode, said.stdout) == (0, f'rnn_fastai {rnn_fastai.__version__}\n')

def test_files_in_another_encoding(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({'text': ['글을 읽는 사람은 자기 자신을 읽는다']*20}).to_csv('k.csv', index=False, encoding='cp949')
    code,_,_ = run('train', 'lm', 'k.csv', '--out', 'm', *SMALL, '--epochs', '1')
    assert 'k.csv is not valid UTF-8' in code and 'line 2' in code and 'It may be CP949' in code and '--encoding' in code
    code,out,_ = run('train', 'lm', 'k.csv', '--out', 'm', *SMALL, '--epochs', '1', '--encoding', 'cp949')
    assert code is None and 'The model is in m' in out
    assert run('eval', 'm', 'k.csv', '--encoding', 'cp949')[0] is None
    assert "--encoding cp99 is not known" in run('eval', 'm', 'k.csv', '--encoding', 'cp99')[0]

OWN_CELL = '''
import torch
from rnn_fastai.models.cells import Cell
class Slow(Cell):
    def step(self, gx, state): return ((state[0]*3 + torch.tanh(gx + self.recur(state[0])))/4,)
'''

def test_models_of_classes_of_ones_own(run, tmp_path, monkeypatch):
    import rnn_fastai.all as rf
    (tmp_path/'own_cell.py').write_text(OWN_CELL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [*sys.path, str(tmp_path)])
    from own_cell import Slow
    sents = pd.DataFrame({'tokens': [['The', 'dog'], ['Go']]*6, 'tags': [['DET', 'NOUN'], ['VERB']]*6})   # as in TAGS
    rf.tagger_learner(rf.TagDataLoaders.from_df(sents, bs=4), Slow, emb_sz=4, n_hid=4).save_bundle('m')
    del sys.modules['own_cell']
    monkeypatch.setattr(sys, 'path', [p for p in sys.path if p != str(tmp_path)])
    (tmp_path/'t.tsv').write_text(TAGS)
    monkeypatch.setattr('rnn_fastai.ship.serve._server', lambda *args: SimpleNamespace(run=lambda **kwargs: None))   # ends at once
    for args in (('predict', 'm', 'the dog'), ('eval', 'm', 't.tsv'), ('export-onnx', 'm', 'x'), ('serve', 'm', '--port', '0')):
        assert 'a command takes --allow own_cell.Slow' in run(*args)[0] and 'own_cell' not in sys.modules
        code,out,err = run(*args, '--allow', 'own_cell.Slow')
        assert code is None and out, code
        del sys.modules['own_cell']
        sys.path.remove(str(tmp_path))
    assert "--allow own_cell.Fast cannot be imported" in run('predict', 'm', 'a', '--allow', 'own_cell.Fast')[0]

# ---- A training that is cut

@pytest.mark.parametrize('task,file,sizes', [('lm', 'a.csv', SMALL), ('classifier', 'a.csv', SMALL), ('tagger', 't.tsv', SMALL),
                                             ('classifier', 'a.csv', ('--encoder', 'LM', '--bs', '4'))])
def test_a_training_that_is_interrupted_goes_on(models, run, tmp_path, monkeypatch, task, file, sizes):
    "The same model and figures as in one piece; the command says what is kept, and keeps nothing when it is done."
    from fastai.learner import Learner
    sizes = [models/'lm' if s == 'LM' else s for s in sizes]
    def train(out, *more): return run('train', task, models/file, '--out', tmp_path/out, *sizes, '--epochs', '4', *more)
    before,steps = Learner.one_batch,[]
    def interrupted(self, i, b):
        if len(steps) == 4: raise KeyboardInterrupt
        steps.append(i)
        before(self, i, b)
    whole = train('whole')[1]
    with monkeypatch.context() as m:
        m.setattr(Learner, 'one_batch', interrupted)
        code,out,err = train('cut')
    folder = tmp_path/'cut'/'checkpoints'
    kept = [p.name for p in sorted(folder.glob('checkpoint-*'))]
    if not kept: assert code == 'rnn_fastai train: interrupted, before there was a checkpoint.'
    else:
        assert code == (f'rnn_fastai train: interrupted. {kept[-1]} is kept in {folder}; go on with the same command '
                        'and --resume.')
        assert 'go on with --resume, or delete the folder' in train('cut')[0]
        assert ' was 4 and is 5' in train('cut', '--resume', '--epochs', '5')[0]
    code,out,err = train('cut', '--resume')
    def figures(o): return [re.sub(r'(time|Trained in) .*', '', l) for l in o.splitlines() if 'no checkpoint' not in l]
    assert code is None and figures(out) == figures(whole) and ('no checkpoint' in out) != bool(kept)
    a,b = ((tmp_path/d/'model.safetensors').read_bytes() for d in ('whole', 'cut'))
    assert a == b and not folder.exists()

def test_a_device_that_is_not_there(run, tmp_path, monkeypatch):
    "Each command that works on a device says at once which there are."
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    file = tmp_path/'texts.csv'
    pd.DataFrame(dict(text=['one two three'], label=['a'])).to_csv(file, index=False)
    for args in (('train', 'classifier', file, '--out', tmp_path/'m'), ('eval', tmp_path, file), ('predict', tmp_path, 'a'),
                 ('generate', tmp_path, 'a'), ('serve', tmp_path)):
        code,out,_ = run(*args, '--device', 'cuda')
        assert (code, out) == (f"rnn_fastai {args[0]}: --device cuda is not there. This machine has cpu.", '')
    assert not (tmp_path/'m').exists()
    assert "--device gpu is not known. This machine has cpu" in run('predict', tmp_path, 'a', '--device', 'gpu')[0]

def test_a_device_that_is_there(run, tmp_path, monkeypatch):
    monkeypatch.setattr(defaults, 'use_cuda', None)
    file = tmp_path/'texts.csv'
    pd.DataFrame(dict(text=['one two', 'three four']*10, label=['a', 'b']*10)).to_csv(file, index=False)
    code,out,_ = run('train', 'classifier', file, '--out', tmp_path/'m', '--epochs', 1, '--emb-sz', 4, '--n-hid', 4, '--device', 'cpu')
    assert code is None and 'The model is in' in out
    assert run('predict', tmp_path/'m', 'one two', '--device', 'cpu')[0] is None
    assert defaults.use_cuda is False   # on a machine with a GPU too
