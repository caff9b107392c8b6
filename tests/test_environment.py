"""pyproject.toml, requirements.lock and environment.yml agree, and name everything that is imported."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import jupytext
import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "authoring"))
sys.path.insert(0, str(ROOT))

import lock as lock_writer  # noqa: E402

import bootstrap  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OURS = {
    "ssmcourse",
    "record",
    "build",
    "bootstrap",
    "lock",
    "tests",
    "conftest",
    "operator_table",
    "contract",
}


def locked() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(r.name): r for r in requirements}


def declared(*extras: str) -> list[Requirement]:
    return [Requirement(line) for line in PROJECT["dependencies"] + [r for e in extras for r in EXTRAS[e]]]


def test_every_declared_package_is_locked_within_its_range_and_for_the_same_systems():
    lock = locked()
    for requirement in declared("lab", "test"):
        pinned = lock[canonicalize_name(requirement.name)]
        (version,) = [s.version for s in pinned.specifier]
        assert [s.operator for s in pinned.specifier] == ["=="], pinned
        assert requirement.specifier.contains(version), f"{requirement} does not allow the locked {version}"
        assert requirement.marker == pinned.marker, f"{requirement} and {pinned} are for different systems"


@pytest.mark.skipif(
    sys.platform != "linux" or sys.version_info[:2] != (3, 11),
    reason="the lock is written on Linux with Python 3.11, where every package is installed",
)
def test_the_lock_is_what_its_writer_writes_today():
    assert (ROOT / "requirements.lock").read_text() == lock_writer.lock(), "run `make lock`"


def test_the_lock_leaves_cuda_to_the_torch_wheel_and_names_no_local_version():
    for name, requirement in locked().items():
        assert not name.startswith(("nvidia-", "cuda-")), name
        assert "+" not in str(requirement.specifier), requirement


def test_torch_and_triton_are_the_pair_that_belongs_together():
    lock = locked()
    assert str(lock["torch"].specifier) == "==2.13.0"
    assert str(lock["triton"].specifier) == "==3.7.1"
    assert str(lock["triton"].marker) == 'sys_platform == "linux"'
    assert str(lock["numba-cuda"].marker) == 'sys_platform != "darwin"'


def test_conda_takes_python_from_conda_and_the_lock_through_pip():
    text = (ROOT / "environment.yml").read_text()
    (python,) = re.findall(r"^ {2}- python(.*)$", text, re.M)
    assert set(python.split(",")) == set(PROJECT["requires-python"].split(","))
    assert "- -r requirements.lock" in text
    assert "- -e ." in text


def test_the_bootstrap_and_pyproject_support_the_same_pythons():
    supported = [
        m for m in range(8, 20) if Requirement("x" + PROJECT["requires-python"]).specifier.contains(f"3.{m}")
    ]
    assert supported == [m for m in range(8, 20) if bootstrap.refusal((3, m, 0)) is None] == [11, 12, 13]


@pytest.mark.parametrize("version", [(2, 7), (3, 10), (3, 14)])
def test_another_python_is_refused_in_one_line(version):
    line = bootstrap.refusal((*version, 0))
    assert f"got {version[0]}.{version[1]}" in line
    assert "3.11, 3.12 or 3.13" in line
    assert "\n" not in line


def imports_of(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def source_of(path: Path) -> str:
    if path.suffix == ".ipynb" or path.parent.parent.name == "authoring":
        nb = nbformat.read(path, 4) if path.suffix == ".ipynb" else jupytext.read(path)
        cells = [c.source for c in nb.cells if c.cell_type == "code"]
        return "\n".join(
            line for c in cells for line in c.splitlines() if not line.lstrip().startswith(("%", "!"))
        )
    return path.read_text()


# who may import what: the library its dependencies, notebooks also [lab], tests and tools everything
ROOMS = {
    "library": (["ssmcourse", "kernels"], []),
    "course": (["notebooks", "exercises", "solutions", "authoring/lessons", "authoring/exercises"], ["lab"]),
    "tools": (["tests", "benchmarks", "authoring"], ["lab", "test"]),
}

# what is imported only where it is there: pytest loads its plugin, the doctor looks for Jupyter, a checkpoint may
# bring a tokenizer, a benchmark has rivals
OPTIONAL = {
    "pytest_plugin.py": {"pytest"},
    "doctor.py": {"jupyter_core"},
    "text.py": {"tokenizers"},
    "layers.py": {"mambapy"},
}


@pytest.mark.parametrize("where", ROOMS)
def test_everything_imported_is_declared(where):
    folders, extras = ROOMS[where]
    providers = metadata.packages_distributions()
    allowed = {canonicalize_name(r.name) for r in declared(*extras)}
    for folder in folders:
        for path in [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.ipynb")]:
            if ".ipynb_checkpoints" in path.parts:
                continue
            beside_it = {p.stem for p in path.parent.glob("*.py")}
            beside_it |= OPTIONAL.get(path.name, set())
            for name in imports_of(source_of(path)) - set(sys.stdlib_module_names) - OURS - beside_it:
                owners = {canonicalize_name(p) for p in providers.get(name, [])}
                assert owners & allowed, (
                    f"{path.relative_to(ROOT)} imports {name}, which pyproject.toml does not name"
                )
