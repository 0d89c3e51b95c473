"""What makes Sinkhorn's fixed-point iteration converge in fewer steps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..arrays.namespaces import array_namespace, to_numpy
from ..arrays.validation import dtype_name

Array = Any
RIDGE = 1e-10  #: of Anderson's least squares, relative to the squared residual
LONGEST = {"float64": 200.0, "float32": 20.0}  #: bits that an extrapolation may add to a plain step


class Relaxation:
    r"""Adaptive over-relaxation.

    Near the solution plain Sinkhorn contracts by :math:`s^2`, where s is the second singular value of
    :math:`diag(a)^{-1/2} P diag(b)^{-1/2}`; the best factor is :math:`2 / (1 + \sqrt{1 - s^2})`. From the observed rate
    :math:`\lambda` under a factor w, Young's relation :math:`(\lambda + w - 1)^2 = \lambda w^2 s^2` gives s.  The rule
    that decides when to trust it is a heuristic: an error that grows over two windows lowers the factor.

    References
    ----------
    Thibault, Chizat, Dossal, Papadakis, "Overrelaxed Sinkhorn-Knopp algorithm for regularized optimal transport",
    Algorithms 14(5), 2021. Lehmann, von Renesse, Sambale, Uschmajew, "A note on overrelaxation in the Sinkhorn
    algorithm", Optimization Letters 16, 2022.
    """

    window = 10
    largest = 1.99

    def __init__(self) -> None:
        self.factor = 1.0
        self._errors: list[float] = []
        self._previous_rate = 2.0

    def observe(self, error: float) -> None:
        """Take in the error of one more iteration, and adapt the factor."""
        errors, window = self._errors, self.window
        errors.append(error)
        if len(errors) < 2 * window or len(errors) % window or not errors[-1 - window] > 0:
            return
        w = self.factor
        rate = (error / errors[-1 - window]) ** (1 / window)
        if w > 1 and error > 3 * errors[-2 * window]:
            self._change(1 + 0.8 * (w - 1))
        elif w - 1 < rate < 1 and abs(rate - self._previous_rate) < 0.3 * (1 - rate) + 1e-4:
            squared = min((rate + w - 1) ** 2 / (rate * w * w), 0.999999)
            better = min(2 / (1 + math.sqrt(1 - squared)), self.largest)
            if 2 - better < 0.85 * (2 - w):
                self._change(better)
        self._previous_rate = rate

    def _change(self, factor: float) -> None:
        self.factor = factor
        self._errors.clear()


class Anderson:
    r"""Anderson acceleration of the fixed point :math:`g = T(g)`.

    With residuals :math:`r_k = T(g_k) - g_k`, centred, the next point is :math:`\sum_k w_k T(g_k)` where w minimises
    :math:`\|\sum_k w_k r_k\|` with :math:`\sum_k w_k = 1`.

    References
    ----------
    Anderson, "Iterative procedures for nonlinear integral equations", Journal of the ACM 12(4), 1965.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self._points: list[Array] = []
        self._residuals: list[Array] = []

    def clear(self) -> None:
        """Forget the past."""
        self._points.clear()
        self._residuals.clear()

    def propose(self, before: Array, after: Array) -> Array:
        """Point to go on from, given the latest ``after = T(before)``."""
        xp = array_namespace(after)
        finite = xp.isfinite(after)
        point = xp.astype(xp.where(finite, after, xp.zeros_like(after)), xp.float64)
        residual = xp.where(finite, point - before, xp.zeros_like(point))
        mean = xp.sum(residual) / xp.sum(xp.astype(finite, xp.float64))
        self._points.append(point)
        self._residuals.append(xp.where(finite, residual - mean, residual))
        del self._points[: -self.memory], self._residuals[: -self.memory]
        R = xp.stack(self._residuals)
        gram = np.asarray(to_numpy(R @ R.T))
        ridge = RIDGE * gram[-1, -1]
        if len(gram) == 1 or not ridge > 0:
            return after
        # weights of the older points; the ridge draws them to 0, the plain step, where all residuals are alike
        cross = gram[:-1, -1]
        differences = gram[:-1, :-1] - cross[:, None] - cross + gram[-1, -1]
        system = differences / ridge + np.eye(len(cross))
        weights = np.linalg.lstsq(system, (gram[-1, -1] - cross) / ridge)[0]
        weights = [*weights, 1 - weights.sum()]
        mixed = sum(float(w) * p for w, p in zip(weights, self._points, strict=True))
        if not float(xp.max(xp.abs(mixed - point))) <= LONGEST[dtype_name(after.dtype)]:
            self.clear()
            return after
        return xp.where(finite, xp.astype(mixed, after.dtype), after)
