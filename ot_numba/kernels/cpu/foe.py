"""Compiled loops over images: fields of experts, a filter after the other on rows that stay in the cache."""

from __future__ import annotations

import math

import numpy as np

from .jit import helper, kernel
from .threads import run_blocks
from .tv import positive

#: Rows of an image that are treated as one block.
_TILE = 32
#: Taps of a correlation that are added in one loop.
_GROUP = 5


@helper
def _add_taps(source, start, offsets, taps, out):
    """``out[j] += sum_t taps[t] source[start + offsets[t] + j]``, `_GROUP` taps at a time."""
    n = out.shape[0]
    for t in range(0, taps.shape[0], _GROUP):
        c0, c1, c2, c3, c4 = taps[t], taps[t + 1], taps[t + 2], taps[t + 3], taps[t + 4]
        s0 = source[start + offsets[t] : start + offsets[t] + n]
        s1 = source[start + offsets[t + 1] : start + offsets[t + 1] + n]
        s2 = source[start + offsets[t + 2] : start + offsets[t + 2] + n]
        s3 = source[start + offsets[t + 3] : start + offsets[t + 3] + n]
        s4 = source[start + offsets[t + 4] : start + offsets[t + 4] + n]
        for j in range(n):
            out[j] += c0 * s0[j] + c1 * s1[j] + c2 * s2[j] + c3 * s3[j] + c4 * s4[j]


@helper
def _expert_slope(u, weight, nu_sq, p):
    """``p = weight u / sqrt(u**2 + nu**2)``."""
    for j in range(u.shape[0]):
        p[j] = weight * u[j] / np.sqrt(u[j] * u[j] + nu_sq)


@helper
def _expert_value(u, nu_sq):
    """Sum of ``sqrt(u**2 + nu**2)``."""
    value = 0.0
    for j in range(u.shape[0]):
        value += np.float64(np.sqrt(u[j] * u[j] + nu_sq))
    return value


@helper
def _expert_curvature(u, cv, weight, nu_sq, p):
    """``p = weight nu**2 cv / (u**2 + nu**2)**1.5``."""
    for j in range(u.shape[0]):
        s_sq = u[j] * u[j] + nu_sq
        p[j] = weight * nu_sq * cv[j] / (s_sq * np.sqrt(s_sq))


@kernel
def _foe_blocks(
    x, v, taps, weights, nus, offsets, back, shape, kernel_shape, hessian, out, sums, slopes, u, cv, lo, hi
):
    """Gradient of the experts, or their Hessian at x times v, plus what the fidelity adds, for tiles lo:hi.

    v is the data, or the vector. Slopes of a tile and of the rows above it that reach into it lie in `slopes`
    (rows, W + kw - 1), with zeros around.
    """
    height, width = shape
    kh, kw = kernel_shape
    real = x.dtype.type
    tiles = (height + _TILE - 1) // _TILE
    n = width - kw + 1
    pitch = width + kw - 1
    flat = slopes.reshape(-1)
    for block in range(lo, hi):
        b, top = block // tiles, (block % tiles) * _TILE
        bottom = min(top + _TILE, height)
        image, vector, target = x[b], v[b], out[b]
        target[top * width : bottom * width] = 0
        value = 0.0
        for k in range(taps.shape[0]):
            nu_sq, weight = real(nus[k] * nus[k]), real(weights[k])
            for i in range(top - kh + 1, bottom):
                p = slopes[i - top + kh - 1]
                if i < 0 or i > height - kh:
                    p[:] = 0
                    continue
                u[:] = 0
                _add_taps(image, i * width, offsets, taps[k], u)
                if hessian:
                    cv[:] = 0
                    _add_taps(vector, i * width, offsets, taps[k], cv)
                    _expert_curvature(u, cv, weight, nu_sq, p[kw - 1 : kw - 1 + n])
                else:
                    _expert_slope(u, weight, nu_sq, p[kw - 1 : kw - 1 + n])
                    if i >= top:
                        value += weights[k] * _expert_value(u, nu_sq)
            for i in range(top, bottom):
                row = target[i * width : (i + 1) * width]
                _add_taps(flat, (i - top + kh - 1) * pitch, back, taps[k], row)
        first, second = 0.0, 0.0
        for j in range(top * width, bottom * width):
            e = vector[j] if hessian else image[j] - vector[j]
            g = target[j] + e
            target[j] = g
            first += 0.5 * np.float64(e) * np.float64(e)
            second += np.float64(g) * np.float64(vector[j] if hessian else g)
        sums[0, block] = first + value
        sums[1, block] = second


@helper
def _sensitive_row(u, cq, nu_sq, slope, curved):
    """Slopes u / s and curvatures nu**2 cq / s**3 of a row, with <cq, u / s> and <curved, u>."""
    first, second = 0.0, 0.0
    for j in range(u.shape[0]):
        s_sq = u[j] * u[j] + nu_sq
        r = 1 / np.sqrt(s_sq)
        slope[j] = u[j] * r
        curved[j] = nu_sq * cq[j] * r / s_sq
    for j in range(u.shape[0]):
        first += np.float64(cq[j]) * np.float64(slope[j])
        second += np.float64(curved[j]) * np.float64(u[j])
    return first, second


@helper
def _dots(q, slope, x, curved):
    """<q, slope> + <x, curved>."""
    total = 0.0
    for j in range(slope.shape[0]):
        total += np.float64(q[j] * slope[j] + x[j] * curved[j])
    return total


@kernel
def _foe_jacobian_t(x, q, taps, weights, nus, offsets, shape, kernel_shape, partial, rows, lo, hi):
    height, width = shape
    kh, kw = kernel_shape
    tiles = (height + _TILE - 1) // _TILE
    n = width - kw + 1
    u, cq, slope, curved = rows[0], rows[1], rows[2], rows[3]
    for block in range(lo, hi):
        b, top = block // tiles, (block % tiles) * _TILE
        image, vector = x[b], q[b]
        for k in range(taps.shape[0]):
            nu_sq, sums = x.dtype.type(nus[k] * nus[k]), partial[block, k]
            sums[:] = 0
            for i in range(top, min(top + _TILE, height - kh + 1)):
                u[:] = 0
                cq[:] = 0
                _add_taps(image, i * width, offsets, taps[k], u)
                _add_taps(vector, i * width, offsets, taps[k], cq)
                first, second = _sensitive_row(u, cq, nu_sq, slope, curved)
                sums[0] += weights[k] * first
                sums[1] -= weights[k] * second
                for t in range(kh * kw):
                    start = i * width + offsets[t]
                    dot = _dots(vector[start : start + n], slope, image[start : start + n], curved)
                    sums[2 + t] += weights[k] * dot


class _Experts:
    """Filters as the loops take them: rows of taps, filled up with zeros to whole groups, and where they look."""

    def __init__(self, x: np.ndarray, filters: np.ndarray) -> None:
        (count, kh, kw), width = filters.shape, x.shape[2]
        size = -(-kh * kw // _GROUP) * _GROUP
        self.taps = np.zeros((count, size), x.dtype)
        self.taps[:, : kh * kw] = filters.reshape(count, -1)
        i, j = np.divmod(np.arange(kh * kw), kw)
        self.offsets, self.back = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self.offsets[: kh * kw] = i * width + j
        self.back[: kh * kw] = kw - 1 - j - i * (width + kw - 1)
        self.shape, self.kernel_shape = x.shape[1:], (kh, kw)
        self.blocks = x.shape[0] * -(-x.shape[1] // _TILE)
        self.work = x.size * count * kh * kw / 4

    def blockwise(
        self, x: np.ndarray, v: np.ndarray, weights: np.ndarray, nus: np.ndarray, hessian: bool, out: np.ndarray
    ) -> np.ndarray:
        """Run `_foe_blocks`; returns its two sums."""
        (_, width), (kh, kw), sums = self.shape, self.kernel_shape, np.empty((2, self.blocks))
        x, v, out = (image.reshape(len(image), -1) for image in (x, v, out))

        def task(lo: int, hi: int) -> None:
            slopes = np.zeros((_TILE + kh - 1, width + kw - 1), x.dtype)
            u, cv = np.empty((2, width - kw + 1), x.dtype)
            _foe_blocks(
                x, v, self.taps, weights, positive(nus, x), self.offsets, self.back, self.shape, self.kernel_shape,
                hessian, out, sums, slopes, u, cv, lo, hi,
            )  # fmt: skip

        run_blocks(task, self.blocks, self.work)
        return sums.sum(axis=1)


def foe_gradient(
    x: np.ndarray, y: np.ndarray, filters: np.ndarray, weights: np.ndarray, nus: np.ndarray, out: np.ndarray
) -> tuple[float, float]:
    """Value and norm of the gradient, which is written to `out`."""
    value, norm_sq = _Experts(x, filters).blockwise(x, y, weights, nus, False, out)
    return float(value), math.sqrt(norm_sq)


def foe_hvp(
    x: np.ndarray, v: np.ndarray, filters: np.ndarray, weights: np.ndarray, nus: np.ndarray, out: np.ndarray
) -> float:
    """Product of the Hessian at x with v, written to `out`; returns <v, H v>."""
    return float(_Experts(x, filters).blockwise(x, v, weights, nus, True, out)[1])


def foe_jacobian_t(
    x: np.ndarray, q: np.ndarray, filters: np.ndarray, weights: np.ndarray, nus: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """<q, d grad / d .> for log weights (K,), log smoothings (K,) and filters (K, kh, kw), float64."""
    experts = _Experts(x, filters)
    kh, kw = experts.kernel_shape
    partial = np.empty((experts.blocks, len(filters), 2 + kh * kw))
    flat_x, flat_q = x.reshape(len(x), -1), q.reshape(len(q), -1)

    def task(lo: int, hi: int) -> None:
        rows = np.empty((4, x.shape[2] - kw + 1), x.dtype)
        _foe_jacobian_t(
            flat_x, flat_q, experts.taps, weights, positive(nus, x), experts.offsets, experts.shape,
            experts.kernel_shape, partial, rows, lo, hi,
        )  # fmt: skip

    run_blocks(task, experts.blocks, 2 * experts.work)
    total = partial.sum(axis=0)
    return total[:, 0], total[:, 1], total[:, 2:].reshape(filters.shape)
