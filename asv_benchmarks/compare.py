"""Ratios to other libraries, measured in turn on the same input: what one run after another cannot give.

    python asv_benchmarks/compare.py [iteration online tolerance newton robustness threads startup exp] --n 1000 4000

Every candidate runs once per round, so that what else the machine does falls on all of them alike; medians over the
rounds. All run on one thread, and the time is the processor's: waiting for one does not count. Each has a process of
its own: in a common one, the memory that one library has freed changes how fast the next allocates. A library that is
not installed is left out, and said so.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from benchmarks import (  # before NumPy: it sets the numbers of threads
    newton as newton_problems,
    peers,
    problems,
    timing,
)

Targets = Iterable[tuple[str, str | None, float]]
Recipe = Callable[[], problems.Problem]


class Candidate:
    """A library set up for a problem, in a process of its own."""

    def __init__(self, name: str, recipe: Recipe) -> None:
        self.pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        self.pool.submit(_prepare, name, recipe).result()

    def __call__(self, function: Callable, *args: Any, timeout: float | None = None, **options: Any) -> Any:
        """Call ``function(run, problem, ...)`` over there; TimeoutError, and its process is gone, if it is slow."""
        try:
            return self.pool.submit(_call, function, args, options).result(timeout)
        except TimeoutError:
            for process in self.pool._processes.values():
                process.kill()  # compiled code hears nothing else
            raise


def _prepare(name: str, recipe: Recipe) -> None:
    global _state
    warnings.filterwarnings("ignore")  # peers warn of what they are asked to do here
    problem = recipe()
    _state = peers.prepare(name, problem), problem


def _call(function: Callable, args: tuple, options: dict) -> Any:
    return function(*_state, *args, **options)


@contextmanager
def candidates(names: Iterable[str], recipe: Recipe) -> Iterator[dict[str, Candidate]]:
    """Those of the libraries that can take the problem."""
    ready: dict[str, Candidate] = {}
    try:
        for name in names:
            try:
                ready[name] = Candidate(name, recipe)
            except Exception as error:  # a peer that fails is reported, not hidden
                print(f"  {name}: {_short(error)}", flush=True)
        yield ready
    finally:
        for candidate in ready.values():
            candidate.pool.shutdown()


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:100]}"


def in_turn(
    samples: dict[str, Callable[[], float]], rounds: int, enough: float = 20.0
) -> dict[str, list[float]]:
    """Times of every candidate, each once per round; one that has taken more than `enough` seconds is left alone."""
    times: dict[str, list[float]] = {name: [] for name in samples}
    spent = dict.fromkeys(samples, 0.0)
    for _ in range(rounds):
        for name, sample in samples.items():
            if spent[name] < enough:
                start = time.perf_counter()
                times[name].append(sample())
                spent[name] += time.perf_counter() - start
    return times


def show(
    times: dict[str, list[float]],
    targets: Targets,
    notes: dict[str, str] | None = None,
    missed: dict[str, float] | None = None,
) -> None:
    """Print the times, and the ratios of the medians with the targets; peer None stands for the fastest one.

    In brackets the ratio of the shortest times, which suffers less where other programs are at work. `missed` holds
    the seconds after which libraries had not got there: where none did, the ratio is at least that of the shortest.
    """
    middle = {name: median(values) for name, values in times.items()}
    for name, values in times.items():
        note = (notes or {}).get(name, "")
        print(
            f"  {name:24s} {1e3 * middle[name]:12.4f} ms  [{1e3 * min(values):.4f} .. {1e3 * max(values):.4f}]  {note}"
        )
    others = {name: t for name, t in middle.items() if not name.startswith("ot_numba")}
    for ours, peer, target in targets:
        if ours in middle and not peer and not others and missed:
            bound = min(missed.values()) / middle[ours]
            print(f"    any other / {ours} > {bound:.1f}, target {target:g}: {_verdict(bound >= target, 'not shown')}")
            continue
        if ours not in middle or not others or (peer and peer not in middle):
            print(f"    {peer or 'any other'} / {ours}: no ratio, target {target:g}")
            continue
        name = peer or min(others, key=others.get)
        ratio = middle[name] / middle[ours]
        best = min(times[name]) / min(times[ours])
        print(
            f"    {name} / {ours} = {ratio:.2f} [{best:.2f}], target {target:g}: {_verdict(ratio >= target)}"
        )
    sys.stdout.flush()


def _verdict(met: bool, otherwise: str = "MISSED") -> str:
    return "met" if met else otherwise


def iterations(title: str, recipe: Recipe, names: Iterable[str], targets: Targets, rounds: int) -> None:
    """Time per iteration; the residual after twelve shows that all do the same."""
    print(f"\nTime per iteration, {title}", flush=True)
    samples, notes = {}, {}
    with candidates(names, recipe) as ready:
        for name, candidate in ready.items():
            try:
                count = candidate(_enough_iterations)
                error = candidate(_residual_after, 12) if count > timing.FIRST else None
            except Exception as failure:
                print(f"  {name}: {_short(failure)}", flush=True)
                continue
            samples[name] = partial(candidate, _per_iteration, count)
            if error is not None:
                notes[name] = f"residual after 12: {error:.3e}"
        show(in_turn(samples, rounds), targets, notes)


def _residual_after(run: peers.Run, problem: problems.Problem, n_iter: int) -> float | None:
    answer = run(n_iter, 0.0)
    return None if answer is None else problems.residual(problem, answer)


def _enough_iterations(run: peers.Run, _: problems.Problem) -> int:
    return timing.enough_iterations(run)


def _per_iteration(run: peers.Run, _: problems.Problem, n_iter: int) -> float:
    return timing.per_iteration(run, n_iter)


def _to_tolerance(run: peers.Run, _: problems.Problem, cap: int, tol: float) -> float:
    run(timing.FIRST, 0.0)  # takes the page faults of memory that the system has taken back in the meantime
    return timing.seconds(lambda: run(cap, tol))


def iteration(args: argparse.Namespace) -> None:
    """Stored cost."""
    for n in args.n:
        targets = [
            ("ot_numba log", "POT sinkhorn_log", 40 if n < 4000 else 20),
            ("ot_numba log", "OTT-JAX log", 4),
            ("ot_numba kernel", "POT sinkhorn", 1.4),
        ]
        recipe = partial(problems.clouds, n, seed=args.seed)
        iterations(f"stored cost, d = 2, n = {n}", recipe, args.library or peers.DENSE, targets, args.rounds)


def online(args: argparse.Namespace) -> None:
    """Cost evaluated from the points."""
    ours, keops = "ot_numba online", "GeomLoss KeOps"
    for n in args.n:
        for d, dtype, names, targets in (
            (2, "float64", (*peers.ONLINE, "OTT-JAX log"), [(ours, "OTT-JAX log", 6), (ours, keops, 15)]),
            (2, "float32", (ours, keops, "OTT-JAX log"), [(ours, keops, 40)]),
            (64, "float64", (ours, keops), [(ours, keops, 40)]),
        ):
            recipe = partial(_clouds, n, d, args.seed, dtype)
            title = f"cost from points, d = {d}, n = {n}, {dtype}"
            iterations(title, recipe, args.library or names, targets, args.rounds)


def _clouds(n: int, d: int, seed: int, dtype: str) -> problems.Problem:
    return problems.clouds(n, d, seed=seed).astype(dtype)


def tolerance(args: argparse.Namespace) -> None:
    """Time to a residual."""
    make = {"clouds": problems.clouds, "squares": problems.squares, "colours": problems.colours}[args.family]
    for n in args.n:
        names = args.library or peers.SOLVERS
        moderate = [
            (ours, peer, t) for ours in peers.OURS for peer, t in (("POT sinkhorn", 4), ("OTT-JAX log", 20))
        ]
        small = [(ours, None, 6 if n < 4000 else 30) for ours in peers.OURS]
        for share, wanted, targets in ((0.05, 1e-9, moderate), (0.005, 1e-6, small)):
            print(
                f"\nTime to residual {wanted:g}, {args.family}, n = {n}, reg = {share} x median", flush=True
            )
            to_residual(partial(make, n, share=share, seed=args.seed), names, wanted, targets, args)


def to_residual(
    recipe: Recipe, names: Iterable[str], wanted: float, targets: Targets, args: argparse.Namespace
) -> None:
    """Find what every library must be asked for, then time that."""
    samples, notes, missed = {}, {}, {}
    with candidates(names, recipe) as ready:
        for name, candidate in ready.items():
            factor = 1.0 if name.startswith("ot_numba") else 10.0  # our tol is a promise about the residual
            try:
                tol, cap, error, taken = candidate(
                    timing.loosest, wanted, args.limit, factor=factor, timeout=3 * args.limit
                )
            except TimeoutError:
                missed[name] = 3 * args.limit
                print(f"  {name} was not there after {missed[name]:.0f} s", flush=True)
                continue
            except Exception as failure:
                print(f"  {name}: {_short(failure)}", flush=True)
                continue
            if error <= wanted:
                samples[name] = partial(candidate, _to_tolerance, cap, tol)
                notes[name] = f"tol {tol:.1e}, residual {error:.1e}"
            else:
                if taken > 0.8 * args.limit:  # else it is stuck, and more time would not help
                    missed[name] = taken
                print(f"  {name} stops at {error:.1e} after {taken:.1f} s, with tol {tol:.1e}", flush=True)
        show(in_turn(samples, args.rounds), targets, notes, missed)


def newton(args: argparse.Namespace) -> None:
    """Time to a residual of 1e-9 at small reg, on the kinds of matrix that regot is tested on."""
    for family in ("uniform", "line", "points", "images"):
        for reg in (1e-3, 1e-4):
            for n in args.n:
                print(f"\nTime to residual 1e-09, {family}, n = {n}, reg = {reg:g}", flush=True)
                recipe = partial(problems.regot_family, family, n, reg, args.seed)
                to_residual(recipe, args.library or peers.NEWTON, 1e-9, [("ot_numba newton", None, 3)], args)


PATIENCE = 2.0  #: seconds of processor time for one problem of `robustness`


def robustness(args: argparse.Namespace) -> None:
    """Of 200 hard problems, how many are not solved to a residual of 1e-9 within seconds.

    Of regot those of its solvers that do best here; splr keeps all entries, as at these sizes the share that it keeps
    by default, 1 %, solves few.
    """
    print(f"\n200 problems of 20 to 200 points a side, not solved to 1e-09 within {PATIENCE:g} s", flush=True)
    failed: dict[str, set[int]] = {}
    best = [f"regot {solver}" for solver in ("newton", "ssns", "splr whole")]
    for name in args.library or ["ot_numba newton", *best]:
        reasons, start = {}, 0
        while start < 200:
            with candidates([name], partial(problems.regot_family, "points", 144, 0.01)) as ready:
                if not ready:
                    break
                if name.startswith("ot_numba"):
                    ready[name](_to_tolerance, 1000, 1e-9)  # compiles
                start = _failures(ready[name], name, start, args.seed, reasons)
        if not start:
            continue
        failed[name] = set(reasons)
        counts = {reason: list(reasons.values()).count(reason) for reason in sorted(set(reasons.values()))}
        each = " ".join(f"{kind} {sum(i % 4 == k for i in reasons)}" for k, kind in enumerate(newton_problems.KINDS))
        print(f"  {name:24s} {len(reasons):4d}  {counts or ''}  {each}", flush=True)
    others = [indices for name, indices in failed.items() if name.startswith("regot")]
    if len(others) > 1:
        print(f"  {'all of regot':24s} {len(set.intersection(*others)):4d}", flush=True)


def _failures(candidate: Candidate, name: str, start: int, seed: int, reasons: dict[int, str]) -> int:
    """Collect why problems from `start` on are not solved; where to go on once the process is used up."""
    for index in range(start, 200):
        try:
            error = candidate(_residual_of, name, index, seed)
        except BrokenExecutor:
            reasons[index] = "slow"
            return index + 1
        except Exception as failure:
            reasons[index] = type(failure).__name__
        else:
            if not error <= 1e-9:
                reasons[index] = "wrong" if math.isfinite(error) else "not finite"
    return 200


def _residual_of(_: peers.Run, __: problems.Problem, name: str, index: int, seed: int) -> float:
    problem = _mixed(name, index, seed)
    # regot's rule is on the Euclidean norm of most of the gradient; a residual so small is not asked for in vain
    tol = 1e-9 if name.startswith("ot_numba") else 2e-10
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)  # ends this process, compiled code or not
    answer = peers.prepare(name, problem)(100_000, tol)
    signal.setitimer(signal.ITIMER_PROF, 0)
    return problems.residual(problem, answer)


def _mixed(name: str, index: int, seed: int) -> problems.Problem:
    """The problem; without empty rows and columns for regot, which asks for positive weights."""
    problem = newton_problems.mixed(index, seed)
    if name.startswith("regot"):
        rows, columns = problem.a > 0, problem.b > 0
        problem = problems.Problem(
            problem.a[rows], problem.b[columns], problem.reg, matrix=problem.C[np.ix_(rows, columns)]
        )
    return problem


def threads(args: argparse.Namespace) -> None:
    """Two threads against one."""
    import ot_numba

    n = max(args.n)
    run = peers.prepare("ot_numba online", problems.clouds(n, seed=args.seed))
    count = timing.enough_iterations(run)

    def sample(n_threads: int) -> float:
        ot_numba.set_num_threads(n_threads)
        return timing.per_iteration(run, count, time.perf_counter)

    print(f"\nTime per iteration, cost from points, d = 2, n = {n}, threads")
    names = {"ot_numba, 2 threads": 2, "1 thread": 1}
    times = in_turn({name: partial(sample, n_threads) for name, n_threads in names.items()}, 2 * args.rounds)
    show(times, [("ot_numba, 2 threads", "1 thread", 1.7)])
    ot_numba.set_num_threads(1)


def startup(args: argparse.Namespace) -> None:
    """New processes: import, and the first solve."""
    solve = "import numpy, ot_numba; ot_numba.sinkhorn(numpy.arange(2500.0).reshape(50, 50) % 7, reg=1.0)"
    with tempfile.TemporaryDirectory() as folder:
        warm = os.path.join(folder, "warm")
        fresh_process(solve, warm)
        samples = {
            "import": partial(fresh_process, "import ot_numba", warm),
            "import, and its NumPy": partial(fresh_process, "import numpy, ot_numba", warm),
            "solve, warm cache": partial(fresh_process, solve, warm),
            "solve, cold cache": lambda: fresh_process(solve, tempfile.mkdtemp(dir=folder)),
        }
        times = in_turn(samples, args.rounds)
    print("\nNew process")
    show(times, [])
    limits = (("import, and its NumPy", 0.25), ("solve, warm cache", 1.0), ("solve, cold cache", 8.0))
    for name, limit in limits:
        taken = median(times[name])
        print(f"    {name}: {taken:.3f} s, target {limit:g}: {_verdict(taken <= limit)}")


def fresh_process(code: str, cache: str) -> float:
    """Seconds that code takes in a new interpreter, whose own start does not count."""
    code = f"from time import process_time; start = process_time(); {code}; print(process_time() - start)"
    environment = {**os.environ, "OT_NUMBA_CACHE_DIR": cache}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    return float(out.stdout.split()[-1])


def exp(args: argparse.Namespace) -> None:
    """Power of two and exponential against NumPy's, in cache."""
    from benchmarks.vecmath import power_map

    for dtype, target in (("float64", 1.7), ("float32", 2.2)):
        x = np.random.default_rng(args.seed).uniform(-30, 0, 4096).astype(dtype)
        out = np.empty_like(x)
        calls = {
            "ot_numba exp2": power_map("exp2_fast"),
            "ot_numba exp": power_map("exp"),
            "numpy.exp": np.exp,
        }
        samples = {}
        for name, call in calls.items():
            call(x, out)
            samples[name] = partial(repeated, partial(call, x, out), 10_000)
        print(f"\n{len(x)} values, {dtype}")
        show(in_turn(samples, args.rounds), [("ot_numba exp2", "numpy.exp", target)])


def repeated(call: Callable[[], object], times: int) -> float:
    return timing.seconds(lambda: [call() for _ in range(times)]) / times


def main() -> None:
    suites = {f.__name__: f for f in (iteration, online, tolerance, newton, robustness, threads, startup, exp)}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "suites", nargs="*", metavar="suite", help=f"of {', '.join(suites)}; all if none is named"
    )
    parser.add_argument("--n", type=int, nargs="+", default=[1000, 4000], help="points a side")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=30.0, help="longest run to a residual, in seconds")
    parser.add_argument("--family", default="clouds", choices=["clouds", "squares", "colours"])
    parser.add_argument("--library", nargs="+", choices=list(peers.ADAPTERS), help="only these")
    args = parser.parse_args()
    unknown = set(args.suites) - set(suites)
    if unknown:
        parser.error(f"no suite {', '.join(sorted(unknown))}; there are {', '.join(suites)}")
    for name in args.suites or suites:
        suites[name](args)


if __name__ == "__main__":
    main()
