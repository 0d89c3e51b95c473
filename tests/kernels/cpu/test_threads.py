"""The thread pool: order, errors, nesting, two callers at once, fork, interrupts, exit."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import numpy as np
import pytest

from ot_numba.kernels.cpu import threads
from ot_numba.kernels.cpu.jit import kernel
from ot_numba.kernels.cpu.threads import get_num_threads, run_blocks, set_num_threads

WORK = 1e9  # entries: enough for all threads


@pytest.fixture(autouse=True)
def _four_threads():
    before = threads._num_threads
    set_num_threads(4)
    yield
    threads._num_threads = before
    threads._pool.shrink(0)


@kernel(cache=False)
def _sum_of_roots(x, lo, hi, repeat):
    s = 0.0
    for _ in range(repeat):
        for i in range(lo, hi):
            s += np.sqrt(x[i] + s)
    return s


def _python(code, **environment):
    """Run code in a fresh interpreter; its output."""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("NUM_THREADS")} | environment
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


@pytest.mark.parametrize("n_blocks", [2, 3, 4, 5, 31, 100])
@pytest.mark.parametrize("n_threads", [1, 2, 3, 4, 9])
def test_parts_cover_the_blocks_in_order(n_blocks, n_threads):
    set_num_threads(n_threads)
    for _ in range(20):
        parts = run_blocks(lambda lo, hi: (lo, hi), n_blocks, WORK)
        assert len(parts) == min(n_blocks, n_threads)
        assert [i for lo, hi in parts for i in range(lo, hi)] == list(range(n_blocks))
        sizes = [hi - lo for lo, hi in parts]
        assert max(sizes) - min(sizes) <= 1


def test_parts_run_in_different_threads():
    barrier = threading.Barrier(4, timeout=20)  # passes only if four threads are in the task at once

    def task(lo, hi):
        barrier.wait()
        return threading.current_thread().name

    names = run_blocks(task, 4, WORK)
    assert names[0] == threading.current_thread().name
    assert names[1:] == ["ot_numba-1", "ot_numba-2", "ot_numba-3"]
    assert run_blocks(task, 4, WORK) == names  # rows stay with their worker


@pytest.mark.parametrize(
    ("n_threads", "n_blocks", "work"), [(4, 1, WORK), (1, 100, WORK), (4, 100, 4.9e5), (4, 0, WORK)]
)
def test_little_work_is_one_part_in_the_calling_thread(n_threads, n_blocks, work):
    set_num_threads(n_threads)
    here = threading.get_ident()
    assert run_blocks(lambda lo, hi: (lo, hi, threading.get_ident()), n_blocks, work) == [(0, n_blocks, here)]


def test_nested_calls_are_serial():
    inside = threading.Barrier(4, timeout=20)

    def task(lo, hi):
        inside.wait()
        return run_blocks(lambda a, b: (a, b, threading.get_ident()), 10, WORK), threading.get_ident()

    for inner, ident in run_blocks(task, 4, WORK):
        assert inner == [(0, 10, ident)]
    assert len(run_blocks(lambda lo, hi: lo, 10, WORK)) == 4  # outside again


@pytest.mark.parametrize("failing", [(0,), (1,), (3,), (0, 2), (1, 2, 3), (0, 1, 2, 3)])
def test_first_exception_in_block_order_is_raised_after_all_have_ended(failing):
    barrier = threading.Barrier(4, timeout=20)
    ended = []

    def task(lo, hi):
        barrier.wait()
        if lo in failing:
            raise ArithmeticError(lo)
        time.sleep(0.05)
        ended.append(lo)

    with pytest.raises(ArithmeticError) as caught:
        run_blocks(task, 4, WORK)
    assert caught.value.args == (failing[0],)
    assert sorted(ended) == sorted({0, 1, 2, 3} - set(failing))
    assert run_blocks(lambda lo, hi: lo, 4, WORK) == [0, 1, 2, 3]


def test_nothing_is_kept_alive():
    class Array:
        pass

    def call(fail):
        array = Array()

        def task(lo, hi, array=array):
            if fail and lo == 1:
                raise ArithmeticError(lo)

        with contextlib.suppress(ArithmeticError):
            run_blocks(task, 4, WORK)
        return weakref.ref(array)

    gc.disable()
    try:
        kept = [call(fail) for fail in (False, True) for _ in range(50)]
        deadline = (
            time.monotonic() + 20
        )  # a worker woken too late for a part drops the job when it comes to it
        while any(ref() is not None for ref in kept) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert all(ref() is None for ref in kept)
    finally:
        gc.enable()


def test_several_python_threads_at_once():
    x = np.random.default_rng(0).random(40_000)
    expected = [_sum_of_roots(x, i, i + 100, 1) for i in range(0, 40_000, 100)]
    wrong = []

    def task(lo, hi):
        return [_sum_of_roots(x, 100 * i, 100 * i + 100, 1) for i in range(lo, hi)]

    def use(n_threads):
        for _ in range(100):
            set_num_threads(n_threads)  # workers come and go under the others' calls
            set_num_threads(4)
            parts = run_blocks(task, 400, WORK)
            if [s for part in parts for s in part] != expected:
                wrong.append(parts)

    users = [threading.Thread(target=use, args=(n,), daemon=True) for n in (1, 2, 3, 4)]
    for user in users:
        user.start()
    for user in users:
        user.join(60)
        assert not user.is_alive()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("where", ["main thread", "other thread"])
def test_fork_after_use(where):
    x = np.ones(1000)

    def task(lo, hi):
        return _sum_of_roots(x, lo, hi, 1)

    expected = run_blocks(task, 1000, WORK)
    outcome = []

    def fork():
        child = os.fork()
        if child == 0:  # no return into pytest from here
            try:
                barrier = threading.Barrier(4, timeout=20)  # the child has workers of its own
                alive = run_blocks(lambda lo, hi: barrier.wait() >= 0, 4, WORK) == [True] * 4
                os._exit(0 if alive and run_blocks(task, 1000, WORK) == expected else 1)
            finally:
                os._exit(2)
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                outcome.append(os.waitstatus_to_exitcode(status))
                return
            time.sleep(0.02)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        outcome.append("hangs")

    if where == "main thread":
        fork()
    else:
        with threads._pool.lock:  # which the child inherits locked
            thread = threading.Thread(target=fork)
            thread.start()
            thread.join()
    assert outcome == [0]
    assert run_blocks(task, 1000, WORK) == expected


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer here")
@pytest.mark.parametrize("when", ["in its own part", "as it waits"])
def test_interrupted_caller_waits_for_the_workers(when):
    barrier = threading.Barrier(4, timeout=20)
    ended = []

    def task(lo, hi):
        barrier.wait()
        if lo > 0 or when == "in its own part":
            end = time.monotonic() + 0.6
            while time.monotonic() < end:
                time.sleep(0.005)
        ended.append(lo)

    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_blocks(task, 4, WORK)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert sorted(ended) == ([1, 2, 3] if when == "in its own part" else [0, 1, 2, 3])
    assert run_blocks(lambda lo, hi: lo, 4, WORK) == [0, 1, 2, 3]


def test_no_threads_to_be_had(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert run_blocks(lambda lo, hi: (lo, hi), 8, WORK) == [(0, 2), (2, 4), (4, 6), (6, 8)]


def test_workers_are_lazy_and_dismissed():
    def count():
        return sum(thread.name.startswith("ot_numba-") for thread in threading.enumerate())

    def settles_at(n):
        deadline = time.monotonic() + 20
        while count() != n and time.monotonic() < deadline:
            time.sleep(0.01)
        return count() == n

    assert settles_at(0)
    run_blocks(lambda lo, hi: None, 2, WORK)
    assert settles_at(1)
    run_blocks(lambda lo, hi: None, 100, WORK)
    assert settles_at(3)
    set_num_threads(2)
    assert settles_at(1)


def test_exit_is_clean_with_workers_asleep_and_at_work():
    code = """
        import threading, time
        from ot_numba.kernels.cpu.threads import run_blocks, set_num_threads
        set_num_threads(3)
        run_blocks(lambda lo, hi: None, 3, 1e9)
        user = threading.Thread(target=run_blocks, args=(lambda lo, hi: time.sleep(5), 3, 1e9), daemon=True)
        user.start()
        time.sleep(0.2)
        print("done")
    """
    start = time.monotonic()
    assert _python(code) == "done"
    assert time.monotonic() - start < 30


def test_set_num_threads():
    set_num_threads(np.int64(3))
    assert get_num_threads() == 3
    assert type(get_num_threads()) is int
    for value in (2.0, "2", None, True):
        with pytest.raises(TypeError, match=f"n must be an integer, got {value!r}"):
            set_num_threads(value)
    for value in (0, -1):
        with pytest.raises(ValueError, match=f"n must be at least 1, got {value}"):
            set_num_threads(value)
    assert get_num_threads() == 3


def test_default_number_of_threads(monkeypatch):
    monkeypatch.setattr(threads, "_num_threads", None)
    monkeypatch.delenv("OT_NUMBA_NUM_THREADS", raising=False)
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    if hasattr(os, "sched_getaffinity"):
        assert get_num_threads() == len(os.sched_getaffinity(0))
    else:
        assert get_num_threads() == os.cpu_count()
    monkeypatch.setenv("NUMBA_NUM_THREADS", "5")
    assert get_num_threads() == 5
    monkeypatch.setenv("OT_NUMBA_NUM_THREADS", " 7 ")
    assert get_num_threads() == 7
    for text in ("0", "-2", "two", "1.5"):
        monkeypatch.setenv("OT_NUMBA_NUM_THREADS", text)
        with pytest.raises(ValueError, match="OT_NUMBA_NUM_THREADS must be a positive integer"):
            get_num_threads()


def test_environment_of_a_new_process():
    code = "from ot_numba.kernels.cpu.threads import get_num_threads; print(get_num_threads())"
    assert _python(code, OT_NUMBA_NUM_THREADS="6") == "6"


def test_joblib_workers_do_not_oversubscribe():
    joblib = pytest.importorskip("joblib")
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one processor")
    with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
        assert joblib.Parallel(n_jobs=2)(joblib.delayed(_default)() for _ in range(2)) == [1, 1]


def _default():
    from ot_numba.kernels.cpu.threads import get_num_threads

    return get_num_threads()
