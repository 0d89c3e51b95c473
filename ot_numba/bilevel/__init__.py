"""Bilevel learning of hyperparameters: what users call."""

from .denoising import DenoisingResult
from .foe import FoEDenoising, denoise_foe, foe_denoising
from .tv import TVDenoising, denoise_tv, tv_denoising

__all__ = [
    "DenoisingResult",
    "FoEDenoising",
    "TVDenoising",
    "denoise_foe",
    "denoise_tv",
    "foe_denoising",
    "tv_denoising",
]
