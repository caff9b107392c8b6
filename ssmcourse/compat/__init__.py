"""Our operators under the names of `mamba_ssm` and `causal_conv1d`, for those to whom these will not install.

    from ssmcourse import compat

    compat.install()                       # before what needs them is imported
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    compat.accelerate(model)               # a model of `transformers` that is there already

A package that is installed is never touched. `ssmcourse.compat.finder` has the table of all names.
"""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssmcourse.compat.transformers_models import accelerate as accelerate

_finders: list[Any] = []


def install() -> list[str]:
    """Stand in for those of `mamba_ssm`, `causal_conv1d` and `selective_scan_cuda` that are not there.

    From then on they can be imported, found and asked for their version, and the Mamba and Mamba-2 models of a
    `transformers` that is imported later compute with our operators. Calling it again changes nothing.

    Returns:
        The packages that are stood in for. A real one, even if it is broken, is left alone.
    """
    from ssmcourse.compat.finder import VERSIONS, StandIns, absent
    from ssmcourse.compat.transformers_models import FORWARDS, OnImport

    if not _finders:
        late = sorted(module for module, _ in FORWARDS if module in sys.modules)
        if late:
            warnings.warn(
                f"{' and '.join(late)} are loaded already, without what is installed now: "
                "use compat.accelerate(model) for their models",
                stacklevel=2,
            )
        _finders.extend([StandIns([name for name in VERSIONS if absent(name)]), OnImport()])
        sys.meta_path.append(_finders[0])
        sys.meta_path.insert(0, _finders[1])
    return list(_finders[0].packages)


def uninstall() -> None:
    """Take back `install`: the stand-ins are forgotten. What was imported from them goes on working."""
    if not _finders:
        return
    stand_ins, on_import = _finders
    for finder in _finders:
        sys.meta_path.remove(finder)
    for name, module in list(sys.modules.items()):
        if getattr(getattr(module, "__spec__", None), "loader", None) is stand_ins:
            del sys.modules[name]
    on_import.undo()
    _finders.clear()


def __getattr__(name: str) -> Any:
    if name != "accelerate":
        raise AttributeError(f"module 'ssmcourse.compat' has no attribute {name!r}")
    from ssmcourse.compat.transformers_models import accelerate

    globals()[name] = accelerate
    return accelerate


def __dir__() -> list[str]:
    return sorted({*globals(), "accelerate"})
