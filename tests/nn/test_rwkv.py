"""RWKV-4's time mixing against the paper's equations in a loop, and against `transformers`."""

from __future__ import annotations

import math

import pytest
import torch
from layer_table import sequence
from scrambled import agrees, check
from torch import Tensor

from ssmcourse.nn import RWKV4


def make(spread: float = 0.3, **options) -> RWKV4:
    torch.manual_seed(0)
    layer = RWKV4(8, **options).double()
    with torch.no_grad():
        for value in layer.parameters():
            value.add_(spread * torch.randn_like(value))
    return layer


def oracle(layer: RWKV4, x: Tensor) -> Tensor:
    """(l, d): equations 11 to 16, each weight of each past token written out, relative to the largest."""
    w = layer.state_dict()
    before = torch.cat([torch.zeros_like(x[:1]), x])[:-1]
    k, v, r = (
        (w[f"time_mix_{name}"][0] * x + (1 - w[f"time_mix_{name}"][0]) * before) @ w[f"{name}.weight"].T
        for name in ("key", "value", "receptance")
    )
    decay = torch.exp(w["time_decay"])
    ys = []
    for t in range(len(x)):
        logs = [k[j] - (t - 1 - j) * decay for j in range(t)] + [w["time_first"] + k[t]]
        weights = torch.stack(logs).softmax(0)
        ys.append((weights * v[: t + 1]).sum(0) / (1 + torch.exp(-r[t])))
    return torch.stack(ys) @ w["output.weight"].T


# --- Against the equations ------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"layer_idx": 2, "n_layer": 3}], ids=str)
def test_agrees_with_the_equations(options: dict) -> None:
    layer, x = make(**options), sequence(2, 12, 8)
    for row in range(2):
        agrees(layer(x)[row], oracle(layer, x[row]), "y")


@pytest.mark.parametrize("seed", range(4))
def test_caches_padding_and_packing(seed: int) -> None:
    layer = make()
    check(layer, lambda x: oracle(layer, x), seed)


@pytest.mark.parametrize("w", [-30.0, 3.0, 20.0, 100.0])
def test_a_row_shorter_than_others_keeps_the_digits_of_its_state(w: float) -> None:
    """In float32: at w = 20 a step of padding would take 5 10^8 off a logarithm of about 1."""
    layer = make().float()
    with torch.no_grad():
        layer.time_decay.fill_(w)
    x = sequence(2, 40, 8, dtype=torch.float32)
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[1, 3:] = False
    _, cache = layer(x, mask=mask, return_cache=True)
    _, alone = layer(x[1:, :3], return_cache=True)
    for name in cache:
        agrees(cache[name][1], alone[name][0], name, terms=1)


def test_the_cache_is_not_the_callers_tensor() -> None:
    layer, x = make(), sequence(2, 4, 8)
    _, cache = layer.step(token := x[:, 0].clone(), layer.allocate_cache(2))
    token.zero_()
    _, cache = layer(chunk := x[:, 1:3].clone(), cache=cache, return_cache=True)
    chunk.zero_()
    y, _ = layer.step(x[:, 3], cache)
    agrees(y[0], oracle(layer, x[0])[3], "y")


def test_the_dtypes_of_a_cache() -> None:
    layer = RWKV4(8, dtype=torch.bfloat16)
    _, cache = layer(sequence(2, 5, 8, dtype=torch.bfloat16), return_cache=True)
    for given in (cache, layer.allocate_cache(2)):
        assert {name: value.dtype for name, value in given.items()} == {
            "shift": torch.bfloat16,
            "state": torch.float32,
        }
        assert given["shift"].shape == (2, 1, 8)
        assert given["state"].shape == (2, 3, 8)
    assert layer.allocate_cache(2, torch.float32)["shift"].dtype == torch.float32


# --- Initialisation -------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer_idx", "n_layer"), [(0, 1), (0, 12), (5, 12), (11, 12)])
def test_decays_bonus_and_mixes(layer_idx: int, n_layer: int) -> None:
    """Appendix E, channel by channel."""
    d = 6
    layer = RWKV4(d, layer_idx, n_layer, dtype=torch.float64)
    depth = layer_idx / (n_layer - 1) if n_layer > 1 else 0
    for i in range(d):
        expected = {
            "time_decay": -5 + 8 * (i / (d - 1)) ** (0.7 + 1.3 * depth),
            "time_first": math.log(0.3) + (0.0, 0.5, -0.5)[i % 3],
            "time_mix_key": (i / d) ** (1 - layer_idx / n_layer),
            "time_mix_value": (i / d) ** (1 - layer_idx / n_layer) + 0.3 * depth,
            "time_mix_receptance": (i / d) ** (0.5 * (1 - layer_idx / n_layer)),
        }
        for name, value in expected.items():
            got = layer.get_parameter(name).flatten()[i].item()
            assert got == pytest.approx(value, rel=1e-12, abs=1e-15), f"{name}[{i}]"


def test_one_channel() -> None:
    layer = RWKV4(1)
    assert layer.time_decay.item() == -5
    assert layer(torch.ones(1, 3, 1)).isfinite().all()


# --- Beside the published code --------------------------------------------------------------------


@pytest.mark.slow  # its import
def test_the_layer_of_transformers() -> None:
    """The same weights under the same names. It computes in float32, so more is not asked of it."""
    config = pytest.importorskip("transformers").RwkvConfig(hidden_size=8, num_hidden_layers=3, vocab_size=10)
    from transformers.models.rwkv.modeling_rwkv import RwkvSelfAttention

    theirs, ours = RwkvSelfAttention(config, layer_id=1), make(layer_idx=1, n_layer=3).float()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = sequence(2, 12, 8, dtype=torch.float32)
    y, _ = theirs(x)
    agrees(ours(x), y, "y")


def test_names_of_parameters() -> None:
    shapes = {name: tuple(value.shape) for name, value in RWKV4(8, device="meta").state_dict().items()}
    assert shapes == {
        "time_decay": (8,),
        "time_first": (8,),
        "time_mix_key": (1, 1, 8),
        "time_mix_value": (1, 1, 8),
        "time_mix_receptance": (1, 1, 8),
        "key.weight": (8, 8),
        "value.weight": (8, 8),
        "receptance.weight": (8, 8),
        "output.weight": (8, 8),
    }


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"d_model": 0}, "d_model: got 0, expected an integer of 1 or more"),
        ({"n_layer": 0}, "n_layer: got 0, expected an integer of 1 or more"),
        ({"layer_idx": -1}, "layer_idx: got -1, expected an integer of 0 or more"),
        ({"layer_idx": 3, "n_layer": 3}, "layer_idx: got 3, expected one below n_layer 3"),
    ],
)
def test_one_clear_line(options: dict, line: str) -> None:
    with pytest.raises(ValueError, match=f"^{line}"):
        RWKV4(**{"d_model": 8} | options)
