"""The RG-LRU and Griffin's block against the paper's equations in a loop, and against `transformers`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from layer_table import sequence
from scrambled import agrees, check
from torch import Tensor

from ssmcourse.nn import RGLRU, GriffinBlock


def moved(layer: Any) -> Any:
    """In float64, its zeros and its symmetries gone."""
    layer = layer.double()
    with torch.no_grad():
        for value in layer.parameters():
            value.add_(0.3 * torch.randn_like(value))
    return layer


def rglru(num_heads: int = 2, c: float = 8.0) -> RGLRU:
    torch.manual_seed(0)
    return moved(RGLRU(8, num_heads, c))


def block(**options) -> GriffinBlock:
    torch.manual_seed(0)
    return moved(GriffinBlock(8, num_heads=2, **options))


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def rglru_oracle(w: dict[str, Tensor], x: Tensor, c: float = 8.0) -> Tensor:
    """(l, d): equations 1 to 4, the gates' matrices written out whole."""
    a_gate, x_gate = (torch.block_diag(*w[f"{name}_gate_weight"]) for name in ("recurrent", "input"))
    h, states = torch.zeros_like(x[0]), []
    for t, token in enumerate(x):
        r = sigmoid(token @ a_gate + w["recurrent_gate_bias"].flatten())
        i = sigmoid(token @ x_gate + w["input_gate_bias"].flatten())
        a = (1 + torch.exp(w["recurrent_param"])) ** (-c * r)
        h = a * h + (torch.sqrt(1 - a**2) if t else 1) * i * token
        states.append(h)
    return torch.stack(states)


def block_oracle(layer: GriffinBlock, x: Tensor) -> Tensor:
    w = layer.state_dict()
    branch = x @ w["linear_x.weight"].T + w["linear_x.bias"]
    taps, out = w["conv_1d.weight"][:, 0], torch.zeros_like(branch) + w["conv_1d.bias"]
    for t in range(len(x)):
        for lag in range(min(t + 1, taps.shape[1])):
            out[t] += taps[:, -1 - lag] * branch[t - lag]
    h = rglru_oracle({name.removeprefix("rg_lru."): value for name, value in w.items()}, out)
    y = x @ w["linear_y.weight"].T + w["linear_y.bias"]
    gate = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
    return (gate * h) @ w["linear_out.weight"].T + w["linear_out.bias"]


# --- Against the equations ------------------------------------------------------------------------


@pytest.mark.parametrize(("num_heads", "c"), [(1, 8.0), (2, 8.0), (8, 8.0), (4, 2.5)])
def test_the_rglru(num_heads: int, c: float) -> None:
    layer, x = rglru(num_heads, c), sequence(2, 9, 8)
    for row in range(2):
        agrees(layer(x)[row], rglru_oracle(layer.state_dict(), x[row], c), "y")


@pytest.mark.parametrize("options", [{}, {"lru_width": 12}, {"d_conv": 2}, {"d_conv": 1}], ids=str)
def test_the_block(options: dict) -> None:
    layer, x = block(**options), sequence(2, 9, 8)
    for row in range(2):
        agrees(layer(x)[row], block_oracle(layer, x[row]), "y")


@pytest.mark.parametrize("seed", range(4))
def test_caches_padding_and_packing(seed: int) -> None:
    """Rows that had tokens beside rows that had none: only the latter's first is not scaled."""
    layer, whole = rglru(), block()
    check(layer, lambda x: rglru_oracle(layer.state_dict(), x), seed)
    check(whole, lambda x: block_oracle(whole, x), seed)


def test_a_first_token_of_zeros_is_a_token() -> None:
    """The state after it is that of an empty cache, and yet what follows is scaled."""
    layer, x = rglru(), sequence(1, 2, 8)
    x[:, 0] = 0
    _, cache = layer.step(x[:, 0], layer.allocate_cache(1))
    y, _ = layer.step(x[:, 1], cache)
    agrees(y, rglru_oracle(layer.state_dict(), x[0])[1:], "y")


def test_the_state_is_wide() -> None:
    layer = GriffinBlock(8, dtype=torch.bfloat16)
    _, cache = layer(sequence(2, 5, 8, dtype=torch.bfloat16), return_cache=True)
    for given in (cache, layer.allocate_cache(2)):
        assert given["state"].dtype == torch.float32
        assert given["conv"].dtype == torch.bfloat16


# --- Initialisation -------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [8.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_slowest_decay_is_uniform(c: float, dtype: torch.dtype) -> None:
    """Section 2.4: a^c in [0.9, 0.999]. Its quarters hold a quarter of 4000 channels each, give or take 4 sigma."""
    torch.manual_seed(0)
    param = RGLRU(4000, 4000, c, dtype=dtype).recurrent_param.double()
    decay = (1 + param.exp()) ** -c
    slack = 1e-6 if dtype == torch.float32 else 0.002
    assert 0.9 - slack < decay.min() < 0.901
    assert 0.998 < decay.max() < 0.999 + slack
    counts = torch.histc(decay, 4, 0.9, 0.999)
    assert (counts - 1000).abs().max() < 4 * math.sqrt(4000 * 0.25 * 0.75)


def test_weights_are_normal_and_biases_are_zero() -> None:
    torch.manual_seed(0)
    layer = GriffinBlock(256, 512, num_heads=4)
    expected = {
        "linear_x": 256**-0.5,
        "linear_y": 256**-0.5,
        "linear_out": 512**-0.5,
        "conv_1d": 0.05,
        "rg_lru.input_gate_": 128**-0.5,
        "rg_lru.recurrent_gate_": 128**-0.5,
    }
    for name, std in expected.items():
        end = "" if name.endswith("_") else "."
        weight = layer.get_parameter(f"{name}{end}weight")
        assert weight.std().item() == pytest.approx(std, rel=0.05), name
        assert not layer.get_parameter(f"{name}{end}bias").any(), name


def test_the_seed_decides() -> None:
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(RGLRU(8).recurrent_param)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


# --- Beside the published code --------------------------------------------------------------------


@pytest.mark.slow  # its import
def test_the_block_of_transformers() -> None:
    """The same weights under the same names. Its state is float32, so more is not asked of it."""
    config = pytest.importorskip("transformers").RecurrentGemmaConfig(
        hidden_size=8, lru_width=12, num_attention_heads=2, num_hidden_layers=1, vocab_size=10
    )
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRecurrentBlock

    theirs = RecurrentGemmaRecurrentBlock(config, layer_idx=0)
    ours = block(lru_width=12).float()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = sequence(2, 9, 8, dtype=torch.float32)
    y, _ = theirs(x, torch.arange(9).expand(2, -1), None, use_cache=False)
    agrees(ours(x), y, "y")


def test_names_of_parameters() -> None:
    layer = GriffinBlock(8, 12, num_heads=3, device="meta")
    assert {name: tuple(value.shape) for name, value in layer.rg_lru.state_dict().items()} == {
        "recurrent_param": (12,),
        "input_gate_weight": (3, 4, 4),
        "input_gate_bias": (3, 4),
        "recurrent_gate_weight": (3, 4, 4),
        "recurrent_gate_bias": (3, 4),
    }
    assert layer.conv_1d.weight.shape == (12, 1, 4)


@pytest.mark.parametrize(
    ("layer", "options", "line"),
    [
        (RGLRU, {"d_model": 0}, "d_model: got 0, expected an integer of 1 or more"),
        (RGLRU, {"num_heads": 3}, "num_heads: got 3, expected a number that divides d_model 8"),
        (RGLRU, {"num_heads": 0}, "num_heads: got 0, expected an integer of 1 or more"),
        (RGLRU, {"c": 0}, "c: got 0, expected a finite number above 0"),
        (GriffinBlock, {"d_model": -8}, "d_model: got -8, expected an integer of 1 or more"),
        (GriffinBlock, {"lru_width": 0}, "lru_width: got 0, expected an integer of 1 or more"),
        (GriffinBlock, {"d_conv": 0}, "d_conv: got 0, expected an integer of 1 or more"),
        (GriffinBlock, {"lru_width": 9, "num_heads": 2}, "num_heads: got 2, .* divides lru_width 9"),
        (GriffinBlock, {"c": math.inf}, "c: got inf, expected a finite number above 0"),
    ],
)
def test_one_clear_line(layer: Any, options: dict, line: str) -> None:
    with pytest.raises(ValueError, match=f"^{line}"):
        layer(**{"d_model": 8} | options)
