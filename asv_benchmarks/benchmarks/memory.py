"""Peak memory of a process that runs a few iterations; a cost matrix of this size takes 128 MB."""

from __future__ import annotations

from . import peers, problems


class Peak:
    params = ([*peers.DENSE, *peers.ONLINE],)
    param_names = ("library",)
    timeout = 300

    def setup(self, library: str) -> None:
        problem = problems.clouds(4000)
        self.run = peers.prepare(library, problem)

    def peakmem_iterations(self, library: str) -> None:
        self.run(4, 0.0)
