"""Euclidean projections on the simplex and its sparse points, and the k-support norm."""

from __future__ import annotations

import math
from typing import Any

from ..arrays.namespaces import array_namespace, c_ordered, device_of
from ..arrays.validation import as_float_array, check_int, check_real
from ..costs.matrix import as_kernel_input
from ..kernels import kernels_for

Array = Any


def project_simplex(v: Any, z: Any = 1.0, *, axis: int = -1) -> Array:
    r"""Euclidean projection of every slice on the simplex :math:`\{t \ge 0, \sum_i t_i = z\}`.

    .. math:: t_i = \max(v_i - \tau, 0) \quad \text{with } \tau \text{ such that } \sum_i t_i = z

    Parameters
    ----------
    v : array_like of any shape
        What to project: one-dimensional slices along `axis`. float32 stays float32.
    z : float or array_like
        Size of the simplex, >= 0: one number, or one for each slice, in the shape of v without `axis`.
    axis : int, default -1
        Along which the slices lie.

    Returns
    -------
    array of the shape of v
        New array.

    Raises
    ------
    ValueError
        If v is empty or not finite, z is negative, not finite or of another shape, or there is no such axis.
    TypeError
        If the arrays are of different libraries, or no real numbers.

    Notes
    -----
    NumPy arrays: O(size) time on average, no sort; only what is within z of the largest entry of its slice is looked
    at more than once, and thrown out while it lies below the threshold of what is left. O(size) memory.

    References
    ----------
    Michelot, "A finite algorithm for finding the projection of a point onto the canonical simplex of R^n",
    Journal of Optimization Theory and Applications 50(1), 1986. Condat, "Fast projection onto the simplex and the l1
    ball", Mathematical Programming 158, 2016.

    Examples
    --------
    >>> import ot_numba
    >>> ot_numba.project_simplex([1.0, 0.6, 0.3, -0.5]).round(6).tolist()
    [0.7, 0.3, 0.0, 0.0]
    """
    return _project(v, None, z, axis)


def project_simplex_topk(v: Any, k: int, z: Any = 1.0, *, axis: int = -1) -> Array:
    r"""Euclidean projection of every slice on the points of the simplex with at most k positive entries.

    The k largest entries of a slice, of equal ones those of lowest index, are projected on the simplex
    :math:`\{t \ge 0, \sum_i t_i = z\}`; the others become 0. The set is not convex: where the k-th and the (k + 1)-th
    largest entry are equal and positive in the projection there are other points as near.

    Parameters
    ----------
    v : array_like of any shape
        What to project: one-dimensional slices along `axis`. float32 stays float32.
    k : int
        Largest number of positive entries, >= 1; from the length of a slice on there is no limit.
    z : float or array_like
        Size of the simplex, >= 0: one number, or one for each slice, in the shape of v without `axis`.
    axis : int, default -1
        Along which the slices lie.

    Returns
    -------
    array of the shape of v
        New array.

    Raises
    ------
    ValueError
        As `project_simplex`; if k < 1.
    TypeError
        As `project_simplex`; if k is no integer.

    Notes
    -----
    NumPy arrays: O(size) time on average, O(size log k) at worst, no sort; O(size) memory.

    References
    ----------
    Kyrillidis, Becker, Cevher, Koch, "Sparse projections onto the simplex", ICML 2013, arXiv 1206.1529.

    Examples
    --------
    >>> import ot_numba
    >>> ot_numba.project_simplex_topk([0.5, 0.6, 0.4, 0.3], 2).round(6).tolist()
    [0.45, 0.55, 0.0, 0.0]
    """
    return _project(v, k, z, axis)


def ksupport_norm_sq(t: Any, k: int, *, axis: int = -1) -> Array:
    r"""Square of the k-support norm of every slice.

    The unit ball of this norm is the convex hull of the points with at most k nonzeros in the Euclidean ball;
    half the square is the biconjugate of :math:`\tfrac12 \|t\|^2` with at most k nonzeros. With the sizes in descending
    order, :math:`t_1 \ge t_2 \ge \dots` and :math:`t_0 = \infty`,

    .. math::

        \sum_{i < k - r} t_i^2 + (r + 1) q^2, \qquad q = \frac{1}{r + 1} \sum_{i \ge k - r} t_i

    for the one r in 0, ..., k - 1 with :math:`t_{k-r-1} > q \ge t_{k-r}`. It is the squared L1 norm for k = 1 and the
    squared Euclidean norm for k >= the length of a slice.

    Parameters
    ----------
    t : array_like of any shape
        One-dimensional slices along `axis`.
    k : int
        Number of nonzeros, >= 1.
    axis : int, default -1
        Along which the slices lie.

    Returns
    -------
    float64 array of the shape of t without `axis`

    Raises
    ------
    ValueError
        If t is empty or not finite, k < 1, or there is no such axis.
    TypeError
        If t is no real numbers, or k no integer.

    Notes
    -----
    NumPy arrays: O(size log k) time; O(size) memory if `axis` is not the last.

    References
    ----------
    Argyriou, Foygel, Srebro, "Sparse prediction with the k-support norm", NIPS 2012, arXiv 1204.5043.

    Examples
    --------
    >>> import ot_numba
    >>> float(ot_numba.ksupport_norm_sq([0.5, 0.3, 0.15, 0.05], 2).round(6))
    0.5
    """
    xp, k = array_namespace(t), check_int(k, "k", low=1)
    rows, shape, _ = _slices(as_float_array(t, "t"), "t", axis)
    kernels = kernels_for(xp, "topk")
    return xp.reshape(kernels.ksupport_norm_sq(rows, min(k, rows.shape[1])), shape)


def _project(v: Any, k: int | None, z: Any, axis: int) -> Array:
    xp = array_namespace(v, z)
    k = None if k is None else check_int(k, "k", low=1)
    v = as_float_array(v, "v", xp=xp)
    rows, shape, axis = _slices(v, "v", axis)
    n, m = rows.shape
    if isinstance(z, (list, tuple)) or math.prod(getattr(z, "shape", ())) != 1:
        z = as_float_array(z, "z", xp=xp, dtype=xp.float64, device=device_of(v))
        if tuple(z.shape) != shape:
            raise ValueError(f"z must be a number or have shape {shape}, got {tuple(z.shape)}")
        check_real(xp.min(z), "z", low=0)
        sizes = xp.reshape(z, (-1,))
    else:
        z = check_real(z, "z", low=0, high=math.inf, high_open=True)
        sizes = xp.full((n,), z, dtype=xp.float64, device=device_of(v))
    out = kernels_for(xp, "topk").project_simplex(rows, sizes, m if k is None else min(k, m))
    return xp.moveaxis(xp.reshape(out, (*shape, m)), -1, axis)


def _slices(v: Array, name: str, axis: Any) -> tuple[Array, tuple[int, ...], int]:
    """Slices along an axis as the rows of a matrix, the shape without the axis, and the axis."""
    xp = array_namespace(v)
    axis = check_int(axis, "axis")
    if not -v.ndim <= axis < v.ndim:
        raise ValueError(f"axis must be one of the {v.ndim} of {name}, got {axis}")
    moved = xp.moveaxis(v, axis, -1)
    rows = xp.reshape(moved, (-1, moved.shape[-1]))
    return as_kernel_input(xp, c_ordered(rows)), tuple(moved.shape[:-1]), axis
