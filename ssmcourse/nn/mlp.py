"""The gated MLP that stands between mixers: each token by itself.

    y, gate = fc1(x)        (b, l, hidden) each
    out = fc2(y * silu(gate))

Names, shapes and the order of the two halves are those of `mamba_ssm.modules.mlp`. Lesson 12.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ssmcourse.nn.sequence import Cache, SequenceLayer, Spans, check_step, positive


class GatedMLP(SequenceLayer):
    """fc2(y * activation(gate)), where (y, gate) = fc1(x): SwiGLU, with the activation that is the default.

    Tokens do not see each other, so the cache is empty: {}.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        activation: Callable[[Tensor], Tensor] = silu,
        bias: bool = False,
        multiple_of: int = 128,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Weights as `torch.nn.Linear` makes them.

        Args:
            in_features: d_model.
            hidden_features: the width inside; 8/3 of in_features if not given, so that the three matrices have the
                parameters of two of four times the width. Rounded up to a multiple of `multiple_of`.
            out_features: of the result; in_features if not given.
            activation: what the gate goes through.
            bias: of both projections.
        Raises:
            ValueError: a size is not an integer of 1 or more.

        Source: Shazeer 2020 (GLU variants improve transformer).
        """
        super().__init__()
        positive(in_features=in_features, multiple_of=multiple_of)
        hidden_features = int(8 * in_features / 3) if hidden_features is None else hidden_features
        out_features = in_features if out_features is None else out_features
        positive(hidden_features=hidden_features, out_features=out_features)
        hidden = -(-hidden_features // multiple_of) * multiple_of
        self.d_model = in_features
        self.activation = activation
        self.fc1 = nn.Linear(in_features, 2 * hidden, bias=bias, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden, out_features, bias=bias, device=device, dtype=dtype)

    @property
    def mixed(self) -> slice:
        return slice(0, 0)

    def mix(self, x: Tensor, spans: Spans, cache: Cache | None, keep: bool) -> tuple[Tensor, Cache | None]:
        return self._each(x), {} if keep else None

    def step(self, x: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        check_step(x, cache, self.d_model)
        return self._each(x), cache

    def allocate_cache(self, batch: int, dtype: torch.dtype | None = None) -> Cache:
        """{}: nothing is kept."""
        return {}

    def _each(self, x: Tensor) -> Tensor:
        y, gate = self.fc1(x).chunk(2, -1)
        return self.fc2(y * self.activation(gate))
