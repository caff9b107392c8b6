"""Linear attention as a layer, against its l by l matrix of weights in float64."""

from __future__ import annotations

import pytest
import torch
from scrambled import check
from torch import Tensor

from ssmcourse.nn import LinearAttention
from ssmcourse.tolerance import mismatch

D = 6
MAPS = {
    "elu": lambda x: torch.where(x > 0, x + 1, x.exp()),
    "relu": lambda x: x * (x > 0),
    "identity": lambda x: x,
}


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_weights(layer: LinearAttention, x: Tensor) -> Tensor:
    """Head by head: the matrix φ(q_i) . φ(k_j) for j <= i, its rows divided by their sums."""
    q, k, v = (
        x @ projection.weight.T + (0 if projection.bias is None else projection.bias)
        for projection in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    p, heads = D // layer.num_heads, []
    for head in range(layer.num_heads):
        own = slice(head * p, (head + 1) * p)
        phi = MAPS[layer.feature_map]
        weights = (phi(q[..., own]) @ phi(k[..., own]).mT).tril()
        if layer.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-6)
        heads.append(weights @ v[..., own])
    y = torch.cat(heads, -1) @ layer.out_proj.weight.T
    return y if layer.out_proj.bias is None else y + layer.out_proj.bias


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"feature_map": "relu"},
        {"feature_map": "identity", "normalize": False},
        {"normalize": False, "bias": False},
    ],
    ids=str,
)
@pytest.mark.parametrize(("num_heads", "l"), [(1, 1), (2, 70), (6, 17)])
def test_it_is_its_matrix(num_heads, l, options):
    torch.manual_seed(0)
    layer, x = LinearAttention(D, num_heads, **options).double(), draw(2, l, D)
    expected = by_weights(layer, x).detach()
    problem = mismatch(layer(x).detach(), expected, terms=100 * l)
    assert problem is None, str(problem)
    cache, ys = layer.allocate_cache(2), []
    with torch.no_grad():
        for x_t in x.unbind(1):
            y, cache = layer.step(x_t, cache)
            ys.append(y)
    problem = mismatch(torch.stack(ys, 1), expected, terms=100 * l)
    assert problem is None, str(problem)


@pytest.mark.parametrize("normalize", [True, False])
def test_padding_packing_and_caches_all_at_once(normalize):
    torch.manual_seed(0)
    layer = LinearAttention(D, 2, normalize=normalize).double()
    with torch.no_grad():
        check(layer, lambda x: by_weights(layer, x), seed=5)


def test_values_are_averaged():
    """With equal values everywhere, that is what comes out, wherever the queries look."""
    torch.manual_seed(0)
    layer = LinearAttention(D, 2).double()
    with torch.no_grad():
        layer.v_proj.weight.zero_()
        y = layer(draw(1, 50, D))
    expected = layer.out_proj(layer.v_proj.bias).detach().expand(1, 50, -1)
    assert (y - expected).abs().max() < 1e-5  # eps in the divisor


def test_the_state_is_float32_and_of_fixed_size():
    layer = LinearAttention(D, 2, dtype=torch.bfloat16)
    _, cache = layer(draw(2, 40, D).bfloat16(), return_cache=True)
    assert cache["state"].shape == (2, 2, 4, 3)
    assert cache["state"].dtype == torch.float32
    assert LinearAttention(D, 2, normalize=False).allocate_cache(1)["state"].shape == (1, 2, 3, 3)


def test_names_and_shapes():
    weights = {f"{name}_proj.weight": (D, D) for name in ("q", "k", "v", "out")}
    biases = {f"{name}_proj.bias": (D,) for name in ("q", "k", "v", "out")}
    for bias, expected in ((True, weights | biases), (False, weights)):
        layer = LinearAttention(D, 3, bias=bias)
        assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == expected


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LinearAttention(0, 1), "d_model: got 0, expected an integer of 1 or more"),
        (lambda: LinearAttention(D, 4), "num_heads: got 4, expected a number that divides d_model 6"),
        (lambda: LinearAttention(D, 0), "num_heads: got 0, expected an integer of 1 or more"),
        (
            lambda: LinearAttention(D, 2, feature_map="exp"),
            "feature_map: got 'exp', expected one of elu, relu",
        ),
    ],
)
def test_one_clear_line(make, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        make()


def test_the_cache_of_another_layer_is_refused():
    layer, x = LinearAttention(D, 2), draw(2, 3, D).float()
    for other in (LinearAttention(D, 3).allocate_cache(2), {"conv": torch.zeros(2, 3)}):
        with pytest.raises(ValueError, match=r"^cache: got one with .*, expected "):
            layer(x, cache=other)
        with pytest.raises(ValueError, match=r"^cache: got one with .*, expected "):
            layer.step(x[:, 0], other)
