"""Bilevel learning of hyperparameters: what users call."""

from .check import ProblemReport, check_problem
from .denoising import DenoisingResult
from .entropic import EntropicOTReg, entropic_ot_reg
from .foe import FoEDenoising, denoise_foe, foe_denoising
from .hypergradient import Hypergradient, hypergradient, hypergradient_error_bound
from .lvhba import (
    ConstrainedProblem,
    LVHBAProgress,
    LVHBAResult,
    ProximalLagrangianValue,
    lvhba,
    proximal_lagrangian_value,
)
from .maid import hoag, maid
from .problem import BilevelProblem, NotStronglyConvexError
from .problems import ElasticNet, LogisticRidge, Quadratic, elastic_net, logistic_ridge, quadratic
from .projections import project_affine, project_hyperplane, project_svm_margin
from .result import BilevelProgress, BilevelResult
from .svm import SVMHyperparameters, svm_hyperparameters
from .tv import TVDenoising, denoise_tv, tv_denoising

__all__ = [
    "BilevelProblem",
    "BilevelProgress",
    "BilevelResult",
    "ConstrainedProblem",
    "DenoisingResult",
    "ElasticNet",
    "EntropicOTReg",
    "FoEDenoising",
    "Hypergradient",
    "LVHBAProgress",
    "LVHBAResult",
    "LogisticRidge",
    "NotStronglyConvexError",
    "ProblemReport",
    "ProximalLagrangianValue",
    "Quadratic",
    "SVMHyperparameters",
    "TVDenoising",
    "check_problem",
    "denoise_foe",
    "denoise_tv",
    "elastic_net",
    "entropic_ot_reg",
    "foe_denoising",
    "hoag",
    "hypergradient",
    "hypergradient_error_bound",
    "logistic_ridge",
    "lvhba",
    "maid",
    "project_affine",
    "project_hyperplane",
    "project_svm_margin",
    "proximal_lagrangian_value",
    "quadratic",
    "svm_hyperparameters",
    "tv_denoising",
]
