"""Which tokens an output reads: rollout, attribution and perturbation curves, against loops and autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssmcourse.attention import attribution, layer_attention, perturbation_curve, rollout
from ssmcourse.models import LanguageModel, LanguageModelConfig
from ssmcourse.tolerance import mismatch

OPTIONS = {
    "M": {"d_state": 4},
    "2": {"d_state": 4, "headdim": 4},
    "*": {"num_heads": 2},
    "H": {"d_state": 4, "head_dim": 2},
}


def model(pattern: str) -> LanguageModel:
    torch.manual_seed(0)
    used = {letter: OPTIONS[letter] for letter in OPTIONS if letter in pattern}
    config = LanguageModelConfig(pattern=pattern, d_model=8, vocab_size=13, options=used)
    made = LanguageModel(config).double().eval()
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return made


def tokens(b: int, l: int) -> Tensor:
    return torch.randint(0, 13, (b, l), generator=torch.Generator().manual_seed(1))


def same(got: Tensor, expected: Tensor) -> None:
    found = mismatch(got.detach(), expected.detach(), terms=64)
    assert found is None, str(found)


def test_rollout_is_the_product_of_normalised_matrices() -> None:
    matrices = [torch.rand(2, 4, 4, dtype=torch.float64).tril() for _ in range(3)]
    expected = torch.eye(4, dtype=torch.float64).expand(2, 4, 4)
    for A in matrices:
        step = torch.zeros(2, 4, 4, dtype=torch.float64)
        for row in range(2):
            for i in range(4):
                kept = [A[row, i, j] + (i == j) for j in range(4)]
                step[row, i] = torch.stack(kept) / sum(kept)
        expected = step @ expected  # later layers on the left
    got = rollout(matrices)
    same(got, expected)
    same(got.sum(-1), torch.ones(2, 4, dtype=torch.float64))
    assert not torch.allclose(got, rollout(matrices[::-1]))


def test_rollout_refuses_what_it_cannot_take() -> None:
    with pytest.raises(ValueError, match=r"^matrices: got none"):
        rollout([])
    with pytest.raises(ValueError, match=r"^matrices: got a negative entry"):
        rollout([-torch.eye(3)[None]])
    with pytest.raises(ValueError, match=r"^matrices: got shape \(1, 4, 4\)"):
        rollout([torch.eye(3)[None], torch.eye(4)[None]])


@pytest.mark.parametrize("pattern", ["M-M", "2*", "HM"])
def test_rollout_and_raw_of_a_model(pattern: str) -> None:
    made, given = model(pattern), tokens(2, 6)
    residual = made.backbone.enter(made.backbone.embedding(given))
    matrices = []
    for block in made.backbone.layers:
        if block.mixer.mixed.stop:
            matrices.append(layer_attention(block.mixer, block.normed(residual)).matrix.abs().mean(1))
        residual = residual + block.mixer(block.normed(residual))
    same(attribution(made, given), rollout(matrices)[:, -1])
    same(attribution(made, given, position=3), rollout(matrices)[:, 3])
    rows = [A[:, -1] / A[:, -1].sum(-1, keepdim=True) for A in matrices]
    same(attribution(made, given, method="raw"), sum(rows) / len(rows))


@pytest.mark.parametrize("pattern", ["M", "2", "*", "H"])
def test_the_gradient_of_the_matrix_is_that_of_autograd(pattern: str) -> None:
    """A model of one layer, its output rebuilt from the matrix: autograd gives the gradient of every entry."""
    made, given, target = model(pattern), tokens(2, 5), torch.tensor([3, 7])
    block = made.backbone.layers[0]
    residual = made.backbone.enter(made.backbone.embedding(given))
    alpha = layer_attention(block.mixer, block.normed(residual))
    M = alpha.matrix.detach().clone().requires_grad_()
    u = torch.einsum("bdij,bjd->bid", M, alpha.values) + alpha.constant
    logits = made.head(residual + block.mixer.out_proj(u))[:, -1]
    same(logits, made(given)[:, -1])
    (slope,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), M)
    expected = rollout([(M * slope).clamp(min=0).mean(1).detach()])[:, -1]
    same(attribution(made, given, target, "grad_rollout"), expected)


def test_hooks_are_gone_and_gradients_are_not_left_behind() -> None:
    made, given = model("M"), tokens(1, 4)
    attribution(made, given, 2, "grad_rollout")
    assert all(value.grad is None for value in made.parameters())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in made.modules())


def test_perturbation_curve() -> None:
    made, given = model("M2"), tokens(3, 5)
    scores = torch.tensor([[0.1, 0.5, 0.3, 0.2, -torch.inf]] * 3)
    got = perturbation_curve(made, given, scores, target=4)
    embedded = made.backbone.embedding(given).detach()
    expected = []
    for masked in ([], [1], [1, 2], [1, 2, 3], [0, 1, 2, 3]):  # from the highest score on
        zeroed = embedded.clone()
        zeroed[:, masked] = 0
        expected.append(made(inputs_embeds=zeroed)[:, -1].softmax(-1)[:, 4])
    same(got, torch.stack(expected, 1))
    own = made(given)[:, -1].argmax(-1)
    assert torch.equal(
        perturbation_curve(made, given, scores, steps=2),
        perturbation_curve(made, given, scores, own, steps=2),
    )
    assert perturbation_curve(made, given, scores, steps=2).shape == (3, 3)


def test_bad_calls() -> None:
    made, given = model("M"), tokens(2, 4)
    with pytest.raises(
        ValueError, match=r"^method: got 'rolled', expected one of rollout, grad_rollout, raw"
    ):
        attribution(made, given, method="rolled")
    with pytest.raises(ValueError, match=r"^target: got None, expected the token to explain"):
        attribution(made, given, method="grad_rollout")
    with pytest.raises(ValueError, match=r"^target: got \[1, 2, 3\], expected an integer or \(b,\) = \(2,\)"):
        attribution(made, given, [1, 2, 3], "grad_rollout")
    with pytest.raises(ValueError, match=r"^position: got 9, expected one of the 4 tokens"):
        attribution(made, given, position=9)
    with pytest.raises(ValueError, match=r"^model: got LanguageModel, in which no layer"):
        attribution(model("-"), given)
    with pytest.raises(ValueError, match=r"^scores: got shape \(2, 3\)"):
        perturbation_curve(made, given, torch.zeros(2, 3))
