"""Which array library and which device the arguments of a function live on."""

from __future__ import annotations

import numbers
import os
from collections.abc import Iterable
from typing import Any

import array_api_compat
import numpy as np

_SPARSE_MODULES = ("scipy.sparse", "cupyx.scipy.sparse", "sparse.")
_ADVICE = {
    "cupy": "`cupy.asarray(x)` moves an array to the GPU, `cupy.asnumpy(x)` moves it back",
    "torch": "`torch.asarray(x)` makes a tensor, `x.numpy(force=True)` a NumPy array",
}


def library_name(xp: Any) -> str:
    """Return the name of the library behind an array-API namespace, compatibility layers taken off."""
    return xp.__name__.removeprefix("array_api_compat.")


def is_numpy(xp: Any) -> bool:
    """Return whether the namespace `xp` is NumPy, plain or as wrapped by array-api-compat.

    Examples
    --------
    >>> import numpy
    >>> is_numpy(numpy)
    True
    """
    return library_name(xp) == "numpy"


def is_asynchronous(xp: Any) -> bool:
    """Return whether functions of `xp` return before their work is done, so that to read a number is to wait.

    Examples
    --------
    >>> import numpy
    >>> is_asynchronous(numpy)
    False
    """
    return library_name(xp) == "cupy"


def read_floats(values: Iterable[Any]) -> list[float]:
    """Return numbers and arrays without dimensions as floats; those of a device come over in one piece.

    Examples
    --------
    >>> import numpy
    >>> read_floats([1.0, numpy.float64(2.0)])
    [1.0, 2.0]
    """
    values = list(values)
    lazy = [i for i, value in enumerate(values) if array_api_compat.is_cupy_array(value)]
    if lazy:
        xp = array_api_compat.array_namespace(values[lazy[0]])
        read = xp.stack([xp.astype(values[i], xp.float64) for i in lazy]).get()
        for i, value in zip(lazy, read, strict=True):
            values[i] = value
    return [float(value) for value in values]


def c_ordered(x: Any) -> Any:
    """Return the array with its rows one after the other in memory, where its library lets that be seen.

    Examples
    --------
    >>> import numpy
    >>> c_ordered(numpy.ones((3, 2)).T).flags.c_contiguous
    True
    """
    xp = namespace_of(x)
    return xp.ascontiguousarray(x) if library_name(xp) in ("numpy", "cupy") else xp.asarray(x, copy=True)


def namespace_of(x: Any, name: str | None = None) -> Any:
    """Return the namespace of one argument; None for a list, a scalar or None, which go with any library."""
    if type(x) is np.ndarray:
        return np
    if x is None or isinstance(x, (numbers.Number, np.generic, list, tuple, range)):
        return None
    what = f"{name}: " if name else ""
    kind = f"{type(x).__module__}.{type(x).__qualname__}"
    if any(f"{cls.__module__}.".startswith(_SPARSE_MODULES) for cls in type(x).__mro__):
        raise TypeError(f"{what}sparse arrays ({kind}) are not supported: pass a dense one, e.g. x.toarray()")
    if isinstance(x, np.matrix):
        raise TypeError(f"{what}numpy.matrix is not supported: pass numpy.asarray(x)")
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{what}masked arrays are not supported: fill or drop the masked entries first")
    if isinstance(x, np.ndarray):
        return np
    if array_api_compat.is_array_api_obj(x):
        return array_api_compat.array_namespace(x)
    if hasattr(x, "__array__"):  # pandas, xarray, polars ...: containers of NumPy data
        return np
    raise TypeError(f"{what}expected an array or a list of numbers, got {kind}")


def mixed_libraries(names: Iterable[str], what: str = "the arguments mix") -> TypeError:
    """Return the error for arrays of different libraries: it names them and says how to move the data."""
    found = sorted(set(names))
    advice = "; ".join(_ADVICE[n] for n in found if n in _ADVICE) or "move all of them to one library"
    return TypeError(f"{what} arrays of {' and '.join(found)}, and none is moved silently: {advice}")


def mixed_devices(devices: Iterable[Any], what: str = "the arguments are") -> TypeError:
    """Return the error for arrays on different devices."""
    found = sorted({str(d) for d in devices})
    return TypeError(f"{what} on different devices, {' and '.join(found)}: move all of them to one first")


def array_namespace(*arrays: Any) -> Any:
    """Return the array-API namespace that the arguments share.

    Lists, tuples, scalars and None say nothing about the library: they count as NumPy only if there is no
    array. Objects that only offer ``__array__``, such as pandas frames, count as NumPy. For NumPy the
    namespace is the module ``numpy`` itself, which follows the standard since 2.1; for the others it is that
    of array-api-compat. Costs about a microsecond for each NumPy array; no data is
    read.

    Parameters
    ----------
    *arrays : array, list, scalar or None
        The arguments of a function.

    Returns
    -------
    module
        The namespace, ``xp`` by convention.

    Raises
    ------
    TypeError
        If the arrays are of different libraries or on different devices (nothing is moved silently), or if
        one is a sparse matrix, a masked array, a ``numpy.matrix`` or no array at all.

    Examples
    --------
    >>> import numpy
    >>> array_namespace(numpy.ones(3), [1, 2], None) is numpy
    True
    """
    spaces = [namespace_of(x) for x in arrays]
    found = [xp for xp in spaces if xp is not None]
    first = found[0] if found else np
    if any(xp is not first for xp in found):
        raise mixed_libraries(library_name(xp) for xp in found)
    if first is not np:
        devices = [array_api_compat.device(x) for x, xp in zip(arrays, spaces, strict=True) if xp is not None]
        if any(d != devices[0] for d in devices):
            raise mixed_devices(devices)
    return first


def device_of(x: Any) -> Any:
    """Return the device of an array, as its library names it; ``"cpu"`` for NumPy, lists and scalars.

    Raises
    ------
    TypeError
        If `x` is nothing that `array_namespace` accepts.

    Examples
    --------
    >>> device_of([1.0, 2.0])
    'cpu'
    """
    xp = namespace_of(x)
    return "cpu" if xp is None or xp is np else array_api_compat.device(x)


def memory_of(device: Any) -> int:
    """Return the bytes of memory of a device, as `device_of` gives it; those of the computer where it does not say.

    Examples
    --------
    >>> memory_of("cpu") > 1 << 28
    True
    """
    if hasattr(device, "mem_info"):  # CuPy's: free and total
        return device.mem_info[1]
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no such names outside POSIX
        return 1 << 32


def to_numpy(x: Any) -> np.ndarray:
    """Return the data of an array of any library as a NumPy array, copied from its device where it must be.

    Gives the same memory where the library allows it, so treat the result as read-only.

    Raises
    ------
    TypeError
        If `x` is nothing that `array_namespace` accepts.

    Examples
    --------
    >>> to_numpy([1.0, 2.0])
    array([1., 2.])
    """
    xp = namespace_of(x)
    if xp is None or xp is np:
        return np.asarray(x)
    if array_api_compat.is_cupy_array(x):
        return x.get()
    if array_api_compat.is_torch_array(x):
        return x.numpy(force=True)
    return np.from_dlpack(x, device="cpu") if hasattr(x, "__dlpack__") else np.asarray(x)
