"""Run pyright on the library as it is installed (`make lint`).

kernels/ is imported as ssmcourse.kernels, which pyright cannot be told. So it is shown a folder of
links in which the package lies as in the wheel.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="typecheck-") as folder:
        package = Path(folder) / "ssmcourse"
        package.mkdir()
        for entry in (ROOT / "ssmcourse").iterdir():
            (package / entry.name).symlink_to(entry)
        (package / "kernels").symlink_to(ROOT / "kernels")
        (Path(folder) / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
        command = [sys.executable, "-m", "pyright", "--project", folder, "--pythonpath", sys.executable]
        return subprocess.call(command)


if __name__ == "__main__":
    sys.exit(main())
