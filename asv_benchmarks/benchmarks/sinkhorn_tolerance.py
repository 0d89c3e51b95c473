"""Time to a residual that is truly reached, each library with the loosest tolerance of its own that does it."""

from __future__ import annotations

import math

from . import peers, problems, timing


class Clouds:
    """Gaussian mixtures in the plane; not a number where a library does not get there in a minute."""

    params = (list(peers.SOLVERS), [1000, 4000], [0.05, 0.005], [1e-3, 1e-6, 1e-9])
    param_names = ("library", "n", "share", "residual")
    timeout = 900
    limit = 60.0

    def problem(self, size: int, share: float) -> problems.Problem:
        return problems.clouds(size, share=share)

    def setup(self, library: str, size: int, share: float, residual: float) -> None:
        if library.startswith("regot") and size == 4000:
            raise NotImplementedError("regot takes minutes here")
        self.input = self.problem(size, share)
        self.run = peers.prepare(library, self.input)

    def track_seconds(self, library: str, size: int, share: float, residual: float) -> float:
        factor = 1.0 if library in peers.OURS else 10.0  # our tol is a promise about the residual
        tol, cap, reached, _ = timing.loosest(self.run, self.input, residual, self.limit, factor=factor)
        return timing.typical(lambda: timing.seconds(lambda: self.run(cap, tol))) if reached <= residual else math.nan

    track_seconds.unit = "seconds"


class Squares(Clouds):
    """Uniform points in the unit square, unequal weights."""

    params = (list(peers.SOLVERS), [1000], [0.05, 0.005], [1e-6, 1e-9])

    def problem(self, size: int, share: float) -> problems.Problem:
        return problems.squares(size, share=share)


class Colours(Squares):
    """Colours of two photographs."""

    def problem(self, size: int, share: float) -> problems.Problem:
        try:
            return problems.colours(size, share=share)
        except ImportError as error:
            raise NotImplementedError(f"the photographs are left out: {error}") from error


class RegotFamilies(Clouds):
    """The kinds of cost matrix that regot is tested on."""

    params = (
        [s for s in peers.SOLVERS if s != "ot_numba online"],
        ["uniform", "points", "line", "images"],
        [1e-3, 1e-4],
        [1e-9],
    )
    param_names = ("library", "family", "reg", "residual")

    def problem(self, size: str, share: float) -> problems.Problem:
        return problems.regot_family(size, 484, share)
