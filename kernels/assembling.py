"""What a GPU would get: code in PTX, assembled for GPUs that are not here, and asked what it needs.

NVIDIA's assembler comes with Triton's wheel and needs no GPU. Registers, spills, shared memory and what fits on a
multiprocessor are the same questions whoever made the PTX: Triton (compiling.py) or Numba (compiling_numba.py).
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

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


class Assembled(NamedTuple):
    """What the assembler says of a kernel: registers and bytes of a thread, and of a block."""

    registers: int
    spilled: int
    stack: int  # what is spilled, and arrays that registers cannot hold
    shared: int  # of a block; not what a launch adds to it


def assemble(ptx: str) -> Assembled:
    """Have NVIDIA's assembler, which Triton brings, turn a kernel into machine code, and report on it."""
    from triton.backends import nvidia

    architecture = re.search(r"^\.target (sm_\w+)", ptx, re.MULTILINE)
    assert architecture is not None
    binary = "ptxas-blackwell" if int(re.sub(r"\D", "", architecture[1])) >= 100 else "ptxas"
    ptxas = Path(nvidia.__file__).parent / "bin" / binary
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx, encoding="utf-8")
        command = [ptxas, "-v", f"--gpu-name={architecture[1]}", source, "-o", os.devnull]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)

    def found(what: str) -> int:
        return sum(map(int, re.findall(what, done.stderr)))

    return Assembled(
        found(r"Used (\d+) registers"),
        found(r"(\d+) bytes spill stores"),
        found(r"(\d+) bytes stack frame"),
        found(r"(\d+) bytes smem"),
    )


def occupancy(registers: int, shared: int, warps: int, target: Target) -> float:
    """Registers are given out in steps of 256 a warp; 1 KiB of shared memory a block is the system's."""
    registers_a_warp = -(-registers * 32 // 256) * 256
    blocks = min(
        target.blocks,
        target.warps // warps,
        target.registers // (registers_a_warp * warps),
        target.shared // (shared + KIB),
    )
    return blocks * warps / target.warps


def tensor_cores(ptx: str) -> str:
    """The kinds of matrix instruction with the type of what they multiply, as `mma.sync bf16`."""
    found = set()
    for instruction, types in re.findall(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b([\w.:]*)", ptx):
        inputs = re.search(r"\b(bf16|f16|tf32|f64|e4m3|e5m2)\b", re.sub(r"^.*?\.f32(?=\.\w)", "", types))
        found.add(f"{instruction.removesuffix('_async')} {inputs[1] if inputs else types.rpartition('.')[2]}")
    return ", ".join(sorted(found))


def moved(ptx: str, instruction: str, threads: int) -> int:
    """Bytes that all threads move with one pass through all such instructions."""
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
