"""Mamba-2 against the paper's equations token by token in float64, against `transformers`, and at its beginning."""

from __future__ import annotations

import math

import pytest
import torch
from layer_table import sequence
from torch import Tensor

from ssmcourse import nn
from ssmcourse.kernels import plain
from ssmcourse.tolerance import mismatch

BASE = {"d_state": 5, "headdim": 4}
OPTIONS = [
    {},
    {"ngroups": 2, "d_conv": 2, "bias": True},
    {"d_ssm": 12, "ngroups": 3, "conv_bias": False},
    {"D_has_hdim": True, "norm_before_gate": True, "d_conv": 1},
    {"rmsnorm": False, "dt_limit": (0.02, 0.05), "expand": 1},
    {"rmsnorm": False, "d_ssm": 4, "D_has_hdim": True},
]


def silu(v: Tensor) -> Tensor:
    return v / (1 + (-v).exp())


def by_paper(layer: nn.Mamba2, x: Tensor, options: dict) -> Tensor:
    """Dao & Gu 2024, section 7.1 and eq. 1, one token and one head after another. x: (l, d_model), float64."""
    q = {name: value.detach().double() for name, value in layer.state_dict().items()}
    p, n, g, w = 4, 5, options.get("ngroups", 1), options.get("d_conv", 4)
    d = options.get("d_ssm", layer.d_inner)
    heads, mlp = d // p, layer.d_inner - d
    low, high = options.get("dt_limit", (0.0, math.inf))
    h, inputs, ys = torch.zeros(heads, p, n, dtype=torch.float64), [], []
    for u in x:
        part = (q["in_proj.weight"] @ u + q.get("in_proj.bias", 0)).split([mlp, mlp, d, d + 2 * g * n, heads])
        inputs.append(part[3])
        v = torch.zeros_like(part[3]) + q.get("conv1d.bias", 0)
        for lag in range(min(w, len(inputs))):
            v = v + q["conv1d.weight"][:, 0, w - 1 - lag] * inputs[-1 - lag]
        v = silu(v)
        B, C = v[d : d + g * n].view(g, n), v[d + g * n :].view(g, n)
        delta = (1 + (part[4] + q["dt_bias"]).exp()).log().clamp(low, high)
        y = []
        for i in range(heads):
            x_i, group = v[i * p : i * p + p], i // (heads // g)
            h[i] = (-delta[i] * q["A_log"][i].exp()).exp() * h[i] + delta[i] * torch.outer(x_i, B[group])
            D = q["D"].view(heads, p)[i] if options.get("D_has_hdim") else q["D"][i]
            y.append(h[i] @ C[group] + D * x_i)
        y, gate = torch.cat(y), silu(part[2])
        if options.get("rmsnorm", True):
            first = options.get("norm_before_gate", False)
            y = y if first else y * gate
            y = torch.cat([s / (s.square().mean() + 1e-5).sqrt() for s in y.split(d // g)])
            y = y * q["norm.weight"] * (gate if first else 1)
        else:
            y = y * gate
        ys.append(q["out_proj.weight"] @ torch.cat([silu(part[0]) * part[1], y]) + q.get("out_proj.bias", 0))
    return torch.stack(ys)


def moved(layer: nn.Mamba2) -> nn.Mamba2:
    """Every parameter away from where it starts."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in layer.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return layer


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_papers_equations(options, dtype):
    layer = moved(nn.Mamba2(12, **BASE | options)).to(dtype)
    x = sequence(2, 7, 12, dtype=dtype)
    expected = torch.stack([by_paper(layer, row.double(), options) for row in x])
    assert mismatch(layer(x), expected, terms=64) is None
    with torch.inference_mode():
        for few in (True, False):  # rows: in one compiled call, and in torch's operations
            rows = x if few else x.repeat(plain.FEW, 1, 1)
            cache, ys = layer.allocate_cache(len(rows)), []
            for x_t in rows.unbind(1):
                y, cache = layer.step(x_t, cache)
                ys.append(y)
            assert mismatch(torch.stack(ys, 1)[:2], expected, terms=64) is None


def test_one_compiled_call_a_token_and_only_where_it_may_be(monkeypatch):
    from ssmcourse.kernels.layer_step import cpu

    calls, mamba2 = [], cpu.mamba2
    monkeypatch.setattr(cpu, "mamba2", lambda *given: calls.append(1) or mamba2(*given))
    layer, x = moved(nn.Mamba2(12, **BASE)), sequence(2, 12, dtype=torch.float32)
    y, _ = layer.step(x, layer.allocate_cache(2))
    y.sum().backward()
    assert layer.A_log.grad is not None
    assert not calls  # a gradient was wanted
    with torch.no_grad():
        again, _ = layer.step(x, layer.allocate_cache(2))
    assert len(calls) == 1
    assert mismatch(again, y.detach(), terms=64) is None


@pytest.mark.parametrize("options", [{}, {"bias": True, "dt_limit": (0.02, 0.05)}], ids=str)
def test_transformers(options):
    modeling = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
    from transformers import Mamba2Config

    layer = moved(nn.Mamba2(12, **BASE | options))
    config = Mamba2Config(
        hidden_size=12, state_size=5, head_dim=4, num_heads=layer.nheads, n_groups=1, num_hidden_layers=1, expand=2,
        use_bias=options.get("bias", False), time_step_limit=options.get("dt_limit", (0.0, math.inf)), chunk_size=4,
    )  # fmt: skip
    other = modeling.Mamba2Mixer(config, layer_idx=0)
    other.load_state_dict(layer.state_dict(), strict=True)
    x = sequence(2, 9, 12, dtype=torch.float32)
    assert mismatch(layer(x).detach(), other(x).detach(), terms=64) is None


def test_a_cache_is_written_into_but_no_gradient_is_wrong_for_it():
    layer, x = moved(nn.Mamba2(12, **BASE)), sequence(2, 4, 12, dtype=torch.float32)
    with torch.no_grad():
        _, cache = layer(x, return_cache=True)
        rows = {
            name: torch.stack([value, value], -1)[..., 0] for name, value in cache.items()
        }  # not in one piece
        kept = {name: value.clone() for name, value in cache.items()}
        y, after = layer.step(x[:, 0], cache)
        z, others = layer.step(x[:, 0], rows)
    assert after["ssm"] is cache["ssm"]
    assert all(torch.equal(rows[name], kept[name]) for name in rows)
    assert not torch.equal(cache["ssm"], kept["ssm"])
    assert all(torch.equal(others[name], after[name]) for name in after)
    assert torch.equal(y, z)
    y, cache = layer(x, return_cache=True)
    loss = y.sum() + sum(value.square().sum() for value in cache.values())
    with torch.no_grad():
        layer.step(x[:, 0], cache)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


def test_published_names_and_shapes():
    shapes = {
        name: tuple(value.shape) for name, value in nn.Mamba2(64, d_state=16, ngroups=2).state_dict().items()
    }
    assert shapes == {
        "dt_bias": (2,), "A_log": (2,), "D": (2,), "in_proj.weight": (128 + 128 + 64 + 2, 64),
        "conv1d.weight": (192, 1, 4), "conv1d.bias": (192,), "norm.weight": (128,), "out_proj.weight": (64, 128),
    }  # fmt: skip
    names = nn.Mamba2(64, d_ssm=64, D_has_hdim=True, rmsnorm=False, conv_bias=False, bias=True).state_dict()
    assert {name: tuple(value.shape) for name, value in names.items()} == {
        "dt_bias": (1,), "A_log": (1,), "D": (64,), "in_proj.weight": (256 + 256 + 1, 64), "in_proj.bias": (513,),
        "conv1d.weight": (320, 1, 4), "out_proj.weight": (64, 128), "out_proj.bias": (64,),
    }  # fmt: skip


def test_at_the_beginning():
    torch.manual_seed(0)
    layer = nn.Mamba2(256, headdim=1, A_init_range=(2, 5), dt_min=0.01, dt_max=0.2, conv_init=0.02)
    assert -5 <= layer.A().min() < -4.9
    assert -2.1 < layer.A().max() <= -2
    assert abs(float(layer.A().detach().mean()) + 3.5) < 0.15  # uniform
    dt = torch.nn.functional.softplus(layer.dt_bias.detach().double())
    assert 0.01 - 1e-6 <= dt.min() < 0.011 < 0.19 < dt.max() <= 0.2 + 1e-6
    assert abs(float(dt.log().mean()) - math.log(0.01 * 0.2) / 2) < 0.15  # log-uniform
    assert torch.equal(layer.D, torch.ones(512))
    assert 0.019 < layer.conv1d.weight.abs().max() <= 0.02
    assert layer.norm.group_size == 512
    assert nn.Mamba2(64, ngroups=2).norm.group_size == 64


def test_the_generator_decides_and_dtypes_are_as_published():
    layers = []
    for _ in range(2):
        torch.manual_seed(5)
        layers.append(nn.Mamba2(12, **BASE, dtype=torch.bfloat16))
    one, two = (layer.state_dict() for layer in layers)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert {name for name, value in one.items() if value.dtype == torch.float32} == {"D"}
    assert nn.Mamba2(12, **BASE, device="meta").in_proj.weight.is_meta


def test_caches():
    layer = nn.Mamba2(12, **BASE, ngroups=2, dtype=torch.bfloat16)
    cache = layer.allocate_cache(3)
    assert {name: (tuple(v.shape), v.dtype) for name, v in cache.items()} == {
        "conv": ((3, 3, 44), torch.bfloat16),
        "ssm": ((3, 6, 4, 5), torch.float32),
    }
    with pytest.raises(
        ValueError, match=r"^cache: got one with conv \(3, 3, 16\), ssm .*, expected conv \(3, 3, 44\)"
    ):
        layer.step(sequence(3, 12, dtype=torch.bfloat16), nn.Mamba(8).allocate_cache(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 0}, "d_model: got 0, expected an integer of 1 or more"),
        ({"headdim": 5}, "headdim: got 5, expected a number that divides the 24 inner channels"),
        ({"d_ssm": 6}, "d_ssm: got 6, expected a multiple of headdim 4, 24 (the inner channels) at most"),
        ({"d_ssm": 28}, "d_ssm: got 28, expected a multiple of headdim 4, 24 (the inner channels) at most"),
        ({"ngroups": 4}, "ngroups: got 4, expected a number that divides 6 heads"),
        ({"A_init_range": (0, 1)}, "A_init_range: got (0, 1), expected (low, high) with 0 < low <= high"),
        ({"dt_limit": (1, 0)}, "dt_limit: got (1, 0), expected (low, high) with low <= high"),
        ({"dt_limit": 1}, "dt_limit: got 1, expected (low, high) with low <= high"),
        ({"conv_init": "x"}, "conv_init: got 'x', expected a finite number of 0 or more"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError) as caught:
        nn.Mamba2(**{"d_model": 12} | BASE | options)
    assert str(caught.value) == message
