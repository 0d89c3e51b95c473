"""The terms of the primal and the dual objective that depend on the marginals and the potentials alone."""

from __future__ import annotations

import math
from typing import Any

from .problem import Problem

Array = Any


def pair(xp: Any, potential: Array, weights: Array) -> float:
    """<potential, weights> in float64; what has no weight does not count."""
    counted = xp.where(weights > 0, potential, xp.zeros_like(potential))
    return float(xp.sum(xp.astype(counted, xp.float64) * xp.astype(weights, xp.float64)))


def marginal_target(xp: Any, weights: Array, potential: Array, rho: float) -> Array:
    """Marginal that the optimality conditions ask for, ``weights * exp(-potential / rho)``, in float64."""
    weights = xp.astype(weights, xp.float64)
    if math.isinf(rho):
        return weights
    exponent = xp.where(weights > 0, -xp.astype(potential, xp.float64) / rho, xp.zeros_like(weights))
    return weights * xp.exp(exponent)


def marginal_residual(problem: Problem, f: Array, g: Array, r: Array, c: Array) -> float:
    """L1 distance of the marginals r, c from what the optimality conditions ask for, relative to the mass."""
    xp, total = problem.xp, 0.0
    for sums, potential, weights, rho in zip((r, c), (f, g), (problem.a, problem.b), problem.rho, strict=True):
        total += float(xp.sum(xp.abs(sums - marginal_target(xp, weights, potential, rho))))
    return total / problem.mass


def objectives(problem: Problem, f: Array, g: Array, r: Array, c: Array) -> tuple[float, float]:
    r"""Primal objective at the plan of f, g, whose marginals are r, c, and dual objective at f, g.

    Since :math:`reg \log(P / Q) = f + g - C` for the reference measure Q of the regulariser, neither needs C.
    """
    xp = problem.xp
    excess = problem.reg * (float(xp.sum(r)) - problem.reference_mass)
    value, dual_value = -excess, -excess
    for sums, potential, weights, rho in zip((r, c), (f, g), (problem.a, problem.b), problem.rho, strict=True):
        value += pair(xp, potential, sums)
        if math.isinf(rho):
            dual_value += pair(xp, potential, weights)
        else:
            value += rho * _relative_entropy(xp, sums, weights)
            dual_value -= rho * float(xp.sum(marginal_target(xp, weights, potential, rho) - weights))
    return value, dual_value


def _relative_entropy(xp: Any, p: Array, q: Array) -> float:
    """``KL(p | q) = sum p log(p / q) - p + q``; entries with p = 0 or q = 0 count q."""
    q = xp.astype(q, xp.float64)
    both = (p > 0) & (q > 0)
    ratio = xp.where(both, p, xp.ones_like(p)) / xp.where(both, q, xp.ones_like(q))
    return float(xp.sum(p * xp.log(ratio) - p + q))
