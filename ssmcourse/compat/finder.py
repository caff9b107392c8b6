"""Which modules stand in for which, and how Python finds them.

A stand-in is found last, after everything that is installed, and only under a top-level name that nothing else has: a
real package is never hidden, nor filled up. It carries the version of the package whose names and signatures it has,
marked as ours (`2.2.5+ssmcourse`), for those who look at `__version__` or ask `importlib.metadata`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder
from types import ModuleType

OURS = "ssmcourse.compat"
VERSIONS = {"mamba_ssm": "2.2.5", "causal_conv1d": "1.5.2", "selective_scan_cuda": "2.2.5"}

_SCANS = "selective_scan_fn selective_scan_ref mamba_inner_fn mamba_inner_ref mamba_inner_fn_no_out_proj bimamba_inner_fn"
_NORMS = "RMSNorm layer_norm_fn rms_norm_fn"
_SSD = "mamba_chunk_scan_combined mamba_split_conv1d_scan_combined"
_CONV = "causal_conv1d_fn causal_conv1d_update"

# module -> {the module that its names come from: the names}
TABLE: dict[str, dict[str, str]] = {
    "selective_scan_cuda": {f"{OURS}.selective_scan_cuda": "fwd bwd"},
    "causal_conv1d": {"causal_conv1d.causal_conv1d_interface": _CONV},
    "causal_conv1d.causal_conv1d_interface": {f"{OURS}.convolution": _CONV},
    "causal_conv1d.causal_conv1d_varlen": {f"{OURS}.convolution": "causal_conv1d_varlen_states"},
    "mamba_ssm": {
        "mamba_ssm.ops.selective_scan_interface": "selective_scan_fn mamba_inner_fn",
        "mamba_ssm.modules.mamba_simple": "Mamba",
        "mamba_ssm.modules.mamba2": "Mamba2",
    },
    "mamba_ssm.ops": {},
    "mamba_ssm.ops.selective_scan_interface": {f"{OURS}.selective_scan": _SCANS},
    "mamba_ssm.ops.triton": {},
    "mamba_ssm.ops.triton.layer_norm": {f"{OURS}.layer_norm": _NORMS},
    "mamba_ssm.ops.triton.layernorm": {f"{OURS}.layer_norm": _NORMS},  # its name up to version 1.2
    "mamba_ssm.ops.triton.layernorm_gated": {
        f"{OURS}.layernorm_gated": "RMSNorm LayerNorm rmsnorm_fn layernorm_fn"
    },
    "mamba_ssm.ops.triton.selective_state_update": {f"{OURS}.state_update": "selective_state_update"},
    "mamba_ssm.ops.triton.ssd_combined": {f"{OURS}.ssd_combined": _SSD},
    "mamba_ssm.modules": {},
    "mamba_ssm.modules.mamba_simple": {f"{OURS}.layers": "Mamba"},
    "mamba_ssm.modules.mamba2": {f"{OURS}.layers": "Mamba2"},
    "mamba_ssm.modules.mamba2_simple": {f"{OURS}.layers": "Mamba2Simple"},
}


class StandIns(Loader, DistributionFinder):
    """Finds, loads and describes the stand-ins for the packages it is made for."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = tuple(packages)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in TABLE or name.partition(".")[0] not in self.packages:
            return None
        package = any(other.startswith(f"{name}.") for other in TABLE)
        return ModuleSpec(name, self, origin=OURS, is_package=package)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        top = module.__name__.partition(".")[0]
        module.__doc__ = f"`{module.__name__}`, as ssmcourse.compat has it."
        module.__version__ = version(top)  # pyright: ignore[reportAttributeAccessIssue]
        names = []
        for home, own in TABLE[module.__name__].items():
            source = importlib.import_module(home)
            for name in own.split():
                setattr(module, name, getattr(source, name))
                names.append(name)
        module.__all__ = names  # pyright: ignore[reportAttributeAccessIssue]

    def find_distributions(self, context: DistributionFinder.Context | None = None) -> list[Distribution]:
        name = None if context is None else context.name
        wanted = None if name is None else name.lower().replace("-", "_")
        return [StandIn(package) for package in self.packages if wanted in (None, package)]


class StandIn(Distribution):
    """What `importlib.metadata` says of a package that is stood in for."""

    def __init__(self, package: str) -> None:
        self.package = package

    def read_text(self, filename: str) -> str | None:
        if filename == "METADATA":
            return f"Metadata-Version: 2.1\nName: {self.package}\nVersion: {version(self.package)}\n"
        return self.package if filename == "top_level.txt" else None

    def locate_file(self, path):
        raise FileNotFoundError(f"{path}: {self.package} is a stand-in of {OURS}, it has no files")


def version(package: str) -> str:
    return f"{VERSIONS[package]}+ssmcourse"


def absent(package: str) -> bool:
    """Whether no other finder, and no module that is loaded, has this top-level name."""
    if package in sys.modules:
        return False
    others = (finder for finder in sys.meta_path if not isinstance(finder, StandIns))
    return all(getattr(f, "find_spec", lambda *_: None)(package, None) is None for f in others)
