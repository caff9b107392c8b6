"""H3 against a loop with explicit outer products in float64."""

from __future__ import annotations

import math

import pytest
import torch
from largest import Largest
from scrambled import check
from torch import Tensor

from ssmcourse.nn import H3
from ssmcourse.s4 import s4d_init
from ssmcourse.tolerance import mismatch

D = 6


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(got: Tensor, expected: Tensor, terms: int = 400) -> None:
    problem = mismatch(got.detach(), expected.detach(), terms=terms)
    assert problem is None, str(problem)


def made(d: int = D, **options) -> H3:
    """In float64, with every parameter moved a little."""
    torch.manual_seed(0)
    layer = H3(d, 4, **options).double()
    with torch.no_grad():
        for value in layer.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return layer


def system(layer: H3) -> tuple[Tensor, Tensor, Tensor]:
    """A_bar (h, n, n), B_bar and C (h, n), one mode of each pair: the bilinear rule, densely."""
    ssm = layer.ssm
    A = torch.diag_embed(torch.complex(-ssm.log_A_real.exp(), ssm.A_imag))
    B, C = (torch.complex(value[..., 0], value[..., 1]) for value in (ssm.B, ssm.C))
    dt, eye = ssm.log_dt.exp(), torch.eye(A.shape[1], dtype=A.dtype)
    back, forth = eye - dt[:, None, None] / 2 * A, eye + dt[:, None, None] / 2 * A
    return torch.linalg.solve(back, forth), torch.linalg.solve(back, dt[:, None] * B), C


def by_steps(layer: H3, x: Tensor) -> Tensor:
    """One token, one head, one entry of k v^T after another."""
    p, m = layer.head_dim, layer.shift_kernel.shape[1]
    A_bar, B_bar, C = system(layer)
    q, k, v = (
        x @ projection.weight.T + projection.bias for projection in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    h: dict[tuple[int, int, int], Tensor] = {}
    out = []
    for t in range(x.shape[1]):
        key = layer.D_shift * k[:, t]
        for lag in range(min(m, t + 1)):
            key = key + layer.shift_kernel[:, lag] * k[:, t - lag]
        channels = []
        for head in range(x.shape[2] // p):
            own = slice(head * p, (head + 1) * p)
            outer = key[:, own, None] * v[:, t, None, own]  # k v^T, (b, p, p)
            y = torch.zeros(len(x), p, dtype=x.dtype)
            for i in range(p):
                for j in range(p):
                    before = h.get((head, i, j), torch.zeros(len(x), len(C[0]), dtype=C.dtype))
                    h[head, i, j] = before @ A_bar[head].T + B_bar[head] * outer[:, i, j, None]
                    memory = 2 * (h[head, i, j] @ C[head]).real + layer.D[head] * outer[:, i, j]
                    y[:, j] += q[:, t, head * p + i] * memory
            channels.append(y)
        out.append(torch.cat(channels, 1))
    return torch.stack(out, 1) @ layer.out_proj.weight.T + layer.out_proj.bias


@pytest.mark.parametrize("init", ["lin", "legs", "inv", "real", "random"])
@pytest.mark.parametrize(("head_dim", "shift_size"), [(1, 1), (1, 4), (2, 3), (3, 30), (6, 4)])
def test_it_is_the_loop(head_dim, shift_size, init):
    layer = made(head_dim=head_dim, shift_size=shift_size, init=init)
    x = draw(2, 9, D)
    with torch.no_grad():
        same(layer(x), by_steps(layer, x))


@pytest.mark.parametrize("sizes", [(7, 1, 1, 1, 10), (1, 19), (20,)], ids=str)
@pytest.mark.parametrize(("head_dim", "shift_size"), [(1, 1), (2, 3), (3, 30)])
def test_chunks_and_steps_are_the_loop(head_dim, shift_size, sizes):
    """From the same cache: a chunk of one token is a step."""
    layer = made(head_dim=head_dim, shift_size=shift_size)
    x = draw(2, 20, D)
    with torch.no_grad():
        expected, cache, ys = by_steps(layer, x), layer.allocate_cache(2), []
        for part in x.split(list(sizes), 1):
            if part.shape[1] == 1:
                y, cache = layer.step(part[:, 0], cache)
                ys.append(y[:, None])
            else:
                y, cache = layer(part, cache=cache, return_cache=True)
                ys.append(y)
        same(torch.cat(ys, 1), expected)


@pytest.mark.parametrize(("head_dim", "shift_size"), [(1, 4), (2, 3)])
def test_padding_packing_and_caches_all_at_once(head_dim, shift_size):
    layer = made(head_dim=head_dim, shift_size=shift_size, dt_min=0.1, dt_max=1.0)
    with torch.no_grad():
        check(layer, lambda x: by_steps(layer, x[None])[0], seed=5)


def test_the_head_is_the_slowest_of_the_channels():
    """A key and a query in head 0 only: what comes out of the memory is in its first 3 channels."""
    layer, x = made(head_dim=3), draw(1, 10, D)
    with torch.no_grad():
        layer.out_proj.weight.copy_(torch.eye(D))
        layer.out_proj.bias.zero_()
        for projection in (layer.q_proj, layer.k_proj):
            projection.weight[3:], projection.bias[3:] = 0, 0
        y = layer(x)
    assert (y[..., 3:] == 0).all()
    assert (y[..., :3].abs().amax((0, 1)) > 1e-3).all()


def test_the_cache_in_float32():
    layer = made(head_dim=2, shift_size=5).float()
    _, cache = layer(draw(2, 50, D).float(), return_cache=True)
    assert {name: (tuple(v.shape), v.dtype) for name, v in cache.items()} == {
        "keys": ((2, 4, D), torch.float32),
        "memory": ((2, 3, 2, 2, 2), torch.complex64),
    }
    half = layer.bfloat16().allocate_cache(2)
    assert {v.dtype for v in half.values()} == {torch.bfloat16, torch.complex64}


def test_a_long_prompt_takes_no_state_for_every_step():
    torch.manual_seed(0)
    layer, l = H3(8, 64, head_dim=4), 4096
    with torch.inference_mode(), Largest() as largest:
        _, cache = layer(torch.randn(1, l, 8), return_cache=True)
        layer(torch.randn(1, l, 8), cache=cache)
    assert largest.numel <= 3 * l * 8  # l * 8 * 4 * 32 would be a state for every step, l * 8 * 4 every k v^T


# --- parameters -----------------------------------------------------------------------------------


def test_names_and_shapes():
    linear = {
        f"{name}_proj.{key}": shape
        for name in ("q", "k", "v", "out")
        for key, shape in {"weight": (D, D), "bias": (D,)}.items()
    }
    assert {name: tuple(value.shape) for name, value in H3(D, 8, 2, 3).state_dict().items()} == linear | {
        "shift_kernel": (D, 3),
        "D_shift": (D,),
        "D": (3,),
        "ssm.log_dt": (3,),
        "ssm.log_A_real": (3, 4),
        "ssm.A_imag": (3, 4),
        "ssm.B": (3, 4, 2),
        "ssm.C": (3, 4, 2),
    }
    assert H3(D, 8).shift_kernel.shape == (D, 8)


def test_the_first_values():
    torch.manual_seed(0)
    layer = H3(4000, 16, shift_size=4)
    taps = layer.shift_kernel.detach()
    assert taps.abs().max() <= 0.5
    assert taps.std().item() == pytest.approx(0.5 / math.sqrt(3), rel=0.02)  # uniform
    for skip in (layer.D_shift, layer.D):
        assert skip.mean().item() == pytest.approx(0.0, abs=0.06)
        assert skip.std().item() == pytest.approx(1.0, rel=0.05)
    dt = layer.ssm.dt.detach()
    assert 1e-3 * (1 - 1e-5) <= dt.min() < 1.1e-3
    assert 0.09 < dt.max() <= 0.1 * (1 + 1e-5)
    A, _ = s4d_init("lin", 16)
    same(layer.ssm.A, A.expand(4000, -1), 1)


def test_what_the_optimiser_is_told():
    layer = H3(D, 8, 2, 3)
    names = {id(value): name for name, value in layer.named_parameters()}
    slow = {
        names[id(value)]
        for group in layer.parameter_groups()
        if group.get("max_lr") == 1e-3 and group["weight_decay"] == 0.0
        for value in group["params"]
    }
    assert slow == {"ssm.log_A_real", "ssm.A_imag", "ssm.B", "ssm.log_dt"}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: H3(True), "d_model: got True, expected an integer of 1 or more"),
        (lambda: H3(D, 5), "d_state: got 5, expected an even number"),
        (lambda: H3(D, head_dim=4), "head_dim: got 4, expected a number that divides d_model 6"),
        (lambda: H3(D, head_dim=0), "head_dim: got 0, expected an integer of 1 or more"),
        (lambda: H3(D, shift_size=0), "shift_size: got 0, expected an integer of 1 or more"),
        (lambda: H3(D, init="zeros"), "init: got 'zeros', expected one of legs, lin"),
        (lambda: H3(D, dt_max=-1), "dt_max: got -1, expected a positive number"),
    ],
)
def test_one_clear_line(make, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        make()


def test_the_cache_of_another_layer_is_refused():
    layer, x = H3(D, 4, 2, 3), draw(2, 3, D).float()
    for other in (H3(D, 4, 3, 3).allocate_cache(2), {"conv": torch.zeros(2, 3)}):
        with pytest.raises(ValueError, match=r"^cache: got one with .*, expected "):
            layer(x, cache=other)
        with pytest.raises(ValueError, match=r"^cache: got one with .*, expected "):
            layer.step(x[:, 0], other)
