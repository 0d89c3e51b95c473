"""Turning what users pass into what kernels take, or saying which argument is wrong and how."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Collection
from typing import Any, TypeVar

import array_api_compat
import numpy as np

from ot_numba.arrays.namespaces import (
    array_namespace,
    device_of,
    is_numpy,
    library_name,
    mixed_devices,
    mixed_libraries,
    namespace_of,
)

_T = TypeVar("_T")
_REAL_DTYPE = re.compile(r"bool|u?int\d+|float\d+|bfloat16|longdouble")
_NARROW = frozenset({"float32", "float16", "bfloat16"})
_FLOATS = ("float64", "float32")
_BALANCE_TOL = {"float64": 1e-8, "float32": 1e-5}


def dtype_name(dtype: Any) -> str:
    """Return the bare name of a dtype of any library: numpy.float32, torch.float32 -> "float32"."""
    try:
        return np.dtype(dtype).name
    except TypeError:
        return str(dtype).rpartition(".")[2]


def _place(index: int, shape: tuple[int, ...]) -> str:
    """Return a flat position as the user would index it."""
    where = tuple(int(i) for i in np.unravel_index(index, shape))
    return str(where[0]) if len(where) == 1 else str(where)


def _count(mask: Any, xp: Any) -> int:
    """Return the number of true entries."""
    return int(xp.sum(xp.astype(mask, xp.int64)))


def _bad_entries(mask: Any, xp: Any) -> str:
    """Return how many entries of a non-empty mask are set, and where the first is."""
    count = _count(mask, xp)
    first = int(xp.argmax(xp.astype(xp.reshape(mask, (-1,)), xp.int64)))
    where = f"at index {_place(first, mask.shape)}" if mask.ndim else "the value itself"
    return f"{count} of {math.prod(mask.shape)} entries, {'the first ' if count > 1 else ''}{where}"


def _refuse_nonfinite(x: Any, name: str, xp: Any, allow_inf: bool) -> None:
    """Raise if x has a NaN, a -inf, or a +inf that is not allowed; no large temporary unless it raises."""
    with np.errstate(invalid="ignore"):
        low, high = float(xp.min(x)), float(xp.max(x))
    if math.isnan(low) or math.isnan(high):
        raise ValueError(f"{name} has NaN in {_bad_entries(xp.isnan(x), xp)}")
    if low == -math.inf:
        raise ValueError(f"{name} has -inf in {_bad_entries(x == -math.inf, xp)}")
    if high == math.inf and not allow_inf:
        raise ValueError(f"{name} has inf in {_bad_entries(x == math.inf, xp)}")


def as_float_array(
    x: Any,
    name: str,
    *,
    ndim: int | tuple[int, ...] | None = None,
    xp: Any = None,
    dtype: Any = None,
    device: Any = None,
    allow_inf: bool = False,
) -> Any:
    """Return `x` as a C-contiguous float32 or float64 array in native byte order, checked.

    An array that already is all of that comes back as it is, without a copy; `x` is never written to and may
    be read-only. Booleans, integers, lists and extended precision become float64, float16 becomes float32.
    Time is one pass over the data (a second one where it has infinities), memory that of the conversion if
    there is one.

    Parameters
    ----------
    x : array_like
        The data, of any array-API library, or nested lists, or anything with ``__array__`` (pandas).
    name : str
        What to call it in error messages.
    ndim : int or tuple of int, optional
        The numbers of dimensions to accept; any by default.
    xp : module, optional
        The namespace of the result, that of `x` by default. Lists and scalars are put there; arrays are never
        moved.
    dtype : dtype, optional
        float32 or float64, of any library or by name; by default the one that `x` is promoted to.
    device : optional
        Where to put lists and scalars; an array must already be there.
    allow_inf : bool, default False
        Accept ``+inf``. In a cost it marks a forbidden pair, which gets no mass. ``-inf`` and NaN are always
        refused.

    Returns
    -------
    array
        Of namespace `xp`. Contiguity and byte order are promised for NumPy and CuPy; other libraries manage
        their own.

    Raises
    ------
    TypeError
        If `x` is complex, text, an object array, sparse, masked or a ``numpy.matrix``, or lives elsewhere
        than asked.
    ValueError
        If `x` is empty, ragged, of a wrong number of dimensions, not finite, or too large for `dtype`.

    Examples
    --------
    >>> as_float_array([[1, 2], [3, 4]], "C", ndim=2)
    array([[1., 2.],
           [3., 4.]])
    >>> as_float_array([1.0, float("nan")], "a")
    Traceback (most recent call last):
        ...
    ValueError: a has NaN in 1 of 2 entries, at index 1
    """
    own = namespace_of(x, name)
    if xp is None:
        xp = own or np
    if own is not None:
        if library_name(own) != library_name(xp):
            names = (library_name(own), library_name(xp))
            raise mixed_libraries(names, f"{name} and the other arguments mix")
        if device is not None and device_of(x) != device:
            raise mixed_devices((device_of(x), device), f"{name} and the other arguments are")
    if own is None or own is np:
        try:
            x = np.asarray(x)
        except (TypeError, ValueError) as error:  # ragged lists; lists of CuPy arrays
            raise type(error)(f"{name} cannot be made an array: {error}") from None
    source = dtype_name(x.dtype)
    if not _REAL_DTYPE.fullmatch(source):
        raise TypeError(f"{name} must hold real numbers, got dtype {source}")
    target = ("float32" if source in _NARROW else "float64") if dtype is None else dtype_name(dtype)
    if target not in _FLOATS:
        raise TypeError(f"dtype must be float32 or float64, got {dtype!r}")
    accepted = (ndim,) if isinstance(ndim, int) else ndim
    if accepted is not None and x.ndim not in accepted:
        wanted = " or ".join(map(str, accepted))
        raise ValueError(f"{name} must have {wanted} dimension(s), got shape {tuple(x.shape)}")
    if math.prod(x.shape) == 0:
        raise ValueError(f"{name} is empty: shape {tuple(x.shape)}")

    out = _convert(x, own, xp, target, device)
    narrowed = source == "longdouble" or (source.startswith("float") and int(source[5:]) > int(target[5:]))
    with np.errstate(over="ignore", invalid="ignore"):
        settled = math.isfinite(float(xp.sum(out)))  # in one pass: a NaN or an infinity survives a sum
    if not settled:
        if narrowed and (over := _count(xp.isinf(out), xp) - _count(xp.isinf(x), xp)):
            raise ValueError(f"{name} has {over} value(s) beyond the range of {target}")
        _refuse_nonfinite(out, name, xp, allow_inf)
    return out


def _convert(x: Any, own: Any, xp: Any, target: str, device: Any) -> Any:
    """Return x with the dtype, order and alignment asked for, in namespace xp."""
    with np.errstate(over="ignore", invalid="ignore"):  # the caller reports what became inf or NaN
        if is_numpy(xp):
            out = np.asarray(x, dtype=target, order="C")
            return out if out.flags.aligned else out.copy()
        if own is None:
            return xp.asarray(np.asarray(x, dtype=target), device=device)
        if array_api_compat.is_cupy_array(x):
            return xp.asarray(x, dtype=target, order="C")
        return xp.astype(x, getattr(xp, target), copy=False)


def common_dtype(*arrays: Any) -> Any:
    """Return the dtype in which a function of these arrays computes.

    It is float32 if there are floating-point arrays and all of them are float32 or float16, else float64.
    Integer and boolean arrays, lists, scalars and None do not count, as in NumPy's promotion of Python
    numbers.

    Returns
    -------
    dtype
        Of the common namespace of the arguments: ``numpy.dtype`` for NumPy and CuPy.

    Raises
    ------
    TypeError
        As `array_namespace`.

    Examples
    --------
    >>> import numpy
    >>> common_dtype(numpy.ones(2, "float32"), [1, 2])
    dtype('float32')
    >>> common_dtype(numpy.ones(2, "float32"), numpy.ones(2))
    dtype('float64')
    """
    xp = array_namespace(*arrays)
    names = set()
    for x in arrays:
        if namespace_of(x) is not None:
            dtype = dtype_name(x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype)
            if "float" in dtype or dtype == "longdouble":
                names.add(dtype)
    target = "float32" if names and names <= _NARROW else "float64"
    return np.dtype(target) if library_name(xp) in ("numpy", "cupy") else getattr(xp, target)


def _total(w: Any) -> float:
    """Return the sum of an array, accumulated in float64."""
    xp = namespace_of(w)
    return float(xp.sum(w, dtype=xp.float64))


def check_weights(w: Any, name: str, size: int, *, like: Any) -> Any:
    """Return the weights of a measure with `size` points, checked: finite, none negative, not all zero.

    Parameters
    ----------
    w : array_like of shape (size,), or None
        The weights; None means uniform, ``1/size`` each. They need not sum to 1, and zeros are fine.
    name : str
        What to call them in error messages.
    size : int
        The number of points.
    like : array
        An array (float32 or float64) whose library, device and dtype the weights get.

    Returns
    -------
    array of shape (size,)
        `w` itself, without a copy, where it is already as wanted.

    Raises
    ------
    TypeError
        As `as_float_array`.
    ValueError
        If the shape is wrong, or an entry is NaN, infinite or negative, or the sum is zero or overflows.

    Examples
    --------
    >>> import numpy
    >>> check_weights(None, "a", 4, like=numpy.ones(1))
    array([0.25, 0.25, 0.25, 0.25])
    >>> check_weights([0.5, -0.5], "a", 2, like=numpy.ones(1))
    Traceback (most recent call last):
        ...
    ValueError: a must not be negative, got a[1] = -0.5
    """
    xp, device = array_namespace(like), device_of(like)
    if w is None:
        return xp.full((size,), 1.0 / size, dtype=like.dtype, device=device)
    w = as_float_array(w, name, ndim=1, xp=xp, dtype=like.dtype, device=device)
    if w.shape[0] != size:
        raise ValueError(f"{name} must have shape ({size},), got {tuple(w.shape)}")
    if float(xp.min(w)) < 0:
        worst = int(xp.argmin(w))
        raise ValueError(f"{name} must not be negative, got {name}[{worst}] = {float(w[worst])}")
    with np.errstate(over="ignore"):
        total = _total(w)
    if not 0 < total < math.inf:
        raise ValueError(f"{name} sums to {total}: the total must be positive and finite")
    return w


def check_balanced(a: Any, b: Any) -> Any:
    r"""Return `b` rescaled to the total of `a`, if the two agree up to rounding.

    .. math:: b \frac{\sum_i a_i}{\sum_j b_j}

    The sums are taken in float64 and may differ by 1e-8 relative to the larger (1e-5 for float32 weights).

    Parameters
    ----------
    a, b : array of shape (n,), (m,)
        Weights from `check_weights`.

    Returns
    -------
    array of shape (m,)
        `b` itself if the sums are equal, else a new array.

    Raises
    ------
    ValueError
        If the totals differ by more: it names both.

    Examples
    --------
    >>> import numpy
    >>> check_balanced(numpy.array([0.5, 0.5]), numpy.array([1.0, 1.0]))
    Traceback (most recent call last):
        ...
    ValueError: a sums to 1.0 but b to 2.0 (relative tolerance 1e-08): rescale one, or pass unbalanced=
    """
    total_a, total_b = _total(a), _total(b)
    if total_a == total_b:
        return b
    tol = max(_BALANCE_TOL[dtype_name(w.dtype)] for w in (a, b))
    if abs(total_a - total_b) > tol * max(total_a, total_b):
        raise ValueError(
            f"a sums to {total_a} but b to {total_b} (relative tolerance {tol:.0e}): "
            "rescale one, or pass unbalanced="
        )
    return b * (total_a / total_b)


def _bounds(low: float | None, high: float | None, low_open: bool, high_open: bool) -> str:
    """Return the range in words."""
    parts = []
    if low is not None:
        parts.append(f"{'>' if low_open else '>='} {low:g}")
    if high is not None:
        parts.append(f"{'<' if high_open else '<='} {high:g}")
    return " and ".join(parts)


def check_real(
    value: Any,
    name: str,
    *,
    low: float | None = None,
    high: float | None = None,
    low_open: bool = False,
    high_open: bool = False,
) -> float:
    """Return a real number as a Python float, checked against its bounds.

    Parameters
    ----------
    value : real number
        A Python or NumPy number, or an array of one entry of any library.
    name : str
        What to call it in error messages.
    low, high : float, optional
        The bounds. Infinity passes unless ``high=math.inf, high_open=True`` refuses it.
    low_open, high_open : bool, default False
        Whether the bound itself is refused.

    Raises
    ------
    TypeError
        If it is no real number: a bool, text, complex, or an array of more than one entry.
    ValueError
        If it is NaN, out of bounds, or an integer that no float can hold.

    Examples
    --------
    >>> check_real(1, "reg", low=0, low_open=True)
    1.0
    >>> check_real(0, "reg", low=0, low_open=True)
    Traceback (most recent call last):
        ...
    ValueError: reg must be > 0, got 0
    """
    shape = getattr(value, "shape", ())
    dtype = dtype_name(value.dtype) if hasattr(value, "dtype") else ""
    refused = isinstance(value, (bool, str, bytes, bytearray)) or math.prod(shape) != 1
    if refused or (dtype and (dtype == "bool" or not _REAL_DTYPE.fullmatch(dtype))):
        raise TypeError(f"{name} must be a real number, got {value!r}")
    try:
        number = float(value if not shape else value[(0,) * len(shape)])
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a real number, got {value!r}") from None
    except OverflowError:
        raise ValueError(f"{name} is beyond the range of float64") from None
    if math.isnan(number):
        raise ValueError(f"{name} must be a number, got nan")
    below = low is not None and (number <= low if low_open else number < low)
    above = high is not None and (number >= high if high_open else number > high)
    if below or above:
        raise ValueError(f"{name} must be {_bounds(low, high, low_open, high_open)}, got {value}")
    return number


def check_int(value: Any, name: str, *, low: int | None = None) -> int:
    """Return an integer as a Python int, checked against a lower bound.

    Raises
    ------
    TypeError
        If it is no integer: a bool, a float (``1000.0`` too), text.
    ValueError
        If it is below `low`.

    Examples
    --------
    >>> check_int(3, "max_iter", low=1)
    3
    >>> check_int(1e3, "max_iter")
    Traceback (most recent call last):
        ...
    TypeError: max_iter must be an integer, got 1000.0
    """
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if low is not None and number < low:
        raise ValueError(f"{name} must be >= {low}, got {number}")
    return number


def check_choice(value: _T, name: str, choices: Collection[_T]) -> _T:
    """Return `value` if it is one of the words in `choices` (text, or None where that is one of them).

    Raises
    ------
    ValueError
        If it is not: the message lists the words.

    Examples
    --------
    >>> check_choice("kl", "regularizer", ("kl", "entropy"))
    'kl'
    >>> check_choice("KL", "regularizer", ("kl", "entropy"))
    Traceback (most recent call last):
        ...
    ValueError: regularizer must be one of 'kl', 'entropy', got 'KL'
    """
    if (isinstance(value, str) or value is None) and value in choices:
        return value
    raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_rng(rng: Any) -> np.random.Generator:
    """Return a random generator: fresh for None, seeded for an int, a `numpy.random.Generator` as it is.

    Raises
    ------
    TypeError
        If `rng` is anything else, such as a ``RandomState``.
    ValueError
        If the seed is negative.

    Examples
    --------
    >>> check_rng(0).random() == check_rng(0).random()
    True
    """
    if isinstance(rng, np.random.Generator):
        return rng
    if rng is None:
        return np.random.default_rng()
    try:
        seed = check_int(rng, "rng", low=0)
    except TypeError:
        raise TypeError(f"rng must be None, an int or a numpy.random.Generator, got {rng!r}") from None
    return np.random.default_rng(seed)
