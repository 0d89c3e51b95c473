"""Benchmarks of the public solvers; every library runs on one thread unless a suite says otherwise.

The settings stand here because they count only before NumPy, JAX and KeOps are loaded.
"""

import os

for _name in ("OMP", "OPENBLAS", "MKL", "OT_NUMBA"):
    os.environ[f"{_name}_NUM_THREADS"] = "1"
os.environ["NPROC"] = "1"  # the size of JAX's pool
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
for _name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):  # BLAS as its own detection sets it up
    os.environ.pop(_name, None)
for _name in ("PYTORCH", "JAX", "CUPY", "TENSORFLOW"):  # POT would load each of them that is installed
    os.environ[f"POT_BACKEND_DISABLE_{_name}"] = "1"
