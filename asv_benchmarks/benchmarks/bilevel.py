"""Bilevel learning: hypergradients by each solver, MAID against HOAG, and the constrained single loop."""

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


class Solvers:
    """One hypergradient of an elastic net of features of many sizes, by each solver of both systems."""

    params = (["agd", "lbfgs", "newton-cg"], ["cg", "minres", "pcg"])
    param_names = ("solver", "linear")

    def setup(self, solver: str, linear: str) -> None:
        from ot_numba.bilevel import elastic_net, hypergradient

        rng = np.random.default_rng(0)
        X = rng.standard_normal((400, 100)) * np.geomspace(0.1, 10, 100)
        y = X[:, ::10].sum(axis=1) + rng.standard_normal(400)
        self.problem = elastic_net(X[:200], y[:200], X[200:], y[200:], smoothing=0.05)
        self.run, self.options = hypergradient, {"solver": solver, "linear": linear, "tol": 1e-4}

    def time_hypergradient(self, solver: str, linear: str) -> None:
        self.run(self.problem, [-3.0, -3.0], **self.options)

    def track_gradients(self, solver: str, linear: str) -> int:
        return self.run(self.problem, [-3.0, -3.0], **self.options).n_gradients

    def track_products(self, solver: str, linear: str) -> int:
        return self.run(self.problem, [-3.0, -3.0], **self.options).n_products

    track_gradients.unit, track_products.unit = "gradients", "products"


class Schedules:
    """MAID, with adaptive accuracies, against HOAG's schedules: total-variation denoising of a phantom."""

    params = (["maid", "maid, no test of descent", "hoag geometric", "hoag quadratic", "hoag cubic"],)
    param_names = ("method",)

    def setup(self, method: str) -> None:
        from ot_numba.bilevel import hoag, maid, tv_denoising

        clean = np.full((32, 32), 0.2)
        clean[4:16, 4:20], clean[18:28, 8:26], clean[8:24, 22:28] = 0.8, 0.55, 1.0
        noisy = clean + 0.1 * np.random.default_rng(1).standard_normal(clean.shape)
        self.problem = tv_denoising(noisy, clean)
        self.options = {"init": np.zeros_like(clean), "max_iter": 10**6, "max_gradients": 20_000, "on_fail": "ignore"}
        if method.startswith("hoag"):
            self.run, self.options["schedule"] = hoag, method.split()[1]
        else:
            self.run, self.options["check_descent"] = maid, method == "maid"

    def search(self) -> list:
        return self.run(self.problem, [-5.0, -5.0], **self.options).history

    def track_gradients_to_one_per_cent(self, method: str) -> float:
        """Gradients of the lower level until the loss is within a per cent of 0.5918, the best of all."""
        return next((float(h.n_gradients) for h in self.search() if h.value <= 1.01 * 0.5918), np.nan)

    def track_loss(self, method: str) -> float:
        """Loss after 20000 gradients."""
        return self.search()[-1].value

    track_gradients_to_one_per_cent.unit = "gradients"
    track_loss.unit = "loss"


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
