"""High accuracy at small regularisations: Newton's methods, one thread, to a residual of 1e-9 that is truly reached."""

from __future__ import annotations

import math

from . import peers, problems, timing

RESIDUAL = 1e-9


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
