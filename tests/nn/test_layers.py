"""What every layer promises: forward, chunks and steps agree, padding and packing are as if they were not."""

from __future__ import annotations

import copy

import pytest
import torch
from layer_table import GROWS, LAYERS, D, make, sequence
from torch import Tensor

from ssmcourse import nn
from ssmcourse.tolerance import mismatch

NAMES = list(LAYERS)
L = 11


def same(got: Tensor, expected: Tensor) -> None:
    found = mismatch(got.detach(), expected.detach(), terms=64)
    assert found is None, str(found)


def by_steps(
    layer: nn.SequenceLayer, x: Tensor, cache: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    ys = []
    for x_t in x.unbind(1):
        y, cache = layer.step(x_t, cache)
        ys.append(y)
    return torch.stack(ys, 1), cache


def goes_on(layer: nn.SequenceLayer, cache: dict[str, Tensor], history: list[Tensor]) -> None:
    """Three more steps from the cache give what the whole of each row gives."""
    future = sequence(len(history), 3, D, seed=9)
    y, _ = by_steps(layer, future, cache)
    for row, past in enumerate(history):
        whole = layer(torch.cat([past, future[row]])[None])
        same(y[row], whole[0, len(past) :])


@pytest.mark.parametrize("name", NAMES)
def test_causal(name: str) -> None:
    layer, x = make(name), sequence(2, L, D)
    later = x.clone()
    later[:, 6:] = sequence(2, L - 6, D, seed=2)
    y, other = layer(x), layer(later)
    assert y.shape == x.shape
    same(y[:, :6], other[:, :6])
    assert not torch.allclose(y[:, 6:], other[:, 6:])


@pytest.mark.parametrize("sizes", [(11,), (1, 10), (2, 9), (3, 8), (5, 1, 5), (1, 1, 9)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_chunks_agree_with_the_whole(name: str, sizes: tuple[int, ...]) -> None:
    layer, x = make(name), sequence(2, L, D)
    cache, ys = layer.allocate_cache(2), []
    for part in x.split(list(sizes), 1):
        y, cache = layer(part, cache=cache, return_cache=True)
        ys.append(y)
    same(torch.cat(ys, 1), layer(x))
    goes_on(layer, cache, list(x))


@pytest.mark.parametrize("prefill", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("name", NAMES)
def test_steps_agree_with_the_whole(name: str, prefill: int) -> None:
    """A prompt, shorter than a convolution too, then token by token."""
    layer, x = make(name), sequence(2, L, D)
    if prefill:
        first, cache = layer(x[:, :prefill], return_cache=True)
    else:
        first, cache = x[:, :0], layer.allocate_cache(2)
    sizes = sum(value.numel() for value in cache.values())
    rest, cache = by_steps(layer, x[:, prefill:], cache)
    same(torch.cat([first, rest], 1), layer(x))
    if name not in GROWS:
        assert sum(value.numel() for value in cache.values()) == sizes


@pytest.mark.parametrize("name", NAMES)
def test_packed_sequences_do_not_see_each_other(name: str) -> None:
    layer, x = make(name), sequence(2, L, D)
    sizes = ([3, 1, 5, 2], [4, 7])
    marks = torch.stack([torch.arange(len(s)).repeat_interleave(torch.tensor(s)) % 2 for s in sizes])
    y, cache = layer(x, seq_idx=marks, return_cache=True)
    for row, s in enumerate(sizes):
        alone = [layer(part[None])[0] for part in x[row].split(s)]
        same(y[row], torch.cat(alone))
    goes_on(layer, cache, [x[0, -2:], x[1, -7:]])


@pytest.mark.parametrize("name", NAMES)
def test_padding_is_as_if_absent(name: str) -> None:
    """On the left, on the right, in between, none, and a row that is nothing else."""
    layer, x = make(name), sequence(5, L, D)
    mask = torch.ones(5, L, dtype=torch.bool)
    mask[0, :4] = mask[1, 6:] = mask[2, [0, 3, 4, 10]] = mask[4] = False
    x[~mask] = torch.nan
    y, cache = layer(x, mask=mask, return_cache=True)
    rows = [x[row, mask[row]] for row in range(5)]
    for row in range(4):
        same(y[row, mask[row]], layer(rows[row][None])[0])
    goes_on(layer, cache, rows)


@pytest.mark.parametrize("name", NAMES)
def test_padding_and_packing_after_a_cache(name: str) -> None:
    """The cache goes on in each row's first sequence, and ends at its last token that is there."""
    layer, before, x = make(name), sequence(3, 5, D, seed=3), sequence(3, L, D)
    mask = torch.ones(3, L, dtype=torch.bool)
    mask[0, :2] = mask[0, 9:] = mask[1] = False
    marks = torch.zeros(3, L, dtype=torch.int64)
    marks[0, 6:] = 1
    _, cache = layer(before, return_cache=True)
    y, cache = layer(x, mask=mask, seq_idx=marks, cache=cache, return_cache=True)
    whole = layer(torch.cat([before[:1], x[:1, 2:6]], 1))[0, 5:]
    same(y[0, 2:6], whole)
    same(y[0, 6:9], layer(x[:1, 6:9])[0])
    same(y[2], layer(torch.cat([before[2:], x[2:]], 1))[0, 5:])
    goes_on(layer, cache, [x[0, 6:9], before[1], torch.cat([before[2], x[2]])])


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name: str) -> None:
    layer = make(name)
    x = sequence(1, 4, D).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: layer(x), (x,), atol=1e-6)
    layer(sequence(2, L, D)).square().sum().backward()
    for key, value in layer.named_parameters():
        assert value.grad is not None, key
        assert value.grad.isfinite().all(), key
        assert value.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", NAMES)
def test_gradients_through_packing(name: str) -> None:
    """As through the sequences one by one."""
    layer, x = make(name), sequence(1, L, D)
    marks = torch.tensor([[0] * 4 + [1] * 7])
    weight = sequence(1, L, D, seed=4)
    grads = []
    for parts in ([layer(x, seq_idx=marks)], [layer(x[:, :4]), layer(x[:, 4:])]):
        loss = (torch.cat(parts, 1) * weight).sum()
        grads.append(torch.autograd.grad(loss, list(layer.parameters())))
    for got, expected in zip(*grads, strict=True):
        same(got, expected)


@pytest.mark.parametrize("name", NAMES)
def test_autocast(name: str) -> None:
    layer, x = make(name, torch.float32), sequence(2, L, D, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        _, cache = layer(x[:, :5], return_cache=True)
        z, _ = by_steps(layer, x[:, 5:], cache)
    y.float().sum().backward()
    assert (y.float() - layer(x)).abs().max() < 0.1 * layer(x).abs().max()
    assert (z.float() - y[:, 5:].float()).abs().max() < 0.1 * y.float().abs().max()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_half_types(name: str, dtype: torch.dtype) -> None:
    wide, x = make(name), sequence(2, L, D)
    layer = copy.deepcopy(wide).to(dtype)
    y = layer(x.to(dtype))
    z, _ = by_steps(layer, x.to(dtype), layer.allocate_cache(2))
    assert y.dtype == z.dtype == dtype
    limit = 0.15 * wide(x).abs().max()
    assert (y.double() - wide(x)).abs().max() < limit
    assert (z.double() - wide(x)).abs().max() < limit


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_left_alone_and_copies_agree(name: str) -> None:
    layer, x = make(name), sequence(2, L, D)
    given = x.clone()
    y = layer(x)
    assert torch.equal(x, given)
    same(copy.deepcopy(layer)(x), y)
    other = LAYERS[name]().double().eval()
    other.load_state_dict(layer.state_dict(), strict=True)
    same(other(x), y)
    same(layer(x.mT.contiguous().mT), y)  # strides of another order


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_do(name: str) -> None:
    layer = make(name)
    assert layer(sequence(0, L, D)).shape == (0, L, D)
    x = sequence(2, 5, D)
    _, cache = layer(x, return_cache=True)
    y, cache = layer(x[:, :0], cache=cache, return_cache=True)
    assert y.shape == (2, 0, D)
    goes_on(layer, cache, list(x))


@pytest.mark.parametrize("name", NAMES)
def test_parameter_groups(name: str) -> None:
    layer = make(name)
    groups = layer.parameter_groups()
    ids = [id(value) for group in groups for value in group["params"]]
    assert sorted(ids) == sorted(id(value) for value in layer.parameters())
    plain = {id(v) for group in groups if group.get("weight_decay") == 0.0 for v in group["params"]}
    for key, value in layer.named_parameters():
        if value.ndim < 2 or key.split(".")[-1] in layer.no_weight_decay:
            assert id(value) in plain, key
    names = dict(layer.named_parameters(recurse=False))
    assert set(layer.no_weight_decay) <= set(names)
    assert set(layer.max_learning_rate) <= set(names)
    torch.optim.AdamW(groups, lr=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_bad_calls(name: str) -> None:
    layer, x = make(name), sequence(2, L, D)
    with pytest.raises(ValueError, match=r"^x: got shape \(2, 11, 7\), expected \(b, l, 8\)"):
        layer(x[..., :7])
    with pytest.raises(ValueError, match=r"^x: got list"):
        layer([1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^seq_idx: got dtype torch.float64"):
        layer(x, seq_idx=x[..., 0])
    with pytest.raises(ValueError, match=r"^mask: got torch.int64 \(2, 11\), expected torch.bool"):
        layer(x, mask=torch.ones(2, L, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^mask: got torch.bool \(2, 5\)"):
        layer(x, mask=torch.ones(2, 5, dtype=torch.bool))
    if layer.allocate_cache(3):
        with pytest.raises(ValueError, match=r"^cache: got one for a batch of 3 .*, expected 2"):
            layer(x, cache=layer.allocate_cache(3))
        with pytest.raises(ValueError, match=r"^cache: got one for a batch of 3 .*, expected 2"):
            layer.step(x[:, 0], layer.allocate_cache(3))
    with pytest.raises(ValueError, match=r"^x: got shape \(2, 7\), expected \(b, 8\)"):
        layer.step(x[:, 0, :7], layer.allocate_cache(2))
    with pytest.raises(ValueError, match=r"^cache: got None"):
        layer.step(x[:, 0], None)  # type: ignore[arg-type]
