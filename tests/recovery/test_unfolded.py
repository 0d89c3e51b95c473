import dataclasses
import functools
import io
import itertools
import subprocess
import sys

import array_api_strict
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from hypothesis import given, settings, strategies as st

from ot_numba import (
    UnfoldedRecovery,
    fista,
    iht,
    ista,
    unfolded_forward,
    unfolded_trajectory,
    unfolded_value_and_grad,
)  # fmt: skip
from ot_numba.recovery import TrainingProgress

A = np.array([[1, 0, 0.5], [0, 1, -0.5]])
X_TRUE = np.array([1.0, 0, -2])
Y = np.array([0.1, 0.95])
STEPS, REG = [0.5, 0.8], 0.2


# ---- reference cases by hand


def test_reference_soft():
    assert pytest.approx(Y) == A @ X_TRUE + [0.1, -0.05]
    path = unfolded_trajectory(A, Y, STEPS, reg=REG)
    np.testing.assert_allclose(path, [[0, 0, 0], [0, 0.375, -0.1125], [0, 0.63, -0.0975]], atol=1e-15)
    np.testing.assert_array_equal(unfolded_forward(A, Y, STEPS, reg=REG), path[-1])
    for mode in ("reverse", "forward"):
        mse = unfolded_value_and_grad(A, Y, STEPS, reg=REG, loss="mse", x_true=X_TRUE, mode=mode)
        assert mse.value == pytest.approx(1.672135416667, abs=1e-12)
        np.testing.assert_allclose(mse.steps, [0.234475, 0.15765625], atol=1e-14)
        own = unfolded_value_and_grad(A, Y, STEPS, reg=REG, mode=mode)
        assert own.value == pytest.approx(0.1933515625, abs=1e-14)
        np.testing.assert_allclose(own.steps, [-0.02716875, -0.0253125], atol=1e-14)
        assert own.thresholds is None
        assert own.momentum is None


def test_reference_hard():
    path = unfolded_trajectory(A, Y, STEPS, reg=REG, prox="hard")
    np.testing.assert_allclose(path, [[0, 0, 0], [0, 0.475, 0], [0, 0.855, 0]], atol=1e-15)
    free = unfolded_forward(A, Y, STEPS, reg=REG, prox="hard", thresholds=[0.4472135955, 0.5656854249])
    np.testing.assert_allclose(free, path[-1], atol=1e-15)
    for mode in ("reverse", "forward"):
        options = {"reg": REG, "prox": "hard", "mode": mode}
        mse = unfolded_value_and_grad(A, Y, STEPS, loss="mse", x_true=X_TRUE, **options)
        assert mse.value == pytest.approx(1.910341666667, abs=1e-12)
        np.testing.assert_allclose(mse.steps, [0.1083, 0.27075], atol=1e-14)
        own = unfolded_value_and_grad(A, Y, STEPS, **options)
        assert own.value == pytest.approx(0.2095125, abs=1e-14)
        np.testing.assert_allclose(own.steps, [-0.01805, -0.045125], atol=1e-14)


def test_reference_free_thresholds():
    for mode in ("reverse", "forward"):
        options = {"reg": REG, "thresholds": [0.1, 0.16], "loss": "mse", "x_true": X_TRUE, "mode": mode}
        found = unfolded_value_and_grad(A, Y, STEPS, **options)
        np.testing.assert_allclose(found.steps, [0.1669416667, -0.0120104167], atol=1e-10)
        np.testing.assert_allclose(found.thresholds, [0.3376666667, 0.8483333333], atol=1e-10)


# ---- gradients


def random_problem(m, n, size, seed, n_layers=4):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(m, n)) / np.sqrt(m)
    X = rng.normal(size=(n, size)) * (rng.random((n, size)) < 0.3)
    Y = A @ X + 0.05 * rng.normal(size=(m, size))
    L = np.linalg.norm(A, 2) ** 2
    return A, Y, X, rng.uniform(0.5, 1.5, n_layers) / L, rng


def differences(function, x, h=1e-6):
    out = np.zeros(np.shape(x))
    for i in np.ndindex(np.shape(x)):
        d = np.zeros(np.shape(x))
        d[i] = h
        out[i] = (function(x + d) - function(x - d)) / (2 * h)
    return out


@pytest.mark.parametrize("prox", ["soft", "hard"])
@pytest.mark.parametrize("loss", ["objective", "mse"])
@pytest.mark.parametrize("form", ["tied", "thresholds", "momentum", "both", "shared"])
@pytest.mark.parametrize("shape", [(12, 8), (6, 20)])  # by the Gram matrix, and by products with A
def test_gradients_against_differences(prox, loss, form, shape):
    A, Y, X, steps, rng = random_problem(*shape, 3, seed=3)
    options = {"reg": 0.02, "prox": prox, "loss": loss, "x_true": X}
    numbers = {"steps": float(steps[0]) if form == "shared" else steps}
    if form in ("thresholds", "both"):
        numbers["thresholds"] = rng.uniform(0.01, 0.05, 4)
    if form in ("momentum", "both"):
        numbers["momentum"] = rng.uniform(0.1, 0.6, 4)
    if form == "shared":
        options["n_layers"] = 4
    found = {mode: unfolded_value_and_grad(A, Y, **numbers, **options, mode=mode) for mode in ("reverse", "forward")}
    for name in numbers:
        by_mode = [getattr(found[mode], name) for mode in found]
        np.testing.assert_allclose(*by_mode, rtol=1e-12, atol=1e-14)

        def value(v, name=name):
            changed = {**numbers, name: float(v) if np.ndim(v) == 0 else v}
            return unfolded_value_and_grad(A, Y, **changed, **options).value

        expected = differences(value, np.asarray(numbers[name]))
        np.testing.assert_allclose(by_mode[0], expected, atol=2e-8 * max(1, np.abs(expected).max()))
        assert np.abs(expected).max() > 1e-5 or (prox == "hard" and name == "thresholds")
    assert found["reverse"].value == pytest.approx(found["forward"].value, rel=1e-13)
    path = unfolded_trajectory(A, Y, **{k: options[k] for k in options if k in ("reg", "prox", "n_layers")}, **numbers)
    x = path[-1]
    penalty = np.abs(x).sum() if prox == "soft" else (x != 0).sum()
    own = (0.5 * ((Y - A @ x) ** 2).sum() + 0.02 * penalty) / 3 if loss == "objective" else ((x - X) ** 2).mean()
    assert found["reverse"].value == pytest.approx(own, rel=1e-12)


@settings(max_examples=40)
@given(
    m=st.integers(1, 10), n=st.integers(1, 12), size=st.integers(1, 4), n_layers=st.integers(0, 5),
    seed=st.integers(0, 999), prox=st.sampled_from(["soft", "hard"]), loss=st.sampled_from(["objective", "mse"]),
    reg=st.sampled_from([0.0, 0.05, 3.0]), free=st.booleans(), moving=st.booleans(),
)  # fmt: skip
def test_both_modes_agree(m, n, size, n_layers, seed, prox, loss, reg, free, moving):
    A, Y, X, steps, rng = random_problem(m, n, size, seed, n_layers)
    numbers = {"steps": steps}
    if free:
        numbers["thresholds"] = rng.random(n_layers) * 0.1
    if moving:
        numbers["momentum"] = rng.random(n_layers)
    init = rng.normal(size=(n, size))
    options = {"reg": reg, "prox": prox, "loss": loss, "x_true": X, "init": init}
    one, other = (unfolded_value_and_grad(A, Y, **numbers, **options, mode=mode) for mode in ("reverse", "forward"))
    assert one.value == pytest.approx(other.value, rel=1e-12, abs=1e-14)
    for name in numbers:
        assert getattr(one, name).shape == (n_layers,)
        scale = 1 + np.abs(getattr(other, name)).max(initial=0)
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-11 * scale)


# ---- what the layers are


def test_layers_are_the_iterations():
    A, Y, _, _, _ = random_problem(8, 20, 3, 1)
    options = {"reg": 0.05, "max_iter": 7, "tol": 0, "on_fail": "ignore"}
    for solver, prox in ((ista, "soft"), (iht, "hard")):
        expected = solver(A, Y, step=0.2, **options).x
        np.testing.assert_allclose(unfolded_forward(A, Y, 0.2, n_layers=7, reg=0.05, prox=prox), expected, atol=1e-14)
    theta = [1.0]
    for _ in range(7):
        theta.append((1 + np.sqrt(1 + 4 * theta[-1] ** 2)) / 2)
    momentum = [(s - 1) / t for s, t in itertools.pairwise(theta)]
    expected = fista(A, Y, step=0.2, restart=False, **options).x
    found = unfolded_forward(A, Y, 0.2 * np.ones(7), reg=0.05, momentum=momentum)
    np.testing.assert_allclose(found, expected, atol=1e-14)


def test_no_layers_and_no_penalty():
    A, Y, X, steps, _ = random_problem(8, 20, 3, 1)
    assert (unfolded_forward(A, Y, [], reg=0.1) == 0).all()
    np.testing.assert_array_equal(unfolded_forward(A, Y, [], reg=0.1, init=X), X)
    empty = unfolded_value_and_grad(A, Y, [], reg=0.1)
    assert empty.steps.shape == (0,)
    assert empty.value == pytest.approx(0.5 * (Y**2).sum() / 3)
    x = np.zeros_like(X)
    for step in steps:
        x = x - step * A.T @ (A @ x - Y)
    for prox in ("soft", "hard"):
        np.testing.assert_allclose(unfolded_forward(A, Y, steps, reg=0, prox=prox), x, atol=1e-14)


@pytest.mark.parametrize("prox", ["soft", "hard"])
def test_ties_are_cut_off(prox):
    found = unfolded_value_and_grad([[1.0]], [1.0], [1.0], reg=1.0 if prox == "soft" else 0.5, prox=prox)
    assert found.steps.tolist() == [0]
    assert unfolded_forward([[1.0]], [1.0], [1.0], reg=1.0 if prox == "soft" else 0.5, prox=prox).tolist() == [0]


@pytest.mark.parametrize("shape", [(12, 8), (6, 20)])
def test_kinds_of_matrices_and_libraries(shape):
    A, Y, X, steps, _ = random_problem(*shape, 3, 1)
    options = {"reg": 0.05, "loss": "mse", "momentum": [0.1, 0.2, 0.3, 0.4]}
    expected = unfolded_value_and_grad(A, Y, steps, x_true=X, **options)
    forms = (scipy.sparse.csr_array, scipy.sparse.linalg.aslinearoperator, np.ndarray.tolist, np.asfortranarray)
    for matrix in (form(A) for form in forms):
        found = unfolded_value_and_grad(matrix, Y, steps, x_true=X, **options)
        np.testing.assert_allclose(found.steps, expected.steps, rtol=1e-11, atol=1e-14)
    strict = [array_api_strict.asarray(v) for v in (A, Y)]
    for mode in ("reverse", "forward"):
        found = unfolded_value_and_grad(*strict, steps, x_true=array_api_strict.asarray(X), mode=mode, **options)
        np.testing.assert_allclose(found.steps, expected.steps, rtol=1e-11, atol=1e-14)
        np.testing.assert_allclose(found.momentum, expected.momentum, rtol=1e-11, atol=1e-14)
    path = unfolded_trajectory(*strict, steps, reg=0.05)
    assert array_api_strict.__name__ in type(path).__module__
    np.testing.assert_allclose(np.asarray(path), unfolded_trajectory(A, Y, steps, reg=0.05), atol=1e-14)


def test_float32_stays_float32():
    A, Y, X, steps, _ = random_problem(12, 8, 3, 1)
    narrow = [v.astype("float32") for v in (A, Y, X)]
    for v in narrow:
        v.flags.writeable = False
    assert unfolded_forward(*narrow[:2], steps, reg=0.05).dtype == np.float32
    found = unfolded_value_and_grad(*narrow[:2], steps, reg=0.05, loss="mse", x_true=narrow[2])
    wide = unfolded_value_and_grad(A, Y, steps, reg=0.05, loss="mse", x_true=X)
    assert found.steps.dtype == np.float64
    np.testing.assert_allclose(found.steps, wide.steps, rtol=1e-4, atol=1e-6)


BAD = [
    ({"steps": [0.5, 0.0]}, ValueError, r"steps must be positive, got 0\.0"),
    ({"steps": [0.5, np.nan]}, ValueError, "steps has NaN"),
    ({"steps": 0.5}, ValueError, "a single step needs n_layers"),
    ({"steps": -0.5, "n_layers": 2}, ValueError, "steps must be > 0"),
    ({"n_layers": 2}, ValueError, "n_layers goes with a single step"),
    ({"reg": -1.0}, ValueError, "reg must be >= 0"),
    ({"prox": "l1"}, ValueError, "prox must be one of 'soft', 'hard'"),
    ({"loss": "mae"}, ValueError, "loss must be one of"),
    ({"mode": "both"}, ValueError, "mode must be one of"),
    ({"loss": "mse"}, ValueError, "loss='mse' needs x_true"),
    ({"loss": "mse", "x_true": np.ones(2)}, ValueError, "x_true must have shape"),
    ({"thresholds": [0.1]}, ValueError, r"thresholds must have shape \(2,\)"),
    ({"thresholds": [0.1, -0.1]}, ValueError, "thresholds must not be negative"),
    ({"momentum": [0.1, np.inf]}, ValueError, "momentum has inf"),
    ({"init": np.ones(2)}, ValueError, "init must have shape"),
    ({"y": [np.nan, 1.0]}, ValueError, "y has NaN"),
    ({"A": A + 0j}, TypeError, "A must hold real numbers"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(change, error, message):
    arguments = {"A": A, "y": Y, "steps": STEPS, "reg": REG} | change
    with pytest.raises(error, match=message):
        unfolded_value_and_grad(arguments.pop("A"), arguments.pop("y"), arguments.pop("steps"), **arguments)


# ---- training


@functools.cache
def paper_problem():
    rng = np.random.default_rng(1)
    A = rng.normal(size=(40, 60)) / np.sqrt(40)

    def draw(rng, size):
        x = rng.normal(size=(60, size)) * (rng.random((60, size)) < 0.1)
        return A @ x + 0.1 * rng.normal(size=(40, size)), x

    return A, draw, *draw(np.random.default_rng(99), 1000)


@functools.cache
def paper_model(prox, loss):
    A, draw, _, _ = paper_problem()
    return UnfoldedRecovery.fit(A, draw, reg=REGS[prox], n_layers=15, prox=prox, loss=loss, rng=0)


REGS = {"soft": 0.1, "hard": 0.05}


def scores(x, prox):
    A, _, Y, X = paper_problem()
    penalty = np.abs(x) if prox == "soft" else x != 0
    return ((x - X) ** 2).mean(), (0.5 * ((Y - A @ x) ** 2).sum(0) + REGS[prox] * penalty.sum(0)).mean()


def limit(prox):
    A, _, Y, _ = paper_problem()
    options = {"reg": REGS[prox], "max_iter": 3000, "tol": 0, "check_every": 1000, "on_fail": "ignore"}
    return scores((ista if prox == "soft" else iht)(A, Y, **options).x, prox)


@pytest.mark.slow
def test_unfolded_ista_against_its_limit():
    mse, objective = limit("soft")
    assert (mse, objective) == pytest.approx((0.00592, 0.5677), abs=1e-4)
    _, unsupervised = scores(paper_model("soft", "objective").apply(paper_problem()[2]), "soft")
    supervised, own = scores(paper_model("soft", "mse").apply(paper_problem()[2]), "soft")
    assert unsupervised <= 1.01 * objective
    assert supervised < mse
    assert own > unsupervised  # it does not minimise the objective


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["objective", "mse"])
def test_unfolded_iht_against_its_limit(loss):
    mse, objective = limit("hard")
    assert (mse, objective) == pytest.approx((0.01553, 0.5742), abs=1e-4)
    found = scores(paper_model("hard", loss).apply(paper_problem()[2]), "hard")
    assert found[0] < 0.7 * mse
    assert found[1] < objective


@pytest.mark.slow
def test_fifteen_layers_are_trained_in_less_than_five_seconds():
    code = """
import time, numpy as np, ot_numba
rng = np.random.default_rng(1)
A = rng.normal(size=(40, 60)) / np.sqrt(40)
def draw(rng, size):
    x = rng.normal(size=(60, size)) * (rng.random((60, size)) < 0.1)
    return A @ x + 0.1 * rng.normal(size=(40, size)), x
fit = lambda n: ot_numba.UnfoldedRecovery.fit(A, draw, reg=0.1, n_layers=n, rng=0)
fit(1)
start = time.process_time()
fit(15)
print(time.process_time() - start)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 5


def small(**options):
    A, draw, Y, _ = paper_problem()
    defaults = {"reg": 0.1, "n_layers": 3, "steps_per_layer": 20, "final_steps": 30, "rng": 3}
    return UnfoldedRecovery.fit(A, draw, **{**defaults, **options}), Y


FORMS = [
    {}, {"free_thresholds": True}, {"train_momentum": True}, {"shared_step": True}, {"incremental": False},
    {"free_thresholds": True, "train_momentum": True, "shared_step": True},
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("prox", ["soft", "hard"])
def test_training_improves_all_forms(form, prox):
    reg = 0.1 if prox == "soft" else 0.05
    model, _ = small(prox=prox, reg=reg, **form)
    untrained, _ = small(prox=prox, reg=reg, **form, steps_per_layer=0, final_steps=0)
    assert model.held_out_loss < 0.97 * untrained.held_out_loss
    assert model.steps.shape == (3,)
    assert (model.thresholds is None) != form.get("free_thresholds", False)
    assert (model.momentum is None) != form.get("train_momentum", False)
    assert (np.ptp(model.steps) == 0) == form.get("shared_step", False)
    assert model.held_out_loss == min(entry.loss for entry in model.history if entry.n_layers == 3)
    norm = np.linalg.norm(paper_problem()[0], 2) ** 2
    assert (model.steps * norm >= 0.99e-3).all()
    assert (model.steps * norm <= 101).all()


def test_same_seed_same_model():
    one, other, third = small()[0], small()[0], small(rng=4)[0]
    np.testing.assert_array_equal(one.steps, other.steps)
    assert one.history == other.history
    assert not np.array_equal(one.steps, third.steps)
    again, _ = small(rng=np.random.default_rng(3))
    np.testing.assert_array_equal(one.steps, again.steps)


@pytest.mark.parametrize("pair", [True, False])
def test_fixed_signals(pair):
    A, _, Y, X = paper_problem()
    options = {"reg": 0.1, "n_layers": 2, "steps_per_layer": 20, "final_steps": 20, "rng": 0, "held_out": 900}
    data = (Y[:, :600], X[:, :600]) if pair else Y[:, :600]
    model = UnfoldedRecovery.fit(A, data, loss="mse" if pair else "objective", **options)
    untrained = UnfoldedRecovery.fit(
        A, data, loss="mse" if pair else "objective", **{**options, "steps_per_layer": 0, "final_steps": 0}
    )
    assert model.held_out_loss < untrained.held_out_loss
    fresh = unfolded_value_and_grad(
        A, Y[:, 600:], model.steps, reg=0.1, loss=model.loss, x_true=X[:, 600:] if pair else None
    )
    assert fresh.value == pytest.approx(model.held_out_loss, rel=0.15)


@pytest.mark.parametrize("form", [{}, {"free_thresholds": True, "train_momentum": True}])
def test_save_and_load(tmp_path, form):
    model, Y = small(**form)
    model.save(tmp_path / "model.npz")
    buffer = io.BytesIO()
    model.save(buffer)
    buffer.seek(0)
    for source in (tmp_path / "model.npz", buffer):
        loaded = UnfoldedRecovery.load(source, model.A)
        np.testing.assert_array_equal(loaded.apply(Y), model.apply(Y))
        for name in ("reg", "prox", "loss", "held_out_loss", "history"):
            assert getattr(loaded, name) == getattr(model, name)
    np.savez(tmp_path / "other.npz", x=1)
    with pytest.raises(ValueError, match=r"no archive of UnfoldedRecovery\.save"):
        UnfoldedRecovery.load(tmp_path / "other.npz", model.A)


def test_apply_is_the_last_of_the_trajectory():
    model, Y = small()
    path = model.trajectory(Y[:, 0])
    assert path.shape == (4, 60)
    np.testing.assert_allclose(path[-1], model.apply(Y[:, 0]), rtol=0, atol=1e-14)  # sums in another order
    np.testing.assert_allclose(model.apply(Y)[:, 0], path[-1], atol=1e-12)
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.reg = 1.0


def test_callback_and_progress(capsys):
    seen = []

    def callback(entry):
        assert isinstance(entry, TrainingProgress)
        seen.append(entry)
        if len(seen) == 3:
            raise StopIteration

    model, _ = small(callback=callback, progress=True)
    assert seen == model.history[:3]
    assert "UnfoldedRecovery.fit" in capsys.readouterr().err
    assert model.steps.shape == (3,)


def test_training_in_float32_and_in_another_library():
    A, draw, _, _ = paper_problem()
    options = {"reg": 0.1, "n_layers": 2, "steps_per_layer": 10, "final_steps": 10, "rng": 1}
    wide = UnfoldedRecovery.fit(A, draw, **options)
    narrow = UnfoldedRecovery.fit(
        A.astype("float32"), lambda rng, size: draw(rng, size)[0].astype("float32"), **options
    )
    np.testing.assert_allclose(narrow.steps, wide.steps, rtol=1e-3)
    strict = UnfoldedRecovery.fit(
        array_api_strict.asarray(A), lambda rng, size: array_api_strict.asarray(draw(rng, size)[0]), **options
    )
    np.testing.assert_allclose(strict.steps, wide.steps, rtol=1e-9)


BAD_FITS = [
    ({"data": lambda rng, size: np.ones((40, size)), "loss": "mse"}, ValueError, "loss='mse' needs data with"),
    ({"data": lambda rng, size: np.ones((39, size))}, ValueError, "y must have 40 rows"),
    ({"data": lambda rng, size: np.full((40, size), np.nan)}, ValueError, "y has NaN"),
    ({"data": np.ones((40, 1))}, ValueError, "data must hold at least 2 signals"),
    ({"data": (np.ones((40, 5)), np.ones((60, 4)))}, ValueError, "data must pair measurements with signals"),
    ({"n_layers": 0}, ValueError, "n_layers must be >= 1"),
    ({"lr": 0.0}, ValueError, "lr must be > 0"),
    ({"init_step": -1.0}, ValueError, "init_step must be > 0"),
    ({"rng": "x"}, TypeError, "rng must be"),
    ({"reg": 0.0, "free_thresholds": True}, ValueError, "free_thresholds needs reg > 0"),
    ({"prox": "none"}, ValueError, "prox must be one of"),
    ({"batch_size": 2.5}, TypeError, "batch_size must be an integer"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_FITS)
def test_bad_training(change, error, message):
    A, draw, _, _ = paper_problem()
    arguments = {"data": draw, "reg": 0.1, "n_layers": 2} | change
    with pytest.raises(error, match=message):
        UnfoldedRecovery.fit(A, arguments.pop("data"), **arguments)
