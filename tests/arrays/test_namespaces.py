import sys
import types

import array_api_compat.numpy
import array_api_strict
import numpy as np
import pytest
import scipy.sparse

from ot_numba.arrays import array_namespace, device_of, is_numpy, to_numpy

OTHER_DEVICE = array_api_strict.Device("device1")


class Frame:
    """Stands for pandas: no array, but convertible to one."""

    def __init__(self, data):
        self.data = data

    def __array__(self, dtype=None, copy=None):
        return np.array(self.data, dtype=dtype)


def test_one_library(xp):
    x = xp.ones((2, 3))
    assert array_namespace(x) is xp
    assert array_namespace(x, xp.ones(2), [1, 2], 3.0, None, np.float32(1), (1,), range(3)) is xp
    assert array_namespace(None, [1], x) is xp


def test_no_array_means_numpy():
    assert array_namespace() is np
    assert array_namespace([1.0], 2, None) is np


def test_numpy_subclasses_and_containers_count_as_numpy(tmp_path):
    mapped = np.memmap(tmp_path / "x", dtype=float, mode="w+", shape=(3,))
    assert array_namespace(mapped, Frame([1.0]), np.ones(2)) is np


@pytest.mark.parametrize("swap", [False, True])
def test_mixed_libraries(swap):
    pair = (np.ones(2), array_api_strict.ones(2))
    with pytest.raises(TypeError, match="array_api_strict and numpy"):
        array_namespace(*(pair[::-1] if swap else pair))


def test_container_of_numpy_data_does_not_mix():
    with pytest.raises(TypeError, match="array_api_strict and numpy"):
        array_namespace(Frame([1.0]), array_api_strict.ones(2))


def test_numpy_with_cupy_says_how_to_move(monkeypatch):
    class ndarray:  # noqa: N801
        def get(self):
            return np.arange(3.0)

    ndarray.__module__ = "cupy"
    cupy = types.ModuleType("cupy")
    cupy.ndarray = ndarray
    compat = types.ModuleType("array_api_compat.cupy")
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(array_api_compat, "is_array_api_obj", lambda x: isinstance(x, ndarray))
    monkeypatch.setattr(array_api_compat, "is_cupy_array", lambda x: isinstance(x, ndarray))
    monkeypatch.setattr(array_api_compat, "array_namespace", lambda x: compat)
    with pytest.raises(TypeError, match=r"cupy and numpy.*cupy\.asarray\(x\).*cupy\.asnumpy\(x\)"):
        array_namespace(np.ones(2), ndarray())
    assert to_numpy(ndarray()).tolist() == [0.0, 1.0, 2.0]


def test_mixed_devices():
    here, there = array_api_strict.ones(2), array_api_strict.ones(2, device=OTHER_DEVICE)
    assert array_namespace(there, there) is array_api_strict
    with pytest.raises(TypeError, match=r"different devices.*CPU_DEVICE.*device1"):
        array_namespace(here, there)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (scipy.sparse.csr_array(np.eye(2)), "sparse.*csr_array.*toarray"),
        (scipy.sparse.coo_matrix(np.eye(2)), "sparse"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), "masked"),
        ("text", "got builtins.str"),
        ({"a": 1}, "got builtins.dict"),
        ({1.0, 2.0}, "got builtins.set"),
        (object(), "got builtins.object"),
    ],
)
def test_not_an_array(x, message):
    for function in (array_namespace, device_of, to_numpy):
        with pytest.raises(TypeError, match=message):
            function(x)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_numpy_matrix():
    with pytest.raises(TypeError, match=r"numpy\.matrix.*asarray"):
        array_namespace(np.matrix([[1.0]]))


def test_device_of():
    assert device_of(np.ones(1)) == device_of([1.0]) == device_of(None) == "cpu"
    assert device_of(array_api_strict.ones(1, device=OTHER_DEVICE)) == OTHER_DEVICE


def test_is_numpy():
    assert is_numpy(np)
    assert is_numpy(array_api_compat.numpy)
    assert not is_numpy(array_api_strict)


@pytest.mark.parametrize("device", [None, OTHER_DEVICE])
def test_to_numpy_from_another_library(device):
    out = to_numpy(array_api_strict.asarray([[1.0, 2.0]], device=device))
    assert type(out) is np.ndarray
    assert out.tolist() == [[1.0, 2.0]]


def test_to_numpy_of_numpy_is_the_same_memory():
    x = np.ones(3)
    assert to_numpy(x) is x
    assert to_numpy([1, 2]).tolist() == [1, 2]
    assert to_numpy(Frame([1.5])).tolist() == [1.5]
