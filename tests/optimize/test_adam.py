import numpy as np
import pytest

from ot_numba.arrays import to_numpy
from ot_numba.optimize import adam


def bowls(xp, centres, scales):
    def fun(x):
        return xp.sum(scales * (x - centres) ** 2, axis=-1), 2 * scales * (x - centres)

    return fun


def test_as_published(xp):
    """Three steps of the published recursion, by hand."""
    x, m, v = np.array([1.0, -2.0]), 0, 0
    for t in (1, 2, 3):
        g = 2 * x
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        x = x - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    fun = bowls(xp, xp.zeros(2, dtype=xp.float64), xp.ones(2, dtype=xp.float64))
    result = adam(fun, xp.asarray([1.0, -2.0], dtype=xp.float64), learning_rate=0.1, max_iter=3)
    assert np.allclose(to_numpy(result.x), x, rtol=0, atol=1e-14)
    assert (result.n_iter, result.n_evaluations, result.status) == (3, 4, "max_iter")
    assert np.isclose(result.value, (x**2).sum())
    assert np.allclose(to_numpy(result.grad), 2 * x)
    assert len(result.history) == 4


def test_batches_are_independent(xp):
    rng = np.random.default_rng(0)
    centres, scales = rng.standard_normal((2, 3, 4)), rng.uniform(0.5, 5, (2, 3, 4))
    whole = adam(
        bowls(xp, xp.asarray(centres), xp.asarray(scales)), xp.zeros((2, 3, 4), dtype=xp.float64),
        learning_rate=0.05, tol=1e-3, max_iter=2000,
    )  # fmt: skip
    assert whole.converged
    assert tuple(whole.value.shape) == (2, 3)
    for i in np.ndindex(2, 3):
        one = adam(
            bowls(xp, xp.asarray(centres[i]), xp.asarray(scales[i])), xp.zeros(4, dtype=xp.float64),
            learning_rate=0.05, tol=1e-3, max_iter=2000,
        )  # fmt: skip
        assert one.converged
        assert np.array_equal(to_numpy(one.x), to_numpy(whole.x)[i])


def test_no_number_is_read_before_the_end():

    values = []

    class Value:
        """A number that may only be read once all are there."""

        def __init__(self, value):
            self.value = value

        def __float__(self):
            assert len(values) == 6, "read before the end"
            return self.value

    def fun(x):
        values.append(Value(float((x * x).sum())))
        return values[-1], 2 * x

    assert adam(fun, np.ones(3), max_iter=5).n_evaluations == 6


def test_float32_and_callback():
    seen = []

    def stop(state):
        seen.append(state)
        if state.n_iter == 7:
            raise StopIteration

    result = adam(bowls(np, np.float32(2), np.float32(1)), np.zeros(3, np.float32), callback=stop)
    assert result.x.dtype == np.float32
    assert result.status == "stopped"
    assert [state.n_iter for state in seen] == list(range(1, 8))
    assert np.array_equal(seen[-1].x, result.x)


def test_repr_and_message():
    fun = bowls(np, np.zeros((2, 3)), np.ones((2, 3)))
    result = adam(fun, np.ones((2, 3)), max_iter=2)
    assert "<(2,) values>" in repr(result)
    assert "not converged: max_iter is reached" in result.message


def test_inputs_are_not_modified():
    x0 = np.ones(3)
    x0.flags.writeable = False
    adam(bowls(np, 0.0, 1.0), x0, max_iter=3)
    assert np.all(x0 == 1)


def test_bad_input():
    fun = bowls(np, 0.0, 1.0)
    with pytest.raises(ValueError, match="x0 must have at least one dimension"):
        adam(fun, np.array(1.0))
    with pytest.raises(ValueError, match=r"betas must be a pair of numbers, got 0\.9"):
        adam(fun, [1.0], betas=0.9)
    with pytest.raises(ValueError, match="betas must be >= 0 and < 1"):
        adam(fun, [1.0], betas=(0.9, 1.0))
    for name in ("learning_rate", "max_iter", "tol", "floor"):
        with pytest.raises(ValueError, match=f"{name} must be"):
            adam(fun, [1.0], **{name: -1})
