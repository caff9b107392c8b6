"""Every backend of SSD against a loop over the steps of its definition."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from operator_table import LENGTHS, Case, among_nans, assert_agrees, random
from torch import Tensor

from ssmcourse.duality import ssd
from ssmcourse.kernels import runtime
from ssmcourse.scan import backends
from ssmcourse.tolerance import mismatch

BACKENDS = ["reference", "recurrent", "quadratic", "chunked", "cpu"]
ACTIVATIONS = ("x", "dt", "B", "C", "z")


def by_steps(
    x, dt, A, B, C, D=None, z=None, dt_bias=None, initial_state=None, *, dt_softplus=False,
    dt_limit=(0.0, math.inf), seq_idx=None, return_final_state=False, chunk_size=64,
):  # fmt: skip
    """The definition, row by row and step by step; the states of all heads in one loop."""
    b, l, h, p = x.shape
    g, n = B.shape[2:]
    group = [i // (h // g) for i in range(h)]
    dt = dt if dt_bias is None else dt + dt_bias
    dt = torch.log1p(torch.exp(-dt.abs())) + dt.clamp(min=0) if dt_softplus else dt
    dt = torch.where(dt < dt_limit[0], dt_limit[0], torch.where(dt > dt_limit[1], dt_limit[1], dt))
    rows, finals = [], []
    for i in range(b):
        state = x.new_zeros(h, p, n) if initial_state is None else initial_state[i]
        row = []
        for t in range(l):
            if seq_idx is not None and t and seq_idx[i, t] != seq_idx[i, t - 1]:
                finals.append(state)
                state = x.new_zeros(h, p, n)
            decay = (dt[i, t] * A).exp()
            B_t, C_t = B[i, t][group], C[i, t][group]
            state = decay[:, None, None] * state + (dt[i, t, :, None] * x[i, t])[:, :, None] * B_t[:, None]
            row.append((state * C_t[:, None]).sum(-1))
        finals.append(state)
        rows.append(torch.stack(row))
    y = torch.stack(rows)
    if D is not None:
        y = y + (D[:, None] if D.ndim == 1 else D) * x
    if z is not None:
        y = y * z / (1 + torch.exp(-z))
    return (y, torch.stack(finals)) if return_final_state else y


def inputs(
    b=2,
    l=17,
    h=4,
    p=3,
    n=5,
    g=2,
    *,
    dtype=torch.float64,
    D: str | None = "hp",
    z=True,
    dt_bias=True,
    initial=True,
) -> dict[str, Tensor]:
    wide = torch.promote_types(dtype, torch.float32)
    made = {
        "x": random((b, l, h, p), dtype, seed=1),
        "dt": random((b, l, h), dtype, seed=2),
        "A": -random((h,), wide, seed=3).abs(),
        "B": random((b, l, g, n), dtype, seed=4),
        "C": random((b, l, g, n), dtype, seed=5),
    }
    if D:
        made["D"] = random((h,) if D == "h" else (h, p), wide, seed=6)
    if z:
        made["z"] = random((b, l, h, p), dtype, seed=7)
    if dt_bias:
        made["dt_bias"] = random((h,), wide, seed=8)
    if initial:
        made["initial_state"] = random((b, h, p, n), wide, seed=9)
    return made


def case(name: str, options: dict | None = None, wrap=None, **sizes) -> Case:
    def make():
        made = inputs(**sizes)
        return {k: wrap(v) if k in ACTIVATIONS else v for k, v in made.items()} if wrap else made

    l, n, p, h = (sizes.get(k, d) for k, d in (("l", 17), ("n", 5), ("p", 3), ("h", 4)))
    options = {"dt_softplus": True, "return_final_state": True, "chunk_size": 16} | (options or {})
    return Case(name, make, terms=sizes.get("b", 2) * l * max(n, p * h), options=options)


def packed(b: int, l: int, seed: int = 11) -> Tensor:
    """Sequences of about five steps; a label may come back later in its row."""
    changes = random((b, l), seed=seed).abs() > 1.2
    return changes.long().cumsum(1) % 3


BARE = {"D": None, "z": False, "dt_bias": False, "initial": False}
TABLE = [
    *(case(f"l={l}", l=l) for l in LENGTHS),
    case("float32", dtype=torch.float32),
    case("nothing optional", {"return_final_state": False}, **BARE),
    case("bare, float32", {"dt_softplus": False}, dtype=torch.float32, **BARE),
    case("D of a head", D="h"),
    case("no gate", z=False),
    case("no initial state", initial=False),
    case("one group", g=1),
    case("a group a head", g=4),
    case("sizes beyond a register", h=2, p=17, n=33, g=1),
    case("whole registers", h=2, p=64, n=32, g=1, l=67),
    case("one of each", b=1, h=1, p=1, n=1, g=1, l=5),
    case("limits", {"dt_limit": (0.3, 0.9)}),
    case("chunks of 1", {"chunk_size": 1}),
    case("one chunk", {"chunk_size": 1000}),
    case("packed", {"seq_idx": packed(2, 140)}, l=140, h=2, g=1),
    case("packed, no states", {"seq_idx": packed(2, 40), "return_final_state": False}, l=40, initial=False),
    case("each step a sequence", {"seq_idx": torch.arange(18).reshape(2, 9)}, l=9),
    case("one sequence", {"seq_idx": torch.full((2, 20), 7, dtype=torch.int32)}, l=20),
    case("not contiguous", wrap=among_nans),
    case("transposed", wrap=lambda t: t.transpose(0, 1).contiguous().transpose(0, 1)),
    case("from the end", wrap=lambda t: t.flip(1)),
    case("the same in each row", wrap=lambda t: t[:1].expand(t.shape)),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
@pytest.mark.parametrize("backend", BACKENDS)
def test_table(backend, row):
    call = functools.partial(ssd, backend=backend)
    assert_agrees(call, by_steps, row.make(), terms=row.terms, **row.options)


def test_backends_best_first():
    names = backends("ssd")
    assert names[:2] == ["cpu", "chunked"]
    assert set(BACKENDS) <= set(names)


# --- Long sequences: several tiles, and several spans between the states that are kept -----------------


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("pack", [False, True])
def test_long_sequences(pack, threads):
    """The CPU backend beside the chunked algorithm, which the table has compared with the definition."""
    l = 2100
    made = inputs(b=1, l=l, h=3, p=4, n=3, g=1)
    made["A"] = made["A"] / 50  # so that states live for many tiles
    options = {"dt_softplus": True, "return_final_state": True}
    if pack:
        lengths = torch.tensor([3, 1, 900, 130, 64, 1, 2, 700, 299])
        options["seq_idx"] = torch.repeat_interleave(torch.arange(len(lengths)), lengths)[None]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_agrees(
            functools.partial(ssd, backend="cpu"),
            functools.partial(ssd, backend="chunked", chunk_size=50),
            made,
            terms=l * 12,
            **options,
        )
    finally:
        torch.set_num_threads(before)


# --- Properties ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [1, 2, 7, 64, 100, 257, 10**9])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_result_does_not_depend_on_the_chunk(backend, chunk_size):
    made = inputs(b=1, l=257, h=2, g=1)
    whole = ssd(**made, dt_softplus=True, return_final_state=True, backend="reference")
    got = ssd(**made, dt_softplus=True, return_final_state=True, backend=backend, chunk_size=chunk_size)
    for g, e in zip(got, whole, strict=True):
        assert mismatch(g, e, terms=257) is None


@pytest.mark.parametrize("split", [1, 16, 63, 64, 65, 99])
@pytest.mark.parametrize("backend", ["chunked", "quadratic", "cpu"])
def test_pieces_that_pass_their_state_on_are_the_whole(backend, split):
    made = inputs(b=1, l=100)
    y, final = ssd(**made, dt_softplus=True, return_final_state=True, backend="reference")
    state, parts = made["initial_state"], []
    for piece in (slice(0, split), slice(split, 100)):
        given = {k: v[:, piece] if k in ACTIVATIONS else v for k, v in made.items()}
        given["initial_state"] = state
        part, state = ssd(**given, dt_softplus=True, return_final_state=True, backend=backend)
        parts.append(part)
    assert mismatch(torch.cat(parts, 1), y, terms=100) is None
    assert mismatch(state, final, terms=100) is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_sequences_do_not_see_each_other(backend):
    lengths = [5, 1, 70, 64, 3]
    made = inputs(b=1, l=sum(lengths), initial=False)
    labels = torch.repeat_interleave(torch.tensor([4, 2, 4, 0, 9]), torch.tensor(lengths))[None]
    y, states = ssd(**made, dt_softplus=True, seq_idx=labels, return_final_state=True, backend=backend)
    assert states.shape == (5, 4, 3, 5)
    for i, part in enumerate(torch.arange(sum(lengths)).split(lengths)):
        given = {k: v[:, part] if k in ACTIVATIONS else v for k, v in made.items()}
        alone, state = ssd(**given, dt_softplus=True, return_final_state=True, backend="reference")
        assert mismatch(y[:, part], alone, terms=70) is None
        assert mismatch(states[i : i + 1], state, terms=70) is None


RESETS = [
    (torch.float32, 0),
    (torch.float32, 20),
    (torch.float32, 64),
    (torch.float64, 1),
    (torch.float64, 63),
]


@pytest.mark.parametrize(("dtype", "where"), RESETS, ids=str)
@pytest.mark.parametrize("backend", ["reference", "quadratic", "chunked", "cpu"])
def test_a_reset_and_small_steps_after_it(backend, dtype, where):
    """log a is -1e4 once, then -0.01 a step: a difference of cumulative sums has no digits left for these."""
    made = inputs(b=1, l=100, h=2, g=1, dtype=dtype, **BARE)
    made["A"] = torch.tensor([-1.0, -1.0], dtype=dtype)
    made["dt"] = torch.full((1, 100, 2), 0.01, dtype=dtype)
    made["dt"][:, where] = 1e4
    made["x"][:, where] *= 1e-4
    call = functools.partial(ssd, backend=backend)
    assert_agrees(call, by_steps, made, terms=100, return_final_state=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_steps_give_finite_numbers(backend):
    made = inputs(b=1, l=150, dtype=torch.float32, dt_bias=False)
    made["dt"] = torch.linspace(0, 100, 600).reshape(1, 4, 150).mT.contiguous()
    made["dt"][:, ::3] = 0
    made["A"] = -torch.tensor([1e4, 1.0, 1e-3, 0.0])
    assert_agrees(
        functools.partial(ssd, backend=backend), by_steps, made, terms=150 * 12, return_final_state=True
    )
    leaves = {k: v.requires_grad_() for k, v in made.items()}
    y = ssd(**leaves, backend=backend)
    gradients = torch.autograd.grad(y.sum(), list(leaves.values()))
    assert y.isfinite().all()
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_no_gradient_beyond_the_limits(backend):
    made = inputs(b=1, dt_bias=False)
    dt = made.pop("dt").requires_grad_()
    y = ssd(**made, dt=dt, dt_limit=(-0.5, 0.5), backend=backend)
    (gradient,) = torch.autograd.grad(y.sum(), dt)
    outside = dt.abs() > 0.5
    assert outside.any()
    assert (gradient[outside] == 0).all()
    assert (gradient[~outside] != 0).all()


@pytest.mark.parametrize("sizes", [{"l": 0}, {"b": 0}, {"p": 0}, {"n": 0}, {"h": 0, "g": 1}], ids=str)
@pytest.mark.parametrize("backend", ["auto", "cpu", "chunked"])
def test_empty(backend, sizes):
    made = {k: v.requires_grad_() for k, v in inputs(**sizes).items()}
    y, final = ssd(**made, return_final_state=True, backend=backend)
    assert y.shape == made["x"].shape
    assert final.shape == made["initial_state"].shape
    if sizes == {"l": 0}:
        assert torch.equal(final, made["initial_state"])
    if sizes == {"n": 0}:
        z = made["z"]
        assert mismatch(y, made["D"] * made["x"] * z * torch.sigmoid(z)) is None
    gradients = torch.autograd.grad((y.sum(), final.sum()), list(made.values()), allow_unused=True)
    assert all(g is None or g.shape == v.shape for g, v in zip(gradients, made.values(), strict=True))


def test_empty_packed_rows_have_a_state_each():
    made = inputs(l=0)
    labels = torch.zeros(2, 0, dtype=torch.int64)
    _, final = ssd(**made, seq_idx=labels, return_final_state=True)
    assert torch.equal(final, made["initial_state"])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_one_result_alone_has_gradients(backend):
    made = {k: v.requires_grad_() for k, v in inputs().items()}
    _, final = ssd(**made, return_final_state=True, backend=backend)
    weight = random(final.shape, seed=20)
    wanted = [k for k in made if k not in ("C", "D", "z")]
    got = torch.autograd.grad((final * weight).sum(), [made[k] for k in wanted])
    _, expected = by_steps(**made, return_final_state=True)
    for name, g, e in zip(
        wanted, got, torch.autograd.grad((expected * weight).sum(), [made[k] for k in wanted]), strict=True
    ):
        assert mismatch(g, e, terms=200) is None, name


def test_parameters_wider_than_activations():
    made = inputs(dtype=torch.float32)
    made["A"] = made["A"].double()
    y, final = ssd(**made, dt_softplus=True, return_final_state=True)
    assert (y.dtype, final.dtype) == (torch.float32, torch.float64)
    wide = {k: v.double() for k, v in made.items()}
    expected, state = by_steps(**wide, dt_softplus=True, return_final_state=True)
    assert mismatch(y, expected, terms=100) is None
    assert mismatch(final, state, terms=100) is None


@pytest.mark.parametrize("return_final_state", [False, True])
def test_packed_sequences_compile_in_one_graph(return_final_state):
    torch.compiler.reset()
    made = {k: v.requires_grad_() for k, v in inputs(l=20).items()}

    def call(labels):
        results = ssd(**made, seq_idx=labels, return_final_state=return_final_state)
        return results if return_final_state else (results,)

    labels = packed(2, 20)
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        got = torch.compile(call, fullgraph=True, backend="aot_eager")(labels)
    expected = call(labels)
    for g, e in zip(got, expected, strict=True):
        assert mismatch(g, e) is None


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_the_gradient_of_no_states_may_be_a_tensor(backend, pack):
    """As torch.compile gives it: a backward that took it for one of states would read what is not there."""
    if backend not in backends("ssd"):
        pytest.skip("no triton")
    run = runtime.choose("ssd", backend, "cpu")
    grads = []
    for with_states in (False, True):
        given = [random(shape, torch.float32, seed=i) for i, shape in enumerate([(2, 5, 2, 4), (2, 5, 2)])]
        given += [-given[1].abs()] + [random((2, 5, 1, 3), torch.float32, seed=i) for i in (3, 4)]
        state = random((2, 2, 4, 3), torch.float32, seed=5)
        leaves = [t.requires_grad_() for t in (*given, state)]
        marks = packed(2, 5) if pack else None
        y, final = run(*leaves[:5], None, None, leaves[5], marks, 0, 16)
        assert len(final) == 0
        loss = y.square().sum()
        grads.append(torch.autograd.grad(loss + final.sum() if with_states else loss, leaves))
    for got, expected in zip(*grads, strict=True):
        assert torch.equal(got, expected)
