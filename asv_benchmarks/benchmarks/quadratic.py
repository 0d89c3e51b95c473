"""Quadratic and cardinality-constrained transport, one thread: to a marginal error that is truly reached."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import problems, timing

RESIDUAL = 1e-8
LIBRARIES = ("ot_numba", *(f"regot {s}" for s in ("grssn", "assn", "lbfgs_semi_dual", "lbfgs_dual", "bcd")))


def prepare(library: str, problem: problems.Problem) -> Callable[[int, float], Any]:
    """Set a library up for a problem; ``run(max_iter, tol)`` returns its plan."""
    if library == "ot_numba":
        import ot_numba

        ot_numba.set_num_threads(1)

        def run(max_iter: int, tol: float) -> np.ndarray:
            options = {"reg": problem.reg, "tol": tol, "max_iter": max_iter, "on_fail": "ignore"}
            return ot_numba.quadratic_ot(problem.C, problem.a, problem.b, **options).plan

        return run
    try:
        import regot
    except ImportError as error:
        raise NotImplementedError(f"{library} is left out: {error}") from error
    solve = getattr(regot, f"qrot_{library.removeprefix('regot ')}")
    C = np.asfortranarray(problem.C)

    def run_regot(max_iter: int, tol: float) -> np.ndarray:
        tol /= len(problem.b) ** 0.5  # its rule is on an L2 norm
        return np.asarray(solve(C, problem.a, problem.b, problem.reg, tol=tol, max_iter=max_iter).plan)

    return run_regot


class Quadratic:
    """Time to the residual against regot; not a number where a library does not get there."""

    params = (list(LIBRARIES), ["uniform", "points", "images"], [1e-1, 1e-2, 1e-3], [256, 1000])
    param_names = ("library", "family", "reg", "n")
    timeout = 900
    limit = 60.0
    seed = 17  #: not among those that the solver was tuned on

    def setup(self, library: str, family: str, reg: float, n: int) -> None:
        if library.startswith("regot") and n > 256 and (reg < 1e-1 or library != "regot grssn"):
            raise NotImplementedError("regot takes minutes here")
        self.input = problems.regot_family(family, n, reg, self.seed)
        self.run = prepare(library, self.input)

    def track_seconds(self, library: str, family: str, reg: float, n: int) -> float:
        factor = 1.0 if library == "ot_numba" else 10.0  # our tol is a promise about the residual
        try:
            tol, cap, reached, _ = timing.loosest(self.run, self.input, RESIDUAL, self.limit, factor=factor)
        except RuntimeError:  # regot's L-BFGS raises where its line search fails
            return math.nan
        return timing.typical(lambda: timing.seconds(lambda: self.run(cap, tol))) if reached <= RESIDUAL else math.nan

    track_seconds.unit = "seconds"


class EasyQuadratic(Quadratic):
    """Strong regularisation: n times that of the others, the size of an entry of the plan taken out."""

    params = (list(LIBRARIES[:4]), ["uniform", "points", "images"], [1e-1, 1e-2, 1e-3], [256, 1000])

    def setup(self, library: str, family: str, reg: float, n: int) -> None:
        if library.startswith("regot") and n > 256 and library != "regot grssn":
            raise NotImplementedError("regot takes minutes here")
        self.input = problems.regot_family(family, n, reg * n, self.seed)
        self.run = prepare(library, self.input)


class Sparse:
    """Cardinality-constrained plans between 256 colours: strict, and with both marginals."""

    params = ([1, 2, 4, 8, 16], [0.0, 0.1, 0.01], ["auto", "lbfgs"])
    param_names = ("k", "relax", "solver")

    def setup(self, k: int, relax: float, solver: str) -> None:
        import ot_numba

        ot_numba.set_num_threads(1)
        rng = np.random.default_rng(0)
        x, y = rng.beta(2, 2, (256, 3)), np.clip(rng.beta(2, 5, (256, 3)) * [1, 0.8, 1.2], 0, 1)
        self.weights = rng.dirichlet(2 * np.ones(256)), rng.dirichlet(2 * np.ones(256))
        self.C = problems.squared_distances(x, y)
        self.time_solve(k, relax, solver)  # compiles

    def time_solve(self, k: int, relax: float, solver: str) -> None:
        import ot_numba

        options = {"k": k, "relax": relax, "solver": solver, "max_iter": 500, "on_fail": "ignore"}
        ot_numba.sparsity_constrained_ot(self.C, *self.weights, **options)


class Routing:
    """Groups of tokens to experts, 20 steps of Adam."""

    params = ([1, 8], [256, 2048], [16, 64])
    param_names = ("groups", "tokens", "experts")

    def setup(self, groups: int, tokens: int, experts: int) -> None:
        import ot_numba

        ot_numba.set_num_threads(1)
        scores = np.exp(np.random.default_rng(0).normal(size=(groups, tokens, experts)))
        self.scores = scores / scores.sum(axis=-1, keepdims=True)
        self.time_route(groups, tokens, experts)  # compiles

    def time_route(self, groups: int, tokens: int, experts: int) -> None:
        import ot_numba

        ot_numba.route_tokens(self.scores)
