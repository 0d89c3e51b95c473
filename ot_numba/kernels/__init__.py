"""Hot loops, the same names in every backend; see `contract`."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

from .contract import CostData

__all__ = ["CostData", "kernels_for"]


def kernels_for(xp: Any, family: str = "") -> ModuleType:
    """Return the kernel backend for arrays of the namespace `xp`: the contract, or a module beside it by name."""
    backend = {"numpy": "cpu", "cupy": "cuda"}.get(xp.__name__.removeprefix("array_api_compat."), "generic")
    return import_module(f".{backend}.{family}" if family else f".{backend}", __name__)
