"Files of bundles: round trips, hostile and damaged ones, killed writers, memory."
import hashlib
import json
import os
import pickle
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import time
import zipfile

import pytest
import safetensors.torch
import torch

from rnn_fastai.ship.storage import BundleError, read_files, write_files, write_zip

CONFIG = {'arch': 'GRU', 'sizes': [1, 2.5, None, True], 'names': {'größer': '[[{"'}}
TEXTS = {'vocab.json': json.dumps(['xxunk', 'größer', '\n']), 'tokenizer.json': '{"a": "b"}'}

def weights(seed=0):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(40, 6, generator=g)
    return {'emb.weight': w, 'rnn.weight': torch.randn(12, 6, generator=g), 'rnn.bias': torch.randn(12, generator=g),
            'tied.weight': w, 'n': torch.tensor(3), 'half': w[:3].half(), 'b16': w[0].bfloat16(), 'view': w[3:5].T,
            'none': torch.zeros(0, 4), 'mask': torch.tensor([0., -float('inf')]), 'flag': torch.tensor([True, False]),
            'complex': torch.tensor([1 + 2j])}

@pytest.fixture(params=['folder', 'zip'])
def write(request, tmp_path):
    "Writes a bundle as a folder or as a zip."
    def make(name='bundle', config=CONFIG, tensors=None, texts=TEXTS, card='# A model'):
        func = write_files if request.param == 'folder' else write_zip
        return func(tmp_path/name, config, tensors or weights(), texts, card)
    make.zipped = request.param == 'zip'
    return make

def read_all(path):
    got = read_files(path)
    return got.config,{n: got.text(n) for n in got.texts},got.tensors()

def refused(path, *words):
    "The error for a bundle, which has a name, names the bundle, and tells what to do."
    with pytest.raises(BundleError) as e: read_all(path)
    said = str(e.value)
    assert str(path) in said, said
    assert re.search(r'(?i)\b(copy|save|update|unpack|put|name what|open|load)\b[^.]*\.', said), said
    for w in words: assert w in said, said
    return said

# ---- round trips

def test_round_trip(write):
    path,want = write(),weights()
    got = read_files(path)
    assert got.config == CONFIG and {n: got.text(n) for n in got.texts} == TEXTS
    assert got.header == {k: (w.dtype, tuple(w.shape)) for k,w in want.items()}
    back = got.tensors()
    assert list(back) and back.keys() == want.keys()
    for k,w in want.items(): assert back[k].dtype == w.dtype and torch.equal(back[k], w)
    assert back['tied.weight'] is back['emb.weight']
    back['view'].add_(1)   # each on memory of its own
    assert torch.equal(back['emb.weight'], want['emb.weight'])

def test_other_tools_read_the_weights(tmp_path):
    folder = write_files(tmp_path/'a', CONFIG, weights())
    theirs = safetensors.torch.load_file(folder/'model.safetensors')
    assert set(weights()) - set(theirs) == {'tied.weight'}
    for k,w in theirs.items(): assert torch.equal(w, weights()[k])

def test_the_same_bundle_gives_the_same_bytes(write):
    a,b = write('a'),write('b')
    files = [p.read_bytes() for p in ((a, b) if write.zipped else (*sorted(a.iterdir()), *sorted(b.iterdir())))]
    assert files[:len(files)//2] == files[len(files)//2:]

def test_the_card_may_be_edited_and_other_files_stay(tmp_path):
    folder = write_files(tmp_path/'a', CONFIG, weights(), TEXTS, '# One')
    (folder/'README.md').write_text('# Mine')
    (folder/'notes').mkdir()
    (folder/'model.safetensors-0123456789ab.bak').write_text('mine')
    (folder/'model.safetensors-0123456789ab').write_text('mine')   # not the checksum of what it holds
    (folder/'link-0123456789ab').symlink_to('/nowhere')
    read_all(folder)
    write_files(folder, {}, weights(1), {'vocab.json': '[]'})
    assert sorted(os.listdir(folder)) == ['README.md', 'config.json', 'link-0123456789ab', 'model.safetensors',
        'model.safetensors-0123456789ab', 'model.safetensors-0123456789ab.bak', 'notes', 'vocab.json']
    assert (folder/'README.md').read_text() == '# Mine'
    config,texts,tensors = read_all(folder)
    assert config == {} and texts == {'vocab.json': '[]'} and torch.equal(tensors['rnn.bias'], weights(1)['rnn.bias'])

def test_a_bundle_may_be_moved_and_linked_to(tmp_path):
    folder = write_files(tmp_path/'a', CONFIG, weights(), TEXTS)
    folder.rename(tmp_path/'ж b')
    (tmp_path/'link').symlink_to(tmp_path/'ж b')
    assert read_all(tmp_path/'link')[0] == CONFIG

# ---- what cannot be written

@pytest.mark.parametrize('what, said', [
    (dict(config={'a': float('nan')}), 'config cannot be kept as JSON'), (dict(config={'a': {1}}), 'config cannot be kept'),
    (dict(config={'a': 'x'*2**20}), 'config.json of the bundle would take'), (dict(texts={'a/b': ''}), "called 'a/b'"),
    (dict(texts={'a.json': '', 'A.json': ''}), "called 'A.json'"), (dict(texts={'a': '\ud800'}), 'a of the bundle cannot be written as UTF-8'),
    (dict(tensors={'w': torch.tensor([float('nan')])}), 'weights w hold NaN'), (dict(card='\ud800'), 'README.md of the bundle'),
    (dict(tensors={'w': torch.ones(2).to('meta')}), 'w is a tensor of torch.float32'),
    (dict(tensors={f'{i:0999}': torch.ones(0) for i in range(1100)}), 'The names of 1,100 tensors take')])
def test_what_cannot_be_read_again_is_not_written(what, said, write):
    path = write()
    with pytest.raises(ValueError, match=re.escape(said)): write(**what)
    assert read_all(path)[0] == CONFIG

def test_a_file_in_the_way(tmp_path):
    (tmp_path/'a').write_text('mine')
    with pytest.raises(OSError, match='a cannot be made a folder'): write_files(tmp_path/'a', CONFIG, weights())
    (tmp_path/'b').mkdir()
    with pytest.raises(OSError, match='b'): write_zip(tmp_path/'b', CONFIG, weights())
    assert (tmp_path/'a').read_text() == 'mine' and sorted(os.listdir(tmp_path)) == ['a', 'b']

# ---- nothing there, or something else

def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='no bundle'): read_files(tmp_path/'none')
    with pytest.raises(FileNotFoundError, match='config.json is missing. `save_bundle` writes one'): read_files(tmp_path)
    (tmp_path/'facts.json').write_text('{}')
    with pytest.raises(FileNotFoundError, match='older format: open it with'): read_files(tmp_path)

class Code:
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return os.mkdir,(str(self.mark),)

@pytest.mark.parametrize('name', ['model.pkl', 'model.safetensors', 'config.json', 'vocab.json'])
@pytest.mark.parametrize('save', [lambda o, f: f.write_bytes(pickle.dumps(o)), torch.save], ids=['pickle', 'torch'])
def test_a_pickle_renamed_is_refused_and_not_run(name, save, tmp_path):
    mark = tmp_path/'ran'
    folder = write_files(tmp_path/'a', CONFIG, weights(), TEXTS)
    save({'w': Code(mark)}, folder/name)
    refused(folder/name if name == 'model.pkl' else folder)
    assert not mark.exists()

@pytest.mark.parametrize('content', [b'', b'PK', b'text'*100, b'\0'*10_000, b'PK\x05\x06' + b'\0'*18])
def test_a_file_that_is_no_zip(content, tmp_path):
    (tmp_path/'a.zip').write_bytes(content)
    refused(tmp_path/'a.zip', 'neither a folder nor a zip')

def test_a_fifo_and_a_device_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path/'fifo')
    with pytest.raises(BundleError, match='neither a folder nor a file'): read_files(tmp_path/'fifo')
    folder = write_files(tmp_path/'a', CONFIG, weights(), TEXTS)
    for name in ('config.json', 'vocab.json', 'model.safetensors'):
        other = shutil.copytree(folder, tmp_path/f'b-{name}')
        (other/name).unlink()
        os.mkfifo(other/name)
        refused(other, f'{name} is no plain file')

@pytest.mark.parametrize('name', ['config.json', 'vocab.json', 'model.safetensors'])
def test_links_are_refused(name, tmp_path):
    folder = write_files(tmp_path/'a', CONFIG, weights(), TEXTS)
    (folder/name).rename(tmp_path/'elsewhere')
    (folder/name).symlink_to(tmp_path/'elsewhere')
    refused(folder, f'{name} is a link. Put the file that it points to in its place')

# ---- hostile: all checksums are right, and what they vouch for is not

def seal(facts, **more):
    "A `config.json` with the right checksum."
    text = json.dumps({'checksum': '0'*64, **facts, **more}).encode()
    return text.replace(b'0'*64, hashlib.sha256(text).hexdigest().encode(), 1)

def told(data): return {'sha256': hashlib.sha256(data).hexdigest(), 'size': len(data)}

def hostile(folder, model=None, files=None, **facts):
    "Replace the weights, or what `config.json` says, under right checksums."
    old = json.loads((folder/'config.json').read_text())
    old.pop('checksum')
    if model is not None:
        (folder/'model.safetensors').write_bytes(model)
        old['files']['model.safetensors'] = told(model)
    old['files'] = old['files'] if files is None else files
    (folder/'config.json').write_bytes(seal({**old, **facts}))
    return folder

def tensor_file(entries, data=b'', meta=None, pad=b''):
    head = json.dumps({**({} if meta is None else {'__metadata__': meta}), **entries}).encode() + pad
    return struct.pack('<Q', len(head)) + head + data

def entry(shape=(2,), at=(0, 8), dtype='F32'): return {'dtype': dtype, 'shape': list(shape), 'data_offsets': list(at)}

HEADERS = {
    'type': (tensor_file({'w': entry(dtype='F4')}, b'\0'*8), "w has the type 'F4'"),
    'list_type': (tensor_file({'w': entry(dtype=['F32'])}, b'\0'*8), "w has the type"),
    'shape': (tensor_file({'w': entry((3,))}, b'\0'*8), 'w has 8 bytes; its shape [3] of F32 needs 12'),
    'huge_shape': (tensor_file({'w': entry((2**40, 2**40))}, b'\0'*8), 'w has 8 bytes; its shape'),
    'overflowing_shape': (tensor_file({'w': entry((2**32, 2**32))}, b'\0'*8), 'w has 8 bytes'),
    'endless_shape': (tensor_file({'w': entry((10**40, 0), (0, 0))}), 'w has the shape'),
    'negative_shape': (tensor_file({'w': entry((-2, -1))}, b'\0'*8), 'w has the shape'),
    'float_shape': (tensor_file({'w': entry((2.0,))}, b'\0'*8), 'w has the shape'),
    'bool_shape': (tensor_file({'w': entry((True, 2))}, b'\0'*8), 'w has the shape'),
    'many_sizes': (tensor_file({'w': entry((1,)*9, (0, 4))}, b'\0'*4), 'w has the shape'),
    'gap': (tensor_file({'v': entry(at=(8, 16))}, b'\0'*16), 'v starts at byte 8 and should start at 0'),
    'overlap': (tensor_file({'v': entry(), 'w': entry(at=(4, 12))}, b'\0'*12), 'w starts at byte 4 and should start at 8'),
    'backwards': (tensor_file({'w': entry(at=(8, 0))}, b'\0'*8), 'w has -8 bytes'),
    'beyond': (tensor_file({'w': entry()}, b'\0'*4), 'holds 4 bytes of numbers, and its header names 8'),
    'rest': (tensor_file({'w': entry()}, b'\0'*12), 'holds 12 bytes of numbers, and its header names 8'),
    'three_places': (tensor_file({'w': entry(at=(0, 8, 8))}, b'\0'*8), 'w has the place'),
    'text_places': (tensor_file({'w': entry(at='08')}, b'\0'*8), 'w has the place'),
    'more': (tensor_file({'w': {**entry(), 'code': 'x'}}, b'\0'*8), 'w has the entry'),
    'less': (tensor_file({'w': {'dtype': 'F32'}}, b'\0'*8), 'w has the entry'),
    'list': (struct.pack('<Q', 2) + b'[]', 'holds no names'),
    'twice': (struct.pack('<Q', 140) + (b'{"w": %s, "w": %s}' % ((json.dumps(entry()).encode(),)*2)).ljust(140) + b'\0'*8, 'names twice'),
    'huge_header': (struct.pack('<Q', 10**6) + b'{}', 'its header would take 1,000,000 bytes'),
    'endless_header': (struct.pack('<Q', 2**64 - 1) + b'{}', 'its header would take'),
    'large_header': (struct.pack('<Q', 2**21) + b' '*2**21, 'its header would take 2,097,152 bytes'),
    'empty_header': (struct.pack('<Q', 0), 'its header would take 0 bytes'),
    'deep_header': (struct.pack('<Q', 10**6) + b'[' * 10**6, 'nested more than 3 deep'),
    'long_numbers': (struct.pack('<Q', 10**6) + b'9' * 10**6, 'is not the JSON'),
    'notes': (tensor_file({'w': entry()}, b'\0'*8, {'a': 1}), 'notes that are no texts'),
    'notes_list': (tensor_file({'w': entry()}, b'\0'*8, [1]), 'notes that are no texts'),
    'tied_to_none': (tensor_file({'w': entry()}, b'\0'*8, {'rnn_fastai': json.dumps({'rnn_fastai': 1, 'sha256': '', 'tied': {'v': 'x'}, 'notes': {}})}), "'v' tied to 'x'"),
    'tied_to_list': (tensor_file({'w': entry()}, b'\0'*8, {'rnn_fastai': json.dumps({'rnn_fastai': 1, 'sha256': '', 'tied': {'v': ['w']}, 'notes': {}})}), "'v' tied to ['w']"),
    'tied_chain': (tensor_file({'w': entry()}, b'\0'*8, {'rnn_fastai': json.dumps({'rnn_fastai': 1, 'sha256': '', 'tied': {'v': 'u', 'u': 'v'}, 'notes': {}})}), "tied to"),
    'nan': (tensor_file({'w': entry()}, b'\xff'*8), 'w holds 2 of 2 numbers that are not finite, but NaN'),
    'short': (b'1234567', '7 bytes, is cut short'),
    'empty': (b'', '0 bytes, is cut short'),
}

@pytest.mark.parametrize('model, said', HEADERS.values(), ids=HEADERS)
def test_hostile_headers(model, said, tmp_path):
    folder = hostile(write_files(tmp_path/'a', CONFIG, weights(), TEXTS), model)
    assert 'model.safetensors' in refused(folder, said)

GOOD = {'model.safetensors': {'sha256': 'a'*64, 'size': 8}}
FACTS = {
    'newer': (dict(format=3), 'has format 3, and this version reads up to 2. Update rnn_fastai'),
    'older': (dict(format=1), 'has format 1'),
    'no_format': (dict(format='2'), 'names no format'),
    'true_format': (dict(format=True), 'names no format'),
    'other': (dict(more=1), 'not what was written'),
    'config': (dict(config=[]), 'lacks its config'),
    'files': (dict(files=[]), 'lacks its config'),
    'no_model': (dict(files={}), 'or model.safetensors among its files'),
    'many': (dict(files={**GOOD, **{f'a{i}': GOOD['model.safetensors'] for i in range(101)}}), 'names 102 files'),
    **{f'name {n!r}': (dict(files={**GOOD, n: GOOD['model.safetensors']}), f'names a file {n[:100]!r}') for n in
       ('../a', '/etc/passwd', 'a/b', 'a\\b', '..', '.', '', '.git', 'a\n', 'a\0b', 'C:a', 'README.md', 'config.json', 'a'*101)},
    'no_size': (dict(files={**GOOD, 'a': {'sha256': 'a'*64}}), 'no size and checksum for a'),
    'size_text': (dict(files={**GOOD, 'a': {'sha256': 'a'*64, 'size': '8'}}), 'no size and checksum for a'),
    'size_negative': (dict(files={**GOOD, 'a': {'sha256': 'a'*64, 'size': -8}}), 'no size and checksum for a'),
    'sha': (dict(files={**GOOD, 'a': {'sha256': '../a', 'size': 8}}), 'no size and checksum for a'),
    'large_text': (dict(files={**GOOD, 'a': {'sha256': 'a'*64, 'size': 2**40}}), 'gives a 1,099,511,627,776 bytes'),
    'missing': (dict(files={**GOOD, 'gone.json': {'sha256': 'a'*64, 'size': 8}}), 'model.safetensors has'),
}

@pytest.mark.parametrize('facts, said', FACTS.values(), ids=map(str, range(len(FACTS))))
def test_hostile_configs(facts, said, tmp_path):
    assert 'config.json' in refused(hostile(write_files(tmp_path/'a', CONFIG, weights(), TEXTS), **facts), said) or 'has' in said

@pytest.mark.parametrize('text, said', [
    (b'', 'is not the JSON'), (b'[]', 'names no format'), (b'3', 'names no format'), (b'{"format": 2}', 'not what was written'),
    (b'['*10**6, 'nested more than 64 deep'), (b'{"a":'*10**5, 'nested more than 64 deep'), (b'9'*10**6, 'is not the JSON'),
    (b'{"a": 1, "a": 1}', 'names twice'), (b'\xff\xfe{}', 'invalid start byte'), (b' '*(2**20 + 1), 'may take 1,048,576'),
    (b'{"format": NaN}', 'not finite'), (b'{"architectures": ["GPT2"]}', 'no bundle. Save the model with `save_bundle`')])
def test_configs_that_are_none(text, said, tmp_path):
    folder = write_files(tmp_path/'a', CONFIG, weights())
    (folder/'config.json').write_bytes(text)
    assert 'config.json' in refused(folder, said)

def rezip(file, change=None, **files):
    "Write the files of a bundle as another zip."
    with zipfile.ZipFile(file) as z: old = {i.filename: z.read(i) for i in z.infolist()}
    with zipfile.ZipFile(file, 'w') as z:
        for n,d in {**old, **files}.items():
            info = zipfile.ZipInfo(n)
            if change and n == 'vocab.json': change(info)
            z.writestr(info, d)
    return file

def deflate(info): info.compress_type = zipfile.ZIP_DEFLATED
def link(info): info.external_attr = 0o120777 << 16

@pytest.mark.parametrize('change, files, said', [
    (deflate, {}, 'vocab.json is compressed'), (link, {}, 'vocab.json is a link'), (None, {'../out.json': b''}, "holds '../out.json'"),
    (None, {'/out.json': b''}, "holds '/out.json'"), (None, {'a/b.json': b''}, "holds 'a/b.json'"), (None, {'a/': b''}, "holds 'a/'"),
    (None, {f'a{i}': b'' for i in range(110)}, 'is a zip of'), (None, {'a'*101: b''}, 'holds'), (None, {'ä': b''}, 'holds')])
def test_hostile_zips(change, files, said, tmp_path):
    file = rezip(write_zip(tmp_path/'a.zip', CONFIG, weights(), TEXTS), change, **files)
    refused(file, said)
    assert os.listdir(tmp_path) == ['a.zip']   # nothing comes out of it

def test_a_zip_with_two_files_of_one_name(tmp_path):
    file = write_zip(tmp_path/'a.zip', CONFIG, weights(), TEXTS)
    with zipfile.ZipFile(file, 'a') as z, pytest.warns(UserWarning): z.writestr('vocab.json', '[]')
    refused(file, 'two files of one name')

def test_a_zip_with_a_long_list_or_a_comment(tmp_path):
    file = write_zip(tmp_path/'a.zip', CONFIG, weights(), TEXTS)
    data = file.read_bytes()
    file.write_bytes(data[:-10] + struct.pack('<I', 2**31) + data[-6:])
    refused(file, 'a list of 2,147,483,648 bytes')
    with zipfile.ZipFile(file, 'w') as z: z.comment = b'x'
    refused(file, 'neither a folder nor a zip')

# ---- damaged

def parts(path): return [path] if path.is_file() else [path/n for n in ('config.json', 'model.safetensors', *TEXTS)]

def test_truncated_at_random_places(write):
    path,rng = write(),random.Random(1)
    for _ in range(50):
        f = rng.choice(parts(path))
        data = f.read_bytes()
        f.write_bytes(data[:rng.randrange(len(data))])
        said = refused(path)
        assert write.zipped or f.name in said
        f.write_bytes(data)
    read_all(path)

def test_changed_bytes(tmp_path):
    "In 300 folders one to eight bytes of one file are changed: each is refused, and the file is named."
    folder,rng = write_files(tmp_path/'a', CONFIG, weights(), TEXTS, 'card'),random.Random(2)
    for i in range(300):
        f = parts(folder)[i % 4]
        data = bytearray(f.read_bytes())
        for at in rng.sample(range(len(data)), rng.randint(1, 8)): data[at] ^= rng.randint(1, 255)
        whole = f.read_bytes()
        f.write_bytes(data)
        assert f.name in refused(folder)
        f.write_bytes(whole)
    read_all(folder)

def test_changed_bytes_of_a_zip(tmp_path):
    "A changed byte is refused, or is none of the bundle's own: dates, rights, the card."
    file,rng = write_zip(tmp_path/'a.zip', CONFIG, weights(), TEXTS, 'card'),random.Random(3)
    data,want = file.read_bytes(),read_all(file)
    ends = range(len(data) - 700, len(data))   # the list of files
    for i in range(400):
        changed = bytearray(data)
        changed[rng.choice(ends) if i % 2 else rng.randrange(len(data))] ^= rng.randint(1, 255)
        file.write_bytes(changed)
        try: got = read_all(file)
        except BundleError: continue
        assert got[:2] == want[:2] and all(torch.equal(a, b) for a,b in zip(got[2].values(), want[2].values(), strict=True))

def test_mixtures_of_two_bundles_are_refused(tmp_path):
    a,b = (write_files(tmp_path/n, CONFIG, weights(i), {'vocab.json': str(i)}) for i,n in enumerate('ab'))
    for name in ('config.json', 'model.safetensors', 'vocab.json'):
        mixed = shutil.copytree(a, tmp_path/f'mixed-{name}')
        shutil.copy(b/name, mixed/name)
        refused(mixed)

def test_what_changes_after_it_was_opened(tmp_path):
    folder = write_files(tmp_path/'a', CONFIG, weights(), TEXTS)
    got = read_files(folder)
    write_files(folder, CONFIG, weights(1), {n: t.upper() for n,t in TEXTS.items()})
    with pytest.raises(BundleError, match='vocab.json was changed.* Open the bundle again: it was replaced'): got.text('vocab.json')
    with pytest.raises(BundleError, match='Open the bundle again'): got.tensors()
    with pytest.raises(KeyError, match="no text '../config.json'; it has vocab.json"): got.text('../config.json')

# ---- killed writers

WRITER = """
    import os, sys, torch
    from rnn_fastai.ship.storage import write_files
    i = int(sys.argv[2])
    os.write(1, b'%d\\n' % os.getpid())
    while True:
        i += 1
        texts = {'vocab.json': str(i), ('odd' if i % 2 else 'even') + '.json': str(i)}
        write_files(sys.argv[1], {'i': i}, {'w': torch.full((200, 200), float(i))}, texts)
"""

def whole(folder):
    "The number that all files of a bundle agree on."
    config,texts,tensors = read_all(folder)
    i = config['i']
    assert texts == {'vocab.json': str(i), ('odd' if i % 2 else 'even') + '.json': str(i)}
    assert bool((tensors['w'] == i).all())
    return i

def test_killed_at_random_moments(tmp_path):
    "Fifty writers of one folder are killed, each somewhere in its first writes: an old or a new bundle opens."
    rng,folder,i,left = random.Random(4),tmp_path/'a',0,0
    write_files(folder, {'i': 0}, {'w': torch.zeros(200, 200)}, {'vocab.json': '0', 'even.json': '0'})
    (folder/'mine.txt').write_text('mine')
    code = textwrap.dedent(WRITER)
    p = subprocess.Popen([sys.executable, '-c', textwrap.dedent("""
        import os, sys, torch, rnn_fastai.ship.storage
        for line in sys.stdin:   # each writer is a fork, as starting Python takes seconds
            pid = os.fork()
            if not pid:
                sys.argv[1:] = line.split('\\t')
                exec(os.environ['WRITER'])
            os.waitpid(pid, 0)
            print('gone', flush=True)
    """)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, 'WRITER': code})
    for _ in range(50):
        p.stdin.write(f'{folder}\t{i}\n')
        p.stdin.flush()
        pid = int(p.stdout.readline())
        time.sleep(rng.uniform(0, 0.06))
        os.kill(pid, signal.SIGKILL)
        assert p.stdout.readline() == 'gone\n'
        now = whole(folder)
        assert now >= i
        i,left = now,left + (len(os.listdir(folder)) > 5)
    p.communicate()
    assert i > 0 and left > 0   # some were killed between two writes, some in the middle
    write_files(folder, {'i': 1}, {'w': torch.ones(200, 200)}, {'vocab.json': '1', 'odd.json': '1'})
    assert whole(folder) == 1
    assert sorted(os.listdir(folder)) == ['config.json', 'mine.txt', 'model.safetensors', 'odd.json', 'vocab.json']

def test_stopped_at_every_step(tmp_path):
    "After each call that changes the disk the writer is stopped for good: the old or the new bundle opens."
    old = write_files(tmp_path/'old', {'i': 0}, {'w': torch.zeros(200, 200)}, {'vocab.json': '0', 'even.json': '0'})
    code = textwrap.dedent("""
        import os, pathlib, sys, torch
        from rnn_fastai.ship.storage import write_files
        left = int(sys.argv[2])
        def counted(f):
            def g(*args, **kwargs):
                global left
                res = f(*args, **kwargs)
                left -= 1
                if not left: os._exit(9)
                return res
            return g
        for o,n in ((os, 'replace'), (os, 'fsync'), (pathlib.Path, 'unlink'), (pathlib.Path, 'touch'), (pathlib.Path, 'write_bytes')):
            setattr(o, n, counted(getattr(o, n)))
        write_files(sys.argv[1], {'i': 1}, {'w': torch.ones(200, 200)}, {'vocab.json': '1', 'odd.json': '1'}, '# card')
    """)
    server = subprocess.Popen([sys.executable, '-c', textwrap.dedent("""
        import os, sys, torch, rnn_fastai.ship.storage
        for line in sys.stdin:
            pid = os.fork()
            if not pid:
                sys.argv[1:] = line.split('\\t')
                exec(os.environ['WRITER'])
                os._exit(0)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    """)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, 'WRITER': code})
    found,rc,n = [],'9',0
    while rc == '9':
        n += 1
        folder = shutil.copytree(old, tmp_path/f'{n}')
        server.stdin.write(f'{folder}\t{n}\n')
        server.stdin.flush()
        rc = server.stdout.readline().strip()
        found.append(whole(folder))
        write_files(folder, {'i': 3}, {'w': torch.full((200, 200), 3.)}, {'vocab.json': '3', 'odd.json': '3'})
        assert whole(folder) == 3
        assert set(os.listdir(folder)) - {'README.md'} == {'config.json', 'model.safetensors', 'odd.json', 'vocab.json'}
    server.communicate()
    assert rc == '0' and found == sorted(found) and found[0] == 0 and found[-1] == 1 and n > 20

@pytest.mark.slow
def test_two_writers_and_a_reader_at_once(tmp_path):
    folder = write_files(tmp_path/'a', {'i': 0}, {'w': torch.zeros(200, 200)}, {'vocab.json': '0', 'even.json': '0'})
    pair = [subprocess.Popen([sys.executable, '-c', textwrap.dedent(WRITER), str(folder), str(i)], stdout=subprocess.PIPE)
            for i in (0, 10**6)]
    for p in pair: p.stdout.readline()
    seen,end = set(),time.monotonic() + 3
    while time.monotonic() < end:
        try: seen.add(whole(folder))
        except BundleError as e: assert 'again' in str(e)   # replaced between opening and reading
    for p in pair: p.kill(); p.communicate()
    whole(folder)
    assert {i > 10**5 for i in seen} == {False, True}

def test_a_failed_write_leaves_the_old_bundle(tmp_path, monkeypatch):
    import rnn_fastai.ship.storage as storage
    folder = write_files(tmp_path/'a', {'i': 0}, {'w': torch.zeros(200, 200)}, {'vocab.json': '0', 'even.json': '0'})
    before,write = sorted(os.listdir(folder)),storage.write_whole
    for name in ('model.safetensors', 'vocab.json', 'config.json'):
        def full(file, data, name=name):
            if file.name.startswith(name): raise OSError(28, 'No space left on device')
            return write(file, data)
        monkeypatch.setattr(storage, 'write_whole', full)
        with pytest.raises(OSError, match='No space'): write_files(folder, {'i': 1}, {'w': torch.ones(2)}, {'vocab.json': '1'})
        assert whole(folder) == 0 and sorted(os.listdir(folder)) == before

# ---- memory

MEMORY = """
    import resource, sys
    from rnn_fastai.ship.storage import BundleError, read_files
    def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    def attempt(path):
        try: read_files(path).tensors()
        except (BundleError, FileNotFoundError) as e: return
        raise AssertionError(path)
    attempt(sys.argv[1])
    start = peak()
    for path in sys.argv[2:]: attempt(path); print(path, peak() - start, flush=True)
"""

@pytest.mark.slow
def test_refusals_take_little_memory(tmp_path):
    "At most 50 MB more than before, whatever the size of what is refused."
    def bundle(name, **kwargs): return hostile(write_files(tmp_path/name, CONFIG, weights(), TEXTS), **kwargs)
    bad = [bundle(f'h{i}', model=m) for i,(m,_) in enumerate(HEADERS.values())]
    lists = b'[' + b'[],'*349_000 + b'[]]'
    bad += [bundle('lists', model=struct.pack('<Q', len(lists)) + lists)]
    bad += [write_files(tmp_path/'config', CONFIG, weights())]
    (bad[-1]/'config.json').write_bytes(lists[:2**20 - 2] + b'[]]')
    large = torch.zeros(17_500_000)   # 70 MB
    for i,change in enumerate((lambda f: os.truncate(f, 6*10**7), lambda f: os.truncate(f, 10**9), lambda f: overwrite(f, 6*10**7))):
        bad.append(write_files(tmp_path/f'large{i}', CONFIG, {'w': large}))
        change(bad[-1]/'model.safetensors')
    sparse = tmp_path/'sparse.zip'
    with open(sparse, 'wb') as f: f.truncate(10**10)
    code = [sys.executable, '-c', textwrap.dedent(MEMORY), str(tmp_path/'none'), *map(str, bad), str(sparse)]
    out = subprocess.run(code, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    grown = {line.rsplit(' ', 1)[0]: int(line.rsplit(' ', 1)[1])/1024 for line in out.stdout.splitlines()}
    assert len(grown) == len(bad) + 1 and max(grown.values()) < 50, grown

def overwrite(file, at):
    with open(file, 'r+b') as f:
        f.seek(at)
        f.write(b'x')
