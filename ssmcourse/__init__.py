"""State space models from HiPPO to Mamba: the library of the course.

Every name below is loaded on first use, so that `import ssmcourse` is quick and does not import
torch. Submodules are loaded the same way: `ssmcourse.explore.memory()` works at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what an editor and a type checker see
    from ssmcourse.associative import associative_scan as associative_scan
    from ssmcourse.convolution import causal_conv1d as causal_conv1d
    from ssmcourse.convolution import causal_conv1d_update as causal_conv1d_update
    from ssmcourse.convolution import fft_conv as fft_conv
    from ssmcourse.discretization import discretize as discretize
    from ssmcourse.duality import segsum as segsum
    from ssmcourse.duality import ssd as ssd
    from ssmcourse.duality import ssd_state_update as ssd_state_update
    from ssmcourse.grading import check as check
    from ssmcourse.grading import hint as hint
    from ssmcourse.grading import predict as predict
    from ssmcourse.grading import progress as progress
    from ssmcourse.grading import solution as solution
    from ssmcourse.h3 import h3_mix as h3_mix
    from ssmcourse.hippo import hippo_matrix as hippo_matrix
    from ssmcourse.hippo import hippo_project as hippo_project
    from ssmcourse.hippo import hippo_reconstruct as hippo_reconstruct
    from ssmcourse.normal_plus_low_rank import nplr as nplr
    from ssmcourse.normalization import gated_rms_norm as gated_rms_norm
    from ssmcourse.relatives import linear_attention as linear_attention
    from ssmcourse.relatives import rglru_scan as rglru_scan
    from ssmcourse.relatives import wkv4 as wkv4
    from ssmcourse.s4 import s4_kernel as s4_kernel
    from ssmcourse.s4 import s4d_init as s4d_init
    from ssmcourse.s4 import s4d_kernel as s4d_kernel
    from ssmcourse.s4 import ssm_kernel as ssm_kernel
    from ssmcourse.scan import backends as backends
    from ssmcourse.scan import linear_scan as linear_scan
    from ssmcourse.selective import selective_scan as selective_scan
    from ssmcourse.selective import selective_state_update as selective_state_update
    from ssmcourse.trace import scan_trace as scan_trace

__version__ = "0.1.0"

# public name -> the module that defines it
_HOME = {
    "associative_scan": "associative",
    "backends": "scan",
    "causal_conv1d": "convolution",
    "causal_conv1d_update": "convolution",
    "check": "grading",
    "discretize": "discretization",
    "fft_conv": "convolution",
    "gated_rms_norm": "normalization",
    "h3_mix": "h3",
    "hint": "grading",
    "hippo_matrix": "hippo",
    "hippo_project": "hippo",
    "hippo_reconstruct": "hippo",
    "linear_attention": "relatives",
    "linear_scan": "scan",
    "nplr": "normal_plus_low_rank",
    "predict": "grading",
    "progress": "grading",
    "rglru_scan": "relatives",
    "s4_kernel": "s4",
    "s4d_init": "s4",
    "s4d_kernel": "s4",
    "scan_trace": "trace",
    "segsum": "duality",
    "selective_scan": "selective",
    "selective_state_update": "selective",
    "solution": "grading",
    "ssd": "duality",
    "ssd_state_update": "duality",
    "ssm_kernel": "s4",
    "wkv4": "relatives",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"ssmcourse.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    try:
        return importlib.import_module(f"ssmcourse.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"ssmcourse.{name}":
            raise
        raise AttributeError(f"module 'ssmcourse' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
