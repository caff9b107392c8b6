"""A real JupyterLab in a headless Chromium, for tests and for the latency benchmark.

`server()` starts JupyterLab with a configuration, a home and a notebook folder of its own, and ends
it together with its kernels. `Lab` is one page of it: it opens notebooks, runs cells, presses keys,
and remembers every error of the console.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import psutil
from playwright.sync_api import Browser, Locator, Page, sync_playwright

HOW_TO_INSTALL = (
    "Chromium is not installed: `sudo apt-get install chromium` (Debian, Ubuntu), "
    "`brew install --cask chromium` (macOS), or put a chromium or google-chrome on the PATH"
)
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--force-color-profile=srgb",
]
OVERRIDES = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}
# What Chromium and JupyterLab say about themselves, not about our pages.
HARMLESS = re.compile(r"favicon|Autofill\.enable|the server responded with a status of 404 .*workspaces")


def chromium() -> str | None:
    """The browser's path, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return next((path for path in map(shutil.which, names) if path), None)


@dataclass(frozen=True)
class Server:
    """A running JupyterLab: its address and the folder it serves."""

    url: str
    root: Path

    def write(self, name: str, *cells: str, outputs: dict[int, list[dict]] | None = None) -> str:
        """Write a notebook of code cells (with stored outputs for some) and return its name."""
        nb = nbformat.v4.new_notebook()
        nb.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
        for k, source in enumerate(cells):
            cell = nbformat.v4.new_code_cell(source, id=f"cell-{k}")
            cell.outputs = [nbformat.from_dict(o) for o in (outputs or {}).get(k, [])]
            nb.cells.append(cell)
        nbformat.write(nb, self.root / name)
        return name


@contextlib.contextmanager
def server(folder: Path) -> Iterator[Server]:
    """JupyterLab on a free port; everything it writes stays in `folder`."""
    home, config, root = folder / "home", folder / "config", folder / "notebooks"
    settings = folder / "app_settings"
    for path in (home, config, root, settings):
        path.mkdir(parents=True)
    (settings / "overrides.json").write_text(json.dumps(OVERRIDES))
    port = _free_port()
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}"),
        *("--ServerApp.port_retries=0", "--IdentityProvider.token=", "--ServerApp.password="),
        *("--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={root}"),
        *(
            f"--LabApp.app_settings_dir={settings}",
            "--LabApp.news_url=",
            "--LabApp.extension_manager=readonly",
        ),
    ]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    env = os.environ | {
        "HOME": str(home),
        "JUPYTER_CONFIG_DIR": str(config),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "IPYTHONDIR": str(home / "ipython"),
        "SSMCOURSE_PROGRESS": str(folder / "progress.json"),
        "OMP_NUM_THREADS": "1",
    }
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, cwd=root)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url, process, folder / "server.log")
        yield Server(url, root)
    finally:
        _end(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(url: str, process: subprocess.Popen, log: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/api/status", timeout=2):
            return
        time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


def _end(process: subprocess.Popen) -> None:
    """End the server and the kernels that it started, and nothing else."""
    family = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    for child in [*family, process]:
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            child.kill()
    process.wait(5)


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium; ask `chromium()` first whether there is one."""
    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=chromium(), args=QUIET)
        yield chrome
        chrome.close()


class Lab:
    """One page of a JupyterLab."""

    def __init__(self, chrome: Browser, server: Server, *, width: int = 1360, height: int = 1000) -> None:
        self.server = server
        self.context = chrome.new_context(viewport={"width": width, "height": height})
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.errors: list[str] = []
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _on_console(self, message) -> None:
        if message.type == "error" and not HARMLESS.search(f"{message.text} {message.location.get('url')}"):
            self.errors.append(f"{message.text} ({message.location.get('url')})")

    def close(self) -> None:
        """Close the page and end its kernels."""
        for session in self._get("sessions"):
            url = f"{self.server.url}/api/sessions/{session['id']}"
            with contextlib.suppress(OSError):
                urllib.request.urlopen(urllib.request.Request(url, method="DELETE")).close()
        self.context.close()

    # --- notebooks ---

    def open(self, name: str) -> None:
        """Open a notebook alone, without the side bar, and wait for its kernel."""
        self.page.goto(f"{self.server.url}/lab/tree/{name}?reset")
        self.page.locator(".jp-Notebook .jp-Cell").first.wait_for()
        self.page.locator('.jp-KernelName:has-text("Python")').wait_for()
        self._wait_kernel(name)
        if self.page.locator("#jp-left-stack:visible").count():
            self.page.keyboard.press("Control+b")

    def _wait_kernel(self, name: str) -> None:
        """Until the server says that the notebook's kernel is idle: before, "run" opens a dialogue."""
        for _ in range(600):
            sessions = self._get("sessions")
            if any(s["path"] == name and s["kernel"]["execution_state"] == "idle" for s in sessions):
                self.page.locator(".jp-NotebookPanel-toolbar [data-status='idle']").wait_for()
                return
            self.page.wait_for_timeout(50)
        raise TimeoutError(f"the kernel of {name} did not get ready")

    def _get(self, what: str) -> list[dict]:
        with urllib.request.urlopen(f"{self.server.url}/api/{what}") as reply:
            return json.load(reply)

    def menu(self, menu: str, item: str) -> None:
        """Choose from the menu bar."""
        self.page.locator(f'.lm-MenuBar-itemLabel:text-is("{menu}")').click()
        self.page.locator(f'.lm-Menu-itemLabel:text-is("{item}")').click()

    def run_all(self, timeout: float = 120) -> None:
        """Run every cell and wait for the last one."""
        self.menu("Run", "Run All Cells")
        self.wait_idle(timeout)

    def wait_idle(self, timeout: float = 120) -> None:
        """Wait until no cell waits or runs."""
        self.page.wait_for_function(
            """() => document.querySelectorAll('.jp-InputPrompt').length > 0 &&
                ![...document.querySelectorAll('.jp-InputPrompt')].some(p => p.textContent.includes('*')) &&
                document.querySelector(".jp-NotebookPanel-toolbar [data-status='idle']")""",
            timeout=timeout * 1000,
        )

    def cell(self, containing: str) -> Locator:
        """The first code cell whose source holds this text."""
        cells = self.page.locator(".jp-CodeCell")
        return cells.filter(has=self.page.locator(".jp-InputArea-editor", has_text=containing)).first

    def rewrite(self, cell: Locator, source: str) -> None:
        """Replace a cell's source by typing over it, then run it and wait."""
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(source)
        self.run_focused()

    def run(self, cell: Locator) -> None:
        """Run one cell and wait."""
        cell.locator(".cm-content").click()
        self.run_focused()

    def run_focused(self) -> None:
        """Run the cell with the cursor and wait."""
        self.page.keyboard.press("Control+Enter")
        self.page.wait_for_timeout(50)
        self.wait_idle()

    def cells_with_errors(self) -> list[str]:
        """The error outputs in sight."""
        return self.page.locator('.jp-OutputArea-output[data-mime-type*="error"]').all_inner_texts()

    # --- pictures ---

    def slider(self, label: str, nth: int = 0) -> Locator:
        """The handle of the slider with this label."""
        boxes = self.page.locator(".widget-inline-hbox")
        named = boxes.filter(has=self.page.locator(f'.widget-label:text-is("{label}")'))
        return named.nth(nth).locator(".noUi-handle")

    def press(self, target: Locator, key: str, times: int = 1) -> None:
        """Focus an element and press a key."""
        target.focus()
        for _ in range(times):
            self.page.keyboard.press(key)

    def fingerprints(self) -> list[str]:
        """One string for each canvas on the page; it changes when the picture does."""
        return self.page.evaluate(
            "[...document.querySelectorAll('.ssm-view canvas')].map(c => c.width ? c.toDataURL() : '')"
        )

    def wait_change(self, before: list[str], which: int = 0, seconds: float = 10) -> None:
        """Wait until the picture number `which` differs from `before`."""
        self.page.wait_for_function(
            "([k, old]) => document.querySelectorAll('.ssm-view canvas')[k]?.toDataURL() !== old",
            arg=[which, before[which]],
            timeout=seconds * 1000,
        )

    def theme(self, name: str) -> None:
        """`JupyterLab Light` or `JupyterLab Dark`, through the menu."""
        self.page.locator('.lm-MenuBar-itemLabel:text-is("Settings")').click()
        self.page.locator('.lm-Menu-itemLabel:text-is("Theme")').hover()
        self.page.locator(f'.lm-Menu-itemLabel:text-is("{name}")').click()
        self.page.wait_for_function(
            "light => document.body.dataset.jpThemeLight === light", arg=str(name.endswith("Light")).lower()
        )
        self.page.wait_for_timeout(600)

    def screenshot(self, path: Path, target: Locator | None = None) -> None:
        """Of the page, or of one element of it."""
        (target or self.page).screenshot(path=str(path))
