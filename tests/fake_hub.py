"A hub on this machine for tests: it speaks as much of the Hugging Face hub's HTTP as pushing and loading models need."
import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

class Repo:
    "Commits, each a name of the branch's head and files by name."
    def __init__(self, private=False):
        self.private,self.commits,self.messages = private,{},[]
        self.commit({'.gitattributes': b''}, 'initial commit')

    def commit(self, files, message):
        sha = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[sha],self.head = dict(files),sha
        self.messages.append(message)
        return sha

    @property
    def files(self): return self.commits[self.head]


class Refused(Exception):
    def __init__(self, status, code='', message='', body=None):
        self.status,self.body = status,body or {'error': message or code}
        self.headers = {k: v for k,v in {'X-Error-Code': code, 'X-Error-Message': message}.items() if v}


class FakeHub:
    "`repos` by name; `users` by token; `asked` lists requests; `broken` maps patterns of paths to a status."
    def __init__(self):
        self.repos,self.users,self.lfs,self.asked,self.broken = {},{'secret': 'me', 'other': 'someone'},{},[],{}
        self.before_commit = lambda: None

    def user(self, handler):
        token = (handler.headers.get('Authorization') or '').removeprefix('Bearer ')
        if token and token not in self.users: raise Refused(401, message='Invalid credentials in Authorization header')
        return self.users.get(token)

    def repo(self, handler, name, write=False):
        "The repository, if this user may see it, or write to it."
        user = self.user(handler)
        if name not in self.repos or self.repos[name].private and user != name.split('/')[0]:
            raise Refused(401 if user is None else 404, 'RepoNotFound', 'Repository not found')
        if write and user != name.split('/')[0]: raise Refused(403, message='You have no rights to write here')
        return self.repos[name]

    def at(self, repo, revision):
        sha = repo.head if revision == 'main' else revision
        if sha not in repo.commits: raise Refused(404, 'RevisionNotFound', f'Invalid rev id: {revision}')
        return sha,repo.commits[sha]

    def add(self, name, files, **args):
        "Put a repository on the hub, past the protocol."
        self.repos[name] = Repo(**args)
        self.repos[name].commit(files, 'by hand')

    # What is answered to each path.
    def create(self, handler, body):
        user = self.user(handler)
        if user is None: raise Refused(401, message='Invalid username or password.')
        name = f"{body.get('organization') or user}/{body['name']}"
        url = f'{self.url}/{name}'
        if body.get('organization') not in (None, user): raise Refused(403, message='You may not create a model there')
        if name in self.repos: raise Refused(409, message='You already created this model repo', body={'url': url})
        self.repos[name] = Repo(body.get('visibility') == 'private' or bool(body.get('private')))
        return {'url': url}

    def info(self, handler, name, revision='main'):
        repo = self.repo(handler, name)
        sha,files = self.at(repo, unquote(revision))
        return {'id': name, 'sha': sha, 'private': repo.private, 'siblings': [{'rfilename': f} for f in files]}

    def tree(self, handler, name, revision):
        _,files = self.at(self.repo(handler, name), unquote(revision))
        return [self._entry(n, d) for n,d in files.items()]

    def _entry(self, name, data):
        oid = hashlib.sha1(data).hexdigest()
        lfs = {'oid': hashlib.sha256(data).hexdigest(), 'size': len(data), 'pointerSize': 130}
        return {'type': 'file', 'path': name, 'size': len(data), 'oid': oid, **({'lfs': lfs} if is_large(name) else {})}

    def check_card(self, handler, body):
        head = re.match(r'---\n(.*?)\n---', body['content'], re.S)
        license = (yaml.safe_load(head[1]) if head else {}).get('license', 'mit')
        if license in ('mit', 'apache-2.0', 'other'): return {}
        raise Refused(400, body={'errors': [{'message': f'"license" must be one of mit, apache-2.0, other; not {license}'}]})

    def preupload(self, handler, name, revision, body):
        self.repo(handler, name, write=True)
        return {'files': [{'path': f['path'], 'uploadMode': 'lfs' if is_large(f['path']) else 'regular', 'shouldIgnore': False}
                          for f in body['files']]}

    def batch(self, handler, name, body):
        self.repo(handler, name, write=True)
        return {'transfer': 'basic', 'objects': [{**o, 'actions': {'upload': {'href': f"{self.url}/lfs/{o['oid']}"}}}
                                                 for o in body['objects']]}

    def commit(self, handler, name, revision, lines):
        repo = self.repo(handler, name, write=True)
        self.before_commit()
        files = dict(repo.files)
        for line in lines:
            value = line['value']
            if line['key'] == 'header':
                message = value['summary']
                if value.get('parentCommit', repo.head) != repo.head: raise Refused(412, message='A commit has happened since')
            elif line['key'] == 'file': files[value['path']] = base64.b64decode(value['content'])
            elif line['key'] == 'lfsFile': files[value['path']] = self.lfs[value['oid']]
            else: del files[value['path']]
        sha = repo.commit(files, message)
        return {'commitOid': sha, 'commitUrl': f'{self.url}/{name}/commit/{sha}'}

    def file(self, handler, name, revision, path):
        "A file, or for a large one, where it lies."
        sha,files = self.at(self.repo(handler, name), unquote(revision))
        if path not in files: raise Refused(404, 'EntryNotFound', 'Entry not found')
        data,headers = files[path],{'X-Repo-Commit': sha}
        if not is_large(path): return data,200,{**headers, 'ETag': f'"{hashlib.sha1(data).hexdigest()}"'}
        oid = hashlib.sha256(data).hexdigest()
        self.lfs[oid] = data
        return b'',302,{**headers, 'Location': f"{self.url.replace('127.0.0.1', 'localhost')}/lfs/{oid}", 'X-Linked-Etag': f'"{oid}"', 'X-Linked-Size': str(len(data))}


def is_large(name): return name.endswith('.safetensors')

NAME = r'/([\w.-]+(?:/[\w.-]+)?)'
PATHS = [('POST', r'/api/repos/create', 'create'), ('GET', f'/api/models{NAME}', 'info'),
         ('GET', f'/api/models{NAME}/revision/([^/]+)', 'info'), ('GET', f'/api/models{NAME}/tree/([^/]+)', 'tree'),
         ('POST', r'/api/validate-yaml', 'check_card'), ('POST', f'/api/models{NAME}/preupload/([^/]+)', 'preupload'),
         ('POST', rf'{NAME}\.git/info/lfs/objects/batch', 'batch'), ('POST', f'/api/models{NAME}/commit/([^/]+)', 'commit'),
         ('GET', f'{NAME}/resolve/([^/]+)/(.+)', 'file')]


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass

    def reply(self, data, status=200, headers=()):
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for k,v in {'Content-Length': str(len(data)), **dict(headers)}.items(): self.send_header(k, v)
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(data)

    def answer(self):
        hub,path = self.server.hub,urlsplit(self.path).path
        raw = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        hub.asked.append((self.command, path))
        try:
            for pattern,status in hub.broken.items():
                if re.search(pattern, path): raise Refused(status, message=f'Status {status}')
            if path.startswith('/lfs/'): return self.large(hub, path.removeprefix('/lfs/'), raw)
            method = 'GET' if self.command == 'HEAD' else self.command
            name,match = next((n, m) for verb,p,n in PATHS if verb == method and (m := re.fullmatch(p, path)))
            body = [json.loads(l) for l in raw.splitlines()] if name == 'commit' else json.loads(raw) if raw else None
            got = getattr(hub, name)(self, *match.groups(), *([] if body is None else [body]))
            self.reply(*(got if isinstance(got, tuple) else (got,)))
        except StopIteration: self.reply({'error': 'no such path'}, 404)
        except Refused as e: self.reply(e.body, e.status, e.headers)

    def large(self, hub, oid, raw):
        if self.command == 'PUT': hub.lfs[oid],raw = raw,b''
        self.reply(raw if self.command == 'PUT' else hub.lfs[oid], 200, {'ETag': f'"{oid}"'})

    do_GET = do_HEAD = do_POST = do_PUT = answer


@contextmanager
def running_hub():
    "A hub that listens at `hub.url` in the block."
    hub = FakeHub()
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.hub,server.daemon_threads = hub,True
    hub.url = f'http://127.0.0.1:{server.server_address[1]}'
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield hub
    finally:
        server.shutdown()
        server.server_close()
