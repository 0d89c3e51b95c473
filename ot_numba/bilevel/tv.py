"""Denoising by smoothed total variation: the solver, and the learning of its weight and smoothing."""

from __future__ import annotations

import math
from typing import Any

from ..arrays.namespaces import device_of, to_numpy
from ..arrays.validation import as_float_array, check_choice, check_int, check_real
from ..arrays.warnings import ON_FAIL
from ..kernels import kernels_for
from .denoising import (
    LOG_LIMIT,
    THIRD,
    Batch,
    DenoisingResult,
    SquaredErrorProblem,
    exp,
    finish,
    minimise,
    parameters,
)

Array = Any


def differences_norm_sq(height: int, width: int) -> float:
    """Squared norm of the differences to the right and down on a grid."""
    return sum(4 * math.sin(0.5 * math.pi * (n - 1) / n) ** 2 for n in (height, width))


def denoise_tv(
    y: Any,
    *,
    weight: Any,
    smoothing: float,
    isotropic: bool = True,
    batch: bool = False,
    tol: float = 1e-4,
    max_iter: int = 10_000,
    init: Any = None,
    on_fail: str = "warn",
) -> DenoisingResult:
    r"""Images with a small total variation close to the given ones.

    Minimises

    .. math::

        h(x) = \tfrac12 \|x - y\|^2 + \sum_{ij} w_{ij} \sqrt{|\nabla x_{ij}|^2 + \nu^2}

    where :math:`\nabla x_{ij}` has the differences to the pixel on the right and to the one below (left out at the
    borders), by accelerated gradient descent. h is 1-strongly convex, so that the norm of its gradient bounds the
    distance to the exact minimiser.

    Parameters
    ----------
    y : array_like of shape (n,) or (H, W); with `batch` (B, n) or (B, H, W)
        Signals or images.
    weight : float or array_like of shape (n,) or (H, W)
        Weight w >= 0, in the units of y; an array has one for each pixel.
    smoothing : float
        Smoothing nu > 0, in the units of y: steps well below it are smoothed as by a quadratic penalty, the edges
        above it stay. The objective is at most ``w nu`` a pixel above that with nu = 0, at the same x.
    isotropic : bool
        False: :math:`\sqrt{d_x^2 + \nu^2} + \sqrt{d_y^2 + \nu^2}` instead of
        :math:`\sqrt{d_x^2 + d_y^2 + \nu^2}`.
    batch : bool
        Whether the first axis of y runs over images.
    tol : float
        On the bound of the root-mean-square distance to the exact minimiser, relative to the standard deviation of y.
    max_iter : int
        Largest number of gradients; about :math:`\sqrt{8 w / \nu}` of them for each factor e of the distance.
    init : array_like, optional
        Where to start, of the shape of y; default y.
    on_fail : {"warn", "raise", "ignore"}
        What to do if `tol` is not reached.

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
    A step is one pass over the image; memory: six images. Results do not depend on the number of threads.

    References
    ----------
    Rudin, Osher, Fatemi, "Nonlinear total variation based noise removal algorithms", Physica D 60, 1992. Nesterov,
    "Introductory lectures on convex optimization", Springer, 2004.

    Examples
    --------
    >>> import numpy as np
    >>> from ot_numba.bilevel import denoise_tv
    >>> y = np.array([0.1, -0.1, 0.05, 1.0, 0.9, 1.1])
    >>> result = denoise_tv(y, weight=0.2, smoothing=0.01)
    >>> result.converged, result.x.round(2).tolist()
    (True, [0.08, 0.08, 0.09, 0.92, 0.93, 0.94])
    """
    check_choice(on_fail, "on_fail", ON_FAIL)
    data = Batch(y, "y", batch)
    _, height, width = data.images
    w, largest = _check_weight(weight, data)
    nu = check_real(smoothing, "smoothing", low=0, low_open=True, high=math.inf, high_open=True)
    data.check_squares("weight", largest)
    data.check_squares("smoothing", nu, nu)
    tol = check_real(tol, "tol", low=0)
    max_iter = check_int(max_iter, "max_iter", low=1)
    start = data.data if init is None else data.check(init, "init")
    kernels, form = kernels_for(data.xp, "stencils"), (w, nu, bool(isotropic))
    limit = tol * data.spread() * math.sqrt(math.prod(data.shape))
    lipschitz = 1 + largest * differences_norm_sq(height, width) / nu
    found = minimise(
        _stepper(kernels, data, form),
        start,
        lipschitz,
        limit,
        rounding(data, lipschitz),
        max_iter,
    )
    return finish(
        data, lambda x, out: kernels.tv_gradient(x, data.data, *form, out), found, limit, tol, on_fail
    )


def _stepper(kernels: Any, data: Batch, form: tuple) -> Any:
    """Steps for `minimise`, in scratch memory of their own."""
    scratch = data.xp.empty((2, *data.images), dtype=data.dtype, device=device_of(data.data))
    return lambda x, z, *numbers: kernels.tv_steps(x, z, data.data, *form, *numbers, scratch)


def rounding(data: Batch, lipschitz: float) -> float:
    """Norm that a gradient may have by rounding alone."""
    xp = data.xp
    largest = float(xp.max(xp.abs(data.data)))
    return float(xp.finfo(data.dtype).eps) * largest * lipschitz * math.sqrt(math.prod(data.shape))


def _check_weight(weight: Any, data: Batch) -> tuple[Any, float]:
    """The weight as kernels take it, and its largest entry."""
    if getattr(weight, "ndim", 0) == 0 and not isinstance(weight, (list, tuple)):
        w = check_real(weight, "weight", low=0, high=math.inf, high_open=True)
        return w, w
    xp = data.xp
    w = as_float_array(weight, "weight", xp=xp, dtype=data.dtype, device=data.device)
    if tuple(w.shape) != data.image_shape:
        raise ValueError(f"weight must be a number or have the shape {data.image_shape}, got {tuple(w.shape)}")
    if float(xp.min(w)) < 0:
        raise ValueError(f"weight must not be negative, got {float(xp.min(w))}")
    return xp.reshape(w, data.images[1:]), float(xp.max(w))


class TVDenoising(SquaredErrorProblem):
    """Bilevel problem from `tv_denoising`; has what `maid` and its relatives ask for."""

    def __init__(self, y: Any, x_true: Any, *, isotropic: bool, per_pixel: bool, batch: bool) -> None:
        super().__init__(y, x_true, batch)
        self.isotropic, self.per_pixel = bool(isotropic), bool(per_pixel)
        _, height, width = self.batch.images
        #: number of parameters
        self.size = height * width + 1 if per_pixel else 2
        self.norm_sq = differences_norm_sq(height, width)
        self._kernels = kernels_for(self.batch.xp, "stencils")
        self._gradient, self._hvp = self._kernels.tv_gradient, self._kernels.tv_hvp

    def read(self, theta: Any) -> tuple[Any, float]:
        """Weight (a number, or an array of the shape of an image) and smoothing of theta."""
        w, nu = self._form(theta)[:2]
        return w, nu

    def _form(self, theta: Any) -> tuple[Any, float, bool]:
        theta = parameters(theta, self.size)
        if not self.per_pixel:
            w, nu = map(exp, to_numpy(theta))  # of a device in one piece
            return w, nu, self.isotropic
        nu, xp = exp(theta[-1]), self.batch.xp
        logs = xp.clip(theta[:-1], -LOG_LIMIT, LOG_LIMIT)
        return (
            xp.reshape(xp.astype(xp.exp(logs), self.batch.dtype), self.batch.images[1:]),
            nu,
            self.isotropic,
        )

    def _largest(self, w: Any) -> float:
        return float(self.batch.xp.max(w)) if self.per_pixel else w

    def lower_jac_t(self, x: Array, theta: Array, q: Array) -> Array:
        """Product of q with the derivative of the gradient in theta, (p,), float64."""
        xp, x, q = self.batch.xp, self.batch.take(x), self.batch.take(q)
        pixels = xp.empty_like(x[0, ...]) if self.per_pixel else None
        both = xp.asarray(
            self._kernels.tv_jacobian_t(x, q, *self._form(theta), pixels),
            dtype=xp.float64,
            device=device_of(x),
        )
        if pixels is None:
            return both
        return xp.concat([xp.reshape(xp.astype(pixels, xp.float64), (-1,)), both[1:]])

    def lipschitz(self, theta: Array) -> float:
        """Bound of the Hessian: ``1 + max w ||D||**2 / nu``."""
        w, nu = self.read(theta)
        return 1 + self._largest(w) * self.norm_sq / nu

    def L_J(self, theta: Array) -> float:  # noqa: N802
        """Lipschitz constant in x of the derivative in theta: ``sqrt(2) max w ||D||**2 / nu``."""
        w, nu = self.read(theta)
        return math.sqrt(2) * self._largest(w) * self.norm_sq / nu

    def L_Hinv(self, theta: Array) -> float:  # noqa: N802
        """Lipschitz constant in x of the inverse Hessian.

        ``0.8587 max w ||D||**2 / nu**2`` times the norm of what a single term sees: one difference, sqrt(2), or
        (isotropic) the two of a pixel, sqrt(3).
        """
        w, nu = self.read(theta)
        _, height, width = self.batch.images
        seen = math.sqrt(3 if self.isotropic and min(height, width) > 1 else 2)
        return THIRD * seen * self._largest(w) * self.norm_sq / nu**2

    def jac_norm(self, x: Array, theta: Array) -> float:
        """Spectral norm of the derivative in theta, from its two columns; with weights per pixel a bound of it."""
        xp, x, form = self.batch.xp, self.batch.take(x), self._form(theta)
        if self.per_pixel:
            slope = math.sqrt(1 if self.isotropic else sum(n > 1 for n in self.batch.images[1:]))
            columns = 0.39 * math.sqrt(2 * math.prod(self.batch.images))
            return math.sqrt(self.norm_sq) * self._largest(form[0]) * math.hypot(
                slope * math.sqrt(self.batch.images[0]), columns
            )
        first, second = xp.empty_like(x), xp.empty_like(x)
        self._gradient(x, x, *form, first)
        self._hvp(x, x, *form, second)
        second -= x  # w D' (phi'' D x), and phi'' d = d nu**2 / s**3 also where isotropic
        first, second = (xp.astype(column, xp.float64) for column in (first, second))
        a, b, c = (float(xp.sum(u * v)) for u, v in ((first, first), (first, second), (second, second)))
        return math.sqrt(0.5 * (a + c) + math.hypot(0.5 * (a - c), b))

    def lower_solve(self, theta: Array, x0: Array | None, tol: float, max_iter: int = 100_000) -> tuple[Array, int]:
        """Solution of the lower level up to a gradient norm of `tol` (or of rounding), and gradients that it took."""
        batch, form, lipschitz = self.batch, self._form(theta), self.lipschitz(theta)
        start = batch.data if x0 is None else batch.take(x0)
        x, n_iter, _ = minimise(
            _stepper(self._kernels, batch, form),
            start,
            lipschitz,
            tol * (1 - 1e-9),  # so that sums in another order do not exceed it
            rounding(batch, lipschitz),
            max_iter,
        )
        return batch.give(x), n_iter


def tv_denoising(
    y: Any, x_true: Any, *, isotropic: bool = False, per_pixel: bool = False, batch: bool = False
) -> TVDenoising:
    r"""Learning of weight and smoothing of total-variation denoising from pairs of noisy and clean images.

    Lower level: `denoise_tv` with :math:`\theta = (\log w, \log \nu)`; upper level:

    .. math:: g(x) = \frac{1}{2 B} \sum_b \|x_b - x^{true}_b\|^2.

    Parameters
    ----------
    y, x_true : array_like of shape (n,) or (H, W); with `batch` (B, n) or (B, H, W)
        Noisy and clean signals or images, of one shape. float64 is advised.
    isotropic : bool
        As in `denoise_tv`.
    per_pixel : bool
        Whether each pixel has a weight of its own (the same for all images); theta then has their logarithms row by
        row, and that of the smoothing last.
    batch : bool
        Whether the first axis runs over images.

    Returns
    -------
    TVDenoising
        A problem for `maid`, `hoag` and `hypergradient`; variables x of the shape of y, parameters theta of shape
        ``(problem.size,)``. All its constants hold exactly; a logarithm counts as 50 at most, in size.

    Raises
    ------
    ValueError, TypeError
        For bad input; the message names the argument and the value.

    Notes
    -----
    With the differences D and :math:`s = \sqrt{d^2 + \nu^2}` for :math:`d = D x`: the gradient is
    :math:`x - y + w D^\top (d / s)`, the Hessian :math:`1 + w D^\top \nu^2 s^{-3} D`, and the columns of the
    derivative in theta :math:`w D^\top (d / s)` and :math:`-w D^\top (d \nu^2 s^{-3})`. Each is one pass over the
    images. All images together are one problem, with :math:`\mu = 1`, :math:`L_g = 1/B`.

    References
    ----------
    Salehi, Mukherjee, Roberts, Ehrhardt, "An adaptively inexact first-order method for bilevel optimization with
    application to hyperparameter learning", SIAM J. Math. Data Sci., 2025, arXiv 2308.10098.

    Examples
    --------
    >>> import numpy as np
    >>> from ot_numba.bilevel import tv_denoising
    >>> problem = tv_denoising([0.5, 1, 2, 2], [0, 1, 3, 2.5])
    >>> theta = np.log([0.2, 0.5])
    >>> problem.lower_grad([0, 1, 3, 2.5], theta).round(6).tolist()
    [-0.678885, -0.015143, 1.33545, 0.358579]
    >>> problem.lipschitz(theta) <= 1 + 4 * 0.2 / 0.5
    True
    """
    return TVDenoising(y, x_true, isotropic=isotropic, per_pixel=per_pixel, batch=batch)
