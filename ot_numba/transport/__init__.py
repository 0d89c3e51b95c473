"""Entropic optimal transport: what users call."""

from .result import TransportResult
from .sinkhorn import sinkhorn
from .solve import solve

__all__ = ["TransportResult", "sinkhorn", "solve"]
