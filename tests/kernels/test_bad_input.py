"""Anything handed to an operator gives the right answer or one clear ValueError: never a crash, never silence.

Hypothesis takes valid inputs, damages some of them, and looks at what happens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from contract import Operator, every_operator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssmcourse.tolerance import mismatch

Damage = Callable[[Tensor], Any]

# What makes an argument wrong. Some of them are right for some arguments (a group of another size, say).
WRONG: dict[str, Damage] = {
    "one dimension less": lambda t: t[0] if t.ndim and len(t) else t.new_zeros(()),
    "one dimension more": lambda t: t[None],
    "one longer at the end": lambda t: torch.cat([t, t[..., :1]], -1) if t.ndim and t.shape[-1] else t[None],
    "one longer at the front": lambda t: torch.cat([t, t[:1]]) if t.ndim and len(t) else t[None],
    "one shorter at the end": lambda t: t[..., :-1] if t.ndim else t[None],
    "one shorter at the front": lambda t: t[:-1] if t.ndim else t[None],
    "empty": lambda t: t[..., :0] if t.ndim else t[None][:0],
    "a size of 1": lambda t: t[..., :1] if t.ndim else t[None],
    "transposed": lambda t: t.mT.contiguous() if t.ndim > 1 else t[None],
    "integers": lambda t: t.real.to(torch.int64) if t.is_complex() else t.to(torch.int64),
    "booleans": lambda t: t.abs() > 0,
    "float64": lambda t: t.to(torch.float64) if not t.is_complex() else t.to(torch.complex128),
    "half": lambda t: t.real.to(torch.float16) if t.is_complex() else t.to(torch.float16),
    "complex": lambda t: t.to(torch.complex64) + 0j,
    "another device": lambda t: t.to("meta"),
    "sparse": lambda t: t.real.to_sparse() if t.is_complex() else t.to_sparse(),
    "a number": lambda t: 1.0,
    "a list": lambda t: t.tolist(),
    "an array": lambda t: t.numpy(),
    "None": lambda t: None,
    "a string": lambda t: "x",
}
# What leaves an argument right, however it lies in memory and whatever it holds.
RIGHT: dict[str, Damage] = {
    "as it is": lambda t: t,
    "every second of a buffer": lambda t: torch.stack([t, torch.full_like(t, torch.nan)], -1)[..., 0],
    "turned round twice": lambda t: t.flip(0).flip(0) if t.ndim else t,
    "from negative strides": lambda t: torch.from_numpy(t.flip(0).numpy()[::-1].copy()) if t.ndim else t,
    "transposed in memory": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1) if t.ndim else t,
    "a parameter": lambda t: torch.nn.Parameter(t),
    "huge": lambda t: t * 1e12,
    "tiny": lambda t: t * 1e-12,
}
OPTIONS: dict[str, list[Any]] = {
    "backend": ["auto", "cpu", "reference", "gpu", "", 3, None],
    "activation": [None, "silu", "relu", 1],
    "b_disc": ["euler", "zoh", "bilinear", None],
    "method": ["zoh", "bilinear", "mamba", 0],
    "chunk_size": [1, 3, 64, 10**9, 0, -1, 2.5, "64", None],
    "dt_limit": [(0.0, float("inf")), (0.1, 0.2), (1.0, 0.5), (0.1,), 3.0, None, ("a", "b")],
    "head_dim": [1, 2, 0, -2, 5, 1.5, None],
    "l": [1, 2, 7, 8, 0, -1, 2.5, None],
    "dt_softplus": [True, False],
    "return_final_state": [True, False],
    "reverse": [True, False],
    "half_modes": [True, False],
}


# Marks of packed sequences, for rows of length l. The last four are wrong.
SEQUENCES: list[Callable[[int], Any]] = [
    lambda l: torch.zeros(2, l, dtype=torch.int64),
    lambda l: torch.arange(l).expand(2, l),
    lambda l: torch.tensor([[5] * l, [7] * (l // 2) + [-3] * (l - l // 2)], dtype=torch.int32),
    lambda l: torch.zeros(2, l),
    lambda l: torch.zeros(2, l + 1, dtype=torch.int64),
    lambda l: torch.zeros(l, dtype=torch.int64),
    lambda l: [[0] * l] * 2,
]


@st.composite
def calls(draw: st.DrawFn, op: Operator) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments and options: valid ones, up to two of each replaced."""
    l = draw(st.sampled_from([1, 3, 5]))
    inputs: dict[str, Any] = dict(op.make(torch.float32, 2, l))
    for name in inputs:
        inputs[name] = RIGHT[draw(st.sampled_from(sorted(RIGHT)))](inputs[name])
    victims = draw(st.lists(st.sampled_from(sorted(inputs)), max_size=2, unique=True))
    for name in victims:
        kind = draw(st.sampled_from(sorted(WRONG)))
        inputs[name] = WRONG[kind](inputs[name].detach())
    options = dict(op.options)
    known = [name for name in OPTIONS if name in op.keywords()]
    for name in draw(st.lists(st.sampled_from(known), max_size=2, unique=True)) if known else []:
        options[name] = draw(st.sampled_from(OPTIONS[name]))
    if "seq_idx" in op.keywords() and draw(st.booleans()):
        options["seq_idx"] = draw(st.sampled_from(SEQUENCES))(l)
    return inputs, options


@every_operator()
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_right_answer_or_one_clear_line(op, data):
    inputs, options = data.draw(calls(op))
    message = ""
    try:
        results = op.function(**inputs, **options)
    except ValueError as error:
        message = str(error)
    if message:
        assert "\n" not in message, message
        assert message.split(":")[0] in {*inputs, *options}, f"the line names no argument: {message}"
        assert "got" in message, message
        assert "expected" in message or message.startswith("backend"), message
        return
    results = results if isinstance(results, tuple) else (results,)
    wide = {n: _in_float64(t) for n, t in inputs.items()}
    reference = options | ({"backend": "reference"} if op.takes_a_backend() else {})
    expected = op.function(**wide, **reference)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for got, want in zip(results, expected, strict=True):
        assert got.shape == want.shape
        if (
            want.numel() and want.abs().max() < 1e30 and got.isfinite().all()
        ):  # an overflow shows: it is not silent
            problem = mismatch(got.detach(), want.detach(), terms=4096)
            assert problem is None, str(problem)


def _in_float64(value: Any) -> Any:
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return value
    return value.detach().contiguous().to(torch.complex128 if value.is_complex() else torch.float64)
