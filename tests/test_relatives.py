"""RG-LRU, RWKV-4 and linear attention against their equations, step by step in float64."""

from __future__ import annotations

import functools
import math
import subprocess
import sys

import pytest
import torch
from operator_table import LENGTHS, Case, assert_agrees, random
from torch import Tensor

from ssmcourse import linear_attention, rglru_scan, wkv4
from ssmcourse.tolerance import mismatch

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


# --- Oracles: the papers' recurrences, one step after another ------------------------------------


def rglru_by_steps(x, r, i, a_param, initial_state=None, *, c=8.0, return_final_state=False):
    """Griffin, eq. 3 and 4. sqrt(1 - a^2) from a itself: float64 has digits to spare."""
    a = torch.sigmoid(-a_param).log().mul(c * r).exp()  # softplus(Λ) = -log sigmoid(-Λ)
    h = torch.zeros_like(x[:, 0]) if initial_state is None else initial_state
    out = []
    for t in range(x.shape[1]):
        scale = 1 if t == 0 and initial_state is None else torch.sqrt(1 - a[:, t] ** 2)
        h = a[:, t] * h + scale * i[:, t] * x[:, t]
        out.append(h)
    y = torch.stack(out, 1)
    return (y, h) if return_final_state else y


def wkv4_by_sums(k, v, w, u, initial_state=None, *, return_final_state=False):
    """RWKV, eq. 16, as it stands: every weight of every step written down, sums at the largest's scale."""
    l, decay = k.shape[1], torch.exp(w)
    num, den, top = (0 * k[:, 0], 0 * k[:, 0], torch.full_like(k[:, 0], -1e30))
    if initial_state is not None:
        num, den, top = initial_state.unbind(1)
    out = []
    for t in range(l + 1):
        past = [k[:, j] - (t - 1 - j) * decay for j in range(t)]
        logs = torch.stack([top - t * decay, *past, *([u + k[:, t]] if t < l else [])], 1)
        largest = logs.amax(1, keepdim=True)
        weights = (logs - largest).exp()
        values = torch.cat([num[:, None], v[:, : t + 1]], 1)
        ones = torch.cat([den[:, None], torch.ones_like(v[:, : t + 1])], 1)
        sums = (weights * values).sum(1), (weights * ones).sum(1)
        if t < l:
            out.append(sums[0] / sums[1])
    state = torch.stack([*sums, largest[:, 0]], 1)
    y = torch.stack(out, 1)
    return (y, state) if return_final_state else y


def linear_attention_by_steps(
    q, k, v, initial_state=None, *, normalize=True, eps=1e-6, return_final_state=False
):
    """Katharopoulos et al., eq. 10 to 12; z is a sum of its own here."""
    b, l, h, n = q.shape
    p = v.shape[3]
    S, z = q.new_zeros(b, h, p, n), q.new_zeros(b, h, n)
    if initial_state is not None:
        S, z = initial_state[:, :, :p], initial_state[:, :, -1]
    out = []
    for t in range(l):
        S = S + v[:, t, :, :, None] * k[:, t, :, None]
        z = z + k[:, t]
        y = torch.einsum("bhpn,bhn->bhp", S, q[:, t])
        out.append(y / ((z * q[:, t]).sum(-1, keepdim=True) + eps) if normalize else y)
    state = torch.cat([S, z[:, :, None]], 2) if normalize else S
    y = torch.stack(out, 1)
    return (y, state) if return_final_state else y


# --- The tables -----------------------------------------------------------------------------------


def of_parameters(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def rglru_inputs(b, l, d, dtype=torch.float64, initial=True):
    inputs = {
        "x": random((b, l, d), dtype, seed=1),
        "r": random((b, l, d), seed=2).sigmoid().to(dtype),
        "i": random((b, l, d), seed=3).sigmoid().to(dtype),
        "a_param": (random((d,), seed=4) - 3).to(of_parameters(dtype)),
    }
    return inputs | ({"initial_state": random((b, d), of_parameters(dtype), seed=5)} if initial else {})


def wkv4_inputs(b, l, d, dtype=torch.float64, initial=True, size=3.0, spread=1.0):
    wide = of_parameters(dtype)
    inputs = {
        "k": (size * random((b, l, d), seed=1)).to(dtype),
        "v": random((b, l, d), dtype, seed=2),
        "w": (spread * random((d,), seed=3) - 1).to(wide),
        "u": random((d,), wide, seed=4),
    }
    if not initial:
        return inputs
    state = torch.stack([random((b, d), seed=5), random((b, d), seed=6).exp(), random((b, d), seed=7)], 1)
    return inputs | {"initial_state": state.to(wide)}


def linear_attention_inputs(b, l, h, dtype=torch.float64, initial=True, n=4, p=3, normalize=True):
    inputs = {
        "q": random((b, l, h, n), seed=1).exp().to(dtype),
        "k": random((b, l, h, n), seed=2).exp().to(dtype),
        "v": random((b, l, h, p), dtype, seed=3),
    }
    if not initial:
        return inputs
    state = random((b, h, p + normalize, n), of_parameters(dtype), seed=4)
    if normalize:
        state[:, :, -1] = state[:, :, -1].abs()
    return inputs | {"initial_state": state}


OPERATORS = {
    "rglru": (rglru_scan, rglru_by_steps, rglru_inputs),
    "wkv4": (functools.partial(wkv4, backend="cpu"), wkv4_by_sums, wkv4_inputs),
    "wkv4 reference": (functools.partial(wkv4, backend="reference"), wkv4_by_sums, wkv4_inputs),
}
for _backend in ("cpu", "chunked", "reference"):
    OPERATORS[f"linear_attention {_backend}"] = (
        functools.partial(linear_attention, backend=_backend),
        linear_attention_by_steps,
        linear_attention_inputs,
    )


def case(name, operator, b, l, d, *, made=None, terms=1, **options):
    make = OPERATORS[operator][2]
    return operator, Case(name, lambda: make(b, l, d, **(made or {})), terms * 4 * l, options)


STATE = {"return_final_state": True}
WKV4 = ("wkv4", "wkv4 reference")
HUNDREDS, SHORT = {"size": 100.0}, {"dtype": torch.float32}
WITHOUT_EPS = ("rglru", *WKV4)
TABLE = [
    *(case(f"l={l}", name, 2, l, 3, **STATE) for name in OPERATORS for l in LENGTHS),
    *(case(str(t), name, 2, 19, 3, made={"dtype": t}, **STATE) for name in OPERATORS for t in FLOATS),
    *(case("no state", name, 2, 17, 3, made={"initial": False}) for name in OPERATORS),
    *(case("no state, l=1", name, 1, 1, 2, made={"initial": False}) for name in WITHOUT_EPS),
    *(case("many channels", name, 1, 9, 37, **STATE) for name in OPERATORS),
    case("c", "rglru", 2, 17, 3, c=2.0),
    *(case("keys of 100s", name, 2, 40, 3, made=HUNDREDS, **STATE) for name in WKV4),
    *(case("keys of 100s, fast and slow", name, 2, 40, 8, made=HUNDREDS | {"spread": 5.0}) for name in WKV4),
    *(case("keys of 100s, float32", name, 2, 40, 3, made=HUNDREDS | SHORT, terms=100) for name in WKV4),
    case(
        "not divided", "linear_attention cpu", 2, 70, 3, made={"normalize": False}, normalize=False, **STATE
    ),
    case("eps", "linear_attention cpu", 2, 17, 3, eps=0.5),
    case("two chunks and one step", "linear_attention cpu", 1, 129, 2, **STATE),
]


@pytest.mark.parametrize(("operator", "row"), TABLE, ids=[f"{name} {row.name}" for name, row in TABLE])
def test_table(operator, row):
    call, oracle, _ = OPERATORS[operator]
    inputs = row.make()
    assert_agrees(call, oracle, inputs, terms=row.terms, **row.options)


@pytest.mark.parametrize("operator", OPERATORS)
def test_chunks_that_pass_their_state_on_are_the_whole(operator):
    call, _, make = OPERATORS[operator]
    inputs = make(2, 70, 3, initial=False)
    whole, last = call(**inputs, **STATE)
    for size in (1, 16, 64, 69):
        parts, state = [], None
        for start in range(0, 70, size):
            part = {n: t[:, start : start + size] if t.ndim > 1 else t for n, t in inputs.items()}
            y, state = call(**part, initial_state=state, **STATE)
            parts.append(y)
        problem = mismatch(torch.cat(parts, 1), whole, terms=70) or mismatch(state, last, terms=70)
        assert problem is None, f"chunks of {size}: {problem}"


# --- RG-LRU ---------------------------------------------------------------------------------------


def test_the_input_is_scaled_by_the_root_that_a_known_copy_drops():
    """Without sqrt(1 - a^2), as in a widely used copy whose tracing switch is always on, states differ."""
    inputs = rglru_inputs(1, 30, 4)
    a = (-8 * inputs["r"] * torch.nn.functional.softplus(inputs["a_param"])).exp()
    dropped, h = [], inputs["initial_state"]
    for t in range(30):
        h = a[:, t] * h + inputs["i"][:, t] * inputs["x"][:, t]
        dropped.append(h)
    ours = rglru_scan(**inputs)
    assert (ours - torch.stack(dropped, 1)).abs().max() > 0.05 * ours.abs().max()
    assert mismatch(ours, rglru_by_steps(**inputs), terms=30) is None


def test_the_root_has_its_digits_where_a_is_almost_1():
    """1 - a^2 is 1.6e-6 here: from a in float32 its error would be 4 %."""
    x, r = torch.ones(1, 2, 1), torch.full((1, 2, 1), 1e-6)
    a_param = torch.tensor([-2.3])
    y = rglru_scan(x, r, torch.ones_like(x), a_param, initial_state=torch.zeros(1, 1))
    wide = rglru_by_steps(*(t.double() for t in (x, r, torch.ones_like(x), a_param, torch.zeros(1, 1))))
    assert mismatch(y, wide, terms=2) is None


def test_a_closed_gate_has_a_finite_gradient():
    """r = 0: a is 1, the input is shut out, and the slope of the root is infinite there."""
    inputs = {name: t.requires_grad_() for name, t in rglru_inputs(1, 5, 2, torch.float32).items()}
    r = inputs["r"].detach().clone()
    r[:, 2] = 0
    inputs["r"] = r.requires_grad_()
    y = rglru_scan(**inputs)
    assert torch.equal(y[:, 2], y[:, 1])
    for g in torch.autograd.grad(y.sum(), list(inputs.values())):
        assert g.isfinite().all()


def test_the_first_step_of_a_sequence_is_not_scaled():
    inputs = rglru_inputs(1, 3, 2, initial=False)
    y = rglru_scan(**inputs)
    assert mismatch(y[:, 0], inputs["i"][:, 0] * inputs["x"][:, 0]) is None
    scaled = rglru_scan(**inputs, initial_state=torch.zeros(1, 2, dtype=torch.float64))
    assert (scaled[:, 0].abs() < y[:, 0].abs()).all()


SEQUENCES = torch.tensor([[7] * 4 + [2] + [7] * 6, [0] * 3 + [-1] * 8])  # of 4, 1 and 6 steps; of 3 and 8


def rglru_of_each(initial_state=None, **inputs):
    """One packed sequence after another; the initial state is for the first of a row."""
    a_param, ys, states = inputs.pop("a_param"), [], []
    for row, lengths in enumerate(([4, 1, 6], [3, 8])):
        parts = [list(t[row : row + 1].split(lengths, 1)) for t in inputs.values()]
        for n in range(len(lengths)):
            first = initial_state[row : row + 1] if initial_state is not None and n == 0 else None
            arguments = dict(zip(inputs, (part[n] for part in parts), strict=True))
            y, state = rglru_by_steps(**arguments, a_param=a_param, initial_state=first, **STATE)
            ys.append(y[0])
            states.append(state)
    return torch.cat(ys).reshape(2, 11, -1), torch.cat(states)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("initial", [True, False])
def test_packed_sequences_of_the_rglru(initial, dtype):
    inputs = rglru_inputs(2, 11, 3, dtype, initial=initial)

    def packed(*tensors, **named):
        return rglru_scan(*tensors, **named, seq_idx=SEQUENCES, return_final_state=True)

    assert_agrees(packed, rglru_of_each, inputs, terms=44)


def test_packed_sequences_of_the_rglru_of_no_steps():
    inputs = rglru_inputs(2, 0, 3)
    y, state = rglru_scan(**inputs, seq_idx=torch.zeros(2, 0, dtype=torch.int64), return_final_state=True)
    assert y.shape == (2, 0, 3)
    assert torch.equal(state, inputs["initial_state"])


# --- RWKV-4 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [-300.0, 0.0, 300.0])
@pytest.mark.parametrize("w", [-8.0, -1.0, 3.0, 60.0])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_shift_of_all_keys_changes_nothing(offset, w, backend):
    """exp(300) is no float32. Keys are multiples of 1/32, so that adding the offset rounds nothing."""
    k = (random((1, 100, 3), seed=1) * 32).round() / 32
    v, u = random((1, 100, 3), torch.float32, seed=2), torch.zeros(3)
    shifted = wkv4((k + offset).float(), v, torch.full((3,), w), u, backend=backend)
    expected = wkv4_by_sums(*(t.double() for t in (k, v, torch.full((3,), w), u)))
    problem = mismatch(shifted, expected, terms=100)
    assert problem is None, str(problem)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_slow_decay_is_not_lost_beside_large_keys(backend):
    """A maximum that is carried along as max - decay would not move at all: 200 - 1e-6 is 200 in float32."""
    k = torch.zeros(1, 3000, 1)
    k[:, 0] = 200
    v = torch.zeros(1, 3000, 1)
    v[:, 0] = 1
    u = torch.tensor([200.0])
    w = torch.tensor([math.log(1e-6)])
    y = wkv4(k, v, w, u, backend=backend)
    past = math.exp(-2998e-6)
    assert y[0, -1, 0].item() == pytest.approx(past / (past + 1), rel=1e-4)  # the maximum alone: 1.5e-3


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_official_empty_state_is_no_state(backend):
    inputs = wkv4_inputs(2, 9, 3, torch.float32, initial=False)
    plain = wkv4(**inputs, backend=backend)
    for empty in (-1e38, -torch.inf):
        state = torch.zeros(2, 3, 3)
        state[:, 2] = empty
        assert torch.equal(wkv4(**inputs, initial_state=state, backend=backend), plain)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_jump_of_keys_in_either_direction(backend):
    """From -300 to 300 and back: what is small beside the largest weight is nothing, what follows counts."""
    k = torch.full((1, 60, 2), -300.0)
    k[:, 20:22] = 300
    v = random((1, 60, 2), torch.float32, seed=2)
    for w in (-3.0, 2.0, 5.0, 8.0):
        args = (k, v, torch.full((2,), w), torch.zeros(2))
        problem = mismatch(wkv4(*args, backend=backend), wkv4_by_sums(*(t.double() for t in args)), terms=60)
        assert problem is None, f"w={w}: {problem}"


@pytest.mark.parametrize("w", [20.0, 100.0, torch.inf])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_decay_at_once_has_finite_gradients(w, backend):
    """exp(100) is no float32. A step sees its own value and the one before, and w changes nothing."""
    inputs = wkv4_inputs(2, 70, 3, torch.float32, initial=False) | {"w": torch.full((3,), w)}
    inputs = {name: t.requires_grad_() for name, t in inputs.items()}
    y, state = wkv4(**inputs, return_final_state=True, backend=backend)
    k, v, u = (inputs[name].double() for name in "kvu")
    present = torch.sigmoid(u + k[:, 1:] - k[:, :-1])
    assert mismatch(y[:, 1:], present * v[:, 1:] + (1 - present) * v[:, :-1], terms=4) is None
    found = torch.autograd.grad(y.sum() + state.sum(), list(inputs.values()))
    assert all(g.isfinite().all() for g in found)
    assert torch.equal(found[list(inputs).index("w")], torch.zeros(3))


def test_threads_share_the_channels():
    """More channels than a block, more steps than a chunk, against the reference."""
    inputs = {name: t.requires_grad_() for name, t in wkv4_inputs(2, 150, 300).items()}
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        found = {}
        for backend in ("cpu", "reference"):
            results = wkv4(**inputs, **STATE, backend=backend)
            weights = [random(r.shape, seed=9) for r in results]
            found[backend] = [*results, *torch.autograd.grad(results, list(inputs.values()), weights)]
    finally:
        torch.set_num_threads(before)
    for name, got, expected in zip(["y", "state", *inputs], *found.values(), strict=True):
        problem = mismatch(got, expected, terms=300)
        assert problem is None, f"{name}: {problem}"


# --- Linear attention -----------------------------------------------------------------------------


def linear_attention_of_each(initial_state=None, *, normalize, **inputs):
    """One packed sequence after another; the initial state is for the first of a row."""
    ys, states = [], []
    for row, lengths in enumerate(([4, 1, 6], [3, 8])):
        parts = [list(t[row : row + 1].split(lengths, 1)) for t in inputs.values()]
        for n in range(len(lengths)):
            first = initial_state[row : row + 1] if initial_state is not None and n == 0 else None
            y, state = linear_attention_by_steps(
                *(part[n] for part in parts), first, normalize=normalize, **STATE
            )
            ys.append(y[0])
            states.append(state)
    return torch.cat(ys).unflatten(0, (2, 11)), torch.cat(states)


@pytest.mark.parametrize("backend", ["cpu", "chunked", "quadratic", "reference"])
@pytest.mark.parametrize(("normalize", "initial"), [(True, True), (True, False), (False, True)])
def test_packed_sequences_of_linear_attention(normalize, initial, backend):
    inputs = linear_attention_inputs(2, 11, 3, initial=initial, normalize=normalize)
    call = functools.partial(linear_attention, seq_idx=SEQUENCES, backend=backend, **STATE)
    assert_agrees(call, linear_attention_of_each, inputs, terms=44, normalize=normalize)


def test_packed_sequences_of_linear_attention_without_states():
    inputs = linear_attention_inputs(2, 11, 3, torch.float32)
    y, _ = linear_attention(**inputs, seq_idx=SEQUENCES, **STATE)
    assert torch.equal(linear_attention(**inputs, seq_idx=SEQUENCES), y)


# --- All three ------------------------------------------------------------------------------------


def spoiled(inputs: dict, **others) -> dict:
    return inputs | others


@pytest.mark.parametrize(
    ("call", "inputs", "line"),
    [
        (rglru_scan, spoiled(rglru_inputs(2, 5, 3), r=torch.zeros(2, 5, 4).double()), "r: got shape"),
        (
            rglru_scan,
            spoiled(rglru_inputs(2, 5, 3), initial_state=torch.zeros(3)),
            "initial_state: got shape",
        ),
        (rglru_scan, spoiled(rglru_inputs(2, 5, 3), seq_idx=torch.zeros(2, 5)), "seq_idx: got dtype"),
        (rglru_scan, spoiled(rglru_inputs(2, 5, 3), seq_idx=torch.zeros(2, 4).int()), "seq_idx: got shape"),
        (wkv4, spoiled(wkv4_inputs(2, 5, 3), v=torch.zeros(2, 5, 3)), "v: got dtype torch.float32"),
        (wkv4, spoiled(wkv4_inputs(2, 5, 3), initial_state=torch.zeros(2, 2, 3)), "initial_state: got shape"),
        (
            linear_attention,
            spoiled(linear_attention_inputs(2, 5, 3), initial_state=torch.zeros(2, 3, 3, 4)),
            "initial_state: got shape",
        ),
        (linear_attention, spoiled(linear_attention_inputs(2, 5, 3), q=torch.zeros(2, 5, 3)), "q: got shape"),
        (
            linear_attention,
            spoiled(linear_attention_inputs(2, 5, 3), seq_idx=torch.zeros(2, 5)),
            "seq_idx: got dtype",
        ),
    ],
)
def test_one_clear_line(call, inputs, line):
    with pytest.raises(ValueError, match=line) as error:
        call(**inputs)
    assert "expected" in str(error.value)


COMPILED_FIRST = """
import torch
from ssmcourse import linear_attention

q, v = torch.rand(2, 6, 2, 4), torch.rand(2, 6, 2, 3)
got = torch.compile(linear_attention, fullgraph=True, backend="eager")(q, q, v)
assert (got - linear_attention(q, q, v)).abs().max() < 1e-5
"""


@pytest.mark.slow
def test_linear_attention_compiles_before_anything_was_called():
    """What loads a backend at its first call must not be in the way of torch.compile."""
    done = subprocess.run([sys.executable, "-c", COMPILED_FIRST], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_normalize_is_true_or_false():
    inputs = linear_attention_inputs(2, 5, 3, initial=False)
    assert torch.equal(linear_attention(**inputs, normalize=2), linear_attention(**inputs))


def test_linear_attention_of_a_long_sequence_takes_memory_of_its_length():
    q = torch.rand(1, 20_000, 1, 8)
    y: Tensor = linear_attention(q, q, q)
    assert y.shape == q.shape
    assert mismatch(y[:, -1:], linear_attention_by_steps_last(q.double()), terms=20_000) is None


def linear_attention_by_steps_last(q: Tensor) -> Tensor:
    weights = torch.einsum("bhn,blhn->blh", q[:, -1], q)
    return (weights[..., None] * q).sum(1, keepdim=True) / (weights.sum(1) + 1e-6)[:, None, :, None]
