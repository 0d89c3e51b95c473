import numpy as np
import pytest

from ot_numba import route_tokens
from ot_numba.arrays import to_numpy


def gates(T=256, E=16, d=32, seed=0):
    """Softmax gates of a random linear router, its tokens with a common part."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(T, d)) + 0.5 * rng.normal(size=(1, d))
    W = rng.normal(size=(d, E)) / np.sqrt(d)
    S = np.exp(X @ W)
    return S / S.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("factor", "options", "coverage", "mass"),
    [
        (1.0, {}, 0.930, 0.233),
        (1.0, {"max_iter": 100}, 0.977, 0.235),
        (1.0, {"solver": "lbfgs", "max_iter": 500}, 0.99, 0.235),
        (2.0, {}, 1.0, None),
        (2.0, {"solver": "lbfgs", "max_iter": 300}, 1.0, None),
    ],
)
def test_coverage_table(factor, options, coverage, mass):
    S = gates()
    result = route_tokens(S, capacity_factor=factor, **options)
    assert result.capacity == 16 * factor
    assert set(result.load.tolist()) == {result.capacity}
    if options.get("solver") == "lbfgs":
        assert result.coverage >= coverage
    else:
        assert np.isclose(result.coverage, coverage, rtol=0, atol=5e-4)
    if mass:
        assert np.isclose(result.combine.sum(axis=1).mean(), mass, rtol=0, atol=1.1e-3)


def test_baselines_of_the_table():
    """What the coverage is compared with: a token's best expert within capacity, and an expert's best tokens."""
    S = gates()
    best = S.argmax(axis=1)
    order = np.argsort(best, kind="stable")
    rank = np.empty(256, int)
    rank[order] = np.arange(256) - np.searchsorted(best[order], best[order])
    assert np.isclose((rank < 16).mean(), 0.695, rtol=0, atol=5e-4)
    chosen = np.argsort(-S, axis=0, kind="stable")[:16]
    assert np.isclose(len(np.unique(chosen)) / 256, 0.770, rtol=0, atol=5e-4)


def test_groups_are_independent():
    S = np.stack([gates(64, 8, seed=seed) for seed in range(3)])
    for options in ({}, {"solver": "lbfgs", "max_iter": 50}):
        whole = route_tokens(S, **options)
        assert whole.plan.shape == (3, 64, 8)
        assert whole.load.shape == (3, 8)
        for i in range(3):
            assert np.array_equal(route_tokens(S[i], **options).plan, whole.plan[i])


@pytest.mark.parametrize("k", [None, 2])
def test_tokens_choose(k):
    S = gates(128, 8)
    result = route_tokens(S, k, mode="tokens_choose", solver="lbfgs", max_iter=200)
    assert result.capacity == (k or 1)
    assert result.coverage == 1
    assert result.dispatch.sum(axis=1).max() <= result.capacity
    assert result.load.sum() == result.dispatch.sum()
    assert np.allclose(result.plan.sum(axis=1), 1, rtol=0, atol=1e-12)
    greedy = np.bincount(S.argmax(axis=1), minlength=8)
    if k is None:
        assert result.load.max() < greedy.max()
    assert result.potentials.shape == (8,)


def test_capacity():
    S = gates(50, 6)
    assert route_tokens(S).capacity == 12  # ceil(50 / 6) = 9, a multiple of 4
    assert route_tokens(S, multiple_of=1).capacity == 9
    assert route_tokens(S, 7).capacity == 7
    assert route_tokens(S, 1000).capacity == 50
    assert route_tokens(S, capacity_factor=1.5).capacity == 16


def test_the_plan_is_that_of_the_potentials():
    """The columns of the plan are projections on the simplex, of mass T / E, of the largest scores."""
    S = gates(40, 5)
    result = route_tokens(S)
    from ot_numba import project_simplex_topk

    expected = project_simplex_topk(result.potentials[:, None] + S, result.capacity, 8.0, axis=0)
    assert np.allclose(result.plan, expected, rtol=0, atol=1e-12)
    assert np.array_equal(result.combine, np.where(result.plan > 0, S, 0))


def test_kinds_of_input(xp):
    S = gates(32, 4)
    result = route_tokens(xp.asarray(S))
    expected = route_tokens(S)
    assert np.allclose(to_numpy(result.plan), expected.plan, rtol=0, atol=1e-9)
    assert result.coverage == expected.coverage
    assert np.array_equal(to_numpy(result.load), expected.load)
    assert "RoutingResult((32, 4), capacity=8" in repr(result)
    single = route_tokens(S.astype(np.float32))
    assert single.plan.dtype == np.float32


def test_inputs_are_not_modified():
    S = gates(16, 4)
    S.flags.writeable = False
    kept = S.copy()
    route_tokens(S)
    assert np.array_equal(S, kept)


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 1)])
def test_single_tokens_and_experts(shape):
    result = route_tokens(np.full(shape, 0.5))
    assert np.allclose(result.plan.sum(), shape[0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"capacity": 0}, ValueError, "capacity must be >= 1"),
        ({"capacity_factor": 0}, ValueError, "capacity_factor must be > 0"),
        ({"multiple_of": 0}, ValueError, "multiple_of must be >= 1"),
        ({"mode": "both"}, ValueError, "mode must be one of"),
        ({"solver": "sgd"}, ValueError, "solver must be one of"),
        ({"reg": 0}, ValueError, "reg must be > 0"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be > 0"),
        ({"max_iter": 0}, ValueError, "max_iter must be >= 1"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        route_tokens(gates(8, 2), **options)


def test_bad_scores():
    with pytest.raises(ValueError, match=r"scores must have 2 or 3 dimension\(s\)"):
        route_tokens(np.ones(3))
    with pytest.raises(ValueError, match="scores has NaN"):
        route_tokens(np.full((3, 2), np.nan))
