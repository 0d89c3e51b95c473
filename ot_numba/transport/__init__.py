"""Entropic optimal transport: what users call."""

from .result import TransportResult
from .sinkhorn import sinkhorn

__all__ = ["TransportResult", "sinkhorn"]
