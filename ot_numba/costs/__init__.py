"""Ground costs: what a solver may ask of them, and the costs that answer."""

from .base import Cost
from .gibbs import GibbsKernel
from .grid import Grid
from .matrix import CostMatrix
from .point_cloud import PointCloud
from .scale import as_cost, cost_scale, suggest_reg

__all__ = ["Cost", "CostMatrix", "GibbsKernel", "Grid", "PointCloud", "as_cost", "cost_scale", "suggest_reg"]
