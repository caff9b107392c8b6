"""One clear line for every argument that does not fit."""

import math

import numpy as np
import pytest
import torch

from ssmcourse.arguments import Arguments, groups, integer, number, one_of, shown
from ssmcourse.attention import linear_attention_matrix, rglru_matrix
from ssmcourse.relatives import linear_attention, rglru_scan


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
    one_of("activation", None, (None, "silu"))
    for value in (None, ["zoh"], {"zoh"}, np.array(["zoh", "zoh"]), torch.zeros(2), 1, True):
        with pytest.raises(ValueError, match=r"^method: got .*, expected one of zoh, bilinear$"):
            one_of("method", value, ("zoh", "bilinear"))


def test_a_size_of_0_is_refused_where_there_must_be_something():
    arguments = given()
    arguments.at_least_one("d")
    arguments.parameter("weight", torch.zeros(4, 0), "d w")
    with pytest.raises(ValueError, match=r"^weight: got w=0, expected w of 1 or more$"):
        arguments.at_least_one("w")


def test_integers_of_python_and_of_numpy():
    assert [integer("l", value, 0) for value in (0, 7, np.int32(7), np.uint8(3))] == [0, 7, 7, 3]
    assert type(integer("l", np.int64(7), 0)) is int
    for value in (-1, 2.0, "2", None, True, [2], torch.tensor(2), np.array(2), math.nan):
        with pytest.raises(ValueError, match=r"^l: got .*, expected an integer of 0 or more$"):
            integer("l", value, 0)
    with pytest.raises(ValueError, match=r"^n: got 1, expected a pair$"):
        integer("n", 1, 2, "a pair")


def test_numbers_of_python_and_of_numpy():
    for value in (0, 8, 1e-6, np.float32(0.5), np.float64(2), np.int64(3)):
        number("eps", value)
    for value in NO_NUMBERS:
        with pytest.raises(ValueError, match=r"^eps: got .*, expected a finite number of 0 or more$"):
            number("eps", value)


def test_numbers_above_zero():
    number("c", 1e-300, zero=False)
    for value in (0, 0.0, -0.0, False, *NO_NUMBERS):
        with pytest.raises(ValueError, match=r"^c: got .*, expected a finite number above 0$"):
            number("c", value, zero=False)


NO_NUMBERS = [-1.0, math.nan, math.inf, "8", None, True, 8j, [8.0], torch.tensor(8.0), np.array([8.0])]


@pytest.mark.parametrize(
    "call",
    [
        lambda c: rglru_scan(GATE, GATE, GATE, GATE[0, 0], c=c),
        lambda c: rglru_matrix(GATE, GATE, GATE[0, 0], c=c),
        lambda eps: linear_attention(HEADS, HEADS, HEADS, eps=eps),
        lambda eps: linear_attention_matrix(HEADS, HEADS, eps=eps),
    ],
)
@pytest.mark.parametrize("value", NO_NUMBERS, ids=str)
def test_operators_refuse_what_is_no_number(call, value):
    with pytest.raises(ValueError, match=r"^(c|eps): got .*, expected a finite number of 0 or more$"):
        call(value)


GATE, HEADS = torch.full((2, 3, 4), 0.5), torch.ones(2, 3, 1, 4)


def test_a_value_in_a_message_is_one_short_line():
    assert shown("zo") == "'zo'"
    assert shown(torch.zeros(300, 300)) == "a tensor of shape (300, 300)"
    for value in (np.zeros((300, 300)), list(range(1000)), {"text": "two\nlines" * 99}):
        assert "\n" not in shown(value)
        assert len(shown(value)) <= 80
