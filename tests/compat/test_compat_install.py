"""`install` and `uninstall`: what is found, what is left alone. Each test has a Python of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(
    any(__import__("importlib").util.find_spec(name) for name in ("mamba_ssm", "causal_conv1d")),
    reason="a real mamba_ssm or causal_conv1d is installed",
)


def run(code: str, *path) -> str:
    """What a fresh Python prints, with `path` in front of its own."""
    start = f"import sys; sys.path[:0] = {[str(p) for p in path]}\n"
    done = subprocess.run(
        [sys.executable, "-c", start + textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_everything_of_the_table_can_be_imported_found_and_asked_for_its_version():
    run("""
        import importlib, importlib.metadata, importlib.util
        from ssmcourse import compat
        from ssmcourse.compat.finder import TABLE
        assert importlib.util.find_spec("mamba_ssm") is None
        assert compat.install() == ["mamba_ssm", "causal_conv1d", "selective_scan_cuda"]
        for name, homes in TABLE.items():
            assert importlib.util.find_spec(name).name == name
            module = importlib.import_module(name)
            assert module.__spec__.origin == "ssmcourse.compat"
            assert sorted(module.__all__) == sorted(" ".join(homes.values()).split())
            for own in module.__all__:
                assert callable(getattr(module, own)), own
            assert module.__version__.endswith("+ssmcourse")
        import mamba_ssm, causal_conv1d
        from mamba_ssm.ops.triton.ssd_combined import *
        assert mamba_chunk_scan_combined is mamba_ssm.ops.triton.ssd_combined.mamba_chunk_scan_combined
        assert mamba_ssm.selective_scan_fn is mamba_ssm.ops.selective_scan_interface.selective_scan_fn
        for name in ("mamba_ssm", "mamba-ssm", "causal-conv1d"):
            assert importlib.metadata.version(name).endswith("+ssmcourse")
        assert importlib.metadata.packages_distributions()["mamba_ssm"] == ["mamba_ssm"]
        assert importlib.util.find_spec("mamba_ssm.models") is None
    """)


def test_again_changes_nothing_and_uninstall_takes_it_back():
    run("""
        import importlib.metadata, importlib.util, sys
        from ssmcourse import compat
        before = list(sys.meta_path)
        compat.uninstall()
        names, during = compat.install(), list(sys.meta_path)
        assert compat.install() == names and sys.meta_path == during
        from mamba_ssm.ops.triton.layer_norm import RMSNorm
        compat.uninstall()
        assert sys.meta_path == before
        assert not [name for name in sys.modules if name.startswith(("mamba_ssm", "causal_conv1d"))]
        assert importlib.util.find_spec("mamba_ssm") is None
        try:
            importlib.metadata.version("mamba_ssm")
        except importlib.metadata.PackageNotFoundError:
            pass
        else:
            raise AssertionError("still there")
        RMSNorm(4)
        compat.install()
        import mamba_ssm
    """)


def test_a_real_package_is_neither_hidden_nor_filled_up(tmp_path):
    (tmp_path / "mamba_ssm").mkdir()
    (tmp_path / "mamba_ssm" / "__init__.py").write_text("__version__ = 'real'\n")
    run(
        """
        import importlib.util
        from ssmcourse import compat
        assert compat.install() == ["causal_conv1d", "selective_scan_cuda"]
        import mamba_ssm
        assert mamba_ssm.__version__ == "real"
        assert importlib.util.find_spec("mamba_ssm.ops") is None
        import causal_conv1d
        """,
        tmp_path,
    )


def test_one_that_is_loaded_already_is_real_too():
    run("""
        import sys, types
        sys.modules["causal_conv1d"] = mine = types.ModuleType("causal_conv1d")
        from ssmcourse import compat
        assert compat.install() == ["mamba_ssm", "selective_scan_cuda"]
        import causal_conv1d
        assert causal_conv1d is mine
        import mamba_ssm
    """)


def test_one_that_appears_later_is_preferred(tmp_path):
    (tmp_path / "causal_conv1d.py").write_text("__version__ = 'real'\n")
    run(f"""
        import sys
        from ssmcourse import compat
        compat.install()
        sys.path.insert(0, {str(tmp_path)!r})
        import causal_conv1d
        assert causal_conv1d.__version__ == "real"
    """)


def test_importing_compat_is_cheap_and_installs_nothing():
    run("""
        import importlib.util, sys
        import ssmcourse.compat
        assert "torch" not in sys.modules
        assert importlib.util.find_spec("mamba_ssm") is None
    """)


def test_real_code_around_the_compiled_module_works(tmp_path):
    """A `mamba_ssm` built without its extension fails at `import selective_scan_cuda`; with it, it works."""
    (tmp_path / "mamba_ssm.py").write_text(
        "import selective_scan_cuda\n"
        "def last_state(*given):\n"
        "    out, x, *rest = selective_scan_cuda.fwd(*given)\n"
        "    return x[:, :, -1, 1::2]\n"
    )
    run(
        """
        from ssmcourse import compat
        compat.install()
        import mamba_ssm, torch
        u = torch.ones(1, 2, 5)
        B = torch.ones(1, 1, 3, 5)
        state = mamba_ssm.last_state(u, u, torch.zeros(2, 3), B, B, None, None, None, False)
        assert torch.equal(state, torch.full((1, 2, 3), 5.0))
        """,
        tmp_path,
    )
