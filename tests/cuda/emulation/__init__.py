"""CUDA kernels, and code that calls them through CuPy, on the CPU: for tests, and for nothing else.

`stand_in.install` gives a CuPy whose kernels run on an emulated device (`compiler`, `launcher`, runtime.cpp), which
fails where a real one would, or might. `nvrtc` is NVIDIA's own compiler, which needs no GPU.
"""

from .compiler import CompileError, KernelError
from .launcher import configure
from .stand_in import counted, install

__all__ = ["CompileError", "KernelError", "configure", "counted", "install"]
