import math
import tracemalloc
from fractions import Fraction

import array_api_strict
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

from ot_numba.arrays import (
    as_float_array,
    check_balanced,
    check_choice,
    check_int,
    check_real,
    check_rng,
    check_weights,
    common_dtype,
    device_of,
    to_numpy,
)

OTHER_DEVICE = array_api_strict.Device("device1")
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=5)


def assert_canonical(out, dtype):
    assert type(out) is np.ndarray
    assert out.dtype == np.dtype(dtype)
    assert out.dtype.isnative
    assert out.flags.c_contiguous
    assert out.flags.aligned


class TestAsFloatArray:
    @pytest.mark.parametrize("dtype", [np.float64, np.float32])
    def test_no_copy_and_no_write(self, dtype):
        x = np.arange(6, dtype=dtype).reshape(2, 3)
        x.flags.writeable = False
        assert as_float_array(x, "x", ndim=2) is x

    def test_no_copy_in_other_libraries(self):
        x = array_api_strict.ones((2, 2))
        assert as_float_array(x, "x") is x

    @pytest.mark.parametrize(
        ("x", "dtype"),
        [
            ([1, 2], "f8"),
            ([[True, False]], "f8"),
            ((0.5, 1.5), "f8"),
            (range(3), "f8"),
            (2, "f8"),
            (np.float32(2), "f4"),
            (np.array([1, 2], "i4"), "f8"),
            (np.array([1, 2], "u8"), "f8"),
            (np.array([True]), "f8"),
            (np.array([1.5], "f2"), "f4"),
            (np.array([1.5], np.longdouble), "f8"),
            (np.array([1.5], ">f8"), "f8"),
            (np.array([1.5], ">f4"), "f4"),
            (np.array([1.5], ">f2"), "f4"),
        ],
    )
    def test_promotion(self, x, dtype):
        out = as_float_array(x, "x")
        assert_canonical(out, dtype)
        np.testing.assert_array_equal(out, np.asarray(x, dtype))

    @given(
        hnp.arrays(
            dtype=st.one_of(
                hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
                hnp.integer_dtypes(endianness="?"),
                hnp.boolean_dtypes(),
            ),
            shape=SHAPES,
            elements={"allow_nan": False, "allow_infinity": False},
        ),
        st.sampled_from(["as it is", "Fortran", "reversed", "strided", "misaligned", "read-only"]),
    )
    def test_any_layout(self, x, layout):
        if layout == "Fortran":
            x = np.asfortranarray(x)
        elif layout == "reversed" and x.ndim:
            x = x[::-1]
        elif layout == "strided" and x.ndim:
            x = np.repeat(x, 2, axis=-1)[..., ::2]
        elif layout == "misaligned":
            raw = np.zeros(x.nbytes + 1, np.uint8)
            raw[1:] = np.frombuffer(x.tobytes(), np.uint8)
            x = raw[1:].view(x.dtype).reshape(x.shape)
        elif layout == "read-only":
            x.flags.writeable = False
        before = x.tobytes()
        out = as_float_array(x, "x")
        assert_canonical(out, "f4" if x.dtype.kind == "f" and x.dtype.itemsize < 8 else "f8")
        np.testing.assert_array_equal(out, x.astype(out.dtype))
        assert x.tobytes() == before

    def test_misaligned_array_is_copied(self):
        x = np.zeros(17, np.uint8)[1:].view(np.float64)
        assert not x.flags.aligned
        assert_canonical(as_float_array(x, "x"), "f8")

    @pytest.mark.parametrize("dtype", ["float32", np.float32, np.dtype("float32"), array_api_strict.float32])
    def test_dtype_of_any_library(self, xp, dtype):
        assert as_float_array(xp.ones(2), "x", dtype=dtype).dtype == xp.float32
        assert as_float_array([1, 2], "x", xp=xp, dtype=dtype).dtype == xp.float32

    @pytest.mark.parametrize("dtype", ["float16", int, "complex128", np.longdouble])
    def test_dtype_refused(self, dtype):
        with pytest.raises(TypeError, match="dtype must be float32 or float64"):
            as_float_array([1.0], "x", dtype=dtype)

    def test_promotion_in_other_libraries(self):
        xp = array_api_strict
        assert as_float_array(xp.asarray([1, 2]), "x").dtype == xp.float64
        assert as_float_array(xp.asarray([True]), "x").dtype == xp.float64
        assert as_float_array(xp.asarray([1.0], dtype=xp.float32), "x").dtype == xp.float32

    def test_lists_go_where_they_are_sent(self):
        out = as_float_array([1, 2], "x", xp=array_api_strict, device=OTHER_DEVICE)
        assert device_of(out) == OTHER_DEVICE
        assert to_numpy(out).tolist() == [1.0, 2.0]

    def test_arrays_are_not_moved(self):
        with pytest.raises(TypeError, match=r"x and the other arguments mix.*array_api_strict and numpy"):
            as_float_array(np.ones(2), "x", xp=array_api_strict)
        with pytest.raises(TypeError, match=r"x and the other arguments are on different devices.*device1"):
            as_float_array(array_api_strict.ones(2), "x", device=OTHER_DEVICE)

    @pytest.mark.parametrize(
        "x",
        [
            np.array([1 + 2j]),
            [1j],
            1j,
            ["a"],
            np.array(["a"]),
            np.array([b"a"]),
            np.array([None]),
            [None, 1.0],
            np.array(["2020-01-01"], "M8[D]"),
            np.array([1], "m8[s]"),
            np.zeros(2, [("u", float)]),
            [10**400],
            array_api_strict.asarray([1j]),
        ],
    )
    def test_not_real(self, x):
        with pytest.raises(TypeError, match="C must hold real numbers, got dtype"):
            as_float_array(x, "C")

    @pytest.mark.parametrize("x", ["text", b"text", {"a": 1}, object()])
    def test_not_an_array(self, x):
        with pytest.raises(TypeError, match="C: expected an array"):
            as_float_array(x, "C")

    def test_list_of_what_does_not_convert(self):
        class OnDevice:
            def __array__(self, dtype=None, copy=None):
                raise TypeError("implicit conversion is not allowed")

        with pytest.raises(TypeError, match="C cannot be made an array: implicit conversion"):
            as_float_array([OnDevice()], "C")

    def test_ragged(self):
        with pytest.raises(ValueError, match="C cannot be made an array"):
            as_float_array([[1.0], [1.0, 2.0]], "C")

    def test_ndim(self, xp):
        with pytest.raises(ValueError, match=r"C must have 2 dimension.*got shape \(3,\)"):
            as_float_array(xp.ones(3), "C", ndim=2)
        with pytest.raises(ValueError, match=r"C must have 1 or 2 dimension.*got shape \(\)"):
            as_float_array(2.0, "C", ndim=(1, 2))
        assert as_float_array(xp.ones(3), "C", ndim=(1, 2)).ndim == 1

    @pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)])
    def test_empty(self, xp, shape):
        with pytest.raises(ValueError, match="C is empty: shape "):
            as_float_array(xp.ones(shape), "C")

    @pytest.mark.parametrize("allow_inf", [False, True])
    @pytest.mark.parametrize("other", [0.0, math.inf, -math.inf])
    def test_nan(self, xp, allow_inf, other):
        x = [[1.0, other, math.nan], [2.0, math.nan, 3.0]]
        with pytest.raises(ValueError, match=r"C has NaN in 2 of 6 entries, the first at index \(0, 2\)"):
            as_float_array(xp.asarray(x), "C", allow_inf=allow_inf)

    def test_inf(self, xp):
        x = xp.asarray([1.0, 2.0, math.inf])
        assert as_float_array(x, "C", allow_inf=True) is x
        with pytest.raises(ValueError, match="C has inf in 1 of 3 entries, at index 2"):
            as_float_array(x, "C")

    @pytest.mark.parametrize("allow_inf", [False, True])
    def test_minus_inf(self, xp, allow_inf):
        with pytest.raises(ValueError, match="C has -inf in 1 of 3 entries, at index 1"):
            as_float_array(xp.asarray([math.inf, -math.inf, 0.0]), "C", allow_inf=allow_inf)

    def test_nan_scalar(self):
        with pytest.raises(ValueError, match="x has NaN in 1 of 1 entries, the value itself"):
            as_float_array(math.nan, "x")

    def test_large_finite_values_whose_sum_overflows(self, xp):
        for dtype in (xp.float32, xp.float64):
            x = xp.full((4,), float(xp.finfo(dtype).max), dtype=dtype)
            assert as_float_array(x, "C") is x

    @pytest.mark.parametrize("allow_inf", [False, True])
    def test_overflow_of_a_narrower_dtype(self, xp, allow_inf):
        x = xp.asarray([1e300, 1.0])
        with pytest.raises(ValueError, match=r"C has 1 value\(s\) beyond the range of float32"):
            as_float_array(x, "C", dtype="float32", allow_inf=allow_inf)

    def test_infinity_stays_in_a_narrower_dtype(self, xp):
        out = as_float_array(xp.asarray([math.inf, 1.0]), "C", dtype="float32", allow_inf=True)
        assert to_numpy(out).tolist() == [math.inf, 1.0]

    def test_overflow_of_extended_precision(self):
        x = np.array([np.finfo(np.longdouble).max])
        if x.dtype.itemsize == 8:
            pytest.skip("longdouble is float64 here")
        with pytest.raises(ValueError, match="beyond the range of float64"):
            as_float_array(x, "C", allow_inf=True)

    @pytest.mark.parametrize("entry", [0.0, math.inf])
    def test_no_temporary_of_the_size_of_the_input(self, entry):
        x = np.ones((1000, 1000))
        x[3, 4] = entry
        tracemalloc.start()
        try:
            as_float_array(x, "C", allow_inf=True)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 100_000


class TestCommonDtype:
    @pytest.mark.parametrize(
        ("dtypes", "wanted"),
        [
            (["f4"], "f4"),
            (["f8"], "f8"),
            (["f2"], "f4"),
            (["f2", "f4"], "f4"),
            (["f4", "f8"], "f8"),
            ([">f4", "f4"], "f4"),
            (["f4", "i8"], "f4"),
            (["i8"], "f8"),
            (["?"], "f8"),
            (["f4", "g"], "f8"),
        ],
    )
    def test_numpy(self, dtypes, wanted):
        arrays = [np.ones(2, dtype) for dtype in dtypes]
        assert common_dtype(*arrays) == common_dtype(None, *arrays, [1.0], 2.0) == np.dtype(wanted)

    def test_no_array(self):
        assert common_dtype([1.0], None, np.float32(1)) == np.float64

    def test_other_library(self):
        xp = array_api_strict
        assert common_dtype(xp.ones(2, dtype=xp.float32), [1.0]) == xp.float32
        assert common_dtype(xp.ones(2, dtype=xp.float32), xp.ones(2)) == xp.float64

    def test_mixed(self):
        with pytest.raises(TypeError, match="array_api_strict and numpy"):
            common_dtype(np.ones(2), array_api_strict.ones(2))


class TestCheckWeights:
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("device", [None, OTHER_DEVICE])
    def test_uniform(self, xp, dtype, device):
        device = None if xp is np else device
        like = xp.ones(1, dtype=getattr(xp, dtype), device=device)
        w = check_weights(None, "a", 3, like=like)
        assert w.dtype == like.dtype
        assert device_of(w) == device_of(like)
        np.testing.assert_array_equal(to_numpy(w), np.full(3, 1 / 3, dtype))

    def test_no_copy(self, xp):
        w = xp.asarray([0.0, 0.5, 1.5])
        assert check_weights(w, "a", 3, like=xp.ones(1)) is w

    def test_lists_and_other_dtypes_follow_like(self, xp):
        like = xp.ones(1, dtype=xp.float32)
        for w in ([1, 2], xp.asarray([1, 2]), xp.asarray([1.0, 2.0])):
            out = check_weights(w, "a", 2, like=like)
            assert out.dtype == xp.float32
            assert to_numpy(out).tolist() == [1.0, 2.0]

    @pytest.mark.parametrize(
        ("w", "message"),
        [
            ([0.5, 0.5], r"b must have shape \(3,\), got \(2,\)"),
            ([[1.0], [1.0], [1.0]], r"b must have 1 dimension.*got shape \(3, 1\)"),
            ([0.5, -0.25, 0.5], r"b must not be negative, got b\[1\] = -0\.25"),
            ([0.5, math.nan, 0.5], "b has NaN in 1 of 3 entries, at index 1"),
            ([0.5, 0.5, math.inf], "b has inf in 1 of 3 entries, at index 2"),
            ([0.0, 0.0, 0.0], r"b sums to 0\.0"),
            ([1e308, 1e308, 1e308], "b sums to inf"),
        ],
    )
    def test_refused(self, xp, w, message):
        with pytest.raises(ValueError, match=message):
            check_weights(w, "b", 3, like=xp.ones(1))

    def test_total_is_taken_in_float64(self, xp):
        big = float(xp.finfo(xp.float32).max)
        w = xp.full((3,), big, dtype=xp.float32)
        assert check_weights(w, "a", 3, like=w) is w

    def test_other_library_is_refused(self):
        with pytest.raises(TypeError, match="a and the other arguments mix"):
            check_weights(np.ones(2), "a", 2, like=array_api_strict.ones(1))


class TestCheckBalanced:
    def test_equal_sums_change_nothing(self, xp):
        a, b = xp.asarray([0.5, 0.5]), xp.asarray([0.25, 0.75])
        assert check_balanced(a, b) is b

    @given(
        hnp.arrays(float, st.integers(1, 20), elements=st.floats(0.1, 10)),
        hnp.arrays(float, st.integers(1, 20), elements=st.floats(0.1, 10)),
        st.floats(-0.9e-8, 0.9e-8),
    )
    def test_rescales_within_tolerance(self, xp, a, b, off):
        b = b * (a.sum() / b.sum()) * (1 + off)
        before = b.copy()
        out = to_numpy(check_balanced(xp.asarray(a), xp.asarray(b)))
        assert out.sum() == pytest.approx(a.sum(), rel=1e-15 * (a.size + b.size), abs=0)
        np.testing.assert_allclose(out, b, rtol=1e-8)
        np.testing.assert_array_equal(b, before)

    @pytest.mark.parametrize(
        ("dtype", "off", "accepted"),
        [
            ("float64", 0.9e-8, True),
            ("float64", 1.1e-8, False),
            ("float32", 0.9e-5, True),
            ("float32", 1.1e-5, False),
        ],
    )
    def test_tolerance(self, xp, dtype, off, accepted):
        a = xp.asarray([1.0, 0.0], dtype=getattr(xp, dtype))
        b = xp.asarray([0.5, 0.5 + off], dtype=getattr(xp, dtype))
        if accepted:
            out = check_balanced(a, b)
            assert out.dtype == b.dtype
            assert float(xp.sum(out)) == pytest.approx(1, rel=2 * float(xp.finfo(b.dtype).eps))
        else:
            for pair in ((a, b), (b, a)):
                with pytest.raises(ValueError, match=r"a sums to .* but b to .*unbalanced="):
                    check_balanced(*pair)

    def test_names_both_sums(self, xp):
        with pytest.raises(ValueError, match=r"a sums to 1\.0 but b to 2\.0"):
            check_balanced(xp.asarray([0.5, 0.5]), xp.asarray([1.0, 1.0]))

    def test_float32_sum_of_many(self, xp):
        n = 1_000_001
        a = xp.full((n,), 1 / n, dtype=xp.float32)
        b = xp.asarray([1.0], dtype=xp.float32)
        assert float(check_balanced(a, b)[0]) == pytest.approx(1, abs=1e-6)


class TestCheckReal:
    @pytest.mark.parametrize(
        "value",
        [2, 2.0, np.float32(2), np.int8(2), np.array(2.0), np.array([2.0]), np.array([[2]]), Fraction(2)],
    )
    def test_accepted(self, value):
        out = check_real(value, "reg")
        assert type(out) is float
        assert out == 2.0

    def test_one_entry_of_another_library(self):
        assert check_real(array_api_strict.asarray(2.0), "reg") == 2.0
        assert check_real(array_api_strict.asarray([2.0]), "reg") == 2.0

    @pytest.mark.parametrize(
        "value",
        [
            True, np.True_, np.array(True), "2", b"2", None, 2j, np.complex64(2), [2.0], np.ones(2),
            np.ones(0), np.array("2"), np.array([None]), array_api_strict.asarray([1.0, 2.0]), object(),
        ],
    )  # fmt: skip
    def test_refused(self, value):
        with pytest.raises(TypeError, match="reg must be a real number, got"):
            check_real(value, "reg")

    def test_nan(self):
        with pytest.raises(ValueError, match="reg must be a number, got nan"):
            check_real(math.nan, "reg")

    def test_integer_that_no_float_can_hold(self):
        with pytest.raises(ValueError, match="reg is beyond the range of float64"):
            check_real(10**400, "reg")

    @pytest.mark.parametrize(
        ("value", "bounds", "message"),
        [
            (-1, {"low": 0}, "reg must be >= 0, got -1"),
            (0, {"low": 0, "low_open": True}, "reg must be > 0, got 0"),
            (2, {"high": 1}, "reg must be <= 1, got 2"),
            (1, {"low": 0, "high": 1, "high_open": True}, "reg must be >= 0 and < 1, got 1"),
            (math.inf, {"high": math.inf, "high_open": True}, "reg must be < inf, got inf"),
        ],
    )
    def test_bounds(self, value, bounds, message):
        with pytest.raises(ValueError, match=message):
            check_real(value, "reg", **bounds)

    @given(st.floats(allow_nan=False), st.floats(allow_nan=False), st.floats(allow_nan=False), st.booleans())
    def test_bounds_property(self, value, low, high, is_open):
        inside = (low < value < high) if is_open else (low <= value <= high)
        try:
            out = check_real(value, "reg", low=low, high=high, low_open=is_open, high_open=is_open)
        except ValueError:
            assert not inside
        else:
            assert inside
            assert out == value


class TestCheckInt:
    @pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3)])
    def test_accepted(self, value):
        out = check_int(value, "max_iter", low=3)
        assert type(out) is int
        assert out == 3

    @pytest.mark.parametrize("value", [True, np.True_, np.array(True), 3.0, "3", None, np.ones(2, int), [3]])
    def test_refused(self, value):
        with pytest.raises(TypeError, match="max_iter must be an integer, got"):
            check_int(value, "max_iter")

    def test_low(self):
        with pytest.raises(ValueError, match="max_iter must be >= 1, got 0"):
            check_int(0, "max_iter", low=1)


class TestCheckChoice:
    def test_accepted(self):
        assert check_choice("kl", "regularizer", ("kl", "l2")) == "kl"
        assert check_choice(None, "method", (None, "auto")) is None

    @pytest.mark.parametrize("value", ["KL", "k", "", None, 1, ["kl"], np.ones(2)])
    def test_refused(self, value):
        with pytest.raises(ValueError, match="regularizer must be one of 'kl', 'l2', got"):
            check_choice(value, "regularizer", ("kl", "l2"))


class TestCheckRng:
    def test_seed(self):
        assert check_rng(7).random() == check_rng(np.int32(7)).random() == np.random.default_rng(7).random()

    def test_generator_is_passed_on(self):
        rng = np.random.default_rng(0)
        assert check_rng(rng) is rng

    def test_none_is_fresh(self):
        assert check_rng(None).random() != check_rng(None).random()

    @pytest.mark.parametrize("rng", [True, 1.0, "0", np.random.RandomState(0), np.random, [1, 2]])
    def test_refused(self, rng):
        with pytest.raises(TypeError, match=r"rng must be None, an int or a numpy\.random\.Generator"):
            check_rng(rng)

    def test_negative_seed(self):
        with pytest.raises(ValueError, match="rng must be >= 0, got -1"):
            check_rng(-1)
