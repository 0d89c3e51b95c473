"""Clocks: time per iteration, and time to a residual that is truly reached."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

from .peers import Run
from .problems import Problem, residual

FIRST = (
    2  #: iterations of the shorter run; the longer has a multiple of 10 more, the period of the peers' checks
)


Clock = Callable[[], float]


def seconds(call: Callable[[], object], clock: Clock = time.process_time) -> float:
    """Time of a call: of the processor, so that waiting for one does not count. All libraries run on one thread."""
    start = clock()
    call()
    return clock() - start


def per_iteration(run: Run, iterations: int, clock: Clock = time.process_time) -> float:
    """Seconds per iteration: the slope between two numbers of iterations, in which all that is done once cancels.

    A run before them takes the page faults of memory that the system has taken back in the meantime.
    """
    run(FIRST, 0.0)
    short = seconds(lambda: run(FIRST, 0.0), clock)
    return (seconds(lambda: run(FIRST + iterations, 0.0), clock) - short) / iterations


def enough_iterations(run: Run, wanted: float = 0.3) -> int:
    """Iterations that take about so many seconds, and twice what is done once; compiles all that they need."""
    run(FIRST, 0.0)
    once = seconds(lambda: run(FIRST, 0.0))
    if once > 2 * FIRST:  # seconds for each: checks no longer matter
        return FIRST
    run(FIRST + 10, 0.0)
    iterations = 10 * max(1, min(50, round(max(wanted, 2 * once) / max(10 * per_iteration(run, 10), 1e-6))))
    run(FIRST + iterations, 0.0)
    return iterations


def loosest(
    run: Run, problem: Problem, wanted: float, limit: float, *, factor: float = 10.0
) -> tuple[float, int, float, float]:
    """`tol`, iteration cap, residual and time of the loosest run that truly reaches the wanted residual.

    Starts at ``factor * wanted`` and tightens as the residual asks for. The cap keeps a run of plain iterations below
    about `limit` seconds, and a run of that length is the last. If none gets there, the residual is not <= `wanted`.
    """
    cap = max(
        FIRST + 10, min(100_000, int(limit / max(per_iteration(run, enough_iterations(run, 0.05)), 1e-6)))
    )
    while True:
        start = time.process_time()
        answer = run(cap, factor * wanted)
        taken = time.process_time() - start
        error = residual(problem, answer)
        if error <= wanted or not math.isfinite(error) or factor < 1e-3 or taken > 0.8 * limit:
            return factor * wanted, cap, error, taken
        factor *= min(0.7, 0.95 * wanted / error)


def typical(sample: Callable[[], float], rounds: int = 3) -> float:
    """Median of a few times."""
    return statistics.median(sample() for _ in range(rounds))
