import warnings
from pathlib import Path

import pytest

import ot_numba
from ot_numba.arrays import ON_FAIL, ConvergenceError, ConvergenceWarning, report_failure


def solver(on_fail):
    report_failure("residual 0.1", on_fail)


def test_warn():
    with pytest.warns(ConvergenceWarning, match=r"residual 0\.1"):
        solver("warn")


def test_warn_skips_the_frames_of_the_package():
    with pytest.warns(ConvergenceWarning) as record:
        ot_numba.solve([[0.0, 1.0], [1.0, 0.5]], [0.3, 0.7], reg=0.5, max_iter=1)  # here
    line = Path(__file__).read_text(encoding="utf-8").splitlines()[record[0].lineno - 1]
    assert record[0].filename == __file__
    assert "# here" in line


def test_raise():
    with pytest.raises(ConvergenceError, match=r"residual 0\.1"):
        solver("raise")


def test_ignore():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solver("ignore")


def test_unknown_word():
    with pytest.raises(ValueError, match="on_fail must be one of 'warn', 'raise', 'ignore', got 'quiet'"):
        solver("quiet")
    assert ON_FAIL == ("warn", "raise", "ignore")


def test_families():
    assert issubclass(ConvergenceWarning, UserWarning)
    assert issubclass(ConvergenceError, RuntimeError)
