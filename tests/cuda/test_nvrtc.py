"""NVIDIA's own compiler on every source, for the GPUs that are supported: no warning, no more than was said."""

import functools
import inspect
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from emulation import nvrtc
from emulation.compiler import built

import ot_numba
from ot_numba.kernels.cuda import loader

ARCHITECTURES = (70, 80, 90)
FAMILIES = sorted(path.stem for path in loader.FOLDER.glob("*.cu"))
RESOURCES = re.compile(r"^// resources: (\w+) registers <= (\d+), shared <= (\d+)$", re.MULTILINE)


def _compile(family, architecture):
    """What the compiler reports, or has reported on the same source."""

    def report(_, path):
        found = nvrtc.compile_source(loader.source(family), architecture, loader.OPTIONS)
        path.write_text(json.dumps(found), encoding="utf-8")

    content = [loader.source(family), str(architecture), *loader.OPTIONS, inspect.getsource(nvrtc), nvrtc.version()]
    resources, warnings = json.loads(built(content, ".json", report).read_text(encoding="utf-8"))
    return {name: nvrtc.Resources(*numbers) for name, numbers in resources.items()}, warnings


@functools.cache
def _all_compiled():
    pool = ThreadPoolExecutor()
    return {
        (family, architecture): pool.submit(_compile, family, architecture)
        for family in FAMILIES
        for architecture in ARCHITECTURES
    }


def compiled(family, architecture):
    return _all_compiled()[family, architecture].result()


def stated(family):
    """Bounds that the comments give, by the start of the names that they are for."""
    source = loader.source(family)
    bounds = {name: (int(registers), int(shared)) for name, registers, shared in RESOURCES.findall(source)}
    assert len(bounds) == source.count("// resources:"), "a comment on resources is not understood, or there twice"
    return bounds


def bound_of(name, bounds):
    prefixes = [prefix for prefix in bounds if name.startswith(prefix)]
    assert len(prefixes) == 1, f"{name} has the comments {prefixes}"
    return prefixes[0]



@pytest.mark.usefixtures("real_compiler")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("family", FAMILIES)
def test_source_compiles_and_keeps_to_its_resources(family, architecture):
    found, warnings = compiled(family, architecture)
    assert warnings == ""
    bounds = stated(family)
    assert {bound_of(name, bounds) for name in found} == set(bounds)
    for name, resources in found.items():
        registers, shared = bounds[bound_of(name, bounds)]
        assert resources.registers <= registers, name
        assert resources.shared <= shared, name
        assert resources.stack == resources.spills == 0, name


@pytest.mark.usefixtures("real_compiler")
@pytest.mark.parametrize("family", FAMILIES)
def test_bounds_are_not_far_above_what_is_used(family):
    """A bound with room for 32 more registers guards nothing."""
    bounds, most = stated(family), {}
    for architecture in ARCHITECTURES:
        for name, resources in compiled(family, architecture)[0].items():
            prefix = bound_of(name, bounds)
            most[prefix] = max(most.get(prefix, 0), resources.registers)
    assert {prefix: bounds[prefix][0] for prefix in most if bounds[prefix][0] >= most[prefix] + 32} == {}


@pytest.mark.usefixtures("real_compiler")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_kernel_is_there_for_both_dtypes(family):
    names = set(compiled(family, 80)[0])
    assert names
    for name in names:
        if re.search(r"_float(32|64)$", name):  # others are the same for both
            assert {name[:-2] + "32", name[:-2] + "64"} <= names


def test_no_kernel_outside_of_the_sources():
    words = r"RawKernel|ElementwiseKernel|ReductionKernel|RawModule|cupyx\.jit|cupy\.fuse|__global__|__device__"
    hits = {
        str(path.relative_to(Path(ot_numba.__file__).parent)): found
        for path in Path(ot_numba.__file__).parent.rglob("*.py")
        if (found := re.findall(words, path.read_text(encoding="utf-8")))
    }
    assert list(hits) == [str(Path("kernels", "cuda", "loader.py"))]
    assert set(hits.popitem()[1]) == {"RawModule"}
    assert "RawModule" in inspect.getsource(loader.module)


def test_sources_include_nothing():
    """So that users need no CUDA headers, only CuPy and NVRTC."""
    for path in [*loader.FOLDER.glob("*.cu"), *loader.FOLDER.glob("*.cuh")]:
        assert "#include" not in path.read_text(encoding="utf-8"), path.name


# ---------------------------------------------------------------- the reports can fail

SPILLS = """
extern "C" __global__ void __launch_bounds__(1024) spilling(float* x) {
  float r[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) r[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 96; ++i) x[i * 1024 + threadIdx.x] = r[95 - i] * r[(i * 7) % 96];
}
extern "C" __global__ void indexed(float* x, int k) {
  float r[64];
  __shared__ double s[100];
  for (int i = 0; i < 64; ++i) r[i] = x[i] * k;
  s[threadIdx.x] = r[k];
  __syncthreads();
  x[0] = s[k] + r[(k * 5) % 64];
}
"""


def test_spills_stack_and_shared_memory_are_seen(real_compiler):
    found, warnings = real_compiler.compile_source(SPILLS, 80)
    assert found["spilling"].spills > 0
    assert found["spilling"].registers <= 64
    assert found["indexed"].stack >= 256
    assert found["indexed"].shared == 800
    assert warnings == ""


def test_errors_and_warnings_are_seen(real_compiler):
    with pytest.raises(RuntimeError, match="INFINITY"):  # g++ has it in a header
        real_compiler.compile_source("__global__ void k(float* x) { x[0] = INFINITY; }", 80)
    _, warnings = real_compiler.compile_source('extern "C" __global__ void k(float* x) { int unused; }', 80)
    assert "never referenced" in warnings
