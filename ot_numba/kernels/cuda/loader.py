"""The CUDA sources: compiled by CuPy on first use and launched on the current stream."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
OPTIONS = ("-std=c++17",)
KINDS = {"dense": 0, "dot2": 2, "dot3": 3, "dots": 4}  #: costs, as the sources number them
_NAME = re.compile(rf"(\w+?)(?:_({'|'.join(KINDS)}))?(?:_float(32|64)\w*)?")


@functools.cache
def source(family: str) -> str:
    """Text of a family of kernels, with what all of them share in front."""
    common, own = ((FOLDER / name).read_text(encoding="utf-8") for name in ("common.cuh", f"{family}.cu"))
    return f'#line 1 "common.cuh"\n{common}\n#line 1 "{family}.cu"\n{own}'


def selection(family: str, name: str) -> tuple[str, ...]:
    """Options that leave out all entry points but those of one operation, kind of cost and dtype."""
    if "defined(ONLY)" not in source(family):
        return ()
    operation, kind, bits = _NAME.fullmatch(name).groups()
    return "-DONLY", f"-DONLY_{operation}", f"-DONLY_KIND={KINDS.get(kind, 1)}", f"-DONLY_BYTES={int(bits or 0) // 8}"


@functools.cache
def module(family: str, options: tuple[str, ...] = ()) -> Any:
    """Compiled module of a family; CuPy keeps one for each device, and its machine code between processes."""
    import cupy

    return cupy.RawModule(code=source(family), options=(*OPTIONS, *options))


@functools.cache
def function(family: str, name: str, device: int) -> Any:
    """Compiled kernel for the current device, whose number `device` is."""
    try:
        return module(family, selection(family, name)).get_function(name)
    except (RuntimeError, ImportError, OSError) as error:
        raise RuntimeError(
            f"the CUDA kernel {name} cannot be used here: {error}. Check the NVIDIA driver, and that NVRTC is "
            "installed (pip install 'ot_numba[cuda12]' or 'ot_numba[cuda13]')"
        ) from error


def launch(family: str, name: str, blocks: Any, threads: int, arguments: tuple, shared: int = 0) -> None:
    """Run a kernel; every number among the arguments has the exact type of its parameter (a NumPy scalar)."""
    import cupy

    grid = blocks if isinstance(blocks, tuple) else (blocks,)
    kernel = function(family, name, cupy.cuda.Device().id)
    if shared > 48 << 10:
        kernel.max_dynamic_shared_size_bytes = shared
    kernel(grid, (threads,), arguments, shared_mem=shared)
