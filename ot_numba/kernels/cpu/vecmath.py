"""Branch-free exp and log that LLVM vectorises inside any compiled loop, for float64 and float32.

2**x: adding M = 1.5 * 2**52 to x rounds it to the nearest integer n and leaves n in the low bits of the sum
t, so that r = x - (t - M) is exact and |r| <= 1/2. A minimax polynomial gives 2**r, and n is added to the
bits of its exponent.

log z: z = 2**k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), s = f / (2 + f), and log(1 + f) = 2 atanh(s),
written f - (f**2 / 2 - s (f**2 / 2 + R(s**2))) so that the leading terms are exact (the scheme of fdlibm).

Only the flag 'contract' is allowed in here: with 'reassoc' LLVM would fold (x + M) - M into x. The flags
belong to each instruction, so that callers may be compiled with others (but never 'nnan' or 'ninf').
"""

import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

__all__ = ["exp", "exp2", "exp2_fast", "log", "log2"]

_OPTIONS = {"error_model": "numpy", "fastmath": {"contract"}, "forceinline": True}


def _polynomial(*coefficients: float) -> Callable:
    """Horner's rule for c0 + c1 x + c2 x**2 + ... in the type of x."""

    @intrinsic
    def evaluate(context, x):
        def generate(context, builder, signature, arguments):
            (x,) = arguments
            value = ir.Constant(x.type, coefficients[-1])
            for c in reversed(coefficients[:-1]):
                product = builder.fmul(value, x, flags=["contract"])
                value = builder.fadd(product, ir.Constant(x.type, c), flags=["contract"])
            return value

        return x(x), generate

    return evaluate


def _layout(x: ir.Value) -> tuple[ir.IntType, int, int]:
    """Of a float's type: the integer of its size, the number of mantissa bits, the exponent's bias."""
    return (ir.IntType(64), 52, 1023) if isinstance(x.type, ir.DoubleType) else (ir.IntType(32), 23, 127)


@intrinsic
def _shift_exponent(context, p, t):
    """Product p * 2**n; the low bits of t = M + n hold n, and the result must be a normal number."""

    def generate(context, builder, signature, arguments):
        p, t = arguments
        integer, mantissa, _ = _layout(p)
        n = builder.shl(builder.bitcast(t, integer), ir.Constant(integer, mantissa))
        return builder.bitcast(builder.add(builder.bitcast(p, integer), n), p.type)

    return p(p, t), generate


@intrinsic
def _exponent(context, x):
    """Integer k, as a float, with x / 2**k in [sqrt(1/2), sqrt(2)), for normal x > 0."""

    def generate(context, builder, signature, arguments):
        (x,) = arguments
        integer, mantissa, bias = _layout(x)
        root = ir.Constant(x.type, math.sqrt(0.5))
        offset = builder.sub(ir.Constant(integer, bias << mantissa), builder.bitcast(root, integer))
        k = builder.lshr(builder.add(builder.bitcast(x, integer), offset), ir.Constant(integer, mantissa))
        # The biased k becomes a float as the low bits of 2**mantissa: packed conversions are not everywhere.
        k = builder.bitcast(builder.or_(k, ir.Constant(integer, (bias + mantissa) << mantissa)), x.type)
        return builder.fsub(k, ir.Constant(x.type, float((1 << mantissa) + bias)))

    return x(x), generate


@intrinsic
def _leading_half(context, x):
    """Float x with the lower half of its mantissa cleared."""

    def generate(context, builder, signature, arguments):
        (x,) = arguments
        integer, mantissa, _ = _layout(x)
        low = 32 if mantissa == 52 else 12
        mask = ir.Constant(integer, -1 << low)
        return builder.bitcast(builder.and_(builder.bitcast(x, integer), mask), x.type)

    return x(x), generate


def _format(scalar, mantissa, exp2_range, exp_range, ln2, log2e, power2, power_e, atanh) -> SimpleNamespace:
    """The constants of one float type, as scalars of that type."""
    return SimpleNamespace(
        zero=scalar(0.0),
        half=scalar(0.5),
        one=scalar(1.0),
        two=scalar(2.0),
        nan=scalar(np.nan),
        inf=scalar(np.inf),
        magic=scalar(1.5 * 2.0**mantissa),
        lowest=scalar(np.finfo(scalar).minexp),
        tiny=np.finfo(scalar).tiny,
        upscale=scalar(2.0 ** (mantissa + 2)),
        upscale_power=scalar(mantissa + 2),
        exp2_range=tuple(map(scalar, exp2_range)),
        exp_range=tuple(map(scalar, exp_range)),
        ln2=tuple(map(scalar, ln2)),
        log2e=tuple(map(scalar, log2e)),
        power2=_polynomial(*power2),
        power_e=_polynomial(*power_e),
        atanh=_polynomial(*atanh),
    )


# The ranges reach past all results that are neither 0 nor inf. ln2 and log2e are split so that the product of
# the leading part and an exponent, or a leading half, is exact. The polynomials are minimax: 2**r for
# |r| <= 1/2 and e**r for |r| <= ln(2) / 2 in relative error (1.8e-17 and 3.6e-18; float32 2.6e-9 and 3.1e-9),
# and (2 atanh(s) / s - 2) / s**2 as a function of s**2 (error times s**2: 2.5e-18; float32 9.6e-12).
_FORMATS = {
    types.float64: _format(
        scalar=np.float64,
        mantissa=52,
        exp2_range=(-1076.0, 1025.0),
        exp_range=(-746.0, 710.0),
        ln2=(0.6931471806019545, -4.2009150726810846e-11),
        log2e=(1.442695140838623, -9.994965963951508e-08),
        power2=(
            1.0, 0.6931471805599457, 0.24022650695910097, 0.05550410866479039, 0.009618129107607003,
            0.0013333558153439966, 0.0001540353044157213, 1.5252727385193868e-05, 1.3215442675329823e-06,
            1.0180647659234139e-07, 7.072570412814423e-09, 4.078071929588337e-10,
        ),
        power_e=(
            1.0, 1.0, 0.5000000000000011, 0.16666666666666413, 0.041666666666530267, 0.00833333333349434,
            0.001388888894359798, 0.00019841269506765181, 2.480149313584759e-05, 2.7557586278764215e-06,
            2.7630234053614403e-07, 2.50000685892308e-08,
        ),
        atanh=(
            0.6666666666666734, 0.39999999999414676, 0.2857142874238834, 0.22222198573099777,
            0.18183564330981558, 0.15314050417786806, 0.14795951132901533,
        ),
    ),
    types.float32: _format(
        scalar=np.float32,
        mantissa=23,
        exp2_range=(-151.0, 129.0),
        exp_range=(-105.0, 89.0),
        ln2=(0.693145751953125, 1.4286068203094173e-06),
        log2e=(1.44287109375, -0.00017605285),
        power2=(
            1.0, 0.6931472149680279, 0.24022652782887738, 0.05550310551013797, 0.009617692972993062,
            0.0013406643902351759, 0.0001559467816132662,
        ),
        power_e=(
            1.0, 1.0, 0.49999993451713626, 0.16666520689348488, 0.04166838736060683, 0.008368709882029476,
            0.0013814613401622422,
        ),
        atanh=(0.6666666564545229, 0.40000335191863334, 0.28537308476409945, 0.2358215260915037),
    ),
}  # fmt: skip


def _compiled(function: Callable) -> Callable:
    """Decorator of ``constants -> body``: the body is what compiled code calls by the name of `function`."""

    def decorate(make: Callable) -> Callable:
        @overload(function, jit_options=_OPTIONS)
        def implement(x):
            return make(_FORMATS[x]) if x in _FORMATS else None

        return make

    return decorate


def exp2_fast(x):
    """``2**max(x, -1022)`` for x <= 1023; in float32 ``2**max(x, -126)`` for x <= 127.

    For sums, in which 2**-1022 is as good as 0: one and a half times as fast as `exp2`.

    Parameters
    ----------
    x : float64 or float32
        From compiled code, a scalar. Not checked: larger ones give nonsense. NaN gives NaN, if arithmetic
        made it (the lowest 12 bits, in float32 9, must not carry a payload).

    Returns
    -------
    float64 or float32
        As x; error below 1.1 units in the last place (1.4 on a processor without fused multiply-add), none
        where x is an integer.

    Examples
    --------
    >>> import numpy as np
    >>> from ot_numba.kernels.cpu.jit import kernel
    >>> from ot_numba.kernels.cpu.vecmath import exp2_fast
    >>> @kernel
    ... def total(x):
    ...     s = 0.0
    ...     for i in range(x.shape[0]):
    ...         s += exp2_fast(x[i])
    ...     return s
    >>> total(np.array([3.0, -1.0, -np.inf]))
    8.5
    """
    return np.exp2(np.maximum(x, np.finfo(x.dtype).minexp))


@_compiled(exp2_fast)
def _exp2_fast(c):
    magic, lowest, power2 = c.magic, c.lowest, c.power2

    def body(x):
        x = lowest if x < lowest else x  # a NaN passes
        t = x + magic
        return _shift_exponent(power2(x - (t - magic)), t)

    return body


def exp2(x):
    """``2**x`` for any x, with subnormal results, 0 and inf as in IEEE 754.

    Parameters
    ----------
    x : float64 or float32
        From compiled code, a scalar.

    Returns
    -------
    float64 or float32
        As x; error below 1.1 units in the last place (1.4 on a processor without fused multiply-add), none
        where x is an integer.

    Examples
    --------
    >>> import numpy as np
    >>> from ot_numba.kernels.cpu.vecmath import exp2
    >>> float(exp2(np.float64(-2.0)))
    0.25
    """
    return np.exp2(x)


@_compiled(exp2)
def _exp2(c):
    magic, half, one, power2 = c.magic, c.half, c.one, c.power2
    low, high = c.exp2_range

    def body(x):
        y = low if x < low else x
        y = high if y > high else y
        n = (y + magic) - magic
        t = n * half + magic
        # 2**n may be out of range where the result is not: in two steps, of which only the second can round.
        y = _shift_exponent(power2(y - n), t) * _shift_exponent(one, (n - (t - magic)) + magic)
        return x if x != x else y

    return body


def exp(x):
    """``e**x`` for any x, with subnormal results, 0 and inf as in IEEE 754.

    Parameters
    ----------
    x : float64 or float32
        From compiled code, a scalar.

    Returns
    -------
    float64 or float32
        As x; error below 1 unit in the last place (1.4 on a processor without fused multiply-add).

    Examples
    --------
    >>> import numpy as np
    >>> from ot_numba.kernels.cpu.vecmath import exp
    >>> float(exp(np.float64(0.0)))
    1.0
    """
    return np.exp(x)


@_compiled(exp)
def _exp(c):
    magic, half, one, log2e, power_e = c.magic, c.half, c.one, c.log2e[0], c.power_e
    low, high = c.exp_range
    ln2_high, ln2_low = c.ln2

    def body(x):
        y = low if x < low else x
        y = high if y > high else y
        n = (y * log2e + magic) - magic
        t = n * half + magic
        y = _shift_exponent(power_e((y - n * ln2_high) - n * ln2_low), t)
        y = y * _shift_exponent(one, (n - (t - magic)) + magic)
        return x if x != x else y

    return body


def _log_terms(x):
    """Terms (k, f, h, q) of log(x) = k log(2) + (f - (h - q)) for 0 < x < inf."""


@_compiled(_log_terms)
def _(c):
    magic, half, one, two, atanh = c.magic, c.half, c.one, c.two, c.atanh
    tiny, upscale, upscale_power, zero = c.tiny, c.upscale, c.upscale_power, c.zero

    def body(x):
        subnormal = x < tiny
        x = x * upscale if subnormal else x
        k = _exponent(x)
        f = _shift_exponent(x, magic - k) - one
        k = k - (upscale_power if subnormal else zero)
        s = f / (two + f)
        w = s * s
        h = half * f * f
        return k, f, h, s * (h + w * atanh(w))

    return body


def _log_limits(x, y):
    """Logarithm y of x, put right where x is not in 0 < x < inf."""


@overload(_log_limits, jit_options=_OPTIONS)
def _(x, y):
    c = _FORMATS[x]
    zero, inf, nan = c.zero, c.inf, c.nan

    def body(x, y):
        y = y if x < inf else x  # inf and NaN
        y = -inf if x == zero else y
        return nan if x < zero else y

    return body


def log(x):
    """Natural logarithm of any x: -inf at 0, NaN below.

    Parameters
    ----------
    x : float64 or float32
        From compiled code, a scalar; may be subnormal.

    Returns
    -------
    float64 or float32
        As x; error below 1 unit in the last place.

    Examples
    --------
    >>> import numpy as np
    >>> from ot_numba.kernels.cpu.vecmath import log
    >>> float(log(np.float64(1.0)))
    0.0
    """
    return np.log(x)


@_compiled(log)
def _log(c):
    ln2_high, ln2_low = c.ln2

    def body(x):
        k, f, h, q = _log_terms(x)
        return _log_limits(x, k * ln2_high - ((h - (q + k * ln2_low)) - f))

    return body


def log2(x):
    """Logarithm to base 2 of any x: -inf at 0, NaN below.

    Parameters
    ----------
    x : float64 or float32
        From compiled code, a scalar; may be subnormal.

    Returns
    -------
    float64 or float32
        As x; error below 1 unit in the last place, none where x is a power of 2.

    Examples
    --------
    >>> import numpy as np
    >>> from ot_numba.kernels.cpu.vecmath import log2
    >>> float(log2(np.float64(0.125)))
    -3.0
    """
    return np.log2(x)


@_compiled(log2)
def _log2(c):
    log2e_high, log2e_low = c.log2e

    def body(x):
        k, f, h, q = _log_terms(x)
        high = _leading_half(f - h)
        low = ((f - high) - h) + q
        v = high * log2e_high  # exact
        y = k + v
        return _log_limits(x, y + (((k - y) + v) + (low * log2e_high + (low + high) * log2e_low)))

    return body
