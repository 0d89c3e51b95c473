"""What every solver asks of its arrays (library, device, dtype, validity), and how it reports trouble."""

from ot_numba.arrays.config import Config, get_num_threads, set_num_threads, show_config, warmup
from ot_numba.arrays.namespaces import array_namespace, device_of, is_numpy, to_numpy
from ot_numba.arrays.validation import (
    as_float_array,
    check_balanced,
    check_choice,
    check_int,
    check_real,
    check_rng,
    check_weights,
    common_dtype,
)
from ot_numba.arrays.warnings import ON_FAIL, ConvergenceError, ConvergenceWarning, report_failure

__all__ = [
    "ON_FAIL",
    "Config",
    "ConvergenceError",
    "ConvergenceWarning",
    "array_namespace",
    "as_float_array",
    "check_balanced",
    "check_choice",
    "check_int",
    "check_real",
    "check_rng",
    "check_weights",
    "common_dtype",
    "device_of",
    "get_num_threads",
    "is_numpy",
    "report_failure",
    "set_num_threads",
    "show_config",
    "to_numpy",
    "warmup",
]
