"""`mamba_chunk_scan_combined`, `mamba_split_conv1d_scan_combined` and `selective_state_update` against loops."""

from __future__ import annotations

import official_loops as loops
import pytest
import torch
from official_loops import assert_close, compare, draw

from ssmcourse.compat.ssd_combined import mamba_chunk_scan_combined, mamba_split_conv1d_scan_combined
from ssmcourse.compat.state_update import selective_state_update

b, h, p, n = 2, 4, 3, 5


def inputs(l=9, g=2, rows=b, dtype=torch.float64):
    return {
        "x": draw(rows, l, h, p, seed=1, dtype=dtype),
        "dt": draw(rows, l, h, seed=2, dtype=dtype),
        "A": -draw(h, seed=3).abs(),
        "B": draw(rows, l, g, n, seed=4, dtype=dtype),
        "C": draw(rows, l, g, n, seed=5, dtype=dtype),
    }


def options(l=9, D=(h,), rows=b):
    return {
        "D": draw(*D, seed=6),
        "z": draw(rows, l, h, p, seed=7),
        "dt_bias": draw(h, seed=8),
        "initial_states": draw(rows, h, p, n, seed=9),
    }


MARKS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [4, 4, 4, 4, 4, 4, 4, 4, 4]], dtype=torch.int32)


@pytest.mark.parametrize("chunk_size", [1, 4, 256])
@pytest.mark.parametrize("l", [1, 3, 9])
def test_any_length_and_any_chunk(l, chunk_size):
    given = inputs(l)
    compare(
        lambda **given: mamba_chunk_scan_combined(**given, chunk_size=chunk_size, dt_softplus=True),
        lambda **given: loops.ssd(**given, dt_softplus=True)[0],
        given,
        terms=100,
    )


@pytest.mark.parametrize("D", [(h,), (h, p)])
@pytest.mark.parametrize("g", [1, 2, 4])
@pytest.mark.parametrize("marks", [None, MARKS], ids=["rows", "packed"])
def test_all_options_with_final_states(D, g, marks):
    def ours(**given):
        return mamba_chunk_scan_combined(
            **given,
            chunk_size=4,
            seq_idx=marks,
            dt_softplus=True,
            dt_limit=(0.3, 1.2),
            return_final_states=True,
        )

    def loop(**given):
        y, states = loops.ssd(**given, seq_idx=marks, dt_softplus=True, dt_limit=(0.3, 1.2))
        return y, states[:, -1]

    compare(ours, loop, inputs(g=g) | options(D=D), terms=100)


def test_varlen_states():
    ends = torch.tensor([0, 3, 3, 7, 9], dtype=torch.int32)
    given = inputs(rows=1) | options(rows=1)
    marks = torch.tensor([[0, 0, 0, 2, 2, 2, 2, 3, 3]])
    _, states = loops.ssd(**given, seq_idx=marks, dt_softplus=True)
    at = [states[:, 2], torch.zeros(1, h, p, n), states[:, 6], states[:, 8]]
    common = {"chunk_size": 4, "dt_softplus": True, "return_varlen_states": True, "cu_seqlens": ends}
    y, final, varlen = mamba_chunk_scan_combined(**given, **common, seq_idx=marks, return_final_states=True)
    assert_close(y, loops.ssd(**given, seq_idx=marks, dt_softplus=True)[0], 100)
    assert_close(final, states[:, -1], 100)
    assert_close(varlen, torch.cat(at), 100)
    y, varlen = mamba_chunk_scan_combined(**given, **common)
    assert_close(y, loops.ssd(**given, dt_softplus=True)[0], 100)  # cu_seqlens are for the states alone
    assert_close(varlen, torch.cat(at), 100)


def test_varlen_states_leave_out_what_is_behind_the_last_sequence():
    ends = torch.tensor([0, 4, 7])
    given = inputs(rows=1)
    _, varlen = mamba_chunk_scan_combined(
        **given, chunk_size=4, dt_softplus=True, return_varlen_states=True, cu_seqlens=ends
    )
    _, states = loops.ssd(**given, seq_idx=torch.tensor([[0, 0, 0, 0, 1, 1, 1, 2, 2]]), dt_softplus=True)
    assert_close(varlen, torch.cat([states[:, 3], states[:, 6]]), 100)


def test_dtypes_of_the_states():
    given = inputs(dtype=torch.bfloat16) | {"dt_bias": draw(h, seed=8).float()}
    given["A"] = given["A"].float()
    y, final = mamba_chunk_scan_combined(**given, chunk_size=4, dt_softplus=True, return_final_states=True)
    expected, states = loops.ssd(**{k: loops.wide(v) for k, v in given.items()}, dt_softplus=True)
    assert (y.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    assert_close(y, expected, 3)
    assert_close(final, states[:, -1], 100)
    _, final = mamba_chunk_scan_combined(
        **given, chunk_size=4, dt_softplus=True, return_final_states=True, state_dtype=torch.bfloat16
    )
    assert final.dtype == torch.bfloat16


def test_what_is_refused():
    given = inputs()
    for more in ({}, {"cu_seqlens": torch.tensor([0, 9])}):
        with pytest.raises(ValueError, match="return_varlen_states"):
            mamba_chunk_scan_combined(**given, chunk_size=4, return_varlen_states=True, **more)
    zxbcdt, weight = torch.zeros(1, 2, 2 * h * p + 2 * n + h), torch.zeros(h * p + 2 * n, 4)
    with pytest.raises(ValueError, match="headdim"):
        mamba_split_conv1d_scan_combined(
            zxbcdt, weight, None, torch.zeros(h), -torch.ones(h), torch.ones(h), 4
        )


# --- The whole block ------------------------------------------------------------------------------


def split_inputs(g=1, beside=0, l=6, D=(h,)):
    convolved = h * p + 2 * g * n
    return {
        "zxbcdt": draw(b, l, 2 * beside + h * p + convolved + h, seed=1),
        "conv1d_weight": draw(convolved, 3, seed=2),
        "conv1d_bias": draw(convolved, seed=3),
        "dt_bias": draw(h, seed=4),
        "A": -draw(h, seed=5).abs(),
        "D": draw(*D, seed=6),
    }


def split_loop(
    zxbcdt, conv1d_weight, conv1d_bias, dt_bias, A, D, *, g=1, beside=0, initial_states=None, seq_idx=None,
    dt_limit=(0.0, float("inf")), activation="silu", rmsnorm_weight=None, outproj_weight=None, outproj_bias=None,
    norm_before_gate=True, return_final_states=False,
):  # fmt: skip
    (rows, l, _), m, q = zxbcdt.shape, h * p, g * n
    gate, passed, z, x, B, C, dt = zxbcdt.split([beside, beside, m, m, q, q, h], -1)
    xBC = torch.cat([x, B, C], -1).transpose(1, 2)
    xBC = loops.conv(xBC, conv1d_weight, conv1d_bias, seq_idx, activation=activation).transpose(1, 2)
    x, B, C = xBC[..., :m], xBC[..., m : m + q], xBC[..., m + q :]
    heads = z.reshape(rows, l, h, p)
    y, states = loops.ssd(
        x.reshape(rows, l, h, p), dt, A, B.reshape(rows, l, g, n), C.reshape(rows, l, g, n), D,
        heads if rmsnorm_weight is None else None, dt_bias, initial_states, seq_idx, True, dt_limit,
    )  # fmt: skip
    y = y.reshape(rows, l, m)
    if rmsnorm_weight is not None:
        y = y if norm_before_gate else y * loops.silu(z)
        y = loops.rms(y, rmsnorm_weight, 1e-3, m // g)
        y = y * loops.silu(z) if norm_before_gate else y
    y = torch.cat([loops.silu(gate) * passed, y], -1)
    y = y if outproj_weight is None else y @ outproj_weight.T
    y = y if outproj_bias is None else y + outproj_bias
    return (y, states[:, -1]) if return_final_states else y


@pytest.mark.parametrize("beside", [0, 2])
@pytest.mark.parametrize("norm", [None, False, True], ids=["no norm", "gate first", "norm first"])
@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize(("g", "D"), [(1, (h,)), (2, (h, p))])
def test_the_whole_block(beside, norm, project, g, D):
    given = split_inputs(g, beside, D=D)
    if norm is not None:
        given |= {"rmsnorm_weight": draw(h * p, seed=10), "norm_before_gate": norm}
    if project:
        given |= {"outproj_weight": draw(5, beside + h * p, seed=11), "outproj_bias": draw(5, seed=12)}
    head = {"headdim": p} if len(D) == 1 else {}

    def ours(**given):
        return mamba_split_conv1d_scan_combined(**given, chunk_size=4, rmsnorm_eps=1e-3, ngroups=g, **head)

    compare(ours, lambda **given: split_loop(**given, g=g, beside=beside), given, terms=200)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("activation", [None, "swish"])
def test_the_whole_block_with_states_packing_and_limits(packed, activation):
    given = split_inputs() | {"initial_states": draw(b, h, p, n, seed=13), "activation": activation}
    given |= {"dt_limit": (0.4, 1.0), "return_final_states": True, "rmsnorm_weight": draw(h * p, seed=10)}
    given |= {"seq_idx": MARKS[:, :6]} if packed else {}

    def ours(**given):
        return mamba_split_conv1d_scan_combined(**given, chunk_size=4, rmsnorm_eps=1e-3, headdim=p)

    compare(ours, split_loop, given, terms=200)


# --- One step -------------------------------------------------------------------------------------


def one_step(state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False):
    """With heads: state (b, h, p, n); every number by itself."""
    y, new = torch.zeros_like(x), state.clone()
    for row in range(x.shape[0]):
        for i in range(x.shape[1]):
            group = i // (x.shape[1] // B.shape[1])
            for j in range(x.shape[2]):
                step = dt[row, i, j] if dt_bias is None else dt[row, i, j] + dt_bias[i, j]
                step = loops.softplus(step) if dt_softplus else step
                new[row, i, j] = (
                    torch.exp(step * A[i, j]) * state[row, i, j] + step * x[row, i, j] * B[row, group]
                )
                value = new[row, i, j] @ C[row, group]
                value = value if D is None else value + D[i, j] * x[row, i, j]
                y[row, i, j] = value if z is None else value * loops.silu(z[row, i, j])
    return y, new


def step_inputs(kind, dtype=torch.float64, g=2, all_options=True):
    """`kind`: "heads", "tied" (one decay a head, expanded as Mamba-2 does it), or "channels" (no heads)."""
    A, dt, bias = -draw(h, p, n, seed=3).abs(), draw(b, h, p, seed=2, dtype=dtype), draw(h, p, seed=8)
    if kind == "tied":
        A, dt = A[:, :1, :1].expand(h, p, n), dt[..., :1].expand(b, h, p)
        bias = bias[:, :1].expand(h, p)
    given = {"state": draw(b, h, p, n, seed=1), "x": draw(b, h, p, seed=4, dtype=dtype), "dt": dt, "A": A}
    given |= {"B": draw(b, g, n, seed=5, dtype=dtype), "C": draw(b, g, n, seed=6, dtype=dtype)}
    if all_options:
        given |= {"D": draw(h, p, seed=7), "z": draw(b, h, p, seed=9, dtype=dtype), "dt_bias": bias}
    return given


def without_heads(given):
    """The channels (b, h p) of what has heads, with B and C (b, n)."""
    flat = {
        "state": (1, 2),
        "A": (0, 1),
        "D": (0, 1),
        "dt_bias": (0, 1),
        "x": (1, 2),
        "dt": (1, 2),
        "z": (1, 2),
    }
    out = {k: v.flatten(*flat[k]) for k, v in given.items() if k in flat}
    return out | {k: given[k][:, 0] for k in ("B", "C")}


@pytest.mark.parametrize("kind", ["heads", "tied", "channels"])
@pytest.mark.parametrize("all_options", [False, True])
def test_selective_state_update(kind, all_options):
    g = 1 if kind == "channels" else 2
    given = step_inputs(kind, g=g, all_options=all_options)
    expected, new = one_step(**given, dt_softplus=True)
    if kind == "channels":
        given, expected, new = without_heads(given), expected.flatten(1), new.flatten(1, 2)
    state = given["state"].clone()
    y = selective_state_update(**given | {"state": state}, dt_softplus=True)
    assert_close(y, expected, 30)
    assert_close(state, new, 30)


@pytest.mark.parametrize("kind", ["heads", "tied", "channels"])
def test_selective_state_update_of_chosen_rows(kind):
    given = step_inputs(kind, g=1)
    given = without_heads(given) if kind == "channels" else given
    table = draw(6, *given["state"].shape[1:], seed=20)
    rows, before = torch.tensor([4, -1], dtype=torch.int32), table.clone()
    y = selective_state_update(**given | {"state": table}, state_batch_indices=rows)
    own = torch.stack([before[4], torch.zeros_like(before[4])])
    assert torch.equal(y, selective_state_update(**given | {"state": own}))
    assert torch.equal(table[4], own[0])
    others = [0, 1, 2, 3, 5]
    assert torch.equal(table[others], before[others])


@pytest.mark.parametrize("kind", ["heads", "tied"])
def test_selective_state_update_of_half_inputs_and_without_gradients(kind):
    given = step_inputs(kind, torch.bfloat16)
    given |= {k: given[k].float() for k in ("state", "D")}
    A = given["A"].float()[..., :1, :1].clone() if kind == "tied" else given["A"].float()
    given["A"] = A.requires_grad_().expand(h, p, n)
    expected, new = one_step(**{k: v.detach().double() for k, v in given.items()})
    y = selective_state_update(**given)
    assert y.dtype == torch.bfloat16
    assert not y.requires_grad
    assert_close(y, expected, 3)
    assert_close(given["state"], new, 30)


def test_a_half_state_is_rounded_in_place():
    given = step_inputs("tied")
    given["state"] = given["state"].half()
    expected = one_step(**given | {"state": given["state"].double()})[1]
    selective_state_update(**given)
    assert given["state"].dtype == torch.float16
    assert_close(given["state"], expected)
