"""Colour transfer between images: an entropic map between two palettes, applied to every pixel."""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays.namespaces import array_namespace, device_of, is_numpy, to_numpy
from ..arrays.validation import check_int, dtype_name
from ..costs import PointCloud
from ._sinkhorn import sinkhorn
from .result import TransportResult

Array = Any
SAMPLE = 1 << 16  #: pixels from which a palette is made
CHUNK = 1 << 16  #: pixels that are mapped at a time
REG_SHARE = 0.01  #: of the geometric mean of the variances of the colours
SMALLEST_REG = (0.5 / 255) ** 2  #: half a grey level, squared: what lies closer looks the same
LEVELS = {"uint8": 255, "uint16": 65535, "float16": 1, "float32": 1, "float64": 1}


@dataclass(frozen=True, repr=False)
class ColorTransferResult:
    """A recoloured image, and the map that recolours others the same way.

    Attributes
    ----------
    image : array
        The source in the colours of the target; shape, dtype and device of the source.
    source_palette, target_palette : array of shape (n, c), (m, c)
        Representative colours in [0, 1], at most `n_colors` of each; float64.
    source_weights, target_weights : array of shape (n,), (m,)
        Shares of the pixels that they stand for.
    transport : TransportResult
        The transport between the palettes: how well it converged, the plan, the cost.
    """

    image: Array
    source_palette: Array
    source_weights: Array
    target_palette: Array
    target_weights: Array
    transport: TransportResult

    def __repr__(self) -> str:
        """Short form: the shape and the transport, not the arrays."""
        return f"ColorTransferResult(image of shape {tuple(self.image.shape)}, {self.transport!r})"

    def transform(self, image: Any) -> Array:
        """The same recolouring of another image, such as the next frame or the full size of a thumbnail.

        Parameters
        ----------
        image : array_like of shape (h, w) or (h, w, c)
            An image as `color_transfer` takes them, of any size and dtype, with as many colour channels.

        Returns
        -------
        array
            Shape and dtype of the argument.

        Raises
        ------
        ValueError, TypeError
            If it is no image, or has another number of colour channels.

        Notes
        -----
        As for the mapping in `color_transfer`.

        Examples
        --------
        >>> import numpy as np, ot_numba
        >>> source, target = np.full((2, 2, 3), 9, "uint8"), np.full((1, 1, 3), 200, "uint8")
        >>> result = ot_numba.color_transfer(source, target)
        >>> result.transform(source[:1, :1]).tolist()
        [[[200, 200, 200]]]
        """
        new = _Image(image, "image")
        channels = self.source_palette.shape[1]
        if new.colors != channels:
            raise ValueError(f"image must have {channels} colour channels like the source, got {new.colors}")
        return _recolor(new, self.transport)


def color_transfer(
    source: Any,
    target: Any,
    *,
    reg: float | None = None,
    n_colors: int = 1024,
    unbalanced: float | tuple[float | None, float | None] | None = None,
    tol: float = 1e-3,
    **options: Any,
) -> ColorTransferResult:
    r"""The source image in the colours of the target image.

    Both images are reduced to weighted palettes :math:`(x_i, a_i)`, :math:`(y_j, b_j)`; entropic transport
    between these for :math:`C_{ij} = \|x_i - y_j\|^2` gives a potential g, and every pixel x of the source
    becomes

    .. math::

        T(x) = \frac{\sum_j b_j e^{(g_j - \|x - y_j\|^2)/reg}\, y_j}{\sum_j b_j e^{(g_j - \|x - y_j\|^2)/reg}}

    Parameters
    ----------
    source, target : array_like of shape (h, w) or (h, w, c)
        Images of any sizes: grey, or with c channels, uint8, uint16 or floating in [0, 1]. The last of 2 or 4
        channels is alpha: it is copied to the result, and weighs the pixels of a palette.
    reg : float, optional
        Regularisation strength, in squared units of colours in [0, 1]. Larger is smoother, and paler: colours
        closer than ``sqrt(reg)`` are mixed. Smaller is sharper, and noisier. Default: 1 % of the geometric
        mean of the variances of the two palettes (1e-3 to 3e-3 for photographs), but no less than the
        variance that a palette leaves out, nor than half a grey level squared.
    n_colors : int, default 1024
        Largest number of colours in a palette; fewer colours are taken as they are.
    unbalanced : float or pair of float, optional
        Strengths of the marginal penalties, see `sinkhorn`. By default every target colour gets the share of
        pixels that it had, so that a grey sky may turn half green if the target is half green. 0.1 to 1 lets
        the shares change where that keeps colours together; smaller values keep the source's colours where
        they are near the target's.
    tol : float, default 1e-3
        On the L1 error of the marginals, see `sinkhorn`; 1e-3 moves no mean colour by more than a quarter of
        a grey level.
    **options
        More options of `sinkhorn`, such as ``max_iter``, ``on_fail`` or ``callback``.

    Returns
    -------
    ColorTransferResult
        Its ``image`` is the answer; ``transform(other_image)`` recolours more.

    Raises
    ------
    ValueError, TypeError
        If an image has a wrong shape or dtype, values outside [0, 1] or NaN, or alpha 0 everywhere, if the
        colour channels differ in number, or as `sinkhorn`.
    ConvergenceError
        As `sinkhorn`.

    Warns
    -----
    ConvergenceWarning
        As `sinkhorn`.

    Notes
    -----
    Nothing is random. A palette comes from at most 65536 pixels, spread evenly over the image: the cell of
    colours with the largest variance is cut at its mean, across its principal axis, until there are
    `n_colors` cells. Their means preserve the mean of the pixels.

    Time: ``n_colors**2`` per iteration of the solver, and ``n_colors`` exponentials per mapped pixel; per
    distinct colour, of which there are far fewer, for uint8 images (NumPy) of up to 3 colour channels. Memory
    beyond input and output: about 100 MB whatever the size, plus a copy of an image that is not contiguous.

    References
    ----------
    Ferradans, Papadakis, Peyré, Aujol, "Regularized discrete optimal transport", SIAM Journal on Imaging
    Sciences 7(3), 2014. Pooladian, Niles-Weed, "Entropic estimation of optimal transport maps", arXiv
    2109.12004 (the map). Orchard, Bouman, "Color quantization of images", IEEE Transactions on Signal
    Processing 39(12), 1991 (the palettes).

    Examples
    --------
    A picture with two colours takes those of another:

    >>> import numpy as np, ot_numba
    >>> source = np.array([[[250, 250, 250], [10, 10, 10]]], dtype="uint8")
    >>> target = np.array([[[0, 0, 90]], [[255, 200, 0]]], dtype="uint8")
    >>> result = ot_numba.color_transfer(source, target)
    >>> result.image.tolist()
    [[[255, 200, 0], [0, 0, 90]]]
    >>> result.transport.converged
    True
    """
    xp = array_namespace(source, target)
    source, target = _Image(source, "source"), _Image(target, "target")
    if source.colors != target.colors:
        raise ValueError(
            f"source and target must have as many colour channels, got {source.colors} and {target.colors}"
        )
    n_colors = check_int(n_colors, "n_colors", low=1)
    samples = [image.sample() for image in (source, target)]
    palettes = [_palette(*sample, n_colors) for sample in samples]
    if reg is None:
        kept, total = ([_variance(*colors) for colors in pair] for pair in (palettes, samples))
        lost = max(total[0] - kept[0], total[1] - kept[1])
        reg = max(REG_SHARE * math.sqrt(kept[0] * kept[1]), lost, SMALLEST_REG)
    to_device = functools.partial(xp.asarray, dtype=xp.float64, device=device_of(source.pixels))
    (x, a), (y, b) = (map(to_device, palette) for palette in palettes)
    transport = sinkhorn(PointCloud(x, y), a, b, reg=reg, unbalanced=unbalanced, tol=tol, **options)
    return ColorTransferResult(_recolor(source, transport), x, a, y, b, transport)


class _Image:
    """A checked image as rows of pixels."""

    def __init__(self, image: Any, name: str) -> None:
        self.name = name
        self.xp = xp = array_namespace(image)
        if is_numpy(xp):
            image = np.asarray(image)
        self.dtype_name = dtype_name(image.dtype)
        if self.dtype_name not in LEVELS:
            raise TypeError(f"{name} must be uint8, uint16 or floating, got {self.dtype_name}")
        self.levels = LEVELS[self.dtype_name]
        self.shape = tuple(image.shape)
        if len(self.shape) not in (2, 3) or 0 in self.shape:
            raise ValueError(f"{name} must have shape (h, w) or (h, w, c), got {self.shape}")
        if self.levels == 1:
            _check_range(image, name, xp)
        channels = self.shape[2] if len(self.shape) == 3 else 1
        self.colors = channels - 1 if channels in (2, 4) else channels
        self.pixels = xp.reshape(image, (-1, channels))

    def chunks(self) -> Iterator[slice]:
        """Slices of pixels that cover the image."""
        for lo in range(0, self.pixels.shape[0], CHUNK):
            yield slice(lo, min(lo + CHUNK, self.pixels.shape[0]))

    def sample(self) -> tuple[np.ndarray, np.ndarray]:
        """Colours and weights of all pixels, or of some spread evenly (Roberts' R2 sequence)."""
        pixels = self.pixels
        if pixels.shape[0] > SAMPLE:
            height, width = self.shape[:2]
            steps = np.arange(SAMPLE) + 0.5
            rows = (steps * 0.7548776662466927 % 1 * height).astype(np.int64)
            columns = (steps * 0.5698402909980532 % 1 * width).astype(np.int64)
            index = self.xp.asarray(rows * width + columns, device=device_of(pixels))
            pixels = self.xp.take(pixels, index, axis=0)
        values = to_numpy(pixels) / np.float64(self.levels)
        colors, weights = values[:, : self.colors], np.ones(len(values))
        if values.shape[1] > self.colors:
            weights = values[:, self.colors]
            seen = weights > 0
            if not seen.any():
                raise ValueError(f"{self.name} has alpha 0 everywhere: it shows no colour")
            colors, weights = colors[seen], weights[seen]
        return colors, weights


def _check_range(image: Array, name: str, xp: Any) -> None:
    low, high = float(xp.min(image)), float(xp.max(image))
    if math.isnan(low) or math.isnan(high):
        raise ValueError(f"{name} has NaN")
    for value in (low, high):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is floating, so its values must be in [0, 1], got {value:g}")


def _palette(colors: np.ndarray, weights: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Means and shares of at most `size` cells of colours, split where the variance is largest."""

    def cell(members: np.ndarray) -> tuple:
        """(-variance, first member to break ties, mean, mass, the two halves)."""
        x, w = colors[members], weights[members]
        mass = w.sum()
        # not by BLAS, which would sum in an order that depends on the number of threads
        mean = np.einsum("n,nc->c", w, x) / mass
        centred = x - mean
        variances, axes = np.linalg.eigh(np.einsum("n,nc,nd->cd", w, centred, centred))
        side = np.einsum("nc,c->n", centred, axes[:, -1]) > 0
        return -variances[-1], members[0], mean, mass, (members[side], members[~side])

    cells, done = [cell(np.arange(len(colors)))], []
    while cells and len(cells) + len(done) < size:
        largest = heapq.heappop(cells)
        if all(map(len, largest[-1])):
            for half in largest[-1]:
                heapq.heappush(cells, cell(half))
        else:
            done.append(largest)
    cells += done
    masses = np.array([mass for _, _, _, mass, _ in cells])
    return np.clip([mean for _, _, mean, _, _ in cells], 0, 1), masses / masses.sum()


def _variance(colors: np.ndarray, weights: np.ndarray) -> float:
    """Total variance of weighted colours."""
    shares = weights / weights.sum()
    centred = colors - np.einsum("n,nc->c", shares, colors)
    return float(np.einsum("n,nc,nc->", shares, centred, centred))


def _recolor(image: _Image, transport: TransportResult) -> Array:
    """The image with every colour mapped, and alpha as it was."""
    xp, pixels = image.xp, image.pixels
    out = xp.empty(pixels.shape, dtype=pixels.dtype, device=device_of(pixels))
    if is_numpy(xp) and image.dtype_name == "uint8" and image.colors <= 3:
        _recolor_by_table(image, transport, out)
    else:
        for part in image.chunks():
            out[part, : image.colors] = _mapped(pixels[part, : image.colors], image, transport)
    if pixels.shape[1] > image.colors:
        out[:, image.colors :] = pixels[:, image.colors :]
    return xp.reshape(out, image.shape)


def _recolor_by_table(image: _Image, transport: TransportResult, out: np.ndarray) -> None:
    """Map each colour that occurs, once."""
    shifts = 8 * np.arange(image.colors)

    def codes(part: slice) -> np.ndarray:
        return (image.pixels[part, : image.colors].astype(np.int32) << shifts).sum(axis=1)

    occurs = np.zeros(1 << 8 * image.colors, dtype=bool)
    for part in image.chunks():
        occurs[codes(part)] = True
    distinct = np.flatnonzero(occurs)
    table = np.empty((occurs.size, image.colors), dtype=np.uint8)
    for lo in range(0, distinct.size, CHUNK):
        some = distinct[lo : lo + CHUNK]
        table[some] = _mapped((some[:, None] >> shifts & 255).astype(np.uint8), image, transport)
    for part in image.chunks():
        out[part, : image.colors] = table[codes(part)]


def _mapped(pixels: Array, image: _Image, transport: TransportResult) -> Array:
    """Colours mapped, in the dtype of the image."""
    xp, dtype = image.xp, transport.problem.cost.dtype
    new = xp.clip(transport.map(xp.astype(pixels, dtype) / image.levels), 0, 1)
    return xp.astype(xp.round(new * image.levels) if image.levels > 1 else new, pixels.dtype)
