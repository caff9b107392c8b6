"""Causal multi-head attention, with the names and options of the attention layers in published hybrid models.

    in_proj -> q, k, v (and an MLP's two halves) -> conv1d -> rotary -> softmax(q kᵀ / sqrt(p)) v -> out_proj

| code        | symbol | shape              | meaning                                              |
|-------------|--------|--------------------|------------------------------------------------------|
| `q`         | Q      | (b, l, h, p)       | num_heads of head_dim                                |
| `k`, `v`    | K, V   | (b, l, g, p)       | num_heads_kv of them: head i uses group i // (h / g) |
| `positions` |        | (b, l) or (l,)     | a token's number in its own sequence, from 0         |
| `visible`   |        | (b or 1, 1, l, m)  | which keys a query sees                              |

Source: Vaswani et al. 2017; Su et al. 2021 (rotary embedding); Ainslie et al. 2023 (groups); names as in
`mamba_ssm.modules.mha`. Lesson 12.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention, silu

from ssmcourse import packing
from ssmcourse.arguments import integer, number
from ssmcourse.convolution import causal_conv1d, causal_conv1d_update
from ssmcourse.nn.sequence import Cache, SequenceLayer, Spans, check_step, positive
from ssmcourse.precision import working_dtype

SMALLEST = 16  # tokens that a cache has room for once it has room for any


class Attention(SequenceLayer):
    """Softmax attention of each token to itself and those before it.

    The cache: "k" and "v" (b, room, num_heads_kv, head_dim), "length" (b,), how many tokens of a row they hold, and
    with d_conv "conv" (b, d_conv - 1, channels). Steps write into the room of the cache that they are given (not
    where autograd records), and double it when it is full.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_heads_kv: int | None = None,
        head_dim: int | None = None,
        mlp_dim: int = 0,
        qkv_proj_bias: bool = True,
        out_proj_bias: bool = True,
        softmax_scale: float | None = None,
        d_conv: int = 0,
        rotary_emb_dim: int = 0,
        rotary_emb_base: float = 10000.0,
        rotary_emb_interleaved: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Weights as `torch.nn.Linear` and `torch.nn.Conv1d` make them.

        Args:
            num_heads_kv: heads of keys and values, a divisor of num_heads, which is the default.
            head_dim: d_model / num_heads if not given; with it, num_heads need not divide d_model.
            mlp_dim: beside the attention, a gated MLP of half that width with the same projections; rounded up to a
                multiple of 256. 0 for none.
            softmax_scale: what q kᵀ is multiplied by; 1 / sqrt(head_dim) if not given.
            d_conv: the steps that a causal convolution of q, k and v sees; 0 for none.
            rotary_emb_dim: how many of a head's first channels are turned by their position; even, 0 for none.
            rotary_emb_base: the slowest pair of channels turns by about 1 / base a token.
            rotary_emb_interleaved: a pair is (0, 1), (2, 3), ...; without it (0, r/2), (1, r/2 + 1), ...
        Raises:
            ValueError: a size is not an integer of its range, or does not divide.
        """
        super().__init__()
        kv = num_heads if num_heads_kv is None else num_heads_kv
        positive(d_model=d_model, num_heads=num_heads, num_heads_kv=kv)
        if num_heads % kv:
            raise ValueError(f"num_heads_kv: got {kv}, expected a number that divides num_heads {num_heads}")
        if head_dim is None:
            if d_model % num_heads:
                raise ValueError(
                    f"num_heads: got {num_heads}, expected a number that divides d_model {d_model}"
                )
            head_dim = d_model // num_heads
        positive(head_dim=head_dim)
        integer("mlp_dim", mlp_dim, 0)
        integer("d_conv", d_conv, 0)
        _check_rotary(rotary_emb_dim, rotary_emb_base, head_dim)
        if softmax_scale is not None:
            number("softmax_scale", softmax_scale, zero=False)
        self.d_model, self.num_heads, self.num_heads_kv, self.head_dim = d_model, num_heads, kv, head_dim
        self.mlp_dim = -(-mlp_dim // 256) * 256
        self.softmax_scale = softmax_scale
        self.d_conv = d_conv
        self.rotary_emb_dim, self.rotary_emb_base = rotary_emb_dim, rotary_emb_base
        self.rotary_emb_interleaved = rotary_emb_interleaved
        made = {"device": device, "dtype": dtype}
        width = head_dim * num_heads
        channels = width + 2 * head_dim * kv
        self.in_proj = nn.Linear(d_model, channels + self.mlp_dim, bias=qkv_proj_bias, **made)
        if d_conv:
            self.conv1d = nn.Conv1d(channels, channels, d_conv, padding=d_conv - 1, groups=channels, **made)
        self.out_proj = nn.Linear(width + self.mlp_dim // 2, d_model, bias=out_proj_bias, **made)

    @property
    def mixed(self) -> slice:
        return slice(0, self.num_heads * self.head_dim)

    def mix(self, x: Tensor, spans: Spans, cache: Cache | None, keep: bool) -> tuple[Tensor, Cache | None]:
        qkv, gated = self.project(x)
        qkv, conv = self._convolve(qkv, spans, cache, keep)
        sequence = _sequences(spans)
        held = None if cache is None else cache["length"]
        q, k, v = self.heads(qkv, _positions(x, sequence, held))
        keys, values, visible = k, v, None
        if cache is not None:
            n = _most(cache["length"])
            keys = torch.cat([cache["k"][:, :n].to(k.dtype), k], 1)
            values = torch.cat([cache["v"][:, :n].to(v.dtype), v], 1)
        if keys.shape[1] > k.shape[1] or sequence is not None:
            visible = _visible(x, sequence, held, keys.shape[1] - k.shape[1])
        y = self._output(self._attend(q, keys, values, visible, is_causal=visible is None), gated)
        if not keep:
            return y, None
        length, source = _last_tokens(x, spans, sequence, held, keys.shape[1] - x.shape[1])
        if source is not None:
            rows = torch.arange(len(x), device=x.device)[:, None]
            keys, values = keys[rows, source], values[rows, source]
        return y, {"k": keys.contiguous(), "v": values.contiguous(), "length": length, **conv}

    def step(self, x: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        check_step(x, cache, self.d_model)
        qkv, gated = self.project(x)
        conv = {}
        if self.d_conv:
            weight, bias = self.conv1d.weight[:, 0], self.conv1d.bias
            qkv, conv["conv"] = causal_conv1d_update(qkv, cache["conv"], weight, bias)
        held = cache["length"]
        q, k, v = self.heads(qkv[:, None], held[:, None])
        n = _most(held)
        keys, values = _written(cache["k"], k, held, n), _written(cache["v"], v, held, n)
        room = torch.arange(n + 1, device=x.device)
        visible = (room <= held[:, None])[:, None, None]  # (b, 1, 1, n + 1)
        y = self._attend(q, keys[:, : n + 1], values[:, : n + 1], visible)
        y = self._output(y, None if gated is None else gated[:, None])[:, 0]
        return y, {"k": keys, "v": values, "length": held + 1, **conv}

    def allocate_cache(self, batch: int, dtype: torch.dtype | None = None) -> Cache:
        """An empty cache, its keys and values of that dtype."""
        weight = self.in_proj.weight
        empty = weight.new_zeros(batch, 0, self.num_heads_kv, self.head_dim, dtype=dtype)
        cache = {"k": empty, "v": empty, "length": weight.new_zeros(batch, dtype=torch.int64)}
        if self.d_conv:
            shape = batch, self.d_conv - 1, self.conv1d.in_channels
            cache["conv"] = weight.new_zeros(shape, dtype=dtype)
        return cache

    # --- The parts, in their order ----------------------------------------------------------------

    def project(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """q, k and v side by side, and the result of the MLP if there is one."""
        projected = self.in_proj(x)
        if not self.mlp_dim:
            return projected, None
        half = self.mlp_dim // 2
        qkv, up, gate = projected.split([projected.shape[-1] - 2 * half, half, half], -1)
        return qkv, up * silu(gate)

    def _convolve(self, qkv: Tensor, spans: Spans, cache: Cache | None, keep: bool) -> tuple[Tensor, Cache]:
        if not self.d_conv:
            return qkv, {}
        before = qkv.new_zeros(len(qkv), self.d_conv - 1, qkv.shape[2]) if cache is None else cache["conv"]
        found = causal_conv1d(
            qkv,
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            initial_state=None if cache is None else before,
            return_final_state=keep,
            seq_idx=spans.seq_idx,
        )
        return (found[0], {"conv": spans.last(found[1], before)}) if keep else (found, {})

    def heads(self, qkv: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (b, l, h, p), k and v (b, l, g, p), q and k turned by their positions."""
        sizes = [self.num_heads, self.num_heads_kv, self.num_heads_kv]
        q, k, v = qkv.unflatten(-1, (-1, self.head_dim)).split(sizes, -2)
        if self.rotary_emb_dim:
            cos, sin = self._turns(positions, working_dtype(q))
            q, k = self._turned(q, cos, sin), self._turned(k, cos, sin)
        return q, k, v

    def _turns(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin of each pair's angle, (..., l, 1, r / 2). Angles in float64: they grow with the position."""
        exponent = torch.arange(0, self.rotary_emb_dim, 2, device=positions.device).double()
        angle = positions[..., None, None] * self.rotary_emb_base ** (-exponent / self.rotary_emb_dim)
        return angle.cos().to(dtype), angle.sin().to(dtype)

    def _turned(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The first channels of every head, pair by pair, turned by its angle."""
        turning, rest = x.split([self.rotary_emb_dim, self.head_dim - self.rotary_emb_dim], -1)
        pairs = (-1, 2) if self.rotary_emb_interleaved else (2, -1)
        at = -1 if self.rotary_emb_interleaved else -2
        a, b = turning.unflatten(-1, pairs).unbind(at)
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], at).flatten(-2)
        return torch.cat([turned.to(x.dtype), rest], -1)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, is_causal: bool = False
    ) -> Tensor:
        """softmax(scale q kᵀ) v, (b, l, h p)."""
        q, k, v = (value.transpose(1, 2) for value in (q, k, v))
        y = scaled_dot_product_attention(
            q, k, v, visible, is_causal=is_causal, scale=self.softmax_scale, enable_gqa=True
        )
        return y.transpose(1, 2).flatten(2)

    def _output(self, y: Tensor, gated: Tensor | None) -> Tensor:
        return self.out_proj(y if gated is None else torch.cat([y, gated], -1))


def _check_rotary(dim: int, base: float, head_dim: int) -> None:
    if integer("rotary_emb_dim", dim, 0) > head_dim or dim % 2:
        raise ValueError(f"rotary_emb_dim: got {dim}, expected an even number of 0 to head_dim {head_dim}")
    number("rotary_emb_base", base, zero=False)


# --- Which tokens see which ------------------------------------------------------------------------


def _sequences(spans: Spans) -> Tensor | None:
    """(b, l), the sequences of each row numbered from 0. None if a row is one, with padding behind it or without:
    no token looks ahead, so padding is not seen."""
    if spans.seq_idx is None:
        return None
    begins = packing.changes(spans.seq_idx)
    if spans.lengths is not None:
        begins = begins & (spans.seq_idx != -1)
    return packing.number(spans.seq_idx) if begins.any() else None


def _positions(x: Tensor, sequence: Tensor | None, held: Tensor | None) -> Tensor:
    """Each token's number in its own sequence; a row's first goes on from the `held` (b,) tokens before."""
    steps = torch.arange(x.shape[1], device=x.device)
    if sequence is None:
        return steps if held is None else held[:, None] + steps
    before = 0 if held is None else held[:, None] * (sequence == 0)
    return packing.places(sequence) + before


def _visible(x: Tensor, sequence: Tensor | None, held: Tensor | None, n: int) -> Tensor:
    """(b or 1, 1, l, n + l): the n keys of the cache, of which a row has the first `held`, and those of x."""
    if sequence is None and held is not None and bool((held == n).all()):
        x, held = x[:1], held[:1]  # one for all rows
    steps = torch.arange(x.shape[1], device=x.device)
    new = (steps <= steps[:, None]).expand(len(x), -1, -1)
    if sequence is not None:
        new = new & (sequence[:, :, None] == sequence[:, None])
    if held is None:
        return new[:, None]
    past = (torch.arange(n, device=x.device) < held[:, None])[:, None].expand(-1, len(steps), -1)
    if sequence is not None:
        past = past & (sequence == 0)[..., None]
    return torch.cat([past, new], -1)[:, None]


# --- What is kept ----------------------------------------------------------------------------------


def _last_tokens(
    x: Tensor, spans: Spans, sequence: Tensor | None, held: Tensor | None, n: int
) -> tuple[Tensor, Tensor | None]:
    """Of n keys of the cache followed by those of x, the ones of each row's last sequence.

    Returns:
        How many (b,), and where they are (b, longest), with anything behind a row's last. None if they are the first.
    """
    b, l = x.shape[:2]
    added = torch.full((b,), l, device=x.device) if spans.lengths is None else spans.lengths
    before = torch.zeros_like(added) if held is None else held
    if sequence is None:
        length = before + added
        if bool((before == n).all()):
            return length, None
        start = torch.full_like(added, n)
    else:
        last = sequence.gather(1, (added - 1).clamp(min=0)[:, None])
        skipped = (sequence < last).sum(1)
        before = before * (skipped == 0)
        length, start = before + added - skipped, n + skipped
    steps = torch.arange(_most(length), device=x.device)
    source = torch.where(steps < before[:, None], steps, (start - before)[:, None] + steps)
    return length, source.clamp(max=n + l - 1)


def _written(store: Tensor, new: Tensor, length: Tensor, longest: int) -> Tensor:
    """The keys or values (b, room, g, p) with those of one more token, (b, 1, g, p), in place where that is allowed."""
    store = store.to(new.dtype)
    if longest == store.shape[1]:
        store = pad(store, (0, 0, 0, 0, 0, max(longest, SMALLEST)))
    elif torch.is_grad_enabled() or store.requires_grad or _frozen(store):
        store = store.clone()
    store[torch.arange(len(store), device=store.device), length] = new[:, 0]
    return store


def _frozen(store: Tensor) -> bool:
    """Was it made in inference mode, outside of which it may not be written into?"""
    return store.is_inference() and not torch.is_inference_mode_enabled()


def _most(length: Tensor) -> int:
    return int(length.max()) if len(length) else 0
