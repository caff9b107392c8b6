"""Write requirements.lock: every package that pyproject.toml leads to, pinned (`make lock`).

Walks the requirements of the installed packages for Linux, macOS and Windows and Python 3.11 to
3.13, so that one file serves them all. A package that only some of them need gets a marker. What
a CUDA build of torch brings for itself (nvidia-*, cuda-*) stays unpinned: the torch wheel decides.
"""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
EXTRAS = ("lab", "test")
PLATFORMS = {
    "linux": {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"},
    "darwin": {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix"},
    "win32": {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt"},
}
PYTHONS = ("3.11", "3.12", "3.13")
LEFT_TO_TORCH = ("nvidia-", "cuda-")
HEADER = """\
# Every package of the course, pinned. Written by `make lock` from pyproject.toml; do not edit.
# What a CUDA build of torch brings for itself is left to its wheel, so that a CPU wheel stays
# a CPU wheel.
"""


def environment(platform: str, python: str) -> dict[str, str]:
    env = {k: str(v) for k, v in default_environment().items()}
    return (
        env
        | PLATFORMS[platform]
        | {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    )


def roots() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [r for e in EXTRAS for r in project["optional-dependencies"][e]]
    return [Requirement(line) for line in lines]


def requirements_of(name: str) -> list[Requirement]:
    try:
        return [Requirement(line) for line in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:
        return []


def closure(env: dict[str, str]) -> set[str]:
    """Canonical names of all packages needed in one environment."""
    seen: set[tuple[str, str]] = set()
    todo = [(r, "") for r in roots()]
    while todo:
        requirement, extra_of_parent = todo.pop()
        if requirement.marker and not requirement.marker.evaluate(env | {"extra": extra_of_parent}):
            continue
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                todo += [(r, extra) for r in requirements_of(name)]
    return {name for name, _ in seen if not name.startswith(LEFT_TO_TORCH)}


def marker(where: set[tuple[str, str]]) -> str:
    """The shortest marker for the (platform, python) pairs that need a package."""
    everywhere = {(p, v) for p in PLATFORMS for v in PYTHONS}
    if where == everywhere:
        return ""
    platforms = [p for p in PLATFORMS if any(w[0] == p for w in where)]
    pythons = [v for v in PYTHONS if any(w[1] == v for w in where)]
    parts = []
    if len(platforms) == 1:
        parts.append(f"sys_platform == '{platforms[0]}'")
    elif len(platforms) == 2:
        parts.append(f"sys_platform != '{next(iter(set(PLATFORMS) - set(platforms)))}'")
    if len(pythons) < len(PYTHONS):
        parts.append(
            f"python_version <= '{pythons[-1]}'"
            if pythons[0] == PYTHONS[0]
            else f"python_version >= '{pythons[0]}'"
        )
    return " ; " + " and ".join(parts)


def version(name: str, before: dict[str, str]) -> str:
    """The installed version; for what only other systems need, the one that the lock already holds."""
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        if name in before:
            return before[name]
        raise SystemExit(
            f"{name} is needed on another system: add a line `{name}==VERSION` to requirements.lock"
        ) from None


def lock() -> str:
    needed: dict[str, set[tuple[str, str]]] = {}
    for platform in PLATFORMS:
        for python in PYTHONS:
            for name in closure(environment(platform, python)):
                needed.setdefault(name, set()).add((platform, python))
    before = dict(re.findall(r"^(\S+)==(\S+)", LOCK.read_text(), re.M))
    return HEADER + "".join(
        f"{name}=={version(name, before)}{marker(where)}\n" for name, where in sorted(needed.items())
    )


if __name__ == "__main__":
    text = lock()
    LOCK.write_text(text)
    print(f"requirements.lock: {text.count('==')} lines")
