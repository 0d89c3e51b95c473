"""Hot loops, the same names in every backend; see `contract`."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from .contract import CostData

__all__ = ["CostData", "kernels_for"]


def kernels_for(xp: Any) -> ModuleType:
    """Return the kernel backend for arrays of the array-API namespace `xp`."""
    name = xp.__name__
    if name in ("numpy", "array_api_compat.numpy"):
        from . import cpu

        return cpu
    from . import generic

    return generic
