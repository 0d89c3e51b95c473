"""`cupy.RawModule` on the emulated device, with the checks of a launch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .compiler import KernelError, Library, Parameter, Range, Settings

DEFAULT_SHARED = 48 << 10  # bytes for a block unless it asks for more
MAX_SHARED = 64 << 10  # what it may ask for where there is least (compute capability 7.5)
MAX_GRID, MAX_BLOCK, MAX_THREADS = (2**31 - 1, 65535, 65535), (1024, 1024, 64), 1024
MAX_ARGUMENTS = 4096  # bytes
ORDERS = ("forward", "reverse", "random")


@dataclasses.dataclass
class Options:
    """How kernels are run.

    Attributes
    ----------
    checked : bool
        Whether every load and store is looked at; without, only limits, barriers and warp operations are.
    order : {"forward", "reverse", "random"}
        In which order blocks, and the threads of a block, come.
    seed : int
        Of what is random.
    preempt : int
        Threads are switched at about every so many loads and stores; 0 for only where they wait.
    races : bool
        Whether accesses that no barrier orders are errors.
    max_accesses : int
        A thread with more loads and stores is taken to be in an endless loop.
    """

    checked: bool = True
    order: str = "random"
    seed: int = 0
    preempt: int = 0
    races: bool = True
    max_accesses: int = 50_000_000


class Traffic(NamedTuple):
    """Bytes of an argument's array, and how many all threads together read and wrote, caches or not."""

    size: int
    read: int
    written: int


class Launch(NamedTuple):
    """One launch of a kernel: what was read and written is known only if it was checked."""

    name: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    traffic: tuple[Traffic, ...]


options = Options()
launches: list[Launch] = []


@contextlib.contextmanager
def configure(**changes: Any) -> Iterator[None]:
    """Run kernels with other options inside the block."""
    before = dataclasses.asdict(options)
    vars(options).update(dataclasses.asdict(dataclasses.replace(options, **changes)))
    try:
        yield
    finally:
        vars(options).update(before)


class RawModule:
    """A module of kernels with plain names."""

    def __init__(self, *, code: str, options: tuple[str, ...] = ()) -> None:
        self._code, self._options = code, tuple(options)

    @functools.lru_cache(maxsize=2)  # noqa: B019  a module lives as long as the process, in real CuPy too
    def _library(self, checked: bool) -> Library:
        return Library(self._code, self._options, checked)

    def get_function(self, name: str) -> Function:
        """Return a kernel."""
        kernels = self._library(options.checked).kernels
        if name not in kernels:
            raise KernelError(f"no kernel {name} in this module, which has {', '.join(kernels)}")
        return Function(self, name)


class Function:
    """A kernel, as `RawModule.get_function` returns it."""

    def __init__(self, module: RawModule, name: str) -> None:
        self._module, self._name = module, name
        self.max_dynamic_shared_size_bytes = DEFAULT_SHARED

    def __call__(self, grid: tuple, block: tuple, args: tuple, *, shared_mem: int = 0) -> None:
        """Launch, and wait for the end."""
        library = self._module._library(options.checked)
        run, parameters, max_threads = library.kernels[self._name]
        try:
            grid, block = _extent(grid, "grid", MAX_GRID), _extent(block, "block", MAX_BLOCK)
            threads = math.prod(block)
            if threads > (max_threads or MAX_THREADS):
                raise KernelError(f"{threads} threads in a block, but at most {max_threads or MAX_THREADS} may be")
            if self.max_dynamic_shared_size_bytes > MAX_SHARED:
                raise KernelError(f"no block can have {self.max_dynamic_shared_size_bytes} bytes of shared memory")
            if shared_mem > self.max_dynamic_shared_size_bytes:
                raise KernelError(f"{shared_mem} bytes of shared memory: set max_dynamic_shared_size_bytes before")
            pointers, ranges, _keep = _arguments(args, parameters)
            most = DEFAULT_SHARED if self.max_dynamic_shared_size_bytes <= DEFAULT_SHARED else MAX_SHARED
            settings = Settings(
                grid, block, shared_mem, most, options.seed + 1, options.max_accesses, ORDERS.index(options.order),
                options.preempt, options.checked, options.checked and options.races,
            )
            ranges = library.launch(run, settings, pointers, ranges)
        except KernelError as error:
            raise KernelError(f"{self._name}<<<{grid}, {block}, {shared_mem}>>>: {error}") from None
        traffic = tuple(Traffic(r.high - r.low, r.bytes_read, r.bytes_written) for r in ranges)
        launches.append(Launch(self._name, grid, block, traffic))


def _extent(given: tuple, what: str, most: tuple[int, int, int]) -> tuple[int, int, int]:
    extent = (*given, 1, 1)[:3]
    if not all(1 <= size <= limit for size, limit in zip(extent, most, strict=True)):
        raise KernelError(f"a {what} must be from (1, 1, 1) to {most}")
    return extent


def _arguments(args: tuple, parameters: list[Parameter]) -> tuple[list[int], list[Range], list[np.ndarray]]:
    """Addresses of the values of all arguments, the memory that they give access to, and what holds them."""
    if len(args) != len(parameters):
        raise KernelError(f"{len(args)} arguments for {len(parameters)} parameters")
    if sum(8 if p.pointer != b"\0" else p.size for p in parameters) > MAX_ARGUMENTS:
        raise KernelError(f"more than {MAX_ARGUMENTS} bytes of arguments")
    values, ranges = [], []
    for index, (given, parameter) in enumerate(zip(args, parameters, strict=True)):
        try:
            if parameter.pointer != b"\0":
                array = _array(given, parameter)
                values.append(np.array(array.ctypes.data, dtype=np.uint64))
                ranges.append(Range(*_bounds(array), parameter.const == b"\0", index))
            else:
                values.append(_number(given, parameter))
        except KernelError as error:
            raise KernelError(f"argument {index} {error}") from None
    for one in ranges:  # parameters are __restrict__ without exception
        for other in ranges:
            apart = one.high <= other.low or other.high <= one.low
            if one.index < other.index and not apart and (one.writable or other.writable):
                raise KernelError(f"arguments {one.index} and {other.index} overlap, and one is written to")
    return [value.ctypes.data for value in values], ranges, values


def _bounds(array: np.ndarray) -> tuple[int, int]:
    return array.ctypes.data, array.ctypes.data + array.nbytes


def _dtype(parameter: Parameter) -> np.dtype:
    kind = "?" if parameter.kind == b"b" else f"{parameter.kind.decode()}{parameter.size}"
    return np.dtype(kind)


def _array(given: Any, parameter: Parameter) -> np.ndarray:
    """Host copy of a device array."""
    array = getattr(given, "_host", None)
    if array is None:
        raise KernelError(f"must be an array on the device, not {type(given).__name__}")
    if array.dtype != _dtype(parameter):
        raise KernelError(f"has dtype {array.dtype}, where the kernel takes {_dtype(parameter)}")
    if not array.flags.c_contiguous:
        raise KernelError(f"is not contiguous: strides {array.strides}")
    return array


def _number(given: Any, parameter: Parameter) -> np.ndarray:
    """Value of a scalar, which must have the type of the parameter: a GPU reads its bytes as they are."""
    if not isinstance(given, np.generic):
        raise KernelError(f"must be a NumPy scalar, not {type(given).__name__}")
    if given.dtype != _dtype(parameter):
        raise KernelError(f"has dtype {given.dtype}, where the kernel takes {_dtype(parameter)}")
    return np.array(given)
