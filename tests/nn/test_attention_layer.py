"""Attention against softmax of an explicit matrix, with rotations as complex numbers."""

from __future__ import annotations

import cmath
import itertools
import math

import pytest
import torch
from layer_table import sequence
from scrambled import agrees, check
from torch import Tensor

from ssmcourse.nn import Attention

OPTIONS = {
    "plain": {},
    "groups": {"num_heads_kv": 2},
    "one group": {"num_heads_kv": 1},
    "head_dim": {"num_heads": 3, "head_dim": 6},
    "no bias": {"qkv_proj_bias": False, "out_proj_bias": False},
    "scale": {"softmax_scale": 0.1},
    "conv": {"d_conv": 3},
    "conv of one step": {"d_conv": 1},
    "mlp": {"mlp_dim": 100},
    "rotary": {"num_heads": 2, "rotary_emb_dim": 4},
    "rotary in part": {"num_heads": 1, "rotary_emb_dim": 6, "rotary_emb_base": 50.0},
    "interleaved": {"num_heads": 1, "rotary_emb_dim": 6, "rotary_emb_interleaved": True},
    "all": {
        "num_heads": 4,
        "num_heads_kv": 2,
        "head_dim": 6,
        "d_conv": 4,
        "mlp_dim": 10,
        "rotary_emb_dim": 4,
        "softmax_scale": 0.3,
    },
}


def make(num_heads: int = 4, **options) -> Attention:
    torch.manual_seed(0)
    layer = Attention(8, num_heads, **options).double()
    with torch.no_grad():
        for value in layer.parameters():
            value.add_(0.2 * torch.randn_like(value))
    return layer


def turned(heads: Tensor, layer: Attention) -> Tensor:
    """(l, h, p): pair j of a head, as a complex number, times exp(i t base^(-2j/r)) at token t."""
    r = layer.rotary_emb_dim
    out = heads.clone()
    for t, j in itertools.product(range(len(heads)), range(r // 2)):
        real, imaginary = (2 * j, 2 * j + 1) if layer.rotary_emb_interleaved else (j, j + r // 2)
        z = torch.complex(heads[t, :, real], heads[t, :, imaginary])
        z = z * cmath.exp(1j * t * layer.rotary_emb_base ** (-2 * j / r))
        out[t, :, real], out[t, :, imaginary] = z.real, z.imag
    return out


def oracle(layer: Attention, x: Tensor) -> Tensor:
    """(l, d): the whole layer, head by head."""
    w = layer.state_dict()
    h, g, p, m = layer.num_heads, layer.num_heads_kv, layer.head_dim, layer.mlp_dim
    projected = x @ w["in_proj.weight"].T + w.get("in_proj.bias", 0)
    qkv, up, gate = projected.split([(h + 2 * g) * p, m // 2, m // 2], 1)
    if layer.d_conv:
        taps = w["conv1d.weight"][:, 0]
        lags = [torch.cat([torch.zeros_like(qkv)[:s], qkv])[: len(qkv)] for s in range(layer.d_conv)]
        qkv = sum(taps[:, -1 - s] * lag for s, lag in enumerate(lags)) + w["conv1d.bias"]
    q, k, v = (part.unflatten(1, (-1, p)) for part in qkv.split([h * p, g * p, g * p], 1))
    q, k = turned(q, layer), turned(k, layer)
    scale = layer.softmax_scale or p**-0.5
    heads = []
    for i in range(h):
        scores = scale * q[:, i] @ k[:, i // (h // g)].T
        below = torch.ones_like(scores).tril()
        weights = scores.exp() * below
        heads.append((weights / weights.sum(1, keepdim=True)) @ v[:, i // (h // g)])
    y = torch.cat([*heads, up * gate * torch.sigmoid(gate)], 1)
    return y @ w["out_proj.weight"].T + w.get("out_proj.bias", 0)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(name: str) -> None:
    layer, x = make(**OPTIONS[name]), sequence(2, 9, 8)
    y = layer(x)
    for row in range(2):
        agrees(y[row], oracle(layer, x[row]), name)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["plain", "all"])
def test_caches_padding_and_packing(name: str, seed: int) -> None:
    layer = make(**OPTIONS[name])
    check(layer, lambda x: oracle(layer, x), seed)


# --- Names and shapes -----------------------------------------------------------------------------


def shapes(layer: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in layer.state_dict().items()}


def test_the_attention_of_the_published_hybrid() -> None:
    """`mamba2attn-2.7b`: every name and shape of one of its six attention layers."""
    layer = Attention(
        2560,
        num_heads=30,
        head_dim=128,
        d_conv=4,
        rotary_emb_dim=64,
        qkv_proj_bias=False,
        out_proj_bias=False,
        device="meta",
        dtype=torch.bfloat16,
    )
    assert shapes(layer) == {
        "in_proj.weight": (11520, 2560),
        "conv1d.weight": (11520, 1, 4),
        "conv1d.bias": (11520,),
        "out_proj.weight": (2560, 3840),
    }
    assert {value.dtype for value in layer.parameters()} == {torch.bfloat16}


def test_groups_and_an_mlp_beside() -> None:
    """The MLP's width is rounded up to 512: two halves of 256 go in, one comes out."""
    assert shapes(Attention(8, 4, 2, mlp_dim=300, device="meta")) == {
        "in_proj.weight": (8 + 8 + 512, 8),
        "in_proj.bias": (8 + 8 + 512,),
        "out_proj.weight": (8, 8 + 256),
        "out_proj.bias": (8,),
    }


# --- Rotation -------------------------------------------------------------------------------------


def test_angles_have_their_digits_at_a_million_tokens() -> None:
    """In float32 an angle of 10^6 is off by up to 0.03."""
    layer = Attention(8, 1, rotary_emb_dim=8)
    cos, sin = layer._turns(torch.tensor([999_999]), torch.float32)
    angles = [999_999 * 10000.0 ** (-j / 4) for j in range(4)]
    agrees(cos.flatten(), torch.tensor([math.cos(a) for a in angles]), "cos")
    agrees(sin.flatten(), torch.tensor([math.sin(a) for a in angles]), "sin")


def test_only_distances_count() -> None:
    """Turned alike by their positions, two tokens weigh each other the same wherever they stand."""
    layer = make(num_heads=1, rotary_emb_dim=8)
    q, k = sequence(2, 1, 1, 1, 8)

    def product(at: int, to: int) -> Tensor:
        a, b = (
            layer._turned(part, *layer._turns(torch.tensor([t]), torch.float64))
            for part, t in ((q, at), (k, to))
        )
        return (a * b).sum()

    for shift in (5, 1000):
        agrees(product(7 + shift, 3 + shift), product(7, 3), f"shift {shift}")
    assert (product(7, 4) - product(7, 3)).abs() > 1e-3


# --- The cache ------------------------------------------------------------------------------------


def test_the_room_of_a_cache_doubles_and_is_written_in_place() -> None:
    layer, x = make(rotary_emb_dim=2), sequence(2, 100, 8)
    cache, rooms, copies = layer.allocate_cache(2), [], 0
    with torch.no_grad():
        for x_t in x.unbind(1):
            before = cache["k"].data_ptr()
            _, cache = layer.step(x_t, cache)
            rooms.append(cache["k"].shape[1])
            copies += cache["k"].data_ptr() != before
    assert sorted(set(rooms)) == [16, 32, 64, 128]
    assert copies == 4
    assert cache["length"].tolist() == [100, 100]


def test_a_prompt_in_inference_mode_then_steps_outside() -> None:
    layer, x = make(d_conv=3), sequence(2, 7, 8)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[0, 4:] = mask[1, 3:] = False  # there is room for a step in both rows
    with torch.inference_mode():
        _, cache = layer(x[:, :5], mask=mask, return_cache=True)
    with torch.no_grad():
        y, _ = layer.step(x[:, 5], cache)
    agrees(y[1], oracle(layer, torch.cat([x[1, :3], x[1, 5:6]]))[-1], "row 1")


def test_a_step_leaves_an_earlier_graph_alone() -> None:
    """The cache of a call that autograd recorded is not written into."""
    layer, x = make(rotary_emb_dim=2), sequence(2, 6, 8)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[:, 4:] = False  # there is room for a step
    y, cache = layer(x, mask=mask, return_cache=True)
    with torch.no_grad():
        layer.step(x[:, 0], cache)
    y[:, :4].sum().backward()


def test_rows_of_a_cache_can_be_picked() -> None:
    layer, x = make(d_conv=3, rotary_emb_dim=2), sequence(3, 6, 8)
    _, cache = layer(x[:, :5], return_cache=True)
    picked = [2, 2, 0]
    y, _ = layer.step(x[picked, 5], {name: value[picked] for name, value in cache.items()})
    for row, of in enumerate(picked):
        agrees(y[row], oracle(layer, x[of])[-1], f"row {row}")


def test_the_dtype_of_a_cache() -> None:
    layer = Attention(8, 2, d_conv=3)
    cache = layer.allocate_cache(2, torch.bfloat16)
    assert {name: value.dtype for name, value in cache.items()} == {
        "k": torch.bfloat16,
        "v": torch.bfloat16,
        "length": torch.int64,
        "conv": torch.bfloat16,
    }
    assert layer.allocate_cache(2)["k"].dtype == torch.float32


# --- Arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"d_model": 0}, "d_model: got 0, expected an integer of 1 or more"),
        ({"num_heads": 3}, "num_heads: got 3, expected a number that divides d_model 8"),
        ({"num_heads": 0}, "num_heads: got 0, expected an integer of 1 or more"),
        ({"num_heads": 2.0}, "num_heads: got 2.0, expected an integer"),
        ({"num_heads_kv": 3}, "num_heads_kv: got 3, expected a number that divides num_heads 4"),
        ({"head_dim": 0}, "head_dim: got 0, expected an integer of 1 or more"),
        ({"mlp_dim": -1}, "mlp_dim: got -1, expected an integer of 0 or more"),
        ({"d_conv": -1}, "d_conv: got -1, expected an integer of 0 or more"),
        ({"rotary_emb_dim": 1}, "rotary_emb_dim: got 1, expected an even number of 0 to head_dim 2"),
        ({"rotary_emb_dim": 4}, "rotary_emb_dim: got 4, expected an even number of 0 to head_dim 2"),
        ({"rotary_emb_base": 0.0}, "rotary_emb_base: got 0.0, expected a finite number above 0"),
        ({"softmax_scale": math.nan}, "softmax_scale: got nan, expected a finite number above 0"),
        ({"softmax_scale": 0}, "softmax_scale: got 0, expected a finite number above 0"),
    ],
)
def test_one_clear_line(options: dict, line: str) -> None:
    with pytest.raises(ValueError, match=f"^{line}"):
        Attention(**{"d_model": 8, "num_heads": 4} | options)
