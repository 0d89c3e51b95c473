"""The two decorators of all compiled code, and the cache that keeps compiled kernels between processes.

Numba's own cache looks only at the file that a function stands in, so that helpers compiled into it from
another file go stale there, and two processes can tear its index. Here one stamp covers all sources, and each
compiled signature has a file of its own, named by a hash of everything that it depends on.
"""

import contextlib
import functools
import hashlib
import logging
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import llvmlite
import numba
import numpy as np
from numba import types
from numba.core import config
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.dispatcher import Dispatcher
from numba.core.serialize import dumps
from numba.core.sigutils import normalize_signature
from numba.extending import register_jitable

__all__ = ["cache_folder", "helper", "kernel"]

_log = logging.getLogger(__name__)

# Sums in any order, so that they vectorise; never 'nnan' or 'ninf': NaN and infinity keep their meaning.
_OPTIONS = {"error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz", "arcp"}}

_SOURCES = Path(__file__).resolve().parent
_VERSIONS_KEPT = 8
_DIGEST_SIZE = hashlib.sha256().digest_size


def kernel(function: Callable | None = None, *, cache: bool = True, **options: Any) -> Any:
    """Compile a hot loop on its first call with each combination of argument types.

    It runs without the GIL, divides by zero as NumPy does, and may contract and reorder sums and products so
    that they vectorise, and lose the sign of a zero; NaN and infinity keep their meaning. Its machine code is
    kept in `cache_folder`, from where a new process loads it in a few milliseconds.

    Parameters
    ----------
    function : callable
        The loop. Globals and closure variables are frozen into the machine code. It is kept between processes
        if all that it depends on lasts as long: it and the functions in its closure stand in this folder, its
        other closure variables are numbers or strings, and its arguments arrays, numbers, tuples of them, or
        compiled functions of this folder.
    cache : bool
        False for a function that need not be kept between processes.
    **options
        Options of `numba.njit` to replace these, say ``fastmath={"contract"}`` for compensated sums.

    Returns
    -------
    numba.core.dispatcher.Dispatcher

    Examples
    --------
    >>> import numpy as np
    >>> from ot_numba.kernels.cpu.jit import kernel
    >>> @kernel
    ... def total(x):
    ...     s = 0.0
    ...     for i in range(x.shape[0]):
    ...         s += x[i]
    ...     return s
    >>> total(np.arange(4.0))
    6.0
    """
    if function is None:
        return functools.partial(kernel, cache=cache, **options)
    compiled = numba.njit(**{**_OPTIONS, "nogil": True, **options})(function)
    if cache and isinstance(compiled, Dispatcher):  # with NUMBA_DISABLE_JIT it is the function itself
        compiled._cache = _KernelCache(function)
    return compiled


def helper(function: Callable | None = None, **options: Any) -> Any:
    """Let compiled code call a function, which is then inlined there; from Python it stays what it was.

    Parameters
    ----------
    function : callable
        The function. Where compiled it follows the same rules of arithmetic as `kernel`.
    **options
        Options of `numba.njit`, say ``fastmath={"contract"}`` where the order of operations matters.

    Returns
    -------
    callable
        `function` itself.

    Examples
    --------
    >>> from ot_numba.kernels.cpu.jit import helper
    >>> @helper
    ... def square(x):
    ...     return x * x
    >>> square(3.0)
    9.0
    """
    if function is None:
        return functools.partial(helper, **options)
    return register_jitable(**{**_OPTIONS, "forceinline": True, **options})(function)


def cache_folder() -> Path | None:
    """Folder in which compiled kernels are kept between processes.

    Deleting it is always safe. It has a subfolder for each state of the package's sources; a few are kept.

    Returns
    -------
    pathlib.Path or None
        ``$OT_NUMBA_CACHE_DIR``, else ``$NUMBA_CACHE_DIR/ot_numba``, else ``ot_numba`` in the user's cache
        folder (``$XDG_CACHE_HOME`` or ``~/.cache``; ``~/Library/Caches`` on macOS; ``%LOCALAPPDATA%`` on
        Windows). None if it cannot be written to: kernels are then compiled in every process.

    Examples
    --------
    >>> from ot_numba.kernels.cpu.jit import cache_folder
    >>> folder = cache_folder()
    """
    folder = _version_folder()
    return folder.parent if folder is not None and _writable(folder) else None


def _root() -> Path | None:
    """The folder that the environment asks for, else one in the user's cache; None if there is no home."""
    if folder := os.environ.get("OT_NUMBA_CACHE_DIR"):
        return Path(folder).absolute()
    if config.CACHE_DIR:
        return Path(config.CACHE_DIR).absolute() / "ot_numba"
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "")
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME", "")
        base = base if os.path.isabs(base) else "~/.cache"
    base = os.path.expanduser(base)
    return Path(base) / "ot_numba" if os.path.isabs(base) else None


def _stamp() -> str:
    """Hash of all that decides what machine code a kernel becomes, but its arguments and the processor."""
    sources = sorted([*_SOURCES.rglob("*.py"), *_SOURCES.parent.glob("*.py")])
    if not sources:
        raise OSError(f"no sources in {_SOURCES}")
    settings = [config.OPT, config.BOUNDSCHECK, config.LOOP_VECTORIZE, config.SLP_VECTORIZE]
    state = [numba.__version__, llvmlite.__version__, sys.implementation.cache_tag, *map(str, settings)]
    state += [(path.relative_to(_SOURCES.parent).as_posix(), path.read_bytes()) for path in sources]
    return hashlib.sha256(repr(state).encode()).hexdigest()[:16]


@functools.cache
def _version_folder() -> Path | None:
    """Subfolder of the cache for this state of the sources."""
    try:
        root = _root()
        return root and root / f"kernels-{_stamp()}"
    except OSError as error:
        _log.debug("compiled kernels are not kept: %s", error)
        return None


@functools.cache
def _writable(folder: Path) -> bool:
    """Make the folder and write to it; where it is new, drop the oldest of its siblings."""
    try:
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        _log.debug("compiled kernels are not kept: %s", error)
        return False
    if is_new:
        with contextlib.suppress(OSError):  # another process may be dropping the same ones
            versions = sorted(folder.parent.glob("kernels-" + "[0-9a-f]" * 16), key=os.path.getmtime)
            for old in versions[:-_VERSIONS_KEPT]:
                shutil.rmtree(old, ignore_errors=True)
    return True


class _PassingError(Exception):
    """A kernel depends on something that does not outlast this process."""


def _lasting_name(value: Any) -> str:
    """Name of a value or Numba type that a kernel depends on, the same in every process."""
    if isinstance(value, types.Dispatcher):
        value = value.dispatcher
    if isinstance(value, Dispatcher):
        value = value.py_func
    if isinstance(value, FunctionType):
        code = value.__code__
        if Path(code.co_filename).resolve().is_relative_to(_SOURCES):
            cells = tuple(cell.cell_contents for cell in value.__closure__ or ())
            return f"{value.__module__}.{value.__qualname__}:{code.co_firstlineno}{_lasting_name(cells)}"
    if isinstance(value, (tuple, types.Tuple, types.UniTuple)):
        return f"({', '.join(map(_lasting_name, value))})"
    if isinstance(value, types.Omitted):
        return f"omitted {_lasting_name(value.value)}"
    if isinstance(value, (bool, int, float, str, type(None), np.generic, np.dtype)):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, (types.Array, types.Number, types.Boolean, types.NoneType)):
        return str(value)
    raise _PassingError(f"it depends on {value!r}")


class _KernelCache(_Cache):
    """What Numba asks about the kept signatures of one function.

    A file is never changed, only replaced by its equal, so that processes need no locks; the digest at its
    head tells a damaged one. Whatever fails in here, compiling is right.
    """

    def __init__(self, function: Callable) -> None:
        self._function = function
        self.enable()

    @property
    def cache_path(self) -> str | None:
        folder = _version_folder()
        return folder and str(folder)

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def flush(self) -> None:
        """Nothing to do: a file is valid for as long as its name is asked for."""

    def _path(self, signature: Any, codegen: Any) -> Path | None:
        folder = _version_folder() if self._enabled else None
        if folder is None:
            return None
        name = _lasting_name((self._function, *normalize_signature(signature), *codegen.magic_tuple()))
        digest = hashlib.sha256(name.encode()).hexdigest()
        return folder / f"{self._function.__name__}-{digest[:24]}.bin"

    def load_overload(self, signature: Any, target_context: Any) -> CompileResult | None:
        target_context.refresh()
        try:
            path = self._path(signature, target_context.codegen())
            if path is None or not path.exists():
                return None
            content = path.read_bytes()
            digest, content = content[:_DIGEST_SIZE], content[_DIGEST_SIZE:]
            if hashlib.sha256(content).digest() != digest:
                raise OSError(f"{path} is damaged")
            return CompileResult._rebuild(target_context, *pickle.loads(content))
        except Exception as error:
            _log.debug("kernel %s is compiled anew: %r", self._function.__name__, error)
            return None

    def save_overload(self, signature: Any, data: CompileResult) -> None:
        try:
            path = self._path(signature, data.codegen)
            if path is None or not _writable(path.parent):
                return
            if data.lifted or data.library.has_dynamic_globals:
                raise _PassingError("it depends on an address")
            content = dumps(data._reduce())
            descriptor, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
            try:
                with open(descriptor, "wb") as file:
                    file.write(hashlib.sha256(content).digest() + content)
                os.replace(part, path)
            except BaseException:
                os.unlink(part)
                raise
        except Exception as error:
            _log.debug("kernel %s is not kept: %r", self._function.__name__, error)
