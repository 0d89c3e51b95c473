"""What the package runs on: versions, processor, threads, cache, GPU; and compiling ahead."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ot_numba.arrays.validation import check_choice, check_int

_DTYPES = ("float64", "float32")
_PACKAGES = ("numpy", "scipy", "numba", "llvmlite", "array-api-compat")
_CUPY_WHEELS = ("cupy", "cupy-cuda12x", "cupy-cuda13x")


@dataclass(frozen=True)
class Config:
    """What `show_config` found; ``str()`` of it is a table.

    Attributes
    ----------
    versions : mapping of str to str
        Package name to version, or to ``"not installed"``.
    cpu : str
        The processor as LLVM names it.
    vector_bits : int
        The width of its vector registers in bits.
    threads : int
        The size of the package's own thread pool.
    cache : str
        The folder of compiled kernels, or why there is none.
    gpu : str
        The GPUs that CuPy sees, or why the CuPy backend cannot be used.
    """

    versions: Mapping[str, str]
    cpu: str
    vector_bits: int
    threads: int
    cache: str
    gpu: str

    def __str__(self) -> str:
        rows = [*self.versions.items(), ("cpu", f"{self.cpu}, {self.vector_bits}-bit vectors")]
        rows += [("threads", str(self.threads)), ("cache", self.cache), ("gpu", self.gpu)]
        width = max(len(key) for key, _ in rows)
        return "\n".join(f"{key:<{width}}  {value}" for key, value in rows)

    __repr__ = __str__


def _version(*names: str) -> str:
    """Return the version of the first of these distributions that is installed."""
    from importlib.metadata import PackageNotFoundError, version  # costs more than the rest of the package

    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "not installed"


def _vector_bits(features: Mapping[str, bool]) -> int:
    """Return the width of the vector registers that the processor's features imply."""
    if features.get("avx512f"):
        return 512
    return 256 if features.get("avx") else 128


def _cache() -> str:
    """Return the folder of compiled kernels, or why there is none."""
    from ot_numba.kernels.cpu.jit import cache_folder

    folder = cache_folder()
    if folder is None:
        return "none: no writable folder, kernels are compiled anew in each process"
    return f"{folder} ({'writable' if os.access(folder, os.W_OK) else 'not writable'})"


def _gpu() -> str:
    """Return the GPUs that CuPy sees, or why the CuPy backend cannot be used."""
    try:
        import cupy
    except ImportError as error:
        if error.name != "cupy":
            return f"none: CuPy is installed but fails to load: {error}"
        return "none: CuPy is not installed (pip install 'ot_numba[cuda12]' or 'ot_numba[cuda13]')"
    try:
        runtime = cupy.cuda.runtime
        names = [runtime.getDeviceProperties(i)["name"].decode() for i in range(runtime.getDeviceCount())]
        cupy.cuda.nvrtc.getVersion()  # a driver alone is not enough: kernels are compiled at run time
    except (RuntimeError, ImportError) as error:
        return (
            f"none: the CuPy backend cannot be used here: {error}. Check the NVIDIA driver, and that NVRTC "
            "is installed (pip install 'ot_numba[cuda12]' or 'ot_numba[cuda13]')"
        )
    return ", ".join(names) or "none: the driver reports no device"


def show_config() -> Config:
    """Return what the package runs on; print it, or paste it into a bug report.

    Loads Numba's LLVM and, if installed, CuPy, so the first call takes a moment.

    Returns
    -------
    Config
        With ``versions``, ``cpu``, ``vector_bits``, ``threads``, ``cache`` and ``gpu``.

    Examples
    --------
    >>> config = show_config()
    >>> sorted(config.versions)[:3]
    ['array-api-compat', 'cupy', 'llvmlite']
    >>> config.threads >= 1
    True
    """
    from llvmlite import binding

    from ot_numba import __version__

    versions = {"ot_numba": __version__, "python": platform.python_version()}
    versions |= {name: _version(name) for name in _PACKAGES}
    versions["cupy"] = _version(*_CUPY_WHEELS)
    return Config(
        versions=versions,
        cpu=binding.get_host_cpu_name(),
        vector_bits=_vector_bits(binding.get_host_cpu_features()),
        threads=get_num_threads(),
        cache=_cache(),
        gpu=_gpu(),
    )


def get_num_threads() -> int:
    """Return the number of threads that the CPU kernels share.

    Examples
    --------
    >>> get_num_threads() >= 1
    True
    """
    from ot_numba.kernels.cpu import threads

    return threads.get_num_threads()


def set_num_threads(n: int) -> None:
    """Set the number of threads that the CPU kernels share, in this process.

    Results do not depend on it, to the last bit: work is split by the size of the problem.

    Raises
    ------
    TypeError
        If `n` is no integer.
    ValueError
        If `n` < 1.

    Examples
    --------
    >>> before = get_num_threads()
    >>> set_num_threads(1)
    >>> get_num_threads()
    1
    >>> set_num_threads(before)
    """
    from ot_numba.kernels.cpu import threads

    threads.set_num_threads(check_int(n, "n", low=1))


def warmup(dtypes: str | Iterable[str] = _DTYPES, families: str | Iterable[str] = "sinkhorn") -> None:
    """Compile CPU kernels ahead, or load them from the cache, so that no later call pays for it.

    Parameters
    ----------
    dtypes : str or iterable of {"float64", "float32"}
        The precisions to prepare.
    families : str or iterable of {"sinkhorn", "quadratic", "stochastic", "recovery", "denoising"}
        What to prepare: entropic transport; quadratic and sparsity-constrained transport, and projections on the
        simplex; stochastic transport; sparse recovery; image denoising. Or "all" of them.

    Raises
    ------
    ValueError
        If a dtype or a family is none of these.

    Examples
    --------
    >>> warmup(dtypes=())
    >>> warmup("float64", families=())
    """
    from ot_numba.kernels.cpu.warming import FAMILIES

    dtypes = [check_choice(name, "dtypes", _DTYPES) for name in ((dtypes,) if isinstance(dtypes, str) else dtypes)]
    if families == "all":
        families = FAMILIES
    for name in (families,) if isinstance(families, str) else families:
        compile_family = FAMILIES[check_choice(name, "families", tuple(FAMILIES))]
        for dtype in dtypes:
            compile_family(dtype)
