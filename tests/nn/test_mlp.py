"""The gated MLP against its equation, one token at a time."""

from __future__ import annotations

import pytest
import torch
from layer_table import sequence
from scrambled import agrees, check
from torch import Tensor

from ssmcourse.nn import GatedMLP


def oracle(layer: GatedMLP, x: Tensor) -> Tensor:
    w = layer.state_dict()
    ys = []
    for token in x:
        both = w["fc1.weight"] @ token + w.get("fc1.bias", 0)
        y, gate = both[: len(both) // 2], both[len(both) // 2 :]
        ys.append(w["fc2.weight"] @ (y * gate / (1 + torch.exp(-gate))) + w.get("fc2.bias", 0))
    return torch.stack(ys)


@pytest.mark.parametrize("bias", [False, True])
def test_agrees_with_the_equation(bias: bool) -> None:
    torch.manual_seed(0)
    layer = GatedMLP(8, bias=bias).double()
    x = sequence(2, 5, 8)
    agrees(layer(x)[1], oracle(layer, x[1]), "y")
    check(layer, lambda x: oracle(layer, x), seed=0)


def test_another_activation_and_width_of_the_result() -> None:
    torch.manual_seed(0)
    layer = GatedMLP(8, out_features=3, activation=torch.tanh).double()
    x = sequence(2, 5, 8)
    y, gate = (x @ layer.fc1.weight.T).chunk(2, -1)
    agrees(layer(x), (y * torch.tanh(gate)) @ layer.fc2.weight.T, "y")
    assert layer(x).shape == (2, 5, 3)


@pytest.mark.parametrize(
    ("options", "hidden"),
    [
        ({}, 128),  # 8/3 of 8 is 21
        ({"in_features": 768}, 2048),
        ({"in_features": 1000}, 2688),  # 2666, rounded up
        ({"hidden_features": 129}, 256),
        ({"hidden_features": 21, "multiple_of": 1}, 21),
    ],
)
def test_widths_and_names_are_the_published_ones(options: dict, hidden: int) -> None:
    layer = GatedMLP(**{"in_features": 8} | options, device="meta")
    d = layer.d_model
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == {
        "fc1.weight": (2 * hidden, d),
        "fc2.weight": (d, hidden),
    }


@pytest.mark.parametrize("name", ["in_features", "hidden_features", "out_features", "multiple_of"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "8"])
def test_one_clear_line(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name}: got {value!r}, expected an integer of 1 or more"):
        GatedMLP(**{"in_features": 8, name: value})  # type: ignore[arg-type]
