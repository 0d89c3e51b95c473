import tracemalloc

import numpy as np
import pytest

from ot_numba import ConvergenceError, get_num_threads, set_num_threads
from ot_numba.transport import _color_transfer as module
from ot_numba.transport._color_transfer import color_transfer


def picture(seed, shape=(24, 30), mean=(0.4, 0.5, 0.6), spread=0.12):
    """Correlated colours with a smooth structure, floating, inside (0, 1)."""
    rng = np.random.default_rng(seed)
    channels = len(mean)
    mixing = rng.normal(size=(channels, channels)) / np.sqrt(channels)
    noise = rng.normal(size=(*shape, channels)) @ mixing.T
    ramp = np.linspace(-1, 1, shape[1])[None, :, None] * rng.normal(size=channels)
    return np.clip(np.asarray(mean) + spread * (ramp + 0.5 * noise), 0.02, 0.98)


def as_dtype(image, dtype):
    levels = module.LEVELS[np.dtype(dtype).name]
    return (image * levels).round().astype(dtype) if levels > 1 else image.astype(dtype)


SOURCE = picture(0)
TARGET = picture(1, (20, 33), (0.6, 0.3, 0.35), 0.2)


def moments(image):
    colors = np.asarray(image, float).reshape(-1, image.shape[-1])
    return colors.mean(axis=0), np.cov(colors.T)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64", ">u2", ">f4"])
@pytest.mark.parametrize("channels", [None, 1, 2, 3, 4, 5])
def test_shape_and_dtype_are_those_of_the_source(dtype, channels):
    count = channels or 1
    source = as_dtype(picture(0, (7, 9), [0.4] * count), dtype)
    target = as_dtype(picture(1, (5, 6), [0.6] * count), "float32")
    if channels is None:
        source, target = source[:, :, 0], target[:, :, 0]
    before = source.copy()
    source.flags.writeable = False
    result = color_transfer(source, target, n_colors=16)
    assert result.image.shape == source.shape
    assert result.image.dtype == source.dtype
    assert np.array_equal(source, before)
    colors = {None: 1, 2: 1, 4: 3}.get(channels, channels)
    assert result.source_palette.shape == (16, colors)
    assert result.target_palette.dtype == "float64"
    assert result.transport.converged
    assert np.array_equal(result.transform(source), result.image)


def test_same_picture_in_any_dtype():
    exact = color_transfer(SOURCE, TARGET).image
    for dtype, error in (("uint8", 2 / 255), ("uint16", 1e-4), ("float32", 1e-6)):
        image = color_transfer(as_dtype(SOURCE, dtype), TARGET).image / module.LEVELS[dtype]
        # 720 distinct colours: every palette is the picture itself, whatever the rounding
        assert np.abs(image - exact).max() < 10 * error
        assert np.abs(image - exact).mean() < error


def test_moments_become_those_of_the_target():
    result = color_transfer(SOURCE, TARGET, tol=1e-8)
    (mean, cov), (target_mean, target_cov), (_, source_cov) = map(moments, (result.image, TARGET, SOURCE))
    # all 720 pixels are in the palette, so the mean is exact; the covariance lacks the blur
    np.testing.assert_allclose(mean, target_mean, atol=1e-7)
    assert np.linalg.norm(cov - target_cov) < 0.05 * np.linalg.norm(target_cov)
    assert np.linalg.norm(source_cov - target_cov) > 0.5 * np.linalg.norm(target_cov)


def test_moments_out_of_sample():
    source, target = picture(2, (300, 400)), picture(3, (310, 390), (0.7, 0.3, 0.5), 0.15)
    image = color_transfer(source, target).image
    (mean, cov), (target_mean, target_cov) = map(moments, (image, target))
    np.testing.assert_allclose(mean, target_mean, atol=5e-3)
    assert np.linalg.norm(cov - target_cov) < 0.08 * np.linalg.norm(target_cov)


def test_smaller_reg_gives_back_more_of_the_contrast():
    spread = [np.trace(moments(color_transfer(SOURCE, TARGET, reg=reg).image)[1]) for reg in (0.1, 0.01, 0.001)]
    assert spread[0] < spread[1] < spread[2] < 1.001 * np.trace(moments(TARGET)[1])
    reg = 0.003
    assert color_transfer(SOURCE, TARGET, reg=reg).transport.reg == reg


def test_a_picture_onto_itself_is_the_identity_for_small_reg():
    rng = np.random.default_rng(0)
    image = rng.permutation(256)[:60].reshape(6, 10).astype(np.uint8)
    colors = np.stack([image, 255 - image, image // 2], axis=2)
    assert np.array_equal(color_transfer(colors, colors, reg=1e-6).image, colors)
    assert np.abs(color_transfer(SOURCE, SOURCE, reg=1e-4).image - SOURCE).mean() < 5e-3


def test_grey_image_is_matched_in_order():
    # in one dimension the unregularised map is the increasing rearrangement
    source = np.array([[10, 200, 30], [90, 60, 120]], dtype=np.uint8)
    target = np.array([[250, 5], [100, 40], [160, 130]], dtype=np.uint8)
    image = color_transfer(source, target, reg=1e-5).image
    expected = np.sort(target.ravel())[np.argsort(np.argsort(source.ravel()))].reshape(source.shape)
    assert np.array_equal(image, expected)


@pytest.mark.parametrize("reg", [None, 1e-4, 1.0])
def test_constant_images(reg):
    black, red = np.zeros((3, 4, 3), np.uint8), np.full((2, 2, 3), (255, 0, 0), np.uint8)
    for source, target in ((black, red), (red, black), (red, red)):
        result = color_transfer(source, target, reg=reg)
        assert np.array_equal(result.image, np.broadcast_to(target[0, 0], source.shape))
        assert result.source_weights.tolist() == [1.0]
    # a constant source gets the mean of the target, and a constant target colours everything
    mean = color_transfer(np.full((5, 4, 3), 0.3), TARGET, reg=reg).image
    np.testing.assert_allclose(mean, np.broadcast_to(moments(TARGET)[0], (5, 4, 3)), atol=1e-3)
    np.testing.assert_allclose(color_transfer(SOURCE, red / 255.0, reg=reg).image[..., 0], 1, atol=1e-12)


def test_one_pixel():
    source, target = np.full((1, 1), 0.25, np.float32), np.full((1, 1), 1, np.uint8)
    result = color_transfer(source, target)
    np.testing.assert_allclose(result.image, [[1 / 255]], rtol=1e-6)
    assert result.image.dtype == np.float32


def test_lists_are_images():
    assert color_transfer([[0.0, 1.0]], [[0.25, 0.75]], reg=1e-3).image.round(6).tolist() == [[0.25, 0.75]]


def test_few_colours_are_the_palette():
    image = np.repeat(np.eye(3, dtype=np.uint8) * 200, [5, 3, 2], axis=0).reshape(2, 5, 3)
    result = color_transfer(image, TARGET, n_colors=100)
    order = np.argsort(-result.source_weights)
    np.testing.assert_allclose(result.source_palette[order], np.eye(3) * 200 / 255, atol=1e-7)
    np.testing.assert_allclose(result.source_weights[order], [0.5, 0.3, 0.2], rtol=1e-6)


def test_palette_is_a_good_quantiser():
    colors = picture(4, (100, 100)).reshape(-1, 3)
    palette, weights = module._palette(colors, np.ones(len(colors)), 64)
    assert palette.shape == (64, 3)
    np.testing.assert_allclose(weights @ palette, colors.mean(axis=0), rtol=1e-12)
    nearest = np.sqrt(((colors[:, None] - palette) ** 2).sum(axis=2).min(axis=1).mean())
    sample = colors[np.random.default_rng(0).choice(len(colors), 64, replace=False)]
    assert nearest < 0.8 * np.sqrt(((colors[:, None] - sample) ** 2).sum(axis=2).min(axis=1).mean())


def test_alpha_is_kept_and_weighs_the_pixels():
    rng = np.random.default_rng(0)
    source, target = as_dtype(SOURCE, "uint8"), as_dtype(TARGET, "uint8")
    alpha = rng.integers(0, 256, (*source.shape[:2], 1), dtype=np.uint8)
    result = color_transfer(np.concatenate([source, alpha], axis=2), target)
    assert np.array_equal(result.image[..., 3:], alpha)
    # what cannot be seen does not count
    hidden = target.copy()
    hidden[:10] = 255
    mask = np.full((*target.shape[:2], 1), 255, np.uint8)
    mask[:10] = 0
    seen = color_transfer(source, np.concatenate([hidden, mask], axis=2)).image
    assert np.array_equal(seen, color_transfer(source, target[10:]).image)
    # opaque alpha is no alpha
    opaque = np.concatenate([source, np.full_like(alpha, 255)], axis=2)
    assert np.array_equal(color_transfer(opaque, target).image[..., :3], color_transfer(source, target).image)


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_chunks_do_not_show(monkeypatch, dtype):
    source, target = as_dtype(SOURCE, dtype), as_dtype(TARGET, dtype)
    whole = color_transfer(source, target, n_colors=64).image
    monkeypatch.setattr(module, "CHUNK", 37)
    parts = color_transfer(source, target, n_colors=64).image
    np.testing.assert_allclose(parts, whole, rtol=0, atol=0 if dtype == "uint8" else 1e-12)


def test_table_and_pixels_agree():
    source = as_dtype(SOURCE, "uint8")
    result = color_transfer(source, TARGET)
    image = module._Image(source, "source")
    pixels = module._mapped(image.pixels, image, result.transport)
    assert np.array_equal(result.image, pixels.reshape(source.shape))


def test_memory_layout_does_not_show():
    source = as_dtype(SOURCE, "uint8")
    expected = color_transfer(source, TARGET).image
    wide = np.zeros((48, 60, 3), np.uint8)
    wide[::2, ::-2] = source
    for same in (np.asfortranarray(source), wide[::2, ::-2]):
        assert np.array_equal(color_transfer(same, TARGET).image, expected)


def test_same_bits_with_any_number_of_threads():
    source, target = picture(5, (300, 300)), picture(6, (300, 300))
    before = get_num_threads()
    results = []
    try:
        for count in (1, 3):
            set_num_threads(count)
            results.append(color_transfer(source, target, n_colors=128))
    finally:
        set_num_threads(before)
    first, second = results
    assert first.image.tobytes() == second.image.tobytes()
    assert first.source_palette.tobytes() == second.source_palette.tobytes()


def test_transform_of_another_image():
    source, target = as_dtype(SOURCE, "uint8"), as_dtype(TARGET, "uint8")
    result = color_transfer(source, target)
    assert np.array_equal(result.transform(source[3:9, ::2]), result.image[3:9, ::2])
    other = result.transform(SOURCE.astype(np.float32))
    assert other.dtype == np.float32
    assert np.abs(other - result.image / 255).mean() < 0.01
    alpha = np.zeros((*source.shape[:2], 1), np.uint8)
    assert np.array_equal(result.transform(np.concatenate([source, alpha], axis=2))[..., :3], result.image)
    with pytest.raises(ValueError, match="image must have 3 colour channels like the source, got 1"):
        result.transform(source[:, :, 0])
    with pytest.raises(TypeError, match="image must be uint8, uint16 or floating, got int64"):
        result.transform(source.astype(int))


def test_unbalanced_lets_the_shares_change():
    # nine of ten dark pixels, against one of ten: strict transport must turn dark ones bright
    source = np.full((10, 10), 0.1)
    source[0] = 0.9
    target = 1 - source
    strict = color_transfer(source, target, reg=1e-3).image
    loose = color_transfer(source, target, reg=1e-3, unbalanced=0.02).image
    assert strict[1, 0] > 0.7
    assert loose[1, 0] < 0.15
    np.testing.assert_allclose(loose[0], 0.9, atol=1e-6)


def test_options_reach_the_solver():
    assert color_transfer(SOURCE, TARGET, method="log", anderson=5).transport.converged
    with pytest.raises(ConvergenceError):
        color_transfer(SOURCE, TARGET, reg=1e-4, tol=1e-9, max_iter=20, on_fail="raise")
    with pytest.warns(UserWarning, match="not converged"):
        result = color_transfer(SOURCE, TARGET, reg=1e-4, tol=1e-9, max_iter=20)
    assert not result.transport.converged
    assert "image of shape (24, 30, 3)" in repr(result)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (np.zeros((2, 2, 3), int), TypeError, "must be uint8, uint16 or floating, got int64"),
        (np.zeros((2, 2, 3), bool), TypeError, "got bool"),
        (np.zeros((2, 2, 3), complex), TypeError, "got complex128"),
        ([[1, 2]], TypeError, "got int64"),
        ("china.jpg", TypeError, "expected an array"),
        (np.zeros(3), ValueError, r"must have shape \(h, w\) or \(h, w, c\), got \(3,\)"),
        (np.zeros((1, 2, 2, 3)), ValueError, r"got \(1, 2, 2, 3\)"),
        (np.zeros((0, 2, 3)), ValueError, r"got \(0, 2, 3\)"),
        (np.full((2, 2, 3), 1.5), ValueError, r"must be in \[0, 1\], got 1.5"),
        (np.full((2, 2, 3), -0.25), ValueError, r"must be in \[0, 1\], got -0.25"),
        (np.full((2, 2, 3), np.nan), ValueError, "has NaN"),
        (np.full((2, 2, 3), np.inf), ValueError, "got inf"),
        (np.zeros((2, 2, 4)), ValueError, "alpha 0 everywhere"),
    ],
)
def test_bad_images(bad, error, message):
    good = np.full((2, 2, 3), 0.5)
    with pytest.raises(error, match=f"source.*{message}" if not isinstance(bad, str) else message):
        color_transfer(bad, good)
    with pytest.raises(error, match=f"target.*{message}" if not isinstance(bad, str) else message):
        color_transfer(good, bad)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_colors": 0}, ValueError, "n_colors must be >= 1, got 0"),
        ({"n_colors": 2.5}, TypeError, "n_colors must be an integer"),
        ({"reg": 0.0}, ValueError, "reg must be > 0"),
        ({"tol": -1.0}, ValueError, "tol must be >= 0"),
        ({"unbalanced": -1.0}, ValueError, "unbalanced must be > 0"),
        ({"colors": 3}, TypeError, "colors"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        color_transfer(SOURCE, TARGET, **options)


def test_channels_must_agree():
    with pytest.raises(ValueError, match="as many colour channels, got 1 and 3"):
        color_transfer(SOURCE[..., 0], TARGET)


def test_array_libraries(xp):
    source, target = as_dtype(SOURCE, "uint8"), as_dtype(TARGET, "uint8")
    alpha = np.full((*source.shape[:2], 1), 99, np.uint8)
    source = np.concatenate([source, alpha], axis=2)
    expected = color_transfer(source, target, n_colors=32).image
    result = color_transfer(xp.asarray(source), xp.asarray(target), n_colors=32)
    assert type(result.image) is type(xp.asarray(source))
    assert result.image.dtype == xp.uint8
    assert np.abs(np.asarray(result.image).astype(int) - expected).max() <= 1
    floats = color_transfer(xp.asarray(SOURCE), xp.asarray(TARGET), n_colors=32).image
    np.testing.assert_allclose(np.asarray(floats), color_transfer(SOURCE, TARGET, n_colors=32).image, atol=1e-6)


def test_libraries_are_not_mixed():
    strict = pytest.importorskip("array_api_strict")
    with pytest.raises(TypeError, match="mix"):
        color_transfer(SOURCE, strict.asarray(TARGET))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_memory_is_bounded(dtype):
    rng = np.random.default_rng(0)
    source = as_dtype(rng.random((1500, 2000, 3), dtype=np.float32) * 0.2, dtype)
    result = color_transfer(source[:50, :50], TARGET, n_colors=8)
    tracemalloc.start()
    image = result.transform(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # the answer, a table of 2**24 colours for uint8, and one chunk: 65536 x 3 numbers in a few copies
    assert peak < image.nbytes + (80e6 if dtype == "uint8" else 25e6)
