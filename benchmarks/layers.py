"""Claim: Mamba and Mamba-2 learn and generate faster than the layers that one can install for a CPU.

    python benchmarks/layers.py          (some five minutes)

One thread, float32, d_model 256, 4 layers, 256 tokens, the embedding also the head. All models have the same weights
and the same result, which is checked first. A training step is forward, backward and AdamW for 4 rows of 256 tokens.
Generation is greedy, token by token with a cache, each model in its leanest loop. Rivals take turns; medians.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from importlib import util
from typing import Any

import torch
from record import store
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from ssmcourse import nn as layers

D, LAYERS, VOCABULARY, ROWS, LENGTH = 256, 4, 256, 4, 256
TOKENS, ROUNDS = 100, 7


class Ours(nn.Module):
    """Residual blocks with a norm before each layer."""

    def __init__(self, layer: Callable[[int], layers.SequenceLayer]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, D)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.mixers = nn.ModuleList(layer(D) for _ in range(LAYERS))
        self.norms = nn.ModuleList(layers.RMSNorm(D) for _ in range(LAYERS + 1))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for norm, mixer in zip(self.norms, self.mixers, strict=False):
            x = x + mixer(norm(x))
        return linear(self.norms[-1](x), self.embedding.weight)

    def start(self) -> list[Any]:
        return [mixer.allocate_cache(1) for mixer in self.mixers]

    def step(self, token: Tensor, caches: list[Any]) -> tuple[Tensor, list[Any]]:
        x = self.embedding(token)
        for i, (norm, mixer) in enumerate(zip(self.norms, self.mixers, strict=False)):
            y, caches[i] = mixer.step(norm(x), caches[i])
            x = x + y
        return linear(self.norms[-1](x), self.embedding.weight), caches


class Mambapy(nn.Module):
    """The blocks of mambapy, which has Mamba only (its Mamba-2 needs mamba-ssm)."""

    def __init__(self, ours: Ours) -> None:
        super().__init__()
        from mambapy.mamba import Mamba, MambaConfig

        self.blocks = Mamba(MambaConfig(d_model=D, n_layers=LAYERS))
        self.embedding, self.norm = nn.Embedding(VOCABULARY, D), layers.RMSNorm(D)
        self.embedding.load_state_dict(ours.embedding.state_dict())
        for block, mixer in zip(self.blocks.layers, ours.mixers, strict=True):
            block.mixer.load_state_dict(mixer.state_dict())

    def forward(self, tokens: Tensor) -> Tensor:
        return linear(self.norm(self.blocks(self.embedding(tokens))), self.embedding.weight)

    def start(self) -> list[Any]:
        return [(None, torch.zeros(1, 2 * D, 3)) for _ in range(LAYERS)]

    def step(self, token: Tensor, caches: list[Any]) -> tuple[Tensor, list[Any]]:
        x, caches = self.blocks.step(self.embedding(token), caches)
        return linear(self.norm(x), self.embedding.weight), caches


class Transformers(nn.Module):
    """A model of `transformers`, whose layers are in plain torch where there is no GPU."""

    def __init__(self, ours: Ours) -> None:
        super().__init__()
        import transformers

        sizes = {
            "hidden_size": D,
            "num_hidden_layers": LAYERS,
            "vocab_size": VOCABULARY,
            "tie_word_embeddings": True,
        }
        if isinstance(ours.mixers[0], layers.Mamba):
            self.model = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes))
        else:
            heads = {"num_heads": 8, "head_dim": 64, "n_groups": 1, "state_size": 128}
            self.model = transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**sizes, **heads))
        self.model.backbone.embeddings.load_state_dict(ours.embedding.state_dict())
        for block, mixer in zip(self.model.backbone.layers, ours.mixers, strict=True):
            block.mixer.load_state_dict(mixer.state_dict())

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens, use_cache=False).logits

    def start(self) -> None:
        return None

    def step(self, token: Tensor, cache: Any) -> tuple[Tensor, Any]:
        out = self.model(token[:, None], cache_params=cache, use_cache=True)
        return out.logits[:, -1], out.cache_params


def training_step(model: nn.Module) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens = torch.randint(VOCABULARY, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(1))

    def step() -> None:
        loss = cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


@torch.inference_mode()
def generate(model: Any, tokens: int = TOKENS) -> list[int]:
    token, cache, found = torch.zeros(1, dtype=torch.int64), model.start(), []
    for _ in range(tokens):
        logits, cache = model.step(token, cache)
        token = logits.argmax(-1)
        found.append(int(token))
    return found


def in_turn(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median CPU seconds of each, after one call that does not count."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            call()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def check(models: dict[str, Any]) -> None:
    """All of them compute the same, at once and token by token."""
    tokens = torch.randint(VOCABULARY, (1, 12), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits = {name: model(tokens) for name, model in models.items()}
    for name, value in logits.items():
        error = float((value - logits["ours"]).abs().max() / logits["ours"].abs().max())
        assert error < 1e-4, f"{name} computes something else: {error:.1e}"
    texts = {name: generate(model, 12) for name, model in models.items()}
    assert all(text == texts["ours"] for text in texts.values()), texts


def measure(kind: str, slow: tuple[str, ...]) -> dict[str, Any]:
    """`slow`: models whose training step takes minutes, and is timed once."""
    ours = Ours(getattr(layers, kind))
    models: dict[str, Any] = {"ours": ours, "transformers": Transformers(ours)}
    if kind == "Mamba":
        models["mambapy"] = Mambapy(ours)
    check(models)
    steps = {name: training_step(model) for name, model in models.items()}
    training = in_turn({name: step for name, step in steps.items() if name not in slow}, ROUNDS)
    for name in slow:
        start = time.process_time()
        steps[name]()
        training[name] = time.process_time() - start
    seconds = in_turn({name: lambda m=model: generate(m) for name, model in models.items()}, ROUNDS)
    return {
        "training_step_ms": {name: 1e3 * value for name, value in training.items()},
        "training_ratio": min(v for name, v in training.items() if name != "ours") / training["ours"],
        "tokens_per_second": {name: TOKENS / value for name, value in seconds.items()},
        "generation_ratio": min(v for name, v in seconds.items() if name != "ours") / seconds["ours"],
    }


def main() -> int:
    missing = [package for package in ("mambapy", "transformers") if util.find_spec(package) is None]
    if missing:
        print(f"not installed: {', '.join(missing)} (pip install -e '.[bench]')", file=sys.stderr)
        return 1
    torch.set_num_threads(1)
    torch.manual_seed(0)
    store("layers", Mamba=measure("Mamba", ("transformers",)), Mamba2=measure("Mamba2", ()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
