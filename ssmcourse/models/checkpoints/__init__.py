"""Checkpoints: a config.json and weight files, in three layouts.

| layout         | written by                               | patterns                                          | weights           |
|----------------|------------------------------------------|---------------------------------------------------|-------------------|
| `ssmcourse`    | this library                             | all                                               | model.safetensors |
| `state-spaces` | mamba_ssm                                | Mamba or Mamba-2, some layers attention, with an MLP after every one or none | pytorch_model.bin |
| `transformers` | transformers, model_type mamba or mamba2 | Mamba or Mamba-2                                  | model.safetensors |

Any of them is read from model.safetensors, pytorch_model.bin, or shards of either with their index. Nothing is run
that a file says (`weights_only`), no file outside the folder is named by one inside it, and what does not fit is
refused by one line that says where. `reading` and `writing` have the files, the other modules a layout each.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ssmcourse.arguments import FLOATING, one_of
from ssmcourse.models.checkpoints import own, reading, state_spaces, transformers, writing
from ssmcourse.models.checkpoints.reading import Weights

if TYPE_CHECKING:
    from ssmcourse.models.language_model import LanguageModel

LAYOUTS: dict[str, Any] = {"ssmcourse": own, "state-spaces": state_spaces, "transformers": transformers}
EMBEDDING, HEAD = "backbone.embedding.weight", "lm_head.weight"


def load(
    path: str | Path, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> LanguageModel:
    """The model in a directory, or in a weight file with its config.json beside it.

    Args:
        path: local; nothing is downloaded.
        device: where the parameters go.
        dtype: of the parameters; each keeps that of the file if not given.
    Returns:
        The model in eval mode, its `layout` that of the files.
    Raises:
        FileNotFoundError: the path, its config.json, its weights, or a shard that its index names.
        ValueError: a file that is damaged or is something else; an architecture or an option that this library does
            not have; a tensor that is missing, not known, or of another shape.

    Cost: one pass over the files. In memory there are the weights once, and one tensor besides.
    """
    from ssmcourse.models.language_model import LanguageModel

    if dtype is not None:
        one_of("dtype", dtype, FLOATING)
    folder, source = reading.find(Path(path))
    described = folder / "config.json"
    values = reading.read_json(described)
    name = _layout_of(described, values)
    weights = reading.open_weights(source)
    try:
        _check_depth(values, weights, LAYOUTS[name])
        model = LanguageModel(LAYOUTS[name].read_config(values), device="meta")
    except (ValueError, TypeError, OverflowError, RuntimeError) as wrong:  # the last three: absurd sizes
        raise ValueError(f"{described}: {reading.first_line(wrong)}") from wrong
    _fill(model, weights, LAYOUTS[name], torch.device(device or "cpu"), dtype)
    model.layout = name
    return model.eval()


def save(model: LanguageModel, path: str | Path, layout: str | None = None) -> None:
    """Write config.json and the weights into a directory, whole or not at all.

    Args:
        path: a new name, an empty directory, or that of a checkpoint, whose config and weights are replaced and
            whose other files stay.
        layout: ssmcourse, state-spaces or transformers; that which the model was read from if not given.
    Raises:
        ValueError: the layout has no such model, or there is something else at the path. Nothing is written then.
    """
    layout = model.layout if layout is None else layout
    one_of("layout", layout, tuple(LAYOUTS))
    kind = LAYOUTS[layout]
    values = kind.write_config(model.config)
    # A state dict names a tied weight twice. In a .bin the second costs nothing, safetensors refuse it.
    twice = kind.WEIGHTS.endswith(".bin")
    tensors = {
        kind.their_name(model.config, name): _to_write(name, value, kind.rows(model.config))
        for name, value in model.state_dict().items()
        if twice or name != HEAD or not model.config.tie_embeddings
    }
    if layout == "transformers":
        values["torch_dtype"] = str(model.backbone.embedding.weight.dtype).removeprefix("torch.")
    with writing.folder(Path(path)) as folder:
        writing.write_json(folder / "config.json", values)
        writing.write_weights(folder / kind.WEIGHTS, tensors)


def _to_write(name: str, value: Tensor, rows: int) -> Tensor:
    value = value.detach().cpu()
    return (value[:rows] if name in (EMBEDDING, HEAD) else value).contiguous()


def _layout_of(file: Path, values: dict[str, Any]) -> str:
    for name, layout in LAYOUTS.items():
        if layout.matches(values):
            return name
    if "model_type" in values:
        raise ValueError(f"{file}: model_type: got {values['model_type']!r}, expected mamba or mamba2")
    raise ValueError(
        f"{file}: got the keys {', '.join(values) or 'none'}, expected those of one of {', '.join(LAYOUTS)}"
    )


def _check_depth(values: dict[str, Any], weights: Weights, layout: Any) -> None:
    """Refuse more layers than there are tensors, before a model of that many is built."""
    count = values.get(layout.DEPTH, 0)
    if isinstance(count, int) and count > len(weights.homes):
        raise ValueError(
            f"{layout.DEPTH}: got {count}, and {weights.source.name} has {len(weights.homes)} tensors"
        )


def _fill(
    model: LanguageModel, weights: Weights, layout: Any, device: torch.device, dtype: torch.dtype | None
) -> None:
    """Give the parameters their values, one tensor after the other."""
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    theirs = {name: layout.their_name(model.config, name) for name in shapes}
    tied = model.config.tie_embeddings
    if tied and theirs[HEAD] not in weights.homes:
        del theirs[HEAD]
    _compare(weights, {theirs[name]: shape for name, shape in shapes.items() if name in theirs})
    values = {}
    for name, there in theirs.items():
        value = weights.take(there)
        # A copy also where nothing changes: what was read in place would change with the file.
        values[name] = torch.empty(value.shape, dtype=dtype or value.dtype, device=device).copy_(value)
    if tied:
        if HEAD in theirs and not torch.equal(values[HEAD], values[EMBEDDING]):
            raise ValueError(
                f"{weights.source}: {HEAD} is not {theirs[EMBEDDING]}, and config.json says it is"
            )
        values[HEAD] = values[EMBEDDING]
    model.load_state_dict(values, strict=True, assign=True)
    if tied:
        model.lm_head.weight = model.backbone.embedding.weight


def _compare(weights: Weights, expected: dict[str, tuple[int, ...]]) -> None:
    """Refuse weights that are not these, and say how many and the first of each kind."""
    missing = [name for name in expected if name not in weights.homes]
    extra = [name for name in weights.homes if name not in expected]
    misshapen = [
        f"{name}, {weights.shape(name)} where {shape} is expected"
        for name, shape in expected.items()
        if name in weights.homes and weights.shape(name) != shape
    ]
    kinds = {"missing": missing, "not known": extra, "of another shape": misshapen}
    found = [f"{len(names)} {kind} ({names[0]})" for kind, names in kinds.items() if names]
    if found:
        raise ValueError(f"{weights.source}: of {len(expected)} tensors, {'; '.join(found)}")
