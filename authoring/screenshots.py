"""Photograph the explorables in a real JupyterLab, for the README (`make screenshots`)."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "browser"))

from jupyter import HOW_TO_INSTALL, Lab, browser, chromium, server  # noqa: E402

CALLS = {
    "memory": "explore.memory(selective=True)",
    "hippo": "explore.hippo(n=40)",
}
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}


def main() -> int:
    if chromium() is None:
        print(HOW_TO_INSTALL)
        return 1
    target = ROOT / "authoring" / "images"
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, server(Path(folder) / "s") as running, browser() as chrome:
        for name, call in CALLS.items():
            lab = Lab(chrome, running, width=1180, height=1100)
            lab.open(running.write(f"{name}.ipynb", f"from ssmcourse import explore\n{call}"))
            lab.run_all()
            app = lab.page.locator(".ssm-explorable").first
            app.locator("canvas[aria-label]").first.wait_for()
            for theme, menu in THEMES.items():
                lab.theme(menu)
                lab.page.wait_for_timeout(800)
                app.screenshot(path=str(target / f"{name}_{theme}.png"))
            lab.close()
    print(f"screenshots: {len(list(target.glob('*.png')))} pictures in authoring/images/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
