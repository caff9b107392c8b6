"""Every layer as a matrix: matrix times values, and out_proj, is the layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layer_table import LAYERS, D, make, sequence
from torch import Tensor

from ssmcourse import nn
from ssmcourse.attention import layer_attention
from ssmcourse.tolerance import mismatch

MORE = {
    "Mamba plain": lambda: nn.Mamba(D, d_state=4, conv_bias=False, dt_rank=3),
    "Mamba2 norm first": lambda: nn.Mamba2(D, d_state=4, headdim=4, ngroups=2, norm_before_gate=True),
    "Mamba2 no norm": lambda: nn.Mamba2(D, d_state=4, headdim=4, rmsnorm=False, D_has_hdim=True),
    "Mamba2 and MLP": lambda: nn.Mamba2(D, d_state=4, headdim=4, d_ssm=8, dt_limit=(0.01, 0.5)),
    "S4D bare": lambda: nn.S4D(D, d_state=6, bare=True),
    "LinearAttention sums": lambda: nn.LinearAttention(D, num_heads=2, normalize=False),
    "Attention conv": lambda: nn.Attention(D, num_heads=4, num_heads_kv=2, d_conv=3, head_dim=6),
    "Attention and MLP": lambda: nn.Attention(D, num_heads=2, mlp_dim=256, softmax_scale=0.3),
}
ALL = {name: build for name, build in (LAYERS | MORE).items() if name != "GatedMLP"}


def made(name: str) -> Any:
    return make(name) if name in LAYERS else made_of(MORE[name])


def made_of(build: Any) -> Any:
    torch.manual_seed(0)
    layer = build().double().eval()
    with torch.no_grad():
        for value in layer.parameters():
            value.mul_(1 + 0.1 * torch.randn_like(value)).add_(0.05 * torch.randn_like(value))
    return layer


def same(got: Tensor, expected: Tensor) -> None:
    found = mismatch(got.detach(), expected.detach(), terms=64)
    assert found is None, str(found)


def readout_input(layer: Any, x: Tensor) -> Tensor:
    """What the layer itself gives to its readout, in the channels that it mixes."""
    if not layer.readout:
        return layer(x)
    seen = []
    hook = layer.get_submodule(layer.readout).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    layer(x)
    hook.remove()
    return seen[0][..., layer.mixed]


@pytest.mark.parametrize("l", [1, 2, 9])
@pytest.mark.parametrize("name", ALL)
def test_the_matrix_rebuilds_the_layer(name: str, l: int) -> None:
    layer, x = made(name), sequence(2, l, D)
    alpha = layer_attention(layer, x)
    same(alpha.output(), readout_input(layer, x))
    assert (alpha.matrix.triu(1) == 0).all()


@pytest.mark.parametrize("name", ALL)
def test_chosen_channels(name: str) -> None:
    layer, x = made(name), sequence(2, 5, D)
    whole, some = layer_attention(layer, x), layer_attention(layer, x, channels=[3, 0])
    for all_channels, two in zip(
        (whole.matrix, whole.constant.mT, whole.values.mT),
        (some.matrix, some.constant.mT, some.values.mT),
        strict=True,
    ):
        same(two, all_channels[:, [3, 0]])


@pytest.mark.parametrize("name", ALL)
def test_nothing_included_is_the_identity(name: str) -> None:
    layer, x = made(name), sequence(2, 5, D)
    alpha = layer_attention(layer, x, include=())
    assert torch.equal(alpha.matrix, torch.eye(5, dtype=x.dtype).expand_as(alpha.matrix))
    assert not alpha.constant.any()


@pytest.mark.parametrize("part", ["D", "conv", "activation", "gate"])
def test_parts_of_mamba(part: str) -> None:
    """With one part left out, the layer of which that part is made neutral, all else as it was."""
    layer, x = made("Mamba"), sequence(1, 7, D)
    include = {"ssm", "D", "conv", "activation", "gate"} - {part}
    got = layer_attention(layer, x, include).matrix
    values, z = layer.in_proj(x).chunk(2, -1)
    u = torch.nn.functional.conv1d(values.mT, layer.conv1d.weight, layer.conv1d.bias, padding=3, groups=16)
    u = u[..., :7].mT
    dt, B, C = layer.select(u * u.sigmoid())
    dt = torch.nn.functional.softplus(dt + layer.dt_proj.bias)
    expected = torch.zeros_like(got)
    for c in range(16):
        for i in range(7):
            for j in range(i + 1):
                total = 0.0
                for n in range(4):
                    decay = torch.exp(layer.A()[c, n] * dt[0, j + 1 : i + 1, c].sum())
                    total = total + C[0, i, n] * decay * dt[0, j, c] * B[0, j, n]
                total = total + (layer.D[c] if i == j and part != "D" else 0)
                expected[0, c, i, j] = total
    if part != "activation":
        expected = expected * u.sigmoid().mT[:, :, None]
    if part != "conv":
        band = torch.zeros(16, 7, 7, dtype=x.dtype)
        for lag in range(4):
            band += torch.diag_embed(layer.conv1d.weight[:, 0, 3 - lag, None].expand(16, 7 - lag), -lag)
        expected = expected @ band
    if part != "gate":
        expected = expected * torch.nn.functional.silu(z).mT[..., None]
    same(got, expected)


def test_a_layer_without_ssm_keeps_its_skip() -> None:
    layer, x = made("Mamba2"), sequence(1, 4, D)
    M = layer_attention(layer, x, include=("D",)).matrix
    D_of_channels = layer.D.repeat_interleave(layer.headdim)
    same(M, torch.diag_embed(D_of_channels[:, None].expand(-1, 4))[None])


def test_bad_calls() -> None:
    layer, x = made("Mamba"), sequence(1, 4, D)
    with pytest.raises(ValueError, match=r"^layer: got GatedMLP, expected a layer"):
        layer_attention(make("GatedMLP"), x)
    with pytest.raises(ValueError, match=r"^layer: got Linear, expected a layer"):
        layer_attention(torch.nn.Linear(2, 2), x)
    with pytest.raises(ValueError, match=r"^include: got 'gates', expected one of ssm, D, conv"):
        layer_attention(layer, x, include=("ssm", "gates"))
    with pytest.raises(ValueError, match=r"^channels: got .*99.*, expected indices of the 16 channels"):
        layer_attention(layer, x, channels=[99])
    with pytest.raises(ValueError, match=r"^x: got shape \(1, 4, 7\)"):
        layer_attention(layer, x[..., :7])
