"""A stand-in for CuPy: memory on the host, kernels on the emulated device, CuPy's manners.

`install` makes ``import cupy`` mean it. Its arrays are no subclass of `numpy.ndarray`, which would let each forgotten
copy between host and device pass: they refuse what CuPy's refuse, which is implicit conversion to NumPy, NumPy arrays
among the arguments, and functions or keywords that CuPy lacks (where CuPy is installed to tell). What costs time on a
GPU is counted.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import json
import subprocess
import sys
import time
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import launcher
from .launcher import RawModule


class Counters:
    """What happened since they were made: synchronisations with the host, bytes moved, bytes in use and their most."""

    def __init__(self) -> None:
        self.syncs = self.to_device = self.to_host = self.live = self.peak = 0
        self._owners: set[int] = set()

    def track(self, array: np.ndarray) -> None:
        """Count the memory behind an array until it is freed."""
        while isinstance(array.base, np.ndarray):
            array = array.base
        if id(array) not in self._owners:
            self._owners.add(id(array))
            self.live += array.nbytes
            self.peak = max(self.peak, self.live)
            weakref.finalize(array, self._free, id(array), array.nbytes).atexit = False

    def _free(self, owner: int, size: int) -> None:
        self._owners.discard(owner)
        self.live -= size


counters = Counters()


@contextlib.contextmanager
def counted() -> Iterator[types.SimpleNamespace]:
    """Count inside the block: `launches`, `syncs`, `to_device`, `to_host`, and `live` and `peak` beyond the start."""
    gc.collect()  # what nobody holds any more must not be freed, and hide what is allocated, inside the block
    names = ("syncs", "to_device", "to_host", "live")
    before, first = {name: getattr(counters, name) for name in names}, len(launcher.launches)
    counters.peak = counters.live
    found = types.SimpleNamespace()
    yield found
    for name in names:
        setattr(found, name, getattr(counters, name) - before[name])
    found.peak = counters.peak - before["live"]
    found.launches = launcher.launches[first:]


# ---------------------------------------------------------------- arrays


def _to_host(x: Any) -> Any:
    """Replace arrays of the stand-in by what is behind them; NumPy arrays are refused, as CuPy does."""
    if isinstance(x, ndarray):
        return x._host
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    if isinstance(x, (tuple, list)):
        return type(x)(map(_to_host, x))
    if isinstance(x, dict):
        return {key: _to_host(value) for key, value in x.items()}
    return x


def _to_device(x: Any) -> Any:
    """Wrap arrays; numbers become arrays without dimensions, as reductions give in CuPy."""
    if isinstance(x, (np.ndarray, np.generic)):
        return ndarray(np.asarray(x))
    return type(x)(map(_to_device, x)) if isinstance(x, (tuple, list)) else x


def _quiet(function: Callable) -> Callable:
    """Without NumPy's warnings, for which CuPy has no counterpart."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with np.errstate(all="ignore"):
            return function(*args, **kwargs)

    return call


class ndarray:  # noqa: N801
    """`cupy.ndarray`."""

    __slots__ = ("_host",)
    __hash__ = None
    __module__ = "cupy"

    def __init__(self, host: np.ndarray) -> None:
        self._host = host
        counters.track(host)

    def __array__(self, *_: Any, **__: Any) -> None:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        function = getattr(sys.modules["cupy"], ufunc.__name__, None)
        return NotImplemented if function is None or method != "__call__" else function(*inputs, **kwargs)

    def __array_function__(self, function: Callable, _: Any, args: tuple, kwargs: dict) -> Any:
        own = getattr(sys.modules["cupy"], function.__name__, None)
        return NotImplemented if own is None else own(*args, **kwargs)

    def _read(self) -> np.ndarray:
        """What the host reads, for which it waits."""
        counters.syncs += 1
        counters.to_host += self._host.nbytes
        return self._host

    def get(self) -> np.ndarray:
        return self._read().copy()

    def item(self) -> Any:
        return self._read().item()

    def tolist(self) -> Any:
        return self._read().tolist()

    def __bool__(self) -> bool:
        return bool(self._read())

    def __float__(self) -> float:
        return float(self._read())

    def __int__(self) -> int:
        return int(self._read())

    def __index__(self) -> int:
        return self._read().__index__()

    def __format__(self, spec: str) -> str:
        return format(self._read(), spec)

    def __repr__(self) -> str:
        return repr(self._host)

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator[ndarray]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> ndarray:
        key = _to_host(key)
        keys = key if isinstance(key, tuple) else (key,)
        counters.syncs += any(isinstance(k, np.ndarray) and k.dtype == bool for k in keys)  # how many are true
        whole = any(k is Ellipsis for k in keys)
        return ndarray(self._host[key if whole else (*keys, ...)])  # a view, also of a single entry

    @_quiet
    def __setitem__(self, key: Any, value: Any) -> None:
        self._host[_to_host(key)] = _to_host(value)

    @property
    def device(self) -> Device:
        return Device(0)

    @property
    def T(self) -> ndarray:  # noqa: N802
        return ndarray(self._host.T)


OPERATORS = "add and floordiv lshift matmul mod mul or pow rshift sub truediv xor"
METHODS = """
    all any argmax argmin argsort astype copy cumsum fill max mean min nonzero prod ravel repeat reshape round sort
    squeeze std sum swapaxes take transpose var
"""


def _define_array() -> None:
    """Add what NumPy's arrays have under the same names."""

    def attribute(name: str) -> property:
        return property(lambda self: getattr(self._host, name))

    def method(name: str) -> Callable:
        @_quiet
        def call(self: ndarray, *args: Any, **kwargs: Any) -> Any:
            return _to_device(getattr(self._host, name)(*_to_host(args), **_to_host(kwargs)))

        return call

    def operator(name: str, in_place: bool = False) -> Callable:
        @_quiet
        def call(self: ndarray, other: Any) -> Any:
            if not isinstance(other, (ndarray, np.ndarray, np.generic, int, float)):
                return NotImplemented
            result = getattr(self._host, name)(_to_host(other))
            return self if in_place else _to_device(result)

        return call

    for name in ("shape", "dtype", "ndim", "size", "nbytes", "itemsize", "strides", "flags"):
        setattr(ndarray, name, attribute(name))
    for name in METHODS.split():
        setattr(ndarray, name, method(name))
    for name in ("neg", "pos", "abs", "invert"):
        setattr(ndarray, f"__{name}__", method(f"__{name}__"))
    for name in ("lt", "le", "gt", "ge", "eq", "ne"):
        setattr(ndarray, f"__{name}__", operator(f"__{name}__"))
    for name in OPERATORS.split():
        for prefix in ("", "r", "i"):
            setattr(ndarray, f"__{prefix}{name}__", operator(f"__{prefix}{name}__", in_place=prefix == "i"))


_define_array()


# ---------------------------------------------------------------- cupy.cuda


class Device:
    """`cupy.cuda.Device`."""

    def __init__(self, device: Any = None) -> None:
        self.id = 0 if device is None else int(getattr(device, "id", device))

    @property
    def attributes(self) -> dict[str, int]:
        return {"MaxSharedMemoryPerBlockOptin": launcher.MAX_SHARED, "MultiProcessorCount": 2}

    def synchronize(self) -> None:
        counters.syncs += 1

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"


# ---------------------------------------------------------------- cupyx.scipy.sparse


class csr_matrix:  # noqa: N801
    """`cupyx.scipy.sparse.csr_matrix`, made from its three arrays."""

    __module__ = "cupyx.scipy.sparse"

    def __init__(self, arrays: tuple[ndarray, ndarray, ndarray], *, shape: tuple[int, int]) -> None:
        data, indices, indptr = arrays
        if not all(isinstance(array, ndarray) for array in arrays):
            raise TypeError("csr_matrix takes arrays on the device")
        if data.dtype not in ("float32", "float64"):
            raise ValueError(f"csr_matrix holds no {data.dtype}")
        self.data, self.shape = data, shape
        self.indices, self.indptr = (array.astype(np.int32) for array in (indices, indptr))

    nnz = property(lambda self: self.data.size)
    dtype = property(lambda self: self.data.dtype)

    def get(self) -> Any:
        """`scipy.sparse.csr_matrix`."""
        from scipy import sparse

        return sparse.csr_matrix((self.data.get(), self.indices.get(), self.indptr.get()), self.shape)

    def toarray(self) -> ndarray:
        return ndarray(self.get().toarray())


# ---------------------------------------------------------------- linear algebra

_linalg = "ignore"  # what `errstate` says


@contextlib.contextmanager
def _errstate(*, linalg: str) -> Iterator[None]:
    """`cupyx.errstate`."""
    global _linalg
    before, _linalg = _linalg, linalg
    try:
        yield
    finally:
        _linalg = before


def _cholesky(a: ndarray) -> ndarray:
    """`cupy.linalg.cholesky`, which waits to see whether there is a factor only where `errstate` asks for it."""
    counters.syncs += _linalg == "raise"
    try:
        return ndarray(np.linalg.cholesky(a._host))
    except np.linalg.LinAlgError:
        if _linalg == "raise":
            raise
        return ndarray(np.full_like(a._host, np.nan))


def _solve_triangular(a: ndarray, b: ndarray, trans: int | str = 0, lower: bool = False) -> ndarray:
    """`cupyx.scipy.linalg.solve_triangular`."""
    from scipy.linalg import solve_triangular

    return ndarray(solve_triangular(a._host, b._host, trans=trans, lower=lower))


# ---------------------------------------------------------------- the namespaces

CONSTANTS = """
    bool_ broadcast_shapes can_cast complex128 complex64 complexfloating dtype e euler_gamma finfo float16 float32
    float64 floating iinfo inf int16 int32 int64 int8 integer intp isscalar issubdtype nan newaxis number pi
    promote_types result_type signedinteger uint16 uint32 uint64 uint8 unsignedinteger
"""

class Event:
    """`cupy.cuda.Event`, by the clock of the host: the emulated device has done all it was asked to."""

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        counters.syncs += 1


FUNCTIONS = """
    abs absolute add all any append arange arccos arccosh arcsin arcsinh arctan arctan2 arctanh argmax argmin
    argpartition argsort argwhere atleast_1d atleast_2d bincount bitwise_and bitwise_or bitwise_xor broadcast_arrays
    broadcast_to cbrt ceil clip column_stack concatenate conj copysign copyto cos cosh count_nonzero cumprod cumsum
    diag diff divide dot einsum equal exp exp2 expand_dims expm1 eye flatnonzero flip floor floor_divide fmax fmin
    full full_like greater greater_equal hypot imag invert isclose isfinite isin isinf isnan kron left_shift less
    less_equal linspace log log10 log1p log2 logaddexp logaddexp2 logical_and logical_not logical_or logical_xor
    matmul max maximum mean meshgrid min minimum mod moveaxis multiply nan_to_num ndim negative nonzero not_equal ones
    ones_like outer partition permute_dims positive power prod ravel real reciprocal remainder repeat reshape
    right_shift roll round searchsorted shape sign signbit sin sinh sort split sqrt square squeeze stack std subtract
    sum swapaxes take take_along_axis tan tanh tensordot tile transpose tril triu trunc unique unravel_index var vdot
    where zeros zeros_like
"""

WAITING = ("argwhere", "flatnonzero", "nonzero", "unique")  # the host must know the size of the result


@functools.cache
def _keywords() -> dict[str, list[str] | None] | None:
    """Functions of CuPy and the names of their parameters, where they can be told; None if it is not installed."""
    code = inspect.cleandoc("""
        import cupy, inspect, json
        found = {}
        for name in dir(cupy):
            try:
                found[name] = list(inspect.signature(getattr(cupy, name)).parameters)
            except (TypeError, ValueError):
                found[name] = None
        print(json.dumps(found))
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else None


def _function(name: str, allowed: list[str] | None, module: types.ModuleType = np) -> Callable:
    """NumPy's function on arrays of the stand-in, with the keywords that are allowed."""
    function = getattr(module, name)

    @_quiet
    def call(*args: Any, **kwargs: Any) -> Any:
        for key in kwargs:
            if allowed is not None and key not in allowed:
                raise TypeError(f"{name}() got an unexpected keyword argument {key!r}")
        counters.syncs += name in WAITING
        result = function(*_to_host(args), **_to_host(kwargs))
        return kwargs["out"] if kwargs.get("out") is not None else _to_device(result)

    call.__name__ = name
    return call


def _array(
    obj: Any, dtype: Any = None, copy: bool | None = True, order: str = "K", *, blocking: bool = False
) -> ndarray:
    """`cupy.array`."""
    if isinstance(obj, ndarray):
        host = np.array(obj._host, dtype=dtype, copy=copy or None, order=order)
        return obj if host is obj._host else ndarray(host)
    if isinstance(obj, (list, tuple)):
        obj = _lists(obj)
    host = np.array(obj, dtype=dtype, order=order)
    if host.dtype.kind not in "biufc":
        raise ValueError(f"Unsupported dtype {host.dtype}")
    counters.to_device += host.nbytes
    return ndarray(host)


def _lists(x: Any) -> Any:
    """Nested lists with arrays inside, as NumPy takes them."""
    return [_lists(v) for v in x] if isinstance(x, (list, tuple)) else x._host if isinstance(x, ndarray) else x


def _asarray(a: Any, dtype: Any = None, order: str | None = None, *, blocking: bool = False) -> ndarray:
    """`cupy.asarray`."""
    return _array(a, dtype, copy=False, order=order or "K")


def _empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    """`cupy.empty`, full of NaN (or -1), so that nothing can rest on what it holds."""
    out = np.empty(shape, np.dtype(dtype or float), order)
    out.ravel(order="K").view(np.uint8)[...] = 1 if out.dtype == bool else 0xFF
    return ndarray(out)


def _namespace() -> dict[str, types.ModuleType]:
    """The modules of the stand-in by name."""
    names = ("cupy", "cupy.cuda", "cupy.cuda.runtime", "cupy.cuda.nvrtc", "cupy.cuda.device", "cupy.linalg")
    names += ("cupy.fft", "cupyx", "cupyx.scipy", "cupyx.scipy.linalg", "cupyx.scipy.sparse")
    modules = {name: types.ModuleType(name) for name in names}
    for name, module in modules.items():
        module.__path__ = []
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(modules[parent], own, module)
    cupy, cuda, runtime = (modules[name] for name in ("cupy", "cupy.cuda", "cupy.cuda.runtime"))
    for name in CONSTANTS.split():
        setattr(cupy, name, getattr(np, name))
    known = _keywords()
    for name in FUNCTIONS.split():
        if known is None or name in known:
            setattr(cupy, name, _function(name, known and known[name]))
    cupy.__version__ = "14.0.0"
    cupy.ndarray, cupy.RawModule = ndarray, RawModule
    cupy.array, cupy.asarray, cupy.empty = _array, _asarray, _empty
    cupy.ascontiguousarray = lambda a, dtype=None: _asarray(a, dtype, "C")
    cupy.asnumpy = lambda a: a.get() if isinstance(a, ndarray) else np.asarray(a)
    cupy.copy = lambda a: a.copy()
    cupy.empty_like = lambda prototype, dtype=None: _empty(prototype.shape, dtype or prototype.dtype)
    for name in ("lstsq", "norm", "solve"):
        setattr(modules["cupy.linalg"], name, _function(name, None, np.linalg))
    modules["cupy.linalg"].cholesky, modules["cupyx"].errstate = _cholesky, _errstate
    modules["cupyx.scipy.linalg"].solve_triangular = _solve_triangular
    cuda.Device = modules["cupy.cuda.device"].Device = Device
    cuda.Event = Event
    cuda.get_elapsed_time = lambda start, end: 1e3 * (end.seconds - start.seconds)
    runtime.getDeviceCount = lambda: 1
    runtime.getDeviceProperties = lambda _: {"name": b"emulated device"}
    runtime.deviceSynchronize = Device().synchronize
    modules["cupy.cuda.nvrtc"].getVersion = lambda: (12, 9)
    modules["cupyx.scipy.sparse"].csr_matrix = csr_matrix
    return modules


def _belongs(name: str) -> bool:
    return name.startswith("array_api_compat.cupy") or name.split(".")[0] in ("cupy", "cupyx")


def _forget() -> None:
    """Empty the caches that may hold arrays, modules or types of CuPy."""
    for name, module in list(sys.modules.items()):
        if name.startswith(("array_api_compat.common", "ot_numba.kernels.cuda")):
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()
    if "array_api_compat" in sys.modules:
        vars(sys.modules["array_api_compat"]).pop("cupy", None)


@contextlib.contextmanager
def install() -> Iterator[types.ModuleType]:
    """Make ``import cupy`` mean the stand-in inside the block; no trace of it stays."""
    saved = {name: sys.modules.pop(name) for name in list(sys.modules) if _belongs(name)}
    _forget()
    sys.modules.update(_namespace())
    try:
        yield sys.modules["cupy"]
    finally:
        for name in list(filter(_belongs, sys.modules)):
            del sys.modules[name]
        _forget()
        sys.modules.update(saved)
        if "array_api_compat.cupy" in saved:
            sys.modules["array_api_compat"].cupy = saved["array_api_compat.cupy"]
