"""The selective scan as a formula: closed forms, the step, and what a wrong call says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssmcourse import selective_scan, selective_state_update
from ssmcourse.tolerance import mismatch


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def inputs(b: int = 2, l: int = 9, d: int = 4, n: int = 3, dtype: torch.dtype = torch.float64) -> dict:
    complex_type = torch.promote_types(dtype, torch.float32) if dtype.is_complex else dtype
    real = complex_type.to_real() if dtype.is_complex else dtype
    A = -torch.exp(random(d, n, seed=3))
    return {
        "x": random(b, l, d, seed=1, dtype=real),
        "dt": random(b, l, d, seed=2, dtype=real),
        "A": torch.complex(A, random(d, n, seed=4)).to(dtype) if dtype.is_complex else A,
        "B": random(b, l, n, seed=5, dtype=dtype),
        "C": random(b, l, n, seed=6, dtype=dtype),
        "D": random(d, seed=7),
        "z": random(b, l, d, seed=8, dtype=real),
        "dt_bias": random(d, seed=9),
    }


def assert_equal(got: Tensor, expected, terms: int = 30) -> None:
    problem = mismatch(got, expected, terms=terms)
    assert problem is None, str(problem)


# --- Closed forms -----------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_one_state_is_a_gated_recurrence(backend):
    """Theorem 1 (Gu & Dao 2023): n = 1, A = -1, B = 1 and Δ = softplus(w) give h = (1 - g) h + g x, g = sigmoid(w).

    It holds for zero-order hold. Euler's rule, which the published weights use, has Δ in place of g at x.
    """
    x, w = random(1, 12, 3, seed=1), random(1, 12, 3, seed=2)
    one = torch.ones(1, 12, 1, dtype=torch.float64)
    y = selective_scan(x, w, -one[0, :3], one, one, dt_softplus=True, b_disc="zoh", backend=backend)
    g, h, expected = torch.sigmoid(w), torch.zeros(1, 3, dtype=torch.float64), []
    for t in range(12):
        h = (1 - g[:, t]) * h + g[:, t] * x[:, t]
        expected.append(h)
    assert_equal(y, torch.stack(expected, 1))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_held_input_is_followed_exactly(backend):
    """h' = A h + x with x held at 1 from h = 0: after time T, h = (e^(AT) - 1) / A, whatever the steps."""
    dt = random(1, 20, 1, seed=1).abs()
    one = torch.ones(1, 20, 1, dtype=torch.float64)
    y = selective_scan(one, dt, -0.7 * one[0, :1], one, one, b_disc="zoh", backend=backend)
    T = dt.sum(1)
    assert_equal(y[:, -1], torch.expm1(-0.7 * T) / -0.7)


def test_the_two_rules_for_b_differ_at_large_steps():
    """With Δ about 1 by half of the output: a mix-up of the two is no rounding error."""
    made = inputs(l=50)
    made["dt"] = made["dt"].abs()
    euler, zoh = (selective_scan(**made, b_disc=rule) for rule in ("euler", "zoh"))
    assert (euler - zoh).norm() > 0.2 * zoh.norm()


def test_a_complex_state_stands_for_its_conjugate_too():
    """2 Re over half of the states is the sum over both halves, written as a real matrix of twice the size."""
    made = inputs(dtype=torch.complex128)
    A, B, C = made["A"], made["B"], made["C"]
    dt = torch.nn.functional.softplus(made["dt"] + made["dt_bias"])
    both = [torch.cat([M, M.conj()], -1) for M in (A, B, C)]
    h, expected = torch.zeros(2, 4, 6, dtype=torch.complex128), []
    for t in range(9):
        step = dt[:, t, :, None]
        h = torch.exp(step * both[0]) * h + step * both[1][:, t, None] * made["x"][:, t, :, None]
        expected.append((both[2][:, t, None] * h).sum(-1))
    total = torch.stack(expected, 1)
    assert total.imag.abs().max() < 1e-12
    y = selective_scan(
        made["x"], made["dt"], A, B, C, None, None, made["dt_bias"], dt_softplus=True, backend="reference"
    )
    assert_equal(y, total.real)


# --- One step after another -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("b_disc", ["euler", "zoh"])
@pytest.mark.parametrize("grouped", [False, True])
def test_the_step_is_the_scan(dtype, b_disc, grouped):
    """For every split: scan the first part, step through the rest."""
    made = inputs(dtype=dtype)
    if grouped:
        made["B"], made["C"] = (random(2, 9, 2, 3, seed=s, dtype=dtype) for s in (15, 16))
    options = {"dt_softplus": True, "b_disc": b_disc}
    whole, last = selective_scan(**made, **options, return_final_state=True, backend="reference")
    fixed = {name: made.pop(name) for name in ("A", "D", "dt_bias")}
    for split in range(9):
        before = {name: t[:, :split] for name, t in made.items()}
        _, state = selective_scan(**before, **fixed, **options, return_final_state=True, backend="reference")
        for t in range(split, 9):
            kept = state.clone()
            now = {name: tensor[:, t] for name, tensor in made.items()}
            y, after = selective_state_update(state, **now, **fixed, **options)
            assert torch.equal(state, kept), "the given state was changed"
            assert_equal(y, whole[:, t])
            state = after
        assert_equal(state, last)


def test_gradients_of_a_step():
    made = {name: t[:, 0] if t.ndim == 3 else t for name, t in inputs().items()}
    leaves = [random(2, 4, 3, seed=11), *made.values()]
    assert torch.autograd.gradcheck(
        lambda *given: selective_state_update(*given, dt_softplus=True, b_disc="zoh"),
        [t.clone().requires_grad_() for t in leaves],
    )


def test_dtypes_of_a_step():
    made = {name: t[:, 0] if t.ndim == 3 else t for name, t in inputs(dtype=torch.bfloat16).items()}
    made |= {name: made[name].float() for name in ("A", "D", "dt_bias")}
    y, state = selective_state_update(torch.zeros(2, 4, 3), **made)
    assert y.dtype == torch.bfloat16
    assert state.dtype == torch.float32


def test_packed_sequences_are_sequences_alone():
    made = inputs(b=1, l=12)
    seq_idx = torch.tensor([[4] * 5 + [9] * 3 + [4] * 4])  # a number may come back: only changes count
    y, states = selective_scan(**made, seq_idx=seq_idx, return_final_state=True)
    for number, part in enumerate((slice(0, 5), slice(5, 8), slice(8, 12))):
        alone = {name: t[:, part] if t.ndim == 3 else t for name, t in made.items()}
        y_alone, state = selective_scan(**alone, return_final_state=True)
        assert_equal(y[:, part], y_alone)
        assert_equal(states[number], state[0])


# --- Wrong calls ------------------------------------------------------------------------------

WRONG = {
    "x of two dimensions": ({"x": torch.zeros(9, 4).double()}, r"x: got shape \(9, 4\), expected \(b, l, d\)"),
    "dt of another length": ({"dt": torch.zeros(2, 8, 4).double()}, r"dt: got shape \(2, 8, 4\)"),
    "dt of another dtype": ({"dt": torch.zeros(2, 9, 4)}, "dt: got dtype torch.float32, expected torch.float64"),
    "A transposed": ({"A": torch.zeros(3, 4).double()}, r"A: got shape \(3, 4\), expected \(d, n\) with d=4"),
    "integers": ({"A": torch.zeros(4, 3).long()}, "A: got dtype torch.int64"),
    "B of another n": ({"B": torch.zeros(2, 9, 5).double()}, r"B: got shape \(2, 9, 5\), expected \(b, l, n\) or"),
    "real B to complex A": ({"A": torch.zeros(4, 3).cdouble()}, "B: got dtype torch.float64, expected torch.complex128"),
    "complex B to real A": ({"B": torch.zeros(2, 9, 3).cdouble()}, "B: got dtype torch.complex128"),
    "groups that do not divide": ({"C": torch.zeros(2, 9, 3, 3).double()}, "C: got 3 groups for 4 channels"),
    "no groups": ({"C": torch.zeros(2, 9, 0, 3).double()}, "C: got 0 groups for 4 channels"),
    "D of another size": ({"D": torch.zeros(3).double()}, r"D: got shape \(3,\), expected \(d,\) with d=4"),
    "z of another batch": ({"z": torch.zeros(1, 9, 4).double()}, r"z: got shape \(1, 9, 4\)"),
    "state transposed": ({"initial_state": torch.zeros(2, 3, 4).double()}, r"initial_state: got shape \(2, 3, 4\)"),
    "complex state": ({"initial_state": torch.zeros(2, 4, 3).cdouble()}, "initial_state: got dtype torch.complex128"),
    "seq_idx not of integers": ({"seq_idx": torch.zeros(2, 9)}, "seq_idx: got dtype torch.float32"),
    "seq_idx of another length": ({"seq_idx": torch.zeros(2, 8).long()}, r"seq_idx: got shape \(2, 8\)"),
    "another rule": ({"b_disc": "bilinear"}, "b_disc: got 'bilinear', expected one of euler, zoh"),
    "another backend": ({"backend": "cuda"}, "backend: got 'cuda'"),
    "a number": ({"dt": 0.1}, "dt: got float, expected a torch tensor"),
    "another device": ({"C": torch.zeros(2, 9, 3, device="meta").double()}, "C: got a tensor on meta"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_call_says_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        selective_scan(**inputs() | change)


def test_a_wrong_step_says_what_is_wrong():
    made = {name: t[:, 0] if t.ndim == 3 else t for name, t in inputs().items()}
    with pytest.raises(ValueError, match=r"state: got shape \(2, 3, 4\), expected \(b, d, n\)"):
        selective_state_update(torch.zeros(2, 3, 4).double(), **made)
    with pytest.raises(ValueError, match=r"B: got shape \(4, 3\), expected \(b, n\) or \(b, g, n\)"):
        selective_state_update(torch.zeros(2, 4, 3).double(), **made | {"B": torch.zeros(4, 3).double()})
    with pytest.raises(ValueError, match="state: got NoneType"):
        selective_state_update(None, **made)
    with pytest.raises(ValueError, match="b_disc: got 'exact'"):
        selective_state_update(torch.zeros(2, 4, 3).double(), **made, b_disc="exact")
