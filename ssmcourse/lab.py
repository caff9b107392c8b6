"""Open JupyterLab on the learner's copy of lesson 00 (`ssmcourse lab`, `make lab`)."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

from ssmcourse.course import CourseError, root, start

SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension:tracker": {"recordTiming": False},
}


def command(base: Path, arguments: list[str]) -> list[str]:
    """The command that serves the folder `base`; `arguments` go to JupyterLab as they are."""
    lesson = start("00").lesson.relative_to(base)
    line = [
        sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={base}",
        f"--LabApp.default_url=/lab/tree/{lesson.as_posix()}", "--Application.log_level=WARN",
    ]  # fmt: skip
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        line.append("--allow-root")
    return line + arguments


def open_lab(arguments: list[str]) -> None:
    """Replace this process by JupyterLab, with its news prompt turned off.

    Raises:
        CourseError: JupyterLab is not installed, or there is no course here.
    """
    if importlib.util.find_spec("jupyterlab") is None:
        raise CourseError("JupyterLab is not installed here: run `pip install 'ssmcourse[lab]'`.")
    base = root()
    line = command(base, arguments)
    os.environ["JUPYTERLAB_SETTINGS_DIR"] = str(_settings(base))
    print("lab: starting JupyterLab; stop it with Ctrl+C", flush=True)
    os.chdir(base)
    if os.name == "nt":
        sys.exit(subprocess.call(line))
    os.execv(line[0], line)


def _settings(base: Path) -> Path:
    """A settings folder of the course's own, beside the learner's copies; what is there is kept."""
    folder = base / "work" / ".jupyter"
    for name, values in SETTINGS.items():
        extension, plugin = name.split(":")
        file = folder / extension / f"{plugin}.jupyterlab-settings"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return folder
