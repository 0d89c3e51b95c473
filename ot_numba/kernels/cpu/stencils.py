"""Lower levels of image denoising: smoothed total variation and fields of experts."""

from .foe import foe_gradient, foe_hvp, foe_jacobian_t
from .tv import tv_gradient, tv_hvp, tv_jacobian_t, tv_steps

__all__ = ["foe_gradient", "foe_hvp", "foe_jacobian_t", "tv_gradient", "tv_hvp", "tv_jacobian_t", "tv_steps"]
