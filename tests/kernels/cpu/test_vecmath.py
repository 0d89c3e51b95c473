"""Vectorised exp and log against longer arithmetic, over all of their range."""

import re

import llvmlite.binding
import numpy as np
import pytest
from mpmath import libmp

from ot_numba.kernels.cpu import vecmath
from ot_numba.kernels.cpu.jit import kernel

NAMES = ["exp2_fast", "exp2", "exp", "log2", "log"]
DTYPES = [np.float64, np.float32]
FEATURES = llvmlite.binding.get_host_cpu_features()
HAS_FMA = FEATURES.get("fma", False) or "neon" in FEATURES
# Without fused multiply-add each step of a polynomial rounds twice.
MAX_ULP = {name: 1.0 if name.startswith("log") else 1.1 if HAS_FMA else 1.4 for name in NAMES}
LONG = np.finfo(np.longdouble).nmant >= 63


def _loop(name):
    function = getattr(vecmath, name)

    @kernel(cache=False)
    def apply(x, out):
        for i in range(x.shape[0]):
            out[i] = function(x[i])

    return apply


LOOPS = {name: _loop(name) for name in NAMES}


def _apply(name, x):
    out = np.empty_like(x)
    LOOPS[name](x, out)
    return out


def _points(name, dtype, n, rng):
    """About n arguments: all over the range, near where the result is 0 or 1, and, for logs, subnormal."""
    info = np.finfo(dtype)
    least, most = info.minexp - info.nmant, info.maxexp  # 2**least is subnormal
    if name.startswith("log"):
        x = [
            2.0 ** rng.uniform(least, most, n // 4),
            2.0 ** rng.uniform(least, info.minexp, n // 4),
            1 + rng.uniform(-0.35, 0.5, n // 4),
            1 + rng.choice([-1, 1], n // 4) * 10.0 ** rng.uniform(np.log10(info.eps), -1, n // 4),
        ]
    else:
        low = info.minexp if name == "exp2_fast" else least
        scale = np.log(2) if name == "exp" else 1.0
        x = [
            scale * rng.uniform(low, most - 1e-3, n // 4),
            scale * rng.uniform(low, low + info.nmant, n // 4),
            rng.uniform(-1, 1, n // 4),
            rng.choice([-1, 1], n // 4) * 10.0 ** rng.uniform(-20, 0, n // 4),
        ]
    x = np.concatenate(x).astype(dtype)
    return x[(x != 1) & np.isfinite(x)] if name.startswith("log") else x


def _spacing(exact, dtype):
    return np.spacing(np.abs(exact).astype(dtype)).astype(exact.dtype)


def _ulp_error(name, x, y):
    """Largest error of y, in units of the last place, by arithmetic at least 11 bits longer."""
    long = x.astype(np.float64 if x.dtype == np.float32 else np.longdouble)
    exact = getattr(np, name.removesuffix("_fast"))(long)
    return float(np.max(np.abs(y.astype(long.dtype) - exact) / _spacing(exact, x.dtype)))


def _ulp_error_mpmath(name, x, y):
    """Largest error of y, in units of the last place, by mpmath."""
    precision, down = 110, libmp.round_down
    ln2 = libmp.mpf_ln2(precision)
    functions = {
        "exp": lambda v: libmp.mpf_exp(v, precision, down),
        "exp2": lambda v: libmp.mpf_exp(libmp.mpf_mul(v, ln2), precision, down),
        "log": lambda v: libmp.mpf_log(v, precision, down),
        "log2": lambda v: libmp.mpf_div(libmp.mpf_log(v, precision, down), ln2, precision, down),
    }
    function = functions[name.removesuffix("_fast")]
    worst = 0.0
    spacing = np.spacing(np.abs(y))
    for argument, value, unit in zip(x.tolist(), y.tolist(), spacing.tolist(), strict=True):
        error = libmp.mpf_sub(libmp.from_float(value), function(libmp.from_float(argument)))
        worst = max(worst, abs(libmp.to_float(libmp.mpf_div(error, libmp.from_float(unit), 53, down))))
    return worst


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_error_is_about_one_unit_in_the_last_place(name, dtype):
    if dtype == np.float64 and not LONG:
        pytest.skip("no long double here that is longer than a double")
    x = _points(name, dtype, 1_000_000, np.random.default_rng(0))
    assert x.size > 900_000
    assert _ulp_error(name, x, _apply(name, x)) < MAX_ULP[name]


@pytest.mark.parametrize("name", NAMES)
def test_error_against_mpmath(name):
    x = _points(name, np.float64, 20_000, np.random.default_rng(1))
    y = _apply(name, x)
    error = _ulp_error_mpmath(name, x, y)
    assert error < MAX_ULP[name]
    if LONG:  # the reference of the test above is right, too
        assert _ulp_error(name, x, y) == pytest.approx(error, abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_error_against_mpmath_on_a_million_points(name):
    x = _points(name, np.float64, 1_000_000, np.random.default_rng(2))
    assert _ulp_error_mpmath(name, x, _apply(name, x)) < MAX_ULP[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_error_at_every_sixteenth_float32(name):
    worst = 0.0
    for start in range(0, 1 << 32, 1 << 26):
        x = np.arange(start, start + (1 << 26), 16, dtype=np.uint32).view(np.float32)
        with np.errstate(all="ignore"):
            exact = getattr(np, name.removesuffix("_fast"))(x.astype(np.float64))
        keep = np.isfinite(exact) & (np.abs(exact) <= np.finfo(np.float32).max)
        if name == "exp2_fast":
            keep &= (x >= -126) & (x <= 127)
        x, exact = x[keep], exact[keep]
        if x.size:
            worst = max(worst, np.max(np.abs(_apply(name, x) - exact) / _spacing(exact, np.float32)))
    assert 0.5 < worst < MAX_ULP[name]


@pytest.mark.parametrize("dtype", DTYPES)
def test_powers_of_two_are_exact(dtype):
    info = np.finfo(dtype)
    k = np.arange(info.minexp - info.nmant, info.maxexp, dtype=dtype)
    np.testing.assert_array_equal(_apply("exp2", k), np.ldexp(dtype(1), k.astype(int)))
    np.testing.assert_array_equal(_apply("log2", np.ldexp(dtype(1), k.astype(int))), k)
    normal = k[k >= info.minexp]
    np.testing.assert_array_equal(_apply("exp2_fast", normal), np.ldexp(dtype(1), normal.astype(int)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["exp2", "exp"])
def test_limits_of_exp(name, dtype):
    info = np.finfo(dtype)
    log = np.log2 if name == "exp2" else np.log
    most = dtype(log(np.longdouble(2)) * info.maxexp)
    least = dtype(log(np.longdouble(2)) * (info.minexp - info.nmant - 1))  # half of the least subnormal
    inf, nan = dtype(np.inf), dtype(np.nan)
    x = np.array(
        [inf, 2 * most, -inf, 2 * least, 0.0, -0.0, nan, -nan, info.tiny, info.smallest_subnormal], dtype
    )
    np.testing.assert_array_equal(_apply(name, x), np.array([inf, inf, 0, 0, 1, 1, nan, nan, 1, 1], dtype))
    edges = np.array([most, least], dtype)
    inside, outside = _apply(name, edges * dtype(0.9999)), _apply(name, edges * dtype(1.0001))
    assert np.isfinite(inside[0])
    assert inside[1] > 0
    np.testing.assert_array_equal(outside, [np.inf, 0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["log2", "log"])
def test_limits_of_log(name, dtype):
    inf, nan = dtype(np.inf), dtype(np.nan)
    x = np.array([0.0, -0.0, inf, -inf, nan, -nan, -1.0, -np.finfo(dtype).smallest_subnormal, 1.0], dtype)
    y = _apply(name, x)
    np.testing.assert_array_equal(y, np.array([-inf, -inf, inf, nan, nan, nan, nan, nan, 0], dtype))
    assert not np.signbit(y[-1])


@pytest.mark.parametrize("name", ["exp2", "exp", "log2", "log"])
def test_a_nan_with_a_payload_stays_nan(name):
    x = (np.float64(np.nan).view(np.uint64) + np.arange(4096, dtype=np.uint64)).view(np.float64)
    assert np.isnan(_apply(name, x)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp2_fast_is_never_zero_nor_subnormal(dtype):
    info = np.finfo(dtype)
    x = np.array([-np.inf, 1e4 * info.minexp, info.minexp - 1, info.minexp - 0.3, info.minexp], dtype)
    np.testing.assert_array_equal(_apply("exp2_fast", x), np.full(5, info.tiny))
    just_above = np.nextafter(dtype(info.minexp), dtype(0))
    assert _apply("exp2_fast", np.array([just_above, just_above / 2], dtype)).min() >= info.tiny
    assert np.isnan(_apply("exp2_fast", np.array([np.nan, -np.nan], dtype))).all()
    assert _apply("exp2_fast", np.array([info.maxexp - 1], dtype))[0] == dtype(2) ** (info.maxexp - 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_result_has_the_dtype_of_the_argument(name, dtype):
    function = getattr(vecmath, name)

    @kernel(cache=False)
    def call(x):
        return function(x[0])

    call(np.ones(1, dtype))
    assert str(call.nopython_signatures[0].return_type) == np.dtype(dtype).name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_plain_python_agrees(name, dtype):
    for x in np.array([0.3, 1.0, 7.25], dtype):
        plain = getattr(vecmath, name)(x)
        assert plain.dtype == dtype
        np.testing.assert_allclose(_apply(name, np.array([x]))[0], plain, rtol=4 * np.finfo(dtype).eps)


@kernel(cache=False)
def _sum_exp2_fast(x):
    s = x.dtype.type(0)
    for i in range(x.shape[0]):
        s += vecmath.exp2_fast(x[i])
    return s


@pytest.mark.skipif(not FEATURES.get("fma", False), reason="looks for x86 fused multiply-adds")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*NAMES, "sum of exp2_fast"])
def test_loop_is_vectorised(name, dtype):
    x = np.full(64, 0.5, dtype)
    if name in LOOPS:
        loop = LOOPS[name]
        loop(x, np.empty_like(x))
    else:
        loop = _sum_exp2_fast
        assert loop(x) == pytest.approx(64 * 2**0.5, rel=1e-6)
    assembly = next(
        text for types, text in loop.inspect_asm().items() if types[0].dtype.name == np.dtype(dtype).name
    )
    packed = "pd" if dtype == np.float64 else "ps"
    assert len(re.findall(rf"\bvfn?m(?:add|sub)\d+{packed}\b", assembly)) >= 4
    assert not re.search(r"\bcall\w*\s.*\b(exp|log)", assembly)
