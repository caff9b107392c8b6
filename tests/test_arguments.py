"""One clear line for every argument that does not fit."""

import pytest
import torch

from ssmcourse.arguments import Arguments, groups, one_of


def given() -> Arguments:
    arguments = Arguments()
    arguments.activation("x", torch.zeros(2, 3, 4), "b l d")
    return arguments


def test_letters_take_their_size_where_they_are_first_seen():
    arguments = given()
    arguments.activation("B", torch.zeros(2, 3, 5), "b l n", "b l g n", "d n")
    arguments.parameter("A", torch.zeros(4, 5, dtype=torch.float64), "d n")
    arguments.integers("seq_idx", torch.zeros(2, 3, dtype=torch.int32), "b l")
    assert arguments.sizes == {"b": 2, "l": 3, "d": 4, "n": 5}


def test_alternatives_leading_dimensions_and_ones():
    arguments = given()
    arguments.activation("C", torch.zeros(2, 3, 7, 5), "b l n", "b l g n")
    assert arguments.sizes["g"] == 7
    arguments.parameter("many", torch.zeros(8, 9, 5), "... n")
    arguments.parameter("none", torch.zeros(5), "... n")
    arguments.parameter("one", torch.zeros(1, 5), "1 n")
    with pytest.raises(ValueError, match=r"one: got shape \(2, 5\), expected \(1, n\) with n=5 as in C"):
        arguments.parameter("one", torch.zeros(2, 5), "1 n")


def test_a_letter_has_one_size_within_a_shape_too():
    given().parameter("A", torch.zeros(5, 5), "n n")
    with pytest.raises(ValueError, match=r"A: got shape \(5, 6\), expected \(n, n\)"):
        given().parameter("A", torch.zeros(5, 6), "n n")


def test_none_passes_only_where_it_may():
    arguments = given()
    arguments.parameter("D", None, "d", optional=True)
    with pytest.raises(ValueError, match="D: got NoneType, expected a torch tensor"):
        arguments.parameter("D", None, "d")


@pytest.mark.parametrize(
    ("method", "value", "line"),
    [
        ("activation", torch.zeros(2, 3), r"got shape \(2, 3\), expected \(b, l, n\) with b=2, l=3 as in x"),
        ("activation", torch.zeros(2, 9, 5), r"got shape \(2, 9, 5\), expected \(b, l, n\) with b=2, l=3"),
        ("activation", torch.zeros(2, 3, 5).double(), r"torch.float64, expected torch.float32 to go with x"),
        ("activation", torch.zeros(2, 3, 5, device="meta"), r"on meta, expected x's device cpu"),
        ("activation", torch.zeros(2, 3, 5).to_sparse(), r"expected a dense \(strided\) one"),
        ("parameter", torch.zeros(2, 3, 5).int(), r"dtype torch.int32, expected a floating one"),
        ("parameter", torch.zeros(2, 3, 5) + 1j, r"dtype torch.complex64, expected a floating one"),
        ("integers", torch.zeros(2, 3, 5), r"dtype torch.float32, expected an integer one"),
        ("parameter", [1.0], r"got list, expected a torch tensor"),
    ],
)
def test_the_line_says_what_was_got_and_what_is_expected(method, value, line):
    with pytest.raises(ValueError, match=f"^B: .*{line}"):
        getattr(given(), method)("B", value, "b l n")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_complex_activations_have_the_twin_of_the_first_dtype(dtype):
    arguments = Arguments()
    arguments.activation("x", torch.zeros(2, dtype=dtype), "b")
    arguments.activation("B", torch.zeros(2, dtype=torch.complex64), "b", is_complex=True)
    with pytest.raises(ValueError, match=r"B: got dtype torch\.complex128, expected torch\.complex64"):
        arguments.activation("B", torch.zeros(2, dtype=torch.complex128), "b", is_complex=True)


def test_groups_and_choices():
    groups("B", 2, "heads", 4)
    with pytest.raises(ValueError, match="B: got 3 groups for 4 heads, expected a number that divides 4"):
        groups("B", 3, "heads", 4)
    one_of("method", "zoh", ("zoh", "bilinear"))
    with pytest.raises(ValueError, match="method: got 'zo', expected one of zoh, bilinear"):
        one_of("method", "zo", ("zoh", "bilinear"))
