"""Bilevel learning: time of a hypergradient, of certified steps, and of the constrained single loop."""

from __future__ import annotations

import numpy as np


class Hypergradients:
    """One hypergradient of a multinomial logistic regression, one ridge a weight."""

    params = ([200, 1000], [1e-2, 1e-4])
    param_names = ("n", "tol")

    def setup(self, n: int, tol: float) -> None:
        from ot_numba.bilevel import hypergradient, logistic_ridge

        rng = np.random.default_rng(0)
        X = rng.standard_normal((2 * n, 64))
        y = np.argmax(X[:, :10] + rng.standard_normal((2 * n, 10)), axis=1)
        self.problem = logistic_ridge(X[:n], y[:n], X[n:], y[n:], n_classes=10)
        self.theta, self.run = np.full(640, -3.0), hypergradient

    def time_hypergradient(self, n: int, tol: float) -> None:
        self.run(self.problem, self.theta, tol=tol)


class Quadratic:
    """Loss of adaptive accuracies after 20000 gradients, which should not depend on the first one."""

    params = ([1e-1, 1e-3, 1e-5],)
    param_names = ("accuracy",)

    def setup(self, accuracy: float) -> None:
        from ot_numba.bilevel import quadratic

        rng = np.random.default_rng(0)
        A1, A2, A3 = (rng.uniform(size=(1000, 10)) for _ in range(3))
        self.problem = quadratic(A1, A1 @ rng.uniform(size=10), A2, A3, A3 @ rng.uniform(size=10))

    def track_loss(self, accuracy: float) -> float:
        from ot_numba.bilevel import maid

        return maid(
            self.problem, np.ones(10), accuracy=accuracy, loosen=1.25, max_iter=10**6, max_gradients=20_000,
            on_fail="ignore",
        ).value  # fmt: skip


class SupportVectors:
    """1000 iterations of the constrained single loop."""

    def setup(self) -> None:
        from ot_numba.bilevel import lvhba, svm_hyperparameters

        rng = np.random.default_rng(0)
        Z = rng.standard_normal((450, 2))
        labels = np.where(Z[:, 0] + 0.5 * rng.standard_normal(450) > 0, 1.0, -1.0)
        self.problem = svm_hyperparameters(Z[:300], labels[:300], Z[300:], labels[300:])
        self.run, self.start = lvhba, self.problem.start()

    def time_lvhba(self) -> None:
        self.run(self.problem, *self.start, max_iter=1000)
