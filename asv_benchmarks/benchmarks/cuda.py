"""The same iterations on a GPU, timed by its own clock; left out where CuPy finds none."""

from __future__ import annotations

from . import problems, timing


def events() -> timing.Clock:
    """A clock of the device, in seconds, which waits for what was asked of it before."""
    import cupy

    start = cupy.cuda.Event()
    start.record()

    def now() -> float:
        event = cupy.cuda.Event()
        event.record()
        event.synchronize()
        return 1e-3 * cupy.cuda.get_elapsed_time(start, event)

    return now


class OnCard:
    params = (["log", "kernel", "points"], [1000, 4000, 10_000], ["float64", "float32"])
    param_names = ("method", "n", "dtype")
    timeout = 300

    def setup(self, method: str, n: int, dtype: str) -> None:
        from ot_numba import PointCloud, show_config, sinkhorn

        if show_config().gpu.startswith("none: "):
            raise NotImplementedError(show_config().gpu)
        import cupy

        problem = problems.clouds(n).astype(dtype)
        a, b, x, y = (cupy.asarray(v) for v in (problem.a, problem.b, problem.x, problem.y))
        C = PointCloud(x, y) if method == "points" else cupy.asarray(problem.C)
        options = {"method": "kernel" if method == "kernel" else "log", "relaxation": 1, "reg_schedule": None}

        def run(max_iter: int, tol: float) -> None:
            sinkhorn(C, a, b, reg=problem.reg, tol=tol, max_iter=max_iter, on_fail="ignore", **options)

        self.run, self.entries, self.clock = run, n * n, events()

    def track_seconds_per_iteration(self, method: str, n: int, dtype: str) -> float:
        count = timing.enough_iterations(self.run)
        return timing.typical(lambda: timing.per_iteration(self.run, count, self.clock))

    track_seconds_per_iteration.unit = "seconds"

    def track_entries_per_second(self, method: str, n: int, dtype: str) -> float:
        """Entries of the plan visited: what the headers of the CUDA sources bound."""
        return self.entries / self.track_seconds_per_iteration(method, n, dtype)

    track_entries_per_second.unit = "1/s"
