"A name of fastai's means the same thing here: its kind, its arguments, their places and defaults, its class relations."
import builtins
import inspect
import subprocess
import sys
from types import ModuleType

import pytest
from fastai.text import all as fastai_all

from rnn_fastai import all as our_all

THEIRS,OURS = ({k: v for k,v in vars(m).items() if not k.startswith('_')} for m in (fastai_all, our_all))
REPLACED = sorted(k for k in THEIRS if OURS.get(k) is not THEIRS[k])

# What differs on purpose: a name, `class.method`, or either with an argument in brackets.
INTENDED = {
    'WordTokenizer(buf_sz)': 'pieces that the cache keeps; in fastai, texts that spaCy takes at once',
    **{f'TextBlock.{m}(min_freq)': 'the tokenizer says: 3 for words, 1 for characters' for m in ('from_df', 'from_folder')},
    'AWD_LSTM.forward': 'state in, state out: `forward(x, state, from_embeds)`',
    **{f'{c}.{m}({a})': 'nothing is pickled' for c in ('TextLearner', 'LMLearner')
       for m,a in (('save', 'pickle_protocol'), ('export', 'pickle_module'), ('export', 'pickle_protocol'))},
    **{f'{f}({a})': why for f in ('language_model_learner', 'text_classifier_learner') for a,why in dict(
        moms="fastai shows `Learner`'s default; that of its `TextLearner`, (0.8, 0.7, 0.8), holds",
        splitter="fastai shows `Learner`'s default; the groups of the architecture hold").items()},
}
# Classes that do not come from fastai's: their modules load without fastai, or (`LMDataLoader`, which has fastai's
# arguments and methods) fastai's `__init__` would cut the texts into lists first.
NO_SUBCLASS = {'AWD_LSTM', 'RNNDropout', 'SigmoidRange', 'LMDataLoader'}

def params(f, *kinds):
    "Parameters of a function, class or method, without `self`; those of some kinds, where kinds are given."
    ps = [p for p in inspect.signature(f).parameters.values() if p.name not in ('self', 'cls')]
    return [p for p in ps if not kinds or p.kind in kinds]

def stands_for(ours, theirs):
    "Whether a default is fastai's, or what replaces it here."
    if ours is theirs: return True
    if callable(theirs): return any(v is theirs and OURS[k] is ours for k,v in THEIRS.items())
    return type(ours) is type(theirs) and ours == theirs

def differing(ours, theirs):
    "Arguments that `ours` lacks, has at another place or with another default."
    P,known = inspect.Parameter,{p.name: p for p in params(ours)}
    places = [p.name for p in params(ours, P.POSITIONAL_ONLY, P.POSITIONAL_OR_KEYWORD)]
    for i,p in enumerate(params(theirs)):
        if p.kind in (P.VAR_POSITIONAL, P.VAR_KEYWORD): same = bool(params(ours, p.kind))
        else: same = p.name in known and stands_for(known[p.name].default, p.default)
        if p.kind is P.POSITIONAL_OR_KEYWORD: same = same and places[i:i+1] == [p.name]
        if not same: yield p.name

def methods(cls):
    "Public names of a class that can be called."
    return [n for n in dir(cls) if not n.startswith('_') and callable(getattr(cls, n))]

def differences(name, ours, theirs):
    "Arguments in which ours differs, without the intended ones."
    return [o for o in (f"{name}({a})" for a in differing(ours, theirs)) if o not in INTENDED]

CLASSES,FUNCTIONS,DATA = [],[],[]
for _name in REPLACED:
    _kind = CLASSES if isinstance(THEIRS[_name], type) else FUNCTIONS if callable(THEIRS[_name]) else DATA
    _kind.append(_name)

def is_replaced(cls, meth):
    "Whether our class lacks a method of fastai's class, or has another."
    ours,theirs = (inspect.getattr_static(d[cls], meth, None) for d in (OURS, THEIRS))
    return getattr(ours, '__func__', ours) is not getattr(theirs, '__func__', theirs)

# `distrib_ctx` comes with `fastai.distributed`, and its arguments with accelerate, which need not be there.
METHODS = [f"{c}.{m}" for c in CLASSES for m in methods(THEIRS[c])
           if is_replaced(c, m) and m != 'distrib_ctx' and f"{c}.{m}" not in INTENDED]

def test_every_name_of_fastai_is_there():
    assert not sorted(THEIRS.keys() - OURS.keys()) and len(THEIRS) > 1000 and 0 < len(REPLACED) < 40

@pytest.mark.parametrize('name', REPLACED)
def test_same_kind(name):
    ours,theirs = OURS[name],THEIRS[name]
    assert [isinstance(ours, t) for t in (type, ModuleType)] == [isinstance(theirs, t) for t in (type, ModuleType)]
    assert callable(ours) == callable(theirs) and (callable(ours) or type(ours) is type(theirs) and ours == theirs)

@pytest.mark.parametrize('name', FUNCTIONS + CLASSES)
def test_same_arguments(name): assert not differences(name, OURS[name], THEIRS[name])

@pytest.mark.parametrize('name', METHODS)
def test_same_methods(name):
    cls,meth = name.split('.')
    assert not differences(name, getattr(OURS[cls], meth), getattr(THEIRS[cls], meth))

@pytest.mark.parametrize('name', CLASSES)
def test_isinstance_says_the_same(name):
    assert issubclass(OURS[name], THEIRS[name]) != (name in NO_SUBCLASS)

def test_intended_differences_are_there():
    "No entry of the tables has become needless."
    def holds(entry):
        name,_,arg = entry.rstrip(')').partition('(')
        cls,_,meth = name.partition('.')
        ours,theirs = (getattr(d[cls], meth, None) if meth else d[cls] for d in (OURS, THEIRS))
        return ours is None or (arg in differing(ours, theirs) if arg else any(differing(ours, theirs)))
    assert [e for e in INTENDED if not holds(e)] == [] and {*CLASSES} >= NO_SUBCLASS

def test_our_own_names_shadow_no_builtin():
    own = {k for k in OURS if k not in THEIRS}
    assert len(own) > 100 and sorted(own & {*dir(builtins)}) == []
    replaced = [k for k in REPLACED if k in dir(builtins)]
    assert replaced == []

@pytest.mark.parametrize('name', ['Sampler', 'BaseTokenizer', 'SubwordTokenizer'])
def test_names_that_meant_something_else(name): assert OURS[name] is THEIRS[name]

def test_the_check_sees_differences():
    def f(a, b=1, *, c=None): pass
    def g(b=1, a=None, **kwargs): pass
    def same(a, b=1, d=2, *, c=None, e=3): pass
    assert list(differing(g, f)) == ['a', 'b', 'c'] and list(differing(same, f)) == []
    assert list(differing(lambda a, b=True, *, c=None: 0, f)) == ['b'] and list(differing(f, g)) == ['b', 'a', 'kwargs']
    assert stands_for(our_all.decode_spec_tokens, fastai_all.decode_spec_tokens) and not stands_for(print, len)

def test_the_import_says_nothing():
    done = subprocess.run([sys.executable, '-c', 'import rnn_fastai.all'], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ('', '')
