"""Denoising by fields of experts: the solver, and the learning of filters, weights and smoothings."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..arrays.namespaces import array_namespace, to_numpy
from ..arrays.validation import as_float_array, check_choice, check_int, check_real
from ..arrays.warnings import ON_FAIL
from ..kernels import kernels_for
from .denoising import (
    LOG_LIMIT,
    THIRD,
    Batch,
    DenoisingResult,
    SquaredErrorProblem,
    finish,
    minimise,
    parameters,
)
from .tv import rounding

Array = Any
#: Points at which the symbol of a filter is evaluated, for each period of its fastest oscillation.
OVERSAMPLING = 16


class Experts(NamedTuple):
    """Filters (K, kh, kw) like the images, their weights and smoothings (K,), float64 NumPy or like the images."""

    filters: Array
    weights: Array
    nus: Array


def symbol_bound(filters: np.ndarray, factors: np.ndarray) -> float:
    """Bound of the norm of ``sum_k factors_k C_k' C_k`` with the valid correlations C_k.

    They are parts of convolutions on the whole plane, whose norm is the maximum of a trigonometric polynomial; on a
    grid it is missed by at most the cosines.
    """
    degrees = np.asarray(filters.shape[1:]) - 1
    grid = np.maximum(1, 2 * OVERSAMPLING * degrees)
    spectrum = np.abs(np.fft.fft2(filters, tuple(grid))) ** 2
    missed = math.prod(math.cos(math.pi * d / n) for d, n in zip(degrees, grid, strict=True))
    return float(np.max(np.tensordot(factors, spectrum, 1))) / missed


def _lipschitz(filters: np.ndarray, weights: np.ndarray, nus: np.ndarray) -> float:
    return 1 + symbol_bound(filters, weights / nus)


def _steps(kernels: Any, y: Array, experts: Experts, x: Array, z: Array, *numbers: Any) -> tuple[int, float]:
    """What `tv_steps` does, for fields of experts."""
    step, momentum, limit, count = numbers
    g, norm = array_namespace(z).empty_like(z), 0.0
    for taken in range(1, count + 1):
        _, norm = kernels.foe_gradient(z, y, *experts, g)
        g *= -step
        g += z  # the new x
        x -= g
        x *= -momentum
        x += g
        if not norm > limit:
            x[...] = g
            return taken, norm
        z[...] = x
        x[...] = g
    return count, norm


def denoise_foe(
    y: Any,
    filters: Any,
    *,
    weight: Any,
    smoothing: Any,
    batch: bool = False,
    tol: float = 1e-4,
    max_iter: int = 10_000,
    init: Any = None,
    on_fail: str = "warn",
) -> DenoisingResult:
    r"""Images close to the given ones to which filters respond little.

    Minimises

    .. math::

        h(x) = \tfrac12 \|x - y\|^2 + \sum_k w_k \sum_{ij} \sqrt{(c_k * x)_{ij}^2 + \nu_k^2}

    with the correlations :math:`(c_k * x)_{ij} = \sum_{pq} c_{k, pq} x_{i+p, j+q}` wherever the filter lies within
    the image, by accelerated gradient descent.

    Parameters
    ----------
    y : array_like of shape (n,) or (H, W); with `batch` (B, n) or (B, H, W)
        Signals or images, at least as large as a filter.
    filters : array_like of shape (K, k) or (K, kh, kw)
        Filters c, for signals or images.
    weight, smoothing : float or array_like of shape (K,)
        Weights w >= 0 and smoothings nu > 0, in the units of y (for filters without units).
    batch : bool
        Whether the first axis of y runs over images.
    tol, max_iter, init, on_fail
        As in `denoise_tv`.

    Returns
    -------
    DenoisingResult
        ``x`` of the shape of y, with ``error_bound``, ``value`` and the rest.

    Raises
    ------
    ValueError, TypeError
        For bad input; the message names the argument and the value.
    ConvergenceError
        If `tol` is not reached and ``on_fail="raise"``.

    Warns
    -----
    ConvergenceWarning
        If `tol` is not reached and ``on_fail="warn"``.

    Notes
    -----
    Time of a gradient: 2 K kh kw products a pixel; memory: five images, and a few rows for each thread.

    References
    ----------
    Roth, Black, "Fields of experts", International Journal of Computer Vision 82, 2009.

    Examples
    --------
    >>> from ot_numba.bilevel import denoise_foe
    >>> result = denoise_foe([0.0, 0.2, 0.0, 1.0, 1.1], [[1.0, -1.0]], weight=0.2, smoothing=0.01)
    >>> result.x.round(2).tolist()
    [0.13, 0.13, 0.14, 0.94, 0.96]
    """
    check_choice(on_fail, "on_fail", ON_FAIL)
    data = Batch(y, "y", batch, filters)
    experts = _check_experts(data, filters, weight, smoothing)
    tol = check_real(tol, "tol", low=0)
    max_iter = check_int(max_iter, "max_iter", low=1)
    start = data.data if init is None else data.check(init, "init")
    kernels = kernels_for(data.xp, "stencils")
    limit = tol * data.spread() * math.sqrt(math.prod(data.shape))
    lipschitz = _lipschitz(*(to_numpy(a) for a in experts))
    found = minimise(
        lambda x, z, *numbers: _steps(kernels, data.data, experts, x, z, *numbers),
        start,
        lipschitz,
        limit,
        rounding(data, lipschitz),
        max_iter,
    )
    return finish(
        data, lambda x, out: kernels.foe_gradient(x, data.data, *experts, out), found, limit, tol, on_fail
    )


def _check_experts(data: Batch, filters: Any, weight: Any, smoothing: Any) -> Experts:
    xp, signals = data.xp, len(data.image_shape) == 1
    filters = as_float_array(
        filters, "filters", ndim=2 if signals else 3, xp=xp, dtype=data.dtype, device=data.device
    )
    filters = filters[:, None, :] if signals else filters
    if filters.shape[1] > data.images[1] or filters.shape[2] > data.images[2]:
        raise ValueError(
            f"filters of shape {tuple(filters.shape[1:])} do not fit into images {data.images[1:]}"
        )
    vectors = []
    for name, value in (("weight", weight), ("smoothing", smoothing)):
        vector = as_float_array(value, name, ndim=(0, 1), xp=xp, dtype=xp.float64, device=data.device)
        if tuple(vector.shape) not in ((), (filters.shape[0],)):
            raise ValueError(
                f"{name} must be a number or have shape ({filters.shape[0]},), got {tuple(vector.shape)}"
            )
        vectors.append(vector + xp.zeros(filters.shape[0], dtype=xp.float64, device=data.device))
    if float(xp.min(vectors[0])) < 0:
        raise ValueError(f"weight must not be negative, got {float(xp.min(vectors[0]))}")
    if not float(xp.min(vectors[1])) > 0:
        raise ValueError(f"smoothing must be > 0, got {float(xp.min(vectors[1]))}")
    data.check_squares("weight", float(xp.max(vectors[0])))
    data.check_squares("smoothing", float(xp.max(vectors[1])), float(xp.min(vectors[1])))
    return Experts(filters, *vectors)


class FoEDenoising(SquaredErrorProblem):
    """Bilevel problem from `foe_denoising`; has what `maid` and its relatives ask for."""

    def __init__(self, y: Any, x_true: Any, *, n_filters: int, size: int, batch: bool) -> None:
        super().__init__(y, x_true, batch, n_filters=n_filters)
        size = check_int(size, "size", low=2)
        _, height, width = self.batch.images
        signals = len(self.batch.image_shape) == 1
        if size > width or (size > height and not signals):
            raise ValueError(f"size must be at most that of the images, {self.batch.image_shape}, got {size}")
        #: shape of the filters
        self.filter_shape = (n_filters, 1 if signals else size, size)
        #: number of parameters
        self.size = 1 + 2 * n_filters + math.prod(self.filter_shape)
        self._kernels = kernels_for(self.batch.xp, "stencils")
        self._gradient, self._hvp = self._kernels.foe_gradient, self._kernels.foe_hvp

    def pack(self, filters: Any, *, weight: Any, smoothing: Any) -> Array:
        """Parameters of given filters, weights and smoothings, with the common factor of the weights 1."""
        count = self.filter_shape[0]
        logs = [np.log(np.broadcast_to(to_numpy(v), (count,)).astype(float)) for v in (weight, smoothing)]
        filters = np.reshape(to_numpy(filters).astype(float), self.filter_shape)
        return self._like_images(np.concatenate([[0.0], *logs, filters.ravel()]), self.batch.xp.float64)

    def cosine_filters(self) -> np.ndarray:
        """Cosines of norm 1, those of least frequency but the constant, as filters to start from."""
        count, *sides = self.filter_shape
        if count >= math.prod(sides):
            raise ValueError(f"there are only {math.prod(sides) - 1} cosines of mean 0, for n_filters={count}")
        bases = []
        for n in sides:
            k = np.arange(n)[:, None]
            basis = np.cos(np.pi * (np.arange(n) + 0.5) * k / n) * math.sqrt(2 / n)
            basis[0] /= math.sqrt(2)
            bases.append(basis)
        pairs = sorted(np.ndindex(*sides), key=lambda p: (sum(p), p))[1 : count + 1]
        return np.stack([np.outer(bases[0][i], bases[1][j]) for i, j in pairs])

    def read(self, theta: Any) -> Experts:
        """Filters, weights and smoothings of theta, NumPy, float64."""
        theta = to_numpy(parameters(theta, self.size))
        count = self.filter_shape[0]
        logs = np.clip(theta[: 1 + 2 * count], -LOG_LIMIT, LOG_LIMIT)
        weights = np.exp(np.clip(logs[0] + logs[1 : 1 + count], -LOG_LIMIT, LOG_LIMIT))
        return Experts(theta[1 + 2 * count :].reshape(self.filter_shape), weights, np.exp(logs[1 + count :]))

    def _like_images(self, v: np.ndarray, dtype: Any) -> Array:
        device = self.batch.device
        return self.batch.xp.asarray(v, dtype=dtype, device=None if device == "cpu" else device)

    def _form(self, theta: Any) -> Experts:
        filters, *vectors = self.read(theta)
        vectors = (self._like_images(v, self.batch.xp.float64) for v in vectors)
        return Experts(self._like_images(filters, self.batch.dtype), *vectors)

    def lower_jac_t(self, x: Array, theta: Array, q: Array) -> Array:
        """Product of q with the derivative of the gradient in theta, (p,), float64."""
        xp = self.batch.xp
        by_weight, by_nu, by_filter = self._kernels.foe_jacobian_t(
            self.batch.take(x), self.batch.take(q), *self._form(theta)
        )
        common = xp.reshape(xp.sum(by_weight), (1,))
        return xp.concat([common, by_weight, by_nu, xp.reshape(by_filter, (-1,))])

    def lipschitz(self, theta: Array) -> float:
        """Bound of the Hessian, from the maximum of ``1 + sum_k w_k / nu_k |c_k|**2`` over all frequencies."""
        return _lipschitz(*self.read(theta))

    def _norms(self, filters: np.ndarray) -> np.ndarray:
        """Bounds of the norms of the correlations."""
        return np.asarray([math.sqrt(symbol_bound(c[None], np.ones(1))) for c in filters])

    def L_Hinv(self, theta: Array) -> float:  # noqa: N802
        """Lipschitz constant in x of the inverse Hessian."""
        filters, weights, nus = self.read(theta)
        own = np.sqrt((filters**2).sum(axis=(1, 2)))  # what a single response sees
        return float((THIRD * weights / nus**2 * self._norms(filters) ** 2 * own).sum())

    def L_J(self, theta: Array) -> float:  # noqa: N802
        """Lipschitz constant in x of the derivative in theta, for x with at most twice the norm of y.

        Solutions have at most the norm of y, so that it holds wherever ``||x - solution|| <= ||y||``.
        """
        filters, weights, nus = self.read(theta)
        norms, own = self._norms(filters), np.sqrt((filters**2).sum(axis=(1, 2)))
        logs = weights * norms**2 / nus
        taps = weights * norms * (2 / nus + THIRD / nus**2 * own * 2 * self._size(self.batch.data))
        taps *= math.sqrt(math.prod(self.filter_shape[1:]))
        return math.sqrt(logs.sum() ** 2 + 2 * (logs**2).sum() + (taps**2).sum())

    def _size(self, x: Array) -> float:
        xp = self.batch.xp
        x = xp.astype(x, xp.float64)
        return math.sqrt(float(xp.sum(x * x)))

    def jac_norm(self, x: Array, theta: Array) -> float:
        """Bound of the spectral norm of the derivative in theta: columns of the logarithms, bounds for the filters."""
        x, (filters, weights, nus) = self.batch.take(x), self._form(theta)
        xp = self.batch.xp
        total, square, column = xp.zeros_like(x), 0.0, xp.empty_like(x)
        for k in range(self.filter_shape[0]):
            one = slice(k, k + 1)
            expert = (filters[one, ...], weights[one], nus[one])
            self._gradient(x, x, *expert, column)
            total += column
            square += self._size(column) ** 2
            self._hvp(x, x, *expert, column)
            column -= x
            square += self._size(column) ** 2
        filters, weights, nus = self.read(theta)
        batch, height, width = self.batch.images
        responses = batch * (height - filters.shape[1] + 1) * (width - filters.shape[2] + 1)
        taps = weights * (math.sqrt(responses) + self._norms(filters) * self._size(x) / nus)
        square += math.prod(filters.shape[1:]) * float((taps**2).sum())
        return math.sqrt(square + self._size(total) ** 2)

    def lower_solve(self, theta: Array, x0: Array | None, tol: float, max_iter: int = 100_000) -> tuple[Array, int]:
        """Solution of the lower level up to a gradient norm of `tol` (or of rounding), and gradients that it took."""
        batch, experts, lipschitz = self.batch, self._form(theta), self.lipschitz(theta)
        x, n_iter, _ = minimise(
            lambda x, z, *numbers: _steps(self._kernels, batch.data, experts, x, z, *numbers),
            batch.data if x0 is None else batch.take(x0),
            lipschitz,
            tol * (1 - 1e-9),  # so that sums in another order do not exceed it
            rounding(batch, lipschitz),
            max_iter,
        )
        return batch.give(x), n_iter


def foe_denoising(
    y: Any, x_true: Any, *, n_filters: int = 8, size: int = 3, batch: bool = False
) -> FoEDenoising:
    r"""Learning of the filters, weights and smoothings of a field of experts from pairs of noisy and clean images.

    Lower level: `denoise_foe` with :math:`w_k = e^{b_0 + a_k}` and :math:`\nu_k = e^{b_k}`; upper level:

    .. math:: g(x) = \frac{1}{2 B} \sum_b \|x_b - x^{true}_b\|^2.

    The parameters are :math:`\theta = (b_0, a_1, \dots, a_K, b_1, \dots, b_K, c_1, \dots, c_K)`, filters row by row;
    ``problem.pack(filters, weight=, smoothing=)`` makes one, ``problem.read(theta)`` takes it apart, and
    ``problem.cosine_filters()`` are filters to start from.

    Parameters
    ----------
    y, x_true : array_like of shape (n,) or (H, W); with `batch` (B, n) or (B, H, W)
        Noisy and clean signals or images, of one shape. float64 is advised.
    n_filters : int
        Number of filters K.
    size : int
        Side of the filters, at least 2.
    batch : bool
        Whether the first axis runs over images.

    Returns
    -------
    FoEDenoising
        A problem for `maid`, `hoag` and `hypergradient`; variables x of the shape of y, parameters theta of shape
        ``(problem.size,)``. Its constants are bounds from the symbols of the filters. A logarithm counts as 50 at
        most, in size.

    Raises
    ------
    ValueError, TypeError
        For bad input; the message names the argument and the value.

    Notes
    -----
    A gradient and a product with the Hessian take 2 and 3 times K size**2 products a pixel, one with the derivative in
    theta 4 times. The lower level is 1-strongly convex.

    References
    ----------
    Roth, Black, "Fields of experts", International Journal of Computer Vision 82, 2009. Salehi, Mukherjee, Roberts,
    Ehrhardt, "An adaptively inexact first-order method for bilevel optimization with application to hyperparameter
    learning", SIAM J. Math. Data Sci., 2025, arXiv 2308.10098.

    Examples
    --------
    >>> import numpy as np
    >>> from ot_numba.bilevel import foe_denoising
    >>> x_true = np.kron([[0.0, 1.0], [1.0, 0.5]], np.ones((4, 4)))
    >>> y = x_true + 0.1 * np.random.default_rng(0).normal(size=(8, 8))
    >>> problem = foe_denoising(y, x_true, n_filters=2, size=2)
    >>> theta = problem.pack(problem.cosine_filters(), weight=0.1, smoothing=0.02)
    >>> theta.shape, problem.lower_jac_t(y, theta, y).shape
    ((13,), (13,))
    >>> x, _ = problem.lower_solve(theta, None, 1e-6)
    >>> problem.upper(x) < 0.8 * problem.upper(y)
    True
    """
    return FoEDenoising(y, x_true, n_filters=n_filters, size=size, batch=batch)
