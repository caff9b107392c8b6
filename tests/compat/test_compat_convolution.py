"""`causal_conv1d_fn`, `causal_conv1d_update` and `causal_conv1d_varlen_states` against loops in the official layout."""

from __future__ import annotations

import official_loops as loops
import pytest
import torch
from official_loops import assert_close, compare, draw

from ssmcourse.compat.convolution import (
    causal_conv1d_fn,
    causal_conv1d_update,
    causal_conv1d_varlen_states,
)

b, d = 2, 3


def inputs(l=7, w=4, dtype=torch.float64, bias=True):
    given = {"x": draw(b, d, l, seed=1, dtype=dtype), "weight": draw(d, w, seed=2, dtype=dtype)}
    return given | ({"bias": draw(d, seed=3, dtype=dtype)} if bias else {})


@pytest.mark.parametrize("activation", [None, "silu", "swish"])
@pytest.mark.parametrize(("l", "w"), [(1, 4), (2, 4), (7, 2), (7, 3), (7, 4)])
def test_causal_conv1d_fn(l, w, activation):
    compare(causal_conv1d_fn, loops.conv, inputs(l, w) | {"activation": activation})


def test_without_a_bias():
    compare(causal_conv1d_fn, loops.conv, inputs(bias=False))


SEQUENCES = {
    "packed": [[0, 0, 0, 1, 1, 2, 2], [3, 3, 3, 3, 3, 3, 3]],
    "padded at the end": [[0, 0, 0, 0, -1, -1, -1], [0, 0, 0, 0, 0, 0, 0]],
    "padding between": [[0, 0, -1, 0, 0, 1, 1], [-1, -1, -1, 2, 2, 2, 2]],  # 0 sees the 0 before the gap
    "a number that returns": [[0, 1, 0, 1, 0, 0, 1], [5, 5, 4, 5, 5, 5, 5]],
    "one that returns out of reach": [[0, 0, 1, 1, 1, 1, 0], [0, 1, 2, 3, 0, 1, 2]],
}


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("name", SEQUENCES)
def test_seq_idx(name, activation):
    marks = torch.tensor(SEQUENCES[name], dtype=torch.int32)
    compare(causal_conv1d_fn, loops.conv, inputs() | {"seq_idx": marks, "activation": activation})


@pytest.mark.parametrize("l", [1, 2, 7])
def test_initial_and_final_states(l):
    given = inputs(l) | {"initial_states": draw(b, d, 3, seed=4), "activation": "silu"}

    def loop(**given):
        all_inputs = torch.cat([given["initial_states"], given["x"]], -1)
        return loops.conv(**given), all_inputs[..., -3:]

    compare(lambda **given: causal_conv1d_fn(**given, return_final_states=True), loop, given)


def test_final_states_of_fewer_inputs_are_zero_before_the_first():
    x, weight = inputs(2, 4)["x"], inputs(2, 4)["weight"]
    _, final = causal_conv1d_fn(x, weight, return_final_states=True)
    assert_close(final, torch.cat([torch.zeros(b, d, 1), x], -1))


def test_final_states_are_written_where_it_is_said():
    given, out = inputs(), torch.empty(b, 3, d, dtype=torch.float64).transpose(1, 2)
    y, final = causal_conv1d_fn(**given, return_final_states=True, final_states_out=out)
    assert final is out
    assert_close(out, given["x"][..., -3:])
    assert_close(y, loops.conv(**given))


def test_half_inputs_with_float32_weights():
    x, weight = draw(b, d, 7, seed=1, dtype=torch.bfloat16), draw(d, 4, seed=2, dtype=torch.float32)
    y = causal_conv1d_fn(x, weight, activation="silu")
    assert y.dtype == torch.bfloat16
    assert_close(y, loops.conv(x.double(), weight.double(), activation="silu"))


def test_what_is_refused():
    given, marks = inputs(), torch.zeros(b, 7, dtype=torch.int32)
    with pytest.raises(NotImplementedError, match="activation"):
        causal_conv1d_fn(**given, activation="gelu")
    with pytest.raises(NotImplementedError, match="activation"):
        causal_conv1d_update(given["x"], draw(b, d, 3), given["weight"], activation="gelu")
    for more in ({"return_final_states": True}, {"initial_states": draw(b, d, 3)}):
        with pytest.raises(ValueError, match="seq_idx"):
            causal_conv1d_fn(**given, seq_idx=marks, **more)


# --- Steps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("size", [3, 4, 9])
@pytest.mark.parametrize("steps", [None, 1, 2, 5])
def test_update_goes_on_where_a_sequence_stopped(steps, size, activation):
    """The state holds the last `size` inputs, the convolution needs 3 of them."""
    before, new = draw(b, d, size, seed=5), draw(b, d, steps or 1, seed=6)
    weight, bias = inputs()["weight"], inputs()["bias"]
    state = before.clone()
    y = causal_conv1d_update(new[..., 0] if steps is None else new, state, weight, bias, activation)
    known = torch.cat([before, new], -1)
    expected = loops.conv(known, weight, bias, activation=activation)[..., -(steps or 1) :]
    assert_close(y, expected[..., 0] if steps is None else expected)
    assert torch.equal(state, known[..., -size:])


@pytest.mark.parametrize("size", [3, 4, 6])
@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_update_of_a_ring(steps, size):
    lengths = torch.tensor([2, 13], dtype=torch.int32)
    history = draw(b, d, 13, seed=7)  # of row 0 only 2 inputs were there
    history[0, :, 2:] = 0
    state = torch.zeros(b, d, size, dtype=torch.float64)
    for row, length in enumerate(lengths.tolist()):
        for t in range(length):
            state[row, :, t % size] = history[row, :, t]
    new, weight = draw(b, d, steps, seed=8), inputs()["weight"]
    y = causal_conv1d_update(new, state, weight, activation="silu", cache_seqlens=lengths)
    for row, length in enumerate(lengths.tolist()):
        known = torch.cat([history[row : row + 1, :, :length], new[row : row + 1]], -1)
        assert_close(y[row], loops.conv(known, weight, activation="silu")[0, :, length:])
        for t in range(known.shape[-1]):
            if t >= known.shape[-1] - size:
                assert torch.equal(state[row, :, t % size], known[0, :, t])


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("steps", [None, 2])
def test_update_of_chosen_rows(steps, ring):
    """-1 is padding: the output is 0 and no state is touched."""
    states, weight = draw(5, d, 4, seed=9), inputs()["weight"]
    rows, lengths = torch.tensor([3, -1, 0], dtype=torch.int32), torch.tensor([6, 1, 9], dtype=torch.int32)
    x = draw(3, d, steps or 1, seed=10)
    x = x[..., 0] if steps is None else x
    expected_states = states.clone()
    given = states.clone()
    y = causal_conv1d_update(
        x, given, weight, cache_seqlens=lengths if ring else None, conv_state_indices=rows
    )
    for i, row in enumerate(rows.tolist()):
        if row < 0:
            assert torch.equal(y[i], torch.zeros_like(y[i]))
            continue
        own = states[row : row + 1].clone()
        alone = causal_conv1d_update(
            x[i : i + 1], own, weight, cache_seqlens=lengths[i : i + 1] if ring else None
        )
        assert torch.equal(y[i], alone[0])
        expected_states[row] = own[0]
    assert torch.equal(given, expected_states)


def test_update_of_half_inputs_and_without_gradients():
    weight = draw(d, 4, seed=2, dtype=torch.float32).requires_grad_()
    x, state = draw(b, d, seed=1, dtype=torch.float16), draw(b, d, 4, seed=3, dtype=torch.float16)
    known = torch.cat([state, x[..., None]], -1).double()
    y = causal_conv1d_update(x, state, weight, activation="silu")
    assert y.dtype == state.dtype == torch.float16
    assert not y.requires_grad
    assert_close(y, loops.conv(known, weight.detach().double(), activation="silu")[..., -1])


@pytest.mark.parametrize("size", [1, 3, 6])
def test_varlen_states(size):
    x, ends = draw(11, d, seed=11), torch.tensor([0, 2, 2, 9, 11], dtype=torch.int32)
    states = causal_conv1d_varlen_states(x, ends, size)
    assert states.shape == (4, d, size)
    for i, (start, end) in enumerate([(0, 2), (2, 2), (2, 9), (9, 11)]):
        for j in range(size):
            t = end - size + j
            expected = x[t] if t >= start else torch.zeros(d, dtype=torch.float64)
            assert torch.equal(states[i, :, j], expected)
