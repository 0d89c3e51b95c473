"""Solving from several threads and processes, with no cache, and in little memory."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading

import joblib
import numpy as np
import pytest

import ot_numba


def problem(n=900, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((n, 2)), rng.random((n, 2)) * 0.7 + 0.3


def solution(seed):
    """Potentials of a problem of several row blocks, large enough for threads."""
    x, y = problem(seed=seed)
    return ot_numba.solve(ot_numba.PointCloud(x, y), reg=0.01, tol=1e-8).f


def run_python(code, **environment):
    """Output of a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=300, env=os.environ | environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def threads():
    before = ot_numba.get_num_threads()
    yield ot_numba.set_num_threads
    ot_numba.set_num_threads(before)


@pytest.mark.parametrize("method", ["log", "kernel", "auto"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_bits_with_any_number_of_threads(threads, method, dtype):
    x, y = (points.astype(dtype) for points in problem())
    results = []
    for count in (1, 2, 3, 2):
        threads(count)
        results.append(
            ot_numba.sinkhorn(ot_numba.PointCloud(x, y), reg=0.02, method=method, max_iter=60, on_fail="ignore")
        )
    for other in results[1:]:
        assert np.array_equal(results[0].f, other.f)
        assert np.array_equal(results[0].g, other.g)
        assert results[0].value == other.value


def test_two_python_threads_at_once(threads):
    threads(2)
    expected = [solution(seed) for seed in range(4)]
    found = [None] * 4

    def work(seed):
        found[seed] = solution(seed)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert not worker.is_alive()
    for one, other in zip(expected, found, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_fork_after_a_threaded_call(threads):
    threads(2)
    expected = solution(0)
    child = os.fork()
    if child == 0:
        signal.alarm(100)  # an inherited pool would hang
        os._exit(0 if np.array_equal(solution(0), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_joblib_workers():
    found = joblib.Parallel(n_jobs=2)(joblib.delayed(solution)(seed) for seed in range(3))
    for seed in range(3):
        assert np.array_equal(found[seed], solution(seed))


def test_dask_worker():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(1, processes=True, threads_per_worker=2, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        found = client.gather(client.map(solution, range(3)))
    for seed in range(3):
        assert np.array_equal(found[seed], solution(seed))


def test_spawned_process():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert np.array_equal(pool.apply(solution, (0,)), solution(0))


@pytest.mark.slow
def test_no_writable_cache():
    code = """
        import numpy as np, ot_numba
        print(ot_numba.solve(np.eye(3), reg=0.5).converged, ot_numba.kernels.cpu.jit.cache_folder())
    """
    assert run_python(code, OT_NUMBA_CACHE_DIR="/dev/null/nowhere") == "True None"


@pytest.mark.slow
def test_first_call():
    code = """
        import time
        start = time.process_time()
        import numpy as np, ot_numba
        ot_numba.sinkhorn(np.random.default_rng(0).random((200, 200)), reg=0.02)
        print(time.process_time() - start)
    """
    run_python(code)  # fills the cache
    assert min(float(run_python(code)) for _ in range(3)) < 1.5


@pytest.mark.slow
def test_memory_of_the_online_path():
    code = """
        import resource
        import numpy as np, ot_numba
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rng = np.random.default_rng(0)
        ot_numba.sinkhorn(ot_numba.PointCloud(rng.random((50, 2))), reg=0.1, method="log")
        x, y = rng.random((50_000, 2)), rng.random((50_000, 2))
        before = peak()
        ot_numba.sinkhorn(
            ot_numba.PointCloud(x, y), reg=0.1, method="log", reg_schedule=None, max_iter=2, on_fail="ignore"
        )
        print(peak() - before)
    """
    assert float(run_python(code)) < 200
