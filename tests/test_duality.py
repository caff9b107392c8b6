"""segsum, the step of SSD, what its arguments must be, and how its three forms hang together."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssmcourse.duality import segsum, ssd, ssd_state_update
from ssmcourse.scan import backends
from ssmcourse.tolerance import mismatch


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# --- segsum -------------------------------------------------------------------------------------------


def test_segsum_by_hand():
    expected = [[0, -math.inf, -math.inf], [-2, 0, -math.inf], [-5, -3, 0]]
    assert segsum(torch.tensor([-1.0, -2.0, -3.0])).tolist() == expected


@pytest.mark.parametrize("l", [0, 1, 2, 17])
def test_segsum_is_the_sum_over_each_segment(l):
    log_a = normal(2, 3, l)
    got = segsum(log_a)
    assert got.shape == (2, 3, l, l)
    for i in range(l):
        for j in range(l):
            expected = log_a[..., j + 1 : i + 1].sum(-1) if i >= j else torch.full((2, 3), -torch.inf)
            assert mismatch(got[..., i, j], expected, terms=17) is None, (i, j)


def test_segsum_is_exact_near_the_diagonal():
    """At l = 4096, where a difference of two cumulative sums in float32 is a thousand times worse."""
    log_a = -normal(4096, dtype=torch.float32).abs()
    got, differences = segsum(log_a), log_a.cumsum(0)
    exact = log_a.double().cumsum(0)
    worst = 0.0
    for steps in range(1, 17):
        near = exact[steps:] - exact[:-steps]
        assert (got.diagonal(-steps) - near).abs().max() < 1e-5
        worst = max(worst, (differences[steps:] - differences[:-steps] - near).abs().max().item())
    assert worst > 1e-4
    assert (got.diagonal() == 0).all()
    assert (got.triu(1) == torch.full_like(got, -torch.inf).triu(1)).all()


def test_segsum_has_gradients_without_nan():
    log_a = normal(6).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: segsum(t).exp(), log_a)
    reset = torch.tensor([-0.1, -torch.inf, -0.1, -1e4, 0.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(segsum(reset).exp().sum(), reset)
    assert gradient.isfinite().all()


def test_segsum_sums_half_types_in_float32():
    log_a = -normal(300, dtype=torch.bfloat16).abs()
    got = segsum(log_a)
    assert got.dtype == torch.bfloat16
    assert mismatch(got, segsum(log_a.double())) is None


@pytest.mark.parametrize("wrong", [torch.tensor(1.0), torch.ones(3, dtype=torch.int64), [1.0]])
def test_segsum_refuses(wrong):
    with pytest.raises(ValueError, match="log_a: got"):
        segsum(wrong)


# --- The step -----------------------------------------------------------------------------------------


def sequence(b=2, l=9, h=4, p=3, n=5, g=2, dtype=torch.float64) -> dict[str, Tensor]:
    wide = torch.promote_types(dtype, torch.float32)
    return {
        "x": normal(b, l, h, p, dtype=dtype, seed=1),
        "dt": normal(b, l, h, dtype=dtype, seed=2),
        "A": -normal(h, dtype=wide, seed=3).abs(),
        "B": normal(b, l, g, n, dtype=dtype, seed=4),
        "C": normal(b, l, g, n, dtype=dtype, seed=5),
        "D": normal(h, p, dtype=wide, seed=6),
        "z": normal(b, l, h, p, dtype=dtype, seed=7),
        "dt_bias": normal(h, dtype=wide, seed=8),
    }


IN_TIME = ("x", "dt", "B", "C", "z")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"dt_softplus": True, "dt_limit": (0.2, 0.8)}], ids=str)
@pytest.mark.parametrize("leave_out", [(), ("D", "z", "dt_bias")], ids=str)
def test_steps_are_the_sequence(dtype, options, leave_out):
    given = {k: v for k, v in sequence(dtype=dtype).items() if k not in leave_out}
    y, final = ssd(**given, **options, return_final_state=True)
    for split in (0, 4):  # some steps as a sequence, the rest one by one
        head = {k: v[:, :split] if k in IN_TIME else v for k, v in given.items()}
        _, state = ssd(**head, **options, return_final_state=True)
        for t in range(split, 9):
            before = state.clone()
            step = {k: v[:, t] if k in IN_TIME else v for k, v in given.items()}
            y_t, after = ssd_state_update(state, **step, **options)
            assert torch.equal(state, before), "the given state was changed"
            assert (y_t.dtype, after.dtype) == (y.dtype, final.dtype)
            assert mismatch(y_t, y[:, t], terms=9) is None, t
            state = after
        assert mismatch(state, final, terms=9) is None


def test_a_step_has_gradients():
    given = sequence(b=1, l=1, h=2, g=1)
    names = [*given, "state"]
    leaves = [given[k][:, 0] if k in IN_TIME else given[k] for k in given] + [normal(1, 2, 3, 5, seed=9)]
    leaves = [v.clone().requires_grad_() for v in leaves]

    def step(*tensors):
        return ssd_state_update(**dict(zip(names, tensors, strict=True)), dt_softplus=True)

    assert torch.autograd.gradcheck(step, tuple(leaves))


# --- Three forms of one map -----------------------------------------------------------------------------


def test_the_quadratic_form_is_masked_attention():
    """With dt = 1 and B, C as keys and queries, y is (L ∘ C Bᵀ) x with L from segsum."""
    given = sequence(b=1, l=12, h=2, g=1)
    x, A, B, C = given["x"], given["A"], given["B"], given["C"]
    y = ssd(x, torch.ones(1, 12, 2, dtype=x.dtype), A, B, C)
    for head in range(2):
        mask = segsum(A[head].expand(12)).exp()
        expected = (mask * (C[0, :, 0] @ B[0, :, 0].T)) @ x[0, :, head]
        assert mismatch(y[0, :, head], expected, terms=12) is None


def test_without_decay_it_is_linear_attention():
    given = sequence(b=1, l=12, h=1, g=1)
    x, B, C = given["x"], given["B"], given["C"]
    y = ssd(x, torch.ones(1, 12, 1, dtype=x.dtype), torch.zeros(1, dtype=x.dtype), B, C)
    expected = torch.tril(C[0, :, 0] @ B[0, :, 0].T) @ x[0, :, 0]
    assert mismatch(y[0, :, 0], expected, terms=12) is None


# --- Arguments ------------------------------------------------------------------------------------------


WRONG = {
    "x": (lambda t: t[0], r"x: got shape \(9, 4, 3\), expected \(b, l, h, p\)"),
    "dt": (lambda t: t[..., :3], r"dt: got shape \(2, 9, 3\), expected \(b, l, h\) with b=2, l=9, h=4"),
    "A": (lambda t: t[:, None], r"A: got shape \(4, 1\), expected \(h,\)"),
    "B": (lambda t: t[:, :, 0], r"B: got shape \(2, 9, 5\), expected \(b, l, g, n\)"),
    "C": (lambda t: t[..., :2], r"C: got shape .* n=5 as in .*B"),
    "D": (lambda t: t[:2], r"D: got shape \(2, 3\), expected \(h,\) or \(h, p\)"),
    "z": (lambda t: t.float(), "z: got dtype torch.float32, expected torch.float64"),
    "dt_bias": (lambda t: t.int(), "dt_bias: got dtype torch.int32"),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_clear_line(name):
    given = sequence()
    damage, message = WRONG[name]
    given[name] = damage(given[name])
    with pytest.raises(ValueError, match=message):
        ssd(**given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_size": 0}, "chunk_size: got 0, expected an integer of 1 or more"),
        ({"chunk_size": 2.5}, "chunk_size: got 2.5"),
        ({"chunk_size": True}, "chunk_size: got True"),
        ({"dt_limit": (1.0, 0.0)}, "dt_limit: got"),
        ({"dt_limit": 3}, "dt_limit: got 3"),
        ({"seq_idx": torch.zeros(2, 9)}, "seq_idx: got dtype torch.float32, expected an integer one"),
        ({"seq_idx": torch.zeros(9, dtype=torch.int64)}, "seq_idx: got shape"),
        ({"initial_state": torch.zeros(2, 4, 5, 3)}, "initial_state: got shape"),
        ({"backend": "gpu"}, "backend: got 'gpu', .*cpu, chunked"),
    ],
    ids=str,
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        ssd(**sequence(), **options)


def test_groups_share_out_the_heads():
    given = sequence(h=3, g=2)
    with pytest.raises(ValueError, match="B: got 2 groups for 3 heads"):
        ssd(**given)


def test_a_step_names_its_own_shapes():
    given = {k: v[:, 0] if k in IN_TIME else v for k, v in sequence().items()}
    with pytest.raises(ValueError, match=r"state: got shape \(2, 4, 3\), expected \(b, h, p, n\)"):
        ssd_state_update(normal(2, 4, 3), **given)
    given["x"] = given["x"][0]
    with pytest.raises(ValueError, match=r"x: got shape \(4, 3\), expected \(b, h, p\)"):
        ssd_state_update(normal(2, 4, 3, 5), **given)


def test_names_of_the_algorithms():
    assert {"reference", "recurrent", "quadratic", "chunked"} <= set(backends("ssd"))
