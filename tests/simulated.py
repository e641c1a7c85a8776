"""A device without a GPU: `sim:0`, whose tensors lie in the memory of the CPU and cannot be mixed with the CPU's.

Torch lets Python be a backend. Here every operation on the device is checked, done by the CPU on the same memory, and
its results say that they are on the device. So numbers and random draws are the CPU's, to the bit, and

- operations on tensors of both devices raise as on a GPU, and so does a generator of the other device;
- `numpy()` of a tensor on the device raises, and `torch.load`, `to`, copies and pickles act as on a GPU;
- `recorded()` lists, with their lines, waits (whatever needs a number on the CPU, so that a GPU would run dry) and
  copies to the device;
- `is_cuda` is true, so that the package takes the paths that it has for a GPU.

Load it in a process of its own (`pytest -p simulated`): the device cannot be removed again.

What it does not imitate: cuDNN (its rounding, its dropout between layers, its weights in one buffer, no gradient in
evaluation mode), autocast (types stay as they are) and GradScaler, pinned memory and streams, compiled code, a GPU's
own random stream, and the rules for tensors of one number on the CPU, which pass in more operations than on a GPU."""
import ctypes
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend as register_backend

aten = torch.ops.aten
DEVICE = 'sim'

# ---- The same memory under another device's name

class _Header(ctypes.Structure):
    "How a DLPack tensor begins."
    _fields_ = [('data', ctypes.c_void_p), ('device_type', ctypes.c_int32), ('device_id', ctypes.c_int32)]

_CPU,_OTHER = 1,12   # DLPack's numbers; 12 is torch's device of a backend that is not its own
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype,_pointer.argtypes = ctypes.c_void_p,[ctypes.py_object, ctypes.c_char_p]

def _relabel(t:Tensor, device_type:int) -> Tensor:
    capsule = torch._C._to_dlpack(t)
    _Header.from_address(_pointer(capsule, b'dltensor')).device_type = device_type
    return torch._C._from_dlpack(capsule)

def is_far(o:Any) -> bool:
    "Whether this is a tensor on the device."
    return isinstance(o, Tensor) and o.device.type == DEVICE

def near(o:Any) -> Any:
    "A tensor of the CPU over the same memory; for a device, the CPU; all else as it is."
    if isinstance(o, (list, tuple)): return type(o)(map(near, o))
    if isinstance(o, torch.device): return torch.device('cpu')
    return _relabel(o, _CPU) if is_far(o) else o

def far(o:Any) -> Any:
    "A tensor of the device over the same memory."
    if isinstance(o, (list, tuple)): return type(o)(map(far, o))
    return _relabel(o, _OTHER) if isinstance(o, Tensor) and o.device.type == 'cpu' else o

# ---- What a GPU would wait for

_records:list[Counter] = []

@contextmanager
def recorded() -> Iterator[Counter]:
    "Count `(what, line)` of waits and copies to the device."
    _records.append(Counter())
    try: yield _records[-1]
    finally: _records.pop()

def _line() -> str:
    "The innermost line of the package, else of fastai, that is being run."
    frame,lines = sys._getframe(1),{}
    while frame:
        for package in ('rnn_fastai', 'fastai'):
            if f'/{package}/' in (name := frame.f_code.co_filename):
                lines.setdefault(package, f"{package}/{name.split(f'/{package}/')[-1]}:{frame.f_lineno}")
        frame = frame.f_back
    return lines.get('rnn_fastai') or lines.get('fastai') or '?'

def _record(what:str):
    if not _records: return
    line = _line()
    for counter in _records: counter[what, line] += 1

_UNIQUE = '_unique _unique2 unique_dim unique_consecutive'.split()
_WAITS = {'_local_scalar_dense': 'item', **dict.fromkeys(_UNIQUE, 'unique'),
          **{n: n for n in 'nonzero masked_select equal bincount repeat_interleave'.split()}}

# ---- Whose operations they are

_hooks:list[Callable] = []   # result of an operation -> what to give in its place

@contextmanager
def _hook(f:Callable) -> Iterator[None]:
    _hooks.append(f)
    try: yield
    finally: _hooks.remove(f)

def _hooked(res:Any) -> Any:
    for f in _hooks: res = f(res)
    return res

def _running() -> Iterator[CodeType]:
    "The code that is being run, from the innermost outwards."
    frame = sys._getframe(1)
    while frame:
        yield frame.f_code
        frame = frame.f_back

@contextmanager
def watched() -> Iterator[set[CodeType]]:
    "Collect all code whose operations run on the device."
    found = set()
    def collect(res):
        found.update(_running())
        return res
    with _hook(collect): yield found

@contextmanager
def planted(codes:set[CodeType], n:int) -> Iterator[None]:
    "Give a tensor of the CPU as the result of the `n`-th operation (from 0) of some code. Empty ones do not count."
    left = n
    def plant(res):
        nonlocal left
        if isinstance(res, Tensor) and not res.numel() or codes.isdisjoint(_running()): return res
        left -= 1
        return near(res) if left == -1 else res
    with _hook(plant): yield

# ---- Operations

class _Kind(NamedTuple):
    "What there is to know about an operation before it runs."
    wait:str|None            # what a GPU waits for
    pointwise:bool           # takes single numbers of the CPU
    indexing:bool            # takes indices of the CPU
    tensors:tuple[int, ...]  # places of tensors among its arguments
    out:tuple[str, ...]      # arguments that results are written to
    gives:tuple              # for each result the place and the name of the argument that it is

@cache
def _kind(op:Any) -> _Kind:
    schema,name = op._schema,op.overloadpacket.__name__
    written = {a: (i, s.name) for i,s in enumerate(schema.arguments) if s.alias_info for a in s.alias_info.before_set}
    if any(r.alias_info and not r.alias_info.is_write for r in schema.returns): raise NotImplementedError(f"View: {op}")
    return _Kind(_WAITS.get(name), torch.Tag.pointwise in op.tags, 'index' in name and 'Tensor?[]' in str(schema),
                 tuple(i for i,s in enumerate(schema.arguments) if str(s.type) == 'Tensor'),
                 tuple(s.name for s in schema.arguments if s.is_out),
                 tuple(written[next(iter(r.alias_info.before_set))] if r.alias_info else None for r in schema.returns))

def _leaves(o:Any) -> Iterator[Any]:
    if isinstance(o, (list, tuple)):
        for x in o: yield from _leaves(x)
    else: yield o

def _check(op:Any, *args):
    "Raise `RuntimeError` for tensors and generators of the CPU among an operation's arguments."
    for o in _leaves(args):
        if isinstance(o, torch._C.Generator) and o._cdata not in Generator.here:
            raise RuntimeError(f"{op}: Expected a '{DEVICE}' device type for generator but found 'cpu' ({_line()})")
        if isinstance(o, Tensor) and not is_far(o) and not (_kind(op).pointwise and o.dim() == 0):
            raise RuntimeError(f"{op}: Expected all tensors to be on the same device, but found {DEVICE}:0 and cpu: "
                               f"{tuple(o.shape)}, {o.dtype} ({_line()})")

def _check_indices(op:Any, x:Tensor, indices:list, *args):
    "Indices may be on the CPU. True ones among those on the device have to be counted."
    _check(op, x, args)
    for i in indices:
        if i is None: continue
        if not is_far(i): _record('to the device')
        elif i.dtype in (torch.bool, torch.uint8): _record('index by bool')

def _run(op:Any, *args, **kwargs) -> Any:
    "Check an operation's arguments, and let the CPU do it."
    kind = _kind(op)
    (_check_indices if kind.indexing else _check)(op, *args, *kwargs.values())
    if kind.wait: _record(kind.wait)
    a,k = near(args),{n: near(v) for n,v in kwargs.items()}
    # Memory that is not torch's own cannot be resized, as empty results and those of losses are.
    empty = [n for n in kind.out if not k[n].numel() or op.overloadpacket.__name__.endswith('_loss')]
    k.update({n: k[n].new_empty(0) for n in empty})
    # A number in place of a tensor, as torch hands it on, belongs to another overload.
    run = op.overloadpacket if any(i < len(a) and isinstance(a[i], (int, float)) for i in kind.tensors) else op
    res = run(*a, **k)
    for n in empty:
        if k[n].numel(): kwargs[n].set_(far(k[n]))
    if not any(kind.gives): return _hooked(far(res))
    outs = res if isinstance(res, tuple) else (res,)
    outs = tuple(far(o) if g is None else args[g[0]] if g[0] < len(args) else kwargs[g[1]]
                 for o,g in zip(outs, kind.gives, strict=True))
    return _hooked(outs if isinstance(res, tuple) else outs[0])

def _copy(src:Tensor, dst:Tensor, non_blocking:bool=False) -> Tensor:
    if not (is_far(src) and is_far(dst)): _record('to the device' if is_far(dst) else 'to the CPU')
    near(dst).copy_(near(src))
    return dst

def _resize(x:Tensor, size:list[int], **kwargs) -> Tensor:
    new = torch.empty(size, dtype=x.dtype)
    kept = min(new.numel(), x.numel())
    new.view(-1)[:kept] = near(x).reshape(-1)[:kept]
    return x.set_(far(new))

class _Moved(torch.autograd.Function):
    "The other device's view of the same memory, for gradients as well."
    @staticmethod
    def forward(ctx, t): return near(t) if is_far(t) else far(t)
    @staticmethod
    def backward(ctx, g): return _Moved.apply(g.contiguous())

def _run_kernel(op:Any, *args) -> Any:
    "A kernel over all steps of a layer, which the CPU would do step by step for a device that it does not know."
    def moved(o):
        if isinstance(o, (list, tuple)): return type(o)(map(moved, o))
        return _Moved.apply(o) if isinstance(o, Tensor) else o
    sizes = op._overloadname == 'data'   # of a packed input's batches: on the CPU
    _check(op, args[0], *args[1 + sizes:])
    return _hooked(moved(op(*(o if sizes and i == 1 else moved(o) for i,o in enumerate(args)))))

_VIEWS = ('as_strided', 'view', 'view.dtype', 'unfold', '_reshape_alias', 'set_', 'set_.source_Storage', 'set_.source_Tensor',
          'set_.source_Storage_storage_offset')   # these need sizes and strides alone, so the CPU's serve every device
_KERNELS = [f'{kind}.{form}' for kind in ('lstm', 'gru', 'rnn_tanh', 'rnn_relu') for form in ('input', 'data')]

def _overload(name:str) -> Any:
    packet,_,overload = name.partition('.')
    return getattr(getattr(aten, packet), overload or 'default')

def _register_operations() -> tuple:
    every,some = torch.library.Library('_', 'IMPL'),torch.library.Library('aten', 'IMPL')
    every.fallback(_run, 'PrivateUse1')
    cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    for name in _VIEWS: some.impl(name, partial(_overload(name).redispatch, cpu), 'PrivateUse1')
    for name,f in dict(_copy_from=_copy, _copy_from_and_resize=_copy, resize_=_resize).items():
        some.impl(name, f, 'PrivateUse1')
    for name in _KERNELS:
        for key in ('PrivateUse1', 'AutogradPrivateUse1'): some.impl(name, partial(_run_kernel, _overload(name)), key)
    return every,some

# ---- What torch has outside of its operations

class Generator(torch.Generator):
    "A generator that says it is on the device that it was made for."
    here:set[int] = set()   # those on the device, by their address, which is all that torch hands on
    def __new__(cls, device:Any='cpu'):
        g = super().__new__(cls)
        g.place = torch.device(device)
        if g.place.type == DEVICE: cls.here.add(g._cdata)
        return g
    device = property(lambda self: self.place)
    def __del__(self): self.here.discard(self._cdata)

class _Backend:
    "What torch asks the module of a device."
    device = nullcontext   # the one to make current
    def is_available(self): return True
    def is_initialized(self): return True
    def _is_in_bad_fork(self): return False
    def device_count(self): return 1
    def current_device(self): return 0
    def manual_seed_all(self, seed): pass
    def get_rng_state(self, device=None): return torch.get_rng_state()
    def set_rng_state(self, state, device=None): torch.set_rng_state(state)
    def get_amp_supported_dtype(self): return [torch.float16, torch.bfloat16]

def _new_storage(cls, *args, device=None, **kwargs):
    if device is None or torch.device(device).type != DEVICE:
        return torch._C.StorageBase.__new__(cls, *args, device=device, **kwargs)
    return torch.empty(args, dtype=torch.uint8, device=device).untyped_storage()

register_backend(DEVICE, _Backend())
_libraries = _register_operations()   # they act as long as they live
torch.Generator,torch.UntypedStorage.__new__ = Generator,_new_storage
Tensor.is_cuda = property(is_far)
torch.__future__.set_swap_module_params_on_conversion(True)   # so that `to` keeps parameters, as on a GPU
