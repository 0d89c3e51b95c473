"""What all tests share: the hypothesis profile and the array libraries."""

import functools
import importlib
import os

import hypothesis
import pytest

from ot_numba.arrays.config import _gpu

# A compiled kernel takes seconds at its first call, so no deadline. CI draws the same examples each time;
# elsewhere new ones go on looking.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session", params=["numpy", "array_api_strict"])
def xp(request):
    """Array namespace: NumPy, and the strictest implementation of the standard, which stands for all others.

    Session scope, so that hypothesis tests may use it too.
    """
    return importlib.import_module(request.param)


@functools.cache
def why_no_gpu():
    """Return why GPU tests cannot run; empty where they can."""
    found = _gpu()
    return found if found.startswith("none: ") else ""


def pytest_runtest_setup(item):
    """Skip what is marked `gpu` where there is none."""
    if item.get_closest_marker("gpu") and (reason := why_no_gpu()):
        pytest.skip(reason)
