"""The norms of `layer_norm` and `layernorm_gated` against their formulas in float64."""

from __future__ import annotations

import official_loops as loops
import pytest
import torch
from official_loops import assert_close, compare, draw

from ssmcourse.compat import layer_norm as plain
from ssmcourse.compat import layernorm_gated as gated

b, l, d = 2, 5, 8


def normed(h, weight, bias, eps, is_rms_norm):
    if is_rms_norm:
        y = loops.rms(h, weight, eps)
    else:
        centred = h - h.mean(-1, keepdim=True)
        y = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps) * weight
    return y if bias is None else y + bias


def plain_loop(
    x, weight, bias, residual=None, x1=None, weight1=None, bias1=None, eps=1e-6, rowscale=None, prenorm=False,
    is_rms_norm=False,
):  # fmt: skip
    h = x if rowscale is None else x * rowscale[..., None]
    h = h if x1 is None else h + x1
    h = h if residual is None else h + residual
    y = [normed(h, weight, bias, eps, is_rms_norm)]
    y += [] if weight1 is None else [normed(h, weight1, bias1, eps, is_rms_norm)]
    return (*y, h) if prenorm else tuple(y)


def inputs(*names):
    everything = {
        "x": draw(b, l, d, seed=1), "weight": draw(d, seed=2), "bias": draw(d, seed=3),
        "residual": draw(b, l, d, seed=4), "x1": draw(b, l, d, seed=5), "weight1": draw(d, seed=6),
        "bias1": draw(d, seed=7), "rowscale": draw(b, l, seed=8),
    }  # fmt: skip
    return {"bias": None} | {k: v for k, v in everything.items() if k in ("x", "weight", *names)}


OPTIONS = [
    (), ("bias",), ("bias", "residual"), ("residual",), ("x1",), ("bias", "residual", "x1", "weight1", "bias1"),
    ("weight1",), ("residual", "rowscale"),
]  # fmt: skip


@pytest.mark.parametrize("names", OPTIONS, ids="-".join)
@pytest.mark.parametrize("prenorm", [False, True])
@pytest.mark.parametrize("rms", [False, True])
def test_layer_norm_fn_and_rms_norm_fn(names, prenorm, rms):
    given = inputs(*names) | {"prenorm": prenorm, "eps": 1e-3}
    function = plain.rms_norm_fn if rms else plain.layer_norm_fn
    compare(function, lambda **given: plain_loop(**given, is_rms_norm=rms), given)


@pytest.mark.parametrize("residual", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_fp32", [False, True])
def test_the_residual_keeps_its_dtype(residual, in_fp32):
    x, weight = draw(b, l, d, seed=1, dtype=torch.bfloat16), draw(d, seed=2, dtype=torch.float32)
    r = None if residual is None else draw(b, l, d, seed=4, dtype=residual)
    y, h = plain.rms_norm_fn(x, weight, None, r, prenorm=True, residual_in_fp32=in_fp32)
    assert y.dtype == torch.bfloat16
    assert h.dtype == (residual or (torch.float32 if in_fp32 else torch.bfloat16))
    expected = x.double() if r is None else x.double() + r.double()
    assert_close(h, expected)
    assert_close(y, loops.rms(expected, weight.double(), 1e-6))


def test_dropout_and_its_masks():
    torch.manual_seed(0)
    x, x1, weight = draw(40, d, seed=1), draw(40, d, seed=2), draw(d, seed=3)
    y, h, mask, mask1 = plain.layer_norm_fn(
        x, weight, None, x1=x1, dropout_p=0.25, prenorm=True, return_dropout_mask=True
    )
    assert mask.dtype == torch.bool
    assert 0.6 < mask.double().mean() < 0.9
    assert not torch.equal(mask, mask1)
    expected = (torch.where(mask, x, 0) + torch.where(mask1, x1, 0)) / 0.75
    assert_close(h, expected)
    assert_close(y, normed(expected, weight, None, 1e-6, False))
    assert plain.rms_norm_fn(x, weight, None, return_dropout_mask=True)[1:] == (None, None)


def test_rowscale_and_x1_exclude_each_other():
    with pytest.raises(ValueError, match="rowscale"):
        plain.layer_norm_fn(**inputs("rowscale", "x1"))


def test_the_module_RMSNorm():
    torch.manual_seed(0)
    norm = plain.RMSNorm(d, eps=1e-3, dropout_p=0.5, dtype=torch.float64)
    assert list(norm.state_dict()) == ["weight"]
    assert norm.bias is None
    x, r = draw(b, l, d, seed=1), draw(b, l, d, seed=2)
    assert not torch.equal(norm(x), norm(x))
    norm.eval()
    y, h = norm(x, residual=r, prenorm=True, residual_in_fp32=True)
    assert_close(h, x + r)
    assert_close(y, loops.rms(x + r, torch.ones(d, dtype=torch.float64), 1e-3))


# --- With a gate ----------------------------------------------------------------------------------


def gated_loop(
    x, weight, bias=None, z=None, eps=1e-6, group_size=None, norm_before_gate=True, is_rms_norm=False
):
    size = group_size or d
    h = x if z is None or norm_before_gate else x * loops.silu(z)
    parts = [
        normed(h[..., i : i + size], weight[i : i + size], None, eps, is_rms_norm) for i in range(0, d, size)
    ]
    y = torch.cat(parts, -1)
    y = y if bias is None else y + bias
    return y * loops.silu(z) if z is not None and norm_before_gate else y


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("group_size", [None, 4, 2])
@pytest.mark.parametrize("names", [(), ("z",), ("bias",), ("bias", "z")], ids="-".join)
@pytest.mark.parametrize("rms", [False, True])
def test_layernorm_fn_and_rmsnorm_fn(names, group_size, first, rms):
    given = {"x": draw(b, l, d, seed=1), "weight": draw(d, seed=2), "bias": None, "eps": 1e-3}
    given |= {k: v for k, v in {"z": draw(b, l, d, seed=3), "bias": draw(d, seed=4)}.items() if k in names}
    given |= {"group_size": group_size, "norm_before_gate": first}
    function = gated.rmsnorm_fn if rms else gated.layernorm_fn
    compare(function, lambda **given: gated_loop(**given, is_rms_norm=rms), given)


@pytest.mark.parametrize("rms", [False, True])
def test_half_inputs_with_a_gate(rms):
    x, z = (draw(b, l, d, seed=s, dtype=torch.float16) for s in (1, 3))
    weight = draw(d, seed=2, dtype=torch.float32)
    y = gated.layernorm_fn(x, weight, None, z, is_rms_norm=rms)
    assert y.dtype == torch.float16
    assert_close(y, gated_loop(x.double(), weight.double(), z=z.double(), is_rms_norm=rms))


def test_the_gated_modules():
    x, z = draw(b, l, d, seed=1), draw(b, l, d, seed=2)
    norm = gated.RMSNorm(d, eps=1e-2, group_size=4, norm_before_gate=False, dtype=torch.float64)
    ones = torch.ones(d, dtype=torch.float64)
    assert list(norm.state_dict()) == ["weight"]
    assert_close(norm(x, z), gated_loop(x, ones, None, z, 1e-2, 4, False, True))
    norm = gated.LayerNorm(d, dtype=torch.float64)
    assert list(norm.state_dict()) == ["weight", "bias"]
    assert_close(norm(x, z), gated_loop(x, ones, None, z, 1e-5))
