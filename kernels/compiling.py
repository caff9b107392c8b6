"""Compile the Triton kernels for GPUs that are not here, and read what the compiler made of them (`make kernels`).

Every module `triton` of an operator says in `compilations()` what is to be compiled. Triton's compiler needs no GPU,
only a process in which Triton does not interpret. Each kernel is compiled for the three targets below, and the machine
code is asked for registers, spills, shared memory and tensor-core instructions. What would be slow on a GPU, and would
show nowhere else, is an error: see `_problems`.
"""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

KIB = 1024


class Target(NamedTuple):
    """What a generation of GPUs has for a multiprocessor (CUDA C++ Programming Guide, "Compute Capabilities")."""

    capability: int
    name: str
    shared_a_block: int  # bytes
    shared: int
    warps: int = 64
    registers: int = 65536
    blocks: int = 32


TARGETS = (
    Target(80, "sm_80", 163 * KIB, 164 * KIB),
    Target(90, "sm_90", 227 * KIB, 228 * KIB),
    Target(100, "sm_100", 227 * KIB, 228 * KIB),
)


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


class Compiled(NamedTuple):
    """What became of a compilation for one target. Bytes are of a program, each loop's body counted once."""

    name: str
    target: str
    registers: int
    spilled: int  # bytes
    shared: int  # bytes
    occupancy: float  # share of the multiprocessor's warps that fit at once
    tensor_cores: str  # instruction and input type, or empty
    loaded: int  # bytes
    stored: int
    problems: tuple[str, ...]


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
    registers, spilled = _ptxas(ptx)
    shared, threads = result.metadata.shared, 32 * c.num_warps
    found = Compiled(
        name=c.name,
        target=target.name,
        registers=registers,
        spilled=spilled,
        shared=shared,
        occupancy=_occupancy(registers, shared, c.num_warps, target),
        tensor_cores=_tensor_cores(ptx),
        loaded=_bytes(ptx, "ld.global", threads) + _bytes(ptx, "cp.async", threads),
        stored=_bytes(ptx, "st.global", threads),
        problems=(),
    )
    return found._replace(problems=tuple(_problems(found, c, target)))


def _problems(found: Compiled, c: Compilation, target: Target) -> Iterator[str]:
    if found.spilled and not c.may_spill:
        yield f"spills {found.spilled} bytes of registers to memory"
    if found.shared > target.shared_a_block:
        yield f"wants {found.shared:,} bytes of shared memory, {target.name} has {target.shared_a_block:,} for a block"
    if c.half_dot and not re.search("f16", found.tensor_cores):
        became = found.tensor_cores or "no tensor-core code"
        yield f"a product of half-precision matrices became {became}: was an operand made float32 before the dot?"


def _ptxas(ptx: str) -> tuple[int, int]:
    """Registers of a thread and bytes spilled, as NVIDIA's assembler, which Triton brings, reports them."""
    from triton.backends import nvidia

    architecture = re.search(r"^\.target (sm_\w+)", ptx, re.MULTILINE)
    assert architecture is not None
    binary = "ptxas-blackwell" if int(re.sub(r"\D", "", architecture[1])) >= 100 else "ptxas"
    ptxas = Path(nvidia.__file__).parent / "bin" / binary
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx, encoding="utf-8")
        command = [ptxas, "-v", f"--gpu-name={architecture[1]}", source, "-o", os.devnull]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    used = re.search(r"Used (\d+) registers", output)
    spills = re.findall(r"(\d+) bytes spill stores", output)
    assert used is not None, output
    return int(used[1]), sum(map(int, spills))


def _occupancy(registers: int, shared: int, warps: int, target: Target) -> float:
    """Registers are given out in steps of 256 a warp; 1 KiB of shared memory a block is the system's."""
    registers_a_warp = -(-registers * 32 // 256) * 256
    blocks = min(
        target.blocks,
        target.warps // warps,
        target.registers // (registers_a_warp * warps),
        target.shared // (shared + KIB),
    )
    return blocks * warps / target.warps


def _tensor_cores(ptx: str) -> str:
    """The kinds of matrix instruction with the type of what they multiply, as `mma.sync bf16`."""
    found = set()
    for instruction, types in re.findall(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b([\w.:]*)", ptx):
        inputs = re.search(r"\b(bf16|f16|tf32|f64|e4m3|e5m2)\b", re.sub(r"^.*?\.f32(?=\.\w)", "", types))
        found.add(f"{instruction.removesuffix('_async')} {inputs[1] if inputs else types.rpartition('.')[2]}")
    return ", ".join(sorted(found))


def _bytes(ptx: str, instruction: str, threads: int) -> int:
    """What all threads move with one pass through all such instructions."""
    total = 0
    for line in ptx.splitlines():
        if instruction == "cp.async":
            asynchronous = re.search(r"cp\.async\.\w+\.shared\.global.*?, (?:0x)?([0-9a-f]+)[,;]", line)
            total += int(asynchronous[1], 16) if asynchronous else 0
        elif (found := re.search(rf"\b{re.escape(instruction)}\b([\w.:]*)", line)) is not None:
            width = re.search(r"\.v(\d)", found[1])
            bits = re.search(r"\.[bfsu](\d+)", found[1])
            total += int(width[1] if width else 1) * int(bits[1] if bits else 0) // 8
    return total * threads


# --- All of them, in parallel ------------------------------------------------------------------------


def _of_number(number: int, capability: int) -> Compiled:
    """In a fresh process, which imports the kernels for itself: they cannot be sent."""
    c = compilations()[number]
    target = next(t for t in TARGETS if t.capability == capability)
    try:
        return compiled(c, target)
    except Exception as error:  # a compiler's refusal is a finding, and the others go on
        line = f"does not compile: {type(error).__name__}: {str(error).strip().splitlines()[-1:]}"
        return Compiled(c.name, target.name, 0, 0, 0, 0.0, "", 0, 0, (line,))


def compile_all(
    names: Sequence[str] = (), *, first_of_each_kernel: bool = False, workers: int | None = None
) -> list[Compiled]:
    """Every compilation whose name begins with one of `names` (or all) for every target, in parallel.

    Args:
        first_of_each_kernel: only the one that its module names first.
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
            known, first = pool.submit(_names).result()
            chosen = [i for i, name in enumerate(known) if not names or name.startswith(tuple(names))]
            chosen = [i for i in chosen if i in first or not first_of_each_kernel]
            jobs = [(i, target.capability) for i in chosen for target in TARGETS]
            return list(pool.map(_of_number, *zip(*jobs, strict=True), chunksize=1)) if jobs else []
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


def _names() -> tuple[list[str], set[int]]:
    """The names of all, and which of them are the first of their kernel."""
    missing = uncompiled()
    if missing:
        raise RuntimeError(
            f"nothing compiles {', '.join(missing)}: add them to compilations() of their module"
        )
    kernels = [id(_plain(c.kernel)) for c in compilations()]
    return [c.name for c in compilations()], {kernels.index(kernel) for kernel in kernels}


def table(results: Iterable[Compiled]) -> str:
    """The results in columns, problems below."""
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
    lines += [f"error: {r.name} for {r.target}: {problem}" for r in results for problem in r.problems]
    return "\n".join(lines)
