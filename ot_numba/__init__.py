"""Regularised optimal transport: arrays in, arrays out.

NumPy arrays run Numba-compiled loops, CuPy arrays run CUDA kernels, and any other array-API array runs the
plain reference code. Every gradient is analytic. The names below are loaded on first use, so ``import
ot_numba`` costs milliseconds and imports neither Numba, nor SciPy, nor CuPy.

Examples
--------
>>> import ot_numba
>>> "solve" in dir(ot_numba)
True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `as` tells type checkers that the name is public here
    from ot_numba.arrays import (
        ConvergenceError as ConvergenceError,
        ConvergenceWarning as ConvergenceWarning,
        get_num_threads as get_num_threads,
        set_num_threads as set_num_threads,
        show_config as show_config,
        warmup as warmup,
    )
    from ot_numba.bilevel import (
        BilevelProblem as BilevelProblem,
        BilevelProgress as BilevelProgress,
        BilevelResult as BilevelResult,
        ConstrainedProblem as ConstrainedProblem,
        DenoisingResult as DenoisingResult,
        ElasticNet as ElasticNet,
        EntropicOTReg as EntropicOTReg,
        FoEDenoising as FoEDenoising,
        Hypergradient as Hypergradient,
        LogisticRidge as LogisticRidge,
        LVHBAProgress as LVHBAProgress,
        LVHBAResult as LVHBAResult,
        NotStronglyConvexError as NotStronglyConvexError,
        ProblemReport as ProblemReport,
        ProximalLagrangianValue as ProximalLagrangianValue,
        Quadratic as Quadratic,
        SVMHyperparameters as SVMHyperparameters,
        TVDenoising as TVDenoising,
        check_problem as check_problem,
        denoise_foe as denoise_foe,
        denoise_tv as denoise_tv,
        elastic_net as elastic_net,
        entropic_ot_reg as entropic_ot_reg,
        foe_denoising as foe_denoising,
        hoag as hoag,
        hypergradient as hypergradient,
        hypergradient_error_bound as hypergradient_error_bound,
        logistic_ridge as logistic_ridge,
        lvhba as lvhba,
        maid as maid,
        project_affine as project_affine,
        project_hyperplane as project_hyperplane,
        project_svm_margin as project_svm_margin,
        proximal_lagrangian_value as proximal_lagrangian_value,
        quadratic as quadratic,
        svm_hyperparameters as svm_hyperparameters,
        tv_denoising as tv_denoising,
    )
    from ot_numba.costs import (
        Cost as Cost,
        CostMatrix as CostMatrix,
        Grid as Grid,
        PointCloud as PointCloud,
        as_cost as as_cost,
        cost_scale as cost_scale,
        suggest_reg as suggest_reg,
    )
    from ot_numba.recovery import (
        RecoveryResult as RecoveryResult,
        UnfoldedRecovery as UnfoldedRecovery,
        fista as fista,
        hard_threshold as hard_threshold,
        iht as iht,
        ista as ista,
        lasso as lasso,
        lasso_gap as lasso_gap,
        soft_threshold as soft_threshold,
        unfolded_forward as unfolded_forward,
        unfolded_trajectory as unfolded_trajectory,
        unfolded_value_and_grad as unfolded_value_and_grad,
    )
    from ot_numba.transport import (
        ColorTransferResult as ColorTransferResult,
        DivergenceResult as DivergenceResult,
        NewtonProgress as NewtonProgress,
        PlanVJP as PlanVJP,
        RoundedPlan as RoundedPlan,
        RoutingResult as RoutingResult,
        SparsePlan as SparsePlan,
        SparseProgress as SparseProgress,
        SparseTransportResult as SparseTransportResult,
        TransportResult as TransportResult,
        color_transfer as color_transfer,
        dual_hessian_vector as dual_hessian_vector,
        dual_sparse_plan as dual_sparse_plan,
        dual_value_and_grad as dual_value_and_grad,
        ksupport_norm_sq as ksupport_norm_sq,
        marginal_error as marginal_error,
        plan_vjp as plan_vjp,
        project_simplex as project_simplex,
        project_simplex_topk as project_simplex_topk,
        quadratic_ot as quadratic_ot,
        regularization_path as regularization_path,
        round_plan as round_plan,
        route_tokens as route_tokens,
        semidual_hessian_vector as semidual_hessian_vector,
        semidual_sparse_plan as semidual_sparse_plan,
        semidual_stochastic as semidual_stochastic,
        semidual_value_and_grad as semidual_value_and_grad,
        sinkhorn as sinkhorn,
        sinkhorn_divergence as sinkhorn_divergence,
        sinkhorn_divergence_cost as sinkhorn_divergence_cost,
        sinkhorn_newton as sinkhorn_newton,
        solve as solve,
        sparse_hessian as sparse_hessian,
        sparsity_constrained_ot as sparsity_constrained_ot,
        transport_gradients as transport_gradients,
    )

__version__ = "0.1.0"

_HOMES = {
    "arrays": (
        "ConvergenceError",
        "ConvergenceWarning",
        "get_num_threads",
        "set_num_threads",
        "show_config",
        "warmup",
    ),
    "bilevel": (
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
    ),
    "costs": (
        "Cost",
        "CostMatrix",
        "Grid",
        "PointCloud",
        "as_cost",
        "cost_scale",
        "suggest_reg",
    ),
    "recovery": (
        "RecoveryResult",
        "UnfoldedRecovery",
        "fista",
        "hard_threshold",
        "iht",
        "ista",
        "lasso",
        "lasso_gap",
        "soft_threshold",
        "unfolded_forward",
        "unfolded_trajectory",
        "unfolded_value_and_grad",
    ),
    "transport": (
        "ColorTransferResult",
        "DivergenceResult",
        "NewtonProgress",
        "PlanVJP",
        "RoundedPlan",
        "RoutingResult",
        "SparsePlan",
        "SparseProgress",
        "SparseTransportResult",
        "TransportResult",
        "color_transfer",
        "dual_hessian_vector",
        "dual_sparse_plan",
        "dual_value_and_grad",
        "ksupport_norm_sq",
        "marginal_error",
        "plan_vjp",
        "project_simplex",
        "project_simplex_topk",
        "quadratic_ot",
        "regularization_path",
        "round_plan",
        "route_tokens",
        "semidual_hessian_vector",
        "semidual_sparse_plan",
        "semidual_stochastic",
        "semidual_value_and_grad",
        "sinkhorn",
        "sinkhorn_divergence",
        "sinkhorn_divergence_cost",
        "sinkhorn_newton",
        "solve",
        "sparse_hessian",
        "sparsity_constrained_ot",
        "transport_gradients",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_SUBPACKAGES = ("arrays", "bilevel", "costs", "kernels", "optimize", "recovery", "transport")

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    """Load a public name, or a subpackage, the first time it is asked for (PEP 562)."""
    if name in _SUBPACKAGES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return what the module offers, loaded or not."""
    return sorted({*globals(), *__all__, *_SUBPACKAGES})
