"""The public names: callable whatever was imported before, and the same for people and for editors."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import ssmcourse

ROOT = Path(__file__).resolve().parent.parent


def submodules() -> list[str]:
    found = [m.name for m in pkgutil.walk_packages(ssmcourse.__path__, "ssmcourse.")]
    assert "ssmcourse.hippo" in found
    return [name for name in found if not name.endswith("__main__")]


def test_every_public_name_is_callable_after_every_submodule_was_imported():
    for module in submodules():
        importlib.import_module(module)
    for name in ssmcourse._HOME:
        assert callable(getattr(ssmcourse, name)), name


@pytest.mark.parametrize("name", sorted(ssmcourse._HOME))
def test_no_public_function_has_the_name_of_a_module(name):
    assert not (ROOT / "ssmcourse" / f"{name}.py").exists()
    assert not (ROOT / "ssmcourse" / name).exists()


def test_an_editor_sees_the_names_that_python_sees():
    tree = ast.parse((ROOT / "ssmcourse" / "__init__.py").read_text())
    (block,) = [n for n in tree.body if isinstance(n, ast.If)]
    seen = {alias.name: n.module.removeprefix("ssmcourse.") for n in block.body for alias in n.names}
    assert seen == ssmcourse._HOME
    assert set(ssmcourse._HOME) <= set(dir(ssmcourse))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'mambo'"):
        ssmcourse.mambo  # noqa: B018


def test_the_kernels_know_nothing_of_the_rest():
    code = (
        "import ssmcourse.kernels.runtime, sys; print([m for m in sys.modules if m.startswith('ssmcourse.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(m.startswith("ssmcourse.kernels") for m in ast.literal_eval(done.stdout))
