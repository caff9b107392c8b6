"""Write the lessons and solutions as web pages to build/site/ (`make site`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    target = ROOT / "build" / "site"
    for folder in ("notebooks", "solutions"):
        books = sorted(map(str, (ROOT / folder).glob("*.ipynb")))
        command = [sys.executable, "-m", "nbconvert", "--to", "html", "--output-dir", str(target / folder)]
        subprocess.run([*command, "--log-level", "WARN", *books], check=True)
    print(f"site: {len(list(target.rglob('*.html')))} pages in build/site/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
