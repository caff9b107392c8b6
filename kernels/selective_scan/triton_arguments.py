"""What both Triton kernels of the selective scan are given, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ssmcourse.kernels import runtime
from ssmcourse.kernels.compiling import Compilation

# Steps from one state that is kept for the gradient to the next. The interpreter's tests are short.
CHUNK = 16 if runtime.triton_mode() == "interpreted" else 64
MOST_STATES = 128


class Given(NamedTuple):
    """The tensors as the kernels read them, and the numbers that both kernels take."""

    tensors: dict[str, Tensor | None]  # the first arguments of either kernel
    sizes: dict[str, int]  # the next
    options: dict[str, Any]  # and what is compiled in
    programs: int  # for each row


class Plan(NamedTuple):
    """How a kernel goes about some options."""

    numbers: int  # in a program's tile of states
    configurations: list[triton.Config]  # the first is the choice without tuning


Planner = Callable[[bool, bool, bool, int, int], Plan]  # (zoh, packed, constant B or C, n, bytes of a number)


def read(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, sequence: Tensor | None, dt_softplus: bool, zoh: bool,
    plan: Planner,
) -> Given:  # fmt: skip
    """What a kernel with this plan is called with."""
    (_, l, d), n = x.shape, A.shape[1]
    groups_B, groups_C = (M.shape[2] if M.ndim == 4 else 1 for M in (B, C))
    groups = math.lcm(groups_B, groups_C)
    numbers, _ = plan(zoh, sequence is not None, 2 in (B.ndim, C.ndim), A.shape[1], A.element_size())
    N, block_d = tile_of_states(n, d // groups, numbers)
    rows = {"x": _evenly_spaced(x), "dt": _evenly_spaced(dt), "z": None if z is None else _evenly_spaced(z)}
    return Given(
        {
            "x_ptr": rows["x"],
            "dt_ptr": rows["dt"],
            "A_ptr": A.contiguous(),
            "B_ptr": B.contiguous(),
            "C_ptr": C.contiguous(),
            "D_ptr": None if D is None else D.contiguous(),
            "z_ptr": rows["z"],
            "bias_ptr": None if dt_bias is None else dt_bias.contiguous(),
            "sequence_ptr": None if sequence is None else sequence.contiguous(),
        },
        {"l": l, "d": d, "n": n, "groups": groups, "groups_B": groups_B, "groups_C": groups_C}
        | {f"stride_{name}": 0 if t is None else t.stride(1) for name, t in rows.items()},
        {
            "B_MOVES": B.ndim == 4,
            "C_MOVES": C.ndim == 4,
            "SOFTPLUS": dt_softplus,
            "ZOH": zoh,
            "CHUNK": CHUNK,
            "N": N,
            "BLOCK_D": block_d,
        },
        groups * triton.cdiv(d // groups, block_d),
    )


def tile_of_states(n: int, channels: int, numbers: int) -> tuple[int, int]:
    """N and BLOCK_D: powers of 2 that cover the states, and as many channels as leave that many numbers in all."""
    N = triton.next_power_of_2(max(1, n))
    most = numbers // N if N <= 64 else numbers // 2 // N  # then B and C take most of the registers
    return N, min(64, triton.next_power_of_2(channels), max(1, most))


def empty(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors of the shapes that a scan returns; the states before every CHUNK-th step are kept."""
    x, _, A, *_, sequences, _, _, keep = arguments  # as operator.SCHEMA has them
    (b, l, d), n = x.shape, A.shape[1]
    chunks = (l + CHUNK - 1) // CHUNK if keep else 0
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, A.new_empty((sequences, d, n)), A.new_empty((b, chunks, n, d))


def refuse(A: Tensor) -> None:
    """What the kernels cannot take."""
    if A.is_complex():
        raise ValueError(
            f"A: got {A.dtype}, expected a real dtype: Triton has no complex numbers. "
            "For complex A pass backend='reference', or on the CPU backend='cpu'"
        )
    if A.shape[1] > MOST_STATES:
        raise ValueError(
            f"A: got n = {A.shape[1]} states a channel, expected at most {MOST_STATES}: the Triton kernel keeps "
            "them in registers. For more pass backend='reference', or on the CPU backend='cpu'"
        )


def _evenly_spaced(t: Tensor) -> Tensor:
    """t (b, l, d) with its channels side by side and one distance from step to step, over the rows as well.

    So are z = xz[..., d:] and the like as they are; anything else is copied.
    """
    b, l, d = t.shape
    side_by_side = d == 1 or t.stride(2) == 1
    rows_follow = b == 1 or t.stride(0) == l * t.stride(1)
    return t if side_by_side and rows_follow else t.contiguous()


def tuned(configurations: list[triton.Config], plan: Planner) -> Callable[[Any], Any]:
    """For a kernel: on a GPU the fastest of its plan's, measured when a size is first seen; else the first of all."""

    def of_plan(_: Any, arguments: dict[str, Any], **constants: Any) -> list[triton.Config]:
        given = {**arguments, **constants}
        constant = not (given["B_MOVES"] and given["C_MOVES"])
        packed, size = given["sequence_ptr"] is not None, given["A_ptr"].element_size()
        return plan(given["ZOH"], packed, constant, given["n"], size).configurations

    usable = configurations if runtime.triton_mode() == "compiled" else configurations[:1]
    return triton.autotune(
        list(usable),
        ["d", "n", "groups", "ZOH", "B_MOVES", "C_MOVES"],
        prune_configs_by={"early_config_prune": of_plan},
    )


def compilations(name: str, kernel: Any, plan: Planner) -> Iterator[Compilation]:
    """Every dtype, few and many states, with and without options; a model's sizes in every configuration."""
    sizes = {"n": 16, "d": 1536, "stride_x": 1536, "stride_dt": 1536, "stride_z": 3072}
    plain: dict[str, Any] = {"sequence_ptr": None}
    bare = plain | dict.fromkeys(("D_ptr", "z_ptr", "bias_ptr", "first_ptr", "final_ptr", "dfinal_ptr"))
    bare |= dict.fromkeys(("dD_ptr", "dz_ptr", "dbias_ptr", "dfirst_ptr"))
    for label, dtype, n, constants, moves, zoh in (
        ("", "bf16", 16, sizes | plain, True, False),
        ("", "fp32", 16, sizes | plain, True, False),
        ("packed", "bf16", 16, sizes, True, False),
        ("zoh", "bf16", 16, sizes | plain, True, True),
        ("any size, packed, zoh", "fp16", 16, {}, True, True),
        ("any size, packed, zoh", "fp32", 16, {}, True, True),
        ("any size, packed, zoh", "fp64", 16, {}, True, True),
        ("n=64", "bf16", 64, sizes | plain | {"n": 64}, True, False),
        (f"n={MOST_STATES}", "fp32", MOST_STATES, sizes | plain | {"n": MOST_STATES}, True, False),
        ("B and C constant, nothing optional", "bf16", 16, sizes | bare, False, False),
    ):
        packed = "sequence_ptr" not in constants
        numbers, configurations = plan(zoh, packed, not moves, n, 8 if dtype == "fp64" else 4)
        N, block_d = tile_of_states(n, 1536, numbers)
        options = {"B_MOVES": moves, "C_MOVES": moves, "SOFTPLUS": True, "ZOH": zoh, "CHUNK": 64}
        options |= {"N": N, "BLOCK_D": block_d}
        for number, configuration in enumerate(configurations if label == "" else configurations[:1]):
            constexprs = {k: v for k, v in constants.items() if k in kernel.arg_names}
            constexprs |= options | configuration.kwargs
            yield Compilation(
                f"selective_scan.{name} {dtype} {label or _in_words(configuration)}",
                kernel,
                {k: _type(k, dtype) for k in kernel.arg_names if k not in constexprs},
                constexprs,
                num_warps=configuration.num_warps,
                may_spill=number > 0,
            )


def _in_words(configuration: triton.Config) -> str:
    return f"{configuration.kwargs['STEPS']} steps, {configuration.num_warps} warps"


def _type(argument: str, dtype: str) -> str:
    name, pointer, _ = argument.partition("_ptr")
    if not pointer:
        return "i32"
    if name == "sequence":
        return "*i64"
    half = name in ("x", "dt", "B", "C", "z", "y", "dy", "dx", "ddt", "dz") or dtype == "fp64"
    return f"*{dtype}" if half else "*fp32"
