"""What the tests of the CUDA path share: CuPy, emulated or on a real card, and reasons to skip."""

import importlib
import os
import sys
from pathlib import Path

import pytest

from ot_numba.arrays.config import _gpu

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for `emulation`

from emulation import compiler, install, nvrtc

REAL = pytest.param("real", marks=pytest.mark.gpu)


def need(missing: str) -> None:
    """Skip a test for want of a tool; in CI, where nothing may be skipped unseen, fail."""
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)


def pytest_collection_modifyitems(items):
    """Find out about GPUs before the first stand-in is installed, which would be asked instead."""
    real = [item for item in items if hasattr(item, "callspec") and item.callspec.params.get("cupy") == "real"]
    if real and (found := _gpu()).startswith("none: "):
        for item in real:
            item.add_marker(pytest.mark.skip(reason=found))


@pytest.fixture(scope="module")
def emulated():
    """The stand-in for CuPy, also for whoever imports CuPy."""
    need(compiler.missing())
    with install() as module:
        yield module


@pytest.fixture(scope="module", params=["emulated", REAL])
def cupy(request):
    """CuPy: the stand-in, and with `-m gpu` the real one."""
    if request.param == "real":
        yield importlib.import_module("cupy")
    else:
        need(compiler.missing())
        with install() as module:
            yield module


@pytest.fixture(scope="session")
def real_compiler():
    """NVIDIA's compiler."""
    need(nvrtc.missing())
    return nvrtc
