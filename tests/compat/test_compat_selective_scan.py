"""`selective_scan_fn`, the inner functions and `selective_scan_cuda` against loops in the official layout."""

from __future__ import annotations

import official_loops as loops
import pytest
import torch
from official_loops import assert_close, compare, draw

from ssmcourse.compat import selective_scan as scans
from ssmcourse.compat import selective_scan_cuda

b, d, l, n, r = 2, 4, 11, 3, 2


def real_A(dtype=torch.float32):
    return -draw(d, n, seed=3, dtype=dtype).abs()


def complex_A():
    return torch.complex(-draw(d, n, seed=3).abs(), draw(d, n, seed=4)).to(torch.complex64)


def inputs(kind="time", dtype=torch.float32):
    """u, delta, A, B, C of a kind: "time", "groups", "constant", and the same of complex A."""
    is_complex = kind.startswith("complex")
    shape = {
        "time": (b, n, l),
        "groups": (b, 2, n, l),
        "constant": (d, n),
        "complex": (b, n, 2 * l),
        "complex groups": (b, 2, n, 2 * l),
        "complex constant": (d, n),
    }[kind]
    B, C = draw(*shape, seed=5, dtype=dtype), draw(*shape, seed=6, dtype=dtype)
    if kind.endswith("constant"):  # as weights, which stay in float32
        B, C = B.float(), C.float()
        if is_complex:
            B, C = (torch.complex(M, M.flip(0)) for M in (B, C))
    A = complex_A() if is_complex else real_A()
    return {"u": draw(b, d, l, seed=1, dtype=dtype), "delta": draw(b, d, l, seed=2, scale=0.5, dtype=dtype),
            "A": A, "B": B, "C": C}  # fmt: skip


def options(dtype=torch.float32):
    return {"D": draw(d, seed=7, dtype=torch.float32), "z": draw(b, d, l, seed=8, dtype=dtype),
            "delta_bias": draw(d, seed=9, dtype=torch.float32)}  # fmt: skip


KINDS = ["time", "groups", "constant", "complex", "complex groups", "complex constant"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("all_options", [False, True])
def test_selective_scan_fn(kind, all_options):
    given = inputs(kind) | (options() if all_options else {})
    if not all_options:
        given["delta"] = given["delta"].abs()

    def ours(**given):
        y, last = scans.selective_scan_fn(**given, delta_softplus=all_options, return_last_state=True)
        assert torch.equal(y, scans.selective_scan_fn(**given, delta_softplus=all_options))
        return (y, last) if not last.is_complex() else (y, last.real, last.imag)

    def loop(**given):
        y, states = loops.scan(**given, delta_softplus=all_options)
        last = states[-1]
        return (y, last) if not last.is_complex() else (y, last.real, last.imag)

    compare(ours, loop, given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["time", "groups", "constant", "complex"])
def test_selective_scan_fn_of_half_inputs(kind, dtype):
    given = inputs(kind, dtype) | options(dtype)
    y, last = scans.selective_scan_fn(**given, delta_softplus=True, return_last_state=True)
    expected, states = loops.scan(**{k: loops.wide(v) for k, v in given.items()}, delta_softplus=True)
    assert y.dtype == dtype
    assert last.dtype == (torch.complex64 if "complex" in kind else torch.float32)
    assert_close(y, expected, terms=3)
    assert_close(last, states[-1], terms=30)


def test_inputs_of_several_dtypes_are_computed_in_the_widest():
    given = inputs() | {"u": draw(b, d, l, seed=1, dtype=torch.bfloat16)}
    y = scans.selective_scan_fn(**given, delta_softplus=True)
    assert y.dtype == torch.bfloat16
    assert_close(y, loops.scan(**{k: loops.wide(v) for k, v in given.items()}, delta_softplus=True)[0])


def test_selective_scan_ref_is_the_same():
    given = inputs("groups") | options()
    y, last = scans.selective_scan_ref(**given, delta_softplus=True, return_last_state=True)
    expected, states = loops.scan(**{k: loops.wide(v) for k, v in given.items()}, delta_softplus=True)
    assert_close(y, expected, 30)
    assert_close(last, states[-1], 30)


# --- The inner functions --------------------------------------------------------------------------


def inner_inputs(A, w=4, dtype=torch.float64):
    columns = r + 2 * n * (2 if A.is_complex() else 1)
    return {
        "xz": draw(b, 2 * d, l, seed=20, dtype=dtype),
        "conv1d_weight": draw(d, 1, w, seed=21, dtype=dtype),
        "conv1d_bias": draw(d, seed=22, dtype=dtype),
        "x_proj_weight": draw(columns, d, seed=23, scale=0.5, dtype=dtype),
        "delta_proj_weight": draw(d, r, seed=24, dtype=dtype),
        "A": A,
        "D": draw(d, seed=25, dtype=dtype),
        "delta_bias": draw(d, seed=26, dtype=dtype),
    }


def projection(dtype=torch.float64):
    return {
        "out_proj_weight": draw(5, d, seed=27, dtype=dtype),
        "out_proj_bias": draw(5, seed=28, dtype=dtype),
    }


def selected(
    xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B=None, C=None,
    B_proj_bias=None, C_proj_bias=None, b_rms_weight=None, c_rms_weight=None, dt_rms_weight=None,
):  # fmt: skip
    """u, delta, B, C, z of the scan."""
    x, z = xz[:, :d], xz[:, d:]
    u = loops.conv(x, conv1d_weight[:, 0], conv1d_bias, activation="silu")
    columns = torch.einsum("rd,bdl->blr", x_proj_weight, u)
    delta = columns[..., : delta_proj_weight.shape[1]] @ delta_proj_weight.T
    width = (columns.shape[-1] - delta_proj_weight.shape[1]) // 2

    def own(given, part, bias, weight):
        if given is not None:
            return given
        part = part if bias is None else part + bias
        part = part if weight is None else loops.rms(part, weight, 1e-6)
        if not A.is_complex():
            return part.mT
        pairs = part.reshape(b, l, n, 2)
        return pairs.permute(0, 2, 1, 3).reshape(b, n, 2 * l)

    B = own(B, columns[..., -2 * width : -width], B_proj_bias, b_rms_weight)
    C = own(C, columns[..., -width:], C_proj_bias, c_rms_weight)
    delta = delta if dt_rms_weight is None else loops.rms(delta, dt_rms_weight, 1e-6)
    return u, delta.mT, B, C, z


def inner_loop(
    A, D, delta_bias, out_proj_weight=None, out_proj_bias=None, delta_softplus=True, A_b=None, **given
):
    u, delta, B, C, z = selected(A=A, **given)
    y, _ = loops.scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    if A_b is not None:
        mirrored = (t.flip(-1) if t.ndim > 2 else t for t in (B, C))
        back, _ = loops.scan(
            u.flip(-1), delta.flip(-1), A_b, *mirrored, D, z.flip(-1), delta_bias, delta_softplus
        )
        y = y + back.flip(-1)
    if out_proj_weight is None:
        return y
    y = torch.einsum("md,bdl->blm", out_proj_weight, y)
    return y if out_proj_bias is None else y + out_proj_bias


@pytest.mark.parametrize("w", [2, 3, 4])
@pytest.mark.parametrize("conv_bias", [False, True])
def test_mamba_inner_fn(w, conv_bias):
    given = inner_inputs(real_A(torch.float64), w) | projection()
    given |= {} if conv_bias else {"conv1d_bias": None}
    compare(scans.mamba_inner_fn, inner_loop, given)


def test_mamba_inner_fn_of_complex_A_takes_real_and_imaginary_parts_in_turn():
    given = inner_inputs(complex_A().to(torch.complex128)) | projection()
    biases = {"B_proj_bias": draw(2 * n, seed=31), "C_proj_bias": draw(2 * n, seed=32)}
    compare(scans.mamba_inner_fn, inner_loop, given | biases)


@pytest.mark.parametrize("shape", [(d, n), (b, n, l), (b, 2, n, l)])
def test_mamba_inner_fn_with_B_and_C_given(shape):
    given = inner_inputs(real_A(torch.float64)) | projection() | {"out_proj_bias": None}
    compare(
        scans.mamba_inner_fn, inner_loop, given | {"B": draw(*shape, seed=33), "C": draw(*shape, seed=34)}
    )
    compare(scans.mamba_inner_fn, inner_loop, given | {"B": draw(*shape, seed=33), "C": None})


def test_mamba_inner_fn_with_norms_and_without_softplus():
    given = inner_inputs(real_A(torch.float64)) | projection()
    norms = {
        "b_rms_weight": draw(n, seed=35),
        "c_rms_weight": draw(n, seed=36),
        "dt_rms_weight": draw(d, seed=37),
    }
    compare(scans.mamba_inner_fn, inner_loop, given | norms)
    without = given | {"delta_softplus": False, "A": -draw(d, n, seed=38).abs() / 10}
    compare(scans.mamba_inner_fn, inner_loop, without)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mamba_inner_fn_of_half_inputs(dtype):
    given = inner_inputs(real_A(), dtype=dtype) | projection(dtype)
    given |= {name: given[name].float() for name in ("D", "delta_bias")}  # as Mamba calls it
    y = scans.mamba_inner_fn(**given)
    assert y.dtype == dtype
    assert_close(y, inner_loop(**{k: loops.wide(v) for k, v in given.items()}), terms=30)


def test_mamba_inner_ref_takes_softplus_whatever_is_asked():
    given = inner_inputs(real_A(torch.float64)) | projection()
    assert_close(scans.mamba_inner_ref(**given, delta_softplus=False), inner_loop(**given), terms=100)


def test_mamba_inner_fn_no_out_proj():
    compare(scans.mamba_inner_fn_no_out_proj, inner_loop, inner_inputs(real_A(torch.float64)))


@pytest.mark.parametrize("constant", [False, True])
def test_bimamba_inner_fn(constant):
    given = inner_inputs(real_A(torch.float64)) | projection() | {"A_b": -draw(d, n, seed=39).abs()}
    given |= {"B": draw(d, n, seed=33), "C": draw(b, n, l, seed=34)} if constant else {}
    compare(scans.bimamba_inner_fn, inner_loop, given)


# --- The compiled module --------------------------------------------------------------------------


def as_vmamba_calls_it(u, delta, A, B, C, D, delta_bias):
    """An autograd function around fwd and bwd, with their positional arguments."""

    class Scan(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *given):
            out, x, *rest = selective_scan_cuda.fwd(*given[:6], None, given[6], True)
            assert not rest
            ctx.save_for_backward(*given, x)
            return out

        @staticmethod
        def backward(ctx, dout):
            *given, x = ctx.saved_tensors
            found = selective_scan_cuda.bwd(*given[:6], None, given[6], dout, x, None, None, True, False)
            return tuple(found)

    return Scan.apply(u, delta, A, B, C, D, delta_bias)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_selective_scan_cuda_as_vmamba_calls_it(groups):
    shape = b, groups, n, l
    given = inputs() | {
        "B": draw(*shape, seed=5, dtype=torch.float32),
        "C": draw(*shape, seed=6, dtype=torch.float32),
    }
    given |= {name: options()[name] for name in ("D", "delta_bias")}
    compare(as_vmamba_calls_it, lambda **given: loops.scan(**given, delta_softplus=True)[0], given)


def test_selective_scan_cuda_with_a_gate():
    given = inputs("groups") | options()
    order = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    out, x, out_z = selective_scan_cuda.fwd(*(given[k] for k in order), True)
    theirs = {k: loops.wide(v) for k, v in given.items()}
    expected, _ = loops.scan(**theirs, delta_softplus=True)
    assert_close(out_z, expected, 30)
    assert_close(out, loops.scan(**theirs | {"z": None}, delta_softplus=True)[0], 30)
    dout, dz = draw(b, d, l, seed=50), torch.empty(b, d, l)
    expected.backward(dout)
    found = selective_scan_cuda.bwd(*(given[k] for k in order), dout.float(), x, out, dz, True, True)
    names = ("u", "delta", "A", "B", "C", "D", "delta_bias", "z")
    for name, gradient in zip(names, found[:8], strict=True):
        assert_close(gradient, theirs[name].grad, 300)
    assert found[7] is dz
    assert_close(found[8], expected, 30)


def test_selective_scan_cuda_without_options_gives_none_for_their_gradients():
    given = inputs("groups")
    found = selective_scan_cuda.bwd(
        *given.values(), None, None, None, draw(b, d, l).float(), None, None, None, True, False
    )
    assert found[5] is None
    assert found[6] is None
    assert len(found) == 7


def test_the_states_of_selective_scan_cuda_after_every_2048_steps():
    long = 2 * 2048 + 3
    u, delta = (
        draw(1, 2, long, seed=1, dtype=torch.float32),
        draw(1, 2, long, seed=2, dtype=torch.float32) - 4,
    )
    A, B, C = (
        -draw(2, 2, seed=3).abs().float(),
        *(draw(1, 1, 2, long, seed=s, dtype=torch.float32) for s in (4, 5)),
    )
    out, x = selective_scan_cuda.fwd(u, delta, A / 50, B, C, None, None, None, True)
    with torch.no_grad():
        y, states = loops.scan(*(loops.wide(t) for t in (u, delta, A / 50, B, C)), delta_softplus=True)
    assert x.shape == (1, 2, 3, 4)
    assert_close(out, y, 1000)
    for chunk, step in enumerate((2047, 4095, long - 1)):
        assert_close(x[:, :, chunk, 1::2], states[step], 1000)
        total = loops.softplus(delta.double())[..., : step + 1].sum(-1)
        assert_close(x[:, :, chunk, 0::2], torch.exp(total[..., None] * A.double() / 50), 1000)
