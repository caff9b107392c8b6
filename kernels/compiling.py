"""Compile the GPU kernels for GPUs that are not here, and read what the compilers made of them (`make kernels`).

Every module `triton` of an operator says in `compilations()` what is to be compiled. Triton's compiler needs no GPU,
only a process in which Triton does not interpret. Each kernel is compiled for three targets, and the machine code is
asked for registers, spills, shared memory and tensor-core instructions (assembling.py). What would be slow on a GPU, and
would show nowhere else, is an error: see `_problems`. Kernels in Numba CUDA: compiling_numba.py.
"""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

from ssmcourse.kernels import compiling_numba
from ssmcourse.kernels.assembling import TARGETS, Compiled, Target, assemble, moved, occupancy, tensor_cores


class Compilation(NamedTuple):
    """A kernel with the types and constants of one way to launch it.

    `signature` maps every argument that is no constant to a type of Triton's ("*bf16", "i32", "fp32");
    `half_dot` says that a product of half-precision matrices is in it, which tensor cores must do.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    half_dot: bool = False
    may_spill: bool = False  # a configuration that only autotuning picks


# --- What there is to compile ----------------------------------------------------------------------


def modules() -> list[Any]:
    """The modules with Triton kernels, one for each operator that has some."""
    import ssmcourse.kernels

    found = []
    for operator in pkgutil.iter_modules(ssmcourse.kernels.__path__):
        if not operator.ispkg:
            continue
        package = importlib.import_module(f"ssmcourse.kernels.{operator.name}")
        names = [m.name for m in pkgutil.iter_modules(package.__path__) if m.name.startswith("triton")]
        found += [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    return [module for module in found if kernels_of(module)]


def kernels_of(module: Any) -> dict[str, Any]:
    """Its launched kernels, those named ..._kernel; functions that kernels call have other names."""
    import triton

    return {
        name: value
        for name, value in vars(module).items()
        if name.endswith("_kernel") and isinstance(_plain(value), triton.JITFunction) and not name.startswith("_")
        and _plain(value).fn.__module__ == module.__name__
    }  # fmt: skip


@functools.cache
def compilations() -> tuple[Compilation, ...]:
    """All of all modules, in a fixed order."""
    return tuple(c for module in modules() if hasattr(module, "compilations") for c in module.compilations())


def uncompiled() -> list[str]:
    """Kernels that no compilation is of."""
    compiled = {id(_plain(c.kernel)) for c in compilations()}
    return [
        f"{module.__name__}.{name}"
        for module in modules()
        for name, kernel in kernels_of(module).items()
        if id(_plain(kernel)) not in compiled
    ]


def _plain(kernel: Any) -> Any:
    """The function under an autotuner or heuristics."""
    while hasattr(kernel, "fn") and hasattr(kernel, "run") and not hasattr(kernel, "cache_key"):
        kernel = kernel.fn
    return kernel


# --- Compiling -------------------------------------------------------------------------------------


def compiled(c: Compilation, target: Target) -> Compiled:
    """Compile for a target, in this process, in which Triton must not interpret."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = _plain(c.kernel)
    signature = dict(c.signature) | dict.fromkeys(c.constexprs, "constexpr")
    # Tensors begin at multiples of 16 bytes, which a launch tells the compiler, too.
    aligned = {
        (kernel.arg_names.index(name),): [["tt.divisibility", 16]]
        for name, kind in c.signature.items()
        if kind.startswith("*")
    }
    source = ASTSource(kernel, signature, c.constexprs, aligned)
    options = {"num_warps": c.num_warps, "num_stages": c.num_stages}
    result = triton.compile(source, target=GPUTarget("cuda", target.capability, 32), options=options)
    ptx = result.asm["ptx"]
    registers, spilled, *_ = assemble(ptx)
    shared, threads = result.metadata.shared, 32 * c.num_warps
    found = Compiled(
        name=c.name,
        target=target.name,
        registers=registers,
        spilled=spilled,
        shared=shared,
        occupancy=occupancy(registers, shared, c.num_warps, target),
        tensor_cores=tensor_cores(ptx),
        loaded=moved(ptx, "ld.global", threads) + moved(ptx, "cp.async", threads),
        stored=moved(ptx, "st.global", threads),
        problems=(),
    )
    return found._replace(problems=tuple(_problems(found, c, target)))


def _problems(found: Compiled, c: Compilation, target: Target) -> Iterator[str]:
    if found.spilled and not c.may_spill:
        yield f"spills {found.spilled} bytes of registers to memory"
    if found.shared > target.shared_a_block:
        yield f"wants {found.shared:,} bytes of shared memory, {target.name} has {target.shared_a_block:,} for a block"
    if c.half_dot and "f16" not in found.tensor_cores:
        became = found.tensor_cores or "no tensor-core code"
        yield f"a product of half-precision matrices became {became}: was an operand made float32 before the dot?"


# --- All of them, in parallel ------------------------------------------------------------------------


class Results(NamedTuple):
    """What `compile_all` found, and a line for what could not be compiled on this machine."""

    compiled: list[Compiled]
    left_out: tuple[str, ...]


class _Everything(NamedTuple):
    """What a fresh process has to compile, Triton's kernels first."""

    names: list[str]
    first: set[int]  # numbers of those that are the first of their kernel
    of_triton: int
    numba_fails: dict[int, str]  # capability -> why Numba does not compile for it


def _number(number: int) -> Compilation | compiling_numba.Compilation:
    own = compilations()
    return own[number] if number < len(own) else compiling_numba.compilations()[number - len(own)]


def _of_number(number: int, capability: int) -> Compiled:
    """In a fresh process, which imports the kernels for itself: they cannot be sent."""
    c = _number(number)
    target = next(t for t in TARGETS if t.capability == capability)
    try:
        return compiled(c, target) if isinstance(c, Compilation) else compiling_numba.compiled(c, target)
    except Exception as error:  # a compiler's refusal is a finding, and the others go on
        line = f"does not compile: {type(error).__name__}: {str(error).strip().splitlines()[-1:]}"
        return Compiled(c.name, target.name, 0, 0, 0, 0.0, "", 0, 0, (line,))


def compile_all(names: Sequence[str] = (), *, quick: bool = False, workers: int | None = None) -> Results:
    """Every compilation whose name begins with one of `names` (or all) for every target, in parallel.

    Args:
        quick: only the one that its module names first for each kernel; and of Numba's kernels, which nobody keeps
            once they are compiled, for the second target alone.
        workers: processes; as many as there are cores if None.
    Raises:
        RuntimeError: there is a kernel that nothing compiles.
    Cost: some 1 to 10 seconds each on one core; what Triton's own cache has is quick.
    """
    environment = {"TRITON_INTERPRET": "0", "NUMBA_ENABLE_CUDASIM": "0"}
    before = {key: os.environ.get(key) for key in environment}
    os.environ.update(environment)
    try:
        with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn")) as pool:
            there = pool.submit(_everything).result()
            chosen = [i for i, name in enumerate(there.names) if not names or name.startswith(tuple(names))]
            chosen = [i for i in chosen if i in there.first or not quick]
            jobs = [
                (i, target.capability)
                for i in chosen
                for target in (TARGETS[1:2] if quick and i >= there.of_triton else TARGETS)
                if i < there.of_triton or target.capability not in there.numba_fails
            ]
            rows = list(pool.map(_of_number, *zip(*jobs, strict=True), chunksize=1)) if jobs else []
            return Results(rows, _left_out(there) if chosen and chosen[-1] >= there.of_triton else ())
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


def _everything() -> _Everything:
    missing = uncompiled() + compiling_numba.uncompiled()
    if missing:
        raise RuntimeError(
            f"nothing compiles {', '.join(missing)}: add them to compilations() of their module"
        )
    all_of_them = (*compilations(), *compiling_numba.compilations())
    kernels = [id(_plain(c.kernel)) for c in all_of_them]
    fails = {target.capability: compiling_numba.why_not(target) for target in TARGETS}
    return _Everything(
        [c.name for c in all_of_them],
        {kernels.index(kernel) for kernel in kernels},
        len(compilations()),
        {capability: why for capability, why in fails.items() if why},
    )


def _left_out(there: _Everything) -> tuple[str, ...]:
    """A line for each reason why Numba does not compile, which is mostly one for all targets."""
    lines = []
    for why in dict.fromkeys(there.numba_fails.values()):
        targets = [t.name for t in TARGETS if there.numba_fails.get(t.capability) == why]
        lines.append(f"left out: the kernels in Numba CUDA for {', '.join(targets)}: {why}")
    return tuple(lines)


def table(results: Iterable[Compiled], left_out: Iterable[str] = ()) -> str:
    """The results in columns, below them what was left out, and problems."""
    rows = [
        ("kernel", "target", "registers", "spilled", "shared", "occupancy", "loads", "stores", "tensor cores")
    ]
    results = list(results)
    for r in results:
        rows.append(
            (r.name, r.target, str(r.registers), str(r.spilled), f"{r.shared:,}", f"{r.occupancy:.0%}",
             f"{r.loaded:,}", f"{r.stored:,}", r.tensor_cores)
        )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += left_out
    lines += [f"error: {r.name} for {r.target}: {problem}" for r in results for problem in r.problems]
    return "\n".join(lines)
