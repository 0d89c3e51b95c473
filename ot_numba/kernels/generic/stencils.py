"""Smoothed total variation and fields of experts in plain array-API code."""

from __future__ import annotations

import math
from typing import Any

from array_api_compat import array_namespace, device

from ..contract import least_smoothing

Array = Any


def _total(xp: Any, x: Array) -> float:
    return float(xp.sum(x, dtype=xp.float64))


def _square(xp: Any, x: Array) -> float:
    x = xp.astype(x, xp.float64)
    return _total(xp, x * x)


def _differences(xp: Any, x: Array) -> tuple[Array, Array]:
    """To the right and down; 0 where there is no neighbour."""
    column, row = xp.zeros_like(x[:, :, :1]), xp.zeros_like(x[:, :1, :])
    dx = xp.concat([x[:, :, 1:] - x[:, :, :-1], column], axis=2)
    return dx, xp.concat([x[:, 1:, :] - x[:, :-1, :], row], axis=1)


def _adjoint(xp: Any, px: Array, py: Array) -> Array:
    """``D' p``, for p that are 0 where there is no neighbour."""
    column, row = xp.zeros_like(px[:, :, :1]), xp.zeros_like(py[:, :1, :])
    right = xp.concat([column, px[:, :, :-1]], axis=2) - px
    return right + xp.concat([row, py[:, :-1, :]], axis=1) - py


def _positive(xp: Any, nu: Any, like: Array) -> float:
    """Smoothing whose square is a normal number."""
    return max(float(nu), least_smoothing(xp.finfo(like.dtype)))


def _sizes(xp: Any, dx: Array, dy: Array, nu: float, isotropic: bool) -> tuple[Array, Array]:
    """What phi' divides the differences to the right, and down, by."""
    if isotropic:
        s = xp.sqrt(dx * dx + dy * dy + nu * nu)
        return s, s
    return xp.sqrt(dx * dx + nu * nu), xp.sqrt(dy * dy + nu * nu)


def tv_gradient(
    x: Array, y: Array, w: float | Array, nu: float, isotropic: bool, out: Array
) -> tuple[float, float]:
    """Value and norm of the gradient, which is written to `out`."""
    xp = array_namespace(x)
    nu = _positive(xp, nu, x)
    dx, dy = _differences(xp, x)
    sx, sy = _sizes(xp, dx, dy, nu, isotropic)
    wsx, wsy = w * sx, w * sy
    value = 0.5 * _square(xp, x - y) + _total(xp, wsx[:, :, :-1])
    value += _total(xp, wsy[:, :-1, -1:] if isotropic else wsy[:, :-1, :])
    out[...] = x - y + _adjoint(xp, w * dx / sx, w * dy / sy)
    return value, math.sqrt(_square(xp, out))


def tv_hvp(x: Array, v: Array, w: float | Array, nu: float, isotropic: bool, out: Array) -> float:
    """Product of the Hessian at x with v, written to `out`; returns <v, H v>."""
    xp = array_namespace(x)
    nu = _positive(xp, nu, x)
    (dx, dy), (ax, ay) = _differences(xp, x), _differences(xp, v)
    sx, sy = _sizes(xp, dx, dy, nu, isotropic)
    if isotropic:
        along = (dx * ax + dy * ay) / (sx * sx)
        ax, ay = (ax - dx * along) / sx, (ay - dy * along) / sx
    else:
        ax, ay = (nu / sx) ** 2 * ax / sx, (nu / sy) ** 2 * ay / sy
    out[...] = v + _adjoint(xp, w * ax, w * ay)
    return _total(xp, xp.astype(v, xp.float64) * xp.astype(out, xp.float64))


def tv_jacobian_t(
    x: Array, q: Array, w: float | Array, nu: float, isotropic: bool, pixels: Array | None = None
) -> tuple[float, float]:
    """<q, d grad / d log w> and <q, d grad / d log nu>; the former by pixel, summed over the batch, to `pixels`."""
    xp = array_namespace(x)
    nu = _positive(xp, nu, x)
    (dx, dy), (ax, ay) = _differences(xp, x), _differences(xp, q)
    sx, sy = _sizes(xp, dx, dy, nu, isotropic)
    ax, ay = w * dx * ax / sx, w * dy * ay / sy
    if pixels is not None:
        pixels[...] = xp.sum(ax + ay, axis=0)
    smoothing = nu * nu * (ax / (sx * sx) + ay / (sy * sy))
    return _total(xp, ax + ay), -_total(xp, smoothing)


def tv_steps(
    x: Array,
    z: Array,
    y: Array,
    w: float | Array,
    nu: float,
    isotropic: bool,
    step: float,
    momentum: float,
    limit: float,
    count: int,
    scratch: Array,
) -> tuple[int, float]:
    """Accelerated gradient steps, x and z in place, until the gradient at z is at most `limit`."""
    g, norm = scratch[0, ...], 0.0
    for taken in range(1, count + 1):
        _, norm = tv_gradient(z, y, w, nu, isotropic, g)
        new = z - step * g
        moved = new + momentum * (new - x)
        x[...] = new
        if not norm > limit:
            return taken, norm
        z[...] = moved
    return count, norm


def _taps(shape: tuple[int, ...], filters: Array) -> list[tuple[int, int, slice, slice]]:
    """Each tap of a filter with the part of the image that it looks at."""
    kh, kw = filters.shape[1:]
    rows, columns = shape[1] - kh + 1, shape[2] - kw + 1
    return [(i, j, slice(i, i + rows), slice(j, j + columns)) for i in range(kh) for j in range(kw)]


def _correlate(xp: Any, x: Array, filters: Array, k: int) -> Array:
    """Valid correlation of the images with filter k."""
    return sum(filters[k, i, j] * x[:, rows, columns] for i, j, rows, columns in _taps(x.shape, filters))


def _spread(out: Array, p: Array, filters: Array, k: int) -> None:
    """Add the adjoint of the correlation to `out`."""
    for i, j, rows, columns in _taps(out.shape, filters):
        out[:, rows, columns] += filters[k, i, j] * p


def foe_gradient(
    x: Array, y: Array, filters: Array, weights: Array, nus: Array, out: Array
) -> tuple[float, float]:
    """Value and norm of the gradient, which is written to `out`."""
    xp = array_namespace(x)
    value = 0.5 * _square(xp, x - y)
    out[...] = x - y
    for k in range(filters.shape[0]):
        weight, nu = float(weights[k]), _positive(xp, nus[k], x)
        u = _correlate(xp, x, filters, k)
        s = xp.sqrt(u * u + nu * nu)
        value += weight * _total(xp, s)
        _spread(out, weight * u / s, filters, k)
    return value, math.sqrt(_square(xp, out))


def foe_hvp(x: Array, v: Array, filters: Array, weights: Array, nus: Array, out: Array) -> float:
    """Product of the Hessian at x with v, written to `out`; returns <v, H v>."""
    xp = array_namespace(x)
    out[...] = v
    for k in range(filters.shape[0]):
        weight, nu = float(weights[k]), _positive(xp, nus[k], x)
        u = _correlate(xp, x, filters, k)
        s_sq = u * u + nu * nu
        _spread(out, weight * nu * nu * _correlate(xp, v, filters, k) / (s_sq * xp.sqrt(s_sq)), filters, k)
    return _total(xp, xp.astype(v, xp.float64) * xp.astype(out, xp.float64))


def foe_jacobian_t(
    x: Array, q: Array, filters: Array, weights: Array, nus: Array
) -> tuple[Array, Array, Array]:
    """<q, d grad / d .> for log weights (K,), log smoothings (K,) and filters (K, kh, kw), float64."""
    xp = array_namespace(x)
    first, second, third = [], [], []
    for k in range(filters.shape[0]):
        weight, nu = float(weights[k]), _positive(xp, nus[k], x)
        u, cq = _correlate(xp, x, filters, k), _correlate(xp, q, filters, k)
        s_sq = u * u + nu * nu
        slope = u / xp.sqrt(s_sq)
        curved = nu * nu * cq / (s_sq * xp.sqrt(s_sq))
        first.append(weight * _total(xp, cq * slope))
        second.append(-weight * _total(xp, curved * u))
        for _, _, rows, columns in _taps(x.shape, filters):
            third.append(weight * _total(xp, q[:, rows, columns] * slope + x[:, rows, columns] * curved))
    options = {"dtype": xp.float64, "device": device(x)}
    third = xp.reshape(xp.asarray(third, **options), tuple(filters.shape))
    return xp.asarray(first, **options), xp.asarray(second, **options), third
