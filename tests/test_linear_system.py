"""The state of a linear system after many steps, and what it says alone, against a loop over time in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssmcourse.linear_system import final_state, free_response
from ssmcourse.tolerance import mismatch

LENGTHS = [0, 1, 2, 3, 4, 5, 17, 64, 65, 100]


def draw(*shape: int, seed: int, is_complex: bool = False) -> Tensor:
    dtype = torch.complex128 if is_complex else torch.float64
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def system(kind: str, h: int = 3, n: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """A_bar, B_bar and C: channels that forget slowly, at once, and in between."""
    B, C = (draw(h, n, seed=seed, is_complex=kind == "diagonal") for seed in (1, 2))
    keep = torch.tensor([0.999, 1e-9, 0.8], dtype=torch.float64)[:h, None]
    if kind == "diagonal":
        return keep * torch.polar(torch.ones(h, n).double(), draw(h, n, seed=3)), B, C
    turned = torch.linalg.qr(draw(h, n, n, seed=3)).Q  # not symmetric: A and A^T differ
    return keep[..., None] * turned, B, C


def by_steps(A: Tensor, B: Tensor, C: Tensor, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Every y (b, l, h) and the last state."""
    A = torch.diag_embed(A) if A.ndim == 2 else A
    ys = [x.new_zeros(len(x), 0, x.shape[2])]
    for x_t in x.unbind(1):
        state = torch.stack([state[:, i] @ A[i].T for i in range(len(A))], 1) + B * x_t[..., None]
        ys.append((C * state).sum(-1).real[:, None])
    return torch.cat(ys, 1), state


def same(got: Tensor, expected: Tensor, l: int) -> None:
    problem = mismatch(got, expected, terms=16 * max(l, 1))
    assert problem is None, str(problem)


@pytest.mark.parametrize("l", LENGTHS)
@pytest.mark.parametrize("kind", ["diagonal", "dense"])
def test_free_response_is_the_loop_without_input(kind: str, l: int) -> None:
    A, B, C = system(kind)
    state = draw(2, 3, 4, seed=4, is_complex=kind == "diagonal")
    expected, _ = by_steps(A, B, C, torch.zeros(2, l, 3).double(), state)
    same(free_response(A, C, state, l), expected, l)


@pytest.mark.parametrize("l", LENGTHS)
@pytest.mark.parametrize("kind", ["diagonal", "dense"])
def test_final_state_is_the_loop(kind: str, l: int) -> None:
    A, B, C = system(kind)
    x, state = draw(2, l, 3, seed=5), draw(2, 3, 4, seed=4, is_complex=kind == "diagonal")
    same(final_state(A, B, x, state), by_steps(A, B, C, x, state)[1], l)


@pytest.mark.parametrize("kind", ["diagonal", "dense"])
def test_every_row_ends_at_its_own_length(kind: str) -> None:
    A, B, C = system(kind)
    l, lengths = 21, torch.tensor([0, 1, 2, 7, 16, 20, 21])
    x, state = draw(7, l, 3, seed=5), draw(7, 3, 4, seed=4, is_complex=kind == "diagonal")
    for row, end in enumerate(lengths.tolist()):
        x[row, end:] = torch.nan
    got = final_state(A, B, x, state, lengths)
    for row, end in enumerate(lengths.tolist()):
        _, expected = by_steps(A, B, C, x[row : row + 1, :end], state[row : row + 1])
        same(got[row], expected[0], l)


@pytest.mark.parametrize("kind", ["diagonal", "dense"])
def test_no_rows_and_no_channels(kind: str) -> None:
    A, B, C = system(kind)
    is_complex = kind == "diagonal"
    assert final_state(A, B, draw(0, 5, 3, seed=1), draw(0, 3, 4, seed=1, is_complex=is_complex)).shape == (
        0,
        3,
        4,
    )
    assert free_response(A, C, draw(0, 3, 4, seed=1, is_complex=is_complex), 5).shape == (0, 5, 3)


@pytest.mark.parametrize("kind", ["diagonal", "dense"])
def test_gradients(kind: str) -> None:
    A, B, C = (value[2:].clone().requires_grad_() for value in system(kind))
    x = draw(2, 6, 1, seed=5).requires_grad_()
    state = draw(2, 1, 4, seed=4, is_complex=kind == "diagonal").requires_grad_()
    lengths = torch.tensor([6, 3])
    assert torch.autograd.gradcheck(lambda *a: final_state(*a, lengths), (A, B, x, state))
    assert torch.autograd.gradcheck(lambda *a: free_response(*a, 5), (A, C, state))


@pytest.mark.parametrize("kind", ["diagonal", "dense"])
def test_two_halves_are_the_whole(kind: str) -> None:
    """At 16,384 steps: a state every step would be 0.5 GB here."""
    A, B, C = system(kind, h=3, n=32)
    l = 16_384
    x, state = draw(1, l, 3, seed=5), draw(1, 3, 32, seed=4, is_complex=kind == "diagonal")
    half = final_state(A, B, x[:, : l // 2], state)
    same(final_state(A, B, x[:, l // 2 :], half), final_state(A, B, x, state), l)
    at_rest = final_state(A, B, torch.zeros_like(x), state)
    same(free_response(A, C, at_rest, 5), free_response(A, C, state, l + 5)[:, -5:], l)
