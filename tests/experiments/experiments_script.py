"""benchmarks/experiments.py as a module, for the tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def loaded() -> ModuleType:
    if "benchmarks_experiments" in sys.modules:
        return sys.modules["benchmarks_experiments"]
    sys.path.insert(0, str(BENCHMARKS))  # where it finds record.py
    try:
        spec = importlib.util.spec_from_file_location("benchmarks_experiments", BENCHMARKS / "experiments.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module
