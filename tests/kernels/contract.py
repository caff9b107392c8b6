"""The operators, each with small valid inputs: what test_contract.py and test_bad_input.py go through.

To add one, write a function (dtype, b, l) -> named inputs and a line in OPERATORS.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from operator_table import Inputs, random
from torch import Tensor


@dataclass(frozen=True)
class Operator:
    """A public function with options, and inputs of any dtype, batch size and length for it.

    `terms` is how many rounded terms an element of a result sums at these sizes.
    """

    name: str  # "selective_scan", or with its module below ssmcourse: "attention.ssd_matrix"
    make: Callable[[torch.dtype, int, int], Inputs]
    options: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    terms: int = 64
    has_length: bool = True  # False: the inputs do not depend on l, which is an option
    second_derivatives: bool = False  # of the compiled backend

    def __str__(self) -> str:
        return self.name + (f" {self.label}" if self.label else "")

    @property
    def function(self) -> Callable[..., Any]:
        module, _, name = self.name.rpartition(".")
        home = importlib.import_module("ssmcourse" + (f".{module}" if module else ""))
        return getattr(home, name)

    def __call__(self, inputs: Inputs, **options: Any) -> tuple[Tensor, ...]:
        results = self.function(**inputs, **self.options, **options)
        return results if isinstance(results, tuple) else (results,)

    def takes_a_backend(self) -> bool:
        return "backend" in self.keywords()

    def keywords(self) -> list[str]:
        parameters = inspect.signature(self.function).parameters.values()
        return [p.name for p in parameters if p.kind == p.KEYWORD_ONLY]


def small(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return 0.5 * random(shape, dtype, seed=seed)


def complex_of(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype == torch.float64 else torch.complex64


def parameter_type(dtype: torch.dtype) -> torch.dtype:
    """Parameters and states are float32 beside half activations."""
    return torch.promote_types(dtype, torch.float32)


def linear_scan(dtype: torch.dtype, b: int, l: int) -> Inputs:
    shape = (b, l, 6)
    return {
        "a": torch.tanh(small(shape, dtype, 1)),
        "b": small(shape, dtype, 2),
        "initial_state": small((b, 6), dtype, 3),
    }


def fft_conv(dtype: torch.dtype, b: int, l: int) -> Inputs:
    return {
        "x": small((b, l, 3), dtype, 1),
        "kernel": small((3, l), parameter_type(dtype), 2),
        "D": small((3,), parameter_type(dtype), 3),
    }


def causal_conv1d(dtype: torch.dtype, b: int, l: int) -> Inputs:
    return {
        "x": small((b, l, 6), dtype, 1),
        "weight": small((6, 4), parameter_type(dtype), 2),
        "bias": small((6,), parameter_type(dtype), 3),
        "initial_state": small((b, 3, 6), dtype, 4),
    }


def selective_scan(dtype: torch.dtype, b: int, l: int) -> Inputs:
    """B in groups of one channel: for wider groups of so few channels the kernels are compiled once more."""
    d, n, wide = 6, 4, parameter_type(dtype)
    return {
        "x": small((b, l, d), dtype, 1),
        "dt": small((b, l, d), dtype, 2),
        "A": -torch.exp(small((d, n), wide, 3)),
        "B": small((b, l, d, n), dtype, 4),
        "C": small((b, l, n), dtype, 5),
        "D": small((d,), wide, 6),
        "z": small((b, l, d), dtype, 7),
        "dt_bias": small((d,), wide, 8),
        "initial_state": small((b, d, n), wide, 9),
    }


def selective_scan_complex(dtype: torch.dtype, b: int, l: int) -> Inputs:
    d, n, wide = 4, 3, complex_of(dtype)
    inputs = selective_scan(dtype, b, l)
    return {
        "x": inputs["x"][..., :d],
        "dt": inputs["dt"][..., :d],
        "A": torch.complex(
            -torch.exp(small((d, n), wide.to_real(), 3)), 3 * small((d, n), wide.to_real(), 10)
        ),
        "B": small((b, l, n), wide, 4),
        "C": small((d, n), wide, 5),
        "initial_state": small((b, d, n), wide, 9),
    }


def ssd(dtype: torch.dtype, b: int, l: int) -> Inputs:
    h, p, n, wide = 4, 3, 5, parameter_type(dtype)
    return {
        "x": small((b, l, h, p), dtype, 1),
        "dt": small((b, l, h), dtype, 2),
        "A": -torch.exp(small((h,), wide, 3)),
        "B": small((b, l, 2, n), dtype, 4),
        "C": small((b, l, 2, n), dtype, 5),
        "D": small((h, p), wide, 6),
        "z": small((b, l, h, p), dtype, 7),
        "dt_bias": small((h,), wide, 8),
        "initial_state": small((b, h, p, n), wide, 9),
    }


def s4_kernel(dtype: torch.dtype, b: int, l: int) -> Inputs:
    h, n, wide = 2, 3, complex_of(dtype)
    real = parameter_type(dtype)
    return {
        "Lambda": torch.complex(-torch.exp(small((h, n), real, 1)), 4 * small((h, n), real, 2)),
        "P": small((h, n, 1), wide, 3),
        "B": small((h, n), wide, 4),
        "C": small((h, n), wide, 5),
        "dt": torch.exp(small((h,), real, 6) - 2),
    }


def s4d_kernel(dtype: torch.dtype, b: int, l: int) -> Inputs:
    inputs = s4_kernel(dtype, b, l)
    return {"A": inputs["Lambda"], "B": inputs["B"], "C": inputs["C"], "dt": inputs["dt"]}


def gated_rms_norm(dtype: torch.dtype, b: int, l: int) -> Inputs:
    return {
        "x": small((b, l, 6), dtype, 1),
        "weight": small((6,), parameter_type(dtype), 2),
        "z": small((b, l, 6), dtype, 3),
    }


def h3_mix(dtype: torch.dtype, b: int, l: int) -> Inputs:
    d, wide = 6, parameter_type(dtype)
    return {
        "q": small((b, l, d), dtype, 1),
        "k": small((b, l, d), dtype, 2),
        "v": small((b, l, d), dtype, 3),
        "shift_kernel": small((d, 3), wide, 4),
        "ssm_kernel": small((3, l), wide, 5),
    }


def rglru_scan(dtype: torch.dtype, b: int, l: int) -> Inputs:
    d, wide = 4, parameter_type(dtype)
    return {
        "x": small((b, l, d), dtype, 1),
        "r": torch.sigmoid(small((b, l, d), dtype, 2)),
        "i": torch.sigmoid(small((b, l, d), dtype, 3)),
        "a_param": small((d,), wide, 4),
        "initial_state": small((b, d), wide, 5),
    }


def wkv4(dtype: torch.dtype, b: int, l: int) -> Inputs:
    d, wide = 4, parameter_type(dtype)
    return {
        "k": small((b, l, d), dtype, 1),
        "v": small((b, l, d), dtype, 2),
        "w": small((d,), wide, 3),
        "u": small((d,), wide, 4),
    }


def linear_attention(dtype: torch.dtype, b: int, l: int) -> Inputs:
    return {
        "q": torch.exp(small((b, l, 2, 4), dtype, 1)),
        "k": torch.exp(small((b, l, 2, 4), dtype, 2)),
        "v": small((b, l, 2, 3), dtype, 3),
    }


def selective_scan_matrix(dtype: torch.dtype, b: int, l: int) -> Inputs:
    inputs = selective_scan(dtype, b, l)
    return {name: inputs[name] for name in ("A", "B", "C", "D")} | {"dt": torch.exp(inputs["dt"])}


def ssd_matrix(dtype: torch.dtype, b: int, l: int) -> Inputs:
    inputs = ssd(dtype, b, l)
    return {name: inputs[name] for name in ("A", "B", "C")} | {"dt": torch.exp(inputs["dt"])}


STATE = {"return_final_state": True}
OPERATORS = [
    Operator("linear_scan", linear_scan, second_derivatives=True),
    Operator("linear_scan", linear_scan, {"reverse": True}, "reverse", second_derivatives=True),
    Operator("fft_conv", fft_conv),
    Operator("causal_conv1d", causal_conv1d, STATE | {"activation": "silu"}),
    Operator("selective_scan", selective_scan, STATE | {"dt_softplus": True}),
    Operator("selective_scan", selective_scan, STATE | {"dt_softplus": True, "b_disc": "zoh"}, "zoh"),
    Operator(
        "selective_scan", selective_scan_complex, STATE | {"dt_softplus": True, "b_disc": "zoh"}, "complex"
    ),
    Operator("ssd", ssd, STATE | {"dt_softplus": True, "chunk_size": 4}),
    Operator("s4_kernel", s4_kernel, {"l": 8, "half_modes": True}, has_length=False),
    Operator("s4d_kernel", s4d_kernel, {"l": 9}, has_length=False),
    Operator("s4d_kernel", s4d_kernel, {"l": 9, "method": "bilinear"}, "bilinear", has_length=False),
    Operator("gated_rms_norm", gated_rms_norm, {"group_size": 3}),
    Operator("h3_mix", h3_mix, {"head_dim": 2}),
    Operator("rglru_scan", rglru_scan, STATE),
    Operator("wkv4", wkv4, STATE),
    Operator("linear_attention", linear_attention),
    Operator("attention.selective_scan_matrix", selective_scan_matrix),
    Operator("attention.ssd_matrix", ssd_matrix),
]


def every_operator(condition: Callable[[Operator], bool] = lambda op: True) -> pytest.MarkDecorator:
    """Parametrize a test over the operators that meet a condition."""
    chosen = [op for op in OPERATORS if condition(op)]
    return pytest.mark.parametrize("op", chosen, ids=str)
