"""Which tokens a layer, or a whole model, read: implicit attention above the level of one operator.

| code       | symbol      | shape        | meaning                                                                     |
|------------|-------------|--------------|-----------------------------------------------------------------------------|
| `matrix`   | α           | (b, d, l, l) | a layer from the channels that are mixed over time to the input of its out_proj |
| `values`   | x̂           | (b, l, d)    | those channels                                                              |
| `constant` |             | (b, l, d)    | what the convolution's bias adds: output = matrix values + constant          |
| A          | A           | (b, l, l)    | a layer's matrix without its sign, averaged over channels                   |
| scores     |             | (b, l)       | what each token counts for one output                                       |

A Mamba layer, for one channel, is

    α = diag(silu(z)) (M_ssm + D I) diag(σ(u)) M_conv,        u = conv(x̂) + bias

since silu(u) = σ(u) u: what depends on the data is on diagonals, and everything between them is linear. Matrices are
signed and their rows do not sum to 1.

Sources: Zimerman et al. 2024 (A unified implicit attention formulation), section 3; Ali et al. 2024 (The hidden
attention of Mamba), section 4; Abnar & Zuidema 2020 (rollout). Lesson 12.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssmcourse.arguments import Arguments, integer, one_of, shown
from ssmcourse.precision import working_dtype

PARTS = ("ssm", "D", "conv", "activation", "gate", "norm")
METHODS = ("rollout", "grad_rollout", "raw")
CHANNELS_AT_ONCE = 64  # whose matrices are in memory together


class LayerAttention(NamedTuple):
    """A layer as a matrix: its output before out_proj is matrix @ values + constant, for each channel."""

    matrix: Tensor  # (b, d, l, l)
    constant: Tensor  # (b, l, d)
    values: Tensor  # (b, l, d)

    def output(self) -> Tensor:
        """(b, l, d): what goes into out_proj, rebuilt from the matrix."""
        return torch.einsum("bdij,bjd->bid", self.matrix, self.values) + self.constant


def layer_attention(
    layer: Any, x: Tensor, include: Iterable[str] = PARTS, channels: Any = None
) -> LayerAttention:
    """The unified matrix of a whole layer on a given input.

    Args:
        layer: of `ssmcourse.nn`, one that mixes tokens.
        x: (b, l, d_model), the layer's input.
        include: the factors to multiply, of "ssm", "D", "conv", "activation", "gate", "norm"; those left out count
            as the identity (D as zero), those that a layer does not have change nothing. "ssm" is whatever mixes
            over long times: a softmax attention's matrix too.
        channels: indices of the channels wanted; all if None.
    Returns:
        LayerAttention: matrix (b, d, l, l), constant (b, l, d), values (b, l, d) of the chosen channels. With all
        parts, `output()` is the input of the layer's out_proj. The bias of a convolution stays inside the sigmoid
        of its activation, and what it adds by itself is `constant`.
    Raises:
        ValueError: the layer mixes nothing, x does not fit, an unknown part or channel.

    Cost: memory O(l²) a channel. Source: Zimerman et al. 2024, section 3. Lesson 12.
    """
    if not _mixed_channels(layer):
        raise ValueError(
            f"layer: got {type(layer).__name__}, expected a layer of ssmcourse.nn that mixes tokens"
        )
    Arguments().activation("x", x, f"b l {layer.d_model}")
    parts = (include,) if isinstance(include, str) else tuple(include)
    for part in parts:
        one_of("include", part, PARTS)
    return layer.implicit_attention(x, frozenset(parts), chosen(channels, _mixed_channels(layer), x.device))


def chosen(channels: Any, d: int, device: torch.device) -> Tensor:
    """The indices of the channels asked for, of d."""
    every = torch.arange(d, device=device)
    if channels is None or isinstance(channels, slice):
        return every if channels is None else every[channels]
    try:
        index = torch.as_tensor(channels, device=device).reshape(-1)
        return every[index if len(index) else index.long()]  # an empty list would be one of floats
    except (IndexError, RuntimeError, TypeError, ValueError):
        raise ValueError(f"channels: got {shown(channels)}, expected indices of the {d} channels") from None


def rollout(matrices: Sequence[Tensor]) -> Tensor:
    """What every output of a stack of layers is made of: the product of (A + I), rows normalised.

    The identity is the residual connection around each layer.

    Args:
        matrices: of each layer, first layer first, (b, l, l) and not negative: average over channels and take away
            signs before.
    Returns:
        (b, l, l), rows sum to 1.
    Raises:
        ValueError: no matrix, shapes that differ, or a negative entry.

    Source: Abnar & Zuidema 2020, section 3. Lesson 12.
    """
    if not len(matrices):
        raise ValueError("matrices: got none, expected one for each layer")
    given = Arguments()
    total: Tensor | None = None
    for matrix in matrices:
        given.parameter("matrices", matrix, "b l l")
        if (matrix < 0).any():
            raise ValueError(
                "matrices: got a negative entry, expected none: take absolute values, or clamp at 0"
            )
        step = matrix + torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        step = step / step.sum(-1, keepdim=True)
        total = step if total is None else step @ total
    assert total is not None
    return total


def attribution(
    model: nn.Module, tokens: Tensor, target: Any = None, method: str = "rollout", *, position: int = -1
) -> Tensor:
    """What each token counts for one output of a language model.

    Args:
        model: a `LanguageModel`, or a module like it: called with tokens, with layers of `ssmcourse.nn` inside.
        tokens: (b, l).
        target: the token, an integer or (b,), whose logit at `position` is explained: "grad_rollout" asks for it.
        method: "raw": the row of |α| at the position, averaged over channels, normalised, averaged over layers.
            "rollout": the row of the `rollout` of |α|, averaged over channels.
            "grad_rollout": the same of the positive part of α times its gradient: what counts for this target.
        position: of the output, from the end if negative.
    Returns:
        (b, l), not negative; a row sums to 1.
    Raises:
        ValueError: an unknown method, no target where one is needed, or a model in which nothing mixes tokens.

    Cost: one forward pass (and one backward), and O(l²) work and memory for each channel, 64 at once.
    Source: Ali et al. 2024, section 4; Zimerman et al. 2024, section 4. Lesson 12.
    """
    one_of("method", method, METHODS)
    Arguments().integers("tokens", tokens, "b l")
    b, l = tokens.shape
    if not -l <= position < l:
        raise ValueError(f"position: got {position}, expected one of the {l} tokens")
    if method == "grad_rollout":
        calls = _recorded(model, tokens, _targets(target, b, tokens.device), position)
    else:
        with torch.no_grad():
            calls = _recorded(model, tokens, None, position)
    with torch.no_grad():
        matrices = [_averaged(layer, x, gradient) for layer, x, gradient in calls]
        if method == "raw":
            rows = [_normalized(A[:, position]) for A in matrices]
            return torch.stack(rows).mean(0)
        return rollout(matrices)[:, position]


def perturbation_curve(
    model: Any,
    tokens: Tensor,
    scores: Tensor,
    target: Any = None,
    *,
    position: int = -1,
    steps: int | None = None,
) -> Tensor:
    """How the target's probability falls while tokens are masked, those with the highest scores first.

    A masked token is one whose embedding is zero. Good scores make the curve fall sooner than random ones.

    Args:
        model: a `LanguageModel`.
        tokens: (b, l).
        scores: (b, l), from `attribution` say; a token with a score of minus infinity is never masked.
        target: an integer or (b,), the token whose probability is watched; what the model predicts if None.
        position: of the output.
        steps: how many tokens to mask; all that may be, if None.
    Returns:
        (b, steps + 1), the probability of the target at the position with 0, 1, ... tokens masked.
    Raises:
        ValueError: shapes do not fit.

    Cost: steps + 1 forward passes. Source: Ali et al. 2024, section 5. Lesson 12.
    """
    given = Arguments()
    given.integers("tokens", tokens, "b l")
    given.parameter("scores", scores, "b l")
    most = int(scores.isfinite().sum(1).min()) if len(scores) else 0
    count = most if steps is None else min(integer("steps", steps, 0), most)
    order = torch.argsort(scores, dim=1, descending=True, stable=True)
    with torch.no_grad():
        embedded = model.backbone.embedding(tokens)
        present = torch.ones_like(scores)
        curve = []
        for k in range(count + 1):
            if k:
                present = present.scatter(1, order[:, k - 1 : k], 0.0)
            logits = model(inputs_embeds=embedded * present[..., None].to(embedded.dtype))[:, position]
            if target is None:
                target = logits.argmax(-1)
            wanted = _targets(target, len(tokens), tokens.device)
            curve.append(logits.to(working_dtype(logits)).softmax(-1).gather(1, wanted[:, None])[:, 0])
    return torch.stack(curve, 1)


# --- Parts ------------------------------------------------------------------------------------


def _recorded(
    model: nn.Module, tokens: Tensor, target: Tensor | None, position: int
) -> list[tuple[Any, Tensor, Tensor | None]]:
    """Every layer that mixes tokens, as it is called: its input, and the target's gradient at its out_proj's input."""
    inputs: list[tuple[Any, Tensor]] = []
    outputs: dict[Any, Tensor] = {}
    hooks = []

    def enters(layer: Any, args: tuple) -> None:
        inputs.append((layer, args[0]))

    def leaves(layer: Any, u: Tensor) -> None:
        outputs[layer] = u

    layer: Any
    for layer in (m for m in model.modules() if _mixed_channels(m)):
        hooks.append(layer.register_forward_pre_hook(enters))
        if layer.readout:
            last = layer.get_submodule(layer.readout)
            hooks.append(last.register_forward_pre_hook(lambda _, args, layer=layer: leaves(layer, args[0])))
        else:
            hooks.append(layer.register_forward_hook(lambda m, _, y: leaves(m, y)))
    try:
        logits = model(tokens)[:, position]
    finally:
        for hook in hooks:
            hook.remove()
    if not inputs:
        raise ValueError(f"model: got {type(model).__name__}, in which no layer of ssmcourse.nn mixes tokens")
    if target is None:
        return [(layer, x, None) for layer, x in inputs]
    wanted = [outputs[layer] for layer, _ in inputs]
    gradients = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), wanted, allow_unused=True)
    return [
        (layer, x.detach(), (torch.zeros_like(u) if g is None else g)[..., layer.mixed])
        for (layer, x), u, g in zip(inputs, wanted, gradients, strict=True)
    ]


def _averaged(layer: Any, x: Tensor, gradient: Tensor | None) -> Tensor:
    """(b, l, l): |α|, or the positive part of α times its gradient, averaged over the layer's channels."""
    total = x.new_zeros(len(x), x.shape[1], x.shape[1])
    for part in torch.arange(_mixed_channels(layer), device=x.device).split(CHANNELS_AT_ONCE):
        alpha = layer.implicit_attention(x, frozenset(PARTS), part)
        if gradient is None:
            total += alpha.matrix.abs().sum(1)
        else:  # the output is α values, so α[i, j] has the gradient of output i times value j
            slope = gradient[..., part].mT[..., None] * alpha.values.mT[..., None, :]  # (b, d, i, j)
            total += (alpha.matrix * slope).clamp(min=0).sum(1)
    return total / _mixed_channels(layer)


def _mixed_channels(module: Any) -> int:
    """How many channels a layer mixes over time; 0 for an MLP, and for what is no layer of `ssmcourse.nn`."""
    mixed = getattr(module, "mixed", None)
    return (
        mixed.stop - mixed.start if isinstance(mixed, slice) and hasattr(module, "implicit_attention") else 0
    )


def _normalized(row: Tensor) -> Tensor:
    return row / row.sum(-1, keepdim=True).clamp(min=torch.finfo(row.dtype).tiny)


def _targets(target: Any, b: int, device: torch.device) -> Tensor:
    if target is None:
        raise ValueError("target: got None, expected the token to explain, an integer or one for each row")
    wanted = torch.as_tensor(target, device=device)
    if wanted.is_floating_point() or wanted.dtype == torch.bool or wanted.shape not in ((), (b,)):
        raise ValueError(f"target: got {shown(target)}, expected an integer or (b,) = ({b},) of them")
    return wanted.long().expand(b)
