"""The table that every comparison rests on must itself say yes, no, and why."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssmcourse.tolerance import BASE_RTOL, mismatch, to_float64, tolerance

F64 = torch.float64


@pytest.mark.parametrize("dtype", [*BASE_RTOL, torch.complex64, torch.complex128])
def test_equal_values_agree_in_every_dtype(dtype):
    x = torch.tensor([0.0, 1.0, -2.5, 1e-3], dtype=dtype)
    assert mismatch(x, x) is None
    assert mismatch(x, x.to(torch.complex128 if dtype.is_complex else F64)) is None


@given(st.sampled_from(list(BASE_RTOL)), st.integers(1, 10_000))
def test_the_tolerance_grows_like_a_random_walk(dtype, terms):
    assert math.isclose(tolerance(dtype, terms).rtol, BASE_RTOL[dtype] * math.sqrt(terms))
    assert tolerance(dtype, terms) == tolerance(dtype, terms)


def test_complex_types_share_the_row_of_their_parts():
    assert tolerance(torch.complex64) == tolerance(torch.float32)
    assert tolerance(torch.complex128, 9) == tolerance(F64, 9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_twice_the_tolerance_is_found_and_half_is_not(dtype):
    expected = torch.full((3, 4), 2.0, dtype=dtype)
    allowed = 2.0 * (tolerance(dtype).rtol + tolerance(dtype).atol)
    for factor, same in ((0.5, True), (2.0, False)):
        got = expected.clone()
        got[1, 2] += factor * allowed
        assert (mismatch(got, expected) is None) == same
    assert mismatch(got, expected, terms=100) is None


def test_the_message_says_where_how_much_and_in_which_dtype():
    expected = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    got = expected.clone()
    got[0, 2], got[1, 1] = 2.5, 3.0
    found = mismatch(got, expected)
    assert (found.index, found.count, found.total) == ((0, 2), 2, 6)
    assert (found.got, found.expected, found.max_abs) == (2.5, 2.0, 1.0)
    assert found.max_rel == pytest.approx(0.25, rel=1e-4)
    text = str(found)
    assert "2 of 6 values differ; the first is at [0, 2]: got 2.5, expected 2." in text
    assert "1 absolute, 0.25 relative (float32, 1e-05 allowed)" in text


def test_a_scalar_and_an_empty_result():
    assert mismatch(torch.tensor(1.0), 1.0) is None
    assert mismatch(torch.tensor(1.0), 2.0).index == ()
    assert mismatch(torch.zeros(0, 3), np.zeros((0, 3))) is None


def test_small_values_beside_a_large_one_are_measured_by_it():
    """An element that cancels to 0 in a result of size 1 carries the rounding of size 1."""
    expected = torch.tensor([1.0, 0.0], dtype=torch.float32)
    assert mismatch(torch.tensor([1.0, 5e-6]), expected) is None
    assert mismatch(torch.tensor([1.0, 5e-5]), expected) is not None
    assert mismatch(torch.tensor([5e-6]), torch.zeros(1)) is not None, (
        "against nothing but zeros only zero is right"
    )


def test_nan_and_infinity():
    nan, inf = math.nan, math.inf
    values = torch.tensor([nan, inf, -inf, 1.0], dtype=F64)
    assert mismatch(values, values) is None
    for got, expected in ((nan, 1.0), (1.0, nan), (inf, 1.0), (1.0, inf), (inf, -inf), (nan, inf)):
        found = mismatch(torch.tensor([0.0, got], dtype=F64), [0.0, expected])
        assert found.index == (1,)
        assert found.max_abs == inf, "an error that is no number is not a small one"
        assert "got" in str(found)


def test_a_wrong_number_does_not_hide_behind_a_nan():
    found = mismatch(torch.tensor([2.0, math.nan], dtype=F64), [1.0, math.nan])
    assert (found.count, found.max_abs) == (1, 1.0)


def test_complex_values():
    expected = torch.tensor([1 + 1j, 2.0], dtype=torch.complex128)
    found = mismatch(expected.conj(), expected)
    assert (found.got, found.expected, found.count) == (1 - 1j, 1 + 1j, 1)
    assert "1-1j" in str(found)
    assert mismatch(torch.ones(2, dtype=F64), torch.tensor([1.0, 1 + 1e-3j])) is not None


def test_the_verdict_tells_a_bug_from_rounding():
    x = torch.tensor([1.0, 1e-4], dtype=torch.float32)
    exact = (x.double().sum() - 1)[None]  # cancels: float32 keeps three digits
    rough = (x.sum() - 1)[None]
    rounding = mismatch(rough, exact, in_float64=lambda: (x.double().sum() - 1)[None])
    assert "this is rounding" in str(rounding)
    bug = mismatch(rough + 1, exact, in_float64=lambda: (x.double().sum())[None])
    assert "a bug, not rounding" in str(bug)
    assert mismatch(rough.double() + 1, exact, in_float64=lambda: exact).verdict == "", (
        "it was float64 already"
    )


def test_nothing_is_changed_and_graphs_are_left_alone():
    got = torch.ones(3, requires_grad=True)
    copy = to_float64(got)
    copy += 1
    assert (got == 1).all()
    assert mismatch(got * 2, [2.0, 2.0, 2.0]) is None
    assert to_float64(np.arange(3)).dtype == np.float64
    assert to_float64([1j]).dtype == np.complex128


def test_replaced_comparisons_change_no_verdict(monkeypatch):
    def yes(*_, **__):
        return True

    for module, names in (
        (torch, ("allclose", "equal", "isclose")),
        (np, ("allclose", "isclose", "array_equal")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, yes)
    monkeypatch.setattr(torch.testing, "assert_close", yes)
    monkeypatch.setattr(np.testing, "assert_allclose", yes)
    assert mismatch(torch.zeros(2), [0.0, 1.0]) is not None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: tolerance(torch.int64),
            "dtype: got torch.int64, expected a floating or complex torch dtype",
        ),
        (lambda: tolerance(F64, 0), "terms: got 0, expected 1 or more"),
        (lambda: mismatch(torch.zeros(2), torch.zeros(3)), r"expected: got shape \(3,\), .* shape \(2,\)"),
        (lambda: mismatch(torch.zeros(2), 0.0), r"expected: got shape \(\)"),
    ],
)
def test_what_does_not_fit_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()
