"""Training of unfolded ISTA, FISTA and IHT."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..arrays.progress import progress_bar
from ..arrays.validation import check_choice, check_int, check_real, check_rng
from ..optimize.adam import adam
from ..optimize.result import OptimizeState
from .objective import signals
from .operators import make_operator
from .unfolded import (
    LOSSES,
    PROX,
    Layers,
    Normal,
    Schedule,
    make_schedule,
    reverse,
    unfolded_forward,
    unfolded_trajectory,
)

Array = Any
Batch = tuple[Array, Array | None]
STEP_RANGE = (1e-3, 100.0)  #: of the step sizes, as multiples of 1 / ||A||^2
LAST = 0.3, 0.2  #: part of a stage that goes at a lower rate, and that rate as a part of the first
CHECKS = 10  #: evaluations on the held-out signals in a stage that trains all layers


class TrainingProgress(NamedTuple):
    """One entry of a history: layers trained so far, steps of the optimiser, and the loss on held-out signals."""

    n_layers: int
    n_iter: int
    loss: float


@dataclass(frozen=True)
class UnfoldedRecovery:
    r"""Unfolded ISTA, FISTA or IHT with trained numbers; made by `fit` or `load`.

    Attributes
    ----------
    A : array_like of shape (m, n), or what else `ista` takes
        The measurement matrix.
    steps : array of shape (T,)
        Step sizes of the layers.
    thresholds, momentum : array of shape (T,), or None
        Thresholds, where they were trained apart from the steps, and momentum.
    reg : float
        Regularisation strength.
    prox, loss : str
        As in `fit`.
    held_out_loss : float
        Loss of these numbers on the held-out signals.
    history : list of TrainingProgress
        ``(n_layers, n_iter, loss)`` on the held-out signals, as the training went.

    Notes
    -----
    Trained step sizes are not monotone, and many exceed :math:`2 / \|A\|_2^2`: only the last layer is good. More
    layers, or the same ones again, may diverge.

    References
    ----------
    Nagahisa, Hayakawa, Iiguni, "Comparison between supervised and unsupervised learning in deep unfolded sparse signal
    recovery", arXiv 2509.01331.
    """

    A: Any = field(repr=False)
    steps: np.ndarray
    thresholds: np.ndarray | None
    momentum: np.ndarray | None
    reg: float
    prox: str
    loss: str
    held_out_loss: float
    history: list[TrainingProgress] = field(repr=False)

    @classmethod
    def fit(
        cls,
        A: Any,
        data: Callable[[np.random.Generator, int], Any] | tuple[Any, Any] | Any,
        *,
        reg: float,
        n_layers: int,
        prox: str = "soft",
        loss: str = "objective",
        free_thresholds: bool = False,
        train_momentum: bool = False,
        shared_step: bool = False,
        incremental: bool = True,
        steps_per_layer: int = 60,
        final_steps: int = 300,
        batch_size: int = 100,
        held_out: int = 500,
        lr: float = 2e-2,
        init_step: float | None = None,
        rng: np.random.Generator | int | None = None,
        callback: Callable[[TrainingProgress], None] | None = None,
        progress: bool = False,
    ) -> UnfoldedRecovery:
        r"""Train the numbers of all layers by Adam on random signals.

        Minimises the expected loss of the last layer (see `unfolded_value_and_grad`) over the logarithms of the step
        sizes, which start at `init_step` and stay within 1e-3 and 100 times :math:`1 / \|A\|_2^2`, and what else is to
        be trained. Incremental training adds a layer at a time and trains all that are there; from T layers at once
        it stalls for T above about 10. The last 30 % of a stage go at a fifth of the learning rate. The numbers kept
        are the best ones seen on held-out signals.

        Parameters
        ----------
        A : array_like of shape (m, n), sparse matrix, LinearOperator, or pair (matvec, rmatvec)
            Measurement matrix, as in `ista`.
        data : callable, array_like of shape (m, S), or pair of array_like (m, S), (n, S)
            ``data(rng, size)`` returns the measurements (m, size) of random signals, or a pair of these and the
            signals (n, size). Arrays are a fixed set of S signals, of which batches are drawn. ``loss="mse"`` needs
            pairs.
        reg : float
            Regularisation strength, >= 0.
        n_layers : int
            Number T of layers.
        prox : {"soft", "hard"}
            ISTA, or IHT.
        loss : {"objective", "mse"}
            Unsupervised, or supervised.
        free_thresholds : bool
            Whether to train thresholds too, else they are tied to the steps.
        train_momentum : bool
            Whether to train momentum too, from 0 and within [-1, 1].
        shared_step : bool
            Whether all layers have the same step size.
        incremental : bool
            Whether to train layer by layer.
        steps_per_layer, final_steps : int
            Steps of the optimiser for each number of layers, and for all layers in the end.
        batch_size : int
            Signals in a batch.
        held_out : int
            Signals to select by; of a fixed set they are taken away, at most half of it.
        lr : float
            Learning rate: the length of a step in the logarithms, about.
        init_step : float, optional
            First step size of a layer, by default :math:`1 / \|A\|_2^2`.
        rng : numpy.random.Generator or int, optional
            Source of randomness.
        callback : callable, optional
            ``callback(progress)`` with every entry of the history; may raise StopIteration, which ends the training.
        progress : bool
            Whether to show a progress bar over the steps.

        Returns
        -------
        UnfoldedRecovery

        Raises
        ------
        ValueError, TypeError
            For bad options, data of wrong shapes, entries that are not finite, or complex data.

        Notes
        -----
        A step of the optimiser costs about three times the layers for a batch; memory n `batch_size` T numbers and
        signs. Works in the dtype and on the device of the data.

        Examples
        --------
        >>> import numpy as np, ot_numba
        >>> rng = np.random.default_rng(0)
        >>> A = rng.normal(size=(8, 12)) / np.sqrt(8)
        >>> def data(rng, size):
        ...     x = rng.normal(size=(12, size)) * (rng.random((12, size)) < 0.1)
        ...     return A @ x, x
        >>> model = ot_numba.UnfoldedRecovery.fit(A, data, reg=0.1, n_layers=3, final_steps=60, rng=0)
        >>> untrained = ot_numba.UnfoldedRecovery.fit(
        ...     A, data, reg=0.1, n_layers=3, steps_per_layer=0, final_steps=0, rng=0
        ... )
        >>> model.held_out_loss < untrained.held_out_loss
        True
        """
        return _Training(
            A, data, reg, n_layers, prox, loss, free_thresholds, train_momentum, shared_step, batch_size, held_out, lr,
            init_step, rng, callback,
        ).fit(cls, A, incremental, steps_per_layer, final_steps, progress)  # fmt: skip

    def apply(self, y: Any) -> Array:
        r"""Signals for measurements, :math:`x_T` of `unfolded_forward`.

        Parameters
        ----------
        y : array_like of shape (m,) or (m, B)
            Measurements.

        Returns
        -------
        array of shape (n,) or (n, B)

        Raises
        ------
        ValueError, TypeError
            As `unfolded_forward`.
        """
        return unfolded_forward(self.A, y, **self._numbers())

    def trajectory(self, y: Any) -> Array:
        """Signals after every layer, as `unfolded_trajectory`.

        Parameters
        ----------
        y : array_like of shape (m,) or (m, B)
            Measurements.

        Returns
        -------
        array of shape (T + 1, n) or (T + 1, n, B)

        Raises
        ------
        ValueError, TypeError
            As `unfolded_forward`.
        """
        return unfolded_trajectory(self.A, y, **self._numbers())

    def _numbers(self) -> dict[str, Any]:
        names = ("steps", "reg", "prox", "thresholds", "momentum")
        return {name: getattr(self, name) for name in names}

    def save(self, path: Any) -> None:
        """Write the trained numbers to a NumPy archive (.npz), without the matrix.

        Parameters
        ----------
        path : str, pathlib.Path or binary file
            Where to; NumPy adds ``.npz`` to a name that lacks it.
        """
        fields = {**self._numbers(), "loss": self.loss, "held_out_loss": self.held_out_loss}
        history = np.array(self.history, dtype=float).reshape(-1, 3)
        np.savez(path, history=history, **{name: value for name, value in fields.items() if value is not None})

    @classmethod
    def load(cls, path: Any, A: Any) -> UnfoldedRecovery:
        """Read trained numbers from an archive of `save`.

        Parameters
        ----------
        path : str, pathlib.Path or binary file
            The archive.
        A : array_like of shape (m, n), or what else `ista` takes
            The measurement matrix that they were trained for.

        Returns
        -------
        UnfoldedRecovery

        Raises
        ------
        ValueError
            If the archive holds something else.
        """
        with np.load(path, allow_pickle=False) as archive:
            fields = dict(archive)
        try:
            numbers = [fields["steps"], float(fields["reg"]), str(fields["prox"])]
            schedule = make_schedule(*numbers, fields.get("thresholds"), fields.get("momentum"))
            history = [TrainingProgress(int(t), int(i), float(v)) for t, i, v in fields["history"]]
            loss, held_out_loss = check_choice(str(fields["loss"]), "loss", LOSSES), float(fields["held_out_loss"])
        except KeyError as error:
            raise ValueError(f"{path} is no archive of UnfoldedRecovery.save: it lacks {error}") from None
        return cls(
            A=A, steps=schedule.steps, thresholds=schedule.thresholds, momentum=schedule.momentum, reg=schedule.reg,
            prox=numbers[2], loss=loss, held_out_loss=held_out_loss, history=history,
        )  # fmt: skip


class _Training:
    """One training: the data, the layers, and the best numbers so far."""

    def __init__(
        self, A: Any, data: Any, reg: Any, n_layers: Any, prox: str, loss: str, free_thresholds: bool,
        train_momentum: bool, shared_step: bool, batch_size: Any, held_out: Any, lr: Any, init_step: Any, rng: Any,
        callback: Any,
    ) -> None:  # fmt: skip
        positive = {"low": 0, "low_open": True, "high": math.inf, "high_open": True}
        self.kind = PROX[check_choice(prox, "prox", tuple(PROX))]
        self.prox, self.loss = prox, check_choice(loss, "loss", LOSSES)
        self.reg = check_real(reg, "reg", low=0, high=math.inf, high_open=True)
        self.n_layers = check_int(n_layers, "n_layers", low=1)
        self.lr = check_real(lr, "lr", **positive)
        self.batch_size, held_out = check_int(batch_size, "batch_size", low=1), check_int(held_out, "held_out", low=1)
        self.rng, self.callback = check_rng(rng), callback
        self.free_thresholds, self.train_momentum, self.shared = free_thresholds, train_momentum, shared_step
        if free_thresholds and self.reg == 0:
            raise ValueError("free_thresholds needs reg > 0, where the thresholds start: got reg=0")
        first, self.draw = self._source(data, held_out)
        self.operator, Y, _ = make_operator(A, first[0])
        self.normal = Normal(self.operator, 2 * self.n_layers * self.batch_size)
        norm = self.operator.squared_norm()
        self.scale = 1 / norm if norm > 0 else 1.0
        self.init_step = self.scale if init_step is None else check_real(init_step, "init_step", **positive)
        self.held_out = self._batch(first), Layers(self.normal, Y.shape[1])
        self.layers = Layers(self.normal, self.batch_size)
        self.history: list[TrainingProgress] = []
        self.n_iter = 0
        self.stopped = False

    def _source(self, data: Any, held_out: int) -> tuple[Batch, Callable[[], Batch]]:
        """The held-out signals, and what draws batches."""
        if callable(data):

            def sample(size: int) -> Batch:
                drawn = data(self.rng, size)
                return drawn if isinstance(drawn, tuple) else (drawn, None)

            return sample(held_out), lambda: sample(self.batch_size)
        Y, X = data if isinstance(data, tuple) else (data, None)
        count = np.shape(Y)[-1]
        if np.ndim(Y) != 2 or count < 2:
            raise ValueError(f"data must hold at least 2 signals as columns, got shape {np.shape(Y)}")
        if X is not None and np.shape(X)[-1:] != (count,):
            raise ValueError(f"data must pair measurements with signals, got shapes {np.shape(Y)} and {np.shape(X)}")
        order = self.rng.permutation(count)
        held_out = min(held_out, count // 2)

        def take(chosen: np.ndarray) -> Batch:
            return _columns(Y, chosen), None if X is None else _columns(X, chosen)

        def batch() -> Batch:
            return take(order[held_out + self.rng.integers(0, count - held_out, self.batch_size)])

        return take(order[:held_out]), batch

    def _batch(self, drawn: Batch) -> Batch:
        """Measurements and signals, checked."""
        Y, X = drawn
        own, like = self.operator, self.operator.empty(self.operator.shape[0], np.shape(Y)[-1])
        Y = signals(Y, "the measurements of data", like, own.xp)
        if self.loss == "objective":
            return Y, None
        if X is None:
            raise ValueError("loss='mse' needs data with the signals: a pair (measurements, signals)")
        return Y, signals(X, "the signals of data", own.empty(own.shape[1], Y.shape[1]), own.xp)

    # ---- the vector u that Adam moves: log steps, then log thresholds, then momentum

    def _start(self, count: int) -> np.ndarray:
        """New layers, after those that are trained."""
        tied = Schedule(self.kind, self.reg, np.full(count, self.init_step))
        parts = [np.full(1 if self.shared else count, math.log(self.init_step))]
        if self.free_thresholds:
            parts.append(np.log([tied.layer(t)[1] for t in range(count)]))
        if self.train_momentum:
            parts.append(np.zeros(count))
        return np.concatenate(parts)

    def _split(self, u: np.ndarray, count: int) -> Iterator[np.ndarray]:
        """The parts of u, for so many layers."""
        sizes = [1 if self.shared else count, *[count] * (self.free_thresholds + self.train_momentum)]
        return iter(np.split(u, np.cumsum(sizes)[:-1]))

    def _grown(self, u: np.ndarray, count: int) -> np.ndarray:
        """U with one layer more than `count`."""
        if not count:
            return self._start(1)
        pairs = zip(self._split(u, count), self._split(self._start(1), 1), strict=True)
        parts = [np.concatenate([old, new]) for old, new in pairs]
        if self.shared:
            parts[0] = parts[0][:1]
        return np.concatenate(parts)

    def _clipped(self, u: np.ndarray, count: int) -> np.ndarray:
        parts = list(self._split(u, count))
        parts[0] = np.clip(parts[0], *(math.log(bound * self.scale) for bound in STEP_RANGE))
        if self.train_momentum:
            parts[-1] = np.clip(parts[-1], -1.0, 1.0)
        return np.concatenate(parts)

    def _schedule(self, u: np.ndarray, count: int) -> Schedule:
        parts = self._split(self._clipped(u, count), count)
        steps = np.exp(next(parts))
        return Schedule(
            self.kind,
            self.reg,
            np.full(count, steps[0]) if self.shared else steps,
            np.exp(next(parts)) if self.free_thresholds else None,
            next(parts) if self.train_momentum else None,
        )

    def _value_and_grad(self, u: np.ndarray, count: int) -> tuple[float, np.ndarray]:
        """Loss of a fresh batch, and its gradient by u."""
        Y, x_true = self._batch(self.draw())
        schedule = self._schedule(u, count)
        self.layers.measure(Y)
        X = self.operator.empty(self.operator.shape[1], Y.shape[1])
        value, by = reverse(self.layers, schedule, X, self.loss, x_true)
        by_step = schedule.steps * by["steps"]
        parts = [by_step.sum(keepdims=True) if self.shared else by_step]
        if self.free_thresholds:
            parts.append(schedule.thresholds * by["thresholds"])
        if self.train_momentum:
            parts.append(by["momentum"])
        return value, np.concatenate(parts)

    def _held_out_loss(self, u: np.ndarray, count: int) -> float:
        (Y, x_true), layers = self.held_out
        layers.measure(Y)
        X, schedule = self.operator.empty(self.operator.shape[1], Y.shape[1]), self._schedule(u, count)
        with np.errstate(over="ignore", invalid="ignore"):  # of steps that are far too long
            layers.forward(schedule, X)
            return layers.loss(schedule, X, self.loss, x_true)[0]

    # ---- the stages

    def fit(
        self, cls: type, A: Any, incremental: bool, steps_per_layer: Any, final_steps: Any, progress: bool
    ) -> UnfoldedRecovery:
        """Train in stages; returns the best that was seen with all layers."""
        steps_per_layer = check_int(steps_per_layer, "steps_per_layer", low=0)
        final_steps = check_int(final_steps, "final_steps", low=0)
        total = steps_per_layer * self.n_layers * bool(incremental) + final_steps
        self.bar = progress_bar(total, "UnfoldedRecovery.fit") if progress else None
        try:
            u, count = np.zeros(0), 0
            while count < self.n_layers:
                u = self._grown(u, count)
                count += 1
                if incremental and count < self.n_layers:
                    u = self._stage(u, count, steps_per_layer)
            self.best = math.inf, u
            self._check(u, count)
            for n_steps in (steps_per_layer * bool(incremental), final_steps):
                u = self._stage(u, count, n_steps)
        finally:
            if self.bar is not None:
                self.bar.close()
        loss, u = self.best
        schedule = self._schedule(u, count)
        return cls(
            A=A, steps=schedule.steps, thresholds=schedule.thresholds, momentum=schedule.momentum, reg=self.reg,
            prox=self.prox, loss=self.loss, held_out_loss=loss, history=self.history,
        )  # fmt: skip

    def _stage(self, u: np.ndarray, count: int, n_steps: int) -> np.ndarray:
        """Adam, and again at a lower rate."""
        late = math.ceil(LAST[0] * n_steps)
        every = max(1, n_steps // CHECKS) if count == self.n_layers else n_steps
        done = 0
        for n, lr in ((n_steps - late, self.lr), (late, LAST[1] * self.lr)):
            if not n or self.stopped:
                continue

            def watch(state: OptimizeState, before: int = done) -> None:
                self.n_iter += 1
                if self.bar is not None:
                    self.bar.update(1)
                if (before + state.n_iter) % every == 0 or before + state.n_iter == n_steps:
                    self._check(state.x, count)
                if self.stopped:
                    raise StopIteration

            found = adam(lambda v: self._value_and_grad(v, count), u, learning_rate=lr, max_iter=n, callback=watch)
            u = self._clipped(found.x, count)
            done += n
        return u

    def _check(self, u: np.ndarray, count: int) -> None:
        """Measure on the held-out signals."""
        entry = TrainingProgress(count, self.n_iter, self._held_out_loss(u, count))
        self.history.append(entry)
        if count == self.n_layers and entry.loss < self.best[0]:
            self.best = entry.loss, u.copy()
        if self.callback is not None:
            try:
                self.callback(entry)
            except StopIteration:
                self.stopped = True


def _columns(V: Any, chosen: np.ndarray) -> Array:
    """Columns of an array of any library, or of a list."""
    if isinstance(V, (list, tuple)):
        V = np.asarray(V)
    from ..arrays.namespaces import array_namespace, device_of

    xp = array_namespace(V)
    if xp is np:
        return np.asarray(V)[:, chosen]
    return xp.take(V, xp.asarray(chosen, device=device_of(V)), axis=1)
