"""Imports go one way: kernels <- functions <- nn <- models <- training; explore and grading on top."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# For each room, the rooms it must never import. `kernels` knows nothing of the rest of ssmcourse.
FORBIDDEN = {
    "kernels": ["functions", "tasks", "nn", "models", "training", "compat", "explore", "grading"],
    "functions": ["nn", "models", "training", "compat", "explore", "grading"],
    "tasks": ["models", "training", "compat", "explore", "grading"],
    "nn": ["models", "training", "compat", "explore", "grading"],
    "models": ["training", "compat", "explore", "grading"],
    "training": ["compat", "explore", "grading"],
    "compat": ["explore", "grading"],
    "explore": ["training", "compat", "grading"],
    "grading": ["training", "compat", "explore"],
}
TOP = {"cli", "doctor", "course", "__init__"}  # the command line and its helpers stand above every room


def room(module: str) -> str | None:
    """The room of a dotted module name; None for other packages and for the top."""
    parts = module.split(".")
    if parts[0] != "ssmcourse":
        return None
    if len(parts) == 1 or parts[1] in TOP:
        return None
    return parts[1] if parts[1] in FORBIDDEN else "functions"


def files() -> list[tuple[Path, str]]:
    found = [
        (p, "ssmcourse." + ".".join(p.relative_to(ROOT / "ssmcourse").with_suffix("").parts))
        for p in (ROOT / "ssmcourse").rglob("*.py")
    ]
    found += [
        (p, "ssmcourse.kernels." + ".".join(p.relative_to(ROOT / "kernels").with_suffix("").parts))
        for p in (ROOT / "kernels").rglob("*.py")
    ]
    return [(path, module.removesuffix(".__init__")) for path, module in found]


def imported(path: Path, module: str) -> list[str]:
    """Every ssmcourse module that a file imports, at any depth, relative imports resolved."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(
                    package.split(".")[: len(package.split(".")) - node.level + 1] + ([base] if base else [])
                )
            names += [f"{base}.{alias.name}" for alias in node.names] + [base]
    return [name for name in names if name.split(".")[0] == "ssmcourse"]


@pytest.mark.parametrize(("path", "module"), files(), ids=lambda v: v if isinstance(v, str) else "")
def test_a_module_imports_no_room_above_it(path, module):
    own = room(module)
    if own is None:
        return
    wrong = [name for name in imported(path, module) if room(name) in FORBIDDEN[own]]
    assert not wrong, f"{module} ({own}) imports {wrong}"


def test_the_rule_sees_an_import_that_goes_the_wrong_way(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("from ..grading import check\nimport ssmcourse.scan\n")
    names = imported(bad, "ssmcourse.kernels.linear_scan.bad")
    assert "ssmcourse.kernels.grading.check" in names
    assert "ssmcourse.scan" in names
    assert room("ssmcourse.scan") in FORBIDDEN["kernels"]
