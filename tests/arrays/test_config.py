import re
import subprocess
import sys
import textwrap
import types

import numpy as np
import pytest

import ot_numba
from ot_numba.arrays import config
from ot_numba.kernels.cpu import jit, warming


@pytest.fixture
def no_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)


@pytest.fixture
def fake_cupy(monkeypatch):
    """A CuPy whose driver and NVRTC answer as the test tells them."""

    def raising(error):
        def call(*_):
            raise error

        return call

    def install(devices=(), driver_error=None, nvrtc_error=None):
        runtime = types.SimpleNamespace(
            getDeviceCount=raising(driver_error) if driver_error else lambda: len(devices),
            getDeviceProperties=lambda i: {"name": devices[i].encode()},
        )
        nvrtc = types.SimpleNamespace(getVersion=raising(nvrtc_error) if nvrtc_error else lambda: (12, 9))
        cupy = types.ModuleType("cupy")
        cupy.cuda = types.SimpleNamespace(runtime=runtime, nvrtc=nvrtc)
        monkeypatch.setitem(sys.modules, "cupy", cupy)

    return install


@pytest.mark.usefixtures("no_cupy")
def test_show_config(capsys):
    found = ot_numba.show_config()
    assert found.versions["numpy"] == np.__version__
    assert found.versions["ot_numba"] == ot_numba.__version__
    assert found.versions["numba"][0].isdigit()
    assert found.threads == ot_numba.get_num_threads()
    assert found.vector_bits in (128, 256, 512)
    assert "not installed" in found.gpu
    assert capsys.readouterr().out == ""

    table = str(found)
    assert table == repr(found)
    lines = dict(line.split(maxsplit=1) for line in table.splitlines())
    assert lines["numpy"] == np.__version__
    assert lines["cpu"] == f"{found.cpu}, {found.vector_bits}-bit vectors"
    assert lines["threads"] == str(found.threads)
    assert lines["gpu"] == found.gpu


def test_missing_package():
    assert config._version("no-such-distribution-of-ours") == "not installed"
    assert config._version("no-such-distribution-of-ours", "numpy") == np.__version__


@pytest.mark.parametrize(
    ("features", "bits"),
    [
        ({"avx512f": True, "avx": True}, 512),
        ({"avx512f": False, "avx": True}, 256),
        ({"sse2": True}, 128),
        ({"neon": True}, 128),
    ],
)
def test_vector_bits(features, bits):
    assert config._vector_bits(features) == bits


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(jit, "cache_folder", lambda: tmp_path)
    assert config._cache() == f"{tmp_path} (writable)"
    monkeypatch.setattr(jit, "cache_folder", lambda: None)
    assert config._cache().startswith("none: ")


def test_gpu(fake_cupy):
    fake_cupy(["NVIDIA A", "NVIDIA B"])
    assert config._gpu() == "NVIDIA A, NVIDIA B"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"driver_error": RuntimeError("InsufficientDriver")}, "InsufficientDriver.*Check the NVIDIA driver"),
        ({"devices": ["NVIDIA A"], "nvrtc_error": RuntimeError("libnvrtc not found")}, "libnvrtc.*NVRTC"),
        ({}, "no device"),
    ],
)
def test_gpu_that_cannot_be_used(fake_cupy, setting, message):
    fake_cupy(**setting)
    found = config._gpu()
    assert found.startswith("none: ")
    assert re.search(message, found)


def test_broken_cupy(monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("raise ImportError('libcudart.so.12: cannot open', name='_core')")
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert config._gpu() == "none: CuPy is installed but fails to load: libcudart.so.12: cannot open"


def test_threads():
    before = ot_numba.get_num_threads()
    try:
        ot_numba.set_num_threads(np.int64(2))
        assert ot_numba.get_num_threads() == 2
    finally:
        ot_numba.set_num_threads(before)


@pytest.mark.parametrize(
    ("n", "error"), [(0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError)]
)
def test_threads_refused(n, error):
    with pytest.raises(error, match="n must be"):
        ot_numba.set_num_threads(n)


@pytest.mark.parametrize(
    ("options", "compiled"),
    [
        ({}, ["sinkhorn float64", "sinkhorn float32"]),
        ({"dtypes": "float32"}, ["sinkhorn float32"]),
        ({"dtypes": ["float64"], "families": ("recovery", "sinkhorn")}, ["recovery float64", "sinkhorn float64"]),
        ({"dtypes": "float64", "families": "all"}, [f"{name} float64" for name in warming.FAMILIES]),
        ({"dtypes": "float64", "families": ()}, []),
    ],
)
def test_warmup_compiles_what_it_is_asked_to(monkeypatch, options, compiled):
    calls = []
    for name in warming.FAMILIES:
        monkeypatch.setitem(warming.FAMILIES, name, lambda dtype, name=name: calls.append(f"{name} {dtype}"))
    ot_numba.warmup(**options)
    assert calls == compiled


@pytest.mark.parametrize("dtypes", ["float16", ["float64", "int64"], [np.float64]])
def test_warmup_refuses(dtypes):
    with pytest.raises(ValueError, match="dtypes must be one of 'float64', 'float32'"):
        ot_numba.warmup(dtypes)
    with pytest.raises(ValueError, match=r"families must be one of 'sinkhorn', .* got 'lasso'"):
        ot_numba.warmup((), families="lasso")


def test_after_warmup_solvers_compile_nothing():
    code = """
        import sys, warnings
        import numpy as np, scipy.sparse
        from numba.core.dispatcher import Dispatcher
        import ot_numba

        warnings.simplefilter("ignore")
        ot_numba.warmup("float64", "all")

        def compiled():
            modules = [m for name, m in sys.modules.items() if name.startswith("ot_numba.kernels.cpu")]
            found = {f for m in modules for f in vars(m).values() if isinstance(f, Dispatcher)}
            return {(f.py_func.__name__, str(s)) for f in found for s in f.signatures}

        before = compiled()
        assert len(before) > 50
        rng = np.random.default_rng(0)
        x, y = rng.random((9, 2)), rng.random((8, 2))
        C = ((x[:, None] - y) ** 2).sum(axis=-1)
        for cost in (C, ot_numba.PointCloud(x, y)):
            ot_numba.sinkhorn(cost, reg=0.1)
            ot_numba.quadratic_ot(cost, reg=0.1)
            ot_numba.sparsity_constrained_ot(cost, reg=0.1, k=2)
            for method in ("asgd", "sag"):
                ot_numba.semidual_stochastic(cost, reg=0.1, method=method, max_iter=9)
        ot_numba.project_simplex_topk(C, k=3), ot_numba.ksupport_norm_sq(C, k=3)
        for Y in (C[:, 0], C[:, :3]):
            for A in (C, np.asfortranarray(C), scipy.sparse.csc_array(C)):
                for solver in (ot_numba.ista, ot_numba.fista, ot_numba.iht, ot_numba.lasso):
                    solver(A, Y, reg=0.01)
            ot_numba.unfolded_value_and_grad(C, Y, np.full(3, 0.1), reg=0.1)
            ot_numba.unfolded_forward(C, Y, np.full(3, 0.1), reg=0.1)
        ot_numba.denoise_tv(C, weight=0.1, smoothing=0.1)
        ot_numba.denoise_foe(C, rng.random((2, 3, 3)), weight=0.1, smoothing=0.1)
        print(*sorted(compiled() - before), sep="\\n")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
