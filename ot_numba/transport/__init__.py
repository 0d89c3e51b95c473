"""Entropic optimal transport: what users call."""

from .result import TransportResult
from ._sinkhorn import sinkhorn
from ._solve import solve

__all__ = ["TransportResult", "sinkhorn", "solve"]
