"""The names and the order of all arguments, and their defaults, as the official packages have them."""

from __future__ import annotations

import importlib
import inspect

import pytest

from ssmcourse.compat.finder import OURS, TABLE

INNER = (
    "xz conv1d_weight conv1d_bias x_proj_weight delta_proj_weight out_proj_weight out_proj_bias A B=None C=None "
    "D=None delta_bias=None B_proj_bias=None C_proj_bias=None delta_softplus=True"
)
SCAN = "u delta A B C D=None z=None delta_bias=None delta_softplus=False return_last_state=False"
NORM = (
    "x weight bias residual=None x1=None weight1=None bias1=None eps=1e-06 dropout_p=0.0 rowscale=None "
    "prenorm=False residual_in_fp32=False"
)
GATED = "x weight bias z=None eps=1e-06 group_size=None norm_before_gate=True"
GATED_MODULE = "hidden_size eps=1e-05 group_size=None norm_before_gate=True device=None dtype=None"
SIGNATURES = {
    "mamba_ssm.ops.selective_scan_interface": {
        "selective_scan_fn": SCAN,
        "selective_scan_ref": SCAN,
        "mamba_inner_fn": INNER + " checkpoint_lvl=1 b_rms_weight=None c_rms_weight=None dt_rms_weight=None "
        "b_c_dt_rms_eps=1e-06",
        "mamba_inner_ref": INNER,
        "mamba_inner_fn_no_out_proj": INNER.replace("out_proj_weight out_proj_bias ", ""),
        "bimamba_inner_fn": INNER.replace(" A ", " A A_b "),
    },
    "selective_scan_cuda": {
        "fwd": "u delta A B C D z delta_bias delta_softplus",
        "bwd": "u delta A B C D z delta_bias dout x out dz delta_softplus recompute_out_z",
    },
    "mamba_ssm.ops.triton.ssd_combined": {
        "mamba_chunk_scan_combined": "x dt A B C chunk_size D=None z=None dt_bias=None initial_states=None "
        "seq_idx=None cu_seqlens=None dt_softplus=False dt_limit=(0.0, inf) return_final_states=False "
        "return_varlen_states=False state_dtype=None",
        "mamba_split_conv1d_scan_combined": "zxbcdt conv1d_weight conv1d_bias dt_bias A D chunk_size "
        "initial_states=None seq_idx=None dt_limit=(0.0, inf) return_final_states=False activation='silu' "
        "rmsnorm_weight=None rmsnorm_eps=1e-06 outproj_weight=None outproj_bias=None headdim=None ngroups=1 "
        "norm_before_gate=True",
    },
    "mamba_ssm.ops.triton.selective_state_update": {
        "selective_state_update": "state x dt A B C D=None z=None dt_bias=None dt_softplus=False "
        "state_batch_indices=None",
    },
    "mamba_ssm.ops.triton.layer_norm": {
        "layer_norm_fn": NORM + " is_rms_norm=False return_dropout_mask=False",
        "rms_norm_fn": NORM + " return_dropout_mask=False",
        "RMSNorm": "hidden_size eps=1e-05 dropout_p=0.0 device=None dtype=None",
    },
    "mamba_ssm.ops.triton.layernorm_gated": {
        "layernorm_fn": GATED + " is_rms_norm=False",
        "rmsnorm_fn": GATED,
        "LayerNorm": GATED_MODULE,
        "RMSNorm": GATED_MODULE,
    },
    "causal_conv1d.causal_conv1d_interface": {
        "causal_conv1d_fn": "x weight bias=None seq_idx=None initial_states=None return_final_states=False "
        "final_states_out=None activation=None",
        "causal_conv1d_update": "x conv_state weight bias=None activation=None cache_seqlens=None "
        "conv_state_indices=None",
    },
    "causal_conv1d.causal_conv1d_varlen": {"causal_conv1d_varlen_states": "x cu_seqlens state_len"},
    "mamba_ssm.modules.mamba_simple": {
        "Mamba": "d_model d_state=16 d_conv=4 expand=2 dt_rank='auto' dt_min=0.001 dt_max=0.1 dt_init='random' "
        "dt_scale=1.0 dt_init_floor=0.0001 conv_bias=True bias=False use_fast_path=True layer_idx=None device=None "
        "dtype=None",
        "Mamba.forward": "self hidden_states inference_params=None",
        "Mamba.step": "self hidden_states conv_state ssm_state",
    },
    "mamba_ssm.modules.mamba2": {
        "Mamba2": "d_model d_state=128 d_conv=4 conv_init=None expand=2 headdim=64 d_ssm=None ngroups=1 "
        "A_init_range=(1, 16) D_has_hdim=False rmsnorm=True norm_before_gate=False dt_min=0.001 dt_max=0.1 "
        "dt_init_floor=0.0001 dt_limit=(0.0, inf) bias=False conv_bias=True chunk_size=256 use_mem_eff_path=True "
        "layer_idx=None process_group=None sequence_parallel=True device=None dtype=None",
        "Mamba2.forward": "self u seqlen=None seq_idx=None cu_seqlens=None inference_params=None",
        "Mamba2.step": "self hidden_states conv_state ssm_state",
    },
    "mamba_ssm.modules.mamba2_simple": {
        "Mamba2Simple": "d_model d_state=64 d_conv=4 conv_init=None expand=2 headdim=128 ngroups=1 "
        "A_init_range=(1, 16) dt_min=0.001 dt_max=0.1 dt_init_floor=0.0001 dt_limit=(0.0, inf) "
        "learnable_init_states=False activation='swish' bias=False conv_bias=True chunk_size=256 "
        "use_mem_eff_path=True layer_idx=None device=None dtype=None",
        "Mamba2Simple.forward": "self u seq_idx=None",
    },
}
EACH = [(module, name) for module, names in SIGNATURES.items() for name in names]


def found(module: str, name: str):
    """What the stand-in of `module` has under this name."""
    first, *rest = name.split(".")
    home = next(home for home, names in TABLE[module].items() if first in names.split())
    assert home.startswith(OURS)
    value = getattr(importlib.import_module(home), first)
    for part in rest:
        value = getattr(value, part)
    return value


@pytest.mark.parametrize(("module", "name"), EACH, ids=lambda value: value)
def test_signature(module, name):
    parameters = inspect.signature(found(module, name)).parameters.values()
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    text = " ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters)
    assert text == SIGNATURES[module][name]


def test_every_name_of_the_table_is_checked_here():
    ours = {
        (module, name)
        for module, homes in TABLE.items()
        for home, names in homes.items()
        for name in names.split()
        if home.startswith(OURS) and module != "mamba_ssm.ops.triton.layernorm"  # layer_norm by its old name
    }
    assert ours == {(module, name) for module, name in EACH if "." not in name}
