"""A fixed number of ISTA or IHT iterations as a map with trainable numbers, and its gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays.namespaces import read_floats, to_numpy
from ..arrays.validation import as_float_array, check_choice, check_int, check_real
from ..kernels.contract import HARD, SOFT
from .objective import column_sums, signals
from .operators import DenseOperator, Operator, SparseOperator, make_operator

Array = Any
PROX = {"soft": SOFT, "hard": HARD}
LOSSES = ("objective", "mse")
MODES = ("reverse", "forward")
SPARSE_FROM = 100  #: products for which it pays to prepare for sparse ones


@dataclass(frozen=True)
class Schedule:
    """The numbers of all layers, float64 (T,); thresholds None where they are tied to the steps."""

    kind: int
    reg: float
    steps: np.ndarray
    thresholds: np.ndarray | None = None
    momentum: np.ndarray | None = None

    def layer(self, t: int) -> tuple[float, float, float]:
        """Step, threshold and momentum of a layer."""
        step = float(self.steps[t])
        if self.thresholds is not None:
            tau = float(self.thresholds[t])
        else:
            tau = self.reg * step if self.kind == SOFT else math.sqrt(2 * self.reg * step)
        return step, tau, 0.0 if self.momentum is None else float(self.momentum[t])

    @property
    def tied_slope(self) -> float:
        """Derivative of a layer by its step through the tied threshold, per threshold."""
        return self.reg if self.thresholds is None and self.kind == SOFT else 0.0


@dataclass(frozen=True)
class UnfoldedGradient:
    """Value and gradient of a loss of an unfolded method.

    Attributes
    ----------
    value : float
        The loss.
    steps : array of shape (T,), or float
        Derivatives by the step sizes; by the shared one, a number.
    thresholds, momentum : array of shape (T,), or None
        Derivatives by what was passed of these.
    """

    value: float
    steps: Any
    thresholds: np.ndarray | None
    momentum: np.ndarray | None


def unfolded_forward(
    A: Any,
    y: Any,
    steps: Any,
    *,
    reg: float,
    prox: str = "soft",
    thresholds: Any = None,
    momentum: Any = None,
    n_layers: int | None = None,
    init: Any = None,
) -> Array:
    r"""Signals after T layers of unfolded ISTA, FISTA or IHT.

    .. math::

        x_{t+1} = prox\big(z_t - s_t A^\top (A z_t - y);\ \tau_t\big), \qquad
        z_{t+1} = x_{t+1} + \beta_t (x_{t+1} - x_t), \qquad z_0 = x_0

    with step sizes :math:`s_t`, thresholds :math:`\tau_t` and momentum :math:`\beta_t`. Soft thresholding is
    :math:`sign(v) \max(|v| - \tau, 0)`, by default with :math:`\tau_t = reg\, s_t`; hard thresholding is :math:`v\,
    [|v| > \tau]`, by default with :math:`\tau_t = \sqrt{2\, reg\, s_t}`.

    Parameters
    ----------
    A : array_like of shape (m, n), sparse matrix, LinearOperator, or pair (matvec, rmatvec)
        Measurement matrix, as in `ista`.
    y : array_like of shape (m,) or (m, B)
        Measurements, a column per signal.
    steps : array_like of shape (T,), or float
        Step sizes > 0; a number is shared by `n_layers` layers.
    reg : float
        Regularisation strength, >= 0, of the objective and of the tied thresholds; with 0 all layers are gradient
        steps.
    prox : {"soft", "hard"}
        The proximal operator.
    thresholds : array_like of shape (T,), optional
        Thresholds >= 0 of their own.
    momentum : array_like of shape (T,), optional
        Momentum of each layer; 0 by default. That of the last has no effect.
    n_layers : int, optional
        Number of layers that share a single step.
    init : array_like of shape (n,) or (n, B), optional
        Where to start; 0 by default.

    Returns
    -------
    array of shape (n,) or (n, B)
        :math:`x_T`, in the dtype and on the device of the data.

    Raises
    ------
    ValueError, TypeError
        For step sizes that are not positive, bad options, shapes that do not fit, entries that are not finite, or
        complex data.

    Notes
    -----
    A layer takes products with A and its transpose (2 m n B multiplications). Where A is an array, n < 2 m, and there
    are so many layers and signals that it pays to form :math:`A^\top A`, it is a product with that (n^2 B
    multiplications, n^2 numbers). Memory beyond that: O((m + n) B).

    References
    ----------
    Gregor, LeCun, "Learning fast approximations of sparse coding", ICML 2010. Nagahisa, Hayakawa, Iiguni, "Comparison
    between supervised and unsupervised learning in deep unfolded sparse signal recovery", arXiv 2509.01331.

    Examples
    --------
    >>> import ot_numba
    >>> A, y = [[1.0, 0.0, 0.5], [0.0, 1.0, -0.5]], [0.1, 0.95]
    >>> ot_numba.unfolded_forward(A, y, [0.5, 0.8], reg=0.2).round(4).tolist()
    [0.0, 0.63, -0.0975]
    """
    schedule = make_schedule(steps, reg, prox, thresholds, momentum, n_layers)
    layers, X, squeeze = make_layers(A, y, init, len(schedule.steps))
    layers.forward(schedule, X)
    return X[:, 0] if squeeze else X


def unfolded_trajectory(
    A: Any,
    y: Any,
    steps: Any,
    *,
    reg: float,
    prox: str = "soft",
    thresholds: Any = None,
    momentum: Any = None,
    n_layers: int | None = None,
    init: Any = None,
) -> Array:
    r"""Signals after each layer of unfolded ISTA, FISTA or IHT, the start included.

    .. math:: x_0, x_1, \dots, x_T

    Parameters
    ----------
    A, y, steps, reg, prox, thresholds, momentum, n_layers, init
        As in `unfolded_forward`.

    Returns
    -------
    array of shape (T + 1, n) or (T + 1, n, B)
        In the dtype and on the device of the data.

    Raises
    ------
    ValueError, TypeError
        As `unfolded_forward`.

    Notes
    -----
    As `unfolded_forward`, with memory for the result.

    References
    ----------
    As `unfolded_forward`.

    Examples
    --------
    >>> import ot_numba
    >>> A, y = [[1.0, 0.0, 0.5], [0.0, 1.0, -0.5]], [0.1, 0.95]
    >>> ot_numba.unfolded_trajectory(A, y, [0.5, 0.8], reg=0.2).round(4).tolist()
    [[0.0, 0.0, 0.0], [0.0, 0.375, -0.1125], [0.0, 0.63, -0.0975]]
    """
    schedule = make_schedule(steps, reg, prox, thresholds, momentum, n_layers)
    layers, X, squeeze = make_layers(A, y, init, len(schedule.steps))
    out = layers.operator.empty(len(schedule.steps) + 1, *X.shape)
    out[0, ...] = X
    for t in layers.run(schedule, X):
        out[t + 1, ...] = X
    return out[:, :, 0] if squeeze else out


def unfolded_value_and_grad(
    A: Any,
    y: Any,
    steps: Any,
    *,
    reg: float,
    prox: str = "soft",
    loss: str = "objective",
    x_true: Any = None,
    thresholds: Any = None,
    momentum: Any = None,
    n_layers: int | None = None,
    init: Any = None,
    mode: str = "reverse",
) -> UnfoldedGradient:
    r"""Loss of the last layer and its derivatives by all trainable numbers.

    The loss is the mean over the signals of the objective (unsupervised),

    .. math:: \frac1B \sum_b \tfrac12 \|y_b - A x_b\|^2 + reg\,\|x_b\|_p, \qquad p = 1 \text{ (soft) or } 0
        \text{ (hard)},

    or the mean squared error (supervised), :math:`\|x - x_{true}\|^2 / (n B)`. The number of nonzeros is constant
    almost everywhere: it is part of the value and has no gradient; nor have changes of the support, so that finite
    differences across one differ.

    Parameters
    ----------
    A, y, steps, reg, prox, thresholds, momentum, n_layers, init
        As in `unfolded_forward`.
    loss : {"objective", "mse"}
        What to differentiate.
    x_true : array_like of shape (n,) or (n, B), optional
        The signals behind y, for ``loss="mse"``.
    mode : {"reverse", "forward"}
        How to differentiate; both agree to rounding. Reverse costs as much as two or three times the layers, whatever
        their number, and stores n B T numbers and signs. Forward carries a tangent (n, B) for every parameter, and
        stores nothing: for a shared step, or as a check.

    Returns
    -------
    UnfoldedGradient

    Raises
    ------
    ValueError, TypeError
        As `unfolded_forward`; and for ``loss="mse"`` without `x_true`.

    Notes
    -----
    Entries at exactly their threshold count as cut off, and sign(0) as 0.

    References
    ----------
    As `unfolded_forward`.

    Examples
    --------
    >>> import ot_numba
    >>> A, y = [[1.0, 0.0, 0.5], [0.0, 1.0, -0.5]], [0.1, 0.95]
    >>> found = ot_numba.unfolded_value_and_grad(A, y, [0.5, 0.8], reg=0.2)
    >>> round(found.value, 10), found.steps.round(8).tolist()
    (0.1933515625, [-0.02716875, -0.0253125])
    """
    check_choice(loss, "loss", LOSSES)
    check_choice(mode, "mode", MODES)
    schedule = make_schedule(steps, reg, prox, thresholds, momentum, n_layers)
    shared = np.ndim(steps) == 0
    layers, X, _ = make_layers(A, y, init, len(schedule.steps))
    if loss == "mse":
        if x_true is None:
            raise ValueError("loss='mse' needs x_true")
        x_true = signals(x_true, "x_true", X, layers.operator.xp)
    if mode == "reverse":
        value, parts = reverse(layers, schedule, X, loss, x_true)
        by_step = parts["steps"].sum() if shared else parts["steps"]
    else:
        value, parts = forward(layers, schedule, X, loss, x_true, shared)
        by_step = parts["steps"][0] if shared else parts["steps"]
    return UnfoldedGradient(
        value=value,
        steps=float(by_step) if shared else by_step,
        thresholds=None if schedule.thresholds is None else parts["thresholds"],
        momentum=None if schedule.momentum is None else parts["momentum"],
    )


def make_schedule(
    steps: Any, reg: Any, prox: str, thresholds: Any = None, momentum: Any = None, n_layers: int | None = None
) -> Schedule:
    """The numbers of all layers, checked."""
    kind = PROX[check_choice(prox, "prox", tuple(PROX))]
    reg = check_real(reg, "reg", low=0, high=math.inf, high_open=True)
    if getattr(steps, "ndim", None) == 0 or isinstance(steps, (int, float)):
        if n_layers is None:
            raise ValueError("a single step needs n_layers")
        count = check_int(n_layers, "n_layers", low=0)
        steps = np.full(count, check_real(steps, "steps", low=0, low_open=True, high=math.inf, high_open=True))
    else:
        if n_layers is not None:
            raise ValueError(f"n_layers goes with a single step, got {n_layers} and an array of steps")
        steps = _numbers(steps, "steps", None)
        if (steps <= 0).any():
            raise ValueError(f"steps must be positive, got {steps.min()}")
    if thresholds is not None:
        thresholds = _numbers(thresholds, "thresholds", len(steps))
        if (thresholds < 0).any():
            raise ValueError(f"thresholds must not be negative, got {thresholds.min()}")
    if momentum is not None:
        momentum = _numbers(momentum, "momentum", len(steps))
    return Schedule(kind, reg, steps, thresholds, momentum)


def _numbers(values: Any, name: str, count: int | None) -> np.ndarray:
    """Finite numbers of the layers, float64 on the host; there may be none."""
    values = to_numpy(values)
    if values.ndim == 1 and not values.size:
        values = np.zeros(0)
    else:
        values = as_float_array(values, name, ndim=1, dtype="float64")
    if count is not None and len(values) != count:
        raise ValueError(f"{name} must have shape ({count},) as steps has, got {values.shape}")
    return values


def make_layers(A: Any, y: Any, init: Any, n_layers: int) -> tuple[Layers, Array, bool]:
    """The layers for some measurements, the start (n, B), and whether there was one signal without an axis for it."""
    operator, Y, squeeze = make_operator(A, y)
    X = operator.empty(operator.shape[1], Y.shape[1])
    if init is not None:
        X[...] = signals(init, "init", X, operator.xp)
    layers = Layers(Normal(operator, n_layers * Y.shape[1]), Y.shape[1])
    layers.measure(Y)
    return layers, X, squeeze


class Normal:
    """Products with ``A' A``, of so many vectors, by a stored Gram matrix where that is cheaper."""

    def __init__(self, operator: Operator, uses: int) -> None:
        self.operator = operator
        m, n = operator.shape
        dense = isinstance(operator, DenseOperator) and not isinstance(operator, SparseOperator)
        self.gram = operator.A.T @ operator.A if dense and uses * (2 * m - n) > m * n else None
        if self.gram is None and uses > SPARSE_FROM:
            operator.expect_sparse()

    def apply(self, Q: Array, out: Array) -> Array:
        """``out = A' A Q``."""
        if self.gram is None:
            out[...] = self.operator.adjoint(self.operator.forward(Q))
        else:
            self.operator.kernels.product(self.gram, Q, out)
        return out


class Layers:
    """T layers for a batch of B signals, and the arrays that they work in, kept from batch to batch."""

    def __init__(self, normal: Normal, size: int) -> None:
        self.normal, self.operator = normal, normal.operator
        self.xp, self.kernels = self.operator.xp, self.operator.kernels
        m, n = self.operator.shape
        self.Z, self.work = self.operator.empty(n, size), self.operator.empty(n, size)
        self.R = self.operator.empty(m, size)
        self.gradients: list[Array] = []
        self.signs: list[Array] = []
        self.products: Array = None

    def measure(self, Y: Array) -> None:
        """Set the measurements (m, B)."""
        self.Y = Y
        if self.normal.gram is not None:
            self.products = self.operator.empty(self.operator.shape[1], Y.shape[1])
            self.kernels.product(self.operator.A.T, Y, self.products)

    def gradient(self, Z: Array, G: Array) -> None:
        """``G = A' (A Z - Y)``."""
        if self.normal.gram is None:
            self.operator.residual_gradient(Z, self.Y, self.R, G)
        else:
            self.normal.apply(Z, G)
            G -= self.products

    def reserve(self, count: int) -> None:
        """Room for the gradients and signs of so many layers."""
        for _ in range(count - len(self.gradients)):
            self.gradients.append(self.xp.zeros_like(self.Z))
            self.signs.append(self.xp.zeros_like(self.Z, dtype=self.xp.int8))

    def forward(self, schedule: Schedule, X: Array) -> None:
        """All layers, X (n, B) in place; those of one signal in one call, which spares it the overhead of many."""
        if X.shape[1] > 1 or self.normal.gram is not None:
            for _ in self.run(schedule, X):
                pass
            return
        if schedule.momentum is not None:
            self.Z[...] = X
        numbers = np.array([schedule.layer(t) for t in range(len(schedule.steps))]).reshape(-1, 3).T
        step, tau, momentum = np.ascontiguousarray(numbers)
        Z, momentum = (X, None) if schedule.momentum is None else (self.Z, momentum)
        self.operator.residual_gradient(X, self.Y, self.R, self.work)
        self.operator.steps(schedule.kind, step, tau, self.Y, X, Z, self.R, self.work, momentum)

    def run(self, schedule: Schedule, X: Array, keep: bool = False) -> Any:
        """Layer after layer, X (n, B) in place; yields their numbers."""
        plain = schedule.momentum is None
        if not plain:
            self.Z[...] = X
        Z = X if plain else self.Z
        for t in range(len(schedule.steps)):
            G, signs = (self.gradients[t], self.signs[t]) if keep else (self.work, None)
            step, tau, momentum = schedule.layer(t)
            self.gradient(Z, G)
            self.kernels.proximal_step(schedule.kind, step, tau, momentum, X, Z, G, signs)
            yield t

    def loss(self, schedule: Schedule, X: Array, loss: str, x_true: Array | None) -> tuple[float, Array]:
        """Mean loss of the batch, and its derivative by X, in the work array."""
        xp, size = self.xp, X.shape[1]
        if loss == "mse":
            difference = X - x_true
            (value,) = read_floats([xp.sum(xp.astype(difference, xp.float64) ** 2)])
            scale = 1 / (X.shape[0] * size)
            self.work[...] = 2 * scale * difference
            return value * scale, self.work
        self.operator.residual_gradient(X, self.Y, self.R, self.work)
        value = 0.5 * float(column_sums(xp, xp.astype(self.R, xp.float64) ** 2).sum())
        penalties = xp.abs(X) if schedule.kind == SOFT else xp.astype(X != 0, X.dtype)
        value += schedule.reg * float(column_sums(xp, penalties).sum())
        if schedule.kind == SOFT:
            self.work += schedule.reg * xp.sign(X)
        self.work /= size
        return value / size, self.work


def reverse(
    layers: Layers, schedule: Schedule, X: Array, loss: str, x_true: Array | None
) -> tuple[float, dict[str, np.ndarray]]:
    """Value, and derivatives by the numbers of all layers, from the last layer to the first; X becomes the output."""
    count, soft = len(schedule.steps), schedule.kind == SOFT
    layers.reserve(count)
    moves = [] if schedule.momentum is not None else None
    before = layers.xp.asarray(X, copy=True) if moves is not None else None
    for _ in layers.run(schedule, X, keep=True):
        if moves is not None:
            moves.append(X - before)
            before[...] = X
    value, P = layers.loss(schedule, X, loss, x_true)
    xp = layers.xp
    P = xp.asarray(P, copy=True)
    Pz = xp.zeros_like(P) if moves is not None else None
    by_step, by_threshold, by_momentum = [], [], []
    for t in reversed(range(count)):
        step, _, beta = schedule.layer(t)
        if moves is not None:
            by_momentum.append(xp.sum(xp.astype(Pz, xp.float64) * xp.astype(moves[t], xp.float64)))
            P += (1 + beta) * Pz
            following = -beta * Pz
        s, q = layers.kernels.masked_adjoint(P, layers.signs[t], layers.gradients[t])
        by_step.append(s)
        by_threshold.append(q)
        if t:  # nobody asks for the derivative by the start
            layers.normal.apply(P, layers.work)
            P -= step * layers.work
            if moves is not None:
                Pz, P = P, following
    by_step, by_threshold, by_momentum = (
        np.array(read_floats(numbers))[::-1] for numbers in (by_step, by_threshold, by_momentum)
    )
    by_threshold = -by_threshold if soft else np.zeros(count)
    return value, {
        "steps": -by_step + schedule.tied_slope * by_threshold,
        "thresholds": by_threshold,
        "momentum": by_momentum,
    }


def forward(
    layers: Layers, schedule: Schedule, X: Array, loss: str, x_true: Array | None, shared: bool
) -> tuple[float, dict[str, np.ndarray]]:
    """The same by a tangent for every parameter, one for all steps where they are `shared`; X becomes the output."""
    xp, count = layers.xp, len(schedule.steps)
    layers.reserve(1)
    free = {"thresholds": schedule.thresholds is not None, "momentum": schedule.momentum is not None}
    names = [("steps", 0)] if shared and count else [("steps", t) for t in range(count)]
    names += [(name, t) for name, given in free.items() if given for t in range(count)]
    tangents = {name: (xp.zeros_like(X), xp.zeros_like(X)) for name in names}  # of x and z
    Z = xp.asarray(X, copy=True)
    slope = schedule.tied_slope
    for t in range(count):
        step, tau, beta = schedule.layer(t)
        G, signs, before = layers.gradients[0], layers.signs[0], xp.asarray(X, copy=True)
        layers.gradient(Z, G)
        layers.kernels.proximal_step(schedule.kind, step, tau, beta, X, Z, G, signs)
        S = xp.astype(signs, X.dtype)
        M = S * S
        for name, (dx, dz) in tangents.items():
            if name[1] > t:
                continue
            dv = dz - step * layers.normal.apply(dz, layers.work)
            if name[0] == "steps" and (shared or name[1] == t):
                dv = dv - G - slope * S
            elif name == ("thresholds", t) and schedule.kind == SOFT:
                dv = dv - S
            following = M * dv
            dz = following + beta * (following - dx)
            if name == ("momentum", t):
                dz = dz + (X - before)
            tangents[name] = following, dz
    value, P = layers.loss(schedule, X, loss, x_true)
    P = xp.astype(P, xp.float64)
    products = read_floats([xp.sum(P * xp.astype(dx, xp.float64)) for dx, _ in tangents.values()])
    parts = {"steps": [], "thresholds": [], "momentum": []}
    for (name, _), product in zip(tangents, products, strict=True):
        parts[name].append(product)
    return value, {name: np.array(numbers) for name, numbers in parts.items()}
