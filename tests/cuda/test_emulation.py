"""The emulation itself: what is wrong in a kernel or a launch is caught; what is right passes, computed right."""

import ast
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import array_api_compat
import numpy as np
import pytest
from emulation import CompileError, KernelError, compiler, configure, counted, install, launcher, stand_in

import ot_numba

pytestmark = pytest.mark.usefixtures("emulated")

SCHEDULES = {
    "forward": {"order": "forward"},
    "reverse": {"order": "reverse"},
    "random": {"order": "random", "seed": 7},
    "preempted": {"order": "random", "seed": 7, "preempt": 20},
}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
HEAD = 'extern "C" __global__ void k(float* x, int n) {\n'


def compiled(cupy, source, name="k", options=()):
    return cupy.RawModule(code=source, options=options).get_function(name)


def run(cupy, body, size=256, block=64, grid=None, shared=0, head=HEAD, **options):
    """Run a kernel that consists of `body` on an array of zeros."""
    x = cupy.zeros(size, dtype=np.float32)
    with configure(**options):
        blocks = grid or -(-size // block)
        compiled(cupy, f"{head}{body}\n}}")((blocks,), (block,), (x, np.int32(size)), shared_mem=shared)
    return x.get()


# ---------------------------------------------------------------- bugs in kernels

TILE = "__shared__ float s[64]; int t = threadIdx.x;"
BUGS = {
    # barriers
    "no barrier": (
        f"{TILE} s[t] = t; x[t] = s[63 - t];",
        {"size": 64},
        "race on s|uninitialised",
    ),
    "no barrier before a tile is reused": (
        f"{TILE} float a = 0; for (int r = 0; r < 2; ++r) {{ s[t] = r; __syncthreads(); a += s[63 - t]; }} x[t] = a;",
        {"size": 64},
        "race on s",
    ),
    "no barrier within a warp": (
        f"{TILE} s[t] = t; __syncwarp(); if (t < 16) s[t] += s[t + 16]; if (t < 8) s[t] += s[t + 8]; x[t] = s[0];",
        {"size": 32, "block": 32},
        "race on s",
    ),
    "a barrier in each branch": (
        "if (threadIdx.x < 32) {\n __syncthreads(); } else {\n __syncthreads(); }",
        {"size": 64},
        "divergent barriers",
    ),
    "a barrier for some": (
        "if (threadIdx.x < 32) __syncthreads();",
        {"size": 64},
        "returned while|after 32 thread|__syncthreads",
    ),
    "return before a barrier": (
        "if (threadIdx.x >= 40) return; __syncthreads(); x[threadIdx.x] = 1;",
        {"size": 64},
        "__syncthreads",
    ),
    "warps wait for each other": (
        "if (threadIdx.x < 16) __syncwarp(); else __syncthreads();",
        {"size": 32, "block": 32},
        "deadlock",
    ),
    # warps
    "shuffle in a branch": (
        "float v = 1; if (threadIdx.x < 16) v = __shfl_down_sync(0xffffffffu, v, 8); x[threadIdx.x] = v;",
        {"size": 32, "block": 32},
        "have returned|deadlock",
    ),
    "shuffle from outside of the mask": (
        "float v = 1; if (threadIdx.x < 16) v = __shfl_down_sync(0x0000ffffu, v, 8); x[threadIdx.x] = v;",
        {"size": 32, "block": 32},
        "does not name",
    ),
    "shuffle by a lane outside of the mask": (
        "x[threadIdx.x] = __shfl_sync(0x1u, 1.0f, 0);",
        {"size": 32, "block": 32},
        "not in the mask",
    ),
    "different operations at once": (
        "if (threadIdx.x & 1) __ballot_sync(0xffffffffu, 1); else __syncwarp();",
        {"size": 32, "block": 32},
        "different operations",
    ),
    # bounds
    "write one too far": (
        "int i = blockIdx.x * blockDim.x + threadIdx.x; if (i <= n) x[i] = 1;",
        {"size": 200},
        "write of 4 bytes of global memory out of bounds: 0 bytes past the end of argument 0",
    ),
    "read one too far": (
        "int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) x[i] = x[i + 1] * 0;",
        {"size": 200, "races": False},
        "read of 4 bytes of global memory out of bounds: 0 bytes past the end of argument 0",
    ),
    "read before the start": (
        "int i = threadIdx.x; x[i] = x[i - 1];",
        {"size": 64, "races": False},
        "4 bytes before argument 0",
    ),
    "wrong stride": (
        "for (int j = threadIdx.x; j < 8; j += 64) x[blockIdx.x * (n / 4 + 1) + j + n / 4 - 8] = 1;",
        {"size": 128, "grid": 4},
        "past the end of argument 0",
    ),
    "shared memory one too far": (
        f"{TILE} s[t + 1] = 1; __syncthreads(); x[t] = s[t];",
        {},
        "array index out of bounds|shared memory out of bounds",
    ),
    "shared memory through a pointer": (
        f"{TILE} float* p = s; p[t * 2] = 1;",
        {},
        "write of 4 bytes of shared memory out of bounds: s",
    ),
    "too little dynamic shared memory": (
        "extern __shared__ float s[]; s[threadIdx.x] = 1; x[threadIdx.x] = s[threadIdx.x];",
        {"size": 64, "shared": 128},
        "out of bounds: dynamic shared memory",
    ),
    "local array": (
        "float r[4]; for (int i = 0; i <= 4; ++i) r[i] = i * n; x[0] = r[n & 3];",
        {"block": 1, "grid": 1},
        "array index out of bounds",
    ),
    "other local memory": (
        "__shared__ float* p; float v[2] = {float(n), 1}; if (threadIdx.x == 0) p = v; __syncthreads();"
        " x[threadIdx.x] = p[n & 1];",
        {"size": 64},
        "local memory of another thread",
    ),
    "write through const": (
        "*(float*)xc = 1; }",
        {"head": 'extern "C" __global__ void k(const float* xc, int n) {', "grid": 1, "block": 1, "size": 4},
        "which is const",
    ),
    # races
    "race between blocks": ("x[0] += 1;", {"size": 64, "block": 1}, "race on argument 0"),
    "lost update": ("int i = threadIdx.x % 4; x[i] = x[i] + 1;", {"size": 64}, "race on argument 0"),
    "atomic against a plain write": (
        "if (threadIdx.x == 5) x[0] = 3; else atomicAdd(x, 1.0f);",
        {"size": 64},
        "race on argument 0",
    ),
    "atomic against a plain read": (
        "x[1 + threadIdx.x] = x[0]; atomicAdd(x, 1.0f);",
        {"size": 65, "block": 64, "grid": 1},
        "race on argument 0",
    ),
    # values
    "uninitialised shared memory": (
        f"{TILE} if (t < 63) s[t] = 1; __syncthreads(); x[t] = s[t];",
        {"size": 64},
        "uninitialised shared memory: s",
    ),
    "shared memory of the block before": (
        f"{TILE} if (blockIdx.x == 0) s[t] = 1; __syncthreads(); x[blockIdx.x * 64 + t] = s[t];",
        {"size": 128, "order": "forward"},
        "uninitialised shared memory: s",
    ),
    "32-bit index": ("int i = 70000 * n; x[0] = i;", {"size": 70000, "block": 1, "grid": 1}, r"overflow in \*"),
    "shift": ("x[0] = 1 << n;", {"size": 32, "block": 1, "grid": 1}, "shift out of bounds"),
    "division": ("x[0] = 5 / (n - 64);", {"size": 64, "block": 1, "grid": 1}, "division by zero"),
    "cast": ("x[0] = int(x[0] + 3e9f);", {"size": 64, "block": 1, "grid": 1}, "out of the range of an integer"),
    "alignment": (
        "float4 v = *reinterpret_cast<float4*>(x + 1); x[0] = v.x;",
        {"size": 64, "block": 1, "grid": 1},
        "misaligned",
    ),
    # limits
    "endless loop": ("while (x[0] == 0.f) {}", {"size": 1, "block": 1, "max_accesses": 1000}, "an endless loop"),
    "static shared memory": (
        "__shared__ double s[7000]; s[0] = 1; x[0] = s[0];",
        {"size": 1, "block": 1},
        "56000 bytes of static shared memory",
    ),
    "static and dynamic shared memory": (
        "__shared__ double s[1000]; s[0] = 1; x[0] = s[0];",
        {"size": 1, "block": 1, "shared": 48 << 10},
        "8000 static and 49152 dynamic",
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_bug_in_a_kernel_is_caught(emulated, bug):
    body, options, message = BUGS[bug]
    with pytest.raises(KernelError, match=message) as error:
        run(emulated, body.removesuffix("}") if "xc" in body else body, **options)
    assert "k<<<" in str(error.value)


def test_error_names_block_thread_and_line(emulated):
    with pytest.raises(KernelError, match=r"block \(3, 0, 0\), thread \(8, 0, 0\).*at kernel.cu:3"):
        run(emulated, "int i = blockIdx.x * blockDim.x + threadIdx.x;\nx[i] = 1;", size=200, order="forward")


def test_race_names_both_lines(emulated):
    body = f"{TILE}\ns[t] = t;\nfloat v = s[63 - t];\nx[t] = v;"
    with pytest.raises(KernelError, match=r"(?s)at kernel.cu:[34].*earlier kernel.cu:[34]"):
        run(emulated, f"{TILE} s[t] = 0; __syncthreads();" + body.removeprefix(TILE), size=64)


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_missing_barrier_changes_results_where_nothing_is_checked(emulated, order):
    """Shared memory holds NaN at first, and one order or the other reads it."""
    body = f"{TILE} s[t] = t; x[t] = s[63 - t];"
    assert np.isnan(run(emulated, body, size=64, checked=False, order=order)).any()


def test_preemption_loses_updates(emulated):
    body = "int i = threadIdx.x % 4; x[i] = x[i] + 1;"
    assert run(emulated, body, size=64, races=False)[:4].sum() == 64
    assert run(emulated, body, size=64, races=False, preempt=3)[:4].sum() < 64


# ---------------------------------------------------------------- bugs on the host

SIMPLE = 'extern "C" __global__ void k(float* x, int n, float a) { if (threadIdx.x < n) x[threadIdx.x] = a; }'
CALLS = {
    "Python float": (lambda x: (x, np.int32(3), 0.5), "argument 2 must be a NumPy scalar, not float"),
    "Python int": (lambda x: (x, 3, np.float32(1)), "argument 1 must be a NumPy scalar, not int"),
    "float64 for float": (lambda x: (x, np.int32(3), np.float64(1)), "argument 2 has dtype float64"),
    "int64 for int": (lambda x: (x, np.int64(3), np.float32(1)), "argument 1 has dtype int64"),
    "array of another dtype": (lambda x: (x.astype("f8"), np.int32(3), np.float32(1)), "argument 0 has dtype float64"),
    "too few arguments": (lambda x: (x, np.int32(3)), "2 arguments for 3 parameters"),
    "NumPy array": (lambda x: (np.zeros(8, "f4"), np.int32(3), np.float32(1)), "must be an array on the device"),
    "None": (lambda _: (None, np.int32(3), np.float32(1)), "must be an array on the device"),
    "array for a number": (lambda x: (x, np.int32(3), x.sum()), "argument 2 must be a NumPy scalar"),
    "strided array": (lambda x: (x[::2], np.int32(3), np.float32(1)), "argument 0 is not contiguous"),
}


@pytest.mark.parametrize("call", CALLS)
def test_wrong_arguments_are_refused(emulated, call):
    make, message = CALLS[call]
    kernel, x = compiled(emulated, SIMPLE), emulated.zeros(8, dtype=np.float32)
    kernel((1,), (32,), (x, np.int32(3), np.float32(2)))
    assert x.tolist() == [2, 2, 2, 0, 0, 0, 0, 0]
    with pytest.raises(KernelError, match=message):
        kernel((1,), (32,), make(x))


@pytest.mark.parametrize(
    ("grid", "block", "shared", "message"),
    [
        ((0,), (32,), 0, "a grid must be from"),
        ((1, 65536), (32,), 0, "a grid must be from"),
        ((1,), (1025,), 0, "a block must be from"),
        ((1,), (1, 1, 65), 0, "a block must be from"),
        ((1,), (257,), 0, "257 threads in a block, but at most 256"),
        ((1,), (32,), 50_000, "set max_dynamic_shared_size_bytes"),
    ],
)
def test_launch_limits(emulated, grid, block, shared, message):
    bounds = 'extern "C" __global__ void __launch_bounds__(2 * SIZE, 3) k(float* x) {}'
    kernel, x = compiled(emulated, bounds, options=("-DSIZE=128",)), emulated.zeros(1, dtype=np.float32)
    with pytest.raises(KernelError, match=message):
        kernel(grid, block, (x,), shared_mem=shared)
    kernel.max_dynamic_shared_size_bytes = 60_000
    kernel((1,), (256,), (x,), shared_mem=60_000)
    kernel.max_dynamic_shared_size_bytes = 70_000
    with pytest.raises(KernelError, match="no block can have 70000 bytes"):
        kernel((1,), (32,), (x,))


def test_blocks_have_1024_threads_at_most(emulated):
    kernel = compiled(emulated, 'extern "C" __global__ void k(float* x) {}')
    kernel((1,), (32, 32), (emulated.zeros(1, dtype=np.float32),))
    with pytest.raises(KernelError, match="1056 threads in a block, but at most 1024"):
        kernel((1,), (32, 33), (emulated.zeros(1, dtype=np.float32),))


def test_arguments_must_not_overlap_if_one_is_written(emulated):
    source = 'extern "C" __global__ void k(const float* a, float* b) { b[threadIdx.x] = a[threadIdx.x]; }'
    kernel, x = compiled(emulated, source), emulated.zeros(64, dtype=np.float32)
    kernel((1,), (32,), (x[32:], x[:32]))
    with pytest.raises(KernelError, match="arguments 0 and 1 overlap"):
        kernel((1,), (32,), (x[:33], x[32:]))


def test_what_does_not_compile(emulated):
    with pytest.raises(CompileError, match="atomicMax"):  # CUDA has none for floats
        run(emulated, "atomicMax(x, 1.0f);")
    with pytest.raises(CompileError, match="stdio"):  # as NVRTC has no headers
        compiled(emulated, f"#include <stdio.h>\n{SIMPLE}")
    with pytest.raises(KernelError, match='extern "C"'):
        compiled(emulated, "__global__ void k(float* x) {}")
    with pytest.raises(KernelError, match="no kernel missing in this module, which has k"):
        compiled(emulated, SIMPLE, "missing")


def test_compiled_modules_are_kept(emulated, tmp_path, monkeypatch):
    monkeypatch.setenv("OT_NUMBA_CACHE_DIR", str(tmp_path))
    source = f"// {tmp_path}\n{SIMPLE}"
    compiled(emulated, source)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cuda_emulation").iterdir()}
    assert len(files) == 2  # and the device
    compiled(emulated, source)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cuda_emulation").iterdir()} == files


def test_missing_compiler_is_told(monkeypatch):
    assert compiler.missing() == ""
    monkeypatch.setattr(compiler, "COMPILER", "no-such-compiler")
    assert "no-such-compiler is not installed" in compiler.missing()


# ---------------------------------------------------------------- what is right passes, and computes

GOOD = {
    "block reduction": f"{TILE} s[t] = 1; __syncthreads(); for (int o = 32; o; o >>= 1) {{ if (t < o) s[t] += s[t + o];"
    " __syncthreads(); } if (!t) x[blockIdx.x] = s[0];",
    "warps through shared memory": "__shared__ float s[2]; float v = 1; int t = threadIdx.x;"
    " for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);"
    " if (t % 32 == 0) s[t / 32] = v; __syncthreads(); if (!t) x[blockIdx.x] = s[0] + s[1];",
    "warp tail": f"{TILE} s[t] = 1; __syncthreads(); if (t < 32) {{ s[t] += s[t + 32]; __syncwarp();"
    " for (int o = 16; o; o >>= 1) { float v = t < o ? s[t] + s[t + o] : s[t]; __syncwarp(); s[t] = v; __syncwarp(); }"
    " } if (!t) x[blockIdx.x] = s[0];",
    "parts of warps": "float v = 1; unsigned m = 0xffu << (threadIdx.x & 24);"
    " for (int o = 4; o; o >>= 1) v += __shfl_xor_sync(m, v, o);"
    " if (!threadIdx.x) x[blockIdx.x] = 8 * v;",
    "tile reused": f"{TILE} float a = 0; for (int r = 0; r < 4; ++r) {{ s[t] = 0.25f; __syncthreads();"
    " for (int i = 0; i < 64; ++i) a += s[i]; __syncthreads(); } if (!t) x[blockIdx.x] = a;",
    "dynamic shared memory": "extern __shared__ __align__(16) unsigned char raw[]; double* d = (double*)raw; float* f ="
    " (float*)(d + 64); int t = threadIdx.x; d[t] = 0.5; f[t] = 0.5f; __syncthreads(); float a = 0;"
    " for (int i = 0; i < 64; ++i) a += d[i] + f[i]; if (!t) x[blockIdx.x] = a;",
    "several declarations": "__shared__ float a[32], b[32]; __shared__ double c[2][16]; int t = threadIdx.x;"
    " if (t < 32) { a[t] = b[t] = 1; c[t / 16][t % 16] = 2; } __syncthreads(); float v = 0;"
    " for (int i = 0; i < 32; ++i) v += (a[i] + b[i] + c[i / 16][i % 16]) / 2; if (!t) x[blockIdx.x] = v;",
    "integer atomics": "__shared__ int count; if (!threadIdx.x) count = 0; __syncthreads(); atomicAdd(&count, 1);"
    " __syncthreads(); if (!threadIdx.x) x[blockIdx.x] = count;",
    "counted barrier": "int c = __syncthreads_count(1); if (!threadIdx.x) x[blockIdx.x] = c;",
    "64-bit index": "long long i = 70000ll * 70000ll; i -= 4900000000ll - blockIdx.x; if (!threadIdx.x) x[i] = 64;",
}


@each_schedule
@pytest.mark.parametrize("idiom", GOOD)
def test_correct_kernels_pass(emulated, idiom, schedule):
    out = run(emulated, GOOD[idiom], shared=1024 if "dynamic" in idiom else 0, **SCHEDULES[schedule])
    np.testing.assert_array_equal(out[:4], 64)


@each_schedule
def test_shuffles_are_those_of_the_specification(emulated, schedule):
    kernel = compiled(
        emulated,
        r"""extern "C" __global__ void k(const int* x, int* out, int by, int width) {
        int t = threadIdx.x, v = x[t];
        out[t] = __shfl_sync(0xffffffffu, v, by, width);
        out[64 + t] = __shfl_up_sync(0xffffffffu, v, by, width);
        out[128 + t] = __shfl_down_sync(0xffffffffu, v, by, width);
        out[192 + t] = __shfl_xor_sync(0xffffffffu, v, by, width); }""",
    )
    x = np.random.default_rng(0).integers(0, 1000, 64).astype(np.int32)
    lane, warp = np.arange(64) % 32, np.arange(64) // 32 * 32
    for width in (4, 32):
        for by in (0, 1, width // 2, width - 1):
            out = emulated.empty(256, dtype=np.int32)
            with configure(**SCHEDULES[schedule]):
                kernel((1,), (64,), (emulated.asarray(x), out, np.int32(by), np.int32(width)))
            base, within = lane // width * width, lane % width
            up, down = np.where(within < by, lane, lane - by), np.where(within + by >= width, lane, lane + by)
            wanted = [x[warp + source] for source in (base + by, up, down, base + (within ^ by))]
            np.testing.assert_array_equal(out.get(), np.concatenate(wanted))


@each_schedule
def test_votes(emulated, schedule):
    kernel = compiled(
        emulated,
        r"""extern "C" __global__ void k(const int* x, unsigned* out, double* d) {
        int t = threadIdx.x, v = x[t]; unsigned m = 0xffffffffu;
        out[t] = __ballot_sync(m, v & 1); out[64 + t] = __any_sync(m, v > 98); out[128 + t] = __all_sync(m, v >= 2);
        out[192 + t] = __syncthreads_or(v == 7); out[256 + t] = __syncthreads_and(v < 100);
        out[320 + t] = __match_any_sync(m, v % 7);
        d[t] = __shfl_xor_sync(m, 1.0 / (1 + v), 5); }""",
    )
    x = np.random.default_rng(1).integers(0, 100, 64).astype(np.int32)
    out, d = emulated.empty(384, dtype=np.uint32), emulated.empty(64)
    with configure(**SCHEDULES[schedule]):
        kernel((1,), (64,), (emulated.asarray(x), out, d))
    out, warps = out.get().reshape(6, 2, 32), x.reshape(2, 32)

    def ballot(votes):
        return (votes.astype(np.uint32) << np.arange(32, dtype=np.uint32)).sum(axis=-1)

    wanted = [ballot(warps & 1), (warps > 98).any(axis=1), (warps >= 2).all(axis=1)]
    for found, each in zip(out, wanted, strict=False):
        np.testing.assert_array_equal(found, np.repeat(each, 32).reshape(2, 32))
    assert (out[3] == (x == 7).any()).all()
    assert (out[4] == 1).all()
    np.testing.assert_array_equal(out[5], ballot(warps[:, :, None] % 7 == warps[:, None, :] % 7))
    np.testing.assert_array_equal(d.get().reshape(2, 32), (1 / (1 + warps))[:, np.arange(32) ^ 5])


@each_schedule
def test_atomics(emulated, schedule):
    kernel = compiled(
        emulated,
        r"""extern "C" __global__ void k(int* i, unsigned* u, unsigned long long* q, float* f, double* d) {
        int t = blockIdx.x * blockDim.x + threadIdx.x;
        atomicAdd(i, t); atomicMax(i + 1, t); atomicMin(i + 2, -t); atomicSub(i + 3, 1);
        atomicOr(u, 1u << (t & 31)); atomicXor(u + 1, (unsigned)t); atomicAnd(u + 2, ~(unsigned)t);
        atomicAdd(q, 1ull << 33); atomicMax(q + 1, (unsigned long long)t << 40); atomicAdd(f, 0.5f); atomicAdd(d, 0.25);
        if (atomicCAS(i + 4, 0, 5) == 0) atomicExch(i + 5, 6); }""",
    )
    i, u, q = (emulated.zeros(6, dtype=dtype) for dtype in (np.int32, np.uint32, np.uint64))
    u[2] = 0xFFFFFFFF
    f, d = emulated.zeros(1, dtype=np.float32), emulated.zeros(1)
    with configure(**SCHEDULES[schedule]):
        kernel((3,), (50,), (i, u, q, f, d))
    t = np.arange(150)
    assert i.tolist() == [t.sum(), 149, -149, -150, 5, 6]
    assert u.tolist()[:3] == [0xFFFFFFFF, np.bitwise_xor.reduce(t), 0xFFFFFF00]
    assert q.tolist()[:2] == [150 << 33, 149 << 40]
    assert (float(f[0]), float(d[0])) == (75, 37.5)


@each_schedule
def test_blocks_and_threads_in_three_dimensions(emulated, schedule):
    kernel = compiled(
        emulated,
        r"""extern "C" __global__ void k(int* out) {
        int b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
        int t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
        out[b * blockDim.x * blockDim.y * blockDim.z + t] = __popc(__activemask()) + 100 * __syncthreads_count(1); }""",
    )
    out = emulated.empty(2 * 3 * 2 * 40, dtype=np.int32)
    with configure(**SCHEDULES[schedule]):
        kernel((2, 3, 2), (5, 4, 2), (out,))
    np.testing.assert_array_equal(out.get().reshape(-1, 40), np.tile(4000 + np.repeat([32, 8], [32, 8]), (12, 1)))


def test_constants_templates_and_macros(emulated):
    kernel = compiled(
        emulated,
        r"""
        __constant__ double table[3] = {1, 2, 3};
        template <class T, int N> __device__ __forceinline__ T power(T v) {
          T out = 1;
        #pragma unroll
          for (int i = 0; i < N; ++i) out *= v;
          return out;
        }
        #define POWERS(T) \
          extern "C" __global__ void __launch_bounds__(32) powers_##T(T* __restrict__ x) { \
            __shared__ T s[32]; \
            s[threadIdx.x] = power<T, 3>(T(__ldg(x + threadIdx.x)) + T(table[1])); \
            x[threadIdx.x] = s[threadIdx.x]; \
          }
        POWERS(float)
        POWERS(double)""",
        "powers_double",
    )
    x = emulated.arange(32.0)
    kernel((1,), (32,), (x,))
    np.testing.assert_array_equal(x.get(), (np.arange(32.0) + 2) ** 3)


def test_small_floats_are_flushed_to_zero(emulated):
    """CuPy compiles with -ftz=true."""
    kernel = compiled(emulated, 'extern "C" __global__ void k(float* x) { x[1] = x[0] * 0.5f; }')
    x = emulated.asarray(np.array([2.0**-126, 1], dtype=np.float32))
    kernel((1,), (1,), (x,))
    assert x.tolist() == [2.0**-126, 0]


# ---------------------------------------------------------------- the stand-in for CuPy


def test_arrays_do_not_mix_with_numpy(emulated):
    x, h = emulated.arange(3.0), np.arange(3.0)
    for bad in (
        lambda: np.asarray(x),
        lambda: x + h,
        lambda: h + x,
        lambda: h @ x,
        lambda: emulated.exp(h),
        lambda: emulated.maximum(x, h),
        lambda: emulated.stack([h, h]),
        lambda: x.__setitem__(slice(None), h),
        lambda: x[h > 1],
    ):
        with pytest.raises(TypeError):
            bad()
    assert isinstance(np.exp(x), emulated.ndarray)
    assert isinstance(np.float64(2) * x, emulated.ndarray)


def test_arrays_are_arrays(emulated):
    x = emulated.arange(6.0).reshape(2, 3)
    assert x.sum().shape == x[1, 2].shape == ()
    assert isinstance(x[1, 2], emulated.ndarray)
    x[0, :] += 1
    x[1, 2] = 9
    assert (x @ x.T).tolist() == [[14, 38], [38, 106]]
    row = x[1]
    row[...] = 0
    assert x.tolist() == [[1, 2, 3], [0, 0, 0]]
    assert emulated.log(x).min() == -np.inf
    assert np.isnan(emulated.empty(4).get()).all()
    assert np.isnan(emulated.empty_like(x).get()).all()


def test_array_api_compat_knows_the_arrays(emulated):
    x = emulated.ones(3)
    assert array_api_compat.is_cupy_array(x)
    assert not array_api_compat.is_cupy_array(np.ones(3))
    xp = array_api_compat.array_namespace(x)
    assert xp.__name__ == "array_api_compat.cupy"
    assert array_api_compat.is_cupy_namespace(xp)
    assert array_api_compat.device(x) == x.device
    assert xp.cumulative_sum(x, include_initial=True).tolist() == [0, 1, 2, 3]


def test_what_costs_time_is_counted(emulated):
    host = np.ones(1000)
    with counted() as found:
        x = emulated.asarray(host)
        y = x * 2
        z = y[10:20]
        del y
        kernel = compiled(emulated, 'extern "C" __global__ void k(double* x) { x[threadIdx.x] += x[threadIdx.x]; }')
        kernel((1,), (10,), (z,))
        assert float(z.sum()) == 40
    assert found.to_device == 8000
    assert found.live == 16_000  # z holds what y was
    assert found.peak >= 16_000
    assert found.syncs == 1
    assert found.to_host == 8
    assert found.launches == [("k", (1, 1, 1), (10, 1, 1), ((80, 160, 80),))]
    with counted() as found:
        del x, z
    assert found.live == -16_000


def test_functions_are_those_of_cupy():
    known = stand_in._keywords()
    if known is None:
        pytest.skip("CuPy is not installed")
    assert set(stand_in.FUNCTIONS.split()) <= set(known)
    with install() as cupy, pytest.raises(TypeError, match="where"):
        cupy.sum(cupy.ones(3), where=True)  # NumPy has it


LINEAR_ALGEBRA = {"cupy.linalg.cholesky": "a", "cupyx.scipy.linalg.solve_triangular": "a b trans lower"}
LINEAR_ALGEBRA |= {"cupyx.errstate": "linalg"}


@pytest.mark.parametrize("name", LINEAR_ALGEBRA)
def test_linear_algebra_is_that_of_cupy(name):
    """From the sources, as some of it cannot be imported without the libraries of a GPU."""
    module, _, own = name.rpartition(".")
    root = PathFinder.find_spec(module.split(".")[0])
    if root is None:
        pytest.skip("CuPy is not installed")
    package = Path(root.submodule_search_locations[0]).parent
    exports = ast.walk(ast.parse(package.joinpath(*module.split("."), "__init__.py").read_text()))
    sources = [
        n.module for n in exports if isinstance(n, ast.ImportFrom) and own in [a.asname or a.name for a in n.names]
    ]
    defined = ast.parse(package.joinpath(*sources[0].split(".")).with_suffix(".py").read_text()).body
    (found,) = (n for n in defined if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name == own)
    if isinstance(found, ast.ClassDef):
        (found,) = (n for n in found.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    names = {argument.arg for argument in found.args.args + found.args.kwonlyargs}
    assert set(LINEAR_ALGEBRA[name].split()) <= names


def test_linear_algebra(emulated):
    from cupyx import errstate
    from cupyx.scipy.linalg import solve_triangular

    A, b = np.array([[4.0, 2.0], [2.0, 5.0]]), np.array([2.0, -1.0])
    L = emulated.linalg.cholesky(emulated.asarray(A))
    y = solve_triangular(L.T, emulated.asarray(b), trans="T")
    np.testing.assert_allclose(solve_triangular(L.T, y).get(), np.linalg.solve(A, b))
    with errstate(linalg="raise"), pytest.raises(np.linalg.LinAlgError):
        emulated.linalg.cholesky(emulated.asarray(-A))
    assert np.isnan(emulated.linalg.cholesky(emulated.asarray(-A)).get()).all()


def test_sparse_matrices(emulated):
    from cupyx.scipy.sparse import csr_matrix

    arrays = [emulated.asarray(v) for v in ([1.0, 2.0, 3.0], [0, 2, 1], [0, 2, 3])]
    matrix = csr_matrix(tuple(arrays), shape=(2, 3))
    assert (matrix.shape, matrix.nnz, matrix.dtype) == ((2, 3), 3, np.float64)
    assert matrix.get().toarray().tolist() == matrix.toarray().tolist() == [[1, 0, 2], [0, 3, 0]]
    with pytest.raises(TypeError, match="on the device"):
        csr_matrix((np.ones(1), arrays[1][:1], arrays[2][:2]), shape=(2, 3))


NO_TRACE = """
import sys
import numpy as np
import array_api_compat
import ot_numba
from emulation import install
try:
    import cupy as real
    import array_api_compat.cupy as wrapped
except ImportError:
    real = wrapped = None

def seen():
    return {name: id(module) for name, module in sys.modules.items() if "cupy" in name}

before = seen()
for _ in range(2):
    with install() as cupy:
        x = cupy.ones(3)
        assert array_api_compat.is_cupy_array(x)
        assert array_api_compat.array_namespace(x).asarray([1.0]).device == x.device
        assert array_api_compat.array_namespace(x) is not wrapped
    assert seen() == before
    assert sys.modules.get("cupy") is real
    assert getattr(array_api_compat, "cupy", None) is wrapped
    assert not array_api_compat.is_cupy_array(x)
    assert not array_api_compat.is_array_api_obj(x)
print(real is not None)
"""


@pytest.mark.parametrize("hidden", [False, True])
def test_nothing_stays_behind(hidden):
    code = ("import sys; sys.modules['cupy'] = None\n" if hidden else "") + NO_TRACE
    code = code.replace("real = wrapped = None", "sys.modules.pop('cupy', None); real = wrapped = None")
    folders = [str(Path(__file__).parent), str(Path(ot_numba.__file__).parents[1])]
    code = f"import sys; sys.path[:0] = {folders}\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.strip() in ({"False"} if hidden else {"True", "False"})


def test_options_come_back():
    with pytest.raises(ZeroDivisionError), configure(order="reverse", checked=False):
        raise ZeroDivisionError
    assert launcher.options == launcher.Options()
    with pytest.raises(TypeError, match="unknown"), configure(unknown=1):
        pass
