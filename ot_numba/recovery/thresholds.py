"""Soft and hard thresholding."""

from __future__ import annotations

from typing import Any

from ..arrays.namespaces import array_namespace, device_of, namespace_of
from ..arrays.validation import as_float_array, common_dtype

Array = Any


def _prepared(v: Any, tau: Any) -> tuple[Any, Array, Array]:
    """Namespace, values and thresholds, checked, of one dtype."""
    xp = array_namespace(v, tau)
    dtype = common_dtype(v, tau)
    like = next((x for x in (v, tau) if namespace_of(x) is not None), None)
    device = None if like is None else device_of(like)
    v = as_float_array(v, "v", xp=xp, dtype=dtype, device=device)
    tau = as_float_array(tau, "tau", xp=xp, dtype=dtype, device=device, allow_inf=True)
    if float(xp.min(tau)) < 0:
        raise ValueError(f"tau must not be negative, got {float(xp.min(tau))}")
    return xp, v, tau


def soft_threshold(v: Any, tau: Any) -> Array:
    r"""Proximal operator of :math:`\tau |\cdot|`.

    .. math:: sign(v) \max(|v| - \tau, 0)

    Parameters
    ----------
    v : array_like
        Values, of any shape; finite, real.
    tau : array_like
        Thresholds >= 0, of a shape that broadcasts with v; infinity gives 0.

    Returns
    -------
    array
        Of the broadcast shape; float32 if all floating-point arrays are, else float64.

    Raises
    ------
    ValueError, TypeError
        For negative thresholds, values that are not finite, or complex data.

    Notes
    -----
    Two temporaries of the size of the result.

    References
    ----------
    Donoho, "De-noising by soft-thresholding", IEEE Transactions on Information Theory 41, 1995.

    Examples
    --------
    >>> soft_threshold([-3.0, 0.5, 2.0], 1.0).tolist()
    [-2.0, 0.0, 1.0]
    """
    xp, v, tau = _prepared(v, tau)
    return v - xp.clip(v, -tau, tau)


def hard_threshold(v: Any, tau: Any) -> Array:
    r"""Values larger than a threshold: the proximal operator of :math:`\tfrac12 \tau^2 \|\cdot\|_0`.

    .. math:: v\, [|v| > \tau]

    Parameters
    ----------
    v : array_like
        Values, of any shape; finite, real.
    tau : array_like
        Thresholds >= 0, of a shape that broadcasts with v; a value of exactly this size becomes 0.

    Returns
    -------
    array
        Of the broadcast shape; float32 if all floating-point arrays are, else float64.

    Raises
    ------
    ValueError, TypeError
        For negative thresholds, values that are not finite, or complex data.

    Notes
    -----
    Two temporaries of the size of the result.

    References
    ----------
    Blumensath, Davies, "Iterative thresholding for sparse approximations", Journal of Fourier Analysis and
    Applications 14, 2008.

    Examples
    --------
    >>> hard_threshold([-3.0, 0.5, 1.0], 1.0).tolist()
    [-3.0, 0.0, 0.0]
    """
    xp, v, tau = _prepared(v, tau)
    return xp.where(xp.abs(v) > tau, v, xp.zeros_like(v))
