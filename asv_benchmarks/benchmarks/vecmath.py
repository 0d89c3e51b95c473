"""The vectorised powers behind every kernel, against NumPy's exponential."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def power_map(name: str) -> Callable[[np.ndarray, np.ndarray], None]:
    """Compiled ``f(x, out)`` that maps a function of `ot_numba.kernels.cpu.vecmath` over an array."""
    from ot_numba.kernels.cpu import vecmath
    from ot_numba.kernels.cpu.jit import kernel

    function = getattr(vecmath, name)

    @kernel(cache=False)
    def fill(x, out):
        for i in range(x.shape[0]):
            out[i] = function(x[i])

    return fill


class Exponential:
    """4096 values in [-30, 0], in cache."""

    params = (["exp2_fast", "exp2", "exp", "numpy.exp"], ["float64", "float32"])
    param_names = ("function", "dtype")

    def setup(self, function: str, dtype: str) -> None:
        self.x = np.random.default_rng(1).uniform(-30, 0, 4096).astype(dtype)
        self.out = np.empty_like(self.x)
        self.call = np.exp if function == "numpy.exp" else power_map(function)
        self.call(self.x, self.out)

    def time_map(self, function: str, dtype: str) -> None:
        self.call(self.x, self.out)
