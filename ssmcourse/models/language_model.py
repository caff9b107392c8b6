"""A language model: an embedding, layers between residual connections, a head.

    residual = embedding(tokens)
    residual = residual + mixer(norm(residual))      for every letter of the pattern
    logits   = head(norm(residual))

| code            | shape             | meaning                                                              |
|-----------------|-------------------|----------------------------------------------------------------------|
| `tokens`        | (b, l)            | integers below `vocab_size`                                          |
| `residual`      | (b, l, d_model)   | what every layer reads and adds to; float32 at least, or as the weights |
| `logits`        | (b, l, vocab)     | before the softmax; vocab is `padded_vocab_size`                     |
| `cache`         | a list            | the layers' caches, first layer first                                |

The names of the modules are those of the published Mamba checkpoints: `backbone.embedding`, `backbone.layers.0.norm`,
`backbone.layers.0.mixer`, `backbone.norm_f`, `lm_head`. Gu & Dao 2023, section 3.4 and figure 3. Lesson 11.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssmcourse.arguments import Arguments, integer, shown
from ssmcourse.models import checkpoints, generation
from ssmcourse.models.config import LanguageModelConfig, layer_class
from ssmcourse.nn import RMSNorm, SequenceLayer, parameter_groups
from ssmcourse.nn.sequence import Cache


class LanguageModel(nn.Module):
    """A language model of the layers that its config names, initialised as the published Mamba models.

        model = LanguageModel(LanguageModelConfig("MMMM", d_model=64, vocab_size=256))
        logits = model(tokens)                                 # (b, l, 256)
        model.generate(tokens, 20)                             # (b, l + 20)
        model = LanguageModel.from_pretrained("mamba-130m")    # a local directory

    Args:
        config: the layers and the sizes.
        device, dtype: of the parameters.
    Attributes:
        gradient_checkpointing: layers keep their inputs only, and run again in the backward pass: the gradients are
            the same, memory falls from some tens of activations a layer to one, and time grows by a third.
        layout: the form of the checkpoint that it was read from, in which `save_pretrained` writes it back.
    Raises:
        ValueError: a layer's options do not fit.

    Cost: that of its layers. Generation takes a fixed time and memory a token, unless there is attention.
    """

    generate = generation.generate
    stream = generation.stream

    def __init__(
        self,
        config: LanguageModelConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(config, LanguageModelConfig):
            raise ValueError(f"config: got {shown(config)}, expected a LanguageModelConfig")
        self.config = config
        self.gradient_checkpointing = False
        self.layout = "ssmcourse"
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.backbone = Backbone(config, **where)
        self.lm_head = nn.Linear(config.d_model, config.padded_vocab_size, bias=False, **where)
        if config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    def forward(
        self,
        tokens: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        seq_idx: Tensor | None = None,
        mask: Tensor | None = None,
        cache: list[Cache] | None = None,
        return_cache: bool = False,
    ) -> Any:
        """logits, and with return_cache the layers' caches after the last token of every row.

        Args:
            tokens: (b, l), int32 or int64, each at least 0 and below vocab_size.
            inputs_embeds: (b, l, d_model), instead of tokens: rows of the embedding, or what is between them.
            seq_idx: (b, l) integers. Where they change along a row, a new sequence begins.
            mask: (b, l), bool, False at padding: the result is as if those tokens were absent, and the logits there
                are not specified.
            cache: what came before, from `allocate_cache` or an earlier call; it may be written into.
        Returns:
            logits (b, l, padded_vocab_size) in the weights' dtype, or (logits, cache).
        Raises:
            ValueError: a token that there is not, or shapes, dtypes or the cache do not fit.
        """
        residual = self._embed(tokens, inputs_embeds)
        self._check_cache(cache)
        residual, after = self._run(residual, seq_idx, mask, cache, return_cache)
        logits = self.head(residual)
        return (logits, after) if return_cache else logits

    def step(self, tokens: Tensor, cache: list[Cache]) -> tuple[Tensor, list[Cache]]:
        """One token a row, (b,), after all that is in the cache, which may be written into.

        Returns:
            logits (b, padded_vocab_size), and the cache after the token.
        """
        self._check_tokens(tokens, "b")
        if cache is None:
            raise ValueError("cache: got None, expected what `allocate_cache(batch)` gives")
        self._check_cache(cache)
        return self.step_unchecked(tokens, cache)

    def step_unchecked(self, tokens: Tensor, cache: list[Cache]) -> tuple[Tensor, list[Cache]]:
        """`step` for tokens of our own, without the wait for their smallest and largest."""
        residual = self.backbone.enter(self.backbone.embedding(tokens))
        after = []
        for layer, before in zip(self.backbone.layers, cache, strict=True):
            y, kept = layer.mixer.step(layer.normed(residual), before)
            residual = residual + y
            after.append(kept)
        return self.head(residual), after

    def prefill(self, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, list[Cache]]:
        """The logits (b, padded_vocab_size) after each row's last token, and the cache there."""
        residual, cache = self._run(self._embed(tokens, None), None, mask, None, True)
        if mask is None:
            return self.head(residual[:, -1]), cache
        places = torch.arange(tokens.shape[1], device=mask.device)
        last = places.masked_fill(~mask, -1).amax(1)
        return self.head(residual[torch.arange(len(last), device=mask.device), last]), cache

    def allocate_cache(self, batch: int, dtype: torch.dtype | None = None) -> list[Cache]:
        """The cache of `batch` rows before their first token. dtype: of the activations; the weights' if not given."""
        integer("batch", batch, 0)
        return [layer.mixer.allocate_cache(batch, dtype) for layer in self.backbone.layers]

    def head(self, residual: Tensor) -> Tensor:
        """logits (..., padded_vocab_size) of what the last layer leaves, (..., d_model)."""
        return self.lm_head(self.backbone.norm_f(residual).to(self.lm_head.weight.dtype))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The parameters as AdamW takes them: those without weight decay in a group of their own."""
        return parameter_groups(self)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> LanguageModel:
        """The model in a local directory or weight file. `checkpoints.load` says which ones there are."""
        return checkpoints.load(path, device=device, dtype=dtype)

    def save_pretrained(self, path: str | Path, layout: str | None = None) -> None:
        """Write config.json and the weights into a directory, whole or not at all. `checkpoints.save` says how."""
        checkpoints.save(self, path, layout)

    def _run(
        self,
        residual: Tensor,
        seq_idx: Tensor | None,
        mask: Tensor | None,
        cache: list[Cache] | None,
        keep: bool,
    ) -> tuple[Tensor, list[Cache]]:
        """What the last layer leaves, and with `keep` the caches."""
        recompute = self.gradient_checkpointing and not keep and torch.is_grad_enabled()
        after: list[Cache] = []
        for i, layer in enumerate(self.backbone.layers):
            before = None if cache is None else cache[i]
            if recompute:
                residual = checkpoint(layer, residual, seq_idx, mask, before, use_reentrant=False)
            elif keep:
                residual, kept = layer(residual, seq_idx, mask, before, True)
                after.append(kept)
            else:
                residual = layer(residual, seq_idx, mask, before)
        return residual, after

    def _embed(self, tokens: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if (tokens is None) == (inputs_embeds is None):
            raise ValueError("tokens: expected either tokens or inputs_embeds, and not both")
        if inputs_embeds is None:
            self._check_tokens(tokens, "b l")
            return self.backbone.enter(self.backbone.embedding(tokens))
        Arguments().activation("inputs_embeds", inputs_embeds, f"b l {self.config.d_model}")
        return self.backbone.enter(inputs_embeds)

    def _check_tokens(self, tokens: Any, shape: str) -> None:
        if not isinstance(tokens, Tensor) or tokens.dtype not in (torch.int64, torch.int32):
            got = f"dtype {tokens.dtype}" if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ValueError(f"tokens: got {got}, expected a tensor of torch.int64 or torch.int32")
        Arguments().integers("tokens", tokens, shape)
        device = self.backbone.embedding.weight.device
        if tokens.device != device:
            raise ValueError(f"tokens: got a tensor on {tokens.device}, expected the model's device {device}")
        if tokens.numel():
            low, high = (int(value) for value in torch.aminmax(tokens))
            if low < 0 or high >= self.config.vocab_size:
                wrong = low if low < 0 else high
                raise ValueError(
                    f"tokens: got {wrong}, expected 0 to {self.config.vocab_size - 1} (vocab_size - 1)"
                )

    def _check_cache(self, cache: Any) -> None:
        layers = len(self.backbone.layers)
        if cache is not None and (not isinstance(cache, list) or len(cache) != layers):
            got = f"a list of {len(cache)}" if isinstance(cache, list) else type(cache).__name__
            raise ValueError(f"cache: got {got}, expected a list of {layers}, one for each layer")


class Backbone(nn.Module):
    """All of a `LanguageModel` but its head."""

    def __init__(self, config: LanguageModelConfig, **where: Any) -> None:
        super().__init__()
        self.residual_in_fp32 = config.residual_in_fp32
        self.embedding = nn.Embedding(config.padded_vocab_size, config.d_model, **where)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.layers = nn.ModuleList(Block(config, i, **where) for i in range(len(config.pattern)))
        self.norm_f = RMSNorm(config.d_model, config.norm_eps, **where)

    def enter(self, embedded: Tensor) -> Tensor:
        """The residual stream before the first layer."""
        if not self.residual_in_fp32:
            return embedded
        return embedded.to(torch.promote_types(embedded.dtype, torch.float32))


class Block(nn.Module):
    """residual + mixer(norm(residual)): one letter of the pattern."""

    def __init__(self, config: LanguageModelConfig, place: int, **where: Any) -> None:
        super().__init__()
        self.norm = RMSNorm(config.d_model, config.norm_eps, **where)
        self.mixer = _make_layer(config, place, **where)
        _scale_last_projection(self.mixer, len(config.pattern))

    def normed(self, residual: Tensor) -> Tensor:
        """What the mixer reads: normalised from the residual's own precision, then in the weights' dtype."""
        return self.norm(residual).to(self.norm.weight.dtype)

    def forward(
        self,
        residual: Tensor,
        seq_idx: Tensor | None,
        mask: Tensor | None,
        cache: Cache | None,
        return_cache: bool = False,
    ) -> Any:
        x = self.normed(residual)
        if not return_cache:
            return residual + self.mixer(x, seq_idx=seq_idx, mask=mask, cache=cache)
        y, cache = self.mixer(x, seq_idx=seq_idx, mask=mask, cache=cache, return_cache=True)
        return residual + y, cache


def _make_layer(config: LanguageModelConfig, place: int, **where: Any) -> SequenceLayer:
    """The layer of a letter, told its place where it asks for that (RWKV-4 starts differently at every depth)."""
    letter = config.pattern[place]
    made = layer_class(letter)
    known = inspect.signature(made).parameters
    place_of = {"layer_idx": place, "n_layer": len(config.pattern)}
    told = {name: value for name, value in place_of.items() if name in known}
    try:
        return made(config.d_model, **config.options.get(letter, {}), **told, **where)
    except ValueError as wrong:
        raise ValueError(f"options[{letter!r}]: {wrong}") from wrong


def _scale_last_projection(layer: SequenceLayer, residuals: int) -> None:
    """Official initialisation: biases of the projections 0; the last one's weight / sqrt(residual connections).

    As many terms as there are layers add up in the residual stream: this keeps their sum as large as one of them
    (Radford et al. 2019, section 2.3).
    """
    with torch.no_grad():
        for name, value in layer.named_parameters():
            if name in ("in_proj.bias", "out_proj.bias", "fc1.bias", "fc2.bias"):
                value.zero_()
            elif name in ("out_proj.weight", "fc2.weight"):
                value.div_(residuals**0.5)
