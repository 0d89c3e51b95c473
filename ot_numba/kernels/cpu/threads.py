"""The package's own threads: they share out serial, GIL-free kernels by blocks of rows.

Numba's threading layers abort where two Python threads enter them at once, or hang after a fork. Here the
calling thread does the work and idle workers help: a part that no worker has begun is run by the caller, so
that a missing, busy or dismissed worker costs time and never a deadlock.
"""

import itertools
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

__all__ = ["get_num_threads", "run_blocks", "set_num_threads"]

# Below this many matrix entries (~0.3 ms) waking a second thread gains nothing.
_SERIAL_BELOW = 500_000


class _Job:
    """One call of `run_blocks`."""

    def __init__(self, task: Callable[[int, int], Any], bounds: list[int]) -> None:
        self.task = task
        self.parts = dict(enumerate(itertools.pairwise(bounds)))
        self.results: list[Any] = [None] * len(self.parts)
        self.errors: dict[int, BaseException] = {}
        self.helpers: set[int] = set()
        self.left: SimpleQueue[None] = SimpleQueue()

    def run(self, i: int) -> None:
        """Run part i, unless somebody has taken it or another part has failed."""
        part = self.parts.pop(i, None)  # atomic: one thread gets the part
        if part is None or self.errors:
            return
        try:
            self.results[i] = self.task(*part)
        except BaseException as error:  # raised by the caller, once nobody writes to its arrays any more
            self.errors[i] = error

    def help(self, i: int) -> None:
        """What a worker does: `run`, seen by `wait`."""
        self.helpers.add(i)  # before the part is taken, so that `wait` misses no one
        self.run(i)
        self.helpers.discard(i)
        self.left.put(None)

    def wait(self) -> None:
        """Return when no worker is at it."""
        while self.helpers:
            self.left.get()


class _Pool:
    """Sleeping workers, a queue each: every iteration gives a worker the same rows, still in its cache."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.queues: list[SimpleQueue[_Job | None]] = []
        self.local = threading.local()

    def grow(self, n_workers: int) -> None:
        """Start workers until there are n_workers, or as many as the system allows."""
        with self.lock:
            while len(self.queues) < n_workers:
                queue: SimpleQueue[_Job | None] = SimpleQueue()
                i = len(self.queues) + 1
                worker = threading.Thread(target=self.work, args=(queue, i), name=f"ot_numba-{i}")
                worker.daemon = True
                try:
                    worker.start()
                except RuntimeError:
                    return
                self.queues.append(queue)

    def shrink(self, n_workers: int) -> None:
        """Dismiss workers until there are at most n_workers."""
        with self.lock:
            while len(self.queues) > n_workers:
                self.queues.pop().put(None)

    def work(self, queue: SimpleQueue[_Job | None], i: int) -> None:
        """Body of worker i: offer to run part i of each job."""
        self.local.inside = True
        while (job := queue.get()) is not None:
            job.help(i)
            del job  # a sleeping worker must not keep arrays alive


_pool = _Pool()
_num_threads: int | None = None


def _forget_pool() -> None:
    """In a forked child the workers do not exist, and the lock may be held for ever."""
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _default_num_threads() -> int:
    """From the environment, else the processors this process may run on."""
    for variable in ("OT_NUMBA_NUM_THREADS", "NUMBA_NUM_THREADS"):
        if text := os.environ.get(variable, "").strip():
            if not text.isdecimal() or int(text) < 1:
                raise ValueError(f"environment variable {variable} must be a positive integer, got {text!r}")
            return int(text)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def get_num_threads() -> int:
    """Number of threads among which the compiled CPU loops share out their rows.

    Returns
    -------
    int
        What `set_num_threads` was given; before that the environment variable ``OT_NUMBA_NUM_THREADS``, else
        ``NUMBA_NUM_THREADS`` (which joblib sets in its worker processes), else the number of processors that
        this process may run on.

    Raises
    ------
    ValueError
        If the environment variable is not a positive integer.

    Examples
    --------
    >>> from ot_numba.kernels.cpu.threads import get_num_threads
    >>> get_num_threads() >= 1
    True
    """
    return _default_num_threads() if _num_threads is None else _num_threads


def set_num_threads(n: int) -> None:
    """Set the number of threads among which the compiled CPU loops of this process share out their rows.

    Results do not depend on it, to the last bit.

    Parameters
    ----------
    n : int
        Number of threads, the calling one included; 1 keeps all work in the calling thread.

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If `n` is less than 1.

    Examples
    --------
    >>> from ot_numba.kernels.cpu.threads import get_num_threads, set_num_threads
    >>> before = get_num_threads()
    >>> set_num_threads(1)
    >>> get_num_threads()
    1
    >>> set_num_threads(before)
    """
    global _num_threads
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"n must be an integer, got {n!r}")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n!r}")
    _num_threads = n.__index__()
    _pool.shrink(_num_threads - 1)


def run_blocks(task: Callable[[int, int], Any], n_blocks: int, work: float) -> list[Any]:
    """Call ``task(lo, hi)`` over contiguous parts of ``range(n_blocks)``, one per thread, and wait for all.

    For the same bits from any number of threads, `task` must treat each block by itself.

    Parameters
    ----------
    task : callable
        ``task(lo, hi)`` treats blocks ``lo <= block < hi``. It runs in several threads at once, which gains
        while it is in GIL-free compiled code. A `run_blocks` called from inside it is serial.
    n_blocks : int
        Number of blocks.
    work : float
        Number of matrix entries that all blocks touch together; under 5e5 there is one part.

    Returns
    -------
    list
        What `task` returned, part by part in the order of the blocks.

    Raises
    ------
    Exception
        What `task` raised, the first in the order of the blocks; parts not begun by then are left out.

    Examples
    --------
    >>> from ot_numba.kernels.cpu.threads import run_blocks
    >>> parts = run_blocks(lambda lo, hi: sum(range(lo, hi)), 100, work=1e6)
    >>> sum(parts)
    4950
    """
    pool = _pool
    n_parts = 1 if work < _SERIAL_BELOW or n_blocks < 2 else min(n_blocks, get_num_threads())
    if n_parts == 1 or getattr(pool.local, "inside", False):
        return [task(0, n_blocks)]
    if len(pool.queues) < n_parts - 1:
        pool.grow(n_parts - 1)
    job = _Job(task, [n_blocks * i // n_parts for i in range(n_parts + 1)])
    for _, queue in zip(range(n_parts - 1), tuple(pool.queues), strict=False):
        queue.put(job)
    pool.local.inside = True
    try:
        for i in range(n_parts):
            job.run(i)
        job.wait()
    finally:  # interrupted or not, leave nobody behind
        pool.local.inside = False
        job.parts.clear()
        job.wait()
    if job.errors:
        try:
            raise job.errors[min(job.errors)]
        finally:
            job.errors.clear()  # the traceback refers to the job: no cycle that keeps its arrays alive
    return job.results
