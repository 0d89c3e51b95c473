"""How a solver says that it did not reach its tolerance."""

from __future__ import annotations

import sys
import warnings

from ot_numba.arrays.validation import check_choice

_PACKAGE = __name__.partition(".")[0]
ON_FAIL = ("warn", "raise", "ignore")
"""The values that every ``on_fail`` argument takes."""


class ConvergenceWarning(UserWarning):
    """An iterative method stopped before its residual reached ``tol``."""


class ConvergenceError(RuntimeError):
    """The same as `ConvergenceWarning`, raised where the caller asked for ``on_fail="raise"``."""


def report_failure(message: str, on_fail: str) -> None:
    """Report a missed tolerance as the caller of the solver wished; a warning points to the caller's line.

    Parameters
    ----------
    message : str
        What was reached, how fast it was still improving, and what to change.
    on_fail : {"warn", "raise", "ignore"}
        Warn with `ConvergenceWarning`, raise `ConvergenceError`, or say nothing.

    Raises
    ------
    ConvergenceError
        If ``on_fail="raise"``.
    ValueError
        If `on_fail` is none of the three words. A solver should check the word before it starts
        (``check_choice(on_fail, "on_fail", ON_FAIL)``), so that a typing error does not wait for a failure.

    Examples
    --------
    >>> report_failure("residual 1e-3 > tol 1e-9", "raise")
    Traceback (most recent call last):
        ...
    ot_numba.arrays.warnings.ConvergenceError: residual 1e-3 > tol 1e-9
    """
    check_choice(on_fail, "on_fail", ON_FAIL)
    if on_fail == "raise":
        raise ConvergenceError(message)
    if on_fail == "warn":
        warnings.warn(message, ConvergenceWarning, stacklevel=_caller_level())


def _caller_level() -> int:
    """Stack level, for a call of `warnings.warn` one frame up, of the first frame outside this package."""
    level, frame = 1, sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
        level, frame = level + 1, frame.f_back
    return level
