"""The Mamba and Mamba-2 layers of `transformers`, computed by our operators.

`transformers` takes the operators of `mamba_ssm` and `causal_conv1d` when it is imported, if they are there. What then
is left of a step of generation is mostly its layer's own Python, so that the whole of the layer's `forward` is replaced:
same parameters, same cache, same results. Whatever is out of the ordinary goes to the original one: `_original_only`, and
a step of generation with gradients, or with a cache of another batch.

Shapes: u (b, l, hidden); inside x, z, dt (b, l, d), B, C (b, l, n), with heads x (b, l, h, p), B, C (b, l, g, n).
In its cache the convolution's state is (b, d, w), the recurrent one (b, d, n) or (b, h, p, n).
"""

from __future__ import annotations

import functools
import importlib.abc
import math
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ssmcourse.compat.layouts import SILU, one_dtype
from ssmcourse.convolution import causal_conv1d, conv1d_step
from ssmcourse.duality import ssd, ssd_step
from ssmcourse.kernels.plain import few_rows
from ssmcourse.normalization import gated_rms_norm
from ssmcourse.selective import selective_scan, selective_step

Forward = Callable[..., Tensor]
NO_LIMIT = (-math.inf, math.inf)  # theirs does not limit the step size of a single step


def accelerate(model: nn.Module) -> nn.Module:
    """Let a `transformers` Mamba or Mamba-2 model compute its layers with our operators. Returns the model.

    Logits, gradients, caches and parameters stay what they are, up to rounding; only this model changes.

    Raises:
        ValueError: there is no layer of Mamba or Mamba-2 in it.
    """
    layers = [m for m in model.modules() if (type(m).__module__, type(m).__name__) in FORWARDS]
    if not layers:
        raise ValueError(
            f"model: got {type(model).__name__}, expected one with transformers' Mamba or Mamba-2 layers"
        )
    for layer in layers:
        own = type(layer).forward
        if not hasattr(own, "original"):
            name = type(layer).__module__, type(layer).__name__
            layer.forward = MethodType(_replacement(own, FORWARDS[name]), layer)
    return model


# --- Mamba ----------------------------------------------------------------------------------------


def _mamba(self: Any, u: Tensor, cache: Any, mask: Tensor | None, seq_idx: Tensor | None) -> Tensor:
    x, z = self.in_proj(_masked(u, mask)).chunk(2, -1)
    x = _masked(_convolved(self, x, cache, seq_idx), mask)
    dt, B, C = _selected(self, x)
    y = selective_scan(
        *one_dtype(x, dt), _decay(self), *one_dtype(B, C), self.D, z, self.dt_proj.bias,
        dt_softplus=True, return_final_state=cache is not None,
    )  # fmt: skip
    return self.out_proj(_kept(y, self, cache).to(u.dtype))


def _mamba_step(self: Any, u: Tensor, conv_state: Tensor, state: Tensor) -> Tensor:
    xz, conv1d = self.in_proj(u[:, 0]), self.conv1d
    x, z = xz.chunk(2, -1)
    select, dt_proj = self.x_proj, self.dt_proj
    parameters = conv1d.weight, conv1d.bias, select.weight, dt_proj.weight, dt_proj.bias, self.A_log, self.D
    as_it_is = type(select) is nn.Linear and not select._forward_hooks
    if as_it_is and few_rows(xz, conv_state, state, *parameters):
        from ssmcourse.kernels.layer_step import cpu

        y, _, after = cpu.mamba(xz, _window(x, conv_state), state, *parameters)
    else:
        x = _convolved_step(self, x, conv_state)
        dt, B, C = _selected(self, x)
        y, after = selective_step(state, x, dt, _decay(self), B, C, self.D, z, dt_proj.bias, dt_softplus=True)
    if after is not state:
        state.copy_(after)
    return self.out_proj(y)[:, None]


def _selected(self: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dt, B, C = self.x_proj(x).split([self.time_step_rank, self.ssm_state_size, self.ssm_state_size], -1)
    return linear(dt, self.dt_proj.weight), B, C


# --- Mamba-2 --------------------------------------------------------------------------------------


def _mamba2(self: Any, u: Tensor, cache: Any, mask: Tensor | None, seq_idx: Tensor | None) -> Tensor:
    z, xBC, dt = _parts(self, self.in_proj(_masked(u, mask)))
    x, B, C = _heads(self, _masked(_convolved(self, xBC, cache, seq_idx), mask))
    before = None if cache is None else cache.get_recurrent_state(self.layer_idx, state_idx=0)
    y = ssd(
        x, dt, _decay(self), B, C, self.D, None, self.dt_bias, dt_softplus=True, seq_idx=seq_idx,
        dt_limit=tuple(self.time_step_limit), initial_state=before, return_final_state=cache is not None,
    )  # fmt: skip
    norm = self.norm
    y = _kept(y, self, cache).flatten(-2)
    y = gated_rms_norm(y, norm.weight, z, eps=norm.variance_epsilon, group_size=norm.group_size)
    return self.out_proj(y)


def _mamba2_step(self: Any, u: Tensor, conv_state: Tensor, state: Tensor) -> Tensor:
    zxbcdt, conv1d, norm = self.in_proj(u[:, 0]), self.conv1d, self.norm
    z, xBC, dt = _parts(self, zxbcdt)
    parameters = conv1d.weight, conv1d.bias, self.dt_bias, self.A_log, self.D, norm.weight
    if few_rows(zxbcdt, conv_state, state, *parameters):
        from ssmcourse.kernels.layer_step import cpu

        options = (
            self.intermediate_size,
            self.n_groups,
            NO_LIMIT,
            norm.group_size,
            norm.variance_epsilon,
            False,
        )
        y, _, after = cpu.mamba2(zxbcdt, _window(xBC, conv_state), state, *parameters, *options)
    else:
        x, B, C = _heads(self, _convolved_step(self, xBC, conv_state))
        y, after = ssd_step(state, x, dt, _decay(self), B, C, self.D, None, self.dt_bias, True, NO_LIMIT)
        y = norm(y.flatten(-2), z)
    if after is not state:
        state.copy_(after)
    return self.out_proj(y)[:, None]


def _parts(self: Any, zxbcdt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return zxbcdt.split([self.intermediate_size, self.conv_dim, self.num_heads], -1)


def _heads(self: Any, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    g, n = self.n_groups, self.ssm_state_size
    x, B, C = xBC.split([self.intermediate_size, g * n, g * n], -1)
    return x.unflatten(-1, (self.num_heads, self.head_dim)), B.unflatten(-1, (g, n)), C.unflatten(-1, (g, n))


# --- Both -----------------------------------------------------------------------------------------


def _decay(self: Any) -> Tensor:
    return -torch.exp(self.A_log.float())


def _masked(u: Tensor, mask: Tensor | None) -> Tensor:
    return u if mask is None else (u * mask[..., None]).to(u.dtype)


def _convolved(self: Any, x: Tensor, cache: Any, seq_idx: Tensor | None) -> Tensor:
    """silu(conv1d(x)), after what the cache has; the cache takes x in."""
    l = x.shape[1]
    if cache is not None:
        x = cache.update_conv_state(x.mT, self.layer_idx, conv_kernel_size=self.conv_kernel_size).mT
    conv1d = self.conv1d
    y = causal_conv1d(x, conv1d.weight[:, 0], conv1d.bias, activation="silu", seq_idx=seq_idx)
    return y if cache is None else y[:, -l:]


def _window(x: Tensor, conv_state: Tensor) -> Tensor:
    """(b, w - 1, d), a copy of the inputs before x (b, d), which the state takes in."""
    before = conv_state[..., 1:]
    window = before.mT.clone(memory_format=torch.contiguous_format)
    conv_state.copy_(torch.cat([before, x[..., None]], -1))
    return window


def _convolved_step(self: Any, x: Tensor, conv_state: Tensor) -> Tensor:
    """silu(conv1d(x)) of one token (b, d)."""
    conv1d = self.conv1d
    return conv1d_step(x, _window(x, conv_state), conv1d.weight[:, 0], conv1d.bias, silu=True)[0]


def _kept(result: Any, self: Any, cache: Any) -> Tensor:
    """y, once the state beside it is in the cache."""
    if cache is None:
        return result
    y, after = result
    cache.update_recurrent_state(after, layer_idx=self.layer_idx)
    return y


# --- In the place of theirs -----------------------------------------------------------------------

FORWARDS = {
    ("transformers.models.mamba.modeling_mamba", "MambaMixer"): (_mamba, _mamba_step),
    ("transformers.models.mamba2.modeling_mamba2", "Mamba2Mixer"): (_mamba2, _mamba2_step),
}


def _replacement(original: Forward, ours: tuple[Forward, Forward]) -> Forward:
    """A `forward` of a mixer: a sequence or a step by `ours`, the rest by the original."""
    sequence, step = ours

    @functools.wraps(original)
    def forward(self, hidden_states, cache=None, attention_mask=None, **kwargs):
        if not _original_only(self, cache, kwargs):
            if cache is None or hidden_states.shape[1] != 1:
                return sequence(self, hidden_states, cache, attention_mask, kwargs.get("seq_idx"))
            conv_state = cache.get_conv_state(self.layer_idx, state_idx=0)
            state = cache.get_recurrent_state(self.layer_idx, state_idx=0)
            if conv_state is None or state is None:
                return sequence(self, hidden_states, cache, attention_mask, None)
            if not torch.is_grad_enabled() and len(conv_state) == len(state) == len(hidden_states):
                return step(self, _masked(hidden_states, attention_mask), conv_state, state)
        return original(self, hidden_states, cache=cache, attention_mask=attention_mask, **kwargs)

    forward.original = original  # pyright: ignore[reportFunctionMemberAccess]
    return forward


def _original_only(self: Any, cache: Any, kwargs: dict[str, Any]) -> bool:
    """Another activation; offloaded parameters; a deprecated argument; packed sequences that we do not take; a cache
    that can be rolled back."""
    if self.activation not in SILU or "_hf_hook" in vars(self.conv1d):
        return True
    if "cache_params" in kwargs or kwargs.get("cu_seqlens") is not None:
        return True
    return cache is not None and (
        kwargs.get("seq_idx") is not None or cache.is_recording_past(self.layer_idx)
    )


class OnImport(importlib.abc.MetaPathFinder):
    """Puts our `forward` into the mixers' classes when their modules are imported, and takes it out again."""

    def __init__(self) -> None:
        self.changed: list[type] = []

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not any(name == module for module, _ in FORWARDS):
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            own = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                own(module)
                self._change(module)

            spec.loader.exec_module = exec_module
        return spec

    def _change(self, module: ModuleType) -> None:
        for (home, name), ours in FORWARDS.items():
            mixer = getattr(module, name, None) if home == module.__name__ else None
            if mixer is not None:
                mixer.forward = _replacement(mixer.forward, ours)
                self.changed.append(mixer)

    def undo(self) -> None:
        for mixer in self.changed:
            mixer.forward = mixer.forward.original
        self.changed.clear()
