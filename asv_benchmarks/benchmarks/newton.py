"""High accuracy at small regularisations: Newton's methods, one thread, to a residual of 1e-9 that is truly reached."""

from __future__ import annotations

import math

import numpy as np

from . import peers, problems, timing

RESIDUAL = 1e-9
KINDS = ("uniform", "line", "points", "images")


def mixed(index: int, seed: int = 100) -> problems.Problem:
    """One of a series of hard problems of small size, each of other sizes, costs, weights and regularisation.

    The costs take turns: independent uniform ones, some of few values; squared distances on a line; powers of the
    distance of points in 2 to 64 dimensions, some of which coincide; L1 distances on grids. The weights: all equal,
    spread over orders of magnitude, some zero, or spots. `reg` is 1e-5 to 1e-2 of the range of the cost.
    """
    rng = np.random.default_rng([seed, index])
    n, m = rng.integers(20, 201, size=2)
    kind, variant = index % 4, index // 4
    if kind == 0:
        C = rng.random((n, m))
        C = C if variant % 2 else np.round(C, 2)
        x, y = rng.random((n, 1)), rng.random((m, 1))
    elif kind == 1:
        x, y = np.linspace(0, 5, n)[:, None], np.linspace(0, 5, m)[:, None]
        C = (x - y.T) ** 2
    elif kind == 2:
        d = 2 ** int(rng.integers(1, 7))
        x, y = rng.normal(size=(n, d)), 0.5 + rng.normal(size=(m, d))
        y[: m // 10] = x[rng.integers(n, size=m // 10)]
        C = problems.squared_distances(x, y) ** (1.0, 0.5, 1.5)[variant % 3]
    else:
        x, y = (_grid(max(4, math.isqrt(size))) for size in (n, m))
        C = sum(np.abs(x[:, k, None] - y[:, k]) for k in range(2))
    a, b = (_weights(rng, points, (variant + side) % 4) for side, points in enumerate((x, y)))
    return problems.Problem(a, b, float((C.max() - C.min()) * 10 ** rng.uniform(-5, -2)), matrix=C)


def _grid(side: int) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.linspace(0, 1, side)] * 2), axis=-1).reshape(-1, 2)


def _weights(rng: np.random.Generator, points: np.ndarray, kind: int) -> np.ndarray:
    """Weights with the sum 1: equal, spread, with zeros, or spots."""
    n = len(points)
    weights = rng.dirichlet(np.full(n, (1.0, 0.3, 1.0, 1.0)[kind])) + 1e-12
    if kind == 0:
        weights = np.ones(n)
    elif kind == 2:
        weights[rng.random(n) < 0.3] = 0
    elif kind == 3:
        width = 0.2 * np.ptp(points)
        spots = points[rng.integers(n, size=3)]
        weights = 1e-3 + sum(np.exp(-((points - spot) ** 2).sum(1) / (2 * width**2)) for spot in spots)
    return weights / weights.sum()


class Families:
    """The kinds of cost matrix that regot is tested on; not a number where a library does not get there."""

    params = (list(peers.NEWTON), ["uniform", "points", "line", "images"], [1e-3, 1e-4, 1e-5], [484, 1936])
    param_names = ("library", "family", "reg", "n")
    timeout = 900
    limit = 60.0
    seed = 100  #: not among those that the solvers were tuned on

    def setup(self, library: str, family: str, reg: float, n: int) -> None:
        if library.startswith("regot") and n > 484:
            raise NotImplementedError("regot takes minutes here")
        self.input = problems.regot_family(family, n, reg, self.seed)
        self.run = peers.prepare(library, self.input)

    def track_seconds(self, library: str, family: str, reg: float, n: int) -> float:
        factor = 1.0 if library.startswith("ot_numba") else 10.0  # our tol is a promise about the residual
        try:
            tol, cap, reached, _ = timing.loosest(self.run, self.input, RESIDUAL, self.limit, factor=factor)
        except RuntimeError:  # regot's L-BFGS raises where its line search fails
            return math.nan
        return timing.typical(lambda: timing.seconds(lambda: self.run(cap, tol))) if reached <= RESIDUAL else math.nan

    track_seconds.unit = "seconds"


class HighDimension(Families):
    """Gaussian mixtures in 64 dimensions, where the plan is nearly an assignment."""

    params = (list(peers.NEWTON), ["clouds"], [0.005], [1000])

    def setup(self, library: str, family: str, reg: float, n: int) -> None:
        self.input = problems.clouds(n, 64, share=reg, seed=self.seed)
        self.run = peers.prepare(library, self.input)


class Methods:
    """Each way to solve Newton's systems against `auto`, which should be within 1.5 times the fastest."""

    params = (
        ["auto", "semidual", "pcg", "sparse"],
        ["uniform", "points", "line", "images"],
        [1e-3, 1e-4, 1e-5],
    )
    param_names = ("method", "family", "reg")
    timeout = 300

    def setup(self, method: str, family: str, reg: float) -> None:
        import ot_numba

        ot_numba.set_num_threads(1)
        if method == "pcg" and family == "uniform" and reg < 1e-3:
            raise NotImplementedError("tens of thousands of products")
        self.input = problems.regot_family(family, 484, reg, 100)
        self.time_solve(method, family, reg)  # compiles

    def time_solve(self, method: str, family: str, reg: float) -> None:
        import ot_numba

        p = self.input
        ot_numba.sinkhorn_newton(p.C, p.a, p.b, reg=reg, method=method, tol=RESIDUAL)
