"""Time per plain Sinkhorn iteration, one update of either potential: the slope between two numbers of iterations."""

from __future__ import annotations

from . import peers, problems, timing


class _Iterations:
    param_names = ("library", "dimension", "n", "dtype")
    timeout = 600

    def setup(self, library: str, d: int, n: int, dtype: str) -> None:
        self.run = peers.prepare(library, problems.clouds(n, d).astype(dtype))

    def track_seconds_per_iteration(self, library: str, d: int, n: int, dtype: str) -> float:
        count = timing.enough_iterations(self.run)
        return timing.typical(lambda: timing.per_iteration(self.run, count))

    track_seconds_per_iteration.unit = "seconds"


class StoredCost(_Iterations):
    params = (list(peers.DENSE), [2], [1000, 4000], ["float64", "float32"])


class CostFromPoints(_Iterations):
    params = (list(peers.ONLINE), [2, 3, 64], [1000, 4000], ["float64", "float32"])
