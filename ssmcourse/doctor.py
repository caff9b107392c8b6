"""Is this machine ready for the course? Each check gives one line and, where it fails, the cure.

No check may raise, nor stop the others: who calls a doctor has trouble already. So everything that can
be broken is imported inside the check that is about it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ssmcourse.course import find_root

SET_UP = "run `make setup` in the course's folder (or: pip install -r requirements.lock)"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    `cure` is what to do when not `ok`, in one line; empty otherwise.
    """

    name: str
    ok: bool
    detail: str
    cure: str = ""


def diagnose() -> list[Finding]:
    """Everything that the doctor looks at, in the order of its report. Takes a few seconds, raises nothing."""
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("Python", _python),
        ("packages", _packages),
        ("device", _device),
        ("Triton", _triton),
        ("Numba CUDA", _numba_cuda),
        ("widgets", _widgets),
        ("write access", _write_access),
    ]
    findings = [_guarded(name, check) for name, check in checks]
    return findings + [_guarded(name, check) for name, check in _scans()]


def _guarded(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:
        return Finding(name, False, f"{type(error).__name__}: {_one_line(error)}", SET_UP)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _python() -> Finding:
    version = platform.python_version()
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding("Python", True, f"{version} at {sys.executable}")
    cure = "install Python 3.11, 3.12 or 3.13 and run `make setup` with it: PYTHON=python3.13 make setup"
    return Finding("Python", False, f"{version}; the course needs 3.11 to 3.13", cure)


def _packages() -> Finding:
    """What is installed, against the lock. A local version (2.13.0+cpu) is the same package, built otherwise."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    root = find_root()
    if root is None or not (root / "requirements.lock").is_file():
        return Finding("packages", True, "not in a clone of the course, so there is no lock to compare with")
    lines = (root / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    wanted = {pin.name: str(pin.specifier).removeprefix("==") for pin in pins if _applies(pin)}
    wrong = []
    for name, version in wanted.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{name} is not installed (lock: {version})")
            continue
        if Version(found).public != Version(version).public:
            wrong.append(f"{name} is {found} (lock: {version})")
    if not wrong:
        return Finding("packages", True, f"all {len(wanted)} as in requirements.lock")
    more = f", and {len(wrong) - 4} more" if len(wrong) > 4 else ""
    return Finding("packages", False, ", ".join(wrong[:4]) + more, SET_UP)


def _applies(pin) -> bool:
    return pin.marker is None or pin.marker.evaluate()


def _device() -> Finding:
    import torch

    from ssmcourse.kernels import runtime

    cpu = f"CPU with {os.cpu_count()} cores, torch {torch.__version__} on {torch.get_num_threads()} of them"
    if runtime.has_cuda():
        return Finding("device", True, f"{torch.cuda.get_device_name()}; {cpu}")
    return Finding("device", True, f"{cpu}; no NVIDIA GPU, and none is needed")


def _triton() -> Finding:
    from ssmcourse.kernels import runtime

    mode = runtime.triton_mode()
    if mode == "compiled":
        return Finding("Triton", True, f"kernels are compiled for the GPU (triton {_version('triton')})")
    if mode == "interpreted":
        return Finding("Triton", True, f"kernels are interpreted on the CPU (triton {_version('triton')})")
    return _absent("Triton", "triton", "unset TRITON_INTERPRET if you have set it; else " + SET_UP)


def _numba_cuda() -> Finding:
    from ssmcourse.kernels import runtime

    mode = runtime.cuda_mode()
    if mode == "real":
        return Finding("Numba CUDA", True, f"kernels run on the GPU (numba {_version('numba')})")
    if mode == "simulated":
        return Finding("Numba CUDA", True, f"kernels run in the simulator (numba {_version('numba')})")
    return _absent(
        "Numba CUDA", "numba_cuda", "unset NUMBA_ENABLE_CUDASIM if you have set it; else " + SET_UP
    )


def _absent(name: str, backend: str, cure: str) -> Finding:
    from ssmcourse.kernels import runtime

    why = runtime.why_absent(backend)
    if sys.platform == "linux":
        return Finding(name, False, why, cure)
    return Finding(name, True, f"{why}; the chapters about it can be read, and run on Linux")


def _version(package: str) -> str:
    return importlib.metadata.version(package)


def _widgets() -> Finding:
    """The Python half of the widgets, and the half that JupyterLab loads into the browser."""
    versions = [f"{name} {importlib.import_module(name).__version__}" for name in ("ipywidgets", "anywidget")]
    try:
        from jupyter_core.paths import jupyter_path

        importlib.metadata.version("jupyterlab")
    except (ImportError, importlib.metadata.PackageNotFoundError):
        return Finding("widgets", True, f"{', '.join(versions)}; JupyterLab is not installed here")
    folders = [Path(folder) for folder in jupyter_path("labextensions")]
    for package, extension in {
        "jupyterlab_widgets": "@jupyter-widgets/jupyterlab-manager",
        "anywidget": "anywidget",
    }.items():
        if not any((folder / extension / "package.json").is_file() for folder in folders):
            cure = f"run `{Path(sys.executable).name} -m pip install --force-reinstall --no-deps {package}`"
            return Finding("widgets", False, f"JupyterLab does not find the extension {extension}", cure)
    return Finding("widgets", True, f"{', '.join(versions)}, both known to JupyterLab")


def _write_access() -> Finding:
    root = find_root()
    if root is None:
        return Finding("write access", True, "not in a clone of the course, so there is nothing to write")
    try:
        with tempfile.TemporaryFile(dir=root):
            return Finding("write access", True, str(root))
    except OSError as error:
        cure = f"make {root} writable, or clone the course into a folder of yours"
        return Finding("write access", False, f"{root}: {error.strerror or error}", cure)


def _scans() -> Iterator[tuple[str, Callable[[], Finding]]]:
    """A check for every backend that runs here: a small scan, against a loop in float64."""
    try:
        from ssmcourse.scan import backends

        names = backends("linear_scan")
    except Exception as error:
        finding = Finding("scan", False, f"{type(error).__name__}: {_one_line(error)}", SET_UP)
        yield "scan", lambda: finding
        return
    for name in names:
        yield f"scan with {name}", lambda name=name: _scan(name)


def _scan(backend: str) -> Finding:
    import numpy as np
    import torch

    from ssmcourse.kernels import runtime
    from ssmcourse.scan import linear_scan
    from ssmcourse.tolerance import mismatch

    where = "cuda" if runtime.device_type(backend) == "cuda" else "cpu"
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-1, 1, (2, 19, 3)), rng.normal(size=(2, 19, 3))
    expected, h = np.empty_like(b), np.zeros((2, 3))
    for t in range(b.shape[1]):
        h = expected[:, t] = a[:, t] * h + b[:, t]
    inputs = [torch.tensor(x, dtype=torch.float32, device=where) for x in (a, b)]
    got = linear_scan(*inputs, backend=backend)
    name, problem = f"scan with {backend}", mismatch(got, expected, terms=19)
    if problem is None:
        return Finding(name, True, "agrees with a loop in float64")
    return Finding(name, False, str(problem), f"use another backend, and report this; else {SET_UP}")
