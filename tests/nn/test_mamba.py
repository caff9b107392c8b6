"""Mamba against the paper's equations token by token in float64, against `transformers`, and at its beginning."""

from __future__ import annotations

import math

import pytest
import torch
from layer_table import sequence
from torch import Tensor

from ssmcourse import nn
from ssmcourse.kernels import plain
from ssmcourse.tolerance import mismatch


def silu(v: Tensor) -> Tensor:
    return v / (1 + (-v).exp())


def by_paper(layer: nn.Mamba, x: Tensor) -> Tensor:
    """Gu & Dao 2023, algorithm 2 and figure 3, one token after another. x: (l, d_model), float64."""
    p = {name: value.detach().double() for name, value in layer.state_dict().items()}
    d, n = p["A_log"].shape
    r, A, h, inputs, ys = layer.dt_rank, -p["A_log"].exp(), torch.zeros(d, n, dtype=torch.float64), [], []
    for u in x:
        xz = p["in_proj.weight"] @ u + p.get("in_proj.bias", 0)
        inputs.append(xz[:d])
        v, z = torch.zeros(d, dtype=torch.float64) + p.get("conv1d.bias", 0), xz[d:]
        for lag in range(min(layer.d_conv, len(inputs))):
            v = v + p["conv1d.weight"][:, 0, layer.d_conv - 1 - lag] * inputs[-1 - lag]
        v = silu(v)
        s = p["x_proj.weight"] @ v
        raw = p["dt_proj.weight"] @ s[:r] + p["dt_proj.bias"]
        delta = (1 + raw.exp()).log()
        B, C = s[r : r + n], s[r + n :]
        h = (delta[:, None] * A).exp() * h + delta[:, None] * B * v[:, None]
        y = (h @ C + p["D"] * v) * silu(z)
        ys.append(p["out_proj.weight"] @ y + p.get("out_proj.bias", 0))
    return torch.stack(ys)


def moved(layer: nn.Mamba) -> nn.Mamba:
    """Every parameter away from where it starts."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in layer.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return layer


OPTIONS = [
    {},
    {"d_state": 3, "d_conv": 1, "expand": 1.5, "dt_rank": 5, "bias": True},
    {"d_state": 1, "d_conv": 3, "conv_bias": False, "dt_rank": 1},
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_papers_equations(options, dtype):
    layer = moved(nn.Mamba(8, **options)).to(dtype)
    x = sequence(2, 7, 8, dtype=dtype)
    expected = torch.stack([by_paper(layer, row.double()) for row in x])
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

    calls, mamba = [], cpu.mamba
    monkeypatch.setattr(cpu, "mamba", lambda *given: calls.append(1) or mamba(*given))
    layer, x = moved(nn.Mamba(8)), sequence(2, 8, dtype=torch.float32)
    y, _ = layer.step(x, layer.allocate_cache(2))
    y.sum().backward()
    assert layer.A_log.grad is not None
    assert not calls  # a gradient was wanted
    with torch.no_grad():
        again, _ = layer.step(x, layer.allocate_cache(2))
        assert len(calls) == 1
        assert mismatch(again, y.detach(), terms=64) is None
        layer.x_proj = torch.nn.Sequential(layer.x_proj)  # what a fine-tuning library puts in its place, say
        assert mismatch(layer.step(x, layer.allocate_cache(2))[0], again, terms=64) is None
    assert len(calls) == 1


@pytest.mark.parametrize("options", [{}, {"d_state": 3, "d_conv": 2, "dt_rank": 5, "bias": True}], ids=str)
def test_transformers(options):
    modeling = pytest.importorskip("transformers.models.mamba.modeling_mamba")
    from transformers import MambaConfig

    layer = moved(nn.Mamba(8, **options))
    config = MambaConfig(
        hidden_size=8, state_size=layer.d_state, conv_kernel=layer.d_conv, expand=2,
        time_step_rank=layer.dt_rank, use_bias=options.get("bias", False), num_hidden_layers=1,
    )  # fmt: skip
    other = modeling.MambaMixer(config, layer_idx=0)
    other.load_state_dict(layer.state_dict(), strict=True)
    x = sequence(2, 9, 8, dtype=torch.float32)
    assert mismatch(layer(x).detach(), other(x).detach(), terms=64) is None


def test_a_cache_is_written_into_but_no_gradient_is_wrong_for_it():
    layer, x = moved(nn.Mamba(8)), sequence(2, 4, 8, dtype=torch.float32)
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
    layer = nn.Mamba(32)
    shapes = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
    assert shapes == {
        "A_log": (64, 16), "D": (64,), "in_proj.weight": (128, 32), "conv1d.weight": (64, 1, 4),
        "conv1d.bias": (64,), "x_proj.weight": (34, 64), "dt_proj.weight": (64, 2), "dt_proj.bias": (64,),
        "out_proj.weight": (32, 64),
    }  # fmt: skip
    assert nn.Mamba(33).dt_rank == 3  # rounded up
    assert (layer.d_inner, layer.d_state, layer.d_conv, layer.dt_rank) == (64, 16, 4, 2)


def test_at_the_beginning():
    torch.manual_seed(0)
    layer = nn.Mamba(64, dt_min=0.01, dt_max=0.2, dt_rank=16, dt_scale=2.0)
    assert mismatch(layer.A(), -torch.arange(1.0, 17).expand(128, 16)) is None
    assert torch.equal(layer.D, torch.ones(128))
    dt = torch.nn.functional.softplus(layer.dt_proj.bias.detach().double())
    assert 0.01 - 1e-6 <= dt.min() < 0.013 < 0.16 < dt.max() <= 0.2 + 1e-6
    assert abs(float(dt.log().mean()) - math.log(0.01 * 0.2) / 2) < 0.25  # log-uniform
    weight = layer.dt_proj.weight
    assert 0.45 < weight.abs().max() <= 0.5
    assert nn.Mamba(64, dt_rank=16, dt_init="constant").dt_proj.weight.unique().tolist() == [0.25]
    floor = nn.Mamba(8, dt_min=1e-6, dt_max=1e-5, dt_init_floor=1e-3).dt_proj.bias
    assert mismatch(torch.nn.functional.softplus(floor.detach()), torch.full((16,), 1e-3)) is None


def test_the_generator_decides_and_dtypes_are_as_published():
    layers = []
    for _ in range(2):
        torch.manual_seed(5)
        layers.append(nn.Mamba(8, dtype=torch.bfloat16))
    one, two = (layer.state_dict() for layer in layers)
    assert all(torch.equal(one[name], two[name]) for name in one)
    wide = {name for name, value in one.items() if value.dtype == torch.float32}
    assert wide == {"A_log", "D"}
    assert nn.Mamba(8, device="meta").in_proj.weight.is_meta


def test_caches():
    layer = nn.Mamba(8, dtype=torch.bfloat16)
    cache = layer.allocate_cache(3)
    assert {name: (tuple(v.shape), v.dtype) for name, v in cache.items()} == {
        "conv": ((3, 3, 16), torch.bfloat16),
        "ssm": ((3, 16, 16), torch.float32),
    }
    assert layer.allocate_cache(1, torch.float64)["ssm"].dtype == torch.float64
    other = nn.Mamba(8, d_state=4).allocate_cache(3)
    line = r"^cache: got one with conv \(3, 3, 16\), ssm \(3, 16, 4\), expected conv \(3, 3, 16\), ssm \(3, 16, 16\)"
    x = sequence(3, 8, dtype=torch.bfloat16)
    for call in (lambda: layer.step(x, other), lambda: layer(x[:, None], cache=other)):
        with pytest.raises(ValueError, match=line):
            call()
    with pytest.raises(ValueError, match=r"^cache: got one with keys \(3, 1\), expected conv"):
        layer.step(x, {"keys": torch.zeros(3, 1)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 0}, "d_model: got 0, expected an integer of 1 or more"),
        ({"d_state": 1.5}, "d_state: got 1.5, expected an integer of 1 or more"),
        ({"d_conv": 0}, "d_conv: got 0, expected an integer of 1 or more"),
        ({"expand": 0.1}, "expand: got 0.1, expected a number that makes 1 channel or more of 8"),
        ({"dt_rank": "full"}, "dt_rank: got 'full', expected 'auto' or an integer of 1 or more"),
        ({"dt_init": "zero"}, "dt_init: got 'zero', expected one of random, constant"),
        ({"dt_min": 0.2}, "dt_min, dt_max: got 0.2 and 0.1, expected 0 < dt_min <= dt_max"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError) as caught:
        nn.Mamba(**{"d_model": 8} | options)
    assert str(caught.value) == message
