"""The modules of `mamba_ssm.modules`: our layers, called as the official ones are.

    y = layer(u)                                            (b, l, d_model)
    y = layer(u, inference_params=params)                   the prompt, then token by token (b, 1, d_model)
    y, conv_state, ssm_state = layer.step(u, conv_state, ssm_state)

| official     | shape                     | meaning                                                            |
|--------------|---------------------------|--------------------------------------------------------------------|
| `conv_state` | (b, d, w)                 | the last w inputs of the convolution, oldest first; written into   |
| `ssm_state`  | (b, d, n) or (b, h, p, n) | the state; written into                                            |

`inference_params` is any object with `seqlen_offset`, the tokens so far, and `key_value_memory_dict`, in which a layer
keeps its two states under its `layer_idx`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ssmcourse import packing
from ssmcourse.compat.convolution import causal_conv1d_varlen_states
from ssmcourse.compat.ssd_combined import after_each, marks_between
from ssmcourse.convolution import causal_conv1d
from ssmcourse.duality import ssd
from ssmcourse.nn import mamba, mamba2
from ssmcourse.nn.norms import GatedRMSNorm
from ssmcourse.nn.sequence import Spans
from ssmcourse.selective import selective_scan

NO_LIMIT = (0.0, float("inf"))


class Mamba(mamba.Mamba):
    """`ssmcourse.nn.Mamba`, called as `mamba_ssm.modules.mamba_simple.Mamba`."""

    def __init__(
        self, d_model, d_state=16, d_conv=4, expand=2, dt_rank="auto", dt_min=0.001, dt_max=0.1, dt_init="random",
        dt_scale=1.0, dt_init_floor=1e-4, conv_bias=True, bias=False, use_fast_path=True, layer_idx=None,
        device=None, dtype=None,
    ):  # fmt: skip
        super().__init__(
            d_model, d_state, d_conv, expand, dt_rank, dt_min, dt_max, dt_init, dt_scale, dt_init_floor,
            conv_bias, bias, use_fast_path, layer_idx, device, dtype,
        )  # fmt: skip
        _mark(self)
        self.dt_proj.bias._no_reinit = True

    def forward(self, hidden_states, inference_params=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        if inference_params is None:
            return self.mix(hidden_states, Spans(), None, False)[0]
        states = _states(self, inference_params, len(hidden_states))
        if inference_params.seqlen_offset > 0:
            return self.step(hidden_states, *states)[0]
        return self._prompt(hidden_states, *states)

    def _prompt(self, u: Tensor, conv_state: Tensor, ssm_state: Tensor) -> Tensor:
        x, z = self.in_proj(u).chunk(2, -1)
        conv_state.copy_(_last(x, self.d_conv))
        x = causal_conv1d(x, self.conv1d.weight[:, 0], self.conv1d.bias, activation="silu")
        dt, B, C = self.select(x)
        y, last = selective_scan(
            x, dt, self.A(), B, C, self.D, z, self.dt_proj.bias, dt_softplus=True, return_final_state=True
        )
        ssm_state.copy_(last)
        return self.out_proj(y)

    def step(self, hidden_states, conv_state, ssm_state):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _step(super().step, hidden_states, conv_state, ssm_state)

    def allocate_inference_cache(self, batch_size, max_seqlen, dtype=None, **kwargs):
        """Both states, of zeros. max_seqlen is without effect."""
        conv = self.conv1d.weight.new_zeros(batch_size, self.d_inner, self.d_conv, dtype=dtype)
        return conv, self.dt_proj.weight.new_zeros(batch_size, self.d_inner, self.d_state, dtype=dtype)


class Mamba2(mamba2.Mamba2):
    """`ssmcourse.nn.Mamba2`, called as `mamba_ssm.modules.mamba2.Mamba2`."""

    def __init__(
        self, d_model, d_state=128, d_conv=4, conv_init=None, expand=2, headdim=64, d_ssm=None, ngroups=1,
        A_init_range=(1, 16), D_has_hdim=False, rmsnorm=True, norm_before_gate=False, dt_min=0.001, dt_max=0.1,
        dt_init_floor=1e-4, dt_limit=NO_LIMIT, bias=False, conv_bias=True, chunk_size=256, use_mem_eff_path=True,
        layer_idx=None, process_group=None, sequence_parallel=True, device=None, dtype=None,
    ):  # fmt: skip
        if process_group is not None:
            raise NotImplementedError(
                "process_group: got one, expected None: tensor parallelism is not there"
            )
        super().__init__(
            d_model, d_state, d_conv, conv_init, expand, headdim, d_ssm, ngroups, A_init_range, D_has_hdim, rmsnorm,
            norm_before_gate, dt_min, dt_max, dt_init_floor, dt_limit, bias, conv_bias, chunk_size, use_mem_eff_path,
            layer_idx, device, dtype,
        )  # fmt: skip
        _mark(self)

    def forward(self, u, seqlen=None, seq_idx=None, cu_seqlens=None, inference_params=None):  # pyright: ignore
        """u is (b, l, d_model), or with `seqlen` (b l, d_model); y has its shape.

        With both `inference_params` and `cu_seqlens`, the one row of u holds the prompts of a batch, one behind
        the other.
        """
        rows = u if seqlen is None else u.unflatten(0, (-1, seqlen))
        y = self._rows(rows, seq_idx, cu_seqlens, inference_params)
        return y if seqlen is None else y.flatten(0, 1)

    def _rows(self, u, seq_idx, cu_seqlens, inference_params) -> Tensor:
        if inference_params is None:
            return self.mix(u, Spans(seq_idx), None, False)[0]
        states = _states(self, inference_params, len(u) if cu_seqlens is None else len(cu_seqlens) - 1)
        if inference_params.seqlen_offset > 0:
            return self.step(u, *states)[0]
        return self._prompt(u, seq_idx, cu_seqlens, *states)

    def _prompt(self, u, seq_idx, cu_seqlens, conv_state: Tensor, ssm_state: Tensor) -> Tensor:
        mlp, z, xBC, dt = self.split(self.in_proj(u))
        if cu_seqlens is None:
            conv_state.copy_(_last(xBC, self.d_conv))
        else:
            conv_state.copy_(causal_conv1d_varlen_states(xBC[0], cu_seqlens, self.d_conv))
            seq_idx = marks_between(u, cu_seqlens)
        weight, bias = self.conv1d.weight[:, 0], self.conv1d.bias
        x, B, C = self.heads(causal_conv1d(xBC, weight, bias, activation="silu", seq_idx=seq_idx))
        y, after = ssd(
            x, dt, self.A(), B, C, self.skip(), self.gate(z), self.dt_bias, dt_softplus=True,
            dt_limit=self.dt_limit, return_final_state=True, seq_idx=seq_idx,
        )  # fmt: skip
        if cu_seqlens is not None:
            after = after_each(after, cu_seqlens)
        elif seq_idx is not None:
            after = after[packing.number_over_all_rows(seq_idx)[:, -1]]
        ssm_state.copy_(after)
        return self.out_proj(self.finish(y, z, mlp))

    def step(self, hidden_states, conv_state, ssm_state):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _step(super().step, hidden_states, conv_state, ssm_state)

    def allocate_inference_cache(self, batch_size, max_seqlen, dtype=None, **kwargs):
        """Both states, of zeros. max_seqlen is without effect."""
        like = self.in_proj.weight
        conv = self.conv1d.weight.new_zeros(batch_size, self.d_conv, self.conv1d.in_channels, dtype=dtype)
        return conv.mT, like.new_zeros(batch_size, self.nheads, self.headdim, self.d_state, dtype=dtype)


class Mamba2Simple(mamba2.Mamba2):
    """`mamba_ssm.modules.mamba2_simple.Mamba2Simple`: no generation; its norm is over all channels, with any ngroups.

    With `learnable_init_states`, every sequence of a batch starts from the parameter `init_states`, (h, p, n).
    """

    def __init__(
        self, d_model, d_state=64, d_conv=4, conv_init=None, expand=2, headdim=128, ngroups=1, A_init_range=(1, 16),
        dt_min=0.001, dt_max=0.1, dt_init_floor=1e-4, dt_limit=NO_LIMIT, learnable_init_states=False,
        activation="swish", bias=False, conv_bias=True, chunk_size=256, use_mem_eff_path=True, layer_idx=None,
        device=None, dtype=None,
    ):  # fmt: skip
        if activation not in ("silu", "swish"):
            raise NotImplementedError(f"activation: got {activation!r}, expected 'silu' or 'swish'")
        super().__init__(
            d_model, d_state, d_conv, conv_init, expand, headdim, ngroups=ngroups, A_init_range=A_init_range,
            dt_min=dt_min, dt_max=dt_max, dt_init_floor=dt_init_floor, dt_limit=dt_limit, bias=bias,
            conv_bias=conv_bias, layer_idx=layer_idx, device=device, dtype=dtype,
        )  # fmt: skip
        self.norm = GatedRMSNorm(self.d_inner, device=device, dtype=dtype)
        self.init_states = None
        if learnable_init_states:
            shape = self.nheads, self.headdim, d_state
            self.init_states = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))
        _mark(self)

    def forward(self, u, seq_idx=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        """u (b, l, d_model); y has its shape."""
        cache = None
        if self.init_states is not None:
            start = self.init_states.expand(len(u), -1, -1, -1)
            cache = self.allocate_cache(len(u)) | {"ssm": start.to(self.A().dtype)}
        return self.mix(u, Spans(seq_idx), cache, False)[0]


def _mark(layer: nn.Module) -> None:
    """The attribute by which official training code knows what not to decay."""
    for name in ("A_log", "D", "dt_bias", "init_states"):
        value = getattr(layer, name, None)
        if value is not None:
            value._no_weight_decay = True


def _states(layer, inference_params, batch: int) -> tuple[Tensor, Tensor]:
    """The layer's two states, made at its first call."""
    if layer.layer_idx is None:
        raise ValueError("layer_idx: got None, expected the layer's number, to keep its states under")
    kept = inference_params.key_value_memory_dict
    if layer.layer_idx not in kept:
        kept[layer.layer_idx] = layer.allocate_inference_cache(batch, 0)
    return kept[layer.layer_idx]


def _step(own, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One token (b, 1, d_model) with `own`, a step as our layers take it."""
    if hidden_states.shape[1] != 1:
        raise ValueError(f"hidden_states: got {hidden_states.shape[1]} tokens, expected 1")
    shifted = conv_state.roll(-1, -1)
    y, after = own(hidden_states[:, 0], {"conv": shifted[..., :-1].mT, "ssm": ssm_state})
    shifted[..., 1:] = after["conv"].mT
    conv_state.copy_(shifted)
    ssm_state.copy_(after["ssm"])
    return y[:, None], conv_state, ssm_state


def _last(x: Tensor, count: int) -> Tensor:
    """The last inputs (b, d, count) of x (b, l, d), zeros before the first."""
    return pad(x[:, -count:].mT, (max(0, count - x.shape[1]), 0))
