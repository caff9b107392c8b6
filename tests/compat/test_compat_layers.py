"""`Mamba`, `Mamba2` and `Mamba2Simple` called as the official modules are: prompts, steps, states, packed prompts."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import official_loops as loops
import pytest
import torch
from official_loops import assert_close, draw

from ssmcourse.compat.layers import Mamba, Mamba2, Mamba2Simple

MAMBA = {"d_model": 6, "d_state": 3, "dt_rank": 2}
MAMBA2 = {"d_model": 6, "d_state": 3, "headdim": 2, "ngroups": 2}
VARIANTS = {
    "mamba": (Mamba, MAMBA),
    "mamba, bias": (Mamba, MAMBA | {"bias": True, "conv_bias": False, "d_conv": 3}),
    "mamba2": (Mamba2, MAMBA2),
    "mamba2, mlp": (Mamba2, MAMBA2 | {"d_ssm": 8, "D_has_hdim": True, "rmsnorm": False}),
    "mamba2, norm first": (
        Mamba2,
        MAMBA2 | {"norm_before_gate": True, "dt_limit": (0.02, 0.05), "bias": True},
    ),
}


def make(name, layer_idx=0):
    """In float64, with every parameter away from its first value."""
    kind, options = VARIANTS[name]
    torch.manual_seed(0)
    layer = kind(**options, layer_idx=layer_idx)
    with torch.no_grad():
        for i, value in enumerate(layer.parameters()):
            value += draw(*value.shape, seed=i, scale=0.1, dtype=value.dtype)
    return layer.double()


def params(offset=0):
    return SimpleNamespace(seqlen_offset=offset, key_value_memory_dict={})


def mamba_loop(layer, u):
    """(b, l, d_model) from the parameters alone."""
    p = dict(layer.named_parameters())
    xz = u @ p["in_proj.weight"].T + p.get("in_proj.bias", 0)
    d, n, r = p["A_log"].shape[0], p["A_log"].shape[1], p["dt_proj.weight"].shape[1]
    x = loops.conv(xz[..., :d].mT, p["conv1d.weight"][:, 0], p.get("conv1d.bias"), activation="silu")
    columns = x.mT @ p["x_proj.weight"].T
    dt, B, C = columns[..., :r] @ p["dt_proj.weight"].T, columns[..., r : r + n], columns[..., r + n :]
    A = -p["A_log"].exp()
    y, _ = loops.scan(x, dt.mT, A, B.mT, C.mT, p["D"], xz[..., d:].mT, p["dt_proj.bias"], True)
    return y.mT @ p["out_proj.weight"].T + p.get("out_proj.bias", 0)


@pytest.mark.parametrize("name", ["mamba", "mamba, bias"])
def test_mamba_against_the_loop(name):
    layer, u = make(name), draw(2, 7, 6, seed=9)
    assert_close(layer(u), mamba_loop(layer, u), 200)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("l", [1, 2, 9])
def test_a_prompt_and_steps_give_what_a_sequence_gives(name, l):
    layer, u = make(name), draw(2, l + 4, 6, seed=9)
    with torch.no_grad():
        expected = layer(u)
        inference = params()
        got = [layer(u[:, :l], inference_params=inference)]
        for t in range(l, l + 4):
            inference.seqlen_offset = t
            got.append(layer(u[:, t : t + 1], inference_params=inference))
    assert_close(torch.cat(got, 1), expected, 200)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_states_have_the_official_layout(name):
    layer, u = make(name), draw(2, 7, 6, seed=9)
    w = layer.d_conv
    with torch.no_grad():
        for l in (1, 7):
            inference = params()
            layer(u[:, :l], inference_params=inference)
            conv_state, ssm_state = inference.key_value_memory_dict[0]
            convolved = layer.in_proj(u[:, :l])
            if isinstance(layer, Mamba):
                convolved = convolved[..., : layer.d_inner]
                assert ssm_state.shape == (2, layer.d_inner, 3)
            else:
                convolved = layer.split(convolved).convolved
                assert ssm_state.shape == (2, layer.nheads, layer.headdim, 3)
            padded = torch.cat([torch.zeros(2, w, convolved.shape[-1]), convolved], 1)[:, -w:]
            assert_close(conv_state, padded.mT)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_writes_into_its_states(name):
    layer, u = make(name), draw(2, 6, 6, seed=9)
    with torch.no_grad():
        conv_state, ssm_state = layer.allocate_inference_cache(2, 100)
        outputs = [layer.step(u[:, t : t + 1], conv_state, ssm_state) for t in range(6)]
        for _, conv, ssm in outputs:
            assert conv is conv_state
            assert ssm is ssm_state
        assert_close(torch.cat([y for y, _, _ in outputs], 1), layer(u), 200)
        inference = params()
        layer(u, inference_params=inference)
        for own, prompted in zip((conv_state, ssm_state), inference.key_value_memory_dict[0], strict=True):
            assert_close(own, prompted, 100)


def test_allocated_states_take_a_dtype_and_are_official_in_stride():
    conv_state, ssm_state = make("mamba2").allocate_inference_cache(3, 5, dtype=torch.bfloat16)
    assert conv_state.dtype == ssm_state.dtype == torch.bfloat16
    assert conv_state.stride(1) == 1  # channels last in memory, (b, d, w) in shape
    conv_state, ssm_state = make("mamba").allocate_inference_cache(3, 5, dtype=torch.float16, unknown=1)
    assert conv_state.dtype == ssm_state.dtype == torch.float16
    assert conv_state.shape == (3, 12, 4)


def test_mamba2_with_the_batch_in_one_dimension():
    layer, u = make("mamba2"), draw(2, 5, 6, seed=9)
    assert_close(layer(u.flatten(0, 1), seqlen=5), layer(u).flatten(0, 1))


def test_mamba2_with_packed_sequences():
    layer, u = make("mamba2"), draw(1, 9, 6, seed=9)
    marks = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 2]])
    alone = torch.cat([layer(part) for part in u.split([3, 5, 1], 1)], 1)
    assert_close(layer(u, seq_idx=marks), alone, 200)


def test_mamba2_with_prompts_of_unequal_length_in_one_row():
    layer, u, next_u = make("mamba2"), draw(1, 9, 6, seed=9), draw(3, 1, 6, seed=10)
    ends = torch.tensor([0, 3, 8, 9], dtype=torch.int32)
    with torch.no_grad():
        inference = params()
        y = layer(u, cu_seqlens=ends, inference_params=inference)
        inference.seqlen_offset = 1
        after = layer(next_u, inference_params=inference)
        for i, part in enumerate(u.split([3, 5, 1], 1)):
            whole = layer(torch.cat([part, next_u[i : i + 1]], 1))
            assert_close(y[:, ends[i] : ends[i + 1]], whole[:, :-1], 200)
            assert_close(after[i], whole[0, -1:], 200)


def test_mamba2_simple_starts_from_what_it_has_learned():
    torch.manual_seed(0)
    layer = Mamba2Simple(6, d_state=3, headdim=4, ngroups=3, learnable_init_states=True).double()
    assert layer.init_states.shape == (3, 4, 3)
    u, other = draw(2, 5, 6, seed=9), make_without_init(layer)
    assert_close(layer(u), other(u))
    with torch.no_grad():
        layer.init_states += draw(3, 4, 3, seed=11)
    expected = simple_loop(layer, u)
    assert_close(layer(u), expected, 200)
    expected.square().sum().backward()
    gradient, layer.init_states.grad = layer.init_states.grad, None
    layer(u).square().sum().backward()
    assert_close(layer.init_states.grad, gradient, 500)


def make_without_init(layer):
    other = copy.deepcopy(layer)
    other.init_states = None
    return other


def simple_loop(layer, u):
    p = dict(layer.named_parameters())
    m, q, h = 12, 9, 3  # d_inner, ngroups d_state, heads
    z, xBC, dt = (u @ p["in_proj.weight"].T).split([m, m + 2 * q, h], -1)
    xBC = loops.conv(xBC.mT, p["conv1d.weight"][:, 0], p["conv1d.bias"], activation="silu").mT
    x, B, C = xBC.split([m, q, q], -1)
    start = p["init_states"].expand(len(u), -1, -1, -1)
    y, _ = loops.ssd(
        x.unflatten(-1, (3, 4)), dt, -p["A_log"].exp(), B.unflatten(-1, (3, 3)), C.unflatten(-1, (3, 3)), p["D"],
        None, p["dt_bias"], start, None, True,
    )  # fmt: skip
    y = loops.rms(y.flatten(-2) * loops.silu(z), p["norm.weight"], 1e-5)  # one group, whatever ngroups is
    return y @ p["out_proj.weight"].T


# --- Parameters -----------------------------------------------------------------------------------


def shapes(layer):
    return {name: tuple(value.shape) for name, value in layer.state_dict().items()}


def test_official_state_dicts():
    assert shapes(Mamba(32)) == {
        "A_log": (64, 16), "D": (64,), "in_proj.weight": (128, 32), "conv1d.weight": (64, 1, 4), "conv1d.bias": (64,),
        "x_proj.weight": (34, 64), "dt_proj.weight": (64, 2), "dt_proj.bias": (64,), "out_proj.weight": (32, 64),
    }  # fmt: skip
    mamba2 = {
        "dt_bias": (2,), "A_log": (2,), "D": (2,), "in_proj.weight": (514, 64), "conv1d.weight": (384, 1, 4),
        "conv1d.bias": (384,), "norm.weight": (128,), "out_proj.weight": (64, 128),
    }  # fmt: skip
    assert shapes(Mamba2(64)) == mamba2
    simple = Mamba2Simple(64, learnable_init_states=True)
    assert shapes(simple) == mamba2 | {
        "dt_bias": (1,), "A_log": (1,), "D": (1,), "in_proj.weight": (385, 64), "conv1d.weight": (256, 1, 4),
        "conv1d.bias": (256,), "init_states": (1, 128, 64),
    }  # fmt: skip


def test_what_official_training_code_looks_at():
    layer = Mamba(8)
    assert layer.A_log._no_weight_decay
    assert layer.D._no_weight_decay
    assert layer.dt_proj.bias._no_reinit
    assert Mamba2(64).dt_bias._no_weight_decay
    assert Mamba2Simple(64, learnable_init_states=True).init_states._no_weight_decay


def test_what_is_refused():
    with pytest.raises(NotImplementedError, match="process_group"):
        Mamba2(64, process_group=object())
    with pytest.raises(NotImplementedError, match="activation"):
        Mamba2Simple(64, activation="gelu")
    with pytest.raises(ValueError, match="layer_idx"):
        make("mamba", layer_idx=None)(draw(1, 2, 6), inference_params=params())
    layer = make("mamba2")
    with pytest.raises(ValueError, match="tokens"):
        layer.step(draw(1, 2, 6), *layer.allocate_inference_cache(1, 2))
