"""H3 against a loop over heads, tokens and channels in float64, and its step against its convolution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssmcourse.discretization import discretize
from ssmcourse.h3 import h3_mix, h3_step
from ssmcourse.s4 import s4d_init, s4d_kernel
from ssmcourse.tolerance import mismatch


def draw(*shape, dtype=torch.float64, seed=0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def inputs(b=2, l=17, d=6, m=4, head_dim=1, dtype=torch.float64, skips=True) -> dict[str, Tensor]:
    given = {
        "q": draw(b, l, d, dtype=dtype, seed=1),
        "k": draw(b, l, d, dtype=dtype, seed=2),
        "v": draw(b, l, d, dtype=dtype, seed=3),
        "shift_kernel": draw(d, m, seed=4),
        "ssm_kernel": draw(d // head_dim, l, seed=5),
    }
    if skips:
        given |= {"D_shift": draw(d, seed=6), "D_ssm": draw(d // head_dim, seed=7)}
    parameter = torch.promote_types(dtype, torch.float32)
    return {name: v if name in "qkv" else v.to(parameter) for name, v in given.items()}


def head_by_head(q, k, v, shift_kernel, ssm_kernel, *, head_dim, D_shift=None, D_ssm=None) -> Tensor:
    """o[h p + j] = sum_i q[h p + i] S[i, j], S_t = sum_s K_{t-s} k_bar_s v_s^T: channel h p + i is i of head h."""
    (b, l, d), p = q.shape, head_dim
    zero = torch.zeros((), dtype=q.dtype)
    k_bar = {}
    for t in range(l):
        lags = range(min(t + 1, shift_kernel.shape[1]))
        k_bar[t] = sum((shift_kernel[:, i] * k[:, t - i] for i in lags), zero)
        k_bar[t] = k_bar[t] if D_shift is None else k_bar[t] + D_shift * k[:, t]
    out = []
    for t in range(l):
        channels = []
        for head in range(d // p):
            own = range(head * p, (head + 1) * p)
            for j in own:
                y = torch.zeros(b, dtype=q.dtype)
                for i in own:
                    S = sum(ssm_kernel[head, t - s] * k_bar[s][:, i] * v[:, s, j] for s in range(t + 1))
                    S = S if D_ssm is None else S + D_ssm[head] * k_bar[t][:, i] * v[:, t, j]
                    y = y + q[:, t, i] * S
                channels.append(y)
        out.append(torch.stack(channels, 1))
    return torch.stack(out, 1)


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize(("l", "m"), [(1, 4), (2, 1), (3, 3), (17, 4), (8, 20)])
@pytest.mark.parametrize("head_dim", [1, 2, 3])
def test_it_is_the_loop(head_dim, l, m, skips):
    given = inputs(b=1 if l == 17 else 2, l=l, m=m, head_dim=head_dim, skips=skips)
    expected = head_by_head(**given, head_dim=head_dim)
    problem = mismatch(h3_mix(**given, head_dim=head_dim), expected, terms=16 * l)
    assert problem is None, str(problem)


def test_the_head_is_the_slowest_of_the_channels():
    """Head 1 of 2 gets no query: its channels, the last three, are silent. In the other order it would be every second."""
    given = inputs(head_dim=3)
    given["q"][..., 3:] = 0
    y = h3_mix(**given, head_dim=3)
    assert (y[..., 3:] == 0).all()
    assert (y[..., :3].abs().amax((0, 1)) > 0.1).all()
    other = {k: v.unflatten(-1, (2, 3)).mT.flatten(-2) if k in "qkv" else v for k, v in given.items()}
    assert (h3_mix(**other, head_dim=3) - y).abs().max() > 1, "the two orders are different functions"


def test_a_query_finds_what_followed_its_key():
    """Associative recall by hand: a 3 b 7 b ? -> 7, with a shift by one and a memory that keeps everything."""
    p = 2
    letter = {"a": (1.0, 0.0), "b": (0.0, 1.0)}
    tokens = ["a", 3.0, "b", 7.0, "b"]
    q = torch.tensor([[letter.get(t, (0.0, 0.0)) for t in tokens]], dtype=torch.float64)
    v = torch.tensor([[(0.0, 0.0) if t in letter else (t, 0.0) for t in tokens]], dtype=torch.float64)
    shift_by_one = torch.tensor([[0.0, 1.0]] * p, dtype=torch.float64)
    keep = torch.ones(1, 5, dtype=torch.float64)
    y = h3_mix(q, q, v, shift_by_one, keep, head_dim=p)
    assert y[0, -1].tolist() == pytest.approx([7.0, 0.0])
    not_shifted = h3_mix(q, q, v, shift_by_one.flip(1), keep, head_dim=p)
    assert not_shifted[0, -1].tolist() == pytest.approx([0.0, 0.0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("head_dim", [1, 2])
def test_dtypes(head_dim, dtype):
    given = inputs(head_dim=head_dim, dtype=dtype)
    y = h3_mix(**given, head_dim=head_dim)
    assert y.dtype == dtype
    expected = head_by_head(**{k: v.double() for k, v in given.items()}, head_dim=head_dim)
    assert mismatch(y, expected, terms=17 * head_dim) is None


@pytest.mark.parametrize("head_dim", [1, 2])
def test_gradients(head_dim):
    given = inputs(b=1, l=4, d=2, m=2, head_dim=head_dim)

    def mix(*values):
        return h3_mix(**dict(zip(given, values, strict=True)), head_dim=head_dim)

    leaves = [v.requires_grad_() for v in given.values()]
    assert torch.autograd.gradcheck(mix, leaves)
    assert torch.autograd.gradgradcheck(mix, leaves)


@pytest.mark.parametrize(("b", "l"), [(0, 5), (2, 0), (0, 0)])
def test_empty(b, l):
    given = inputs(b=b, l=l)
    assert h3_mix(**given).shape == (b, l, 6)


# --- one token at a time --------------------------------------------------------------------------


def system(heads: int, n: int, seed: int = 11) -> tuple[Tensor, ...]:
    A, B = (value.expand(heads, -1) for value in s4d_init("lin", 2 * n))
    C = torch.complex(draw(heads, n, seed=seed), draw(heads, n, seed=seed + 1))
    return A, B, C, torch.logspace(-2, 0, heads, dtype=torch.float64)


@pytest.mark.parametrize("m", [1, 4, 30])
@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("head_dim", [1, 8])
def test_steps_are_the_convolution(head_dim, skips, m):
    b, l, d, n = 2, 19, 16, 3
    given = inputs(b=b, l=l, d=d, m=m, head_dim=head_dim, skips=skips)
    A, B, C, dt = system(d // head_dim, n)
    given["ssm_kernel"] = s4d_kernel(A, B, C, dt, l)
    whole = h3_mix(**given, head_dim=head_dim)
    A_bar, B_bar = discretize(A, B, dt[:, None], "zoh", diagonal=True)
    D = {name: given.get(name) for name in ("D_shift", "D_ssm")}
    shift_state = torch.zeros(b, m - 1, d, dtype=torch.float64)
    ssm_state = torch.zeros(b, d // head_dim, head_dim, head_dim, n, dtype=torch.complex128)
    for t in range(l):
        token = [given[name][:, t] for name in "qkv"]
        before = shift_state.clone(), ssm_state.clone()
        y, new_shift, new_ssm = h3_step(
            *token, shift_state, ssm_state, given["shift_kernel"], A_bar, B_bar, C, head_dim=head_dim, **D
        )
        assert torch.equal(shift_state, before[0])
        assert torch.equal(ssm_state, before[1])
        shift_state, ssm_state = new_shift, new_ssm
        assert mismatch(y, whole[:, t], terms=16 * l) is None


def test_the_step_keeps_its_dtypes():
    given = inputs(d=4, m=3, head_dim=2, dtype=torch.bfloat16)
    A, B, C, dt = system(2, 3)
    A_bar, B_bar = discretize(A, B, dt[:, None], "zoh", diagonal=True)
    small = [value.to(torch.complex64) for value in (A_bar, B_bar, C)]
    states = torch.zeros(2, 2, 4, dtype=torch.bfloat16), torch.zeros(2, 2, 2, 2, 3, dtype=torch.complex64)
    y, shift_state, ssm_state = h3_step(
        *(given[name][:, 0] for name in "qkv"), *states, given["shift_kernel"], *small, head_dim=2
    )
    assert (y.dtype, shift_state.dtype, ssm_state.dtype) == (torch.bfloat16, torch.bfloat16, torch.complex64)


# --- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"k": draw(2, 16, 6)},
            r"k: got shape \(2, 16, 6\), expected \(b, l, d\) with b=2, l=17, d=6 as in q",
        ),
        ({"v": draw(2, 17, 6).float()}, r"v: got dtype torch.float32, expected torch.float64"),
        ({"shift_kernel": draw(5, 4)}, r"shift_kernel: got shape \(5, 4\)"),
        ({"shift_kernel": draw(6, 0)}, "shift_kernel: got m=0, expected m of 1 or more"),
        ({"ssm_kernel": draw(6, 17)}, r"ssm_kernel: got shape \(6, 17\), expected \(3, l\)"),
        ({"ssm_kernel": draw(3, 16)}, r"ssm_kernel: got shape \(3, 16\)"),
        ({"D_ssm": draw(6)}, r"D_ssm: got shape \(6,\)"),
        ({"head_dim": 4}, "head_dim: got 4, expected an integer that divides the 6 channels"),
        ({"head_dim": 0}, "head_dim: got 0"),
        ({"head_dim": 2.0}, "head_dim: got 2.0"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, said):
    with pytest.raises(ValueError, match=said):
        h3_mix(**(inputs(head_dim=2) | {"head_dim": 2} | change))
