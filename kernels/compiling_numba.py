"""Compile the kernels in Numba CUDA for GPUs that are not here, as compiling.py does with Triton's.

Every package `numba_cuda` of an operator says in `compilations()` what is to be compiled. Numba makes PTX without a GPU,
in a process in which it does not simulate one, but needs NVIDIA's NVVM for it, which the extra [gpu] brings. A GPU's
driver may come with another assembler than Triton's: there the registers can be a few more or fewer. Where the compiler
makes two loops of one, for a scan forward and in reverse, the bytes of both are counted.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from ssmcourse.kernels.assembling import KIB, Assembled, Compiled, Target, assemble, moved, occupancy

SHARED_A_BLOCK = 48 * KIB  # on every GPU, for a launch that does not ask for more; Numba's do not
# What Numba's PTX says of itself, where the assembler is older than NVVM: with this version, the first that knows of
# all our targets, no instruction of these kernels is too new for it, and one that is would not assemble.
VERSION = ".version 8.6"


class Compilation(NamedTuple):
    """A kernel with the types of its arguments, and the largest block that it is launched with."""

    name: str
    kernel: Any
    signature: tuple[Any, ...]  # of Numba's types
    threads: int
    shared: int = 0  # bytes that the launch gives it, beside those that it has


# --- What there is to compile ----------------------------------------------------------------------


@functools.cache
def modules() -> tuple[Any, ...]:
    """The packages of operators that have kernels in Numba CUDA, and the modules in them."""
    import ssmcourse.kernels

    found = []
    for operator in pkgutil.iter_modules(ssmcourse.kernels.__path__):
        if not operator.ispkg:
            continue
        package = importlib.import_module(f"ssmcourse.kernels.{operator.name}")
        if any(m.name == "numba_cuda" for m in pkgutil.iter_modules(package.__path__)):
            ladder = importlib.import_module(f"{package.__name__}.numba_cuda")
            names = [m.name for m in pkgutil.iter_modules(ladder.__path__)]
            found += [ladder, *(importlib.import_module(f"{ladder.__name__}.{name}") for name in names)]
    return tuple(found)


@functools.cache
def compilations() -> tuple[Compilation, ...]:
    """All of all packages, in a fixed order."""
    return tuple(c for module in modules() if hasattr(module, "compilations") for c in module.compilations())


def uncompiled() -> list[str]:
    """Kernels, those named ..._kernel, that no compilation is of."""
    compiled = {id(c.kernel) for c in compilations()}
    return [
        f"{module.__name__}.{name}"
        for module in modules()
        for name, value in vars(module).items()
        if name.endswith("_kernel") and hasattr(value, "py_func") and id(value) not in compiled
    ]


# --- Compiling -------------------------------------------------------------------------------------


def why_not(target: Target) -> str:
    """Why Numba compiles nothing for a target on this machine, as one line; empty if it does."""
    try:
        from numba import cuda, types

        cuda.compile_ptx(lambda: None, types.void(), cc=divmod(target.capability, 10))
    except Exception as error:  # a broken installation is a finding, not a crash
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return f"{reason[0]} (pip install 'ssmcourse[gpu]' brings the compiler)"
    return ""


def compiled(c: Compilation, target: Target) -> Compiled:
    """Compile for a target, in this process, in which Numba must not simulate."""
    from numba import cuda, types

    ptx, _ = cuda.compile_ptx(c.kernel.py_func, types.void(*c.signature), cc=divmod(target.capability, 10))
    assembled = assemble(re.sub(r"^\.version .*", VERSION, ptx, count=1, flags=re.MULTILINE))
    shared = c.shared + assembled.shared
    return Compiled(
        name=c.name,
        target=target.name,
        registers=assembled.registers,
        spilled=assembled.spilled,
        shared=shared,
        occupancy=occupancy(assembled.registers, shared, -(-c.threads // 32), target),
        tensor_cores="",
        loaded=moved(ptx, "ld.global", c.threads),
        stored=moved(ptx, "st.global", c.threads),
        problems=tuple(_problems(c, ptx, assembled, shared, target)),
    )


def _problems(c: Compilation, ptx: str, found: Assembled, shared: int, target: Target) -> Iterator[str]:
    if found.spilled:
        yield f"spills {found.spilled} bytes of registers to memory"
    elif found.stack:
        yield f"has an array of {found.stack} bytes in memory, which registers should hold"
    if shared > SHARED_A_BLOCK:
        yield f"wants {shared:,} bytes of shared memory, a launch of Numba's gets {SHARED_A_BLOCK:,}"
    if not occupancy(found.registers, 0, -(-c.threads // 32), target):
        yield f"cannot start: {c.threads} threads of {found.registers} registers, {target.name} has {target.registers:,}"
    if re.search(r"\bcall(\.uni)?\b", ptx):
        yield "calls a function that was to be put in place of the call"
    if ".f64" in ptx and not re.search("float64|complex128", str(c.signature)):
        yield "computes in float64, and no argument is: a constant, or a product of an int and a float32?"
