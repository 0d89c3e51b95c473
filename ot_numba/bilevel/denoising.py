"""What the denoising problems share: batches of images, their solver, its result, and the upper level."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..arrays.namespaces import array_namespace, c_ordered, device_of, library_name
from ..arrays.validation import as_float_array, check_int, common_dtype
from ..arrays.warnings import report_failure

Array = Any
#: Largest size of a logarithm: beyond it parameters stay what they are.
LOG_LIMIT = 50.0
#: Largest third derivative of sqrt(t**2 + 1).
THIRD = 1.5 * 0.8**2.5


@dataclass(frozen=True)
class DenoisingResult:
    r"""Denoised images, with a bound of their distance to the exact minimiser.

    Attributes
    ----------
    x : array
        The images, of the shape and dtype of the data.
    value : float
        Objective at x, summed over the images.
    gradient_norm : float
        2-norm of its gradient at x, recomputed at the end.
    error_bound : float
        :math:`\|\nabla h(x)\| / \sqrt N`, which bounds the root-mean-square distance of the N pixels to the exact
        minimiser, in the units of the data (the objective is 1-strongly convex).
    gap_bound : float
        :math:`\|\nabla h(x)\|^2 / 2`, which bounds ``value`` less its minimum.
    n_iter : int
        Gradients.
    converged : bool
        Whether ``error_bound`` is as small as asked for, or as rounding allows (then ``status`` says so).
    status : str
        ``"converged"``, ``"floor"`` (rounding allows no less) or ``"max_iter"``.
    message : str
        What happened, with numbers, and what to change.
    """

    x: Array
    value: float
    gradient_norm: float
    error_bound: float
    gap_bound: float
    n_iter: int
    converged: bool
    status: str
    message: str


class Batch:
    """Images of one shape, as users pass them and as kernels take them, (B, H, W)."""

    def __init__(self, y: Any, name: str, batch: bool, *more: Any) -> None:
        self.xp = array_namespace(y, *more)
        self.dtype = common_dtype(y, *more)
        y = as_float_array(y, name, ndim=(2, 3) if batch else (1, 2), xp=self.xp, dtype=self.dtype)
        largest = float(self.xp.max(self.xp.abs(y)))
        self.check_squares(name, largest, largest or math.inf)
        self.shape, self.device = tuple(y.shape), device_of(y)
        parts = self.shape if batch else (1, *self.shape)
        self.images = (parts[0], 1, parts[1]) if len(parts) == 2 else parts
        self.image_shape = self.shape[1:] if batch else self.shape
        self.data = self.xp.reshape(y, self.images)

    def check_squares(self, name: str, largest: float, smallest: float = math.inf) -> None:
        """Refuse numbers whose squares are beyond those of the dtype."""
        info = self.xp.finfo(self.dtype)
        if largest > 0.1 * math.sqrt(float(info.max)):
            raise ValueError(f"{name} has entries of size {largest:g}, whose squares overflow: rescale it")
        if smallest < 10 * math.sqrt(float(info.smallest_normal)):
            raise ValueError(f"{name} has entries of size {smallest:g}, whose squares underflow: rescale it")

    def check(self, x: Any, name: str) -> Array:
        """Images from a user that must be like the data."""
        x = as_float_array(x, name, xp=self.xp, dtype=self.dtype, device=self.device)
        if tuple(x.shape) != self.shape:
            raise ValueError(f"{name} must have the shape of y, {self.shape}, got {tuple(x.shape)}")
        return self.xp.reshape(x, self.images)

    def take(self, x: Any) -> Array:
        """Images from an algorithm, as kernels take them."""
        x = self.xp.reshape(self.xp.asarray(x, dtype=self.dtype), self.images)
        return c_ordered(x) if library_name(self.xp) in ("numpy", "cupy") else x

    def give(self, x: Array) -> Array:
        """Images from a kernel, in the shape of the data."""
        return self.xp.reshape(x, self.shape)

    def spread(self) -> float:
        """Root mean square of the data less its mean."""
        xp = self.xp
        y = xp.astype(self.data, xp.float64)
        return math.sqrt(float(xp.mean((y - xp.mean(y)) ** 2)))


def parameters(theta: Any, size: int) -> Any:
    """Logarithms, cut to what exp can take, as a flat array of `size` entries."""
    xp = array_namespace(theta)
    theta = xp.reshape(xp.asarray(theta, dtype=xp.float64), (-1,))
    if theta.shape[0] != size:
        raise ValueError(f"theta must have {size} entries, got {theta.shape[0]}")
    return theta


def exp(t: Any) -> float:
    """Exponential of one parameter."""
    return math.exp(min(max(float(t), -LOG_LIMIT), LOG_LIMIT))


def minimise(
    steps: Callable[[Array, Array, float, float, float, int], tuple[int, float]],
    start: Array,
    lipschitz: float,
    limit: float,
    floor: float,
    max_iter: int,
) -> tuple[Array, int, str]:
    """Accelerated gradient descent to a gradient norm of `limit`: point, gradients and status.

    ``steps(x, z, step, momentum, limit, count)`` does what the kernel `tv_steps` does; mu is 1.
    """
    xp = array_namespace(start)
    root = math.sqrt(lipschitz)
    x, z = xp.asarray(start, copy=True), xp.asarray(start, copy=True)
    # in so many steps the bound of the objective falls by e**8, that of the gradient by e**4
    chunk = max(20, math.ceil(8 * root))
    n_iter, last = 0, math.inf
    while n_iter < max_iter:
        count = min(chunk, max_iter - n_iter)
        taken, norm = steps(x, z, 1 / lipschitz, (root - 1) / (root + 1), limit, count)
        n_iter += taken
        if not norm > limit:
            return z, n_iter, "converged"
        if norm <= floor and not norm < 0.5 * last:
            return z, n_iter, "floor"
        last = norm
    return z, n_iter, "max_iter"


def finish(
    batch: Batch,
    gradient: Callable[[Array, Array], tuple[float, float]],
    found: tuple[Array, int, str],
    limit: float,
    tol: float,
    on_fail: str,
) -> DenoisingResult:
    """Result of a run of `minimise`, from a gradient that is computed anew."""
    x, n_iter, status = found
    value, norm = gradient(x, batch.xp.empty_like(x))
    # the same gradient, with sums that may be taken in another order
    if norm <= limit * (1 + 1e-6):
        status = "converged"
    elif status == "converged":
        status = "max_iter"
    bound = norm / math.sqrt(math.prod(batch.shape))
    reached = f"root-mean-square error <= {bound:.2e} after {n_iter} gradients"
    message = {
        "converged": f"converged: {reached}",
        "floor": f"converged as far as rounding allows: {reached}, above tol={tol:g} times the spread of y",
        "max_iter": f"not converged: {reached}, asked for tol={tol:g} times the spread of y: increase max_iter or the "
        "smoothing",
    }[status]
    if status == "max_iter":
        report_failure(message, on_fail)
    return DenoisingResult(
        batch.give(x), value, norm, bound, 0.5 * norm * norm, n_iter, status != "max_iter", status, message
    )


class SquaredErrorProblem:
    r"""Upper level :math:`g(x) = \frac{1}{2B} \sum_b \|x_b - x_b^{true}\|^2` over B images, and what goes with it.

    A lower level brings ``_form(theta)``, and the kernels ``_gradient`` and ``_hvp`` that take it.
    """

    upper_convex = True

    def __init__(self, y: Any, x_true: Any, batch: bool, **sizes: int) -> None:
        self.batch = Batch(y, "y", batch, x_true)
        self._true = self.batch.check(x_true, "x_true")
        for name, size in sizes.items():
            setattr(self, name, check_int(size, name, low=1))
        self.L_g = 1.0 / self.batch.images[0]

    @property
    def y(self) -> Array:
        """Noisy images, as they were given."""
        return self.batch.give(self.batch.data)

    @property
    def x_true(self) -> Array:
        """Images that the denoised ones are compared with."""
        return self.batch.give(self._true)

    @property
    def start(self) -> Array:
        """Where to start from: the noisy images."""
        return self.y

    def upper(self, x: Array, theta: Array | None = None) -> float:
        """Half the squared error, averaged over the images."""
        xp = self.batch.xp
        e = self.batch.take(x) - self._true
        return 0.5 * self.L_g * float(xp.sum(e * e, dtype=xp.float64))

    def upper_grad(self, x: Array, theta: Array | None = None) -> Array:
        """Its gradient in x."""
        return self.batch.give(self.L_g * (self.batch.take(x) - self._true))

    def lower(self, x: Array, theta: Array) -> float:
        """Objective of the lower level, summed over the images."""
        x = self.batch.take(x)
        return self._gradient(x, self.batch.data, *self._form(theta), self.batch.xp.empty_like(x))[0]

    def lower_grad(self, x: Array, theta: Array) -> Array:
        """Its gradient in x."""
        x = self.batch.take(x)
        out = self.batch.xp.empty_like(x)
        self._gradient(x, self.batch.data, *self._form(theta), out)
        return self.batch.give(out)

    def lower_hvp(self, x: Array, theta: Array, v: Array) -> Array:
        """Product of its Hessian in x with v."""
        x, v = self.batch.take(x), self.batch.take(v)
        out = self.batch.xp.empty_like(x)
        self._hvp(x, v, *self._form(theta), out)
        return self.batch.give(out)

    def mu(self, theta: Array | None = None) -> float:
        """Strong convexity of the lower level: 1."""
        return 1.0
