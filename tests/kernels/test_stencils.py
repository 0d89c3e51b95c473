"""Stencils of image denoising: every backend against formulas written out pixel by pixel, and against each other."""

import importlib
import inspect

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.signal import correlate2d

from ot_numba.arrays.namespaces import to_numpy
from ot_numba.kernels.cpu.threads import get_num_threads, set_num_threads

CPU = importlib.import_module("ot_numba.kernels.cpu.stencils")
GENERIC = importlib.import_module("ot_numba.kernels.generic.stencils")
NAMES = ("tv_gradient", "tv_hvp", "tv_jacobian_t", "tv_steps", "foe_gradient", "foe_hvp", "foe_jacobian_t")
BACKENDS = {"cpu": (CPU, np.asarray), "generic": (GENERIC, np.asarray), "strict": (GENERIC, array_api_strict.asarray)}
each_backend = pytest.mark.parametrize("backend", list(BACKENDS))
RTOL = {"float64": 1e-11, "float32": 2e-4}


class Case:
    """Images, a vector and a weight as NumPy arrays, with room for what is returned in arrays."""

    def __init__(self, seed, shape, dtype="float64", isotropic=False, per_pixel=False, nu=0.3):
        rng = np.random.default_rng(seed)
        self.x, self.y, self.v = (rng.normal(size=shape).astype(dtype) for _ in range(3))
        self.w = rng.uniform(0.1, 2.0, shape[1:]).astype(dtype) if per_pixel else 0.7
        self.nu, self.isotropic, self.per_pixel, self.dtype = nu, isotropic, per_pixel, dtype

    def run(self, backend, name, *, steps=(0.05, 0.6, 0.0, 3), pixels=True):
        kernels, asarray = BACKENDS[backend]
        x, y, v = (asarray(a.copy()) for a in (self.x, self.y, self.v))
        form = (asarray(self.w) if self.per_pixel else self.w, self.nu, self.isotropic)
        if name == "tv_steps":
            scalars = kernels.tv_steps(x, v, y, *form, *steps, asarray(np.empty((2, *self.x.shape), self.dtype)))
            return (np.asarray(scalars), to_numpy(x), to_numpy(v))
        out = asarray(np.full_like(self.x, np.nan))
        if name == "tv_jacobian_t":
            pixels = asarray(np.full(self.x.shape[1:], np.nan, self.dtype)) if pixels else None
            scalars = kernels.tv_jacobian_t(x, v, *form, pixels)
            return (np.asarray(scalars),) + (() if pixels is None else (to_numpy(pixels),))
        scalars = getattr(kernels, name)(x, y if name == "tv_gradient" else v, *form, out)
        return np.asarray(scalars), to_numpy(out)


def value(x, y, w, nu, isotropic):
    """The lower level, pixel by pixel."""
    w = np.broadcast_to(w, x.shape[1:])
    total = 0.5 * ((x - y) ** 2).sum()
    for image in x:
        for i, j in np.ndindex(image.shape):
            d = [image[a] - image[i, j] for a in ((i, j + 1), (i + 1, j)) if a[0] < len(image) and a[1] < len(image.T)]
            if isotropic and d:
                total += w[i, j] * np.sqrt(sum(e * e for e in d) + nu * nu)
            elif d:
                total += w[i, j] * sum(np.sqrt(e * e + nu * nu) for e in d)
    return total


def derivative(function, x, h=1e-5):
    """Central differences of a function of an array, of fourth order."""
    out = []
    for k in range(x.size):
        e = np.zeros(x.size)
        e[k] = h
        e = e.reshape(x.shape)
        near, far = (function(x + s * e) - function(x - s * e) for s in (1, 2))
        out.append((8 * near - far) / (12 * h))
    return np.asarray(out)


SHAPES = st.tuples(
    st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 3, 8, 33]), st.sampled_from([1, 2, 3, 9, 16, 31, 64])
)
tv_cases = st.builds(
    Case,
    st.integers(0, 2**32 - 1),
    SHAPES,
    st.sampled_from(["float64", "float32"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.02, 0.3, 4.0]),
)


@pytest.mark.parametrize("name", NAMES)
def test_same_arguments_in_every_backend(name):
    cuda = importlib.import_module("ot_numba.kernels.cuda.stencils")
    cpu, gpu, generic = (
        list(inspect.signature(getattr(module, name)).parameters) for module in (CPU, cuda, GENERIC)
    )
    assert cpu == gpu == generic


@each_backend
@pytest.mark.parametrize("isotropic", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 6), (2, 5, 1), (2, 4, 5)])
@pytest.mark.parametrize("per_pixel", [False, True])
def test_tv_derivatives(backend, isotropic, shape, per_pixel):
    case = Case(3, shape, isotropic=isotropic, per_pixel=per_pixel)
    x, form = case.x, (case.w, case.nu, isotropic)
    (h, norm), grad = case.run(backend, "tv_gradient")
    assert h == pytest.approx(value(x, case.y, *form), rel=1e-13)
    expected = derivative(lambda x: value(x, case.y, *form), x).reshape(shape)
    np.testing.assert_allclose(grad, expected, rtol=0, atol=1e-8)
    assert norm == pytest.approx(np.linalg.norm(grad), rel=1e-13)

    kernels, asarray = BACKENDS[backend]

    def gradient(x, w=case.w, nu=case.nu):
        out = asarray(np.empty_like(x))
        w = asarray(w) if per_pixel else float(w)
        kernels.tv_gradient(asarray(x), asarray(case.y), w, float(nu), isotropic, out)
        return to_numpy(out)

    energy, product = case.run(backend, "tv_hvp")
    moved = derivative(lambda t: gradient(x + t[0] * case.v), np.zeros(1))[0]
    np.testing.assert_allclose(product, moved, rtol=0, atol=1e-8)
    assert energy == pytest.approx((product * case.v).sum(), rel=1e-12)

    (weight, smoothing), pixels = case.run(backend, "tv_jacobian_t")
    moved = derivative(lambda t: gradient(x, w=case.w * np.exp(t[0])), np.zeros(1))[0]
    assert weight == pytest.approx((case.v * moved).sum(), rel=1e-8, abs=1e-9)
    moved = derivative(lambda t: gradient(x, nu=case.nu * np.exp(t[0])), np.zeros(1))[0]
    assert smoothing == pytest.approx((case.v * moved).sum(), rel=1e-8, abs=1e-9)
    assert pixels.sum() == pytest.approx(weight, rel=1e-11, abs=1e-13)
    if per_pixel:
        moved = derivative(lambda t: gradient(x, w=case.w * np.exp(t)), np.zeros(shape[1:]))
        np.testing.assert_allclose(pixels.ravel(), (moved * case.v).sum(axis=(1, 2, 3)), rtol=0, atol=1e-8)
    alone = case.run(backend, "tv_jacobian_t", pixels=False)[0]
    np.testing.assert_array_equal(alone, (weight, smoothing))


@each_backend
def test_tv_case_on_a_line(backend):
    """Derivatives of four pixels that were computed elsewhere."""
    case = Case(0, (1, 1, 4), nu=0.5)
    case.x, case.y, case.v = (np.reshape(a, (1, 1, 4)) for a in ([0, 1, 3, 2.5], [0.5, 1, 2, 2.0], [1, -1, 0.5, 0.0]))
    case.w = 0.2
    for isotropic in (False, True):
        case.isotropic = isotropic
        (h, _), grad = case.run(backend, "tv_gradient")
        assert h == pytest.approx(1.5273387165490546, rel=1e-15)
        np.testing.assert_allclose(
            grad.ravel(), (-0.6788854382, -0.0151430618, 1.3354498563, 0.3585786438), atol=6e-11
        )
        product = case.run(backend, "tv_hvp")[1].ravel()
        np.testing.assert_allclose(
            product, (1.0715541753, -1.0801142562, 0.579270759, -0.0707106781), atol=6e-11
        )
        columns = []
        for k in range(4):
            case.v = np.eye(4)[k].reshape(1, 1, 4)
            columns.append(case.run(backend, "tv_jacobian_t")[0])
        case.v = np.reshape([1, -1, 0.5, 0.0], (1, 1, 4))
        J = np.asarray(columns).T
        np.testing.assert_allclose(
            J[0], (-0.1788854382, -0.0151430618, 0.3354498563, -0.1414213562), atol=6e-11
        )
        np.testing.assert_allclose(J[1], (0.0357770876, -0.0243636465, -0.0821241193, 0.0707106781), atol=6e-11)


def check_tv(backend, case, name, **options):
    size = max(np.abs(case.x).max(), np.abs(case.y).max(), 1) * (1 + 8 * np.max(case.w) / case.nu)
    size *= np.abs(case.v).max() * case.x.size if name == "tv_jacobian_t" else 1
    for ours, theirs in zip(case.run(backend, name, **options), case.run("generic", name, **options), strict=True):
        if ours.ndim:
            assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=RTOL[case.dtype], atol=size * 8 * np.finfo(case.dtype).eps)


@settings(max_examples=60, deadline=None)
@given(case=tv_cases, name=st.sampled_from(NAMES[:4]))
def test_tv_backends_agree(case, name):
    check_tv("cpu", case, name)


@each_backend
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", NAMES[:4])
def test_hardly_any_smoothing(backend, dtype, name):
    case = Case(7, (1, 5, 6), dtype, nu=1e-200)
    case.x[:, :3] = case.v[:, :3] = 0.5
    for isotropic in (False, True):
        case.isotropic = isotropic
        for found in case.run(backend, name):
            assert np.isfinite(found).all()
    grad = case.run(backend, "tv_gradient")[1]
    assert np.abs(grad - case.x + case.y).max() <= 4 * 0.7 + 1e-6


@each_backend
@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_steps_are_accelerated_gradient(backend, count):
    case = Case(1, (2, 6, 7), isotropic=True)
    x, z, norm = case.x, case.v, 0.0
    for _ in range(count):
        out = np.empty_like(z)
        _, norm = CPU.tv_gradient(z, case.y, case.w, case.nu, True, out)
        new = z - 0.05 * out
        x, z = new, new + 0.6 * (new - x)
    (taken, last), ours_x, ours_z = case.run(backend, "tv_steps", steps=(0.05, 0.6, 0.0, count))
    assert taken == count
    assert last == pytest.approx(norm, rel=1e-12)
    np.testing.assert_allclose(ours_x, x, rtol=0, atol=1e-13)
    np.testing.assert_allclose(ours_z, z, rtol=0, atol=1e-13)


@each_backend
@pytest.mark.parametrize("limit", [1e9, 0.5])
def test_steps_stop_at_the_limit(backend, limit):
    case = Case(2, (1, 9, 5))
    (taken, norm), _, z = case.run(backend, "tv_steps", steps=(0.05, 0.6, limit, 1000))
    assert taken < 1000
    assert norm <= limit
    assert CPU.tv_gradient(z, case.y, case.w, case.nu, False, np.empty_like(z))[1] == pytest.approx(norm, rel=1e-11)
    if limit > 1e6:
        np.testing.assert_array_equal(z, case.v)
        assert taken == 1
    for count in range(max(1, int(taken) - 1), int(taken) + 2):  # numbers of steps, x and z are those of the reference
        check_tv(backend, case, "tv_steps", steps=(0.05, 0.6, limit, count))
    assert case.run(backend, "tv_steps", steps=(0.05, 0.6, norm, 1000))[0][0] == taken  # the limit itself is enough
    case.y[0, 3, 2] = np.nan
    (taken, norm), *_ = case.run(backend, "tv_steps", steps=(0.05, 0.6, limit, 1000))
    assert taken == 1
    assert np.isnan(norm)


@pytest.fixture
def threads():
    before = get_num_threads()
    yield set_num_threads
    set_num_threads(before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 701, 803), (5, 311, 350)])
def test_same_bits_from_any_number_of_threads(threads, name, shape):
    case = Case(4, shape, isotropic=True) if name.startswith("tv") else FoeCase(4, shape)
    threads(1)
    alone = case.run("cpu", name)
    for n in (2, 3, 7):
        threads(n)
        for ours, theirs in zip(case.run("cpu", name), alone, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", NAMES[:4])
def test_large_steps_are_small_ones(name):
    """Above and below the size from which steps are shared out: a batch is its images."""
    case = Case(5, (3, 260, 256))
    together = case.run("cpu", name)
    for k in range(3):
        part = Case(5, (1, 260, 256))
        part.x, part.y, part.v = (a[k : k + 1] for a in (case.x, case.y, case.v))
        for whole, own in zip(together[1:], part.run("cpu", name)[1:], strict=True):
            if whole.shape == case.x.shape:
                np.testing.assert_array_equal(whole[k : k + 1], own)


class FoeCase:
    """The same for fields of experts."""

    def __init__(self, seed, shape, dtype="float64", count=2, size=(3, 3)):
        rng = np.random.default_rng(seed)
        size = tuple(min(s, n) for s, n in zip(size, shape[1:], strict=True))
        self.x, self.y, self.v = (rng.normal(size=shape).astype(dtype) for _ in range(3))
        self.filters = rng.normal(size=(count, *size)).astype(dtype)
        self.weights, self.nus = rng.uniform(0.1, 1.0, (2, count))
        self.dtype = dtype

    def run(self, backend, name):
        kernels, asarray = BACKENDS[backend]
        other = self.y if name == "foe_gradient" else self.v
        out = asarray(np.full_like(self.x, np.nan))
        given = [asarray(a) for a in (self.x, other, self.filters, self.weights, self.nus)]
        if name == "foe_jacobian_t":
            return tuple(to_numpy(a) for a in kernels.foe_jacobian_t(*given))
        scalars = getattr(kernels, name)(*given, out)
        return np.asarray(scalars), to_numpy(out)


def foe_value(x, y, filters, weights, nus):
    total = 0.5 * ((x - y) ** 2).sum()
    for image in x:
        for c, weight, nu in zip(filters, weights, nus, strict=True):
            total += weight * np.sqrt(correlate2d(image, c, mode="valid") ** 2 + nu**2).sum()
    return total


@each_backend
@pytest.mark.parametrize(("shape", "size"), [((1, 6, 5), (3, 3)), ((2, 1, 8), (1, 4)), ((2, 5, 4), (2, 3))])
def test_foe_derivatives(backend, shape, size):
    case = FoeCase(6, shape, size=size)
    x, form = case.x, (case.filters, case.weights, case.nus)
    (h, norm), grad = case.run(backend, "foe_gradient")
    assert h == pytest.approx(foe_value(x, case.y, *form), rel=1e-13)
    expected = derivative(lambda x: foe_value(x, case.y, *form), x).reshape(shape)
    np.testing.assert_allclose(grad, expected, rtol=0, atol=2e-8)
    assert norm == pytest.approx(np.linalg.norm(grad), rel=1e-13)

    kernels, asarray = BACKENDS[backend]

    def gradient(x, filters=case.filters, weights=case.weights, nus=case.nus):
        out = asarray(np.empty_like(x))
        kernels.foe_gradient(*(asarray(a) for a in (x, case.y, filters, weights, nus)), out)
        return to_numpy(out)

    energy, product = case.run(backend, "foe_hvp")
    moved = derivative(lambda t: gradient(x + t[0] * case.v), np.zeros(1))[0]
    np.testing.assert_allclose(product, moved, rtol=0, atol=2e-8)
    assert energy == pytest.approx((product * case.v).sum(), rel=1e-12)
    by_weight, by_nu, by_filter = case.run(backend, "foe_jacobian_t")
    for found, name in ((by_weight, "weights"), (by_nu, "nus")):
        of = getattr(case, name)
        moved = derivative(lambda t, name=name, of=of: gradient(x, **{name: of * np.exp(t)}), np.zeros(2))
        np.testing.assert_allclose(found, (moved * case.v).sum(axis=(1, 2, 3)), rtol=0, atol=2e-8)
    moved = derivative(lambda c: gradient(x, filters=c), case.filters)
    np.testing.assert_allclose(by_filter.ravel(), (moved * case.v).sum(axis=(1, 2, 3)), rtol=0, atol=2e-8)


foe_cases = st.builds(
    FoeCase,
    st.integers(0, 2**32 - 1),
    st.tuples(st.sampled_from([1, 2]), st.sampled_from([1, 3, 8, 33, 70]), st.sampled_from([1, 3, 9, 31])),
    st.sampled_from(["float64", "float32"]),
    st.sampled_from([1, 3]),
    st.tuples(st.sampled_from([1, 2, 3, 5]), st.sampled_from([1, 3, 4, 7])),
)


def check_foe(backend, case, name):
    size = case.x.size if name == "foe_jacobian_t" else 1
    scale = size * 1e3 * np.finfo(case.dtype).eps * np.abs(case.filters).max() ** 2
    for ours, theirs in zip(case.run(backend, name), case.run("generic", name), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=RTOL[case.dtype], atol=max(scale, 1e-12))


@settings(max_examples=40, deadline=None)
@given(case=foe_cases, name=st.sampled_from(NAMES[4:]))
def test_foe_backends_agree(case, name):
    check_foe("cpu", case, name)
