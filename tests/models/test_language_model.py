"""LanguageModel: against its definition, in chunks and steps, padded and packed; initialisation, memory, errors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from model_table import OPTIONS, PATTERNS, VOCAB, D, config, draw_tokens, make, same, says
from torch import Tensor

from ssmcourse.models import LanguageModel, LanguageModelConfig

L = 9


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


@pytest.mark.parametrize("pattern", ["MM", "2*-M-"])
@pytest.mark.parametrize("tied", [True, False])
def test_definition(pattern: str, tied: bool) -> None:
    """residual + mixer(norm(residual)), layer by layer, from the weights by name."""
    model, tokens = make(pattern, tie_embeddings=tied), draw_tokens(2, L)
    weights = model.state_dict()
    residual = weights["backbone.embedding.weight"][tokens]
    for i, layer in enumerate(model.backbone.layers):
        residual = residual + layer.mixer(rms(residual, weights[f"backbone.layers.{i}.norm.weight"]))
    expected = rms(residual, weights["backbone.norm_f.weight"]) @ weights["lm_head.weight"].T
    same(model(tokens), expected)
    assert torch.equal(weights["lm_head.weight"], weights["backbone.embedding.weight"]) == tied


def test_official_names() -> None:
    names = list(LanguageModel(config("M")).state_dict())
    mixer = ["A_log", "D", "in_proj.weight", "conv1d.weight", "conv1d.bias", "x_proj.weight"]
    mixer += ["dt_proj.weight", "dt_proj.bias", "out_proj.weight"]
    assert sorted(names) == sorted(
        [
            "backbone.embedding.weight",
            "backbone.layers.0.norm.weight",
            "backbone.norm_f.weight",
            "lm_head.weight",
        ]
        + [f"backbone.layers.0.mixer.{name}" for name in mixer]
    )


@pytest.mark.parametrize("pattern", PATTERNS)
def test_chunks_and_steps(pattern: str) -> None:
    model, tokens = make(pattern), draw_tokens(2, L)
    whole = model(tokens)
    assert whole.shape == (2, L, 16)
    first, cache = model(tokens[:, :4], return_cache=True)
    second, cache = model(tokens[:, 4:7], cache=cache, return_cache=True)
    parts = [first, second]
    for token in tokens[:, 7:].unbind(1):
        logits, cache = model.step(token, cache)
        parts.append(logits[:, None])
    same(torch.cat(parts, 1), whole)
    logits, _ = model.step(tokens[:, 0], model.allocate_cache(2))
    same(logits, whole[:, 0])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_padding_and_packing(pattern: str) -> None:
    model, tokens = make(pattern), draw_tokens(3, L)
    mask = torch.ones(3, L, dtype=torch.bool)
    mask[0, :3] = mask[1, 5:] = False
    padded, cache = model(tokens, mask=mask, return_cache=True)
    following, _ = model.step(tokens[:, 0], cache)
    for row in range(3):
        alone = model(torch.cat([tokens[row, mask[row]], tokens[row, :1]])[None])[0]
        same(padded[row, mask[row]], alone[:-1])
        same(following[row], alone[-1])
    marks = torch.tensor([[0] * 4 + [1] * 5]).expand(3, L)
    packed = model(tokens, seq_idx=marks)
    same(packed, torch.cat([model(tokens[:, :4]), model(tokens[:, 4:])], 1))


def test_initialisation() -> None:
    torch.manual_seed(0)
    options = {"2": {"headdim": 16, "bias": True}, "*": {"num_heads": 4}, "-": {"bias": True}}
    model = LanguageModel(LanguageModelConfig("2-*-" * 2, 64, 4000, options=options))
    assert abs(model.backbone.embedding.weight.std() - 0.02) < 2e-4
    for name, value in model.named_parameters():
        if name.endswith(("out_proj.weight", "fc2.weight")):
            bound = value.shape[1] ** -0.5 / 8**0.5  # Linear's own, over the root of 8 residual connections
            assert 0.98 * bound < value.abs().max() <= bound
        if name.endswith(("in_proj.weight", "fc1.weight")):
            assert 0.98 < value.abs().max() * value.shape[1] ** 0.5 <= 1
        if name.endswith(("in_proj.bias", "out_proj.bias", "fc1.bias", "fc2.bias")):
            assert not value.any()
    steps = LanguageModel(config("M")).get_parameter("backbone.layers.0.mixer.dt_proj.bias")
    assert (torch.nn.functional.softplus(steps) < 0.11).all()  # a bias that is meant


def test_the_residual_stream_keeps_float32() -> None:
    """Beside bfloat16 weights; which is nearer to float64 the more layers add to it."""
    wide = make("2" * 24)
    tokens = draw_tokens(2, 16)
    errors = {}
    for keeps in (True, False):
        model = LanguageModel(config("2" * 24, residual_in_fp32=keeps)).eval()
        model.load_state_dict(wide.state_dict())
        model.to(torch.bfloat16)
        seen = []
        model.backbone.norm_f.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0].dtype))
        logits = model(tokens)
        assert logits.dtype == torch.bfloat16
        assert seen == [torch.float32 if keeps else torch.bfloat16]
        exact = copy.deepcopy(model).double()
        errors[keeps] = (logits.double() - exact(tokens)).abs().mean()
    assert errors[True] < 0.8 * errors[False]


def saved_bytes(model: LanguageModel, tokens: Tensor) -> tuple[int, list[Tensor]]:
    """What a forward pass keeps for the backward pass, parameters aside, and the gradients."""
    own = {value.untyped_storage().data_ptr() for value in model.parameters()}
    kept: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        loss = model(tokens).square().mean()
    total = sum(kept.values())
    return total, list(torch.autograd.grad(loss, list(model.parameters())))


def test_gradient_checkpointing() -> None:
    model, tokens = make("MM2-*-MM"), draw_tokens(2, 64)
    plain, expected = saved_bytes(model, tokens)
    model.gradient_checkpointing = True
    less, gradients = saved_bytes(model, tokens)
    assert less < plain / 4
    for got, wanted in zip(gradients, expected, strict=True):
        same(got, wanted)
    with torch.no_grad():
        same(model(tokens), make("MM2-*-MM")(tokens))


def test_from_embeddings() -> None:
    model, tokens = make("M2"), draw_tokens(2, L)
    embedded = model.backbone.embedding(tokens).detach().requires_grad_()
    logits = model(inputs_embeds=embedded)
    same(logits, model(tokens))
    (gradient,) = torch.autograd.grad(logits[0, 5].sum(), embedded)
    assert gradient[0, :6].abs().amax(-1).min() > 0
    assert not gradient[0, 6:].any()
    assert not gradient[1].any()


def test_the_cache_grows_with_attention_only() -> None:
    for pattern in PATTERNS:
        model = make(pattern)
        sizes = []
        for l in (3, 40):
            _, cache = model(draw_tokens(2, l), return_cache=True)
            sizes.append(sum(value.numel() for layer in cache for value in layer.values()))
        assert (sizes[0] == sizes[1]) == ("*" not in pattern), pattern


def test_parameter_groups() -> None:
    model = LanguageModel(config("M2-"))
    groups = model.parameter_groups()
    found = [value for group in groups for value in group["params"]]
    assert len(found) == len({id(value) for value in found}) == len(list(model.parameters()))
    plain = {id(value) for group in groups if group.get("weight_decay") == 0 for value in group["params"]}
    for name, value in model.named_parameters():
        decays = name.endswith("weight") and "norm" not in name
        assert (id(value) in plain) != decays, name


def test_a_training_step_lowers_the_loss() -> None:
    torch.manual_seed(0)
    model = LanguageModel(config("M2-", residual_in_fp32=False))
    optimizer = torch.optim.AdamW(model.parameter_groups(), lr=2e-2)
    tokens = torch.arange(24).remainder(VOCAB).expand(4, 24)
    losses = []
    for _ in range(60):
        logits = model(tokens[:, :-1])
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]


def test_autocast() -> None:
    model, tokens = make("M2*-", torch.float32), draw_tokens(2, L)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(tokens)
    assert (half - model(tokens)).abs().max() < 0.1 * half.abs().max()


def test_nothing_to_do() -> None:
    model = make("M2*-")
    assert model(draw_tokens(0, 4)).shape == (0, 4, 16)
    _, cache = model(draw_tokens(2, 4), return_cache=True)
    logits, _ = model(draw_tokens(2, 0), cache=cache, return_cache=True)
    assert logits.shape == (2, 0, 16)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, t: m(t + 5), ["tokens", "expected 0 to 10"]),  # 11 to 15 are padding
        (lambda m, t: m(t - 11), ["tokens", "got -", "expected 0 to 10"]),
        (lambda m, t: m(t.float()), ["tokens", "float32", "int64"]),
        (lambda m, t: m(t.to(torch.int16)), ["tokens", "int16"]),
        (lambda m, t: m([1, 2]), ["tokens", "list"]),
        (lambda m, t: m(t[0]), ["tokens", "(9,)", "(b, l)"]),
        (lambda m, t: m(), ["tokens", "either"]),
        (lambda m, t: m(t, inputs_embeds=torch.zeros(1, 1, D)), ["tokens", "either"]),
        (lambda m, t: m(inputs_embeds=torch.zeros(1, 1, D + 1)), ["inputs_embeds", "(1, 1, 9)"]),
        (lambda m, t: m(t, mask=torch.ones(2, 3, dtype=torch.bool)), ["mask", "(2, 3)"]),
        (lambda m, t: m(t, cache=[]), ["cache", "a list of 0", "2"]),
        (lambda m, t: m(t, cache=m.allocate_cache(3)), ["cache", "3", "2"]),
        (lambda m, t: m.step(t, m.allocate_cache(2)), ["tokens", "(b,)"]),
        (lambda m, t: m.step(t[:, 0] + 11, m.allocate_cache(2)), ["tokens", "expected 0 to 10"]),
        (lambda m, t: m.step(t[:, 0], None), ["cache", "None"]),
        (lambda m, t: m.allocate_cache(-1), ["batch", "-1"]),
        (lambda m, t: LanguageModel("MM"), ["config", "'MM'"]),
        (lambda m, t: LanguageModel(config("M", options={"M": {"d_state": 0}})), ["options['M']", "d_state"]),
    ],
)
def test_what_is_refused(call: Any, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        call(make("M2", torch.float32), draw_tokens(2, L).clamp(min=6))
    says(error, *words)


def test_every_letter_has_options_here() -> None:
    from ssmcourse.models.config import LAYERS

    assert set(OPTIONS) == set(LAYERS) == set("".join(PATTERNS))
