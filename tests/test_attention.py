"""Implicit attention matrices: against the equation's own loop, and against the operator, y = M x."""

from __future__ import annotations

import functools

import pytest
import torch
from operator_table import Case, assert_agrees, random
from test_relatives import (
    linear_attention_by_steps,
    linear_attention_inputs,
    rglru_by_steps,
    rglru_inputs,
    wkv4_by_sums,
    wkv4_inputs,
)
from torch import Tensor

from ssmcourse import (
    causal_conv1d,
    fft_conv,
    h3_mix,
    linear_attention,
    linear_scan,
    rglru_scan,
    selective_scan,
    ssd,
    wkv4,
)
from ssmcourse.attention import (
    conv1d_matrix,
    h3_matrix,
    kernel_matrix,
    linear_attention_matrix,
    rglru_matrix,
    selective_scan_matrix,
    semiseparable_matrix,
    ssd_matrix,
    wkv4_matrix,
)
from ssmcourse.tolerance import mismatch

# --- Oracles: what becomes of an impulse at step j, in the equation's own loop -------------------


def by_impulses(respond, like: Tensor) -> Tensor:
    """Column j of every channel is the response to an impulse at step j: (b, l, d) to (b, d, l, l)."""
    columns = []
    for j in range(like.shape[1]):
        x = torch.zeros_like(like)
        x[:, j] = 1
        columns.append(respond(x))
    return torch.stack(columns, -1).transpose(1, 2)


def of_channel(B: Tensor, b: int, l: int, d: int) -> Tensor:
    """Any shape of B or C written out as (b, l, d, n)."""
    if B.ndim == 2:
        return B.expand(b, l, *B.shape)
    if B.ndim == 3:
        return B[:, :, None].expand(b, l, d, -1)
    return B.repeat_interleave(d // B.shape[2], 2)


def selective_by_impulses(dt, A, B, C, D=None, *, b_disc="euler", channels=None):
    b, l, d = dt.shape
    B, C = of_channel(B, b, l, d), of_channel(C, b, l, d)

    def respond(x):
        h, y = 0, []
        for t in range(l):
            gate = torch.exp(dt[:, t, :, None] * A)
            write = (gate - 1) / A if b_disc == "zoh" else dt[:, t, :, None]
            h = gate * h + write * B[:, t] * x[:, t, :, None]
            out = (C[:, t] * h).sum(-1)
            out = 2 * out.real if A.is_complex() else out
            y.append(out if D is None else out + D * x[:, t])
        return torch.stack(y, 1)

    M = by_impulses(respond, dt)
    return M if channels is None else M[:, channels]


def ssd_by_impulses(dt, A, B, C, D=None):
    d, n = dt.shape[2], B.shape[3]
    return selective_by_impulses(dt, A[:, None].expand(d, n), B, C, D)


def h3_by_impulses(q, k, shift_kernel, ssm_kernel, D_shift=None, D_ssm=None):
    """Algorithm 1 of H3: a head's state is a matrix of shifted keys times values, seen through the kernel."""
    b, l, d = q.shape
    h = ssm_kernel.shape[0]
    p = d // h
    shifted = []
    for t in range(l):
        taps = range(min(t + 1, shift_kernel.shape[1]))
        total = sum(shift_kernel[:, s] * k[:, t - s] for s in taps)
        shifted.append(total if D_shift is None else total + D_shift * k[:, t])
    keys, queries = torch.stack(shifted, 1).reshape(b, l, h, p), q.reshape(b, l, h, p)

    def respond(v):  # (b, l, h): the same value for all channels of a head
        out = []
        for t in range(l):
            state = sum(ssm_kernel[:, t - s, None] * keys[:, s] * v[:, s, :, None] for s in range(t + 1))
            state = state if D_ssm is None else state + D_ssm[:, None] * keys[:, t] * v[:, t, :, None]
            out.append((queries[:, t] * state).sum(-1))
        return torch.stack(out, 1)

    return by_impulses(respond, torch.zeros(b, l, h, dtype=q.dtype))


def rglru_by_impulses(r, i, a_param, *, c=8.0):
    return by_impulses(lambda x: rglru_by_steps(x, r, i, a_param + 0 * r.sum(), c=c), r)


def wkv4_by_impulses(k, w, u):
    return by_impulses(lambda v: wkv4_by_sums(k, v, w + 0 * k.sum(), u), k)


def linear_attention_by_impulses(q, k, **options):
    def respond(x):
        return linear_attention_by_steps(q, k, x[..., None], **options)[..., 0]

    return by_impulses(respond, q[..., 0])


def kernel_by_entries(kernel):
    l = kernel.shape[-1]
    zero = torch.zeros_like(kernel[..., 0])
    rows = [torch.stack([kernel[..., i - j] if j <= i else zero for j in range(l)], -1) for i in range(l)]
    return torch.stack(rows, -2)


def conv1d_by_entries(weight, *, l):
    d, w = weight.shape
    taps = torch.cat([weight.flip(1), torch.zeros(d, max(0, l - w), dtype=weight.dtype)], 1)[:, :l]
    return kernel_by_entries(taps)


# --- The table ------------------------------------------------------------------------------------


def wide(dtype):
    return torch.promote_types(dtype, torch.float32)


def selective_inputs(b, l, d, n, dtype=torch.float64, *, B="b l n", C="b l n", is_complex=False, D=True):
    of_state = {torch.float64: torch.complex128}.get(dtype, torch.complex64) if is_complex else dtype
    shapes = {"b l n": (b, l, n), "b l 1 n": (b, l, 1, n), "b l g n": (b, l, 2, n), "d n": (d, n)}
    A = -random((d, n), seed=2).exp()
    A = torch.complex(A, 3 * random((d, n), seed=3)).to(of_state) if is_complex else A.to(wide(dtype))
    inputs = {
        "dt": torch.nn.functional.softplus(random((b, l, d), seed=1)).to(dtype),
        "A": A,
        "B": random(shapes[B], of_state, seed=4),
        "C": random(shapes[C], of_state, seed=5),
    }
    return inputs | ({"D": random((d,), wide(dtype), seed=6)} if D else {})


def ssd_inputs(b, l, h, n, g, dtype=torch.float64, D=True):
    inputs = {
        "dt": torch.nn.functional.softplus(random((b, l, h), seed=1)).to(dtype),
        "A": (-random((h,), seed=2).exp()).to(wide(dtype)),
        "B": random((b, l, g, n), dtype, seed=3),
        "C": random((b, l, g, n), dtype, seed=4),
    }
    return inputs | ({"D": random((h,), wide(dtype), seed=5)} if D else {})


def h3_inputs(b, l, d, p, m, dtype=torch.float64, skips=True):
    inputs = {
        "q": random((b, l, d), dtype, seed=1),
        "k": random((b, l, d), dtype, seed=2),
        "shift_kernel": random((d, m), wide(dtype), seed=3),
        "ssm_kernel": random((d // p, l), wide(dtype), seed=4),
    }
    skip = {
        "D_shift": random((d,), wide(dtype), seed=5),
        "D_ssm": random((d // p,), wide(dtype), seed=6),
    }
    return inputs | (skip if skips else {})


def only(inputs, *names):
    return {name: inputs[name] for name in names}


MATRICES = {
    "selective": (selective_scan_matrix, selective_by_impulses, selective_inputs),
    "ssd": (ssd_matrix, ssd_by_impulses, ssd_inputs),
    "h3": (h3_matrix, h3_by_impulses, h3_inputs),
    "rglru": (
        rglru_matrix,
        rglru_by_impulses,
        lambda *a, **o: only(rglru_inputs(*a, **o), "r", "i", "a_param"),
    ),
    "wkv4": (wkv4_matrix, wkv4_by_impulses, lambda *a, **o: only(wkv4_inputs(*a, **o), "k", "w", "u")),
    "linear_attention": (
        linear_attention_matrix,
        linear_attention_by_impulses,
        lambda *a, **o: only(linear_attention_inputs(*a, **o), "q", "k"),
    ),
    "kernel": (kernel_matrix, kernel_by_entries, lambda d, l, **o: {"kernel": random((d, l), seed=1, **o)}),
    "conv1d": (conv1d_matrix, conv1d_by_entries, lambda d, w, **o: {"weight": random((d, w), seed=1, **o)}),
}
WITH_BACKENDS = ("selective", "ssd", "rglru")


def case(matrix, name, *sizes, made=None, terms=60, **options):
    make = MATRICES[matrix][2]
    return matrix, Case(name, lambda: make(*sizes, **(made or {})), terms, options)


LENGTHS = [2, 3, 17]  # l = 1 below; longer ones in tests/kernels/test_implicit_attention.py
HALVES = [torch.float16, torch.bfloat16]
SHORT = {"dtype": torch.float32}
TABLE = [
    *(case("selective", f"l={l}", 2, l, 3, 2) for l in LENGTHS),
    *(case("selective", str(t), 1, 9, 3, 2, made={"dtype": t}) for t in (*HALVES, torch.float32)),
    *(
        case("selective", f"B {B}, C {C}, {rule}", 2, 7, 4, 3, made={"B": B, "C": C}, b_disc=rule)
        for B, C in (("b l g n", "b l g n"), ("d n", "b l n"), ("b l 1 n", "d n"))
        for rule in ("euler", "zoh")
    ),
    *(
        case("selective", f"complex {rule}", 2, 7, 4, 3, made={"is_complex": True, "B": B}, b_disc=rule)
        for B, rule in (("b l n", "euler"), ("b l g n", "zoh"))
    ),
    case("selective", "complex float32", 1, 7, 2, 3, made={"is_complex": True} | SHORT),
    case("selective", "no D", 2, 5, 3, 2, made={"D": False}),
    *(case("ssd", f"l={l}", 2, l, 4, 3, 2) for l in LENGTHS),
    *(case("ssd", str(t), 1, 9, 2, 3, 1, made={"dtype": t}) for t in (*HALVES, torch.float32)),
    case("ssd", "no D", 2, 5, 4, 3, 4, made={"D": False}),
    *(case("h3", f"l={l} heads of {p}", 2, l, 4, p, 3) for l, p in ((2, 1), (17, 1), (9, 2), (9, 4))),
    case("h3", "no skips, a shift of more than l", 2, 5, 2, 1, 7, made={"skips": False}),
    *(case("h3", str(t), 1, 9, 4, 2, 3, made={"dtype": t}) for t in (*HALVES, torch.float32)),
    *(case("rglru", f"l={l}", 2, l, 3) for l in LENGTHS),
    *(case("rglru", str(t), 1, 9, 3, made={"dtype": t}) for t in (*HALVES, torch.float32)),
    case("rglru", "c", 1, 9, 3, c=2.0),
    *(case("wkv4", f"l={l}", 2, l, 3) for l in LENGTHS),
    *(case("wkv4", str(t), 1, 9, 3, made={"dtype": t}) for t in (*HALVES, torch.float32)),
    case("wkv4", "keys of 100s", 1, 17, 3, made={"size": 100.0}, terms=2000),
    *(case("linear_attention", f"l={l}", 2, l, 3) for l in LENGTHS),
    *(case("linear_attention", str(t), 1, 9, 3, made={"dtype": t}) for t in (*HALVES, torch.float32)),
    case("linear_attention", "not divided", 2, 9, 3, normalize=False),
    case("linear_attention", "eps", 2, 9, 3, eps=0.5),
    *(case("kernel", f"l={l}", 3, l) for l in (1, *LENGTHS)),
    *(case("kernel", str(t), 3, 4, made={"dtype": t}) for t in (torch.bfloat16, torch.complex64)),
    *(case("conv1d", f"l={l}", 3, 4, l=l) for l in (1, 3, 4, 17)),
]


ROWS = [
    pytest.param(name, row, backend, id=f"{name} {row.name} {backend}")
    for name, row in TABLE
    for backend in (("cpu", "reference") if name in WITH_BACKENDS else ("",))  # others are written once
]


@pytest.mark.parametrize(("matrix", "row", "backend"), ROWS)
def test_table(matrix, row, backend):
    call, oracle, _ = MATRICES[matrix]
    call = functools.partial(call, backend=backend) if backend else call
    inputs = row.make()
    assert_agrees(call, oracle, inputs, terms=row.terms, **row.options)


# --- y = M x, with the operators ------------------------------------------------------------------


def apply(M: Tensor, x: Tensor) -> Tensor:
    """M (b, d, l, l) or (d, l, l) on x (b, l, d); with heads, (b, h, l, l) on (b, l, h, p)."""
    if x.ndim == 4:
        return torch.einsum("bhij,bjhp->bihp", M, x)
    return torch.einsum("...dij,...jd->...id", M, x)


@pytest.mark.parametrize("l", [1, 2, 65, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_matrix_times_x_is_the_operator(l, dtype):
    x = random((2, l, 4), dtype, seed=20)
    answers = {}
    forms = {"B": "b l g n", "C": "d n"}
    for name, rule, options in (
        ("plain", "euler", {}),
        ("plain", "zoh", {}),
        ("groups", "euler", forms),
        # The matrix has both rules in the table above; of the scan, each takes a compilation.
        ("complex", "euler" if dtype == torch.float32 else "zoh", forms | {"is_complex": True}),
    ):
        given = selective_inputs(2, l, 4, 3, dtype, **options)
        M = selective_scan_matrix(**given, b_disc=rule)
        answers[f"selective {name} {rule}"] = (apply(M, x), selective_scan(x, **given, b_disc=rule))
    given = ssd_inputs(2, l, 4, 3, 2, dtype)
    wide_x = random((2, l, 4, 5), dtype, seed=21)
    answers["ssd"] = apply(ssd_matrix(**given), wide_x), ssd(wide_x, **given)
    for p in (1, 2):
        given = h3_inputs(2, l, 4, p, 3, dtype)
        v = x.unflatten(2, (4 // p, p))
        answers[f"h3 {p}"] = apply(h3_matrix(**given), v).flatten(2), h3_mix(v=x, **given, head_dim=p)
    kernel, weight = random((4, l), dtype, seed=22), random((4, 3), dtype, seed=23)
    answers["kernel"] = apply(kernel_matrix(kernel), x), fft_conv(x, kernel)
    answers["conv1d"] = apply(conv1d_matrix(weight, l), x), causal_conv1d(x, weight)
    given = only(rglru_inputs(2, l, 4, dtype), "r", "i", "a_param")
    answers["rglru"] = apply(rglru_matrix(**given), x), rglru_scan(x, **given)
    given = only(wkv4_inputs(2, l, 4, dtype), "k", "w", "u")
    answers["wkv4"] = apply(wkv4_matrix(**given), x), wkv4(v=x, **given)
    given = linear_attention_inputs(2, l, 4, dtype, initial=False)
    M = linear_attention_matrix(given["q"], given["k"])
    answers["linear_attention"] = apply(M, given["v"]), linear_attention(**given)
    log_a = -random((2, l, 4), dtype, seed=24).exp()
    one = torch.ones(l, 1, dtype=dtype)
    answers["linear_scan"] = (
        apply(semiseparable_matrix(log_a.mT[..., None], one, one), x),
        linear_scan(log_a.exp(), x),
    )
    for name, (got, expected) in answers.items():
        problem = mismatch(got, expected, terms=4 * l)
        assert problem is None, f"{name}: {problem}"


# --- What the matrices are --------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [[3, 1], (0,), 2, slice(1, 4, 2), torch.tensor([4, 0]), [-1], []])
@pytest.mark.parametrize("B", ["b l n", "b l g n", "d n"])
def test_channels_picks_rows_of_the_whole(channels, B):
    given = selective_inputs(2, 9, 6, 3, B=B, C=B)
    whole = selective_scan_matrix(**given)
    some = selective_scan_matrix(**given, channels=channels)
    assert torch.equal(some, whole[:, [channels] if isinstance(channels, int) else channels])


def test_the_rows_of_rwkv_and_of_linear_attention_sum_to_1():
    M = wkv4_matrix(**only(wkv4_inputs(2, 50, 3, size=100.0), "k", "w", "u"))
    assert mismatch(M.sum(-1), torch.ones(2, 3, 50)) is None
    assert (M >= 0).all()
    N = linear_attention_matrix(**only(linear_attention_inputs(2, 50, 3), "q", "k"), eps=0.0)
    assert mismatch(N.sum(-1), torch.ones(2, 3, 50)) is None


def test_a_decay_at_once_leaves_the_step_before():
    """exp(100) is no float32, and 0 times infinity no weight."""
    given = only(wkv4_inputs(1, 9, 3, torch.float32), "k", "u") | {"w": torch.full((3,), 100.0)}
    given = {name: t.requires_grad_() for name, t in given.items()}
    M = wkv4_matrix(**given)
    assert torch.count_nonzero(M.tril(-2)) == 0
    assert mismatch(M.sum(-1), torch.ones(1, 3, 9)) is None
    gradients = torch.autograd.grad((M**2).sum(), list(given.values()))
    assert all(g.isfinite().all() for g in gradients)


def test_every_matrix_is_lower_triangular():
    for name, row in TABLE:
        call = MATRICES[name][0]
        M = call(**row.make(), **row.options)
        assert torch.count_nonzero(M.triu(1)) == 0, f"{name} {row.name}"


@pytest.mark.parametrize("n", [2, 5])
def test_what_is_below_the_diagonal_has_the_rank_of_the_state(n):
    """Mamba-2, definition 3.1: an n-semiseparable matrix."""
    M = selective_scan_matrix(**selective_inputs(1, 40, 1, n, D=False))[0, 0]
    assert torch.linalg.matrix_rank(M[20:, :20], rtol=1e-12) == n


def test_the_root_of_griffin_is_in_the_matrix():
    """sqrt(1 - a_s^2) is left out in a widely used copy: its matrix is larger wherever a is near 1."""
    given = only(rglru_inputs(1, 20, 3), "r", "i", "a_param")
    log_a = -8 * given["r"] * torch.nn.functional.softplus(given["a_param"])
    one = torch.ones(20, 1, dtype=torch.float64)
    dropped = semiseparable_matrix(log_a.mT[..., None], given["i"].mT[..., None], one)
    M = rglru_matrix(**given)
    ratio = (M / dropped).diagonal(0, -2, -1)[..., 1:]
    expected = torch.sqrt(1 - torch.exp(2 * log_a)).mT[..., 1:]
    assert mismatch(ratio, expected) is None
    assert ratio.min() < 0.5


def test_the_entry_of_a_token_for_itself_and_the_gate_of_the_last_step_are_there():
    """A published attribution leaves both out for the class token: row i lacks its gate, and M[i, i]."""
    given = selective_inputs(1, 10, 2, 3, D=False)
    M = selective_scan_matrix(**given)
    own = given["dt"][..., None] * given["B"][:, :, None] * given["C"][:, :, None]
    assert mismatch(M.diagonal(0, -2, -1).mT, own.sum(-1), terms=3) is None
    gate = torch.exp(given["dt"][:, 9, :, None] * given["A"])
    before = own[:, 8, :, :] / given["C"][:, 8, None] * given["C"][:, 9, None]
    assert mismatch(M[..., 9, 8], (gate * before).sum(-1), terms=3) is None


@pytest.mark.parametrize(
    ("call", "given", "line"),
    [
        (selective_scan_matrix, selective_inputs(1, 5, 6, 2) | {"channels": [6]}, "channels: got"),
        (selective_scan_matrix, selective_inputs(1, 5, 6, 2) | {"channels": "all"}, "channels: got"),
        (selective_scan_matrix, selective_inputs(1, 5, 6, 2) | {"channels": [0.5]}, "channels: got"),
        (selective_scan_matrix, selective_inputs(1, 5, 5, 2, B="b l g n"), "B: got 2 groups for 5 channels"),
        (selective_scan_matrix, selective_inputs(1, 5, 6, 2) | {"b_disc": "bilinear"}, "b_disc: got"),
        (ssd_matrix, ssd_inputs(1, 5, 4, 3, 2) | {"D": random((4, 3), seed=1)}, "D: got shape"),
        (
            h3_matrix,
            h3_inputs(1, 5, 4, 1, 2, skips=False) | {"ssm_kernel": random((3, 5), seed=1)},
            "ssm_kernel",
        ),
        (h3_matrix, h3_inputs(1, 5, 4, 1, 0, skips=False), "shift_kernel: got m=0, expected m of 1 or more"),
        (
            conv1d_matrix,
            {"weight": random((3, 0), seed=1), "l": 4},
            "weight: got w=0, expected w of 1 or more",
        ),
        (conv1d_matrix, {"weight": random((3, 4), seed=1), "l": -1}, "l: got -1"),
        (conv1d_matrix, {"weight": random((3, 4), seed=1), "l": True}, "l: got True"),
        (conv1d_matrix, {"weight": random((3,), seed=1), "l": 4}, "weight: got shape"),
        (kernel_matrix, {"kernel": [1.0, 2.0]}, "kernel: got list"),
        (wkv4_matrix, {"k": random((1, 5, 3), seed=1), "w": random((4,), seed=1), "u": None}, "w: got shape"),
        (rglru_matrix, {"r": random((1, 5, 3), seed=1), "i": 1, "a_param": 2}, "i: got int"),
    ],
)
def test_one_clear_line(call, given, line):
    with pytest.raises(ValueError, match=line) as error:
        call(**given)
    assert "expected" in str(error.value)


@pytest.mark.parametrize(("b", "l"), [(0, 4), (2, 0), (2, 1)])
def test_a_batch_of_none_a_length_of_none_and_a_length_of_one(b, l):
    shapes = {
        "selective": (b, l, 3, 2),
        "ssd": (b, l, 4, 3, 2),
        "h3": (b, l, 4, 2, 3),
        "rglru": (b, l, 3),
        "wkv4": (b, l, 3),
        "linear_attention": (b, l, 3),
    }
    for name, sizes in shapes.items():
        call, oracle, make = MATRICES[name]
        given = {key: t.requires_grad_() for key, t in make(*sizes).items()}
        M = call(**given)
        assert M.shape[0] == b
        assert M.shape[2:] == (l, l), name
        torch.autograd.grad(M.sum(), list(given.values()), allow_unused=True)
        if b and l:
            problem = mismatch(M, oracle(**given), terms=4)
            assert problem is None, f"{name}: {problem}"
    assert kernel_matrix(torch.zeros(3, 0)).shape == (3, 0, 0)
    assert conv1d_matrix(torch.zeros(3, 4), 0).shape == (3, 0, 0)
