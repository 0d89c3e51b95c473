"""NVIDIA's run-time compiler, which needs no GPU; from pip's `nvidia-cuda-nvrtc-cu12`, through ctypes."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
from pathlib import Path
from typing import NamedTuple

# what CuPy adds, and a report of what each kernel takes
OPTIONS = ("-ftz=true", "--device-as-default-execution-space", "--ptxas-options=-v")
_REPORTED = {
    "registers": r"Used (\d+) registers",
    "shared": r"(\d+) bytes smem",
    "stack": r"(\d+) bytes stack frame",
    "spills": r"(\d+) bytes spill stores",
}


class Resources(NamedTuple):
    """What a kernel takes: registers of a thread, bytes of static shared memory, local stack and spilled registers."""

    registers: int
    shared: int
    stack: int
    spills: int


@functools.cache
def _path() -> str:
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations if spec else ():
        for path in sorted(Path(folder).glob("cuda_nvrtc/lib/libnvrtc.so.12")):
            return str(path)
    return ""


def missing() -> str:
    """Return why nothing can be compiled; empty where it can."""
    return "" if _path() else "NVRTC 12 is not installed (pip install nvidia-cuda-nvrtc-cu12)"


def version() -> str:
    """Version of the compiler."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    ctypes.CDLL(_path()).nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def compile_source(source: str, architecture: int, options: tuple[str, ...] = ()) -> tuple[dict[str, Resources], str]:
    """Compile for a compute capability such as 70; return what each kernel takes, and the warnings.

    Raises RuntimeError with the compiler's words if it refuses.
    """
    nvrtc, program, size = ctypes.CDLL(_path()), ctypes.c_void_p(), ctypes.c_size_t()
    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None):
        raise RuntimeError("NVRTC takes no source")
    try:
        words = [word.encode() for word in (*options, *OPTIONS, f"-arch=sm_{architecture}")]
        failed = nvrtc.nvrtcCompileProgram(program, len(words), (ctypes.c_char_p * len(words))(*words))
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, buffer)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    log = buffer.value.decode(errors="replace")
    if failed:
        raise RuntimeError(log)
    parts = re.split(r"Compiling entry function '(\w+)'", log)

    def number(pattern: str, text: str) -> int:
        found = re.search(pattern, text)
        return int(found[1]) if found else 0

    found = {
        name: Resources(**{key: number(pattern, text) for key, pattern in _REPORTED.items()})
        for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }
    # that the oldest GPUs will not be supported for ever says nothing about the source
    warnings = "\n".join(line for line in log.splitlines() if "warning" in line.lower() and "deprecated" not in line)
    return found, warnings
