"""Time per iteration on more than one thread."""

from __future__ import annotations

import time

from . import peers, problems, timing


class Threads:
    params = ([1, 2], ["ot_numba log", "ot_numba kernel", "ot_numba online"])
    param_names = ("threads", "method")
    timeout = 300

    def setup(self, threads: int, method: str) -> None:
        import ot_numba

        ot_numba.set_num_threads(threads)
        self.run = peers.prepare(method, problems.clouds(4000))

    def track_seconds_per_iteration(self, threads: int, method: str) -> float:
        count = timing.enough_iterations(self.run)
        return timing.typical(lambda: timing.per_iteration(self.run, count, time.perf_counter))

    track_seconds_per_iteration.unit = "seconds"
