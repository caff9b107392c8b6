"""linear_scan at its public edge: dtypes, what is shared, what is refused, and the map as a whole."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmcourse.scan import backends, linear_scan
from ssmcourse.tolerance import mismatch

COMPILED = [name for name in ("reference", "cpu") if name in backends("linear_scan")]


def test_the_four_numbers_of_lesson_00():
    h = linear_scan(torch.full((1, 4), 0.5), torch.tensor([[1.0, 0.0, 0.0, 2.0]]))
    assert h.tolist() == [[1.0, 0.5, 0.25, 2.125]]
    h = linear_scan(
        torch.tensor([[0.5]]), torch.tensor([[1.0, 0.0, 0.0, 2.0]]), torch.tensor([4.0]), reverse=True
    )
    assert h.tolist() == [[1.5, 1.0, 2.0, 4.0]]


# --- Properties, on shapes that nobody chose ----------------------------------------------------


@st.composite
def scans(draw):
    """a (with ones where shared), b, initial state, reverse: float64, any small shape."""
    shape = (
        draw(st.integers(1, 3)),
        draw(st.integers(1, 12)),
        *draw(st.lists(st.integers(1, 4), max_size=2)),
    )
    gate = tuple(1 if draw(st.booleans()) else n for n in shape)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from([torch.float64, torch.complex128]))
    a, b, first = (
        torch.randn(s, generator=generator, dtype=dtype) for s in (gate, shape, shape[:1] + shape[2:])
    )
    return a, b, first, draw(st.booleans())


@pytest.mark.parametrize("backend", COMPILED)
@settings(max_examples=30, deadline=None)
@given(scans())
def test_every_state_follows_from_the_one_before(backend, scan):
    a, b, first, reverse = scan
    h = linear_scan(a, b, first, reverse=reverse, backend=backend)
    flip = (lambda t: t.flip(1)) if reverse else (lambda t: t)
    before = torch.cat([first[:, None], flip(h)[:, :-1]], 1)
    assert mismatch(flip(h), flip(a.expand(b.shape)) * before + flip(b), terms=2) is None


@pytest.mark.parametrize("backend", COMPILED)
@settings(max_examples=20, deadline=None)
@given(scans(), st.integers(0, 11))
def test_linear_and_causal(backend, scan, at):
    a, b, first, reverse = scan
    l = b.shape[1]

    def run(b, first):
        return linear_scan(a, b, first, reverse=reverse, backend=backend)

    other = b.flip(0).roll(1, 1)
    both = run(2 * b + other, 2 * first)
    assert mismatch(both, 2 * run(b, first) + run(other, 0 * first), terms=4 * l) is None
    t = at % l
    changed = b.clone()
    changed[:, t] += 1
    untouched = slice(t + 1, None) if reverse else slice(None, t)
    assert torch.equal(run(changed, first)[:, untouched], run(b, first)[:, untouched])


# --- Dtypes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "out"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.float32, torch.float64, torch.float64),
        (torch.float32, torch.complex64, torch.complex64),
        (torch.complex64, torch.float64, torch.complex128),
        (torch.complex64, torch.float16, torch.complex64),
    ],
)
def test_the_result_has_the_promoted_dtype(a, b, out):
    gate, x = torch.rand(2, 5, 3).to(a).requires_grad_(), torch.rand(2, 5, 3).to(b).requires_grad_()
    h = linear_scan(gate, x, torch.zeros(2, 3))
    assert h.dtype == out
    h.abs().sum().backward()
    assert (gate.grad.dtype, x.grad.dtype) == (a, b)


@pytest.mark.parametrize("backend", COMPILED)
def test_half_types_accumulate_in_float32(backend):
    """1 + 1/256 + 1/256 + ...: in bfloat16, which has 8 bits, the sum would stay at 1 for ever."""
    b = torch.full((1, 257), 1 / 256, dtype=torch.bfloat16)
    b[:, 0] = 1
    h = linear_scan(torch.ones(1, 1, dtype=torch.bfloat16), b, backend=backend)
    assert h[0, -1] == 2
    gate = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)  # its gradient sums 257 terms
    linear_scan(gate, torch.ones(1, 257, dtype=torch.bfloat16), backend=backend).sum().backward()
    exact = sum(t * (257 - t) for t in range(257))
    assert abs(gate.grad.item() / exact - 1) < 2**-8


def test_the_initial_state_may_be_wider_than_half():
    a, b = torch.zeros(1, 2, dtype=torch.float16) + 1, torch.zeros(1, 2, dtype=torch.float16)
    first = torch.tensor([1e6], requires_grad=True)  # beyond float16
    b[:, 0] = -6e4
    h = linear_scan(a, b.float(), first)
    assert h[0, 0] == 940000
    h.sum().backward()
    assert first.grad.dtype == torch.float32


def test_autocast_changes_nothing():
    a, b = torch.rand(2, 9, 3), torch.rand(2, 9, 3)
    outside = linear_scan(a, b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = linear_scan(a, b)
        mixed = linear_scan(a, torch.nn.functional.linear(b, torch.eye(3)))
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)
    assert mixed.dtype == torch.float32


# --- Edges --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 0, 3), (2, 0), (0, 4, 3), (2, 4, 0)])
@pytest.mark.parametrize("backend", ["auto", *COMPILED])
def test_nothing_in_nothing_out(shape, backend):
    a, b = torch.rand(shape, requires_grad=True), torch.rand(shape, requires_grad=True)
    first = torch.rand(shape[:1] + shape[2:], requires_grad=True)
    h = linear_scan(a, b, first, backend=backend)
    assert h.shape == shape
    h.sum().backward()
    assert a.grad.shape == b.grad.shape == shape
    assert not first.grad.any()


@pytest.mark.parametrize("backend", COMPILED)
def test_nan_and_infinity_stay_in_their_channel_and_their_future(backend):
    a, b = torch.full((1, 40, 33), 0.5), torch.ones(1, 40, 33)
    b[0, 10, 3] = torch.nan
    b[0, 20, 4] = torch.inf
    h = linear_scan(a, b, backend=backend)
    assert h[0, 10:, 3].isnan().all()
    assert h[0, 20:, 4].isinf().all()
    assert h.isfinite().sum() == h.numel() - 30 - 20


def test_a_conjugate_view_is_read_as_the_conjugate():
    a, b = (torch.randn(1, 6, 2, dtype=torch.complex64) for _ in range(2))
    expected = linear_scan(a.conj().resolve_conj(), b.conj().resolve_conj(), backend="reference")
    assert mismatch(linear_scan(a.conj(), b.conj()), expected, terms=6) is None


def test_the_reference_has_a_backward_in_linear_time():
    """Indexing b[:, t] would allocate a tensor of b's size for every step of the backward."""
    b = torch.ones(1, 8, requires_grad=True)
    node = linear_scan(torch.ones(1, 1), b, backend="reference").grad_fn
    names, waiting = set(), [node]
    while waiting:
        node = waiting.pop()
        names.add(type(node).__name__)
        waiting += [n for n, _ in node.next_functions if n is not None]
    assert "UnbindBackward0" in names
    assert not names & {"SelectBackward0", "SliceBackward0", "IndexBackward0"}


# --- What is refused ----------------------------------------------------------------------------

A, B, H = torch.ones(2, 5, 3), torch.ones(2, 5, 3), torch.ones(2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((A.numpy(), B), "a: got ndarray, expected a torch tensor"),
        ((A, None), "b: got NoneType, expected a torch tensor"),
        ((A, B, 0.0), "initial_state: got float, expected a torch tensor"),
        ((A.int(), B), "a: got dtype torch.int32, expected a floating or complex one"),
        ((A, B > 0), "b: got dtype torch.bool, expected a floating or complex one"),
        (
            (A, B.to_sparse()),
            "b: got a tensor of layout torch.sparse_coo, expected a dense (strided) one",
        ),
        ((A.to("meta"), B), "a: got a tensor on meta, expected b's device cpu"),
        ((A[0, 0], B[0, 0]), "b: got shape (3,), expected (b, l, ...)"),
        ((A[..., 0], B), "a: got shape (2, 5), expected (2, 5, 3) as b, or 1 where a gate is shared"),
        ((A[:, :4], B), "a: got shape (2, 4, 3), expected (2, 5, 3) as b, or 1 where a gate is shared"),
        ((A, B[:1]), "a: got shape (2, 5, 3), expected (1, 5, 3) as b, or 1 where a gate is shared"),
        ((A, B, H[:1]), "initial_state: got shape (1, 3), expected (2, 3): b's without l"),
        ((A, B, H[:, None]), "initial_state: got shape (2, 1, 3), expected (2, 3): b's without l"),
        ((A, B, H + 0j), "initial_state: got torch.complex64, expected a real one beside real a and b"),
    ],
)
def test_bad_arguments_get_one_clear_line(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        linear_scan(*arguments)


def test_a_backend_that_is_not_there():
    with pytest.raises(
        ValueError, match=r"backend: got 'fast', which is not one of its names\. linear_scan has here: auto, "
    ):
        linear_scan(A, B, backend="fast")


def test_backends_finds_operators_of_other_modules():
    assert backends("linear_scan")[-1] in ("reference", "triton", "numba_cuda")
    assert "reference" in backends("hippo_project")
    for name in ("no_such_operator", "check", "linear scan"):
        with pytest.raises(ValueError, match=f"operator: got '{name}', expected one of .*linear_scan"):
            backends(name)
