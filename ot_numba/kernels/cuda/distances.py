"""Costs between points that the kernels of the plan do not evaluate themselves: see `distances.cu`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..contract import CITYBLOCK
from .loader import launch

Array = Any
SIDE = 64  #: rows and columns of a block's tile


def pairwise_cost(metric: int, x: Array, y: Array, power: float = 1.0) -> Array:
    """Dense cost between the points x (n, d) and y (d, m)."""
    import cupy

    (n, d), m = x.shape, y.shape[1]
    out = cupy.empty((n, m), x.dtype)
    name = "cityblock" if metric == CITYBLOCK else "power"
    arguments = x, y, np.int64(n), np.int64(m), np.int64(d), x.dtype.type(0.5 * power), out
    blocks = math.ceil(n / SIDE) * math.ceil(m / SIDE)
    launch("distances", f"pairwise_cost_{name}_{x.dtype.name}", blocks, 256, arguments)
    return out
